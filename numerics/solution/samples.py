"""Samples as observables see them: what is averaged over, whoever made them.

Fresh samples (:mod:`numerics.solution.population`), training samples of theory (:mod:`numerics.solution.training`,
:mod:`numerics.square_chain.training`) and those of an experiment (:mod:`numerics.simulation.measure`) answer the same questions:
the mean of a function, the mean of a loss, and how often a logit is on the wrong side of a level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from numerics.codegen.losses import LossFunctions
from numerics.deferred import special
from numerics.solution import quadrature
from numerics.solution.gaussian import ROUNDING, gaussian_mean
from numerics.solution.quadrature import Integral
from theory.losses import Loss

Array = NDArray[np.float64]

Integrand = Callable[..., Array]
"""``f(label, x_1, x_2, ...)``: labels 0 or 1, and numbers of the samples, arrays of one shape."""


class WeightedSamples(ABC):
    """Samples with weights: the label of each, and the logits of stages 1..k on it.

    Attributes
    ----------
    stages : int
        k; the last stage is the one whose samples these are.
    scale : array, shape (k,)
        Factor from the logits that are kept to the true ones: infinite for max-margin stages, else 1.
    """

    stages: int
    scale: Array

    many_classes: ClassVar[bool] = False
    """Whether logits have an axis of classes, their last."""

    loss_at_infinity: ClassVar[float] = 0.0
    """Average of a loss if the last stage's logits are infinite: they separate the samples they were trained on."""

    @abstractmethod
    def mean(self, function: Integrand, rows: Sequence[Array], *, degree: int | None = None) -> Integral:
        """Average of ``function(label, x_1, ..., x_d)`` with ``x = rows @ logits``.

        Parameters
        ----------
        function : callable
            See :data:`Integrand`.  Logits of infinite scale come as +-inf.
        rows : array, shape (d, k)
            Linear combinations of the logits.  Differences of stages are best formed here: nearly equal ones keep their digits.
        degree : int, optional
            2 if the function is a polynomial of second degree in the x's.
        """

    @abstractmethod
    def probability(self, level: float = 0.0, *, clean: bool = False) -> Integral:
        """P(s h < level) for the last stage's logit h, s = +-1 the label that was trained on, or the one before noise flipped
        it (``clean``).  NaN at level 0 if h is 0 on all samples."""

    def density(self, h: Array) -> Array:
        """Densities of the last stage's logit together with the label that was trained on, 0 and 1, shape (2, n) at places (n,).

        Raises
        ------
        NotImplementedError
            If the logits are drawn.
        """
        raise NotImplementedError("samples that are drawn have no density")

    def loss(self, loss: Loss) -> Integral:
        """Average of a loss of the last stage."""
        if not self.is_finite(unit(self.stages, self.stages)):
            return Integral(self.loss_at_infinity, 0.0)
        seen = loss.stages(self.stages)
        value = LossFunctions(loss).value

        def function(label: Array, h: Array, *earlier: Array) -> Array:
            h = np.ascontiguousarray(h, dtype=float)
            return value(h, np.broadcast_to(label, h.shape).astype(float), as_columns(earlier, h.size))

        rows = [unit(self.stages, stage) for stage in (self.stages, *seen)]
        return self.mean(function, rows, degree=2 if loss.is_quadratic else None)

    def is_finite(self, row: Array) -> bool:
        """Whether a linear combination of logits is finite."""
        return not np.isinf(self.scale[np.flatnonzero(row)]).any()


class GaussianLogits(WeightedSamples):
    """Samples in groups, in each of which the logits are jointly Gaussian.

    Parameters
    ----------
    probability, labels, signs : arrays, shape (G,)
        Of each group: how often it comes, its label (0 or 1) and the sign of its class.
    means : array, shape (k, G)
        Mean logits.
    factors : array, shape (k, K) or (G, k, K)
        F with covariance F F^T, of all groups or of each.
    rtol : float
        Relative accuracy of averages.
    rounding : float
        Relative error of what needs no integration.
    """

    def __init__(
        self, probability: Array, labels: Array, signs: Array, means: Array, factors: Array, rtol: float,
        rounding: float = ROUNDING,
    ) -> None:  # fmt: skip
        self.weight, self.labels, self.signs = probability, labels, signs
        self.means = means
        self.factors = np.broadcast_to(factors, (len(probability), *factors.shape[-2:]))
        self.rtol, self.rounding = rtol, rounding
        self.stages = len(means)
        self.scale = np.ones(self.stages)

    def factor_of(self, group: int, stages: Sequence[int] | Array) -> Array:
        """Rows of F, of some stages counted from 0."""
        return self.factors[group, stages]

    def mean(
        self, function: Integrand, rows: Sequence[Array], *, degree: int | None = None,
        jumps: Sequence[tuple[int, float]] = (),
    ) -> Integral:  # fmt: skip
        """See :meth:`WeightedSamples.mean`; ``jumps`` are (which x, position)."""
        rows = np.atleast_2d(rows)
        some = np.flatnonzero(rows.any(axis=0))  # of a thousand stages, two
        rows = rows[:, some]
        found = Integral(0.0, 0.0)
        for group in np.flatnonzero(self.weight):
            mean, factor = rows @ self.means[some, group], rows @ self.factor_of(group, some)

            def at(points: Array, label: float = self.labels[group]) -> Array:
                return function(label, *points)

            if degree == 2:
                part = self._second_degree(at, mean, factor)
            else:
                part = Integral(*gaussian_mean(at, mean, None, jumps, factor=factor, rtol=self.rtol))
            found += self.weight[group] * part
        return found

    def _second_degree(self, function: Callable[[Array], Array], mean: Array, factor: Array) -> Integral:
        """Exact from the points ``mean +- sqrt(K) F_k``."""
        if factor.shape[1] > factor.shape[0]:
            factor = np.linalg.qr(factor.T, mode="r").T
        columns = math.sqrt(factor.shape[1]) * factor
        values = function(np.hstack((mean[:, None] + columns, mean[:, None] - columns)))
        return Integral(float(np.mean(values)), self.rounding * float(np.mean(np.abs(values))))

    def density(self, h: Array) -> Array:
        """Normal densities; see :meth:`WeightedSamples.density`."""
        found = np.zeros((2, len(h)))
        for group, share in enumerate(self.weight):
            width = float(np.linalg.norm(self.factor_of(group, [-1])))
            found[int(self.labels[group])] += share * quadrature.density((h - self.means[-1, group]) / width) / width
        return found

    def probability(self, level: float = 0.0, *, clean: bool = False) -> Integral:
        """Normal tails; see :meth:`WeightedSamples.probability`."""
        signs = self.signs if clean else 2.0 * self.labels - 1.0
        widths = np.array([np.linalg.norm(self.factor_of(group, [-1])) for group in range(len(self.weight))])
        apart = level - signs * self.means[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(self.weight @ special.ndtr(apart / widths))
        return Integral(value, self.rounding * value)


def unit(size: int, stage: int) -> Array:
    """The row that picks one stage, counted from 1."""
    row = np.zeros(size)
    row[stage - 1] = 1.0
    return row


def combined(rows: Array, logits: Array) -> list[Array]:
    """Linear combinations of the logits of samples, shape (n, k); columns that do not enter may hold anything."""
    # Not a BLAS product: its threads cost more than these sums.
    return [sum(row[k] * logits[:, k] for k in np.flatnonzero(row)) for row in rows]


def as_columns(rows: Sequence[Array] | Array, length: int) -> Array:
    """Earlier logits as a loss takes them, shape (length, number)."""
    return np.column_stack(rows) if len(rows) else np.empty((length, 0))


def output_difference(h: Array, d: Array) -> Array:
    """sigmoid(h + d) - sigmoid(h), without cancellation where d is small."""
    with np.errstate(over="ignore", invalid="ignore"):
        rising = special.expit(h + d) * special.expit(-h) * -np.expm1(-d)
        falling = special.expit(h) * special.expit(-h - d) * np.expm1(d)
    return np.where(d >= 0.0, rising, falling)
