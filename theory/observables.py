"""What is read off a saddle point, as expressions of the order parameters.

On a test point of class s = +-1 the logit of stage t is Gaussian with mean s m_t + b_t, and the logits of
two stages have covariance Delta Q_ts.  Every function takes symbols or numbers and returns a SymPy
expression.  Lengths are in units in which the class means are +-v/sqrt(N) with v_i of unit variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sympy import (
    Expr,
    Integral,
    Poly,
    Symbol,
    asin,
    cos,
    erf,
    exp,
    expand_log,
    log,
    pi,
    sin,
    sqrt,
    sympify,
)
from sympy import expand as expand_expression

from theory.envelope import gamma
from theory.losses import Loss
from theory.symbols import h

theta = Symbol("theta", real=True)
"""Integration variable of the bivariate normal."""


def normal_cdf(x: Expr) -> Expr:
    """Phi(x) = (1 + erf(x/sqrt 2))/2."""
    return (1 + erf(sympify(x) / sqrt(2))) / 2


def normal_density(x: Expr) -> Expr:
    """Density of the standard normal."""
    return exp(-(sympify(x) ** 2) / 2) / sqrt(2 * pi)


def field_mean(m: Expr, b: Expr, sign: Expr) -> Expr:
    """Mean of a test logit in the class of this sign."""
    return sympify(sign) * m + b


def field_width(q: Expr, delta: Expr) -> Expr:
    """Standard deviation of a test logit within a class, sqrt(Delta Q)."""
    return sqrt(sympify(delta) * q)


def _over_classes(quantity, rho: Expr) -> Expr:
    """Mean over the label of ``quantity(sign)``."""
    return sympify(rho) * quantity(1) + (1 - sympify(rho)) * quantity(-1)


def test_error(m: Expr, b: Expr, q: Expr, delta: Expr, rho: Expr) -> Expr:
    """P(s h < 0) on a test point."""
    width = field_width(q, delta)
    return _over_classes(lambda s: normal_cdf(-s * field_mean(m, b, s) / width), rho)


def bayes_bias(q: Expr, delta: Expr, rho: Expr) -> Expr:
    """Bias of least test error for weights with m = 1: (Delta Q/2) log(rho/(1-rho)), where the true log-odds vanish."""
    q, delta, rho = map(sympify, (q, delta, rho))
    return delta * q / 2 * log(rho / (1 - rho))


def best_bias(m: Expr, q: Expr, delta: Expr, rho: Expr) -> Expr:
    """Bias of least test error for weights of any overlap m > 0: Delta Q/(2m) log(rho/(1-rho))."""
    return bayes_bias(q, delta, rho) / sympify(m)


def direction_error(m: Expr, q: Expr, delta: Expr, rho: Expr) -> Expr:
    """Test error of weights with m > 0 after the best threshold; the length of the weights does not matter."""
    return test_error(m, best_bias(m, q, delta, rho), q, delta, rho)


def bayes_error(alpha: Expr, delta: Expr, rho: Expr, eta: Expr = 1) -> Expr:
    """Smallest test error from M = alpha N samples, by an estimator that sees a fraction eta of the inputs.

    The posterior mean of v has m = 1, Q = 1 + Delta/alpha, and the bias of :func:`bayes_bias`.  With a fraction of
    the inputs, alpha and Delta are both divided by it.
    """
    alpha, delta, rho, eta = map(sympify, (alpha, delta, rho, eta))
    alpha, delta = alpha / eta, delta / eta
    q = 1 + delta / alpha
    return test_error(1, bayes_bias(q, delta, rho), q, delta, rho)


def field_of(level: Expr, slope: Expr) -> Expr:
    """Field u whose proximal point is ``level``: u = h + gamma l'(h) there, gamma = Delta V_tt, ``slope`` = l'(level)."""
    return sympify(level) + gamma * slope


def training_threshold(loss: Loss) -> Expr:
    """Field u below which the proximal point is negative: u = gamma l'(0).

    The proximal point grows with u and passes 0 there.  Symbols: gamma = Delta V_tt, y, earlier logits and
    parameters.
    """
    return field_of(0, loss.gradient.subs(h, 0))


def training_error(threshold: Expr, mean: Expr, width: Expr, sign: Expr) -> Expr:
    """P(s h < 0) on a training point, its field Gaussian (``mean``, ``width``) given the earlier stages."""
    return normal_cdf(sympify(sign) * (sympify(threshold) - mean) / width)


def orthant_integrand(a: Expr, b: Expr) -> Expr:
    """Integrand in ``theta`` of the dependent part of the bivariate normal distribution function."""
    a, b = sympify(a), sympify(b)
    return exp(-(a**2 + b**2 - 2 * a * b * sin(theta)) / (2 * cos(theta) ** 2)) / (2 * pi)


def bivariate_normal_cdf(a: Expr, b: Expr, correlation: Expr) -> Expr:
    """P(X < a, Y < b) of standard normals with this correlation, as one smooth integral (Plackett 1954)."""
    dependent = Integral(orthant_integrand(a, b), (theta, 0, asin(sympify(correlation))))
    return normal_cdf(a) * normal_cdf(b) + dependent


def agreement(
    m: Sequence[Expr],
    b: Sequence[Expr],
    q: Sequence[Expr],
    delta: Expr,
    rho: Expr,
    cdf: Callable[[Expr, Expr, Expr], Expr] = bivariate_normal_cdf,
) -> Expr:
    """P(two stages label a test point alike); ``q`` = (Q_tt, Q_ss, Q_ts), m and b of both stages, ``cdf`` that of two normals."""
    correlation = cosine(q[2], q[0], q[1])

    def same(s: int) -> Expr:
        x, y = (field_mean(m[i], b[i], s) / field_width(q[i], delta) for i in (0, 1))
        return cdf(x, y, correlation) + cdf(-x, -y, correlation)

    return _over_classes(same, rho)


def right_and_wrong(
    m: Sequence[Expr],
    b: Sequence[Expr],
    q: Sequence[Expr],
    delta: Expr,
    rho: Expr,
    cdf: Callable[[Expr, Expr, Expr], Expr] = bivariate_normal_cdf,
) -> Expr:
    """P(the first stage is right and the second wrong on a test point); arguments as for ``agreement``."""
    correlation = cosine(q[2], q[0], q[1])

    def both(s: int) -> Expr:
        x, y = (s * field_mean(m[i], b[i], s) / field_width(q[i], delta) for i in (0, 1))
        return cdf(x, -y, -correlation)

    return _over_classes(both, rho)


def logit_distance(m: Sequence[Expr], b: Sequence[Expr], q: Sequence[Expr], delta: Expr, rho: Expr) -> Expr:
    """Mean squared difference of the logits of two stages on test points; arguments as for ``agreement``."""
    spread = sympify(delta) * (sympify(q[0]) + q[1] - 2 * sympify(q[2]))
    return spread + _over_classes(lambda s: (s * (sympify(m[0]) - m[1]) + sympify(b[0]) - b[1]) ** 2, rho)


def calibration(m: Expr, b: Expr, q: Expr, delta: Expr, rho: Expr) -> tuple[Expr, Expr]:
    """(slope, offset) of the true log-odds of y = 1 against the model's logit; (1, 0) is calibrated."""
    m, b, q, delta, rho = map(sympify, (m, b, q, delta, rho))

    def log_likelihood(s: int) -> Expr:
        return -((h - field_mean(m, b, s)) ** 2) / (2 * delta * q)

    odds = expand_expression(log_likelihood(1) - log_likelihood(-1))
    slope, offset = Poly(odds, h).all_coeffs() if odds.has(h) else (odds * 0, odds)
    return slope, offset + expand_log(log(rho / (1 - rho)))


def cosine(q_ts: Expr, q_tt: Expr, q_ss: Expr) -> Expr:
    """Cosine of the weights of two stages."""
    return sympify(q_ts) / sqrt(sympify(q_tt) * q_ss)


def signal_cosine(m: Expr, q: Expr) -> Expr:
    """Cosine of the weights with the class mean v."""
    return sympify(m) / sqrt(sympify(q))


def hinge_moment(m: Expr, b: Expr, delta: Expr) -> Expr:
    """E[(sqrt(Delta) z - m - b)_+^2] over a standard normal z.

    With a = (m+b)/sqrt(Delta) it is Delta {(1+a^2) Phi(-a) - a phi(a)}.
    """
    delta = sympify(delta)
    a = (sympify(m) + b) / sqrt(delta)
    return delta * ((1 + a**2) * normal_cdf(-a) - a * normal_density(a))


def separability_ratio(m: Expr, b: Expr, delta: Expr, rho: Expr, label_noise: Expr = 0) -> Expr:
    """The alpha up to which weights of unit norm, overlap m and bias b can separate the samples by their labels.

    Its maximum over |m| < 1 and b is the separability threshold alpha*(Delta, rho); with a fraction eta of
    the inputs the threshold is eta alpha*(Delta/eta, rho).  The share ``label_noise`` of the labels is flipped.
    """
    m, b, delta, theta = map(sympify, (m, b, delta, label_noise))
    shortfall = _over_classes(
        lambda s: (1 - theta) * hinge_moment(m, s * b, delta) + theta * hinge_moment(-m, -s * b, delta), rho
    )
    return delta * (1 - m**2) / shortfall


def interpolation_threshold(eta: Expr) -> Expr:
    """alpha above which a fraction eta of the weights cannot fit all teacher's logits (pure distillation)."""
    return sympify(eta)
