"""``python -m numerics.phase_diagram``: the double descent of distillation, or any observable over any parameters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import xarray
from click.core import ParameterSource
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from numerics import figure, style, thresholds
from numerics.commands import (
    MODEL,
    PATIENCE,
    SIMULATION_FLAGS,
    Command,
    blaming,
    build_model,
    jobs_option,
    model_options,
    replacing,
    require_writable,
    simulated,
)
from numerics.models import Chain, Estimator, GaussianMixture, ParameterError, parameter_paths, with_parameter
from numerics.simulation import TEACHER_QUANTITIES, simulate
from numerics.solution import OBSERVABLES
from numerics.solver import ConvergenceWarning
from numerics.sweeps import package_versions, sweep
from theory.losses import Distillation

UNREGULARISED = 1e-5
"""Teacher ridge that stands for none; the other one compared is ``--teacher-ridge``."""

ALPHA_RANGE = (0.05, 6.0)
CURVE_POINTS = 180
MAP_POINTS = (180, 120)
MAP_RIDGES = (1e-5, 10.0)
PANELS = ("test_error", "generalization_gap", "loss_gap")
SIMULATED_ALPHAS = (0.1, 0.2, 0.32, 0.65, 1.0, 1.8, 2.7, 3.9, 5.5)
SIMULATION = (500, 10)
"""Inputs and runs of the default simulation."""

SIMULATED_POINTS = 9
"""Points of a simulation along an axis given by the user, its ends left out."""

BLOCK = 45
"""Points solved one after the other, each started from the one before; an interruption waits for the end of a block."""

SHOWN_FAILURES = 5


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
        parts = numbers.split(":")
        scale = parts.pop() if len(parts) == 4 else "lin"
        try:
            low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
        except (ValueError, IndexError):
            count = 0
        if not equals or len(parts) != 3 or scale not in ("lin", "log") or count < 2:
            raise click.UsageError(f"{flag} wants NAME=LOW:HIGH:COUNT[:log|:lin] with COUNT >= 2, got {text!r}")
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise click.UsageError(f"{flag} wants LOW < HIGH, got {text!r}")
        if scale == "log" and low <= 0:
            raise click.UsageError(f"{flag} wants LOW > 0 on a logarithmic axis, got {text!r}")
        values = np.geomspace(low, high, count) if scale == "log" else np.linspace(low, high, count)
        values[0], values[-1] = low, high
        return cls(path.strip(), values, scale)

    def check(self, data: GaussianMixture, chain: Chain, flag: str) -> None:
        """Raise click.UsageError if the model has no such parameter, or the range is not allowed."""
        if self.path not in parameter_paths(chain):
            allowed = ", ".join(parameter_paths(chain))
            raise click.UsageError(f"{flag}: unknown parameter {self.path!r}; allowed are {allowed}")
        with blaming({}, f"{flag} {self.path}"):
            for value in self.values[[0, -1]]:
                with_parameter(data, chain, self.path, float(value))


@dataclass(frozen=True)
class Grid:
    """Observables wanted on a grid of parameters, one or two of them; the last one is followed by continuation."""

    data: GaussianMixture
    chain: Chain
    over: Mapping[str, np.ndarray]
    observables: Sequence[str]

    def tasks(self) -> list[Callable[[], xarray.Dataset]]:
        """Pieces of the grid, in the order :meth:`join` expects them."""
        *outer, inner = self.over
        pieces = []
        for first in np.split(self.over[outer[0]], len(self.over[outer[0]])) if outer else [None]:
            for block in np.array_split(self.over[inner], -(-len(self.over[inner]) // BLOCK)):
                over = {inner: block} if first is None else {outer[0]: first, inner: block}
                pieces.append(lambda over=over: sweep(self.data, self.chain, over, self.observables, jobs=1))
        return pieces

    def join(self, pieces: Sequence[xarray.Dataset]) -> xarray.Dataset:
        """The dataset of the whole grid."""
        *outer, inner = self.over
        per_line = -(-len(self.over[inner]) // BLOCK)
        lines = [_concat(pieces[k : k + per_line], inner) for k in range(0, len(pieces), per_line)]
        return _concat(lines, outer[0]) if outer else lines[0]


def _concat(datasets: Sequence[xarray.Dataset], dim: str) -> xarray.Dataset:
    return xarray.concat(datasets, dim, data_vars="minimal", join="exact", combine_attrs="override")


@dataclass(frozen=True)
class Experiment:
    """Observables simulated at some values of one or two parameters.

    Every value of the last one has its own seed, shared by all values of the first: curves see the same samples.
    """

    data: GaussianMixture
    chain: Chain
    over: Mapping[str, np.ndarray]
    observables: Sequence[str]
    n_inputs: int
    n_runs: int
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.over.values())

    def tasks(self) -> list[Callable[[], np.ndarray | str]]:
        """One task a point; its result has shape (observables, 2, stages), or says why there is none."""
        return [lambda index=index: self._point(index) for index in np.ndindex(self.shape)]

    def _point(self, index: tuple[int, ...]) -> np.ndarray | str:
        data, chain = self.data, self.chain
        for (path, values), position in zip(self.over.items(), index, strict=True):
            data, chain = with_parameter(data, chain, path, float(values[position]))
        seed = int(np.random.SeedSequence([self.seed, index[-1]]).generate_state(1)[0])
        try:
            runs = simulate(data, chain, self.n_inputs, self.n_runs, seed)
        except ParameterError as error:
            return str(error)
        if not runs.converged:
            return runs.message
        found = [[simulated(runs, k, name) for k in range(len(chain))] for name in self.observables]
        nothing = (np.nan, np.nan)
        rows = [[nothing if e is None else (e.mean, e.standard_error) for e in row] for row in found]
        return np.moveaxis(np.array(rows), 2, 1)

    def join(self, points: Sequence[np.ndarray | str]) -> xarray.Dataset:
        """Means and standard errors; NaN where a point failed."""
        blank = np.full((len(self.observables), 2, len(self.chain)), np.nan)
        values = np.array([blank if isinstance(point, str) else point for point in points])
        values = np.moveaxis(values.reshape(*self.shape, *blank.shape), (-3, -2, -1), (0, 1, 2))
        dims = ("stage", *self.over)
        variables = {}
        for name, (mean, error) in zip(self.observables, values, strict=True):
            variables[name] = (dims, mean, {"long_name": f"{OBSERVABLES[name]}, mean over runs"})
            variables[name + figure.ERROR_SUFFIX] = (dims, error, {"long_name": "standard error of the mean"})
        failures = [point for point in points if isinstance(point, str)]
        attributes = {"n_inputs": self.n_inputs, "n_runs": self.n_runs, "seed": self.seed, "failures": failures}
        return xarray.Dataset(variables, {"stage": list(self.chain.names), **self.over}, attributes)


def evaluate(work: Mapping[str, Grid | Experiment], jobs: int) -> dict[str, xarray.Dataset]:
    """Compute everything on ``jobs`` threads, with a progress bar on standard error if it takes over two seconds."""
    tasks = {name: part.tasks() for name, part in work.items()}
    # BLAS threads of several simulations at once would fight for the cores; filters of warnings are not per thread.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings(), ThreadPoolExecutor(jobs) as executor:
        warnings.simplefilter("ignore", ConvergenceWarning)  # masked, counted and reported at the end
        futures = {name: [executor.submit(task) for task in parts] for name, parts in tasks.items()}
        pending = {future for parts in futures.values() for future in parts}
        try:
            with tqdm(total=len(pending), unit="task", delay=PATIENCE) as bar:
                while pending:
                    done, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    bar.update(len(done))
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: part.join([future.result() for future in futures[name]]) for name, part in work.items()}


def refined_grid(low: float, high: float, count: int, peaks: Mapping[float, tuple[float, float]]) -> np.ndarray:
    """About ``count`` points from ``low`` to ``high``, denser near peaks, which are themselves among the points.

    ``peaks`` maps a position to the share of the points spent there, and to the width, in log(alpha), they spread over.
    """
    inside = {value: how for value, how in peaks.items() if low < value < high}
    rest = 1.0 - sum(share for share, _ in inside.values())
    fine = np.linspace(np.log(low), np.log(high), 20001)
    cumulative = rest * np.linspace(0.0, 1.0, fine.size)
    for value, (share, width) in inside.items():
        arc = np.arctan((fine - np.log(value)) / width)
        cumulative += share * (arc - arc[0]) / (arc[-1] - arc[0])
    points = np.exp(np.interp(np.linspace(0.0, 1.0, count), cumulative, fine))
    points[0], points[-1] = low, high
    for value in inside:
        points[1 + np.argmin(np.abs(np.log(points[1:-1] / value)))] = value
    return np.unique(points)


def thresholds_in_alpha(data: GaussianMixture, chain: Chain) -> dict[str, float]:
    """Where the student interpolates its teacher, and where the samples stop being separable for either of them."""
    values = {}
    if len(chain) > 1:
        student = chain[-1]
        if _interpolates(student):
            values["interpolation"] = student.eta
        values["student_separability"] = thresholds.separability_threshold(data.rho, data.delta, student.eta)
    values["teacher_separability"] = thresholds.separability_threshold(data.rho, data.delta, chain[0].eta)
    return values


def _interpolates(student: Estimator) -> bool:
    """Whether the loss of every sample has a finite minimum to reach; pure label learning has not."""
    parameters = student.loss.parameters
    pure_labels = isinstance(student.loss, Distillation) and parameters["mixing"] == 0 and parameters["smoothing"] == 0
    return not pure_labels


# The two kinds of figure.


def plan_double_descent(
    data: GaussianMixture, chain: Chain, simulation: tuple[int, int], seed: int
) -> tuple[dict[str, Grid | Experiment], xarray.Dataset, dict[str, float]]:
    """What to compute for the main figure; the Bayes bounds; the thresholds."""
    limits = thresholds_in_alpha(data, chain)
    alpha = refined_grid(*ALPHA_RANGE, CURVE_POINTS, _peaks(limits, (0.32, 0.1), (0.12, 0.05)))
    coarse = refined_grid(*ALPHA_RANGE, MAP_POINTS[0], _peaks(limits, (0.3, 0.15), (0.08, 0.1)))
    ridges = np.unique([UNREGULARISED, chain[0].ridge])
    labels = Chain.of(replace(chain[1], loss=chain[0].loss, name="labels"))
    work: dict[str, Grid | Experiment] = {
        "curves": Grid(data, chain, {"teacher.ridge": ridges, "alpha": alpha}, PANELS),
        "labels": Grid(data, labels, {"alpha": alpha}, PANELS),
        "heat_map": Grid(
            data, chain, {"teacher.ridge": np.geomspace(*MAP_RIDGES, MAP_POINTS[1]), "alpha": coarse}, ("test_error",)
        ),
    }
    n_inputs, n_runs = simulation
    if n_runs:
        points = np.unique([*SIMULATED_ALPHAS, round(chain[1].eta, 6)])
        points = points[(points > ALPHA_RANGE[0]) & (points < ALPHA_RANGE[1])]
        how = (PANELS, n_inputs, n_runs, seed)
        work["simulated_curves"] = Experiment(data, chain, {"teacher.ridge": ridges, "alpha": points}, *how)
        work["simulated_labels"] = Experiment(data, labels, {"alpha": points}, *how)
    bounds = xarray.Dataset(
        {
            f"bayes_{name}": ("alpha", thresholds.bayes_error(alpha, data.rho, data.delta, stage.eta))
            for name, stage in zip(chain.names, chain.stages, strict=True)
        },
        {"alpha": alpha},
    )
    return work, bounds, limits


def _peaks(
    limits: Mapping[str, float], at_interpolation: tuple[float, float], at_separability: tuple[float, float]
) -> dict[float, tuple[float, float]]:
    return {value: at_interpolation if name == "interpolation" else at_separability for name, value in limits.items()}


def parameters_note(data: GaussianMixture, chain: Chain, simulation: tuple[int, int]) -> str:
    """The model's parameters and what the lines and points are, in mathtext."""
    number = style.plain_number
    student = chain[1]
    note = (
        rf"$\rho={number(data.rho)}$, $\Delta={number(data.delta)}$, $\eta={number(student.eta)}$, "
        rf"student's ridge ${number(student.ridge)}$"
    )
    symbols = {"mixing": r"\chi", "temperature": "T", "smoothing": r"\varepsilon"}
    for name, value in student.loss.parameters.items():
        if not (name == "smoothing" and value == 0):
            note += rf", ${symbols.get(name, name)}={number(value)}$"
    if simulation[1]:
        note += rf";  points: simulation, $N={simulation[0]}$, {simulation[1]} runs"
    return note + (
        "\n"
        r"dotted verticals: interpolation $\alpha_I=\eta$, linear separability "
        r"$\alpha_S$ (student), $\tilde{\alpha}_S$ (teacher)"
    )


def plan_axes(
    data: GaussianMixture, chain: Chain, axes: Sequence[Axis], quantity: str, simulation: tuple[int, int], seed: int
) -> tuple[dict[str, Grid | Experiment], dict[str, float]]:
    """What to compute for given axes, and the thresholds to draw."""
    x, *rest = axes
    over = {axis.path: axis.values for axis in (*rest, x)}
    work: dict[str, Grid | Experiment] = {"grid": Grid(data, chain, over, (quantity,))}
    if simulation[1]:
        ends = np.linspace(0, len(x.values) - 1, SIMULATED_POINTS + 2)
        places = np.unique(ends[1:-1].round().astype(int))
        work["simulated_grid"] = Experiment(data, chain, {x.path: x.values[places]}, (quantity,), *simulation, seed)
    moving = {axis.path.rpartition(".")[2] for axis in rest} & {"rho", "delta", "eta"}
    limits = thresholds_in_alpha(data, chain) if x.path == "alpha" and not moving else {}
    return work, limits


# Results.


def failures(datasets: Mapping[str, xarray.Dataset]) -> tuple[list[str], bool]:
    """Points without a result, in words, and whether there is no point with one."""
    lines = []
    solved = False
    for name, dataset in datasets.items():
        if "converged" in dataset:
            converged = dataset.converged
            solved |= bool(converged.any())
            for index in np.argwhere(~converged.values):
                place = zip(converged.dims, index, strict=True)
                lines.append(f"{name}: " + ", ".join(f"{path}={dataset[path].values[k]:.6g}" for path, k in place))
        lines += [f"{name}: {reason}" for reason in dataset.attrs.get("failures", [])]
    return lines, not solved


def write_data(path: Path, datasets: Mapping[str, xarray.Dataset], attributes: Mapping[str, object]) -> None:
    """One NetCDF file with a group for each dataset; the attributes of the model are the file's."""
    with replacing(path) as temporary:
        xarray.Dataset(attrs=dict(attributes)).to_netcdf(temporary, mode="w", engine="netcdf4")
        for name, dataset in datasets.items():
            dataset.to_netcdf(temporary, mode="a", group=name, engine="netcdf4")


def write_figure(stem: Path, draw: Callable[[], figure.Figure]) -> list[Path]:
    """Draw, and write PNG and PDF."""
    paths = []
    with style.journal_style():
        picture = draw()
        for suffix in (".png", ".pdf"):
            path = stem.with_name(stem.name + suffix)
            with replacing(path) as temporary:
                figure.save(picture, temporary)
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
    default="test_error",
    show_default=True,
    help=f"What to draw with --x: {', '.join(OBSERVABLES)}.",
)
@click.option("--stage", help="Stage to draw with --x: teacher or student.  [default: all; the last in a heat map]")
@click.option(
    "--simulate", "simulation", nargs=2, type=click.IntRange(min=0), metavar="N RUNS",
    help=f"Inputs and runs of simulated points, 0 0 for none.  [default: {SIMULATION[0]} {SIMULATION[1]}, none with "
    "--x]",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the simulation.")
@click.option("--output", metavar="STEM", type=click.Path(path_type=Path), help="Files to write, without suffix.  "
              "[default: figures/double_descent]")  # fmt: skip
@jobs_option
def main(
    x: str | None, y: str | None, quantity: str, stage: str | None, simulation: tuple[int, int] | None, seed: int,
    output: Path | None, jobs: int, **flags,
) -> int:  # fmt: skip
    """``python -m numerics.phase_diagram``."""
    data, chain = build_model(flags)
    axes = [Axis.parse(text, flag) for text, flag in ((x, "--x"), (y, "--y")) if text is not None]
    _check_request(data, chain, axes, x, y, quantity, stage)
    simulation = _checked_simulation(simulation, axes, quantity)
    stem = _stem(output, axes, quantity)
    for suffix in (".png", ".pdf", ".nc"):
        require_writable(stem.with_name(stem.name + suffix))

    attributes = {
        "title": "Theory of knowledge distillation on a Gaussian mixture",
        "parameters": json.dumps({name: value for name, value in flags.items()}),
    }
    with blaming(SIMULATION_FLAGS, "--simulate", ParameterError):
        if axes:
            work, limits = plan_axes(data, chain, axes, quantity, simulation, seed)
            datasets = evaluate(work, jobs)
        else:
            work, bounds, limits = plan_double_descent(data, chain, simulation, seed)
            datasets = {**evaluate(work, jobs), "bounds": bounds}
    attributes |= {f"alpha_{name}": value for name, value in limits.items()}
    attributes |= {f"version_{name}": text for name, text in package_versions().items()}

    failed, nothing = failures(datasets)
    if nothing:
        click.echo(f"error: none of the points converged; nothing was written ({failed[0]})", err=True)
        return 1

    def draw() -> figure.Figure:
        if not axes:
            return figure.double_descent(datasets, limits, parameters_note(data, chain, simulation))
        scales = {axis.path: axis.scale for axis in axes}
        if len(axes) == 2:
            return figure.heat_map(datasets["grid"], quantity, stage or chain.names[-1], scales, limits)
        wanted = [stage] if stage else [name for name in chain.names if _has_values(datasets["grid"], quantity, name)]
        return figure.curves(datasets["grid"], datasets.get("simulated_grid"), quantity, wanted, scales, limits)

    data_path = stem.with_name(stem.name + ".nc")
    write_data(data_path, datasets, attributes)
    for path in (*write_figure(stem, draw), data_path):
        click.echo(path)
    if failed:
        shown = "; ".join(failed[:SHOWN_FAILURES]) + ("; ..." if len(failed) > SHOWN_FAILURES else "")
        click.echo(f"warning: {len(failed)} points without a result are left out: {shown}", err=True)
    return 0


def _has_values(dataset: xarray.Dataset, quantity: str, stage: str) -> bool:
    return bool(np.isfinite(dataset[quantity].sel(stage=stage)).any())


def _check_request(
    data: GaussianMixture, chain: Chain, axes: Sequence[Axis], x: str | None, y: str | None, quantity: str,
    stage: str | None,
) -> None:  # fmt: skip
    context = click.get_current_context()
    if quantity not in OBSERVABLES:
        raise click.UsageError(f"--quantity: unknown quantity {quantity!r}; allowed are {', '.join(OBSERVABLES)}")
    if stage is not None and stage not in chain.names:
        raise click.UsageError(f"--stage: unknown stage {stage!r}; allowed are {', '.join(chain.names)}")
    if x is None:
        if y is not None:
            raise click.UsageError("--y needs --x")
        for name in ("quantity", "stage", "single"):
            if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name} needs --x: the double descent has fixed panels")
    for axis, flag in zip(axes, ("--x", "--y"), strict=False):
        axis.check(data, chain, flag)
    if len({axis.path for axis in axes}) < len(axes):
        raise click.UsageError("--y must be another parameter than --x")
    if quantity in TEACHER_QUANTITIES and chain.names[0] in (stage, chain.names[-1]):
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
    if axes and quantity in ("response", "calibration_error", "bayes_error"):
        raise click.UsageError(f"--simulate does not measure {quantity}")
    return n_inputs, n_runs


def _stem(output: Path | None, axes: Sequence[Axis], quantity: str) -> Path:
    if output is not None:
        return output.with_suffix("") if output.suffix in (".png", ".pdf", ".nc") else output
    if not axes:
        return Path("figures", "double_descent")
    return Path("figures", f"{quantity}_vs_{'_'.join(axis.path for axis in axes)}")


if __name__ == "__main__":
    main(prog_name="python -m numerics.phase_diagram")
