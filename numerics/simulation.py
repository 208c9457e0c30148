"""The experiment the theory predicts: train a chain on finite samples, and measure what theory computes.

Nothing here is asymptotic.  Given the trained weights, a test logit of stage t is exactly Gaussian, ``h_t | s
~ N(s w_t.v/N + b_t, Delta |w_t|^2/N)``, jointly over stages with covariance ``Delta w_t.w_s/N``: so
population quantities are computed from a model's own overlaps, without test samples.

What is drawn, in this order: v, then for each data set its labels and inputs; label flips, random masks and frozen weights have
streams of their own, so that the same seed gives the same inputs with and without them.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from numerics.codegen.losses import LossFunctions
from numerics.models import (
    TRAINING,
    Chain,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    ParameterError,
    Stage,
    check_fit,
    require_number,
)
from numerics.optimisers import RidgeFit, minimise_ridge
from numerics.solution.population import Population, as_columns, target_jumps
from numerics.solution.solution import _without_nan
from numerics.solver import ConvergenceError, ConvergenceWarning
from theory.losses import CrossEntropy, Loss

Array = NDArray[np.float64]
Selection = slice | NDArray[np.intp]
"""Some rows or columns of a matrix."""

FLIPS, FURTHER, MASKS, FROZEN = range(1, 5)
"""Numbers of the random streams besides that of v and the training set."""

FAR = 1e6
"""A bias at which losses have reached their asymptotes."""

STAGE_QUANTITIES = (
    "magnetization",
    "bias",
    "norm",
    "norm_squared",
    "cosine",
    "test_error",
    "train_error",
    "clean_train_error",
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
    "teacher_cosine": "teacher_cosine",
    "teacher_agreement": "teacher_agreement",
    "teacher_train_agreement": "teacher_train_agreement",
    "test_logit_distance": "teacher_test_logit_distance",
    "train_logit_distance": "teacher_train_logit_distance",
    "test_output_distance": "teacher_test_output_distance",
    "train_output_distance": "teacher_train_output_distance",
}
"""Observables of a stage and its teacher (:meth:`numerics.models.Chain.teachers`), and what they are called in the raw runs."""

MEASURED = frozenset((*STAGE_QUANTITIES, *TEACHER_QUANTITIES))
"""Observables of a stage that every simulation measures."""


@dataclass(frozen=True)
class Simulation:
    """How a point is simulated where many are.

    Attributes
    ----------
    n_inputs : int
        Inputs N >= 2.
    n_runs : int
        Independent draws >= 1.
    seed : int
        Of all draws, >= 0.

    Examples
    --------
    >>> from numerics import sweep
    >>> chain = Estimator(CrossEntropy(), ridge=0.1)
    >>> runs = sweep(GaussianMixture(1.0), chain, {"alpha": [1.0, 2.0]}, simulation=Simulation(n_inputs=100, n_runs=4))
    >>> sorted(runs.data_vars)
    ['test_error', 'test_error_standard_error']
    """

    n_inputs: int = 500
    n_runs: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_inputs", 2), ("n_runs", 1), ("seed", 0)):
            object.__setattr__(self, name, _require_count(name, getattr(self, name), least))


@dataclass(frozen=True)
class Estimate:
    """Mean over runs, its standard error (nan for a single run), and the number of runs."""

    mean: float | Array
    standard_error: float | Array
    n: int


def estimate(values: Array) -> Estimate:
    """Average over the first axis."""
    n = len(values)
    with np.errstate(invalid="ignore"):  # infinite in a run that broke down
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
    """One draw of all data sets, one after the other.

    Attributes
    ----------
    design : ndarray, shape (M, N)
        x/sqrt(N).
    labels : ndarray, shape (M,)
        0 or 1, as seen in training: with noise.
    mean : ndarray, shape (N,)
        v.
    clean_labels : ndarray, shape (M,)
        Of the cloud each sample comes from; ``labels`` if not given.
    sets : mapping of name to slice
        Rows of each data set; all are the training set's if not given.
    """

    design: Array
    labels: Array
    mean: Array
    clean_labels: Array | None = None
    sets: Mapping[str, slice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clean_labels is None:
            object.__setattr__(self, "clean_labels", self.labels)
        if not self.sets:
            object.__setattr__(self, "sets", {TRAINING: slice(0, len(self.labels))})

    def rows(self, sets: Sequence[str]) -> Selection:
        """Rows of some data sets: a slice, which needs no copy, if they follow one another."""
        found = sorted((self.sets[name] for name in sets), key=lambda rows: rows.start)
        if all(first.stop == second.start for first, second in pairwise(found)):
            return slice(found[0].start, found[-1].stop)
        return np.concatenate([np.arange(rows.start, rows.stop) for rows in found])

    def part(self, rows: Selection, columns: Selection) -> Array:
        """Design of some samples and inputs; a view if both are slices."""
        if isinstance(columns, slice):
            return self.design[rows, columns]
        return np.take(self.design[rows], columns, axis=1)


def _generator(seed: np.random.SeedSequence, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *stream)))


def draw(data: GaussianMixture, n_inputs: int, seed: np.random.SeedSequence) -> Sample:
    """Draw v, and labels and inputs of every data set."""
    generator = np.random.default_rng(seed)
    mean = generator.standard_normal(n_inputs)
    shift = mean / n_inputs
    sizes = sample_sizes(data, n_inputs)
    design = np.empty((sum(sizes), n_inputs))
    labels = np.empty(sum(sizes))
    sets, first = {}, 0
    for number, (data_set, size) in enumerate(zip(data.sets, sizes, strict=True)):
        rows = sets[data_set.name] = slice(first, first + size)
        first += size
        source = _generator(seed, FURTHER, number) if number else generator
        labels[rows] = source.random(size) < data.rho
        source.standard_normal(out=design[rows])
    design *= math.sqrt(data.delta / n_inputs)
    for row, label in zip(design, labels, strict=True):
        row += (2 * label - 1) * shift
    noisy = labels
    if any(data_set.label_noise > 0 for data_set in data.sets):
        noisy = labels.copy()
        for number, data_set in enumerate(data.sets):
            rows = sets[data_set.name]
            flipped = _generator(seed, FLIPS, number).random(rows.stop - rows.start) < data_set.label_noise
            noisy[rows] = np.where(flipped, 1 - labels[rows], labels[rows])
    return Sample(design, noisy, mean, labels, sets)


def sample_sizes(data: GaussianMixture, n_inputs: int) -> tuple[int, ...]:
    """Samples of each data set."""
    return tuple(round(data_set.alpha * n_inputs) for data_set in data.sets)


def mask_sizes(chain: Chain, n_inputs: int) -> tuple[tuple[int, int | None], ...]:
    """For each stage its number of active weights, and how many of them lie in the mask before (None: masks are nested)."""
    sizes: list[tuple[int, int | None]] = []
    for stage in chain.stages:
        size, inside = round(stage.eta * n_inputs), None
        if stage.mask_overlap is not None:
            before = sizes[-1][0]
            inside = round(stage.mask_overlap * stage.eta * n_inputs)
            inside = min(max(inside, size - (n_inputs - before), 0), size, before)
        sizes.append((size, inside))
    return tuple(sizes)


def draw_masks(chain: Chain, n_inputs: int, seed: np.random.SeedSequence) -> tuple[Selection, ...]:
    """Active weights of each stage: the first ones, or a random choice, in increasing order."""
    masks: list[Selection] = []
    for number, (size, inside) in enumerate(mask_sizes(chain, n_inputs), start=1):
        if inside is None:
            masks.append(slice(0, size))
            continue
        generator = _generator(seed, MASKS, number)
        before = np.zeros(n_inputs, dtype=bool)
        before[masks[-1]] = True
        chosen = [
            generator.choice(np.flatnonzero(group), count, replace=False)
            for group, count in ((before, inside), (~before, size - inside))
        ]
        masks.append(np.sort(np.concatenate(chosen)))
    return tuple(masks)


def draw_frozen(chain: Chain, mean: Array, seed: np.random.SeedSequence) -> dict[int, Array]:
    """Weights of the frozen stages, by stage number, shape (N,) each."""
    return {
        number: stage.magnetization * mean
        + math.sqrt(max(0.0, stage.norm_squared - stage.magnetization**2))
        * _generator(seed, FROZEN, number).standard_normal(len(mean))
        for number, stage in enumerate(chain.stages, start=1)
        if isinstance(stage, Frozen)
    }


@dataclass(frozen=True)
class StageFit(RidgeFit):
    """A trained (or frozen) stage.

    Attributes
    ----------
    weights, logits
        Of the active weights, and on its own training samples (a frozen stage: on the training set).
    active, rows
        Which weights, and which samples.
    everywhere : ndarray, shape (M,)
        Logits on the samples of all data sets.
    """

    active: Selection
    rows: Selection
    everywhere: Array

    def all_weights(self, n_inputs: int) -> Array:
        """Weights with zeros where they are not active, shape (N,)."""
        weights = np.zeros(n_inputs)
        weights[self.active] = self.weights
        return weights


def train(
    sample: Sample,
    chain: Chain,
    active: Sequence[int | Selection],
    gradient_tolerance: float,
    frozen: Mapping[int, Array] | None = None,
) -> tuple[StageFit, ...]:
    """Fit the stages one after the other.

    Later stages see the logits of earlier ones on their own training samples, and start from the weights of the
    stages they look at if that is better than from zero.

    Parameters
    ----------
    sample : Sample
    chain : Chain
        Of Estimators and Frozen stages (see :meth:`numerics.models.Chain.resolved`).
    active : sequence
        Weights that each stage trains: a number n for the first n, or the selection.
    gradient_tolerance : float
        See :class:`numerics.optimisers.RidgeFit`.
    frozen : mapping of stage number to ndarray of shape (N,)
        Weights of the frozen stages.

    Raises
    ------
    ParameterError
        If all targets of a stage are of one class: a learned bias then has no minimum.
    """
    fits: list[StageFit] = []
    n_inputs = sample.design.shape[1]
    for number, (stage, columns) in enumerate(zip(chain.stages, active, strict=True), start=1):
        columns = slice(0, int(columns)) if isinstance(columns, int | np.integer) else columns
        rows = sample.rows(stage.sets or (TRAINING,))
        if isinstance(stage, Frozen):
            weights = frozen[number]
            logits = sample.design @ weights + stage.bias
            at_rest = RidgeFit(weights, stage.bias, logits[rows], 0.0, 0.0, 0, 0, 0, True, "frozen", ())
            fits.append(StageFit(**vars(at_rest), active=columns, rows=rows, everywhere=logits))
            continue
        fields = _fields(stage.loss, number, sample, fits, rows)
        if stage.fixed_bias is None:
            _require_minimum(fields, chain.name(number))
        fit = minimise_ridge(
            sample.part(rows, columns),
            fields,
            stage.ridge,
            starts=[(fits[s - 1].all_weights(n_inputs)[columns], fits[s - 1].bias) for s in stage.loss.stages(number)],
            bias=stage.fixed_bias,
            gradient_tolerance=gradient_tolerance,
        )
        if fit.broken:
            fit = replace(fit, message=_where_broken(fit, fields, stage.loss, number))
        fits.append(
            StageFit(**vars(fit), active=columns, rows=rows, everywhere=_everywhere(sample, stage, columns, fit))
        )
    return tuple(fits)


def _where_broken(fit: RidgeFit, fields: _Fields, loss: Loss, number: int) -> str:
    """The message of a fit whose loss is not finite, with the first sample on which it is not."""
    sample = fit.broken[0]
    seen = zip(loss.logits, fields.earlier[sample], strict=True)
    parts = [f"y={fields.labels[sample]:g}", *(f"{symbol}={value:.4g}" for symbol, value in seen)]
    return f"{fit.message}, first on sample {sample} ({', '.join(parts)})"


def _fields(loss: Loss, number: int, sample: Sample, fits: Sequence[StageFit], rows: Selection) -> _Fields:
    labels = sample.labels[rows]
    earlier = as_columns([fits[s - 1].everywhere[rows] for s in loss.stages(number)], len(labels))
    return _Fields(LossFunctions(loss), labels, earlier)


def _everywhere(sample: Sample, stage: Estimator, columns: Selection, fit: RidgeFit) -> Array:
    """Logits on all samples, those of data sets the stage was not trained on included."""
    logits = np.empty(len(sample.labels))
    logits[sample.rows(stage.sets)] = fit.logits
    weights = np.zeros(sample.design.shape[1])
    weights[columns] = fit.weights
    for name, rows in sample.sets.items():
        if name not in stage.sets:
            logits[rows] = sample.design[rows] @ weights + fit.bias
    return logits


def _require_minimum(fields: _Fields, name: str) -> None:
    """The objective falls for ever along the bias if the slopes far out, summed over samples, have the wrong sign.

    That holds for any weights, because they do not move in that direction.
    """
    count = len(fields.labels)
    with np.errstate(all="ignore"):
        if not np.isfinite(fields.derivatives(np.zeros(count))[0]).all():
            return  # no question of classes: the descent will say where
        up, down = (float(fields.derivatives(np.full(count, far))[0].sum()) for far in (FAR, -FAR))
    if up <= 0 or down >= 0:
        raise ParameterError(
            f"alpha, n_inputs and rho gave {name} {count} samples, all of one class; "
            "the unregularised bias then diverges: increase alpha or n_inputs, or take rho closer to 1/2"
        )


def measure_responses(sample: Sample, chain: Chain, fits: Sequence[StageFit]) -> Array:
    """``V_ts = (1/N) sum_i d w_ti/d xi_si``: response to ``- xi_s.w_s`` in the loss of s, biases refitted.

    Parameters
    ----------
    sample, chain, fits
        What :func:`draw` and :func:`train` gave.

    Returns
    -------
    ndarray, shape (T, T)
        Lower triangular; zero for frozen stages.  Exact, by dense inverses: time of order M N^2, memory a few times the
        design matrix.  nan where stage t feels stage s through a target that jumps (hard pseudo-labels): the weights of
        one finite sample are then a piecewise smooth function of the field, whose derivative has nothing to do with the
        V_ts of theory, a response averaged over the field.
    """
    n_inputs, n_stages = sample.design.shape[1], len(fits)
    result = np.zeros((n_stages, n_stages))
    moved: dict[tuple[int, int], Array | None] = {}  # d h_k / d xi_s on all samples, None if undefined
    for t, (stage, fit) in enumerate(zip(chain.stages, fits, strict=True)):
        if isinstance(stage, Frozen):
            continue
        size, learned = len(fit.weights), stage.fixed_bias is None
        fields = _fields(stage.loss, t + 1, sample, fits, fit.rows)
        design = _with_ones(sample.part(fit.rows, fit.active), learned)
        everywhere = design if len(design) == len(sample.labels) else None
        if everywhere is None and t + 1 < n_stages:
            everywhere = _with_ones(sample.part(slice(None), fit.active), learned)
        curvatures = np.maximum(fields.derivatives(fit.logits)[1], 0.0)
        hessian = design.T @ (curvatures[:, None] * design)
        np.einsum("ii->i", hessian)[:size] += stage.ridge
        factors = cho_factor(hessian, lower=True, overwrite_a=True)
        inverse = cho_solve(factors, np.eye(len(hessian), size), overwrite_b=True)
        result[t, t] = np.trace(inverse) / n_inputs
        own = design @ inverse
        if t + 1 < n_stages:
            moved[t, t] = own if everywhere is design else everywhere @ inverse
        hard = {stage.loss.stages(t + 1)[k] - 1 for k, _ in target_jumps(stage.loss)}
        pulls: dict[int, Array] = {}
        for k, seen in enumerate(stage.loss.stages(t + 1)):
            pull = fields.functions.mixed(fit.logits, fields.labels, fields.earlier, k)
            pulls[seen - 1] = pulls.get(seen - 1, 0.0) + pull
        pulls = {k: pull for k, pull in pulls.items() if k in hard or np.any(pull)}
        for s in range(t):
            between = [k for k in range(s, t) if k in pulls and (k, s) in moved]
            if not between:
                continue
            if any(k in hard or moved[k, s] is None for k in between):
                result[t, s], moved[t, s] = np.nan, None
                continue
            forces = sum(pulls[k][:, None] * moved[k, s][fit.rows] for k in between)
            mine, others = _shared(fit.active, fits[s].active, n_inputs)
            result[t, s] = -np.vdot(own[:, mine], forces[:, others]) / n_inputs
            if t + 1 < n_stages:
                moved[t, s] = -everywhere @ cho_solve(factors, design.T @ forces)
    return result


def _with_ones(design: Array, ones: bool) -> Array:
    return np.column_stack((design, np.ones(len(design)))) if ones else design


def _shared(first: Selection, second: Selection, n_inputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions, in two masks, of the weights that both have."""
    weights = np.arange(n_inputs)
    return np.intersect1d(weights[first], weights[second], assume_unique=True, return_indices=True)[1:]


def measure(data: GaussianMixture, sample: Sample, chain: Chain, fits: Sequence[StageFit]) -> dict[str, Array]:
    """All observables of one trained chain: shape (T,) each, or (T, T) for those of two stages.

    Training averages of a stage go over its own training samples with the labels seen there, ``clean_train_error`` over the
    same samples with the labels before the noise, averages of two stages over the samples of the later one.  Several teachers of
    one stage are compared with it by their mean logit.
    A frozen stage has no loss, and that of a broken fit is not finite: there the losses are nan.
    """
    n_inputs, n_stages = len(sample.mean), len(fits)
    weights = np.array([fit.all_weights(n_inputs) for fit in fits])
    found = {name: np.zeros(n_stages) for name in STAGE_QUANTITIES}
    found |= {name: np.zeros((n_stages, n_stages)) for name in PAIR_QUANTITIES}
    found |= {name: np.full(n_stages, np.nan) for name in TEACHER_QUANTITIES.values()}
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
        own, labels = fit.logits, sample.labels[fit.rows]
        found["gradient_norm"][t] = fit.gradient_norm
        found["relative_gradient_norm"][t] = fit.relative_gradient_norm
        found["iterations"][t] = fit.iterations
        found["test_error"][t] = population.test_error(t)
        found["train_error"][t] = np.mean((2 * labels - 1) * own <= 0)
        found["clean_train_error"][t] = np.mean((2 * sample.clean_labels[fit.rows] - 1) * own <= 0)
        found["test_cross_entropy"][t], found["quadrature_error"][t] = population.test_loss(CrossEntropy(), t)
        found["train_cross_entropy"][t] = np.mean(_fields(CrossEntropy(), 1, sample, (), fit.rows).value(own))
        if isinstance(stage, Frozen) or fit.broken:
            for name in ("test_loss", "train_loss", "free_energy"):
                found[name][t] = np.nan
        else:
            found["test_loss"][t], uncertain = population.test_loss(stage.loss, t)
            found["quadrature_error"][t] = max(found["quadrature_error"][t], uncertain)
            found["train_loss"][t] = np.mean(_fields(stage.loss, t + 1, sample, fits, fit.rows).value(own))
            penalty = stage.ridge / 2 * found["norm_squared"][t]
            found["free_energy"][t] = len(labels) / n_inputs * found["train_loss"][t] + penalty
        found["calibration_slope"][t], found["calibration_offset"][t] = population.calibration(t)
        found["agreement"][t, t] = found["train_agreement"][t, t] = 1.0
        for s in range(t):
            logits = fits[s].everywhere[fit.rows]
            pair, uncertain = _compare(population, t, s, own, logits)
            found["quadrature_error"][t] = max(found["quadrature_error"][t], uncertain)
            for name, value in pair.items():
                found[name][t, s] = found[name][s, t] = value
        if t > 0:
            teachers = [s - 1 for s in chain.teachers(t + 1)]
            if len(teachers) > 1:
                rows = np.zeros((2, n_stages))
                rows[0, t], rows[1, teachers] = 1.0, 1.0 / len(teachers)
                logits = np.mean([fits[s].everywhere[fit.rows] for s in teachers], axis=0)
                pair, uncertain = _compare(population.combined(rows), 0, 1, own, logits)
                found["quadrature_error"][t] = max(found["quadrature_error"][t], uncertain)
            else:
                pair = {name: found[name][t, teachers[0]] for name in PAIR_QUANTITIES}
            found["teacher_cosine"][t] = pair["overlap_cosine"]
            for name, value in pair.items():
                if (key := f"teacher_{name}") in found:
                    found[key][t] = value
    found["generalization_gap"] = found["test_error"] - found["train_error"]
    found["loss_gap"] = found["test_loss"] - found["train_loss"]
    return found


def _compare(population: Population, t: int, s: int, own: Array, other: Array) -> tuple[dict[str, float], float]:
    """Observables of two stages by name, from test points and their logits on samples, and the quadrature error."""
    output, uncertain = population.output_distance(t, s)
    q = population.overlap
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = q[t, s] / (np.sqrt(q[t, t]) * np.sqrt(q[s, s]))
    return {
        "overlap_cosine": cosine,
        "agreement": population.agreement(t, s),
        "train_agreement": np.mean((own > 0) == (other > 0)),
        "test_logit_distance": population.logit_distance(t, s),
        "train_logit_distance": np.mean((own - other) ** 2),
        "test_output_distance": output,
        "train_output_distance": np.mean((expit(own) - expit(other)) ** 2),
    }, uncertain


@dataclass(frozen=True)
class StageEstimates:
    """Observables of one stage, each an :class:`Estimate`; nan where a teacher is needed and there is none."""

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
        return estimate(runs[TEACHER_QUANTITIES[name]][:, t])

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
    n_inputs, set_sizes, active
        N, samples of each data set, and the number of trained weights of each stage.
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
    set_sizes: tuple[int, ...]
    active: tuple[int, ...]
    seed: int
    runs: Mapping[str, Array]
    converged: bool
    message: str

    @property
    def n_runs(self) -> int:
        return len(self.runs["bias"])

    @property
    def n_samples(self) -> int:
        """Samples M of the training set."""
        return self.set_sizes[0]

    @property
    def effective_alpha(self) -> float:
        """M/N of the training set, which rounding may move away from the alpha asked for."""
        return self.n_samples / self.n_inputs

    @property
    def effective_data(self) -> GaussianMixture:
        """The data with every alpha as it was after rounding."""
        alphas = [size / self.n_inputs for size in self.set_sizes]
        further = (
            replace(data_set, alpha=alpha) for data_set, alpha in zip(self.data.further, alphas[1:], strict=True)
        )
        return replace(self.data, alpha=alphas[0], further=tuple(further))

    @property
    def effective_chain(self) -> Chain:
        """The chain with every eta and overlap of masks as it was after rounding."""
        stages = list(self.chain.stages)
        for t, (size, inside) in enumerate(mask_sizes(self.chain, self.n_inputs)):
            if isinstance(stages[t], Estimator | Hebbian):
                overlap = None if inside is None else inside / size
                stages[t] = replace(stages[t], eta=size / self.n_inputs, mask_overlap=overlap)
        return Chain(tuple(stages))

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
        """V_ts, shape (T, T), lower triangular; it has a finite-size bias of order 1/N.  nan through hard pseudo-labels.

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
            "further_samples": dict(zip((found.name for found in self.data.further), self.set_sizes[1:], strict=True)),
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
    return {name: _without_nan(np.asarray(getattr(found, name)).tolist()) for name in ("mean", "standard_error")}


def simulate(
    data: GaussianMixture,
    chain: Chain | Stage | Sequence[Stage],
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
        What to simulate; alpha and eta are rounded to whole samples and weights (see ``effective_data``).
    n_inputs : int
        N >= 2.  A run needs less than twice the 8 M N bytes of its design matrix, M samples over all data sets; a random
        mask, or training on data sets that do not follow one another, copies its part of the matrix.
    n_runs : int
        Independent draws of v and of the samples.  With one run, standard errors are nan.
    seed : int
        Run k depends on the seed and k alone.
    n_jobs : int
        Runs trained at the same time, each on one core.
    gradient_tolerance : float
        Relative gradient norm of a converged fit (see :class:`numerics.optimisers.RidgeFit`).
    responses : bool
        Also measure V_ts, which costs dense inverses (see :func:`measure_responses`).
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
        If a parameter is out of range, data and chain do not fit together, or all targets of a stage are of one class.
    ConvergenceError
        If ``throw`` and a fit misses the gradient tolerance.

    Examples
    --------
    >>> data = GaussianMixture(alpha=2.0, rho=0.2, delta=1.0)
    >>> runs = simulate(data, Estimator(CrossEntropy(), ridge=0.1), n_inputs=200, n_runs=4, seed=0)
    >>> found = runs[0].test_error
    >>> round(found.mean, 4), round(found.standard_error, 4)
    (0.165, 0.0026)
    >>> runs.estimate("overlap").mean.shape
    (1, 1)
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
    check_fit(data, chain)
    set_sizes = sample_sizes(data, n_inputs)
    for data_set, size in zip(data.sets, set_sizes, strict=True):
        if size < 2:
            owner = "" if data_set.name == TRAINING else f" of {data_set.name}"
            raise ParameterError(
                f"alpha*n_inputs{owner} must give at least 2 samples, got alpha={data_set.alpha:g}, n_inputs={n_inputs}"
            )
    _require_memory(n_inputs, sum(set_sizes))
    resolved = Chain(chain.resolved(data))
    active = tuple(size for size, _ in mask_sizes(resolved, n_inputs))
    for name, stage, size in zip(chain.names, resolved.stages, active, strict=True):
        if isinstance(stage, Estimator) and stage.ridge == 0:
            raise ParameterError(f"ridge of {name} must be > 0 in a simulation: the limit 0 is taken by theory only")
        if size < 1:
            raise ParameterError(f"eta of {name} must leave at least 1 of {n_inputs} weights, got {stage.eta:g}")

    def run(k: int) -> tuple[dict[str, Array], list[str]]:
        own_seed = np.random.SeedSequence(seed, spawn_key=(k,))
        sample = draw(data, n_inputs, own_seed)
        masks, frozen = draw_masks(resolved, n_inputs, own_seed), draw_frozen(resolved, sample.mean, own_seed)
        fits = train(sample, resolved, masks, gradient_tolerance, frozen)
        failures = [
            f"run {k}, {name}: {fit.message}" for name, fit in zip(chain.names, fits, strict=True) if not fit.converged
        ]
        if failures and throw:
            raise ConvergenceError("; ".join(failures))
        found = measure(data, sample, resolved, fits)
        if responses:
            broken = any(fit.broken for fit in fits)
            found["response"] = (
                np.full((len(fits),) * 2, np.nan) if broken else measure_responses(sample, resolved, fits)
            )
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
    return SimulationResult(data, chain, n_inputs, set_sizes, active, seed, runs, not failures, message)


def _require_memory(n_inputs: int, n_samples: int) -> None:
    """ParameterError if a design matrix is larger than all memory there is."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return
    needed = 8 * n_inputs * n_samples
    if needed > memory:
        raise ParameterError(
            f"n_inputs={n_inputs} inputs and {n_samples} samples make a design matrix of {needed / 1e9:.3g} GB, but there are "
            f"{memory / 1e9:.3g} GB of memory"
        )


def _require_count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)
