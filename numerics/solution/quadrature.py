"""Adaptive Gauss-Lobatto panels for Gaussian averages in one variable, of many rows at a time.

A panel is halved until the last Legendre coefficients of what it holds are small enough: kinks and jumps are closed in on, smooth
stretches are left alone.  The ends of a panel are nodes, so that nothing hides between a node and an end.  Averages of a normal
tail ``Phi(z(g))`` are special: ``z`` is smooth where the tail is a step, so that ``z`` is what the panels resolve, and the tail
of its interpolating polynomial is integrated without evaluating ``z`` again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.polynomial import legendre

from numerics.deferred import special

ORDER = 12
"""Nodes of a panel."""

REACH = 12.0
"""Standard deviations an average extends to at most; beyond, the weight is below 1e-32."""

SATURATED = 9.0
"""Score beyond which a normal tail counts as 0 or 1: it differs by less than 1e-18."""

SPREAD = 2.5
"""Change of a score over a panel up to which its normal tail is a polynomial of the panel's degree to rounding."""

NARROW = 1.5
"""The same for a normal density of the score."""

HIDDEN = 12.0
"""Times the last Legendre coefficients by which a score with a kink may be off between the nodes."""

SHARE = 0.1
"""Part of the tolerance that one panel may use."""

NARROWEST = 1e-14
"""Half-width of a panel that is not halved any more."""

EVALUATIONS = 2 * 10**7
"""Of an integrand, after which no panel is halved any more and the error is returned as it is."""

FIRST_STEP, HALVINGS = 1.2, 3
"""Step of the trapezoid rule that is tried first in directions that are smooth, and how often it is halved."""

GEOMETRIC, EXPECTED = 2.0, 1.5
"""Power of a change of the trapezoid rule, as part of the average, that the next change stays below where it converges; and
the power that is expected of the change to come, which is the error."""

INNER = 0.1
"""Part of the tolerance that an integral may leave to those inside it."""

BATCH = 2**11
"""Rows integrated at a time."""

_HALVINGS = 80  # of a panel on which a tail is integrated: more than there are bits in a double
_REAL = 1e-6  # imaginary part below which a root of a polynomial counts as real: taking too many does no harm
_INNER = legendre.Legendre.basis(ORDER - 1).deriv().roots()
_NODES = np.concatenate(([-1.0], np.sort(_INNER.real), [1.0]))
_WEIGHTS = 2.0 / (ORDER * (ORDER - 1) * legendre.legvander(_NODES, ORDER - 1)[:, -1] ** 2)
_COEFFICIENTS = np.linalg.inv(legendre.legvander(_NODES, ORDER - 1))
_LAST = _COEFFICIENTS[-2:].T
_LEFT, _RIGHT = ((legendre.legvander((_NODES + side) / 2, ORDER - 1) @ _COEFFICIENTS).T for side in (-1, 1))
_ROOT_TWO_PI = math.sqrt(2.0 * math.pi)


class Integral(NamedTuple):
    """A number found by integration, and an estimate of its absolute error; sums and multiples keep account of it."""

    value: float
    error: float

    __array_ufunc__ = None  # numbers of NumPy leave the arithmetic to this class

    def __add__(self, other: Integral | float) -> Integral:
        value, error = other if isinstance(other, Integral) else (other, 0.0)
        kind = OneRule if isinstance(other, OneRule) else type(self)
        return kind(self.value + value, self.error + error)

    __radd__ = __add__

    def __mul__(self, factor: float) -> Integral:
        return type(self)(factor * self.value, abs(factor) * self.error)

    __rmul__ = __mul__

    def __neg__(self) -> Integral:
        return type(self)(-self.value, self.error)

    def __sub__(self, other: Integral | float) -> Integral:
        return self + (-other)


class OneRule(Integral):
    """Its error is what one set of nodes says of itself: whether that is blind to something, only another set can tell."""

    __slots__ = ()


class Budget:
    """Evaluations that are left; shared by the integrals inside one another."""

    def __init__(self, evaluations: int = EVALUATIONS) -> None:
        self.left = evaluations

    def spend(self, evaluations: int) -> None:
        """Take these off."""
        self.left -= evaluations


def density(g: np.ndarray) -> np.ndarray:
    """Density of the standard normal."""
    return np.exp(-0.5 * g * g) / _ROOT_TWO_PI


def integrate(
    function: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    edges: np.ndarray,
    tolerance: np.ndarray,
    budget: Budget,
) -> tuple[np.ndarray, np.ndarray]:
    """Integrals of the rows of a function between the first and the last edge.

    Parameters
    ----------
    function : callable
        Takes rows, integers of shape (p,), and places, shape (p, ORDER); returns values and their errors, of that shape.
    edges : array, shape (e,) or (r, e)
        Ends of the first panels, in increasing order; of all rows or of each.
    tolerance : array, shape (r,)
        Absolute error allowed in each row.

    Returns
    -------
    values, errors : arrays, shape (r,)
    """

    def panel(row: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        half = 0.5 * (high - low)
        values, errors = function(row, _places(low, high))
        unresolved = 2.0 * half * np.abs(values @ _LAST).sum(axis=1)
        return half * (values @ _WEIGHTS), unresolved, half * (errors @ _WEIGHTS)

    return _adapt(panel, edges, tolerance, budget)


def absolute(
    function: Callable[[np.ndarray], np.ndarray], edges: np.ndarray, tolerance: float, budget: Budget
) -> float:
    """Integral of the modulus of a smooth function between the first and the last edge.

    The panels resolve the function, and not the kinks of its modulus: that of the interpolating polynomial is integrated between
    its roots.

    Parameters
    ----------
    function : callable
        Takes places, shape (p, ORDER), and returns values of that shape.
    edges : array, shape (e,)
        Ends of the first panels, in increasing order.
    tolerance : float
        Absolute error allowed.
    """

    def panel(_: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        half = 0.5 * (high - low)
        values = function(_places(low, high))
        unresolved = 2.0 * half * np.abs(values @ _LAST).sum(axis=1)
        sums = np.abs(values @ _WEIGHTS)
        changing = np.flatnonzero((values.min(axis=1) < 0.0) & (values.max(axis=1) > 0.0))
        for k in changing:
            polynomial = legendre.Legendre(_COEFFICIENTS @ values[k])
            roots = polynomial.roots()
            inside = np.sort(roots.real[(np.abs(roots.imag) < _REAL) & (np.abs(roots.real) < 1.0)])
            sums[k] = np.abs(np.diff(polynomial.integ()(np.concatenate(([-1.0], inside, [1.0]))))).sum()
        return half * sums, unresolved, np.zeros_like(sums)

    value, _ = _adapt(panel, edges, np.array([tolerance]), budget)
    return float(value[0])


def tail_means(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray], edges: np.ndarray, tolerance: np.ndarray, budget: Budget
) -> tuple[np.ndarray, np.ndarray]:
    """Averages of ``Phi(score(row, g))`` over a standard normal g, whatever the steepness; arguments as :func:`integrate`.

    An error ``e`` of the interpolated score is one of ``e int phi(score) N(g) dg`` of the average.
    """

    def panel(row: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        z = score(row, _places(low, high))
        value, flux = _tail_of_polynomial(z, low, high)
        off = np.abs(z @ _LAST).sum(axis=1)
        # A score that is not resolved may come down to 0 between the nodes, where it would not show in the flux.
        nearest = np.min(np.abs(z), axis=1)
        hidden = (off > 1.0) & (nearest > SATURATED) & (nearest < SATURATED + HIDDEN * off)
        mass = _mass(low, high)
        return value, np.minimum(off * flux, mass) + np.where(hidden, mass, 0.0), np.zeros_like(value)

    return _adapt(panel, edges, tolerance, budget)


def peak_means(
    score: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    edges: np.ndarray,
    tolerance: np.ndarray,
    budget: Budget,
) -> tuple[np.ndarray, np.ndarray]:
    """Averages of ``s phi(z)`` over a standard normal g, where ``z, s = score(row, g)``, whatever the steepness of z.

    Arguments as for :func:`integrate`.  It is the derivative of :func:`tail_means` if s is that of z: the peaks of ``phi`` may be
    much narrower than panels on which z and s are polynomials.
    """

    def panel(row: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
        z, s = score(row, _places(low, high))
        value, flux, moved = _peak_of_polynomial(z, s, low, high)
        off = np.abs(z @ _LAST).sum(axis=1)
        nearest, largest = np.min(np.abs(z), axis=1), np.max(np.abs(s), axis=1)
        hidden = (off > 1.0) & (nearest > SATURATED) & (nearest < SATURATED + HIDDEN * off)
        most = _mass(low, high) * largest / _ROOT_TWO_PI
        unresolved = np.minimum(off * moved + np.abs(s @ _LAST).sum(axis=1) * flux, most)
        return value, unresolved + np.where(hidden, most, 0.0), np.zeros_like(value)

    return _adapt(panel, edges, tolerance, budget)


def _mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Probability of a standard normal between these ends, also far out."""
    above = low > 0.0
    return special.ndtr(np.where(above, -low, high)) - special.ndtr(np.where(above, -high, low))


def _places(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return 0.5 * (low + high)[:, None] + 0.5 * (high - low)[:, None] * _NODES


def _adapt(
    panel: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]],
    edges: np.ndarray,
    tolerance: np.ndarray,
    budget: Budget,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum over panels, halved where what they leave unresolved is too much; ``panel`` gives value, unresolved, other error."""
    rows, count = len(tolerance), edges.shape[-1] - 1
    row = np.repeat(np.arange(rows), count)
    low, high = (np.broadcast_to(ends, (rows, count)).ravel() for ends in (edges[..., :-1], edges[..., 1:]))
    value, error = np.zeros(rows), np.zeros(rows)
    while row.size:
        budget.spend(row.size * ORDER)
        part, unresolved, other = panel(row, low, high)
        enough = ~(unresolved > SHARE * tolerance[row]) | (high - low < 2.0 * NARROWEST)  # NaN is not made better
        if budget.left <= 0:
            enough[:] = True
        value += np.bincount(row[enough], part[enough], rows)
        error += np.bincount(row[enough], (unresolved + other)[enough], rows)
        row, low, high = row[~enough], low[~enough], high[~enough]
        middle = 0.5 * (low + high)
        row, low, high = np.tile(row, 2), np.concatenate((low, middle)), np.concatenate((middle, high))
    return value, error


Piece = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, ...]]
"""Panels that pieces lie in, their ends, and values at their nodes."""


def _pieces(low: np.ndarray, high: np.ndarray, spread: float, *values: np.ndarray) -> Iterator[Piece]:
    """Panels, shape (p,), cut until the first of some polynomials changes by at most ``spread``, or is saturated, on a piece.

    The polynomials are known at the nodes, shape (p, ORDER) each.
    """
    which = np.arange(len(low))
    for halving in range(_HALVINGS):
        smallest, largest = values[0].min(axis=1), values[0].max(axis=1)
        simple = ~(largest - smallest > spread) | (smallest > SATURATED) | (largest < -SATURATED)
        if halving == _HALVINGS - 1:
            simple[:] = True
        yield which[simple], low[simple], high[simple], tuple(found[simple] for found in values)
        rest = ~simple
        if not rest.any():
            return
        which, low, high = np.tile(which[rest], 2), low[rest], high[rest]
        middle = 0.5 * (low + high)
        values = tuple(np.concatenate((found[rest] @ _LEFT, found[rest] @ _RIGHT)) for found in values)
        low, high = np.concatenate((low, middle)), np.concatenate((middle, high))


def _gaussian_weights(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Of the nodes of panels, in integrals with the density of a standard normal, shape (p, ORDER)."""
    return 0.5 * (high - low)[:, None] * _WEIGHTS * density(_places(low, high))


def _tail_of_polynomial(z: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integrals of ``Phi(z) N(g)`` and ``phi(z) N(g)`` over panels on which z has these values at the nodes, shape (p, ORDER)."""
    value, flux = np.zeros(len(z)), np.zeros(len(z))
    for which, start, end, (piece,) in _pieces(low, high, SPREAD, z):
        weight = _gaussian_weights(start, end)
        part = np.sum(weight * special.ndtr(piece), axis=1)
        part = np.where(piece.min(axis=1) > SATURATED, _mass(start, end), part)
        value += np.bincount(which, part, len(value))
        with np.errstate(over="ignore"):
            flux += np.bincount(which, np.sum(weight * density(piece), axis=1), len(value))
    return value, flux


def _peak_of_polynomial(
    z: np.ndarray, s: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrals of ``s phi(z)``, ``phi(z)`` and ``|s z| phi(z)`` times N(g) over panels; z, s are known at the nodes."""
    value, flux, moved = np.zeros((3, len(z)))
    for which, start, end, (piece, factor) in _pieces(low, high, NARROW, z, s):
        with np.errstate(over="ignore"):
            weight = _gaussian_weights(start, end) * density(piece)
        for total, part in ((value, factor), (flux, 1.0), (moved, np.abs(factor * piece))):
            total += np.bincount(which, np.sum(weight * part, axis=1), len(z))
    return value, flux, moved


Inner = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Averages over the last direction and their errors: takes groups (r,), the directions before (r, d), tolerances (r,)."""


class Nest:
    """Averages over standard normal directions inside one another.

    A direction is integrated by a trapezoid rule, which converges fast where what is inside is smooth, or else by panels.

    Parameters
    ----------
    last : callable
        See :data:`Inner`.
    count : int
        Directions.
    edges : callable
        Takes groups and the directions before; returns ends of the first panels in the next one, as :func:`integrate` wants them.
        Different ones for each row say that it is not smooth there: no trapezoid rule is tried.
    reach : float
        Standard deviations that a direction extends to.
    offset : float
        Of the trapezoid points, in first steps.
    bound : float
        Modulus that what is averaged does not exceed.
    """

    def __init__(
        self, last: Inner, count: int, edges: Callable[[np.ndarray, np.ndarray], np.ndarray], budget: Budget, reach: float,
        offset: float = 0.0, bound: float = 1.0,
    ) -> None:  # fmt: skip
        self.last, self.count, self.edges, self.budget = last, count, edges, budget
        self.reach, self.offset, self.bound = reach, offset, bound

    def mean(self, group: np.ndarray, known: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Averages over the directions that are not ``known``, shape (rows, d), and their errors."""
        parts = []
        for first in range(0, len(group), BATCH):
            some = slice(first, first + BATCH)
            parts.append(self._batch(group[some], known[some], tolerance[some]))
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _batch(self, group: np.ndarray, known: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if known.shape[1] == self.count - 1:
            return self.last(group, known, tolerance)
        edges = self.edges(group, known)
        if edges.ndim == 1:
            values, errors, done = self._trapezoid(group, known, tolerance)
        else:
            values, errors, done = np.zeros(len(group)), np.zeros(len(group)), np.zeros(len(group), dtype=bool)
        rest = np.flatnonzero(~done)
        if rest.size:
            values[rest], errors[rest] = integrate(
                lambda row, g: self._weighted(group[rest[row]], known[rest[row]], tolerance[rest[row]], g),
                edges if edges.ndim == 1 else edges[rest], tolerance[rest], self.budget,
            )  # fmt: skip
        return values, errors

    def _weighted(
        self, group: np.ndarray, known: np.ndarray, tolerance: np.ndarray, g: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Density of the next direction at ``g``, shape (rows, n), times the average over those after it; and its error."""
        weight = density(g).ravel()
        # Far out, what is inside may be as wrong as it likes.
        allowed = INNER * np.repeat(tolerance, g.shape[1]) / (2.0 * self.reach * weight)
        matters = allowed < self.bound
        values, errors = np.zeros(g.size), np.where(matters, 0.0, self.bound)
        groups, inside = points(group, known, np.arange(len(group)), g)
        if matters.any():
            values[matters], errors[matters] = self.mean(groups[matters], inside[matters], allowed[matters])
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


def points(group: np.ndarray, known: np.ndarray, row: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups and directions at the places ``g``, shape (p, n), of the next direction in some rows."""
    chosen = np.repeat(row, g.shape[1])
    return group[chosen], np.column_stack((known[chosen], g.ravel()))
