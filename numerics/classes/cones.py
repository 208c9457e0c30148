"""How far Gaussian logits of a class are from the cone in which that class wins, on average.

The logits u in R^d, d = G-1, of samples with the label g are right if u lies in the cone ``{n_k.u >= 0 for all k != g}``.  For
``u = mean + L z``, z standard normal, and a metric W, the nearest point of the cone is u + r, with the force ``f = W r`` in the
cone that the normals span: ``f = sum_k lambda_k n_k``, ``lambda >= 0``.  What is averaged are f, f z^T and f f^T.

Both cone and distance are homogeneous: in ``z = rho e - L^(-1) mean``, e a unit vector, the force is ``rho f(L e)``, and the
integral over rho is known.  What is left is an integral over directions e, in one dimension less:

- d = 1: nothing is left;
- d = 2: an angle, between the rays at which the face of the cone changes (Gauss-Legendre, exact up to rounding);
- d > 2: a sphere S^(d-1), on which scrambled Sobol points are spread evenly, so that the error can be told from other scrambles.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from numerics.codegen.cache import njit
from numerics.deferred import special

Array = NDArray[np.float64]

ANGLE_NODES = 24
"""Gauss-Legendre nodes of a panel of angles."""

PANEL_WIDTH = 1.5
"""Width of a panel, over 1 + |L^(-1) mean|: the density of the angle varies over 1/|L^(-1) mean|."""

SHORTEST_PANEL = 1e-4
"""Panels get no shorter: where classes are so far apart, the average is not resolved, and its estimated error says so."""

ATTEMPTS = 3
"""Exchanges of all wrong faces at once that may fail to make them fewer before they are exchanged one by one."""


class Forces(NamedTuple):
    """Averages over the samples of one label: f, shape (d,), f z^T and f f^T, shape (d, d)."""

    mean: Array
    with_field: Array
    square: Array


class Directions(Protocol):
    """A rule for averages over directions."""

    def forces(self, mean: Array, factor: Array, response: Array, normals: Array) -> Forces:
        """Averages of u = mean + factor z, in the metric ``response^(-1)``; normals of the cone are columns, shape (d, d)."""


def normals_of(basis: Array) -> list[Array]:
    """Normals of the cones of all labels, columns of shape (d, d), in a basis of logits with ``h = basis.T @ u``, (d, G)."""
    groups = basis.shape[1]
    return [basis[:, [g]] - np.delete(basis, g, axis=1) for g in range(groups)]


class Line:
    """d = 1: truncated moments of a normal law."""

    def forces(self, mean: Array, factor: Array, response: Array, normals: Array) -> Forces:
        side = 1.0 if normals[0, 0] > 0 else -1.0
        width = abs(factor[0, 0])
        t = side * mean[0] / width
        density, tail = math.exp(-0.5 * t * t) / math.sqrt(2 * math.pi), float(special.ndtr(-t))
        first = side * width * (density - t * tail)
        square = width**2 * ((1 + t * t) * tail - t * density)
        v = response[0, 0]
        return Forces(np.array([first / v]), np.array([[-factor[0, 0] * tail / v]]), np.array([[square / v**2]]))


class Circle:
    """d = 2: an angle.  ``fineness`` multiplies the number of panels."""

    def __init__(self, fineness: int = 1) -> None:
        self.fineness = fineness
        self._nodes, self._weights = np.polynomial.legendre.leggauss(ANGLE_NODES)

    def forces(self, mean: Array, factor: Array, response: Array, normals: Array) -> Forces:
        shift = np.linalg.solve(factor, mean)
        root = np.linalg.cholesky(response)
        unit = root.T @ normals  # u = root x makes the metric that of x.x
        unit = unit / np.linalg.norm(unit, axis=0)
        to_x = np.linalg.solve(root, factor)
        first, second = unit[:, 0], unit[:, 1]
        edges = [_along(first, second), _along(second, first)]
        # Between these rays the nearest point is on the first edge, at the apex, on the second edge.
        rays = np.linalg.solve(to_x, np.array([edges[0], -first, -second, edges[1]]).T)
        angles = np.arctan2(rays[1], rays[0])
        projections = [-np.outer(first, first), -np.eye(2), -np.outer(second, second)]
        panel = max(PANEL_WIDTH / (1 + math.hypot(*shift)), SHORTEST_PANEL) / self.fineness
        by_first, by_field, square = np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2))
        for start, end, projection in zip(angles[:-1], angles[1:], projections, strict=True):
            width = (end - start + math.pi) % (2 * math.pi) - math.pi  # less than a half turn
            count = math.ceil(abs(width) / panel)
            half = 0.5 * width / max(count, 1)
            theta = (start + half * (2 * np.arange(count) + 1)[:, None] + half * self._nodes).ravel()
            weight = np.tile(abs(half) * self._weights, count)
            e = np.array([np.cos(theta), np.sin(theta)])
            i2, i3 = _radial(shift @ e, 3)[2:]
            scale = weight * np.exp(-0.5 * (shift[0] * e[1] - shift[1] * e[0]) ** 2) / (2 * math.pi)
            residual = projection @ to_x @ e
            by_first += residual @ (scale * i2)
            square += (residual * (scale * i3)) @ residual.T
            by_field += (residual * (scale * i3)) @ e.T
        to_force = np.linalg.inv(root).T
        by_field -= np.outer(by_first, shift)
        return Forces(to_force @ by_first, to_force @ by_field, to_force @ square @ to_force.T)


class Sphere:
    """d > 2: ``2**power`` scrambled Sobol points, mapped on the sphere so that areas stay in proportion."""

    def __init__(self, d: int, power: int, seed: int) -> None:
        from scipy.stats import qmc  # here: few need it, and it takes long to import

        points = qmc.Sobol(d - 1, rng=np.random.default_rng(seed)).random_base2(power)
        angle = 2 * math.pi * points[:, 0]
        e = np.column_stack((np.cos(angle), np.sin(angle)))
        for k in range(2, d):  # a coordinate of a point on S^k is 2 beta - 1
            height = 2 * special.betaincinv(0.5 * k, 0.5 * k, points[:, k - 1]) - 1
            e = np.column_stack((e * np.sqrt((1 - height) * (1 + height))[:, None], height))
        self.points = np.ascontiguousarray(e)

    def forces(self, mean: Array, factor: Array, response: Array, normals: Array) -> Forces:
        shift = np.linalg.solve(factor, mean)
        scales = np.ascontiguousarray(self.points @ (factor.T @ normals))
        dual = normals.T @ response @ normals
        by_first, by_field, square = _average(self.points, scales, dual, shift)
        by_field -= np.outer(by_first, shift)
        return Forces(normals @ by_first, normals @ by_field, normals @ square @ normals.T)


def symmetric_distance(classes: int, shift: float, fineness: float = 1.0) -> float:
    """E of the squared distance of ``shift e_1 + g`` to ``{h_1 >= h_k}``, g standard normal in R^K.

    The nearest point has h_1 and all h_k above t at one level t, ``h_1 + g_1 = t - A`` with ``A = sum_k (g_k - t)_+``, at the
    squared distance ``A^2 + B``, ``B = sum_k (g_k - t)_+^2``.  With t for the variable g_1, of Jacobian ``1 + #{g_k > t}``,

        E dist^2 = int dt E[(1 + #{g_k > t}) (A^2 + B) phi(t - A - shift)],

    and with phi written as a Fourier integral, the K-1 variables fall apart: what is needed are
    ``M_j(s, t) = int_0^infinity x^j phi(t + x) exp(-i s x) dx``, known by the Faddeeva function.  Trapezoidal rules in t and s
    converge exponentially; ``fineness`` multiplies their nodes.
    """
    n = classes - 1
    ds = 2 * math.pi / (30 + 16 * classes) / fineness
    dt = 0.08 / fineness
    s, t = np.meshgrid(np.arange(0.0, 9.0, ds), np.arange(-9.5, 9.5 + max(shift, 0.0), dt))
    z = t + 1j * s
    density = np.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
    m0 = density * math.sqrt(math.pi / 2) * special.wofz(1j * z / math.sqrt(2))
    m1 = density - z * m0
    m2 = m0 - z * m1
    below = special.ndtr(t) + m0
    total = 4 * n * m2 * below ** (n - 1)
    if n > 1:
        total += n * (n - 1) * (3 * m1**2 + 2 * m0 * m2) * below ** (n - 2)
    if n > 2:
        total += n * (n - 1) * (n - 2) * m0 * m1**2 * below ** (n - 3)
    kernel = np.exp(1j * s * (t - shift) - 0.5 * s * s)
    kernel[:, 0] *= 0.5
    return float(np.sum((kernel * total).real)) * dt * ds / math.pi


def _along(normal: Array, other: Array) -> Array:
    """The ray on which ``normal`` vanishes and ``other`` is positive."""
    ray = np.array([normal[1], -normal[0]])
    return ray if ray @ other > 0 else -ray


def _radial(t: Array, highest: int) -> list[Array]:
    """``int_0^infinity rho^k exp(-(rho - t)^2/2) d rho`` for k = 0, .., highest."""
    found = [math.sqrt(2 * math.pi) * special.ndtr(t)]
    found.append(t * found[0] + np.exp(-0.5 * t * t))
    for k in range(2, highest + 1):
        found.append(t * found[k - 1] + (k - 1) * found[k - 2])
    return found


@njit(cache=True, nogil=True)
def _average(points, scales, dual, shift):
    """Averages over directions of lambda, lambda e^T and lambda lambda^T, with the integral over the radius.

    ``scales`` are ``n_k.L e``; ``dual`` is ``N^T V N``, in which lambda minimises ``lambda.dual lambda/2 + scales.lambda``.
    """
    count, d = points.shape
    first, by_point, square = np.zeros(d), np.zeros((d, d)), np.zeros((d, d))
    free = np.zeros(d, np.bool_)
    force, slack = np.zeros(d), np.zeros(d)
    matrix, places = np.zeros((d, d)), np.zeros(d, np.int64)
    length = np.dot(shift, shift)
    norm = 2.0 ** (0.5 * d - 1.0) * math.gamma(0.5 * d)
    for i in range(count):
        _nearest(dual, scales[i], free, force, slack, matrix, places)
        t = np.dot(points[i], shift)
        before = math.sqrt(2 * math.pi) * 0.5 * math.erfc(-t / math.sqrt(2.0))
        now = t * before + math.exp(-0.5 * t * t)
        for k in range(2, d + 1):
            before, now = now, t * now + (k - 1) * before
        after = t * now + d * before
        scale = math.exp(-0.5 * max(length - t * t, 0.0)) / (norm * count)
        for a in range(d):
            if force[a] > 0.0:
                first[a] += scale * now * force[a]
                for b in range(d):
                    by_point[a, b] += scale * after * force[a] * points[i, b]
                    square[a, b] += scale * after * force[a] * force[b]
    return first, by_point, square


@njit(cache=True, nogil=True)
def _nearest(dual, scale, free, force, slack, matrix, places):
    """Solve ``force >= 0``, ``slack = scale + dual force >= 0``, ``force.slack = 0`` by exchanging faces, from those in ``free``.

    All wrong faces are exchanged at once while that makes them fewer, then the last of them, which always ends (Murty 1974).
    """
    d = len(scale)
    fewest, patience = d + 1, ATTEMPTS
    tiny = 1e-13 * (np.abs(scale).max() + 1e-300)
    while True:
        size = 0
        for k in range(d):
            force[k] = 0.0
            if free[k]:
                places[size] = k
                size += 1
        for i in range(size):  # Cholesky factors of the free part, and their solution
            for j in range(i + 1):
                total = dual[places[i], places[j]]
                for k in range(j):
                    total -= matrix[i, k] * matrix[j, k]
                matrix[i, j] = math.sqrt(total) if i == j else total / matrix[j, j]
        for i in range(size):
            total = -scale[places[i]]
            for k in range(i):
                total -= matrix[i, k] * force[places[k]]
            force[places[i]] = total / matrix[i, i]
        for i in range(size - 1, -1, -1):
            total = force[places[i]]
            for k in range(i + 1, size):
                total -= matrix[k, i] * force[places[k]]
            force[places[i]] = total / matrix[i, i]
        wrong, last = 0, 0
        for k in range(d):
            slack[k] = 0.0
            if free[k]:
                bad = force[k] < 0.0
            else:
                total = scale[k]
                for i in range(size):
                    total += dual[k, places[i]] * force[places[i]]
                slack[k] = total
                bad = total < -tiny
            if bad:
                wrong += 1
                last = k
        if wrong == 0:
            return
        if wrong < fewest:
            fewest, patience = wrong, ATTEMPTS
        else:
            patience -= 1
        if patience >= 0:
            for k in range(d):
                if (free[k] and force[k] < 0.0) or (not free[k] and slack[k] < -tiny):
                    free[k] = not free[k]
        else:
            free[last] = not free[last]
