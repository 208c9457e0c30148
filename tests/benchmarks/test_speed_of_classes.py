"""Speed of the solver of many classes: cold, two stages, with the estimate of the error; seconds of the process."""

from __future__ import annotations

from time import process_time

import numpy as np
import pytest

from numerics import ClassMixture, Estimator, simplex_means, solve
from theory.losses import CrossEntropy, Distillation

CHAIN = [
    Estimator(CrossEntropy(), 0.1),
    Estimator(Distillation(0.8, 2.0, temperature_squared=True), 0.1, eta=0.7),
]


def unlike(classes: int) -> ClassMixture:
    """Classes of which no two are alike."""
    directions = np.random.default_rng(classes).standard_normal((classes, 3 * classes))
    weights = np.arange(classes, 2 * classes, dtype=float)
    return ClassMixture(
        3.0, weights / weights.sum(), directions @ directions.T / (3 * classes), np.linspace(0.4, 0.7, classes)
    )


NEARLY_SEPARATE = [Estimator(CrossEntropy(), 1e-3), Estimator(Distillation(0.7, 5.0), 1e-3, eta=0.7)]

CASES = {
    "classes 3": (unlike(3), CHAIN, 1e-7),
    "classes 3, small ridges": (unlike(3), NEARLY_SEPARATE, 1e-7),
    "classes 5": (unlike(5), CHAIN, 1e-4),
    "classes alike": (ClassMixture(3.0, gram=simplex_means(10), delta=0.5), CHAIN, 1e-4),
}


@pytest.mark.parametrize("name", CASES)
def test_two_stages_of_classes(benchmark, measured, name: str) -> None:
    data, chain, rtol = CASES[name]
    solve(data, chain, rtol=rtol, throw=True)  # compiles
    seconds = []

    def once() -> None:
        begin = process_time()
        solve(data, chain, rtol=rtol, throw=True)
        seconds.append(process_time() - begin)

    benchmark.pedantic(once, rounds=5)
    measured[name] = min(seconds)
