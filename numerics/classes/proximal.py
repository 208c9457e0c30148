"""Proximal points of losses of K logits, in the d = K-1 coordinates of the gauge.

The rows of :func:`numerics.models.helmert` are constant before their last entry: ``B_ik = r_i`` for k <= i and ``-(i+1) r_i`` for
k = i+1.  Going between logits and coordinates, and the curvature of softmax in coordinates,

    (B diag(p) B^T)_ij = r_i (B p)_j   for i > j,

therefore take sums and no products of matrices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types

from numerics.classes.lanes import FAST, FORM, TOLERANCE, whole_steps
from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import GENERIC, OPTIONS, FloatArray, Matrix
from numerics.scalar.kernels.layout import Cube, record

_VALUE = types.FunctionType(types.float64(*[FloatArray] * 3))
_DERIVATIVES = types.FunctionType(types.void(*[FloatArray] * 4, Matrix))


class Formula(NamedTuple):
    """A user's formula of K classes (:mod:`numerics.codegen.class_losses`).

    Attributes
    ----------
    value, derivatives
        Of one sample, whose context is its label and its teachers' logits.
    parameters
        Of the loss, and ``mean``, what is added to logits that sum to 0.
    """

    value: types.CompileResultWAP
    derivatives: types.CompileResultWAP
    parameters: np.ndarray
    mean: float


FORMULA = record(Formula, _VALUE, _DERIVATIVES, FloatArray, types.float64)

FAST_GENERIC = {**GENERIC, "fastmath": FAST["fastmath"]}

_MOST_STEPS = 100
_LONG_STEP = 0.5  # above which the decrease of the objective is looked at
_ARMIJO = 1e-4
_SHORTEST = 1e-10


@njit(types.boolean(Matrix), **FAST)
def cholesky(matrix):
    """Lower-triangular factor in place (of the lower triangle); False if the matrix is not positive definite."""
    n = matrix.shape[0]
    for i in range(n):
        for j in range(i):
            value = matrix[i, j]
            for k in range(j):
                value -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = value * matrix[j, j]
        value = matrix[i, i]
        for k in range(i):
            value -= matrix[i, k] * matrix[i, k]
        if not value > 0.0:
            return False
        matrix[i, i] = 1.0 / math.sqrt(value)  # the diagonal is kept inverted
    return True


@njit(types.void(Matrix, FloatArray), **FAST)
def cholesky_solve(factor, vector):
    """Solve with the result of :func:`cholesky`, in place."""
    n = vector.size
    for i in range(n):
        value = vector[i]
        for j in range(i):
            value -= factor[i, j] * vector[j]
        vector[i] = value * factor[i, i]
    for i in range(n - 1, -1, -1):
        value = vector[i]
        for j in range(i + 1, n):
            value -= factor[j, i] * vector[j]
        vector[i] = value * factor[i, i]


@njit(types.void(FloatArray, FloatArray, FloatArray), **FAST)
def logits_of(x, rates, h):
    """h = B^T x."""
    above = 0.0
    for k in range(x.size, 0, -1):
        h[k] = above - k * rates[k - 1] * x[k - 1]
        above += rates[k - 1] * x[k - 1]
    h[0] = above


@njit(types.float64(FloatArray, types.float64, FloatArray), **FAST)
def _softmax(h, cold, p):
    """softmax(h cold) into ``p``; returns log sum exp(h cold)."""
    largest = h[0]
    for k in range(1, h.size):
        largest = max(largest, h[k])
    total = 0.0
    for k in range(h.size):
        p[k] = math.exp((h[k] - largest) * cold)
        total += p[k]
    inverse = 1.0 / total
    for k in range(h.size):
        p[k] *= inverse
    return largest * cold + math.log(total)


@njit(types.void(types.float64, types.float64, FloatArray, FloatArray, FloatArray, FloatArray, Matrix), **FAST)
def _add_softmax(weight, cold, p, rates, q, slope, curved):
    """Add ``weight B p`` to the slope and the derivative of that to the curvature, of which it fills the lower triangle."""
    before, turned = p[0], weight * cold
    for i in range(q.size):
        r, own = rates[i], p[i + 1]
        q[i] = r * (before - (i + 1) * own)
        slope[i] += weight * q[i]
        for j in range(i):
            curved[i, j] += turned * (r - q[i]) * q[j]
        curved[i, i] += turned * (r * r * (before + (i + 1) * (i + 1) * own) - q[i] * q[i])
        before += own


@njit(types.float64(FORM, FloatArray, FloatArray, FloatArray, FloatArray, FloatArray), **FAST)
def _potential(form, context, x, rates, h, p):
    """A in coordinates."""
    value = 0.0
    for i in range(x.size):
        value += 0.5 * form.linear * x[i] * x[i]
    if form.hard != 0.0 or form.soft != 0.0:
        logits_of(x, rates, h)
    if form.hard != 0.0:
        value += form.hard * _softmax(h, 1.0, p)
    if form.soft != 0.0:
        value += form.soft * form.temperature * _softmax(h, 1.0 / form.temperature, p)
    return value


@njit(types.void(FORM, *[FloatArray] * 7, Matrix, Matrix), **FAST)
def _slope_and_curvature(form, context, x, rates, h, p, q, slope, curved, square):
    """S and the lower triangle of S' in coordinates."""
    d = x.size
    for i in range(d):
        slope[i] = form.linear * x[i]
        for j in range(i):
            curved[i, j] = 0.0
        curved[i, i] = form.linear
    if form.hard != 0.0 or form.soft != 0.0:
        logits_of(x, rates, h)
    if form.hard != 0.0:
        _softmax(h, 1.0, p)
        _add_softmax(form.hard, 1.0, p, rates, q, slope, curved)
    if form.soft != 0.0:
        cold = 1.0 / form.temperature
        _softmax(h, cold, p)
        _add_softmax(form.soft, cold, p, rates, q, slope, curved)


@njit(**FAST_GENERIC)
def log_sum_exp(x):
    """log sum exp of a tuple."""
    largest = x[0]
    for value in x:
        largest = max(largest, value)
    total = 0.0
    for value in x:
        total += math.exp(value - largest)
    return largest + math.log(total)


@njit(types.void(FloatArray, Matrix, FloatArray, FloatArray, Matrix), **FAST)
def in_coordinates(first, second, rates, slope, curved):
    """``B first`` and the lower triangle of ``B second B^T``; ``second`` (K, K) is overwritten."""
    k_classes, d = first.size, slope.size
    before = first[0]
    for i in range(d):
        slope[i] = rates[i] * (before - (i + 1) * first[i + 1])
        before += first[i + 1]
    for k in range(k_classes):
        before = second[0, k]
        for i in range(d):
            own = second[i + 1, k]
            second[i, k] = rates[i] * (before - (i + 1) * own)
            before += own
    for i in range(d):
        before = second[i, 0]
        for j in range(i + 1):
            own = second[i, j + 1]
            curved[i, j] = rates[j] * (before - (j + 1) * own)
            before += own


@njit(**FAST_GENERIC)
def minimise(potential, slope_and_curvature, form, contexts, precision, u, target, h, force, stiffness):
    """Minimise A(h) - c.h + (h-u)^T W^-1 (h-u)/2 for every sample, from ``h``, which is overwritten.

    Parameters
    ----------
    potential, slope_and_curvature
        Of A, which may depend on the ``form`` and on the sample's row of ``contexts``.
    precision : (d, d)
        W^-1 of W = Delta V.
    u, target : (n, d)
        Centres and targets c.
    force, stiffness : (n, d), (n, d, d)
        Outputs, c - S(h) and D = S'(1 + W S')^-1.

    Returns
    -------
    int
        Samples on which it did not converge.
    """
    n, d = u.shape
    rates = np.empty(d)
    for i in range(d):
        rates[i] = 1.0 / math.sqrt((i + 1.0) * (i + 2.0))
    logits, p = np.empty(d + 1), np.empty(d + 1)
    q, slope, pull, move, trial = np.empty(d), np.empty(d), np.empty(d), np.empty(d), np.empty(d)
    curved, hessian, turned = np.empty((d, d)), np.empty((d, d)), np.empty((d, d))
    square = np.empty((d + 1, d + 1))
    failed = 0
    for s in range(n):
        done = False
        for _ in range(_MOST_STEPS):
            slope_and_curvature(form, contexts[s], h[s], rates, logits, p, q, slope, curved, square)
            for i in range(d):
                value = target[s, i] - slope[i]
                force[s, i] = value
                for j in range(d):
                    value -= precision[i, j] * (h[s, j] - u[s, j])
                pull[i] = move[i] = value
                for j in range(i + 1):
                    hessian[i, j] = curved[i, j] + precision[i, j]
            if not cholesky(hessian):
                break
            cholesky_solve(hessian, move)
            size = 0.0
            for i in range(d):
                size = max(size, abs(move[i]))
            if not size < np.inf:
                break
            fraction = 1.0
            if size > _LONG_STEP:
                gain = 0.0
                for i in range(d):
                    gain += pull[i] * move[i]
                start = potential(form, contexts[s], h[s], rates, logits, p)
                while fraction > _SHORTEST:
                    for i in range(d):
                        trial[i] = h[s, i] + fraction * move[i]
                    change = potential(form, contexts[s], trial, rates, logits, p) - start
                    for i in range(d):
                        change -= fraction * move[i] * target[s, i]
                        for j in range(d):
                            between = h[s, j] - u[s, j] + 0.5 * fraction * move[j]
                            change += fraction * move[i] * precision[i, j] * between
                    if change <= -_ARMIJO * fraction * gain:
                        break
                    fraction *= 0.5
            scale = 1.0
            for i in range(d):
                h[s, i] += fraction * move[i]
                scale = max(scale, abs(h[s, i]))
            if fraction == 1.0 and size < TOLERANCE * scale:
                done = True
                break
        if not done:
            failed += 1
            continue
        # The last step is so short that the slope at its end is linear in it.
        for i in range(d):
            for j in range(i):
                curved[j, i] = curved[i, j]
        for i in range(d):
            for j in range(d):
                force[s, i] -= curved[i, j] * move[j]
        # D = S' (W^-1 + S')^-1 W^-1, without a difference.
        for j in range(d):
            for i in range(d):
                trial[i] = precision[i, j]
            cholesky_solve(hessian, trial)
            for i in range(d):
                value = 0.0
                for m in range(d):
                    value += curved[i, m] * trial[m]
                turned[i, j] = value
        for i in range(d):
            for j in range(d):
                stiffness[s, i, j] = 0.5 * (turned[i, j] + turned[j, i])
    return failed


@njit(types.int64(FORM, Matrix, Matrix, Matrix, Matrix, Matrix, Cube), **FAST)
def proximal_points(form, precision, u, target, h, force, stiffness):
    """Minimise A(h) - c.h + (h-u)^T W^-1 (h-u)/2 for every sample, from ``h``, which is overwritten; see :func:`minimise`."""
    n = len(u)
    done = np.zeros(n, dtype=np.bool_)
    whole_steps(form, precision, u, target, h, force, stiffness, done)
    failed = 0
    for s in range(n):
        if not done[s]:
            one = slice(s, s + 1)
            failed += minimise(
                _potential, _slope_and_curvature, form, target[one], precision, u[one], target[one], h[one], force[one],
                stiffness[one],
            )  # fmt: skip
    return failed


# A formula.


@njit(types.float64(FORMULA, *[FloatArray] * 5), **FAST)
def _value(formula, context, x, rates, h, p):
    logits_of(x, rates, h)
    for k in range(h.size):
        h[k] += formula.mean
    return formula.value(h, context, formula.parameters)


@njit(types.void(FORMULA, *[FloatArray] * 7, Matrix, Matrix), **FAST)
def _derivatives(formula, context, x, rates, h, p, q, slope, curved, square):
    logits_of(x, rates, h)
    for k in range(h.size):
        h[k] += formula.mean
    formula.derivatives(h, context, formula.parameters, p, square)
    in_coordinates(p, square, rates, slope, curved)


@njit(types.int64(FORMULA, *[Matrix] * 6, Cube), **FAST)
def points_of_formula(formula, contexts, precision, u, target, h, force, stiffness):
    """As :func:`minimise`, of a formula; targets are 0."""
    return minimise(_value, _derivatives, formula, contexts, precision, u, target, h, force, stiffness)


@njit(types.float64(FORMULA, *[FloatArray] * 5), **FAST)
def _whole_value(formula, context, x, rates, h, p):
    return formula.value(x, context, formula.parameters)


@njit(types.void(FORMULA, *[FloatArray] * 7, Matrix, Matrix), **FAST)
def _whole_derivatives(formula, context, x, rates, h, p, q, slope, curved, square):
    formula.derivatives(x, context, formula.parameters, p, square)
    for i in range(x.size):
        slope[i] = p[i]
        for j in range(i + 1):
            curved[i, j] = square[i, j]


@njit(types.int64(FORMULA, *[Matrix] * 6, Cube), **FAST)
def whole_points_of_formula(formula, contexts, precision, u, target, h, force, stiffness):
    """As :func:`points_of_formula`, where coordinates are the K logits themselves."""
    return minimise(_whole_value, _whole_derivatives, formula, contexts, precision, u, target, h, force, stiffness)


@njit(types.void(FORMULA, Matrix, Matrix, FloatArray), **OPTIONS)
def values_of_formula(formula, contexts, h, out):
    """At samples with K logits each."""
    for i in range(h.shape[0]):
        out[i] = formula.value(h[i] + formula.mean, contexts[i], formula.parameters)


@njit(types.void(FORMULA, Matrix, Matrix, Matrix, Cube), **OPTIONS)
def derivatives_of_formula(formula, contexts, h, first, second):
    """First and second ones at samples with K logits each."""
    for i in range(h.shape[0]):
        formula.derivatives(h[i] + formula.mean, contexts[i], formula.parameters, first[i], second[i])


@njit(types.void(Matrix, Matrix, Matrix, Matrix, Cube, Matrix), **FAST)
def predict(moved, change, response, force, stiffness, h):
    """Proximal points where centres have ``moved`` (n, d), and W by ``change`` to ``response``, to first order, into ``h``.

    ``h`` comes with the new centres, and ``force`` and ``stiffness`` are those found before.
    """
    n, d = h.shape
    shift, new = np.empty(d), np.empty(d)
    for s in range(n):
        for i in range(d):
            shift[i] = moved[s, i]
            for j in range(d):
                shift[i] += change[i, j] * force[s, j]
        for i in range(d):
            new[i] = force[s, i]
            for j in range(d):
                new[i] -= stiffness[s, i, j] * shift[j]
        for i in range(d):
            for j in range(d):
                h[s, i] += response[i, j] * new[j]
