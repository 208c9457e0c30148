"""What a teacher's error says about its student's: bounds, how tight they are, and how well they order teachers.

The ideal-joint-classifier bound (X. Li et al., 2024, after Ben-David et al., Machine Learning 79, 2010) is
``e_S <= e_T + (1/2) d + lambda*``, see :mod:`numerics.solution.joint_classifier`.  By counting,
``e_S = e_T + P(teacher right, student wrong) - P(teacher wrong, student right) <= e_T + P(they disagree)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import stats

from numerics.deferred import special
from numerics.models import Chain, Estimator, Frozen, GaussianMixture, ParameterError, with_parameter
from numerics.optimize import optimize
from numerics.settings import DEFAULT, Settings
from numerics.solution import joint_classifier
from numerics.solution.samples import unit
from numerics.solution.solution import Solution, StageSolution, without_nan
from numerics.solver import solve
from theory.losses import CrossEntropy, Distillation, Loss

# One student


@dataclass(frozen=True)
class Bounds:
    """Bounds of one student's error, and their terms; all on fresh samples.

    Attributes
    ----------
    student_error, teacher_error : float
        e_S, e_T.
    half_divergence, kolmogorov : float
        Kuiper and Kolmogorov-Smirnov distance of the laws of the two logits.
    ideal_error : float
        lambda*, the least summed error of one head.
    ideal_head : str
        That head.
    bound : float
        ``teacher_error + half_divergence + ideal_error``.
    best_scale, best_bound : float
        Factor of the student's logit that makes the bound least, and the bound with it; e_S does not depend on it.
    disagreement, right_wrong, wrong_right : float
        P(they disagree), P(teacher right, student wrong), P(teacher wrong, student right).
    """

    student_error: float
    teacher_error: float
    half_divergence: float
    kolmogorov: float
    ideal_error: float
    ideal_head: str
    bound: float
    best_scale: float
    best_bound: float
    disagreement: float
    right_wrong: float
    wrong_right: float

    @property
    def without_ideal(self) -> float:
        """``teacher_error + half_divergence``: no bound, as lambda* is not 0; it may be below the student's error."""
        return self.teacher_error + self.half_divergence

    @property
    def disagreement_bound(self) -> float:
        """``teacher_error + disagreement``."""
        return self.teacher_error + self.disagreement

    @property
    def tightness(self) -> dict[str, float]:
        """Each bound over the student's error, at least 1."""
        names = {"bound": self.bound, "best_bound": self.best_bound, "disagreement_bound": self.disagreement_bound}
        return {name: value / self.student_error if self.student_error else math.inf for name, value in names.items()}

    def to_dict(self) -> dict:
        """Everything as plain numbers, ready for JSON."""
        derived = {"disagreement_bound": self.disagreement_bound, "tightness": self.tightness}
        return without_nan(asdict(self) | derived)

    def __str__(self) -> str:
        ratio = self.tightness
        return (
            f"joint classifier: error <= {self.teacher_error:.4f} + {self.half_divergence:.4f} + {self.ideal_error:.4f} "
            f"({self.ideal_head}) = {self.bound:.4f}, {ratio['bound']:.1f} times it "
            f"(at best scale {ratio['best_bound']:.1f})\n"
            f"disagreement: error <= {self.teacher_error:.4f} + {self.right_wrong:.4f} + {self.wrong_right:.4f} "
            f"= {self.disagreement_bound:.4f}, {ratio['disagreement_bound']:.1f} times it"
        )


def bounds_of(stage: StageSolution) -> Bounds:
    """Bounds of a solved stage's error by its teacher's.

    Raises
    ------
    ParameterError
        If the stage is not solved, has no teacher, or its data are not a mixture of two classes.

    Examples
    --------
    >>> from numerics import solve
    >>> chain = [Estimator(CrossEntropy(), 1.0), Estimator(Distillation(), 0.01, eta=0.5)]
    >>> found = bounds_of(solve(GaussianMixture(alpha=2.0, rho=0.5), chain)[1])
    >>> print(found)
    joint classifier: error <= 0.2113 + 0.0463 + 0.5074 (h > 0) = 0.7650, 2.6 times it (at best scale 2.5)
    disagreement: error <= 0.2113 + 0.1562 + 0.0715 = 0.4390, 1.5 times it
    """
    _require_taught(stage)
    pair = stage.pair(stage.teacher)
    student, teacher = pair.logit_law(0), pair.logit_law(1)
    scale, least = joint_classifier.best_scale(teacher, student) if student.width and teacher.width else (1.0, math.nan)
    e_t = float(pair.test_error(1))
    right_wrong, wrong_right = stage.teacher_right_wrong, stage.teacher_wrong_right
    return Bounds(
        student_error=stage.test_error, teacher_error=e_t, half_divergence=stage.kuiper_distance,
        kolmogorov=stage.kolmogorov_distance, ideal_error=stage.ideal_joint_error,
        ideal_head=str(joint_classifier.ideal_head(teacher, student)), bound=stage.joint_classifier_bound, best_scale=scale,
        best_bound=e_t + least, disagreement=right_wrong + wrong_right, right_wrong=right_wrong, wrong_right=wrong_right,
    )  # fmt: skip


def _require_taught(stage: StageSolution) -> None:
    if not isinstance(stage.data, GaussianMixture):
        raise ParameterError(f"data must be a GaussianMixture, got {stage.data!r}")
    if not stage.known:
        raise ParameterError(f"stage {stage.name} is not solved: {stage.solution.message}")
    if stage.teacher is None:
        raise ParameterError(f"stage {stage.name} must have a teacher; it is the first of its chain")


# Several teachers

PREDICTORS = {
    "teacher_error": "the teacher's test error",
    "joint_classifier_bound": "ideal-joint-classifier bound",
    "without_ideal": "the same without the ideal head's error",
    "disagreement_bound": "teacher's error plus disagreement",
    "posterior_distance": "teacher's distance to the true probabilities",
}
"""What may tell before the student is judged which teacher is best, in words; see :class:`Comparison`."""


@dataclass(frozen=True)
class Comparison:
    """Teachers ordered by what is known of them, beside the errors of their students.

    Attributes
    ----------
    labels : tuple of str
        Of the chains.
    student_error : array, shape (chains,)
    predictors : mapping of name to array, shape (chains,)
        Names are those of :data:`PREDICTORS`.  ``posterior_distance`` is ``E (sigma(h_T/T) - P(y=1 given x))^2`` on training
        samples, the teacher's part in the bound of Menon et al. (ICML 2021); NaN unless the teacher is the first stage.
    """

    labels: tuple[str, ...]
    student_error: np.ndarray
    predictors: Mapping[str, np.ndarray]

    @property
    def kendall_tau(self) -> dict[str, float]:
        """Rank correlation of each predictor with the student's error: 1 if it orders all teachers rightly."""
        return {
            name: float(stats.kendalltau(values, self.student_error).statistic) for name, values in self.predictors.items()
        }  # fmt: skip

    @property
    def choice(self) -> dict[str, str]:
        """The teacher that each predictor prefers."""
        return {name: self.labels[k] for name, k in self._chosen().items()}

    @property
    def regret(self) -> dict[str, float]:
        """By how much the error of that teacher's student is above the least one."""
        least = float(np.min(self.student_error))
        return {name: float(self.student_error[k]) - least for name, k in self._chosen().items()}

    def _chosen(self) -> dict[str, int]:
        return {
            name: int(np.nanargmin(values)) for name, values in self.predictors.items() if not np.isnan(values).all()
        }

    def to_dict(self) -> dict:
        """Everything as plain numbers and lists, ready for JSON."""
        return without_nan(
            {
                "labels": list(self.labels), "student_error": self.student_error.tolist(),
                "predictors": {name: values.tolist() for name, values in self.predictors.items()},
                "kendall_tau": self.kendall_tau, "choice": self.choice, "regret": self.regret,
            }
        )  # fmt: skip

    def __str__(self) -> str:
        best = self.labels[int(np.argmin(self.student_error))]
        lines = [f"{len(self.labels)} teachers; best student: {best}, error {np.min(self.student_error):.4f}"]
        lines.append(f"{'predictor':44} {'tau':>6} {'regret':>8}  prefers")
        tau, regret, choice = self.kendall_tau, self.regret, self.choice
        lines += [f"{PREDICTORS[name]:44} {tau[name]:6.2f} {regret[name]:8.4f}  {choice[name]}" for name in regret]
        return "\n".join(lines)


def compare_teachers(
    data: GaussianMixture,
    chains: Mapping[str, Chain | Sequence] | Sequence[Chain | Sequence],
    *,
    stage: int = -1,
    settings: Settings = DEFAULT,
) -> Comparison:
    """Beside the error of each chain's student, what predicts it from the teacher.

    Parameters
    ----------
    data
        Two Gaussian classes.
    chains : sequence, or mapping of label to chain
        At least two; the same student after different teachers.
    stage : int
        The student, an index as of a solution.

    Raises
    ------
    ParameterError
        For data that are not a mixture, fewer than two chains, or a stage without a teacher.
    ConvergenceError
        If a chain has no converged solution.

    Examples
    --------
    >>> student = Estimator(Distillation(0.5), 0.1)
    >>> chains = {f"{ridge:g}": [Estimator(CrossEntropy(), ridge), student] for ridge in (0.01, 0.1, 1.0, 10.0, 100.0)}
    >>> found = compare_teachers(GaussianMixture(alpha=2.0, rho=0.5), chains)
    >>> found.choice["teacher_error"], round(found.kendall_tau["teacher_error"], 2), round(found.regret["teacher_error"], 4)
    ('100', -0.4, 0.0171)
    """
    if not isinstance(data, GaussianMixture):
        raise ParameterError(f"data must be a GaussianMixture, got {data!r}")
    named = chains if isinstance(chains, Mapping) else {str(k): chain for k, chain in enumerate(chains)}
    if len(named) < 2:
        raise ParameterError(f"chains must be at least two, got {len(named)}")
    students = [solve(data, Chain.of(chain), settings=settings, throw=True)[stage] for chain in named.values()]
    for student in students:
        _require_taught(student)
    rows = {name: np.array([_predict(name, student) for student in students]) for name in PREDICTORS}
    return Comparison(tuple(named), np.array([student.test_error for student in students]), rows)


def _predict(name: str, student: StageSolution) -> float:
    if name == "posterior_distance":
        return posterior_distance(student)
    e_t = float(student.pair(student.teacher).test_error(1))
    return {
        "teacher_error": e_t, "without_ideal": e_t + student.kuiper_distance,
        "joint_classifier_bound": student.joint_classifier_bound, "disagreement_bound": student.disagreement_bound,
    }[name]  # fmt: skip


def oracle(data: GaussianMixture) -> Frozen:
    """The stage whose logit is the true log-odds of the class given all inputs; it knows v."""
    return Frozen(2.0 / data.delta, 4.0 / data.delta**2, math.log(data.rho / (1.0 - data.rho)), name="oracle")


def posterior_distance(student: StageSolution) -> float:
    """``E (sigma(h_T/T) - P(y=1 given x))^2`` on the teacher's training samples, T the temperature of the student's loss.

    Up to a constant what the bias of a distilled risk is bounded by (Menon et al. 2021); NaN unless the teacher is the first stage.
    """
    if student.teachers != (1,):
        return math.nan
    solution, temperature = student.solution, student.estimator.loss.parameters.get("temperature", 1.0)
    chain = Chain((oracle(student.data), solution.chain[0]))
    teacher = solve(student.data, chain, settings=solution.settings, throw=True)[1]

    def squared(label: np.ndarray, h: np.ndarray, odds: np.ndarray) -> np.ndarray:
        return (special.expit(h / temperature) - special.expit(odds)) ** 2

    return float(teacher.samples.mean(squared, [teacher.own, unit(2, 1)]).value)


# Several ways of training

RULES = {
    "labels": "labels alone",
    "distillation": "labels and soft targets",
    "logits": "the teacher's logits",
    "labels and logits": "labels and the teacher's logits",
    "labels, logits, features": "labels, logits and features, through the teacher's head",
    "teacher's head": "features, and soft targets through the teacher's head",
}
"""Rules that a student is trained by, in words; see :func:`training_rules`."""


@dataclass(frozen=True)
class Trained:
    """A student trained by one rule.

    Attributes
    ----------
    estimator : Estimator
        With its ridge.
    solution : Solution
    bounds : Bounds
    """

    estimator: Estimator
    solution: Solution
    bounds: Bounds


def training_rules(
    data: GaussianMixture,
    chain: Chain | Sequence,
    *,
    weight: float = 1.0,
    best_ridge: tuple[float, float] | None = None,
    settings: Settings = DEFAULT,
) -> dict[str, Trained]:
    """One student trained by each of :data:`RULES`, with each term of its bounds.

    In a linear model a feature is the logit without its bias, and the teacher's frozen head adds the teacher's bias.  So

    - matching features is matching logits with the bias fixed at the teacher's;
    - labels, logits and features, which the released code of the ideal-joint-classifier work trains, are labels and logits with
      twice the weight and that bias;
    - soft targets through the teacher's head (softmax regression representation learning, Yang et al., ICLR 2021) are distillation
      with mixing 1, temperature 1 and that bias, on top of matched features; at rho = 1/2 all biases are 0 and there is no
      difference but the matched features;
    - at ridge 0, where a student can meet all of its teacher's logits, every rule without labels gives the same student, the
      interpolator of least norm, whose bias is the teacher's.

    Parameters
    ----------
    data
        Two Gaussian classes.
    chain
        Teacher and student; of the student everything but the loss is kept.
    weight : float
        Of the squared differences of logits and of features, >= 0.
    best_ridge : (lower, upper), optional
        Take for each rule the ridge in this range that makes its test error least.

    Raises
    ------
    ParameterError
        For data that are not a mixture, a chain that is not of two stages, a student that is not trained, a negative weight, or a
        teacher whose bias is infinite.

    Examples
    --------
    >>> found = training_rules(
    ...     GaussianMixture(alpha=2.0, rho=0.2, label_noise=0.1),
    ...     [Estimator(CrossEntropy(), 0.5), Estimator(Distillation(0.5), 0.1)],
    ... )
    >>> for name in ("labels", "distillation", "logits"):
    ...     print(name, round(found[name].bounds.student_error, 4), round(found[name].bounds.bound, 4))
    labels 0.2151 0.9458
    distillation 0.1888 0.7048
    logits 0.1779 0.5567
    """
    chain = Chain.of(chain)
    if not isinstance(data, GaussianMixture):
        raise ParameterError(f"data must be a GaussianMixture, got {data!r}")
    if len(chain) != 2 or not isinstance(chain[1], Estimator):
        raise ParameterError(f"chain must be a teacher and a student that is trained, got {chain!r}")
    if not weight >= 0:
        raise ParameterError(f"weight must be a number >= 0, got {weight!r}")
    teacher, student = chain.stages
    bias = solve(data, [teacher], settings=settings, throw=True)[0].bias
    if not math.isfinite(bias):
        raise ParameterError(f"the bias of {chain.name(1)} is infinite: no head can be taken from it")
    found = {}
    for name in RULES:
        loss, fixed = _rule(name, student, weight)
        estimator = replace(student, loss=loss, bias=bias if fixed else student.bias, name="student")
        problem = [replace(teacher, name="teacher"), estimator]
        if best_ridge is not None:
            best = optimize(data, problem, {"student.ridge": best_ridge}, "student.test_error", settings=settings)
            estimator = best.solution.chain[1]
            problem = [problem[0], estimator]
        solution = solve(data, problem, settings=settings, throw=True)
        found[name] = Trained(estimator, solution, bounds_of(solution[1]))
    return found


_MATCHED = "w*(h - h_teacher)**2/2"


def _rule(name: str, student: Estimator, weight: float) -> tuple[Loss, bool]:
    """The loss of a rule, and whether the bias is the teacher's."""
    labels, soft, parameters = "softplus(h) - y*h", "softplus(h) - sigmoid(h_teacher)*h", {"w": weight}
    match name:
        case "labels":
            return CrossEntropy(), False
        case "distillation":
            taught = student.loss.stages(2)
            return student.loss if taught else Distillation(), False
        case "logits":
            return Loss.from_expression("(h - h_teacher)**2/2", name="logits"), False
        case "labels and logits":
            return Loss.from_expression(f"{labels} + {_MATCHED}", parameters, name=name), False
        case "labels, logits, features":
            return Loss.from_expression(f"{labels} + {_MATCHED}", {"w": 2.0 * weight}, name=name), True
    return Loss.from_expression(f"{soft} + {_MATCHED}", parameters, name=name), True


def along(data: GaussianMixture, chain: Chain | Sequence, path: str, values: Sequence[float]) -> dict[str, Chain]:
    """The same chain at several values of one parameter of a stage, by value: what :func:`compare_teachers` takes."""
    return {f"{value:.4g}": with_parameter(data, Chain.of(chain), path, float(value))[1] for value in values}
