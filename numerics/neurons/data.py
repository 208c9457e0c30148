"""Data sets with a tunable difficulty: XOR with a gap, a line with a gap, digits with noise on their pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numerics.models import ParameterError

LABELS = ("soft", "hard")
"""What students learn from: outputs of a teacher, or the labels of the data."""

_LEAST = 1e-3  # of all inputs, to be kept


class Labelled(NamedTuple):
    """Inputs of length 1, shape (n, d), and labels -1 and 1, shape (n,)."""

    X: np.ndarray
    y: np.ndarray


def xor(n: int, d: int, gap: float, generator: np.random.Generator) -> Labelled:
    """y = sign(x1 x2): inputs even on the unit sphere where |x1| and |x2| are at least ``gap``; no line separates the classes.

    Raises
    ------
    ParameterError
        If d < 2, or hardly any input is that far from the boundary.
    """
    X = _kept(n, d, 2, gap, generator)
    return Labelled(X, np.sign(X[:, 0] * X[:, 1]))


def line(n: int, d: int, gap: float, generator: np.random.Generator) -> Labelled:
    """y = sign(x1): inputs even on the unit sphere where |x1| >= ``gap``; the control, which a line separates.

    Raises
    ------
    ParameterError
        If d < 1, or hardly any input is that far from the boundary.
    """
    X = _kept(n, d, 1, gap, generator)
    return Labelled(X, np.sign(X[:, 0]))


def _kept(n: int, d: int, first: int, gap: float, generator: np.random.Generator) -> np.ndarray:
    """n inputs on the sphere whose first coordinates are at least ``gap`` in size."""
    if d < first:
        raise ParameterError(f"d must be at least {first}, got {d!r}")
    found = np.empty((0, d))
    drawn = 0
    while len(found) < n:
        X = generator.standard_normal((4 * n, d))
        X /= np.linalg.norm(X, axis=1)[:, None]
        found = np.concatenate([found, X[np.all(np.abs(X[:, :first]) >= gap, axis=1)]])
        drawn += 4 * n
        if len(found) < _LEAST * drawn:
            raise ParameterError(f"gap leaves hardly any input, got {gap!r} in {d} dimensions")
    return found[:n]


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Centred pixels, shape (1797, 64), of all digits, and 1 where a digit is odd, -1 where it is even.

    Raises
    ------
    ParameterError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ParameterError(
            "scikit-learn is missing: install the extra 'data' (pip install 'replica-distillation[data]')"
        ) from None
    pixels, digit = load_digits(return_X_y=True)
    return pixels - pixels.mean(axis=0), np.where(digit % 2 == 1, 1.0, -1.0)


def digits_parity(n_train: int, noise: float, generator: np.random.Generator) -> tuple[Labelled, Labelled]:
    """Odd against even digits (1797 of 8 x 8 pixels, UCI, as scikit-learn has them): training and test set.

    Pixels are centred, Gaussian noise is added to every one (``noise`` in units of the standard deviation of all pixels), and every
    image is scaled to length 1.

    Raises
    ------
    ParameterError
        If scikit-learn is not installed, or n_train leaves nothing to test on.
    """
    pixels, parity = digits()
    if not 0 < n_train < len(parity):
        raise ParameterError(f"n_train must be between 1 and {len(parity) - 1}, got {n_train!r}")
    order = generator.permutation(len(parity))
    X = pixels[order] + noise * pixels.std() * generator.standard_normal(pixels.shape)
    X /= np.linalg.norm(X, axis=1)[:, None]
    y = parity[order]
    return Labelled(X[:n_train], y[:n_train]), Labelled(X[n_train:], y[n_train:])
