"""The command ``python -m numerics.sweep``: observables over any number of parameters, into a file."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from click.core import ParameterSource

from numerics.cli.command import Command, blaming, tell_of_journal
from numerics.cli.flags import (
    MODEL,
    SIMULATION_FLAGS,
    build_model,
    executor_options,
    jobs_option,
    model_options,
    opened_executor,
)
from numerics.cli.report import warn_of_failures
from numerics.models import ParameterError
from numerics.problem import plain_name
from numerics.simulation.run import Simulation
from numerics.solution.observables import OBSERVABLES
from numerics.sweeps.axes import spaced
from numerics.sweeps.journal import SUFFIX
from numerics.sweeps.run import sweep


def read_axis(text: str) -> tuple[str, np.ndarray]:
    """Name and values of ``NAME=LOW:HIGH:COUNT[:log|:lin]`` or ``NAME=VALUE,VALUE,...``; click.UsageError if it is neither."""
    path, equals, numbers = (plain_name(part) for part in text.partition("="))
    if not equals or not path:
        raise click.UsageError(f"--over wants NAME=LOW:HIGH:COUNT[:log|:lin] or NAME=VALUE,VALUE,..., got {text!r}")
    if ":" in numbers:
        with blaming({}, f"--over {path}", ParameterError):
            return path, spaced(numbers)[0]
    try:
        return path, np.array([float(number) for number in numbers.split(",")])
    except ValueError:
        raise click.UsageError(f"--over {path} wants numbers, got {numbers!r}") from None


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Observables of teacher and student on a grid of parameters, into a NetCDF file.  Points are kept as they come: the same "
    f"command after an interruption goes on where it was.\n\n{MODEL}\n\n\b\n"
    "Examples:\n"
    "  python -m numerics.sweep --over alpha=0.1:6:100 --over teacher.ridge=1e-5:10:100:log --output grid.nc\n"
    "  python -m numerics.sweep --over rho=0.1,0.2,0.5 --over alpha=1:6:6 --simulate 500 10 --output runs.nc",
)
@model_options(alpha=2.0)
@click.option(
    "--over", "axes", multiple=True, required=True, metavar="AXIS",
    help="NAME=LOW:HIGH:COUNT[:log|:lin], or NAME=VALUE,VALUE,...; any number of times.",
)  # fmt: skip
@click.option(
    "--observable", "observables", multiple=True, default=("test_error",), metavar="NAME",
    help=f"What to keep, any number of times: {', '.join(OBSERVABLES)}; of theory also NAME_quadrature_error, "
    "the estimated error of one.  [default: test_error]",
)  # fmt: skip
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="NetCDF file to write."
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Begin again, whatever there is at FILE.")
@click.option("--simulate", "size", nargs=2, type=int, metavar="N RUNS", help="Simulate: inputs and runs.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the simulation.")
@click.option("--rtol", type=float, help="Relative accuracy of the theory's order parameters.  [default: 1e-8]")
@jobs_option
@executor_options
def sweep_command(
    axes: tuple[str, ...], observables: tuple[str, ...], output: Path, overwrite: bool, size: tuple[int, int] | None, seed: int,
    rtol: float | None, jobs: int, executor: str, scheduler: str | None, **flags,
) -> int:  # fmt: skip
    """``python -m numerics.sweep``."""
    data, chain = build_model(flags)
    over: dict[str, np.ndarray] = {}
    for path, values in map(read_axis, axes):
        if path in over:
            raise click.UsageError(f"--over {path} is given twice")
        over[path] = values
    if size is None and click.get_current_context().get_parameter_source("seed") == ParameterSource.COMMANDLINE:
        raise click.UsageError("--seed has no effect without --simulate")
    blame = {
        **SIMULATION_FLAGS,
        "observables:": "--observable",
        "observables": "--observable",
        "output:": "--output",
        "n_inputs": "--simulate",
        "n_runs": "--simulate",
        "rtol": "--rtol",
        "over:": "--over:",
    }
    with opened_executor(executor, scheduler, jobs) as pool, blaming(blame, "--over", ParameterError):
        try:
            found = sweep(
                data, chain, over, observables, output=output, overwrite=overwrite, executor=pool, jobs=jobs, progress=True,
                simulation=Simulation(*size, seed) if size else None, rtol=rtol,
            )  # fmt: skip
        except KeyboardInterrupt:
            tell_of_journal(output.with_name(output.name + SUFFIX))
            raise
    with found:
        count, lines = int(found.attrs["failed_points"]), found.attrs["failures"].split("\n")
        total = int(np.prod([len(values) for values in over.values()]))
    click.echo(output)
    warn_of_failures(count, lines)
    return 1 if count == total else 0
