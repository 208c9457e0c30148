"""How errors of order parameters reach what is read off them.

A Newton step of the whole chain at the next finer quadrature level says where the order parameters would go: it is their error,
with the correlations it has.  Where that is less than the solution states, it is enlarged to what is stated.  An observable at the
displaced order parameters, on the same grids, then differs by the error that is propagated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from numerics.scalar.nodes import StagePoint, sharpness_along
from numerics.scalar.walk import Walk

if TYPE_CHECKING:
    from numerics.solution.solution import Solution

_GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)


def displaced(solution: Solution) -> Solution:
    """The solution with its order parameters off by their error; of a chain all of whose stages are solved.

    Limits ridge -> 0, stages without weights and chains solved by :mod:`numerics.square_chain` take no compiled Newton step: there
    every order parameter is off by the quadrature error stated, times a factor between -1 and 1.
    """
    points = solution.points
    if solution.spectral is not None or any(point.limit or point.vanishes for point in points):
        return replace(solution, points=spread(points, solution.quadrature_error))
    walk = Walk(solution.data, solution.equations, solution.settings, solution.level)
    for number, point in enumerate(points, 1):
        walk.advance(point.unknowns + walk.newton(point.unknowns)[0], sharpness_along(points, number))
    size = largest_change(points, walk.points)
    if not size > 0.0:
        return replace(solution, points=spread(points, solution.quadrature_error))
    grown = max(1.0, solution.quadrature_error / size)
    moved = tuple(
        replace(
            point,
            unknowns=point.unknowns + grown * (found.unknowns - point.unknowns),
            conjugates=point.conjugates + grown * (found.conjugates - point.conjugates),
        )
        for point, found in zip(points, walk.points, strict=True)
    )
    return replace(solution, points=moved)


def natural_sizes(cholesky: np.ndarray, response: np.ndarray) -> list[np.ndarray]:
    """Sizes that the unknowns of each stage are measured by, shape (..., unknowns); order of :class:`StagePoint`.

    Arguments have shape (..., stages, stages).
    """
    norm, own = np.linalg.norm(cholesky, axis=-1), np.diagonal(response, axis1=-2, axis2=-1)
    found = []
    for t in range(norm.shape[-1]):
        own_share = cholesky[..., t, t] ** 2
        share = np.divide(norm[..., t] ** 2, own_share, out=np.zeros_like(own_share), where=own_share > 0.0)
        responses = np.maximum(np.abs(response[..., t, :t]), np.sqrt(own[..., :t] * own[..., t, None]))
        one, norms = np.ones_like(share), np.repeat(norm[..., t, None], t, axis=-1)
        parts = (norm[..., t, None], 1.0 + norm[..., t, None], norms, share[..., None], responses, one[..., None])
        found.append(np.concatenate(parts, axis=-1))
    return found


def _sizes(points: Sequence[StagePoint]) -> list[np.ndarray]:
    """:func:`natural_sizes` of the stages of a chain."""
    triangles = np.zeros((2, len(points), len(points)))
    for t, point in enumerate(points):
        triangles[:, t, : t + 1] = point.cholesky_row, point.response_row
    return natural_sizes(*triangles)


def largest_change(before: Sequence[StagePoint], after: Sequence[StagePoint]) -> float:
    """Largest change of an order parameter, relative to its natural size."""
    return max(
        float(np.max(np.abs(new.unknowns - old.unknowns) / sizes))
        for old, new, sizes in zip(before, after, _sizes(before), strict=True)
    )


def spread(points: Sequence[StagePoint], size: float) -> tuple[StagePoint, ...]:
    """Every unknown off by up to ``size`` of its natural size, and every conjugate of its own."""
    moved = []
    for stage, (point, sizes) in enumerate(zip(points, _sizes(points), strict=True)):
        amounts = 2.0 * np.modf(_GOLDEN * (np.arange(point.unknowns.size) + 7.0 * stage + 1.0))[0] - 1.0
        step = size * amounts * sizes
        step[2 + point.earlier] = np.clip(step[2 + point.earlier], -1.0, 1.0)
        conjugates = point.conjugates * (1.0 + size * amounts[: point.conjugates.size])
        moved.append(replace(point, unknowns=point.unknowns + step, conjugates=conjugates))
    return tuple(moved)
