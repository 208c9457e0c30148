"""Finite representations of the joint law of label, fields, training forces and logits of a chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numerics.codegen import core_module, loss_module
from numerics.models import Estimator, GaussianMixture

_NO_FEATURES = np.empty((0, 2))


@dataclass(frozen=True)
class StagePoint:
    """Saddle point of one stage: order parameters, conjugates, and how they were found.

    Attributes
    ----------
    unknowns : array, shape (2t + 2,)
        What Newton's method works with: ``m, b, C_t1.., ln C_tt^2, V_t1.., ln V_tt`` (see ``kernels/stage.py``).
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


@dataclass(frozen=True)
class Nodes:
    """Weighted nodes; on training samples the weights add up to alpha.

    Attributes
    ----------
    weight, labels : arrays, shape (n,)
    design : array, shape (n, 2 + 2k)
        ``s, 1, g_1..g_k, f_1..f_k``: sign, Gaussian directions and training forces of k stages.
    logits : array, shape (n, k)
        ``h_1..h_k``.
    """

    weight: np.ndarray
    design: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    @property
    def stages(self) -> int:
        return self.logits.shape[1]

    @property
    def forces(self) -> np.ndarray:
        """``f_1..f_k``, shape (n, k)."""
        return self.design[:, 2 + self.stages :]

    def seen(self, stages: Sequence[int]) -> np.ndarray:
        """Columns of ``logits`` for the given stages (1-based), contiguous."""
        return np.ascontiguousarray(self.logits[:, [s - 1 for s in stages]])

    def mean(self, values: np.ndarray) -> float:
        """Average of ``values``, shape (n,)."""
        # Not a BLAS product: its threads cost more than these sums.
        return float(np.sum(self.weight * values) / np.sum(self.weight))


def label_nodes(data: GaussianMixture) -> Nodes:
    """The two labels, weighted by alpha times their probability."""
    signs = np.array([1.0, -1.0])
    weight = data.alpha * np.array([data.rho, 1.0 - data.rho])
    return Nodes(weight, np.column_stack((signs, np.ones(2))), (signs + 1.0) / 2.0, np.empty((2, 0)))


def extend(
    nodes: Nodes, data: GaussianMixture, stage: Estimator, point: StagePoint, step: float, tail: float, *,
    training: bool, extra: np.ndarray = _NO_FEATURES,
) -> tuple[Nodes, float]:  # fmt: skip
    """Nodes that include this stage too, on training samples or on fresh ones, and their normalisation defect.

    ``extra``, shape (e, 2), holds (position, scale) of what a later integrand does as a function of this stage's logit.
    """
    number = point.earlier + 1
    loss = stage.loss
    compiled = loss_module(loss)
    row, responses = point.cholesky_row, point.response_row
    root = math.sqrt(data.delta)
    reaction = data.delta if training else 0.0
    *arrays, defect = core_module().extend_nodes(
        compiled.slopes, compiled.targets, compiled.features, len(loss.features), int(loss.split is not None),
        nodes.weight, nodes.design, nodes.labels, nodes.logits, nodes.seen(loss.stages(number)),
        np.array(loss.values, dtype=float), point.magnetization, point.bias, root * row[:-1], root * row[-1],
        reaction * responses[:-1], reaction * responses[-1], step, tail, extra,
    )  # fmt: skip
    return Nodes(*arrays), defect
