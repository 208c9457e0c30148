"""Losses of students that are given a part of what their teacher knows.

All are (1-chi) H(y_eps, sigmoid(h)) + chi times a soft term at temperature T, as :class:`theory.losses.Distillation` is, and differ
in the soft term: targets that are the same for all samples of a label, the labels themselves with a weight for each sample, or the
teacher's confidence put on the label.  Constants are parameters, so that a curve of students is one compiled loss.

After J. Tang et al., "Understanding and improving knowledge distillation" (2020), and T. Furlanello et al., "Born-again neural
networks" (2018).
"""

from __future__ import annotations

from sympy import Expr, Integer, Symbol

from theory.functions import sigmoid, softplus, step
from theory.losses import Loss, Range, Teacher
from theory.symbols import TEACHER, h, y

_CHI = Symbol("chi", nonnegative=True)
_T = Symbol("T", positive=True)
_EPSILON = Symbol("epsilon", nonnegative=True)
_OFF_ZERO, _OFF_ONE = Symbol("e_0", nonnegative=True), Symbol("e_1", nonnegative=True)
_SCALE = Symbol("k", positive=True)

_KEYS = ("mixing", "temperature", "smoothing")
_SYMBOLS = (_CHI, _T, _EPSILON)
_LIMITS = (Range(0.0, 1.0), Range(lower=0.0, open_below=True), Range(0.0, 0.5))
_SHARE = Range(0.0, 1.0)


def _mixed(soft: Expr, temperature_squared: bool) -> Expr:
    """(1-chi) H(y_eps, sigmoid(h)) + chi ``soft``, the latter times T^2 if asked for."""
    label = softplus(h) - (y * (1 - _EPSILON) + (1 - y) * _EPSILON) * h
    return (1 - _CHI) * label + _CHI * (_T**2 if temperature_squared else Integer(1)) * soft


def _cross_entropy(target: Expr) -> Expr:
    """H(target, sigmoid(h/T))."""
    return softplus(h / _T) - target * h / _T


def on_label(logit: Expr) -> Expr:
    """Probability that a teacher of this logit gives to the label seen, at temperature T."""
    return y * sigmoid(logit / _T) + (1 - y) * sigmoid(-logit / _T)


def confidence(logit: Expr) -> Expr:
    """Probability that a teacher of this logit gives to the class of its choice, at temperature T."""
    return step(logit) * sigmoid(logit / _T) + (1 - step(logit)) * sigmoid(-logit / _T)


def _options(temperature_squared: bool) -> tuple[tuple[str, object], ...]:
    return (("temperature_squared", True),) if temperature_squared else ()


class LabelTargets(Loss):
    """Soft targets that the label decides: 1 - e_1 where y = 1, e_0 where y = 0.

    Parameters
    ----------
    mixing, temperature, smoothing, temperature_squared
        As of :class:`theory.losses.Distillation`.
    off_zero, off_one
        e_0 and e_1 in [0, 1], the probability off the label.

    Examples
    --------
    >>> LabelTargets(off_zero=0.1, off_one=0.2).split[0]
    (1 - chi)*sigmoid(h) + chi*sigmoid(h/T)/T
    """

    needs_classes = True

    def __init__(
        self, mixing: float = 1.0, temperature: float = 1.0, smoothing: float = 0.0, off_zero: float = 0.0, off_one: float = 0.0,
        temperature_squared: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            "LabelTargets",
            _mixed(_cross_entropy(y * (1 - _OFF_ONE) + (1 - y) * _OFF_ZERO), temperature_squared),
            (*_KEYS, "off_zero", "off_one"),
            (*_SYMBOLS, _OFF_ZERO, _OFF_ONE),
            (mixing, temperature, smoothing, off_zero, off_one),
            (*_LIMITS, _SHARE, _SHARE),
            options=_options(temperature_squared),
        )


class ConfidenceWeighted(Loss):
    """Labels alone, each sample weighted by k times what its teacher is sure of.

    Parameters
    ----------
    mixing, temperature, smoothing, temperature_squared, teacher
        As of :class:`theory.losses.Distillation`.
    scale
        k > 0: one over the mean of the weights.
    of_choice
        Weight by the probability of the class that the teacher chooses, not of the label.

    Examples
    --------
    >>> ConfidenceWeighted(scale=1.2).split is None  # the curvature depends on the teacher
    True
    """

    needs_classes = True

    def __init__(
        self, mixing: float = 1.0, temperature: float = 1.0, smoothing: float = 0.0, scale: float = 1.0, of_choice: bool = False,
        temperature_squared: bool = False, teacher: Teacher = None,
    ) -> None:  # fmt: skip
        weight = confidence(TEACHER) if of_choice else on_label(TEACHER)
        super().__init__(
            "ConfidenceWeighted",
            _mixed(_SCALE * weight * _cross_entropy(y), temperature_squared),
            (*_KEYS, "scale"),
            (*_SYMBOLS, _SCALE),
            (mixing, temperature, smoothing, scale),
            (*_LIMITS, Range(lower=0.0, open_below=True)),
            teacher,
            (("of_choice", of_choice), *_options(temperature_squared)),
        )


class ConfidenceOnLabel(Loss):
    """The probability of the class that the teacher chooses, put on the label: dark knowledge with permuted predictions.

    Parameters
    ----------
    mixing, temperature, smoothing, temperature_squared, teacher
        As of :class:`theory.losses.Distillation`.

    Examples
    --------
    >>> ConfidenceOnLabel().logits
    (h_teacher,)
    """

    needs_classes = True

    def __init__(
        self, mixing: float = 1.0, temperature: float = 1.0, smoothing: float = 0.0, temperature_squared: bool = False,
        teacher: Teacher = None,
    ) -> None:  # fmt: skip
        sure = confidence(TEACHER)
        super().__init__(
            "ConfidenceOnLabel",
            _mixed(_cross_entropy(y * sure + (1 - y) * (1 - sure)), temperature_squared),
            _KEYS,
            _SYMBOLS,
            (mixing, temperature, smoothing),
            _LIMITS,
            teacher,
            _options(temperature_squared),
        )
