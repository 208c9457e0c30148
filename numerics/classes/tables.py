"""Tables of soft targets, a row for each label: what a teacher knows of classes, but not of samples.

All are as sure of the label, on average over the training samples, as the teacher is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from numerics.deferred import optimize, special

Array = NDArray[np.float64]

LARGEST_SCALE = 1e6
"""Of the exponents of :func:`cosine_table`."""


def average_table(means: Array, weights: Array) -> Array:
    """How sure the teacher is on average: 1 - eps on the label, eps/(K-1) off it, eps = E[1 - p_y].

    Tang et al. (2020), Sec. 3: *universe* knowledge, which is label smoothing.

    Parameters
    ----------
    means : array, shape (K, K)
        Of the teacher's probabilities over the samples of each label.
    weights : array, shape (K,)
        How often each label is seen.

    Returns
    -------
    array, shape (K, K)

    Examples
    --------
    >>> average_table(np.array([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.0, 0.3, 0.7]]), np.ones(3)).round(3)
    array([[0.7 , 0.15, 0.15],
           [0.15, 0.7 , 0.15],
           [0.15, 0.15, 0.7 ]])
    """
    sure, k = _on_label(means, weights), len(means)
    off = (1.0 - sure) / (k - 1)
    return (sure - off) * np.eye(k) + off


def cosines(overlap: Array) -> Array:
    """Cosines of the angles between the weights of the logits, shape (K, K), from Q = W W^T/N; 0 where there are no weights.

    Examples
    --------
    >>> cosines(np.array([[4.0, 1.0], [1.0, 1.0]]))
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    norm = np.sqrt(np.diag(overlap))
    inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    return overlap * np.outer(inverse, inverse)


def cosine_table(means: Array, weights: Array, cosine: Array, power: float) -> Array:
    """What the angles between the teacher's weights say: row y is softmax(beta sign(r_y) |r_y|^power), with r the cosines.

    Tang et al. (2020), Sec. 4: the targets of KD-sim.  Their beta is tuned; here it makes the table as sure of the label, on
    average, as the teacher is.

    Parameters
    ----------
    means, weights
        As of :func:`average_table`.
    cosine : array, shape (K, K)
        Of :func:`cosines`.
    power : float
        > 0.

    Returns
    -------
    array, shape (K, K)

    Examples
    --------
    >>> means = np.array([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]])
    >>> cosine = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> table = cosine_table(means, np.ones(3), cosine, 1.0)
    >>> table.round(2)
    array([[0.63, 0.26, 0.11],
           [0.26, 0.63, 0.11],
           [0.13, 0.13, 0.74]])
    >>> bool(abs(table.diagonal().mean() - 2 / 3) < 1e-12)
    True
    """
    exponents, sure = np.sign(cosine) * np.abs(cosine) ** power, _on_label(means, weights)

    def table(beta: float) -> Array:
        return special.softmax(beta * exponents, axis=1)

    def missing(beta: float) -> float:  # grows: nothing is more like a class than itself
        return _on_label(table(beta), weights) - sure

    end = 1.0
    while end < LARGEST_SCALE and not missing(-end) < 0.0 < missing(end):
        end *= 4.0
    if not missing(-end) < 0.0 < missing(end):  # two logits have equal weights, or all weights are 0
        return table(math.copysign(end, -missing(0.0)))
    return table(optimize.brentq(missing, -end, end, xtol=1e-13))


def _on_label(table: Array, weights: Array) -> float:
    """Mean of the diagonal."""
    return float(weights @ np.diag(table) / weights.sum())
