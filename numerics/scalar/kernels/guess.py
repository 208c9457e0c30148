"""Where Newton's method starts: the units of a loss, rough order parameters, and stages that are known without it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.codegen.room import stack
from numerics.scalar.kernels.elementary import INNER, LATE, FloatArray, Matrix, address
from numerics.scalar.kernels.layout import (
    COVARIANCES,
    ETA,
    MEAN,
    PROBLEM,
    RIDGE,
    norm_squared,
    places,
    record,
    unpacked,
    updated_places,
)
from numerics.scalar.kernels.proximal import S1
from numerics.scalar.kernels.stage import SMALLEST_SHARE

_NO_RESPONSE = -690.0  # ln V of given weights
_SAMPLED_NODES = 8  # at which the loss's units are read off
_RESPONSE_STEPS = 200  # of Newton's method for the response of a stage without weights
_ROUNDING = 4e-16
_LARGEST_LOG = 100.0  # of a pull on weights of unit ridge


class Units(NamedTuple):
    """Of logits and of curvature, in which a loss is like the cross-entropy, whose force at 0 is 1/2, curvature 1/4."""

    logit: float
    curvature: float


UNITS = record(Units, types.float64, types.float64)


@njit(UNITS(PROBLEM), **INNER)
def loss_units(problem):
    """Units of a stage's loss, read off some of its nodes."""
    loss, labels, logits = problem.loss, problem.nodes.labels, problem.logits
    slope, pair = stack(4), stack(2)
    force = 0.0
    curvature = 0.0
    values = address(loss.parameters, 0)
    stride = labels.size // _SAMPLED_NODES + 1
    for i in range(0, labels.size, stride):
        earlier = address(logits, i * logits.shape[1])
        loss.slopes(0.0, labels[i], earlier, values, address(slope, 0))
        loss.targets(0.0, labels[i], earlier, values, address(pair, 0))
        force += (pair[0] - slope[0]) ** 2
        curvature += slope[S1]
    count = (labels.size + stride - 1) // stride
    force = math.sqrt(force / count)
    curvature /= count
    if not (0.0 < force < np.inf and 0.0 <= curvature < np.inf):
        return Units(1.0, 1.0)
    # A loss that is flat at 0 bends elsewhere: logits will be where it does.
    unit = force / (2.0 * curvature) if curvature > 0.0 else np.inf
    bends = np.empty((3, loss.n_bends))
    if loss.n_bends > 0:
        loss.bends(0.0, labels[0], address(logits, 0), values, address(bends, 0))
        furthest = 0.0
        for k in range(loss.n_bends):
            furthest = max(furthest, abs(bends[0, k]) + bends[1, k])
        if 0.0 < furthest < unit:
            unit = furthest
    if not unit < np.inf:
        return Units(1.0, 1.0)
    return Units(unit, 2.0 * force / unit)


@njit(types.UniTuple(types.float64, 2)(PROBLEM), **INNER)
def input_sizes(problem):
    """Mean square of the class means, and mean variance, of the coordinates that a stage trains; 1 and 1 for white inputs."""
    prior, own = problem.prior, COVARIANCES + problem.responses.size
    share = mean_square = variance = 0.0
    for a in range(prior.shape[0]):
        share += prior[a, ETA]
        mean_square += prior[a, ETA] * prior[a, MEAN] ** 2
        variance += prior[a, ETA] * prior[a, own]
    return mean_square / share, variance / share


@njit(types.void(types.float64, types.float64, FloatArray), **INNER)
def fit_to_inputs(mean_square, variance, x):
    """A guess for white inputs made one for others, with fields as wide as before, and at most as many of them from the means."""
    at = places((x.size - 4) // 2)
    ratio = math.sqrt(mean_square / variance)
    less = math.sqrt(2.0 / (1.0 + max(ratio * ratio, 1.0)))
    x[at.m] *= ratio * less
    for r in range(at.couplings, at.norm):
        x[r] *= less
    x[at.norm] += 2.0 * math.log(less)


@njit(
    types.void(types.float64, types.float64, types.float64, types.float64, types.int64, UNITS, Matrix, FloatArray), **INNER
)  # fmt: skip
def first_guess(rho, ridge, eta, mixing, teacher, units, earlier, x):
    """Rough order parameters: norms grow with log(1 + eta/ridge), or follow the teacher's (stage number ``teacher``, 0: none)."""
    k = (x.size - 4) // 2
    at = places(k)
    size = units.logit * math.log1p(eta * units.curvature / ridge) / math.sqrt(2.0)
    for r in range(x.size):
        x[r] = 0.0
    v = 0.7 * min(eta / ridge, 100.0 / units.curvature)
    norm = size
    x[at.b] = 0.5 * units.logit * math.log(rho / (1.0 - rho))
    if teacher > 0:
        taught_by = unpacked(earlier[teacher - 1, : 2 * teacher + 2])
        norm = mixing * min(math.sqrt(norm_squared(taught_by)), size) + (1.0 - mixing) * size
        v = 0.7 * min(eta / ridge, 100.0 * (1.0 / units.curvature + taught_by.response))
        x[at.b] = taught_by.b
    norm = max(norm, 1e-8 * units.logit)
    x[at.m] = 0.7 * eta * norm
    if k > 0:
        last = unpacked(earlier[k - 1, : 2 * k + 2])
        x[at.couplings + k - 1] = 0.6 * eta * norm * last.norm / math.sqrt(norm_squared(last))
    x[at.norm] = math.log(0.8 * eta * norm**2)
    x[at.response] = math.log(v)


@njit(types.void(types.float64, types.float64, types.float64, Matrix, FloatArray, FloatArray), **LATE)
def place_given(m, q, bias, earlier, x, updated):
    """Order parameters of given weights ``w = m v + noise``: their overlaps with earlier stages are those of m v."""
    k = (x.size - 4) // 2
    at = places(k)
    first_overlap, first_response = updated_places(k)
    overlaps, responses = updated[first_overlap:], updated[first_response:]
    rest = q
    x[at.m] = updated[0] = m
    x[at.b] = bias
    for s in range(k):
        before = unpacked(earlier[s, : 2 * s + 4])
        overlap = m * before.m
        overlaps[s] = overlap
        for r in range(s):
            overlap -= x[at.couplings + r] * before.couplings[r]
        x[at.couplings + s] = overlap / before.norm
        rest -= x[at.couplings + s] ** 2
        x[at.responses + s] = 0.0
        responses[s] = 0.0
    overlaps[k] = q
    responses[k] = 0.0
    x[at.norm] = math.log(max(rest, SMALLEST_SHARE * q))
    x[at.response] = _NO_RESPONSE


@njit(types.UniTuple(types.float64, 2)(FloatArray, FloatArray, types.float64, types.float64), **LATE)
def pull_at_rest(weight, curvature, delta, v):
    """``Vh = sum weight Delta l''/(1 + Delta V l'')`` and its derivative with respect to V."""
    pull = rate = 0.0
    for i in range(weight.size):
        held = delta * curvature[i] / (1.0 + delta * v * curvature[i])
        pull += weight[i] * held
        rate -= weight[i] * held * held
    return pull, rate


@njit(types.UniTuple(types.float64, 2)(PROBLEM), **LATE)
def response_at_rest(problem):
    """V and Vh of a stage without weights: ``V = sum_a eta_a Omega_a/(ridge + Omega_a Vh(V))`` at ``h = bias``."""
    loss, nodes, delta, prior = problem.loss, problem.nodes, problem.delta, problem.prior
    own = COVARIANCES + problem.responses.size
    slope = np.empty(4)
    curvature = np.empty(nodes.labels.size)
    for i in range(curvature.size):
        earlier = address(problem.logits, i * problem.logits.shape[1])
        loss.slopes(problem.fixed_bias, nodes.labels[i], earlier, address(loss.parameters, 0), address(slope, 0))
        curvature[i] = slope[S1]
    # What the prior makes of V rises with V: the excess of V over it changes sign once, from below to above.
    low, high = 0.0, 0.0
    for a in range(prior.shape[0]):
        high += prior[a, ETA] * prior[a, own] / prior[a, RIDGE]
    v = high
    for _ in range(_RESPONSE_STEPS):
        pull, rate = pull_at_rest(nodes.weight, curvature, delta, v)
        excess, slope_of_excess = v, 1.0
        for a in range(prior.shape[0]):
            stiffness = prior[a, RIDGE] + prior[a, own] * pull
            excess -= prior[a, ETA] * prior[a, own] / stiffness
            slope_of_excess += prior[a, ETA] * prior[a, own] ** 2 * rate / stiffness**2
        if excess > 0.0:
            high = v
        else:
            low = v
        trial = v - excess / slope_of_excess
        if not low < trial < high:
            # Responses extend over orders of magnitude.
            trial = math.sqrt(low * high) if low > 0.0 else 0.1 * high
        move = trial - v
        v = trial
        if abs(move) <= _ROUNDING * v:
            break
    return v, pull_at_rest(nodes.weight, curvature, delta, v)[0]


@njit(types.float64(PROBLEM, types.float64), **LATE)
def response_if_held(problem, samples):
    """V of a constrained stage that holds so many samples over N: ``V Vh = samples``, ``V = sum_a eta_a Omega_a/(1 + Omega_a Vh)``.

    0 if there are no fewer samples than coordinates.
    """
    prior, own = problem.prior, COVARIANCES + problem.responses.size
    low, high = -_LARGEST_LOG, _LARGEST_LOG
    v = 0.0
    for _ in range(_RESPONSE_STEPS):
        pull = math.exp(0.5 * (low + high))
        v = 0.0
        for a in range(prior.shape[0]):
            v += prior[a, ETA] * prior[a, own] / (1.0 + prior[a, own] * pull)
        if v * pull < samples:
            low = 0.5 * (low + high)
        else:
            high = 0.5 * (low + high)
    return v if high < _LARGEST_LOG else 0.0


@njit(types.void(types.float64, types.float64, FloatArray, FloatArray), **LATE)
def place_vanishing(bias, response, x, updated):
    """Order parameters of a stage without weights.

    A unit direction of its own, in which no stage has any weight, takes the place of its row of the Cholesky factor: all later
    equations stay regular.  As its forces vanish too, responses to it change nothing and are left at 0.
    """
    at = places((x.size - 4) // 2)
    for r in range(x.size):
        x[r] = 0.0
    for r in range(updated.size):
        updated[r] = 0.0
    x[at.b] = bias
    x[at.response] = math.log(response)
    updated[updated.size - 1] = response
