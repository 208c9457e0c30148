"""Points in the training logit h, one step of t apart.

The trapezoid rule converges geometrically in the variable

    t(h) = P(h)/sigma + sum_k kappa_k [asinh((h - h_k+)/(3 b_k)) + asinh((h - h_k-)/(3 b_k))],   P(h) = h + gamma S(h),

which spaces points by a fraction of the field's width in ``P`` and, near the kinks ``h_k+- = c_k +- b_k ln(4 gamma s_k)``
of the proximal map, by a fraction of the loss's own scale ``b_k``.  (Gauss-Hermite in the field fails there: the map has
branch points a distance of order ``b_k`` from the real axis.)  Centres ``c_k``, scales ``b_k`` and curvatures ``s_k`` are
read off the loss by ``theory``.

Rough points are found by the derivatives of h(t), or where an older grid has points; the wanted ones between them, all at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import part_matrix, stack, stack_matrix
from numerics.scalar.kernels.elementary import (
    INNER,
    LEAF,
    PLAIN,
    FloatArray,
    Matrix,
    address,
    log_positive,
)
from numerics.scalar.kernels.kept import (
    STEEP,
    TRAIL,
    Trail,
)
from numerics.scalar.kernels.layout import (
    FIELD,
    JUMP_SCALE,
    LOSS,
    POSITION,
    RULE,
    SAMPLE,
    SCALE,
    TABLE,
    Table,
    record,
)
from numerics.scalar.kernels.panels import reach_of
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
    slopes_at,
    with_room,
)

_KINK_WIDTH = 3.0
_KINK_POINTS = 3.0
_JUMP_POINTS = 2.5
MAP_TOLERANCE = 1e-6  # in t; the correction that follows leaves its cube in the position, its square in the weight
_ROUGH_STRIDE = 3.0  # steps of t from one rough point to the next
_LARGEST_ADVANCE, _FAR_ADVANCE = 2.0, 8.0  # strides, above which a rough point is too far, and much too far
_ROUGH_POINTS = 40
_MOST_BETWEEN = 256  # not less than a stride of steps for each advance of rough points
_PASSES = 3  # of points that are corrected all together
_LOGARITHMS = 8  # of as many kinks at most is taken one logarithm
_TINY = 1e-300


WIDTH, STRENGTH = 1, 2
"""Columns of kinks, after ``POSITION``."""

_CENTRES, _SCALES, _STRENGTHS = range(3)  # rows of a loss's bends

AT, PLACE, RATE, BEND = range(4)
"""Rows of rough points: t, h, dh/dt and d2h/dt2.  Work on points has t, dt/dh and d2t/dh2 in three of them."""

PRODUCT, GOAL, ORIGIN, SLOPE = range(4, 8)
"""Further rows of work on points."""

WORK_ROWS = 8
_ROUGH_ROOM = POINT_ROWS + WORK_ROWS


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
            steep = min(max((field.sigma / scale - STEEP) / STEEP, 0.0), 1.0)
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


@njit(types.UniTuple(types.int64, 2)(SAMPLE, FIELD, Matrix, types.float64, types.float64, Matrix, types.int64), **PLAIN)
def sketch(sample, field, kinks, limit, stride, rough, known):
    """Go on from the last of the ``known`` of ``rough`` points (rows ``AT``, ``PLACE``, ``RATE``, ``BEND``: t, h, dh/dt, d2h/dt2),
    about one stride of t at a time, until P passes ``limit``.

    Returns
    -------
    The number of points, and whether there are more to come: there may be no room.
    """
    gamma, branch = field.gamma, sample.branch
    direction = 1.0 if stride > 0.0 else -1.0
    slope = stack(4)
    h = rough[PLACE, known - 1]
    slopes_at(sample, h, slope)
    place = h + gamma * slope[branch]
    t, dt, ddt = mapped(h, field, slope, branch, kinks)
    rough[AT, known - 1], rough[RATE, known - 1], rough[BEND, known - 1] = t, 1.0 / dt, -ddt / (dt * dt * dt)
    third = 0.0
    for n in range(known, rough.shape[1] + 1):
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


@njit(types.void(SAMPLE, types.int64, Matrix), **LEAF)
def slopes_along(sample, n, points):
    """S on the two branches, S', S'' at the first n points, into their rows."""
    width = points.shape[1]
    sample.along(
        n, sample.label, sample.logits, sample.parameters, address(points, H * width), address(points, LOW * width),
        address(points, HIGH * width), address(points, CURVATURE * width), address(points, THIRD * width),
    )  # fmt: skip


@njit(types.void(SAMPLE, FIELD, RULE, Matrix, Matrix, types.int64, Matrix, Matrix), **PLAIN)
def settle(sample, field, rule, kinks, rough, n, points, work):
    """Bring interpolated points to their t: all together, then, where that fails, one by one."""
    row = LOW + sample.branch
    for trial in range(_PASSES + 1):
        slopes_along(sample, n, points)
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


class Way(NamedTuple):
    """From h of the first point until P passes the limit, up (1) or down (-1); and the trail of an older grid."""

    h: float
    limit: float
    direction: float
    trail: Trail


WAY = record(Way, types.float64, types.float64, types.float64, TRAIL)


@njit(types.UniTuple(types.int64, 2)(SAMPLE, FIELD, Matrix, WAY, types.float64, Matrix, Matrix), **PLAIN)
def follow_trail(sample, field, kinks, way, stride, rough, room):
    """Go on from the first of ``rough`` points, as :func:`sketch` does, by points of a trail, as far as these are no further apart.

    Rows of ``room`` are those of points, then those of work.
    """
    direction, row, width = way.direction, LOW + sample.branch, room.shape[1]
    points, work = part_matrix(room, 0, POINT_ROWS, width), part_matrix(room, POINT_ROWS * width, WORK_ROWS, width)
    places = way.trail.places
    last = points[H, 0] = rough[PLACE, 0]
    n = 1
    for k in range(0, places.size, way.trail.stride):
        if n < width and direction * (places[k] - last) > 0.0:
            last = points[H, n] = places[k]
            n += 1
    if n == 1:
        return 1, 1
    slopes_along(sample, n, points)
    map_points(n, field, kinks, points, work, row)
    before = -direction * np.inf
    for k in range(n):
        place, dt = points[H, k] + field.gamma * points[row, k], work[RATE, k]
        advance = (work[AT, k] - work[AT, k - 1]) / stride if k > 0 else 1.0
        if not (0.0 < advance < _LARGEST_ADVANCE and direction * (place - before) > 0.0):
            return k, 1
        before = place
        rough[AT, k], rough[PLACE, k], rough[RATE, k] = work[AT, k], points[H, k], 1.0 / dt
        rough[BEND, k] = -work[BEND, k] / (dt * dt * dt)
        if k > 0 and direction * (place - way.limit) >= 0.0:
            return k + 1, 0
    return n, 1


@njit(types.int64(SAMPLE, FIELD, RULE, Matrix, TABLE, WAY), **PLAIN)
def add_points(sample, field, rule, kinks, table, way):
    """As :func:`march`, where there is room: number of points used then; -1 if there is no room for these, and some to pad."""
    found, used = table.points, table.used
    gamma, row, direction, limit = field.gamma, LOW + sample.branch, way.direction, way.limit
    step = direction * rule.step
    stride = _ROUGH_STRIDE * step
    rough, points = stack_matrix(4, _ROUGH_POINTS), stack_matrix(POINT_ROWS, _MOST_BETWEEN)
    work, room = stack_matrix(WORK_ROWS, _MOST_BETWEEN), stack_matrix(_ROUGH_ROOM, _ROUGH_POINTS)
    # A step of t is not more than one of P over sigma: so the first point past the limit is before the last rough one.
    beyond = Way(way.h, limit + field.sigma * step, direction, Trail(owned(way.trail.places), way.trail.stride))
    rough[PLACE, 0] = way.h
    place = -direction * np.inf
    goal = np.nan
    more = 1
    while more == 1:
        count, more = follow_trail(sample, field, kinks, beyond, stride, rough, room)
        if more == 1:
            count, more = sketch(sample, field, kinks, beyond.limit, stride, rough, max(count, 1))
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


@njit(TABLE(SAMPLE, FIELD, RULE, Matrix, TABLE, WAY), **INNER)
def march(sample, field, rule, kinks, table, way):
    """Add points along a way, one step of t each; upwards with that at its beginning, downwards without."""
    used = add_points(sample, field, rule, kinks, table, way)
    if used >= 0:
        return Table(owned(table.points), used)
    larger = with_room(table, table.points.shape[1] - table.used + 1)
    while True:
        used = add_points(sample, field, rule, kinks, larger, way)
        if used >= 0:
            return Table(larger.points, used)
        larger = with_room(larger, larger.points.shape[1] - larger.used + 1)
