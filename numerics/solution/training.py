"""Averages over the training samples of a stage: probabilities of a sign as tails, everything else over nodes.

If all losses are quadratic in all logits, the logits are affine functions of the Gaussian directions g_1..g_t given class and
label: errors then are normal tails, and averages of second degree a sum over 2t points.  Otherwise a sign is integrated by
:mod:`numerics.solution.crossings`, and a smooth function over the nodes of :mod:`numerics.scalar.nodes`, which get finer until
two of them agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from numerics.codegen.losses import LossFunctions
from numerics.deferred import special
from numerics.models import TRAINING
from numerics.scalar.compiled import structural_loss
from numerics.scalar.constrained import MAX_MARGIN, MINIMUM_NORM, HardPoint, constraint, follow_hard
from numerics.scalar.nodes import Nodes, extend, label_nodes, stage_loss
from numerics.solution import crossings
from numerics.solution.population import gaussian_mean
from numerics.solution.quadrature import EVALUATIONS, Integral
from theory.functions import step

if TYPE_CHECKING:
    from numerics.solution.solution import Solution

FINEST = 3
"""Levels that the nodes of an average may be finer than those of the solution."""

MOST_NODES = 3 * 10**6
"""Nodes beyond which no finer ones are tried."""

JUMPING_EVALUATIONS = 10**6
"""Of a score that jumps: nested panels take too many to close in on a jump in several directions."""

_SURE = 1e200  # score of a sign that is known
_ROUNDING = 4e-16
_DEFECT_SAFETY = 4.0  # error of an average over the deviation of its weights from what they add up to


class TrainingSamples:
    """The samples that one stage of a solution is trained on (for given weights those of the first data set).

    Parameters
    ----------
    solution, number
        The stage, from 1; it and those before it are solved.
    sets : tuple of str, optional
        Names of other data sets, whose samples are looked at instead.
    """

    def __init__(self, solution: Solution, number: int, sets: tuple[str, ...] | None = None) -> None:
        self.solution, self.number = solution, number
        self.data, self.point = solution.data, solution.points[number - 1]
        self.stage = solution.resolved[number - 1]
        self.sets = sets or self.stage.sets or (TRAINING,)
        self.rtol = solution.settings.rtol

    @property
    def hard(self) -> str | None:
        """Which constraint stands for the ridge of 0, if one does."""
        return self.point.limit if isinstance(self.point, HardPoint) else None

    @cached_property
    def groups(self) -> Nodes:
        """Class, label and data set: everything about a sample that is not a field."""
        return label_nodes(self.data).of(self.data, self.sets)

    @cached_property
    def probability(self) -> np.ndarray:
        """Of each group, shape (groups,)."""
        return self.groups.weight / self.groups.weight.sum()

    @cached_property
    def is_gaussian(self) -> bool:
        """Whether logits are affine functions of the directions, given class and label."""
        points = self.solution.points[: self.number]
        if any(isinstance(point, HardPoint) and point.limit == MAX_MARGIN for point in points):
            return False
        return all(structural_loss(stage).is_quadratic for stage in self.solution.chain.stages[: self.number])

    # Samples with given directions

    def follow(self, group: np.ndarray, g: np.ndarray) -> Nodes:
        """Samples of these groups with directions ``g_1..g_k``, shape (n, k): logits and forces of the first k stages.

        The weights of these nodes mean nothing.
        """
        solution, n = self.solution, len(group)
        start = self.groups.rows(group)
        nodes = Nodes(np.ones(n), start.statistics, start.labels, np.empty((n, 0)), start.member, np.arange(n))
        for j in range(g.shape[1]):
            along, point = np.ascontiguousarray(g[:, j]), solution.points[j]
            if isinstance(point, HardPoint):
                nodes = follow_hard(nodes, self.data, solution.chain, j + 1, point, along[nodes.row])
            else:
                nodes, _ = extend(
                    nodes, self.data, solution.resolved[j], point, 1.0, 1.0, training=True, directions=along
                )
        return nodes if len(self.data.sets) == 1 else nodes.rows(np.argsort(nodes.row))

    # Signs

    def wrong_side(self, *, clean: bool = False, check: bool = False) -> Integral:
        """P(h on the wrong side of 0) by the label trained on, or by the one before noise flipped it.

        The proximal map is monotone: given the earlier stages this is a normal tail.  ``check`` integrates on other panels.
        """
        sign = self.groups.statistics[:, 0] if clean else 2.0 * self.groups.labels - 1.0
        if self.hard == MAX_MARGIN:  # every sample is on the side of the label that was trained on
            return Integral(float(self.probability @ (sign != 2.0 * self.groups.labels - 1.0)), 0.0)

        def score(group: np.ndarray, g: np.ndarray) -> np.ndarray:
            return sign[group] * self._threshold(self.follow(group, g))

        k = self.number - 1
        if self.is_gaussian and k:
            return self._gaussian_tail(score)
        found = Integral(math.nan, math.inf)
        if self.jumps and k > 1:
            # Nodes close in on the jumps of targets, panels inside one another do not; but panels see a step of the tail itself.
            found = self._tail_over_nodes(clean)
            if found.error <= self.rtol * abs(found.value):
                return found
        budget = JUMPING_EVALUATIONS if self.jumps else EVALUATIONS
        nested = crossings.mean_tail(score, self.probability, k, self.rtol, check=check, evaluations=budget)
        return min(found, nested, key=lambda integral: integral.error)

    @cached_property
    def jumps(self) -> bool:
        """Whether a target up to this stage jumps with an earlier logit."""
        return any(structural_loss(stage).expression.has(step) for stage in self.solution.chain.stages[: self.number])

    def _tail_over_nodes(self, clean: bool) -> Integral:
        """The probability given the nodes of the earlier stages, averaged over them."""

        def tail(nodes: Nodes) -> np.ndarray:
            sign = nodes.statistics[:, 0] if clean else 2.0 * nodes.labels - 1.0
            return special.ndtr(sign * self._threshold(nodes))

        return self._until_levels_agree(tail, self.number - 1)

    def _threshold(self, nodes: Nodes) -> np.ndarray:
        """Value of the own direction below which the logit is negative, given nodes of the earlier stages."""
        if self.hard == MINIMUM_NORM:
            goal = constraint(self.solution.chain, self.number, MINIMUM_NORM, nodes)
            return -goal * _SURE**0.5
        point, delta, k = self.point, self.data.delta, self.number - 1
        row, responses = point.cholesky_row, point.response_row
        statistics = nodes.statistics
        mean = statistics[:, 0] * point.magnetization + point.bias
        mean = mean + math.sqrt(delta) * statistics[:, 2 : 2 + k] @ row[:-1] + delta * nodes.forces @ responses[:-1]
        loss = stage_loss(self.stage)
        slope, _ = LossFunctions(loss).derivatives(
            np.zeros(len(mean)), nodes.labels, nodes.seen(loss.stages(self.number))
        )
        return (delta * responses[-1] * slope - mean) / (math.sqrt(delta) * row[-1])

    def _gaussian_tail(self, score: crossings.Score) -> Integral:
        """``E Phi(z_0 + a g) = Phi(z_0/sqrt(1 + a^2))``, group by group."""
        k, n = self.number - 1, len(self.probability)
        group = np.repeat(np.arange(n), 2 * k)
        far = score(group, np.tile(np.vstack((np.eye(k), -np.eye(k))), (n, 1))).reshape(n, 2, k)
        slopes = 0.5 * (far[:, 0] - far[:, 1])
        centre = far.mean(axis=(1, 2))
        rounding = _ROUNDING * np.abs(far).max(axis=(1, 2))
        width = np.sqrt(1.0 + np.sum(slopes**2, axis=1))
        error = self.probability @ (rounding / width)
        return Integral(float(self.probability @ special.ndtr(centre / width)), float(error))

    # Smooth functions

    def mean(self, function: Callable[[Nodes], np.ndarray], looks_at: tuple[int, ...] | None = None) -> Integral:
        """Average of a function of a sample.

        Parameters
        ----------
        function : callable
            Takes nodes of all stages up to this one (for a minimum-norm stage its logit, but no direction and force of it).
        looks_at : tuple of int, optional
            The stages whose logits are all it depends on, besides the label.  None says that it is of second degree in
            logits and forces if all losses are.
        """
        if self.is_gaussian:
            return self._second_degree(function) if looks_at is None else self._gaussian(function, looks_at)
        earlier = self.number - 1 if self.hard == MINIMUM_NORM else self.number
        return self._until_levels_agree(lambda nodes: function(self._with_goal(nodes)), earlier)

    def _until_levels_agree(self, function: Callable[[Nodes], np.ndarray], stages: int) -> Integral:
        """Average over nodes of the first ``stages``, finer and finer.

        Its error is the change at the last level, or what rounding does: probabilities then do not add up to 1.
        """
        before = math.nan
        for finer in range(-1, FINEST + 1):
            nodes = self.solution.nodes(stages, training=True, finer=finer).of(self.data, self.sets)
            values = function(nodes)
            value = nodes.mean(values)
            missing = abs(nodes.weight.sum() / self.groups.weight.sum() - 1.0)
            error = max(abs(value - before), _DEFECT_SAFETY * missing * nodes.mean(np.abs(values)))
            if error <= self.rtol * abs(value) or (finer >= 0 and 2 * nodes.weight.size > MOST_NODES):
                break
            before = value
        return Integral(value, error)

    def _with_goal(self, nodes: Nodes) -> Nodes:
        """Nodes with the logit of this stage, if that is a function of the earlier ones: nothing is left to integrate."""
        if nodes.stages == self.number:
            return nodes
        goal = constraint(self.solution.chain, self.number, MINIMUM_NORM, nodes)
        # Without columns of its own direction and force, which are not needed.
        return Nodes(nodes.weight, nodes.statistics, nodes.labels, np.column_stack((nodes.logits, goal)))

    def _affine(self) -> tuple[np.ndarray, Nodes]:
        """Groups and nodes of the points ``+-sqrt(t) e_j``, whose averages are exact up to the third degree."""
        t, n = self.number, len(self.probability)
        points = math.sqrt(t) * np.vstack((np.eye(t), -np.eye(t)))
        group = np.repeat(np.arange(n), 2 * t)
        return group, self.follow(group, np.tile(points, (n, 1)))

    def _second_degree(self, function: Callable[[Nodes], np.ndarray]) -> Integral:
        group, nodes = self._affine()
        values = self.probability[group] * function(nodes) / (2 * self.number)
        return Integral(float(values.sum()), _ROUNDING * float(np.abs(values).sum()))

    def _gaussian(self, function: Callable[[Nodes], np.ndarray], looks_at: tuple[int, ...]) -> Integral:
        """Average over the logits of some stages, jointly Gaussian in each group."""
        t, n = self.number, len(self.probability)
        columns = [stage - 1 for stage in looks_at]
        far = self._affine()[1].logits[:, columns].reshape(n, 2, t, len(columns))
        means = far.mean(axis=(1, 2))
        factors = 0.5 / math.sqrt(t) * (far[:, 0] - far[:, 1]).transpose(0, 2, 1)
        total = error = 0.0
        for group, share in enumerate(self.probability):

            def at(points: np.ndarray, group: int = group) -> np.ndarray:
                size = points.shape[1]
                logits = np.full((size, t), math.nan)
                logits[:, columns] = points.T
                labels = np.full(size, self.groups.labels[group])
                return function(Nodes(np.ones(size), np.empty((size, 2)), labels, logits))

            value, uncertain = gaussian_mean(at, means[group], factor=factors[group], rtol=self.rtol)
            total += share * value
            error += share * uncertain
        return Integral(float(total), float(error))
