"""Predictions for K classes that share a covariance: softmax regression on inputs that are whitened by it.

Whitened inputs are those of :class:`numerics.ClassMixture`: the Gram matrix of the class means is all that theory has to know.
Given the means, the weights of a logit are a combination of them and noise that is even in all directions,

    w_k = sum_c A_ck mu_c + xi_k,    A = Gamma^+ m,    E[xi_k.xi_l]/N = Q_kl - (A^T Gamma A)_kl,

so that the K logits of an input x are Gaussian over training sets, of mean ``sum_c A_ck mu_c.x/sqrt(N) + b_k``.  As for two classes
(:mod:`numerics.predict.margins`) errors are those of samples that were held out, and a finite population is corrected for.
Stages see all columns: a mask of some would not be one of whitened ones.

On scikit-learn's ten digits predictions are above real fits by 5 to 10% at M = 100, 20 to 25% at 400, up to 50% at 800 of 1797
samples; the Gaussian formula is below them by a factor of 2 to 4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from numerics.models import (
    TRAINING,
    Chain,
    ClassMixture,
    ParameterError,
    Stage,
    check_fit,
    helmert,
    require_count,
)
from numerics.models.measured import FEWEST, FOLDS, class_places, finite_inputs, stratified_parts
from numerics.predict.margins import LARGEST_SHARE, with_ridges
from numerics.simulation.draw import Sample, class_counts
from numerics.simulation.result import Estimate, estimate
from numerics.simulation.run import repeat
from numerics.simulation.train import train
from numerics.solver import solve

Array = NDArray[np.float64]

DRAWS = 400
"""Of the logits of a sample, over training sets, in its probability of being taken for another class."""

_TOLERANCE, _LEAST = 1e-8, 1e-10  # gradient of a fit; eigenvalue of the covariance over the largest


@dataclass(frozen=True, eq=False)
class ClassPrediction:
    """Test errors to be expected of softmax regression on whitened samples of K classes.

    Attributes
    ----------
    test_error, gaussian_error : arrays, shape (T,)
        Cross-fitted; of the Gaussian classes themselves.
    fold_errors : array, shape (folds, T)
        The first on each part that was held out.
    class_errors : array, shape (T, K)
        Of each class.
    converged : bool
        Whether all saddle points did.
    message : str
        "converged", or which did not.
    seconds : float
        That it took.
    """

    test_error: Array
    gaussian_error: Array
    fold_errors: Array
    class_errors: Array
    converged: bool
    message: str
    seconds: float

    @property
    def standard_error(self) -> Array:
        """Of the test error, from the scatter of the folds, shape (T,)."""
        return self.fold_errors.std(axis=0, ddof=1) / math.sqrt(len(self.fold_errors))


@dataclass(frozen=True, eq=False)
class _Whitened:
    """Class means as whitened, shape (K, p), and what whitens inputs."""

    means: Array
    midpoint: Array
    axes: Array

    @classmethod
    def by(cls, X: Array, places: NDArray[np.intp], classes: int) -> _Whitened:
        """Means and pooled covariance of samples."""
        means = np.array([X[places == c].mean(axis=0) for c in range(classes)])
        apart = X - means[places]
        values, vectors = np.linalg.eigh(apart.T @ apart / max(len(X) - classes, 1))
        if values[0] < _LEAST * values[-1]:
            raise ParameterError(
                f"X must have class covariances of full rank to be whitened; leave out columns that others give "
                f"({int((values < _LEAST * values[-1]).sum())} of {len(values)} directions do not vary)"
            )
        axes, midpoint = vectors / np.sqrt(values), means.mean(axis=0)
        return cls((means - midpoint) @ axes, midpoint, axes)

    def __call__(self, X: Array) -> Array:
        return (X - self.midpoint) @ self.axes


def predict_classes(
    X: object, y: object, chain: Chain | Stage | Sequence[Stage], n_samples: int, *, folds: int = FOLDS, seed: int = 0,
    rtol: float = 1e-2,
) -> ClassPrediction:  # fmt: skip
    """Cross-fitted test errors of a chain on whitened samples of K classes.

    Parameters
    ----------
    X : array, shape (n, p)
    y : array, shape (n,)
        Labels of two classes or more, each at least twice.
    chain : stage or sequence of stages
        Estimators that see all columns.
    n_samples : int
        M, at most 0.9 of the samples that a population is estimated from.
    folds, seed
        As of :class:`numerics.Measured`.
    rtol : float
        Accuracy of theory's test errors.

    Raises
    ------
    ParameterError
        For samples that cannot be used, a chain that is not for K classes, or a training set that is too large.

    Examples
    --------
    >>> from numerics import Estimator
    >>> from theory.losses import CrossEntropy
    >>> generator, y = np.random.default_rng(0), np.arange(600) % 3
    >>> X = generator.standard_normal((600, 8)) + 1.5 * np.eye(3, 8)[y]
    >>> found = predict_classes(X, y, Estimator(CrossEntropy(), 1.0), 90)
    >>> found.test_error.round(2), found.gaussian_error.round(2)
    (array([0.25]), array([0.25]))
    """
    begin = time.perf_counter()
    X, places, labels = _samples(X, y)
    chain, classes, size = Chain.of(chain), len(labels), X.shape[1]
    n_samples = require_count("n_samples", n_samples, 2)
    parts = min(require_count("folds", folds, 2), int(np.bincount(places).min()))
    part = stratified_parts(places, parts, np.random.default_rng(require_count("seed", seed, 0)))
    most = int(LARGEST_SHARE * min((part != k).sum() for k in range(parts)))
    if n_samples > most:
        raise ParameterError(
            f"n_samples must be at most {most}, {LARGEST_SHARE:g} of those that a population is estimated from"
        )
    wrong = np.full((len(chain), len(places)), np.nan)
    gaussian, failures = np.full((parts, len(chain)), np.nan), []
    for k in range(parts):
        rest, held = part != k, part == k
        whitened = _Whitened.by(X[rest], places[rest], classes)
        count = 1.0 / (1.0 / n_samples - 1.0 / rest.sum())
        shares = np.bincount(places[rest], minlength=classes) / rest.sum()
        gram = whitened.means @ whitened.means.T
        data = ClassMixture(count / size, weights=tuple(shares / shares.sum()), gram=gram)
        stages = with_ridges(chain, count / n_samples)
        check_fit(data, stages)
        solution = solve(data, stages, rtol=rtol)
        if not solution.converged:
            failures.append(f"fold {k}: {solution.message}")
            continue
        gaussian[k] = [stage.test_error for stage in solution.stages]
        inputs, generator = whitened(X[held]), np.random.default_rng([seed, k])
        for t in range(len(chain)):
            mixing = np.linalg.pinv(gram, hermitian=True) @ solution.means[t]
            noise = solution.overlap[t, t] - mixing.T @ gram @ mixing
            means = inputs @ whitened.means.T @ mixing + solution.bias[t]
            wrong[t, held] = _mistaken(means, np.sum(inputs**2, axis=1) / size, noise, places[held], generator)
    return ClassPrediction(
        wrong.mean(axis=1), gaussian.mean(axis=0), np.array([wrong[:, part == k].mean(axis=1) for k in range(parts)]),
        np.array([wrong[:, places == c].mean(axis=1) for c in range(classes)]).T, not failures,
        "; ".join(failures) or "converged", time.perf_counter() - begin,
    )  # fmt: skip


def measure_classes(
    X: object, y: object, chain: Chain | Stage | Sequence[Stage], n_samples: int, n_runs: int = 10, seed: int = 0
) -> tuple[Estimate, ...]:
    """Test error of each stage by real fits: inputs are whitened by all samples, a stratified subsample is trained on, and the
    others are tested.

    Parameters
    ----------
    X, y, chain, n_samples
        As of :func:`predict_classes`.
    n_runs, seed : int
        Subsamples, and their seed.

    Raises
    ------
    ParameterError
        As of :func:`predict_classes`; if a fit does not converge.
    """
    X, places, labels = _samples(X, y)
    chain, classes, size = Chain.of(chain), len(labels), X.shape[1]
    n_samples = require_count("n_samples", n_samples, classes)
    if n_samples > len(places) - 1:
        raise ParameterError(f"n_samples must leave some of the {len(places)} samples to test on, got {n_samples}")
    whitened = _Whitened.by(X, places, classes)
    inputs, shares = whitened(X) / math.sqrt(size), np.bincount(places) / len(places)
    data = ClassMixture(n_samples / size, weights=tuple(shares / shares.sum()), gram=whitened.means @ whitened.means.T)
    check_fit(data, chain)
    (counts,) = class_counts(data, size)
    basis = helmert(classes)

    def run(k: int) -> tuple[dict[str, Array], list[str]]:
        generator = np.random.default_rng(np.random.SeedSequence(require_count("seed", seed, 0), spawn_key=(k,)))
        rows = np.concatenate([
            generator.permutation(np.flatnonzero(places == c))[:count] for c, count in enumerate(counts)
        ])  # fmt: skip
        rest = np.setdiff1d(np.arange(len(places)), rows)
        sample = Sample(
            inputs[rows], places[rows], math.sqrt(size) * whitened.means, places[rows], {TRAINING: slice(0, len(rows))}
        )  # fmt: skip
        fits = train(sample, chain, (size,) * len(chain), _TOLERANCE)
        for name, fit in zip(chain.names, fits, strict=True):
            if not fit.converged:
                raise ParameterError(f"ridge of {name}: {fit.message}")
        logits = [inputs[rest] @ (fit.all_weights @ basis) + fit.bias @ basis for fit in fits]
        return {"test_error": np.array([np.mean(np.argmax(h, axis=1) != places[rest]) for h in logits])}, []

    runs, _ = repeat(run, require_count("n_runs", n_runs, 1))
    return tuple(estimate(runs["test_error"][:, t]) for t in range(len(chain)))


def _samples(X: object, y: object) -> tuple[Array, NDArray[np.intp], NDArray]:
    inputs = finite_inputs(X)
    places, labels = class_places(y)
    if len(inputs) != len(places):
        raise ParameterError(f"y must have as many labels as X has rows, {len(inputs)}, got {len(places)}")
    counts = np.bincount(places)
    if len(labels) < 2 or counts.min() < FEWEST:
        few = "" if len(labels) < 2 else f" and {counts.min()} samples of {labels[np.argmin(counts)]}"
        raise ParameterError(f"y must have two classes or more, with {FEWEST} samples each, got {len(labels)}{few}")
    return inputs, places, labels


def _mistaken(
    means: Array, scales: Array, noise: Array, places: NDArray[np.intp], generator: np.random.Generator
) -> Array:
    """Probability over training sets that each sample is taken for another class, shape (n,): the mean over draws of its logits,
    of these means (n, K) and covariances ``scales_i noise``."""
    values, vectors = np.linalg.eigh(noise)
    drawn = generator.standard_normal((DRAWS, len(noise))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    found = np.empty(len(places))
    for i, (mean, scale, place) in enumerate(zip(means, scales, places, strict=True)):
        found[i] = np.mean(np.argmax(mean + math.sqrt(scale) * drawn, axis=1) != place)
    return found
