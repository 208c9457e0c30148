"""The compiled side of a chain: its functions in the lists the core wants, and its parameters in arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from numerics.codegen.equations import EQUATION_NAMES, equations_module
from numerics.codegen.losses import LossFunctions, grid_kind, loss_module
from numerics.deferred import Deferred
from numerics.models import Chain, DataModel, Estimator, Frozen, Stage, in_equations
from numerics.scalar.constant_targets import resting_biases
from numerics.scalar.directions import fixed_directions
from numerics.scalar.nodes import Nodes, StagePoint, class_table, set_table
from numerics.scalar.prior import coordinate_groups
from numerics.settings import Settings
from theory.losses import LinearLoss, Loss

_lists = Deferred("numerics.scalar.kernels.lists")
_kernel = Deferred("numerics.scalar.kernels.chain")


@dataclass(frozen=True, eq=False)
class CompiledChain:
    """What the core needs of a chain's structure, whatever the parameter values.

    Attributes
    ----------
    point_functions, vector_functions : numba typed lists
        ``slopes, targets, bends`` of each loss; equations of each stage.
    shareable, n_bends, n_parameters : integer arrays, shape (T,)
    seen : integer array, shape (T, l)
        Stages (1-based) whose logits a loss looks at, then zeros.
    """

    point_functions: object
    vector_functions: object
    shareable: np.ndarray
    n_bends: np.ndarray
    n_parameters: np.ndarray
    seen: np.ndarray

    @property
    def arguments(self) -> tuple:
        """In the order of ``scalar/kernels/chain.py``."""
        return (
            self.point_functions, self.vector_functions, self.shareable, self.n_bends,
            self.seen, self.n_parameters
        )  # fmt: skip


def compile_chain(chain: Chain) -> CompiledChain:
    """Generate, compile (or load from the cache) everything a chain needs; repeated calls are quick."""
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
    """Carries the losses past the cache: only their structure is the key."""

    def __init__(self, losses: tuple[Loss, ...]) -> None:
        self.losses = losses

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Box)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=128)
def _compile(structure: tuple, box: _Box) -> CompiledChain:
    point_functions, vector_functions = _lists.new_point_functions(), _lists.new_vector_functions()
    losses = box.losses
    for number, loss in enumerate(losses, start=1):
        compiled, equations = loss_module(loss), equations_module(number)
        for name in ("slopes", "targets", "bends"):
            _lists.push_point_function(point_functions, getattr(compiled, name))
        for name in EQUATION_NAMES:
            _lists.push_vector_function(vector_functions, getattr(equations, name))
    seen = np.zeros((len(losses), max(1, *(len(loss.logits) for loss in losses))), dtype=np.int64)
    for number, loss in enumerate(losses, start=1):
        stages = loss.stages(number)
        seen[number - 1, : len(stages)] = stages
    return CompiledChain(
        point_functions,
        vector_functions,
        np.array([grid_kind(loss) for loss in losses], dtype=np.int64),
        np.array([len(loss.bends) for loss in losses], dtype=np.int64),
        np.array([len(loss.symbols) for loss in losses], dtype=np.int64),
        seen,
    )


@lru_cache(maxsize=4096)
def target_bends(chain: Chain, number: int) -> np.ndarray:
    """(position, scale) of the bends of later stages' targets as functions of the logit of stage ``number``, shape (e, 2)."""
    found = set()
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


def cholesky_triangle(points: Sequence[StagePoint]) -> np.ndarray:
    """Cholesky factor of the overlaps of some stages, row by row."""
    return np.concatenate([np.empty(0), *(point.cholesky_row for point in points)])


@lru_cache(maxsize=64)
def _stage_equations(number: int) -> object:
    """Compiled equations of one stage as the core takes them."""
    equations, functions = equations_module(number), _lists.new_vector_functions()
    for name in EQUATION_NAMES:
        _lists.push_vector_function(functions, getattr(equations, name))
    return functions


def newton(
    data: DataModel, stage: Estimator, nodes: Nodes, prior: np.ndarray, earlier: Sequence[StagePoint], x: np.ndarray,
    step: float, tail: float, tolerance: float = 0.0, max_iterations: int = 1, *, shareable: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple]:  # fmt: skip
    """Compiled Newton iteration of one stage on any nodes of the earlier ones; by default a single step, for what it evaluates.

    Parameters
    ----------
    nodes, prior, earlier
        Nodes on the samples that the stage is trained on, constants of the prior (``WeightMoments.prior_constants``), saddle
        points of the stages before.
    x : array, shape (2t + 2,)
        Starting point; unknowns as in ``scalar/kernels/stage.py``.
    shareable : bool
        Whether nodes may share points where the loss allows it.

    Returns
    -------
    unknowns, conjugates : arrays, shape (2t + 2,)
        After the iteration; the last conjugate is alpha E[f].
    updated : array, shape (2t + 1,)
        Order parameters that the conjugates give.
    outcome : tuple
        Status, iterations, residual, last step, defect.
    """
    number, loss = len(earlier) + 1, stage.loss
    compiled, triangle = loss_module(loss), cholesky_triangle(earlier)
    unknowns, conjugates, updated = x.copy(), np.empty(2 * number + 2), np.empty(2 * number + 1)
    outcome = _kernel.solve_stage(
        compiled.slopes, compiled.targets, compiled.bends, len(loss.bends), grid_kind(loss, shareable),
        _stage_equations(number), 0, unknowns, nodes.weight, nodes.statistics, nodes.labels, nodes.seen(loss.stages(number)),
        np.array(loss.values, dtype=float), data.variance, np.concatenate(([data.variance], triangle)), prior, triangle,
        np.array([point.response_row[-1] for point in earlier], dtype=float),
        math.nan if stage.fixed_bias is None else stage.fixed_bias, step, tail, tolerance, max_iterations, conjugates, updated,
    )  # fmt: skip
    return unknowns, conjugates, updated, outcome


def settings_vector(settings: Settings) -> np.ndarray:
    """Settings in the order of ``scalar/kernels/chain.py``."""
    return np.array(
        [
            settings.field_step, settings.outer_step, settings.refinement, settings.tail, settings.newton_tolerance,
            settings.max_iterations, settings.rtol, settings.max_levels, settings.first_ridge, settings.ridge_steps,
            settings.coarse_factor, settings.coarse_tolerance, settings.check_factor, settings.memory,
        ],
        dtype=float,
    )  # fmt: skip


def _bends(points: Sequence[tuple[DataModel, Chain]]) -> list[list[np.ndarray]]:
    """Target bends of every stage at every point; looked up once for neighbours that share their losses."""
    found: list[list[np.ndarray]] = []
    previous: list[object] = []
    for _, chain in points:
        losses = [getattr(stage, "loss", None) for stage in chain.stages]
        same = len(previous) == len(losses) and all(a is b for a, b in zip(losses, previous, strict=True))
        found.append(found[-1] if same else [target_bends(chain, t) for t in range(1, len(chain) + 1)])
        previous = losses
    return found


class PointArrays:
    """Parameters of many points with chains of one structure, and room for their solutions.

    Attributes
    ----------
    x : array, shape (n, T, 2T + 2)
        Unknowns; starting points where ``started`` (n, T) is 1.
    conjugates, updates : arrays, shape (n, T, 2T + 2)
        Conjugates and alpha E[f]; order parameters after one plain iteration.
    stats : array, shape (n, T, 5)
        Status, iterations, residual, last step, defect of each stage.
    trained : integer array, shape (T, d)
        Which stages are trained on which data sets.
    summary : array, shape (n, 3)
        Stages converged, quadrature level, quadrature error.
    vanishing : boolean array, shape (n, T)
        Stages without weights (:mod:`numerics.scalar.constant_targets`); their ``ln C_tt^2`` in ``x`` is 0 and stands for -oo.
    """

    def __init__(self, points: Sequence[tuple[DataModel, Chain]]) -> None:
        points = [(data, in_equations(data, chain)) for data, chain in points]
        n, size = len(points), len(points[0][1])
        width = 2 * size + 2
        data, chain = points[0]
        resolved = [chain.resolved(data) for data, chain in points]
        bends = _bends(points)
        most = max(1, *(len(bend) for row in bends for bend in row))
        self.losses = tuple(structural_loss(stage) for stage in chain.stages)
        n_parameters = max(1, *(len(loss.values) for loss in self.losses))
        patterns = [coordinate_groups(stages) for stages in resolved]
        n_patterns = max(len(found) for found in patterns)
        names = [found.name for found in data.sets]
        self.trained = np.array([[int(name in stage.sets) for name in names] for stage in resolved[0]])
        self.data = np.array([
            (data.alpha, data.positive_share, data.variance, *class_table(data).ravel()) for data, _ in points
        ])  # fmt: skip
        self.sets = np.array([set_table(data) for data, _ in points])
        self.special = np.zeros((n, size, _kernel.N_SPECIAL))
        self.special[:, :, 0] = math.nan
        self.ridges = np.ones((n, size))
        self.pattern_share = np.zeros((n, n_patterns))
        self.pattern_active = np.zeros((n, n_patterns, size))
        self.parameters = np.zeros((n, size, n_parameters))
        self.mixing = np.ones((n, size))
        self.extra = np.zeros((n, size, most, 2))
        self.n_extra = np.zeros((n, size), dtype=np.int64)
        for i, stages in enumerate(resolved):
            at_rest = resting_biases(stages)
            for a, pattern in enumerate(patterns[i]):
                self.pattern_share[i, a] = pattern.share
                self.pattern_active[i, a] = pattern.active
            for t, stage in enumerate(stages):
                self.extra[i, t, : len(bends[i][t])] = bends[i][t]
                self.n_extra[i, t] = len(bends[i][t])
                if isinstance(stage, Frozen):
                    self.special[i, t] = (
                        stage.bias,
                        _kernel.GIVEN,
                        stage.magnetization,
                        stage.norm_squared,
                        stage.mean_square,
                    )
                    continue
                values = stage.loss.values
                self.ridges[i, t] = stage.ridge
                self.parameters[i, t, : len(values)] = values
                if "mixing" in stage.loss.keys:
                    self.mixing[i, t] = values[stage.loss.keys.index("mixing")]
                if stage.fixed_bias is not None:
                    self.special[i, t, 0] = stage.fixed_bias
                if at_rest[t] is not None:
                    self.special[i, t, :2] = at_rest[t], _kernel.VANISHING
        self.vanishing = self.special[:, :, 1] == _kernel.VANISHING
        self.x = np.zeros((n, size, width))
        self.started = np.zeros((n, size), dtype=np.int64)
        self.conjugates = np.full((n, size, width), math.nan)
        self.updates = np.full((n, size, width), math.nan)
        self.stats = np.zeros((n, size, 5))
        self.summary = np.zeros((n, 3))

    def converged(self, settings: Settings) -> np.ndarray:
        """Which points have all stages, a small residual and a small quadrature error, shape (n,)."""
        residual = self.stats[:, :, 2].max(axis=1)
        solved = self.summary[:, 0] == self.stats.shape[1]
        return solved & (self.summary[:, 2] <= settings.rtol) & (residual <= settings.residual_tolerance)

    def overlaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Cholesky factors and responses of all points, each of shape (n, T, T), lower triangular."""
        n, size, _ = self.x.shape
        cholesky, response = np.zeros((n, size, size)), np.zeros((n, size, size))
        for t in range(size):
            cholesky[:, t, :t] = self.x[:, t, 2 : 2 + t]
            cholesky[:, t, t] = np.where(self.vanishing[:, t], 0.0, np.exp(0.5 * self.x[:, t, 2 + t]))
            response[:, t, :t] = self.x[:, t, 3 + t : 3 + 2 * t]
            response[:, t, t] = np.exp(self.x[:, t, 2 * t + 3])
        return cholesky, response

    def solve(self, compiled: CompiledChain, settings: Settings, position: np.ndarray | None = None) -> None:
        """Run the compiled solver; with ``position`` (n,) each point continues from those before it."""
        where = np.zeros(len(self.data)) if position is None else np.ascontiguousarray(position, dtype=float)
        directions, first_rows, exact = fixed_directions(self.losses)
        arguments = (
            replace(compiled, shareable=np.zeros_like(compiled.shareable)).arguments if exact else compiled.arguments
        )
        _kernel.solve_points(
            *arguments, self.trained, directions, self.data, self.sets, self.special, self.ridges, self.pattern_share,
            self.pattern_active, self.parameters, self.mixing, self.extra, self.n_extra, settings_vector(settings), first_rows,
            where, position is not None, self.x, self.started, self.conjugates, self.updates, self.stats, self.summary,
        )  # fmt: skip
