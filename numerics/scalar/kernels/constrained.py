"""A stage whose loss is a hard constraint: every sample's logit at its best place, or beyond a margin.

What ridge -> 0+ leaves of a stage where it is not an ordinary one (:mod:`numerics.scalar.limits`) minimises ``|w|^2`` under

- ``h = h*`` on every sample (*minimum norm*), ``h*`` being where the sample's loss is smallest, or
- ``s h >= 1`` on every sample (*max margin*), s being the sign of the label that training sees.

That is a stage with ``ridge = 1`` whose loss is 0 where the constraint holds and infinite elsewhere, so its saddle point is
finite and its proximal point piecewise linear:

    h = h*,  f = (h* - u)/(Delta V)            and            h = s max(1, s u),  f = s (1 - s u)_+/(Delta V).

All averages over the stage's own Gaussian are then in closed form.  The true forces are ``ridge`` times these, so that a later
stage, whose equations contain only products of ``f_s`` with the response ``V_ts`` to it, is solved exactly with the
rescaled ones.  For a minimum-norm stage ``V_tt`` and the responses of later stages to it are the true ones times the ridge.  For a
max-margin stage the weights are those with ``s h >= 1``: the true ones times a factor that vanishes with the ridge.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import LATE, PLAIN, POINT_FUNCTION, FloatArray, Matrix, address
from numerics.scalar.kernels.fields import add_field_means
from numerics.scalar.kernels.layout import FIELD, LOSS, MAX_MARGIN, MINIMUM_NORM, NODES, Nodes
from numerics.scalar.kernels.rows import take_nodes, with_room_for_a_stage

FIELD_STEP, FIRST_FIELD_STEP = 0.7, 0.2
"""Trapezoid steps in the own Gaussian of a stage of minimum norm, at quadrature level 0 and unit step; of a first stage."""

EDGE_POINTS, FIRST_EDGE_POINTS = 16.0, 48.0
"""Points of the Gauss-Legendre rules on both sides of the place where a margin is just met, likewise."""

_MOST_POINTS = 64  # of one such rule; finer ones are rules of halves, thirds..
_ROOT_TWO_PI = math.sqrt(2.0 * math.pi)
_ROOT_TWO = math.sqrt(2.0)
_MARGIN = 0.5  # beyond the width at which a Gaussian has fallen to the tail
_NODE_TAIL = 0.01  # relative to the tail of the integration: what a node may weigh and be left out
_STEPS = 2000
_ROUNDING = 4e-16
_LAST_DIGIT = 1e-15


# Where a sample has its minimum.


@njit(types.void(POINT_FUNCTION, POINT_FUNCTION, FloatArray, Matrix, FloatArray, FloatArray), **LATE)
def solve_gradient(slopes, targets, labels, logits, parameters, out):
    """``h*``, where the loss of each node is smallest: ``S(h) = c``, by bracketed Newton steps for ``log S = log c`` where both
    have one sign.

    ``S`` and ``c`` are measured from the limit of S that c is closer to, and keep their digits there.  An earlier logit that
    solves it already is returned as it is: of a loss that wants a logit copied it is the place, even where S is flat.

    Parameters
    ----------
    labels : array, shape (n,);  logits : array, shape (n, l)
        Label and the earlier logits that the loss looks at.
    out : array, shape (n,)
    """
    pair = np.empty(2)
    slope = np.empty(4)
    position = 0.0
    values = address(parameters, 0)
    for i in range(labels.size):
        earlier = address(logits, i * logits.shape[1])
        targets(0.0, labels[i], earlier, values, address(pair, 0))
        branch = 1 if abs(pair[1]) < abs(pair[0]) else 0
        goal = pair[branch]
        copied = False
        for c in range(logits.shape[1]):
            slopes(logits[i, c], labels[i], earlier, values, address(slope, 0))
            if abs(slope[branch] - goal) <= _ROUNDING * abs(goal):
                out[i] = position = logits[i, c]
                copied = True
                break
        if copied:
            continue
        low, high = -np.inf, np.inf
        reach = 1.0
        for _ in range(_STEPS):
            slopes(position, labels[i], earlier, values, address(slope, 0))
            value = slope[branch]
            excess = value - goal
            if excess < 0.0:
                low = position
            else:
                high = position
            move = -excess / slope[2] if slope[2] > 0.0 else np.inf
            if value * goal > 0.0 and slope[2] > 0.0:
                move = -math.log(value / goal) * value / slope[2]
            new = position + move
            if not (low < new < high):
                if excess == 0.0:
                    break
                if low == -np.inf:
                    new = high - reach
                    reach *= 2.0
                elif high == np.inf:
                    new = low + reach
                    reach *= 2.0
                else:
                    new = 0.5 * (low + high)
            elif low == -np.inf or high == np.inf:
                # A step into the unknown is not longer than twice the one before.
                new = min(max(new, position - reach), position + reach)
                reach *= 2.0
            done = abs(new - position) <= _LAST_DIGIT * abs(position)
            position = new
            if done:
                break
        out[i] = position
        if not math.isfinite(position):
            position = 0.0


@njit(types.void(LOSS, FloatArray, Matrix, FloatArray), **LATE)
def find_goals(loss, labels, logits, out):
    """What a constraint holds the logit of a node to: ``h*`` of :func:`solve_gradient`, or the sign of the label for a margin."""
    if loss.constraint == MINIMUM_NORM:
        solve_gradient(loss.slopes, loss.targets, labels, logits, loss.parameters, out)
        return
    pair = np.empty(2)
    for i in range(out.size):
        earlier = address(logits, i * logits.shape[1])
        loss.targets(0.0, labels[i], earlier, address(loss.parameters, 0), address(pair, 0))
        # A logistic target is the limit of S at the label's side.
        out[i] = 1.0 if abs(pair[1]) < abs(pair[0]) else -1.0


# The channel.


@njit(types.UniTuple(types.float64, 2)(types.float64), **PLAIN)
def tail_and_density(z):
    """Normal distribution function, and density."""
    return 0.5 * math.erfc(-z / _ROOT_TWO), math.exp(-0.5 * z * z) / _ROOT_TWO_PI


@njit(FloatArray(FIELD, Matrix), **LATE)
def field_means(field, statistics):
    """Mean of the field given each node."""
    means = np.zeros(statistics.shape[0])
    add_field_means(field, statistics, means)
    return means


@njit(types.void(LOSS, FloatArray, FIELD, NODES, FloatArray, Matrix), **LATE)
def constrained_averages(loss, goals, field, nodes, averages, jacobian):
    """As :func:`numerics.scalar.kernels.averages.channel_averages`."""
    statistics, sigma, gamma = nodes.statistics, field.sigma, field.gamma
    n_statistics = statistics.shape[1]
    second, slope = n_statistics, n_statistics + 1
    averages[:] = 0.0
    jacobian[:, :] = 0.0
    means = field_means(field, statistics)
    for i in range(nodes.weight.size):
        goal, weight = goals[i], nodes.weight[i]
        sign, tail, density = 1.0, 1.0, 0.0
        z = (goal - means[i]) / sigma
        if loss.constraint == MAX_MARGIN:
            sign = goal
            z = (1.0 - goal * means[i]) / sigma
            tail, density = tail_and_density(z)
        distance = z * tail + density
        force = sign * sigma * distance / gamma
        square = sigma * sigma * ((1.0 + z * z) * tail + z * density) / (gamma * gamma)
        averages[second] += weight * square
        averages[slope] -= weight * tail / gamma
        for k in range(n_statistics):
            share = weight * statistics[i, k]
            averages[k] += share * force
            jacobian[k, second] += share * sign * density / gamma
            jacobian[k, slope] -= share * force / gamma
            jacobian[second, k] -= share * 2.0 * force / gamma
            jacobian[slope, k] += share * sign * density / (sigma * gamma)
            for m in range(k + 1):
                jacobian[k, m] -= share * statistics[i, m] * tail / gamma
        jacobian[second, second] += weight * 2.0 * sigma * tail / (gamma * gamma)
        jacobian[second, slope] -= weight * 2.0 * square / gamma
        jacobian[slope, second] += weight * z * density / (sigma * gamma)
        jacobian[slope, slope] += weight * tail / (gamma * gamma)
    for k in range(n_statistics):
        for m in range(k):
            jacobian[m, k] = jacobian[k, m]


@njit(types.float64(LOSS, FloatArray, FIELD, NODES), **LATE)
def held_samples(loss, goals, field, nodes):
    """``alpha`` times the share of samples that the constraint holds."""
    if loss.constraint == MINIMUM_NORM:
        return nodes.weight.sum()
    means = field_means(field, nodes.statistics)
    total = 0.0
    for i in range(nodes.weight.size):
        total += nodes.weight[i] * tail_and_density((1.0 - goals[i] * means[i]) / field.sigma)[0]
    return total


# Nodes.


@njit(types.float64(LOSS, types.float64, types.float64), **PLAIN)
def held_logit(loss, goal, field):
    """The logit: ``h*`` whatever the field, or the field unless it is inside the margin."""
    if loss.constraint == MINIMUM_NORM:
        return goal
    return goal * max(1.0, goal * field)


@njit(NODES(LOSS, NODES, FloatArray, FIELD, FloatArray), **LATE)
def follow_constrained(loss, nodes, goals, field, along):
    """The nodes with one stage more, whose g at node i is ``along[i]``."""
    k = nodes.logits.shape[1]
    statistics, logits = with_room_for_a_stage(nodes)
    means = field_means(field, nodes.statistics)
    for i in range(along.size):
        here = means[i] + field.sigma * along[i]
        logits[i, k] = held_logit(loss, goals[i], here)
        statistics[i, 2 + k] = along[i]
        statistics[i, 3 + 2 * k] = (logits[i, k] - here) / field.gamma
    return Nodes(owned(nodes.weight), statistics, owned(nodes.labels), logits, owned(nodes.member), owned(nodes.row))


def legendre_rules():
    """Points and weights on (0, 1) of the Gauss-Legendre rules of 1, 2.. points, one after the other."""
    rules = [np.polynomial.legendre.leggauss(n) for n in range(1, _MOST_POINTS + 1)]
    points = np.concatenate([0.5 * (1.0 + points) for points, _ in rules])
    return points, np.concatenate([0.5 * weights for _, weights in rules])


@overload(legendre_rules)
def _compiled_legendre_rules():
    """As constants, which are computed when that is compiled."""
    points, weights = legendre_rules()
    return lambda: (points, weights)


@njit(
    types.Tuple((types.int64, FloatArray, FloatArray))(LOSS, FloatArray, FIELD, NODES, types.float64, types.float64), **LATE
)  # fmt: skip
def constrained_directions(loss, goals, field, nodes, step, tail):
    """A rule in g for every node: how many points it has, the points, and their weights.

    The force is piecewise linear in g, so that no map has to be inverted: equidistant values of it, or Gauss-Legendre rules on both
    sides of the place where a margin is just met.
    """
    n, first = nodes.weight.size, nodes.logits.shape[1] == 0
    reach = math.sqrt(-2.0 * math.log(tail)) + _MARGIN
    if loss.constraint == MINIMUM_NORM:
        half = math.ceil(reach / ((FIRST_FIELD_STEP if first else FIELD_STEP) * step))
        count = 2 * half + 1
        points, weights = np.empty(n * count), np.empty(n * count)
        for j in range(count):
            points[j] = reach * (j - half) / half
            weights[j] = reach / half * math.exp(-0.5 * points[j] ** 2) / _ROOT_TWO_PI
        for i in range(1, n):
            points[i * count : (i + 1) * count] = points[:count]
            weights[i * count : (i + 1) * count] = weights[:count]
        return count, points, weights
    wanted = math.ceil((FIRST_EDGE_POINTS if first else EDGE_POINTS) / step)
    pieces = (wanted + _MOST_POINTS - 1) // _MOST_POINTS
    order = (wanted + pieces - 1) // pieces
    rule = order * (order - 1) // 2
    places, shares = legendre_rules()
    count = 2 * pieces * order
    points, weights = np.empty(n * count), np.empty(n * count)
    means = field_means(field, nodes.statistics)
    place = 0
    for i in range(n):
        edge = min(max((goals[i] - means[i]) / field.sigma, -reach), reach)
        for side in range(2):
            start, width = (-reach, (edge + reach) / pieces) if side == 0 else (edge, (reach - edge) / pieces)
            for piece in range(pieces):
                for j in range(order):
                    g = start + width * (piece + places[rule + j])
                    points[place] = g
                    weights[place] = width * shares[rule + j] * math.exp(-0.5 * g * g) / _ROOT_TWO_PI
                    place += 1
    return count, points, weights


@njit(NODES(LOSS, NODES, FloatArray, FIELD, types.float64, types.float64), **LATE)
def constrained_nodes(loss, nodes, goals, field, step, tail):
    """The nodes once for every point of a rule in the g of one stage more; what weighs next to nothing is left out.

    Logits of a max-margin stage are in its own units (``s h >= 1``).
    """
    each, points, weights = constrained_directions(loss, goals, field, nodes, step, tail)
    largest = nodes.weight.max() if nodes.weight.size > 0 else 0.0
    origin = np.empty(points.size, np.int64)
    kept = 0
    for i in range(nodes.weight.size):
        for j in range(i * each, (i + 1) * each):
            weight = nodes.weight[i] * weights[j]
            if weight > _NODE_TAIL * tail * largest:
                points[kept] = points[j]
                weights[kept] = weight
                origin[kept] = i
                kept += 1
    origin = origin[:kept]
    old = take_nodes(nodes, origin)
    old.weight[:] = weights[:kept]
    return follow_constrained(loss, old, goals[origin], field, points[:kept])
