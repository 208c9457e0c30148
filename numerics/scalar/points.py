"""What a saddle point is once it is found: order parameters and conjugates of a stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numerics.models import Estimator, Frozen
from numerics.scalar.kernels.layout import NO_RIDGE

MINIMUM_NORM, MAX_MARGIN = HARD = "minimum norm", "max margin"
"""The two constraints that stand for a ridge of 0."""

SMALLEST_SHARE = 1e-12
"""Of the part of the weights orthogonal to earlier stages in ``Q``: below, it counts as 0, as in the compiled solver."""

NO_RESPONSE = -690.0
"""``ln V_tt`` of given weights, as the compiled solver has it."""


@dataclass(frozen=True)
class StagePoint:
    """Saddle point of one stage: order parameters, conjugates, and how they were found.

    Attributes
    ----------
    unknowns : array, shape (2t + 2,)
        What Newton's method works with: ``m, b, C_t1.., ln C_tt^2, V_t1.., ln V_tt`` (see :mod:`numerics.scalar.kernels.layout`).
    conjugates : array, shape (2t + 1,)
        ``mh, Qh_t1..Qh_tt, Vh_t1..Vh_tt``.
    status : int
        0 if Newton's method converged.
    iterations, residual, last_step, defect
        Channel evaluations; undamped, scaled residual; size of the last step; deviation of the nodes' densities from 1.
    limit : str or None
        ``MINIMUM_NORM`` or ``MAX_MARGIN`` of a stage without ridge that a constraint describes, in the units of that problem; see
        :mod:`numerics.scalar.kernels.constrained`.
    """

    unknowns: np.ndarray
    conjugates: np.ndarray
    status: int
    iterations: int
    residual: float
    last_step: float
    defect: float
    limit: str | None = None

    @property
    def earlier(self) -> int:
        """Number of earlier stages."""
        return (self.unknowns.size - 4) // 2

    @property
    def magnetization(self) -> float:
        return float(self.unknowns[0])

    @property
    def bias(self) -> float:
        return float(self.unknowns[1])

    @property
    def cholesky_row(self) -> np.ndarray:
        """``C_t1 .. C_tt`` with ``Q = C C^T``."""
        k = self.earlier
        return np.append(self.unknowns[2 : 2 + k], math.exp(0.5 * self.unknowns[2 + k]))

    @property
    def response_row(self) -> np.ndarray:
        """``V_t1 .. V_tt``."""
        return np.append(self.unknowns[3 + self.earlier : -1], math.exp(self.unknowns[-1]))

    @property
    def norm_squared(self) -> float:
        """``Q_tt``."""
        return float(self.cholesky_row @ self.cholesky_row)

    @property
    def vanishes(self) -> bool:
        """Whether the weights are exactly 0 (:mod:`numerics.scalar.constant_targets`); ``ln C_tt^2`` then is -oo."""
        return self.unknowns[2 + self.earlier] == -math.inf


def effective_ridge(stage: Estimator, limit: str | None) -> float:
    """The ridge in the equations of a stage: 1 with a constraint; 0 has no logarithm."""
    return 1.0 if limit in HARD else stage.ridge or NO_RIDGE


def given_point(stage: Frozen, points: Sequence[StagePoint]) -> StagePoint:
    """Given weights ``w = m v + noise`` after other stages: their overlaps are those of ``m v``."""
    k, m = len(points), stage.magnetization
    factor, overlaps = np.zeros((k, k)), np.array([m * point.magnetization for point in points])
    for t, point in enumerate(points):
        factor[t, : t + 1] = point.cholesky_row
    row = np.linalg.solve(factor, overlaps) if k else overlaps
    rest = max(stage.norm_squared - float(row @ row), SMALLEST_SHARE * stage.norm_squared)
    x = np.concatenate(([m, stage.bias], row, [math.log(rest)], np.zeros(k), [NO_RESPONSE]))
    return StagePoint(x, np.zeros(x.size - 1), 0, 0, 0.0, 0.0, 0.0)
