"""What a student inherits: derivatives against differences, limits against each other, numbers known from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from numerics import (
    BayesOptimal,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    LinearRule,
    ParameterError,
    simulate,
    solve,
)
from numerics.anatomy.inheritance import inheritance, optimal_teacher, responses
from numerics.models import with_parameter
from theory.losses import CrossEntropy, Distillation, SquareLoss

DATA = GaussianMixture(2.0, 0.2, 1.0, 0.1)
CHAIN = [Estimator(CrossEntropy(0.05), 0.1), Estimator(Distillation(0.8, 2.0), 0.1, eta=0.6)]


def test_responses_are_derivatives() -> None:
    solution = solve(DATA, CHAIN, throw=True, rtol=1e-10)
    found = responses(solution)
    assert list(found) == ["teacher.ridge", "teacher.smoothing", "label_noise"]
    for path, response in found.items():
        assert response.total == pytest.approx(response.direction + response.bias, abs=1e-10)
        step = 1e-4
        value = {"teacher.ridge": 0.1, "teacher.smoothing": 0.05, "label_noise": 0.1}[path]
        errors = []
        for side in (2, 1, -1, -2):
            moved = with_parameter(DATA, solution.chain, path, value + side * step)
            ends = solve(*moved, throw=True, rtol=1e-10)
            errors.append([ends[1].test_error, ends[0].test_error])
        far, near, back, behind = np.array(errors)
        slope = (8 * (near - back) - (far - behind)) / (12 * step)
        assert response.total == pytest.approx(slope[0], abs=1e-6)
        assert response.teacher == pytest.approx(slope[1], abs=1e-6)


def test_direction_and_bias_are_told_apart() -> None:
    """Balanced: nothing is due to the bias.  Otherwise each part is what moves if the other is held."""
    for response in responses(solve(GaussianMixture(2.0, 0.5, 1.0, 0.1), CHAIN, throw=True)).values():
        assert abs(response.bias) < 1e-9
        assert abs(response.direction) > 1e-4
    solution, step = solve(DATA, CHAIN, throw=True), 1e-3
    found = responses(solution)["teacher.ridge"]

    def shape(ridge: float) -> tuple[float, float]:
        stage = solve(*with_parameter(DATA, solution.chain, "teacher.ridge", ridge), throw=True, rtol=1e-10)[1]
        return stage.magnetization / stage.norm, stage.bias / stage.norm

    def error(kappa: float, beta: float) -> float:
        return 0.2 * ndtr(-kappa - beta) + 0.8 * ndtr(beta - kappa)

    (kappa, beta), ends = shape(0.1), [shape(0.1 + side * step) for side in (1, -1)]
    direction, bias = (
        error(ends[0][0], beta) - error(ends[1][0], beta),
        error(kappa, ends[0][1]) - error(kappa, ends[1][1]),
    )
    assert found.direction == pytest.approx(direction / (2 * step), rel=1e-3)
    assert found.bias == pytest.approx(bias / (2 * step), rel=1e-3)
    assert abs(found.direction) > 5e-3


def test_the_optimal_teacher_is_not_the_best_one() -> None:
    """alpha = 2, rho = 1/2, pure distillation at ridge 0.1: the scale of a teacher's logits matters, not its error alone."""
    data = GaussianMixture(2.0, 0.5, 1.0)
    found = inheritance(data, [Estimator(CrossEntropy(), 1.0), Estimator(Distillation(), 0.1)])
    assert round(found.optimal_error, 5) == 0.20782
    assert round(found.best_error, 5) == 0.20726
    assert found.best_ridge == pytest.approx(5.70, abs=0.005)
    assert (round(found.oracle_error, 4), round(found.bayes_error, 4)) == (0.1663, 0.2071)
    assert found.best_error <= found.student_error
    assert found.to_dict()["responses"]["teacher.ridge"]["total"] == found.responses["teacher.ridge"].total
    assert "teacher.ridge" in str(found)


def test_optimal_teacher_is_bayes_optimal_where_that_exists() -> None:
    data = GaussianMixture(2.0, 0.2, 1.5)
    ours = optimal_teacher(data, Estimator(CrossEntropy(), 0.1))
    known, found = (solve(data, stage, throw=True)[0] for stage in (BayesOptimal(), ours))
    for name in ("magnetization", "norm_squared", "bias", "test_error"):
        assert getattr(found, name) == pytest.approx(getattr(known, name), rel=1e-9)
    noisy = optimal_teacher(DATA, Estimator(CrossEntropy(), 0.1, eta=0.7))
    stage = solve(DATA, noisy, throw=True)[0]
    assert stage.test_error == pytest.approx(stage.direction_error, rel=1e-9)
    assert stage.test_error < solve(DATA, Hebbian(eta=0.7), throw=True)[0].test_error


def test_students_of_the_limits_against_simulation() -> None:
    """N = 500, 10 runs: students of the oracle and of the best Hebbian teacher."""
    student = Estimator(Distillation(), 0.1, name="pupil")
    found = inheritance(DATA, [CHAIN[0], student])
    oracle = Frozen(2.0, 4.0, math.log(0.2 / 0.8))
    for teacher, expected in ((oracle, found.oracle_error), (optimal_teacher(DATA, CHAIN), found.optimal_error)):
        run = simulate(DATA, [teacher, student], 500, 10, seed=2, n_jobs=2)[1].test_error
        assert abs(run.mean - expected) < 4 * run.standard_error


@pytest.mark.slow
def test_students_against_a_larger_simulation() -> None:
    """Finite differences in the teacher's ridge on the same samples, N = 1000, 40 runs."""
    data, step = DATA, 0.05
    expected = []
    runs = []
    for side in (1, -1):
        chain = [Estimator(CrossEntropy(0.05), 0.3 + side * step), CHAIN[1]]
        runs.append(simulate(data, chain, 1000, 40, seed=4, n_jobs=2).runs["test_error"][:, 1])
        expected.append(solve(data, chain, throw=True)[1].test_error)
    slopes = (runs[0] - runs[1]) / (2 * step)
    slope = (expected[0] - expected[1]) / (2 * step)
    assert abs(slopes.mean() - slope) < 4 * slopes.std(ddof=1) / math.sqrt(40)
    middle = responses(solve(data, [Estimator(CrossEntropy(0.05), 0.3), CHAIN[1]], throw=True))["teacher.ridge"].total
    assert middle == pytest.approx(slope, rel=0.1)


def test_limits_of_what_is_asked() -> None:
    fresh = GaussianMixture(2.0, 0.3, further=[DataSet("fresh", 1.0)])
    found = inheritance(fresh, [CHAIN[0], Estimator(Distillation(), 0.1, sets="fresh")])
    assert math.isnan(found.oracle_error)
    assert found.to_dict()["oracle_error"] is None
    hard = responses(solve(GaussianMixture(8.0, 0.3), [Estimator(CrossEntropy(), 0.0), CHAIN[1]], throw=True))
    assert "teacher.ridge" not in hard


def test_bad_input() -> None:
    with pytest.raises(ParameterError, match="chain must be a teacher and a student, got 1 stages"):
        inheritance(DATA, CHAIN[:1])
    with pytest.raises(ParameterError, match="the teacher must be an Estimator"):
        inheritance(DATA, [Hebbian(), CHAIN[1]])
    with pytest.raises(ParameterError, match="data must be a GaussianMixture"):
        inheritance(LinearRule(2.0), [Estimator(SquareLoss(), 0.1)] * 2)
