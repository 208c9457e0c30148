"""A stage's field: the only place that knows its mean ``s m + b + sqrt(Delta) sum_k C_k g_k + Delta sum_k V_k f_k``."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.codegen.room import PART
from numerics.scalar.kernels.elementary import INNER, LATE, LEAF, PLAIN, FloatArray, Matrix
from numerics.scalar.kernels.layout import FIELD, ORDER_PARAMETERS, Field, record


@njit(record(Field, PART, types.float64, types.float64)(ORDER_PARAMETERS, types.float64, FloatArray), **LEAF)
def field_in(order, delta, coefficients):
    """Field on the samples that a stage is trained on, with its coefficients in a given array."""
    k = order.couplings.size
    root = math.sqrt(delta)
    coefficients[0] = order.m
    coefficients[1] = order.b
    for r in range(k):
        coefficients[2 + r] = root * order.couplings[r]
        coefficients[2 + k + r] = delta * order.responses[r]
    return Field(coefficients, root * order.norm, delta * order.response)


@njit(FIELD(ORDER_PARAMETERS, types.float64), **INNER)
def field_of(order, delta):
    """The same, in an array of its own."""
    coefficients = np.empty(2 + 2 * order.couplings.size)
    field = field_in(order, delta, coefficients)
    return Field(coefficients, field.sigma, field.gamma)


@njit(FIELD(ORDER_PARAMETERS, types.float64), **LATE)
def field_of_fresh(order, delta):
    """Field on fresh samples: earlier forces are not felt, and there is no own."""
    k = order.couplings.size
    field = field_of(order, delta)
    field.coefficients[2 + k :] = 0.0
    return Field(field.coefficients, field.sigma, 0.0)


@njit(types.void(FIELD, Matrix, FloatArray), **PLAIN)
def add_field_means(field, statistics, out):
    """Add the mean of the field given each node, from ``s, 1, g_1.., f_1..``, shape (n, 2 + 2k), to what ``out`` holds."""
    c = field.coefficients
    k = (c.size - 2) // 2
    for i in range(out.size):
        mean = c[0] * statistics[i, 0] + c[1] * statistics[i, 1] + out[i]
        for r in range(2, 2 + k):
            mean += c[r] * statistics[i, r] + c[k + r] * statistics[i, k + r]
        out[i] = mean


@njit(types.void(FIELD, Matrix, FloatArray, FloatArray), **PLAIN)
def centres_in_p(field, statistics, target, out):
    """Mean of ``P(h)`` given each node: that of the field, and the target's pull."""
    for i in range(out.size):
        out[i] = field.gamma * target[i]
    add_field_means(field, statistics, out)
