"""How far apart two stages' logits are as representations: terms of the ideal-joint-classifier bound.

Ben-David et al. (Machine Learning 79, 2010) bound an error on one domain by that on another,
``e_S <= e_T + (1/2) d + lambda*``.  Here the domains are the fresh logits of a teacher and of its student, both classified by one
head; heads are thresholds ``h > x`` and ``h < x``, and the constants.  Two heads differ on an interval or outside of one: the
divergence of their symmetric differences is the Kuiper distance of the two laws, ``max D - min D`` with D the difference of the
distribution functions.  lambda* is the least sum of the two errors of one head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numerics.deferred import optimize
from numerics.solution.logit_law import AnyLaw

Array = NDArray[np.float64]

REACH, POINTS, CHECK_POINTS = 12.0, 121, 110
"""Of the grid around each class: standard deviations, points, and those of the grid that the first one is checked against."""

CANDIDATES, ZOOM, ROUNDS = 6, 9, 16
"""Highest points of the grid that are looked at more closely, points between their neighbours, and how often."""

ADVANTAGE = 1e-9
"""By which a threshold must be better than a constant: where log-odds grow with h, one far out always is, by next to nothing."""

SCALES, SCALE_RANGE, SCALE_STARTS = 49, 100.0, 3
"""Factors that are tried for the student's logit, around the one that makes the widths equal; how many are refined."""


class Head(NamedTuple):
    """One head on two representations: it says s = 1 where ``sign h > sign threshold``, a constant one (sign 0) always or never."""

    error: float
    """Sum of its errors on the two."""
    threshold: float
    sign: int

    def __str__(self) -> str:
        return "constant" if self.sign == 0 else f"h {'>' if self.sign > 0 else '<'} {round(self.threshold, 4) + 0.0:g}"


def distance(first: AnyLaw, second: AnyLaw, *, check: bool = False) -> tuple[float, float]:
    """Kuiper and Kolmogorov-Smirnov distance of two laws; of continuous ones accurate to rounding.

    The first is half the divergence d of Ben-David et al. between two domains, for heads that are thresholds; the second is what
    one head alone tells apart.
    """

    def difference(x: Array) -> Array:
        return first.cdf(x) - second.cdf(x)

    grid = _grid(first, second, check)
    high = max(0.0, _maximum(difference, grid)[0])
    low = max(0.0, _maximum(lambda x: -difference(x), grid)[0])
    return high + low, max(high, low)


def ideal_head(first: AnyLaw, second: AnyLaw, *, check: bool = False) -> Head:
    """The head of least summed error on two representations of the same labels."""

    def errors(x: Array) -> Array:
        return first.error(x) + second.error(x)

    grid = _grid(first, second, check)
    least, place = _maximum(lambda x: -errors(x), grid)
    most, other = _maximum(errors, grid)
    constant = 2.0 * min(first.rho, 1.0 - first.rho)
    best = min(Head(-least, place, 1), Head(2.0 - most, other, -1), key=lambda head: head.error)
    return best if best.error < constant - ADVANTAGE else Head(min(best.error, constant), float("nan"), 0)


def best_scale(teacher: AnyLaw, student: AnyLaw) -> tuple[float, float]:
    """(c, value) that make distance plus error of the ideal head least for the student's logit times c > 0.

    The student's error does not depend on c, the terms of its bound do: this is the best bound of the family.
    """

    def terms(log_scale: float) -> float:
        scaled = student.scaled(float(np.exp(log_scale)))
        return distance(scaled, teacher)[0] + ideal_head(teacher, scaled).error

    centre = np.log(teacher.width / student.width)
    scan = centre + np.linspace(-np.log(SCALE_RANGE), np.log(SCALE_RANGE), SCALES)
    values = np.array([terms(x) for x in scan])
    padded = np.concatenate(([np.inf], values, [np.inf]))
    low = np.flatnonzero((values <= padded[:-2]) & (values <= padded[2:]))
    found = []
    for k in low[np.argsort(values[low])][:SCALE_STARTS]:
        bounds = scan[max(k - 1, 0)], scan[min(k + 1, SCALES - 1)]
        best = optimize.minimize_scalar(terms, bounds=bounds, method="bounded", options={"xatol": 1e-10})
        found += [(float(best.fun), float(best.x)), (float(values[k]), float(scan[k]))]
    value, place = min(found)
    return float(np.exp(place)), value


def _grid(first: AnyLaw, second: AnyLaw, check: bool) -> Array:
    """Places around all classes, in increasing order; on both sides of a constant logit."""
    places = []
    around = np.linspace(-REACH, REACH, CHECK_POINTS if check else POINTS)
    for law in (first, second):
        for centre, width in law.spread:
            places.append(centre + width * around if width > 0.0 else np.nextafter(centre, [-np.inf, np.inf]))
    return np.unique(np.concatenate(places))


def _maximum(function: Callable[[Array], Array], grid: Array) -> tuple[float, float]:
    """Largest value of a function with a few smooth maxima, and its place: between neighbours of the highest points of a grid."""
    values = function(grid)
    padded = np.concatenate(([-np.inf], values, [-np.inf]))
    peaks = np.flatnonzero((values >= padded[:-2]) & (values >= padded[2:]))
    peaks = peaks[np.argsort(values[peaks])[-CANDIDATES:]]
    low, high = grid[np.maximum(peaks - 1, 0)], grid[np.minimum(peaks + 1, grid.size - 1)]
    best = int(np.argmax(values))
    found = float(values[best]), float(grid[best])
    rows = np.arange(len(peaks))
    for _ in range(ROUNDS):
        x = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, ZOOM)
        inside = function(x)
        top = np.argmax(np.where(np.isnan(inside), -np.inf, inside), axis=1)
        row = int(np.argmax(inside[rows, top]))
        found = max(found, (float(inside[row, top[row]]), float(x[row, top[row]])), key=lambda pair: pair[0])
        low, high = x[rows, np.maximum(top - 1, 0)], x[rows, np.minimum(top + 1, ZOOM - 1)]
    return found
