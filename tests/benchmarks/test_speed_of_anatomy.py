"""Speed of an anatomy.  Ordinary runs skip this; ``pytest tests/benchmarks --benchmark-only -m ""`` runs it."""

from __future__ import annotations

from itertools import count

from numerics import Estimator, GaussianMixture
from numerics.anatomy import anatomy
from theory.losses import CrossEntropy, Distillation

CHAIN = [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(), 0.1)]
NUMBERS = count()


def test_anatomy_without_best_ridges(benchmark, measured) -> None:
    """All students and the means of the weights, each time of another problem: solved ones are kept."""

    def fresh():
        found = anatomy(GaussianMixture(3.0 + 0.01 * next(NUMBERS), 0.3, 1.0, 0.1), CHAIN)
        return found.gains, found.weights.mean

    fresh()
    benchmark.pedantic(fresh, rounds=10)
    measured["anatomy"] = benchmark.stats.stats.min
    assert measured["anatomy"] < 0.5
