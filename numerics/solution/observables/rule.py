"""Labels of a linear rule: how far the weights are from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numerics.solution.observables.registry import observable, real_labels, rule_of_classes
from numerics.solution.samples import unit

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage


@observable(r"excess risk $\|w - \theta\|^2/N$", algebraic=True, of=real_labels)
def excess_risk(stage: AnyStage):
    """R = |w - theta|^2/N + b^2: mean of (h - theta.x/sqrt(N))^2 on a fresh sample, whatever the inputs."""
    return squared_bias(stage).value + variance(stage).value + stage.fresh.bias[..., -1] ** 2


@observable("mean squared error, test", algebraic=True, of=real_labels)
def mean_squared_error(stage: AnyStage):
    """Mean of (h - s)^2 on a fresh sample: R and the noise of the rule."""
    return excess_risk(stage).value + stage.fresh.data.field_noise


@observable("mean squared error, training", of=real_labels)
def train_mean_squared_error(stage: AnyStage):
    """Mean of (h - s)^2 on a training sample."""
    return stage.samples.mean(lambda label, apart: apart**2, [stage.own - unit(stage.number, 1)], degree=2)


@observable("$R^2$, test", algebraic=True, linear=True, of=real_labels)
def r_squared(stage: AnyStage):
    """Share of the variance of a fresh label that is explained: 1 - mean_squared_error/(S + noise), S that of theta.x/sqrt(N)."""
    return 1.0 - mean_squared_error(stage).value / (stage.fresh.signal + stage.fresh.data.field_noise)


@observable("squared bias $(1 - m)^2$", algebraic=True, of=real_labels)
def squared_bias(stage: AnyStage):
    """(S - m)^2/S, the part of R along the rule; of white inputs (S = 1) that which training sets have in common."""
    signal = stage.fresh.signal
    return (signal - stage.fresh.alignment(-1)) ** 2 / signal


@observable("variance $Q - m^2$", algebraic=True, of=real_labels)
def variance(stage: AnyStage):
    """Q - m^2/S, the part of R that the rule does not explain; of white inputs (S = 1) that in which training sets differ."""
    return stage.fresh.overlap[..., -1, -1] - stage.fresh.alignment(-1) ** 2 / stage.fresh.signal


@observable("test error against noisy labels", algebraic=True, linear=True, of=rule_of_classes)
def noisy_test_error(stage: AnyStage):
    """P(h on the wrong side of a label as the training set has them), on a fresh sample; ``test_error`` is against the rule."""
    data = stage.fresh.data
    wrong = stage.fresh.drawn_error(-1)
    return wrong + data.label_noise * (1.0 - 2.0 * wrong)
