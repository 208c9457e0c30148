"""Averages over the cavity fields: Stein's lemma against exact Gaussian moments."""

import pytest
import sympy
from sympy import Function, Integer, Rational, Symbol, diff, expand, sqrt

from theory.averages import Force, GaussianAverage, MoreauEnvelope, earlier_force, proximal_arguments
from theory.symbols import bias, cholesky, delta, field, magnetization, overlap, response, sign

STAGES = 2
NORMALS = [Symbol(f"g_{k}") for k in (1, 2)]
FIELDS = [field(s) for s in (1, 2)]
POLYNOMIALS = [
    FIELDS[1] ** 3,
    FIELDS[0] * FIELDS[1] ** 2 + sign * FIELDS[0],
    (FIELDS[0] - 2 * FIELDS[1]) ** 4 + sign * FIELDS[1] ** 2,
]


def moment(power):
    return sympy.factorial2(power - 1) if power % 2 == 0 else Integer(0)


def exact(expression, label, extra=1):
    """Average over the normals of a polynomial in the fields, in terms of m, b, Delta and the Cholesky factor."""
    values = {
        field(s): sign * magnetization(s)
        + bias(s)
        + sqrt(delta) * sum(cholesky(s, k) * NORMALS[k - 1] for k in range(1, s + 1))
        for s in (1, 2)
    }
    polynomial = sympy.Poly(expand((expression * extra).subs(values).subs(sign, label)), *NORMALS)
    return sum(c * moment(i) * moment(j) for (i, j), c in polynomial.terms())


def evaluate(expression, label):
    """Replace every average in an expression by its exact value."""
    averages = expression.atoms(GaussianAverage)
    values = {average: exact(average.integrand, label) for average in averages}
    factor = {
        overlap(1, 1): cholesky(1, 1) ** 2,
        overlap(2, 1): cholesky(1, 1) * cholesky(2, 1),
        overlap(2, 2): cholesky(2, 1) ** 2 + cholesky(2, 2) ** 2,
    }
    return expand(expression.xreplace(values).subs(factor))


@pytest.mark.parametrize("label", [-1, 1])
@pytest.mark.parametrize("polynomial", POLYNOMIALS, ids=str)
def test_derivatives_by_mean_and_bias(polynomial, label):
    average = GaussianAverage(polynomial, STAGES)
    for s in (1, 2):
        for variable in (magnetization(s), bias(s)):
            expected = diff(exact(polynomial, label), variable)
            assert expand(evaluate(diff(average, variable), label) - expected) == 0


@pytest.mark.parametrize("polynomial", POLYNOMIALS, ids=str)
def test_derivatives_by_overlaps(polynomial):
    """The exact average as a function of Q: the Cholesky factor is expressed by Q and differentiated."""
    average = GaussianAverage(polynomial, STAGES)
    q11, q21, q22 = overlap(1, 1), overlap(2, 1), overlap(2, 2)
    factor = {
        cholesky(1, 1): sqrt(q11),
        cholesky(2, 1): q21 / sqrt(q11),
        cholesky(2, 2): sqrt(q22 - q21**2 / q11),
    }
    point = {q11: Rational(3, 2), q21: Rational(1, 3), q22: 2, delta: Rational(4, 3)}
    point |= {magnetization(1): Rational(1, 2), magnetization(2): 1, bias(1): -1, bias(2): Rational(1, 5)}
    value = exact(polynomial, 1).subs(factor)
    for variable in (q11, q21, q22):
        found = evaluate(diff(average, variable), 1).subs(factor)
        assert sympy.simplify((found - diff(value, variable)).subs(point)) == 0


@pytest.mark.parametrize("polynomial", POLYNOMIALS, ids=str)
def test_average_with_a_normal(polynomial):
    average = GaussianAverage(polynomial, STAGES)
    for k in (1, 2):
        direct = exact(polynomial, -1, NORMALS[k - 1])
        assert expand(evaluate(average.times_normal(k), -1) - direct) == 0


def test_constants_and_signs_come_out():
    c, function = Symbol("c"), Function("X")(field(1))
    assert GaussianAverage(c * function, 1) == c * GaussianAverage(function, 1)
    assert GaussianAverage(c, 1) == c
    assert GaussianAverage(0, 1) == 0
    total = function + field(1) ** 2
    assert GaussianAverage(-2 * total, 1) == -2 * GaussianAverage(total, 1)


def test_envelope_rules_enter_the_energetic_part():
    arguments = proximal_arguments(2)
    average = GaussianAverage(MoreauEnvelope(*arguments), 2)
    f2, f1 = Force(*arguments), earlier_force(1)
    assert diff(average, magnetization(2)) == -GaussianAverage(sign * f2, 2)
    assert diff(average, response(2, 2)) == -delta * GaussianAverage(f2**2, 2) / 2
    assert diff(average, response(2, 1)) == -delta * GaussianAverage(f1 * f2, 2)
    total = diff(average, overlap(2, 1))
    assert total.has(diff(f1, field(1)))
    assert diff(average, Symbol("unrelated")) == 0


def test_noise_is_not_a_variational_parameter():
    with pytest.raises(NotImplementedError, match="Delta"):
        diff(GaussianAverage(field(1) ** 3, 1), delta)
