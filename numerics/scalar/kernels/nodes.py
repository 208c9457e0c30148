"""Extend the joint law of label, fields, training forces and logits by one stage, as a finite set of weighted nodes."""

from __future__ import annotations

import math

import numpy as np
from numba import types

from numerics.codegen.borrowing import owned
from numerics.codegen.cache import njit
from numerics.codegen.room import stack
from numerics.scalar.kernels.constrained import constrained_nodes, find_goals, follow_constrained
from numerics.scalar.kernels.elementary import INNER, LATE, FloatArray, IntArray, Matrix
from numerics.scalar.kernels.fields import centres_in_p
from numerics.scalar.kernels.grid import build_grid
from numerics.scalar.kernels.layout import DATA, FIELD, LOSS, NODES, ROOM_OF_SAMPLES, RULE, STAGE, TRAINED, Field, Nodes
from numerics.scalar.kernels.proximal import CURVATURE, LOW, POINT_ROWS, WEIGHT, H, proximal_point, slopes_at
from numerics.scalar.kernels.rows import nodes_of_sets, take_nodes, with_constant_logit, with_room_for_a_stage
from numerics.scalar.kernels.samples import MARGIN, half_widths, new_samples, sample_at

_ROOT_TWO_PI = 2.5066282746310002
_NODE_TAIL = 0.01  # relative to the tail of the integration: what a node may weigh and be left out
_NARROW_FIELD = 1e-4  # of a field, below which its Gaussian variable is not read off logits
_LONG = 4  # from this stage on the points that this takes are too many, and less accuracy is asked for


@njit(NODES(DATA, types.int64), **INNER)
def label_nodes(data, rows):
    """Nodes before the first stage: data set, class, whether the label is another one, and one of ``rows`` equal parts.

    It is where noise flips it, or where a rule draws one that is not the sign of its logit, which is not known yet.
    """
    wrong = np.empty(data.label_noise.size)
    count = 0
    for d in range(wrong.size):
        wrong[d] = data.label_noise[d] + (1.0 - 2.0 * data.label_noise[d]) * data.disagreement
        count += 2 if wrong[d] > 0.0 else 1
    count *= rows * data.weights.size
    weight = np.empty(count)
    statistics = np.ones((count, 2))
    labels = np.empty(count)
    member = np.empty(count, np.int64)
    row = np.empty(count, np.int64)
    i = 0
    for d in range(data.alpha.size):
        noise = wrong[d]
        for c in range(data.weights.size):
            for flipped in range(2 if noise > 0.0 else 1):
                for r in range(rows):
                    share = noise if flipped == 1 else 1.0 - noise
                    weight[i] = data.alpha[d] * data.weights[c] * share / rows
                    statistics[i, 0] = data.signs[c]
                    labels[i] = data.labels[c] if flipped == 0 else 1.0 - data.labels[c]
                    member[i] = d
                    row[i] = r
                    i += 1
    return Nodes(weight, statistics, labels, np.empty((count, 0)), member, row)


@njit(NODES(DATA, NODES, types.float64), **LATE)
def weighted_by_drawn_label(data, nodes, tail):
    """Each node times P(its label at z)/P(its label), where z is the rule's logit.

    What then weighs less than ``tail`` of the heaviest is dropped; nothing is if that is 0.
    """
    weight = nodes.weight.copy()
    largest = 0.0
    for i in range(weight.size):
        noise = data.label_noise[nodes.member[i]]
        here = noise + (1.0 - 2.0 * noise) / (1.0 + math.exp(data.slope * abs(nodes.logits[i, 0])))
        anywhere = noise + (1.0 - 2.0 * noise) * data.disagreement
        weight[i] *= here / anywhere if nodes.labels[i] == 0.0 else (1.0 - here) / (1.0 - anywhere)
        largest = max(largest, weight[i])
    found = Nodes(weight, nodes.statistics, nodes.labels, nodes.logits, nodes.member, nodes.row)
    return take_nodes(found, np.flatnonzero(weight >= _NODE_TAIL * tail * largest))


@njit(NODES(DATA, NODES, types.float64), **INNER)
def weighted_by_label(data, nodes, tail):
    """Nodes after a rule, now that its logit is known: as they are, unless it draws labels."""
    return nodes if data.slope == np.inf else weighted_by_drawn_label(data, nodes, tail)


@njit(
    types.Tuple((NODES, types.float64))(LOSS, NODES, Matrix, FIELD, types.boolean, RULE, types.float64), **INNER
)  # fmt: skip
def extend_nodes(loss, nodes, seen, field, trained, rule, tail):
    """Integrate this stage's field, node by node, and keep what weighs more than ``tail`` of the heaviest node.

    Parameters
    ----------
    seen : array, shape (n, l)
        The logits that this stage's loss looks at.
    trained : bool
        Whether this stage is trained on these samples; elsewhere its force is 0.

    Returns
    -------
    The extended nodes, and the largest deviation of a node's weight from its sum.
    """
    n, k = nodes.logits.shape
    weight, gamma, sigma = nodes.weight, field.gamma, field.sigma
    samples = new_samples(loss, weight, nodes.labels, seen, tail, np.empty(ROOM_OF_SAMPLES * n))
    centre, start, stop, branch = samples.centre, samples.start, samples.stop, samples.branch
    centres_in_p(field, nodes.statistics, samples.target, centre)
    points, _ = build_grid(loss, samples, field, rule, np.empty((POINT_ROWS, 256)))
    capacity = 0
    largest = 0.0
    for i in range(n):
        capacity += stop[i] - start[i]
        largest = max(largest, weight[i])
    pair_weight = np.empty(capacity)
    origin = np.empty(capacity, np.int64)
    place = np.empty(capacity, np.int64)
    kept = 0
    defect = 0.0
    for i in range(n):
        total = 0.0
        for j in range(start[i], stop[i]):
            g = (points[H, j] + gamma * points[LOW + branch[i], j] - centre[i]) / sigma
            density = math.exp(-0.5 * g * g) / (sigma * _ROOT_TWO_PI)
            w = points[WEIGHT, j] * (1.0 + gamma * points[CURVATURE, j]) * density
            total += w
            if w * weight[i] > _NODE_TAIL * tail * largest:
                pair_weight[kept] = w * weight[i]
                origin[kept] = i
                place[kept] = j
                kept += 1
        if stop[i] > start[i]:
            defect = max(defect, weight[i] / largest * abs(total - 1.0))
    origin = origin[:kept]
    old = take_nodes(nodes, origin)
    statistics, logits = with_room_for_a_stage(old)
    for r in range(kept):
        i, j = origin[r], place[r]
        slope = points[LOW + branch[i], j]
        statistics[r, 2 + k] = (points[H, j] + gamma * slope - centre[i]) / sigma
        statistics[r, 3 + 2 * k] = samples.target[i] - slope if trained else 0.0
        logits[r, k] = points[H, j]
    return Nodes(pair_weight[:kept], statistics, old.labels, logits, old.member, old.row), defect


@njit(NODES(LOSS, NODES, Matrix, FIELD, types.boolean, FloatArray), **INNER)
def follow_nodes(loss, nodes, seen, field, trained, along):
    """As :func:`extend_nodes` where every node already has its value ``along[i]`` of this stage's g."""
    n, k = nodes.logits.shape
    statistics, logits = with_room_for_a_stage(nodes)
    samples = new_samples(loss, nodes.weight, nodes.labels, seen, 1.0, np.empty(ROOM_OF_SAMPLES * n))
    centres_in_p(field, nodes.statistics, samples.target, samples.centre)
    slope = stack(4)
    h = 0.0
    for i in range(n):
        sample = sample_at(loss, samples, i)
        h = proximal_point(sample, field.gamma, samples.centre[i] + field.sigma * along[i], h, 0.0, slope)
        slopes_at(sample, h, slope)
        logits[i, k] = h
        statistics[i, 2 + k] = along[i]
        statistics[i, 3 + 2 * k] = samples.target[i] - slope[sample.branch] if trained else 0.0
    return Nodes(owned(nodes.weight), statistics, owned(nodes.labels), logits, owned(nodes.member), owned(nodes.row))


@njit(
    types.Tuple((NODES, FloatArray))(NODES, types.float64, types.float64), **LATE
)  # fmt: skip
def along_a_narrow_field(nodes, step, tail):
    """The nodes once for every point of a trapezoid rule in the next stage's g, and that g: it is not read off a logit.

    What a field much narrower than its distance from 0 is made of would be lost in the difference of the two.
    """
    weight = nodes.weight
    reach = np.empty(weight.size)
    half_widths(weight, tail, MARGIN, reach)
    total = 0
    for i in range(weight.size):
        total += math.ceil(2.0 * reach[i] / step)
    origin = np.empty(total, np.int64)
    along = np.empty(total)
    share = np.empty(total)
    place = 0
    for i in range(weight.size):
        count = math.ceil(2.0 * reach[i] / step)
        for k in range(count):
            spacing = 2.0 * reach[i] / count
            origin[place] = i
            along[place] = (k + 0.5) * spacing - reach[i]
            share[place] = spacing * math.exp(-0.5 * along[place] ** 2) / _ROOT_TWO_PI
            place += 1
    found = take_nodes(nodes, origin)
    for k in range(total):
        found.weight[k] *= share[k]
    return found, along


@njit(NODES(NODES, NODES), **LATE)
def joined(first, second):
    """The nodes of both."""
    return Nodes(
        np.concatenate((first.weight, second.weight)), np.concatenate((first.statistics, second.statistics)),
        np.concatenate((first.labels, second.labels)), np.concatenate((first.logits, second.logits)),
        np.concatenate((first.member, second.member)), np.concatenate((first.row, second.row)),
    )  # fmt: skip


@njit(
    types.Tuple((NODES, types.float64))(STAGE, NODES, FIELD, IntArray, IntArray, FloatArray, RULE, types.float64), **INNER
)  # fmt: skip
def nodes_after(stage, nodes, field, trained, needed, directions, rule, tail):
    """Nodes that include a stage, and their normalisation defect.

    Parameters
    ----------
    trained, needed : integer arrays, shape (d,)
        1 where the stage is trained on a data set, and where a data set is needed any more.
    directions : array, shape (r,)
        The stage's g for each row; without any, g is integrated over.
    """
    k = nodes.logits.shape[1]
    extended = nodes
    defect = 0.0
    parts = 0
    for side in range(1, -1, -1):
        wanted = np.zeros(trained.size, np.int64)
        count = 0
        for d in range(trained.size):
            if trained[d] == side and needed[d] == 1:
                wanted[d] = 1
                count += 1
        if count == 0:
            continue
        part = nodes_of_sets(nodes, wanted)
        own = Field(owned(field.coefficients), field.sigma, field.gamma if side == 1 else 0.0)
        if side == 1 and stage.loss.constraint != TRAINED:
            goals = np.empty(part.labels.size)
            find_goals(stage.loss, part.labels, part.logits[:, stage.seen], goals)
            if directions.size > 0:
                part = follow_constrained(stage.loss, part, goals, own, directions[part.row])
            else:
                part = constrained_nodes(stage.loss, part, goals, own, rule.step, tail)
        elif directions.size > 0:
            part = follow_nodes(stage.loss, part, part.logits[:, stage.seen], own, side == 1, directions[part.row])
        elif k + 1 < _LONG and field.sigma < _NARROW_FIELD:
            part, along = along_a_narrow_field(part, rule.step, tail)
            part = follow_nodes(stage.loss, part, part.logits[:, stage.seen], own, side == 1, along)
        else:
            part, its_defect = extend_nodes(
                stage.loss, part, part.logits[:, stage.seen], own, side == 1, rule, tail
            )  # fmt: skip
            defect = max(defect, its_defect)
        extended = joined(extended, part) if parts > 0 else part
        parts += 1
    if parts == 0:  # no data set is needed any more
        extended = with_constant_logit(take_nodes(nodes, np.empty(0, np.int64)), 0.0)
    return extended, defect
