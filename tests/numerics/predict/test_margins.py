"""Predictions: on Gaussian data they are theory's, the correction for a finite population is right, real fits agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from numerics import (
    Clusters,
    Dense,
    Estimator,
    GaussianMixture,
    LinearMap,
    Measured,
    ParameterError,
    Spectrum,
    solve,
    sweep,
)
from numerics.models import Chain
from numerics.optimize import optimize
from numerics.predict import measure, predict
from numerics.predict.margins import most_samples, with_ridges
from theory.losses import CrossEntropy, Distillation

SIZE = 16
HALF = LinearMap(np.eye(SIZE)[::2])
CHAIN = [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(1.0, 2.0), 0.1, features=HALF)]
POPULATION = Dense(np.diag(np.linspace(0.5, 1.5, SIZE)), np.cos(np.arange(SIZE)))


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a Gaussian population, with exact shares of the classes."""
    generator = np.random.default_rng(seed)
    y = np.where(np.arange(n) < 0.4 * n, 1.0, -1.0)
    X = generator.standard_normal((n, SIZE)) * np.sqrt(np.diag(POPULATION.covariance))
    return X + np.outer(y, POPULATION.direction) / math.sqrt(SIZE), y


def test_on_many_gaussian_samples_it_is_theory() -> None:
    X, y = drawn(20000)
    found = predict(Measured(X, y).at(64), CHAIN)
    exact = solve(GaussianMixture(4.0, 0.4, inputs=POPULATION), CHAIN)
    for t in range(2):
        error = exact[t].test_error
        assert abs(found.test_error[t] - error) < 3.0 * math.sqrt(error * (1 - error) / len(y))
        assert abs(found.gaussian_error[t] - error) < 3.0 * math.sqrt(error * (1 - error) / len(y))
        assert found.test_cross_entropy[t] == pytest.approx(exact[t].test_cross_entropy, rel=0.02)
        assert found.class_errors[t] @ [0.6, 0.4] == pytest.approx(found.test_error[t])


def test_with_one_covariance_a_class_it_is_theory_of_clusters() -> None:
    generator, n = np.random.default_rng(3), 12000
    y = np.where(np.arange(n) < 0.4 * n, 1.0, -1.0)
    spread = np.where(y[:, None] > 0, np.linspace(0.2, 0.6, SIZE), np.linspace(2.5, 0.5, SIZE))
    X = generator.standard_normal((n, SIZE)) * spread + np.outer(y, POPULATION.direction) / math.sqrt(SIZE)
    half = POPULATION.direction / math.sqrt(SIZE)
    shapes = np.array([np.diag(np.linspace(*ends, SIZE) ** 2) for ends in ((0.2, 0.6), (2.5, 0.5))])
    exact = solve(Clusters(4.0, [half, -half], shapes, (1, -1), (0.4, 0.6)), CHAIN)
    found = predict(Measured(X, y, covariances="per class").at(64), CHAIN)
    pooled = predict(Measured(X, y).at(64), CHAIN)
    for t in range(2):
        error = exact[t].test_error
        for values in (found.test_error, found.gaussian_error):
            assert abs(values[t] - error) < 3.0 * math.sqrt(error * (1 - error) / n)
        assert abs(pooled.test_error[t] - error) > 4.0 * math.sqrt(error * (1 - error) / n)


def test_the_noise_of_the_estimate_is_taken_out_once() -> None:
    """Over many small populations the mean prediction is what theory says of the true one; without the correction it is not."""
    n, m = 400, 160
    exact = solve(GaussianMixture(m / SIZE, 0.4, inputs=POPULATION), CHAIN)
    found, plain = [], []
    for seed in range(30):
        data = Measured(*drawn(n, seed)).at(m)
        found.append(predict(data, CHAIN).test_error)
        uncorrected = 1.0 / (1.0 / m + 1.0 / (0.8 * n))  # for which the correction asks theory for M itself
        ridges = with_ridges(Chain.of(CHAIN), m / uncorrected)
        plain.append(predict(data.with_value("alpha", uncorrected / SIZE), ridges).test_error)
    for t in range(2):
        scatter = np.std([values[t] for values in found], ddof=1) / math.sqrt(len(found))
        assert abs(np.mean([values[t] for values in found]) - exact[t].test_error) < 3.0 * scatter
        excess = np.array(plain)[:, t] - np.array(found)[:, t]
        assert excess.mean() > 5.0 * excess.std(ddof=1) / math.sqrt(len(excess))


def test_real_fits_agree_on_gaussian_samples() -> None:
    X, y = drawn(3000)
    data = Measured(X, y).at(80)
    found, runs = predict(data, CHAIN), measure(X, y, data, CHAIN, n_runs=24)
    apart = found.test_error - runs.mean("test_error")
    # The limit of many inputs is reached up to 1/N, as in simulations.
    assert (np.abs(apart) < 3.0 * runs.standard_error("test_error") + 0.02 * found.test_error).all()


def test_a_fold_sees_nothing_of_what_it_holds() -> None:
    """Labels that say nothing: the cross-fitted error is a half, while the Gaussian formula believes in what is learned."""
    generator = np.random.default_rng(4)
    X, y = generator.standard_normal((200, 30)), np.arange(200) % 2
    found = predict(Measured(X, y).at(100), Estimator(CrossEntropy(), 1.0))
    assert abs(found.test_error[0] - 0.5) < 0.08
    assert found.gaussian_error[0] < 0.42


def test_it_is_an_observable_of_measured_data() -> None:
    data = Measured(*drawn(400)).at(64)
    solution = solve(data, CHAIN)
    assert solution[1].cross_fitted_error == predict(data, CHAIN).test_error[1]
    assert "cross_fitted_error" not in solution.to_dict()["stages"][0]
    curve = sweep(data, CHAIN, {"alpha": [2.0, 4.0], "teacher.ridge": [0.1, 1.0]}, ["cross_fitted_error", "test_error"])
    expected = predict(data.with_value("alpha", 2.0), [Estimator(CrossEntropy(), 1.0), CHAIN[1]]).test_error
    found = curve.cross_fitted_error.sel({"alpha": 2.0, "teacher.ridge": 1.0})
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with np.errstate(all="raise"):
        assert math.isnan(solve(GaussianMixture(4.0, inputs=POPULATION), CHAIN)[0].cross_fitted_error)


def test_optimize_takes_the_predicted_error() -> None:
    data, teacher = Measured(*drawn(400)).at(64), Estimator(CrossEntropy(), 1.0)
    best = optimize(data, teacher, {"teacher.ridge": (1e-2, 1e2)}, "teacher.cross_fitted_error")
    others = [
        predict(data, Estimator(CrossEntropy(), best.parameters["teacher.ridge"] * factor)).test_error[0]
        for factor in (0.8, 1.25)
    ]
    assert best.value < min(others)


def test_one_clear_line() -> None:
    data = Measured(*drawn(400))
    assert most_samples(data) == 288
    for n_samples, chain, words in (
        (
            289,
            CHAIN,
            "alpha must give training sets of at most 288 samples, 0.9 of those that a population is estimated from",
        ),
        (100, Estimator(CrossEntropy(), 0.0), "ridge of teacher must be > 0"),
    ):
        with pytest.raises(ParameterError, match=words):
            predict(data.at(n_samples), chain)
    with pytest.raises(ParameterError, match="data must be Measured"):
        predict(GaussianMixture(2.0, inputs=Spectrum([1.0, 2.0])), CHAIN)
