"""Random convex formulas against a brute-force reference: ``python -m tests.random_formulas --formulas 500``.

Each formula is solved by :func:`numerics.solve` at random parameters.  The reference shares nothing with it but the equations on
paper: dense Gauss-Legendre rules in the cavity fields, doubled until they agree; proximal points by bracketed Newton steps on the
formula's own derivatives in NumPy; a response to an earlier field by Stein's lemma; the Jacobian by differences.  One Newton step
from the solver's answer gives the distance to the reference's solution.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass

import numpy as np
import sympy
from scipy import special

from numerics import Estimator, GaussianMixture, solve
from theory.losses import CrossEntropy, Loss, SquareLoss
from theory.symbols import TEACHER, h, y

_MODULES = [
    {
        "sigmoid": special.expit,
        "softplus": lambda x: np.logaddexp(0.0, x),
        "step": lambda x: 0.5 * (1 + np.sign(x)),
        "erf": special.erf,
        "erfc": special.erfc,
    },
    "numpy",
]
_GAUSS = np.polynomial.legendre.leggauss(16)
_RANGE = 9.0  # widths of a field
_PROXIMAL_STEPS = 400
_AGREEMENT = 3e-11  # of two rules, relative to the size of the order parameters
_DIFFERENCE = 1e-5
COERCIVE = (
    "({0})**2/2", "({0})**4/4", "({0})**6/30", "({0})**8/50", "sqrt(1+({0})**2)", "sqrt(1+({0})**4)", "log(cosh({0}))",
    "cosh({0})", "(1+({0})**2)**(3/4)", "({0})*atan({0})", "({0})*erf({0})+exp(-({0})**2)/sqrt(pi)", "softplus(({0})**2)",
    "softplus(5*(({0})**2-1))/5", "({0})**4+({0})**2*sqrt(1+({0})**2)", "exp(({0})**2/8)", "(({0})**2+1/100)**(5/8)",
)  # fmt: skip
"""Convex functions of one argument with a minimum."""

FALLING = (
    "softplus({0})", "softplus({0})**2", "softplus(2*({0}))*softplus({0})", "exp({0})", "softplus(softplus({0}))",
    "exp(softplus({0})/2)", "sqrt(1+softplus({0})**2)", "log(1+exp({0})+exp(2*({0})))", "softplus(20*({0}))/20",
)  # fmt: skip
"""Convex functions that fall without end on one side."""

LABEL_TARGETS = ("h-s", "2*(h-s)", "h-s/2", "h/2-s", "h-2*y")
MARGINS = ("-s*h", "1-s*h", "-3*s*h", "(1-s*h)/2")
TEACHER_ARGUMENTS = (
    "h-h_teacher",
    "h-tanh(h_teacher)",
    "h-h_teacher**3/10",
    "h-2*sigmoid(3*h_teacher)+1",
    "h/2-h_teacher",
)
WEIGHTS = (
    "1", "exp(-h_teacher**2/2)", "1/(1+h_teacher**4)", "sigmoid(6*(h_teacher**2-1))", "sigmoid(-2*s*h_teacher)",
    "(1+step(h_teacher))", "exp(-(h_teacher-1)**4)", "sqrt(1/50+h_teacher**2)", "(1+tanh(4*h_teacher)/2)",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A formula and where it is solved: one stage, or the student of a teacher that minimises ``teacher``."""

    formula: str
    data: GaussianMixture
    ridge: float
    eta: float
    teacher: Loss | None = None
    teacher_ridge: float = 1.0

    @property
    def chain(self) -> list[Estimator]:
        student = Estimator(Loss.from_expression(self.formula), self.ridge, eta=self.eta)
        return [student] if self.teacher is None else [Estimator(self.teacher, self.teacher_ridge), student]


def random_case(generator: np.random.Generator) -> Case:
    """A random convex formula at random parameters; every third one looks at a teacher's logit."""

    def number(low: float, high: float) -> float:
        return float(f"{np.exp(generator.uniform(np.log(low), np.log(high))):.3g}")

    def pick(options: tuple[str, ...]) -> str:
        return str(generator.choice(options))

    def term(argument: str, atoms: tuple[str, ...] = COERCIVE) -> str:
        return f"{number(0.05, 2)}*({pick(atoms).format(argument)})"

    def labelled() -> str:
        return term(pick(LABEL_TARGETS)) if generator.random() < 0.6 else term(pick(MARGINS), FALLING)

    data = GaussianMixture(number(0.3, 6), float(f"{generator.uniform(0.1, 0.5):.2f}"), number(0.3, 3))
    parts = [labelled() for _ in range(generator.integers(1, 3))]
    eta = float(f"{generator.uniform(0.2, 1):.2f}")
    if generator.random() < 2 / 3:
        if generator.random() < 0.3:
            parts.append(term(pick(("h", "h-1", "3*h+1")), COERCIVE + FALLING))
        return Case("+".join(parts), data, number(1e-4, 10), eta)
    teacher = (CrossEntropy(), SquareLoss())[generator.integers(2)]
    taught = term(pick(TEACHER_ARGUMENTS))
    weighted = f"({pick(WEIGHTS)})*({parts[0]})"
    kinds = (f"{taught}", f"{taught}+{parts[0]}", f"{weighted}+{taught}", weighted)
    return Case(pick(kinds), data, number(1e-4, 10), eta, teacher, number(1e-2, 10))


class Functions:
    """Derivatives of a formula in NumPy, from SymPy's own differentiation."""

    def __init__(self, loss: Loss) -> None:
        formula = loss.expression.subs(dict(zip(loss.symbols, loss.values, strict=True)))
        arguments = (h, y, TEACHER)
        self._gradient, self._curvature = (
            sympy.lambdify(arguments, sympy.diff(formula, h, k), modules=_MODULES, cse=True) for k in (1, 2)
        )

    def __call__(self, logit: np.ndarray, label: float, teacher: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            first = np.broadcast_to(self._gradient(logit, label, teacher), logit.shape)
            second = np.broadcast_to(self._curvature(logit, label, teacher), logit.shape)
        return first, second

    def proximal(self, field: np.ndarray, gamma: float, label: float, teacher: np.ndarray | float) -> tuple:
        """h with ``h + gamma l'(h) = field``, and l', l'' there, by Newton steps in a bracket that only shrinks."""
        shape = field.shape
        field, teacher = field.ravel(), np.broadcast_to(teacher, shape).ravel()
        logit, left = np.zeros(field.size), np.arange(field.size)
        at, low, high = np.zeros(field.size), np.full(field.size, -np.inf), np.full(field.size, np.inf)
        reach = 1.0
        for _ in range(_PROXIMAL_STEPS):
            first, second = self(at, label, teacher[left])
            excess = at + gamma * first - field[left]
            # Where the formula overflows, the sign is that of the side.
            excess = np.where(np.isnan(excess), np.copysign(np.inf, at), excess)
            low, high = np.where(excess < 0, at, low), np.where(excess > 0, at, high)
            with np.errstate(all="ignore"):
                new = at - excess / (1 + gamma * second)
                middle = np.where(
                    np.isinf(low), high - reach, np.where(np.isinf(high), low + reach, 0.5 * (low + high))
                )
            new = np.where((new > low) & (new < high), new, np.where(excess == 0, at, middle))
            logit[left] = new
            going = np.abs(new - at) > 1e-15 * (1e-3 + np.abs(at))
            if not going.any():
                break
            left, at, low, high = left[going], new[going], low[going], high[going]
            reach *= 1.5
        logit, teacher = logit.reshape(shape), teacher.reshape(shape)
        first, second = self(logit, label, teacher)
        return logit, first, second


def rule(panels: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for averages over a standard normal variable."""
    edges = np.linspace(-_RANGE, _RANGE, panels + 1)
    half = 0.5 * np.diff(edges)[:, None]
    nodes = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * _GAUSS[0]).ravel()
    return nodes, (half * _GAUSS[1]).ravel() * np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)


def graded_rule(
    functions: Functions, mean: float, width: float, gamma: float, label: float, panels: int
) -> tuple[np.ndarray, ...]:
    """Nodes for averages over a field ``N(mean, width^2)`` that are dense both in the field and in its proximal point.

    Returns g, weight, proximal point, l' there.
    """
    field = mean + width * np.linspace(-_RANGE, _RANGE, 4001)
    logit, _, _ = functions.proximal(field, gamma, label, 0.0)
    place = np.linspace(0, 1, field.size) + (logit - logit[0]) / (logit[-1] - logit[0])
    edges = np.interp(np.linspace(0, place[-1], panels + 1), place, logit)
    if edges[0] < 0.0 < edges[-1]:
        edges = np.unique(np.append(edges, 0.0))  # where a step in the logit jumps
    half = 0.5 * np.diff(edges)[:, None]
    logit = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * _GAUSS[0]).ravel()
    slope, curvature = functions(logit, label, 0.0)
    g = (logit + gamma * slope - mean) / width
    weight = (half * _GAUSS[1]).ravel() * (1 + gamma * curvature) * np.exp(-0.5 * g**2) / (np.sqrt(2 * np.pi) * width)
    return g, weight, logit, slope


def first_stage(functions: Functions, case_ridge: float, eta: float, data: GaussianMixture, x: np.ndarray, panels: int):
    """Residual of the equations of one stage at ``x = (m, b, q, V)``, and its conjugates."""
    m, b, q, v = x
    g, weight = rule(panels)
    sums = np.zeros(4)
    for sign, share in ((1, data.rho), (-1, 1 - data.rho)):
        field = sign * m + b + np.sqrt(data.delta * q) * g
        _, slope, curvature = functions.proximal(field, data.delta * v, (1 + sign) / 2, 0.0)
        response = curvature / (1 + data.delta * v * curvature)
        sums += share * np.array([weight @ (-sign * slope), weight @ slope**2, weight @ response, weight @ -slope])
    mh, qh, vh = data.alpha * sums[0], data.alpha * data.delta * sums[1], data.alpha * data.delta * sums[2]
    strength = case_ridge + vh
    new = np.array([eta * mh / strength, eta * (mh**2 + qh) / strength**2, eta / strength])
    residual = np.array([new[0] - m, data.alpha * sums[3], new[1] - q, new[2] - v])
    return residual, (mh, qh, vh)


def second_stage(case: Case, functions: Functions, teacher: dict, x: np.ndarray, panels: int) -> np.ndarray:
    """Residual of the student's equations at ``x = (m, b, q, R, V, V_21)``; both stages on the student's coordinates."""
    m, b, q, overlap, v, v21 = x
    data = case.data
    m1, b1, q1, v1 = teacher["x"]
    g2, weight2 = rule(panels)
    c21, rest = overlap / np.sqrt(q1), q - overlap**2 / q1
    sums = np.zeros(6)
    for sign, share in ((1, data.rho), (-1, 1 - data.rho)):
        label = (1 + sign) / 2
        g1, weight1, logit1, slope1 = graded_rule(
            teacher["functions"], sign * m1 + b1, np.sqrt(data.delta * q1), data.delta * v1, label, panels
        )
        force1 = -slope1
        field = (
            sign * m
            + b
            + np.sqrt(data.delta) * (c21 * g1[:, None] + np.sqrt(rest) * g2)
            + (data.delta * v21 * force1[:, None])
        )
        taught = np.broadcast_to(logit1[:, None], field.shape)
        _, slope, curvature = functions.proximal(field, data.delta * v, label, taught)
        response = curvature / (1 + data.delta * v * curvature)
        weight = share * weight1[:, None] * weight2
        force = -slope
        sums += [
            np.sum(weight * sign * force), np.sum(weight * force**2), np.sum(weight * response), np.sum(weight * force),
            np.sum(weight * force * force1[:, None]), np.sum(weight * force * g1[:, None]),
        ]  # fmt: skip
    alpha, delta = data.alpha, data.delta
    mh, qh, vh, qh21 = alpha * sums[0], alpha * delta * sums[1], alpha * delta * sums[2], alpha * delta * sums[4]
    # Stein: E[f g_1] = sqrt(Delta) (C_11 E[df/domega_1] + C_21 E[df/domega_2]).
    total = (sums[5] / np.sqrt(delta) + c21 * sums[2]) / np.sqrt(q1)
    vh21 = -alpha * delta * total
    first, strength = teacher["strength"], case.ridge + vh
    eta = case.eta
    new_m = eta * (mh - vh21 * m1) / strength
    new_overlap = eta * (mh * m1 + qh21 / first - vh21 * q1) / strength
    new_q = eta * (mh**2 + qh + vh21**2 * q1 - 2 * vh21 * (mh * m1 + qh21 / first)) / strength**2
    new = np.array([new_m, new_q, new_overlap, eta / strength, -eta * vh21 / (first * strength)])
    return np.array([new[0] - m, alpha * sums[3], new[1] - q, new[2] - overlap, new[3] - v, new[4] - v21])


def distance(residual, x: np.ndarray, scale: np.ndarray, panels: int, most: int) -> tuple[np.ndarray, float]:
    """Newton step from ``x`` to the zero of ``residual(x, panels)`` in units of ``scale``, and what doubling the rule changed."""
    value = residual(x, panels)
    while True:
        jacobian = np.empty((x.size, x.size))
        for k in range(x.size):
            moved = [x.copy(), x.copy()]
            moved[0][k] += _DIFFERENCE * scale[k]
            moved[1][k] -= _DIFFERENCE * scale[k]
            jacobian[:, k] = (residual(moved[0], panels) - residual(moved[1], panels)) / (2 * _DIFFERENCE)
        finer = residual(x, 2 * panels)
        change = float(np.abs(np.linalg.solve(jacobian, finer - value)).max())
        if change <= _AGREEMENT or 4 * panels > most:
            return -np.linalg.solve(jacobian, finer), change
        panels, value = 2 * panels, finer


def check(case: Case) -> dict:
    """Solve a case; its stated error, its distance from the reference, and how exact the reference is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain = case.chain
        begun = time.perf_counter()
        solution = solve(case.data, chain)
    seconds = time.perf_counter() - begun
    outcome = {"converged": solution.converged, "message": solution.message, "seconds": seconds}
    outcome |= {"stated": solution.quadrature_error, "error": np.nan, "reference": np.nan}
    if not solution.converged:
        return outcome
    data = case.data

    def own(number: int) -> tuple[np.ndarray, np.ndarray]:
        stage = solution[number]
        q, v = stage.norm_squared, stage.response
        return np.array([stage.magnetization, stage.bias, q, v]), np.array([np.sqrt(q), 1 + np.sqrt(q), q, v])

    if case.teacher is None:
        functions = Functions(chain[0].loss)
        x, scale = own(0)
        move, agreement = distance(
            lambda at, panels: first_stage(functions, case.ridge, case.eta, data, at, panels)[0], x, scale, 64, 4096
        )
    else:
        functions, teaching = Functions(chain[1].loss), Functions(case.teacher)
        x1, scale1 = own(0)

        def residual1(at: np.ndarray, panels: int) -> np.ndarray:
            return first_stage(teaching, case.teacher_ridge, 1.0, data, at, panels)[0]

        move1, _ = distance(residual1, x1, scale1, 64, 4096)
        x1 = x1 + move1 * scale1
        strength = case.teacher_ridge + first_stage(teaching, case.teacher_ridge, 1.0, data, x1, 256)[1][2]
        teacher = {"x": x1, "functions": teaching, "strength": strength}
        x2, scale2 = own(1)
        overlap, v21 = solution.overlap[1, 0], solution.response[1, 0]
        q1, v1 = x1[2], x1[3]
        x = np.array([x2[0], x2[1], x2[2], overlap, x2[3], v21])
        scale = np.array([
            scale2[0], scale2[1], x2[2], np.sqrt(x2[2] * q1), x2[3], np.sqrt(x2[3] * v1) + 1e-3 * x2[3]
        ])  # fmt: skip
        move, agreement = distance(
            lambda at, panels: second_stage(case, functions, teacher, at, panels), x, scale, 12, 48
        )
        move = np.append(move, move1)
    return outcome | {"error": float(np.abs(move).max()), "reference": agreement}


def main() -> None:
    """Command line: counts, and every case that is wrong beyond its stated error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--formulas", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    worst, failed, wrong, unsure, refused = 0.0, 0, 0, 0, 0
    done = 0
    while done < options.formulas:
        case = random_case(generator)
        try:
            _ = case.chain
        except ValueError as error:
            refused += 1
            print(f"refused: {error}", flush=True)
            continue
        done += 1
        outcome = check(case)
        if not outcome["converged"]:
            failed += 1
            print(f"not converged: {outcome['message']}: {case}", flush=True)
        elif outcome["reference"] > 1e-8:
            unsure += 1
            print(f"the reference is good to {outcome['reference']:.0e} only: {case}", flush=True)
        else:
            allowed = max(1e-8, outcome["stated"]) + 2 * outcome["reference"]
            worst = max(worst, outcome["error"])
            if outcome["error"] > allowed:
                wrong += 1
                print(f"WRONG by {outcome['error']:.1e}, states {outcome['stated']:.1e}: {case}", flush=True)
    print(f"{done} formulas: {wrong} wrong, {failed} not converged, {unsure} without a good reference, "
          f"{refused} more refused; worst error {worst:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
