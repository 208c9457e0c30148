"""The prior in blocks: conjugates -> order parameters, by the resolvent of a block-triangular matrix on groups of coordinates.

On a group of coordinates, those that the same stages train and whose inputs have the variance Delta lambda, the weights are
``w_t = a_t mu + sum_s G_ts xi_s`` with ``E xi_t xi_s^T = lambda Qh_ts`` and

    G_tt = (ridge + lambda Vh_tt)^-1,    w_t = G_tt (mh_t mu + xi_t - lambda sum_{s<t} Vh_ts w_s)

(:func:`theory.blocks.propagators`).  Order parameters are ``m = <w mu>``, ``Q_ts = <lambda w_t w_s^T>``, ``V_ts = <lambda G_ts>``.
Every weight is kept as a row of factors F with w.w' = F F'^T, so that the part of a weight that is orthogonal to earlier ones comes
from a QR decomposition, without the difference of two nearly equal numbers.  All arrays have the groups as their first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numerics.models import ClassMixture, Estimator
from numerics.scalar.prior import mask_patterns

Array = NDArray[np.float64]


@dataclass
class Conjugates:
    """mh (d, K), and the rows Qh_t1..Qh_tt and Vh_t1..Vh_tt, each (t, d, d); perhaps B and R with Qh_t. = B Qh + (0 .. 0 R)."""

    magnetization: Array
    overlaps: Array
    responses: Array
    explained: tuple[Array, Array] | None = None


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


class ClassGroups(NamedTuple):
    """Groups of coordinates that are alike.

    Attributes
    ----------
    share : (g,)
        Fraction of all coordinates.
    active : (g, T)
        Which stages train them.
    variance : (g,)
        lambda.
    gram : (g, K, K)
        Inner products of the class means on these coordinates, per coordinate.
    """

    share: Array
    active: NDArray[np.bool_]
    variance: Array
    gram: Array

    @classmethod
    def of(cls, data: ClassMixture, stages: Sequence[Estimator]) -> ClassGroups:
        """Those of a chain on a mixture."""
        inputs = data.inputs
        etas, overlaps = zip(*((stage.eta, stage.mask_overlap) for stage in stages), strict=True)
        parts = (1.0,) if inputs.white else (*np.cumsum(inputs.shares)[:-1].tolist(), 1.0)
        share, active, part = map(np.array, zip(*mask_patterns(etas, overlaps, parts), strict=True))
        return cls(share, active, inputs.variances[part], inputs.class_grams(np.array(data.gram))[part])


class Prior:
    """Weights of the stages so far.

    Parameters
    ----------
    groups : ClassGroups
    pinned : sequence of bool
        Of the stages, whether weights have nothing in the last coordinate.  Their C_tt has 1 there, which nothing sees.

    Attributes
    ----------
    norm_ratios : list of float
        |w_t|^2/N over the trace of Q_tt, of each stage so far: 1 for white inputs.
    noises : sequence of float
        Of the stages: Q_tt has this times its mean eigenvalue more on its diagonal, where one of them may be nearly 0.
    """

    def __init__(self, groups: ClassGroups, pinned: Sequence[bool] = ()) -> None:
        self.groups, self.pinned = groups, tuple(pinned)
        self.root = _roots(groups.gram)
        self.alignments: list[Array] = []  # a_s, (g, d, K)
        self.propagators: list[Array] = []  # G_s1..G_ss, (g, s, d, d), zero where a stage is not active
        self.conjugates: list[Conjugates] = []
        self.norm_ratios: list[float] = []
        self.noises = [0.0] * len(self.pinned)

    def _row(self, t: int, conjugates: Conjugates, inverse: Array) -> tuple[Array, Array]:
        """a_t and G_t1..G_tt of all groups."""
        size, d = len(inverse), inverse.shape[1]
        variance = self.groups.variance[:, None, None]
        alignment = np.repeat(conjugates.magnetization[None], size, axis=0)
        propagators = np.zeros((size, t, d, d))
        propagators[:, -1] = np.eye(d)
        for s in range(t - 1):
            alignment -= variance * (conjugates.responses[s] @ self.alignments[s])
            propagators[:, : s + 1] -= variance[:, None] * (conjugates.responses[s] @ self.propagators[s])
        active = self.groups.active[:, t - 1, None, None]
        return active * (inverse @ alignment), active[:, None] * (inverse[:, None] @ propagators)

    def _factor(self, conjugates: Conjugates) -> Array:
        """R with R R^T = Qh of all stages, (td, td), row by row where that is known; forces may be of very different sizes."""
        known = [*self.conjugates, conjugates]
        if any(one.explained is None for one in known[1:]):
            return _root(_whole([one.overlaps for one in known]))
        d = len(conjugates.magnetization)
        factor = np.zeros((len(known) * d, len(known) * d))
        factor[:d, :d] = _root(known[0].overlaps[0])
        for t, one in enumerate(known[1:], start=1):
            regression, rest = one.explained
            here = slice(t * d, (t + 1) * d)
            factor[here, : t * d] = regression @ factor[: t * d, : t * d]
            factor[here, here] = _root(rest)
        return factor

    def _weights(self, alignment: Array, propagators: Array, factor: Array) -> Array:
        """F of a weight on every group, (g, d, K + td): per coordinate, times the root of the group's share."""
        s, d = propagators.shape[1:3]
        fields = propagators.transpose(0, 2, 1, 3).reshape(len(propagators), d, s * d) @ factor[: s * d]
        fields *= np.sqrt(self.groups.variance)[:, None, None]
        return np.sqrt(self.groups.share)[:, None, None] * np.concatenate([alignment @ self.root, fields], axis=2)

    def _inverse(self, ridge: float, conjugates: Conjugates) -> Array | None:
        return resolvents(ridge, conjugates.responses[-1], self.groups.variance)

    def update(self, t: int, ridge: float, conjugates: Conjugates) -> Updated | None:
        """Order parameters of stage t; None if ridge + lambda Vh_tt is not positive definite."""
        inverse = self._inverse(ridge, conjugates)
        if inverse is None:
            return None
        d = len(conjugates.magnetization)
        share, variance = self.groups.share, self.groups.variance
        alignment, propagators = self._row(t, conjugates, inverse)
        factor = self._factor(conjugates)
        rows = [*zip(self.alignments, self.propagators, strict=True), (alignment, propagators)]
        whole = np.concatenate([self._weights(*row, factor) for row in rows], axis=1)  # (g, td, K + td)
        whole = (np.sqrt(variance)[:, None, None] * whole).transpose(1, 0, 2).reshape(t * d, -1)
        if any(self.pinned[:t]) or any(self.noises[:t]):
            whole = np.column_stack([whole, self._further(whole.reshape(t, d, -1))])
        triangle = np.linalg.qr(whole.T, mode="r").T
        last = triangle[(t - 1) * d :].copy()
        for s in range(t):
            # Blocks on the diagonal are symmetric: L = U S W^T is (U S U^T)(U W^T).
            at = slice(s * d, (s + 1) * d)
            left, _, right = np.linalg.svd(triangle[at, at])
            last[:, at] = last[:, at] @ (left @ right).T
        overlap = (whole[(t - 1) * d :] @ whole.T).reshape(d, t, d).transpose(1, 0, 2)
        magnetization = np.einsum("g,gak,gkc->ac", share, alignment, self.groups.gram, optimize=True)
        response = np.einsum("g,gsab->sab", share * variance, propagators)
        return Updated(magnetization, last.reshape(d, t, d).transpose(1, 0, 2), response, overlap)

    def _further(self, whole: Array) -> Array:
        """Columns, beside those of (t, d, ..), that are no weights: noises, and the last coordinate of pinned stages; (td, td)."""
        t, d = whole.shape[:2]
        found = np.zeros((t, d))
        for s in range(t):
            found[s] = np.sqrt(self.noises[s] / d) * np.linalg.norm(whole[s])
            if self.pinned[s]:
                found[s, -1] = 1.0
        return np.diag(found.ravel())

    def append(self, t: int, ridge: float, conjugates: Conjugates) -> None:
        """Keep stage t for those that follow."""
        row = self._row(t, conjugates, self._inverse(ridge, conjugates))
        squares = np.sum(self._weights(*row, self._factor(conjugates)) ** 2, axis=(1, 2))
        overlap = float(self.groups.variance @ squares)
        self.norm_ratios.append(float(squares.sum()) / overlap if overlap > 0.0 else 1.0)
        self.alignments.append(row[0])
        self.propagators.append(row[1])
        self.conjugates.append(conjugates)

    def covariance_of_fields(self, t: int) -> Array:
        """Of what fields, not means, give to a weight of stage t that is kept, on each group, (g, d, d)."""
        whole, d = _whole([c.overlaps for c in self.conjugates[:t]]), self.alignments[t - 1].shape[1]
        propagators = self.propagators[t - 1].transpose(0, 2, 1, 3).reshape(len(self.groups.share), d, t * d)
        return self.groups.variance[:, None, None] * (propagators @ whole @ propagators.transpose(0, 2, 1))

    def slopes(self, t: int, ridge: float, conjugates: Conjugates) -> tuple[Array, Array, Array]:
        """Derivatives of m_t, Q_t1..Q_tt and V_t1..V_tt, flattened, with respect to (mh_t, Qh_t1.., Vh_t1..), flattened.

        Blocks of conjugates are taken as they are: what is symmetric has to be moved symmetrically.
        """
        d, k = conjugates.magnetization.shape
        share, variance, gram = self.groups.share, self.groups.variance, self.groups.gram
        inverse = self._inverse(ridge, conjugates)
        own = inverse * self.groups.active[:, t - 1, None, None]
        factor = self._factor(conjugates)
        rows = [*zip(self.alignments, self.propagators, strict=True), self._row(t, conjugates, inverse)]
        along = [alignment @ gram for alignment, _ in rows]  # a_r Gamma, (g, d, K)
        weights = [self._weights(*row, factor) for row in rows]

        def product(power: int, right: Array, *, shared: bool = False) -> Array:
            """Mean of kron(G_tt, right) over coordinates, times lambda to a power; ``shared`` if the share is in ``right``."""
            if len(own) == 1:
                return (1.0 if shared else share[0]) * variance[0] ** power * np.kron(own[0], right[0])
            scaled = own * (variance**power * (1.0 if shared else share))[:, None, None]
            found = np.tensordot(scaled, right, (0, 0))
            return found.transpose(0, 2, 1, 3).reshape(d * right.shape[1], d * right.shape[2])

        n_m, n_q = d * k, t * d * d
        m_slope = np.zeros((d * k, n_m + 2 * n_q))
        q_slope = np.zeros((t, d, d, n_m + 2 * n_q))
        v_slope = np.zeros((t, d * d, n_m + 2 * n_q))

        def overlaps(s: int) -> slice:
            return slice(n_m + s * d * d, n_m + (s + 1) * d * d)

        def responses(s: int) -> slice:
            return slice(n_m + n_q + s * d * d, n_m + n_q + (s + 1) * d * d)

        # With w_t = G_tt (..): d(w_t . y) = G_tt (dmh mu.y + dxi_t.y - lambda sum_r dVh_tr w_r.y) for all y.
        m_slope[:, :n_m] = product(0, gram.transpose(0, 2, 1))
        for r in range(t):
            m_slope[:, responses(r)] = -product(1, along[r].transpose(0, 2, 1))
        for s in range(t):
            flat = q_slope[s].reshape(d * d, -1)
            flat[:, :n_m] = product(1, along[s])
            for r in range(t):
                covariance = weights[s] @ weights[r].transpose(0, 2, 1)
                flat[:, responses(r)] = -product(2, covariance, shared=True)
            for r in range(s + 1):
                flat[:, overlaps(r)] = (0.5 if r == t - 1 else 1.0) * product(2, rows[s][1][:, r])
            for r in range(s, t):
                v_slope[s][:, responses(r)] = -product(2, rows[r][1][:, s].transpose(0, 2, 1))
        q_slope[-1] += q_slope[-1].transpose(1, 0, 2).copy()
        if any(self.noises[:t]):
            q_slope[-1] += np.eye(d)[:, :, None] * (self.noises[t - 1] / d * np.einsum("aan->n", q_slope[-1]))
        return m_slope, q_slope.reshape(t, d * d, -1), v_slope


def _whole(rows: Sequence[Array]) -> Array:
    """Qh of all stages, (td, td), from its rows Qh_t1..Qh_tt."""
    d = rows[0].shape[1]
    whole = np.zeros((len(rows) * d, len(rows) * d))
    for r, row in enumerate(rows):
        for s, block in enumerate(row):
            whole[r * d : (r + 1) * d, s * d : (s + 1) * d] = block
            whole[s * d : (s + 1) * d, r * d : (r + 1) * d] = block.T
    return whole


def in_own_units(matrix: Array) -> tuple[Array, Array, Array]:
    """Sizes of the coordinates of a positive semi-definite matrix, and eigenvalues and vectors of it in these units."""
    size = np.sqrt(np.clip(np.diag(matrix), 0.0, None))
    size = np.where(size > 0.0, size, 1.0)
    return size, *np.linalg.eigh(matrix / np.outer(size, size))


def _root(matrix: Array) -> Array:
    """R with R R^T a positive semi-definite matrix, to the accuracy of each of its diagonal entries."""
    size, values, vectors = in_own_units(matrix)
    return size[:, None] * vectors * np.sqrt(np.clip(values, 0.0, None))


def _roots(gram: Array) -> Array:
    """R with R R^T = Gamma of each group, (g, K, r): r is the largest rank."""
    values, vectors = np.linalg.eigh(gram)
    largest = max(float(np.abs(values).max()), np.finfo(float).tiny)
    rank = max(1, int(np.max(np.sum(values > 1e-14 * largest, axis=1))))
    return (vectors * np.sqrt(np.clip(values, 0.0, None))[:, None, :])[:, :, -rank:]


def resolvents(ridge: float, response_hat: Array, variance: Array) -> Array | None:
    """(ridge + lambda Vh)^-1 of the symmetric part for each lambda, (g, d, d); None if one is not positive definite."""
    values, vectors = np.linalg.eigh(0.5 * (response_hat + response_hat.T))
    shifted = ridge + variance[:, None] * values
    if not (shifted > 0.0).all():
        return None
    return (vectors / shifted[:, None, :]) @ vectors.T
