"""Elementary functions for compiled kernels: stable at both ends, and written so that LLVM can vectorise them."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numerics.codegen.cache import njit

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
"""Of every compiled function.  What is divided by zero is infinite or NaN, and is found by whoever called; an exception could
not leave a function that is called through a pointer."""

OPEN = {**OPTIONS, "open_to_others": True}
"""Of ways in for Python with a signature, which are compiled for other types where they are called with such."""

ENTRY = {**OPTIONS, "apart": True}
"""Of functions of the solver that Python calls too."""

GENERIC = {"nogil": True, "error_model": "numpy"}
"""Of functions that take functions, and are compiled for each."""

INCLUDED = {**GENERIC, "inner": True}
"""Of those among them that Python does not call."""

POINTED = {**OPTIONS, "pointed": True}
"""Of functions that are called through pointers."""

BY_POINTER = {**POINTED, "no_cpython_wrapper": True}
"""Of those that are called in no other way."""

INNER = {**ENTRY, "inner": True}
"""Of all others."""

LATE = {**INNER, "late": True}
"""Of those that few problems need, which are compiled when one does."""

PLAIN = {**INNER, "plain": True}
"""Of those that make no arrays."""

LEAF = {**OPTIONS, "inner": True, "plain": True, "forceinline": True}
"""Of the smallest, which callers include."""

FloatArray = types.float64[::1]
IntArray = types.int64[::1]
Matrix = types.float64[:, ::1]
IntMatrix = types.int64[:, ::1]

Pointer = types.CPointer(types.float64)

POINT_FUNCTION = types.FunctionType(types.void(types.float64, types.float64, Pointer, Pointer, Pointer))
"""``(h, y, logits, parameters, out)``: one value or several of a loss at one point; see :func:`address`."""

ALONG_FUNCTION = types.FunctionType(
    types.void(types.int64, types.float64, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer)
)
"""``(n, y, logits, parameters, h, low, high, curvature, third)``: slopes of a loss at n values of h, which nothing else is at."""

VECTOR_FUNCTION = types.FunctionType(types.void(FloatArray, FloatArray, FloatArray))
"""``(inputs, constants, out)``: equations of the prior, the channel, or their Jacobians (flattened)."""

PointFunctions = types.ListType(POINT_FUNCTION)
VectorFunctions = types.ListType(VECTOR_FUNCTION)

SHARED, SEARCHED = 1, 2
"""What the core is told of a loss: its gradient splits; its bends are not all known."""

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93145751953125e-1
_LN2_LOW = 1.42860682030941723212e-6
_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits
_EXPONENT_BIAS = 1023
_MANTISSA_BITS = 52
_HALF_ROOT_BITS = int(np.float64(math.sqrt(0.5)).view(np.int64))
_ROUND_BITS = int(np.float64(_ROUND).view(np.int64))
_LOWEST_EXPONENT = -708.0  # exp below this is not a normal number, and 0 for our purposes


@intrinsic
def bits_of(typing_context, value):
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


@intrinsic
def address(typing_context, array, offset):
    """Pointer to an entry of a contiguous array, counted from its first; the array must outlive it.

    Arrays passed through function pointers cost more than the loss they carry.
    """

    def build(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return Pointer(array, types.intp), build


# Explicit signatures compile these functions here: compiled for a caller they would inherit its fastmath, which breaks them.


@njit(types.float64(types.float64), fastmath={"contract"}, **OPTIONS)
def exp_nonpositive(x):
    """``exp(x)`` for ``x <= 0``, relative error below 1e-15, without a library call or a branch."""
    kept = max(x, _LOWEST_EXPONENT)
    shifted = kept * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (kept - n * _LN2_HIGH) - n * _LN2_LOW
    # The Taylor series to degree 13 in pairs of terms: a chain of multiplications would cost its latency.
    r2 = r * r
    r4 = r2 * r2
    p0 = (1.0 + r) + (0.5 + 0.16666666666666666 * r) * r2
    p4 = (4.1666666666666664e-2 + 8.333333333333333e-3 * r) + (1.388888888888889e-3 + 1.984126984126984e-4 * r) * r2
    p8 = (2.48015873015873e-5 + 2.7557319223985893e-6 * r) + (2.755731922398589e-7 + 2.505210838544172e-8 * r) * r2
    p12 = 2.08767569878681e-9 + 1.6059043836821613e-10 * r
    p = p0 + r4 * (p4 + r4 * (p8 + r4 * p12))
    value = p * _float_of((bits_of(shifted) + _EXPONENT_BIAS) << _MANTISSA_BITS)
    return value if x >= _LOWEST_EXPONENT else 0.0


@njit(types.float64(types.float64), **OPTIONS)
def log_positive(x):
    """``log(x)`` for normal numbers ``x > 0``, to a few units of rounding of 1, without a library call or a branch."""
    bits = bits_of(x)
    # From sqrt(1/2) on: the exponent is that of x over the root, and what is left is between it and twice it.
    exponent = (bits - _HALF_ROOT_BITS) >> _MANTISSA_BITS
    m = _float_of(bits - (exponent << _MANTISSA_BITS))
    n = _float_of(exponent + _ROUND_BITS) - _ROUND
    # log m = 2 artanh(z), in pairs of terms.
    z = (m - 1.0) / (m + 1.0)
    z2 = z * z
    z4 = z2 * z2
    p = (2.0 + 0.6666666666666666 * z2) + z4 * (
        (0.4 + 0.2857142857142857 * z2)
        + z4 * ((0.2222222222222222 + 0.18181818181818182 * z2)
        + z4 * ((0.15384615384615385 + 0.13333333333333333 * z2) + z4 * (0.11764705882352941 + 0.10526315789473684 * z2)))
    )  # fmt: skip
    return n * _LN2_HIGH + (z * p + n * _LN2_LOW)


@njit(types.float64(types.float64), **OPTIONS)
def sigmoid(x):
    """``1/(1 + exp(-x))`` without overflow."""
    e = exp_nonpositive(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


@njit(types.float64(types.float64), **OPTIONS)
def softplus(x):
    """``log(1 + exp(x))`` without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@njit(types.boolean(Matrix, IntArray), **ENTRY, plain=True)
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


@njit(types.void(Matrix, IntArray, FloatArray), **ENTRY, plain=True)
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


@njit(types.int64(FloatArray, IntArray, types.int64), **LEAF)
def end_of_run(keys, order, begin):
    """Where the keys, in an order, first fall after ``begin``."""
    end = begin + 1
    while end < order.size and not keys[order[end]] < keys[order[end - 1]]:
        end += 1
    return end


@njit(types.void(FloatArray, IntArray, IntArray), **PLAIN)
def argsort(keys, order, other):
    """Indices that sort ``keys``, by merging runs that rise: quick where ``order``, which holds a permutation, has few of them.

    ``other`` is as large, to work with.
    """
    n = keys.size
    if n > 1 and keys[order[n - 1]] < keys[order[0]]:
        for k in range(n // 2):
            order[k], order[n - 1 - k] = order[n - 1 - k], order[k]
    for _ in range(n):
        pairs = 0
        end = 0
        while end < n:
            begin = left = end
            middle = right = end_of_run(keys, order, begin)
            if middle == n and begin == 0:
                return
            end = end_of_run(keys, order, middle) if middle < n else n
            pairs += 1
            for place in range(begin, end):
                if right == end or (left < middle and not keys[order[right]] < keys[order[left]]):
                    other[place] = order[left]
                    left += 1
                else:
                    other[place] = order[right]
                    right += 1
        for place in range(n):
            order[place] = other[place]
        if pairs == 1:
            return


@njit(types.void(FloatArray, Matrix, Matrix), **PLAIN)
def multiply(left, right, product):
    """Product of small dense matrices, into ``product``; ``left`` is flattened, and may have more rows than are wanted."""
    for i in range(product.shape[0]):
        for j in range(product.shape[1]):
            product[i, j] = 0.0
        for k in range(right.shape[0]):
            factor = left[i * right.shape[0] + k]
            if factor != 0.0:
                for j in range(product.shape[1]):
                    product[i, j] += factor * right[k, j]
