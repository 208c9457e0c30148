"""Grids in the training logit h: one for all nodes where the loss's gradient is ``S(h) - c``, else one for each node.

The trapezoid rule converges geometrically in the variable

    t(h) = P(h)/sigma + sum_k kappa_k [asinh((h - h_k+)/(3 b_k)) + asinh((h - h_k-)/(3 b_k))],   P(h) = h + gamma S(h),

which spaces points by a fraction of the field's width in ``P`` and, near the kinks ``h_k+- = c_k +- b_k ln(4 gamma s_k)``
of the proximal map, by a fraction of the loss's own scale ``b_k``.  (Gauss-Hermite in the field fails there: the map has
branch points a distance of order ``b_k`` from the real axis.)  Centres ``c_k``, scales ``b_k`` and curvatures ``s_k`` are
read off the loss by ``theory``.

Bends that ``theory`` cannot read off (powers, functions of functions) are searched for instead; see ``scalar/kernels/panels.py``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import (
    INNER,
    OPTIONS,
    POINT_FUNCTION,
    SEARCHED,
    SHARED,
    FloatArray,
    IntArray,
    Matrix,
    Pointer,
    address,
    argsort,
)
from numerics.scalar.kernels.panels import panels
from numerics.scalar.kernels.proximal import (
    BRACKET_STEPS,
    CURVATURE,
    HIGH,
    LANES,
    LOW,
    THIRD,
    WEIGHT,
    H,
    PointCount,
    enlarged,
    pad,
    proximal_point,
)

_KINK_WIDTH = 3.0
_KINK_POINTS = 3.0
_JUMP_POINTS = 2.5
_JUMP_WIDTH = 1e-8
MAP_TOLERANCE = 1e-5  # in t; the correction that follows leaves its cube in the position, its square in the weight
_TINY = 1e-300
_SHARING_PAYS = 0.9  # fraction of the separate lengths above which every node gets its own points
_SHARED_POINTS = 12.0  # shared points per node, likewise

_RULES = (7, 8, 10, 14, 18)
_RULE_STARTS = np.concatenate([[0], np.cumsum(_RULES)])
_OUTER_RULES = (7, 10, 14, 18)
_RULE_NODES = np.concatenate([np.polynomial.hermite_e.hermegauss(n)[0] for n in _RULES])
_RULE_WEIGHTS = np.concatenate([np.polynomial.hermite_e.hermegauss(n)[1] for n in _RULES])
_RULE_STEPS = (0.9, 0.6)  # steps above the first get the first of the outer rules, those below the second the third
_LAST_RULE_STEP = (
    0.5  # below it the trapezoid rule takes over: levels that shared a rule would find no difference between them
)
_SHARPNESS = (0.35, 0.7)  # of later stages, above which the next rule is taken, and above which none will do
_OUTER_RATIO = 0.35  # of a field's width to the scales of what it is integrated with, below which such a rule does
_GAUSS_STEPS = 8
_PLACE = 1e-3  # accuracy, in widths, of a point from which others are found
_ROUNDING = 1e-15
_LINEAR_RATIO = 1e-8
_POINT_RATIO = 1e-3  # below, even a grid that later stages integrate over needs no more than a Gauss rule
_GAUSS_TOLERANCE = 1e-10  # in widths: the point is a node of the rule to this accuracy
_LAST_MOVE = 1e-5  # in widths: the slopes follow a step this small by their Taylor series
_GAUSS_RATIO = 0.09  # of the field's width to the scale of the proximal map, per unit step, below which few points do


@njit(
    types.int64(
        POINT_FUNCTION, types.int64, types.float64, Pointer, Pointer, types.float64, types.float64, Matrix, FloatArray,
        Matrix,
    ),
    **INNER,
)  # fmt: skip
def find_kinks(bends, n_bends, y, logits, parameters, gamma, sigma, extra, found, kinks):
    """Fill rows (position, width, strength) of ``kinks``, and ``found`` with the loss's bends; returns how many kinks."""
    if n_bends > 0:
        bends(0.0, y, logits, parameters, address(found, 0))
    n = 0
    for k in range(n_bends):
        centre = found[k]
        scale = found[n_bends + k]
        strength = abs(found[2 * n_bends + k])
        if not (0.0 < strength < np.inf and 0.0 < scale < np.inf and math.isfinite(centre)):
            continue
        amount = _KINK_POINTS * min(max((sigma / scale - 0.5) / 3.5, 0.0), 1.0)
        if amount == 0.0:
            continue
        reach = scale * max(0.0, math.log(4.0 * gamma * strength + _TINY))
        for k_side in range(2):
            kinks[n, 0] = centre + (reach if k_side == 1 else -reach)
            kinks[n, 1] = _KINK_WIDTH * scale
            kinks[n, 2] = amount
            n += 1
    for k in range(extra.shape[0]):
        # A jump (a bend of hardly any width) has nothing to resolve but its place: the points only have to close in on it.
        amount = _JUMP_POINTS if extra[k, 1] < _JUMP_WIDTH else 2.0 * _KINK_POINTS
        amount *= min(max((sigma / extra[k, 1] - 0.5) / 3.5, 0.0), 1.0)
        if amount > 0.0:
            kinks[n, 0] = extra[k, 0]
            kinks[n, 1] = _KINK_WIDTH * extra[k, 1]
            kinks[n, 2] = amount
            n += 1
    return n


@njit(types.float64(FloatArray, types.int64), **OPTIONS)
def smallest_scale(found, n_bends):
    """Smallest scale on which the loss's gradient bends; infinite for a linear gradient."""
    smallest = np.inf
    for k in range(n_bends):
        if abs(found[2 * n_bends + k]) > 0.0:
            smallest = min(smallest, found[n_bends + k])
    return smallest


@njit(
    types.UniTuple(types.float64, 3)(
        types.float64, types.float64, types.float64, FloatArray, types.int64, Matrix, types.int64
    ),
    **OPTIONS,
)  # fmt: skip
def mapped(h, gamma, sigma, slope, branch, kinks, n_kinks):
    """Mapped variable t(h), dt/dh and d2t/dh2, from the slopes of the loss at h."""
    inverse = 1.0 / sigma
    t = (h + gamma * slope[branch]) * inverse
    dt = (1.0 + gamma * slope[2]) * inverse
    ddt = gamma * slope[3] * inverse
    product = 1.0
    for k in range(n_kinks):
        strength = kinks[k, 2]
        width = 1.0 / kinks[k, 1]
        z = (h - kinks[k, 0]) * width
        inverse_root = 1.0 / math.sqrt(1.0 + z * z)
        density = strength * width * inverse_root
        # asinh(z) = +-log(|z| + root): one logarithm for neighbours of the same strength, as the two sides of a kink are.
        grown = abs(z) + (1.0 + z * z) * inverse_root
        product *= grown if z >= 0.0 else 1.0 / grown
        if k + 1 == n_kinks or kinks[k + 1, 2] != strength or k % 8 == 7:
            t += strength * math.log(product)
            product = 1.0
        dt += density
        ddt -= density * width * z * inverse_root * inverse_root
    return t, dt, ddt


@njit(
    types.boolean(
        POINT_FUNCTION, Matrix, types.int64, types.int64, types.float64, types.float64, types.float64, types.float64,
        types.float64, Pointer, Pointer, types.float64, types.float64, types.int64, FloatArray,
    ),
    **INNER,
)  # fmt: skip
def points_in_the_field(
    slopes, points, n, count, reach, h_centre, centre, scale, y, logits, parameters, gamma, sigma, branch, slope
):  # fmt: skip
    """Store proximal points of a rule in the field itself, from column n on; False if one was not found.

    For maps that are nearly linear over the field's width: a Gauss-Hermite rule of ``count`` points if ``reach`` is 0, else the
    trapezoid rule of ``count`` points within ``reach`` widths.
    """
    first = 0
    for k in range(len(_RULES)):
        if _RULES[k] == count:
            first = _RULE_STARTS[k]
    slopes(h_centre, y, logits, parameters, address(slope, 0))
    rate = 1.0 / (1.0 + gamma * slope[2])
    rounding = _ROUNDING * (abs(h_centre) + gamma * abs(slope[branch]) + abs(centre))
    tolerance = max(_GAUSS_TOLERANCE * sigma, rounding)
    place = h_centre + gamma * slope[branch]
    curvature = 0.5 * gamma * slope[3] * rate
    # A field this narrow is a point for the map: its curvature does not show, and rounding would swamp an iteration.
    linear = sigma * rate < _LINEAR_RATIO * scale or sigma < rounding
    spacing = 2.0 * reach / count
    for k in range(count):
        x = _RULE_NODES[first + k] if reach == 0.0 else (k + 0.5) * spacing - reach
        move = (sigma * x + centre - place) * rate
        h = h_centre + move * (1.0 - curvature * move)
        found = False
        derivative = 1.0
        for _ in range(_GAUSS_STEPS):
            slopes(h, y, logits, parameters, address(slope, 0))
            derivative = 1.0 + gamma * slope[2]
            excess = h + gamma * slope[branch] - (centre + sigma * x)
            if linear or abs(excess) < tolerance:
                found = True
                break
            move = -excess / derivative
            h += move
            if abs(excess) < _LAST_MOVE * sigma:
                slope[0] += move * (slope[2] + 0.5 * move * slope[3])
                slope[1] += move * (slope[2] + 0.5 * move * slope[3])
                slope[2] += move * slope[3]
                derivative = 1.0 + gamma * slope[2]
                found = True
                break
        if not found:
            return False
        points[H, n + k] = h
        points[LOW, n + k] = slope[0]
        points[HIGH, n + k] = slope[1]
        points[CURVATURE, n + k] = slope[2]
        points[THIRD, n + k] = slope[3]
        # What is summed is dh P'(h) exp(-g^2/2)/sqrt(2 pi)/sigma: dh is such that it comes out as the rule's weight.
        g = (h + gamma * slope[branch] - centre) / sigma
        weight = _RULE_WEIGHTS[first + k] if reach == 0.0 else spacing * math.exp(-0.5 * x * x)
        points[WEIGHT, n + k] = weight * math.exp(0.5 * g * g) * sigma / derivative
    return True


@njit(
    PointCount(
        POINT_FUNCTION, Matrix, types.int64, types.float64, types.float64, types.float64, types.float64, types.float64,
        types.float64, Pointer, Pointer, types.float64, types.float64, Matrix, types.int64, types.int64, types.boolean,
        FloatArray,
    ),
    **INNER,
)  # fmt: skip
def march(
    slopes, points, n, h, direction, limit, step, tolerance, y, logits, parameters, gamma, sigma, kinks, n_kinks, branch,
    first, slope,
):  # fmt: skip
    """Add points from ``h`` on, one step of t each, until P passes ``limit``.  Returns the table (grown if need be), the count.

    A point is predicted from the derivatives of h(t), then corrected by Halley's iteration in a bracket until ``tolerance`` in
    t; the last, tiny correction takes the slopes along by their Taylor series.
    """
    slopes(h, y, logits, parameters, address(slope, 0))
    t, dt, ddt = mapped(h, gamma, sigma, slope, branch, kinks, n_kinks)
    bend = -ddt / (dt * dt * dt)
    previous_bend = bend
    stride = direction * step
    store = first
    while True:
        if store:
            if n == points.shape[1]:
                points = enlarged(points)
            points[H, n] = h
            points[LOW, n] = slope[0]
            points[HIGH, n] = slope[1]
            points[CURVATURE, n] = slope[2]
            points[THIRD, n] = slope[3]
            points[WEIGHT, n] = step / dt
            n += 1
        store = True
        if direction * (h + gamma * slope[branch] - limit) >= 0.0:
            return points, n
        place = h + gamma * slope[branch]
        goal = t + stride
        low = h if direction > 0.0 else -np.inf
        high = np.inf if direction > 0.0 else h
        new = h + stride * (1.0 / dt + stride * (bend / 2.0 + (bend - previous_bend) / 6.0))
        if not (low < new < high):
            new = h + stride / dt
        for _ in range(BRACKET_STEPS):
            slopes(new, y, logits, parameters, address(slope, 0))
            t_new, dt, ddt = mapped(new, gamma, sigma, slope, branch, kinks, n_kinks)
            rest = goal - t_new
            move = rest / dt
            move /= max(1.0 + 0.5 * move * ddt / dt, 0.5)
            if abs(rest) < tolerance + 1e-14 * abs(goal):
                slope[0] += move * (slope[2] + 0.5 * move * slope[3])
                slope[1] += move * (slope[2] + 0.5 * move * slope[3])
                slope[2] += move * slope[3]
                dt += move * ddt
                new += move
                break
            if rest > 0.0:
                low = new
            else:
                high = new
            corrected = new + move
            if not (low < corrected < high):
                if low == -np.inf:
                    corrected = high - 2.0 * abs(stride) / dt
                elif high == np.inf:
                    corrected = low + 2.0 * abs(stride) / dt
                else:
                    corrected = 0.5 * (low + high)
            if corrected == new:
                break
            new = corrected
        if not direction * (new + gamma * slope[branch] - place) > 0.0:
            return points, n  # a step is lost in rounding: the field is narrower than doubles resolve
        h = new
        t = goal
        previous_bend = bend
        bend = -ddt / (dt * dt * dt)


@njit(
    types.void(POINT_FUNCTION, FloatArray, Matrix, FloatArray, FloatArray, FloatArray, IntArray),
    **INNER,
)
def choose_branches(targets, labels, logits, parameters, target, offset, branch):
    """For each node c measured from the nearer limit of S, which limit that is, and the distance of the two limits."""
    pair = np.empty(2)
    for i in range(target.size):
        targets(0.0, labels[i], address(logits, i * logits.shape[1]), address(parameters, 0), address(pair, 0))
        branch[i] = 1 if abs(pair[1]) < abs(pair[0]) else 0
        target[i] = pair[branch[i]]
        offset[i] = (pair[0] - pair[1]) * branch[i]


@njit(types.void(FloatArray, types.float64, types.float64, FloatArray), **INNER)
def half_widths(weight, tail, margin, reach):
    """Half-width, in units of sigma, of the range each node needs so that nothing above ``tail`` is cut; 0 drops a node."""
    largest = 0.0
    for i in range(weight.size):
        largest = max(largest, weight[i])
    for i in range(weight.size):
        ratio = weight[i] / (largest * tail)
        reach[i] = math.sqrt(2.0 * math.log(ratio)) + margin if ratio > 1.0 else 0.0


@njit(
    types.void(
        types.float64, types.float64, FloatArray, FloatArray, IntArray, Matrix, types.int64, types.int64, IntArray, types.int64,
        types.int64, IntArray, IntArray,
    ),
    **INNER,
)  # fmt: skip
def locate(
    gamma, sigma, centre, reach, branch, points, first, last, order, first_rank, last_rank, start, stop
):  # fmt: skip
    """Range of the points ``first <= j < last`` inside the width of each node of a run of ``order``.

    P increases along the points, and from node to node the ranges move little: they are found by walking on.
    """
    low = high = first
    for rank in range(first_rank, last_rank):
        i = order[rank]
        if reach[i] == 0.0:
            start[i] = stop[i] = first
            continue
        row = LOW + branch[i]
        goal = centre[i] - reach[i] * sigma
        while low < last and points[H, low] + gamma * points[row, low] < goal:
            low += 1
        while low > first and points[H, low - 1] + gamma * points[row, low - 1] >= goal:
            low -= 1
        goal = centre[i] + reach[i] * sigma
        while high < last and points[H, high] + gamma * points[row, high] < goal:
            high += 1
        while high > first and points[H, high - 1] + gamma * points[row, high - 1] >= goal:
            high -= 1
        # Whole vectors: later points if there are any, else earlier ones; both only refine the tails.
        lacking = -(high - low) % LANES
        later = min(lacking, last - high)
        stop[i] = high + later
        start[i] = max(first, low - (lacking - later))


@njit(
    PointCount(
        POINT_FUNCTION, POINT_FUNCTION, types.int64, types.int64, FloatArray, FloatArray, IntArray, FloatArray, FloatArray,
        Matrix, FloatArray, types.float64, types.float64, types.float64, types.float64, FloatArray, types.boolean,
        types.float64, Matrix, Matrix, IntArray, IntArray, IntArray,
    ),
    **INNER,
)  # fmt: skip
def build_grid(
    slopes, bends, n_bends, shareable, weight, centre, branch, offset, labels, logits, parameters, gamma, sigma, step,
    tolerance, reach, outer, sharpness, extra, points, start, stop, order,
):  # fmt: skip
    """Points that cover every node's Gaussian.

    Parameters
    ----------
    shareable : int
        SHARED if S depends on h alone, so that nodes can share points; plus SEARCHED if its bends are to be searched for.
    weight, centre, branch, labels, reach : arrays, shape (n,)
        Node weights, Gaussian centres in P and the branch P is measured on, labels y, half-widths in units of sigma (0: drop).
    offset : array, shape (n,)
        Distance of the two limits of S for nodes on branch 1, else 0.
    logits : array, shape (n, l)
        The earlier logits the loss looks at.
    step, tolerance : float
        Step in t, and how well a point must be placed there before its last correction (``MAP_TOLERANCE``, or a rough one).
    outer : bool
        Whether a later stage integrates over this grid: its integrand has a scale of its own, so that a Gauss rule will not do.
    sharpness : float
        Of the later stages' dependence on this stage's g, if ``outer``: how much of it moves their fields by one width.
    extra : array, shape (e, 2)
        Further (position, scale) bends in h to resolve.
    points : array, shape (6, p)
        Storage; the table returned is this one, or a larger one.
    start, stop : integer arrays, shape (n,), output
        Points of each node.
    order : integer array, shape (n,)
        A permutation of the nodes, overwritten by their order along the grid.

    Returns
    -------
    table of points (rows as in ``POINT_ROWS``), and how many of its columns are used.
    """
    n = weight.size
    kinks = np.empty((2 * n_bends + extra.shape[0] + 1, 3))
    found = np.empty(3 * n_bends + 1)
    slope = np.empty(4)
    values = address(parameters, 0)
    used = 0
    low = np.empty(n)
    share = shareable & SHARED != 0
    searched = shareable & SEARCHED != 0
    finest = np.inf
    for k in range(extra.shape[0]):
        finest = min(finest, extra[k, 1])
    may_rule = outer and not searched and step > _LAST_RULE_STEP and sharpness < _SHARPNESS[1]
    if may_rule and share and n_bends > 0:
        bends(0.0, labels[0], address(logits, 0), values, address(found, 0))
        share = not sigma < _OUTER_RATIO * min(smallest_scale(found, n_bends), finest)
    if share:
        for i in range(n):
            low[i] = centre[i] - reach[i] * sigma + gamma * offset[i]
        argsort(low, order)
        covered = 0.0
        alone = 0.0
        end = -np.inf
        for rank in range(n):
            i = order[rank]
            if reach[i] > 0.0:
                width = 2.0 * reach[i] * sigma
                covered += max(0.0, low[i] + width - max(low[i], end))
                end = max(end, low[i] + width)
                alone += width
        share = covered <= _SHARING_PAYS * alone and (outer or covered <= _SHARED_POINTS * n * step * sigma)
    h = 0.0
    if not share:
        for i in range(n):
            start[i] = used
            if reach[i] > 0.0:
                y = labels[i]
                earlier = address(logits, i * logits.shape[1])
                if searched:
                    half = reach[i] * sigma
                    points, used = panels(
                        slopes, points, used, centre[i] - half, centre[i] + half, h, centre[i], step, y, earlier, values, gamma,
                        sigma, extra, branch[i],
                    )  # fmt: skip
                    if used > start[i]:
                        h = points[H, start[i]]
                        stop[i] = used
                        continue
                n_kinks = find_kinks(bends, n_bends, y, earlier, values, gamma, sigma, extra, found, kinks)
                scale = smallest_scale(found, n_bends)
                # Enough for a start, unless the field is so narrow that this is the only point that is solved for.
                place = _PLACE * sigma if sigma > _PLACE * scale else 0.0
                h = proximal_point(slopes, centre[i], h, place, y, earlier, values, gamma, branch[i], slope)
                slopes(h, y, earlier, values, address(slope, 0))
                # Few points do where the map is nearly linear; but a later stage's integrand has a scale of its own.
                rule = may_rule and sigma < _OUTER_RATIO * min(scale, finest)
                narrow = _POINT_RATIO * min(scale, 1.0) if outer else _GAUSS_RATIO * step * scale
                if rule or searched or sigma < narrow * (1.0 + gamma * slope[2]):
                    half = reach[i] if outer and not rule else 0.0
                    count = LANES
                    if rule:
                        finer = (step < _RULE_STEPS[0]) + (step < _RULE_STEPS[1]) + (sharpness > _SHARPNESS[0])
                        count = _OUTER_RULES[finer]
                    while half > 0.0 and count * step < 2.0 * half:
                        count += LANES
                    while used + count > points.shape[1]:
                        points = enlarged(points)
                    if points_in_the_field(
                        slopes, points, used, count, half, h, centre[i], scale, y, earlier, values, gamma, sigma, branch[i],
                        slope,
                    ):  # fmt: skip
                        used += count
                        stop[i] = used
                        continue
                for side in range(2):
                    direction = 2.0 * side - 1.0
                    points, used = march(
                        slopes, points, used, h, direction, centre[i] + direction * reach[i] * sigma, step, tolerance, y,
                        earlier, values, gamma, sigma, kinks, n_kinks, branch[i], side == 1, slope,
                    )  # fmt: skip
                points, used = pad(points, start[i], used)
            stop[i] = used
        return points, used

    earlier = address(logits, 0)
    n_kinks = find_kinks(bends, n_bends, labels[0], earlier, values, gamma, sigma, extra, found, kinks)
    rank = 0
    while rank < n:
        first_rank = rank
        i = order[rank]
        rank += 1
        if reach[i] == 0.0:
            continue
        end = low[i] + 2.0 * reach[i] * sigma
        limit = centre[i] + reach[i] * sigma
        while rank < n and low[order[rank]] <= end:
            j = order[rank]
            if reach[j] > 0.0 and low[j] + 2.0 * reach[j] * sigma > end:
                end = low[j] + 2.0 * reach[j] * sigma
                limit = end - gamma * offset[i]
            rank += 1
        h = proximal_point(
            slopes, centre[i] - reach[i] * sigma, h, _PLACE * sigma, labels[0], earlier, values, gamma, branch[i], slope
        )
        begun = used
        if searched:
            points, used = panels(
                slopes, points, used, centre[i] - reach[i] * sigma, limit, h, np.nan, step, labels[0], earlier, values, gamma,
                sigma, extra, branch[i],
            )  # fmt: skip
            locate(gamma, sigma, centre, reach, branch, points, begun, used, order, first_rank, rank, start, stop)
            continue
        points, used = march(
            slopes, points, used, h, 1.0, limit, step, tolerance, labels[0], earlier, values, gamma, sigma, kinks, n_kinks,
            branch[i], True, slope,
        )  # fmt: skip
        points, used = pad(points, begun, used)
        locate(gamma, sigma, centre, reach, branch, points, begun, used, order, first_rank, rank, start, stop)
    return points, used
