"""What distillation brings, level by level (:mod:`numerics.anatomy`); computed where the name is given, and there alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from numerics.models import Estimator, ParameterError
from numerics.solution.observables.registry import TEACHER, mixture, observable
from numerics.solution.quadrature import Integral

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from numerics.anatomy.levels import Question
    from numerics.solution.solution import StageSolution

    Row = NDArray[np.float64]

NOTHING = Integral(math.nan, math.nan)


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
