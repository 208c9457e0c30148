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
from typing import NamedTuple

import numpy as np

from numerics.deferred import special
from numerics.scalar.directions import sobol_directions
from numerics.solution import quadrature
from numerics.solution.quadrature import Budget, Integral

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Score z of points: takes their groups, integers of shape (p,), and g_1..g_k, shape (p, k)."""


Peak = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Scores z of points and factors s, shape (p,) each; arguments as for :data:`Score`."""


class Tilt(NamedTuple):
    """A first direction that is no standard normal.

    Attributes
    ----------
    density : callable
        Of g_1, over that of a standard normal: takes groups and g_1, shape (p,).  Smooth but at 0.
    width : float
        Distance from 0 over which it changes.
    largest : float
        What it does not exceed.
    """

    density: Callable[[np.ndarray, np.ndarray], np.ndarray]
    width: float
    largest: float

    def edges(self, panels: np.ndarray) -> np.ndarray:
        """Ends of panels, with others about 0, so that what happens within ``width`` is seen on both sides."""
        reach = float(panels[-1])
        count = 1 + max(0, math.ceil(math.log(reach / self.width, TILT_GROWTH)))
        near = self.width * TILT_GROWTH ** np.arange(min(count, TILT_PANELS))
        near = near[near < reach]
        return _split(np.concatenate((panels, near, -near)))

    def spread(self, group: int, normal: np.ndarray) -> np.ndarray:
        """Where standard normal numbers go if they are to be distributed as g_1 of a group: at the same quantiles."""
        ends = self.edges(np.linspace(-quadrature.REACH, quadrature.REACH, SPREAD_PANELS))
        unit, share = np.polynomial.legendre.leggauss(quadrature.ORDER)

        def density(g: np.ndarray) -> np.ndarray:
            return quadrature.density(g) * self.density(np.full(g.size, group), g.ravel()).reshape(g.shape)

        def mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
            half = 0.5 * (high - low)
            return half * (density((low + half)[:, None] + half[:, None] * unit) @ share)

        known = np.concatenate(([0.0], np.cumsum(mass(ends[:-1], ends[1:]))))
        wanted = known[-1] * special.ndtr(normal)
        panel = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(ends) - 2)
        low, high = ends[panel], ends[panel + 1]
        place = 0.5 * (low + high)
        for _ in range(SPREAD_STEPS):
            excess = known[panel] + mass(ends[panel], place) - wanted
            low, high = np.where(excess > 0.0, low, place), np.where(excess > 0.0, place, high)
            with np.errstate(divide="ignore", invalid="ignore"):
                moved = place - excess / density(place)
            place = np.where((moved > low) & (moved < high), moved, 0.5 * (low + high))
        return place


NESTED = 4
"""Earlier stages up to which panels are inside one another; beyond, a Sobol sequence."""

WIDTH, OUTER_WIDTH = 2.9, 5.7
"""First panels, of the direction that is crossed and of the others, are at most this wide."""

CHECK_WIDTH, OUTER_CHECK_WIDTH = 2.3, 4.1
"""The same for the integral that the first one is checked against."""

CHECK_OFFSET = 0.29
"""Of the trapezoid points of the integral that the first one is checked against, in first steps."""

AT_JUMP = 1e-15
"""Half-width of the panel that a jump of a rule's label is in: the panels beside it end before it."""

TILT_GROWTH, TILT_PANELS = 6.0, 8
"""Growth of the panels about 0 of a tilted direction, and how many there are on each side."""

SPREAD_PANELS, SPREAD_STEPS = 25, 20
"""Panels, and steps of Newton's method or bisection, by which a Sobol sequence is spread over a tilted direction."""

PASSES = 4
"""Attempts to meet a tolerance relative to an average that is smaller than was expected."""

SOBOL_ROWS = (2**9, 2**13)
"""Points of the Sobol sequence, first and last; doubled in between until the average no longer changes."""

_PILOTS = 2**7
_PILOT_GROUPS = 2**5  # looked at together
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
    tilt: Tilt | None = None,
    jumps: bool = False,
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
    tilt : callable, optional
        Of g_1; by default it is a standard normal, as the others are.
    jumps : bool
        Whether the score jumps where g_1 = 0, as it does with the label of a rule.

    Returns
    -------
    Integral
        Its error is what the panels leave unresolved.
    """
    groups = np.arange(len(weight))
    if count == 0:
        return Integral(float(weight @ special.ndtr(score(groups, np.empty((len(weight), 0))))), 0.0)
    if tilt is not None and count == 1:
        return _along_tilted(score, tilt, weight, rtol, check, evaluations)
    inner, guess = _pilot(score, weight, count, first=0 if tilt is None else 1)
    # Columns of what is integrated: the other directions, then the one that is crossed.
    order = np.array([[*(j for j in range(count) if j != last), last] for last in inner])

    def ordered(group: np.ndarray, g: np.ndarray) -> np.ndarray:
        out = np.empty_like(g)
        np.put_along_axis(out, order[group], g, axis=1)
        return score(group, out)

    if count > NESTED:
        return _over_sobol(ordered, weight, count, rtol, check, tilt)
    jumping = order == 0 if jumps else None
    tolerance, slack = rtol * max(guess, _LEAST), np.ones(len(weight)) if tilt is None else _slack(weight)
    for _ in range(PASSES):
        over = _Directions(ordered, count, tolerance, check, evaluations, tilt, jumping)
        values, errors = over.nest.mean(groups, np.empty((len(weight), 0)), tolerance * slack)
        beyond = 2.0 * count * float(special.ndtr(-over.reach))
        found = Integral(float(weight @ values), float(weight @ errors) + beyond)
        least = _LEAST if count > 1 else _LEAST_ALONE
        if not found.error > rtol * max(abs(found.value), least) or over.budget.left <= 0:
            break
        wanted = rtol * max(abs(found.value), least)
        tolerance = min(0.1 * tolerance, wanted)
    return found


def peaks(
    score: Peak,
    groups: int,
    count: int,
    tolerance: float,
    *,
    check: bool = False,
    tilt: Tilt | None = None,
    jumps: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Averages of ``s phi(z)`` over ``count`` standard normal directions (at least one), group by group, and their errors.

    Where z grows with a level and s is its derivative, this is the derivative of :func:`mean_tail` with respect to that level.

    Parameters
    ----------
    score : callable
        See :data:`Peak`.
    tolerance : float
        Absolute error allowed in each group.
    check, tilt, jumps
        As for :func:`mean_tail`.

    Raises
    ------
    ValueError
        More than ``NESTED`` directions.
    """
    if not 1 <= count <= NESTED:
        raise ValueError(f"count must be between 1 and {NESTED}, got {count}")
    order = np.tile(np.arange(count), (groups, 1))
    if count > 1:
        inner, _ = _pilot(lambda group, g: score(group, g)[0], np.ones(groups), count, first=0 if tilt is None else 1)
        order = np.array([[*(j for j in range(count) if j != last), last] for last in inner])

    def ordered(group: np.ndarray, g: np.ndarray) -> np.ndarray:
        out = np.empty_like(g)
        np.put_along_axis(out, order[group], g, axis=1)
        return score(group, out)

    jumping = order == 0 if jumps else None
    if tilt is not None and count == 1:  # the direction that is tilted is the one that is crossed

        def tilted(group: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            z, s = score(group, g)
            return z, s * tilt.density(group, g[:, 0])

        over = _Directions(tilted, count, tolerance, check, quadrature.EVALUATIONS, peaks=True)
        over.inner = tilt.edges(over.inner)
    else:
        over = _Directions(ordered, count, tolerance, check, quadrature.EVALUATIONS, tilt, jumping, peaks=True)
    return over.nest.mean(np.arange(groups), np.empty((groups, 0)), np.full(groups, tolerance))


class _Directions:
    """Where the first panels of the nested integrals end, by how much trapezoid points are off, and how the last one is a tail.

    ``jumping``, shape (groups, count), says in which of the directions, in the order of integration, the score jumps at 0.
    """

    def __init__(
        self, score: Score, count: int, tolerance: float, check: bool, evaluations: int, tilt: Tilt | None = None,
        jumping: np.ndarray | None = None, *, peaks: bool = False,
    ) -> None:  # fmt: skip
        self.reach = min(quadrature.REACH, -float(special.ndtri(max(0.01 * tolerance, 1e-300))))
        widths = (CHECK_WIDTH, OUTER_CHECK_WIDTH) if check else (WIDTH, OUTER_WIDTH)
        self.inner, self.outer = (
            np.linspace(-self.reach, self.reach, math.ceil(2.0 * self.reach / width) + 1) for width in widths
        )
        self.score, self.tilt, self.budget, self.peaks = score, tilt, Budget(evaluations), peaks
        self.jumping = np.zeros((1, count), dtype=bool) if jumping is None else jumping
        if self.jumping[:, -1].any():
            self.inner = _split(self.inner)
        self.nest = quadrature.Nest(
            self.tails, count, self.edges, self.budget, self.reach, CHECK_OFFSET if check else 0.0,
            math.inf if peaks else 1.0 if tilt is None else tilt.largest,
        )  # fmt: skip

    def edges(self, group: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Ends of the first panels of the next direction; one that is tilted or jumps is no case for a trapezoid rule."""
        if self.tilt is not None and not known.shape[1]:
            return np.tile(self.tilt.edges(self.outer), (len(group), 1))
        if self.jumping[:, known.shape[1]].any():
            return np.tile(_split(self.outer), (len(group), 1))
        return self.outer

    def tails(self, group: np.ndarray, known: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Averages over the direction that is crossed, all others being ``known``."""

        def score(row: np.ndarray, g: np.ndarray) -> np.ndarray:
            found = self.score(*quadrature.points(group, known, row, g))
            return tuple(values.reshape(g.shape) for values in found) if self.peaks else found.reshape(g.shape)

        means = quadrature.peak_means if self.peaks else quadrature.tail_means
        if self.tilt is None:
            return means(score, self.inner, tolerance, self.budget)
        factor = self.tilt.density(group, known[:, 0])
        values, errors = means(score, self.inner, tolerance / np.maximum(factor, 1.0), self.budget)
        return factor * values, factor * errors


def _split(edges: np.ndarray) -> np.ndarray:
    """Ends of panels, and others next to 0 on both sides: ends are nodes, and what jumps at 0 has a side there."""
    edges = edges[np.abs(edges) > AT_JUMP]
    return np.unique(np.concatenate((edges, [-AT_JUMP, AT_JUMP])))


def _slack(weight: np.ndarray) -> np.ndarray:
    """By how much a group may be less accurate than the average, because it is rare."""
    return 1.0 / np.minimum(1.0, len(weight) * weight)


def _along_tilted(
    score: Score, tilt: Tilt, weight: np.ndarray, rtol: float, check: bool, evaluations: int
) -> Integral:  # fmt: skip
    """The only direction is the one that is tilted."""

    def integrand(row: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group, places = np.repeat(row, g.shape[1]), g.ravel()
        values = quadrature.density(places) * tilt.density(group, places) * special.ndtr(score(group, places[:, None]))
        return values.reshape(g.shape), np.zeros_like(g)

    reach, width = quadrature.REACH, CHECK_WIDTH if check else WIDTH
    edges = tilt.edges(np.linspace(-reach, reach, math.ceil(2.0 * reach / width) + 1))
    tolerance = rtol * _TYPICAL
    for _ in range(PASSES):
        budget = Budget(evaluations)
        values, errors = quadrature.integrate(integrand, edges, tolerance * _slack(weight), budget)
        found = Integral(float(weight @ values), float(weight @ errors))
        wanted = rtol * max(abs(found.value), _LEAST_ALONE)
        if not found.error > wanted or budget.left <= 0:
            break
        tolerance = min(0.1 * tolerance, wanted)
    return found


def _pilot(score: Score, weight: np.ndarray, count: int, first: int = 0) -> tuple[np.ndarray, float]:
    """For each group the direction, of those from ``first`` on, along which 0 is crossed fastest, and a guess of the average."""
    points, groups, n = _pilots(count), len(weight), _PILOTS
    if count == 1:
        return np.zeros(groups, dtype=np.int64), _TYPICAL  # nothing to choose, and panels are quicker than pilots
    inner, guess = np.empty(groups, dtype=np.int64), 0.0
    shifts = _SHIFT * np.vstack((np.zeros(count), np.eye(count), -np.eye(count)))
    shifted = (points + shifts[:, None, :]).reshape(-1, count)
    for start in range(0, groups, _PILOT_GROUPS):
        some = np.arange(start, min(start + _PILOT_GROUPS, groups))
        z = score(np.repeat(some, len(shifted)), np.tile(shifted, (some.size, 1))).reshape(some.size, len(shifts), n)
        slopes = (z[:, 1 : count + 1] - z[:, count + 1 :]) / (2.0 * _SHIFT)
        square, centre = np.sum(slopes**2, axis=1, keepdims=True), z[:, :1]
        with np.errstate(divide="ignore", invalid="ignore"):
            near = np.exp(-0.5 * np.minimum(centre**2 / square, 200.0))  # by the distance to where 0 is crossed
            shares = np.where(square > 0.0, near * slopes**2 / square, 0.0)
        inner[some] = first + np.argmax(np.nan_to_num(shares.sum(axis=2)[:, first:]), axis=1)
        guess += float(weight[some] @ np.mean(special.ndtr(z[:, 0]), axis=1))
    return inner, guess if math.isfinite(guess) else 0.0


@lru_cache(maxsize=8)
def _pilots(count: int) -> np.ndarray:
    """Points spread evenly over ``count`` normal variables, shape (_PILOTS, count): multiples of the roots of primes."""
    roots = np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0, 29.0, 31.0, 37.0][:count])
    roots = np.concatenate((roots, np.sqrt(np.arange(41.0, 41.0 + count - len(roots)))))
    return special.ndtri(np.modf((np.arange(_PILOTS) + 0.5)[:, None] * roots)[0])


def _over_sobol(
    score: Score, weight: np.ndarray, count: int, rtol: float, check: bool, tilt: Tilt | None
) -> Integral:  # fmt: skip
    """The other directions along a Sobol sequence, doubled until the average no longer changes."""
    first, last = SOBOL_ROWS
    table = sobol_directions(count)[first * (1 if check else 0) :, : count - 1]
    tolerance = 0.1 * rtol * _LEAST
    over = _Directions(score, count, tolerance, check, quadrature.EVALUATIONS)
    total, rows, found = 0.0, 0, Integral(math.inf, math.inf)
    while rows < last:
        more = max(first, rows)
        known, group = np.tile(table[rows : rows + more], (len(weight), 1)), np.repeat(np.arange(len(weight)), more)
        if tilt is not None:
            for number in range(len(weight)):
                known[group == number, 0] = tilt.spread(number, table[rows : rows + more, 0])
        for start in range(0, len(group), quadrature.BATCH):
            some = slice(start, start + quadrature.BATCH)
            values, _ = over.tails(group[some], known[some], np.full(len(group[some]), tolerance))
            total += float(weight[group[some]] @ values)
        rows += more
        value = total / rows
        found = Integral(value, abs(value - found.value))
        if found.error <= rtol * abs(value):
            break
    return found
