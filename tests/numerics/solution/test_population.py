"""Averages over fresh samples, against nodes of the theory, against quadrature of SciPy, and where nodes would be too coarse."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import special
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import multivariate_normal

from numerics import Estimator, GaussianMixture, Hebbian, solve
from numerics.codegen.losses import LossFunctions
from numerics.solution.gaussian import gaussian_mean, nested_mean
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels

DATA = GaussianMixture(0.8, 0.2, 1.0)


@pytest.mark.parametrize(
    "chain",
    [
        [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(0.6, 2.0), 1e-3, eta=0.5)],
        [Estimator(CrossEntropy(0.1), 0.1), Estimator(Loss.from_expression("sqrt(1 + (h - h_teacher)**2)"), 0.1, eta=0.7)],
        [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(), 0.1), Estimator(Distillation(1.0, 1.5, teacher=(1, 2)), 0.2)],
    ],
    ids=["split", "two variables", "two teachers"],
)  # fmt: skip
def test_agree_with_nodes(chain: list[Estimator]) -> None:
    """Nodes of the joint law of all fields on fresh samples, which know nothing of the closed Gaussian law of the logits."""
    solution = solve(DATA, chain, throw=True)
    for number, stage in enumerate(solution.stages, start=1):
        nodes = solution.nodes(number, training=False)
        h, loss = np.ascontiguousarray(nodes.logits[:, -1]), stage.estimator.loss
        values = LossFunctions(loss).value(h, nodes.labels, nodes.seen(loss.stages(number)))
        assert stage.test_loss == pytest.approx(nodes.mean(values), rel=1e-8)
        cross_entropy = np.logaddexp(0.0, h) - nodes.labels * h
        assert stage.test_cross_entropy == pytest.approx(nodes.mean(cross_entropy), rel=1e-8)
        if number > 1:
            teachers = [k - 1 for k in solution.chain.teachers(number)]
            distance = (expit(h) - expit(nodes.logits[:, teachers].mean(axis=1))) ** 2
            assert stage.test_output_distance == pytest.approx(nodes.mean(distance), rel=1e-8)


@pytest.mark.parametrize("ridge", [0.002, 0.02, 1.0])
def test_steep_stage_after_another(ridge: float) -> None:
    """Weights so long that the loss bends within a small part of the field, most of which is the teacher's."""
    data = GaussianMixture(1.0, 0.3, 0.2)
    stage = solve(data, [Estimator(CrossEntropy(), 1.4), Hebbian(ridge)], throw=True)[1]
    width = math.sqrt(data.delta) * stage.norm
    exact = 0.0
    for sign, probability in ((1, data.rho), (-1, 1 - data.rho)):
        mean = sign * stage.magnetization + stage.bias

        def integrand(g: float, mean: float = mean, label: float = (1 + sign) / 2) -> float:
            h = mean + width * g
            return (np.logaddexp(0.0, h) - label * h) * math.exp(-g * g / 2) / math.sqrt(2 * math.pi)

        bend = -mean / width
        ends = sorted({-9.0, 9.0, *(float(np.clip(bend + k / width, -9, 9)) for k in (-30, -5, 0, 5, 30))})
        exact += probability * sum(quad(integrand, a, b, epsabs=1e-13)[0] for a, b in itertools.pairwise(ends))
    assert stage.test_cross_entropy == pytest.approx(exact, rel=1e-9)


def test_long_weights_need_no_memory() -> None:
    """Three stages with weights of norm 20: a product of nodes that follows their outputs has billions of them.

    Rounding leaves 2e-9 to 2e-8, as the last digits of alpha have it.
    """
    chain = [
        Estimator(CrossEntropy(), 1e-8),
        *(Estimator(PseudoLabels(1.0, square=True), ridge) for ridge in (5e-8, 1e-7)),
    ]
    stage = solve(GaussianMixture(1.0, 0.1, 0.23), chain, rtol=1e-7, throw=True)[2]
    assert 0.0 < stage.test_output_distance < 1.0
    assert stage.test_cross_entropy > math.log(2) * stage.test_error
    assert math.isfinite(stage.test_loss)


@pytest.mark.parametrize("rho", [0.808, 0.192])
def test_training_error_of_two_equal_stages(rho: float) -> None:
    """The second one's own field has no width: its training error is a step of the first one's field."""
    stage = Estimator(CrossEntropy(), 1.0)
    first, second = solve(GaussianMixture(0.885, rho, 0.885, label_noise=0.111), [stage, stage])
    assert second.train_error == pytest.approx(first.train_error, rel=1e-9)
    assert second.clean_train_error == pytest.approx(first.clean_train_error, rel=1e-9)


def test_very_wide_logits_are_averaged_on_panels_that_grow() -> None:
    """Steps of the outputs' own scale over fields 1e5 wide would be 1e11 nodes; at 60, both rules can be compared."""

    def apart(points: np.ndarray) -> np.ndarray:
        return (special.expit(points[0]) - special.expit(points[1])) ** 2

    mean, covariance = np.array([20.0, -5.0]), np.array([[3600.0, 900.0], [900.0, 2500.0]])
    steps, _ = gaussian_mean(apart, mean, covariance, rtol=1e-11)
    growing, error = nested_mean(apart, mean, covariance, (), 1e-10, 0.0)
    assert growing == pytest.approx(steps, rel=1e-9)
    assert error < 1e-8
    wide, _ = gaussian_mean(apart, 1e4 * mean, 1e8 * covariance)
    # Outputs are 0 or 1: the probability of different signs.
    same = multivariate_normal(mean, covariance).cdf([0, 0]) + multivariate_normal(-mean, covariance).cdf([0, 0])
    assert wide == pytest.approx(1 - same, abs=1e-5)
