"""Chains of quadratic losses on one data set, solved at any length through the spectral measure of the samples.

On an eigenvector of Y^T Y with eigenvalue x, stage t follows from those before (:mod:`theory.quadratic`) by

    (ridge_t + curvature_t x) w_t = source_t + x sum_k pull_tk w_k .

Order parameters, conjugates and the law of the training logits are sums over nodes x of the law of Marchenko and Pastur.  A stage
multiplies what it takes from earlier ones by pull x/(ridge + curvature x), rounding errors included: a thousand stages are as
accurate as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from numerics.driver.outcome import Status
from numerics.models import Chain, DataModel, Estimator
from numerics.scalar.points import StagePoint
from numerics.square_chain.reduction import SquareChain, square_chain

Array = NDArray[np.float64]

SPECTRAL_STAGES = 4
"""Stages from which a chain is solved here; shorter ones are solved in batches by the compiled solver, to the same numbers."""

LEAST_RIDGE = 1e-6
"""Ridge below which a chain of any length is solved here: the compiled solver's fields lose digits to large responses."""

PANEL_NODES = (16, 24, 36, 54, 80)
"""Gauss-Legendre nodes of a panel at each level; neighbouring levels are compared."""

ACCURACY = 1e-13
"""Change of the order parameters from one level to the next below which no further one is tried."""

FLOOR = 1e-12
"""Least width of a panel next to the lower edge of the spectrum, which is pi/2 wide."""

ROOM = 2**23
"""Numbers held at a time while responses are added up."""

LEAST_SHARE = 1e-17
"""Share of a norm that stands for nothing: C_tt of a stage that coincides with a combination of those before."""

LARGEST = 1e70
"""Weights that are larger count as infinite: their fourth powers would be."""

SMALLEST = 1e-100
"""Norms, and responses to stages long ago, below which underflow is all that is left of their equations."""

NO_RESPONSE = math.exp(-690.0)
"""V_tt of given weights, as the compiled solver has it: its logarithm is finite, its products with others vanish."""

# Components of a vector over the samples: along 1, the labels' e, the signs of the classes.
_ONE, _LABEL, _CLASS = range(3)


# Nodes of the spectral measure


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Nodes of the law of the eigenvalues of Y^T Y and of Y Y^T.

    Attributes
    ----------
    nodes : array, shape (n,)
        Eigenvalues; the last is 0.
    of_weights, of_samples : arrays, shape (n,)
        Weights, per input: they add up to eta and to alpha.
    """

    nodes: Array
    of_weights: Array
    of_samples: Array


def spectrum(chain: SquareChain, panel_nodes: int) -> Spectrum:
    """Nodes that resolve every stage: panels of x = x_- + (x_+ - x_-) sin^2(phi), halving towards the lower edge.

    The square roots at both edges vanish in phi, and the poles of the stages, at x = -ridge/curvature, are further from every
    panel than its width.
    """
    alpha, eta, delta = chain.alpha, chain.eta, chain.delta
    lowest = delta * ((alpha - eta) / (math.sqrt(alpha) + math.sqrt(eta))) ** 2
    width = 4.0 * delta * math.sqrt(alpha * eta)
    with np.errstate(divide="ignore"):
        pole = float(np.min(chain.ridge / chain.curvature))
    nearest = min(lowest, pole) if lowest > 0 else pole
    smallest = max(0.5 * math.sqrt(min(nearest / width, 1.0)), FLOOR)
    count = max(1, math.ceil(math.log2(0.5 * math.pi / smallest)))
    edges = 0.5 * math.pi * np.concatenate(([0.0], 2.0 ** -np.arange(count, -1.0, -1.0)))
    places, weights = _gauss_legendre(panel_nodes)
    half = 0.5 * np.diff(edges)[:, None]
    phi = (edges[:-1, None] + half * (1.0 + places)).ravel()
    x = lowest + width * np.sin(phi) ** 2
    weight = (half * weights).ravel() * (width * np.sin(phi) * np.cos(phi)) ** 2 / (math.pi * delta * x)
    return Spectrum(
        np.append(x, 0.0), np.append(weight, max(0.0, eta - alpha)), np.append(weight, max(0.0, alpha - eta))
    )


@lru_cache(maxsize=16)
def _gauss_legendre(count: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(count)


# Stages on the nodes


@dataclass(frozen=True, eq=False)
class SpectralStages:
    """All stages as functions of the eigenvalue.

    Attributes
    ----------
    spectrum : Spectrum
    along_v : array, shape (T, n, 1 + g)
        w_t along v and along the noise of each of g given weights.
    along_samples : array, shape (T, n, 3)
        G_t of ``w_t = along_v (v, z_1, ..) + G_t Y``, along the vectors 1, e, signs of classes.
    magnetization, bias, conjugate : arrays, shape (T,)
        m_t, b_t, mh_t.
    """

    chain: SquareChain
    spectrum: Spectrum
    along_v: Array
    along_samples: Array
    magnetization: Array
    bias: Array
    conjugate: Array

    def weights(self) -> Array:
        """Rows whose inner products are the overlaps Q_ts, shape (T, (4 + g) n + 1)."""
        s = self.spectrum
        seen = self._rows(self.along_v, self.along_samples, s.of_weights, s.of_samples * s.nodes)
        return np.column_stack((seen, self.unseen()))

    def unseen(self) -> Array:
        """Norm of given weights on coordinates of their own, shape (T,)."""
        return self.chain.label_in_logit * math.sqrt(self.chain.gram[_LABEL, _LABEL])

    def forces(self) -> Array:
        """Rows whose inner products are alpha E[f_t f_s], shape (T, (4 + g) n)."""
        chain, s = self.chain, self.spectrum
        along_v = np.empty_like(self.along_v)
        for t in range(len(chain)):
            taken = chain.ridge[t] * chain.pull_of(t, self.along_v)
            taken[:, 0] -= chain.curvature[t] * self.conjugate[t]
            along_v[t] = taken / (chain.ridge[t] + chain.curvature[t] * s.nodes)[:, None]
        return self._rows(
            along_v, chain.ridge[:, None, None] * self.along_samples, s.of_weights * s.nodes, s.of_samples
        )

    def logit_means(self) -> Array:
        """Mean training logit as coefficients of 1, of e and of the class's sign, shape (T, 3)."""
        s = self.spectrum
        means = np.tensordot(self.along_samples, s.of_samples * s.nodes / self.chain.alpha, (1, 0))
        means[:, _ONE] += self.bias
        means[:, _CLASS] += self.magnetization
        means[:, _LABEL] += self.chain.label_in_logit
        return means

    def logit_fluctuations(self) -> Array:
        """Rows whose inner products are the covariances of training logits in a group of samples, shape (T, (4 + g) n), or one
        column more."""
        s = self.spectrum
        per_sample = s.of_samples / self.chain.alpha
        along = self.along_samples * s.nodes[:, None]
        along -= np.tensordot(along, per_sample, (1, 0))[:, None, :]
        rows = self._rows(self.along_v, along, s.of_weights * s.nodes / self.chain.alpha, per_sample)
        if not self.chain.real_labels:
            return rows
        return np.column_stack((rows, self.logit_means()[:, _LABEL] * math.sqrt(self.chain.gram[_LABEL, _LABEL])))

    def _rows(self, along_v: Array, along_samples: Array, of_weights: Array, of_samples: Array) -> Array:
        factor = semidefinite_cholesky(self.chain.gram)
        rows = (along_samples @ factor) * np.sqrt(of_samples)[:, None]
        along = along_v * np.sqrt(of_weights)[:, None]
        return np.concatenate((along.reshape(len(rows), -1), rows.reshape(len(rows), -1)), axis=1)


def semidefinite_cholesky(matrix: Array) -> Array:
    """Lower-triangular factor; columns without variance (labels without noise are the classes) are 0."""
    lower = np.zeros_like(matrix)
    for k in range(len(matrix)):
        left = matrix[k:, k] - lower[k:, :k] @ lower[k, :k]
        if left[0] > 4.0 * np.finfo(float).eps * matrix[k, k]:
            lower[k:, k] = left / math.sqrt(left[0])
    return lower


def spectral_stages(chain: SquareChain, measure: Spectrum) -> SpectralStages:
    """Solve stage after stage: on the nodes the equations are explicit, up to m_t, b_t and mh_t, which are linear.

    Ends before the first stage whose weights are not finite.
    """
    x, size = measure.nodes, len(chain)
    places = {t: place for place, t in enumerate((t for t in range(size) if chain.given[t] is not None), start=1)}
    along_v, along_samples = np.zeros((size, x.size, 1 + len(places))), np.zeros((size, x.size, 3))
    m, b, mh = np.empty(size), np.empty(size), np.empty(size)
    centred = np.zeros(size, dtype=bool)
    gram, in_logit = chain.gram, chain.label_in_logit
    covariance = gram - np.outer(gram[_ONE], gram[_ONE])  # between samples
    for t in range(size):
        if t in places:
            m[t], rest = chain.given[t]
            along_v[t, :, 0], along_v[t, :, places[t]] = m[t], math.sqrt(rest)
            b[t], mh[t], centred[t] = chain.bias[t], 0.0, True  # no force, so nothing along 1 either
            continue
        ridge, curvature = chain.ridge[t], chain.curvature[t]
        denominator = ridge + curvature * x
        taken_v, taken = chain.pull_of(t, along_v), chain.pull_of(t, along_samples)
        share = measure.of_samples * ridge / denominator
        kept, inherited = float(share.sum()), (share * x) @ taken
        response = float(np.sum(measure.of_weights / denominator))
        carried = float(np.sum(measure.of_weights * x / denominator * taken_v[:, 0]))
        # Forces along (1, e, classes) add up to kept*drive + inherited, drive = (.., label, pulls of m - curvature*m), and
        # m = response*mh + carried.
        label = chain.label[t] + float(chain.pull_of(t, in_logit))
        drive = np.array([0.0, label, chain.pull_of(t, m) - curvature * carried])
        total = kept * drive + inherited
        learned = math.isnan(chain.bias[t])
        if learned:
            # Their sum over the samples vanishes, which leaves the part of labels and classes that varies between samples.
            varying = covariance[_CLASS] @ total
            mh[t] = varying / (1.0 + covariance[_CLASS, _CLASS] * kept * curvature * response)
        else:
            b[t] = chain.bias[t]
            drive[_ONE] = chain.offset[t] + chain.pull_of(t, b) - curvature * b[t]
            total[_ONE] += kept * drive[_ONE]
            mh[t] = (gram[_CLASS] @ total) / (1.0 + gram[_CLASS, _CLASS] * kept * curvature * response)
        m[t] = response * mh[t] + carried
        drive[_CLASS] -= curvature * response * mh[t]
        if learned:
            # What the bias subtracts; of stages that all have learned theirs nothing is inherited along 1.
            drive[_ONE] = -gram[_ONE, 1:] @ drive[1:]
            centred[t] = all(centred[k] for k, _ in chain.links[t])
            if not centred[t]:
                drive[_ONE] -= gram[_ONE] @ inherited / kept
            b[t] = (chain.offset[t] + chain.pull_of(t, b) - drive[_ONE]) / curvature
        along_v[t] = x[:, None] * taken_v / denominator[:, None]
        along_v[t, :, 0] += mh[t] / denominator
        along_samples[t] = (drive + x[:, None] * taken) / denominator[:, None]
        largest = max(float(np.max(np.abs(found[t]))) for found in (along_v, along_samples, b))
        if not largest < LARGEST:
            size = t
            break
    return SpectralStages(
        chain.first(size), measure, along_v[:size], along_samples[:size], m[:size], b[:size], mh[:size]
    )


def responses(chain: SquareChain, measure: Spectrum) -> tuple[Array, Array]:
    """V_ts and Vh_ts, each of shape (T, T): ``V = E (Lambda + x K)^-1``, ``Vh = Delta E Lambda (Lambda + x K)^-1 K``.

    The sums are over the eigenvalues of Y^T Y and of Y Y^T.  Off the diagonal ``(.. K)_ts = -lambda_t lambda_s (..)_ts/x``.
    """
    size = len(chain)
    v, vh = np.zeros((size, size)), np.zeros((size, size))
    needed = _last_uses(chain)
    held = sum(k + 1 for k in range(size) if needed[k] > k + 1) + size  # at most
    step = max(1, ROOM // held)
    bulk = measure.nodes.size - 1
    for first in range(0, bulk, step):
        chunk = slice(first, min(first + step, bulk))
        x, weight = measure.nodes[chunk], measure.of_weights[chunk]
        rows: dict[int, Array] = {}
        for t in range(size):
            row = np.zeros((t + 1, x.size))
            for k, pull in chain.links[t]:
                row[: k + 1] += (pull * x) * rows[k]
            row[t] = 1.0
            row /= chain.ridge[t] + chain.curvature[t] * x
            v[t, : t + 1] += row @ weight
            vh[t, :t] -= row[:t] @ (weight / x)
            rows[t] = row
            for k in [k for k in rows if needed[k] <= t]:
                del rows[k]
    v[np.diag_indices(size)] += measure.of_weights[-1] / chain.ridge
    vh *= chain.ridge[:, None] * chain.ridge
    for t in range(size):
        denominator = chain.ridge[t] + chain.curvature[t] * measure.nodes
        vh[t, t] = chain.curvature[t] * float(np.sum(measure.of_samples * chain.ridge[t] / denominator))
        for k, pull in chain.links[t]:
            vh[t, k] -= measure.of_samples[-1] * pull
    return v, chain.delta * vh


def _last_uses(chain: SquareChain) -> list[int]:
    """Last stage that looks at each stage, itself if none does."""
    last = list(range(len(chain)))
    for t, links in enumerate(chain.links):
        for k, _ in links:
            last[k] = t
    return last


# Saddle points


@dataclass(frozen=True, eq=False)
class SquareSolution:
    """Saddle points of all stages, the stages they were read off, and the change at the last refinement."""

    points: tuple[StagePoint, ...]
    stages: SpectralStages
    error: float


def is_spectral(data: DataModel, chain: Chain) -> bool:
    """Whether a chain is long enough, or a ridge of it so small, that it is better solved here, and can be."""
    small = any(stage.ridge < LEAST_RIDGE for stage in chain.stages if isinstance(stage, Estimator) and stage.ridge > 0)
    return (small or len(chain) >= SPECTRAL_STAGES) and square_chain(data, chain) is not None


def solve_square_chain(chain: SquareChain) -> SquareSolution:
    """Order parameters and conjugates, on finer nodes until they no longer change.

    If weights become infinite along the chain, the last point is that of the first stage that has no finite ones.
    """
    before, error, levels = None, math.inf, 0
    for panel_nodes in PANEL_NODES:
        stages = spectral_stages(chain, spectrum(chain, panel_nodes))
        levels += 1
        if len(stages.chain) == 0:
            return SquareSolution((_failed(0),), stages, math.inf)
        found = _OrderParameters.of(stages)
        if before is not None and len(before.m) == len(found.m):
            error = found.change(before)
            if error <= ACCURACY:
                break
        before = found
    points = found.points(levels, found.residual())
    if len(points) < len(chain):
        points = (*points, _failed(len(points)))
    return SquareSolution(points, stages, error)


def _failed(earlier: int) -> StagePoint:
    """A stage without finite weights, after this many that have them."""
    unknowns, conjugates = np.full(2 * earlier + 4, math.nan), np.full(2 * earlier + 3, math.nan)
    return StagePoint(unknowns, conjugates, Status.NOT_FINITE.value, 0, math.inf, math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class _OrderParameters:
    """m, b, mh, norm of given weights where no stage sees them, of shape (T,), the others of shape (T, T)."""

    eta: float
    m: Array
    b: Array
    cholesky: Array
    v: Array
    mh: Array
    qh: Array
    vh: Array
    ridge: Array
    given: tuple[tuple[float, float] | None, ...]
    unseen: Array

    @classmethod
    def of(cls, stages: SpectralStages) -> _OrderParameters:
        chain = stages.chain
        forces = stages.forces()
        v, vh = responses(chain, stages.spectrum)
        return cls(
            chain.eta, stages.magnetization, stages.bias, cholesky_of_rows(stages.weights()), v, stages.conjugate,
            chain.delta * (forces @ forces.T), vh, chain.ridge, chain.given, stages.unseen(),
        )  # fmt: skip

    def change(self, before: _OrderParameters) -> float:
        """Largest change of an order parameter, relative to its natural size (``natural_scales`` of the kernels)."""
        norm = self._norms
        diagonal = np.diag(self.v)
        units = np.sqrt(np.outer(diagonal, diagonal)) + 1e-3 * diagonal[:, None] + np.abs(self.v)
        return _largest(
            (self.m - before.m, norm),
            (self.b - before.b, 1.0 + norm + 0.5 * np.abs(self.b)),
            (self.cholesky @ self.cholesky.T - before.cholesky @ before.cholesky.T, np.outer(norm, norm)),
            (self.v - before.v, units),
        )

    def residual(self) -> float:
        """Deviation from the prior's equations ``m = V mh``, ``Q = V (mh mh^T + Qh) V^T/eta``, ``V (Lambda + Vh) = eta``.

        Relative to the natural size, or to that of the terms, if those cancel: with large gains they do.
        """
        norm, size = self._norms, np.abs(self.v)
        mh, qh = self.mh.copy(), self.qh.copy()
        for t, found in enumerate(self.given):
            if found is not None:  # its field, at a ridge of 1
                mh[t], qh[t, t] = found
        inner, inverse = np.outer(mh, mh) + qh, (np.diag(self.ridge) + self.vh) / self.eta
        return _largest(
            (self.v @ mh - self.m, norm + size @ np.abs(mh)),
            (
                self.v @ inner @ self.v.T / self.eta + np.diag(self.unseen**2) - self.cholesky @ self.cholesky.T,
                np.outer(norm, norm) + size @ np.abs(inner) @ size.T / self.eta,
            ),
            (self.v @ inverse - np.eye(norm.size), np.eye(norm.size) + SMALLEST + size @ np.abs(inverse)),
        )

    @property
    def _norms(self) -> Array:
        norm = np.linalg.norm(self.cholesky, axis=1)
        return np.where(norm > SMALLEST, norm, 1.0)

    def points(self, iterations: int, residual: float) -> tuple[StagePoint, ...]:
        points = []
        v = self.v.copy()
        for t, found in enumerate(self.given):
            if found is not None:
                v[:, t] = 0.0
                v[t, t] = NO_RESPONSE
        for t in range(self.m.size):
            row = self.cholesky[t]
            least = LEAST_SHARE * float(np.linalg.norm(row))
            with np.errstate(divide="ignore"):
                log_rest = 2.0 * np.log(max(row[t], least))
            unknowns = np.concatenate(([self.m[t], self.b[t]], row[:t], [log_rest], v[t, :t], [math.log(v[t, t])]))
            conjugates = np.concatenate(([self.mh[t]], self.qh[t, : t + 1], self.vh[t, : t + 1]))
            points.append(StagePoint(unknowns, conjugates, 0, iterations if t == 0 else 0, residual, 0.0, 0.0))
        return tuple(points)


def _largest(*deviations: tuple[Array, Array]) -> float:
    """Largest of several deviations over their scales; infinite if one is not finite."""
    with np.errstate(invalid="ignore"):
        worst = [np.max(np.abs(found) / np.where(scale > 0.0, scale, 1.0)) for found, scale in deviations]
    largest = float(np.max(worst))
    return largest if math.isfinite(largest) else math.inf


def cholesky_of_rows(rows: Array) -> Array:
    """C with ``C C^T = rows rows^T``, lower triangular, shape (T, T): by QR, which keeps what is left of nearly equal rows."""
    triangle = np.linalg.qr(rows.T, mode="r")
    triangle *= np.where(np.diag(triangle) < 0.0, -1.0, 1.0)[:, None]
    cholesky = np.zeros((len(rows), len(rows)))
    cholesky[:, : len(triangle)] = triangle.T
    return cholesky
