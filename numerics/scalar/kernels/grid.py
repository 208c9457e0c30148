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

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import PART_MATRIX, integer_part, part, part_matrix, stack, stack_matrix
from numerics.scalar.kernels.elementary import (
    INNER,
    LATE,
    LEAF,
    PLAIN,
    SEARCHED,
    SHARED,
    FloatArray,
    Matrix,
    address,
    argsort,
    log_positive,
)
from numerics.scalar.kernels.layout import (
    FIELD,
    JUMP_SCALE,
    LOSS,
    POSITION,
    RULE,
    SAMPLE,
    SAMPLES,
    SCALE,
    TABLE,
    Sample,
    Samples,
    Table,
    as_integers,
    cut,
    new_room,
)
from numerics.scalar.kernels.panels import panels, reach_of
from numerics.scalar.kernels.proximal import (
    BRACKET_STEPS,
    CURVATURE,
    HIGH,
    LANES,
    LOW,
    POINT_ROWS,
    S1,
    S2,
    THIRD,
    WEIGHT,
    H,
    pad,
    proximal_point,
    slopes_at,
    with_room,
)

MARGIN = 0.5  # in widths, so that a grid whose nodes drift a little still covers them
_KINK_WIDTH = 3.0
_KINK_POINTS = 3.0
_JUMP_POINTS = 2.5
_STEEP = 4.0  # widths of a field over the scale of a target, from which on more than its bend itself is resolved
MAP_TOLERANCE = 1e-6  # in t; the correction that follows leaves its cube in the position, its square in the weight
_ROUGH_STRIDE = 3.0  # steps of t from one rough point to the next
_LARGEST_ADVANCE, _FAR_ADVANCE = 2.0, 8.0  # strides, above which a rough point is too far, and much too far
_ROUGH_POINTS = 40
_MOST_BETWEEN = 256  # not less than a stride of steps for each advance of rough points
_PASSES = 3  # of points that are corrected all together
_LOGARITHMS = 8  # of as many kinks at most is taken one logarithm
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


WIDTH, STRENGTH = 1, 2
"""Columns of kinks, after ``POSITION``."""

_CENTRES, _SCALES, _STRENGTHS = range(3)  # rows of a loss's bends

AT, PLACE, RATE, BEND = range(4)
"""Rows of rough points: t, h, dh/dt and d2h/dt2.  Work on points has t, dt/dh and d2t/dh2 in three of them."""

PRODUCT, GOAL, ORIGIN, SLOPE = range(4, 8)
"""Further rows of work on points."""

WORK_ROWS = 8


@njit(SAMPLE(LOSS, SAMPLES, types.int64), **LEAF)
def sample_at(loss, samples, i):
    """The loss at node i."""
    return Sample(
        loss.along, loss.slopes, samples.labels[i], address(samples.logits, i * samples.logits.shape[1]),
        address(loss.parameters, 0), samples.branch[i],
    )  # fmt: skip


@njit(types.void(LOSS, SAMPLE, Matrix), **PLAIN)
def bends_at(loss, sample, found):
    """Centres, scales and strengths of the loss's bends at one node, into rows of ``found``, shape (3, n_bends)."""
    if loss.n_bends > 0:
        loss.bends(0.0, sample.label, sample.logits, sample.parameters, address(found, 0))


@njit(types.int64(FIELD, Matrix, RULE, Matrix), **PLAIN)
def find_kinks(field, found, rule, kinks):
    """Fill rows (``POSITION``, ``WIDTH``, ``STRENGTH``) of ``kinks`` from a loss's bends and others; returns how many.

    A target that is steep for the field is resolved as far as it pulls at later ones; see :func:`reach_of`.
    """
    n = 0
    for k in range(found.shape[1]):
        centre, scale, strength = found[_CENTRES, k], found[_SCALES, k], abs(found[_STRENGTHS, k])
        if not (0.0 < strength < np.inf and 0.0 < scale < np.inf and math.isfinite(centre)):
            continue
        amount = _KINK_POINTS * min(max((field.sigma / scale - 0.5) / 3.5, 0.0), 1.0)
        if amount == 0.0:
            continue
        reach = scale * max(0.0, math.log(4.0 * field.gamma * strength + _TINY))
        for side in range(2):
            kinks[n, POSITION] = centre + (reach if side == 1 else -reach)
            kinks[n, WIDTH] = _KINK_WIDTH * scale
            kinks[n, STRENGTH] = amount
            n += 1
    extra = rule.extra
    for k in range(extra.shape[0]):
        # A jump (a bend of hardly any width) has nothing to resolve but its place: the points only have to close in on it.
        jump, scale = extra[k, SCALE] < JUMP_SCALE, extra[k, SCALE]
        amount = _JUMP_POINTS if jump else 2.0 * _KINK_POINTS
        amount *= min(max((field.sigma / scale - 0.5) / 3.5, 0.0), 1.0)
        if amount > 0.0:
            width = _KINK_WIDTH
            steep = min(max((field.sigma / scale - _STEEP) / _STEEP, 0.0), 1.0)
            if steep > 0.0 and not jump:
                width = max(width, steep * reach_of(scale, rule.sharpness.pull) / scale)
            kinks[n, POSITION] = extra[k, POSITION]
            kinks[n, WIDTH] = width * scale
            kinks[n, STRENGTH] = amount * width / _KINK_WIDTH
            n += 1
    return n


@njit(types.float64(Matrix), **LEAF)
def smallest_scale(found):
    """Smallest scale on which the loss's gradient bends; infinite for a linear gradient."""
    smallest = np.inf
    for k in range(found.shape[1]):
        if abs(found[_STRENGTHS, k]) > 0.0:
            smallest = min(smallest, found[_SCALES, k])
    return smallest


@njit(
    types.UniTuple(types.float64, 3)(types.float64, FIELD, FloatArray, types.int64, Matrix), **LEAF
)  # fmt: skip
def mapped(h, field, slope, branch, kinks):
    """Mapped variable t(h), dt/dh and d2t/dh2, from the slopes of the loss at h."""
    inverse = 1.0 / field.sigma
    gamma = field.gamma
    t = (h + gamma * slope[branch]) * inverse
    dt = (1.0 + gamma * slope[S1]) * inverse
    ddt = gamma * slope[S2] * inverse
    product = 1.0
    n_kinks = kinks.shape[0]
    for k in range(n_kinks):
        strength = kinks[k, STRENGTH]
        width = 1.0 / kinks[k, WIDTH]
        z = (h - kinks[k, POSITION]) * width
        inverse_root = 1.0 / math.sqrt(1.0 + z * z)
        density = strength * width * inverse_root
        # asinh(z) = +-log(|z| + root): one logarithm for neighbours of the same strength, as the two sides of a kink are.
        grown = abs(z) + (1.0 + z * z) * inverse_root
        product *= grown if z >= 0.0 else 1.0 / grown
        if k + 1 == n_kinks or kinks[k + 1, STRENGTH] != strength or k % 8 == 7:
            t += strength * log_positive(product)
            product = 1.0
        dt += density
        ddt -= density * width * z * inverse_root * inverse_root
    return t, dt, ddt


@njit(types.void(Matrix, types.int64, types.float64, FloatArray), **LEAF)
def store(points, j, h, slope):
    """h, S on the two branches, S', S'' of a point."""
    points[H, j] = h
    points[LOW, j] = slope[0]
    points[HIGH, j] = slope[1]
    points[CURVATURE, j] = slope[S1]
    points[THIRD, j] = slope[S2]


@njit(types.float64(Matrix), **LEAF)
def finest_scale(extra):
    """Smallest scale of the further bends."""
    finest = np.inf
    for k in range(extra.shape[0]):
        finest = min(finest, extra[k, SCALE])
    return finest


@njit(types.void(types.float64, FloatArray), **LEAF)
def follow_slopes(move, slope):
    """Slopes a small ``move`` further, by their Taylor series."""
    slope[0] += move * (slope[S1] + 0.5 * move * slope[S2])
    slope[1] += move * (slope[S1] + 0.5 * move * slope[S2])
    slope[S1] += move * slope[S2]


@njit(
    types.boolean(SAMPLE, FIELD, TABLE, types.int64, types.float64, types.float64, types.float64, types.float64), **LATE
)  # fmt: skip
def points_in_the_field(sample, field, table, count, reach, h_centre, centre, scale):
    """Store proximal points of a rule in the field itself, after those of the table; False if one was not found.

    For maps that are nearly linear over the field's width: a Gauss-Hermite rule of ``count`` points if ``reach`` is 0, else the
    trapezoid rule of ``count`` points within ``reach`` widths.
    """
    sigma, gamma, branch = field.sigma, field.gamma, sample.branch
    first = 0
    for k in range(len(_RULES)):
        if _RULES[k] == count:
            first = _RULE_STARTS[k]
    slope = stack(4)
    slopes_at(sample, h_centre, slope)
    rate = 1.0 / (1.0 + gamma * slope[S1])
    rounding = _ROUNDING * (abs(h_centre) + gamma * abs(slope[branch]) + abs(centre))
    tolerance = max(_GAUSS_TOLERANCE * sigma, rounding)
    place = h_centre + gamma * slope[branch]
    curvature = 0.5 * gamma * slope[S2] * rate
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
            slopes_at(sample, h, slope)
            derivative = 1.0 + gamma * slope[S1]
            excess = h + gamma * slope[branch] - (centre + sigma * x)
            if linear or abs(excess) < tolerance:
                found = True
                break
            move = -excess / derivative
            h += move
            if abs(excess) < _LAST_MOVE * sigma:
                follow_slopes(move, slope)
                derivative = 1.0 + gamma * slope[S1]
                found = True
                break
        if not found:
            return False
        store(table.points, table.used + k, h, slope)
        # What is summed is dh P'(h) exp(-g^2/2)/sqrt(2 pi)/sigma: dh is such that it comes out as the rule's weight.
        g = (h + gamma * slope[branch] - centre) / sigma
        weight = _RULE_WEIGHTS[first + k] if reach == 0.0 else spacing * math.exp(-0.5 * x * x)
        table.points[WEIGHT, table.used + k] = weight * math.exp(0.5 * g * g) * sigma / derivative
    return True


# Points one step of t apart: rough ones by the derivatives of h(t), the wanted ones between them, all at once.


@njit(types.UniTuple(types.int64, 2)(SAMPLE, FIELD, Matrix, types.float64, types.float64, FloatArray, Matrix), **PLAIN)
def sketch(sample, field, kinks, limit, stride, slope, rough):
    """Go on from the first of ``rough`` points (rows ``AT``, ``PLACE``, ``RATE``, ``BEND``: t, h, dh/dt, d2h/dt2), about one
    stride of t at a time, until P passes ``limit``.

    Returns
    -------
    The number of points, and whether there are more to come: there may be no room.
    """
    gamma, branch = field.gamma, sample.branch
    direction = 1.0 if stride > 0.0 else -1.0
    h = rough[PLACE, 0]
    slopes_at(sample, h, slope)
    place = h + gamma * slope[branch]
    t, dt, ddt = mapped(h, field, slope, branch, kinks)
    rough[AT, 0], rough[RATE, 0], rough[BEND, 0] = t, 1.0 / dt, -ddt / (dt * dt * dt)
    third = 0.0
    for n in range(1, rough.shape[1] + 1):
        if not direction * (place - limit) < 0.0:
            return n, 0
        if n == rough.shape[1]:
            break
        last = n - 1
        t, h, rate, bend = rough[AT, last], rough[PLACE, last], rough[RATE, last], rough[BEND, last]
        move = stride * (rate + stride * (bend / 2.0 + stride * third / 6.0))
        if not 0.5 < move / (stride * rate) < 2.0:
            move = stride * rate
        for _ in range(BRACKET_STEPS):
            slopes_at(sample, h + move, slope)
            t_new, dt, ddt = mapped(h + move, field, slope, branch, kinks)
            advance = (t_new - t) / stride
            if advance < _LARGEST_ADVANCE or h + move == h:
                break
            move *= 0.5 if advance < _FAR_ADVANCE else 0.1
        before = place
        place = h + move + gamma * slope[branch]
        if not direction * (place - before) > 0.0:
            return n, 0  # a step is lost in rounding: the field is narrower than doubles resolve
        rough[AT, n], rough[PLACE, n], rough[RATE, n] = t_new, h + move, 1.0 / dt
        rough[BEND, n] = -ddt / (dt * dt * dt)
        third = (rough[BEND, n] - bend) / (t_new - t)
    return rough.shape[1], 1


@njit(types.int64(Matrix, types.int64, types.float64, types.float64, Matrix, Matrix), **PLAIN)
def between_rough(rough, count, first, step, points, work):
    """Interpolate h at ``t = first, first + step, ..``, as far as ``count`` rough points reach, into the first row of ``points``.

    Returns how many there are; ``work`` gets their t in row ``GOAL``, and in row ``ORIGIN`` the rough points that they follow.
    """
    direction = 1.0 if step > 0.0 else -1.0
    n = 0
    for k in range(count - 1):
        t0, length = rough[AT, k], rough[AT, k + 1] - rough[AT, k]
        h0, c1, c2 = rough[PLACE, k], length * rough[RATE, k], 0.5 * length**2 * rough[BEND, k]
        rise = rough[PLACE, k + 1] - h0 - c1 - c2
        slope = length * rough[RATE, k + 1] - c1 - 2.0 * c2
        bend = length**2 * rough[BEND, k + 1] - 2.0 * c2
        c3, c4, c5 = (
            10.0 * rise - 4.0 * slope + 0.5 * bend,
            -15.0 * rise + 7.0 * slope - bend,
            6.0 * rise - 3.0 * slope + 0.5 * bend,
        )
        while n < work.shape[1]:
            goal = first + n * step
            if direction * (goal - rough[AT, k + 1]) > 0.0:
                break
            s = (goal - t0) / length
            points[H, n] = h0 + s * (c1 + s * (c2 + s * (c3 + s * (c4 + s * c5))))
            work[GOAL, n] = goal
            work[ORIGIN, n] = k
            n += 1
    return n


@njit(types.float64(types.float64, types.float64, types.float64), **LEAF)
def halley(rest, dt, ddt):
    """Halley's correction of h where t is short of its goal by ``rest``, held back where it would be more than twice Newton's."""
    move = rest / dt
    return move / max(1.0 + 0.5 * move * ddt / dt, 0.5)


@njit(types.void(types.int64, FIELD, Matrix, Matrix, Matrix, types.int64), noalias=True, **PLAIN)
def map_points(n, field, kinks, points, work, row):
    """t, dt/dh and d2t/dh2 of points, as :func:`mapped` has them, into rows of ``work``; S is in a ``row`` of points."""
    gamma, inverse = field.gamma, 1.0 / field.sigma
    for j in range(np.uint64(n)):
        work[AT, j] = (points[H, j] + gamma * points[row, j]) * inverse
        work[RATE, j] = (1.0 + gamma * points[CURVATURE, j]) * inverse
        work[BEND, j] = gamma * points[THIRD, j] * inverse
    n_kinks = kinks.shape[0]
    together = 0
    for k in range(n_kinks):
        position, width, strength = kinks[k, POSITION], 1.0 / kinks[k, WIDTH], kinks[k, STRENGTH]
        if together == 0:
            for j in range(np.uint64(n)):
                work[PRODUCT, j] = 1.0
        for j in range(np.uint64(n)):
            z = (points[H, j] - position) * width
            inverse_root = 1.0 / math.sqrt(1.0 + z * z)
            density = strength * width * inverse_root
            grown = abs(z) + (1.0 + z * z) * inverse_root
            work[PRODUCT, j] *= grown if z >= 0.0 else 1.0 / grown
            work[RATE, j] += density
            work[BEND, j] -= density * width * z * inverse_root * inverse_root
        together += 1
        if k + 1 == n_kinks or kinks[k + 1, STRENGTH] != strength or together == _LOGARITHMS:
            for j in range(np.uint64(n)):
                work[AT, j] += strength * log_positive(work[PRODUCT, j])
            together = 0


@njit(types.int64(types.int64, RULE, Matrix, Matrix), noalias=True, **PLAIN)
def correct_points(n, rule, points, work):
    """Move points by Halley's correction, with the slopes by their Taylor series; returns how many had not been at their t."""
    astray = 0
    tolerance = rule.tolerance
    for j in range(np.uint64(n)):
        rest = work[GOAL, j] - work[AT, j]
        work[AT, j] = halley(rest, work[RATE, j], work[BEND, j])
        astray += 0 if abs(rest) < tolerance + 1e-14 * abs(work[GOAL, j]) else 1
    for j in range(np.uint64(n)):
        points[H, j] += work[AT, j]
    for j in range(np.uint64(n)):
        points[LOW, j] += work[AT, j] * (points[CURVATURE, j] + 0.5 * work[AT, j] * points[THIRD, j])
    for j in range(np.uint64(n)):
        points[HIGH, j] += work[AT, j] * (points[CURVATURE, j] + 0.5 * work[AT, j] * points[THIRD, j])
    for j in range(np.uint64(n)):
        points[CURVATURE, j] += work[AT, j] * points[THIRD, j]
    step = rule.step
    for j in range(np.uint64(n)):
        points[WEIGHT, j] = step / (work[RATE, j] + work[AT, j] * work[BEND, j])
    return astray


@njit(types.void(SAMPLE, FIELD, RULE, Matrix, Matrix, Matrix, types.int64), **PLAIN)
def find_astray(sample, field, rule, kinks, rough, work, j):
    """Bring a point of ``work`` (h in ``PRODUCT``) to its t by itself, between the two rough points on its sides."""
    k = int(work[ORIGIN, j])
    low, high = min(rough[PLACE, k], rough[PLACE, k + 1]), max(rough[PLACE, k], rough[PLACE, k + 1])
    goal, h, slope = work[GOAL, j], work[PRODUCT, j], work[SLOPE]
    for _ in range(BRACKET_STEPS):
        if not (low <= h <= high):
            h = 0.5 * (low + high)
        slopes_at(sample, h, slope)
        t, dt, ddt = mapped(h, field, slope, sample.branch, kinks)
        rest = goal - t
        if abs(rest) < rule.tolerance + 1e-14 * abs(goal):
            break
        if rest > 0.0:
            low = h
        else:
            high = h
        move = halley(rest, dt, ddt)
        new = h + move if low < h + move < high else 0.5 * (low + high)
        if new == h:
            break
        h = new
    work[PRODUCT, j] = h


@njit(types.void(SAMPLE, FIELD, RULE, Matrix, Matrix, types.int64, Matrix, Matrix), **PLAIN)
def settle(sample, field, rule, kinks, rough, n, points, work):
    """Bring interpolated points to their t: all together, then, where that fails, one by one."""
    row, width = LOW + sample.branch, points.shape[1]
    for trial in range(_PASSES + 1):
        sample.along(
            n, sample.label, sample.logits, sample.parameters, address(points, H * width), address(points, LOW * width),
            address(points, HIGH * width), address(points, CURVATURE * width), address(points, THIRD * width),
        )  # fmt: skip
        map_points(n, field, kinks, points, work, row)
        if trial == _PASSES:
            for j in range(n):
                if not abs(work[GOAL, j] - work[AT, j]) < rule.tolerance + 1e-14 * abs(work[GOAL, j]):
                    work[PRODUCT, j] = points[H, j]
                    find_astray(sample, field, rule, kinks, rough, work, j)
                    h, slope = work[PRODUCT, j], work[SLOPE]
                    slopes_at(sample, h, slope)
                    work[AT, j], work[RATE, j], work[BEND, j] = mapped(h, field, slope, sample.branch, kinks)
                    points[H, j], points[LOW, j], points[HIGH, j] = h, slope[0], slope[1]
                    points[CURVATURE, j], points[THIRD, j] = slope[S1], slope[S2]
        if correct_points(n, rule, points, work) == 0:
            break


@njit(
    types.int64(SAMPLE, FIELD, RULE, Matrix, TABLE, types.float64, types.float64, types.float64), **PLAIN
)  # fmt: skip
def add_points(sample, field, rule, kinks, table, h, limit, direction):
    """As :func:`march`, where there is room: number of points used then; -1 if there is no room for these, and some to pad."""
    found, used = table.points, table.used
    gamma, row = field.gamma, LOW + sample.branch
    step = direction * rule.step
    rough, points = stack_matrix(4, _ROUGH_POINTS), stack_matrix(POINT_ROWS, _MOST_BETWEEN)
    work = stack_matrix(WORK_ROWS, _MOST_BETWEEN)
    rough[PLACE, 0] = h
    place = -direction * np.inf
    goal = np.nan
    more = 1
    while more == 1:
        # A step of t is not more than one of P over sigma: so the first point past the limit is before the last rough one.
        count, more = sketch(sample, field, kinks, limit + field.sigma * step, _ROUGH_STRIDE * step, work[SLOPE], rough)
        if math.isnan(goal):
            goal = rough[AT, 0] if direction > 0.0 else rough[AT, 0] + step
        n = between_rough(rough, count, goal, step, points, work)
        goal += n * step
        settle(sample, field, rule, kinks, rough, n, points, work)
        if used + n + LANES > found.shape[1]:
            return -1
        for j in range(n):
            before = place
            place = points[H, j] + gamma * points[row, j]
            if not direction * (place - before) > 0.0:
                return used  # a step is lost in rounding: the field is narrower than doubles resolve
            for r in range(POINT_ROWS):
                found[r, used] = points[r, j]
            used += 1
            if direction * (place - limit) >= 0.0:
                return used
        rough[PLACE, 0] = rough[PLACE, count - 1]
    return used


@njit(
    TABLE(SAMPLE, FIELD, RULE, Matrix, TABLE, types.float64, types.float64, types.float64), **INNER
)  # fmt: skip
def march(sample, field, rule, kinks, table, h, limit, direction):
    """Add points from ``h`` on, one step of t each, until P passes ``limit``; upwards with that at h, downwards without."""
    used = add_points(sample, field, rule, kinks, table, h, limit, direction)
    if used >= 0:
        return Table(owned(table.points), used)
    larger = with_room(table, table.points.shape[1] - table.used + 1)
    while True:
        used = add_points(sample, field, rule, kinks, larger, h, limit, direction)
        if used >= 0:
            return Table(larger.points, used)
        larger = with_room(larger, larger.points.shape[1] - larger.used + 1)


@njit(types.void(FloatArray, types.float64, types.float64, FloatArray), **PLAIN)
def half_widths(weight, tail, margin, reach):
    """Half-width, in units of sigma, of the range each node needs so that nothing above ``tail`` is cut; 0 drops a node."""
    largest = 0.0
    for i in range(weight.size):
        largest = max(largest, weight[i])
    for i in range(weight.size):
        ratio = weight[i] / (largest * tail)
        reach[i] = math.sqrt(2.0 * math.log(ratio)) + margin if ratio > 1.0 else 0.0


@njit(SAMPLES(LOSS, FloatArray, FloatArray, Matrix, types.float64, FloatArray), **INNER)
def new_samples(loss, weight, labels, logits, tail, room):
    """A Gaussian for each of n nodes, its centre still to be filled in, with no points yet.

    ``room`` is for ``ROOM_OF_SAMPLES`` numbers a node.
    """
    n = weight.size
    parts = new_room(room, stack(1))
    samples = Samples(
        owned(labels), owned(logits), cut(parts, n), as_integers(cut(parts, n)), cut(parts, n), cut(parts, n), cut(parts, n),
        as_integers(cut(parts, n)), as_integers(cut(parts, n)), as_integers(cut(parts, n)), owned(room),
    )  # fmt: skip
    half_widths(weight, tail, MARGIN, samples.reach)
    pair = stack(2)
    for i in range(n):
        samples.start[i] = samples.stop[i] = 0
        samples.order[i] = i
        loss.targets(
            0.0, labels[i], address(logits, i * logits.shape[1]), address(loss.parameters, 0), address(pair, 0)
        )
        branch = 1 if abs(pair[1]) < abs(pair[0]) else 0
        samples.branch[i] = branch
        samples.target[i] = pair[branch]
        samples.offset[i] = (pair[0] - pair[1]) * branch
    return samples


@njit(SAMPLES(SAMPLES, types.int64, types.int64), **LATE)
def samples_between(samples, low, high):
    """Those of the nodes ``low <= i < high``, which get an order of their own."""
    n = high - low
    room = np.empty(n)
    order = integer_part(room, 0, n)
    for i in range(n):
        order[i] = i
    return Samples(
        samples.labels[low:high], samples.logits[low:high], part(samples.target, low, n), integer_part(samples.branch, low, n),
        part(samples.offset, low, n), part(samples.centre, low, n), part(samples.reach, low, n),
        integer_part(samples.start, low, n), integer_part(samples.stop, low, n), order, room,
    )  # fmt: skip


@njit(
    types.void(SAMPLES, FIELD, TABLE, types.int64, types.int64, types.int64), **PLAIN
)  # fmt: skip
def locate(samples, field, table, begun, first_rank, last_rank):
    """Range of the points from ``begun`` on inside the width of each node of a run of the order.

    P increases along the points, and from node to node the ranges move little: they are found by walking on.
    """
    points, last = table
    sigma, gamma = field.sigma, field.gamma
    low = high = begun
    for rank in range(first_rank, last_rank):
        i = samples.order[rank]
        reach = samples.reach[i] * sigma
        if reach == 0.0:
            samples.start[i] = samples.stop[i] = begun
            continue
        row = LOW + samples.branch[i]
        goal = samples.centre[i] - reach
        while low < last and points[H, low] + gamma * points[row, low] < goal:
            low += 1
        while low > begun and points[H, low - 1] + gamma * points[row, low - 1] >= goal:
            low -= 1
        goal = samples.centre[i] + reach
        while high < last and points[H, high] + gamma * points[row, high] < goal:
            high += 1
        while high > begun and points[H, high - 1] + gamma * points[row, high - 1] >= goal:
            high -= 1
        # Whole vectors: later points if there are any, else earlier ones; both only refine the tails.
        lacking = -(high - low) % LANES
        later = min(lacking, last - high)
        samples.stop[i] = high + later
        samples.start[i] = max(begun, low - (lacking - later))


@njit(types.boolean(SAMPLES, FIELD, RULE, FloatArray), **PLAIN)
def sharing_pays(samples, field, rule, low):
    """Sort the nodes by the ``low`` ends of their ranges in P; whether a grid for all takes fewer points than one for each."""
    argsort(low, samples.order)
    covered = 0.0
    alone = 0.0
    end = -np.inf
    for i in samples.order:
        if samples.reach[i] > 0.0:
            width = 2.0 * samples.reach[i] * field.sigma
            covered += max(0.0, low[i] + width - max(low[i], end))
            end = max(end, low[i] + width)
            alone += width
    few = covered <= _SHARED_POINTS * low.size * rule.step * field.sigma
    return covered <= _SHARING_PAYS * alone and (rule.outer or few)


@njit(types.boolean(LOSS, RULE), **PLAIN)
def gauss_may_do(loss, rule):
    """Whether a few points of a Gauss rule may do for what a later stage integrates over."""
    searched = loss.kind & SEARCHED != 0 and rule.sharing
    return rule.outer and not searched and rule.step > _LAST_RULE_STEP and rule.sharpness.direction < _SHARPNESS[1]


@njit(types.UniTuple(PART_MATRIX, 2)(LOSS, RULE, FloatArray), **LEAF)
def room_for_bends(loss, rule, room):
    """Where the bends of a loss go, shape (3, n_bends), and the kinks that they and others make; see :func:`room_needed`."""
    kinks = 2 * loss.n_bends + rule.extra.shape[0] + 1
    return part_matrix(room, 0, 3, loss.n_bends), part_matrix(room, 3 * loss.n_bends, kinks, 3)


@njit(types.int64(LOSS, RULE), **LEAF)
def room_needed(loss, rule):
    """By bends and kinks."""
    return 9 * loss.n_bends + 3 * rule.extra.shape[0] + 3


@njit(TABLE(LOSS, SAMPLES, FIELD, RULE, Matrix, FloatArray), **INNER)
def separate_points(loss, samples, field, rule, points, room):
    """Points for each node by itself; ``room`` is for :func:`room_for_bends`."""
    sigma, gamma, step = field.sigma, field.gamma, rule.step
    searched = loss.kind & SEARCHED != 0 and rule.sharing
    may_rule = gauss_may_do(loss, rule)
    finest = finest_scale(rule.extra)
    found, kinks = room_for_bends(loss, rule, room)
    slope = stack(4)
    table = Table(owned(points), 0)
    h = 0.0
    for i in range(samples.labels.size):
        begun = samples.start[i] = table.used
        if samples.reach[i] > 0.0:
            sample = sample_at(loss, samples, i)
            centre, half = samples.centre[i], samples.reach[i] * sigma
            if searched:
                table = panels(sample, field, rule, table, centre - half, centre + half, h, centre)
                if table.used > begun:
                    h = table.points[H, begun]
                    samples.stop[i] = table.used
                    continue
            bends_at(loss, sample, found)
            n_kinks = find_kinks(field, found, rule, kinks)
            scale = smallest_scale(found)
            # Enough for a start, unless the field is so narrow that this is the only point that is solved for.
            place = _PLACE * sigma if sigma > _PLACE * scale else 0.0
            h = proximal_point(sample, gamma, centre, h, place, slope)
            slopes_at(sample, h, slope)
            # Few points do where the map is nearly linear; but a later stage's integrand has a scale of its own.
            gauss = may_rule and sigma < _OUTER_RATIO * min(scale, finest)
            narrow = _POINT_RATIO * min(scale, 1.0) if rule.outer else _GAUSS_RATIO * step * scale
            if gauss or searched or sigma < narrow * (1.0 + gamma * slope[S1]):
                reach = samples.reach[i] if rule.outer and not gauss else 0.0
                count = LANES
                if gauss:
                    finer = (
                        (step < _RULE_STEPS[0]) + (step < _RULE_STEPS[1]) + (rule.sharpness.direction > _SHARPNESS[0])
                    )
                    count = _OUTER_RULES[finer]
                while reach > 0.0 and count * step < 2.0 * reach:
                    count += LANES
                table = with_room(table, count)
                if points_in_the_field(sample, field, table, count, reach, h, centre, scale):
                    table = Table(table.points, begun + count)
                    samples.stop[i] = table.used
                    continue
            for side in range(2):
                direction = 2.0 * side - 1.0
                table = march(
                    sample,
                    field,
                    rule,
                    part_matrix(kinks, 0, n_kinks, 3),
                    table,
                    h,
                    centre + direction * half,
                    direction,
                )
            table = Table(table.points, pad(table, begun))
        samples.stop[i] = table.used
    return table


@njit(TABLE(LOSS, SAMPLES, FIELD, RULE, Matrix, FloatArray, FloatArray), **INNER)
def shared_points(loss, samples, field, rule, points, low, room):
    """Points for runs of nodes whose ranges overlap; they begin at ``low`` in P on branch 0, and are in this order.

    ``room`` is for :func:`room_for_bends`.
    """
    sigma, gamma, order = field.sigma, field.gamma, samples.order
    found, kinks = room_for_bends(loss, rule, room)
    slope = stack(4)
    any_sample = sample_at(loss, samples, 0)
    bends_at(loss, any_sample, found)
    n_kinks = find_kinks(field, found, rule, kinks)
    table = Table(owned(points), 0)
    h = 0.0
    rank = 0
    while rank < order.size:
        first_rank = rank
        i = order[rank]
        rank += 1
        if samples.reach[i] == 0.0:
            continue
        begin = samples.centre[i] - samples.reach[i] * sigma
        end = low[i] + 2.0 * samples.reach[i] * sigma
        limit = samples.centre[i] + samples.reach[i] * sigma
        while rank < order.size and low[order[rank]] <= end:
            j = order[rank]
            if samples.reach[j] > 0.0 and low[j] + 2.0 * samples.reach[j] * sigma > end:
                end = low[j] + 2.0 * samples.reach[j] * sigma
                limit = end - gamma * samples.offset[i]
            rank += 1
        sample = Sample(
            any_sample.along,
            any_sample.slopes,
            any_sample.label,
            any_sample.logits,
            any_sample.parameters,
            samples.branch[i],
        )
        h = proximal_point(sample, gamma, begin, h, _PLACE * sigma, slope)
        begun = table.used
        if loss.kind & SEARCHED != 0:
            table = panels(sample, field, rule, table, begin, limit, h, np.nan)
        else:
            table = march(sample, field, rule, part_matrix(kinks, 0, n_kinks, 3), table, h, limit, 1.0)
            table = Table(table.points, pad(table, begun))
        locate(samples, field, table, begun, first_rank, rank)
    return table


@njit(TABLE(LOSS, SAMPLES, FIELD, RULE, Matrix), **INNER)
def build_grid(loss, samples, field, rule, points):
    """Points that cover every node's Gaussian, and which of them are whose.

    Parameters
    ----------
    samples
        ``start``, ``stop`` and ``order`` are filled in.
    points : array, shape (6, p)
        Storage; the table returned is this one, or a larger one.
    """
    needed, n = room_needed(loss, rule), samples.labels.size
    share = loss.kind & SHARED != 0 and rule.sharing
    room = np.empty(needed + n)
    if share and loss.n_bends > 0 and gauss_may_do(loss, rule):
        found, _ = room_for_bends(loss, rule, room)
        bends_at(loss, sample_at(loss, samples, 0), found)
        share = not field.sigma < _OUTER_RATIO * min(smallest_scale(found), finest_scale(rule.extra))
    if share:
        low = room[needed:]
        for i in range(n):
            low[i] = samples.centre[i] - samples.reach[i] * field.sigma + field.gamma * samples.offset[i]
        if sharing_pays(samples, field, rule, low):
            return shared_points(loss, samples, field, rule, points, low, room)
    return separate_points(loss, samples, field, rule, points, room)
