"""Students of two teachers that are not fitted by a convex loss with a bias: Figure 4 of Saglietti and Zdeborova.

Both have m = 1, Q = 1 + Delta/alpha and the bias ``b = (Delta Q/2) log(rho/(1 - rho))`` of the Bayes-optimal classifier:

- ``"hebbian"``: ``w = (1/alpha) sum_mu s_mu x_mu/sqrt(N)`` on the student's own samples, the linear loss ``-s h`` with
  ridge alpha.  Its force is ``f_1 = s``, its response ``V_11 = 1/alpha``: ``h_1 = omega_1 + (Delta/alpha) s``.
- ``"frozen"``: the same order parameters, but independent of the student's samples: ``f_1 = 0``, ``V_11 = 0``.

The law of (label, field, force, logit) of such a teacher is written down here as nodes; the student is an ordinary stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray
from threadpoolctl import threadpool_limits

from figures.build import ERROR_SUFFIX, Effort
from numerics.codegen import EQUATION_NAMES, LossFunctions, core_module, equations_module, loss_module
from numerics.formulas import test_error
from numerics.models import Estimator, GaussianMixture
from numerics.nodes import Nodes, StagePoint
from numerics.optimisers import minimise_ridge
from numerics.patterns import WeightMoments, nested_patterns
from numerics.simulation import draw, estimate
from numerics.solver import ConvergenceError

KINDS = ("frozen", "hebbian")

FIELD_RANGE, FIELD_STEP = 8.4, 0.12
"""Trapezoid rule over the teacher's field, in standard deviations: its error is below 1e-14."""

STEP, TAIL, TOLERANCE, ITERATIONS = 0.4, 1e-14, 1e-10, 60
FIRST_RIDGE, RIDGES_PER_DECADE = 10.0, 4


@dataclass(frozen=True)
class KnownTeacher:
    """A teacher given by its order parameters.

    Attributes
    ----------
    kind : str
        "frozen" or "hebbian".
    data : GaussianMixture
    """

    kind: str
    data: GaussianMixture

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    @property
    def norm_squared(self) -> float:
        """``Q = 1 + Delta/alpha``."""
        return 1.0 + self.data.delta / self.data.alpha

    @property
    def bias(self) -> float:
        """``b = (Delta Q/2) log(rho/(1 - rho))``."""
        rho = self.data.rho
        return 0.5 * self.data.delta * self.norm_squared * math.log(rho / (1.0 - rho))

    @property
    def response(self) -> float:
        """``V_11``."""
        return 1.0 / self.data.alpha if self.kind == "hebbian" else 0.0

    @property
    def force(self) -> float:
        """``s f_1``."""
        return 1.0 if self.kind == "hebbian" else 0.0

    def nodes(self) -> Nodes:
        """Joint law of label, field, force and logit on training samples; weights add up to alpha."""
        data = self.data
        g = np.arange(-FIELD_RANGE, FIELD_RANGE + FIELD_STEP / 2, FIELD_STEP)
        density = np.exp(-0.5 * g**2)
        density /= density.sum()
        parts = []
        for sign, probability in ((1.0, data.rho), (-1.0, 1.0 - data.rho)):
            s = np.full_like(g, sign)
            force = self.force * s
            field = s + self.bias + math.sqrt(data.delta * self.norm_squared) * g
            logit = field + data.delta * self.response * force
            parts.append((data.alpha * probability * density, s, g, force, logit))
        weight, s, g, force, logit = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        design = np.column_stack((s, np.ones_like(s), g, force))
        return Nodes(weight, design, (s + 1.0) / 2.0, logit[:, None])

    def point(self) -> StagePoint:
        """The teacher as a solved stage."""
        log_v = math.log(self.response) if self.response else -math.inf
        unknowns = np.array([1.0, self.bias, math.log(self.norm_squared), log_v])
        return StagePoint(unknowns, np.full(3, math.nan), 0, 0, 0.0, 0.0, 0.0)

    def weights(
        self, design: np.ndarray, signs: np.ndarray, mean: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Weights at finite size: ``design`` x/sqrt(N), shape (M, N); ``mean`` v, shape (N,)."""
        if self.kind == "hebbian":
            return design.T @ signs / self.data.alpha
        return mean + math.sqrt(self.data.delta / self.data.alpha) * generator.standard_normal(mean.size)


def solve_student(teacher: KnownTeacher, student: Estimator) -> StagePoint:
    """Saddle point of a student of a known teacher.

    Along a path of falling ridges, by Newton's method on the equations of a second stage.

    Raises
    ------
    ConvergenceError
        If Newton's method fails.
    """
    data, loss = teacher.data, student.loss
    core, equations, compiled = core_module(), equations_module(2), loss_module(student.loss)
    functions = core.new_vector_functions()
    for name in EQUATION_NAMES:
        core.push_vector_function(functions, getattr(equations, name))
    nodes, stage = teacher.nodes(), teacher.point()
    moments = WeightMoments(nested_patterns((1.0, student.eta)))
    moments.mu[:, 0] = 1.0
    moments.b[:, 0, 0] = teacher.norm_squared
    moments.g[:, 0, 0] = teacher.response
    triangle = stage.cholesky_row
    conjugates, updated = np.empty(6), np.empty(5)
    decades = max(math.log10(FIRST_RIDGE / student.ridge), 0.0)
    size = student.eta * data.alpha / (FIRST_RIDGE + 0.25 * data.alpha)
    x = np.array(
        [0.5 * size, teacher.bias, 0.3 * size, 2 * math.log(0.5 * size), 0.0, math.log(student.eta / FIRST_RIDGE)]
    )
    for ridge in np.geomspace(max(FIRST_RIDGE, student.ridge), student.ridge, 2 + int(RIDGES_PER_DECADE * decades)):
        status, used, residual, last_step, defect = core.solve_stage(
            compiled.slopes, compiled.targets, compiled.features, len(loss.features), int(loss.split is not None),
            functions, 0, x, nodes.weight, nodes.design, nodes.labels, nodes.seen(loss.stages(2)),
            np.array(loss.values, dtype=float), data.delta, np.concatenate(([data.delta], triangle)),
            moments.prior_constants(1, float(ridge)), triangle, np.array([teacher.response]), np.nan, STEP, TAIL, TOLERANCE,
            ITERATIONS, conjugates, updated,
        )  # fmt: skip
        if status != 0:
            raise ConvergenceError(f"student of the {teacher.kind} teacher at {data}, ridge {ridge:g}: no convergence")
    return StagePoint(x, conjugates[:-1].copy(), status, used, residual, last_step, defect)


def student_error(point: StagePoint, data: GaussianMixture) -> float:
    """Test error of a solved stage."""
    return float(test_error()(point.magnetization, point.bias, point.norm_squared, data.delta, data.rho))


@dataclass(frozen=True)
class _Objective:
    """A loss with its targets filled in."""

    functions: LossFunctions
    labels: np.ndarray
    earlier: np.ndarray

    def value(self, h: np.ndarray) -> np.ndarray:
        return self.functions.value(h, self.labels, self.earlier)

    def derivatives(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.functions.derivatives(h, self.labels, self.earlier)


def simulate_student(teacher: KnownTeacher, student: Estimator, effort: Effort, seed: int) -> dict[str, np.ndarray]:
    """Train students at finite size: magnetization, bias, norm_squared, teacher_overlap, test_error, shape (runs,) each."""
    data, n = teacher.data, effort.n_inputs
    active = round(student.eta * n)
    rows = []
    for run in range(effort.n_runs):
        sample = draw(data, n, np.random.SeedSequence(seed, spawn_key=(run,)))
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(run, 1)))
        weights = teacher.weights(sample.design, 2 * sample.labels - 1, sample.mean, generator)
        logits = sample.design @ weights + teacher.bias
        objective = _Objective(LossFunctions(student.loss), sample.labels, logits[:, None])
        with threadpool_limits(1, user_api="blas"):
            fit = minimise_ridge(sample.design[:, :active], objective, student.ridge)
        m = float(fit.weights @ sample.mean[:active]) / n
        q = float(fit.weights @ fit.weights) / n
        overlap = float(fit.weights @ weights[:active]) / n
        rows.append((m, fit.bias, q, overlap, float(test_error()(m, fit.bias, q, data.delta, data.rho))))
    names = ("magnetization", "bias", "norm_squared", "teacher_overlap", "test_error")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


# Parts of a figure's work.


@dataclass(frozen=True)
class StudentCurve:
    """Test error of students of a known teacher along alpha."""

    kind: str
    data: GaussianMixture
    student: Estimator
    over: Mapping[str, np.ndarray]

    def _teacher(self, k: int) -> KnownTeacher:
        (alpha,) = self.over.values()
        return KnownTeacher(self.kind, GaussianMixture(float(alpha[k]), self.data.rho, self.data.delta))

    def tasks(self) -> list[Callable[[], object]]:
        (alpha,) = self.over.values()
        return [lambda k=k: self._point(k) for k in range(len(alpha))]

    def _point(self, k: int) -> object:
        teacher = self._teacher(k)
        return student_error(solve_student(teacher, self.student), teacher.data)

    def join(self, pieces: Sequence) -> xarray.Dataset:
        return xarray.Dataset({"test_error": (("stage", "alpha"), [list(pieces)])}, {"stage": ["student"], **self.over})


@dataclass(frozen=True)
class SimulatedStudents(StudentCurve):
    """The same at finite size."""

    effort: Effort

    def _point(self, k: int) -> object:
        seed = int(np.random.SeedSequence([self.effort.seed, k]).generate_state(1)[0])
        found = estimate(simulate_student(self._teacher(k), self.student, self.effort, seed)["test_error"])
        return found.mean, found.standard_error

    def join(self, pieces: Sequence) -> xarray.Dataset:
        mean, error = np.array(pieces).T
        dims = ("stage", "alpha")
        return xarray.Dataset(
            {"test_error": (dims, [mean]), "test_error" + ERROR_SUFFIX: (dims, [error])},
            {"stage": ["student"], **self.over},
            {"n_inputs": self.effort.n_inputs, "n_runs": self.effort.n_runs, "seed": self.effort.seed},
        )
