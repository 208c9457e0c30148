"""Solve a chain on clusters: stage after stage, on finer and finer nodes until the error estimate is small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from numerics.clusters.prior import WeightPrior
from numerics.clusters.stage import StageEquations
from numerics.driver.chord import Found, Path, chord, chord_along, newton_step
from numerics.driver.outcome import Outcome, Status
from numerics.driver.refine import FAILED, SOLVED, least_gain, refine_of
from numerics.models import Chain, Clusters
from numerics.scalar.compiled import one_step, target_bends
from numerics.scalar.kernels.layout import JUMP_SCALE, Level, Nodes, Sharpness
from numerics.scalar.nodes import extend, label_nodes, sharpness_along
from numerics.scalar.points import StagePoint
from numerics.settings import Settings
from numerics.solution.errors import largest_change

Array = NDArray[np.float64]

ClusterPoints = tuple[StagePoint, ...]
"""Saddle point of a stage, cluster by cluster."""

DAMPED = 4
"""Steps of half the residual that a cold start begins with."""

_PATH_ITERATIONS, _PATH_TOLERANCE = 25, 1e-3
_SAFETY = 2.0  # of the error of a level over what a coarser one says
_CHECK_TAIL, _TAIL_REFINEMENT, _TOLERANCE_REFINEMENT = 100.0, 0.1, 0.01


@dataclass
class Walk:
    """The stages solved so far, on one level of nodes.

    Parameters
    ----------
    data, chain, settings
        The problem.
    level : Level
        Of the quadrature.
    known : sequence of ClusterPoints
        Stages as they are known from another level; they say how finely nodes have to be laid.
    """

    data: Clusters
    chain: Chain
    settings: Settings
    level: Level
    known: Sequence[ClusterPoints] = ()
    points: list[ClusterPoints] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    defect: float = 0.0

    def __post_init__(self) -> None:
        self.prior = WeightPrior.of(self.data, self.chain.stages, self.settings.common)
        self.nodes: list[Nodes] = [label_nodes(part) for part in self.data.parts]

    def equations(self) -> StageEquations:
        """Of the next stage."""
        number = len(self.points) + 1
        stage = self.chain[number - 1]
        nodes = [found.of(part, stage.sets) for found, part in zip(self.nodes, self.data.parts, strict=True)]
        accuracy = one_step(self.settings.field_step * self.level.factor, self.level.tail)
        return StageEquations(stage, nodes, self.prior, [found.x for found in self.found], accuracy)

    def keep(self, equations: StageEquations, found: Found) -> bool:
        """The next stage is solved; False if there are no finite conjugates."""
        plain = equations.plain(found.x)
        if plain is None:
            return False
        conjugates, updated, defect = plain
        outcome = found.outcome
        points = tuple(
            StagePoint(x, own[:-1], 0, outcome.iterations, outcome.residual, outcome.last_step, defect)
            for x, own in zip(found.x, conjugates, strict=True)
        )
        self.points.append(points)
        self.found.append(found)
        self.defect = max(self.defect, defect)
        self.prior.append(updated)
        number = len(self.points)
        if number < len(self.chain):
            step = self.settings.outer_step * self.level.factor
            for c, part in enumerate(self.data.parts):
                sharpness = (
                    sharpness_along([stage[c] for stage in self.known], number) if self.known else Sharpness(0.0, 0.0)
                )
                self.nodes[c], _ = extend(
                    self.nodes[c], part, self.chain[number - 1], points[c], step, self.level.tail, training=True,
                    extra=target_bends(self.chain, number), sharpness=sharpness,
                )  # fmt: skip
        return True

    def steepness(self) -> float:
        """Largest width of a field over the scale of what later targets do there; jumps have none."""
        steepest = 0.0
        for number, points in enumerate(self.points, 1):
            scales = [scale for _, scale in target_bends(self.chain, number) if scale >= JUMP_SCALE]
            for point, part in zip(points, self.data.parts, strict=True):
                width = math.sqrt(part.variance * math.exp(point.unknowns[1 + number]))
                steepest = max(steepest, *(width / scale for scale in scales), 0.0)
        return steepest

    def solve_next(self, start: Found | None) -> Outcome:
        """Solve the next stage: from a solution nearby, if there is one, then cold, then along falling ridges."""
        equations, most = self.equations(), self.settings.max_iterations
        iterations, found = 0, None
        if start is not None and start.x.shape == (equations.clusters, equations.width):
            found = chord(equations, start.x, self.level.tolerance, most, 0, start.factors)
            iterations += found.outcome.iterations
        if found is None or found.outcome.status != Status.CONVERGED:
            found = chord(equations, equations.start(), self.level.tolerance, most, DAMPED)
            iterations += found.outcome.iterations
        if found.outcome.status != Status.CONVERGED:
            found = self._from_large_ridge(equations, found)
            iterations += found.outcome.iterations
        outcome = found.outcome._replace(iterations=iterations)
        if outcome.status == Status.CONVERGED and not self.keep(equations, found._replace(outcome=outcome)):
            outcome = outcome._replace(status=Status.NOT_FINITE.value)
        return outcome

    def _from_large_ridge(self, equations: StageEquations, failed: Found) -> Found:
        """Follow the stage along falling ridges, from where weights hardly react."""
        goal, settings = equations.ridge, self.settings
        first = max(
            math.log(settings.first_ridge * equations.curvature * (1.0 + equations.alpha) * equations.largest_variance),
            math.log(goal),
        )

        def at(log_ridge: float) -> StageEquations:
            equations.ridge = math.exp(log_ridge) if log_ridge > math.log(goal) else goal
            return equations

        shape = (equations.clusters, equations.width)
        path = Path(at, first, math.log(goal), np.ravel, lambda x: x.reshape(shape).copy())
        followed = chord_along(
            path,
            at(first).start(),
            _PATH_TOLERANCE,
            min(settings.max_iterations, _PATH_ITERATIONS),
            settings.ridge_steps,
        )
        equations.ridge = goal
        if followed.outcome.status != Status.CONVERGED:
            return failed._replace(outcome=followed.outcome)
        found = chord(equations, followed.x, self.level.tolerance, settings.max_iterations, 0, followed.factors)
        return found._replace(
            outcome=found.outcome._replace(iterations=found.outcome.iterations + followed.outcome.iterations)
        )


def largest_difference(before: Sequence[ClusterPoints], after: Sequence[ClusterPoints]) -> float:
    """Largest change of an order parameter of any cluster, relative to its natural size."""
    return max(
        largest_change(old, new) for old, new in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
    )


def shifts_of(walk: Walk) -> Array:
    """Mean logit without bias, E[w_t].E[x]/sqrt(N), of the solved stages that learn their bias, 0 of others, shape (T,)."""
    found = walk.prior.along(walk.data.centre)
    free = [stage.fixed_bias is None for stage in walk.chain.stages[: len(found)]]
    return np.where(free, found, 0.0)


class Refinement:
    """A chain at successive levels, as :func:`numerics.driver.refine.refine_of` wants it.

    Attributes
    ----------
    walk, before : Walk
        At the last level, and at the one before, or at a coarser one that checks the first.
    outcome : Outcome
        Of the last stage that was tried, with the iterations of all and the largest residual.
    """

    def __init__(self, data: Clusters, chain: Chain, settings: Settings, start: Sequence[Found]) -> None:
        self.problem = data, chain, settings
        self.start = start
        self.walk: Walk | None = None
        self.before: Walk | None = None
        self.outcome = Outcome(Status.NOT_TRIED.value, 0, math.inf, math.inf, 0.0)

    def run(self) -> tuple[bool, float]:
        """Whether all stages converged, and the estimated error of the order parameters."""
        settings = self.problem[2]
        level = Level(0, 0, 1.0, settings.tail, settings.newton_tolerance, False)
        refine = refine_of(_solve, _estimate, _finer).py_func
        ending, _, _, error = refine(self, None, level, settings)
        return ending != FAILED, float(error)

    def solve(self, level: Level) -> int:
        """All stages at a level, from those of the one before."""
        start = self.start if self.walk is None else self.walk.found
        known = () if self.walk is None or len(self.walk.points) < len(self.problem[1]) else self.walk.points
        walk = Walk(*self.problem, level, known)
        residual, iterations = 0.0, self.outcome.iterations
        outcome = self.outcome
        for number in range(len(walk.chain)):
            outcome = walk.solve_next(start[number] if number < len(start) else None)
            iterations += outcome.iterations
            residual = max(residual, outcome.residual)
            if outcome.status != Status.CONVERGED:
                break
        self.outcome = outcome._replace(iterations=iterations, residual=residual)
        if outcome.status != Status.CONVERGED and level.number > 0:
            return FAILED
        self.before, self.walk = self.walk, walk
        return SOLVED if outcome.status == Status.CONVERGED else FAILED

    def checked(self, level: Level) -> Walk | None:
        """The same chain after one Newton step at another level; None if that cannot be done."""
        other = Walk(*self.problem, level, self.walk.points)
        for found in self.walk.found:
            equations = other.equations()
            x = newton_step(equations, found)
            if x is None or not other.keep(equations, found._replace(x=x)):
                return None
        return other


def _solve(refinement: Refinement, _memory: object, level: Level) -> int:
    return refinement.solve(level)


def _estimate(refinement: Refinement, _memory: object, level: Level) -> float:
    """Error of a level's solution: its change from the level before, or, of the first, from a coarser one."""
    walk, settings = refinement.walk, refinement.problem[2]
    if level.number > 0:
        error = largest_difference(refinement.before.points, walk.points)
    else:
        coarser = level._replace(factor=level.factor * settings.check_factor, tail=level.tail * _CHECK_TAIL)
        refinement.before = refinement.checked(coarser)
        if refinement.before is None:
            return math.inf
        error = largest_difference(refinement.before.points, walk.points)
        # The trapezoid rule's error is geometric in 1/step, so that of the finer step is a power of this one.
        error = min(error, max(_SAFETY * error**settings.check_factor, least_gain(walk.steepness()) * error))
    return max(error, refinement.outcome.residual, walk.defect)


def _finer(refinement: Refinement, level: Level) -> tuple[bool, Level]:
    settings = refinement.problem[2]
    return True, Level(
        level.number + 1, 0, level.factor * settings.refinement, level.tail * _TAIL_REFINEMENT,
        settings.newton_tolerance * _TOLERANCE_REFINEMENT, False,
    )  # fmt: skip
