"""Template: solve the saddle point of one stage by Newton's method, given the earlier stages.

Unknowns, in this order (k = number of earlier stages): ``m, b, C_1..C_k, ln q_perp, V_1..V_k, ln V``, where row
``(C_1..C_k, sqrt(q_perp))`` of the Cholesky factor gives the overlaps.  Channel averages, conjugates and prior are composed
from generated functions; the Jacobian is their chain rule.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from numerics.kernels.elementary import lu_factor, lu_solve

from ._generated import (  # generated
    N_EARLIER,
    TABLE_ROWS,
    branch_offset,
    build_grid,
    channel_averages,
    choose_branches,
    cholesky_jacobian,
    cholesky_update,
    conjugates,
    conjugates_jacobian,
    half_widths,
    point_tables,
    prior_jacobian,
    prior_update,
)

_N = 2 * N_EARLIER + 4
_LOG_Q = 2 + N_EARLIER
_LOG_V = _N - 1
_STEP_CAP = 1.0
_NOISE = 1e-6  # steps this small that no longer shrink are rounding errors
_SMALLEST_SHARE = 1e-12  # of q_perp in q: below, the stage coincides with a combination of earlier ones

_SMALL_SHARE = 1e-2
_WIDTH_DRIFT = 0.05
_CENTRE_DRIFT = 0.2
_MARGIN = 0.5  # in widths, so that a drifted grid still covers
_SMALLEST_FACTOR = 1e-4  # by which q_perp may fall in one step while it is small

CONVERGED = 0
TOO_MANY_ITERATIONS = 1
SINGULAR = 2
NOT_FINITE = 3


@njit(cache=True, nogil=True)
def unpack(x, theta):
    """Order parameters ``m, b, C_1..C_k, C, V_1..V_k, V`` from the unknowns."""
    theta[:] = x
    theta[_LOG_Q] = math.exp(0.5 * x[_LOG_Q])
    theta[_LOG_V] = math.exp(x[_LOG_V])


@njit(cache=True, nogil=True)
def scales(theta, earlier_responses, scale):
    """Natural size of each unknown: a relative step of 1 in the norm, the response or their logarithms."""
    q = theta[_LOG_Q] ** 2
    for k in range(N_EARLIER):
        q += theta[2 + k] ** 2
    root = math.sqrt(q)
    scale[0] = root
    scale[1] = root + 1.0
    for k in range(N_EARLIER):
        scale[2 + k] = root
        scale[_LOG_Q + 1 + k] = math.sqrt(theta[_LOG_V] * earlier_responses[k]) + 1e-3 * theta[_LOG_V]
    scale[_LOG_Q] = 1.0
    scale[_LOG_V] = 1.0
    return q


@njit(cache=True, nogil=True)
def field_centres(theta, delta, gamma, design, target, centre):
    """Mean of ``P(h)`` given a node: cavity mean, shift by earlier responses, and the target's pull."""
    root = math.sqrt(delta)
    for i in range(centre.size):
        a = theta[0] * design[i, 0] + theta[1] * design[i, 1] + gamma * target[i]
        for k in range(N_EARLIER):
            a += root * theta[2 + k] * design[i, 2 + k] + delta * theta[_LOG_Q + 1 + k] * design[i, 2 + N_EARLIER + k]
        centre[i] = a


@njit(cache=True, nogil=True)
def is_small_share(q_perp, q):
    """Whether q_perp may be on its way to zero: its equation is then solved for q_perp itself, not for its logarithm."""
    return q_perp < _SMALL_SHARE * q


@njit(cache=True, nogil=True)
def residuals(theta, averages, gradients, delta, earlier, with_jacobian, residual, jacobian, conjugate):
    """Prior minus current order parameters, and the derivative with respect to the unknowns.

    ``earlier`` packs the constants of the generated functions: (conjugates, prior, Cholesky).
    """
    channel_constants, prior_constants, cholesky_constants = earlier
    n_statistics = 2 + 2 * N_EARLIER
    n_channel = n_statistics + 2
    n_conjugate = 2 * N_EARLIER + 3
    channel_input = np.empty(n_channel + N_EARLIER)
    channel_input[:n_channel] = averages
    channel_input[n_channel:] = theta[2 : 2 + N_EARLIER]
    conjugate_and_bias = np.empty(n_conjugate + 1)
    conjugates(channel_input, channel_constants, conjugate_and_bias)
    conjugate[:] = conjugate_and_bias[:n_conjugate]
    updated = np.empty(n_conjugate)
    prior_update(conjugate, prior_constants, updated)
    factor = np.empty(N_EARLIER + 1)
    overlaps = updated[1 : 2 + N_EARLIER]
    cholesky_update(overlaps, cholesky_constants, factor)

    q = theta[_LOG_Q] ** 2
    for k in range(N_EARLIER):
        q += theta[2 + k] ** 2
    smallest = _SMALLEST_SHARE * q
    q_perp = theta[_LOG_Q] ** 2
    new_q_perp = max(factor[N_EARLIER], smallest)
    new_v = updated[n_conjugate - 1]
    residual[0] = updated[0] - theta[0]
    residual[1] = conjugate_and_bias[n_conjugate]
    for k in range(N_EARLIER):
        residual[2 + k] = factor[k] - theta[2 + k]
        residual[_LOG_Q + 1 + k] = updated[2 + N_EARLIER + k] - theta[_LOG_Q + 1 + k]
    small = is_small_share(q_perp, q)
    residual[_LOG_Q] = new_q_perp / q_perp - 1.0 if small else math.log(new_q_perp / q_perp)
    residual[_LOG_V] = math.log(new_v / theta[_LOG_V])
    if not with_jacobian:
        return
    # d averages / d unknowns
    d_channel = np.zeros((n_channel + N_EARLIER, _N))
    root = math.sqrt(delta)
    sigma = root * theta[_LOG_Q]
    gamma = delta * theta[_LOG_V]
    for r in range(n_channel):
        d_channel[r, 0] = gradients[r, 0]
        d_channel[r, 1] = gradients[r, 1]
        for k in range(N_EARLIER):
            d_channel[r, 2 + k] = root * gradients[r, 2 + k]
            d_channel[r, _LOG_Q + 1 + k] = delta * gradients[r, 2 + N_EARLIER + k]
        d_channel[r, _LOG_Q] = 0.5 * sigma * gradients[r, n_statistics]
        d_channel[r, _LOG_V] = gamma * gradients[r, n_statistics + 1]
    for k in range(N_EARLIER):
        d_channel[n_channel + k, 2 + k] = 1.0
    to_conjugate = np.zeros((n_conjugate + 1, n_channel + N_EARLIER))
    conjugates_jacobian(channel_input, channel_constants, to_conjugate)
    d_conjugate = multiply(to_conjugate, d_channel)
    to_prior = np.zeros((n_conjugate, n_conjugate))
    prior_jacobian(conjugate, prior_constants, to_prior)
    d_updated = multiply(to_prior, d_conjugate[:n_conjugate])
    to_factor = np.zeros((N_EARLIER + 1, N_EARLIER + 1))
    cholesky_jacobian(overlaps, cholesky_constants, to_factor)
    d_factor = multiply(to_factor, d_updated[1 : 2 + N_EARLIER])
    for c in range(_N):
        jacobian[0, c] = d_updated[0, c]
        jacobian[1, c] = d_conjugate[n_conjugate, c]
        for k in range(N_EARLIER):
            jacobian[2 + k, c] = d_factor[k, c]
            jacobian[_LOG_Q + 1 + k, c] = d_updated[2 + N_EARLIER + k, c]
        if factor[N_EARLIER] > smallest:
            jacobian[_LOG_Q, c] = d_factor[N_EARLIER, c] / (q_perp if small else new_q_perp)
        else:
            jacobian[_LOG_Q, c] = 0.0
        jacobian[_LOG_V, c] = d_updated[n_conjugate - 1, c] / new_v
    for r in range(_N):
        if r != 1:
            jacobian[r, r] -= 1.0


@njit(cache=True, nogil=True)
def multiply(left, right):
    """Matrix product of small dense matrices."""
    product = np.zeros((left.shape[0], right.shape[1]))
    for i in range(left.shape[0]):
        for k in range(left.shape[1]):
            if left[i, k] != 0.0:
                for j in range(right.shape[1]):
                    product[i, j] += left[i, k] * right[k, j]
    return product


@njit(cache=True, nogil=True)
def grid_still_covers(centre, target, gamma, sigma, grid_centre, grid_gamma, grid_sigma):
    """Whether a grid made at other order parameters can be kept: its points may move, but not leave a node's Gaussian."""
    if abs(sigma - grid_sigma) > _WIDTH_DRIFT * sigma or abs(gamma - grid_gamma) > _WIDTH_DRIFT * gamma:
        return False
    for i in range(centre.size):
        drift = centre[i] - grid_centre[i] - (gamma - grid_gamma) * target[i]
        if abs(drift) > _CENTRE_DRIFT * sigma:
            return False
    return True


@njit(cache=True, nogil=True)
def solve_stage(
    x, weight, design, labels, logits, parameters, delta, earlier, earlier_responses,
    step, tail, tolerance, max_iterations, result,
):  # fmt: skip
    """Newton's method from ``x`` (overwritten by the solution).

    Returns
    -------
    status : int
    iterations : int
        Evaluations of the channel.
    residual : float
        Undamped, scaled residual of the saddle-point equations at the returned point: the largest of the changes one more plain
        iteration would make, relative to the size of each order parameter.
    last_step : float
        Size of the last Newton step, scaled likewise: the estimate of the remaining error.
    defect : float
        Largest deviation of a (weighted) conditional density from normalisation.

    ``result`` (length 2k+3) receives the conjugates.
    """
    n = weight.size
    theta = np.empty(_N)
    scale = np.empty(_N)
    target = np.empty(n)
    centre = np.empty(n)
    norms = np.empty(n)
    reach = np.empty(n)
    start = np.zeros(n, np.int64)
    stop = np.zeros(n, np.int64)
    residual = np.empty(_N)
    jacobian = np.empty((_N, _N))
    pivots = np.empty(_N, np.int64)
    n_averages = 4 + 2 * N_EARLIER
    averages = np.empty(n_averages)
    gradients = np.empty((n_averages, n_averages))
    conjugate = np.empty(2 * N_EARLIER + 3)
    move = np.empty(_N)
    trial = np.empty(_N)
    points = np.empty((6, 0))
    tables = np.empty((2, 0))
    branch = np.empty(n, np.int64)
    choose_branches(labels, logits, parameters, target, branch)
    total = weight.sum()
    half_widths(weight, tail, _MARGIN, reach)
    grid_sigma = 0.0
    grid_gamma = 0.0
    grid_centre = np.zeros(n)
    last_step = np.inf
    size = np.inf
    defect = np.inf
    for iteration in range(1, max_iterations + 1):
        unpack(x, theta)
        q = scales(theta, earlier_responses, scale)
        sigma = math.sqrt(delta) * theta[_LOG_Q]
        gamma = delta * theta[_LOG_V]
        if not (math.isfinite(sigma) and math.isfinite(gamma) and math.isfinite(theta[0]) and math.isfinite(theta[1])):
            return NOT_FINITE, iteration, size, last_step, defect
        field_centres(theta, delta, gamma, design, target, centre)
        if not grid_still_covers(centre, target, gamma, sigma, grid_centre, grid_gamma, grid_sigma):
            grid_gamma = gamma
            grid_sigma = sigma
            grid_centre[:] = centre
            points = build_grid(
                weight, centre, branch, branch_offset(gamma, parameters), labels, logits, parameters, gamma, sigma,
                step, tail, _MARGIN, False, np.empty((0, 2)), start, stop,
            )  # fmt: skip
            tables = np.empty((TABLE_ROWS, points.shape[1]))
        point_tables(gamma, sigma, points, tables)
        channel_averages(
            gamma, sigma, weight, design, centre, target, branch, start, stop, tables, averages, gradients, norms
        )
        defect = 0.0
        for i in range(n):
            if reach[i] > 0.0:
                defect += weight[i] * abs(norms[i] - 1.0)
        defect /= total
        residuals(theta, averages, gradients, delta, earlier, True, residual, jacobian, conjugate)
        bias_slope = abs(gradients[1, 1]) + 1e-300
        size = abs(residual[1]) / (bias_slope * scale[1])
        for r in range(_N):
            if r == _LOG_Q:
                size = max(size, abs(residual[r]) * min(1.0, theta[r] ** 2 / q))
            elif r != 1:
                size = max(size, abs(residual[r]) / scale[r])
        if not math.isfinite(size):
            return NOT_FINITE, iteration, size, last_step, defect
        for r in range(_N):
            move[r] = -residual[r]
        if not lu_factor(jacobian, pivots):
            return SINGULAR, iteration, size, last_step, defect
        lu_solve(jacobian, pivots, move)
        largest = 0.0
        previous_step = last_step
        last_step = 0.0
        for r in range(_N):
            relative = abs(move[r]) / scale[r]
            if r != _LOG_Q or not is_small_share(theta[r] ** 2, q):
                largest = max(largest, relative)
            if r == _LOG_Q:
                relative *= min(1.0, theta[r] ** 2 / q)
            last_step = max(last_step, relative)
        if not math.isfinite(largest):
            return NOT_FINITE, iteration, size, last_step, defect
        factor = min(1.0, _STEP_CAP / largest) if largest > 0.0 else 1.0
        small = is_small_share(theta[_LOG_Q] ** 2, q)
        for r in range(_N):
            if r == _LOG_Q and small:
                x[r] += math.log(max(1.0 + move[r], _SMALLEST_FACTOR))
            else:
                x[r] += factor * move[r]
        unpack(x, theta)
        q = scales(theta, earlier_responses, scale)
        x[_LOG_Q] = max(x[_LOG_Q], math.log(_SMALLEST_SHARE * q))
        at_noise_floor = last_step < _NOISE and last_step > 0.5 * previous_step
        if last_step < tolerance or at_noise_floor:
            result[:] = conjugate
            return CONVERGED, iteration, size, last_step, defect
    result[:] = conjugate
    return TOO_MANY_ITERATIONS, max_iterations, size, last_step, defect


@njit(cache=True, nogil=True)
def plain_iteration(
    x, weight, design, labels, logits, parameters, delta, earlier, step, tail, conjugates_and_bias, updated
):  # fmt: skip
    """One undamped iteration at any point: conjugates (and E[f], the bias equation), then the order parameters they give."""
    n = weight.size
    theta = np.empty(_N)
    unpack(x, theta)
    sigma = math.sqrt(delta) * theta[_LOG_Q]
    gamma = delta * theta[_LOG_V]
    target = np.empty(n)
    branch = np.empty(n, np.int64)
    centre = np.empty(n)
    start = np.zeros(n, np.int64)
    stop = np.zeros(n, np.int64)
    choose_branches(labels, logits, parameters, target, branch)
    field_centres(theta, delta, gamma, design, target, centre)
    points = build_grid(
        weight, centre, branch, branch_offset(gamma, parameters), labels, logits, parameters, gamma, sigma, step, tail,
        _MARGIN, False, np.empty((0, 2)), start, stop,
    )  # fmt: skip
    tables = np.empty((TABLE_ROWS, points.shape[1]))
    point_tables(gamma, sigma, points, tables)
    n_averages = 4 + 2 * N_EARLIER
    averages = np.empty(n_averages)
    channel_averages(
        gamma, sigma, weight, design, centre, target, branch, start, stop, tables, averages,
        np.empty((n_averages, n_averages)), np.empty(n),
    )  # fmt: skip
    channel_input = np.empty(n_averages + N_EARLIER)
    channel_input[:n_averages] = averages
    channel_input[n_averages:] = theta[2 : 2 + N_EARLIER]
    conjugates(channel_input, earlier[0], conjugates_and_bias)
    prior_update(conjugates_and_bias[:-1], earlier[1], updated)
