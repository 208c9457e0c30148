"""Inputs of K classes as they are measured: one covariance, and a mean of each class."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numerics.models.checks import ParameterError
from numerics.models.gram import MOST_CLASSES, ROUNDING, Gram, Matrix, Vector, real_array, tuples
from numerics.models.inputs import MOST_COORDINATES, Inputs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SharedCovariance(Inputs):
    """A covariance that all classes share, in its eigenbasis, with the coordinates of the class means: as they are measured.

    Parameters
    ----------
    eigenvalues : sequence of p floats
        Variances of the coordinates over Delta, > 0.
    means : (K, p) array
        mu_c in the eigenbasis, of samples ``x = mu_c/sqrt(p) + sqrt(Delta lambda) z``.

    Raises
    ------
    ParameterError
        If a value is not in its range, or shapes do not fit.

    Examples
    --------
    >>> inputs = SharedCovariance.of([[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> np.round(inputs.variances, 4), inputs.gram.matrix[0][0].__round__(12)
    (array([0.7929, 2.2071]), 1.0)
    """

    eigenvalues: Vector
    means: Matrix

    def __post_init__(self) -> None:
        values, means = real_array("eigenvalues", self.eigenvalues), real_array("means", self.means)
        if values.ndim != 1 or not 1 <= values.size <= MOST_COORDINATES or not (values > 0).all():
            raise ParameterError(f"eigenvalues must be 1 to {MOST_COORDINATES} numbers > 0, got shape {values.shape}")
        if means.ndim != 2 or means.shape[1] != values.size or not 2 <= len(means) <= MOST_CLASSES:
            shape = " x ".join(map(str, means.shape))
            raise ParameterError(
                f"means must be a K x {values.size} matrix with K from 2 to {MOST_CLASSES}, got {shape}"
            )
        object.__setattr__(self, "eigenvalues", tuple(values.tolist()))
        object.__setattr__(self, "means", tuples(means))

    @classmethod
    def of(cls, covariance: ArrayLike, means: ArrayLike) -> SharedCovariance:
        """From the covariance of samples given their class, over Delta, (p, p), and the means of the classes, (K, p).

        The Gram matrix is ``means means^T``.

        Raises
        ------
        ParameterError
            If the covariance is not symmetric and positive definite, or shapes do not fit.
        """
        matrix, centres = real_array("covariance", covariance), real_array("means", means)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ParameterError(f"covariance must be a square matrix, got shape {matrix.shape}")
        size = float(np.abs(matrix).max())
        if not np.abs(matrix - matrix.T).max() <= ROUNDING * size:
            raise ParameterError("covariance must be symmetric")
        if centres.ndim != 2 or centres.shape[1] != len(matrix):
            raise ParameterError(f"means must have {len(matrix)} columns, as covariance has, got shape {centres.shape}")
        values, vectors = np.linalg.eigh(matrix)
        if not values[0] > 0.0:
            raise ParameterError(f"covariance must be positive definite, its smallest eigenvalue is {values[0]:.6g}")
        return cls(values, math.sqrt(len(matrix)) * centres @ vectors)

    @cached_property
    def shares(self) -> Array:
        return np.full(len(self.eigenvalues), 1.0 / len(self.eigenvalues))

    @cached_property
    def variances(self) -> Array:
        return np.array(self.eigenvalues)

    @cached_property
    def signals(self) -> Array:
        return np.mean(np.array(self.means) ** 2, axis=0)

    @cached_property
    def gram(self) -> Gram:
        """Of the means."""
        means = np.array(self.means)
        return Gram(tuples(means @ means.T / means.shape[1]))

    def class_grams(self, gram: Array) -> Array:
        means = np.array(self.means)
        return np.einsum("ci,ki->ick", means, means)

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr((self.eigenvalues, self.means)).encode()).hexdigest()[:12]
        return f"SharedCovariance({len(self.means)} classes, {len(self.eigenvalues)} coordinates, {digest})"
