"""The prior of stages whose inputs have no common basis: the rows of constants of a stage in the eigenbasis of its own covariance.

The weights of stage t are ``w_t = H_t u + sum_k G_tk xi_k`` with u the direction of the classes, or the rule, and

    H_t = G_tt (mh_t M_t - sum_{s<t} Vh_ts Omega_ts H_s),    G_tk = - G_tt sum_{k<=s<t} Vh_ts Omega_ts G_sk,

all of them written in the eigenbases of Omega_tt, where G_tt is diagonal.  The equations of a stage need, of the earlier ones, what
``z_s = Omega_ts w_s`` has in common with each of its coordinates: ``E[M_t z_s]``, ``E[z_s z_r]``, ``[Omega_ts G_sk Omega_kt]_ii``.
Those are ``mu``, ``B`` and ``G`` of :func:`theory.potential.prior_equations` on a coordinate with ``Omega_ts = 1`` for s < t.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.typed import List

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import INNER, LATE, VECTOR_FUNCTION, FloatArray, Matrix
from numerics.scalar.kernels.layout import COVARIANCES, ETA, MEAN, MOMENTS, RIDGE, TABLES, Matrices

_SUMS = {**LATE, "fastmath": {"reassoc", "contract", "nsz"}}


# Lists of matrices.


@njit(Matrices(), cache=True)
def no_matrices():
    """An empty list."""
    return List.empty_list(Matrix)


@njit(cache=True)
def append_matrix(matrices, matrix):
    """One more."""
    matrices.append(matrix)


@njit(Matrices(types.int64), **LATE)
def room_for_operators(stages):
    """For G_s1.., H_s of every stage, nothing yet, and for Qh."""
    kept = List.empty_list(Matrix)
    for _ in range(stages * (stages + 1)):
        kept.append(np.empty((0, 0)))
    kept.append(np.zeros((stages, stages)))
    return kept


@njit(Matrices(TABLES, types.int64), **INNER)
def no_operators(tables, stages):
    """The same; nothing where there are no tables."""
    return room_for_operators(stages) if tables.share > 0.0 else List.empty_list(Matrix)


# Products.  An operator of one row is diagonal where its size is not 1; an empty one is 0.


@njit(types.boolean(Matrix, types.int64), **LATE)
def is_diagonal(operator, size):
    """Whether an operator on so many coordinates is written as its diagonal."""
    return operator.shape[0] == 1 and size > 1


@njit(Matrix(Matrix, Matrix), **LATE)
def applied(matrix, operator):
    """``matrix operator``, in full."""
    if operator.size == 0:
        return np.empty((0, 0))
    if not is_diagonal(operator, matrix.shape[1]):
        return np.dot(matrix, operator)
    out = np.empty(matrix.shape)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = matrix[i, j] * operator[0, j]
    return out


@njit(FloatArray(Matrix, Matrix, types.int64), **_SUMS)
def row_products(one, other, size):
    """Diagonal of ``one other^T``, shape (size,)."""
    out = np.zeros(size)
    if one.size == 0 or other.size == 0:
        return out
    first, second = is_diagonal(one, size), is_diagonal(other, size)
    for i in range(size):
        if first and second:
            out[i] = one[0, i] * other[0, i]
        elif first:
            out[i] = one[0, i] * other[i, i]
        elif second:
            out[i] = one[i, i] * other[0, i]
        else:
            total = 0.0
            for j in range(one.shape[1]):
                total += one[i, j] * other[i, j]
            out[i] = total
    return out


@njit(Matrix(Matrix, Matrix), **_SUMS)
def weighted_squares(matrix, weights):
    """``sum_j matrix_ij^2 weights_aj``, shape (rows of matrix, rows of weights)."""
    out = np.empty((matrix.shape[0], weights.shape[0]))
    for i in range(matrix.shape[0]):
        for a in range(weights.shape[0]):
            total = 0.0
            for j in range(matrix.shape[1]):
                total += matrix[i, j] * matrix[i, j] * weights[a, j]
            out[i, a] = total
    return out


@njit(types.void(Matrix, Matrix, Matrix, types.float64), **LATE)
def add_rows(total, rows, gain, factor):
    """Add ``factor`` times the rows, each times its entry of ``gain``, to a matrix."""
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] += factor * gain[0, i] * rows[i, j]


# The prior.


@njit(types.void(MOMENTS, types.int64, types.int64, Matrices, Matrix), **LATE)
def add_noise(moments, k, r, reactions, out):
    """Add what fields have in common to E[z_s z_r], s <= r, but for l = m = s = r: of the ``reactions`` ``X_sl = Omega_ts G_sl``

    [sum_{l<=r} sum_{m<=s} Qh_lm X_rl Omega_lm X_sm^T]_ii.
    """
    tables, stages = moments.groups.tables, moments.groups.means.shape[1]
    hats, size = moments.kept[stages * (stages + 1)], out.shape[0]
    at = COVARIANCES + k + 1 + k + r * (r + 1) // 2
    for l in range(r + 1):
        for m in range(r + 1):
            reaction = reactions[r * (r + 1) // 2 + l]
            if reaction.size == 0 or hats[l, m] == 0.0 or (l == r and m == r):
                continue
            # At s = r both orders of l and m give the same.
            lowest, highest = m, r if l <= m else r - 1
            if highest < lowest:
                continue
            if l == m:
                between = applied(reaction, tables.covariances[l * stages + l])
            elif l > m:
                between = np.dot(reaction, tables.covariances[l * stages + m])
            else:
                between = np.dot(reaction, tables.covariances[m * stages + l].T)
            for s in range(lowest, highest + 1):
                factor = 2.0 * hats[l, m] if s == r and l != m else hats[l, m]
                common = row_products(between, reactions[s * (s + 1) // 2 + m], size)
                for i in range(size):
                    out[i, at + s] += factor * common[i]


@njit(Matrix(MOMENTS, types.int64, types.float64), **LATE)
def rows_of_tables(moments, k, ridge):
    """Constants of the prior of the stage after k others, a row for each eigenvector of its covariance; see :data:`layout.ETA`."""
    tables, kept, stages = moments.groups.tables, moments.kept, moments.groups.means.shape[1]
    own, source = tables.covariances[k * stages + k], tables.means[k]
    hats = kept[stages * (stages + 1)]
    size, first, triangle = own.shape[1], COVARIANCES + k + 1, k * (k + 1) // 2
    out = np.zeros((size, first + k + 2 * triangle))
    squares = row_products(source, source, size)
    for i in range(size):
        out[i, ETA], out[i, RIDGE], out[i, MEAN] = tables.share, ridge, math.sqrt(squares[i])
        for s in range(k):
            out[i, COVARIANCES + s] = 1.0
        out[i, COVARIANCES + k] = own[0, i]
    reactions, signals = List.empty_list(Matrix), List.empty_list(Matrix)  # Omega_ts G_sl, Omega_ts H_s
    for s in range(k):
        mixed, here = tables.covariances[k * stages + s], s * (stages + 1)
        at = first + k + s * (s + 1) // 2
        propagator, drive = kept[here + s], kept[here + stages]
        size_of_s = mixed.shape[1]
        # What is diagonal in stage s needs squares alone.
        weights = np.zeros((2, size_of_s))
        if propagator.size > 0:
            for j in range(size_of_s):
                reaction = propagator[0, j]
                weights[0, j] = reaction
                weights[1, j] = hats[s, s] * reaction * reaction * tables.covariances[s * stages + s][0, j]
        direct = is_diagonal(drive, size_of_s)
        if direct:
            for j in range(size_of_s):
                weights[1, j] += drive[0, j] ** 2
        sums = weighted_squares(mixed, weights)
        for i in range(size):
            out[i, at + s + triangle] += sums[i, 0]
            out[i, at + s] += sums[i, 1]
        signal = np.empty((0, 0))
        if direct and k == 1 and (is_diagonal(source, size) or source.size == 0):
            if source.size > 0:
                for i in range(size):
                    out[i, first + s] = source[0, i] * mixed[i, i] * drive[0, i]
        else:
            signal = applied(mixed, drive)
            common = row_products(source, signal, size)
            for i in range(size):
                out[i, first + s] = common[i]
        signals.append(signal)
        for r in range(s + 1):
            if not (direct and r == s):
                common = row_products(signals[r], signal, size)
                for i in range(size):
                    out[i, at + r] += common[i]
        for l in range(s + 1):
            reaction = np.empty((0, 0))
            if k > 1:
                reaction = applied(mixed, kept[here + l])
            reactions.append(reaction)
            if l < s:
                common = row_products(reaction, tables.covariances[k * stages + l], size)
                for i in range(size):
                    out[i, at + l + triangle] += common[i]
    for i in range(size):
        for s in range(k):
            out[i, first + s] = out[i, first + s] / out[i, MEAN] if out[i, MEAN] > 0.0 else 0.0
    for r in range(k):
        add_noise(moments, k, r, reactions, out)
    return out


@njit(types.void(MOMENTS, VECTOR_FUNCTION, types.int64, types.float64, FloatArray), **LATE)
def append_operators(moments, moments_of, t, ridge, conjugate):
    """G_t1.., H_t and Qh_t1.. of a stage that is solved."""
    tables, kept, stages = moments.groups.tables, moments.kept, moments.groups.means.shape[1]
    here, own = t * (stages + 1), tables.covariances[t * stages + t]
    hats, hats_of_responses = kept[stages * (stages + 1)], conjugate[2 + t :]
    for s in range(t + 1):
        hats[t, s] = hats[s, t] = conjugate[1 + s]
    size = own.shape[1]
    constants, found, gain = np.zeros(3 + 2 * t + t * (t + 1)), np.empty(3 + 2 * t), np.empty((1, size))
    constants[0] = ridge
    for i in range(size):
        constants[2 + t] = own[0, i]
        moments_of(conjugate, constants, found)
        gain[0, i] = found[2 + 2 * t]
    kept[here + t] = gain
    if t + 1 == stages:
        return
    source, directions = tables.means[t], 0
    for s in range(t):
        directions = max(directions, kept[s * (stages + 1) + stages].shape[1])
    if directions == 0 and (source.size == 0 or is_diagonal(source, size)):
        kept[here + stages] = conjugate[0] * gain * source if source.size > 0 else source
    else:
        drive = np.zeros((size, max(directions, source.shape[1])))
        if source.size > 0:
            if is_diagonal(source, size):
                for i in range(size):
                    drive[i, i] = conjugate[0] * gain[0, i] * source[0, i]
            else:
                add_rows(drive, source, gain, conjugate[0])
        for s in range(t):
            before = kept[s * (stages + 1) + stages]
            if before.size > 0:
                add_rows(drive, applied(tables.covariances[t * stages + s], before), gain, -hats_of_responses[s])
        kept[here + stages] = drive
    for l in range(t):
        total = np.zeros((size, tables.covariances[l * stages + l].shape[1]))
        for s in range(l, t):
            before = kept[s * (stages + 1) + l]
            if before.size > 0:
                add_rows(total, applied(tables.covariances[t * stages + s], before), gain, -hats_of_responses[s])
        kept[here + l] = total
