"""Chains of quadratic losses on one data set, at any length, through the spectral measure of the samples.

All stages of such a chain are rational functions of one random matrix (:mod:`theory.quadratic`): on an eigenvector of Y^T Y with
eigenvalue x, stage t follows from those before by

    (ridge_t + curvature_t x) w_t = source_t + x sum_k pull_tk w_k .

Order parameters, conjugates and the law of the training logits are sums over nodes x of the law of Marchenko and Pastur.  A stage
multiplies what it takes from earlier ones by x/(ridge + curvature x), so that rounding errors shrink along the chain like
the weights themselves: a thousand stages are as accurate as one.

Examples
--------
>>> from theory.losses import SquareDistillation
>>> stage = Estimator(SquareDistillation(mixing=0.6), ridge=0.3)
>>> limit_of_self_distillation(stage)
Estimator(loss=SquareLoss(), ridge=1.5, eta=1.0, name=None, bias=None, sets=('training',), mask_overlap=None)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import sympy
from numpy.typing import NDArray

from numerics.models import Chain, Estimator, Frozen, GaussianMixture, ParameterError, total_alpha
from numerics.nodes import StagePoint
from numerics.patterns import mask_patterns
from theory.functions import MPMATH
from theory.losses import Loss, SquareLoss
from theory.quadratic import linear_force, self_distillation_limit
from theory.symbols import ridge as ridge_symbol

Array = NDArray[np.float64]

SPECTRAL_STAGES = 4
"""Stages from which a chain is solved here; shorter ones are solved in batches by the compiled solver, to the same numbers."""

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

# Components of a vector over the samples: along 1, the signs of the labels seen, the signs of the classes.
_ONE, _LABEL, _CLASS = range(3)


@dataclass(frozen=True, eq=False)
class SquareChain:
    """A chain of quadratic losses on one data set as numbers.

    Attributes
    ----------
    alpha, rho, delta, label_noise, eta : float
        Of the samples and weights that all stages share.
    ridge, curvature, offset, label : arrays, shape (T,)
        Force ``f_t = offset_t + label_t e - curvature_t h_t + sum_k pull_tk h_k`` at the sign e of the label seen in training.
    bias : array, shape (T,)
        NaN where it is learned.
    links : tuple of tuples of (stage, pull)
        Earlier stages, counted from 0, that each stage looks at.
    """

    alpha: float
    rho: float
    delta: float
    label_noise: float
    eta: float
    ridge: Array
    curvature: Array
    offset: Array
    label: Array
    bias: Array
    links: tuple[tuple[tuple[int, float], ...], ...]

    def __len__(self) -> int:
        return self.ridge.size

    def gram(self) -> Array:
        """Inner products of 1, the labels' and the classes' signs, per sample, shape (3, 3)."""
        mean, kept = 2.0 * self.rho - 1.0, 1.0 - 2.0 * self.label_noise
        return np.array([[1.0, kept * mean, mean], [kept * mean, 1.0, kept], [mean, kept, 1.0]])

    def pull_of(self, t: int, values: Array) -> Array:
        """sum_k pull_tk values[k]; ``values`` has one row a stage."""
        total = np.zeros(values.shape[1:])
        for k, pull in self.links[t]:
            total += pull * values[k]
        return total


def square_chain(data: GaussianMixture, chain: Chain) -> SquareChain | None:
    """The chain as numbers; None if its stages are not functions of one matrix.

    They are if all losses are quadratic, with curvatures and pulls that are the same for both labels, and all stages have positive
    ridges, the same data sets and the same active weights.
    """
    stages = chain.resolved(data)
    first = stages[0]
    if any(isinstance(stage, Frozen) or set(stage.sets) != set(first.sets) or not stage.ridge > 0 for stage in stages):
        return None
    if not all(stage.loss.is_quadratic for stage in stages):
        return None
    if len({stage.eta for stage in stages}) > 1 or any(stage.mask_overlap is not None for stage in stages):
        patterns = mask_patterns(tuple(s.eta for s in stages), tuple(s.mask_overlap for s in stages))
        if len(patterns) > 1 or not all(patterns[0].active):
            return None
    found = [_coefficients(stage.loss) for stage in stages]
    biases = [math.nan if stage.fixed_bias is None else stage.fixed_bias for stage in stages]
    learnable = [math.isfinite(b) or (c is not None and c[1] > 0) for b, c in zip(biases, found, strict=True)]
    if any(c is None for c in found) or not all(learnable):
        return None
    links = []
    for number, (stage, coefficients) in enumerate(zip(stages, found, strict=True), start=1):
        pulls: dict[int, float] = {}
        for seen, pull in zip(stage.loss.stages(number), coefficients[3], strict=True):
            pulls[seen - 1] = pulls.get(seen - 1, 0.0) + pull  # h_teacher and h_1 may be the same
        links.append(tuple((k, pull) for k, pull in sorted(pulls.items()) if pull != 0.0))
    alpha = total_alpha(data, first.sets)
    noise = sum(data.data_set(name).alpha * data.data_set(name).label_noise for name in first.sets) / alpha
    offset, curvature, label = (np.array([c[k] for c in found]) for k in range(3))
    return SquareChain(
        alpha, data.rho, data.delta, noise, first.eta, np.array([stage.ridge for stage in stages]), curvature, offset, label,
        np.array(biases), tuple(links),
    )  # fmt: skip


@lru_cache(maxsize=256)
def _force_function(expression: sympy.Expr, symbols: tuple[sympy.Symbol, ...]):
    """Target, curvature and pulls at both labels as a function of the parameter values."""
    forces = linear_force(expression)
    return sympy.lambdify(symbols, [(f.target, f.curvature, *f.pulls) for f in forces], modules=[MPMATH, "mpmath"])


@lru_cache(maxsize=4096)
def _coefficients(loss: Loss) -> tuple[float, float, float, tuple[float, ...]] | None:
    """(offset, curvature, label, pulls) of the force; None if curvature or pulls depend on the label."""
    try:
        found = _force_function(loss.expression, loss.symbols)(*loss.values)
        negative, positive = (tuple(map(float, coefficients)) for coefficients in found)
    except (ZeroDivisionError, ValueError, TypeError, OverflowError):
        return None
    if negative[1:] != positive[1:] or not all(math.isfinite(c) for c in (*negative, *positive)):
        return None
    return 0.5 * (positive[0] + negative[0]), positive[1], 0.5 * (positive[0] - negative[0]), positive[2:]


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
    along_v : array, shape (T, n)
        w_t along v, in units of v.
    along_samples : array, shape (T, n, 3)
        G_t of ``w_t = along_v v + G_t Y``, along the vectors 1, signs of labels, signs of classes.
    magnetization, bias, pull : arrays, shape (T,)
        m_t, b_t, mh_t.
    """

    chain: SquareChain
    spectrum: Spectrum
    along_v: Array
    along_samples: Array
    magnetization: Array
    bias: Array
    pull: Array

    def weights(self) -> Array:
        """Rows whose inner products are the overlaps Q_ts, shape (T, 4n)."""
        s = self.spectrum
        return self._rows(self.along_v, self.along_samples, s.of_weights, s.of_samples * s.nodes)

    def forces(self) -> Array:
        """Rows whose inner products are alpha E[f_t f_s], shape (T, 4n)."""
        chain, s = self.chain, self.spectrum
        along_v = np.empty_like(self.along_v)
        for t in range(len(chain)):
            denominator = chain.ridge[t] + chain.curvature[t] * s.nodes
            taken = chain.ridge[t] * chain.pull_of(t, self.along_v)
            along_v[t] = (taken - chain.curvature[t] * self.pull[t]) / denominator
        return self._rows(
            along_v, chain.ridge[:, None, None] * self.along_samples, s.of_weights * s.nodes, s.of_samples
        )

    def logit_means(self) -> Array:
        """Mean training logit as coefficients of 1, the sign of the label and that of the class, shape (T, 3)."""
        s = self.spectrum
        means = np.tensordot(self.along_samples, s.of_samples * s.nodes / self.chain.alpha, (1, 0))
        means[:, _ONE] += self.bias
        means[:, _CLASS] += self.magnetization
        return means

    def logit_fluctuations(self) -> Array:
        """Rows whose inner products are the covariances of training logits given label and class, shape (T, 4n)."""
        s = self.spectrum
        per_sample = s.of_samples / self.chain.alpha
        along = self.along_samples * s.nodes[:, None]
        along -= np.tensordot(along, per_sample, (1, 0))[:, None, :]
        return self._rows(self.along_v, along, s.of_weights * s.nodes / self.chain.alpha, per_sample)

    def _rows(self, along_v: Array, along_samples: Array, of_weights: Array, of_samples: Array) -> Array:
        factor = semidefinite_cholesky(self.chain.gram())
        rows = (along_samples @ factor) * np.sqrt(of_samples)[:, None]
        return np.concatenate((along_v * np.sqrt(of_weights), rows.reshape(len(rows), -1)), axis=1)


def semidefinite_cholesky(matrix: Array) -> Array:
    """Lower-triangular factor; columns without variance (labels without noise are the classes) are 0."""
    lower = np.zeros_like(matrix)
    for k in range(len(matrix)):
        left = matrix[k:, k] - lower[k:, :k] @ lower[k, :k]
        if left[0] > 4.0 * np.finfo(float).eps * matrix[k, k]:
            lower[k:, k] = left / math.sqrt(left[0])
    return lower


def spectral_stages(chain: SquareChain, measure: Spectrum) -> SpectralStages:
    """Solve stage after stage: on the nodes the equations are explicit, up to m_t, b_t and mh_t, which are linear."""
    x, size = measure.nodes, len(chain)
    along_v, along_samples = np.empty((size, x.size)), np.empty((size, x.size, 3))
    m, b, mh = np.empty(size), np.empty(size), np.empty(size)
    gram = chain.gram()
    spread = 4.0 * chain.rho * (1.0 - chain.rho)  # variance of the classes' signs
    for t in range(size):
        ridge, curvature = chain.ridge[t], chain.curvature[t]
        denominator = ridge + curvature * x
        taken_v, taken = chain.pull_of(t, along_v), chain.pull_of(t, along_samples)
        share = measure.of_samples * ridge / denominator
        kept, inherited = float(share.sum()), (share * x) @ taken
        response = float(np.sum(measure.of_weights / denominator))
        carried = float(np.sum(measure.of_weights * x / denominator * taken_v))
        drive = np.array([chain.offset[t] + chain.pull_of(t, b), chain.label[t], chain.pull_of(t, m)])
        # Forces along (1, labels, classes) add up to kept*(drive - curvature*(b, 0, m)) + inherited, and m = response*mh + carried.
        total = kept * drive + inherited
        total[_CLASS] -= kept * curvature * carried
        if math.isnan(chain.bias[t]):
            # Their sum over the samples vanishes, which leaves the part of labels and classes that varies between samples.
            varying = spread * ((1.0 - 2.0 * chain.label_noise) * total[_LABEL] + total[_CLASS])
            mh[t] = varying / (1.0 + spread * kept * curvature * response)
            m[t] = response * mh[t] + carried
            total[_CLASS] -= kept * curvature * response * mh[t]
            b[t] = (gram[_ONE] @ total) / (kept * curvature)
        else:
            b[t] = chain.bias[t]
            total[_ONE] -= kept * curvature * b[t]
            mh[t] = (gram[_CLASS] @ total) / (1.0 + kept * curvature * response)
            m[t] = response * mh[t] + carried
        drive[_ONE] -= curvature * b[t]
        drive[_CLASS] -= curvature * m[t]
        along_v[t] = (mh[t] + x * taken_v) / denominator
        along_samples[t] = (drive + x[:, None] * taken) / denominator[:, None]
    return SpectralStages(chain, measure, along_v, along_samples, m, b, mh)


def responses(chain: SquareChain, measure: Spectrum) -> tuple[Array, Array]:
    """V_ts and Vh_ts, each of shape (T, T), lower triangular: ``V = E[(Lambda + x K)^-1]``, ``Vh = Delta E[Lambda (Lambda + x K)^-1 K]``.

    The expectations are over the eigenvalues of Y^T Y and of Y Y^T.  Off the diagonal ``(.. K)_ts = -lambda_t lambda_s (..)_ts/x``.
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


def is_spectral(data: GaussianMixture, chain: Chain) -> bool:
    """Whether a chain is long enough to be solved here, and can be."""
    return len(chain) >= SPECTRAL_STAGES and square_chain(data, chain) is not None


def solve_square_chain(chain: SquareChain) -> SquareSolution:
    """Order parameters and conjugates, on finer nodes until they no longer change."""
    before, error = None, math.inf
    for level, panel_nodes in enumerate(PANEL_NODES):
        measure = spectrum(chain, panel_nodes)
        stages = spectral_stages(chain, measure)
        found = _OrderParameters.of(stages)
        if before is not None:
            error = found.change(before)
            if error <= ACCURACY:
                break
        before = found
    return SquareSolution(found.points(max(level, 1), max(found.residual(), 0.0)), stages, error)


@dataclass(frozen=True, eq=False)
class _OrderParameters:
    """m, b, mh of shape (T,), the others of shape (T, T)."""

    eta: float
    m: Array
    b: Array
    cholesky: Array
    v: Array
    mh: Array
    qh: Array
    vh: Array
    ridge: Array

    @classmethod
    def of(cls, stages: SpectralStages) -> _OrderParameters:
        chain = stages.chain
        forces = stages.forces()
        v, vh = responses(chain, stages.spectrum)
        return cls(
            chain.eta, stages.magnetization, stages.bias, cholesky_of_rows(stages.weights()), v, stages.pull,
            chain.delta * (forces @ forces.T), vh, chain.ridge,
        )  # fmt: skip

    def change(self, before: _OrderParameters) -> float:
        """Largest change of an order parameter, relative to the norm, 1 + norm, norms, or responses."""
        norm = np.linalg.norm(self.cholesky, axis=1)
        scale = np.where(norm > 0, norm, 1.0)
        diagonal = np.diag(self.v)
        with np.errstate(invalid="ignore"):
            changes = [
                np.abs(self.m - before.m) / scale,
                np.abs(self.b - before.b) / (1.0 + norm),
                np.abs(self.cholesky @ self.cholesky.T - before.cholesky @ before.cholesky.T) / np.outer(scale, scale),
                np.abs(self.v - before.v) / (np.sqrt(np.outer(diagonal, diagonal)) + 1e-3 * diagonal[:, None]),
            ]
        worst = max(float(np.max(found)) for found in changes)
        return worst if math.isfinite(worst) else math.inf

    def residual(self) -> float:
        """Largest deviation of m and Q from what the conjugates give: ``m = V mh``, ``Q = V (mh mh^T + Qh) V^T/eta``, scaled.

        Likewise ``V (Lambda + Vh) = eta``, in units of the diagonal.
        """
        norm = np.linalg.norm(self.cholesky, axis=1)
        scale = np.where(norm > 0, norm, 1.0)
        q = self.cholesky @ self.cholesky.T
        updated = self.v @ (np.outer(self.mh, self.mh) + self.qh) @ self.v.T / self.eta
        identity = self.v @ (np.diag(self.ridge) + self.vh) / self.eta
        diagonal = np.sqrt(np.diag(self.v))
        identity *= diagonal / diagonal[:, None]
        deviations = (
            np.abs(self.v @ self.mh - self.m) / scale,
            np.abs(updated - q) / np.outer(scale, scale),
            np.abs(identity - np.eye(len(q))),
        )
        worst = max(float(np.max(found)) for found in deviations)
        return worst if math.isfinite(worst) else math.inf

    def points(self, iterations: int, residual: float) -> tuple[StagePoint, ...]:
        points = []
        for t in range(self.m.size):
            row = self.cholesky[t]
            least = LEAST_SHARE * float(np.linalg.norm(row))
            with np.errstate(divide="ignore"):
                log_rest = 2.0 * np.log(max(row[t], least))
            unknowns = np.concatenate(
                ([self.m[t], self.b[t]], row[:t], [log_rest], self.v[t, :t], [math.log(self.v[t, t])])
            )
            conjugates = np.concatenate(([self.mh[t]], self.qh[t, : t + 1], self.vh[t, : t + 1]))
            points.append(StagePoint(unknowns, conjugates, 0, iterations if t == 0 else 0, residual, 0.0, 0.0))
        return tuple(points)


def cholesky_of_rows(rows: Array) -> Array:
    """C with ``C C^T = rows rows^T``, lower triangular, shape (T, T): by QR, which keeps what is left of nearly equal rows."""
    triangle = np.linalg.qr(rows.T, mode="r")
    triangle *= np.where(np.diag(triangle) < 0.0, -1.0, 1.0)[:, None]
    cholesky = np.zeros((len(rows), len(rows)))
    cholesky[:, : len(triangle)] = triangle.T
    return cholesky


# Infinitely many stages


def limit_of_self_distillation(stage: Estimator) -> Estimator:
    """What a chain converges to whose stages are all ``stage``, each taught by the one before, whatever the first stage was.

    Stage t minimises ``sum l(h; y, h_{t-1}) + (ridge/2)|w|^2`` with the force ``target - curvature h + pull h_{t-1}``.  At the fixed
    point this is the force of ``(h - target/(curvature - pull))^2/2`` with the ridge ``ridge/(curvature - pull)``: for
    ``SquareDistillation(mixing, gain)`` that of the square loss with ``2 ridge/(1 - mixing gain)``.

    Raises
    ------
    ParameterError
        If the loss is not quadratic, does not look at the stage before alone, or ``|pull| >= curvature``: the stages may then
        grow without bound.

    Examples
    --------
    >>> from theory.losses import SquareDistillation
    >>> limit_of_self_distillation(Estimator(SquareDistillation(0.5, gain=0.8), ridge=0.3, eta=0.5)).loss
    Loss('square loss', gain=0.8333333333333334)
    """
    if not isinstance(stage, Estimator):
        raise ParameterError(f"stage must be an Estimator, got {stage!r}")
    loss = stage.loss
    if loss.teacher is not None or [symbol.name for symbol in loss.logits] != ["h_teacher"]:
        raise ParameterError(f"loss must look at the stage before alone, got {loss!r}")
    try:
        limit = self_distillation_limit(loss)
    except ValueError as error:
        raise ParameterError(f"loss has no limit of self-distillation: {error}") from None
    values = dict(zip(loss.symbols, loss.values, strict=True))
    gain = float(limit.gain.subs(values))
    if not abs(gain) < 1:
        raise ParameterError(
            f"loss must weigh the stage before less than its own logit, got the factor {gain:g}: for SquareDistillation "
            "mixing times gain must be below 1"
        )
    negative, positive = (float(target.subs(values)) for target in limit.targets)
    ridge = float(limit.ridge.subs(values | {ridge_symbol: stage.ridge}))
    return replace(stage, loss=_square_loss(negative, positive), ridge=ridge)


def _square_loss(negative: float, positive: float) -> Loss:
    """(h - target)^2/2 with a target for each label."""
    if (negative, positive) == (-1.0, 1.0):
        return SquareLoss()
    if negative == -positive:
        return Loss.from_expression("(h - gain*s)**2/2", {"gain": positive}, name="square loss")
    return Loss.from_expression(
        "(h - offset - gain*s)**2/2",
        {"gain": 0.5 * (positive - negative), "offset": 0.5 * (positive + negative)},
        name="square loss",
    )
