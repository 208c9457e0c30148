"""``python -m numerics.phase_diagram``: the double descent of distillation, or any observable over any parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numerics.deferred import starting

with starting(__name__):
    import click
    import numpy as np
    import xarray
    from click.core import ParameterSource
    from matplotlib.figure import Figure

    from numerics.cli.command import (
        OUTPUT_FOLDER,
        ROOT,
        Command,
        blaming,
        kept_points,
        replacing,
        require_committed,
        require_writable,
    )
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
    from numerics.models import Chain, DataModel, ParameterError, parameter_paths, with_parameter
    from numerics.plots import style
    from numerics.plots.curves import curves, save
    from numerics.plots.double_descent import double_descent
    from numerics.plots.heat_map import heat_map
    from numerics.plots.plan import (
        SIMULATED_ALPHAS,
        fixed_note,
        parameters_note,
        plan_double_descent,
        refined_grid,
        thresholds_in_alpha,
    )
    from numerics.problem import plain_name, write_problem
    from numerics.simulation.run import Simulation
    from numerics.solution.observables import OBSERVABLES
    from numerics.solution.observables.registry import compares, is_defined, measured, observables_of
    from numerics.sweeps.axes import spaced
    from numerics.sweeps.grid import Experiment, Grid
    from numerics.sweeps.provenance import package_versions
    from numerics.sweeps.run import evaluate

__all__ = ["SIMULATED_ALPHAS", "Axis", "main", "refined_grid", "thresholds_in_alpha", "write_data", "write_figure"]

SIMULATION = (500, 10)
"""Inputs and runs of the default simulation."""

PICTURES = (".png", ".pdf")
"""Formats of the pictures; ``--output picture.svg`` makes an SVG instead."""

SIMULATED_POINTS = 9
"""Points of a simulation along an axis given by the user, its ends left out."""


@dataclass(frozen=True)
class Axis:
    """A parameter on an axis, and whether it is spaced linearly or logarithmically."""

    path: str
    values: np.ndarray
    scale: str

    @classmethod
    def parse(cls, text: str, flag: str) -> Axis:
        """Read ``name=low:high:count[:log|:lin]``; click.UsageError naming the flag."""
        path, equals, numbers = text.partition("=")
        if not equals:
            raise click.UsageError(f"{flag} wants NAME=LOW:HIGH:COUNT[:log|:lin], got {text!r}")
        with blaming({}, f"{flag} {path.strip()}"):
            return cls(plain_name(path), *spaced(numbers))

    def check(self, data: DataModel, chain: Chain, flag: str) -> None:
        """Raise click.UsageError if the model has no such parameter, or the range is not allowed."""
        if self.path not in parameter_paths(chain, data):
            allowed = ", ".join(parameter_paths(chain, data))
            raise click.UsageError(f"{flag}: unknown parameter {self.path!r}; allowed are {allowed}")
        with blaming({}, f"{flag} {self.path}"):
            for value in self.values[[0, -1]]:
                with_parameter(data, chain, self.path, float(value))


def plan_axes(
    data: DataModel, chain: Chain, axes: Sequence[Axis], quantity: str, simulation: tuple[int, int], seed: int
) -> tuple[dict[str, Grid | Experiment], dict[str, float]]:
    """What to compute for given axes, and the thresholds to draw."""
    x, *rest = axes
    over = {axis.path: axis.values for axis in (*rest, x)}
    work: dict[str, Grid | Experiment] = {"grid": Grid(data, chain, over, (quantity,))}
    if simulation[1]:
        ends = np.linspace(0, len(x.values) - 1, SIMULATED_POINTS + 2)
        places = np.unique(ends[1:-1].round().astype(int))
        work["simulated_grid"] = Experiment(
            data, chain, {x.path: x.values[places]}, (quantity,), Simulation(*simulation, seed)
        )
    moving = {axis.path.rpartition(".")[2] for axis in rest} & {"rho", "delta", "eta", "noise", "slope", "label_noise"}
    limits = thresholds_in_alpha(data, chain) if x.path == "alpha" and not moving else {}
    return work, limits


# Results.


def failures(datasets: Mapping[str, xarray.Dataset]) -> tuple[int, list[str], bool]:
    """How many points have no result, the first of them in words, and whether there is none with one."""
    count, lines, solved = 0, [], False
    for name, dataset in datasets.items():
        solved |= "converged" in dataset and bool(dataset.converged.any())
        if dataset.attrs.get("failed_points"):
            count += dataset.attrs["failed_points"]
            lines += [f"{name}: {reason}" for reason in dataset.attrs["failures"].split("\n")]
    return count, lines, not solved


def write_data(path: Path, datasets: Mapping[str, xarray.Dataset], attributes: Mapping[str, object]) -> None:
    """One NetCDF file with a group for each dataset; the attributes of the model are the file's."""
    with replacing(path) as temporary:
        xarray.Dataset(attrs=dict(attributes)).to_netcdf(temporary, mode="w", engine="netcdf4")
        for name, dataset in datasets.items():
            dataset.to_netcdf(temporary, mode="a", group=name, engine="netcdf4")


def write_figure(stem: Path, draw: Callable[[], Figure], suffixes: Sequence[str] = PICTURES) -> list[Path]:
    """Draw, and write a picture of each format, PNG and PDF by default."""
    paths = []
    with style.journal_style():
        picture = draw()
        for suffix in suffixes:
            path = stem.with_name(stem.name + suffix)
            with replacing(path) as temporary:
                save(picture, temporary)
            paths.append(path)
    return paths


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Draw the double descent of distillation: without flags, test error and generalization gap against alpha of "
    "teacher (ridge 1e-5 and --teacher-ridge), distilled student, and student on hard labels, with simulations, and "
    "the student's error over alpha and teacher ridge.  With --x, one quantity along any parameter; with --x and --y, "
    "over two."
    f"\n\n{MODEL}\n\n\b\n"
    "Examples:\n"
    "  python -m numerics.phase_diagram\n"
    "  python -m numerics.phase_diagram --x alpha=0.1:6:60 --y teacher.ridge=1e-5:10:40:log\n"
    "  python -m numerics.phase_diagram --x student.temperature=0.5:20:40:log --alpha 1",
)
@model_options(alpha=2.0)
@click.option(
    "--x",
    metavar="AXIS",
    help="NAME=LOW:HIGH:COUNT[:log|:lin], such as alpha=0.1:6:60 or teacher.ridge=1e-5:10:40:log.",
)
@click.option("--y", metavar="AXIS", help="A second parameter: a heat map.")
@click.option(
    "--quantity",
    help=f"What to draw with --x: {', '.join(OBSERVABLES)}.  [default: test_error; excess_risk with --rule identity]",
)
@click.option("--stage", help="Stage to draw with --x: teacher or student.  [default: all; the last in a heat map]")
@click.option(
    "--simulate", "simulation", nargs=2, type=click.IntRange(min=0), metavar="N RUNS",
    help=f"Inputs and runs of simulated points, 0 0 for none.  [default: {SIMULATION[0]} {SIMULATION[1]}, none with "
    "--x]",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the simulation.")
@click.option(
    "--output", metavar="STEM", type=click.Path(path_type=Path),
    help="Files to write, without suffix; with the suffix .svg, an SVG instead of PNG and PDF.  "
    f"[default: {OUTPUT_FOLDER.as_posix()}/double_descent]",
)  # fmt: skip
@click.option("--committed", is_flag=True, help="Draw the picture of the README anew (for who maintains it).")
@jobs_option
@executor_options
def main(
    x: str | None, y: str | None, quantity: str | None, stage: str | None, simulation: tuple[int, int] | None, seed: int,
    output: Path | None, committed: bool, jobs: int, executor: str, scheduler: str | None, **flags,
) -> int:  # fmt: skip
    """``python -m numerics.phase_diagram``."""
    data, chain = build_model(flags)
    stage = None if stage is None else plain_name(stage)
    axes = [Axis.parse(text, flag) for text, flag in ((x, "--x"), (y, "--y")) if text is not None]
    quantity = quantity or ("excess_risk" if data.has_real_labels else "test_error")
    _check_request(data, chain, axes, x, y, quantity, stage)
    simulation = _checked_simulation(simulation, axes, quantity)
    if committed:
        require_committed({"jobs", "executor", "scheduler", "committed"})
        output = ROOT / "figures" / "double_descent"
    stem = _stem(output, axes, quantity)
    pictures = (".svg",) if output is not None and output.suffix == ".svg" else PICTURES
    for suffix in (*pictures, ".nc"):
        require_writable(stem.with_name(stem.name + suffix))

    attributes = {
        "title": f"Theory of knowledge distillation, {data.title}",
        "parameters": json.dumps(flags, default=str),
        "problem": write_problem(data, chain),
    }
    blamed = "--problem" if flags["problem"] and not axes else "--classes" if data.many_classes else "--simulate"
    with blaming(SIMULATION_FLAGS, blamed, ParameterError):
        if axes:
            work, limits = plan_axes(data, chain, axes, quantity, simulation, seed)
            others = {}
        else:
            work, bounds, limits = plan_double_descent(data, chain, simulation, seed)
            others = {"bounds": bounds}
    data_path = stem.with_name(stem.name + ".nc")
    with (
        opened_executor(executor, scheduler, jobs) as pool,
        kept_points(data_path, work) as journal,
        blaming({**SIMULATION_FLAGS, "over:": "--x, --y:"}, "--simulate", ParameterError),
    ):
        datasets = {**evaluate(work, jobs, executor=pool, journal=journal, progress="phase diagram"), **others}
    attributes |= {f"alpha_{name}": value for name, value in limits.items()}
    attributes |= {f"version_{name}": text for name, text in package_versions().items()}

    count, failed, nothing = failures(datasets)
    if nothing:
        journal.discard()
        click.echo(f"error: none of the points converged; nothing was written ({failed[0]})", err=True)
        return 1

    def draw() -> Figure:
        if not axes:
            return double_descent(datasets, limits, parameters_note(data, chain, simulation, limits))
        scales = {axis.path: axis.scale for axis in axes}
        if len(axes) == 2:
            wanted = [stage or chain.names[-1]]
        else:
            wanted = (
                [stage] if stage else [name for name in chain.names if _has_values(datasets["grid"], quantity, name)]
            )
        note = fixed_note(data, chain, scales, wanted or chain.names, simulation, limits)
        if len(axes) == 2:
            return heat_map(datasets["grid"], quantity, wanted[0], scales, limits, note)
        return curves(datasets["grid"], datasets.get("simulated_grid"), quantity, wanted, scales, limits, note)

    write_data(data_path, datasets, attributes)
    for path in (*write_figure(stem, draw, pictures), data_path):
        click.echo(path)
    journal.discard()
    warn_of_failures(count, failed)
    return 0


def _has_values(dataset: xarray.Dataset, quantity: str, stage: str) -> bool:
    return bool(np.isfinite(dataset[quantity].sel(stage=stage)).any())


def _check_request(
    data: DataModel, chain: Chain, axes: Sequence[Axis], x: str | None, y: str | None, quantity: str,
    stage: str | None,
) -> None:  # fmt: skip
    context = click.get_current_context()
    if quantity not in OBSERVABLES:
        raise click.UsageError(f"--quantity: unknown quantity {quantity!r}; allowed are {', '.join(OBSERVABLES)}")
    if not is_defined(quantity, data):
        raise click.UsageError(
            f"--quantity: {quantity} is not defined on these data; allowed are {', '.join(observables_of(data))}"
        )
    if x is None and data.has_real_labels:
        raise click.UsageError(
            "--x is missing: the picture without it is one of classification errors, and labels are real"
        )
    if stage is not None and stage not in chain.names:
        raise click.UsageError(f"--stage: unknown stage {stage!r}; allowed are {', '.join(chain.names)}")
    if x is None:
        if y is not None:
            raise click.UsageError("--y needs --x")
        for name in ("quantity", "stage"):
            if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name} needs --x: the double descent has fixed panels")
    for axis, flag in zip(axes, ("--x", "--y"), strict=False):
        axis.check(data, chain, flag)
    if len({axis.path for axis in axes}) < len(axes):
        raise click.UsageError("--y must be another parameter than --x")
    if compares(quantity) and chain.names[0] in (stage, chain.names[-1]):
        raise click.UsageError(f"--quantity {quantity} compares a stage with the one before; the first has none")


def _checked_simulation(simulation: tuple[int, int] | None, axes: Sequence[Axis], quantity: str) -> tuple[int, int]:
    if simulation is None:
        return (0, 0) if axes else SIMULATION
    n_inputs, n_runs = simulation
    if n_runs == 0:
        return 0, 0
    if n_inputs < 2:
        raise click.UsageError(f"--simulate wants N >= 2 inputs, got {n_inputs}")
    if len(axes) == 2:
        raise click.UsageError("--simulate draws points on curves; leave out --y")
    if axes and quantity not in measured():
        raise click.UsageError(f"--simulate does not measure {quantity}")
    return n_inputs, n_runs


def _stem(output: Path | None, axes: Sequence[Axis], quantity: str) -> Path:
    if output is not None:
        if not output.name:
            raise click.UsageError(f"--output wants the name of files, got {str(output)!r}")
        return output.with_suffix("") if output.suffix in (*PICTURES, ".svg", ".nc") else output
    if not axes:
        return OUTPUT_FOLDER / "double_descent"
    return OUTPUT_FOLDER / (f"{quantity}_vs_{'_'.join(axis.path for axis in axes)}")


if __name__ == "__main__":
    main(prog_name="python -m numerics.phase_diagram")
