"""Some of the nodes, and nodes with room for one stage more."""

from __future__ import annotations

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import INNER, LATE, IntArray, Matrix
from numerics.scalar.kernels.layout import NODES, Nodes


@njit(NODES(NODES, IntArray), **INNER)
def take_nodes(nodes, indices):
    """The nodes at ``indices``."""
    return Nodes(
        nodes.weight[indices], nodes.statistics[indices], nodes.labels[indices], nodes.logits[indices],
        nodes.member[indices], nodes.row[indices],
    )  # fmt: skip


@njit(NODES(NODES, IntArray), **LATE)
def nodes_of_some_sets(nodes, wanted):
    """The nodes of data sets d with 1 in ``wanted``, shape (d,)."""
    return take_nodes(nodes, np.flatnonzero(wanted[nodes.member]))


@njit(NODES(NODES, IntArray), **INNER)
def nodes_of_sets(nodes, wanted):
    """The same; the nodes themselves if that is all of them."""
    for one in wanted:
        if one == 0:
            return nodes_of_some_sets(nodes, wanted)
    return nodes


@njit(types.UniTuple(Matrix, 2)(NODES), **INNER)
def with_room_for_a_stage(nodes):
    """Statistics and logits of one stage more, the places of its own still empty."""
    n, k = nodes.logits.shape
    statistics = np.empty((n, 4 + 2 * k))
    logits = np.empty((n, k + 1))
    for i in range(n):
        for r in range(2 + k):
            statistics[i, r] = nodes.statistics[i, r]
        for r in range(k):
            statistics[i, 3 + k + r] = nodes.statistics[i, 2 + k + r]
            logits[i, r] = nodes.logits[i, r]
    return statistics, logits


@njit(NODES(NODES, types.float64), **LATE)
def with_constant_logit(nodes, logit):
    """The nodes with one stage more, which has the same logit on all samples, no direction and no force."""
    k = nodes.logits.shape[1]
    statistics, logits = with_room_for_a_stage(nodes)
    statistics[:, 2 + k] = 0.0
    statistics[:, 3 + 2 * k] = 0.0
    logits[:, k] = logit
    return Nodes(owned(nodes.weight), statistics, owned(nodes.labels), logits, owned(nodes.member), owned(nodes.row))
