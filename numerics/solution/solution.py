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
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from numerics import thresholds
from numerics.codegen import observables
from numerics.codegen.losses import LossFunctions
from numerics.deferred import special
from numerics.models import (
    TRAINING,
    Chain,
    Estimator,
    Frozen,
    GaussianMixture,
    ParameterError,
    parameter_values,
    total_alpha,
)
from numerics.scalar.constrained import MAX_MARGIN, MINIMUM_NORM, HardPoint, effective
from numerics.scalar.directions import sobol_directions
from numerics.scalar.limits import MAXIMUM_LIKELIHOOD, extend_any
from numerics.scalar.nodes import Nodes, StagePoint, extend, label_nodes, sharpness_along
from numerics.scalar.prior import WeightMoments, coordinate_groups
from numerics.settings import Settings
from numerics.solution.calibration import calibration_error
from numerics.solution.population import Population, output_difference
from numerics.solution.quadrature import Integral
from numerics.solution.training import TrainingSamples
from numerics.square_chain.spectral import SpectralStages
from numerics.square_chain.training import SquareTraining
from theory.losses import CrossEntropy

_OUTPUT_BEND = (0.0, 1.0)  # of sigmoid(h) and of cross-entropies
_ZERO = 1e-14  # order parameters of a max-margin stage below this vanish by symmetry
_TENSOR_STAGES = 5  # up to which averages over samples are on a tensor product
_SHORT = 3  # stages of a chain whose averages are as accurate as its order parameters
_LONG_STEP, _LONG_TAIL = 0.95, 1e-3  # the latter times the accuracy asked for
_ROWS = 2**13  # fixed directions beyond
_ROUNDING = 4e-16
_PARTS = {
    "generalization_gap": ("train_error",),
    "loss_gap": ("test_loss", "train_loss"),
    "clean_train_error": ("clean_train_error", "train_error"),
}
"""Integrals that an observable is made of, if it is not one itself."""

_KEPT = 10**6  # nodes; more are found again when they are needed


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
        if any(self.points[k - 1].vanishes for k in (*self.chain.teachers(number), number) if k <= len(self.points)):
            from numerics.solution.constant_stage import ConstantStage

            return ConstantStage(self, number)
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
    def finite_cholesky(self) -> np.ndarray:
        """As ``cholesky``, for a max-margin stage that of weights with ``s h >= 1``."""
        return self._triangle(lambda point: point.cholesky_row)

    @cached_property
    def finite_overlap(self) -> np.ndarray:
        """As ``overlap``, for a max-margin stage that of weights with ``s h >= 1``."""
        return self.finite_cholesky @ self.finite_cholesky.T

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
        return _times(self.finite_cholesky, self._growth[:, None])

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
        if any(point.vanishes for point in self.points[:-1]):
            from numerics.solution.constant_stage import completed_responses

            return completed_responses(self)
        hard = [isinstance(point, HardPoint) for point in self.points] + [False] * self._missing
        return _times(
            self._triangle(lambda point: point.response_row), self._growth[:, None] * np.where(hard, math.inf, 1.0)
        )

    def nodes(
        self, number: int, *, training: bool, refinement: float = 1.0, bends: tuple[tuple[float, float], ...] = (),
        finer: int = 0,
    ) -> Nodes:  # fmt: skip
        """Law of label, fields and logits of stages 1..number on training or on fresh samples.

        ``refinement`` divides the step of the last stage's integration; ``bends`` are (position, scale) of what is going to be
        averaged as a function of the last logit, beyond what outputs and losses of this chain do.  ``finer`` levels are those of
        the quadrature beyond the solution's own, for all stages; coarser if negative.  Forces of a
        minimum-norm stage are divided by the ridge; logits of a max-margin stage are those of weights with ``s h >= 1``.
        """
        if number == 0:
            return label_nodes(self.data, training=training)
        key = (number, training, refinement, bends, finer)
        if key in self._cache:
            return self._cache[key]
        if number > _TENSOR_STAGES:
            nodes = self._long_nodes(number, training=training, finer=finer)
        else:
            nodes = extend_any(
                self.nodes(number - 1, training=training, finer=finer), self.data, self.chain, number, self.points[number - 1],
                self._settings_of_averages(finer), self.level + finer, training=training, refinement=refinement,
                bends=(_OUTPUT_BEND, *bends), sharpness=sharpness_along(self.points, number),
            )  # fmt: skip
        if nodes.weight.size <= _KEPT:
            self._cache[key] = nodes
        return nodes

    @cached_property
    def _cache(self) -> dict:
        return {}

    @cached_property
    def square_training(self) -> SquareTraining | None:
        """Law of the training logits of a chain that was solved by :mod:`numerics.square_chain`; None for all others."""
        return None if self.spectral is None else SquareTraining(self.spectral)

    @cached_property
    def _displaced(self) -> Solution:
        """With order parameters off by their error."""
        from numerics.solution.errors import displaced  # here: it needs the compiled solver, most readers do not

        return displaced(self)

    def _settings_of_averages(self, finer: int) -> Settings:
        """Those of the solution, of which a tenth is cut off at each finer level; for long chains larger steps."""
        settings = self.settings
        step, tail = settings.outer_step, settings.tail
        if len(self) > _SHORT:
            step, tail = max(step, _LONG_STEP), max(tail, _LONG_TAIL * settings.rtol)
        return replace(settings, outer_step=step, tail=tail * 0.1**finer)

    @cached_property
    def resolved(self) -> tuple[Estimator | Frozen, ...]:
        """The stages with Hebbian and Bayes-optimal ones written as the Estimators they are on these data."""
        return self.chain.resolved(self.data)

    def moments(self, number: int) -> WeightMoments:
        """Moments of the weights of stages 1..number, for each pattern of masks."""
        stages = self.resolved
        found = WeightMoments(coordinate_groups(stages))
        for earlier, stage, point in zip(range(1, number + 1), stages, self.points, strict=False):
            found.add_stage(earlier, effective(stage, point), point.conjugates)
        return found

    def _long_nodes(self, number: int, *, training: bool, finer: int) -> Nodes:
        """Nodes of a long chain: earlier stages along fixed directions, twice as many a level, this one integrated over."""
        directions = sobol_directions(len(self))
        rows = int(min(max(_ROWS * 2.0**finer, 1), len(directions)))
        nodes = label_nodes(self.data, training=training, rows=rows)
        for stage, point in zip(self.resolved[:number], self.points, strict=False):
            last = point.earlier + 1 == number
            nodes, _ = extend(
                nodes, self.data, stage, point, self.settings.outer_step, self.settings.tail, training=training,
                directions=None if last else np.ascontiguousarray(directions[:rows, point.earlier]),
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
        return without_nan(result)


def without_nan(value):
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _has_limit(point: StagePoint, limit: str) -> bool:
    return isinstance(point, HardPoint) and point.limit == limit


def _times(finite: np.ndarray, growth: np.ndarray) -> np.ndarray:
    """Product in which 0 (up to rounding) times infinity is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(finite) < _ZERO, np.where(np.isinf(growth), 0.0, finite), finite * growth)


def _last(nodes: Nodes) -> np.ndarray:
    return np.ascontiguousarray(nodes.logits[:, -1])


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
    def constraint(self) -> str | None:
        """The limit, if it is one under a hard constraint: "minimum norm" or "max margin"."""
        return self.limit if isinstance(self.solution.points[self.number - 1], HardPoint) else None

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
        return float(observables.test_error()(*self._direction, self._data.delta, self._data.rho))

    @property
    def train_error(self) -> float:
        """P(h on the wrong side of the label that was trained on), on a training sample.

        The proximal map is monotone, so given the earlier stages this is a normal tail.
        """
        return self._integral("train_error").value

    @property
    def clean_train_error(self) -> float:
        """P(s h < 0) on a training sample: as ``train_error``, but against the label before noise flipped it."""
        if not any(self._data.data_set(name).label_noise for name in self._sets):
            return self.train_error
        return self._integral("clean_train_error").value

    @property
    def generalization_gap(self) -> float:
        """Test error minus training error."""
        return self.test_error - self.train_error

    # Integrals: each with an estimate of its own error, found once a solution.

    def _integral(self, name: str) -> Integral:
        """An observable that takes an integration; NaN if the stage was not solved."""
        if not self._known:
            return Integral(math.nan, math.nan)
        kept, key = self.solution._cache, (self.number, name)
        if key not in kept:
            found = getattr(self, f"_find_{name}")()
            kept[key] = found if isinstance(found, Integral) else Integral(*found)
        return kept[key]

    def error_of(self, name: str) -> float:
        """Estimated absolute error of an observable, computed now: what its own integration leaves, and what the error of the
        order parameters makes of it (:mod:`numerics.solution.errors`).

        The first is the difference from a rule of another kind or level: other panels for errors and calibration, finer nodes
        for averages over training samples, half the step for those over fresh ones.  Where ``settings.rtol`` could not be met,
        the estimate says so.

        Parameters
        ----------
        name : str
            One of :data:`OBSERVABLES`.

        Returns
        -------
        float
            NaN where the observable is NaN, 0 where it is infinite.

        Raises
        ------
        numerics.models.ParameterError
            For an unknown name.

        Examples
        --------
        >>> from numerics import solve
        >>> stage = solve(GaussianMixture(alpha=2.0, rho=0.2, delta=1.0), Estimator(CrossEntropy(), ridge=0.1))[0]
        >>> 0 < stage.error_of("train_error") < 1e-8 * stage.train_error
        True
        """
        if name not in OBSERVABLES:
            raise ParameterError(f"name must be one of {', '.join(OBSERVABLES)}; got {name!r}")
        value = getattr(self, name)
        if not math.isfinite(value):
            return math.nan if math.isnan(value) else 0.0
        own = sum(self._integration_error(part) for part in _PARTS.get(name, (name,)))
        moved = getattr(self.solution._displaced[self.number - 1], name)
        return own + abs(moved - value) + _ROUNDING * abs(value)

    def _integration_error(self, name: str) -> float:
        """Of what :meth:`_integral` finds, checked where the first estimate looks at one set of nodes; 0 for a formula."""
        found = self.solution._cache.get((self.number, name))
        if found is None:
            return 0.0
        check = getattr(self, f"_check_{name}", None)
        return found.error + (abs(check().value - found.value) if check else 0.0)

    def _check_train_error(self) -> Integral:
        return self._training.wrong_side(check=True)

    def _check_clean_train_error(self) -> Integral:
        return self._training.wrong_side(clean=True, check=True)

    def _check_calibration_error(self) -> Integral:
        return self._find_calibration_error(check=True)

    @property
    def _training(self) -> TrainingSamples:
        return TrainingSamples(self.solution, self.number)

    @property
    def _population(self) -> Population:
        """Fresh samples, on which logits are jointly Gaussian given the class: a function of m, b and Q."""
        solution, k = self.solution, self.number
        return Population(
            self._data, solution.finite_magnetization[:k], solution.finite_bias[:k], solution.finite_overlap[:k, :k],
            solution.finite_cholesky[:k, :k], solution.settings.rtol,
        )  # fmt: skip

    def _find_train_error(self) -> Integral | tuple[float, float]:
        if self._square is not None:
            return self._square.error(self.number - 1)
        return self._training.wrong_side()

    def _find_clean_train_error(self) -> Integral | tuple[float, float]:
        if self._square is not None:
            return self._square.error(self.number - 1, clean=True)
        return self._training.wrong_side(clean=True)

    def _find_test_loss(self) -> tuple[float, float]:
        return self._population.test_loss(self.estimator.loss, self._earlier)

    def _find_test_cross_entropy(self) -> tuple[float, float]:
        return self._population.test_loss(CrossEntropy(), self._earlier)

    def _find_train_loss(self) -> Integral | tuple[float, float]:
        if self._square is not None:
            loss = self.estimator.loss
            return self._square.loss(self.number - 1, loss, loss.stages(self.number))
        return self._training.mean(self._loss)

    def _find_train_cross_entropy(self) -> Integral | tuple[float, float]:
        if self._square is not None:
            return self._square.cross_entropy(self.number - 1)
        return self._training.mean(self._cross_entropy, (self.number,))

    def _loss(self, nodes: Nodes) -> np.ndarray:
        loss = self.estimator.loss
        return LossFunctions(loss).value(_last(nodes), nodes.labels, nodes.seen(loss.stages(self.number)))

    @staticmethod
    def _cross_entropy(nodes: Nodes) -> np.ndarray:
        return LossFunctions(CrossEntropy()).value(_last(nodes), nodes.labels, np.empty((nodes.labels.size, 0)))

    @property
    def test_loss(self) -> float:
        """Mean of this stage's own loss on a fresh sample; NaN for given weights."""
        if self._given:
            return math.nan
        if self.limit == MAX_MARGIN:
            return math.inf
        return self._integral("test_loss").value

    @property
    def train_loss(self) -> float:
        """Mean of this stage's own loss on a training sample; NaN for given weights."""
        if self._given:
            return math.nan
        if self.limit == MAX_MARGIN:
            return 0.0
        return self._integral("train_loss").value

    @property
    def loss_gap(self) -> float:
        """Test loss minus training loss."""
        return self.test_loss - self.train_loss

    @property
    def test_cross_entropy(self) -> float:
        """Mean of H(y, sigmoid(h)) on a fresh sample."""
        if self.limit == MAX_MARGIN:
            return math.inf
        return self._integral("test_cross_entropy").value

    @property
    def train_cross_entropy(self) -> float:
        """Mean of H(y, sigmoid(h)) on a training sample."""
        if self.limit == MAX_MARGIN:
            return 0.0
        return self._integral("train_cross_entropy").value

    @property
    def free_energy(self) -> float:
        """-Phi = alpha E[l] + (ridge/2) Q, the minimised training objective per input, from the potential; NaN if nothing is."""
        if self._given:
            return math.nan
        if self.limit == MAX_MARGIN:
            return 0.0
        return self._integral("free_energy").value

    def _find_free_energy(self) -> Integral | tuple[float, float]:
        if self._square is not None:
            loss = self.estimator.loss
            return self._square.objective(self.number - 1, loss, loss.stages(self.number), self.norm_squared)
        alpha = total_alpha(self._data, self._sets)
        if self.limit == MINIMUM_NORM:
            return Integral(*(alpha * part for part in self._integral("train_loss")))
        envelope = self._training.mean(
            lambda nodes: self._loss(nodes) + 0.5 * self._data.delta * self.response * nodes.forces[:, -1] ** 2
        )
        solution, t = self.solution, self.number
        point = solution.points[t - 1]
        constants = solution.moments(t - 1).prior_constants(t - 1, self.estimator.ridge)
        parameters = [self.magnetization, *solution.finite_overlap[t - 1, :t], *point.response_row]
        inputs = [*parameters, *point.conjugates, alpha * envelope.value]
        return Integral(-float(observables.free_energy(t)(inputs, constants)), alpha * envelope.error)

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
        slope, offset = observables.calibration()(*self._direction, self._data.delta, self._data.rho)
        return (0.0 if self.limit == MAX_MARGIN else slope), offset

    @property
    def calibration_error(self) -> float:
        """Mean of |P(y=1 given h) - sigmoid(h)| on a fresh sample."""
        if not self._known:
            return math.nan
        if self.limit == MAX_MARGIN:
            return self.test_error
        return self._integral("calibration_error").value

    def _find_calibration_error(self, *, check: bool = False) -> Integral:
        m, b, q = self._direction
        return calibration_error(m, b, math.sqrt(self._data.delta * q), self._calibration, self._data.rho, check=check)

    @property
    def _teachers(self) -> tuple[int, ...]:
        """The stages it is compared with, see :meth:`numerics.models.Chain.teachers`; none for the first stage."""
        return self.solution.chain.teachers(self.number)

    def _teacher_logits(self, nodes: Nodes) -> np.ndarray:
        return nodes.logits[:, [k - 1 for k in self._teachers]].mean(axis=1)

    @property
    def _pair(self) -> Population:
        """This stage (0) and its teacher (1) on fresh samples; a max-margin stage, which nobody learns from, in finite units."""
        k = self.number
        rows = np.zeros((2, k))
        rows[0, -1] = 1.0
        rows[1, [number - 1 for number in self._teachers]] = 1.0 / len(self._teachers)
        return self._population.combined(rows)

    @property
    def teacher_cosine(self) -> float:
        """Cosine between the weights of this stage and of its teacher; NaN for the first stage."""
        if not self._teachers or not self._known:
            return math.nan
        q = self._pair.overlap
        return float(q[0, 1] / math.sqrt(q[0, 0] * q[1, 1]))

    @property
    def teacher_agreement(self) -> float:
        """Probability that this stage and its teacher classify a fresh sample alike; NaN for the first stage."""
        if not self._teachers or not self._known:
            return math.nan
        return self._pair.agreement(0, 1)

    @property
    def test_logit_distance(self) -> float:
        """Mean of (h - h_teacher)^2 on a fresh sample; NaN for the first stage."""
        if not self._teachers or not self._known:
            return math.nan
        if self._margin_at_hand:
            return math.inf
        return self._pair.logit_distance(0, 1)

    @property
    def _margin_at_hand(self) -> bool:
        """Whether this stage or its teacher has infinite logits."""
        return self._known and any(
            _has_limit(self.solution.points[k - 1], MAX_MARGIN) for k in (*self._teachers, self.number)
        )

    @property
    def train_logit_distance(self) -> float:
        """Mean of (h - h_teacher)^2 on a training sample; NaN for the first stage."""
        if self._teachers and self._margin_at_hand:
            return math.inf
        return self._integral("train_logit_distance").value if self._teachers else math.nan

    def _find_train_logit_distance(self) -> Integral | tuple[float, float]:
        if self._square is not None:
            return self._square.logit_distance(self.number - 1, [k - 1 for k in self._teachers])
        return self._training.mean(lambda nodes: (nodes.logits[:, -1] - self._teacher_logits(nodes)) ** 2)

    @property
    def test_output_distance(self) -> float:
        """Mean of (sigmoid(h) - sigmoid(h_teacher))^2 on a fresh sample; NaN for the first stage."""
        return self._integral("test_output_distance").value if self._teachers else math.nan

    def _find_test_output_distance(self) -> tuple[float, float]:
        if self._margin_at_hand:
            return self._distance_of_signs(training=False)
        return self._pair.output_distance(0, 1)

    @property
    def train_output_distance(self) -> float:
        """Mean of (sigmoid(h) - sigmoid(h_teacher))^2 on a training sample; NaN for the first stage."""
        return self._integral("train_output_distance").value if self._teachers else math.nan

    def _find_train_output_distance(self) -> Integral | tuple[float, float]:
        if self._margin_at_hand:
            return self._distance_of_signs(training=True)
        if self._square is not None:
            return self._square.output_distance(self.number - 1, [k - 1 for k in self._teachers])

        def squared(nodes: Nodes) -> np.ndarray:
            own, teacher = nodes.logits[:, -1], self._teacher_logits(nodes)
            return output_difference(teacher, own - teacher) ** 2

        return self._training.mean(squared, (*self._teachers, self.number))

    def _distance_of_signs(self, *, training: bool) -> Integral:
        """Squared distance of outputs of which at least one is 0 or 1; on training samples that one is the label."""
        # No loss looks at a max-margin stage, so if the teacher is one, it is the stage before and the only one.
        points = self.solution.points
        step = [_has_limit(points[k - 1], MAX_MARGIN) for k in (self._teachers[-1], self.number)]
        if all(step):
            return Integral(0.0 if training else 1.0 - self.teacher_agreement, 0.0)
        if training:
            if step[0]:
                return self._training.mean(lambda nodes: special.expit((1.0 - 2.0 * nodes.labels) * _last(nodes)) ** 2)
            # The teacher's logits on the samples of this stage.
            samples = TrainingSamples(self.solution, max(self._teachers), self._sets)
            return samples.mean(
                lambda nodes: special.expit((1.0 - 2.0 * nodes.labels) * self._teacher_logits(nodes)) ** 2,
                self._teachers,
            )
        if step[0]:
            return Integral(math.nan, math.nan)
        # The own sign is that of a field that is Gaussian given the teacher's logit.
        return self._pair.sign_distance(0, 1)

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
"""Names of the observables of a stage, with their labels in plots.

The teacher in ``teacher_...`` and in distances is the one of the stage's loss; of several teachers, their mean logit.  Where the
loss has none, or a formula names several logits, it is the stage before (:meth:`numerics.models.Chain.teachers`).
"""
