"""Where a loss's gradient bends: what an integration over a logit has to resolve, read off the formula.

Three answers, from the quickest to the most general: symbolic places and scales of functions of ``slope*x + offset``
(:func:`symbolic_bends`), whether these are all there are (:func:`are_known`), and, at given parameter values, the places
and scales of functions of anything (:func:`numeric_bends`).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import sympy
from mpmath import mp
from sympy import Abs, Add, Expr, Integer, Mul, Pow, Rational, Symbol, diff, expand, factor

from theory.functions import MPMATH, sigmoid, softplus, step

Bend = tuple[Expr, Expr, Expr]
"""(centre, scale, strength) of one bend of the gradient."""

JUMP_WIDTH = Rational(1, 10**10)
"""Scale given to the jump of a ``step``: far below any width that matters, far above rounding."""

CURVED = (
    sigmoid,
    softplus,
    sympy.exp,
    sympy.log,
    sympy.tanh,
    sympy.sinh,
    sympy.cosh,
    sympy.atan,
    sympy.asinh,
    sympy.erf,
    sympy.erfc,
)
"""Functions that bend."""

_SATURATING = (sigmoid, softplus, sympy.tanh, sympy.atan, sympy.asinh, sympy.erf, sympy.erfc)
_UNIT = {sympy.log: 0j, sympy.atan: 1j, sympy.asinh: 1j}
"""Value of the argument at the singularity nearest to the real axis; i pi, as for the sigmoid, for all others."""

_SCANNED = [math.sinh(0.05 * k) for k in range(-200, 201)]  # to 1e4, 0.05 apart near 0
_BISECTIONS = 60
_FARTHEST = 1e6  # a bend beyond is nowhere near a logit
_MOST_BENDS = 40


@lru_cache(maxsize=256)
def symbolic_bends(slope: Expr, variable: Symbol) -> tuple[Bend, ...]:
    """(centre, scale, strength) of the bends of ``slope``, from its terms with curved functions.

    A function of slope*x + offset bends at centre -offset/slope over the scale 1/|slope|; strength is the derivative of the
    term there.  A root of a quadratic bends at its minimum.  Equal bends are merged.
    """
    merged: dict[tuple[Expr, Expr], Expr] = {}
    terms = expand(slope, deep=False, power_exp=False, power_base=False, log=False)
    for term in Add.make_args(terms):
        for centre, scale in dict.fromkeys(_simple(term, variable)):
            strength = diff(term, variable).subs(variable, centre)
            merged[centre, scale] = merged.get((centre, scale), Integer(0)) + strength
    return tuple((centre, scale, factor(strength)) for (centre, scale), strength in merged.items())


def _functions(expression: Expr) -> list[Expr]:
    """Curved functions and powers that are no polynomials, in a fixed order."""
    found = [*expression.atoms(*CURVED, step)]
    found += [p for p in expression.atoms(Pow) if not (p.exp.is_nonnegative and p.exp.is_integer)]
    return sorted(found, key=sympy.default_sort_key)


def _simple(term: Expr, variable: Symbol) -> Iterator[tuple[Expr, Expr]]:
    for function in _functions(term):
        argument = function.args[0]
        if not argument.has(variable) or not argument.is_polynomial(variable):
            continue
        coefficients = sympy.Poly(argument, variable).all_coeffs()
        if len(coefficients) == 2:
            slope, offset = coefficients
            if isinstance(function, step):
                yield -offset / slope, JUMP_WIDTH
            elif isinstance(function, CURVED):
                yield -offset / slope, 1 / Abs(slope)
        elif len(coefficients) == 3 and isinstance(function, Pow):
            a, b, c = coefficients
            scale = sympy.sqrt(Abs(c / a - (b / (2 * a)) ** 2))
            if scale != 0:
                yield -b / (2 * a), scale


@lru_cache(maxsize=256)
def are_known(slope: Expr, variable: Symbol) -> bool:
    """Whether :func:`symbolic_bends` are all there is to resolve.

    They are if every term is of first degree in the variable, or a number (of the variable) times one saturating function of a
    linear argument, or the root of a quadratic or its inverse, possibly times something of first degree.
    """
    terms = expand(slope, deep=False, power_exp=False, power_base=False, log=False)
    return all(_is_plain(term, variable) for term in Add.make_args(terms))


def _is_plain(term: Expr, variable: Symbol) -> bool:
    moving = [part for part in Mul.make_args(term) if part.has(variable)]
    roots = [part for part in moving if isinstance(part, Pow) and part.exp in (Rational(1, 2), Rational(-1, 2))]
    curved = [part for part in moving if isinstance(part, _SATURATING)]
    rest = Mul(*(part for part in moving if part not in roots and part not in curved))
    if len(roots) + len(curved) > 1 or not rest.is_polynomial(variable):
        return False
    degree = sympy.degree(rest, variable) if rest.has(variable) else 0
    if roots:
        base = roots[0].base
        return degree <= 1 and base.is_polynomial(variable) and sympy.degree(base, variable) == 2
    if curved:
        argument = curved[0].args[0]
        return degree == 0 and argument.is_polynomial(variable) and sympy.degree(argument, variable) == 1
    return degree <= 1


@lru_cache(maxsize=1024)
def numeric_bends(slope: Expr, variable: Symbol) -> tuple[tuple[float, float], ...]:
    """(position, scale) of the bends of an expression with numbers in place of parameters, sorted.

    Functions of polynomials bend near the complex places where they are singular, or grow: position and distance from the
    real axis.  Other arguments are scanned for zeros and turning points.  Bends that move with another variable are
    not given.
    """
    found: set[tuple[float, float]] = set()
    for function in _functions(slope):
        argument = function.args[0]
        if argument.free_symbols != {variable}:
            continue
        if argument.is_polynomial(variable):
            places: Iterable[tuple[float, float]] = _of_polynomial(function, argument, variable)
        else:
            places = _of_anything(function, argument, variable)
        for centre, scale in places:
            if abs(centre) < _FARTHEST and math.isfinite(scale):
                found.add((centre, max(scale, float(JUMP_WIDTH))))
    # The narrowest matter most.
    return tuple(sorted(sorted(found, key=lambda bend: bend[1])[:_MOST_BENDS]))


def _of_polynomial(function: Expr, argument: Expr, variable: Symbol) -> Iterator[tuple[float, float]]:
    coefficients = [complex(c) for c in sympy.Poly(argument, variable).all_coeffs()]
    if len(coefficients) == 2:
        slope, offset = (c.real for c in coefficients)
        jump = isinstance(function, step)
        if jump or isinstance(function, CURVED):
            yield -offset / slope, 0.0 if jump else 1.0 / abs(slope)
        return
    value = 0j if isinstance(function, (Pow, step)) else _UNIT.get(function.func, 1j * math.pi)
    coefficients[-1] -= value
    with mp.workdps(30):
        roots = mp.polyroots(coefficients, maxsteps=200, extraprec=200, error=False)
    for root in map(complex, roots):
        real = abs(root.imag) < 1e-9 * (1.0 + abs(root))
        if isinstance(function, step):
            if real:
                yield root.real, 0.0
        else:
            yield root.real, 0.0 if real else abs(root.imag) / (abs(value) or 1.0)


def _of_anything(function: Expr, argument: Expr, variable: Symbol) -> Iterator[tuple[float, float]]:
    """Zeros and turning points of an argument that is no polynomial."""
    derivatives = [argument, diff(argument, variable), diff(argument, variable, 2)]
    compiled = [sympy.lambdify(variable, e, modules=[MPMATH, "mpmath"]) for e in derivatives]

    def value(order: int, x: float) -> float:
        try:
            number = complex(compiled[order](mp.mpf(x)))
        except (ZeroDivisionError, OverflowError, ValueError, TypeError):
            return math.nan
        return number.real if not cmath.isinf(number) and abs(number.imag) < 1e-12 * (1 + abs(number)) else math.nan

    for order in (0, 1):
        sampled = [value(order, x) for x in _SCANNED]
        for left, right, low, high in zip(_SCANNED, _SCANNED[1:], sampled, sampled[1:], strict=False):
            if not low * high <= 0 or low == high:
                continue
            a, b, fa = left, right, low
            for _ in range(_BISECTIONS):
                middle = 0.5 * (a + b)
                fm = value(order, middle)
                a, b, fa = (middle, b, fm) if fa * fm > 0 else (a, middle, fa)
            size = abs(value(order + 1, a))
            if isinstance(function, step):
                if order == 0:
                    yield a, 0.0
            elif size > 0:
                yield a, 1.0 / size if order == 0 else math.sqrt(2.0 / size)
