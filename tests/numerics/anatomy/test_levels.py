"""Levels of knowledge: students that know more and more of their teacher, and what each gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numerics import Estimator, GaussianMixture, LinearRule, ParameterError, solve, sweep
from numerics.anatomy.levels import CONTROLS, GAINS, LADDER, Question, best_levels, constants, levels
from numerics.optimize import optimize
from numerics.settings import Settings
from theory.levels import ConfidenceOnLabel, ConfidenceWeighted, LabelTargets
from theory.losses import CrossEntropy, Distillation, SquareLoss

FINE = Settings(rtol=1e-11, newton_tolerance=1e-12)

POINTS = {
    "R8": (4, 0.3, 1, 0.1, 0.3, 0.1, 1, 1, 1),
    "R9": (0.3, 0.5, 1, 0, 0.1, 0.01, 0.5, 1, 1),
    "R10": (16, 0.5, 1, 0, 0.1, 0.01, 0.5, 1, 1),
    "R11": (2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 1, 10),
    "R15": (2, 0.2, 1, 0, 10, 0.1, 1, 1, 1),
}
"""alpha, rho, Delta, label noise, ridges of teacher and student, eta, mixing, temperature."""


def problem(point: str | tuple) -> tuple[GaussianMixture, list[Estimator]]:
    values = POINTS[point] if isinstance(point, str) else point
    alpha, rho, delta, noise, first, second, eta, mixing, temperature = values
    student = Estimator(Distillation(mixing, temperature), second, eta)
    return GaussianMixture(alpha, rho, delta, noise), [Estimator(CrossEntropy(), first), student]


def at(point: str | tuple, names: tuple[str, ...] = LADDER):
    return levels(Question.of(*problem(point)), names=names)


@pytest.mark.parametrize("loss", [LabelTargets(0.7, 2.0, 0.1, 0.2, 0.3), ConfidenceWeighted(0.7, 2.0, 0.1, 1.3),
                                  ConfidenceWeighted(0.7, 2.0, of_choice=True), ConfidenceOnLabel(0.7, 2.0)])  # fmt: skip
def test_losses_are_convex(loss) -> None:
    loss.check_convex()
    assert loss.needs_classes


def test_gains_add_up_to_the_difference() -> None:
    found = at("R8", LADDER + CONTROLS)
    assert sum(found.gains[gain] for gain in GAINS) == pytest.approx(found.gains["total"], abs=1e-15)
    data, chain = problem("R8")
    hard = solve(data, [chain[0], replace(chain[1], loss=CrossEntropy())])[1].test_error
    assert found.gains["total"] == pytest.approx(hard - solve(data, chain)[1].test_error, abs=1e-12)
    for level in found.students.values():
        assert level.direction <= level.error + 1e-12
        assert level.bias_part == level.error - level.direction


@pytest.mark.parametrize("point", ["R9", (4, 0.3, 1, 0.1, 3, 0.1, 1, 1, 1), (4, 0.3, 1, 0.1, 30, 0.1, 1, 1, 1), "R11"])
def test_who_is_to_blame(point) -> None:
    """Distillation hurts: an overfitted teacher of few samples, over-regularised ones, and a temperature that is a ridge."""
    expected = {"R9": "universe", "R11": "scale"}.get(point, "domain")
    found = at(point)
    assert found.gains["total"] < 0
    assert found.blame == expected
    total = {"R9": -0.0032, "R11": -0.0138}.get(
        point, {3: -0.028, 30: -0.073}[point[4]] if isinstance(point, tuple) else None
    )
    assert found.gains["total"] == pytest.approx(total, abs=6e-4 if isinstance(point, tuple) else 6e-5)
    direction = {"R9": -0.0032, "R11": 0.026}.get(
        point, {3: 0.037, 30: 0.042}[point[4]] if isinstance(point, tuple) else None
    )
    assert found.direction_gains["total"] == pytest.approx(direction, abs=6e-4)


@pytest.mark.parametrize(("noise", "instance"), [(0, 0.017), (0.1, 0.025), (0.2, 0.030), (0.3, 0.028)])
def test_instance_knowledge_matters_where_labels_are_noisy(noise: float, instance: float) -> None:
    found = at((4, 0.5, 1, noise, 0.3, 0.1, 1, 1, 1)).gains
    assert found["instance"] == pytest.approx(instance, abs=6e-4)
    assert abs(found["universe"]) < 2.3e-3


def test_universe_knowledge_changes_sign_with_alpha() -> None:
    expected = {0.3: -0.0122, 1: -0.0049, 2: 0.0023, 4: 0.0012, 16: 0.0003}
    for alpha, gain in expected.items():
        assert at((alpha, 0.5, 1, 0, 0.1, 0.01, 0.5, 1, 1)).gains["universe"] == pytest.approx(gain, abs=6e-5)


def test_domain_knowledge_moves_the_bias_alone() -> None:
    for ridge in (0.01, 0.1, 1, 10):
        found = at((4, 0.3, 1, 0.1, ridge, 0.1, 1, 1, 1))
        assert abs(found.direction_gains["domain"]) < 1e-3
    found = at("R15")
    assert found.direction_gains["domain"] == pytest.approx(0.0027, abs=6e-5)


def test_temperature_in_the_direction() -> None:
    scale, instance = [-0.007, 0, 0.010, 0.019, 0.024], [0.014, 0.013, 0.010, 0.005, 0.002]
    for temperature, first, last in zip((0.5, 1, 2, 4, 10), scale, instance, strict=True):
        found = at((2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 1, temperature)).direction_gains
        assert found["scale"] == pytest.approx(first, abs=6e-4)
        assert found["instance"] == pytest.approx(last, abs=6e-4)
        assert abs(found["universe"]) < 3e-3


def test_controls() -> None:
    """Weighting labels by max p recovers little of what distillation gains."""
    students = at("R8", LADDER + CONTROLS).students
    expected = {"hard": 0.2271, "choice": 0.2273, "confidence": 0.2046, "instance": 0.1990}
    assert {name: round(students[name].error, 4) for name in expected} == expected


# What must hold exactly.


def test_scale_is_a_change_of_ridge() -> None:
    data, chain = problem((2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 1, 3.0))
    scaled = solve(data, [chain[0], replace(chain[1], loss=LabelTargets(1.0, 3.0))], settings=FINE)[1]
    hard = solve(data, [chain[0], replace(chain[1], loss=CrossEntropy(), ridge=0.05 * 9.0)], settings=FINE)[1]
    assert scaled.test_error == pytest.approx(hard.test_error, abs=1e-10)
    assert scaled.norm == pytest.approx(3.0 * hard.norm, rel=1e-10)
    assert scaled.bias == pytest.approx(3.0 * hard.bias, rel=1e-10)


def test_universe_is_label_smoothing() -> None:
    question = Question.of(*problem((2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 0.7, 1)))
    off = constants(solve(question.data, question.chain, settings=FINE), question).off_label
    smoothed = question.with_loss(CrossEntropy(smoothing=0.7 * off))
    expected = solve(question.data, smoothed, settings=FINE)[1].test_error
    assert levels(question, FINE).students["universe"].error == pytest.approx(expected, abs=1e-10)


def test_balanced_classes_have_no_domain() -> None:
    question = Question.of(*problem((2, 0.5, 1, 0.1, 0.3, 0.05, 0.6, 0.7, 2)))
    assert levels(question, FINE).gains["domain"] == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize(("temperature", "rho", "noise"), [(1, 0.3, 0.1), (4, 0.5, 0.2), (0.6, 0.2, 0.0)])
def test_a_student_that_is_its_teacher(temperature: float, rho: float, noise: float) -> None:
    """Dense, same data, ridge (1 - chi) ridge_T: the teacher is where the student's gradient vanishes."""
    data = GaussianMixture(2.0, rho, 1.0, noise)
    chain = [Estimator(CrossEntropy(), 0.4), Estimator(Distillation(0.3, temperature), 0.7 * 0.4)]
    teacher, student = solve(data, chain, settings=FINE).stages
    assert student.teacher_cosine == pytest.approx(1.0, abs=1e-10)
    for name in ("magnetization", "norm_squared", "bias", "test_error"):
        assert getattr(student, name) == pytest.approx(getattr(teacher, name), abs=1e-10)


def test_teacher_without_weight() -> None:
    found = at((2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 0.0, 2), LADDER + CONTROLS)
    assert max(abs(gain) for gain in found.gains.values()) == 0.0
    assert len({level.error for level in found.students.values()}) == 1


def test_constants_are_averages() -> None:
    """max p by panels that close in on its kink, beside a sum over two million draws of the law it is an average of."""
    question = Question.of(*problem((2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 0.7, 2)))
    solution = solve(question.data, question.chain)
    found = constants(solution, question)
    samples, generator = solution[0].samples, np.random.default_rng(0)
    group = generator.choice(samples.weight.size, 2_000_000, p=samples.weight)
    nodes = samples.follow(group, generator.standard_normal((group.size, 1)))
    h, label = nodes.logits[:, 0], nodes.labels
    p = 1.0 / (1.0 + np.exp(-h / 2.0))
    on = np.where(label == 1.0, p, 1.0 - p)
    sure = np.maximum(p, 1.0 - p)
    for value, draws in ((found.off_label, 1 - on), (found.off_label_by_class[0], (1 - on)[label == 0]),
                         (found.off_label_by_class[1], (1 - on)[label == 1]), (found.choice, sure)):  # fmt: skip
        assert abs(draws.mean() - value) < 4 * draws.std() / np.sqrt(draws.size)


def test_ridge_zero() -> None:
    """Levels have their limits where there are any; where there is none, NaN and the reason."""
    found = at((0.4, 0.3, 1, 0.1, 0.3, 0.0, 0.8, 1, 1))
    assert [np.isfinite(level.error) for level in found.students.values()] == [True] * 5
    close = at((0.4, 0.3, 1, 0.1, 0.3, 1e-7, 0.8, 1, 1))
    for name in ("universe", "domain", "instance"):
        assert found.students[name].error == pytest.approx(close.students[name].error, abs=1e-5)
    label = Estimator(Distillation(0.5), 0.0, 0.8)
    data = GaussianMixture(0.4, 0.3, 1.0, 0.1)
    parts = levels(Question.of(data, [Estimator(CrossEntropy(), 0.3), label]), names=LADDER + CONTROLS)
    for level in parts.students.values():
        assert np.isfinite(level.error) or level.reason


# Best ridges.


@pytest.mark.slow
def test_what_is_left_at_the_best_ridges() -> None:
    found = best_levels(Question.of(*problem((2, 0.5, 1, 0.2, 1, 0.1, 1, 1, 1))))
    expected = {"hard": 0.25882, "instance": 0.24429, "choice": 0.2562, "confidence": 0.2524}
    for name, error in expected.items():
        assert found.students[name].error == pytest.approx(error, abs=6e-5)
    assert found.students["hard"].ridge == found.students["instance"].ridge == np.inf


def test_best_ridge_of_a_student() -> None:
    question = Question.of(*problem((2, 0.2, 1, 0, 0.1, 0.1, 1, 1, 1)))
    found = best_levels(question, names=("hard", "instance")).students
    assert found["hard"].error == pytest.approx(0.15972, abs=6e-6)
    assert found["instance"].error == pytest.approx(0.15864, abs=6e-6)


# By name.


def test_sweep_and_optimize_by_name() -> None:
    data, chain = problem("R8")
    grid = sweep(data, chain, {"alpha": [1.0, 4.0]}, ["gain_instance", "gain_total", "gain_instance_quadrature_error"])
    expected = at("R8").gains
    student = grid.sel(stage="student", alpha=4.0)
    assert float(student.gain_instance) == pytest.approx(expected["instance"], abs=1e-10)
    assert float(student.gain_total) == pytest.approx(expected["total"], abs=1e-10)
    assert 0.0 < float(student.gain_instance_quadrature_error) < 1e-7
    assert np.isnan(grid.gain_total.sel(stage="teacher")).all()
    best = optimize(data, chain, {"teacher.ridge": (0.1, 0.9)}, "student.gain_total", maximize=True)
    assert best.value > expected["total"]
    assert "gain_total" not in solve(data, chain).to_dict()["stages"][1]
    assert np.isnan(solve(data, [chain[0], Estimator(SquareLoss(), 0.1)])[1].gain_total)


@pytest.mark.parametrize(
    ("data", "chain", "word"),
    [
        (GaussianMixture(1.0), Estimator(CrossEntropy(), 0.1), "stage"),
        (GaussianMixture(1.0), [Estimator(CrossEntropy(), 0.1)] * 1 + [Estimator(SquareLoss(), 0.1)], "loss"),
        (LinearRule(1.0, output="sign"), [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1)], "data"),
        (3.0, [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1)], "data"),
    ],
)
def test_what_cannot_be_taken_apart(data, chain, word: str) -> None:
    with pytest.raises(ParameterError, match=f"^{word} ") as caught:
        Question.of(data, chain)
    assert "\n" not in str(caught.value)


def test_several_teachers_are_refused() -> None:
    first, second = (Estimator(CrossEntropy(), ridge, name=name) for ridge, name in ((0.1, "one"), (1.0, "other")))
    with pytest.raises(ParameterError, match="must have one teacher"):
        Question.of(GaussianMixture(1.0), [first, second, Estimator(Distillation(teacher=(1, 2)), 0.1)])


def test_direction_error_is_the_least_over_biases() -> None:
    """The best threshold by a search, beside the formula."""
    stage = solve(GaussianMixture(2.0, 0.3, 0.7, 0.1), Estimator(CrossEntropy(), 0.1))[0]
    shifts = np.linspace(-6, 6, 4001)
    m, q = stage.magnetization, stage.norm_squared
    from scipy.stats import norm

    width = np.sqrt(0.7 * q)
    errors = 0.3 * norm.cdf(-(m + shifts) / width) + 0.7 * norm.cdf(-(m - shifts) / width)
    assert stage.direction_error == pytest.approx(errors.min(), abs=1e-6)
    assert stage.direction_error <= errors.min()
    assert stage.threshold_error == pytest.approx(stage.test_error - stage.direction_error, abs=1e-15)
