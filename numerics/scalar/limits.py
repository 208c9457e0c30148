"""The limit ridge -> 0+ of a stage: which of three it is, and the saddle point where it is not an ordinary one.

``Estimator(loss, ridge=0)`` stands for that limit.  With ``alpha*`` the separability threshold of the trained inputs:

- *maximum likelihood*: ``alpha > eta`` and every sample's loss has its minimum at a finite logit, or logistic labels and
  ``alpha > alpha*``.  The equations are regular at ridge 0.
- *minimum norm*: ``alpha < eta`` and every sample's loss has its minimum at a finite logit ``h*``.  Every sample reaches it,
  and among the weights that do this the shortest are chosen.
- *max margin*: logistic labels and ``alpha < alpha*``.  The weights become infinite; their direction is that of the shortest
  weights with ``s h >= 1`` on every sample.

The last two minimise ``|w|^2`` under a hard constraint; see :mod:`numerics.scalar.constrained`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import sympy

from numerics import thresholds
from numerics.codegen.losses import LossFunctions
from numerics.deferred import Deferred
from numerics.driver.outcome import Status
from numerics.models import (
    Chain,
    DataModel,
    Estimator,
    Frozen,
    ParameterError,
    in_equations,
    total_alpha,
)
from numerics.scalar.compiled import PointArrays, accuracy_of, cholesky_triangle, compile_chain, newton, target_bends
from numerics.scalar.constrained import (
    HARD,
    MAX_MARGIN,
    MINIMUM_NORM,
    SMALLEST_SHARE,
    HardPoint,
    HardStage,
    constraint,
    effective,
    extend_hard,
    with_values,
)
from numerics.scalar.kernels.layout import Nodes
from numerics.scalar.nodes import extend, label_nodes, sharp_crossings
from numerics.scalar.points import StagePoint
from numerics.scalar.prior import WeightMoments, coordinate_groups
from numerics.settings import Settings
from theory.functions import sigmoid, step
from theory.losses import Loss
from theory.symbols import h, logit, y

MAXIMUM_LIKELIHOOD = "maximum likelihood"

RESOLUTION = 1e-7
"""Relative distance of ``alpha`` from a threshold below which the limit, which diverges there, counts as unresolvable."""

NO_RIDGE = 1e-200
"""What the compiled solver is given for 0: it vanishes beside any response, and has a logarithm."""

FIRST_RIDGES = (1e-5, 1e-3, 1e-7, 1e-1)
"""Small ridges whose solutions start the search for the limit, one after the other until it succeeds."""

PATH_STEPS = 40
"""Ridges in the path that maximum likelihood is followed along where a start from the above fails."""

EDGE_RESOLUTION = 0.5
"""Distance from the margin, in widths of the field, by which neighbouring nodes may differ."""

SEARCHES = 10
"""Attempts to find the place where training samples come to the margin."""

NEWTON_TOLERANCE = 1e-12
"""Scaled size of the last Newton step of a maximum-likelihood stage, whose large responses amplify errors."""

NO_RESPONSE = -690.0
"""``ln V_tt`` of given weights, as the compiled solver has it."""

_entries = Deferred("numerics.scalar.kernels.entries")
_GIVEN = Frozen(0.0, 1.0)
_FAR = 1e9  # logits at which gradients have their limiting signs
_PROBES = (-3.0, -0.3, 0.0, 0.3, 3.0)  # earlier logits, in units of the scale of the loss's target


# Which limit


def classify(data: DataModel, chain: Chain) -> tuple[str | None, ...]:
    """The limit that each stage stands for; None where its ridge is positive.

    Raises
    ------
    ParameterError
        Naming the ridge, where there is no limit, or ``alpha`` is too close to the threshold where it diverges.
    """
    limits = tuple(
        _classify_stage(data, stage, chain.name(number)) if getattr(stage, "ridge", None) == 0 else None
        for number, stage in enumerate(chain.stages, start=1)
    )
    for number, stage in enumerate(chain.stages, start=1):
        for seen in _visible(stage.loss, number) if isinstance(stage, Estimator) else ():
            if limits[seen - 1] == MAX_MARGIN:
                alpha, threshold = _separability(data, chain[seen - 1])
                raise ParameterError(
                    f"ridge of {chain.name(seen)} must be > 0: at alpha={alpha:g} its labels are separable, its logits "
                    f"grow without bound as ridge -> 0, and {chain.name(number)} looks at them; use a small ridge, or an "
                    f"alpha above the separability threshold {threshold:.8g}"
                )
    return limits


def _separability(data: DataModel, stage: Estimator) -> tuple[float, float]:
    """alpha of the data sets that a stage is trained on, and the alpha up to which it can separate their labels."""
    sets = [data.data_set(name) for name in stage.sets]
    alpha = sum(found.alpha for found in sets)
    flipped = min(sum(found.alpha * found.label_noise for found in sets) / alpha, 0.5)
    free = stage.bias is None
    return alpha, thresholds.separation(data, stage.eta, flipped, free).threshold()


def of_labels(data: DataModel, loss: Loss) -> Loss:
    """The loss as a function of the label, where a rule gives it: of samples on its positive side."""
    return replace(loss, expression=loss.expression.subs(step(logit(1)), 1)) if data.ruled else loss


def _classify_stage(data: DataModel, stage: Estimator, name: str) -> str:
    alpha = total_alpha(data, stage.sets)
    if minimum_is_finite(stage.loss):
        threshold, below = stage.eta, MINIMUM_NORM
        reason = f"alpha = eta = {stage.eta:g}, where the weights just fit every sample and their norm diverges"
    elif is_logistic(of_labels(data, stage.loss)):
        _, threshold = _separability(data, stage)
        below = MAX_MARGIN
        reason = f"the separability threshold alpha = {threshold:.8g}, where the norm diverges and the margin vanishes"
    else:
        raise ParameterError(
            f"ridge of {name} must be > 0: for {stage.loss!r} a sample's loss has no minimum at a finite logit, and no limit "
            f"ridge -> 0 is known (logistic losses on hard labels have one)"
        )
    if math.isfinite(threshold) and abs(alpha - threshold) <= RESOLUTION * threshold:
        raise ParameterError(f"ridge of {name} must be > 0 at alpha={alpha:.10g}: this is {reason}")
    return below if alpha < threshold else MAXIMUM_LIKELIHOOD


def _visible(loss: Loss, number: int) -> tuple[int, ...]:
    """Stages whose logits the gradient depends on at these parameter values (not those behind ``mixing=0``)."""
    present = with_values(loss, loss.gradient).free_symbols
    return tuple(stage for symbol, stage in zip(loss.logits, loss.stages(number), strict=True) if symbol in present)


@lru_cache(maxsize=1024)
def minimum_is_finite(loss: Loss) -> bool:
    """Whether the loss of every sample has its minimum, and a curvature there, at a finite logit.

    Convexity makes it enough that the gradient has both signs.  It is looked at for both labels, and for earlier logits
    spread over the scales of the loss's target.
    """
    functions = LossFunctions(loss)
    values = dict(zip(loss.symbols, loss.values, strict=True))
    places = []
    for bends in loss.target_bends:
        entries = [tuple(entry.subs(values) for entry in bend) for bend in bends]
        numbers = [(float(c), float(scale)) for c, scale in entries if c.is_number and scale.is_number]
        scales = [(c, scale) for c, scale in numbers if math.isfinite(c) and 0 < scale < math.inf]
        scales = scales or [(0.0, 1.0), (0.0, 100.0)]
        places.append(sorted({centre + scale * probe for centre, scale in scales for probe in _PROBES}))
    grids = np.meshgrid(*places, indexing="ij") if places else []
    logits = np.column_stack([grid.ravel() for grid in grids]) if places else np.empty((1, 0))
    n = len(logits)
    for label in (0.0, 1.0):
        labels = np.full(n, label)
        with np.errstate(all="ignore"):
            low, _ = functions.derivatives(np.full(n, -_FAR), labels, logits)
            high, _ = functions.derivatives(np.full(n, _FAR), labels, logits)
        if not (np.all(low < 0) and np.all(high > 0)):
            return False
    return True


@lru_cache(maxsize=1024)
def is_logistic(loss: Loss) -> bool:
    """Whether the gradient is ``sum_k a_k sigmoid(c_k h)`` (``a_k, c_k > 0``) minus its limit at the label's side.

    The loss of a sample then falls to its infimum like an exponential of ``s h``, alike for both labels.
    """
    if loss.split is None:
        return False
    slope, target = (with_values(loss, part) for part in loss.split)
    slope = slope.replace(sympy.tanh, lambda x: 2 * sigmoid(2 * x) - 1)
    constant, varying = sympy.expand(slope).as_independent(h, as_Add=True)
    total = sympy.Integer(0)
    for term in sympy.Add.make_args(varying):
        factor, function = term.as_independent(h, as_Add=False)
        if not isinstance(function, sigmoid) or not factor.is_positive:
            return False
        rate = sympy.diff(function.args[0], h)
        if not rate.is_positive or not rate.is_number:
            return False
        total += factor
    limits = (constant, constant + total)
    return total != 0 and all(
        sympy.expand(target.subs(y, label)).free_symbols == set()
        and abs(float(target.subs(y, label) - limit)) <= 1e-14 * float(total)
        for label, limit in enumerate(limits)
    )


# Whole chains


@dataclass(frozen=True)
class LimitPoints:
    """Saddle points of the stages solved, the last one perhaps without success; quadrature level and error estimate."""

    points: tuple[StagePoint, ...]
    level: int
    error: float


def solve_limit(data: DataModel, chain: Chain, settings: Settings) -> LimitPoints:
    """Saddle points of a chain in which some ridges are 0.

    Raises
    ------
    ParameterError
        Where a limit does not exist (:func:`classify`).
    """
    chain = in_equations(data, chain)
    limits = classify(data, chain)
    hard = [number for number, limit in enumerate(limits, start=1) if limit in HARD]
    if not hard:
        return _solve_regular(data, chain, settings)
    return _Assembly(data, chain, limits, settings).solve()


def without_ridge(stage: Estimator | Frozen, ridge: float = NO_RIDGE) -> Estimator | Frozen:
    """With another ridge if it is 0: by default what stands for 0 in the compiled equations, which have logarithms."""
    return replace(stage, ridge=ridge) if isinstance(stage, Estimator) and stage.ridge == 0 else stage


def _small_ridges(chain: Chain, ridge: float) -> Chain:
    return replace(chain, stages=tuple(without_ridge(stage, ridge) for stage in chain.stages))


def _solve_regular(data: DataModel, chain: Chain, settings: Settings) -> LimitPoints:
    """Compiled solution of a chain without constrained stages, along falling ridges if need be."""
    compiled = compile_chain(chain)
    settings = replace(settings, newton_tolerance=min(settings.newton_tolerance, NEWTON_TOLERANCE))
    if all(getattr(stage, "ridge", None) != 0 for stage in chain.stages):
        arrays = PointArrays([(data, chain)])
        arrays.solve(compiled, settings)
        return _read(arrays, len(chain))
    best = None
    starts = [(ridge,) for ridge in FIRST_RIDGES]
    starts.append(tuple(np.geomspace(1.0, 1e-16, PATH_STEPS)))
    for path in starts:
        started = None
        for ridge in (*path, NO_RIDGE):
            arrays = PointArrays([(data, _small_ridges(chain, float(ridge)))])
            if started is not None:
                arrays.x[:], arrays.started[:] = started.x, 1
            arrays.solve(compiled, settings)
            if arrays.solved[0] < len(chain):
                break
            started = arrays
        found = _read(arrays, len(chain))
        if best is None or found.error < best.error or len(found.points) > len(best.points):
            best = found
        if ridge == NO_RIDGE and all(point.status == 0 for point in found.points) and found.error <= settings.rtol:
            return found
    return best


@lru_cache(maxsize=8)
def _at_small_ridge(
    data: DataModel, chain: Chain, ridge: float, settings: Settings
) -> tuple[StagePoint, ...]:  # fmt: skip
    """What starts the search for a limit; kept, because several stages of a chain ask for the same."""
    return _solve_regular(data, _small_ridges(chain, ridge), settings).points


def read_points(arrays: PointArrays, i: int, n_stages: int) -> tuple[StagePoint, ...]:
    """Saddle points of the stages of point ``i``, up to the first that failed."""
    points: list[StagePoint] = []
    for t in range(n_stages):
        status, residual = int(arrays.status[i, t]), float(arrays.residual[i, t])
        last_step, defect = float(arrays.last_step[i, t]), float(arrays.defect[i, t])
        x, conjugates = arrays.x[i, t, : 2 * t + 4].copy(), arrays.conjugates[i, t, : 2 * t + 3].copy()
        if arrays.vanishing[i, t] and status == 0:
            x[2 + t] = -math.inf
        points.append(StagePoint(x, conjugates, status, int(arrays.iterations[i, t]), residual, last_step, defect))
        if points[-1].status != 0:
            break
    return tuple(points)


def _read(arrays: PointArrays, n_stages: int) -> LimitPoints:
    """The only point of ``arrays``."""
    return LimitPoints(read_points(arrays, 0, n_stages), int(arrays.level[0]), float(arrays.error[0]))


@dataclass(frozen=True)
class _Assembly:
    """A chain with constrained stages, solved stage by stage at rising quadrature levels."""

    data: DataModel
    chain: Chain
    limits: tuple[str | None, ...]
    settings: Settings

    def solve(self) -> LimitPoints:
        first = next(k for k, limit in enumerate(self.limits) if limit in HARD)
        prefix = LimitPoints((), 0, 0.0)
        if first > 0:
            prefix = _solve_regular(self.data, replace(self.chain, stages=self.chain.stages[:first]), self.settings)
            if any(point.status != 0 for point in prefix.points):
                return prefix
        points, level, error = prefix.points, prefix.level, math.inf
        starts: list[StagePoint | None] = [None] * len(self.chain)
        for level in range(prefix.level, max(prefix.level + 1, self.settings.max_levels) + 1):
            before, points = points, self._solve_level(prefix.points, starts, level)
            if points[-1].status != 0:
                break
            starts = [*points, *[None] * (len(self.chain) - len(points))]
            if level > prefix.level:
                error = max(prefix.error, _largest_change(before, points, self.alphas))
                if error <= self.settings.rtol:
                    break
        return LimitPoints(points, level, error)

    @cached_property
    def stages(self) -> tuple[Estimator | Frozen, ...]:
        return self.chain.resolved(self.data)

    @cached_property
    def alphas(self) -> np.ndarray:
        """Samples per input that each stage is trained on, shape (stages,)."""
        return np.array([total_alpha(self.data, stage.sets) for stage in self.stages])

    def _solve_level(
        self, prefix: Sequence[StagePoint], starts: Sequence[StagePoint | None], level: int
    ) -> tuple[StagePoint, ...]:
        """All stages at one level; stops at the first that fails."""
        data, chain, settings = self.data, self.chain, self.settings
        step = settings.field_step * settings.refinement**level
        moments = WeightMoments(coordinate_groups(self.data, self.chain))
        nodes, points = label_nodes(data), []
        for number, stage in enumerate(self.stages, start=1):
            limit = self.limits[number - 1]
            if number <= len(prefix):
                point = prefix[number - 1]
            elif isinstance(stage, Frozen):
                point = given_point(stage, points)
            elif limit in HARD:
                point = self._solve_hard(number, nodes, moments, points, starts[number - 1], level)
            else:
                point = self._solve_soft(number, nodes, moments, points, starts[number - 1], step)
            points.append(point)
            if point.status != 0 or number == len(chain):
                break
            moments.add_stage(number, effective(stage, point), point.conjugates)
            nodes = extend_any(nodes, data, chain, number, point, settings, level, training=True)
        return tuple(points)

    def _solve_hard(
        self, number: int, nodes: Nodes, moments: WeightMoments, points: Sequence[StagePoint], start: StagePoint | None,
        level: int,
    ) -> StagePoint:  # fmt: skip
        limit = self.limits[number - 1]
        prior, triangle = moments.prior_constants(number - 1, 1.0), cholesky_triangle(points)
        for _ in range(SEARCHES):
            nodes = nodes.of(self.data, self.chain[number - 1].sets)
            goal = constraint(self.chain, number, limit, nodes)
            if not np.all(np.isfinite(goal)):
                unknown = np.full(2 * number + 2, math.nan)
                return HardPoint(unknown, unknown[:-1], Status.NOT_FINITE.value, 0, math.inf, math.inf, 0.0, limit)
            stage = HardStage(number, limit, nodes, goal, self.data, prior, triangle, self.chain[number - 1].bias)
            if start is not None:
                point = stage.solve(start.variables)
            elif limit == MAX_MARGIN and number > 1 + self.chain.hidden:
                point = stage.solve(self._overlapping(number, stage.start()))
            else:
                point = stage.solve(stage.start())
            if limit == MINIMUM_NORM or point.status != 0 or number != 2 or isinstance(points[0], HardPoint):
                return point
            # Whether a sample is on the margin may change more quickly with the teacher's logit than its nodes follow.
            bends = sharp_crossings(stage.distance(point.variables), nodes, EDGE_RESOLUTION)
            if not bends:
                return point
            start = point
            nodes = extend_any(
                label_nodes(self.data), self.data, self.chain, 1, points[0], self.settings, level, training=True,
                bends=tuple(bends.values()),
            )  # fmt: skip
        return point

    def _overlapping(self, number: int, x: np.ndarray) -> np.ndarray:
        """The separator's first guess with overlaps read off a solution at small ridge."""
        small = _at_small_ridge(self.data, self.chain, FIRST_RIDGES[0], self.settings)
        if len(small) < number or small[number - 1].status != 0:
            return x
        k, near, known = number - 1, small[number - 1], self.chain.hidden
        row = near.cholesky_row / math.sqrt(near.norm_squared)
        squared = x[2 : 2 + k] @ x[2 : 2 + k] + x[2 + k]
        out = x.copy()
        out[2 + known : 2 + k] = math.sqrt(squared) * row[known:-1]
        left = squared - out[2 : 2 + k] @ out[2 : 2 + k]
        if left > 0.0:
            out[2 + k] = left
            return out
        return x

    def _solve_soft(
        self, number: int, nodes: Nodes, moments: WeightMoments, points: Sequence[StagePoint], start: StagePoint | None,
        step: float,
    ) -> StagePoint:  # fmt: skip
        """An ordinary stage after a constrained one."""
        stage = self.stages[number - 1]
        constants = moments.prior_rows(number - 1, stage.ridge)
        nodes = nodes.of(self.data, stage.sets)
        if start is not None:
            return solve_stage(self.data, stage, nodes, constants, points, start.unknowns, step, self.settings)
        point = None
        for small in FIRST_RIDGES:
            near = _at_small_ridge(self.data, self.chain, small, self.settings)
            if len(near) < number or near[number - 1].status != 0:
                continue
            x = near[number - 1].unknowns.copy()
            for s, earlier in enumerate(points):
                if isinstance(earlier, HardPoint):
                    # f = ridge r f', where r is how much longer the weights are than in the constrained stage's units.
                    r = math.sqrt(near[s].norm_squared / earlier.norm_squared) if earlier.limit == MAX_MARGIN else 1.0
                    x[2 + number + s] *= small * r
            point = solve_stage(self.data, stage, nodes, constants, points, x, step, self.settings)
            if point.status == 0:
                return point
        if point is None:
            x = np.full(2 * number + 2, math.nan)
            return StagePoint(x, x[:-1].copy(), Status.NOT_TRIED.value, 0, math.inf, math.inf, math.inf)
        return point


def solve_stage(
    data: DataModel, stage: Estimator, nodes: Nodes, prior: np.ndarray, earlier: Sequence[StagePoint], x: np.ndarray,
    step: float, settings: Settings,
) -> StagePoint:  # fmt: skip
    """One compiled Newton solve of an ordinary stage on any nodes of the earlier ones.

    Parameters
    ----------
    nodes, prior, earlier
        Nodes on training samples, constants of the prior (``WeightMoments.prior_constants``), saddle points.
    x : array, shape (2t + 2,)
        Starting point; unknowns as in :mod:`numerics.scalar.kernels.layout`.
    """
    unknowns, conjugates, _, outcome = newton(data, stage, nodes, prior, earlier, x, accuracy_of(settings, step))
    return StagePoint(unknowns, conjugates[:-1], *outcome)


def extend_any(
    nodes: Nodes, data: DataModel, chain: Chain, number: int, point: StagePoint, settings: Settings, level: int, *,
    training: bool, refinement: float = 1.0, bends: Sequence[tuple[float, float]] = (), sharpness: float = 0.0,
) -> Nodes:  # fmt: skip
    """``nodes`` of the stages before ``number``, extended by that stage, constrained or not.

    ``refinement`` divides the step of this integration; ``bends`` are (position, scale) of what is going to be averaged as a
    function of this stage's logit, beyond what later targets do; ``sharpness`` as in :func:`extend`.
    """
    step = settings.outer_step * settings.refinement**level / refinement
    if point.vanishes:
        return _entries.with_constant_logit(nodes, point.bias)
    wanted = sorted({*map(tuple, target_bends(chain, number)), *bends})
    extra = np.array(wanted, dtype=float).reshape(-1, 2)
    stage, parts = chain.resolved(data)[number - 1], []
    if training and isinstance(point, HardPoint):
        trained = nodes.trained(data, stage.sets)
        parts.append(extend_hard(nodes.rows(trained), data, chain, number, point, step, settings.tail))
        if trained.all():
            return parts[0]
        # No constraint holds on the samples it is not trained on: there it is a stage with given weights.
        nodes, stage = nodes.rows(~trained), _GIVEN
    extended, _ = extend(
        nodes, data, stage, point, step, settings.tail, training=training, extra=extra, sharpness=sharpness
    )  # fmt: skip
    return Nodes.joined([*parts, extended])


def given_point(stage: Frozen, points: Sequence[StagePoint]) -> StagePoint:
    """Given weights ``w = m v + noise`` after other stages: their overlaps are those of ``m v``."""
    k, m = len(points), stage.magnetization
    factor, overlaps = np.zeros((k, k)), np.array([m * point.magnetization for point in points])
    for t, point in enumerate(points):
        factor[t, : t + 1] = point.cholesky_row
    row = np.linalg.solve(factor, overlaps) if k else overlaps
    rest = max(stage.norm_squared - float(row @ row), SMALLEST_SHARE * stage.norm_squared)
    x = np.concatenate(([m, stage.bias], row, [math.log(rest)], np.zeros(k), [NO_RESPONSE]))
    return StagePoint(x, np.zeros(x.size - 1), 0, 0, 0.0, 0.0, 0.0)


def _largest_change(before: Sequence[StagePoint], after: Sequence[StagePoint], alphas: np.ndarray) -> float:
    """Largest change of an order parameter, relative to its natural size."""
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if old is new:
            continue
        size = math.sqrt(new.norm_squared)
        responses = new.response_row
        chain = after[: new.earlier + 1]
        own = np.array([point.response_row[-1] for point in chain])
        sizes = np.maximum(np.abs(responses), np.sqrt(own * own[-1]))
        if isinstance(new, HardPoint):
            # The response that would move a logit by the width of its field: Qh_ss = alpha Delta E[f_s^2].
            forces = np.array([point.conjugates[1 + point.earlier] for point in chain[:-1]])
            with np.errstate(divide="ignore", invalid="ignore"):  # given weights have neither samples nor forces
                sizes[:-1] = np.fmax(sizes[:-1], size * np.sqrt(alphas[: new.earlier] / forces))
        worst = max(
            worst,
            abs(new.magnetization - old.magnetization) / size,
            abs(new.bias - old.bias) / (1.0 + size),
            float(np.max(np.abs(new.cholesky_row[:-1] - old.cholesky_row[:-1]), initial=0.0)) / size,
            abs(new.cholesky_row[-1] ** 2 - old.cholesky_row[-1] ** 2) / size**2,
            float(np.max(np.abs(responses - old.response_row) / sizes)),
        )
    return worst
