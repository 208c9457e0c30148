"""Finite representations of the joint law of label, fields, training forces and logits of a chain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from numerics.deferred import Deferred
from numerics.models import Chain, DataModel, Estimator, Frozen
from numerics.scalar.compiled import compiled_stage, data_parameters, packed, structural_loss, target_bends
from numerics.scalar.kernels import layout
from numerics.scalar.kernels.layout import Nodes
from numerics.scalar.points import StagePoint
from numerics.settings import Settings

_entries = Deferred("numerics.scalar.kernels.entries")
_march = Deferred("numerics.scalar.kernels.march")
_NO_BENDS = np.empty((0, 2))
_NO_DIRECTIONS = np.empty(0)
_NOT_SHARP = layout.Sharpness(0.0, 0.0)


def label_nodes(data: DataModel, *, training: bool = True, rows: int = 1) -> Nodes:
    """Signs and labels, for training in each data set, in ``rows`` equal parts; fresh samples have labels without noise."""
    return _entries.label_nodes(data_parameters(data, training=training), rows)


def extend(
    nodes: Nodes, data: DataModel, stage: Estimator | Frozen, point: StagePoint, step: float, tail: float, *,
    training: bool, extra: np.ndarray = _NO_BENDS, directions: np.ndarray | None = None,
    sharpness: layout.Sharpness = _NOT_SHARP,
) -> tuple[Nodes, float]:  # fmt: skip
    """Nodes that include this stage too, on training samples or on fresh ones, and their normalisation defect.

    ``extra``, shape (e, 2), holds (position, scale) of what a later integrand does as a function of this stage's logit.
    ``directions``, shape (r,), has a value of this stage's g for each row; without it g is integrated over.
    ``sharpness`` says how steeply later fields depend on it; see :func:`numerics.scalar.nodes.sharpness_along`.
    """
    field = _entries.field_of if training else _entries.field_of_fresh
    trained = [int(found.name in stage.sets) for found in data.sets] if training else [1]
    sharpness = layout.Sharpness(sharpness.direction, math.sqrt(data.variance) * sharpness.pull)
    rule = layout.Rule(
        step, _march.MAP_TOLERANCE, True, True, sharpness, np.ascontiguousarray(extra, dtype=float), np.empty(0)
    )
    compiled = compiled_stage(structural_loss(stage), point.earlier + 1, point.limit if training else None)
    found, defect = _entries.nodes_after(
        compiled, nodes, field(layout.unpack(point.unknowns), data.variance),
        np.array(trained), np.ones(len(trained), dtype=np.int64), _NO_DIRECTIONS if directions is None else directions, rule, tail,
    )  # fmt: skip
    if point.earlier == 0 and math.isfinite(data.link_slope):
        kept = tail if directions is None else 0.0
        found = _entries.weighted_by_label(data_parameters(data, training=training), found, kept)
    return found, defect


def extend_any(
    nodes: Nodes, data: DataModel, chain: Chain, number: int, point: StagePoint, settings: Settings, level: int, *,
    training: bool, refinement: float = 1.0, bends: Sequence[tuple[float, float]] = (),
    sharpness: layout.Sharpness = _NOT_SHARP,
) -> Nodes:  # fmt: skip
    """``nodes`` of the stages before ``number``, extended by that stage, whether it has weights or not.

    ``refinement`` divides the step of this integration; ``bends`` are (position, scale) of what is going to be averaged as a
    function of this stage's logit, beyond what later targets do; ``sharpness`` as in :func:`extend`.
    """
    if point.vanishes:
        return _entries.with_constant_logit(nodes, point.bias)
    step = settings.outer_step * settings.refinement**level / refinement
    wanted = sorted({*map(tuple, target_bends(chain, number)), *bends})
    extra = np.array(wanted, dtype=float).reshape(-1, 2)
    stage = chain.resolved(data)[number - 1]
    found, _ = extend(
        nodes, data, stage, point, step, settings.tail, training=training, extra=extra, sharpness=sharpness
    )
    return found


def sharpness_along(points: Sequence[StagePoint], number: int) -> layout.Sharpness:
    """How steeply the stages after ``number`` depend on it."""
    return _entries.sharpness_along(packed(points), np.ones(len(points), dtype=np.int64), number - 1)
