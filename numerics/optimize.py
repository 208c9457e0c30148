"""Derivatives of observables with respect to parameters, and the parameters that make an observable best.

At a saddle point ``R(x, p) = 0`` of a stage, ``dx/dp = -J^-1 dR/dp`` with Newton's matrix ``J``.  One Newton step from the
solution ``x(p)`` at shifted parameters is ``-J^-1 R(x(p), p + e) = e dx/dp + O(e^2)``: differences of such steps are the
tangent, without solving anything again.  Earlier stages move along their own tangents meanwhile, so that a stage feels the
parameter directly and through its teachers.

Solutions on K classes and on clusters are not differentiated: searches take differences.  Of K classes they are those on the nodes
of one solution, which do not move with parameters, so that observables are smooth; what is found is good to the error of these.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import optimize as scipy_optimize
from scipy.stats import qmc

from numerics.deferred import Deferred
from numerics.models import (
    Chain,
    DataModel,
    ParameterError,
    Stage,
    check_fit,
    parameter_value,
    with_parameter,
)
from numerics.scalar.nodes import sharpness_along
from numerics.scalar.walk import Walk
from numerics.settings import DEFAULT, Settings
from numerics.solution.observables.registry import is_defined, observables_of
from numerics.solution.solution import Solution
from numerics.solver import ConvergenceWarning, require_solvable, settings_for, solve, spectral_solution

if TYPE_CHECKING:
    from numerics.classes.solution import ClassSolution

# They compile a while, and most users have two classes.
_formulas, _of_classes = Deferred("numerics.classes.formulas"), Deferred("numerics.classes.solution")

SHIFT = 1e-3
"""Shift of a parameter, or of its logarithm, in the differences; they are of fourth order, so the error is about 1e-12."""

LOGARITHMIC_RATIO = 10.0
"""A parameter whose bounds are positive and further apart than this factor is searched on a logarithmic scale."""

SCAN_POINTS = 33
"""Points of the scan that starts a search in one parameter."""

SAMPLES_PER_PARAMETER = 5
"""Base-2 logarithm of the points that start a search in several parameters, for each of them."""

REFINED = 3
"""Local optima of the scan that are refined."""

GRADIENT_TOLERANCE = 1e-6
"""Gradient at an interior optimum of a converged search, relative to the value and to the width of the search range."""

FAR = (1e1, 1e2, 1e3, 1e4)
"""Multiples of an upper bound at which a search that ended there looks further."""

FLAT = 1e-8
"""Relative changes of an observable smaller than this count as none."""

SCANNED_TO = 10.0
"""Accuracy of a scan of K classes, times that of solutions by default."""

DIFFERENCE, NEAR = 0.002, 0.15
"""As parts of the search range: half the distance over which differences are taken, and up to which solutions are followed from
one another; over the latter the quadrature error of K classes makes a slope that counts as none."""

_CENTRAL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
_FORWARD = {0: -25 / 12, 1: 4.0, 2: -3.0, 3: 4 / 3, 4: -1 / 4}
_BACKWARD = {-offset: -weight for offset, weight in _FORWARD.items()}


@dataclass(frozen=True)
class Optimum:
    """Where an observable is best.

    Attributes
    ----------
    observable, maximize
        What was asked for.
    parameters : dict
        Value of each parameter at the optimum; one at infinity has the value of its upper bound.
    value : float
        The observable there.
    gradient : dict
        Its derivative with respect to each parameter; zero at an interior optimum.
    location : dict
        For each parameter "interior", "lower bound", "upper bound", or "infinity": at the upper bound, while larger and
        larger values of the parameter do not make the observable worse.
    limit : float
        The observable as far out as was looked if a parameter is at infinity, else ``value``.
    converged : bool
        Interior parameters have a vanishing gradient, of K classes one that is lost in the quadrature error of the observable, and
        the saddle point converged.
    evaluations : int
        Saddle points solved.
    message : str
        In words.
    solution : Solution
        The saddle point at ``parameters``.
    """

    observable: str
    maximize: bool
    parameters: dict[str, float]
    value: float
    gradient: dict[str, float]
    location: dict[str, str]
    limit: float
    converged: bool
    evaluations: int
    message: str
    solution: Solution = field(repr=False)


def optimize(
    data: DataModel,
    chain: Chain | Stage | Sequence[Stage],
    over: Mapping[str, tuple[float, float]],
    observable: str = "student.test_error",
    *,
    maximize: bool = False,
    settings: Settings = DEFAULT,
) -> Optimum:
    """Minimise, or maximise, an observable over parameters between bounds.

    A scan finds the valleys, exact gradients their bottoms: in one parameter the zero of the derivative is bracketed, in
    several quasi-Newton descents start from the best points of a Sobol sequence.  An optimum narrower than the spacing of
    the scan can be missed; narrow the bounds if you expect one.

    Parameters
    ----------
    data, chain
        The problem; the values of the parameters in ``over`` are ignored.
    over : mapping of parameter name to (lower, upper)
        Names as in :func:`numerics.models.parameter_paths`: ``teacher.ridge``, ``student.mixing``, ...  Bounds that are
        positive and more than a factor 10 apart are searched logarithmically.
    observable : str
        ``<stage>.<observable>``, the latter one of :data:`numerics.OBSERVABLES`.
    maximize : bool
        Look for the largest value instead of the smallest.

    Returns
    -------
    Optimum

    Raises
    ------
    ParameterError
        For an unknown parameter or observable, or bounds that are not allowed.
    ArithmeticError
        If no saddle point converged anywhere in the range.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy
    >>> data = GaussianMixture(alpha=2.0, rho=0.2, delta=1.0)
    >>> best = optimize(data, Estimator(CrossEntropy(), ridge=1.0), {"teacher.ridge": (1e-3, 10)}, "teacher.test_error")
    >>> round(best.parameters["teacher.ridge"], 5), round(best.value, 6), best.location
    (0.17537, 0.159718, {'teacher.ridge': 'interior'})
    """
    chain = Chain.of(chain)
    settings = settings if data.many_classes else settings_for(chain, settings)
    if not over:
        raise ParameterError("over must name at least one parameter")
    axes = [_Axis.between(data, chain, path, bounds) for path, bounds in over.items()]
    kind = _ClassSearch if data.many_classes else _DifferenceSearch if data.in_clusters else _Search
    search = kind(data, chain, axes, _reader(data, chain, observable), -1.0 if maximize else 1.0, settings)
    u = _bottom_of_valleys(search) if len(axes) == 1 else _descend(search)
    return _report(search, u, observable, maximize)


def derivatives(
    solution: Solution, parameters: Sequence[str], observables: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Derivatives of observables with respect to parameters, by implicit differentiation of the saddle point.

    Parameters
    ----------
    solution : Solution
        A converged one.
    parameters : sequence of str
        Names as in :func:`numerics.models.parameter_paths`.
    observables : sequence of str
        ``<stage>.<observable>``.

    Returns
    -------
    dict
        ``result[parameter][observable]``.

    Raises
    ------
    ParameterError
        For an unknown name, a solution that did not converge, or a derivative with respect to a ridge of 0.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy
    >>> solution = solve(GaussianMixture(alpha=2.0, rho=0.2, delta=1.0), Estimator(CrossEntropy(), ridge=0.1))
    >>> found = derivatives(solution, ["alpha", "teacher.ridge"], ["teacher.test_error"])
    >>> {path: round(slope["teacher.test_error"], 6) for path, slope in found.items()}
    {'alpha': -0.00939, 'teacher.ridge': -0.074867}
    """
    _require_slopes(solution.data)
    readers = {name: _reader(solution.data, solution.chain, name) for name in observables}
    result = {}
    for path in parameters:
        axis = _Axis.at(solution, path)
        moved, slope = _moved_solutions(solution, axis)
        result[path] = {
            name: slope * sum(weight * read(moved[offset]) for offset, weight in axis.stencil.items())
            for name, read in readers.items()
        }
    return result


def tangent(solution: Solution, parameter: str) -> list[np.ndarray]:
    """Derivatives of the unknowns of each stage (see :class:`numerics.scalar.nodes.StagePoint`) with respect to a parameter.

    Raises
    ------
    ParameterError
        For an unknown name, a solution that did not converge, or a derivative with respect to a ridge of 0.
    """
    _require_slopes(solution.data)
    axis = _Axis.at(solution, parameter)
    moved, slope = _moved_solutions(solution, axis)
    return [
        slope * sum(weight * moved[offset].points[t].unknowns for offset, weight in axis.stencil.items())
        for t in range(len(solution.points))
    ]


def _require_slopes(data: DataModel) -> None:
    if data.many_classes:
        raise ParameterError(
            "data must be a GaussianMixture or a LinearRule: solutions on K classes are not differentiated; take sweep or optimize"
        )
    if data.in_clusters:
        raise ParameterError(
            "data must be a GaussianMixture or a LinearRule: solutions on Clusters are not differentiated; take sweep or optimize"
        )


# One parameter.


@dataclass(frozen=True)
class _Axis:
    """A parameter on the scale it is searched or differentiated on: ``u`` is its value or its logarithm.

    ``bounds`` maps the ends to the parameter's values there; ``stencil`` maps multiples of ``SHIFT`` to weights of a
    difference that stays where the parameter is allowed.
    """

    path: str
    lower: float
    upper: float
    logarithmic: bool
    bounds: Mapping[float, float] = field(default_factory=dict)
    stencil: Mapping[int, float] = field(default_factory=lambda: _CENTRAL)

    @classmethod
    def between(cls, data: DataModel, chain: Chain, path: str, bounds: tuple[float, float]) -> _Axis:
        try:
            lower, upper = (float(bound) for bound in bounds)
        except (TypeError, ValueError):
            raise ParameterError(f"bounds of {path!r} must be two numbers, got {bounds!r}") from None
        if not lower < upper:
            raise ParameterError(f"bounds of {path!r} must be increasing, got {bounds!r}")
        for bound in (lower, upper):
            check_fit(*with_parameter(data, chain, path, bound))
        if path.endswith(".ridge") and not lower > 0:
            raise ParameterError(f"bounds of {path!r} must be positive, got {bounds!r}")
        logarithmic = lower > 0 and upper > LOGARITHMIC_RATIO * lower
        ends = (math.log(lower), math.log(upper)) if logarithmic else (lower, upper)
        return cls(path, *ends, logarithmic, dict(zip(ends, (lower, upper), strict=True)))

    @classmethod
    def at(cls, solution: Solution, path: str) -> _Axis:
        if not solution.converged:
            raise ParameterError(f"the solution must be a converged one; it says: {solution.message}")
        value = parameter_value(solution.data, solution.chain, path)
        if path.endswith(".ridge") and not value > 0:
            raise ParameterError(
                f"{path} must be positive for a derivative with respect to it: 0 is a limit of its own kind"
            )
        axis = cls(path, -math.inf, math.inf, value > 0)
        return axis.inside(solution.data, solution.chain, math.log(value) if value > 0 else value)

    def inside(self, data: DataModel, chain: Chain, u: float) -> _Axis:
        """With a stencil that does not leave the allowed values around ``u``."""
        for stencil in (_CENTRAL, _FORWARD, _BACKWARD):
            try:
                for offset in (min(stencil), max(stencil)):
                    self.put(data, chain, u + offset * SHIFT)
            except ParameterError:
                continue
            return replace(self, stencil=stencil)
        raise ParameterError(f"{self.path} cannot be moved by {4 * SHIFT:g} from {self.value(u):g}")

    def value(self, u: float) -> float:
        # Bounds are met exactly: exp(log(bound)) may miss one by a rounding error.
        return self.bounds.get(u) or (math.exp(u) if self.logarithmic else float(u))

    def put(self, data: DataModel, chain: Chain, u: float) -> tuple[DataModel, Chain]:
        """The problem with this parameter at ``u``."""
        return with_parameter(data, chain, self.path, self.value(u))


def _reader(data: DataModel, chain: Chain, observable: str) -> Callable[[Solution], float]:
    """Function that reads ``<stage>.<observable>`` off a solution."""
    stage, _, name = observable.rpartition(".")
    if stage not in chain.names or not is_defined(name, data):
        known = f"stages {', '.join(chain.names)} and observables {', '.join(observables_of(data))}"
        raise ParameterError(f"observable must be <stage>.<name>, from {known}; got {observable!r}")
    index = chain.names.index(stage)
    return lambda solution: float(getattr(solution[index], name))


# Implicit differentiation.


def _moved_solutions(solution: Solution, axis: _Axis) -> tuple[dict[int, Solution], float]:
    """Solutions along the tangent at the offsets of the stencil, and what turns their difference into a derivative."""
    value = parameter_value(solution.data, solution.chain, axis.path)
    u = math.log(value) if axis.logarithmic else value
    scale = 1.0 / (SHIFT * (value if axis.logarithmic else 1.0))
    if solution.spectral is not None:
        # Solved to rounding: nothing is gained by linearising.
        problems = {offset: axis.put(solution.data, solution.chain, u + offset * SHIFT) for offset in axis.stencil}
        exact = {offset: spectral_solution(*problem, solution.settings) for offset, problem in problems.items()}
        if None not in exact.values():
            return exact, scale
    require_solvable(solution.chain)
    problems, walks = {0: (solution.data, solution.chain)}, {}
    for offset in axis.stencil:
        if offset:
            problems[offset] = axis.put(solution.data, solution.chain, u + offset * SHIFT)
        limits = [point.limit for point in solution.points]
        walks[offset] = Walk(*problems[offset], solution.settings, solution.level, limits)
    for number, point in enumerate(solution.points, 1):
        x = point.unknowns
        sharpness = sharpness_along(solution.points, number)
        step = sum(weight * walks[offset].newton(x)[0] for offset, weight in axis.stencil.items())
        for offset, walk in walks.items():
            walk.advance(x + offset * step, sharpness)
    moved = {
        offset: replace(
            solution, data=problems[offset][0], chain=problems[offset][1], points=tuple(walk.points), level=solution.level + 1
        )
        for offset, walk in walks.items()
    }  # fmt: skip
    return moved, scale


# Search.


class _Search:
    """An observable, times ``sign``, as a function of scaled parameters ``u``."""

    scanned, samples, finish = SCAN_POINTS, SAMPLES_PER_PARAMETER, 1e-16

    def __init__(
        self, data: DataModel, chain: Chain, axes: Sequence[_Axis], read: Callable[[Solution], float], sign: float,
        settings: Settings,
    ) -> None:  # fmt: skip
        self.data, self.chain, self.axes, self.read = data, chain, tuple(axes), read
        self.sign, self.settings = sign, settings
        self.evaluations = 0
        self._solved: dict[tuple[float, ...], Solution] = {}

    @property
    def lower(self) -> np.ndarray:
        return np.array([axis.lower for axis in self.axes])

    @property
    def upper(self) -> np.ndarray:
        return np.array([axis.upper for axis in self.axes])

    def problem(self, u: np.ndarray) -> tuple[DataModel, Chain]:
        """The problem at ``u``."""
        data, chain = self.data, self.chain
        for axis, coordinate in zip(self.axes, u, strict=True):
            data, chain = axis.put(data, chain, float(coordinate))
        return data, chain

    def solution(self, u: np.ndarray) -> Solution:
        key = tuple(float(coordinate) for coordinate in u)
        if key not in self._solved:
            self.evaluations += 1
            self._solved[key] = self._solve(u)
        return self._solved[key]

    def _solve(self, u: np.ndarray) -> Solution:
        return self._complete(u)

    def _complete(self, u: np.ndarray, **given: object) -> Solution:
        """What :func:`numerics.solve` says at ``u``, converged or not."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return solve(*self.problem(u), settings=self.settings, **given)

    def settle(self, u: np.ndarray) -> None:
        """Be told where the scan was best, before that is refined."""

    def final(self, u: np.ndarray) -> Solution:
        """The solution with its errors, where the search ended."""
        return self.solution(u)

    def noise(self, u: np.ndarray) -> float:
        """Slope, times the width of the search range, that counts as none."""
        return GRADIENT_TOLERANCE * abs(self.value(u))

    def flat(self, u: np.ndarray) -> float:
        """Change of the observable that counts as none."""
        return FLAT * abs(self.value(u))

    def value(self, u: np.ndarray) -> float:
        """To be minimised; infinite where there is no converged solution."""
        solution = self.solution(u)
        return self.sign * self.read(solution) if solution.converged else math.inf

    def slope(self, u: np.ndarray) -> np.ndarray:
        """Derivative of :meth:`value` with respect to ``u``, shape (parameters,)."""
        solution = self.solution(u)
        if not solution.converged:
            return np.full(len(self.axes), math.nan)
        result = np.empty(len(self.axes))
        for k, (axis, coordinate) in enumerate(zip(self.axes, u, strict=True)):
            here = axis.inside(solution.data, solution.chain, float(coordinate))
            moved, _ = _moved_solutions(solution, here)
            difference = sum(weight * self.read(moved[offset]) for offset, weight in here.stencil.items())
            result[k] = self.sign * difference / SHIFT
        return result


class _DifferenceSearch(_Search):
    """The same of solutions that cost much and are not differentiated: each from the nearest, slopes by differences."""

    scanned, samples = SCAN_POINTS // 2 + 1, SAMPLES_PER_PARAMETER - 1
    stencil: ClassVar[Mapping[int, float]] = _CENTRAL

    def _solve(self, u: np.ndarray) -> Solution:
        return self._complete(u, start=self._nearest(u))

    def _nearest(self, u: np.ndarray) -> Solution | None:
        """The converged solution that is nearest, if it is near."""
        width = self.upper - self.lower
        found = [(np.abs((u - key) / width).max(), key) for key, known in self._solved.items() if known.converged]
        distance, key = min(found, default=(math.inf, None))
        return self._solved[key] if distance <= NEAR else None

    def noise(self, u: np.ndarray) -> float:
        # Ten times: a slope is a difference.
        return max(10.0 * super().noise(u), self._error_of_slope(u))

    def _error_of_slope(self, u: np.ndarray) -> float:
        """What the errors of solutions make of a slope, times the width of the search range."""
        return self.solution(u).quadrature_error * abs(self.value(u)) / DIFFERENCE

    def slope(self, u: np.ndarray) -> np.ndarray:
        result = np.empty(len(self.axes))
        for k, axis in enumerate(self.axes):
            step = DIFFERENCE * (axis.upper - axis.lower)
            stencil = self.stencil
            if not axis.lower <= u[k] + min(stencil) * step <= u[k] + max(stencil) * step <= axis.upper:
                low, high = (float(np.clip(u[k] + sign * step, axis.lower, axis.upper)) for sign in (-1, 1))
                stencil = {(low - u[k]) / step: step / (low - high), (high - u[k]) / step: step / (high - low)}
            values = []
            for offset in stencil:
                moved = np.array(u, dtype=float)
                moved[k] = np.clip(u[k] + offset * step, axis.lower, axis.upper)
                values.append(self.value(moved))
            result[k] = float(np.dot(list(stencil.values()), values)) / step
        return np.where(np.isfinite(result), result, math.nan)


class _ClassSearch(_DifferenceSearch):
    """The same of K classes: a scan of complete solutions, then the nodes of the best of them for all that follows."""

    finish = 1e-12
    stencil: ClassVar[Mapping[int, float]] = {-1: -0.5, 1: 0.5}

    def __init__(self, *problem: object) -> None:
        super().__init__(*problem)
        self._like: ClassSolution | None = None
        self._rough = SCANNED_TO * _of_classes.default_rtol(
            _formulas.coordinates(self.chain.stages, self.data.classes_count)
        )
        self._final: dict[tuple[float, ...], ClassSolution] = {}

    def _solve(self, u: np.ndarray) -> ClassSolution:
        near = self._nearest(u)
        if self._like is not None:
            return _of_classes.solve_on_same_nodes(*self.problem(u), self._like, near)
        return self._complete(u, start=near, rtol=self._rough)

    def settle(self, u: np.ndarray) -> None:
        self._like = self.final(u)
        self._solved = {tuple(map(float, u)): _of_classes.solve_on_same_nodes(*self.problem(u), self._like, self._like)}

    def final(self, u: np.ndarray) -> ClassSolution:
        key = tuple(float(coordinate) for coordinate in u)
        if key not in self._final:
            self._final[key] = self._complete(u)
        return self._final[key]

    def _error_of_slope(self, u: np.ndarray) -> float:
        """What changes the observable by its error within ``NEAR`` of the range."""
        return self._error(u) / NEAR

    def flat(self, u: np.ndarray) -> float:
        return max(super().flat(u), self._error(u))

    def _error(self, u: np.ndarray) -> float:
        """Estimated error of the observable."""
        solution = self.final(u)
        values = [self.read(replace(solution, walk=walk)) for walk in solution.checks]
        return float(np.sqrt(np.mean((np.array(values) - self.read(solution)) ** 2))) if values else 0.0


def _bottom_of_valleys(search: _Search) -> np.ndarray:
    """One parameter: the best of the zeros of the derivative, and of the ends."""
    grid = np.linspace(search.lower[0], search.upper[0], search.scanned)
    values = np.array([search.value(np.array([u])) for u in grid])
    if not np.isfinite(values).any():
        raise ArithmeticError("no saddle point converged in the range of the search")
    search.settle(grid[[np.argmin(values)]])
    padded = np.concatenate(([math.inf], values, [math.inf]))
    low = np.flatnonzero(np.isfinite(values) & (values <= padded[:-2]) & (values <= padded[2:]))
    best: list[tuple[float, float]] = []
    for k in low[np.argsort(values[low])][:REFINED]:
        left, right = grid[max(k - 1, 0)], grid[min(k + 1, grid.size - 1)]
        u = _zero_of_slope(search, left, grid[k], right)
        best.append((search.value(np.array([u])), u))
        best.append((search.value(grid[[k]]), grid[k]))
    value = min(best)[0]
    # Of points that are equally good within the accuracy of the solver, the one with the smallest slope.
    equal = [u for v, u in best if v <= value + FLAT * abs(value)]
    return np.array([min(equal, key=lambda u: abs(search.slope(np.array([u]))[0]))])


def _zero_of_slope(search: _Search, left: float, middle: float, right: float) -> float:
    """Zero of the derivative between neighbours of a low point; an end if the observable still falls there."""

    def slope(u: float) -> float:
        return float(search.slope(np.array([u]))[0])

    at_middle = slope(middle)
    other = right if at_middle < 0 else left
    if other == middle or not np.isfinite(at_middle):
        return middle
    if at_middle == 0 or not slope(other) * at_middle < 0:
        return middle
    return float(scipy_optimize.brentq(slope, middle, other, xtol=1e-10, rtol=1e-12))


def _descend(search: _Search) -> np.ndarray:
    """Several parameters: the best of the descents from the best points of a Sobol sequence."""
    width = search.upper - search.lower
    dimensions = len(search.axes)
    unit = qmc.Sobol(dimensions, seed=0).random_base2(search.samples + dimensions - 1)
    values = np.array([search.value(search.lower + width * point) for point in unit])
    if not np.isfinite(values).any():
        raise ArithmeticError("no saddle point converged in the range of the search")
    scale = float(np.ptp(values[np.isfinite(values)])) or 1.0
    search.settle(search.lower + width * unit[np.argmin(values)])

    def function(point: np.ndarray) -> tuple[float, np.ndarray]:
        u = search.lower + width * np.clip(point, 0.0, 1.0)
        value, slope = search.value(u), search.slope(u) * width
        if not np.isfinite(value):
            return 1e6, np.zeros(dimensions)
        return value / scale, slope / scale

    found: list[tuple[float, np.ndarray]] = []
    for start in unit[np.argsort(values)[:REFINED]]:
        result = scipy_optimize.minimize(
            function, start, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * dimensions,
            options={"maxiter": 200, "ftol": search.finish, "gtol": 1e-10, "maxls": 30},
        )  # fmt: skip
        found.append((float(result.fun), result.x))
    best = min(found, key=lambda pair: pair[0])[1]
    return search.lower + width * np.clip(best, 0.0, 1.0)


def _report(search: _Search, u: np.ndarray, observable: str, maximize: bool) -> Optimum:
    solution = search.final(u)
    value = search.value(u)
    slope = search.slope(u)
    noise = search.noise(u)
    width = search.upper - search.lower
    location: dict[str, str] = {}
    limit = value
    vanishing = True
    for k, axis in enumerate(search.axes):
        small = abs(slope[k]) * width[k] <= noise
        location[axis.path] = "interior"
        if u[k] <= axis.lower + 1e-9 * width[k] and slope[k] >= 0:
            location[axis.path] = "lower bound"
        elif u[k] >= axis.upper - 1e-9 * width[k] and slope[k] <= 0:
            beyond = _look_further(search, u, k)
            location[axis.path] = "upper bound" if beyond is None else "infinity"
            limit = limit if beyond is None else min(limit, beyond)
        else:
            vanishing = vanishing and bool(small)
    converged = solution.converged and vanishing
    places = ", ".join(f"{path}: {where}" for path, where in location.items())
    verdict = "optimum found" if converged else "the gradient does not vanish where the search ended"
    gradient = {
        axis.path: float(search.sign * slope[k]) / (axis.value(u[k]) if axis.logarithmic else 1.0)
        for k, axis in enumerate(search.axes)
    }
    return Optimum(
        observable=observable, maximize=maximize, value=search.read(solution), gradient=gradient, location=location,
        parameters={axis.path: parameter_value(solution.data, solution.chain, axis.path) for axis in search.axes},
        limit=search.sign * limit, converged=converged, evaluations=search.evaluations,
        message=f"{verdict} ({places})", solution=solution,
    )  # fmt: skip


def _look_further(search: _Search, u: np.ndarray, k: int) -> float | None:
    """Value far beyond the upper bound of parameter ``k`` if it never gets worse on the way, else None."""
    axis = search.axes[k]
    value, flat = search.value(u), search.flat(u)
    for factor in FAR:
        far = u.copy()
        far[k] = u[k] + math.log(factor) if axis.logarithmic else u[k] * factor
        try:
            further = search.value(far)
        except ParameterError:
            return None
        if not further <= value + flat:
            return None
        value = further
    return value
