"""Newton's method for costly problems: the Jacobian is kept near the end, steps that lead astray are halved, failures are said."""

from __future__ import annotations

import numpy as np
import pytest

from numerics.driver.chord import Evaluation, chord, newton_step
from numerics.driver.outcome import Status


class Circle:
    """A circle and a parabola: x^2 + y^2 = radius, y = x^2."""

    def __init__(self, radius: float = 2.0) -> None:
        self.radius, self.evaluations, self.jacobians = radius, 0, 0

    def evaluate(self, x: np.ndarray, *, jacobian: bool) -> Evaluation | None:
        self.evaluations += 1
        self.jacobians += jacobian
        if not np.isfinite(x).all() or x[0] < 0.0:
            return None
        residual = np.array([x @ x - self.radius, x[1] - x[0] ** 2])
        return Evaluation(residual, np.array([[2 * x[0], 2 * x[1]], [-2 * x[0], 1.0]]) if jacobian else None)

    def advanced(self, x: np.ndarray, move: np.ndarray) -> np.ndarray:
        return x + move


def test_the_jacobian_is_kept_near_the_end() -> None:
    problem = Circle()
    found = chord(problem, np.array([3.0, 0.5]), 1e-12, 60)
    assert found.outcome.status == Status.CONVERGED
    assert found.x == pytest.approx([1.0, 1.0], abs=1e-11)
    assert found.outcome.iterations == problem.evaluations
    assert problem.jacobians < problem.evaluations


def test_steps_out_of_the_domain_are_halved() -> None:
    found = chord(Circle(), np.array([0.05, 0.1]), 1e-10, 60)
    assert found.outcome.status == Status.CONVERGED
    assert found.x == pytest.approx([1.0, 1.0], abs=1e-9)


def test_factors_of_a_neighbour() -> None:
    """One step to another problem is right to second order; with the factors as a start no Jacobian is made."""
    found = chord(Circle(), np.array([2.0, 1.0]), 1e-12, 60)
    moved = Circle(2.0 + 1e-4)
    exact = chord(Circle(2.0 + 1e-4), found.x, 1e-12, 60).x
    assert newton_step(moved, found) == pytest.approx(exact, abs=1e-8)
    moved = Circle(2.0 + 1e-4)
    assert chord(moved, found.x, 1e-12, 60, 0, found.factors).x == pytest.approx(exact, abs=1e-11)
    assert moved.jacobians == 0


@pytest.mark.parametrize(
    ("start", "limit", "status"),
    [
        ([3.0, 0.5], 2, Status.TOO_MANY_ITERATIONS),
        ([-1.0, 0.5], 60, Status.NOT_FINITE),
        ([0.0, 0.5], 60, Status.SINGULAR),
    ],
)
def test_failures_are_said(start: list[float], limit: int, status: Status) -> None:
    assert chord(Circle(), np.array(start), 1e-12, limit).outcome.status == status
