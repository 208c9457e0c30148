"""What is run: widths, labels and balls over data sets of growing difficulty, cut into tasks that can be kept and gone on with.

A scan goes over one condition (a gap, or a noise) and over runs, each with data, networks and teacher of its own; a task is one
run at one condition.  Scans are parts of :func:`numerics.sweeps.run.evaluate`, with or without a journal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from numerics.models import ParameterError
from numerics.neurons import data
from numerics.neurons.bounds import hard_radius, untrained_kl
from numerics.neurons.deep import DeepRule, forward, random_layers, train_deep
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
from numerics.sweeps.journal import Piece
from numerics.sweeps.provenance import code_version, package_versions

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

LABELS = ("soft", "hard")

RULES = {"xor": data.xor, "line": data.line}
"""Data sets with a gap."""


@dataclass(frozen=True)
class _Scan(ABC):
    """Runs at several values of one condition; what is common to all scans."""

    runs: int
    seed: int
    widths: tuple[int, ...]

    condition: ClassVar[str]
    """Name of the field that holds the values of the condition, and of its dimension without the plural s."""

    simulated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ParameterError(f"runs must be at least 1, got {self.runs!r}")
        if self.seed < 0:
            raise ParameterError(f"seed must be at least 0, got {self.seed!r}")

    @abstractmethod
    def layout(self) -> Mapping[str, tuple[str, ...]]:
        """What a run measures: names, and dimensions beside the condition and the run."""

    @abstractmethod
    def measure(self, value: float, run: int) -> Mapping[str, Any]:
        """One run at one value of the condition."""

    def coordinates(self) -> dict[str, list]:
        """Labels along the dimensions of :meth:`layout`."""
        return {"width": list(self.widths)}

    @property
    def values(self) -> tuple[float, ...]:
        return getattr(self, self.condition + "s")

    def generator(self, value: float, run: int, *purpose: int) -> np.random.Generator:
        """Independent random numbers for every condition, run and purpose; more runs change none of the first."""
        return np.random.default_rng([self.seed, run, round(1e9 * value), *purpose])

    # What a sweep and its journal, and the stamps of figures, ask for.

    def axes(self) -> dict[str, np.ndarray]:
        return {self.condition: np.array(self.values), "run": np.arange(self.runs)}

    def along_axes(self, over: Mapping[str, np.ndarray]) -> _Scan:
        """The same scan over some of its conditions, and the first runs."""
        some = tuple(float(x) for x in over[self.condition])
        return replace(self, **{self.condition + "s": some, "runs": len(over["run"])})

    def description(self) -> dict[str, object]:
        """All that the numbers depend on, short enough to be kept with them."""
        fields = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"kind": type(self).__name__, **fields, "versions": package_versions(), "code": code_version(False)}

    def tasks(self) -> list[Callable[[], Piece]]:
        return [partial(_run, self, value, run) for value in self.values for run in range(self.runs)]

    def join(self, pieces: Iterable[Piece]) -> xarray.Dataset:
        import xarray

        coordinates = {self.condition: list(self.values), "run": list(range(self.runs)), **self.coordinates()}
        rows = np.array([piece.values[:, 0] for piece in pieces])
        variables, begin = {}, 0
        for name, dims in self.layout().items():
            shape = [len(coordinates[dim]) for dim in dims]
            end = begin + int(np.prod(shape))
            block = rows[:, begin:end].reshape(len(self.values), self.runs, *shape)
            variables[name] = ((self.condition, "run", *dims), block)
            begin = end
        attributes = {name: value for name, value in asdict(self).items() if not isinstance(value, tuple)}
        return xarray.Dataset(variables, coordinates, attributes)


def _run(scan: _Scan, value: float, run: int) -> Piece:
    found = scan.measure(value, run)
    return Piece(np.concatenate([np.ravel(found[name]) for name in scan.layout()])[:, None].astype(float))


@dataclass(frozen=True)
class GapScan(_Scan):
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

    condition: ClassVar[str] = "gap"

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
class _DigitScan(_Scan):
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

    condition: ClassVar[str] = "noise"

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


XOR_WIDTHS = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
LINE_GAPS, LINE_WIDTHS = (0.02, 0.1), (2, 4, 6, 8, 10, 12, 16, 24, 32)
DIGIT_WIDTHS, DEEP_WIDTHS = (2, 4, 8, 16, 32), (2, 3, 4, 6, 8, 16)


def scans(runs: int, seed: int) -> dict[str, _Scan]:
    """All scans, by name: "xor", "line", "digits", "deep"."""
    return {
        "xor": GapScan(runs, seed, XOR_WIDTHS),
        "line": GapScan(runs, seed, LINE_WIDTHS, rule="line", gaps=LINE_GAPS),
        "digits": DigitScan(runs, seed, DIGIT_WIDTHS),
        "deep": DeepScan(runs, seed, DEEP_WIDTHS),
    }
