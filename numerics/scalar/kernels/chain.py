"""Solve whole chains, point after point: all stages, at successive quadrature levels until the error estimate is small.

Everything loss-dependent arrives as lists of compiled functions, so that this file is compiled once.  Arrays carry a leading
point index and are padded to the number T of stages: ``x`` has shape (points, T, 2T + 2), and stage t (from 0) uses the
first 2t + 4 entries of its row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import (
    ENTRY,
    INNER,
    OPTIONS,
    POINT_FUNCTION,
    VECTOR_FUNCTION,
    FloatArray,
    IntArray,
    IntMatrix,
    Matrix,
    PointFunctions,
    VectorFunctions,
    address,
)
from numerics.scalar.kernels.grid import half_widths
from numerics.scalar.kernels.nodes import (
    MARGIN,
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
from numerics.scalar.kernels.stage import (
    _SMALLEST_SHARE,
    CONVERGED,
    MOMENTS,
    N_EQUATIONS,
    NOT_TRIED,
    SOLVE_STAGE,
    TOO_MANY_ITERATIONS,
    solve_stage,
    unpack,
)

N_POINT_FUNCTIONS = 3
SLOPES, TARGETS, BENDS = range(N_POINT_FUNCTIONS)
"""Order of a loss's functions in the list of point functions."""

N_SETTINGS = 14
(
    FIELD_STEP, OUTER_STEP, REFINEMENT, TAIL, TOLERANCE, MAX_ITERATIONS, RTOL, MAX_LEVELS, FIRST_RIDGE, RIDGE_STEPS,
    COARSE_FACTOR, COARSE_TOLERANCE, CHECK_FACTOR, MEMORY,
) = range(N_SETTINGS)  # fmt: skip
"""Order of the entries of the settings vector."""

STATUS, ITERATIONS, RESIDUAL, LAST_STEP, DEFECT = range(5)
"""Columns of the statistics of a stage."""

TOO_LARGE = 5
"""Status of a stage whose averages would take more memory than allowed; how much is then in the column ``DEFECT``."""

N_SPECIAL = 5
FIXED_BIAS, FROZEN, FROZEN_M, FROZEN_Q, FROZEN_SQUARE = range(N_SPECIAL)
"""Columns of what is special about a stage: bias (NaN: learned); ``GIVEN`` or ``VANISHING`` weights; m and Q of given ones, and
the mean square of such a weight."""

TRAINED, GIVEN, VANISHING = 0.0, 1.0, 2.0
"""Values of the column ``FROZEN``.  Weights vanish where every sample's force does: see ``numerics/scalar/constant_targets.py``."""

_Cube = types.float64[:, :, ::1]
_Hypercube = types.float64[:, :, :, ::1]
_SMALLEST_STRIDE = 1e-3
_SMALL_RESPONSE = 1e-3  # of a stage to another, relative to itself: errors below are not looked at
_RESOLVED_NORM = 1e-9  # over the norm of a stage: share of V_tt to which rounding leaves responses V_ts to it
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
_TOLERANCE_REFINEMENT = 0.01  # of Newton's method after the first level: later stages amplify what earlier ones leave
_STALLING_LEVEL = 7  # from which on two levels must at least halve the error, or refinement ends
_FIRST_STRIDE = 1.5
_LARGEST_STRIDE = 3.0
_MOST_POINTS = 5  # that a point is extrapolated from
_LARGEST_WEIGHT = 12.0  # of one of them
_STILL = 1e-9  # a change that is none
_BYTES_PER_NODE, _BYTES_PER_NODE_AND_STAGE = 100.0, 25.0  # measured, with what is needed while nodes are made
_NARROW_FIELD = 1e-4  # of a field, below which its Gaussian variable is not read off logits
_LONG = 4  # from this stage on the points that this takes are too many, and less accuracy is asked for
_INVERSE_ROOT_TWO_PI = 0.3989422804014327
_RESPONSE_STEPS = 200  # of Newton's method for the response of a stage without weights
_ROUNDING = 4e-16
_TINY = 1e-300
_VISIBLE_ROUNDING = 1e6
_DISPLACEMENT = 1e-15
_ROUNDING_TRIALS = 5
_ROUNDING_SAFETY = 2.0  # error over the largest change that displacements of the unknowns by their last digits make


@njit(FloatArray(FloatArray, types.int64), **INNER)
def head(row, n):
    """Copy of the first n entries."""
    out = np.empty(n)
    for i in range(n):
        out[i] = row[i]
    return out


@njit(types.float64(FloatArray, types.int64), **OPTIONS)
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
    **INNER,
)  # fmt: skip
def loss_units(slopes, targets, bends, n_bends, labels, logits, parameters):
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
    found = np.empty(3 * n_bends + 1)
    if n_bends > 0:
        bends(0.0, labels[0], address(logits, 0), values, address(found, 0))
        furthest = 0.0
        for k in range(n_bends):
            furthest = max(furthest, abs(found[k]) + found[n_bends + k])
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
    **INNER,
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


@njit(types.float64(Matrix, IntArray, types.int64), **INNER)
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
    types.void(FloatArray, types.int64, Matrix, FloatArray, FloatArray), **INNER
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


@njit(
    types.float64(
        POINT_FUNCTION, FloatArray, FloatArray, Matrix, FloatArray, types.float64, types.float64, types.float64, types.float64
    ),
    **INNER,
)  # fmt: skip
def response_at_rest(slopes, weight, labels, logits, parameters, bias, delta, eta, ridge):
    """V of a stage without weights: ``V (ridge + Vh) = eta``, ``Vh = sum weight Delta l''/(1 + Delta V l'')`` at ``h = bias``."""
    slope = np.empty(4)
    curvature = np.empty(labels.size)
    total = 0.0
    for i in range(labels.size):
        slopes(bias, labels[i], address(logits, i * logits.shape[1]), address(parameters, 0), address(slope, 0))
        curvature[i] = slope[2]
        total += weight[i] * delta * slope[2]
    # The left side rises with V and is concave: Newton's method from below does not overshoot.
    v = eta / (ridge + total)
    for _ in range(_RESPONSE_STEPS):
        excess = v * ridge - eta
        rate = ridge
        for i in range(labels.size):
            grown = 1.0 + delta * v * curvature[i]
            excess += weight[i] * delta * v * curvature[i] / grown
            rate += weight[i] * delta * curvature[i] / grown**2
        move = -excess / rate
        v += move
        if abs(move) <= _ROUNDING * v:
            break
    return v


@njit(types.void(types.float64, types.float64, types.int64, FloatArray, FloatArray), **INNER)
def place_vanishing(bias, response, k, x, updated):
    """Order parameters of a stage without weights.

    A unit direction of its own, in which no stage has any weight, takes the place of its row of the Cholesky factor: all later
    equations stay regular.  As its forces vanish too, responses to it change nothing and are left at 0.
    """
    for r in range(x.size):
        x[r] = 0.0
    for r in range(updated.size):
        updated[r] = 0.0
    x[1] = bias
    x[2 * k + 3] = math.log(response)
    updated[2 * k + 2] = response


@njit(
    types.void(types.float64, FloatArray, Matrix, Matrix, types.int64, types.int64, FloatArray), **INNER
)  # fmt: skip
def add_moments(share, mu, covariance, propagator, k, first, out):
    """Add ``share`` times the moments of the first k stages' weights from ``out[first]`` on: mu, then two lower triangles."""
    for s in range(k):
        out[first + s] += share * mu[s]
        row = first + k + s * (s + 1) // 2
        for r in range(s + 1):
            out[row + r] += share * covariance[s, r]
            out[row + r + k * (k + 1) // 2] += share * propagator[s, r]


@njit(
    FloatArray(types.int64, types.float64, FloatArray, Matrix, Matrix, _Cube, _Cube), **INNER
)  # fmt: skip
def average_moments(k, ridge, pattern_share, pattern_active, mu, covariance, propagator):
    """Constants of the prior: eta, ridge, moments of the k earlier stages' weights given that the stage after them is active."""
    out = np.zeros(2 + k + k * (k + 1))
    for a in range(pattern_share.size):
        out[0] += pattern_share[a] * pattern_active[a, k]
    out[1] = ridge
    for a in range(pattern_share.size):
        share = pattern_share[a] * pattern_active[a, k] / out[0]
        add_moments(share, mu[a], covariance[a], propagator[a], k, 2, out)
    return out


@njit(
    types.void(
        VECTOR_FUNCTION, types.int64, types.float64, FloatArray, Matrix, FloatArray, Matrix, _Cube, _Cube
    ),
    **INNER,
)  # fmt: skip
def append_moments(moments_of, t, ridge, special, pattern_active, conjugate, mu, covariance, propagator):
    """Moments of stage t's weights and their products with earlier ones, for every pattern in which the stage is active."""
    moments = np.empty(3 + 2 * t)
    for a in range(mu.shape[0]):
        if pattern_active[a, t] == 0.0:
            continue
        if special[FROZEN] == VANISHING:
            continue
        if special[FROZEN] == GIVEN:
            mu[a, t] = special[FROZEN_M]
            for s in range(t):
                covariance[a, t, s] = covariance[a, s, t] = special[FROZEN_M] * mu[a, s]
            covariance[a, t, t] = special[FROZEN_SQUARE]
            continue
        constants = np.zeros(1 + t + t * (t + 1))
        constants[0] = ridge
        add_moments(1.0, mu[a], covariance[a], propagator[a], t, 1, constants)
        moments_of(conjugate, constants, moments)
        mu[a, t] = moments[0]
        for s in range(t + 1):
            covariance[a, t, s] = covariance[a, s, t] = moments[1 + s]
            propagator[a, t, s] = moments[2 + t + s]


_Problem = types.Tuple(SOLVE_STAGE.args[8:])
"""What a stage is solved with: the arguments of :func:`solve_stage` after ``x``."""

_PRIOR_CONSTANTS = 7
"""Where the constants of the prior are among them."""


@njit(
    SOLVE_STAGE.return_type(
        PointFunctions, VectorFunctions, types.int64, types.int64, types.int64, FloatArray, _Problem
    ),
    **INNER,
)  # fmt: skip
def attempt(point_functions, functions, t, n_bends, shareable, x, problem):
    """Stage t (from 0) by Newton's method from ``x``; see :func:`solve_stage`."""
    (
        weight, statistics, labels, logits, parameters, delta, channel_constants, prior_constants, cholesky_constants,
        earlier_responses, fixed_bias, step, tail, tolerance, max_iterations, conjugate, updated,
    ) = problem  # fmt: skip
    at = N_POINT_FUNCTIONS * t
    return solve_stage(
        point_functions[at + SLOPES], point_functions[at + TARGETS], point_functions[at + BENDS], n_bends, shareable,
        functions, N_EQUATIONS * t, x, weight, statistics, labels, logits, parameters, delta, channel_constants, prior_constants,
        cholesky_constants, earlier_responses, fixed_bias, step, tail, tolerance, max_iterations, conjugate, updated,
    )  # fmt: skip


@njit(
    SOLVE_STAGE.return_type(
        PointFunctions, VectorFunctions, types.int64, types.int64, types.int64, FloatArray, _Problem,
        types.float64, types.int64,
    ),
    **INNER,
)  # fmt: skip
def follow_ridges(
    point_functions, functions, t, n_bends, shareable, x, problem, log_ridge, steps
):  # fmt: skip
    """Stage t at falling ridges, from ``exp(log_ridge)``, where ``x`` is nearly a solution, to the one of ``problem``.

    Returns what the last :func:`attempt` returned, with the sum of all iterations; ``x`` is the last solution found.  Not
    converged if the path ends before the last ridge.
    """
    constants = problem[_PRIOR_CONSTANTS]
    ridge = constants[1]
    here, goal = log_ridge, math.log(ridge)
    trial = np.empty(x.size)
    previous = np.empty(x.size)
    previous_at = np.nan
    stride = 0.0
    iterations = 0
    status = NOT_TRIED
    residual = last_step = defect = np.inf
    for _ in range(steps):
        there = max(here - stride, goal)
        for r in range(x.size):
            trial[r] = x[r]
            if math.isfinite(previous_at) and here != previous_at:
                trial[r] += (x[r] - previous[r]) * (there - here) / (here - previous_at)
        constants[1] = math.exp(there)
        status, used, residual, last_step, defect = attempt(
            point_functions, functions, t, n_bends, shareable, trial, problem
        )
        constants[1] = ridge
        iterations += used
        if status == CONVERGED:
            for r in range(x.size):
                previous[r] = x[r]
                x[r] = trial[r]
            previous_at = here if stride > 0.0 else np.nan
            here = there
            stride = min(1.6 * stride, _LARGEST_STRIDE) if stride > 0.0 else _FIRST_STRIDE
            if here == goal:
                return status, iterations, residual, last_step, defect
        else:
            stride *= 0.4
            previous_at = np.nan
            if stride < _SMALLEST_STRIDE:
                break
    if status == CONVERGED:
        status = TOO_MANY_ITERATIONS
    return status, iterations, residual, last_step, defect


_Nodes = types.Tuple((FloatArray, Matrix, FloatArray, Matrix, IntArray, IntArray))
"""Weight, statistics, labels, logits, data set and row of fixed directions of every node."""


@njit(_Nodes(_Nodes, IntArray), **INNER)
def take_nodes(nodes, indices):
    """The nodes at ``indices``."""
    weight, statistics, labels, logits, member, row = nodes
    return (
        take(weight, indices), take_rows(statistics, indices), take(labels, indices), take_rows(logits, indices),
        take_integers(member, indices), take_integers(row, indices),
    )  # fmt: skip


@njit(_Nodes(_Nodes, _Nodes), **INNER)
def join_nodes(first, second):
    """The ones after the others."""
    return (
        join(first[0], second[0]), join_rows(first[1], second[1]), join(first[2], second[2]), join_rows(first[3], second[3]),
        join_integers(first[4], second[4]), join_integers(first[5], second[5]),
    )  # fmt: skip


@njit(
    types.Tuple((_Nodes, FloatArray))(_Nodes, types.float64, types.float64), **INNER
)  # fmt: skip
def along_a_narrow_field(nodes, step, tail):
    """The nodes once for every point of a trapezoid rule in the next stage's g, and that g: it is not read off a logit.

    What a field much narrower than its distance from 0 is made of would be lost in the difference of the two.
    """
    weight = nodes[0]
    reach = np.empty(weight.size)
    half_widths(weight, tail, MARGIN, reach)
    total = 0
    for i in range(weight.size):
        total += math.ceil(2.0 * reach[i] / step)
    origin = np.empty(total, np.int64)
    along = np.empty(total)
    share = np.empty(total)
    place = 0
    for i in range(weight.size):
        count = math.ceil(2.0 * reach[i] / step)
        for k in range(count):
            spacing = 2.0 * reach[i] / count
            origin[place] = i
            along[place] = (k + 0.5) * spacing - reach[i]
            share[place] = spacing * math.exp(-0.5 * along[place] ** 2) * _INVERSE_ROOT_TWO_PI
            place += 1
    found = take_nodes(nodes, origin)
    for k in range(total):
        found[0][k] *= share[k]
    return found, along


@njit(_Nodes(_Nodes, types.float64), **INNER)
def with_constant_logit(nodes, logit):
    """The nodes with one stage more, which has the same logit on all samples, no direction and no force."""
    weight, statistics, labels, logits, member, row = nodes
    n, k = logits.shape
    new_statistics = np.zeros((n, 4 + 2 * k))
    new_logits = np.empty((n, k + 1))
    for i in range(n):
        for r in range(2 + k):
            new_statistics[i, r] = statistics[i, r]
        for r in range(k):
            new_statistics[i, 3 + k + r] = statistics[i, 2 + k + r]
            new_logits[i, r] = logits[i, r]
        new_logits[i, k] = logit
    return weight, new_statistics, labels, new_logits, member, row


@njit(
    _Nodes(
        POINT_FUNCTION, POINT_FUNCTION, POINT_FUNCTION, types.int64, types.int64, FloatArray, _Nodes, IntArray, IntArray,
        IntArray, types.float64, FloatArray, Matrix, types.int64, types.float64, types.float64, types.float64, Matrix,
    ),
    **INNER,
)  # fmt: skip
def nodes_after(
    slopes, targets, bends, n_bends, shareable, parameters, nodes, seen, trained, needed, delta, theta, directions, rows,
    step, tail, sharpness, extra,
):  # fmt: skip
    """Nodes that include the stage with order parameters ``theta``, in the data sets (1 in ``needed``, d) that are needed.

    Parameters
    ----------
    nodes, seen, trained
        Nodes of the earlier stages; which of these the stage looks at; which data sets it is trained on (1 there).
    directions, rows
        See :func:`solve_level`.
    n_bends, shareable, step, tail, sharpness, extra
        See :func:`extend_nodes`.
    """
    k = nodes[3].shape[1]
    root = math.sqrt(delta)
    coefficients = np.empty(k)
    shifts = np.empty(k)
    for s in range(k):
        coefficients[s] = root * theta[2 + s]
        shifts[s] = delta * theta[3 + k + s]
    mean, mean_bias, sigma, gamma = theta[0], theta[1], root * theta[2 + k], delta * theta[theta.size - 1]
    extended = nodes
    parts = 0
    for side in range(1, -1, -1):
        wanted = np.empty(trained.size, np.int64)
        count = 0
        for d in range(trained.size):
            wanted[d] = 1 if trained[d] == side and needed[d] == 1 else 0
            count += wanted[d]
        if count == 0:
            continue
        part = nodes
        if count < trained.size:
            part = take_nodes(nodes, members(nodes[4], wanted, 1))
        narrow = rows == 0 and k + 1 < _LONG and sigma < _NARROW_FIELD
        along = np.empty(0)
        if narrow:
            part, along = along_a_narrow_field(part, step, tail)
        weight, statistics, labels, logits, member, row = part
        visible = select_columns(logits, seen)
        reaction = gamma if side == 1 else 0.0
        if rows == 0 and not narrow:
            weight, statistics, labels, logits, origin, _ = extend_nodes(
                slopes, targets, bends, n_bends, shareable, weight, statistics, labels, logits, visible, parameters, mean,
                mean_bias, coefficients, sigma, shifts, reaction, side == 1, step, tail, sharpness, extra,
            )  # fmt: skip
            member, row = take_integers(member, origin), take_integers(row, origin)
        else:
            if not narrow:
                along = np.empty(row.size)
                for r in range(row.size):
                    along[r] = directions[row[r], k]
            statistics, logits = follow_nodes(
                slopes, targets, statistics, labels, logits, visible, parameters, along, mean, mean_bias, coefficients, sigma,
                shifts, reaction, side == 1,
            )  # fmt: skip
        part = weight, statistics, labels, logits, member, row
        extended = join_nodes(extended, part) if parts > 0 else part
        parts += 1
    return extended


SOLVE_LEVEL = types.int64(
        PointFunctions, VectorFunctions, IntArray, IntArray, IntMatrix, IntArray, IntMatrix, Matrix, FloatArray,
        FloatArray, Matrix, Matrix, FloatArray, FloatArray, Matrix, Matrix, FloatArray, _Cube, IntArray, types.int64,
        types.float64, types.float64, types.float64, types.boolean, Matrix, IntArray, Matrix, Matrix, Matrix,
    )  # fmt: skip


@njit(SOLVE_LEVEL, **INNER)
def solve_level(
    point_functions, functions, shareable, n_bends, seen, n_parameters, trained, directions, settings, data,
    sets, special, ridges, pattern_share, pattern_active, parameters, mixing, extra, n_extra, rows, factor, tail, tolerance,
    check, x, started, conjugates, updates, stats,
):  # fmt: skip
    """All stages at one quadrature level; returns how many converged (it stops at the first that does not).

    ``x`` holds starting points where ``started`` is 1, and the solution afterwards.  With ``check`` it holds the solution of
    another level, and one step of Newton's method takes it near this level's: all that an error estimate needs.

    With ``rows`` > 0 the nodes are that many fixed ``directions`` of (g_1, g_2, ...), else a tensor product that grows with each
    stage.
    """
    n_stages = ridges.size
    n_patterns = pattern_share.size
    n_sets = sets.shape[0]
    rho, delta = data[1], data[2]
    max_iterations = 1 if check else int(settings[MAX_ITERATIONS])
    classes = np.ascontiguousarray(data[3:]).reshape((-1, 3))
    weight, statistics, labels, member, row = label_nodes(classes, sets, max(rows, 1))
    nodes = weight, statistics, labels, np.empty((labels.size, 0)), member, row
    mu = np.zeros((n_patterns, n_stages))
    covariance = np.zeros((n_patterns, n_stages, n_stages))
    propagator = np.zeros((n_patterns, n_stages, n_stages))
    triangle = np.empty(n_stages * (n_stages + 1) // 2)
    n_triangle = 0
    before = 0.0
    growth = 0.0
    responses = np.empty(n_stages)
    for t in range(n_stages):
        k = t
        size = 2 * k + 4
        slopes = point_functions[N_POINT_FUNCTIONS * t + SLOPES]
        targets = point_functions[N_POINT_FUNCTIONS * t + TARGETS]
        bends = point_functions[N_POINT_FUNCTIONS * t + BENDS]
        loss_parameters = head(parameters[t], n_parameters[t])
        cholesky_constants = head(triangle, n_triangle)
        channel_constants = np.empty(1 + n_triangle)
        channel_constants[0] = delta
        for r in range(n_triangle):
            channel_constants[1 + r] = triangle[r]
        prior_constants = average_moments(k, ridges[t], pattern_share, pattern_active, mu, covariance, propagator)
        eta = prior_constants[0]
        alpha = 0.0
        everywhere = True
        for d in range(n_sets):
            alpha += trained[t, d] * sets[d, 0]
            everywhere = everywhere and trained[t, d] == 1
        vanishing = special[t, FROZEN] == VANISHING
        given = special[t, FROZEN] == GIVEN
        frozen = given or vanishing
        fixed_bias = special[t, FIXED_BIAS]
        its_nodes = nodes
        if not everywhere and not given:
            its_nodes = take_nodes(nodes, members(nodes[4], trained[t], 1))
        its_weight, its_statistics, its_labels, its_logits, _, _ = its_nodes
        visible = select_columns(its_logits, seen[t])
        teacher = 0
        for r in range(seen.shape[1]):
            if seen[t, r] > 0:
                teacher = seen[t, r]
        unit, curvature = 1.0, 1.0
        if not check:
            unit, curvature = loss_units(slopes, targets, bends, n_bends[t], its_labels, visible, loss_parameters)
        unknowns = np.empty(size)
        conjugate = np.empty(size)
        updated = np.empty(size - 1)
        status = NOT_TRIED
        iterations = 0
        residual = last_step = defect = np.inf
        if given:
            place_frozen(special[t], k, x, unknowns, updated)
        if vanishing:
            v = response_at_rest(
                slopes, its_weight, its_labels, visible, loss_parameters, fixed_bias, delta, eta, ridges[t]
            )
            place_vanishing(fixed_bias, v, k, unknowns, updated)
        if frozen:
            for r in range(size):
                conjugate[r] = 0.0
            if vanishing:
                conjugate[size - 2] = eta / v - ridges[t]
            status, residual, last_step, defect = CONVERGED, 0.0, 0.0, 0.0
        solver = point_functions, functions, t, n_bends[t], shareable[t]
        problem = (
            its_weight, its_statistics, its_labels, visible, loss_parameters, delta, channel_constants, prior_constants,
            cholesky_constants, head(responses, k), fixed_bias, settings[FIELD_STEP] * factor, tail, tolerance, max_iterations,
            conjugate, updated,
        )  # fmt: skip
        for trial in range(2):
            if frozen:
                break
            if trial == 0:
                if started[t] == 0:
                    continue
                for r in range(size):
                    unknowns[r] = x[t, r]
            else:
                first_guess(data, k, ridges[t], eta, mixing[t], teacher, unit, curvature, x, unknowns)
                if not math.isnan(fixed_bias):
                    unknowns[1] = fixed_bias
            status, used, residual, last_step, defect = attempt(*solver, unknowns, problem)
            iterations += used
            if check and status == TOO_MANY_ITERATIONS:
                status = CONVERGED
            if status == CONVERGED or check:
                break
        # Failing that, along a path of falling ridges: from one so large that the weights hardly react, or, for a student of
        # earlier stages, from the guess at a ridge where it is good.
        for route in range(2 if teacher > 0 else 1):
            if status == CONVERGED or check:
                break
            lowest = math.log(ridges[t]) + 1.0
            guess = np.zeros(size)
            if route == 0:
                log_ridge = max(math.log(settings[FIRST_RIDGE] * curvature * (1.0 + alpha)), lowest)
                reaction = eta * alpha * unit * curvature / (math.exp(log_ridge) + 0.25 * curvature * alpha)
                guess[0] = 0.5 * reaction
                guess[1] = 0.5 * unit * math.log(rho / (1.0 - rho))
                guess[2 + k] = 2.0 * math.log(reaction) + math.log1p(1.0 / alpha) - 1.0
                guess[size - 1] = math.log(eta) - log_ridge
            else:
                log_ridge = max(math.log(_EASY_RIDGE * curvature), lowest)
                first_guess(data, k, math.exp(log_ridge), eta, mixing[t], teacher, unit, curvature, x, guess)
            path_status, used, path_residual, path_step, path_defect = follow_ridges(
                *solver, guess, problem, log_ridge, int(settings[RIDGE_STEPS])
            )
            iterations += used
            if path_status == CONVERGED:
                status, residual, last_step, defect = CONVERGED, path_residual, path_step, path_defect
                for r in range(size):
                    unknowns[r] = guess[r]
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
        moments_of = functions[N_EQUATIONS * t + MOMENTS]
        append_moments(moments_of, t, ridges[t], special[t], pattern_active, conjugate, mu, covariance, propagator)
        theta = np.empty(size)
        unpack(unknowns, theta)
        for s in range(k + 1):
            triangle[n_triangle] = theta[2 + s]
            n_triangle += 1
        responses[t] = theta[size - 1]
        wanted_bends = np.empty((n_extra[t], 2))
        for r in range(n_extra[t]):
            wanted_bends[r, 0] = extra[t, r, 0]
            wanted_bends[r, 1] = extra[t, r, 1]
        # Only samples that a later stage is trained on are needed any more; given directions keep all of them.
        needed = np.ones(n_sets, np.int64)
        if rows == 0:
            for d in range(n_sets):
                needed[d] = 0
                for later in range(t + 1, n_stages):
                    needed[d] = max(needed[d], trained[later, d])
        if vanishing:
            nodes = with_constant_logit(nodes, fixed_bias)
            continue
        # Nodes multiply by less and less from one stage to the next: what is too many is known before they are made.
        here = float(nodes[0].size)
        if rows == 0 and t > 0 and here > before:
            last_growth = growth if growth > 0.0 else here / before
            growth = here / before
            needed_memory = (
                here * growth * min(1.0, growth / last_growth) * (_BYTES_PER_NODE + _BYTES_PER_NODE_AND_STAGE * (t + 1))
            )
            if needed_memory > settings[MEMORY]:
                stats[t + 1, STATUS] = TOO_LARGE
                stats[t + 1, DEFECT] = needed_memory
                return t + 1
        before = here
        nodes = nodes_after(
            slopes, targets, bends, n_bends[t], shareable[t], loss_parameters, nodes, seen[t], trained[t], needed, delta,
            theta, directions, rows, settings[OUTER_STEP] * factor, tail, sharpness_along(x, started, t), wanted_bends,
        )  # fmt: skip
    return n_stages


@njit(types.float64(Matrix, Matrix, types.int64), **INNER)
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
            least = max(_SMALL_RESPONSE, min(1.0, _RESOLVED_NORM / (math.sqrt(norm_squared(after[s], s)) + _TINY)))
            mean = math.sqrt(v * math.exp(after[s, 2 * s + 3])) + least * v
            worst = max(worst, abs(before[t, 3 + t + s] - after[t, 3 + t + s]) / mean)
        worst = max(worst, abs(math.exp(before[t, 2 + t]) - math.exp(after[t, 2 + t])) / root**2)
        worst = max(worst, abs(math.exp(before[t, 2 * t + 3]) - v) / v)
    return worst


@njit(types.boolean(Matrix, types.int64, types.float64), **INNER)
def rounding_may_show(x, n_stages, delta):
    """Whether a field is so narrow beside the pull of targets of order 1, or of earlier logits, that its last digits matter."""
    target = 1.0
    for t in range(n_stages):
        root = math.sqrt(norm_squared(x[t], t))
        if math.sqrt(delta) * math.exp(x[t, 2 * t + 3]) * target > _VISIBLE_ROUNDING * root:
            return True
        target = max(target, root)
    return False


@njit(types.void(Matrix, types.int64, types.int64, Matrix), **INNER)
def displaced(x, n_stages, trial, out):
    """The unknowns, moved by a few units in the last place, each up or down as the ``trial`` has it, into ``out``."""
    for t in range(n_stages):
        for r in range(2 * t + 4):
            sign = 1.0 if (trial >> (r % 3)) & 1 == 1 else -1.0
            out[t, r] = x[t, r] + sign * _DISPLACEMENT * max(abs(x[t, r]), 1.0 if r == 2 * t + 3 or r == 2 + t else 0.0)


@njit(types.float64(_Cube, FloatArray, types.int64, types.int64, Matrix), **INNER)
def prediction(x, position, i, used, out):
    """Point i by the polynomial through the ``used`` points before it, into ``out``.

    Fewer are used if they are too close to one another.  Returns the distance from what ``x[i]`` holds, in units of the step
    from the point before.
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
    for t in range(x.shape[1]):
        for r in range(2 * t + 4):
            value = 0.0
            for k in range(count):
                value += weights[k] * x[i - 1 - k, t, r]
            out[t, r] = value
            miss += abs(value - x[i, t, r]) / (abs(x[i, t, r] - x[i - 1, t, r]) + _STILL)
    return miss


@njit(
    types.void(
        PointFunctions, VectorFunctions, IntArray, IntArray, IntMatrix, IntArray, IntMatrix, Matrix,
        Matrix, _Cube, _Cube,
        Matrix, Matrix, _Cube, _Cube, Matrix, _Hypercube, IntMatrix, FloatArray, types.int64, FloatArray, types.boolean, _Cube,
        IntMatrix, _Cube, _Cube, _Cube, Matrix,
    ),
    **ENTRY,
)  # fmt: skip
def solve_points(
    point_functions, functions, shareable, n_bends, seen, n_parameters, trained, directions,
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
    data : array, shape (points, 3 + 3 classes)
        alpha, rho, Delta, then weight, sign and label of each class.
    sets : array, shape (points, d, 2)
        alpha and label noise of each data set.
    special : array, shape (points, T, N_SPECIAL)
        See ``FIXED_BIAS``.
    position : array, shape (points,), and continued : bool
        If ``continued``, a point starts from the extrapolation of those before it in ``position``, if they converged.
    summary : array, shape (points, 3), output
        Stages that converged, last quadrature level, estimated quadrature error.

    Other arguments: see :func:`solve_level`, with a leading point index.
    """
    n_points, n_stages = ridges.shape
    width = x.shape[2]
    other = np.empty((n_stages, width))
    first = np.empty((n_stages, width))
    scratch = np.empty((n_stages, width)), np.empty((n_stages, width)), np.zeros((n_stages, 5))
    for i in range(n_points):
        point = (
            point_functions, functions, shareable, n_bends, seen, n_parameters, trained, directions, settings,
            data[i], sets[i], special[i], ridges[i], pattern_share[i], pattern_active[i], parameters[i], mixing[i], extra[i],
            n_extra[i],
        )  # fmt: skip
        solution = x[i], started[i], conjugates[i], updates[i], stats[i]
        warm = False
        for t in range(n_stages):
            warm = warm or started[i, t] == 1
            for r in range(5):
                stats[i, t, r] = 0.0
            stats[i, t, STATUS] = NOT_TRIED
        if continued and i > 0 and summary[i - 1, 0] == n_stages:
            warm = True
            known = 1
            while known < _MOST_POINTS and known < i and summary[i - 1 - known, 0] == n_stages:
                known += 1
            # As many points as would have predicted the last one best.
            fewest = 2
            least = np.inf
            for used in range(1, known):
                miss = prediction(x, position, i - 1, used, other)
                if miss < least:
                    fewest, least = used, miss
            prediction(x, position, i, min(fewest, known), other)
            for t in range(n_stages):
                started[i, t] = 1
                for r in range(2 * t + 4):
                    x[i, t, r] = other[t, r]
        solved = n_stages
        rows = first_rows
        if not warm:
            solved = solve_level(
                *point, min(rows, _COARSE_ROWS), settings[COARSE_FACTOR], _COARSE_TAIL, settings[COARSE_TOLERANCE], False,
                *solution,
            )  # fmt: skip
            for t in range(solved):
                started[i, t] = 1
        error = np.inf
        level = 0
        factor = 1.0
        tail = settings[TAIL]
        tolerance = settings[TOLERANCE]
        before = before_that = np.inf
        exact = rows > 0 and rows == directions.shape[0]
        while True:
            for t in range(n_stages):
                for r in range(2 * t + 4):
                    other[t, r] = x[i, t, r]
            solved = solve_level(*point, rows, factor, tail, tolerance, False, *solution)
            for t in range(solved):
                started[i, t] = 1
            if solved < n_stages and level > 0 and stats[i, solved, STATUS] == TOO_LARGE:
                # What is left is the level before, with the error it has.
                stats[i, solved, STATUS], stats[i, solved, DEFECT] = CONVERGED, 0.0
                solved = n_stages
                level -= 1
                break
            if solved < n_stages:
                break
            if level == 0:
                for t in range(n_stages):
                    for r in range(2 * t + 4):
                        other[t, r] = x[i, t, r]
                coarser = factor * settings[CHECK_FACTOR] if rows == 0 else factor
                solved = solve_level(
                    *point, rows // 2, coarser, tail * _CHECK_TAIL, 0.0, True, other, started[i], *scratch
                )
            if solved == n_stages:
                error = largest_change(other, x[i], n_stages)
                if level == 0 and rows == 0:
                    # The trapezoid rule's error is geometric in 1/step, so that of the finer step is a power of this one.
                    error = min(error, max(_SAFETY * error ** settings[CHECK_FACTOR], _LEAST_GAIN * error))
                # Half of the exact directions are exact too: what differs is rounding, as the chain amplifies it.
                if rows > 0 and not exact:
                    error *= _SEQUENCE_SAFETY
                # A density that does not integrate to 1 has a bend that neither rule has seen.
                for t in range(n_stages):
                    error = max(error, stats[i, t, RESIDUAL], stats[i, t, DEFECT])
            solved = n_stages
            if (
                level >= settings[MAX_LEVELS]
                or error <= settings[RTOL]
                or (level >= _STALLING_LEVEL and not error < 0.5 * before_that)
                or (rows > 0 and 2 * rows > directions.shape[0])
            ):
                break
            level += 1
            before, before_that = error, before
            tolerance = settings[TOLERANCE] * _TOLERANCE_REFINEMENT
            if rows > 0:
                rows *= 2
            else:
                factor *= settings[REFINEMENT]
                tail *= _TAIL_REFINEMENT
        # Two rules that agree may share their rounding errors: Newton steps from next to the solution have others.
        if solved == n_stages and rounding_may_show(x[i], n_stages, data[i, 2]):
            for trial in range(_ROUNDING_TRIALS):
                moved = other if trial > 0 else first
                displaced(x[i], n_stages, trial, moved)
                solved_again = solve_level(*point, rows, factor, tail, 0.0, True, moved, started[i], *scratch)
                if trial > 0 and solved_again == n_stages:
                    error = max(error, _ROUNDING_SAFETY * largest_change(other, first, n_stages))
        summary[i, 0] = solved
        summary[i, 1] = level
        summary[i, 2] = error
