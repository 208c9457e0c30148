"""Bounds of an expression over a box of its variables.

>>> from theory.intervals import LINE
>>> from theory.symbols import h
>>> Enclosure(sigmoid(h) * (1 - sigmoid(h)), (h,)).bounds([LINE])
(0.0, 1.0)
>>> lower, upper = Enclosure(h**2 - h, (h,)).bounds([(2.0, 3.0)])
>>> lower <= 2 and upper >= 6
True
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import sympy
from mpmath import iv
from sympy import Add, Expr, Mul, Pow, Symbol

from theory.functions import sigmoid, softplus
from theory.intervals import (
    FUNCTIONS,
    INFINITY,
    Interval,
    add,
    around,
    general_power,
    multiply,
    negate,
    real_power,
    smallest,
    whole_power,
)

CONSTANT_DIGITS = 40
"""Digits to which constants like pi or log(2) are bounded before they are rounded to floats."""


class UnknownFunctionError(ValueError):
    """An expression holds a function that has no enclosure here."""


def constant(number: Expr) -> Interval:
    """Floats around a number."""
    if number.is_Rational:
        return around(Fraction(int(number.p), int(number.q)))
    value = number.evalf(CONSTANT_DIGITS)
    if not value.is_Float:
        raise UnknownFunctionError(f"{number} is not a real number")
    iv.dps = CONSTANT_DIGITS
    box = iv.mpf(str(value)) * (1 + iv.mpf([-1, 1]) * iv.mpf(10) ** (5 - CONSTANT_DIGITS))
    return math.nextafter(float(box.a), -INFINITY), math.nextafter(float(box.b), INFINITY)


class Enclosure:
    """Bounds of one expression over boxes of ``variables``.

    Raises
    ------
    UnknownFunctionError
        If the expression holds a function without an enclosure, or a symbol that is not among the variables.
    """

    def __init__(self, expression: Expr, variables: Sequence[Symbol]) -> None:
        self.expression = expression
        self._slots: dict[Expr, int] = {symbol: k for k, symbol in enumerate(variables)}
        self._program: list[tuple[Callable[..., Interval], tuple[int, ...]]] = []
        self._inputs = len(self._slots)
        self._fixed: tuple[Interval, ...] = ()
        self._result = self._place(expression)
        terms = without_cancellation(expression) if isinstance(expression, Add) else [expression]
        self._terms = [self._place(term) for term in terms]

    def at(self, values: Sequence[Interval]) -> Enclosure:
        """The same with the last variables fixed: boxes have the others only."""
        other = copy.copy(self)
        other._fixed = (*values, *self._fixed)
        return other

    def __len__(self) -> int:
        """Operations of one evaluation."""
        return len(self._program) + 1

    def bounds(self, box: Sequence[Interval]) -> Interval:
        """(lower, upper) of the expression over a box, one interval for each variable."""
        return self._run(box)[self._result]

    def magnitude(self, box: Sequence[Interval]) -> float:
        """A lower bound, over the box, of the sum of the absolute values of the terms of the expression."""
        values = self._run(box)
        return sum(smallest(values[k]) for k in self._terms)

    def _run(self, box: Sequence[Interval]) -> list[Interval]:
        values = [*box, *self._fixed]
        for operation, arguments in self._program:
            if len(arguments) == 2:
                values.append(operation(values[arguments[0]], values[arguments[1]]))
            elif arguments:
                values.append(operation(values[arguments[0]]))
            else:
                values.append(operation())
        return values

    def _place(self, expression: Expr) -> int:
        """Slot that holds the value of an expression, equal ones sharing theirs."""
        if expression not in self._slots:
            self._slots[expression] = self._build(expression)
        return self._slots[expression]

    def _emit(self, operation: Callable[..., Interval], *arguments: int) -> int:
        self._program.append((operation, arguments))
        return self._inputs + len(self._program) - 1

    def _build(self, expression: Expr) -> int:
        if not expression.free_symbols:
            value = constant(expression)
            return self._emit(lambda: value)
        if isinstance(expression, Add):
            terms = [self._place(term) for term in without_cancellation(expression)]
            return self._joined(add, terms)
        if isinstance(expression, Mul):
            factors = sorted(expression.args, key=lambda factor: not factor.is_Rational)
            if factors[0] == -1:
                return self._emit(negate, self._place(Mul(*factors[1:])))
            return self._joined(multiply, [self._place(factor) for factor in factors])
        if isinstance(expression, Pow):
            return self._power(*expression.args)
        operation = FUNCTIONS.get(expression.func)
        if operation is None or len(expression.args) != 1:
            raise UnknownFunctionError(f"no bounds are known for {expression}")
        return self._emit(operation, self._place(expression.args[0]))

    def _joined(self, operation: Callable[..., Interval], slots: Sequence[int]) -> int:
        result = slots[0]
        for slot in slots[1:]:
            result = self._emit(operation, result, slot)
        return result

    def _power(self, base: Expr, exponent: Expr) -> int:
        if exponent.is_Integer:
            return self._emit(whole_power(int(exponent)), self._place(base))
        if exponent.is_Rational:
            return self._emit(real_power(exponent), self._place(base))
        return self._emit(general_power, self._place(base), self._place(exponent))


def without_cancellation(total: Add) -> list[Expr]:
    """Terms of a sum, pairs joined into one function that keeps small values.

    ``1 - sigmoid(x)`` is ``sigmoid(-x)``, ``softplus(x) - x`` is ``softplus(-x)``, ``1 - tanh(x)^2`` is ``1/cosh(x)^2``.
    """
    changed = True
    while changed and isinstance(total, Add):
        changed = False
        for term in total.args:
            factor, function = term.as_coeff_Mul()
            x = function.args[0] if function.args else None
            if isinstance(function, sigmoid):
                other, joined = total - factor * function + factor, -factor * sigmoid(-x)
            elif isinstance(function, softplus):
                other, joined = total - factor * function + factor * x, factor * softplus(-x)
            elif isinstance(function, Pow) and isinstance(function.base, sympy.tanh) and function.exp == 2:
                other, joined = total - factor * function + factor, -factor * sympy.cosh(function.base.args[0]) ** -2
            else:
                continue
            if len(Add.make_args(other)) < len(total.args) - 1 or other == 0:
                total, changed = other + joined, True
                break
    return list(Add.make_args(total))


def rejoined(expression: Expr) -> Expr:
    """The expression with the terms of all its sums joined as by :func:`without_cancellation`.

    Formulas are read with arguments of one sign; convex functions of convex functions are seen as such without that.
    """
    return expression.replace(lambda e: isinstance(e, Add), lambda e: Add(*without_cancellation(e)))
