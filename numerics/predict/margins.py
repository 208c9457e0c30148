"""Errors to be expected on measured samples: weights from theory, margins on samples that theory has not seen.

The samples are split into folds.  Class means and covariance of all folds but one give the mixture that theory solves; its weights
are Gaussian over training sets (:mod:`numerics.solution.weight_law`), and so is the logit of each sample x that was held out, of
mean a and variance c.  The error is the mean over all of these of ``Phi(-s a/sqrt(c))``, s the label: of samples as they are, which
need not be Gaussian.

What is estimated from n samples has their noise, which theory takes for the population's.  It counts as if more of the training set
were noise, and is taken out again: theory is asked for ``1/M_th = 1/M - 1/n``, and for ridges times ``M_th/M``, because losses are
summed over samples.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from numerics.clusters import weights as clusters
from numerics.clusters.solution import ClusterSolution
from numerics.deferred import special
from numerics.models import (
    Chain,
    Clusters,
    ConvergenceWarning,
    GaussianMixture,
    LinearMap,
    Measured,
    ParameterError,
    Stage,
    check_fit,
)
from numerics.models.measured import Fold, Samples, folds_of, stratified_counts
from numerics.settings import DEFAULT, Settings
from numerics.solution.solution import Solution
from numerics.solution.weight_law import SeenInputs, logits_on
from numerics.solver import ConvergenceError, solve

Array = NDArray[np.float64]

LARGEST_SHARE = 0.9
"""Of the samples that the population is estimated from, that a training set may have."""

_GAUSS_ORDER = 24  # nodes of averages over training sets


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is to be expected on measured samples, averaged over training sets of M samples with the shares of the classes.

    Attributes
    ----------
    data, chain
        What is asked.
    test_error, test_cross_entropy : arrays, shape (T,)
        Cross-fitted.
    class_errors : array, shape (T, 2)
        The first of the two on samples of the negative, and of the positive class.
    fold_errors : array, shape (folds, T)
        Test error on each part that was held out.
    gaussian_error : array, shape (T,)
        Test error on the Gaussian mixture itself, mean over the same folds.
    logit_means, logit_variances : arrays, shape (T, n)
        Of each sample when it was held out, over training sets.
    converged : bool
        Whether all saddle points did; if not, what hangs on them is NaN.
    message : str
        "converged", or which did not.
    seconds : float
        Time that it took.
    """

    data: Measured
    chain: Chain
    test_error: Array
    test_cross_entropy: Array
    class_errors: Array
    fold_errors: Array
    gaussian_error: Array
    logit_means: Array = field(repr=False)
    logit_variances: Array = field(repr=False)
    converged: bool
    message: str
    seconds: float

    @property
    def n_samples(self) -> int:
        """M."""
        return self.data.n_samples

    @property
    def standard_error(self) -> Array:
        """Of the test error, from the scatter of the folds, shape (T,)."""
        return self.fold_errors.std(axis=0, ddof=1) / math.sqrt(len(self.fold_errors))


def predict(
    data: Measured, chain: Chain | Stage | Sequence[Stage], *, settings: Settings = DEFAULT, throw: bool = False
) -> Prediction:
    """Cross-fitted errors of a chain that is trained on some of the samples.

    Parameters
    ----------
    data : Measured
        The samples, and in ``alpha`` how many of them a training set has.
    chain : stage or sequence of stages
    throw : bool
        Raise ConvergenceError where a saddle point does not converge, instead of a warning.

    Returns
    -------
    Prediction

    Raises
    ------
    ParameterError
        If the data are others, training sets have more than 0.9 of the samples that a population is estimated from, or data and
        chain do not fit together.
    ConvergenceError
        If ``throw`` and some saddle point does not converge.

    Examples
    --------
    >>> from numerics import Estimator
    >>> from theory.losses import CrossEntropy, Distillation
    >>> generator = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 200)
    >>> X = generator.standard_normal((400, 10)) + 0.5 * y[:, None]
    >>> data = Measured(X, y).at(100)
    >>> found = predict(data, [Estimator(CrossEntropy(), 1.0), Estimator(Distillation(), 0.1)])
    >>> found.test_error.round(3), found.gaussian_error.round(3)
    (array([0.205, 0.204]), array([0.209, 0.209]))
    """
    if not isinstance(data, Measured):
        raise ParameterError(f"data must be Measured, got {data!r}")
    chain = Chain.of(chain)
    check_fit(data, chain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = _predicted(data, chain, settings)
    if not found.converged:
        text = f"no converged prediction at {data}: {found.message}"
        if throw:
            raise ConvergenceError(text)
        warnings.warn(text, ConvergenceWarning, stacklevel=2)
    return found


def most_samples(data: Measured) -> int:
    """Largest M that can be predicted."""
    return int(LARGEST_SHARE * min(fold.moments.count for fold in _folds(data)))


def _folds(data: Measured) -> tuple[Fold, ...]:
    return folds_of(data.samples, data.folds, data.seed)


@lru_cache(maxsize=64)
def _predicted(data: Measured, chain: Chain, settings: Settings) -> Prediction:
    begin = time.perf_counter()
    size, stages = data.samples.count, len(chain)
    if data.n_samples > most_samples(data):
        raise ParameterError(
            f"alpha must give training sets of at most {most_samples(data)} samples, {LARGEST_SHARE:g} of those that a population "
            f"is estimated from, got {data.n_samples}"
        )
    folds, pooled = _folds(data), data.covariances == "pooled"
    law = logits_on if pooled else clusters.logits_on
    held = _held(data.samples, data.folds, data.seed, _maps(chain) if pooled else None)
    means, variances = np.full((stages, size), np.nan), np.full((stages, size), np.nan)
    gaussian, failures, solution = np.full((len(folds), stages), np.nan), [], None
    for k, fold in enumerate(folds):
        solution = solve(*corrected(data, chain, fold), start=solution, settings=settings)
        if not solution.converged:
            failures.append(f"fold {k}: {solution.message}")
            solution = None
            continue
        for t in range(stages):
            means[t, fold.held], variances[t, fold.held] = law(solution, t, held[k])
            gaussian[k, t] = _gaussian_error(solution, t, fold.moments.share)
    signs = data.samples.y
    with np.errstate(divide="ignore", invalid="ignore"):  # weights that are the same in all training sets
        wrong = special.ndtr(-signs * means / np.sqrt(variances))
    return Prediction(
        data=data, chain=chain, test_error=wrong.mean(axis=1),
        test_cross_entropy=_cross_entropy(signs * means, variances).mean(axis=1),
        class_errors=np.column_stack([wrong[:, signs == sign].mean(axis=1) for sign in (-1.0, 1.0)]),
        fold_errors=np.array([wrong[:, fold.held].mean(axis=1) for fold in folds]), gaussian_error=gaussian.mean(axis=0),
        logit_means=means, logit_variances=variances, converged=not failures, message="; ".join(failures) or "converged",
        seconds=time.perf_counter() - begin,
    )  # fmt: skip


def _maps(chain: Chain) -> tuple[LinearMap | None, ...]:
    return tuple(stage.features for stage in chain.stages)


@lru_cache(maxsize=4)
def _held(
    samples: Samples, parts: int, seed: int, maps: tuple[LinearMap | None, ...] | None
) -> tuple[Array | SeenInputs, ...]:
    """Inputs of each fold from its midpoint, where maps are given as stages see them."""
    found = []
    for fold in folds_of(samples, parts, seed):
        apart = samples.X[fold.held] - fold.moments.midpoint
        found.append(apart if maps is None else SeenInputs.of(fold.moments.inputs, maps, apart))
    return tuple(found)


def corrected(data: Measured, chain: Chain, fold: Fold) -> tuple[GaussianMixture | Clusters, Chain]:
    """What theory is asked on the population that is estimated from a fold's other samples."""
    n_samples = 1.0 / (1.0 / data.n_samples - 1.0 / fold.moments.count)
    share = stratified_counts(data.samples.y, data.n_samples)[0] / data.n_samples
    population = fold.moments.population(data.covariances, n_samples / data.samples.size, share)
    return population, with_ridges(chain, n_samples / data.n_samples)


def _gaussian_error(solution: Solution | ClusterSolution, stage: int, share: float) -> float:
    """Test error where so much of the samples is positive, which may be another share than in training."""
    if solution.data.in_clusters:
        wrong = solution[stage].cluster_errors
    else:
        m, b, q = solution.magnetization[stage], solution.bias[stage], solution.overlap[stage, stage]
        wrong = special.ndtr(-np.array([m + b, m - b]) / math.sqrt(q))
    return float(wrong @ [share, 1.0 - share])


def with_ridges(chain: Chain, factor: float) -> Chain:
    """All ridges that are given, times a factor."""
    stages = [
        stage if getattr(stage, "ridge", None) is None else replace(stage, ridge=stage.ridge * factor)
        for stage in chain.stages
    ]
    return Chain(tuple(stages))


def _cross_entropy(means: Array, variances: Array) -> Array:
    """Mean of ``log(1 + exp(-h))`` over normal h."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_GAUSS_ORDER)
    found = np.zeros_like(means)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        found += weight * np.logaddexp(0.0, -(means + node * np.sqrt(variances)))
    return found
