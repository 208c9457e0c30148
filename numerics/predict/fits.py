"""Real fits: the chain trained on some of the measured samples, and tested on the others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from numerics.models import (
    TRAINING,
    Chain,
    ConvergenceWarning,
    DataModel,
    Dense,
    GaussianMixture,
    ParameterError,
    Stage,
    check_fit,
    require_count,
)
from numerics.models.measured import Samples, stratified_counts
from numerics.simulation.draw import Sample, Views, mask_sizes
from numerics.simulation.measure import DrawnSamples, MeasuredStage, observables_of_stages, population_of
from numerics.simulation.result import SimulationResult
from numerics.simulation.run import failures_of, repeat
from numerics.simulation.train import StageFit, train
from numerics.solution.observables.registry import Observable
from numerics.solution.population import Population
from numerics.solution.quadrature import Integral
from numerics.solution.samples import Integrand, WeightedSamples
from numerics.solution.stage import NOTHING
from theory.losses import Loss

Array = NDArray[np.float64]

OF_GAUSSIANS = {
    "calibration_slope", "calibration_offset", "calibration_error", "top_label_calibration_error", "brier_calibration",
    "brier_refinement", "cross_entropy_calibration", "cross_entropy_refinement", "calibrating_temperature",
    "tempered_calibration_error", "kuiper_distance", "kolmogorov_distance", "ideal_joint_error", "joint_classifier_bound",
}  # fmt: skip
"""Observables that are formulas for Gaussian logits, and NaN where logits are those of samples that were measured."""


class HeldOut(Population):
    """Samples that a chain was not trained on, in the place of the law of fresh ones.

    Parameters
    ----------
    whole : Population
        Order parameters: overlaps of the weights with the means and the covariance of all samples.
    test : DrawnSamples
        The samples.
    """

    def __init__(self, whole: Population, test: DrawnSamples) -> None:
        super().__init__(
            whole.data, whole.magnetization, whole.bias, whole.overlap, whole.factor, signal=whole.signal,
            norm_ratio=whole.norm_ratio,
        )  # fmt: skip
        self._test = test

    def combined(self, rows: Array) -> HeldOut:
        """See :meth:`Population.combined`."""
        test = self._test
        return HeldOut(
            super().combined(rows), DrawnSamples(test.labels, test.seen, test.clean, test.logits @ np.asarray(rows).T)
        )

    def _wrong(self, t: int) -> NDArray[np.bool_]:
        return self._test.seen * self._test.logits[:, t] <= 0.0

    def test_error(self, t: int) -> float:
        """Share of the samples on the wrong side."""
        return float(self._wrong(t).mean())

    def direction_error(self, t: int) -> float:
        """The same after the threshold that is best for these samples."""
        order = np.argsort(self._test.logits[:, t])
        upper = self._test.seen[order] > 0
        # Below the threshold all are taken for the lower class.
        wrong = np.concatenate(([0], np.cumsum(upper))) + np.concatenate((np.cumsum(~upper[::-1])[::-1], [0]))
        return float(wrong.min()) / len(upper)

    def right_and_wrong(self, t: int, s: int) -> float:
        """Share that stage t classifies rightly and stage s wrongly."""
        return float((~self._wrong(t) & self._wrong(s)).mean())

    def agreement(self, t: int, s: int) -> float:
        """Share that both classify alike."""
        return float((self._wrong(t) == self._wrong(s)).mean())

    def logit_distance(self, t: int, s: int) -> float:
        """Mean of (h_t - h_s)^2."""
        return float(((self._test.logits[:, t] - self._test.logits[:, s]) ** 2).mean())

    def mean(
        self, function: Integrand, rows: Sequence[Array], *, degree: int | None = None,
        jumps: Sequence[tuple[int, float]] = (),
    ) -> Integral:  # fmt: skip
        """See :meth:`WeightedSamples.mean`."""
        return self._test.mean(function, rows)

    def loss(self, loss: Loss) -> Integral:
        """Mean of a loss of the last stage."""
        return WeightedSamples.loss(self, loss)


class RealStage(MeasuredStage):
    """One stage of a chain that was trained on measured samples."""

    test: Array
    """Logits of all stages on the samples that were left out, shape (n - M, T)."""

    test_signs: Array
    """Their labels, shape (n - M,)."""

    @cached_property
    def fresh(self) -> HeldOut:
        """The samples that were left out."""
        k, signs = self.number, self.test_signs
        return HeldOut(super().fresh, DrawnSamples(0.5 * (1.0 + signs), signs, signs, self.test[:, :k]))

    def find(self, observable: Observable, other: Array | None = None) -> Integral:
        """See :meth:`MeasuredStage.find`; NaN for formulas of Gaussian logits."""
        return NOTHING if observable.name in OF_GAUSSIANS else super().find(observable, other)


def stratified_choice(y: Array, size: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Rows of so many samples, with the shares of the classes up to rounding and one of each at least, in random order."""
    groups = [np.flatnonzero(y == sign) for sign in (1.0, -1.0)]
    chosen = [
        generator.permutation(rows)[:count] for rows, count in zip(groups, stratified_counts(y, size), strict=True)
    ]  # fmt: skip
    return generator.permutation(np.concatenate(chosen))


def measure(
    X: object, y: object, data: DataModel, chain: Chain | Stage | Sequence[Stage], n_runs: int = 10, seed: int = 0, *,
    n_jobs: int = 1, progress: bool = False,
) -> SimulationResult:  # fmt: skip
    """Train a chain on stratified subsamples of measured samples, and test it on the others.

    Everything that :func:`numerics.simulate` measures is measured, on the samples themselves; order parameters are overlaps with
    the means and the covariance of all samples.  Formulas that need Gaussian logits (``OF_GAUSSIANS``) are NaN.  Standard errors
    are those of the mean over subsamples of these data: the noise that all of them share is not in them.

    Parameters
    ----------
    X, y
        As of :class:`numerics.Measured`.
    data : Measured, or GaussianMixture with Dense inputs
        M = alpha N, rounded, and the midpoint of the classes where it is known.
    chain : stage or sequence of stages
    n_runs, seed, n_jobs, progress
        As of :func:`numerics.simulate`; run k of a seed has the same subsample whatever the chain.

    Returns
    -------
    SimulationResult

    Raises
    ------
    ParameterError
        For samples that :class:`numerics.Measured` does not take, or if the data have another number of columns, a training set
        would have fewer than two samples or leave fewer than two to test on.

    Examples
    --------
    >>> from numerics import Estimator, Measured
    >>> from theory.losses import CrossEntropy
    >>> generator = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 200)
    >>> X = generator.standard_normal((400, 10)) + 0.5 * y[:, None]
    >>> found = measure(X, y, Measured(X, y).at(100), Estimator(CrossEntropy(), 1.0), n_runs=20)[0].test_error
    >>> round(found.mean, 3), round(found.standard_error, 3)
    (0.208, 0.004)
    """
    samples = data.samples if X is getattr(data, "X", None) and y is getattr(data, "y", None) else Samples(X, y)
    chain = Chain.of(chain)
    n_runs, n_jobs = require_count("n_runs", n_runs, 1), require_count("n_jobs", n_jobs, 1)
    seed = require_count("seed", seed, 0)
    if not isinstance(data, GaussianMixture) or not isinstance(data.inputs, Dense) or data.inputs.direction is None:
        raise ParameterError(f"data must be Measured, or a mixture of Dense inputs with a direction, got {data!r}")
    if data.inputs.size != samples.size:
        raise ParameterError(f"X must have as many columns as data, {data.inputs.size}, got {samples.size}")
    check_fit(data, chain)
    n_samples = round(data.alpha * samples.size)
    if not 2 <= n_samples <= samples.count - 2:
        raise ParameterError(f"alpha must give 2 to {samples.count - 2} samples of {samples.count}, got {n_samples}")
    trainer = Trainer(samples, data, chain)

    def run(k: int) -> tuple[dict[str, Array], list[str]]:
        own_seed = np.random.SeedSequence(seed, spawn_key=(k,))
        rows = stratified_choice(samples.y, n_samples, np.random.default_rng(own_seed))
        stages = trainer.stages(rows, own_seed)
        found = {"overlap": stages[-1].fresh.overlap} | observables_of_stages(stages)
        return found, failures_of(k, trainer.chain, [stage.fit for stage in stages])

    runs, failures = repeat(run, n_runs, min(n_jobs, n_runs), progress)
    message = "; ".join(failures) or "all fits converged"
    if failures:
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return SimulationResult(
        data, chain, samples.size, (n_samples,), trainer.active, seed, runs, not failures, message
    )  # fmt: skip


_GRADIENT_TOLERANCE = 1e-8


class Trainer:
    """A chain that is trained on some of the samples and tested on the others.

    Parameters
    ----------
    samples : Samples
    data : GaussianMixture
        With Dense inputs of as many columns.
    chain : Chain
        That fits the data.

    Attributes
    ----------
    chain : Chain
        With stages as the Estimators that they are.
    active : tuple of int
        Weights of each stage.
    """

    def __init__(self, samples: Samples, data: GaussianMixture, chain: Chain) -> None:
        self.samples, self.data = samples, data
        self.chain = Chain(chain.resolved(data))
        self.active = tuple(size for size, _ in mask_sizes(self.chain, samples.size))
        # The bias takes up where the midpoint is: it is put at 0, as in theory.
        midpoint = 0.5 * sum(samples.X[samples.y == sign].mean(axis=0) for sign in (-1.0, 1.0))
        self._design = (samples.X - midpoint) / np.sqrt(samples.size)
        self._maps = list({stage.features for stage in self.chain.stages if stage.features is not None})

    def fit(
        self, rows: NDArray[np.intp], seed: np.random.SeedSequence | None = None
    ) -> tuple[Sample, Sequence[StageFit]]:
        """Trained on these rows."""
        sample = self._sample(rows, seed or np.random.SeedSequence(0))
        return sample, train(sample, self.chain, self.active, _GRADIENT_TOLERANCE)

    def logits(self, fits: Sequence[StageFit], rows: NDArray[np.intp]) -> Array:
        """Of all stages on some rows, shape (rows, T)."""
        sample = self._sample(rows, np.random.SeedSequence(0))
        return np.column_stack([
            sample.seen_by(stage) @ fit.all_weights + fit.bias for stage, fit in zip(self.chain.stages, fits, strict=True)
        ])  # fmt: skip

    def stages(self, rows: NDArray[np.intp], seed: np.random.SeedSequence) -> list[RealStage]:
        """Trained on these rows, with their logits on all others."""
        sample, fits = self.fit(rows, seed)
        rest = np.setdiff1d(np.arange(self.samples.count), rows)
        population, logits = population_of(self.data, sample, fits), self.logits(fits, rest)
        found = []
        for number in range(1, len(fits) + 1):
            stage = RealStage(self.data, self.chain, number, sample, fits, population)
            stage.test, stage.test_signs = logits, self.samples.y[rest]
            found.append(stage)
        return found

    def _sample(self, rows: NDArray[np.intp], seed: np.random.SeedSequence) -> Sample:
        """Some rows as the trainer takes them."""
        design, labels = self._design[rows], 0.5 * (1.0 + self.samples.y[rows])
        views = Views.of(self.data.inputs, self.data.variance, self._maps, design)
        return Sample(
            design, labels, self.data.inputs.direction, labels, {TRAINING: slice(0, len(labels))}, views=views, seed=seed
        )  # fmt: skip
