"""Biases that are best for decisions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from numerics import (
    ClassMixture,
    ClassSet,
    Estimator,
    GaussianMixture,
    ParameterError,
    best_bias,
    orthogonal_means,
    similar_pairs,
    simplex_means,
    solve,
)
from theory.losses import CrossEntropy, Distillation

TEACHER = Estimator(CrossEntropy(), 0.1)


def missing(temperature: float) -> ClassMixture:
    return ClassMixture(
        4.0, gram=orthogonal_means(3), delta=0.25, further=[ClassSet("transfer", 2.0, weights=[0.5, 0.5, 0.0])]
    )


def test_a_missing_class_is_known_from_its_teachers_doubts() -> None:
    student = Estimator(Distillation(temperature=5.0), 0.1, sets="transfer")
    stage = solve(missing(5.0), [TEACHER, student])[1]
    assert stage.class_errors[2] > 0.99
    found = best_bias(stage)
    assert found.shift.sum() == pytest.approx(0.0, abs=1e-12)
    assert found.shift[0] == pytest.approx(found.shift[1], abs=1e-4)
    assert found.class_errors[2] < 0.3
    assert found.test_error == pytest.approx(found.class_errors.mean(), rel=1e-12)


def test_nothing_is_better() -> None:
    """Against a grid of shifts, whose errors are counted in logits that are drawn."""
    data = ClassMixture(2.0, [0.6, 0.3, 0.1], similar_pairs(3, 0.5), test_weights=[0.2, 0.3, 0.5])
    stage = solve(data, TEACHER)[0]
    found = best_bias(stage)
    generator = np.random.default_rng(1)
    overlap, means = stage.solution.overlap[0, 0], stage.fresh.means[0]
    values, vectors = np.linalg.eigh(overlap)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    noise = generator.standard_normal((100_000, 3)) @ root.T

    def error(shift: np.ndarray) -> float:
        return sum(data.test_weights[c] * np.mean(np.argmax(means[c] + noise + shift, axis=1) != c) for c in range(3))

    assert error(found.shift) == pytest.approx(found.test_error, abs=4e-3)
    assert error(np.zeros(3)) == pytest.approx(stage.test_error, abs=4e-3)
    assert found.test_error < stage.test_error - 0.05
    for _ in range(40):
        assert error(found.shift + generator.normal(0.0, 0.3, 3)) > found.test_error - 3e-3


def test_nothing_to_correct_for_classes_that_are_alike() -> None:
    stage = solve(ClassMixture(2.0, gram=simplex_means(3)), TEACHER)[0]
    found = best_bias(stage)
    np.testing.assert_allclose(found.shift, 0.0, atol=2e-3)  # an error of order shift^2
    assert found.test_error == pytest.approx(stage.test_error, abs=1e-8)


def test_two_classes_have_the_threshold_of_the_binary_solver() -> None:
    """Where the bias of unequal classes is the best one, m and Q alone decide."""
    weights = [0.2, 0.8]
    binary = solve(GaussianMixture(2.0, 0.2), Estimator(CrossEntropy(), 0.1))[0]
    stage = solve(ClassMixture(2.0, weights, [[1, -1], [-1, 1]]), Estimator(CrossEntropy(), 0.2))[0]
    assert stage.test_error == pytest.approx(binary.test_error, abs=1e-8)
    m, width = binary.magnetization, binary.norm

    def error(b: float) -> float:
        return 0.2 * ndtr(-(m + b) / width) + 0.8 * ndtr(-(m - b) / width)

    assert best_bias(stage).test_error == pytest.approx(minimize_scalar(error).fun, abs=1e-8)


def test_what_it_takes() -> None:
    with pytest.raises(ParameterError, match="ClassMixture"):
        best_bias(solve(GaussianMixture(2.0, 0.2), Estimator(CrossEntropy(), 0.1))[0])
