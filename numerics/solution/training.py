"""Averages over the training samples of a stage: probabilities of a sign as tails, everything else over nodes.

If all losses are quadratic in all logits, the logits are affine functions of the Gaussian directions g_1..g_t given class and
label: errors then are normal tails, and averages of second degree a sum over 2t points.  Otherwise a sign is integrated by
:mod:`numerics.solution.crossings`, and a smooth function over the nodes of :mod:`numerics.scalar.nodes`, which get finer until
two of them agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from numerics.codegen import observables
from numerics.codegen.losses import LossFunctions
from numerics.deferred import special
from numerics.models import TRAINING, ParameterError
from numerics.models.link import disagreement
from numerics.scalar.compiled import goals, structural_loss
from numerics.scalar.nodes import Nodes, extend, label_nodes
from numerics.scalar.points import MAX_MARGIN, MINIMUM_NORM
from numerics.solution import crossings, quadrature
from numerics.solution.quadrature import EVALUATIONS, Integral, OneRule
from numerics.solution.samples import GaussianLogits, Integrand, WeightedSamples, combined, unit
from theory.functions import step
from theory.losses import Loss

if TYPE_CHECKING:
    from numerics.solution.solution import Solution

FINEST = 3
"""Levels that the nodes of an average may be finer than those of the solution."""

MOST_NODES = 3 * 10**6
"""Nodes beyond which no finer ones are tried."""

JUMPING_EVALUATIONS = 10**6
"""Of a score that jumps: nested panels take too many to close in on a jump in several directions."""

_MOST_FOR_DENSITIES = 2**13  # nodes, which every place takes, beyond which peaks are found by panels
_DENSITY_TOLERANCE = 1e-11  # of a density found by panels: averages of it over panels would see more
_TRIED, _TYPICAL = (
    40,
    3.0,
)  # places at which densities are compared on two levels of nodes, up to so many standard deviations
_BATCH = 2 * 10**5  # places times nodes evaluated at a time
_SURE = 1e200  # score of a sign that is known
_ROUNDING = 4e-16
_PLACING = 4e-10  # relative error of an average that all levels have: weights of points are good to MAP_TOLERANCE of grids, squared
_DEFECT_SAFETY = 4.0  # error of an average over the deviation of its weights from what they add up to


class TrainingSamples(WeightedSamples):
    """The samples that one stage of a solution is trained on (for given weights those of the first data set).

    Parameters
    ----------
    solution, number
        The stage, from 1; it and those before it are solved.
    sets : tuple of str, optional
        Names of other data sets, whose samples are looked at instead.
    check : bool
        Integrate probabilities over other panels.
    """

    def __init__(
        self, solution: Solution, number: int, sets: tuple[str, ...] | None = None, *, check: bool = False
    ) -> None:
        self.solution, self.stages, self.check = solution, number, check
        self.data, self.point = solution.data, solution.points[number - 1]
        self.stage = solution.resolved[number - 1]
        self.sets = sets or self.stage.sets or (TRAINING,)
        self.scale = solution.state.scale[:number]
        self.rtol = solution.settings.rtol

    @property
    def limit(self) -> str | None:
        """Which constraint stands for the ridge of 0, if one does."""
        return self.point.limit

    @cached_property
    def groups(self) -> Nodes:
        """Class, label and data set: everything about a sample that is not a field."""
        return label_nodes(self.data).of(self.data, self.sets)

    @cached_property
    def weight(self) -> np.ndarray:
        """Of each group, shape (groups,)."""
        return self.groups.weight / self.groups.weight.sum()

    @cached_property
    def gaussian(self) -> GaussianLogits | None:
        """The law of the logits if they are affine functions of the directions, given class and label; else None.

        Where a rule gives signs, the label is none of those.
        """
        signs = self.data.ruled and not self.data.has_real_labels
        if (
            signs
            or not np.isfinite(self.scale).all()
            or not all(structural_loss(stage).is_quadratic for stage in self.solution.equations.stages[: self.stages])
        ):
            return None
        t, n = self.stages, len(self.weight)
        _, nodes = self._affine()
        far = nodes.logits.reshape(n, 2, t, t)
        factors = 0.5 / math.sqrt(t) * (far[:, 0] - far[:, 1]).transpose(0, 2, 1)
        return GaussianLogits(
            self.weight, self.groups.labels, self.groups.statistics[:, 0], far.mean(axis=(1, 2)).T, factors, self.rtol
        )

    # Samples with given directions

    def follow(self, group: np.ndarray, g: np.ndarray) -> Nodes:
        """Samples of these groups with directions ``g_1..g_k``, shape (n, k): logits and forces of the first k stages.

        The weights of these nodes are 1, or, where a rule draws labels, P(label given its logit)/P(label).
        """
        solution, n = self.solution, len(group)
        start = self.groups.rows(group)
        nodes = Nodes(np.ones(n), start.statistics, start.labels, np.empty((n, 0)), start.member, np.arange(n))
        for j in range(g.shape[1]):
            along, point = np.ascontiguousarray(g[:, j]), solution.points[j]
            nodes, _ = extend(nodes, self.data, solution.resolved[j], point, 1.0, 1.0, training=True, directions=along)
        return nodes if len(self.data.sets) == 1 else nodes.rows(np.argsort(nodes.row))

    # Signs

    def probability(self, level: float = 0.0, *, clean: bool = False) -> Integral:
        """See :meth:`WeightedSamples.probability`.

        The proximal map is monotone: given the earlier stages this is a normal tail, which is averaged over their directions.
        """
        seen = 2.0 * self.groups.labels - 1.0
        if self.limit == MAX_MARGIN:  # every sample is beyond any level on the side of the label that was trained on
            return Integral(float(self.weight @ self._flips(self.groups)) if clean else 0.0, 0.0)
        if self.point.vanishes:
            decided = level != 0.0 or self.point.bias != 0.0
            signs, weight = self.groups.clean_signs(False) if clean else seen, self.weight
            if self.data.ruled:  # either sign as often, whatever the noise
                signs, weight = np.array([1.0, -1.0]), np.array([0.5, 0.5])
            return Integral(float(weight @ (signs * self.point.bias < level)) if decided else math.nan, 0.0)

        def score_of(side: int) -> crossings.Score:
            def score(group: np.ndarray, g: np.ndarray) -> np.ndarray:
                nodes = self.follow(group, g)
                sign = self._sides(nodes, clean)[side][0]
                return sign * self.threshold(nodes, sign * level)

            return score

        def tilt_of(side: int) -> crossings.Tilt | None:
            def density(group: np.ndarray, first: np.ndarray) -> np.ndarray:
                nodes = self.follow(group, first[:, None])
                return nodes.weight * self._sides(nodes, clean)[side][1]

            if not self._draws:
                return None
            return self._tilt(density)

        k = self.stages - 1
        if self.gaussian is not None and k:
            return self._gaussian_tail(score_of(0))
        found = Integral(math.nan, math.inf)
        if self.jumps and k > 1:
            # Nodes close in on the jumps of targets, panels inside one another do not; but panels see a step of the tail itself.
            found = self._tail_over_nodes(level, clean)
            if found.error <= self.rtol * abs(found.value):
                return OneRule(*found)
        budget = JUMPING_EVALUATIONS if self.jumps else EVALUATIONS
        nested = Integral(0.0, 0.0)
        for side in range(2 if clean and self._draws else 1):
            nested += crossings.mean_tail(
                score_of(side), self.weight, k, self.rtol, check=self.check, evaluations=budget, tilt=tilt_of(side),
                jumps=self.data.ruled,
            )  # fmt: skip
        return OneRule(*min(found, nested, key=lambda integral: integral.error))

    @property
    def _draws(self) -> bool:
        """Whether a rule draws labels, which are not known from its logit."""
        return math.isfinite(self.data.link_slope)

    def _flips(self, nodes: Nodes) -> np.ndarray:
        """Probability that noise flips a label of the data set of each node."""
        return np.array([found.label_noise for found in self.data.sets])[nodes.member]

    def _sides(self, nodes: Nodes, clean: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Signs that the label of each node may have, as it was trained on or before noise (``clean``), and their probability."""
        if not (clean and self._draws):
            return [(nodes.label_signs(self.data.ruled, clean=clean), np.ones(nodes.labels.size))]
        signs = nodes.label_signs(True, clean=True)
        other, flips = disagreement(self.data.link_slope, nodes.logits[:, 0]), self._flips(nodes)
        # Bayes: the label that was drawn is the rule's sign, or it is not, and noise made of it the one that is seen.
        right = (1.0 - other) * np.where(nodes.labels == 1.0, 1.0 - flips, flips)
        wrong = other * np.where(nodes.labels == 1.0, flips, 1.0 - flips)
        share = wrong / np.maximum(right + wrong, np.finfo(float).tiny)
        return [(signs, 1.0 - share), (-signs, share)]

    @cached_property
    def jumps(self) -> bool:
        """Whether a target up to this stage jumps with an earlier logit."""
        return any(
            structural_loss(stage).expression.has(step) for stage in self.solution.equations.stages[: self.stages]
        )

    def _tail_over_nodes(self, level: float, clean: bool) -> Integral:
        """The probability given the nodes of the earlier stages, averaged over them."""

        def tail(nodes: Nodes) -> np.ndarray:
            tails = (
                share * special.ndtr(sign * self.threshold(nodes, sign * level))
                for sign, share in self._sides(nodes, clean)
            )
            return sum(tails)

        return self._until_levels_agree(tail, self.stages - 1)

    def threshold(self, nodes: Nodes, level: np.ndarray | float = 0.0) -> np.ndarray:
        """Value of the own direction below which the logit is below a level, given nodes of the earlier stages."""
        level = np.broadcast_to(np.asarray(level, dtype=float), nodes.labels.shape)
        if self.limit == MINIMUM_NORM:
            goal = goals(self.stage.loss, self.stages, nodes, MINIMUM_NORM)
            return (level - goal) * _SURE**0.5
        loss = structural_loss(self.stage)
        seen = nodes.seen(loss.stages(self.stages))
        slope, _ = LossFunctions(loss).derivatives(np.ascontiguousarray(level), nodes.labels, seen)
        return self._score(level, slope, self._own_mean(nodes))

    def _own_mean(self, nodes: Nodes) -> np.ndarray:
        """Mean of the own field given nodes of the earlier stages, shape (n,)."""
        point, delta, k = self.point, self.data.variance, self.stages - 1
        statistics = nodes.statistics
        mean = statistics[:, 0] * point.magnetization + point.bias
        along = statistics[:, 2 : 2 + k] @ point.cholesky_row[:-1]
        return mean + math.sqrt(delta) * along + delta * nodes.forces @ point.response_row[:-1]

    def _score(self, level: np.ndarray, slope: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Own direction at which the logit is ``level``, where the loss has this slope."""
        field = observables.field_of()(level, slope, self.data.variance * self.point.response_row[-1])
        return (field - mean) / (math.sqrt(self.data.variance) * self.point.cholesky_row[-1])

    def _steepness(self, curvature: np.ndarray) -> np.ndarray:
        """Derivative of :meth:`_score` by the level, where the loss has this curvature."""
        gamma = self.data.variance * self.point.response_row[-1]
        return (1.0 + gamma * curvature) / (math.sqrt(self.data.variance) * self.point.cholesky_row[-1])

    def density(self, h: np.ndarray) -> np.ndarray:
        """See :meth:`WeightedSamples.density`: ``N(omega) (1 + Delta V l'')``, averaged over the earlier stages.

        Raises
        ------
        ParameterError
            For a stage that has no density: under a hard constraint, or without weights.
        """
        if self.limit or self.point.vanishes:
            raise ParameterError(
                f"stage {self.solution.equations.name(self.stages)} has no density of training logits: its ridge must be > 0"
            )
        if self.gaussian is not None:
            return self.gaussian.density(h)
        nodes = self._earlier_nodes
        if nodes is None:
            return self._density_of_peaks(h)
        found = np.zeros((2, len(h)))
        for first in range(0, len(h), batch := max(1, _BATCH // nodes.labels.size)):
            some = h[first : first + batch]
            found[:, first : first + batch] = self._density_given(nodes, some)
        return found

    @cached_property
    def centre_and_width(self) -> tuple[float, float]:
        """Mean and standard deviation of the own logit."""
        own = unit(self.stages, self.stages)
        mean, square = (self.mean(lambda _, h, k=k: h**k, [own], degree=2).value for k in (1, 2))
        return mean, math.sqrt(square - mean**2)

    @cached_property
    def _earlier_nodes(self) -> Nodes | None:
        """Nodes of the earlier stages, as fine as densities need them at places where logits are.

        None where panels find the peaks of a narrow own field better: after one stage, and where no nodes are fine enough.
        """
        if self.stages == 2:
            return None
        centre, width = self.centre_and_width
        places, before = centre + width * np.linspace(-_TYPICAL, _TYPICAL, _TRIED), None
        peaked = 1 < self.stages <= crossings.NESTED + 1
        for finer in range(-1, FINEST + 1):
            nodes = self.solution.nodes(self.stages - 1, training=True, finer=finer).of(self.data, self.sets)
            values = self._density_given(nodes, places)
            if before is not None and np.abs(values - before).max() <= self.rtol * np.abs(values).max():
                return nodes
            if peaked and nodes.labels.size > _MOST_FOR_DENSITIES:
                return None
            before = values
        return None if peaked else nodes

    def _density_of_peaks(self, h: np.ndarray) -> np.ndarray:
        """Densities at places (n,), shape (2, n), averaged over the directions of the earlier stages by panels that find peaks."""
        n = len(self.weight)
        loss = structural_loss(self.stage)

        def peak(group: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            places, which = np.divmod(group, n)
            nodes, level = self.follow(which, g), h[places]
            slope, curvature = LossFunctions(loss).derivatives(
                level, nodes.labels, nodes.seen(loss.stages(self.stages))
            )
            return self._score(level, slope, self._own_mean(nodes)), self._steepness(curvature)

        tilt = self._tilt(lambda group, first: self.follow(group % n, first[:, None]).weight) if self._draws else None
        values, _ = crossings.peaks(
            peak, n * len(h), self.stages - 1, _DENSITY_TOLERANCE / n, check=self.check, tilt=tilt, jumps=self.data.ruled
        )  # fmt: skip
        shares = self.weight * np.array([1.0 - self.groups.labels, self.groups.labels])
        return shares @ values.reshape(len(h), n).T

    def _tilt(self, density: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> crossings.Tilt:
        """The direction of a rule's logit, given the label that was drawn from it."""
        width = 1.0 / (self.data.link_slope * math.sqrt(self.data.signal))
        return crossings.Tilt(density, width, 0.5 / self.weight.min())

    def _density_given(self, nodes: Nodes, h: np.ndarray) -> np.ndarray:
        """Densities at places (n,), shape (2, n), averaged over nodes of the earlier stages."""
        size, count = nodes.labels.size, len(h)
        loss = structural_loss(self.stage)
        seen = np.tile(nodes.seen(loss.stages(self.stages)), (count, 1))
        derivatives = LossFunctions(loss).derivatives(np.repeat(h, size), np.tile(nodes.labels, count), seen)
        slope, curvature = (values.reshape(count, size) for values in derivatives)
        score = self._score(h[:, None], slope, self._own_mean(nodes))
        values = quadrature.density(score) * self._steepness(curvature)
        shares = nodes.weight * np.array([1.0 - nodes.labels, nodes.labels])
        return shares @ values.T / nodes.weight.sum()

    def _gaussian_tail(self, score: crossings.Score) -> Integral:
        """``E Phi(z_0 + a g) = Phi(z_0/sqrt(1 + a^2))``, group by group."""
        k, n = self.stages - 1, len(self.weight)
        group = np.repeat(np.arange(n), 2 * k)
        far = score(group, np.tile(np.vstack((np.eye(k), -np.eye(k))), (n, 1))).reshape(n, 2, k)
        slopes = 0.5 * (far[:, 0] - far[:, 1])
        centre = far.mean(axis=(1, 2))
        rounding = _ROUNDING * np.abs(far).max(axis=(1, 2))
        width = np.sqrt(1.0 + np.sum(slopes**2, axis=1))
        error = self.weight @ (rounding / width)
        return Integral(float(self.weight @ special.ndtr(centre / width)), float(error))

    # Smooth functions

    def mean(self, function: Integrand, rows: Sequence[np.ndarray], *, degree: int | None = None) -> Integral:
        """See :meth:`WeightedSamples.mean`; infinite logits have the sign of the label where their stage was trained on it."""
        rows = np.atleast_2d(rows)
        infinite = np.array([not self.is_finite(row) for row in rows])
        if infinite.any():
            return self._mean_at_infinity(function, rows, infinite)
        if self.gaussian is not None and degree == 2:
            return self._second_degree(lambda nodes: function(nodes.labels, *combined(rows, nodes.logits)))
        if self.gaussian is not None:
            return self.gaussian.mean(function, rows)
        last = int(np.flatnonzero(rows.any(axis=0))[-1]) + 1
        if last < self.stages:
            shorter = TrainingSamples(self.solution, last, self.sets)
            return shorter.mean(function, rows[:, :last], degree=degree)
        return self._mean_of_nodes(lambda nodes: function(nodes.labels, *combined(rows, nodes.logits)))

    def _mean_at_infinity(self, function: Integrand, rows: np.ndarray, infinite: np.ndarray) -> Integral:
        """Average of a function some of whose x's are infinite."""
        sides = rows[infinite] * np.isinf(self.scale)
        stages = np.flatnonzero(sides.any(axis=0))
        known = not self.data.ruled  # the sign of the label, from the group
        if known and all(set(self.sets) <= set(self.solution.resolved[k].sets) for k in stages):

            def of_labels(label: np.ndarray, *finite: np.ndarray) -> np.ndarray:
                x = np.empty((len(rows), label.size))
                x[infinite] = np.outer(np.sign(sides.sum(axis=1)), 2.0 * label - 1.0) * math.inf
                x[~infinite] = np.reshape(finite, (-1, label.size))
                return function(label, *x)

            if infinite.all():
                return Integral(float(self.weight @ of_labels(self.groups.labels)), 0.0)
            return self.mean(of_labels, rows[~infinite])

        def of_nodes(nodes: Nodes) -> np.ndarray:
            x = np.empty((len(rows), nodes.labels.size))
            x[~infinite] = np.reshape(combined(rows[~infinite], nodes.logits), (-1, nodes.labels.size))
            x[infinite] = np.sign(combined(sides, nodes.logits)) * math.inf
            return function(nodes.labels, *x)

        return self._mean_of_nodes(of_nodes)

    def envelope(self, loss: Loss, response: float) -> Integral:
        """Average of the Moreau envelope ``l + Delta V f^2/2`` of this stage's loss, of second degree if all losses are."""
        seen, value = loss.stages(self.stages), LossFunctions(loss).value

        def function(nodes: Nodes) -> np.ndarray:
            own = value(np.ascontiguousarray(nodes.logits[:, -1]), nodes.labels, nodes.seen(seen))
            return own + 0.5 * self.data.variance * response * nodes.forces[:, -1] ** 2

        return self._mean_of_nodes(function) if self.gaussian is None else self._second_degree(function)

    def _mean_of_nodes(self, function: Callable[[Nodes], np.ndarray]) -> Integral:
        """Average of a function of nodes of all stages (for a minimum-norm stage its logit, but no direction and force of it)."""
        earlier = self.stages - 1 if self.limit == MINIMUM_NORM else self.stages
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
        return Integral(value, max(error, _PLACING * nodes.mean(np.abs(values))))

    def _with_goal(self, nodes: Nodes) -> Nodes:
        """Nodes with the logit of this stage, if that is a function of the earlier ones: nothing is left to integrate."""
        if nodes.stages == self.stages:
            return nodes
        goal = goals(self.stage.loss, self.stages, nodes, MINIMUM_NORM)
        # Without columns of its own direction and force, which are not needed.
        return Nodes(nodes.weight, nodes.statistics, nodes.labels, np.column_stack((nodes.logits, goal)))

    def _affine(self) -> tuple[np.ndarray, Nodes]:
        """Groups and nodes of the points ``+-sqrt(t) e_j``, whose averages are exact up to the third degree."""
        t, n = self.stages, len(self.weight)
        points = math.sqrt(t) * np.vstack((np.eye(t), -np.eye(t)))
        group = np.repeat(np.arange(n), 2 * t)
        return group, self.follow(group, np.tile(points, (n, 1)))

    def _second_degree(self, function: Callable[[Nodes], np.ndarray]) -> Integral:
        group, nodes = self._affine()
        values = self.weight[group] * function(nodes) / (2 * self.stages)
        return Integral(float(values.sum()), _ROUNDING * float(np.abs(values).sum()))
