"""The experiment with K classes: what is drawn, what is trained, what is measured; theory is compared elsewhere."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from numerics import Estimator, ParameterError, simulate
from numerics.codegen.losses import LossFunctions
from numerics.models import (
    Chain,
    ClassMixture,
    ClassSet,
    GaussianMixture,
    helmert,
    orthogonal_means,
    similar_pairs,
    simplex_means,
)
from numerics.simulation.draw import class_counts, draw_classes
from numerics.simulation.measure import MeasuredClasses
from numerics.simulation.responses import measure_class_responses
from numerics.simulation.ridge_fit import minimise_ridge
from numerics.simulation.softmax_fit import _HessianFactor, _SoftmaxNewton, minimise_softmax
from numerics.simulation.train import Fields, StageFit, class_fields_of, train
from theory.losses import (
    CrossEntropy,
    Distillation,
    LogitMatching,
    PseudoLabels,
    SquareLoss,
)

DATA = ClassMixture(2.0, [0.4, 0.35, 0.25], similar_pairs(3, 0.5), [0.5, 0.8, 0.6])
STUDENT = Estimator(Distillation(0.7, 2.0), 0.1, eta=0.5)
CHAIN = Chain.of([Estimator(CrossEntropy(), 0.1), STUDENT])


def seed(number: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


def trained(data: ClassMixture, chain: Chain, n_inputs: int, number: int = 0):
    """One draw and its fits."""
    active = [round(stage.eta * n_inputs) for stage in chain.stages]
    sample = draw_classes(data, n_inputs, seed(number), active)
    return sample, train(sample, chain, active, 1e-9, {})


# Drawing.


def test_means_have_their_gram_matrix_on_every_mask():
    gram = np.array(DATA.gram)
    sample = draw_classes(DATA, 60, seed(), [60, 30, 45])
    for part in (slice(0, 30), slice(30, 45), slice(45, 60), slice(0, 60)):
        means = sample.mean[:, part]
        np.testing.assert_allclose(means @ means.T / means.shape[1], gram, atol=1e-12)
    few = draw_classes(DATA, 60, seed(), [60, 2])  # masks with fewer inputs than classes
    np.testing.assert_allclose(few.mean @ few.mean.T / 60, gram, atol=1e-12)


def test_classes_have_their_shares_and_noise():
    transfer = ClassSet("transfer", 1.5, weights=[0.5, 0.5, 0.0])
    data = ClassMixture(4.0, DATA.weights, DATA.gram, DATA.delta, further=transfer)
    counts = class_counts(data, 150)
    assert [found.tolist() for found in counts] == [[240, 210, 150], [113, 112, 0]]
    sample = draw_classes(data, 150, seed(3))
    for name, found in zip(("training", "transfer"), counts, strict=True):
        assert np.bincount(sample.labels[sample.sets[name]], minlength=3).tolist() == found.tolist()
    noise = (sample.design - sample.mean[sample.clean_labels] / 150) * math.sqrt(150)
    for c in range(3):
        values = noise[sample.clean_labels == c].ravel()
        z = (values.var() / data.deltas[c] - 1) / math.sqrt(2 / len(values))
        assert abs(z) < 4
        assert abs(values.mean()) < 4 * math.sqrt(data.deltas[c] / len(values))


def test_labels_follow_the_confusion_matrix():
    confusion = np.array([[0.8, 0.15, 0.05], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])
    data = ClassMixture(40.0, DATA.weights, DATA.gram, DATA.delta, confusion=confusion)
    sample, clean = (
        draw_classes(data, 100, seed(1)),
        draw_classes(ClassMixture(40.0, DATA.weights, DATA.gram, DATA.delta), 100, seed(1)),
    )
    assert np.array_equal(sample.design, clean.design)  # noise on labels has a stream of its own
    assert np.array_equal(sample.clean_labels, clean.labels)
    for c in range(3):
        labels = sample.labels[sample.clean_labels == c]
        share = np.bincount(labels, minlength=3) / len(labels)
        spread = np.sqrt(confusion[c] * (1 - confusion[c]) / len(labels))
        assert np.all(np.abs(share - confusion[c]) <= 4 * spread)


# Training.


def reference_force(loss, h, labels, taught, table):
    """Targets minus slopes, written out for a few losses."""
    k = h.shape[1]
    one_hot = np.eye(k)[labels]
    name, p = type(loss).__name__, loss.parameters
    if name == "CrossEntropy":
        eps = p["smoothing"]
        return one_hot * (1 - eps) + (1 - one_hot) * eps / (k - 1) - softmax(h, axis=1)
    if name == "SquareLoss":
        return one_hot - h
    if name == "LogitMatching":
        return (1 - p["mixing"]) * (one_hot - softmax(h, axis=1)) + p["mixing"] * p["gain"] * (taught - h)
    if name == "PseudoLabels":
        return (1 - p["mixing"]) * one_hot + p["mixing"] * np.eye(k)[np.argmax(taught, axis=1)] - softmax(h, axis=1)
    chi, t, target = p["mixing"], p["temperature"], dict(loss.options).get("target", "full")
    soft = softmax(taught / t, axis=1)
    mine = soft[np.arange(len(labels)), labels][:, None]
    if target == "true":
        soft = np.where(one_hot > 0, mine, (1 - mine) / (k - 1))
    elif target == "similarity":
        soft = table[labels]
    elif target == "true+similarity":
        rest = table[labels] * (1 - one_hot)
        soft = np.where(one_hot > 0, mine, (1 - mine) * rest / rest.sum(axis=1, keepdims=True))
    elif target == "top-2":
        kept = np.argsort(np.argsort(-soft, axis=1), axis=1) < 2
        left = 1 - np.sum(soft * kept, axis=1, keepdims=True)
        soft = np.where(kept, soft, left / (k - 2))
    return (1 - chi) * (one_hot - softmax(h, axis=1)) + chi / t * (soft - softmax(h / t, axis=1))


LOSSES = [
    Distillation(0.6, 2.0),
    Distillation(1.0, 3.0, target="true"),
    Distillation(0.8, 2.0, target="similarity"),
    Distillation(0.8, 2.0, target="true+similarity"),
    Distillation(1.0, 2.0, target="top-2"),
    PseudoLabels(0.7),
    LogitMatching(0.5, 0.3),
    SquareLoss(),
    CrossEntropy(0.1),
]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_students_are_at_the_minimum_of_their_objective(loss):
    """The gradient, with targets written out here, vanishes: three stages, the last taught by the first, on a mask."""
    data = ClassMixture(1.5, [0.4, 0.3, 0.2, 0.1], similar_pairs(4, 0.5), 0.6, label_noise=0.1)
    taught = {"teacher": 1} if loss.logits else {}
    options = dict(loss.options)
    last = type(loss)(**loss.parameters, **{key: value for key, value in options.items()}, **taught)
    chain = Chain.of(
        [Estimator(CrossEntropy(), 0.05), Estimator(Distillation(0.5), 0.2), Estimator(last, 0.1, eta=0.7)]
    )
    sample, fits = trained(data, chain, 60)
    basis = helmert(4)
    h, teacher = fits[2].logits @ basis, fits[0].logits @ basis
    table = np.array([softmax(teacher / 2, axis=1)[sample.labels == y].mean(axis=0) for y in range(4)])
    if "temperature" in loss.parameters:
        table = np.array(
            [
                softmax(teacher / loss.parameters["temperature"], axis=1)[sample.labels == y].mean(axis=0)
                for y in range(4)
            ]
        )
    force = reference_force(last, h, sample.labels, teacher, table) @ basis.T
    design = sample.design[:, :42]
    np.testing.assert_allclose(design.T @ force, 0.1 * fits[2].weights, atol=1e-7)
    np.testing.assert_allclose(force.sum(axis=0), 0, atol=1e-7)
    np.testing.assert_allclose(fits[2].logits, design @ fits[2].weights + fits[2].bias, atol=1e-12)
    assert all(fit.converged for fit in fits)


def test_fits_agree_with_a_general_purpose_optimiser():
    """Cross-entropy in all K logits, with weights of every class, by L-BFGS."""
    sample, (fit, *_) = trained(DATA, CHAIN, 40)
    n, k = 40, 3
    one_hot = np.eye(k)[sample.labels]

    def objective(x):
        w, b = x[: n * k].reshape(n, k), x[n * k :]
        h = sample.design @ w + b
        slope = softmax(h, axis=1) - one_hot
        value = -np.sum(one_hot * log_softmax(h, axis=1)) + 0.05 * np.sum(w**2)
        return value, np.append(sample.design.T @ slope + 0.1 * w, slope.sum(axis=0))

    found = minimize(
        objective, np.zeros(n * k + k), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "gtol": 1e-10, "ftol": 0}
    )
    np.testing.assert_allclose(found.x[: n * k].reshape(n, k), fit.weights @ helmert(3), atol=1e-5)
    np.testing.assert_allclose(np.sum(found.x[: n * k].reshape(n, k), axis=1), 0, atol=1e-5)


@pytest.mark.parametrize("ridge", [1e-4, 0.1])
def test_two_classes_are_the_binary_fit(ridge):
    """K = 2 with twice the ridge: the difference of the two logits is the binary logit."""
    data = ClassMixture(1.5, [0.3, 0.7], simplex_means(2), 1.0)
    sample = draw_classes(data, 60, seed(2))
    fields = class_fields_of(CrossEntropy(), 1, sample, (), slice(None))
    fit = minimise_softmax(sample.design, fields, 2 * ridge, 1, gradient_tolerance=1e-10)
    binary = Fields(
        LossFunctions(CrossEntropy()), (sample.labels == 0).astype(float), np.empty((len(sample.labels), 0))
    )
    other = minimise_ridge(sample.design, binary, ridge, gradient_tolerance=1e-10)
    scale = np.abs(other.weights).max()
    np.testing.assert_allclose(math.sqrt(2) * fit.weights[:, 0], other.weights, atol=1e-7 * scale)
    assert math.sqrt(2) * fit.bias[0] == pytest.approx(other.bias, abs=1e-7 * scale)


def test_the_factor_of_the_hessian_is_its_inverse():
    """That of every sample, written out, and used where products get expensive."""
    sample = draw_classes(DATA, 20, seed(1))
    fields = class_fields_of(CrossEntropy(), 1, sample, (), slice(None))
    newton = _SoftmaxNewton(sample.design, fields, 0.01, 2, 1e-9)
    point = np.random.default_rng(0).standard_normal(42)
    curvatures = fields.derivatives(newton.logits(point))[1]
    solved = _HessianFactor(sample.design, curvatures, 0.01, np.float64).solve(point)
    product = newton.adjoint(newton.bend(curvatures, newton.logits(solved))) + 0.01 * newton.weights_only(solved)
    np.testing.assert_allclose(product, point, atol=1e-6)
    newton.factorise(curvatures)
    assert newton.factor is not None
    fit = newton.run([], 100)
    assert fit.converged
    assert fit.products < 100


# Measuring.


def test_population_quantities_are_those_of_fresh_samples():
    """Exact integrals over the test law against 100000 samples drawn from it, |z| < 4."""
    data = ClassMixture(2.0, DATA.weights, DATA.gram, DATA.delta, test_weights=[0.2, 0.3, 0.5])
    result = simulate(data, CHAIN, n_inputs=50, n_runs=1, seed=5)
    sample, fits = trained(data, CHAIN, 50, 0)
    own = np.random.SeedSequence(5, spawn_key=(0,))
    sample = draw_classes(data, 50, own, (50, 25))
    fits = train(sample, CHAIN, (50, 25), 1e-8, {})
    rng, count = np.random.default_rng(6), 100_000
    labels = rng.choice(3, count, p=data.test_weights)
    design = sample.mean[labels] / 50 + np.sqrt(data.deltas[labels] / 50)[:, None] * rng.standard_normal((count, 50))
    h = [design @ fit.all_weights @ helmert(3) + fit.bias @ helmert(3) for fit in fits]
    chosen = [np.argmax(logits, axis=1) for logits in h]

    def close(values, expected):
        z = (np.mean(values) - expected) / (np.std(values) / math.sqrt(len(values)))
        assert abs(z) < 4, (np.mean(values), expected, z)

    runs = result.runs
    for t in range(2):
        close(chosen[t] != labels, runs["test_error"][0, t])
        close(-log_softmax(h[t], axis=1)[np.arange(count), labels], runs["test_cross_entropy"][0, t])
        close(np.sum((softmax(h[t], axis=1) - np.eye(3)[labels]) ** 2, axis=1), runs["brier_score"][0, t])
        for c in range(3):
            close(chosen[t][labels == c] != c, runs["class_errors"][0, t, c])
            for k in range(3):
                close(chosen[t][labels == c] == k, runs["confusion"][0, t, c, k])
    close(chosen[0] == chosen[1], runs["teacher_agreement"][0, 1])
    close(np.sum((h[0] - h[1]) ** 2, axis=1), runs["teacher_test_logit_distance"][0, 1])
    close(
        np.sum((softmax(h[0], axis=1) - softmax(h[1], axis=1)) ** 2, axis=1), runs["teacher_test_output_distance"][0, 1]
    )
    losses = 0.3 * -log_softmax(h[1], axis=1)[np.arange(count), labels]
    losses += 0.7 * -np.sum(softmax(h[0] / 2, axis=1) * log_softmax(h[1] / 2, axis=1), axis=1)
    close(losses, runs["test_loss"][0, 1])
    assert runs["quadrature_error"].max() < 1e-6
    confidence = softmax(h[1], axis=1).max(axis=1)
    place = (15 * confidence).astype(int)
    gaps = np.bincount(place, (chosen[1] == labels) - confidence, 15) / count
    assert np.abs(gaps).sum() == pytest.approx(
        runs["top_label_calibration_error"][0, 1], abs=4 * 0.5 / math.sqrt(count / 15)
    )


def test_training_quantities_are_averages_over_the_samples():
    result = simulate(DATA, CHAIN, n_inputs=40, n_runs=1, seed=1)
    sample = draw_classes(DATA, 40, np.random.SeedSequence(1, spawn_key=(0,)), (40, 20))
    fits = train(sample, CHAIN, (40, 20), 1e-8, {})
    runs, basis = result.runs, helmert(3)
    h = [fit.logits @ basis for fit in fits]
    for t in range(2):
        assert runs["train_error"][0, t] == np.mean(np.argmax(h[t], axis=1) != sample.labels)
        w = fits[t].all_weights @ basis
        np.testing.assert_allclose(runs["means"][0, t], sample.mean @ w / 40, atol=1e-12)
        np.testing.assert_allclose(runs["overlap"][0, t, 0], w.T @ (fits[0].all_weights @ basis) / 40, atol=1e-12)
    assert runs["teacher_train_agreement"][0, 1] == np.mean(np.argmax(h[0], axis=1) == np.argmax(h[1], axis=1))
    loss = -log_softmax(h[0], axis=1)[np.arange(80), sample.labels]
    assert runs["train_loss"][0, 0] == pytest.approx(loss.mean(), rel=1e-12)
    q = np.sum(fits[0].weights ** 2) / 40
    assert runs["free_energy"][0, 0] == pytest.approx(2.0 * loss.mean() + 0.05 * q, rel=1e-12)


def test_the_result_is_that_of_binary_simulations_with_axes_of_classes():
    result = simulate(DATA, CHAIN, n_inputs=31, n_runs=3, seed=2, n_jobs=2)
    again = simulate(DATA, CHAIN, n_inputs=31, n_runs=2, seed=2)
    assert result.converged
    assert result.runs["test_error"][:2] == pytest.approx(again.runs["test_error"], rel=1e-12)
    assert result.overlap.mean.shape == (2, 2, 3, 3)
    assert result.means.standard_error.shape == (2, 3, 3)
    assert result.bias.mean.shape == (2, 3)
    student = result["student"]
    assert student.class_errors.mean.shape == student.biases.mean.shape == (3,)
    assert student.confusion.mean.sum(axis=1) == pytest.approx(np.ones(3))
    assert student.test_error.n == 3
    assert student.test_error.mean == pytest.approx(np.array(DATA.weights) @ student.class_errors.mean)
    assert result.overlap.mean.sum(axis=-1) == pytest.approx(np.zeros((2, 2, 3)), abs=1e-12)
    text = json.dumps(result.to_dict())
    assert "class_errors" in text
    assert "NaN" not in text
    assert {"test_error", "norm", "free_energy", "brier_score"} <= set(dir(student))
    assert not {"magnetization", "cosine", "calibration_slope", "bias"} & set(dir(student))
    assert sum(result.effective_data.weights) == pytest.approx(1)
    assert result.effective_data.weights == pytest.approx([25 / 62, 22 / 62, 15 / 62])
    assert result.effective_data.test_weights == DATA.weights
    assert result.effective_eta == (1.0, 16 / 31)
    assert result.effective_chain[1].eta == 16 / 31


class Shifted:
    """An objective with fixed numbers added to its logits."""

    def __init__(self, fields, shift):
        self.fields, self.shift = fields, shift

    def value(self, u):
        return self.fields.value(u + self.shift)

    def derivatives(self, u):
        return self.fields.derivatives(u + self.shift)


def test_responses_are_derivatives_in_fields():
    """Against students that are trained again with ``- xi.w`` added to the objective of a stage: by ``w -> w + xi/ridge``."""
    n, step = 10, 1e-4
    data = ClassMixture(3.0, DATA.weights, DATA.gram, DATA.delta)
    chain = Chain.of([Estimator(CrossEntropy(), 0.2), Estimator(Distillation(0.6, 2.0), 0.3, eta=0.7)])
    sample = draw_classes(data, n, seed(4))
    sizes = [10, 7]
    fits = train(sample, chain, sizes, 1e-12, {})
    found = measure_class_responses(sample, chain, fits)

    def weights(stage, field):
        """Of both stages, with a field on the weights of one of them, shape (n, d)."""
        results = []
        for number, (estimator, size) in enumerate(zip(chain.stages, sizes, strict=True), start=1):
            own = field[:size] / estimator.ridge if number == stage else np.zeros((size, 2))
            fields = class_fields_of(estimator.loss, number, sample, results, slice(None))
            part = sample.design[:, :size]
            fit = minimise_softmax(part, Shifted(fields, part @ own), estimator.ridge, 2, gradient_tolerance=1e-12)
            everywhere = fit.logits + part @ own
            whole = {**vars(fit), "weights": fit.weights + own}
            results.append(StageFit(**whole, active=slice(0, size), rows=slice(None), everywhere=everywhere, size=n))
        return [fit.all_weights for fit in results]

    expected = np.zeros((2, 2, 2, 2))
    for s in (1, 2):
        for i in range(sizes[s - 1]):
            for b in range(2):
                field = np.zeros((n, 2))
                field[i, b] = step
                up, down = weights(s, field), weights(s, -field)
                for t in range(2):
                    expected[t, s - 1, :, b] += (up[t][i] - down[t][i]) / (2 * step) / n
    basis = helmert(3)
    np.testing.assert_allclose(found, basis.T @ expected @ basis, atol=2e-6)
    assert np.abs(found[1, 0]).max() > 1e-2
    hard = Chain.of([chain[0], Estimator(PseudoLabels(), 0.3)])
    both = simulate(data, hard, n_inputs=n, n_runs=2, responses=True)
    assert both.response.mean.shape == (2, 2, 3, 3)
    assert np.isnan(both.response.mean[1, 0]).all()
    assert both[0].response.mean == pytest.approx(np.trace(both.response.mean[0, 0]))


def test_further_quantities_are_read_off_the_stages():
    def largest(stages):
        assert isinstance(stages[1], MeasuredClasses)
        return {"largest": np.array([np.abs(stage.samples.logits).max() for stage in stages])}

    result = simulate(DATA, CHAIN, n_inputs=20, n_runs=2, further=largest)
    assert result.runs["largest"].shape == (2, 2)


def test_a_class_that_is_missing_in_the_transfer_set():
    """The student of a soft target still has a logit of the class it never saw, and is told by how much it errs there."""
    data = ClassMixture(
        2.0, gram=orthogonal_means(3), delta=0.3, further=ClassSet("transfer", 2.0, weights=[0.5, 0.5, 0])
    )
    chain = [
        Estimator(CrossEntropy(), 0.1),
        Estimator(Distillation(temperature=4.0, temperature_squared=True), 0.1, sets="transfer"),
    ]
    result = simulate(data, chain, n_inputs=100, n_runs=4)
    assert result.set_sizes == (200, 200)
    unseen = result[1].class_errors.mean[2]
    assert result[0].class_errors.mean[2] < unseen < 0.9
    hard = [chain[0], Estimator(CrossEntropy(), 0.1, sets="transfer")]
    with pytest.raises(ParameterError, match=r"sees none of class 2"):
        simulate(data, hard, n_inputs=100, n_runs=1)


# Input.


def test_bad_input_is_one_line():
    with pytest.raises(ParameterError, match=r"^alpha, n_inputs and weights gave teacher no sample of class 2;"):
        simulate(ClassMixture(0.5, [0.5, 0.49, 0.01], orthogonal_means(3)), CHAIN[0], n_inputs=20, n_runs=1)
    with pytest.raises(ParameterError, match=r"^ridge of teacher must be > 0"):
        simulate(DATA, Estimator(CrossEntropy(), 0.0), n_inputs=20, n_runs=1)
    partial = Estimator(Distillation(target="similarity"), 0.1)
    with pytest.raises(ParameterError, match=r"'similarity' of student is for the classes of a ClassMixture"):
        simulate(GaussianMixture(1.0), [CHAIN[0], partial], n_inputs=20, n_runs=1)
    with pytest.raises(ParameterError, match=r"^n_inputs must be an integer >= 2"):
        simulate(DATA, CHAIN, n_inputs=1)
