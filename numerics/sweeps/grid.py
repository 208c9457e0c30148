"""Grids of parameters, from theory or from simulations, cut into tasks, and the datasets that their results make.  ``run.py`` runs
them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from numerics.models import Chain, DataModel, described, in_equations, parameter_paths
from numerics.problem import write_problem
from numerics.settings import DEFAULT, Settings
from numerics.simulation.run import Simulation
from numerics.solution.observables import OBSERVABLES
from numerics.solution.observables.registry import long_name
from numerics.solver import settings_for
from numerics.sweeps.axes import Over
from numerics.sweeps.journal import Piece
from numerics.sweeps.provenance import code_version, package_versions
from numerics.sweeps.tasks import QUALITY, Points, Simulate, Solve

if TYPE_CHECKING:
    import xarray


POINTS_PER_TASK = {1: 50, 2: 50, 3: 20, 4: 5}
"""Points that are continued, each from those before it, by the length of the chain; longer chains are solved one by one."""

RUNS_PER_TASK = {1: 4, 2: 4}
"""Such runs that a task of a large grid solves, one for longer chains: to set up a task takes as long as to solve some points."""

LEAST_TASKS = 48
"""Tasks below which a grid has no longer ones."""

CLASSES_PER_TASK = 5
"""The same of points on K classes."""

ERROR_SUFFIX = "_standard_error"
"""A simulated dataset holds the mean over runs under the observable's name, and its standard error with this suffix."""

SHOWN_FAILURES = 100
"""Points without a result that the attributes of a dataset list; how many there are is always said."""

_UNITS = {"units": "1"}  # everything here is a pure number
SEEDING = 1
"""Raised when points of a simulated grid get other seeds than before."""

_BLOCK = 2**17  # numbers of a variable that are written at a time


class _Tasks(Sequence):
    """Tasks of a grid, made when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], Points]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> Points:
        if not 0 <= k < self._count:
            raise IndexError(k)
        return self._make(k)


@dataclass(frozen=True)
class _AnyGrid:
    """What grids of theory and of simulations share.  Subclasses say what a task is and what its rows are.

    Points are numbered along the axes, the last one fastest and in the order of its values; a task is a range of numbers.
    """

    data: DataModel
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

    def task(self, first: int, last: int) -> Points:
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
        for name, (by_stage, text) in self.rows().items():
            dims = ("stage", *self.over) if by_stage else tuple(self.over)
            found[name] = dims, {"long_name": text, **({} if name == "converged" else _UNITS)}
        return found

    def _axis_attributes(self, path: str) -> dict[str, str]:
        known = path in parameter_paths(self.chain, self.data)
        return {"long_name": described(path).long_name if known else path, **_UNITS}

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
        Keys of :data:`numerics.OBSERVABLES`, or ``<observable>_quadrature_error``.
    """

    settings: Settings = DEFAULT
    rtol: float | None = None

    @cached_property
    def accuracy(self) -> Settings:
        """Settings that points are solved with; K classes take ``rtol`` itself."""
        rtol = None if self.data.many_classes else self.rtol
        return settings_for(in_equations(self.data, self.chain), self.settings, rtol)

    @cached_property
    def _continued(self) -> int:
        """Points that are continued from one another."""
        if self.data.many_classes or self.data.in_clusters:
            return CLASSES_PER_TASK
        return POINTS_PER_TASK.get(len(self.chain), 1)

    @cached_property
    def per_task(self) -> int:
        if self.data.many_classes or self.data.in_clusters:
            return self._continued
        most = RUNS_PER_TASK.get(len(self.chain), 1)
        return self._continued * min(max(1, self.size // (self._continued * LEAST_TASKS)), most)

    def task(self, first: int, last: int) -> Solve:
        return Solve(
            self.data, self.chain, tuple(self.over), self._values(self._places(first, last)), tuple(self.observables),
            self.accuracy, self.rtol, self._continued,
        )  # fmt: skip

    def rows(self) -> dict[str, tuple[bool, str]]:
        observables = {name: (True, long_name(name)) for name in self.observables}
        return observables | {name: (False, text) for name, text in QUALITY.items()}

    def attributes(self) -> dict[str, object]:
        return super().attributes() | self._accuracy_in_words

    def description(self) -> dict[str, object]:
        return super().description() | self._accuracy_in_words | {"code": code_version(False)}

    @property
    def _accuracy_in_words(self) -> dict[str, object]:
        found = {"settings": repr(self.accuracy)}
        return found if self.rtol is None or not self.data.many_classes else found | {"rtol": self.rtol}


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

    def task(self, first: int, last: int) -> Simulate:
        places = self._places(first, last)
        seed = int(np.random.SeedSequence([self.simulation.seed, int(places[0, -1])]).generate_state(1)[0])
        how = Simulation(self.simulation.n_inputs, self.simulation.n_runs, seed)
        return Simulate(
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
