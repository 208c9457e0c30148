"""Nodes of averages over standard normals in t d dimensions: lattices in few or if all is smooth, else scrambled Sobol points.

A lattice of step delta with the weights of the Gaussian is the trapezoid rule: what is smooth converges exponentially.  Its shift,
as the scramble of Sobol points, is random: the spread of a result over shifts is its error.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

Array = NDArray[np.float64]

ALWAYS, SMOOTH = 2, 4
"""Dimensions up to which nodes are those of a lattice: always, and where fields are not wide (``WIDE``)."""

WIDE = 4.0
"""Standard deviation of a cavity field from which on averages are not smooth: softmax turns over a distance of order 1."""

LATTICES = {
    1: ((0.25, 7.5), (0.12, 8.0), (0.06, 8.5), (0.03, 8.5), (0.02, 9.0)),
    2: ((0.5, 6.5), (0.28, 7.0), (0.16, 7.5), (0.1, 7.5), (0.07, 8.0)),
    3: ((1.0, 5.5), (0.75, 6.0), (0.55, 6.5), (0.4, 7.0), (0.3, 7.5)),
    4: ((1.3, 5.2), (1.0, 5.6), (0.8, 6.0), (0.65, 6.3), (0.5, 6.6)),
}
"""Step and radius of the first level and of finer ones, by dimension; up to ``ALWAYS`` of fields of width ``NARROW``."""

NARROW, FINEST = 4.0, {1: 0.06, 2: 0.4}
"""Wider ones have smaller steps, down to these fractions."""

MARGIN = 0.5
"""By which the lattices of further scrambles reach further, so that what is cut off shows in their spread."""

COARSE_LATTICES = {1: (0.7, 6.0), 2: (1.0, 5.0)}
COARSE = 8
"""Nodes of the rough solution that a cold start begins with: lattices, and the logarithm of the number of Sobol points."""

SOBOL = (11, 13, 14, 15, 17)
"""Logarithm of the number of Sobol points, level by level."""

SOBOL_IN_MANY = (9, 10, 11, 13, 15)
"""In more dimensions than ``MANY``."""

MANY = 8

LEVELS = 5

PAIRS = ((1.0, 6.0), (0.8, 6.4), (0.65, 6.8), (0.5, 7.2), (0.4, 7.6))
"""Steps and radius of pairs of lattices (:func:`pairs`), level by level, the steps in units of those below."""

OUTER_STEP, INNER_STEP = (0.65, 1.8), (0.65, 1.5)
"""Largest step, and largest step times the width of the field; of the earlier stages' normals, and of the last one's."""

COARSEST, COARSE_STEP = 0.4, 0.45
"""Step of the last one's below which there is a coarse lattice too, and the step of that."""

LEAST_REACH = 2.0
"""Of the last one's normals around nodes at the radius of the others."""

FARTHEST = 1e3
"""Range of the last cavity field, in units of its new noise, above which pairs of lattices take too many points."""

APART = 12.0
"""Range of the first cavity field, in the same units, above which classes have no points of one lattice in common."""

_CLIP = 1e-14
_HOPE = 2.0  # of an expected error over what is wanted


class Rule(NamedTuple):
    """Normals g_1..g_t of every node, shape (n, t, d), and weights that sum to 1."""

    normals: Array
    weights: Array


def _has_lattice(dimension: int, width: float) -> bool:
    return dimension <= ALWAYS or (dimension <= SMOOTH and width < WIDE)


class Lattice(NamedTuple):
    """Points ``step (n + shift)``, and the standard deviation of the Gaussian that goes with them."""

    step: float
    shift: Array
    width: float


class Pairs(NamedTuple):
    """Nodes of a last stage: those of the earlier stages' normals, and lattices of its own.

    Attributes
    ----------
    outer : Rule
        Normals (n, t-1, d).
    lattice : (Lattice, Lattice or None)
        The second one is finer, and leads to the first: squares of widths sum to 1.
    reach : (n,)
        Of the last normals for each outer node, in units of the widths.
    """

    outer: Rule
    lattice: tuple[Lattice, Lattice | None]
    reach: Array


class Fields(NamedTuple):
    """Standard deviations of cavity fields, which nodes are chosen by.

    Attributes
    ----------
    widest
        Of all stages, as a power of two.
    whole, own
        Of each stage, and of the noise in it that earlier stages do not have: largest ones.
    ranges : tuple of float
        Over which that noise is needed, in units of its smallest standard deviation: around all targets of the first stage, and
        around those of any one label of others.
    """

    widest: float = NARROW
    whole: tuple[float, ...] = ()
    own: tuple[float, ...] = ()
    ranges: tuple[float, ...] = ()

    def paired(self, stages: int, d: int) -> bool:
        """Whether a stage may have pairs of lattices: one of the earlier stages, and one of its own."""
        if len(self.ranges) < stages:
            return False
        return stages == 1 or (self.ranges[stages - 1] <= FARTHEST and _has_lattice((stages - 1) * d, self.widest))

    @property
    def apart(self) -> bool:
        """Whether every class has a lattice of its own in the first stage."""
        return bool(self.ranges) and self.ranges[0] > APART

    def before(self, stages: int) -> Fields:
        """Without pairs of lattices from a stage on."""
        return self._replace(ranges=self.ranges[: stages - 1])


UNKNOWN = Fields()


@lru_cache(maxsize=64)
def pairs(stages: int, d: int, level: int, scramble: int, fields: Fields) -> Pairs:
    """Pairs of lattices for stage ``stages``, at a level from 0.

    Examples
    --------
    >>> fields = Fields(2.0, (1.5, 2.0), (1.5, 1.0), (0.0, 40.0))
    >>> [len(pairs(number, 2, 0, 0, fields).outer.weights) for number in (1, 2)]
    [1, 265]
    """
    factor, radius = PAIRS[min(level, LEVELS - 1)]
    margin = MARGIN if scramble else 0.0
    shifts = [_half_shift(scramble, [stages, d, which]) for which in range(3)]
    if stages == 1:
        outer = Rule(np.zeros((1, 0, d)), np.ones(1))
    elif (stages - 1) * d <= ALWAYS:
        width = max(fields.whole[: stages - 1])
        step = factor * min(OUTER_STEP[0], OUTER_STEP[1] / width)
        outer = _lattice(stages - 1, d, step, radius + margin, shifts[2])
    else:
        outer = rule(stages - 1, d, level, scramble, fields.widest)
        factor, radius = PAIRS[min(level // 2, LEVELS - 1)]
    radius += margin
    squares = np.zeros(len(outer.weights))
    if (stages - 1) * d <= ALWAYS:
        squares = np.sum(outer.normals**2, axis=(1, 2))
    reach = np.sqrt(np.maximum(radius**2 - squares, LEAST_REACH**2))
    step = _inner_step(fields, stages, factor)
    if step >= factor * COARSEST:
        return Pairs(outer, (Lattice(step, shifts[0], 1.0), None), reach)
    half = math.sqrt(0.5)
    return Pairs(outer, (Lattice(factor * COARSE_STEP, shifts[0], half), Lattice(step, shifts[1], half)), reach)


def _inner_step(fields: Fields, stages: int, factor: float) -> float:
    return factor * min(INNER_STEP[0], INNER_STEP[1] / fields.own[stages - 1])


@lru_cache(maxsize=16)
def single(d: int, level: int, scramble: int, fields: Fields) -> Rule:
    """As the lattice of a first stage's own normals that :func:`pairs` has, around each class.

    Examples
    --------
    >>> fields = Fields(16.0, (10.0,), (10.0,), (100.0,))
    >>> fields.apart, [len(single(2, level, 0, fields).weights) for level in (0, 1)]
    (True, [5027, 8950])
    """
    factor, radius = PAIRS[min(level, LEVELS - 1)]
    margin, shift = MARGIN if scramble else 0.0, _half_shift(scramble, [1, d, 1])
    return _lattice(1, d, _inner_step(fields, 1, factor), radius + margin, shift)


@lru_cache(maxsize=64)
def rule(stages: int, d: int, level: int, scramble: int, width: float = NARROW) -> Rule:
    """Nodes of stage ``stages`` at a level, from 0; -1 is the coarse one.

    Parameters
    ----------
    width
        Of the widest cavity field.

    Examples
    --------
    >>> [len(rule(1, 2, level, 0).weights) for level in (-1, 0, 1)]
    [79, 529, 1964]
    >>> nodes = rule(1, 2, 1, 0)
    >>> bool(abs(nodes.weights @ nodes.normals[:, 0, 0] ** 4 - 3) < 1e-7)
    True
    """
    dimension = stages * d
    if dimension <= ALWAYS and level < 0:
        return _lattice(stages, d, *COARSE_LATTICES[dimension], _shift(scramble, dimension))
    if level >= 0 and _has_lattice(dimension, width):
        step, radius = LATTICES[dimension][min(level, LEVELS - 1)]
        if dimension <= ALWAYS:
            step *= min(1.0, max(NARROW / width, FINEST[dimension]))
        return _lattice(stages, d, step, radius + (MARGIN if scramble else 0.0), _shift(scramble, dimension))
    counts = SOBOL if dimension <= MANY else SOBOL_IN_MANY
    return _sobol(stages, d, COARSE if level < 0 else counts[min(level, LEVELS - 1)], scramble)


def first_level(dimension: int, *, alike: bool) -> int:
    """The level to begin with; classes that are all ``alike`` have one cell, for which the first Sobol points are few."""
    return 1 if alike and dimension > MANY else 0


def next_level(
    dimension: int, level: int, error: float, wanted: float, width: float = NARROW, paired: bool = False
) -> int:
    """The level to go on with after one whose error is too large: the first that may do, by the order of its nodes.

    Parameters
    ----------
    paired
        The last stage has pairs of lattices; ``dimension`` is that of the earlier stages.

    Examples
    --------
    >>> next_level(6, 0, 1e-3, 1e-4), next_level(4, 0, 1e-5, 1e-7, width=2.0), next_level(6, 0, 1.1e-4, 1e-4)
    (2, 2, 1)
    """
    lattice = _has_lattice(dimension, width)
    steps = PAIRS if paired and dimension <= ALWAYS else LATTICES.get(dimension)
    counts = SOBOL if dimension <= MANY else SOBOL_IN_MANY
    for finer in range(level + 1, LEVELS - 1):
        if lattice:  # logarithms of errors go like the inverse step
            expected = min(error, 1.0) ** (steps[level][0] / steps[finer][0])
        else:
            expected = error * 2.0 ** (counts[level] - counts[finer])
        if expected <= _HOPE * wanted or (lattice and finer == level + 2):
            return finer
    return LEVELS - 1


def _frozen(normals: Array, weights: Array) -> Rule:
    for array in (normals, weights):
        array.setflags(write=False)
    return Rule(normals, weights)


def _shift(scramble: int, dimension: int) -> Array:
    """At random."""
    return np.random.default_rng([scramble, dimension]).random(dimension)


def _half_shift(scramble: int, which: list[int]) -> Array:
    """At random for all scrambles, and by half a step further on the axes that are bits of the scramble.

    What aliases is wrong by cos 2 pi (k + shift) on the axis of a mode, the first of which cancels in the mean over 0 to 3: the
    root mean square of the three differences is at least 4/3 of the error of the first.
    """
    return np.random.default_rng(which).random(2) + 0.5 * np.array([scramble & 1, scramble >> 1 & 1])


def _lattice(stages: int, d: int, step: float, radius: float, shift: Array) -> Rule:
    """Cubic lattice in a ball."""
    dimension = stages * d
    reach = math.ceil(radius / step) + 1
    axes = [step * (np.arange(-reach, reach + 1) + offset) for offset in shift]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, dimension)
    squares = np.sum(points**2, axis=1)
    points, squares = points[squares <= radius**2], squares[squares <= radius**2]
    weights = np.exp(-0.5 * squares)
    return _frozen(np.ascontiguousarray(points).reshape(-1, stages, d), weights / weights.sum())


def _sobol(stages: int, d: int, log2_nodes: int, scramble: int) -> Rule:
    engine = qmc.Sobol(stages * d, scramble=True, rng=np.random.default_rng([scramble, stages, d]))
    normals = ndtri(np.clip(engine.random_base2(log2_nodes), _CLIP, 1.0 - _CLIP)).reshape(-1, stages, d)
    return _frozen(normals, np.full(len(normals), 1.0 / len(normals)))


@lru_cache(maxsize=16)
def sobol_rule(stages: int, d: int, log2_nodes: int, scramble: int) -> Rule:
    """Sobol points whatever the dimension, for averages of functions that jump."""
    return _sobol(stages, d, log2_nodes, scramble)
