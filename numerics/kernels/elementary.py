"""Elementary functions for compiled kernels: stable at both ends, and written so that LLVM can vectorise them."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93145751953125e-1
_LN2_LOW = 1.42860682030941723212e-6
_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits
_EXPONENT_BIAS = 1023
_MANTISSA_BITS = 52
_LOWEST_EXPONENT = -200.0  # exp below this is 0 for our purposes; denormals would cost four times as much


@intrinsic
def _bits_of(typing_context, value):
    """Reinterpret a float64 as int64."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), build


@intrinsic
def _float_of(typing_context, value):
    """Reinterpret an int64 as float64."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), build


@njit(cache=True, inline="never")
def exp_nonpositive(x):
    """``exp(x)`` for ``x <= 0``, relative error below 1e-15, without a library call or a branch."""
    x = max(x, _LOWEST_EXPONENT)
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = 1.6059043836821613e-10
    p = p * r + 2.08767569878681e-9
    p = p * r + 2.505210838544172e-8
    p = p * r + 2.755731922398589e-7
    p = p * r + 2.7557319223985893e-6
    p = p * r + 2.48015873015873e-5
    p = p * r + 1.984126984126984e-4
    p = p * r + 1.388888888888889e-3
    p = p * r + 8.333333333333333e-3
    p = p * r + 4.1666666666666664e-2
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * _float_of((_bits_of(shifted) + _EXPONENT_BIAS) << _MANTISSA_BITS)


@njit(cache=True)
def sigmoid(x):
    """``1/(1 + exp(-x))`` without overflow."""
    e = math.exp(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


@njit(cache=True)
def softplus(x):
    """``log(1 + exp(x))`` without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@njit(cache=True)
def normal_cdf(x):
    """Distribution function of a standard normal variable."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


@njit(cache=True)
def lu_factor(matrix, pivots):
    """LU factorisation with partial pivoting, in place.  Returns False for a singular or non-finite matrix."""
    n = matrix.shape[0]
    for k in range(n):
        best = k
        for i in range(k + 1, n):
            if abs(matrix[i, k]) > abs(matrix[best, k]):
                best = i
        pivots[k] = best
        if not (0.0 < abs(matrix[best, k]) < np.inf):
            return False
        if best != k:
            for j in range(n):
                matrix[k, j], matrix[best, j] = matrix[best, j], matrix[k, j]
        for i in range(k + 1, n):
            matrix[i, k] /= matrix[k, k]
            factor = matrix[i, k]
            for j in range(k + 1, n):
                matrix[i, j] -= factor * matrix[k, j]
    return True


@njit(cache=True)
def lu_solve(matrix, pivots, vector):
    """Solve with the result of :func:`lu_factor`; overwrites ``vector``."""
    n = matrix.shape[0]
    for k in range(n):
        if pivots[k] != k:
            vector[k], vector[pivots[k]] = vector[pivots[k]], vector[k]
    for i in range(n):
        for j in range(i):
            vector[i] -= matrix[i, j] * vector[j]
    for i in range(n - 1, -1, -1):
        for j in range(i + 1, n):
            vector[i] -= matrix[i, j] * vector[j]
        vector[i] /= matrix[i, i]
