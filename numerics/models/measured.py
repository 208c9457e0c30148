"""Two classes of measured samples: what theory takes of them, and folds of them.

Theory sees the share of each class, the two class means and one covariance that both share: inputs are ``Dense``, the direction of
the classes is half the difference of their means times sqrt(N), N is the number of columns.  The midpoint of the means goes into
the bias, which is free.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numerics.models.checks import ParameterError, require_alpha, require_count, short
from numerics.models.clusters import Clusters
from numerics.models.data import DataSet, GaussianMixture
from numerics.models.dense import MOST_DENSE, Dense, _Content, _frozen
from numerics.models.inputs import Inputs

Array = NDArray[np.float64]

FOLDS = 5
"""Parts of the samples, each of which is held out once."""

FEWEST = 2
"""Samples of a class."""

COVARIANCES = ("pooled", "per class")
"""What predictions take the classes to have: one covariance for both, or one each."""

_LARGEST = 1e100
"""Entry whose fourth power is not far from the largest float."""

_CONSTANT = 1e-12
"""Standard deviation of a column, over its largest entry, below which it is constant."""


class ClassMoments(NamedTuple):
    """What is estimated from some samples.

    Attributes
    ----------
    count : int
        Samples.
    share : float
        Of the positive class.
    midpoint : array, shape (p,)
        Of the two class means.
    inputs : Dense
        Covariance of both classes around their means, unbiased; direction v, which is half the difference of the means times
        sqrt(N).
    covariances : array, shape (2, p, p)
        Of the positive class and of the negative one.
    """

    count: int
    share: float
    midpoint: Array
    inputs: Dense
    covariances: Array

    @classmethod
    def of(cls, X: Array, y: Array) -> ClassMoments:
        """Of inputs, shape (n, p), with signs y, shape (n,)."""
        upper, lower = (X[y == sign].mean(axis=0) for sign in (1.0, -1.0))
        scatters, counts = [], []
        for sign, mean in ((1.0, upper), (-1.0, lower)):
            apart = X[y == sign] - mean
            scatters.append(apart.T @ apart)
            counts.append(len(apart))
        covariance = sum(scatters) / max(len(y) - 2, 1)
        direction = math.sqrt(X.shape[1]) * 0.5 * (upper - lower)
        if not np.trace(covariance) > 0.0:
            raise ParameterError(
                "X must vary around the means of the classes, in each part that is left when a fold is held out"
            )
        if not direction.any():
            raise ParameterError("X must have class means that differ, those of the two classes are equal")
        each = np.array([scatter / max(count - 1, 1) for scatter, count in zip(scatters, counts, strict=True)])
        return cls(len(y), float(np.mean(y > 0)), 0.5 * (upper + lower), Dense(covariance, direction), each)

    @property
    def shaped(self) -> bool:
        """Whether each class has a covariance."""
        return all(np.trace(one) > 0.0 for one in self.covariances)

    def population(self, covariances: str, alpha: float, share: float) -> GaussianMixture | Clusters:
        """What theory takes for the population, as seen from the midpoint, in a training set of which so much is positive."""
        if covariances == "pooled":
            return GaussianMixture(alpha, share, 1.0, inputs=self.inputs)
        if not self.shaped:
            raise ParameterError(
                "X must vary within each class, in each part that is left when a fold is held out, for one covariance "
                "a class"
            )
        half = self.inputs.direction / math.sqrt(self.inputs.size)
        return Clusters(alpha, np.array([half, -half]), self.covariances, (1, -1), (share, 1.0 - share))


class Samples(_Content):
    """Inputs and signs, checked.

    Parameters
    ----------
    X : array, shape (n, p)
        Finite numbers; no column is constant.
    y : array, shape (n,)
        Two different labels, each at least twice; the larger one is the positive class.

    Raises
    ------
    ParameterError
        For anything else.

    Attributes
    ----------
    y : array
        -1 and 1.
    labels : tuple
        What stands for them.
    """

    def __init__(self, X: object, y: object, columns: Sequence[str] | None = None) -> None:
        self.X = finite_inputs(X, columns)
        self.y, self.labels = signs_of(y)
        if len(self.X) != len(self.y):
            raise ParameterError(
                f"y must have as many labels as X has rows, {len(self.X)}, got {len(self.y)}"
            )  # fmt: skip
        _require_varying(self.X, columns)

    @property
    def _arrays(self) -> tuple[Array, ...]:
        return self.X, self.y

    def __reduce__(self) -> tuple:
        return Samples, (self.X, self.y)

    @property
    def count(self) -> int:
        """n."""
        return len(self.y)

    @property
    def size(self) -> int:
        """p."""
        return self.X.shape[1]


def finite_inputs(X: object, columns: Sequence[str] | None = None) -> Array:
    """A matrix of finite numbers, a row a sample; ParameterError for anything else."""
    try:
        array = np.asarray(X)
        array = array.astype(float) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError):
        array = None
    if array is None:
        raise ParameterError(f"X must hold real numbers, got {short(X)}")
    if array.ndim != 2 or min(array.shape) < 1:
        raise ParameterError(f"X must be a matrix, a row a sample, got shape {array.shape}")
    if array.shape[1] > MOST_DENSE:
        raise ParameterError(f"X must have at most {MOST_DENSE} columns, got {array.shape[1]}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, column = bad[0]
        name = column if columns is None else repr(columns[column])
        raise ParameterError(
            f"X must have finite numbers, got {array[row, column]:g} in column {name}, row {row} ({len(bad)} in all)"
        )
    if np.abs(array).max() > _LARGEST:
        raise ParameterError(f"X must have entries of at most {_LARGEST:g} in size, got {np.abs(array).max():g}")
    return _frozen(array)


def _require_varying(X: Array, columns: Sequence[str] | None) -> None:
    constant = np.flatnonzero(X.std(axis=0) <= _CONSTANT * np.abs(X).max(axis=0))
    if len(constant):
        names = ", ".join(str(k) if columns is None else repr(columns[k]) for k in constant[:5])
        more = ", ..." if len(constant) > 5 else ""
        raise ParameterError(f"X must have no constant column; leave out {names}{more}")


def class_places(y: object) -> tuple[NDArray[np.intp], NDArray]:
    """Number of the class of each sample, and the labels of the classes in increasing order; ParameterError if they are none."""
    array = np.asarray(y)
    if array.ndim != 1:
        raise ParameterError(f"y must be a vector of labels, got shape {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ParameterError(f"y must have no missing label, got {array[~np.isfinite(array)][0]:g}")
        fractions = array[array != np.round(array)]
        if len(fractions):
            raise ParameterError(f"y must be labels of classes, not numbers such as {fractions[0]:g}")
    if array.dtype.kind == "O" and any(label is None or label != label for label in array):
        raise ParameterError("y must have no missing label")
    try:
        labels, places = np.unique(array, return_inverse=True)
    except TypeError:
        raise ParameterError(f"y must be labels of one kind, got {short(y)}") from None
    return places.ravel(), labels


def signs_of(y: object) -> tuple[Array, tuple]:
    """-1 and 1, and the two labels that they stand for, in increasing order; ParameterError if there are not two."""
    places, labels = class_places(y)
    if len(labels) != 2:
        shown = ", ".join(map(str, labels[:5])) + (", ..." if len(labels) > 5 else "")
        raise ParameterError(f"y must have two classes, got {len(labels)} ({shown})")
    counts = np.bincount(places)
    if counts.min() < FEWEST:
        few = labels[np.argmin(counts)]
        raise ParameterError(f"y must have at least {FEWEST} samples of each class, got {counts.min()} of {few}")
    signs = np.where(places == 1, 1.0, -1.0)
    signs.setflags(write=False)
    return signs, tuple(labels.tolist())


def stratified_counts(y: Array, size: int) -> tuple[int, int]:
    """Samples of the positive and of the negative class in a training set of so many: their shares up to rounding, one at least."""
    positive = int((y > 0).sum())
    upper = min(max(round(size * positive / len(y)), 1, size - (len(y) - positive)), size - 1, positive)
    return upper, size - upper


class Fold(NamedTuple):
    """Part of the samples, and what the others say.

    Attributes
    ----------
    held : array of int
        Rows that are held out.
    moments : ClassMoments
        Of all other rows.
    """

    held: NDArray[np.intp]
    moments: ClassMoments


def stratified_parts(places: NDArray, parts: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Number of the part that each sample belongs to, each part with the same share of each class up to one sample, shape (n,)."""
    found = np.empty(len(places), dtype=np.intp)
    first = 0
    for label in np.unique(places)[::-1]:
        rows = generator.permutation(np.flatnonzero(places == label))
        found[rows] = (
            first + np.arange(len(rows))
        ) % parts  # the next class goes on where this one ended: parts of one size
        first += len(rows)
    return found


@lru_cache(maxsize=8)
def folds_of(samples: Samples, parts: int, seed: int) -> tuple[Fold, ...]:
    """Stratified folds; where a class has fewer samples than there are to be parts, fewer parts."""
    parts = min(parts, int(min((samples.y > 0).sum(), (samples.y < 0).sum())))
    part = stratified_parts(samples.y, parts, np.random.default_rng(seed))
    found = []
    for k in range(parts):
        rest = part != k
        found.append(Fold(np.flatnonzero(part == k), ClassMoments.of(samples.X[rest], samples.y[rest])))
    return tuple(found)


@lru_cache(maxsize=8)
def moments_of(samples: Samples) -> ClassMoments:
    """Of all samples."""
    return ClassMoments.of(samples.X, samples.y)


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Measured(GaussianMixture):
    """Samples that somebody measured, as data of theory: the Gaussian mixture with their class means and pooled covariance.

    ``solve`` takes them as any other data, and gives what is true of that mixture.  What is to be expected on the samples
    themselves is ``cross_fitted_error``, an observable that solutions on these data alone have
    (:mod:`numerics.predict.margins`); ``numerics.predict.measure`` trains on them.

    Parameters
    ----------
    X : array, shape (n, p)
        A row a sample; N is p.
    y : array, shape (n,)
        Two different labels, each at least twice; the larger one is the positive class.
    alpha : float
        Samples per column of the training sets that are asked about, M/N; at most n/N, half of which if not given.
    folds : int
        Parts of the samples for cross-fitting, >= 2.
    seed : int
        Of the folds.
    covariances : str
        "pooled" or "per class": what predictions take the classes to have.  The mixture that is solved has a pooled one.

    Raises
    ------
    ParameterError
        If there are numbers that are not finite, constant columns, not two classes, fewer than two samples of one, labels that are
        fractions, or shapes that do not fit.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 100)
    >>> X = generator.standard_normal((200, 10)) + 0.5 * y[:, None]
    >>> data = Measured(X, y, alpha=4)
    >>> data
    Measured(200x10, alpha=4.0)
    >>> from numerics import Estimator, solve
    >>> from theory.losses import CrossEntropy
    >>> stage = solve(data, Estimator(CrossEntropy(), ridge=1.0))[0]
    >>> round(stage.test_error, 3), round(stage.cross_fitted_error, 3)
    (0.225, 0.232)
    """

    X: Array = None
    y: Array = None
    folds: int = FOLDS
    seed: int = 0
    covariances: str = "pooled"
    rho: float = field(init=False, default=0.5)
    delta: float = field(init=False, default=1.0)
    label_noise: float = field(init=False, default=0.0)
    further: tuple[DataSet, ...] = field(init=False, default=())
    inputs: Inputs = field(init=False, default=None)

    own_parameters: ClassVar[tuple[str, ...]] = ("alpha",)
    title: ClassVar[str] = "Measured samples"
    sampled: ClassVar[bool] = True

    def __init__(
        self, X: object, y: object, alpha: float | None = None, folds: int = FOLDS, seed: int = 0, covariances: str = "pooled"
    ) -> None:  # fmt: skip
        samples = Samples(X, y)
        if covariances not in COVARIANCES:
            raise ParameterError(f"covariances must be one of {', '.join(COVARIANCES)}, got {covariances!r}")
        most = samples.count / samples.size
        values = {
            "X": samples.X,
            "y": samples.y,
            "samples": samples,
            "folds": require_count("folds", folds, 2),
            "seed": require_count("seed", seed, 0),
            "covariances": covariances,
            "rho": moments_of(samples).share,
            "delta": 1.0,
            "label_noise": 0.0,
            "further": (),
            "inputs": moments_of(samples).inputs,
            "alpha": self._checked_alpha(0.5 * most if alpha is None else alpha, most),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _checked_alpha(alpha: object, most: float) -> float:
        found = require_alpha("alpha", alpha)
        if found > most:
            raise ParameterError(f"alpha must be at most {most:g}, samples over columns, got {alpha!r}")
        return found

    @property
    def labels(self) -> tuple:
        """The two labels, in increasing order."""
        return self.samples.labels

    @property
    def n_samples(self) -> int:
        """M = alpha N, rounded."""
        return round(self.alpha * self.samples.size)

    def at(self, n_samples: int) -> Measured:
        """The same samples, asked about training sets of M of them."""
        return self.with_value("alpha", require_count("n_samples", n_samples, 2) / self.samples.size)

    def taking(self, covariances: str) -> Measured:
        """The same samples, with classes taken to have covariances of this kind."""
        if covariances not in COVARIANCES:
            raise ParameterError(f"covariances must be one of {', '.join(COVARIANCES)}, got {covariances!r}")
        found = copy.copy(self)
        object.__setattr__(found, "covariances", covariances)
        return found

    def with_value(self, name: str, value: object) -> Measured:
        """A copy in which alpha, all that may be varied, has another value."""
        found = copy.copy(self)
        object.__setattr__(found, name, self._checked_alpha(value, self.samples.count / self.samples.size))
        vars(found).pop("sets", None)
        return found

    def __eq__(self, other: object) -> bool:
        return type(other) is Measured and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple:
        return self.samples, self.alpha, self.folds, self.seed, self.covariances

    def __repr__(self) -> str:
        return f"Measured({self.samples.count}x{self.samples.size}, alpha={self.alpha!r})"
