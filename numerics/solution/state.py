"""Order parameters of a chain as arrays over its stages, in the units of the equations and in those of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from numerics.models import DataModel
from numerics.scalar.points import MAX_MARGIN, MINIMUM_NORM, StagePoint
from numerics.solution.population import SYMMETRIC, Population

Array = NDArray[np.float64]


class State:
    """What the saddle points of the stages say, NaN from the first one on that is not solved.

    Parameters
    ----------
    points : sequence of StagePoint
        Of the first stages, or of all.
    size : int
        Stages of the chain.
    """

    def __init__(self, points: Sequence[StagePoint], size: int) -> None:
        self.points, self.size = points, size

    def knows(self, number: int) -> bool:
        """Whether stage ``number``, from 1, is solved."""
        return len(self.points) >= number and self.points[number - 1].status == 0

    def _collect(self, value: Callable[[StagePoint], Array | float], *shape: int) -> Array:
        out = np.full((self.size, *shape), np.nan)
        for k, point in enumerate(self.points):
            if point.status == 0:
                row = value(point)
                out[k, : np.size(row)] = row
        return out

    def _triangle(self, row: Callable[[StagePoint], Array]) -> Array:
        square = self._collect(row, self.size)
        square[np.triu_indices(self.size, 1)] = 0.0
        return square

    @cached_property
    def scale(self) -> Array:
        """Factor from the units of the equations to those of the weights, shape (stages,): infinite with a margin, else 1."""
        return self._infinite_for(MAX_MARGIN)

    def _infinite_for(self, *limits: str) -> Array:
        missing = self.size - len(self.points)
        return np.array([math.inf if point.limit in limits else 1.0 for point in self.points] + [1.0] * missing)

    @cached_property
    def magnetization(self) -> Array:
        """m_t in the units of the equations, shape (stages,)."""
        return self._collect(lambda point: point.magnetization, 1)[:, 0]

    @cached_property
    def bias(self) -> Array:
        """b_t in the units of the equations, shape (stages,)."""
        return self._collect(lambda point: point.bias, 1)[:, 0]

    @cached_property
    def cholesky(self) -> Array:
        """C with Q = C C^T in the units of the equations, lower triangular, shape (stages, stages)."""
        return self._triangle(lambda point: point.cholesky_row)

    @cached_property
    def overlap(self) -> Array:
        """Q in the units of the equations, shape (stages, stages)."""
        return self.cholesky @ self.cholesky.T

    @cached_property
    def response(self) -> Array:
        """V_ts in the units of the weights, lower triangular, shape (stages, stages)."""
        columns = self._infinite_for(MAX_MARGIN, MINIMUM_NORM)
        return times(self._triangle(lambda point: point.response_row), self.scale[:, None] * columns)

    def population(
        self, data: DataModel, number: int, rtol: float, *, norm_ratio: Array | None = None, check: bool = False
    ) -> Population:
        """The law of fresh logits of the first stages."""
        k = number
        return Population(
            data, self.magnetization[:k], self.bias[:k], self.overlap[:k, :k], self.cholesky[:k, :k], rtol,
            scale=self.scale[:k], norm_ratio=norm_ratio, check=check,
        )  # fmt: skip


def times(finite: Array, growth: Array) -> Array:
    """Product in which 0 (up to rounding) times infinity is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(finite) < SYMMETRIC, np.where(np.isinf(growth), 0.0, finite), finite * growth)
