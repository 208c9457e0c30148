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
from numerics.codegen.room import stack, stack_matrix
from numerics.scalar.kernels.elementary import LATE, LEAF, PLAIN, FloatArray, Matrix, address
from numerics.scalar.kernels.layout import FIELD, JUMP_SCALE, POSITION, RULE, SAMPLE, SCALE, TABLE, Table
from numerics.scalar.kernels.proximal import (
    CURVATURE,
    LANES,
    LOW,
    S1,
    THIRD,
    WEIGHT,
    H,
    proximal_point,
    slopes_at,
    with_room,
)

_SOLVED_ROWS = 5  # of a point: all but its weight
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
_MOST_ENDS = _MOST_HALVINGS + 1
_MOST_PANELS = 3000  # of one range; what is not resolved then shows in the defect of the nodes' densities
_BEND_PANELS = (
    1.4  # width of a panel, per unit step, over the scale of a later bend, or over the distance from its reach
)
_END_TOLERANCE = 1e-2  # in widths: where panels end matters little
_ROOT_HALF = 0.7071067811865476
_ROOT_TWO_OVER_PI = 0.7978845608028654


@njit(
    types.boolean(FloatArray, FloatArray, Matrix, FIELD, types.int64, types.float64, types.float64), **PLAIN
)  # fmt: skip
def panel_resolved(left, right, inside, field, branch, steepest, allowed):
    """Whether a panel's points integrate S', S'', the slope of 1/P' and Gaussians in P to what is ``allowed``.

    Parameters
    ----------
    left, right : arrays, shape (5,)
        h, S on both branches, S', S'' at the ends; ``inside`` (5, LANES) the same at the points.
    steepest : float
        Largest S' where the field is, which small ones are compared with.
    """
    sigma, gamma = field.sigma, field.gamma
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
    # S is known to rounding, and so is its rise.
    if abs(rise - (right[LOW + branch] - left[LOW + branch])) > (
        allowed * max(right[LOW + branch] - left[LOW + branch], half * steepest) + _PANEL_ROUNDING * size
    ):
        return False
    # So is S', to what that makes of it over the panel: a loss may have it as a small difference.
    if abs(bend - (right[CURVATURE] - left[CURVATURE])) > (
        allowed * max(largest, steepest) + _PANEL_ROUNDING * size / half
    ):
        return False
    drop = 1.0 / (1.0 + gamma * left[CURVATURE]) - 1.0 / (1.0 + gamma * right[CURVATURE])
    if abs(ratio - drop) > allowed:
        return False
    exact = 0.5 * math.erf(_ROOT_HALF * (high - low) / sigma)
    allowed += _PANEL_ROUNDING * max(abs(low), abs(high)) / sigma
    scale = 0.5 * _ROOT_TWO_OVER_PI / sigma
    return abs(from_left * scale - exact) <= allowed and abs(from_right * scale - exact) <= allowed


@njit(types.void(SAMPLE, types.float64, FloatArray), **PLAIN)
def panel_end(sample, h, out):
    """h, S on both branches, S', S'' at the end of a panel."""
    sample.slopes(h, sample.label, sample.logits, sample.parameters, address(out, LOW))
    out[H] = h


@njit(types.float64(types.float64, types.float64), **LEAF)
def reach_of(scale, pull):
    """How far from its bend a target, of order 1 or of its inverse ``scale``, still moves later fields by a width of theirs.

    It pulls at them there by ``exp(-distance/scale)`` of what it can.
    """
    return scale * math.log(1.0 + pull * max(1.0, 1.0 / scale))


@njit(types.float64(types.float64, types.float64, RULE), **PLAIN)
def cut_at(left, right, rule):
    """Where a panel must end, at the latest, for the bends of a later stage's integrand; NaN if its own end will do.

    Panels are as wide as the bend as far as that reaches, and grow with the distance from there on; all in proportion to the step,
    so that no two levels have the same panels.
    """
    extra, width = rule.extra, _BEND_PANELS * rule.step
    margin = _NARROWEST_PANEL * max(abs(left), abs(right))
    end = right
    for k in range(extra.shape[0]):
        place, scale = extra[k, POSITION], extra[k, SCALE]
        if left + margin < place < right - margin:
            if right - left > width * scale:
                end = min(end, place)
            continue
        if scale < JUMP_SCALE:
            continue  # a panel ends there, and that is all
        reach = reach_of(scale, rule.sharpness.pull)
        if place <= left + margin:
            end = min(end, left + width * max(scale, left - place - reach))
        else:
            end = min(end, max(left + width * scale, (left + width * (place - reach)) / (1.0 + width)))
    return end if left + margin < end < right - margin else np.nan


@njit(
    TABLE(SAMPLE, FIELD, RULE, TABLE, types.float64, types.float64, types.float64, types.float64), **LATE
)  # fmt: skip
def panels(sample, field, rule, table, low, high, guess, centre):
    """Add points that resolve every Gaussian of the field's width in P between ``low`` and ``high``.

    Parameters
    ----------
    guess : float
        About where P is ``low``.
    centre : float
        Of the one Gaussian that the points are for; NaN if they are shared, and equally good everywhere.

    Returns
    -------
    The table, with no point added where the range is narrower than doubles resolve.
    """
    sigma, gamma, branch = field.sigma, field.gamma, sample.branch
    tolerance = _PANEL_TOLERANCE * (rule.step / _PANEL_STEP) ** _PANEL_POWER
    tolerance = min(max(tolerance, _LEAST_TOLERANCE), _LARGEST_TOLERANCE)
    ends, inside = stack_matrix(_MOST_ENDS, _SOLVED_ROWS), stack_matrix(_SOLVED_ROWS, LANES)
    left, slope = stack(_SOLVED_ROWS), stack(4)
    place = _END_TOLERANCE * sigma
    count = max(1, math.ceil((high - low) / (_PANEL_WIDTH * rule.step * sigma)))
    h = proximal_point(sample, gamma, low, guess, place, slope)
    panel_end(sample, h, left)
    # Curvatures at a few places of the field say which ones are small.
    steepest = 0.0
    if not math.isnan(centre):
        near = proximal_point(sample, gamma, centre, h, place, slope)
        for k in range(-1, 2):
            slopes_at(sample, near + k * sigma / (1.0 + gamma * slope[S1]), slope)
            if k == 0 or slope[S1] < np.inf:
                steepest = max(steepest, slope[S1])
    begun = table.used
    for k in range(count):
        goal = low + (high - low) * (k + 1) / count
        h = left[H] + (goal - left[H] - gamma * left[LOW + branch]) / (1.0 + gamma * left[CURVATURE])
        h = proximal_point(sample, gamma, goal, h, place, slope)
        if not h > left[H]:
            continue
        depth = 0
        panel_end(sample, h, ends[0])
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
            may_split = depth < _MOST_HALVINGS and half > _NARROWEST_PANEL * abs(middle) and left[H] < middle < right[H]
            bend = cut_at(left[H], right[H], rule) if may_split else np.nan
            may_split = may_split and table.used - begun < _MOST_PANELS * LANES
            if math.isnan(bend):
                for j in range(LANES):
                    inside[H, j] = middle + half * _NODES[j]
                    slopes_at(sample, inside[H, j], slope)
                    for r in range(LOW, _SOLVED_ROWS):
                        inside[r, j] = slope[r - LOW]
                if not may_split or panel_resolved(left, right, inside, field, branch, steepest, tolerance / weight):
                    points, used = with_room(table, LANES)
                    for j in range(LANES):
                        for r in range(_SOLVED_ROWS):
                            points[r, used + j] = inside[r, j]
                        points[WEIGHT, used + j] = half * _WEIGHTS[j]
                    table = Table(points, used + LANES)
                    for r in range(_SOLVED_ROWS):
                        left[r] = right[r]
                    depth -= 1
                    continue
                bend = middle
            depth += 1
            panel_end(sample, bend, ends[depth])
    return table
