"""Predictions for K classes: theory's on Gaussian ones, real fits beside them, and how far off they are on digits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from numerics import ClassMixture, Estimator, ParameterError, SharedCovariance, solve
from numerics.predict.classes import measure_classes, predict_classes
from theory.losses import CrossEntropy, Distillation

SIZE, CLASSES = 8, 3
CHAIN = [Estimator(CrossEntropy(), 0.5), Estimator(Distillation(temperature=2.0), 0.2)]
MEANS = 1.3 * np.eye(CLASSES, SIZE)


MIXING = np.eye(SIZE) + 0.4 * np.random.default_rng(7).standard_normal((SIZE, SIZE))


def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes of unequal weight whose covariance is not white."""
    generator = np.random.default_rng(0)
    y = np.arange(n) % 4 % CLASSES  # class 0 is half of all
    return (MEANS[y] + generator.standard_normal((n, SIZE))) @ MIXING + 2.0, np.array(["a", "b", "c"])[y]


def test_on_many_gaussian_samples_it_is_theory() -> None:
    n = 20000
    found = predict_classes(*drawn(n), CHAIN, 80, folds=2)
    inputs = SharedCovariance.of(MIXING.T @ MIXING, (MEANS - MEANS.mean(axis=0)) @ MIXING)
    exact = solve(ClassMixture(80 / SIZE, weights=(0.5, 0.25, 0.25), inputs=inputs), CHAIN)
    assert found.converged
    for t in range(2):
        error = exact[t].test_error
        for values in (found.test_error, found.gaussian_error):
            assert abs(values[t] - error) < 3.0 * math.sqrt(error * (1 - error) / n)
        np.testing.assert_allclose(found.class_errors[t], exact[t].class_errors, atol=0.03)


def test_real_fits_agree() -> None:
    X, y = drawn(3000)
    found, fits = predict_classes(X, y, CHAIN, 80, folds=3), measure_classes(X, y, CHAIN, 80, n_runs=24)
    for predicted, fitted in zip(found.test_error, fits, strict=True):
        assert fitted.n == 24
        assert abs(predicted - fitted.mean) < 3.0 * fitted.standard_error + 0.03 * predicted  # 1/N, as in simulations


def test_one_clear_line() -> None:
    X, y = drawn(120)
    for arguments, words in (
        ((X, y, CHAIN, 90), "n_samples must be at most 86"),
        ((X, np.zeros(120), CHAIN, 40), "y must have two classes or more, with 2 samples each, got 1"),
        ((np.eye(CLASSES)[np.unique(y, return_inverse=True)[1]], y, CHAIN, 40), "X must vary within the classes"),
        ((X, y[1:], CHAIN, 40), "y must have as many labels as X has rows"),
        ((X, y, Estimator(CrossEntropy(), 0.0), 40), "ridge of teacher must be > 0"),
    ):
        with pytest.raises(ParameterError, match=words):
            predict_classes(*arguments)
    with pytest.raises(ParameterError, match="n_samples must leave some of the 120 samples"):
        measure_classes(X, y, CHAIN, 120)


def test_a_column_twice_is_one_of_larger_weight() -> None:
    """Directions in which nothing varies do no harm: the same columns once, times sqrt(2), are the same problem."""
    X, y = drawn(600)
    twice = np.hstack([X, X[:, :1]])
    once = np.hstack([np.sqrt(2.0) * X[:, :1], X[:, 1:]])
    scale = np.sqrt((SIZE + 1) / SIZE)  # inputs are over sqrt(p)
    found = predict_classes(scale * twice, y, CHAIN, 80, folds=2)
    expected = predict_classes(once, y, CHAIN, 80, folds=2)
    np.testing.assert_allclose(found.gaussian_error, expected.gaussian_error, atol=2e-3)
    np.testing.assert_allclose(found.test_error, expected.test_error, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("n_samples", [100, 400])
def test_ten_digits(n_samples: int) -> None:
    """Cross-fitted within 25% of real fits, on the safe side; the Gaussian formula is too small."""
    pixels, digit = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    pixels = pixels[:, (pixels > 0).sum(axis=0) >= 20] / pixels.std()  # others vary in hardly any fold
    chain = [Estimator(CrossEntropy(), 1.0), Estimator(Distillation(temperature=2.0), 1.0)]
    found, fits = predict_classes(pixels, digit, chain, n_samples), measure_classes(pixels, digit, chain, n_samples)
    for predicted, gaussian, fitted in zip(found.test_error, found.gaussian_error, fits, strict=True):
        assert -2.0 * fitted.standard_error < predicted - fitted.mean < 0.25 * fitted.mean
        assert gaussian < 0.8 * fitted.mean
