"""Finite representations of the joint law of label, fields, training forces and logits of a chain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from numerics.deferred import Deferred
from numerics.models import DataModel, Estimator, Frozen
from numerics.scalar.compiled import compiled_stage, data_parameters, packed, structural_loss
from numerics.scalar.kernels import layout
from numerics.scalar.kernels.layout import Nodes
from numerics.scalar.points import StagePoint

_entries = Deferred("numerics.scalar.kernels.entries")
_grid = Deferred("numerics.scalar.kernels.grid")
_NO_BENDS = np.empty((0, 2))
_NO_DIRECTIONS = np.empty(0)


def label_nodes(data: DataModel, *, training: bool = True, rows: int = 1) -> Nodes:
    """Signs and labels, for training in each data set, in ``rows`` equal parts; fresh samples have labels without noise."""
    return _entries.label_nodes(data_parameters(data, training=training), rows)


def extend(
    nodes: Nodes, data: DataModel, stage: Estimator | Frozen, point: StagePoint, step: float, tail: float, *,
    training: bool, extra: np.ndarray = _NO_BENDS, directions: np.ndarray | None = None, sharpness: float = 0.0,
) -> tuple[Nodes, float]:  # fmt: skip
    """Nodes that include this stage too, on training samples or on fresh ones, and their normalisation defect.

    ``extra``, shape (e, 2), holds (position, scale) of what a later integrand does as a function of this stage's logit.
    ``directions``, shape (r,), has a value of this stage's g for each row; without it g is integrated over.
    ``sharpness`` says how steeply later fields depend on it; see :func:`numerics.scalar.nodes.sharpness_along`.
    """
    field = _entries.field_of if training else _entries.field_of_fresh
    trained = [int(found.name in stage.sets) for found in data.sets] if training else [1]
    rule = layout.Rule(step, _grid.MAP_TOLERANCE, True, True, sharpness, np.ascontiguousarray(extra, dtype=float))
    found, defect = _entries.nodes_after(
        compiled_stage(structural_loss(stage), point.earlier + 1), nodes, field(layout.unpack(point.unknowns), data.variance),
        np.array(trained), np.ones(len(trained), dtype=np.int64), _NO_DIRECTIONS if directions is None else directions, rule, tail,
    )  # fmt: skip
    if point.earlier == 0 and math.isfinite(data.link_slope):
        kept = tail if directions is None else 0.0
        found = _entries.weighted_by_label(data_parameters(data, training=training), found, kept)
    return found, defect


def sharpness_along(points: Sequence[StagePoint], number: int) -> float:
    """How much of stage ``number``'s g moves the fields of the stages after it by the width that g's after it give them."""
    return _entries.sharpness_along(packed(points), np.ones(len(points), dtype=np.int64), number - 1)


def unresolved(scores: np.ndarray, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Jumps of a normal score between neighbouring nodes, and which of them matter: on one line of nodes, and near 0."""
    same = nodes.labels[1:] == nodes.labels[:-1]
    if nodes.stages > 1:
        same &= np.all(nodes.logits[1:, :-1] == nodes.logits[:-1, :-1], axis=1)
    near = (np.minimum(np.abs(scores[1:]), np.abs(scores[:-1])) < 6.0) | (scores[1:] * scores[:-1] < 0.0)
    jumps = np.abs(np.diff(scores))
    return jumps, same & near


def largest_jump(scores: np.ndarray, nodes: Nodes) -> float:
    """Largest change of a normal score that is about to be averaged, between neighbouring nodes."""
    jumps, matter = unresolved(scores, nodes)
    return float(jumps[matter].max(initial=0.0))


def sharp_crossings(scores: np.ndarray, nodes: Nodes, limit: float = 1.0) -> dict[float, tuple[float, float]]:
    """(position, width) in the last logit, by label, of the zero of a normal score that its nodes do not resolve: its
    neighbouring values differ by more than ``limit``.
    """
    jumps, matter = unresolved(scores, nodes)
    found = {}
    for label in (0.0, 1.0):
        here = np.flatnonzero(matter & (jumps > limit) & (nodes.labels[1:] == label))
        if here.size:
            k = here[np.argmin(scores[here] * scores[here + 1])] if here.size > 1 else here[0]
            h = nodes.logits[k : k + 2, -1]
            slope = (scores[k + 1] - scores[k]) / (h[1] - h[0])
            position = min(max(h[0] - scores[k] / slope, h.min()), h.max())
            found[label] = float(position), float(1.0 / abs(slope))
    return found
