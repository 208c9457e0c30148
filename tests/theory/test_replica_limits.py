"""The replica step: symmetric matrices, limits in n, and agreement with the potential."""

import pytest
import sympy
from sympy import Integer, Matrix, Rational, Symbol, cancel, diff, expand, limit, log, oo, simplify

from theory.potential import (
    GaussianRidgePrior,
    QuadraticPrior,
    conditional_moments,
    conjugates,
    coupling,
    entropic_potential,
    ridge_towards,
)
from theory.replica import (
    QuadraticLoss,
    ReplicaMatrix,
    beta,
    cavity_shift,
    coupling_limit,
    energetic_limit,
    entropic_action,
    entropic_limit,
    envelope_average,
    field_covariance,
    inverse_temperature,
    laplace,
    limit_of_action,
    log_determinant_slope,
    n,
    quadratic_log_average,
    quadratic_weight,
    replicas,
    stage_ridge,
    zero_temperature,
)
from theory.symbols import bias, delta, magnetization, overlap, response, ridge, sign


def number(index):
    return Rational(5 * index % 13 + 1, 3)


def in_conjugates(expression, t):
    """Replace the moments of earlier weights by their own conjugates and ridges."""
    for s in range(t - 1, 0, -1):
        outputs = conditional_moments(s).outputs
        expression = expression.subs(
            {Symbol(name, real=True): moment.subs(ridge, stage_ridge(s)) for name, moment in outputs.items()}
        )
    return expression


def test_symmetric_matrix_against_the_dense_one():
    matrix = ReplicaMatrix(
        (Integer(2), Integer(1), Integer(3)),
        (Integer(7), Integer(5), Integer(9)),
        Matrix([[1, 2, -1], [2, 0, 1], [-1, 1, 2]]),
    )
    assert matrix.determinant() == matrix.dense().det()


@pytest.mark.parametrize("t", [1, 2])
def test_action_determinant_for_integer_numbers_of_replicas(t):
    """The formula in n continues the true determinants at n = 1, 2, 3."""
    action = entropic_action(t)
    symbols = action.determinant().free_symbols - {n, replicas(1)}
    values = {symbol: number(i) for i, symbol in enumerate(sorted(symbols, key=str))}
    for count in (1, 2, 3):
        numbers = {n: Integer(count), replicas(1): Integer(3)}
        concrete = action.at(values | numbers)
        assert concrete.dense().det() == action.determinant().subs(values).subs(numbers)


def test_log_determinant_slope_is_the_limit_of_differences():
    action = entropic_action(1)
    values = {s: number(i + 1) for i, s in enumerate(sorted(action.determinant().free_symbols - {n}, key=str))}
    rational, eigenvalue = log_determinant_slope(action, n, ())
    slope = (rational + log(eigenvalue)).subs(values)
    direct = limit(diff(log(action.determinant().subs(values)), n), n, 0)
    assert abs((slope - direct).evalf()) < 1e-12


@pytest.mark.parametrize("prior", [GaussianRidgePrior, ridge_towards(1)], ids=["ridge", "towards the teacher"])
def test_entropic_part_of_two_stages(prior):
    derived = entropic_limit(2, prior).zero_temperature
    assert cancel(derived - in_conjugates(entropic_potential(2, prior), 2)) == 0


def test_entropic_part_of_one_stage_and_another_prior():
    field_strength = Symbol("phi", real=True)
    for prior in (GaussianRidgePrior, QuadraticPrior(lambda w, earlier: 3 * ridge * w**2)):
        assert cancel(entropic_limit(1, prior).zero_temperature - entropic_potential(1, prior)) == 0
    assert field_strength not in entropic_limit(1).zero_temperature.free_symbols


@pytest.mark.parametrize("prior", [GaussianRidgePrior, ridge_towards(2)], ids=["ridge", "towards stage 2"])
def test_entropic_part_of_three_stages(prior):
    """At rational values of the conjugates: the symbolic limit of three stages fills pages."""
    values = {c: number(i + 3 * s) for s in (1, 2, 3) for i, c in enumerate(conjugates(s))}
    values |= {stage_ridge(1): number(4), stage_ridge(2): number(7), ridge: number(9)}
    derived = limit_of_action(entropic_action(3, prior).at(values), 3).zero_temperature
    assert simplify(derived - in_conjugates(entropic_potential(3, prior), 3).subs(values)) == 0


def test_finite_temperature_tends_to_the_limit():
    result = entropic_limit(1)
    values = {s: number(i) for i, s in enumerate(sorted(result.zero_temperature.free_symbols, key=str))}
    finite = result.finite_temperature.subs(values)
    exact = float(result.zero_temperature.subs(values))
    errors = [abs(float(finite.subs(beta, b)) - exact) for b in (1e2, 1e4, 1e6)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


@pytest.mark.parametrize("t", [1, 2, 3])
def test_legendre_terms(t):
    assert expand(coupling_limit(t).zero_temperature - coupling(t)) == 0


def test_a_diverging_limit_is_refused():
    with pytest.raises(ValueError, match="diverges"):
        zero_temperature(beta**2 / (1 + beta), beta)


def test_laplace_gives_the_moreau_envelope():
    step = laplace()
    star, u, v = sympy.symbols("h_star u V", real=True)
    assert step.expansion.has(log)
    assert not step.limit.has(log)
    loss = sympy.Function("l")
    expected = -loss(star) - (star - u) ** 2 / (2 * delta * Symbol("V", positive=True))
    assert simplify(step.limit - expected) == 0
    assert v not in step.limit.free_symbols


def test_laplace_of_the_square_loss_against_the_integral():
    """Gaussian integral at finite beta, done by sympy."""
    h, u = sympy.symbols("h u", real=True)
    b, v = Rational(3), Rational(5, 4)
    exponent = -b * ((h - 1) ** 2 / 2 + (h - u) ** 2 / (2 * v))
    integral = sympy.integrate(sympy.exp(exponent.subs(u, 2)), (h, -oo, oo)) / sympy.sqrt(2 * sympy.pi * v / b)
    step = laplace(lambda x: (x - 1) ** 2 / 2)
    minimum = (2 + v) / (1 + v)
    values = {Symbol("h_star", real=True): minimum, Symbol("u", real=True): 2, beta: b}
    values |= {Symbol("V", positive=True): v, delta: 1}
    assert abs(float((log(integral) / b - step.expansion.subs(values)).evalf())) < 1e-12


@pytest.mark.parametrize("count", [1, 2, 3])
def test_square_loss_average_at_finite_n_against_dense_integrals(count):
    """E[exp(-beta sum_a l(h^a))] with dense Gaussian integration over the replicated fields."""
    values = {delta: Rational(3, 2), beta: Rational(4, 3), sign: Integer(1)}
    values |= {overlap(1, 1): Rational(2, 3), response(1, 1): Rational(5, 4)}
    values |= {magnetization(1): Rational(1, 3), bias(1): Rational(1, 7)}
    formula = quadratic_log_average((QuadraticLoss(),)).subs(n, count).subs(values)
    covariance = field_covariance(1).at(values | {n: Integer(count)}).dense()
    assert abs((formula - dense_average(covariance, *dense_weight(count, values))).evalf()) < 1e-12


def dense_weight(count, values):
    b, mean = values[beta], values[magnetization(1)] + values[bias(1)]
    return b * Matrix.eye(count), Matrix([b] * count), Matrix([mean] * count), count * b / 2


def dense_average(covariance, form, source, mean, constant):
    """log E exp(-h.D.h/2 + J.h - constant), h ~ N(mean, covariance)."""
    size = covariance.shape[0]
    kernel = Matrix.eye(size) + covariance * form
    tilted = source - form * mean
    quadratic = (tilted.T * kernel.inv() * covariance * tilted)[0] / 2
    exponent = quadratic + (source.T * mean)[0] - (mean.T * form * mean)[0] / 2 - constant
    return exponent - log(kernel.det()) / 2


def test_distillation_average_at_finite_numbers_of_replicas():
    """Two student and three teacher replicas, only the first of which teaches."""
    losses = (QuadraticLoss(), QuadraticLoss(Rational(1, 3), Rational(2, 5), Rational(3, 2)))
    counts = {n: Integer(2), replicas(1): Integer(3)}
    formula = quadratic_log_average(losses)
    values = two_stage_values() | {beta: Rational(4, 3), inverse_temperature(1): Rational(7, 3)}
    covariance = field_covariance(2).at(values | counts).dense()
    b, b1 = values[beta], values[inverse_temperature(1)]
    fields = sympy.symbols("t1:4 s1:3")
    teachers, students = fields[:3], fields[3:]
    energy = sum(b1 * (x - 1) ** 2 / 2 for x in teachers)
    energy += sum(b * Rational(3, 4) * (x - Rational(1, 3) - Rational(2, 5) * teachers[0]) ** 2 for x in students)
    origin = dict.fromkeys(fields, 0)
    form = sympy.hessian(energy, fields)
    source = -Matrix([diff(energy, x) for x in fields]).subs(origin)
    mean = Matrix([values[magnetization(1)] + values[bias(1)]] * 3 + [values[magnetization(2)] + values[bias(2)]] * 2)
    dense = dense_average(covariance, form, source, mean, energy.subs(origin))
    assert abs((formula.subs(counts).subs(values) - dense).evalf()) < 1e-10
    assert quadratic_weight(losses).form.at(values | counts).dense() == form


def two_stage_values():
    values = {delta: Rational(3, 2), sign: Integer(1)}
    values |= {magnetization(s): number(s) for s in (1, 2)} | {bias(s): -number(s + 4) for s in (1, 2)}
    values |= {overlap(1, 1): Integer(2), overlap(2, 1): Rational(1, 2), overlap(2, 2): Integer(1)}
    return values | {response(1, 1): Rational(3, 4), response(2, 1): Rational(1, 5), response(2, 2): Rational(2, 3)}


def test_square_loss_limit_is_the_envelope_of_one_stage():
    losses = (QuadraticLoss(stiffness=Symbol("k", positive=True)),)
    assert cancel(energetic_limit(losses) - envelope_average(losses)) == 0


@pytest.mark.parametrize("label", [-1, 1])
def test_square_distillation_limit_is_the_envelope_at_the_shifted_field(label):
    """n~ replicas of the teacher -> 0: the field of the student is omega + Delta V_21 f_1."""
    losses = (QuadraticLoss(), QuadraticLoss(Rational(1, 3), Rational(2, 5), Rational(3, 2)))
    values = two_stage_values() | {sign: Integer(label)}
    kept = {s: v for s, v in values.items() if s not in (response(2, 1), overlap(2, 1))}
    derived = energetic_limit(losses, kept)
    assert cancel(derived - envelope_average(losses).subs(kept)) == 0
    assert derived.has(response(2, 1))


def test_cavity_shift():
    shift = cavity_shift()
    f1 = Symbol("f_1", real=True)
    assert simplify(shift.shift - delta * response(2, 1) * f1) == 0
    assert limit(shift.change, inverse_temperature(1), oo) == 0
