"""Inputs that come in any number of Gaussian clusters, each with a mean and a covariance of its own.

Given its cluster an input x of p entries is Gaussian, with the mean and the covariance that are given, in the units in which it was
measured; its label is that of the cluster, and several clusters may have one label.  With N = p, ``alpha = M/N`` and
``h = w.x/sqrt(N) + b``, or ``w.(A x)/sqrt(N) + b`` for a stage with a :class:`numerics.models.LinearMap`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from numerics.models.checks import ParameterError
from numerics.models.data import ClassLaw, DataModel, DataSet
from numerics.models.dense import Array, Dense, _Content, _numbers
from numerics.models.inputs import WHITE, Inputs

MOST_CLUSTERS = 1000

_SUM = 1e-9  # by which weights may miss 1


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(_Content, DataModel):
    """C Gaussian clusters in R^p with labels of two classes.

    Parameters
    ----------
    alpha : float
        Samples per input entry of the training set, ``alpha = M/p > 0``.
    means : array, shape (C, p)
        E[x] in each cluster.
    covariances : array, shape (C, p, p), or (p, p) for one that all share
        Cov(x) in each cluster: symmetric, no eigenvalue below 0.
    labels : sequence of C numbers
        -1 or 1; both must occur.
    weights : sequence of C floats
        Probabilities of the clusters, > 0, sum 1; None: equal.
    label_noise : float
        Probability in [0, 1/2] with which a training label is flipped.
    further : sequence of DataSet
        More samples of the same clusters that some stages are trained on.
    test_weights : sequence of C floats
        Of the clusters in the test population, >= 0, sum 1; None: those of the training set.

    Raises
    ------
    ParameterError
        If shapes do not fit, a covariance is none, or a value is not in its range.

    Examples
    --------
    >>> from numerics import Estimator, solve
    >>> from theory.losses import CrossEntropy, Distillation
    >>> data = Clusters(
    ...     alpha=4.0, means=[[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], labels=[1, -1, -1],
    ...     covariances=[[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.5], [0.5, 1.0]], [[0.5, 0.0], [0.0, 0.5]]],
    ... )
    >>> chain = [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(temperature=2.0), ridge=0.1)]
    >>> [round(stage.test_error, 4) for stage in solve(data, chain)]
    [0.2053, 0.1987]
    """

    alpha: float
    means: Array
    covariances: Array
    labels: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    label_noise: float = 0.0
    further: tuple[DataSet, ...] = ()
    test_weights: tuple[float, ...] | None = None

    dense: ClassVar[tuple[Dense, ...]]
    """The covariances, or the one that all share."""

    title: ClassVar[str] = "mixture of Gaussian clusters"
    in_clusters: ClassVar[bool] = True
    own_parameters: ClassVar[tuple[str, ...]] = ("alpha", "label_noise")
    inputs: ClassVar[Inputs] = WHITE

    def __post_init__(self) -> None:
        means = _numbers("means", self.means, axes=2)
        count, size = means.shape
        if count > MOST_CLUSTERS:
            raise ParameterError(f"means must be of at most {MOST_CLUSTERS} clusters, got {count}")
        labels = _vector("labels", self.labels, count, "-1 or 1")
        if not (np.abs(labels) == 1.0).all():
            raise ParameterError(f"labels must be -1 or 1, got {labels[np.abs(labels) != 1.0][0]:g}")
        if abs(labels.sum()) == count:
            raise ParameterError(f"labels must hold both -1 and 1, got {labels[0]:g} for all clusters")
        weights = _weights("weights", self.weights, count)
        if not min(weights) > 0.0:
            raise ParameterError(f"weights must be > 0, got {min(weights):g}")
        test = weights if self.test_weights is None else _weights("test_weights", self.test_weights, count)
        dense = _covariances(self.covariances, count, size)
        stacked = dense[0].covariance if np.ndim(self.covariances) == 2 else np.array([one.covariance for one in dense])
        stacked.setflags(write=False)
        values = {
            "means": means, "covariances": stacked, "weights": weights, "test_weights": test, "dense": dense,
            "labels": tuple(int(label) for label in labels),
        }  # fmt: skip
        self._check(**values)

    @property
    def _arrays(self) -> tuple[Array, ...]:
        numbers = (self.alpha, self.label_noise, *self.labels, *self.weights, *self.test_weights)
        return self.means, self.covariances, np.array(numbers)

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self.further == other.further

    def __hash__(self) -> int:
        return hash((self.digest, self.further))

    def __reduce__(self) -> tuple:
        return Clusters, tuple(getattr(self, item.name) for item in fields(self))

    def __repr__(self) -> str:
        shown = f"alpha={self.alpha!r}, {len(self)} of {self.size} inputs, {self.digest[:12]}"
        for name in ("label_noise", "further"):
            if getattr(self, name):
                shown += f", {name}={getattr(self, name)!r}"
        return f"Clusters({shown})"

    def __len__(self) -> int:
        """C."""
        return len(self.means)

    @property
    def size(self) -> int:
        """p."""
        return self.means.shape[1]

    @property
    def centre(self) -> Array:
        """E[x] of training samples, shape (p,)."""
        return np.array(self.weights) @ self.means

    def covariance(self, cluster: int) -> Array:
        """Of one cluster, counted from 0, shape (p, p)."""
        return self.covariances if self.covariances.ndim == 2 else self.covariances[cluster]

    @property
    def classes(self) -> tuple[ClassLaw, ...]:
        """One of each cluster; what its samples have in common comes with the sign of the label."""
        return tuple(
            ClassLaw(weight, float(label), 0.5 * (1.0 + label))
            for weight, label in zip(self.weights, self.labels, strict=True)
        )

    @property
    def variance(self) -> float:
        """Mean over entries and clusters."""
        return float(sum(w * np.trace(self.covariance(c)) for c, w in enumerate(self.weights))) / self.size

    def class_weights(self, name: str) -> Array:
        """Probabilities of the clusters in a data set, shape (C,): the same in all."""
        self.data_set(name)
        return np.array(self.weights)

    @cached_property
    def parts(self) -> tuple[Cluster, ...]:
        """The samples of each cluster."""
        return tuple(Cluster(self.alpha, law, self.label_noise, self.further) for law in self.classes)


@dataclass(frozen=True)
class Cluster(DataModel):
    """The samples of one cluster; those of a data set are its ``alpha`` times the weight of the cluster.

    The covariance is part of the order parameters of a cluster, ``Q = w^T Omega w/N``: the variance is 1.
    """

    alpha: float
    law: ClassLaw
    label_noise: float = 0.0
    further: tuple[DataSet, ...] = ()

    title: ClassVar[str] = "Gaussian cluster"
    own_parameters: ClassVar[tuple[str, ...]] = ("alpha", "label_noise")
    inputs: ClassVar[Inputs] = WHITE
    variance: ClassVar[float] = 1.0

    @property
    def classes(self) -> tuple[ClassLaw, ...]:
        return (self.law,)

    @property
    def positive_share(self) -> float:
        return self.law.label

    @property
    def alone(self) -> Cluster:
        """Where all samples are of this cluster."""
        return replace(self, law=self.law._replace(weight=1.0))


def _vector(name: str, values: object, count: int, allowed: str) -> Array:
    try:
        found = _numbers(name, values, axes=1)
    except ParameterError:
        raise ParameterError(f"{name} must be {count} numbers, {allowed}, got {values!r}") from None
    if len(found) != count:
        raise ParameterError(f"{name} must be {count} numbers, one for each row of means, got {len(found)}")
    return found


def _weights(name: str, values: object, count: int) -> tuple[float, ...]:
    if values is None:
        return (1.0 / count,) * count
    found = _vector(name, values, count, "sum 1")
    if found.min() < 0.0:
        raise ParameterError(f"{name} must be >= 0, got {found.min():g}")
    if abs(found.sum() - 1.0) > _SUM:
        raise ParameterError(f"{name} must sum to 1, they sum to {found.sum():g}")
    return tuple((found / found.sum()).tolist())


def _covariances(values: object, count: int, size: int) -> tuple[Dense, ...]:
    """Checked like that of dense inputs, one by one."""
    allowed = f"of shape ({count}, {size}, {size}) or ({size}, {size})"
    try:
        shape = np.shape(values)
    except ValueError:  # rows of different lengths
        raise ParameterError(f"covariances must be {allowed}, got rows of different lengths") from None
    if shape not in ((count, size, size), (size, size)):
        raise ParameterError(f"covariances must be {allowed}, got shape {shape}")
    if len(shape) == 2:
        return (_covariance("covariances", values),)
    return tuple(_covariance(f"covariances[{c}]", values[c]) for c in range(count))


def _covariance(name: str, values: object) -> Dense:
    try:
        return Dense(values)
    except ParameterError as error:
        raise ParameterError(str(error).replace("covariance", name, 1)) from None
