"""The experiment the theory predicts: train a chain on finite samples, and measure what theory computes.

Nothing here is asymptotic.  Given the trained weights, a test logit of stage t is exactly Gaussian, ``h_t | s
~ N(s w_t.v/N + b_t, Delta |w_t|^2/N)``, jointly over stages with covariance ``Delta w_t.w_s/N``: so
population quantities are computed from a model's own overlaps, without test samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, ndtr, owens_t
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from numerics import formulas
from numerics.codegen import LossFunctions
from numerics.models import Chain, Estimator, GaussianMixture, ParameterError, require_number
from numerics.optimisers import RidgeFit, minimise_ridge
from numerics.solver import ConvergenceError, ConvergenceWarning
from theory.losses import CrossEntropy, Loss

Array = NDArray[np.float64]

QUADRATURE_TOLERANCE = 1e-8
"""A population average is accepted when halving the step changes it less, relative to max(1, |average|)."""

QUADRATURE_RANGE = 8.3
"""Standard deviations a population average extends to; beyond, the weight is below 1e-16."""

QUADRATURE_NODES = 2**23
"""Nodes after which a population average is returned with the error it has."""

CHUNK = 2**18

STAGE_QUANTITIES = (
    "magnetization",
    "bias",
    "norm",
    "norm_squared",
    "cosine",
    "test_error",
    "train_error",
    "generalization_gap",
    "test_loss",
    "train_loss",
    "loss_gap",
    "test_cross_entropy",
    "train_cross_entropy",
    "free_energy",
    "calibration_slope",
    "calibration_offset",
    "quadrature_error",
    "gradient_norm",
    "relative_gradient_norm",
    "iterations",
)
"""Observables of one stage, by the names a solution has for them, and how well they are known."""

PAIR_QUANTITIES = (
    "overlap",
    "overlap_cosine",
    "agreement",
    "train_agreement",
    "test_logit_distance",
    "train_logit_distance",
    "test_output_distance",
    "train_output_distance",
)
"""Observables of two stages, symmetric matrices."""

TEACHER_QUANTITIES = {
    "teacher_cosine": "overlap_cosine",
    "teacher_agreement": "agreement",
    "teacher_train_agreement": "train_agreement",
    "test_logit_distance": "test_logit_distance",
    "train_logit_distance": "train_logit_distance",
    "test_output_distance": "test_output_distance",
    "train_output_distance": "train_output_distance",
}
"""Observables of a stage and the one before it, and the matrix they are entries of."""


@dataclass(frozen=True)
class Estimate:
    """Mean over runs, its standard error (nan for a single run), and the number of runs."""

    mean: float | Array
    standard_error: float | Array
    n: int


def estimate(values: Array) -> Estimate:
    """Average over the first axis."""
    n = len(values)
    error = values.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.full(values.shape[1:], np.nan)
    mean = values.mean(axis=0)
    return Estimate(float(mean), float(error), n) if mean.ndim == 0 else Estimate(mean, error, n)


@dataclass(frozen=True)
class _Fields:
    """A loss with its targets filled in: the objective of :func:`numerics.optimisers.minimise_ridge`."""

    functions: LossFunctions
    labels: Array
    earlier: Array

    def value(self, h: Array) -> Array:
        return self.functions.value(h, self.labels, self.earlier)

    def derivatives(self, h: Array) -> tuple[Array, Array]:
        return self.functions.derivatives(h, self.labels, self.earlier)


@dataclass(frozen=True)
class Sample:
    """One draw: ``design`` x/sqrt(N), shape (M, N); ``labels`` 0 or 1, shape (M,); ``mean`` v, shape (N,)."""

    design: Array
    labels: Array
    mean: Array


def draw(data: GaussianMixture, n_inputs: int, seed: np.random.SeedSequence) -> Sample:
    """Draw v, labels and inputs.

    Raises
    ------
    ParameterError
        If all labels are equal: an unregularised bias then has no minimum.
    """
    generator = np.random.default_rng(seed)
    n_samples = round(data.alpha * n_inputs)
    mean = generator.standard_normal(n_inputs)
    labels = (generator.random(n_samples) < data.rho).astype(float)
    if labels.min() == labels.max():
        raise ParameterError(
            f"alpha, n_inputs and rho={data.rho:g} gave {n_samples} samples, all of one class; "
            "the unregularised bias then diverges: increase alpha or n_inputs, or take rho closer to 1/2"
        )
    design = generator.standard_normal((n_samples, n_inputs))
    design *= math.sqrt(data.delta / n_inputs)
    signs = 2 * labels - 1
    for first in range(0, n_samples, 256):
        design[first : first + 256] += signs[first : first + 256, None] * (mean / n_inputs)
    return Sample(design, labels, mean)


def train(sample: Sample, chain: Chain, active: Sequence[int], gradient_tolerance: float) -> tuple[RidgeFit, ...]:
    """Fit the stages one after the other; stage t trains its first ``active[t]`` weights.

    Later stages see the training logits of earlier ones, and start from the weights of the stages they look
    at if that is better than from zero.  A loss without curvature leaves its bias undetermined or unbounded:
    such a stage keeps bias 0.
    """
    fits: list[RidgeFit] = []
    for number, stage in enumerate(chain.stages, start=1):
        seen = [fits[s - 1] for s in stage.loss.stages(number)]
        size = active[number - 1]
        fits.append(
            minimise_ridge(
                sample.design[:, :size],
                _fields(stage.loss, number, sample, fits),
                stage.ridge,
                starts=[(_resized(fit.weights, size), fit.bias) for fit in seen],
                fit_bias=_has_bias(stage.loss),
                gradient_tolerance=gradient_tolerance,
            )
        )
    return tuple(fits)


def _fields(loss: Loss, number: int, sample: Sample, fits: Sequence[RidgeFit]) -> _Fields:
    earlier = _columns([fits[s - 1].logits for s in loss.stages(number)], len(sample.labels))
    return _Fields(LossFunctions(loss), sample.labels, earlier)


def _has_bias(loss: Loss) -> bool:
    return loss.curvature != 0


def _resized(weights: Array, size: int) -> Array:
    return np.pad(weights[:size], (0, max(0, size - len(weights))))


def measure_responses(sample: Sample, chain: Chain, fits: Sequence[RidgeFit]) -> Array:
    """``V_ts = (1/N) sum_i d w_ti/d xi_si``: response to ``- xi_s.w_s`` in the loss of s, biases refitted.

    Parameters
    ----------
    sample, chain, fits
        What :func:`draw` and :func:`train` gave.

    Returns
    -------
    ndarray, shape (T, T)
        Lower triangular.  Exact, by dense inverses: time of order M N^2, memory a few times the design
        matrix.
    """
    n_inputs = sample.design.shape[1]
    n_stages = len(fits)
    result = np.zeros((n_stages, n_stages))
    moved: dict[tuple[int, int], Array] = {}  # d h_k / d xi_s, shape (M, active weights of s)
    for t, (stage, fit) in enumerate(zip(chain.stages, fits, strict=True)):
        size = len(fit.weights)
        fields = _fields(stage.loss, t + 1, sample, fits)
        design = sample.design[:, :size]
        if _has_bias(stage.loss):
            design = np.column_stack((design, np.ones(len(design))))
        curvatures = np.maximum(fields.derivatives(fit.logits)[1], 0.0)
        hessian = design.T @ (curvatures[:, None] * design)
        np.einsum("ii->i", hessian)[:size] += stage.ridge
        factors = cho_factor(hessian, lower=True, overwrite_a=True)
        inverse = cho_solve(factors, np.eye(len(hessian), size), overwrite_b=True)
        result[t, t] = np.trace(inverse) / n_inputs
        moved[t, t] = design @ inverse
        pulls = {
            s - 1: fields.functions.mixed(fit.logits, fields.labels, fields.earlier, k)
            for k, s in enumerate(stage.loss.stages(t + 1))
        }
        for s in range(t):
            paths = [pulls[k][:, None] * moved[k, s] for k in range(s, t) if k in pulls and (k, s) in moved]
            if not paths:
                continue
            forces = sum(paths)
            shared = min(size, len(fits[s].weights))
            result[t, s] = -np.vdot(moved[t, t][:, :shared], forces[:, :shared]) / n_inputs
            if t + 1 < n_stages:
                moved[t, s] = -design @ cho_solve(factors, design.T @ forces)
    return result


def gaussian_mean(function: Callable[[Array], Array], mean: Array, covariance: Array) -> tuple[float, float]:
    """Average of a smooth function over a low-dimensional Gaussian: trapezoid rule, halved until it agrees.

    Parameters
    ----------
    function : callable
        Takes points of shape (d, K), returns values of shape (K,).
    mean, covariance : ndarray, shapes (d,), (d, d)
        The covariance may be singular.

    Returns
    -------
    value, error : float
        The error estimate is the change in the last halving; it overstates the error of analytic functions.
    """
    variances, axes = np.linalg.eigh(covariance)
    kept = variances > 1e-14 * max(variances[-1], 1e-300)
    widths = np.sqrt(variances[kept])
    directions = axes[:, kept] * widths
    if not len(widths):
        return float(function(np.asarray(mean, dtype=float)[:, None])[0]), 0.0
    half = np.ceil(QUADRATURE_RANGE / np.minimum(0.5, 2.0 / widths)).astype(int)
    value = _trapezoid(function, mean, directions, half)
    while True:
        half = 2 * half
        refined = _trapezoid(function, mean, directions, half)
        error = abs(refined - value)
        value = refined
        accepted = error <= QUADRATURE_TOLERANCE * max(1.0, abs(value))
        if accepted or np.prod(4.0 * half + 1) > QUADRATURE_NODES:
            return value, error


def _trapezoid(function: Callable[[Array], Array], mean: Array, directions: Array, half: NDArray) -> float:
    nodes = [np.linspace(-QUADRATURE_RANGE, QUADRATURE_RANGE, 2 * n + 1) for n in half]
    weights = [np.exp(-0.5 * points**2) for points in nodes]
    shape = tuple(len(points) for points in nodes)
    total = 0.0
    for first in range(0, math.prod(shape), CHUNK):
        index = np.unravel_index(np.arange(first, min(first + CHUNK, math.prod(shape))), shape)
        weight = np.prod([w[i] for w, i in zip(weights, index, strict=True)], axis=0)
        points = directions @ np.array([points[i] for points, i in zip(nodes, index, strict=True)])
        total += float(weight @ function(points + np.asarray(mean)[:, None]))
    return total / math.prod(float(w.sum()) for w in weights)


def bivariate_normal_cdf(a: float, b: float, correlation: float) -> float:
    """P(X < a, Y < b) of standard normals, correlation in [-1, 1], by Owen's T function (Owen 1956)."""
    if correlation >= 1.0:
        return float(ndtr(min(a, b)))
    if correlation <= -1.0:
        return float(max(0.0, ndtr(a) - ndtr(-b)))
    if a == 0.0 and b == 0.0:
        return 0.25 + math.asin(correlation) / (2 * math.pi)
    root = math.sqrt((1.0 - correlation) * (1.0 + correlation))

    def wing(x: float, other: float) -> float:
        slope = (other / x - correlation) / root if x != 0.0 else math.copysign(math.inf, other)
        return 0.5 * ndtr(x) - owens_t(x, slope)

    opposite = a * b < 0.0 or (a * b == 0.0 and a + b < 0.0)
    return float(wing(a, b) + wing(b, a) - (0.5 if opposite else 0.0))


class Population:
    """Test averages of trained models, from their order parameters.

    Parameters
    ----------
    data : GaussianMixture
        Its ``rho`` and ``delta`` are used.
    magnetization, bias, overlap : ndarray, shapes (T,), (T,), (T, T)
        m_t = w_t.v/N, b_t, Q_ts = w_t.w_s/N.
    """

    def __init__(self, data: GaussianMixture, magnetization: Array, bias: Array, overlap: Array) -> None:
        self.data, self.magnetization, self.bias, self.overlap = data, magnetization, bias, overlap

    def test_error(self, t: int) -> float:
        """P(s h_t < 0); a model of zero norm decides by its bias, or by a coin."""
        m, b, q = self.magnetization[t], self.bias[t], self.overlap[t, t]
        rho = self.data.rho
        if q == 0.0:
            return 0.5 if b == 0.0 else (1 - rho if b > 0.0 else rho)
        return float(formulas.test_error()(m, b, q, self.data.delta, rho))

    def agreement(self, t: int, s: int) -> float:
        """Probability that stages t and s give a test point the same label."""
        total = 0.0
        for sign, weight in ((1, self.data.rho), (-1, 1 - self.data.rho)):
            means = sign * self.magnetization[[t, s]] + self.bias[[t, s]]
            norms = np.sqrt(self.data.delta * self.overlap[[t, s], [t, s]])
            if np.all(norms > 0):
                a, b = means / norms
                correlation = float(self.overlap[t, s] / np.sqrt(self.overlap[t, t] * self.overlap[s, s]))
            else:
                with np.errstate(divide="ignore", invalid="ignore"):
                    a, b = np.nan_to_num(means / norms, nan=0.0)
                correlation = 0.0
            total += weight * (bivariate_normal_cdf(a, b, correlation) + bivariate_normal_cdf(-a, -b, correlation))
        return total

    def logit_distance(self, t: int, s: int) -> float:
        """E[(h_t - h_s)^2] on a test point."""
        pair = [t, s]
        m, b, q = self.magnetization[pair], self.bias[pair], self.overlap
        return float(formulas.logit_distance()(*m, *b, q[t, t], q[s, s], q[t, s], self.data.delta, self.data.rho))

    def calibration(self, t: int) -> tuple[float, float]:
        """(slope, offset) of the true log-odds as a function of h_t; nan for a model of zero norm."""
        q = self.overlap[t, t]
        if q == 0.0:
            return math.nan, math.nan
        return formulas.calibration()(self.magnetization[t], self.bias[t], q, self.data.delta, self.data.rho)

    def output_distance(self, t: int, s: int) -> tuple[float, float]:
        """E[(sigmoid(h_t) - sigmoid(h_s))^2] on a test point, and its quadrature error."""
        return self.average(lambda points, label: (expit(points[0]) - expit(points[1])) ** 2, [t, s])

    def test_loss(self, loss: Loss, t: int) -> tuple[float, float]:
        """E[l_t] on a test point, and its quadrature error.

        Where the gradient is linear in the target (``loss.split``), l(h, e) - l(h, e0) is linear in h, so the
        average over h given the earlier logits e is known, and the average falls into one over h and one over
        e.
        """
        functions = LossFunctions(loss)
        stages = [s - 1 for s in loss.stages(t + 1)]

        def direct(points: Array, label: float) -> Array:
            h, *earlier = points
            return functions.value(np.ascontiguousarray(h), np.full(len(h), label), _columns(earlier, len(h)))

        if not stages or loss.split is None:
            return self.average(direct, [t, *stages])
        earlier_overlap = self.overlap[np.ix_(stages, stages)]
        slope = np.linalg.pinv(earlier_overlap, hermitian=True) @ self.overlap[stages, t]
        value = error = 0.0
        for sign, weight in ((1, self.data.rho), (-1, 1 - self.data.rho)):
            label = (1 + sign) / 2
            means = sign * self.magnetization + self.bias
            reference = means[stages]

            def alone(points: Array, label: float = label, reference: Array = reference) -> Array:
                fixed = np.broadcast_to(reference[:, None], (len(reference), points.shape[1]))
                return direct(np.vstack((points, fixed)), label)

            def shift(
                points: Array, label: float = label, reference: Array = reference, mean: float = means[t]
            ) -> Array:
                zero, labels = np.zeros(points.shape[1]), np.full(points.shape[1], label)
                moved, fixed = _columns(points, len(zero)), np.tile(reference, (len(zero), 1))
                at_zero = functions.value(zero, labels, moved) - functions.value(zero, labels, fixed)
                pull = functions.derivatives(zero, labels, moved)[0]
                pull = pull - functions.derivatives(zero, labels, fixed)[0]
                return at_zero + pull * (mean + (moved - fixed) @ slope)

            delta = self.data.delta
            for part, mean, covariance in (
                (alone, means[[t]], delta * self.overlap[np.ix_([t], [t])]),
                (shift, reference, delta * earlier_overlap),
            ):
                found, uncertain = gaussian_mean(part, mean, covariance)
                value += weight * found
                error += weight * uncertain
        return value, error

    def average(self, function: Callable[[Array, float], Array], stages: Sequence[int]) -> tuple[float, float]:
        """Average of ``function(logits, label)`` over test points: label and logits of these stages."""
        covariance = self.data.delta * self.overlap[np.ix_(stages, stages)]
        value = error = 0.0
        for sign, weight in ((1, self.data.rho), (-1, 1 - self.data.rho)):
            mean = sign * self.magnetization[stages] + self.bias[stages]
            label = (1 + sign) / 2
            found, uncertain = gaussian_mean(lambda points, label=label: function(points, label), mean, covariance)
            value += weight * found
            error += weight * uncertain
        return value, error


def _columns(rows: Sequence[Array] | Array, length: int) -> Array:
    """Earlier logits as a loss takes them, shape (length, number)."""
    return np.column_stack(rows) if len(rows) else np.empty((length, 0))


def measure(data: GaussianMixture, sample: Sample, chain: Chain, fits: Sequence[RidgeFit]) -> dict[str, Array]:
    """All observables of one trained chain: shape (T,) each, or (T, T) for those of two stages."""
    n_inputs, n_stages = len(sample.mean), len(fits)
    weights = np.array([_resized(fit.weights, n_inputs) for fit in fits])
    logits = np.array([fit.logits for fit in fits])
    signs = 2 * sample.labels - 1
    found = {name: np.zeros(n_stages) for name in STAGE_QUANTITIES}
    found |= {name: np.zeros((n_stages, n_stages)) for name in PAIR_QUANTITIES}
    found["magnetization"] = weights @ sample.mean / n_inputs
    found["bias"] = np.array([fit.bias for fit in fits])
    found["overlap"] = weights @ weights.T / n_inputs
    found["norm_squared"] = np.diag(found["overlap"]).copy()
    found["norm"] = np.sqrt(found["norm_squared"])
    with np.errstate(divide="ignore", invalid="ignore"):
        length = np.linalg.norm(sample.mean) / math.sqrt(n_inputs)
        found["cosine"] = found["magnetization"] / (found["norm"] * length)
        found["overlap_cosine"] = found["overlap"] / np.outer(found["norm"], found["norm"])
    population = Population(data, found["magnetization"], found["bias"], found["overlap"])
    for t, (stage, fit) in enumerate(zip(chain.stages, fits, strict=True)):
        found["gradient_norm"][t] = fit.gradient_norm
        found["relative_gradient_norm"][t] = fit.relative_gradient_norm
        found["iterations"][t] = fit.iterations
        found["test_error"][t] = population.test_error(t)
        found["train_error"][t] = np.mean(signs * logits[t] <= 0)
        found["test_loss"][t], found["quadrature_error"][t] = population.test_loss(stage.loss, t)
        found["train_loss"][t] = np.mean(_fields(stage.loss, t + 1, sample, fits).value(logits[t]))
        found["test_cross_entropy"][t], uncertain = population.test_loss(CrossEntropy(), t)
        found["quadrature_error"][t] = max(found["quadrature_error"][t], uncertain)
        found["train_cross_entropy"][t] = np.mean(_fields(CrossEntropy(), 1, sample, ()).value(logits[t]))
        penalty = stage.ridge / 2 * found["norm_squared"][t]
        found["free_energy"][t] = len(signs) / n_inputs * found["train_loss"][t] + penalty
        found["calibration_slope"][t], found["calibration_offset"][t] = population.calibration(t)
        found["agreement"][t, t] = found["train_agreement"][t, t] = 1.0
        for s in range(t):
            output, uncertain = population.output_distance(t, s)
            found["quadrature_error"][t] = max(found["quadrature_error"][t], uncertain)
            pair = {
                "agreement": population.agreement(t, s),
                "train_agreement": np.mean((logits[t] > 0) == (logits[s] > 0)),
                "test_logit_distance": population.logit_distance(t, s),
                "train_logit_distance": np.mean((logits[t] - logits[s]) ** 2),
                "test_output_distance": output,
                "train_output_distance": np.mean((expit(logits[t]) - expit(logits[s])) ** 2),
            }
            for name, value in pair.items():
                found[name][t, s] = found[name][s, t] = value
    found["generalization_gap"] = found["test_error"] - found["train_error"]
    found["loss_gap"] = found["test_loss"] - found["train_loss"]
    return found


@dataclass(frozen=True)
class StageEstimates:
    """Observables of one stage, each an :class:`Estimate`; nan where a stage before is needed and there is none."""

    result: SimulationResult
    index: int

    def __getattr__(self, name: str) -> Estimate:
        if name not in self.__dir__():
            raise AttributeError(f"a stage has no observable {name!r}; it has {', '.join(sorted(self.__dir__()))}")
        runs, t = self.result.runs, self.index
        if name in STAGE_QUANTITIES:
            return estimate(runs[name][:, t])
        if name == "response":
            return estimate(runs[name][:, t, t])
        values = runs[TEACHER_QUANTITIES[name]]
        return estimate(values[:, t, t - 1] if t else np.full(len(values), np.nan))

    def __dir__(self) -> list[str]:
        measured = ["response"] if "response" in self.result.runs else []
        return [*STAGE_QUANTITIES, *TEACHER_QUANTITIES, *measured]

    def to_dict(self) -> dict[str, object]:
        """Mean and standard error of everything, for JSON."""
        return {name: _plain(getattr(self, name)) for name in self.__dir__()}


@dataclass(frozen=True)
class SimulationResult:
    """Observables of all runs.

    Attributes
    ----------
    data, chain
        What was simulated.
    n_inputs, n_samples, active
        N, M, and the number of trained weights of each stage.
    seed
        Run k of a seed is the same draw whatever the number of runs.
    runs : dict
        Raw values by name: shape (n_runs, T), or (n_runs, T, T) for overlap, response and other quantities of
        two stages.
    converged : bool
        Whether every fit met the gradient tolerance.
    message : str
        Which did not, in words.
    """

    data: GaussianMixture
    chain: Chain
    n_inputs: int
    n_samples: int
    active: tuple[int, ...]
    seed: int
    runs: Mapping[str, Array]
    converged: bool
    message: str

    @property
    def n_runs(self) -> int:
        return len(self.runs["bias"])

    @property
    def effective_alpha(self) -> float:
        """M/N, which rounding may move away from the alpha asked for."""
        return self.n_samples / self.n_inputs

    @property
    def effective_eta(self) -> tuple[float, ...]:
        """Trained fraction of the weights of each stage."""
        return tuple(size / self.n_inputs for size in self.active)

    def estimate(self, name: str) -> Estimate:
        """Mean and standard error of a quantity, shape (T,) or (T, T); KeyError if it is unknown."""
        if name not in self.runs:
            raise KeyError(f"no observable {name!r}; there are {', '.join(sorted(self.runs))}")
        return estimate(self.runs[name])

    def mean(self, name: str) -> Array:
        """Mean over runs, shape (T,) or (T, T)."""
        return np.asarray(self.estimate(name).mean)

    def standard_error(self, name: str) -> Array:
        """Standard error of the mean; nan for a single run."""
        return np.asarray(self.estimate(name).standard_error)

    @cached_property
    def magnetization(self) -> Estimate:
        """m_t, shape (T,)."""
        return self.estimate("magnetization")

    @cached_property
    def bias(self) -> Estimate:
        """b_t, shape (T,)."""
        return self.estimate("bias")

    @cached_property
    def overlap(self) -> Estimate:
        """Q_ts, shape (T, T)."""
        return self.estimate("overlap")

    @property
    def response(self) -> Estimate:
        """V_ts, shape (T, T), lower triangular; it has a finite-size bias of order 1/N.

        Raises
        ------
        AttributeError
            If the simulation was run without ``responses=True``.
        """
        if "response" not in self.runs:
            raise AttributeError("responses were not measured: call simulate(..., responses=True)")
        return self.estimate("response")

    def __len__(self) -> int:
        return len(self.chain)

    def __getitem__(self, index: int) -> StageEstimates:
        """Stage by position from 0, so that ``result[1]`` is the student."""
        return StageEstimates(self, range(len(self))[index])

    def __iter__(self) -> Iterator[StageEstimates]:
        return (self[index] for index in range(len(self)))

    def to_dict(self) -> dict[str, object]:
        """Everything but the raw runs, in types JSON knows; nan becomes None."""
        matrices = ("overlap", "response") if "response" in self.runs else ("overlap",)
        return {
            "converged": self.converged,
            "message": self.message,
            "n_inputs": self.n_inputs,
            "n_samples": self.n_samples,
            "n_runs": self.n_runs,
            "seed": self.seed,
            "effective_alpha": self.effective_alpha,
            "stages": [
                {"name": name, "effective_eta": eta, **stage.to_dict()}
                for name, eta, stage in zip(self.chain.names, self.effective_eta, self, strict=True)
            ],
            **{name: _plain(self.estimate(name)) for name in matrices},
        }


def _plain(found: Estimate) -> dict[str, object]:
    return {"mean": _without_nan(found.mean), "standard_error": _without_nan(found.standard_error)}


def _without_nan(value: float | Array) -> object:
    if np.ndim(value):
        return [_without_nan(entry) for entry in value]
    return float(value) if math.isfinite(value) else None


def simulate(
    data: GaussianMixture,
    chain: Chain | Estimator | Sequence[Estimator],
    n_inputs: int = 1000,
    n_runs: int = 20,
    seed: int = 0,
    *,
    n_jobs: int = 1,
    gradient_tolerance: float = 1e-8,
    responses: bool = False,
    throw: bool = False,
    progress: bool = False,
) -> SimulationResult:
    """Train a chain on finite samples, ``n_runs`` times.

    Parameters
    ----------
    data, chain
        What to simulate; alpha and eta are rounded to whole samples and weights (see ``effective_alpha``).
    n_inputs : int
        N >= 2.  A run needs about 16 M N bytes.
    n_runs : int
        Independent draws of v and of the samples.  With one run, standard errors are nan.
    seed : int
        Run k depends on the seed and k alone.
    n_jobs : int
        Runs trained at the same time, each on one core.
    gradient_tolerance : float
        Relative gradient norm of a converged fit (see :class:`numerics.optimisers.RidgeFit`).
    responses : bool
        Also measure V_ts, which costs dense inverses.
    throw : bool
        Raise if a fit does not converge; otherwise it is kept, with a ``ConvergenceWarning`` and
        ``converged`` false.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    SimulationResult

    Raises
    ------
    ParameterError
        If a parameter is out of range, or a draw has samples of one class only.
    ConvergenceError
        If ``throw`` and a fit misses the gradient tolerance.
    """
    if not isinstance(data, GaussianMixture):
        raise ParameterError(f"data must be a GaussianMixture, got {data!r}")
    chain = Chain.of(chain)
    n_inputs = _require_count("n_inputs", n_inputs, 2)
    n_runs = _require_count("n_runs", n_runs, 1)
    seed = _require_count("seed", seed, 0)
    n_jobs = min(_require_count("n_jobs", n_jobs, 1), n_runs)
    gradient_tolerance = require_number(
        "gradient_tolerance",
        gradient_tolerance,
        above=0,
        below=1,
        allowed="a number in the open interval (0, 1)",
    )
    n_samples = round(data.alpha * n_inputs)
    if n_samples < 2:
        raise ParameterError(
            f"alpha*n_inputs must give at least 2 samples, got alpha={data.alpha:g}, n_inputs={n_inputs}"
        )
    active = tuple(round(stage.eta * n_inputs) for stage in chain.stages)
    for name, stage, size in zip(chain.names, chain.stages, active, strict=True):
        if stage.ridge == 0:
            raise ParameterError(f"ridge of {name} must be > 0 in a simulation: the limit 0 is taken by theory only")
        if size < 1:
            raise ParameterError(f"eta of {name} must leave at least 1 of {n_inputs} weights, got {stage.eta:g}")

    def run(k: int) -> tuple[dict[str, Array], list[str]]:
        sample = draw(data, n_inputs, np.random.SeedSequence(seed, spawn_key=(k,)))
        fits = train(sample, chain, active, gradient_tolerance)
        failures = [
            f"run {k}, {name}: {fit.message}" for name, fit in zip(chain.names, fits, strict=True) if not fit.converged
        ]
        if failures and throw:
            raise ConvergenceError("; ".join(failures))
        found = measure(data, sample, chain, fits)
        if responses:
            found["response"] = measure_responses(sample, chain, fits)
        return found, failures

    # One thread per run: most time goes into passes over memory, and threads that wait for a busy core cost
    # more than they bring.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_jobs) as pool:
        outcomes = list(tqdm(pool.map(run, range(n_runs)), total=n_runs, desc="runs", delay=2, disable=not progress))
    failures = [failure for _, failed in outcomes for failure in failed]
    message = "; ".join(failures) or "all fits converged"
    if failures:
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    runs = {name: np.array([found[name] for found, _ in outcomes]) for name in outcomes[0][0]}
    return SimulationResult(data, chain, n_inputs, n_samples, active, seed, runs, not failures, message)


def _require_count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)
