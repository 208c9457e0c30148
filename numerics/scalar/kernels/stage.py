"""Solve the saddle point of one stage by Newton's method, given the earlier stages.

Unknowns are those of :mod:`numerics.scalar.kernels.layout`.  Channel averages, conjugates and prior are composed from functions
generated from ``theory``; the Jacobian is their chain rule.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import PART, PART_MATRIX, part_matrix, stack
from numerics.driver.newton import CAP, RESIDUAL, STEP, newton_of
from numerics.driver.outcome import OUTCOME, Status
from numerics.scalar.kernels.averages import channel_averages, point_tables
from numerics.scalar.kernels.constrained import constrained_averages, find_goals
from numerics.scalar.kernels.elementary import INNER, LATE, LEAF, PLAIN, FloatArray, Matrix, multiply
from numerics.scalar.kernels.fields import centres_in_p, field_in
from numerics.scalar.kernels.generated import DENSITY_ROW, N_SUMS, TABLE_ROWS
from numerics.scalar.kernels.grid import build_grid
from numerics.scalar.kernels.layout import (
    ACCURACY,
    FIELD,
    LOSS,
    ORDER_PARAMETERS,
    PROBLEM,
    RIDGE,
    ROOM,
    ROOM_OF_SAMPLES,
    RULE,
    SAMPLES,
    TABLE,
    TRAINED,
    Loss,
    Problem,
    Rule,
    Samples,
    Sharpness,
    Table,
    as_matrix,
    cut,
    cut_zeros,
    new_room,
    norm_squared,
    places,
    record,
    unpacked,
    updated_places,
)
from numerics.scalar.kernels.march import MAP_TOLERANCE
from numerics.scalar.kernels.prior import sum_of_rows
from numerics.scalar.kernels.proximal import POINT_ROWS
from numerics.scalar.kernels.samples import new_samples, samples_between

SMALLEST_SHARE = 1e-12  # of q_perp in q: below, the stage coincides with a combination of earlier ones
_SMALL_SHARE = 1e-2  # below, the equation of q_perp is solved for q_perp itself, which may be on its way to 0
_SMALLEST_FACTOR = 1e-4  # by which q_perp may fall in one step while its share is small
_SMALL_RESPONSE = 1e-3  # of a stage to another, relative to itself: smaller ones are not looked at by themselves
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
_EXACT_SHARE = 1e-8  # of a field in its reaction, likewise
_LONG = 4  # earlier stages from which on the second of these holds: less accuracy is asked for, and nodes are many
_EXACT_RULE, _weights = np.polynomial.hermite_e.hermegauss(8)
_EXACT_DENSITY = _weights * np.exp(0.5 * _EXACT_RULE**2) / math.sqrt(2.0 * math.pi)
_EXACT_PLACE = 1e-2  # how well a point must be where the rule has it, in units of the field, besides rounding
_EXACT_ROUNDING = 1e-14
_TINY = 1e-300


# What an evaluation works with.


class ChainRule(NamedTuple):
    """Room for the factors of the Jacobian.  Flattened ones are written by generated code, which leaves structural zeros alone."""

    channel_input: np.ndarray
    channel_constants: np.ndarray
    overlaps: np.ndarray
    factor: np.ndarray
    d_input: np.ndarray
    channel: np.ndarray
    prior: np.ndarray
    prior_of_row: np.ndarray
    updated_of_row: np.ndarray
    cholesky: np.ndarray
    d_conjugate: np.ndarray
    d_updated: np.ndarray
    d_factor: np.ndarray


CHAIN_RULE = record(ChainRule, *[PART] * 4, PART_MATRIX, *[PART] * 5, *[PART_MATRIX] * 3)


@njit(types.int64(types.int64), **LEAF)
def room_of_chain_rule(k):
    """Numbers that :func:`new_chain_rule` cuts for a stage with k earlier ones."""
    size, n_conjugate, n_input = 2 * k + 4, 2 * k + 3, 3 * k + 4
    vectors = n_input + 1 + k * (k + 1) // 2 + 2 * (k + 1) + n_conjugate
    return vectors + 2 * size * n_input + 2 * n_conjugate**2 + (k + 1) ** 2 + size * (size + n_conjugate + k + 1)


@njit(CHAIN_RULE(FloatArray, types.float64, ROOM), **PLAIN)
def new_chain_rule(triangle, delta, room):
    """For a stage whose earlier ones have this Cholesky factor."""
    k = int(math.sqrt(2.0 * triangle.size))
    size, n_conjugate, n_input = 2 * k + 4, 2 * k + 3, 3 * k + 4
    constants = cut(room, 1 + triangle.size)
    constants[0] = delta
    for r in range(triangle.size):
        constants[1 + r] = triangle[r]
    return ChainRule(
        cut(room, n_input), constants, cut(room, k + 1), cut(room, k + 1), as_matrix(cut_zeros(room, n_input * size), n_input),
        cut_zeros(room, size * n_input), cut_zeros(room, n_conjugate**2), cut_zeros(room, n_conjugate**2),
        cut_zeros(room, n_conjugate), cut_zeros(room, (k + 1) ** 2), as_matrix(cut(room, size * size), size),
        as_matrix(cut(room, n_conjugate * size), n_conjugate), as_matrix(cut(room, (k + 1) * size), k + 1),
    )  # fmt: skip


class Block(NamedTuple):
    """Nodes that are averaged over at a time: their samples, statistics in rows, the same times the weights, and their sums."""

    samples: Samples
    by_row: np.ndarray
    weighted: np.ndarray
    sums: np.ndarray


BLOCK = record(Block, SAMPLES, *[PART_MATRIX] * 3)


class Memory(NamedTuple):
    """What evaluations write to, besides :class:`State`; see :func:`numerics.driver.newton.newton_of`.

    ``averages`` and ``gradients`` are those of the channel, ``own_averages`` and ``own_gradients`` one block's; ``no_centre`` is 0;
    ``field`` is for the coefficients of a field.  The arrays are parts of ``room``.
    """

    residual: np.ndarray
    jacobian: np.ndarray
    sizes: np.ndarray
    conjugate: np.ndarray
    updated: np.ndarray
    averages: np.ndarray
    gradients: np.ndarray
    own_averages: np.ndarray
    own_gradients: np.ndarray
    grid_centre: np.ndarray
    no_centre: np.ndarray
    field: np.ndarray
    room: np.ndarray
    block: Block
    chain_rule: ChainRule
    total: float
    rule: Rule
    slack: float
    exact_width: float


MEMORY = record(
    Memory, PART, *[PART_MATRIX] * 2, *[PART] * 2, *[PART, PART_MATRIX] * 2, *[PART] * 3, FloatArray, BLOCK, CHAIN_RULE,
    types.float64, RULE, types.float64, types.float64,
)  # fmt: skip


class State(NamedTuple):
    """What one evaluation leaves to the next.

    Attributes
    ----------
    points, tables, used
        The grid and what is tabulated on it.
    sigma, gamma : float
        Of the field for which it was made.
    exact : bool
        Whether fields are so narrow that points are measured from their centres.
    defect : float
        Mean deviation of a node's conditional density from normalisation.
    finite : bool
    """

    points: np.ndarray
    tables: np.ndarray
    used: int
    sigma: float
    gamma: float
    exact: bool
    defect: float
    finite: bool


STATE = record(
    State, Matrix, Matrix, types.int64, types.float64, types.float64, types.boolean, types.float64, types.boolean
)


@njit(types.void(FloatArray, Matrix, Matrix, Matrix), **PLAIN)
def node_statistics(weight, statistics, by_row, weighted):
    """``s, 1, g_1.., f_1..`` of nodes, one row each, and the same times the weights: what :func:`channel_averages` takes."""
    for k in range(statistics.shape[1]):
        for i in range(weight.size):
            by_row[k, i] = statistics[i, k]
            weighted[k, i] = weight[i] * statistics[i, k]


@njit(types.boolean(FIELD, types.float64), **LEAF)
def is_narrow(field, exact_width):
    """Whether rounding of a field, or of a reaction that is much larger than it, would show in its Gaussian variable."""
    return field.sigma < exact_width or field.sigma < _EXACT_SHARE * field.gamma


@njit(types.boolean(FIELD, SAMPLES, Matrix), **PLAIN)
def measure_from_centres(field, samples, tables):
    """Replace P on the points of narrow fields by its distance from the node's centre, if they are those of a Gauss rule, and
    densities by what they then are.

    A field that is much narrower than its distance from 0 loses its digits in the difference of the two, while the rule says
    what it is.  Returns whether all nodes have such points; if not, nothing is changed.
    """
    start, stop, branch, centre, sigma = samples.start, samples.stop, samples.branch, samples.centre, field.sigma
    for i in range(centre.size):
        if stop[i] == start[i]:
            continue
        if stop[i] - start[i] != _EXACT_RULE.size:
            return False
        for k in range(_EXACT_RULE.size):
            j = start[i] + k
            slope = tables[2 * branch[i] + 1, j]
            size = abs(centre[i]) + field.gamma * abs(slope)
            off = abs(tables[2 * branch[i], j] - centre[i] - sigma * _EXACT_RULE[k])
            if not off <= _EXACT_PLACE * sigma + _EXACT_ROUNDING * size:
                return False
    for i in range(centre.size):
        for k in range(stop[i] - start[i]):
            tables[2 * branch[i], start[i] + k] = sigma * _EXACT_RULE[k]
            tables[DENSITY_ROW, start[i] + k] = _EXACT_DENSITY[k]
    return True


@njit(types.boolean(FIELD, SAMPLES, FloatArray, types.float64, types.float64, types.float64), **LEAF)
def grid_still_covers(field, samples, grid_centre, grid_sigma, grid_gamma, slack):
    """Whether a grid made at other order parameters can be kept: its points may move, but not leave a node's Gaussian."""
    sigma, gamma = field.sigma, field.gamma
    if abs(sigma - grid_sigma) > slack * _WIDTH_DRIFT * sigma or abs(gamma - grid_gamma) > slack * _WIDTH_DRIFT * gamma:
        return False
    for i in range(grid_centre.size):
        drift = samples.centre[i] - grid_centre[i] - (gamma - grid_gamma) * samples.target[i]
        if abs(drift) > slack * _CENTRE_DRIFT * sigma:
            return False
    return True


# The equations.


@njit(types.float64(ORDER_PARAMETERS, FloatArray, Matrix), **LEAF)
def natural_sizes(order, earlier_responses, sizes):
    """Fill ``sizes`` with the natural size of each unknown, to judge steps and residuals by; returns q."""
    k = order.couplings.size
    at = places(k)
    q = norm_squared(order)
    root = math.sqrt(q)
    v = order.response
    for row in (STEP, CAP, RESIDUAL):
        size = sizes[row]
        size[at.m] = root
        size[at.b] = root + 1.0 + 0.5 * abs(order.b)
        for r in range(k):
            size[at.couplings + r] = root
            size[at.responses + r] = math.sqrt(v * earlier_responses[r]) + _SMALL_RESPONSE * v + abs(order.responses[r])
        size[at.norm] = 1.0
        size[at.response] = 1.0
    return q


@njit(types.void(PROBLEM, ORDER_PARAMETERS, MEMORY), **PLAIN)
def channel_half(problem, order, memory):
    """Conjugates, into ``memory.conjugate``, and their derivatives by the unknowns, into ``memory.chain_rule.d_conjugate``."""
    chain, averages, gradients = memory.chain_rule, memory.averages, memory.gradients
    k = order.couplings.size
    at = places(k)
    n_statistics = 2 + 2 * k
    n_averages = n_statistics + 2
    for r in range(n_averages):
        chain.channel_input[r] = averages[r]
    for r in range(k):
        chain.channel_input[n_averages + r] = order.couplings[r]
    problem.equations.conjugates(chain.channel_input, chain.channel_constants, memory.conjugate)
    root, delta, d_input = math.sqrt(problem.delta), problem.delta, chain.d_input
    for r in range(n_averages):
        d_input[r, at.m] = gradients[r, 0]
        d_input[r, at.b] = gradients[r, 1]
        for c in range(k):
            d_input[r, at.couplings + c] = root * gradients[r, 2 + c]
            d_input[r, at.responses + c] = delta * gradients[r, 2 + k + c]
        d_input[r, at.norm] = 0.5 * root * order.norm * gradients[r, n_statistics]
        d_input[r, at.response] = delta * order.response * gradients[r, n_statistics + 1]
    for c in range(k):
        d_input[n_averages + c, at.couplings + c] = 1.0
    problem.equations.conjugates_jacobian(chain.channel_input, chain.channel_constants, chain.channel)
    multiply(chain.channel, d_input, chain.d_conjugate)


@njit(types.void(PROBLEM, ORDER_PARAMETERS, MEMORY), **PLAIN)
def equations(problem, order, memory):
    """Prior minus current order parameters, and its derivative with respect to the unknowns.

    ``memory.conjugate`` and ``memory.updated`` are outputs too.
    """
    chain, conjugate, updated = memory.chain_rule, memory.conjugate, memory.updated
    residual, jacobian = memory.residual, memory.jacobian
    size = residual.size
    k = order.couplings.size
    at = places(k)
    n_conjugate = size - 1
    channel_half(problem, order, memory)
    sum_of_rows(problem.equations.prior, conjugate, problem.prior, chain.updated_of_row, updated)
    first_overlap, first_response = updated_places(k)
    new_responses = updated[first_response:]
    for r in range(k + 1):
        chain.overlaps[r] = updated[first_overlap + r]
    problem.equations.cholesky(chain.overlaps, problem.triangle, chain.factor)

    factor = chain.factor
    q = norm_squared(order)
    q_perp = order.norm**2
    smallest = SMALLEST_SHARE * q
    vanishing = factor[k] <= smallest
    new_q_perp = max(factor[k], smallest)
    small = q_perp < _SMALL_SHARE * q
    residual[at.m] = updated[0] - order.m
    residual[at.b] = conjugate[n_conjugate]
    for r in range(k):
        residual[at.couplings + r] = factor[r] - order.couplings[r]
        residual[at.responses + r] = new_responses[r] - order.responses[r]
    residual[at.norm] = new_q_perp / q_perp - 1.0 if small else math.log(new_q_perp / q_perp)
    residual[at.response] = math.log(new_responses[k] / order.response)

    sum_of_rows(problem.equations.prior_jacobian, conjugate, problem.prior, chain.prior_of_row, chain.prior)
    multiply(chain.prior, chain.d_conjugate[:n_conjugate], chain.d_updated)
    problem.equations.cholesky_jacobian(chain.overlaps, problem.triangle, chain.cholesky)
    multiply(chain.cholesky, chain.d_updated[1 : 2 + k], chain.d_factor)
    for c in range(size):
        jacobian[at.m, c] = chain.d_updated[0, c]
        jacobian[at.b, c] = chain.d_conjugate[n_conjugate, c]
        for r in range(k):
            jacobian[at.couplings + r, c] = chain.d_factor[r, c]
            jacobian[at.responses + r, c] = chain.d_updated[2 + k + r, c]
        jacobian[at.norm, c] = 0.0 if vanishing else chain.d_factor[k, c] / (q_perp if small else new_q_perp)
        jacobian[at.response, c] = chain.d_updated[n_conjugate - 1, c] / new_responses[k]
    for r in range(size):
        if r != at.b:
            jacobian[r, r] -= 1.0
    if not math.isnan(problem.fixed_bias):
        residual[at.b] = problem.fixed_bias - order.b
        for c in range(size):
            jacobian[at.b, c] = 0.0
        jacobian[at.b, at.b] = -1.0


# One evaluation.


@njit(
    types.Tuple((types.float64, types.boolean))(BLOCK, FIELD, TABLE, Matrix, MEMORY), **LEAF
)  # fmt: skip
def add_averages(block, field, table, tables, memory):
    """Add a block's averages to the channel's.  Returns its part of the defect, and whether points are measured from centres."""
    samples = block.samples
    point_tables(field.gamma, field.sigma, table.points, table.used, tables)
    exact = is_narrow(field, memory.exact_width) and measure_from_centres(field, samples, tables)
    if exact:
        samples = Samples(
            owned(samples.labels), owned(samples.logits), samples.target, samples.branch, samples.offset, memory.no_centre,
            samples.reach, samples.start, samples.stop, samples.order, owned(samples.room),
        )  # fmt: skip
    channel_averages(
        field, samples, block.by_row, block.weighted, tables, block.sums, memory.own_averages, memory.own_gradients
    )
    for r in range(memory.averages.size):
        memory.averages[r] += memory.own_averages[r]
        for c in range(memory.averages.size):
            memory.gradients[r, c] += memory.own_gradients[r, c]
    defect = 0.0
    for i in range(samples.labels.size):
        defect += block.weighted[1, i] * abs(block.sums[0, i] - 1.0) / memory.total
    return defect, exact


@njit(RULE(RULE, FIELD, types.float64), **INNER)
def rule_in(rule, field, exact_width):
    """The rule for a field: nodes of narrow ones do not share points, each has those of a Gauss rule of its own."""
    sharing = rule.sharing and not is_narrow(field, exact_width)
    return Rule(rule.step, rule.tolerance, sharing, rule.outer, rule.sharpness, rule.extra, rule.kept)


@njit(STATE(LOSS, SAMPLES, FIELD, RULE, FloatArray, STATE), **INNER)
def renew(loss, samples, field, rule, grid_centre, state):
    """The grid made anew."""
    for i in range(samples.centre.size):
        grid_centre[i] = samples.centre[i]
    points, used = build_grid(loss, samples, field, rule, state.points)
    tables = state.tables
    if tables.shape[1] < used:
        tables = np.empty((TABLE_ROWS, points.shape[1]))
    return State(points, tables, used, field.sigma, field.gamma, state.exact, state.defect, True)


@njit(types.float64(PROBLEM, MEMORY, FIELD), **LATE)
def average_in_blocks(problem, memory, field):
    """Averages over more nodes than fit into memory with their points, and the defect: each block has a grid of its own."""
    weight, statistics = problem.nodes.weight, problem.nodes.statistics
    points, tables = np.empty((POINT_ROWS, 256)), np.empty((TABLE_ROWS, 256))
    defect = 0.0
    for low in range(0, weight.size, _BLOCK):
        high = min(low + _BLOCK, weight.size)
        samples = samples_between(memory.block.samples, low, high)
        by_row, weighted = np.empty((statistics.shape[1], high - low)), np.empty((statistics.shape[1], high - low))
        node_statistics(weight[low:high], statistics[low:high], by_row, weighted)
        points, used = build_grid(problem.loss, samples, field, rule_in(memory.rule, field, memory.exact_width), points)
        if tables.shape[1] < used:
            tables = np.empty((TABLE_ROWS, points.shape[1]))
        block = Block(samples, by_row, weighted, np.empty((N_SUMS, high - low)))
        its_defect, _ = add_averages(block, field, Table(points, used), tables, memory)
        defect += its_defect
    return defect


@njit(types.void(PROBLEM, ORDER_PARAMETERS, MEMORY), **LEAF)
def fill_sizes(problem, order, memory):
    """What steps and residuals are judged by."""
    k = order.couplings.size
    at = places(k)
    sizes = memory.sizes
    share = order.norm**2 / natural_sizes(order, problem.responses, sizes)
    # A bias wrong by this much adds to all forces what they are large themselves: little, where targets hardly differ.
    rate = abs(memory.gradients[at.b, at.b]) + _TINY
    bias_size = min(sizes[STEP, at.b], math.sqrt(memory.averages[2 * k + 2] * memory.total) / rate + _TINY)
    sizes[STEP, at.b] = bias_size
    if math.isnan(problem.fixed_bias):
        sizes[RESIDUAL, at.b] = rate * bias_size
    sizes[STEP, at.norm] = sizes[RESIDUAL, at.norm] = 1.0 / share
    if share < _SMALL_SHARE:
        sizes[CAP, at.norm] = np.inf


@njit(types.boolean(PROBLEM, MEMORY, FIELD, FloatArray), **PLAIN)
def start_averages(problem, memory, field, x):
    """Centres of the nodes, and no averages yet; whether the unknowns are finite."""
    samples = memory.block.samples
    finite = 0.0 < field.sigma < np.inf and 0.0 < field.gamma < np.inf
    for r in range(x.size):
        finite = finite and math.isfinite(x[r])
    if finite:
        centres_in_p(field, problem.nodes.statistics, samples.target, samples.centre)
    for r in range(x.size):
        memory.averages[r] = 0.0
        for c in range(x.size):
            memory.gradients[r, c] = 0.0
    return finite


@njit(STATE(PROBLEM, MEMORY, STATE, FloatArray), **INNER)
def average(problem, memory, state, x):
    """Averages of the channel at ``x``, and their gradients."""
    field = field_in(unpacked(x), problem.delta, memory.field)
    if not start_averages(problem, memory, field, x):
        return State(
            owned(state.points),
            owned(state.tables),
            state.used,
            state.sigma,
            state.gamma,
            state.exact,
            state.defect,
            False,
        )
    samples = memory.block.samples
    exact = state.exact
    if problem.loss.constraint != TRAINED:
        constrained_averages(problem.loss, samples.target, field, problem.nodes, memory.averages, memory.gradients)
        defect = 0.0
    elif problem.nodes.weight.size > _BLOCK:
        defect = average_in_blocks(problem, memory, field)
    else:
        if state.used == 0 or exact or not grid_still_covers(
            field, samples, memory.grid_centre, state.sigma, state.gamma, memory.slack
        ):  # fmt: skip
            rule = rule_in(memory.rule, field, memory.exact_width)
            state = renew(problem.loss, samples, field, rule, memory.grid_centre, state)
        defect, now_exact = add_averages(memory.block, field, Table(state.points, state.used), state.tables, memory)
        exact = exact or now_exact
    return State(owned(state.points), owned(state.tables), state.used, state.sigma, state.gamma, exact, defect, True)


@njit(STATE(PROBLEM, MEMORY, STATE, FloatArray), **INNER)
def evaluate(problem, memory, state, x):
    """Residual and Jacobian at ``x``, and the sizes that steps and residuals are judged by."""
    state = average(problem, memory, state, x)
    if state.finite:
        order = unpacked(x)
        equations(problem, order, memory)
        fill_sizes(problem, order, memory)
    return state


@njit(types.float64(FloatArray), **PLAIN)
def overlap_of(x):
    """Q_tt, from the unknowns."""
    at = places((x.size - 4) // 2)
    q = math.exp(x[at.norm])
    for r in range(at.couplings, at.norm):
        q += x[r] ** 2
    return q


@njit(types.void(PROBLEM, FloatArray, FloatArray, types.float64), **PLAIN)
def advance(problem, x, move, damping):
    """Add a damped move; q_perp on its way to 0 goes by itself, and no further than where its stage counts as none."""
    at = places((x.size - 4) // 2)
    small = math.exp(x[at.norm]) < _SMALL_SHARE * overlap_of(x)
    for r in range(x.size):
        if r == at.norm and small:
            x[r] += math.log(max(1.0 + move[r], _SMALLEST_FACTOR))
        else:
            x[r] += damping * move[r]
    x[at.norm] = max(x[at.norm], math.log(SMALLEST_SHARE * overlap_of(x)))


_newton = newton_of(evaluate, advance)


@njit(MEMORY(PROBLEM, ACCURACY, FloatArray, FloatArray), **INNER)
def new_memory(problem, accuracy, conjugate, updated):
    """Before the first evaluation; conjugates and updated order parameters go where these arrays are, which outlive the memory."""
    nodes = problem.nodes
    n, size = nodes.weight.size, conjugate.size
    total = 0.0
    for i in range(n):
        total += nodes.weight[i]
    k = (size - 4) // 2
    whole = n if n <= _BLOCK else 0
    width = 2 + 2 * k
    of_all = 3 * size * size + 6 * size + width + room_of_chain_rule(k)
    numbers = np.empty(of_all + (ROOM_OF_SAMPLES + 2) * n + (2 * width + N_SUMS) * whole)
    room = new_room(numbers, stack(1))
    samples = new_samples(
        problem.loss, nodes.weight, nodes.labels, problem.logits, accuracy.tail, cut(room, ROOM_OF_SAMPLES * n)
    )
    if problem.loss.constraint != TRAINED:
        find_goals(problem.loss, nodes.labels, problem.logits, samples.target)
    by_row, weighted = as_matrix(cut(room, width * whole), width), as_matrix(cut(room, width * whole), width)
    node_statistics(nodes.weight[:whole], nodes.statistics[:whole], by_row, weighted)
    rough = accuracy.tolerance > _ROUGH_TOLERANCE
    map_tolerance = _ROUGH_MAP_TOLERANCE if rough else MAP_TOLERANCE
    return Memory(
        cut(room, size), as_matrix(cut(room, size * size), size), as_matrix(cut(room, 3 * size), 3), conjugate, updated,
        cut(room, size), as_matrix(cut(room, size * size), size), cut(room, size), as_matrix(cut(room, size * size), size),
        cut_zeros(room, n), cut_zeros(room, n), cut(room, width), numbers,
        Block(samples, by_row, weighted, as_matrix(cut(room, N_SUMS * whole), N_SUMS)),
        new_chain_rule(problem.triangle, problem.delta, room), total,
        Rule(
            accuracy.step, map_tolerance, accuracy.sharing, False, Sharpness(0.0, 0.0), part_matrix(conjugate, 0, 0, 2),
            accuracy.kept,
        ),
        _ROUGH_DRIFT if rough else 1.0, _EXACT_WIDTH if k < _LONG else _EXACT_LONG_WIDTH,
    )  # fmt: skip


@njit(STATE(), **INNER)
def new_state():
    """Before the first evaluation: there is no grid."""
    return State(np.empty((POINT_ROWS, 256)), np.empty((TABLE_ROWS, 256)), 0, 0.0, 0.0, False, np.inf, True)


@njit(types.void(MEMORY), **PLAIN)
def follow_last_move(memory):
    """Conjugates and updated order parameters after the last move of an iteration that converged, from those before it."""
    move, chain = memory.residual, memory.chain_rule
    for r in range(memory.conjugate.size):
        for c in range(move.size):
            memory.conjugate[r] += chain.d_conjugate[r, c] * move[c]
    for r in range(memory.updated.size):
        for c in range(move.size):
            memory.updated[r] += chain.d_updated[r, c] * move[c]


@njit(OUTCOME(PROBLEM, MEMORY, STATE, FloatArray, ACCURACY), **INNER)
def iterate(problem, memory, state, x, accuracy):
    """Newton's method with what it is lent."""
    outcome = _newton(problem, memory, state, x, accuracy)
    if outcome.status == Status.CONVERGED:
        follow_last_move(memory)
    return outcome


@njit(OUTCOME(PROBLEM, ACCURACY, FloatArray, FloatArray, FloatArray), **INNER)
def solve_stage(problem, accuracy, x, conjugate, updated):
    """Newton's method from ``x``, overwritten by the solution.

    Parameters
    ----------
    conjugate : array, shape (2k + 4,), output
        Conjugates, then alpha E[f].
    updated : array, shape (2k + 3,), output
        Order parameters ``m, Q_t1.., V_t1..`` after one plain iteration.
    """
    return iterate(problem, new_memory(problem, accuracy, conjugate, updated), new_state(), x, accuracy)


@njit(
    types.Tuple((types.boolean, types.float64))(PROBLEM, ACCURACY, FloatArray, FloatArray, Matrix), **LATE
)  # fmt: skip
def channel_at(problem, accuracy, x, conjugate, slopes):
    """The channel alone, for a prior that is elsewhere: ``problem.prior`` is not looked at.

    Parameters
    ----------
    conjugate : array, shape (2k + 4,), output
        Conjugates at ``x``, then alpha E[f].
    slopes : array, shape (2k + 4, 2k + 4), output
        Their derivatives with respect to the unknowns.

    Returns
    -------
    Whether they are finite, and the defect of the averages.
    """
    memory = new_memory(
        problem, accuracy, conjugate, conjugate
    )  # order parameters after an iteration are not asked for
    state = average(problem, memory, new_state(), x)
    if not state.finite:
        return False, np.inf
    channel_half(problem, unpacked(x), memory)
    finite = True
    for r in range(x.size):
        finite = finite and math.isfinite(conjugate[r])
        for c in range(x.size):
            slopes[r, c] = memory.chain_rule.d_conjugate[r, c]
    return finite, state.defect


@njit(PROBLEM(PROBLEM, types.float64), **LATE)
def with_ridge(problem, ridge):
    """The problem with another ridge."""
    prior = problem.prior.copy()
    for r in range(prior.shape[0]):
        prior[r, RIDGE] = ridge
    return Problem(
        owned(problem.loss), problem.equations, owned(problem.nodes), owned(problem.logits), prior, problem.triangle,
        problem.responses, problem.delta, problem.fixed_bias,
    )  # fmt: skip


@njit(PROBLEM(PROBLEM), **LATE)
def without_constraint(problem):
    """The problem with the loss that a constraint took the place of."""
    loss = problem.loss
    return Problem(
        Loss(
            loss.along, loss.slopes, loss.targets, loss.bends, loss.n_bends, loss.kind, TRAINED, loss.parameters
        ), problem.equations,
        owned(problem.nodes), owned(problem.logits), owned(problem.prior), problem.triangle, problem.responses, problem.delta,
        problem.fixed_bias,
    )  # fmt: skip
