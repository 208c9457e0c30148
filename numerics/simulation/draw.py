"""What is drawn, in this order: v or the rule, then for each data set its labels and inputs; label flips, random masks, frozen
weights, the noise of a rule and what is shuffled have streams of their own, so that the same seed gives the same inputs with and
without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from numerics.models import TRAINING, Chain, DataModel, Rule

Array = NDArray[np.float64]
Selection = slice | NDArray[np.intp]
"""Some rows or columns of a matrix."""

FLIPS, FURTHER, MASKS, FROZEN, RULE, SHUFFLE = range(1, 7)
"""Numbers of the random streams besides that of v and the training set."""


@dataclass(frozen=True)
class Sample:
    """One draw of all data sets, one after the other.

    Attributes
    ----------
    design : ndarray, shape (M, N)
        x/sqrt(N).
    labels : ndarray, shape (M,)
        0 or 1, as seen in training: with noise.  Where a rule gives the labels, 1 if it is the one that the rule gives.
    mean : ndarray, shape (N,)
        v, or theta.
    clean_labels : ndarray, shape (M,)
        Of the cloud each sample comes from; ``labels`` if not given.
    sets : mapping of name to slice
        Rows of each data set; all are the training set's if not given.
    rule : ndarray, shape (M,)
        Field of the rule with its noise, if there is one.
    seed : SeedSequence
        Of the draw.
    """

    design: Array
    labels: Array
    mean: Array
    clean_labels: Array | None = None
    sets: Mapping[str, slice] = field(default_factory=dict)
    rule: Array | None = None
    seed: np.random.SeedSequence = field(default_factory=lambda: np.random.SeedSequence(0), repr=False)

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

    def generator(self, *stream: int) -> np.random.Generator:
        """What is random about this draw beyond it: a stream by number."""
        return _generator(self.seed, *stream)

    def part(self, rows: Selection, columns: Selection) -> Array:
        """Design of some samples and inputs; a view if both are slices."""
        if isinstance(columns, slice):
            return self.design[rows, columns]
        return np.take(self.design[rows], columns, axis=1)


def _generator(seed: np.random.SeedSequence, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *stream)))


def draw(data: DataModel, n_inputs: int, seed: np.random.SeedSequence) -> Sample:
    """Draw v, or the rule, and labels and inputs of every data set."""
    generator = np.random.default_rng(seed)
    mean = generator.standard_normal(n_inputs)
    if data.ruled:
        mean *= math.sqrt(n_inputs) / np.linalg.norm(mean)
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
    design *= math.sqrt(data.variance / n_inputs)
    fields = None
    if data.ruled:
        fields = design @ mean + math.sqrt(data.field_noise) * _generator(seed, RULE).standard_normal(len(labels))
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
    return Sample(design, noisy, mean, labels, sets, fields, seed)


def sample_sizes(data: DataModel, n_inputs: int) -> tuple[int, ...]:
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
