"""Template: grids in the training logit h, one for all nodes where the gradient is ``S(h) - c``, else one for each node.

The trapezoid rule converges geometrically in the variable

    t(h) = P(h)/sigma + sum_k kappa_k [asinh((h - h_k+)/(3 b_k)) + asinh((h - h_k-)/(3 b_k))],   P(h) = h + gamma S(h),

which spaces points by a fraction of the field's width in ``P`` and, near the kinks ``h_k+- = c_k +- b_k ln(4 gamma s_k)``
of the proximal map, by a fraction of the loss's own scale ``b_k``.  (Gauss-Hermite in the field fails there: the map has branch
points a distance of order ``b_k`` from the real axis.)  Centres ``c_k``, scales ``b_k`` and curvatures ``s_k`` are read
off the loss by ``theory`` and reach this file through ``_generated``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ._generated import N_FEATURES, SHARED_GRID, features, slopes, target_values  # generated

_KINK_WIDTH = 3.0
_KINK_POINTS = 3.0
_BRACKET_STEPS = 1100
_MAP_TOLERANCE = 1e-8  # the step that follows leaves its square
_TINY = 1e-300


@njit(cache=True, nogil=True)
def _kinks(y, logits, parameters, gamma, sigma, always, extra, kinks):
    """Fill rows (position, width, strength) of ``kinks``; returns how many."""
    found = np.empty((3, max(N_FEATURES, 1)))
    features(y, logits, parameters, found)
    n = 0
    for k in range(N_FEATURES):
        centre, scale, strength = found[0, k], found[1, k], abs(found[2, k])
        if not (strength > 0.0 and scale > 0.0 and math.isfinite(centre) and math.isfinite(scale)):
            continue
        amount = _KINK_POINTS
        if not always:
            amount *= min(max((sigma / scale - 0.5) / 3.5, 0.0), 1.0)
        if amount == 0.0:
            continue
        reach = scale * max(0.0, math.log(4.0 * gamma * strength + _TINY))
        for side in (-1.0, 1.0):
            kinks[n, 0] = centre + side * reach
            kinks[n, 1] = _KINK_WIDTH * scale
            kinks[n, 2] = amount
            n += 1
    for k in range(extra.shape[0]):
        kinks[n, 0] = extra[k, 0]
        kinks[n, 1] = _KINK_WIDTH * extra[k, 1]
        kinks[n, 2] = 2.0 * _KINK_POINTS
        n += 1
    return n


@njit(cache=True, nogil=True)
def _map(h, gamma, sigma, s0, s1, kinks, n_kinks):
    """Mapped variable t(h) and dt/dh."""
    t = (h + gamma * s0) / sigma
    dt = (1.0 + gamma * s1) / sigma
    for k in range(n_kinks):
        z = (h - kinks[k, 0]) / kinks[k, 1]
        root = math.sqrt(1.0 + z * z)
        t += kinks[k, 2] * math.copysign(math.log(abs(z) + root), z)
        dt += kinks[k, 2] / (kinks[k, 1] * root)
    return t, dt


@njit(cache=True, nogil=True)
def _solve_map(goal, guess, low, high, y, logits, parameters, gamma, sigma, kinks, n_kinks, branch):
    """Find h with t(h) = goal by bracketed Newton; (low, high) may be infinite."""
    h = guess
    for _ in range(_BRACKET_STEPS):
        low_s0, high_s0, s1, s2 = slopes(h, y, logits, parameters)
        t, dt = _map(h, gamma, sigma, high_s0 if branch == 1 else low_s0, s1, kinks, n_kinks)
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


@njit(cache=True, nogil=True)
def proximal_point(u, y, logits, parameters, gamma, branch):
    """Solution h of ``h + gamma S(h) = u``, S and u measured on ``branch``; S increasing makes it unique."""
    return _solve_map(u, u, -np.inf, np.inf, y, logits, parameters, gamma, 1.0, np.empty((0, 3)), 0, branch)


@njit(cache=True, nogil=True)
def _grow(points):
    larger = np.empty((points.shape[0], 2 * points.shape[1]))
    larger[:, : points.shape[1]] = points
    return larger


@njit(cache=True, nogil=True)
def _store(points, n, h, low_s0, high_s0, s1, s2, dt, step):
    points[0, n] = h
    points[1, n] = low_s0
    points[2, n] = high_s0
    points[3, n] = s1
    points[4, n] = s2
    points[5, n] = step / dt


@njit(cache=True, nogil=True)
def _march(
    points, n, h, direction, limit, step, y, logits, parameters, gamma, sigma, kinks, n_kinks, branch, first
):
    """Add points from ``h`` on, one step of t each, until P passes ``limit``.  Returns the storage and the count."""
    low_s0, high_s0, s1, s2 = slopes(h, y, logits, parameters)
    s0 = high_s0 if branch == 1 else low_s0
    t, dt = _map(h, gamma, sigma, s0, s1, kinks, n_kinks)
    if first:
        _store(points, n, h, low_s0, high_s0, s1, s2, dt, step)
        n += 1
    while direction * (h + gamma * s0 - limit) < 0.0:
        t += direction * step
        low, high = (h, np.inf) if direction > 0.0 else (-np.inf, h)
        new = _solve_map(
            t, h + direction * step / dt, low, high, y, logits, parameters, gamma, sigma, kinks, n_kinks, branch
        )
        if not direction * (new - h) > 0.0:
            break
        h = new
        low_s0, high_s0, s1, s2 = slopes(h, y, logits, parameters)
        s0 = high_s0 if branch == 1 else low_s0
        _, dt = _map(h, gamma, sigma, s0, s1, kinks, n_kinks)
        if n == points.shape[1]:
            points = _grow(points)
        _store(points, n, h, low_s0, high_s0, s1, s2, dt, step)
        n += 1
    return points, n


@njit(cache=True, nogil=True)
def choose_branches(labels, logits, parameters, target, branch):
    """Fill ``target`` with c measured from the nearer limit of S, and ``branch`` with which limit that is."""
    for i in range(target.size):
        low, high = target_values(labels[i], logits[i], parameters)
        branch[i] = 1 if abs(high) < abs(low) else 0
        target[i] = high if branch[i] == 1 else low


@njit(cache=True, nogil=True)
def half_widths(weight, tail, margin, reach):
    """Half-width, in units of sigma, of the range each node needs so that nothing above ``tail`` is cut; 0 drops a node."""
    largest = 0.0
    for i in range(weight.size):
        largest = max(largest, weight[i])
    for i in range(weight.size):
        ratio = weight[i] / (largest * tail)
        reach[i] = math.sqrt(2.0 * math.log(ratio)) + margin if ratio > 1.0 else 0.0


@njit(cache=True, nogil=True)
def build_grid(
    weight, centre, branch, offset, labels, logits, parameters, gamma, sigma, step, tail, margin, always, extra, start,
    stop,
):  # fmt: skip
    """Points that cover every node's Gaussian.

    Parameters
    ----------
    weight, centre, branch, labels : arrays, shape (n,)
        Node weights, Gaussian centres in P and the branch P is measured on, labels y.
    offset : float
        ``gamma`` times the distance of the two limits of S: P of branch 0 minus P of branch 1.
    logits : array, shape (n, l)
        The earlier logits the loss looks at.
    step, tail, margin : float
        Step in t, relative weight that may be cut, and extra half-width.
    always : bool
        Resolve the kinks even where this field's width would not need it (for grids that a later stage integrates over).
    extra : array, shape (e, 2)
        Further (position, scale) features in h to resolve.
    start, stop : integer arrays, shape (n,), output

    Returns
    -------
    array, shape (6, p)
        Rows h, S (both branches), S', S'', and the trapezoid weight dh.
    """
    n = weight.size
    kinks = np.empty((2 * N_FEATURES + extra.shape[0] + 1, 3))
    reach = np.empty(n)
    half_widths(weight, tail, margin, reach)
    points = np.empty((6, 64 * n if n < 64 else 4096))
    used = 0
    low = centre - reach * sigma + offset * branch
    order = np.argsort(low)
    shared = SHARED_GRID
    if shared:
        covered = 0.0
        alone = 0.0
        end = -np.inf
        for i in order:
            if reach[i] > 0.0:
                width = 2.0 * reach[i] * sigma
                covered += max(0.0, low[i] + width - max(low[i], end))
                end = max(end, low[i] + width)
                alone += width
        shared = covered <= 0.9 * alone
    if not shared:
        for i in range(n):
            start[i] = used
            if reach[i] > 0.0:
                n_kinks = _kinks(labels[i], logits[i], parameters, gamma, sigma, always, extra, kinks)
                h = proximal_point(centre[i], labels[i], logits[i], parameters, gamma, branch[i])
                width = reach[i] * sigma
                for direction in (-1.0, 1.0):
                    if used == points.shape[1]:
                        points = _grow(points)
                    points, used = _march(
                        points, used, h, direction, centre[i] + direction * width, step, labels[i], logits[i],
                        parameters, gamma, sigma, kinks, n_kinks, branch[i], direction > 0.0,
                    )  # fmt: skip
            stop[i] = used
        return points[:, :used]

    n_kinks = _kinks(labels[0], logits[0], parameters, gamma, sigma, always, extra, kinks)
    end = -np.inf
    k = 0
    while k < n:
        i = order[k]
        first_rank = k
        k += 1
        if reach[i] == 0.0:
            continue
        end = low[i] + 2.0 * reach[i] * sigma
        while k < n and low[order[k]] <= end:
            if reach[order[k]] > 0.0:
                end = max(end, low[order[k]] + 2.0 * reach[order[k]] * sigma)
            k += 1
        side = branch[i]
        begin = centre[i] - reach[i] * sigma
        limit = end - offset * side
        if k == first_rank + 1:
            limit = centre[i] + reach[i] * sigma
        h = proximal_point(begin, labels[0], logits[0], parameters, gamma, side)
        if used == points.shape[1]:
            points = _grow(points)
        begun = used
        points, used = _march(
            points, used, h, 1.0, limit, step, labels[0], logits[0], parameters, gamma, sigma, kinks, n_kinks, side,
            True,
        )  # fmt: skip
        for rank in range(first_rank, k):
            _locate(gamma, sigma, centre, reach, branch, points, begun, used, order[rank], start, stop)
    return points[:, :used]


@njit(cache=True, nogil=True)
def _locate(gamma, sigma, centre, reach, branch, points, first, last, i, start, stop):
    """Range of the points ``first <= j < last`` inside the width of node i (P increases along the points)."""
    start[i] = first
    stop[i] = first
    if reach[i] > 0.0:
        row = 1 + branch[i]
        for side in (-1.0, 1.0):
            goal = centre[i] + side * reach[i] * sigma
            low, high = first, last
            while low < high:
                middle = (low + high) // 2
                if points[0, middle] + gamma * points[row, middle] < goal:
                    low = middle + 1
                else:
                    high = middle
            if side < 0.0:
                start[i] = low
            else:
                stop[i] = low
