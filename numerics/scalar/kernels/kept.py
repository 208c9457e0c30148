"""Grids that the next one of a stage can use: what points in h hold of the loss says nothing of the field they were spaced for.

Fields of neighbours on a curve differ by little, and the trapezoid rule takes any smooth map: points that are spaced for a field do
for others of about its width, as far as they reach.  Where they do not, new ones are found from them.  A grid is kept as it was
made, in runs: of points for many nodes, or for one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import PART, part, part_matrix
from numerics.scalar.kernels.elementary import INNER, LEAF, PLAIN, FloatArray
from numerics.scalar.kernels.layout import FIELD, JUMP_SCALE, LOSS, POSITION, RULE, SCALE, TABLE, Table, record
from numerics.scalar.kernels.proximal import LOW, POINT_ROWS, H, copy_points, with_room

STEEP = 4.0  # widths of a field over the scale of a target, from which on more than its bend itself is resolved
_COARSER, _FINER = 1.1, 0.6  # between which steps may be in the widths of another field, for its points to do
_TRAIL_STRIDE = 3.0  # steps from one of the old points to the next that new ones are found between
_DRIFT = 0.1  # relative change of the pull at steep targets, likewise
MOST_POINTS, MOST_RUNS = 320, 16
_MOST_PARAMETERS = 40
_USED, _MARGIN, _SHARED, _RUNS, _STEP, _SIGMA, _GAMMA, _PULL, _BENDS, _PARAMETERS = range(10)
_ENDS = _PARAMETERS + _MOST_PARAMETERS
_POINTS = _ENDS + MOST_RUNS
KEPT_NUMBERS = _POINTS + POINT_ROWS * MOST_POINTS
"""Of one grid: how many points, how far beyond what nodes need, for whom, in how many runs; its step, the field, what S and its
bends depend on; where runs end; the points."""

OF_TRAINING, OF_NODES = 0, 1
"""Grids of a stage."""


@njit(PART(FloatArray, types.int64, types.int64), **{**LEAF, "plain": False})
def kept_at(grids, t, use):
    """Where a grid of stage t is kept; nowhere if there is no room for any."""
    if grids.size == 0:
        return part(grids, 0, 0)
    return part(grids, (2 * t + use) * KEPT_NUMBERS, KEPT_NUMBERS)


@njit(types.int64(types.int64), **LEAF)
def room_of_grids(stages):
    """Numbers that those of a chain take."""
    return 2 * stages * KEPT_NUMBERS


@njit(types.void(FloatArray, types.float64), **PLAIN)
def forget_grids(grids, margin):
    """Nothing is kept.  From now on grids go further than they need to by a ``margin``, in widths of the field."""
    for first in range(0, grids.size, KEPT_NUMBERS):
        grids[first + _USED], grids[first + _MARGIN] = 0.0, margin


@njit(types.float64(RULE), **LEAF)
def margin_of(rule):
    """See :func:`forget_grids`."""
    return rule.kept[_MARGIN] if rule.kept.size > 0 else 0.0


# To keep one.


@njit(types.void(FloatArray, types.int64, types.int64), **LEAF)
def end_run(ends, run, used):
    """A run of a grid ends where so many points are used."""
    if run < ends.size:
        ends[run] = float(used)


@njit(types.void(LOSS, FIELD, RULE, TABLE, types.boolean, types.int64, FloatArray), **PLAIN)
def keep_grid(loss, field, rule, table, shared, runs, ends):
    """Keep a grid of so many runs, if there is room; with none, keep nothing."""
    kept, extra = rule.kept, rule.extra
    if kept.size == 0:
        return
    kept[_USED] = 0.0
    n_parameters = loss.parameters.size + 2 * extra.shape[0]
    if not (0 < runs <= MOST_RUNS and table.used <= MOST_POINTS and n_parameters <= _MOST_PARAMETERS):
        return
    kept[_USED], kept[_RUNS], kept[_STEP] = float(table.used), float(runs), rule.step
    kept[_SHARED] = 1.0 if shared else 0.0
    kept[_SIGMA], kept[_GAMMA], kept[_PULL] = field.sigma, field.gamma, rule.sharpness.pull
    kept[_BENDS] = float(extra.shape[0])
    n = _PARAMETERS
    for r in range(loss.parameters.size):
        kept[n] = loss.parameters[r]
        n += 1
    for r in range(extra.shape[0]):
        kept[n], kept[n + 1] = extra[r, POSITION], extra[r, SCALE]
        n += 2
    for run in range(runs):
        kept[_ENDS + run] = ends[run]
    copy_points(table.points, table.used, part_matrix(kept, _POINTS, POINT_ROWS, MOST_POINTS))


# To use it.


@njit(types.boolean(LOSS, FIELD, RULE, types.boolean), **PLAIN)
def grid_suits(loss, field, rule, shared):
    """Whether the grid that is kept, if there is one, was made for such a field; how far it reaches is another question."""
    kept, extra = rule.kept, rule.extra
    if kept.size == 0 or kept[_USED] == 0.0 or kept[_SHARED] != (1.0 if shared else 0.0) or kept[_STEP] != rule.step:
        return False
    if kept[_BENDS] != extra.shape[0]:
        return False
    # Steps in P change with S where P does, and are as they were elsewhere.
    narrower, pulled = kept[_SIGMA] / field.sigma, field.gamma / kept[_GAMMA]
    suits = narrower * max(pulled, 1.0) <= _COARSER and narrower * min(pulled, 1.0) >= _FINER
    for r in range(extra.shape[0]):
        if extra[r, SCALE] >= JUMP_SCALE and field.sigma > STEEP * extra[r, SCALE]:
            suits = suits and abs(rule.sharpness.pull - kept[_PULL]) <= _DRIFT * kept[_PULL]
    n = _PARAMETERS
    for r in range(loss.parameters.size):
        suits = suits and kept[n] == loss.parameters[r]
        n += 1
    for r in range(extra.shape[0]):
        suits = suits and kept[n] == extra[r, POSITION] and kept[n + 1] == extra[r, SCALE]
        n += 2
    return suits


@njit(TABLE(RULE, TABLE), **INNER)
def table_of_kept(rule, table):
    """The points that are kept, in place of those of an empty table."""
    used = int(rule.kept[_USED])
    if table.points.shape[1] < used:
        table = with_room(table, used)
    copy_points(part_matrix(rule.kept, _POINTS, POINT_ROWS, MOST_POINTS), used, table.points)
    return Table(owned(table.points), used)


@njit(types.int64(RULE), **LEAF)
def number_of_runs(rule):
    """Of the grid that is kept."""
    return int(rule.kept[_RUNS])


@njit(types.UniTuple(types.int64, 2)(RULE, types.int64), **LEAF)
def kept_run(rule, run):
    """Which points a run has: none if there is no such run."""
    kept = rule.kept
    if run >= kept[_RUNS]:
        return 0, 0
    return int(kept[_ENDS + run - 1]) if run > 0 else 0, int(kept[_ENDS + run])


@njit(types.boolean(FIELD, TABLE, types.int64, types.int64, types.float64, types.float64), **PLAIN)
def is_covered(field, table, branch, first, begin, limit):
    """Whether points from ``first`` to the last one of the table reach from ``begin`` to ``limit`` in P, measured on a branch."""
    points, row = table.points, LOW + branch
    low, high = np.inf, -np.inf
    for j in range(first, table.used):
        place = points[H, j] + field.gamma * points[row, j]
        low, high = min(low, place), max(high, place)
    return low <= begin and high >= limit


class Trail(NamedTuple):
    """Where points were: what is left of them to pass, and how many of them to take a step."""

    places: np.ndarray
    stride: int


TRAIL = record(Trail, PART, types.int64)


@njit(TRAIL(RULE, types.int64), **{**LEAF, "plain": False})
def trail_of(rule, run):
    """The points of a run that is kept, of whatever field, loss and step; none if there is no such run."""
    first = count = 0
    stride = 1
    if rule.kept.size > 0 and rule.kept[_USED] > 0.0:
        first, end = kept_run(rule, run)
        count = end - first
        stride = max(int(_TRAIL_STRIDE * rule.step / rule.kept[_STEP]), 1)
    return Trail(part(rule.kept, _POINTS + first if count > 0 else 0, count), stride)
