"""The law of the weights of dense inputs: its moments are the order parameters, and experiments draw from it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from numerics import Dense, Estimator, GaussianMixture, LinearMap, ParameterError, simulate, solve
from numerics.solution.weight_law import law_of_weights, logits_on
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

SIZE = 12
HALF = LinearMap(np.eye(SIZE)[::2])


def inputs_of(size: int, seed: int = 0) -> Dense:
    generator = np.random.default_rng(seed)
    factor = generator.standard_normal((size, 2 * size))
    return Dense(factor @ factor.T / (2 * size), generator.standard_normal(size))


def chain_of(maps: tuple[LinearMap | None, ...], square: bool = False) -> list[Estimator]:
    first, later = (SquareLoss(), SquareDistillation(0.6)) if square else (CrossEntropy(), Distillation(0.7, 2.0))
    ridges = (0.1, 0.05, 0.02)
    return [Estimator(later if t else first, ridges[t], features=seen) for t, seen in enumerate(maps)]


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("maps", ["same", "half", "mixed"])
def test_moments_of_the_law_are_the_order_parameters(maps: str, square: bool) -> None:
    wide = LinearMap(np.random.default_rng(1).standard_normal((SIZE + 5, SIZE)))
    seen = {"same": (None, None, None), "half": (None, HALF, HALF), "mixed": (wide, HALF, None)}[maps]
    inputs = inputs_of(SIZE)
    solution = solve(GaussianMixture(2.0, 0.3, 0.6, inputs=inputs), chain_of(seen, square))
    fresh = np.random.default_rng(2).standard_normal((4, SIZE))
    for t in range(3):
        mean, covariance = law_of_weights(solution, t)
        magnetization = mean @ inputs.direction / SIZE
        overlap = (mean @ inputs.covariance @ mean + np.trace(inputs.covariance @ covariance)) / SIZE
        assert magnetization == pytest.approx(solution.magnetization[t], rel=1e-8)
        assert overlap == pytest.approx(solution.overlap[t, t], rel=1e-8)
        assert np.linalg.eigvalsh(covariance).min() > -1e-12
        if seen[t] is HALF:
            assert not mean[1::2].any()
            assert not covariance[1::2].any()
        logits = logits_on(solution, t, fresh)
        np.testing.assert_allclose(logits.mean, fresh @ mean / math.sqrt(SIZE) + solution.bias[t], rtol=1e-10)
        np.testing.assert_allclose(
            logits.variance, np.einsum("ij,jk,ik->i", fresh, covariance, fresh) / SIZE, rtol=1e-10
        )


@pytest.mark.parametrize("alpha", [0.3, 2.5])
def test_the_law_without_ridge_is_that_of_small_ridges(alpha: float) -> None:
    """Minimum norm, and maximum likelihood: moments are the order parameters, and those of a small ridge come close."""
    wide = LinearMap(np.random.default_rng(1).standard_normal((SIZE + 5, SIZE)))
    data, near = GaussianMixture(alpha, 0.3, 0.6, inputs=inputs_of(SIZE)), []
    chain = chain_of((wide, HALF, wide))
    for ridge in (0.0, 1e-5, 1e-6):
        solution = solve(data, [chain[0], *(replace(stage, ridge=ridge) for stage in chain[1:])])
        for t in (1, 2):
            mean, covariance = law_of_weights(solution, t)
            inputs = data.inputs
            overlap = (mean @ inputs.covariance @ mean + np.trace(inputs.covariance @ covariance)) / SIZE
            assert mean @ inputs.direction / SIZE == pytest.approx(solution.magnetization[t], rel=1e-8)
            assert overlap == pytest.approx(solution.overlap[t, t], rel=1e-8)
        near.append(np.append(mean, covariance))
    assert np.abs(near[2] - near[0]).max() < 0.12 * np.abs(near[1] - near[0]).max()
    assert np.abs(near[1] - near[0]).max() < 0.05 * np.abs(near[0]).max()
    separable = solve(data if alpha < 1 else replace(data, alpha=0.3), replace(chain[0], ridge=0.0))
    with pytest.raises(ParameterError, match="stage must have finite weights"):
        law_of_weights(separable, 0)


@pytest.mark.parametrize("copies", [20, 40])
def test_trained_weights_are_drawn_from_the_law(copies: int) -> None:
    """Weights of each copy of the inputs are a draw: their mean and their covariance, in standard errors of 24 runs."""
    data = GaussianMixture(3.0, 0.4, inputs=inputs_of(SIZE))
    chain = chain_of((None, HALF))
    maps = (np.eye(SIZE), HALF.matrix)

    def weights(stages) -> dict[str, np.ndarray]:
        means, squares = [], []
        for stage, seen in zip(stages, maps, strict=True):
            drawn = stage.fit.all_weights.reshape(copies, -1) @ seen
            means.append(drawn.mean(axis=0))
            squares.append(drawn.T @ drawn / copies)
        return {"weight_means": np.array(means), "weight_squares": np.array(squares)}

    runs = simulate(data, chain, n_inputs=copies * SIZE, n_runs=24, seed=3, further=weights)
    solution = solve(data, chain)
    scores = []
    for t in range(2):
        mean, covariance = law_of_weights(solution, t)
        expected = {"weight_means": mean, "weight_squares": covariance + np.outer(mean, mean)}
        for name, values in expected.items():
            apart, error = runs.mean(name)[t] - values, runs.standard_error(name)[t]
            scores.append((apart[error > 1e-12] / error[error > 1e-12]).ravel())
    scores = np.concatenate(scores)
    assert np.sqrt(np.mean(scores**2)) < 1.6
    assert np.abs(scores).max() < 5.0


def test_one_clear_line_where_there_is_no_law() -> None:
    white = solve(GaussianMixture(2.0), Estimator(CrossEntropy(), 0.1))
    with pytest.raises(ParameterError, match="data must be a mixture of Dense inputs with a direction"):
        law_of_weights(white, 0)
    dense = solve(GaussianMixture(2.0, inputs=inputs_of(4)), Estimator(CrossEntropy(), 0.1))
    with pytest.raises(ParameterError, match="stage must be one that is solved, from 0 to 0, got 1"):
        law_of_weights(dense, 1)
