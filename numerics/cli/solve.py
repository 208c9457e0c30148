"""The command ``python -m numerics.solve``: one point of theory."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import click

from numerics.cli.command import Command, blaming, deliver, patience, require_writable
from numerics.cli.flags import MODEL, build_model, model_options, report_options
from numerics.cli.report import solution_text
from numerics.models import Chain, DataModel, ParameterError
from numerics.solution.solution import Solution
from numerics.solver import ConvergenceWarning, solve


def solve_quietly(data: DataModel, chain: Chain, rtol: float | None) -> Solution:
    """Solve; what did not converge is in the result, not in a warning."""
    with (
        warnings.catch_warnings(),
        patience("solving; what is new in a chain is compiled first"),
        blaming({"rtol": "--rtol", "ridge": "ridge"}, "--rtol", ParameterError),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solve(data, chain, rtol=rtol)


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=f"Order parameters and errors of a teacher and its student in the limit of large N.\n\n{MODEL}\n\n\b\n"
    "Example:\n  python -m numerics.solve --alpha 2 --teacher-ridge 0.1 --chi 1 --json\n"
    "  python -m numerics.solve --problem chain.json --label-noise 0.1",
)
@model_options()
@report_options
def solve_command(rtol: float | None, as_json: bool, output: Path | None, **flags) -> int:
    """``python -m numerics.solve``."""
    data, chain = build_model(flags)
    if output is not None:
        require_writable(output)
    solution = solve_quietly(data, chain, rtol)
    text = json.dumps(solution.to_dict(), indent=2, allow_nan=False) if as_json else solution_text(solution)
    deliver(text, output)
    if not solution.converged:
        click.echo(f"not converged: {solution.message}", err=True)
    return 0 if solution.converged else 1
