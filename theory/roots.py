"""Signs of formulas that are quotients of polynomials, exactly: roots are counted, not looked for.

Known are polynomials in one variable, in one exponential exp(x/k) of a variable, which is positive, and polynomials
in several variables that are of second degree in one, by their discriminants.

    >>> from theory.symbols import h
    >>> sign_by_roots(h**4 - 2 * h**2 + 1), sign_by_roots(sympy.cosh(h) - 1), sign_by_roots(h**2 - 2 * h)
    (True, True, {h: 1.0})
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import sympy
from sympy import Add, Expr, Integer, Mul, Poly, Rational, Symbol, expand, fraction, ilcm, together
from sympy.polys.polyerrors import BasePolynomialError

from theory.enclosure import Enclosure, UnknownFunctionError, without_cancellation
from theory.functions import sigmoid
from theory.parser import terms_multiplied_out

LARGEST_FORM, MOST_TERMS = 400, 1000
"""Parts of a formula up to which it is brought over one denominator, and terms up to which that is multiplied out."""

HIGHEST_DEGREE = 80
"""Degree up to which roots of polynomials are counted."""


def variables_of(expressions: Sequence[Expr]) -> tuple[Symbol, ...]:
    """Symbols in the order of their names."""
    return tuple(sorted(set().union(*(e.free_symbols for e in expressions)), key=lambda symbol: symbol.name))


def is_known_positive(expression: Expr) -> bool:
    """Whether SymPy knows it to be positive, told that erfc and ``1 - sigmoid(x)`` are."""
    if isinstance(expression, Add):
        expression = Add(*without_cancellation(expression))
    tails = {tail: sympy.Dummy(positive=True) for tail in expression.atoms(sympy.erfc)}
    return bool(expression.xreplace(tails).is_positive)


def over_one_denominator(expression: Expr) -> Expr | None:
    """An expression of the same sign without denominator, multiplied out; None if the formula is too large for it.

    A denominator without zeros has the sign that it has at 0.
    """
    parts = as_fraction(expression)
    if parts is None:
        return None
    numerator, denominator = parts
    at_zero = denominator.xreplace(dict.fromkeys(denominator.free_symbols, Integer(0)))
    try:
        lower, upper = Enclosure(at_zero, ()).bounds(())
    except UnknownFunctionError:
        return None
    if lower <= 0.0 <= upper:
        return None
    return numerator if lower > 0.0 else -numerator


def as_fraction(expression: Expr) -> tuple[Expr, Expr] | None:
    """Numerator, multiplied out and freed of common factors, and denominator; None if that would be too long."""
    if sum(1 for _ in sympy.preorder_traversal(expression)) > LARGEST_FORM:
        return None
    numerator, denominator = fraction(together(expression))
    if terms_multiplied_out(numerator) > MOST_TERMS:
        return None
    numerator = expand(numerator, power_exp=False, power_base=False, log=False)
    return sympy.factor_terms(numerator), denominator


def sign_by_roots(expression: Expr, strictly: bool = False) -> bool | dict[Symbol, float] | None:
    """True if nowhere negative, a place where it is negative, or None if it is no polynomial of the kinds known here."""
    sign, rest = 1, []
    for factor in Mul.make_args(expression):  # factors of known sign out
        if factor.is_positive or (factor.is_nonnegative and not strictly):
            continue
        if factor.is_negative:
            sign = -sign
            continue
        rest.append(factor)
    expression = sign * Mul(*rest)
    variables = variables_of([expression])
    if not variables:
        return bool(expression > 0 or (expression == 0 and not strictly)) if expression.is_Rational else None
    try:
        if expression.is_polynomial(*variables):
            return _polynomial(Poly(expression, *variables, domain="QQ"), strictly)
        if len(variables) == 1:
            return _exponential(expression, variables[0], strictly)
    except BasePolynomialError:
        pass
    return None


def _polynomial(polynomial: Poly, strictly: bool) -> bool | dict[Symbol, float] | None:
    if polynomial.total_degree() > HIGHEST_DEGREE:
        return None
    if len(polynomial.gens) == 1:
        place = _negative_place(polynomial, strictly)
        return True if place is None else {polynomial.gens[0]: place}
    return True if _by_discriminant(polynomial, strictly) else None


def _by_discriminant(polynomial: Poly, strictly: bool) -> bool:
    """a x^2 + b x + c >= 0 for all x where a >= 0, c >= 0 and 4 a c >= b^2, for some variable x."""
    for x in polynomial.gens:
        if polynomial.degree(x) != 2:
            continue
        a, b, c = (polynomial.as_expr().coeff(x, power).expand() for power in (2, 1, 0))
        if strictly and sign_by_roots(c, True) is not True:
            continue
        parts = [a, c, expand(4 * a * c - b**2)]
        if all(sign_by_roots(part, strictly and k > 1) is True for k, part in enumerate(parts)):
            return True
    return False


def _negative_place(polynomial: Poly, strictly: bool, above: Rational | None = None) -> float | None:
    """A place where a polynomial of one variable is negative (``strictly``: or 0), None if there is none.

    ``above``: only places above it count.
    """
    _, factors = polynomial.sqf_list()
    changing = [factor for factor, power in factors if power % 2]
    touching = [factor for factor, power in factors if power % 2 == 0]
    between: list[Rational] = []
    for low, high in _root_intervals(changing, above):
        between += [low, high]
    start = Integer(0) if above is None else _near(polynomial, above)
    ends = [min(between, default=start) - 1, max(between, default=start) + 1]
    candidates = sorted({*between, *ends, start})
    candidates += [(low + high) / 2 for low, high in pairwise(candidates)]
    allowed = [place for place in candidates if above is None or place > above]
    values = [(polynomial.eval(place), place) for place in allowed]
    lowest = min(values, key=lambda item: item[0], default=(Integer(1), start))
    if lowest[0] < 0:
        return float(lowest[1])
    if strictly:
        for low, high in _root_intervals([*changing, *touching], above):
            return float((low + high) / 2)
    return None


def _near(polynomial: Poly, above: Rational) -> Rational:
    """A place above ``above`` at which the polynomial has the sign that it has close to it."""
    shifted = polynomial.compose(Poly(polynomial.gen + above, polynomial.gen, domain="QQ"))
    sign = next(sympy.sign(c) for c in reversed(shifted.all_coeffs()) if c != 0)
    distance = Integer(1)
    while shifted.eval(distance) * sign <= 0:
        distance /= 2
    return above + distance


def _root_intervals(factors: Sequence[Poly], above: Rational | None) -> list[tuple[Rational, Rational]]:
    found = []
    for factor in factors:
        if factor.degree() > 0:
            found += [ends for ends, _ in factor.intervals(eps=Rational(1, 10**6))]
    return [(low, high) for low, high in found if above is None or high > above]


def _exponential(expression: Expr, x: Symbol, strictly: bool) -> bool | dict[Symbol, float] | None:
    """The same for a polynomial in exp(x/k): its variable is positive."""
    written = expression.replace(sigmoid, lambda a: 1 / (1 + sympy.exp(-a)))
    for function in (sympy.tanh, sympy.sinh, sympy.cosh):
        written = written.replace(function, lambda a, f=function: f(a).rewrite(sympy.exp))
    rates = [e.args[0] / x for e in written.atoms(sympy.exp)]
    if not rates or not all(rate.is_Rational for rate in rates):
        return None
    scale = ilcm(*(rate.q for rate in rates)) if len(rates) > 1 else rates[0].q
    if max(abs(rate) for rate in rates) * scale > HIGHEST_DEGREE:
        return None
    e = Symbol("E", positive=True)
    written = written.replace(sympy.exp, lambda a: e ** (a / x * scale))
    if x in written.free_symbols:
        return None
    numerator, denominator = fraction(together(written))
    polynomial, below = (Poly(part, e, domain="QQ") for part in (numerator, denominator))
    if max(polynomial.degree(), below.degree()) > HIGHEST_DEGREE:
        return None
    place = _negative_place(polynomial * below, strictly, above=Integer(0))
    return True if place is None else {x: float(scale) * math.log(place)}
