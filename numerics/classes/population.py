"""Fresh samples of K classes: the logits of all stages are jointly Gaussian given the class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numba import types
from numpy.typing import NDArray
from scipy import special
from scipy.special import ndtr
from scipy.stats import qmc

from numerics.classes.formulas import class_loss
from numerics.classes.losses import ClassLoss
from numerics.classes.rules import sobol_rule
from numerics.classes.symmetry import Permutation, first_of_orbits
from numerics.codegen.cache import njit
from numerics.models import ClassMixture, helmert
from numerics.scalar.kernels.elementary import GENERIC, OPTIONS, FloatArray, Matrix
from numerics.solution.quadrature import Integral
from theory.losses import Loss

Array = NDArray[np.float64]

_LOG2_ORTHANT, _LOG2_AGREEMENT = 12, 10
_PLANAR_NODES, _REACH = 160, 9.0
_LOG2_MEAN = 12
_CLIP = 1e-15
_STEP = 0.25  # of a trapezoid rule, in units of the distance over which anything turns
_EQUAL, _NARROW = 1e-12, 1e-6  # of variances: covariances that are the same, and what is left beside what is shared


# Orthants.


@njit(types.float64(types.float64), **OPTIONS)
def _tail(x):
    return 0.5 * math.erfc(x / math.sqrt(2.0))


_CENTRAL = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4, 1.3731693765509461125e4,
     1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4, 5.3941960214247511077e3,
     6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip
"""Numerators and denominators, the highest power first, of the quantile of a normal law (Wichura 1988, algorithm AS 241)."""


@njit(**GENERIC)
def _ratio(coefficients, x):
    above, below = 0.0, 0.0
    for a, b in zip(coefficients[0], coefficients[1]):  # noqa: B905 - numba knows no strict
        above = above * x + a
        below = below * x + b
    return above / below


@njit(types.float64(types.float64), **OPTIONS)
def _quantile(p):
    """Inverse of the normal distribution function, to rounding."""
    q = p - 0.5
    if abs(q) <= 0.425:
        return q * _ratio(_CENTRAL, 0.180625 - q * q)
    tail = min(p, 1.0 - p)
    if tail <= 0.0:
        return math.copysign(38.0, q)
    r = math.sqrt(-math.log(tail))
    x = _ratio(_MIDDLE, r - 1.6) if r <= 5.0 else _ratio(_FAR, r - 5.0)
    return math.copysign(x, q)


@njit(types.float64(FloatArray, Matrix, Matrix), **OPTIONS)
def _orthant(mean, factor, uniform):
    """P(mean + factor g > 0 in all entries), factor lower triangular, by conditioning one variable after the other (Genz 1992)."""
    n, d = uniform.shape[0], mean.size
    g = np.zeros(d)
    total = 0.0
    for s in range(n):
        weight = 1.0
        for i in range(d):
            value = mean[i]
            for j in range(i):
                value += factor[i, j] * g[j]
            above = 1.0 if value > 0.0 else 0.0
            if factor[i, i] > 0.0:
                above = _tail(-value / factor[i, i])
            weight *= above
            if weight <= 0.0:
                break
            if i + 1 < d:
                # g is above -value/factor: its tail is uniform below `above`.
                g[i] = -_quantile(min(max(above * uniform[s, i], 1e-300), 1.0 - 1e-16))
        total += weight
    return total / n


@lru_cache(maxsize=32)
def _uniform(d: int, log2_nodes: int, scramble: int) -> Array:
    engine = qmc.Sobol(max(d, 1), scramble=True, rng=np.random.default_rng([scramble, d, 77]))
    return np.clip(engine.random_base2(log2_nodes), _CLIP, 1.0 - _CLIP)


def orthant(mean: Array, covariance: Array, log2_nodes: int = _LOG2_ORTHANT, scramble: int = 0) -> float:
    """P(x > 0 in all entries) of a Gaussian vector.

    One integral to 1e-12 up to two entries, or if all pairs have one covariance that is not negative; else 2^log2_nodes Sobol
    points.

    Examples
    --------
    >>> round(orthant(np.zeros(2), np.array([[1.0, 0.5], [0.5, 1.0]])), 9)  # 1/4 + arcsin(1/2)/(2 pi)
    0.333333333
    >>> round(orthant(np.zeros(3), np.eye(3) + 1.0), 9)  # of four alike the first is the largest
    0.25
    """
    alike = _exchangeable(mean, covariance)
    if alike is not None:
        return alike
    widths = np.sqrt(np.diag(covariance))
    order = np.argsort(mean / np.where(widths > 0, widths, 1.0))  # the least likely first
    mean, covariance = mean[order], covariance[np.ix_(order, order)]
    factor = _semidefinite_cholesky(covariance)
    if len(mean) == 1:
        return float(ndtr(mean[0] / factor[0, 0])) if factor[0, 0] > 0 else float(mean[0] > 0)
    if len(mean) == 2 and factor[0, 0] > 0:
        return _planar(mean, factor)
    return float(_orthant(np.ascontiguousarray(mean), factor, _uniform(len(mean) - 1, log2_nodes, scramble)))


def _exchangeable(mean: Array, covariance: Array) -> float | None:
    """Where all pairs have the covariance c >= 0: independent ones, given a normal that they share; None elsewhere."""
    if len(mean) < 3:
        return None
    pairs, own = covariance[np.triu_indices(len(mean), 1)], np.diag(covariance)
    shared = float(pairs.mean())
    apart = own - shared
    if shared < 0.0 or np.ptp(pairs) > _EQUAL * own.max() or apart.min() <= _NARROW * own.max():
        return None
    # By the trapezoid rule, in steps in which nothing turns.
    step = _STEP * min(1.0, math.sqrt(apart.min() / shared) if shared > 0.0 else 1.0)
    z = step * np.arange(-math.ceil(_REACH / step), math.ceil(_REACH / step) + 1)
    inside = ndtr((mean[:, None] + math.sqrt(shared) * z) / np.sqrt(apart)[:, None]).prod(axis=0)
    return float(step * (inside @ np.exp(-0.5 * z**2)) / math.sqrt(2.0 * math.pi))


def _planar(mean: Array, factor: Array) -> float:
    """Of two entries: one integral over the first, in pieces that do not step over where the second turns."""
    lowest = -mean[0] / factor[0, 0]
    edges = [max(lowest, -_REACH), _REACH]
    if edges[0] >= edges[1]:
        return 0.0
    slope, width = factor[1, 0], factor[1, 1]
    if slope != 0.0:
        centre, spread = -mean[1] / slope, abs(width / slope)
        edges += [centre + k * spread for k in (-8.0, -2.0, 0.0, 2.0, 8.0)]
    edges = sorted({float(np.clip(edge, edges[0], _REACH)) for edge in edges})
    points, weights = _legendre()
    total = 0.0
    for low, high in pairwise(edges):
        g = 0.5 * (low + high) + 0.5 * (high - low) * points
        value = mean[1] + slope * g
        inside = ndtr(value / width) if width > 0 else (value > 0).astype(float)
        total += 0.5 * (high - low) * float(weights @ (inside * np.exp(-0.5 * g**2)))
    return total / math.sqrt(2.0 * math.pi)


@lru_cache(maxsize=1)
def _legendre() -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(_PLANAR_NODES // 4)


def _semidefinite_cholesky(matrix: Array) -> Array:
    """Lower-triangular factor; columns of what is 0 up to rounding are 0."""
    rest, n = matrix.astype(float).copy(), len(matrix)
    factor = np.zeros((n, n))
    floor = 1e-14 * max(float(np.max(np.diag(matrix))), 0.0)
    for j in range(n):
        if rest[j, j] > floor:
            factor[j:, j] = rest[j:, j] / math.sqrt(rest[j, j])
            rest -= np.outer(factor[:, j], factor[:, j])
    return factor


# The law of fresh logits.


class ClassPopulation:
    """Law of fresh logits, from order parameters: of a saddle point, or of trained weights.

    Parameters
    ----------
    data : ClassMixture
        Its test weights and noise.
    means : array, shape (T, K, K)
        ``means[t, c]`` is the mean of the K logits of stage t on class c, bias included.
    overlap : array, shape (T, T, K, K)
        Blocks W_t Lambda W_s^T/N over the classes, with Delta_c Q the covariance of the logits.
    scramble : int
        Which nodes averages are taken on.
    table : array, shape (K, K), optional
        Class similarity that the last stage's targets are made of.
    norm_ratios : array, shape (T,), optional
        |w_t|^2/N over the trace of W_t Lambda W_t^T/N, with the variances Lambda of the coordinates; 1 if not given.
    permutations : tuple of tuples
        Of the classes, that leave the law as it is (:mod:`numerics.classes.symmetry`).
    """

    many_classes = True

    def __init__(
        self, data: ClassMixture, means: Array, overlap: Array, scramble: int = 0, table: Array | None = None,
        permutations: tuple[Permutation, ...] = (), norm_ratios: Array | None = None,
    ) -> None:  # fmt: skip
        self.data, self.means, self.blocks, self.scramble, self.table = data, means, overlap, scramble, table
        self.stages, self.classes = means.shape[:2]
        self.norm_ratios = np.ones(self.stages) if norm_ratios is None else norm_ratios
        self.weights = np.array(data.test_weights)
        self._first = first_of_orbits(permutations, self.classes)
        self._class_errors: dict[int, Array] = {}

    @cached_property
    def overlap(self) -> Array:
        """Traces of the blocks, shape (T, T): W_t . W_s/N for white inputs."""
        return np.einsum("tskk->ts", self.blocks)

    @cached_property
    def free(self) -> list[bool]:
        """Of each stage, whether the mean of its logits depends on the sample."""
        return has_free_mean(self.blocks)

    def weight_norm(self, t: int) -> Array:
        """|w_t|^2/N."""
        return self.norm_ratios[t] * self.overlap[..., t, t]

    def scaled(self, values: Array, t: int, power: int = 1) -> Array:
        """Itself: all weights are finite."""
        return values

    def is_finite(self, row: Array) -> bool:
        """True."""
        return True

    def combined(self, rows: Array) -> ClassPopulation:
        """The population of models whose logits are linear combinations of these, shape (models, T)."""
        means = np.einsum("it,tck->ick", rows, self.means)
        return ClassPopulation(self.data, means, np.einsum("it,js,tskl->ijkl", rows, rows, self.blocks), self.scramble)

    # Decisions.

    def confusion(self, t: int) -> Array:
        """P(stage t decides for class k | class c), a row a class c, shape (K, K)."""
        k = self.classes
        found = np.diag(1.0 - self.class_errors(t))
        for c in range(k):
            for chosen in range(k):
                if chosen != c:
                    found[c, chosen] = self._decides(t, c, chosen, _LOG2_AGREEMENT)
        return found / found.sum(axis=1, keepdims=True)

    def _differences(self, chosen: int) -> Array:
        """Rows that take h_chosen minus the other logits, (K-1, K)."""
        rows = -np.eye(self.classes)
        rows[:, chosen] += 1.0
        return np.delete(rows, chosen, axis=0)

    def _decides(self, t: int, c: int, chosen: int, log2_nodes: int = _LOG2_ORTHANT) -> float:
        rows = self._differences(chosen)
        covariance = self.data.deltas[c] * rows @ self.blocks[t, t] @ rows.T
        return orthant(rows @ self.means[t, c], covariance, log2_nodes, self.scramble)

    def class_errors(self, t: int) -> Array:
        """P(stage t decides for another class | class c), shape (K,)."""
        t = t % self.stages
        if t not in self._class_errors:
            right = {c: self._decides(t, c, c) for c in sorted(set(self._first))}
            self._class_errors[t] = 1.0 - np.array([right[c] for c in self._first])
        return self._class_errors[t].copy()

    def test_error(self, t: int) -> float:
        """P(stage t decides for another class than the sample's)."""
        return float(self.weights @ self.class_errors(t))

    def agreement(self, t: int, s: int) -> float:
        """P(stages t and s decide for the same class)."""
        if (
            np.array_equal(self.means[t], self.means[s])
            and np.ptp(self.blocks[[t, t, s], [t, s, s]], axis=0).max() == 0.0
        ):
            return 1.0
        total = 0.0
        for c, weight in enumerate(self.weights):
            for chosen in range(self.classes) if weight > 0 else ():
                rows = self._differences(chosen)
                mean = np.concatenate([rows @ self.means[t, c], rows @ self.means[s, c]])
                blocks = [[rows @ self.blocks[a, b] @ rows.T for b in (t, s)] for a in (t, s)]
                covariance = self.data.deltas[c] * np.block(blocks)
                total += weight * orthant(mean, covariance, _LOG2_AGREEMENT, self.scramble)
        return total

    def overlap_cosine(self, t: int, s: int) -> float:
        """Between the weights of two stages, all classes together."""
        return float(self.overlap[t, s] / math.sqrt(self.overlap[t, t] * self.overlap[s, s]))

    def logit_distance(self, t: int, s: int) -> float:
        """E|h_t - h_s|^2."""
        apart = np.sum((self.means[t] - self.means[s]) ** 2, axis=1)
        spread = self.overlap[t, t] + self.overlap[s, s] - 2.0 * self.overlap[t, s]
        return float(self.weights @ (apart + self.data.deltas * spread))

    # Averages.

    def mean(self, function: Callable[..., Array], rows: Sequence[Array], *, degree: int | None = None) -> Integral:
        """Average of ``function(label, x_1, ..)``: labels (n,), and logits ``x = rows @ logits`` (n, K) each.

        What has an axis of classes is summed over it.
        """
        rows = np.atleast_2d(rows)
        small = self.combined(rows)
        factor = _factor_of(small.blocks)
        normals = sobol_rule(len(rows), factor.shape[1] // len(rows), _LOG2_MEAN, self.scramble).normals
        drawn = normals.reshape(len(normals), -1) @ factor.T
        total = 0.0
        for c, weight in enumerate(self.weights):
            if weight > 0:
                logits = math.sqrt(self.data.deltas[c]) * drawn
                x = [logits[:, i * self.classes : (i + 1) * self.classes] + small.means[i, c] for i in range(len(rows))]
                values = np.asarray(function(np.full(len(drawn), c), *x), dtype=float)
                total += weight * float(values.sum(axis=1).mean() if values.ndim == 2 else values.mean())
        return Integral(total, 0.0)

    def top_label_calibration_error(self, t: int, bins: int = 15) -> float:
        """Mean, over bins of equal width of the largest probability q, of |P(the predicted class is right) - q| in the bin.

        Whether a prediction is right is not drawn: given the logits, the classes have known probabilities.
        """
        basis = helmert(self.classes)
        root = np.linalg.cholesky(basis @ self.blocks[t, t] @ basis.T)
        normals = sobol_rule(1, self.classes - 1, _LOG2_MEAN, self.scramble).normals[:, 0]
        centres = np.linalg.solve(root, basis @ self.means[t].T).T
        seen = np.flatnonzero(self.weights)
        deltas = self.data.deltas[seen]
        gap, mass = np.zeros(bins), 0.0
        for c in seen:
            x = centres[c] + math.sqrt(self.data.deltas[c]) * normals  # logits in units of the root of Q
            h = x @ root.T @ basis
            chosen = np.argmax(h, axis=1)
            confidence = special.softmax(h, axis=1).max(axis=1)
            logs = np.full((len(x), self.classes), -np.inf)
            apart = np.sum((x[:, None] - centres[seen]) ** 2, axis=2)
            logs[:, seen] = np.log(self.weights[seen]) - 0.5 * (apart / deltas + (self.classes - 1) * np.log(deltas))
            right = special.softmax(logs, axis=1)[np.arange(len(x)), chosen]
            place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
            share = self.weights[c] / len(x)
            gap += share * np.bincount(place, right - confidence, bins)
            mass += self.weights[c]
        return float(np.abs(gap).sum() / mass)

    def loss(self, loss: Loss) -> Integral:
        """Average of a loss of the last stage on fresh samples, whose labels are their classes."""
        seen = loss.stages(self.stages)
        own = class_loss(loss, self.classes, [self.free[s - 1] for s in seen])
        return mean_loss(self, own, seen, self.table)


def mean_loss(law, loss: ClassLoss, seen: Sequence[int], table: Array | None) -> Integral:
    """Average of a loss of the last stage over fresh or training samples."""

    def value(labels: Array, h: Array, *earlier: Array) -> Array:
        taught = np.stack(earlier, axis=1) if earlier else np.empty((len(h), 0, h.shape[1]))
        return loss.value(h, loss.targets(labels, taught, table), taught)

    return law.mean(value, np.eye(law.stages)[[law.stages - 1, *(s - 1 for s in seen)]])


def _factor_of(blocks: Array) -> Array:
    """F with F F^T the covariance of all logits, (T K, T d): a column a normal; d is K where means of logits are free."""
    t, _, k, _ = blocks.shape
    basis = np.kron(np.eye(t), helmert(k, whole=any(has_free_mean(blocks))))
    covariance = basis @ blocks.transpose(0, 2, 1, 3).reshape(t * k, t * k) @ basis.T
    values, vectors = np.linalg.eigh(covariance)
    return basis.T @ (vectors * np.sqrt(np.clip(values, 0.0, None)))[:, ::-1]


def has_free_mean(blocks: Array) -> list[bool]:
    """Whether the mean of K logits depends on the sample, of stages with overlaps (T, T, K, K): their weights do not sum to 0.

    Examples
    --------
    >>> has_free_mean(np.array([[[[1.0, -1.0], [-1.0, 1.0]]]])), has_free_mean(np.array([[[[1.0, 0.0], [0.0, 1.0]]]]))
    ([False], [True])
    """
    sums, sizes = np.einsum("ttkl->t", blocks), np.einsum("ttkk->t", blocks)
    return [bool(total > _EQUAL * size) for total, size in zip(sums, sizes, strict=True)]
