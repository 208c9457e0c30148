"""Probabilities of a sign on training samples: normal tails averaged over the fields of earlier stages.

``P(label * h_t < 0)`` is a normal tail ``Phi(z)`` given the Gaussian directions g_1..g_k of the earlier stages.  Where the stage's
own field is much narrower than the others, that tail is a step across a surface in the g's.  The direction along which the step
is crossed fastest is integrated first, as the tail it is, however steep (:func:`numerics.solution.quadrature.tail_means`); what
is left is smooth in the others, as far as it can be, and is integrated by trapezoid rules inside one another, or by adaptive
panels where those do not converge.  Of many stages, the others are a Sobol sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from numerics.deferred import special
from numerics.scalar.directions import sobol_directions
from numerics.solution import quadrature
from numerics.solution.quadrature import Budget, Integral

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Score z of points: takes their groups, integers of shape (p,), and g_1..g_k, shape (p, k)."""

NESTED = 4
"""Earlier stages up to which panels are inside one another; beyond, a Sobol sequence."""

WIDTH, OUTER_WIDTH = 2.9, 5.7
"""First panels, of the direction that is crossed and of the others, are at most this wide."""

CHECK_WIDTH, OUTER_CHECK_WIDTH = 2.3, 4.1
"""The same for the integral that the first one is checked against."""

FIRST_STEP, HALVINGS = 1.2, 3
"""Step of the trapezoid rule that is tried first in directions that are not crossed, and how often it is halved."""

GEOMETRIC, EXPECTED = 2.0, 1.5
"""Power of a change of the trapezoid rule, as part of the average, that the next change stays below where it converges; and
the power that is expected of the change to come, which is the error."""

CHECK_OFFSET = 0.29
"""Of the trapezoid points of the integral that the first one is checked against, in first steps."""

INNER = 0.1
"""Part of the tolerance that an integral may leave to those inside it."""

PASSES = 4
"""Attempts to meet a tolerance relative to an average that is smaller than was expected."""

SOBOL_ROWS = (2**9, 2**13)
"""Points of the Sobol sequence, first and last; doubled in between until the average no longer changes."""

_BATCH = 2**11  # rows integrated at a time
_PILOTS = 2**7
_SHIFT = 1e-3  # of the differences that tell the fastest direction
_TYPICAL = 0.01  # average that is expected where no pilots are sent
_LEAST_ALONE = 1e-12  # what an average along one direction is compared with at least
_LEAST = 1e-4  # average relative to which several directions are integrated, if it is smaller than that


def mean_tail(
    score: Score,
    weight: np.ndarray,
    count: int,
    rtol: float,
    *,
    check: bool = False,
    evaluations: int = quadrature.EVALUATIONS,
) -> Integral:
    """Average of ``Phi(score)`` over groups and ``count`` standard normal directions.

    Parameters
    ----------
    score : callable
        See :data:`Score`; smooth, except for kinks and jumps, in each direction.
    weight : array, shape (groups,)
        Probabilities of the groups.
    rtol : float
        Relative accuracy asked for, relative to 1e-12 where the average is smaller; of several directions, to 1e-4.
    check : bool
        Integrate on other panels (or further on in the Sobol sequence): what tells whether the first ones were blind.
    evaluations : int
        Of the score, after which the average is returned with the error it has.

    Returns
    -------
    Integral
        Its error is what the panels leave unresolved.
    """
    groups = np.arange(len(weight))
    if count == 0:
        return Integral(float(weight @ special.ndtr(score(groups, np.empty((len(weight), 0))))), 0.0)
    inner, guess = _pilot(score, weight, count)
    # Columns of what is integrated: the other directions, then the one that is crossed.
    order = np.array([[*(j for j in range(count) if j != last), last] for last in inner])

    def ordered(group: np.ndarray, g: np.ndarray) -> np.ndarray:
        out = np.empty_like(g)
        np.put_along_axis(out, order[group], g, axis=1)
        return score(group, out)

    if count > NESTED:
        return _over_sobol(ordered, weight, count, rtol, check)
    tolerance = rtol * max(guess, _LEAST)
    for _ in range(PASSES):
        nest = _Nest(ordered, count, tolerance, check, evaluations)
        values, errors = nest.mean(groups, np.empty((len(weight), 0)), np.full(len(weight), tolerance))
        beyond = 2.0 * count * float(special.ndtr(-nest.reach))
        found = Integral(float(weight @ values), float(weight @ errors) + beyond)
        least = _LEAST if count > 1 else _LEAST_ALONE
        if not found.error > rtol * max(abs(found.value), least) or nest.budget.left <= 0:
            break
        wanted = rtol * max(abs(found.value), least)
        tolerance = min(0.1 * tolerance, wanted)
    return found


class _Nest:
    """Panels inside one another."""

    def __init__(
        self, score: Score, count: int, tolerance: float, check: bool, evaluations: int = quadrature.EVALUATIONS
    ) -> None:
        self.score, self.count, self.budget = score, count, Budget(evaluations)
        reach = min(quadrature.REACH, -float(special.ndtri(max(0.01 * tolerance, 1e-300))))
        widths = (CHECK_WIDTH, OUTER_CHECK_WIDTH) if check else (WIDTH, OUTER_WIDTH)
        self.edges, self.outer_edges = (
            np.linspace(-reach, reach, math.ceil(2.0 * reach / width) + 1) for width in widths
        )
        self.reach, self.offset = reach, CHECK_OFFSET if check else 0.0

    def mean(self, group: np.ndarray, known: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Averages over the directions that are not ``known``, shape (rows, d), and their errors."""
        parts = []
        for first in range(0, len(group), _BATCH):
            some = slice(first, first + _BATCH)
            parts.append(self._batch(group[some], known[some], tolerance[some]))
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _batch(self, group: np.ndarray, known: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if known.shape[1] == self.count - 1:
            return _tails(self.score, group, known, self.edges, tolerance, self.budget)

        values, errors, done = self._trapezoid(group, known, tolerance)
        rest = np.flatnonzero(~done)
        if rest.size:
            values[rest], errors[rest] = quadrature.integrate(
                lambda row, g: self._weighted(group[rest[row]], known[rest[row]], tolerance[rest[row]], g),
                self.outer_edges, tolerance[rest], self.budget,
            )  # fmt: skip
        return values, errors

    def _weighted(
        self, group: np.ndarray, known: np.ndarray, tolerance: np.ndarray, g: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Density of the next direction at ``g``, shape (rows, n), times the average over those after it; and its error."""
        weight = quadrature.density(g).ravel()
        # Far out, what is inside may be as wrong as it likes.
        allowed = INNER * np.repeat(tolerance, g.shape[1]) / (2.0 * self.reach * weight)
        matters = allowed < 1.0
        values, errors = np.zeros(g.size), np.ones(g.size)
        groups, points = _points(group, known, np.arange(len(group)), g)
        if matters.any():
            values[matters], errors[matters] = self.mean(groups[matters], points[matters], allowed[matters])
        return (weight * values).reshape(g.shape), (weight * errors).reshape(g.shape)

    def _trapezoid(
        self, group: np.ndarray, known: np.ndarray, tolerance: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Averages by the trapezoid rule, their errors, and the rows where that is good enough.

        Where the next direction is smooth the rule converges geometrically, with an order of its own at every halving: an error
        that falls like that is taken for the power ``EXPECTED`` of the last change.
        """
        rows = len(group)
        value, error, done = np.zeros(rows), np.zeros(rows), np.zeros(rows, dtype=bool)
        total, inside = np.zeros(rows), np.zeros(rows)
        change = np.full(rows, math.inf)
        left = np.arange(rows)
        step, fresh = FIRST_STEP, 2.0 * FIRST_STEP
        for halving in range(HALVINGS + 1):
            # At first every point of the grid, then those in the middle between the ones before.
            first = self.offset * FIRST_STEP + (0.0 if halving == 0 else step)
            spacing = step if halving == 0 else fresh
            g = first + spacing * np.arange(math.ceil((-self.reach - first) / spacing), (self.reach - first) / spacing)
            values, errors = self._weighted(group[left], known[left], tolerance[left], np.tile(g, (left.size, 1)))
            if halving == 0:
                even = np.arange(g.size) % 2 == 0
                found = 2.0 * step * values[:, even].sum(axis=1)
                value[left], inside[left] = step * values.sum(axis=1), step * errors.sum(axis=1)
                total = np.abs(value)
                change = np.abs(value - found)
            else:
                before, earlier = value[left].copy(), change[left].copy()
                value[left] = 0.5 * before + step * values.sum(axis=1)
                inside[left] = 0.5 * inside[left] + step * errors.sum(axis=1)
                change[left] = np.abs(value[left] - before)
                size = np.maximum(total[left], np.abs(value[left])) + 1e-300
                relative = change[left] / size
                geometric = relative <= (earlier / size) ** GEOMETRIC
                error[left] = np.where(geometric, size * relative**EXPECTED, change[left])
                done[left] = error[left] <= tolerance[left]
                left = left[~done[left]]
            if not left.size or self.budget.left <= 0:
                break
            fresh, step = step, 0.5 * step
        return value, error + inside, done


def _points(group: np.ndarray, known: np.ndarray, row: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups and directions at the places ``g``, shape (p, n), of the next direction in some rows."""
    chosen = np.repeat(row, g.shape[1])
    return group[chosen], np.column_stack((known[chosen], g.ravel()))


def _pilot(score: Score, weight: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """For each group the direction along which 0 is crossed fastest, and a first guess of the average."""
    points, groups, n = _pilots(count), len(weight), _PILOTS
    if count == 1:
        return np.zeros(groups, dtype=np.int64), _TYPICAL  # nothing to choose, and panels are quicker than pilots
    inner, guess = np.empty(groups, dtype=np.int64), 0.0
    shifts = _SHIFT * np.vstack((np.zeros(count), np.eye(count), -np.eye(count)))
    shifted = (points + shifts[:, None, :]).reshape(-1, count)
    for group in range(groups):
        z = score(np.full(len(shifted), group), shifted).reshape(len(shifts), n)
        slopes = (z[1 : count + 1] - z[count + 1 :]) / (2.0 * _SHIFT)
        square = np.sum(slopes**2, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            near = np.exp(-0.5 * np.minimum(z[0] ** 2 / square, 200.0))  # by the distance to where 0 is crossed
            shares = np.where(square > 0.0, near * slopes**2 / square, 0.0)
        inner[group] = int(np.argmax(np.nan_to_num(shares.sum(axis=1))))
        guess += weight[group] * float(np.mean(special.ndtr(z[0])))
    return inner, guess if math.isfinite(guess) else 0.0


@lru_cache(maxsize=8)
def _pilots(count: int) -> np.ndarray:
    """Points spread evenly over ``count`` normal variables, shape (_PILOTS, count): multiples of the roots of primes."""
    roots = np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0, 31.0, 37.0][:count])
    roots = np.concatenate((roots, np.sqrt(np.arange(41.0, 41.0 + count - len(roots)))))
    return special.ndtri(np.modf((np.arange(_PILOTS) + 0.5)[:, None] * roots)[0])


def _over_sobol(score: Score, weight: np.ndarray, count: int, rtol: float, check: bool) -> Integral:
    """The other directions along a Sobol sequence, doubled until the average no longer changes."""
    first, last = SOBOL_ROWS
    table = sobol_directions(count)[first * (1 if check else 0) :, : count - 1]
    tolerance = 0.1 * rtol * _LEAST
    edges = _Nest(score, count, tolerance, check).edges
    total, rows, found = 0.0, 0, Integral(math.inf, math.inf)
    while rows < last:
        more = max(first, rows)
        known, group = np.tile(table[rows : rows + more], (len(weight), 1)), np.repeat(np.arange(len(weight)), more)
        for start in range(0, len(group), _BATCH):
            some = slice(start, start + _BATCH)
            values, _ = _tails(score, group[some], known[some], edges, np.full(len(group[some]), tolerance), Budget())
            total += float(weight[group[some]] @ values)
        rows += more
        value = total / rows
        found = Integral(value, abs(value - found.value))
        if found.error <= rtol * abs(value):
            break
    return found


def _tails(
    score: Score, group: np.ndarray, known: np.ndarray, edges: np.ndarray, tolerance: np.ndarray, budget: Budget
) -> tuple[np.ndarray, np.ndarray]:
    """Averages over the direction that is crossed, all others being ``known``."""
    return quadrature.tail_means(
        lambda row, g: score(*_points(group, known, row, g)).reshape(g.shape), edges, tolerance, budget
    )
