"""The prior of clusters: theory's equations, the gradient of the potential, and coordinates in common."""

from __future__ import annotations

import numpy as np
import pytest

from numerics import Clusters, Estimator, LinearMap
from numerics.clusters.prior import APART, COMMON, Updated, WeightPrior
from theory.clusters import cluster_prior_equations
from theory.losses import CrossEntropy

SIZE, COUNT = 6, 3
STEP = 1e-5


def covariance_of(generator: np.random.Generator, size: int = SIZE) -> np.ndarray:
    factor = generator.normal(size=(size, 2 * size))
    return factor @ factor.T / (2 * size)


def clusters_of(generator: np.random.Generator, *, diagonal: bool) -> Clusters:
    covariances = [
        np.diag(generator.uniform(0.1, 2.0, SIZE)) if diagonal else covariance_of(generator) for _ in range(COUNT)
    ]
    means = generator.normal(size=(COUNT, SIZE))
    return Clusters(2.0, means, np.array(covariances), [1, -1, -1], [0.2, 0.3, 0.5])


def prior_of(data: Clusters, maps: list[LinearMap | None], common: bool | None = None) -> WeightPrior:
    """Of stages with given biases, so that means are what they are."""
    return WeightPrior.of(data, [Estimator(CrossEntropy(), 0.1, bias=0.0, features=seen) for seen in maps], common)


def conjugates_of(generator: np.random.Generator, t: int) -> np.ndarray:
    found = 0.5 * generator.normal(size=(COUNT, 2 * t + 3))
    found[:, 1 + t] = np.abs(found[:, 1 + t]) + 3.0
    found[:, -1] = np.abs(found[:, -1])
    return found


def grown(prior: WeightPrior, stages: int, generator: np.random.Generator) -> list[tuple[np.ndarray, Updated]]:
    """Stages at random conjugates."""
    found = []
    for t in range(stages):
        conjugates = conjugates_of(generator, t)
        found.append((conjugates, prior.update(0.3, conjugates)))
        prior.append(found[-1][1])
    return found


def differences(function: object, at: np.ndarray) -> np.ndarray:
    """Central differences by every entry, in the last axes."""
    columns = []
    for index in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[index] = STEP
        columns.append((np.asarray(function(at + step)) - np.asarray(function(at - step))) / (2.0 * STEP))
    return np.stack(columns, axis=-1).reshape(*columns[0].shape, *at.shape)


@pytest.mark.parametrize("case", ["inputs", "maps", "common"])
def test_equations_are_the_gradient_of_the_potential(case: str) -> None:
    """Component by component, at conjugates that are no saddle point; and the Jacobian is that of the equations."""
    generator = np.random.default_rng(1)
    data = clusters_of(generator, diagonal=case == "common")
    few, many = (LinearMap(generator.normal(size=(rows, SIZE))) for rows in (4, 9))
    prior = prior_of(data, [few, many, None] if case == "maps" else [None] * 3)
    assert prior.kind == (COMMON if case == "common" else APART)
    for t in range(3):
        conjugates = conjugates_of(generator, t)
        found = prior.update(0.3, conjugates)
        slopes = differences(lambda x: prior.update(0.3, x).order, conjugates)
        np.testing.assert_allclose(prior.slopes(found), slopes, atol=1e-7 * np.abs(slopes).max())
        gradient = differences(lambda x: prior.potential(0.3, x), conjugates)
        half = np.append(np.ones(t), 0.5)
        np.testing.assert_allclose(gradient[:, 0], found.order[:, 0], rtol=1e-7)
        np.testing.assert_allclose(gradient[:, 1 : t + 2], half * found.order[:, t + 2 :], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(gradient[:, t + 2 :], -half * found.order[:, 1 : t + 2], rtol=1e-6, atol=1e-9)
        prior.append(found)


def test_on_coordinates_in_common_the_equations_are_theorys() -> None:
    generator = np.random.default_rng(2)
    data = clusters_of(generator, diagonal=True)
    prior = prior_of(data, [None, None], common=False)
    # Moments of the weights of each coordinate, from stage to stage, as theory wants them.
    signed = np.sqrt(SIZE) * np.array(data.labels)[:, None] * data.means
    variances = np.array([np.diag(data.covariance(c)) for c in range(COUNT)])
    for t, (conjugates, found) in enumerate(grown(prior, 2, generator), start=1):
        equations = cluster_prior_equations(t, COUNT)
        total = np.zeros(len(equations.outputs))
        for i in range(SIZE):
            constants = [1.0 / SIZE, 0.3]
            for c in range(COUNT):
                constants += [signed[c, i], *[variances[c, i]] * t]
            if t == 2:
                mean, spread, response = (values[0][i] for values in (prior.mean, prior.covariance, prior.propagator))
                constants += [mean[0], mean[0] ** 2 + spread[i], response[i]]
            values = dict(
                zip((*equations.inputs, *equations.constants), (*conjugates.ravel(), *constants), strict=True)
            )
            total += [float(expression.subs(values)) for expression in equations.outputs.values()]
        np.testing.assert_allclose(found.order.ravel(), total, rtol=1e-10)


def test_a_basis_in_common_is_found_and_changes_nothing() -> None:
    generator = np.random.default_rng(3)
    data = clusters_of(generator, diagonal=True)
    turn = np.linalg.qr(generator.normal(size=(SIZE, SIZE)))[0]
    turned = Clusters(
        2.0, data.means @ turn.T, turn @ data.covariances @ turn.T, data.labels, data.weights
    )  # fmt: skip
    priors = [prior_of(turned, [None] * 2), prior_of(data, [None] * 2, common=False)]
    assert [prior.kind for prior in priors] == [COMMON, APART]
    found = [grown(prior, 2, np.random.default_rng(4)) for prior in priors]
    for (_, one), (_, other) in zip(*found, strict=True):
        np.testing.assert_allclose(one.order, other.order, rtol=1e-10)
    for t in range(2):
        for one, other in zip(priors[0].law(t, 1), priors[1].law(t, 1), strict=True):
            np.testing.assert_allclose(turn.T @ one if one.ndim == 1 else turn.T @ one @ turn, other, atol=1e-12)
    np.testing.assert_allclose(priors[0].squares(), priors[1].squares(), rtol=1e-12)
