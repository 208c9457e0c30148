"""Newton, homotopy and refinement on problems that have nothing to do with physics, in Python as compiled."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from numerics.codegen.cache import njit
from numerics.driver.homotopy import homotopy_of
from numerics.driver.newton import newton_of
from numerics.driver.outcome import Outcome, Status
from numerics.driver.refine import FAILED, KEPT, SOLVED, refine_of


class Memory(NamedTuple):
    residual: np.ndarray
    jacobian: np.ndarray
    sizes: np.ndarray


class State(NamedTuple):
    finite: bool
    defect: float


class Accuracy(NamedTuple):
    tolerance: float
    max_iterations: int
    foreseeing: bool = True


@njit(nogil=True)
def evaluate(problem, memory, state, x):
    """A circle and a parabola: ``x^2 + y^2 = problem``, ``y = x^2``."""
    memory.residual[0] = x[0] ** 2 + x[1] ** 2 - problem
    memory.residual[1] = x[1] - x[0] ** 2
    memory.jacobian[0, 0], memory.jacobian[0, 1] = 2.0 * x[0], 2.0 * x[1]
    memory.jacobian[1, 0], memory.jacobian[1, 1] = -2.0 * x[0], 1.0
    memory.sizes[:] = 1.0
    return State(math.isfinite(x[0]), 0.25)


@njit(nogil=True)
def advance(problem, x, move, damping):
    for r in range(x.size):
        x[r] += damping * move[r]


def memory() -> Memory:
    return Memory(np.empty(2), np.empty((2, 2)), np.empty((3, 2)))


def test_newton_is_the_same_in_python_and_compiled() -> None:
    compiled = newton_of(evaluate, advance)

    @njit()
    def newton(problem, memory, state, x, accuracy):
        return compiled(problem, memory, state, x, accuracy)

    problem, accuracy = 2.0, Accuracy(1e-12, 50)
    found = []
    for solve in (newton, newton_of(evaluate.py_func, advance.py_func).py_func):
        x = np.array([5.0, 0.5])
        outcome = solve(problem, memory(), State(True, 0.0), x, accuracy)
        assert outcome.status == Status.CONVERGED
        assert outcome.defect == 0.25
        found.append((x, outcome))
    np.testing.assert_allclose(found[0][0], [1.0, 1.0], rtol=1e-12)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("start", [[5.0, 0.5], [1.3, 1.2], [1.0 + 1e-5, 1.0 - 1e-5], [1.0, 1.0]])
def test_newton_ends_when_the_next_step_would_be_small(start: list[float], tolerance: float) -> None:
    """It says a residual that is not smaller than what is left, and does not make a step more than it needs."""
    newton = newton_of(evaluate.py_func, advance.py_func).py_func
    x, room = np.array(start), memory()
    outcome = newton(2.0, room, State(True, 0.0), x, Accuracy(tolerance, 50))
    assert outcome.status == Status.CONVERGED
    before = x - room.residual  # the last move
    evaluate.py_func(2.0, room, None, x)
    left = np.max(np.abs(np.linalg.solve(room.jacobian, room.residual)))
    assert left < tolerance
    assert np.max(np.abs(room.residual)) <= outcome.residual + 1e-15
    evaluate.py_func(2.0, room, None, before)
    last = np.max(np.abs(np.linalg.solve(room.jacobian, room.residual)))
    assert last == pytest.approx(outcome.last_step, rel=1e-3, abs=1e-14)


def test_newton_does_not_make_a_step_to_see_that_it_is_small() -> None:
    newton = newton_of(evaluate.py_func, advance.py_func).py_func
    x, steps = np.array([1.3, 1.2]), []
    room = memory()
    while not steps or steps[-1] > 1e-9:
        evaluate.py_func(2.0, room, None, x)
        x += np.linalg.solve(room.jacobian, -room.residual)
        steps.append(np.max(np.abs(np.linalg.solve(room.jacobian, room.residual))))
    outcome = newton(2.0, memory(), State(True, 0.0), np.array([1.3, 1.2]), Accuracy(1e-9, 50))
    assert outcome.iterations == len(steps) - 1
    assert outcome.last_step == pytest.approx(steps[-2], rel=1e-9)
    assert outcome.last_step > 1e-9


@pytest.mark.parametrize(
    ("start", "accuracy", "status"),
    [
        ([5.0, 0.5], Accuracy(1e-12, 2), Status.TOO_MANY_ITERATIONS),
        ([0.0, 0.5], Accuracy(1e-12, 50), Status.SINGULAR),
        ([math.nan, 0.5], Accuracy(1e-12, 50), Status.NOT_FINITE),
    ],
)
def test_newton_says_why_it_failed(start: list[float], accuracy: Accuracy, status: Status) -> None:
    newton = newton_of(evaluate.py_func, advance.py_func).py_func
    assert newton(2.0, memory(), State(True, 0.0), np.array(start), accuracy).status == status
    assert status.message


def test_homotopy_follows_a_solution_that_newton_would_lose() -> None:
    """``x^3 = value`` accepts starts within a tenth only, and the way is long."""
    tried = []

    def solve_at(problem, accuracy, value, x):
        tried.append(value)
        root = math.cbrt(value)
        status = Status.CONVERGED if abs(x[0] - root) < 0.1 else Status.NOT_FINITE
        x[0] = root
        return Outcome(status, 1, 0.0, 0.0, 0.0)

    x = np.array([2.0])
    outcome = homotopy_of(solve_at).py_func(None, None, x, 8.0, 1.0, 100)
    assert outcome.status == Status.CONVERGED
    assert x[0] == 1.0
    assert tried[-1] == 1.0
    assert outcome.iterations == len(tried)
    lost = homotopy_of(solve_at).py_func(None, None, np.array([2.0]), 8.0, 1.0, 2)
    assert lost.status != Status.CONVERGED


class Levels(NamedTuple):
    number: int


class Goal(NamedTuple):
    rtol: float
    max_levels: int


@pytest.mark.parametrize(
    ("kept_from", "goal", "expected"),
    [
        (100, Goal(1e-3, 20), (SOLVED, 10, 2.0**-10)),
        (100, Goal(1e-3, 4), (SOLVED, 4, 2.0**-4)),
        (6, Goal(1e-3, 20), (KEPT, 5, 2.0**-5)),
        (0, Goal(1e-3, 20), (FAILED, 0, math.inf)),
    ],
)
def test_refinement_ends_where_it_should(kept_from: int, goal: Goal, expected: tuple) -> None:
    def solve(problem, solved, level):
        solved.append(level.number)
        return SOLVED if level.number < kept_from else KEPT if level.number > 0 else FAILED

    refine = refine_of(
        solve,
        lambda problem, solved, level: 2.0**-level.number,
        lambda problem, level: (True, Levels(level.number + 1)),
    )
    solved: list[int] = []
    ending, number, _, error = refine.py_func(None, solved, Levels(0), goal)
    assert (ending, number, error) == expected
    assert solved == list(range(len(solved)))
