"""The prior half of a stage: moments of the weights solved so far, and sums over groups of coordinates.

Where stages have no coordinates in common, :mod:`numerics.scalar.kernels.dense` stands in for the groups.
"""

from __future__ import annotations

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.scalar.kernels.dense import append_operators, no_operators, rows_of_tables
from numerics.scalar.kernels.elementary import INNER, LATE, PLAIN, VECTOR_FUNCTION, FloatArray, Matrix
from numerics.scalar.kernels.layout import COVARIANCES, ETA, GROUPS, MEAN, MOMENTS, RIDGE, Moments


@njit(MOMENTS(GROUPS), **INNER)
def no_moments(groups):
    """Room for the moments of all stages."""
    count, stages = groups.means.shape
    return Moments(
        owned(groups),
        np.zeros((count, stages)),
        np.zeros((count, stages, stages)),
        np.zeros((count, stages, stages)),
        no_operators(groups.tables, stages),
    )


@njit(
    types.void(MOMENTS, types.int64, types.float64, types.int64, FloatArray), **PLAIN
)  # fmt: skip
def add_moments(moments, group, share, k, out):
    """Add ``share`` times the moments of the first k stages' weights to ``out``: mu, then two lower triangles."""
    for s in range(k):
        out[s] += share * moments.mu[group, s]
        row = k + s * (s + 1) // 2
        for r in range(s + 1):
            out[row + r] += share * moments.covariance[group, s, r]
            out[row + r + k * (k + 1) // 2] += share * moments.propagator[group, s, r]


@njit(types.void(GROUPS, types.int64, types.int64, FloatArray), **PLAIN)
def put_inputs(groups, group, t, out):
    """c_t and Omega_t1..Omega_tt of a group into ``out``."""
    out[0] = groups.means[group, t]
    for s in range(t + 1):
        out[1 + s] = groups.covariances[group, t, s]


@njit(Matrix(MOMENTS, types.int64, types.float64), **INNER)
def prior_rows(moments, k, ridge):
    """Constants of the prior of the stage after k others, a row for each kind of inputs; see :data:`layout.ETA`."""
    groups = moments.groups
    if groups.tables.share > 0.0:
        return rows_of_tables(moments, k, ridge)
    last = -1
    for a in range(groups.share.size):
        last = max(last, groups.rows[a, k])
    first = COVARIANCES + k + 1
    out = np.zeros((last + 1, first + k + k * (k + 1)))
    for a in range(groups.share.size):
        if groups.rows[a, k] >= 0:
            out[groups.rows[a, k], ETA] += groups.share[a]
    for a in range(groups.share.size):
        if groups.rows[a, k] >= 0:
            row = out[groups.rows[a, k]]
            row[RIDGE] = ridge
            put_inputs(groups, a, k, row[MEAN:])
            add_moments(moments, a, groups.share[a] / row[ETA], k, row[first:])
    return out


@njit(types.float64(Matrix), **INNER)
def share_of(rows):
    """Coordinates that the stage trains, over N."""
    total = 0.0
    for r in range(rows.shape[0]):
        total += rows[r, ETA]
    return total


@njit(types.void(VECTOR_FUNCTION, FloatArray, Matrix, FloatArray, FloatArray), **PLAIN)
def sum_of_rows(function, x, rows, one, out):
    """``function(x, constants, out)`` summed over the rows of constants; ``one`` is room for one of them, with its zeros."""
    function(x, rows[0], out)
    for r in range(1, rows.shape[0]):
        function(x, rows[r], one)
        for k in range(out.size):
            out[k] += one[k]


@njit(types.void(MOMENTS, VECTOR_FUNCTION, types.int64, types.float64, FloatArray), **INNER)
def append_trained(moments, moments_of, t, ridge, conjugate):
    """Moments of stage t's weights and their products with earlier ones, in every group in which the stage is active."""
    groups = moments.groups
    if groups.tables.share > 0.0:
        append_operators(moments, moments_of, t, ridge, conjugate)
        return
    found = np.empty(3 + 2 * t)
    mu, covariance, propagator = moments.mu, moments.covariance, moments.propagator
    for a in range(mu.shape[0]):
        if groups.rows[a, t] < 0:
            continue
        constants = np.zeros(3 + 2 * t + t * (t + 1))
        constants[0] = ridge
        put_inputs(groups, a, t, constants[1:])
        add_moments(moments, a, 1.0, t, constants[3 + t :])
        moments_of(conjugate, constants, found)
        mu[a, t] = found[0]
        for s in range(t + 1):
            covariance[a, t, s] = covariance[a, s, t] = found[1 + s]
            propagator[a, t, s] = found[2 + t + s]


@njit(types.void(MOMENTS, types.int64, types.float64, types.float64), **LATE)
def append_given(moments, t, m, mean_square):
    """The same for given weights ``w = m v + noise``, which do not react; ``mean_square`` is that of one of them."""
    groups = moments.groups
    if groups.tables.share > 0.0:  # of a rule, whose noise is seen by nobody
        stages = groups.means.shape[1]
        moments.kept[t * (stages + 1) + stages] = groups.tables.means[t]
        return
    mu, covariance = moments.mu, moments.covariance
    for a in range(mu.shape[0]):
        if groups.rows[a, t] < 0:
            continue
        aligned = m * groups.means[a, t]
        mu[a, t] = aligned
        for s in range(t):
            covariance[a, t, s] = covariance[a, s, t] = aligned * mu[a, s]
        covariance[a, t, t] = mean_square * groups.signals[a]


@njit(types.UniTuple(types.float64, 2)(MOMENTS, VECTOR_FUNCTION, types.int64, types.float64, FloatArray), **LATE)
def squares_of_weights(moments, moments_of, t, ridge, conjugate):
    """``w_t.w_t/N`` and ``w_t.Omega_tt w_t/N`` of a stage with these conjugates, those before it being known."""
    rows = prior_rows(moments, t, ridge)
    found = np.empty(3 + 2 * t)
    square, seen = 0.0, 0.0
    for r in range(rows.shape[0]):
        moments_of(conjugate, rows[r, RIDGE:], found)
        square += rows[r, ETA] * found[1 + t]
        seen += rows[r, ETA] * rows[r, COVARIANCES + t] * found[1 + t]
    return square, seen
