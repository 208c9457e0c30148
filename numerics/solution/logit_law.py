"""Law of one stage's fresh logit: Gaussian in each of two classes, or in each of several clusters that have two labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from numerics.deferred import special
from numerics.solution import quadrature

Array = NDArray[np.float64]

MARK_STEPS, MARK_HALVINGS = 400, 50
"""Steps in which places are looked for where log-odds of clusters change sign, and halvings of those that hold one."""


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

    def log_odds(self, h: Array) -> Array:
        """True log-odds of s = 1 at h."""
        slope, offset = self.odds
        return slope * h + offset

    @property
    def spread(self) -> tuple[tuple[float, float], ...]:
        """(centre, width) of all that is Gaussian."""
        return tuple((centre, self.width) for centre, _ in self.classes)

    @property
    def pull(self) -> float:
        """E[s h]."""
        return sum(sign * share * centre for sign, (centre, share) in zip((1.0, -1.0), self.classes, strict=True))

    def marks(self, panels: Sequence[float]) -> set[float]:
        """Where the log-odds pass through 0 or through h, and ``panels``, in units of their scale, about the former."""
        slope, offset = self.odds
        found = {-offset / slope + part / abs(slope) for part in panels} if slope != 0.0 else set()
        if slope != 1.0:
            found.add(offset / (1.0 - slope))
        return found

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


@dataclass(frozen=True)
class ClusterLaw:
    """h is Gaussian in each of several clusters.

    Attributes
    ----------
    shares, labels, centres, widths : tuples of floats
        Probability, sign s, mean and standard deviation of h in each.

    Examples
    --------
    >>> law = ClusterLaw((0.3, 0.7), (1.0, -1.0), (1.0, -1.0), (2.0, 2.0))
    >>> same = LogitLaw(mean=1.0, bias=0.0, width=2.0, rho=0.3)
    >>> bool(abs(law.log_odds(np.array([0.5])) - same.log_odds(np.array([0.5])))[0] < 1e-15)
    True
    """

    shares: tuple[float, ...]
    labels: tuple[float, ...]
    centres: tuple[float, ...]
    widths: tuple[float, ...]

    infinite: ClassVar[bool] = False

    @property
    def width(self) -> float:
        """The largest."""
        return max(self.widths)

    @property
    def rho(self) -> float:
        """P(s = 1)."""
        return sum(share for share, label in zip(self.shares, self.labels, strict=True) if label > 0.0)

    @property
    def spread(self) -> tuple[tuple[float, float], ...]:
        """See :attr:`LogitLaw.spread`."""
        return tuple(zip(self.centres, self.widths, strict=True))

    @property
    def pull(self) -> float:
        """E[s h]."""
        return sum(w * s * c for w, s, c in zip(self.shares, self.labels, self.centres, strict=True))

    def _logs(self, h: Array) -> Array:
        """Logarithms of share times density, clusters first."""
        shares, centres, widths = (np.array(values)[:, None] for values in (self.shares, self.centres, self.widths))
        return np.log(shares / widths) - 0.5 * ((np.ravel(h) - centres) / widths) ** 2 - 0.5 * math.log(2.0 * math.pi)

    def density(self, h: Array) -> Array:
        """Of h, all clusters together."""
        return np.exp(_log_of_sum(self._logs(h))).reshape(np.shape(h))

    def log_odds(self, h: Array) -> Array:
        """True log-odds of s = 1 at h; infinite where there is one label only."""
        logs, positive = self._logs(h), np.array(self.labels) > 0.0
        sides = [_log_of_sum(logs[side]) if side.any() else -math.inf for side in (positive, ~positive)]
        return np.reshape(sides[0] - sides[1], np.shape(h))

    def marks(self, panels: Sequence[float]) -> set[float]:
        """Where the log-odds pass through 0 or through h."""
        ends = [centre + side * quadrature.REACH * width for centre, width in self.spread for side in (-1.0, 1.0)]
        grid = np.unique(np.concatenate([np.linspace(min(ends), max(ends), MARK_STEPS), self.centres]))
        found: set[float] = set()
        for slope in (0.0, 1.0):
            values = self.log_odds(grid) - slope * grid
            turns = np.flatnonzero(values[:-1] * values[1:] < 0.0)
            low, high, sign = grid[turns], grid[turns + 1], np.sign(values[turns])
            for _ in range(MARK_HALVINGS if len(turns) else 0):
                middle = 0.5 * (low + high)
                before = sign * (self.log_odds(middle) - slope * middle) > 0.0
                low, high = np.where(before, middle, low), np.where(before, high, middle)
            found |= set(low.tolist())
        return found

    @property
    def least_error(self) -> float:
        """Test error of the best head that says s = 1 where h > x: at its x the log-odds vanish, or x is infinite."""
        x = np.array([-math.inf, *self.marks(()), math.inf])
        shares, labels, centres, widths = (
            np.array(values)[:, None] for values in (self.shares, self.labels, self.centres, self.widths)
        )
        return float((shares * special.ndtr(labels * (x - centres) / widths)).sum(axis=0).min())

    def scaled(self, factor: float) -> ClusterLaw:
        """Law of ``factor h``, factor > 0."""
        centres, widths = (tuple(factor * value for value in values) for values in (self.centres, self.widths))
        return replace(self, centres=centres, widths=widths)


def _log_of_sum(logs: Array) -> Array:
    """ln sum exp over the first axis."""
    largest = logs.max(axis=0)
    return largest + np.log(np.exp(logs - largest).sum(axis=0))
