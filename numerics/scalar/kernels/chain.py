"""Solve whole chains, point after point: all stages, at successive quadrature levels until the error estimate is small.

Everything loss-dependent arrives as compiled functions in named tuples, so that this file is compiled once.  Arrays carry a leading
point index and are padded to the number T of stages: unknowns have shape (points, T, 2T + 2), and stage t (from 0) uses the first
2t + 4 entries of its row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.typed import List

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import PART, entry, integer_part, part, part_matrix
from numerics.driver.continuation import MOST_POINTS, extrapolate
from numerics.driver.outcome import OUTCOME, Outcome, Status
from numerics.driver.refine import FAILED, KEPT, SOLVED, least_gain, refine_of
from numerics.scalar.kernels.elementary import INNER, LATE, PLAIN, FloatArray, Matrix
from numerics.scalar.kernels.guess import (
    place_given,
    place_vanishing,
    response_at_rest,
)
from numerics.scalar.kernels.kept import OF_TRAINING, forget_grids, kept_at, room_of_grids
from numerics.scalar.kernels.layout import (
    ALL_STATES,
    GIVEN,
    JUMP_SCALE,
    LEVEL,
    MAX_MARGIN,
    MINIMUM_NORM,
    POINT,
    POINTS,
    SCALE,
    SETTINGS,
    STAGE,
    STATES,
    STRUCTURE,
    SUMMARY,
    VANISHING,
    Accuracy,
    Data,
    Groups,
    Level,
    Point,
    Stages,
    States,
    Structure,
    Training,
    norm_squared,
    places,
    record,
    unpacked,
)
from numerics.scalar.kernels.stage import solve_stage
from numerics.scalar.kernels.starts import outputs_of, solve_trained
from numerics.scalar.kernels.walk import after_stage, begin, next_problem, nothing_known, sharing

_SMALL_RESPONSE = 1e-3  # of a stage to another, relative to itself: errors below are not looked at
_RESOLVED_NORM = 1e-9  # over the norm of a stage: share of V_tt to which rounding leaves responses V_ts to it
_COARSE_TAIL = 1e-8
_COARSE_ROWS = 256  # fixed directions of a rough solution
_CHECK_TAIL = 100.0  # times the tail of the level that is checked
_MARGIN_ON_A_CURVE = 2.5  # in widths of a field: how much further grids go than they need to, for the next point
_SAFETY = 2.0
_SEQUENCE_SAFETY = 4.0  # error of a sequence of directions over its change at the last doubling
_TAIL_REFINEMENT = 0.1  # from one level to the next, so that the error estimate sees what is cut off
_TOLERANCE_REFINEMENT = 0.01  # of Newton's method after the first level: later stages amplify what earlier ones leave
_TINY = 1e-300
_VISIBLE_ROUNDING = 1e6
_DISPLACEMENT = 1e-15
_ROUNDING_TRIALS = 5
_ROUNDING_SAFETY = 2.0  # error over the largest change that displacements of the unknowns by their last digits make


# Stages for compiled code.


@njit(Stages(), cache=True)
def no_stages():
    """An empty list: of named tuples, which Python's own lists could not hand over at no cost."""
    return List.empty_list(STAGE)


@njit(types.void(Stages, STAGE), cache=True)
def append_stage(stages, stage):
    """One more."""
    stages.append(stage)


# One level.


@njit(types.void(STATES, types.int64, FloatArray, OUTCOME), **PLAIN)
def keep(states, t, x, outcome):
    """Of stage t."""
    for r in range(x.size):
        states.unknowns[t, r] = x[r]
    states.iterations[t] += outcome.iterations
    states.residual[t] = outcome.residual
    states.last_step[t] = outcome.last_step
    states.defect[t] = outcome.defect


@njit(types.int64(STRUCTURE, POINT, SETTINGS, LEVEL, STATES, FloatArray), **INNER)
def solve_level(structure, point, settings, level, states, grids):
    """All stages at one quadrature level; returns how many converged (it stops at the first that does not).

    ``grids``, if not empty, has room for those of all stages, which are used again.
    """
    training = point.training
    n_stages = training.kind.size
    progress, known = begin(point, level), nothing_known(point)
    for t in range(n_stages):
        accuracy = Accuracy(
            settings.field_step * level.factor, level.tail, level.tolerance, 1 if level.check else settings.max_iterations,
            sharing(structure), t + 1 == n_stages or level.tolerance > settings.rtol, kept_at(grids, t, OF_TRAINING),
        )  # fmt: skip
        size = 2 * t + 4
        kind = training.kind[t]
        problem = next_problem(structure, point, progress, known)
        conjugate, updated = outputs_of(states, t)
        for r in range(size):
            conjugate[r] = 0.0
        x = np.empty(size)
        outcome = Outcome(Status.CONVERGED.value, 0, 0.0, 0.0, 0.0)
        if kind == GIVEN:
            place_given(
                training.magnetization[t], training.norm_squared[t], training.fixed_bias[t], states.unknowns, x, updated
            )
        elif kind == VANISHING:
            v, pull = response_at_rest(problem)
            place_vanishing(training.fixed_bias[t], v, x, updated)
            conjugate[size - 2] = pull
        elif level.check:
            for r in range(size):
                x[r] = states.unknowns[t, r]
            outcome = solve_stage(problem, accuracy, x, conjugate, updated)
        else:
            outcome = solve_trained(structure, point, settings, accuracy, problem, t, states, x)
        status = outcome.status
        if level.check and status == Status.TOO_MANY_ITERATIONS:
            status = Status.CONVERGED.value
        keep(states, t, x, outcome)
        states.status[t] = status
        if status != Status.CONVERGED:
            return t
        if t + 1 == n_stages:
            break
        progress = after_stage(structure, point, settings, level, progress, known, states, grids)
        if progress.bytes_needed > settings.memory:
            states.status[t + 1] = Status.TOO_LARGE.value
            states.defect[t + 1] = progress.bytes_needed
            return t + 1
    return n_stages


# One point.


class Chain(NamedTuple):
    """A chain at one point."""

    structure: Structure
    point: Point
    settings: object


CHAIN = record(Chain, STRUCTURE, POINT, SETTINGS)


@njit(types.float64(CHAIN, types.int64), **LATE)
def samples_of(chain, s):
    """alpha of what stage s is trained on."""
    return np.dot(chain.structure.trained[s].astype(np.float64), chain.point.data.alpha)


@njit(types.float64(CHAIN, Matrix, STATES), **INNER)
def largest_change(chain, before, states):
    """Largest change of an order parameter, relative to the norm, 1 + norm, norm squared, or responses."""
    after, kind, conjugates = states.unknowns, chain.point.training.kind, states.conjugates
    worst = 0.0
    for t in range(after.shape[0]):
        old, new = unpacked(before[t, : 2 * t + 4]), unpacked(after[t, : 2 * t + 4])
        root = math.sqrt(norm_squared(new))
        worst = max(worst, abs(old.m - new.m) / root)
        worst = max(worst, abs(old.b - new.b) / (1.0 + root))
        for s in range(t):
            worst = max(worst, abs(old.couplings[s] - new.couplings[s]) / root)
            earlier = unpacked(after[s, : 2 * s + 4])
            least = max(_SMALL_RESPONSE, min(1.0, _RESOLVED_NORM / (math.sqrt(norm_squared(earlier)) + _TINY)))
            mean = math.sqrt(new.response * earlier.response) + least * new.response
            force = conjugates[s, 1 + s]  # alpha Delta E[f_s^2]
            if kind[t] in (MINIMUM_NORM, MAX_MARGIN) and force > 0.0:
                # V_tt is in other units: what would move a logit by the width of its field.
                mean = max(mean, root * math.sqrt(samples_of(chain, s) / force))
            worst = max(worst, abs(old.responses[s] - new.responses[s]) / mean)
        worst = max(worst, abs(old.norm**2 - new.norm**2) / root**2)
        worst = max(worst, abs(old.response - new.response) / new.response)
    return worst


@njit(types.boolean(Matrix, types.float64), **INNER)
def rounding_may_show(unknowns, delta):
    """Whether a field is so narrow beside the pull of targets of order 1, or of earlier logits, that its last digits matter."""
    target = 1.0
    for t in range(unknowns.shape[0]):
        order = unpacked(unknowns[t, : 2 * t + 4])
        root = math.sqrt(norm_squared(order))
        if math.sqrt(delta) * order.response * target > _VISIBLE_ROUNDING * root:
            return True
        target = max(target, root)
    return False


@njit(types.void(Matrix, types.int64, Matrix), **LATE)
def displaced(unknowns, trial, out):
    """The unknowns, moved by a few units in the last place, each up or down as the ``trial`` has it, into ``out``."""
    for t in range(unknowns.shape[0]):
        at = places(t)
        for r in range(2 * t + 4):
            sign = 1.0 if (trial >> (r % 3)) & 1 == 1 else -1.0
            least = 1.0 if r == at.response or r == at.norm else 0.0
            out[t, r] = unknowns[t, r] + sign * _DISPLACEMENT * max(abs(unknowns[t, r]), least)


class Solving(NamedTuple):
    """Its stages, those of the level before, and of a check; ``grids`` of the first level and of its check that are kept."""

    states: States
    before: np.ndarray
    check: States
    grids: np.ndarray
    check_grids: np.ndarray


SOLVING = record(Solving, STATES, Matrix, STATES, PART, PART)


@njit(types.void(Matrix, Matrix), **INNER)
def copy(source, target):
    """Entry by entry."""
    for t in range(source.shape[0]):
        for r in range(source.shape[1]):
            target[t, r] = source[t, r]


@njit(types.int64(CHAIN, SOLVING, LEVEL), **INNER)
def solve_chain(chain, solving, level):
    """As :func:`refine_of` wants it."""
    states = solving.states
    n_stages = states.status.size
    copy(states.unknowns, solving.before)
    grids = part(solving.grids, 0, solving.grids.size if level.number == 0 else 0)
    solved = solve_level(chain.structure, chain.point, chain.settings, level, states, grids)
    for t in range(solved):
        states.started[t] = 1
    if solved == n_stages:
        return SOLVED
    if level.number > 0 and states.status[solved] == Status.TOO_LARGE:
        # What is left is the level before, with the error it has.
        states.status[solved], states.defect[solved] = Status.CONVERGED.value, 0.0
        return KEPT
    return FAILED


@njit(types.float64(CHAIN, Matrix), **INNER)
def steepness(chain, unknowns):
    """Largest width of a field over the scale of what later targets do there; jumps have none."""
    training = chain.point.training
    steepest = 0.0
    for t in range(unknowns.shape[0] - 1):
        if training.kind[t] == VANISHING:
            continue
        width = math.sqrt(chain.point.data.delta) * unpacked(unknowns[t, : 2 * t + 4]).norm
        for k in range(training.n_bends[t]):
            scale = training.bends[t, k, SCALE]
            if scale >= JUMP_SCALE:
                steepest = max(steepest, width / scale)
    return steepest


@njit(types.float64(CHAIN, SOLVING, LEVEL), **INNER)
def estimate(chain, solving, level):
    """Error of a level's solution; see :func:`refine_of`."""
    states, settings, structure = solving.states, chain.settings, chain.structure
    n_stages = states.status.size
    if level.number > 0:
        error = largest_change(chain, solving.before, states)
    else:
        copy(states.unknowns, solving.check.unknowns)
        coarser = level.factor * settings.check_factor if level.rows == 0 else level.factor
        other = Level(0, level.rows // 2, coarser, level.tail * _CHECK_TAIL, 0.0, True)
        if solve_level(structure, chain.point, settings, other, solving.check, solving.check_grids) < n_stages:
            return np.inf
        error = largest_change(chain, solving.check.unknowns, states)
        if level.rows == 0:
            # The trapezoid rule's error is geometric in 1/step, so that of the finer step is a power of this one.
            gain = least_gain(steepness(chain, states.unknowns))
            error = min(error, max(_SAFETY * error**settings.check_factor, gain * error))
    # Half of the exact directions are exact too: what differs is rounding, as the chain amplifies it.
    if level.rows > 0 and sharing(structure):
        error *= _SEQUENCE_SAFETY
    # A density that does not integrate to 1 has a bend that neither rule has seen.
    for t in range(n_stages):
        error = max(error, states.residual[t], states.defect[t])
    return error


@njit(types.Tuple((types.boolean, LEVEL))(CHAIN, LEVEL), **INNER)
def finer(chain, level):
    """The next level; see :func:`refine_of`."""
    settings = chain.settings
    tolerance = min(settings.newton_tolerance, settings.rtol) * _TOLERANCE_REFINEMENT
    if level.rows > 0:
        exists = 2 * level.rows <= chain.structure.directions.shape[0]
        return exists, Level(level.number + 1, 2 * level.rows, level.factor, level.tail, tolerance, False)
    factor, tail = level.factor * settings.refinement, level.tail * _TAIL_REFINEMENT
    return True, Level(level.number + 1, 0, factor, tail, tolerance, False)


@njit(types.float64(CHAIN, SOLVING, LEVEL), **LATE)
def error_of_rounding(chain, solving, level):
    """Two rules that agree may share their rounding errors: Newton steps from next to the solution have others."""
    states, check = solving.states, solving.check
    again = Level(level.number, level.rows, level.factor, level.tail, 0.0, True)
    error = 0.0
    for trial in range(_ROUNDING_TRIALS):
        displaced(states.unknowns, trial, check.unknowns)
        solved = solve_level(chain.structure, chain.point, chain.settings, again, check, part(solving.grids, 0, 0))
        if trial == 0:
            copy(check.unknowns, solving.before)
        elif solved == states.status.size:
            error = max(error, _ROUNDING_SAFETY * largest_change(chain, solving.before, check))
    return error


_refine = refine_of(solve_chain, estimate, finer)


# Many points.


@njit(POINT(POINTS, types.int64), **INNER)
def point_at(points, i):
    """One of many points: parts of their arrays."""
    data, training, groups = points.data, points.training, points.groups
    return Point(
        Data(
            data.rho[i], data.delta[i], data.slope[i], data.disagreement[i], entry(data.alpha, i), entry(data.label_noise, i),
            entry(data.weights, i), entry(data.signs, i), entry(data.labels, i),
        ),
        Training(
            entry(training.kind, i), entry(training.fixed_bias, i), entry(training.magnetization, i),
            entry(training.norm_squared, i), entry(training.mean_square, i), entry(training.ridge, i), entry(training.mixing, i),
            entry(training.parameters, i), entry(training.bends, i), entry(training.n_bends, i),
        ),
        Groups(
            entry(groups.share, i), entry(groups.rows, i), entry(groups.means, i), entry(groups.covariances, i),
            entry(groups.signals, i), owned(groups.tables),
        ),
    )  # fmt: skip


@njit(types.boolean(POINTS, types.int64, types.int64), **PLAIN)
def alike(points, i, j):
    """Whether the stages of two points are of the same kinds: else neither says anything of the other."""
    kind = points.training.kind
    same = True
    for t in range(kind.shape[1]):
        same = same and kind[i, t] == kind[j, t]
    return same


@njit(STATES(ALL_STATES, types.int64), **PLAIN)
def states_at(states, i):
    """Those of one of many points: parts of their arrays."""
    return States(
        entry(states.unknowns, i), entry(states.started, i), entry(states.conjugates, i), entry(states.updates, i),
        entry(states.status, i), entry(states.iterations, i), entry(states.residual, i), entry(states.last_step, i),
        entry(states.defect, i),
    )  # fmt: skip


@njit(STATES(STATES, Matrix, FloatArray), **PLAIN)
def states_beside(states, unknowns, room):
    """For a check of others: with other unknowns, and what comes of them; ``room`` is for T (5 + 2 (2T + 2)) numbers."""
    n, width = unknowns.shape
    for t in range(5 * n):
        room[t] = 0.0
    return States(
        unknowns, states.started, part_matrix(room, 5 * n, n, width), part_matrix(room, (5 + width) * n, n, width),
        integer_part(room, 0, n), integer_part(room, n, n), part(room, 2 * n, n), part(room, 3 * n, n), part(room, 4 * n, n),
    )  # fmt: skip


@njit(
    types.void(STRUCTURE, POINTS, SETTINGS, FloatArray, types.boolean, ALL_STATES, Matrix, SUMMARY), **INNER
)  # fmt: skip
def solve_points(structure, points, settings, position, continued, states, vectors, summary):
    """Solve all points in order.

    Parameters
    ----------
    position : array, shape (points,), and continued : bool
        If ``continued``, a point starts from the extrapolation of those before it in ``position``, if they converged.
    vectors : array, shape (points, T (2T + 2))
        The unknowns of all ``states`` in a row.
    """
    n_points, n_stages, width = states.unknowns.shape
    before, other = np.zeros((n_stages, width)), np.zeros((n_stages, width))
    room = np.empty(n_stages * (5 + 2 * width))
    on_a_curve = continued and n_points > 1
    size = room_of_grids(n_stages)
    grids = np.empty(2 * size if on_a_curve else size)
    for i in range(n_points):
        point, its = point_at(points, i), states_at(states, i)
        chain = Chain(structure, point, settings)
        solving = Solving(
            its, before, states_beside(its, other, room), part(grids, 0, size), part(grids, grids.size - size, size)
        )  # fmt: skip
        if i == 0 or not on_a_curve:
            forget_grids(grids, _MARGIN_ON_A_CURVE if on_a_curve else 0.0)
        warm = False
        for t in range(n_stages):
            warm = warm or its.started[t] == 1
            its.status[t] = Status.NOT_TRIED.value
            its.iterations[t] = 0
            its.residual[t] = its.last_step[t] = its.defect[t] = 0.0
        if continued and i > 0 and summary.solved[i - 1] == n_stages and alike(points, i - 1, i):
            warm = True
            known = 1
            while (
                known < MOST_POINTS
                and known < i
                and summary.solved[i - 1 - known] == n_stages
                and alike(points, i - 1 - known, i)
            ):
                known += 1
            extrapolate(vectors, position, i, known, vectors[i])
            for t in range(n_stages):
                its.started[t] = 1
        rows = structure.first_rows
        if not warm:
            coarse = Level(
                0, min(rows, _COARSE_ROWS), settings.coarse_factor, _COARSE_TAIL, settings.coarse_tolerance, False
            )
            for t in range(solve_level(structure, point, settings, coarse, its, part(grids, 0, size))):
                its.started[t] = 1
        tolerance = min(settings.newton_tolerance, settings.rtol)  # errors count what Newton's method leaves
        level = Level(0, rows, 1.0, settings.tail, tolerance, False)
        ending, number, level, error = _refine(chain, solving, level, settings)
        if ending != FAILED and rounding_may_show(its.unknowns, point.data.delta):
            error = max(error, error_of_rounding(chain, solving, level))
        solved = n_stages
        if ending == FAILED:
            solved = 0
            while its.status[solved] == Status.CONVERGED:
                solved += 1
        summary.solved[i] = solved
        summary.level[i] = number
        summary.error[i] = error
