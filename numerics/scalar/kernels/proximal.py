"""The table of points in a stage's training logit h, and the proximal point that turns a field into a logit.

A loss enters as compiled functions ``(h, y, logits, parameters, out)`` called through pointers, so that kernels are compiled
once for all losses.  ``slopes`` gives S measured from its limits at -oo and at +oo (branch 0 and branch 1), S', S''; ``targets``
gives c measured likewise; ``bends`` gives rows of centres, scales and strengths.  See ``codegen/losses.py``.
"""

from __future__ import annotations

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import INNER, OPTIONS, POINT_FUNCTION, FloatArray, Matrix, Pointer, address

POINT_ROWS = 6
H, LOW, HIGH, CURVATURE, THIRD, WEIGHT = range(POINT_ROWS)
"""Rows of a point table: h, S on the two branches, S', S'', trapezoid weight dh."""

LANES = 8
"""Nodes get a multiple of this many points: the loop over them then has no scalar remainder."""

BRACKET_STEPS = 1100

PointCount = types.Tuple((Matrix, types.int64))


@njit(
    types.float64(
        POINT_FUNCTION, types.float64, types.float64, types.float64, types.float64, Pointer, Pointer, types.float64, types.int64,
        FloatArray,
    ),
    **INNER,
)  # fmt: skip
def proximal_point(slopes, u, guess, tolerance, y, logits, parameters, gamma, branch, slope):
    """Solution h of ``h + gamma S(h) = u``, S and u measured on ``branch``, by bracketed Newton; S increasing makes it unique.

    It ends with a step that starts within ``tolerance`` of u, or with one that rounding makes.
    """
    low, high = -np.inf, np.inf
    h = guess
    for _ in range(BRACKET_STEPS):
        slopes(h, y, logits, parameters, address(slope, 0))
        excess = h + gamma * slope[branch] - u
        if excess < 0.0:
            low = h
        else:
            high = h
        new = h - excess / (1.0 + gamma * slope[2])
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


@njit(Matrix(Matrix), **OPTIONS)
def enlarged(points):
    """A table with room for twice as many points."""
    used = points.shape[1]
    larger = np.empty((POINT_ROWS, 2 * used))
    for r in range(POINT_ROWS):
        for j in range(used):
            larger[r, j] = points[r, j]
    return larger


@njit(PointCount(Matrix, types.int64, types.int64), **INNER)
def pad(points, begun, used):
    """Repeat the last point, without weight, until there is a multiple of ``LANES`` points since ``begun``."""
    while (used - begun) % LANES != 0 and used > begun:
        if used == points.shape[1]:
            points = enlarged(points)
        for r in range(POINT_ROWS):
            points[r, used] = points[r, used - 1]
        points[WEIGHT, used] = 0.0
        used += 1
    return points, used
