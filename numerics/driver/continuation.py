"""Start a point of a curve from the extrapolation of those before it."""

from __future__ import annotations

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import LATE, FloatArray, Matrix

MOST_POINTS = 5  # that a point is extrapolated from
_LARGEST_WEIGHT = 12.0  # of one of them
_STILL = 1e-9  # a change that is none


@njit(types.float64(Matrix, FloatArray, types.int64, types.int64, FloatArray), **LATE)
def prediction(vectors, position, i, used, out):
    """Vector i by the polynomial through the ``used`` ones before it, into ``out``.

    Fewer are used if they are too close to one another.  Returns the distance from what ``vectors[i]`` holds, in units of the
    step from the one before.
    """
    weights = np.ones(used)
    count = used
    while count > 1:
        largest = 0.0
        for k in range(count):
            weights[k] = 1.0
            for j in range(count):
                if j != k:
                    weights[k] *= (position[i] - position[i - 1 - j]) / (position[i - 1 - k] - position[i - 1 - j])
            largest = max(largest, abs(weights[k]))
        if largest <= _LARGEST_WEIGHT:
            break
        count -= 1
    if count == 1:
        weights[0] = 1.0
    miss = 0.0
    for r in range(vectors.shape[1]):
        value = 0.0
        for k in range(count):
            value += weights[k] * vectors[i - 1 - k, r]
        out[r] = value
        miss += abs(value - vectors[i, r]) / (abs(vectors[i, r] - vectors[i - 1, r]) + _STILL)
    return miss


@njit(types.void(Matrix, FloatArray, types.int64, types.int64, FloatArray), **LATE)
def extrapolate(vectors, position, i, known, out):
    """Vector i from at most the ``known`` ones before it: from as many as would have predicted the last one best."""
    known = min(known, MOST_POINTS)
    best = 2
    least = np.inf
    for used in range(1, known):
        miss = prediction(vectors, position, i - 1, used, out)
        if miss < least:
            best, least = used, miss
    prediction(vectors, position, i, min(best, known), out)
