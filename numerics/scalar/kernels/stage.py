"""Solve the saddle point of one stage by Newton's method, given the earlier stages.

Unknowns, in this order (k = number of earlier stages): ``m, b, C_1..C_k, ln q_perp, V_1..V_k, ln V``, where the row
``(C_1..C_k, sqrt(q_perp))`` of the Cholesky factor gives the overlaps.  Channel averages, conjugates and prior are composed
from functions generated from ``theory``; the Jacobian is their chain rule.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.averages import channel_averages, point_tables
from numerics.scalar.kernels.elementary import (
    ENTRY,
    INNER,
    POINT_FUNCTION,
    FloatArray,
    IntArray,
    Matrix,
    VectorFunctions,
    lu_factor,
    lu_solve,
    multiply,
)
from numerics.scalar.kernels.generated import DENSITY_ROW, N_SUMS, TABLE_ROWS
from numerics.scalar.kernels.grid import MAP_TOLERANCE, build_grid, choose_branches, half_widths
from numerics.scalar.kernels.nodes import MARGIN
from numerics.scalar.kernels.proximal import POINT_ROWS

N_EQUATIONS = 7
CONJUGATES, CONJUGATES_JACOBIAN, PRIOR, PRIOR_JACOBIAN, CHOLESKY, CHOLESKY_JACOBIAN, MOMENTS = range(N_EQUATIONS)
"""Order of the generated equations of a stage in the list of vector functions."""

CONVERGED, TOO_MANY_ITERATIONS, SINGULAR, NOT_FINITE, NOT_TRIED = range(5)

_STEP_CAP = 1.0
_SMALLEST_CAP = 1e-3
_PATIENCE = 20  # iterations with full steps; hardly any solution needs as many
_NOISE = 1e-6  # steps this small that no longer shrink are rounding errors
_RESIDUAL_PER_STEP = 2.0  # how much larger the residual may be than the step that ends the iteration
_NOISY_STEPS = 3  # of which so many are made, lest one was chance
_SMALLEST_SHARE = 1e-12  # of q_perp in q: below, the stage coincides with a combination of earlier ones
_SMALL_SHARE = 1e-2  # below, the equation of q_perp is solved for q_perp itself, which may be on its way to 0
_SMALLEST_FACTOR = 1e-4  # by which q_perp may fall in one step while its share is small
_WIDTH_DRIFT = 0.02  # relative change of sigma or gamma after which the grid is made anew
_CENTRE_DRIFT = 0.1  # change of a node's centre, in widths, likewise
_ROUGH_TOLERANCE = 1e-3  # of Newton's method, above which a grid may drift this many times further
_ROUGH_DRIFT = 10.0
_ROUGH_MAP_TOLERANCE = 0.03
_BLOCK = 2**16  # nodes whose grid is in memory at a time
_EXACT_WIDTH, _EXACT_LONG_WIDTH = (
    1e-4,
    1e-6,
)  # of a field, below which rounding of logits would show in its Gaussian variable
_LONG = 4  # earlier stages from which on the second of these holds: less accuracy is asked for, and nodes are many
_EXACT_RULE, _weights = np.polynomial.hermite_e.hermegauss(8)
_EXACT_DENSITY = _weights * np.exp(0.5 * _EXACT_RULE**2) / math.sqrt(2.0 * math.pi)
_EXACT_PLACE = 1e-2  # how well a point must be where the rule has it, in units of the field, besides rounding
_EXACT_ROUNDING = 1e-14


@njit(types.void(FloatArray, FloatArray), **INNER)
def unpack(x, theta):
    """Order parameters ``m, b, C_1..C_k, C, V_1..V_k, V`` from the unknowns."""
    k = (x.size - 4) // 2
    for r in range(x.size):
        theta[r] = x[r]
    theta[2 + k] = math.exp(0.5 * x[2 + k])
    theta[2 * k + 3] = math.exp(x[2 * k + 3])


@njit(types.float64(FloatArray, FloatArray, FloatArray), **INNER)
def natural_scales(theta, earlier_responses, scale):
    """Natural size of each unknown, for relative steps and residuals; returns q."""
    k = (theta.size - 4) // 2
    q = 0.0
    for r in range(k + 1):
        q += theta[2 + r] ** 2
    root = math.sqrt(q)
    v = theta[2 * k + 3]
    scale[0] = root
    scale[1] = root + 1.0 + 0.5 * abs(theta[1])
    for r in range(k):
        scale[2 + r] = root
        scale[3 + k + r] = math.sqrt(v * earlier_responses[r]) + 1e-3 * v + abs(theta[3 + k + r])
    scale[2 + k] = 1.0
    scale[2 * k + 3] = 1.0
    return q


@njit(
    types.void(FloatArray, types.float64, types.float64, Matrix, FloatArray, FloatArray),
    **INNER,
)
def field_centres(theta, delta, gamma, statistics, target, centre):
    """Mean of ``P(h)`` given a node: cavity mean, shift by earlier responses, and the target's pull."""
    k = (theta.size - 4) // 2
    root = math.sqrt(delta)
    for i in range(centre.size):
        a = theta[0] * statistics[i, 0] + theta[1] * statistics[i, 1] + gamma * target[i]
        for r in range(k):
            a += root * theta[2 + r] * statistics[i, 2 + r] + delta * theta[3 + k + r] * statistics[i, 2 + k + r]
        centre[i] = a


@njit(types.int64(types.int64), **INNER)
def work_size(k):
    """Numbers that :func:`equations` needs room for, with k earlier stages."""
    size = 2 * k + 4
    n_input = size + k
    matrices = 2 * n_input * size + (size - 1) ** 2 + (k + 1) ** 2 + size * size + (size - 1) * size + (k + 1) * size
    return matrices + n_input + 2 * (k + 1)


@njit(
    types.void(
        VectorFunctions, types.int64, FloatArray, FloatArray, Matrix, types.float64, FloatArray, FloatArray, FloatArray,
        FloatArray, Matrix, FloatArray, FloatArray, FloatArray,
    ),
    **INNER,
)  # fmt: skip
def equations(
    functions, first, theta, averages, gradients, delta, channel_constants, prior_constants, cholesky_constants, residual,
    jacobian, conjugate, updated, work,
):  # fmt: skip
    """Prior minus current order parameters, and its derivative with respect to the unknowns.

    ``conjugate`` (2k + 4, the last entry alpha E[f], which must vanish) and ``updated`` (m, Q_t1.., V_t1..) are outputs too.
    ``work`` (:func:`work_size`) is zero at the first call, and untouched between calls: structural zeros are never written.
    """
    size = theta.size
    k = (size - 4) // 2
    log_q = 2 + k
    log_v = size - 1
    n_statistics = 2 + 2 * k
    n_averages = n_statistics + 2
    n_conjugate = 2 * k + 3
    conjugates_of = functions[first + CONJUGATES]
    conjugates_jacobian_of = functions[first + CONJUGATES_JACOBIAN]
    prior_of = functions[first + PRIOR]
    prior_jacobian_of = functions[first + PRIOR_JACOBIAN]
    cholesky_of = functions[first + CHOLESKY]
    cholesky_jacobian_of = functions[first + CHOLESKY_JACOBIAN]

    n_input = n_averages + k
    used = 0
    d_input = work[used : used + n_input * size].reshape((n_input, size))
    used += n_input * size
    flat_channel = work[used : used + size * n_input]
    used += size * n_input
    flat_prior = work[used : used + n_conjugate * n_conjugate]
    used += n_conjugate * n_conjugate
    flat_cholesky = work[used : used + (k + 1) * (k + 1)]
    used += (k + 1) * (k + 1)
    d_conjugate = work[used : used + size * size].reshape((size, size))
    used += size * size
    d_updated = work[used : used + n_conjugate * size].reshape((n_conjugate, size))
    used += n_conjugate * size
    d_factor = work[used : used + (k + 1) * size].reshape((k + 1, size))
    used += (k + 1) * size
    channel_input = work[used : used + n_input]
    used += n_input
    overlaps = work[used : used + k + 1]
    used += k + 1
    factor = work[used : used + k + 1]
    for r in range(n_averages):
        channel_input[r] = averages[r]
    for r in range(k):
        channel_input[n_averages + r] = theta[2 + r]
    conjugates_of(channel_input, channel_constants, conjugate)
    prior_of(conjugate, prior_constants, updated)
    for r in range(k + 1):
        overlaps[r] = updated[1 + r]
    cholesky_of(overlaps, cholesky_constants, factor)

    q = 0.0
    for r in range(k + 1):
        q += theta[2 + r] ** 2
    q_perp = theta[log_q] ** 2
    smallest = _SMALLEST_SHARE * q
    vanishing = factor[k] <= smallest
    new_q_perp = max(factor[k], smallest)
    new_v = updated[n_conjugate - 1]
    small = q_perp < _SMALL_SHARE * q
    residual[0] = updated[0] - theta[0]
    residual[1] = conjugate[n_conjugate]
    for r in range(k):
        residual[2 + r] = factor[r] - theta[2 + r]
        residual[log_q + 1 + r] = updated[2 + k + r] - theta[log_q + 1 + r]
    residual[log_q] = new_q_perp / q_perp - 1.0 if small else math.log(new_q_perp / q_perp)
    residual[log_v] = math.log(new_v / theta[log_v])

    root = math.sqrt(delta)
    for r in range(n_averages):
        d_input[r, 0] = gradients[r, 0]
        d_input[r, 1] = gradients[r, 1]
        for c in range(k):
            d_input[r, 2 + c] = root * gradients[r, 2 + c]
            d_input[r, log_q + 1 + c] = delta * gradients[r, 2 + k + c]
        d_input[r, log_q] = 0.5 * root * theta[log_q] * gradients[r, n_statistics]
        d_input[r, log_v] = delta * theta[log_v] * gradients[r, n_statistics + 1]
    for c in range(k):
        d_input[n_averages + c, 2 + c] = 1.0
    conjugates_jacobian_of(channel_input, channel_constants, flat_channel)
    multiply(flat_channel.reshape((size, n_input)), d_input, d_conjugate)
    prior_jacobian_of(conjugate, prior_constants, flat_prior)
    multiply(flat_prior.reshape((n_conjugate, n_conjugate)), d_conjugate[:n_conjugate], d_updated)
    cholesky_jacobian_of(overlaps, cholesky_constants, flat_cholesky)
    multiply(flat_cholesky.reshape((k + 1, k + 1)), d_updated[1 : 2 + k], d_factor)
    for c in range(size):
        jacobian[0, c] = d_updated[0, c]
        jacobian[1, c] = d_conjugate[n_conjugate, c]
        for r in range(k):
            jacobian[2 + r, c] = d_factor[r, c]
            jacobian[log_q + 1 + r, c] = d_updated[2 + k + r, c]
        jacobian[log_q, c] = 0.0 if vanishing else d_factor[k, c] / (q_perp if small else new_q_perp)
        jacobian[log_v, c] = d_updated[n_conjugate - 1, c] / new_v
    for r in range(size):
        if r != 1:
            jacobian[r, r] -= 1.0


@njit(
    types.boolean(
        FloatArray, FloatArray, types.float64, types.float64, FloatArray, types.float64, types.float64, types.float64
    ),
    **INNER,
)  # fmt: skip
def grid_still_covers(centre, target, gamma, sigma, grid_centre, grid_gamma, grid_sigma, slack):
    """Whether a grid made at other order parameters can be kept: its points may move, but not leave a node's Gaussian."""
    if abs(sigma - grid_sigma) > slack * _WIDTH_DRIFT * sigma or abs(gamma - grid_gamma) > slack * _WIDTH_DRIFT * gamma:
        return False
    for i in range(centre.size):
        drift = centre[i] - grid_centre[i] - (gamma - grid_gamma) * target[i]
        if abs(drift) > slack * _CENTRE_DRIFT * sigma:
            return False
    return True


@njit(types.UniTuple(Matrix, 2)(FloatArray, Matrix), **INNER)
def node_statistics(weight, statistics):
    """``s, 1, g_1.., f_1..`` of nodes, one row each, and the same times the weights: what :func:`channel_averages` takes."""
    by_row = np.empty((statistics.shape[1], weight.size))
    weighted = np.empty((statistics.shape[1], weight.size))
    for k in range(statistics.shape[1]):
        for i in range(weight.size):
            by_row[k, i] = statistics[i, k]
            weighted[k, i] = weight[i] * statistics[i, k]
    return by_row, weighted


@njit(
    types.boolean(types.float64, types.float64, FloatArray, IntArray, IntArray, IntArray, Matrix), **INNER
)  # fmt: skip
def measure_from_centres(gamma, sigma, centre, branch, start, stop, tables):
    """Replace P on the points of narrow fields by its distance from the node's centre, if they are those of a Gauss rule, and
    densities by what they then are.

    A field that is much narrower than its distance from 0 loses its digits in the difference of the two, while the rule says
    what it is.  Returns whether all nodes have such points; if not, nothing is changed.
    """
    for i in range(centre.size):
        if stop[i] == start[i]:
            continue
        if stop[i] - start[i] != _EXACT_RULE.size:
            return False
        for k in range(_EXACT_RULE.size):
            j = start[i] + k
            slope = tables[2 * branch[i] + 1, j]
            size = abs(centre[i]) + gamma * abs(slope)
            off = abs(tables[2 * branch[i], j] - centre[i] - sigma * _EXACT_RULE[k])
            if not off <= _EXACT_PLACE * sigma + _EXACT_ROUNDING * size:
                return False
    for i in range(centre.size):
        for k in range(stop[i] - start[i]):
            tables[2 * branch[i], start[i] + k] = sigma * _EXACT_RULE[k]
            tables[DENSITY_ROW, start[i] + k] = _EXACT_DENSITY[k]
    return True


SOLVE_STAGE = types.Tuple((types.int64, types.int64, types.float64, types.float64, types.float64))(
        POINT_FUNCTION, POINT_FUNCTION, POINT_FUNCTION, types.int64, types.int64, VectorFunctions, types.int64, FloatArray,
        FloatArray, Matrix, FloatArray, Matrix, FloatArray, types.float64, FloatArray, FloatArray, FloatArray, FloatArray,
        types.float64, types.float64, types.float64, types.float64, types.int64, FloatArray, FloatArray,
    )  # fmt: skip


@njit(SOLVE_STAGE, **ENTRY)
def solve_stage(
    slopes, targets, bends, n_bends, shareable, functions, first, x, weight, statistics, labels, logits, parameters,
    delta, channel_constants, prior_constants, cholesky_constants, earlier_responses, fixed_bias, step, tail, tolerance,
    max_iterations, conjugate, updated,
):  # fmt: skip
    """Newton's method from ``x``, overwritten by the solution.

    Parameters
    ----------
    slopes, targets, bends, n_bends, shareable
        The loss; see ``scalar/kernels/grid.py``.
    functions, first
        List of generated equations, and where this stage's begin in it.
    weight, statistics, labels, logits
        Nodes of the earlier stages, the logits those that the loss looks at.
    fixed_bias : float
        Value of the bias, NaN if it is learned.
    conjugate : array, shape (2k + 4,), output
        Conjugates, then alpha E[f].
    updated : array, shape (2k + 3,), output
        Order parameters ``m, Q_t1.., V_t1..`` after one plain iteration.

    Returns
    -------
    status, iterations : int
        Iterations are evaluations of the channel.
    residual : float
        Undamped, scaled residual before the last step: the largest change that one more plain iteration would make, relative to
        the size of each order parameter.
    last_step : float
        Size of the last Newton step, scaled likewise.
    defect : float
        Mean deviation of a node's conditional density from normalisation.
    """
    n = weight.size
    size = x.size
    k_earlier = (size - 4) // 2
    log_q = 2 + k_earlier
    theta = np.empty(size)
    scale = np.empty(size)
    target = np.empty(n)
    offset = np.empty(n)
    branch = np.empty(n, np.int64)
    centre = np.empty(n)
    grid_centre = np.zeros(n)
    no_centre = np.zeros(n)
    exact = False
    exact_width = _EXACT_WIDTH if k_earlier < _LONG else _EXACT_LONG_WIDTH
    n_statistics = statistics.shape[1]
    block = min(n, _BLOCK)
    by_row, weighted = node_statistics(weight[:block], statistics[:block])
    sums = np.empty((N_SUMS, block))
    reach = np.empty(n)
    start = np.zeros(block, np.int64)
    stop = np.zeros(block, np.int64)
    order = np.arange(block)
    residual = np.empty(size)
    jacobian = np.empty((size, size))
    pivots = np.empty(size, np.int64)
    averages = np.empty(size)
    gradients = np.empty((size, size))
    part_averages = np.empty(size)
    part_gradients = np.empty((size, size))
    move = np.empty(size)
    work = np.zeros(work_size(k_earlier))
    points = np.empty((POINT_ROWS, 256))
    tables = np.empty((TABLE_ROWS, 256))
    no_extra = np.empty((0, 2))
    used = 0
    choose_branches(targets, labels, logits, parameters, target, offset, branch)
    half_widths(weight, tail, MARGIN, reach)
    total = 0.0
    for i in range(n):
        total += weight[i]
    grid_sigma = 0.0
    grid_gamma = 0.0
    rough = tolerance > _ROUGH_TOLERANCE
    slack = _ROUGH_DRIFT if rough else 1.0
    map_tolerance = _ROUGH_MAP_TOLERANCE if rough else MAP_TOLERANCE
    last_step = np.inf
    largest_residual = np.inf
    previous_residual = np.inf
    cap = _STEP_CAP
    noisy_steps = 0
    defect = np.inf
    for iteration in range(1, max_iterations + 1):
        unpack(x, theta)
        q = natural_scales(theta, earlier_responses, scale)
        sigma = math.sqrt(delta) * theta[log_q]
        gamma = delta * theta[size - 1]
        finite = 0.0 < sigma < np.inf and 0.0 < gamma < np.inf
        for r in range(size):
            finite = finite and math.isfinite(theta[r])
        if not finite:
            return NOT_FINITE, iteration, largest_residual, last_step, defect
        field_centres(theta, delta, gamma, statistics, target, centre)
        averages[:] = 0.0
        gradients[:] = 0.0
        defect = 0.0
        renewed = block < n or used == 0 or exact
        if not renewed:
            renewed = not grid_still_covers(
                centre, target, gamma, sigma, grid_centre, grid_gamma, grid_sigma, slack
            )  # fmt: skip
        if renewed:
            grid_gamma = gamma
            grid_sigma = sigma
            for i in range(n):
                grid_centre[i] = centre[i]
        # Many nodes are taken in blocks, each with a grid of its own: points of all at once would not fit into memory.
        for low in range(0, n, block):
            high = min(low + block, n)
            if block < n:
                by_row, weighted = node_statistics(weight[low:high], statistics[low:high])
                sums = np.empty((N_SUMS, high - low))
                start = np.zeros(high - low, np.int64)
                stop = np.zeros(high - low, np.int64)
                order = np.arange(high - low)
            its_centre, its_target, its_branch = centre[low:high], target[low:high], branch[low:high]
            if renewed:
                # Nodes of narrow fields do not share points: each has those of a Gauss rule of its own.
                points, used = build_grid(
                    slopes, bends, n_bends, shareable if sigma > exact_width else 0, weight[low:high], its_centre,
                    its_branch, offset[low:high], labels[low:high], logits[low:high], parameters, gamma, sigma, step,
                    map_tolerance, reach[low:high], False, 0.0, no_extra, points, start, stop, order,
                )  # fmt: skip
                if tables.shape[1] < used:
                    tables = np.empty((TABLE_ROWS, points.shape[1]))
            point_tables(gamma, sigma, points, used, tables)
            if sigma < exact_width and measure_from_centres(
                gamma, sigma, its_centre, its_branch, start, stop, tables
            ):  # fmt: skip
                its_centre = no_centre[low:high]
                exact = True
            channel_averages(
                sigma, by_row, weighted, its_centre, its_target, its_branch, start, stop, tables, sums, part_averages,
                part_gradients,
            )  # fmt: skip
            for r in range(size):
                averages[r] += part_averages[r]
                for c in range(size):
                    gradients[r, c] += part_gradients[r, c]
            for i in range(high - low):
                defect += weight[low + i] * abs(sums[0, i] - 1.0) / total
        equations(
            functions, first, theta, averages, gradients, delta, channel_constants, prior_constants, cholesky_constants,
            residual, jacobian, conjugate, updated, work,
        )  # fmt: skip
        share = theta[log_q] ** 2 / q
        # A bias wrong by this much adds to all forces what they are large themselves: little, where targets hardly differ.
        bias_scale = min(scale[1], math.sqrt(averages[n_statistics] * total) / (abs(gradients[1, 1]) + 1e-300) + 1e-300)
        largest_residual = abs(residual[1]) / ((abs(gradients[1, 1]) + 1e-300) * bias_scale)
        if not math.isnan(fixed_bias):
            residual[1] = fixed_bias - theta[1]
            for c in range(size):
                jacobian[1, c] = 0.0
            jacobian[1, 1] = -1.0
            largest_residual = abs(residual[1]) / scale[1]
        for r in range(size):
            if r == log_q:
                largest_residual = max(largest_residual, abs(residual[r]) * share)
            elif r != 1:
                largest_residual = max(largest_residual, abs(residual[r]) / scale[r])
            move[r] = -residual[r]
        if not math.isfinite(largest_residual):
            return NOT_FINITE, iteration, largest_residual, last_step, defect
        if not lu_factor(jacobian, pivots):
            return SINGULAR, iteration, largest_residual, last_step, defect
        lu_solve(jacobian, pivots, move)
        small = share < _SMALL_SHARE
        largest = 0.0
        previous_step = last_step
        last_step = 0.0
        for r in range(size):
            relative = abs(move[r]) / scale[r]
            if r == log_q:
                last_step = max(last_step, relative * share)
                if not small:
                    largest = max(largest, relative)
            else:
                last_step = max(last_step, abs(move[1]) / bias_scale if r == 1 else relative)
                largest = max(largest, relative)
        if not math.isfinite(largest):
            return NOT_FINITE, iteration, largest_residual, last_step, defect
        # So late, steps that do not reduce the residual go back and forth over a bend: take shorter ones.
        if iteration > _PATIENCE:
            cap = max(0.5 * cap, _SMALLEST_CAP) if largest_residual > previous_residual else min(2.0 * cap, _STEP_CAP)
        previous_residual = largest_residual
        damping = cap / largest if largest > cap else 1.0
        for r in range(size):
            if r == log_q and small:
                x[r] += math.log(max(1.0 + move[r], _SMALLEST_FACTOR))
            else:
                x[r] += damping * move[r]
        unpack(x, theta)
        q = natural_scales(theta, earlier_responses, scale)
        x[log_q] = max(x[log_q], math.log(_SMALLEST_SHARE * q))
        if last_step < _NOISE and last_step > 0.5 * previous_step:
            noisy_steps += 1
        small_enough = last_step < tolerance and largest_residual < _RESIDUAL_PER_STEP * tolerance
        if small_enough or noisy_steps >= _NOISY_STEPS:
            return CONVERGED, iteration, largest_residual, last_step, defect
    return TOO_MANY_ITERATIONS, max_iterations, largest_residual, last_step, defect
