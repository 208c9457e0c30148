"""Newton steps through a whole chain from given unknowns, at one quadrature level finer than those were found with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numerics.models import Chain, DataModel, Frozen, in_equations
from numerics.scalar.compiled import newton, one_step, structural_loss, target_bends
from numerics.scalar.directions import fixed_directions
from numerics.scalar.kernels import layout
from numerics.scalar.nodes import extend, label_nodes
from numerics.scalar.points import StagePoint, effective_ridge, given_point
from numerics.scalar.prior import WeightMoments, coordinate_groups
from numerics.settings import Settings


class Walk:
    """The stages of a chain one after the other, at given unknowns: Newton steps, conjugates, nodes."""

    def __init__(
        self, data: DataModel, chain: Chain, settings: Settings, level: int, limits: Sequence[str | None] = ()
    ) -> None:  # fmt: skip
        chain = in_equations(data, chain)
        self.data, self.chain, self.settings, self.level = data, chain, settings, level + 1
        self.stages = chain.resolved(data)
        self.limits = tuple(limits) or (None,) * len(chain)
        directions, rows, self.exact = fixed_directions([structural_loss(stage) for stage in chain.stages])
        rows = rows if self.exact or rows == 0 else min(rows * 2 ** (level + 1), len(directions))
        self.directions = np.ascontiguousarray(directions[:rows].T) if rows else None
        # One level finer than the solution: errors of quadrature are divided by SHIFT.
        self.factor = 1.0 if rows else settings.refinement ** (level + 1)
        self.nodes = label_nodes(data, rows=max(rows, 1))
        self.moments = WeightMoments(coordinate_groups(data, chain, settings.common))
        self.points: list[StagePoint] = []

    def newton(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Newton step of the next stage from ``x``, and its conjugates at ``x``."""
        number = len(self.points) + 1
        stage, limit = self.stages[number - 1], self.limits[number - 1]
        if isinstance(stage, Frozen):
            return given_point(stage, self.points).unknowns - x, np.zeros_like(x)
        prior = self.moments.prior_rows(len(self.points), effective_ridge(stage, limit))
        moved, conjugates, _, _ = newton(
            self.data, stage, self.nodes.of(self.data, stage.sets), prior, self.points, x,
            one_step(self.settings.field_step * self.factor, self.settings.tail, sharing=not self.exact), limit,
        )  # fmt: skip
        return moved - x, conjugates

    def advance(self, x: np.ndarray, sharpness: layout.Sharpness) -> None:
        """Put the next stage at ``x`` and go on to the one after it; ``sharpness`` as in :func:`extend`."""
        number = len(self.points) + 1
        stage = self.stages[number - 1]
        conjugates = self.newton(x)[1][:-1].copy()
        point = StagePoint(x, conjugates, 0, 1, 0.0, 0.0, 0.0, self.limits[number - 1])
        self.points.append(point)
        if number < len(self.chain):
            self.moments.add_stage(number, stage, conjugates, point.limit)
            self.nodes, _ = extend(
                self.nodes, self.data, stage, point, self.settings.outer_step * self.factor, self.settings.tail,
                training=True, extra=target_bends(self.chain, number),
                directions=None if self.directions is None else self.directions[number - 1], sharpness=sharpness,
            )  # fmt: skip
