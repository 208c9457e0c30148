"""Observables of one trained chain: those of the registry, read off the samples it was trained on and the weights it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from numerics.models import Chain, DataModel, Estimator, Frozen
from numerics.simulation.draw import Array, Sample
from numerics.simulation.train import StageFit
from numerics.solution.observables.losses import train_loss
from numerics.solution.observables.registry import PAIR, REGISTRY, STAGE, Observable
from numerics.solution.population import Population
from numerics.solution.quadrature import Integral
from numerics.solution.samples import Integrand, WeightedSamples, combined, unit
from numerics.solution.stage import AnyStage

QUALITY = ("quadrature_error", "gradient_norm", "relative_gradient_norm", "iterations")
"""How well the observables of a stage are known."""


class DrawnSamples(WeightedSamples):
    """The M training samples of a stage, each of weight 1/M.

    Parameters
    ----------
    labels : ndarray, shape (M,)
        As losses take them, 0 or 1.
    seen, clean : ndarray, shape (M,)
        Signs of the labels that were trained on, and of those before noise flipped some.
    logits : ndarray, shape (M, k)
        Of the stages up to this one.
    """

    def __init__(self, labels: Array, seen: Array, clean: Array, logits: Array) -> None:
        self.labels, self.seen, self.clean, self.logits = labels, seen, clean, logits
        self.stages = logits.shape[1]
        self.scale = np.ones(self.stages)

    def mean(self, function: Integrand, rows: Sequence[Array], *, degree: int | None = None) -> Integral:
        """See :meth:`WeightedSamples.mean`."""
        return Integral(float(np.mean(function(self.labels, *combined(np.atleast_2d(rows), self.logits)))), 0.0)

    def probability(self, level: float = 0.0, *, clean: bool = False) -> Integral:
        """Share of the samples, those at the level included; see :meth:`WeightedSamples.probability`."""
        signs = self.clean if clean else self.seen
        return Integral(float(np.mean(signs * self.logits[:, -1] <= level)), 0.0)


class MeasuredStage(AnyStage):
    """One stage of a trained chain.

    Parameters
    ----------
    population : Population
        Of all stages of the chain.
    """

    def __init__(
        self, data: DataModel, chain: Chain, number: int, sample: Sample, fits: Sequence[StageFit], population: Population
    ) -> None:  # fmt: skip
        self.data, self.chain, self.number = data, chain, number
        self._sample, self._fits, self._population = sample, fits, population
        self._found: dict[tuple[Observable, bytes], Integral] = {}

    @property
    def fit(self) -> StageFit:
        """The stage's own."""
        return self._fits[self.number - 1]

    @property
    def estimator(self) -> Estimator | Frozen:
        """The stage, which is one that is trained or given."""
        return self.chain[self.number - 1]

    @property
    def trained(self) -> bool:
        """Whether a loss was minimised, and stayed finite."""
        return super().trained and not self.fit.broken

    @cached_property
    def fresh(self) -> Population:
        """Law of the logits of the stages up to this one on fresh samples, given the trained weights."""
        k, whole = self.number, self._population
        return Population(
            self.data, whole.magnetization[:k], whole.bias[:k], whole.overlap[:k, :k], whole.factor[:k, :k], signal=whole.signal
        )  # fmt: skip

    @cached_property
    def samples(self) -> DrawnSamples:
        """Its training samples, with the labels seen in training (for given weights the training set)."""
        rows = self.fit.rows
        logits = np.column_stack([*(fit.everywhere[rows] for fit in self._fits[: self.number - 1]), self.fit.logits])
        sample, sides = self._sample, 1.0
        if self.data.ruled:
            sides = np.where(logits[:, 0] > 0.0, 1.0, -1.0)
        seen, clean = (sides * (2.0 * labels[rows] - 1.0) for labels in (sample.labels, sample.clean_labels))
        return DrawnSamples(sample.labels[rows], seen, clean, logits)

    @property
    def drawn(self) -> Sample:
        """All samples of the run."""
        return self._sample

    @property
    def response_to_field(self) -> float:
        """Not measured here: see :func:`numerics.simulation.responses.measure_responses`."""
        return math.nan

    @property
    def objective(self) -> Integral:
        """(M/N) mean loss + (ridge/2) Q, the training objective per input."""
        n_samples, n_inputs = len(self.samples.labels), len(self._sample.mean)
        return n_samples / n_inputs * train_loss(self) + 0.5 * self.estimator.ridge * self.fresh.overlap[-1, -1]

    def find(self, observable: Observable, other: Array | None = None) -> Integral:
        """Value of an observable and the error of its integration; of two stages with ``other``, by default the teacher."""
        other = self.teacher if other is None else other
        key = observable, b"" if observable.kind == STAGE or other is None else other.tobytes()
        if key not in self._found:
            self._found[key] = observable.evaluate(self, other)
        return self._found[key]

    @property
    def quadrature_error(self) -> float:
        """Largest error of an integration so far; zero if there was none."""
        return max((found.error for found in self._found.values() if math.isfinite(found.error)), default=0.0)


Further = Callable[[Sequence[MeasuredStage]], Mapping[str, Array | float]]
"""What else is read off the stages of one trained chain, by name."""


def population_of(data: DataModel, sample: Sample, fits: Sequence[StageFit]) -> Population:
    """Law of the logits of trained stages on fresh samples, given their weights."""
    n_inputs = len(sample.mean)
    weights = np.array([fit.all_weights(n_inputs) for fit in fits])
    overlap, magnetization = weights @ weights.T / n_inputs, weights @ sample.mean / n_inputs
    if data.ruled:
        overlap[0, 0] += data.field_noise
        magnetization[:] = 0.0
    biases = np.array([fit.bias for fit in fits])
    return Population(data, magnetization, biases, overlap, signal=sample.mean @ sample.mean / n_inputs)


def measure(
    data: DataModel, sample: Sample, chain: Chain, fits: Sequence[StageFit], further: Further | None = None
) -> dict[str, Array]:
    """All observables of one trained chain: shape (T,) each, or (T, T) for those of two stages.

    Training averages of a stage go over its own training samples with the labels seen there, ``clean_train_error`` over the
    same samples with the labels before the noise, averages of two stages over the samples of the later one.  Several teachers of
    one stage are compared with it by their mean logit.
    A frozen stage has no loss, and that of a broken fit is not finite: there the losses are nan.
    What ``further`` returns is added.
    """
    n_stages = len(fits)
    population, hidden = population_of(data, sample, fits), chain.hidden
    numbers = range(1 + hidden, n_stages + 1)
    stages = [MeasuredStage(data, chain, number, sample, fits, population) for number in numbers]
    found = {"overlap": population.overlap[hidden:, hidden:]}
    for observable in REGISTRY.values():
        if not observable.measured:
            continue
        found[observable.raw_name] = np.array([stage.find(observable).value for stage in stages], dtype=float)
        if observable.kind == PAIR:
            found[observable.matrix] = matrix = np.empty((len(stages), len(stages)))
            for t, stage in enumerate(stages):
                for s in range(t + 1):
                    matrix[t, s] = matrix[s, t] = stage.find(observable, unit(stage.number, s + 1 + hidden)).value
    if further is not None:
        found |= {name: np.asarray(values) for name, values in further(stages).items()}
    for name in QUALITY:
        found[name] = np.array([getattr(stage if hasattr(stage, name) else stage.fit, name) for stage in stages])
    return found
