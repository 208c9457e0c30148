"""Probabilities of a sign given training samples, where the own field of a stage is too narrow to smooth the answer.

``P(label * h_t < 0)`` is a Gaussian tail given the fields of the earlier stages.  If the stage's own field is much narrower than
the others, that tail is a step as a function of them, and nodes that are good for smooth averages miss where it falls.  Here one
direction g_k, along which the threshold moves fastest, gets a fine grid on which the step is integrated as a function of the
threshold; what is left is as smooth in all other directions as one can have it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from numerics.deferred import special

FINE_POINTS = 401
REACH = 6.5
_SPACINGS = {1: 0.5, 2: 0.8}
"""Of the other directions, by how many there are."""

_COARSEST = 1.0
_TAIL = 1e-8


def fastest_direction(scores: np.ndarray, weight: np.ndarray, directions: np.ndarray) -> int:
    """Index of the direction along which ``scores`` (n,) change most on average: E[score g_k], by Stein's lemma."""
    typical = np.isfinite(scores)
    slopes = (weight * scores)[typical] @ directions[typical]
    return int(np.argmax(np.abs(slopes)))


def product_directions(count: int, fine: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of (g_1..g_count), shape (r * FINE_POINTS, count), and the weight of each of the r rows of the other directions.

    The fine direction varies fastest and has no weight: it is integrated over afterwards.
    """
    others = count - 1
    spacing = _SPACINGS.get(others, _COARSEST)
    line = np.arange(-np.ceil(REACH / spacing), np.ceil(REACH / spacing) + 1) * spacing
    mass = spacing * np.exp(-0.5 * line**2) / np.sqrt(2.0 * np.pi)
    points, weight = np.empty((1, 0)), np.ones(1)
    for _ in range(others):
        weight = np.multiply.outer(weight, mass).ravel()
        points = np.column_stack((np.repeat(points, line.size, axis=0), np.tile(line, len(points))))
        kept = weight > _TAIL * weight.max()
        points, weight = points[kept], weight[kept]
    grid = np.linspace(-REACH, REACH, FINE_POINTS)
    table = np.repeat(points, FINE_POINTS, axis=0)
    return np.ascontiguousarray(np.insert(table, fine, np.tile(grid, len(points)), axis=1)), weight / weight.sum()


def tail_along(scores: np.ndarray, tail: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Average of ``Phi(score)`` or ``1 - Phi(score)`` over the fine direction, shape (r,), from scores of shape (r, FINE_POINTS).

    By parts, ``E[Phi(z(g))] = Phi(z(end)) - int N(g) phi(z) dz``, with N quadratic in z between neighbours: exact for a step of
    any steepness up to the cube of the grid's spacing.
    """
    below = special.ndtr(np.linspace(-REACH, REACH, FINE_POINTS))
    z = np.clip(scores, -1e150, 1e150)
    first, last = z[:, :-1], z[:, 1:]
    step = last - first
    mass = np.diff(special.ndtr(z), axis=1)
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    moment = -np.diff(density, axis=1)  # of z phi(z) between neighbours
    square = mass - np.diff(z * density, axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slope = np.where(np.abs(step) > _SMALL_STEP, np.diff(below) / step, 0.0)
        bend = np.diff(slope, axis=1) / (z[:, 2:] - z[:, :-2])
        bend = np.where(np.isfinite(bend) & (slope[:, 1:] * slope[:, :-1] > 0.0), bend, 0.0)
        bend = np.pad(bend, ((0, 0), (1, 1)), mode="edge")
        bend = 0.5 * (bend[:, :-1] + bend[:, 1:])
        # N stays monotone inside a cell, however unlike its neighbours the cell is.
        most = np.where(step != 0.0, np.abs(slope / step), 0.0)
    bend = np.clip(bend, -most, most)
    linear = np.where(slope == 0.0, 0.5 * mass * np.diff(below), slope * (moment - first * mass))
    curved = bend * (square - (first + last) * moment + first * last * mass)
    inner = np.sum(below[:-1] * mass + linear + np.where(np.isfinite(curved), curved, 0.0), axis=1)
    return tail(special.ndtr(z[:, -1]) - inner)


_SMALL_STEP = 1e-6
