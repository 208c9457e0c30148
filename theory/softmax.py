"""Losses of K classes: one convex function of the K logits, and targets that enter linearly.

All built-in losses are, up to what does not depend on the logits h of the stage,

    l = A(h) - c.h,     A = linear |h|^2/2 + hard L(h) + soft T L(h/T),     L(h) = log sum_k exp(h_k),
                        S = grad A = linear h + hard p(h) + soft p(h/T),    p = softmax(h) = grad L,
                        c = labels e_y + taught tau(h_teacher) + gain h_teacher,

so that the force is ``f = -grad l = c - S(h)``.  Everything a solver needs is A, and c as a function of the label y and of earlier
logits.  e_y is the one-hot label, of which smoothing moves the fraction eps to the other classes in equal parts.  The coefficients
are :class:`SoftmaxForm`; what tau is, a :class:`Target`.

A constant added to all logits changes nothing: c and S are meant up to multiples of (1, .., 1).

    >>> from theory.losses import Distillation
    >>> form = softmax_form(Distillation(mixing=0.25, temperature=2.0))
    >>> form.hard, form.soft, form.labels, form.taught
    (1 - chi, chi/T, 1 - chi, chi/T)
    >>> numeric_form(Distillation(mixing=0.25, temperature=2.0)).soft
    0.125
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from sympy import Add, Expr, Symbol, exp, log, sympify

if TYPE_CHECKING:
    from theory.losses import Loss


class Target(IntEnum):
    """What tau keeps of the teacher's probabilities p = softmax(h_teacher/T); the rest of the classes share what is left equally.

    ``SIMILARITY`` is the mean of p over the training samples of one label (the teacher knows which classes are alike, but not how
    sure it is of this sample); with ``TRUE_AND_SIMILARITY`` p_y is the sample's own, and the others share the rest as that mean
    has it.  ``TOP`` keeps the k largest, ``ABOVE`` those of at least a level; a ``DECISION`` is 1 for the largest.

    Three more are rows of a table, one for each label.  ``AVERAGE`` has the mean of p_y over all training samples on the label.
    ``COSINE`` is softmax(beta r_y) with r_yk the cosine of the angle between the teacher's weights of logits y and k, to a power;
    beta makes the mean on the label that of the teacher.  A ``TABLE`` is given with the loss, and needs no teacher.
    """

    FULL = 0
    TRUE = 1
    SIMILARITY = 2
    TRUE_AND_SIMILARITY = 3
    TOP = 4
    ABOVE = 5
    DECISION = 6
    AVERAGE = 7
    COSINE = 8
    TABLE = 9


_NAMES = {
    "full": Target.FULL,
    "average": Target.AVERAGE,
    "true": Target.TRUE,
    "similarity": Target.SIMILARITY,
    "true+similarity": Target.TRUE_AND_SIMILARITY,
}
_NUMBERED = {"top": Target.TOP, "above": Target.ABOVE, "cosine": Target.COSINE}

_ALLOWED = {
    Target.TOP: lambda number: number.is_integer() and number >= 1,
    Target.ABOVE: lambda number: 0 < number < 1,
    Target.COSINE: lambda number: 0 < number < math.inf,
}

TARGETS = (*_NAMES, *(f"{name}-NUMBER" for name in _NUMBERED))
"""Texts that :func:`read_target` takes."""


def read_target(text: str) -> tuple[Target, float]:
    """A target and its number: k of "top-k", the level of "above-level", the power of "cosine-power", else 0.

    Raises
    ------
    ValueError
        If the text means none.

    Examples
    --------
    >>> read_target("top-2"), read_target("above-0.01")[1]
    ((<Target.TOP: 4>, 2.0), 0.01)
    """
    if text in _NAMES:
        return _NAMES[text], 0.0
    found = re.fullmatch(r"(\w+)-(\d+\.?\d*(?:e-?\d+)?)", text) if isinstance(text, str) else None
    if found and found[1] in _NUMBERED:
        target, number = _NUMBERED[found[1]], float(found[2])
        if _ALLOWED[target](number):
            return target, number
    raise ValueError(
        f"target must be one of {', '.join(_NAMES)}, top-NUMBER of classes, above-LEVEL in (0, 1) or cosine-POWER > 0, got {text!r}"
    )


class SoftmaxForm(NamedTuple):
    """Coefficients of A and c, see the head of this module: expressions in the loss's parameters, or numbers.

    Attributes
    ----------
    linear, hard, soft, temperature
        Of A.
    labels, smoothing, taught, gain
        Of c.
    target, number
        What tau is.
    """

    linear: Expr | float
    hard: Expr | float
    soft: Expr | float
    temperature: Expr | float
    labels: Expr | float
    smoothing: Expr | float
    taught: Expr | float
    gain: Expr | float
    target: int = Target.FULL
    number: float = 0.0

    def at(self, values: Mapping[Symbol, float]) -> SoftmaxForm:
        """With numbers for the parameters."""
        return SoftmaxForm(
            *(float(sympify(item).subs(values)) for item in self[:-2]), int(self.target), float(self.number)
        )

    def never_shown(self, seen: Sequence[float], table: Sequence[Sequence[float]] | None = None) -> list[int]:
        """Classes that are never a target where labels are seen so often: their logits run to -infinity.

        Examples
        --------
        >>> form = SoftmaxForm(0, 1, 0, 1, 1, 0, 0, 0)
        >>> form.never_shown([0.5, 0.5, 0.0])
        [2]
        >>> form._replace(smoothing=0.1).never_shown([0.5, 0.5, 0.0])
        []
        """
        taught_otherwise = self.taught != 0.0 and self.target != Target.TABLE
        if self.linear != 0.0 or (self.labels != 0.0 and self.smoothing != 0.0) or taught_otherwise:
            return []
        shown = [self.labels * weight for weight in seen]
        if table is not None:
            for k in range(len(shown)):
                shown[k] += self.taught * sum(weight * row[k] for weight, row in zip(seen, table, strict=True))
        return [k for k, weight in enumerate(shown) if not weight > 0.0]

    def potential(self, h: list[Expr]) -> Expr:
        """A(h) for K logits.

        Examples
        --------
        >>> from sympy import diff, simplify, symbols
        >>> form = SoftmaxForm(0, 1, 0, 1, 1, 0, 0, 0)
        >>> h = list(symbols("h:3"))
        >>> simplify(diff(form.potential(h), h[0]) - exp(h[0]) / Add(*map(exp, h)))
        0
        """
        t = self.temperature
        return (
            self.linear * Add(*(x**2 for x in h)) / 2
            + self.hard * log(Add(*map(exp, h)))
            + self.soft * t * log(Add(*(exp(x / t) for x in h)))
        )


def softmax_form(loss: Loss) -> SoftmaxForm:
    """The form of a loss for K classes, its coefficients expressions in the symbols of the loss.

    Raises
    ------
    ValueError
        If the loss is one of two classes only.
    """
    if loss.softmax is None:
        raise ValueError(f"{loss.name} is a loss of two classes, it has no form for more")
    return SoftmaxForm(*(sympify(item) for item in loss.softmax[:-2]), *loss.softmax[-2:])


def numeric_form(loss: Loss) -> SoftmaxForm:
    """:func:`softmax_form` at the loss's parameter values.

    Examples
    --------
    >>> from theory.losses import LogitMatching
    >>> numeric_form(LogitMatching(mixing=0.5, gain=0.25))[:5]
    (0.125, 0.5, 0.0, 1.0, 0.5)
    """
    return softmax_form(loss).at(dict(zip(loss.symbols, loss.values, strict=True)))
