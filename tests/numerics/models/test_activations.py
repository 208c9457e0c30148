"""Covariances of activations on fields of any two variances."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit

from numerics.models import ParameterError
from numerics.models.activations import SERIES_ERROR, covariance_of, function_of, moments_of

KINDS = ("relu", "erf", "sign", "tanh", "h + h**2/4", "log(1 + exp(h))")
NODES, WEIGHTS = np.polynomial.legendre.leggauss(300)
REACH = 10.0


def mean_around(function, shifts: np.ndarray, deviation: float) -> np.ndarray:
    """E of a function of a field of these means and this deviation, on both sides of the kink at 0."""
    total = np.zeros(len(shifts))
    for k, shift in enumerate(shifts):
        kink = float(np.clip(-shift / deviation, -REACH, REACH))
        for low, high in ((-REACH, kink), (kink, REACH)):
            z = 0.5 * (high - low) * NODES + 0.5 * (high + low)
            density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
            total[k] += 0.5 * (high - low) * WEIGHTS @ (density * function(shift + deviation * z))
    return total


def by_integration(kinds: tuple[str, str], variances: tuple[float, float], rho: float) -> float:
    """Covariance, by integration over one field and the other given it."""
    one, other = (function_of(kind) for kind in kinds)
    first, second = (math.sqrt(variance) for variance in variances)

    def given(u: np.ndarray) -> np.ndarray:
        return mean_around(other, second * rho * u / first, second * math.sqrt(1.0 - rho**2))

    both = mean_around(lambda u: one(u) * given(u), np.zeros(1), first)[0]
    return both - mean_around(one, np.zeros(1), first)[0] * mean_around(other, np.zeros(1), second)[0]


@pytest.mark.parametrize("kinds", list(product(KINDS, KINDS)), ids=" and ".join)
def test_covariances_are_integrals(kinds: tuple[str, str]) -> None:
    variances, rho = (0.7, 2.3), 0.55
    field = rho * math.sqrt(variances[0] * variances[1])
    found = covariance_of(kinds, np.array([[field, -field]]), (np.array([0.7]), np.array([2.3, 2.3])))
    for value, sign in zip(found[0], (1.0, -1.0), strict=True):
        assert value == pytest.approx(by_integration(kinds, variances, sign * rho), abs=2e-9)


@pytest.mark.parametrize("kinds", [("erf", "erf"), ("relu", "relu"), ("tanh", "tanh"), ("tanh", "erf")])
def test_of_the_same_fields_they_are_variances(kinds: tuple[str, str]) -> None:
    """As limits of closed forms and of series, without being told that features are the same."""
    variances = np.array([0.3, 1.0])
    found = np.diag(covariance_of(kinds, np.diag(variances), (variances, variances)))
    one, other = (function_of(kind) for kind in kinds)
    for value, variance in zip(found, variances, strict=True):
        square = mean_around(lambda u: one(u) * other(u), np.zeros(1), math.sqrt(variance))[0]
        means = [moments_of(kind, np.array([variance])).mean[0] for kind in kinds]
        assert value == pytest.approx(square - means[0] * means[1], abs=2 * SERIES_ERROR)


def test_covariances_together_are_no_less_than_nothing() -> None:
    """Of different activations on common fields, some of them nearly parallel."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(30, 12)) * generator.uniform(0.3, 2.0, size=(30, 1))
    rows[1] = 1.3 * rows[0] + 0.1 * rows[1]
    fields, kinds = rows @ rows.T / 12, ("relu", "erf", "tanh")
    variances = np.diag(fields).copy()
    blocks = [
        [covariance_of((one, other), fields, (variances, variances), same=one == other) for other in kinds]
        for one in kinds
    ]
    whole = np.block(blocks)
    np.testing.assert_allclose(whole, whole.T, atol=1e-14)
    assert np.linalg.eigvalsh(whole).min() > -1e-8


@pytest.mark.parametrize("kinds", [("tanh", "sign"), ("tanh", "tanh"), ("relu", "h/sqrt(1 + h**2)")])
def test_where_no_series_reaches_covariances_are_integrated(kinds: tuple[str, str]) -> None:
    """Of fields that are nearly the same and steep activations, and without a jump where the series takes over."""
    variances = np.array([30.0])
    for rho in (0.999, 0.9, 0.3, -0.95):
        found = covariance_of(kinds, rho * variances[:, None], (variances, variances))[0, 0]
        assert found == pytest.approx(by_integration(kinds, (30.0, 30.0), rho), abs=1e-8)
    found = covariance_of(kinds, variances[:, None], (variances, variances))[0, 0]
    one, other = map(function_of, kinds)
    means = [mean_around(function, np.zeros(1), math.sqrt(30.0))[0] for function in (one, other)]
    both = mean_around(lambda u: one(u) * other(u), np.zeros(1), math.sqrt(30.0))[0]
    assert found == pytest.approx(both - means[0] * means[1], abs=1e-8)


def test_what_is_too_steep_is_refused() -> None:
    variances = np.full(80, 30.0)
    fields = np.full((80, 80), 30.0)
    with pytest.raises(
        ParameterError, match=r"activations 'tanh' and 'sign' must be smoother on fields of variance 30: 256 "
    ):
        covariance_of(("tanh", "sign"), fields, (variances, variances))
    steep, one = "tanh(40*(h - 1))", np.ones(1)
    with pytest.raises(ParameterError, match="must be smoother on fields of variance 1 and cosine 1"):
        covariance_of((steep, "sign"), one[:, None], (one, one))


def brute(activation, deviation: float) -> tuple[float, float, float]:
    """Mean, slope and what is left, by adaptive quadrature."""

    def mean(function) -> float:
        edges = (-12.0, -1.0, -0.1, -1e-3, -1e-5, 0.0, 1e-5, 1e-3, 0.1, 1.0, 12.0)
        return sum(
            quad(lambda z: function(z) * math.exp(-0.5 * z**2) / math.sqrt(2 * math.pi), a, b, epsabs=0, epsrel=1e-12)[
                0
            ]
            for a, b in pairwise(edges)
        )

    first = mean(lambda z: activation(deviation * z))
    slope = mean(lambda z: z * activation(deviation * z)) / deviation
    return first, slope, mean(lambda z: activation(deviation * z) ** 2) - first**2 - (deviation * slope) ** 2


@pytest.mark.parametrize(
    ("formula", "activation"),
    [
        ("h/(1+exp(-h))", lambda u: u * expit(u)),
        ("softplus(h)", lambda u: math.log1p(math.exp(u)) if u < 30 else u),
        ("sigmoid(2*h) - 1/2", lambda u: expit(2 * u) - 0.5),
        ("tanh(1000*h)", lambda u: math.tanh(1000 * u)),
        ("sqrt(h**2 + 10**(-6))", lambda u: math.hypot(u, 1e-3)),
        ("exp(h**2/8)", lambda u: math.exp(u**2 / 8)),
        ("h**6", lambda u: u**6),
    ],
)
@pytest.mark.parametrize("variance", [0.04, 1.0])
def test_moments_of_formulas(formula: str, activation, variance: float) -> None:
    found = [float(moment[0]) for moment in moments_of(formula, np.array([variance]))]
    assert found == pytest.approx(brute(activation, math.sqrt(variance)), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("exp(h**2)", "finite mean square"), ("exp(h**2/4)", "finite mean square"), ("h*exp(h**2/2)", "finite mean square"),
        ("log(h)", "must be finite"), ("1/h", "must be smoother"), ("tanh(1000*(h-1))", "must be smoother"),
        ("10**(-300)*h", "must vary"), ("foo(h)", "a smooth formula of h: unknown symbols"),
    ],
)  # fmt: skip
def test_averages_that_are_not_known_are_refused(formula: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        moments_of(formula, np.array([1.0]))
    assert "h_teacher" not in str(caught.value)


def test_large_rows_of_a_steep_activation_give_signs() -> None:
    variances = np.array([1e4, 1e12, 1e20])
    steep, sign = moments_of("tanh", variances), moments_of("sign", variances)
    np.testing.assert_allclose(steep.slope[1:], sign.slope[1:], rtol=1e-5)
    np.testing.assert_allclose(steep.rest[1:], sign.rest[1:], rtol=1e-4)
