"""The channel in blocks: order parameters -> averages over samples, by proximal points in d = K-1 dimensions on fixed normals.

A *cell* is the samples of one class, one label and one choice of stages that are trained on them; their number per input is its
weight.  On a sample of class c the logits of the stages are, in the gauge,

    h_t = X_t z,   z = (1, g_1, .., g_t, f_1, .., f_t),   X_t = (m_tc + b_t | sqrt(Delta_c) C_t1 .. C_tt | Delta_c V_t1 .. V_tt),

with independent standard normals g_s in R^d and the forces f_s = c_s - S_s(h_s), which are 0 where stage s is not trained.  Then

    df_t = -D (dX_t) z,    D = S'(1 + Delta_c V_tt S')^-1,

for any change of X_t, so that all that equations and Jacobian need are E[f_t z], E[D] and one tensor, E[D z z].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import types
from numpy.typing import NDArray

from numerics.classes.losses import FORM, ClassLoss, curvature_at, potential_at, slope_at
from numerics.codegen.cache import njit
from numerics.models import ClassMixture, Estimator, helmert
from numerics.scalar.kernels.elementary import OPTIONS, FloatArray, Matrix
from numerics.scalar.kernels.layout import Cube

Array = NDArray[np.float64]

_TOLERANCE = 1e-8
_MOST_STEPS = 100
_LONG_STEP = 0.5  # above which the decrease of the objective is looked at
_ARMIJO = 1e-4


# Samples.


@dataclass(frozen=True)
class Cell:
    """Samples per input of one class with one label, and which stages are trained on them."""

    weight: float
    class_index: int
    label: int
    trained: tuple[bool, ...]


@lru_cache(maxsize=256)
def cells_of(data: ClassMixture, sets: tuple[tuple[str, ...], ...]) -> tuple[Cell, ...]:
    """Cells of positive weight, for the data sets of each stage."""
    found: dict[tuple, float] = {}
    for data_set in data.sets:
        trained = tuple(data_set.name in names for names in sets)
        weights = data_set.alpha * data.class_weights(data_set.name)[:, None] * data.confusion_of(data_set.name)
        for c, label in zip(*np.nonzero(weights), strict=True):
            key = (int(c), int(label), trained)
            found[key] = found.get(key, 0.0) + float(weights[c, label])
    return tuple(Cell(weight, *key) for key, weight in sorted(found.items()))


# Proximal points.


@njit(types.boolean(Matrix), **OPTIONS)
def cholesky(matrix):
    """Lower-triangular factor in place (of the lower triangle); False if the matrix is not positive definite."""
    n = matrix.shape[0]
    for j in range(n):
        for k in range(j):
            factor = matrix[j, k]
            for i in range(j, n):
                matrix[i, j] -= matrix[i, k] * factor
        if not matrix[j, j] > 0.0:
            return False
        root = math.sqrt(matrix[j, j])
        for i in range(j, n):
            matrix[i, j] /= root
    return True


@njit(types.void(Matrix, FloatArray), **OPTIONS)
def cholesky_solve(factor, vector):
    n = vector.size
    for i in range(n):
        for j in range(i):
            vector[i] -= factor[i, j] * vector[j]
        vector[i] /= factor[i, i]
    for i in range(n - 1, -1, -1):
        for j in range(i + 1, n):
            vector[i] -= factor[j, i] * vector[j]
        vector[i] /= factor[i, i]


@njit(types.float64(FORM, Matrix, FloatArray, FloatArray, FloatArray), **OPTIONS)
def _raised(form, basis, x, logits, p):
    """A at reduced logits x."""
    for k in range(logits.size):
        logits[k] = 0.0
        for i in range(x.size):
            logits[k] += basis[i, k] * x[i]
    return potential_at(form, logits, p)


@njit(types.int64(FORM, Matrix, Matrix, Matrix, Matrix, Matrix, Matrix, Cube), **OPTIONS)
def proximal_points(form, basis, precision, u, target, h, force, stiffness):
    """Minimise A(h) - c.h + (h-u)^T W^-1 (h-u)/2 for every sample, all in the gauge, from ``h``, which is overwritten.

    Parameters
    ----------
    precision : (d, d)
        W^-1 of W = Delta V.
    u, target : (n, d)
        Centres and targets c.
    force, stiffness : (n, d), (n, d, d)
        Outputs, c - S(h) and D = S'(1 + W S')^-1.

    Returns
    -------
    int
        Samples on which it did not converge.
    """
    n, d = u.shape
    k_classes = basis.shape[1]
    logits, p, slope = np.empty(k_classes), np.empty(k_classes), np.empty(k_classes)
    full = np.empty((k_classes, k_classes))
    half = np.empty((d, k_classes))
    curved, hessian = np.empty((d, d)), np.empty((d, d))
    pull, move, trial, column = np.empty(d), np.empty(d), np.empty(d), np.empty(d)
    failed = 0
    for s in range(n):
        done = False
        for _ in range(_MOST_STEPS):
            for k in range(k_classes):
                logits[k] = 0.0
                for i in range(d):
                    logits[k] += basis[i, k] * h[s, i]
            slope_at(form, logits, p, slope)
            curvature_at(form, logits, p, full)
            for i in range(d):
                for k in range(k_classes):
                    half[i, k] = 0.0
                    for j in range(k_classes):
                        half[i, k] += basis[i, j] * full[j, k]
            for i in range(d):
                for j in range(i + 1):
                    value = 0.0
                    for k in range(k_classes):
                        value += half[i, k] * basis[j, k]
                    curved[i, j] = curved[j, i] = value
                    hessian[i, j] = hessian[j, i] = value + precision[i, j]
            for i in range(d):
                value = target[s, i]
                for k in range(k_classes):
                    value -= basis[i, k] * slope[k]
                force[s, i] = value
                for j in range(d):
                    value -= precision[i, j] * (h[s, j] - u[s, j])
                pull[i] = value
                move[i] = value
            if not cholesky(hessian):
                break
            cholesky_solve(hessian, move)
            size = 0.0
            for i in range(d):
                size = max(size, abs(move[i]))
            if not size < np.inf:
                break
            fraction = 1.0
            if size > _LONG_STEP:
                gain = 0.0
                for i in range(d):
                    gain += pull[i] * move[i]
                start = _raised(form, basis, h[s], logits, p)
                while fraction > 1e-10:
                    change = 0.0
                    for i in range(d):
                        trial[i] = h[s, i] + fraction * move[i]
                    change = _raised(form, basis, trial, logits, p) - start
                    for i in range(d):
                        change -= fraction * move[i] * target[s, i]
                        for j in range(d):
                            change += (
                                fraction * move[i] * precision[i, j] * (h[s, j] - u[s, j] + 0.5 * fraction * move[j])
                            )
                    if change <= -_ARMIJO * fraction * gain:
                        break
                    fraction *= 0.5
            scale = 1.0
            for i in range(d):
                h[s, i] += fraction * move[i]
                scale = max(scale, abs(h[s, i]))
            if fraction == 1.0 and size < _TOLERANCE * scale:
                done = True
                break
        if not done:
            failed += 1
        # The last step is so short that the slope at its end is linear in it.
        for i in range(d):
            for j in range(d):
                force[s, i] -= curved[i, j] * move[j]
        # D = S' (W^-1 + S')^-1 W^-1, without a difference.
        for j in range(d):
            for i in range(d):
                column[i] = precision[i, j]
            cholesky_solve(hessian, column)
            for i in range(d):
                value = 0.0
                for m in range(d):
                    value += curved[i, m] * column[m]
                stiffness[s, i, j] = value
        for i in range(d):
            for j in range(i):
                mean = 0.5 * (stiffness[s, i, j] + stiffness[s, j, i])
                stiffness[s, i, j] = stiffness[s, j, i] = mean
    return failed


# Averages.


@dataclass
class Nodes:
    """Of one cell: z of the stages so far, and logits of each.

    Attributes
    ----------
    z : array, shape (n, Z)
        1, all normals g_1.., and forces f_1.. of the stages so far.
    logits : list of (n, d) arrays
        Of the stages so far, in the gauge.
    """

    z: Array
    logits: list[Array]


@dataclass
class Averages:
    """Sums over cells of what equations and Jacobian need, in samples per input.

    Attributes
    ----------
    force : (K, d)
        Of every class, A E[f].
    force_normal : (t, d, d)
        sqrt(Delta) A E[f g_r^T].
    force_force : (t, d, d)
        Delta A E[f f_s^T].
    stiffness : (d, d)
        Delta A E[D].
    bare_stiffness : (d, d)
        A E[D].
    slopes : (K + 2td, d, K + 2td, d) or None
        Derivatives of force, force_normal and force_force, in this order, with respect to m_tc of every class, C_t1.., V_t1..
    """

    force: Array
    force_normal: Array
    force_force: Array
    stiffness: Array
    bare_stiffness: Array
    slopes: Array | None


class Channel:
    """Stage t on its nodes, given the earlier stages.

    Parameters
    ----------
    data : ClassMixture
    stages : sequence of Estimator
        Up to this one.
    normals : array, shape (n, t, d)
        Equal weights.
    earlier : sequence of StageBlocks
        Order parameters of the stages before.
    tables : sequence of arrays
        Tables of similarity of the stages before, see :class:`numerics.classes.losses.ClassLoss`.
    """

    def __init__(self, data: ClassMixture, stages: Sequence[Estimator], normals: Array, earlier: Sequence, tables: Sequence) -> None:
        self.data, self.stages, self.normals = data, stages, normals
        self.t = len(stages)
        self.basis = helmert(data.classes_count)
        self.cells = cells_of(data, tuple(stage.sets for stage in stages))
        self.losses = [ClassLoss(stage.loss, data.classes_count) for stage in stages]
        n = len(normals)
        columns = np.column_stack([np.ones(n), *(normals[:, s] for s in range(self.t))])
        self.nodes = [Nodes(columns, []) for _ in self.cells]
        for s, blocks in enumerate(earlier, start=1):
            self._extend(s, blocks, tables[s - 1])
        loss = self.losses[-1]
        self.table = self._table(self.t) if loss.needs_similarity else None
        self.used = [i for i, cell in enumerate(self.cells) if cell.trained[self.t - 1]]
        self.targets = {i: self._targets(self.t, i, self.table) for i in self.used}
        self.points = {i: self._first_points(i) for i in self.used}
        self.pairs = np.triu_indices(1 + 2 * self.t * len(self.basis))

    # Earlier stages.

    def _taught(self, t: int, i: int) -> Array:
        """Logits of the teachers of stage t, (n, teachers, K)."""
        seen = self.stages[t - 1].loss.stages(t)
        logits = [self.nodes[i].logits[s - 1] @ self.basis for s in seen]
        return np.stack(logits, axis=1) if logits else np.empty((len(self.normals), 0, self.basis.shape[1]))

    def _targets(self, t: int, i: int, table: Array | None) -> Array:
        labels = np.full(len(self.normals), self.cells[i].label)
        return self.losses[t - 1].targets(labels, self._taught(t, i), table) @ self.basis.T

    def _table(self, t: int) -> Array:
        """Mean softened probabilities of the teachers on the samples of stage t, by label."""
        k, loss = self.basis.shape[1], self.losses[t - 1]
        sums, totals = np.zeros((k, k)), np.zeros(k)
        for i, cell in enumerate(self.cells):
            if cell.trained[t - 1]:
                labels = np.full(len(self.normals), cell.label)
                sums[cell.label] += cell.weight * loss.similarity(labels, self._taught(t, i))[cell.label]
                totals[cell.label] += cell.weight
        return np.where(totals[:, None] > 0, sums / np.where(totals, totals, 1.0)[:, None], 1.0 / k)

    def _first_points(self, i: int) -> Array:
        """Where proximal points are first looked for: the last logits known."""
        logits = self.nodes[i].logits
        return logits[-1].copy() if logits else np.zeros((len(self.normals), len(self.basis)))

    def _extend(self, s: int, blocks, table: Array | None) -> None:
        """Add stage s to the nodes of all cells."""
        d = len(self.basis)
        for i, cell in enumerate(self.cells):
            nodes, delta = self.nodes[i], self.data.deltas[cell.class_index]
            x = self._field(blocks, cell.class_index, s)
            known = nodes.z[:, : 1 + self.t * d + (s - 1) * d]
            u = known @ x[:, : known.shape[1]].T
            force = np.zeros_like(u)
            h = u.copy()
            if cell.trained[s - 1]:
                target = self._targets(s, i, table)
                h = nodes.logits[-1].copy() if nodes.logits else np.zeros_like(u)
                precision = np.linalg.inv(delta * blocks.response[-1])
                stiffness = np.empty((*u.shape, d))
                proximal_points(self.losses[s - 1].form, self.basis, precision, u, target, h, force, stiffness)
            nodes.logits.append(h)
            nodes.z = np.column_stack([nodes.z, force])

    def _field(self, blocks, c: int, s: int) -> Array:
        """X of stage s on samples of class c, with columns for all normals g_1..g_t of this channel."""
        d, delta = len(self.basis), self.data.deltas[c]
        unused = np.zeros((d, (self.t - s) * d))
        normals = [math.sqrt(delta) * block for block in blocks.cholesky]
        responses = [delta * block for block in blocks.response]
        return np.column_stack([blocks.mean[:, c] + blocks.bias, *normals, unused, *responses])

    # This stage.

    def averages(self, blocks, *, jacobian: bool) -> Averages | None:
        """Averages at order parameters; None where a proximal point was not found."""
        t, d, k = self.t, len(self.basis), self.basis.shape[1]
        n = len(self.normals)
        size = 1 + 2 * t * d
        moments = np.zeros((k, d, size))
        stiff, bare = np.zeros((d, d)), np.zeros((d, d))
        slopes = np.zeros((k + 2 * t * d, d, k + 2 * t * d, d)) if jacobian else None
        for i in self.used:
            cell, known = self.cells[i], self.nodes[i].z
            delta = self.data.deltas[cell.class_index]
            x = self._field(blocks, cell.class_index, t)
            u = known @ x[:, :-d].T
            force, stiffness = np.empty((n, d)), np.empty((n, d, d))
            precision = np.linalg.inv(delta * blocks.response[-1])
            precision = 0.5 * (precision + precision.T)
            if not np.isfinite(precision).all() or not np.isfinite(u).all():
                return None
            failed = proximal_points(
                self.losses[-1].form, self.basis, precision, u, self.targets[i], self.points[i], force, stiffness
            )
            if failed:
                self.points[i] = self._first_points(i)
                return None
            scale = np.concatenate([[1.0], np.full(t * d, math.sqrt(delta)), np.full(t * d, delta)])
            z = np.column_stack([known, force])
            found = cell.weight / n * (force.T @ z)
            moments[cell.class_index] += found * scale
            mean = cell.weight / n * stiffness.sum(axis=0)
            bare += mean
            stiff += delta * mean
            if jacobian:
                self._add_slopes(cell, z, stiffness, scale, slopes)
        force = moments[:, :, 0]
        total = moments.sum(axis=0)
        normal = total[:, 1 : 1 + t * d].reshape(d, t, d).transpose(1, 0, 2)
        forces = total[:, 1 + t * d :].reshape(d, t, d).transpose(1, 0, 2)
        return Averages(force, normal, forces, stiff, bare, slopes)

    def _add_slopes(self, cell: Cell, z: Array, stiffness: Array, scale: Array, slopes: Array) -> None:
        """Add E[D z z] of a cell where it belongs."""
        n, d, size = len(z), len(self.basis), z.shape[1]
        rows, columns = self.pairs
        upper = np.triu_indices(d)
        products = z[:, rows] * z[:, columns]
        packed = cell.weight / n * (stiffness[:, upper[0], upper[1]].T @ products)
        tensor = np.empty((d, d, size, size))
        square = np.empty((len(upper[0]), size, size))
        square[:, rows, columns] = packed
        square[:, columns, rows] = packed
        tensor[upper[0], upper[1]] = square
        tensor[upper[1], upper[0]] = square
        tensor *= -scale[:, None] * scale  # [a, i, l, k]: force a times z_l, moved by X_ik
        own = slice(size - d, size)
        turned = tensor[:, :, own].transpose(2, 1, 0, 3).copy()  # [l, i, a, k] as [a, i, l, k]
        tensor[:, :, own] += turned
        tensor = tensor.transpose(2, 0, 3, 1)  # [l, a, k, i]
        c, k = cell.class_index, self.basis.shape[1]
        slopes[c, :, c] += tensor[0, :, 0]
        slopes[c, :, k:] += tensor[0, :, 1:]
        slopes[k:, :, c] += tensor[1:, :, 0]
        slopes[k:, :, k:] += tensor[1:, :, 1:]
