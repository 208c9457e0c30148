"""Minimisation of ``sum_mu l(h_mu) + (ridge/2)|w|^2``, ``h = X w + b``, for smooth convex losses.

Truncated Newton: each step solves ``H p = -g`` by preconditioned conjugate gradients, with ``H = X^T D X +
ridge`` bordered by the bias.  Products with H cost two passes over X, so well-conditioned fits never form H.
When the products spent since the last factorisation have cost as much as a factorisation would, H is
factorised at the current point, in the smaller of the two dimensions (weights or samples), and serves as
preconditioner until it has aged by the same rule.  So the time is within a small factor of the better of the
two pure methods, whichever that is.  Factors are kept as triangles, which keeps the memory below twice that of
X.  The step length comes from a one-dimensional Newton search along p,
which needs no pass over X; steps longer than 1 are what makes separable data quick.

Usually the wrong choice for non-smooth losses, or where a few digits are enough and X does not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, lapack

Array = NDArray[np.float64]

MAX_NEWTON_STEPS = 500
MAX_SEARCH_STEPS = 100
STALL_STEPS = 8
STALL_DECREMENT = 1e-12
"""Rounding is taken to be the limit after STALL_STEPS steps that neither halve the gradient nor promise more
than this fraction of the objective."""

CERTAIN_STEP = 0.1
"""Size of a last Newton step, in units of the tolerance on the weights, that shows the fit converged where rounding keeps the
gradient from saying so."""

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

GRAM_LIMIT = 0.7
"""Samples per weight up to which the Gram matrix is kept beside the factor; beyond, it is computed anew each time."""

BLOCK_BYTES = 2**23
BLOCK_SHARE = 8
"""A block of scaled samples takes at most BLOCK_BYTES, and no more rows than this fraction of the samples."""

SHORTEST_BLOCK = 128
GATHERED = 64
"""Rows taken at a time from a design whose needed rows are not neighbours."""

PANEL = 128


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
        w of shape (n,), b, and h = X w + b of shape (M,).  Of d logits a sample (:mod:`numerics.simulation.softmax_fit`) (n, d),
        (d,) and (M, d).
    gradient_norm
        Euclidean norm of the gradient over weights and bias together.
    relative_gradient_norm
        The same over ``|X^T l'| + ridge |w|``, the two terms that cancel at the optimum.  By strong convexity
        the relative error of w is at most about twice this number (for a given bias).  Where the loss bends much more than the
        penalty, as for data that are not separable at a tiny ridge, rounding keeps it above 1e-8 although w is exact to
        many more digits; there the size of the Newton step decides.
    iterations, products, factorisations
        Newton steps, products with the Hessian, Cholesky factorisations.
    converged, message
        Whether the tolerance was met, and what happened in words.
    broken
        Samples whose loss, or a derivative of it, was not finite where the descent had to stop: empty if there are none.
        Weights, bias and logits then are those of the step before, if there was one.
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
    broken: tuple[int, ...]


def minimise_ridge(
    design: Array,
    objective: Objective,
    ridge: float,
    *,
    starts: Sequence[tuple[Array, float]] = (),
    bias: float | None = None,
    gradient_tolerance: float = 1e-8,
    max_iterations: int = MAX_NEWTON_STEPS,
) -> RidgeFit:
    """Fit weights, and an unregularised bias unless it is given.

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
    bias : float or None
        Value to keep b at; None to fit it.
    gradient_tolerance : float
        Relative gradient norm (see :class:`RidgeFit`) at which the fit counts as converged.

    Returns
    -------
    RidgeFit
        Always; ``converged`` tells whether the tolerance was met.
    """
    return RidgeNewton(design, objective, ridge, bias, gradient_tolerance).run(starts, max_iterations)


class RidgeNewton:
    """State of one minimisation.  A point is a vector of n + 1 numbers, the bias last."""

    biases = 1
    """Numbers at the end of a point that are not regularised."""

    axes = 1
    """Of an array of logits."""

    def __init__(self, design: Array, objective: Objective, ridge: float, bias: float | None, tolerance: float) -> None:
        self.design, self.objective, self.ridge = design, objective, ridge
        self.bias, self.fit_bias, self.tolerance = bias, bias is None, tolerance
        self.samples, self.size = design.shape
        rows = design[:: max(1, self.samples // 64)]
        self.row_norm2 = float(np.einsum("ij,ij->", rows, rows)) / len(rows)
        self.dual = _DualFactors(design, ridge) if self.samples < self.size else None
        self.precision: type = np.float32
        self.factor: _PrimalFactor | _DualFactor | None = None
        self.products = self.factorisations = self.since_factor = 0

    def run(self, starts: Sequence[tuple[Array, float]], max_iterations: int) -> RidgeFit:
        point = before = self.best_start(starts)
        best, stalled, iteration, message = np.inf, 0, 0, ""
        step_size = np.inf
        converged = False
        broken: tuple[int, ...] = ()
        norm = relative = np.inf
        h = self.logits(point)
        while True:
            trial_logits = self.logits(point)
            with np.errstate(all="ignore"):
                values = self.objective.value(trial_logits)
                slopes, curvatures = self.objective.derivatives(trial_logits)
            finite = np.isfinite(values)
            for found in (slopes, curvatures):
                finite &= np.isfinite(found.reshape(self.samples, -1)).all(axis=1)
            if not finite.all():
                broken = tuple(np.flatnonzero(~finite).tolist())
                message = f"the loss or a derivative is not finite on {len(broken)} of {self.samples} samples"
                point = before
                norm = relative = np.inf
                break
            h = trial_logits
            data_term = self.adjoint(slopes)
            gradient = data_term + self.ridge * self.weights_only(point)
            norm = float(np.linalg.norm(gradient))
            scale = float(np.linalg.norm(self.head(data_term)) + self.ridge * np.linalg.norm(self.head(point)))
            relative = norm / scale if scale > 0 else float(norm > 0)
            if not np.isfinite(relative):
                message = "the gradient of the loss is beyond the range of floats"
            elif relative <= self.tolerance:
                converged, message = True, f"converged: relative gradient norm {relative:.1e}"
            elif iteration >= max_iterations:
                message = f"relative gradient norm {relative:.1e} after {iteration} Newton steps"
            elif stalled >= STALL_STEPS and step_size <= CERTAIN_STEP * self.tolerance:
                converged = True
                message = (
                    f"converged: Newton's last steps were {step_size:.1e} of the weights; rounding limits the gradient"
                )
            elif stalled >= STALL_STEPS:
                message = f"rounding stops the descent at a relative gradient norm of {relative:.1e}"
            if message:
                break
            step, step_logits = self.direction(gradient, self.convex(curvatures), relative)
            size = float(np.abs(values).sum()) + 0.5 * scale * float(np.linalg.norm(self.head(point)))
            promising = norm < 0.5 * best or -float(gradient @ step) > STALL_DECREMENT * size
            stalled = 0 if promising else stalled + 1
            best = min(best, norm)
            length = float(np.linalg.norm(point))
            relative_step = float(np.linalg.norm(step)) / length if length > 0 else np.inf
            step_size = max(step_size, relative_step) if stalled > 1 else relative_step
            before = point
            point = point + self.search(point, h, step, step_logits, gradient) * step
            iteration += 1
        return RidgeFit(
            **self.parts(point),
            logits=h,
            gradient_norm=norm,
            relative_gradient_norm=relative,
            iterations=iteration,
            products=self.products,
            factorisations=self.factorisations,
            converged=converged,
            message=message,
            broken=broken,
        )

    def best_start(self, starts: Sequence[tuple[Array, float]]) -> Array:
        points = [np.append(weights, bias) for weights, bias in [(self.zero(), np.zeros(self.biases)), *starts]]
        if self.bias is not None:
            for point in points:
                point[-self.biases :] = self.bias
        return min(points, key=self.value) if starts else points[0]

    def value(self, point: Array) -> float:
        weights = self.head(point)
        penalty = 0.5 * self.ridge * float(weights @ weights)
        value = float(np.sum(self.objective.value(self.logits(point)))) + penalty
        return value if np.isfinite(value) else np.inf

    def zero(self) -> Array:
        """Weights that vanish."""
        return np.zeros(self.size)

    def head(self, point: Array) -> Array:
        """What is regularised."""
        return point[: len(point) - self.biases]

    def parts(self, point: Array) -> dict[str, Array | float]:
        return {"weights": point[:-1].copy(), "bias": float(point[-1])}

    def logits(self, point: Array) -> Array:
        return self.design @ point[:-1] + point[-1]

    def adjoint(self, values: Array) -> Array:
        return np.append(values @ self.design, values.sum() if self.fit_bias else 0.0)

    def convex(self, curvatures: Array) -> Array:
        """Curvatures without rounding below 0."""
        return np.maximum(curvatures, 0.0)

    def bend(self, curvatures: Array, logits: Array) -> Array:
        """Change of the slopes with the logits."""
        return curvatures * logits

    def diagonal(self, curvatures: Array) -> Array:
        """About that of the Hessian."""
        total = float(curvatures.sum())
        found = np.full(self.size + 1, self.ridge + total * self.row_norm2 / self.size)
        found[-1] = total + BIAS_DAMPING * self.ridge
        return found

    def weights_only(self, point: Array) -> Array:
        return np.concatenate((self.head(point), np.zeros(self.biases)))

    def direction(self, gradient: Array, curvatures: Array, relative: float) -> tuple[Array, Array]:
        """Step p with ``H p = -gradient`` up to the forcing term, and its logits."""
        damping = BIAS_DAMPING * self.ridge
        diagonal = self.diagonal(curvatures)
        budget = self.budget()
        if self.since_factor >= budget:
            self.factorise(curvatures)
            budget = self.budget()
        forcing = max(min(FORCING, np.sqrt(relative)), min(FORCING, 0.3 * self.tolerance / relative))
        target = forcing * np.linalg.norm(gradient)
        fresh = self.factor is not None and self.since_factor == 0
        step, step_logits = np.zeros_like(gradient), np.zeros(curvatures.shape[: self.axes])
        residual, search, moment, done = -gradient, None, 1.0, 0
        while True:
            preconditioned = residual / diagonal if self.factor is None else self.factor.solve(residual)
            if not self.fit_bias:
                preconditioned[-self.biases :] = 0.0
            new_moment = float(residual @ preconditioned)
            if not new_moment > 0:  # rounding made the preconditioner indefinite
                break
            search = preconditioned if search is None else preconditioned + new_moment / moment * search
            moment = new_moment
            search_logits = self.logits(search)
            product = self.adjoint(self.bend(curvatures, search_logits)) + self.ridge * self.weights_only(search)
            product[-self.biases :] += damping * search[-self.biases :]
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
        elif self.dual.must_multiply:
            work += self.samples**2 * self.size
        return max(MIN_PRODUCTS, FACTOR_COST * work / (4 * self.size * self.samples))

    def factorise(self, curvatures: Array) -> None:
        self.since_factor = 0
        self.factorisations += 1
        damping = BIAS_DAMPING * self.ridge
        try:
            self.factor = None  # its memory is free before the next is made
            if self.dual is not None:
                self.factor = self.dual.factor(curvatures, damping)
            else:
                # About (1 + sqrt(M/n))^2 is the largest eigenvalue per unit of curvature (Marchenko-Pastur).
                top = self.row_norm2 / self.size * (np.sqrt(self.size) + np.sqrt(self.samples)) ** 2
                kept = curvatures * (curvatures > NEGLIGIBLE_CURVATURE * self.ridge / top)
                self.factor = _PrimalFactor(self.design, kept, self.ridge, damping, self.precision)
        except LinAlgError:
            self.precision = np.float64
            self.factor = None

    def search(self, point: Array, h: Array, step: Array, step_logits: Array, gradient: Array) -> float:
        """Step length at which the objective has (nearly) no slope along ``step``: Newton in a bracket."""
        cross = self.ridge * float(self.head(point) @ self.head(step))
        square = self.ridge * float(self.head(step) @ self.head(step))
        start = abs(float(gradient @ step))
        length, low, high = 1.0, 0.0, np.inf
        for _ in range(MAX_SEARCH_STEPS):
            trial = h + length * step_logits
            slopes, curvatures = self.objective.derivatives(trial)
            slope = float(np.vdot(slopes, step_logits)) + cross + length * square
            if abs(slope) <= SEARCH_TOLERANCE * start:
                return length
            if slope < 0:
                low = length
            else:  # also where the loss overflows
                high = length
            curvature = float(np.vdot(step_logits, self.bend(curvatures, step_logits))) + square
            proposal = length - slope / curvature if curvature > 0 else np.nan
            if not low < proposal < high:
                proposal = 0.5 * (low + high) if np.isfinite(high) else 2.0 * length
            length = proposal
        return low if low > 0 else length


class _Packed:
    """A symmetric positive definite n x n matrix in LAPACK's rectangular full packed format, and its Cholesky factor.

    Half the memory of a square array and nearly the speed: the left half of the lower triangle, and the right half turned by a
    transposition into the corner that is left, fill a rectangle (Gustavson et al. 2010, ACM Trans. Math. Softw. 37, 18).
    """

    def __init__(self, size: int, precision: type) -> None:
        self.size = size
        self.numbers = np.zeros(size * (size + 1) // 2, dtype=precision)
        half, even = (size + 1) // 2, 1 - size % 2
        rectangle = self.numbers.reshape(half, size + even)
        self.half = half
        self.left = rectangle[:, even:]  # left[j, i] = A[i, j] for i >= j, j < half
        self.right = rectangle[1 - even :]  # right[i, j] = A[half + i, half + j] for i >= j

    def panels(self) -> Iterator[tuple[NDArray, slice, slice, NDArray | None]]:
        """Parts of the triangle: where each is kept, its rows and columns, and the mask of what belongs to it (None: all)."""
        size, half = self.size, self.half
        for top in range(0, half, PANEL):
            end = min(top + PANEL, half)
            rows = slice(top, end)
            yield self.left[rows, rows], rows, rows, np.tri(end - top, dtype=self.numbers.dtype).T
            yield self.left[rows, end:size], rows, slice(end, size), None
        for top in range(0, size - half, PANEL):
            end = min(top + PANEL, size - half)
            rows, places = slice(top, end), slice(half + top, half + end)
            if top:
                yield self.right[rows, :top], places, slice(half, half + top), None
            yield self.right[rows, rows], places, places, np.tri(end - top, dtype=self.numbers.dtype)

    def add(self, product: Callable[[slice, slice], NDArray]) -> None:
        """Add a matrix, of which ``product`` gives the part with these rows and columns."""
        for place, rows, columns, mask in self.panels():
            part = product(rows, columns)
            place += part if mask is None else part * mask

    def scale(self, factors: Array) -> None:
        """``A_ij`` becomes ``factors_i A_ij factors_j``."""
        for place, rows, columns, mask in self.panels():
            if mask is None:
                place *= factors[rows, None]
                place *= factors[columns]
            else:
                place *= np.where(mask, np.outer(factors[rows], factors[columns]), 1)

    def diagonal(self) -> tuple[NDArray, NDArray]:
        """Views of the diagonal, in two parts."""
        return np.einsum("ii->i", self.left[:, : self.half]), np.einsum(
            "ii->i", self.right[: self.size - self.half, : self.size - self.half]
        )

    def shift_diagonal(self, shift: Array | float) -> None:
        values = np.broadcast_to(shift, self.size)
        first, second = self.diagonal()
        first += values[: self.half]
        second += values[self.half :]

    def factorise(self) -> None:
        """Replace the matrix by its factor; LinAlgError if it is not positive definite."""
        factorise = lapack.spftrf if self.numbers.dtype == np.float32 else lapack.dpftrf
        self.numbers, failure = factorise(self.size, self.numbers, uplo="L", overwrite_a=1)
        del self.left, self.right
        if failure:
            raise LinAlgError("a Hessian is not positive definite")

    def solve(self, vector: NDArray) -> NDArray:
        """Solution x of ``A x = vector``, once factorised."""
        solve = lapack.spftrs if self.numbers.dtype == np.float32 else lapack.dpftrs
        return solve(self.size, self.numbers, vector[:, None], uplo="L")[0][:, 0]


class _PrimalFactor:
    """Cholesky factor of the (n + 1) x (n + 1) Hessian."""

    def __init__(self, design: Array, curvatures: Array, ridge: float, damping: float, precision: type) -> None:
        size = design.shape[1] + 1
        rows = np.flatnonzero(curvatures > 0)
        roots = np.sqrt(curvatures)
        self.hessian = _Packed(size, precision)
        block = np.empty((_block_rows(size, len(rows)), size), dtype=precision)
        for first in range(0, len(rows), len(block)):
            chosen = rows[first : first + len(block)]
            scaled = block[: len(chosen)]
            _scale_rows(design, chosen, roots, scaled)
            self.hessian.add(lambda left, right, scaled=scaled: scaled[:, left].T @ scaled[:, right])
        del block
        self.hessian.shift_diagonal(np.append(np.full(size - 1, ridge), damping))
        if precision is np.float32:
            for part in self.hessian.diagonal():
                part *= 1 + SINGLE_JITTER
        self.precision = precision
        self.hessian.factorise()

    def solve(self, vector: Array) -> Array:
        norm = np.linalg.norm(vector)
        if self.precision is np.float32 and norm > 0:  # small vectors would underflow
            return norm * self.hessian.solve((vector / norm).astype(self.precision)).astype(np.float64)
        return self.hessian.solve(vector.astype(self.precision))


class _DualFactors:
    """Factorisations in the M x M sample space; the Gram matrix is kept where that costs little memory."""

    def __init__(self, design: Array, ridge: float) -> None:
        self.design, self.ridge = design, ridge
        samples, size = design.shape
        self.keep = samples <= GRAM_LIMIT * size
        self.gram: _Packed | None = None

    @property
    def must_multiply(self) -> bool:
        """Whether the next factorisation takes products of samples."""
        return self.gram is None

    def factor(self, curvatures: Array, damping: float) -> _DualFactor:
        if self.keep and self.gram is None:
            self.gram = _Packed(len(self.design), np.float64)
            self.gram.add(self.product)
        inner = _Packed(len(self.design), np.float64)
        if self.keep:
            inner.numbers[...] = self.gram.numbers
        else:
            inner.add(self.product)
        roots = np.sqrt(curvatures)
        inner.scale(roots)
        inner.shift_diagonal(self.ridge)
        inner.factorise()
        return _DualFactor(self.design, self.ridge, damping, roots, inner)

    def product(self, left: slice, right: slice) -> Array:
        return self.design[left] @ self.design[right].T


class _DualFactor:
    """Inverse Hessian from a factor of ``S = ridge + R X X^T R``, ``R = sqrt(D)``, by Woodbury's identity.

    ``(X^T D X + ridge)^-1 = (1 - X^T R S^-1 R X)/ridge``; the bias follows from its Schur complement.
    """

    def __init__(self, design: Array, ridge: float, damping: float, roots: Array, inner: _Packed) -> None:
        self.design, self.ridge, self.roots, self.inner = design, ridge, roots, inner
        solved = roots * inner.solve(roots)
        self.coupling = solved @ design
        self.bias_curvature = ridge * float(solved.sum()) + damping

    def solve(self, vector: Array) -> Array:
        weights, bias = vector[:-1], vector[-1]
        inner = self.roots * self.inner.solve(self.roots * (self.design @ weights))
        solved_bias = (bias - self.coupling @ weights) / self.bias_curvature
        solved = (weights - inner @ self.design) / self.ridge - solved_bias * self.coupling
        return np.append(solved, solved_bias)


def _scale_rows(design: Array, chosen: NDArray[np.intp], roots: Array, out: NDArray) -> None:
    """Rows ``sqrt(D) (x, 1)`` of the chosen samples."""
    if len(chosen) and chosen[-1] - chosen[0] + 1 == len(chosen):
        rows = design[chosen[0] : chosen[-1] + 1]
        np.multiply(rows, roots[chosen, None], out=out[:, :-1], casting="same_kind")
    else:
        for first in range(0, len(chosen), GATHERED):
            few = chosen[first : first + GATHERED]
            np.multiply(design[few], roots[few, None], out=out[first : first + GATHERED, :-1], casting="same_kind")
    out[:, -1] = roots[chosen]


def _block_rows(width: int, length: int) -> int:
    """Rows of a block that takes little memory beside the design, but is long enough for full speed."""
    return max(1, min(length, max(SHORTEST_BLOCK, min(length // BLOCK_SHARE, BLOCK_BYTES // (8 * width)))))
