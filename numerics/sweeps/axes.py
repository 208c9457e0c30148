"""Axes of a grid, as they are written and as numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from numerics.models import ParameterError

MOST_VALUES = 10**7
"""Values of an axis that are made without being given."""

_DIGITS = 12
_ROUNDINGS = 4  # of the larger end, by which a value on a linear axis may be off

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
    >>> 0.3 in spaced("0.1:1:10")[0]  # as it is typed
    True
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
    typed = _as_typed(values)
    off = values if scale == "log" else max(abs(low), abs(high))
    values = np.where(np.abs(typed - values) <= _ROUNDINGS * np.finfo(float).eps * off, typed, values)
    values[0], values[-1] = low, high
    return values, scale


def _as_typed(values: np.ndarray) -> np.ndarray:
    """The floats of at most twelve digits that are next to them."""
    return np.array([float(f"{value:.{_DIGITS}g}") for value in values])


def axis_values(path: str, values: ArrayLike | str) -> np.ndarray:
    if isinstance(values, str):
        try:
            return spaced(values)[0]
        except ParameterError as error:
            raise ParameterError(f"over[{path!r}] {error}") from None
    if isinstance(values, np.ma.MaskedArray):
        raise ParameterError(f"over[{path!r}] must not be masked; values.compressed() holds what is not")
    try:
        array = np.atleast_1d(_numbers(values).astype(float))
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 1 or array.size == 0 or not np.all(np.isfinite(array)):
        raise ParameterError(f"over[{path!r}] must be a non-empty list of finite numbers, or LOW:HIGH:COUNT[:log|:lin]")
    if np.unique(array).size != array.size:
        raise ParameterError(f"over[{path!r}] must not repeat a value")
    return array


def _numbers(values: ArrayLike) -> np.ndarray:
    """An array, as it comes; TypeError if it holds truth values, dates, texts or the like."""
    array = np.asarray(values)
    loose = [] if hasattr(values, "dtype") else np.asarray(values, dtype=object).ravel()
    if array.dtype.kind not in "iufO" or any(isinstance(value, bool | np.bool_) for value in loose):
        raise TypeError(array.dtype)
    return array
