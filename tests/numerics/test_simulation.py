"""The simulation against other optimisers, Monte Carlo, finite differences and limits; and bad input."""

import json
import math
import warnings

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm
from sympy import lambdify

from numerics import simulation
from numerics.codegen import LossFunctions
from numerics.models import Chain, Estimator, GaussianMixture, ParameterError
from numerics.optimisers import minimise_ridge
from numerics.simulation import Population, draw, simulate, train
from numerics.solver import ConvergenceError, ConvergenceWarning
from theory import observables
from theory.losses import CrossEntropy, Distillation, LinearLoss, Loss, SquareLoss

DATA = GaussianMixture(alpha=1.5, rho=0.3, delta=0.8)
TEACHER = Estimator(CrossEntropy(), ridge=0.1)
STUDENT = Estimator(Distillation(mixing=0.7, temperature=2.0), ridge=1e-3, eta=0.6)


def sample_of(data=DATA, n_inputs=60, seed=0):
    return draw(data, n_inputs, np.random.SeedSequence(seed))


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
    without = minimise_ridge(design, Square(), ridge, fit_bias=False, gradient_tolerance=1e-12)
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


def test_unmet_tolerance_is_reported():
    sample = sample_of()
    short = minimise_ridge(sample.design, Logistic(sample.labels), 1e-5, max_iterations=2)
    assert not short.converged
    assert "after 2 Newton steps" in short.message
    strict = minimise_ridge(sample.design, Logistic(sample.labels), 1e-5, gradient_tolerance=1e-30)
    assert not strict.converged
    assert "rounding" in strict.message
    assert strict.relative_gradient_norm < 1e-10


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
    assert simulation.bivariate_normal_cdf(a, b, correlation) == pytest.approx(expected, abs=1e-10)


def test_bivariate_normal_of_equal_or_opposite_variables():
    assert simulation.bivariate_normal_cdf(0.5, -0.2, 1.0) == pytest.approx(norm.cdf(-0.2))
    assert simulation.bivariate_normal_cdf(0.5, -0.2, -1.0) == pytest.approx(norm.cdf(0.5) - norm.cdf(0.2))


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
        "outputs": models.output_distance(1, 0)[0],
        "loss": models.test_loss(loss, 1)[0],
    }
    for name, values in measured.items():
        z = (values.mean() - exact[name]) / (values.std() / math.sqrt(count))
        assert abs(z) < 4, f"{name}: z = {z:.1f}"


@pytest.mark.parametrize("norms", [(2.0, 1.5), (50.0, 50.0)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_split_test_loss_agrees_with_the_full_average(norms, temperature):
    models = population(norms)
    loss = Distillation(mixing=0.6, temperature=temperature)
    functions = LossFunctions(loss)
    full, _ = models.average(lambda x, label: functions.value(x[0], np.full(len(x[0]), label), x[1:].T.copy()), [1, 0])
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
    assert models.output_distance(1, 0)[0] == pytest.approx(0.0, abs=1e-12)
    assert models.logit_distance(1, 0) == pytest.approx(0.0, abs=1e-12)


# Whole simulation


def test_test_error_of_a_trained_chain_agrees_with_fresh_test_points():
    sample = sample_of(n_inputs=100)
    chain = Chain((TEACHER, STUDENT))
    fits = train(sample, chain, (100, 60), 1e-8)
    found = simulation.measure(DATA, sample, chain, fits)
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
        "overlap": simulation.estimate(result.runs["overlap"][:, 0, 0]),
        "test_error": result[0].test_error,
    }
    for name, found in measured.items():
        assert abs(found.mean - expected[name]) < 4 * found.standard_error, name
    error = simulation.estimate(norm.cdf(-result.runs["magnetization"][:, 1] / result.runs["norm"][:, 1]))
    assert abs(error.mean - expected["test_error"]) < 4 * error.standard_error


def test_linear_loss_is_the_hebbian_sum():
    sample = sample_of()
    (fit,) = train(sample, Chain((Estimator(LinearLoss(), ridge=2.0),)), (60,), 1e-10)
    assert fit.bias == 0.0
    assert fit.weights == pytest.approx((2 * sample.labels - 1) @ sample.design / 2.0, rel=1e-9)


CHAINS = {
    "dense": [TEACHER, Estimator(Distillation(mixing=0.7, temperature=2.0), ridge=0.02)],
    "masked": [TEACHER, STUDENT],
    "three": [
        Estimator(CrossEntropy(), ridge=0.1, eta=0.8),
        Estimator(Distillation(mixing=0.7), ridge=0.05, eta=0.5),
        Estimator(Loss.from_expression("softplus(h) - sigmoid(h_teacher + h_1/2)*h"), ridge=0.03, eta=0.7),
    ],
    "skipped": [
        Estimator(CrossEntropy(), ridge=0.1),
        Estimator(SquareLoss(), ridge=0.3),
        Estimator(Distillation(teacher=1), ridge=0.05),
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_responses_are_derivatives_of_the_trained_weights(name, monkeypatch):
    """V_ts against finite differences under a small field on stage s, all coordinates one by one."""
    n_inputs, step = 20, 1e-4
    chain = Chain.of(CHAINS[name])
    active = tuple(round(stage.eta * n_inputs) for stage in chain.stages)
    sample = sample_of(GaussianMixture(alpha=2.0, rho=0.3), n_inputs)
    exact = simulation.measure_responses(sample, chain, train(sample, chain, active, 1e-12))
    plain = minimise_ridge

    def weights_under(stage, field):
        """Train the chain with ``- field.w`` added to the objective of one stage."""
        numbers = iter(range(len(chain)))

        def with_field(design, objective, ridge, **options):
            if next(numbers) != stage:
                return plain(design, objective, ridge, **options)
            size = design.shape[1]
            shift = field[:size] / ridge
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

        monkeypatch.setattr(simulation, "minimise_ridge", with_field)
        return [fit.weights for fit in train(sample, chain, active, 1e-12)]

    measured = np.zeros_like(exact)
    for s in range(len(chain)):
        for i in range(active[s]):
            field = step * np.eye(n_inputs)[i]
            up, down = weights_under(s, field), weights_under(s, -field)
            for t in range(len(chain)):
                if i < active[t]:
                    measured[t, s] += (up[t][i] - down[t][i]) / (2 * step) / n_inputs
    assert exact == pytest.approx(measured, rel=1e-5, abs=1e-6)
    assert np.all(np.diag(exact) > 0)
    if name == "skipped":
        assert exact[1, 0] == exact[2, 1] == 0.0
    else:
        assert np.all(np.abs(exact[np.tril_indices(len(chain))]) > 1e-3)


def test_responses_are_returned_when_asked_for():
    result = simulate(DATA, [TEACHER, STUDENT], n_inputs=50, n_runs=2, responses=True)
    assert result.response.mean.shape == (2, 2)
    assert result.response.mean[0, 1] == 0.0
    assert "response" in result.to_dict()


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
