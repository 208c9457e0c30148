"""What ``solve`` returns: a chain whose stages are solved, and each of them with its observables."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from numerics.codegen import observables
from numerics.models import (
    Chain,
    DataModel,
    Estimator,
    Frozen,
    ParameterError,
    chosen,
    in_equations,
    parameter_values,
    total_alpha,
)
from numerics.scalar.directions import sobol_directions
from numerics.scalar.limits import MAXIMUM_LIKELIHOOD
from numerics.scalar.nodes import Nodes, StagePoint, extend, extend_any, label_nodes, sharpness_along
from numerics.scalar.points import MAX_MARGIN, MINIMUM_NORM
from numerics.scalar.prior import WeightMoments, coordinate_groups, kind_of_prior, norm_ratios
from numerics.settings import Settings
from numerics.solution.gaussian import semidefinite_cholesky
from numerics.solution.observables import OBSERVABLES
from numerics.solution.observables.losses import train_loss
from numerics.solution.observables.registry import (
    ERROR_SUFFIX,
    REGISTRY,
    Observable,
    carries_observables,
    observables_of,
    split,
)
from numerics.solution.population import Population
from numerics.solution.quadrature import Integral, OneRule
from numerics.solution.samples import WeightedSamples
from numerics.solution.stage import NOTHING, AnyStage
from numerics.solution.state import State, times
from numerics.solution.training import TrainingSamples
from numerics.square_chain.spectral import SpectralStages
from numerics.square_chain.training import SquareSamples, SquareTraining

_OUTPUT_BEND = (0.0, 1.0)  # of sigmoid(h) and of cross-entropies
_TENSOR_STAGES = 5  # up to which averages over samples are on a tensor product
_SHORT = 3  # stages of a chain whose averages are as accurate as its order parameters
_LONG_STEP, _LONG_TAIL = 0.95, 1e-3  # the latter times the accuracy asked for
_ROWS = 2**13  # fixed directions beyond
_ROUNDING = 4e-16
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
    prior : str
        How the weights were treated: "common eigenvectors", coordinate by coordinate, or "one covariance for all", by matrices,
        where stages see what has no eigenvectors in common.  ``Settings(common=False)`` takes the matrices wherever inputs are
        Dense.

    Indexing gives the stages: ``solution[0]`` the teacher, ``solution[-1]`` the last.

    In the limit ridge -> 0 some entries are infinite: ``V_tt`` of a minimum-norm interpolator and the responses to it; all order
    parameters of a max-margin stage.  Ratios stay finite, see :class:`StageSolution`.

    Examples
    --------
    >>> from numerics import GaussianMixture, solve
    >>> from theory.losses import CrossEntropy, Distillation
    >>> chain = [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)]
    >>> solution = solve(GaussianMixture(alpha=2.0, rho=0.2, delta=1.0), chain)
    >>> solution.overlap.round(6)
    array([[2.935967, 1.85676 ],
           [1.85676 , 3.11561 ]])
    >>> student = solution[1]
    >>> round(student.generalization_gap, 6), round(student.teacher_agreement, 6)
    (0.104194, 0.873219)
    """

    data: DataModel
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

    @property
    def prior(self) -> str:
        return kind_of_prior(self.data, self.equations, self.settings.common)

    @cached_property
    def equations(self) -> Chain:
        """The chain that is solved: with the rule of the data, if there is one, before the stages."""
        return in_equations(self.data, self.chain)

    def __getitem__(self, index: int | str | slice) -> StageSolution | tuple[StageSolution, ...]:
        """Stage by position from 0, so that ``solution[1]`` is the student, or by name; stages of a slice."""
        first = 1 + self.equations.hidden
        return chosen(self.chain.names, index, lambda k: StageSolution(self, first + k))

    @cached_property
    def stages(self) -> tuple[StageSolution, ...]:
        """All stages."""
        return tuple(self[k] for k in range(len(self)))

    @cached_property
    def state(self) -> State:
        """Order parameters as arrays over stages."""
        return State(self.points, len(self.equations))

    @property
    def finite_magnetization(self) -> np.ndarray:
        """As ``magnetization``, for a max-margin stage that of weights with ``s h >= 1``."""
        if self.equations.hidden:
            return self.state.overlap[1:, 0]
        return self.state.magnetization

    @property
    def finite_bias(self) -> np.ndarray:
        """As ``bias``, for a max-margin stage that of weights with ``s h >= 1``."""
        return self._shown(self.state.bias)

    @property
    def finite_overlap(self) -> np.ndarray:
        """As ``overlap``, for a max-margin stage that of weights with ``s h >= 1``."""
        return self._shown(self.state.overlap)

    def _shown(self, values: np.ndarray) -> np.ndarray:
        """Of the user's stages."""
        kept = slice(self.equations.hidden, None)
        return values[(kept,) * values.ndim]

    @cached_property
    def magnetization(self) -> np.ndarray:
        """m_t = w_t.v/N, or w_t.theta/N for labels of a rule, shape (stages,)."""
        return times(self.finite_magnetization, self._shown(self.state.scale))

    @cached_property
    def bias(self) -> np.ndarray:
        """b_t, shape (stages,)."""
        return times(self.finite_bias, self._shown(self.state.scale))

    @cached_property
    def cholesky(self) -> np.ndarray:
        """Lower-triangular C with Q = C C^T, shape (stages, stages)."""
        if self.equations.hidden:
            return semidefinite_cholesky(self.overlap)
        return times(self.state.cholesky, self.state.scale[:, None])

    @cached_property
    def overlap(self) -> np.ndarray:
        """Q_ts = w_t.w_s/N, shape (stages, stages)."""
        scale = self._shown(self.state.scale)
        return times(self.finite_overlap, scale[:, None] * scale)

    @cached_property
    def response(self) -> np.ndarray:
        """V_ts, lower triangular, shape (stages, stages)."""
        return self._shown(self.responses)

    @cached_property
    def responses(self) -> np.ndarray:
        """V_ts of the chain that is solved, lower triangular."""
        if any(point.vanishes for point in self.points[:-1]):
            from numerics.solution.responses import completed_responses

            return completed_responses(self)
        return self.state.response

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
                self.nodes(number - 1, training=training, finer=finer), self.data, self.equations, number, self.points[number - 1],
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
    def square_training(self) -> SquareTraining:
        """Law of the training logits of a chain that was solved by :mod:`numerics.square_chain`."""
        return SquareTraining(self.spectral)

    @cached_property
    def norm_ratios(self) -> np.ndarray:
        """|w|^2/N over Q of all stages that are solved, shape (stages,)."""
        return norm_ratios(self.data, self.equations, self.points, self.settings.common)

    @cached_property
    def _displaced(self) -> Solution:
        """With order parameters off by their error."""
        from numerics.solution.errors import displaced  # here: it needs the compiled solver, most readers do not

        return displaced(self)

    def _settings_of_averages(self, finer: int) -> Settings:
        """Those of the solution, of which a tenth is cut off at each finer level; for long chains larger steps."""
        settings = self.settings
        step, tail = settings.outer_step, settings.tail
        if len(self.equations) > _SHORT:
            step, tail = max(step, _LONG_STEP), max(tail, _LONG_TAIL * settings.rtol)
        return replace(settings, outer_step=step, tail=tail * 0.1**finer)

    @cached_property
    def resolved(self) -> tuple[Estimator | Frozen, ...]:
        """The stages with Hebbian and Bayes-optimal ones written as the Estimators they are on these data."""
        return self.equations.resolved(self.data)

    def moments(self, number: int) -> WeightMoments:
        """Moments of the weights of stages 1..number, for each group of coordinates."""
        stages = self.resolved
        found = WeightMoments(coordinate_groups(self.data, self.equations, self.settings.common))
        for earlier, stage, point in zip(range(1, number + 1), stages, self.points, strict=False):
            found.add_stage(earlier, stage, point.conjugates, point.limit)
        return found

    def _long_nodes(self, number: int, *, training: bool, finer: int) -> Nodes:
        """Nodes of a long chain: earlier stages along fixed directions, twice as many a level, this one integrated over."""
        directions = sobol_directions(len(self.equations))
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
        return in_plain_numbers(self, overlap=self.overlap, response=self.response)


def in_plain_numbers(solution: Solution, **arrays: np.ndarray) -> dict:
    """A solution whose stages have the observables of its data, and what else there is, for JSON."""
    known = observables_of(solution.data)
    result = {
        "parameters": parameter_values(solution.data, solution.chain),
        "prior": solution.prior, "converged": solution.converged, "residual": solution.residual, "iterations": solution.iterations,
        "quadrature_error": solution.quadrature_error, "message": solution.message,
        "stages": [
            {
                "name": stage.name, "limit": stage.limit, **{name: getattr(stage, name) for name in known},
                **{name + ERROR_SUFFIX: stage.error_of(name) for name in known},
            }
            for stage in solution.stages
        ],
        **{name: values.tolist() for name, values in arrays.items()},
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


def _attribute(observable: Observable) -> property:
    """An observable as a number."""
    return property(lambda stage: float(stage.find(observable).value), doc=observable.__doc__)


@carries_observables(_attribute)
class StageSolution(AnyStage):
    """One stage of a solution, with all observables (:data:`numerics.OBSERVABLES`) as attributes.

    ``<observable>_quadrature_error`` is the estimated error of each.  A stage that did not converge has NaN observables.

    For a max-margin stage (``limit``) weights, bias and logits are infinite, and so are test losses and logit distances.
    What depends on their direction or sign alone has its limit: errors, cosines, agreement, ``relative_bias``, ``margin``,
    output distances, and the calibration, whose slope is 0.

    A stage whose weights are exactly 0 gives every sample the class of its bias; with bias 0 it decides nothing, and its errors are
    NaN, as cosines are.

    Examples
    --------
    >>> from numerics import GaussianMixture, solve
    >>> from theory.losses import CrossEntropy, Loss
    >>> stage = solve(GaussianMixture(alpha=2.0, rho=0.2), Estimator(CrossEntropy(), ridge=0.1))[0]
    >>> 0 < stage.train_error_quadrature_error < 1e-8 * stage.train_error
    True
    >>> constant = Loss.from_expression("softplus(h) - h/4")  # every target is 1/4
    >>> stage = solve(GaussianMixture(alpha=2.0, rho=0.2), Estimator(constant, ridge=0.1))[0]
    >>> stage.norm, round(stage.bias, 6), stage.test_error, stage.cosine
    (0.0, -1.098612, 0.2, nan)
    """

    def __init__(self, solution: Solution, number: int, *, check: bool = False) -> None:
        self.solution, self.number = solution, number
        self.data, self.chain = solution.data, solution.equations
        self._check = check

    def __repr__(self) -> str:
        return (
            f"<{self.name}: magnetization={self.magnetization:.6g}, norm={self.norm:.6g}, bias={self.bias:.6g}, "
            f"test_error={self.test_error:.6g}>"
        )

    def __getattr__(self, name: str) -> float:
        observable, is_error = split(name)
        if is_error and observable in OBSERVABLES:
            return self.error_of(observable)
        raise AttributeError(f"a stage has no attribute {name!r}")

    @property
    def name(self) -> str:
        """Name of the stage in its chain."""
        return self.chain.name(self.number)

    @property
    def estimator(self) -> Estimator | Frozen:
        """The stage, a Hebbian or Bayes-optimal one as the Estimator that it is on these data."""
        return self.solution.resolved[self.number - 1]

    @property
    def known(self) -> bool:
        """Whether the stage is solved."""
        return self.solution.state.knows(self.number)

    @property
    def limit(self) -> str | None:
        """Which limit a ridge of 0 stands for: "maximum likelihood", "minimum norm" or "max margin"; None at positive ridge."""
        if not self.trained or self.estimator.ridge > 0 or not self.known:
            return None
        return self.solution.points[self.number - 1].limit or MAXIMUM_LIKELIHOOD

    @property
    def margin(self) -> float:
        """Smallest ``s h`` on the training set at ``|w|^2 = N``, of a max-margin stage; NaN for all others."""
        return 1.0 / math.sqrt(self.fresh.weight_norm(-1)) if self.limit == MAX_MARGIN else math.nan

    @property
    def constraint(self) -> str | None:
        """The limit, if it is one under a hard constraint: "minimum norm" or "max margin"."""
        return self.solution.points[self.number - 1].limit

    @property
    def relative_bias(self) -> float:
        """Bias over norm, finite in every limit; without weights infinite, or NaN if the bias is 0 too."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.fresh.bias[-1] / np.sqrt(self.fresh.overlap[-1, -1]))

    @cached_property
    def fresh(self) -> Population:
        """Law of the logits of the stages up to this one on fresh samples, for max-margin stages in finite units."""
        solution, k = self.solution, self.number
        ratios = solution.norm_ratios[:k]
        return solution.state.population(self.data, k, solution.settings.rtol, norm_ratio=ratios, check=self._check)

    @cached_property
    def samples(self) -> WeightedSamples:
        """Law of the same logits on the samples that it was trained on."""
        if self.solution.spectral is not None:
            return SquareSamples(self.solution.square_training, self.number)
        return TrainingSamples(self.solution, self.number, check=self._check)

    @property
    def response_to_field(self) -> float:
        """V_tt."""
        return float(self.solution.responses[self.number - 1, self.number - 1])

    @property
    def objective(self) -> Integral:
        """-Phi, the minimised training objective per input, from the potential."""
        if self.solution.spectral is not None:
            return self.samples.objective(self.estimator.loss, self.fresh.overlap[-1, -1])
        alpha = total_alpha(self.data, self.sets)
        if self.limit == MAX_MARGIN:
            return Integral(0.0, 0.0)
        solution, t = self.solution, self.number
        point = solution.points[t - 1]
        if self.limit == MINIMUM_NORM or point.vanishes:  # no penalty
            return alpha * train_loss(self)
        envelope = self.samples.envelope(self.estimator.loss, self.response_to_field)
        constants = solution.moments(t - 1).prior_rows(t - 1, self.estimator.ridge)
        parameters = [self.fresh.magnetization[-1], *self.fresh.overlap[-1], *point.response_row]
        inputs = [*parameters, *point.conjugates, alpha * envelope.value]
        return Integral(-float(observables.free_energy(t)(inputs, constants)), alpha * envelope.error)

    def find(self, observable: Observable) -> Integral:
        """Value of an observable and the error of its own integration, found once a solution; NaN if the stage was not solved."""
        if not self.known:
            return NOTHING
        kept, key = self.solution._cache, (self.number, observable, self._check)
        if key not in kept:
            kept[key] = observable.evaluate(self)
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
            One of :data:`numerics.OBSERVABLES`.

        Returns
        -------
        float
            NaN where the observable is NaN, 0 where it is infinite.

        Raises
        ------
        numerics.models.ParameterError
            For an unknown name.
        """
        if name not in OBSERVABLES:
            raise ParameterError(f"name must be one of {', '.join(OBSERVABLES)}; got {name!r}")
        observable = REGISTRY[name]
        found = self.find(observable)
        if not math.isfinite(found.value):
            return math.nan if math.isnan(found.value) else 0.0
        own = found.error
        if isinstance(found, OneRule):
            again = type(self)(self.solution, self.number, check=True)
            own += abs(again.find(observable).value - found.value)
        moved = type(self)(self.solution._displaced, self.number).find(observable).value
        return float(own + abs(moved - found.value) + _ROUNDING * abs(found.value))
