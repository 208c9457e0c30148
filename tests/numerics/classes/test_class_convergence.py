"""Chains on K classes that are hard to find: students near their teacher, large ridges of unequal classes, vanishing ridges."""

from __future__ import annotations

import time

import numpy as np
import pytest

from numerics import Chain, ClassMixture, Estimator, orthogonal_means, similar_pairs, simplex_means, solve
from numerics.classes.channel import Channel
from numerics.classes.controls import Controls
from numerics.classes.rules import sobol_rule
from numerics.classes.solution import ClassSolution
from numerics.classes.solver import Walk
from numerics.classes.stage import StageEquations
from theory.losses import CrossEntropy, Distillation

UNEQUAL = ClassMixture(0.5, (1 / 6, 1 / 3, 1 / 2), simplex_means(3))
NEAR = Chain.of([Estimator(CrossEntropy(), 0.01), Estimator(Distillation(), 0.001)])


@pytest.fixture(scope="module")
def near() -> ClassSolution:
    """A student whose new noise is a hundredth of its teacher's."""
    return solve(UNEQUAL, NEAR, throw=True)


def equations_on(solution: ClassSolution, log2_nodes: int) -> StageEquations:
    """Of the student, on other nodes than its solution."""
    walk, stages = Walk(solution.data, solution.chain.stages, 0), solution.chain.stages
    walk.points = solution.walk.points[:1]
    walk.prior.append(1, stages[0].ridge, walk.points[0].conjugates)
    return StageEquations(walk.channel(2, sobol_rule(2, 2, log2_nodes, 5)), walk.prior, stages[1].ridge, walk.blocks)


def test_students_near_their_teacher_on_rough_nodes(near: ClassSolution) -> None:
    """512 nodes know the little that is new in them to a few percent: what they say of the teacher is not taken from them."""
    equations = equations_on(near, 9)
    rough = equations.plain(near.walk.blocks[1])[2]
    assert rough.cholesky[-1] == pytest.approx(near.walk.blocks[1].cholesky[-1], rel=0.1, abs=1e-3)
    equations.controls = None
    rough = equations.plain(near.walk.blocks[1])[2]
    assert np.abs(rough.cholesky[-1] - near.walk.blocks[1].cholesky[-1]).max() > 0.01


def test_the_jacobian_near_a_teacher(near: ClassSolution) -> None:
    """Against differences: what cancels between Vh_22 and Vh_21 cancels in their slopes."""
    equations, x = equations_on(near, 11), near.walk.blocks[1]
    found = equations.evaluate(x, jacobian=True).jacobian
    n, step = len(found), 1e-7
    expected = np.empty((n, n))
    for i in range(n):
        ends = [
            equations.evaluate(equations.advanced(x, s * np.eye(n)[i]), jacobian=False).residual for s in (step, -step)
        ]
        expected[:, i] = (ends[0] - ends[1]) / (2 * step)
    # A Newton step with one is that with the other.
    assert np.linalg.solve(expected, found) == pytest.approx(np.eye(n), abs=0.3)


def test_controls_are_exact_where_forces_are_those_of_the_teacher(near: ClassSolution) -> None:
    """Of f_t = f_1 averages become those that the teacher's saddle point has, whatever the nodes."""
    walk = Walk(UNEQUAL, NEAR.stages, 0)
    walk.points = near.walk.points[:1]
    known = walk.points[0].conjugates
    channel = Channel(UNEQUAL, NEAR.stages, sobol_rule(2, 2, 6, 3), walk.blocks, [None])
    (found,) = channel.earlier_averages()
    assert channel.averages(near.walk.blocks[1]) is not None
    controls = Controls([known], [walk.blocks[0].cholesky], channel)
    found.force_force = np.concatenate([found.force_force, found.force_force])
    force = found.force.T
    assert np.abs(force - known.magnetization).max() > 1e-6
    controls.correct(found)
    force = found.force.T
    assert force == pytest.approx(known.magnetization, abs=1e-12)
    for block in found.force_force:
        assert block == pytest.approx(known.overlaps[0], abs=1e-12)
    assert found.force_normal[0] == pytest.approx(-known.responses[0] @ walk.blocks[0].cholesky[0], abs=1e-12)


def test_students_approach_their_teacher_like_the_ridge() -> None:
    """Three classes with few samples, four with many."""
    found = [solve(UNEQUAL, [NEAR[0], Estimator(Distillation(), ridge)], throw=True) for ridge in (2e-4, 1e-4)]
    apart = [student.test_error - teacher.test_error for teacher, student in found]
    assert apart[0] / apart[1] == pytest.approx(2.0, rel=0.05)
    four = ClassMixture(2.0, (0.2, 0.3, 0.4, 0.1), similar_pairs(4, 0.6))
    teacher, student = solve(four, [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 1e-5)], throw=True)
    assert student.test_error == pytest.approx(teacher.test_error, abs=1e-5)
    assert student.teacher_cosine == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("mixing", [1.0, 0.5])
def test_large_ridges_of_unequal_classes(mixing: float) -> None:
    """Forces are those of the biases' distributions, and weights go like the inverse ridges."""
    size = []
    for ridge in (1e3, 1e4):
        found = solve(UNEQUAL, [Estimator(CrossEntropy(), ridge), Estimator(Distillation(mixing), ridge)], throw=True)
        assert found[1].biases == pytest.approx(np.log(UNEQUAL.weights) - np.mean(np.log(UNEQUAL.weights)), abs=1e-2)
        size.append(found[1].norm)
    assert size[0] / size[1] == pytest.approx(100.0 if mixing == 1.0 else 10.0, rel=1e-2)


@pytest.mark.parametrize(("teacher", "student"), [(0.1, 1e-8), (1e-8, 0.1)])
def test_vanishing_ridges_take_seconds(teacher: float, student: float) -> None:
    """Classes whose fields are far apart have a lattice each, and few samples are interpolated."""
    chain = [Estimator(CrossEntropy(), teacher), Estimator(Distillation(temperature=2.0), student, eta=0.7)]
    begin = time.process_time()
    assert solve(ClassMixture(0.5, gram=orthogonal_means(3)), chain).converged
    assert time.process_time() - begin < 4.0


@pytest.mark.parametrize("ridge", [0.1, 0.1 + 1e-9, 0.1001])
def test_a_stage_that_is_repeated_is_its_teacher(ridge: float) -> None:
    """Nothing, or next to nothing, is new in its weights, and of nothing there is no logarithm."""
    data = ClassMixture(1.5, gram=orthogonal_means(3), delta=0.25)
    found = solve(data, [Estimator(CrossEntropy(), 0.1), Estimator(CrossEntropy(), ridge)])
    alone = solve(data, Estimator(CrossEntropy(), ridge))[0]
    assert found.converged
    assert found[1].test_error == pytest.approx(alone.test_error, abs=3.0 * found.quadrature_error)
    assert found[1].teacher_cosine == pytest.approx(1.0, abs=1e-5)  # the noise of nodes
