"""The width at which a curve of errors falls below a level, with bootstrap bars over runs, and how it goes with the margin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLINGS = 1000
"""Bootstrap samples."""

BAR = (16.0, 84.0)
"""Percentiles at the ends of a bar."""


class Bar(NamedTuple):
    """A value and its bar; the upper end, or all of it, may be infinite."""

    value: float
    low: float
    high: float


def width_at(widths: ArrayLike, errors: ArrayLike, level: float) -> float:
    """Width at which an error falls to ``level``, from curves of shape (..., widths): linear in the logarithm of the width.

    It is where the curve first gets there; ``inf`` if it never does, the smallest width if it is there from the beginning.

    Examples
    --------
    >>> width_at([2, 4, 8], [0.3, 0.2, 0.0], 0.1).round(2)
    np.float64(5.66)
    """
    logs, errors = np.log(np.asarray(widths, dtype=float)), np.asarray(errors, dtype=float)
    below = errors <= level
    k = np.argmax(below, axis=-1)[..., None]  # the first
    last = np.maximum(k - 1, 0)
    high, low = np.take_along_axis(errors, last, -1), np.take_along_axis(errors, k, -1)
    share = np.where(k > 0, (high - level) / np.where(high > low, high - low, 1.0), 0.0)
    crossed = np.exp(logs[last] + share * (logs[k] - logs[last]))
    return np.where(np.any(below, axis=-1), crossed[..., 0], np.inf)[()]


def resampled(n_runs: int, seed: int = 0) -> np.ndarray:
    """Bootstrap samples of runs, shape (:data:`RESAMPLINGS`, n_runs)."""
    return np.random.default_rng(seed).integers(0, n_runs, (RESAMPLINGS, n_runs))


def bar(value: float, samples: np.ndarray) -> Bar:
    """A value, and the range of its bootstrap samples."""
    return Bar(float(value), *(float(x) for x in np.percentile(samples, BAR, method="nearest")))


def width_with_bar(widths: ArrayLike, errors: ArrayLike, level: float, seed: int = 0) -> Bar:
    """:func:`width_at` of the mean error over runs, ``errors`` of shape (runs, widths)."""
    errors = np.asarray(errors, dtype=float)
    means = errors[resampled(len(errors), seed)].mean(axis=1)
    return bar(width_at(widths, errors.mean(axis=0), level), width_at(widths, means, level))


def exponent(margins: ArrayLike, widths: ArrayLike, errors: ArrayLike, level: float) -> Bar:
    """Slope of ln(width needed) in ln(margin), by least squares over data sets of different margins.

    ``margins`` has shape (k,), ``errors`` (k, runs, widths), runs are resampled at every margin by itself.  The bar is that of the
    runs alone: it knows nothing of the range of margins, or of whether there is a power law.  NaN where some width is infinite.
    """
    errors, x = np.asarray(errors, dtype=float), np.log(np.asarray(margins, dtype=float))
    samples = [width_at(widths, e[resampled(len(e), seed)].mean(axis=1), level) for seed, e in enumerate(errors)]
    found = _slope(x, width_at(widths, errors.mean(axis=1), level)[:, None])[0]
    return bar(found, _slope(x, np.array(samples)))


def _slope(x: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Slopes of the columns of ln(widths)."""
    centred = x - x.mean()
    with np.errstate(invalid="ignore"):
        return centred @ np.log(widths) / (centred @ centred)
