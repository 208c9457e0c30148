"""Losses of stages whose labels a rule gives: the rule is the first stage of the chain, and its logit tells the label.

A rule ``h_0 = theta.x/sqrt(N) + eps`` belongs to the data; it does not react to anybody's training.  In derivations it takes
the first place, so that the logits of a user's stages h_1, h_2, ... become h_2, h_3, ... and its own is h_1.
"""

from __future__ import annotations

from functools import lru_cache

from sympy import Expr

from theory.functions import step
from theory.losses import Loss, SquareDistillation
from theory.symbols import logit, y


@lru_cache(maxsize=1024)
def after_rule(loss: Loss, real: bool) -> Loss:
    """The loss as a function of the rule's logit.

    Parameters
    ----------
    loss : Loss
        As its user writes it, for stage t of a chain.
    real : bool
        Whether the rule's logit itself is the label s.  If not, its sign is, unless noise flips it: y then says whether the
        label is the one that the rule gives (1) or the other (0).

    Returns
    -------
    Loss
        For stage t + 1.  Square losses of real labels are (h - t)^2/2.

    Raises
    ------
    ValueError
        For a loss of real labels that needs two classes.

    Examples
    --------
    >>> from theory.losses import CrossEntropy, SquareLoss
    >>> after_rule(SquareLoss(), real=True).split
    (h, h_1)
    >>> after_rule(CrossEntropy(), real=False).split
    (sigmoid(h), 2*epsilon*y - epsilon - y - (2*epsilon - 1)*(2*y - 1)*step(h_1) + 1)
    >>> after_rule(CrossEntropy(), real=True)
    Traceback (most recent call last):
    ValueError: CrossEntropy needs labels of two classes, and the rule gives real ones
    """
    if real and loss.needs_classes:
        raise ValueError(f"{_called(loss)} needs labels of two classes, and the rule gives real ones")
    moved = {
        symbol: logit(int(symbol.name.removeprefix("h_")) + 1) for symbol in loss.logits if symbol.name != "h_teacher"
    }
    expression = loss.expression.xreplace(moved)
    rule = logit(1)
    if real:
        expression = expression.subs(y, (1 + rule) / 2)
        if isinstance(loss, SquareDistillation):
            expression = 2 * expression
    else:
        said = step(rule)
        expression = _by_class(expression, y * said + (1 - y) * (1 - said))
    teacher = loss.teacher
    if teacher is not None:
        teacher = tuple(stage + 1 for stage in teacher) if isinstance(teacher, tuple) else teacher + 1
    return Loss(loss.name, expression, loss.keys, loss.symbols, loss.values, loss.limits, teacher, loss.options)


def _by_class(expression: Expr, label: Expr) -> Expr:
    """With a label that is 0 or 1 in the place of y, which the result is linear in."""
    return label * expression.subs(y, 1) + (1 - label) * expression.subs(y, 0)


def _called(loss: Loss) -> str:
    return loss.name if type(loss) is not Loss else f"the loss {loss.name!r}, which names y,"
