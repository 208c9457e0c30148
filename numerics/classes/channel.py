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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numerics.classes.formulas import class_losses, coordinates_of
from numerics.classes.proximal import predict
from numerics.classes.rules import Rule
from numerics.classes.symmetry import Permutation, made_invariant, orbits
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
        1, the normals that nodes have, g_1.., and forces f_1.. of the stages so far.
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


class Moments(NamedTuple):
    """Averages over one sample of a cell.

    Attributes
    ----------
    force : (d, Z)
        E[f z^T].
    stiffness : (d, d)
        E[D].
    tensor : (d, Z, d, Z) or None
        E[D_ab z_k z_l] at a, k, b, l.
    """

    force: Array
    stiffness: Array
    tensor: Array | None


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
    slopes : Slopes or None
        Derivatives of the first three.
    explained : tuple or None
        Regression B (d, (t-1)d) of f_t on earlier forces, and what force_force has besides, (d, d):
        :mod:`numerics.classes.controls`.
    """

    force: Array
    force_normal: Array
    force_force: Array
    stiffness: Array
    bare_stiffness: Array
    slopes: Slopes | None
    explained: tuple[Array, Array] | None = None


@dataclass
class Slopes:
    """Derivatives of force, force_normal and force_force in n directions, their last axis."""

    force: Array
    force_normal: Array
    force_force: Array


@dataclass
class Moves:
    """Order parameters moved in n directions, their last axis: mean (d, K, n), bias (d, n), cholesky and response (t, d, d, n)."""

    mean: Array
    bias: Array
    cholesky: Array
    response: Array


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
    permutations : sequence of tuples
        Under which order parameters do not change (:mod:`numerics.classes.symmetry`): one cell of every orbit is averaged over.
    """

    def __init__(
        self, data: ClassMixture, stages: Sequence[Estimator], rule: Rule, earlier: Sequence, tables: Sequence,
        permutations: Sequence[Permutation] = (),
    ) -> None:  # fmt: skip
        self.data, self.stages = data, stages
        self.normals, self.shares = rule
        self.t = len(stages)
        whole = self.normals.shape[2] == data.classes_count
        self.basis = helmert(data.classes_count, whole=whole)
        self.cells = cells_of(data, tuple(stage.sets for stage in stages))
        self.losses = class_losses(stages, data.classes_count, whole=whole)
        self.drawn = self.normals.shape[1]
        columns = np.column_stack([np.ones(len(self.normals)), self.normals.reshape(len(self.normals), -1)])
        self.earlier = earlier
        self.permutations = tuple(permutations)
        self.orbits = orbits(self.cells, self.permutations, data.classes_count)
        self.nodes = {i: Nodes(columns, []) for i in self.orbits}
        for s, blocks in enumerate(earlier, start=1):
            self._extend(s, blocks, tables[s - 1])
        loss = self.losses[-1]
        self.table = self._table(self.t) if loss.needs_similarity else None
        self.used = [i for i in self.orbits if self.cells[i].trained[self.t - 1]]
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
        loss = self.losses[t - 1]
        return loss.in_gauge(loss.targets(labels, self._taught(t, i), table), self.basis)

    def _table(self, t: int) -> Array:
        """The table that targets of stage t are made of (:meth:`numerics.classes.losses.ClassLoss.table`)."""
        k, loss = self.basis.shape[1], self.losses[t - 1]
        sums, totals = np.zeros((k, k)), np.zeros(k)
        for i, images in self.orbits.items():
            cell = self.cells[i]
            if cell.trained[t - 1]:
                labels = np.full(len(self.normals), cell.label)
                row = loss.similarity(labels, self._taught(t, i), self.shares)[cell.label]
                for image in images:
                    label = image.permutation[cell.label]
                    sums[label, list(image.permutation)] += cell.weight * row
                    totals[label] += cell.weight
        means = np.where(totals[:, None] > 0, sums / np.where(totals, totals, 1.0)[:, None], 1.0 / k)
        seen = self.stages[t - 1].loss.stages(t)
        bases = {s: coordinates_of(self.losses[s - 1], self.basis) for s in seen}
        return loss.table(means, totals, [bases[s].T @ self.earlier[s - 1].overlap @ bases[s] for s in seen])

    def _no_points(self, i: int) -> Points:
        """Where proximal points are first looked for: the last logits known."""
        n, d = len(self.normals), len(self.basis)
        logits = self.nodes[i].logits
        start = logits[-1].copy() if logits else np.zeros((n, d))
        return Points(None, np.empty((d, d)), start, np.empty((n, d)), np.empty((n, d, d)))

    def _extend(self, s: int, blocks, table: Array | None) -> None:
        """Add stage s to the nodes of all cells."""
        d = len(self.basis)
        for i, nodes in self.nodes.items():
            cell = self.cells[i]
            delta = self.data.deltas[cell.class_index]
            x = self._field(blocks, cell.class_index, s)
            known = nodes.z[:, : 1 + (self.drawn + s - 1) * d]
            u = known @ x[:, : known.shape[1]].T
            force = np.zeros_like(u)
            h = u.copy()
            if cell.trained[s - 1]:
                target = self._targets(s, i, table)
                h = nodes.logits[-1].copy() if nodes.logits else np.zeros_like(u)
                precision = np.linalg.inv(delta * blocks.response[-1])
                stiffness = np.empty((*u.shape, d))
                self.losses[s - 1].proximal_points(precision, u, target, h, force, stiffness)
            elif self.losses[s - 1].pinned:
                h[:, -1] = 0.0
            nodes.logits.append(h)
            nodes.z = np.column_stack([nodes.z, force])

    def _field(self, blocks, c: int, s: int) -> Array:
        """X of stage s on samples of class c, with columns for all normals that nodes have."""
        d, delta = len(self.basis), self.data.deltas[c]
        unused = np.zeros((d, max(self.drawn - s, 0) * d))
        normals = [math.sqrt(delta) * block for block in blocks.cholesky[: self.drawn]]
        responses = [delta * block for block in blocks.response]
        return np.column_stack([blocks.mean[:, c] + blocks.bias, *normals, unused, *responses])

    # This stage.

    def averages(self, blocks, moves: Moves | None = None) -> Averages | None:
        """Averages at order parameters, and their derivatives in some directions; None where a proximal point was not found."""
        t, d, k = self.t, len(self.basis), self.basis.shape[1]
        n = 0 if moves is None else moves.bias.shape[-1]
        found = Averages(
            np.zeros((k, d)), np.zeros((t, d, d)), np.zeros((t, d, d)), np.zeros((d, d)), np.zeros((d, d)), None
        )
        slopes = Slopes(np.zeros((k, d, n)), np.zeros((t, d, d, n)), np.zeros((t, d, d, n)))
        if not self._prepared(blocks, tensors=moves is not None):
            return None
        for i in self.used:
            cell = self.cells[i]
            delta = self.data.deltas[cell.class_index]
            sample = self._moments(i, blocks, tensor=moves is not None)
            if sample is None:
                return None
            moments, mean = cell.weight * sample.force, cell.weight * sample.stiffness
            turned = None if moves is None else cell.weight * self._moved(cell, sample.tensor, moves)
            # Images of the cell are the same after what is made invariant below.
            count, c = len(self.orbits[i]), cell.class_index
            found.force[c] += count * moments[:, 0]
            normal, forces = self._split(moments)
            found.force_normal += count * math.sqrt(delta) * normal
            found.force_force += count * delta * forces
            found.bare_stiffness += count * mean
            found.stiffness += count * delta * mean
            if turned is not None:
                normal, forces = self._split(turned)
                slopes.force[c] += count * turned[:, 0]
                slopes.force_normal += count * math.sqrt(delta) * normal
                slopes.force_force += count * delta * forces
        if moves is not None:
            found.slopes = slopes
        if self.permutations:
            self._make_invariant(found)
        if self.losses[-1].pinned:
            found.bare_stiffness[-1, -1] = 1.0  # where no bias moves
        return found

    def earlier_averages(self) -> list[Averages]:
        """Of the forces of each stage before, on these nodes, without their stiffness."""
        found = []
        for s in range(1, self.t):
            d, k = self.basis.shape
            one = Averages(
                np.zeros((k, d)), *(np.zeros((self.t - 1, d, d)) for _ in range(2)), *np.zeros((2, d, d)), None
            )
            for i, images in self.orbits.items():
                cell, z = self.cells[i], self.nodes[i].z
                if cell.trained[s - 1]:
                    delta = self.data.deltas[cell.class_index]
                    at = 1 + (self.drawn + s - 1) * d
                    moments = len(images) * cell.weight * (self.shares[:, None] * z[:, at : at + d]).T @ z
                    one.force[cell.class_index] += moments[:, 0]
                    normals, forces = np.split(moments[:, 1:], [self.drawn * d], axis=1)
                    blocks = [
                        part[:, : (self.t - 1) * d].reshape(d, -1, d).swapaxes(0, 1) for part in (normals, forces)
                    ]
                    one.force_normal += math.sqrt(delta) * blocks[0]
                    one.force_force += delta * blocks[1]
            if self.permutations:
                self._make_invariant(one)
            found.append(one)
        return found

    def unexplained(self, regression: Array) -> Array | None:
        """Delta A E[e e^T] of e = f_t - B f_<t, where averages were found last; None if there are no such nodes."""
        d = len(self.basis)
        found = np.zeros((d, d))
        for i, images in self.orbits.items():
            cell = self.cells[i]
            rest = -self.nodes[i].z[:, 1 + self.drawn * d :] @ regression.T
            if i in self.points:
                rest += self.points[i].force
            delta = self.data.deltas[cell.class_index]
            found += len(images) * cell.weight * delta * (self.shares[:, None] * rest).T @ rest
        return made_invariant(found, "blocks", self.permutations) if self.permutations else found

    def _make_invariant(self, found: Averages) -> None:
        """Images of one cell have the permutations of the others as their error."""
        for item in (found, found.slopes):
            if item is not None:
                item.force = made_invariant(item.force, "means", self.permutations)
        for name in ("force_normal", "force_force", "stiffness", "bare_stiffness"):
            setattr(found, name, made_invariant(getattr(found, name), "blocks", self.permutations))
        if found.slopes is not None:
            for name in ("force_normal", "force_force"):
                moved = np.moveaxis(getattr(found.slopes, name), -1, 0)
                setattr(found.slopes, name, np.moveaxis(made_invariant(moved, "blocks", self.permutations), 0, -1))

    def _split(self, moments: Array) -> Array:
        """E[f g_r^T] and E[f f_s^T] from E[f z], shape (2, t, d, d, ..)."""
        d = len(self.basis)
        blocks = moments[:, 1:].reshape(d, 2, self.t, d, *moments.shape[2:])
        return np.moveaxis(blocks, 0, 2)

    def _prepared(self, blocks, *, tensors: bool) -> bool:
        """Whether what all cells share could be found: here, nothing."""
        return True

    def _moments(self, i: int, blocks, *, tensor: bool) -> Moments | None:
        """Of a cell."""
        points = self._find_points(i, blocks)
        if points is None:
            return None
        z = np.column_stack([self.nodes[i].z, points.force])
        force = (self.shares[:, None] * points.force).T @ z
        stiffness = self.shares[:, None, None] * points.stiffness
        return Moments(force, stiffness.sum(axis=0), self._tensor(z, stiffness) if tensor else None)

    def _find_points(self, i: int, blocks) -> Points | None:
        """Proximal points of a cell, from those found last."""
        cell, known = self.cells[i], self.nodes[i].z
        d, delta = len(self.basis), self.data.deltas[cell.class_index]
        u = known @ self._field(blocks, cell.class_index, self.t)[:, :-d].T
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
        loss = self.losses[-1]
        if loss.proximal_points(precision, u, self.targets[i], points.logits, points.force, points.stiffness):
            self.points[i] = self._no_points(i)
            return None
        return points

    def _tensor(self, z: Array, stiffness: Array) -> Array:
        """E[D_ab z_k z_l]; D comes with the shares of the nodes."""
        d, size = len(self.basis), z.shape[1]
        rows, columns = self.pairs
        upper = np.triu_indices(d)
        packed = stiffness[:, upper[0], upper[1]].T @ (z[:, rows] * z[:, columns])
        square = np.empty((len(upper[0]), size, size))
        square[:, rows, columns] = packed
        square[:, columns, rows] = packed
        return unpacked_tensor(square, d)

    def _moved(self, cell: Cell, tensor: Array, moves: Moves) -> Array:
        """Derivatives of E[f z] of a cell, (d, Z, n)."""
        d, size = tensor.shape[:2]
        n, delta = moves.bias.shape[-1], self.data.deltas[cell.class_index]
        normals = math.sqrt(delta) * moves.cholesky.transpose(1, 0, 2, 3).reshape(d, -1, n)
        responses = delta * moves.response.transpose(1, 0, 2, 3).reshape(d, -1, n)
        mean = (moves.mean[:, cell.class_index] + moves.bias)[:, None]
        change = np.concatenate([mean, normals, responses], axis=1).reshape(d * size, n)
        found = -(tensor.reshape(d * size, d * size) @ change).reshape(d, size, n)
        found[:, size - d :] += found[:, size - d :].transpose(1, 0, 2).copy()
        return found


def unpacked_tensor(square: Array, d: int) -> Array:
    """E[D_ab z_k z_l] from its matrices of the upper triangle of D, (d(d+1)/2, Z, Z)."""
    size = square.shape[-1]
    tensor = np.empty((d, size, d, size))
    for pair, (a, b) in enumerate(zip(*np.triu_indices(d), strict=True)):
        tensor[a, :, b] = tensor[b, :, a] = square[pair]
    return tensor
