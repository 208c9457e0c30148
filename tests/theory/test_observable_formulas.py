"""Formulas of the observables against numerical integration and known values."""

import mpmath
import pytest
import sympy
from sympy import symbols

from theory import CrossEntropy, Distillation, observables
from theory.envelope import gamma
from theory.symbols import TEACHER, h, y

M, B, Q, DELTA, RHO = 0.7, -0.3, 1.4, 0.9, 0.2


def test_test_error_is_the_weight_of_the_wrong_side():
    width = mpmath.sqrt(DELTA * Q)
    expected = RHO * mpmath.ncdf(-(M + B) / width) + (1 - RHO) * mpmath.ncdf(-(M - B) / width)
    assert float(observables.test_error(M, B, Q, DELTA, RHO)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("a", "d"), [(2.0, 1.0), (0.5, 2.0)])
def test_bayes_error_of_balanced_classes(a, d):
    closed = mpmath.ncdf(-mpmath.sqrt(a / (d * (a + d))))
    assert float(observables.bayes_error(a, d, 0.5)) == pytest.approx(float(closed), rel=1e-12)
    masked = observables.bayes_error(a, d, 0.3, 0.5)
    assert float(masked) == pytest.approx(float(observables.bayes_error(2 * a, 2 * d, 0.3)), rel=1e-12)


def test_bayes_bias_is_optimal():
    """No m, b does better: the error as a function of the bias has its minimum at the formula's."""
    alpha, delta, b = 2.0, 1.0, symbols("b")
    q = 1 + delta / alpha
    error = sympy.lambdify(b, observables.test_error(1, b, q, delta, RHO), modules="math")
    best = float(observables.bayes_error(alpha, delta, RHO))
    assert best <= min(error(k / 20) for k in range(-60, 60)) + 1e-12


def test_agreement_against_integration():
    m, b, q = (0.7, 0.2), (-0.3, 0.1), (1.4, 0.8, 0.6)
    total = 0
    for weight, s in ((RHO, 1), (1 - RHO, -1)):
        mean = [s * m[i] + b[i] for i in (0, 1)]
        width = [mpmath.sqrt(DELTA * q[i]) for i in (0, 1)]
        slope, rest = q[2] / q[0], mpmath.sqrt(DELTA * (q[1] - q[2] ** 2 / q[0]))

        def both(side, mean=mean, width=width, slope=slope, rest=rest):
            def integrand(z):
                second = mean[1] + slope * width[0] * z
                return mpmath.npdf(z) * mpmath.ncdf(side * second / rest)

            edge = -mean[0] / width[0]
            return mpmath.quad(integrand, [edge, edge + side * 12]) * side

        total += weight * (both(1) + both(-1))
    found = observables.agreement(m, b, q, DELTA, RHO).evalf()
    assert float(found) == pytest.approx(float(total), abs=1e-9)


def test_agreement_with_itself_is_one():
    same = observables.agreement((M, M), (B, B), (Q, Q, Q), DELTA, RHO).evalf()
    assert float(same) == pytest.approx(1.0, abs=1e-8)


def test_logit_distance():
    assert observables.logit_distance((1, 1), (2, 2), (3, 3, 3), DELTA, RHO) == 0
    m1, m2, b1, b2, r = symbols("m1 m2 b1 b2 r")
    distance = sympy.expand(observables.logit_distance((m1, m2), (b1, b2), (0, 0, 0), 1, r))
    expected = (m1 - m2) ** 2 + (b1 - b2) ** 2 + 2 * (2 * r - 1) * (m1 - m2) * (b1 - b2)
    assert sympy.expand(distance - expected) == 0


def test_calibration_is_bayes_rule():
    slope, offset = observables.calibration(M, B, Q, DELTA, RHO)
    variance = DELTA * Q

    def density(x, s):
        return mpmath.exp(-((x - s * M - B) ** 2) / (2 * variance))

    for x in (-1.0, 0.4, 2.0):
        odds = mpmath.log(RHO * density(x, 1) / ((1 - RHO) * density(x, -1)))
        assert float(slope * x + offset) == pytest.approx(float(odds), rel=1e-10)


def test_bayes_estimator_has_the_calibrated_offset():
    q = 1.5
    bias = DELTA * q / 2 * mpmath.log(RHO / (1 - RHO))
    _, offset = observables.calibration(1, bias, q, DELTA, RHO)
    assert abs(float(offset)) < 1e-12


@pytest.mark.parametrize("b", [-1.2, 0.0, 0.8])
def test_hinge_moment_against_integration(b):
    def integrand(z):
        return mpmath.npdf(z) * max(mpmath.sqrt(DELTA) * z - M - b, 0) ** 2

    edge = (M + b) / mpmath.sqrt(DELTA)
    expected = mpmath.quad(integrand, [edge, edge + 15])
    assert float(observables.hinge_moment(M, b, DELTA)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    ("delta", "rho", "threshold"),
    [(0.5, 0.5, 6.6628), (1, 0.5, 3.7000), (2, 0.5, 2.7329), (1, 0.2, 4.8490), (2, 0.2, 3.6071)],
)
def test_separability_threshold(delta, rho, threshold):
    m, b = symbols("m b")
    ratio = sympy.lambdify((m, b), observables.separability_ratio(m, b, delta, rho), modules="math")
    place, step = [0.5, 0.0], 0.25
    while step > 1e-5:
        moves = [(place[0] + i * step, place[1] + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        best = max((move for move in moves if abs(move[0]) < 1), key=lambda move: ratio(*move))
        if list(best) == place:
            step /= 2
        place = list(best)
    assert ratio(*place) == pytest.approx(threshold, abs=1e-4)


def test_training_threshold_is_where_the_proximal_point_vanishes():
    for loss in (CrossEntropy(0.1), Distillation(0.4, 2.0)):
        threshold = observables.training_threshold(loss)
        assert sympy.simplify(threshold - gamma * loss.gradient.subs(h, 0)) == 0
        assert threshold.free_symbols <= {gamma, y, TEACHER, *loss.symbols}
    half = observables.training_threshold(CrossEntropy()).subs({y: 1, CrossEntropy().symbols[0]: 0})
    assert half == -gamma / 2
    assert float(observables.training_error(-0.5, 0.3, 2.0, 1)) == pytest.approx(float(mpmath.ncdf(-0.4)))
    assert float(observables.training_error(-0.5, 0.3, 2.0, -1)) == pytest.approx(float(mpmath.ncdf(0.4)))


def test_cosines():
    assert observables.cosine(2, 4, 1) == 1
    assert observables.signal_cosine(3, 9) == 1
