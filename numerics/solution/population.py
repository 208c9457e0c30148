"""Averages over fresh samples, on which the logits of all stages are jointly Gaussian given the class.

Theory and simulations share them: both know the means, biases and overlaps of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from numerics.codegen import observables
from numerics.codegen.losses import LossFunctions
from numerics.deferred import special
from numerics.models import GaussianMixture
from theory.functions import step
from theory.losses import Loss

Array = NDArray[np.float64]

QUADRATURE_TOLERANCE = 1e-8
"""A population average is accepted when halving the step changes it less than this part of it."""

QUADRATURE_RANGE = 8.3
"""Standard deviations a population average extends to; beyond, the weight is below 1e-16."""

QUADRATURE_NODES = 2**23
"""Nodes after which a population average is returned with the error it has."""

CHUNK = 2**13
"""Nodes evaluated at a time."""

MAX_GRID_DIMENSION = 3
"""Averages over more variables (ensembles of many teachers) use quasi-Monte Carlo points."""

WIDE_LOGITS = 300.0
"""Widths of two logits above which their outputs are compared rather than found from the logits' difference."""

WIDE_FIRST, WIDE_GROWTH = 3.0, 4.0
"""End of the panel next to 0, and growth from one to the next, where variables are very wide."""

PANEL_NODES = 20
"""Gauss-Legendre nodes of a panel of an average over a function with jumps."""

JUMP_NODES = 2**21
"""As QUADRATURE_NODES, where the function jumps: panels converge faster than their error estimate says."""

ROUNDING = 1e-14
"""Part of the average modulus of a function that rounding may change its average by."""

SAME_DIRECTION = 1e-15
"""Part of the largest singular value of normalised rows below which a direction is rounding."""

SAME_STAGE = 1e-10
"""Share of the variance below which a difference between earlier logits is rounding: they are of equal stages."""

QMC_REPLICAS, QMC_POINTS = 8, 2**14
"""Independently scrambled Sobol sequences, whose spread is the error estimate, and points of each."""


@lru_cache(maxsize=256)
def target_jumps(loss: Loss) -> tuple[tuple[int, float | None], ...]:
    """Places where the target jumps: (which of ``loss.logits``, position); None where that moves with another logit."""
    if not loss.expression.has(step):
        return ()
    found = []
    for jump in loss.gradient.subs(dict(zip(loss.symbols, loss.values, strict=True))).atoms(step):
        argument = jump.args[0]
        for k, symbol in enumerate(loss.logits):
            slope = argument.diff(symbol)
            position = symbol - argument / slope if slope != 0 else None
            if position is not None:
                found.append((k, float(position) if position.expand().is_number else None))
    return tuple(sorted(found, key=str))


def gaussian_mean(
    function: Callable[[Array], Array],
    mean: Array,
    covariance: Array | None = None,
    jumps: Sequence[tuple[int, float]] = (),
    *,
    factor: Array | None = None,
    rtol: float = QUADRATURE_TOLERANCE,
    atol: float = 0.0,
) -> tuple[float, float]:
    """Average of a function over a low-dimensional Gaussian, refined until it agrees with itself.

    Smooth functions: trapezoid rule, halved.  With jumps: panels that end at them.  More than MAX_GRID_DIMENSION variables:
    quasi-Monte Carlo.

    Parameters
    ----------
    function : callable
        Takes points of shape (d, K), returns values of shape (K,).
    mean, covariance : ndarray, shapes (d,), (d, d)
        The covariance may be singular.
    jumps : sequence of (variable, position)
        Where the function jumps.
    factor : ndarray, shape (d, K)
        Instead of the covariance F F^T its factor F: variables of very different width, or nearly equal ones, keep their digits.
    rtol, atol : float
        Relative or absolute accuracy at which refinement ends.

    Returns
    -------
    value, error : float
        The error estimate is the change in the last refinement; it overstates the error of analytic functions.
    """
    mean = np.asarray(mean, dtype=float)
    if factor is None:
        variances, axes = np.linalg.eigh(covariance)
        kept = variances > 1e-14 * max(variances[-1], 1e-300)
        directions = axes[:, kept] * np.sqrt(variances[kept])
    else:
        directions = _independent(factor)
        covariance = factor @ factor.T
    widths = np.sqrt(np.sum(directions**2, axis=0))
    if not len(widths):
        return float(function(mean[:, None])[0]), 0.0
    if len(widths) > MAX_GRID_DIMENSION:
        return _quasi_monte_carlo(function, mean, directions)
    if jumps:
        most = max(sum(k == j for j, _ in jumps) for k, _ in jumps)
        return _refine(
            lambda finer: _panels(function, mean, covariance, jumps, 2 * finer),
            lambda finer: (2.0 * finer * PANEL_NODES * (1 + most)) ** len(mean),
            JUMP_NODES,
            rtol,
            atol,
        )
    half = np.ceil(QUADRATURE_RANGE / np.minimum(0.5, 2.0 / widths)).astype(int)
    if np.prod(2.0 * half + 1) > QUADRATURE_NODES:
        return _wide_mean(function, mean, covariance, rtol, atol)
    return _refine(
        lambda finer: _trapezoid(function, mean, directions, finer * half),
        lambda finer: np.prod(2.0 * finer * half + 1),
        QUADRATURE_NODES,
        rtol,
        atol,
    )


def _wide_mean(
    function: Callable[[Array], Array], mean: Array, covariance: Array, rtol: float, atol: float
) -> tuple[float, float]:  # fmt: skip
    """Average over variables so wide that steps of the function's own scale are too many.

    What a function of logits does, it does around 0: panels grow away from there by a constant factor.
    """
    edges: list[tuple[int, float]] = []
    for k, width in enumerate(np.sqrt(np.diag(covariance))):
        reach = abs(mean[k]) + QUADRATURE_RANGE * width
        count = max(1, math.ceil(math.log(max(reach / WIDE_FIRST, 1.0), WIDE_GROWTH)))
        places = WIDE_FIRST * WIDE_GROWTH ** np.arange(count)
        edges += [(k, float(place)) for place in (0.0, *places, *-places)]
    most = max(sum(k == j for j, _ in edges) for k, _ in edges)

    def size(finer: float) -> float:
        return (finer * PANEL_NODES * (1 + most)) ** len(mean)

    if size(1) > QUADRATURE_NODES:
        return _quasi_monte_carlo(function, mean, _semidefinite_cholesky(covariance))
    return _refine(lambda finer: _panels(function, mean, covariance, edges, finer), size, QUADRATURE_NODES, rtol, atol)


def _independent(factor: Array) -> Array:
    """Columns F' with F' F'^T = F F^T that are as few as possible, each row to its own relative accuracy; shape (d, rank)."""
    sizes = np.sqrt(np.sum(factor**2, axis=1))
    scaled = factor / np.where(sizes > 0.0, sizes, 1.0)[:, None]
    left, values, _ = np.linalg.svd(scaled, full_matrices=False)
    kept = values > SAME_DIRECTION * max(values[0], 1e-300)
    return sizes[:, None] * left[:, kept] * values[kept]


def _refine(
    rule: Callable[[int], Array], nodes: Callable[[int], float], limit: int, rtol: float, atol: float
) -> tuple[float, float]:  # fmt: skip
    """Value of a rule that is ``finer`` = 2, 4, ... times finer, once it no longer changes or would take too many nodes.

    The rule returns the averages of the function and of its modulus, which tells what rounding leaves.
    """
    finer, value = 1, rule(1)[0]
    while True:
        finer *= 2
        refined, modulus = rule(finer)
        error, value = abs(refined - value), refined
        if error <= max(rtol * abs(value), atol, ROUNDING * modulus) or nodes(2 * finer) > limit:
            return float(value), float(error)


def _panels(
    function: Callable[[Array], Array], mean: Array, covariance: Array, jumps: Sequence[tuple[int, float]], count: int
) -> Array:
    """Averages of the function and of its modulus by Gauss-Legendre panels, ``count`` on either side of a jump, variable by
    variable: those that jump come first.

    Given the variables before, the next is Gaussian, and its jumps are at known places in units of its width; the average over
    it is then a smooth function of those before.
    """
    order = sorted(range(len(mean)), key=lambda k: all(k != j for j, _ in jumps))
    lower = _semidefinite_cholesky(covariance[np.ix_(order, order)])
    places, weights = np.polynomial.legendre.leggauss(PANEL_NODES)
    places = ((np.arange(count)[:, None] + (places + 1) / 2) / count).ravel()
    weights = np.tile(weights / (2 * count), count)

    def level(position: int, points: Array, normals: Array, weight: Array) -> Array:
        """Sums over the variables from ``position`` on; points (d, K) and their weights, normals (position, K)."""
        if position == len(mean):
            return _sums(weight, function(points))
        variable, width = order[position], lower[position, position]
        centre = mean[variable] + lower[position, :position] @ normals
        if width == 0.0:
            filled = points.copy()
            filled[variable] = centre
            return level(position + 1, filled, np.vstack((normals, np.zeros(len(weight)))), weight)
        edges = [np.clip((jump - centre) / width, -QUADRATURE_RANGE, QUADRATURE_RANGE)
                 for jump in sorted(jump for k, jump in jumps if k == variable)]  # fmt: skip
        ends = [np.full(len(weight), -QUADRATURE_RANGE), *edges, np.full(len(weight), QUADRATURE_RANGE)]
        total = np.zeros(2)
        for left, right in pairwise(ends):
            z = left[:, None] + (right - left)[:, None] * places
            inner = (right - left)[:, None] * weights * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * weight[:, None]
            per_node = len(places)
            chosen = max(1, CHUNK // per_node)
            for first in range(0, len(weight), chosen):
                some = slice(first, first + chosen)
                filled = np.repeat(points[:, some], per_node, axis=1)
                filled[variable] = (centre[some, None] + width * z[some]).ravel()
                extended = np.vstack((np.repeat(normals[:, some], per_node, axis=1), z[some].ravel()))
                total += level(position + 1, filled, extended, inner[some].ravel())
        return total

    return level(0, np.zeros((len(mean), 1)), np.zeros((0, 1)), np.ones(1))


def _semidefinite_cholesky(covariance: Array) -> Array:
    """Lower-triangular factor of a covariance that may be singular: columns of no variance are zero."""
    size = len(covariance)
    lower = np.zeros((size, size))
    for k in range(size):
        left = covariance[k:, k] - lower[k:, :k] @ lower[k, :k]
        if left[0] > 1e-14 * covariance[k, k]:
            lower[k:, k] = left / math.sqrt(left[0])
    return lower


def _quasi_monte_carlo(function: Callable[[Array], Array], mean: Array, directions: Array) -> tuple[float, float]:
    """Average over scrambled Sobol points, the same in every call, and two standard errors."""
    from scipy.stats import qmc  # here: seldom needed, and slow to import

    found = np.zeros(QMC_REPLICAS)
    for replica in range(QMC_REPLICAS):
        sequence = qmc.Sobol(directions.shape[1], seed=replica)
        for _ in range(QMC_POINTS // CHUNK):
            points = directions @ special.ndtri(sequence.random(CHUNK)).T + mean[:, None]
            found[replica] += float(function(points).sum()) / QMC_POINTS
    return float(found.mean()), float(2 * found.std(ddof=1) / math.sqrt(QMC_REPLICAS))


def _trapezoid(function: Callable[[Array], Array], mean: Array, directions: Array, half: NDArray) -> Array:
    """Averages of the function and of its modulus by the trapezoid rule."""
    nodes = [np.linspace(-QUADRATURE_RANGE, QUADRATURE_RANGE, 2 * n + 1) for n in half]
    weights = [np.exp(-0.5 * points**2) for points in nodes]
    shape = tuple(len(points) for points in nodes)
    total = np.zeros(2)
    for first in range(0, math.prod(shape), CHUNK):
        index = np.unravel_index(np.arange(first, min(first + CHUNK, math.prod(shape))), shape)
        weight = np.prod([w[i] for w, i in zip(weights, index, strict=True)], axis=0)
        points = directions @ np.array([points[i] for points, i in zip(nodes, index, strict=True)])
        total += _sums(weight, function(points + np.asarray(mean)[:, None]))
    return total / math.prod(float(w.sum()) for w in weights)


def _sums(weight: Array, values: Array) -> Array:
    return np.array([weight @ values, weight @ np.abs(values)])


class Population:
    """Test averages of trained models, from their order parameters.

    Parameters
    ----------
    data : GaussianMixture
        Its ``rho`` and ``delta`` are used.
    magnetization, bias, overlap : ndarray, shapes (T,), (T,), (T, T)
        m_t = w_t.v/N, b_t, Q_ts = w_t.w_s/N.
    factor : ndarray, shape (T, K), optional
        C with Q = C C^T, where it is known better than Q: differences of nearly equal models keep their digits.
    rtol : float
        Relative accuracy of averages.
    """

    def __init__(
        self,
        data: GaussianMixture,
        magnetization: Array,
        bias: Array,
        overlap: Array,
        factor: Array | None = None,
        rtol: float = QUADRATURE_TOLERANCE,
    ) -> None:
        self.data, self.magnetization, self.bias, self.overlap = data, magnetization, bias, overlap
        self.factor = _semidefinite_cholesky(overlap) if factor is None else factor
        self.rtol = rtol

    def combined(self, rows: Array) -> Population:
        """The population of models whose logits are linear combinations of these, shape (models, T): means of teachers, say."""
        factor = rows @ self.factor
        return Population(self.data, rows @ self.magnetization, rows @ self.bias, factor @ factor.T, factor, self.rtol)

    def test_error(self, t: int) -> float:
        """P(s h_t < 0); a model of zero norm decides by its bias, or by a coin."""
        m, b, q = self.magnetization[t], self.bias[t], self.overlap[t, t]
        rho = self.data.rho
        if q == 0.0:
            return 0.5 if b == 0.0 else (1 - rho if b > 0.0 else rho)
        return float(observables.test_error()(m, b, q, self.data.delta, rho))

    def agreement(self, t: int, s: int) -> float:
        """Probability that stages t and s give a test point the same label."""
        total = 0.0
        for sign, weight in ((1, self.data.rho), (-1, 1 - self.data.rho)):
            means = sign * self.magnetization[[t, s]] + self.bias[[t, s]]
            norms = np.sqrt(self.data.delta * self.overlap[[t, s], [t, s]])
            if np.all(norms > 0):
                a, b = means / norms
                correlation = float(self.overlap[t, s] / np.sqrt(self.overlap[t, t] * self.overlap[s, s]))
            else:
                with np.errstate(divide="ignore", invalid="ignore"):
                    a, b = np.nan_to_num(means / norms, nan=0.0)
                correlation = 0.0
            same = observables.bivariate_normal_cdf(a, b, correlation) + observables.bivariate_normal_cdf(
                -a, -b, correlation
            )
            total += weight * same
        return total

    def logit_distance(self, t: int, s: int) -> float:
        """E[(h_t - h_s)^2] on a test point."""
        # That of their difference to no model at all: no digits are lost where they are nearly equal.
        m, b, row = (values[t] - values[s] for values in (self.magnetization, self.bias, self.factor))
        return float(observables.logit_distance()(m, 0.0, b, 0.0, row @ row, 0.0, 0.0, self.data.delta, self.data.rho))

    def calibration(self, t: int) -> tuple[float, float]:
        """(slope, offset) of the true log-odds as a function of h_t; nan for a model of zero norm."""
        q = self.overlap[t, t]
        if q == 0.0:
            return math.nan, math.nan
        return observables.calibration()(self.magnetization[t], self.bias[t], q, self.data.delta, self.data.rho)

    def output_distance(self, t: int, s: int) -> tuple[float, float]:
        """E[(sigmoid(h_t) - sigmoid(h_s))^2] on a test point, and its quadrature error."""
        if self.data.delta * min(self.overlap[t, t], self.overlap[s, s]) > WIDE_LOGITS**2:
            # Both bend at 0 only, which the difference does not show.
            return self.average(lambda points, _: (special.expit(points[0]) - special.expit(points[1])) ** 2, [s, t])
        combine = np.zeros((2, len(self.bias)))
        combine[0, s] = combine[1, t] = 1.0
        combine[1, s] -= 1.0

        def squared(points: Array, label: float) -> Array:
            return output_difference(*points) ** 2

        return self._average(squared, combine)

    def sign_distance(self, t: int, s: int) -> tuple[float, float]:
        """E[(1[h_t > 0] - sigmoid(h_s))^2] on a test point, and its quadrature error."""
        variance = self.factor[s] @ self.factor[s]
        slope = self.factor[t] @ self.factor[s] / variance
        rest = math.sqrt(self.data.delta) * float(np.linalg.norm(self.factor[t] - slope * self.factor[s]))

        def squared(points: Array, label: float) -> Array:
            centre = (2 * label - 1) * self.magnetization + self.bias
            positive = special.ndtr((centre[t] + slope * (points[0] - centre[s])) / max(rest, 1e-300))
            return positive * special.expit(-points[0]) ** 2 + (1.0 - positive) * special.expit(points[0]) ** 2

        return self.average(squared, [s])

    def test_loss(self, loss: Loss, t: int) -> tuple[float, float]:
        """E[l_t] on a test point, and its quadrature error.

        Where the gradient is linear in the target (``loss.split``), l(h, e) - l(h, e0) is linear in h, so the
        average over h given the earlier logits e is known, and the average falls into one over h and one over
        e.
        """
        functions = LossFunctions(loss)
        stages = [s - 1 for s in loss.stages(t + 1)]

        def direct(points: Array, label: float) -> Array:
            h, *earlier = points
            return functions.value(np.ascontiguousarray(h), np.full(len(h), label), as_columns(earlier, len(h)))

        jumps = [(k, position) for k, position in target_jumps(loss) if position is not None]
        if not loss.is_quadratic and (not stages or loss.split is None):
            return self.average(direct, [t, *stages], [(k + 1, position) for k, position in jumps])
        earlier_overlap = self.overlap[np.ix_(stages, stages)]
        slope = np.linalg.pinv(earlier_overlap, rcond=SAME_STAGE, hermitian=True) @ self.overlap[stages, t]
        if loss.is_quadratic:
            return self._second_degree(direct, [t, *stages])
        value = error = 0.0
        for sign, weight in ((1, self.data.rho), (-1, 1 - self.data.rho)):
            label = (1 + sign) / 2
            means = sign * self.magnetization + self.bias
            reference = means[stages]

            def alone(points: Array, label: float = label, reference: Array = reference) -> Array:
                fixed = np.broadcast_to(reference[:, None], (len(reference), points.shape[1]))
                return direct(np.vstack((points, fixed)), label)

            def shift(
                points: Array, label: float = label, reference: Array = reference, mean: float = means[t]
            ) -> Array:
                zero, labels = np.zeros(points.shape[1]), np.full(points.shape[1], label)
                moved, fixed = as_columns(points, len(zero)), np.tile(reference, (len(zero), 1))
                at_zero = functions.value(zero, labels, moved) - functions.value(zero, labels, fixed)
                pull = functions.derivatives(zero, labels, moved)[0]
                pull = pull - functions.derivatives(zero, labels, fixed)[0]
                return at_zero + pull * (mean + (moved - fixed) @ slope)

            root, allowed = math.sqrt(self.data.delta), 0.0
            for part, mean, rows, places in ((alone, means[[t]], [t], ()), (shift, reference, stages, jumps)):
                found, uncertain = gaussian_mean(
                    part, mean, None, places, factor=root * self.factor[rows], rtol=self.rtol, atol=allowed
                )
                value += weight * found
                error += weight * uncertain
                allowed = self.rtol * abs(found)
        return value, error

    def average(
        self,
        function: Callable[[Array, float], Array],
        stages: Sequence[int],
        jumps: Sequence[tuple[int, float]] = (),
    ) -> tuple[float, float]:
        """Average of ``function(logits, label)`` over test points: label and logits of these stages; jumps in the logits."""
        combine = np.zeros((len(stages), len(self.bias)))
        combine[np.arange(len(stages)), stages] = 1.0
        return self._average(function, combine, jumps)

    def _average(
        self, function: Callable[[Array, float], Array], combine: Array, jumps: Sequence[tuple[int, float]] = ()
    ) -> tuple[float, float]:
        """The same of linear combinations of logits, rows of ``combine``, shape (d, T)."""
        factor = math.sqrt(self.data.delta) * combine @ self.factor
        value = error = 0.0
        for sign, weight in ((1, self.data.rho), (-1, 1 - self.data.rho)):
            mean = combine @ (sign * self.magnetization + self.bias)
            label = (1 + sign) / 2
            found, uncertain = gaussian_mean(
                lambda points, label=label: function(points, label), mean, None, jumps, factor=factor, rtol=self.rtol
            )
            value += weight * found
            error += weight * uncertain
        return value, error

    def _second_degree(self, function: Callable[[Array, float], Array], stages: Sequence[int]) -> tuple[float, float]:
        """:meth:`average` of a polynomial of second degree, exact from the points ``mean +- sqrt(K) F_k``; rounding error."""
        columns = math.sqrt(self.data.delta * self.factor.shape[1]) * self.factor[stages]
        value = modulus = 0.0
        for sign, weight in ((1, self.data.rho), (-1, 1 - self.data.rho)):
            mean = (sign * self.magnetization + self.bias)[stages, None]
            values = function(np.hstack((mean + columns, mean - columns)), (1 + sign) / 2)
            value += weight * float(np.mean(values))
            modulus += weight * float(np.mean(np.abs(values)))
        return value, ROUNDING * modulus


def output_difference(h: Array, d: Array) -> Array:
    """sigmoid(h + d) - sigmoid(h), without cancellation where d is small."""
    with np.errstate(over="ignore", invalid="ignore"):
        rising = special.expit(h + d) * special.expit(-h) * -np.expm1(-d)
        falling = special.expit(h) * special.expit(-h - d) * np.expm1(d)
    return np.where(d >= 0.0, rising, falling)


def as_columns(rows: Sequence[Array] | Array, length: int) -> Array:
    """Earlier logits as a loss takes them, shape (length, number)."""
    return np.column_stack(rows) if len(rows) else np.empty((length, 0))
