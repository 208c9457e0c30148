"""Outputs as probabilities of the label, on fresh samples (:mod:`numerics.solution.calibration`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from numerics.deferred import special
from numerics.solution import calibration
from numerics.solution.observables.registry import in_classes, mixture, observable, two_labels

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage


@observable("calibration slope", algebraic=True, of=mixture)
def calibration_slope(stage: AnyStage):
    """Slope of the true log-odds of y = 1 as a function of this stage's logit; 1 if calibrated, below 1 if overconfident, NaN if
    the logit is the same everywhere."""
    return stage.fresh.calibration(-1)[0]


@observable("calibration offset", algebraic=True, of=mixture)
def calibration_offset(stage: AnyStage):
    """Offset of the true log-odds at logit 0; NaN likewise."""
    return stage.fresh.calibration(-1)[1]


@observable("calibration error", linear=True, of=two_labels)
def calibration_error(stage: AnyStage):
    """Mean of |P(y=1 given h) - sigmoid(h)| on a fresh sample."""
    return calibration.calibration_error(stage.fresh.logit_law(-1), check=stage.fresh.check)


@observable("calibration error of the top label", linear=True, of=in_classes, listed=False)
def top_label_calibration_error(stage: AnyStage):
    """Mean of |P(the predicted label is right given |h|) - sigmoid(|h|)| on a fresh sample; at most ``calibration_error``.  Of K
    classes in 15 bins of the largest probability (Guo et al. 2017)."""
    if stage.data.many_classes:
        return stage.fresh.top_label_calibration_error(-1)
    return calibration.top_label_calibration_error(stage.fresh.logit_law(-1), check=stage.fresh.check)


@observable("Brier score, test", linear=True, of=in_classes)
def brier_score(stage: AnyStage):
    """Mean of (sigmoid(h) - y)^2 on a fresh sample: ``brier_calibration`` plus ``brier_refinement``.  Of K classes that of softmax
    and the one-hot label, summed over the classes."""
    return stage.fresh.mean(squared_misses if stage.data.many_classes else squared_miss, [stage.own])


@observable("Brier score, training", linear=True, of=in_classes)
def train_brier_score(stage: AnyStage):
    """The same on a training sample, with the label that was trained on."""
    return stage.samples.mean(squared_misses if stage.data.many_classes else squared_miss, [stage.own])


@observable("calibration part of the Brier score", of=two_labels, listed=False)
def brier_calibration(stage: AnyStage):
    """Mean of (sigmoid(h) - P(y=1 given h))^2 on a fresh sample."""
    return calibration.brier_calibration(stage.fresh.logit_law(-1), check=stage.fresh.check)


@observable("refinement part of the Brier score", linear=True, of=two_labels, listed=False)
def brier_refinement(stage: AnyStage):
    """Mean of pi(1 - pi), pi = P(y=1 given h), on a fresh sample: the Brier score of the best output that depends on h alone."""
    return calibration.brier_refinement(stage.fresh.logit_law(-1), check=stage.fresh.check)


@observable("calibration part of the cross-entropy", of=two_labels, listed=False)
def cross_entropy_calibration(stage: AnyStage):
    """Mean of KL(P(y=1 given h) | sigmoid(h)) on a fresh sample; with ``cross_entropy_refinement`` it is
    ``test_cross_entropy``."""
    return calibration.cross_entropy_calibration(stage.fresh.logit_law(-1), check=stage.fresh.check)


@observable("refinement part of the cross-entropy", linear=True, of=two_labels, listed=False)
def cross_entropy_refinement(stage: AnyStage):
    """Mean entropy of P(y=1 given h) on a fresh sample."""
    return calibration.cross_entropy_refinement(stage.fresh.logit_law(-1), check=stage.fresh.check)


@observable("calibrating temperature", of=two_labels, listed=False)
def calibrating_temperature(stage: AnyStage):
    """tau with the least mean of H(y, sigmoid(h/tau)) on fresh samples; infinite where h does not tell the class."""
    return calibration.calibrating_temperature(stage.fresh.logit_law(-1)) * stage.fresh.scale[-1]


@observable("calibration error at that temperature", linear=True, of=two_labels, listed=False)
def tempered_calibration_error(stage: AnyStage):
    """``calibration_error`` of h divided by its calibrating temperature; 0 only if the bias is the best one."""
    tempered = calibration.tempered(stage.fresh.logit_law(-1))
    return calibration.calibration_error(tempered, check=stage.fresh.check)


def squared_miss(label, h):
    """(sigmoid(h) - y)^2."""
    return (special.expit(h) - label) ** 2


def squared_misses(label, h):
    """(softmax(h) - e_y)^2 of K logits, shape (n, K)."""
    return (special.softmax(h, axis=1) - np.eye(h.shape[1])[label]) ** 2
