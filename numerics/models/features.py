"""Random features: a network of two layers whose first one is drawn at random and left as it is.

A stage with features sees ``phi(F x/sqrt(N)) - E phi`` of the input x, with p = ratio N rows of F that are normal and of squared
length N.  For large N such features act on any trained last layer like the Gaussian ``k1 F x/sqrt(N) + k* noise`` of the same first
and second moments (Gaussian equivalence: Mei & Montanari 2022; Gerace et al. 2020; Goldt et al. 2022; Hu & Lu 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import sympy
from numpy.typing import NDArray

from numerics.deferred import special
from numerics.models.checks import ParameterError, require_number
from theory.parser import read_formula
from theory.symbols import h

Array = NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda u: np.maximum(u, 0.0),
    "erf": lambda u: special.erf(u),
    "tanh": np.tanh,
    "sign": np.sign,
}
"""By name; any smooth formula of h will do as well."""

MOST_NODES = 5000
"""Of the spectrum: more would be needed for an activation that is nearly linear on inputs of the given variance."""

_DIGITS = 18.0  # e-folds of the error of the rule for the spectrum's averages, halved
_LEAST_NODES = 24
_REACH, _STEPS = 12.0, 6001  # of the trapezoid rule for moments of smooth activations, in standard deviations
_ORDERS = 24  # Hermite polynomials in the covariance of two features
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
        _function(self.activation)

    def __call__(self, fields: Array) -> Array:
        """phi of some fields ``F x/sqrt(N)``."""
        return _function(self.activation)(fields)

    def size(self, n_inputs: int) -> int:
        """p."""
        return round(self.ratio * n_inputs)

    def moments(self, variance: float) -> Moments:
        """``k0 = E phi``, ``k1 = E phi'`` and ``k*^2 = E phi^2 - k0^2 - variance k1^2`` for inputs of this variance."""
        return _moments(self.activation, variance)

    def covariance(self, correlation: Array, variance: float) -> Array:
        """Covariance of features whose rows of F have these cosines; on the diagonal, which is 1, their variance."""
        coefficients = _hermite(self.activation, variance)
        found = np.zeros_like(correlation)
        for coefficient in coefficients[:0:-1]:
            found = (found + coefficient**2) * correlation
        first = self.moments(variance)
        np.fill_diagonal(found, variance * first.slope**2 + first.rest)
        return found

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


class Moments(NamedTuple):
    """Of an activation: mean ``k0``, slope ``k1``, variance ``k*^2`` of what is neither."""

    mean: float
    slope: float
    rest: float


class Spectrum(NamedTuple):
    """Directions that inputs and features share, by their squared singular value x, and how many only one of them has, over N."""

    values: Array
    shares: Array
    of_features: float
    of_inputs: float


@lru_cache(maxsize=64)
def _function(activation: str) -> Callable[[Array], Array]:
    if not isinstance(activation, str):
        raise ParameterError(
            f"activation must be one of {', '.join(ACTIVATIONS)} or a formula of h, got {activation!r}"
        )
    if activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    try:
        formula = read_formula(activation, {})
    except ValueError as error:
        reason = str(error).replace("the loss formula", "the formula").replace("the loss", "the formula")
        raise ParameterError(
            f"activation must be one of {', '.join(ACTIVATIONS)} or a smooth formula of h: {reason}"
        ) from None
    if formula.free_symbols != {h}:
        raise ParameterError(f"activation must be a formula of h alone, got {activation!r}")
    printed = sympy.lambdify([h], formula, modules=[{"erf": special.erf, "erfc": special.erfc}, "scipy", "numpy"])
    return lambda u: np.broadcast_to(printed(np.asarray(u, dtype=float)), np.shape(u))


@lru_cache(maxsize=256)
def _moments(activation: str, variance: float) -> Moments:
    deviation = math.sqrt(variance)
    if activation == "relu":
        return Moments(deviation / math.sqrt(2.0 * math.pi), 0.5, variance * (0.25 - 0.5 / math.pi))
    if activation == "sign":
        return Moments(0.0, math.sqrt(2.0 / (math.pi * variance)), 1.0 - 2.0 / math.pi)
    if activation == "erf":
        slope = 2.0 / math.sqrt(math.pi * (1.0 + 2.0 * variance))
        return Moments(
            0.0, slope, 2.0 / math.pi * math.asin(2.0 * variance / (1.0 + 2.0 * variance)) - variance * slope**2
        )
    nodes, weights, values = _on_nodes(activation, deviation)
    mean = float(weights @ values)
    slope = float(weights @ (nodes * values)) / deviation
    # The square of what is left, which loses no digits where it is small.
    return Moments(mean, slope, float(weights @ (values - mean - slope * deviation * nodes) ** 2))


def _on_nodes(activation: str, deviation: float) -> tuple[Array, Array, Array]:
    """Standard normal nodes, their weights, and the activation there."""
    nodes = np.linspace(-_REACH, _REACH, _STEPS)
    weights = np.exp(-0.5 * nodes**2)
    with np.errstate(over="ignore", invalid="ignore"):
        values = _function(activation)(deviation * nodes)
        finite = np.isfinite(weights * values**2).all()
    if not finite:
        raise ParameterError(f"activation {activation!r} must be finite at fields of variance {deviation**2:g}")
    return nodes, weights / weights.sum(), values


@lru_cache(maxsize=64)
def _hermite(activation: str, variance: float) -> Array:
    """Coefficients of an activation in normalised Hermite polynomials."""
    if activation in ("relu", "sign"):
        return _of_kinks(activation, variance)
    nodes, weights, values = _on_nodes(activation, math.sqrt(variance))
    found, before, here = [], np.zeros_like(nodes), np.ones_like(nodes)
    for n in range(_ORDERS):
        found.append(float(weights @ (values * here)))
        before, here = here, (nodes * here - math.sqrt(n) * before) / math.sqrt(n + 1.0)
    return np.array(found)


def _of_kinks(activation: str, variance: float) -> Array:
    """The same of a function with a kink or a jump at 0, from the Hermite numbers ``He_n(0)``."""
    at_zero = [1.0, 0.0]
    for n in range(2, _ORDERS):
        at_zero.append(-(n - 1) * at_zero[n - 2])
    density, deviation = 1.0 / math.sqrt(2.0 * math.pi), math.sqrt(variance)
    found = np.zeros(_ORDERS)
    for n in range(_ORDERS):
        if activation == "sign" and n >= 1:
            found[n] = 2.0 * density * at_zero[n - 1]
        elif activation == "relu" and n >= 2:
            found[n] = deviation * density * at_zero[n - 2]
    if activation == "relu":
        found[:2] = deviation * density, 0.5 * deviation
    return found / np.sqrt(special.factorial(np.arange(_ORDERS)))


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
