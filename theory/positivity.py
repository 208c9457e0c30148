"""Whether an expression of real variables is nowhere negative: proved, refuted at a place, or left open.

Four ways are tried, the cheap ones first:

1. bounds over the whole line of each variable (:mod:`theory.enclosure`): sums of products of functions of one
   sign, even powers and the like;
2. the numerator alone, after terms are brought over one denominator, which has one sign where it has no zero;
3. the same for each of several parts that share no functions, and exactly where that numerator is a polynomial
   (:mod:`theory.roots`);
4. branch and bound (:mod:`theory.branching`).

"Nowhere negative" is meant beyond rounding: up to ``ROUNDING`` of the sum of the absolute values of the terms, or
``NEGLIGIBLE``.  No formula of interest is of order 1e-15, and no solver sees what is.

    >>> from theory.symbols import h
    >>> nowhere_negative(h**4 - 2 * h**2 + 1)
    Verdict(proved=True, place=None, value=None)
    >>> found = nowhere_negative(h**2 - h + sympy.Rational(6, 25))
    >>> found.proved, found.place, round(found.value, 6)
    (False, {h: 0.5}, -0.01)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import sympy
from sympy import Add, Expr, Mul, Pow, Symbol

from theory.branching import NEGLIGIBLE, OPEN, PROVED, Condition, Search, Verdict, is_positive_on, side_of
from theory.enclosure import Enclosure, UnknownFunctionError
from theory.roots import is_known_positive, over_one_denominator, sign_by_roots, variables_of

BUDGET = 300_000
"""Operations on intervals that branch and bound may take: some 0.5 s.  Counted, not timed: results do not depend on the machine."""


@lru_cache(maxsize=1024)
def nowhere_negative(
    expression: Expr, conditions: tuple[Condition, ...] = (), *, strictly: bool = False, budget: int = BUDGET
) -> Verdict:
    """Whether ``expression`` >= 0 (``strictly``: > 0) for all real values of its symbols that meet the conditions.

    The expression must be real and continuous in its symbols there.  A ``budget`` of 0 leaves branch and bound out.
    """
    if is_known_positive(expression) or (expression.is_nonnegative and not strictly):
        return PROVED
    signed = [factor for factor in Mul.make_args(expression) if not is_known_positive(factor)]
    if len(signed) < len(Mul.make_args(expression)):
        # Positive factors make no difference to the sign, but to the value.
        verdict = _search(Mul(*signed), conditions, strictly, budget)
        if verdict.place is None:
            return verdict
        value = _value(expression, verdict.place)
        if strictly or value < -NEGLIGIBLE:
            return replace(verdict, value=value)
    return _search(expression, conditions, strictly, budget)


def _search(expression: Expr, conditions: Sequence[Condition], strictly: bool, budget: int) -> Verdict:
    variables = variables_of([expression, *(argument for argument, _ in conditions)])
    try:
        forms = [Enclosure(form, variables) for form in dict.fromkeys((expression, sympy.factor_terms(expression)))]
    except UnknownFunctionError:
        return OPEN
    everywhere = [side_of(symbol, conditions) for symbol in variables]
    if is_positive_on(forms, everywhere, strictly):
        return PROVED
    numerator = over_one_denominator(expression)
    if numerator is not None:
        if not numerator.free_symbols and not numerator.is_negative:
            return PROVED if numerator.is_positive or not strictly else OPEN
        other = Enclosure(numerator, variables)
        if is_positive_on([other], everywhere, strictly):
            return PROVED
        forms.append(other)
    if _by_groups(expression, conditions, strictly):
        return PROVED
    slopes = [Enclosure(sympy.diff(expression, symbol), variables) for symbol in variables]
    places = [(Enclosure(argument, variables), positive) for argument, positive in conditions]
    search = Search(forms, slopes, variables, places, strictly)
    if not conditions:
        exact = sign_by_roots(numerator if numerator is not None else expression, strictly)
        if exact is True:
            return PROVED
        if isinstance(exact, dict):
            if strictly:  # a root need not be a float
                return Verdict(False, exact, 0.0)
            found = search.negative_at([exact.get(symbol, 0.0) for symbol in variables])
            if found is not None:  # else it is negative by no more than rounding
                return found
    return search.run(budget)


def _value(expression: Expr, place: Mapping[Symbol, float]) -> float:
    variables = variables_of([expression])
    low, high = Enclosure(expression, variables).bounds([(place.get(symbol, 0.0),) * 2 for symbol in variables])
    return 0.5 * (low + high)


def _by_groups(expression: Expr, conditions: Sequence[Condition], strictly: bool) -> bool:
    """Whether the expression is a sum of parts that share no functions and are nowhere negative each."""
    groups: list[tuple[set[Expr], list[Expr]]] = []
    for term in Add.make_args(expression):
        powers = {power.base for power in term.atoms(Pow) if not power.exp.is_Integer}
        functions = {f for f in powers | term.atoms(sympy.Function) if f.free_symbols}
        sharing = [group for group in groups if group[0] & functions or not (group[0] or functions)]
        groups = [group for group in groups if group not in sharing]
        groups.append((functions.union(*(g[0] for g in sharing)), [term, *(t for g in sharing for t in g[1])]))
    if len(groups) < 2:
        return False
    parts = [Add(*terms) for _, terms in groups]
    # One strictly positive part is enough, but which one is not worth a search.
    return all(nowhere_negative(part, conditions, strictly=strictly, budget=0).proved for part in parts)
