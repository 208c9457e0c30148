"""A task: a few neighbouring points, solved or simulated.

What it computes depends on nothing but itself, so that every executor gives the same numbers and finished tasks can be kept (see
``executors.py``, ``journal.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from numerics.models import (
    Block,
    Chain,
    DataModel,
    ParameterError,
    Problem,
    allowed_in_between,
    check_fit,
    in_equations,
    structured,
    with_parameter,
)
from numerics.scalar.compiled import PointArrays, compile_chain
from numerics.scalar.limits import classify
from numerics.scalar.points import HARD
from numerics.scalar.prior import tables_key
from numerics.settings import Settings
from numerics.simulation.run import Simulation, simulate
from numerics.solution.observables.registry import REGISTRY, split
from numerics.solution.solution import Solution
from numerics.solver import LONGEST_CHAIN, has_limit, read_solution, settings_of_limits, solve, spectral_solution
from numerics.square_chain.spectral import is_spectral
from numerics.sweeps.journal import Piece
from numerics.sweeps.points import ManyPoints

LEAST_BLOCK = 5
"""Points from which on it takes less to look at the corners of a block."""

MOST_VARYING = 3
"""Parameters of a block: it has a corner for each combination of two values of each."""

QUALITY = {
    "converged": "converged",
    "residual": "undamped, scaled residual",
    "quadrature_error": "quadrature error estimate",
}
"""Rows after the observables, and their long names."""


def problem_at(data: DataModel, chain: Chain, paths: Sequence[str], values: Sequence[float]) -> Problem:
    """Data and chain with these parameters, checked to fit together; ParameterError if they do not."""
    try:
        found = _with_values((data, chain), paths, values)
    except ParameterError:  # a parameter may be allowed only after another one has been set
        found = _with_values((data, chain), paths[::-1], values[::-1])
    check_fit(*found)
    return found


def _with_values(problem: Problem, paths: Sequence[str], values: Sequence[float]) -> Problem:
    """With these parameters, one after the other."""
    for path, value in zip(paths, values, strict=True):
        problem = with_parameter(*problem, path, float(value))
    return problem


@dataclass(frozen=True)
class Points:
    """Some neighbouring points of a grid, without the rest of it.

    Attributes
    ----------
    paths : tuple of str
        Names of the parameters.
    values : array, shape (n, parameters)
        Their values at each point.
    """

    data: DataModel
    chain: Chain
    paths: tuple[str, ...]
    values: np.ndarray
    observables: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.values)

    def at(self, i: int, common: Problem | None = None) -> Problem:
        """Data and chain of point ``i``; ParameterError if there is no such problem.

        ``common`` are those with all parameters but the last.
        """
        if common is not None:
            try:
                found = _with_values(common, self.paths[-1:], self.values[i, -1:])
                check_fit(*found)
                return found
            except ParameterError:  # the last may have to be set first; and the reason is that of all together
                pass
        return problem_at(self.data, self.chain, self.paths, self.values[i])

    def _with_others(self, i: int) -> Problem | None:
        """Data and chain of point ``i`` but for its last parameter; None where that is no problem."""
        try:
            return _with_values((self.data, self.chain), self.paths[:-1], self.values[i, :-1])
        except ParameterError:
            return None

    def allowed(self, first: int, last: int) -> tuple[list[Problem], list[int], dict[int, str]]:
        """Problems of the points first <= i < last, their positions, and by position why there is none at the others.

        They differ in the last parameter alone: the others are set once.
        """
        points, refused = {}, {}
        common = self._with_others(first)
        for i in range(first, last):
            try:
                points[i - first] = self.at(i, common)
            except ParameterError as reason:
                refused[i - first] = str(reason)
        return list(points.values()), list(points), refused

    def block(self, first: int, last: int) -> Block | None:
        """The points first <= i < last where the corners of the block say that all are allowed; None where it takes each of them.

        Given the others, the allowed values of a parameter are an interval: between allowed corners all is allowed.
        """
        data, chain = self.data, self.chain
        if last - first < LEAST_BLOCK or data.many_classes or data.in_clusters or structured(data, chain):
            return None
        try:
            block = Block(data, chain, self.paths, self.values[first:last])
            if len(block.varying) > MOST_VARYING:
                return None
            if not all(allowed_in_between(chain, self.paths[k]) for k in block.varying):
                return None
            for corner in block.corners:
                check_fit(*corner)
        except ParameterError:
            return None
        return block


@dataclass(frozen=True)
class Solve(Points):
    """Theory at some points: rows are observables by stage, then converged, residual, quadrature error.

    Points that differ in the last parameter alone are continued from one another.  The residual of a point that has no limit
    ridge -> 0 is NaN.

    Attributes
    ----------
    longest : int or None
        How many points of a line are continued before one begins anew; None: all.
    """

    settings: Settings
    rtol: float | None = None
    longest: int | None = None

    def at(self, i: int, common: Problem | None = None) -> Problem:
        """Data and chain of point ``i``; ParameterError if there is no such problem, or no limit where a ridge is 0."""
        data, chain = super().at(i, common)
        if has_limit(chain) and not data.many_classes:
            classify(data, in_equations(data, chain))
        return data, chain

    def __call__(self) -> Piece:
        lines = (np.flatnonzero(np.any(np.diff(self.values[:, :-1], axis=0) != 0.0, axis=1)) + 1).tolist()
        piece = self._together(0, self.size, lines)
        return piece or _joined([self._line(first, last) for first, last in pairwise([0, *lines, self.size])])

    def _together(self, first: int, last: int, lines: Sequence[int] = ()) -> Piece | None:
        """Points of some lines, which begin at ``lines``, as one block; None where some of them need something else."""
        block = self.block(first, last)
        if block is None or any(has_limit(chain) for _, chain in block.corners) or self._apart(block.corners):
            return None  # a limit there need not be one in between
        return self._continued(block, self.values[first:last, -1], self._anew(np.arange(first, last), lines))

    def _anew(self, places: np.ndarray, lines: Sequence[int] = ()) -> list[int]:
        """Which of the points at ``places``, by position, are not continued from those before."""
        longest = self.longest or self.size
        runs = places // longest + np.searchsorted(lines, places, side="right")
        return (np.flatnonzero(np.diff(runs)) + 1).tolist()

    def _line(self, first: int, last: int) -> Piece:
        piece = self._together(first, last)
        if piece is not None:
            return piece
        points, places, refused = self.allowed(first, last)
        if not places:
            return self._blank(last - first, refused)
        along = self.values[first:last, -1][places]
        # What one point needs, all of its run get.
        runs = pairwise([0, *self._anew(first + np.array(places)), len(places)])
        piece = _joined([self._run(points[begin:end], along[begin:end]) for begin, end in runs])
        if not refused:
            return piece
        whole = self._blank(last - first, refused)
        whole.values[:, places] = piece.values
        whole.notes.update({places[k]: note for k, note in piece.notes.items()})
        return whole

    def _blank(self, n: int, notes: dict[int, str]) -> Piece:
        """No results at n points."""
        values = np.full((len(self.observables) * len(self.chain) + len(QUALITY), n), np.nan)
        values[-3], values[-1] = 0.0, np.inf
        return Piece(values, dict(notes))

    def _run(self, points: Sequence[Problem], along: np.ndarray) -> Piece:
        """Points that differ in the last parameter, whose values are ``along``."""
        if self.data.many_classes:
            # Each cold: from a neighbour's solution other nodes would follow, and a point would depend on its grid.
            return self._one_by_one(
                points, lambda data, chain: solve(data, chain, settings=self.settings, rtol=self.rtol)
            )
        if self._apart(points):
            return self._one_by_one(points, lambda data, chain: solve(data, chain, settings=self.settings))
        return self._continued(points, along)

    def _apart(self, points: Sequence[Problem]) -> bool:
        """Whether some of the points are not for the compiled solver, or not with the others."""
        apart = self.data.in_clusters or len({tables_key(*point) for point in points}) > 1
        return apart or len(self.chain) > LONGEST_CHAIN or any(is_spectral(*point) for point in points)

    def _continued(self, points: Sequence[Problem], along: np.ndarray, anew: Sequence[int] = ()) -> Piece:
        """Each from those before it, but for the points at ``anew``."""
        limits = not isinstance(points, Block) and any(has_limit(chain) for _, chain in points)
        settings = settings_of_limits(self.settings) if limits else self.settings
        compiled = compile_chain(in_equations(*points[0]))
        position = np.concatenate([_even(some) for some in np.split(along, anew)])
        arrays = PointArrays(points, settings.common)
        arrays.solve(compiled, settings, position, anew)
        self._from_behind(arrays, points, position, settings, anew)
        converged = arrays.converged(settings)
        hard = {found for found in set(arrays.limits) if set(found) & set(HARD)}
        ordinary = np.array([found not in hard for found in arrays.limits])
        algebraic = [k for k, name in enumerate(self.observables) if REGISTRY[split(name)[0]].algebraic]
        rest = [k for k in range(len(self.observables)) if k not in algebraic]
        values = np.full((len(self.observables), len(self.chain), len(points)), np.nan)
        notes, rescued = {}, {}
        if algebraic:
            state = ManyPoints.of(arrays, points)
            found = np.array([state.values(self.observables[k]) for k in algebraic])
            values[algebraic] = np.where(converged & ordinary, found, np.nan)
        for i in range(len(points)) if rest else np.flatnonzero(~(converged & ordinary)).tolist():
            solution = read_solution(arrays, i, *points[i], settings)
            if not converged[i]:
                exact = spectral_solution(*points[i], settings)
                if exact is None or not exact.converged:
                    notes[i] = solution.message
                    continue
                rescued[i] = solution = exact
            for k in rest if converged[i] and ordinary[i] else range(len(self.observables)):
                values[k, :, i] = [getattr(stage, self.observables[k]) for stage in solution.stages]
        residual = np.where(np.isfinite(arrays.residual), arrays.residual, np.inf).max(axis=1)
        quality = np.array([converged, residual, arrays.error], dtype=float)
        for i, solution in rescued.items():
            quality[:, i] = True, solution.residual, solution.quadrature_error
        return Piece(np.concatenate([values.reshape(-1, len(points)), quality]), notes)

    def _from_behind(
        self, arrays: PointArrays, points: Sequence, position: np.ndarray, settings: Settings, anew: Sequence[int]
    ) -> None:
        """Try points that were not reached from before once more, from the next one behind them that was."""
        converged = arrays.converged(settings)
        if converged.all():
            return
        runs = np.searchsorted(anew, range(len(points)), side="right").tolist()
        kinds = list(zip(runs, arrays.limits, strict=True))
        i = len(points) - 2
        while i >= 0:
            if converged[i] or not converged[i + 1] or kinds[i] != kinds[i + 1]:
                i -= 1
                continue
            first = i
            while first > 0 and not converged[first - 1] and kinds[first - 1] == kinds[i]:
                first -= 1
            back = np.arange(i + 1, first - 1, -1)
            again = PointArrays([points[k] for k in back], settings.common)
            again.x[0], again.started[0] = arrays.x[i + 1], 1
            again.solve(compile_chain(in_equations(*points[0])), settings, position[back])
            better = again.converged(settings)
            better[0] = False
            for old, new in zip((*arrays.states, *arrays.summary), (*again.states, *again.summary), strict=True):
                old[back[better]] = new[better]
            i = first - 1

    def _one_by_one(self, points: Sequence[Problem], solver: Callable[[DataModel, Chain], Solution]) -> Piece:
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


def _joined(pieces: Sequence[Piece]) -> Piece:
    """One after the other."""
    begins = np.cumsum([0, *(piece.values.shape[1] for piece in pieces)]).tolist()
    notes = {begin + k: note for begin, piece in zip(begins, pieces, strict=False) for k, note in piece.notes.items()}
    return Piece(np.concatenate([piece.values for piece in pieces], axis=1), notes)


def _even(along: np.ndarray) -> np.ndarray:
    """Values of a parameter on the scale on which solutions are continued."""
    return np.log(along) if along.min() > 0 else along


@dataclass(frozen=True)
class Simulate(Points):
    """Simulation of one point: rows are means, then standard errors, of observables by stage."""

    simulation: Simulation

    def __call__(self) -> Piece:
        how, shape = self.simulation, (2, len(self.observables), len(self.chain))
        values = np.full((*shape, self.size), np.nan)
        notes = {}
        for i in range(self.size):
            try:
                runs = simulate(*self.at(i), how.n_inputs, how.n_runs, how.seed, observables=self.observables)
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
