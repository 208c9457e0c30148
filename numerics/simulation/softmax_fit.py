"""Minimisation of ``sum_mu l(h_mu) + (ridge/2)|W|^2`` for logits ``h_mu = x_mu W + b`` in R^d, by the method of
:mod:`numerics.simulation.ridge_fit`: products with the Hessian for conjugate gradients, and when they have cost as much as that,
its Cholesky factor, of n d + d rows, for a preconditioner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from numerics.simulation.ridge_fit import BIAS_DAMPING, MIN_PRODUCTS, SINGLE_JITTER, RidgeFit, RidgeNewton

Array = NDArray[np.float64]

FACTOR_COST = 0.3
"""Time of an operation in a factorisation over that of one in a product with X, which for several logits is no pass over memory."""

MOST_ROWS = 12_000
"""Rows of a Hessian beyond which it is never formed: its single-precision factor would take more than half a gigabyte."""


class VectorObjective(Protocol):
    """Sum of losses as functions of all logits h, shape (M, d)."""

    def value(self, h: Array) -> Array:
        """Losses, shape (M,)."""

    def derivatives(self, h: Array) -> tuple[Array, Array]:
        """Gradients, shape (M, d), and Hessians, positive semi-definite, shape (M, d, d)."""


def minimise_softmax(
    design: Array,
    objective: VectorObjective,
    ridge: float,
    dimensions: int,
    *,
    starts: Sequence[tuple[Array, Array]] = (),
    gradient_tolerance: float = 1e-8,
    max_iterations: int = 500,
) -> RidgeFit:
    """Fit weights (n, d) and unregularised biases (d,).

    Parameters
    ----------
    design : ndarray, shape (M, n)
    objective : VectorObjective
    ridge : float
        Strength > 0 of the L2 penalty.
    dimensions : int
        d.
    starts : sequence of (weights, biases)
        Guesses; the one with the lowest objective is used, zero included.
    gradient_tolerance : float
        Relative gradient norm (see :class:`RidgeFit`) at which the fit counts as converged.

    Returns
    -------
    RidgeFit
        Always; ``converged`` tells whether the tolerance was met.
    """
    return _SoftmaxNewton(design, objective, ridge, dimensions, gradient_tolerance).run(starts, max_iterations)


class _SoftmaxNewton(RidgeNewton):
    """A point holds n rows of d weights, and d biases."""

    axes = 2

    def __init__(self, design: Array, objective: VectorObjective, ridge: float, d: int, tolerance: float) -> None:
        super().__init__(design, objective, ridge, None, tolerance)
        self.d = self.biases = d
        self.dual = None

    def zero(self) -> Array:
        return np.zeros(self.size * self.d)

    def _matrix(self, point: Array) -> Array:
        return point.reshape(self.size + 1, self.d)

    def parts(self, point: Array) -> dict[str, Array | float]:
        matrix = self._matrix(point)
        return {"weights": matrix[:-1].copy(), "bias": matrix[-1].copy()}

    def logits(self, point: Array) -> Array:
        matrix = self._matrix(point)
        return self.design @ matrix[:-1] + matrix[-1]

    def adjoint(self, values: Array) -> Array:
        return np.append((values.T @ self.design).T, values.sum(axis=0))

    def convex(self, curvatures: Array) -> Array:
        return curvatures

    def bend(self, curvatures: Array, logits: Array) -> Array:
        return np.matmul(curvatures, logits[:, :, None])[:, :, 0]

    def diagonal(self, curvatures: Array) -> Array:
        total = np.einsum("mii->i", curvatures)
        found = np.tile(self.ridge + total * self.row_norm2 / self.size, (self.size + 1, 1))
        found[-1] = total + BIAS_DAMPING * self.ridge
        return found.ravel()

    def budget(self) -> float:
        rows = (self.size + 1) * self.d
        if rows > MOST_ROWS:
            return np.inf
        work = rows**3 / 3 + self.samples * self.size**2 * self.d * (self.d + 1) / 2
        return max(MIN_PRODUCTS, FACTOR_COST * work / (4 * self.size * self.samples * self.d))

    def factorise(self, curvatures: Array) -> None:
        self.since_factor = 0
        self.factorisations += 1
        try:
            self.factor = None  # its memory is free before the next is made
            self.factor = _HessianFactor(self.design, curvatures, self.ridge, self.precision)
        except LinAlgError:
            self.precision = np.float64
            self.factor = None


class _HessianFactor:
    """Cholesky factor of the Hessian, its rows in the order (logit, weight or bias)."""

    def __init__(self, design: Array, curvatures: Array, ridge: float, precision: type) -> None:
        samples, n = design.shape
        self.n, self.d, self.precision = n + 1, curvatures.shape[1], precision
        extended = np.empty((samples, self.n), dtype=precision)
        extended[:, :n] = design
        extended[:, n] = 1.0
        hessian = np.empty((self.d * self.n,) * 2, dtype=precision)
        for i in range(self.d):
            for j in range(i + 1):
                block = (extended * curvatures[:, i, j, None].astype(precision)).T @ extended
                if i == j:
                    diagonal = np.einsum("ii->i", block)
                    diagonal[:n] += ridge
                    diagonal[n] += BIAS_DAMPING * ridge
                    if precision is np.float32:
                        diagonal *= 1 + SINGLE_JITTER
                hessian[i * self.n : (i + 1) * self.n, j * self.n : (j + 1) * self.n] = block
        self.factor = cho_factor(hessian, lower=True, overwrite_a=True, check_finite=False)

    def solve(self, vector: Array) -> Array:
        norm = np.linalg.norm(vector)
        if not norm > 0:
            return np.zeros_like(vector)
        turned = (vector / norm).reshape(self.n, self.d).T.ravel().astype(self.precision)
        solved = cho_solve(self.factor, turned, check_finite=False).astype(float)
        return norm * solved.reshape(self.d, self.n).T.ravel()
