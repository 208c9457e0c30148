"""Bounds of a student's error: brute force, identities, experiments, and what they say of teachers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from numerics import Estimator, GaussianMixture, LinearRule, ParameterError, simulate, solve
from numerics.anatomy.bounds import RULES, along, bounds_of, compare_teachers, oracle, training_rules
from numerics.solution.joint_classifier import best_scale, distance, ideal_head
from numerics.solution.logit_law import LogitLaw
from numerics.solution.solution import StageSolution
from theory.losses import CrossEntropy, Distillation, SquareLoss


def chain(ridge_t: float, ridge_s: float, eta: float, chi: float, temperature: float = 1.0) -> list[Estimator]:
    student = Estimator(Distillation(chi, temperature), ridge_s, eta=eta)
    return [Estimator(CrossEntropy(), ridge_t), student]


def solved(alpha: float, rho: float, delta: float, theta: float, *stages: float) -> StageSolution:
    return solve(GaussianMixture(alpha, rho, delta, theta), chain(*stages), throw=True)[1]


R14 = (2, 0.5, 1, 0, 1, 0.01, 0.5, 1, 1)
R13 = (0.5, 0.2, 2, 0.2, 0.01, 1, 0.5, 1, 1)
R11 = (2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 1, 10)
POINTS = {"R14": R14, "R13": R13, "R11": R11}

TERMS = (
    "teacher_right_wrong",
    "teacher_wrong_right",
    "disagreement_bound",
    "kuiper_distance",
    "kolmogorov_distance",
    "ideal_joint_error",
    "joint_classifier_bound",
)


# Terms


def random_law(generator: np.random.Generator, rho: float) -> LogitLaw:
    mean, bias = generator.normal(size=2)
    return LogitLaw(abs(mean), bias, math.exp(generator.normal()), rho)


@pytest.mark.parametrize("seed", range(6))
def test_divergence_and_ideal_head_are_those_of_all_heads(seed: int) -> None:
    """Every pair of heads ``+-h > x`` on a grid: the best grid pair is below, and by no more than the grid is coarse."""
    generator = np.random.default_rng(seed)
    first, second = (random_law(generator, 0.3) for _ in range(2))
    x = np.concatenate(([-np.inf], np.linspace(-12, 12, 1601), [np.inf]))
    f, g = first.cdf(x), second.cdf(x)
    # Heads h > x_1 and h > x_2 differ between x_1 and x_2; one turned round, outside.
    between = (f[:, None] - f) - (g[:, None] - g)
    kuiper, kolmogorov = distance(first, second)
    assert 0 <= kuiper - np.abs(between).max() < 1e-4
    assert 0 <= kolmogorov - np.abs(f - g).max() < 1e-4
    assert distance(second, first) == pytest.approx((kuiper, kolmogorov), rel=1e-12)
    sums = first.error(x) + second.error(x)
    least = min(sums.min(), (2 - sums).min(), 0.6)
    assert 0 <= least - ideal_head(first, second).error < 1e-4
    assert distance(first, second, check=True)[0] == pytest.approx(kuiper, abs=1e-14)
    assert ideal_head(first, second, check=True).error == pytest.approx(ideal_head(first, second).error, abs=1e-14)


def test_distances_of_constant_and_infinite_logits() -> None:
    law = LogitLaw(1.0, 0.3, 1.5, 0.4)
    constant, infinite = LogitLaw(0.0, 0.2, 0.0, 0.4), LogitLaw(1.0, 0.3, 1.5, 0.4, infinite=True)
    below = float(law.cdf(0.2))
    assert distance(law, constant) == pytest.approx((1.0, max(below, 1 - below)), abs=1e-12)
    assert distance(law, infinite)[0] == pytest.approx(1.0, abs=1e-12)  # of laws without a point in common
    assert distance(infinite, infinite) == (0.0, 0.0)
    assert distance(constant, LogitLaw(0.0, 0.5, 0.0, 0.4)) == (1.0, 1.0)
    assert ideal_head(constant, constant)[:1] == pytest.approx((0.8,))


@pytest.mark.parametrize("name", POINTS)
def test_identities(name: str) -> None:
    student = solved(*POINTS[name])
    e_t, e_s = student.solution[0].test_error, student.test_error
    right_wrong, wrong_right = student.teacher_right_wrong, student.teacher_wrong_right
    assert e_s == pytest.approx(e_t + right_wrong - wrong_right, abs=1e-12)
    assert 1.0 - student.teacher_agreement == pytest.approx(right_wrong + wrong_right, abs=1e-12)
    assert student.disagreement_bound == pytest.approx(e_t + right_wrong + wrong_right, abs=1e-14)
    assert student.kuiper_distance / 2 <= student.kolmogorov_distance <= student.kuiper_distance
    found = bounds_of(student)
    assert found.bound == pytest.approx(e_t + found.half_divergence + found.ideal_error, abs=1e-14)
    assert e_s <= found.disagreement_bound <= 1
    assert e_s <= found.best_bound <= found.bound
    assert found.to_dict()["tightness"]["bound"] == found.bound / e_s


def test_bound_contains_the_students_error() -> None:
    """rho = 1/2: the ideal head is h > 0, so that the bound is at least e_S + 2 e_T; without its last term it is false."""
    student = solved(*R14)
    found, e_t = bounds_of(student), student.solution[0].test_error
    assert found.ideal_error == pytest.approx(e_t + student.test_error, abs=1e-12)
    assert found.tightness["bound"] >= 1 + 2 * e_t / student.test_error
    assert round(found.without_ideal, 4) == 0.2576
    assert round(found.student_error, 4) == 0.2961
    assert found.ideal_head.startswith("h > ")


def test_weak_representations_are_best_served_by_a_constant() -> None:
    student = solved(*R13)
    assert bounds_of(student).ideal_head == "constant"
    assert student.ideal_joint_error == pytest.approx(0.4, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_best_scale(seed: int) -> None:
    generator = np.random.default_rng(seed)
    teacher, student = (random_law(generator, 0.3) for _ in range(2))
    scale, value = best_scale(teacher, student)
    others = np.geomspace(scale / 50, scale * 50, 400)
    tried = [distance(student.scaled(c), teacher)[0] + ideal_head(teacher, student.scaled(c)).error for c in others]
    assert value <= min(tried) + 1e-12
    _, same = best_scale(teacher, student.scaled(3.0))
    assert same == pytest.approx(value, abs=1e-9)


# Experiments


def z_scores(points: list[tuple[float, ...]], n_inputs: int, n_runs: int) -> np.ndarray:
    found = []
    for point in points:
        data = GaussianMixture(*point[:4])
        runs = simulate(data, chain(*point[4:]), n_inputs, n_runs, seed=7, n_jobs=2)
        student = solve(runs.effective_data, runs.effective_chain, throw=True)[1]
        for name in TERMS:
            if name == "kolmogorov_distance" and data.rho == 0.5:
                continue  # the larger of two distances that are equal: in finite systems one of them is the larger
            run = getattr(runs[1], name)
            if run.standard_error > 0:
                found.append((run.mean - getattr(student, name)) / run.standard_error)
            else:
                assert run.mean == pytest.approx(getattr(student, name), abs=1e-12), name
    return np.array(found)


def test_bounds_against_simulation() -> None:
    """N = 500, 10 runs."""
    z = z_scores([R14, R11], 500, 10)
    assert np.abs(z).max() < 4


@pytest.mark.slow
def test_bounds_against_a_larger_simulation() -> None:
    """N = 1000, 40 runs, three points with 7 terms each."""
    z = z_scores(list(POINTS.values()), 1000, 40)
    assert np.abs(z).max() < 4
    assert np.sqrt(np.mean(z**2)) < 1.6


def test_terms_of_sampled_logits() -> None:
    """4e6 logits of student and teacher with the joint law of theory: signs, and distribution functions at a thousand places."""
    student, generator, n = solved(*R11), np.random.default_rng(0), 10**6
    population, rho = student.fresh, student.data.rho
    right_wrong, logits = 0.0, []
    for sign, share in ((1, rho), (-1, 1 - rho)):
        noise = math.sqrt(student.data.delta) * population.factor @ generator.normal(size=(2, n))
        h = (sign * population.magnetization + population.bias)[:, None] + noise
        right_wrong += share * np.mean((sign * h[0] > 0) & (sign * h[1] < 0))
        logits.append((share, np.sort(h, axis=1)))
    assert right_wrong == pytest.approx(student.teacher_right_wrong, abs=4 * math.sqrt(0.1 / n))
    x = np.linspace(*(3 * np.percentile(logits[0][1], [0.01, 99.99])), 1000)
    t, s = (sum(share * np.searchsorted(h[k], x) / n for share, h in logits) for k in (0, 1))
    assert np.ptp(np.append(s - t, 0.0)) == pytest.approx(student.kuiper_distance, abs=4e-3)


# Teachers


@pytest.mark.parametrize(
    ("rho", "theta", "tau", "regret"),
    [
        (0.5, 0.0, {"teacher_error": 0.82, "joint_classifier_bound": 0.82, "posterior_distance": -0.04}, None),
        (0.5, 0.2, {"teacher_error": 1.0, "joint_classifier_bound": 1.0}, 0.0),
        (0.2, 0.0, {"teacher_error": 0.68, "joint_classifier_bound": -0.67, "posterior_distance": 0.39}, 0.041),
    ],
)
def test_how_predictors_order_teachers(rho: float, theta: float, tau: dict, regret: float | None) -> None:
    """21 teacher ridges from 1e-3 to 100, pure distillation at ridge 0.1, alpha = 2: no predictor is right everywhere."""
    data = GaussianMixture(2.0, rho, 1.0, theta)
    ridges = np.geomspace(1e-3, 100, 21)
    found = compare_teachers(data, along(data, chain(1.0, 0.1, 1.0, 1.0), "teacher.ridge", ridges))
    for name, expected in tau.items():
        assert found.kendall_tau[name] == pytest.approx(expected, abs=0.006), name
    if regret is not None:
        assert found.regret["joint_classifier_bound"] == pytest.approx(regret, abs=6e-4)
        ratio = found.predictors["joint_classifier_bound"] / found.student_error
        assert 2.4 < ratio.min() < ratio.max() < 8.6
    assert found.labels[int(np.argmin(found.predictors["teacher_error"]))] == found.choice["teacher_error"]
    assert "prefers" in str(found)
    assert found.to_dict()["kendall_tau"] == found.kendall_tau


def test_distance_to_the_posterior_against_simulation() -> None:
    """N = 500, 10 runs: the oracle is a stage of given weights, the distance an observable of the teacher after it."""
    data = GaussianMixture(2.0, 0.3, 1.0, 0.1)
    stages = [oracle(data), Estimator(CrossEntropy(), 0.2, name="taught")]
    runs = simulate(data, stages, 500, 10, seed=1, n_jobs=2)
    problem = runs.effective_data, chain(0.2, 0.1, 1.0, 1.0)
    found = compare_teachers(problem[0], [problem[1], problem[1]]).predictors["posterior_distance"][0]
    run = runs[1].train_output_distance
    assert abs(run.mean - found) < 4 * run.standard_error
    assert solve(data, stages, throw=True)[0].calibration_error < 1e-12


# Rules


def test_rules_in_a_linear_model() -> None:
    """Balanced classes have no bias, so that features are logits; what differs is the weight of the terms."""
    data = GaussianMixture(2.0, 0.5, 1.0, 0.1)
    found = training_rules(data, chain(0.5, 0.1, 0.8, 1.0), weight=0.7)
    assert list(found) == list(RULES)
    twice = training_rules(data, chain(0.5, 0.1, 0.8, 1.0), weight=1.4)
    assert found["labels, logits, features"].bounds.bound == pytest.approx(
        twice["labels and logits"].bounds.bound, abs=1e-9
    )
    alone = training_rules(data, chain(0.5, 0.1, 0.8, 1.0), weight=0.0)
    assert alone["teacher's head"].bounds.student_error == pytest.approx(
        alone["distillation"].bounds.student_error, abs=1e-10
    )
    assert alone["labels and logits"].bounds.bound == pytest.approx(alone["labels"].bounds.bound, abs=1e-10)


def test_rules_without_labels_interpolate_alike() -> None:
    data = GaussianMixture(0.4, 0.3, 1.0)
    found = training_rules(data, chain(0.1, 0.0, 0.8, 1.0))
    one, two, three = (found[name].solution[1] for name in ("distillation", "logits", "teacher's head"))
    for name in ("magnetization", "norm_squared", "bias", "test_error"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-9), name
        assert getattr(one, name) == pytest.approx(getattr(three, name), rel=1e-9), name
    assert one.bias == pytest.approx(one.solution[0].bias, rel=1e-9)
    assert one.limit == "minimum norm"


def test_rules_at_their_best_ridges() -> None:
    data = GaussianMixture(2.0, 0.3, 1.0, 0.2)
    fixed = training_rules(data, chain(0.5, 0.1, 1.0, 1.0))
    best = training_rules(data, chain(0.5, 0.1, 1.0, 1.0), best_ridge=(1e-2, 1e2))
    for name in RULES:
        assert best[name].bounds.student_error <= fixed[name].bounds.student_error + 1e-12


# Bad input


def test_bad_input() -> None:
    data = GaussianMixture(2.0, 0.3)
    two = chain(0.1, 0.1, 1.0, 1.0)
    with pytest.raises(ParameterError, match="stage teacher must have a teacher"):
        bounds_of(solve(data, two)[0])
    with pytest.raises(ParameterError, match="data must be a GaussianMixture"):
        bounds_of(solve(LinearRule(2.0), [Estimator(SquareLoss(), 0.1)] * 1)[0])
    with pytest.raises(ParameterError, match="chains must be at least two, got 1"):
        compare_teachers(data, [two])
    with pytest.raises(ParameterError, match="data must be a GaussianMixture"):
        compare_teachers(LinearRule(2.0), [two, two])
    with pytest.raises(ParameterError, match="chain must be a teacher and a student"):
        training_rules(data, [*two, Estimator(CrossEntropy(), 1.0)])
    with pytest.raises(ParameterError, match="weight must be a number >= 0"):
        training_rules(data, two, weight=-1.0)
    with pytest.raises(ParameterError, match="bias of teacher is infinite"):
        training_rules(GaussianMixture(0.3, 0.3), chain(0.0, 0.1, 1.0, 1.0))


def test_second_teachers_have_no_distance_to_the_posterior() -> None:
    data = GaussianMixture(2.0, 0.3)
    three = [*chain(0.1, 0.1, 1.0, 1.0), Estimator(Distillation(), 0.1)]
    found = compare_teachers(data, {"a": three, "b": [three[0], three[1], Estimator(Distillation(), 0.2)]})
    assert np.isnan(found.predictors["posterior_distance"]).all()
    assert "posterior_distance" not in found.regret
