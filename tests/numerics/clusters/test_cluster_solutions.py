"""Solutions on clusters: what they reduce to, closed forms, experiments, and what is said of bad input."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

from numerics import (
    Clusters,
    DataSet,
    Dense,
    Estimator,
    Frozen,
    GaussianMixture,
    LinearMap,
    ParameterError,
    RandomFeatures,
    Simulation,
    simulate,
    solve,
    sweep,
)
from numerics.cli.report import solution_text
from numerics.clusters.prior import APART, COMMON, SHARED
from numerics.clusters.solution import ClusterSolution, solve_clusters
from numerics.clusters.weights import covariance_of_weights, law_of_weights, logits_on
from numerics.codegen import observables
from numerics.models import Chain
from numerics.optimize import derivatives, optimize
from numerics.problem import read_problem, write_problem
from numerics.settings import Settings
from numerics.solution.observables.registry import REGISTRY, observables_of
from tests.against_experiments import scores_of_stages
from tests.random_inputs import failures
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareLoss

SIZE = 8
UNLISTED = (
    "direction_error", "threshold_error", "brier_calibration", "brier_refinement", "calibrating_temperature",
    "cross_entropy_calibration", "cross_entropy_refinement", "teacher_right_wrong", "teacher_wrong_right",
    "tempered_calibration_error", "top_label_calibration_error", "kuiper_distance", "kolmogorov_distance", "ideal_joint_error",
)  # fmt: skip
TEACHER = Estimator(CrossEntropy(), 0.1)


def covariance_of(generator: np.random.Generator, size: int = SIZE) -> np.ndarray:
    factor = generator.normal(size=(size, 2 * size)) * np.exp(0.5 * generator.normal(size=size))[:, None]
    return factor @ factor.T / (2 * size)


def three_clusters(seed: int = 0, size: int = SIZE, **further: object) -> Clusters:
    generator = np.random.default_rng(seed)
    means = 1.5 / math.sqrt(size) * generator.normal(size=(3, size))
    covariances = np.array([scale * covariance_of(generator, size) for scale in (1.0, 0.3, 0.7)])
    return Clusters(3.0, means, covariances, [1, -1, -1], [0.3, 0.3, 0.4], **further)


def half(size: int = SIZE) -> LinearMap:
    return LinearMap(np.random.default_rng(5).normal(size=(size // 2, size)) / math.sqrt(size))


def student(features: LinearMap | None = None, **further: object) -> Estimator:
    return Estimator(Distillation(mixing=0.7, temperature=2.0), 0.05, features=features, **further)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("mapped", [False, True])
def test_two_clusters_of_one_covariance_are_dense_inputs(mapped: bool, noise: float) -> None:
    """All order parameters and observables, whichever of the two priors is taken."""
    generator = np.random.default_rng(1)
    shape, v = covariance_of(generator), generator.normal(size=SIZE)
    chain = Chain.of([TEACHER, student(half() if mapped else None)])
    expected = solve(GaussianMixture(2.0, 0.3, label_noise=noise, inputs=Dense(shape, v)), chain)
    data = Clusters(2.0, np.array([v, -v]) / math.sqrt(SIZE), shape, [1, -1], [0.3, 0.7], noise)
    for common in (None, False):
        found = solve_clusters(data, chain, Settings(common=common))
        assert found.converged
        assert found.prior == (SHARED if mapped or common is False else COMMON)
        for t in range(2):
            np.testing.assert_allclose(found.means[t], expected.magnetization[t] * np.array([1.0, -1.0]), rtol=1e-9)
            for name in (*observables_of(data), *UNLISTED):
                value, wanted = getattr(found[t], name), getattr(expected[t], name)
                assert value == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True), name
        np.testing.assert_allclose(found.overlap, expected.overlap, rtol=1e-9)
        np.testing.assert_allclose(found.response, expected.response, rtol=1e-8)


def test_a_cluster_may_be_said_in_two_parts() -> None:
    data = three_clusters()
    again = Clusters(
        data.alpha, data.means[[0, 1, 2, 2]], data.covariances[[0, 1, 2, 2]], [1, -1, -1, -1], [0.3, 0.3, 0.3, 0.1]
    )
    one, other = (solve(found, [TEACHER, student(half())]) for found in (data, again))
    assert (one.prior, other.prior) == (APART, APART)
    np.testing.assert_allclose(other.means[:, :3], one.means, rtol=1e-9)
    np.testing.assert_allclose(other.means[:, 3], one.means[:, 2], rtol=1e-9)
    for name in observables_of(data):
        assert getattr(other[1], name) == pytest.approx(getattr(one[1], name), rel=1e-9, abs=1e-10), name


def test_least_squares_meet_their_closed_form() -> None:
    """Forces are linear: with the responses, m, Q and the bias solve linear equations in the full space."""
    data, ridge = three_clusters(2), 0.3
    weights, signs = np.array(data.weights), np.array(data.labels)
    v = np.ones(3)
    for _ in range(2000):
        pull = data.alpha * weights / (1.0 + v)
        inverse = np.linalg.inv(ridge * np.eye(SIZE) + np.einsum("c,cij->ij", pull, data.covariances))
        v = np.einsum("ij,cji->c", inverse, data.covariances) / SIZE
    means = math.sqrt(SIZE) * data.means

    def mean_of(bias: float) -> np.ndarray:
        # mh_c M_c = alpha rho_c (s_c - b - M_c.w/N)/(1 + V_c) M_c
        left = np.linalg.inv(inverse) + np.einsum("c,ci,cj->ij", pull, means, means) / SIZE
        return np.linalg.solve(left, (pull * (signs - bias)) @ means)

    def excess(bias: float) -> float:
        return float(pull @ (signs - bias - means @ mean_of(bias) / SIZE))

    bias = -excess(0.0) / (excess(1.0) - excess(0.0))
    w = mean_of(bias)
    # Q_c = w Omega_c w/N + sum_c' Qh_c' tr(Omega_c G Omega_c' G)/N, Qh_c = alpha rho_c (miss_c^2 + Q_c)/(1 + V_c)^2.
    miss = (signs - bias - means @ w / SIZE) ** 2
    seen = np.einsum("i,cij,j->c", w, data.covariances, w) / SIZE
    both = inverse @ data.covariances
    spread = np.einsum("cij,dji->cd", both, both) / SIZE
    share = data.alpha * weights / (1.0 + v) ** 2
    q = np.linalg.solve(np.eye(3) - spread * share, seen + spread @ (share * miss))
    found = solve(data, Estimator(SquareLoss(), ridge))
    np.testing.assert_allclose(found.cluster_responses[0, 0], v, rtol=1e-9)
    np.testing.assert_allclose(found.means[0], means @ w / SIZE, rtol=1e-8)
    np.testing.assert_allclose(found.cluster_overlaps[0, 0], q, rtol=1e-8)
    assert found[0].bias == pytest.approx(bias, rel=1e-9)
    mean, covariance = law_of_weights(found, 0)
    np.testing.assert_allclose(mean, w, rtol=1e-8)
    noise = np.einsum("c,cij->ij", share * (miss + q), data.covariances)
    np.testing.assert_allclose(covariance, inverse @ noise @ inverse, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("case", ["three stages", "pseudo-labels", "formula", "fixed bias"])
def test_the_potential_at_the_saddle_is_the_training_objective(case: str) -> None:
    """A wrong derivative anywhere breaks this; for chains, data sets, hard targets, any margin loss."""
    data = three_clusters(3, label_noise=0.1, further=[DataSet("fresh", 1.5)])
    hinge = Loss.from_expression("a*log(1 + exp((1 - s*h)/a))", {"a": 0.4}, name="smoothed hinge")
    chain = {
        "three stages": [
            TEACHER,
            student(half(), sets=["training", "fresh"]),
            Estimator(Distillation(mixing=0.4, teacher=1), 0.07),
        ],
        "pseudo-labels": [TEACHER, Estimator(PseudoLabels(), 0.2, sets="fresh")],
        "formula": [Estimator(hinge, 0.1), Estimator(Distillation(), 0.1, sets=["training", "fresh"])],
        "fixed bias": [replace(TEACHER, bias=0.3), student(bias=-0.2, sets=["training", "fresh"])],
    }[case]
    found = solve(data, chain)
    assert found.converged
    assert found.quadrature_error < 1e-8
    for stage, estimator in zip(found, chain, strict=True):
        alpha = sum(data.data_set(name).alpha for name in estimator.sets)
        objective = alpha * stage.train_loss + 0.5 * estimator.ridge * stage.norm_squared
        assert stage.free_energy == pytest.approx(objective, abs=1e-8)
        if estimator.bias is not None:
            assert stage.bias == estimator.bias


@pytest.mark.parametrize("number", [1, 2])
def test_the_potential_is_stationary_in_every_order_parameter(number: int) -> None:
    """Of each cluster, and in the bias, at fixed conjugates: coupling and energetic part."""
    data = three_clusters(3, label_noise=0.1)
    chain = Chain.of([TEACHER, student(half())])
    found = solve(data, chain)
    coupling, loss = observables.coupling(number), chain[number - 1].loss
    points = found.points[number - 1]

    def potential(unknowns: np.ndarray) -> float:
        moved = tuple(replace(point, unknowns=row) for point, row in zip(points, unknowns, strict=True))
        stage = replace(found, points=(*found.points[: number - 1], moved, *found.points[number:]))[number - 1]
        tied = 0.0
        for part, point in zip(stage.solution.parts, moved, strict=True):
            overlap = part.state.overlap[number - 1, :number]
            tied += float(coupling(point.magnetization, *overlap, *point.response_row, *point.conjugates))
        responses = [point.response_row[-1] for point in moved]
        return tied - data.alpha * stage.samples.envelope(loss, responses).value

    here = np.array([point.unknowns for point in points])
    step = 1e-4
    for c, column in np.ndindex(here.shape):
        rows = slice(None) if column == 1 else c  # the bias is that of all clusters
        values = []
        for side in (1.0, -1.0):
            moved = here.copy()
            moved[rows, column] += side * step
            values.append(potential(moved))
        # The second derivative is of order 1: it says what a wrong equation would do.
        assert abs(values[0] - values[1]) / (2.0 * step) < 1e-6, (c, column)


def test_the_law_of_weights_has_the_order_parameters() -> None:
    data, chain = three_clusters(4), [TEACHER, student(half()), Estimator(Distillation(teacher=1), 0.1)]
    found = solve(data, chain)
    for t in range(3):
        mean, covariance = law_of_weights(found, t)
        np.testing.assert_allclose(data.means @ mean / math.sqrt(SIZE), found.means[t], rtol=1e-7)
        assert np.linalg.eigvalsh(covariance).min() > -1e-10
        for s in range(t + 1):
            second = covariance_of_weights(found, t, s) + np.outer(mean, law_of_weights(found, s).mean)
            overlaps = np.einsum("ij,cij->c", second, data.covariances) / SIZE
            np.testing.assert_allclose(overlaps, found.cluster_overlaps[t, s], rtol=1e-7)
        logits = logits_on(found, t, data.means)
        np.testing.assert_allclose(logits.mean, found.means[t] + found[t].bias, rtol=1e-7)
    with pytest.raises(ParameterError, match="stage must be one that is solved, from 0 to 2, got 3"):
        law_of_weights(found, 3)


def test_errors_are_what_finer_quadrature_changes() -> None:
    data, chain = three_clusters(5), [TEACHER, student()]
    rough, fine = solve(data, chain, rtol=1e-5), solve(data, chain, rtol=1e-11)
    assert rough.converged
    for name in ("test_error", "train_error", "test_loss", "calibration_error", "teacher_agreement"):
        apart = abs(getattr(rough[1], name) - getattr(fine[1], name))
        assert apart <= rough[1].error_of(name) < 1e-4


def scores(n_inputs: int, seed: int, n_runs: int = 24) -> list[float]:
    """Of all observables, errors of clusters and responses, with label noise, a map, and a further data set."""
    data = three_clusters(6, label_noise=0.1, further=[DataSet("fresh", 1.0)])
    chain = [TEACHER, student(half(), sets=["training", "fresh"])]
    runs = simulate(data, chain, n_inputs=n_inputs, n_runs=n_runs, seed=seed)
    solution = solve(runs.effective_data, chain)
    names = [name for name in observables_of(data) if REGISTRY[name].measured]
    found = scores_of_stages(solution, runs, names)
    for name in ("means", "cluster_overlaps"):
        estimate = runs.estimate(name)
        found += list(((estimate.mean - getattr(solution, name)) / estimate.standard_error).ravel())
    for t in range(2):
        errors = runs[t].cluster_errors
        found += list((errors.mean - solution[t].cluster_errors) / errors.standard_error)
    return found


def test_theory_agrees_with_small_experiments() -> None:
    assert np.abs(scores(160, seed=1, n_runs=8)).max() < 4.0


@pytest.mark.slow
@pytest.mark.parametrize("n_inputs", [240, 960])
def test_theory_agrees_with_experiments(n_inputs: int) -> None:
    assert np.abs(scores(n_inputs, seed=2)).max() < 4.0


def test_random_problems_are_solved() -> None:
    assert not failures(20, seed=3, kind="clusters")


def test_test_weights_are_those_of_fresh_samples_alone() -> None:
    data = three_clusters()
    found, other = (solve(given, TEACHER) for given in (data, replace(data, test_weights=[0.5, 0.5, 0.0])))
    assert other[0].train_error == found[0].train_error
    assert other[0].test_error == pytest.approx(found[0].cluster_errors[:2].mean(), rel=1e-12)


def test_problems_are_written_swept_continued_and_printed() -> None:
    data = three_clusters(7, label_noise=0.1, test_weights=[0.2, 0.3, 0.5], further=[DataSet("fresh", 1.0)])
    chain = Chain.of([TEACHER, student(half(), sets=("training", "fresh"))])
    again = read_problem(write_problem(data, chain))
    assert again == (data, chain)
    assert hash(again[0]) == hash(data)
    assert pickle.loads(pickle.dumps(data)) == data
    assert data != replace(data, label_noise=0.2)
    curve = sweep(
        data, chain, {"student.ridge": [0.05, 0.2]}, ["test_error", "train_error", "test_error_quadrature_error"]
    )
    here = solve(data, chain)
    assert float(curve.test_error[1, 0]) == here[1].test_error
    assert bool(curve.converged.all())
    points = sweep(data, chain, {"alpha": [3.0]}, ["test_error"], simulation=Simulation(40, 2))
    assert np.isfinite(points.test_error).all()
    near = replace(data, alpha=3.1)
    warm = solve(near, chain, start=here)
    assert warm.iterations < solve(near, chain).iterations
    assert warm[1].test_error == pytest.approx(solve(near, chain)[1].test_error, rel=1e-9)
    text = solution_text(here)
    assert "3 clusters of 8 inputs, weights (labels): 0.3 (+1), 0.3 (-1), 0.4 (-1)" in text
    assert "prior: one covariance a cluster" in text
    written = json.loads(json.dumps(here.to_dict()))
    assert written["prior"] == APART
    assert written["stages"][1]["test_error"] == here[1].test_error
    assert "magnetization" not in written["stages"][1]
    stage = here["student"]
    assert math.isnan(stage.magnetization)
    assert math.isnan(stage.bayes_error)


def test_a_solution_that_did_not_converge_says_so() -> None:
    with pytest.warns(RuntimeWarning, match="stage 1 \\(teacher\\): Newton's method used up its iterations"):
        found = solve(three_clusters(), [TEACHER, student()], max_iterations=1)
    assert isinstance(found, ClusterSolution)
    assert not found.converged
    assert all(math.isnan(stage.test_error) for stage in found)


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"means": [1, 2]}, r"means must be a matrix .* got shape \(2,\)"),
        ({"means": [[1, np.nan], [0, 1]]}, "means must have finite entries, got nan"),
        ({"covariances": np.eye(3)}, r"covariances must be of shape \(2, 2, 2\) or \(2, 2\), got shape \(3, 3\)"),
        ({"covariances": [EYE, [[1]]]}, "covariances must be of shape .* got rows of different lengths"),
        ({"covariances": [EYE, [[1, 2], [2, 1]]]}, r"covariances\[1\] must have no eigenvalue below 0, got -1"),
        ({"covariances": [EYE, [[1, 1], [0, 1]]]}, r"covariances\[1\] must be symmetric"),
        ({"labels": [1, 1]}, "labels must hold both -1 and 1, got 1 for all clusters"),
        ({"labels": [0, 1]}, "labels must be -1 or 1, got 0"),
        ({"labels": [1, -1, 1]}, "labels must be 2 numbers, one for each row of means, got 3"),
        ({"weights": [0.5, 0.6]}, "weights must sum to 1, they sum to 1.1"),
        ({"weights": [1, 0]}, "weights must be > 0, got 0"),
        ({"test_weights": [2, -1]}, "test_weights must be >= 0, got -1"),
        ({"label_noise": 0.7}, r"label_noise must be a number in \[0, 1/2\], got 0.7"),
        ({"alpha": 0}, "alpha must be a finite number > 0, got 0"),
    ],
)
def test_bad_clusters_are_refused_in_one_line(given: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{message}$"):
        Clusters(**({"alpha": 1.0, "means": EYE, "covariances": EYE, "labels": [1, -1]} | given))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Estimator(CrossEntropy(), 0), "ridge of teacher must be > 0 .* max margin, and other limits ridge -> 0, .*"),
        (Frozen(1.0, 2.0), "teacher must be an Estimator where data are Clusters, got Frozen"),
        (Estimator(CrossEntropy(), 0.1, eta=0.5), "eta of teacher must be 1, and mask_overlap None, .*"),
        (
            Estimator(CrossEntropy(), 0.1, features=RandomFeatures(1.0)),
            "features of teacher must be a LinearMap or None .*",
        ),
        (
            Estimator(CrossEntropy(), 0.1, features=LinearMap(np.eye(3))),
            "features of teacher must have as many columns .*",
        ),
        (
            Estimator(CrossEntropy(smoothing=0.5), 0.1),
            "loss of teacher must have targets that depend on the sample, .*",
        ),
    ],
)
def test_stages_that_are_not_solved_are_refused_by_name(stage: Estimator, message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{message}$"):
        solve(three_clusters(), stage)


def test_optimum_on_clusters() -> None:
    """Two clusters of one covariance: where the exact derivative of the same problem on dense inputs vanishes."""
    direction = np.random.default_rng(2).standard_normal(6)
    covariance = np.diag(np.linspace(0.5, 2.0, 6))
    data = Clusters(1.5, np.array([direction, -direction]) / np.sqrt(6.0), covariance, [1, -1], [0.3, 0.7])
    same = GaussianMixture(1.5, 0.3, inputs=Dense(covariance, direction))
    over = {"teacher.ridge": (1e-2, 10.0)}
    found, expected = (optimize(d, TEACHER, over, "teacher.test_error") for d in (data, same))
    assert found.converged
    assert found.value == pytest.approx(expected.value, abs=1e-9)
    assert found.parameters["teacher.ridge"] == pytest.approx(expected.parameters["teacher.ridge"], rel=1e-4)


def test_what_does_not_know_clusters_says_so() -> None:
    data, chain = three_clusters(), Chain.of([TEACHER, student()])
    still = Clusters(1.0, EYE, [EYE, np.diag([1.0, 0.0])], [1, -1])
    calls = {
        "Clusters are not differentiated": lambda: derivatives(solve(data, chain), ["teacher.ridge"], ["test_error"]),
        "at most 4 stages where data are Clusters, got 5": lambda: solve(data, [TEACHER] * 5),
        "start must be a solution of Clusters or None, got 3": lambda: solve(data, chain, start=3),
        r"covariances\[1\] is 0 on its rows": lambda: solve(still, replace(TEACHER, features=LinearMap([[0.0, 1.0]]))),
        "n_inputs must be a multiple of the 8 columns of means": lambda: simulate(data, chain, n_inputs=30, n_runs=1),
        "give every cluster at least 1 sample": lambda: simulate(
            replace(data, alpha=0.3), TEACHER, n_inputs=8, n_runs=1
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ParameterError, match=message):
            call()
    text = write_problem(data, chain)
    for key in ("rule", "gram"):
        with pytest.raises(ParameterError, match=f"^data: {key} has no effect on clusters, whose labels are given$"):
            read_problem(text.replace('"alpha"', f'"{key}": 1, "alpha"', 1))


def test_inputs_may_be_moved_and_scaled() -> None:
    """A learned bias takes up a shift; lengths of inputs are those of ridges."""
    data, chain = three_clusters(), [TEACHER, student()]
    expected, shift = solve(data, chain), 30.0 + np.arange(SIZE)
    moved = solve(replace(data, means=data.means + shift), chain)
    assert [stage.test_error for stage in moved] == pytest.approx([stage.test_error for stage in expected], rel=1e-9)
    means = [law_of_weights(moved, t).mean for t in range(2)]
    np.testing.assert_allclose(expected.bias - means @ shift / math.sqrt(SIZE), moved.bias, rtol=1e-9)
    larger = replace(data, means=10.0 * data.means, covariances=100.0 * data.covariances)
    scaled = solve(larger, [replace(stage, ridge=100.0 * stage.ridge) for stage in chain])
    assert [stage.train_error for stage in scaled] == pytest.approx([stage.train_error for stage in expected], rel=1e-9)
    assert scaled[1].norm == pytest.approx(expected[1].norm / 10.0, rel=1e-9)
