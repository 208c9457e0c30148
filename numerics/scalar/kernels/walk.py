"""A chain stage after stage: the problem of the next one, given what is known of those before, and what it adds to that."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import entry, part, part_matrix
from numerics.scalar.kernels.elementary import INNER, PLAIN, FloatArray, IntArray, Matrix
from numerics.scalar.kernels.fields import field_of
from numerics.scalar.kernels.kept import OF_NODES, kept_at
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
    STATES,
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
    unpacked,
)
from numerics.scalar.kernels.march import MAP_TOLERANCE
from numerics.scalar.kernels.nodes import label_nodes, nodes_after, weighted_by_label
from numerics.scalar.kernels.prior import append_given, append_trained, no_moments, prior_rows
from numerics.scalar.kernels.rows import nodes_of_sets, with_constant_logit

_BYTES_PER_NODE, _BYTES_PER_NODE_AND_STAGE = 100.0, 25.0  # measured, with what is needed while nodes are made


class Known(NamedTuple):
    """What is known of the weights of the stages solved so far.

    Attributes
    ----------
    moments
    triangle : array, shape (T (T + 1)/2,);  responses : array, shape (T,)
        Cholesky factor, row by row, and ``V_ss``; the first entries are filled.
    """

    moments: Moments
    triangle: np.ndarray
    responses: np.ndarray


KNOWN = record(Known, MOMENTS, FloatArray, FloatArray)


class Progress(NamedTuple):
    """Samples, as the stages solved so far see them.

    Attributes
    ----------
    nodes
    nodes_before, growth : float
        Number of nodes one stage earlier, and by what they multiplied there.
    bytes_needed : float
        Memory for nodes of the next stage; if that is more than allowed, they are not made.
    """

    nodes: Nodes
    nodes_before: float
    growth: float
    bytes_needed: float


PROGRESS = record(Progress, NODES, types.float64, types.float64, types.float64)


@njit(types.boolean(STRUCTURE), **INNER)
def sharing(structure):
    """Whether nodes may share points: where fixed directions are exact, every node has the points of Gauss rules."""
    return structure.first_rows == 0 or structure.first_rows < structure.directions.shape[0]


@njit(PROGRESS(POINT, LEVEL), **INNER)
def begin(point, level):
    """Before the first stage."""
    return Progress(label_nodes(point.data, max(level.rows, 1)), 0.0, 0.0, 0.0)


@njit(KNOWN(POINT), **INNER)
def nothing_known(point):
    """Before the first stage: room for all of them."""
    stages = point.training.kind.size
    return Known(no_moments(point.groups), np.empty(stages * (stages + 1) // 2), np.empty(stages))


@njit(LOSS(POINT, STAGE, types.int64), **INNER)
def loss_at(point, stage, t):
    """A stage's loss with its parameters at a point, or the constraint that takes its place."""
    loss, kind = stage.loss, point.training.kind[t]
    constraint = kind if kind in (MINIMUM_NORM, MAX_MARGIN) else TRAINED
    return Loss(
        loss.along, loss.slopes, loss.targets, loss.bends, loss.n_bends, loss.kind, constraint,
        entry(point.training.parameters, t),
    )  # fmt: skip


@njit(PROBLEM(STRUCTURE, POINT, PROGRESS, KNOWN), **INNER)
def next_problem(structure, point, progress, known):
    """Of the stage after those solved, on the samples that it is trained on; parts of it are parts of what is ``known``."""
    t = progress.nodes.logits.shape[1]
    stage, training = structure.stages[t], point.training
    nodes = progress.nodes
    if training.kind[t] != GIVEN:
        nodes = nodes_of_sets(nodes, entry(structure.trained, t))
    return Problem(
        loss_at(point, stage, t), stage.equations, owned(nodes), nodes.logits[:, stage.seen],
        prior_rows(known.moments, t, training.ridge[t]), part(known.triangle, 0, t * (t + 1) // 2), part(known.responses, 0, t),
        point.data.delta, training.fixed_bias[t],
    )  # fmt: skip


@njit(SHARPNESS(Matrix, IntArray, types.int64), **PLAIN)
def sharpness_along(unknowns, started, t):
    """How steeply those later stages that are started depend on stage t."""
    sharpest = pull = 0.0
    for later in range(t + 1, unknowns.shape[0]):
        if started[later] == 1:
            order = unpacked(entry(unknowns, later)[: 2 * later + 4])
            width = order.norm**2
            for r in range(t + 1, later):
                width += order.couplings[r] ** 2
            sharpest = max(sharpest, abs(order.couplings[t]) / math.sqrt(width))
            pull = max(pull, order.response / order.norm)
    return Sharpness(sharpest, pull)


@njit(PROGRESS(STRUCTURE, POINT, SETTINGS, LEVEL, PROGRESS, KNOWN, STATES, FloatArray), **INNER)
def after_stage(structure, point, settings, level, progress, known, states, grids):
    """What is known after one stage more, which is not the last one, with what it has in ``states``."""
    nodes, moments, training = progress.nodes, known.moments, point.training
    t = nodes.logits.shape[1]
    kind, stage, size = training.kind[t], structure.stages[t], 2 * t + 4
    x, conjugate = part(entry(states.unknowns, t), 0, size), part(entry(states.conjugates, t), 0, size)
    sharpness = sharpness_along(states.unknowns, states.started, t)
    if kind == GIVEN:
        append_given(moments, t, training.magnetization[t], training.mean_square[t])
    elif kind != VANISHING:
        append_trained(moments, stage.equations.moments, t, training.ridge[t], conjugate)
    order = unpacked(x)
    row = part(known.triangle, t * (t + 1) // 2, t + 1)
    for s in range(t):
        row[s] = order.couplings[s]
    row[t] = order.norm
    known.responses[t] = order.response
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
                settings.outer_step * level.factor, MAP_TOLERANCE, sharing(structure), True, sharpness,
                part_matrix(entry(training.bends, t), 0, training.n_bends[t], 2), kept_at(grids, t, OF_NODES),
            )  # fmt: skip
            nodes, _ = nodes_after(
                Stage(loss_at(point, stage, t), stage.equations, stage.seen), nodes, field_of(order, point.data.delta),
                entry(trained, t), needed, along, rule, level.tail,
            )  # fmt: skip
            if t == 0:
                nodes = weighted_by_label(point.data, nodes, level.tail if level.rows == 0 else 0.0)
    return Progress(owned(nodes), before, growth, bytes_needed)
