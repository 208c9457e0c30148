"""Speed of a simulation against scikit-learn.  Ordinary runs skip this."""

from __future__ import annotations

import warnings
from time import perf_counter

import numpy as np
import pytest
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from numerics import Chain, Estimator, GaussianMixture
from numerics.simulation.draw import Sample, draw
from numerics.simulation.train import train
from theory.losses import CrossEntropy, Distillation

N = 2000
RIDGE = 0.1
DATA = GaussianMixture(3.0, 0.2, 1.0)
TEACHER = Chain.of(Estimator(CrossEntropy(), RIDGE))
BOTH = Chain.of([Estimator(CrossEntropy(), RIDGE), Estimator(Distillation(), RIDGE, eta=1.0)])
GRADIENT_TOLERANCE = 1e-8
SOLVERS = ("lbfgs", "newton-cg", "newton-cholesky")
SCIKIT_TOLERANCES = tuple(10.0**-k for k in range(2, 13))


@pytest.fixture(scope="module")
def sample() -> Sample:
    return draw(DATA, N, np.random.SeedSequence(0))


def gradient_norm(sample: Sample, weights: np.ndarray, bias: float) -> float:
    """Norm of the gradient over weights and bias together."""
    slopes = expit(sample.design @ weights + bias) - sample.labels
    return float(np.linalg.norm(np.append(sample.design.T @ slopes + RIDGE * weights, slopes.sum())))


def scikit_fit(sample: Sample, solver: str, tolerance: float) -> tuple[float, float]:
    """Seconds, and norm of the gradient reached."""
    model = LogisticRegression(C=1 / RIDGE, solver=solver, tol=tolerance, max_iter=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = perf_counter()
        model.fit(sample.design, sample.labels)
        seconds = perf_counter() - begin
    return seconds, gradient_norm(sample, model.coef_[0], float(model.intercept_[0]))


def test_fit_of_hard_labels(benchmark, measured, sample) -> None:
    with threadpool_limits(1):
        (fit,) = benchmark.pedantic(train, (sample, TEACHER, [N], GRADIENT_TOLERANCE), rounds=3, warmup_rounds=1)
    measured["fit"] = benchmark.stats.stats.min
    benchmark.extra_info["gradient_norm"] = fit.gradient_norm


def test_scikit_learn(benchmark, measured, sample) -> None:
    """Each solver at the loosest of its tolerances that reaches our gradient norm; the fastest counts."""
    with threadpool_limits(1):
        (fit,) = train(sample, TEACHER, [N], GRADIENT_TOLERANCE)
        times = {}
        for solver in SOLVERS:
            for tolerance in SCIKIT_TOLERANCES:
                seconds, norm = scikit_fit(sample, solver, tolerance)
                if norm <= fit.gradient_norm:
                    times[solver] = min(seconds, scikit_fit(sample, solver, tolerance)[0])
                    break
        assert times, "no solver of scikit-learn reaches this gradient norm"
        best = min(times, key=times.get)
        benchmark.extra_info |= times
        benchmark.pedantic(scikit_fit, (sample, best, tolerance), rounds=1)
    measured["scikit-learn"] = times[best]


def test_fit_of_soft_labels(benchmark, measured, sample) -> None:
    """Teacher and student together, less the teacher."""
    with threadpool_limits(1):
        begin = perf_counter()
        train(sample, TEACHER, [N], GRADIENT_TOLERANCE)
        teacher = perf_counter() - begin
        benchmark.pedantic(train, (sample, BOTH, [N, N], GRADIENT_TOLERANCE), rounds=2)
    measured["soft"] = benchmark.stats.stats.min - teacher
