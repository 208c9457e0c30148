"""Anatomy of one student: levels of its teacher's knowledge, and weights that they give to samples; bounds of its error,
calibration, what it inherits; in theory and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from numerics.anatomy import inheritance as inherited
from numerics.anatomy import levels as knowledge
from numerics.anatomy.bounds import Bounds, bounds_of
from numerics.anatomy.calibration import Calibration, calibration_of
from numerics.anatomy.levels import (
    GAINS,
    GAINS_INSTANCE_FIRST,
    INSTANCE_FIRST,
    LADDER,
    SHUFFLED,
    Levels,
    Question,
    best_levels,
    constants_of,
    gains,
    instance_parts,
    over_labels,
    solved,
)
from numerics.anatomy.shuffled import trained_on_shuffled
from numerics.anatomy.weights import GradientWeights, gradient_weight, mean_correlation, start_weight
from numerics.deferred import special
from numerics.models import Chain, DataModel, ParameterError, in_equations
from numerics.settings import DEFAULT, Settings
from numerics.simulation.measure import MeasuredStage
from numerics.simulation.result import Estimate, SimulationResult, estimate
from numerics.simulation.run import simulate
from numerics.solution.samples import unit
from numerics.solution.solution import Solution, without_nan
from numerics.solver import settings_for

if TYPE_CHECKING:
    from numerics.classes.solution import ClassSolution

Array = NDArray[np.float64]

NAMES = {
    "scale": "the scale of the soft term",
    "universe": "universe knowledge",
    "domain": "domain knowledge",
    "instance": "instance knowledge",
}
"""Levels in words."""

CAUSES = {
    "scale": "the soft term's temperature acts as another ridge",
    "universe": "the teacher's doubt, the same for all samples, smooths the labels",
    "domain": "a bias is inherited from how differently the teacher doubts the two classes",
    "instance": "what the teacher says of single samples misleads",
}
"""How a level hurts."""

MERITS = {
    "scale": "the soft term's temperature acts as a better ridge",
    "universe": "the teacher's average doubt smooths the labels",
    "domain": "the teacher's doubt of each class mends the bias",
    "instance": "the teacher knows which samples to trust",
}
"""How it helps."""

CAUSES_OF_CLASSES = {"domain": "what the teacher says of which classes are alike misleads"}
MERITS_OF_CLASSES = {"domain": "the teacher knows which classes are alike"}
"""The same of K classes, where it differs."""

NOTHING = 1e-7
"""A gain that is none."""

ROUNDING = 1e-9
"""A standard error that is one of the fits."""

TERMS = (
    "teacher_right_wrong", "teacher_wrong_right", "disagreement_bound", "kuiper_distance", "ideal_joint_error",
    "joint_classifier_bound",
)  # fmt: skip
"""Observables of the student that bounds are made of."""

SCORES = (
    "calibration_slope", "calibration_offset", "calibration_error", "top_label_calibration_error",
    "calibrating_temperature", "brier_score", "brier_calibration", "cross_entropy_calibration", "train_brier_score",
    "train_cross_entropy",
)  # fmt: skip
"""Observables of student and teacher that calibration is made of."""

LEVELS_OF_WEIGHT = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5)
"""Where the distribution of weights is measured."""

MARGINS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.5)
"""Ends of the bins of the teacher's margin in which weights are averaged."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Why a student is as good as it is.

    Attributes
    ----------
    question : Question
        Data and chain up to the student.
    solution : Solution
        Of that chain.
    levels : Levels or None
        Students with more and more of the teacher's knowledge, at the student's ridge.
    best : Levels or None
        The same, each at its best ridge.
    weights : GradientWeights or None
        Weights that distillation gives to the samples; of K classes None, as bounds, and there is no calibration.
    """

    question: Question
    solution: Solution | ClassSolution
    levels: Levels | None
    best: Levels | None
    weights: GradientWeights | None

    SECTIONS: ClassVar[tuple[str, ...]] = ("levels", "best", "weights", "bounds")
    """Attributes that are in reports: each has ``to_dict``, or is None."""

    @cached_property
    def bounds(self) -> Bounds | None:
        """Bounds of the student's error, and their terms; None if it is not solved."""
        student = self.solution[self.place]
        return bounds_of(student) if student.known and not self.many_classes else None

    @cached_property
    def calibration(self) -> dict[str, Calibration]:
        """Of "teacher" and "student"; empty if they are not solved."""
        places = {"teacher": self.question.taught_by - 1, "student": self.place}
        known = not self.many_classes and all(self.solution[place].known for place in places.values())
        return {name: calibration_of(self.solution[place]) for name, place in places.items()} if known else {}

    @cached_property
    def inheritance(self) -> inherited.Inheritance:
        """What the student owes to its teacher's training (about a second); ParameterError unless the chain has two stages."""
        settings = DEFAULT if self.many_classes else self.solution.settings
        return inherited.inheritance(self.question.data, self.question.chain, settings=settings)

    @property
    def many_classes(self) -> bool:
        """Whether data are a ClassMixture."""
        return self.question.data.many_classes

    @property
    def place(self) -> int:
        """Of the student in the chain, from 0."""
        return len(self.question.chain) - 1

    @property
    def gains(self) -> dict[str, float]:
        """Of test error, by level and in total; see :attr:`numerics.anatomy.levels.Levels.gains`."""
        return self._known.gains

    @property
    def blame(self) -> str | None:
        """The level that hurts most, where distillation hurts."""
        return self._known.blame

    @property
    def _known(self) -> Levels:
        if self.levels is None:
            raise ParameterError("levels were not asked for: call anatomy(..., levels=True)")
        return self.levels

    @cached_property
    def sentence(self) -> str:
        """What to make of it, in one sentence."""
        found = self._known
        total, errors = found.gains["total"], {name: level.error for name, level in found.students.items()}
        from_to = f"test error {errors['hard']:.4f} on labels alone, {errors['instance']:.4f} with the teacher"
        if np.isnan(total):
            return "distillation cannot be judged: some of the students have no solution"
        if abs(total) < NOTHING:
            return f"distillation changes nothing: {from_to}"
        if total > 0.0:
            most = max(GAINS, key=lambda gain: found.gains[gain])
            merits = MERITS | (MERITS_OF_CLASSES if self.many_classes else {})
            return f"distillation helps: {from_to}; most by {NAMES[most]}, because {merits[most]}"
        causes = CAUSES | (CAUSES_OF_CLASSES if self.many_classes else {})
        text = f"distillation hurts: {from_to}; to blame is {NAMES[found.blame]}, because {causes[found.blame]}"
        if found.direction_gains["total"] > NOTHING:
            text += f" (after the best threshold distillation helps, by {found.direction_gains['total']:.4f})"
        return text

    def to_dict(self) -> dict[str, object]:
        """Everything as plain numbers, for JSON; NaN and infinite numbers become None."""
        sections = {name: getattr(self, name) for name in self.SECTIONS}
        found = {name: section.to_dict() for name, section in sections.items() if section is not None}
        return without_nan({
            "student": self.question.name,
            "converged": self.solution.converged,
            "message": self.solution.message,
            "sentence": self.sentence if self.levels is not None else "",
            **found,
            "calibration": {name: part.to_dict() for name, part in self.calibration.items()},
        })  # fmt: skip


def anatomy(
    data: DataModel,
    chain: Chain | Sequence,
    stage: int = -1,
    levels: bool = True,
    best_ridge: bool = False,
    *,
    settings: Settings = DEFAULT,
    rtol: float | None = None,
) -> Anatomy:
    """Take a student apart: what it gains from which level of its teacher's knowledge, and how gradients are weighted.

    Parameters
    ----------
    data : GaussianMixture or ClassMixture
        Of K classes there are levels alone.
    chain : Chain or sequence of stages
    stage : int
        Position of the student in the chain: a stage with the loss :class:`theory.losses.Distillation` and one teacher.
    levels : bool
        Solve the students that know less.
    best_ridge : bool
        Also find the best ridge of each of them, which takes seconds, of K classes some ten.
    settings, rtol
        As of :func:`numerics.solve`.

    Raises
    ------
    numerics.models.ParameterError
        For labels of a rule, and a stage that is not such a student.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy, Distillation
    >>> chain = [Estimator(CrossEntropy(), ridge=3.0), Estimator(Distillation(), ridge=0.1)]
    >>> found = anatomy(GaussianMixture(alpha=4.0, rho=0.3, delta=1.0, label_noise=0.1), chain)
    >>> {name: round(gain, 4) for name, gain in found.gains.items()}
    {'scale': 0.0, 'universe': 0.0012, 'domain': -0.0738, 'instance': 0.0447, 'total': -0.0279}
    >>> found.blame, round(found.levels.direction_gains["total"], 4)
    ('domain', 0.0372)
    >>> round(found.weights.mean, 4), found.weights.monotone
    (0.0142, 'neither')

    Two pairs of similar classes: the student on how sure the teacher is of each sample, before and after which classes are alike.

    >>> from numerics import ClassMixture, similar_pairs
    >>> chain = [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=0.1)]
    >>> found = anatomy(ClassMixture(alpha=3.0, gram=similar_pairs(4, 0.6), delta=0.25), chain).levels
    >>> [round(order["instance"], 3) for order in (found.instance_first_gains, found.gains)]
    [0.004, 0.016]
    """
    question = Question.of(data, chain, stage)
    if question.data.many_classes:
        solution = solved(question, LADDER[-1], settings, rtol).solution
        found = knowledge.levels(question, settings, rtol=rtol) if levels else None
        best = best_levels(question, settings, rtol=rtol) if best_ridge else None
        return Anatomy(question, solution, found, best, None)
    settings = settings_for(in_equations(question.data, question.chain), settings, rtol)
    solution = solved(question, LADDER[-1], settings).solution
    return Anatomy(
        question,
        solution,
        knowledge.levels(question, settings) if levels else None,
        best_levels(question, settings) if best_ridge else None,
        GradientWeights(solution, question),
    )


@dataclass(frozen=True)
class MeasuredWeights:
    """Gradient weights of finite systems, each an :class:`numerics.simulation.result.Estimate` over runs.

    Attributes
    ----------
    mean, gradient_mean, start_mean, regularisation_fraction, gradient_difficulty
        As of :class:`numerics.anatomy.weights.GradientWeights`.
    x : array, shape (n,)
    cdf
        P(w <= x).
    edges : array, shape (e + 1,)
    shares, given_margin, ratio
        Of the samples with a teacher's margin between edges: how many, mean weight, ratio of mean gradients.
    """

    mean: Estimate
    gradient_mean: Estimate
    start_mean: Estimate
    regularisation_fraction: Estimate
    gradient_difficulty: Estimate
    x: Array
    cdf: Estimate
    edges: Array
    shares: Estimate
    given_margin: Estimate
    ratio: Estimate

    ESTIMATES: ClassVar[tuple[str, ...]] = (
        "mean", "gradient_mean", "start_mean", "regularisation_fraction", "gradient_difficulty", "cdf", "shares", "given_margin",
        "ratio",
    )  # fmt: skip

    def predicted(self, weights: GradientWeights) -> dict[str, Array]:
        """The same from theory, by name."""
        bins = weights.in_bins(self.edges)
        numbers = {name: np.asarray(getattr(weights, name)) for name in self.ESTIMATES[:5]}
        return {
            **numbers, "cdf": np.asarray(weights.cdf(self.x)), "shares": bins.density, "given_margin": bins.mean,
            "ratio": bins.ratio,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class SimulatedAnatomy:
    """What :func:`anatomy` says, measured on finite systems.

    Attributes
    ----------
    result : SimulationResult
        Of a chain with all students.
    errors, directions : mapping of student to Estimate
        Test error, and that after the best threshold.
    gains, direction_gains, instance_parts : mapping of level to Estimate
        Compared run by run: students of a run share its samples.
    weights : MeasuredWeights or None
        None where there are none.
    theory : Anatomy
        For the sizes that were simulated.
    instance_first_gains, over_labels : mappings of level, and of student, to Estimate
        Of K classes, which have no directions, parts or weights.
    """

    result: SimulationResult
    errors: Mapping[str, Estimate]
    directions: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    direction_gains: Mapping[str, Estimate]
    instance_parts: Mapping[str, Estimate]
    weights: MeasuredWeights | None
    theory: Anatomy
    instance_first_gains: Mapping[str, Estimate] = field(default_factory=dict)
    over_labels: Mapping[str, Estimate] = field(default_factory=dict)

    def comparisons(self) -> list[tuple[str, Estimate, Array | float]]:
        """(name, estimate, theory) of everything."""
        known = self.theory.levels
        found: list[tuple[str, Estimate, Array | float]] = []
        for name, measured in self.errors.items():
            found.append((f"error {name}", measured, known.students[name].error))
            if name in self.directions:
                found.append((f"direction {name}", self.directions[name], known.students[name].direction))
        for name, measured in self.gains.items():
            found.append((f"gain {name}", measured, known.gains[name]))
            if name in self.direction_gains:
                found.append((f"direction gain {name}", self.direction_gains[name], known.direction_gains[name]))
        for name, measured in self.instance_first_gains.items():
            found.append((f"instance first, gain {name}", measured, known.instance_first_gains[name]))
        for name, measured in self.instance_parts.items():
            found.append((f"gain {name}", measured, known.instance_parts[name]))
        for name, measured in self.over_labels.items():
            found.append((f"over labels, {name}", measured, known.over_labels[name]))
        if self.theory.many_classes:
            return found
        if self.weights is not None:
            predicted = self.weights.predicted(self.theory.weights)
            found += [(f"weights {name}", getattr(self.weights, name), value) for name, value in predicted.items()]
        place = self.theory.place
        for name in TERMS:
            found.append((name, getattr(self.result[place], name), getattr(self.theory.solution[place], name)))
        for who, at in (("teacher", self.theory.question.taught_by - 1), ("student", place)):
            for name in SCORES:
                found.append((f"{who} {name}", getattr(self.result[at], name), getattr(self.theory.solution[at], name)))
        return found

    def to_dict(self) -> dict[str, object]:
        """Mean, standard error, theory and z of everything, for JSON."""
        listed = {}
        for name, measured, value in self.comparisons():
            listed[name] = {
                "mean": np.asarray(measured.mean).tolist(), "standard_error": np.asarray(measured.standard_error).tolist(),
                "theory": np.asarray(value).tolist(), "z": z_scores(measured, value).tolist(),
            }  # fmt: skip
        sizes = {"n_inputs": self.result.n_inputs, "n_runs": self.result.n_runs, "seed": self.result.seed}
        return without_nan({"converged": self.result.converged, **sizes, "estimates": listed})


def z_scores(measured: Estimate, expected: Array | float) -> Array:
    """Deviation from theory in standard errors; NaN where nothing varies between runs, or no more than rounding does."""
    difference, error = np.asarray(measured.mean) - expected, np.asarray(measured.standard_error)
    known = (error > ROUNDING) & np.isfinite(difference)
    return np.where(known, difference / np.where(known, error, 1.0), np.nan)


def simulate_anatomy(
    data: DataModel,
    chain: Chain | Sequence,
    stage: int = -1,
    n_inputs: int = 1000,
    n_runs: int = 20,
    seed: int = 0,
    *,
    x: Sequence[float] = LEVELS_OF_WEIGHT,
    edges: Sequence[float] = MARGINS,
    n_jobs: int = 1,
    progress: bool = False,
) -> SimulatedAnatomy:
    """Train the student and all those that know less on finite samples, and weigh its gradients.

    Constants of the students' losses are theory's: those of the sample would change targets by O(1/sqrt(N)).  Of K classes they
    are those of each run's own teacher.

    Parameters
    ----------
    data, chain, stage
        As of :func:`anatomy`.
    n_inputs, n_runs, seed, n_jobs, progress
        As of :func:`numerics.simulate`.
    x : sequence of float
        Where the distribution of weights is measured.
    edges : sequence of float
        Ends of the bins of the teacher's margin in which weights are averaged.

    Raises
    ------
    numerics.models.ParameterError
        As of :func:`anatomy` and :func:`numerics.simulate`; for a student with a random mask of its own.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy, Distillation
    >>> chain = [Estimator(CrossEntropy(), ridge=0.3), Estimator(Distillation(), ridge=0.1)]
    >>> data = GaussianMixture(alpha=4.0, rho=0.3, delta=1.0, label_noise=0.1)
    >>> measured = simulate_anatomy(data, chain, n_inputs=200, n_runs=4)
    >>> gain = measured.gains["instance"]
    >>> abs(gain.mean - measured.theory.gains["instance"]) < 4 * gain.standard_error
    True
    """
    question = Question.of(data, chain, stage)
    if question.student.mask_overlap is not None:
        raise ParameterError(f"mask_overlap of {question.name} must be None: the students of an anatomy share a mask")
    x, edges = np.asarray(x, dtype=float), np.asarray(edges, dtype=float)
    if edges.ndim != 1 or edges.size < 2 or np.any(np.diff(edges) <= 0.0):
        raise ParameterError(f"edges must be increasing numbers, got {edges.tolist()}")
    number = len(question.chain)
    names = tuple(name for name in question.students if name not in (LADDER[-1], SHUFFLED))
    losses = question.losses(constants_of(question, DEFAULT)[1])
    others = [
        replace(question.student, loss=losses[name], name=f"{question.name}_{name.replace('+', '_')}") for name in names
    ]
    together = Chain((*question.chain.stages, *others))
    many = question.data.many_classes
    why_not = many or anatomy(question.data, question.chain, levels=False).weights.reason
    weights_of = None if why_not else _weights_of(question, x, edges)

    def further(stages: Sequence[MeasuredStage]) -> dict[str, Array]:
        fresh = stages[number - 1].fresh.combined(unit(number, number)[None])
        if question.loss.parameters["mixing"] > 0.0:
            fresh = trained_on_shuffled(stages, question)
        found = {name: np.array(getattr(fresh, name)(0)) for name in ("test_error", "direction_error")}
        others = {} if weights_of is None else weights_of(stages)
        return {**{f"{SHUFFLED}_{name}": value for name, value in found.items()}, **others}

    result = simulate(
        question.data, together, n_inputs, n_runs, seed, n_jobs=n_jobs, progress=progress, further=None if many else further
    )  # fmt: skip
    place = {LADDER[-1]: number - 1} | {name: number + k for k, name in enumerate(names)}

    def estimates(runs: Mapping[str, Array]) -> dict[str, Estimate]:
        return {name: estimate(values) for name, values in runs.items()}

    def measured(observable: str) -> tuple[dict[str, Array], dict[str, Estimate], dict[str, Estimate]]:
        runs = {name: result.runs[observable][:, place[name]] for name in place}
        if not many:
            runs[SHUFFLED] = result.runs[f"{SHUFFLED}_{observable}"]
        return runs, estimates(runs), estimates(gains(runs))

    runs, errors, error_gains = measured("test_error")
    effective = Chain(result.effective_chain.stages[:number])
    if many:
        others = estimates(gains(runs, INSTANCE_FIRST, GAINS_INSTANCE_FIRST)), estimates(over_labels(runs))
        theory = anatomy(result.effective_data, effective)
        return SimulatedAnatomy(result, errors, {}, error_gains, {}, {}, None, theory, *others)
    parts = estimates(instance_parts(runs))
    _, directions, direction_gains = measured("direction_error")
    weights = None
    if not why_not:
        found = {name: estimate(result.runs[f"weights_{name}"]) for name in MeasuredWeights.ESTIMATES}
        weights = MeasuredWeights(x=x, edges=edges, **found)
    theory = anatomy(result.effective_data, effective)
    return SimulatedAnatomy(result, errors, directions, error_gains, direction_gains, parts, weights, theory)


def _weights_of(question: Question, x: Array, edges: Array) -> Callable[[Sequence[MeasuredStage]], dict[str, Array]]:
    """What is read off the logits of student and teacher in one run."""
    number, own = len(question.chain), question.loss.parameters
    how = own["mixing"], question.loss.soft_weight, own["temperature"]
    prior = math.log(question.data.rho / (1.0 - question.data.rho))
    zhou = 1.0, 1.0 if own["mixing"] == 0.0 else how[1] / own["mixing"], own["temperature"]

    def read(stages: Sequence[MeasuredStage]) -> dict[str, Array]:
        student = stages[number - 1]
        samples, sample = student.samples, student.drawn
        sign = 2.0 * samples.labels - 1.0
        a, b = sign * samples.logits[:, number - 1], sign * samples.logits[:, question.taught_by - 1]
        w, off = gradient_weight(a, b, *how), special.expit(-a)
        odds = prior + 2.0 / student.data.variance * (sample.design[student.fit.rows] @ sample.mean)
        truth = special.expit(sign * odds)
        bins = [(b > low) & (b <= high) for low, high in pairwise(edges)]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.array([np.sum(w[some]) / np.sum(some) for some in bins])
            ratio = np.array([np.sum((w * off)[some]) / np.sum(off[some]) for some in bins])
        found = {
            "mean": w.mean(), "gradient_mean": np.sum(w * off) / np.sum(off), "start_mean": start_weight(b, *how).mean(),
            "regularisation_fraction": np.mean(np.abs(gradient_weight(a, b, *zhou) - 1.0) > 1.0),
            "gradient_difficulty": mean_correlation(w, truth, off / off.sum()),
            "cdf": np.array([np.mean(w <= value) for value in x]), "shares": np.array([some.mean() for some in bins]),
            "given_margin": mean, "ratio": ratio,
        }  # fmt: skip
        return {f"weights_{name}": value for name, value in found.items()}

    return read
