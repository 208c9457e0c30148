"""The potential of a stage and its stationarity conditions."""

import time

import mpmath
import pytest
import sympy
from sympy import Matrix, Rational, Symbol, diff, simplify, sqrt

from theory.potential import (
    Equations,
    GaussianRidgePrior,
    QuadraticPrior,
    channel_equations,
    cholesky_update,
    conditional_moments,
    conjugates,
    entropic_potential,
    free_energy,
    order_parameters,
    prior_equations,
    random_field,
    ridge_towards,
    teacher_direction,
)
from theory.symbols import (
    alpha,
    bias,
    cholesky,
    delta,
    eta,
    field,
    magnetization,
    magnetization_hat,
    overlap,
    overlap_hat,
    response,
    response_hat,
    rho,
    ridge,
    sign,
)


def rational(index):
    return Rational(3 * index % 11 + 2, 7)


# A chain of square losses, in which every average is a polynomial: stage t fits s + c_t h_{t-1}.

PULL = Rational(2, 3)


class SquareChain:
    """Forces, logits and envelopes of a chain of square losses, as polynomials in the cavity fields."""

    def __init__(self, stages: int) -> None:
        self.forces, self.logits, self.envelopes = [], [], []
        for t in range(1, stages + 1):
            target = sign + (PULL * self.logits[-1] if t > 1 else 0)
            u = field(t) + delta * sum(response(t, s) * self.forces[s - 1] for s in range(1, t))
            gamma = delta * response(t, t)
            force = (target - u) / (1 + gamma)
            self.forces.append(force)
            self.logits.append(u + gamma * force)
            self.envelopes.append((target - u) ** 2 / (2 * (1 + gamma)))
        self.stages = stages

    def mean(self, quadratic):
        """Average over label and fields; exact for polynomials of second degree in the fields."""
        fields = [field(s) for s in range(1, self.stages + 1)]
        centre = {field(s): sign * magnetization(s) + bias(s) for s in range(1, self.stages + 1)}
        total = quadratic.subs(centre, simultaneous=True)
        for s, first in enumerate(fields, start=1):
            for r, second in enumerate(fields, start=1):
                total += delta * overlap(s, r) * diff(quadratic, first, second).subs(centre) / 2
        return rho * total.subs(sign, 1) + (1 - rho) * total.subs(sign, -1)


def physical_point(stages):
    """Rational values of all parameters and order parameters; Q = C C^T with a random C."""
    point = {alpha: Rational(7, 4), rho: Rational(1, 5), delta: Rational(9, 4)}
    factor = {(t, k): rational(5 * t + k) for t in range(1, stages + 1) for k in range(1, t + 1)}
    for t in range(1, stages + 1):
        point |= {magnetization(t): rational(t), bias(t): -rational(t + 3)}
        for s in range(1, t + 1):
            point[overlap(t, s)] = sum(factor[t, k] * factor[s, k] for k in range(1, s + 1))
            point[response(t, s)] = rational(t + 2 * s + 1)
            point[cholesky(t, s)] = factor[t, s]
    return point


@pytest.mark.parametrize("t", [1, 2, 3])
def test_channel_equations_are_the_gradient_of_the_mean_envelope(t):
    """Conjugates computed from averages (with Stein's lemma for Vh) against derivatives of alpha E[M]."""
    chain, point = SquareChain(t), physical_point(t)
    force = chain.forces[-1]
    energetic = -alpha * chain.mean(chain.envelopes[-1])
    gradient = {variable: diff(energetic, variable).subs(point) for variable in order_parameters(t)}
    expected = {magnetization_hat(t): gradient[magnetization(t)]}
    for s in range(1, t + 1):
        pair = 2 if s == t else 1
        expected[overlap_hat(t, s)] = pair * gradient[response(t, s)]
        expected[response_hat(t, s)] = -pair * gradient[overlap(t, s)]

    averages = {"E_sf": chain.mean(sign * force), "E_f": chain.mean(force), "E_ff": chain.mean(force**2)}
    averages["E_df"] = diff(force, field(t))
    for k in range(1, t):
        slopes = [cholesky(s, k) * diff(force, field(s)) for s in range(k, t + 1)]
        averages[f"E_fg{k}"] = sqrt(delta) * sum(slopes)
        averages[f"E_ff{k}"] = chain.mean(force * chain.forces[k - 1])
    values = point | {Symbol(name, real=True): (alpha * v).subs(point) for name, v in averages.items()}
    equations = channel_equations(t)
    assert {s.name for s in equations.inputs} == {*averages, *(cholesky(t, k).name for k in range(1, t))}
    for conjugate, value in expected.items():
        assert simplify(equations.outputs[conjugate.name].subs(values) - value) == 0, conjugate
    assert simplify(equations.outputs["bias"].subs(values) - diff(energetic, bias(t)).subs(point)) == 0


@pytest.mark.parametrize("t", [1, 2])
def test_gradient_of_the_potential_numerically(t):
    """mpmath differences of Phi, with E_M of the square loss, vanish where both halves hold."""
    chain, point = SquareChain(t), physical_point(t)
    phi = free_energy(t)
    mean_envelope = alpha * chain.mean(chain.envelopes[-1])
    order = order_parameters(t)
    constants = {c: rational(i) for i, c in enumerate(phi.constants)}
    hats = {c: rational(i + 2) for i, c in enumerate(conjugates(t))}
    full = phi.outputs["value"].subs(phi.inputs[-1], mean_envelope).subs(constants)
    variables = [*order, *conjugates(t)]
    frozen = {k: v for k, v in point.items() if k not in variables}
    function = sympy.lambdify(variables, full.subs(frozen), modules="mpmath")
    at = [mpmath.mpf(point[v].p) / point[v].q for v in order] + [mpmath.mpf(v.p) / v.q for v in hats.values()]

    prior = prior_equations(t)
    prior_values = {n: float(e.subs(hats).subs(constants)) for n, e in prior.outputs.items()}
    for position, variable in enumerate(conjugates(t), start=len(order)):
        slope = mpmath.diff(function, tuple(at), tuple(int(i == position) for i in range(len(at))))
        partner = {magnetization_hat(t): (magnetization(t), -1)}
        for s in range(1, t + 1):
            half = Rational(1, 2) if s == t else 1
            partner[overlap_hat(t, s)] = (response(t, s), -half)
            partner[response_hat(t, s)] = (overlap(t, s), half)
        order_parameter, coefficient = partner[variable]
        expected = coefficient * (point[order_parameter] - prior_values[order_parameter.name])
        assert float(slope) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_prior_equations_against_the_linear_weights(t):
    """Build w_t = (mh v + xi_t - sum Vh w_s)/L explicitly; moments and responses from the Gaussian v, xi."""
    hats = {c: rational(i) for stage in range(1, t + 1) for i, c in enumerate(conjugates(stage), start=3 * stage)}
    strength = {s: rational(s + 4) for s in range(1, t + 1)}
    xi = [random_field(s) for s in range(1, t + 1)]
    weights = []
    for s in range(1, t + 1):
        drive = hats[magnetization_hat(s)] * teacher_direction + xi[s - 1]
        drive -= sum(hats[response_hat(s, r)] * weights[r - 1] for r in range(1, s))
        weights.append(sympy.expand(drive / (strength[s] + hats[response_hat(s, s)])))

    def mean(first, second):
        total = diff(first, teacher_direction) * diff(second, teacher_direction)
        for i, a in enumerate(xi, start=1):
            for j, b in enumerate(xi, start=1):
                total += diff(first, a) * diff(second, b) * hats[overlap_hat(i, j)]
        return total

    known: dict[str, sympy.Expr] = {}
    for s in range(1, t + 1):
        equations = conditional_moments(s)
        values = {Symbol(name, real=True): value for name, value in known.items()} | hats | {ridge: strength[s]}
        new = {name: output.subs(values) for name, output in equations.outputs.items()}
        assert new[f"mu_{s}"] == mean(weights[s - 1], teacher_direction)
        for r in range(1, s + 1):
            assert new[f"B_{s}{r}"] == mean(weights[s - 1], weights[r - 1])
            assert new[f"G_{s}{r}"] == diff(weights[s - 1], xi[r - 1])
        known |= new
    values = {Symbol(name, real=True): value for name, value in known.items()} | hats
    values |= {ridge: strength[t], eta: Rational(2, 5)}
    outputs = prior_equations(t).outputs
    assert list(outputs) == [p.name for p in order_parameters(t)]
    assert simplify(outputs[f"m_{t}"].subs(values) - Rational(2, 5) * known[f"mu_{t}"]) == 0
    for s in range(1, t + 1):
        assert simplify(outputs[f"Q_{t}{s}"].subs(values) - Rational(2, 5) * known[f"B_{t}{s}"]) == 0
        assert simplify(outputs[f"V_{t}{s}"].subs(values) - Rational(2, 5) * known[f"G_{t}{s}"]) == 0


@pytest.mark.parametrize("function", [prior_equations, channel_equations, conditional_moments, cholesky_update])
def test_jacobians(function):
    equations = function(2)
    assert equations.jacobian.shape == (len(equations.outputs), len(equations.inputs))
    for row, output in enumerate(equations.outputs.values()):
        for column, variable in enumerate(equations.inputs):
            assert simplify(equations.jacobian[row, column] - diff(output, variable)) == 0


def test_halves_fit_together():
    for t in (1, 2, 3):
        assert [s.name for s in prior_equations(t).inputs] == list(channel_equations(t).outputs)[:-1]
        assert [s.name for s in free_energy(t).inputs[: 2 * t + 1]] == list(prior_equations(t).outputs)


def test_one_stage_reads_as_in_the_books():
    outputs = prior_equations(1).outputs
    stiff = ridge + response_hat(1, 1)
    assert simplify(outputs["m_1"] - eta * magnetization_hat(1) / stiff) == 0
    assert simplify(outputs["V_11"] - eta / stiff) == 0
    channel = channel_equations(1).outputs
    assert channel["Vh_11"] == -delta * Symbol("E_df", real=True)


def test_the_prior_changes_the_equations():
    default, pulled = prior_equations(2), prior_equations(2, ridge_towards(1))
    assert prior_equations(2, GaussianRidgePrior) == default
    mu, b11 = Symbol("mu_1", real=True), Symbol("B_11", real=True)
    added = eta * ridge / (ridge + response_hat(2, 2))
    assert simplify(pulled.outputs["m_2"] - default.outputs["m_2"] - added * mu) == 0
    assert simplify(pulled.outputs["Q_21"] - default.outputs["Q_21"] - added * b11) == 0
    double = QuadraticPrior(lambda w, earlier: ridge * w**2)
    assert simplify(prior_equations(1, double).outputs["V_11"] - eta / (2 * ridge + response_hat(1, 1))) == 0
    with pytest.raises(ValueError, match="quadratic"):
        entropic_potential(1, QuadraticPrior(lambda w, earlier: ridge * w**4))


def test_cholesky_update():
    factor = Matrix(3, 3, lambda i, j: rational(3 * i + j) if j <= i else 0)
    overlaps = factor * factor.T
    values = {cholesky(t, k): factor[t - 1, k - 1] for t in (1, 2) for k in range(1, t + 1)}
    values |= {overlap(3, s): overlaps[2, s - 1] for s in (1, 2, 3)}
    outputs = cholesky_update(3).outputs
    assert [outputs["C_31"].subs(values), outputs["C_32"].subs(values)] == [factor[2, 0], factor[2, 1]]
    assert outputs["q_perp"].subs(values) == factor[2, 2] ** 2


def square_loss_saddle(values, iterations=400):
    """Fixed point of the two halves for one stage of square loss with a bias, in floats."""
    prior, channel = prior_equations(1), channel_equations(1)
    to_order = sympy.lambdify(prior.inputs, [e.subs(values) for e in prior.outputs.values()], modules="math")
    to_hats = sympy.lambdify(channel.inputs, [e.subs(values) for e in channel.outputs.values()], modules="math")
    a, r, d = (float(values[s]) for s in (alpha, rho, delta))
    m, q, v = 0.1, 1.0, 1.0
    for _ in range(iterations):
        scale, tilt = 1 + d * v, 2 * r - 1
        b = tilt * (1 - m)
        spread = (1 - m) ** 2 + b**2 - 2 * tilt * b * (1 - m) + d * q
        *hats, residual = to_hats(
            a * (1 - m - tilt * b) / scale, a * (tilt * (1 - m) - b) / scale, a * spread / scale**2, -a / scale
        )
        m, q, v = to_order(*hats)
        assert abs(residual) < 1e-12
    return (m, q, v), hats, spread


def test_square_loss_closed_form_and_energy():
    """V solves the quadratic of ridge regression; -Phi = alpha E[l] + ridge/2 Q at the saddle."""
    values = {alpha: 1.5, rho: 0.2, delta: 0.8, ridge: 0.3, eta: 1.0}
    (m, q, v), hats, spread = square_loss_saddle(values)
    a, d, lam = values[alpha], values[delta], values[ridge]
    root = (-(lam + a * d - d) + ((lam + a * d - d) ** 2 + 4 * d * lam) ** 0.5) / (2 * d * lam)
    assert v == pytest.approx(root, rel=1e-10)
    phi = free_energy(1)
    envelope = a * spread / (2 * (1 + d * v))
    at = dict(zip(phi.inputs, (m, q, v, *hats, envelope), strict=True))
    loss = spread / (2 * (1 + d * v) ** 2)
    assert -float(phi.outputs["value"].subs(at).subs(values)) == pytest.approx(a * loss + lam * q / 2, abs=1e-10)


def test_unknown_symbols_are_caught():
    with pytest.raises(ValueError, match="x depends on"):
        Equations.build([Symbol("a")], [], {"x": Symbol("a") + Symbol("c")})


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_bad_stage(bad):
    with pytest.raises(ValueError, match="stage"):
        prior_equations(bad)


def test_long_chains_are_affordable():
    start = time.perf_counter()
    for function in (prior_equations, channel_equations, conditional_moments, cholesky_update, free_energy):
        function(5)
    assert time.perf_counter() - start < 10
