"""Inputs of any covariance, and what stages see of them: linear maps, or the features of a given first layer.

Given its class an input is Gaussian, of mean ``s v/sqrt(N)`` and covariance ``Delta Sigma``; the rule of a :class:`LinearRule` is
theta.  A stage with a :class:`LinearMap` sees ``A x``: what two stages see has the covariance ``A_t Sigma A_s^T``, over Delta.
For all stages N is the number of rows of Sigma, in ``alpha = M/N`` and in ``h = w.(A x)/sqrt(N) + b``.

Of what is seen (:class:`Seen`) theory needs how it responds to a shift of the inputs, and its covariance with what is seen by other
stages; experiments need the thing itself.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from numerics.models.checks import ParameterError, short
from numerics.models.inputs import Inputs

Array = NDArray[np.float64]

MOST_DENSE = 4000
"""Rows of a covariance, of a map or of a first layer: with more of them diagonalisation takes minutes."""

_ASYMMETRY = 1e-8  # of a covariance, over its largest entry
_NO_VARIANCE = 1e-12  # of what a map sees, over that of rows in any direction
_NO_PART = 1e-16  # of a mean, squared, or of a row of a map, over the largest one
_NEGATIVE = 1e-10  # eigenvalue, over the mean one, that rounding may leave


class _Content:
    """Frozen arrays that are equal where their numbers are."""

    @cached_property
    def digest(self) -> str:
        """Hash of all numbers, in hexadecimal digits."""
        found = hashlib.sha256(self._kind.encode())
        for array in self._arrays:
            found.update(repr(array.shape).encode())
            found.update(array.tobytes())
        return found.hexdigest()

    @property
    def _kind(self) -> str:
        return type(self).__name__

    @property
    def _arrays(self) -> tuple[Array, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is type(self) and other.digest == self.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self._arrays[0].shape))
        return f"{type(self).__name__}({shape}, {self.digest[:12]})"


class Seen(_Content):
    """What a stage sees of :class:`Dense` inputs instead of them: its ``features``, one for each row of a matrix."""

    scales_with_inputs: ClassVar[bool] = True
    """Whether it is linear, so that what it has in common with others is the same for all Delta, over Delta."""

    what: ClassVar[str]
    """In messages."""

    @property
    def shape(self) -> tuple[int, int]:
        """p_t, p."""
        return self.rows.shape

    @property
    @abstractmethod
    def rows(self) -> Array:
        """What multiplies the inputs, shape (p_t, p)."""

    def size(self, n_inputs: int) -> int:
        """Weights of a stage on N inputs, which are N/p independent copies of the p."""
        rows, columns = self.shape
        return rows * (n_inputs // columns)

    @abstractmethod
    def response(self, inputs: Dense, variance: float) -> Array:
        """How its mean moves with that of the inputs, shape (p_t, p), for inputs of covariance ``variance Sigma``."""

    @abstractmethod
    def of(self, rows: Array, inputs: Dense, variance: float, scale: float = 1.0) -> Array:
        """What is seen of given inputs, shapes (n, p) and (n, p_t), both of them divided by ``scale``."""

    def covariance(self, other: Seen | None, inputs: Dense, variance: float) -> Array:
        """With what another stage sees, None for the inputs themselves; over ``variance``, shape (p_t, p_s)."""
        found = self.response(inputs, variance) @ inputs.covariance
        return found if other is None else found @ other.response(inputs, variance).T


@dataclass(frozen=True, eq=False, repr=False)
class LinearMap(Seen):
    """What a stage sees of :class:`Dense` inputs: ``A x``, with a weight for each row of A; its ``features``.

    Masks are maps too: rows of the identity.

    Parameters
    ----------
    matrix : array, shape (p_t, p)
        A; p_t may be smaller or larger than p.

    Raises
    ------
    ParameterError
        If it is no matrix of finite numbers, or all of them are 0.

    Examples
    --------
    >>> LinearMap([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    LinearMap(2x3, ca98f4eb9e76)
    """

    matrix: Array

    what: ClassVar[str] = "a LinearMap"

    def __post_init__(self) -> None:
        matrix = _numbers("matrix", self.matrix, axes=2)
        if not matrix.any():
            raise ParameterError("matrix must have an entry that is not 0")
        object.__setattr__(self, "matrix", matrix)

    @property
    def _arrays(self) -> tuple[Array, ...]:
        return (self.matrix,)

    def __reduce__(self) -> tuple:
        return LinearMap, (self.matrix,)

    @property
    def rows(self) -> Array:
        """A."""
        return self.matrix

    def response(self, inputs: Dense, variance: float) -> Array:
        """A."""
        return self.matrix

    def of(self, rows: Array, inputs: Dense, variance: float, scale: float = 1.0) -> Array:
        """A x."""
        return rows @ self.matrix.T


@dataclass(frozen=True, eq=False, repr=False)
class Dense(_Content, Inputs):
    """Inputs whose covariance is any matrix; all classes share it.

    Parameters
    ----------
    covariance : array, shape (p, p)
        Sigma, over Delta: symmetric, no eigenvalue below 0.  N is p.
    direction : array, shape (p,), optional
        v, or the rule theta; if not given, the average over all directions, of mean square 1 in every coordinate.

    Raises
    ------
    ParameterError
        If the shapes do not fit, or Sigma is no covariance.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, solve
    >>> from theory.losses import CrossEntropy, Distillation
    >>> inputs = Dense([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]])
    >>> teacher = Estimator(CrossEntropy(), ridge=0.1)
    >>> student = Estimator(Distillation(), ridge=0.05, features=LinearMap([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    >>> solution = solve(GaussianMixture(alpha=2.0, inputs=inputs), [teacher, student])
    >>> [round(stage.test_error, 6) for stage in solution.stages]
    [0.209533, 0.303502]
    """

    covariance: Array
    direction: Array | None = None

    def __post_init__(self) -> None:
        covariance = _numbers("covariance", self.covariance, axes=2)
        if covariance.shape[0] != covariance.shape[1]:
            raise ParameterError(f"covariance must be square, got shape {covariance.shape}")
        largest = np.abs(covariance).max()
        if np.abs(covariance - covariance.T).max() > _ASYMMETRY * largest:
            raise ParameterError("covariance must be symmetric")
        mean = float(np.trace(covariance)) / len(covariance)
        if not mean > 0:
            raise ParameterError(f"covariance must have a positive trace, got {mean * len(covariance):g}")
        object.__setattr__(self, "covariance", _frozen(0.5 * (covariance + covariance.T)))
        try:
            np.linalg.cholesky(self.covariance + _NEGATIVE * mean * np.eye(len(covariance)))
        except np.linalg.LinAlgError:
            least = float(np.linalg.eigvalsh(self.covariance)[0])
            raise ParameterError(f"covariance must have no eigenvalue below 0, got {least:g}") from None
        if self.direction is None:
            return
        direction = _numbers("direction", self.direction, axes=1)
        if len(direction) != len(covariance):
            raise ParameterError(
                f"direction must have as many entries as covariance has rows, {len(covariance)}, got {len(direction)}"
            )
        if not direction.any():
            raise ParameterError("direction must have an entry that is not 0")
        object.__setattr__(self, "direction", direction)

    @property
    def _arrays(self) -> tuple[Array, ...]:
        return (self.covariance,) if self.direction is None else (self.covariance, self.direction)

    def __reduce__(self) -> tuple:
        return Dense, (self.covariance, self.direction)

    @property
    def size(self) -> int:
        """p."""
        return len(self.covariance)

    @cached_property
    def axes(self) -> tuple[Array, Array]:
        """Eigenvalues of Sigma, increasing, and its eigenvectors in columns."""
        return eigenbasis(self.covariance)

    @cached_property
    def shares(self) -> Array:
        return np.full(self.size, 1.0 / self.size)

    @property
    def variances(self) -> Array:
        """Along the eigenvectors."""
        return self.axes[0]

    @cached_property
    def signals(self) -> Array:
        """Squares of the coordinates of v, or of theta, along the eigenvectors."""
        if self.direction is None:
            return np.ones(self.size)
        return without_rounding(self.variances, (self.direction @ self.axes[1])[:, None])[:, 0] ** 2


@lru_cache(maxsize=64)
def has_variance(inputs: Dense, seen: Seen) -> bool:
    """Whether what is seen varies at all, a map's features together and others each, beyond what rounding makes of 0."""
    rows = seen.rows
    found = np.sum((rows @ inputs.covariance) * rows, axis=1)
    least = _NO_VARIANCE * np.sum(rows**2, axis=1) * float(np.trace(inputs.covariance)) / inputs.size
    if seen.scales_with_inputs:
        return bool(found.sum() > least.sum())
    return bool((found > least).all())


def response_of(seen: Seen | None, inputs: Dense, variance: float) -> Array:
    """See :meth:`Seen.response`; the identity for the inputs themselves."""
    return np.eye(inputs.size) if seen is None else seen.response(inputs, variance)


def covariance_between(mine: Seen | None, other: Seen | None, inputs: Dense, variance: float) -> Array:
    """Of what two stages see, None for the inputs themselves; over ``variance``, shape (p_t, p_s)."""
    if mine is not None:
        return mine.covariance(other, inputs, variance)
    return inputs.covariance if other is None else other.covariance(None, inputs, variance).T


def eigenbasis(covariance: Array) -> tuple[Array, Array]:
    """Eigenvalues, increasing, what rounding makes of 0 set to 0, and eigenvectors in columns."""
    values, vectors = np.linalg.eigh(covariance)
    least = len(values) * np.finfo(float).eps * max(float(values[-1]), 0.0)
    return np.where(values > least, values, 0.0), vectors


def without_rounding(variances: Array, rows: Array) -> Array:
    """What belongs to each eigenvector, with what rounding makes of 0 set to 0 where there is no variance."""
    squares = (rows**2).sum(axis=1)
    return np.where(((variances == 0.0) & (squares <= _NO_PART * squares.max()))[:, None], 0.0, rows)


def _frozen(array: Array) -> Array:
    found = np.array(array, dtype=float, order="C")
    found.setflags(write=False)
    return found


def _numbers(name: str, values: object, axes: int) -> Array:
    """Finite numbers in an array of so many axes, which cannot be written to; one line for anything else."""
    kind = "a matrix" if axes == 2 else "a vector"
    try:
        array = np.asarray(values)
        array = array.astype(float) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError):
        array = None
    if array is None:
        raise ParameterError(f"{name} must be {kind} of real numbers, got {short(values)}")
    if array.ndim != axes or not 1 <= min(array.shape) <= max(array.shape) <= MOST_DENSE:
        raise ParameterError(f"{name} must be {kind} of 1 to {MOST_DENSE} entries an axis, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ParameterError(f"{name} must have finite entries, got {array[~np.isfinite(array)][0]:g}")
    return _frozen(array)
