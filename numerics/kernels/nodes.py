"""Template: extend the joint law of label, fields and logits by one stage, as a finite set of weighted nodes."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ._generated import branch_offset, build_grid, choose_branches  # generated

_INVERSE_SQRT_2PI = 0.3989422804014327
_MARGIN = 0.5


@njit(cache=True, nogil=True)
def extend_nodes(
    weight, design, labels, logits, seen, parameters, mean, mean_bias, coefficients, sigma, shifts, gamma, step, tail,
    extra,
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
    branch = np.empty(n, np.int64)
    choose_branches(labels, seen, parameters, target, branch)
    for i in range(n):
        a = mean * design[i, 0] + mean_bias + gamma * target[i]
        for k in range(k_earlier):
            a += coefficients[k] * design[i, 2 + k] + shifts[k] * design[i, 2 + k_earlier + k]
        centre[i] = a
    start = np.zeros(n, np.int64)
    stop = np.zeros(n, np.int64)
    points = build_grid(
        weight, centre, branch, branch_offset(gamma, parameters), labels, seen, parameters, gamma, sigma, step, tail,
        _MARGIN, True, extra, start, stop,
    )  # fmt: skip
    capacity = 0
    for i in range(n):
        capacity += stop[i] - start[i]
    new_weight = np.empty(capacity)
    new_design = np.empty((capacity, 2 * k_earlier + 4))
    new_labels = np.empty(capacity)
    new_logits = np.empty((capacity, k_earlier + 1))
    largest = weight.max() if n > 0 else 0.0
    used = 0
    defect = 0.0
    for i in range(n):
        total = 0.0
        for j in range(start[i], stop[i]):
            slope = points[1 + branch[i], j]
            position = points[0, j] + gamma * slope
            g = (position - centre[i]) / sigma
            w = points[5, j] * (1.0 + gamma * points[3, j]) * _INVERSE_SQRT_2PI / sigma * math.exp(-0.5 * g * g)
            total += w
            w *= weight[i]
            if w <= 0.01 * tail * largest:
                continue
            new_weight[used] = w
            new_labels[used] = labels[i]
            new_design[used, 0] = design[i, 0]
            new_design[used, 1] = 1.0
            for k in range(k_earlier):
                new_design[used, 2 + k] = design[i, 2 + k]
                new_design[used, 3 + k_earlier + k] = design[i, 2 + k_earlier + k]
                new_logits[used, k] = logits[i, k]
            new_design[used, 2 + k_earlier] = g
            new_design[used, 3 + 2 * k_earlier] = target[i] - slope
            new_logits[used, k_earlier] = points[0, j]
            used += 1
        if stop[i] > start[i]:
            defect = max(defect, weight[i] / largest * abs(total - 1.0))
    return new_weight[:used], new_design[:used], new_labels[:used], new_logits[:used], defect
