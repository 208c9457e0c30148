"""Calibration of outputs: identities, brute force, sampled logits, densities of training logits, experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import norm

from numerics import BayesOptimal, Estimator, Frozen, GaussianMixture, LinearRule, ParameterError, simulate, solve
from numerics.anatomy.calibration import calibration_of, curve, reliability, training_calibration_error
from numerics.simulation.measure import MeasuredStage
from numerics.solution import calibration
from numerics.solution.logit_law import LogitLaw
from numerics.solution.solution import StageSolution
from numerics.solution.stage import AnyStage
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

DATA = GaussianMixture(2.0, 0.3, 1.0, 0.1)
CHAIN = [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(1.0, 2.0), 0.05, eta=0.6)]
SQUARES = [Estimator(SquareLoss(), 0.3), Estimator(SquareDistillation(0.7), 0.1, eta=0.6)]
OBSERVABLES = (
    "calibration_error", "top_label_calibration_error", "brier_score", "brier_calibration", "brier_refinement",
    "cross_entropy_calibration", "cross_entropy_refinement", "calibrating_temperature", "tempered_calibration_error",
    "train_brier_score", "train_cross_entropy", "test_cross_entropy",
)  # fmt: skip


@pytest.fixture(scope="module")
def stages() -> tuple[StageSolution, ...]:
    return solve(DATA, CHAIN, throw=True).stages


# Fresh samples


def test_scores_are_the_sum_of_their_parts(stages: tuple[StageSolution, ...]) -> None:
    for stage in stages:
        found = calibration_of(stage)
        for part in (found.brier, found.cross_entropy):
            assert part.score == pytest.approx(part.calibration + part.uncertainty - part.resolution, abs=1e-10)
        assert found.ece_top <= found.ece
        assert found.ece**2 <= found.brier.calibration
        assert found.cross_entropy.calibration <= minimize_scalar(
            lambda log_tau, stage=stage: calibration.cross_entropy_calibration(
                stage.fresh.logit_law(-1).scaled(math.exp(-log_tau))
            ).value,
            bounds=(-3, 3), method="bounded",
        ).fun + stage.cross_entropy_calibration  # fmt: skip


@pytest.mark.parametrize("rho", [0.5, 0.2])
def test_averages_against_quadrature(rho: float) -> None:
    law = LogitLaw(1.4, 0.3, 1.1, rho)
    above, under = norm(1.7, 1.1), norm(-1.1, 1.1)

    def density(h: float) -> float:
        return rho * above.pdf(h) + (1 - rho) * under.pdf(h)

    def pi(h: float) -> float:
        return rho * above.pdf(h) / density(h)

    def integral(function, low: float = -14.0, high: float = 14.0) -> float:
        return quad(function, low, high, epsabs=1e-13, epsrel=1e-12, limit=500, points=[0.0, 1.0, -1.0])[0]

    assert calibration.calibration_error(law).value == pytest.approx(
        integral(lambda h: density(h) * abs(pi(h) - expit(h))), abs=1e-9
    )

    def folded(r: float) -> float:
        right, total = rho * above.pdf(r) + (1 - rho) * under.pdf(-r), density(r) + density(-r)
        return abs(right - total * expit(r))

    top = quad(folded, 0.0, 14.0, epsabs=1e-13, epsrel=1e-12, limit=500)[0]
    assert calibration.top_label_calibration_error(law).value == pytest.approx(top, abs=1e-9)
    exact = integral(lambda h: density(h) * (pi(h) - expit(h)) ** 2)
    assert calibration.brier_calibration(law).value == pytest.approx(exact, abs=1e-11)
    exact = -integral(lambda h: density(h) * (pi(h) * math.log(pi(h)) + (1 - pi(h)) * math.log1p(-pi(h))), -9, 9)
    assert calibration.cross_entropy_refinement(law).value == pytest.approx(exact, abs=1e-10)


def test_stated_errors(stages: tuple[StageSolution, ...]) -> None:
    """Those of what is on no list, too; a solution to 1e-11 is within them."""
    fine = solve(DATA, CHAIN, throw=True, rtol=1e-11)[1]
    for name in OBSERVABLES:
        value, error = getattr(stages[1], name), stages[1].error_of(name)
        assert 0 <= error < 1e-7 * abs(value), name
        assert abs(value - getattr(fine, name)) <= error + 1e-11 * abs(value), name


def test_top_label_is_the_other_error_only_without_bias() -> None:
    balanced = solve(GaussianMixture(2.0, 0.5), CHAIN, throw=True)[1]
    assert balanced.top_label_calibration_error == pytest.approx(balanced.calibration_error, abs=1e-10)
    other = solve(DATA, CHAIN, throw=True)[1]
    assert other.top_label_calibration_error < 0.95 * other.calibration_error


def test_temperature() -> None:
    """Of least cross-entropy; Delta Q/(2m), and enough, if the bias is the best one, not otherwise."""
    biased = solve(DATA, CHAIN, throw=True)[1]
    law = biased.fresh.logit_law(-1)
    best = minimize_scalar(
        lambda log_tau: calibration.cross_entropy_calibration(law.scaled(math.exp(-log_tau))).value,
        bounds=(-2, 2), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    assert biased.calibrating_temperature == pytest.approx(math.exp(best.x), rel=1e-6)
    assert biased.tempered_calibration_error > 1e-3
    stage = solve(GaussianMixture(2.0, 0.2, 1.0), BayesOptimal(), throw=True)[0]
    assert stage.calibrating_temperature == pytest.approx(stage.norm_squared / (2 * stage.magnetization), rel=1e-10)
    assert stage.tempered_calibration_error < 1e-12


def test_temperatures_that_do_not_exist() -> None:
    assert calibration.calibrating_temperature(LogitLaw(-1.0, 0.0, 1.0, 0.5)) == math.inf
    assert calibration.calibrating_temperature(LogitLaw(0.0, 0.3, 0.0, 0.5)) == math.inf
    margin = solve(GaussianMixture(0.4, 0.3), Estimator(CrossEntropy(), 0.0), throw=True)[0]
    assert margin.limit == "max margin"
    assert margin.calibrating_temperature == math.inf
    assert margin.cross_entropy_calibration == math.inf
    assert margin.brier_score == pytest.approx(margin.test_error, abs=1e-12)
    assert margin.brier_calibration + margin.brier_refinement == pytest.approx(margin.test_error, abs=1e-10)
    assert margin.top_label_calibration_error == pytest.approx(margin.test_error, abs=1e-10)
    assert 0 < margin.tempered_calibration_error < margin.calibration_error
    assert math.isnan(calibration_of(margin).train_ece)


def test_the_oracle_is_calibrated() -> None:
    data = GaussianMixture(2.0, 0.2, 1.5)
    stage = solve(data, Frozen(2 / 1.5, 4 / 1.5**2, math.log(0.2 / 0.8)))[0]
    assert stage.calibrating_temperature == pytest.approx(1.0, abs=1e-9)
    for name in ("calibration_error", "top_label_calibration_error", "brier_calibration", "cross_entropy_calibration"):
        assert abs(getattr(stage, name)) < 1e-12, name


def test_sampled_logits(stages: tuple[StageSolution, ...]) -> None:
    """4e6 fresh logits in 400 bins; the scores straight, in standard errors."""
    law, generator, n = stages[1].fresh.logit_law(-1), np.random.default_rng(1), 4 * 10**6
    y = (generator.random(n) < DATA.rho).astype(float)
    h = law.bias + law.mean * (2 * y - 1) + law.width * generator.normal(size=n)
    squares = (expit(h) - y) ** 2
    assert abs(squares.mean() - stages[1].brier_score) < 4 * squares.std() / math.sqrt(n)
    bins = np.digitize(h, np.quantile(h, np.linspace(0, 1, 401)[1:-1]))
    gap = np.bincount(bins, expit(h) - y) / n
    assert np.abs(gap).sum() == pytest.approx(stages[1].calibration_error, abs=8e-4)
    r, right = np.abs(h), ((h > 0) == (y > 0.5)).astype(float)
    bins = np.digitize(r, np.quantile(r, np.linspace(0, 1, 401)[1:-1]))
    gap = np.bincount(bins, expit(r) - right) / n
    assert np.abs(gap).sum() == pytest.approx(stages[1].top_label_calibration_error, abs=8e-4)


# Training samples

EDGES = np.array([-60.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 60.0])


@pytest.mark.parametrize("chain", [CHAIN, SQUARES], ids=["logistic", "square"])
def test_densities_add_up_to_what_is_known_otherwise(chain: list[Estimator]) -> None:
    for stage in solve(DATA, chain, throw=True).stages:
        found = reliability(stage, EDGES, on="training")
        assert found.share.sum() == pytest.approx(1.0, abs=1e-8)
        label = DATA.rho * 0.9 + (1 - DATA.rho) * 0.1
        assert found.share @ found.observed == pytest.approx(label, abs=1e-8)
        ones, zeros = found.share * found.observed, found.share * (1 - found.observed)
        assert ones[:4].sum() + zeros[4:].sum() == pytest.approx(stage.train_error, abs=1e-8)
        exact = stage.samples.mean(lambda y, h: expit(h), [stage.own]).value
        assert found.share @ found.predicted == pytest.approx(exact, abs=1e-8)
        fresh = reliability(stage, EDGES)
        assert fresh.share.sum() == pytest.approx(1.0, abs=1e-10)
        assert fresh.share[0] == pytest.approx(float(stage.fresh.logit_law(-1).cdf(-2.0)), abs=1e-10)


def test_density_is_the_closed_form_of_one_stage(stages: tuple[StageSolution, ...]) -> None:
    """``N(omega) (1 + Delta V l'')`` with ``omega = h + Delta V l'``."""
    stage, h = stages[0], np.linspace(-4, 4, 9)
    gamma = DATA.delta * stage.response
    found = stage.samples.density(h)
    for label in (0, 1):
        exact = 0.0
        for sign, share in ((1, DATA.rho), (-1, 1 - DATA.rho)):
            share *= 0.9 if (sign > 0) == (label == 1) else 0.1
            omega = h + gamma * (expit(h) - label)
            law = norm(sign * stage.magnetization + stage.bias, math.sqrt(DATA.delta * stage.norm_squared))
            exact = exact + share * law.pdf(omega) * (1 + gamma * expit(h) * expit(-h))
        np.testing.assert_allclose(found[label], exact, rtol=1e-10)


def test_curve_and_errors_of_training_samples(stages: tuple[StageSolution, ...]) -> None:
    for stage in stages:
        h = np.linspace(-12, 12, 4801)
        zero, one = stage.samples.density(h)
        np.testing.assert_allclose(curve(stage, h[2300:2500], on="training"), (one / (zero + one))[2300:2500])
        gap = one * expit(-h) - zero * expit(h)
        assert training_calibration_error(stage) == pytest.approx(np.abs(gap).sum() * 0.005, abs=2e-6)
        top = np.abs(gap[2400:] - gap[2400::-1])
        assert training_calibration_error(stage, top=True) == pytest.approx((top.sum() - top[0] / 2) * 0.005, abs=2e-6)
        fine = reliability(stage, np.linspace(-15, 15, 301), on="training")
        assert 0 <= training_calibration_error(stage) - fine.error < 2e-3
        odds = stage.calibration_slope * h[2300:2500] + stage.calibration_offset
        np.testing.assert_allclose(curve(stage, h[2300:2500]), expit(odds), rtol=1e-9)


# Experiments

BINS = np.array([-20.0, -1.0, 0.0, 1.0, 20.0])


def scores(n_inputs: int, n_runs: int) -> np.ndarray:
    """z of all observables, and of the share and the ones in each bin of the training logits."""

    def binned(stages: Sequence[MeasuredStage]) -> dict[str, np.ndarray]:
        return {"bins": np.array([in_bins(stage) for stage in stages])}

    runs = simulate(DATA, CHAIN, n_inputs, n_runs, seed=5, n_jobs=2, further=binned)
    solution = solve(runs.effective_data, runs.effective_chain, throw=True)
    z = []
    for run, stage in zip(runs, solution.stages, strict=True):
        for name in OBSERVABLES:
            found = getattr(run, name)
            z.append((found.mean - getattr(stage, name)) / found.standard_error)
    bins = runs.estimate("bins")
    expected = np.array([in_bins(stage) for stage in solution.stages])
    return np.concatenate((z, ((bins.mean - expected) / bins.standard_error).ravel()))


def in_bins(stage: AnyStage) -> list[np.ndarray]:
    found = reliability(stage, BINS, on="training")
    return [found.share, found.share * found.observed, found.share * found.predicted]


def test_calibration_against_simulation() -> None:
    """N = 500, 10 runs."""
    assert np.abs(scores(500, 10)).max() < 4


@pytest.mark.slow
def test_calibration_against_a_larger_simulation() -> None:
    """N = 1000, 40 runs, 48 quantities."""
    z = scores(1000, 40)
    assert np.abs(z).max() < 4
    assert np.sqrt(np.mean(z**2)) < 1.6


# Bad input


def test_bad_input(stages: tuple[StageSolution, ...]) -> None:
    with pytest.raises(ParameterError, match="edges must be at least two finite numbers in increasing order"):
        reliability(stages[0], [1.0, 0.0])
    with pytest.raises(ParameterError, match="on must be one of test, training, got 'both'"):
        reliability(stages[0], [0.0, 1.0], on="both")
    rule = solve(LinearRule(2.0), Estimator(SquareLoss(), 0.1))[0]
    with pytest.raises(ParameterError, match="data must be a GaussianMixture"):
        calibration_of(rule)
    interpolating = solve(GaussianMixture(0.4, 0.3), [CHAIN[0], Estimator(Distillation(), 0.0)], throw=True)[1]
    with pytest.raises(ParameterError, match="stage student has no density of training logits: its ridge must be > 0"):
        reliability(interpolating, [0.0, 1.0], on="training")
