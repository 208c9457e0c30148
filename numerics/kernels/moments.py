"""Gaussian averages of the channel on a grid of proximal points, with every derivative Newton's method needs.

A *node* i is one point of the law of label, earlier fields and earlier logits, with weight ``weight[i]``; a *point* j is one
value of this stage's training logit ``h``.  Node i owns the points ``start[i] <= j < stop[i]``.  On every point
``P = h + gamma S(h)``, so that the field is explicit and only one Gaussian density is evaluated for each pair.

The names imported from ``_generated`` are written by :mod:`numerics.codegen` from ``theory.envelope``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from numerics.kernels.elementary import FloatArray, IntArray, Matrix
from numerics.kernels.grid import CURVATURE, LOW, THIRD, WEIGHT, H

from ._generated import DENSITY_ROW, N_MOMENTS, accumulate_pairs, point_coefficients  # generated

_INVERSE_SQRT_2PI = 0.3989422804014327


@njit(types.void(types.float64, types.float64, Matrix, types.int64, Matrix), cache=True, nogil=True)
def point_tables(gamma, sigma, points, used, tables):
    """Fill ``tables``: P and S of branch 0, P and S of branch 1, Gaussian prefactor, then coefficients of the point alone."""
    for j in range(used):
        for branch in range(2):
            tables[2 * branch, j] = points[H, j] + gamma * points[LOW + branch, j]
            tables[2 * branch + 1, j] = points[LOW + branch, j]
        curvature = points[CURVATURE, j]
        tables[DENSITY_ROW, j] = points[WEIGHT, j] * (1.0 + gamma * curvature) * (_INVERSE_SQRT_2PI / sigma)
        point_coefficients(curvature, points[THIRD, j], gamma, tables, j)


@njit(
    types.void(
        types.float64, types.float64, FloatArray, Matrix, FloatArray, FloatArray, IntArray, IntArray, IntArray, Matrix,
        FloatArray, Matrix, FloatArray,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def channel_averages(
    gamma, sigma, weight, design, centre, target, branch, start, stop, tables, averages, jacobian, norms
):  # fmt: skip
    """Sum over nodes and points.

    Parameters
    ----------
    weight, centre, target, branch, start, stop : arrays, shape (n,)
        Weights (alpha included), Gaussian centres in P, target ``c`` (gradient ``S - c``) with the branch both are measured
        on, and point ranges of the nodes.
    design : array, shape (n, w)
        Statistics of a node: ``s, 1, g_1.., f_1..``; the centre of its field is linear in them.
    averages : array, shape (w + 2,), output
        ``E[design f]``, ``E[f^2]``, ``E[df/domega]``.
    jacobian : array, shape (w + 2, w + 2), output
        Their derivatives with respect to the coefficients of ``design`` in the centre, then ``sigma``, then ``gamma``.
    norms : array, shape (n,), output
        The integral of each node's conditional density, 1 up to truncation and quadrature error.
    """
    n_statistics = design.shape[1]
    sums = np.empty(N_MOMENTS)
    second = n_statistics
    slope = n_statistics + 1
    for k in range(n_statistics + 2):
        averages[k] = 0.0
        for m in range(n_statistics + 2):
            jacobian[k, m] = 0.0
    for i in range(weight.size):
        norms[i] = 1.0
        if start[i] == stop[i]:
            continue
        row = 2 * branch[i]
        accumulate_pairs(centre[i], 1.0 / sigma, gamma, target[i], start[i], stop[i], row, row + 1, tables, sums)
        norms[i] = sums[0]
        p = weight[i]
        f, f_a, f_sigma, f_gamma = sums[1], sums[2], sums[3], sums[4]
        ff, ff_a, ff_sigma, ff_gamma = sums[5], sums[6], sums[7], sums[8]
        df, df_a, df_sigma, df_gamma = sums[9], sums[10], sums[11], sums[12]
        for k in range(n_statistics):
            d = p * design[i, k]
            averages[k] += d * f
            jacobian[k, second] += d * f_sigma
            jacobian[k, slope] += d * f_gamma
            jacobian[second, k] += d * ff_a
            jacobian[slope, k] += d * df_a
            for m in range(k + 1):
                jacobian[k, m] += d * design[i, m] * f_a
        averages[second] += p * ff
        averages[slope] += p * df
        jacobian[second, second] += p * ff_sigma
        jacobian[second, slope] += p * ff_gamma
        jacobian[slope, second] += p * df_sigma
        jacobian[slope, slope] += p * df_gamma
    for k in range(n_statistics):
        for m in range(k):
            jacobian[m, k] = jacobian[k, m]
