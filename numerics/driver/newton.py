"""Newton's method with short steps where they are too long, ended by small steps, by their fall, or by their noise."""

from __future__ import annotations

import numpy as np

from numerics.codegen.cache import njit
from numerics.driver.outcome import Outcome, Status
from numerics.scalar.kernels.elementary import INCLUDED, lu_factor, lu_solve

STEP, CAP, RESIDUAL = range(3)
"""Rows of the sizes of an evaluation: what steps, steps that may be too long, and residuals are measured in."""

_STEP_CAP = 1.0
_SMALLEST_CAP = 1e-3
_PATIENCE = 20  # iterations with full steps; hardly any solution needs as many
_NOISE = 1e-6  # steps this small that no longer shrink are rounding errors
_NOISY_STEPS = 3  # of which so many are made, lest one was chance
_SHRINKING = 0.5
_RESIDUAL_PER_STEP = 2.0  # how much larger the residual may be than the step that ends the iteration
_FALLING = 0.1  # of a step to the one before, below which what comes next is known from both
_LEAST_FALL = 1e-5  # of the next step, whatever they say: derivatives of a rule, and rounding
_TRUSTED = 10.0  # times the next step: what an iteration that does not make it may leave
_YOUNG = 10  # iterations: later ones are not that simple


def newton_of(evaluate, advance):
    """Newton's method from ``x``, overwritten by the solution.

    Parameters
    ----------
    evaluate : function ``(problem, memory, state, x) -> state``
        Fills ``memory.residual`` (n,), ``memory.jacobian`` (n, n), which is exact, and ``memory.sizes`` (3, n), in whose units
        residual and steps are judged, infinite where they are not.  The state, which is handed on, says whether they are
        ``finite``, and the ``defect`` of the evaluation.
    advance : function ``(problem, x, move, damping)``
        Adds the damped move to ``x``, where ``x`` may be.
    accuracy
        ``tolerance`` of the last step, or, if ``foreseeing``, of the next one, where the fall of those before says what it would
        be; and ``max_iterations``.

    Returns
    -------
    numerics.driver.outcome.Outcome
        If it converged, ``memory.residual`` is the last move.
    """

    @njit(**INCLUDED)
    def newton(problem, memory, state, x, accuracy):
        n = x.size
        values, jacobian, sizes = memory.residual, memory.jacobian, memory.sizes
        move = np.empty(n)
        pivots = np.empty(n, np.int64)
        residual = last_step = np.inf
        previous_residual = np.inf
        cap = _STEP_CAP
        noisy_steps = 0
        for iteration in range(1, accuracy.max_iterations + 1):
            state = evaluate(problem, memory, state, x)
            if not state.finite:
                return Outcome(Status.NOT_FINITE.value, iteration, residual, last_step, state.defect)
            residual = 0.0
            finite = True
            for r in range(n):
                size = abs(values[r]) / sizes[RESIDUAL, r]
                finite = finite and size < np.inf
                residual = max(residual, size)
                move[r] = -values[r]
            if not finite:
                return Outcome(Status.NOT_FINITE.value, iteration, np.inf, last_step, state.defect)
            if not lu_factor(jacobian, pivots):
                return Outcome(Status.SINGULAR.value, iteration, residual, last_step, state.defect)
            lu_solve(jacobian, pivots, move)
            largest = 0.0
            previous_step = last_step
            last_step = 0.0
            for r in range(n):
                last_step = max(last_step, abs(move[r]) / sizes[STEP, r])
                largest = max(largest, abs(move[r]) / sizes[CAP, r])
                finite = finite and abs(move[r]) < np.inf
            if not finite:
                return Outcome(Status.NOT_FINITE.value, iteration, residual, np.inf, state.defect)
            # So late, steps that do not reduce the residual go back and forth over a bend: take shorter ones.
            if iteration > _PATIENCE:
                cap = max(0.5 * cap, _SMALLEST_CAP) if residual > previous_residual else min(2.0 * cap, _STEP_CAP)
            previous_residual = residual
            advance(problem, x, move, cap / largest if largest > cap else 1.0)
            if last_step < _NOISE and last_step > _SHRINKING * previous_step:
                noisy_steps += 1
            small = last_step < accuracy.tolerance and residual < _RESIDUAL_PER_STEP * accuracy.tolerance
            # Steps fall quadratically, s_3 / s_2 = (s_2 / s_1)^2: the last one need not be made to know how small it would be.
            left = 1.0
            if (
                not small
                and accuracy.foreseeing
                and iteration <= _YOUNG
                and largest <= cap
                and last_step < _FALLING * previous_step < np.inf
            ):
                left = _TRUSTED * max((last_step / previous_step) ** 2, _LEAST_FALL)
                small = left * max(last_step, residual) < accuracy.tolerance
            if small or noisy_steps >= _NOISY_STEPS:
                for r in range(n):
                    values[r] = move[r]
                return Outcome(
                    Status.CONVERGED.value, iteration, (left if small else 1.0) * residual, last_step, state.defect
                )
        return Outcome(Status.TOO_MANY_ITERATIONS.value, accuracy.max_iterations, residual, last_step, state.defect)

    return newton
