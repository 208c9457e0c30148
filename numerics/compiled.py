"""The compiled side of a chain: its functions in the lists the core wants, and its parameters in arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np

from numerics.codegen import EQUATION_NAMES, core_module, equations_module, loss_module
from numerics.models import Chain, GaussianMixture
from numerics.patterns import nested_patterns
from numerics.settings import Settings


@dataclass(frozen=True, eq=False)
class CompiledChain:
    """What the core needs of a chain's structure, whatever the parameter values.

    Attributes
    ----------
    core : module
        The compiled solver.
    point_functions, vector_functions : numba typed lists
        ``slopes, targets, features`` of each loss; equations of each stage.
    shareable, n_features, n_parameters : integer arrays, shape (T,)
    seen : integer array, shape (T, l)
        Stages (1-based) whose logits a loss looks at, then zeros.
    """

    core: ModuleType
    point_functions: object
    vector_functions: object
    shareable: np.ndarray
    n_features: np.ndarray
    n_parameters: np.ndarray
    seen: np.ndarray

    @property
    def arguments(self) -> tuple:
        """In the order of ``kernels/chain.py``."""
        return (
            self.point_functions, self.vector_functions, self.shareable, self.n_features, self.seen, self.n_parameters
        )  # fmt: skip


def compile_chain(chain: Chain) -> CompiledChain:
    """Generate, compile (or load from the cache) everything a chain needs; repeated calls are quick."""
    return _compile(
        tuple((stage.loss.expression, stage.loss.symbols, stage.loss.teacher) for stage in chain.stages), _Box(chain)
    )


class _Box:
    """Carries the chain past the cache: only the structure is the key."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Box)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=128)
def _compile(structure: tuple, box: _Box) -> CompiledChain:
    chain = box.chain
    core = core_module()
    point_functions, vector_functions = core.new_point_functions(), core.new_vector_functions()
    for number, stage in enumerate(chain.stages, start=1):
        loss, equations = loss_module(stage.loss), equations_module(number)
        for name in ("slopes", "targets", "features"):
            core.push_point_function(point_functions, getattr(loss, name))
        for name in EQUATION_NAMES:
            core.push_vector_function(vector_functions, getattr(equations, name))
    losses = [stage.loss for stage in chain.stages]
    seen = np.zeros((len(chain), max(1, *(len(loss.logits) for loss in losses))), dtype=np.int64)
    for number, loss in enumerate(losses, start=1):
        stages = loss.stages(number)
        seen[number - 1, : len(stages)] = stages
    return CompiledChain(
        core,
        point_functions,
        vector_functions,
        np.array([loss.split is not None for loss in losses], dtype=np.int64),
        np.array([len(loss.features) for loss in losses], dtype=np.int64),
        np.array([len(loss.symbols) for loss in losses], dtype=np.int64),
        seen,
    )


@lru_cache(maxsize=4096)
def target_features(chain: Chain, number: int) -> np.ndarray:
    """(position, scale) of the bends of later stages' targets as functions of the logit of stage ``number``, shape (e, 2)."""
    found = set()
    for later in range(number + 1, len(chain) + 1):
        loss = chain[later - 1].loss
        stages = loss.stages(later)
        if number not in stages:
            continue
        values = dict(zip(loss.symbols, loss.values, strict=True))
        for stage, bends in zip(stages, loss.target_features, strict=True):
            if stage != number:
                continue
            for bend in bends:
                centre, scale = (expression.subs(values) for expression in bend)
                # A bend that moves with another logit is left to the quadrature's error estimate.
                if centre.is_number and scale.is_number:
                    found.add((float(centre), float(scale)))
    return np.array(sorted(found), dtype=float).reshape(-1, 2)


def settings_vector(settings: Settings) -> np.ndarray:
    """Settings in the order of ``kernels/chain.py``."""
    return np.array(
        [
            settings.field_step, settings.outer_step, settings.refinement, settings.tail, settings.newton_tolerance,
            settings.max_iterations, settings.rtol, settings.max_levels, settings.first_ridge, settings.ridge_steps,
            settings.coarse_factor, settings.coarse_tolerance, settings.check_factor,
        ],
        dtype=float,
    )  # fmt: skip


def _bends(points: Sequence[tuple[GaussianMixture, Chain]]) -> list[list[np.ndarray]]:
    """Target features of every stage at every point; looked up once for neighbours that share their losses."""
    found: list[list[np.ndarray]] = []
    previous: list[object] = []
    for _, chain in points:
        losses = [stage.loss for stage in chain.stages]
        same = len(previous) == len(losses) and all(a is b for a, b in zip(losses, previous, strict=True))
        found.append(found[-1] if same else [target_features(chain, t) for t in range(1, len(chain) + 1)])
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
    summary : array, shape (n, 3)
        Stages converged, quadrature level, quadrature error.
    """

    def __init__(self, points: Sequence[tuple[GaussianMixture, Chain]]) -> None:
        n, size = len(points), len(points[0][1])
        width = 2 * size + 2
        etas = np.array([[stage.eta for stage in chain.stages] for _, chain in points])
        bends = _bends(points)
        most = max(1, *(len(bend) for row in bends for bend in row))
        n_parameters = max(1, *(len(stage.loss.values) for stage in points[0][1].stages))
        self.data = np.array([(data.alpha, data.rho, data.delta) for data, _ in points])
        self.ridges = np.array([[stage.ridge for stage in chain.stages] for _, chain in points], dtype=float)
        self.pattern_share = np.zeros((n, size))
        self.pattern_active = np.zeros((n, size, size))
        self.parameters = np.zeros((n, size, n_parameters))
        self.mixing = np.ones((n, size))
        self.extra = np.zeros((n, size, most, 2))
        self.n_extra = np.zeros((n, size), dtype=np.int64)
        for i, (_, chain) in enumerate(points):
            for a, pattern in enumerate(nested_patterns(tuple(etas[i].tolist()))):
                self.pattern_share[i, a] = pattern.share
                self.pattern_active[i, a] = pattern.active
            for t, stage in enumerate(chain.stages):
                values = stage.loss.values
                self.parameters[i, t, : len(values)] = values
                if "mixing" in stage.loss.keys:
                    self.mixing[i, t] = values[stage.loss.keys.index("mixing")]
                self.extra[i, t, : len(bends[i][t])] = bends[i][t]
                self.n_extra[i, t] = len(bends[i][t])
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
            cholesky[:, t, t] = np.exp(0.5 * self.x[:, t, 2 + t])
            response[:, t, :t] = self.x[:, t, 3 + t : 3 + 2 * t]
            response[:, t, t] = np.exp(self.x[:, t, 2 * t + 3])
        return cholesky, response

    def solve(self, compiled: CompiledChain, settings: Settings, position: np.ndarray | None = None) -> None:
        """Run the compiled solver; with ``position`` (n,) each point continues from those before it."""
        where = np.zeros(len(self.data)) if position is None else np.ascontiguousarray(position, dtype=float)
        compiled.core.solve_points(
            *compiled.arguments, self.data, self.ridges, self.pattern_share, self.pattern_active, self.parameters,
            self.mixing, self.extra, self.n_extra, settings_vector(settings), where, position is not None, self.x,
            self.started, self.conjugates, self.updates, self.stats, self.summary,
        )  # fmt: skip
