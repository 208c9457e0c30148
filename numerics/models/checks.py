"""What is said of a value outside its range, or of a result that did not converge."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

ROUNDING = 1e-12
"""Fractions are compared up to this."""


class ParameterError(ValueError):
    """A parameter outside its allowed range; the message names the parameter and what is allowed.

    Examples
    --------
    >>> from numerics import GaussianMixture
    >>> GaussianMixture(alpha=1.0, rho=2.0)
    Traceback (most recent call last):
    numerics.models.checks.ParameterError: rho must be a number in the open interval (0, 1), got 2.0
    """


class ConvergenceWarning(RuntimeWarning):
    """Issued with a result that did not converge.

    Examples
    --------
    >>> import warnings
    >>> from numerics import Estimator, GaussianMixture, solve
    >>> from theory.losses import CrossEntropy
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     solution = solve(GaussianMixture(alpha=2.0), Estimator(CrossEntropy(), ridge=0.1), max_iterations=1)
    >>> caught[0].category.__name__, solution.converged
    ('ConvergenceWarning', False)
    """


def require_number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
    allowed: str,
) -> float:
    """Return ``value`` as a finite float inside the given interval.

    Raises
    ------
    ParameterError
        If it is not a finite real number, or outside; the message reads "<name> must be <allowed>, got ...".
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ParameterError(f"{name} must be {allowed}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    inside = above < number < below and at_least <= number <= at_most
    if not (math.isfinite(number) and inside):
        raise ParameterError(f"{name} must be {allowed}, got {value!r}")
    return number


def plain(value: object) -> object:
    """The number that an array without axes holds; anything else as it is."""
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    masked = isinstance(value, np.ma.MaskedArray)
    return value.item() if kind in ("i", "u", "f") and getattr(value, "ndim", None) == 0 and not masked else value


def chosen(names: Sequence[str], index: int | str | slice, item: Callable[[int], Item]) -> Item | tuple[Item, ...]:
    """What ``[index]`` of something with one item a stage is: by position, by name, or a tuple of a slice.

    Raises
    ------
    IndexError, KeyError
        If there is no such position, or no such name.
    """
    places = range(len(names))
    if isinstance(index, slice):
        return tuple(item(k) for k in places[index])
    if isinstance(index, str):
        if spelt(index) not in names:
            raise KeyError(f"no stage {index!r}; there are {', '.join(names)}")
        return item(names.index(spelt(index)))
    return item(places[index])


def require_count(name: str, value: object, least: int = 1, allowed: str = "") -> int:
    """Return ``value`` as an int; ParameterError if it is no integer, or below ``least``."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ParameterError(f"{name} must be {allowed or f'an integer >= {least}'}, got {value!r}")
    return int(value)


def require_noise(name: str, value: object) -> float:
    return require_number(name, value, at_least=0, at_most=0.5, allowed="a number in [0, 1/2]")


def require_alpha(name: str, value: object) -> float:
    return require_number(name, value, above=0, allowed="a finite number > 0")


def spelt(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def require_finite(name: str, value: object) -> float:
    return require_number(name, value, allowed="a finite number")


def short(value: object) -> str:
    """A value as it is written, on one line, and no more of it than tells what it is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
