"""Observables of one trained chain: those of the registry, read off the samples it was trained on and the weights it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from numerics.clusters.population import ClusterPopulation
from numerics.deferred import Deferred
from numerics.models import Chain, ClassMixture, Clusters, DataModel, Estimator, Frozen
from numerics.simulation.draw import Array, Sample, by_copy
from numerics.simulation.train import StageFit
from numerics.solution.observables.losses import train_loss
from numerics.solution.observables.registry import PAIR, REGISTRY, STAGE, Observable
from numerics.solution.population import Population
from numerics.solution.quadrature import Integral
from numerics.solution.samples import Integrand, WeightedSamples, combined, unit
from numerics.solution.stage import AnyStage
from theory.losses import Loss

if TYPE_CHECKING:
    from numerics.classes.population import ClassPopulation

# Most users have two classes, and need not compile what more of them do.
_formulas, _of_classes = Deferred("numerics.classes.formulas"), Deferred("numerics.classes.population")

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


class DrawnClassSamples(WeightedSamples):
    """The same for K classes: integer labels, and logits of shape (M, k, K), of stages whose mean logit is ``free`` or not."""

    many_classes = True

    def __init__(self, seen: Array, clean: Array, logits: Array, table: Array | None, free: Sequence[bool]) -> None:
        self.labels, self.clean, self.logits, self.table, self.free = seen, clean, logits, table, free
        self.stages = logits.shape[1]
        self.scale = np.ones(self.stages)

    def mean(self, function: Integrand, rows: Sequence[Array], *, degree: int | None = None) -> Integral:
        """See :meth:`ClassPopulation.mean`."""
        values = np.asarray(function(self.labels, *combined(np.atleast_2d(rows), self.logits)), dtype=float)
        return Integral(float(values.sum(axis=1).mean() if values.ndim == 2 else values.mean()), 0.0)

    def probability(self, level: float = 0.0, *, clean: bool = False) -> Integral:
        """Share of the samples whose largest logit is not that of the label, or of the class (``clean``)."""
        labels = self.clean if clean else self.labels
        return Integral(float(np.mean(np.argmax(self.logits[:, -1], axis=1) != labels)), 0.0)

    def loss(self, loss: Loss) -> Integral:
        """Average of a loss of the last stage."""
        seen = loss.stages(self.stages)
        own = _formulas.class_loss(loss, self.logits.shape[2], [self.free[s - 1] for s in seen])
        return _of_classes.mean_loss(self, own, seen, self.table)


class MeasuredStage(AnyStage):
    """One stage of a trained chain.

    Parameters
    ----------
    population : Population
        Of all stages of the chain.
    """

    def __init__(
        self, data: DataModel, chain: Chain, number: int, sample: Sample, fits: Sequence[StageFit],
        population: Population | ClassPopulation | ClusterPopulation,
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
    def fresh(self) -> Population | ClusterPopulation:
        """Law of the logits of the stages up to this one on fresh samples, given the trained weights."""
        return self._population.first(self.number)

    @property
    def n_inputs(self) -> int:
        return self._sample.mean.shape[-1]

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
        loss = len(self.samples.labels) / self.n_inputs * train_loss(self)
        return loss + 0.5 * self.estimator.ridge * self.fresh.weight_norm(-1)

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


class MeasuredClasses(MeasuredStage):
    """The same of K logits."""

    @cached_property
    def fresh(self) -> ClassPopulation:
        """Law of the logits of the stages up to this one on fresh samples, given the trained weights."""
        k, whole = self.number, self._population
        ratios = whole.norm_ratios[:k]
        return _of_classes.ClassPopulation(
            self.data, whole.means[:k], whole.blocks[:k, :k], table=self.fit.table, norm_ratios=ratios
        )

    @cached_property
    def samples(self) -> DrawnClassSamples:
        """Its training samples."""
        rows, k = self.fit.rows, self.data.classes_count
        logits = np.stack([fit.everywhere[rows] @ fit.basis(k) for fit in self._fits[: self.number]], axis=1)
        free = [fit.has_free_mean(k) for fit in self._fits[: self.number]]
        labels, clean = self._sample.labels[rows], self._sample.clean_labels[rows]
        return DrawnClassSamples(labels, clean, logits, self.fit.table, free)

    @cached_property
    def quadrature_error(self) -> float:
        """Of the test error: root mean square difference on other nodes."""
        population = self.fresh
        others = [
            _of_classes.ClassPopulation(self.data, population.means, population.blocks, scramble)
            for scramble in (1, 2, 3)
        ]
        here = self.find(REGISTRY["test_error"]).value
        return float(np.sqrt(np.mean([(other.test_error(-1) - here) ** 2 for other in others])))


Further = Callable[[Sequence[MeasuredStage]], Mapping[str, Array | float]]
"""What else is read off the stages of one trained chain, by name."""


def population_of(data: DataModel, sample: Sample, fits: Sequence[StageFit]) -> Population:
    """Law of the logits of trained stages on fresh samples, given their weights."""
    n_inputs, n_stages = len(sample.mean), len(fits)
    weights = [fit.all_weights for fit in fits]
    overlap = np.empty((n_stages, n_stages))
    for t, mine in enumerate(fits):
        for s in range(t + 1):
            overlap[t, s] = overlap[s, t] = weights[t] @ sample.product(mine, fits[s], weights[s]) / n_inputs
    magnetization = np.array([w @ sample.mean_of(fit) / n_inputs for w, fit in zip(weights, fits, strict=True)])
    signal = None if data.ruled else sample.mean @ sample.mean / n_inputs
    with np.errstate(invalid="ignore"):
        norm_ratio = np.array([w @ w / n_inputs for w in weights]) / np.diag(overlap)
    if data.ruled:
        overlap[0, 0] += data.field_noise
        magnetization[:] = 0.0
    if data.inputs.white and all(fit.features is None for fit in fits):
        norm_ratio[:] = 1.0
    biases = np.array([fit.bias for fit in fits])
    return Population(data, magnetization, biases, overlap, signal=signal, norm_ratio=norm_ratio)


def clusters_of(data: Clusters, sample: Sample, fits: Sequence[StageFit]) -> ClusterPopulation:
    """The same in clusters."""
    n_inputs, biases = len(sample.mean), np.array([fit.bias for fit in fits])
    weights = [fit.all_weights for fit in fits]
    seen = [
        w if fit.features is None else by_copy(fit.features.matrix.T, w) for w, fit in zip(weights, fits, strict=True)
    ]
    on_inputs, parts = np.array(seen), []
    for c, (part, sign) in enumerate(zip(data.parts, data.labels, strict=True)):
        overlap = on_inputs @ by_copy(data.covariance(c), on_inputs).T / n_inputs
        aligned = sign * on_inputs @ sample.cluster_means[c] / n_inputs
        parts.append(Population(part.alone, aligned, biases, 0.5 * (overlap + overlap.T)))
    return ClusterPopulation(data, parts, np.array([w @ w / n_inputs for w in weights]), biases)


def measure(
    data: DataModel, sample: Sample, chain: Chain, fits: Sequence[StageFit], further: Further | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Array]:  # fmt: skip
    """All observables of one trained chain, or ``only`` some, by name: shape (T,) each, or (T, T) for those of two stages.

    Training averages of a stage go over its own training samples with the labels seen there, ``clean_train_error`` over the
    same samples with the labels before the noise, averages of two stages over the samples of the later one.  Several teachers of
    one stage are compared with it by their mean logit.
    A frozen stage has no loss, and that of a broken fit is not finite: there the losses are nan.
    What ``further`` returns is added.
    """
    if data.many_classes:
        return _measure_classes(data, sample, chain, fits, further, only)
    n_stages = len(fits)
    population, hidden = (clusters_of if data.in_clusters else population_of)(data, sample, fits), chain.hidden
    numbers = range(1 + hidden, n_stages + 1)
    stages = [MeasuredStage(data, chain, number, sample, fits, population) for number in numbers]
    found = {"overlap": population.overlap[hidden:, hidden:]}
    if data.in_clusters:
        signed = np.array([part.magnetization for part in population.parts])
        found["means"] = (signed * np.array(data.labels)[:, None]).T
        found["cluster_overlaps"] = np.stack([part.overlap for part in population.parts], axis=-1)
        found["cluster_errors"] = np.array([population.cluster_errors(t) for t in range(n_stages)])
    return found | observables_of_stages(stages, further, only)


def _measure_classes(
    data: ClassMixture, sample: Sample, chain: Chain, fits: Sequence[StageFit], further: Further | None,
    only: Collection[str] | None,
) -> dict[str, Array]:  # fmt: skip
    """The same on K classes, with blocks of K x K: ``means[t, c, k]`` is w_tk.mu_c/N, ``overlap[t, s]`` W_t Lambda W_s^T/N."""
    n_inputs, bases = sample.mean.shape[1], [fit.basis(data.classes_count) for fit in fits]
    weights = [fit.all_weights @ basis for fit, basis in zip(fits, bases, strict=True)]
    means = np.array([sample.mean @ w / n_inputs for w in weights])
    bias = np.array([fit.bias @ basis for fit, basis in zip(fits, bases, strict=True)])
    seen = [sample.variances[:, None] * w for w in weights]
    overlap = np.array([[one.T @ other / n_inputs for other in seen] for one in weights])
    norms = np.array([np.sum(w**2) / n_inputs for w in weights])
    traces = np.einsum("ttkk->t", overlap)
    ratios = np.divide(norms, traces, out=np.ones_like(norms), where=traces > 0.0)
    population = _of_classes.ClassPopulation(data, means + bias[:, None], overlap, norm_ratios=ratios)
    stages = [MeasuredClasses(data, chain, number, sample, fits, population) for number in range(1, len(fits) + 1)]
    found = {
        "means": means, "bias": bias, "overlap": overlap,
        "class_errors": np.array([stage.fresh.class_errors(-1) for stage in stages]),
        "confusion": np.array([stage.fresh.confusion(-1) for stage in stages]),
    }  # fmt: skip
    return found | observables_of_stages(stages, further, only)


def observables_of_stages(
    stages: Sequence[MeasuredStage], further: Further | None = None, only: Collection[str] | None = None
) -> dict[str, Array]:
    """Those of the registry, or ``only`` some, what is further asked for, and how well they are known."""
    data, hidden = stages[0].data, stages[0].chain.hidden
    found: dict[str, Array] = {}
    for observable in REGISTRY.values():
        if not observable.measured or ((data.many_classes or data.in_clusters) and not observable.of(data)):
            continue
        if only is not None and observable.name not in only:
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
