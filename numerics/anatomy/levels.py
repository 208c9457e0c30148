"""Levels of a teacher's knowledge: students that are given one more of them than the one before, and what each brings.

Tang et al. (2020) tell three levels apart.  Of all that a teacher says, its *universe* is how sure it is on average, its
*domain* how sure it is of each class, its *instance* how sure it is of a sample.  The students here differ in the soft targets
of their loss alone (:mod:`theory.levels`); those of the first five are conditional means of the teacher's outputs given more
and more, so that what they gain, one after the other, adds up to all that distillation brings.

Of K > 2 classes domain knowledge is which classes are alike: the mean of the teacher's outputs given the label.  It may come
before or after how sure the teacher is of a sample (the target that Tang et al. call KD-pt), and gains differ between the two
orders.  Targets that only know angles between the teacher's weights (KD-sim) stand beside them; see
:class:`theory.softmax.Target`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from numerics.anatomy.shuffled import shuffled
from numerics.deferred import optimize as scipy_optimize
from numerics.deferred import special
from numerics.models import Chain, ClassMixture, DataModel, Estimator, GaussianMixture, ParameterError, check_fit
from numerics.optimize import optimize
from numerics.settings import DEFAULT, Settings
from numerics.solution import quadrature
from numerics.solution.solution import Solution, StageSolution
from numerics.solution.training import TrainingSamples
from numerics.solver import solve
from theory.levels import ConfidenceOnLabel, ConfidenceWeighted, LabelTargets
from theory.losses import CrossEntropy, Distillation, Loss, TableTargets
from theory.symbols import TEACHER

if TYPE_CHECKING:
    from numerics.classes.solution import ClassSolution, ClassStage

LADDER = ("hard", "scaled", "universe", "domain", "instance")
"""Students in the order in which they know more."""

GAINS = ("scale", "universe", "domain", "instance")
"""What each of the ladder, after the first, gains over the one before."""

INSTANCE_FIRST = ("hard", "scaled", "universe", "true", "instance")
"""The other order, for K classes: how sure the teacher is of a sample comes before which classes are alike."""

GAINS_INSTANCE_FIRST = ("scale", "universe", "instance", "domain")
"""What each of these gains over the one before."""

CLASS_CONTROLS = ("true", "true+similarity", "cosine")
"""Students of K classes beside the ladder: those of KD-pt, of KD-pt with the rest as classes are alike, of KD-sim."""

SHUFFLED = "shuffled"
"""The student whose targets are shuffled (:mod:`numerics.anatomy.shuffled`): no stage of a chain, as its targets are nobody's."""

CONTROLS = (SHUFFLED, "confidence", "choice", "permuted")
"""Students beside the ladder."""

PARTS = ("dispersion", "alignment")
"""What instance knowledge is the sum of: what shuffled outputs, which vary as much, gain over their means, and what is left."""

TITLES = {
    "hard": "labels alone",
    "scaled": "labels, soft term's temperature",
    "universe": "+ how sure on average",
    "domain": "+ how sure of each class",
    "instance": "+ how sure of each sample: the student",
    SHUFFLED: "the same, shuffled within each class",
    "confidence": "labels weighted by p of the label",
    "choice": "labels weighted by max p (CWTM)",
    "permuted": "max p put on the label (DKPP)",
    "true": "p of the label alone (KD-pt)",
    "true+similarity": "p of the label, the rest as classes are alike",
    "cosine": "angles between the teacher's weights (KD-sim)",
}
"""What students are given, in words."""

TITLES_OF_CLASSES = {"domain": "+ which classes are alike"}
"""The same of K classes, where it differs."""

BEST_RIDGES = (1e-4, 1e3)
"""Bounds of the search for a student's best ridge; one that is best at the upper end is looked for further out."""

_ENDS = np.linspace(-quadrature.REACH, quadrature.REACH, 9)
_ACCURACY = 1e-12
_TRIED_RIDGES = 15  # in the search for the best one where targets are shuffled
_FAR_RIDGE = 1e7  # stands for an infinite one


def ancestors(chain: Chain) -> Chain:
    """The last stage of a chain, and those that it learns from, directly or through others; what they are does not depend on
    the rest.

    A chain with random masks, which refer to the stage before, or with a formula that numbers its logits, is left as it is.

    Examples
    --------
    >>> stages = [Estimator(CrossEntropy(), 0.1, name=name) for name in ("first", "second")]
    >>> ancestors(Chain.of([*stages, Estimator(Distillation(teacher=1), 0.1)])).names
    ('first', 'stage3')
    """
    kept: set[int] = set()
    waiting = [len(chain)]
    while waiting:
        number = waiting.pop()
        kept.add(number)
        stage = chain[number - 1]
        waiting += [
            seen for seen in (stage.loss.stages(number) if isinstance(stage, Estimator) else ()) if seen not in kept
        ]
    if len(kept) == len(chain):
        return chain
    order, stages = sorted(kept), []
    for number in order:
        stage = chain[number - 1]
        if stage.mask_overlap is not None:
            return chain
        if isinstance(stage, Estimator) and stage.loss.logits:
            if stage.loss.logits != (TEACHER,):
                return chain
            (taught_by,) = stage.loss.stages(number)
            stage = replace(stage, loss=stage.loss.with_teacher(order.index(taught_by) + 1))
        stages.append(replace(stage, name=chain.name(number)))
    return Chain(tuple(stages))


@dataclass(frozen=True)
class Question:
    """A student taught by one teacher, whose knowledge is taken apart.

    Attributes
    ----------
    data, chain
        The student, which is the last stage, and those that it learns from, directly or not.
    taught_by : int
        The teacher's number, from 1.
    """

    data: GaussianMixture | ClassMixture
    chain: Chain
    taught_by: int

    @classmethod
    def of(cls, data: DataModel, chain: object, stage: int = -1) -> Question:
        """Check what can be taken apart.

        Raises
        ------
        ParameterError
            For labels of a rule, a stage without a teacher, a loss that is not :class:`theory.losses.Distillation` with the
            full target, or several teachers.
        """
        if not isinstance(data, GaussianMixture | ClassMixture):
            found = f"a {data.title}" if isinstance(data, DataModel) else repr(data)
            raise ParameterError(
                f"data must be a GaussianMixture or a ClassMixture, whose classes an anatomy needs, got {found}"
            )
        chain = Chain.of(chain)
        check_fit(data, chain)
        if isinstance(stage, bool) or not isinstance(stage, int) or not -len(chain) <= stage < len(chain):
            raise ParameterError(
                f"stage must be a position in the chain, from {-len(chain)} to {len(chain) - 1}, got {stage!r}"
            )
        number = range(1, len(chain) + 1)[stage]
        student, name = chain[number - 1], chain.name(number)
        if number == 1:
            raise ParameterError(f"stage must be one with a teacher, but {name} is the first of the chain")
        if not isinstance(student, Estimator) or not isinstance(student.loss, Distillation):
            raise ParameterError(f"loss of {name} must be a Distillation to be taken apart, got {student!r}")
        if student.loss.needs_many_classes:
            raise ParameterError(
                f"target of {name} must be 'full' to be taken apart, got {dict(student.loss.options)['target']!r}"
            )
        if isinstance(student.loss.teacher, tuple):
            raise ParameterError(f"loss of {name} must have one teacher, got teacher={student.loss.teacher!r}")
        shorter = ancestors(Chain(chain.stages[:number]))
        used = {found for one in shorter.stages for found in one.sets}
        if "training" not in used:
            raise ParameterError(f"sets of {name} and the stages before must include training")
        if data.further:
            data = replace(data, further=tuple(found for found in data.further if found.name in used))
        return cls(data, shorter, shorter[-1].loss.stages(len(shorter))[0])

    @property
    def students(self) -> tuple[str, ...]:
        """Names of the students that are solved: the controls with losses of their own in chains of two alone, because in longer
        ones they take too long; of K classes all."""
        if self.data.many_classes:
            return LADDER + CLASS_CONTROLS
        return LADDER + (CONTROLS if len(self.chain) == 2 else (SHUFFLED,))

    @property
    def student(self) -> Estimator:
        return self.chain.stages[-1]

    @property
    def name(self) -> str:
        """The student's."""
        return self.chain.names[-1]

    @property
    def loss(self) -> Distillation:
        return self.student.loss

    def with_loss(self, loss: Loss) -> Chain:
        """The chain with another loss of the student."""
        return Chain((*self.chain.stages[:-1], replace(self.student, loss=loss, name=self.name)))

    def problem_with(self, loss: Loss) -> tuple[DataModel, Chain]:
        """Data and chain with another loss of the student.

        Of K classes without the stages that it does not need: a student of the labels of its teacher's samples may be its teacher,
        and such a pair has no solution.
        """
        chain = self.with_loss(loss)
        if not self.data.many_classes or "training" not in self.student.sets:
            return self.data, chain
        chain = ancestors(chain)
        used = {name for stage in chain.stages for name in stage.sets}
        return replace(self.data, further=tuple(found for found in self.data.further if found.name in used)), chain

    def losses(self, constants: Constants | None) -> dict[str, Loss]:
        """Losses of all students, by name."""
        own = self.loss.parameters
        if own["mixing"] == 0.0:  # there is nothing of the teacher in any of them
            return dict.fromkeys(TITLES, self.loss)
        same = {**own, "temperature_squared": self.loss.temperature_squared}
        if constants is None:
            taught = {**same, "teacher": self.taught_by}
            targets = {"universe": "average", "domain": "similarity", "cosine": "cosine-1"}
            return {
                "hard": CrossEntropy(own["smoothing"]),
                "scaled": TableTargets(_smoothed_labels(self.data.classes_count, own["smoothing"]), **same),
                "instance": self.loss,
                **{name: Distillation(**taught, target=target) for name, target in targets.items()},
                **{name: Distillation(**taught, target=name) for name in ("true", "true+similarity")},
            }
        e, (e0, e1), wrong = constants.off_label, constants.off_label_by_class, own["smoothing"]
        taught = {**same, "teacher": self.taught_by}
        return {
            "hard": CrossEntropy(own["smoothing"]),
            "scaled": LabelTargets(**same, off_zero=wrong, off_one=wrong),
            "universe": LabelTargets(**same, off_zero=e, off_one=e),
            "domain": LabelTargets(**same, off_zero=e0, off_one=e1),
            "instance": self.loss,
            "confidence": ConfidenceWeighted(**taught, scale=1.0 / (1.0 - e)),
            "choice": ConfidenceWeighted(**taught, scale=1.0 / constants.choice, of_choice=True),
            "permuted": ConfidenceOnLabel(**taught),
        }


@dataclass(frozen=True)
class Constants:
    """Averages of the teacher's outputs at the student's temperature, over the student's training samples with the labels seen.

    Attributes
    ----------
    off_label : float
        E[1 - p], p on the label.
    off_label_by_class : pair of floats
        The same given y = 0, and y = 1.
    choice : float
        E[max(p, 1 - p)].
    """

    off_label: float
    off_label_by_class: tuple[float, float]
    choice: float


def constants(solution: Solution, question: Question) -> Constants:
    """Averages of the teacher's outputs, from theory."""
    stage, temperature = solution[-1], question.loss.parameters["temperature"]
    samples = stage.samples
    row = np.eye(len(solution))[question.taught_by - 1]

    def off(label: np.ndarray, h: np.ndarray) -> np.ndarray:
        return special.expit((1.0 - 2.0 * label) * h / temperature)

    def mean(function: Callable) -> float:
        return float(samples.mean(function, [row]).value)

    positive = mean(lambda label, h: label + 0.0 * h)
    ones = mean(lambda label, h: label * off(label, h))
    zeros = mean(lambda label, h: (1.0 - label) * off(label, h))

    def doubt(label: np.ndarray, h: np.ndarray) -> np.ndarray:  # what max(p, 1 - p) has more than p
        return np.maximum(0.0, 2.0 * off(label, h) - 1.0)

    if question.taught_by == 1 and isinstance(samples, TrainingSamples):
        more = _mean_with_kink(TrainingSamples(solution, 1, samples.sets), doubt)
    else:
        more = mean(doubt)
    e = ones + zeros
    return Constants(e, (zeros / (1.0 - positive), ones / positive), 1.0 - e + more)


def _mean_with_kink(samples: TrainingSamples, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """Average over the first stage's logit of a function that bends at 0, which the panels close in on."""
    total = 0.0
    for group, share in enumerate(samples.weight):

        def integrand(_: np.ndarray, g: np.ndarray, group: int = group) -> tuple[np.ndarray, np.ndarray]:
            nodes = samples.follow(np.full(g.size, group), g.ravel()[:, None])
            values = function(nodes.labels, nodes.logits[:, 0]).reshape(g.shape)
            return quadrature.density(g) * values, np.zeros_like(g)

        value, _ = quadrature.integrate(integrand, _ENDS, np.array([_ACCURACY]), quadrature.Budget())
        total += share * float(value[0])
    return total


@dataclass(frozen=True)
class Level:
    """One student.

    Attributes
    ----------
    name : str
    ridge : float
        Infinite where larger and larger ones do not make it worse.
    error : float
        Test error.
    direction : float
        Test error after the best threshold; of K classes NaN, see :func:`numerics.classes.corrections.best_bias`.
    reason : str
        Why there is none, where it is NaN.
    displaced : tuple of floats
        Test errors on other nodes; of K classes alone.
    """

    name: str
    ridge: float
    error: float
    direction: float
    reason: str = ""
    displaced: tuple[float, ...] = ()

    @property
    def bias_part(self) -> float:
        """What the best threshold takes away."""
        return self.error - self.direction

    def to_dict(self) -> dict[str, object]:
        """Plain numbers."""
        return {
            "ridge": self.ridge, "error": self.error,
            **({"quadrature_error": self.quadrature_error} if self.displaced else
               {"direction": self.direction, "bias_part": self.bias_part}),
            **({"reason": self.reason} if self.reason else {}),
        }  # fmt: skip

    @property
    def quadrature_error(self) -> float:
        """Of the test error: its spread over nodes; NaN where there are no others."""
        return _spread(self.displaced, self.error)


def _spread(values: Sequence[float], value: float) -> float:
    return float(np.sqrt(np.mean((np.array(values) - value) ** 2))) if len(values) else math.nan


def _smoothed_labels(classes: int, smoothing: float) -> np.ndarray:
    """Labels as a table of targets."""
    off = smoothing / (classes - 1)
    return (1.0 - smoothing - off) * np.eye(classes) + off


def gains(
    errors: Mapping[str, float], ladder: Sequence[str] = LADDER, names: Sequence[str] = GAINS
) -> dict[str, float]:
    """What each level brings: differences of the errors along the ladder, and ``total``, their sum."""
    steps = {
        gain: errors[before] - errors[after] for gain, (before, after) in zip(names, pairwise(ladder), strict=True)
    }
    return {**steps, "total": errors[ladder[0]] - errors[ladder[-1]]}


def over_labels(errors: Mapping[str, float]) -> dict[str, float]:
    """What each student gains over the one on labels alone."""
    return {name: errors[LADDER[0]] - error for name, error in errors.items() if name != LADDER[0]}


def instance_parts(errors: Mapping[str, float]) -> dict[str, float]:
    """What instance knowledge gains by dispersion and by alignment with the sample: differences of errors by way of shuffled
    targets."""
    before, between, after = (errors.get(name, math.nan) for name in ("domain", SHUFFLED, "instance"))
    return dict(zip(PARTS, (before - between, between - after), strict=True))


def blame(found: Mapping[str, float]) -> str | None:
    """The level that hurts most, if distillation hurts; else None."""
    return min(GAINS, key=lambda gain: found[gain]) if found["total"] < 0.0 else None


@dataclass(frozen=True)
class Levels:
    """Students of a question, solved at one ridge, or each at its best.

    Attributes
    ----------
    students : mapping of name to Level
    best_ridge : bool
        Whether each has its own best ridge.
    """

    students: Mapping[str, Level]
    best_ridge: bool = False

    @cached_property
    def gains(self) -> dict[str, float]:
        """Of test error: scale, universe, domain, instance and total; positive where the student is better for it."""
        return gains({name: level.error for name, level in self.students.items()})

    @cached_property
    def direction_gains(self) -> dict[str, float]:
        """The same of the error after the best threshold."""
        return gains({name: level.direction for name, level in self.students.items()})

    @cached_property
    def instance_first_gains(self) -> dict[str, float]:
        """The same in the order of :data:`INSTANCE_FIRST`; empty without these students."""
        if not set(INSTANCE_FIRST) <= set(self.students):
            return {}
        errors = {name: level.error for name, level in self.students.items()}
        return gains(errors, INSTANCE_FIRST, GAINS_INSTANCE_FIRST)

    @property
    def over_labels(self) -> dict[str, float]:
        """What each student gains over the one on labels alone."""
        return over_labels({name: level.error for name, level in self.students.items()})

    def quadrature_errors(self, ladder: Sequence[str] = LADDER, names: Sequence[str] = GAINS) -> dict[str, float]:
        """Of the gains along a ladder: their spread over nodes, which all students share; NaN for two classes."""
        rungs = [self.students[name] for name in ladder]
        if not all(level.displaced for level in rungs):
            return dict.fromkeys((*names, "total"), math.nan)
        found = gains({level.name: level.error for level in rungs}, ladder, names)
        others = [
            gains(dict(zip(ladder, errors, strict=True)), ladder, names)
            for errors in zip(*(level.displaced for level in rungs), strict=True)
        ]
        return {name: _spread([other[name] for other in others], value) for name, value in found.items()}

    @property
    def instance_parts(self) -> dict[str, float]:
        """What instance knowledge gains by :data:`PARTS`, which add up to it; NaN where shuffled targets have no solution."""
        return instance_parts({name: level.error for name, level in self.students.items()})

    @property
    def blame(self) -> str | None:
        """The level that hurts most, if distillation hurts; else None."""
        return blame(self.gains)

    def to_dict(self) -> dict[str, object]:
        """Plain numbers."""
        found = {
            "students": {name: level.to_dict() for name, level in self.students.items()},
            "gains": self.gains, "blame": self.blame,
        }  # fmt: skip
        if not self.instance_first_gains:
            return found | {"direction_gains": self.direction_gains, "instance_parts": self.instance_parts}
        other = self.quadrature_errors(INSTANCE_FIRST, GAINS_INSTANCE_FIRST)
        return found | {
            "gains_quadrature_error": self.quadrature_errors(),
            "instance_first_gains": self.instance_first_gains, "instance_first_gains_quadrature_error": other,
        }  # fmt: skip


@lru_cache(maxsize=256)
def constants_of(
    question: Question, settings: Settings, rtol: float | None = None
) -> tuple[Solution | ClassSolution, Constants | None]:
    """Solution of the question's problem, and the averages of its teacher's outputs; None for K classes, whose stages have them
    in their targets.  ``rtol`` is that of K classes."""
    solution = solve(question.data, question.chain, settings=settings, rtol=rtol)
    return solution, None if question.data.many_classes else constants(solution, question)


@lru_cache(maxsize=512)
def solved(
    question: Question, name: str, settings: Settings = DEFAULT, rtol: float | None = None
) -> StageSolution | ClassStage:
    """One of the students."""
    solution, found = constants_of(question, settings, rtol)
    loss = question.losses(found)[name]
    if loss is question.loss:
        return solution[-1]
    return solve(*question.problem_with(loss), settings=settings, rtol=rtol)[-1]


def levels(
    question: Question, settings: Settings = DEFAULT, names: tuple[str, ...] | None = None, rtol: float | None = None
) -> Levels:
    """The students at the student's ridge, all or those of these names; ``rtol`` is that of K classes."""
    if question.data.many_classes:
        return Levels({name: _class_level(question, name, settings, rtol) for name in names or question.students})
    students = {}
    for name in names or question.students:
        ridge = question.student.ridge
        try:
            if name == SHUFFLED:
                students[name] = _shuffled(question, settings)
                continue
            stage = solved(question, name, settings)
        except ParameterError as error:  # no limit of a ridge that vanishes
            students[name] = Level(name, ridge, math.nan, math.nan, str(error))
            continue
        reason = "" if stage.solution.converged else stage.solution.message
        students[name] = Level(name, ridge, stage.test_error, stage.direction_error, reason)
    return Levels(students)


def _class_level(question: Question, name: str, settings: Settings, rtol: float | None) -> Level:
    """A student of K classes."""
    stage = solved(question, name, settings, rtol)
    solution, ridge = stage.solution, question.student.ridge
    if not stage.known:
        return Level(name, ridge, math.nan, math.nan, solution.message)
    reason = "" if solution.converged else solution.message
    return Level(name, ridge, stage.test_error, math.nan, reason, stage.displaced("test_error"))


def _shuffled(question: Question, settings: Settings, ridge: float | None = None) -> Level:
    """The student of shuffled targets; of labels alone without a soft term."""
    ridge = question.student.ridge if ridge is None else ridge
    if question.loss.parameters["mixing"] == 0.0:
        stage = solved(question, LADDER[-1], settings)
        return Level(SHUFFLED, ridge, stage.test_error, stage.direction_error)
    found = shuffled(constants_of(question, settings)[0], question, ridge)
    return Level(SHUFFLED, ridge, found.test_error, found.direction_error, found.message)


def _best_shuffled(question: Question, settings: Settings) -> Level:
    """The same at its best ridge, infinite if none up to the largest does better than that."""
    low, high = (math.log(end) for end in BEST_RIDGES)

    def error(log_ridge: float) -> float:
        return _shuffled(question, settings, math.exp(log_ridge)).error

    tried = np.linspace(low, high, _TRIED_RIDGES)
    errors = [error(value) for value in tried]
    if np.isnan(errors).all():
        return _shuffled(question, settings)
    least = int(np.nanargmin(errors))
    if least == len(tried) - 1:
        return replace(_shuffled(question, settings, _FAR_RIDGE), ridge=math.inf)
    ends = tried[max(least - 1, 0)], tried[least + 1]
    best = scipy_optimize.minimize_scalar(error, bounds=ends, method="bounded", options={"xatol": 1e-5}).x
    return _shuffled(question, settings, math.exp(best))


def best_levels(
    question: Question, settings: Settings = DEFAULT, names: tuple[str, ...] | None = None, rtol: float | None = None
) -> Levels:
    """The students, each at the ridge that is best for its test error; the teacher stays what it is."""
    _, found = constants_of(question, settings, rtol)
    losses, students, own = question.losses(found), {}, question.loss.parameters
    for name in names or question.students:
        if name == SHUFFLED and own["mixing"] > 0.0:
            students[name] = _best_shuffled(question, settings)
            continue
        best = optimize(
            question.data, question.with_loss(losses[name]), {f"{question.name}.ridge": BEST_RIDGES},
            f"{question.name}.test_error", settings=settings,
        )  # fmt: skip
        far = best.location[f"{question.name}.ridge"] == "infinity"
        ridge = math.inf if far else best.parameters[f"{question.name}.ridge"]
        last = best.solution[-1]
        if question.data.many_classes:
            displaced = () if far else last.displaced("test_error")
            students[name] = Level(name, ridge, best.limit, math.nan, "", displaced)
        else:
            students[name] = Level(name, ridge, best.limit, last.direction_error)
    return Levels(students, best_ridge=True)
