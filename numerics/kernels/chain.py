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
from numerics.kernels.nodes import (
    extend_nodes,
    follow_nodes,
    join,
    join_integers,
    join_rows,
    label_nodes,
    members,
    select_columns,
    take,
    take_integers,
    take_rows,
)
from numerics.kernels.stage import (
    _SMALLEST_SHARE,
    CONVERGED,
    MOMENTS,
    N_EQUATIONS,
    NOT_TRIED,
    TOO_MANY_ITERATIONS,
    StageSolvers,
    unpack,
)

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

FIXED_BIAS, FROZEN, FROZEN_M, FROZEN_Q = range(4)
"""Columns of what is special about a stage: bias (NaN: learned); 1 for given weights, and their m and Q."""

_Cube = types.float64[:, :, ::1]
_Hypercube = types.float64[:, :, :, ::1]
_SMALLEST_STRIDE = 1e-3
_SMALL_RESPONSE = 1e-3  # of a stage to another, relative to itself: errors below are not looked at
_EASY_RIDGE = 1e-3  # times the loss's curvature
_NO_RESPONSE = -690.0  # ln V of given weights
_SAMPLED_NODES = 8  # at which the loss's units are read off
_COARSE_TAIL = 1e-8
_COARSE_ROWS = 256  # fixed directions of a rough solution
_CHECK_TAIL = 100.0  # times the tail of the level that is checked
_SAFETY = 2.0
_SEQUENCE_SAFETY = 4.0  # error of a sequence of directions over its change at the last doubling
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
    types.UniTuple(types.float64, 2)(
        POINT_FUNCTION, POINT_FUNCTION, POINT_FUNCTION, types.int64, FloatArray, Matrix, FloatArray
    ),
    cache=True, nogil=True,
)  # fmt: skip
def loss_units(slopes, targets, features, n_features, labels, logits, parameters):
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
    if not (0.0 < force < np.inf and 0.0 <= curvature < np.inf):
        return 1.0, 1.0
    # A loss that is flat at 0 bends elsewhere: logits will be where it does.
    unit = force / (2.0 * curvature) if curvature > 0.0 else np.inf
    found = np.empty(3 * n_features + 1)
    if n_features > 0:
        features(0.0, labels[0], address(logits, 0), values, address(found, 0))
        furthest = 0.0
        for k in range(n_features):
            furthest = max(furthest, abs(found[k]) + found[n_features + k])
        if 0.0 < furthest < unit:
            unit = furthest
    if not unit < np.inf:
        return 1.0, 1.0
    return unit, 2.0 * force / unit


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


@njit(types.float64(Matrix, IntArray, types.int64), cache=True, nogil=True)
def sharpness_along(x, started, t):
    """How much of stage t's g moves the fields of later stages by the width that g's after it give them; see ``build_grid``."""
    sharpest = 0.0
    for later in range(t + 1, x.shape[0]):
        if started[later] == 1:
            width = math.exp(x[later, 2 + later])
            for r in range(t + 1, later):
                width += x[later, 2 + r] ** 2
            sharpest = max(sharpest, abs(x[later, 2 + t]) / math.sqrt(width))
    return sharpest


@njit(
    types.void(FloatArray, types.int64, Matrix, FloatArray, FloatArray), cache=True, nogil=True
)  # fmt: skip
def place_frozen(special, k, earlier, x, updated):
    """Order parameters of given weights ``w = m v + noise``: their overlaps with earlier stages are those of m v."""
    m, q = special[FROZEN_M], special[FROZEN_Q]
    rest = q
    x[0] = m
    x[1] = special[FIXED_BIAS]
    updated[0] = m
    for s in range(k):
        overlap = m * earlier[s, 0]
        updated[1 + s] = overlap
        for r in range(s):
            overlap -= x[2 + r] * earlier[s, 2 + r]
        x[2 + s] = overlap / math.exp(0.5 * earlier[s, 2 + s])
        rest -= x[2 + s] ** 2
        x[3 + k + s] = 0.0
        updated[2 + k + s] = 0.0
    updated[1 + k] = q
    updated[2 + 2 * k] = 0.0
    x[2 + k] = math.log(max(rest, _SMALLEST_SHARE * q))
    x[2 * k + 3] = _NO_RESPONSE


SOLVE_LEVEL = types.int64(
        StageSolvers, PointFunctions, VectorFunctions, IntArray, IntArray, IntMatrix, IntArray, IntMatrix, Matrix,
        FloatArray, Matrix, Matrix, FloatArray, FloatArray, Matrix, Matrix, FloatArray, _Cube, IntArray, FloatArray, types.int64,
        types.float64, types.float64, types.float64, types.boolean, Matrix, IntArray, Matrix, Matrix, Matrix,
    )  # fmt: skip
LevelSolvers = types.ListType(types.FunctionType(SOLVE_LEVEL))


@njit(SOLVE_LEVEL, cache=True, nogil=True)
def solve_level(
    stage_solvers, point_functions, functions, shareable, n_features, seen, n_parameters, trained, directions, data, sets,
    special, ridges,
    pattern_share, pattern_active, parameters, mixing, extra, n_extra, settings, rows, factor, tail, tolerance, check, x,
    started, conjugates, updates, stats,
):  # fmt: skip
    """All stages at one quadrature level; returns how many converged (it stops at the first that does not).

    ``x`` holds starting points where ``started`` is 1, and the solution afterwards.  With ``check`` it holds the solution of
    another level, and one step of Newton's method takes it near this level's: all that an error estimate needs.

    With ``rows`` > 0 the nodes are that many fixed ``directions`` of (g_1, g_2, ...), else a tensor product that grows with each
    stage.
    """
    n_stages = ridges.size
    n_patterns = pattern_share.size
    stage_solver = stage_solvers[0]
    rho, delta = data[1], data[2]
    n_sets = sets.shape[0]
    max_iterations = 1 if check else int(settings[MAX_ITERATIONS])
    root_delta = math.sqrt(delta)
    weight, design, labels, member, row = label_nodes(rho, sets, max(rows, 1))
    logits = np.empty((labels.size, 0))
    everywhere = True
    for t in range(n_stages):
        for d in range(n_sets):
            everywhere = everywhere and trained[t, d] == 1
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
        alpha = 0.0
        for d in range(n_sets):
            alpha += trained[t, d] * sets[d, 0]
        visible = select_columns(logits, seen[t])
        its_weight, its_design, its_labels, its_visible = weight, design, labels, visible
        if not everywhere and special[t, FROZEN] == 0.0:
            chosen = members(member, trained[t], 1)
            its_weight, its_design = take(weight, chosen), take_rows(design, chosen)
            its_labels, its_visible = take(labels, chosen), take_rows(visible, chosen)
        teacher = 0
        for r in range(seen.shape[1]):
            if seen[t, r] > 0:
                teacher = seen[t, r]
        unit, curvature = 1.0, 1.0
        if not check:
            unit, curvature = loss_units(
                slopes, targets, features, n_features[t], its_labels, its_visible, loss_parameters
            )
        size = 2 * k + 4
        unknowns = np.empty(size)
        conjugate = np.empty(size)
        updated = np.empty(size - 1)
        step = settings[FIELD_STEP] * factor
        status = NOT_TRIED
        iterations = 0
        residual = last_step = defect = np.inf
        frozen = special[t, FROZEN] == 1.0
        fixed_bias = special[t, FIXED_BIAS]
        if frozen:
            place_frozen(special[t], k, x, unknowns, updated)
            for r in range(size):
                conjugate[r] = 0.0
            status, residual, last_step, defect = CONVERGED, 0.0, 0.0, 0.0
        for attempt in range(2):
            if frozen:
                break
            if attempt == 0:
                if started[t] == 0:
                    continue
                for r in range(size):
                    unknowns[r] = x[t, r]
            else:
                first_guess(data, k, ridges[t], eta, mixing[t], teacher, unit, curvature, x, unknowns)
                if not math.isnan(fixed_bias):
                    unknowns[1] = fixed_bias
            status, used, residual, last_step, defect = stage_solver(
                slopes, targets, features, n_features[t], shareable[t], functions, first, unknowns, its_weight, its_design,
                its_labels, its_visible, loss_parameters, delta, channel_constants, prior_constants, cholesky_constants,
                earlier_responses, fixed_bias, step, tail, tolerance, max_iterations, conjugate, updated,
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
                    path_status, used, path_residual, path_step, path_defect = stage_solver(
                        slopes, targets, features, n_features[t], shareable[t], functions, first, trial, its_weight, its_design,
                        its_labels, its_visible, loss_parameters, delta, channel_constants, path_constants,
                        cholesky_constants, earlier_responses, fixed_bias, step, tail, tolerance, max_iterations, conjugate,
                        updated,
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
            if frozen:
                mu[a, t] = special[t, FROZEN_M]
                for s in range(k):
                    covariance[a, t, s] = covariance[a, s, t] = special[t, FROZEN_M] * mu[a, s]
                covariance[a, t, t] = special[t, FROZEN_Q]
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
        wanted_bends = np.empty((n_extra[t], 2))
        for r in range(n_extra[t]):
            wanted_bends[r, 0] = extra[t, r, 0]
            wanted_bends[r, 1] = extra[t, r, 1]
        mean_bias, sigma, gamma = theta[1], root_delta * theta[2 + k], delta * theta[size - 1]
        # Only samples that a later stage is trained on are needed any more; given directions keep all of them.
        needed = np.ones(n_sets, np.int64)
        if rows == 0:
            for d in range(n_sets):
                needed[d] = 0
                for later in range(t + 1, n_stages):
                    needed[d] = max(needed[d], trained[later, d])
        parts = 0
        new_weight, new_design, new_labels, new_logits = weight, design, labels, logits
        new_member, new_row = member, row
        for side in range(1, -1, -1):
            wanted = np.empty(n_sets, np.int64)
            count = 0
            for d in range(n_sets):
                on = trained[t, d] == side and needed[d] == 1
                wanted[d] = 1 if on else 0
                count += wanted[d]
            if count == 0:
                continue
            part_weight, part_design, part_labels, part_logits, part_visible = weight, design, labels, logits, visible
            part_member, part_row = member, row
            if count < n_sets:
                chosen = members(member, wanted, 1)
                part_weight, part_design, part_labels = (
                    take(weight, chosen),
                    take_rows(design, chosen),
                    take(labels, chosen),
                )
                part_logits, part_visible = take_rows(logits, chosen), take_rows(visible, chosen)
                part_member, part_row = take_integers(member, chosen), take_integers(row, chosen)
            reaction = gamma if side == 1 else 0.0
            if rows == 0:
                part_weight, part_design, part_labels, part_logits, origin, _ = extend_nodes(
                    slopes, targets, features, n_features[t], shareable[t], part_weight, part_design, part_labels, part_logits,
                    part_visible, loss_parameters, theta[0], mean_bias, coefficients, sigma, shifts, reaction, side == 1,
                    settings[OUTER_STEP] * factor, tail, sharpness_along(x, started, t), wanted_bends,
                )  # fmt: skip
                part_member, part_row = take_integers(part_member, origin), take_integers(part_row, origin)
            else:
                along = np.empty(part_row.size)
                for r in range(part_row.size):
                    along[r] = directions[part_row[r], t]
                part_design, part_logits = follow_nodes(
                    slopes, targets, part_design, part_labels, part_logits, part_visible, loss_parameters, along, theta[0],
                    mean_bias, coefficients, sigma, shifts, reaction, side == 1,
                )  # fmt: skip
            if parts == 0:
                new_weight, new_design, new_labels, new_logits = part_weight, part_design, part_labels, part_logits
                new_member, new_row = part_member, part_row
            else:
                new_weight = join(new_weight, part_weight)
                new_design = join_rows(new_design, part_design)
                new_labels = join(new_labels, part_labels)
                new_logits = join_rows(new_logits, part_logits)
                new_member = join_integers(new_member, part_member)
                new_row = join_integers(new_row, part_row)
            parts += 1
        weight, design, labels, logits = new_weight, new_design, new_labels, new_logits
        member, row = new_member, new_row
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
            mean = math.sqrt(v * math.exp(after[s, 2 * s + 3])) + _SMALL_RESPONSE * v
            worst = max(worst, abs(before[t, 3 + t + s] - after[t, 3 + t + s]) / mean)
        worst = max(worst, abs(math.exp(before[t, 2 + t]) - math.exp(after[t, 2 + t])) / root**2)
        worst = max(worst, abs(math.exp(before[t, 2 * t + 3]) - v) / v)
    return worst


@njit(
    types.void(
        LevelSolvers, StageSolvers, PointFunctions, VectorFunctions, IntArray, IntArray, IntMatrix, IntArray, IntMatrix, Matrix,
        Matrix, _Cube, _Cube,
        Matrix, Matrix, _Cube, _Cube, Matrix, _Hypercube, IntMatrix, FloatArray, types.int64, FloatArray, types.boolean, _Cube,
        IntMatrix, _Cube, _Cube, _Cube, Matrix,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def solve_points(
    level_solvers, stage_solvers, point_functions, functions, shareable, n_features, seen, n_parameters, trained, directions,
    data, sets, special, ridges,
    pattern_share, pattern_active, parameters, mixing, extra, n_extra, settings, first_rows, position, continued, x, started,
    conjugates, updates, stats, summary,
):  # fmt: skip
    """Solve all points in order.

    Parameters
    ----------
    trained : array, shape (T, d)
        1 where a stage is trained on a data set.
    directions : array, shape (r, T), and first_rows : int
        Fixed points of (g_1, g_2, ...), used from the first on: ``first_rows`` of them, then twice as many at each level.  If
        all are, or none (then nodes are a tensor product), the averages are exact, or refined by their steps.
    data : array, shape (points, 3)
        alpha, rho, Delta.
    sets : array, shape (points, d, 2)
        alpha and label noise of each data set.
    special : array, shape (points, T, 4)
        See ``FIXED_BIAS``.
    position : array, shape (points,), and continued : bool
        If ``continued``, a point starts from the extrapolation of the two before it in ``position``, if they converged.
    summary : array, shape (points, 3), output
        Stages that converged, last quadrature level, estimated quadrature error.

    Other arguments: see :func:`solve_level`, with a leading point index.
    """
    n_points, n_stages = ridges.shape
    level_solver = level_solvers[0]
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
        rows = first_rows
        if not warm:
            solved = level_solver(
                stage_solvers, point_functions, functions, shareable, n_features, seen, n_parameters, trained, directions,
                data[i], sets[i],
                special[i], ridges[i], pattern_share[i], pattern_active[i], parameters[i], mixing[i], extra[i], n_extra[i],
                settings, min(rows, _COARSE_ROWS), settings[COARSE_FACTOR], _COARSE_TAIL, settings[COARSE_TOLERANCE], False,
                x[i], started[i], conjugates[i], updates[i], stats[i],
            )  # fmt: skip
            for t in range(solved):
                started[i, t] = 1
        error = np.inf
        level = 0
        factor = 1.0
        tail = settings[TAIL]
        exact = rows > 0 and rows == directions.shape[0]
        while True:
            for t in range(n_stages):
                for r in range(2 * t + 4):
                    other[t, r] = x[i, t, r]
            solved = level_solver(
                stage_solvers, point_functions, functions, shareable, n_features, seen, n_parameters, trained, directions,
                data[i], sets[i],
                special[i], ridges[i], pattern_share[i], pattern_active[i], parameters[i], mixing[i], extra[i], n_extra[i],
                settings, rows, factor, tail, settings[TOLERANCE], False, x[i], started[i], conjugates[i], updates[i], stats[i],
            )  # fmt: skip
            for t in range(solved):
                started[i, t] = 1
            if solved < n_stages:
                break
            if level == 0:
                for t in range(n_stages):
                    for r in range(2 * t + 4):
                        other[t, r] = x[i, t, r]
                coarser = factor * settings[CHECK_FACTOR] if rows == 0 else factor
                solved = level_solver(
                    stage_solvers, point_functions, functions, shareable, n_features, seen, n_parameters, trained, directions,
                    data[i],
                    sets[i], special[i], ridges[i], pattern_share[i], pattern_active[i], parameters[i], mixing[i], extra[i],
                    n_extra[i], settings, rows // 2, coarser, tail * _CHECK_TAIL, 0.0, True, other, started[i],
                    scratch_conjugates, scratch_updates, scratch_stats,
                )  # fmt: skip
            if solved == n_stages:
                error = largest_change(other, x[i], n_stages)
                if level == 0 and rows == 0:
                    # The trapezoid rule's error is geometric in 1/step, so that of the finer step is a power of this one.
                    error = min(error, max(_SAFETY * error ** settings[CHECK_FACTOR], _LEAST_GAIN * error))
                # Half of the exact directions are exact too: what differs is rounding, as the chain amplifies it.
                if rows > 0 and not exact:
                    error *= _SEQUENCE_SAFETY
                for t in range(n_stages):
                    error = max(error, stats[i, t, RESIDUAL])
            solved = n_stages
            if (
                level >= settings[MAX_LEVELS]
                or error <= settings[RTOL]
                or (rows > 0 and 2 * rows > directions.shape[0])
            ):
                break
            level += 1
            if rows > 0:
                rows *= 2
            else:
                factor *= settings[REFINEMENT]
                tail *= _TAIL_REFINEMENT
        summary[i, 0] = solved
        summary[i, 1] = level
        summary[i, 2] = error
