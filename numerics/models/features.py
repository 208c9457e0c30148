"""Random features: networks of two layers whose first one is drawn at random, or given, and left as it is.

A stage with features sees ``phi(F x/sqrt(N)) - E phi`` of the input x, with p = ratio N rows of F that are normal and of squared
length N.  For large N such features act on any trained last layer like the Gaussian ``k1 F x/sqrt(N) + k* noise`` of the same first
and second moments (Gaussian equivalence: Mei & Montanari 2022; Gerace et al. 2020; Goldt et al. 2022; Hu & Lu 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numerics.models.activations import Moments, covariance_of, function_of, moments_of
from numerics.models.checks import ParameterError, require_number
from numerics.models.dense import Dense, Seen, _numbers

Array = NDArray[np.float64]

MOST_NODES = 5000
"""Of the spectrum: more would be needed for an activation that is nearly linear on inputs of the given variance."""

_DIGITS = 18.0  # e-folds of the error of the rule for the spectrum's averages, halved
_LEAST_NODES = 24
_TINY = 1e-14


@dataclass(frozen=True)
class RandomFeatures:
    """Features of a stage of a chain.  Stages with equal features share one network.

    Parameters
    ----------
    ratio : float
        Features per input, p/N > 0.
    activation : str
        "relu", "erf", "tanh", "sign", or a smooth formula of ``h`` such as ``"h + h**2/4"``.

    Raises
    ------
    ParameterError
        If the ratio is not positive, or the activation is not known or does not depend on h.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, solve
    >>> from theory.losses import CrossEntropy
    >>> stage = Estimator(CrossEntropy(), ridge=0.1, features=RandomFeatures(ratio=2.0, activation="relu"))
    >>> round(solve(GaussianMixture(alpha=2.0), stage)[0].test_error, 6)
    0.270635
    """

    ratio: float
    activation: str = "relu"

    def __post_init__(self) -> None:
        ratio = require_number("ratio", self.ratio, above=0, at_most=1e4, allowed="a number in (0, 10000]")
        object.__setattr__(self, "ratio", ratio)
        function_of(self.activation)

    def __call__(self, fields: Array) -> Array:
        """phi of some fields ``F x/sqrt(N)``."""
        return function_of(self.activation)(fields)

    def size(self, n_inputs: int) -> int:
        """p."""
        return round(self.ratio * n_inputs)

    def moments(self, variance: float) -> Moments:
        """``k0 = E phi``, ``k1 = E phi'`` and ``k*^2 = E phi^2 - k0^2 - variance k1^2`` for inputs of this variance."""
        return _moments(self.activation, variance)

    def covariance(self, correlation: Array, variance: float) -> Array:
        """Covariance of features whose rows of F have these cosines; on the diagonal, which is 1, their variance."""
        variances = np.full(len(correlation), variance)
        return covariance_of((self.activation,) * 2, variance * correlation, (variances, variances), same=True)

    def spectrum(self, variance: float) -> Spectrum:
        """Nodes of the limiting spectrum of ``F F^T/N`` that average over it to rounding; see :class:`Spectrum`.

        Raises
        ------
        ParameterError
            For an activation so nearly linear that the average has a pole next to the spectrum.
        """
        found = self.moments(variance)
        pole = found.rest / (variance * found.slope**2) if found.slope else math.inf
        middle, half = 1.0 + self.ratio, 2.0 * math.sqrt(self.ratio)
        distance = math.acosh((middle + min(pole, middle)) / half)
        count = max(_LEAST_NODES, math.ceil(_DIGITS / distance)) if distance > 0.0 else MOST_NODES + 1
        if count > MOST_NODES:
            raise ParameterError(
                f"activation {self.activation!r} must not be linear on inputs of variance {variance:g}: k*^2 = {found.rest:.1g}"
            )
        return _marchenko_pastur(self.ratio, count)


@dataclass(frozen=True, eq=False, repr=False)
class FixedFeatures(Seen):
    """What a stage sees of :class:`numerics.models.Dense` inputs through a given first layer; its ``features``.

    These are ``phi(F x/sqrt(N)) - E phi`` for the matrix F, with one weight each; N is the number of its columns.  Stages may have
    different first layers, and others may see the inputs themselves or :class:`numerics.models.LinearMap` of them.

    Means ``s k1_i (F v)_i/N`` and covariances are those of the features of Gaussian inputs
    (:mod:`numerics.models.activations`), not of linear fields and noise in their place.  So theory is exact for many independent
    copies of the inputs, each with the features F of its own, even if a copy has few inputs; for one copy of many it is Gaussian
    equivalence.  What it leaves out are differences between the classes beyond the mean, which activations with an even part
    make: of their covariances, of relative size |F v|/N, and so of 1/sqrt(N) for a v of order 1.

    Parameters
    ----------
    first_layer : array, shape (p_t, p)
        F; rows may be of any length.
    activation : str
        As of :class:`RandomFeatures`.

    Raises
    ------
    ParameterError
        If F is no matrix of finite numbers, or the activation is not known or does not depend on h.

    Examples
    --------
    >>> from numerics import Dense, Estimator, GaussianMixture, solve
    >>> from theory.losses import CrossEntropy, Distillation
    >>> teacher = Estimator(CrossEntropy(), ridge=0.1, features=FixedFeatures([[3, 0, 0], [0, 2, 1], [1, 1, 1]], "erf"))
    >>> student = Estimator(Distillation(), ridge=0.1, features=FixedFeatures([[2, 1, 0], [0, 1, 3]], "relu"))
    >>> solution = solve(GaussianMixture(alpha=2.0, inputs=Dense(np.eye(3))), [teacher, student])
    >>> [round(stage.test_error, 6) for stage in solution.stages]
    [0.282135, 0.30925]
    """

    first_layer: Array
    activation: str = "relu"

    scales_with_inputs: ClassVar[bool] = False
    what: ClassVar[str] = "FixedFeatures"

    def __post_init__(self) -> None:
        object.__setattr__(self, "first_layer", _numbers("first_layer", self.first_layer, axes=2))
        function_of(self.activation)

    @property
    def rows(self) -> Array:
        """F."""
        return self.first_layer

    @property
    def _arrays(self) -> tuple[Array, ...]:
        return (self.first_layer,)

    @property
    def _kind(self) -> str:
        return f"{type(self).__name__} {self.activation}"

    def __reduce__(self) -> tuple:
        return FixedFeatures, (self.first_layer, self.activation)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"FixedFeatures({rows}x{columns}, {self.activation!r}, {self.digest[:12]})"

    def response(self, inputs: Dense, variance: float) -> Array:
        """``k1_i F_i/sqrt(N)``."""
        _, moments = _fields(self, inputs, variance)
        return moments.slope[:, None] * self.first_layer / math.sqrt(inputs.size)

    def of(self, rows: Array, inputs: Dense, variance: float, scale: float = 1.0) -> Array:
        """``phi(F x/sqrt(N)) - E phi``."""
        _, moments = _fields(self, inputs, variance)
        fields = rows @ (self.first_layer.T * (scale / math.sqrt(inputs.size)))
        return (function_of(self.activation)(fields) - moments.mean) / scale

    def covariance(self, other: Seen | None, inputs: Dense, variance: float) -> Array:
        """See :meth:`numerics.models.dense.Seen.covariance`."""
        if isinstance(other, FixedFeatures):
            return _covariance(self, other, inputs, variance)
        return super().covariance(other, inputs, variance)


@lru_cache(maxsize=32)
def _fields(features: FixedFeatures, inputs: Dense, variance: float) -> tuple[Array, Moments]:
    """Variances of ``F x/sqrt(N)``, and the moments of the activation there."""
    rows = features.first_layer
    variances = variance / inputs.size * np.sum((rows @ inputs.covariance) * rows, axis=1)
    return variances, moments_of(features.activation, variances)


@lru_cache(maxsize=8)
def _covariance(mine: FixedFeatures, other: FixedFeatures, inputs: Dense, variance: float) -> Array:
    both = mine, other
    fields = variance / inputs.size * (mine.first_layer @ inputs.covariance @ other.first_layer.T)
    variances = tuple(_fields(features, inputs, variance)[0] for features in both)
    found = covariance_of(tuple(features.activation for features in both), fields, variances, same=mine == other)
    return found / variance


class Spectrum(NamedTuple):
    """Directions that inputs and features share, by their squared singular value x, and how many only one of them has, over N."""

    values: Array
    shares: Array
    of_features: float
    of_inputs: float


@lru_cache(maxsize=256)
def _moments(activation: str, variance: float) -> Moments:
    return Moments(*(float(found[0]) for found in moments_of(activation, np.array([variance]))))


@lru_cache(maxsize=1024)
def _marchenko_pastur(ratio: float, count: int) -> Spectrum:
    """Midpoint rule in the angle of ``x = 1 + ratio + 2 sqrt(ratio) cos(angle)``, exact but for poles of what is averaged.

    The density itself has a pole at x = 0, which cancels in the difference from the value there: what the rule misses of the
    number of directions is put there.
    """
    angles = (np.arange(count) + 0.5) * math.pi / count
    values = 1.0 + ratio + 2.0 * math.sqrt(ratio) * np.cos(angles)
    shares = 2.0 * ratio * np.sin(angles) ** 2 / (values * count)
    missed = min(ratio, 1.0) - float(shares.sum())
    if abs(missed) > _TINY:
        values, shares = np.append(values, 0.0), np.append(shares, missed)
    return Spectrum(values, shares, max(ratio - 1.0, 0.0), max(1.0 - ratio, 0.0))
