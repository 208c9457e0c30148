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
from typing import NamedTuple

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

_SMALL, _WORTH = 3000, 0.8  # of a rectangle: points up to which it is not cut, and what is worth a cut

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


def parts(low: Array, high: Array) -> Iterator[Array]:
    """Windows from ``low`` to ``high``, each (n, 2), in parts whose rectangles have few points together, as places in the list.

    Examples
    --------
    >>> low = np.array([[0.0, 0.0], [5.0, 5.0], [1000.0, 1000.0]])
    >>> [part.tolist() for part in parts(low, low + 20.0)]
    [[0, 1], [2]]
    """
    waiting = [np.arange(len(low))]
    while waiting:
        part = waiting.pop()
        area = _area(low[part], high[part])
        best, halves = _WORTH * area, None
        if len(part) > 1 and area > max(_SMALL, len(part)):
            for axis in range(2):
                order = part[np.argsort(low[part, axis])]
                gap = 1 + int(np.argmax(np.diff(low[order, axis])))
                for place in {gap, len(order) // 2}:
                    both = order[:place], order[place:]
                    areas = sum(_area(low[half], high[half]) for half in both)
                    if areas < best:
                        best, halves = areas, both
        if halves is None:
            yield np.sort(part)
        else:
            waiting.extend(reversed(halves))


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

    def shared(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of some lattice points (n, 2) are among its own, and which of these they are."""
        there = places - self.corner
        inside = np.flatnonzero(np.all((there >= 0) & (there < self.mask.shape), axis=1))
        index = np.full(self.mask.shape, -1)
        index[self.mask] = np.arange(np.count_nonzero(self.mask))
        own = index[there[inside, 0], there[inside, 1]]
        return inside[own >= 0], own[own >= 0]


class Map(NamedTuple):
    """What one lattice is mapped by: Delta, u = ``turn`` y, W = Delta V_tt and its inverse."""

    delta: float
    turn: Array
    width: Array
    precision: Array

    @classmethod
    def of(cls, delta: float, blocks) -> Map:
        """At order parameters."""
        width = delta * blocks.response[-1]
        precision = np.linalg.inv(width)
        return cls(delta, math.sqrt(delta) * blocks.cholesky[-1], width, 0.5 * (precision + precision.T))


@dataclass
class Table:
    """Proximal points on a region of the lattice, where they were last found."""

    region: Region
    map: Map
    force: Array
    stiffness: Array


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
        self.kept: dict[float, list[Table]] = {}
        self.averaged: dict[int, Array] = {}
        self.centres: dict[int, Array] = {}

    def unexplained(self, regression: Array) -> None:
        """Forces are not known one by one."""
        return

    def _prepared(self, blocks, *, tensors: bool) -> bool:
        """Conditional averages of all cells, into ``averaged``."""
        if not np.isfinite(blocks.cholesky).all() or not np.isfinite(blocks.response).all():
            return False
        deltas = {float(self.data.deltas[self.cells[i].class_index]) for i in self.used}
        return all(self._average(Map.of(delta, blocks), blocks, tensors) for delta in deltas)

    def _average(self, to: Map, blocks, tensors: bool) -> bool:
        """Those of one Delta; their centres are kept from the middle of the table that they were found in."""
        cells = [i for i in self.used if self.data.deltas[self.cells[i].class_index] == to.delta]
        back = np.linalg.inv(to.turn)
        centres = []
        for i in cells:
            x = self.nodes[i].z @ self._field(blocks, self.cells[i].class_index, self.t)[:, :-D].T
            centres.append((x + self.targets[i] @ to.width) @ back.T)
        y = np.concatenate(centres)
        coarse, fine = self.lattice
        reach = coarse.width * np.tile(self.reach, len(cells))[:, None]
        low = np.ceil((y - reach) / coarse.step - coarse.shift)
        high = np.floor((y + reach) / coarse.step - coarse.shift)
        out = np.empty((len(y), _FULL if tensors else _PLAIN))
        found: list[Table] = []
        for part in parts(low, high):
            if not _area(low[part], high[part]) * (coarse.step / (fine or coarse).step) ** 2 < MOST_POINTS:
                return False
            first, last = low[part].astype(np.int64), high[part].astype(np.int64)
            region = Region.of(first, last)
            origin = coarse.step * (region.corner + coarse.shift)
            middle = origin + 0.5 * coarse.step * np.array(region.mask.shape)
            values = self._values(region, to, middle, found, tensors)
            if values is None:
                self.kept.pop(to.delta, None)
                return False
            window = np.empty((len(first), 4), dtype=np.int64)
            window[:, ::2], window[:, 1::2] = first - region.corner, last - first + 1
            around = np.empty((len(first), out.shape[1]))
            contract(values, window, y[part] - origin, coarse.step, coarse.width, around)
            out[part] = around
            y[part] -= middle
        self.kept[to.delta] = found
        self.averaged.update(zip(cells, np.split(out, len(cells)), strict=True))
        self.centres.update(zip(cells, np.split(y, len(cells)), strict=True))
        return True

    def _values(self, region: Region, to: Map, middle: Array, found: list[Table], tensors: bool) -> Array | None:
        """Features on a region of the coarse lattice, from the fine one if there is one; None where a point was not found."""
        coarse, fine = self.lattice
        if fine is None:
            return self._features(region, coarse, to, middle, found, tensors)
        reach = self.reach.max()
        where = coarse.step * (np.argwhere(region.mask) + region.corner + coarse.shift)
        low = np.ceil((where - fine.width * reach) / fine.step - fine.shift).astype(np.int64)
        high = np.floor((where + fine.width * reach) / fine.step - fine.shift).astype(np.int64)
        inner = Region.of(low, high)
        values = self._features(inner, fine, to, middle, found, tensors)
        if values is None:
            return None
        for axis in range(2):
            there = coarse.step * (np.arange(region.mask.shape[axis]) + region.corner[axis] + coarse.shift[axis])
            here = fine.step * (np.arange(inner.mask.shape[axis]) + inner.corner[axis] + fine.shift[axis])
            apart = (there[:, None] - here) / fine.width
            weights = np.where(np.abs(apart) <= reach, np.exp(-0.5 * apart**2), 0.0)
            weights /= weights.sum(axis=1, keepdims=True)
            if axis == 0:
                values = (weights @ values.reshape(len(values), -1)).reshape(len(there), *values.shape[1:])
            else:
                values = weights @ values
        return values

    def _features(
        self, region: Region, lattice: Lattice, to: Map, middle: Array, found: list[Table], tensors: bool
    ) -> Array | None:
        """Table of features, 0 where no points are needed; proximal points start from those found last."""
        places = np.argwhere(region.mask) + region.corner
        y = np.ascontiguousarray(lattice.step * (places + lattice.shift))
        u = y @ to.turn.T
        logits, force, stiffness = np.zeros_like(u), np.empty_like(u), np.empty((*u.shape, D))
        before = self.kept.get(to.delta, [])
        for table in before:
            known, old = table.region.shared(places)
            guess = u[known]
            moved = y[known] @ (to.turn - table.map.turn).T
            stiff = table.force[old], table.stiffness[old]
            predict(moved, to.width - table.map.width, to.width, *stiff, guess)
            logits[known] = guess
        # D is that before the last step, which is long where no point was known.
        for _ in range(1 if before else 2):
            if self.losses[-1].proximal_points(to.precision, u, np.zeros_like(u), logits, force, stiffness):
                return None
        found.append(Table(region, to, force, stiffness))
        features = np.empty((len(u), _FULL if tensors else _PLAIN))
        fill(y - middle, force, stiffness, features)
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
