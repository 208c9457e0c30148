"""The table "Other conventions" of the README: C, weight decay and distillation loss of others in our parameters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, ndtr, rel_entr
from surroundings import ROOT

from numerics import Estimator, GaussianMixture, LinearRule, solve
from numerics.codegen.losses import LossFunctions
from theory.losses import CrossEntropy, Distillation, Loss, SquareLoss

DATA = GaussianMixture(alpha=1.5, rho=0.2, delta=0.7)
RIDGE = 0.3
N, RUNS = 400, 12
LARGEST_Z = 4.0
MEAN_OF_LOGITS = "softplus(h) - sigmoid((h_1 + h_2)/2)*h"


def drawn(generator: np.random.Generator, n: int = N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre v, inputs x of shape (samples, n) and labels y of 0 and 1."""
    v = generator.standard_normal(n)
    y = (generator.random(round(DATA.alpha * n)) < DATA.rho).astype(float)
    x = np.outer(2 * y - 1, v) / np.sqrt(n) + np.sqrt(DATA.delta) * generator.standard_normal((y.size, n))
    return v, x, y


def exact_test_error(v: np.ndarray, weights: np.ndarray, bias: float) -> float:
    """Of the decision x.weights + bias > 0, over the whole population."""
    shift, width = weights @ v / np.sqrt(v.size), np.sqrt(DATA.delta) * np.linalg.norm(weights)
    wrong = [ndtr(-(shift + sign * bias) / width) for sign in (1, -1)]
    return float(DATA.rho * wrong[0] + (1 - DATA.rho) * wrong[1])


def z(values: list[float], expected: float) -> float:
    return float((np.mean(values) - expected) / (np.std(values, ddof=1) / np.sqrt(len(values))))


@pytest.mark.parametrize("scaled", [False, True], ids=["x", "x/sqrt(N)"])
def test_c_of_scikit_learn(scaled: bool) -> None:
    """C = 1/(N ridge) on inputs x, 1/ridge on x/sqrt(N).  N = 400, 12 runs, seed 1, |z| < 4 for test error, norm and bias."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    stage = solve(DATA, Estimator(CrossEntropy(), RIDGE))[0]
    factor = np.sqrt(N) if scaled else 1.0
    generator = np.random.default_rng(1)
    errors, norms, biases = [], [], []
    for _ in range(RUNS):
        v, x, y = drawn(generator)
        fit = linear_model.LogisticRegression(C=factor**2 / (N * RIDGE), tol=1e-8, max_iter=1000).fit(x / factor, y)
        weights = fit.coef_[0] / factor
        errors.append(exact_test_error(v, weights, fit.intercept_[0]))
        norms.append(weights @ weights)
        biases.append(fit.intercept_[0])
    assert abs(z(errors, stage.test_error)) < LARGEST_Z
    assert abs(z(norms, stage.norm_squared)) < LARGEST_Z
    assert abs(z(biases, stage.bias)) < LARGEST_Z
    # Another power of N, or a factor 2, is seen.
    twice = solve(DATA, Estimator(CrossEntropy(), 2 * RIDGE))[0]
    assert abs(z(norms, twice.norm_squared)) > 3 * LARGEST_Z


def test_alpha_of_scikit_learns_ridge_regression() -> None:
    """alpha = N ridge for (h - s)^2/2.  N = 400, 12 runs, seed 2, |z| < 4."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rule = LinearRule(alpha=1.5, noise=0.25)
    stage = solve(rule, Estimator(SquareLoss(), RIDGE, bias=0.0))[0]
    generator = np.random.default_rng(2)
    risks = []
    for _ in range(RUNS):
        theta, x = generator.standard_normal(N), generator.standard_normal((round(rule.alpha * N), N))
        theta *= np.sqrt(N) / np.linalg.norm(theta)
        s = x @ theta / np.sqrt(N) + np.sqrt(rule.noise) * generator.standard_normal(len(x))
        fit = linear_model.Ridge(alpha=N * RIDGE, fit_intercept=False).fit(x, s)
        risks.append(float(np.sum((fit.coef_ - theta / np.sqrt(N)) ** 2)))
    assert abs(z(risks, stage.excess_risk)) < LARGEST_Z


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def of_two_classes(h: np.ndarray) -> np.ndarray:
    """Logits of two classes whose difference is h."""
    shared = np.sin(7 * h)  # it does not matter what they have in common
    return np.stack([shared, shared + h], axis=1)


def usual_loss(y: np.ndarray, h: np.ndarray, taught: np.ndarray, a: float, t: float, smoothing: float) -> float:
    """Mean over samples of (1-a) H(smoothed labels, p) + a T^2 KL(softened teacher, softened student), with two logits each."""
    labels = (1 - smoothing) * np.stack([1 - y, y], axis=1) + smoothing / 2
    hard = -np.sum(labels * np.log(softmax(of_two_classes(h))), axis=1)
    softened = [softmax(of_two_classes(logits) / t) for logits in (taught, h)]
    return float(np.mean((1 - a) * hard + a * t**2 * np.sum(rel_entr(*softened), axis=1)))


def ours(loss: Loss, y: np.ndarray, h: np.ndarray, *taught: np.ndarray) -> float:
    """Mean over samples of our loss."""
    return float(np.mean(LossFunctions(loss).value(h, y, np.stack(taught, axis=1))))


def samples() -> tuple[np.ndarray, ...]:
    """Labels, logits of a teacher, of another, and of two students."""
    generator = np.random.default_rng(3)
    return (generator.integers(0, 2, 50).astype(float), *(2 * generator.standard_normal((4, 50))))


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_the_usual_distillation_loss(a: float, t: float) -> None:
    """T^2 KL is our loss with ``temperature_squared`` up to what the student does not change; their smoothing is twice ours."""
    y, taught, _, one, other = samples()
    loss = Distillation(a, t, smoothing=0.05, temperature_squared=True)
    found = ours(loss, y, one, taught) - ours(loss, y, other, taught)
    expected = usual_loss(y, one, taught, a, t, 0.1) - usual_loss(y, other, taught, a, t, 0.1)
    assert found == pytest.approx(expected, abs=1e-12)


def test_several_teachers() -> None:
    """Ours teach by the mean of their probabilities; the mean of their logits is a formula."""
    y, first, second, one, other = samples()
    p = (expit(first) + expit(second)) / 2
    expected = [np.mean(-p * np.log(expit(h)) - (1 - p) * np.log(expit(-h))) for h in (one, other)]
    found = [ours(Distillation(teacher=(1, 2)), y, h, first, second) for h in (one, other)]
    assert found == pytest.approx(expected, abs=1e-12)
    by_logits = Loss.from_expression(MEAN_OF_LOGITS)
    expected = [usual_loss(y, h, (first + second) / 2, 1.0, 1.0, 0.0) for h in (one, other)]
    found = [ours(by_logits, y, h, first, second) for h in (one, other)]
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], abs=1e-12)


def test_mean_over_samples_and_weight_decay() -> None:
    """Mean loss plus (decay/2)|W|^2 with h = W.x + b has ridge = alpha decay.  N = 100, 12 runs, seed 4, |z| < 4."""
    decay, n = RIDGE / DATA.alpha, 100
    stage = solve(DATA, Estimator(CrossEntropy(), DATA.alpha * decay))[0]
    generator = np.random.default_rng(4)
    norms = []
    for _ in range(RUNS):
        _, x, y = drawn(generator, n)

        def objective(w: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> tuple[float, np.ndarray]:
            h = x @ w[:-1] + w[-1]
            slope = (expit(h) - y) / len(y)
            value = np.mean(np.logaddexp(0, h) - y * h) + decay / 2 * w[:-1] @ w[:-1]
            return value, np.append(x.T @ slope + decay * w[:-1], slope.sum())

        w = minimize(objective, np.zeros(n + 1), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "maxiter": 2000}).x
        norms.append(w[:-1] @ w[:-1])
    assert abs(z(norms, stage.norm_squared)) < LARGEST_Z


def test_the_table_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert MEAN_OF_LOGITS in text
    assert "temperature_squared=True" in text
