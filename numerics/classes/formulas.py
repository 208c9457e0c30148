"""Losses of K classes from formulas, with the methods of those that are built in (:class:`numerics.classes.losses.ClassLoss`).

Logits have K-1 coordinates, or K where the best mean logit of some stage depends on the sample, as of one-versus-rest losses
(:func:`theory.class_formulas.mean_logit`).  In such a chain logits of other stages sum to 0 all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from numerics.classes.losses import ClassLoss
from numerics.classes.proximal import (
    Formula,
    derivatives_of_formula,
    points_of_formula,
    values_of_formula,
    whole_points_of_formula,
)
from numerics.codegen.class_losses import class_loss_module
from numerics.models import Estimator, ParameterError, helmert
from theory.class_formulas import ClassFormula, as_formula
from theory.losses import Loss

Array = NDArray[np.float64]


class FormulaLoss(ClassLoss):
    """A formula of K classes on arrays of samples.

    Its *targets* are all that it knows of a sample beside the logits, (n, 1 + teachers K): the label, and the teachers' logits.
    ``teachers`` says of each teacher whether its mean logit depends on the sample.

    Examples
    --------
    >>> loss = FormulaLoss(Loss.from_expression("Sum((h[k] - y[k])**2, k)/2"), 3)
    >>> h, labels = np.array([[1.0, 0.0, -1.0]]), np.array([0])
    >>> loss.gradient(h, loss.targets(labels)).round(6) + 0.0
    array([[ 0.333333,  0.333333, -0.666667]])
    """

    form = None
    needs_similarity = False

    def __init__(self, loss: ClassFormula, classes: int, teachers: tuple[bool, ...] = ()) -> None:
        self.loss, self.classes = loss, classes
        try:
            mean = loss.mean(classes, teachers)
        except ValueError as error:
            raise ParameterError(str(error)) from None
        compiled = class_loss_module(loss.expression, classes, loss.symbols, loss.logits)
        self.free = mean is None
        self._formula = Formula(*compiled, np.array(loss.values, dtype=float), 0.0 if self.free else mean)

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
        if not self.free:
            return points_of_formula(self._formula, targets, precision, u, nothing, h, force, stiffness)
        basis = helmert(self.classes, whole=True)
        logits, centres = h @ basis, u @ basis
        failed = whole_points_of_formula(
            self._formula, targets, basis.T @ precision @ basis, centres, nothing, logits, force, stiffness
        )
        h[:], force[:] = logits @ basis.T, force @ basis.T
        stiffness[:] = basis @ stiffness @ basis.T
        return failed

    @property
    def curvature_at_rest(self) -> float:
        """Mean eigenvalue of the curvature, in the coordinates of the stage, where all logits are 0."""
        labels, none = np.arange(self.classes), np.zeros((self.classes, self.classes))
        taught = np.zeros((self.classes, len(self.loss.logits), self.classes))
        found = self.curvature(none, self.targets(labels, taught)).mean(axis=0)
        if self.free:
            return float(np.trace(found) / self.classes)
        return float((np.trace(found) - found.sum() / self.classes) / (self.classes - 1))


class PinnedLoss:
    """The loss of a stage whose logits sum to 0, in a chain with K coordinates: its forces have 0 as the last one.

    What does not know of coordinates is that of the loss.
    """

    form, pinned, free = None, True, False

    def __init__(self, inner: ClassLoss) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def in_gauge(self, targets: Array, basis: Array) -> Array:
        """Of the first K-1 coordinates."""
        return self.inner.in_gauge(targets, basis[:-1])

    def proximal_points(
        self, precision: Array, u: Array, targets: Array, h: Array, force: Array, stiffness: Array
    ) -> int:
        """See :func:`numerics.classes.proximal.minimise`; the last coordinate of the logits is 0."""
        d = u.shape[1] - 1
        logits, forces = np.ascontiguousarray(h[:, :d]), np.empty((len(u), d))
        stiff, centres = np.empty((len(u), d, d)), np.ascontiguousarray(u[:, :d])
        own = np.ascontiguousarray(precision[:d, :d])
        failed = self.inner.proximal_points(own, centres, targets, logits, forces, stiff)
        h[:, :d], force[:, :d] = logits, forces
        h[:, d] = force[:, d] = stiffness[:] = 0.0
        stiffness[:, :d, :d] = stiff
        return failed


def class_loss(loss: Loss, classes: int, teachers: Sequence[bool] = ()) -> ClassLoss:
    """A loss on arrays of samples of K classes, built in or from a formula; see :class:`numerics.classes.losses.ClassLoss`.

    ``teachers`` says of each stage that it looks at whether the mean logit there depends on the sample: none, if it is not given.
    """
    teachers = tuple(map(bool, teachers)) if any(teachers) else ()
    if isinstance(loss, ClassFormula):
        return _of_formula(loss, classes, teachers)
    found = ClassLoss(loss, classes)
    return (
        _of_formula(_written(loss, loss.softmax), classes, teachers) if teachers and found.form.gain != 0.0 else found
    )


@lru_cache(maxsize=64)
def _written(loss: Loss, _softmax: tuple) -> ClassFormula:
    """Losses that are equal for two classes may have different forms."""
    return as_formula(loss)


@lru_cache(maxsize=64)
def _of_formula(loss: ClassFormula, classes: int, teachers: tuple[bool, ...] = ()) -> FormulaLoss:
    return FormulaLoss(loss, classes, teachers)


def class_losses(
    stages: Sequence[Estimator], classes: int, *, whole: bool | None = None
) -> list[ClassLoss | PinnedLoss]:
    """Losses of the stages of a chain, all in K-1 coordinates or all in K (``whole``), by default as one of them needs."""
    found: list[ClassLoss] = []
    for t, stage in enumerate(stages, start=1):
        found.append(class_loss(stage.loss, classes, [found[s - 1].free for s in stage.loss.stages(t)]))
    whole = any(loss.free for loss in found) if whole is None else whole
    return [PinnedLoss(loss) if whole and not loss.free else loss for loss in found]


def coordinates(stages: Sequence[Estimator], classes: int) -> int:
    """How many the logits of a stage have: K if the best mean logit of one of them depends on the sample, else K-1."""
    return classes - (not any(loss.free for loss in class_losses(stages, classes)))


def coordinates_of(loss: ClassLoss | PinnedLoss, basis: Array) -> Array:
    """A basis (d, K) of a chain with 0 in the place of what a stage of this loss does not have."""
    return np.vstack([basis[:-1], np.zeros_like(basis[-1])]) if loss.pinned else basis
