"""What ``solve`` returns for a mixture of K classes: stages, their order parameters in blocks, and observables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from numerics.classes.binary import as_binary, blocks_of
from numerics.classes.formulas import class_loss
from numerics.classes.population import ClassPopulation, mean_loss
from numerics.classes.rules import LEVELS, first_level, sobol_rule
from numerics.classes.solver import CHECKS, StagePoint, Walk, solve_walk
from numerics.driver.chord import Found
from numerics.driver.outcome import Outcome, Status
from numerics.models import Chain, ClassMixture, Estimator, ParameterError, chosen, parameter_values
from numerics.scalar.prior import COMMON
from numerics.settings import DEFAULT, Settings
from numerics.solution.observables import OBSERVABLES
from numerics.solution.observables.registry import (
    ERROR_SUFFIX,
    REGISTRY,
    Observable,
    carries_observables,
    observables_of,
    split,
)
from numerics.solution.quadrature import Integral
from numerics.solution.samples import WeightedSamples, unit
from numerics.solution.stage import NOTHING, AnyStage
from theory.losses import Distillation, Loss

if TYPE_CHECKING:
    from numerics.solution.solution import Solution

Array = NDArray[np.float64]

COARSE_TOLERANCE = 1e-3
"""Of the solution on coarse nodes that a cold start begins with."""

DEFAULT_RTOL = {1: 1e-7, 2: 1e-5, 3: 1e-4, 4: 1e-4}
"""Accuracy of the test errors that is asked for by default, for logits of d coordinates: K-1, or K."""

LOOSE = 2e-4
"""For more."""

LEAST_OF_COPIES = 1e-4
"""Ridge from which on students that copy their teacher are found for all numbers of classes."""

FINE_TOLERANCE = 1e-10
"""Of solutions on the same nodes, of which differences are taken."""

_LOG2_SAMPLES = 12


@dataclass(frozen=True, eq=False)
class ClassSolution:
    """Saddle point of a chain on a mixture of K classes.

    Attributes
    ----------
    data, chain
        The problem.
    converged : bool
        Every stage converged, and the estimated error of the test errors is below what was asked for.
    residual : float
        Largest undamped residual of the saddle-point equations, in natural units.
    quadrature_error : float
        Estimated error of the test errors: their spread over scrambles of the nodes.
    iterations : int
        Evaluations of channel averages, all stages and levels together.
    message : str
        "converged", or what went wrong and where.
    prior : str
        "common eigenvectors": weights are treated coordinate by coordinate.

    Indexing gives the stages.  Logits and weights have K components that sum to 0, but where the best mean logit of a stage
    depends on the sample; classes are the last axes.

    Examples
    --------
    >>> from numerics import Estimator, solve
    >>> from numerics.models import similar_pairs
    >>> from theory.losses import CrossEntropy, Distillation
    >>> data = ClassMixture(alpha=3.0, gram=similar_pairs(3, 0.5), delta=0.5)
    >>> solution = solve(data, [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(temperature=2.0), ridge=0.1)])
    >>> [round(stage.test_error, 3) for stage in solution]
    [0.398, 0.376]
    >>> solution[1].class_errors.shape, solution[1].confusion.shape
    ((3,), (3, 3))
    """

    data: ClassMixture
    chain: Chain
    walk: Walk = field(repr=False)
    checks: tuple[Walk, ...] = field(repr=False)
    converged: bool
    residual: float
    quadrature_error: float
    iterations: int
    message: str

    @property
    def prior(self) -> str:
        return COMMON

    def __len__(self) -> int:
        return len(self.chain)

    def __getitem__(self, index: int | str | slice) -> ClassStage | tuple[ClassStage, ...]:
        """Stage by position from 0, or by name; stages of a slice."""
        return chosen(self.chain.names, index, lambda k: self._stages[k])

    @cached_property
    def _stages(self) -> tuple[ClassStage, ...]:
        return tuple(ClassStage(self, number) for number in range(1, len(self) + 1))

    @property
    def stages(self) -> tuple[ClassStage, ...]:
        """All stages."""
        return self._stages

    @property
    def points(self) -> tuple[StagePoint, ...]:
        """Saddle points of the stages that are solved."""
        return tuple(self.walk.points)

    @cached_property
    def means(self) -> Array:
        """m_tc: overlaps w_t.mu_c/N of the weights of each logit with the means, shape (T, K, K); ``means[t, c]`` is of class c."""
        return self._collect(lambda blocks: blocks.mean.T @ self.walk.basis)

    @cached_property
    def bias(self) -> Array:
        """b_t, shape (T, K)."""
        return self._collect(lambda blocks: blocks.bias @ self.walk.basis)

    def _collect(self, value: Callable) -> Array:
        found = [value(point.blocks) for point in self.points]
        k = self.data.classes_count
        shape = found[0].shape if found else (k, k)
        return np.array(found + [np.full(shape, np.nan)] * (len(self) - len(found)))

    @cached_property
    def overlap(self) -> Array:
        """Q_ts = W_t Lambda W_s^T/N, blocks of K x K, with the variances Lambda of the coordinates: shape (T, T, K, K)."""
        return overlap_blocks(self.walk, len(self))

    @cached_property
    def response(self) -> Array:
        """V_ts, 0 for s > t, shape (T, T, K, K)."""
        k, bases = self.data.classes_count, self.walk.bases
        found = np.full((len(self), len(self), k, k), np.nan)
        for t, point in enumerate(self.points):
            found[t] = 0.0
            for s, block in enumerate(point.blocks.response):
                found[t, s] = bases[t].T @ block @ bases[s]
        return found

    def to_dict(self) -> dict:
        """Everything as plain numbers and lists, ready for JSON (NaN and infinite numbers become None)."""
        from numerics.solution.solution import without_nan  # here: it loads the binary solver

        known = observables_of(self.data)
        result = {
            "parameters": parameter_values(self.data, self.chain),
            "classes": self.data.classes_count, "gram": np.array(self.data.gram).tolist(), "weights": list(self.data.weights),
            "prior": self.prior, "converged": self.converged, "residual": self.residual, "iterations": self.iterations,
            "quadrature_error": self.quadrature_error, "message": self.message,
            "stages": [
                {
                    "name": stage.name, "class_errors": stage.class_errors.tolist(), "confusion": stage.confusion.tolist(),
                    **{name: float(getattr(stage, name)) for name in known},
                    **{name + ERROR_SUFFIX: stage.error_of(name) for name in known},
                }
                for stage in self.stages
            ],
            "means": self.means.tolist(), "bias": self.bias.tolist(), "overlap": self.overlap.tolist(),
            "response": self.response.tolist(),
        }  # fmt: skip
        return without_nan(result)


def overlap_blocks(walk: Walk, size: int) -> Array:
    """Q_ts of the stages of a walk, (size, size, K, K), NaN for those that are not solved."""
    k, bases = walk.data.classes_count, walk.bases
    found = np.full((size, size, k, k), np.nan)
    rows = [blocks.cholesky for blocks in walk.blocks[:size]]
    for t, row in enumerate(rows):
        for s in range(t + 1):
            block = sum(row[r] @ rows[s][r].T for r in range(s + 1))
            found[t, s] = bases[t].T @ block @ bases[s]
            found[s, t] = found[t, s].T
    return found


class ClassSamples(WeightedSamples):
    """Training samples of a stage: the nodes of a walk, on which all stages up to it have logits."""

    many_classes = True

    def __init__(self, walk: Walk, number: int) -> None:
        self.stages, self.scale = number, np.ones(number)
        self.walk, self.number = walk, number

    @cached_property
    def _channel(self):
        nodes = sobol_rule(self.number, self.walk.d, _LOG2_SAMPLES, self.walk.scramble)
        channel = self.walk.channel(self.number, nodes)
        point = self.walk.points[self.number - 1]
        channel._extend(self.number, point.blocks, point.table)
        return channel

    @cached_property
    def _total(self) -> float:
        return sum(self._channel.cells[i].weight for i in self._channel.used)

    def mean(self, function: Callable[..., Array], rows: Sequence[Array], *, degree: int | None = None) -> Integral:
        """As :meth:`ClassPopulation.mean`, on training samples with the labels that were trained on."""
        return self._mean(function, rows, clean=False)

    def _mean(self, function: Callable[..., Array], rows: Sequence[Array], *, clean: bool) -> Integral:
        channel, rows = self._channel, np.atleast_2d(rows)
        total = 0.0
        for i in channel.used:
            cell, logits = channel.cells[i], channel.nodes[i].logits
            x = [sum(row[s] * logits[s] for s in np.flatnonzero(row)) @ channel.basis for row in rows]
            label = cell.class_index if clean else cell.label
            values = np.asarray(function(np.full(len(x[0]), label), *x), dtype=float)
            total += cell.weight * float(values.sum(axis=1).mean() if values.ndim == 2 else values.mean())
        return Integral(total / self._total, 0.0)

    def probability(self, level: float = 0.0, *, clean: bool = False) -> Integral:
        """P(the largest logit is not that of the label), of the label that was trained on, or of the class (``clean``)."""
        return self._mean(
            lambda labels, h: np.argmax(h, axis=1) != labels, [unit(self.stages, self.stages)], clean=clean
        )

    def loss(self, loss: Loss) -> Integral:
        """Average of a loss of the last stage."""
        seen = loss.stages(self.number)
        own = class_loss(loss, self.walk.data.classes_count, [self.walk.losses[s - 1].free for s in seen])
        return mean_loss(self, own, seen, self.walk.points[self.number - 1].table)


def _attribute(observable: Observable) -> property:
    return property(lambda stage: stage.find(observable).value, doc=observable.__doc__)


@carries_observables(_attribute)
class ClassStage(AnyStage):
    """One stage of a solution on K classes, with the observables that these data have as attributes.

    ``<observable>_quadrature_error`` is the estimated error of each: its spread over scrambles of the nodes.
    """

    def __init__(self, solution: ClassSolution, number: int, walk: Walk | None = None) -> None:
        self.solution, self.number, self.walk = solution, number, solution.walk if walk is None else walk
        self.data, self.chain = solution.data, solution.chain
        self._kept: dict[Observable, Integral] = {}

    def __repr__(self) -> str:
        return f"<{self.name}: norm={self.norm:.6g}, test_error={self.test_error:.6g}>"

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
    def estimator(self) -> Estimator:
        """The stage."""
        return self.chain[self.number - 1]

    @property
    def known(self) -> bool:
        """Whether the stage is solved."""
        return len(self.walk.points) >= self.number

    @property
    def means(self) -> Array:
        """See :attr:`ClassSolution.means`, of this stage, shape (K, K)."""
        return self.solution.means[self.number - 1]

    @property
    def biases(self) -> Array:
        """Of the K logits, sum 0 where those do."""
        return self.solution.bias[self.number - 1]

    @cached_property
    def fresh(self) -> ClassPopulation:
        """Law of the logits of the stages up to this one on fresh samples."""
        k, basis = self.number, self.walk.basis
        means = np.array([(blocks.mean + blocks.bias[:, None]).T @ basis for blocks in self.walk.blocks[:k]])
        table = self.walk.points[k - 1].table
        walk = self.walk
        return ClassPopulation(
            self.data,
            means,
            overlap_blocks(walk, k),
            walk.scramble,
            table,
            walk.permutations,
            np.array(walk.prior.norm_ratios[:k]),
        )

    @cached_property
    def samples(self) -> ClassSamples:
        """Law of the same logits on the samples that it was trained on."""
        return ClassSamples(self.walk, self.number)

    @property
    def class_errors(self) -> Array:
        """P(it decides for another class | class), shape (K,)."""
        return self.fresh.class_errors(-1) if self.known else np.full(self.data.classes_count, np.nan)

    @property
    def confusion(self) -> Array:
        """P(it decides for class k | class c), a row a class c, shape (K, K)."""
        k = self.data.classes_count
        return self.fresh.confusion(-1) if self.known else np.full((k, k), np.nan)

    @property
    def response_to_field(self) -> float:
        """Trace of V_tt."""
        d = self.walk.d - self.walk.losses[self.number - 1].pinned
        return float(np.trace(self.walk.points[self.number - 1].blocks.response[-1][:d, :d]))

    @property
    def objective(self) -> Integral:
        """Minimised training objective per input, from the averages."""
        alpha = self.samples._total
        loss = self.samples.loss(self.estimator.loss)
        return alpha * loss + 0.5 * self.estimator.ridge * self.fresh.weight_norm(-1)

    def find(self, observable: Observable) -> Integral:
        """Value of an observable, found once; NaN if the stage was not solved."""
        if not self.known:
            return NOTHING
        if observable not in self._kept:
            self._kept[observable] = observable.evaluate(self)
        return self._kept[observable]

    def error_of(self, name: str) -> float:
        """Estimated absolute error of an observable: root mean square of its differences on further scrambles.

        Raises
        ------
        numerics.models.ParameterError
            For an unknown name.
        """
        if name not in OBSERVABLES:
            raise ParameterError(f"name must be one of {', '.join(OBSERVABLES)}; got {name!r}")
        observable = REGISTRY[name]
        value = self.find(observable).value
        if not math.isfinite(value):
            return math.nan
        return self.spread(lambda stage: stage.find(observable).value)

    def displaced(self, name: str) -> tuple[float, ...]:
        """An observable on each of the further scrambles of the nodes."""
        return tuple(
            float(getattr(ClassStage(self.solution, self.number, walk), name)) for walk in self.solution.checks
        )

    def spread(self, value: Callable[[ClassStage], Array | float]) -> float:
        """Root mean square, over further scrambles, of the largest difference of something of this stage."""
        here = np.asarray(value(self))
        others = [value(ClassStage(self.solution, self.number, walk)) for walk in self.solution.checks]
        if len(others) < CHECKS:
            return math.inf
        return float(np.sqrt(np.mean([np.max(np.abs(np.asarray(other) - here)) ** 2 for other in others])))


def default_rtol(d: int) -> float:
    """Accuracy of the test errors that is asked for by default, of logits with d coordinates."""
    return DEFAULT_RTOL.get(d, LOOSE)


def solve_classes(
    data: ClassMixture, chain: Chain, *, rtol: float | None = None, max_iterations: int | None = None,
    start: ClassSolution | None = None, settings: Settings = DEFAULT, solve_binary: Callable[..., Solution],
) -> ClassSolution:  # fmt: skip
    """Solution of a chain on K classes, converged or not; see :func:`numerics.solve`, which is ``solve_binary``.

    Two classes go to the binary core where it takes them (:func:`numerics.classes.binary.as_binary`).
    """
    limit = settings.max_iterations if max_iterations is None else max_iterations
    binary = as_binary(data, chain)
    if binary is not None:
        return _of_binary(data, chain, solve_binary(*binary, rtol=rtol, max_iterations=limit, settings=settings))
    return solve_on_nodes(data, chain, rtol=rtol, max_iterations=limit, start=start)


def _of_binary(data: ClassMixture, chain: Chain, found: Solution) -> ClassSolution:
    """A binary solution as one of two classes; its order parameters, off by their error, stand for those on other nodes."""
    walks = []
    for scramble in range(1 + CHECKS):
        walk = Walk(data, chain.resolved(data), 0, scramble)
        moved = found if scramble == 0 or not found.converged else found._displaced
        for blocks, point in zip(blocks_of(moved, data), moved.points, strict=False):
            if point.status == 0:
                outcome = Outcome(point.status, point.iterations, point.residual, point.last_step, point.defect)
                walk.points.append(StagePoint(blocks, None, None, outcome))
                walk.found.append(Found(blocks, outcome, None))
        walk.prior.norm_ratios.extend(moved.norm_ratios)
        walks.append(walk)
    return ClassSolution(
        data, chain, walks[0], tuple(walks[1:]), found.converged, found.residual, found.quadrature_error, found.iterations,
        found.message,
    )  # fmt: skip


def _copies(chain: Chain, number: int) -> bool:
    """Whether a stage sees all inputs, and has its teacher's outputs as its minimum but for a tiny ridge."""
    stage = chain[number - 1]
    if number == 1 or stage.eta < 1.0 or stage.ridge >= LEAST_OF_COPIES or not isinstance(stage.loss, Distillation):
        return False
    return stage.loss.parameters["mixing"] == stage.loss.parameters["temperature"] == 1.0


def solve_on_same_nodes(
    data: ClassMixture, chain: Chain, like: ClassSolution, start: ClassSolution | None = None,
    max_iterations: int = DEFAULT.max_iterations,
) -> ClassSolution:  # fmt: skip
    """On the nodes of another solution, without an estimate of the error: smooth as a function of parameters.

    Two classes that the binary core takes are solved by the equations of this room all the same.
    """
    known = [] if start is None else _kept(start)
    if not known:
        rough, _ = solve_walk(data, chain, -1, max_iterations, tolerance=COARSE_TOLERANCE)
        known = rough.found[: len(rough.points)]
    level, fields = like.walk.level, like.walk.fields
    walk, outcome = solve_walk(data, chain, level, max_iterations, known, FINE_TOLERANCE, fields)
    solved = outcome.status == Status.CONVERGED
    return ClassSolution(
        data, chain, walk, (), solved, outcome.residual, math.nan, outcome.iterations, Status(outcome.status).message
    )


def _kept(solution: ClassSolution) -> list[Found]:
    """The stages of a solution, to start from."""
    pairs = zip(solution.walk.blocks, solution.walk.found, strict=False)
    return [Found(blocks, found.outcome, found.factors) for blocks, found in pairs]


def _checked(solution: ClassSolution, wanted: float) -> tuple[tuple[Walk, ...], float]:
    """Further scrambles, and the error of the test errors: up to the scramble that alone makes it larger than what is wanted."""
    here = np.array([stage.test_error for stage in solution.stages])
    checks: list[Walk] = []
    squares = np.zeros(len(here))
    for scramble in range(1, CHECKS + 1):
        check = solution.walk.displaced(scramble)
        if check is None:
            return tuple(checks), math.inf
        checks.append(check)
        there = [ClassStage(solution, number, check).test_error for number in range(1, len(here) + 1)]
        squares += (here - there) ** 2 / CHECKS
        if math.sqrt(squares.max()) > wanted:
            break
    return tuple(checks), float(math.sqrt(squares.max()))


def solve_on_nodes(
    data: ClassMixture, chain: Chain, *, rtol: float | None = None, max_iterations: int = DEFAULT.max_iterations,
    start: ClassSolution | None = None,
) -> ClassSolution:  # fmt: skip
    """As :func:`solve_classes`, of two classes too by this room's equations."""
    iterations = failures = 0
    if start is not None:
        rough, known = start.walk, _kept(start)
    else:
        rough, outcome = solve_walk(data, chain, -1, max_iterations, tolerance=COARSE_TOLERANCE)
        iterations, known = outcome.iterations, rough.found[: len(rough.points)]
    fields = rough.widths
    rtol = default_rtol(rough.d) if rtol is None else rtol
    level = first_level(len(chain) * rough.d, alike=rough.alike)
    while True:
        walk, outcome = solve_walk(data, chain, level, max_iterations, known, fields=fields)
        iterations += outcome.iterations
        solved = outcome.status == Status.CONVERGED
        finest = level == LEVELS - 1
        solution = ClassSolution(
            data, chain, walk, (), False, outcome.residual, math.inf, iterations, Status(outcome.status).message
        )
        error = math.inf
        if solved:
            checks, error = _checked(solution, math.inf if finest else rtol)
            solution = replace(solution, checks=checks)
        if solved and len(solution.checks) == CHECKS and error <= rtol:
            return replace(solution, converged=True, quadrature_error=error, message="converged")
        failures += not solved
        if failures > 1 or finest:
            break
        known = walk.found[: len(walk.points)]
        fields = walk.widths
        level = walk.next_level(error, rtol) if solved else level + 1
    if solved:
        message = f"the estimated error {error:.1e} of the test errors exceeds {rtol:.1e}"
    else:
        number = len(walk.points) + 1
        message = f"stage {number} ({chain.name(number)}): {Status(outcome.status).message}"
        if _copies(chain, number):
            message += f"; with so small a ridge it copies its teacher: take that, or a ridge >= {LEAST_OF_COPIES:g}"
    return replace(solution, quadrature_error=error, message=message)
