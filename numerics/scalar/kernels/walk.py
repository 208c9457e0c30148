"""A chain stage after stage: the problem of the next one, given what is known of those before, and what it adds to that."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import INNER, FloatArray
from numerics.scalar.kernels.fields import field_of
from numerics.scalar.kernels.grid import MAP_TOLERANCE
from numerics.scalar.kernels.layout import (
    GIVEN,
    LEVEL,
    LOSS,
    MAX_MARGIN,
    MINIMUM_NORM,
    MOMENTS,
    NODES,
    POINT,
    PROBLEM,
    SETTINGS,
    SHARPNESS,
    STAGE,
    STRUCTURE,
    TRAINED,
    VANISHING,
    Loss,
    Moments,
    Nodes,
    Problem,
    Rule,
    Sharpness,
    Stage,
    record,
    unpack,
)
from numerics.scalar.kernels.nodes import label_nodes, nodes_after, weighted_by_label
from numerics.scalar.kernels.prior import append_given, append_trained, no_moments, prior_rows
from numerics.scalar.kernels.rows import nodes_of_sets, with_constant_logit

_BYTES_PER_NODE, _BYTES_PER_NODE_AND_STAGE = 100.0, 25.0  # measured, with what is needed while nodes are made


class Progress(NamedTuple):
    """What is known of the stages solved so far.

    Attributes
    ----------
    nodes, moments
        Of samples and of weights.
    triangle : array, shape (T (T + 1)/2,);  responses : array, shape (T,)
        Cholesky factor, row by row, and ``V_ss``; the first entries are filled.
    nodes_before, growth : float
        Number of nodes one stage earlier, and by what they multiplied there.
    bytes_needed : float
        Memory for nodes of the next stage; if that is more than allowed, they are not made.
    """

    nodes: Nodes
    moments: Moments
    triangle: np.ndarray
    responses: np.ndarray
    nodes_before: float
    growth: float
    bytes_needed: float


PROGRESS = record(Progress, NODES, MOMENTS, FloatArray, FloatArray, types.float64, types.float64, types.float64)


@njit(types.boolean(STRUCTURE), **INNER)
def sharing(structure):
    """Whether nodes may share points: where fixed directions are exact, every node has the points of Gauss rules."""
    return structure.first_rows == 0 or structure.first_rows < structure.directions.shape[0]


@njit(PROGRESS(STRUCTURE, POINT, LEVEL), **INNER)
def begin(structure, point, level):
    """Before the first stage."""
    stages = point.training.kind.size
    return Progress(
        label_nodes(point.data, max(level.rows, 1)), no_moments(point.groups),
        np.empty(stages * (stages + 1) // 2), np.empty(stages), 0.0, 0.0, 0.0,
    )  # fmt: skip


@njit(LOSS(POINT, STAGE, types.int64), **INNER)
def loss_at(point, stage, t):
    """A stage's loss with its parameters at a point, or the constraint that takes its place."""
    loss, kind = stage.loss, point.training.kind[t]
    constraint = kind if kind in (MINIMUM_NORM, MAX_MARGIN) else TRAINED
    return Loss(
        loss.along, loss.slopes, loss.targets, loss.bends, loss.n_bends, loss.kind, constraint, point.training.parameters[t]
    )  # fmt: skip


@njit(PROBLEM(STRUCTURE, POINT, PROGRESS), **INNER)
def next_problem(structure, point, progress):
    """Of the stage after those solved, on the samples that it is trained on."""
    t = progress.nodes.logits.shape[1]
    stage, training = structure.stages[t], point.training
    nodes = progress.nodes
    if training.kind[t] != GIVEN:
        nodes = nodes_of_sets(nodes, structure.trained[t])
    return Problem(
        loss_at(point, stage, t), stage.equations, nodes,
        nodes.logits[:, stage.seen], prior_rows(progress.moments, t, training.ridge[t]),
        progress.triangle[: t * (t + 1) // 2], progress.responses[:t], point.data.delta, training.fixed_bias[t],
    )  # fmt: skip


@njit(
    PROGRESS(STRUCTURE, POINT, SETTINGS, LEVEL, PROGRESS, FloatArray, FloatArray, SHARPNESS), **INNER
)  # fmt: skip
def after_stage(structure, point, settings, level, progress, x, conjugate, sharpness):
    """What is known after one stage more, with unknowns ``x``; it is not the last one.

    ``sharpness`` is that of the later stages' dependence on this one.
    """
    nodes, moments, training = progress.nodes, progress.moments, point.training
    t = nodes.logits.shape[1]
    kind, stage = training.kind[t], structure.stages[t]
    if kind == GIVEN:
        append_given(moments, t, training.magnetization[t], training.mean_square[t])
    elif kind != VANISHING:
        append_trained(moments, stage.equations.moments, t, training.ridge[t], conjugate)
    order = unpack(x)
    row = progress.triangle[t * (t + 1) // 2 :]
    for s in range(t):
        row[s] = order.couplings[s]
    row[t] = order.norm
    progress.responses[t] = order.response
    before, growth, bytes_needed = progress.nodes_before, progress.growth, 0.0
    if kind == VANISHING:
        nodes = with_constant_logit(nodes, training.fixed_bias[t])
    else:
        # Nodes multiply by less and less from one stage to the next: what is too many is known before they are made.
        here = float(nodes.weight.size)
        if level.rows == 0 and t > 0 and here > before:
            last_growth = growth if growth > 0.0 else here / before
            growth = here / before
            expected = here * growth * min(1.0, growth / last_growth)
            bytes_needed = expected * (_BYTES_PER_NODE + _BYTES_PER_NODE_AND_STAGE * (t + 1))
        before = here
        if not bytes_needed > settings.memory:
            # Only samples that a later stage is trained on are needed any more; given directions keep all of them.
            trained = structure.trained
            needed = np.ones(trained.shape[1], np.int64)
            if level.rows == 0:
                for d in range(needed.size):
                    needed[d] = 0
                    for later in range(t + 1, trained.shape[0]):
                        needed[d] = max(needed[d], trained[later, d])
            along = np.empty(level.rows)
            for r in range(level.rows):
                along[r] = structure.directions[r, t]
            rule = Rule(
                settings.outer_step * level.factor, MAP_TOLERANCE, sharing(structure), True,
                Sharpness(sharpness.direction, math.sqrt(point.data.delta) * sharpness.pull),
                training.bends[t, : training.n_bends[t]],
            )  # fmt: skip
            nodes, _ = nodes_after(
                Stage(loss_at(point, stage, t), stage.equations, stage.seen), nodes, field_of(order, point.data.delta), trained[t],
                needed, along,
                rule, level.tail,
            )  # fmt: skip
            if t == 0:
                nodes = weighted_by_label(point.data, nodes, level.tail if level.rows == 0 else 0.0)
    return Progress(nodes, owned(moments), progress.triangle, progress.responses, before, growth, bytes_needed)
