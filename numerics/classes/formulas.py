"""Losses of K classes from formulas, with the methods of those that are built in (:class:`numerics.classes.losses.ClassLoss`)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from numerics.classes.losses import ClassLoss
from numerics.classes.proximal import Formula, derivatives_of_formula, points_of_formula, values_of_formula
from numerics.codegen.class_losses import class_loss_module
from numerics.models import ParameterError
from theory.class_formulas import ClassFormula
from theory.losses import Loss

Array = NDArray[np.float64]


class FormulaLoss(ClassLoss):
    """A formula of K classes on arrays of samples.

    Its *targets* are all that it knows of a sample beside the logits, (n, 1 + teachers K): the label, and the teachers' logits.

    Examples
    --------
    >>> loss = FormulaLoss(Loss.from_expression("Sum((h[k] - y[k])**2, k)/2"), 3)
    >>> h, labels = np.array([[1.0, 0.0, -1.0]]), np.array([0])
    >>> loss.gradient(h, loss.targets(labels)).round(6) + 0.0
    array([[ 0.333333,  0.333333, -0.666667]])
    """

    form = None
    needs_similarity = False

    def __init__(self, loss: ClassFormula, classes: int) -> None:
        self.loss, self.classes = loss, classes
        try:
            mean = loss.mean(classes)
        except ValueError as error:
            raise ParameterError(str(error)) from None
        compiled = class_loss_module(loss.expression, classes, loss.symbols, loss.logits)
        self._formula = Formula(*compiled, np.array(loss.values, dtype=float), mean)

    @property
    def jumps(self) -> bool:
        """Whether it jumps as a function of the teacher's logits."""
        return self.loss.jumps

    def targets(self, labels: Array, taught: Array | None = None, similarity: Array | None = None) -> Array:
        """Label and teachers' logits of every sample."""
        labels = np.asarray(labels, dtype=float)[:, None]
        if taught is None:
            return labels
        return np.column_stack([labels, np.asarray(taught).reshape(len(labels), -1)])

    def in_gauge(self, targets: Array, basis: Array) -> Array:
        """As they are: not only forces depend on them."""
        return targets

    def gradient(self, h: Array, targets: Array) -> Array:
        """dl/dh, shape (n, K)."""
        return self._derivatives(h, targets)[0]

    def curvature(self, h: Array, targets: Array) -> Array:
        """d2l/dh2, shape (n, K, K)."""
        return self._derivatives(h, targets)[1]

    def _derivatives(self, h: Array, targets: Array) -> tuple[Array, Array]:
        first, second = np.empty(h.shape), np.empty((*h.shape, self.classes))
        h, targets = (np.ascontiguousarray(item, dtype=float) for item in (h, targets))
        derivatives_of_formula(self._formula, targets, h, first, second)
        return first, second

    def value(self, h: Array, targets: Array, taught: Array | None = None) -> Array:
        """l, shape (n,)."""
        out = np.empty(len(h))
        h, targets = (np.ascontiguousarray(item, dtype=float) for item in (h, targets))
        values_of_formula(self._formula, targets, h, out)
        return out

    def proximal_points(
        self, precision: Array, u: Array, targets: Array, h: Array, force: Array, stiffness: Array
    ) -> int:
        """See :func:`numerics.classes.proximal.minimise`."""
        nothing = np.zeros(u.shape)
        return points_of_formula(self._formula, targets, precision, u, nothing, h, force, stiffness)

    @property
    def curvature_at_rest(self) -> float:
        """Mean eigenvalue of the curvature, in the gauge, where all logits are 0."""
        labels, none = np.arange(self.classes), np.zeros((self.classes, self.classes))
        taught = np.zeros((self.classes, len(self.loss.logits), self.classes))
        found = self.curvature(none, self.targets(labels, taught)).mean(axis=0)
        return float((np.trace(found) - found.sum() / self.classes) / (self.classes - 1))


def class_loss(loss: Loss, classes: int) -> ClassLoss:
    """A loss on arrays of samples of K classes, built in or from a formula; see :class:`numerics.classes.losses.ClassLoss`."""
    return _of_formula(loss, classes) if isinstance(loss, ClassFormula) else ClassLoss(loss, classes)


@lru_cache(maxsize=64)
def _of_formula(loss: ClassFormula, classes: int) -> FormulaLoss:
    return FormulaLoss(loss, classes)
