"""Formulas of order parameters at many points at once, and how far off they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from numerics.models import Block, Chain, Problem, in_equations, structured
from numerics.scalar.compiled import PointArrays
from numerics.scalar.prior import norm_ratios
from numerics.solution.errors import natural_sizes
from numerics.solution.observables.registry import REGISTRY, Observable, split
from numerics.solution.population import Population
from numerics.solution.quadrature import Integral
from numerics.solution.stage import StageWeights

_NUMBERS = ("positive_share", "variance", "field_noise", "link_slope", "label_noise", "signal")


def _numbers_of_data(points: Sequence[Problem]) -> list[np.ndarray]:
    return [np.array([getattr(data, name) for data, _ in points]) for name in _NUMBERS]


@dataclass(frozen=True)
class ManyData:
    """What formulas ask of the data at n points, arrays of shape (n,) but for what is the same at all of them."""

    positive_share: np.ndarray
    variance: np.ndarray
    field_noise: np.ndarray
    link_slope: np.ndarray
    label_noise: np.ndarray
    signal: np.ndarray
    ruled: bool
    has_real_labels: bool
    many_classes: bool = False
    in_clusters: bool = False

    @classmethod
    def of(cls, points: Sequence[Problem]) -> ManyData:
        """Of the data of some problems."""
        values = points.numbers(_numbers_of_data) if isinstance(points, Block) else None
        data = points[0][0]
        return cls(*(values or _numbers_of_data(points)), data.ruled, data.has_real_labels)

    def repeated(self, times: int) -> ManyData:
        """So many times, one after the other."""
        return replace(self, **{name: np.tile(getattr(self, name), times) for name in _NUMBERS})


@dataclass(frozen=True, eq=False)
class ManyPoints:
    """Order parameters of a chain at n points.

    Attributes
    ----------
    magnetization, bias : arrays, shape (n, stages)
    cholesky, response : arrays, shape (n, stages, stages)
        Lower triangular; Q = C C^T.
    error : array, shape (n,)
        Relative error of the order parameters.
    norm_ratio : array, shape (n, stages)
        |w|^2/N over Q.
    """

    data: ManyData
    chain: Chain
    magnetization: np.ndarray
    bias: np.ndarray
    cholesky: np.ndarray
    response: np.ndarray
    error: np.ndarray
    norm_ratio: np.ndarray

    @classmethod
    def of(cls, arrays: PointArrays, points: Sequence[Problem]) -> ManyPoints:
        """Of points that are solved; all or none of them have structured inputs."""
        data, chain = ManyData.of(points), in_equations(*points[0])
        ratio = np.ones(arrays.status.shape)
        if structured(*points[0]):
            for i, point in enumerate(points):
                ratio[i] = norm_ratios(*point, arrays.read(i), arrays.common)
        return cls(data, chain, arrays.x[:, :, 0], arrays.x[:, :, 1], *arrays.overlaps(), arrays.error, ratio)

    def values(self, name: str) -> np.ndarray:
        """An algebraic observable, or its error, of every stage, shape (stages, n)."""
        name, is_error = split(name)
        if not is_error:
            return self._values(REGISTRY[name])
        found, moved = self._values(REGISTRY[name]), self.displaced._values(REGISTRY[name])
        changes = np.abs(moved.reshape(len(found), -1, found.shape[1]) - found[:, None])
        return changes.sum(axis=1) + np.finfo(float).eps * np.abs(found)

    def _values(self, observable: Observable) -> np.ndarray:
        found = [
            _StageOfPoints(self, number).find(observable).value
            for number in range(1 + self.chain.hidden, len(self.chain) + 1)
        ]
        return np.array([np.broadcast_to(value, self.error.shape) for value in found])

    @cached_property
    def overlap(self) -> np.ndarray:
        """Q, shape (n, stages, stages)."""
        return self.cholesky @ np.swapaxes(self.cholesky, -1, -2)

    @cached_property
    def displaced(self) -> ManyPoints:
        """The same points once for each unknown, one after the other, with that unknown off by its error."""
        sizes = natural_sizes(self.cholesky, self.response)
        unknowns = [(t, u) for t, size in enumerate(sizes) for u in range(size.shape[-1])]

        def copies(values: np.ndarray) -> np.ndarray:
            return np.repeat(values[None], len(unknowns), axis=0)

        m, b, c, v = map(copies, (self.magnetization, self.bias, self.cholesky, self.response))
        for k, (t, u) in enumerate(unknowns):
            step = self.error * sizes[t][:, u]
            if u == 0:
                m[k, :, t] += step
            elif u == 1:
                b[k, :, t] += step
            elif u < 2 + t:
                c[k, :, t, u - 2] += step
            elif u == 2 + t:
                c[k, :, t, t] *= np.exp(0.5 * np.minimum(step, 1.0))
            elif u < 3 + 2 * t:
                v[k, :, t, u - 3 - t] += step
            else:
                v[k, :, t, t] *= np.exp(step)
        data = self.data.repeated(len(unknowns))
        m, b, c, v = (values.reshape(-1, *values.shape[2:]) for values in (m, b, c, v))
        return replace(
            self, data=data, magnetization=m, bias=b, cholesky=c, response=v, error=np.tile(self.error, len(unknowns)),
            norm_ratio=np.tile(self.norm_ratio, (len(unknowns), 1)),
        )  # fmt: skip


class _StageOfPoints(StageWeights):
    """One stage at all points."""

    def __init__(self, points: ManyPoints, number: int) -> None:
        self.points, self.data, self.chain, self.number = points, points.data, points.chain, number

    @cached_property
    def fresh(self) -> Population:
        """Law of the logits of the stages up to this one, an axis of points in front."""
        points, k = self.points, self.number
        return Population(
            points.data, points.magnetization[:, :k], points.bias[:, :k], points.overlap[:, :k, :k], points.cholesky[:, :k, :k],
            norm_ratio=points.norm_ratio[:, :k],
        )  # fmt: skip

    @property
    def response_to_field(self) -> np.ndarray:
        """V_tt, shape (n,)."""
        return self.points.response[:, self.number - 1, self.number - 1]

    def find(self, observable: Observable) -> Integral:
        """Value of an algebraic observable, shape (n,)."""
        return observable.evaluate(self)
