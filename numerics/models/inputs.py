"""What the coordinates of an input are: all alike, or with variances of their own.

Given its class an input has independent coordinates ``x_i = s v_i/sqrt(N) + sqrt(Delta lambda_i) z_i``; of a rule it has no mean.
Stages see all of them, the first fraction ``eta``, or random features (:mod:`numerics.models.features`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from numerics.models.checks import ParameterError, require_count, require_number

_SHOWN = 8  # eigenvalues that are written out; of more the hash that tells spectra apart

MOST_COORDINATES = 20_000
"""Groups of coordinates that a spectrum may have: each is a term of every average over the weights."""


class Inputs(ABC):
    """Variances of the coordinates, and where the class means, or the rule, have their weight.

    Attributes
    ----------
    parameters : tuple of str
        Names of the numbers that may be varied.
    """

    parameters: ClassVar[tuple[str, ...]] = ()

    white: ClassVar[bool] = False
    """Whether all coordinates are alike."""

    @property
    @abstractmethod
    def shares(self) -> NDArray[np.float64]:
        """Coordinates of each group over N, in the order in which masks take them; they add up to 1."""

    @property
    @abstractmethod
    def variances(self) -> NDArray[np.float64]:
        """Of the coordinates of each group given the class, over Delta."""

    @property
    @abstractmethod
    def signals(self) -> NDArray[np.float64]:
        """Mean square of the coordinates of v, or of the rule, in each group."""

    @cached_property
    def signal(self) -> float:
        """|v|^2/N, or |theta|^2/N."""
        return float(self.shares @ self.signals)

    @cached_property
    def signal_variance(self) -> float:
        """Variance of theta.x/sqrt(N): that of the labels of a rule without noise, over Delta."""
        return float(self.shares @ (self.variances * self.signals))

    def class_grams(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """Inner products of K class means in each group, per coordinate, shape (p, K, K), for Gamma = ``gram``."""
        return self.signals[:, None, None] * gram

    def groups_of(self, n_inputs: int) -> NDArray[np.intp]:
        """Group of each of N coordinates, shape (N,)."""
        edges = np.cumsum(self.shares)
        places = (np.arange(n_inputs) + 0.5) / n_inputs
        return np.minimum(np.searchsorted(edges, places), len(edges) - 1)


@dataclass(frozen=True)
class Isotropic(Inputs):
    """White inputs, the default: every coordinate has variance Delta and a part of v of mean square 1.

    Examples
    --------
    >>> from numerics import GaussianMixture
    >>> GaussianMixture(alpha=1.0, inputs=Isotropic()) == GaussianMixture(alpha=1.0)
    True
    """

    white: ClassVar[bool] = True

    @property
    def shares(self) -> NDArray[np.float64]:
        return np.ones(1)

    @property
    def variances(self) -> NDArray[np.float64]:
        return np.ones(1)

    @property
    def signals(self) -> NDArray[np.float64]:
        return np.ones(1)


WHITE = Isotropic()


@dataclass(frozen=True)
class Spectrum(Inputs):
    """Coordinates of given variances: the eigenbasis of a covariance that all classes share.

    Parameters
    ----------
    eigenvalues : sequence of float, shape (p,)
        Variances over Delta, > 0, in the order in which ``eta`` takes them: the first fraction.
    squared_signal : sequence of float, shape (p,), optional
        Mean square of the coordinates of v, or of the rule, in this basis; 1 if not given.
    multiplicity : sequence of float, shape (p,), optional
        Relative number of coordinates of each; equal if not given.

    Raises
    ------
    ParameterError
        If a value is not in its range, or the shapes differ.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, solve
    >>> from theory.losses import CrossEntropy
    >>> inputs = Spectrum([4.0, 1.0, 0.25])
    >>> stage = solve(GaussianMixture(alpha=2.0, inputs=inputs), Estimator(CrossEntropy(), ridge=0.1))[0]
    >>> round(stage.test_error, 6)
    0.207468
    """

    eigenvalues: tuple[float, ...]
    squared_signal: tuple[float, ...] | None = None
    multiplicity: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        values = _numbers("eigenvalues", self.eigenvalues, None, positive=True)
        for name in ("squared_signal", "multiplicity"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _numbers(name, given, len(values), positive=name == "multiplicity"))
        object.__setattr__(self, "eigenvalues", values)
        if self.squared_signal is not None and not any(self.squared_signal):
            raise ParameterError("squared_signal must have an entry > 0")

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        weights = np.array(self.multiplicity or [1.0] * len(self.eigenvalues))
        return weights / weights.sum()

    @cached_property
    def variances(self) -> NDArray[np.float64]:
        return np.array(self.eigenvalues)

    @cached_property
    def signals(self) -> NDArray[np.float64]:
        return np.array(self.squared_signal or [1.0] * len(self.eigenvalues))

    def __repr__(self) -> str:
        given = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) is not None}
        if len(self.eigenvalues) <= _SHOWN:
            return f"Spectrum({', '.join(f'{name}={value!r}' for name, value in given.items())})"
        digest = hashlib.sha256(repr(given).encode()).hexdigest()[:12]
        ends = f"{max(self.eigenvalues):g} to {min(self.eigenvalues):g}"
        return f"Spectrum({len(self.eigenvalues)} eigenvalues from {ends}, {digest})"


@dataclass(frozen=True)
class PowerLaw(Inputs):
    """Variances ``lambda_k = k^-capacity`` and signal ``lambda_k theta_k^2 = k^-(1 + 2 source capacity)``, k = 1..size.

    Both are scaled to a mean of 1 over the coordinates: the mean variance is Delta, and the variance of a rule's field 1.  The
    exponents are those of capacity and source conditions (Cui, Loureiro, Krzakala & Zdeborova 2021).

    Parameters
    ----------
    capacity, source : float
        Exponents, >= 0.
    size : int
        Coordinates, the largest variances first; N may be any multiple of it.

    Raises
    ------
    ParameterError
        If a value is not in its range.

    Examples
    --------
    >>> inputs = PowerLaw(capacity=1.5, source=0.5, size=1000)
    >>> round(float(inputs.shares @ inputs.variances), 12), round(inputs.signal_variance, 12)
    (1.0, 1.0)
    """

    capacity: float = 1.5
    source: float = 0.5
    size: int = 1000

    parameters: ClassVar[tuple[str, ...]] = ("capacity", "source")

    def __post_init__(self) -> None:
        for name in self.parameters:
            number = require_number(name, getattr(self, name), at_least=0, at_most=20, allowed="a number in [0, 20]")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "size", require_count("size", self.size))
        if self.size > MOST_COORDINATES:
            raise ParameterError(f"size must be at most {MOST_COORDINATES}, got {self.size}")

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        return np.full(self.size, 1.0 / self.size)

    @cached_property
    def variances(self) -> NDArray[np.float64]:
        decay = np.arange(1.0, self.size + 1.0) ** -self.capacity
        return decay / decay.mean()

    @cached_property
    def signals(self) -> NDArray[np.float64]:
        decay = np.arange(1.0, self.size + 1.0) ** -(1.0 + 2.0 * self.source * self.capacity)
        return decay / decay.mean() / self.variances


def _numbers(name: str, values: object, length: int | None, *, positive: bool = False) -> tuple[float, ...]:
    """Numbers >= 0, or > 0, as a tuple; one line for anything else."""
    allowed = f"{'positive' if positive else 'non-negative'} numbers"
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise ParameterError(f"{name} must be a sequence of {allowed}, got {values!r}")
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} must be a sequence of {allowed}, got {values!r}") from None
    if array.ndim != 1 or not 1 <= array.size <= MOST_COORDINATES:
        raise ParameterError(f"{name} must have one axis of 1 to {MOST_COORDINATES} entries, got shape {array.shape}")
    if length is not None and array.size != length:
        raise ParameterError(f"{name} must have as many entries as eigenvalues, {length}, got {array.size}")
    bad = ~np.isfinite(array) | ((array <= 0.0) if positive else (array < 0.0))
    if bad.any():
        raise ParameterError(f"{name} must be {allowed}, got {array[bad][0]:g}")
    return tuple(array.tolist())
