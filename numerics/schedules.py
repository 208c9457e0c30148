"""Self-distillation with the best hyperparameters: how much do one, two, five steps gain over the best single stage?

Every stage is dense, sees the same samples, and is taught by the stage before it.  All ridges, all gains (square loss) or
temperatures (cross-entropy) and, if asked, the shares of the labels are chosen for the least test error of the last stage.
A chain is searched from the optimum of the shorter one: the new stage's parameters first, over their whole range
(:func:`numerics.optimize.optimize`), then all parameters together by quasi-Newton descents with exact gradients.

With soft targets there is a neutral step: a student of ridge 0 is its teacher.  Where the range of the ridges begins at 0, an extra
step is therefore never worse; where it does not, or students learn decisions, a longer chain may be worse than a shorter one, and
its :attr:`ScheduleStep.message` says so.  With the square loss and no labels mixed in, every stage is linear in its teacher's
logits, and gains do not change a decision: they are set so that logits stay of order 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import optimize as scipy_optimize

from numerics.models import Chain, Estimator, GaussianMixture, ParameterError, parameter_value, with_parameter
from numerics.optimize import derivatives, optimize
from numerics.settings import DEFAULT, Settings
from numerics.solver import ConvergenceWarning, settings_for, solve
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation

LossName = Literal["square", "cross-entropy"]

RIDGES = (0.1, 1e2)
"""Default range of the search for ridges.  Beyond it, weights of successive linear stages are nearly parallel and gain nothing."""

SCALES = (1e-2, 1e2)
"""Default range of the search for gains and temperatures."""

GRADIENT_TOLERANCE = 1e-3
"""Of a converged descent: the error would change by less than this part of itself across the whole range of any parameter, at the
slope that is left."""

ROUNDS = 500
"""Iterations of one descent."""

LONG_RTOL = 1e-5
"""Accuracy of the saddle points of three and more stages that are not quadratic."""

LEAST_RIDGE = 1e-3
"""Where the search begins if the range of the ridges does at 0."""

NEARLY_BEST = 1e-6
"""Test errors this close to the best one are as good; the accuracy of the saddle points if that is worse."""

FLAT = 2.0
"""An optimum is called flat in a ridge if the ridges that are as good go over this factor."""

_BISECTIONS = 10
_FIRST_REACH = 1e-3  # of the range; then twice as far, until the error is not nearly the best

EDGE = 1e-9
"""A parameter this close to an end of its range, relative to it, is at the end."""

SQUARE = Loss.from_expression("((h + 1)/2 - y)**2", name="square loss on labels 0 and 1")
"""The loss of a first stage whose students have :class:`theory.losses.SquareDistillation`."""


@dataclass(frozen=True)
class ScheduleStep:
    """The best chain of one length.

    Attributes
    ----------
    steps : int
        Distillation steps: stages less one.
    test_error : float
        Of the last stage.
    reduction : float
        Test error of the shortest chain searched, by default the optimally regularised single stage, minus this one.
    parameters : dict
        Best value of each parameter, by names such as ``step2.ridge``; ``step0`` is trained on the labels.
    location : dict
        For each of them "interior", "lower bound" or "upper bound" of its range, or "neutral" for a ridge of 0.
    nearly_best : dict
        For each ridge the range (lowest, highest) over which it can be moved alone without losing more than 1e-6 of test error.
    flat : tuple of str
        Ridges whose range goes over a factor of two: that they are these and no others means little.
    slope : float
        Largest relative change of the error across the range of a parameter inside its range, at the slope left there.
    converged : bool
        The saddle point converged and the slope is below ``GRADIENT_TOLERANCE``.
    message : str
        In words: whether it is worse than a shorter chain and why, in which ridges it is flat.
    chain : Chain
    """

    steps: int
    test_error: float
    reduction: float
    parameters: dict[str, float]
    location: dict[str, str]
    slope: float
    converged: bool
    chain: Chain = field(repr=False)
    nearly_best: dict[str, tuple[float, float]] = field(default_factory=dict)
    message: str = ""

    @property
    def flat(self) -> tuple[str, ...]:
        return tuple(path for path, (low, high) in self.nearly_best.items() if low == 0 or high > FLAT * low)

    def to_dict(self) -> dict[str, object]:
        """As plain numbers and texts, for JSON; the chain as a list of texts."""
        return {
            "steps": self.steps, "test_error": self.test_error, "reduction": self.reduction,
            "parameters": dict(self.parameters), "location": dict(self.location), "slope": self.slope,
            "nearly_best": {path: list(ends) for path, ends in self.nearly_best.items()}, "flat": list(self.flat),
            "converged": self.converged, "message": self.message, "chain": [repr(stage) for stage in self.chain.stages],
        }  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """The best chains of several lengths, the shortest first; ``schedule[k]`` is the k-th of them."""

    data: GaussianMixture
    loss: str
    hard: bool
    mixing: bool
    steps: tuple[ScheduleStep, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> ScheduleStep:
        return self.steps[index]

    def __str__(self) -> str:
        """A line for each length: error, gain, ridges, and what is to be known of them."""
        lines = [f"{'steps':>5} {'test error':>10} {'gain':>9}  best parameters"]
        for step in self.steps:
            best = ", ".join(f"{path}={value:.4g}" for path, value in step.parameters.items())
            lines.append(f"{step.steps:5} {step.test_error:10.5f} {step.reduction:+9.5f}  {best}")
            lines += [f"      {part}" for part in step.message.split("; ") if part]
        return "\n".join(lines)

    @property
    def test_errors(self) -> np.ndarray:
        """Test error of each, shape (lengths,)."""
        return np.array([step.test_error for step in self.steps])

    @property
    def converged(self) -> bool:
        return all(step.converged for step in self.steps)

    def to_dict(self) -> dict[str, object]:
        """As plain numbers and texts, for JSON."""
        return {
            "data": repr(self.data), "loss": self.loss, "hard": self.hard, "mixing": self.mixing,
            "steps": [step.to_dict() for step in self.steps],
        }  # fmt: skip


def optimal_schedule(
    data: GaussianMixture,
    stages: int | Sequence[int],
    loss: LossName = "square",
    *,
    hard: bool = False,
    mixing: bool = False,
    bias: float | None = None,
    ridges: tuple[float, float] = RIDGES,
    scales: tuple[float, float] = SCALES,
    rtol: float | None = None,
) -> Schedule:
    """Least test error of the last stage of self-distillation chains of several lengths.

    Parameters
    ----------
    data : GaussianMixture
        Mostly with label noise; no further data sets.
    stages : int or sequence of int
        Chains of 1, 2, ... up to so many stages, or of the increasing numbers of stages given.
    loss : "square" or "cross-entropy"
        ``((h+1)/2 - target)^2`` with target ``(gain h_teacher + 1)/2``, or cross-entropy with temperatures
        (:class:`theory.losses.Distillation` with a factor T^2: without labels the student of ``sigma(h_teacher/T)`` at its ridge,
        up to a factor of its logits, so that hard pseudo-labels are the limit of T = 0 at a finite ridge).
    hard : bool
        Students learn the decisions of their teachers (:class:`theory.losses.PseudoLabels`); no gains or temperatures then.
    mixing : bool
        Choose the share of the labels in every student's target, too; otherwise students see their teachers alone.
    bias : float or None
        Value the biases of all stages are fixed at; None if they are learned.
    ridges, scales : (lower, upper)
        Positive ranges of ridges, and of gains or temperatures.  Ridges may begin at 0: then the search begins at 1e-3, and a
        student that is its teacher is allowed.
    rtol : float or None
        Accuracy of the saddle points; by default that of :func:`numerics.solver.solve`, but 1e-5 for three stages and more that are
        not quadratic: those take a thousand times longer than quadratic ones.

    Returns
    -------
    Schedule

    Raises
    ------
    ParameterError
        For arguments that are not allowed.
    ArithmeticError
        If no saddle point converged in the range of the search.

    Examples
    --------
    >>> schedule = optimal_schedule(GaussianMixture(alpha=10.0, delta=0.5, label_noise=0.3), 2)
    >>> schedule.test_errors.round(4)
    array([0.1108, 0.089 ])
    """
    lengths = _lengths(stages)
    if loss not in ("square", "cross-entropy"):
        raise ParameterError(f'loss must be "square" or "cross-entropy", got {loss!r}')
    if data.further:
        raise ParameterError("data of a self-distillation schedule must have no further data sets")
    lowest, highest = ridges
    allows_neutral = lowest == 0 and not hard
    ridges = (LEAST_RIDGE if lowest == 0 else lowest, highest)
    ranges = {"ridge": ridges, "gain": scales, "temperature": scales, "mixing": (0.0, 1.0)}
    square = loss == "square"
    taught = (
        PseudoLabels(square=square)
        if hard
        else SquareDistillation()
        if square
        else Distillation(temperature_squared=True)
    )
    first = Estimator(SQUARE if square else CrossEntropy(), math.sqrt(math.prod(ridges)), name="step0", bias=bias)
    varied = ["ridge"]
    if not hard and (mixing or not square):
        varied.append("gain" if square else "temperature")
    if mixing:
        varied.append("mixing")
    found: list[ScheduleStep] = []
    chain = Chain.of(first)
    over = {"step0.ridge": ridges}
    for length in lengths:
        stage = chain[len(chain) - 1]
        while len(chain) < length:
            student = Estimator(taught, stage.ridge, name=f"step{len(chain)}", bias=bias)
            if "mixing" in stage.loss.parameters:
                student = replace(student, loss=stage.loss)
            over |= {f"{student.name}.{key}": ranges[key] for key in varied}
            chain = Chain((*chain.stages, student))
        last = chain.name(length)
        settings = _settings(chain, rtol)
        descent = _Descent(data, over, last, settings)
        own = {path: limits for path, limits in over.items() if path.startswith(f"{last}.")}
        starts = [optimize(data, chain, own, f"{last}.test_error", settings=settings).solution.chain]
        if found:
            starts.append(_with_ridges(chain, len(found[-1].chain), first.ridge))
        best = descent.best(*starts)
        if found and best.test_error > found[-1].test_error and not hard:
            copying = _with_ridges(chain, len(found[-1].chain), ridges[0], gain=1.0, temperature=1.0, mixing=1.0)
            best = min(best, descent.best(copying), key=_error)
        chain = best.chain
        if found and allows_neutral and best.test_error > found[-1].test_error:
            best = _neutral(data, chain, found[-1], settings)
        best = replace(best, nearly_best=descent.nearly_best(best))
        gained = (found[0] if found else best).test_error - best.test_error
        found.append(replace(best, reduction=gained, message=_message(best, found[-1:], hard)))
    return Schedule(data, loss, hard, mixing, tuple(found))


def _lengths(stages: int | Sequence[int]) -> tuple[int, ...]:
    """Numbers of stages asked for, increasing."""
    whole = isinstance(stages, int) and not isinstance(stages, bool)
    lengths = tuple(range(1, stages + 1)) if whole else tuple(stages) if isinstance(stages, Sequence) else ()
    good = all(isinstance(length, int) and not isinstance(length, bool) and length >= 1 for length in lengths)
    if not lengths or not good or any(b <= a for a, b in pairwise(lengths)):
        raise ParameterError(f"stages must be an integer >= 1 or increasing ones, got {stages!r}")
    return lengths


def _settings(chain: Chain, rtol: float | None) -> Settings:
    quadratic = all(stage.loss.is_quadratic for stage in chain.stages)
    if rtol is None and len(chain) > 2 and not quadratic:
        rtol = LONG_RTOL
    return settings_for(chain, DEFAULT, rtol)


def _with_ridges(chain: Chain, start: int, ridge: float, **values: float) -> Chain:
    """The chain with another ridge, and other parameters where the loss has them, from stage ``start`` (counted from 0) on."""
    stages = list(chain.stages)
    for k in range(start, len(stages)):
        known = {key: value for key, value in values.items() if key in stages[k].loss.parameters}
        stages[k] = replace(stages[k], ridge=ridge, loss=stages[k].loss.with_parameters(**known))
    return Chain(tuple(stages))


def _normalised(data: GaussianMixture, chain: Chain) -> Chain:
    """Gains that make up for ridges, so that logits stay of order 1: for linear chains, where gains do not change a decision."""
    stages = list(chain.stages)
    for k, stage in enumerate(stages):
        if "gain" in stage.loss.parameters:
            gain = 1.0 + 2.0 * stage.ridge / (data.alpha * (1.0 + data.variance))
            stages[k] = replace(stage, loss=stage.loss.with_parameters(gain=gain))
    return Chain(tuple(stages))


def _neutral(data: GaussianMixture, chain: Chain, shorter: ScheduleStep, settings: Settings) -> ScheduleStep:
    """The shorter chain, followed by students of ridge 0 of their teachers alone; in the form of ``chain``."""
    start = len(shorter.chain)
    copies = _with_ridges(Chain((*shorter.chain.stages, *chain.stages[start:])), start, 0.0, mixing=1.0)
    solution = solve(data, copies, settings=settings)
    added = {f"{name}.ridge": 0.0 for name in chain.names[start:]}
    return replace(
        shorter, steps=len(chain) - 1, test_error=float(solution[-1].test_error), chain=copies,
        parameters=shorter.parameters | added, location=shorter.location | dict.fromkeys(added, "neutral"),
        converged=shorter.converged and solution.converged,
    )  # fmt: skip


def _message(step: ScheduleStep, shorter: Sequence[ScheduleStep], hard: bool) -> str:
    """What is to be known of a step, ``shorter`` the one before it if there is one."""
    parts = []
    if "neutral" in step.location.values():
        parts.append("no gain: the further students are their teachers")
    elif shorter and step.test_error > shorter[0].test_error:
        reason = (
            "students of decisions have no neutral step"
            if hard
            else "the range of the ridges leaves out the neutral step, a student of ridge 0"
        )
        parts.append(f"{step.test_error - shorter[0].test_error:.2g} worse than {shorter[0].steps} steps: {reason}")
    for path in step.flat:
        low, high = step.nearly_best[path]
        parts.append(f"flat in {path}: as good from {low:.3g} to {high:.3g}, within {NEARLY_BEST:g}")
    return "; ".join(parts)


def _error(step: ScheduleStep) -> float:
    return step.test_error


class _Descent:
    """Descents of the test error of a stage in all parameters, each on a scale from 0 to 1, logarithmic but for mixings."""

    def __init__(
        self, data: GaussianMixture, over: Mapping[str, tuple[float, float]], stage: str, settings: Settings
    ) -> None:
        self.data, self.paths, self.observable, self.settings = data, tuple(over), f"{stage}.test_error", settings
        self.linear = np.array([path.endswith(".mixing") for path in over])
        limits = np.array(list(over.values()))
        self.limits = np.where(self.linear[:, None], limits, np.log(np.where(limits > 0, limits, 1.0)))
        self.width = np.diff(self.limits, axis=1)[:, 0]

    def put(self, chain: Chain, u: np.ndarray) -> Chain:
        """The chain with its parameters at ``u`` in [0, 1]."""
        x = self.limits[:, 0] + self.width * u
        for path, value in zip(
            self.paths, np.where(self.linear, x, np.exp(np.where(self.linear, 0.0, x))), strict=True
        ):
            chain = with_parameter(self.data, chain, path, float(value))[1]
        return chain if any(path.endswith(".gain") for path in self.paths) else _normalised(self.data, chain)

    def read(self, chain: Chain) -> np.ndarray:
        """Where the chain is, shape (parameters,)."""
        values = np.array([parameter_value(self.data, chain, path) for path in self.paths])
        x = np.where(self.linear, values, np.log(np.where(self.linear | (values == 0), np.finfo(float).tiny, values)))
        return np.clip((x - self.limits[:, 0]) / self.width, 0.0, 1.0)

    def error(self, chain: Chain) -> tuple[float, np.ndarray, bool]:
        """Test error, its derivatives on the scale of the search, and whether the saddle point converged."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            solution = solve(self.data, chain, settings=self.settings)
        if not solution.converged:
            return 1.0, np.zeros(len(self.paths)), False
        slopes = derivatives(solution, self.paths, [self.observable])
        slope = np.array([slopes[path][self.observable] for path in self.paths])
        values = np.array([parameter_value(self.data, chain, path) for path in self.paths])
        return float(solution[len(chain) - 1].test_error), slope * self.width * np.where(self.linear, 1.0, values), True

    def best(self, *starts: Chain) -> ScheduleStep:
        """The best end of descents from several chains."""
        return min((self._from(start) for start in starts), key=_error)

    def _from(self, chain: Chain) -> ScheduleStep:
        def function(u: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope, _ = self.error(self.put(chain, np.clip(u, 0.0, 1.0)))
            return math.log(value), slope / value

        found = scipy_optimize.minimize(
            function, self.read(chain), jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * len(self.paths),
            options={"maxiter": ROUNDS, "ftol": 1e-11, "gtol": 0.1 * GRADIENT_TOLERANCE},
        )  # fmt: skip
        u = np.clip(found.x, 0.0, 1.0)
        end = self.put(chain, u)
        value, slope, converged = self.error(end)
        low, high = (u <= EDGE) & (slope >= 0), (u >= 1 - EDGE) & (slope <= 0)
        left = float(np.abs(slope[~(low | high)]).max(initial=0.0)) / value
        places = np.where(low, "lower bound", np.where(high, "upper bound", "interior"))
        return ScheduleStep(
            len(chain) - 1, value, 0.0, {path: parameter_value(self.data, end, path) for path in self.paths},
            dict(zip(self.paths, map(str, places), strict=True)), left, converged and left <= GRADIENT_TOLERANCE, end,
        )  # fmt: skip

    def nearly_best(self, step: ScheduleStep) -> dict[str, tuple[float, float]]:
        """For each ridge the range around its value, the others fixed, where the error is within 1e-6 of the best."""
        u, most = self.read(step.chain), step.test_error + max(NEARLY_BEST, self.settings.rtol)
        found = {}
        for k, path in enumerate(self.paths):
            if path.endswith(".ridge"):
                value = step.parameters[path]
                found[path] = value, value
                if value > 0:
                    ends = (self._reach(step.chain, u, k, direction, most) for direction in (-1, 1))
                    low, high = (float(np.exp(self.limits[k, 0] + self.width[k] * end)) for end in ends)
                    found[path] = min(low, value), max(high, value)
        return found

    def _reach(self, chain: Chain, u: np.ndarray, k: int, direction: int, most: float) -> float:
        """How far parameter ``k`` goes in a direction, to the end of its range at most, until the error is above ``most``."""

        def is_good(place: float) -> bool:
            value = math.exp(self.limits[k, 0] + self.width[k] * place)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                solution = solve(*with_parameter(self.data, chain, self.paths[k], value), settings=self.settings)
            return solution.converged and solution[-1].test_error <= most

        inside, step = u[k], _FIRST_REACH
        while True:
            outside = min(max(inside + direction * step, 0.0), 1.0)
            if outside == inside:
                return inside
            if not is_good(outside):
                break
            inside, step = outside, 2 * step
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_good(middle) else (inside, middle)
        return inside
