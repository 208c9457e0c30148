"""The Moreau envelope of a loss and the derivative rules every channel average is built from.

    M(u, gamma) = min_h { l(h) + (h-u)^2/(2 gamma) },     h = u + gamma f,     f = -l'(h) at the minimum.

The rules hold for any loss: they are found here by differentiating the condition of minimum for an
abstract l.  Symbols: ``f``, ``S1`` = l''(h), ``S2`` = l'''(h), ``gamma``; the field is u = a + sigma g with
g a standard normal.
"""

from __future__ import annotations

from functools import lru_cache

from sympy import Derivative, Expr, Function, Symbol, cancel, diff, factor

f = Symbol("f", real=True)
S1 = Symbol("S1", real=True)
S2 = Symbol("S2", real=True)
gamma = Symbol("gamma", positive=True)
g = Symbol("g", real=True)
sigma = Symbol("sigma", positive=True)

_loss = Function("l")
_h = Symbol("h", real=True)
_u = Symbol("u", real=True)

proximal_condition: Expr = diff(_loss(_h), _h) + (_h - _u) / gamma
"""Derivative in h of l(h) + (h-u)^2/(2 gamma); zero at the proximal point."""

envelope: Expr = _loss(_h) + (_h - _u) ** 2 / (2 * gamma)
"""The minimised function; its value at the proximal point is the Moreau envelope."""


def _total(expression: Expr, variable: Symbol) -> Expr:
    """Derivative along the solution h(u, gamma) of ``proximal_condition``."""
    slope = -diff(proximal_condition, variable) / diff(proximal_condition, _h)
    return diff(expression, variable) + diff(expression, _h) * slope


def _at_minimum(expression: Expr) -> Expr:
    """Write an expression at the proximal point in f, S1, S2 and gamma."""
    force = Derivative(_loss(_h), _h)
    expression = expression.subs(_u, _h + gamma * force)
    for order, value in ((3, S2), (2, S1), (1, -f)):
        expression = expression.subs(Derivative(_loss(_h), (_h, order)), value)
    return factor(cancel(expression))


@lru_cache(maxsize=1)
def _proximal_derivatives() -> tuple[tuple[str, Expr], ...]:
    force = -diff(_loss(_h), _h)
    slope = _total(force, _u)
    rules = {
        "df_du": slope,
        "d2f_du2": _total(slope, _u),
        "df_dgamma": _total(force, gamma),
        "d2f_du_dgamma": _total(slope, gamma),
    }
    return tuple((name, _at_minimum(rule)) for name, rule in rules.items())


def proximal_derivatives() -> dict[str, Expr]:
    """Derivatives of f(u, gamma): keys df_du, d2f_du2, df_dgamma, d2f_du_dgamma, in f, S1, S2, gamma."""
    return dict(_proximal_derivatives())


@lru_cache(maxsize=1)
def _envelope_derivatives() -> tuple[tuple[str, Expr], ...]:
    return (
        ("dM_du", _at_minimum(_total(envelope, _u))),
        ("dM_dgamma", _at_minimum(_total(envelope, gamma))),
    )


def envelope_derivatives() -> dict[str, Expr]:
    """Derivatives of M(u, gamma): dM_du = -f, dM_dgamma = -f^2/2 (envelope theorem)."""
    return dict(_envelope_derivatives())


def along_field(expression: Expr) -> Expr:
    """d/du of a polynomial in f and df/du, the latter written out in S1 and gamma."""
    rules = proximal_derivatives()
    slope = Symbol("slope")
    polynomial = expression.subs(rules["df_du"], slope)
    if polynomial.free_symbols - {f, slope}:
        raise ValueError(f"{expression} is not a polynomial in f and df/du")
    derivative = diff(polynomial, f) * slope + diff(polynomial, slope) * rules["d2f_du2"]
    return derivative.subs(slope, rules["df_du"])


def average_integrands() -> dict[str, Expr]:
    """Integrands of the channel averages over u = a + sigma g, and of their derivatives.

    Keys ``f``, ``ff``, ``df`` stand for f, f^2 and df/du; a suffix ``_a``, ``_sigma``, ``_gamma`` marks the
    integrand of the derivative of that average.  Expressions in f, S1, S2, gamma and g, in that fixed order
    of keys.
    """
    rules = proximal_derivatives()
    along_u = {"f": rules["df_du"], "ff": 2 * f * rules["df_du"], "df": rules["d2f_du2"]}
    along_gamma = {"f": rules["df_dgamma"], "ff": 2 * f * rules["df_dgamma"], "df": rules["d2f_du_dgamma"]}
    values = {"f": f, "ff": f**2, "df": rules["df_du"]}
    integrands: dict[str, Expr] = {}
    for name, value in values.items():
        integrands[name] = value
        integrands[f"{name}_a"] = along_u[name]
        integrands[f"{name}_sigma"] = g * along_u[name] if name == "df" else sigma * along_field(along_u[name])
        integrands[f"{name}_gamma"] = along_gamma[name]
    return integrands
