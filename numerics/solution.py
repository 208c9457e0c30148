"""What ``solve`` returns: order parameters, how well they were found, and everything that is read off them.

Examples
--------
>>> OBSERVABLES["train_error"]
'training error'
>>> all(hasattr(StageSolution, name) for name in OBSERVABLES)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from numerics import crossings, formulas, thresholds
from numerics.codegen import LossFunctions, equations_module
from numerics.deferred import special
from numerics.directions import sobol_directions
from numerics.hard_stage import MAX_MARGIN, MINIMUM_NORM, HardPoint, constraint, effective_ridge, label_threshold
from numerics.limits import MAXIMUM_LIKELIHOOD, extend_any
from numerics.models import (
    TRAINING,
    Chain,
    Estimator,
    Frozen,
    GaussianMixture,
    parameter_values,
    total_alpha,
)
from numerics.nodes import (
    Nodes,
    StagePoint,
    extend,
    label_nodes,
    largest_jump,
    sharp_crossings,
    sharpness_along,
    stage_loss,
)
from numerics.patterns import WeightMoments, mask_patterns
from numerics.population import Population
from numerics.settings import Settings
from numerics.spectral import SpectralStages
from numerics.square_training import SquareTraining
from theory.functions import step
from theory.losses import CrossEntropy

_TAIL_WIDTHS = 8.5
_SETTLED = 0.01  # of its width, by which a crossing may move
_CALIBRATION_POINTS = 8001
_OUTPUT_BEND = (0.0, 1.0)  # of sigmoid(h) and of cross-entropies
_ZERO = 1e-14  # order parameters of a max-margin stage below this vanish by symmetry
_SEARCHES = 30  # for the place where a training sample changes sides
_TENSOR_STAGES = 5  # up to which averages over samples are on a tensor product
_SHORT = 3  # stages of a chain whose averages are as accurate as its order parameters
_LONG_STEP, _LONG_TAIL = 0.95, 1e-9
_ROWS = 2**13  # fixed directions beyond
_FINEST = 64.0  # refinement of the last integration, at most, where that place depends on more than one logit


@dataclass(frozen=True, eq=False)
class Solution:
    """Saddle point of a chain.

    Attributes
    ----------
    data, chain
        The problem.
    converged : bool
        Every stage converged, to a small residual and quadrature error.
    residual : float
        Largest undamped, scaled residual of the saddle-point equations: the change that one more plain iteration makes, relative to
        the natural size of each order parameter.
    quadrature_error : float
        Estimated relative error of the order parameters by quadrature: their change at the last refinement.
    iterations : int
        Evaluations of channel averages, all stages and levels together.
    message : str
        "converged", or what went wrong and where.

    Indexing gives the stages: ``solution[0]`` the teacher, ``solution[-1]`` the last.

    In the limit ridge -> 0 some entries are infinite: ``V_tt`` of a minimum-norm interpolator and the responses to it; all order
    parameters of a max-margin stage.  Ratios stay finite, see :class:`StageSolution`.

    Examples
    --------
    >>> from numerics import solve
    >>> from theory.losses import Distillation
    >>> chain = [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)]
    >>> solution = solve(GaussianMixture(alpha=2.0, rho=0.2, delta=1.0), chain)
    >>> solution.overlap.round(6)
    array([[2.935967, 1.85676 ],
           [1.85676 , 3.11561 ]])
    >>> student = solution[1]
    >>> round(student.generalization_gap, 6), round(student.teacher_agreement, 6)
    (0.104194, 0.873219)
    """

    data: GaussianMixture
    chain: Chain
    points: tuple[StagePoint, ...] = field(repr=False)
    converged: bool
    residual: float
    quadrature_error: float
    iterations: int
    message: str
    level: int = field(repr=False, default=0)
    settings: Settings = field(repr=False, default_factory=Settings)
    spectral: SpectralStages | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.chain)

    def __getitem__(self, index: int) -> StageSolution:
        number = range(1, len(self) + 1)[index]
        return StageSolution(self, number)

    @cached_property
    def stages(self) -> tuple[StageSolution, ...]:
        """All stages."""
        return tuple(self[k] for k in range(len(self)))

    def _collect(self, value, *shape: int) -> np.ndarray:
        """Array over stages; NaN from the first stage on that did not converge."""
        out = np.full((len(self), *shape), np.nan)
        for k, point in enumerate(self.points):
            if point.status == 0:
                row = value(point)
                out[k, : np.size(row)] = row
        return out

    @cached_property
    def _growth(self) -> np.ndarray:
        """Factor from the units of the equations to those of the weights, shape (stages,): infinite with a margin."""
        return np.array([math.inf if _has_limit(p, MAX_MARGIN) else 1.0 for p in self.points] + [1.0] * self._missing)

    @property
    def _missing(self) -> int:
        return len(self) - len(self.points)

    @cached_property
    def finite_magnetization(self) -> np.ndarray:
        """As ``magnetization``, for a max-margin stage that of weights with ``s h >= 1``."""
        return self._collect(lambda point: point.magnetization, 1)[:, 0]

    @cached_property
    def finite_bias(self) -> np.ndarray:
        """As ``bias``, for a max-margin stage that of weights with ``s h >= 1``."""
        return self._collect(lambda point: point.bias, 1)[:, 0]

    @cached_property
    def finite_overlap(self) -> np.ndarray:
        """As ``overlap``, for a max-margin stage that of weights with ``s h >= 1``."""
        cholesky = self._triangle(lambda point: point.cholesky_row)
        return cholesky @ cholesky.T

    @cached_property
    def magnetization(self) -> np.ndarray:
        """m_t = w_t.v/N, shape (stages,)."""
        return _times(self.finite_magnetization, self._growth)

    @cached_property
    def bias(self) -> np.ndarray:
        """b_t, shape (stages,)."""
        return _times(self.finite_bias, self._growth)

    @cached_property
    def cholesky(self) -> np.ndarray:
        """Lower-triangular C with Q = C C^T, shape (stages, stages)."""
        return _times(self._triangle(lambda point: point.cholesky_row), self._growth[:, None])

    def _triangle(self, row) -> np.ndarray:
        square = self._collect(row, len(self))
        square[np.triu_indices(len(self), 1)] = 0.0
        return square

    @cached_property
    def overlap(self) -> np.ndarray:
        """Q_ts = w_t.w_s/N, shape (stages, stages)."""
        return _times(self.finite_overlap, self._growth[:, None] * self._growth)

    @cached_property
    def response(self) -> np.ndarray:
        """V_ts, lower triangular, shape (stages, stages)."""
        hard = [isinstance(point, HardPoint) for point in self.points] + [False] * self._missing
        return _times(
            self._triangle(lambda point: point.response_row), self._growth[:, None] * np.where(hard, math.inf, 1.0)
        )

    def nodes(
        self, number: int, *, training: bool, refinement: float = 1.0, bends: tuple[tuple[float, float], ...] = ()
    ) -> Nodes:
        """Law of label, fields and logits of stages 1..number on training or on fresh samples.

        ``refinement`` divides the step of the last stage's integration; ``bends`` are (position, scale) of what is going to be
        averaged as a function of the last logit, beyond what outputs and losses of this chain do.  Forces of a
        minimum-norm stage are divided by the ridge; logits of a max-margin stage are those of weights with ``s h >= 1``.
        """
        if number == 0:
            return label_nodes(self.data, training=training)
        key = (number, training, refinement, bends)
        if key not in self._cache and number > _TENSOR_STAGES:
            self._cache[key] = self._long_nodes(number, training=training)
        if key not in self._cache:
            self._cache[key] = extend_any(
                self.nodes(number - 1, training=training), self.data, self.chain, number, self.points[number - 1],
                self._settings_of_averages, self.level, training=training, refinement=refinement, bends=(_OUTPUT_BEND, *bends),
                sharpness=sharpness_along(self.points, number),
            )  # fmt: skip
        return self._cache[key]

    @cached_property
    def _cache(self) -> dict:
        return {}

    @cached_property
    def square_training(self) -> SquareTraining | None:
        """Law of the training logits of a chain that was solved by :mod:`numerics.spectral`; None for all others."""
        return None if self.spectral is None else SquareTraining(self.spectral)

    @cached_property
    def _settings_of_averages(self) -> Settings:
        """Those of the solution; for long chains larger steps, which leave 1e-6 of an average."""
        if len(self) <= _SHORT:
            return self.settings
        return replace(
            self.settings,
            outer_step=max(self.settings.outer_step, _LONG_STEP),
            tail=max(self.settings.tail, _LONG_TAIL),
        )

    @cached_property
    def resolved(self) -> tuple[Estimator | Frozen, ...]:
        """The stages with Hebbian and Bayes-optimal ones written as the Estimators they are on these data."""
        return self.chain.resolved(self.data)

    def moments(self, number: int) -> WeightMoments:
        """Moments of the weights of stages 1..number, for each pattern of masks."""
        stages = self.resolved
        found = WeightMoments(
            mask_patterns(tuple(stage.eta for stage in stages), tuple(stage.mask_overlap for stage in stages))
        )
        for earlier, stage, point in zip(range(1, number + 1), stages, self.points, strict=False):
            if isinstance(stage, Frozen):
                found.add_stage(earlier, stage, point.conjugates)
            else:
                ridge = effective_ridge(stage, point)
                found.add(earlier - 1, ridge, point.conjugates, equations_module(earlier).moments)
        return found

    def _long_nodes(self, number: int, *, training: bool) -> Nodes:
        """Nodes of a long chain: earlier stages along fixed directions, this one integrated over."""
        directions = sobol_directions(len(self))[:_ROWS]
        nodes = label_nodes(self.data, training=training, rows=_ROWS)
        for stage, point in zip(self.resolved[:number], self.points, strict=False):
            last = point.earlier + 1 == number
            nodes, _ = extend(
                nodes, self.data, stage, point, self.settings.outer_step, self.settings.tail, training=training,
                directions=None if last else np.ascontiguousarray(directions[:, point.earlier]),
            )  # fmt: skip
        return nodes

    def to_dict(self) -> dict:
        """Everything as plain numbers and lists, ready for JSON (NaN and infinite numbers become None)."""
        result = {
            "parameters": parameter_values(self.data, self.chain),
            "converged": self.converged, "residual": self.residual, "iterations": self.iterations,
            "quadrature_error": self.quadrature_error, "message": self.message,
            "stages": [
                {"name": stage.name, "limit": stage.limit, **{name: getattr(stage, name) for name in OBSERVABLES}}
                for stage in self.stages
            ],
            "overlap": self.overlap.tolist(), "response": self.response.tolist(),
        }  # fmt: skip
        return _without_nan(result)


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _has_limit(point: StagePoint, limit: str) -> bool:
    return isinstance(point, HardPoint) and point.limit == limit


def _times(finite: np.ndarray, growth: np.ndarray) -> np.ndarray:
    """Product in which 0 (up to rounding) times infinity is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(finite) < _ZERO, np.where(np.isinf(growth), 0.0, finite), finite * growth)


def _is_close(before: tuple[float, float], found: tuple[float, float]) -> bool:
    """Whether a crossing (position, width) is where it was, up to a small part of its width."""
    return abs(found[0] - before[0]) <= _SETTLED * found[1]


class StageSolution:
    """One stage of a solution.  A stage that did not converge has NaN observables.

    For a max-margin stage (``limit``) weights, bias and logits are infinite, and so are test losses and logit distances.
    What depends on their direction or sign alone has its limit: errors, cosines, agreement, ``relative_bias``, ``margin``,
    output distances (NaN on fresh samples if the teacher is the max-margin stage), and the calibration, whose slope is 0.
    """

    def __init__(self, solution: Solution, number: int) -> None:
        self.solution = solution
        self.number = number

    def __repr__(self) -> str:
        return (
            f"<{self.name}: magnetization={self.magnetization:.6g}, norm={self.norm:.6g}, bias={self.bias:.6g}, "
            f"test_error={self.test_error:.6g}>"
        )

    @property
    def name(self) -> str:
        """Name of the stage in its chain."""
        return self.solution.chain.name(self.number)

    @property
    def estimator(self) -> Estimator | Frozen:
        """The stage, a Hebbian or Bayes-optimal one as the Estimator that it is on these data."""
        return self.solution.resolved[self.number - 1]

    @property
    def _given(self) -> bool:
        """Whether the weights are given: nothing is trained."""
        return isinstance(self.estimator, Frozen)

    @property
    def _sets(self) -> tuple[str, ...]:
        """Data sets that training averages are over; for given weights the first."""
        return self.estimator.sets or (TRAINING,)

    def _nodes(self, number: int, **how: object) -> Nodes:
        """Nodes of stages 1..number on the samples this stage is trained on."""
        return self.solution.nodes(number, training=True, **how).of(self._data, self._sets)

    @property
    def _data(self) -> GaussianMixture:
        return self.solution.data

    @property
    def _square(self) -> SquareTraining | None:
        return self.solution.square_training if self._known else None

    @property
    def _known(self) -> bool:
        return len(self.solution.points) >= self.number and self.solution.points[self.number - 1].status == 0

    @property
    def _earlier(self) -> int:
        """The stage before, 0 if there is none."""
        return self.number - 1

    @property
    def limit(self) -> str | None:
        """Which limit a ridge of 0 stands for: "maximum likelihood", "minimum norm" or "max margin"; None at positive ridge."""
        if self._given or self.estimator.ridge > 0 or not self._known:
            return None
        point = self.solution.points[self.number - 1]
        return point.limit if isinstance(point, HardPoint) else MAXIMUM_LIKELIHOOD

    @property
    def margin(self) -> float:
        """Smallest ``s h`` on the training set at ``|w|^2 = N``, of a max-margin stage; NaN for all others."""
        return 1.0 / math.sqrt(self._overlaps[-1, -1]) if self.limit == MAX_MARGIN else math.nan

    @property
    def relative_bias(self) -> float:
        """Bias over norm, finite in every limit."""
        return float(self.solution.finite_bias[self.number - 1] / math.sqrt(self._overlaps[-1, -1]))

    @property
    def _direction(self) -> tuple[float, float, float]:
        """(m, b, Q), for a max-margin stage in finite units."""
        solution, k = self.solution, self.number - 1
        return float(solution.finite_magnetization[k]), float(solution.finite_bias[k]), float(self._overlaps[-1, -1])

    @property
    def _overlaps(self) -> np.ndarray:
        """Overlaps of this stage and those before it, for max-margin stages in finite units."""
        return self.solution.finite_overlap[: self.number, : self.number]

    @property
    def magnetization(self) -> float:
        """m = w.v/N."""
        return float(self.solution.magnetization[self.number - 1])

    @property
    def bias(self) -> float:
        """b."""
        return float(self.solution.bias[self.number - 1])

    @property
    def norm_squared(self) -> float:
        """Q = |w|^2/N."""
        return float(self.solution.overlap[self.number - 1, self.number - 1])

    @property
    def norm(self) -> float:
        """|w|/sqrt(N)."""
        return math.sqrt(self.norm_squared)

    @property
    def response(self) -> float:
        """V, response of the weights to a field on them."""
        return float(self.solution.response[self.number - 1, self.number - 1])

    @property
    def cosine(self) -> float:
        """Cosine between w and v."""
        m, _, q = self._direction
        return m / math.sqrt(q)

    @property
    def test_error(self) -> float:
        """P(s h < 0) on a fresh sample."""
        return float(formulas.test_error()(*self._direction, self._data.delta, self._data.rho))

    @property
    def train_error(self) -> float:
        """P(h on the wrong side of the label that was trained on), on a training sample.

        The proximal map is monotone, so given the earlier stages this is a normal tail.
        """
        if self.limit == MAX_MARGIN:
            return 0.0
        if self.limit == MINIMUM_NORM:
            return self._interpolation_error()
        if self._square is not None:
            return self._square.error(self.number - 1)[0]
        return self._wrong_side((0.0, 0.0))

    @property
    def clean_train_error(self) -> float:
        """P(s h < 0) on a training sample: as ``train_error``, but against the label before noise flipped it."""
        if not any(self._data.data_set(name).label_noise for name in self._sets):
            return self.train_error
        if self._square is not None:
            return self._square.error(self.number - 1, clean=True)[0]
        return self._wrong_side((0.0, 0.0), clean=True)

    def _wrong_side(self, levels: tuple[float, float], *, clean: bool = False) -> float:
        """P(h - level on the wrong side) on a training sample, with a level for each label, given or clean."""
        if not self._known:
            return math.nan
        hard = any(isinstance(point, HardPoint) for point in self.solution.points[: self._earlier])
        if self._earlier > 1 or hard:
            nodes = self._nodes(self._earlier)
            scores, errors = self._sign_probabilities(nodes, levels, clean)
            jump = largest_jump(scores, nodes)
            if jump > 1.0 and hard:
                nodes = self._nodes(self._earlier, refinement=min(np.ceil(jump), _FINEST))
                errors = self._sign_probabilities(nodes, levels, clean)[1]
            elif jump > 1.0 and not self._has_jump:
                return self._wrong_side_along(nodes, scores, levels, clean)
            return nodes.mean(errors)
        bends: dict[float, tuple[float, float]] = {}
        for _ in range(_SEARCHES):
            nodes = self._nodes(self._earlier, bends=tuple(bends.values())) if self._earlier else self._nodes(0)
            scores, errors = self._sign_probabilities(nodes, levels, clean)
            found = sharp_crossings(scores, nodes) if self._earlier else {}
            if not found:
                break
            if all(label in bends and _is_close(bends[label], place) for label, place in found.items()):
                break
            bends |= found
        return nodes.mean(errors)

    @property
    def _has_jump(self) -> bool:
        """Whether the target jumps with an earlier logit: nodes close in on the jump, and it decides the sign."""
        return isinstance(self.estimator, Estimator) and self.estimator.loss.expression.has(step)

    def _wrong_side_along(
        self, nodes: Nodes, scores: np.ndarray, levels: tuple[float, float], clean: bool
    ) -> float:  # fmt: skip
        """The same where the own field is narrow: with one earlier direction on a fine grid (:mod:`numerics.crossings`)."""
        k = self._earlier
        fine = crossings.fastest_direction(scores, nodes.weight, nodes.design[:, 2 : 2 + k])
        table, weight = crossings.product_directions(k, fine)
        nodes = label_nodes(self._data, rows=len(table)).of(self._data, self._sets)
        for number in range(1, k + 1):
            nodes, _ = extend(
                nodes, self._data, self.solution.resolved[number - 1], self.solution.points[number - 1], 1.0, 1.0,
                training=True, directions=np.ascontiguousarray(table[:, number - 1]),
            )  # fmt: skip
        order = np.argsort(nodes.row, kind="stable")
        order = order.reshape(len(weight), crossings.FINE_POINTS, -1).transpose(2, 0, 1)
        total = 0.0
        scores = self._sign_probabilities(nodes, levels, clean)[0]
        sign = nodes.design[:, 0] if clean else 2.0 * nodes.labels - 1.0
        for group in order:  # a label of a data set
            above = sign[group[0, 0]] > 0.0
            along = crossings.tail_along(scores[group], (lambda p: p) if above else (lambda p: 1.0 - p))
            total += nodes.weight[group[0, 0]] * float(weight @ along)
        return total / float(sum(nodes.weight[group[0, 0]] for group in order))

    def _interpolation_error(self) -> float:
        """P(s h* < 0): where it looks at one earlier logit, that logit is on the wrong side of a threshold."""
        loss, solution = self.estimator.loss, self.solution
        seen = loss.stages(self.number)
        if len(seen) == 1 and not isinstance(solution.points[seen[0] - 1], HardPoint):
            logits = solution.nodes(seen[0], training=True).logits[:, -1]
            levels = label_threshold(loss, float(logits.min()), float(logits.max()))
            if levels is not None:
                return solution[seen[0] - 1]._wrong_side(levels)
        nodes = solution.nodes(self._earlier, training=True, refinement=_FINEST if seen and self._earlier == 1 else 1.0)
        goal = constraint(solution.chain, self.number, MINIMUM_NORM, nodes)
        return nodes.mean((goal * nodes.design[:, 0] < 0).astype(float))

    def _sign_probabilities(
        self, nodes: Nodes, levels: tuple[float, float], clean: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Threshold of the field in units of its width, and P(wrong side of the level), given each node of earlier stages."""
        point = self.solution.points[self.number - 1]
        delta, k = self._data.delta, self._earlier
        row, responses = point.cholesky_row, point.response_row
        design = nodes.design
        mean = design[:, 0] * point.magnetization + point.bias
        mean = mean + math.sqrt(delta) * design[:, 2 : 2 + k] @ row[:-1] + delta * nodes.forces @ responses[:-1]
        loss = stage_loss(self.estimator)
        level = np.where(nodes.labels > 0.5, levels[1], levels[0])
        slope, _ = LossFunctions(loss).derivatives(level, nodes.labels, nodes.seen(loss.stages(self.number)))
        threshold = level + delta * responses[-1] * slope
        width = math.sqrt(delta) * row[-1]
        sign = design[:, 0] if clean else 2.0 * nodes.labels - 1.0
        return (threshold - mean) / width, formulas.training_error()(threshold, mean, width, sign)

    @property
    def generalization_gap(self) -> float:
        """Test error minus training error."""
        return self.test_error - self.train_error

    def _on_fresh_samples(self, average: Callable[[Population, int], tuple[float, float]]) -> float:
        """An average over fresh samples, where logits are jointly Gaussian given the class: a function of m, b and Q."""
        if not self._known:
            return math.nan
        solution, k = self.solution, self.number
        population = Population(
            self._data, solution.finite_magnetization[:k], solution.finite_bias[:k], solution.finite_overlap[:k, :k]
        )
        return average(population, k - 1)[0]

    def _average(self, function) -> float:
        """Mean over training samples of ``function(h of this stage, nodes)``."""
        if not self._known:
            return math.nan
        if self.limit == MINIMUM_NORM:
            # The logit is a function of the earlier ones: nothing is left to integrate.
            nodes = self.solution.nodes(self._earlier, training=True)
            goal = constraint(self.solution.chain, self.number, MINIMUM_NORM, nodes)
            nodes = Nodes(nodes.weight, nodes.design, nodes.labels, np.column_stack((nodes.logits, goal)))
        else:
            nodes = self._nodes(self.number)
        return nodes.mean(function(np.ascontiguousarray(nodes.logits[:, -1]), nodes))

    def _loss(self, h: np.ndarray, nodes: Nodes) -> np.ndarray:
        loss = self.estimator.loss
        return LossFunctions(loss).value(h, nodes.labels, nodes.seen(loss.stages(self.number)))

    @staticmethod
    def _cross_entropy(h: np.ndarray, nodes: Nodes) -> np.ndarray:
        return LossFunctions(CrossEntropy()).value(h, nodes.labels, np.empty((h.size, 0)))

    @property
    def test_loss(self) -> float:
        """Mean of this stage's own loss on a fresh sample; NaN for given weights."""
        if self._given:
            return math.nan
        if self.limit == MAX_MARGIN:
            return math.inf
        return self._on_fresh_samples(lambda population, t: population.test_loss(self.estimator.loss, t))

    @property
    def train_loss(self) -> float:
        """Mean of this stage's own loss on a training sample; NaN for given weights."""
        if self._given:
            return math.nan
        if self.limit == MAX_MARGIN:
            return 0.0
        if self._square is not None:
            return self._square.loss(self.number - 1, self.estimator.loss, self.estimator.loss.stages(self.number))[0]
        return self._average(self._loss)

    @property
    def loss_gap(self) -> float:
        """Test loss minus training loss."""
        return self.test_loss - self.train_loss

    @property
    def test_cross_entropy(self) -> float:
        """Mean of H(y, sigmoid(h)) on a fresh sample."""
        if self.limit == MAX_MARGIN:
            return math.inf
        return self._on_fresh_samples(lambda population, t: population.test_loss(CrossEntropy(), t))

    @property
    def train_cross_entropy(self) -> float:
        """Mean of H(y, sigmoid(h)) on a training sample."""
        if self.limit == MAX_MARGIN:
            return 0.0
        if self._square is not None:
            return self._square.cross_entropy(self.number - 1)[0]
        return self._average(self._cross_entropy)

    @property
    def free_energy(self) -> float:
        """-Phi = alpha E[l] + (ridge/2) Q, the minimised training objective per input, from the potential; NaN if nothing is."""
        if not self._known or self._given:
            return math.nan
        if self.limit in (MINIMUM_NORM, MAX_MARGIN):
            return total_alpha(self._data, self._sets) * self.train_loss
        if self._square is not None:
            loss = self.estimator.loss
            return self._square.objective(self.number - 1, loss, loss.stages(self.number), self.norm_squared)[0]
        return -self._potential()

    def _potential(self) -> float:
        solution = self.solution
        nodes = self._nodes(self.number)
        point = solution.points[self.number - 1]
        h = np.ascontiguousarray(nodes.logits[:, -1])
        envelope = self._loss(h, nodes) + 0.5 * self._data.delta * self.response * nodes.forces[:, -1] ** 2
        moments = solution.moments(self.number - 1)
        constants = moments.prior_constants(self.number - 1, self.estimator.ridge)
        t = self.number
        parameters = [self.magnetization, *solution.finite_overlap[t - 1, :t], *point.response_row]
        inputs = [*parameters, *point.conjugates, nodes.total(envelope)]
        return float(formulas.free_energy(t)(inputs, constants))

    @property
    def calibration_slope(self) -> float:
        """Slope of the true log-odds of y = 1 as a function of this stage's logit; 1 if calibrated, below 1 if overconfident."""
        return float(self._calibration[0])

    @property
    def calibration_offset(self) -> float:
        """Offset of the true log-odds at logit 0."""
        return float(self._calibration[1])

    @property
    def _calibration(self) -> tuple[float, float]:
        slope, offset = formulas.calibration()(*self._direction, self._data.delta, self._data.rho)
        return (0.0 if self.limit == MAX_MARGIN else slope), offset

    @property
    def calibration_error(self) -> float:
        """Mean of |P(y=1 given h) - sigmoid(h)| on a fresh sample."""
        if not self._known:
            return math.nan
        if self.limit == MAX_MARGIN:
            return self.test_error
        slope, offset = self._calibration
        width = math.sqrt(self._data.delta) * self.norm
        total = 0.0
        for sign, probability in ((1.0, self._data.rho), (-1.0, 1.0 - self._data.rho)):
            # Its own fine grid: the integrand is one-dimensional and has kinks where the two probabilities cross.
            mean = sign * self.magnetization + self.bias
            field = mean + width * np.linspace(-_TAIL_WIDTHS, _TAIL_WIDTHS, _CALIBRATION_POINTS)
            bend = np.sinh(np.linspace(-12.0, 12.0, _CALIBRATION_POINTS)) / max(1.0, abs(slope))
            h = np.sort(np.concatenate((field, bend[np.abs(bend - mean) < _TAIL_WIDTHS * width])))
            density = np.exp(-0.5 * ((h - mean) / width) ** 2) / (width * math.sqrt(2.0 * math.pi))
            gap = np.abs(special.expit(slope * h + offset) - special.expit(h))
            total += probability * float(np.trapezoid(density * gap, h))
        return total

    @property
    def teacher_cosine(self) -> float:
        """Cosine between the weights of this stage and of the one before; NaN for the first stage."""
        if not self._earlier:
            return math.nan
        q = self._overlaps
        t, s = self.number - 1, self.number - 2
        return float(q[t, s] / math.sqrt(q[t, t] * q[s, s]))

    @property
    def teacher_agreement(self) -> float:
        """Probability that this stage and the one before classify a fresh sample alike; NaN for the first stage."""
        if not self._earlier or not self._known:
            return math.nan
        pair = [self.number - 1, self.number - 2]
        solution = self.solution
        return formulas.agreement(
            solution.finite_magnetization[pair], solution.finite_bias[pair], solution.finite_overlap[np.ix_(pair, pair)],
            self._data.delta, self._data.rho,
        )  # fmt: skip

    @property
    def test_logit_distance(self) -> float:
        """Mean of (h - h_teacher)^2 on a fresh sample, the teacher being the stage before; NaN for the first stage."""
        if not self._earlier:
            return math.nan
        if self._margin_at_hand:
            return math.inf
        m, b, q = self.solution.magnetization, self.solution.bias, self.solution.overlap
        t, s = self.number - 1, self.number - 2
        return float(
            formulas.logit_distance()(
                m[t], m[s], b[t], b[s], q[t, t], q[s, s], q[t, s], self._data.delta, self._data.rho
            )
        )

    @property
    def _margin_at_hand(self) -> bool:
        """Whether this stage or the one before has infinite logits."""
        return self._known and any(
            _has_limit(p, MAX_MARGIN) for p in self.solution.points[self.number - 2 : self.number]
        )

    def _distance_to_teacher(self, output) -> float:
        """On training samples."""
        if not self._earlier:
            return math.nan

        def squared(h: np.ndarray, nodes: Nodes) -> np.ndarray:
            return (output(h) - output(nodes.logits[:, -2])) ** 2

        return self._average(squared)

    @property
    def train_logit_distance(self) -> float:
        """Mean of (h - h_teacher)^2 on a training sample; NaN for the first stage."""
        if self._earlier and self._margin_at_hand:
            return math.inf
        if self._earlier and self._square is not None:
            return self._square.logit_distance(self.number - 1, self.number - 2)[0]
        return self._distance_to_teacher(lambda h: h)

    @property
    def test_output_distance(self) -> float:
        """Mean of (sigmoid(h) - sigmoid(h_teacher))^2 on a fresh sample; NaN for the first stage."""
        if self._earlier and self._margin_at_hand:
            return self._distance_of_signs(training=False)
        return (
            self._on_fresh_samples(lambda population, t: population.output_distance(t, t - 1))
            if self._earlier
            else math.nan
        )

    @property
    def train_output_distance(self) -> float:
        """Mean of (sigmoid(h) - sigmoid(h_teacher))^2 on a training sample; NaN for the first stage."""
        if self._earlier and self._margin_at_hand:
            return self._distance_of_signs(training=True)
        if self._earlier and self._square is not None:
            return self._square.output_distance(self.number - 1, self.number - 2)[0]
        return self._distance_to_teacher(special.expit)

    def _distance_of_signs(self, *, training: bool) -> float:
        """Squared distance of outputs of which at least one is 0 or 1; on training samples that one is the label."""
        pair = self.solution.points[self.number - 2 : self.number]
        step = [_has_limit(point, MAX_MARGIN) for point in pair]
        if all(step):
            return 0.0 if training else 1.0 - self.teacher_agreement
        if training:
            other = self.solution[self._earlier - 1] if step[1] else self
            return other._average(lambda h, nodes: (nodes.labels - special.expit(h)) ** 2)
        if step[0]:
            return math.nan
        point, k = pair[1], self._earlier
        nodes = self.solution.nodes(k, training=False)
        mean = nodes.design[:, 0] * point.magnetization + point.bias
        mean = mean + math.sqrt(self._data.delta) * nodes.design[:, 2 : 2 + k] @ point.cholesky_row[:-1]
        positive = special.ndtr(mean / (math.sqrt(self._data.delta) * point.cholesky_row[-1]))
        teacher = special.expit(nodes.logits[:, -1])
        return nodes.mean(positive * (1.0 - teacher) ** 2 + (1.0 - positive) * teacher**2)

    @property
    def bayes_error(self) -> float:
        """Test error of the Bayes-optimal estimator that sees this stage's inputs and, with clean labels, all samples that the
        stages up to this one are trained on; the lower bound of what they may reach."""
        seen = {name for stage in self.solution.resolved[: self.number] for name in stage.sets} or {TRAINING}
        alpha = total_alpha(self._data, sorted(seen))
        return float(thresholds.bayes_error(alpha, self._data.rho, self._data.delta, self.estimator.eta))


OBSERVABLES: dict[str, str] = {
    "magnetization": "magnetization $m$",
    "bias": "bias $b$",
    "norm": r"norm $\|w\|/\sqrt{N}$",
    "norm_squared": "squared norm $Q$",
    "response": "response $V$",
    "cosine": r"cosine with $v$",
    "test_error": "test error",
    "train_error": "training error",
    "clean_train_error": "training error against clean labels",
    "generalization_gap": "test minus training error",
    "test_loss": "test loss",
    "train_loss": "training loss",
    "loss_gap": "test minus training loss",
    "test_cross_entropy": "test cross-entropy",
    "train_cross_entropy": "training cross-entropy",
    "free_energy": r"training objective per input, $-\Phi$",
    "calibration_slope": "calibration slope",
    "calibration_offset": "calibration offset",
    "calibration_error": "calibration error",
    "teacher_cosine": "cosine with the teacher's weights",
    "teacher_agreement": "agreement with the teacher, test",
    "test_logit_distance": "squared logit distance to the teacher, test",
    "train_logit_distance": "squared logit distance to the teacher, training",
    "test_output_distance": "squared output distance to the teacher, test",
    "train_output_distance": "squared output distance to the teacher, training",
    "bayes_error": "Bayes error",
}
"""Names of the observables of a stage, with their labels in plots."""
