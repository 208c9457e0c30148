"""Densities of training logits, narrow ones included, and moduli of what changes sign."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from numerics import Estimator, GaussianMixture, solve
from numerics.solution.crossings import peaks
from numerics.solution.quadrature import Budget, absolute
from theory.losses import CrossEntropy, Distillation, PseudoLabels

NOISY = GaussianMixture(4.0, 0.3, 1.0, 0.1)
TEACHER = Estimator(CrossEntropy(), 3.0)
CHAINS = {
    "one stage": [TEACHER],
    "wide": [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(0.6, 2.0), 0.1, 0.5)],
    "a copy of its teacher": [TEACHER, Estimator(Distillation(), 1e-4)],
    "narrow, of three": [TEACHER, Estimator(Distillation(), 0.1), Estimator(Distillation(), 0.2)],
    "wide, of three": [
        TEACHER,
        Estimator(Distillation(0.5), 0.5, 0.6),
        Estimator(Distillation(0.5, teacher=1), 0.5, 0.4),
    ],
    "decisions": [TEACHER, Estimator(PseudoLabels(0.7), 0.3, 0.8)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_densities_are_derivatives_of_probabilities(name: str) -> None:
    """``d/dx P(label h < x) = p(x, y=1) + p(-x, y=0)``; the fourth-order difference is good to 1e-8."""
    samples = solve(NOISY, CHAINS[name], throw=True)[-1].samples
    step = 1e-3
    for level in (-0.3, 0.5):
        around = {k: samples.probability(level + k * step).value for k in (-2, -1, 1, 2)}
        expected = (8.0 * (around[1] - around[-1]) - around[2] + around[-2]) / (12.0 * step)
        zero, one = samples.density(np.array([level, -level]))
        assert one[0] + zero[1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["a copy of its teacher", "narrow, of three", "wide, of three"])
def test_densities_add_up_to_one(name: str) -> None:
    """A trapezoid rule is exact for them once its step resolves them."""
    samples = solve(NOISY, CHAINS[name], throw=True)[-1].samples
    places, step = np.linspace(-8.0, 8.0, 161, retstep=True)
    zero, one = samples.density(places)
    assert step * one.sum() == pytest.approx(0.3 * 0.9 + 0.7 * 0.1, abs=1e-8)
    assert step * (zero + one).sum() == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("steepness", [0.5, 30.0, 1e6])
def test_peaks_of_linear_scores(count: int, steepness: float) -> None:
    """``E phi(a.g + c) = N(c; 0, 1 + |a|^2)``; the factor is proportional to 2 + g_1, whose mean given a.g + c = 0 is known."""
    slopes = steepness * np.array([1.0, -0.7, 0.4])[:count]
    shift = np.array([0.3, -1.1]) * steepness

    def score(group: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return g @ slopes + shift[group], steepness * (2.0 + g[:, 0])

    found, errors = peaks(score, 2, count, 1e-9)
    square = 1.0 + slopes @ slopes
    expected = steepness * norm.pdf(shift, scale=np.sqrt(square)) * (2.0 - slopes[0] * shift / square)
    np.testing.assert_allclose(found, expected, atol=3e-9)
    assert np.all(errors < 1e-8)


def test_modulus_of_what_changes_sign() -> None:
    calls = []

    def wave(x: np.ndarray) -> np.ndarray:
        calls.append(x.size)
        return np.sin(3.0 * x)

    # To pi/3, three half waves, and the rest from 4 pi/3 on.
    expected = (1.0 + np.cos(0.3)) / 3.0 + 3 * 2.0 / 3.0 + (1.0 - np.cos(15.0 - 4.0 * np.pi)) / 3.0
    assert absolute(wave, np.linspace(0.1, 5.0, 6), 1e-12, Budget()) == pytest.approx(expected, abs=1e-11)
    assert sum(calls) < 500  # kinks cost nothing
