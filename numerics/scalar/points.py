"""What a saddle point is once it is found: order parameters and conjugates of a stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


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
    """

    unknowns: np.ndarray
    conjugates: np.ndarray
    status: int
    iterations: int
    residual: float
    last_step: float
    defect: float

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
