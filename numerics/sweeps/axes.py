"""Axes of a grid, as they are written and as numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from numerics.models import ParameterError

MOST_VALUES = 10**7
"""Values of an axis that are made without being given."""

Over = Mapping[str, np.ndarray]


def spaced(text: str) -> tuple[np.ndarray, str]:
    """Values and spacing (``"lin"`` or ``"log"``) of an axis written as ``LOW:HIGH:COUNT[:log|:lin]``.

    Raises
    ------
    ParameterError
        If it is written otherwise, has no two values, or has a lower end <= 0 on a logarithmic axis.

    Examples
    --------
    >>> spaced("0.1:10:3:log")
    (array([ 0.1,  1. , 10. ]), 'log')
    """
    parts = text.split(":")
    scale = parts.pop() if len(parts) == 4 else "lin"
    try:
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
    except (ValueError, IndexError):
        count = 0
    if len(parts) != 3 or scale not in ("lin", "log") or count < 2:
        raise ParameterError(f"wants LOW:HIGH:COUNT[:log|:lin] with COUNT >= 2, got {text!r}")
    if count > MOST_VALUES:
        raise ParameterError(f"wants at most {MOST_VALUES:.0e} values on an axis, got {text!r}")
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ParameterError(f"wants LOW < HIGH, got {text!r}")
    if scale == "log" and low <= 0:
        raise ParameterError(f"wants LOW > 0 on a logarithmic axis, got {text!r}")
    values = np.geomspace(low, high, count) if scale == "log" else np.linspace(low, high, count)
    values[0], values[-1] = low, high
    return values, scale


def axis_values(path: str, values: ArrayLike | str) -> np.ndarray:
    if isinstance(values, str):
        try:
            return spaced(values)[0]
        except ParameterError as error:
            raise ParameterError(f"over[{path!r}] {error}") from None
    try:
        array = np.atleast_1d(np.asarray(values, dtype=float))
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 1 or array.size == 0 or not np.all(np.isfinite(array)):
        raise ParameterError(f"over[{path!r}] must be a non-empty list of finite numbers, or LOW:HIGH:COUNT[:log|:lin]")
    if np.unique(array).size != array.size:
        raise ParameterError(f"over[{path!r}] must not repeat a value")
    return array
