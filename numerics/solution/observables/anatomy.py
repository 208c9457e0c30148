"""What distillation brings, level by level, and how it weights gradients (:mod:`numerics.anatomy`); computed where it is asked for
by name, and there alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from numerics.deferred import special
from numerics.models import Estimator, ParameterError
from numerics.solution.observables.registry import TEACHER, mixture, observable
from numerics.solution.quadrature import Integral
from theory.losses import Distillation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from numerics.anatomy.levels import Question
    from numerics.solution.solution import StageSolution
    from numerics.solution.stage import AnyStage

    Row = NDArray[np.float64]

NOTHING = Integral(math.nan, math.nan)
"""Of a stage that is not distilled."""


def gain(label: str):
    """Define an observable of the students of :mod:`numerics.anatomy.levels`, which theory alone has."""
    return observable(label, kind=TEACHER, measured=False, linear=True, of=mixture, listed=False)


def question_of(stage: StageSolution) -> Question | None:
    """What is asked about a stage; None where nothing can be."""
    from numerics.anatomy.levels import Question  # here: it needs the solver, which needs observables

    if not isinstance(stage.estimator, Estimator):
        return None
    try:
        return Question.of(stage.data, stage.solution.chain, stage.number - 1)
    except ParameterError:
        return None


def between(stage: StageSolution, before: str, after: str, name: str = "test_error") -> Integral:
    """How much better one student is than another; NaN for a stage that is not taken apart."""
    from numerics.anatomy.levels import solved

    question = question_of(stage)
    if question is None:
        return NOTHING
    try:
        first, second = (solved(question, student, stage.solution.settings) for student in (before, after))
    except ParameterError:  # no limit of a ridge that vanishes
        return NOTHING
    error = first.error_of(name) + second.error_of(name)
    return Integral(getattr(first, name) - getattr(second, name), error)


@gain("gain of distillation")
def gain_total(stage: StageSolution, other: Row):
    """Test error of the student on labels alone minus that of the student: positive where distillation helps."""
    return between(stage, "hard", "instance")


@gain("gain of distillation, after the best threshold")
def gain_direction(stage: StageSolution, other: Row):
    """The same of the error after the best threshold."""
    return between(stage, "hard", "instance", "direction_error")


@gain("gain by scale")
def gain_scale(stage: StageSolution, other: Row):
    """What the soft term's temperature gains with labels as targets, which is a change of ridge."""
    return between(stage, "hard", "scaled")


@gain("gain by universe knowledge")
def gain_universe(stage: StageSolution, other: Row):
    """What targets as sure as the teacher is on average gain over labels: label smoothing."""
    return between(stage, "scaled", "universe")


@gain("gain by domain knowledge")
def gain_domain(stage: StageSolution, other: Row):
    """What targets as sure as the teacher is of each class gain over those that are as sure on average."""
    return between(stage, "universe", "domain")


@gain("gain by instance knowledge")
def gain_instance(stage: StageSolution, other: Row):
    """What the teacher's own outputs gain over their means in each class."""
    return between(stage, "domain", "instance")


def part(stage: StageSolution, before: str, after: str) -> Integral:
    """What instance knowledge gains on the way to shuffled targets, or from there on."""
    from numerics.anatomy.levels import SHUFFLED, constants_of, solved
    from numerics.anatomy.shuffled import shuffled

    question = question_of(stage)
    if question is None:
        return NOTHING
    settings = stage.solution.settings
    try:
        other = solved(question, after if before == SHUFFLED else before, settings)
        if question.loss.parameters["mixing"] == 0.0:
            return Integral(0.0, 0.0)
        found = shuffled(constants_of(question, settings)[0], question)
    except ParameterError:  # no limit of a ridge that vanishes
        return NOTHING
    if found.message:
        return NOTHING
    difference = found.test_error - other.test_error
    return Integral(
        difference if before == SHUFFLED else -difference, found.test_error_error + other.error_of("test_error")
    )


@gain("gain by dispersion of targets")
def gain_dispersion(stage: StageSolution, other: Row):
    """What the teacher's outputs, shuffled within each class, gain over their means: the part of instance knowledge that hurts."""
    return part(stage, "domain", "shuffled")


@gain("gain by alignment of targets")
def gain_alignment(stage: StageSolution, other: Row):
    """What the teacher's outputs gain over the same outputs shuffled within each class: the rest of instance knowledge."""
    return part(stage, "shuffled", "instance")


def weighted(label: str):
    """Define an observable of gradient weights."""
    return observable(label, kind=TEACHER, linear=True, of=mixture, listed=False)


def weight_law(stage: AnyStage):
    """w as a function of the margins of student and teacher; None for a stage that is not distilled from finite logits."""
    from numerics.anatomy.weights import gradient_weight  # here: it needs the solver, which needs observables

    loss = stage.estimator.loss if isinstance(stage.estimator, Estimator) else None
    known = isinstance(loss, Distillation) and len(stage.teachers) == 1 and stage.samples.is_finite(stage.own)
    if not known or not stage.samples.is_finite(stage.teacher):
        return None
    own = loss.parameters
    if own["smoothing"] and own["mixing"] < 1.0:
        return None
    return lambda a, b: gradient_weight(a, b, own["mixing"], loss.soft_weight, own["temperature"])


@weighted("mean gradient weight")
def mean_weight(stage: AnyStage, other: Row):
    """Mean over training samples of w, the gradient of distillation over that of the label."""
    law = weight_law(stage)
    if law is None:
        return NOTHING
    return stage.samples.mean(
        lambda y, h, teacher: law((2.0 * y - 1.0) * h, (2.0 * y - 1.0) * teacher), [stage.own, other]
    )


@weighted("mean gradient of distillation over that of labels")
def gradient_weight(stage: AnyStage, other: Row):
    """The same as a mean over gradients, E[w (1 - q)]/E[1 - q] with q the student's probability of the label."""
    law = weight_law(stage)
    if law is None:
        return NOTHING

    def rescaled(y, h, teacher):
        sign = 2.0 * y - 1.0
        return law(sign * h, sign * teacher) * special.expit(-sign * h)

    total = stage.samples.mean(rescaled, [stage.own, other])
    plain = stage.samples.mean(lambda y, h: special.expit((1.0 - 2.0 * y) * h), [stage.own])
    value = total.value / plain.value
    return Integral(value, (total.error + abs(value) * plain.error) / plain.value)
