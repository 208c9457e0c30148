"""The table of points in a stage's training logit h, and the proximal point that turns a field into a logit.

A loss enters as compiled functions ``(h, y, logits, parameters, out)`` called through pointers, so that kernels are compiled
once for all losses.  ``slopes`` gives S measured from its limits at -oo and at +oo (branch 0 and branch 1), S', S''; ``targets``
gives c measured likewise; ``bends`` gives rows of centres, scales and strengths.  See ``codegen/losses.py``.
"""

from __future__ import annotations

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import LATE, LEAF, PLAIN, FloatArray, Matrix, address
from numerics.scalar.kernels.layout import SAMPLE, TABLE, Table

POINT_ROWS = 6
H, LOW, HIGH, CURVATURE, THIRD, WEIGHT = range(POINT_ROWS)
"""Rows of a point table: h, S on the two branches, S', S'', trapezoid weight dh."""

LANES = 8
"""Nodes get a multiple of this many points: the loop over them then has no scalar remainder."""

S1, S2 = 2, 3
"""Entries of what a loss's ``slopes`` writes, after S on the two branches."""

BRACKET_STEPS = 1100


@njit(types.void(SAMPLE, types.float64, FloatArray), **LEAF)
def slopes_at(sample, h, slope):
    """S on the two branches, S', S'' at h, into ``slope``."""
    sample.slopes(h, sample.label, sample.logits, sample.parameters, address(slope, 0))


@njit(
    types.float64(SAMPLE, types.float64, types.float64, types.float64, types.float64, FloatArray), **PLAIN
)  # fmt: skip
def proximal_point(sample, gamma, u, guess, tolerance, slope):
    """Solution h of ``h + gamma S(h) = u``, S and u measured on the sample's branch, by bracketed Newton; S increasing makes it
    unique.

    It ends with a step that starts within ``tolerance`` of u, or with one that rounding makes.
    """
    low, high = -np.inf, np.inf
    h = guess
    for _ in range(BRACKET_STEPS):
        slopes_at(sample, h, slope)
        excess = h + gamma * slope[sample.branch] - u
        if excess < 0.0:
            low = h
        else:
            high = h
        new = h - excess / (1.0 + gamma * slope[S1])
        if abs(excess) <= tolerance:
            return new
        if not (low < new < high):
            if low == -np.inf:
                new = min(new, h - 1.0)
            elif high == np.inf:
                new = max(new, h + 1.0)
            else:
                new = 0.5 * (low + high)
        if abs(new - h) <= 1e-15 * abs(h):
            return new
        h = new
    return h


@njit(types.void(Matrix, types.int64, Matrix), **LEAF)
def copy_points(source, used, target):
    """The first points of a table to another one."""
    for r in range(POINT_ROWS):
        for j in range(np.uint64(used)):
            target[r, j] = source[r, j]


@njit(TABLE(TABLE, types.int64), **LATE)
def with_room(table, wanted):
    """The table, or one large enough for so many more points."""
    points, used = table.points, table.used
    capacity = points.shape[1]
    if used + wanted <= capacity:
        return Table(owned(points), used)
    while used + wanted > capacity:
        capacity *= 2
    larger = np.empty((POINT_ROWS, capacity))
    copy_points(points, used, larger)
    return Table(larger, used)


@njit(types.int64(TABLE, types.int64), **PLAIN)
def pad(table, begun):
    """Repeat the last point, without weight, until there is a multiple of ``LANES`` points since ``begun``; there is room.

    Returns how many points are used then.
    """
    lacking = -(table.used - begun) % LANES
    points, used = table.points, table.used
    for j in range(used, used + lacking):
        for r in range(POINT_ROWS):
            points[r, j] = points[r, used - 1]
        points[WEIGHT, j] = 0.0
    return used + lacking
