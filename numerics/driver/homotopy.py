"""Follow a solution while a parameter changes, in steps that adapt."""

from __future__ import annotations

import math

import numpy as np

from numerics.codegen.cache import njit
from numerics.driver.outcome import Outcome, Status
from numerics.scalar.kernels.elementary import INCLUDED

_FIRST_STRIDE, _LARGEST_STRIDE, _SMALLEST_STRIDE = 1.5, 3.0, 1e-3
_GROWTH, _DECAY = 1.6, 0.4  # of the stride after a success, and after a failure


def homotopy_of(solve_at):
    """Solutions at falling values of a parameter, from ``start``, where ``x`` is nearly one, to ``goal``.

    Parameters
    ----------
    solve_at : function ``(problem, accuracy, value, x) -> Outcome``
        Overwrites ``x`` by the solution at a value of the parameter.

    Returns
    -------
    numerics.driver.outcome.Outcome
        That of the last solution, with the sum of all iterations; ``x`` is the last one found.  Not converged if the path ends
        before the goal.
    """

    @njit(**INCLUDED)
    def homotopy(problem, accuracy, x, start, goal, max_steps):
        here = start
        trial = np.empty(x.size)
        previous = np.empty(x.size)
        previous_at = np.nan
        stride = 0.0
        iterations = 0
        status = Status.NOT_TRIED.value
        residual = last_step = defect = np.inf
        for _ in range(max_steps):
            there = max(here - stride, goal)
            for r in range(x.size):
                trial[r] = x[r]
                if math.isfinite(previous_at) and here != previous_at:
                    trial[r] += (x[r] - previous[r]) * (there - here) / (here - previous_at)
            status, used, residual, last_step, defect = solve_at(problem, accuracy, there, trial)
            iterations += used
            if status == Status.CONVERGED:
                for r in range(x.size):
                    previous[r] = x[r]
                    x[r] = trial[r]
                previous_at = here if stride > 0.0 else np.nan
                here = there
                stride = min(_GROWTH * stride, _LARGEST_STRIDE) if stride > 0.0 else _FIRST_STRIDE
                if here == goal:
                    return Outcome(status, iterations, residual, last_step, defect)
            else:
                stride *= _DECAY
                previous_at = np.nan
                if stride < _SMALLEST_STRIDE:
                    break
        if status == Status.CONVERGED:
            status = Status.TOO_MANY_ITERATIONS.value
        return Outcome(status, iterations, residual, last_step, defect)

    return homotopy
