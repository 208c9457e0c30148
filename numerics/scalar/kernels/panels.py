"""Points for losses whose bends are not known: Gauss-Legendre panels in h, halved until they integrate what can be checked.

Where a gradient bends is looked for in the gradient itself, whatever its formula.  Over a panel from a to b the rule must give
what the values at its two ends say:

    int S' dh = S(b) - S(a),                 int S'' dh = S'(b) - S'(a),
    int (1/P')' dh = 1/P'(b) - 1/P'(a),      int P' exp(-(P - c)^2/2 sigma^2) dh = a difference of error functions,

with ``P(h) = h + gamma S(h)``.  The right-hand sides are not sums over the points: a bend between them, however narrow, makes
the left-hand side miss it, because S increases.  A rule of another step has no such view: it may pass the same bend unseen.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import INNER, POINT_FUNCTION, FloatArray, Matrix, Pointer, address
from numerics.scalar.kernels.proximal import (
    CURVATURE,
    LANES,
    LOW,
    THIRD,
    WEIGHT,
    H,
    PointCount,
    enlarged,
    proximal_point,
)

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(LANES)
_PANEL_WIDTH = 3.3  # in widths of the field, per unit step
_PANEL_TOLERANCE = 1e-10  # at the step of the first level; it falls with this power of the step
_PANEL_STEP = 0.76
_PANEL_POWER = 14.0
_LEAST_TOLERANCE, _LARGEST_TOLERANCE = 1e-13, 1e-4
_FARTHEST_WEIGHT = 1e-12  # tails need not be resolved better than what they weigh
_PANEL_ROUNDING = 4e-15
_NARROWEST_PANEL = 1e-13  # relative to the position
_MOST_HALVINGS = 60
_MOST_PANELS = 3000  # of one range; what is not resolved then shows in the defect of the nodes' densities
_BEND_PANELS = (
    2.0  # width of a panel over its distance to a bend of a later stage's integrand, or over the scale of that bend
)
_JUMP_SCALE = 1e-8  # a bend this narrow is a jump: a panel ends there
_END_TOLERANCE = 1e-2  # in widths: where panels end matters little
_ROOT_HALF = 0.7071067811865476
_ROOT_TWO_OVER_PI = 0.7978845608028654


@njit(
    types.boolean(
        FloatArray, FloatArray, Matrix, types.float64, types.float64, types.int64, types.float64, types.float64, types.float64
    ),
    **INNER,
)  # fmt: skip
def panel_resolved(left, right, inside, gamma, sigma, branch, steepest, tolerance, weight):
    """Whether a panel's points integrate S', S'', the slope of 1/P' and Gaussians in P to ``tolerance``.

    Parameters
    ----------
    left, right : arrays, shape (5,)
        h, S on both branches, S', S'' at the ends; ``inside`` (6, LANES) the same at the points.
    steepest : float
        Largest S' where the field is, which small ones are compared with.
    weight : float
        Largest Gaussian weight in the panel; what weighs little may be less exact.
    """
    half = 0.5 * (right[H] - left[H])
    low = left[H] + gamma * left[LOW + branch]
    high = right[H] + gamma * right[LOW + branch]
    rise = bend = ratio = from_left = from_right = 0.0
    size = max(abs(left[LOW + branch]), abs(right[LOW + branch]))
    largest = max(left[CURVATURE], right[CURVATURE])
    for j in range(LANES):
        share = _WEIGHTS[j] * half
        slope = 1.0 + gamma * inside[CURVATURE, j]
        largest = max(largest, inside[CURVATURE, j])
        rise += share * inside[CURVATURE, j]
        bend += share * inside[THIRD, j]
        ratio += share * gamma * inside[THIRD, j] / (slope * slope)
        place = inside[H, j] + gamma * inside[LOW + branch, j]
        z = (place - low) / sigma
        from_left += share * slope * math.exp(-0.5 * z * z)
        z = (high - place) / sigma
        from_right += share * slope * math.exp(-0.5 * z * z)
    allowed = tolerance / weight
    # S is known to rounding, and so is its rise.
    if abs(rise - (right[LOW + branch] - left[LOW + branch])) > (
        allowed * max(right[LOW + branch] - left[LOW + branch], half * steepest) + _PANEL_ROUNDING * size
    ):
        return False
    if abs(bend - (right[CURVATURE] - left[CURVATURE])) > allowed * max(largest, steepest):
        return False
    drop = 1.0 / (1.0 + gamma * left[CURVATURE]) - 1.0 / (1.0 + gamma * right[CURVATURE])
    if abs(ratio - drop) > allowed:
        return False
    exact = 0.5 * math.erf(_ROOT_HALF * (high - low) / sigma)
    allowed += _PANEL_ROUNDING * max(abs(low), abs(high)) / sigma
    scale = 0.5 * _ROOT_TWO_OVER_PI / sigma
    return abs(from_left * scale - exact) <= allowed and abs(from_right * scale - exact) <= allowed


@njit(
    types.void(POINT_FUNCTION, types.float64, types.float64, Pointer, Pointer, FloatArray), **INNER
)  # fmt: skip
def panel_end(slopes, h, y, logits, parameters, out):
    """h, S on both branches, S', S'' at the end of a panel."""
    slopes(h, y, logits, parameters, address(out, 1))
    out[H] = h


@njit(types.float64(types.float64, types.float64, Matrix), **INNER)
def split_at(left, right, extra):
    """Where a panel must be divided for the bends ``extra`` (position, scale) of a later stage's integrand; NaN if nowhere."""
    for k in range(extra.shape[0]):
        place, scale = extra[k, 0], extra[k, 1]
        margin = _NARROWEST_PANEL * max(abs(left), abs(right))
        if left + margin < place < right - margin and right - left > scale:
            return place
        distance = max(0.0, left - place, place - right)
        if scale >= _JUMP_SCALE and right - left > _BEND_PANELS * max(scale, distance):
            return 0.5 * (left + right)
    return np.nan


@njit(
    PointCount(
        POINT_FUNCTION, Matrix, types.int64, types.float64, types.float64, types.float64, types.float64, types.float64,
        types.float64, Pointer, Pointer, types.float64, types.float64, Matrix, types.int64,
    ),
    **INNER,
)  # fmt: skip
def panels(slopes, points, n, low, high, guess, centre, step, y, logits, parameters, gamma, sigma, extra, branch):
    """Add points, from column n on, that resolve every Gaussian of width ``sigma`` in P between ``low`` and ``high``.

    Parameters
    ----------
    guess : float
        About where P is ``low``.
    centre : float
        Of the one Gaussian that the points are for; NaN if they are shared, and equally good everywhere.
    extra : array, shape (e, 2)
        (position, scale) of bends of a later stage's integrand as a function of h.

    Returns
    -------
    table of points, how many of its columns are used.  No point is added where the range is narrower than doubles resolve.
    """
    tolerance = _PANEL_TOLERANCE * (step / _PANEL_STEP) ** _PANEL_POWER
    tolerance = min(max(tolerance, _LEAST_TOLERANCE), _LARGEST_TOLERANCE)
    ends = np.empty((_MOST_HALVINGS + 1, 5))
    left = np.empty(5)
    inside = np.empty((5, LANES))
    slope = np.empty(4)
    place = _END_TOLERANCE * sigma
    count = max(1, math.ceil((high - low) / (_PANEL_WIDTH * step * sigma)))
    h = proximal_point(slopes, low, guess, place, y, logits, parameters, gamma, branch, slope)
    panel_end(slopes, h, y, logits, parameters, left)
    # Curvatures at a few places of the field say which ones are small.
    steepest = 0.0
    if not math.isnan(centre):
        near = proximal_point(slopes, centre, h, place, y, logits, parameters, gamma, branch, slope)
        for k in range(-1, 2):
            at = near + k * sigma / (1.0 + gamma * slope[2])
            slopes(at, y, logits, parameters, address(slope, 0))
            if k == 0 or slope[2] < np.inf:
                steepest = max(steepest, slope[2])
    begun = n
    for k in range(count):
        goal = low + (high - low) * (k + 1) / count
        h = left[H] + (goal - left[H] - gamma * left[LOW + branch]) / (1.0 + gamma * left[CURVATURE])
        h = proximal_point(slopes, goal, h, place, y, logits, parameters, gamma, branch, slope)
        if not h > left[H]:
            continue
        depth = 0
        panel_end(slopes, h, y, logits, parameters, ends[0])
        while depth >= 0:
            right = ends[depth]
            weight = 1.0
            if not math.isnan(centre):
                below = (left[H] + gamma * left[LOW + branch] - centre) / sigma
                above = (right[H] + gamma * right[LOW + branch] - centre) / sigma
                nearest = max(0.0, below, -above)
                weight = max(math.exp(-0.5 * nearest * nearest), _FARTHEST_WEIGHT)
            middle = 0.5 * (left[H] + right[H])
            half = right[H] - middle
            may_split = (
                depth < _MOST_HALVINGS
                and half > _NARROWEST_PANEL * abs(middle)
                and n - begun < _MOST_PANELS * LANES
                and left[H] < middle < right[H]
            )
            bend = split_at(left[H], right[H], extra) if may_split else np.nan
            if math.isnan(bend):
                for j in range(LANES):
                    at = middle + half * _NODES[j]
                    slopes(at, y, logits, parameters, address(slope, 0))
                    inside[H, j] = at
                    for r in range(4):
                        inside[1 + r, j] = slope[r]
                if not may_split or panel_resolved(
                    left, right, inside, gamma, sigma, branch, steepest, tolerance, weight
                ):
                    while n + LANES > points.shape[1]:
                        points = enlarged(points)
                    for j in range(LANES):
                        for r in range(5):
                            points[r, n + j] = inside[r, j]
                        points[WEIGHT, n + j] = half * _WEIGHTS[j]
                    n += LANES
                    for r in range(5):
                        left[r] = right[r]
                    depth -= 1
                    continue
                bend = middle
            depth += 1
            panel_end(slopes, bend, y, logits, parameters, ends[depth])
    return points, n
