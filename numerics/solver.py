"""Solve the saddle point of a chain, stage after stage: earlier stages do not feel later ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from numerics.driver.outcome import Status
from numerics.models import (
    Chain,
    ClassMixture,
    Clusters,
    ConvergenceWarning,
    DataModel,
    Estimator,
    ParameterError,
    Stage,
    check_fit,
    in_equations,
    require_count,
    require_number,
)
from numerics.scalar.compiled import PointArrays, compile_chain, newton, one_step, structural_loss
from numerics.scalar.directions import TENSOR_STAGES
from numerics.scalar.kernels.layout import Nodes
from numerics.scalar.points import StagePoint
from numerics.scalar.prior import WeightMoments, kind_of_prior
from numerics.settings import DEFAULT, Settings
from numerics.solution.solution import Solution
from numerics.square_chain.reduction import square_chain
from numerics.square_chain.spectral import is_spectral, solve_square_chain

if TYPE_CHECKING:
    from numerics.classes.solution import ClassSolution
    from numerics.clusters.solution import ClusterSolution

LONG_CHAIN_RTOL = {TENSOR_STAGES: 1e-3, 4: 1e-5}
"""Default accuracy of chains of more than so many stages."""

LONG_QUADRATIC_RTOL = {5: 1e-6}
"""The same where all losses are quadratic: rounding errors, which every stage amplifies, are all there is."""

LONGEST_CHAIN = 10
"""Stages of a chain that is solved stage by stage: equations of further ones take minutes to derive and compile, and rounding
errors, which every stage amplifies, have taken over by then."""

_LIMIT_TOLERANCE = 1e-12  # of Newton's last step where a ridge is 0
_VANISHING = 1e-6  # squared norm
_NO_WEIGHTS = -690.0  # ln C_tt^2 that a stage without weights starts another with
_LOOSE = 1e-6  # accuracy that allows larger steps
_LOOSE_STEP = 1.3
_LOOSE_TAIL = 1e-9


class ConvergenceError(RuntimeError):
    """Raised by ``solve(..., throw=True)`` where no converged solution was found.

    Examples
    --------
    >>> from theory.losses import CrossEntropy
    >>> from numerics import GaussianMixture
    >>> solve(GaussianMixture(alpha=2.0, rho=0.2), Estimator(CrossEntropy(), ridge=0.1), max_iterations=1, throw=True)
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    numerics.solver.ConvergenceError: no converged solution at GaussianMixture(alpha=2.0, rho=0.2, delta=1.0): ...
    """


def solve(
    data: DataModel,
    chain: Chain | Stage | Sequence[Stage],
    *,
    rtol: float | None = None,
    max_iterations: int | None = None,
    start: Solution | None = None,
    throw: bool = False,
    settings: Settings = DEFAULT,
) -> Solution:
    """Order parameters of a chain of estimators in the limit N -> infinity, M = alpha N.

    A ridge of 0 stands for the limit ridge -> 0: maximum likelihood, the minimum-norm interpolator or the max-margin
    direction, whichever exists (:mod:`numerics.scalar.limits`).

    Parameters
    ----------
    data : GaussianMixture, LinearRule, ClassMixture or Clusters
    chain : stage or sequence of stages
        Trained one after the other: :class:`numerics.models.Estimator`, ``Frozen``, ``Hebbian`` or ``BayesOptimal``.
    rtol : float
        Accuracy asked of the order parameters, relative to their natural size; default 1e-8.  Of more than two classes that of
        the test errors, default 1e-5 for three, 1e-4 for four and five, 2e-4 for more.  For five to seven stages it is
        1e-5, for more 1e-3; if all losses are quadratic, 1e-6 for more than five (on one data set they have 1e-12).
    max_iterations : int
        Channel evaluations allowed in one Newton solve.
    start : Solution
        A solution at nearby parameters to continue from; it changes the speed, not the answer.  Not used if a ridge is 0.
    throw : bool
        Raise :class:`ConvergenceError` instead of returning a solution with ``converged=False`` and a warning.

    Returns
    -------
    Solution
        With ``converged``, ``residual`` (undamped, scaled), ``iterations``, ``quadrature_error`` and ``message``; of a
        ClassMixture a :class:`numerics.classes.solution.ClassSolution`, of Clusters a
        :class:`numerics.clusters.solution.ClusterSolution`.

    Raises
    ------
    numerics.models.ParameterError
        For arguments outside their range, for a ridge of 0 where there is no limit ridge -> 0, and for a chain of more than
        ``LONGEST_CHAIN`` stages that are not solved through their spectral measure.
    ConvergenceError
        If ``throw`` and some stage did not converge.

    Examples
    --------
    >>> from theory.losses import CrossEntropy, Distillation
    >>> from numerics import GaussianMixture
    >>> data = GaussianMixture(alpha=2.0, rho=0.2, delta=1.0)
    >>> chain = [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)]
    >>> solution = solve(data, chain)
    >>> [round(stage.test_error, 6) for stage in solution.stages]
    [0.162072, 0.201505]
    >>> solution.converged, solution.quadrature_error < 1e-8
    (True, True)

    A ridge of 0 is a limit:

    >>> hard = solve(GaussianMixture(alpha=1.0, rho=0.2), Estimator(CrossEntropy(), ridge=0))[0]
    >>> hard.limit, round(hard.margin, 6), round(hard.test_error, 6)
    ('max margin', 0.984012, 0.21046)
    """
    if not isinstance(data, DataModel):
        raise ParameterError(f"data must be a GaussianMixture, a ClassMixture, Clusters or a LinearRule, got {data!r}")
    chain = Chain.of(chain)
    check_fit(data, chain)
    settings = settings_for(in_equations(data, chain), settings, rtol if not data.many_classes else None)
    if max_iterations is not None:
        settings = replace(
            settings, max_iterations=require_count("max_iterations", max_iterations, allowed="a positive integer")
        )
    if not data.in_clusters:
        kind_of_prior(data, in_equations(data, chain), settings.common)  # refused if it cannot be
    if start is not None and not isinstance(start, Solution) and not (data.many_classes or data.in_clusters):
        raise ParameterError(f"start must be a Solution or None, got {start!r}")
    if data.many_classes:
        solution = _solution_of_classes(data, chain, settings, rtol, start)
    elif data.in_clusters:
        solution = _solution_of_clusters(data, chain, settings, start)
    elif is_spectral(data, chain) and not has_limit(chain):
        solution = spectral_solution(data, chain, settings)
    else:
        require_solvable(chain)
        settings = settings_of_limits(settings) if has_limit(chain) else settings
        arrays = PointArrays([(data, chain)], settings.common)
        if start is not None and not has_limit(chain):
            for t, point in enumerate(start.points[: len(chain)]):
                if point.status == 0 and not point.limit:
                    arrays.x[0, t, : point.unknowns.size] = np.nan_to_num(point.unknowns, neginf=_NO_WEIGHTS)
                    arrays.started[0, t] = 1
        arrays.solve(compile_chain(in_equations(data, chain)), settings)
        solution = read_solution(arrays, 0, data, chain, settings)
        if not solution.converged:
            solution = spectral_solution(data, chain, settings) or solution
    if isinstance(solution, Solution) and solution.points[-1].status == Status.TOO_LARGE:
        raise ParameterError(f"chain of {len(chain)} stages: {solution.message}")
    if not solution.converged:
        text = f"no converged solution at {data}: {solution.message}"
        if throw:
            raise ConvergenceError(text)
        warnings.warn(text, ConvergenceWarning, stacklevel=2)
    return solution


def _solution_of_classes(
    data: ClassMixture, chain: Chain, settings: Settings, rtol: float | None, start: ClassSolution | None
) -> ClassSolution:
    """Of a chain on K classes."""
    from numerics.classes.solution import ClassSolution, solve_classes  # here: most users have two classes

    if start is not None and not isinstance(start, ClassSolution):
        raise ParameterError(f"start must be a solution of a ClassMixture or None, got {start!r}")
    return solve_classes(
        data,
        chain,
        rtol=rtol,
        max_iterations=settings.max_iterations,
        start=start,
        settings=settings,
        solve_binary=solve,
    )


def _solution_of_clusters(
    data: Clusters, chain: Chain, settings: Settings, start: ClusterSolution | None
) -> ClusterSolution:
    """Of a chain on clusters."""
    from numerics.clusters.solution import ClusterSolution, solve_clusters  # here: seldom needed

    if start is not None and not isinstance(start, ClusterSolution):
        raise ParameterError(f"start must be a solution of Clusters or None, got {start!r}")
    return solve_clusters(data, chain, settings, start)


def settings_for(chain: Chain, settings: Settings, rtol: float | None = None) -> Settings:
    """Settings for an accuracy, by default the one that is affordable for a chain of this length, if they are not set already.

    Raises
    ------
    numerics.models.ParameterError
        If ``rtol`` is not in [1e-13, 1).
    """
    if not isinstance(settings, Settings):
        raise ParameterError(f"settings must be a numerics.settings.Settings, got {settings!r}")
    if rtol is not None:
        rtol = require_number("rtol", rtol, at_least=1e-13, below=1, allowed="a number in [1e-13, 1)")
    if rtol is None and replace(settings, common=None) == DEFAULT:
        quadratic = all(structural_loss(stage).is_quadratic for stage in chain.stages)
        table = LONG_QUADRATIC_RTOL if quadratic else LONG_CHAIN_RTOL
        rtol = next((loose for stages, loose in table.items() if len(chain) > stages), None)
    if rtol is None:
        return settings
    settings = replace(settings, rtol=rtol, newton_tolerance=min(settings.newton_tolerance, rtol))
    if rtol >= _LOOSE:
        steps = {name: _LOOSE_STEP * getattr(settings, name) for name in ("field_step", "outer_step")}
        settings = replace(settings, tail=max(settings.tail, _LOOSE_TAIL), **steps)
    return settings


def has_limit(chain: Chain) -> bool:
    """Whether some stage is a limit ridge -> 0."""
    return any(getattr(stage, "ridge", None) == 0 for stage in chain.stages)


def settings_of_limits(settings: Settings) -> Settings:
    """Settings for chains in which some ridges are 0: large responses of maximum-likelihood stages amplify errors."""
    return replace(settings, newton_tolerance=min(settings.newton_tolerance, _LIMIT_TOLERANCE))


def spectral_solution(data: DataModel, chain: Chain, settings: Settings = DEFAULT) -> Solution | None:
    """Solution of a chain of quadratic losses on one data set, of any length (:mod:`numerics.square_chain`); None for others."""
    numbers = None if has_limit(chain) else square_chain(data, chain)
    if numbers is None:
        return None
    found = solve_square_chain(numbers)
    solution = _assemble(found.points, 0, found.error, data, chain, settings)
    return replace(solution, spectral=found.stages)


def require_solvable(chain: Chain) -> None:
    """Raise ParameterError for a chain that is too long for anything but :mod:`numerics.square_chain`."""
    if len(chain) > LONGEST_CHAIN:
        raise ParameterError(
            f"chain must have at most {LONGEST_CHAIN} stages, got {len(chain)}: only stages with quadratic losses, positive "
            "ridges, the same data sets and the same active weights are solved at any length"
        )


def read_solution(arrays: PointArrays, i: int, data: DataModel, chain: Chain, settings: Settings) -> Solution:
    """Solution of point ``i`` of an array of points."""
    return _assemble(arrays.read(i), int(arrays.level[i]), float(arrays.error[i]), data, chain, settings)


def _assemble(
    points: tuple[StagePoint, ...], level: int, error: float, data: DataModel, chain: Chain, settings: Settings
) -> Solution:  # fmt: skip
    """Solution from the stages solved, judged by residual and quadrature error."""
    residual = max(point.residual for point in points)
    solved = in_equations(data, chain)
    last = f"stage {len(points) - solved.hidden} ({solved.name(len(points))})"
    message = ""
    if points[-1].status == Status.TOO_LARGE:
        message = (
            f"{last} would take about {points[-1].defect / 1e9:.2g} GB for its averages, "
            f"more than {settings.memory / 1e9:.2g} GB; ask for a larger rtol than {settings.rtol:.0e}, take fewer stages, or "
            "allow more by settings=Settings(memory=...)"
        )
    elif points[-1].status != 0:
        message = f"{last}: {Status(points[-1].status).message}"
    elif not error <= settings.rtol:
        message = f"the quadrature error estimate {error:.1e} exceeds rtol={settings.rtol:.1e}"
    elif not residual <= settings.residual_tolerance:
        message = f"the residual {residual:.1e} exceeds {settings.residual_tolerance:.1e}"
    if (
        message
        and not points[-1].limit
        and points[-1].status != Status.TOO_LARGE
        and points[-1].norm_squared < _VANISHING
    ):
        message += "; the weights are nearly 0: the targets hardly differ between samples"
    return Solution(
        data=data, chain=chain, points=points, converged=message == "", residual=residual, quadrature_error=error,
        iterations=sum(point.iterations for point in points), message=message or _success(points, solved), level=level,
        settings=settings,
    )  # fmt: skip


def _success(points: Sequence[StagePoint], chain: Chain) -> str:
    """What is said of a solution that converged: why some observables of a stage without weights are NaN."""
    text = "converged"
    for number, point in enumerate(points, start=1):
        if point.vanishes:
            text += f"; the targets of {chain.name(number)} do not depend on the sample, so its weights are 0"
            text += ": cosines are NaN" if point.bias else " and, as its bias is 0, it decides nothing: errors are NaN"
    return text


def plain_iteration(
    data: DataModel, stage: Estimator, nodes: Nodes, moments: WeightMoments, earlier: Sequence[StagePoint],
    x: np.ndarray, step: float, tail: float = 1e-15,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The saddle-point equations of one stage at any point, for checks.

    Parameters
    ----------
    nodes, moments, earlier
        The earlier stages: nodes on training samples, weight moments, saddle points.
    x : array, shape (2t + 2,)
        Unknowns as in :mod:`numerics.scalar.kernels.layout`.

    Returns
    -------
    conjugates : array, shape (2t + 2,)
        ``mh, Qh_t1.., Vh_t1..`` and alpha E[f], which vanishes at the saddle.
    updated : array, shape (2t + 1,)
        ``m, Q_t1.., V_t1..`` that these conjugates give.
    """
    prior = moments.prior_rows(len(earlier), stage.ridge)
    _, conjugates, updated, _ = newton(data, stage, nodes.of(data, stage.sets), prior, earlier, x, one_step(step, tail))
    return conjugates, updated
