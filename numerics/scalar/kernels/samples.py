"""A Gaussian in P for each node: the loss there, where it is, how far it reaches, and which points are its own."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import integer_part, part, stack
from numerics.scalar.kernels.elementary import (
    INNER,
    LATE,
    LEAF,
    PLAIN,
    FloatArray,
    Matrix,
    address,
)
from numerics.scalar.kernels.layout import (
    LOSS,
    SAMPLE,
    SAMPLES,
    Sample,
    Samples,
    as_integers,
    cut,
    new_room,
)

MARGIN = 0.5  # in widths, so that a grid whose nodes drift a little still covers them


@njit(SAMPLE(LOSS, SAMPLES, types.int64), **LEAF)
def sample_at(loss, samples, i):
    """The loss at node i."""
    return Sample(
        loss.along, loss.slopes, samples.labels[i], address(samples.logits, i * samples.logits.shape[1]),
        address(loss.parameters, 0), samples.branch[i],
    )  # fmt: skip


@njit(types.void(FloatArray, types.float64, types.float64, FloatArray), **PLAIN)
def half_widths(weight, tail, margin, reach):
    """Half-width, in units of sigma, of the range each node needs so that nothing above ``tail`` is cut; 0 drops a node."""
    largest = 0.0
    for i in range(weight.size):
        largest = max(largest, weight[i])
    for i in range(weight.size):
        ratio = weight[i] / (largest * tail)
        reach[i] = math.sqrt(2.0 * math.log(ratio)) + margin if ratio > 1.0 else 0.0


@njit(SAMPLES(LOSS, FloatArray, FloatArray, Matrix, types.float64, FloatArray), **INNER)
def new_samples(loss, weight, labels, logits, tail, room):
    """A Gaussian for each of n nodes, its centre still to be filled in, with no points yet.

    ``room`` is for ``ROOM_OF_SAMPLES`` numbers a node.
    """
    n = weight.size
    parts = new_room(room, stack(1))
    samples = Samples(
        owned(labels), owned(logits), cut(parts, n), as_integers(cut(parts, n)), cut(parts, n), cut(parts, n), cut(parts, n),
        as_integers(cut(parts, n)), as_integers(cut(parts, n)), as_integers(cut(parts, n)), owned(room),
    )  # fmt: skip
    half_widths(weight, tail, MARGIN, samples.reach)
    pair = stack(2)
    for i in range(n):
        samples.start[i] = samples.stop[i] = 0
        samples.order[i] = i
        loss.targets(
            0.0, labels[i], address(logits, i * logits.shape[1]), address(loss.parameters, 0), address(pair, 0)
        )
        branch = 1 if abs(pair[1]) < abs(pair[0]) else 0
        samples.branch[i] = branch
        samples.target[i] = pair[branch]
        samples.offset[i] = (pair[0] - pair[1]) * branch
    return samples


@njit(SAMPLES(SAMPLES, types.int64, types.int64), **LATE)
def samples_between(samples, low, high):
    """Those of the nodes ``low <= i < high``, which get an order of their own."""
    n = high - low
    room = np.empty(n)
    order = integer_part(room, 0, n)
    for i in range(n):
        order[i] = i
    return Samples(
        samples.labels[low:high], samples.logits[low:high], part(samples.target, low, n), integer_part(samples.branch, low, n),
        part(samples.offset, low, n), part(samples.centre, low, n), part(samples.reach, low, n),
        integer_part(samples.start, low, n), integer_part(samples.stop, low, n), order, room,
    )  # fmt: skip
