"""The prior in blocks: conjugates -> order parameters, by the resolvent of a block-triangular matrix on groups of coordinates.

On a group of coordinates, those that the same stages train, the weights are ``w_t = a_t mu + sum_s G_ts xi_s`` with

    G_tt = (ridge + Vh_tt)^-1,    w_t = G_tt (mh_t mu + xi_t - sum_{s<t} Vh_ts w_s)

(:func:`theory.blocks.propagators`).  Every weight is kept as a row of factors F with w.w' = F F'^T, so that the part of a weight
that is orthogonal to earlier ones comes from a QR decomposition, without the difference of two nearly equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from numerics.scalar.prior import Pattern

Array = NDArray[np.float64]


@dataclass
class Conjugates:
    """mh (d, K), and the rows Qh_t1..Qh_tt and Vh_t1..Vh_tt, each (t, d, d)."""

    magnetization: Array
    overlaps: Array
    responses: Array


@dataclass
class Updated:
    """What the prior makes of conjugates.

    Attributes
    ----------
    magnetization : (d, K)
    cholesky : (t, d, d)
        Row C_t1..C_tt of the factor of Q, with symmetric blocks on its diagonal.
    response : (t, d, d)
        V_t1..V_tt.
    overlap : (t, d, d)
        Q_t1..Q_tt.
    """

    magnetization: Array
    cholesky: Array
    response: Array
    overlap: Array


@dataclass
class _Group:
    """One pattern of masks: a_s (d, K), and G_s1..G_sk (k, d, d), zero for stages that are not active."""

    pattern: Pattern
    alignments: list[Array] = field(default_factory=list)
    propagators: list[Array] = field(default_factory=list)


class Prior:
    """Weights of the stages so far.

    Parameters
    ----------
    gram : (K, K)
        Of the means.
    patterns : sequence of Pattern
        Groups of coordinates (:func:`numerics.scalar.prior.mask_patterns`).
    """

    def __init__(self, gram: Array, patterns: Sequence[Pattern]) -> None:
        values, vectors = np.linalg.eigh(gram)
        self.gram, self.root = gram, vectors * np.sqrt(np.clip(values, 0.0, None))
        self.groups = [_Group(pattern) for pattern in patterns]
        self.conjugates: list[Conjugates] = []
        self.cholesky = np.zeros((0, 0))

    def _row(self, group: _Group, t: int, conjugates: Conjugates, inverse: Array) -> tuple[Array, Array]:
        """a_t and G_t1..G_tt on a group."""
        alignment = conjugates.magnetization.copy()
        propagators = np.zeros((t, *inverse.shape))
        propagators[-1] = np.eye(len(inverse))
        for s in range(t - 1):
            alignment -= conjugates.responses[s] @ group.alignments[s]
            propagators[: s + 1] -= conjugates.responses[s] @ group.propagators[s]
        return inverse @ alignment, inverse @ propagators

    def _factor(self, conjugates: Conjugates) -> Array:
        """R with R R^T = Qh of all stages, (td, td)."""
        t, d, _ = conjugates.overlaps.shape
        whole = np.zeros((t * d, t * d))
        for r, row in enumerate([*(c.overlaps for c in self.conjugates), conjugates.overlaps]):
            for s, block in enumerate(row):
                whole[r * d : (r + 1) * d, s * d : (s + 1) * d] = block
                whole[s * d : (s + 1) * d, r * d : (r + 1) * d] = block.T
        values, vectors = np.linalg.eigh(whole)
        return vectors * np.sqrt(np.clip(values, 0.0, None))

    def _weights(self, group: _Group, s: int, row: tuple[Array, Array], factor: Array) -> Array:
        """F of w_s on a group, (d, K + td)."""
        alignment, propagators = row
        d = len(alignment)
        fields = sum(propagators[r] @ factor[r * d : (r + 1) * d] for r in range(s))
        return np.sqrt(group.pattern.share) * np.column_stack([alignment @ self.root, fields])

    def update(self, t: int, ridge: float, conjugates: Conjugates) -> Updated | None:
        """Order parameters of stage t; None if ridge + Vh_tt is not positive definite."""
        d = len(conjugates.magnetization)
        inverse = resolvent(ridge, conjugates.responses[-1])
        if inverse is None:
            return None
        factor = self._factor(conjugates)
        rows = [
            self._row(group, t, conjugates, inverse) if group.pattern.active[t - 1] else None for group in self.groups
        ]
        stack = []
        magnetization, response = np.zeros(conjugates.magnetization.shape), np.zeros((t, d, d))
        for group, row in zip(self.groups, rows, strict=True):
            own = [(a, g) for a, g in zip(group.alignments, group.propagators, strict=True)]
            own.append(row if row is not None else (np.zeros((d, len(self.gram))), np.zeros((t, d, d))))
            stack.append(np.vstack([self._weights(group, s + 1, item, factor) for s, item in enumerate(own)]))
            if row is not None:
                magnetization += group.pattern.share * row[0] @ self.gram
                response += group.pattern.share * row[1]
        whole = np.column_stack(stack)
        triangle = np.linalg.qr(whole.T, mode="r").T
        last = triangle[(t - 1) * d :].copy()
        for s in range(t):
            # Blocks on the diagonal are symmetric: L = U S W^T is (U S U^T)(U W^T).
            at = slice(s * d, (s + 1) * d)
            left, _, right = np.linalg.svd(triangle[at, at])
            last[:, at] = last[:, at] @ (left @ right).T
        overlap = (whole[(t - 1) * d :] @ whole.T).reshape(d, t, d).transpose(1, 0, 2)
        return Updated(magnetization, last.reshape(d, t, d).transpose(1, 0, 2), response, overlap)

    def append(self, t: int, ridge: float, conjugates: Conjugates) -> None:
        """Keep stage t for those that follow."""
        inverse = resolvent(ridge, conjugates.responses[-1])
        for group in self.groups:
            if group.pattern.active[t - 1]:
                alignment, propagators = self._row(group, t, conjugates, inverse)
            else:
                alignment, propagators = np.zeros(conjugates.magnetization.shape), np.zeros(conjugates.overlaps.shape)
            group.alignments.append(alignment)
            group.propagators.append(propagators)
        self.conjugates.append(conjugates)

    def slopes(self, t: int, ridge: float, conjugates: Conjugates) -> tuple[Array, Array, Array]:
        """Derivatives of m_t, Q_t1..Q_tt and V_t1..V_tt, flattened, with respect to (mh_t, Qh_t1.., Vh_t1..), flattened.

        Blocks of conjugates are taken as they are: what is symmetric has to be moved symmetrically.
        """
        d, k = conjugates.magnetization.shape
        inverse = resolvent(ridge, conjugates.responses[-1])
        factor = self._factor(conjugates)
        mean_alignment = np.zeros((t, d, k))  # a_r Gamma
        covariance, propagator = np.zeros((t, t, d, d)), np.zeros((t, t, d, d))
        share = 0.0
        for group in self.groups:
            if not group.pattern.active[t - 1]:
                continue
            part = group.pattern.share
            share += part
            rows = [*zip(group.alignments, group.propagators, strict=True), self._row(group, t, conjugates, inverse)]
            whole = np.stack([self._weights(group, s + 1, row, factor) for s, row in enumerate(rows)])
            covariance += np.einsum("rax,sbx->rsab", whole, whole)
            for r, (alignment, propagators) in enumerate(rows):
                mean_alignment[r] += part * alignment @ self.gram
                propagator[r, : r + 1] += part * propagators
        n_m, n_q = d * k, t * d * d
        m_slope = np.zeros((d * k, n_m + 2 * n_q))
        q_slope = np.zeros((t, d, d, n_m + 2 * n_q))
        v_slope = np.zeros((t, d * d, n_m + 2 * n_q))

        def overlaps(s: int) -> slice:
            return slice(n_m + s * d * d, n_m + (s + 1) * d * d)

        def responses(s: int) -> slice:
            return slice(n_m + n_q + s * d * d, n_m + n_q + (s + 1) * d * d)

        # With w_t = G_tt (..): d(w_t . y) = G_tt (dmh mu.y + dxi_t.y - sum_r dVh_tr w_r.y) for all y.
        m_slope[:, :n_m] = np.kron(inverse, share * self.gram.T)
        for r in range(t):
            m_slope[:, responses(r)] = -np.kron(inverse, mean_alignment[r].T)
        for s in range(t):
            flat = q_slope[s].reshape(d * d, -1)
            flat[:, :n_m] = np.kron(inverse, mean_alignment[s])
            for r in range(t):
                flat[:, responses(r)] = -np.kron(inverse, covariance[r, s].T)
            for r in range(s + 1):
                flat[:, overlaps(r)] = np.kron(inverse, (0.5 if r == t - 1 else 1.0) * propagator[s, r])
            for r in range(s, t):
                v_slope[s][:, responses(r)] = -np.kron(inverse, propagator[r, s].T)
        q_slope[-1] += q_slope[-1].transpose(1, 0, 2).copy()
        return m_slope, q_slope.reshape(t, d * d, -1), v_slope


def resolvent(ridge: float, response_hat: Array) -> Array | None:
    """(ridge + Vh)^-1 of the symmetric part; None if that is not positive definite."""
    matrix = ridge * np.eye(len(response_hat)) + 0.5 * (response_hat + response_hat.T)
    try:
        root = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
    inverse = np.linalg.inv(root)
    return inverse.T @ inverse
