"""Losses of one stage: its own, and the cross-entropy of its outputs with the labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from numerics.solution.observables.registry import observable, signs
from theory.losses import CrossEntropy, Loss
from theory.rules import after_rule

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage


@observable("test loss")
def test_loss(stage: AnyStage):
    """Mean of this stage's own loss on a fresh sample; NaN for given weights."""
    return stage.fresh.loss(stage.estimator.loss) if stage.trained else math.nan


@observable("training loss")
def train_loss(stage: AnyStage):
    """Mean of this stage's own loss on a training sample; NaN for given weights."""
    return stage.samples.loss(stage.estimator.loss) if stage.trained else math.nan


@observable("test minus training loss", linear=True)
def loss_gap(stage: AnyStage):
    """Test loss minus training loss."""
    return test_loss(stage) - train_loss(stage)


def cross_entropy(stage: AnyStage) -> Loss:
    """H(y, sigmoid(h)), where a rule gives the label as a function of its logit."""
    return after_rule(CrossEntropy(), real=False) if stage.data.ruled else CrossEntropy()


@observable("test cross-entropy", of=signs)
def test_cross_entropy(stage: AnyStage):
    """Mean of H(y, sigmoid(h)) on a fresh sample."""
    return stage.fresh.loss(cross_entropy(stage))


@observable("training cross-entropy", of=signs)
def train_cross_entropy(stage: AnyStage):
    """Mean of H(y, sigmoid(h)) on a training sample."""
    return stage.samples.loss(cross_entropy(stage))


@observable(r"training objective per input, $-\Phi$")
def free_energy(stage: AnyStage):
    """-Phi = alpha E[l] + (ridge/2) Q, the minimised training objective per input: theory's from the potential, a simulation's
    from its samples; NaN if nothing is minimised."""
    return stage.objective if stage.trained else math.nan
