"""What is run: widths, labels and balls over data of growing difficulty, cut into tasks that can be kept and gone on with.

An experiment goes over one condition (a gap, or a noise) and over runs, each with data, networks and teacher of its own; a task is
one run at one condition.  What needs no runs because it is exact (:mod:`numerics.neurons.exact`) goes over conditions alone.  All
are parts of :func:`numerics.sweeps.run.evaluate`, with or without a journal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from numerics.models import (
    Chain,
    DataModel,
    Estimator,
    GaussianMixture,
    LinearRule,
    ParameterError,
    RandomFeatures,
)
from numerics.neurons import data
from numerics.neurons.bounds import hard_radius, untrained_kl
from numerics.neurons.data import LABELS
from numerics.neurons.deep import DeepRule, forward, random_layers, train_deep
from numerics.neurons.exact import neurons_needed
from numerics.neurons.margin import margin
from numerics.neurons.two_layer import (
    Rule,
    Trained,
    hard_targets,
    outputs,
    soft_targets,
    symmetric_start,
    train,
)
from numerics.optimize import optimize
from numerics.solver import ConvergenceError
from numerics.sweeps.journal import Piece
from numerics.sweeps.provenance import code_version, package_versions
from theory.losses import CrossEntropy, Distillation

if TYPE_CHECKING:
    import xarray

LEVEL = 0.05
"""0-1 error beta on the training set that is asked for, in the radius of the theorem's ball, too."""

TRAININGS = {
    "soft": "soft labels, ball of radius 1",
    "hard": "hard labels, ball of radius 1",
    "hard_large": "hard labels, the theorem's ball",
    "soft_linear": "soft labels, ball of radius 1, linearised",
    "hard_large_linear": "hard labels, the theorem's ball, linearised",
    "soft_long": "soft labels, ball of radius 1, steps 16 times as long",
    "hard_tangent": "hard labels, ball of radius 1, linear loss",
}
"""Trainings of a scan over gaps."""

LONGER = 16.0
"""Factor between the steps of "soft_long" and the others."""

MEASURED = ("loss", "mean_loss", "error", "at_edge", "flipped")
"""What is kept of a training (see :class:`numerics.neurons.two_layer.Trained`)."""

MARGINS = ("kernel", "upper", "lower", "clipped", "duality_gap")
"""What is kept of a margin (see :class:`numerics.neurons.margin.Margin`)."""

TUNINGS = ("best", "small")
"""Ridges of an exact student: the best one at every ratio, or a small one."""

TEACHER_RIDGES = (1e-4, 1e2)
"""Between which the best ridge of a rule's teacher is looked for."""

RULES = {"xor": data.xor, "line": data.line}
"""Data sets with a gap."""


@dataclass(frozen=True)
class _Scan(ABC):
    """Something measured at several values of some conditions; what a sweep, its journal and the stamps of figures ask for."""

    conditions: ClassVar[tuple[str, ...]]
    """Names of the conditions, which are dimensions; with a plural s, of the fields that hold their values."""

    simulated: ClassVar[bool]

    @abstractmethod
    def layout(self) -> Mapping[str, tuple[str, ...]]:
        """What is measured: names, and dimensions beside those of :meth:`axes`."""

    @abstractmethod
    def measure(self, *place: float) -> Mapping[str, Any]:
        """All of it, at one value on every axis."""

    @abstractmethod
    def coordinates(self) -> dict[str, list]:
        """Labels along the dimensions of :meth:`layout`."""

    def axes(self) -> dict[str, np.ndarray]:
        return {name: np.array(getattr(self, name + "s")) for name in self.conditions}

    def along_axes(self, over: Mapping[str, np.ndarray]) -> _Scan:
        """The same scan over some of the values."""
        return replace(self, **{name + "s": tuple(float(x) for x in over[name]) for name in self.conditions})

    def description(self) -> dict[str, object]:
        """All that the numbers depend on, short enough to be kept with them."""
        fields = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"kind": type(self).__name__, **fields, "versions": package_versions(), "code": code_version(False)}

    def tasks(self) -> list[Callable[[], Piece]]:
        return [partial(_measured, self, place) for place in product(*(v.tolist() for v in self.axes().values()))]

    def join(self, pieces: Iterable[Piece]) -> xarray.Dataset:
        import xarray

        axes = {name: values.tolist() for name, values in self.axes().items()}
        coordinates = {**axes, **self.coordinates()}
        lengths = [len(values) for values in axes.values()]
        rows = np.array([piece.values[:, 0] for piece in pieces])
        variables, begin = {}, 0
        for name, dims in self.layout().items():
            shape = [len(coordinates[dim]) for dim in dims]
            end = begin + int(np.prod(shape))
            variables[name] = ((*axes, *dims), rows[:, begin:end].reshape(*lengths, *shape))
            begin = end
        attributes = {name: value for name, value in asdict(self).items() if not isinstance(value, tuple)}
        return xarray.Dataset(variables, coordinates, attributes)


def _measured(scan: _Scan, place: tuple[float, ...]) -> Piece:
    found = scan.measure(*place)
    return Piece(np.concatenate([np.ravel(found[name]) for name in scan.layout()])[:, None].astype(float))


@dataclass(frozen=True)
class _Experiment(_Scan):
    """Runs at several values of one condition."""

    runs: int
    seed: int
    widths: tuple[int, ...]

    simulated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ParameterError(f"runs must be at least 1, got {self.runs!r}")
        if self.seed < 0:
            raise ParameterError(f"seed must be at least 0, got {self.seed!r}")

    @abstractmethod
    def measure(self, value: float, run: int) -> Mapping[str, Any]:
        """One run at one value of the condition."""

    def coordinates(self) -> dict[str, list]:
        return {"width": list(self.widths)}

    def generator(self, value: float, run: int, *purpose: int) -> np.random.Generator:
        """Independent random numbers for every condition, run and purpose; more runs change none of the first."""
        return np.random.default_rng([self.seed, run, round(1e9 * value), *purpose])

    def axes(self) -> dict[str, np.ndarray]:
        return {**super().axes(), "run": np.arange(self.runs)}

    def along_axes(self, over: Mapping[str, np.ndarray]) -> _Scan:
        """The same scan over some of its conditions, and the first runs."""
        return replace(super().along_axes(over), runs=len(over["run"]))


@dataclass(frozen=True)
class GapScan(_Experiment):
    """Two layers on data with a gap: every training of :data:`TRAININGS` at every width, and the margin of every data set.

    The teacher is the network of the margin, the largest class margin in the ball of radius 1, as in the bound for soft labels.

    Attributes
    ----------
    rule : str
        A key of :data:`RULES`.
    gaps : tuple of float
        Gaps of the data.
    n_samples, n_inputs : int
        Size of a data set.
    rate, steps
        Of projected gradient descent.
    """

    rule: str = "xor"
    gaps: tuple[float, ...] = (0.02, 0.05, 0.13, 0.2, 0.275)
    n_samples: int = 200
    n_inputs: int = 10
    rate: float = 1.0
    steps: int = 2000

    conditions: ClassVar[tuple[str, ...]] = ("gap",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in RULES:
            raise ParameterError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")

    def layout(self) -> dict[str, tuple[str, ...]]:
        trained = dict.fromkeys(MEASURED, ("training", "width"))
        return {**dict.fromkeys((*MARGINS, "radius", "untrained_kl"), ()), **trained}

    def coordinates(self) -> dict[str, list]:
        return {**super().coordinates(), "training": list(TRAININGS)}

    def measure(self, value: float, run: int) -> dict[str, Any]:
        sample = RULES[self.rule](self.n_samples, self.n_inputs, value, self.generator(value, run, 0))
        found = margin(sample.X, sample.y, seed=int(self.generator(value, run, 1).integers(2**31)))
        radius = float(hard_radius(found.lower, LEVEL))
        soft, hard = soft_targets(found.logits), hard_targets(sample.y)
        how = {
            "soft": (soft, Rule(1.0, self.rate, self.steps)),
            "hard": (hard, Rule(1.0, self.rate, self.steps)),
            "hard_large": (hard, Rule(radius, self.rate, self.steps)),
            "soft_linear": (soft, Rule(1.0, self.rate, self.steps, True)),
            "hard_large_linear": (hard, Rule(radius, self.rate, self.steps, True)),
            "soft_long": (soft, Rule(1.0, LONGER * self.rate, self.steps)),
            "hard_tangent": (hard, Rule(1.0, self.rate, self.steps, tangent=True)),
        }
        starts = [symmetric_start(m, self.n_inputs, self.generator(value, run, 2, m)) for m in self.widths]
        trained: list[list[Trained]] = [
            [train(sample, how[name][0], start, how[name][1]) for start in starts] for name in TRAININGS
        ]
        return {
            **{name: getattr(found, name) for name in MARGINS},
            "radius": radius,
            "untrained_kl": untrained_kl(found.logits),
            **{name: [[getattr(t, name) for t in row] for row in trained] for name in MEASURED},
        }


@dataclass(frozen=True)
class _DigitScan(_Experiment):
    """Parity of digits with noisy pixels: test errors of students on soft and on hard labels, and of their teacher.

    Attributes
    ----------
    noises : tuple of float
        Standard deviations of the noise, in units of that of all pixels.
    n_train : int
        Images to learn from; the others of the 1797 are tested on.
    teacher_width, rate, steps
        Of the teacher; rate and steps are those of the students, too.
    temperature : float
        T of the soft labels sigma(f/T).
    """

    noises: tuple[float, ...] = (0.0, 1.0, 1.5)
    n_train: int = 800
    teacher_width: int = 200
    rate: float = 16.0
    steps: int = 1500
    temperature: float = 1.0

    conditions: ClassVar[tuple[str, ...]] = ("noise",)

    def layout(self) -> dict[str, tuple[str, ...]]:
        return {"teacher_train_error": (), "teacher_test_error": (), "test_error": ("labels", "width")}

    def coordinates(self) -> dict[str, list]:
        return {**super().coordinates(), "labels": list(LABELS)}

    @abstractmethod
    def fitted(
        self, train_set: data.Labelled, targets: np.ndarray, width: int, generator: np.random.Generator
    ) -> Callable[[np.ndarray], np.ndarray]:
        """A trained network: logits of inputs."""

    def measure(self, value: float, run: int) -> dict[str, Any]:
        train_set, test_set = data.digits_parity(self.n_train, value, self.generator(value, run, 0))

        def error(network: Callable, sample: data.Labelled) -> float:
            return float(np.mean(sample.y * network(sample.X) <= 0))

        hard = hard_targets(train_set.y)
        teacher = self.fitted(train_set, hard, self.teacher_width, self.generator(value, run, 1))
        targets = {"soft": soft_targets(teacher(train_set.X) / self.temperature), "hard": hard}
        return {
            "teacher_train_error": error(teacher, train_set),
            "teacher_test_error": error(teacher, test_set),
            "test_error": [
                [
                    error(self.fitted(train_set, targets[name], m, self.generator(value, run, 2, m)), test_set)
                    for m in self.widths
                ]
                for name in LABELS
            ],
        }


@dataclass(frozen=True)
class DigitScan(_DigitScan):
    """With two layers, and no ball."""

    def fitted(
        self, train_set: data.Labelled, targets: np.ndarray, width: int, generator: np.random.Generator
    ) -> Callable[[np.ndarray], np.ndarray]:
        start = symmetric_start(width, train_set.X.shape[1], generator)
        movement = train(train_set, targets, start, Rule(np.inf, self.rate, self.steps)).movement
        return lambda X: outputs(X, start, movement)


@dataclass(frozen=True)
class DeepScan(_DigitScan):
    """With three hidden layers, trained by Adam."""

    teacher_width: int = 64
    rate: float = 0.003
    steps: int = 400
    temperature: float = 4.0

    def fitted(
        self, train_set: data.Labelled, targets: np.ndarray, width: int, generator: np.random.Generator
    ) -> Callable[[np.ndarray], np.ndarray]:
        start = random_layers(train_set.X.shape[1], width, generator)
        layers = train_deep(train_set.X, targets, start, DeepRule(self.rate, self.steps))
        return lambda X: forward(X, layers)[0]


@dataclass(frozen=True)
class _ExactScan(_Scan):
    """Random features that a student needs to come within eps of its teacher, at the best student ridge and at a small one.

    Attributes
    ----------
    eps : tuple of float
        Test errors above the teacher's.
    small_ridge : float
        The ridge that is not the best one.
    activation : str
        Of the features.
    """

    eps: tuple[float, ...] = (0.01, 0.02, 0.05)
    small_ridge: float = 1e-3
    activation: str = "relu"

    simulated: ClassVar[bool] = False

    @abstractmethod
    def problem(self, *place: float) -> tuple[DataModel, Estimator]:
        """Data and teacher at one place."""

    @property
    def chain(self) -> Chain:
        """A teacher and its student, for their losses."""
        features = RandomFeatures(1.0, self.activation)
        return Chain.of([Estimator(CrossEntropy(), 1.0), Estimator(Distillation(), 1.0, features=features)])

    def layout(self) -> dict[str, tuple[str, ...]]:
        needed = dict.fromkeys(("ratio", "ratio_error", "optimal_ridge", "edge"), ("labels", "tuning", "eps"))
        return {
            **dict.fromkeys(("teacher_error", "teacher_ridge"), ()),
            **dict.fromkeys(("least", "least_ratio", "failed"), ("labels", "tuning")),
            **needed,
        }

    def coordinates(self) -> dict[str, list]:
        return {"labels": list(LABELS), "tuning": list(TUNINGS), "eps": list(self.eps)}

    def measure(self, *place: float) -> dict[str, Any]:
        data, teacher = self.problem(*place)
        ridges = {"best": None, "small": self.small_ridge}
        found = [
            [
                neurons_needed(data, teacher, self.eps, labels, ridge=ridges[t], activation=self.activation)
                for t in TUNINGS
            ]
            for labels in LABELS
        ]

        def all_of(name: str) -> list[list]:
            return [[getattr(needed, name) for needed in row] for row in found]

        return {
            "teacher_error": found[0][0].teacher_error,
            "teacher_ridge": teacher.ridge,
            "ratio_error": all_of("error"),
            "optimal_ridge": all_of("ridge"),
            **{name: all_of(name) for name in ("ratio", "edge", "least", "least_ratio", "failed")},
        }


@dataclass(frozen=True)
class MixtureScan(_ExactScan):
    """Two overlapping classes of the same size; the best ridge of their teacher is infinite, so it is given.

    Attributes
    ----------
    deltas : tuple of float
        Variances of the classes.
    """

    deltas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    alpha: float = 4.0
    teacher_ridge: float = 10.0

    conditions: ClassVar[tuple[str, ...]] = ("delta",)

    def problem(self, delta: float) -> tuple[DataModel, Estimator]:
        return GaussianMixture(self.alpha, 0.5, delta), Estimator(CrossEntropy(), self.teacher_ridge)


@dataclass(frozen=True)
class RuleScan(_ExactScan):
    """Labels of a rule with noise; the teacher has its best ridge.

    Attributes
    ----------
    noises : tuple of float
        Variances of the noise, 0 for a sign.
    alphas : tuple of float
        Samples per input.
    """

    noises: tuple[float, ...] = (0.0, 0.1, 0.32, 1.0, 3.0)
    alphas: tuple[float, ...] = (1.0, 4.0)

    conditions: ClassVar[tuple[str, ...]] = ("noise", "alpha")

    def problem(self, noise: float, alpha: float) -> tuple[DataModel, Estimator]:
        data = LinearRule(alpha, noise, "probit") if noise else LinearRule(alpha, output="sign")
        best = optimize(data, Estimator(CrossEntropy(), 1.0), {"teacher.ridge": TEACHER_RIDGES}, "teacher.test_error")
        if not best.converged:
            raise ConvergenceError(f"no best ridge of the teacher of {data}: {best.message}")
        return data, Estimator(CrossEntropy(), best.parameters["teacher.ridge"])


XOR_WIDTHS = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
LINE_GAPS, LINE_WIDTHS = (0.02, 0.1), (2, 4, 6, 8, 10, 12, 16, 24, 32)
DIGIT_WIDTHS, DEEP_WIDTHS = (2, 4, 8, 16, 32), (2, 3, 4, 6, 8, 16)


def scans(runs: int, seed: int) -> dict[str, _Scan]:
    """All scans, by name: "xor", "line", "digits", "deep" with so many runs, "mixture" and "rule", which are exact."""
    return {
        "xor": GapScan(runs, seed, XOR_WIDTHS),
        "line": GapScan(runs, seed, LINE_WIDTHS, rule="line", gaps=LINE_GAPS),
        "digits": DigitScan(runs, seed, DIGIT_WIDTHS),
        "deep": DeepScan(runs, seed, DEEP_WIDTHS),
        "mixture": MixtureScan(),
        "rule": RuleScan(),
    }
