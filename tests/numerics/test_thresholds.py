"""Bounds, thresholds, ridge -> 0 limits: known values, their maximum principle, limits, finite size."""

import math

import numpy as np
import pytest
from mpmath import mp
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.svm import SVC
from sympy import Symbol, lambdify
from threadpoolctl import threadpool_limits

from numerics import Estimator, GaussianMixture, ParameterError, solve, thresholds
from numerics.thresholds import (
    bayes_error,
    bayes_error_known_means,
    interpolation_threshold,
    max_margin,
    minimum_norm_interpolator,
    separability_threshold,
)
from theory import observables
from theory.losses import CrossEntropy


def population_error(m, b, q, rho, delta):
    """Test error of weights with overlap m, squared norm q, bias b: Gaussian fields of variance Delta q."""
    width = np.sqrt(delta * q)
    return rho * norm.cdf(-(m + b) / width) + (1 - rho) * norm.cdf(-(m - b) / width)


@pytest.fixture(scope="module")
def ratio():
    """theory's alpha(m, b): what weights of unit norm with overlap m and bias b can separate, in mpmath."""
    symbols = [Symbol(name, real=True) for name in ("m", "b", "Delta", "rho", "theta")]
    return lambdify(symbols, observables.separability_ratio(*symbols), modules="mpmath")


@pytest.fixture(scope="module")
def hinge():
    """theory's E[(sqrt(Delta) z - m - b)_+^2], in mpmath."""
    symbols = [Symbol(name, real=True) for name in ("m", "b", "Delta")]
    return lambdify(symbols, observables.hinge_moment(*symbols), modules="mpmath")


# Separability


@pytest.mark.parametrize(
    ("rho", "delta", "eta", "expected"),
    [
        (0.5, 0.5, 1.0, 6.6628),
        (0.5, 1.0, 1.0, 3.7000),
        (0.5, 2.0, 1.0, 2.7329),
        (0.2, 1.0, 1.0, 4.8490),
        (0.2, 2.0, 1.0, 3.6071),
        (0.2, 1.0, 0.5, 1.804),
    ],
)
def test_separability_has_its_known_values(rho, delta, eta, expected):
    digit = 1e-3 if eta < 1 else 1e-4
    assert separability_threshold(rho, delta, eta) == pytest.approx(expected, abs=0.6 * digit)


def test_pure_noise_is_covers_problem():
    assert separability_threshold(0.5, math.inf) == pytest.approx(2, abs=1e-14)
    assert separability_threshold(0.5, 1e12) == pytest.approx(2, abs=1e-10)
    for rho in (0.2, 0.001):  # unbalanced labels: only the bias is left to choose
        pure = minimize(
            lambda b, rho=rho: sum(
                weight * ((1 + b[0] ** 2) * norm.cdf(sign * b[0]) + sign * b[0] * norm.pdf(b[0]))
                for sign, weight in ((-1, rho), (1, 1 - rho))
            ),
            [0.0],
            tol=1e-10,
        )
        assert separability_threshold(rho, math.inf) == pytest.approx(1 / pure.fun, rel=1e-9)


@pytest.mark.parametrize("rho", [0.001, 0.02, 0.2, 0.5])
@pytest.mark.parametrize(
    ("delta", "noise"),
    [(0.01, 0.0), (0.1, 0.0), (1.0, 0.0), (100.0, 0.0), (0.01, 1e-6), (0.1, 0.1), (1.0, 0.3), (1.0, 0.5), (100.0, 0.1)],
)
def test_separability_is_the_maximum_of_theorys_ratio(ratio, rho, delta, noise):
    """The ratio at the separator of nearly separability is alpha*; around it, it is smaller (40 digits)."""
    threshold = separability_threshold(rho, delta, label_noise=noise)
    edge = max_margin(threshold * (1 - 1e-13), rho, delta, label_noise=noise)
    rng = np.random.default_rng(4)
    with mp.workdps(40):
        at_edge = ratio(mp.mpf(edge.magnetization), mp.mpf(edge.bias), mp.mpf(delta), mp.mpf(rho), mp.mpf(noise))
        assert float(at_edge / threshold - 1) == pytest.approx(0, abs=1e-10)
        for step in (1e-4, 1e-2, 0.3):
            shift = step * rng.standard_normal((10, 2)) * math.sqrt(delta)
            for m, b in np.add(shift, [edge.magnetization, edge.bias]):
                if abs(m) < 1:
                    assert ratio(mp.mpf(m), mp.mpf(b), mp.mpf(delta), mp.mpf(rho), mp.mpf(noise)) < at_edge


def test_separability_agrees_with_a_general_purpose_optimiser():
    rng = np.random.default_rng(0)
    for _ in range(10):
        rho, delta = rng.uniform(0.02, 0.98), 10 ** rng.uniform(-0.7, 2)

        def inverse(point, rho=rho, delta=delta):
            m, b = math.tanh(point[0]), point[1]
            total = 0.0
            for sign, weight in ((1, rho), (-1, 1 - rho)):
                a = (m + sign * b) / math.sqrt(delta)
                total += weight * ((1 + a * a) * norm.sf(a) - a * norm.pdf(a))
            return math.log(total / (1 - m * m))

        found = minimize(inverse, [0.3, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13})
        assert separability_threshold(rho, delta) == pytest.approx(math.exp(-found.fun), rel=1e-9)


def test_separability_in_the_corners_of_the_box():
    """Finite, symmetric in the classes, falling with the noise and rising with the imbalance, everywhere."""
    noises = [0.001, 0.01, 0.03, 0.1, 0.5, 1.0, 10.0, 100.0, math.inf]
    table = np.array([[separability_threshold(rho, d) for d in noises] for rho in (0.5, 0.2, 0.02, 0.001)])
    mirror = np.array([[separability_threshold(rho, d) for d in noises] for rho in (0.5, 0.8, 0.98, 0.999)])
    assert np.all(np.isfinite(table))
    assert np.all(table >= 2)
    np.testing.assert_allclose(mirror, table, rtol=1e-10)
    assert np.all(np.diff(table, axis=1) < 0)
    assert np.all(np.diff(table, axis=0) > 0)


def test_separability_beyond_a_double_is_infinite():
    assert separability_threshold(0.5, 1e-4) == math.inf
    assert max_margin(3.0, 0.5, 1e-4).margin == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.8])
def test_student_is_a_smaller_noisier_problem(eta):
    assert separability_threshold(0.2, 1.0, eta) == pytest.approx(eta * separability_threshold(0.2, 1.0 / eta))
    assert bayes_error(1.5, 0.2, 1.0, eta) == pytest.approx(bayes_error(1.5 / eta, 0.2, 1.0 / eta))
    assert interpolation_threshold(eta) == eta
    for function in (max_margin, minimum_norm_interpolator):
        student, dense = function(0.3 * eta, 0.2, 1.0, eta), function(0.3, 0.2, 1.0 / eta)
        assert student.test_error == pytest.approx(dense.test_error, rel=1e-12)
    student, dense = max_margin(0.3 * eta, 0.2, 1.0, eta), max_margin(0.3, 0.2, 1.0 / eta)
    for name in ("margin", "magnetization", "bias"):
        assert getattr(student, name) == pytest.approx(math.sqrt(eta) * getattr(dense, name), rel=1e-12)


def test_a_failed_minimisation_is_an_error(monkeypatch):
    monkeypatch.setattr(thresholds, "MAX_NEWTON", 2)
    with pytest.raises(ArithmeticError, match=r"no convergence at rho=0\.2, delta/eta=2"):
        separability_threshold(0.2, 1.0, 0.5)


# Bayes error


def test_bayes_error_of_balanced_classes():
    alpha = np.array([[0.01, 0.3], [2.0, 100.0]])
    for delta in (0.05, 1.0, 30.0):
        expected = norm.cdf(-np.sqrt(alpha / (delta * (alpha + delta))))
        np.testing.assert_allclose(bayes_error(alpha, 0.5, delta), expected, rtol=1e-13)
        assert bayes_error_known_means(0.5, delta) == pytest.approx(norm.cdf(-1 / math.sqrt(delta)), rel=1e-13)


def test_bayes_error_keeps_its_digits_in_the_tail():
    assert bayes_error_known_means(0.5, 0.001) == pytest.approx(norm.cdf(-1 / math.sqrt(0.001)), rel=1e-12)


@pytest.mark.parametrize("rho", [0.02, 0.2, 0.7])
def test_bayes_error_limits_and_optimal_bias(rho):
    assert bayes_error(1e9, rho, 1.0) == pytest.approx(bayes_error_known_means(rho, 1.0), rel=1e-8)
    assert bayes_error(1e-6, rho, 1.0) == pytest.approx(min(rho, 1 - rho), rel=1e-12)
    assert bayes_error(2.0, rho, 1.0) == pytest.approx(bayes_error(2.0, 1 - rho, 1.0), rel=1e-13)
    q = 1.5  # Delta = 1, alpha = 2
    best = q / 2 * math.log(rho / (1 - rho))
    assert bayes_error(2.0, rho, 1.0) == pytest.approx(population_error(1, best, q, rho, 1.0), rel=1e-13)
    assert bayes_error(2.0, rho, 1.0) < population_error(1, best + np.array([-0.1, 0.1]), q, rho, 1.0).min()


def test_no_estimator_beats_bayes():
    alpha = np.array([0.05, 0.4, 0.7, 1.3])
    for rho, delta, eta in ((0.5, 1.0, 1.0), (0.2, 1.0, 1.0), (0.2, 0.3, 0.6), (0.1, 5.0, 0.5)):
        bound = bayes_error(alpha, rho, delta, eta)
        assert np.all(bound < max_margin(alpha, rho, delta, eta).test_error)
        assert np.all(bound < minimum_norm_interpolator(alpha, rho, delta, eta).test_error)


# Max margin


@pytest.mark.parametrize(
    ("alpha", "rho", "delta"), [(0.01, 0.2, 1.0), (1.0, 0.2, 1.0), (3.6, 0.5, 1.0), (9.0, 0.02, 2.0)]
)
def test_max_margin_sits_on_gordons_boundary_and_is_largest(hinge, alpha, rho, delta):
    """alpha E[(kappa + sqrt(Delta) z - m - s b)_+^2] = Delta (1 - m^2), and > for every other (m, b)."""
    found = max_margin(alpha, rho, delta)

    def gap(m, b):
        with mp.workdps(30):
            pair = [hinge(mp.mpf(m) - mp.mpf(found.margin), sign * mp.mpf(b), mp.mpf(delta)) for sign in (1, -1)]
            return float(alpha * (rho * pair[0] + (1 - rho) * pair[1]) - delta * (1 - mp.mpf(m) ** 2))

    assert found.margin > 0
    assert gap(found.magnetization, found.bias) == pytest.approx(0, abs=1e-10)
    for angle in np.linspace(0, 2 * np.pi, 9):
        for step in (1e-3, 0.1):
            m = found.magnetization + step * math.cos(angle)
            assert gap(m, found.bias + step * math.sin(angle)) > 0 or abs(m) >= 1
    expected = population_error(found.magnetization, found.bias, 1, rho, delta)
    assert found.test_error == pytest.approx(expected, rel=1e-12)


def test_max_margin_of_few_samples_is_the_minimum_norm_interpolator():
    """For alpha -> 0 every sample is a support vector: the same direction, up to exp(-1/alpha)."""
    margin, least = max_margin(0.01, 0.2, 1.0), minimum_norm_interpolator(0.01, 0.2, 1.0)
    scale = math.sqrt(least.overlap)
    assert margin.magnetization == pytest.approx(least.magnetization / scale, rel=1e-7)
    assert margin.bias == pytest.approx(least.bias / scale, rel=1e-7)
    assert margin.margin == pytest.approx(1 / scale, rel=1e-7)


def test_max_margin_vanishes_linearly_at_separability():
    threshold = separability_threshold(0.2, 1.0, 0.5)
    distance = np.array([1e-2, 1e-4, 1e-6, 1e-8])
    near = max_margin(threshold * (1 - distance), 0.2, 1.0, 0.5)
    slope = near.margin / distance
    assert np.all(np.abs(slope / slope[-1] - 1) < 2 * distance + 1e-6)


def test_max_margin_of_pure_noise_is_gardners():
    """Delta -> infinity, balanced: alpha(k) = 1/E[(k + z)_+^2] with k the margin in units of the noise."""
    delta = 1e10
    k = max_margin(1.2, 0.5, delta).margin / math.sqrt(delta)
    assert 1.2 * ((1 + k * k) * norm.cdf(k) + k * norm.pdf(k)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_labels_of_nothing_but_noise_are_covers_and_gardners_problem(eta):
    """Whatever the classes: 2 eta; at the margin alpha(k) = eta/E[(k + z)_+^2]."""
    assert separability_threshold(0.2, 0.3, eta, label_noise=0.5) == pytest.approx(2 * eta, rel=1e-12)
    found = max_margin(1.2 * eta, 0.2, 0.3, eta, label_noise=0.5)
    k = found.margin / math.sqrt(0.3)
    assert 1.2 * ((1 + k * k) * norm.cdf(k) + k * norm.pdf(k)) == pytest.approx(1, abs=1e-10)
    assert found.magnetization == pytest.approx(0, abs=1e-9)
    assert found.test_error == pytest.approx(0.5, abs=1e-9)


def test_planes_through_the_origin_do_not_see_class_weights():
    """Without a free bias ``y s x`` is all that counts, whose law does not depend on rho."""
    for noise in (0.0, 0.2):
        balanced = separability_threshold(0.5, 1.0, label_noise=noise)
        assert separability_threshold(0.1, 1.0, label_noise=noise, bias_is_free=False) == pytest.approx(
            balanced, rel=1e-10
        )
        found = max_margin(1.0, 0.1, 1.0, label_noise=noise, bias_is_free=False)
        expected = max_margin(1.0, 0.5, 1.0, label_noise=noise)
        assert found.bias == 0
        assert found.magnetization == pytest.approx(expected.magnetization, rel=1e-9)
        assert found.margin == pytest.approx(expected.margin, rel=1e-9)


def test_max_margin_shapes_and_symmetry():
    alpha = np.array([[0.1, 1.0], [2.0, 4.0]])
    grid, mirror = max_margin(alpha, 0.2, 1.0), max_margin(alpha, 0.8, 1.0)
    assert grid.margin.shape == (2, 2)
    assert np.all(np.diff(grid.margin.ravel()) < 0)
    np.testing.assert_allclose(grid.bias, -mirror.bias, rtol=1e-9)
    np.testing.assert_allclose(grid.test_error, mirror.test_error, rtol=1e-9)
    one = max_margin(2.0, 0.2, 1.0)
    assert isinstance(one.margin, float)
    assert one.bias == pytest.approx(grid.bias[1, 0], rel=1e-9)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_max_margin_needs_separable_samples(eta):
    threshold = separability_threshold(0.2, 1.0, eta)
    for alpha in (threshold, 1.1 * threshold, [0.1, 9.0]):
        with pytest.raises(ParameterError, match=r"alpha must be below the separability threshold \d"):
            max_margin(alpha, 0.2, 1.0, eta)


@pytest.mark.parametrize("point", [(1.0, 0.2, 1.0, 1.0), (1.0, 0.2, 1.0, 0.5), (2.0, 0.5, 1.0, 1.0)])
def test_logistic_regression_approaches_max_margin(point):
    """Saddle points at ridges 1e-6 ... 1e-12, extrapolated to 1/|w| = 0 (the approach is logarithmic)."""
    alpha, rho, delta, eta = point
    inverse_norm, direction = [], []
    for ridge in (1e-6, 1e-8, 1e-10, 1e-12):
        solution = solve(GaussianMixture(alpha, rho, delta), [Estimator(CrossEntropy(), ridge, eta)])
        norm_of_w = math.sqrt(solution.overlap[0, 0])
        inverse_norm.append(1 / norm_of_w)
        direction.append([solution.magnetization[0] / norm_of_w, solution.bias[0] / norm_of_w])
    limit = np.polynomial.polynomial.polyfit(inverse_norm, direction, 3)[0]
    separator = max_margin(*point)
    np.testing.assert_allclose(limit, [separator.magnetization, separator.bias], atol=2e-5)


# Square loss


def square_loss_saddle(alpha, rho, delta, eta, ridge):
    """(m, Q, b) of the square loss at a positive ridge, from the equations of a single stage."""
    mean, variance = 2 * rho - 1, 4 * rho * (1 - rho)
    # V = eta/(ridge + Vh) with Vh = alpha Delta/(1 + Delta V): quadratic in V
    linear = ridge + (alpha - eta) * delta
    v = 2 * eta / (linear + math.sqrt(linear**2 + 4 * ridge * delta * eta))
    damping = 1 / (1 + delta * v)
    signal = v * alpha * variance * damping  # m = V mh = signal (1 - m)
    m = signal / (1 + signal)
    mh = alpha * (1 - m) * variance * damping
    noise = alpha * delta * damping**2
    q = v**2 / eta * (mh**2 + noise * (1 - m) ** 2 * variance) / (1 - v**2 / eta * noise * delta)
    return m, q, mean * (1 - m)


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.45, 0.7, 1.5, 20.0])
@pytest.mark.parametrize(("rho", "delta"), [(0.2, 1.0), (0.5, 0.1), (0.02, 10.0)])
def test_minimum_norm_is_the_limit_of_small_ridges(alpha, rho, delta, eta):
    limit = minimum_norm_interpolator(alpha, rho, delta, eta)
    exact = np.array([limit.magnetization, limit.overlap, limit.bias])
    error = []
    for ridge in (1e-6, 1e-7):
        saddle = np.array(square_loss_saddle(alpha, rho, delta, eta, ridge))
        error.append(np.max(np.abs(saddle - exact)) / np.max(np.abs(exact)))
    assert error[1] < 1e-3
    assert error[0] / error[1] == pytest.approx(10, rel=0.05)


def test_minimum_norm_limits():
    plenty = minimum_norm_interpolator(1e9, 0.5, 1.0)  # Fisher's discriminant of known means
    assert plenty.magnetization**2 / plenty.overlap == pytest.approx(1, rel=1e-8)
    assert plenty.test_error == pytest.approx(bayes_error_known_means(0.5, 1.0), rel=1e-8)
    distance = np.array([1e-3, 1e-5])
    for side in (-1, 1):  # the norm diverges as 1/|alpha - eta|, with equal strength on both sides
        peak = minimum_norm_interpolator(0.5 + side * distance, 0.2, 1.0, 0.5)
        assert peak.overlap[1] * distance[1] == pytest.approx(peak.overlap[0] * distance[0], rel=0.01)
    with pytest.raises(ParameterError, match=r"alpha must differ from eta=0\.5"):
        minimum_norm_interpolator([0.2, 0.5], 0.2, 1.0, 0.5)


# Finite size


def draw(rng, n, alpha, rho, delta, eta):
    """Samples (M, eta N), labels, v; exactly rho M positive labels and |v|^2 = N keep the noise down."""
    v = rng.standard_normal(n)
    v *= math.sqrt(n) / np.linalg.norm(v)
    samples = round(alpha * n)
    s = np.where(np.arange(samples) < round(rho * samples), 1.0, -1.0)
    x = np.outer(s, v) / math.sqrt(n) + math.sqrt(delta) * rng.standard_normal((samples, n))
    active = round(eta * n)
    return x[:, :active], s, v[:active]


def hard_margin_fit(rng, n, alpha, rho, delta, eta):
    """(margin, m, b, test error) of a support vector machine that allows no errors, at |w|^2 = N."""
    x, s, v = draw(rng, n, alpha, rho, delta, eta)
    machine = SVC(kernel="linear", C=1e8, tol=1e-6).fit(x / math.sqrt(n), s)
    w, b = machine.coef_[0], machine.intercept_[0]
    scale = np.linalg.norm(w) / math.sqrt(n)
    margin = np.min(s * (x @ w / math.sqrt(n) + b))
    assert margin == pytest.approx(1, abs=1e-4)
    m, b = w @ v / n / scale, b / scale
    return margin / scale, m, b, population_error(m, b, 1, rho, delta)


def least_squares_fit(rng, n, alpha, rho, delta, eta):
    """(m, Q, b, test error) of numpy's least-norm least-squares solution with free bias."""
    x, s, v = draw(rng, n, alpha, rho, delta, eta)
    x = x / math.sqrt(n)
    w = np.linalg.lstsq(x - x.mean(0), s - s.mean(), rcond=None)[0]
    b = s.mean() - x.mean(0) @ w
    m, q = w @ v / n, w @ w / n
    return m, q, b, population_error(m, b, q, rho, delta)


def scores(fit, expected, point, sizes, seed):
    """z-score of every observable at every (N, runs); arrays (len(sizes), observables)."""
    rng = np.random.default_rng(seed)
    z = []
    for n, runs in sizes:
        with threadpool_limits(1):
            sample = np.array([fit(rng, n, *point) for _ in range(runs)])
        error = sample.std(axis=0, ddof=1) / math.sqrt(runs)
        z.append((sample.mean(axis=0) - expected) / error)
    return np.array(z)


@pytest.mark.parametrize("point", [(1.0, 0.2, 1.0, 1.0), (1.0, 0.2, 1.0, 0.5), (1.0, 0.5, 0.5, 0.8)])
def test_max_margin_agrees_with_support_vector_machines(point):
    """N = 400 (40 runs), 800 (12 runs), seed 1: |z| < 4 in margin, m, b, error; mean square z of order 1."""
    theory = max_margin(*point)
    expected = (theory.margin, theory.magnetization, theory.bias, theory.test_error)
    z = scores(hard_margin_fit, expected, point, [(400, 40), (800, 12)], seed=1)
    assert np.max(np.abs(z)) < 4
    assert np.mean(z**2) < 3.5


@pytest.mark.parametrize(
    "point", [(0.5, 0.2, 1.0, 1.0), (0.3, 0.2, 1.0, 0.5), (2.0, 0.2, 1.0, 1.0), (2.0, 0.3, 0.5, 0.5)]
)
def test_minimum_norm_agrees_with_lstsq(point):
    """N = 200 (60 runs), 400 (20 runs), seed 2: |z| < 4 in m, Q, b, error; mean square z of order 1."""
    theory = minimum_norm_interpolator(*point)
    expected = (theory.magnetization, theory.overlap, theory.bias, theory.test_error)
    z = scores(least_squares_fit, expected, point, [(200, 60), (400, 20)], seed=2)
    assert np.max(np.abs(z)) < 4
    assert np.mean(z**2) < 3.5


# Bad input


GOOD = {"alpha": 0.3, "rho": 0.2, "delta": 1.0, "eta": 0.5}
BAD = {
    "alpha": [0, -1, math.nan, math.inf, "1", None, True, [0.1, -1], [0.1, math.nan], [[1], [1, 2]], 1j],
    "rho": [0, 1, -0.1, math.nan, "0.5", None, True, [0.2]],
    "delta": [0, -1, math.nan, -math.inf, "1", None, True],
    "eta": [0, 1.01, -0.5, math.nan, math.inf, "1", None, True],
}
FUNCTIONS = {
    bayes_error: ("alpha", "rho", "delta", "eta"),
    bayes_error_known_means: ("rho", "delta", "eta"),
    separability_threshold: ("rho", "delta", "eta"),
    interpolation_threshold: ("eta",),
    max_margin: ("alpha", "rho", "delta", "eta"),
    minimum_norm_interpolator: ("alpha", "rho", "delta", "eta"),
}


@pytest.mark.parametrize(
    ("function", "name"),
    [(function, name) for function, names in FUNCTIONS.items() for name in names],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_bad_input_is_named(function, name):
    arguments = {key: GOOD[key] for key in FUNCTIONS[function]}
    values = BAD[name] + ([math.inf] if name == "delta" and function is not separability_threshold else [])
    for value in values:
        with pytest.raises(ParameterError, match=f"^{name} must be"):
            function(**{**arguments, name: value})
