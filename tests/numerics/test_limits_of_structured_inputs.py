"""Ridges of 0 on inputs with a spectrum, of any covariance, and on random features: thresholds, margins, least norms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from numerics import (
    Dense,
    Estimator,
    GaussianMixture,
    LinearMap,
    LinearRule,
    ParameterError,
    PowerLaw,
    RandomFeatures,
    Spectrum,
    interpolation_threshold_of,
    max_margin,
    max_margin_of,
    separability_threshold,
    separability_threshold_of,
    solve,
    sweep,
)
from numerics.models import Chain, DataModel
from numerics.optimize import derivatives
from numerics.plots.plan import thresholds_in_alpha
from numerics.scalar import dense, prior
from numerics.simulation.draw import Sample, draw
from numerics.simulation.train import train
from theory.losses import CrossEntropy, Distillation, SquareLoss

LABELS = Estimator(CrossEntropy(), 0.0)
TEACHER = Estimator(CrossEntropy(), 0.1)
RELU = RandomFeatures(0.8, "relu")
GENERATOR = np.random.default_rng(3)
SIZE = 12
FACTOR = GENERATOR.normal(size=(SIZE, 20)) / math.sqrt(20)
COVARIANCE, DIRECTION = FACTOR @ FACTOR.T, GENERATOR.normal(size=SIZE)
MAP = GENERATOR.normal(size=(5, SIZE))
REPEATED = np.vstack((MAP, MAP[:2] + MAP[2:4]))  # says nothing more
UNEVEN = Spectrum([4.0, 1.0, 0.3, 0.1, 2.0], [1.0, 0.2, 2.0, 1.0, 0.5])


@pytest.fixture
def tables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No use is made of coordinates that all stages have in common."""
    prior._groups_of_dense.cache_clear()
    monkeypatch.setattr(dense, "alike", lambda maps: False)
    yield
    prior._groups_of_dense.cache_clear()


# Thresholds


def test_separability_is_that_of_white_inputs_of_the_same_rank_and_distance() -> None:
    alike = GaussianMixture(1.0, 0.2, 0.8, label_noise=0.05, inputs=Spectrum([2.5] * 3, [1.7] * 3))
    expected = separability_threshold(0.2, 0.8 * 2.5 / 1.7, 0.6, label_noise=0.05)
    assert separability_threshold_of(alike, replace(LABELS, eta=0.6)) == pytest.approx(expected, rel=1e-12)
    data = replace(alike, inputs=Dense(COVARIANCE, DIRECTION))
    distance = DIRECTION @ np.linalg.solve(COVARIANCE, DIRECTION) / SIZE
    expected = separability_threshold(0.2, 0.8 / distance, label_noise=0.05)
    for seen in (None, LinearMap(GENERATOR.normal(size=(SIZE + 7, SIZE)))):  # as much as there is
        stage = replace(LABELS, features=seen)
        assert separability_threshold_of(data, stage) == pytest.approx(expected, rel=1e-12)
        assert interpolation_threshold_of(data, stage) == pytest.approx(1.0, rel=1e-14)
    seen, signal = MAP @ COVARIANCE @ MAP.T, MAP @ DIRECTION
    delta = 0.8 * 5 / (signal @ np.linalg.solve(seen, signal))
    expected = separability_threshold(0.2, delta, 5 / SIZE, label_noise=0.05)
    for matrix in (MAP, REPEATED):
        stage = replace(LABELS, features=LinearMap(matrix))
        for chain in ([stage], [TEACHER, stage]):  # groups and tables
            assert separability_threshold_of(data, chain) == pytest.approx(expected, rel=1e-12)
            assert interpolation_threshold_of(data, chain) == pytest.approx(5 / SIZE, rel=1e-14)


@pytest.mark.parametrize(
    "output", [{"output": "sign"}, {"noise": 0.3, "output": "probit"}, {"output": "logit", "slope": 2.0}]
)
def test_what_inputs_do_not_explain_of_a_rule_is_noise(output: dict) -> None:
    data = LinearRule(1.0, label_noise=0.05, inputs=Dense(COVARIANCE, DIRECTION), **output)
    width = data.signal_variance
    white = replace(data, inputs=GaussianMixture(1.0).inputs)
    if "noise" in output:
        white = replace(white, noise=0.3 / width)
    if "slope" in output:
        white = replace(white, slope=2.0 * math.sqrt(width))
    expected = separability_threshold_of(white, LABELS)
    assert separability_threshold_of(data, LABELS) == pytest.approx(expected, rel=1e-12)
    stage = replace(LABELS, features=LinearMap(MAP))
    common = MAP @ COVARIANCE @ DIRECTION
    explained = common @ np.linalg.solve(MAP @ COVARIANCE @ MAP.T, common) / SIZE
    if output["output"] != "logit":  # the rest of a field is Gaussian, a link is not
        white = LinearRule(1.0, (width + data.field_noise) / explained - 1.0, "probit", label_noise=0.05)
        expected = 5 / SIZE * separability_threshold_of(white, LABELS)
        assert separability_threshold_of(data, stage) == pytest.approx(expected, rel=1e-12)
    assert separability_threshold_of(data, stage) < separability_threshold_of(data, LABELS)


def test_a_mean_that_does_not_vary_separates_any_number_of_samples() -> None:
    still = Dense(np.diag([1.0, 1.0, 0.0]), [1.0, 0.0, 1.0])
    data = GaussianMixture(3.0, 0.3, inputs=still)
    assert separability_threshold_of(data, LABELS) == math.inf
    for noise in (0.1, 0.5):  # flipped labels are not
        expected = separability_threshold(0.3, 1e-9, label_noise=noise) * 2 / 3
        assert separability_threshold_of(replace(data, label_noise=noise), LABELS) == pytest.approx(expected, rel=1e-8)
    # Other weights help as long as they could separate alone: then they vanish.
    alone = separability_threshold_of(
        replace(data, inputs=Spectrum([1.0, 1.0, 1.0], [1.0, 0.0, 1.0])), replace(LABELS, eta=2 / 3)
    )
    sizes = []
    for below in (0.1, 0.01):
        found = solve(replace(data, alpha=(1.0 - below) * alone), LABELS, throw=True)[0]
        assert found.limit == "max margin"
        sizes.append(found.test_error)
    assert sizes[1] < 0.2 * sizes[0]
    with pytest.raises(ParameterError, match="which is all that the separator sees from alpha"):
        solve(replace(data, alpha=alone * 1.001), LABELS)
    with pytest.raises(
        ParameterError, match=r"ridge of teacher must be > 0 at alpha=3: the class means .* no curvature of the loss"
    ):
        solve(data, replace(LABELS, loss=SquareLoss()))


def separable(design: np.ndarray, signs: np.ndarray, *, free: bool) -> bool:
    """Whether a linear program finds ``s h >= 1`` on all samples."""
    design = design / np.sqrt(np.mean(design**2))
    sides = signs[:, None] * (np.column_stack((design, np.ones(len(design)))) if free else design)
    return (
        linprog(
            np.zeros(sides.shape[1]), A_ub=-sides, b_ub=-np.ones(len(sides)), bounds=(None, None), method="highs-ds"
        ).status
        == 0
    )


def sample_of(
    data: DataModel, stage: Estimator, n_inputs: int, seed: np.random.SeedSequence
) -> tuple[Sample, np.ndarray, np.ndarray]:
    """What is drawn, what the stage sees of it, and the labels' signs."""
    network = stage.features if isinstance(stage.features, RandomFeatures) else None
    maps = [stage.features] if isinstance(stage.features, LinearMap) else []
    sample = draw(data, n_inputs, seed, network, maps)
    signs = (2.0 * sample.labels - 1.0) * (np.sign(sample.rule) if data.ruled else 1.0)
    design = sample.seen_by(stage)
    return sample, design if stage.features else design[:, : round(stage.eta * n_inputs)], signs


CASES = {
    "mask": (GaussianMixture(1.0, 0.3, label_noise=0.05, inputs=UNEVEN), replace(LABELS, eta=0.8)),
    "map": (GaussianMixture(1.0, 0.3, inputs=Dense(COVARIANCE, DIRECTION)), replace(LABELS, features=LinearMap(REPEATED))),
    "origin": (GaussianMixture(1.0, 0.3, inputs=Dense(COVARIANCE)), replace(LABELS, features=LinearMap(MAP), bias=0.0)),
    "rule": (LinearRule(1.0, 0.2, "probit", inputs=Dense(COVARIANCE, DIRECTION)), replace(LABELS, features=LinearMap(MAP))),
    "features": (GaussianMixture(1.0, 0.3), replace(LABELS, features=RELU)),
    "features of a rule": (LinearRule(1.0, output="sign"), replace(LABELS, features=RELU)),
    "logit": (LinearRule(1.0, output="logit", slope=2.0, inputs=PowerLaw(1.0, 0.5, 20)), replace(LABELS, eta=0.5)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_linear_programs_separate_as_many_samples(case: str) -> None:
    """Samples over N at which separability is lost, N = 60 and 120, 30 runs each, extrapolated linearly in 1/N: z < 4."""
    data, stage = CASES[case]
    threshold, runs, sizes = separability_threshold_of(data, stage), 30, (60, 120)

    def lost(n_inputs: int, seed: np.random.SeedSequence) -> float:
        _, design, signs = sample_of(replace(data, alpha=2.0 * threshold), stage, n_inputs, seed)
        order = np.random.default_rng(seed).permutation(len(signs))
        low, high = 1, len(signs)
        while high - low > 1:
            middle = (low + high) // 2
            fine = separable(design[order[:middle]], signs[order[:middle]], free=stage.bias is None)
            low, high = (middle, high) if fine else (low, middle)
        return (low + 0.5) / n_inputs

    seeds = np.random.SeedSequence(5).spawn(2 * runs)
    with threadpool_limits(1):
        small, large = (np.array([lost(n, s) for s in seeds[k * runs : (k + 1) * runs]]) for k, n in enumerate(sizes))
    error = math.sqrt((4 * large.var(ddof=1) + small.var(ddof=1)) / runs)
    assert abs(2 * large.mean() - small.mean() - threshold) < 4 * error
    assert error < 0.12 * threshold


# Max margin

DIRECTIONS = ("cosine", "test_error", "relative_bias", "teacher_cosine", "teacher_agreement")


def below(case: str) -> tuple[DataModel, list[Estimator]]:
    """A teacher with a ridge, on what is there, and the stage of a case below its threshold, at 0.4 of it."""
    data, stage = CASES[case]
    return replace(data, alpha=0.4 * separability_threshold_of(data, stage)), [TEACHER, stage]


@pytest.mark.parametrize("case", CASES)
def test_small_ridges_approach_the_max_margin(case: str) -> None:
    """Polynomials in 1/norm through five ridges from 1e-4 to 1e-8 reach the limit to 2 % of the distance covered."""
    data, chain = below(case)
    limit = solve(data, chain, throw=True)[1]
    assert limit.limit == "max margin"
    assert (limit.train_loss, limit.free_energy, limit.norm) == (0.0, 0.0, math.inf)
    inverse, values = [], []
    for ridge in np.geomspace(1e-4, 1e-8, 5):
        near = solve(data, [TEACHER, replace(chain[1], ridge=ridge)], throw=True)[1]
        inverse.append(1.0 / near.norm)
        values.append([getattr(near, name) for name in DIRECTIONS])
    found = np.polynomial.polynomial.polyfit(inverse, np.array(values), 4)[0]
    expected = np.array([getattr(limit, name) for name in DIRECTIONS])
    assert np.all(np.abs(found - expected) <= 0.02 * np.abs(values[0] - expected) + 1e-7), (found - expected) / (
        values[0] - expected
    )


def assert_alike(
    found: DataModel,
    expected: DataModel,
    chain: list[Estimator],
    other: list[Estimator] | None = None,
    rtol: float = 1e-9,
) -> None:
    """The same numbers of the last stage on two kinds of inputs."""
    one, two = solve(found, chain, throw=True)[-1], solve(expected, other or chain, throw=True)[-1]
    assert one.limit == two.limit
    for name in (*DIRECTIONS, "margin", "train_error", "generalization_gap", "train_output_distance"):
        value, wanted = getattr(one, name), getattr(two, name)
        assert value == pytest.approx(wanted, rel=rtol, abs=1e-12, nan_ok=True), name


ENDS = [
    (0.9, CrossEntropy(), "max margin"), (8.0, CrossEntropy(), "maximum likelihood"), (0.5, SquareLoss(), "minimum norm"),
    (0.5, Distillation(), "minimum norm"), (2.0, Distillation(0.7, 2.0), "maximum likelihood"),
]  # fmt: skip


@pytest.mark.parametrize(("alpha", "loss", "limit"), ENDS)
def test_the_order_of_coordinates_and_their_names_do_not_matter(alpha: float, loss, limit: str) -> None:
    values, signals = np.array([4.0, 1.0, 1.0, 0.3]), np.array([0.5, 2.0, 2.0, 1.0])
    chain = [TEACHER, replace(LABELS, loss=loss)]
    data = GaussianMixture(alpha, 0.3, inputs=Spectrum(values, signals))
    assert solve(data, chain, throw=True)[1].limit == limit
    for inputs in (
        Spectrum(values[::-1], signals[::-1]),
        Spectrum([4.0, 1.0, 0.3], [0.5, 2.0, 1.0], [1, 2, 1]),
        Dense(np.diag(values), np.sqrt(signals)),
    ):
        assert_alike(replace(data, inputs=inputs), data, chain)
    white = GaussianMixture(alpha, 0.3)
    assert_alike(replace(white, inputs=Spectrum([1.0, 1.0])), white, [TEACHER, replace(chain[1], eta=0.9)], rtol=1e-10)


@pytest.mark.parametrize(("alpha", "loss", "limit"), ENDS)
def test_tables_are_groups_of_coordinates(alpha: float, loss, limit: str, tables_alone: None) -> None:
    """A mask as a map, and all of it in another basis; rows of 0, or a singular covariance, say nothing."""
    values, signals = np.array([4.0, 1.0, 2.0, 0.3]), np.array([0.5, 2.0, 2.0, 1.0])
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    turned = Dense(basis @ np.diag(values) @ basis.T, basis @ np.sqrt(signals))
    expected = GaussianMixture(alpha, 0.3, inputs=Spectrum(values, signals))
    chain = [TEACHER, replace(LABELS, loss=loss, eta=0.75)]
    mask = basis.T[:3]
    for extra in ([], [basis.T[0] - basis.T[0]]):
        seeing = [TEACHER, Estimator(loss, 0.0, features=LinearMap(np.vstack((mask, *extra))))]
        assert_alike(replace(expected, inputs=turned), expected, seeing, chain)
    few = Spectrum([4.0, 1.0, 2.0], [0.375, 1.5, 1.5])  # in units of 3/4 N
    singular = Dense(basis[:, :3] @ np.diag(values[:3]) @ basis[:, :3].T, basis[:, :3] @ np.sqrt(signals[:3]))
    scaled = replace(expected, inputs=few, alpha=alpha * 4 / 3)
    chains = [[replace(TEACHER, ridge=ridge), replace(LABELS, loss=loss)] for ridge in (0.075, 0.1)]
    one, two = (
        solve(found, stages, throw=True)[1]
        for found, stages in zip((replace(expected, inputs=singular), scaled), chains, strict=True)
    )
    assert one.limit == two.limit == limit
    for name in DIRECTIONS:
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-9), name
    assert interpolation_threshold_of(replace(expected, inputs=singular), LABELS) == pytest.approx(0.75, rel=1e-14)


def test_margins_of_any_inputs() -> None:
    data = GaussianMixture(0.9, 0.3, 1.0)
    white, found = max_margin(0.9, 0.3, 1.0, 0.6), max_margin_of(data, replace(LABELS, eta=0.6))
    for name in ("margin", "magnetization", "bias", "test_error"):
        assert getattr(found, name) == pytest.approx(getattr(white, name), rel=1e-10)
    # Inputs of twice the length: the same plane, at twice the margin.
    twice = max_margin_of(replace(data, inputs=Spectrum([4.0], [4.0])), replace(LABELS, eta=0.6))
    assert twice.test_error == pytest.approx(white.test_error, rel=1e-10)
    assert twice.margin == pytest.approx(2 * white.margin, rel=1e-10)
    with pytest.raises(ParameterError, match="alpha must be below the separability threshold"):
        max_margin_of(replace(data, alpha=9.0, label_noise=0.2, inputs=UNEVEN), LABELS)
    with pytest.raises(ParameterError, match="data must have two labels"):
        separability_threshold_of(LinearRule(1.0, inputs=UNEVEN), LABELS)


@pytest.mark.parametrize("case", ["mask", "map", "rule", "features"])
def test_margins_of_support_vector_machines(case: str) -> None:
    """N = 120 and 240, 40 runs each, extrapolated linearly in 1/N: z < 4 on the margin, and cosines with v and the soft teacher."""
    data, chain = below(case)
    stage, runs, sizes = chain[1], 40, (120, 240)
    whole = replace(stage, eta=1.0)
    limit = solve(data, chain, throw=True)[1]

    def measure(n_inputs: int, seed: np.random.SeedSequence) -> list[float]:
        sample, design, signs = sample_of(data, stage, n_inputs, seed)
        found = SVC(kernel="linear", C=1e8, tol=1e-6).fit(design, signs).coef_[0]
        weights = np.zeros(n_inputs if stage.features is None else len(found))
        weights[: len(found)] = found

        def overlap(one: Estimator, w: np.ndarray, other: Estimator, u: np.ndarray) -> float:
            return w @ sample.product(one, other, u)

        width, numbers = overlap(whole, weights, whole, weights), [math.sqrt(n_inputs) / np.linalg.norm(found)]
        if data.ruled:
            theta = sample.mean
            across = overlap(whole, weights, TEACHER, theta)
            return [*numbers, across / math.sqrt(width * overlap(TEACHER, theta, TEACHER, theta))]
        (teacher,) = train(sample, Chain.of(TEACHER), [n_inputs], 1e-9)
        across = overlap(whole, weights, TEACHER, teacher.weights)
        size = overlap(TEACHER, teacher.weights, TEACHER, teacher.weights)
        cosine = weights @ sample.mean_of(whole) / np.linalg.norm(found) / np.linalg.norm(sample.mean)
        return [*numbers, cosine, across / math.sqrt(width * size)]

    seeds = np.random.SeedSequence(7).spawn(2 * runs)
    with threadpool_limits(1):
        small, large = (
            np.array([measure(n, s) for s in seeds[k * runs : (k + 1) * runs]]) for k, n in enumerate(sizes)
        )
    error = np.sqrt((4 * large.var(0, ddof=1) + small.var(0, ddof=1)) / runs)
    expected = np.array([limit.margin, limit.cosine, limit.teacher_cosine])[: len(error)]
    z = (2 * large.mean(0) - small.mean(0) - expected) / error
    assert np.all(np.abs(z) < 4), z
    assert np.all(error < 0.1 * np.abs(expected)), error


@pytest.mark.parametrize(("alpha", "loss", "limit"), ENDS)
def test_derivatives_along_limits(alpha: float, loss, limit: str) -> None:
    data = GaussianMixture(alpha, 0.3, inputs=UNEVEN)
    chain = [TEACHER, replace(LABELS, loss=loss, eta=0.8)]
    found = derivatives(solve(data, chain, throw=True), ["alpha", "teacher.ridge"], ["student.test_error"])
    step = 1e-4
    for name, value in (("alpha", alpha), ("teacher.ridge", 0.1)):
        values = sweep(data, chain, {name: [value - step, value + step]}, ["test_error"]).test_error.sel(
            stage="student"
        )
        assert found[name]["student.test_error"] == pytest.approx(
            float(values[1] - values[0]) / (2 * step), rel=1e-5, abs=1e-9
        )


def test_sweeps_cross_the_thresholds_of_features() -> None:
    """One axis through max margin and maximum likelihood; the error is continuous there."""
    stage = replace(LABELS, features=RELU, name="net")
    data = GaussianMixture(1.0, 0.3)
    threshold = separability_threshold_of(data, stage)
    alphas = threshold * np.array([0.3, 0.6, 0.99, 1.01, 1.6, 3.0])
    found = sweep(data, stage, {"alpha": alphas}, ["test_error", "norm", "train_error"]).sel(stage="net")
    assert bool(found.converged.all())
    assert np.isinf(found.norm.to_numpy()).tolist() == [True] * 3 + [False] * 3
    assert (found.train_error.to_numpy() > 0).tolist() == [False] * 3 + [True] * 3
    errors = found.test_error.to_numpy()
    assert abs(errors[3] - errors[2]) < 0.01
    with pytest.raises(ParameterError, match="its labels are separable, its logits grow without bound"):
        solve(replace(data, alpha=0.5 * threshold), [stage, Estimator(Distillation(), 0.1)])
    with pytest.raises(ParameterError, match="this is the separability threshold"):
        solve(replace(data, alpha=threshold), stage)


def test_thresholds_are_marked_in_pictures() -> None:
    """Of a spectrum, dense inputs and features, as of white ones; a rank is what interpolates, not the rows of a map."""
    chain = Chain.of([TEACHER, Estimator(Distillation(), 1e-5, features=RELU)])
    marks = thresholds_in_alpha(GaussianMixture(1.0, 0.3), chain)
    assert marks["interpolation"] == pytest.approx(0.8, rel=1e-12)
    assert marks["student_separability"] == separability_threshold_of(GaussianMixture(1.0, 0.3), chain)
    assert marks["teacher_separability"] == pytest.approx(separability_threshold(0.3, 1.0), rel=1e-12)
    chain = Chain.of([TEACHER, Estimator(Distillation(), 1e-5, features=LinearMap(REPEATED))])
    marks = thresholds_in_alpha(GaussianMixture(1.0, 0.3, inputs=Dense(COVARIANCE)), chain)
    assert marks["interpolation"] == pytest.approx(5 / SIZE, rel=1e-12)
    assert marks["student_separability"] < marks["teacher_separability"]
