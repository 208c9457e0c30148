"""Grids in the training logit h: one for all nodes where the loss's gradient is ``S(h) - c``, else one for each node.

How their points are found says :mod:`numerics.scalar.kernels.march`.  Bends that ``theory`` cannot read off (powers, functions of
functions) are searched for instead; see :mod:`numerics.scalar.kernels.panels`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
    IntArray,
    Matrix,
    argsort,
    bits_of,
)
from numerics.scalar.kernels.kept import (
    MOST_POINTS,
    MOST_RUNS,
    end_run,
    grid_suits,
    is_covered,
    keep_grid,
    kept_run,
    margin_of,
    number_of_runs,
    table_of_kept,
    trail_of,
)
from numerics.scalar.kernels.layout import (
    FIELD,
    LOSS,
    RULE,
    SAMPLE,
    SAMPLES,
    SCALE,
    TABLE,
    Sample,
    Table,
    record,
)
from numerics.scalar.kernels.march import Way, bends_at, find_kinks, march, smallest_scale
from numerics.scalar.kernels.panels import panels
from numerics.scalar.kernels.proximal import (
    CURVATURE,
    HIGH,
    LANES,
    LOW,
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
from numerics.scalar.kernels.samples import sample_at

_SIGN = 63  # where the bit of a double is, shifted by which it is -1 or 0
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


@njit(types.void(FIELD, TABLE, types.int64, FloatArray), noalias=True, **PLAIN)
def places_in_p(field, table, begun, places):
    """P of the points from ``begun`` on, measured on branch 0, then on branch 1."""
    points, gamma, n = table.points, field.gamma, table.used - begun
    for branch in range(2):
        for j in range(np.uint64(n)):
            places[branch * n + j] = points[H, begun + j] + gamma * points[LOW + branch, begun + j]


@njit(types.int64(FloatArray, types.int64, types.int64, types.float64), **LEAF)
def first_from(places, first, count, goal):
    """How many of the ``count`` places from ``first`` on, which rise, are below ``goal``.

    Bisected by the signs of differences, without a branch, so that the searches of many nodes overlap.
    """
    here, left = first, count
    while left > 1:
        half = left >> 1
        here += half & (bits_of(places[np.uint64(here + half - 1)] - goal) >> _SIGN)
        left -= half
    return here - first - (bits_of(places[np.uint64(here)] - goal) >> _SIGN if left == 1 else 0)


@njit(types.UniTuple(types.int64, 2)(FloatArray, types.int64, types.float64, types.float64), **LEAF)
def within(places, branch, low, high):
    """First and last of the points from ``low`` to ``high`` in P on a branch, in whole vectors; see :func:`places_in_p`."""
    n = places.size // 2
    start, stop = first_from(places, n * branch, n, low), first_from(places, n * branch, n, high)
    # Later points if there are any, else earlier ones; both only refine the tails.
    lacking = -(stop - start) % LANES
    later = min(lacking, n - stop)
    return max(0, start - (lacking - later)), stop + later


@njit(types.boolean(SAMPLES, FIELD, RULE, TABLE), **PLAIN)
def are_theirs(samples, field, rule, table):
    """Let each node have the points that a node of its number had, if they cover its Gaussian; false if some do not."""
    for i in range(samples.labels.size):
        samples.start[i] = samples.stop[i] = 0
        if samples.reach[i] > 0.0:
            first, end = kept_run(rule, i)
            half = samples.reach[i] * field.sigma
            low, high = samples.centre[i] - half, samples.centre[i] + half
            if not is_covered(field, Table(table.points, end), samples.branch[i], first, low, high):
                return False
            samples.start[i], samples.stop[i] = first, end
    return True


class Run(NamedTuple):
    """Nodes whose ranges overlap: the first and the last one's rank in the order, and from where to where they go in P, on the
    branch of the first."""

    first: int
    end: int
    begin: float
    limit: float


@njit(
    record(Run, types.int64, types.int64, types.float64, types.float64)(SAMPLES, FIELD, FloatArray, types.int64),
    **PLAIN,
)
def next_run(samples, field, low, rank):
    """The next run from a rank on; one of no node if there is none.  Ranges begin at ``low`` in P on branch 0."""
    sigma, order = field.sigma, samples.order
    while rank < order.size and samples.reach[order[rank]] == 0.0:
        rank += 1
    if rank == order.size:
        return Run(rank, rank, 0.0, 0.0)
    i = order[rank]
    begin, limit = samples.centre[i] - samples.reach[i] * sigma, samples.centre[i] + samples.reach[i] * sigma
    end = low[i] + 2.0 * samples.reach[i] * sigma
    first = rank
    rank += 1
    while rank < order.size and low[order[rank]] <= end:
        j = order[rank]
        if samples.reach[j] > 0.0 and low[j] + 2.0 * samples.reach[j] * sigma > end:
            end = low[j] + 2.0 * samples.reach[j] * sigma
            limit = end - field.gamma * samples.offset[i]
        rank += 1
    return Run(first, rank, begin, limit)


@njit(types.boolean(SAMPLES, FIELD, RULE, TABLE), **PLAIN)
def are_shared(samples, field, rule, table):
    """Let each node have its range of one of the runs of a table; false if one has none that covers its Gaussian."""
    room = stack_matrix(2, MOST_POINTS)
    start, stop, centre, reach, branch = samples.start, samples.stop, samples.centre, samples.reach, samples.branch
    sigma = field.sigma
    for i in range(centre.size):
        start[i] = stop[i] = -1 if reach[i] > 0.0 else 0
    for number in range(number_of_runs(rule)):
        first, end = kept_run(rule, number)
        if first == end:
            continue
        places = part(room, 0, 2 * (end - first))
        places_in_p(field, Table(table.points, end), first, places)
        begins, limits = (places[0], places[end - first]), (places[end - first - 1], places[places.size - 1])
        for i in range(centre.size):
            low, high = centre[i] - reach[i] * sigma, centre[i] + reach[i] * sigma
            begin, limit = (begins[1], limits[1]) if branch[i] == 1 else (begins[0], limits[0])
            if begin <= low and high <= limit and stop[i] < 0:
                before, after = within(places, branch[i], low, high)
                start[i], stop[i] = first + before, first + after
    found = True
    for i in range(centre.size):
        found = found and stop[i] >= 0
    return found


@njit(types.boolean(SAMPLES, FIELD, RULE, FloatArray, IntArray), **PLAIN)
def sharing_pays(samples, field, rule, low, room):
    """Sort the nodes by the ``low`` ends of their ranges in P; whether a grid for all takes fewer points than one for each."""
    argsort(low, samples.order, room)
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
    if grid_suits(loss, field, rule, False):
        table = table_of_kept(rule, table)
        if are_theirs(samples, field, rule, table):
            return table
        table = Table(table.points, 0)
    margin, ends = margin_of(rule) * sigma, stack(MOST_RUNS)
    marched = True
    h = 0.0
    for i in range(samples.labels.size):
        begun = samples.start[i] = table.used
        if samples.reach[i] > 0.0:
            sample = sample_at(loss, samples, i)
            centre, half = samples.centre[i], samples.reach[i] * sigma
            if searched:
                table = panels(sample, field, rule, table, centre - half, centre + half, h, centre)
                if table.used > begun:
                    marched = False
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
                marched = False
                if points_in_the_field(sample, field, table, count, reach, h, centre, scale):
                    table = Table(table.points, begun + count)
                    samples.stop[i] = table.used
                    continue
            for side in range(2):
                direction = 2.0 * side - 1.0
                way = Way(h, centre + direction * (half + margin), direction, trail_of(rule, i))
                table = march(sample, field, rule, part_matrix(kinks, 0, n_kinks, 3), table, way)
            table = Table(table.points, pad(table, begun))
        samples.stop[i] = table.used
        end_run(ends, i, table.used)
    keep_grid(loss, field, rule, table, False, samples.labels.size if marched else 0, ends)
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
    margin, ends = margin_of(rule) * sigma, stack(MOST_RUNS)
    h = 0.0
    number = 0
    run = next_run(samples, field, low, 0)
    while run.first < run.end:
        i = order[run.first]
        sample = Sample(
            any_sample.along, any_sample.slopes, any_sample.label, any_sample.logits, any_sample.parameters, samples.branch[i]
        )  # fmt: skip
        begin, limit = run.begin - margin, run.limit + margin
        h = proximal_point(sample, gamma, begin, h, _PLACE * sigma, slope)
        begun = table.used
        if loss.kind & SEARCHED != 0:
            table = panels(sample, field, rule, table, begin, limit, h, np.nan)
        else:
            way = Way(h, limit, 1.0, trail_of(rule, number))
            table = march(sample, field, rule, part_matrix(kinks, 0, n_kinks, 3), table, way)
            table = Table(table.points, pad(table, begun))
        places = np.empty(2 * (table.used - begun))
        places_in_p(field, table, begun, places)
        for rank in range(run.first, run.end):
            j = order[rank]
            half = samples.reach[j] * sigma
            if half > 0.0:
                start, stop = within(places, samples.branch[j], samples.centre[j] - half, samples.centre[j] + half)
                samples.start[j], samples.stop[j] = begun + start, begun + stop
        end_run(ends, number, table.used)
        number += 1
        run = next_run(samples, field, low, run.end)
    keep_grid(loss, field, rule, table, True, 0 if loss.kind & SEARCHED != 0 else number, ends)
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
    room = np.empty(needed + 2 * n)
    if share and loss.n_bends > 0 and gauss_may_do(loss, rule):
        found, _ = room_for_bends(loss, rule, room)
        bends_at(loss, sample_at(loss, samples, 0), found)
        share = not field.sigma < _OUTER_RATIO * min(smallest_scale(found), finest_scale(rule.extra))
    if share:
        if grid_suits(loss, field, rule, True):
            table = table_of_kept(rule, Table(owned(points), 0))
            if are_shared(samples, field, rule, table):
                return table
        low = part(room, needed, n)
        for i in range(n):
            low[i] = samples.centre[i] - samples.reach[i] * field.sigma + field.gamma * samples.offset[i]
        if sharing_pays(samples, field, rule, low, integer_part(room, needed + n, n)):
            return shared_points(loss, samples, field, rule, points, low, room)
    return separate_points(loss, samples, field, rule, points, room)
