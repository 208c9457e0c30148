"""Losses of K classes: slopes and curvatures against differences, K = 2 against the binary losses, partial targets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from numerics import ParameterError
from numerics.classes.losses import ClassLoss
from numerics.codegen.losses import LossFunctions
from theory.losses import (
    CrossEntropy,
    Distillation,
    LinearLoss,
    LogitMatching,
    Loss,
    PseudoLabels,
    SquareDistillation,
    SquareLoss,
)

LOSSES: list[Loss] = [
    CrossEntropy(),
    CrossEntropy(0.1),
    SquareLoss(),
    Distillation(),
    Distillation(0.3, 2.5, smoothing=0.05),
    Distillation(0.6, 3.0, temperature_squared=True),
    SquareDistillation(0.4, 1.3),
    LogitMatching(0.7, 0.2),
    PseudoLabels(0.6),
    PseudoLabels(0.6, square=True),
]
PARTIAL = ("true", "similarity", "true+similarity", "top-1", "top-2", "above-0.2")


def samples(k: int, n: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return 2 * generator.standard_normal((n, k)), generator.integers(0, k, n), 2 * generator.standard_normal((n, 1, k))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("k", [3, 5])
def test_slope_and_curvature_are_derivatives(loss: Loss, k: int) -> None:
    found, (h, labels, taught) = ClassLoss(loss, k), samples(k)
    h -= h.mean(axis=1, keepdims=True)
    c = found.targets(labels, taught)
    step = 1e-5
    for direction in np.eye(k) - 1.0 / k:  # of the gauge: squares are meant there
        difference = (found.value(h + step * direction, c, taught) - found.value(h - step * direction, c, taught)) / (
            2 * step
        )
        assert difference == pytest.approx((found.slope(h) - c) @ direction, abs=1e-8)
        turned = (found.slope(h + step * direction) - found.slope(h - step * direction)) / (2 * step)
        assert turned == pytest.approx(found.curvature(h) @ direction, abs=1e-8)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_two_classes_are_the_binary_loss(loss: Loss) -> None:
    """Class 0 is y = 1; h is the difference of the logits.  The square loss is half the binary one, as is said of it."""
    h, labels, taught = samples(2)
    if type(loss) is LogitMatching or "Square" in loss.name:
        taught -= taught.mean(axis=2, keepdims=True)
    h -= h.mean(axis=1, keepdims=True)
    found = ClassLoss(loss, 2)
    value = found.value(h, found.targets(labels, taught), taught)
    y = 1.0 - labels
    binary = LossFunctions(loss).value(
        h[:, 0] - h[:, 1], y, (taught[..., 0] - taught[..., 1]) if loss.logits else np.empty((20, 0))
    )
    assert value == pytest.approx(binary / (2.0 if isinstance(loss, SquareLoss) else 1.0), abs=1e-12)


def test_hot_targets_are_logit_matching() -> None:
    """T^2 cross-entropy has the slope of logit matching with gain 1/K, up to O(1/T) (Hinton, Vinyals & Dean 2015)."""
    h, labels, taught = samples(4)
    h, taught = h - h.mean(axis=1, keepdims=True), taught - taught.mean(axis=2, keepdims=True)
    matched = ClassLoss(LogitMatching(gain=0.25), 4)
    expected = matched.slope(h) - matched.targets(labels, taught)
    for t in (1e2, 1e3):
        hot = ClassLoss(Distillation(temperature=t, temperature_squared=True), 4)
        assert np.abs(hot.slope(h) - hot.targets(labels, taught) - expected).max() < 10 / t


@pytest.mark.parametrize("target", PARTIAL)
def test_partial_targets_are_probabilities(target: str) -> None:
    _, labels, taught = samples(4)
    loss = ClassLoss(Distillation(temperature=2.0, target=target), 4)
    table = loss.similarity(labels, taught)
    c = loss.targets(labels, taught, table) * 2.0
    p, mine = softmax(taught[:, 0] / 2.0, axis=1), np.arange(len(labels))
    assert c.sum(axis=1) == pytest.approx(1.0)
    assert table.sum(axis=1) == pytest.approx(1.0)
    if "true" in target:
        assert c[mine, labels] == pytest.approx(p[mine, labels])
    if target == "top-2":
        assert np.sort(c)[:, -2:] == pytest.approx(np.sort(p)[:, -2:])
        assert np.sort(c)[:, 0] == pytest.approx(np.sort(c)[:, 1])
    if target == "above-0.2":
        assert c[p >= 0.2] == pytest.approx(p[p >= 0.2])
    if target == "similarity":
        assert c == pytest.approx(np.array([p[labels == y].mean(axis=0) for y in range(4)])[labels])
    if target == "true+similarity":
        for i, y in enumerate(labels):
            rest = np.delete(c[i], y) / np.delete(table[y], y)
            assert rest == pytest.approx(rest[0])


@pytest.mark.parametrize("target", ["top-0", "top-1.5", "above-2", "all", 3])
def test_unknown_targets(target: object) -> None:
    with pytest.raises(ValueError, match="target must be one of"):
        Distillation(target=target)


def test_losses_of_two_classes_alone() -> None:
    for loss in (LinearLoss(), Loss.from_expression("softplus(-s*h)")):
        with pytest.raises(ParameterError, match="no form for more"):
            ClassLoss(loss, 3)
