"""Newton's method where evaluations are costly: steps are halved while they enlarge the residual, and near the end the Jacobian is kept.

In Python, for problems whose evaluation takes a millisecond or more.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, LinAlgWarning, lu_factor, lu_solve

from numerics.driver.outcome import Outcome, Status

Array = NDArray[np.float64]

_CAP = 1.0
_SMALLEST_FACTOR = 1e-3
_KEPT_BELOW = 1e-2  # size of a step from which on the Jacobian is not made anew
_SLOW = 0.3  # of a step to the one before with a kept Jacobian, above which it is
_ACCEPTED = 1.2  # growth of the residual in a step that is not halved
_NOISE = 1e-9
_NOISY_STEPS = 2


class Evaluation(NamedTuple):
    """Residual (n,), and Jacobian (n, n) where one was asked for, in units in which sizes of order 1 are large."""

    residual: Array
    jacobian: Array | None


class CostlyProblem(Protocol):
    """Equations in unknowns x, of which x itself may be a number of arrays."""

    def evaluate(self, x: Any, *, jacobian: bool) -> Evaluation | None:
        """None where the equations are not defined, or not finite."""

    def advanced(self, x: Any, move: Array) -> Any:
        """x after a move, which is in the units of the residual's Jacobian."""


def chord(problem: CostlyProblem, x: Any, tolerance: float, max_iterations: int, damped: int = 0) -> tuple[Any, Outcome]:
    """Solve from x.

    Parameters
    ----------
    tolerance
        Of the largest entry of the last step.
    max_iterations
        Evaluations.
    damped
        Steps of half the residual that come first.

    Returns
    -------
    The last x, and the outcome; ``residual`` is the largest entry at the x before the last step.
    """
    iterations = 0
    for _ in range(damped):
        found = problem.evaluate(x, jacobian=False)
        iterations += 1
        if found is None:
            return x, Outcome(Status.NOT_FINITE.value, iterations, math.inf, math.inf, 0.0)
        largest = float(np.max(np.abs(found.residual)))
        x = problem.advanced(x, 0.5 * min(1.0, 2.0 * _CAP / largest) * found.residual)
    factors = None
    step = residual = math.inf
    before: tuple[Any, Array, float] | None = None  # the last x, its step and its residual
    factor, noisy = 1.0, 0
    while iterations < max_iterations:
        fresh = factors is None or step > _KEPT_BELOW
        found = problem.evaluate(x, jacobian=fresh)
        iterations += 1
        size = math.inf if found is None else float(np.linalg.norm(found.residual))
        if not math.isfinite(size) or (before is not None and size > _ACCEPTED * before[2] and step > _KEPT_BELOW):
            factor *= 0.5
            if before is None or factor < _SMALLEST_FACTOR:
                status = Status.NOT_FINITE if not math.isfinite(size) else Status.TOO_MANY_ITERATIONS
                return (x if before is None else before[0]), Outcome(status.value, iterations, residual, step, 0.0)
            x = problem.advanced(before[0], factor * before[1])
            continue
        residual = float(np.max(np.abs(found.residual)))
        if fresh:
            try:
                with np.errstate(all="ignore"):
                    factors = _factors(found.jacobian)
            except (LinAlgError, LinAlgWarning, ValueError):
                return x, Outcome(Status.SINGULAR.value, iterations, residual, step, 0.0)
        move = -lu_solve(factors, found.residual, check_finite=False)
        last, step = step, float(np.max(np.abs(move)))
        if not math.isfinite(step):
            return x, Outcome(Status.SINGULAR.value, iterations, residual, step, 0.0)
        if not fresh and step > _SLOW * last:
            factors = None
        factor = min(1.0, _CAP / step)
        before = x, move, size
        x = problem.advanced(x, factor * move)
        noisy = noisy + 1 if step < _NOISE and step > _SLOW * last else 0
        if step < tolerance or noisy >= _NOISY_STEPS:
            return x, Outcome(Status.CONVERGED.value, iterations, residual, step, 0.0)
    return x, Outcome(Status.TOO_MANY_ITERATIONS.value, iterations, residual, step, 0.0)


def _factors(matrix: Array) -> tuple[Array, Array]:
    if not np.isfinite(matrix).all():
        raise ValueError("not finite")
    return lu_factor(matrix, check_finite=False)
