"""Averages over the last stage's cavity noise from tables: one lattice of proximal points for all nodes of the earlier stages.

On a sample of class c the last logits are h = u - Delta V_tt S(h) with

    u = x + sqrt(Delta) C_tt g_t,    x = m_tc + b_t + sqrt(Delta) sum_{s<t} C_ts g_s + Delta sum_{s<t} V_ts f_s + Delta V_tt c,

and depend on labels, teachers and classes through u alone, as long as classes have one Delta.  In y = (sqrt(Delta) C_tt)^-1 u
the average over g_t is a Gaussian of width 1 around the centre of each node of the earlier stages,

    E[F | g_<t] = sum_n N(y_n - y_x) F(y_n) delta^d

on a lattice y_n of step delta: a product of Gaussians, contracted axis by axis, of features F that are found once a lattice point,
(S, S S, D), and for the Jacobian D times products of (1, y, S).  Where fields are wide the lattice is fine; then the Gaussian is
made of two, and the first leads, from lattice to lattice, to a coarse one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numba import types
from numpy.typing import NDArray

from numerics.classes.channel import Channel, Moments, unpacked_tensor
from numerics.classes.lanes import FAST
from numerics.classes.losses import ClassLoss
from numerics.classes.proximal import predict
from numerics.classes.rules import Lattice, Pairs
from numerics.classes.symmetry import Permutation
from numerics.codegen.cache import njit
from numerics.models import ClassMixture, Estimator
from numerics.scalar.kernels.elementary import IntMatrix, Matrix, exp_nonpositive
from numerics.scalar.kernels.layout import Cube

Array = NDArray[np.float64]

D = 2
"""Logits in the gauge: of three classes."""

MOST_POINTS = 400_000
"""Of a lattice; more are needed only by steps that lead far away, which are not taken."""

_UPPER = np.triu_indices(D)
_WHOLE = 1 + 2 * D  # entries of p = (1, y, S)
_PAIRS = np.triu_indices(_WHOLE)
_FORCES = D + len(_UPPER[0])  # entries of S and S S
_PLAIN = _FORCES + len(_UPPER[0])
_FULL = _FORCES + len(_UPPER[0]) * len(_PAIRS[0])


@njit(types.void(Matrix, Matrix, Cube, Matrix), **FAST)
def fill(y, force, stiffness, out):
    """Features of lattice points: S, S S and D, or D times the products of (1, y, S), upper triangles row by row."""
    n, d = y.shape
    whole = 1 + 2 * d
    p = np.empty(whole)
    full = out.shape[1] > d + d * (d + 1)
    p[0] = 1.0
    for s in range(n):
        for a in range(d):
            p[1 + a] = y[s, a]
            p[1 + d + a] = -force[s, a]
        at = 0
        for a in range(d):
            out[s, at] = p[1 + d + a]
            at += 1
        for a in range(d):
            for b in range(a, d):
                out[s, at] = p[1 + d + a] * p[1 + d + b]
                at += 1
        for a in range(d):
            for b in range(a, d):
                if full:
                    for k in range(whole):
                        for m in range(k, whole):
                            out[s, at] = stiffness[s, a, b] * p[k] * p[m]
                            at += 1
                else:
                    out[s, at] = stiffness[s, a, b]
                    at += 1


@njit(types.void(Cube, IntMatrix, Matrix, types.float64, types.float64, Matrix), **FAST)
def contract(table, window, centre, step, width, out):
    """Sums of a table (rows, columns, features) with Gaussian products around centres, whose weights sum to 1 on each axis.

    Parameters
    ----------
    window : (n, 4)
        First row, rows, first column, columns.
    centre : (n, 2)
        In units of the axes of the table, whose first point is at 0.
    """
    n, size = centre.shape[0], table.shape[2]
    longest = 1
    for i in range(n):
        longest = max(longest, window[i, 1], window[i, 3])
    weights, sums = np.empty((2, longest)), np.empty(longest * size)
    for i in range(n):
        for axis in range(2):
            first, count = window[i, 2 * axis], window[i, 2 * axis + 1]
            total = 0.0
            for k in range(count):
                apart = ((first + k) * step - centre[i, axis]) / width
                weights[axis, k] = exp_nonpositive(-0.5 * apart * apart)
                total += weights[axis, k]
            for k in range(count):
                weights[axis, k] /= total
        begin, length = window[i, 2] * size, window[i, 3] * size
        for k in range(length):
            sums[k] = 0.0
        for row in range(window[i, 1]):
            weight = weights[0, row]
            values = table[window[i, 0] + row].ravel()[begin : begin + length]
            for k in range(length):
                sums[k] += weight * values[k]
        for k in range(size):
            out[i, k] = 0.0
        for column in range(window[i, 3]):
            weight = weights[1, column]
            for k in range(size):
                out[i, k] += weight * sums[column * size + k]


@dataclass
class Region:
    """Part of a lattice: where it begins, and which of its points count.

    Attributes
    ----------
    corner : (2,)
        Of the first point, in steps from the lattice's origin.
    mask : (rows, columns)
    """

    corner: NDArray[np.int64]
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, low: NDArray[np.int64], high: NDArray[np.int64]) -> Region:
        """Of all points in one of the windows from ``low`` to ``high``, each (n, 2)."""
        corner = low.min(axis=0)
        rows, columns = high.max(axis=0) - corner + 1
        count = np.zeros((rows + 1, columns + 1), dtype=np.int64)
        (r0, c0), (r1, c1) = (low - corner).T, (high - corner + 1).T
        for r, c, sign in ((r0, c0, 1), (r1, c1, 1), (r0, c1, -1), (r1, c0, -1)):
            np.add.at(count, (r, c), sign)
        return cls(corner, count.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)

    def windows(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of ``size`` steps to each side of its points."""
        where = np.argwhere(self.mask) + self.corner
        return where - size, where + size


@dataclass
class Table:
    """Proximal points on a region of the lattice, where they were last found."""

    region: Region
    y: Array
    turn: Array
    width: Array
    logits: Array
    force: Array
    stiffness: Array


Place = tuple[float, tuple[int, ...]]
"""Which table: Delta, and its cells."""


class PairChannel(Channel):
    """Stage t, whose nodes are of the earlier stages, with a lattice for its own normals.

    Parameters
    ----------
    nodes : Pairs
    others
        As of :class:`Channel`.
    """

    def __init__(
        self, data: ClassMixture, stages: Sequence[Estimator], nodes: Pairs, earlier: Sequence, tables: Sequence,
        permutations: Sequence[Permutation] = (),
    ) -> None:  # fmt: skip
        super().__init__(data, stages, nodes.outer, earlier, tables, permutations)
        self.lattice = nodes.lattice
        self.reach = nodes.reach
        self.kept: dict[Place, Table] = {}
        self.averaged: dict[int, Array] = {}
        self.centres: dict[int, Array] = {}

    def _prepared(self, blocks, *, tensors: bool) -> bool:
        """Conditional averages of all cells, into ``averaged``."""
        if not np.isfinite(blocks.cholesky).all() or not np.isfinite(blocks.response).all():
            return False
        deltas = {float(self.data.deltas[self.cells[i].class_index]) for i in self.used}
        return all(
            self._average(delta, *group, blocks, tensors) for delta in deltas for group in self._groups(delta, blocks)
        )

    def _groups(self, delta: float, blocks) -> Iterator[tuple[list[int], Array, Array]]:
        """Cells of one Delta that share a table, with the first and last lattice points around their centres, (n, 2) each."""
        lattice, reach = self.lattice[0], self.reach[:, None]
        back = np.linalg.inv(math.sqrt(delta) * blocks.cholesky[-1])
        groups: list[tuple[list[int], Array, Array]] = []
        for i in self.used:
            cell = self.cells[i]
            if self.data.deltas[cell.class_index] != delta:
                continue
            x = self.nodes[i].z @ self._field(blocks, cell.class_index, self.t)[:, :-D].T
            y = (x + delta * self.targets[i] @ blocks.response[-1]) @ back.T
            self.centres[i] = y
            low = np.ceil((y - lattice.width * reach) / lattice.step - lattice.shift)
            high = np.floor((y + lattice.width * reach) / lattice.step - lattice.shift)
            for place, (cells, *rest) in enumerate(groups):
                both = [np.concatenate(ends) for ends in zip(rest, (low, high), strict=True)]
                if _area(*both) <= _area(*rest) + _area(low, high):
                    groups[place] = ([*cells, i], *both)
                    break
            else:
                groups.append(([i], low, high))
        yield from groups

    def _average(self, delta: float, cells: list[int], low: Array, high: Array, blocks, tensors: bool) -> bool:
        coarse, fine = self.lattice
        if not _area(low, high) * (coarse.step / (fine or coarse).step) ** 2 < MOST_POINTS:
            return False
        low, high = low.astype(np.int64), high.astype(np.int64)
        region = Region.of(low, high)
        place = (delta, tuple(cells))
        if fine is None:
            values = self._features(place, region, coarse, blocks, tensors)
        else:
            values = self._smoothed(place, region, blocks, tensors)
        if values is None:
            return False
        y = np.concatenate([self.centres[i] for i in cells])
        window = np.empty((len(y), 4), dtype=np.int64)
        window[:, ::2], window[:, 1::2] = low - region.corner, high - low + 1
        out = np.empty((len(y), values.shape[2]))
        origin = coarse.step * (region.corner + coarse.shift)
        contract(values, window, y - origin, coarse.step, coarse.width, out)
        self.averaged.update(zip(cells, np.split(out, len(cells)), strict=True))
        return True

    def _smoothed(self, place: Place, region: Region, blocks, tensors: bool) -> Array | None:
        """On a region of the coarse lattice, from the fine one."""
        coarse, fine = self.lattice
        reach = fine.width * self.reach.max()
        where = coarse.step * (np.argwhere(region.mask) + region.corner + coarse.shift)
        low = np.ceil((where - reach) / fine.step - fine.shift).astype(np.int64)
        high = np.floor((where + reach) / fine.step - fine.shift).astype(np.int64)
        inner = Region.of(low, high)
        values = self._features(place, inner, fine, blocks, tensors)
        if values is None:
            return None
        for axis in range(2):
            there = coarse.step * (np.arange(region.mask.shape[axis]) + region.corner[axis] + coarse.shift[axis])
            here = fine.step * (np.arange(inner.mask.shape[axis]) + inner.corner[axis] + fine.shift[axis])
            apart = (there[:, None] - here) / fine.width
            weights = np.where(np.abs(apart) <= self.reach.max(), np.exp(-0.5 * apart**2), 0.0)
            weights /= weights.sum(axis=1, keepdims=True)
            if axis == 0:
                values = (weights @ values.reshape(len(values), -1)).reshape(len(there), *values.shape[1:])
            else:
                values = weights @ values
        return values

    def _features(self, place: Place, region: Region, lattice: Lattice, blocks, tensors: bool) -> Array | None:
        """Table of features on a region, 0 where no points are needed; None where a proximal point was not found."""
        delta = place[0]
        turn, width = math.sqrt(delta) * blocks.cholesky[-1], delta * blocks.response[-1]
        precision = np.linalg.inv(width)
        precision = 0.5 * (precision + precision.T)
        places = np.argwhere(region.mask)
        y = np.ascontiguousarray(lattice.step * (places + region.corner + lattice.shift))
        u = y @ turn.T
        logits, force, stiffness = np.zeros_like(u), np.empty_like(u), np.empty((*u.shape, D))
        kept = self.kept.get(place)
        if kept is not None:
            index = np.full(kept.region.mask.shape, -1)
            index[kept.region.mask] = np.arange(len(kept.y))
            there = places + region.corner - kept.region.corner
            inside = np.all((there >= 0) & (there < kept.region.mask.shape), axis=1)
            known = np.flatnonzero(inside)
            old = index[there[known, 0], there[known, 1]]
            known, old = known[old >= 0], old[old >= 0]
            guess = u[known]
            moved = y[known] @ (turn - kept.turn).T
            predict(moved, width - kept.width, width, kept.force[old], kept.stiffness[old], guess)
            logits[known] = guess
        loss = self.losses[-1]
        if loss.proximal_points(precision, u, np.zeros_like(u), logits, force, stiffness):
            self.kept.pop(place, None)
            return None
        self.kept[place] = Table(region, y, turn, width, logits, force, stiffness)
        features = np.empty((len(u), _FULL if tensors else _PLAIN))
        fill(y, force, stiffness, features)
        values = np.zeros((*region.mask.shape, features.shape[1]))
        values[region.mask] = features
        return values

    def _moments(self, i: int, blocks, *, tensor: bool) -> Moments:
        """Of a cell."""
        d, found, known, c = D, self.averaged[i], self.nodes[i].z, self.targets[i]
        delta, shares = self.data.deltas[self.cells[i].class_index], self.shares[:, None]
        slope, products = found[:, :d], unpacked(found[:, d:_FORCES])
        stride = len(_PAIRS[0]) if tensor else 1
        stiffness = unpacked((self.shares @ found[:, _FORCES::stride])[None])[0]
        force = c - slope
        crossed = c[:, :, None] * slope[:, None]
        squares = products + c[:, :, None] * c[:, None] - crossed - crossed.transpose(0, 2, 1)
        own = -math.sqrt(delta) * stiffness @ blocks.cholesky[-1]  # E[f g_t], by Stein's lemma
        before = (shares * force).T @ known
        at = 1 + self.drawn * d
        parts = [before[:, :at], own, before[:, at:], np.tensordot(self.shares, squares, 1)]
        moments = np.concatenate(parts, axis=1)
        return Moments(moments, stiffness, self._pair_tensor(i) if tensor else None)

    def _pair_tensor(self, i: int) -> Array:
        """E[D_ab z_k z_l] from conditional averages: (1, g_t, f_t) are (1, y, -S) and what a node adds, (0, -y_x, c)."""
        d, found, known = D, self.averaged[i], self.nodes[i].z
        upper = len(_UPPER[0])
        packed = found[:, _FORCES:].reshape(len(found), upper, -1)
        sign = np.array([1.0] + [1.0] * d + [-1.0] * d)
        added = np.concatenate([np.zeros((len(found), 1)), -self.centres[i], self.targets[i]], axis=1)[:, None]
        square = np.empty((len(found), upper, _WHOLE, _WHOLE))
        square[:, :, _PAIRS[0], _PAIRS[1]] = square[:, :, _PAIRS[1], _PAIRS[0]] = packed
        square *= sign[:, None] * sign
        first = square[:, :, 0]
        crossed = added[:, :, :, None] * first[:, :, None]
        square += crossed + crossed.swapaxes(2, 3) + (added[:, :, :, None] * added[:, :, None]) * first[:, :, :1, None]
        weighted = self.shares[:, None, None] * square[:, :, 0]  # E[D (1, g_t, f_t) | g_<t]
        own = np.tensordot(self.shares, square, 1)
        size = known.shape[1] + 2 * d
        at = 1 + self.drawn * d
        old = np.concatenate([np.arange(at), at + d + np.arange(known.shape[1] - at)])
        new = np.concatenate([at + np.arange(d), size - d + np.arange(d)])
        whole = np.empty((upper, size, size))
        for pair in range(upper):
            whole[pair][np.ix_(old, old)] = known.T @ (weighted[:, pair, :1] * known)
            mixed = known.T @ weighted[:, pair, 1:]
            whole[pair][np.ix_(old, new)], whole[pair][np.ix_(new, old)] = mixed, mixed.T
            whole[pair][np.ix_(new, new)] = own[pair, 1:, 1:]
        return unpacked_tensor(whole, d)


def unpacked(packed: Array) -> Array:
    """Symmetric matrices from upper triangles, (n, d, d)."""
    found = np.empty((len(packed), D, D))
    found[:, _UPPER[0], _UPPER[1]] = found[:, _UPPER[1], _UPPER[0]] = packed
    return found


def _area(low: Array, high: Array) -> float:
    """Points of the rectangle that holds all windows."""
    return float(np.prod(high.max(axis=0) - low.min(axis=0) + 1.0))


def in_pairs(loss: ClassLoss, d: int) -> bool:
    """Whether the last stage's logits are functions of u alone, and those bounded."""
    return d == D and loss.form is not None and loss.form.linear == 0.0
