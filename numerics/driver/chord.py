"""Newton's method where evaluations are costly: steps are halved while they enlarge the residual, and the last Jacobian is kept.

In Python, for problems whose evaluation takes a millisecond or more.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, LinAlgWarning, lu_factor, lu_solve

from numerics.driver.homotopy import homotopy_of
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


class Found(NamedTuple):
    """The last x, how the iteration ended, and the last factors of the Jacobian (None if it was never needed)."""

    x: Any
    outcome: Outcome
    factors: tuple[Array, Array] | None


class CostlyProblem(Protocol):
    """Equations in unknowns x, of which x itself may be a number of arrays."""

    def evaluate(self, x: Any, *, jacobian: bool) -> Evaluation | None:
        """None where the equations are not defined, or not finite."""

    def advanced(self, x: Any, move: Array) -> Any:
        """x after a move, which is in the units of the residual's Jacobian."""


def chord(
    problem: CostlyProblem, x: Any, tolerance: float, max_iterations: int, damped: int = 0,
    factors: tuple[Array, Array] | None = None,
) -> Found:  # fmt: skip
    """Solve from x.

    Parameters
    ----------
    tolerance
        Of the largest entry of the last step.
    max_iterations
        Evaluations.
    damped
        Steps of half the residual that come first.
    factors
        Of the Jacobian of a problem that is nearly the same; they are kept while steps shrink.

    Returns
    -------
    Found
        ``outcome.residual`` is the largest entry at the x before the last step.
    """

    def ended(status: Status) -> Found:
        return Found(x, Outcome(status.value, iterations, residual, step, 0.0), factors)

    iterations = 0
    kept, step, residual = factors, math.inf, math.inf
    for _ in range(damped):
        found = problem.evaluate(x, jacobian=False)
        iterations += 1
        if found is None:
            return ended(Status.NOT_FINITE)
        largest = float(np.max(np.abs(found.residual)))
        x = problem.advanced(x, 0.5 * min(1.0, 2.0 * _CAP / largest) * found.residual)
    before: tuple[Any, Array, float] | None = None  # the last x, its step and its residual
    factor, noisy = 1.0, 0
    while iterations < max_iterations:
        fresh = kept is None or (step > _KEPT_BELOW and before is not None)
        found = problem.evaluate(x, jacobian=fresh)
        iterations += 1
        size = math.inf if found is None else float(np.linalg.norm(found.residual))
        if not math.isfinite(size) or (before is not None and size > _ACCEPTED * before[2] and step > _KEPT_BELOW):
            factor *= 0.5
            if before is None or factor < _SMALLEST_FACTOR:
                return ended(Status.NOT_FINITE if not math.isfinite(size) else Status.TOO_MANY_ITERATIONS)
            x = problem.advanced(before[0], factor * before[1])
            continue
        if not fresh and len(kept[0]) != found.residual.size:  # factors of a problem with other symmetries
            kept = None
            continue
        residual = float(np.max(np.abs(found.residual)))
        if fresh:
            kept = _factors(found.jacobian)
            if kept is None:
                return ended(Status.SINGULAR)
            factors = kept
        move = -lu_solve(factors, found.residual, check_finite=False)
        last, step = step, float(np.max(np.abs(move)))
        if not math.isfinite(step):
            return ended(Status.SINGULAR)
        if not fresh and step > _SLOW * last:
            kept = None
        factor = min(1.0, _CAP / step) if step > 0.0 else 1.0
        before = x, move, size
        x = problem.advanced(x, factor * move)
        noisy = noisy + 1 if step < _NOISE and step > _SLOW * last else 0
        if step < tolerance or noisy >= _NOISY_STEPS:
            return ended(Status.CONVERGED)
    return ended(Status.TOO_MANY_ITERATIONS)


def newton_step(problem: CostlyProblem, found: Found) -> Any:
    """x of another problem that is nearly the same, by one step with the factors of the first."""
    here = problem.evaluate(found.x, jacobian=False)
    if here is None or found.factors is None:
        return None
    return problem.advanced(found.x, -lu_solve(found.factors, here.residual, check_finite=False))


class Path(NamedTuple):
    """A path of problems, and how solutions on it are written as one vector in which steps may be extrapolated.

    Attributes
    ----------
    at : function of a parameter
        The problem there.
    begin, end : float
        The parameter falls from one to the other.
    packed, unpacked : functions
        x as a vector, and back.
    """

    at: Callable[[float], CostlyProblem]
    begin: float
    end: float
    packed: Callable[[Any], Array]
    unpacked: Callable[[Array], Any]


def chord_along(path: Path, x: Any, tolerance: float, max_iterations: int, max_steps: int) -> Found:
    """Solutions along a path in steps that adapt, from ``x``, where it is nearly one at the beginning.

    Returns
    -------
    Found
        The last one that converged, with the outcome of the whole path; x itself if there was none.
    """
    last = [Found(x, Outcome(Status.NOT_TRIED.value, 0, math.inf, math.inf, 0.0), None)]

    def solve_at(_problem: object, _accuracy: object, value: float, vector: Array) -> Outcome:
        found = chord(path.at(value), path.unpacked(vector), tolerance, max_iterations)
        if found.outcome.status == Status.CONVERGED:
            last.append(found)
            vector[:] = path.packed(found.x)
        return found.outcome

    outcome = homotopy_of(solve_at).py_func(None, None, path.packed(x), path.begin, path.end, max_steps)
    return last[-1]._replace(outcome=outcome)


def _factors(matrix: Array) -> tuple[Array, Array] | None:
    """LU; None if the matrix is singular or not finite."""
    if not np.isfinite(matrix).all():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", LinAlgWarning)
        try:
            return lu_factor(matrix, check_finite=False)
        except (LinAlgError, LinAlgWarning):
            return None
