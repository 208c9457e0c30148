"""Losses of K logits on arrays: A, its slope S, its curvature, and the targets c (:mod:`theory.softmax`).

Functions of one sample are compiled and shared by the solver and by :class:`ClassLoss`, which is what simulations use.  Their
argument ``form`` is a :class:`theory.softmax.SoftmaxForm` of numbers.  What a user's formula is, with
the same methods, is a :class:`numerics.classes.formulas.FormulaLoss`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numba import types
from numpy.typing import NDArray

from numerics.classes.proximal import FORM, proximal_points
from numerics.classes.tables import average_table, cosine_table, cosines
from numerics.codegen.cache import njit
from numerics.models import ParameterError
from numerics.scalar.kernels.elementary import OPTIONS, FloatArray, IntArray, Matrix, exp_nonpositive
from numerics.scalar.kernels.layout import Cube
from theory.losses import Loss
from theory.softmax import SoftmaxForm, Target, numeric_form

Array = NDArray[np.float64]

_TRUE, _SIMILARITY, _BOTH = Target.TRUE.value, Target.SIMILARITY.value, Target.TRUE_AND_SIMILARITY.value
_TOP, _ABOVE, _DECISION = Target.TOP.value, Target.ABOVE.value, Target.DECISION.value
_AVERAGE, _COSINE, _TABLE = Target.AVERAGE.value, Target.COSINE.value, Target.TABLE.value


@njit(types.float64(FloatArray, types.float64, FloatArray), **OPTIONS)
def softmax(h, temperature, p):
    """softmax(h/T) into ``p``; returns log sum_k exp(h_k/T)."""
    largest = -np.inf
    for k in range(h.size):
        largest = max(largest, h[k])
    total, cold = 0.0, 1.0 / temperature
    for k in range(h.size):
        p[k] = exp_nonpositive((h[k] - largest) * cold)
        total += p[k]
    inverse = 1.0 / total
    for k in range(h.size):
        p[k] *= inverse
    return largest / temperature + math.log(total)


@njit(types.void(FORM, FloatArray, FloatArray, FloatArray), **OPTIONS)
def slope_at(form, h, p, out):
    """S(h) into ``out``; ``p`` is room for K numbers."""
    for k in range(h.size):
        out[k] = form.linear * h[k]
    if form.hard != 0.0:
        softmax(h, 1.0, p)
        for k in range(h.size):
            out[k] += form.hard * p[k]
    if form.soft != 0.0:
        softmax(h, form.temperature, p)
        for k in range(h.size):
            out[k] += form.soft * p[k]


@njit(types.void(types.float64, FloatArray, Matrix), **OPTIONS)
def _add_curvature(weight, p, out):
    """``weight (diag(p) - p p^T)`` added to ``out``."""
    for j in range(p.size):
        for k in range(p.size):
            out[j, k] -= weight * p[j] * p[k]
        out[j, j] += weight * p[j]


@njit(types.void(FORM, FloatArray, FloatArray, Matrix), **OPTIONS)
def curvature_at(form, h, p, out):
    """dS/dh, K x K, into ``out``; ``p`` is room for K numbers."""
    out[:] = 0.0
    for k in range(h.size):
        out[k, k] = form.linear
    if form.hard != 0.0:
        softmax(h, 1.0, p)
        _add_curvature(form.hard, p, out)
    if form.soft != 0.0:
        softmax(h, form.temperature, p)
        _add_curvature(form.soft / form.temperature, p, out)


@njit(types.float64(FORM, FloatArray, FloatArray), **OPTIONS)
def potential_at(form, h, p):
    """A(h); ``p`` is room for K numbers."""
    value = 0.0
    for k in range(h.size):
        value += 0.5 * form.linear * h[k] * h[k]
    if form.hard != 0.0:
        value += form.hard * softmax(h, 1.0, p)
    if form.soft != 0.0:
        value += form.soft * form.temperature * softmax(h, form.temperature, p)
    return value


@njit(types.void(FORM, types.int64, FloatArray, Matrix, FloatArray, FloatArray), **OPTIONS)
def taught_at(form, label, teacher, similarity, p, out):
    """tau(h_teacher) of one teacher, into ``out``; ``p`` is room for K numbers."""
    k_classes = teacher.size
    target = form.target
    if target == _DECISION:
        best = 0
        for k in range(1, k_classes):
            if teacher[k] > teacher[best]:
                best = k
        for k in range(k_classes):
            out[k] = 1.0 if k == best else 0.0
        return
    softmax(teacher, form.temperature, p)
    for k in range(k_classes):
        out[k] = p[k]
    if target == _TRUE:
        for k in range(k_classes):
            if k != label:
                out[k] = (1.0 - p[label]) / (k_classes - 1)
    elif target in (_SIMILARITY, _AVERAGE, _COSINE):
        for k in range(k_classes):
            out[k] = similarity[label, k]
    elif target == _BOTH:
        others = 1.0 - similarity[label, label]
        for k in range(k_classes):
            if k != label:
                share = similarity[label, k] / others if others > 0.0 else 1.0 / (k_classes - 1)
                out[k] = (1.0 - p[label]) * share
    elif target in (_TOP, _ABOVE):
        kept, left = 0, 1.0
        for k in range(k_classes):
            if target == _TOP:
                rank = 0  # how many are larger
                for j in range(k_classes):
                    if p[j] > p[k] or (p[j] == p[k] and j < k):
                        rank += 1
                keep = rank < form.number
            else:
                keep = p[k] >= form.number
            if keep:
                kept += 1
                left -= p[k]
            else:
                out[k] = -1.0
        for k in range(k_classes):
            if out[k] < 0.0:
                out[k] = left / (k_classes - kept)


@njit(types.void(FORM, types.int64, Matrix, Matrix, FloatArray, FloatArray, FloatArray), **OPTIONS)
def target_at(form, label, taught, similarity, p, tau, out):
    """c for a label and the teachers' logits (teachers, K), into ``out``; ``p`` and ``tau`` are room for K numbers."""
    k_classes, n_teachers = out.size, taught.shape[0]
    for k in range(k_classes):
        others = form.labels * form.smoothing / (k_classes - 1)
        out[k] = form.labels * (1.0 - form.smoothing) if k == label else others
    if form.target == _TABLE:
        for k in range(k_classes):
            out[k] += form.taught * similarity[label, k]
        return
    if n_teachers == 0:
        return
    for s in range(n_teachers):
        if form.taught != 0.0:
            taught_at(form, label, taught[s], similarity, p, tau)
            for k in range(k_classes):
                out[k] += form.taught / n_teachers * tau[k]
        if form.gain != 0.0:
            for k in range(k_classes):
                out[k] += form.gain / n_teachers * taught[s, k]


# The same for arrays of samples.


@njit(types.void(FORM, Matrix, Matrix), **OPTIONS)
def _slopes(form, h, out):
    p = np.empty(h.shape[1])
    for i in range(h.shape[0]):
        slope_at(form, h[i], p, out[i])


@njit(types.void(FORM, Matrix, Cube), **OPTIONS)
def _curvatures(form, h, out):
    p = np.empty(h.shape[1])
    for i in range(h.shape[0]):
        curvature_at(form, h[i], p, out[i])


@njit(types.void(FORM, Matrix, FloatArray), **OPTIONS)
def _potentials(form, h, out):
    p = np.empty(h.shape[1])
    for i in range(h.shape[0]):
        out[i] = potential_at(form, h[i], p)


@njit(types.void(FORM, IntArray, Cube, Matrix, Matrix), **OPTIONS)
def _targets(form, labels, taught, similarity, out):
    p, tau = np.empty(out.shape[1]), np.empty(out.shape[1])
    for i in range(labels.size):
        target_at(form, labels[i], taught[i], similarity, p, tau, out[i])


@lru_cache(maxsize=256)
def _form(loss: Loss, _softmax: tuple | None) -> SoftmaxForm:
    """:func:`theory.softmax.numeric_form`; losses that are equal for two classes may have different forms."""
    return numeric_form(loss)


class ClassLoss:
    """A loss of K classes on arrays of samples; see :mod:`numerics.models.class_mixture` for the conventions.

    Parameters
    ----------
    loss : theory.losses.Loss
        With a form for K classes.
    classes : int
        K.

    Raises
    ------
    ParameterError
        If the loss has no such form, or its table is of another number of classes.

    Examples
    --------
    >>> from theory.losses import Distillation
    >>> loss = ClassLoss(Distillation(mixing=0.5, temperature=2.0), 3)
    >>> h, labels = np.array([[1.0, 0.0, -1.0]]), np.array([0])
    >>> taught = np.array([[[2.0, 0.0, 0.0]]])
    >>> c = loss.targets(labels, taught)
    >>> loss.gradient(h, c).round(6)
    array([[-0.184789,  0.146178,  0.038611]])
    >>> loss.value(h, c, taught).round(6)
    array([0.702894])
    """

    free = False
    """Whether the best mean logit depends on the sample, so that a stage needs all K coordinates."""

    pinned = False
    """Whether a stage has K-1 coordinates, among K of other stages (:class:`numerics.classes.formulas.PinnedLoss`)."""

    def __init__(self, loss: Loss, classes: int) -> None:
        try:
            self.form = _form(loss, loss.softmax)
        except ValueError as error:
            raise ParameterError(str(error)) from None
        self.loss, self.classes = loss, classes
        if loss.table is not None and len(loss.table) != classes:
            raise ParameterError(f"table must be of {classes} classes, got {len(loss.table)}")

    @property
    def needs_similarity(self) -> bool:
        """Whether targets hold means over the training samples."""
        return self.form.taught != 0.0 and self.form.target in (_SIMILARITY, _BOTH, _AVERAGE, _COSINE)

    @property
    def jumps(self) -> bool:
        """Whether targets jump as functions of the teacher's logits."""
        return self.form.taught != 0.0 and self.form.target in (_TOP, _ABOVE, _DECISION)

    @property
    def quadratic(self) -> bool:
        """Whether A is |h|^2 times a number."""
        return self.form.hard == 0.0 and self.form.soft == 0.0

    def slope(self, h: Array) -> Array:
        """S, shape (n, K)."""
        out = np.empty(h.shape)
        _slopes(self.form, np.ascontiguousarray(h, dtype=float), out)
        return out

    def gradient(self, h: Array, targets: Array) -> Array:
        """dl/dh = S - c, shape (n, K)."""
        return self.slope(h) - targets

    def curvature(self, h: Array, targets: Array | None = None) -> Array:
        """dS/dh, shape (n, K, K), which does not depend on targets."""
        out = np.empty((*h.shape, self.classes))
        _curvatures(self.form, np.ascontiguousarray(h, dtype=float), out)
        return out

    def targets(self, labels: Array, taught: Array | None = None, similarity: Array | None = None) -> Array:
        """c, shape (n, K), for labels (n,) and the teachers' logits (n, teachers, K); ``similarity`` is that of :meth:`table`."""
        out = np.empty((len(labels), self.classes))
        taught = np.empty((len(labels), 0, self.classes)) if taught is None else taught
        table = self._no_table if similarity is None else np.ascontiguousarray(similarity, dtype=float)
        if self.needs_similarity and similarity is None:
            raise ValueError("the targets of this loss need a table of similarities")
        arrays = np.ascontiguousarray(labels, dtype=np.int64), np.ascontiguousarray(taught, dtype=float)
        _targets(self.form, *arrays, table, out)
        return out

    def in_gauge(self, targets: Array, basis: Array) -> Array:
        """What :meth:`proximal_points` takes of targets."""
        return targets @ basis.T

    def proximal_points(
        self, precision: Array, u: Array, targets: Array, h: Array, force: Array, stiffness: Array
    ) -> int:
        """See :func:`numerics.classes.proximal.minimise`; targets are those of :meth:`in_gauge`."""
        return proximal_points(self.form, precision, u, targets, h, force, stiffness)

    @property
    def curvature_at_rest(self) -> float:
        """Of A, where all logits are 0."""
        return self.form.linear + (self.form.hard + self.form.soft / self.form.temperature) / self.classes

    def similarity(self, labels: Array, taught: Array, weights: Array | None = None) -> Array:
        """Means of softmax(h_teacher/T) over the samples of each label, averaged over the teachers, shape (K, K).

        A label that does not occur has equal entries.
        """
        full = ClassLoss.__new__(ClassLoss)
        full.loss, full.classes = self.loss, self.classes
        full.form = self.form._replace(labels=0.0, taught=1.0, gain=0.0, target=Target.FULL.value)
        p = full.targets(labels, taught)
        weights = np.ones(len(labels)) if weights is None else weights
        out = np.full((self.classes, self.classes), 1.0 / self.classes)
        for label in range(self.classes):
            some = np.asarray(labels) == label
            total = weights[some].sum()
            if total > 0.0:
                out[label] = weights[some] @ p[some] / total
        return out

    def table(self, means: Array, weights: Array, overlaps: Sequence[Array]) -> Array:
        """What targets are made of where they need a table, shape (K, K), a row a label.

        Parameters
        ----------
        means : array, shape (K, K)
            Of p by label (:meth:`similarity`).
        weights : array, shape (K,)
            How often each label is seen.
        overlaps : sequence of (K, K) arrays
            Q of each teacher, W W^T/N.
        """
        if self.form.target == _AVERAGE:
            return average_table(means, weights)
        if self.form.target == _COSINE:
            return cosine_table(means, weights, np.mean([cosines(q) for q in overlaps], axis=0), self.form.number)
        return means

    def value(self, h: Array, targets: Array, taught: Array | None = None) -> Array:
        """l, shape (n,): cross-entropies, and squares of distances in the gauge."""
        potential = np.empty(len(h))
        _potentials(self.form, np.ascontiguousarray(h, dtype=float), potential)
        centred = targets - targets.mean(axis=1, keepdims=True) if self.quadratic else targets
        value = potential - (centred * h).sum(axis=1)
        if self.form.linear == 0.0:
            return value
        if self.quadratic:
            aim = centred
        else:
            aim = self.form.gain * taught.mean(axis=1)
            aim = aim - aim.mean(axis=1, keepdims=True)
        return value + (aim**2).sum(axis=1) / (2.0 * self.form.linear)

    @cached_property
    def _no_table(self) -> Array:
        if self.loss.table is not None:
            return np.array(self.loss.table)
        return np.full((self.classes, self.classes), 1.0 / self.classes)
