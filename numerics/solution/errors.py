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

from numerics.scalar.constrained import HardPoint
from numerics.scalar.nodes import StagePoint, sharpness_along
from numerics.scalar.walk import Walk

if TYPE_CHECKING:
    from numerics.solution.solution import Solution

_GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)


def displaced(solution: Solution) -> Solution:
    """The solution with its order parameters off by their error; of a chain all of whose stages are solved.

    Limits ridge -> 0 and chains solved by :mod:`numerics.square_chain` take no compiled Newton step: there every order
    parameter is off by the quadrature error stated, times a factor between -1 and 1.
    """
    points = solution.points
    if solution.spectral is not None or any(isinstance(point, HardPoint) for point in points):
        return replace(solution, points=_spread(points, solution.quadrature_error))
    walk = Walk(solution.data, solution.chain, solution.settings, solution.level)
    for number, point in enumerate(points, 1):
        walk.advance(point.unknowns + walk.newton(point.unknowns)[0], sharpness_along(points, number))
    size = _largest_change(points, walk.points)
    if not size > 0.0:
        return replace(solution, points=_spread(points, solution.quadrature_error))
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


def _natural_sizes(point: StagePoint, points: Sequence[StagePoint]) -> np.ndarray:
    """Of each unknown of a stage."""
    norm = math.sqrt(point.norm_squared)
    own = np.array([earlier.response_row[-1] for earlier in points[: point.earlier]])
    responses = np.maximum(np.abs(point.response_row[:-1]), np.sqrt(own * point.response_row[-1]))
    share = norm**2 / point.cholesky_row[-1] ** 2
    return np.array([norm, 1.0 + norm, *([norm] * point.earlier), share, *responses, 1.0])


def _largest_change(before: Sequence[StagePoint], after: Sequence[StagePoint]) -> float:
    """Largest change of an order parameter, relative to its natural size."""
    return max(
        float(np.max(np.abs(new.unknowns - old.unknowns) / _natural_sizes(old, before)))
        for old, new in zip(before, after, strict=True)
    )


def _spread(points: Sequence[StagePoint], size: float) -> tuple[StagePoint, ...]:
    """Every unknown off by up to ``size`` of its natural size, and every conjugate of its own."""
    moved = []
    for stage, point in enumerate(points):
        amounts = 2.0 * np.modf(_GOLDEN * (np.arange(point.unknowns.size) + 7.0 * stage + 1.0))[0] - 1.0
        step = size * amounts * _natural_sizes(point, points)
        step[2 + point.earlier] = np.clip(step[2 + point.earlier], -1.0, 1.0)
        conjugates = point.conjugates * (1.0 + size * amounts[: point.conjugates.size])
        moved.append(replace(point, unknowns=point.unknowns + step, conjugates=conjugates))
    return tuple(moved)
