"""Samples on the wrong side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numerics.solution.observables.registry import observable, signs, two_labels

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage


@observable("test error", algebraic=True, linear=True, of=signs)
def test_error(stage: AnyStage):
    """P(s h < 0) on a fresh sample."""
    return stage.fresh.test_error(-1)


@observable("training error", linear=True, of=signs)
def train_error(stage: AnyStage):
    """P(h on the wrong side of the label that was trained on), on a training sample."""
    return stage.samples.probability()


@observable("training error against clean labels", linear=True, of=signs)
def clean_train_error(stage: AnyStage):
    """P(s h < 0) on a training sample: as ``train_error``, but against the label before noise flipped it."""
    return stage.samples.probability(clean=True) if stage.has_noise else train_error(stage)


@observable("test minus training error", linear=True, of=signs)
def generalization_gap(stage: AnyStage):
    """Test error minus training error."""
    return test_error(stage) - train_error(stage)


@observable("test error after the best threshold", algebraic=True, linear=True, of=two_labels, listed=False)
def direction_error(stage: AnyStage):
    """P(s h < 0) on a fresh sample with the bias that is best for these weights: what their direction is good for."""
    return stage.fresh.direction_error(-1)


@observable("test error that the best threshold takes away", algebraic=True, linear=True, of=two_labels, listed=False)
def threshold_error(stage: AnyStage):
    """Test error minus ``direction_error``: what a wrong bias costs.  It is never negative: in finite systems, whose biases
    fluctuate, it is above that of the limit where that is nearly 0."""
    return test_error(stage).value - direction_error(stage).value
