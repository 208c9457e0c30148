"""Separability of K classes: known values, the binary case, exact averages, invariances, and linear programming."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit, linprog, nnls
from scipy.special import ndtr

from numerics.classes.cones import Circle, Line, Sphere, normals_of, symmetric_distance
from numerics.classes.separability import (
    ClassThreshold,
    _FixedPoint,
    _problem,
    complete_separability_threshold,
    maximum_likelihood_threshold,
)
from numerics.models import (
    ClassMixture,
    GaussianMixture,
    ParameterError,
    equal_overlaps,
    helmert,
    orthogonal_means,
    similar_pairs,
    simplex_means,
)
from numerics.thresholds import separability_threshold


def complete(gram, weights=None, delta=1.0, eta=1.0, **noise) -> ClassThreshold:
    return complete_separability_threshold(ClassMixture(1.0, weights, gram, delta, **noise), eta)


def existence(gram, weights=None, delta=1.0, eta=1.0) -> ClassThreshold:
    return maximum_likelihood_threshold(ClassMixture(1.0, weights, gram, delta), eta)


UNEQUAL = {
    "gram": [[1.2, 0.3, 0.1], [0.3, 0.9, -0.2], [0.1, -0.2, 1.5]],
    "weights": [0.4, 0.35, 0.25],
    "delta": [1.0, 0.7, 1.5],
}

REGULAR = {
    "gram": [[1.2, 0.1, 0.0], [0.1, 0.9, -0.2], [0.0, -0.2, 1.0]],
    "weights": [0.36, 0.34, 0.3],
    "delta": [1.0, 0.9, 1.1],
}
"""All three classes bind; of ``UNEQUAL``, two do."""

# Values.


@pytest.mark.parametrize(("classes", "expected"), [(2, 2.7329), (3, 3.1870), (4, 3.5950), (5, 3.9722), (10, 5.6003)])
def test_known_values(classes, expected):
    found = complete(orthogonal_means(classes))
    assert found.value == pytest.approx(expected, abs=6e-5)
    assert found.error < 1e-9
    assert found.groups == tuple((c,) for c in range(classes))


def test_pure_noise():
    assert complete(np.zeros((2, 2))).value == pytest.approx(2, abs=1e-12)
    assert complete(np.zeros((3, 3))).value == pytest.approx(12 / 5, abs=1e-11)


@pytest.mark.parametrize("rho", [0.5, 0.2, 0.01])
@pytest.mark.parametrize(("delta", "eta", "noise"), [(1.0, 1.0, 0.0), (0.3, 0.6, 0.0), (2.0, 1.0, 0.1)])
def test_two_classes_are_the_binary_mixture(rho, delta, eta, noise):
    expected = separability_threshold(rho, delta, eta, label_noise=noise)
    for gram in (simplex_means(2), np.array([[4.0, 0.0], [0.0, 0.0]])):  # a shift of all inputs does not matter
        found = complete(gram, [rho, 1 - rho], delta, eta, label_noise=noise)
        assert found.value == pytest.approx(expected, rel=1e-10)
        if not noise:
            assert existence(gram, [rho, 1 - rho], delta, eta).value == found.value


def test_thresholds_of_rare_classes():
    weights = [0.45, 0.45, 0.1]
    found = complete(orthogonal_means(3), weights)
    assert found.value == pytest.approx(3.037, abs=5e-4)
    assert found.value == pytest.approx(separability_threshold(0.5, 2.0) / 0.9, rel=1e-10)
    assert found.groups == ((0,), (1,))
    none = existence(orthogonal_means(3), weights)
    assert none.value == pytest.approx(4.854, abs=5e-4)
    assert none.groups == ((0, 1), (2,))


def test_from_three_classes_to_two_that_bind():
    """As the third class gets rarer: all three bind; then telling it from the others, however close those are; then the others.

    The threshold is continuous, above what can be done in two steps, and not above that of the two frequent classes.
    """
    rare = np.array([0.2, 0.197, 0.195, 0.193, 0.18])
    weights = [[0.5 - share / 2, 0.5 - share / 2, share] for share in rare]
    found = [complete(orthogonal_means(3), some) for some in weights]
    values = np.array([one.value for one in found])
    three, groups, two = ((0,), (1,), (2,)), ((0, 1), (2,)), ((0,), (1,))
    assert [one.groups for one in found] == [three, groups, groups, two, two]
    frequent = separability_threshold(0.5, 2.0) / (1 - rare)
    merged = np.array([existence(orthogonal_means(3), some).value for some in weights])
    assert np.all(values <= frequent * (1 + 1e-10))
    assert np.all(values >= np.minimum(merged, frequent) * (1 - 1e-10))
    assert values[1:] == pytest.approx(np.minimum(merged, frequent)[1:], rel=1e-10)
    assert np.abs(np.diff(values)[:3]).max() < 0.02


def test_a_rare_fourth_class_leaves_three():
    found = complete(orthogonal_means(4), [0.4, 0.3, 0.2, 0.1])
    three = complete(orthogonal_means(3), np.array([0.4, 0.3, 0.2]) / 0.9)
    assert found.groups == ((0,), (1,), (2,))
    assert found.value == pytest.approx(three.value / 0.9, rel=1e-9)
    assert existence(orthogonal_means(4), [0.4, 0.3, 0.2, 0.1]).groups == ((0, 1, 2), (3,))


def test_a_missing_class_needs_no_separation():
    found = complete(orthogonal_means(3), [0.5, 0.5, 0.0])
    assert found.value == pytest.approx(separability_threshold(0.5, 2.0), rel=1e-10)
    assert found.groups == ((0,), (1,))
    assert complete(orthogonal_means(2), [1.0, 0.0]).value == math.inf


def test_alike_classes_have_one_threshold():
    for gram in (orthogonal_means(4), simplex_means(5)):
        assert existence(gram).value == complete(gram).value


def test_similar_classes_are_the_first_to_be_mixed_up():
    """A pair of similar classes binds; merged with each other, they are told from the third one much longer."""
    gram = similar_pairs(3, 0.95)
    found, none = complete(gram, delta=0.25), existence(gram, delta=0.25)
    assert found.groups == ((0,), (1,))
    assert none.groups == ((0, 1), (2,))
    assert none.value > 1.5 * found.value


# Invariances.


def test_student_is_a_smaller_noisier_problem():
    for function in (complete, existence):
        student, dense = function(**UNEQUAL, eta=0.5), function(**{**UNEQUAL, "delta": [2.0, 1.4, 3.0]})
        assert student.value == pytest.approx(0.5 * dense.value, rel=1e-9)


@pytest.mark.parametrize("classes", [3, 6])
def test_an_equal_overlap_only_rescales_the_noise(classes):
    assert complete(equal_overlaps(classes, 0.6), delta=0.5).value == pytest.approx(
        complete(orthogonal_means(classes), delta=1.25).value, rel=1e-10
    )


@pytest.mark.parametrize(("problem", "binding"), [(REGULAR, 3), (UNEQUAL, 2)])
def test_order_of_classes_and_origin_do_not_matter(problem, binding):
    first = complete(**problem)
    order = [2, 0, 1]
    gram = np.array(problem["gram"])[np.ix_(order, order)] + 0.7
    moved = complete(gram, [problem["weights"][c] for c in order], [problem["delta"][c] for c in order])
    assert moved.value == pytest.approx(first.value, rel=1e-9)
    assert first.error < 1e-9
    assert len(first.groups) == len(moved.groups) == binding


@pytest.mark.parametrize("classes", [3, 4, pytest.param(5, marks=pytest.mark.large)])
def test_the_general_solver_agrees_with_that_of_alike_classes(classes):
    """Weights that differ by 1e-6, to which the threshold is stationary, are not taken for equal."""
    weights = np.full(classes, 1 / classes) + 1e-6 * np.cos(np.arange(classes) * 2 * math.pi / classes)
    found, exact = complete(orthogonal_means(classes), weights), complete(orthogonal_means(classes))
    assert abs(found.value - exact.value) < (2e-9 if classes == 3 else 1.5 * found.error)
    assert found.error < 2e-4


def test_label_noise_makes_separation_harder():
    values = [complete(orthogonal_means(3), label_noise=noise).value for noise in (0.0, 0.05, 0.2, 0.5)]
    assert np.all(np.diff(values) < 0)
    # Labels that say nothing: classes are alike, and their means are common to all labels.
    assert complete(orthogonal_means(3), confusion=np.full((3, 3), 1 / 3)).value == pytest.approx(12 / 5, rel=1e-8)


def test_the_threshold_is_a_stationary_value():
    """Of the ratio, in a, b, Q and W: its slopes, by differences, vanish; at a random place nearby they do not."""
    problem, _ = _problem(ClassMixture(1.0, **REGULAR), 1.0)
    solver = _FixedPoint(problem)
    value, error = solver.solve(coarse=False)
    assert error < 1e-9
    found = solver.last

    def ratio(x):
        return solver._step(x, Circle())[1]

    def slopes(x):
        steps = 1e-5 * np.eye(len(x))
        return np.array([(ratio(x + step) - ratio(x - step)) / 2e-5 for step in steps])

    assert ratio(found) == pytest.approx(value, rel=1e-10)
    assert np.abs(slopes(found)).max() < 1e-6
    moved = found + 0.05 * np.random.default_rng(0).standard_normal(len(found))
    assert np.abs(slopes(moved)).max() > 0.05


# Averages.


def forces_of_samples(mean, factor, response, normals, z):
    """f of every sample by a general-purpose solver: the nearest point of the cone, in the metric response^-1."""
    root = np.linalg.cholesky(response)
    scale = (mean + z @ factor.T) @ np.linalg.inv(root).T
    # Minimise |root.T N lambda + scale|^2 over lambda >= 0.
    return np.array([normals @ nnls(root.T @ normals, -row)[0] for row in scale])


@pytest.mark.parametrize("groups", [2, 3, 4, 6])
def test_averages_over_directions_are_those_of_samples(groups):
    """Against 20000 samples, |z| < 4; the rules agree with each other."""
    rng = np.random.default_rng(groups)
    d, count = groups - 1, 20000
    mean, factor = 0.5 * rng.standard_normal(d), np.linalg.cholesky(np.eye(d) + 0.3 * np.ones((d, d)))
    root = np.eye(d) + 0.3 * rng.standard_normal((d, d))
    response, normals = root @ root.T, normals_of(helmert(groups))[1]
    z = rng.standard_normal((count, d))
    f = forces_of_samples(mean, factor, response, normals, z)
    rules = {2: [Line()], 3: [Circle(), Circle(3)], 4: [Sphere(3, 13, 0)], 6: [Sphere(5, 14, 0)]}[groups]
    for rule in rules:
        found = rule.forces(mean, factor, response, normals)
        samples = (f, f[:, :, None] * z[:, None, :], f[:, :, None] * f[:, None, :])
        for average, values in zip(found, samples, strict=True):
            z_score = (average - values.mean(axis=0)) / (values.std(axis=0) / math.sqrt(count))
            assert np.abs(z_score).max() < 4


def test_the_angle_is_integrated_exactly():
    rng = np.random.default_rng(5)
    normals = normals_of(helmert(3))
    for scale in (0.1, 1.0, 6.0):
        mean, factor = scale * rng.standard_normal(2), np.array([[1.3, 0.0], [-0.4, 0.6]])
        response = np.array([[1.0, 0.3], [0.3, 0.5]])
        for cone in normals:
            some, more = (Circle(fineness).forces(mean, factor, response, cone) for fineness in (1, 3))
            for one, other in zip(some, more, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * max(1.0, scale**2))
    # Where the class is always wrong, all of the way is to the apex or an edge, and f is minus W times the logits.
    far = -20 * normals[0].sum(axis=1)
    factor = 0.1 * np.eye(2)
    found = Circle().forces(far, factor, np.eye(2), normals[0])
    np.testing.assert_allclose(found.mean, -far, atol=1e-10)


def test_distance_of_alike_classes():
    for shift in (0.0, 0.7, 2.0):
        a = shift / math.sqrt(2)  # along the normal of two classes
        exact = (1 + a * a) * ndtr(-a) - a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        assert symmetric_distance(2, shift) == pytest.approx(exact, abs=1e-13)
    for classes in (3, 5, 12):
        assert symmetric_distance(classes, 0.8) == pytest.approx(symmetric_distance(classes, 0.8, 2.0), rel=1e-10)
    found = Circle().forces(0.8 * helmert(3)[:, 0], np.eye(2), np.eye(2), normals_of(helmert(3))[0])
    assert symmetric_distance(3, 0.8) == pytest.approx(np.trace(found.square), abs=1e-12)


# Input.


def test_bad_input_is_one_line():
    with pytest.raises(ParameterError, match=r"^data must be a ClassMixture, got GaussianMixture"):
        complete_separability_threshold(GaussianMixture(1.0))
    with pytest.raises(ParameterError, match=r"^eta must be a number in \(0, 1\], got 0"):
        maximum_likelihood_threshold(ClassMixture(1.0), 0.0)
    weights = np.arange(1, 8) / 28
    with pytest.raises(ParameterError, match=r"^weights, gram and delta must leave at most 250 groupings of the 7"):
        existence(orthogonal_means(7), weights)


def test_far_classes_are_not_guessed():
    with pytest.raises(ArithmeticError, match="too far apart"):
        complete(orthogonal_means(3), delta=0.005)


# Linear programming.


def margins(data: ClassMixture, n_inputs: int, rng: np.random.Generator):
    """Rows of the conditions ``n.(w x + b) >= 0``, in the gauge, of one training set."""
    k = data.classes_count
    counts = np.round(data.alpha * n_inputs * np.array(data.weights)).astype(int)
    axes = np.linalg.qr(rng.standard_normal((n_inputs, k)))[0]
    means = data.gram.means() @ axes.T  # mu_c/sqrt(N), with exactly this Gram matrix
    rows = []
    for c in range(k):
        x = math.sqrt(data.deltas[c] / n_inputs) * rng.standard_normal((counts[c], n_inputs))
        x = np.column_stack((x + means[c] / math.sqrt(n_inputs), np.ones(counts[c])))
        rows += [np.kron(normal, x) for normal in normals_of(helmert(k))[c].T]
    return np.vstack(rows)


def separable(data, n_inputs, rng) -> bool:
    """Gordan: some weights give all margins >= 1."""
    rows = margins(data, n_inputs, rng)
    return linprog(np.zeros(rows.shape[1]), -rows, -np.ones(len(rows)), bounds=(None, None), method="highs").status == 0


def has_no_minimum(data, n_inputs, rng) -> bool:
    """Stiemke: some weights have no margin below 0, and one above."""
    rows = margins(data, n_inputs, rng)
    found = linprog(-rows.mean(axis=0), -rows, np.zeros(len(rows)), bounds=(-1, 1), method="highs")
    return found.status == 0 and -found.fun > 1e-7


@pytest.mark.parametrize("question", [separable, has_no_minimum])
def test_linear_programming_on_both_sides_of_the_threshold(question):
    """Three classes of different weights, noises and overlaps, N = 60, 10 samples of each kind."""
    data = ClassMixture(1.0, [0.5, 0.35, 0.15], UNEQUAL["gram"], UNEQUAL["delta"])
    threshold = (complete_separability_threshold if question is separable else maximum_likelihood_threshold)(data)
    rng = np.random.default_rng(1)
    shares = [
        np.mean([question(data.with_value("alpha", factor * threshold.value), 60, rng) for _ in range(10)])
        for factor in (0.65, 1.45)
    ]
    assert shares == [1.0, 0.0]


HALVES = {
    "rare": ({"gram": np.eye(3), "weights": [0.45, 0.45, 0.1]}, 3.0365, 4.8543),
    "unequal": (UNEQUAL, None, None),
    "four": ({"gram": similar_pairs(4, 0.5), "weights": [0.3, 0.3, 0.2, 0.2]}, None, None),
}


@pytest.mark.large
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("question", [separable, has_no_minimum])
def test_half_of_all_samples_are_separable_at_the_threshold(name, question):
    """N = 30 and 60, where half of 40 samples at each of 6 alphas are separable, extrapolated in 1/N: |z| < 4."""
    problem, *known = HALVES[name]
    data = ClassMixture(1.0, **problem)
    expected = (complete_separability_threshold if question is separable else maximum_likelihood_threshold)(data).value
    if known[0] is not None:
        assert expected == pytest.approx(known[question is has_no_minimum], abs=1e-3)
    rng = np.random.default_rng(2)
    halves, errors = [], []
    for n_inputs in (30, 60):
        alphas = expected * np.linspace(0.76, 1.26, 6)
        shares = [
            np.mean([question(data.with_value("alpha", alpha), n_inputs, rng) for _ in range(40)]) for alpha in alphas
        ]
        spread = np.sqrt(np.maximum(np.array(shares) * (1 - np.array(shares)), 0.02) / 40)
        place, covariance = curve_fit(
            lambda alpha, half, width: ndtr((half - alpha) / width), alphas, shares, (expected, 0.1 * expected), spread,
            absolute_sigma=True,
        )  # fmt: skip
        halves.append(place[0])
        errors.append(math.sqrt(covariance[0, 0]))
    z = (2 * halves[1] - halves[0] - expected) / math.hypot(2 * errors[1], errors[0])
    print(name, question.__name__, expected, halves, errors, z)
    assert abs(z) < 4
    assert halves[1] == pytest.approx(expected, rel=0.05)
