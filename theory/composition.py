"""Convexity by the rules for sums and compositions, where bounds of the second derivative do not show it.

A sum of convex terms is convex, and so is F(g(h)) if F is convex where the values of g lie, and F grows there while
g is convex, or falls while g is concave, or g is linear (Boyd and Vandenberghe, Convex Optimization, Sec. 3.2).

    >>> is_convex(sympy.sqrt(1 + softplus(h) ** 2))
    True
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import sympy
from sympy import Add, Expr, Pow, Symbol, diff

from theory.branching import Condition
from theory.enclosure import Enclosure, UnknownFunctionError
from theory.functions import softplus
from theory.intervals import LINE
from theory.positivity import nowhere_negative
from theory.symbols import h

DEEPEST = 4
"""Compositions inside one another that are taken apart."""

INNER = Symbol("g", real=True)
"""Stands for the inner function."""


def is_convex(formula: Expr, conditions: Sequence[Condition] = (), depth: int = DEEPEST) -> bool:
    """Whether the rules show the formula to be convex in h; conditions as in :func:`nowhere_negative`.

    The formula must be twice differentiable.  False means that the rules do not tell.
    """
    conditions = tuple(conditions)
    turned = Add(*(_turned(term, conditions) for term in Add.make_args(formula)))
    terms = [term for term in Add.make_args(turned) if term.has(h)]
    return all(_is_convex_term(term, conditions, depth) for term in terms)


def _turned(term: Expr, conditions: Sequence[Condition]) -> Expr:
    """``softplus(x)`` of a concave x as ``softplus(-x) + x``: formulas are read with arguments of one sign."""
    outside, inside = term.as_independent(h, as_Add=False)
    if isinstance(inside, softplus):
        x = inside.args[0]
        bend = diff(x, h, 2)
        if bend != 0 and _is_positive(-bend, conditions):
            return outside * softplus(-x) + sympy.expand_mul(outside * x)
    return term


def _is_convex_term(term: Expr, conditions: Sequence[Condition], depth: int) -> bool:
    outside, inside = term.as_independent(h, as_Add=False)
    sign = next((sign for sign in (1, -1) if _is_positive(sign * outside, conditions)), 0)
    if not sign:
        return _is_positive(diff(term, h, 2), conditions)
    if _is_positive(diff(sign * inside, h, 2), conditions):
        return True
    return depth > 0 and any(
        _is_convex_composition(sign * inside.xreplace({inner: INNER}), inner, conditions, depth)
        for inner in _inner_functions(inside)
    )


def _is_convex_composition(outer: Expr, inner: Expr, conditions: Sequence[Condition], depth: int) -> bool:
    """Whether outer(inner(h)) follows the rule."""
    if outer == INNER or outer.has(h):
        return False
    variables = sorted(inner.free_symbols, key=lambda symbol: symbol.name)
    try:
        low, high = Enclosure(inner, variables).bounds([LINE] * len(variables))
    except UnknownFunctionError:
        return False
    within = [*conditions]
    if not math.isinf(low):
        within.append((INNER - sympy.Rational(low), True))
    if not math.isinf(high):
        within.append((INNER - sympy.Rational(high), False))
    slope = diff(outer, INNER)
    if not _is_positive(diff(slope, INNER), within):
        return False
    if diff(inner, h, 2) == 0:
        return True
    return any(
        _is_positive(sign * slope, within) and is_convex(sign * inner, conditions, depth - 1) for sign in (1, -1)
    )


def _inner_functions(formula: Expr) -> Iterator[Expr]:
    """Parts of a formula of one term through which all of its dependence on h may go."""
    for part in sorted(formula.atoms(sympy.Function, Pow, Add), key=sympy.default_sort_key):
        if part != formula and part.has(h):
            yield part


def _is_positive(expression: Expr, conditions: Sequence[Condition]) -> bool:
    return nowhere_negative(expression, tuple(conditions), budget=0).proved
