"""Solve the saddle point of a chain, stage after stage: earlier stages do not feel later ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from numerics.codegen import stage_module
from numerics.models import Chain, Estimator, GaussianMixture, ParameterError
from numerics.nodes import Nodes, StagePoint, extend, label_nodes, target_features
from numerics.patterns import WeightMoments, nested_patterns
from numerics.settings import DEFAULT, Settings
from numerics.solution import Solution

_MESSAGES = {
    1: "Newton's method used up its iterations",
    2: "the Jacobian of the saddle-point equations is singular",
    3: "an order parameter became infinite or NaN",
}


class ConvergenceError(RuntimeError):
    """Raised by ``solve(..., throw=True)`` where no converged solution was found."""


class ConvergenceWarning(RuntimeWarning):
    """Issued by ``solve(..., throw=False)`` with a solution that did not converge."""


def first_guess(data: GaussianMixture, stage: Estimator, earlier: Sequence[StagePoint]) -> np.ndarray:
    """Rough order parameters to start Newton's method from: norms grow with log(1 + eta/ridge), or follow the teacher's."""
    k = len(earlier)
    size = math.log1p(stage.eta / stage.ridge)
    x = np.zeros(2 * k + 4)
    seen = stage.loss.stages(k + 1)
    if not seen:
        norm = size / math.sqrt(2.0)
        v = 0.7 * min(stage.eta / stage.ridge, 100.0)
    else:
        teacher = earlier[seen[-1] - 1]
        norm = min(math.sqrt(teacher.norm_squared), size / math.sqrt(2.0))
        mixing = stage.loss.parameters.get("mixing", 1.0)
        norm = mixing * norm + (1.0 - mixing) * size / math.sqrt(2.0)
        v = 0.7 * min(stage.eta / stage.ridge, 100.0 * (1.0 + teacher.response_row[-1]))
    norm = max(norm, 1e-8)
    x[0] = 0.7 * stage.eta * norm
    x[1] = 0.5 * math.log(data.rho / (1.0 - data.rho)) if not seen else earlier[seen[-1] - 1].bias
    q = 0.8 * stage.eta * norm**2
    for s, point in enumerate(earlier):
        share = 0.6 if s == k - 1 else 0.0
        x[2 + s] = share * stage.eta * norm * point.cholesky_row[-1] / math.sqrt(point.norm_squared)
    x[2 + k] = math.log(q)
    x[-1] = math.log(v)
    return x


class StageProblem:
    """One stage with everything that is fixed while it is solved."""

    def __init__(
        self, data: GaussianMixture, stage: Estimator, number: int, nodes: Nodes, moments: WeightMoments,
        earlier: Sequence[StagePoint], settings: Settings, step: float,
    ) -> None:  # fmt: skip
        self.data, self.stage, self.number, self.settings, self.step = data, stage, number, settings, step
        self.module = stage_module(stage.loss, number)
        self.nodes = nodes
        self.seen = nodes.seen(stage.loss.stages(number))
        self.parameters = np.array(stage.loss.values, dtype=float)
        self.moments = moments
        k = number - 1
        triangle = np.concatenate([point.cholesky_row for point in earlier]) if earlier else np.empty(0)
        self.channel_constants = np.concatenate(([data.delta], triangle))
        self.cholesky_constants = triangle
        self.responses = np.array([point.response_row[-1] for point in earlier[:k]], dtype=float)

    def newton(self, x: np.ndarray, ridge: float) -> StagePoint:
        x = x.copy()
        conjugates = np.full(2 * self.number + 1, np.nan)
        status, iterations, residual, last_step, defect = self.module.solve_stage(
            x, self.nodes.weight, self.nodes.design, self.nodes.labels, self.seen, self.parameters, self.data.delta,
            self._constants(ridge), self.responses, self.step, self.settings.tail, self.settings.newton_tolerance,
            self.settings.max_iterations, conjugates,
        )  # fmt: skip
        return StagePoint(x, conjugates, status, iterations, residual, last_step, defect)

    def iterate(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Conjugates and alpha E[f], shape (2t + 2,), and updated ``m, Q_t1.., V_t1..``, shape (2t + 1,), at any ``x``."""
        conjugates_and_bias = np.empty(2 * self.number + 2)
        updated = np.empty(2 * self.number + 1)
        self.module.plain_iteration(
            x, self.nodes.weight, self.nodes.design, self.nodes.labels, self.seen, self.parameters, self.data.delta,
            self._constants(self.stage.ridge), self.step, self.settings.tail, conjugates_and_bias, updated,
        )  # fmt: skip
        return conjugates_and_bias, updated

    def _constants(self, ridge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        prior = self.moments.prior_constants(self.number - 1, ridge)
        return self.channel_constants, prior, self.cholesky_constants

    def solve(self, start: np.ndarray | None, guess: np.ndarray) -> StagePoint:
        """From ``start`` if given, from ``guess``, and at last along a path of falling ridges."""
        point = None
        iterations = 0
        for x in (start, guess):
            if x is not None:
                point = self.newton(x, self.stage.ridge)
                iterations += point.iterations
                if point.status == 0:
                    return replace(point, iterations=iterations)
        return self._homotopy(iterations, point)

    def _homotopy(self, iterations: int, failed: StagePoint) -> StagePoint:
        target = math.log(self.stage.ridge)
        here = max(math.log(self.settings.first_ridge * (1.0 + self.data.alpha)), target + 1.0)
        eta = self.stage.eta
        x = np.zeros_like(failed.unknowns)
        ridge = math.exp(here)
        size = eta * self.data.alpha / (ridge + 0.25 * self.data.alpha)
        x[0] = size / 2.0
        x[1] = 0.5 * math.log(self.data.rho / (1.0 - self.data.rho))
        x[1 + self.number] = 2.0 * math.log(size) + math.log1p(1.0 / self.data.alpha) - 1.0
        x[-1] = math.log(eta / ridge)
        point = self.newton(x, ridge)
        iterations += point.iterations
        if point.status != 0:
            return replace(failed, iterations=iterations)
        stride = 1.5
        previous = None
        for _ in range(self.settings.ridge_steps):
            there = max(here - stride, target)
            x = point.unknowns
            if previous is not None:
                x = x + (x - previous[1]) * (there - here) / (here - previous[0])
            trial = self.newton(x, math.exp(there))
            iterations += trial.iterations
            if trial.status == 0:
                previous = (here, point.unknowns)
                here, point = there, trial
                stride = min(1.6 * stride, 3.0)
                if here == target:
                    return replace(point, iterations=iterations)
            else:
                stride *= 0.4
                previous = None
                if stride < 1e-3:
                    break
        return replace(failed, iterations=iterations)


def _solve_level(
    data: GaussianMixture, chain: Chain, settings: Settings, level: int, starts: Sequence[np.ndarray | None]
) -> list[StagePoint]:
    """All stages at one quadrature level; stops after a stage that fails."""
    factor = settings.refinement**level
    nodes = label_nodes(data)
    moments = WeightMoments(nested_patterns(tuple(stage.eta for stage in chain.stages)))
    points: list[StagePoint] = []
    for number, stage in enumerate(chain.stages, start=1):
        problem = StageProblem(
            data, stage, number, nodes, moments, points, settings, settings.field_step * factor
        )
        point = problem.solve(starts[number - 1], first_guess(data, stage, points))
        points.append(point)
        if point.status != 0:
            break
        if number < len(chain):
            moments.add_stage(number, stage, point)
            nodes, _ = extend(
                nodes, data, stage, point, settings.outer_step * factor, settings.tail, training=True,
                extra=target_features(chain, number),
            )  # fmt: skip
    return points


def _distance(first: StagePoint, second: StagePoint) -> float:
    """Largest change of an order parameter, relative to its natural size (see ``kernels/stage.py``)."""
    root = math.sqrt(second.norm_squared)
    v = second.response_row[-1]
    change = [abs(first.magnetization - second.magnetization) / root, abs(first.bias - second.bias) / (1.0 + root)]
    change += list(np.abs(first.cholesky_row - second.cholesky_row)[:-1] / root)
    change.append(abs(first.cholesky_row[-1] ** 2 - second.cholesky_row[-1] ** 2) / root**2)
    change += list(np.abs(first.response_row - second.response_row) / v)
    return float(max(change))


def solve(
    data: GaussianMixture,
    chain: Chain | Estimator | Sequence[Estimator],
    *,
    rtol: float | None = None,
    max_iterations: int | None = None,
    start: Solution | None = None,
    throw: bool = False,
    settings: Settings = DEFAULT,
) -> Solution:
    """Order parameters of a chain of estimators in the limit N -> infinity, M = alpha N.

    Parameters
    ----------
    data : GaussianMixture
    chain : Estimator or sequence of Estimator
        Trained one after the other on the same samples.
    rtol : float
        Accuracy asked of the order parameters, relative to their natural size; default 1e-8.
    max_iterations : int
        Channel evaluations allowed in one Newton solve.
    start : Solution
        A solution at nearby parameters to continue from; it changes the speed, not the answer.
    throw : bool
        Raise :class:`ConvergenceError` instead of returning a solution with ``converged=False`` and a warning.

    Returns
    -------
    Solution
        With ``converged``, ``residual`` (undamped, scaled), ``iterations``, ``quadrature_error`` and ``message``.

    Raises
    ------
    numerics.models.ParameterError
        For arguments outside their range.
    ConvergenceError
        If ``throw`` and some stage did not converge.
    """
    if not isinstance(data, GaussianMixture):
        raise ParameterError(f"data must be a GaussianMixture, got {data!r}")
    chain = Chain.of(chain)
    if rtol is not None:
        if not (isinstance(rtol, (int, float)) and 1e-13 <= rtol < 1):
            raise ParameterError(f"rtol must be a number in [1e-13, 1), got {rtol!r}")
        settings = replace(settings, rtol=float(rtol), newton_tolerance=min(settings.newton_tolerance, float(rtol)))
    if max_iterations is not None:
        if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
            raise ParameterError(f"max_iterations must be a positive integer, got {max_iterations!r}")
        settings = replace(settings, max_iterations=max_iterations)
    if start is not None and not isinstance(start, Solution):
        raise ParameterError(f"start must be a Solution or None, got {start!r}")
    starts: list[np.ndarray | None] = [None] * len(chain)
    if start is not None:
        for k, point in enumerate(start.points[: len(chain)]):
            if point.status == 0:
                starts[k] = point.unknowns

    points = _solve_level(data, chain, settings, 0, starts)
    iterations = sum(point.iterations for point in points)
    error = math.inf
    level = 0
    message = ""
    while points[-1].status == 0 and error > settings.rtol and level < settings.max_levels:
        level += 1
        finer = _solve_level(data, chain, settings, level, [point.unknowns for point in points])
        iterations += sum(point.iterations for point in finer)
        if finer[-1].status == 0:
            error = max(_distance(a, b) for a, b in zip(points, finer, strict=True))
        points = finer
    residual = max(point.residual for point in points)
    failed = points[-1].status != 0
    if failed:
        message = f"stage {len(points)} ({chain.name(len(points))}): {_MESSAGES[points[-1].status]}"
    elif error > settings.rtol:
        message = f"the quadrature error estimate {error:.1e} exceeds rtol={settings.rtol:.1e}"
    elif residual > settings.residual_tolerance:
        message = f"the residual {residual:.1e} exceeds {settings.residual_tolerance:.1e}"
    solution = Solution(
        data=data, chain=chain, settings=settings, level=level, points=tuple(points), converged=message == "",
        residual=residual, iterations=iterations, quadrature_error=error, message=message or "converged",
    )  # fmt: skip
    if message:
        text = f"no converged solution at {data}: {message}"
        if throw:
            raise ConvergenceError(text)
        warnings.warn(text, ConvergenceWarning, stacklevel=2)
    return solution
