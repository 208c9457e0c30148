"""What is drawn, in this order: v or the rule (of inputs with a spectrum its signs), then for each data set its labels and inputs;
label flips, random masks, frozen weights, the noise of a rule, networks and what is shuffled have streams of their own, so that the
same seed gives the same inputs with and without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from numerics.models import (
    TRAINING,
    Chain,
    ClassMixture,
    Clusters,
    DataModel,
    Dense,
    Estimator,
    Frozen,
    RandomFeatures,
    Rule,
    Seen,
    SharedCovariance,
)
from numerics.models.dense import covariance_between
from numerics.models.link import disagreement

Array = NDArray[np.float64]
Selection = slice | NDArray[np.intp]
"""Some rows or columns of a matrix."""

FLIPS, FURTHER, MASKS, FROZEN, RULE, FEATURES, SHUFFLE = range(1, 8)
"""Numbers of the random streams besides that of v and the training set."""


@dataclass(frozen=True)
class Network:
    """A random first layer.

    Attributes
    ----------
    features : RandomFeatures
    first_layer : ndarray, shape (p, N)
        F, with rows of squared length N.
    design : ndarray, shape (M, p)
        ``(phi(F x/sqrt(N)) - E phi)/sqrt(N)`` of all samples.
    slope : float
        k1.
    covariance : ndarray, shape (p, p)
        Of the features, over Delta.
    """

    features: RandomFeatures
    first_layer: Array
    design: Array
    slope: float
    covariance: Array

    @classmethod
    def drawn(cls, features: RandomFeatures, inputs: Array, variance: float, seed: np.random.SeedSequence) -> Network:
        """A network on the inputs x/sqrt(N), shape (M, N), whose variance is Delta/N."""
        n_inputs = inputs.shape[1]
        first = _generator(seed, FEATURES).standard_normal((features.size(n_inputs), n_inputs))
        first *= math.sqrt(n_inputs) / np.linalg.norm(first, axis=1, keepdims=True)
        moments = features.moments(variance)
        covariance = features.covariance(first @ first.T / n_inputs, variance) / variance
        return cls(features, first, cls._of(features, moments.mean, first, inputs), moments.slope, covariance)

    @staticmethod
    def _of(features: RandomFeatures, mean: float, first: Array, inputs: Array) -> Array:
        return (features(inputs @ first.T) - mean) / math.sqrt(inputs.shape[1])


@dataclass(frozen=True)
class Views:
    """What stages see of dense inputs, of which there are N/p independent copies.

    Attributes
    ----------
    inputs : Dense
        One copy; in clusters those of the mean covariance.
    variance : float
        Delta.
    designs : mapping of Seen to ndarray, shape (M, p_t N/p)
        What is seen of all samples, ``A x/sqrt(N)`` of a map.
    """

    inputs: Dense
    variance: float
    designs: Mapping[Seen, Array]

    @classmethod
    def of(cls, inputs: Dense, variance: float, maps: Sequence[Seen], design: Array) -> Views:
        """Of the inputs x/sqrt(N), shape (M, N)."""
        copies, scale = design.reshape(-1, inputs.size), math.sqrt(design.shape[1])
        designs = {seen: seen.of(copies, inputs, variance, scale).reshape(len(design), -1) for seen in maps}
        return cls(inputs, variance, designs)

    def product(self, mine: Seen | None, other: Seen | None, weights: Array) -> Array:
        """``Omega_ts weights`` for each copy."""
        given, rows = (self.inputs, self.variance), weights.T
        if all(seen is not None and not seen.scales_with_inputs for seen in (mine, other)):
            return by_copy(covariance_between(mine, other, *given), rows).T
        if other is not None:
            rows = by_copy(other.response(*given).T, rows)
        rows = by_copy(self.inputs.covariance, rows)
        return rows.T if mine is None else by_copy(mine.response(*given), rows).T


def by_copy(matrix: Array, rows: Array) -> Array:
    """``matrix`` times each of the copies of inputs that the last axis of ``rows`` is made of, shape (..., N)."""
    return (rows.reshape(-1, matrix.shape[1]) @ matrix.T).reshape(*rows.shape[:-1], -1)


@dataclass(frozen=True)
class Sample:
    """One draw of all data sets, one after the other.

    Attributes
    ----------
    design : ndarray, shape (M, N)
        x/sqrt(N).
    labels : ndarray, shape (M,)
        0 or 1, as seen in training: with noise.  Where a rule gives the labels, 1 if it is the sign of the rule's field.  Of K
        classes integers 0, .., K-1.
    mean : ndarray, shape (N,)
        v, or theta.  Of K classes mu_c, shape (K, N).  In clusters sqrt(N) E[s x].
    variances : ndarray, shape (N,)
        Of the inputs, over Delta.
    network : Network, optional
        What stages with random features see.
    views : Views, optional
        What stages see of dense inputs; ``variances`` are those of the coordinates then, and say nothing of how they go together.
    clean_labels : ndarray, shape (M,)
        Of the cloud each sample comes from, or as a rule draws them; ``labels`` if not given.
    sets : mapping of name to slice
        Rows of each data set; all are the training set's if not given.
    rule : ndarray, shape (M,)
        Field of the rule with its noise, if there is one.
    cluster_means : ndarray, shape (C, N)
        sqrt(N) E[x] in each cluster, where inputs come in clusters.
    seed : SeedSequence
        Of the draw.
    """

    design: Array
    labels: Array
    mean: Array
    clean_labels: Array | None = None
    sets: Mapping[str, slice] = field(default_factory=dict)
    rule: Array | None = None
    variances: Array | None = None
    network: Network | None = None
    views: Views | None = None
    cluster_means: Array | None = None
    seed: np.random.SeedSequence = field(default_factory=lambda: np.random.SeedSequence(0), repr=False)

    def __post_init__(self) -> None:
        if self.variances is None:
            object.__setattr__(self, "variances", np.ones(self.design.shape[1]))
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

    def seen_by(self, stage: Estimator | Frozen) -> Array:
        """Design of a stage: that of the inputs, or of its features, shape (M, N) or (M, p)."""
        if stage.features is None:
            return self.design
        return self.network.design if self.views is None else self.views.designs[stage.features]

    def independent(self, stage: Estimator | Frozen, other: Estimator | Frozen) -> bool:
        """Whether both see the coordinates of the inputs, and these are independent."""
        return self.views is None and stage.features is None and other.features is None

    def generator(self, *stream: int) -> np.random.Generator:
        """What is random about this draw beyond it: a stream by number."""
        return _generator(self.seed, *stream)

    def part(self, stage: Estimator | Frozen, rows: Selection, columns: Selection) -> Array:
        """Design of a stage on some samples, for some weights; a view if both are slices."""
        design = self.seen_by(stage)
        if isinstance(columns, slice):
            return design[rows, columns]
        return np.take(design[rows], columns, axis=1)

    def product(self, stage: Estimator | Frozen, other: Estimator | Frozen, weights: Array) -> Array:
        """``Omega weights``: Omega is the covariance over Delta of what the stage sees with what the other one sees.

        ``weights``, shape (n, ...), are those of the other stage; n may be N or p.
        """
        if self.views is not None:
            return self.views.product(stage.features, other.features, weights)
        if self.independent(stage, other):
            return (self.variances * weights.T).T
        network = self.network
        if stage.features is not None and other.features is not None:
            return network.covariance @ weights
        mixed = network.slope / math.sqrt(len(self.mean)) * network.first_layer
        return mixed @ weights if other.features is None else mixed.T @ weights

    def mean_of(self, stage: Estimator | Frozen) -> Array:
        """v, or theta, as a stage sees it."""
        if stage.features is None:
            return self.mean
        if self.views is not None:
            return by_copy(stage.features.response(self.views.inputs, self.views.variance), self.mean)
        return self.network.slope / math.sqrt(len(self.mean)) * (self.network.first_layer @ self.mean)


def _generator(seed: np.random.SeedSequence, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *stream)))


def draw(
    data: DataModel, n_inputs: int, seed: np.random.SeedSequence, features: RandomFeatures | None = None,
    maps: Sequence[Seen] = (),
) -> Sample:  # fmt: skip
    """Draw v, or the rule, labels and inputs of every data set, and the network that gives features; or apply given ``maps``."""
    dense = data.inputs if isinstance(data.inputs, Dense) else None
    generator = np.random.default_rng(seed)
    mean = generator.standard_normal(n_inputs)
    deviations = np.ones(n_inputs)
    if dense is not None:
        mean = _dense_direction(dense, mean)
    elif not data.inputs.white:
        # A few coordinates may carry most of the signal: all of them have exactly what theory takes for their mean square.
        groups = data.inputs.groups_of(n_inputs)
        mean = np.sign(mean) * np.sqrt(data.inputs.signals[groups])
        deviations = np.sqrt(data.inputs.variances[groups])
    if data.ruled and dense is None:
        mean *= math.sqrt(n_inputs * data.signal_variance) / np.linalg.norm(deviations * mean)
    shift = mean / n_inputs
    sizes = sample_sizes(data, n_inputs)
    design = np.empty((sum(sizes), n_inputs))
    labels = np.empty(sum(sizes))
    sets, first = {}, 0
    for number, (data_set, size) in enumerate(zip(data.sets, sizes, strict=True)):
        rows = sets[data_set.name] = slice(first, first + size)
        first += size
        source = _generator(seed, FURTHER, number) if number else generator
        labels[rows] = 1.0 if data.ruled else source.random(size) < data.positive_share
        source.standard_normal(out=design[rows])
    design *= math.sqrt(data.variance / n_inputs) * deviations
    if dense is not None:
        values, vectors = dense.axes
        design = by_copy(vectors * np.sqrt(values), design)
    fields = None
    if data.ruled:
        source = _generator(seed, RULE)
        fields = design @ mean + math.sqrt(data.field_noise) * source.standard_normal(len(labels))
        if math.isfinite(data.link_slope):
            labels = (source.random(len(labels)) >= disagreement(data.link_slope, fields)).astype(float)
    else:
        for row, label in zip(design, labels, strict=True):
            row += (2 * label - 1) * shift
    noisy = labels
    if any(data_set.label_noise > 0 for data_set in data.sets):
        noisy = labels.copy()
        for number, data_set in enumerate(data.sets):
            rows = sets[data_set.name]
            flipped = _generator(seed, FLIPS, number).random(rows.stop - rows.start) < data_set.label_noise
            noisy[rows] = np.where(flipped, 1 - labels[rows], labels[rows])
    network = None if features is None else Network.drawn(features, design, data.variance, seed)
    views = None if dense is None else Views.of(dense, data.variance, maps, design)
    return Sample(design, noisy, mean, labels, sets, fields, deviations**2, network, views, seed=seed)


def _dense_direction(inputs: Dense, drawn: Array) -> Array:
    """v, or theta: the one that is given, for each copy, or of what is ``drawn`` the signs along the eigenvectors of Sigma."""
    if inputs.direction is not None:
        return np.tile(inputs.direction, len(drawn) // inputs.size)
    return by_copy(inputs.axes[1], np.sign(drawn))


def draw_classes(data: ClassMixture, n_inputs: int, seed: np.random.SeedSequence, edges: Sequence[int] = ()) -> Sample:
    """Draw means, labels and inputs of every data set of K classes.

    The means have exactly the Gram matrix of the data, and that on the inputs between two ``edges`` (ends of masks, and of groups
    of coordinates) is the same times their share and squared signal, where there are at least K of them.  So do data sets have
    exactly their shares of classes, as far as these are whole numbers.  Labels are drawn from the confusion matrix.
    """
    generator = np.random.default_rng(seed)
    groups = data.inputs.groups_of(n_inputs)
    deviations = np.sqrt(data.inputs.variances[groups])
    if isinstance(data.inputs, SharedCovariance):
        means = np.array(data.inputs.means)[:, groups]
    else:
        means = np.sqrt(data.inputs.signals[groups]) * _class_means(data, groups, edges, generator)
    counts = class_counts(data, n_inputs)
    n_samples = sum(int(found.sum()) for found in counts)
    design = np.empty((n_samples, n_inputs))
    labels, classes = (np.empty(n_samples, dtype=np.int64) for _ in range(2))
    widths = np.sqrt(data.deltas / n_inputs)
    sets, first = {}, 0
    for number, (data_set, found) in enumerate(zip(data.sets, counts, strict=True)):
        source = _generator(seed, FURTHER, number) if number else generator
        rows = sets[data_set.name] = slice(first, first + int(found.sum()))
        source.standard_normal(out=design[rows])
        chance = _generator(seed, FLIPS, number).random(rows.stop - rows.start)
        for c, count in enumerate(found):
            some = slice(first, first + int(count))
            design[some] *= widths[c] * deviations
            design[some] += means[c] / n_inputs
            classes[some] = c
            steps = np.cumsum(data.confusion_of(data_set.name)[c])
            labels[some] = np.searchsorted(
                steps / steps[-1], chance[some.start - rows.start : some.stop - rows.start], "right"
            )
            first = some.stop
    return Sample(design, labels, means, classes, sets, variances=deviations**2, seed=seed)


def _class_means(
    data: ClassMixture, groups: NDArray[np.intp], edges: Sequence[int], generator: np.random.Generator
) -> Array:  # fmt: skip
    """Means with the Gram matrix of the data on all coordinates, or on those between edges, as if inputs were white, (K, N)."""
    k, n_inputs = data.classes_count, len(groups)
    means, coordinates = np.empty((k, n_inputs)), data.gram.means()
    steps = {int(place) + 1 for place in np.flatnonzero(np.diff(groups))}
    masks = {edge for edge in edges if 0 < edge < n_inputs}
    ends = [0, n_inputs]
    for wanted in (masks | steps, masks):
        found = sorted({*wanted, 0, n_inputs})
        if min(stop - start for start, stop in pairwise(found)) >= k:
            ends = found
            break
    for start, stop in pairwise(ends):
        axes = np.linalg.qr(generator.standard_normal((max(stop - start, k), k)))[0][: stop - start]
        means[:, start:stop] = math.sqrt(stop - start) * coordinates @ axes.T
    return means


def draw_clusters(
    data: Clusters, n_inputs: int, seed: np.random.SeedSequence, maps: Sequence[Seen] = ()
) -> Sample:  # fmt: skip
    """Draw labels and inputs of every data set in clusters: N/p independent copies of the p inputs, which share the means.

    Data sets have exactly their shares of clusters, as far as these are whole numbers.
    """
    copies, size = n_inputs // data.size, data.size
    means = np.tile(math.sqrt(size) * data.means, (1, copies))
    counts = class_counts(data, n_inputs)
    n_samples = sum(int(found.sum()) for found in counts)
    design, clusters = np.empty((n_samples, n_inputs)), np.empty(n_samples, dtype=np.int64)
    labels = np.empty(n_samples)
    sets, first = {}, 0
    clean = 0.5 * (1.0 + np.array(data.labels))
    for number, (data_set, found) in enumerate(zip(data.sets, counts, strict=True)):
        source = _generator(seed, FURTHER, number) if number else np.random.default_rng(seed)
        rows = sets[data_set.name] = slice(first, first + int(found.sum()))
        source.standard_normal(out=design[rows])
        flipped = _generator(seed, FLIPS, number).random(rows.stop - rows.start) < data_set.label_noise
        clusters[rows] = np.repeat(np.arange(len(data)), found)
        labels[rows] = np.where(flipped, 1.0 - clean[clusters[rows]], clean[clusters[rows]])
        first = rows.stop
    design /= math.sqrt(n_inputs)
    for c in range(len(data)):
        values, vectors = data.dense[min(c, len(data.dense) - 1)].axes
        some = clusters == c
        design[some] = by_copy(vectors * np.sqrt(values), design[some]) + means[c] / n_inputs
    weights = np.array(data.weights)
    pooled = sum(weight * data.covariance(c) for c, weight in enumerate(weights))
    mean = (weights * data.labels) @ means
    views = Views.of(Dense(pooled), 1.0, maps, design)
    return Sample(design, labels, mean, clean[clusters], sets, views=views, cluster_means=means, seed=seed)


def class_counts(data: ClassMixture | Clusters, n_inputs: int) -> tuple[NDArray[np.int64], ...]:
    """Samples of each class, or cluster, in each data set: the shares that come nearest to the weights."""
    found = []
    for data_set, size in zip(data.sets, sample_sizes(data, n_inputs), strict=True):
        wanted = size * data.class_weights(data_set.name)
        counts = np.floor(wanted + 1e-9).astype(np.int64)
        most = np.argsort(counts - wanted, kind="stable")[: size - int(counts.sum())]
        counts[most] += 1
        found.append(counts)
    return tuple(found)


def sample_sizes(data: DataModel, n_inputs: int) -> tuple[int, ...]:
    """Samples of each data set."""
    return tuple(round(data_set.alpha * n_inputs) for data_set in data.sets)


def mask_sizes(chain: Chain, n_inputs: int) -> tuple[tuple[int, int | None], ...]:
    """For each stage its number of active weights, and how many of them lie in the mask before (None: masks are nested)."""
    sizes: list[tuple[int, int | None]] = []
    for stage in chain.stages:
        size, inside = round(stage.eta * n_inputs), None
        if stage.features is not None:
            size = stage.features.size(n_inputs)
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
    """Weights of the frozen stages, by stage number, shape (N,) each; those of a rule are ``mean``."""
    return {
        number: mean
        if isinstance(stage, Rule)
        else stage.magnetization * mean
        + math.sqrt(max(0.0, stage.norm_squared - stage.magnetization**2))
        * _generator(seed, FROZEN, number).standard_normal(len(mean))
        for number, stage in enumerate(chain.stages, start=1)
        if stage.given
    }
