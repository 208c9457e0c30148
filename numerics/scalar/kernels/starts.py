"""Where Newton's method starts at a stage: from the solution before, a guess, a path of falling ridges, or a small ridge."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import PART, entry, part
from numerics.driver.homotopy import homotopy_of
from numerics.driver.outcome import OUTCOME, Outcome, Status
from numerics.scalar.kernels.constrained import find_goals, held_samples
from numerics.scalar.kernels.elementary import INNER, LATE, LEAF, FloatArray
from numerics.scalar.kernels.fields import field_of
from numerics.scalar.kernels.guess import (
    first_guess,
    fit_to_inputs,
    input_sizes,
    loss_units,
    response_if_held,
)
from numerics.scalar.kernels.layout import (
    ACCURACY,
    MINIMUM_NORM,
    NO_RIDGE,
    POINT,
    PROBLEM,
    RIDGE,
    SETTINGS,
    STATES,
    STRUCTURE,
    TRAINED,
    Accuracy,
    Problem,
    norm_squared,
    places,
    record,
    unpacked,
    updated_places,
)
from numerics.scalar.kernels.prior import share_of
from numerics.scalar.kernels.stage import solve_stage, with_ridge, without_constraint

_EASY_RIDGE = 1e-3  # times the loss's curvature
_FIRST_RIDGES = (1e-5, 1e-3, 1e-7, 1e-1)  # whose solutions start the search for the limit ridge -> 0
_LARGE_RIDGE, _SMALLEST_RIDGE = 1.0, 1e-16  # between which ridges fall where no solution at one of these leads there
_LARGEST_SCALE = 30.0  # logarithm of the factor on weights of unknown margin
_SCALES = 50  # tried
_TINY = 1e-300


class Task(NamedTuple):
    """A problem, and where its conjugates and updated order parameters go."""

    problem: Problem
    conjugate: np.ndarray
    updated: np.ndarray


TASK = record(Task, PROBLEM, PART, PART)


@njit(types.UniTuple(PART, 2)(STATES, types.int64), **LEAF)
def outputs_of(states, t):
    """Where conjugates and updated order parameters of a stage go."""
    return part(entry(states.conjugates, t), 0, 2 * t + 4), part(entry(states.updates, t), 0, 2 * t + 3)


@njit(OUTCOME(TASK, ACCURACY, types.float64, FloatArray), **LATE)
def solve_at_log_ridge(task, accuracy, log_ridge, x):
    """As :func:`homotopy_of` wants it."""
    return solve_stage(with_ridge(task.problem, math.exp(log_ridge)), accuracy, x, task.conjugate, task.updated)


_follow = homotopy_of(solve_at_log_ridge)


@njit(OUTCOME(TASK, ACCURACY, FloatArray, types.float64, types.float64, types.int64), **LATE)
def follow_ridges(task, accuracy, x, start, goal, max_steps):
    """Falling ridges; values are logarithms."""
    return _follow(task, accuracy, x, start, goal, max_steps)


@njit(OUTCOME(STRUCTURE, POINT, SETTINGS, ACCURACY, PROBLEM, types.int64, STATES, FloatArray), **INNER)
def solve_from_guess(structure, point, settings, accuracy, problem, t, states, x):
    """Stage t from a guess; failing that, along a path of falling ridges."""
    training, rho = point.training, point.data.rho
    conjugate, updated = outputs_of(states, t)
    eta, ridge, fixed_bias = share_of(problem.prior), problem.prior[0, RIDGE], problem.fixed_bias
    seen = structure.stages[t].seen
    teacher = seen[seen.size - 1] + 1 if seen.size > 0 else 0
    units = loss_units(problem)
    mixing = training.mixing[t]
    mean_square, variance = input_sizes(problem)
    first_guess(rho, ridge / variance, eta, mixing, teacher, units, states.unknowns, x)
    fit_to_inputs(mean_square, variance, x)
    if not math.isnan(fixed_bias):
        x[places(t).b] = fixed_bias
    outcome = solve_stage(problem, accuracy, x, conjugate, updated)
    iterations = outcome.iterations
    # Failing that, from a ridge so large that the weights hardly react, or, for a student of earlier stages, from the guess at a
    # ridge where it is good.
    alpha = problem.nodes.weight.sum()
    for route in range(2 if teacher > 0 else 1):
        if outcome.status == Status.CONVERGED:
            break
        lowest = math.log(ridge) + 1.0
        at = places(t)
        guess = np.zeros(x.size)
        if route == 0:
            scale = units.curvature * (1.0 + alpha) * max(variance, mean_square)
            log_ridge = max(math.log(settings.first_ridge * scale), lowest)
            reaction = (
                eta
                * alpha
                * units.logit
                * units.curvature
                / (math.exp(log_ridge) + 0.25 * units.curvature * alpha * max(variance, mean_square))
            )
            guess[at.m] = 0.5 * reaction * mean_square
            guess[at.b] = 0.5 * units.logit * math.log(rho / (1.0 - rho))
            guess[at.norm] = 2.0 * math.log(reaction) + math.log1p(1.0 / alpha) - 1.0
            guess[at.norm] += math.log(variance * (mean_square * alpha + variance) / (alpha + 1.0))
            guess[at.response] = math.log(eta * variance) - log_ridge
        else:
            log_ridge = max(math.log(_EASY_RIDGE * units.curvature), lowest)
            first_guess(rho, math.exp(log_ridge) / variance, eta, mixing, teacher, units, states.unknowns, guess)
            fit_to_inputs(mean_square, variance, guess)
        task = Task(owned(problem), conjugate, updated)
        path = follow_ridges(task, accuracy, guess, log_ridge, math.log(ridge), settings.ridge_steps)
        iterations += path.iterations
        if path.status == Status.CONVERGED:
            outcome = path
            for r in range(x.size):
                x[r] = guess[r]
    return Outcome(outcome.status, iterations, outcome.residual, outcome.last_step, outcome.defect)


@njit(OUTCOME(STRUCTURE, POINT, SETTINGS, ACCURACY, PROBLEM, types.int64, STATES, FloatArray), **LATE)
def solve_without_ridge(structure, point, settings, accuracy, problem, t, states, x):
    """Stage t at ``NO_RIDGE``, from its solution at a small ridge; failing that, along a long path of falling ones."""
    iterations = 0
    conjugate, updated = outputs_of(states, t)
    outcome = Outcome(Status.NOT_TRIED.value, 0, np.inf, np.inf, np.inf)
    for first in _FIRST_RIDGES:
        near = with_ridge(problem, first)
        outcome = solve_from_guess(structure, point, settings, accuracy, near, t, states, x)
        iterations += outcome.iterations
        if outcome.status == Status.CONVERGED:
            outcome = solve_stage(problem, accuracy, x, conjugate, updated)
            iterations += outcome.iterations
        if outcome.status == Status.CONVERGED:
            return Outcome(outcome.status, iterations, outcome.residual, outcome.last_step, outcome.defect)
    start = math.log(_LARGE_RIDGE)
    far = with_ridge(problem, _LARGE_RIDGE)
    outcome = solve_from_guess(structure, point, settings, accuracy, far, t, states, x)
    iterations += outcome.iterations
    if outcome.status == Status.CONVERGED:
        task = Task(owned(problem), conjugate, updated)
        outcome = follow_ridges(task, accuracy, x, start, math.log(_SMALLEST_RIDGE), settings.ridge_steps)
        iterations += outcome.iterations
    if outcome.status == Status.CONVERGED:
        outcome = solve_stage(problem, accuracy, x, conjugate, updated)
        iterations += outcome.iterations
    return Outcome(outcome.status, iterations, outcome.residual, outcome.last_step, outcome.defect)


@njit(types.void(TASK, ACCURACY, FloatArray, FloatArray), **LATE)
def scale_to_margin(task, accuracy, goals, x):
    """Rescale a separator with some margin, and without responses, so that its norm is what its forces give it.

    Weights that are too short for their margin are pushed by too many samples: more than coordinates, or to a larger norm.
    """
    problem = task.problem
    at = places((x.size - 4) // 2)
    own = updated_places((x.size - 4) // 2)[1] - 1  # Q_tt
    for r in range(at.responses, at.response):
        x[r] = 0.0
    once = Accuracy(accuracy.step, accuracy.tail, accuracy.tolerance, 1, accuracy.sharing, False, accuracy.kept)
    low, high = -_LARGEST_SCALE, _LARGEST_SCALE
    trial, found = np.empty(x.size), x.copy()
    for _ in range(_SCALES):
        log_scale = 0.5 * (low + high)
        for r in range(at.norm):
            trial[r] = x[r] * math.exp(log_scale)
        for r in range(at.norm, x.size):
            trial[r] = x[r]
        trial[at.norm] = x[at.norm] + 2.0 * log_scale
        order = unpacked(trial)
        response = response_if_held(
            problem, held_samples(problem.loss, goals, field_of(order, problem.delta), problem.nodes)
        )
        too_short = response <= 0.0
        if not too_short:
            trial[at.response] = math.log(response)
            norm = norm_squared(order)
            solve_stage(problem, once, trial.copy(), task.conjugate, task.updated)
            too_short = task.updated[own] > norm
        if too_short:
            low = log_scale
        else:
            high = log_scale
            for r in range(x.size):
                found[r] = trial[r]
    for r in range(x.size):
        x[r] = found[r]


@njit(OUTCOME(STRUCTURE, POINT, SETTINGS, ACCURACY, PROBLEM, types.int64, STATES, FloatArray), **LATE)
def solve_constrained(structure, point, settings, accuracy, problem, t, states, x):
    """Stage t where a constraint takes the place of its loss, from the direction that the loss has at a small ridge."""
    at = places(t)
    conjugate, updated = outputs_of(states, t)
    goals = np.empty(problem.nodes.weight.size)
    find_goals(problem.loss, problem.nodes.labels, problem.logits, goals)
    alpha = problem.nodes.weight.sum()
    held = response_if_held(problem, alpha)
    iterations = 0
    outcome = Outcome(Status.NOT_TRIED.value, 0, np.inf, np.inf, np.inf)
    if problem.loss.constraint == MINIMUM_NORM:
        x[:] = 0.0
        x[at.norm] = math.log(np.dot(problem.nodes.weight, goals**2) / (alpha * problem.delta) + _TINY)
        x[at.response] = math.log(held)
        if not math.isnan(problem.fixed_bias):
            x[at.b] = problem.fixed_bias
        outcome = solve_stage(problem, accuracy, x, conjugate, updated)
        iterations += outcome.iterations
    for first in _FIRST_RIDGES:
        if outcome.status == Status.CONVERGED:
            break
        near = without_constraint(with_ridge(problem, first))
        outcome = solve_from_guess(structure, point, settings, accuracy, near, t, states, x)
        iterations += outcome.iterations
        if outcome.status != Status.CONVERGED:
            continue
        if problem.loss.constraint == MINIMUM_NORM:
            x[at.response] = math.log(held)
        else:
            scale_to_margin(Task(owned(problem), conjugate, updated), accuracy, goals, x)
        outcome = solve_stage(problem, accuracy, x, conjugate, updated)
        iterations += outcome.iterations
    return Outcome(outcome.status, iterations, outcome.residual, outcome.last_step, outcome.defect)


@njit(OUTCOME(STRUCTURE, POINT, SETTINGS, ACCURACY, PROBLEM, types.int64, STATES, FloatArray), **INNER)
def solve_trained(structure, point, settings, accuracy, problem, t, states, x):
    """Stage t from its starting point, or from what its kind offers."""
    conjugate, updated = outputs_of(states, t)
    iterations = 0
    if states.started[t] == 1:
        for r in range(x.size):
            x[r] = states.unknowns[t, r]
        outcome = solve_stage(problem, accuracy, x, conjugate, updated)
        iterations = outcome.iterations
        if outcome.status == Status.CONVERGED:
            return outcome
    if problem.loss.constraint != TRAINED:
        outcome = solve_constrained(structure, point, settings, accuracy, problem, t, states, x)
    elif problem.prior[0, RIDGE] > NO_RIDGE:
        outcome = solve_from_guess(structure, point, settings, accuracy, problem, t, states, x)
    else:
        outcome = solve_without_ridge(structure, point, settings, accuracy, problem, t, states, x)
    return Outcome(
        outcome.status, iterations + outcome.iterations, outcome.residual, outcome.last_step, outcome.defect
    )  # fmt: skip
