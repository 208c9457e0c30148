"""Minimisation of ``sum_mu l(h_mu) + (ridge/2)|w|^2``, ``h = X w + b``, for smooth convex losses.

Truncated Newton: each step solves ``H p = -g`` by preconditioned conjugate gradients, with ``H = X^T D X +
ridge`` bordered by the bias.  Products with H cost two passes over X, so well-conditioned fits never form H.
When the products spent since the last factorisation have cost as much as a factorisation would, H is
factorised at the current point, in the smaller of the two dimensions (weights or samples), and serves as
preconditioner until it has aged by the same rule.  So the time is within a small factor of the better of the
two pure methods, whichever that is.  The step length comes from a one-dimensional Newton search along p,
which needs no pass over X; steps longer than 1 are what makes separable data quick.

Usually the wrong choice for non-smooth losses, or where a few digits are enough and X does not fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.lapack import dpotrf, dpotrs

Array = NDArray[np.float64]

MAX_NEWTON_STEPS = 500
MAX_SEARCH_STEPS = 100
STALL_STEPS = 8
STALL_DECREMENT = 1e-12
"""Rounding is taken to be the limit after STALL_STEPS steps that neither halve the gradient nor promise more
than this fraction of the objective."""

FORCING = 0.3
"""Largest relative residual of conjugate gradients; falls as the root of the relative gradient norm."""

SEARCH_TOLERANCE = 0.05
"""The line search stops when the slope has fallen to this fraction of its value at the start."""

FACTOR_COST = 0.06
"""Time of an operation in a factorisation over that of one in a product with X (measured on one core)."""

MIN_PRODUCTS = 4
"""Products allowed between factorisations however small the problem."""

FRESH_PRODUCTS = 12
"""Products in one solve after which a new single-precision factor counts as too inaccurate."""

SINGLE_JITTER = 2e-6
"""Relative shift of the diagonal that keeps a single-precision Hessian positive definite."""

NEGLIGIBLE_CURVATURE = 3e-3
"""Samples that add less to the Hessian than this fraction of the ridge are left out of the preconditioner."""

BIAS_DAMPING = 1e-6
"""Curvature of the bias, in units of the ridge, where the loss has none."""

BLOCK_BYTES = 2**23
PANEL = 256


class Objective(Protocol):
    """Sum of losses as functions of all logits h, shape (M,)."""

    def value(self, h: Array) -> Array:
        """Losses l_mu(h_mu)."""

    def derivatives(self, h: Array) -> tuple[Array, Array]:
        """First derivatives l'_mu(h_mu), and second ones l''_mu(h_mu) >= 0."""


@dataclass(frozen=True)
class RidgeFit:
    """A minimiser and how it was reached.

    Attributes
    ----------
    weights, bias, logits
        w of shape (n,), b, and h = X w + b of shape (M,).
    gradient_norm
        Euclidean norm of the gradient over weights and bias together.
    relative_gradient_norm
        The same over ``|X^T l'| + ridge |w|``, the two terms that cancel at the optimum.  By strong convexity
        the relative error of w is at most about twice this number (for a given bias).
    iterations, products, factorisations
        Newton steps, products with the Hessian, Cholesky factorisations.
    converged, message
        Whether the tolerance was met, and what happened in words.
    """

    weights: Array
    bias: float
    logits: Array
    gradient_norm: float
    relative_gradient_norm: float
    iterations: int
    products: int
    factorisations: int
    converged: bool
    message: str


def minimise_ridge(
    design: Array,
    objective: Objective,
    ridge: float,
    *,
    starts: Sequence[tuple[Array, float]] = (),
    fit_bias: bool = True,
    gradient_tolerance: float = 1e-8,
    max_iterations: int = MAX_NEWTON_STEPS,
) -> RidgeFit:
    """Fit weights and an unregularised bias.

    Parameters
    ----------
    design : ndarray, shape (M, n)
        Rows are samples; rows must be contiguous (a slice of columns of a C-ordered array is fine).  Not
        copied.
    objective : Objective
        Losses as functions of the logits.
    ridge : float
        Strength > 0 of the L2 penalty.
    starts : sequence of (weights, bias)
        Guesses; the one with the lowest objective is used, zero included.
    fit_bias : bool
        Keep b at 0 if False.
    gradient_tolerance : float
        Relative gradient norm (see :class:`RidgeFit`) at which the fit counts as converged.

    Returns
    -------
    RidgeFit
        Always; ``converged`` tells whether the tolerance was met.
    """
    return _Newton(design, objective, ridge, fit_bias, gradient_tolerance).run(starts, max_iterations)


class _Newton:
    """State of one minimisation.  A point is a vector of n + 1 numbers, the bias last."""

    def __init__(self, design: Array, objective: Objective, ridge: float, fit_bias: bool, tolerance: float) -> None:
        self.design, self.objective, self.ridge = design, objective, ridge
        self.fit_bias, self.tolerance = fit_bias, tolerance
        self.samples, self.size = design.shape
        rows = design[:: max(1, self.samples // 64)]
        self.row_norm2 = float(np.einsum("ij,ij->", rows, rows)) / len(rows)
        self.dual = _DualFactors(design, ridge) if self.samples < self.size else None
        self.precision: type = np.float32
        self.factor: _PrimalFactor | _DualFactor | None = None
        self.products = self.factorisations = self.since_factor = 0

    def run(self, starts: Sequence[tuple[Array, float]], max_iterations: int) -> RidgeFit:
        point = self.best_start(starts)
        best, stalled, iteration, message = np.inf, 0, 0, ""
        while True:
            h = self.logits(point)
            slopes, curvatures = self.objective.derivatives(h)
            data_term = self.adjoint(slopes)
            gradient = data_term + self.ridge * self.weights_only(point)
            norm = float(np.linalg.norm(gradient))
            scale = float(np.linalg.norm(data_term[:-1]) + self.ridge * np.linalg.norm(point[:-1]))
            relative = norm / scale if scale > 0 else float(norm > 0)
            if not np.isfinite(relative):
                message = "the loss or its derivative is not finite"
            elif relative <= self.tolerance:
                message = f"converged: relative gradient norm {relative:.1e}"
            elif iteration >= max_iterations:
                message = f"relative gradient norm {relative:.1e} after {iteration} Newton steps"
            elif stalled >= STALL_STEPS:
                message = f"rounding stops the descent at a relative gradient norm of {relative:.1e}"
            if message:
                break
            step, step_logits = self.direction(gradient, np.maximum(curvatures, 0.0), relative)
            size = float(np.abs(self.objective.value(h)).sum()) + 0.5 * scale * float(np.linalg.norm(point[:-1]))
            promising = norm < 0.5 * best or -float(gradient @ step) > STALL_DECREMENT * size
            stalled = 0 if promising else stalled + 1
            best = min(best, norm)
            point = point + self.search(point, h, step, step_logits, gradient) * step
            iteration += 1
        return RidgeFit(
            weights=point[:-1].copy(),
            bias=float(point[-1]),
            logits=h,
            gradient_norm=norm,
            relative_gradient_norm=relative,
            iterations=iteration,
            products=self.products,
            factorisations=self.factorisations,
            converged=bool(relative <= self.tolerance),
            message=message,
        )

    def best_start(self, starts: Sequence[tuple[Array, float]]) -> Array:
        points = [np.zeros(self.size + 1)]
        points += [np.append(weights, bias if self.fit_bias else 0.0) for weights, bias in starts]
        return min(points, key=self.value) if starts else points[0]

    def value(self, point: Array) -> float:
        penalty = 0.5 * self.ridge * float(point[:-1] @ point[:-1])
        value = float(np.sum(self.objective.value(self.logits(point)))) + penalty
        return value if np.isfinite(value) else np.inf

    def logits(self, point: Array) -> Array:
        return self.design @ point[:-1] + point[-1]

    def adjoint(self, values: Array) -> Array:
        return np.append(values @ self.design, values.sum() if self.fit_bias else 0.0)

    def weights_only(self, point: Array) -> Array:
        return np.append(point[:-1], 0.0)

    def direction(self, gradient: Array, curvatures: Array, relative: float) -> tuple[Array, Array]:
        """Step p with ``H p = -gradient`` up to the forcing term, and its logits."""
        total = float(curvatures.sum())
        damping = BIAS_DAMPING * self.ridge
        diagonal = np.full(self.size + 1, self.ridge + total * self.row_norm2 / self.size)
        diagonal[-1] = total + damping
        budget = self.budget()
        if self.since_factor >= budget:
            self.factorise(curvatures)
            budget = self.budget()
        forcing = max(min(FORCING, np.sqrt(relative)), min(FORCING, 0.3 * self.tolerance / relative))
        target = forcing * np.linalg.norm(gradient)
        fresh = self.factor is not None and self.since_factor == 0
        step, step_logits = np.zeros(self.size + 1), np.zeros(self.samples)
        residual, search, moment, done = -gradient, None, 1.0, 0
        while True:
            preconditioned = residual / diagonal if self.factor is None else self.factor.solve(residual)
            if not self.fit_bias:
                preconditioned[-1] = 0.0
            new_moment = float(residual @ preconditioned)
            if not new_moment > 0:  # rounding made the preconditioner indefinite
                break
            search = preconditioned if search is None else preconditioned + new_moment / moment * search
            moment = new_moment
            search_logits = self.logits(search)
            product = self.adjoint(curvatures * search_logits) + self.ridge * self.weights_only(search)
            product[-1] += damping * search[-1]
            curvature = float(search @ product)
            if not curvature > 0:
                break
            length = moment / curvature
            step += length * search
            step_logits += length * search_logits
            residual = residual - length * product
            done += 1
            self.since_factor += 1
            if np.linalg.norm(residual) <= target or (done > 1 and self.since_factor >= budget):
                break
        self.products += done
        if done == 0:  # steepest descent, after which the factor is rebuilt
            step, self.since_factor = -gradient / diagonal, budget
            step_logits = self.logits(step)
        if fresh and (done == 0 or done > FRESH_PRODUCTS):
            self.precision = np.float64
        return step, step_logits

    def budget(self) -> float:
        """Products that cost as much as one factorisation."""
        small = min(self.size, self.samples)
        work = small**3 / 3
        if self.dual is None:
            work += self.samples * self.size**2
        elif self.dual.gram is None:
            work += self.samples**2 * self.size
        return max(MIN_PRODUCTS, FACTOR_COST * work / (4 * self.size * self.samples))

    def factorise(self, curvatures: Array) -> None:
        self.since_factor = 0
        self.factorisations += 1
        damping = BIAS_DAMPING * self.ridge
        try:
            if self.dual is not None:
                self.factor = self.dual.factor(curvatures, damping)
            else:
                # About (1 + sqrt(M/n))^2 is the largest eigenvalue per unit of curvature (Marchenko-Pastur).
                top = self.row_norm2 / self.size * (np.sqrt(self.size) + np.sqrt(self.samples)) ** 2
                kept = curvatures * (curvatures > NEGLIGIBLE_CURVATURE * self.ridge / top)
                self.factor = None
                self.factor = _PrimalFactor(self.design, kept, self.ridge, damping, self.precision)
        except LinAlgError:
            self.precision = np.float64
            self.factor = None

    def search(self, point: Array, h: Array, step: Array, step_logits: Array, gradient: Array) -> float:
        """Step length at which the objective has (nearly) no slope along ``step``: Newton in a bracket."""
        cross = self.ridge * float(point[:-1] @ step[:-1])
        square = self.ridge * float(step[:-1] @ step[:-1])
        start = abs(float(gradient @ step))
        length, low, high = 1.0, 0.0, np.inf
        for _ in range(MAX_SEARCH_STEPS):
            trial = h + length * step_logits
            slopes, curvatures = self.objective.derivatives(trial)
            slope = float(slopes @ step_logits) + cross + length * square
            if abs(slope) <= SEARCH_TOLERANCE * start:
                return length
            if slope < 0:
                low = length
            else:  # also where the loss overflows
                high = length
            curvature = float(curvatures @ step_logits**2) + square
            proposal = length - slope / curvature if curvature > 0 else np.nan
            if not low < proposal < high:
                proposal = 0.5 * (low + high) if np.isfinite(high) else 2.0 * length
            length = proposal
        return low if low > 0 else length


class _PrimalFactor:
    """Cholesky factor of the (n + 1) x (n + 1) Hessian."""

    def __init__(self, design: Array, curvatures: Array, ridge: float, damping: float, precision: type) -> None:
        size = design.shape[1]
        rows = np.flatnonzero(curvatures > 0)
        roots = np.sqrt(curvatures)
        hessian = np.zeros((size + 1, size + 1), dtype=precision)
        block = np.empty((_block_rows(size + 1, max(1, len(rows))), size + 1), dtype=precision)
        for first in range(0, len(rows), len(block)):
            chosen = rows[first : first + len(block)]
            scaled = block[: len(chosen)]
            _scale_rows(design, chosen, roots, scaled)
            for top, end in _panels(size + 1):
                hessian[top:end, :end] += scaled[:, top:end].T @ scaled[:, :end]
        del block
        diagonal = np.einsum("ii->i", hessian)
        diagonal[:-1] += ridge
        diagonal[-1] += damping
        if precision is np.float32:
            diagonal *= 1 + SINGLE_JITTER
        self.precision = precision
        self.factors = cho_factor(hessian.T, lower=False, overwrite_a=True, check_finite=False)

    def solve(self, vector: Array) -> Array:
        right = vector.astype(self.precision)
        norm = np.linalg.norm(vector)
        if self.precision is np.float32 and norm > 0:  # small vectors would underflow
            right = (vector / norm).astype(self.precision)
            return norm * cho_solve(self.factors, right, check_finite=False).astype(np.float64)
        return cho_solve(self.factors, right, check_finite=False)


class _DualFactors:
    """Factorisations in the M x M sample space; one array holds Gram matrix (above) and factor (below)."""

    def __init__(self, design: Array, ridge: float) -> None:
        self.design, self.ridge = design, ridge
        self.gram: Array | None = None
        self.gram_diagonal: Array | None = None

    def factor(self, curvatures: Array, damping: float) -> _DualFactor:
        if self.gram is None:
            self.gram = _gram(self.design)
            self.gram_diagonal = self.gram.diagonal().copy()
        roots = np.sqrt(curvatures)
        samples = len(roots)
        for first, last in _panels(samples):
            inside = self.gram[first:last, first:last]
            lower = np.triu(inside, 1).T * np.outer(roots[first:last], roots[first:last])
            inside[...] = np.triu(inside, 1) + lower
            below = self.gram[last:, first:last]
            np.multiply(self.gram[first:last, last:].T, roots[last:, None], out=below)
            below *= roots[first:last]
        np.einsum("ii->i", self.gram)[...] = curvatures * self.gram_diagonal + self.ridge
        # clean=0: only the lower triangle and the diagonal are touched.
        self.gram, failure = dpotrf(self.gram, lower=1, clean=0, overwrite_a=1)
        if failure:
            raise LinAlgError("the sample-space Hessian is not positive definite")
        return _DualFactor(self.design, self.ridge, damping, roots, self.gram)


class _DualFactor:
    """Inverse Hessian from a factor of ``S = ridge + R X X^T R``, ``R = sqrt(D)``, by Woodbury's identity.

    ``(X^T D X + ridge)^-1 = (1 - X^T R S^-1 R X)/ridge``; the bias follows from its Schur complement.
    """

    def __init__(self, design: Array, ridge: float, damping: float, roots: Array, lower: Array) -> None:
        self.design, self.ridge, self.roots, self.lower = design, ridge, roots, lower
        inner = roots * self.inner_solve(roots)
        self.coupling = inner @ design
        self.bias_curvature = ridge * float(inner.sum()) + damping

    def inner_solve(self, vector: Array) -> Array:
        return dpotrs(self.lower, vector, lower=1)[0]

    def solve(self, vector: Array) -> Array:
        weights, bias = vector[:-1], vector[-1]
        inner = self.roots * self.inner_solve(self.roots * (self.design @ weights))
        solved_bias = (bias - self.coupling @ weights) / self.bias_curvature
        solved = (weights - inner @ self.design) / self.ridge - solved_bias * self.coupling
        return np.append(solved, solved_bias)


def _gram(design: Array) -> Array:
    """Upper triangle of ``X X^T``, in Fortran order."""
    samples = len(design)
    gram = np.zeros((samples, samples))
    for top, end in _panels(samples):
        np.matmul(design[top:end], design[:end].T, out=gram[top:end, :end])
    return gram.T


def _panels(size: int) -> Iterator[tuple[int, int]]:
    """Rows of a lower triangle in groups: as fast as a symmetric update, without its scratch matrix."""
    for top in range(0, size, PANEL):
        yield top, min(top + PANEL, size)


def _scale_rows(design: Array, chosen: NDArray[np.intp], roots: Array, out: NDArray) -> None:
    """Rows ``sqrt(D) (x, 1)`` of the chosen samples."""
    contiguous = len(chosen) > 0 and chosen[-1] - chosen[0] + 1 == len(chosen)
    rows = design[chosen[0] : chosen[-1] + 1] if contiguous else design[chosen]
    np.multiply(rows, roots[chosen, None], out=out[:, :-1], casting="same_kind")
    out[:, -1] = roots[chosen]


def _block_rows(width: int, length: int) -> int:
    """Rows of a block that stays below the memory allowance but is long enough for full speed."""
    return max(1, min(length, max(256, BLOCK_BYTES // (8 * width))))
