"""The compiled side of a chain: its functions in the lists the core wants, and its parameters in arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from numerics.codegen.equations import equations_module
from numerics.codegen.losses import LossFunctions, grid_kind, loss_module, pointer
from numerics.deferred import Deferred, special
from numerics.driver.outcome import Outcome
from numerics.models import (
    Block,
    Chain,
    DataModel,
    Estimator,
    Frozen,
    Problem,
    Rule,
    Stage,
    in_equations,
    structured,
    with_parameter,
)
from numerics.scalar.constant_targets import resting_biases
from numerics.scalar.directions import fixed_directions
from numerics.scalar.kernels import layout
from numerics.scalar.kernels.layout import Nodes
from numerics.scalar.limits import classify, separator
from numerics.scalar.points import HARD, MAX_MARGIN, MINIMUM_NORM, StagePoint, effective_ridge
from numerics.scalar.prior import coordinate_groups, tables_key
from numerics.settings import Settings
from theory.bends import JUMP_WIDTH
from theory.losses import LinearLoss, Loss

_entries = Deferred("numerics.scalar.kernels.entries")
_chain = Deferred("numerics.scalar.kernels.chain")
_SEPARATOR_RIDGE = 1e-5  # that gives its cosines with earlier stages
_LEAST_RESPONSE = 1e-12  # that a separator starts from
_OF_DATA, _OF_GROUPS = len(layout.Data._fields), len(layout.Groups._fields) - 1
_NOTHING_KEPT = np.empty(0)
_KINDS = {MINIMUM_NORM: layout.MINIMUM_NORM, MAX_MARGIN: layout.MAX_MARGIN}


def compile_chain(chain: Chain) -> object:
    """Generate, compile (or load from the cache) everything a chain needs, as the core takes it; repeated calls are quick."""
    losses = tuple(structural_loss(stage) for stage in chain.stages)
    return _compile(tuple((loss.expression, loss.symbols, loss.teacher) for loss in losses), _Box(losses))


def compile_losses(chain: Chain) -> None:
    """Compile what simulations need of a chain's losses, as :func:`compile_chain` does for theory; repeated calls are quick."""
    for number, stage in enumerate(chain.stages, start=1):
        if isinstance(stage, Estimator):
            functions, none = LossFunctions(stage.loss), np.empty(0)
            logits = np.empty((0, len(stage.loss.stages(number))))
            functions.value(none, none, logits)
            functions.derivatives(none, none, logits)


def structural_loss(stage: Stage) -> Loss:
    """Loss of a stage of any kind: all that is not an Estimator is linear, or has none that matters."""
    return stage.loss if isinstance(stage, Estimator) else LinearLoss()


class _Box:
    """Carries something past a cache: other arguments are the key."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Box)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=128)
def _compile(structure: tuple, box: _Box) -> object:
    stages = _chain.no_stages()
    for number, loss in enumerate(box.held, start=1):
        _chain.append_stage(stages, compiled_stage(loss, number))
    return stages


def compiled_stage(loss: Loss, number: int, limit: str | None = None) -> layout.Stage:
    """Loss, with its parameters, or the constraint in its place, and equations of a stage as the core takes them."""
    seen = np.array([stage - 1 for stage in loss.stages(number)], dtype=np.int64)
    return layout.Stage(compiled_loss(loss, limit), _stage_equations(number), seen)


def compiled_loss(loss: Loss, limit: str | None = None) -> layout.Loss:
    """A loss with its parameters, or the constraint in its place, as the core takes it."""
    # One entry at least: compiled code takes its address.
    parameters = np.array([*loss.values, 0.0], dtype=float)
    return layout.Loss(
        *loss_module(loss), len(loss.bends), grid_kind(loss), _KINDS.get(limit, layout.TRAINED), parameters
    )


def goals(loss: Loss, number: int, nodes: Nodes, limit: str) -> np.ndarray:
    """What a constraint holds the logit of stage ``number`` to at each of the earlier stages' ``nodes``, shape (n,): ``h*``, where
    the sample's loss is smallest, or the sign of its label for a margin.
    """
    out = np.empty(nodes.labels.size)
    _entries.find_goals(compiled_loss(loss, limit), nodes.labels, nodes.seen(loss.stages(number)), out)
    return out


@lru_cache(maxsize=64)
def _stage_equations(number: int) -> layout.Equations:
    return layout.Equations(*(pointer(getattr(equations_module(number), name)) for name in layout.Equations._fields))


@lru_cache(maxsize=4096)
def target_bends(chain: Chain, number: int) -> np.ndarray:
    """(position, scale) of the bends of later stages' targets as functions of the logit of stage ``number``, shape (e, 2).

    Those of labels that a rule draws come on top.
    """
    rule = chain[number - 1]
    found = {(0.0, float(JUMP_WIDTH))} if isinstance(rule, Rule) and math.isfinite(rule.slope) else set()
    for later in range(number + 1, len(chain) + 1):
        loss = structural_loss(chain[later - 1])
        stages = loss.stages(later)
        if number not in stages:
            continue
        # A bend that moves with another logit is left to the quadrature's error estimate.
        for stage, bends in zip(stages, loss.target_bends_at_values(), strict=True):
            if stage == number:
                found.update(bends)
    return np.array(sorted(found), dtype=float).reshape(-1, 2)


def packed(points: Sequence[StagePoint]) -> np.ndarray:
    """Unknowns of some stages in rows, shape (stages, 2 stages + 2): those of a stage without weights as compiled code has them."""
    rows = np.zeros((len(points), 2 * len(points) + 2))
    for row, point in zip(rows, points, strict=True):
        row[: point.unknowns.size] = np.nan_to_num(point.unknowns, neginf=0.0)
    return rows


def cholesky_triangle(points: Sequence[StagePoint]) -> np.ndarray:
    """Cholesky factor of the overlaps of some stages, row by row."""
    return np.concatenate([np.empty(0), *(point.cholesky_row for point in points)])


def newton(
    data: DataModel, stage: Estimator, nodes: Nodes, prior: np.ndarray, earlier: Sequence[StagePoint], x: np.ndarray,
    accuracy: layout.Accuracy, limit: str | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Outcome]:  # fmt: skip
    """Compiled Newton iteration of one stage on any nodes of the earlier ones.

    Parameters
    ----------
    nodes, prior, earlier
        Nodes on the samples that the stage is trained on, constants of the prior (``WeightMoments.prior_rows``), saddle
        points of the stages before.
    x : array, shape (2t + 2,)
        Starting point; unknowns as in :mod:`numerics.scalar.kernels.layout`.
    accuracy
        See :func:`one_step`, :func:`accuracy_of`.
    limit
        The constraint that takes the place of the loss, if one does.

    Returns
    -------
    unknowns, conjugates : arrays, shape (2t + 2,)
        After the iteration; the last conjugate is alpha E[f].
    updated : array, shape (2t + 1,)
        Order parameters that the conjugates give.
    outcome
    """
    number = len(earlier) + 1
    compiled = compiled_stage(stage.loss, number, limit)
    problem = layout.Problem(
        compiled.loss, compiled.equations, nodes, nodes.seen(stage.loss.stages(number)), prior, cholesky_triangle(earlier),
        np.array([point.response_row[-1] for point in earlier], dtype=float), data.variance,
        _fixed_bias(stage, limit),
    )  # fmt: skip
    unknowns, conjugates, updated = x.copy(), np.empty(2 * number + 2), np.empty(2 * number + 1)
    outcome = _entries.solve_stage(problem, accuracy, unknowns, conjugates, updated)
    return unknowns, conjugates, updated, outcome


def _fixed_bias(stage: Estimator, limit: str | None) -> float:
    """NaN if it is learned.  Beside weights that grow a given one is nothing, whatever it is."""
    if stage.fixed_bias is None:
        return math.nan
    return 0.0 if limit == MAX_MARGIN else stage.fixed_bias


def solve_stage(
    data: DataModel, stage: Estimator, nodes: Nodes, prior: np.ndarray, earlier: Sequence[StagePoint], x: np.ndarray,
    step: float, settings: Settings,
) -> StagePoint:  # fmt: skip
    """:func:`newton` until its tolerance, at a quadrature step."""
    unknowns, conjugates, _, outcome = newton(data, stage, nodes, prior, earlier, x, accuracy_of(settings, step))
    return StagePoint(unknowns, conjugates[:-1], *outcome)


def one_step(step: float, tail: float, *, sharing: bool = True) -> layout.Accuracy:
    """A single Newton step, for what it evaluates; ``sharing``: whether nodes may share points where the loss allows it."""
    return layout.Accuracy(step, tail, 0.0, 1, sharing, False, _NOTHING_KEPT)


def accuracy_of(settings: Settings, step: float) -> layout.Accuracy:
    """Newton's method until its tolerance."""
    return layout.Accuracy(
        step, settings.tail, settings.newton_tolerance, settings.max_iterations, True, False, _NOTHING_KEPT
    )


def _targets(points: Sequence[Problem]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bends of targets at every point, (n, T, e, 2), and their number, (n, T); biases of stages without weights, NaN of others."""
    if isinstance(points, Block):
        known = tuple(_what_targets_know(chain) for _, chain in points.corners)
        # Of the corners that differ from the first in one parameter.
        steps = {k: 2 ** (len(points.varying) - 1 - place) for place, k in enumerate(points.varying)}
        columns = [k for k, step in steps.items() if known[step] != known[0]]
        if not columns:
            return tuple(np.repeat(found, len(points), axis=0) for found in _targets(points.corners[:1]))
        rows, first, place = np.unique(points.values[:, columns], axis=0, return_index=True, return_inverse=True)
        found = _targets_along(known, tuple(columns), rows.tobytes(), _Box((points, first.tolist())))
        return tuple(array[place.ravel()] for array in found)
    bends, at_rest, before = [], [], None
    for data, chain in points:
        known = _what_targets_know(chain)
        if known != before:  # neighbours share most
            here = [target_bends(chain, t) for t in range(1, len(chain) + 1)]
            rest = [math.nan if bias is None else bias for bias in resting_biases(chain.resolved(data))]
        bends.append(here)
        at_rest.append(rest)
        before = known
    most = max(1, *(len(bend) for row in bends for bend in row))
    places = np.zeros((len(points), len(at_rest[0]), most, 2))
    for i, row in enumerate(bends):
        for t, bend in enumerate(row):
            places[i, t, : len(bend)] = bend
    return places, np.array([[len(bend) for bend in row] for row in bends]), np.array(at_rest)


def _what_targets_know(chain: Chain) -> tuple[tuple, ...]:
    """What target_bends and resting_biases depend on: of every stage its loss, its given bias, the slope of a rule."""
    return tuple(tuple(getattr(stage, name, None) for name in ("loss", "bias", "slope")) for stage in chain.stages)


@lru_cache(maxsize=64)
def _targets_along(
    known: tuple, columns: tuple[int, ...], rows: bytes, box: _Box
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of some points of the block in the box; blocks that share their losses share this."""
    points, places = box.held
    return _targets([points[i] for i in places])


class PointArrays:
    """Parameters of many points with chains of one structure, and room for their solutions.

    Attributes
    ----------
    x : array, shape (n, T, 2T + 2)
        Unknowns; starting points where ``started`` (n, T) is 1.
    conjugates, updates : arrays, shape (n, T, 2T + 2)
        Conjugates and alpha E[f]; order parameters after one plain iteration.
    status, iterations, residual, last_step, defect : arrays, shape (n, T)
        Of each stage, as in :class:`numerics.driver.outcome.Outcome`.
    solved, level, error : arrays, shape (n,)
        Stages converged, quadrature level, quadrature error.
    limits : list of n tuples of T
        Which constraint a stage without ridge is; None where it is none.
    vanishing : boolean array, shape (n, T)
        Stages without weights (:mod:`numerics.scalar.constant_targets`); their ``ln C_tt^2`` in ``x`` is 0 and stands for -oo.
    """

    def __init__(self, points: Sequence[Problem], common: bool | None = None) -> None:
        self.common = common
        self.problems, self.limits = _solved_problems(points)
        n, size = len(self.limits), len(self.limits[0])
        self.points = point_parameters(self.problems, self.limits, common)
        data, chain = self.problems[0]
        self.losses = tuple(structural_loss(stage) for stage in chain.stages)
        names = [found.name for found in data.sets]
        self.trained = np.array([[int(name in stage.sets) for name in names] for stage in chain.resolved(data)])
        self.vanishing = self.points.training.kind == layout.VANISHING
        width = 2 * size + 2
        self.states = layout.States(
            np.zeros((n, size, width)), np.zeros((n, size), dtype=np.int64), np.full((n, size, width), math.nan),
            np.full((n, size, width), math.nan), *(np.zeros((n, size), dtype=np.int64) for _ in range(2)),
            *(np.zeros((n, size)) for _ in range(3)),
        )  # fmt: skip
        self.summary = layout.Summary(np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.zeros(n))
        self.x, self.started, self.conjugates, self.updates, *numbers = self.states
        self.status, self.iterations, self.residual, self.last_step, self.defect = numbers
        self.solved, self.level, self.error = self.summary
        self._vectors = self.x.reshape(n, -1)

    def converged(self, settings: Settings) -> np.ndarray:
        """Which points have all stages, a small residual and a small quadrature error, shape (n,)."""
        solved = self.solved == self.status.shape[1]
        return solved & (self.error <= settings.rtol) & (self.residual.max(axis=1) <= settings.residual_tolerance)

    def overlaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Cholesky factors and responses of all points, each of shape (n, T, T), lower triangular."""
        n, size, _ = self.x.shape
        cholesky, response = np.zeros((n, size, size)), np.zeros((n, size, size))
        for t in range(size):
            at = layout.places(t)
            cholesky[:, t, :t] = self.x[:, t, at.couplings : at.norm]
            cholesky[:, t, t] = np.where(self.vanishing[:, t], 0.0, np.exp(0.5 * self.x[:, t, at.norm]))
            response[:, t, :t] = self.x[:, t, at.responses : at.response]
            response[:, t, t] = np.exp(self.x[:, t, at.response])
        return cholesky, response

    def read(self, i: int) -> tuple[StagePoint, ...]:
        """Saddle points of the stages of point ``i``, up to the first that failed."""
        points: list[StagePoint] = []
        for t in range(self.status.shape[1]):
            status, residual = int(self.status[i, t]), float(self.residual[i, t])
            last_step, defect = float(self.last_step[i, t]), float(self.defect[i, t])
            x, conjugates = self.x[i, t, : 2 * t + 4].copy(), self.conjugates[i, t, : 2 * t + 3].copy()
            limit = self.limits[i][t] if self.limits[i][t] in HARD else None
            if self.vanishing[i, t] and status == 0:
                x[2 + t], limit = -math.inf, None
            iterations = int(self.iterations[i, t])
            points.append(StagePoint(x, conjugates, status, iterations, residual, last_step, defect, limit))
            if points[-1].status != 0:
                break
        return tuple(points)

    def structure(self, stages: object) -> layout.Structure:
        """What the points have in common, of the ``stages`` that :func:`compile_chain` gives."""
        directions, first_rows, _ = fixed_directions(self.losses)
        return layout.Structure(stages, self.trained, directions, first_rows)

    def solve(
        self, stages: object, settings: Settings, position: np.ndarray | None = None, anew: Sequence[int] = ()
    ) -> None:
        """Run the compiled solver; with ``position`` (n,) each point continues from those before it, but for those at ``anew``."""
        self._run(stages, settings, position, anew)
        # Where noise is little a separator must be known better than a small ridge says: closed forms start it.
        for i in np.flatnonzero(self.solved < self.status.shape[1]):
            t = int(self.solved[i])
            data, chain = self.problems[i]
            if self.limits[i][t] != MAX_MARGIN or data.ruled or structured(data, chain):
                continue
            for cosines in (True, False) if t else (False,):
                again = PointArrays([self.problems[i]], self.common)
                again.x[0], again.started[0, :t] = self.x[i], 1
                again._start_separator(t, again._near_separator(t, stages, settings) if cosines else np.zeros(t))
                again._run(stages, settings)
                if again.solved[0] > t:
                    break
            for old, new in zip((*self.states, *self.summary), (*again.states, *again.summary), strict=True):
                old[i] = new[0]

    def _near_separator(self, t: int, stages: object, settings: Settings) -> np.ndarray:
        """``C_t1../sqrt(Q_tt)`` of stage ``t``, from 0, of the only point at a small ridge, shape (t,); 0 if that is not solved."""
        ((data, chain),) = self.problems
        soft = PointArrays([with_parameter(data, chain, f"{chain.name(t + 1)}.ridge", _SEPARATOR_RIDGE)], self.common)
        soft.x[0], soft.started[0, :t] = self.x[0], 1
        soft._run(stages, settings)
        if soft.solved[0] <= t:
            return np.zeros(t)
        order = layout.unpack(soft.x[0, t, : 2 * t + 4])
        return order.couplings / math.sqrt(float(order.couplings @ order.couplings) + order.norm**2)

    def _start_separator(self, t: int, cosines: np.ndarray) -> None:
        """Let max-margin stage ``t``, from 0, of the only point start from its m, b and Q, with these ``C_t1../sqrt(Q_tt)``."""
        ((data, chain),) = self.problems
        stage, at = chain.resolved(data)[t], layout.places(t)
        nodes = _entries.label_nodes(data_parameters(data), 1).of(data, stage.sets)
        m, b, q = separator(data, chain, t + 1)
        signs = 2.0 * nodes.labels - 1.0
        held = special.ndtr((1.0 - signs * (nodes.statistics[:, 0] * m + b)) / math.sqrt(data.variance * q))
        free = stage.eta - float(nodes.weight @ held)
        x = self.x[0, t]
        x[:] = 0.0
        x[at.m], x[at.b], x[at.couplings : at.norm] = m, b, math.sqrt(q) * cosines
        x[at.norm] = math.log(q * (1.0 - float(cosines @ cosines)))
        x[at.response] = math.log(max(free, _LEAST_RESPONSE))
        self.started[0, t] = 1

    def _run(
        self, stages: object, settings: Settings, position: np.ndarray | None = None, anew: Sequence[int] = ()
    ) -> None:
        where = np.zeros(len(self.x)) if position is None else np.ascontiguousarray(position, dtype=float)
        structure, compiled, continued = (
            self.structure(stages),
            layout.compiled_settings(settings),
            position is not None,
        )
        if not anew:
            _entries.solve_points(
                structure, self.points, compiled, where, continued, self.states, self._vectors, self.summary
            )
            return
        for first, last in pairwise((0, *anew, len(self.x))):
            data, training, groups = self.points
            points = layout.Point(
                _rows(data, first, last),
                _rows(training, first, last),
                layout.Groups(*(values[first:last] for values in groups[:-1]), groups.tables),
            )
            _entries.solve_points(
                structure, points, compiled, where[first:last], continued, _rows(self.states, first, last),
                self._vectors[first:last], _rows(self.summary, first, last),
            )  # fmt: skip


def _rows(arrays: tuple[np.ndarray, ...], first: int, last: int) -> tuple[np.ndarray, ...]:
    """Some of the points that a named tuple of arrays holds."""
    return type(arrays)(*(values[first:last] for values in arrays))


def _solved_problems(points: Sequence[Problem]) -> tuple[Sequence[Problem], list[tuple[str | None, ...]]]:
    """Problems as they are in the equations, and their limits; a block only where no ridge is 0 and inputs are white."""
    if isinstance(points, Block):
        points = points.in_equations()
        limits = [classify(*point) for point in points.corners]
        if not any(map(any, limits)) and not structured(*points.corners[0]):
            return points, limits[:1] * len(points)
    found = [(data, in_equations(data, chain)) for data, chain in points]
    return found, [classify(*point) for point in found]


def point_parameters(
    points: Sequence[Problem], limits: Sequence[Sequence[str | None]], common: bool | None = None
) -> layout.Point:
    """Parameters of many points with chains of one structure, as they are in the equations, as the core takes them.

    Those of a :class:`numerics.models.Block`, where no ridge is 0, are read off a few of its problems if that is enough.  What may
    differ at a single value in between is left to :func:`_targets`, which sees to all of them.
    """
    rows = (
        points.numbers(lambda some: _numbers(some, limits[:1] * len(some), common))
        if isinstance(points, Block)
        else None
    )
    rows = rows or _numbers(points, limits, common)
    bends, n_bends, at_rest = _targets(points)
    data, training = layout.Data(*rows[:_OF_DATA]), layout.Training(*rows[_OF_DATA:-_OF_GROUPS], bends, n_bends)
    vanishing = np.isfinite(at_rest)
    training.kind[vanishing], training.fixed_bias[vanishing] = layout.VANISHING, at_rest[vanishing]
    tables = coordinate_groups(*points[0], common).tables
    return layout.Point(data, training, layout.Groups(*rows[-_OF_GROUPS:], tables))


def _numbers(
    points: Sequence[Problem], limits: Sequence[Sequence[str | None]], common: bool | None
) -> list[np.ndarray]:
    """Data, then training without bends and as if no weights vanished, then groups without tables, all with an axis of points."""
    n, size = len(points), len(points[0][1])
    n_parameters = max(1, *(len(structural_loss(stage).values) for stage in points[0][1].stages))
    data = map(np.array, zip(*(data_parameters(data) for data, _ in points), strict=True))
    kind, parameters = np.full((n, size), layout.TRAINED), np.zeros((n, size, n_parameters))
    fixed_bias = np.full((n, size), math.nan)
    magnetization, norm_squared, mean_square = np.zeros((3, n, size))
    ridge, mixing = np.ones((2, n, size))
    for i, (point, limits_here) in enumerate(zip(points, limits, strict=True)):
        for t, stage in enumerate(point[1].resolved(point[0])):
            if isinstance(stage, Frozen):
                kind[i, t], fixed_bias[i, t] = layout.GIVEN, stage.bias
                magnetization[i, t], norm_squared[i, t] = stage.magnetization, stage.norm_squared
                mean_square[i, t] = stage.mean_square
                continue
            values, limit = stage.loss.values, limits_here[t]
            kind[i, t] = _KINDS.get(limit, layout.TRAINED)
            ridge[i, t] = effective_ridge(stage, limit)
            parameters[i, t, : len(values)] = values
            if "mixing" in stage.loss.keys:
                mixing[i, t] = values[stage.loss.keys.index("mixing")]
            fixed_bias[i, t] = _fixed_bias(stage, limit)
    training = kind, fixed_bias, magnetization, norm_squared, mean_square, ridge, mixing, parameters
    return [*data, *training, *_stacked_groups(points, common)]


def _stacked_groups(points: Sequence[Problem], common: bool | None) -> tuple[np.ndarray, ...]:
    """Groups of coordinates of all points, but for tables; where a point has fewer, the rest are empty."""
    found = [coordinate_groups(data, chain, common) for data, chain in points]
    n, most, size = len(found), max(len(groups.share) for groups in found), len(points[0][1])
    tables = any(groups.tables.share > 0.0 for groups in found)
    if tables and len({tables_key(data, chain) for data, chain in points}) > 1:
        raise ValueError("points that are solved together must have the same dense inputs")
    arrays = (
        np.zeros((n, most)), np.full((n, most, size), -1), np.zeros((n, most, size)), np.zeros((n, most, size, size)),
        np.zeros((n, most)),
    )  # fmt: skip
    for i, groups in enumerate(found):
        for values, mine in zip(arrays, groups[:-1], strict=True):
            values[i, : len(mine)] = mine
    return arrays


def data_parameters(data: DataModel, *, training: bool = True) -> layout.Data:
    """Parameters of samples as the core takes them; fresh samples have labels without noise, and alpha as their weight."""
    sets = [(found.alpha, found.label_noise) for found in data.sets] if training else [(data.alpha, 0.0)]
    columns = (*np.array(sets, dtype=float).T, *np.array(data.classes, dtype=float).T)
    numbers = data.positive_share, data.variance, data.link_slope, data.disagreement
    return layout.Data(*map(float, numbers), *map(np.ascontiguousarray, columns))
