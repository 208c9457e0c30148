"""The command ``python -m numerics.simulate``: one point of simulation, beside theory."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import click

from numerics.cli.command import Command, blaming, deliver, require_writable
from numerics.cli.flags import MODEL, SIMULATION_FLAGS, build_model, jobs_option, model_options, report_options
from numerics.cli.report import compare, comparison_text
from numerics.cli.solve import solve_quietly
from numerics.models import ParameterError
from numerics.solver import ConvergenceWarning


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Train teacher and student on finite samples, beside what theory expects; z is the difference in standard "
    f"errors.\n\n{MODEL}\n\n\b\n"
    "Example:\n  python -m numerics.simulate --alpha 2 --teacher-ridge 0.1 --inputs 1000 --runs 20",
)
@model_options()
@click.option("--inputs", type=click.IntRange(min=2), default=1000, show_default=True, help="N, input dimension.")
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Independent draws.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all draws.")
@jobs_option
@click.option("--no-theory", is_flag=True, help="Do not solve the theory beside.")
@report_options
def simulate_command(
    inputs: int, runs: int, seed: int, jobs: int, no_theory: bool, rtol: float | None, as_json: bool,
    output: Path | None, **flags,
) -> int:  # fmt: skip
    """``python -m numerics.simulate``."""
    from numerics.scalar.compiled import compile_chain, compile_losses
    from numerics.simulation.run import simulate  # here: the other command does without

    data, chain = build_model(flags)
    if output is not None:
        require_writable(output)
    if not data.many_classes:
        compile_losses(chain)  # before the clock of the bar runs
        if not no_theory:
            compile_chain(chain)
    with warnings.catch_warnings(), blaming(SIMULATION_FLAGS, "--inputs", ParameterError):
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = simulate(data, chain, inputs, runs, seed, n_jobs=jobs, progress=True)
    solution = None if no_theory else solve_quietly(result.effective_data, result.effective_chain, rtol)
    stages = compare(result, solution)
    if as_json:
        document = {
            "simulation": result.to_dict(),
            "theory": None if solution is None else solution.to_dict(),
            "comparison": [{"name": name, **entries} for name, entries in zip(chain.names, stages, strict=True)],
        }
        deliver(json.dumps(document, indent=2, allow_nan=False), output)
    else:
        deliver(comparison_text(result, stages), output)
    converged = result.converged
    if not result.converged:
        click.echo(f"not converged: {result.message}", err=True)
    if solution is not None and not solution.converged:
        click.echo(f"theory not converged: {solution.message}", err=True)
        converged = False
    return 0 if converged else 1
