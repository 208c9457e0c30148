"""Responses to a stage whose weights are exactly 0 (:mod:`numerics.scalar.constant_targets`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from numerics.codegen.equations import equations_module
from numerics.scalar.compiled import newton, one_step
from numerics.scalar.nodes import Nodes, StagePoint, extend, extend_any, label_nodes
from numerics.scalar.prior import WeightMoments, coordinate_groups

if TYPE_CHECKING:
    from numerics.solution.solution import Solution

_SHIFT = 2e-3  # of a logit that responses are read off, by differences of fourth order
_SMOOTH = 1e-6  # change of such a difference at half the shift, above which the target jumps


def completed_responses(solution: Solution) -> np.ndarray:
    """V_ts of a chain in which some stages have no weights, shape (stages, stages), lower triangular.

    The equations leave out responses to such a stage s: they multiply its forces, which are 0.  Here they are found from what a
    shift of its field does to the later stages' forces.  NaN where a target jumps at its logit: there they are not defined.
    """
    points, size = list(solution.points), len(solution.equations)
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
    seen = () if stage.given else stage.loss.stages(t)
    return any(r == s or (r > s and _follows(solution, r, s)) for r in seen)


def _response_to_rest(solution: Solution, points: Sequence[StagePoint], s: int, t: int) -> tuple[float, float]:
    """V_ts and Vh_ts for a stage s without weights, given those of the stages between.

    ``Vh_ts = -Delta d(alpha E[f_t])/d(shift of the field of s)`` is linear in V_ts, and by the equations of the prior V_ts is
    linear in it.
    """
    delta, stage, own = solution.data.variance, solution.resolved[t - 1], points[t - 1].response_row[-1]
    direct = _pull(solution, points, s, t, 0.0, _SHIFT)
    if not abs(_pull(solution, points, s, t, 0.0, 0.5 * _SHIFT) - direct) <= _SMOOTH * (1.0 + abs(direct)):
        return math.nan, math.nan
    through = (_pull(solution, points, s, t, own, _SHIFT) - direct) / own
    moments = WeightMoments(coordinate_groups(solution.data, solution.equations, solution.settings.common))
    for number in range(1, t):
        moments.add_stage(number, solution.resolved[number - 1], points[number - 1].conjugates)
    constants, prior = moments.prior_rows(t - 1, stage.ridge), []
    for value in (0.0, 1.0):
        conjugates, updated = np.append(points[t - 1].conjugates, 0.0), np.empty((len(constants), 2 * t + 1))
        conjugates[t + s] = value
        for row, out in zip(constants, updated, strict=True):
            equations_module(t).prior(conjugates, row, out)
        prior.append(updated[:, t + s].sum())
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
                    nodes, data, solution.equations, number, earlier, settings, solution.level, training=True
                )
        if point.vanishes:
            trained = _at_rest(nodes, solution, t, point).of(data, stage.sets)
            force = trained.total(trained.forces[:, -1])
        else:
            before = [_with_unit_direction(earlier) for earlier in points[: t - 1]]
            prior = solution.moments(t - 1).prior_rows(t - 1, stage.ridge)
            force = newton(
                data, stage, nodes.of(data, stage.sets), prior, before, unknowns,
                one_step(settings.field_step * refined, settings.tail),
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
