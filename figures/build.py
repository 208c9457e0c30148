"""What all published figures share: what is computed, how it is kept, and the note beside each picture.

A figure is a function that returns a :class:`Plan`.  Every part of its work has a fingerprint (:mod:`figures.stamps`); a part
whose fingerprint is found in the figure's data file is read back, not computed.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import matplotlib
import netCDF4
import numpy as np
import xarray
from matplotlib.figure import Figure
from tqdm import tqdm

from figures.smooth import smoothed
from figures.stamps import disagreement, fingerprint, is_quick
from numerics.cli.command import replacing
from numerics.cli.report import simulated
from numerics.models import Chain, Estimator, GaussianMixture, described, with_parameter
from numerics.optimize import optimize
from numerics.plots.style import journal_style
from numerics.simulation.run import simulate
from numerics.solution.observables import OBSERVABLES
from numerics.solver import ConvergenceWarning, solve
from numerics.sweeps.grid import ERROR_SUFFIX, Grid
from numerics.sweeps.provenance import numbers_version, package_versions
from numerics.sweeps.run import evaluate

FIGURES: dict[str, Published] = {}
"""All figures, by name, in the order they are listed."""


class Work(Protocol):
    """A part of a figure's data, computed by independent tasks."""

    def tasks(self) -> list[Callable[[], object]]: ...

    def join(self, pieces: Sequence) -> xarray.Dataset: ...


@dataclass(frozen=True)
class Effort:
    """Size of the simulations: inputs N, runs for every point (0 for no simulation), seed."""

    n_inputs: int = 500
    n_runs: int = 16
    seed: int = 0

    def limited(self, n_inputs: int, n_runs: int) -> Effort:
        """At most so many inputs, and so many runs; still none if there are none."""
        return replace(self, n_inputs=min(self.n_inputs, n_inputs), n_runs=n_runs if self.n_runs else 0)


@dataclass(frozen=True)
class PrintedValue:
    """A number read off the printed figure, and what we have to compute to compare."""

    where: str
    data: GaussianMixture
    chain: Chain
    observable: str
    printed: float
    tolerance: float

    def compare(self) -> dict[str, object]:
        """Printed and computed value, and whether they agree within the reading tolerance."""
        stage, _, name = self.observable.rpartition(".")
        solution = solve(self.data, self.chain, throw=True)
        computed = float(getattr(solution[self.chain.names.index(stage)], name))
        return {
            "where": self.where, "observable": self.observable, "printed": self.printed, "computed": round(computed, 8),
            "difference": round(computed - self.printed, 8), "reading_tolerance": self.tolerance,
            "agrees": abs(computed - self.printed) <= self.tolerance,
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A figure: what to compute, how to draw it, and what to say about print.

    Attributes
    ----------
    work
        Parts to compute, by name; the dataset of each reaches ``draw`` under that name.
    draw
        Makes the picture from the datasets.
    agreement
        How the curves compare with the printed ones, in words.
    printed
        Numbers read off the printed figure.
    """

    work: Mapping[str, Work]
    draw: Callable[[Mapping[str, xarray.Dataset]], Figure]
    agreement: str
    printed: Sequence[PrintedValue] = ()


@dataclass(frozen=True)
class Published:
    """An entry of the list of figures."""

    name: str
    title: str
    plan: Callable[[Effort], Plan]


def published(name: str, title: str) -> Callable[[Callable[[Effort], Plan]], Callable[[Effort], Plan]]:
    """Put a function into the list of figures."""

    def register(plan: Callable[[Effort], Plan]) -> Callable[[Effort], Plan]:
        FIGURES[name] = Published(name, title, plan)
        return plan

    return register


# Parts of the work.


def _place(data: GaussianMixture, chain: Chain, over: Mapping[str, np.ndarray], index: Sequence[int]):
    for (path, values), position in zip(over.items(), index, strict=True):
        data, chain = with_parameter(data, chain, path, float(values[position]))
    return data, chain


def _tuned(data: GaussianMixture, chain: Chain, tuning: Tuning | None) -> tuple[GaussianMixture, Chain]:
    if tuning is None:
        return data, chain
    best = optimize(data, chain, tuning.over, tuning.objective)
    for path, value in best.parameters.items():
        data, chain = with_parameter(data, chain, path, value)
    return data, chain


def _dataset(
    chain: Chain, over: Mapping[str, np.ndarray], variables: Mapping[str, tuple], attributes: Mapping[str, object]
) -> xarray.Dataset:
    dataset = xarray.Dataset(dict(variables), {"stage": list(chain.names), **over}, dict(attributes))
    for path in over:
        dataset[path].attrs["long_name"] = described(path).long_name
    return dataset


@dataclass(frozen=True)
class Tuning:
    """Parameters to be chosen best at every point: bounds by name, and what is minimised."""

    over: Mapping[str, tuple[float, float]]
    objective: str


@dataclass(frozen=True)
class Tuned:
    """Theory along one parameter, others tuned at every point: observables, optimal values, and where they lie."""

    data: GaussianMixture
    chain: Chain
    over: Mapping[str, np.ndarray]
    tuning: Tuning
    observables: Sequence[str] = ("test_error",)

    def tasks(self) -> list[Callable[[], object]]:
        (values,) = self.over.values()
        return [lambda k=k: self._point(k) for k in range(len(values))]

    def _point(self, k: int):
        best = optimize(*_place(self.data, self.chain, self.over, (k,)), self.tuning.over, self.tuning.objective)
        return [[getattr(stage, name) for stage in best.solution.stages] for name in self.observables], best

    def join(self, pieces: Sequence) -> xarray.Dataset:
        (path,) = self.over
        values = np.array([found for found, _ in pieces], dtype=float)
        variables: dict[str, tuple] = {
            name: (("stage", path), values[:, k].T, {"long_name": OBSERVABLES[name]})
            for k, name in enumerate(self.observables)
        }
        optima = [best for _, best in pieces]
        for name in self.tuning.over:
            variables[f"optimal_{name}"] = (path, [best.parameters[name] for best in optima])
            variables[f"location_{name}"] = (path, [best.location[name] for best in optima])
        variables["limit"] = (path, [best.limit for best in optima])
        variables["converged"] = (path, [best.converged for best in optima])
        return _dataset(self.chain, self.over, variables, {"data": repr(self.data), "chain": repr(self.chain)})


@dataclass(frozen=True)
class Simulation:
    """Finite systems along one or two parameters; all values of the first share the samples of the last one's values."""

    data: GaussianMixture
    chain: Chain
    over: Mapping[str, np.ndarray]
    effort: Effort
    observables: Sequence[str] = ("test_error",)
    tuning: Tuning | None = None

    simulated: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.over.values())

    def tasks(self) -> list[Callable[[], object]]:
        return [lambda index=index: self._point(index) for index in np.ndindex(self.shape)]

    def problem(self, index: Sequence[int]) -> tuple[GaussianMixture, Chain]:
        """What is simulated at one point."""
        return _tuned(*_place(self.data, self.chain, self.over, index), self.tuning)

    def _point(self, index: Sequence[int]) -> np.ndarray:
        data, chain = self.problem(index)
        seed = int(np.random.SeedSequence([self.effort.seed, index[-1]]).generate_state(1)[0])
        runs = simulate(data, chain, self.effort.n_inputs, self.effort.n_runs, seed)
        out = np.full((2, len(self.observables), len(chain)), np.nan)
        for r, name in enumerate(self.observables):
            for t in range(len(chain)):
                found = simulated(runs, t, name)
                if found is not None:
                    out[:, r, t] = found.mean, found.standard_error
        return out

    def join(self, pieces: Sequence) -> xarray.Dataset:
        values = np.array(pieces).reshape(*self.shape, 2, len(self.observables), len(self.chain))
        values = np.moveaxis(values, (-3, -2, -1), (0, 1, 2))
        dims = ("stage", *self.over)
        variables: dict[str, tuple] = {}
        for r, name in enumerate(self.observables):
            variables[name] = (dims, values[0, r], {"long_name": f"{OBSERVABLES[name]}, mean over runs"})
            variables[name + ERROR_SUFFIX] = (dims, values[1, r], {"long_name": "standard error of the mean"})
        size = {"n_inputs": self.effort.n_inputs, "n_runs": self.effort.n_runs, "seed": self.effort.seed}
        return _dataset(self.chain, self.over, variables, size)


@dataclass(frozen=True)
class Prediction:
    """What theory says at the points of a simulation."""

    simulation: Simulation

    quick: ClassVar[bool] = True

    def tasks(self) -> list[Callable[[], object]]:
        return [lambda index=index: self._point(index) for index in np.ndindex(self.simulation.shape)]

    def _point(self, index: Sequence[int]) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # its observables are NaN
            solution = solve(*self.simulation.problem(index))
        return np.array([[getattr(stage, name) for stage in solution.stages] for name in self.simulation.observables])

    def join(self, pieces: Sequence) -> xarray.Dataset:
        part = self.simulation
        values = np.moveaxis(
            np.array(pieces).reshape(*part.shape, len(part.observables), len(part.chain)), (-2, -1), (0, 1)
        )
        dims = ("stage", *part.over)
        variables = {name: (dims, values[r]) for r, name in enumerate(part.observables)}
        return _dataset(part.chain, part.over, variables, {})


def simulations(effort: Effort, **parts: Simulation) -> dict[str, Work]:
    """Simulations, and the predictions for them; none if the effort is none."""
    if not effort.n_runs:
        return {}
    return {name: part for name, part in parts.items()} | {
        f"predicted_{name}": Prediction(part) for name, part in parts.items()
    }


def curves(
    effort: Effort, data: GaussianMixture, chain: Chain, over: Mapping[str, np.ndarray], points: np.ndarray, part: str = "",
    observables: Sequence[str] = ("test_error",), rtol: float | None = None,
) -> dict[str, Work]:  # fmt: skip
    """Theory along the last parameter of ``over`` for all values of the others, and simulations at ``points`` of the last.

    They are called ``curves`` and ``simulated``, or ``part`` and ``simulated_<part>``; no simulations if the effort is none.
    """
    *_, along = over
    measured = Simulation(data, chain, {**over, along: points}, effort, observables)
    name = f"simulated_{part}" if part else "simulated"
    return {
        part or "curves": Grid(data, chain, over, observables, rtol=rtol),
        **simulations(effort, **{name: measured}),
    }


def single(estimator: Estimator, name: str) -> Chain:
    """A chain of one named estimator."""
    return Chain.of(replace(estimator, name=name))


def denser_near(low: float, high: float, count: int, *places: float) -> np.ndarray:
    """``count`` even points from ``low`` to ``high``, more of them at the low end and around some places, and these."""
    near = np.geomspace(2e-3, 0.3, 14)
    start = np.geomspace(low, 1.0, 16) if 0.0 < low < 0.5 else []
    points = [
        np.linspace(low, high, count),
        start,
        places,
        *(place * (1 + sign * near) for place in places for sign in (1, -1)),
    ]
    points = np.unique(np.round(np.concatenate(points), 12))
    return points[(points >= low) & (points <= high)]


# Building a figure.


@dataclass
class Built:
    """What :func:`build` did."""

    name: str
    computed: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    seconds: float = 0.0
    files: tuple[Path, ...] = ()
    note: dict[str, object] = field(default_factory=dict)


@dataclass
class Job:
    """A figure to be made: its plan, the stamps of its parts, what is known of them, and what is to be computed."""

    entry: Published
    output: Path
    effort: Effort
    plan: Plan
    stamps: dict[str, str]
    data: dict[str, xarray.Dataset]
    kept: dict[str, xarray.Dataset]

    @property
    def missing(self) -> dict[str, Work]:
        return {part: work for part, work in self.plan.work.items() if part not in self.data}


def prepare(name: str, output: Path, effort: Effort, *, force: bool = False, sources: Sequence[Path] = ()) -> Job:
    """Read what there is of a figure: in its data file in ``output``, or in the folders ``sources``.

    A part is read back if its stamp is the same, and if theory gives the stored numbers again at its ends.

    Raises
    ------
    KeyError
        If there is no such figure.
    """
    entry = FIGURES[name]
    plan = entry.plan(effort)
    stamps = {part: fingerprint(work) for part, work in plan.work.items()}
    kept = {} if force else _read(output / f"{name}.nc")
    data: dict[str, xarray.Dataset] = {}
    for known in [kept, *(_read(folder / f"{name}.nc") for folder in sources if not force)]:
        for part, work in plan.work.items():
            same = part in known and known[part].attrs.get("fingerprint") == stamps[part]
            if part not in data and same and not (is_quick(work) and disagreement(work, known[part])):
                data[part] = known[part]
    return Job(entry, output, effort, plan, stamps, data, kept)


def build(
    name: str, output: Path, effort: Effort, *, force: bool = False, jobs: int | None = None, sources: Sequence[Path] = ()
) -> Built:  # fmt: skip
    """Make one figure: ``<name>.png``, ``.pdf``, ``.nc`` and ``.json`` in the folder ``output``; see :func:`prepare`.

    Raises
    ------
    KeyError
        If there is no such figure.
    """
    return finish(prepare(name, output, effort, force=force, sources=sources), jobs)


def finish(job: Job, jobs: int | None = None, progress: tqdm | str | None = None) -> Built:
    """Compute what is missing and draw; ``progress`` is a bar that counts tasks, or its name."""
    began = time.perf_counter()
    entry, output, plan, data = job.entry, job.output, job.plan, job.data
    result = Built(entry.name, reused=[part for part in plan.work if part in data])
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{entry.name}.nc"
    for part, work in job.missing.items():
        start = time.perf_counter()
        bar = entry.name if progress is None else progress
        data[part] = evaluate({part: work}, jobs or os.cpu_count() or 1, progress=bar)[part]
        data[part].attrs |= {"fingerprint": job.stamps[part], "seconds": round(time.perf_counter() - start, 3)}
        result.computed.append(part)
        _write(path, {**job.kept, **data})
    more = partial(evaluate, jobs=jobs or os.cpu_count() or 1, progress=False)
    data = {part: smoothed(work, data[part], more) for part, work in plan.work.items()}
    _write(path, data)
    pictures = [output / f"{entry.name}.{suffix}" for suffix in ("png", "pdf")]
    with journal_style():
        picture = plan.draw(data)
        for target in pictures:
            with replacing(target) as temporary:
                stamp = {"CreationDate": None} if target.suffix == ".pdf" else {"Software": None}
                picture.savefig(temporary, metadata=stamp)
    result.seconds = time.perf_counter() - began
    result.note = _note(entry, plan, data, job.effort)
    _write_note(output / f"{entry.name}.json", result.note)
    result.files = (*pictures, path, output / f"{entry.name}.json")
    return result


def restamp(name: str, output: Path, effort: Effort) -> list[str]:
    """Stamp those stored parts of a figure anew that agree with what is computed now at some of their points.

    Returns
    -------
    list of str
        Parts that do not agree, or are not there, with the reason; their stamps are removed, so that they are computed again.
    """
    path, note_path = output / f"{name}.nc", output / f"{name}.json"
    plan, known = FIGURES[name].plan(effort), _read(path)
    if not known:
        return [f"{name}: there are no data"]
    note = json.loads(note_path.read_text(encoding="utf-8"))
    wrong = []
    for part, work in plan.work.items():
        reason = disagreement(work, known[part]) if part in known else "is not there"
        if reason:
            wrong.append(f"{name}: {part} {reason}")
        if part in known:
            known[part].attrs["fingerprint"] = "" if reason else fingerprint(work)
            note["parts"][part]["fingerprint"] = known[part].attrs["fingerprint"]
    note["code"] = _code()
    _write(path, {part: known[part] for part in plan.work if part in known})
    _write_note(note_path, note)
    return wrong


def _write_note(path: Path, note: Mapping[str, object]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _code() -> dict[str, str]:
    return {"theory": numbers_version(False), "simulation": numbers_version(True)}


def _read(path: Path) -> dict[str, xarray.Dataset]:
    """Parts in a data file; none if it is missing or cannot be read."""
    try:
        with netCDF4.Dataset(path) as file:
            names = list(file.groups)
        return {name: xarray.load_dataset(path, group=name) for name in names}
    except (OSError, ValueError):
        return {}


def _write(path: Path, data: Mapping[str, xarray.Dataset]) -> None:
    with replacing(path) as temporary:
        for number, (name, dataset) in enumerate(data.items()):
            dataset.to_netcdf(temporary, mode="a" if number else "w", group=name)


def z_scores(data: Mapping[str, xarray.Dataset]) -> dict[str, dict[str, object]]:
    """For each simulated part: (simulation - theory) / standard error, summarised over its points."""
    result = {}
    for part, measured in data.items():
        if f"predicted_{part}" not in data:
            continue
        predicted = data[f"predicted_{part}"]
        for name in predicted.data_vars:
            if name + ERROR_SUFFIX not in measured:
                continue
            error = measured[name + ERROR_SUFFIX]
            with np.errstate(divide="ignore", invalid="ignore"):
                z = ((measured[name] - predicted[name]) / error).values
            z = z[np.isfinite(z)]
            if z.size:
                difference = np.abs((measured[name] - predicted[name]).values)
                result[f"{part}: {name}"] = {
                    "points": int(z.size), "rms": round(float(np.sqrt(np.mean(z**2))), 2),
                    "mean": round(float(z.mean()), 2), "largest": round(float(np.abs(z).max()), 2),
                    "beyond_3": int(np.sum(np.abs(z) > 3)),
                    "largest_difference": float(f"{np.nanmax(difference):.3g}"),
                }  # fmt: skip
    return result


def _note(entry: Published, plan: Plan, data: Mapping[str, xarray.Dataset], effort: Effort) -> dict[str, object]:
    parts = {}
    for part, work in plan.work.items():
        parts[part] = {
            "kind": type(work).__name__, "seconds": float(data[part].attrs["seconds"]),
            "fingerprint": data[part].attrs["fingerprint"],
        }  # fmt: skip
        if isinstance(work, Grid | Tuned | Simulation):
            parts[part] |= {
                "data": repr(work.data),
                "chain": [repr(stage) for stage in work.chain.stages],
                "axes": {
                    path: [float(values[0]), float(values[-1]), data[part].sizes[path]]
                    for path, values in work.over.items()
                },
            }
        if isinstance(work, Grid):
            parts[part]["points_failed"] = int(np.sum(~data[part].converged.values))
    comparisons = [printed.compare() for printed in plan.printed]
    return {
        "figure": entry.name, "title": entry.title, "agreement_with_print": plan.agreement,
        "printed_values": comparisons,
        "simulation": {"inputs": effort.n_inputs, "runs": effort.n_runs, "seed": effort.seed} if effort.n_runs else None,
        "z_scores": z_scores(data),
        "seconds": round(sum(part["seconds"] for part in parts.values()), 2),
        "parts": parts,
        "versions": {**package_versions(), "matplotlib": matplotlib.__version__, "xarray": xarray.__version__},
        "code": _code(),
    }  # fmt: skip
