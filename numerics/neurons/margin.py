"""The class margin of the limiting ReLU kernel of a data set, between bounds.

A network of infinite width that stays close to its start is f(x) = E_z <v(z), x> 1(z.x > 0), z a standard normal vector.  The
margin is

    gamma = max over |v(z)| <= 1 of min_i y_i f(x_i) = min over q of E_z |g_q(z)|,   g_q(z) = sum_i q_i y_i x_i 1(z.x_i > 0),

q >= 0 and sum q = 1.  With the mean square of v bounded in place of its maximum, it is the margin of a kernel machine with the
kernel E_z x.x' 1(z.x > 0) 1(z.x' > 0) = x.x' (pi - angle)/(2 pi), never smaller than gamma.

From above: E_z |g_q(z)| at any q.  From below: v = g_q/max(|g_q|, t), the maximiser of the kernel machine clipped to the ball,
which is defined for all z.  Both are tightened by accelerated projected gradient on the smoothed dual (|g| below t replaced by
|g|^2/(2t) + t/2), z drawn; the margin over drawn directions is on average below gamma, whatever their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls
from scipy.stats import norm, qmc

from numerics.models import ParameterError

DIRECTIONS = 1024
"""Directions z of one drawn problem, a power of 2."""

REPLICATES = 4
"""Independently drawn problems."""

STEPS = (100, 200, 300, 300)
"""Steps of projected gradient at each of :data:`THRESHOLDS`."""

THRESHOLDS = (1.0, 0.3, 0.1, 0.03)
"""Thresholds t of the smoothed dual, in units of the kernel margin, one after the other."""

SMALL_GAP = 2e-3
"""Duality gap of a drawn problem, relative to its margin, that needs no smaller threshold."""

FRESH = 2**15
"""Directions on which a bound for the limiting kernel is evaluated, for each replicate."""

_NEGLIGIBLE = 1e-7  # a kernel margin in units of the longest input: two inputs on a ray, with different labels
_NEAREST = 1e-12  # to 0 and 1, of what becomes normal


@dataclass(frozen=True)
class Margin:
    """Bounds on the margin, and a network that attains the lower one.

    Attributes
    ----------
    kernel : float
        Margin of the kernel machine, an upper bound.
    upper, upper_error : float
        E_z |g_q(z)| at the best q found, and its standard error.
    lower, lower_error : float
        Mean of the margins over drawn directions, and its standard error.
    clipped, clipped_error : float
        Margin of the clipped maximiser, another lower bound, which needs no drawn directions.
    duality_gap : float
        Of the drawn problems, solved; what is left between ``lower`` and ``upper`` is chance and the number of directions.
    weights : array, shape (n,)
        q.
    logits : array, shape (n,)
        f(x_i) of a network in the ball, of all drawn directions; y f >= about ``lower``.
    """

    kernel: float
    upper: float
    upper_error: float
    lower: float
    lower_error: float
    clipped: float
    clipped_error: float
    duality_gap: float
    weights: np.ndarray
    logits: np.ndarray


def limiting_kernel(X: np.ndarray) -> np.ndarray:
    """x.x' (pi - angle(x, x'))/(2 pi), shape (n, n), for inputs of shape (n, d); the half where two ReLUs are both active.

    Examples
    --------
    >>> limiting_kernel(np.array([[1.0, 0.0], [0.0, 2.0]]))
    array([[0.5, 0. ],
           [0. , 2. ]])
    """
    lengths = np.linalg.norm(X, axis=1)
    gram = X @ X.T
    angle = np.arccos(np.clip(gram / np.outer(lengths, lengths), -1.0, 1.0))
    np.fill_diagonal(angle, 0.0)
    return gram * (np.pi - angle) / (2.0 * np.pi)


def kernel_margin(kernel: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Margin of the hard-margin kernel machine, and its weights q on the simplex: the square root of min q'(y K y)q.

    The least norm in a convex hull is a non-negative least-squares problem: min |A u|^2 + s^2 (sum u - 1)^2 over u >= 0 has its
    minimum along the same q = u/sum(u) for any s, because it is s^2 r^2/(s^2 + r^2) at the best length, r = |A q|.
    """
    signed = kernel * np.outer(y, y)
    values, vectors = np.linalg.eigh(signed)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    scale = float(np.sqrt(signed.diagonal().max()))
    system = np.vstack([root, np.full(len(y), scale)])
    found, _ = nnls(system, np.append(np.zeros(len(y)), scale), maxiter=100 * len(y))
    weights = found / found.sum()
    return float(np.sqrt(max(weights @ signed @ weights, 0.0))), weights


def margin(
    X: ArrayLike,
    y: ArrayLike,
    *,
    directions: int = DIRECTIONS,
    replicates: int = REPLICATES,
    fresh: int = FRESH,
    seed: int = 0,
) -> Margin:
    """Bracket the margin of a data set.

    Parameters
    ----------
    X : array_like, shape (n, d)
        Inputs; none may be 0.
    y : array_like, shape (n,)
        Labels, -1 and 1.
    directions, replicates, fresh, seed : int
        As :data:`DIRECTIONS`, :data:`REPLICATES` (at least 2), :data:`FRESH`; seed of the directions, which are scrambled Sobol
        points.

    Raises
    ------
    ParameterError
        If shapes or labels are wrong, an input is 0, or two inputs on one ray have different labels (the margin is 0).

    Examples
    --------
    One input of length 1: half of all directions see it.

    >>> found = margin([[1.0, 0.0]], [1])
    >>> round(found.kernel, 4), round(found.lower, 3), round(found.upper, 3)
    (0.7071, 0.5, 0.5)
    """
    X, y = _checked(X, y)
    if replicates < 2:
        raise ParameterError(f"replicates must be at least 2, got {replicates!r}")
    machine, start = kernel_margin(limiting_kernel(X), y)
    if machine < _NEGLIGIBLE * np.linalg.norm(X, axis=1).max():
        raise ParameterError("y must not differ between inputs on one ray: the margin is 0")
    seeds = np.random.SeedSequence(seed).generate_state(2 * replicates)
    weights, logits, lower, gaps = [], [], [], []
    for number in seeds[:replicates]:
        problem = _Drawn(X, y, sobol_directions(X.shape[1], directions, int(number)))
        q, f, gap = problem.solve(start, machine)
        weights.append(q)
        logits.append(f)
        lower.append((y * f).min())
        gaps.append(gap)
    q = np.mean(weights, axis=0)
    upper, clipped = [], []
    for number in seeds[replicates:]:
        problem = _Drawn(X, y, sobol_directions(X.shape[1], fresh, int(number)))
        upper.append(problem.evaluate(q, machine)[0])
        clipped.append([y * problem.evaluate(p, t * machine)[1] for p in (start, q) for t in (1.0, 0.5)])
    best, best_error = _best_clipped(np.array(clipped))
    return Margin(
        machine, *_mean(upper), *_mean(lower), best, best_error, float(np.mean(gaps)), q, np.mean(logits, axis=0)
    )  # fmt: skip


def _mean(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _best_clipped(margins: np.ndarray) -> tuple[float, float]:
    """Largest least margin of some networks, and its standard error; ``margins`` has shape (replicates, networks, n)."""
    mean = margins.mean(axis=0)
    network = int(mean.min(axis=1).argmax())
    return _mean(list(margins[:, network, mean[network].argmin()]))


def _checked(X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    X, y = np.asarray(X, dtype=float), np.asarray(y, dtype=float)
    if X.ndim != 2 or y.shape != X.shape[:1] or not len(y):
        raise ParameterError(f"X must have shape (n, d) and y (n,), got {X.shape} and {y.shape}")
    if not np.all(np.isfinite(X)) or not np.all(np.any(X != 0, axis=1)):
        raise ParameterError("X must be finite, and no input 0")
    if not np.all(np.abs(y) == 1):
        raise ParameterError("y must be -1 or 1")
    return X, y


def sobol_directions(d: int, count: int, seed: int) -> np.ndarray:
    """Standard normal vectors, shape (count, d), from scrambled Sobol points; each alone is exactly normal."""
    points = qmc.Sobol(d, seed=seed).random(count)
    return norm.ppf(np.clip(points, _NEAREST, 1.0 - _NEAREST))


def project_to_simplex(u: np.ndarray) -> np.ndarray:
    """Nearest q >= 0 with sum 1."""
    descending = np.sort(u)[::-1]
    excess = (np.cumsum(descending) - 1.0) / np.arange(1, len(u) + 1)
    return np.maximum(u - excess[np.flatnonzero(descending > excess)[-1]], 0.0)


class _Drawn:
    """The problem over drawn directions, shape (s, d)."""

    def __init__(self, X: np.ndarray, y: np.ndarray, directions: np.ndarray) -> None:
        self.X, self.y = X, y
        self.active = (directions @ X.T > 0).astype(float)  # (s, n)

    def fields(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """g_q(z), shape (s, d), and its lengths."""
        g = self.active @ (self.X * (q * self.y)[:, None])
        return g, np.linalg.norm(g, axis=1)

    def evaluate(self, q: np.ndarray, threshold: float) -> tuple[float, np.ndarray]:
        """Mean length of g_q, and f(x_i) of the network g_q/max(|g_q|, t)."""
        g, length = self.fields(q)
        network = g / np.maximum(length, threshold)[:, None]
        return float(length.mean()), np.einsum("sn,sn->n", self.active, network @ self.X.T) / len(g)

    def solve(self, q: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Weights from ``q`` on, f(x_i) and the duality gap; thresholds are in units of the kernel margin ``unit``."""
        for threshold, steps in zip(THRESHOLDS, STEPS, strict=True):
            q = self.tighten(q, threshold * unit, steps)
            mean_length, f = self.evaluate(q, threshold * unit)
            gap = mean_length - float((self.y * f).min())
            if gap < SMALL_GAP * mean_length:
                break
        return q, f, gap

    def tighten(self, q: np.ndarray, threshold: float, steps: int) -> np.ndarray:
        """Accelerated projected gradient on the smoothed dual, begun anew where it overshoots (O'Donoghue and Candes, 2015)."""
        drawn_kernel = self.X @ self.X.T * (self.active.T @ self.active) / len(self.active) * np.outer(self.y, self.y)
        rate = threshold / np.linalg.eigvalsh(drawn_kernel)[-1]  # one over the largest curvature
        ahead, momentum = q, 1.0
        for _ in range(steps):
            gradient = self.y * self.evaluate(ahead, threshold)[1]
            following = project_to_simplex(ahead - rate * gradient)
            if (ahead - following) @ (following - q) > 0:
                momentum = 1.0
            next_momentum = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
            ahead = following + (momentum - 1.0) / next_momentum * (following - q)
            q, momentum = following, next_momentum
        return q
