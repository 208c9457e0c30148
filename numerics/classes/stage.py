"""Solve the saddle point of one stage with d logits by Newton's method, given the earlier stages.

Unknowns are ``m (d, K), b (d), C_t1.. (d, d), C_tt (symmetric), V_t1.. (d, d), V_tt (symmetric)``.  Residuals and steps are
in natural units: m, b and C_ts in those of the root of Q_tt, V_ts in those of V_tt and V_ss, and C_tt and V_tt
multiply, ``C_tt^2 -> K exp(S) K``, with residuals that are logarithms of matrices.  In the first stage the scale carries m
and b along.  Without this Newton's method loses its way where the weights are nearly infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from numerics.classes.channel import Averages, Channel, Moves
from numerics.classes.controls import Controls
from numerics.classes.prior import Conjugates, Prior, Updated
from numerics.driver.chord import Evaluation
from numerics.models import Estimator

Array = NDArray[np.float64]

_LARGEST_LOG = 30.0  # of a step of C_tt or V_tt
_SMALLER = 0.5  # noise after a plain iteration that a start is worth


@dataclass(frozen=True)
class StageBlocks:
    """Order parameters of one stage, in the gauge.

    Attributes
    ----------
    mean : (d, K)
        m_tc, a column a class.
    bias : (d,)
    cholesky : (t, d, d)
        C_t1..C_tt with Q = C C^T; C_tt is symmetric, so that what permutes classes turns all blocks alike.
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
    space : array, shape (unknowns, n), optional
        Orthonormal columns that span the unknowns that may move (:func:`numerics.classes.symmetry.invariants`).
    controlled : bool
        Whether forces of earlier stages are control variates (:mod:`numerics.classes.controls`).
    """

    def __init__(
        self, channel: Channel, prior: Prior, ridge: float, earlier: Sequence[StageBlocks], space: Array | None = None,
        *, controlled: bool = True,
    ) -> None:  # fmt: skip
        self.channel, self.prior, self.ridge, self.earlier = channel, prior, ridge, earlier
        self.t = channel.t
        self.d, self.k = channel.basis.shape
        self.lower = np.tril_indices(self.d)
        self.gauges = [root_of(blocks.response[-1]) for blocks in earlier]
        self.space = space
        self.felt = _felt(channel.stages)
        # The mean of logits may hardly vary and have a bias all the same.
        self.carries_bias = not channel.losses[-1].free
        rows = [blocks.cholesky for blocks in earlier]
        self.controls = Controls(prior.conjugates[: self.t - 1], rows, channel) if rows and controlled else None

    # The two halves.

    def averages(self, blocks: StageBlocks, moves: Moves | None = None) -> Averages | None:
        """Those of the channel, with what is known of the earlier stages."""
        found = self.channel.averages(blocks, moves)
        if found is not None and self.controls is not None:
            self.controls.correct(found)
        return found

    def conjugates(self, blocks: StageBlocks, found: Averages) -> Conjugates:
        """From averages: mh, Qh and Vh; Vh_ts from Stein's lemma, sum_{s>=r} Vh_ts C_sr = -sqrt(Delta) A E[f g_r^T]."""
        t, d = self.t, self.d
        responses = np.zeros((t, d, d))
        responses[-1] = found.stiffness
        rows = [*(stage.cholesky for stage in self.earlier), blocks.cholesky]
        for r in self.felt:
            left = -found.force_normal[r] - sum(responses[s] @ rows[s][r] for s in range(r + 1, t))
            responses[r] = np.linalg.solve(rows[r][r].T, left.T).T
        return Conjugates(found.force.T.copy(), found.force_force, responses, found.explained)

    def plain(self, blocks: StageBlocks) -> tuple[Averages, Conjugates, Updated] | None:
        """One plain iteration: averages, conjugates, and what the prior makes of them."""
        found = self.averages(blocks)
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
        scale, own, root = root_of(blocks.overlap), blocks.cholesky[-1], root_of(blocks.response[-1])
        raw = self._tangent(blocks, scale, root) if jacobian else None
        found = self.averages(blocks, raw)
        if found is None:
            return None
        conjugates = self.conjugates(blocks, found)
        new = self.prior.update(self.t, self.ridge, conjugates)
        if new is None:
            return None
        t = self.t
        inverse, inverse_root = (np.linalg.inv(item) for item in (own, root))
        log_grown = MatrixLog(symmetric(inverse @ new.cholesky[-1] @ new.cholesky[-1].T @ inverse))
        log_stiffened = MatrixLog(symmetric(inverse_root @ new.response[-1] @ inverse_root))
        if not (log_grown.defined and log_stiffened.defined):
            return None
        units = np.linalg.inv(scale)
        parts = [
            units @ (new.magnetization - blocks.mean),
            np.linalg.solve(bias_unit(scale), np.linalg.solve(found.bare_stiffness, found.force.sum(axis=0))),
            *(units @ (new.cholesky[s] - blocks.cholesky[s]) for s in range(t - 1)),
            log_grown.value[self.lower],
            *(inverse_root @ np.linalg.solve(self.gauges[s], (new.response[s] - blocks.response[s]).T).T for s in range(t - 1)),
            log_stiffened.value[self.lower],
        ]  # fmt: skip
        residual = np.concatenate([np.ravel(part) for part in parts])
        if not np.isfinite(residual).all():
            return None
        if self.space is not None:
            residual = self.space.T @ residual
        if not jacobian:
            return Evaluation(residual, None)
        moved = self._conjugate_slopes(blocks, found, conjugates, raw)  # of mh, Qh, Vh
        slopes = tuple(item @ moved for item in self.prior.slopes(t, self.ridge, conjugates))
        whole = self._chain(blocks, (found, new), slopes, raw, (log_grown, log_stiffened))
        return Evaluation(residual, whole if self.space is None else self.space.T @ whole)

    # The Jacobian, by the chain rule: unknowns in natural units -> blocks -> conjugates -> blocks -> residual.

    def _symmetric_basis(self) -> Array:
        """Symmetric matrices with one entry of the lower triangle, (d, d, d(d+1)/2)."""
        d = self.d
        found = np.zeros((d, d, len(self.lower[0])))
        for n, (i, j) in enumerate(zip(*self.lower, strict=True)):
            found[i, j, n] = found[j, i, n] = 1.0
        return found

    def _split(self, moves: Array) -> list[Array]:
        """Unknowns, or columns of them, block by block: m, b, C_t1.., C_tt, V_t1.., V_tt."""
        square, n_lower = self.d**2, len(self.lower[0])
        sizes = [self.d * self.k, self.d, *[square] * (self.t - 1), n_lower, *[square] * (self.t - 1), n_lower]
        return np.split(moves, np.cumsum(sizes)[:-1])

    def _tangent(self, blocks: StageBlocks, scale: Array, root: Array) -> Moves:
        """Blocks moved by the unknowns, which are in natural units."""
        d, k, t = self.d, self.k, self.t
        n_lower = len(self.lower[0])
        size = d * k + d + 2 * (t - 1) * d * d + 2 * n_lower
        parts = self._split(np.eye(size) if self.space is None else self.space)
        n = parts[0].shape[1]
        basis = self._symmetric_basis()
        grown, stiffened = (np.einsum("ijl,ln->ijn", basis, parts[at]) for at in (1 + t, 1 + 2 * t))
        own = blocks.cholesky[-1]
        last = root_slope(own, sandwich(own, grown, own))
        mean = np.einsum("ij,jkn->ikn", scale, parts[0].reshape(d, k, n))
        bias = bias_unit(scale) @ parts[1]
        if t == 1:
            carried = np.linalg.solve(own, np.column_stack([blocks.mean, blocks.bias]))
            carried = np.einsum("ijn,jc->icn", last, carried)
            mean = mean + carried[:, :k]
            if self.carries_bias:
                bias = bias + carried[:, k]
        cholesky = [np.einsum("ij,jkn->ikn", scale, parts[2 + s].reshape(d, d, n)) for s in range(t - 1)]
        response = [sandwich(root, parts[2 + t + s].reshape(d, d, n), self.gauges[s]) for s in range(t - 1)]
        response.append(sandwich(root, stiffened, root))
        return Moves(mean, bias, np.stack([*cholesky, last]), np.stack(response))

    def _conjugate_slopes(self, blocks: StageBlocks, found: Averages, conjugates: Conjugates, raw: Moves) -> Array:
        """Conjugates mh, Qh_t1.., Vh_t1.. moved by the unknowns."""
        t, n = self.t, raw.bias.shape[1]
        slopes, rows = found.slopes, [*(stage.cholesky for stage in self.earlier), blocks.cholesky]
        responses = np.zeros((t, self.d, self.d, n))
        for r in (t - 1, *self.felt):
            # sum_{s>=r} Vh_ts C_sr = -P_r; of the C's only those of this stage move.
            left = -slopes.force_normal[r] - np.einsum("ij,jkn->ikn", conjugates.responses[-1], raw.cholesky[r])
            for s in range(r + 1, t):
                left -= np.einsum("ijn,jk->ikn", responses[s], rows[s][r])
            responses[r] = np.einsum("ijn,jk->ikn", left, np.linalg.inv(rows[r][r]))
            if r == t - 1:  # symmetric before others follow from it: of a student near its teacher they nearly cancel
                responses[r] = 0.5 * (responses[r] + responses[r].transpose(1, 0, 2))
        force = slopes.force.transpose(1, 0, 2)
        return np.concatenate([item.reshape(-1, n) for item in (force, slopes.force_force, responses)])

    def _chain(
        self, blocks: StageBlocks, halves: tuple[Averages, Updated], slopes: tuple[Array, ...], raw: Moves,
        logs: tuple[MatrixLog, MatrixLog],
    ) -> Array:  # fmt: skip
        """Jacobian of the residual, in all its components."""
        found, new = halves
        m_slope, q_slope, v_slope = slopes
        d, k, t, n = self.d, self.k, self.t, raw.bias.shape[1]
        own, root, scale = blocks.cholesky[-1], root_of(blocks.response[-1]), root_of(blocks.overlap)
        units, inverse, inverse_root = (np.linalg.inv(item) for item in (scale, own, root))
        turn = np.einsum("ij,jkn->ikn", inverse, raw.cholesky[-1])
        mean = np.einsum("ij,jkn->ikn", units, m_slope.reshape(d, k, n) - raw.mean)
        if t == 1:  # the units move with the scale
            mean -= np.einsum("ijn,jc->icn", turn, units @ (new.magnetization - blocks.mean))
        bias = np.linalg.solve(bias_unit(scale), np.linalg.solve(found.bare_stiffness, found.slopes.force.sum(axis=0)))
        # C_ts by forward substitution on the earlier factor, whose blocks do not move: Q_ts = sum_{r<=s} C_tr C_sr^T.
        rows = [stage.cholesky for stage in self.earlier]
        overlaps, cholesky = q_slope.reshape(t, d, d, n), []
        rest = overlaps[-1].copy()
        for s in range(t - 1):
            left = overlaps[s] - sum(np.einsum("ijn,kj->ikn", cholesky[r], rows[s][r]) for r in range(s))
            cholesky.append(np.einsum("ijn,jk->ikn", left, np.linalg.inv(rows[s][s]).T))
            change = np.einsum("ijn,kj->ikn", cholesky[s], new.cholesky[s])
            rest -= change + change.transpose(1, 0, 2)
        coupled = [np.einsum("ij,jkn->ikn", units, cholesky[s] - raw.cholesky[s]) for s in range(t - 1)]
        grown = logs[0].slope(turn, sandwich(inverse, rest, inverse))
        responses = v_slope.reshape(t, d, d, n)
        answered = [
            sandwich(inverse_root, responses[s] - raw.response[s], np.linalg.inv(self.gauges[s])) for s in range(t - 1)
        ]
        turn = np.einsum("ij,jkn->ikn", inverse_root, root_slope(root, raw.response[-1]))
        stiffened = logs[1].slope(turn, sandwich(inverse_root, responses[-1], inverse_root))
        parts = [mean, bias, *coupled, grown[self.lower], *answered, stiffened[self.lower]]
        return np.concatenate([part.reshape(-1, n) for part in parts])

    # Steps.

    def advanced(self, blocks: StageBlocks, move: Array) -> StageBlocks:
        """See :class:`numerics.driver.chord.CostlyProblem`; not finite where a block is no longer positive definite."""
        try:
            return self._advanced(blocks, move)
        except np.linalg.LinAlgError:
            return replace(blocks, mean=np.full_like(blocks.mean, np.nan))

    def _advanced(self, blocks: StageBlocks, move: Array) -> StageBlocks:
        d, k, t = self.d, self.k, self.t
        parts = self._split(move if self.space is None else self.space @ move)
        scale, root = root_of(blocks.overlap), root_of(blocks.response[-1])
        grown, mean, bias = blocks.cholesky[-1], blocks.mean, blocks.bias
        last = root_of(grown @ exponential(self._symmetric(parts[1 + t])) @ grown)
        if t == 1:
            turned = last @ np.linalg.inv(grown)
            mean, bias = turned @ mean, turned @ bias if self.carries_bias else bias
            scale = last
        mean = mean + scale @ parts[0].reshape(d, k)
        bias = bias + bias_unit(scale) @ parts[1]
        cholesky = [blocks.cholesky[s] + scale @ parts[2 + s].reshape(d, d) for s in range(t - 1)]
        response = [blocks.response[s] + root @ parts[2 + t + s].reshape(d, d) @ self.gauges[s] for s in range(t - 1)]
        own = symmetric(root @ exponential(self._symmetric(parts[-1])) @ root)
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
        curvature = self.channel.losses[-1].curvature_at_rest
        cells = [self.channel.cells[i] for i in self.channel.used]
        weights = np.array([cell.weight for cell in cells])
        delta = float(weights @ [self.channel.data.deltas[cell.class_index] for cell in cells]) / weights.sum()
        groups = self.prior.groups
        share = groups.share * groups.active[:, t - 1]
        eta = float(share.sum())
        ridge = self.ridge * eta / float(share @ groups.variance)
        # V = eta/(ridge + alpha Delta s/(1 + Delta V s)) for S' = s, on inputs of the mean variance
        pull, slope = weights.sum() * delta * curvature, delta * curvature
        linear = ridge + pull - eta * slope
        v = 2.0 * eta / (linear + math.sqrt(linear**2 + 4.0 * eta * slope * ridge))
        eye = np.eye(d)
        zero = np.zeros((t, d, d))
        cholesky, response = zero.copy(), zero.copy()
        cholesky[-1], response[-1] = 0.1 * eye, v * eye
        blocks = StageBlocks(np.zeros((d, k)), np.zeros(d), cholesky, response)
        found = self.plain(blocks)
        if found is None:
            return blocks
        return self._by_plain_iterations(blocks, found)

    def _by_plain_iterations(self, blocks: StageBlocks, found: tuple[Averages, Conjugates, Updated]) -> StageBlocks:
        """As long as they more than halve the noise C_tt, which is that of a wrong bias where ridges are large."""
        while True:
            averages, _, new = found
            size = np.linalg.norm(new.cholesky[-1])
            blocks = replace(blocks, mean=new.magnetization, cholesky=new.cholesky)
            try:
                step = np.linalg.solve(averages.bare_stiffness, averages.force.sum(axis=0))
            except np.linalg.LinAlgError:
                return blocks
            trial = replace(blocks, bias=blocks.bias + step / max(1.0, float(np.max(np.abs(step)))))
            found = self.plain(trial)
            if found is None or not np.linalg.norm(found[2].cholesky[-1]) < _SMALLER * size:
                return blocks
            blocks = trial


def _felt(stages: Sequence[Estimator]) -> list[int]:
    """Places of the stages before the last that it looks at, or that those look at, the latest first: it responds to no other."""
    felt: set[int] = set()
    for t in range(len(stages), 0, -1):
        if t == len(stages) or t - 1 in felt:
            felt |= {s - 1 for s in stages[t - 1].loss.stages(t)}
    return sorted(felt, reverse=True)


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
        inner = sandwich(self.vectors.T, moved, self.vectors) * self.quotients[:, :, None]
        return sandwich(self.vectors, inner, self.vectors.T)


def bias_unit(scale: Array) -> Array:
    """What biases are measured in: widths of the logits of fresh samples, and 1, which is what a softmax turns over."""
    return scale + np.eye(len(scale))


def root_of(matrix: Array) -> Array:
    """Symmetric root of a positive definite matrix; LinAlgError if it is not one."""
    values, vectors = np.linalg.eigh(symmetric(matrix))
    if not values[0] > 0.0:
        raise np.linalg.LinAlgError("not positive definite")
    return (vectors * np.sqrt(values)) @ vectors.T


def root_slope(root: Array, moves: Array) -> Array:
    """How the root moves where its square does, (d, d, n): R dR + dR R = d(R^2)."""
    values, vectors = np.linalg.eigh(root)
    inner = sandwich(vectors.T, moves, vectors)
    inner = inner / (values[:, None] + values)[:, :, None]
    return sandwich(vectors, inner, vectors.T)


def sandwich(left: Array, moves: Array, right: Array) -> Array:
    """Products L M R for all M = ``moves[:, :, n]``."""
    return np.tensordot(np.tensordot(left, moves, 1), right, (1, 0)).swapaxes(1, 2)


def symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)


def exponential(matrix: Array) -> Array:
    """Of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.exp(np.clip(values, -_LARGEST_LOG, _LARGEST_LOG))) @ vectors.T
