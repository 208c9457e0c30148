"""Real fits: what is drawn, trained and tested."""

from __future__ import annotations

import math

import numpy as np
import pytest

from numerics import Dense, Estimator, GaussianMixture, LinearMap, Measured, ParameterError
from numerics.predict import measure
from numerics.predict.fits import OF_GAUSSIANS, stratified_choice
from numerics.solution.observables import OBSERVABLES
from theory.losses import CrossEntropy, Distillation

N_SAMPLES, SIZE = 120, 5
GENERATOR = np.random.default_rng(0)
Y = (np.arange(300) % 3 == 0).astype(int)
X = GENERATOR.standard_normal((300, SIZE)) + 0.8 * Y[:, None] + 2.0
DATA = Measured(X, Y).at(N_SAMPLES)
SOME = LinearMap(np.eye(SIZE)[[0, 3]])
CHAIN = [Estimator(CrossEntropy(), 0.2), Estimator(Distillation(0.8, 2.0), 0.1, features=SOME)]


def test_subsamples_are_stratified() -> None:
    signs = np.where(Y == 1, 1.0, -1.0)
    for size, upper in ((120, 40), (2, 1), (3, 1), (298, 99)):
        rows = stratified_choice(signs, size, np.random.default_rng(1))
        assert len(set(rows)) == size
        assert (signs[rows] > 0).sum() == upper


def test_a_fit_is_that_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    runs = measure(X, Y, DATA, CHAIN[0], n_runs=2, seed=5)
    errors = []
    for k in range(2):
        generator = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(k,)))
        rows = stratified_choice(DATA.samples.y, N_SAMPLES, generator)
        rest = np.setdiff1d(np.arange(len(Y)), rows)
        fit = linear.LogisticRegression(C=1.0 / (0.2 * SIZE), tol=1e-10, max_iter=10000).fit(X[rows], Y[rows])
        errors.append(1.0 - fit.score(X[rest], Y[rest]))
        norm = math.sqrt(SIZE) * np.linalg.norm(fit.coef_) / math.sqrt(SIZE)
        assert runs[0].norm.values[k] == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(runs[0].test_error.values, errors)


def test_all_that_simulations_measure_is_measured() -> None:
    runs = measure(X, Y, DATA, CHAIN, n_runs=4)
    assert runs.converged
    assert (runs.n_samples, runs.n_inputs, runs.active) == (N_SAMPLES, SIZE, (5, 2))
    assert (runs.effective_data, runs.effective_chain.stages) == (DATA, tuple(CHAIN))
    student = runs[1]
    for name in OBSERVABLES:
        if name in dir(student) and name not in OF_GAUSSIANS and name != "excess_risk":
            assert np.isnan(getattr(student, name).mean) == (name in {
                "mean_squared_error", "train_mean_squared_error", "r_squared", "squared_bias", "variance", "noisy_test_error",
            }), name  # fmt: skip
    right, wrong = student.teacher_right_wrong.mean, student.teacher_wrong_right.mean
    assert student.test_error.mean == pytest.approx(runs[0].test_error.mean + right - wrong)
    assert student.teacher_agreement.mean == pytest.approx(1.0 - right - wrong)
    assert student.direction_error.mean <= student.test_error.mean
    assert math.isnan(student.calibration_slope.mean)


def test_runs_do_not_depend_on_threads_or_on_where_the_midpoint_is() -> None:
    one, other = (measure(X, Y, DATA, CHAIN, n_runs=3, n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.runs["test_error"], other.runs["test_error"])
    mixture = GaussianMixture(N_SAMPLES / SIZE, DATA.rho, inputs=Dense(DATA.inputs.covariance, DATA.inputs.direction))
    again = measure(X + 100.0, Y, mixture, CHAIN, n_runs=3)
    np.testing.assert_allclose(again.runs["test_error"], one.runs["test_error"])
    np.testing.assert_allclose(again.runs["norm"], one.runs["norm"], rtol=1e-6)


def test_one_clear_line() -> None:
    for data, words in (
        (GaussianMixture(2.0), "data must be Measured, or a mixture of Dense inputs with a direction"),
        (GaussianMixture(2.0, inputs=Dense(np.eye(4), np.ones(4))), "X must have as many columns as data, 4, got 5"),
        (DATA.at(299), "alpha must give 2 to 298 samples of 300, got 299"),
    ):
        with pytest.raises(ParameterError, match=words):
            measure(X, Y, data, CHAIN)
