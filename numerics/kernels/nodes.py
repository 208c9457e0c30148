"""Extend the joint law of label, fields, training forces and logits by one stage, as a finite set of weighted nodes."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

from numerics.kernels.elementary import POINT_FUNCTION, FloatArray, IntArray, Matrix
from numerics.kernels.grid import (
    CURVATURE,
    LOW,
    MAP_TOLERANCE,
    POINT_ROWS,
    WEIGHT,
    H,
    build_grid,
    choose_branches,
    half_widths,
)

_ROOT_TWO_PI = 2.5066282746310002
MARGIN = 0.5  # in widths, so that a grid whose nodes drift a little still covers them
_NODE_TAIL = 0.01  # relative to the tail of the integration: what a node may weigh and be left out


@njit(Matrix(Matrix, IntArray), cache=True, nogil=True)
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


@njit(
    types.Tuple((FloatArray, Matrix, FloatArray, Matrix, types.float64))(
        POINT_FUNCTION, POINT_FUNCTION, POINT_FUNCTION, types.int64, types.int64, FloatArray, Matrix, FloatArray, Matrix,
        Matrix, FloatArray, types.float64, types.float64, FloatArray, types.float64, FloatArray, types.float64,
        types.float64, types.float64, Matrix,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def extend_nodes(
    slopes, targets, features, n_features, shareable, weight, design, labels, logits, seen, parameters, mean, mean_bias,
    coefficients, sigma, shifts, gamma, step, tail, extra,
):  # fmt: skip
    """Integrate this stage's field, node by node, and keep what weighs more than ``tail`` of the heaviest node.

    Parameters
    ----------
    weight, labels : arrays, shape (n,);  design : shape (n, 2 + 2k);  logits : shape (n, k)
        Nodes of the earlier stages; ``design`` holds ``s, 1, g_1..g_k, f_1..f_k``.
    seen : array, shape (n, l)
        The logits that this stage's loss looks at.
    mean, mean_bias, coefficients, sigma
        Field of this stage: ``s mean + mean_bias + sum_k coefficients[k] g_k + sigma g``.
    shifts, gamma
        Training logit: ``h + gamma S(h) = field + gamma c + sum_k shifts[k] f_k``.  On a test point both are 0.

    Returns
    -------
    weight, design, labels, logits of the extended nodes, and the largest deviation of a node's weight from its sum.
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
        a = mean * design[i, 0] + mean_bias + gamma * target[i]
        for k in range(k_earlier):
            a += coefficients[k] * design[i, 2 + k] + shifts[k] * design[i, 2 + k_earlier + k]
        centre[i] = a
    half_widths(weight, tail, MARGIN, reach)
    points, _ = build_grid(
        slopes, features, n_features, shareable, weight, centre, branch, offset, labels, seen, parameters, gamma, sigma,
        step, MAP_TOLERANCE, reach, True, extra, np.empty((POINT_ROWS, 256)), start, stop, np.arange(n),
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
    new_design = np.empty((kept, 2 * k_earlier + 4))
    new_logits = np.empty((kept, k_earlier + 1))
    for r in range(kept):
        i, j = origin[r], place[r]
        new_weight[r] = pair_weight[r]
        new_labels[r] = labels[i]
        for k in range(2 + k_earlier):
            new_design[r, k] = design[i, k]
        for k in range(k_earlier):
            new_design[r, 3 + k_earlier + k] = design[i, 2 + k_earlier + k]
            new_logits[r, k] = logits[i, k]
        slope = points[LOW + branch[i], j]
        new_design[r, 2 + k_earlier] = (points[H, j] + gamma * slope - centre[i]) / sigma
        new_design[r, 3 + 2 * k_earlier] = target[i] - slope
        new_logits[r, k_earlier] = points[H, j]
    return new_weight, new_design, new_labels, new_logits, defect
