"""What inputs and features are, and what is refused."""

import math

import numpy as np
import pytest
from scipy import integrate, special

from numerics.models import (
    Chain,
    Estimator,
    Frozen,
    GaussianMixture,
    LinearRule,
    ParameterError,
    PowerLaw,
    RandomFeatures,
    Spectrum,
    check_fit,
    parameter_paths,
    parameter_value,
    with_parameter,
)
from numerics.models.stages import BayesOptimal
from theory.losses import CrossEntropy, Distillation

CLOSED = {
    "relu": (lambda u: max(u, 0.0), 0.0),
    "sign": (np.sign, 0.0),
    "erf": (special.erf, None),
    "tanh": (math.tanh, None),
}


@pytest.mark.parametrize("variance", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("activation", [*CLOSED, "h + h**2/4"])
def test_moments_of_an_activation_are_its_gaussian_averages(activation: str, variance: float) -> None:
    function = CLOSED[activation][0] if activation in CLOSED else lambda u: u + u**2 / 4
    deviation = math.sqrt(variance)

    def average(integrand) -> float:
        density = lambda g: integrand(function(deviation * g), g) * math.exp(-0.5 * g * g) / math.sqrt(2 * math.pi)  # noqa: E731
        return sum(integrate.quad(density, *ends, epsabs=1e-13, epsrel=1e-12)[0] for ends in ((-12, 0), (0, 12)))

    mean, slope = average(lambda f, g: f), average(lambda f, g: f * g) / deviation
    rest = average(lambda f, g: f * f) - mean**2 - variance * slope**2
    found = RandomFeatures(1.0, activation).moments(variance)
    assert found == pytest.approx((mean, slope, rest), abs=1e-10)


def kernel(activation: str, variance: float, rho: float) -> float:
    """Covariance of two features: arc-cosine and arcsine kernels (Cho & Saul 2009; Williams 1998), or Gauss-Hermite."""
    if activation == "relu":
        return variance / (2 * math.pi) * (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho)) - 1)
    if activation == "sign":
        return 2 / math.pi * math.asin(rho)
    if activation == "erf":
        return 2 / math.pi * math.asin(2 * variance * rho / (1 + 2 * variance))
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    features, deviation = RandomFeatures(1.0, activation), math.sqrt(variance)
    other = rho * nodes[:, None] + math.sqrt(1 - rho**2) * nodes
    values = features(deviation * nodes)
    return weights @ (values * (features(deviation * other) @ weights)) - (weights @ values) ** 2


@pytest.mark.parametrize("rho", [-0.5, 0.3])
@pytest.mark.parametrize("activation", ["relu", "sign", "erf", "tanh", "h + h**2/4"])
def test_covariance_of_two_features_is_that_of_correlated_fields(activation: str, rho: float) -> None:
    features, variance = RandomFeatures(1.0, activation), 1.7
    found = features.covariance(np.array([[1.0, rho], [rho, 1.0]]), variance)
    assert found[0, 1] == found[1, 0] == pytest.approx(kernel(activation, variance, rho), rel=1e-7)
    moments = features.moments(variance)
    assert found[0, 0] == pytest.approx(variance * moments.slope**2 + moments.rest, rel=1e-12)


@pytest.mark.parametrize("ratio", [0.1, 0.999, 1.0, 1.02, 7.0])
def test_the_spectrum_of_features_is_marchenko_pasturs(ratio: float) -> None:
    """Number of directions, moments, and the resolvent, whose closed form is a root of a quadratic equation."""
    values, shares, of_features, of_inputs = RandomFeatures(ratio, "tanh").spectrum(1.0)
    assert shares.sum() == pytest.approx(min(ratio, 1.0), abs=1e-13)
    assert shares.sum() + of_features == pytest.approx(ratio, abs=1e-13)
    assert shares.sum() + of_inputs == pytest.approx(1.0, abs=1e-13)
    assert shares @ values == pytest.approx(ratio, rel=1e-12)
    assert shares @ values**2 == pytest.approx(ratio * (1 + ratio), rel=1e-12)
    for z in (0.5, 2.0):
        b = z + ratio - 1
        resolvent = (-b + math.sqrt(b**2 + 4 * z)) / (
            2 * z
        )  # of the N x N matrix F^T F/N: z g^2 + (z + ratio - 1) g = 1
        assert shares @ (1 / (values + z)) + of_inputs / z == pytest.approx(resolvent, rel=1e-10)


def test_groups_follow_the_order_of_the_coordinates() -> None:
    inputs = Spectrum([4.0, 1.0], multiplicity=[1.0, 3.0])
    assert inputs.groups_of(8).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert inputs.signal_variance == 4.0 * 0.25 + 1.0 * 0.75
    law = PowerLaw(capacity=2.0, source=0.3, size=400)
    assert law.shares @ law.variances == pytest.approx(1.0)
    assert law.signal_variance == pytest.approx(1.0)
    assert law.variances[9] / law.variances[0] == pytest.approx(10.0**-2)
    assert (law.variances * law.signals)[9] / (law.variances * law.signals)[0] == pytest.approx(10.0**-2.2)


def test_exponents_and_features_are_parameters() -> None:
    chain = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1, features=RandomFeatures(2.0))])
    data = LinearRule(1.0, output="sign", inputs=PowerLaw(size=50))
    assert {"capacity", "source"} < set(parameter_paths(chain, data))
    moved, changed = with_parameter(*with_parameter(data, chain, "capacity", 2.5), "student.features", 3.0)
    assert parameter_value(moved, changed, "capacity") == 2.5
    assert parameter_value(moved, changed, "student.features") == 3.0
    assert changed[1].features == RandomFeatures(3.0)
    with pytest.raises(ParameterError, match=r"ratio must be a number in \(0, 10000\], got 0"):
        with_parameter(data, chain, "student.features", 0)
    with pytest.raises(ParameterError, match=r"unknown parameter 'teacher\.features'"):
        with_parameter(data, chain, "teacher.features", 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spectrum([]), r"eigenvalues must have one axis of 1 to 20000 entries, got shape \(0,\)"),
        (lambda: Spectrum([1.0, -2.0]), "eigenvalues must be positive numbers, got -2"),
        (lambda: Spectrum([1.0, math.nan]), "eigenvalues must be positive numbers, got nan"),
        (lambda: Spectrum(3.0), "eigenvalues must be a sequence of positive numbers, got 3.0"),
        (lambda: Spectrum("12"), "eigenvalues must be a sequence"),
        (lambda: Spectrum([[1.0]]), r"eigenvalues must have one axis .*, got shape \(1, 1\)"),
        (
            lambda: Spectrum([1.0, 2.0], squared_signal=[1.0]),
            "squared_signal must have as many entries as eigenvalues, 2, got 1",
        ),
        (lambda: Spectrum([1.0, 2.0], squared_signal=[0.0, 0.0]), "squared_signal must have an entry > 0"),
        (lambda: Spectrum([1.0, 2.0], multiplicity=[1.0, 0.0]), "multiplicity must be positive numbers, got 0"),
        (lambda: PowerLaw(capacity=-1.0), r"capacity must be a number in \[0, 20\], got -1"),
        (lambda: PowerLaw(size=0), "size must be"),
        (lambda: PowerLaw(size=10**6), "size must be at most 20000, got 1000000"),
        (
            lambda: GaussianMixture(1.0, inputs=[1.0]),
            r"inputs must be Isotropic, a Spectrum, a PowerLaw or Dense, got \[1.0\]",
        ),
        (lambda: RandomFeatures(-1.0), r"ratio must be a number in \(0, 10000\], got -1"),
        (
            lambda: RandomFeatures(1.0, "swish"),
            "activation must be one of relu, erf, tanh, sign or a smooth formula of h: unknown",
        ),
        (lambda: RandomFeatures(1.0, "abs(h)"), "activation must be one of .* smooth formula of h"),
        (lambda: RandomFeatures(1.0, "h*y"), "activation must be a formula of h alone, got 'h\\*y'"),
        (lambda: RandomFeatures(1.0, 3), "activation must be one of .*, got 3"),
        (
            lambda: RandomFeatures(1.0, "3*h").spectrum(1.0),
            r"activation '3\*h' must not be linear on inputs of variance 1",
        ),
        (lambda: RandomFeatures(1.0, "exp(h**8)").moments(1.0), "activation .* must be finite"),
        (
            lambda: Estimator(CrossEntropy(), 0.1, features="relu"),
            "features must be RandomFeatures, FixedFeatures, a LinearMap or None, got 'relu'",
        ),
    ],
)
def test_bad_inputs_are_refused_in_one_line(make, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


FEATURES = RandomFeatures(2.0)


@pytest.mark.parametrize(
    ("data", "stages", "message"),
    [
        ({}, [Estimator(CrossEntropy(), 0.1, eta=0.5, features=FEATURES)], "eta of teacher must be 1 beside random features"),
        ({}, [Estimator(CrossEntropy(), 0.1, features=FEATURES), Estimator(CrossEntropy(), 0.1, features=RandomFeatures(1.0))],
         "features of student must be those of the other stages that have some, .*: a chain has one network"),
        ({"inputs": Spectrum([1.0, 2.0])}, [Estimator(CrossEntropy(), 0.1, features=FEATURES)], "inputs must be Isotropic where"),
        ({"inputs": Spectrum([1.0, 2.0])}, [BayesOptimal()], "teacher is Bayes-optimal for white inputs"),
        ({"inputs": Spectrum([1.0, 2.0])}, [Frozen(0.5, 1.0), Estimator(CrossEntropy(), 0.1)], "teacher has given weights"),
    ],
)  # fmt: skip
def test_what_is_known_for_white_inputs_alone_is_refused(data: dict, stages: list, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_fit(GaussianMixture(1.0, **data), Chain.of(stages))
