"""Compiled equations of a stage: conjugates, prior, Cholesky update, weight moments; and the loop over a node's points."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import sympy

from numerics.codegen.cache import derived_source, load
from numerics.codegen.printing import HEADER_TEXT, function, statements
from theory import envelope, potential


def _vector_function(name: str, equations: potential.Equations) -> str:
    """Compiled function ``(inputs, constants, out)`` of an ``Equations``."""
    body = statements(
        [(f"out[{k}]", expression) for k, expression in enumerate(equations.outputs.values())],
        _equation_names(equations),
    )
    return function(name, ["x", "constants", "out"], body, signature="VECTOR_FUNCTION.signature", options="POINTED")


def _jacobian_function(name: str, equations: potential.Equations) -> str:
    """Compiled function that fills the nonzero entries of the flattened Jacobian of an ``Equations``."""
    jacobian = equations.jacobian
    entries = [
        (f"out[{r * jacobian.cols + c}]", jacobian[r, c])
        for r in range(jacobian.rows)
        for c in range(jacobian.cols)
        if jacobian[r, c] != 0
    ]
    body = statements(entries, _equation_names(equations))
    return function(name, ["x", "constants", "out"], body, signature="VECTOR_FUNCTION.signature", options="POINTED")


def _equation_names(equations: potential.Equations) -> dict[sympy.Symbol, str]:
    names = {symbol: f"x[{k}]" for k, symbol in enumerate(equations.inputs)}
    return names | {symbol: f"constants[{k}]" for k, symbol in enumerate(equations.constants)}


@lru_cache(maxsize=32)
def equations_module(t: int) -> ModuleType:
    """Conjugates from channel averages, prior, Cholesky update and weight moments of stage t: the same for every loss."""
    return load(f"equations{t}", HEADER_TEXT + derived_source(f"equations{t}", lambda: equation_definitions(t)))


def equation_definitions(t: int) -> str:
    """Source of the functions of an equations module."""
    channel, prior = potential.channel_equations(t), potential.prior_equations(t, spectrum=True)
    cholesky = potential.cholesky_update(t)
    text = (
        _vector_function("conjugates", channel)
        + _jacobian_function("conjugates_jacobian", channel)
        + _vector_function("prior", prior)
        + _jacobian_function("prior_jacobian", prior)
        + _vector_function("cholesky", cholesky)
        + _jacobian_function("cholesky_jacobian", cholesky)
        + _vector_function("moments", potential.conditional_moments(t, spectrum=True))
    )
    return text


@lru_cache(maxsize=1)
def averages_module() -> ModuleType:
    """The loop over one node's points, and the coefficients of a point that it reads."""
    return load("averages", HEADER_TEXT + derived_source("averages", average_definitions))


def average_definitions() -> str:
    """The loop over one node's points, from the integrands of ``theory.envelope``.

    An integrand is a polynomial in f and g whose coefficients belong to the point alone; those are tabulated once per grid.
    Factors that are the same for all points are taken out of the sums, and equal sums are done once.
    """
    integrands = envelope.average_integrands()
    coefficients: dict[sympy.Expr, sympy.Symbol] = {}
    factors: dict[str, sympy.Expr] = {}
    reduced: dict[str, sympy.Expr] = {}
    for name, integrand in integrands.items():
        polynomial = sympy.Poly(sympy.expand(integrand), envelope.f, envelope.g)
        terms = []
        for (power_f, power_g), coefficient in polynomial.terms():
            coefficient = sympy.factor(coefficient)
            outside, rest = coefficient.as_independent(envelope.S1, envelope.S2, envelope.gamma, as_Add=False)
            if rest != 1:
                rest = coefficients.setdefault(rest, sympy.Symbol(f"k_{len(coefficients)}", real=True))
            terms.append((outside, rest * envelope.f**power_f * envelope.g**power_g))
        factors[name] = terms[0][0]
        reduced[name] = sympy.Add(*(outside / factors[name] * term for outside, term in terms))
    unique = list(dict.fromkeys(reduced.values()))
    table_names = {envelope.S1: "slope1", envelope.S2: "slope2", envelope.gamma: "gamma"}
    text = f"N_SUMS = {len(reduced) + 1}\nTABLE_ROWS = {5 + len(coefficients)}\nDENSITY_ROW = 4\n\n\n"
    text += function(
        "point_coefficients",
        ["slope1", "slope2", "gamma", "tables", "j"],
        statements([(f"tables[{5 + k}, j]", e) for k, e in enumerate(coefficients)], table_names),
        options="INCLUDED",
    )
    names = {envelope.f: "f", envelope.g: "g"}
    names |= {symbol: f"tables[{5 + k}, j]" for k, symbol in enumerate(coefficients.values())}
    lines = [
        "    centre, target, first, last, row = node",
        "    sum_norm = 0.0",
    ]
    lines += [f"    sum_{k} = 0.0" for k in range(len(unique))]
    lines += [
        "    position, gradient = np.uint64(row), np.uint64(row + 1)",  # numba looks for negative indices elsewhere
        "    for j in range(np.uint64(first), np.uint64(last)):",
        "        g = (tables[position, j] - centre) * inverse_sigma",
        "        w = tables[DENSITY_ROW, j] * exp_nonpositive(-0.5 * g * g)",
        "        f = target - tables[gradient, j]",
        "        sum_norm += w",
    ]
    body = "\n".join(lines) + "\n"
    body += statements([(f"term_{k}", e) for k, e in enumerate(unique)], names, indent=" " * 8)
    body += "".join(f"        sum_{k} += w * term_{k}\n" for k in range(len(unique)))
    body += "    sums[0, i] = sum_norm\n"
    for row, (name, expression) in enumerate(reduced.items(), start=1):
        factor = statements([("factor", factors[name])], {envelope.sigma: "(1.0 / inverse_sigma)"})
        body += factor + f"    sums[{row}, i] = factor * sum_{unique.index(expression)}\n"
    loop = function("accumulate_pairs", ["node", "i", "inverse_sigma", "tables", "sums"], body, options="INCLUDED")
    return text + loop.replace("@njit(", '@njit(fastmath={"reassoc", "contract", "nsz", "arcp", "nnan", "ninf"}, ')
