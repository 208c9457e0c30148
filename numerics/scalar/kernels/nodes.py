"""Extend the joint law of label, fields, training forces and logits by one stage, as a finite set of weighted nodes."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import ENTRY, INNER, POINT_FUNCTION, FloatArray, IntArray, Matrix, address
from numerics.scalar.kernels.grid import MAP_TOLERANCE, build_grid, choose_branches, half_widths
from numerics.scalar.kernels.proximal import CURVATURE, LOW, POINT_ROWS, WEIGHT, H, proximal_point

_ROOT_TWO_PI = 2.5066282746310002
MARGIN = 0.5  # in widths, so that a grid whose nodes drift a little still covers them
_NODE_TAIL = 0.01  # relative to the tail of the integration: what a node may weigh and be left out


@njit(Matrix(Matrix, IntArray), **INNER)
def select_columns(logits, seen):
    """Columns ``seen`` (1-based stages; 0 ends the list) of ``logits``."""
    count = 0
    while count < seen.size and seen[count] > 0:
        count += 1
    out = np.empty((logits.shape[0], count))
    for i in range(logits.shape[0]):
        for k in range(count):
            out[i, k] = logits[i, seen[k] - 1]
    return out


@njit(IntArray(IntArray, types.int64), **INNER)
def leading(indices, n):
    """Copy of the first n entries."""
    out = np.empty(n, np.int64)
    for i in range(n):
        out[i] = indices[i]
    return out


@njit(
    types.Tuple((FloatArray, Matrix, FloatArray, Matrix, IntArray, types.float64))(
        POINT_FUNCTION, POINT_FUNCTION, POINT_FUNCTION, types.int64, types.int64, FloatArray, Matrix, FloatArray, Matrix,
        Matrix, FloatArray, types.float64, types.float64, FloatArray, types.float64, FloatArray, types.float64, types.boolean,
        types.float64, types.float64, types.float64, Matrix,
    ),
    **ENTRY,
)  # fmt: skip
def extend_nodes(
    slopes, targets, bends, n_bends, shareable, weight, statistics, labels, logits, seen, parameters, mean, mean_bias,
    coefficients, sigma, shifts, gamma, trained, step, tail, sharpness, extra,
):  # fmt: skip
    """Integrate this stage's field, node by node, and keep what weighs more than ``tail`` of the heaviest node.

    Parameters
    ----------
    weight, labels : arrays, shape (n,);  statistics : shape (n, 2 + 2k);  logits : shape (n, k)
        Nodes of the earlier stages; ``statistics`` holds ``s, 1, g_1..g_k, f_1..f_k``.
    seen : array, shape (n, l)
        The logits that this stage's loss looks at.
    mean, mean_bias, coefficients, sigma
        Field of this stage: ``s mean + mean_bias + sum_k coefficients[k] g_k + sigma g``.
    shifts, gamma
        Training logit: ``h + gamma S(h) = field + gamma c + sum_k shifts[k] f_k``.  On a test point both are 0; ``gamma`` is 0
        on samples that this stage is not trained on.
    trained : bool
        Whether this stage is trained on these samples; elsewhere its force is 0.
    sharpness : float
        See :func:`build_grid`.

    Returns
    -------
    weight, statistics, labels, logits of the extended nodes, the node that each comes from, and the largest deviation of a node's
    weight from its sum.
    """
    n = weight.size
    k_earlier = logits.shape[1]
    centre = np.empty(n)
    target = np.empty(n)
    offset = np.empty(n)
    branch = np.empty(n, np.int64)
    reach = np.empty(n)
    start = np.zeros(n, np.int64)
    stop = np.zeros(n, np.int64)
    choose_branches(targets, labels, seen, parameters, target, offset, branch)
    for i in range(n):
        a = mean * statistics[i, 0] + mean_bias + gamma * target[i]
        for k in range(k_earlier):
            a += coefficients[k] * statistics[i, 2 + k] + shifts[k] * statistics[i, 2 + k_earlier + k]
        centre[i] = a
    half_widths(weight, tail, MARGIN, reach)
    points, _ = build_grid(
        slopes, bends, n_bends, shareable, weight, centre, branch, offset, labels, seen, parameters, gamma, sigma,
        step, MAP_TOLERANCE, reach, True, sharpness, extra, np.empty((POINT_ROWS, 256)), start, stop, np.arange(n),
    )  # fmt: skip
    capacity = 0
    largest = 0.0
    for i in range(n):
        capacity += stop[i] - start[i]
        largest = max(largest, weight[i])
    pair_weight = np.empty(capacity)
    origin = np.empty(capacity, np.int64)
    place = np.empty(capacity, np.int64)
    kept = 0
    defect = 0.0
    for i in range(n):
        total = 0.0
        for j in range(start[i], stop[i]):
            g = (points[H, j] + gamma * points[LOW + branch[i], j] - centre[i]) / sigma
            density = math.exp(-0.5 * g * g) / (sigma * _ROOT_TWO_PI)
            w = points[WEIGHT, j] * (1.0 + gamma * points[CURVATURE, j]) * density
            total += w
            if w * weight[i] > _NODE_TAIL * tail * largest:
                pair_weight[kept] = w * weight[i]
                origin[kept] = i
                place[kept] = j
                kept += 1
        if stop[i] > start[i]:
            defect = max(defect, weight[i] / largest * abs(total - 1.0))
    new_weight = np.empty(kept)
    new_labels = np.empty(kept)
    new_statistics = np.empty((kept, 2 * k_earlier + 4))
    new_logits = np.empty((kept, k_earlier + 1))
    for r in range(kept):
        i, j = origin[r], place[r]
        new_weight[r] = pair_weight[r]
        new_labels[r] = labels[i]
        for k in range(2 + k_earlier):
            new_statistics[r, k] = statistics[i, k]
        for k in range(k_earlier):
            new_statistics[r, 3 + k_earlier + k] = statistics[i, 2 + k_earlier + k]
            new_logits[r, k] = logits[i, k]
        slope = points[LOW + branch[i], j]
        new_statistics[r, 2 + k_earlier] = (points[H, j] + gamma * slope - centre[i]) / sigma
        new_statistics[r, 3 + 2 * k_earlier] = target[i] - slope if trained else 0.0
        new_logits[r, k_earlier] = points[H, j]
    return new_weight, new_statistics, new_labels, new_logits, leading(origin, kept), defect


@njit(
    types.UniTuple(Matrix, 2)(
        POINT_FUNCTION, POINT_FUNCTION, Matrix, FloatArray, Matrix, Matrix, FloatArray, FloatArray, types.float64,
        types.float64, FloatArray, types.float64, FloatArray, types.float64, types.boolean,
    ),
    **ENTRY,
)  # fmt: skip
def follow_nodes(
    slopes, targets, statistics, labels, logits, seen, parameters, directions, mean, mean_bias, coefficients, sigma, shifts, gamma,
    trained,
):  # fmt: skip
    """As :func:`extend_nodes` where every node already has its value ``directions[i]`` of this stage's g: statistics and logits."""
    n, k_earlier = logits.shape
    new_statistics = np.empty((n, 2 * k_earlier + 4))
    new_logits = np.empty((n, k_earlier + 1))
    target = np.empty(n)
    offset = np.empty(n)
    branch = np.empty(n, np.int64)
    slope = np.empty(4)
    values = address(parameters, 0)
    choose_branches(targets, labels, seen, parameters, target, offset, branch)
    h = 0.0
    for i in range(n):
        earlier = address(seen, i * seen.shape[1])
        place = mean * statistics[i, 0] + mean_bias + gamma * target[i] + sigma * directions[i]
        for k in range(k_earlier):
            place += coefficients[k] * statistics[i, 2 + k] + shifts[k] * statistics[i, 2 + k_earlier + k]
            new_statistics[i, 3 + k_earlier + k] = statistics[i, 2 + k_earlier + k]
            new_logits[i, k] = logits[i, k]
        for k in range(2 + k_earlier):
            new_statistics[i, k] = statistics[i, k]
        h = proximal_point(slopes, place, h, 0.0, labels[i], earlier, values, gamma, branch[i], slope)
        slopes(h, labels[i], earlier, values, address(slope, 0))
        new_logits[i, k_earlier] = h
        new_statistics[i, 2 + k_earlier] = directions[i]
        new_statistics[i, 3 + 2 * k_earlier] = target[i] - slope[branch[i]] if trained else 0.0
    return new_statistics, new_logits


@njit(FloatArray(FloatArray, IntArray), **INNER)
def take(values, indices):
    """Entries at ``indices``."""
    out = np.empty(indices.size)
    for r in range(indices.size):
        out[r] = values[indices[r]]
    return out


@njit(IntArray(IntArray, IntArray), **INNER)
def take_integers(values, indices):
    """Entries at ``indices``."""
    out = np.empty(indices.size, np.int64)
    for r in range(indices.size):
        out[r] = values[indices[r]]
    return out


@njit(Matrix(Matrix, IntArray), **INNER)
def take_rows(values, indices):
    """Rows at ``indices``."""
    out = np.empty((indices.size, values.shape[1]))
    for r in range(indices.size):
        for k in range(values.shape[1]):
            out[r, k] = values[indices[r], k]
    return out


@njit(IntArray(IntArray, IntArray, types.int64), **INNER)
def members(member, wanted, value):
    """Nodes whose data set has this ``value`` in ``wanted``."""
    count = 0
    for i in range(member.size):
        count += wanted[member[i]] == value
    out = np.empty(count, np.int64)
    count = 0
    for i in range(member.size):
        if wanted[member[i]] == value:
            out[count] = i
            count += 1
    return out


@njit(
    types.Tuple((FloatArray, Matrix, FloatArray, IntArray, IntArray))(Matrix, Matrix, types.int64),
    **ENTRY,
)  # fmt: skip
def label_nodes(classes, sets, rows):
    """Nodes before the first stage: data set, class, whether the label is flipped, and one of ``rows`` equal parts.

    Parameters
    ----------
    classes : array, shape (c, 3)
        Weight, sign and label of each class.
    sets : array, shape (d, 2)
        Samples per input and probability of a flipped label of each data set.

    Returns
    -------
    weight, statistics (s, 1), labels (as seen in training), data set and row of each node.
    """
    count = 0
    for d in range(sets.shape[0]):
        count += 2 if sets[d, 1] > 0.0 else 1
    count *= rows * classes.shape[0]
    weight = np.empty(count)
    statistics = np.ones((count, 2))
    labels = np.empty(count)
    member = np.empty(count, np.int64)
    row = np.empty(count, np.int64)
    i = 0
    for d in range(sets.shape[0]):
        for c in range(classes.shape[0]):
            for flipped in range(2 if sets[d, 1] > 0.0 else 1):
                for r in range(rows):
                    share = sets[d, 1] if flipped == 1 else 1.0 - sets[d, 1]
                    weight[i] = sets[d, 0] * classes[c, 0] * share / rows
                    statistics[i, 0] = classes[c, 1]
                    labels[i] = classes[c, 2] if flipped == 0 else 1.0 - classes[c, 2]
                    member[i] = d
                    row[i] = r
                    i += 1
    return weight, statistics, labels, member, row


@njit(FloatArray(FloatArray, FloatArray), **INNER)
def join(first, second):
    """One after the other."""
    out = np.empty(first.size + second.size)
    for r in range(first.size):
        out[r] = first[r]
    for r in range(second.size):
        out[first.size + r] = second[r]
    return out


@njit(IntArray(IntArray, IntArray), **INNER)
def join_integers(first, second):
    """One after the other."""
    out = np.empty(first.size + second.size, np.int64)
    for r in range(first.size):
        out[r] = first[r]
    for r in range(second.size):
        out[first.size + r] = second[r]
    return out


@njit(Matrix(Matrix, Matrix), **INNER)
def join_rows(first, second):
    """Rows of the one, then of the other."""
    out = np.empty((first.shape[0] + second.shape[0], first.shape[1]))
    for k in range(first.shape[1]):
        for r in range(first.shape[0]):
            out[r, k] = first[r, k]
        for r in range(second.shape[0]):
            out[first.shape[0] + r, k] = second[r, k]
    return out
