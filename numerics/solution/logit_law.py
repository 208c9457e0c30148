"""Law of one stage's fresh logit: Gaussian in each of two classes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from numerics.deferred import special
from numerics.solution import quadrature

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LogitLaw:
    """h has mean ``s mean + bias`` and standard deviation ``width`` given the sign s of the class.

    Attributes
    ----------
    mean, bias, width : float
        Of a max-margin stage in finite units.
    rho : float
        Probability of s = 1.
    infinite : bool
        Whether the true logit is infinitely many times h.

    Examples
    --------
    >>> law = LogitLaw(mean=1.0, bias=0.0, width=2.0, rho=0.3)
    >>> round(float(law.error(0.0)), 6), law.odds[0]
    (0.308538, 0.5)
    """

    mean: float
    bias: float
    width: float
    rho: float
    infinite: bool = False

    @property
    def classes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(centre, probability) of the class s = 1 and of the other."""
        return (self.bias + self.mean, self.rho), (self.bias - self.mean, 1.0 - self.rho)

    @property
    def odds(self) -> tuple[float, float]:
        """(slope, offset) of the true log-odds of s = 1 as a function of h (:func:`theory.observables.calibration`)."""
        slope = 2.0 * self.mean / self.width**2
        return slope, math.log(self.rho / (1.0 - self.rho)) - slope * self.bias

    def scaled(self, factor: float) -> LogitLaw:
        """Law of ``factor h``, factor > 0."""
        return replace(self, mean=factor * self.mean, bias=factor * self.bias, width=factor * self.width)

    def density(self, h: Array) -> Array:
        """Of h, both classes together."""
        return sum(share * quadrature.density((h - centre) / self.width) for centre, share in self.classes) / self.width

    def below(self, x: Array | float) -> list[Array]:
        """P(h < x) in the class s = 1 and in the other; NaN for a constant logit at its own place."""
        x = np.zeros_like(x, dtype=float) if self.infinite else np.asarray(x, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            return [special.ndtr((x - centre) / self.width) for centre, _ in self.classes]

    def cdf(self, x: Array | float) -> Array:
        """P(h < x)."""
        above, under = self.below(x)
        return self.rho * above + (1.0 - self.rho) * under

    def error(self, x: Array | float) -> Array:
        """Test error of the head that says s = 1 where h > x."""
        above, under = self.below(x)
        return self.rho * above + (1.0 - self.rho) * (1.0 - under)
