"""A stage beside its teacher, of several their mean logit; or any two stages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from numerics.deferred import special
from numerics.solution.observables.registry import PAIR, observable
from numerics.solution.quadrature import Integral
from numerics.solution.samples import WeightedSamples, output_difference

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage

Row = NDArray[np.float64]
"""The other stage: its logit as a combination of those up to this one."""


@observable(
    "cosine with the teacher's weights", kind=PAIR, matrix="overlap_cosine", algebraic=True, linear=True
)  # fmt: skip
def teacher_cosine(stage: AnyStage, other: Row):
    """Cosine between the weights of this stage and of its teacher; NaN for the first stage, and without weights."""
    return stage.pair(other).overlap_cosine(0, 1)


@observable("agreement with the teacher, test", kind=PAIR, matrix="agreement", linear=True)
def teacher_agreement(stage: AnyStage, other: Row):
    """Probability that this stage and its teacher classify a fresh sample alike; NaN for the first stage."""
    return stage.pair(other).agreement(0, 1)


@observable("agreement with the teacher, training", kind=PAIR, matrix="train_agreement", solved=False, linear=True)
def teacher_train_agreement(stage: AnyStage, other: Row):
    """Share of the training samples that this stage and its teacher classify alike, in an experiment."""
    return stage.samples.mean(same_class if stage.data.many_classes else same_side, [stage.own, other])


@observable("squared logit distance to the teacher, test", kind=PAIR, matrix="test_logit_distance", algebraic=True)
def test_logit_distance(stage: AnyStage, other: Row):
    """Mean of (h - h_teacher)^2 on a fresh sample; NaN for the first stage."""
    return stage.pair(other).logit_distance(0, 1)


@observable("squared logit distance to the teacher, training", kind=PAIR, matrix="train_logit_distance")
def train_logit_distance(stage: AnyStage, other: Row):
    """Mean of (h - h_teacher)^2 on a training sample; NaN for the first stage."""
    if not (stage.samples.is_finite(stage.own) and stage.samples.is_finite(other)):
        return math.inf
    return stage.samples.mean(lambda label, apart: apart**2, [stage.own - other], degree=2)


@observable("squared output distance to the teacher, test", kind=PAIR, matrix="test_output_distance")
def test_output_distance(stage: AnyStage, other: Row):
    """Mean of (sigmoid(h) - sigmoid(h_teacher))^2 on a fresh sample; NaN for the first stage."""
    if not (stage.fresh.is_finite(stage.own) or stage.fresh.is_finite(other)):
        return 1.0 - stage.pair(other).agreement(0, 1)
    return output_distance(stage.fresh, stage.own, other)


@observable("squared output distance to the teacher, training", kind=PAIR, matrix="train_output_distance")
def train_output_distance(stage: AnyStage, other: Row):
    """Mean of (sigmoid(h) - sigmoid(h_teacher))^2 on a training sample; NaN for the first stage."""
    if not (stage.samples.is_finite(stage.own) or stage.samples.is_finite(other)):
        return stage.samples.mean(lambda label, h, teacher: (h > 0.0) != (teacher > 0.0), [stage.own, other])
    return output_distance(stage.samples, stage.own, other)


def same_side(label, h, taught):
    """Whether two logits decide alike."""
    return (h > 0) == (taught > 0)


def same_class(label, h, taught):
    """The same of K logits each."""
    return np.argmax(h, axis=1) == np.argmax(taught, axis=1)


def softmax(h):
    """Of logits (n, K)."""
    return special.softmax(h, axis=1)


def output_distance(law: WeightedSamples, own: Row, other: Row) -> Integral:
    """Mean of (sigmoid(h) - sigmoid(h'))^2; the logit of one of the two stages may be infinite.  Of K classes that of softmax,
    summed over the classes."""
    if law.many_classes:
        return law.mean(lambda label, h, taught: (softmax(h) - softmax(taught)) ** 2, [own, other])
    base, apart = (other, own - other) if law.is_finite(other) else (own, other - own)
    return law.mean(lambda label, h, difference: output_difference(h, difference) ** 2, [base, apart])
