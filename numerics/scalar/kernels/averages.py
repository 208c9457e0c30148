"""Gaussian averages of the channel on a grid of proximal points, with every derivative Newton's method needs.

A *node* i is one point of the law of label, earlier fields and earlier logits, with weight ``weight[i]``; a *point* j is one
value of this stage's training logit ``h``.  Node i owns the points ``start[i] <= j < stop[i]``.  On every point
``P = h + gamma S(h)``, so that the field is explicit and only one Gaussian density is evaluated for each pair.

The names imported from ``_generated`` are written by :mod:`numerics.codegen.equations` from ``theory.envelope``.
"""

from __future__ import annotations

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import ENTRY, LEAF, PLAIN, FloatArray, Matrix
from numerics.scalar.kernels.generated import DENSITY_ROW, N_SUMS, accumulate_pairs, point_coefficients
from numerics.scalar.kernels.layout import FIELD, SAMPLES, Node
from numerics.scalar.kernels.proximal import CURVATURE, LOW, THIRD, WEIGHT, H

_INVERSE_SQRT_2PI = 0.3989422804014327


@njit(types.void(types.float64, types.float64, Matrix, types.int64, Matrix), **ENTRY)
def point_tables(gamma, sigma, points, used, tables):
    """Fill ``tables``: P and S of branch 0, P and S of branch 1, Gaussian prefactor, then coefficients of the point alone."""
    for j in range(used):
        for branch in range(2):
            tables[2 * branch, j] = points[H, j] + gamma * points[LOW + branch, j]
            tables[2 * branch + 1, j] = points[LOW + branch, j]
        curvature = points[CURVATURE, j]
        tables[DENSITY_ROW, j] = points[WEIGHT, j] * (1.0 + gamma * curvature) * (_INVERSE_SQRT_2PI / sigma)
        point_coefficients(curvature, points[THIRD, j], gamma, tables, j)


@njit(types.float64(FloatArray, FloatArray), **LEAF, fastmath={"reassoc", "contract", "nsz"})
def dot(first, second):
    """Sum of products."""
    total = 0.0
    for i in range(np.uint64(first.size)):
        total += first[i] * second[i]
    return total


@njit(types.float64(FloatArray, FloatArray, FloatArray), **LEAF, fastmath={"reassoc", "contract", "nsz"})
def dot_three(first, second, third):
    """Sum of products of three factors."""
    total = 0.0
    for i in range(np.uint64(first.size)):
        total += first[i] * second[i] * third[i]
    return total


@njit(
    types.void(FIELD, SAMPLES, Matrix, Matrix, Matrix, Matrix, FloatArray, Matrix), **PLAIN
)  # fmt: skip
def channel_averages(field, samples, statistics, weighted, tables, sums, averages, jacobian):
    """Sum over nodes and points.

    Parameters
    ----------
    samples
        ``centre`` is that of the Gaussian in P, on the branch that ``target`` is measured on.
    statistics : array, shape (w, n)
        Statistics of the nodes, ``s, 1, g_1.., f_1..``: the centre of a node's field is linear in them.
    weighted : array, shape (w, n)
        The same times the weight of the node (alpha included); row 1 is the weight itself.
    sums : array, shape (N_SUMS, n), work space and output
        Row 0: the integral of each node's conditional density, 1 up to truncation and quadrature error.
    averages : array, shape (w + 2,), output
        ``E[statistics f]``, ``E[f^2]``, ``E[df/domega]``.
    jacobian : array, shape (w + 2, w + 2), output
        Their derivatives with respect to the coefficients of ``statistics`` in the centre, then ``sigma``, then ``gamma``.
    """
    n_statistics, n = statistics.shape
    for i in range(n):
        if samples.start[i] == samples.stop[i]:
            sums[0, i] = 1.0
            for r in range(1, N_SUMS):
                sums[r, i] = 0.0
        else:
            node = Node(samples.centre[i], samples.target[i], samples.start[i], samples.stop[i], 2 * samples.branch[i])
            accumulate_pairs(node, i, 1.0 / field.sigma, tables, sums)
    second = n_statistics
    slope = n_statistics + 1
    weight = weighted[1]
    f, f_a, f_sigma, f_gamma = sums[1], sums[2], sums[3], sums[4]
    ff, ff_a, ff_sigma, ff_gamma = sums[5], sums[6], sums[7], sums[8]
    df, df_a, df_sigma, df_gamma = sums[9], sums[10], sums[11], sums[12]
    for k in range(n_statistics):
        row_k = weighted[k]
        averages[k] = dot(row_k, f)
        jacobian[k, second] = dot(row_k, f_sigma)
        jacobian[k, slope] = dot(row_k, f_gamma)
        jacobian[second, k] = dot(row_k, ff_a)
        jacobian[slope, k] = dot(row_k, df_a)
        for m in range(k + 1):
            jacobian[k, m] = dot_three(row_k, statistics[m], f_a)
            jacobian[m, k] = jacobian[k, m]
    averages[second] = dot(weight, ff)
    averages[slope] = dot(weight, df)
    jacobian[second, second] = dot(weight, ff_sigma)
    jacobian[second, slope] = dot(weight, ff_gamma)
    jacobian[slope, second] = dot(weight, df_sigma)
    jacobian[slope, slope] = dot(weight, df_gamma)
