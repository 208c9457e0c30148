"""The prior of clusters: conjugates of all clusters -> m, Q and V of each, with a covariance of its own for every cluster.

With Omega^c_ts the covariance, in cluster c, of what stages t and s see, and M_ct the mean, the weights of all stages solve

    sum_s A_ts w_s = sum_c (mh_ct M_ct + xi_ct),    A_ts = ridge_t delta_ts + sum_c Vh^c_ts Omega^c_ts,
    Cov(xi_ct, xi_cs) = Qh^c_ts Omega^c_ts,         Gamma = A^-1,

A being lower triangular in blocks.  Then ``m_ct = w_t.M_ct/N``, ``Q^c_ts = w_t^T Omega^c_ts w_s/N``, ``V^c_ts = tr(Gamma_ts
Omega^c_st)/N``.  These are the derivatives of

    Psi_w = (f^T G f + tr G S)/(2N),    G = A_tt^-1,

with the mean f and the covariance S of the field ``sum_c (mh_ct M_ct + xi_ct) - sum_{s<t} A_ts w_s``.  Where all covariances are
diagonal, :func:`theory.clusters.cluster_prior_equations` derives the same.  As Psi_w is quadratic in the fields, the Jacobian is
its Hessian.

Where all covariances have common eigenvectors, and all stages see the inputs themselves, a coordinate along one of these is a
problem by itself.  Arrays have a leading axis of such problems: (p, 1, 1) then, and else (1, p_t, p_s).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from numerics.models import Clusters, Estimator, LinearMap, ParameterError
from numerics.models.dense import eigenbasis
from numerics.scalar.prior import COMMON, SHARED

Array = NDArray[np.float64]

APART = "one covariance a cluster"
"""Names of the kinds of prior."""

_DIAGONAL = 1e-11  # off-diagonal entry, over the mean variance, that counts as rounding


@dataclass(frozen=True)
class Updated:
    """What conjugates give.

    Attributes
    ----------
    order : array, shape (C, 2t + 1)
        ``m, Q_t1..Q_tt, V_t1..V_tt`` of each cluster.
    mean, covariance, propagator : arrays, shapes (B, p_t, 1), (B, p_t, P + p_t) twice
        Of the weights of the stage, given their fields: mean, covariance with those of all stages so far, and Gamma.
    """

    order: Array
    mean: Array
    covariance: Array
    propagator: Array


class WeightPrior:
    """The weights of the stages solved so far, and the prior of the next one.

    Parameters
    ----------
    means : array, shape (T, C, p)
        sqrt(N) times the mean of the inputs of each cluster, with the sign of its label, for each stage.
    covariances : array, shape (C, p, p)
    maps : sequence of LinearMap or None
        What each stage sees.
    common : bool, optional
        Whether to take the eigenvectors that all covariances have for coordinates; by default wherever there are such.
    """

    def __init__(
        self, means: Array, covariances: Array, maps: Sequence[LinearMap | None], common: bool | None = None
    ) -> None:
        self.clusters, self.size = means.shape[1:]
        self.basis = None if common is False or any(seen is not None for seen in maps) else common_basis(covariances)
        if common and self.basis is None:
            raise ParameterError("common must be False or None where covariances have no eigenvectors in common")
        # Equal maps are one object, so that products with them are made once.
        kinds = {seen: seen for seen in maps}
        self.maps = [kinds[seen] for seen in maps]
        # Conjugates of clusters of one covariance add up before anything is multiplied.
        self.kinds, first = kinds_of(covariances)
        self._means, self._covariances = means, covariances[first]
        self._kept: dict[tuple, Array] = {}
        self.mean, self.covariance, self.propagator = np.empty((1, 0, 1)), np.empty((1, 0, 0)), np.empty((1, 0, 0))
        self.offsets = [0]
        self._tables: tuple[Array, ...] | None = None

    @classmethod
    def of(cls, data: Clusters, stages: Sequence[Estimator], common: bool | None = None) -> WeightPrior:
        """Of the stages of a chain on clusters.

        A stage that learns its bias sees inputs around their mean: what all clusters have in common is nothing but a bias, and
        steps of one would be undone by steps of the other.
        """
        free = np.array([stage.fixed_bias is None for stage in stages])
        apart = data.means - free[:, None, None] * data.centre
        signed = math.sqrt(data.size) * np.array(data.labels)[:, None] * apart
        covariances = np.array([data.covariance(c) for c in range(len(data))])
        return cls(signed, covariances, [stage.features for stage in stages], common)

    @property
    def kind(self) -> str:
        """Which of them it is."""
        if self.basis is not None:
            return COMMON
        return APART if self.kinds.max() > 0 else SHARED

    # What stages see.

    def mean_of(self, t: int) -> Array:
        """M_ct of stage t, from 0, shape (C, B, p_t, 1)."""
        seen, means = self.maps[t], self._means[t]
        if self.basis is not None:
            return np.ascontiguousarray((means @ self.basis)[:, :, None, None])
        return np.ascontiguousarray((means if seen is None else means @ seen.matrix.T)[:, None, :, None])

    def seen(self, t: int, s: int) -> Array:
        """Omega_ts of stages t and s, of all covariances that differ, shape (K, B, p_t, p_s); of cluster c at ``kinds[c]``."""
        mine, other = self.maps[t], self.maps[s]
        if (mine, other) not in self._kept:
            if self.basis is not None:
                found = np.einsum("ji,cjk,ki->ci", self.basis, self._covariances, self.basis, optimize=True)
                found = np.maximum(found, 0.0)[:, :, None, None]
            else:
                found = self._covariances if mine is None else mine.matrix @ self._covariances
                found = (found if other is None else found @ other.matrix.T)[:, None]
            self._kept[mine, other] = np.ascontiguousarray(found)
        return self._kept[mine, other]

    # The next stage.

    @property
    def stages(self) -> int:
        """How many are solved."""
        return len(self.offsets) - 1

    def _block(self, s: int) -> slice:
        """Coordinates of the weights of stage s among those of all."""
        return slice(self.offsets[s], self.offsets[s + 1])

    def tables(self) -> tuple[Array, ...]:
        """Of the next stage, found once: ``Omega^c_ts Gamma_.s^T``, ``Omega^c_ts E[w_s w^T]``, ``Omega^c_ts Gamma_s.`` and
        ``Omega^c_ts E[w_s]``, shapes (K, t, B, p_t, P) and, the last, (K, t, B, p_t, 1)."""
        if self._tables is None:
            t, found = self.stages, ([], [], [], [])
            square = self.covariance + self.mean @ self.mean.mT
            for s in range(t):
                rows, seen = self._block(s), self.seen(t, s)
                found[0].append(seen @ self.propagator[:, :, rows].mT)
                found[1].append(seen @ square[:, rows])
                found[2].append(seen @ self.propagator[:, rows])
                found[3].append(seen @ self.mean[:, rows])
            size = self.mean_of(t).shape[2]
            empty = np.empty((len(self._covariances), 0, *self.mean_of(t).shape[1:2], size, self.offsets[-1]))
            self._tables = tuple(np.stack(item, axis=1) if item else empty for item in found)
        return self._tables

    def update(self, ridge: float, conjugates: Array) -> Updated:
        """Order parameters of the next stage.

        Parameters
        ----------
        conjugates : array, shape (C, 2t + 1)
            ``mh, Qh_t1..Qh_tt, Vh_t1..Vh_tt`` of each cluster.

        Raises
        ------
        numpy.linalg.LinAlgError
            If ``A_tt`` is not positive definite.
        """
        t = self.stages
        sums = np.zeros((len(self._covariances), 2 * t + 2))
        np.add.at(sums, self.kinds, conjugates[:, 1:])
        mh, overlaps, responses = conjugates[:, 0], sums[:, : t + 1], sums[:, t + 1 :]
        own, signal = self.seen(t, t), self.mean_of(t)
        inverse = _inverse(_total(responses[:, t], own), ridge)
        field, spread = _total(mh, signal), _total(overlaps[:, t], own)
        mean, covariance, propagator = inverse @ field, None, inverse
        if t:
            stein, square, through, along = self.tables()
            pulled = np.concatenate([_total(responses[:, s], self.seen(t, s)) for s in range(t)], axis=2)
            towards = _total(responses[:, :t], along)
            noise = _total(overlaps[:, :t], stein)  # Cov(xi, w)
            drag = _total(responses[:, :t], square) - towards @ self.mean.mT  # A_t. Cov(w, w)
            crossed = (noise - 0.5 * drag) @ pulled.mT
            spread = spread - crossed - crossed.mT
            mean = inverse @ (field - towards)
            covariance = inverse @ (noise - drag)
            propagator = np.concatenate([-inverse @ _total(responses[:, :t], through), inverse], axis=2)
        own_covariance = inverse @ spread @ inverse
        own_covariance = 0.5 * (own_covariance + own_covariance.mT)
        covariance = own_covariance if covariance is None else np.concatenate([covariance, own_covariance], axis=2)
        order = np.empty_like(conjugates)
        order[:, 0] = _dots(signal, mean)
        for s in range(t + 1):
            rows = slice(self.offsets[s], None) if s == t else self._block(s)
            other = mean if s == t else self.mean[:, rows]
            order[:, 1 + s] = _dots(self.seen(t, s), covariance[:, :, rows] + mean @ other.mT)[self.kinds]
            order[:, 2 + t + s] = _dots(self.seen(t, s), propagator[:, :, rows])[self.kinds]
        return Updated(order / self.size, mean, covariance, propagator)

    def slopes(self, found: Updated) -> Array:
        """Derivatives of ``order`` with respect to the conjugates, shape (C, 2t + 1, C, 2t + 1); ``found`` is what these give."""
        t, count = self.stages, self.clusters
        own, signal = self.seen(t, t), self.mean_of(t)
        start = self.offsets[t]
        inverse = np.ascontiguousarray(found.propagator[:, :, start:])
        turned = inverse @ own  # T_c = G Omega_c, (K, B, p_t, p_t)
        hessian = np.zeros((2 * t + 3, count, 2 * t + 3, count))
        at_m, at_q, at_v = 0, 1, 2 + t  # where conjugates of each kind begin
        # Forces on the mean of the weights: what mh_c, Vh_cs and Vh_c pull it by.
        pulls = np.empty((2 + t, count, *signal.shape[1:]))
        pulls[0], pulls[1 + t] = signal, -(own @ found.mean)[self.kinds]
        if t:
            _, square, through, along = self.tables()
            pulls[1 : 1 + t] = -along[self.kinds].swapaxes(0, 1)
        rows = [at_m, *range(at_v, at_v + t + 1)]
        moved = inverse @ pulls
        flat, flat_moved = (values.reshape((2 + t) * count, -1) for values in (pulls, moved))
        linear = (flat @ flat_moved.T).reshape(2 + t, count, 2 + t, count)
        hessian[at_m, :, rows] = linear[0].swapaxes(0, 1)
        hessian[rows, :, at_m] = linear[:, :, 0]
        last = at_v + t
        second = found.covariance[:, :, start:] + found.mean @ found.mean.mT
        self._set(hessian, last, last, _pairs(own, turned @ second))
        self._set(hessian, at_q + t, last, -0.5 * _pairs(turned.mT, turned))
        for s in range(t):
            block = self._block(s)
            seen = self.seen(t, s)
            other = self.mean[:, block]
            both = found.covariance[:, :, block] + found.mean @ other.mT
            self._set(hessian, at_v + s, last, _pairs(seen, turned @ both))
            self._set(hessian, at_q + s, last, -_pairs(seen, turned @ found.propagator[:, :, block]))
            half = turned if seen is own else inverse @ seen
            for r in range(t):
                self._set(hessian, at_q + s, at_v + r, -_pairs(half, through[:, r, :, :, block]))
                if r <= s:
                    self._set(hessian, at_v + s, at_v + r, _pairs(half, square[:, r, :, :, block]))
        out = np.empty((count, 2 * t + 3, count, 2 * t + 3))
        out[:, 0] = hessian[at_m].transpose(0, 2, 1)
        for s in range(t + 1):
            factor = 2.0 if s == t else 1.0
            out[:, 1 + s] = -factor * hessian[at_v + s].transpose(0, 2, 1)
            out[:, 2 + t + s] = factor * hessian[at_q + s].transpose(0, 2, 1)
        return out / self.size

    def _set(self, hessian: Array, i: int, j: int, values: Array) -> None:
        """Both of a symmetric pair of blocks of clusters, from values for each pair of covariances."""
        each = values[np.ix_(self.kinds, self.kinds)]
        hessian[i, :, j], hessian[j, :, i] = each, each.T

    def potential(self, ridge: float, conjugates: Array) -> float:
        """Psi_w of the next stage at any conjugates: half of ``E[w^T A_tt w]/N`` at the weights that they give."""
        found = self.update(ridge, conjugates)
        own = found.covariance[:, :, self.offsets[self.stages] :]
        square = (found.mean**2).sum() + np.trace(own, axis1=1, axis2=2).sum()
        seen = found.order[:, 1 + self.stages]
        return 0.5 * float(ridge * square / self.size + conjugates[:, -1] @ seen)

    def append(self, found: Updated) -> None:
        """The stage is solved, with what ``update`` gave."""
        size, b = found.mean.shape[1], len(found.mean)
        before = self.offsets[-1]
        covariance, propagator = (np.zeros((b, before + size, before + size)) for _ in range(2))
        if before:
            covariance[:, :before, :before], propagator[:, :before, :before] = self.covariance, self.propagator
        covariance[:, before:], propagator[:, before:] = found.covariance, found.propagator
        covariance[:, :, before:] = found.covariance.mT
        mean = found.mean if not before else np.concatenate([self.mean, found.mean], axis=1)
        self.mean, self.covariance, self.propagator = mean, covariance, propagator
        self.offsets.append(before + size)
        self._tables = None

    # The weights.

    def law(self, t: int, s: int) -> tuple[Array, Array, Array]:
        """E[w_t], E[w_s] and Cov(w_t, w_s) of two solved stages, from 0, of the weights on inputs: shapes (p,), (p,), (p, p)."""
        mine, other = self._block(t), self._block(s)
        means = self.mean[:, mine], self.mean[:, other]
        covariance = self.covariance[:, mine, other]
        if self.basis is not None:
            turn = self.basis
            return turn @ means[0].ravel(), turn @ means[1].ravel(), (turn * covariance.ravel()) @ turn.T
        found = [means[0][0, :, 0], means[1][0, :, 0], covariance[0]]
        if self.maps[t] is not None:
            found[0], found[2] = self.maps[t].matrix.T @ found[0], self.maps[t].matrix.T @ found[2]
        if self.maps[s] is not None:
            found[1], found[2] = self.maps[s].matrix.T @ found[1], found[2] @ self.maps[s].matrix
        return tuple(found)

    def along(self, direction: Array) -> Array:
        """E[w_t].x/sqrt(N) of the solved stages on an input x, shape (T,)."""
        found = [self.law(t, t)[0] @ direction for t in range(self.stages)]
        return np.array(found) / math.sqrt(self.size)

    def squares(self) -> Array:
        """E|w_t|^2/N of the solved stages, shape (T,)."""
        found = []
        for t in range(self.stages):
            rows = self._block(t)
            own = self.covariance[:, rows, rows]
            found.append(float((self.mean[:, rows] ** 2).sum() + np.trace(own, axis1=1, axis2=2).sum()) / self.size)
        return np.array(found)


def kinds_of(covariances: Array) -> tuple[NDArray[np.intp], list[int]]:
    """Which of the covariances that differ each one is, shape (C,), and where these first occur."""
    first: list[int] = []
    kinds = np.empty(len(covariances), dtype=np.intp)
    for c, one in enumerate(covariances):
        known = (k for k, other in enumerate(first) if np.array_equal(covariances[other], one))
        kinds[c] = next(known, len(first))
        if kinds[c] == len(first):
            first.append(c)
    return kinds, first


def common_basis(covariances: Array) -> Array | None:
    """Orthonormal eigenvectors that all covariances share, in columns; None if there are none.

    A combination of them with coefficients that no degeneracy is made for has no others.
    """
    mean = float(np.trace(covariances.mean(axis=0))) / covariances.shape[1]
    if all(np.array_equal(other, covariances[0]) for other in covariances[1:]):
        return eigenbasis(covariances[0])[1]
    coefficients = 1.0 + np.modf(math.sqrt(2.0) * np.arange(1, len(covariances) + 1))[0]
    basis = eigenbasis(np.einsum("c,cij->ij", coefficients, covariances))[1]
    for one in covariances:
        turned = basis.T @ one @ basis
        turned[np.diag_indices_from(turned)] = 0.0
        if not np.abs(turned).max() <= _DIAGONAL * mean:
            return None
    return basis


def _inverse(matrix: Array, ridge: float) -> Array:
    """(ridge + matrix)^-1, shape (B, n, n)."""
    if matrix.shape[1] == 1:
        if not (ridge + matrix > 0.0).all():
            raise np.linalg.LinAlgError("not positive definite")
        return 1.0 / (ridge + matrix)
    found = np.empty_like(matrix)
    for b, one in enumerate(matrix):
        shifted = one.copy()
        shifted[np.diag_indices_from(shifted)] += ridge
        root, failed = lapack.dpotrf(shifted, lower=1, overwrite_a=1)
        if failed:
            raise np.linalg.LinAlgError("not positive definite")
        lower, _ = lapack.dpotri(root, lower=1, overwrite_c=1)
        lower = np.tril(lower)
        found[b] = lower + np.tril(lower, -1).T
    return found


def _total(coefficients: Array, matrices: Array) -> Array:
    """Sum of matrices with coefficients, over the leading axes that both have."""
    return np.tensordot(coefficients, matrices, axes=coefficients.ndim)


def _dots(matrices: Array, other: Array) -> Array:
    """Sums of products of the entries of each of the matrices and of another, one number each."""
    return matrices.reshape(len(matrices), -1) @ other.ravel()


def _pairs(first: Array, second: Array) -> Array:
    """The same of all pairs, one of each."""
    return first.reshape(len(first), -1) @ second.reshape(len(second), -1).T
