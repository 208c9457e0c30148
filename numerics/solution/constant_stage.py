"""Observables of a stage whose weights are exactly 0, and of the one after it: limits of formulas that divide by the norm.

Such a stage gives every sample the class of its bias.  With bias 0 it decides nothing: its errors are NaN, as cosines are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from numerics.codegen.equations import equations_module
from numerics.deferred import special
from numerics.models import Frozen, total_alpha
from numerics.scalar.compiled import newton
from numerics.scalar.limits import extend_any
from numerics.scalar.nodes import Nodes, StagePoint, extend, label_nodes
from numerics.scalar.prior import WeightMoments, coordinate_groups
from numerics.solution.solution import Solution, StageSolution

_SHIFT = 2e-3  # of a logit that responses are read off, by differences of fourth order
_SMOOTH = 1e-6  # change of such a difference at half the shift, above which the target jumps


class ConstantStage(StageSolution):
    """A stage without weights (:mod:`numerics.scalar.constant_targets`), or one whose predecessor has none.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, solve
    >>> from theory.losses import Loss
    >>> constant = Loss.from_expression("softplus(h) - h/4")  # every target is 1/4
    >>> stage = solve(GaussianMixture(alpha=2.0, rho=0.2), Estimator(constant, ridge=0.1))[0]
    >>> stage.norm, round(stage.bias, 6), stage.test_error, stage.cosine
    (0.0, -1.098612, 0.2, nan)
    """

    @property
    def _vanishes(self) -> bool:
        return self._known and self.solution.points[self.number - 1].vanishes

    @property
    def cosine(self) -> float:
        """Cosine between w and v; NaN without weights."""
        return math.nan if self._vanishes else super().cosine

    @property
    def relative_bias(self) -> float:
        """Bias over norm; without weights infinite, or NaN if the bias is 0 too."""
        if not self._vanishes:
            return super().relative_bias
        return math.copysign(math.inf, self.bias) if self.bias else math.nan

    @property
    def test_error(self) -> float:
        """P(s h < 0) on a fresh sample."""
        if not self._vanishes:
            return super().test_error
        return self._wrong_share(np.array([1.0, -1.0]), np.array([self._data.rho, 1.0 - self._data.rho]))

    @property
    def train_error(self) -> float:
        """P(h on the wrong side of the label that was trained on), on a training sample."""
        if not self._vanishes:
            return super().train_error
        nodes = self._training.groups
        return self._wrong_share(2.0 * nodes.labels - 1.0, nodes.weight)

    @property
    def clean_train_error(self) -> float:
        """P(s h < 0) on a training sample."""
        if not self._vanishes:
            return super().clean_train_error
        nodes = self._training.groups
        return self._wrong_share(nodes.statistics[:, 0], nodes.weight)

    def _wrong_share(self, signs: np.ndarray, weight: np.ndarray) -> float:
        """Share of the samples whose sign is not that of the bias."""
        return float(weight @ (signs * self.bias < 0.0) / weight.sum()) if self.bias else math.nan

    @property
    def free_energy(self) -> float:
        """The minimised training objective per input: there is no penalty without weights."""
        return total_alpha(self._data, self._sets) * self.train_loss if self._vanishes else super().free_energy

    @property
    def calibration_slope(self) -> float:
        """Slope of the true log-odds as a function of the logit; NaN if that is the same everywhere."""
        return math.nan if self._vanishes else super().calibration_slope

    @property
    def calibration_offset(self) -> float:
        """Offset of the true log-odds at logit 0; NaN likewise."""
        return math.nan if self._vanishes else super().calibration_offset

    @property
    def calibration_error(self) -> float:
        """Mean of |P(y=1 given h) - sigmoid(h)| on a fresh sample; a constant logit tells nothing of y."""
        return abs(self._data.rho - float(special.expit(self.bias))) if self._vanishes else super().calibration_error

    @property
    def _pair_vanishes(self) -> bool:
        return self._known and any(self.solution.points[k - 1].vanishes for k in (*self._teachers, self.number))

    @property
    def teacher_cosine(self) -> float:
        """Cosine between the weights of this stage and of its teacher; NaN where there are none."""
        return math.nan if self._pair_vanishes else super().teacher_cosine

    @property
    def teacher_agreement(self) -> float:
        """Probability that this stage and its teacher classify a fresh sample alike; NaN where one decides nothing."""
        if not self._teachers or not self._pair_vanishes:
            return super().teacher_agreement
        pair = self._pair
        if np.any((np.diag(pair.overlap) == 0.0) & (pair.bias == 0.0)):
            return math.nan
        with np.errstate(over="ignore"):  # distances of a constant from 0 in units of no width
            return pair.agreement(0, 1)


def completed_responses(solution: Solution) -> np.ndarray:
    """V_ts of a chain in which some stages have no weights, shape (stages, stages), lower triangular.

    The equations leave out responses to such a stage s: they multiply its forces, which are 0.  Here they are found from what a
    shift of its field does to the later stages' forces.  NaN where a target jumps at its logit: there they are not defined.
    """
    points, size = list(solution.points), len(solution)
    out = np.full((size, size), np.nan)
    for t in range(2, len(points) + 1):
        # The nearest first: what a stage further back does goes through those between.
        for s in range(t - 1, 0, -1):
            if not points[s - 1].vanishes or points[t - 1].status != 0 or not _follows(solution, t, s):
                continue
            found, conjugate = _response_to_rest(solution, points, s, t)
            unknowns, conjugates = points[t - 1].unknowns.copy(), points[t - 1].conjugates.copy()
            unknowns[t + 1 + s], conjugates[t + s] = found, conjugate
            points[t - 1] = replace(points[t - 1], unknowns=unknowns, conjugates=conjugates)
    for t, point in enumerate(points):
        if point.status == 0:
            out[t, : t + 1] = point.response_row
    out[np.triu_indices(size, 1)] = 0.0
    return out


def _follows(solution: Solution, t: int, s: int) -> bool:
    """Whether stage t looks at stage s, or at one that follows it."""
    stage = solution.resolved[t - 1]
    seen = () if isinstance(stage, Frozen) else stage.loss.stages(t)
    return any(r == s or (r > s and _follows(solution, r, s)) for r in seen)


def _response_to_rest(solution: Solution, points: Sequence[StagePoint], s: int, t: int) -> tuple[float, float]:
    """V_ts and Vh_ts for a stage s without weights, given those of the stages between.

    ``Vh_ts = -Delta d(alpha E[f_t])/d(shift of the field of s)`` is linear in V_ts, and by the equations of the prior V_ts is
    linear in it.
    """
    delta, stage, own = solution.data.delta, solution.resolved[t - 1], points[t - 1].response_row[-1]
    direct = _pull(solution, points, s, t, 0.0, _SHIFT)
    if not abs(_pull(solution, points, s, t, 0.0, 0.5 * _SHIFT) - direct) <= _SMOOTH * (1.0 + abs(direct)):
        return math.nan, math.nan
    through = (_pull(solution, points, s, t, own, _SHIFT) - direct) / own
    moments = WeightMoments(coordinate_groups(solution.resolved))
    for number in range(1, t):
        moments.add_stage(number, solution.resolved[number - 1], points[number - 1].conjugates)
    constants, prior = moments.prior_constants(t - 1, stage.ridge), []
    for value in (0.0, 1.0):
        conjugates, updated = np.append(points[t - 1].conjugates, 0.0), np.empty(2 * t + 1)
        conjugates[t + s] = value
        equations_module(t).prior(conjugates, constants, updated)
        prior.append(updated[t + s])
    rate = prior[1] - prior[0]
    found = (prior[0] - rate * delta * direct) / (1.0 + rate * delta * through)
    return found, -delta * (direct + through * found)


def _pull(
    solution: Solution, points: Sequence[StagePoint], s: int, t: int, response: float, width: float
) -> float:  # fmt: skip
    """Derivative of ``alpha E[f_t]`` with respect to a shift of stage s's field, if V_ts were ``response``; by differences."""
    data, stage = solution.data, solution.resolved[t - 1]
    unknowns = points[t - 1].unknowns.copy()
    unknowns[t + 1 + s] = response
    point, settings = replace(points[t - 1], unknowns=unknowns), solution.settings
    refined = settings.refinement**solution.level
    total = 0.0
    for steps, factor in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
        nodes = label_nodes(data)
        for number, earlier in enumerate(points[: t - 1], start=1):
            if number == s:
                moved = earlier.unknowns.copy()
                moved[1] += steps * width
                nodes = _at_rest(nodes, solution, number, replace(earlier, unknowns=moved))
            elif earlier.vanishes:
                nodes = _at_rest(nodes, solution, number, earlier)
            else:
                nodes = extend_any(
                    nodes, data, solution.chain, number, earlier, settings, solution.level, training=True
                )
        if point.vanishes:
            trained = _at_rest(nodes, solution, t, point).of(data, stage.sets)
            force = trained.total(trained.forces[:, -1])
        else:
            before = [_with_unit_direction(earlier) for earlier in points[: t - 1]]
            prior = solution.moments(t - 1).prior_constants(t - 1, stage.ridge)
            force = newton(
                data, stage, nodes.of(data, stage.sets), prior, before, unknowns, settings.field_step * refined, settings.tail
            )[1][-1]  # fmt: skip
        total += factor * force
    return total / (12.0 * width)


def _at_rest(nodes: Nodes, solution: Solution, number: int, point: StagePoint) -> Nodes:
    """Nodes that include a stage without weights whose field, or whose target, is shifted."""
    stage, settings = solution.resolved[number - 1], solution.settings
    found, _ = extend(
        nodes, solution.data, stage, point, settings.outer_step, settings.tail, training=True, directions=np.zeros(1)
    )
    return found


def _with_unit_direction(point: StagePoint) -> StagePoint:
    """The stage as the compiled equations take it: see ``place_vanishing``."""
    return replace(point, unknowns=np.nan_to_num(point.unknowns, neginf=0.0)) if point.vanishes else point
