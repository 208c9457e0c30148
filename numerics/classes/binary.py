"""Two classes of one noise are the binary mixture: solved by its core, read as what K = 2 is.

With ``s = |mu_0 - mu_1|/(2 sqrt(N))`` inputs over s have the centres ``+-v`` around their midpoint, the noise Delta/s^2, and
weights that are s times as long.  The binary logit is h_0 - h_1, sqrt(2) times the coordinate of the gauge, so that the ridge
halves; the overlap with the midpoint goes into the bias.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from numerics.classes.stage import StageBlocks
from numerics.models import Chain, ClassMixture, DataSet, GaussianMixture, SharedCovariance
from theory.class_formulas import ClassFormula
from theory.levels import LabelTargets
from theory.losses import Distillation, Loss, SquareLoss, TableTargets
from theory.softmax import Target, read_target

if TYPE_CHECKING:
    from numerics.solution.solution import Solution

SAME = (Target.FULL, Target.TRUE, Target.TRUE_AND_SIMILARITY)
"""Targets that are all there is where classes are two."""


def half_distance(data: ClassMixture) -> float:
    """s."""
    gram = np.array(data.gram)
    return 0.5 * math.sqrt(max(gram[0, 0] - 2.0 * gram[0, 1] + gram[1, 1], 0.0))


def as_binary(data: ClassMixture, chain: Chain) -> tuple[GaussianMixture, Chain] | None:
    """The same problem for the binary core; None if it is not one of two classes that it takes.

    Examples
    --------
    >>> from numerics import Estimator
    >>> from theory.losses import CrossEntropy
    >>> data, chain = as_binary(ClassMixture(2.0, [0.3, 0.7], [[1, 0], [0, 1]]), Chain.of(Estimator(CrossEntropy(), 0.2)))
    >>> data.rho, round(data.delta, 9), round(chain[0].ridge, 9)
    (0.3, 2.0, 0.2)
    """
    if data.classes_count != 2 or len(set(data.deltas)) > 1 or any(found.confusion is not None for found in data.sets):
        return None
    if isinstance(data.inputs, SharedCovariance):
        return None  # the midpoint is no multiple of what lies between the classes
    scale, weights = half_distance(data), data.class_weights("training")
    if not scale > 0 or not (weights > 0).all():
        return None
    if any(not np.array_equal(data.class_weights(found.name), weights) for found in data.sets):
        return None
    losses = [_binary_loss(stage.loss) for stage in chain.stages]
    if any(loss is None for loss in losses):
        return None
    further = tuple(DataSet(found.name, found.alpha, found.label_noise) for found in data.further)
    binary = GaussianMixture(
        data.alpha, float(weights[0]), float(data.deltas[0]) / scale**2, data.label_noise, further, data.inputs
    )
    stages = [
        replace(stage, loss=loss, ridge=(1.0 if isinstance(loss, SquareLoss) else 0.5) * stage.ridge / scale**2)
        for stage, loss in zip(chain.stages, losses, strict=True)
    ]
    return binary, Chain(tuple(stages))


def _binary_loss(loss: Loss) -> Loss | None:
    """The loss of h_0 - h_1 that the loss of two logits is; that of the square loss is twice as large."""
    if isinstance(loss, Distillation) and loss.needs_many_classes:
        target, number = read_target(dict(loss.options)["target"])
        if target not in SAME and not (target == Target.TOP and number >= 1):
            return None
        return Distillation(**loss.parameters, temperature_squared=loss.temperature_squared, teacher=loss.teacher)
    if isinstance(loss, ClassFormula):
        return None
    if isinstance(loss, TableTargets):  # class 0 is y = 1
        off = {"off_one": loss.table[0][1], "off_zero": loss.table[1][0]}
        return LabelTargets(**loss.parameters, **off, temperature_squared=loss.temperature_squared)
    return loss


def blocks_of(solution: Solution, data: ClassMixture) -> list[StageBlocks]:
    """Order parameters of the stages of a binary solution, as those of two classes."""
    scale, gram = half_distance(data), np.array(data.gram)
    root = math.sqrt(2.0)
    found = []
    # A field on twice the loss moves weights half as far.
    fields = np.array([2.0 if isinstance(stage.loss, SquareLoss) else 1.0 for stage in solution.chain.stages])
    for t in range(len(solution)):
        # w = a (mu_0 - mu_1) + what is orthogonal to both: w.mu_c follows from w.(mu_0 - mu_1)/2.
        along = solution.magnetization[t] / root
        means = along * 2.0 * (gram[0] - gram[1]) / (4.0 * scale**2)
        bias = solution.bias[t] / root - 0.5 * means.sum()
        cholesky = solution.cholesky[t, : t + 1] / (root * scale)
        response = fields[: t + 1] * solution.response[t, : t + 1] / (2.0 * scale**2)
        found.append(
            StageBlocks(means[None, :], np.array([bias]), cholesky.reshape(-1, 1, 1), response.reshape(-1, 1, 1))
        )
    return found
