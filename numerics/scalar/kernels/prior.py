"""Moments of the weights of the stages solved so far, for the prior of the next one."""

from __future__ import annotations

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import INNER, PLAIN, VECTOR_FUNCTION, FloatArray, Matrix
from numerics.scalar.kernels.layout import ETA, MOMENTS, RIDGE, Moments

_FIRST = 2  # of the moments among the constants of the prior


@njit(MOMENTS(FloatArray, Matrix), **INNER)
def no_moments(share, active):
    """Room for the moments of all stages, in groups of coordinates of which they train those that are ``active``."""
    groups, stages = active.shape
    return Moments(
        share,
        active,
        np.zeros((groups, stages)),
        np.zeros((groups, stages, stages)),
        np.zeros((groups, stages, stages)),
    )


@njit(
    types.void(MOMENTS, types.int64, types.float64, types.int64, types.int64, FloatArray), **PLAIN
)  # fmt: skip
def add_moments(moments, group, share, k, first, out):
    """Add ``share`` times the moments of the first k stages' weights from ``out[first]`` on: mu, then two lower triangles."""
    for s in range(k):
        out[first + s] += share * moments.mu[group, s]
        row = first + k + s * (s + 1) // 2
        for r in range(s + 1):
            out[row + r] += share * moments.covariance[group, s, r]
            out[row + r + k * (k + 1) // 2] += share * moments.propagator[group, s, r]


@njit(FloatArray(MOMENTS, types.int64, types.float64), **INNER)
def prior_constants(moments, k, ridge):
    """eta, ridge, moments of the k earlier stages' weights given that the stage after them is active."""
    out = np.zeros(_FIRST + k + k * (k + 1))
    for a in range(moments.share.size):
        out[ETA] += moments.share[a] * moments.active[a, k]
    out[RIDGE] = ridge
    for a in range(moments.share.size):
        share = moments.share[a] * moments.active[a, k] / out[ETA]
        add_moments(moments, a, share, k, _FIRST, out)
    return out


@njit(types.void(MOMENTS, VECTOR_FUNCTION, types.int64, types.float64, FloatArray), **INNER)
def append_trained(moments, moments_of, t, ridge, conjugate):
    """Moments of stage t's weights and their products with earlier ones, in every group in which the stage is active."""
    found = np.empty(3 + 2 * t)
    mu, covariance, propagator = moments.mu, moments.covariance, moments.propagator
    for a in range(mu.shape[0]):
        if moments.active[a, t] == 0.0:
            continue
        constants = np.zeros(1 + t + t * (t + 1))
        constants[0] = ridge
        add_moments(moments, a, 1.0, t, 1, constants)
        moments_of(conjugate, constants, found)
        mu[a, t] = found[0]
        for s in range(t + 1):
            covariance[a, t, s] = covariance[a, s, t] = found[1 + s]
            propagator[a, t, s] = found[2 + t + s]


@njit(types.void(MOMENTS, types.int64, types.float64, types.float64), **INNER)
def append_given(moments, t, m, mean_square):
    """The same for given weights ``w = m v + noise``, which do not react; ``mean_square`` is that of one of them."""
    mu, covariance = moments.mu, moments.covariance
    for a in range(mu.shape[0]):
        if moments.active[a, t] == 0.0:
            continue
        mu[a, t] = m
        for s in range(t):
            covariance[a, t, s] = covariance[a, s, t] = m * mu[a, s]
        covariance[a, t, t] = mean_square
