"""Newton steps to proximal points of built-in losses, of many samples side by side, so that the processor does several at once.

No step is shortened: what does not converge so is left to :func:`numerics.classes.proximal.minimise`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import OPTIONS, FloatArray, Matrix, exp_nonpositive
from numerics.scalar.kernels.layout import Cube, record
from theory.softmax import SoftmaxForm

FORM = record(SoftmaxForm, *[types.float64] * 8, types.int64, types.float64)

FAST = {**OPTIONS, "fastmath": {"contract", "reassoc"}}

TOLERANCE = 1e-6
"""Of a step, after which what is left is about its square."""

LANES = 32
"""Samples side by side."""

_MOST_STEPS = 12


@njit(types.void(types.float64, types.float64, Matrix, FloatArray, Matrix, FloatArray, Matrix, Matrix, Cube), **FAST)
def _add_softmax(weight, cold, y, largest, p, rates, q, slope, curved):
    """Add ``weight B softmax(y cold)`` to the slope and the derivative of that to the lower triangle of the curvature."""
    total, before = np.zeros(LANES), np.empty(LANES)
    turned = weight * cold
    for k in range(y.shape[0]):
        for w in range(LANES):
            p[k, w] = exp_nonpositive((y[k, w] - largest[w]) * cold)
            total[w] += p[k, w]
    for w in range(LANES):
        total[w] = 1.0 / total[w]
        before[w] = p[0, w] * total[w]
    for i in range(rates.size):
        r, share = rates[i], i + 1.0
        for w in range(LANES):
            own = p[i + 1, w] * total[w]
            q[i, w] = r * (before[w] - share * own)
            slope[i, w] += weight * q[i, w]
            curved[i, i, w] += turned * (r * r * (before[w] + share * share * own) - q[i, w] * q[i, w])
            before[w] += own
        for j in range(i):
            for w in range(LANES):
                curved[i, j, w] += turned * (r - q[i, w]) * q[j, w]


@njit(types.void(Cube), **FAST)
def _cholesky(matrix):
    """Factors in place, of the lower triangles, with inverted diagonals; NaN where a matrix is not positive definite."""
    d = matrix.shape[0]
    for i in range(d):
        for j in range(i + 1):
            for k in range(j):
                for w in range(LANES):
                    matrix[i, j, w] -= matrix[i, k, w] * matrix[j, k, w]
            if j < i:
                for w in range(LANES):
                    matrix[i, j, w] *= matrix[j, j, w]
        for w in range(LANES):
            matrix[i, i, w] = 1.0 / math.sqrt(matrix[i, i, w])


@njit(types.void(Cube, Matrix), **FAST)
def _solve(factor, vector):
    """With the result of :func:`_cholesky`, in place."""
    d = vector.shape[0]
    for i in range(d):
        for j in range(i):
            for w in range(LANES):
                vector[i, w] -= factor[i, j, w] * vector[j, w]
        for w in range(LANES):
            vector[i, w] *= factor[i, i, w]
    for i in range(d - 1, -1, -1):
        for j in range(i + 1, d):
            for w in range(LANES):
                vector[i, w] -= factor[j, i, w] * vector[j, w]
        for w in range(LANES):
            vector[i, w] *= factor[i, i, w]


@njit(types.void(FORM, Matrix, Matrix, Matrix, Matrix, Matrix, Cube, types.boolean[::1]), **FAST)
def whole_steps(form, precision, u, target, h, force, stiffness, done):
    """Proximal points as of :func:`numerics.classes.proximal.minimise`, of those samples that become ``done``; others are left."""
    n, d = u.shape
    rates = np.empty(d)
    for i in range(d):
        rates[i] = 1.0 / math.sqrt((i + 1.0) * (i + 2.0))
    x, centre, c, slope, q, move, column = (
        np.empty((d, LANES)), np.empty((d, LANES)), np.empty((d, LANES)), np.empty((d, LANES)), np.empty((d, LANES)),
        np.empty((d, LANES)), np.empty((d, LANES)),
    )  # fmt: skip
    y, p = np.empty((d + 1, LANES)), np.empty((d + 1, LANES))
    curved, hessian, turned = np.empty((d, d, LANES)), np.empty((d, d, LANES)), np.empty((d, d, LANES))
    largest, size, scale = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    for first in range(0, n, LANES):
        count = min(LANES, n - first)
        for w in range(LANES):
            s = first + min(w, count - 1)
            for i in range(d):
                x[i, w], centre[i, w], c[i, w] = h[s, i], u[s, i], target[s, i]
        for _ in range(_MOST_STEPS):
            for i in range(d):
                for j in range(i + 1):
                    for w in range(LANES):
                        curved[i, j, w] = 0.0
                for w in range(LANES):
                    slope[i, w] = form.linear * x[i, w]
                    curved[i, i, w] = form.linear
            for w in range(LANES):
                y[0, w] = 0.0
            for k in range(d, 0, -1):
                for w in range(LANES):
                    y[k, w] = y[0, w] - k * rates[k - 1] * x[k - 1, w]
                    y[0, w] += rates[k - 1] * x[k - 1, w]
            for w in range(LANES):
                largest[w] = y[0, w]
            for k in range(1, d + 1):
                for w in range(LANES):
                    largest[w] = max(largest[w], y[k, w])
            if form.hard != 0.0:
                _add_softmax(form.hard, 1.0, y, largest, p, rates, q, slope, curved)
            if form.soft != 0.0:
                _add_softmax(form.soft, 1.0 / form.temperature, y, largest, p, rates, q, slope, curved)
            for i in range(d):
                for w in range(LANES):
                    move[i, w] = c[i, w] - slope[i, w]
                for j in range(d):
                    for w in range(LANES):
                        move[i, w] -= precision[i, j] * (x[j, w] - centre[j, w])
                for j in range(i + 1):
                    for w in range(LANES):
                        hessian[i, j, w] = curved[i, j, w] + precision[i, j]
            _cholesky(hessian)
            _solve(hessian, move)
            for w in range(LANES):
                size[w], scale[w] = 0.0, 1.0
            for i in range(d):
                for w in range(LANES):
                    x[i, w] += move[i, w]
                    # Of what is not a number no comparison holds, and nothing becomes of it.
                    size[w] = max(size[w], abs(move[i, w])) if move[i, w] == move[i, w] else np.inf
                    scale[w] = max(scale[w], abs(x[i, w]))
            left = 0
            for w in range(LANES):
                left += 0 if size[w] < TOLERANCE * scale[w] else 1
            if left == 0:
                break
        for i in range(d):
            for j in range(i):
                for w in range(LANES):
                    curved[j, i, w] = curved[i, j, w]
        # The last step is so short that the slope at its end is linear in it.
        for i in range(d):
            for w in range(LANES):
                q[i, w] = c[i, w] - slope[i, w]
            for j in range(d):
                for w in range(LANES):
                    q[i, w] -= curved[i, j, w] * move[j, w]
        # D = S' (W^-1 + S')^-1 W^-1, without a difference.
        for j in range(d):
            for i in range(d):
                for w in range(LANES):
                    column[i, w] = precision[i, j]
            _solve(hessian, column)
            for i in range(d):
                for w in range(LANES):
                    turned[i, j, w] = 0.0
                for m in range(d):
                    for w in range(LANES):
                        turned[i, j, w] += curved[i, m, w] * column[m, w]
        for w in range(count):
            s = first + w
            done[s] = size[w] < TOLERANCE * scale[w]
            if done[s]:
                for i in range(d):
                    h[s, i], force[s, i] = x[i, w], q[i, w]
                    for j in range(d):
                        stiffness[s, i, j] = 0.5 * (turned[i, j, w] + turned[j, i, w])
