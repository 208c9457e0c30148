"""Grids of parameters, from theory or from simulations, cut into tasks, and the datasets that their results make.

A task is a few neighbouring points; what it computes depends on nothing but itself, so that every executor gives the same numbers
and finished tasks can be kept (see ``executors.py``, ``journal.py``).  ``sweeps.py`` runs them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from numerics.codegen import observables
from numerics.journal import Piece
from numerics.models import Chain, GaussianMixture, ParameterError, check_fit, parameter_paths, with_parameter
from numerics.problem import write_problem
from numerics.provenance import code_version, package_versions
from numerics.scalar.compiled import PointArrays, compile_chain
from numerics.scalar.limits import require_plain
from numerics.settings import DEFAULT, Settings
from numerics.simulation.run import Simulation, simulate
from numerics.solution.solution import OBSERVABLES, Solution
from numerics.solver import (
    LONGEST_CHAIN,
    has_limit,
    limit_solution,
    read_solution,
    settings_for,
    solve,
    spectral_solution,
)
from numerics.square_chain.spectral import is_spectral

if TYPE_CHECKING:
    import xarray

POINTS_PER_TASK = {1: 50, 2: 50, 3: 20, 4: 5}
"""Points that a task solves, each continued from those before it, by the length of the chain; one for longer chains."""

ERROR_SUFFIX = "_standard_error"
"""A simulated dataset holds the mean over runs under the observable's name, and its standard error with this suffix."""

SHOWN_FAILURES = 100
"""Points without a result that the attributes of a dataset list; how many there are is always said."""

MOST_VALUES = 10**7
"""Values of an axis that are made without being given."""

LONG_NAMES = {
    "alpha": "samples per input, alpha = M/N",
    "rho": "probability of the positive class",
    "delta": "noise variance Delta",
    "ridge": "ridge",
    "eta": "fraction of trainable weights",
    "mixing": "mixing chi",
    "temperature": "temperature T",
    "smoothing": "label smoothing",
    "gain": "gain",
    "bias": "bias",
    "label_noise": "probability of a flipped training label",
    "mask_overlap": "overlap of masks",
    "magnetization": "magnetization m",
    "norm_squared": "squared norm Q",
}
_UNITS = {"units": "1"}  # everything here is a pure number
_QUALITY = {
    "converged": "converged",
    "residual": "undamped, scaled residual",
    "quadrature_error": "quadrature error estimate",
}
SEEDING = 1
"""Raised when points of a simulated grid get other seeds than before."""

_BLOCK = 2**17  # numbers of a variable that are written at a time

Over = Mapping[str, np.ndarray]


# Axes.


def spaced(text: str) -> tuple[np.ndarray, str]:
    """Values and spacing (``"lin"`` or ``"log"``) of an axis written as ``LOW:HIGH:COUNT[:log|:lin]``.

    Raises
    ------
    ParameterError
        If it is written otherwise, has no two values, or has a lower end <= 0 on a logarithmic axis.

    Examples
    --------
    >>> spaced("0.1:10:3:log")
    (array([ 0.1,  1. , 10. ]), 'log')
    """
    parts = text.split(":")
    scale = parts.pop() if len(parts) == 4 else "lin"
    try:
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
    except (ValueError, IndexError):
        count = 0
    if len(parts) != 3 or scale not in ("lin", "log") or count < 2:
        raise ParameterError(f"wants LOW:HIGH:COUNT[:log|:lin] with COUNT >= 2, got {text!r}")
    if count > MOST_VALUES:
        raise ParameterError(f"wants at most {MOST_VALUES:.0e} values on an axis, got {text!r}")
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ParameterError(f"wants LOW < HIGH, got {text!r}")
    if scale == "log" and low <= 0:
        raise ParameterError(f"wants LOW > 0 on a logarithmic axis, got {text!r}")
    values = np.geomspace(low, high, count) if scale == "log" else np.linspace(low, high, count)
    values[0], values[-1] = low, high
    return values, scale


def axis_values(path: str, values: ArrayLike | str) -> np.ndarray:
    if isinstance(values, str):
        try:
            return spaced(values)[0]
        except ParameterError as error:
            raise ParameterError(f"over[{path!r}] {error}") from None
    try:
        array = np.atleast_1d(np.asarray(values, dtype=float))
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 1 or array.size == 0 or not np.all(np.isfinite(array)):
        raise ParameterError(f"over[{path!r}] must be a non-empty list of finite numbers, or LOW:HIGH:COUNT[:log|:lin]")
    if np.unique(array).size != array.size:
        raise ParameterError(f"over[{path!r}] must not repeat a value")
    return array


# Tasks.


def _algebraic(arrays: PointArrays) -> dict[str, Callable[[], np.ndarray]]:
    """Observables that are formulas of the order parameters, for all points at once; each of shape (stages, n)."""
    _, rho, delta = arrays.data.T
    stages = range(arrays.x.shape[1])
    cholesky, response = arrays.overlaps()
    m, b = arrays.x[:, :, 0].T, arrays.x[:, :, 1].T
    q = np.array([np.sum(cholesky[:, t] ** 2, axis=1) for t in stages])
    return {
        "magnetization": lambda: m,
        "bias": lambda: b,
        "norm_squared": lambda: q,
        "norm": lambda: np.sqrt(q),
        "response": lambda: np.array([response[:, t, t] for t in stages]),
        "cosine": lambda: _over_norm(m, q),
        "test_error": lambda: _test_error(m, b, q, delta, rho),
    }


def _over_norm(values: np.ndarray, q: np.ndarray) -> np.ndarray:
    """``values / sqrt(q)``, NaN where a stage has no weights."""
    return np.divide(values, np.sqrt(q), out=np.full_like(values, np.nan), where=q > 0.0)


def _test_error(m: np.ndarray, b: np.ndarray, q: np.ndarray, delta: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """P(s h < 0) on a fresh sample; a stage without weights decides by its bias, and with none it does not."""
    by_bias = np.where(b > 0.0, 1.0 - rho, np.where(b < 0.0, rho, np.nan))
    return np.where(q > 0.0, observables.test_error()(m, b, np.where(q > 0.0, q, 1.0), delta, rho), by_bias)


def problem_at(
    data: GaussianMixture, chain: Chain, paths: Sequence[str], values: Sequence[float]
) -> tuple[GaussianMixture, Chain]:
    """Data and chain with these parameters, checked to fit together; ParameterError if they do not."""
    pairs = list(zip(paths, values, strict=True))
    found = data, chain
    for order in (pairs, pairs[::-1]):  # a parameter may be allowed only after another one has been set
        try:
            found = data, chain
            for path, value in order:
                found = with_parameter(*found, path, float(value))
            break
        except ParameterError:
            if order is not pairs:
                raise
    check_fit(*found)
    return found


@dataclass(frozen=True)
class _Points:
    """Some neighbouring points of a grid, without the rest of it.

    Attributes
    ----------
    paths : tuple of str
        Names of the parameters.
    values : array, shape (n, parameters)
        Their values at each point.
    """

    data: GaussianMixture
    chain: Chain
    paths: tuple[str, ...]
    values: np.ndarray
    observables: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.values)

    def at(self, i: int) -> tuple[GaussianMixture, Chain]:
        """Data and chain of point ``i``; ParameterError if there is no such problem."""
        return problem_at(self.data, self.chain, self.paths, self.values[i])

    def allowed(self, first: int, last: int) -> tuple[dict[int, tuple[GaussianMixture, Chain]], dict[int, str]]:
        """Problems of the points first <= i < last by position, and why there is none at the others."""
        points, refused = {}, {}
        for i in range(first, last):
            try:
                points[i - first] = self.at(i)
            except ParameterError as reason:
                refused[i - first] = str(reason)
        return points, refused


@dataclass(frozen=True)
class _Solve(_Points):
    """Theory at some points: rows are observables by stage, then converged, residual, quadrature error.

    Points that differ in the last parameter alone are continued from one another.  The residual of a point that has no limit
    ridge -> 0 is NaN.
    """

    settings: Settings

    def __call__(self) -> Piece:
        starts = np.flatnonzero(np.any(np.diff(self.values[:, :-1], axis=0) != 0.0, axis=1)) + 1
        ends = [0, *starts.tolist(), self.size]
        pieces = [self._line(first, last) for first, last in pairwise(ends)]
        notes = {begin + k: note for begin, piece in zip(ends, pieces, strict=False) for k, note in piece.notes.items()}
        return Piece(np.concatenate([piece.values for piece in pieces], axis=1), notes)

    def _line(self, first: int, last: int) -> Piece:
        allowed, refused = self.allowed(first, last)
        points = list(allowed.values())
        if not points:
            return self._blank(last - first, refused)
        piece = self._solved(points, self.values[first:last, -1][list(allowed)])
        if not refused:
            return piece
        whole = self._blank(last - first, refused)
        whole.values[:, list(allowed)] = piece.values
        whole.notes.update({list(allowed)[k]: note for k, note in piece.notes.items()})
        return whole

    def _blank(self, n: int, notes: dict[int, str]) -> Piece:
        """No results at n points."""
        values = np.full((len(self.observables) * len(self.chain) + len(_QUALITY), n), np.nan)
        values[-3], values[-1] = 0.0, np.inf
        return Piece(values, dict(notes))

    def _solved(self, points: Sequence[tuple[GaussianMixture, Chain]], along: np.ndarray) -> Piece:
        """Points that differ in the last parameter, whose values are ``along``."""
        if any(has_limit(chain) for _, chain in points):
            return self._one_by_one(points, self._limit)
        if len(self.chain) > LONGEST_CHAIN or any(is_spectral(*point) for point in points):
            return self._one_by_one(points, lambda data, chain: solve(data, chain, settings=self.settings))
        settings = self.settings
        compiled = compile_chain(points[0][1])
        position = np.log(along) if along.min() > 0 else along
        arrays = PointArrays(points)
        arrays.solve(compiled, settings, position)
        self._from_behind(arrays, points, position)
        converged = arrays.converged(settings)
        algebraic = _algebraic(arrays)
        values = np.full((len(self.observables), len(self.chain), len(points)), np.nan)
        notes, rescued = {}, {}
        rest = [k for k, name in enumerate(self.observables) if name not in algebraic]
        for k, name in enumerate(self.observables):
            if name in algebraic:
                values[k] = np.where(converged, algebraic[name](), np.nan)
        for i in range(len(points)):
            if converged[i] and not rest:
                continue
            solution = read_solution(arrays, i, *points[i], settings)
            if not converged[i]:
                exact = spectral_solution(*points[i], settings)
                if exact is None or not exact.converged:
                    notes[i] = solution.message
                    continue
                rescued[i] = solution = exact
            for k in rest if converged[i] else range(len(self.observables)):
                values[k, :, i] = [getattr(stage, self.observables[k]) for stage in solution.stages]
        residual = np.where(np.isfinite(arrays.stats[:, :, 2]), arrays.stats[:, :, 2], np.inf).max(axis=1)
        quality = np.array([converged, residual, arrays.summary[:, 2]], dtype=float)
        for i, solution in rescued.items():
            quality[:, i] = True, solution.residual, solution.quadrature_error
        return Piece(np.concatenate([values.reshape(-1, len(points)), quality]), notes)

    def _from_behind(self, arrays: PointArrays, points: Sequence, position: np.ndarray) -> None:
        """Try points that were not reached from before once more, from the next one behind them that was."""
        converged = arrays.converged(self.settings)
        i = len(points) - 2
        while i >= 0:
            if converged[i] or not converged[i + 1]:
                i -= 1
                continue
            first = i
            while first > 0 and not converged[first - 1]:
                first -= 1
            back = np.arange(i + 1, first - 1, -1)
            again = PointArrays([points[k] for k in back])
            again.x[0], again.started[0] = arrays.x[i + 1], 1
            again.solve(compile_chain(points[0][1]), self.settings, position[back])
            better = again.converged(self.settings)
            better[0] = False
            for name in ("x", "conjugates", "updates", "stats", "summary"):
                getattr(arrays, name)[back[better]] = getattr(again, name)[better]
            i = first - 1

    def _limit(self, data: GaussianMixture, chain: Chain) -> Solution:
        """Where some ridges are 0."""
        require_plain(data, chain)
        return limit_solution(data, chain, self.settings)

    def _one_by_one(
        self, points: Sequence[tuple[GaussianMixture, Chain]], solver: Callable[[GaussianMixture, Chain], Solution]
    ) -> Piece:
        """Points that do not gain from their neighbours."""
        values = np.full((len(self.observables), len(self.chain), len(points)), np.nan)
        quality = np.array([np.zeros(len(points)), np.full(len(points), np.nan), np.full(len(points), np.inf)])
        notes = {}
        for i, (data, chain) in enumerate(points):
            try:
                solution = solver(data, chain)
            except ParameterError as reason:
                notes[i] = str(reason)
                continue
            quality[:, i] = solution.converged, solution.residual, solution.quadrature_error
            if not solution.converged:
                notes[i] = solution.message
                continue
            for k, name in enumerate(self.observables):
                values[k, :, i] = [getattr(stage, name) for stage in solution.stages]
        return Piece(np.concatenate([values.reshape(-1, len(points)), quality]), notes)


@dataclass(frozen=True)
class _Simulate(_Points):
    """Simulation of one point: rows are means, then standard errors, of observables by stage."""

    simulation: Simulation

    def __call__(self) -> Piece:
        how, shape = self.simulation, (2, len(self.observables), len(self.chain))
        values = np.full((*shape, self.size), np.nan)
        notes = {}
        for i in range(self.size):
            try:
                runs = simulate(*self.at(i), how.n_inputs, how.n_runs, how.seed)
            except ParameterError as error:
                notes[i] = str(error)
                continue
            if not runs.converged:
                notes[i] = runs.message
                continue
            for k, name in enumerate(self.observables):
                for t, stage in enumerate(runs):
                    found = getattr(stage, name)
                    values[:, k, t, i] = found.mean, found.standard_error
        return Piece(values.reshape(-1, self.size), notes)


# Grids.


class _Tasks(Sequence):
    """Tasks of a grid, made when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], _Points]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> _Points:
        if not 0 <= k < self._count:
            raise IndexError(k)
        return self._make(k)


@dataclass(frozen=True)
class _AnyGrid:
    """What grids of theory and of simulations share.  Subclasses say what a task is and what its rows are.

    Points are numbered along the axes, the last one fastest and in the order of its values; a task is a range of numbers.
    """

    data: GaussianMixture
    chain: Chain
    over: Over
    observables: Sequence[str]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.over.values())

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    @cached_property
    def _order(self) -> np.ndarray:
        """Places along the last axis in the order in which they are computed."""
        return np.argsort(list(self.over.values())[-1])

    def _places(self, first: int, last: int) -> np.ndarray:
        """Positions on all axes of the points with numbers first <= k < last, shape (n, axes)."""
        places = np.stack(np.unravel_index(np.arange(first, last), self.shape), axis=1)
        places[:, -1] = self._order[places[:, -1]]
        return places

    def _values(self, places: np.ndarray) -> np.ndarray:
        return np.stack([values[k] for values, k in zip(self.over.values(), places.T, strict=True)], axis=1)

    @property
    def per_task(self) -> int:
        """Points of a task."""
        raise NotImplementedError

    def task(self, first: int, last: int) -> _Points:
        """The task of points first <= k < last."""
        raise NotImplementedError

    def rows(self) -> dict[str, tuple[bool, str]]:
        """Variables in the order of a piece's rows: whether there is one row for each stage, and the long name."""
        raise NotImplementedError

    def attributes(self) -> dict[str, object]:
        """What is needed to run it again."""
        return {
            "problem": write_problem(self.data, self.chain), "data": repr(self.data), "chain": repr(self.chain),
            **{f"version_{name}": number for name, number in package_versions().items()},
        }  # fmt: skip

    def description(self) -> dict[str, object]:
        """All that the numbers depend on, short enough to be kept with them."""
        over = {
            path: [len(v), float(v[0]), float(v[-1]), hashlib.sha256(v.tobytes()).hexdigest()[:16]]
            for path, v in self.over.items()
        }
        return {
            "kind": type(self).__name__, "data": repr(self.data), "chain": [repr(stage) for stage in self.chain.stages],
            "over": over, "axes": list(over), "observables": list(self.observables), "versions": package_versions(),
        }  # fmt: skip

    def tasks(self) -> _Tasks:
        """Pieces of the grid, in the order :meth:`join` expects them."""
        step = self.per_task
        return _Tasks(-(-self.size // step), lambda k: self.task(k * step, min((k + 1) * step, self.size)))

    @property
    def height(self) -> int:
        """Rows of a piece."""
        return sum(len(self.chain) if by_stage else 1 for by_stage, _ in self.rows().values())

    def lines(self, pieces: Iterable[Piece]) -> Iterator[tuple[int, np.ndarray]]:
        """Results line by line along the last axis, in its given order: number of the line, array (rows, n)."""
        length = self.shape[-1]
        line, filled, number = np.empty((self.height, length)), 0, 0
        for piece in pieces:
            used = 0
            while used < piece.values.shape[1]:
                here = min(length - filled, piece.values.shape[1] - used)
                line[:, self._order[filled : filled + here]] = piece.values[:, used : used + here]
                filled, used = filled + here, used + here
                if filled == length:
                    yield number, line
                    filled, number = 0, number + 1

    def _blocks(self, pieces: Iterable[Piece]) -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
        """Lines that follow one another along the last axis but one: where they go, and their results, (rows, lines, n)."""
        *outer, length = self.shape
        if not outer:
            for _, line in self.lines(pieces):
                yield (slice(None),), line
            return
        most = max(1, _BLOCK // length)
        first, held = 0, []
        for number, line in self.lines(pieces):
            held.append(line.copy())
            end = number + 1
            if len(held) == most or end % outer[-1] == 0:
                *above, begin = (int(k) for k in np.unravel_index(first, outer))
                yield (*above, slice(begin, begin + len(held))), np.stack(held, axis=1)
                first, held = end, []

    def failures(self, pieces: Iterable[Piece]) -> tuple[int, list[str]]:
        """How many points have a note, and the first of them in words."""
        step, count, shown = self.per_task, 0, []
        for number, piece in enumerate(pieces):
            for k, note in sorted(piece.notes.items()):
                count += 1
                if len(shown) < SHOWN_FAILURES:
                    point = self._values(self._places(number * step + k, number * step + k + 1))[0]
                    where = ", ".join(f"{path}={value:.6g}" for path, value in zip(self.over, point, strict=True))
                    shown.append(f"{where}: {note}")
        return count, shown

    def variables(self) -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
        """Dimensions and attributes of all variables, axes included."""
        names = {path: self._axis_attributes(path) for path in self.over}
        found = {path: ((path,), names[path]) for path in self.over}
        for name, (by_stage, long_name) in self.rows().items():
            dims = ("stage", *self.over) if by_stage else tuple(self.over)
            found[name] = dims, {"long_name": long_name, **({} if name == "converged" else _UNITS)}
        return found

    def _axis_attributes(self, path: str) -> dict[str, str]:
        known = path in parameter_paths(self.chain, self.data)
        return {"long_name": LONG_NAMES.get(path.rpartition(".")[2], path) if known else path, **_UNITS}

    def join(self, pieces: Iterable[Piece]) -> xarray.Dataset:
        """The dataset of the whole grid, in memory."""
        import xarray  # here: it takes as long to import as all the rest

        pieces = list(pieces)
        values = np.empty((self.height, self.size // self.shape[-1], self.shape[-1]))
        for number, line in self.lines(pieces):
            values[:, number] = line
        values = values.reshape(self.height, *self.shape)
        variables, row = {}, 0
        described = self.variables()
        for name, (by_stage, _) in self.rows().items():
            count = len(self.chain) if by_stage else 1
            found = values[row : row + count] if by_stage else values[row]
            row += count
            dims, attributes = described[name]
            variables[name] = (dims, found.astype(bool) if name == "converged" else found, attributes)
        coords = {"stage": list(self.chain.names), **self.over}
        dataset = xarray.Dataset(variables, coords, {**self.attributes(), **self._failure_attributes(pieces)})
        for path in self.over:
            dataset[path].attrs.update(described[path][1])
        return dataset

    def _failure_attributes(self, pieces: Iterable[Piece]) -> dict[str, object]:
        count, shown = self.failures(pieces)
        return {"failed_points": count, "failures": "\n".join(shown)}

    def write(self, path: Path, pieces: Callable[[], Iterable[Piece]], attributes: Mapping[str, object]) -> None:
        """Write the dataset to a NetCDF file, line by line: memory does not grow with the grid."""
        import netCDF4
        from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

        # Arrays of datasets that are open elsewhere are read under this lock.
        with NETCDF4_PYTHON_LOCK, netCDF4.Dataset(path, "w") as file:
            file.set_fill_off()
            file.createDimension("stage", len(self.chain))
            stage = file.createVariable("stage", str, ("stage",))
            for k, name in enumerate(self.chain.names):
                stage[k] = name
            for axis, values in self.over.items():
                file.createDimension(axis, len(values))
            targets = {}
            for name, (dims, described) in self.variables().items():
                flag = name == "converged"
                fill = False if flag or name in self.over else np.nan
                variable = file.createVariable(name, "i1" if flag else "f8", dims, fill_value=fill)
                variable.setncatts({**described, **({"dtype": "bool"} if flag else {})})
                if name in self.over:
                    variable[:] = self.over[name]
                else:
                    targets[name] = variable
            for place, block in self._blocks(pieces()):
                row = 0
                for name, (by_stage, _) in self.rows().items():
                    for t in range(len(self.chain) if by_stage else 1):
                        targets[name][(*((t,) if by_stage else ()), *place)] = block[row]
                        row += 1
            file.setncatts({**self.attributes(), **self._failure_attributes(pieces()), **attributes})


@dataclass(frozen=True)
class Grid(_AnyGrid):
    """Theory on a grid of parameters; the last one is followed by continuation.

    Attributes
    ----------
    over : mapping of parameter name to array
        Axes; names as in :func:`numerics.models.parameter_paths`.
    observables : sequence of str
        Keys of :data:`numerics.OBSERVABLES`.
    """

    settings: Settings = DEFAULT
    rtol: float | None = None

    @cached_property
    def accuracy(self) -> Settings:
        """Settings that points are solved with."""
        return settings_for(self.chain, self.settings, self.rtol)

    @property
    def per_task(self) -> int:
        ridges_vanish = has_limit(self.chain) or any(
            path.endswith("ridge") and np.any(values == 0) for path, values in self.over.items()
        )
        return 1 if ridges_vanish else POINTS_PER_TASK.get(len(self.chain), 1)

    def task(self, first: int, last: int) -> _Solve:
        return _Solve(
            self.data, self.chain, tuple(self.over), self._values(self._places(first, last)), tuple(self.observables),
            self.accuracy,
        )  # fmt: skip

    def rows(self) -> dict[str, tuple[bool, str]]:
        observables = {name: (True, OBSERVABLES[name]) for name in self.observables}
        return observables | {name: (False, text) for name, text in _QUALITY.items()}

    def attributes(self) -> dict[str, object]:
        return super().attributes() | {"settings": repr(self.accuracy)}

    def description(self) -> dict[str, object]:
        return super().description() | {
            "settings": repr(self.accuracy), "code": code_version(False),
        }  # fmt: skip


@dataclass(frozen=True)
class Experiment(_AnyGrid):
    """Simulations on a grid of parameters.

    Every value of the last parameter has its own seed, shared by all values of the others: curves see the same samples.
    Where a simulation is not possible, or a fit did not converge, there is NaN and a note why.
    """

    simulation: Simulation = field(default_factory=Simulation)

    @property
    def per_task(self) -> int:
        return 1

    def task(self, first: int, last: int) -> _Simulate:
        places = self._places(first, last)
        seed = int(np.random.SeedSequence([self.simulation.seed, int(places[0, -1])]).generate_state(1)[0])
        how = Simulation(self.simulation.n_inputs, self.simulation.n_runs, seed)
        return _Simulate(
            self.data, self.chain, tuple(self.over), self._values(places), tuple(self.observables), how
        )  # fmt: skip

    def rows(self) -> dict[str, tuple[bool, str]]:
        means = {name: (True, f"{OBSERVABLES[name]}, mean over runs") for name in self.observables}
        errors = {
            name + ERROR_SUFFIX: (True, f"{OBSERVABLES[name]}, standard error of the mean") for name in self.observables
        }
        return means | errors

    def attributes(self) -> dict[str, object]:
        how = self.simulation
        seed = how.seed if how.seed < 2**63 else str(how.seed)  # files have no larger integers
        return super().attributes() | {"n_inputs": how.n_inputs, "n_runs": how.n_runs, "seed": seed}

    def description(self) -> dict[str, object]:
        return super().description() | {
            "simulation": repr(self.simulation), "seeding": SEEDING, "code": code_version(True),
        }  # fmt: skip
