"""Averages over a few Gaussian variables, refined until they agree with themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from numerics.deferred import special
from numerics.solution import quadrature

Array = NDArray[np.float64]

QUADRATURE_TOLERANCE = 1e-8
"""A population average is accepted when halving the step changes it less than this part of it."""

QUADRATURE_RANGE = 8.3
"""Standard deviations a population average extends to; beyond, the weight is below 1e-16."""

QUADRATURE_NODES = 2**23
"""Nodes after which a population average is returned with the error it has."""

FIRST_PANELS = 3
"""Panels of a smooth variable to begin with."""

CHUNK = 2**13
"""Nodes evaluated at a time."""

MAX_GRID_DIMENSION = 3
"""Averages over more variables (ensembles of many teachers) use quasi-Monte Carlo points."""

AROUND_ZERO, GROWTH = 3.0, 4.0
"""End of the panel next to 0, and growth from one to the next, where variables are very wide: what a function of logits does, it
does around 0."""

PASSES = 6
"""Attempts to meet a tolerance relative to an average that is smaller than was expected."""

ROUNDING = 1e-14
"""Part of the average modulus of a function that rounding may change its average by."""

SAME_DIRECTION = 1e-15
"""Part of the largest singular value of normalised rows below which a direction is rounding."""

QMC_REPLICAS, QMC_POINTS = 8, 2**14
"""Independently scrambled Sobol sequences, whose spread is the error estimate, and points of each."""


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

    Smooth functions of variables that are not very wide: trapezoid rule, halved.  All others: panels inside one another
    (:func:`nested_mean`).  More than MAX_GRID_DIMENSION variables: quasi-Monte Carlo.

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
    half = np.ceil(QUADRATURE_RANGE / np.minimum(0.5, 2.0 / widths)).astype(int)
    if not jumps and np.prod(2.0 * half + 1) <= QUADRATURE_NODES:
        return _refine(
            lambda finer: _trapezoid(function, mean, directions, finer * half),
            lambda finer: np.prod(2.0 * finer * half + 1),
            QUADRATURE_NODES,
            rtol,
            atol,
        )
    if not jumps and len(widths) == MAX_GRID_DIMENSION:
        return _quasi_monte_carlo(function, mean, directions)
    return nested_mean(function, mean, covariance, jumps, rtol, atol)


def nested_mean(
    function: Callable[[Array], Array], mean: Array, covariance: Array, jumps: Sequence[tuple[int, float]], rtol: float, atol: float
) -> tuple[float, float]:  # fmt: skip
    """Average by panels inside one another, halved until they resolve the function: it may jump, and variables be very wide.

    Given the variables before, the next is Gaussian.  Those that jump come first, with panels that end at the jumps; the average
    over the others is then a smooth function of them.
    """
    order = sorted(range(len(mean)), key=lambda k: all(k != j for j, _ in jumps))
    mean, lower = mean[order], semidefinite_cholesky(covariance[np.ix_(order, order)])
    alive = np.flatnonzero(np.diag(lower) > 0.0)
    lower = lower[:, alive]
    places = [sorted({position for k, position in jumps if order[variable] == k}) for variable in alive]
    if not jumps:
        reaches = np.abs(mean) + QUADRATURE_RANGE * np.sqrt(np.sum(lower**2, axis=1))
        places = [_around_zero(reaches[variable]) for variable in alive]

    def edges(_: Array, known: Array) -> Array:
        direction = known.shape[1]
        ends = np.array([-QUADRATURE_RANGE, QUADRATURE_RANGE])
        if not places[direction]:
            return np.linspace(*ends, FIRST_PANELS + 1)
        variable = alive[direction]
        centre = mean[variable] + known @ lower[variable, :direction]
        cuts = (np.array(places[direction]) - centre[:, None]) / lower[variable, direction]
        return np.hstack((np.full((len(known), 1), ends[0]), np.clip(cuts, *ends), np.full((len(known), 1), ends[1])))

    def last(group: Array, known: Array, tolerance: Array) -> tuple[Array, Array]:
        def integrand(row: Array, g: Array) -> tuple[Array, Array]:
            _, points = quadrature.points(group, known, row, g)
            values = function(lower_by_variable @ points.T + by_variable[:, None]).reshape(g.shape)
            return quadrature.density(g) * values, np.zeros_like(g)

        return quadrature.integrate(integrand, edges(group, known), tolerance, budget)

    back = np.argsort(order)
    by_variable, lower_by_variable = mean[back], lower[back]
    root, nowhere = np.zeros(1, dtype=np.int64), np.empty((1, 0))
    tolerance, found = 1.0, (math.nan, math.inf)
    for _ in range(PASSES):
        budget = quadrature.Budget(QUADRATURE_NODES)
        nest = quadrature.Nest(last, len(alive), edges, budget, QUADRATURE_RANGE, bound=math.inf)
        (value,), (error,) = nest.mean(root, nowhere, np.array([tolerance]))
        found = float(value), float(error)
        wanted = max(rtol * abs(value), atol)
        if error <= wanted or budget.left <= 0:
            break
        tolerance = min(0.1 * tolerance, wanted)
    return found


def _around_zero(reach: float) -> list[float]:
    """Ends of panels on either side of 0 that grow up to ``reach``."""
    count = max(1, math.ceil(math.log(max(reach / AROUND_ZERO, 1.0), GROWTH)))
    ends = AROUND_ZERO * GROWTH ** np.arange(count)
    return [*map(float, -ends[::-1]), 0.0, *map(float, ends)]


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


def semidefinite_cholesky(covariance: Array) -> Array:
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
