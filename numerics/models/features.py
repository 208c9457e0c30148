"""Random features: a network of two layers whose first one is drawn at random and left as it is.

A stage with features sees ``phi(F x/sqrt(N)) - E phi`` of the input x, with p = ratio N rows of F that are normal and of squared
length N.  For large N such features act on any trained last layer like the Gaussian ``k1 F x/sqrt(N) + k* noise`` of the same first
and second moments (Gaussian equivalence: Mei & Montanari 2022; Gerace et al. 2020; Goldt et al. 2022; Hu & Lu 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numerics.models.activations import Moments, covariance_of, function_of, moments_of
from numerics.models.checks import ParameterError, require_number

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
