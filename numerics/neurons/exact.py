"""How many neurons a student needs, exactly: a network of random features, of which the last layer is trained, beside its teacher.

The student sees p = ratio N random features of N inputs, N large; the teacher sees the inputs.  The smallest p/N at which the
student's test error is within eps of its teacher's is found by solving the saddle point: a scan over ratios, because at a small
ridge the error goes down and up with the ratio, and a root between two of them.  At every ratio the student has a given ridge, or
the one that is best for it, so that neurons are told apart from regularisation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.polynomial import Chebyshev
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from numerics.models import (
    Chain,
    ConvergenceWarning,
    DataModel,
    Estimator,
    ParameterError,
    RandomFeatures,
    check_fit,
    require_number,
)
from numerics.neurons.data import LABELS
from numerics.settings import DEFAULT
from numerics.solution.solution import Solution
from numerics.solver import settings_for, solve
from numerics.sweeps.tasks import Solve
from theory.losses import CrossEntropy, Distillation

RATIOS = (0.05, 1000.0)
"""Smallest and largest p/N that are tried."""

RIDGES = (1e-5, 1e4)
"""Between which the best ridge of the student is looked for."""

RATIO_STEP, FINE_RATIO_STEP = 0.3, 0.1
"""Of the scan, in ln p/N: at the best ridge, where the error has no peaks, and at a given one."""

RIDGE_STEP = 0.75
"""Of the scan in ln ridge."""

NODES = 9
"""Chebyshev points between the neighbours of the lowest point of a scan, through which goes the polynomial that is minimised."""

TOLERANCE = 1e-6
"""Of ln p/N at a root."""


class Excess(NamedTuple):
    """Test error of the student less that of the teacher.

    Attributes
    ----------
    value, uncertainty : float
        Where no saddle point converged, NaN.
    ridge : float
        Of the student.
    edge : int
        -1 or 1 where the best ridge is the smallest or the largest that is allowed, else 0.
    """

    value: float
    uncertainty: float
    ridge: float
    edge: int = 0


@dataclass(frozen=True)
class NeuronsNeeded:
    """Random features that a student needs for several accuracies; arrays have the shape of ``eps``.

    Attributes
    ----------
    eps : array
        Test error above the teacher's that is allowed.
    ratio : array
        Smallest p/N that is enough; ``inf`` where none of those tried is.
    error : array
        Relative error of the ratio, from the errors of integration, of the best ridge and of the root; NaN where it is infinite.
    ridge : array
        Of the student there; NaN where the ratio is infinite.
    edge : array of int
        -1 or 1 where the best ridge is the smallest or the largest allowed one, else 0.
    least : float
        Least excess that was seen, and ``least_ratio``, where.
    teacher : Solution
        The teacher, solved.
    failed : int
        Ratios without a converged solution; they are passed over, and ``ConvergenceWarning`` tells of them.
    message : str
        In words.
    """

    eps: np.ndarray
    ratio: np.ndarray
    error: np.ndarray
    ridge: np.ndarray
    edge: np.ndarray
    least: float
    least_ratio: float
    teacher: Solution
    failed: int
    message: str

    @property
    def teacher_error(self) -> float:
        """Test error of the teacher."""
        return float(self.teacher[0].test_error)


def neurons_needed(
    data: DataModel,
    teacher: Estimator,
    eps: ArrayLike,
    labels: str = "soft",
    *,
    ridge: float | None = None,
    activation: str = "relu",
    temperature: float = 1.0,
    ratios: tuple[float, float] = RATIOS,
    ridges: tuple[float, float] = RIDGES,
) -> NeuronsNeeded:
    """Neurons p/N that a student needs to come within ``eps`` of its teacher: the smallest ratio with that test error.

    The student has p random features of the N inputs and a last layer that is trained, by cross-entropy with the labels or with the
    teacher's outputs, on the samples of the teacher.

    Parameters
    ----------
    data : GaussianMixture or LinearRule
        Two classes: the output of a rule must be "sign" or "probit".  Errors of rules count labels without noise.
    teacher : Estimator
        Sees the inputs.
    eps : array_like
        Differences of test errors, in (0, 1/2).
    labels : str
        "soft", the teacher's outputs alone at this ``temperature``, or "hard", the labels.
    ridge : float or None
        Of the student; None for the best one at every ratio, between the bounds ``ridges``.
    activation : str
        As in :class:`numerics.models.RandomFeatures`.
    ratios : (float, float)
        Smallest and largest p/N that are tried; a ratio beyond is "never".

    Returns
    -------
    NeuronsNeeded

    Raises
    ------
    ParameterError
        If a parameter is outside its range, or the data have no classes.
    ConvergenceError
        If the teacher's saddle point is not found.

    Warns
    -----
    ConvergenceWarning
        If no solution was found at some ratio: the one that is returned need not be the smallest then.

    Notes
    -----
    A dip of the error between two ratios of the scan, 0.1 apart in ln p/N, that shows at none of the three around it is missed.
    At the best ridge steps are three times as wide, as the error falls there.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy
    >>> problem = GaussianMixture(alpha=4.0, rho=0.5, delta=4.0), Estimator(CrossEntropy(), ridge=10.0), 0.05
    >>> for labels in ("soft", "hard"):
    ...     found = neurons_needed(*problem, labels, ratios=(0.3, 3.0))
    ...     print(labels, found.ratio.round(2), found.ridge.round(2), found.message)
    soft 0.72 0.36 found
    hard 0.89 1.85 found
    """
    if labels not in LABELS:
        raise ParameterError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    if data.has_real_labels:
        raise ParameterError(f"data must have two classes, got {data!r}")
    if not isinstance(teacher, Estimator) or teacher.features is not None:
        raise ParameterError(f"teacher must be an Estimator that sees the inputs, got {teacher!r}")
    wanted = np.array([
        require_number("eps", value, above=0, below=0.5, allowed="a number in (0, 1/2)") for value in np.ravel(eps)
    ])  # fmt: skip
    low, high = _bounds("ratios", ratios)
    RandomFeatures(high, activation)  # refused if it is too many
    if ridge is None:
        span = _bounds("ridges", ridges)
    else:
        span = (require_number("ridge", ridge, above=0, allowed="a number > 0 or None"),) * 2
    loss = CrossEntropy() if labels == "hard" else Distillation(temperature=temperature)
    stage = Estimator(loss, span[0], bias=teacher.bias, name="student", features=RandomFeatures(low, activation))
    pupils = _Students(data, teacher, stage, span)
    search = _Search(pupils, _steps(math.log(low), math.log(high), RATIO_STEP if ridge is None else FINE_RATIO_STEP))
    roots = [search.first(level) for level in wanted]
    return _report(wanted.reshape(np.shape(eps)), roots, search)


def _bounds(name: str, bounds: object) -> tuple[float, float]:
    allowed = "two numbers > 0, the smaller one first"
    if not isinstance(bounds, Sequence | np.ndarray) or len(bounds) != 2:
        raise ParameterError(f"{name} must be {allowed}, got {bounds!r}")
    low, high = (require_number(name, bound, above=0, allowed=allowed) for bound in bounds)
    if not low < high:
        raise ParameterError(f"{name} must be {allowed}, got {bounds!r}")
    return low, high


def _steps(low: float, high: float, step: float) -> np.ndarray:
    return np.linspace(low, high, 1 + max(1, math.ceil((high - low) / step)))


@dataclass(frozen=True)
class _Students:
    """Students of one teacher by their ratio, at the best ridge between bounds (at the only one, if these are equal)."""

    data: DataModel
    teacher: Estimator
    student: Estimator
    ridges: tuple[float, float]

    def __post_init__(self) -> None:
        check_fit(self.data, self.chain)

    @cached_property
    def chain(self) -> Chain:
        """Without the teacher where it is not looked at."""
        return Chain.of([self.teacher, self.student] if self.student.loss.logits else [self.student])

    @cached_property
    def taught_by(self) -> Solution:
        return solve(self.data, self.teacher, throw=True)

    def errors(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Test errors and their uncertainties at pairs (ratio, ridge), NaN where there is no solution."""
        names = ("test_error", "test_error_quadrature_error")
        paths = ("student.features", "student.ridge")
        piece = Solve(self.data, self.chain, paths, points, names, settings_for(self.chain, DEFAULT))()
        stages = len(self.chain)
        return piece.values[stages - 1], piece.values[2 * stages - 1]

    def excess(self, ratio: float) -> Excess:
        """At the best ridge: the minimum of the polynomial through the points around the lowest one of a scan."""
        of_teacher = self.taught_by[0]
        base, uncertain = float(of_teacher.test_error), float(of_teacher.error_of("test_error"))

        def at(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self.errors(np.column_stack([np.full(len(logs), ratio), np.exp(logs)]))

        low, high = np.log(self.ridges)
        if low == high:
            (value,), (error,) = at(np.array([low]))
            return Excess(float(value) - base, float(error) + uncertain, self.ridges[0])
        grid = _steps(low, high, RIDGE_STEP)
        scanned, _ = at(grid)
        if np.isnan(scanned).all():
            return Excess(math.nan, math.nan, math.nan)
        k = int(np.nanargmin(scanned))
        left, right = grid[max(k - 1, 0)], grid[min(k + 1, grid.size - 1)]
        nodes = 0.5 * (left + right) - 0.5 * (right - left) * np.cos(np.linspace(0.0, np.pi, NODES))
        polynomial = Chebyshev.fit(nodes, at(nodes)[0], NODES - 1, domain=(left, right))
        flat = [root.real for root in polynomial.deriv().roots() if abs(root.imag) < 1e-9 and left < root.real < right]
        best = min((left, *flat, right), key=polynomial)
        (value,), (error,) = at(np.array([best]))
        off = abs(float(polynomial(best)) - float(value))  # a look at a point that the polynomial has not seen
        edge = -1 if best == low else 1 if best == high else 0
        return Excess(float(value) - base, float(error) + uncertain + off, math.exp(best), edge)


class _Root(NamedTuple):
    ratio: float
    error: float
    found: Excess


_NEVER = _Root(math.inf, math.nan, Excess(math.nan, math.nan, math.nan))


class _Search:
    """The excess along ln p/N, evaluated when it is asked for."""

    def __init__(self, students: _Students, grid: np.ndarray) -> None:
        self.students, self.grid = students, grid
        self.known: dict[float, Excess] = {}

    def at(self, log_ratio: float) -> Excess:
        if log_ratio not in self.known:
            self.known[log_ratio] = self.students.excess(math.exp(log_ratio))
        return self.known[log_ratio]

    def value(self, log_ratio: float) -> float:
        return self.at(log_ratio).value

    def first(self, level: float) -> _Root:
        """The smallest ratio with an excess of ``level``; points without a solution are passed over."""
        passed: list[float] = []
        for log_ratio in self.grid:
            if np.isnan(self.value(log_ratio)):
                continue
            if self.value(log_ratio) <= level:
                return self.between(passed[-1], log_ratio, level) if passed else self.root(log_ratio, 0.0)
            passed.append(log_ratio)
            if len(passed) > 2 and self.value(passed[-2]) < min(self.value(passed[-3]), self.value(log_ratio)):
                lowest = self.dip(passed[-3], log_ratio)
                if self.value(lowest) <= level:
                    return self.between(passed[-3], lowest, level)
        return _NEVER

    def dip(self, left: float, right: float) -> float:
        """Where the excess is least between two ratios with a lower one in the middle."""
        nodes = 0.5 * (left + right) - 0.5 * (right - left) * np.cos(np.linspace(0.0, np.pi, NODES))
        values = np.array([self.value(x) for x in nodes])
        return float(nodes[int(np.nanargmin(values))])

    def between(self, above: float, below: float, level: float) -> _Root:
        """The root between two ratios, and its error from the slope between them."""
        steepness = (self.value(above) - self.value(below)) / (below - above)
        return self.root(brentq(lambda x: self.value(x) - level, above, below, xtol=TOLERANCE), steepness)

    def root(self, log_ratio: float, steepness: float) -> _Root:
        """At the first ratio of all there is no slope, and nothing to be wrong."""
        found = self.at(log_ratio)
        error = TOLERANCE + found.uncertainty / steepness if steepness else 0.0
        return _Root(math.exp(log_ratio), error, found)


def _report(eps: np.ndarray, roots: Sequence[_Root], search: _Search) -> NeuronsNeeded:
    pupils = search.students
    failed = sum(np.isnan(found.value) for found in search.known.values())
    solved = {x: found for x, found in search.known.items() if not np.isnan(found.value)}
    last = min(solved, key=lambda x: solved[x].value, default=math.nan)
    least, least_ratio = (solved[last].value, math.exp(last)) if solved else (math.nan, math.nan)
    remarks = []
    if any(np.isinf(root.ratio) for root in roots):
        remarks.append(
            f"never up to p/N = {math.exp(search.grid[-1]):g}: the excess is at least {least:.3g}, at p/N = {least_ratio:.3g}"
        )
    if any(root.ratio == math.exp(search.grid[0]) for root in roots):
        remarks.append(f"the smallest p/N tried, {math.exp(search.grid[0]):g}, is enough")
    for edge, word, bound in ((-1, "smallest", pupils.ridges[0]), (1, "largest", pupils.ridges[1])):
        if any(root.found.edge == edge for root in roots):
            remarks.append(f"the best ridge is the {word} allowed, {bound:g}")
    if failed:
        remarks.append(f"no solution at {failed} of {len(search.known)} ratios, which were passed over")
        warnings.warn(remarks[-1], ConvergenceWarning, stacklevel=3)

    def array(values: Sequence[float]) -> np.ndarray:
        return np.array(values).reshape(eps.shape)

    return NeuronsNeeded(
        eps, array([root.ratio for root in roots]), array([root.error for root in roots]),
        array([root.found.ridge for root in roots]), array([root.found.edge for root in roots]),
        least, least_ratio, pupils.taught_by, int(failed), "; ".join(remarks) or "found",
    )  # fmt: skip
