"""Observables against exact values and brute force, and the error that each states: tails, kinks, nearly equal stages."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit, ndtr

from numerics import (
    OBSERVABLES,
    Chain,
    ConvergenceWarning,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    ParameterError,
    Solution,
    solve,
)
from numerics.optimize import derivatives
from numerics.solution.observables.distances import output_distance
from numerics.solution.observables.registry import REGISTRY
from numerics.solution.population import Population
from numerics.solution.samples import output_difference
from numerics.solution.training import TrainingSamples
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation, SquareLoss

GAIN, LABEL = 0.9, 0.1
"""Of the teacher's logit and of the signed label in the target of the square chains."""


def square(teacher: int) -> Loss:
    return Loss.from_expression(f"(h - {GAIN}*h_{teacher} - {LABEL}*s)**2/2")


def square_chain(ridges: tuple[float, ...], etas: tuple[float, ...]) -> list[Estimator]:
    losses = [SquareLoss(), *(square(k) for k in range(1, len(ridges)))]
    return [
        Estimator(loss, ridge, eta=eta, name=f"stage_{k}")
        for k, (loss, ridge, eta) in enumerate(zip(losses, ridges, etas, strict=True))
    ]


def affine_logits(solution: Solution) -> list[tuple[float, int, int, np.ndarray, np.ndarray]]:
    """Probability, class, label, mean and covariance of the training logits, from one linear system.

    ``H = U + Delta V F`` with fields U of covariance ``Delta Q`` and forces ``F = G H + d - H``, G the gains, d the labels' part.
    """
    data, size = solution.data, len(solution)
    gains, direct = np.diag(np.full(size - 1, GAIN), -1), np.array([1.0] + [LABEL] * (size - 1))
    pull = data.delta * solution.response
    mixing = np.linalg.inv(np.eye(size) - pull @ (gains - np.eye(size)))
    found = []
    for sign, flipped in itertools.product((1, -1), (False, True)):
        share = (data.rho if sign == 1 else 1 - data.rho) * (data.label_noise if flipped else 1 - data.label_noise)
        label = -sign if flipped else sign
        mean = mixing @ (sign * solution.magnetization + solution.bias + pull @ direct * label)
        found.append((share, sign, label, mean, data.delta * mixing @ solution.overlap @ mixing.T))
    return found


NEAR_INTERPOLATION = [
    (GaussianMixture(0.702, 0.3, 1.0, label_noise=0.1), (0.74, 1e-4, 1e-4), (1.0, 1.0, 0.82)),
    (GaussianMixture(0.897, 0.5, 2.0, label_noise=0.1), (2.84, 1e-4, 1e-4), (1.0, 1.0, 1.0)),
    (GaussianMixture(0.61, 0.25, 0.6, label_noise=0.05), (0.9, 3e-4, 2e-3, 1e-4), (1.0, 0.9, 0.8, 0.75)),
]


@pytest.mark.parametrize(("data", "ridges", "etas"), NEAR_INTERPOLATION)
def test_square_chains_have_exact_tails(data: GaussianMixture, ridges: tuple, etas: tuple) -> None:
    solution = solve(data, square_chain(ridges, etas), throw=True)
    stage = solution[-1]
    expected = dict.fromkeys(("train_error", "clean_train_error", "train_loss", "train_logit_distance"), 0.0)
    for share, sign, label, mean, covariance in affine_logits(solution):
        width = math.sqrt(covariance[-1, -1])
        expected["train_error"] += share * ndtr(-label * mean[-1] / width)
        expected["clean_train_error"] += share * ndtr(-sign * mean[-1] / width)
        for name, gain, direct in (("train_loss", GAIN, LABEL), ("train_logit_distance", 1.0, 0.0)):
            away = np.zeros(len(solution))
            away[-1], away[-2] = 1.0, -gain
            size = (away @ mean - direct * label) ** 2 + away @ covariance @ away
            expected[name] += share * size * (0.5 if name == "train_loss" else 1.0)
    for name, value in expected.items():
        assert getattr(stage, name) == pytest.approx(value, rel=1e-9), name
        assert abs(getattr(stage, name) - value) <= stage.error_of(name) + 1e-15  # rounding of what is expected
    assert stage.generalization_gap == pytest.approx(stage.test_error - expected["train_error"], rel=1e-9)


@pytest.mark.parametrize(("data", "ridges", "etas"), NEAR_INTERPOLATION)
def test_integrals_agree_with_closed_forms(
    data: GaussianMixture, ridges: tuple, etas: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same chains as if their losses were any others: panels and nodes against what is exact."""
    exact = solve(data, square_chain(ridges, etas), throw=True)
    names = ("train_error", "train_loss", "train_cross_entropy", "train_output_distance", "free_energy")
    values = [getattr(exact[-1], name) for name in names]
    monkeypatch.setattr(TrainingSamples, "gaussian", None)
    general = replace(exact)
    for name, value in zip(names, values, strict=True):
        assert getattr(general[-1], name) == pytest.approx(value, rel=1e-8), name
        found = general[-1].find(REGISTRY[name])
        assert abs(found.value - value) <= max(found.error, 1e-10 * value), name


def test_derivative_of_a_training_error_near_interpolation() -> None:
    data, ridges, etas = NEAR_INTERPOLATION[0]
    chain = square_chain(ridges, etas)

    def exact(noise: float) -> float:
        solution = solve(replace(data, label_noise=noise), chain, rtol=1e-11)
        return sum(
            share * ndtr(-label * mean[-1] / math.sqrt(covariance[-1, -1]))
            for share, _, label, mean, covariance in affine_logits(solution)
        )

    step = 1e-4
    name = "stage_2.train_error"
    slope = derivatives(solve(data, chain), ["label_noise"], [name])["label_noise"][name]
    expected = (8 * (exact(0.1 + step) - exact(0.1 - step)) - exact(0.1 + 2 * step) + exact(0.1 - 2 * step)) / 12 / step
    assert slope == pytest.approx(expected, rel=1e-5)


# Distillation, by brute force


def proximal(field: np.ndarray, gamma: float, width: float, target: np.ndarray) -> np.ndarray:
    """``h + gamma (sigmoid(h/T) - c)/T = field`` by bisection and Newton steps."""
    low, high = np.full_like(field, -1e4), np.full_like(field, 1e4)
    h = np.zeros_like(field)
    for _ in range(200):
        output = expit(h / width)
        excess = h + gamma * (output - target) / width - field
        low, high = np.where(excess < 0, h, low), np.where(excess < 0, high, h)
        new = h - excess / (1 + gamma * output * expit(-h / width) / width**2)
        new = np.where((new > low) & (new < high), new, 0.5 * (low + high))
        if np.max(np.abs(new - h) / (1 + np.abs(h))) < 1e-14:
            break
        h = new
    return new


def brute_training_error(solution: Solution, temperature: float, fine: int, coarse: int) -> float:
    """Error of a purely distilled third stage after a purely distilled second: a product of trapezoid rules in g_1 and g_2."""
    data, m, b = solution.data, solution.magnetization, solution.bias
    c, v = math.sqrt(data.delta) * solution.cholesky, data.delta * solution.response
    (g1, step1), (g2, step2) = (np.linspace(-7, 7, n, retstep=True) for n in (fine, coarse))
    g1, g2 = g1[:, None], g2[None, :]
    weight = np.exp(-0.5 * (g1**2 + g2**2)) / (2 * np.pi) * step1 * step2
    total = 0.0
    for sign, share in ((1, data.rho), (-1, 1 - data.rho)):
        label, mean = (1 + sign) / 2, sign * m + b
        first = proximal(mean[0] + c[0, 0] * g1, v[0, 0], 1.0, label)
        soft = expit(first / temperature)
        force = label - expit(first)
        second = proximal(mean[1] + c[1, 0] * g1 + c[1, 1] * g2 + v[1, 0] * force, v[1, 1], temperature, soft)
        other = (soft - expit(second / temperature)) / temperature
        field = mean[2] + c[2, 0] * g1 + c[2, 1] * g2 + v[2, 0] * force + v[2, 1] * other
        threshold = v[2, 2] * (0.5 - expit(second / temperature)) / temperature
        total += share * float(np.sum(weight * ndtr(sign * (threshold - field) / c[2, 2])))
    return total


@pytest.mark.parametrize(
    ("point", "ridges", "etas"),
    [
        ((0.39165, 0.4, 2.0), (1.74965, 0.00524, 3.578e-5), (1.0, 0.41167)),
        ((0.50685, 0.2, 1.0), (0.26260, 7.185e-5, 3.129e-5), (0.70805, 0.39134)),
        ((0.78446, 0.3, 0.5), (0.42029, 3.483e-3, 5.132e-5), (0.83457, 0.69963)),
    ],
)
def test_third_stage_near_interpolation(point: tuple, ridges: tuple, etas: tuple) -> None:
    soft = Distillation(1.0, 0.5)
    chain = [
        Estimator(CrossEntropy(), ridges[0]),
        Estimator(soft, ridges[1], eta=etas[0]),
        Estimator(soft, ridges[2], eta=etas[1], name="c"),
    ]
    solution = solve(GaussianMixture(*point), chain, throw=True)
    stage = solution[2]
    exact = brute_training_error(solution, 0.5, 2801, 41)
    assert stage.train_error == pytest.approx(exact, rel=1e-8)
    assert stage.error_of("train_error") < 1e-7 * exact


def test_hard_targets_and_soft_ones_on_two_sets() -> None:
    """A jump in an earlier direction; errors by levels of nodes agree with panels inside one another within what both state."""
    data = GaussianMixture(1.0, 0.4, 0.7, 0.2, (DataSet("more", 0.6, 0.1),))
    chain = [
        Estimator(CrossEntropy(), 0.2),
        Estimator(PseudoLabels(0.8), 0.2, sets="more", eta=0.7),
        Estimator(PseudoLabels(1.0, square=True), 0.2, sets=("training", "more")),
    ]
    solution = solve(data, chain, throw=True)
    stage = solution[2]
    finer = solution.nodes(2, training=True, finer=2)
    again = finer.mean(ndtr((2 * finer.labels - 1) * stage.samples.threshold(finer)))
    assert stage.train_error == pytest.approx(again, rel=1e-9)
    assert abs(stage.train_error - again) <= stage.error_of("train_error")


# Calibration


def calibration_by_quadrature(m: float, b: float, q: float, data: GaussianMixture) -> float:
    """Adaptive quadrature that is told the kink and the middles of both sigmoids."""
    width, slope = math.sqrt(data.delta * q), 2 * m / (data.delta * q)
    offset = math.log(data.rho / (1 - data.rho)) - slope * b
    low, high = b - abs(m) - 12 * width, b + abs(m) + 12 * width

    def integrand(h: float) -> float:
        density = sum(
            share * math.exp(-(((h - sign * m - b) / width) ** 2) / 2)
            for sign, share in ((1, data.rho), (-1, 1 - data.rho))
        )
        return abs(expit(h) - expit(slope * h + offset)) * density / width / math.sqrt(2 * math.pi)

    bends = [0.0, -offset / slope]
    ends = {low, high, b + m, b - m, offset / (1 - slope)}
    ends |= {
        bend + part * scale for bend, scale in zip(bends, (1, 1 / slope), strict=True) for part in (-20, -4, 0, 4, 20)
    }
    ends = sorted(end for end in ends if low <= end <= high)
    return sum(quad(integrand, *pair, epsabs=1e-15, epsrel=1e-13, limit=400)[0] for pair in itertools.pairwise(ends))


@pytest.mark.parametrize("alpha", [0.3, 0.8, 4.0])
@pytest.mark.parametrize(
    ("rho", "delta", "ridge"), [(0.2, 1.0, 1e-5), (0.45, 0.2, 1e-3), (0.03, 3.0, 5.0), (0.5, 1.0, 0.3)]
)
def test_calibration_error(alpha: float, rho: float, delta: float, ridge: float) -> None:
    data = GaussianMixture(alpha, rho, delta)
    for stage in solve(data, [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), ridge, eta=0.5)]).stages:
        exact = calibration_by_quadrature(stage.magnetization, stage.bias, stage.norm_squared, data)
        assert stage.calibration_error == pytest.approx(exact, rel=1e-10)
        assert abs(stage.calibration_error - exact) < stage.error_of("calibration_error") + 1e-12


def test_derivative_of_the_calibration_error() -> None:
    def chain_at(rho: float) -> tuple[GaussianMixture, list[Estimator]]:
        return GaussianMixture(0.8, rho, 1.0), [
            Estimator(CrossEntropy(), 0.1),
            Estimator(Distillation(), 1e-5, eta=0.5),
        ]

    def exact(rho: float) -> float:
        stage = solve(*chain_at(rho), rtol=1e-11)[1]
        return calibration_by_quadrature(stage.magnetization, stage.bias, stage.norm_squared, stage.solution.data)

    name = "student.calibration_error"
    slope = derivatives(solve(*chain_at(0.2)), ["rho"], [name])["rho"][name]
    assert slope == pytest.approx((exact(0.2 + 2e-5) - exact(0.2 - 2e-5)) / 4e-5, rel=1e-6)


# Nearly equal stages


@pytest.mark.parametrize("loss", [CrossEntropy(), SquareLoss()], ids=["logistic", "square"])
def test_distances_of_nearly_equal_stages_are_quadratic_in_what_tells_them_apart(loss: Loss) -> None:
    data = GaussianMixture(1.2, 0.3, 0.8)
    names = ("test_logit_distance", "train_logit_distance", "test_output_distance", "train_output_distance")
    ratios = []
    for shift in (1e-3, 1e-4):
        chain = [Estimator(loss, 0.3), Estimator(loss, 0.3 * (1 + shift), name="other")]
        stage = solve(data, chain, rtol=1e-12, throw=False)[1]
        ratios.append([getattr(stage, name) / shift**2 for name in names])
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=4e-3)


def test_distances_of_given_weights_have_no_floor() -> None:
    """Rows of C that differ by 1e-9: distances of 1e-18, to nine digits."""
    data, shift = GaussianMixture(1.0, 0.3, 0.9), 1e-9
    factor = np.array([[1.5, 0.0], [1.5 + shift, 2 * shift]])
    pair = Population(data, np.array([0.8, 0.8]), np.array([0.1, 0.1]), factor @ factor.T, factor)
    row = factor[1] - factor[0]
    assert pair.logit_distance(1, 0) == pytest.approx(0.9 * row @ row, rel=1e-12)
    # The second order of sigmoid(h + d) - sigmoid(h) is enough at this size; h and d are Gaussian, d = slope (h - mean) + rest.
    exact = 0.0
    for sign, share in ((1, 0.3), (-1, 0.7)):
        mean, width = 0.8 * sign + 0.1, math.sqrt(0.9) * 1.5

        def integrand(z: float, mean: float = mean, width: float = width) -> float:
            slope = expit(mean + width * z) * expit(-mean - width * z)
            square = 0.9 * ((row[0] * z) ** 2 + row[1] ** 2)
            return slope**2 * square * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        exact += share * quad(integrand, -9, 9, epsabs=0, epsrel=1e-11)[0]
    assert output_distance(pair, np.array([0.0, 1.0]), np.array([1.0, 0.0])).value == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("h", [-800.0, -30.0, -0.2, 0.0, 3.0, 40.0, 900.0])
@pytest.mark.parametrize("d", [-900.0, -2.0, -1e-12, 1e-300, 1e-7, 0.4, 60.0, 1000.0])
def test_difference_of_outputs(h: float, d: float) -> None:
    with mpmath.workdps(400):
        exact = 1 / (1 + mpmath.exp(-(mpmath.mpf(h) + mpmath.mpf(d)))) - 1 / (1 + mpmath.exp(-mpmath.mpf(h)))
    found = float(output_difference(np.array([h]), np.array([d]))[0])
    assert found == pytest.approx(float(exact), rel=1e-13 * max(1.0, abs(h)), abs=1e-300)


# Stated errors

CHAINS = {
    "two stages": (
        GaussianMixture(0.8, 0.2, 1.0),
        [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 1e-5, eta=0.5)],
    ),
    "noise and a mask": (
        GaussianMixture(1.5, 0.35, 0.7, label_noise=0.1),
        [
            Estimator(CrossEntropy(), 0.3, eta=0.8),
            Estimator(Distillation(0.7, 2.0), 1e-2, eta=0.6, mask_overlap=0.7),
            Estimator(Distillation(0.9, 1.0, teacher=(1, 2)), 1e-3, name="third"),
        ],
    ),
    "square": (NEAR_INTERPOLATION[0][0], square_chain(*NEAR_INTERPOLATION[0][1:])),
    "given weights": (GaussianMixture(1.0, 0.3, 1.0), [Frozen(0.5, 1.0, 0.1), Estimator(SquareDistillation(), 0.1)]),
    "max margin, minimum norm": (
        GaussianMixture(0.4, 0.3, 1.0),
        [Estimator(CrossEntropy(), 0.2), Estimator(Distillation(), 0.0), Estimator(CrossEntropy(), 0.0, name="margin")],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_observable_states_an_error(name: str) -> None:
    solution = solve(*CHAINS[name], throw=True)
    for stage in solution.stages:
        for observable in OBSERVABLES:
            value, error = getattr(stage, observable), stage.error_of(observable)
            if math.isnan(value):
                assert math.isnan(error), observable
            elif math.isinf(value):
                assert error == 0.0, observable
            else:
                assert 0.0 <= error <= 1e-6 * max(abs(value), 1e-3), (observable, value, error)


@pytest.mark.parametrize("name", ["two stages", "noise and a mask"])
def test_stated_errors_cover_the_distance_from_a_finer_solution(name: str) -> None:
    data, chain = CHAINS[name]
    rough = solve(data, chain, rtol=1e-5)
    fine = solve(data, chain, rtol=1e-11)
    covered = []
    for ours, theirs in zip(rough.stages, fine.stages, strict=True):
        for observable in OBSERVABLES:
            value, exact = getattr(ours, observable), getattr(theirs, observable)
            if math.isfinite(value):
                assert value == pytest.approx(exact, rel=1e-5, abs=1e-8), observable
                covered.append(abs(value - exact) <= ours.error_of(observable) + 1e-11 * abs(value))
    assert np.mean(covered) > 0.9


def test_an_unknown_observable_is_refused() -> None:
    stage = solve(*CHAINS["two stages"])[1]
    with pytest.raises(ParameterError, match=r"name must be one of .*train_error"):
        stage.error_of("training_error")


def test_unsolved_stages_are_nan() -> None:
    chain = Chain.of([Estimator(CrossEntropy(), 0.1)])
    with pytest.warns(ConvergenceWarning, match="no converged solution"):
        stage = solve(GaussianMixture(2.0, 0.2), chain, max_iterations=1)[0]
    for observable in ("train_error", "calibration_error", "test_loss", "free_energy"):
        assert math.isnan(getattr(stage, observable))
        assert math.isnan(stage.error_of(observable))
