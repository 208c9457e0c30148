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
from numpy.typing import NDArray

from numerics.classes.losses import ClassLoss
from numerics.classes.proximal import predict, proximal_points
from numerics.classes.rules import Rule
from numerics.models import ClassMixture, Estimator, helmert

Array = NDArray[np.float64]


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
class Points:
    """Proximal points of one cell where they were last found: centres u, W, logits, forces and D."""

    centre: Array | None
    width: Array
    logits: Array
    force: Array
    stiffness: Array


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
    rule : Rule
        Nodes (n, t, d) and their weights.
    earlier : sequence of StageBlocks
        Order parameters of the stages before.
    tables : sequence of arrays
        Tables of similarity of the stages before, see :class:`numerics.classes.losses.ClassLoss`.
    """

    def __init__(
        self, data: ClassMixture, stages: Sequence[Estimator], rule: Rule, earlier: Sequence, tables: Sequence
    ) -> None:
        self.data, self.stages = data, stages
        self.normals, self.shares = rule
        self.t = len(stages)
        self.basis = helmert(data.classes_count)
        self.cells = cells_of(data, tuple(stage.sets for stage in stages))
        self.losses = [ClassLoss(stage.loss, data.classes_count) for stage in stages]
        columns = np.column_stack([np.ones(len(self.normals)), *(self.normals[:, s] for s in range(self.t))])
        self.nodes = [Nodes(columns, []) for _ in self.cells]
        for s, blocks in enumerate(earlier, start=1):
            self._extend(s, blocks, tables[s - 1])
        loss = self.losses[-1]
        self.table = self._table(self.t) if loss.needs_similarity else None
        self.used = [i for i, cell in enumerate(self.cells) if cell.trained[self.t - 1]]
        self.targets = {i: self._targets(self.t, i, self.table) for i in self.used}
        self.points = {i: self._no_points(i) for i in self.used}
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
                sums[cell.label] += cell.weight * loss.similarity(labels, self._taught(t, i), self.shares)[cell.label]
                totals[cell.label] += cell.weight
        return np.where(totals[:, None] > 0, sums / np.where(totals, totals, 1.0)[:, None], 1.0 / k)

    def _no_points(self, i: int) -> Points:
        """Where proximal points are first looked for: the last logits known."""
        n, d = len(self.normals), len(self.basis)
        logits = self.nodes[i].logits
        start = logits[-1].copy() if logits else np.zeros((n, d))
        return Points(None, np.empty((d, d)), start, np.empty((n, d)), np.empty((n, d, d)))

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
                proximal_points(self.losses[s - 1].form, precision, u, target, h, force, stiffness)
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
        size = 1 + 2 * t * d
        moments = np.zeros((k, d, size))
        stiff, bare = np.zeros((d, d)), np.zeros((d, d))
        slopes = np.zeros((k + 2 * t * d, d, k + 2 * t * d, d)) if jacobian else None
        for i in self.used:
            cell, known = self.cells[i], self.nodes[i].z
            delta = self.data.deltas[cell.class_index]
            x = self._field(blocks, cell.class_index, t)
            u = known @ x[:, :-d].T
            width = delta * blocks.response[-1]
            precision = np.linalg.inv(width)
            precision = 0.5 * (precision + precision.T)
            if not np.isfinite(precision).all() or not np.isfinite(u).all():
                return None
            points = self.points[i]
            if points.centre is not None:
                points.logits[:] = u
                predict(u - points.centre, width - points.width, width, points.force, points.stiffness, points.logits)
            points.centre, points.width = u, width
            force, stiffness = points.force, points.stiffness
            if proximal_points(self.losses[-1].form, precision, u, self.targets[i], points.logits, force, stiffness):
                self.points[i] = self._no_points(i)
                return None
            scale = np.concatenate([[1.0], np.full(t * d, math.sqrt(delta)), np.full(t * d, delta)])
            z = np.column_stack([known, force])
            found = cell.weight * ((self.shares[:, None] * force).T @ z)
            moments[cell.class_index] += found * scale
            stiffness = self.shares[:, None, None] * stiffness
            mean = cell.weight * stiffness.sum(axis=0)
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
        """Add E[D z z] of a cell where it belongs; D comes with the shares of the nodes."""
        d, size = len(self.basis), z.shape[1]
        rows, columns = self.pairs
        upper = np.triu_indices(d)
        products = z[:, rows] * z[:, columns]
        packed = cell.weight * (stiffness[:, upper[0], upper[1]].T @ products)
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
