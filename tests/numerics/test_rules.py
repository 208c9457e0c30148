"""Labels of a linear rule: regression and perceptrons, against closed forms, published values and finite systems."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, optimize, special

from numerics import (
    BayesOptimal,
    Chain,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    LinearRule,
    ParameterError,
    Simulation,
    parameter_paths,
    simulate,
    solve,
    sweep,
)
from numerics.optimize import derivatives
from numerics.optimize import optimize as find_best
from numerics.problem import read_problem, write_problem
from numerics.thresholds import Evidence, RuleSeparation, separation
from theory.losses import CrossEntropy, Distillation, LinearLoss, Loss, PseudoLabels, SquareDistillation, SquareLoss
from theory.rules import after_rule

SQUARE = SquareLoss()
HUBER = Loss.from_expression("sqrt(1 + (h - s)**2)")
AGAIN = SquareDistillation()


def risks(data: LinearRule, chain: list) -> list[float]:
    return [stage.excess_risk for stage in solve(data, chain, throw=True)]


def marchenko_pastur(alpha: float, function) -> float:
    """Mean of a function of the eigenvalues of X^T X/N, X of shape (alpha N, N) and unit variance."""
    low, high = (1.0 - math.sqrt(alpha)) ** 2, (1.0 + math.sqrt(alpha)) ** 2

    def density(angle: float) -> float:
        x = 0.5 * (low + high) - 0.5 * (high - low) * math.cos(angle)
        return function(x) * (0.5 * (high - low) * math.sin(angle)) ** 2 / (2 * math.pi * x)

    inside = integrate.quad(density, 0.0, math.pi, epsabs=1e-13, epsrel=1e-13)[0]
    return inside + max(0.0, 1.0 - alpha) * function(0.0)


# Regression


@pytest.mark.parametrize(
    ("alpha", "ridge", "noise", "risk"),
    [
        (2.0, 0.1, 0.5, 0.37305733),
        (0.5, 1.0, 0.5, 0.72760688),
        (1.0, 1e-3, 0.25, 3.84513865),
        (0.5, 0.01, 0.25, 0.73199705),
    ],
)
def test_ridge_regression(alpha: float, ridge: float, noise: float, risk: float) -> None:
    """Known values, and integrals over the Marchenko-Pastur law of bias and variance."""
    stage = solve(LinearRule(alpha, noise), Estimator(SQUARE, ridge), throw=True)[0]
    assert stage.excess_risk == pytest.approx(risk, abs=6e-9)
    m = marchenko_pastur(alpha, lambda x: x / (x + ridge))
    overlap = marchenko_pastur(alpha, lambda x: (x * x + noise * x) / (x + ridge) ** 2)
    assert stage.magnetization == pytest.approx(m, rel=1e-9)
    assert stage.norm_squared == pytest.approx(overlap, rel=1e-9)
    assert stage.squared_bias == pytest.approx((1 - m) ** 2, rel=1e-7)
    assert stage.variance == pytest.approx(overlap - m * m, rel=1e-9)
    assert stage.mean_squared_error == pytest.approx(risk + noise, abs=6e-9)
    assert stage.r_squared == pytest.approx(1 - (risk + noise) / (1 + noise), abs=1e-8)
    residual = marchenko_pastur(alpha, lambda x: ridge**2 * (x + noise) / (x + ridge) ** 2) + noise * (alpha - 1.0)
    assert stage.train_mean_squared_error * alpha == pytest.approx(residual, rel=1e-8)
    assert math.isnan(stage.test_error)
    assert stage.bias == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_best_ridge_is_the_noise(noise: float) -> None:
    best = find_best(
        LinearRule(1.3, noise), Estimator(SQUARE, 1.0), {"teacher.ridge": (1e-3, 10.0)}, "teacher.excess_risk"
    )
    assert best.parameters["teacher.ridge"] == pytest.approx(noise, rel=1e-5)


@pytest.mark.parametrize(("alpha", "noise"), [(0.5, 0.25), (0.8, 0.0), (3.0, 0.25), (1.5, 1.0)])
def test_without_a_ridge(alpha: float, noise: float) -> None:
    """1 - alpha + noise alpha/(1 - alpha) below interpolation, noise/(alpha - 1) above it."""
    stage = solve(LinearRule(alpha, noise), Estimator(SQUARE, 0.0), throw=True)[0]
    expected = 1 - alpha + noise * alpha / (1 - alpha) if alpha < 1 else noise / (alpha - 1)
    assert stage.excess_risk == pytest.approx(expected, rel=1e-9)


def test_self_distillation() -> None:
    """On the same samples each step filters once more (Mobahi, Farajtabar, Bartlett 2020)."""
    found = risks(LinearRule(2.0, 0.5), [Estimator(SQUARE, 0.1)] + 5 * [Estimator(AGAIN, 0.1)])
    np.testing.assert_allclose(
        found, [0.37305733, 0.31206626, 0.28715295, 0.28231847, 0.28878751, 0.30163171], atol=6e-9
    )


def test_generations_on_fresh_inputs() -> None:
    """Noise in the first generation alone; afterwards every student has inputs of its own, labelled by its teacher."""
    fresh = [DataSet(f"set{k}", 2.0) for k in range(2, 6)]
    chain = [Estimator(SQUARE, 0.1)] + [Estimator(AGAIN, 0.1, sets=found.name) for found in fresh]
    found = risks(LinearRule(2.0, 0.5, further=fresh), chain)
    np.testing.assert_allclose(found, [0.37305733, 0.33909783, 0.32161149, 0.31707700, 0.32260395], atol=6e-9)


@pytest.mark.parametrize(("ridge", "risk"), [(1.0, 0.31535657), (0.1, 0.35622926), (0.87048, 0.31474434)])
def test_a_student_on_more_inputs_beats_its_teacher(ridge: float, risk: float) -> None:
    """Moniri and Hassani 2025: the student wins if the teacher is not regularised enough."""
    data = LinearRule(2.0, 0.5, further=[DataSet("fresh", 4.0)])
    assert risks(data, [Estimator(SQUARE, 0.1), Estimator(AGAIN, ridge, sets="fresh")])[1] == pytest.approx(
        risk, abs=6e-9
    )


def test_best_weight_of_the_teacher_may_be_negative_or_above_one() -> None:
    """The risk is quadratic in the mixing, whatever its size."""
    data, teacher = LinearRule(2.0, 0.5), Estimator(SQUARE, 0.1)
    at = {chi: risks(data, [teacher, Estimator(SquareDistillation(chi), 0.1)])[1] for chi in (-1.0, 0.0, 0.5, 1.0, 1.7)}
    curve = np.polynomial.Polynomial.fit([-1.0, 0.0, 1.0], [at[-1.0], at[0.0], at[1.0]], 2)
    assert at[0.5] == pytest.approx(curve(0.5), rel=1e-9)
    assert at[1.7] == pytest.approx(curve(1.7), rel=1e-9)
    assert at[0.0] == pytest.approx(risks(data, [teacher])[0], rel=1e-10)


def test_robust_loss_is_its_scalar_equations() -> None:
    """Karoui's equations for a ridge-free M-estimator: V and Q of the noise alone, by quadrature and a root search."""
    alpha, noise = 4.0, 0.7
    stage = solve(LinearRule(alpha, noise), Estimator(HUBER, 0.0), throw=True)[0]
    assert stage.limit == "maximum likelihood"
    x, weight = np.polynomial.hermite_e.hermegauss(200)
    weight = weight / weight.sum()

    def averages(log_v: float, log_r: float) -> tuple[float, float]:
        v, width = math.exp(log_v), math.sqrt(noise + math.exp(log_r))
        u = width * x
        h = u.copy()
        for _ in range(100):
            root = np.sqrt(1 + h * h)
            h -= (h + v * h / root - u) / (1 + v / root**3)
        root = np.sqrt(1 + h * h)
        return float(weight @ ((u - h) ** 2)), float(weight @ (v / root**3 / (1 + v / root**3)))

    def residual(z: np.ndarray) -> list[float]:
        square, trace = averages(*z)
        return [alpha * square / math.exp(z[1]) - 1.0, alpha * trace - 1.0]

    found = optimize.root(residual, [math.log(stage.response), math.log(stage.excess_risk)], tol=1e-13).x
    assert stage.excess_risk == pytest.approx(math.exp(found[1]), rel=1e-8)
    assert stage.magnetization == pytest.approx(1.0, rel=1e-8)


# Signs


@pytest.mark.parametrize(
    ("alpha", "error"), [(1.0, 0.26571146994), (2.0, 0.18847861032), (5.0, 0.09382700781), (10.0, 0.04918339630)]
)
def test_perceptron_of_maximal_stability(alpha: float, error: float) -> None:
    """Opper, Kinzel, Kleinz, Nehl 1990; these digits from Gordon's condition in 30 digits."""
    stage = solve(LinearRule(alpha, output="sign"), Estimator(CrossEntropy(), 0.0), throw=True)[0]
    assert stage.limit == "max margin"
    assert stage.test_error == pytest.approx(error, abs=1e-10)
    assert stage.noisy_test_error == pytest.approx(error, abs=1e-10)
    assert stage.train_error == 0.0


def over_the_rule(function, slope: float = math.inf) -> float:
    """Mean of ``function(z)`` over the rule's logit z ~ N(0, 1), which may bend at 0 over 1/slope."""

    def folded(z: float) -> float:
        return (function(z) + function(-z)) * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    ends = sorted({0.0, *(min(factor / slope, 9.0) for factor in (1.0, 5.0, 25.0, 125.0)), 1.0, 9.0})
    return sum(integrate.quad(folded, a, b, epsabs=1e-15, epsrel=1e-13)[0] for a, b in pairwise(ends))


def aligned_labels(data: LinearRule) -> float:
    """E[s z] of the labels as they are drawn."""
    if math.isinf(data.link_slope):
        return math.sqrt(2 / math.pi / (1.0 + data.field_noise))
    return over_the_rule(lambda z: z * math.tanh(0.5 * data.slope * z), data.slope)


DRAWN = [LinearRule(3.0, output="logit", slope=slope) for slope in (0.01, 0.7, 10.0, 1000.0)]


@pytest.mark.parametrize("data", [LinearRule(3.0, output="sign"), LinearRule(3.0, 0.4, "probit"), *DRAWN], ids=str)
def test_hebbian_perceptron(data: LinearRule) -> None:
    """w = sum y x/alpha: m = c E[s z], Q = m^2 + 1/alpha, error arccos(m/sqrt(Q))/pi (Vallet 1989)."""
    data = replace(data, label_noise=0.1)
    stage = solve(data, Hebbian(), throw=True)[0]
    m = 0.8 * aligned_labels(data)
    assert stage.magnetization == pytest.approx(m, rel=1e-9)
    assert stage.norm_squared == pytest.approx(m * m + 1 / 3.0, rel=1e-9)
    assert stage.test_error == pytest.approx(math.acos(m / math.hypot(m, math.sqrt(1 / 3.0))) / math.pi, rel=1e-9)
    if math.isinf(data.link_slope):
        clean = math.acos(m / math.sqrt(stage.norm_squared * (1 + data.field_noise))) / math.pi
    else:
        r = m / stage.norm
        clean = over_the_rule(
            lambda z: special.expit(data.slope * z) * special.ndtr(-r * z / math.sqrt(1 - r * r)) * 2, data.slope
        )
    assert stage.noisy_test_error == pytest.approx(0.1 + 0.8 * clean, rel=1e-9)
    assert stage.noisy_test_error_quadrature_error < 1e-9


# Labels drawn with the probability of a sigmoid


@pytest.mark.parametrize("data", DRAWN, ids=str)
def test_ridge_regression_on_drawn_labels(data: LinearRule) -> None:
    """Labels s are c z and noise of variance 1 - c^2, c = E[s z], not correlated with z: the law of Marchenko and Pastur."""
    ridge, found = 0.3, solve(replace(data, alpha=2.0, label_noise=0.1), Estimator(SQUARE, 0.3), throw=True)
    c, stage = 0.8 * aligned_labels(data), found[0]
    m = c * marchenko_pastur(2.0, lambda x: x / (x + ridge))
    overlap = marchenko_pastur(2.0, lambda x: (c * c * x * x + (1 - c * c) * x) / (x + ridge) ** 2)
    assert stage.magnetization == pytest.approx(m, rel=2e-9)
    assert stage.norm_squared == pytest.approx(overlap, rel=2e-9)
    residual = marchenko_pastur(2.0, lambda x: ridge**2 * (c * c * x + 1 - c * c) / (x + ridge) ** 2) + 1 - c * c
    assert 2 * stage.train_loss * 2.0 == pytest.approx(residual, rel=2e-9)
    assert 2 * stage.test_loss == pytest.approx(1.0 - 2.0 * aligned_labels(data) * m + overlap, rel=2e-9)
    assert found.quadrature_error < 1e-8


@pytest.mark.parametrize("slope", [0.01, 3.0, 1000.0])
def test_logistic_regression_on_drawn_labels(slope: float) -> None:
    """The saddle point solves scalar equations whose averages are taken over a dense grid in the rule's logit and the field.

    lambda m = alpha E[f z], lambda Q = alpha E[f h], V (lambda - alpha E[f'(omega)]) = 1: the gradient of the objective along theta
    and w, and the trace of the inverse Hessian.
    """
    alpha, ridge, flips = 2.0, 0.05, 0.1
    data = LinearRule(alpha, output="logit", slope=slope, label_noise=flips)
    stage = solve(data, Estimator(CrossEntropy(), ridge), throw=True)[0]
    m, q, v = stage.magnetization, stage.norm_squared, stage.response
    unit, share = np.polynomial.legendre.leggauss(30)
    ends = np.unique([0.0, *np.minimum(np.array([0.2, 1, 3, 9, 27, 81]) / slope, 9.0), 0.3, 1.0, 2.0, 3.5, 5.0, 9.0])
    half = 0.5 * np.diff(ends)[:, None]
    z = (0.5 * (ends[1:] + ends[:-1])[:, None] + half * unit).ravel()
    z, weight = np.concatenate((z, -z)), np.tile((half * share).ravel(), 2)
    x, gauss = np.polynomial.hermite_e.hermegauss(100)
    weight = np.outer(weight * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi), gauss / gauss.sum())
    omega = m * z[:, None] + math.sqrt(q - m * m) * x
    positive = flips + (1 - 2 * flips) * special.expit(slope * z)[:, None]
    along = size = slopes = wrong = 0.0
    for label, chance in ((1.0, positive), (0.0, 1.0 - positive)):
        h = omega.copy()
        for _ in range(60):
            p = special.expit(h)
            h -= (h + v * (p - label) - omega) / (1 + v * p * (1 - p))
        p, mass = special.expit(h), weight * chance
        along += np.sum(mass * (label - p) * z[:, None])
        size += np.sum(mass * (label - p) * h)
        slopes -= np.sum(mass * p * (1 - p) / (1 + v * p * (1 - p)))
        wrong += np.sum(mass * (np.logaddexp(0.0, h) - label * h))
    assert alpha * along == pytest.approx(ridge * m, rel=1e-8)
    assert alpha * size == pytest.approx(ridge * q, rel=1e-8)
    assert v * (ridge - alpha * slopes) == pytest.approx(1.0, rel=1e-8)
    assert stage.train_cross_entropy == pytest.approx(wrong, rel=1e-8)
    assert stage.bias == pytest.approx(0.0, abs=1e-11)


@pytest.mark.parametrize(
    ("alpha", "slope", "shrinkage", "deviation"),
    [(5.0, math.sqrt(5), 1.4994, 4.7436), (10.0, math.sqrt(5), 1.1678, 3.3466)],
)
def test_bias_of_maximum_likelihood(alpha: float, slope: float, shrinkage: float, deviation: float) -> None:
    """Sur and Candes 2019, kappa = 0.2 and 0.1, gamma^2 = 5: factor on the signal, deviation of a coefficient, as printed."""
    stage = solve(LinearRule(alpha, output="logit", slope=slope), Estimator(CrossEntropy(), 0.0), throw=True)[0]
    assert stage.limit == "maximum likelihood"
    assert stage.magnetization / slope == pytest.approx(shrinkage, abs=6e-5)
    assert math.sqrt((stage.norm_squared - stage.magnetization**2) * alpha) == pytest.approx(deviation, abs=6e-5)


def test_steep_links_are_signs_and_flat_ones_say_nothing() -> None:
    chain = [Estimator(CrossEntropy(), 0.1), Estimator(CrossEntropy(), 0.0, eta=0.8)]
    names = ("norm", "cosine", "train_error", "clean_train_error", "test_error", "noisy_test_error", "test_cross_entropy",
             "teacher_agreement", "train_output_distance")  # fmt: skip
    for slope, limit in ((1e7, {"label_noise": 0.1}), (1e-7, {"label_noise": 0.5})):
        drawn = solve(LinearRule(0.9, output="logit", slope=slope, label_noise=0.1), chain, throw=True)
        signs = solve(LinearRule(0.9, output="sign", **limit), chain, throw=True)
        for found, expected in zip(drawn.stages, signs.stages, strict=True):
            assert found.limit == expected.limit
            for name in names[: 3 if slope < 1 else None]:
                value = getattr(expected, name)
                if math.isfinite(value):
                    assert getattr(found, name) == pytest.approx(value, rel=1e-6, abs=1e-6), name
            assert found.noisy_test_error == pytest.approx(expected.noisy_test_error, abs=1e-6)


def test_separability_of_rules() -> None:
    assert RuleSeparation(1.0, 1.0, 0.0).threshold() == math.inf
    assert RuleSeparation(1.0, 1.0, 0.5).threshold() == pytest.approx(2.0, rel=1e-12)
    assert RuleSeparation(0.4, 0.4, 0.5).threshold() == pytest.approx(0.8, rel=1e-12)
    assert RuleSeparation(1.0, 1e-12, 0.0).threshold() == pytest.approx(2.0, rel=1e-5)
    assert RuleSeparation(0.7, 0.7, 0.0, 1e-9).threshold() == pytest.approx(1.4, rel=1e-8)
    assert RuleSeparation(0.7, 0.7, 0.1, 1e9).threshold() == pytest.approx(
        RuleSeparation(0.7, 0.7, 0.1).threshold(), rel=1e-8
    )
    rules = [
        LinearRule(1.0, 0.5, "probit"),
        LinearRule(1.0, output="sign"),
        LinearRule(1.0, 0.3, "probit", label_noise=0.1),
    ]
    rules += [LinearRule(1.0, output="logit", slope=30.0), LinearRule(1.0, output="logit", slope=0.8, label_noise=0.05)]
    for eta, data in zip((1.0, 0.6, 0.8, 1.0, 0.7), rules, strict=True):
        threshold = separation(data, Evidence.white(eta), data.label_noise, True).threshold()
        data = replace(data, alpha=threshold * 1.05)
        assert solve(data, Estimator(CrossEntropy(), 0.0, eta))[0].limit == "maximum likelihood"
        below = solve(replace(data, alpha=threshold * 0.95), Estimator(CrossEntropy(), 0.0, eta))[0]
        assert below.limit == "max margin"
        assert below.margin < 0.05


@pytest.mark.parametrize(
    "data",
    [LinearRule(1.0, 0.3, "probit", label_noise=0.1), LinearRule(1.0, output="logit", slope=3.0, label_noise=0.1)],
    ids=str,
)
def test_students_of_margins_are_approached_by_small_ridges(data: LinearRule) -> None:
    """A separator beside a soft teacher: what the margin says does not depend on the teacher, the overlap is that of the limit."""
    chain = [Estimator(CrossEntropy(), 0.1), Estimator(CrossEntropy(), 0.0, eta=0.8)]
    limit = solve(data, chain, throw=True)[1]
    kappa, aligned, _ = separation(data, Evidence.white(0.8), 0.1, True).at(1.0)
    assert limit.margin == pytest.approx(kappa, rel=1e-9)
    assert limit.cosine == pytest.approx(aligned, rel=1e-9)
    near = [solve(data, [chain[0], replace(chain[1], ridge=ridge)])[1] for ridge in (1e-5, 1e-7)]
    for name in ("cosine", "teacher_cosine", "teacher_agreement"):
        first, second = ((getattr(stage, name) - getattr(limit, name)) * stage.norm for stage in near)
        assert second == pytest.approx(first, rel=0.15)
    assert near[1].train_output_distance == pytest.approx(limit.train_output_distance, rel=1e-4)


# Against finite systems


REGRESSION = (
    LinearRule(2.0, 0.5, further=[DataSet("fresh", 1.0)]),
    [
        Estimator(SQUARE, 0.1),
        Estimator(SquareDistillation(1.3), 0.2, eta=0.7),
        Estimator(
            Loss.from_expression("sqrt(1 + (h - s)**2) + (h - h_1)**2/4"), 0.05, 0.5, sets=("training", "fresh"), mask_overlap=0.8
        ),
    ],
)  # fmt: skip
SIGNS = (
    LinearRule(2.0, 0.3, "probit", label_noise=0.1),
    [
        Estimator(CrossEntropy(), 0.1),
        Estimator(Distillation(0.5, 2.0), 0.05, eta=0.6),
        Estimator(PseudoLabels(0.7, teacher=1), 0.2, eta=0.8),
    ],
)
LOGIT = (
    LinearRule(2.0, output="logit", slope=2.0, label_noise=0.1, further=[DataSet("fresh", 1.0, 0.2)]),
    [
        Estimator(CrossEntropy(), 0.1),
        Estimator(Distillation(0.5, 2.0), 0.05, eta=0.6, sets=("training", "fresh"), bias=0.3),
    ],
)
OFFSET = (
    LinearRule(1.5, output="sign"),
    [
        Estimator(CrossEntropy(0.1), 0.2, bias=0.4),
        Estimator(Loss.from_expression("softplus(h) - y*h + softplus(-h)/3"), 0.1),
    ],
)
OF_SIGNS = (
    "test_error", "noisy_test_error", "train_error", "clean_train_error", "generalization_gap", "train_cross_entropy",
    "test_cross_entropy", "train_loss", "test_loss", "cosine", "norm", "teacher_agreement", "train_output_distance",
)  # fmt: skip
NAMES = {
    "regression": (
        *REGRESSION,
        ("excess_risk", "train_mean_squared_error", "r_squared", "squared_bias", "variance", "cosine", "norm", "train_loss",
         "test_loss", "free_energy", "test_logit_distance", "train_logit_distance", "teacher_agreement"),
    ),
    "signs": (*SIGNS, OF_SIGNS),
    "logit": (*LOGIT, OF_SIGNS),
    "offset": (*OFFSET, ("test_error", "train_error", "bias", "cosine", "norm", "train_cross_entropy", "test_loss")),
}  # fmt: skip


def worst_z(case: str, n_inputs: int, n_runs: int, seed: int) -> float:
    data, chain, names = NAMES[case]
    runs = simulate(data, chain, n_inputs=n_inputs, n_runs=n_runs, seed=seed)
    solution = solve(runs.effective_data, runs.effective_chain, throw=True)
    assert runs.converged
    worst = 0.0
    for stage, found in zip(solution.stages, runs, strict=True):
        for name in names:
            value, measured = getattr(stage, name), getattr(found, name)
            if math.isfinite(value) and measured.standard_error > 1e-12 * abs(measured.mean):
                worst = max(worst, abs(measured.mean - value) / measured.standard_error)
    return worst


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case == "signs" else case for case in NAMES]
)
def test_simulations(case: str) -> None:
    """N = 200 and 400, 32 runs each, seeds 3 and 4; |z| < 4 on all observables of all stages."""
    assert worst_z(case, 200, 32, 3) < 4.0
    assert worst_z(case, 400, 32, 4) < 4.0


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMES)
def test_large_simulations(case: str) -> None:
    """N = 1000 and 2000, 24 runs each, seeds 5 and 6; |z| < 4 on all observables of all stages."""
    assert worst_z(case, 1000, 24, 5) < 4.0
    assert worst_z(case, 2000, 24, 6) < 4.0


# What users do


@pytest.mark.slow
def test_errors_of_observables_hold() -> None:
    """Against solutions and averages to more digits."""
    for data, chain, names in NAMES.values():
        rough, fine = solve(data, chain, throw=True), solve(data, chain, rtol=1e-9, throw=True)
        for stage, exact in zip(rough.stages, fine.stages, strict=True):
            for name in names:
                value = getattr(stage, name)
                if math.isfinite(value):
                    assert abs(value - getattr(exact, name)) <= 3.0 * stage.error_of(name) + 1e-9 * abs(value), name


def test_derivatives() -> None:
    data, chain = (
        LinearRule(2.0, 0.5),
        Chain.of([Estimator(SQUARE, 0.1), Estimator(SquareDistillation(1.3), 0.2, eta=0.7)]),
    )
    names = ("student.excess_risk", "student.norm", "teacher.r_squared")
    found = derivatives(solve(data, chain), ["noise", "alpha"], names)

    def at(path: str, step: float) -> np.ndarray:
        solution = solve(replace(data, **{path: getattr(data, path) + step}), chain, rtol=1e-12)
        return np.array([solution[1].excess_risk, solution[1].norm, solution[0].r_squared])

    for path in ("noise", "alpha"):
        expected = (8 * (at(path, 1e-3) - at(path, -1e-3)) - at(path, 2e-3) + at(path, -2e-3)) / 12e-3
        np.testing.assert_allclose([found[path][name] for name in names], expected, rtol=1e-7)


def test_derivatives_along_the_slope() -> None:
    data, chain = LinearRule(2.0, output="logit", slope=2.0, label_noise=0.1), [Estimator(CrossEntropy(), 0.1)]
    names = ("test_error", "noisy_test_error", "norm")
    found = derivatives(solve(data, chain), ["slope"], [f"teacher.{name}" for name in names])["slope"]
    up, down = (solve(replace(data, slope=2.0 + step), chain, rtol=1e-11)[0] for step in (1e-3, -1e-3))
    for name in names:
        expected = (getattr(up, name) - getattr(down, name)) / 2e-3
        assert found[f"teacher.{name}"] == pytest.approx(expected, rel=1e-6)


def test_derivatives_follow_given_weights() -> None:
    chain = [Frozen(1.0, 2.0, name="given"), Estimator(Distillation(), 0.1)]
    data, path, name = GaussianMixture(2.0, 0.3), "given.magnetization", "student.test_error"
    found = derivatives(solve(data, chain), [path], [name])[path][name]
    up, down = (
        solve(data, [replace(chain[0], magnetization=1.0 + step), chain[1]], rtol=1e-11)[1] for step in (1e-4, -1e-4)
    )
    assert found == pytest.approx((up.test_error - down.test_error) / 2e-4, rel=1e-6)


def test_sweeps_of_rules() -> None:
    data, chain = LinearRule(2.0, 0.5), [Estimator(SQUARE, 0.1), Estimator(AGAIN, 0.2)]
    found = sweep(data, chain, {"noise": [0.1, 0.5], "alpha": [0.5, 2.0]})
    assert next(iter(found.data_vars)) == "excess_risk"
    assert found.stage.values.tolist() == ["teacher", "student"]
    names = ["mean_squared_error", "r_squared", "train_mean_squared_error", "excess_risk_quadrature_error"]
    more = sweep(data, chain, {"noise": [0.1, 0.5], "alpha": [0.5, 2.0]}, names)
    point = solve(replace(data, noise=0.1), chain)[1]
    for name in names[:3]:
        assert float(more[name].sel(stage="student", noise=0.1, alpha=2.0)) == pytest.approx(
            getattr(point, name), rel=1e-8
        )
    assert float(more[names[3]].max()) < 1e-8
    runs = sweep(data, chain, {"noise": [0.1, 0.5]}, ["r_squared"], simulation=Simulation(60, 4))
    assert np.all(np.isfinite(runs.r_squared))


def test_sweeps_over_the_slope() -> None:
    data, chain = (
        LinearRule(2.0, output="logit", label_noise=0.1),
        [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.2)],
    )
    names = ["test_error", "noisy_test_error", "noisy_test_error_quadrature_error", "train_error"]
    found = sweep(data, chain, {"slope": "0.01:1000:6:log", "alpha": [0.5, 2.0]}, names)
    assert found.slope.attrs["long_name"] == "slope of the sigmoid of the rule"
    assert float(found[names[2]].max()) < 1e-8
    for slope in found.slope.values[[0, 3, 5]]:
        stages = solve(replace(data, slope=float(slope)), chain)
        for name in ("test_error", "noisy_test_error", "train_error"):
            at = found[name].sel(slope=slope, alpha=2.0)
            np.testing.assert_allclose(at, [getattr(stage, name) for stage in stages.stages], rtol=1e-8)


def test_json_and_problem_files() -> None:
    data = LinearRule(2.0, 0.3, "probit", label_noise=0.1, further=(DataSet("fresh", 1.0),))
    chain = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1, sets=("fresh", "training"))])
    text = write_problem(data, chain)
    assert json.loads(text)["data"]["rule"] == "probit"
    assert read_problem(text) == (data, chain)
    assert parameter_paths(chain, data)[:3] == ("alpha", "noise", "label_noise")
    drawn = LinearRule(2.0, output="logit", slope=3.0)
    text = write_problem(drawn, Chain.of(chain[0]))
    assert json.loads(text)["data"] == {"rule": "logit", "alpha": 2.0, "slope": 3.0}
    assert read_problem(text)[0] == drawn
    assert parameter_paths(chain, drawn)[:3] == ("alpha", "slope", "label_noise")
    assert repr(drawn) == "LinearRule(alpha=2.0, output='logit', slope=3.0)"
    written = solve(data, chain).to_dict()
    assert [stage["name"] for stage in written["stages"]] == ["teacher", "student"]
    assert np.shape(written["overlap"]) == (2, 2)
    assert "noisy_test_error" in written["stages"][0]
    assert "excess_risk" not in written["stages"][0]
    assert "noisy_test_error" not in solve(GaussianMixture(1.0), Estimator(SQUARE, 1.0)).to_dict()["stages"][0]
    with pytest.raises(ParameterError, match=r"data\.rule must be one of"):
        read_problem('{"data": {"rule": "cosine", "alpha": 1}, "chain": [{"loss": "square", "ridge": 1}]}')
    with pytest.raises(ParameterError, match="rho"):
        read_problem('{"data": {"rule": "sign", "alpha": 1, "rho": 0.2}, "chain": [{"loss": "square", "ridge": 1}]}')


REAL = LinearRule(1.0)
REFUSED = {
    "classes": (lambda: solve(REAL, Estimator(CrossEntropy(), 0.1)), "loss of teacher: CrossEntropy needs labels of two classes"),
    "y": (lambda: solve(REAL, Estimator(Loss.from_expression("(h - y)**2"), 0.1)), "names y"),
    "distillation": (lambda: solve(REAL, [Estimator(SQUARE, 1.0), Estimator(Distillation(), 0.1)]), "loss of student"),
    "output": (lambda: LinearRule(1.0, output="tanh"), "output must be one of identity, sign, probit, logit"),
    "flips": (lambda: LinearRule(1.0, label_noise=0.1), "label_noise of training must be 0"),
    "flips elsewhere": (lambda: LinearRule(1.0, further=[DataSet("b", 1.0, 0.1)]), "label_noise of b must be 0"),
    "noise": (lambda: LinearRule(1.0, noise=-0.1), "noise must be a finite number >= 0"),
    "noise of logit": (lambda: LinearRule(1.0, 0.1, "logit"), "noise must be left out with output='logit', got 0.1"),
    "slope": (lambda: LinearRule(1.0, output="logit", slope=0.0), "slope must be a finite number > 0"),
    "infinite slope": (lambda: LinearRule(1.0, output="logit", slope=math.inf), "slope must be a finite number > 0"),
    "slope of sign": (lambda: LinearRule(1.0, output="sign", slope=2.0), "slope must be left out with output='sign'"),
    "axis": (
        lambda: sweep(LinearRule(1.0, output="logit"), Estimator(SQUARE, 0.1), {"noise": [1.0]}), "unknown parameter 'noise'",
    ),
    "alpha": (lambda: LinearRule(0.0), "alpha must be"),
    "Bayes": (lambda: solve(REAL, BayesOptimal()), "Bayes-optimal for two Gaussian classes"),
    "mean": (lambda: solve(REAL, Frozen(0.5, 1.0)), "magnetization of teacher must be 0"),
    "rho": (lambda: sweep(REAL, Estimator(SQUARE, 0.1), {"rho": [0.5]}), "unknown parameter 'rho'"),
    "observable": (lambda: sweep(REAL, Estimator(SQUARE, 0.1), {"alpha": [1.0]}, ["test_error"]), "not defined on these data"),
    "objective": (
        lambda: find_best(REAL, Estimator(SQUARE, 0.1), {"teacher.ridge": (0.1, 1.0)}, "teacher.test_error"), "observable must be",
    ),
    "data": (lambda: solve("rule", Estimator(SQUARE, 0.1)), "data must be a GaussianMixture, a ClassMixture, Clusters or"),
    "linear": (lambda: solve(REAL, Estimator(LinearLoss(), 0.0)), "ridge of teacher must be > 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ParameterError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_losses_after_a_rule() -> None:
    split = after_rule(SquareDistillation(0.5), real=True).split
    assert split[0] == after_rule(SQUARE, real=True).split[0]
    both = after_rule(Distillation(teacher=(1, 2)), real=False)
    assert both.teacher == (2, 3)
    assert both.stages(4) == (1, 2, 3)
    assert after_rule(Loss.from_expression("(h - h_2)**2 + s*h", teacher=None), real=True).stages(4) == (1, 3)
