"""The simulation against other optimisers, Monte Carlo, finite differences and limits; and bad input."""

import json
import math
import re
import tracemalloc
import warnings

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm
from sympy import exp, lambdify, log

from numerics.codegen.losses import LossFunctions
from numerics.codegen.observables import bivariate_normal_cdf
from numerics.models import (
    BayesOptimal,
    Chain,
    ClassMixture,
    Clusters,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    ParameterError,
)
from numerics.simulation.draw import SHUFFLE, draw, draw_classes, draw_clusters, draw_frozen, draw_masks
from numerics.simulation.measure import measure
from numerics.simulation.responses import measure_responses
from numerics.simulation.result import estimate
from numerics.simulation.ridge_fit import _Packed, minimise_ridge
from numerics.simulation.run import simulate
from numerics.simulation.train import train
from numerics.solution.gaussian import gaussian_mean
from numerics.solution.observables.distances import output_distance
from numerics.solution.population import Population
from numerics.solver import ConvergenceError, ConvergenceWarning
from theory import observables
from theory.losses import CrossEntropy, Distillation, LinearLoss, Loss, PseudoLabels, SquareDistillation, SquareLoss
from theory.symbols import TEACHER as H_TEACHER
from theory.symbols import h, y

DATA = GaussianMixture(alpha=1.5, rho=0.3, delta=0.8)
TEACHER = Estimator(CrossEntropy(), ridge=0.1)
STUDENT = Estimator(Distillation(mixing=0.7, temperature=2.0), ridge=1e-3, eta=0.6)


def sample_of(data=DATA, n_inputs=60, seed=0):
    return draw(data, n_inputs, np.random.SeedSequence(seed))


@pytest.mark.parametrize(
    "data", [DATA, ClassMixture(2.0, gram=np.eye(3), delta=0.5), Clusters(2.0, np.eye(2, 6), [np.eye(6)] * 2, [-1, 1])]
)
def test_what_is_random_beyond_a_draw_differs_from_draw_to_draw(data) -> None:
    """Shuffled targets are permuted anew in every run."""
    drawn = {ClassMixture: draw_classes, Clusters: draw_clusters}.get(type(data), draw)
    first, second = (drawn(data, 60, np.random.SeedSequence(seed)).generator(SHUFFLE) for seed in (0, 1))
    assert first.random() != second.random()
    assert drawn(data, 60, np.random.SeedSequence(1)).seed.entropy == 1


class Logistic:
    """Hard or soft targets, written independently of the package's losses."""

    def __init__(self, target):
        self.target = target

    def value(self, h):
        return np.logaddexp(0.0, h) - self.target * h

    def derivatives(self, h):
        return expit(h) - self.target, expit(h) * expit(-h)


# Optimiser


@pytest.mark.parametrize("ridge", [1e-5, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("alpha", [0.3, 0.9, 1.2, 6.0])
def test_optimum_agrees_with_a_quasi_newton_method(alpha, ridge):
    sample = sample_of(GaussianMixture(alpha=alpha, rho=0.3))
    objective = Logistic(sample.labels)

    def value_and_gradient(point):
        h = sample.design @ point[:-1] + point[-1]
        slopes, _ = objective.derivatives(h)
        penalty = 0.5 * ridge * point[:-1] @ point[:-1]
        gradient = np.append(slopes @ sample.design + ridge * point[:-1], slopes.sum())
        return objective.value(h).sum() + penalty, gradient

    fit = minimise_ridge(sample.design, objective, ridge, gradient_tolerance=1e-9)
    assert fit.converged
    found, gradient = value_and_gradient(np.append(fit.weights, fit.bias))
    assert fit.gradient_norm == pytest.approx(np.linalg.norm(gradient), abs=1e-13)
    assert fit.relative_gradient_norm < 1e-9
    reference = minimize(
        value_and_gradient, np.zeros(61), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 20000}
    )
    assert found <= reference.fun * (1 + 1e-12)
    assert found == pytest.approx(reference.fun, rel=1e-6)
    if ridge >= 1e-3:
        assert fit.weights == pytest.approx(reference.x[:-1], abs=2e-5 * np.abs(reference.x).max())


@pytest.mark.parametrize("size", [40, 200])
def test_ridge_regression_agrees_with_its_closed_form(size):
    rng = np.random.default_rng(1)
    design, target, ridge = rng.standard_normal((90, size)), rng.standard_normal(90), 0.05

    class Square:
        def value(self, h):
            return (h - target) ** 2 / 2

        def derivatives(self, h):
            return h - target, np.ones_like(h)

    fit = minimise_ridge(design, Square(), ridge, gradient_tolerance=1e-12)
    centred = design - design.mean(axis=0)
    expected = np.linalg.solve(centred.T @ centred + ridge * np.eye(size), centred.T @ target)
    assert fit.weights == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert fit.bias == pytest.approx(target.mean() - design.mean(axis=0) @ expected, rel=1e-8)
    without = minimise_ridge(design, Square(), ridge, bias=0.0, gradient_tolerance=1e-12)
    expected = np.linalg.solve(design.T @ design + ridge * np.eye(size), design.T @ target)
    assert without.bias == 0.0
    assert without.weights == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("alpha", [0.2, 0.97, 1.03, 3.0, 10.0])
@pytest.mark.parametrize("ridge", [1e-8, 1e-5, 1e-2])
def test_nearly_separable_and_soft_targets_converge(alpha, ridge):
    sample = sample_of(GaussianMixture(alpha=alpha, rho=0.2), n_inputs=250)
    soft = np.clip(sample.labels, 1e-3, 1 - 1e-3)
    for target in (sample.labels, soft):
        fit = minimise_ridge(sample.design, Logistic(target), ridge)
        assert fit.converged, fit.message
        assert fit.iterations < 60


def test_start_at_the_optimum_costs_nothing_and_a_bad_start_is_ignored():
    sample = sample_of()
    objective = Logistic(sample.labels)
    cold = minimise_ridge(sample.design, objective, 0.1, gradient_tolerance=1e-10)
    bad = (np.full(60, 1e3), 5.0)
    warm = minimise_ridge(
        sample.design, objective, 0.1, starts=[bad, (cold.weights, cold.bias)], gradient_tolerance=1e-9
    )
    assert warm.iterations == 0
    again = minimise_ridge(sample.design, objective, 0.1, starts=[bad], gradient_tolerance=1e-10)
    assert again.weights == pytest.approx(cold.weights, rel=1e-7)
    assert again.iterations == cold.iterations


@pytest.mark.parametrize("alpha", [0.7, 2.0])
def test_a_given_bias_is_kept(alpha):
    sample = sample_of(GaussianMixture(alpha=alpha, rho=0.3))
    objective = Logistic(sample.labels)
    fit = minimise_ridge(
        sample.design, objective, 1e-3, bias=-0.7, starts=[(np.ones(60), 2.0)], gradient_tolerance=1e-10
    )
    assert fit.bias == -0.7
    assert fit.logits == pytest.approx(sample.design @ fit.weights - 0.7)
    gradient = objective.derivatives(fit.logits)[0] @ sample.design + 1e-3 * fit.weights
    assert np.linalg.norm(gradient) < 1e-9
    free = minimise_ridge(sample.design, objective, 1e-3, gradient_tolerance=1e-10)
    again = minimise_ridge(sample.design, objective, 1e-3, bias=free.bias, gradient_tolerance=1e-10)
    assert again.weights == pytest.approx(free.weights, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("size", [1, 2, 9, 10, 301, 600])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_packed_matrices_agree_with_square_ones(size, precision):
    rng = np.random.default_rng(size)
    rows, factors = rng.standard_normal((size + 5, size)), rng.uniform(0.5, 2.0, size)
    packed = _Packed(size, precision)
    for part in (rows[:5], rows[5:]):
        packed.add(lambda left, right, part=part: (part[:, left].T @ part[:, right]).astype(precision))
    packed.scale(factors)
    packed.shift_diagonal(np.arange(size) + 10.0)
    square = np.outer(factors, factors) * (rows.T @ rows) + np.diag(np.arange(size) + 10.0)
    assert np.concatenate(packed.diagonal()) == pytest.approx(square.diagonal(), rel=1e-5)
    packed.factorise()
    vector = rng.standard_normal(size).astype(precision)
    tolerance = 1e-3 if precision is np.float32 else 1e-10
    assert packed.solve(vector) == pytest.approx(np.linalg.solve(square, vector), rel=tolerance, abs=tolerance)


def test_an_indefinite_matrix_is_refused():
    packed = _Packed(4, np.float64)
    packed.shift_diagonal(np.array([1.0, 1.0, -1.0, 1.0]))
    with pytest.raises(np.linalg.LinAlgError):
        packed.factorise()


@pytest.mark.parametrize("ridge", [1e-5, 0.1])
def test_peak_memory_stays_below_twice_the_design(ridge):
    """N = 800; the largest is 1.84, where the Gram matrix is kept beside its factor.  BLAS's own buffers are not counted."""
    chain = [Estimator(CrossEntropy(), ridge), Estimator(Distillation(), ridge, eta=0.9)]
    n_inputs = 800
    for alpha in (0.2, 0.7, 0.97, 1.03, 3.0):
        data = GaussianMixture(alpha, 0.2)
        simulate(data, chain, n_inputs=40, n_runs=1)  # compiles
        tracemalloc.start()
        result = simulate(data, chain, n_inputs=n_inputs, n_runs=1, gradient_tolerance=1e-6)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 8 * n_inputs * result.n_samples, alpha


def test_unmet_tolerance_is_reported():
    sample = sample_of()
    short = minimise_ridge(sample.design, Logistic(sample.labels), 1e-5, max_iterations=2)
    assert not short.converged
    assert "after 2 Newton steps" in short.message
    strict = minimise_ridge(sample.design, Logistic(sample.labels), 1e-5, gradient_tolerance=1e-30)
    assert not strict.converged
    assert "rounding" in strict.message
    assert strict.relative_gradient_norm < 1e-10


class Barrier:
    """-log(1 + h), undefined below -1, plus the logistic loss."""

    def __init__(self, target):
        self.logistic = Logistic(target)

    def value(self, h):
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.logistic.value(h) - np.log(1.0 + h)

    def derivatives(self, h):
        slopes, curvatures = self.logistic.derivatives(h)
        with np.errstate(divide="ignore"):
            slopes, curvatures = slopes - 1.0 / (1.0 + h), curvatures + (1.0 + h) ** -2.0
        return np.where(h > -1.0, slopes, np.nan), np.where(h > -1.0, curvatures, np.nan)


def test_every_sample_is_looked_at_in_every_step():
    """A loss that is undefined where the descent starts, or further on, has no optimum that could be reported."""
    sample = sample_of()
    start = [(np.zeros(60), -2.0)]
    inside = minimise_ridge(sample.design, Barrier(sample.labels), 0.1)
    assert inside.converged
    assert inside.broken == ()
    outside = minimise_ridge(sample.design, Barrier(sample.labels), 0.1, bias=-2.0)
    assert not outside.converged
    assert outside.message == "the loss or a derivative is not finite on 90 of 90 samples"
    assert outside.broken == tuple(range(90))
    assert outside.relative_gradient_norm == math.inf
    again = minimise_ridge(sample.design, Barrier(sample.labels), 0.1, starts=start)
    assert again.converged
    np.testing.assert_allclose(again.weights, inside.weights, atol=1e-7)

    class Wall(Logistic):
        """Defined up to |h| = 0.1, which the first Newton step leaves."""

        def derivatives(self, h):
            slopes, curvatures = super().derivatives(h)
            return np.where(np.abs(h) < 0.1, slopes, np.nan), curvatures

        def value(self, h):
            return np.where(np.abs(h) < 0.1, super().value(h), np.nan)

    walled = minimise_ridge(sample.design, Wall(sample.labels), 1e-3)
    assert not walled.converged
    assert np.isfinite(walled.weights).all()


@pytest.mark.parametrize(
    ("loss", "where"),
    [
        (Loss("logarithm", (h - log(H_TEACHER)) ** 2 / 2), r"first on sample \d+ \(y=[01], h_teacher=-[\d.]+\)"),
        (
            Loss("overflow", (h - exp(40 * H_TEACHER**4)) ** 2 / 2),
            r"first on sample \d+ \(y=[01], h_teacher=-?[\d.]+\)",
        ),
        (Loss("label", h**2 / 2 - h * log(1 - y)), r"first on sample \d+ \(y=1\)"),
    ],
    ids=lambda item: item.name if isinstance(item, Loss) else "",
)
def test_a_loss_that_is_not_finite_on_the_sample_does_not_converge(loss, where):
    """Such losses are refused when they are read; one that gets past is found out by stage, run and sample."""
    chain = [TEACHER, Estimator(loss, ridge=0.1)]
    with pytest.warns(ConvergenceWarning, match="run 1, student: the loss or a derivative is not finite on"):
        result = simulate(GaussianMixture(1.0, 0.2), chain, n_inputs=50, n_runs=2, responses=True)
    assert not result.converged
    for run, message in enumerate(result.message.split("; ")):
        assert re.fullmatch(
            rf"run {run}, student: the loss or a derivative is not finite on \d+ of 50 samples, {where}", message
        )
    assert math.isfinite(result[0].test_error.mean)
    assert math.isinf(result[1].relative_gradient_norm.mean)
    assert np.isnan(result.response.mean).all()
    with pytest.raises(ConvergenceError, match=r"run 0, student: .* not finite"):
        simulate(GaussianMixture(1.0, 0.2), chain, n_inputs=50, n_runs=2, throw=True)


def test_a_loss_that_overflows_far_out_is_no_obstacle():
    """Long steps of the search may overflow; the optimum is found all the same."""
    steep = Estimator(Loss.from_expression("exp(-200*s*h)"), ridge=0.1)
    assert simulate(GaussianMixture(1.0, 0.2), steep, n_inputs=50, n_runs=2).converged


# Losses and population averages


@pytest.mark.parametrize(
    ("a", "b", "correlation"),
    [
        (0.3, -1.2, 0.4),
        (0.0, 0.7, -0.8),
        (0.0, -0.7, 0.5),
        (0.0, 0.0, 0.3),
        (-2.0, -1.0, 0.999),
        (1.0, 0.0, 0.2),
    ],
)
def test_bivariate_normal_agrees_with_the_theory(a, b, correlation):
    theta = observables.theta
    integrand = lambdify(theta, observables.orthant_integrand(a, b))
    dependent = quad(integrand, 0.0, math.asin(correlation), epsabs=1e-12)[0]
    expected = norm.cdf(a) * norm.cdf(b) + dependent
    assert bivariate_normal_cdf(a, b, correlation) == pytest.approx(expected, abs=1e-10)


def test_bivariate_normal_of_equal_or_opposite_variables():
    assert bivariate_normal_cdf(0.5, -0.2, 1.0) == pytest.approx(norm.cdf(-0.2))
    assert bivariate_normal_cdf(0.5, -0.2, -1.0) == pytest.approx(norm.cdf(0.5) - norm.cdf(0.2))


def population(norms=(2.0, 1.5), correlation=0.7):
    covariance = np.outer(norms, norms) * np.array([[1.0, correlation], [correlation, 1.0]])
    magnetization = np.array([1.1, 0.8])
    return Population(GaussianMixture(alpha=1.0, rho=0.2, delta=0.9), magnetization, np.array([-0.6, -0.9]), covariance)


def test_population_averages_agree_with_monte_carlo():
    models = population()
    rng, count = np.random.default_rng(5), 1_000_000
    labels = (rng.random(count) < models.data.rho).astype(float)
    signs = 2 * labels - 1
    noise = np.linalg.cholesky(models.data.delta * models.overlap) @ rng.standard_normal((2, count))
    logits = models.magnetization[:, None] * signs + models.bias[:, None] + noise
    loss = Distillation(mixing=0.6, temperature=2.0)
    measured = {
        "error": (signs * logits[1] < 0).astype(float),
        "agreement": ((logits[0] > 0) == (logits[1] > 0)).astype(float),
        "logits": (logits[0] - logits[1]) ** 2,
        "outputs": (expit(logits[0]) - expit(logits[1])) ** 2,
        "loss": LossFunctions(loss).value(logits[1], labels, logits[:1].T.copy()),
    }
    exact = {
        "error": models.test_error(1),
        "agreement": models.agreement(1, 0),
        "logits": models.logit_distance(1, 0),
        "outputs": output_distance(models, np.array([0.0, 1.0]), np.array([1.0, 0.0])).value,
        "loss": models.test_loss(loss, 1)[0],
    }
    for name, values in measured.items():
        z = (values.mean() - exact[name]) / (values.std() / math.sqrt(count))
        assert abs(z) < 4, f"{name}: z = {z:.1f}"


def test_averages_with_jumps_agree_with_orthants():
    mean, covariance = np.array([0.3, -0.4]), np.array([[2.0, 0.9], [0.9, 0.7]])
    value, error = gaussian_mean(
        lambda x: ((x[0] > 0.1) & (x[1] > -1.0)) * 1.0, mean, covariance, [(0, 0.1), (1, -1.0)]
    )
    correlation = 0.9 / math.sqrt(2.0 * 0.7)
    expected = bivariate_normal_cdf(0.2 / math.sqrt(2.0), 0.6 / math.sqrt(0.7), correlation)
    assert value == pytest.approx(expected, abs=1e-9)
    assert error < 1e-7
    one, _ = gaussian_mean(
        lambda x: np.where(x[0] > 1.0, np.exp(x[0]), np.where(x[0] > -2.0, 3.0, 0.0)),
        mean[:1], covariance[:1, :1], [(0, 1.0), (0, -2.0)],
    )  # fmt: skip
    low, high, width = (-2.0 - 0.3) / math.sqrt(2.0), (1.0 - 0.3) / math.sqrt(2.0), math.sqrt(2.0)
    expected = math.exp(0.3 + 1.0) * norm.sf(high - width) + 3 * (norm.cdf(high) - norm.cdf(low))
    assert one == pytest.approx(expected, abs=1e-9)


def ensemble(size, rng):
    """Population of ``size`` teachers and a student that is correlated with all."""
    root = np.eye(size + 1) + 0.4 * rng.standard_normal((size + 1, size + 1))
    magnetization, bias = rng.uniform(0.5, 1.0, size + 1), rng.uniform(-0.5, 0.5, size + 1)
    return Population(GaussianMixture(alpha=1.0, rho=0.3, delta=0.9), magnetization, bias, root @ root.T)


@pytest.mark.parametrize(
    ("teachers", "square", "hard", "tolerance"),
    [(1, False, True, 1e-7), (1, True, True, 1e-7), (2, False, True, 1e-7), (2, True, True, 1e-7), (3, False, False, 1e-7),
     (4, True, True, 1e-3), (5, False, False, 1e-3)],
)  # fmt: skip
def test_test_loss_with_jumps_and_several_teachers_agrees_with_monte_carlo(teachers, square, hard, tolerance):
    rng, count = np.random.default_rng(2), 400_000
    models = ensemble(teachers, rng)
    stages = tuple(range(1, teachers + 1))
    loss = PseudoLabels(0.7, teacher=stages, square=square) if hard else Distillation(0.7, 2.0, teacher=stages)
    value, error = models.test_loss(loss, teachers)
    labels = (rng.random(count) < models.data.rho).astype(float)
    noise = np.linalg.cholesky(models.data.delta * models.overlap) @ rng.standard_normal((teachers + 1, count))
    logits = models.magnetization[:, None] * (2 * labels - 1) + models.bias[:, None] + noise
    h, earlier = logits[-1], logits[:-1]
    if hard:
        target = 0.3 * labels + 0.7 * np.mean(earlier > 0, axis=0)
        losses = ((h + 1) / 2 - target) ** 2 if square else np.logaddexp(0, h) - target * h
    else:
        soft = np.logaddexp(0, h / 2) - np.mean(expit(earlier / 2), axis=0) * h / 2
        losses = 0.3 * (np.logaddexp(0, h) - labels * h) + 0.7 * soft
    assert abs(losses.mean() - value) < 4 * losses.std() / math.sqrt(count) + 2 * error
    assert error < tolerance


@pytest.mark.parametrize("norms", [(2.0, 1.5), (50.0, 50.0)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_split_test_loss_agrees_with_the_full_average(norms, temperature):
    models = population(norms)
    loss = Distillation(mixing=0.6, temperature=temperature)
    functions = LossFunctions(loss)
    full, _ = models.mean(
        lambda label, h, earlier: functions.value(h, np.full(len(h), label), earlier[:, None].copy()), np.eye(2)[[1, 0]]
    )
    value, error = models.test_loss(loss, 1)
    assert value == pytest.approx(full, abs=1e-6)
    assert error < 1e-6


def test_cross_entropy_of_a_wide_field_agrees_with_adaptive_quadrature():
    models = population((50.0, 50.0))
    expected = 0.0
    width = 50.0 * math.sqrt(models.data.delta)
    for sign, weight in ((1, 0.2), (-1, 0.8)):
        mean = sign * 1.1 - 0.6
        integral = quad(
            lambda x, sign=sign, mean=mean: np.logaddexp(0, -sign * x) * norm.pdf(x, mean, width),
            mean - 9 * width,
            mean + 9 * width,
            points=[0.0, -5.0, 5.0],
            epsabs=1e-11,
            limit=500,
        )[0]
        expected += weight * integral
    assert models.test_loss(CrossEntropy(), 0)[0] == pytest.approx(expected, abs=1e-7)


def test_equal_models_are_at_no_distance():
    models = population((2.0, 2.0), correlation=1.0)
    models.magnetization[1], models.bias[1] = models.magnetization[0], models.bias[0]
    assert models.agreement(1, 0) == pytest.approx(1.0, abs=1e-7)
    assert output_distance(models, np.array([0.0, 1.0]), np.array([1.0, 0.0])).value == pytest.approx(0.0, abs=1e-12)
    assert models.logit_distance(1, 0) == pytest.approx(0.0, abs=1e-12)


# Whole simulation


def test_test_error_of_a_trained_chain_agrees_with_fresh_test_points():
    sample = sample_of(n_inputs=100)
    chain = Chain((TEACHER, STUDENT))
    fits = train(sample, chain, (100, 60), 1e-8)
    found = measure(DATA, sample, chain, fits)
    rng, count = np.random.default_rng(3), 60_000
    labels = (rng.random(count) < DATA.rho).astype(float)
    signs = 2 * labels - 1
    inputs = signs[:, None] * sample.mean / 10 + math.sqrt(DATA.delta) * rng.standard_normal((count, 100))
    logits = [inputs[:, : len(fit.weights)] @ fit.weights / 10 + fit.bias for fit in fits]
    for t in range(2):
        wrong = signs * logits[t] < 0
        z = (wrong.mean() - found["test_error"][t]) / (wrong.std() / math.sqrt(count))
        assert abs(z) < 4
        earlier = np.array(logits[:t]).reshape(t, count).T.copy()
        losses = LossFunctions(chain[t].loss).value(logits[t], labels, earlier)
        z = (losses.mean() - found["test_loss"][t]) / (losses.std() / math.sqrt(count))
        assert abs(z) < 4
    same = (logits[0] > 0) == (logits[1] > 0)
    assert abs(same.mean() - found["agreement"][1, 0]) < 4 * same.std() / math.sqrt(count)
    assert found["train_agreement"][1, 0] == np.mean((fits[0].logits > 0) == (fits[1].logits > 0))


def test_observables_of_a_run_are_consistent():
    result = simulate(DATA, [TEACHER, STUDENT], n_inputs=80, n_runs=3)
    assert result.converged
    assert result.message == "all fits converged"
    assert result.effective_alpha == 1.5
    assert result.effective_eta == (1.0, 0.6)
    assert np.all(result.runs["relative_gradient_norm"] <= 1e-8)
    assert np.all(result.runs["gradient_norm"] > 0)
    assert result[1].norm.mean == pytest.approx(np.mean(np.sqrt(result.runs["overlap"][:, 1, 1])))
    gap = result.runs["test_error"] - result.runs["train_error"]
    assert np.array_equal(result.runs["generalization_gap"], gap)
    assert result[1].teacher_agreement.mean == pytest.approx(result.mean("agreement")[1, 0])
    assert math.isnan(result[0].teacher_agreement.mean)
    objective = 1.5 * result.runs["train_loss"] + np.array([0.05, 5e-4]) * result.runs["norm_squared"]
    assert result.runs["free_energy"] == pytest.approx(objective)
    assert result.runs["train_cross_entropy"][:, 0] == pytest.approx(result.runs["train_loss"][:, 0])
    assert result.overlap.mean.shape == (2, 2)
    assert result[0].test_error.n == 3
    spread = result.runs["test_error"][:, 0].std(ddof=1) / math.sqrt(3)
    assert result[0].test_error.standard_error == pytest.approx(spread)
    assert result.standard_error("test_error")[0] == pytest.approx(spread)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["stages"][1]["name"] == "student"
    with pytest.raises(AttributeError, match="responses=True"):
        _ = result.response
    with pytest.raises(AttributeError, match="test_eror"):
        _ = result[0].test_eror


def test_a_run_depends_on_its_seed_alone():
    first = simulate(DATA, [TEACHER, STUDENT], n_inputs=60, n_runs=4, seed=7)
    fewer = simulate(DATA, [TEACHER, STUDENT], n_inputs=60, n_runs=2, seed=7)
    parallel = simulate(DATA, [TEACHER, STUDENT], n_inputs=60, n_runs=4, seed=7, n_jobs=2)
    other = simulate(DATA, [TEACHER, STUDENT], n_inputs=60, n_runs=2, seed=8)
    for name, values in first.runs.items():
        assert np.array_equal(values[:2], fewer.runs[name], equal_nan=True), name
        assert np.array_equal(values, parallel.runs[name], equal_nan=True), name
    assert not np.any(first.runs["bias"][:2] == other.runs["bias"])


def test_one_run_has_no_standard_error():
    result = simulate(DATA, TEACHER, n_inputs=50, n_runs=1)
    assert math.isnan(result[0].test_error.standard_error)
    assert result.to_dict()["stages"][0]["test_error"]["standard_error"] is None


def test_student_on_labels_alone_is_the_teacher():
    student = Estimator(Distillation(mixing=0.0), ridge=TEACHER.ridge)
    result = simulate(DATA, [TEACHER, student], n_inputs=70, n_runs=2, gradient_tolerance=1e-10)
    assert result[1].test_error.mean == pytest.approx(result[0].test_error.mean, abs=1e-9)
    assert result[1].teacher_cosine.mean == pytest.approx(1.0, abs=1e-12)
    assert result[1].teacher_agreement.mean == pytest.approx(1.0, abs=1e-6)
    assert result[1].train_logit_distance.mean == pytest.approx(0.0, abs=1e-12)


def test_hebbian_weights_and_strong_ridge_reach_the_bayes_error():
    """20 runs at N = 500, seed 1, |z| < 4.

    With a strong ridge the weights shrink but the bias keeps the imbalance of the drawn labels, of order
    1/sqrt(M); so the direction of the weights is tested, without the bias.
    """
    data = GaussianMixture(alpha=2.0, rho=0.5, delta=1.0)
    hebbian = Estimator(LinearLoss(), ridge=2.0, name="hebbian")
    strong = Estimator(CrossEntropy(), ridge=1e4, name="strong")
    result = simulate(data, [hebbian, strong], n_inputs=500, n_runs=20, seed=1)
    expected = {"magnetization": 1.0, "overlap": 1.5, "test_error": float(observables.bayes_error(2, 1, 0.5))}
    measured = {
        "magnetization": result[0].magnetization,
        "overlap": estimate(result.runs["overlap"][:, 0, 0]),
        "test_error": result[0].test_error,
    }
    for name, found in measured.items():
        assert abs(found.mean - expected[name]) < 4 * found.standard_error, name
    error = estimate(norm.cdf(-result.runs["magnetization"][:, 1] / result.runs["norm"][:, 1]))
    assert abs(error.mean - expected["test_error"]) < 4 * error.standard_error


def test_linear_loss_is_the_hebbian_sum():
    sample = sample_of()
    (fit,) = train(sample, Chain((Estimator(LinearLoss(), ridge=2.0),)), (60,), 1e-10)
    assert fit.bias == 0.0
    assert fit.weights == pytest.approx((2 * sample.labels - 1) @ sample.design / 2.0, rel=1e-9)


PLENTY = GaussianMixture(alpha=2.0, rho=0.3)
TRANSFER = GaussianMixture(2.0, 0.3, label_noise=0.2, further=(DataSet("transfer", 1.5, 0.1), DataSet("fresh", 0.6)))
CHAINS = {
    "dense": (PLENTY, [TEACHER, Estimator(Distillation(mixing=0.7, temperature=2.0), ridge=0.02)]),
    "masked": (PLENTY, [TEACHER, STUDENT]),
    "three": (
        PLENTY,
        [
            Estimator(CrossEntropy(), ridge=0.1, eta=0.8),
            Estimator(Distillation(mixing=0.7), ridge=0.05, eta=0.5),
            Estimator(Loss.from_expression("softplus(h) - sigmoid(h_teacher + h_1/2)*h"), ridge=0.03, eta=0.7),
        ],
    ),
    "skipped": (
        PLENTY,
        [
            Estimator(CrossEntropy(), ridge=0.1),
            Estimator(SquareLoss(), ridge=0.3),
            Estimator(Distillation(teacher=1), ridge=0.05),
        ],
    ),
    "twice": (PLENTY, [TEACHER, Estimator(Loss.from_expression("softplus(h) - sigmoid(h_1 + h_teacher)*h"), 0.1)]),
    "transfer": (
        TRANSFER,
        [
            TEACHER,
            Estimator(Distillation(mixing=0.8), ridge=0.05, sets=("training", "fresh")),
            Estimator(Distillation(mixing=0.9, teacher=(1, 2)), ridge=0.04, sets="transfer", bias=0.3),
        ],
    ),
    "random masks": (
        TRANSFER,
        [
            Estimator(CrossEntropy(), ridge=0.1, eta=0.6),
            Frozen(0.8, 1.5, 0.2),
            Estimator(Distillation(mixing=0.7, teacher=(1, 2)), ridge=0.05, eta=0.5, mask_overlap=1.0, sets="transfer"),
            Estimator(SquareDistillation(gain=0.8), 0.3, 0.7, mask_overlap=0.5, sets=("fresh", "transfer", "training")),
        ],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_responses_are_derivatives_of_the_trained_weights(name, monkeypatch):
    """V_ts against finite differences under a small field on stage s, all coordinates one by one."""
    n_inputs, step = 20, 1e-4
    data, chain = CHAINS[name][0], Chain.of(CHAINS[name][1])
    seed = np.random.SeedSequence(0)
    masks = draw_masks(chain, n_inputs, seed)
    sample = draw(data, n_inputs, seed)
    frozen = draw_frozen(chain, sample.mean, seed)
    fits = train(sample, chain, masks, 1e-12, frozen)
    exact = measure_responses(sample, chain, fits)
    trained = [t for t, stage in enumerate(chain.stages) if isinstance(stage, Estimator)]
    plain = minimise_ridge

    def weights_under(stage, field):
        """Train the chain with ``- field.w`` added to the objective of one stage."""
        numbers = iter(trained)

        def with_field(design, objective, ridge, **options):
            if next(numbers) != stage:
                return plain(design, objective, ridge, **options)
            shift = field[masks[stage]] / ridge
            moved = design @ shift

            class Shifted:
                """In terms of w' = w - field/ridge the field is gone."""

                def value(self, h):
                    return objective.value(h + moved)

                def derivatives(self, h):
                    return objective.derivatives(h + moved)

            options["starts"] = ()
            fit = plain(design, Shifted(), ridge, **options)
            weights = fit.weights + shift
            return type(fit)(**{**vars(fit), "weights": weights, "logits": fit.logits + moved})

        monkeypatch.setattr("numerics.simulation.train.minimise_ridge", with_field)
        return [fit.all_weights for fit in train(sample, chain, masks, 1e-12, frozen)]

    measured = np.zeros_like(exact)
    for s in trained:
        for i in np.arange(n_inputs)[masks[s]]:
            field = step * np.eye(n_inputs)[i]
            up, down = weights_under(s, field), weights_under(s, -field)
            for t in range(len(chain)):
                measured[t, s] += (up[t][i] - down[t][i]) / (2 * step) / n_inputs
    assert exact == pytest.approx(measured, rel=1e-5, abs=1e-6)
    if name == "skipped":
        assert exact[1, 0] == exact[2, 1] == 0.0
    elif name == "random masks":
        assert not np.any(exact[1])
        assert not np.any(exact[:, 1])
        assert np.all(np.abs(exact[[2, 3, 3], [0, 0, 2]]) > 1e-4)
    else:
        assert np.all(np.diag(exact) > 0)
        assert np.all(np.abs(exact[np.tril_indices(len(chain))]) > 1e-3)


def test_responses_through_hard_targets_are_not_defined():
    chain = [
        TEACHER,
        Estimator(PseudoLabels(teacher=1), 0.1),
        Estimator(PseudoLabels(mixing=0.0, teacher=1), 0.1),
        Estimator(Distillation(teacher=2), 0.1),
        Estimator(PseudoLabels(teacher=3), 0.1),
    ]
    measured = simulate(DATA, chain, n_inputs=40, n_runs=1, responses=True).response.mean
    undefined = np.zeros((5, 5), dtype=bool)
    undefined[[1, 3, 4], [0, 0, 2]] = True
    assert np.array_equal(np.isnan(measured), undefined)
    assert np.all(np.diag(measured) > 0)
    assert measured[3, 1] != 0.0
    assert measured[2, 0] == measured[4, 0] == 0.0  # labels alone


def test_responses_are_returned_when_asked_for():
    result = simulate(DATA, [TEACHER, STUDENT], n_inputs=50, n_runs=2, responses=True)
    assert result.response.mean.shape == (2, 2)
    assert result.response.mean[0, 1] == 0.0
    assert "response" in result.to_dict()


# Noise, data sets, masks, special stages


def ridge_regression(design, target, ridge, bias=None):
    """Minimiser of ``|Xw + b - target|^2/4 + (ridge/2)|w|^2`` by the normal equations."""
    if bias is not None:
        return np.linalg.solve(
            design.T @ design + 2 * ridge * np.eye(design.shape[1]), design.T @ (target - bias)
        ), bias
    extended = np.column_stack((design, np.ones(len(design))))
    penalty = 2 * ridge * np.eye(design.shape[1] + 1)
    penalty[-1, -1] = 0.0
    solved = np.linalg.solve(extended.T @ extended + penalty, extended.T @ target)
    return solved[:-1], solved[-1]


def test_a_chain_of_square_losses_agrees_with_normal_equations():
    """Noise, three data sets, a random mask, a fixed bias, a target from two stages back; all observables of the training set."""
    data = GaussianMixture(1.5, 0.4, 0.5, label_noise=0.2, further=(DataSet("a", 0.8, 0.1), DataSet("b", 1.2)))
    labels_only = Loss.from_expression("((h + 1)/2 - y)**2")
    chain = Chain.of(
        [
            Estimator(labels_only, 1.5, sets=("training", "b")),
            Estimator(SquareDistillation(gain=0.8), 0.5, eta=0.7, sets="a", bias=0.1),
            Estimator(SquareDistillation(mixing=0.6, teacher=(1, 2)), 0.3, eta=0.5, mask_overlap=0.6, sets=("b", "a")),
        ]
    )
    n, seed = 50, np.random.SeedSequence(3, spawn_key=(0,))
    sample, masks = draw(data, n, seed), draw_masks(chain, n, seed)
    rows = {"training": np.arange(75), "a": np.arange(75, 115), "b": np.arange(115, 175)}
    signs, clean = 2 * sample.labels - 1, 2 * sample.clean_labels - 1
    own = [np.r_[rows["training"], rows["b"]], rows["a"], np.r_[rows["a"], rows["b"]]]
    columns = [np.arange(n)[mask] for mask in masks]
    weights, logits, biases = np.zeros((3, n)), np.zeros((3, 175)), np.zeros(3)
    for t, bias in enumerate((None, 0.1, None)):
        target = (signs, 0.8 * logits[0], 0.4 * signs + 0.6 * (logits[0] + logits[1]) / 2)[t]
        ridge = (1.5, 0.5, 0.3)[t]
        part = sample.design[np.ix_(own[t], columns[t])]
        weights[t, columns[t]], biases[t] = ridge_regression(part, target[own[t]], ridge, bias)
        logits[t] = sample.design @ weights[t] + biases[t]
    result = simulate(data, chain, n_inputs=n, n_runs=1, seed=3, gradient_tolerance=1e-12)
    assert result.bias.mean == pytest.approx(biases, rel=1e-8)
    assert result.overlap.mean == pytest.approx(weights @ weights.T / n, rel=1e-8)
    assert result.magnetization.mean == pytest.approx(weights @ sample.mean / n, rel=1e-8)
    for t, stage in enumerate(result):
        h = logits[t, own[t]]
        assert stage.train_error.mean == np.mean(h * signs[own[t]] < 0)
        assert stage.clean_train_error.mean == np.mean(h * clean[own[t]] < 0)
        assert stage.train_cross_entropy.mean == pytest.approx(np.mean(np.logaddexp(0, -signs[own[t]] * h)))
        if t:
            taught = logits[:t, own[t]].mean(axis=0)  # by the first stage, and by the mean logit of the first two
            assert stage.train_logit_distance.mean == pytest.approx(np.mean((h - taught) ** 2))
            assert stage.teacher_train_agreement.mean == np.mean((h > 0) == (taught > 0))
            mean = weights[:t].mean(axis=0)
            cosine = mean @ weights[t] / np.linalg.norm(mean) / np.linalg.norm(weights[t])
            assert stage.teacher_cosine.mean == pytest.approx(cosine)
            spread = 0.5 * np.sum((weights[t] - mean) ** 2) / n
            shift = (weights[t] - mean) @ sample.mean / n
            offset = biases[t] - biases[:t].mean()
            distance = spread + 0.4 * (shift + offset) ** 2 + 0.6 * (shift - offset) ** 2
            assert stage.test_logit_distance.mean == pytest.approx(distance)
    target = 0.4 * signs + 0.6 * (logits[0] + logits[1]) / 2
    loss = np.mean((logits[2] - target)[own[2]] ** 2) / 4
    assert result[2].train_loss.mean == pytest.approx(loss)
    assert result[2].free_energy.mean == pytest.approx(100 / n * loss + 0.15 * weights[2] @ weights[2] / n)


def test_noise_flips_labels_and_nothing_else():
    clean = GaussianMixture(20.0, 0.3, further=(DataSet("more", 10.0),))
    noisy = GaussianMixture(20.0, 0.3, label_noise=0.25, further=(DataSet("more", 10.0, 0.1),))
    one, other = (sample_of(data) for data in (clean, noisy))
    assert np.array_equal(one.design, other.design)
    assert np.array_equal(one.mean, other.mean)
    assert np.array_equal(one.labels, other.clean_labels)
    assert np.array_equal(one.labels, one.clean_labels)
    for name, theta in (("training", 0.25), ("more", 0.1)):
        flipped = (other.labels != other.clean_labels)[other.sets[name]]
        assert abs(flipped.mean() - theta) < 4 * math.sqrt(theta * (1 - theta) / len(flipped))
    alone = sample_of(GaussianMixture(20.0, 0.3))
    assert np.array_equal(alone.design, one.design[one.sets["training"]])
    signs = 2 * other.clean_labels - 1
    assert (signs @ other.design / 1800) @ other.mean / 60 == pytest.approx(other.mean @ other.mean / 60**2, abs=0.01)


def test_masks_have_the_overlap_that_was_asked_for():
    chain = Chain.of(
        [
            Estimator(CrossEntropy(), 0.1, eta=0.5),
            Hebbian(eta=0.4, mask_overlap=0.25),
            Hebbian(eta=0.6, mask_overlap=0.0),
            Estimator(CrossEntropy(), 0.1, eta=0.3),
            Hebbian(eta=0.3, mask_overlap=1.0),
        ]
    )
    n = 4000
    masks = np.zeros((5, n), dtype=bool)
    selections = draw_masks(chain, n, np.random.SeedSequence(1))
    for mask, selection in zip(masks, selections, strict=True):
        mask[selection] = True
    assert masks.sum(axis=1).tolist() == [2000, 1600, 2400, 1200, 1200]
    assert masks[0, :2000].all()
    assert masks[3, :1200].all()
    assert (masks[0] & masks[1]).sum() == 400
    assert np.array_equal(masks[2], ~masks[1])
    assert np.array_equal(masks[3], masks[4])
    # Uniform inside and outside: with respect to the fourth mask, which lies in the first.
    assert (masks[3] & masks[1]).sum() == pytest.approx(1200 * 400 / 2000, abs=4 * math.sqrt(1200 * 0.2 * 0.8 * 0.4))
    again = draw_masks(chain, n, np.random.SeedSequence(2))
    assert not np.array_equal(selections[1], again[1])


def test_masks_are_rounded_to_whole_weights_that_fit():
    chain = [Estimator(CrossEntropy(), 0.1, eta=0.5), Hebbian(eta=0.5, mask_overlap=0.0), BayesOptimal()]
    result = simulate(DATA, chain, n_inputs=21, n_runs=1)
    assert result.active == (10, 10, 21)
    assert result.overlap.mean[1, 0] == 0.0
    effective = result.effective_chain
    assert [stage.eta for stage in effective.stages] == [10 / 21, 10 / 21, 1.0]
    assert effective[1].mask_overlap == 0.0
    assert result.effective_data == GaussianMixture(32 / 21, 0.3, 0.8)


def test_results_name_all_data_sets():
    data = GaussianMixture(1.01, 0.5, further=(DataSet("transfer", 0.49),))
    result = simulate(data, [TEACHER, Estimator(Distillation(), 0.1, sets="transfer")], n_inputs=50, n_runs=1)
    assert result.set_sizes == (50, 24)
    assert result.n_samples == 50
    assert result.effective_data.further == (DataSet("transfer", 0.48),)
    assert result.to_dict()["further_samples"] == {"transfer": 24}


def test_hebbian_stages_are_sums_of_samples():
    """Exactly in each run, and in the mean m = 1 - 2 theta, Q = m^2 + Delta/alpha over both sets: 20 runs at N = 400, |z| < 4."""
    data = GaussianMixture(1.0, 0.3, 0.7, label_noise=0.2, further=(DataSet("more", 0.5, 0.2),))
    chain = Chain.of([Hebbian(sets=("training", "more")), Hebbian(ridge=2.0, bias=0.4, eta=0.5, sets="more")])
    seed = np.random.SeedSequence(0, spawn_key=(0,))
    sample = draw(data, 60, seed)
    both, half = train(sample, Chain(chain.resolved(data)), draw_masks(chain, 60, seed), 1e-12)
    signs = 2 * sample.labels - 1
    assert both.weights == pytest.approx(signs @ sample.design / 1.5, rel=1e-9, abs=1e-12)
    more = sample.sets["more"]
    assert half.weights == pytest.approx(signs[more] @ sample.design[more, :30] / 2.0, rel=1e-9, abs=1e-12)
    assert (both.bias, half.bias) == (0.0, 0.4)
    result = simulate(data, chain, n_inputs=400, n_runs=20)
    for found, expected in ((result[0].magnetization, 0.6), (result[0].norm_squared, 0.36 + 0.7 / 1.5)):
        assert abs(found.mean - expected) < 4 * found.standard_error


def test_bayes_optimal_stage_reaches_the_bayes_error():
    """20 runs at N = 500 with two data sets, |z| < 4."""
    data = GaussianMixture(1.0, 0.2, 0.8, further=(DataSet("more", 0.5),))
    result = simulate(data, BayesOptimal(sets=("training", "more")), n_inputs=500, n_runs=20, seed=1)
    found = result[0].test_error
    assert abs(found.mean - float(observables.bayes_error(1.5, 0.8, 0.2))) < 4 * found.standard_error
    assert result[0].bias.mean == pytest.approx(0.4 * (1 + 0.8 / 1.5) * math.log(0.25))


def test_frozen_stages_have_the_overlaps_they_were_given():
    """20 runs at N = 500, |z| < 4; the part of the weights outside v is independent of v and of everything else."""
    chain = [Frozen(0.6, 1.2, -0.3), Estimator(Distillation(mixing=0.5), 0.1), Frozen(0.5, 0.25)]
    result = simulate(DATA, chain, n_inputs=500, n_runs=20)
    expected = {(0, 0): 1.2, (2, 0): 0.3, (2, 2): 0.25}
    for (t, s), value in expected.items():
        found = estimate(result.runs["overlap"][:, t, s])
        assert abs(found.mean - value) < 4 * found.standard_error
    for t, value in ((0, 0.6), (2, 0.5)):
        assert abs(result[t].magnetization.mean - value) < 4 * result[t].magnetization.standard_error
    assert result.runs["overlap_cosine"][:, 2, 0] == pytest.approx(result.runs["cosine"][:, 0], rel=1e-9)
    assert np.all(result.runs["bias"][:, 0] == -0.3)
    gap = estimate(result.runs["generalization_gap"][:, 0])
    assert abs(gap.mean) < 4 * gap.standard_error
    assert math.isnan(result[0].train_loss.mean)
    assert result[0].train_cross_entropy.mean > 0
    assert result[1].teacher_agreement.mean > 0.6
    assert result.converged
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_fixed_bias_is_not_trained():
    chain = [Estimator(CrossEntropy(), 0.1, bias=0.25), Estimator(Distillation(), 0.01, bias=-1)]
    result = simulate(DATA, chain, n_inputs=60, n_runs=2)
    assert np.array_equal(result.runs["bias"], [[0.25, -1.0]] * 2)
    sample = draw(DATA, 60, np.random.SeedSequence(0, spawn_key=(0,)))
    expected = minimise_ridge(sample.design, Logistic(sample.labels), 0.1, bias=0.25, gradient_tolerance=1e-10)
    assert result.runs["magnetization"][0, 0] == pytest.approx(expected.weights @ sample.mean / 60, rel=1e-7)


def test_hard_pseudo_labels_are_the_decisions_of_the_teachers():
    chain = Chain.of(
        [
            TEACHER,
            Estimator(SquareLoss(), 0.5),
            Estimator(PseudoLabels(mixing=0.8, teacher=(1, 2)), 0.2),
            Estimator(PseudoLabels(teacher=1, square=True), 0.2),
        ]
    )
    sample = sample_of()
    first, second, votes, square = train(sample, chain, (60,) * 4, 1e-11)
    share = ((first.logits > 0) * 1.0 + (second.logits > 0)) / 2
    expected = minimise_ridge(sample.design, Logistic(0.2 * sample.labels + 0.8 * share), 0.2, gradient_tolerance=1e-11)
    assert votes.weights == pytest.approx(expected.weights, rel=1e-8, abs=1e-10)
    weights, bias = ridge_regression(sample.design, np.sign(first.logits), 0.2)
    assert square.weights == pytest.approx(weights, rel=1e-8, abs=1e-10)
    assert square.bias == pytest.approx(bias, rel=1e-8)


# Failures and bad input


def test_a_fit_that_misses_its_tolerance_warns_or_raises():
    with pytest.warns(ConvergenceWarning, match="run 0, teacher"):
        result = simulate(DATA, TEACHER, n_inputs=40, n_runs=1, gradient_tolerance=1e-25)
    assert not result.converged
    with pytest.raises(ConvergenceError, match="run 0, teacher"):
        simulate(DATA, TEACHER, n_inputs=40, n_runs=1, gradient_tolerance=1e-25, throw=True)


def test_success_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(DATA, [TEACHER, STUDENT], n_inputs=40, n_runs=2)


@pytest.mark.parametrize("name", ["n_inputs", "n_runs", "n_jobs", "seed"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "2"])
def test_bad_counts_are_named(name, value):
    with pytest.raises(ParameterError, match=name):
        simulate(DATA, TEACHER, **{"n_inputs": 50, name: value})


@pytest.mark.parametrize(("name", "value"), [("n_inputs", 1), ("n_runs", 0), ("n_jobs", 0)])
def test_counts_below_their_least_value_are_named(name, value):
    with pytest.raises(ParameterError, match=name):
        simulate(DATA, TEACHER, **{"n_inputs": 50, name: value})


@pytest.mark.parametrize("value", [0.0, -1e-8, 1.0, math.nan, "small"])
def test_bad_gradient_tolerance_is_named(value):
    with pytest.raises(ParameterError, match="gradient_tolerance"):
        simulate(DATA, TEACHER, n_inputs=50, gradient_tolerance=value)


def test_too_few_samples_or_weights_are_named():
    with pytest.raises(ParameterError, match="alpha"):
        simulate(GaussianMixture(alpha=0.01), TEACHER, n_inputs=100)
    with pytest.raises(ParameterError, match="eta of student"):
        simulate(DATA, [TEACHER, Estimator(Distillation(), ridge=0.1, eta=0.001)], n_inputs=100)


def test_bad_data_and_chain_are_named():
    with pytest.raises(ParameterError, match="data"):
        simulate("mixture", TEACHER)
    with pytest.raises(ParameterError, match="chain"):
        simulate(DATA, 3)
    with pytest.raises(ParameterError, match="stage 1"):
        simulate(DATA, [STUDENT])


def test_a_draw_of_one_class_only_is_one_clear_error():
    with pytest.raises(ParameterError, match=r"alpha.*n_inputs.*rho"):
        simulate(GaussianMixture(alpha=0.5, rho=0.001), TEACHER, n_inputs=20, n_runs=1)


def test_one_class_is_no_error_where_the_bias_is_fixed_or_the_targets_are_soft():
    data = GaussianMixture(alpha=0.5, rho=0.001)
    result = simulate(data, Estimator(CrossEntropy(), 0.1, bias=0.0), n_inputs=20, n_runs=1)
    assert result.converged
    with pytest.raises(ParameterError, match="gave student 10 samples, all of one class"):
        simulate(data, [Frozen(1.0, 1.0, 9.0), Estimator(PseudoLabels(), 0.1)], n_inputs=20, n_runs=1)
    assert simulate(data, [Frozen(1.0, 1.0), Estimator(Distillation(), 0.1)], n_inputs=20, n_runs=1).converged


def test_data_and_chain_that_do_not_fit_are_named():
    with pytest.raises(ParameterError, match="transfer"):
        simulate(DATA, Estimator(CrossEntropy(), 0.1, sets="transfer"))
    with pytest.raises(ParameterError, match="alpha\\*n_inputs of few"):
        simulate(GaussianMixture(1.0, further=(DataSet("few", 0.01),)), Hebbian(sets=("training", "few")), n_inputs=50)
    with pytest.raises(ParameterError, match="ridge of teacher"):
        simulate(DATA, Estimator(CrossEntropy(), 0.0))


def test_what_is_asked_for_is_measured_and_nothing_else() -> None:
    chain = [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=0.01, eta=0.5)]
    everything = simulate(DATA, chain, 60, 3)
    some = simulate(DATA, chain, 60, 3, observables=["test_error", "teacher_cosine"])
    assert {"test_error", "teacher_cosine", "bias"} <= set(some.runs)
    assert not {"train_error", "calibration_error"} & set(some.runs)
    assert "test_error" in simulate(DATA, chain, 60, 3, observables="test_error").runs
    for names, message in (("nonsense", "unknown name 'nonsense'"), ([], "at least one of"), (3, "at least one of")):
        with pytest.raises(ParameterError, match=f"observables.*{message}"):
            simulate(DATA, chain, 60, 3, observables=names)
    for name in ("test_error", "teacher_cosine", "bias"):
        assert getattr(some[1], name) == getattr(everything[1], name)
