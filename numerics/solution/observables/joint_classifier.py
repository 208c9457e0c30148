"""A stage's error bounded by its teacher's (:mod:`numerics.solution.joint_classifier`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from numerics.solution import joint_classifier
from numerics.solution.observables.registry import TEACHER, mixture, observable, two_labels
from numerics.solution.quadrature import Integral, OneRule

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage

Row = NDArray[np.float64]
"""The teacher: its logit as a combination of those up to this stage."""

ROUNDING = 1e-15
"""Of a difference of distribution functions."""


@observable("P(teacher right, student wrong)", kind=TEACHER, linear=True, of=two_labels, listed=False)
def teacher_right_wrong(stage: AnyStage, other: Row):
    """P(the teacher classifies a fresh sample rightly and this stage wrongly); NaN for the first stage."""
    return stage.pair(other).right_and_wrong(1, 0)


@observable("P(teacher wrong, student right)", kind=TEACHER, linear=True, of=two_labels, listed=False)
def teacher_wrong_right(stage: AnyStage, other: Row):
    """The other way round: ``test_error`` is the teacher's plus ``teacher_right_wrong`` minus this."""
    return stage.pair(other).right_and_wrong(0, 1)


@observable("disagreement bound", kind=TEACHER, linear=True, of=two_labels)
def disagreement_bound(stage: AnyStage, other: Row):
    """The teacher's test error plus P(this stage and its teacher label a fresh sample differently); NaN for the first stage."""
    pair = stage.pair(other)
    return pair.test_error(1) + pair.right_and_wrong(0, 1) + pair.right_and_wrong(1, 0)


@observable("Kuiper distance of the logits' laws", kind=TEACHER, linear=True, of=mixture, listed=False)
def kuiper_distance(stage: AnyStage, other: Row):
    """Of the laws of h and h_teacher on fresh samples: half the divergence between student and teacher as domains of threshold
    heads (Ben-David et al. 2010); it depends on the scale of the logits.  Never negative, it is above its limit in finite
    systems where the laws nearly agree."""
    return _distances(stage, other)[0]


@observable("Kolmogorov-Smirnov distance of the logits' laws", kind=TEACHER, linear=True, of=mixture, listed=False)
def kolmogorov_distance(stage: AnyStage, other: Row):
    """Largest |P(h < x) - P(h_teacher < x)| on fresh samples; between half of ``kuiper_distance`` and all of it."""
    return _distances(stage, other)[1]


@observable("error of the ideal joint head", kind=TEACHER, linear=True, of=mixture, listed=False)
def ideal_joint_error(stage: AnyStage, other: Row):
    """Least sum of the test errors of one head, a threshold or a constant, on h and on h_teacher: lambda* of the bound."""
    pair = stage.pair(other)
    head = joint_classifier.ideal_head(pair.logit_law(1), pair.logit_law(0), check=pair.check)
    return OneRule(head.error, ROUNDING)


@observable("ideal-joint-classifier bound", kind=TEACHER, linear=True, of=mixture)
def joint_classifier_bound(stage: AnyStage, other: Row):
    """The teacher's test error plus ``kuiper_distance`` plus ``ideal_joint_error``: a bound on ``test_error``."""
    return (
        stage.pair(other).test_error(1)
        + kuiper_distance.function(stage, other)
        + ideal_joint_error.function(stage, other)
    )


def _distances(stage: AnyStage, other: Row) -> list[Integral]:
    pair = stage.pair(other)
    found = joint_classifier.distance(pair.logit_law(0), pair.logit_law(1), check=pair.check)
    return [OneRule(value, ROUNDING) for value in found]
