"""Solve the saddle point of one stage with d logits by Newton's method, given the earlier stages.

Unknowns are ``m (d, K), b (d), C_t1.. (d, d), C_tt (lower triangle), V_t1.. (d, d), V_tt (symmetric)``.  Residuals and steps are
in natural units: m, b and C_ts in those of the Cholesky factor of Q_tt, V_ts in those of V_tt and V_ss, and C_tt and V_tt
multiply, ``C_tt C_tt^T -> K exp(S) K^T``, with residuals that are logarithms of matrices.  In the first stage the scale carries m
and b along.  Without this Newton's method loses its way where the weights are nearly infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from numerics.classes.channel import Averages, Channel
from numerics.classes.prior import Conjugates, Prior, Updated
from numerics.driver.chord import Evaluation

Array = NDArray[np.float64]

_LARGEST_LOG = 30.0  # of a step of C_tt or V_tt


@dataclass(frozen=True)
class StageBlocks:
    """Order parameters of one stage, in the gauge.

    Attributes
    ----------
    mean : (d, K)
        m_tc, a column a class.
    bias : (d,)
    cholesky : (t, d, d)
        C_t1..C_tt with Q = C C^T; C_tt is lower triangular.
    response : (t, d, d)
        V_t1..V_tt.
    """

    mean: Array
    bias: Array
    cholesky: Array
    response: Array

    @property
    def overlap(self) -> Array:
        """Q_tt."""
        return np.einsum("rax,rbx->ab", self.cholesky, self.cholesky)


class StageEquations:
    """A stage as :func:`numerics.driver.chord.chord` takes it.

    Parameters
    ----------
    channel, prior
        The two halves; ``prior`` holds the earlier stages.
    ridge : float
    earlier : sequence of StageBlocks
    """

    def __init__(self, channel: Channel, prior: Prior, ridge: float, earlier: Sequence[StageBlocks]) -> None:
        self.channel, self.prior, self.ridge, self.earlier = channel, prior, ridge, earlier
        self.t = channel.t
        self.d, self.k = channel.basis.shape
        self.lower = np.tril_indices(self.d)
        self.gauges = [np.linalg.cholesky(symmetric(blocks.response[-1])) for blocks in earlier]

    # The two halves.

    def conjugates(self, blocks: StageBlocks, found: Averages) -> Conjugates:
        """From averages: mh, Qh and Vh; Vh_ts from Stein's lemma, sum_{s>=r} Vh_ts C_sr = -sqrt(Delta) A E[f g_r^T]."""
        t, d = self.t, self.d
        responses = np.zeros((t, d, d))
        responses[-1] = found.stiffness
        rows = [*(stage.cholesky for stage in self.earlier), blocks.cholesky]
        for r in range(t - 2, -1, -1):
            left = -found.force_normal[r] - sum(responses[s] @ rows[s][r] for s in range(r + 1, t))
            responses[r] = solve_triangular(rows[r][r].T, left.T, lower=False).T
        return Conjugates(found.force.T.copy(), found.force_force, responses)

    def plain(self, blocks: StageBlocks) -> tuple[Averages, Conjugates, Updated] | None:
        """One plain iteration: averages, conjugates, and what the prior makes of them."""
        found = self.channel.averages(blocks, jacobian=False)
        if found is None:
            return None
        conjugates = self.conjugates(blocks, found)
        updated = self.prior.update(self.t, self.ridge, conjugates)
        return None if updated is None else (found, conjugates, updated)

    # Residuals.

    def evaluate(self, blocks: StageBlocks, *, jacobian: bool) -> Evaluation | None:
        """See :class:`numerics.driver.chord.CostlyProblem`."""
        try:
            return self._evaluate(blocks, jacobian)
        except np.linalg.LinAlgError:
            return None

    def _evaluate(self, blocks: StageBlocks, jacobian: bool) -> Evaluation | None:
        found = self.channel.averages(blocks, jacobian=jacobian)
        if found is None:
            return None
        conjugates = self.conjugates(blocks, found)
        new = self.prior.update(self.t, self.ridge, conjugates)
        if new is None:
            return None
        t = self.t
        scale = np.linalg.cholesky(symmetric(blocks.overlap))
        own, root = blocks.cholesky[-1], np.linalg.cholesky(symmetric(blocks.response[-1]))
        inverse, inverse_root = (np.linalg.inv(item) for item in (own, root))
        grown = symmetric(inverse @ new.cholesky[-1] @ new.cholesky[-1].T @ inverse.T)
        stiffened = symmetric(inverse_root @ new.response[-1] @ inverse_root.T)
        log_grown, log_stiffened = MatrixLog(grown), MatrixLog(stiffened)
        if not (log_grown.defined and log_stiffened.defined):
            return None
        units = np.linalg.inv(scale)
        parts = [
            units @ (new.magnetization - blocks.mean),
            np.linalg.solve(bias_unit(scale), np.linalg.solve(found.bare_stiffness, found.force.sum(axis=0))),
            *(units @ (new.cholesky[s] - blocks.cholesky[s]) for s in range(t - 1)),
            log_grown.value[self.lower],
            *(
                inverse_root @ np.linalg.solve(self.gauges[s], (new.response[s] - blocks.response[s]).T).T
                for s in range(t - 1)
            ),
            log_stiffened.value[self.lower],
        ]
        residual = np.concatenate([np.ravel(part) for part in parts])
        if not np.isfinite(residual).all():
            return None
        if not jacobian:
            return Evaluation(residual, None)
        raw = self._tangent(blocks, scale, root)
        moved = self._conjugate_slopes(blocks, found, conjugates) @ raw  # of mh, Qh, Vh, bias
        n_conjugate = self.d * self.k + 2 * t * self.d**2
        m_slope, q_slope, v_slope = (
            item @ moved[:n_conjugate] for item in self.prior.slopes(t, self.ridge, conjugates)
        )
        return Evaluation(
            residual,
            self._chain(
                blocks, (found, new), (m_slope, q_slope, v_slope, moved[n_conjugate:]), raw, (log_grown, log_stiffened)
            ),
        )

    # The Jacobian, by the chain rule: unknowns in natural units -> blocks -> conjugates -> blocks -> residual.

    def _places(self) -> dict[str, slice]:
        """Where blocks are among raw ones: m, b, all C, all V, flattened and full."""
        d, k, t = self.d, self.k, self.t
        sizes = {"m": d * k, "b": d, "C": t * d * d, "V": t * d * d}
        found, at = {}, 0
        for name, size in sizes.items():
            found[name] = slice(at, at + size)
            at += size
        return found

    def _halves(self) -> Array:
        """Phi(S) of the basis of symmetric matrices: the lower triangle with half the diagonal, (d, d, d(d+1)/2)."""
        d = self.d
        found = np.zeros((d, d, len(self.lower[0])))
        for n, (i, j) in enumerate(zip(*self.lower, strict=True)):
            found[i, j, n] = 0.5 if i == j else 1.0
        return found

    def _tangent(self, blocks: StageBlocks, scale: Array, root: Array) -> Array:
        """Raw blocks moved by unknowns in natural units, (raw, unknowns)."""
        d, k, t = self.d, self.k, self.t
        at, halves = self._places(), self._halves()
        n_lower, square = halves.shape[2], d * d
        n = d * k + d + 2 * (t - 1) * square + 2 * n_lower
        raw = np.zeros((d * k + d + 2 * t * square, n))
        column = 0

        def fill(rows: slice, values: Array) -> None:
            nonlocal column
            raw[rows, column : column + values.shape[1]] = values
            column += values.shape[1]

        fill(at["m"], np.kron(scale, np.eye(k)))
        fill(at["b"], bias_unit(scale))
        start = at["C"].start
        for s in range(t - 1):
            fill(slice(start + s * square, start + (s + 1) * square), np.kron(scale, np.eye(d)))
        moved = np.einsum("ij,jkn->ikn", blocks.cholesky[-1], halves)
        if t == 1:
            carried = np.linalg.solve(blocks.cholesky[-1], np.column_stack([blocks.mean, blocks.bias]))
            carried = np.einsum("ijn,jc->icn", moved, carried)
            raw[at["m"], column : column + n_lower] = carried[:, :k].reshape(d * k, -1)
            raw[at["b"], column : column + n_lower] = carried[:, k]
        fill(slice(start + (t - 1) * square, start + t * square), moved.reshape(square, -1))
        start = at["V"].start
        for s in range(t - 1):
            fill(slice(start + s * square, start + (s + 1) * square), np.kron(root, self.gauges[s]))
        full = halves + halves.transpose(1, 0, 2)
        fill(
            slice(start + (t - 1) * square, start + t * square),
            np.einsum("ij,jkn,lk->iln", root, full, root).reshape(square, -1),
        )
        return raw

    def _conjugate_slopes(self, blocks: StageBlocks, found: Averages, conjugates: Conjugates) -> Array:
        """Conjugates mh, Qh_t1.., Vh_t1.. and the bias's condition moved by raw blocks."""
        d, k, t = self.d, self.k, self.t
        at = self._places()
        n_raw = at["V"].stop
        # Of averages, with (class or g or f, force) first, by raw blocks.
        slopes = found.slopes.transpose(0, 1, 3, 2)  # [l, a, i, k]
        by = np.zeros((k + 2 * t * d, d, n_raw))
        by[:, :, at["m"]] = slopes[..., :k].reshape(*by.shape[:2], -1)
        by[:, :, at["b"]] = slopes[..., :k].sum(axis=3)
        for name, first in (("C", k), ("V", k + t * d)):
            part = slopes[..., first : first + t * d].reshape(*by.shape[:2], d, t, d)
            by[:, :, at[name]] = part.transpose(0, 1, 3, 2, 4).reshape(*by.shape[:2], -1)
        force = by[:k].transpose(1, 0, 2).reshape(d * k, n_raw)
        normal = by[k : k + t * d].reshape(t, d, d, n_raw).transpose(0, 2, 1, 3)  # [r, a, b]
        forces = by[k + t * d :].reshape(t, d, d, n_raw).transpose(0, 2, 1, 3)
        rows = [*(stage.cholesky for stage in self.earlier), blocks.cholesky]
        responses = np.zeros((t, d, d, n_raw))
        raw_c = np.zeros((t, d, d, n_raw))
        raw_c.reshape(-1, n_raw)[:, at["C"]] = np.eye(t * d * d)
        for r in range(t - 1, -1, -1):
            # sum_{s>=r} Vh_ts C_sr = -P_r; of the C's only those of this stage move.
            left = -normal[r] - np.einsum("ij,jkn->ikn", conjugates.responses[-1], raw_c[r])
            for s in range(r + 1, t):
                left -= np.einsum("ijn,jk->ikn", responses[s], rows[s][r])
            responses[r] = np.einsum("ijn,jk->ikn", left, np.linalg.inv(rows[r][r]))
        responses[-1] = 0.5 * (responses[-1] + responses[-1].transpose(1, 0, 2))
        bias = by[:k].sum(axis=0)
        return np.concatenate([force, forces.reshape(-1, n_raw), responses.reshape(-1, n_raw), bias])

    def _chain(
        self, blocks: StageBlocks, halves: tuple[Averages, Updated], slopes: tuple[Array, ...], raw: Array,
        logs: tuple[MatrixLog, MatrixLog],
    ) -> Array:  # fmt: skip
        """Jacobian of the residual."""
        found, new = halves
        m_slope, q_slope, v_slope, bias_slope = slopes
        d, k, t = self.d, self.k, self.t
        at, n = self._places(), raw.shape[1]
        own = blocks.cholesky[-1]
        root = np.linalg.cholesky(symmetric(blocks.response[-1]))
        scale = np.linalg.cholesky(symmetric(blocks.overlap))
        units = np.linalg.inv(scale)
        inverse, inverse_root = np.linalg.inv(own), np.linalg.inv(root)
        raw_c, raw_v = (raw[at[name]].reshape(t, d, d, n) for name in "CV")
        parts = [np.einsum("ij,jkn->ikn", units, (m_slope - raw[at["m"]]).reshape(d, k, n)).reshape(d * k, n)]
        parts.append(np.linalg.solve(bias_unit(scale), np.linalg.solve(found.bare_stiffness, bias_slope)))
        turn = np.einsum("ij,jkn->ikn", inverse, raw_c[-1])  # Phi(S)
        if t == 1:  # the units move with the scale
            parts[0] -= np.einsum("ijn,jc->icn", turn, units @ (new.magnetization - blocks.mean)).reshape(d * k, n)
        # C_ts = Q_t,<s.. by forward substitution on the earlier triangle, whose blocks do not move.
        rows = [stage.cholesky for stage in self.earlier]
        cholesky = np.zeros((t, d, d, n))
        overlaps = q_slope.reshape(t, d, d, n)
        for s in range(t - 1):
            # Q_ts = sum_{r<=s} C_tr C_sr^T
            left = overlaps[s] - sum(np.einsum("ijn,kj->ikn", cholesky[r], rows[s][r]) for r in range(s))
            cholesky[s] = np.einsum("ijn,kj->ikn", left, np.linalg.inv(rows[s][s]))
            parts.append(np.einsum("ij,jkn->ikn", units, cholesky[s] - raw_c[s]).reshape(d * d, n))
        rest = overlaps[-1].copy()
        for s in range(t - 1):
            change = np.einsum("ijn,kj->ikn", cholesky[s], new.cholesky[s])
            rest -= change + change.transpose(1, 0, 2)
        parts.append(logs[0].slope(turn, np.einsum("ij,jkn,lk->iln", inverse, rest, inverse))[self.lower])
        for s in range(t - 1):
            change = (v_slope[s].reshape(d, d, n) - raw_v[s]).reshape(d, d, n)
            left = np.linalg.inv(self.gauges[s])
            parts.append(np.einsum("ij,jkn,lk->iln", inverse_root, change, left).reshape(d * d, n))
        turn = self._lower_half(np.einsum("ij,jkn,lk->iln", inverse_root, raw_v[-1], inverse_root))
        change = np.einsum("ij,jkn,lk->iln", inverse_root, v_slope[-1].reshape(d, d, n), inverse_root)
        parts.append(logs[1].slope(turn, change)[self.lower])
        return np.concatenate(parts)

    def _lower_half(self, symmetric_moves: Array) -> Array:
        """Phi of symmetric matrices, (d, d, n)."""
        mask = np.tril(np.ones((self.d, self.d)), -1) + 0.5 * np.eye(self.d)
        return mask[:, :, None] * symmetric_moves

    # Steps.

    def advanced(self, blocks: StageBlocks, move: Array) -> StageBlocks:
        """See :class:`numerics.driver.chord.CostlyProblem`."""
        d, k, t = self.d, self.k, self.t
        n_lower, square = len(self.lower[0]), d * d
        sizes = [d * k, d, *[square] * (t - 1), n_lower, *[square] * (t - 1), n_lower]
        parts = np.split(move, np.cumsum(sizes)[:-1])
        scale = np.linalg.cholesky(symmetric(blocks.overlap))
        root = np.linalg.cholesky(symmetric(blocks.response[-1]))
        grown, mean, bias = blocks.cholesky[-1], blocks.mean, blocks.bias
        last = grown @ np.linalg.cholesky(exponential(self._symmetric(parts[1 + t])))
        if t == 1:
            turned = last @ np.linalg.inv(grown)
            mean, bias = turned @ mean, turned @ bias
            scale = last
        mean = mean + scale @ parts[0].reshape(d, k)
        bias = bias + bias_unit(scale) @ parts[1]
        cholesky = [blocks.cholesky[s] + scale @ parts[2 + s].reshape(d, d) for s in range(t - 1)]
        response = [blocks.response[s] + root @ parts[2 + t + s].reshape(d, d) @ self.gauges[s].T for s in range(t - 1)]
        own = symmetric(root @ exponential(self._symmetric(parts[-1])) @ root.T)
        return replace(
            blocks, mean=mean, bias=bias, cholesky=np.stack([*cholesky, last]), response=np.stack([*response, own])
        )

    def _symmetric(self, lower: Array) -> Array:
        found = np.zeros((self.d, self.d))
        found[self.lower] = lower
        return found + np.tril(found, -1).T

    # Starts.

    def start(self) -> StageBlocks:
        """From logits that are 0: what one plain iteration makes of them, with the response of uncorrelated samples."""
        d, k, t = self.d, self.k, self.t
        form = self.channel.losses[-1].form
        curvature = form.linear + (form.hard + form.soft / form.temperature) / k
        cells = [self.channel.cells[i] for i in self.channel.used]
        weights = np.array([cell.weight for cell in cells])
        delta = float(weights @ [self.channel.data.deltas[cell.class_index] for cell in cells]) / weights.sum()
        eta = sum(group.pattern.share for group in self.prior.groups if group.pattern.active[t - 1])
        # V = eta/(ridge + alpha Delta s/(1 + Delta V s)) for S' = s
        pull, slope = weights.sum() * delta * curvature, delta * curvature
        linear = self.ridge + pull - eta * slope
        v = 2.0 * eta / (linear + math.sqrt(linear**2 + 4.0 * eta * slope * self.ridge))
        eye = np.eye(d)
        zero = np.zeros((t, d, d))
        cholesky, response = zero.copy(), zero.copy()
        cholesky[-1], response[-1] = 0.1 * eye, v * eye
        blocks = StageBlocks(np.zeros((d, k)), np.zeros(d), cholesky, response)
        found = self.plain(blocks)
        if found is None:
            return blocks
        new = found[2]
        return replace(blocks, mean=new.magnetization, cholesky=new.cholesky)


class MatrixLog:
    """Logarithm of a positive definite matrix, with its derivative by divided differences."""

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        values, self.vectors = np.linalg.eigh(matrix)
        self.defined = bool(values[0] > 0.0 and np.isfinite(values).all())
        if not self.defined:
            return
        logs = np.log(values)
        self.value = (self.vectors * logs) @ self.vectors.T
        apart = values[:, None] - values
        near = np.abs(apart) < 1e-7 * (values[:, None] + values)
        mean = 0.5 * (values[:, None] + values)
        self.quotients = np.where(near, 1.0 / mean, (logs[:, None] - logs) / np.where(near, 1.0, apart))

    def slope(self, turn: Array, change: Array) -> Array:
        """Of log(K^-1 A K^-T), where K moves to K(1 + turn), and A so that K^-1 dA K^-T = ``change``; arrays (d, d, n)."""
        turned = np.einsum("ijn,jk->ikn", turn, self.matrix)
        moved = change - turned - turned.transpose(1, 0, 2)
        inner = np.einsum("ji,jkn,kl->iln", self.vectors, moved, self.vectors) * self.quotients[:, :, None]
        return np.einsum("ij,jkn,lk->iln", self.vectors, inner, self.vectors)


def bias_unit(scale: Array) -> Array:
    """What biases are measured in: widths of the logits of fresh samples, and 1, which is what a softmax turns over."""
    return scale + np.eye(len(scale))


def symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)


def exponential(matrix: Array) -> Array:
    """Of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.exp(np.clip(values, -_LARGEST_LOG, _LARGEST_LOG))) @ vectors.T
