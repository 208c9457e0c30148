"""Interval arithmetic: what holds for all numbers between two floats, whatever the rounding.

Sums and products of pairs (lower, upper) of floats are rounded outwards, values of functions widened by more
than a library's error.  Ends may be infinite, so that the whole line is an interval, and so is what overflows.
Operations follow Moore, Kearfott and Cloud, Introduction to Interval Analysis (2009).  Those of mpmath do the
same at fifty times the cost.

    >>> multiply((-1.0, 2.0), LINE)
    (-inf, inf)
    >>> lower, upper = add((0.1, 0.1), (0.2, 0.2))
    >>> lower < 0.3 < upper or lower == 0.3 or upper == 0.3
    True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import sympy
from sympy import Rational

from theory.functions import sigmoid, softplus, step

Interval = tuple[float, float]
"""(lower, upper), lower <= upper; either may be infinite."""

INFINITY = math.inf
LINE: Interval = (-INFINITY, INFINITY)
ONE: Interval = (1.0, 1.0)

TINY = 5e-324
"""The smallest positive float."""

WIDENING = 4e-15
"""Relative widening of the values of library functions: some ten times the largest error of any in use."""


# Sums and products.


def add(a: Interval, b: Interval) -> Interval:
    """a + b."""
    return _sum_down(a[0], b[0]), -_sum_down(-a[1], -b[1])


def _sum_down(a: float, b: float) -> float:
    """Largest float known to be at most a + b: exact sums stay exact."""
    total = a + b
    if total - total != 0.0:  # infinite, or infinity minus infinity
        return _overflown_down(total, a, b)
    rest = total - a
    error = (a - (total - rest)) + (b - rest)  # a + b - total (Knuth)
    return total if error >= 0.0 else math.nextafter(total, -INFINITY)


def _overflown_down(total: float, a: float, b: float) -> float:
    if total == INFINITY and not (math.isinf(a) or math.isinf(b)):
        return math.nextafter(INFINITY, 0.0)
    return -INFINITY if total != total else total


def multiply(a: Interval, b: Interval) -> Interval:
    """a b; 0 times infinity is 0, because an infinite end stands for finite numbers."""
    a0, a1 = a
    b0, b1 = b
    if a0 >= 0.0:
        if b0 >= 0.0:
            return _product_down(a0, b0), -_product_down(-a1, b1)
        if b1 <= 0.0:
            return _product_down(a1, b0), -_product_down(-a0, b1)
        return _product_down(a1, b0), -_product_down(-a1, b1)
    if a1 <= 0.0:
        if b0 >= 0.0:
            return _product_down(a0, b1), -_product_down(-a1, b0)
        if b1 <= 0.0:
            return _product_down(a1, b1), -_product_down(-a0, b0)
        return _product_down(a0, b1), -_product_down(-a0, b0)
    if b0 >= 0.0:
        return _product_down(a0, b1), -_product_down(-a1, b1)
    if b1 <= 0.0:
        return _product_down(a1, b0), -_product_down(-a0, b0)
    low = min(_product_down(a0, b1), _product_down(a1, b0))
    return low, max(-_product_down(-a0, b0), -_product_down(-a1, b1))


def _product_down(a: float, b: float) -> float:
    """Largest float known to be at most a b, never of the wrong sign."""
    product = a * b
    if product != product:  # 0 times infinity
        return 0.0
    if product == 0.0:
        return 0.0 if a == 0.0 or b == 0.0 or (a > 0.0) == (b > 0.0) else -TINY
    if a in (1.0, -1.0) or b in (1.0, -1.0):
        return product
    if product == INFINITY and (math.isinf(a) or math.isinf(b)):
        return product
    return math.nextafter(product, -INFINITY)


def negate(a: Interval) -> Interval:
    """-a."""
    return -a[1], -a[0]


def invert(a: Interval) -> Interval:
    """1/a; an interval that holds 0 inside has no bounded inverse, and its inverse is the line."""
    low, high = a
    if low >= 0.0:
        return _quotient(high, -1), _quotient(low, 1)
    if high <= 0.0:
        return -_quotient(-high, 1), -_quotient(-low, -1)
    return LINE


def _quotient(x: float, direction: int) -> float:
    """1/x for x >= 0, rounded down (-1) or up (1)."""
    if x == 0.0:
        return INFINITY if direction > 0 else math.nextafter(INFINITY, 0.0)
    if x == 1.0:
        return 1.0
    value = 1.0 / x
    return max(0.0, math.nextafter(value, direction * INFINITY))


def smallest(a: Interval) -> float:
    """Smallest absolute value in a."""
    return a[0] if a[0] > 0.0 else -a[1] if a[1] < 0.0 else 0.0


# Functions.


def _safely(function: Callable[[float], float], x: float) -> float:
    """A growing function's value; infinite where floats overflow."""
    try:
        return function(x)
    except OverflowError:
        return INFINITY if x > 0.0 else -INFINITY


def _widened(low: float, high: float, least: float = -INFINITY, most: float = INFINITY) -> Interval:
    """The interval with room for the library's errors, within the range of the function."""
    if low == INFINITY:
        low = math.nextafter(INFINITY, 0.0)
    if high == -INFINITY:
        high = -math.nextafter(INFINITY, 0.0)
    if low - low == 0.0 and low != 0.0:
        low -= WIDENING * abs(low) + TINY
    if high - high == 0.0 and high != 0.0:
        high += WIDENING * abs(high) + TINY
    return max(low, least), min(high, most)


def _growing(
    function: Callable[[float], float], least: float = -INFINITY, most: float = INFINITY
) -> Callable[[Interval], Interval]:
    def enclose(x: Interval) -> Interval:
        return _widened(_safely(function, x[0]), _safely(function, x[1]), least, most)

    return enclose


def _exp(x: float) -> float:
    return math.exp(x) if x < 710.0 else INFINITY


def _sigmoid(x: float) -> float:
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    z = math.exp(x)
    return z / (1.0 + z)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x))) if x > -INFINITY else 0.0


_exp_growing = _growing(_exp, 0.0)


def _exponential(x: Interval) -> Interval:
    low, high = _exp_growing(x)
    return low, max(high, TINY)  # never 0, however small


def _sigmoid_interval(x: Interval) -> Interval:
    low, high = _growing_sigmoid(x)
    return low, max(high, TINY)


_growing_sigmoid = _growing(_sigmoid, 0.0, 1.0)


def _logarithm(x: Interval) -> Interval:
    """log; arguments that are not positive are none of its domain, which is checked elsewhere."""
    low = -INFINITY if x[0] <= 0.0 else math.log(x[0])
    high = -INFINITY if x[1] <= 0.0 else math.log(x[1])
    # Near 1 the relative error of the logarithm says nothing.
    low, high = low - TINY - 4e-16, high + TINY + 4e-16
    return _widened(low, high)


def _cosh(x: Interval) -> Interval:
    near, far = smallest(x), max(-x[0], x[1])
    return _widened(_safely(math.cosh, near), _safely(math.cosh, far), 1.0)


def _erfc(x: Interval) -> Interval:
    low, high = _widened(math.erfc(x[1]), math.erfc(x[0]), 0.0, 2.0)
    return low, max(high, TINY)


def _wave(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    """A sine or cosine: by its middle and its slope of at most 1."""

    def enclose(x: Interval) -> Interval:
        width = x[1] - x[0]
        if not width < 2.0 or max(abs(x[0]), abs(x[1])) > 1e5:
            return -1.0, 1.0
        middle, reach = function(0.5 * (x[0] + x[1])), 0.5 * width + 1e-10
        return max(-1.0, middle - reach), min(1.0, middle + reach)

    return enclose


def _step(x: Interval) -> Interval:
    return (1.0 if x[0] > 0.0 else 0.0), (0.0 if x[1] < 0.0 else 1.0)


def _absolute(x: Interval) -> Interval:
    return smallest(x), max(-x[0], x[1])


FUNCTIONS: dict[type, Callable[[Interval], Interval]] = {
    sympy.exp: _exponential,
    sympy.log: _logarithm,
    sigmoid: _sigmoid_interval,
    softplus: _growing(_softplus, 0.0),
    step: _step,
    sympy.tanh: _growing(math.tanh, -1.0, 1.0),
    sympy.sinh: _growing(math.sinh),
    sympy.cosh: _cosh,
    sympy.atan: _growing(math.atan, -1.5707963267948968, 1.5707963267948968),
    sympy.asinh: _growing(math.asinh),
    sympy.erf: _growing(math.erf, -1.0, 1.0),
    sympy.erfc: _erfc,
    sympy.sin: _wave(math.sin),
    sympy.cos: _wave(math.cos),
    sympy.Abs: _absolute,
}
"""Enclosure of each function that a loss may hold."""


def whole_power(n: int) -> Callable[[Interval], Interval]:
    """x -> x^n for an integer n."""
    size = abs(n)

    def positive(low: float, high: float) -> Interval:
        return _widened(_raised(low, size), _raised(high, size), 0.0)

    def enclose(x: Interval) -> Interval:
        low, high = x
        if size == 1:
            result = x
        elif size % 2 == 0:
            result = positive(smallest(x), max(-low, high))
        elif low >= 0.0:
            result = positive(low, high)
        elif high <= 0.0:
            result = negate(positive(-high, -low))
        else:
            result = -positive(0.0, -low)[1], positive(0.0, high)[1]
        return invert(result) if n < 0 else result

    return enclose


def _raised(x: float, power: float) -> float:
    try:
        return x**power
    except OverflowError:
        return INFINITY


def real_power(exponent: Rational) -> Callable[[Interval], Interval]:
    """x -> x^exponent for x >= 0; what is below 0 is none of its domain, which is checked elsewhere."""
    size = abs(float(exponent))
    slack = 0.0 if (4 * exponent).is_Integer else 1e-13 * (1.0 + size)  # the exponent is rounded, too

    def enclose(x: Interval) -> Interval:
        low, high = _widened(_raised(max(x[0], 0.0), size), _raised(max(x[1], 0.0), size), 0.0)
        low, high = low * (1.0 - slack), high * (1.0 + slack)
        return invert((low, high)) if exponent < 0 else (low, high)

    return enclose


def general_power(base: Interval, exponent: Interval) -> Interval:
    if exponent[0] == exponent[1] and exponent[0].is_integer() and abs(exponent[0]) < 1e6:
        return whole_power(int(exponent[0]))(base) if exponent[0] else ONE
    return _exponential(multiply(exponent, _logarithm(base)))


def around(number: Fraction) -> Interval:
    """Floats around a rational number, which is exact if it is a float itself."""
    try:
        nearest = number.numerator / number.denominator
    except OverflowError:
        largest = math.nextafter(INFINITY, 0.0)
        return (largest, INFINITY) if number > 0 else (-INFINITY, -largest)
    exact = Fraction(nearest)
    if exact == number:
        return nearest, nearest
    return (
        (nearest, math.nextafter(nearest, INFINITY))
        if exact < number
        else (
            math.nextafter(nearest, -INFINITY),
            nearest,
        )
    )
