"""Whether a loss is finite and convex in its own logit, for given parameter values.

A loss l(h; y, earlier logits) is accepted if it is finite and l'' >= 0 for both labels and all logits: proved
(:mod:`theory.positivity`), or searched without finding a place where it is not; then a ``ConvexityWarning``
says that nothing was proved.  It is refused with the place where it was found infinite, undefined or concave.

For each label the formula is taken apart: arguments of logarithms and of roots must be positive, denominators
must have one sign, each ``step`` of an earlier logit is 0 on one side and 1 on the other.  A first try with bounds
that are prepared once for all parameter values is enough for the losses in common use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product

import sympy
from sympy import Expr, Integer, Pow, Rational, Symbol, diff, expand

from theory.branching import OPEN, PROVED, Condition, Search, Verdict
from theory.composition import is_convex
from theory.enclosure import Enclosure, UnknownFunctionError, rejoined
from theory.functions import step
from theory.intervals import LINE, Interval, around
from theory.parser import HIGHEST_POWER, earlier_logits
from theory.positivity import nowhere_negative
from theory.roots import as_fraction, is_known_positive
from theory.symbols import h, y

MOST_STEPS = 5
"""Steps in a formula up to which all combinations of their sides are looked at; more are functions between 0 and 1."""

QUICK_BUDGET = 30_000
"""Operations of branch and bound on formulas prepared for all parameter values: some 30 ms."""

ORDINARY = (-1.0, 0.0, 1.0)
"""Logits at which a loss must be within the range of floats."""

UNBOUNDED = (sympy.zoo, sympy.nan, sympy.oo, -sympy.oo)


class ConvexityWarning(UserWarning):
    """Issued with a loss that was accepted although it could not be proved finite and convex.

    Examples
    --------
    >>> issubclass(ConvexityWarning, UserWarning)
    True
    """


@dataclass(frozen=True)
class Finding:
    """What is known of a loss.

    Attributes
    ----------
    fault
        What is wrong, in words that follow "loss ... is", empty if nothing is.
    unproved
        What could not be proved, empty if everything was.
    """

    fault: str = ""
    unproved: str = ""


@dataclass(frozen=True)
class _Requirement:
    """Something that must hold for a formula to be finite: ``expression`` > 0, >= 0 or (``sign`` 0) of one sign."""

    expression: Expr
    part: Expr
    sign: int
    strictly: bool

    def is_met_by(self, bounds: Interval) -> bool:
        """Whether bounds of the expression show that it holds."""
        low, high = bounds
        return low > 0.0 or (low == 0.0 and not self.strictly) or (self.sign == 0 and high < 0.0)


def examine(expression: Expr, symbols: Sequence[Symbol], values: Sequence[float]) -> Finding:
    """Look at a loss formula whose parameters ``symbols`` have these values."""
    return _examine(expression, tuple(symbols), tuple(map(float, values)))


@lru_cache(maxsize=1024)
def _examine(expression: Expr, symbols: tuple[Symbol, ...], values: tuple[float, ...]) -> Finding:
    if _is_proved_by_bounds(expression, symbols, values):
        return Finding()
    numbers = {symbol: Rational(repr(value)) for symbol, value in zip(symbols, values, strict=True)}
    unproved = ""
    for label in (0, 1):
        finding = _at_label(expression, numbers, label)
        if finding.fault:
            return finding
        unproved = unproved or finding.unproved
    return Finding(unproved=unproved)


# The first try, prepared once for all parameter values.


@dataclass(frozen=True)
class _Prepared:
    """Enclosures over all logits and parameters, for one label and side of every step.

    Attributes
    ----------
    required
        What must be positive.
    ordinary
        The loss and its derivatives.
    forms, slopes
        Forms of the curvature, and its derivatives by each logit.
    conditions
        Arguments of steps, and whether they are positive.
    """

    required: tuple[tuple[Enclosure, _Requirement], ...]
    ordinary: tuple[Enclosure, ...]
    forms: tuple[Enclosure, ...]
    slopes: tuple[Enclosure, ...]
    conditions: tuple[tuple[Enclosure, bool], ...]


@lru_cache(maxsize=256)
def _prepare(expression: Expr, symbols: tuple[Symbol, ...]) -> tuple[_Prepared, ...] | None:
    prepared = []
    try:
        for label in (0, 1):
            formula = expression.xreplace({y: Integer(label)})
            if formula.has(*UNBOUNDED):
                return None
            for case, conditions in _sides(formula):
                if case.has(*UNBOUNDED):
                    return None
                prepared.append(_prepare_side(case, conditions, (h, *earlier_logits(expression)), symbols))
    except UnknownFunctionError:
        return None
    return tuple(prepared)


@lru_cache(maxsize=512)
def _prepare_side(
    formula: Expr, conditions: tuple[Condition, ...], logits: tuple[Symbol, ...], symbols: tuple[Symbol, ...]
) -> _Prepared:
    def enclosures(expressions: Iterable[Expr]) -> tuple[Enclosure, ...]:
        return tuple(Enclosure(expression, (*logits, *symbols)) for expression in expressions)

    formula = rejoined(formula)
    slope = diff(formula, h)
    curvature = diff(slope, h)
    requirements = _requirements((formula, slope, curvature))
    forms = [curvature, sympy.factor_terms(curvature)]
    parts = as_fraction(curvature)
    if parts is not None:
        forms.append(parts[0] / parts[1])
    return _Prepared(
        tuple(zip(enclosures(r.expression for r in requirements), requirements, strict=True)),
        enclosures((formula, slope, curvature)),
        enclosures(forms),
        enclosures(diff(curvature, logit) for logit in logits),
        tuple((enclosures([argument])[0], positive) for argument, positive in conditions),
    )


def _is_proved_by_bounds(expression: Expr, symbols: tuple[Symbol, ...], values: tuple[float, ...]) -> bool:
    prepared = _prepare(expression, symbols)
    if prepared is None:
        return False
    logits = (h, *earlier_logits(expression))
    line = [LINE] * len(logits)
    numbers = [around(Fraction(repr(value))) for value in values]
    searches = []
    for case in prepared:
        if not all(requirement.is_met_by(part.at(numbers).bounds(line)) for part, requirement in case.required):
            return False
        if not all(_is_ordinary(part.at(numbers), len(logits)) for part in case.ordinary):
            return False
        forms, slopes = ([part.at(numbers) for part in parts] for parts in (case.forms, case.slopes))
        if not any(form.bounds(line)[0] >= 0.0 for form in forms):
            conditions = [(part.at(numbers), positive) for part, positive in case.conditions]
            searches.append(Search(forms, slopes, logits, conditions, strictly=False))
    return all(search.run(QUICK_BUDGET, refute=False).proved for search in searches)


def _is_ordinary(enclosure: Enclosure, logits: int) -> bool:
    """Whether floats can hold the values at ordinary logits."""
    for x in ORDINARY:
        low, high = enclosure.bounds([(x, x)] * logits)
        if low - low != 0.0 or high - high != 0.0:
            return False
    return True


# One label, parameter values put in.


def _at_label(expression: Expr, numbers: Mapping[Symbol, Rational], label: int) -> Finding:
    where = f"y={label}"
    formula = expression.xreplace({y: Integer(label)})
    for power in formula.atoms(Pow):
        exponent = power.exp.xreplace(dict(numbers))
        if exponent.is_Rational and abs(exponent) > HIGHEST_POWER:
            return Finding(
                f"not usable: the power {power} has an exponent of {float(exponent):g}, above {HIGHEST_POWER}"
            )
    formula = formula.xreplace(dict(numbers))
    if formula.has(*UNBOUNDED):
        return Finding(f"not finite at {where}")
    if formula.has(sympy.I):
        return Finding(f"not convex: it is not real, undefined at {where}")
    if formula.replace(step, lambda _: Rational(1, 2)).has(*UNBOUNDED):
        return Finding(f"not finite at {where} where a step jumps and is 1/2")
    unproved = ""
    for case, conditions in _sides(formula):
        finding = _one_side(case, conditions, label)
        if finding.fault:
            return finding
        unproved = unproved or finding.unproved
    return Finding(unproved=unproved)


def _sides(formula: Expr) -> Iterator[tuple[Expr, tuple[Condition, ...]]]:
    """The formula with every step taken at 0 or 1, and where that is so."""
    steps = sorted(formula.atoms(step), key=sympy.default_sort_key)
    if len(steps) > MOST_STEPS:
        steps = []
    for sides in product((0, 1), repeat=len(steps)):
        case = formula.xreplace({jump: Integer(side) for jump, side in zip(steps, sides, strict=True)})
        yield case, tuple((jump.args[0], side == 1) for jump, side in zip(steps, sides, strict=True))


def _one_side(formula: Expr, conditions: tuple[Condition, ...], label: int) -> Finding:
    logits = _logits(formula, conditions)
    if formula.has(*UNBOUNDED):
        possible = nowhere_negative(
            Integer(-1), conditions
        )  # a place where the conditions are met, or a proof that there is none
        if possible.place is None:
            return Finding()
        return Finding(f"not finite at {_place(possible.place, label, logits)}")
    joined = rejoined(formula)
    slope = diff(joined, h)
    curvature = diff(slope, h)
    unproved = ""
    for requirement in _requirements((joined, slope, curvature)):
        verdict = _meets(requirement, conditions)
        if verdict.place is not None:
            place = _place(verdict.place, label, logits)
            state = "infinite or undefined" if requirement.strictly else "undefined"
            return Finding(f"not convex, because not finite: {requirement.part} is {state} at {place}")
        if not verdict.proved:
            unproved = f"finite: {requirement.part} may be infinite or undefined somewhere"
    try:
        variables = (h, *logits)
        for part in (joined, slope, curvature):
            if not _is_ordinary(Enclosure(part, variables), len(variables)):
                return Finding(
                    f"not finite: its numbers overflow at logits between {ORDINARY[0]:g} and {ORDINARY[-1]:g}"
                )
    except UnknownFunctionError as error:
        return Finding(unproved=f"convex: {error}")
    if curvature == 0:
        return Finding(unproved=unproved)
    reduced = _along_one_line(curvature, conditions)
    verdict = nowhere_negative(reduced, conditions, budget=0)
    if verdict == OPEN and is_convex(formula, conditions):
        verdict = PROVED
    if verdict == OPEN:
        verdict = nowhere_negative(reduced, conditions)
    if verdict.place is not None:
        place = _place(verdict.place, label, logits)
        return Finding(f"not convex: its second derivative is {verdict.value:.3g} at {place}")
    if not verdict.proved:
        unproved = unproved or "convex: no place with a negative second derivative was found, but none is ruled out"
    return Finding(unproved=unproved)


def _logits(formula: Expr, conditions: tuple[Condition, ...]) -> tuple[Symbol, ...]:
    return earlier_logits(sympy.Add(formula, *(argument * h for argument, _ in conditions)))


def _place(place: Mapping[Symbol, float], label: int, logits: Sequence[Symbol]) -> str:
    parts = {h: place.get(h, 0.0), y: label, **{logit: place.get(logit, 0.0) for logit in logits}}
    return ", ".join(f"{symbol}={number:.9g}" for symbol, number in parts.items())


def _requirements(parts: Sequence[Expr]) -> list[_Requirement]:
    """What must hold for formulas to be finite."""
    found: dict[tuple[Expr, int, bool], _Requirement] = {}
    for part in parts:
        for atom in sorted(part.atoms(sympy.log, Pow), key=sympy.default_sort_key):
            inner = atom.args[0]
            if not inner.free_symbols:
                continue
            strictly, sign = True, 1
            if isinstance(atom, Pow):
                exponent = atom.exp
                if exponent.is_Integer and exponent > 0:
                    continue
                if exponent.is_Rational and exponent > 0:
                    strictly = False
                elif exponent.is_Integer:
                    sign = 0
            if is_known_positive(inner) or (inner.is_nonnegative and not strictly):
                continue
            if sign == 0 and (inner.is_negative or (inner - 1).is_nonnegative):
                continue
            found.setdefault((inner, sign, strictly), _Requirement(inner, atom, sign, strictly))
    return list(found.values())


def _meets(requirement: _Requirement, conditions: tuple[Condition, ...]) -> Verdict:
    expression = requirement.expression
    if requirement.sign == 0:
        origin = dict.fromkeys(expression.free_symbols, Integer(0))
        value = expression.xreplace(origin)
        if value.is_zero:
            if not conditions or all(bool(argument.xreplace(origin) > 0) == side for argument, side in conditions):
                return Verdict(False, dict.fromkeys(origin, 0.0), 0.0)
            value = expression.xreplace(dict.fromkeys(origin, Integer(1)))
        if value.is_negative:
            expression = -expression
    return nowhere_negative(expression, conditions, strictly=requirement.strictly)


def _along_one_line(curvature: Expr, conditions: tuple[Condition, ...]) -> Expr:
    """The curvature without the earlier logits that enter it only in one combination with h: h stands for that then.

    Functions of h - 2 h_1, say, are functions of one variable; where they are negative they are so at h_1 = 0.
    """
    taken = set().union(*(argument.free_symbols for argument, _ in conditions)) if conditions else set()
    for symbol in earlier_logits(curvature):
        if symbol in taken:
            continue
        for total in curvature.atoms(sympy.Add):
            ratio = total.coeff(symbol) / total.coeff(h) if total.coeff(h) != 0 else Integer(0)
            if ratio == 0 or not ratio.is_Rational:
                continue
            moved = curvature.xreplace({h: h - ratio * symbol})
            moved = moved.replace(lambda e: isinstance(e, sympy.Add), lambda e: expand(e, deep=False))
            if symbol not in moved.free_symbols:
                curvature = moved
            break
    return curvature
