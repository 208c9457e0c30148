"""What a student inherits from its teacher: response of its error to how the teacher was trained, and the best teachers there are.

With kappa = m/sqrt(Q) and beta = b/sqrt(Q) the test error is a function of these two alone,
``e = rho Phi(-(kappa + beta)/sqrt(Delta)) + (1 - rho) Phi(-(kappa - beta)/sqrt(Delta))``: what moves the student moves it through
the direction of its weights, or through its bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from numerics.anatomy.bounds import oracle
from numerics.codegen import observables
from numerics.models import (
    Chain,
    Estimator,
    GaussianMixture,
    Hebbian,
    ParameterError,
    Stage,
    parameter_values,
)
from numerics.optimize import derivatives, optimize
from numerics.settings import DEFAULT, Settings
from numerics.solution.quadrature import density
from numerics.solution.solution import Solution, without_nan
from numerics.solver import solve

RIDGES = 1e-3, 1e2
"""Of the teacher, among which the best one is looked for."""

PARAMETERS = "teacher.ridge", "teacher.smoothing", "label_noise"
"""What the student's error responds to, where the chain has it and it is not at a limit of its own kind."""


@dataclass(frozen=True)
class Response:
    """Derivative of the student's test error with respect to one parameter.

    Attributes
    ----------
    total, direction, bias : float
        ``total = direction + bias``: through kappa, and through beta.
    teacher : float
        The same derivative of the teacher's test error.
    """

    total: float
    direction: float
    bias: float
    teacher: float


@dataclass(frozen=True)
class Inheritance:
    """What one student owes to its teacher's training, and limits of it; all of them test errors.

    Attributes
    ----------
    student_error : float
    responses : dict of parameter to Response
        Of those of :data:`PARAMETERS` that the chain has.
    best_ridge, best_error : float
        The teacher's ridge that is best for the student, infinite if ever larger ones are, and the student's error with it.
    optimal_error : float
        Of the student of :func:`optimal_teacher`.
    oracle_error : float
        Of the student of a teacher that gives the true P(y = 1 given x).  It knows v: its student may beat ``bayes_error``.  NaN if
        the student is not trained on all data sets: some would be nobody's.
    bayes_error : float
        The least error of what is trained on the labels; it assumes that they are clean.
    """

    student_error: float
    responses: dict[str, Response]
    best_ridge: float
    best_error: float
    optimal_error: float
    oracle_error: float
    bayes_error: float

    def to_dict(self) -> dict:
        """Everything as plain numbers, ready for JSON."""
        return without_nan(asdict(self))

    def __str__(self) -> str:
        lines = [f"{'error changes with':20} {'total':>9} {'direction':>10} {'bias':>9}   teacher's own"]
        lines += [
            f"{name:20} {found.total:+9.4f} {found.direction:+10.4f} {found.bias:+9.4f}   {found.teacher:+.4f}"
            for name, found in self.responses.items()
        ]
        lines.append(
            f"student's error {self.student_error:.4f}; after the best teacher ridge ({self.best_ridge:.4g}) "
            f"{self.best_error:.4f}, the best Hebbian teacher {self.optimal_error:.4f}, the true probabilities "
            f"{self.oracle_error:.4f}; Bayes error {self.bayes_error:.4f}"
        )
        return "\n".join(lines)


def responses(solution: Solution) -> dict[str, Response]:
    """Response of the student's test error to each of :data:`PARAMETERS` that the chain of teacher and student has.

    The teacher's ridge is left out at 0, which is a limit of its own kind.

    Raises
    ------
    ParameterError
        If the data are not a mixture of two classes, or the chain is not of two stages.

    Examples
    --------
    >>> from numerics import solve
    >>> from theory.losses import CrossEntropy, Distillation
    >>> chain = [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1)]
    >>> found = responses(solve(GaussianMixture(2.0, 0.2), chain))["teacher.ridge"]
    >>> round(found.total, 5), round(found.direction, 5), round(found.bias, 5)
    (0.04866, -0.01547, 0.06413)
    """
    data, chain = solution.data, solution.chain
    _require_two(data, chain)
    teacher, student = chain.names
    known = parameter_values(data, chain)
    paths = [path.replace("teacher", teacher) if path.startswith("teacher.") else path for path in PARAMETERS]
    moving = [path for path in paths if path in known and not (path.endswith(".ridge") and known[path] == 0)]
    read = [f"{student}.{name}" for name in ("magnetization", "norm", "bias", "test_error")] + [f"{teacher}.test_error"]
    slopes = derivatives(solution, moving, read)
    stage, spread = solution[1], math.sqrt(data.delta)
    kappa, beta = stage.magnetization / stage.norm, stage.bias / stage.norm
    ahead, back = data.rho * density((kappa + beta) / spread), (1 - data.rho) * density((kappa - beta) / spread)
    by_kappa, by_beta = -(ahead + back) / spread, -(ahead - back) / spread
    found = {}
    for path in moving:
        m, norm, b, total, own = (slopes[path][name] for name in read)
        direction, bias = by_kappa * (m - kappa * norm) / stage.norm, by_beta * (b - beta * norm) / stage.norm
        found[path] = Response(total, float(direction), float(bias), own)
    return found


def inheritance(
    data: GaussianMixture,
    chain: Chain | Sequence,
    *,
    ridges: tuple[float, float] = RIDGES,
    settings: Settings = DEFAULT,
) -> Inheritance:
    """What the student of a chain of two stages owes to how its teacher was trained.

    Parameters
    ----------
    data
        Two Gaussian classes.
    chain
        Teacher and student.
    ridges
        Range in which the teacher's best ridge is looked for.

    Raises
    ------
    ParameterError
        If the data are not a mixture, the chain is not of two stages, or the teacher is not trained.
    ConvergenceError
        If a chain has no converged solution.

    Examples
    --------
    >>> from theory.losses import CrossEntropy, Distillation
    >>> found = inheritance(GaussianMixture(2.0, 0.5), [Estimator(CrossEntropy(), 1.0), Estimator(Distillation(), 0.1)])
    >>> [round(value, 4) for value in (found.best_error, found.optimal_error, found.oracle_error, found.bayes_error)]
    [0.2073, 0.2078, 0.1663, 0.2071]
    """
    chain = Chain.of(chain)
    _require_two(data, chain)
    if not isinstance(chain[0], Estimator):
        raise ParameterError(f"the teacher must be an Estimator, got {chain[0]!r}")
    solution = solve(data, chain, settings=settings, throw=True)
    teacher, student = chain.names
    best = optimize(data, chain, {f"{teacher}.ridge": ridges}, f"{student}.test_error", settings=settings)
    (ridge,), (where,) = best.parameters.values(), best.location.values()

    def after(stage: Stage) -> float:
        taught = [replace(stage, name=teacher), chain[1]]
        return solve(data, taught, settings=settings, throw=True)[1].test_error

    return Inheritance(
        student_error=solution[1].test_error,
        responses=responses(solution),
        best_ridge=math.inf if where == "infinity" else ridge,
        best_error=best.limit,
        optimal_error=after(optimal_teacher(data, chain, settings)),
        oracle_error=after(oracle(data)) if {found.name for found in data.sets} <= set(chain[1].sets) else math.nan,
        bayes_error=solution[1].bayes_error,
    )


def optimal_teacher(data: GaussianMixture, chain: Chain | Sequence, settings: Settings = DEFAULT) -> Hebbian:
    """The Hebbian stage of the data and inputs of a chain's teacher, with the bias of least test error.

    Where all inputs are seen and labels are clean it is Bayes-optimal (:class:`numerics.models.BayesOptimal`).
    """
    teacher, *others = Chain.of(chain).stages
    found = Hebbian(name=teacher.name, sets=teacher.sets, eta=teacher.eta, mask_overlap=teacher.mask_overlap)
    stage = solve(data, [found, *others], settings=settings, throw=True)[0]
    m, q = stage.magnetization, stage.norm_squared
    return replace(found, bias=float(observables.bayes_bias()(q / m, data.delta, data.rho)))


def _require_two(data: GaussianMixture, chain: Chain) -> None:
    if not isinstance(data, GaussianMixture):
        raise ParameterError(f"data must be a GaussianMixture, got {data!r}")
    if len(chain) != 2:
        raise ParameterError(f"chain must be a teacher and a student, got {len(chain)} stages")
