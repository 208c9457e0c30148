"""Grids in the training logit h: one for all nodes where the loss's gradient is ``S(h) - c``, else one for each node.

The trapezoid rule converges geometrically in the variable

    t(h) = P(h)/sigma + sum_k kappa_k [asinh((h - h_k+)/(3 b_k)) + asinh((h - h_k-)/(3 b_k))],   P(h) = h + gamma S(h),

which spaces points by a fraction of the field's width in ``P`` and, near the kinks ``h_k+- = c_k +- b_k ln(4 gamma s_k)``
of the proximal map, by a fraction of the loss's own scale ``b_k``.  (Gauss-Hermite in the field fails there: the map has
branch points a distance of order ``b_k`` from the real axis.)  Centres ``c_k``, scales ``b_k`` and curvatures ``s_k`` are
read off the loss by ``theory``.

A loss enters as compiled functions ``(h, y, logits, parameters, out)`` called through pointers, so that this file is compiled
once for all losses.  ``slopes`` gives S measured from its limits at -oo and at +oo (branch 0 and branch 1), S', S''; ``targets``
gives c measured likewise; ``features`` gives rows of centres, scales and strengths.  See ``codegen.loss_definitions``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

from numerics.kernels.elementary import POINT_FUNCTION, FloatArray, IntArray, Matrix, argsort

POINT_ROWS = 6
H, LOW, HIGH, CURVATURE, THIRD, WEIGHT = range(POINT_ROWS)
"""Rows of a point table: h, S on the two branches, S', S'', trapezoid weight dh."""

_KINK_WIDTH = 3.0
_KINK_POINTS = 3.0
_BRACKET_STEPS = 1100
_MAP_TOLERANCE = 1e-8  # the step that follows leaves its square
_TINY = 1e-300
_SHARING_PAYS = 0.9  # fraction of the separate lengths above which every node gets its own points

_PointCount = types.Tuple((Matrix, types.int64))


@njit(
    types.int64(
        POINT_FUNCTION, types.int64, types.float64, FloatArray, FloatArray, types.float64, types.float64, types.boolean,
        Matrix, Matrix,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def find_kinks(features, n_features, y, logits, parameters, gamma, sigma, always, extra, kinks):
    """Fill rows (position, width, strength) of ``kinks``; returns how many."""
    found = np.empty(3 * n_features)
    if n_features > 0:
        features(0.0, y, logits, parameters, found)
    n = 0
    for k in range(n_features):
        centre = found[k]
        scale = found[n_features + k]
        strength = abs(found[2 * n_features + k])
        if not (0.0 < strength < np.inf and 0.0 < scale < np.inf and math.isfinite(centre)):
            continue
        amount = _KINK_POINTS
        if not always:
            amount *= min(max((sigma / scale - 0.5) / 3.5, 0.0), 1.0)
        if amount == 0.0:
            continue
        reach = scale * max(0.0, math.log(4.0 * gamma * strength + _TINY))
        for k_side in range(2):
            kinks[n, 0] = centre + (reach if k_side == 1 else -reach)
            kinks[n, 1] = _KINK_WIDTH * scale
            kinks[n, 2] = amount
            n += 1
    for k in range(extra.shape[0]):
        kinks[n, 0] = extra[k, 0]
        kinks[n, 1] = _KINK_WIDTH * extra[k, 1]
        kinks[n, 2] = 2.0 * _KINK_POINTS
        n += 1
    return n


@njit(
    types.UniTuple(types.float64, 2)(
        types.float64, types.float64, types.float64, types.float64, types.float64, Matrix, types.int64
    ),
    cache=True, nogil=True,
)  # fmt: skip
def mapped(h, gamma, sigma, s0, s1, kinks, n_kinks):
    """Mapped variable t(h) and dt/dh."""
    t = (h + gamma * s0) / sigma
    dt = (1.0 + gamma * s1) / sigma
    for k in range(n_kinks):
        z = (h - kinks[k, 0]) / kinks[k, 1]
        root = math.sqrt(1.0 + z * z)
        t += kinks[k, 2] * math.copysign(math.log(abs(z) + root), z)
        dt += kinks[k, 2] / (kinks[k, 1] * root)
    return t, dt


@njit(
    types.float64(
        POINT_FUNCTION, types.float64, types.float64, types.float64, types.float64, types.float64, FloatArray, FloatArray,
        types.float64, types.float64, Matrix, types.int64, types.int64, FloatArray,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def solve_map(slopes, goal, guess, low, high, y, logits, parameters, gamma, sigma, kinks, n_kinks, branch, slope):
    """Find h with t(h) = goal by bracketed Newton; (low, high) may be infinite.  ``slope`` is work space of length 4."""
    h = guess
    for _ in range(_BRACKET_STEPS):
        slopes(h, y, logits, parameters, slope)
        t, dt = mapped(h, gamma, sigma, slope[branch], slope[2], kinks, n_kinks)
        new = h + (goal - t) / dt
        if abs(goal - t) < _MAP_TOLERANCE + 1e-14 * abs(goal):
            return new
        if t < goal:
            low = h
        else:
            high = h
        if not (low < new < high):
            if low == -np.inf:
                new = high - 2.0 * abs(high - goal * sigma) - 1.0
            elif high == np.inf:
                new = low + 2.0 * abs(low - goal * sigma) + 1.0
            else:
                new = 0.5 * (low + high)
        if new == h:
            return h
        h = new
    return h


@njit(
    types.float64(
        POINT_FUNCTION, types.float64, types.float64, FloatArray, FloatArray, types.float64, types.int64, FloatArray
    ),
    cache=True, nogil=True,
)  # fmt: skip
def proximal_point(slopes, u, y, logits, parameters, gamma, branch, slope):
    """Solution h of ``h + gamma S(h) = u``, S and u measured on ``branch``; S increasing makes it unique."""
    return solve_map(
        slopes, u, u, -np.inf, np.inf, y, logits, parameters, gamma, 1.0, np.empty((0, 3)), 0, branch, slope
    )


@njit(
    _PointCount(
        POINT_FUNCTION, Matrix, types.int64, types.float64, types.float64, types.float64, types.float64, types.float64,
        FloatArray, FloatArray, types.float64, types.float64, Matrix, types.int64, types.int64, types.boolean, FloatArray,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def march(
    slopes, points, n, h, direction, limit, step, y, logits, parameters, gamma, sigma, kinks, n_kinks, branch, first, slope
):  # fmt: skip
    """Add points from ``h`` on, one step of t each, until P passes ``limit``.  Returns the table (grown if need be), the count."""
    slopes(h, y, logits, parameters, slope)
    t, dt = mapped(h, gamma, sigma, slope[branch], slope[2], kinks, n_kinks)
    store = first
    while True:
        if store:
            if n == points.shape[1]:
                larger = np.empty((POINT_ROWS, 2 * n))
                for r in range(POINT_ROWS):
                    for j in range(n):
                        larger[r, j] = points[r, j]
                points = larger
            points[H, n] = h
            points[LOW, n] = slope[0]
            points[HIGH, n] = slope[1]
            points[CURVATURE, n] = slope[2]
            points[THIRD, n] = slope[3]
            points[WEIGHT, n] = step / dt
            n += 1
        store = True
        if direction * (h + gamma * slope[branch] - limit) >= 0.0:
            return points, n
        t += direction * step
        low = h if direction > 0.0 else -np.inf
        high = np.inf if direction > 0.0 else h
        new = solve_map(
            slopes, t, h + direction * step / dt, low, high, y, logits, parameters, gamma, sigma, kinks, n_kinks, branch,
            slope,
        )  # fmt: skip
        if not direction * (new - h) > 0.0:
            return points, n
        h = new
        slopes(h, y, logits, parameters, slope)
        _, dt = mapped(h, gamma, sigma, slope[branch], slope[2], kinks, n_kinks)


@njit(
    types.void(POINT_FUNCTION, FloatArray, Matrix, FloatArray, FloatArray, FloatArray, IntArray), cache=True, nogil=True
)
def choose_branches(targets, labels, logits, parameters, target, offset, branch):
    """For each node c measured from the nearer limit of S, which limit that is, and the distance of the two limits."""
    pair = np.empty(2)
    for i in range(target.size):
        targets(0.0, labels[i], logits[i], parameters, pair)
        branch[i] = 1 if abs(pair[1]) < abs(pair[0]) else 0
        target[i] = pair[branch[i]]
        offset[i] = (pair[0] - pair[1]) * branch[i]


@njit(types.void(FloatArray, types.float64, types.float64, FloatArray), cache=True, nogil=True)
def half_widths(weight, tail, margin, reach):
    """Half-width, in units of sigma, of the range each node needs so that nothing above ``tail`` is cut; 0 drops a node."""
    largest = 0.0
    for i in range(weight.size):
        largest = max(largest, weight[i])
    for i in range(weight.size):
        ratio = weight[i] / (largest * tail)
        reach[i] = math.sqrt(2.0 * math.log(ratio)) + margin if ratio > 1.0 else 0.0


@njit(
    types.void(
        types.float64, types.float64, FloatArray, FloatArray, IntArray, Matrix, types.int64, types.int64, types.int64,
        IntArray, IntArray,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def locate(gamma, sigma, centre, reach, branch, points, first, last, i, start, stop):
    """Range of the points ``first <= j < last`` inside the width of node i (P increases along the points)."""
    start[i] = first
    stop[i] = first
    if reach[i] > 0.0:
        row = LOW + branch[i]
        for side in range(2):
            goal = centre[i] + (2 * side - 1) * reach[i] * sigma
            low, high = first, last
            while low < high:
                middle = (low + high) // 2
                if points[H, middle] + gamma * points[row, middle] < goal:
                    low = middle + 1
                else:
                    high = middle
            if side == 0:
                start[i] = low
            else:
                stop[i] = low


@njit(
    _PointCount(
        POINT_FUNCTION, POINT_FUNCTION, types.int64, types.int64, FloatArray, FloatArray, IntArray, FloatArray, FloatArray,
        Matrix, FloatArray, types.float64, types.float64, types.float64, FloatArray, types.boolean, Matrix, Matrix, IntArray,
        IntArray,
    ),
    cache=True, nogil=True,
)  # fmt: skip
def build_grid(
    slopes, features, n_features, shareable, weight, centre, branch, offset, labels, logits, parameters, gamma, sigma, step,
    reach, always, extra, points, start, stop,
):  # fmt: skip
    """Points that cover every node's Gaussian.

    Parameters
    ----------
    shareable : int
        1 if S depends on h alone, so that nodes can share points.
    weight, centre, branch, labels, reach : arrays, shape (n,)
        Node weights, Gaussian centres in P and the branch P is measured on, labels y, half-widths in units of sigma (0: drop).
    offset : array, shape (n,)
        Distance of the two limits of S for nodes on branch 1, else 0.
    logits : array, shape (n, l)
        The earlier logits the loss looks at.
    step : float
        Step in t.
    always : bool
        Resolve the kinks even where this field's width would not need it (for grids that a later stage integrates over).
    extra : array, shape (e, 2)
        Further (position, scale) features in h to resolve.
    points : array, shape (6, p)
        Storage; the table returned is this one, or a larger one.
    start, stop : integer arrays, shape (n,), output
        Points of each node.

    Returns
    -------
    table of points (rows as in ``POINT_ROWS``), and how many of its columns are used.
    """
    n = weight.size
    kinks = np.empty((2 * n_features + extra.shape[0] + 1, 3))
    slope = np.empty(4)
    used = 0
    low = np.empty(n)
    order = np.empty(n, np.int64)
    share = shareable == 1
    if share:
        for i in range(n):
            low[i] = centre[i] - reach[i] * sigma + gamma * offset[i]
        argsort(low, order)
        covered = 0.0
        alone = 0.0
        end = -np.inf
        for rank in range(n):
            i = order[rank]
            if reach[i] > 0.0:
                width = 2.0 * reach[i] * sigma
                covered += max(0.0, low[i] + width - max(low[i], end))
                end = max(end, low[i] + width)
                alone += width
        share = covered <= _SHARING_PAYS * alone
    if not share:
        for i in range(n):
            start[i] = used
            if reach[i] > 0.0:
                n_kinks = find_kinks(
                    features, n_features, labels[i], logits[i], parameters, gamma, sigma, always, extra, kinks
                )
                h = proximal_point(slopes, centre[i], labels[i], logits[i], parameters, gamma, branch[i], slope)
                for side in range(2):
                    direction = 2.0 * side - 1.0
                    points, used = march(
                        slopes, points, used, h, direction, centre[i] + direction * reach[i] * sigma, step, labels[i],
                        logits[i], parameters, gamma, sigma, kinks, n_kinks, branch[i], side == 1, slope,
                    )  # fmt: skip
            stop[i] = used
        return points, used

    n_kinks = find_kinks(features, n_features, labels[0], logits[0], parameters, gamma, sigma, always, extra, kinks)
    rank = 0
    while rank < n:
        first_rank = rank
        i = order[rank]
        rank += 1
        if reach[i] == 0.0:
            continue
        end = low[i] + 2.0 * reach[i] * sigma
        limit = centre[i] + reach[i] * sigma
        while rank < n and low[order[rank]] <= end:
            j = order[rank]
            if reach[j] > 0.0 and low[j] + 2.0 * reach[j] * sigma > end:
                end = low[j] + 2.0 * reach[j] * sigma
                limit = end - gamma * offset[i]
            rank += 1
        h = proximal_point(
            slopes, centre[i] - reach[i] * sigma, labels[0], logits[0], parameters, gamma, branch[i], slope
        )
        begun = used
        points, used = march(
            slopes, points, used, h, 1.0, limit, step, labels[0], logits[0], parameters, gamma, sigma, kinks, n_kinks,
            branch[i], True, slope,
        )  # fmt: skip
        for r in range(first_rank, rank):
            locate(gamma, sigma, centre, reach, branch, points, begun, used, order[r], start, stop)
    return points, used
