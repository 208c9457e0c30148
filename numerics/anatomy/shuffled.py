"""The control of instance knowledge: a student whose targets are its teacher's outputs, handed round among the samples of a label.

Shuffled targets have the law of the teacher's outputs given the label, and tell nothing more of the sample.  So the student
is a stage on its own whose target is drawn, p(h_teacher given y), independently of class and input given the label seen.  In
the equations it comes after a stage without weights on the student's inputs: nodes of the teacher's logit keep label and logit,
forget directions and force, and stand for either class as often as the label does.

The teacher's outputs beyond their mean given the label are two things: *dispersion*, which shuffled targets have too, and
*alignment* with the sample, which they lack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from numerics.codegen.losses import LossFunctions
from numerics.driver.outcome import Status
from numerics.models import Chain, Frozen, ParameterError, structured
from numerics.scalar.compiled import solve_stage
from numerics.scalar.kernels.layout import Nodes
from numerics.scalar.nodes import label_nodes
from numerics.scalar.points import StagePoint, given_point
from numerics.scalar.prior import WeightMoments, coordinate_groups
from numerics.simulation.draw import SHUFFLE
from numerics.simulation.measure import MeasuredStage, population_of
from numerics.simulation.train import Fields, fit_stage
from numerics.solution.population import Population
from numerics.solution.solution import Solution
from numerics.solver import ConvergenceError

if TYPE_CHECKING:
    from numerics.anatomy.levels import Question

NOBODY = Frozen(0.0, 1.0, name="shuffled")
"""Stands before the student for where its targets come from: weights that nothing depends on."""

_ROUNDING = 1e-13

LARGE_RIDGE, RIDGE_STEPS = 30.0, 24
"""Where falling ridges begin, should the first attempt fail, and into how many steps the way is cut."""


@dataclass(frozen=True)
class Shuffled:
    """The student of shuffled targets.

    Attributes
    ----------
    fresh : Population
        Law of its logits on fresh samples.
    response : float
        V.
    error : float
        Largest relative change of m, Q, V and of b over sqrt(Q) at the last refinement.
    message : str
        Why there is none, if so.
    """

    fresh: Population
    response: float
    error: float
    message: str

    @property
    def test_error(self) -> float:
        """P(s h < 0) on a fresh sample."""
        return float(self.fresh.test_error(0))

    @property
    def test_error_error(self) -> float:
        """Of the test error, if every order parameter is off by ``error``: tails move by at most as much as their arguments."""
        m, b, q, delta = (
            self.fresh.magnetization[0],
            self.fresh.bias[0],
            self.fresh.overlap[0, 0],
            self.fresh.data.variance,
        )
        return float(self.error * (abs(m) + abs(b) + math.sqrt(q)) / math.sqrt(delta * q)) + _ROUNDING

    @property
    def direction_error(self) -> float:
        """The same after the best threshold."""
        return float(self.fresh.direction_error(0))


def shuffled(solution: Solution, question: Question, ridge: float | None = None) -> Shuffled:
    """Saddle point of the student of shuffled targets.

    Parameters
    ----------
    solution : Solution
        Of the question's problem.
    ridge : float, optional
        Of this student, by default that of the question's.

    Raises
    ------
    ParameterError
        For a ridge of 0, whose limit is not known, or a teacher whose logits are infinite.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, solve
    >>> from numerics.anatomy.levels import Question
    >>> from theory.losses import CrossEntropy, Distillation
    >>> chain = [Estimator(CrossEntropy(), 0.5), Estimator(Distillation(), 0.05)]
    >>> question = Question.of(GaussianMixture(3.0, 0.5, 0.5, label_noise=0.2), chain)
    >>> found = shuffled(solve(question.data, question.chain), question)
    >>> round(found.test_error, 4), found.error < 1e-8
    (0.3247, True)
    """
    ridge = question.student.ridge if ridge is None else ridge
    if structured(question.data, question.chain):
        raise ParameterError("inputs must be white where targets are shuffled, and no stage may have features")
    if ridge == 0.0:
        raise ParameterError(f"ridge of {question.name} must be > 0 where its targets are shuffled: no limit is known")
    if not math.isfinite(solution.state.scale[question.taught_by - 1]):
        raise ParameterError("shuffled targets need finite logits of the teacher")
    loss = question.loss.with_teacher(1)
    student = replace(question.student, loss=loss, ridge=ridge, mask_overlap=None)
    settings, data = solution.settings, question.data
    moments = WeightMoments(coordinate_groups(data, Chain.of([NOBODY, student])))
    earlier = [given_point(NOBODY, ())]
    moments.add_stage(1, NOBODY, earlier[0].conjugates)
    near = solution.points[-1]
    x = np.array([near.magnetization, near.bias, 0.0, math.log(max(near.norm_squared, 1e-12)), 0.0, near.unknowns[-1]])
    point, before, error = None, None, math.inf
    for level in range(solution.level, max(solution.level + 1, settings.max_levels) + 1):
        nodes = without_directions(solution, question, level - solution.level)

        def at(ridge: float, x: np.ndarray, nodes: Nodes = nodes, level: int = level) -> StagePoint:
            stage, constants = replace(student, ridge=ridge), moments.prior_rows(1, ridge)
            step = settings.field_step * settings.refinement**level
            return solve_stage(data, stage, nodes, constants, earlier, x, step, settings)

        point = at(ridge, x)
        if point.status != 0:
            point = _along_ridges(at, ridge, x)
        if point.status != 0:
            break
        x, now = point.unknowns, _sizes(point)
        if before is not None:
            error = float(np.max(np.abs(now - before) / (np.abs(now) + np.array([0.0, 1.0, 0.0, 0.0]))))
            if error <= settings.rtol:
                break
        before = now
    message = Status(point.status).message if point.status != 0 else ""
    if not message and not error <= settings.rtol:
        message = f"the change at the last refinement {error:.1e} exceeds rtol={settings.rtol:.1e}"
    m, b, q = point.magnetization, point.bias, point.norm_squared
    if point.status != 0:
        m = b = q = math.nan
    fresh = Population(data, np.array([m]), np.array([b]), np.array([[q]]), np.array([[math.sqrt(q)]]))
    return Shuffled(fresh, float(point.response_row[-1]), error, message)


def _sizes(point: StagePoint) -> np.ndarray:
    norm = math.sqrt(point.norm_squared)
    return np.array([point.magnetization, point.bias / norm, norm, point.response_row[-1]])


def _along_ridges(at: Callable[[float, np.ndarray], StagePoint], ridge: float, x: np.ndarray) -> StagePoint:
    """From a ridge so large that weights hardly react, along falling ones."""
    for value in np.geomspace(max(LARGE_RIDGE, 10.0 * ridge), ridge, RIDGE_STEPS):
        point = at(float(value), x)
        if point.status != 0:
            return point
        x = point.unknowns
    return point


def without_directions(solution: Solution, question: Question, finer: int = 0) -> Nodes:
    """Nodes of the teacher's logit on the student's samples which know no more of a sample than its label.

    ``finer`` as of :meth:`numerics.solution.solution.Solution.nodes`.
    """
    data, sets = question.data, question.student.sets
    nodes = solution.nodes(question.taught_by, training=True, finer=finer).of(data, sets)
    groups = label_nodes(data).of(data, sets)
    parts = []
    for sign in (-1.0, 1.0):
        some = groups.statistics[:, 0] == sign
        share = np.array([
            groups.weight[some & (groups.labels == label)].sum() / groups.weight[groups.labels == label].sum()
            for label in (0.0, 1.0)
        ])  # fmt: skip
        weight = nodes.weight * share[nodes.labels.astype(int)]
        kept = nodes.rows(weight > 0.0)
        statistics = np.zeros((kept.labels.size, 4))
        statistics[:, 0], statistics[:, 1] = sign, 1.0
        logit = np.ascontiguousarray(kept.logits[:, [question.taught_by - 1]])
        parts.append(kept._replace(weight=weight[weight > 0.0], statistics=statistics, logits=logit))
    return Nodes.joined(parts)


def trained_on_shuffled(
    stages: Sequence[MeasuredStage], question: Question, gradient_tolerance: float = 1e-8
) -> Population:
    """The student of one run, trained on its teacher's outputs after they were shuffled among the samples of each label."""
    student = stages[len(question.chain) - 1]
    sample, labels = student.drawn, student.samples.labels
    logits = student.samples.logits[:, question.taught_by - 1].copy()
    generator = sample.generator(SHUFFLE)
    for label in (0.0, 1.0):
        some = np.flatnonzero(labels == label)
        logits[some] = logits[generator.permutation(some)]
    fields = Fields(LossFunctions(student.estimator.loss), labels, logits[:, None])
    start = student.fit.weights, student.fit.bias
    fit = fit_stage(
        sample, student.estimator, "shuffled", fields, student.fit.active, [start], gradient_tolerance
    )  # fmt: skip
    if not fit.converged:
        raise ConvergenceError(f"shuffled: {fit.message}")
    return population_of(student.data, sample, [fit])
