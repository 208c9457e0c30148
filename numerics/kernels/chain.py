"""Solve whole chains, point after point: all stages, at successive quadrature levels until the error estimate is small.

Everything loss-dependent arrives as lists of compiled functions, so that this file is compiled once.  Arrays carry a leading
point index and are padded to the number T of stages: ``x`` has shape (points, T, 2T + 2), and stage t (from 0) uses the
first 2t + 4 entries of its row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

from numerics.kernels.elementary import (
    POINT_FUNCTION,
    FloatArray,
    IntArray,
    IntMatrix,
    Matrix,
    PointFunctions,
    VectorFunctions,
    address,
)
from numerics.kernels.nodes import extend_nodes, select_columns
from numerics.kernels.stage import CONVERGED, MOMENTS, N_EQUATIONS, NOT_TRIED, TOO_MANY_ITERATIONS, solve_stage, unpack

N_POINT_FUNCTIONS = 3
SLOPES, TARGETS, FEATURES = range(N_POINT_FUNCTIONS)
"""Order of a loss's functions in the list of point functions."""

N_SETTINGS = 13
(
    FIELD_STEP, OUTER_STEP, REFINEMENT, TAIL, TOLERANCE, MAX_ITERATIONS, RTOL, MAX_LEVELS, FIRST_RIDGE, RIDGE_STEPS,
    COARSE_FACTOR, COARSE_TOLERANCE, CHECK_FACTOR,
) = range(N_SETTINGS)  # fmt: skip
"""Order of the entries of the settings vector."""

STATUS, ITERATIONS, RESIDUAL, LAST_STEP, DEFECT = range(5)
"""Columns of the statistics of a stage."""

_Cube = types.float64[:, :, ::1]
_Hypercube = types.float64[:, :, :, ::1]
_SMALLEST_STRIDE = 1e-3
_EASY_RIDGE = 1e-3  # times the loss's curvature
_SAMPLED_NODES = 8  # at which the loss's units are read off
_COARSE_TAIL = 1e-8
_CHECK_TAIL = 100.0  # times the tail of the level that is checked
_SAFETY = 2.0
_LEAST_GAIN = 0.01  # of a level over the coarser one that checks it
_TAIL_REFINEMENT = 0.1  # from one level to the next, so that the error estimate sees what is cut off
_FIRST_STRIDE = 1.5
_LARGEST_STRIDE = 3.0


@njit(FloatArray(FloatArray, types.int64), cache=True, nogil=True)
def head(row, n):
    """Copy of the first n entries."""
    out = np.empty(n)
    for i in range(n):
        out[i] = row[i]
    return out


@njit(types.float64(FloatArray, types.int64), cache=True, nogil=True)
def norm_squared(x, k):
    """Q_tt from the unknowns of a stage with k earlier ones."""
    q = math.exp(x[2 + k])
    for r in range(k):
        q += x[2 + r] ** 2
    return q


@njit(
    types.UniTuple(types.float64, 2)(POINT_FUNCTION, POINT_FUNCTION, FloatArray, Matrix, FloatArray),
    cache=True, nogil=True,
)  # fmt: skip
def loss_units(slopes, targets, labels, logits, parameters):
    """Units of logits and of curvature in which the loss is like the cross-entropy, whose force at 0 is 1/2, curvature 1/4."""
    slope = np.empty(4)
    pair = np.empty(2)
    force = 0.0
    curvature = 0.0
    values = address(parameters, 0)
    stride = labels.size // _SAMPLED_NODES + 1
    for i in range(0, labels.size, stride):
        earlier = address(logits, i * logits.shape[1])
        slopes(0.0, labels[i], earlier, values, address(slope, 0))
        targets(0.0, labels[i], earlier, values, address(pair, 0))
        force += (pair[0] - slope[0]) ** 2
        curvature += slope[2]
    count = (labels.size + stride - 1) // stride
    force = math.sqrt(force / count)
    curvature /= count
    if not (0.0 < force < np.inf and 0.0 < curvature < np.inf):
        return 1.0, 1.0
    return force / (2.0 * curvature), 4.0 * curvature


@njit(
    types.void(
        FloatArray, types.int64, types.float64, types.float64, types.float64, types.int64, types.float64, types.float64, Matrix,
        FloatArray,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def first_guess(data, k, ridge, eta, mixing, teacher, unit, curvature, earlier, x):
    """Rough order parameters: norms grow with log(1 + eta/ridge), or follow the teacher's (stage number ``teacher``, 0: none).

    ``unit`` and ``curvature`` are the loss's; see :func:`loss_units`.
    """
    size = unit * math.log1p(eta * curvature / ridge) / math.sqrt(2.0)
    for r in range(x.size):
        x[r] = 0.0
    v = 0.7 * min(eta / ridge, 100.0 / curvature)
    norm = size
    x[1] = 0.5 * unit * math.log(data[1] / (1.0 - data[1]))
    if teacher > 0:
        row = earlier[teacher - 1]
        teacher_norm = math.sqrt(norm_squared(row, teacher - 1))
        norm = mixing * min(teacher_norm, size) + (1.0 - mixing) * size
        v = 0.7 * min(eta / ridge, 100.0 * (1.0 / curvature + math.exp(row[2 * teacher + 1])))
        x[1] = row[1]
    norm = max(norm, 1e-8 * unit)
    x[0] = 0.7 * eta * norm
    for s in range(k):
        if s == k - 1:
            share = math.exp(0.5 * earlier[s, 2 + s]) / math.sqrt(norm_squared(earlier[s], s))
            x[2 + s] = 0.6 * eta * norm * share
    x[2 + k] = math.log(0.8 * eta * norm**2)
    x[2 * k + 3] = math.log(v)


@njit(
    types.int64(
        PointFunctions, VectorFunctions, IntArray, IntArray, IntMatrix, IntArray, FloatArray, FloatArray, FloatArray, Matrix,
        Matrix, FloatArray, _Cube, IntArray, FloatArray, types.float64, types.float64, types.float64, types.boolean, Matrix,
        IntArray, Matrix, Matrix, Matrix,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def solve_level(
    point_functions, functions, shareable, n_features, seen, n_parameters, data, ridges, pattern_share, pattern_active,
    parameters, mixing, extra, n_extra, settings, factor, tail, tolerance, check, x, started, conjugates, updates, stats,
):  # fmt: skip
    """All stages at one quadrature level; returns how many converged (it stops at the first that does not).

    ``x`` holds starting points where ``started`` is 1, and the solution afterwards.  With ``check`` it holds the solution of
    another level, and one step of Newton's method takes it near this level's: all that an error estimate needs.
    """
    n_stages = ridges.size
    n_patterns = pattern_share.size
    alpha, rho, delta = data[0], data[1], data[2]
    max_iterations = 1 if check else int(settings[MAX_ITERATIONS])
    root_delta = math.sqrt(delta)
    weight = np.empty(2)
    design = np.empty((2, 2))
    labels = np.empty(2)
    logits = np.empty((2, 0))
    for i in range(2):
        labels[i] = 1.0 - i
        weight[i] = alpha * (rho if i == 0 else 1.0 - rho)
        design[i, 0] = 1.0 - 2.0 * i
        design[i, 1] = 1.0
    mu = np.zeros((n_patterns, n_stages))
    covariance = np.zeros((n_patterns, n_stages, n_stages))
    propagator = np.zeros((n_patterns, n_stages, n_stages))
    triangle = np.empty(n_stages * (n_stages + 1) // 2)
    n_triangle = 0
    responses = np.empty(n_stages)
    for t in range(n_stages):
        k = t
        first = N_EQUATIONS * t
        slopes = point_functions[N_POINT_FUNCTIONS * t + SLOPES]
        targets = point_functions[N_POINT_FUNCTIONS * t + TARGETS]
        features = point_functions[N_POINT_FUNCTIONS * t + FEATURES]
        loss_parameters = head(parameters[t], n_parameters[t])
        cholesky_constants = head(triangle, n_triangle)
        channel_constants = np.empty(1 + n_triangle)
        channel_constants[0] = delta
        for r in range(n_triangle):
            channel_constants[1 + r] = triangle[r]
        # Moments of the earlier weights, averaged given that this stage is active.
        eta = 0.0
        for a in range(n_patterns):
            eta += pattern_share[a] * pattern_active[a, t]
        prior_constants = np.zeros(2 + k + k * (k + 1))
        prior_constants[0] = eta
        prior_constants[1] = ridges[t]
        for a in range(n_patterns):
            share = pattern_share[a] * pattern_active[a, t] / eta
            position = 2
            for s in range(k):
                prior_constants[position] += share * mu[a, s]
                position += 1
            for s in range(k):
                for r in range(s + 1):
                    prior_constants[position] += share * covariance[a, s, r]
                    prior_constants[position + k * (k + 1) // 2] += share * propagator[a, s, r]
                    position += 1
        earlier_responses = head(responses, k)
        visible = select_columns(logits, seen[t])
        teacher = 0
        for r in range(seen.shape[1]):
            if seen[t, r] > 0:
                teacher = seen[t, r]
        unit, curvature = 1.0, 1.0
        if not check:
            unit, curvature = loss_units(slopes, targets, labels, visible, loss_parameters)
        size = 2 * k + 4
        unknowns = np.empty(size)
        conjugate = np.empty(size)
        updated = np.empty(size - 1)
        step = settings[FIELD_STEP] * factor
        status = NOT_TRIED
        iterations = 0
        residual = last_step = defect = np.inf
        for attempt in range(2):
            if attempt == 0:
                if started[t] == 0:
                    continue
                for r in range(size):
                    unknowns[r] = x[t, r]
            else:
                first_guess(data, k, ridges[t], eta, mixing[t], teacher, unit, curvature, x, unknowns)
            status, used, residual, last_step, defect = solve_stage(
                slopes, targets, features, n_features[t], shareable[t], functions, first, unknowns, weight, design, labels,
                visible, loss_parameters, delta, channel_constants, prior_constants, cholesky_constants, earlier_responses,
                step, tail, tolerance, max_iterations, conjugate, updated,
            )  # fmt: skip
            iterations += used
            if check and status == TOO_MANY_ITERATIONS:
                status = CONVERGED
            if status == CONVERGED or check:
                break
        # Failing that, along a path of falling ridges: from one so large that the weights hardly react, or, for a student of
        # earlier stages, from the guess at a ridge where it is good.
        for route in range(2 if teacher > 0 else 1):
            if status != CONVERGED and not check:
                goal = math.log(ridges[t])
                here = max(math.log(settings[FIRST_RIDGE] * curvature * (1.0 + alpha)), goal + 1.0)
                path_constants = head(prior_constants, prior_constants.size)
                trial = np.empty(size)
                previous = np.empty(size)
                previous_at = np.nan
                current = np.zeros(size)
                reaction = eta * alpha * unit * curvature / (math.exp(here) + 0.25 * curvature * alpha)
                current[0] = 0.5 * reaction
                current[1] = 0.5 * unit * math.log(rho / (1.0 - rho))
                current[2 + k] = 2.0 * math.log(reaction) + math.log1p(1.0 / alpha) - 1.0
                current[size - 1] = math.log(eta) - here
                if route == 1:
                    here = max(math.log(_EASY_RIDGE * curvature), goal + 1.0)
                    first_guess(data, k, math.exp(here), eta, mixing[t], teacher, unit, curvature, x, current)
                stride = 0.0
                path_status = CONVERGED
                for _ in range(int(settings[RIDGE_STEPS])):
                    there = max(here - stride, goal)
                    path_constants[1] = math.exp(there)
                    for r in range(size):
                        trial[r] = current[r]
                        if math.isfinite(previous_at) and here != previous_at:
                            trial[r] += (current[r] - previous[r]) * (there - here) / (here - previous_at)
                    path_status, used, path_residual, path_step, path_defect = solve_stage(
                        slopes, targets, features, n_features[t], shareable[t], functions, first, trial, weight, design, labels,
                        visible, loss_parameters, delta, channel_constants, path_constants, cholesky_constants,
                        earlier_responses, step, tail, tolerance, max_iterations, conjugate, updated,
                    )  # fmt: skip
                    iterations += used
                    if path_status == CONVERGED:
                        for r in range(size):
                            previous[r] = current[r]
                            current[r] = trial[r]
                        previous_at = here if stride > 0.0 else np.nan
                        here = there
                        stride = min(1.6 * stride, _LARGEST_STRIDE) if stride > 0.0 else _FIRST_STRIDE
                        if here == goal:
                            break
                    else:
                        if stride == 0.0:
                            break
                        stride *= 0.4
                        previous_at = np.nan
                        if stride < _SMALLEST_STRIDE:
                            break
                if path_status == CONVERGED and here == goal:
                    status, residual, last_step, defect = CONVERGED, path_residual, path_step, path_defect
                    for r in range(size):
                        unknowns[r] = current[r]
        for r in range(size):
            x[t, r] = unknowns[r]
            conjugates[t, r] = conjugate[r]
        for r in range(size - 1):
            updates[t, r] = updated[r]
        stats[t, STATUS] = status
        stats[t, ITERATIONS] += iterations
        stats[t, RESIDUAL] = residual
        stats[t, LAST_STEP] = last_step
        stats[t, DEFECT] = defect
        if status != CONVERGED:
            return t
        if t + 1 == n_stages:
            break
        moments_of = functions[first + MOMENTS]
        pattern_constants = np.empty(1 + k + k * (k + 1))
        moments = np.empty(1 + 2 * (k + 1))
        for a in range(n_patterns):
            if pattern_active[a, t] == 0.0:
                continue
            pattern_constants[0] = ridges[t]
            position = 1
            for s in range(k):
                pattern_constants[position] = mu[a, s]
                position += 1
            for s in range(k):
                for r in range(s + 1):
                    pattern_constants[position] = covariance[a, s, r]
                    pattern_constants[position + k * (k + 1) // 2] = propagator[a, s, r]
                    position += 1
            moments_of(conjugate, pattern_constants, moments)
            mu[a, t] = moments[0]
            for s in range(k + 1):
                covariance[a, t, s] = moments[1 + s]
                covariance[a, s, t] = moments[1 + s]
                propagator[a, t, s] = moments[2 + k + s]
        theta = np.empty(size)
        unpack(unknowns, theta)
        for s in range(k + 1):
            triangle[n_triangle] = theta[2 + s]
            n_triangle += 1
        responses[t] = theta[size - 1]
        coefficients = np.empty(k)
        shifts = np.empty(k)
        for s in range(k):
            coefficients[s] = root_delta * theta[2 + s]
            shifts[s] = delta * theta[3 + k + s]
        wanted = np.empty((n_extra[t], 2))
        for r in range(n_extra[t]):
            wanted[r, 0] = extra[t, r, 0]
            wanted[r, 1] = extra[t, r, 1]
        weight, design, labels, logits, _ = extend_nodes(
            slopes, targets, features, n_features[t], shareable[t], weight, design, labels, logits, visible, loss_parameters,
            theta[0], theta[1], coefficients, root_delta * theta[2 + k], shifts, delta * theta[size - 1],
            settings[OUTER_STEP] * factor, tail, wanted,
        )  # fmt: skip
    return n_stages


@njit(types.float64(Matrix, Matrix, types.int64), cache=True, nogil=True)
def largest_change(before, after, n_stages):
    """Largest change of an order parameter, relative to the norm, 1 + norm, norm squared, or responses."""
    worst = 0.0
    for t in range(n_stages):
        root = math.sqrt(norm_squared(after[t], t))
        v = math.exp(after[t, 2 * t + 3])
        worst = max(worst, abs(before[t, 0] - after[t, 0]) / root)
        worst = max(worst, abs(before[t, 1] - after[t, 1]) / (1.0 + root))
        for s in range(t):
            worst = max(worst, abs(before[t, 2 + s] - after[t, 2 + s]) / root)
            mean = math.sqrt(v * math.exp(after[s, 2 * s + 3]))
            worst = max(worst, abs(before[t, 3 + t + s] - after[t, 3 + t + s]) / mean)
        worst = max(worst, abs(math.exp(before[t, 2 + t]) - math.exp(after[t, 2 + t])) / root**2)
        worst = max(worst, abs(math.exp(before[t, 2 * t + 3]) - v) / v)
    return worst


@njit(
    types.void(
        PointFunctions, VectorFunctions, IntArray, IntArray, IntMatrix, IntArray, Matrix, Matrix, Matrix, _Cube, _Cube,
        Matrix, _Hypercube, IntMatrix, FloatArray, FloatArray, types.boolean, _Cube, IntMatrix, _Cube, _Cube, _Cube, Matrix,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def solve_points(
    point_functions, functions, shareable, n_features, seen, n_parameters, data, ridges, pattern_share, pattern_active,
    parameters, mixing, extra, n_extra, settings, position, continued, x, started, conjugates, updates, stats, summary,
):  # fmt: skip
    """Solve all points in order.

    Parameters
    ----------
    data : array, shape (points, 3)
        alpha, rho, Delta.
    position : array, shape (points,), and continued : bool
        If ``continued``, a point starts from the extrapolation of the two before it in ``position``, if they converged.
    summary : array, shape (points, 3), output
        Stages that converged, last quadrature level, estimated quadrature error.

    Other arguments: see :func:`solve_level`, with a leading point index.
    """
    n_points, n_stages = ridges.shape
    width = x.shape[2]
    other = np.empty((n_stages, width))
    scratch_conjugates = np.empty((n_stages, width))
    scratch_updates = np.empty((n_stages, width))
    scratch_stats = np.zeros((n_stages, 5))
    for i in range(n_points):
        warm = False
        for t in range(n_stages):
            warm = warm or started[i, t] == 1
            for r in range(5):
                stats[i, t, r] = 0.0
            stats[i, t, STATUS] = NOT_TRIED
        if continued and i > 0 and summary[i - 1, 0] == n_stages:
            warm = True
            slope = 0.0
            if i > 1 and summary[i - 2, 0] == n_stages and position[i - 1] != position[i - 2]:
                slope = (position[i] - position[i - 1]) / (position[i - 1] - position[i - 2])
                if abs(slope) > 3.0:
                    slope = 0.0
            for t in range(n_stages):
                started[i, t] = 1
                for r in range(2 * t + 4):
                    x[i, t, r] = x[i - 1, t, r]
                    if slope != 0.0:
                        x[i, t, r] += slope * (x[i - 1, t, r] - x[i - 2, t, r])
        solved = n_stages
        if not warm:
            solved = solve_level(
                point_functions, functions, shareable, n_features, seen, n_parameters, data[i], ridges[i], pattern_share[i],
                pattern_active[i], parameters[i], mixing[i], extra[i], n_extra[i], settings, settings[COARSE_FACTOR],
                _COARSE_TAIL, settings[COARSE_TOLERANCE], False, x[i], started[i], conjugates[i], updates[i], stats[i],
            )  # fmt: skip
            for t in range(solved):
                started[i, t] = 1
        error = np.inf
        level = 0
        factor = 1.0
        tail = settings[TAIL]
        while True:
            for t in range(n_stages):
                for r in range(2 * t + 4):
                    other[t, r] = x[i, t, r]
            solved = solve_level(
                point_functions, functions, shareable, n_features, seen, n_parameters, data[i], ridges[i], pattern_share[i],
                pattern_active[i], parameters[i], mixing[i], extra[i], n_extra[i], settings, factor, tail, settings[TOLERANCE],
                False, x[i], started[i], conjugates[i], updates[i], stats[i],
            )  # fmt: skip
            for t in range(solved):
                started[i, t] = 1
            if solved < n_stages:
                break
            if level == 0:
                for t in range(n_stages):
                    for r in range(2 * t + 4):
                        other[t, r] = x[i, t, r]
                solved = solve_level(
                    point_functions, functions, shareable, n_features, seen, n_parameters, data[i], ridges[i],
                    pattern_share[i], pattern_active[i], parameters[i], mixing[i], extra[i], n_extra[i], settings,
                    factor * settings[CHECK_FACTOR], tail * _CHECK_TAIL, 0.0, True, other, started[i], scratch_conjugates,
                    scratch_updates, scratch_stats,
                )  # fmt: skip
            if solved == n_stages:
                error = largest_change(other, x[i], n_stages)
                if level == 0:
                    # The trapezoid rule's error is geometric in 1/step, so that of the finer step is a power of this one.
                    error = min(error, max(_SAFETY * error ** settings[CHECK_FACTOR], _LEAST_GAIN * error))
                for t in range(n_stages):
                    error = max(error, stats[i, t, RESIDUAL])
            solved = n_stages
            if level >= settings[MAX_LEVELS] or error <= settings[RTOL]:
                break
            level += 1
            factor *= settings[REFINEMENT]
            tail *= _TAIL_REFINEMENT
        summary[i, 0] = solved
        summary[i, 1] = level
        summary[i, 2] = error
