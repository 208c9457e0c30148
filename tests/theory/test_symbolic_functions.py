"""Logistic functions and the rewriting of user formulas."""

import math

import pytest
import sympy
from sympy import Rational, Symbol, cosh, diff, exp, log, oo, simplify

from theory.functions import MATH, MPMATH, sigmoid, softplus, stabilise, step

x = Symbol("x", real=True)


def test_derivatives_close_on_themselves():
    assert diff(softplus(x), x) == sigmoid(x)
    assert diff(sigmoid(x), x) == sigmoid(x) * (1 - sigmoid(x))


def test_exact_values():
    assert sigmoid(0) == Rational(1, 2)
    assert softplus(0) == log(2)
    assert (sigmoid(oo), sigmoid(-oo), softplus(-oo)) == (1, 0, 0)


@pytest.mark.parametrize("value", [-800.0, -30.0, -0.3, 0.7, 45.0, 800.0])
def test_numerical_values_do_not_overflow_or_cancel(value):
    exact = sympy.Float(value, 60)
    with_exp = (1 / (1 + exp(-exact))).evalf(40)
    assert abs(sigmoid(exact).evalf(20) / with_exp - 1) < 1e-18
    assert softplus(exact).evalf(20) == pytest.approx(float(log(1 + exp(exact)).evalf(400)), rel=1e-15)
    if abs(value) < 700:
        for table in (MATH, MPMATH):
            assert table["softplus"](value) == pytest.approx(float(softplus(exact).evalf(20)), rel=1e-14)
            assert table["sigmoid"](value) == pytest.approx(float(with_exp), rel=1e-14)


def test_rewrite_and_latex():
    assert sigmoid(x).rewrite(exp) == 1 / (1 + exp(-x))
    assert softplus(x).rewrite(exp) == log(1 + exp(x))
    assert sympy.latex(sigmoid(x)) == r"\sigma\left(x\right)"
    assert "softplus" in sympy.latex(softplus(x) ** 2)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (log(1 + exp(x)), softplus(x)),
        (1 / (1 + exp(-x)), sigmoid(x)),
        (exp(x) / (1 + exp(x)), sigmoid(x)),
        (exp(-x) / (1 + exp(-x)) ** 2, sigmoid(x) * (1 - sigmoid(x))),
        (log(1 + exp(-x)), softplus(x) - x),
        (log(sigmoid(x)), x - softplus(x)),
        (log(1 - sigmoid(x)), -softplus(x)),
        (log(cosh(x)), softplus(2 * x) - x - log(2)),
        (log(exp(x) + exp(-x)), softplus(2 * x) - x),
    ],
)
def test_stabilise(formula, expected):
    assert simplify(stabilise(formula) - expected) == 0


def test_step():
    positive = Symbol("p", positive=True)
    assert [step(value) for value in (-oo, -2, -0.5, 0, 0.5, 2, oo)] == [0, 0, 0, Rational(1, 2), 1, 1, 1]
    assert diff(step(x) * x**2, x) == 2 * x * step(x)
    assert step(3 * positive * x) == step(x / 2) == step(x)
    assert (step(positive), step(-positive)) == (1, 0)
    assert step(x).subs(x, 3) == 1
    assert stabilise(step(-x)) == 1 - step(x)
    assert stabilise(step(1 - 2 * x)) == 1 - step(2 * x - 1)
    assert sympy.latex(step(x) ** 2) == r"\Theta^{2}\left(x\right)"


def test_step_is_the_limit_of_a_steep_sigmoid():
    for value in (-1.0, -1e-3, 0.0, 1e-3, 1.0):
        steep = float(sigmoid(sympy.Float(value * 1e6)).evalf())
        for table in (MATH, MPMATH):
            assert float(table["step"](value)) == pytest.approx(steep, abs=1e-15)
    assert math.isnan(MATH["step"](math.nan))


def test_stabilise_keeps_what_it_does_not_know():
    assert stabilise(exp(x) + x**2) == exp(x) + x**2


@pytest.mark.parametrize("value", [-3.0, 0.4, 5.0])
def test_stabilise_keeps_the_value(value):
    formula = log(1 + exp(2 * x - 1)) * x + exp(3 * x) / (1 + exp(3 * x)) - log(exp(x) + exp(2 * x))
    assert stabilise(formula).has(softplus)
    difference = (stabilise(formula) - formula).subs(x, value).evalf()
    assert math.isclose(float(difference), 0.0, abs_tol=1e-12)
