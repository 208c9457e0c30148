"""Solve a chain on a mixture of K classes: stage after stage, on finer and finer nodes, with the error from further scrambles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from numerics.classes.channel import Channel
from numerics.classes.formulas import PinnedLoss, class_losses, coordinates_of
from numerics.classes.losses import ClassLoss
from numerics.classes.pairs import PairChannel, in_pairs
from numerics.classes.prior import ClassGroups, Conjugates, Prior
from numerics.classes.rules import UNKNOWN, Fields, Rule, next_level, pairs, rule, single
from numerics.classes.stage import MatrixLog, StageBlocks, StageEquations, exponential
from numerics.classes.symmetry import first_of_orbits, invariants, permutations_of
from numerics.driver.chord import Found, Path, chord, chord_along, newton_step
from numerics.driver.outcome import Outcome, Status
from numerics.models import Chain, ClassMixture, Estimator, helmert
from theory.class_formulas import ClassFormula

Array = NDArray[np.float64]

CHECKS = 3
"""Further scrambles of the nodes that the error is estimated from.  Fewer may agree by chance."""

DAMPED = 4
"""Steps of half the residual that a cold start begins with."""

UNKNOWN_WIDTH = 16.0

_NO_WIDTH = 1e-6
_REACH = 12.0  # of a Gaussian that counts, in units of its width
_FINENESS = 4  # values of widths in an octave

TOLERANCE = 1e-8
"""Of the last Newton step, in natural units."""

NOISE = 1e-9
"""Of logits whose mean is free, in units of their mean variance over Delta: it keeps overlaps from being singular."""

_NOISE_STEPS = 40
_FIRST_LOG_RIDGE = math.log(30.0)
_RIDGE_STEPS, _PATH_ITERATIONS = 30, 25


@dataclass(frozen=True)
class StagePoint:
    """Saddle point of one stage: order parameters, conjugates, and how they were found."""

    blocks: StageBlocks
    conjugates: Conjugates
    table: Array | None
    outcome: Outcome


@dataclass
class Walk:
    """The stages solved so far, on one set of nodes.

    Parameters
    ----------
    data, stages
        The problem.
    level, scramble, fields
        Of the nodes of every stage (:func:`numerics.classes.rules.rule`, :func:`numerics.classes.rules.pairs`).
    """

    data: ClassMixture
    stages: tuple[Estimator, ...]
    level: int
    scramble: int = 0
    fields: Fields = UNKNOWN
    points: list[StagePoint] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prior = Prior(ClassGroups.of(self.data, self.stages), [loss.pinned for loss in self.losses])
        tables = (stage.loss.table for stage in self.stages)
        formulas = [stage.loss for stage in self.stages if isinstance(stage.loss, ClassFormula)]
        self.prior.noises = [NOISE * loss.free for loss in self.losses]
        self.permutations = tuple(
            found
            for found in permutations_of(self.data, tuple(table for table in tables if table is not None))
            if all(formula.keeps(found) for formula in formulas)
        )

    @property
    def blocks(self) -> list[StageBlocks]:
        """Order parameters of the stages so far."""
        return [point.blocks for point in self.points]

    @property
    def alike(self) -> bool:
        """Whether permutations take any class to any other."""
        return len(set(first_of_orbits(self.permutations, self.data.classes_count))) == 1

    @cached_property
    def losses(self) -> list[ClassLoss | PinnedLoss]:
        """Of the stages, on arrays."""
        return class_losses(self.stages, self.data.classes_count)

    @cached_property
    def basis(self) -> Array:
        """Of the logits, (d, K)."""
        whole = any(loss.free for loss in self.losses)
        return helmert(self.data.classes_count, whole=whole)

    @property
    def d(self) -> int:
        """Coordinates of the logits of a stage."""
        return len(self.basis)

    @property
    def bases(self) -> list[Array]:
        """Of each stage, with 0 for what it does not have."""
        return [coordinates_of(loss, self.basis) for loss in self.losses]

    @property
    def widths(self) -> Fields:
        """Of the cavity fields; a stage that was not solved may have a wide one, and to a target that jumps all are wide."""
        root = math.sqrt(self.data.deltas.max())
        whole, own, ranges = [], [], []
        for blocks, loss in zip(self.blocks, self.losses, strict=False):
            values = root * np.linalg.svd(blocks.cholesky[-1], compute_uv=False)
            whole.append(root * float(np.linalg.norm(np.hstack(list(blocks.cholesky)), 2)))
            own.append(float(values[0]))
            shared = root * sum(np.linalg.norm(block, 2) for block in blocks.cholesky[:-1])
            answers = [root**2 * float(np.linalg.norm(block, 2)) for block in blocks.response]
            # Of forces, and of targets, whose components are of order 1; labels are near one another in the first stage alone.
            targets = 0.0 if loss.form is None else loss.form.taught + (loss.form.labels if not ranges else 0.0)
            pulled = sum(answers[:-1]) + answers[-1] * targets
            ranges.append((_REACH * shared + math.sqrt(2.0) * pulled) / float(values[-1]))
        jumps = any(loss.jumps for loss in self.losses)
        unknown = UNKNOWN_WIDTH if jumps or len(whole) < len(self.stages) else 0.0
        widest = 2.0 ** math.ceil(math.log2(max(*whole, unknown, 1.0)))
        if jumps:
            return Fields(widest)
        return Fields(widest, *(tuple(_rounded(width) for width in widths) for widths in (whole, own, ranges)))

    def channel(self, number: int, nodes: Rule | None = None) -> Channel:
        """The channel of a stage, given those before; on given nodes with all cells."""
        permutations = self.permutations if nodes is None else ()
        where = number, self.d, self.level, self.scramble
        tables = [point.table for point in self.points[: number - 1]]
        rest = self.blocks[: number - 1], tables, permutations
        if nodes is None and self.paired(number):
            # Of longer chains the error is that of the last stages.
            level = self.level // 2 if number < len(self.stages) > 2 else self.level
            if number == 1 and self.fields.apart:
                return Channel(self.data, self.stages[:1], single(where[1], level, self.scramble, self.fields), *rest)
            nodes = pairs(number, where[1], level, self.scramble, self.fields)
            return PairChannel(self.data, self.stages[:number], nodes, *rest)
        nodes = rule(*where, self.fields.widest) if nodes is None else nodes
        return Channel(self.data, self.stages[:number], nodes, *rest)

    def paired(self, number: int) -> bool:
        """Whether the nodes of a stage are pairs of lattices."""
        loss = self.losses[number - 1]
        return self.level >= 0 and in_pairs(loss, self.d) and self.fields.paired(number, self.d)

    def next_level(self, error: float, wanted: float) -> int:
        """See :func:`numerics.classes.rules.next_level`."""
        stages, d = len(self.stages), self.d
        paired = self.paired(stages)
        if not self.fields.own and self.widths.paired(stages, d) and in_pairs(self.losses[-1], d):
            return max(self.level, 0)  # widths are known only now
        return next_level(d * (stages - paired), self.level, error, wanted, self.widths.widest, paired)

    def _equations(self, *, controlled: bool = True) -> StageEquations:
        """Of the next stage, with control variates unless it repeats an earlier one."""
        number = len(self.points) + 1
        controlled = controlled and not self._is_repeated(number)
        pinned = tuple(loss.pinned for loss in self.losses[:number]) if self.d == self.data.classes_count else None
        space = invariants(self.permutations, self.data.classes_count, number - 1, pinned)
        ridge = self.stages[number - 1].ridge
        return StageEquations(self.channel(number), self.prior, ridge, self.blocks, space, controlled=controlled)

    def _is_repeated(self, number: int) -> bool:
        """Whether an earlier stage is the same: nothing is new in its weights then, and control variates leave no noise at all, of
        which there is no logarithm.
        """
        here = replace(self.stages[number - 1], name=None)
        return any(replace(stage, name=None) == here for stage in self.stages[: number - 1])

    def _keep(self, equations: StageEquations, blocks: StageBlocks, outcome: Outcome) -> bool:
        plain = equations.plain(blocks)
        if plain is None:
            return False
        self.points.append(StagePoint(blocks, plain[1], equations.channel.table, outcome))
        self.prior.append(equations.t, equations.ridge, plain[1])
        return True

    def solve_next(self, start: Found | None, max_iterations: int, tolerance: float = TOLERANCE) -> Outcome:
        """Solve the next stage, from a solution on other nodes if there is one; if all fails, follow it from a large ridge."""
        equations = self._equations()
        iterations, found = 0, None
        if start is not None:
            found = chord(equations, start.x, tolerance, max_iterations, 0, start.factors)
            iterations += found.outcome.iterations
            if found.outcome.status != Status.CONVERGED and self.paired(len(self.points) + 1):
                self.fields = self.fields.before(len(self.points) + 1)
                return self.solve_next(start, max_iterations, tolerance)
        if found is None or found.outcome.status != Status.CONVERGED:
            found = chord(equations, equations.start(), tolerance, max_iterations, DAMPED)
            iterations += found.outcome.iterations
        if found.outcome.status != Status.CONVERGED and equations.controls is not None:
            equations.controls = None  # with next to nothing new in its weights the noise of the nodes is a help
            x, damped = (equations.start(), DAMPED) if start is None else (start.x, 0)
            found = chord(equations, x, tolerance, max_iterations, damped)
            iterations += found.outcome.iterations
        if found.outcome.status != Status.CONVERGED and self.losses[len(self.points)].free:
            found = self._from_noise(equations, found, max_iterations)
            iterations += found.outcome.iterations
        if found.outcome.status != Status.CONVERGED and self.level >= 0:
            found = self._from_large_ridge(equations, found, max_iterations)
            iterations += found.outcome.iterations
        outcome = found.outcome._replace(iterations=iterations)
        if outcome.status == Status.CONVERGED and not self._keep(equations, found.x, outcome):
            outcome = outcome._replace(status=Status.NOT_FINITE.value)
        self.found.append(found)
        return outcome

    def _from_noise(self, equations: StageEquations, failed: Found, max_iterations: int) -> Found:
        """Follow the stage along falling noise of its logits: of a loss that is nearly a square their sum hardly varies."""

        def at(log_noise: float) -> StageEquations:
            self.prior.noises[equations.t - 1] = math.exp(log_noise)
            return equations

        path = Path(at, 0.0, math.log(NOISE), _packed, lambda x: _unpacked(x, equations))
        found = chord_along(path, at(0.0).start(), TOLERANCE, min(max_iterations, _PATH_ITERATIONS), _NOISE_STEPS)
        at(math.log(NOISE))
        return found if found.factors is not None else failed._replace(outcome=found.outcome)

    def _from_large_ridge(self, equations: StageEquations, failed: Found, max_iterations: int) -> Found:
        """Follow the stage along falling ridges."""
        goal = equations.ridge

        def at(log_ridge: float) -> StageEquations:
            equations.ridge = math.exp(log_ridge) if log_ridge > math.log(goal) else goal
            return equations

        first = _FIRST_LOG_RIDGE + math.log(max(1.0, float(self.prior.groups.variance.max())))
        first = max(first, math.log(goal))
        path = Path(at, first, math.log(goal), _packed, lambda x: _unpacked(x, equations))
        start = at(first).start()
        found = chord_along(path, start, TOLERANCE, min(max_iterations, _PATH_ITERATIONS), _RIDGE_STEPS)
        equations.ridge = goal
        return found if found.factors is not None else failed._replace(outcome=found.outcome)

    def displaced(self, scramble: int) -> Walk | None:
        """The same chain after one Newton step on other nodes; None if that cannot be done."""
        other = Walk(self.data, self.stages, self.level, scramble, self.fields)
        for point, found in zip(self.points, self.found, strict=True):
            equations = other._equations(controlled=point.conjugates.explained is not None)
            try:
                blocks = newton_step(equations, found)
            except np.linalg.LinAlgError:
                return None
            if blocks is None or not other._keep(equations, blocks, point.outcome):
                return None
        return other


def _rounded(width: float) -> float:
    """To the next of a few values, so that nodes are made once for many problems."""
    return 2.0 ** (math.ceil(_FINENESS * math.log2(max(width, _NO_WIDTH))) / _FINENESS)


def _packed(blocks: StageBlocks) -> Array:
    """Order parameters as one vector in which steps may be extrapolated: logarithms of C_tt and V_tt."""
    cholesky, response = blocks.cholesky.copy(), blocks.response.copy()
    for rows in (cholesky, response):
        rows[-1] = MatrixLog(rows[-1]).value
    return np.concatenate([blocks.mean.ravel(), blocks.bias, cholesky.ravel(), response.ravel()])


def _unpacked(x: Array, equations: StageEquations) -> StageBlocks:
    d, k, t = equations.d, equations.k, equations.t
    mean, bias, cholesky, response = np.split(x, np.cumsum([d * k, d, t * d * d]))
    cholesky, response = cholesky.reshape(t, d, d).copy(), response.reshape(t, d, d).copy()
    for rows in (cholesky, response):
        rows[-1] = exponential(rows[-1])
    return StageBlocks(mean.reshape(d, k).copy(), bias.copy(), cholesky, response)


def solve_walk(
    data: ClassMixture, chain: Chain, level: int, max_iterations: int, start: Sequence[Found] = (),
    tolerance: float = TOLERANCE, fields: Fields = UNKNOWN,
) -> tuple[Walk, Outcome]:  # fmt: skip
    """All stages on one set of nodes; the walk ends where a stage does not converge.

    Parameters
    ----------
    start
        Stages found on other nodes, or at nearby parameters.
    fields
        Which nodes are chosen by.
    """
    walk = Walk(data, chain.resolved(data), level, fields=fields)
    outcome = Outcome(Status.NOT_TRIED.value, 0, math.inf, math.inf, 0.0)
    iterations, residual = 0, 0.0
    for number in range(len(chain)):
        outcome = walk.solve_next(start[number] if number < len(start) else None, max_iterations, tolerance)
        iterations += outcome.iterations
        residual = max(residual, outcome.residual)
        if outcome.status != Status.CONVERGED:
            break
    return walk, outcome._replace(iterations=iterations, residual=residual)
