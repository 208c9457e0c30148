"""Labels that a rule draws: P(y = 1) = sigmoid(slope z), z the rule's logit.

That is the sign of z, but for the samples on which the label disagrees with it: a share ``sigmoid(-slope |z|)`` at z.  The slope
is infinite where the label is the sign itself.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_POINTS = 24  # of a panel
_REACH = 9.0  # standard deviations of z


def disagreement(slope: float, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that the label drawn at ``z`` is not its sign, of the shape of z.

    Examples
    --------
    >>> disagreement(math.log(3.0), np.array([-1.0, 0.0, 2.0])).round(12).tolist()
    [0.25, 0.5, 0.1]
    """
    return np.zeros_like(z) if math.isinf(slope) else np.exp(-np.logaddexp(0.0, slope * np.abs(z)))


@lru_cache(maxsize=4096)
def mean_disagreement(slope: float) -> float:
    """Average of :func:`disagreement` over ``z ~ N(0, 1)``.

    Examples
    --------
    >>> mean_disagreement(math.inf), round(mean_disagreement(1e-9), 6)
    (0.0, 0.5)
    >>> abs(mean_disagreement(1e6) * 1e6 - math.sqrt(2 / math.pi) * math.log(2)) < 1e-9  # int_0^oo 2 N(0) sigmoid(-c z) dz
    True
    """
    if math.isinf(slope):
        return 0.0
    unit, share = np.polynomial.legendre.leggauss(_POINTS)
    first = min(0.5, 1.0 / slope)
    ends = np.concatenate(
        ([0.0], np.geomspace(first, 1.0, 1 + math.ceil(-math.log2(first))), np.arange(2.0, _REACH + 1.0))
    )
    half = 0.5 * np.diff(ends)
    z = (0.5 * (ends[1:] + ends[:-1])[:, None] + half[:, None] * unit).ravel()
    weight = (half[:, None] * share).ravel() * np.exp(-0.5 * z * z) * math.sqrt(2.0 / math.pi)
    return float(weight @ disagreement(slope, z))
