"""Inputs of any covariance and linear maps of them: what they reduce to, the equations in full, and experiments."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import block_diag

from numerics import (
    Dense,
    Estimator,
    FixedFeatures,
    GaussianMixture,
    Isotropic,
    LinearMap,
    LinearRule,
    ParameterError,
    RandomFeatures,
    Spectrum,
    simulate,
    solve,
    sweep,
)
from numerics.cli.report import solution_text
from numerics.models import Chain, DataModel, DataSet, in_equations
from numerics.optimize import derivatives
from numerics.scalar.prior import COMMON, SHARED
from numerics.settings import Settings
from numerics.solution.solution import Solution
from tests.against_experiments import scores_of_stages
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

TEACHER = Estimator(CrossEntropy(), 0.1)
STAGES = [
    TEACHER,
    Estimator(Distillation(mixing=0.7, temperature=2.0), 0.05),
    Estimator(Distillation(mixing=0.4, teacher=1), 0.07),
]
REGRESSION = [
    Estimator(SquareLoss(), 0.1),
    Estimator(SquareDistillation(mixing=0.6), 0.05),
    Estimator(SquareDistillation(mixing=0.5, teacher=1), 0.1),
]
NUMBERS = ("magnetization", "bias", "overlap", "response")
OBSERVABLES = ("norm", "test_error", "free_energy", "train_loss", "cosine", "excess_risk")


MATRICES = Settings(common=False)
"""No use is made of coordinates that all stages have in common."""


def covariance_of(size: int, generator: np.random.Generator) -> np.ndarray:
    samples = generator.normal(size=(size, 2 * size)) * (np.arange(1, size + 1) ** -0.4)[:, None]
    return samples @ samples.T / size


def map_of(rows: int, columns: int, generator: np.random.Generator) -> LinearMap:
    return LinearMap(generator.normal(size=(rows, columns)) / math.sqrt(columns))


def seeing(stages: list[Estimator], maps: list[LinearMap | None]) -> list[Estimator]:
    return [
        Estimator(stage.loss, stage.ridge, bias=stage.bias, sets=stage.sets, features=seen)
        for stage, seen in zip(stages, maps, strict=True)
    ]


def assert_equal(found: Solution, expected: Solution, rtol: float = 1e-9) -> None:
    """The same order parameters and observables; responses relative to those of the stages to themselves."""
    assert found.converged
    assert expected.converged
    for name in NUMBERS:
        values, wanted = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(values, wanted, rtol=rtol, atol=rtol * max(1.0, np.abs(wanted).max()))
    for one, other in zip(found.stages, expected.stages, strict=True):
        for name in OBSERVABLES:
            if hasattr(other, name):
                assert getattr(one, name) == pytest.approx(getattr(other, name), rel=rtol, abs=1e-12, nan_ok=True)


def cases(signals: np.ndarray, values: np.ndarray) -> list[tuple[DataModel, list[Estimator]]]:
    """A mixture and rules on a spectrum."""
    inputs = Spectrum(values.tolist(), squared_signal=signals.tolist())
    return [
        (GaussianMixture(1.2, 0.3, 0.8, label_noise=0.1, inputs=inputs), STAGES),
        (LinearRule(1.2, noise=0.3, inputs=inputs), REGRESSION),
        (LinearRule(1.2, output="probit", noise=0.3, inputs=inputs), STAGES[:2]),
    ]


def with_inputs(data: DataModel, inputs: Dense) -> DataModel:
    if isinstance(data, LinearRule):
        return LinearRule(data.alpha, data.noise, data.output, data.label_noise, inputs=inputs)
    return GaussianMixture(data.alpha, data.rho, data.delta, data.label_noise, inputs=inputs)


@pytest.mark.parametrize("case", range(3))
def test_a_diagonal_covariance_is_a_spectrum(case: int) -> None:
    generator = np.random.default_rng(case)
    values, direction = generator.uniform(0.2, 3.0, 9), generator.normal(size=9)
    data, stages = cases(direction**2, values)[case]
    found = solve(with_inputs(data, Dense(np.diag(values), direction)), stages, settings=MATRICES)
    assert found.prior == SHARED
    assert_equal(found, solve(data, stages))


@pytest.mark.parametrize("case", range(3))
def test_a_rotation_changes_nothing(case: int) -> None:
    """Of inputs, of the signal, and of what stages see; without a signal the average over all of them is that of equal squares."""
    generator = np.random.default_rng(10 + case)
    values, signal = generator.uniform(0.2, 3.0, 9), generator.normal(size=9)
    first, second = (np.linalg.qr(generator.normal(size=(9, 9)))[0] for _ in range(2))
    covariance = first @ np.diag(values) @ first.T
    for direction, squares in ((first @ signal, signal**2), (None, np.ones(9))):
        data, stages = cases(squares, values)[case]
        maps = [LinearMap(second), None, LinearMap(first.T)][: len(stages)]
        expected = solve(data, stages)
        turned = with_inputs(data, Dense(covariance, direction))
        for seen in (stages, seeing(stages, maps)):
            assert_equal(solve(turned, seen, settings=MATRICES), expected)


def test_stages_that_see_the_same_have_coordinates_in_common() -> None:
    """The answers are those of the matrices, which are not made; so are derivatives, sweeps, and the norm."""
    generator = np.random.default_rng(2)
    inputs = Dense(covariance_of(8, generator), generator.normal(size=8))
    shared, network = map_of(11, 8, generator), FixedFeatures(generator.normal(size=(11, 8)), "erf")
    data = GaussianMixture(1.5, 0.4, 0.7, inputs=inputs)
    for seen in (None, shared, network):
        stages = seeing(STAGES, [seen] * 3)
        found, other = solve(data, stages), solve(data, stages, settings=MATRICES)
        assert (found.prior, other.prior) == (COMMON, SHARED)
        assert_equal(found, other)
        slopes = [derivatives(one, ["delta"], ["student.test_error"])["delta"] for one in (found, other)]
        assert slopes[0]["student.test_error"] == pytest.approx(slopes[1]["student.test_error"], rel=1e-6)
    names = ["norm", "test_error"]
    grids = [
        sweep(data, stages, {"delta": [0.5, 1.0]}, names, settings=settings) for settings in (Settings(), MATRICES)
    ]
    for name in names:
        np.testing.assert_allclose(*(grid[name].to_numpy() for grid in grids), rtol=1e-9)


def test_a_choice_that_there_is_not_is_refused_in_one_line() -> None:
    generator = np.random.default_rng(3)
    data = GaussianMixture(1.0, inputs=Dense(np.eye(4)))
    apart = seeing(STAGES[:2], [None, map_of(3, 4, generator)])
    for wrong, message in (
        (lambda: solve(data, apart, settings=Settings(common=True)), "common must be False or None where stages"),
        (
            lambda: solve(GaussianMixture(1.0), TEACHER, settings=MATRICES),
            "common must be True or None: coordinates of Isotropic",
        ),
        (lambda: solve(data, TEACHER, settings=Settings(common="no")), "common must be True, False or None, got 'no'"),
    ):
        with pytest.raises(ParameterError, match=message):
            wrong()
    found = solve(data, apart)
    assert found.prior == found.to_dict()["prior"] == SHARED
    assert f"prior: {SHARED}" in solution_text(found)
    assert f", sees {apart[1].features!r}" in solution_text(found)
    assert "prior:" not in solution_text(solve(GaussianMixture(1.0), TEACHER))
    for inputs in (Isotropic(), Spectrum([1.0, 2.0])):
        assert solve(GaussianMixture(1.0, inputs=inputs), TEACHER, settings=Settings(common=True)).prior == COMMON


def test_masks_are_maps() -> None:
    """Nested ones, of a spectrum in which every value has the same share."""
    values, squares = np.array([3.0, 2.0, 1.5, 1.0, 0.5, 0.2]), np.array([1.0, 0.3, 2.0, 0.5, 1.0, 0.1])
    etas = (1.0, 0.5, 2 / 3)
    rows = [np.eye(6)[: round(6 * eta)] for eta in etas]
    for data, stages in cases(squares, values):
        masked = [Estimator(s.loss, s.ridge, eta) for s, eta in zip(stages, etas, strict=False)]
        mapped = seeing(stages, [LinearMap(found) for found in rows[: len(stages)]])
        signs = np.array([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
        found = solve(with_inputs(data, Dense(np.diag(values), signs * np.sqrt(squares))), mapped)
        assert_equal(found, solve(data, masked))


def full_equations(
    solution: Solution, inputs: Dense, maps: list[LinearMap | None], noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """m, Q and V that the conjugates of a solution give, by ``A w = M mh + xi`` with all stages in one matrix."""
    ruled, stages, size = solution.data.ruled, solution.resolved, len(solution.resolved)
    seen = [np.eye(inputs.size) if found is None else found.matrix for found in ([None] if ruled else []) + maps]
    edges = np.cumsum([0, *(len(matrix) for matrix in seen)])
    blocks = [slice(start, stop) for start, stop in pairwise(edges)]
    omega = np.vstack(seen) @ inputs.covariance @ np.vstack(seen).T
    hats = [point.conjugates for point in solution.points]
    equations, noise_of_fields = np.zeros_like(omega), np.zeros_like(omega)
    signal = np.eye(inputs.size) if inputs.direction is None else inputs.direction[:, None]
    drive = np.zeros((len(omega), signal.shape[1]))
    for t, stage in enumerate(stages):
        here = blocks[t]
        if stage.given:
            equations[here, here] = np.eye(inputs.size)
            drive[here] = signal
            continue
        equations[here, here] = stage.ridge * np.eye(len(seen[t]))
        drive[here] = hats[t][0] * (seen[t] @ signal)
        for s in range(t + 1):
            equations[here, blocks[s]] += hats[t][2 + t + s] * omega[here, blocks[s]]
            if not stages[s].given:
                noise_of_fields[here, blocks[s]] = hats[t][1 + s] * omega[here, blocks[s]]
                noise_of_fields[blocks[s], here] = noise_of_fields[here, blocks[s]].T
    inverse = np.linalg.inv(equations)
    square = inverse @ (drive @ drive.T + noise_of_fields) @ inverse.T
    aligned = np.vstack(seen) @ signal @ (inverse @ drive).T
    m, q, v = np.zeros(size), np.zeros((size, size)), np.zeros((size, size))
    for t in range(size):
        m[t] = np.trace(aligned[blocks[t], blocks[t]]) / inputs.size
        for s in range(size):
            q[t, s] = np.sum(omega[blocks[t], blocks[s]] * square[blocks[t], blocks[s]]) / inputs.size
            v[t, s] = np.sum(omega[blocks[t], blocks[s]] * inverse[blocks[t], blocks[s]]) / inputs.size
    if ruled:
        q[0, 0] += noise
        v[:, 0] = m[:] = 0.0
    norms = np.array([np.trace(square[here, here]) / inputs.size for here in blocks])
    hidden = int(ruled)
    return m[hidden:], q[hidden:, hidden:], v[hidden:, hidden:], norms[hidden:]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("case", range(2))
def test_three_stages_meet_the_equations_in_full(case: int, given: bool) -> None:
    """Maps that do not commute, of fewer and of more features than there are inputs."""
    generator = np.random.default_rng(20 + case)
    inputs = Dense(covariance_of(40, generator), generator.normal(size=40) if given else None)
    maps = [map_of(30, 40, generator), None, map_of(55, 40, generator)]
    data: DataModel = GaussianMixture(1.2, 0.3, 1.0, inputs=inputs)
    stages = STAGES
    if case == 1:
        data, stages = LinearRule(1.2, noise=0.3, inputs=inputs), REGRESSION
    solution = solve(data, seeing(stages, maps), rtol=1e-11)
    m, q, v, norms = full_equations(solution, inputs, maps, data.field_noise)
    if case == 0:
        np.testing.assert_allclose(solution.magnetization, m, rtol=1e-9)
    np.testing.assert_allclose(solution.overlap, q, rtol=1e-9)
    np.testing.assert_allclose(np.tril(solution.response), v, rtol=1e-9, atol=1e-9 * np.abs(v).max())
    np.testing.assert_allclose([stage.norm_squared for stage in solution.stages], norms, rtol=1e-9)
    assert len(solution.equations) == len(in_equations(data, Chain.of(solution.chain)))


def test_four_stages_meet_the_equations_in_full() -> None:
    """Propagators of the third stage to all earlier ones."""
    generator = np.random.default_rng(30)
    inputs = Dense(covariance_of(12, generator))
    maps = [map_of(9, 12, generator), map_of(15, 12, generator), None, map_of(10, 12, generator)]
    losses = [SquareLoss(), *(SquareDistillation(mixing=0.6) for _ in range(2)), SquareDistillation(0.5, teacher=2)]
    stages = [Estimator(loss, 0.2, features=seen) for loss, seen in zip(losses, maps, strict=True)]
    solution = solve(LinearRule(1.5, noise=0.3, inputs=inputs), stages)
    _, q, v, norms = full_equations(solution, inputs, maps, 0.3)
    np.testing.assert_allclose(solution.overlap, q, rtol=1e-8)
    np.testing.assert_allclose(np.tril(solution.response), v, rtol=1e-8, atol=1e-8 * np.abs(v).max())
    np.testing.assert_allclose([stage.norm_squared for stage in solution.stages], norms, rtol=1e-8)


def test_copies_of_inputs_change_nothing() -> None:
    """All is per input: two independent copies, each with its maps, have the order parameters of one."""
    generator = np.random.default_rng(4)
    covariance, direction, seen = covariance_of(7, generator), generator.normal(size=7), map_of(5, 7, generator)
    stages = seeing(STAGES[:2], [seen, None])
    twice = seeing(STAGES[:2], [LinearMap(block_diag(seen.matrix, seen.matrix)), None])
    one = solve(GaussianMixture(1.5, 0.3, inputs=Dense(covariance, direction)), stages)
    inputs = Dense(block_diag(covariance, covariance), np.tile(direction, 2))
    assert_equal(solve(GaussianMixture(1.5, 0.3, inputs=inputs), twice), one)


def test_directions_without_variance_are_allowed() -> None:
    """A map of more rows than there are inputs, and a covariance that is singular."""
    generator = np.random.default_rng(5)
    half = generator.normal(size=(8, 4))
    data = GaussianMixture(1.0, 0.4, inputs=Dense(half @ half.T / 4, half @ generator.normal(size=4)))
    wide = seeing(STAGES[:2], [map_of(20, 8, generator), None])
    found = solve(data, wide)
    assert found.converged
    inside = np.linalg.qr(half)[0].T  # the four directions that inputs have
    narrow = [LinearMap(wide[0].features.matrix @ np.eye(8)), LinearMap(inside)]
    assert_equal(solve(data, seeing(STAGES[:2], narrow)), found)


def test_the_norm_is_the_derivative_of_the_objective() -> None:
    """``d(-Phi)/d ridge = |w|^2/(2N)`` at the saddle."""
    generator = np.random.default_rng(6)
    data = GaussianMixture(1.2, 0.3, inputs=Dense(covariance_of(10, generator)))
    maps = [map_of(7, 10, generator), map_of(12, 10, generator)]

    def objective(ridge: float) -> float:
        student = Estimator(STAGES[1].loss, ridge, features=maps[1])
        return solve(data, [*seeing(STAGES[:1], maps[:1]), student])[1].free_energy

    step, student = 1e-3, Estimator(STAGES[1].loss, 0.1, features=maps[1])
    slope = 8 * (objective(0.1 + step) - objective(0.1 - step)) - objective(0.1 + 2 * step) + objective(0.1 - 2 * step)
    norm = solve(data, [*seeing(STAGES[:1], maps[:1]), student])[1].norm_squared
    assert norm / 2 == pytest.approx(slope / (12 * step), rel=1e-6)


def test_stages_without_weights_and_fixed_biases_work() -> None:
    """Of a teacher whose targets are constants nothing is left but its bias."""
    generator = np.random.default_rng(7)
    constant, student = CrossEntropy(smoothing=0.5), Estimator(Distillation(mixing=0.5), 0.1, bias=0.2)
    for inputs, seen in ((Dense(covariance_of(6, generator)), map_of(4, 6, generator)), (Spectrum([1.0, 2.0]), None)):
        found = solve(GaussianMixture(1.0, 0.3, inputs=inputs), [Estimator(constant, 0.1, features=seen), student])
        assert found.converged
        assert found[0].norm == 0.0
        assert found[1].bias == 0.2
        assert found[1].norm > 0.1


def test_sweeps_have_the_values_of_single_points() -> None:
    generator = np.random.default_rng(8)
    inputs, maps = Dense(covariance_of(6, generator)), [map_of(4, 6, generator), None]
    data, chain = GaussianMixture(1.0, 0.3, inputs=inputs), seeing(STAGES[:2], maps)
    names = ["test_error", "norm", "train_error"]
    found = sweep(data, chain, {"alpha": [0.5, 2.0], "student.ridge": [0.05, 0.5]}, names)
    chain[1] = Estimator(chain[1].loss, 0.5)
    single = solve(GaussianMixture(2.0, 0.3, inputs=inputs), chain)[1]
    for name in names:
        value = found[name].sel({"alpha": 2.0, "student.ridge": 0.5, "stage": "student"})
        assert float(value) == pytest.approx(getattr(single, name), rel=1e-7)


def test_what_was_simulated_can_be_solved() -> None:
    """Maps are not rounded, numbers of random features are."""
    seen = map_of(3, 6, np.random.default_rng(13))
    data, stages = GaussianMixture(1.0, inputs=Dense(np.eye(6))), seeing(STAGES[:2], [None, seen])
    runs = simulate(data, stages, n_inputs=60, n_runs=1)
    assert runs.active == (60, 30)
    assert runs.effective_chain == Chain.of(stages)
    assert solve(runs.effective_data, runs.effective_chain).converged
    network = Estimator(CrossEntropy(), 0.1, features=RandomFeatures(1.51))
    runs = simulate(GaussianMixture(1.0), network, n_inputs=50, n_runs=1)
    assert runs.effective_chain[0].features == RandomFeatures(1.52)
    assert runs.effective_chain[0].eta == 1.0


def test_noise_of_a_rule_can_be_swept() -> None:
    generator = np.random.default_rng(12)
    inputs, chain = Dense(covariance_of(6, generator)), seeing(REGRESSION[:2], [map_of(4, 6, generator), None])
    found = sweep(LinearRule(1.0, inputs=inputs), chain, {"noise": [0.1, 0.5]}, ["excess_risk", "norm"])
    for noise in (0.1, 0.5):
        single = solve(LinearRule(1.0, noise=noise, inputs=inputs), chain)[1]
        for name in ("excess_risk", "norm"):
            value = found[name].sel({"noise": noise, "stage": "student"})
            assert float(value) == pytest.approx(getattr(single, name), rel=1e-7)


def experiments() -> dict[str, tuple[DataModel, list[Estimator]]]:
    """Covariances and maps that do not commute."""
    generator = np.random.default_rng(9)
    covariance, direction = covariance_of(50, generator), generator.normal(size=50)
    maps = [map_of(35, 50, generator), None, map_of(70, 50, generator)]
    fresh = Estimator(STAGES[1].loss, 0.05, sets=("fresh",))
    return {
        "mixture": (GaussianMixture(1.5, 0.3, inputs=Dense(covariance, direction)), seeing(STAGES, maps)),
        "average": (
            GaussianMixture(1.5, 0.3, 0.7, inputs=Dense(covariance), further=(DataSet("fresh", 1.0),)),
            seeing([TEACHER, fresh], [None, maps[0]]),
        ),
        "regression": (LinearRule(1.5, noise=0.2, inputs=Dense(covariance)), seeing(REGRESSION, maps)),
        "probit": (
            LinearRule(1.5, output="probit", noise=0.2, inputs=Dense(covariance, direction)),
            seeing(STAGES[:2], [maps[2], maps[0]]),
        ),
    }


MEASURED = (
    "magnetization", "bias", "norm_squared", "test_error", "train_error", "train_loss", "free_energy", "excess_risk",
)  # fmt: skip


def scores(case: str, n_inputs: int, n_runs: int, seed: int) -> np.ndarray:
    """(experiment - theory)/(standard error) of all that is measured."""
    data, stages = experiments()[case]
    solution, runs = solve(data, stages), simulate(data, stages, n_inputs=n_inputs, n_runs=n_runs, seed=seed)
    found = scores_of_stages(solution, runs, MEASURED)
    overlap = runs.estimate("overlap")
    found += list(((overlap.mean - solution.overlap) / overlap.standard_error)[np.tril_indices(len(stages))])
    return np.array(found)


@pytest.mark.parametrize("case", ["mixture", "probit"])
def test_theory_agrees_with_small_experiments(case: str) -> None:
    found = scores(case, 200, 24, seed=1)
    assert np.abs(found).max() < 4
    assert math.sqrt(np.mean(found**2)) < 2


@pytest.mark.slow
@pytest.mark.parametrize("case", experiments())
def test_theory_agrees_with_large_experiments(case: str) -> None:
    for n_inputs, seed in ((250, 11), (500, 12)):
        found = scores(case, n_inputs, 24, seed)
        assert np.abs(found).max() < 4


def test_responses_agree_with_experiments() -> None:
    """Responses have corrections of order 1/N: those of two sizes are extrapolated."""
    data, stages = experiments()["average"]
    solution = solve(data, stages)
    runs = [
        simulate(data, stages, n_inputs=n, n_runs=24, seed=3, responses=True).estimate("response") for n in (50, 100)
    ]
    mean = 2 * runs[1].mean - runs[0].mean
    error = np.hypot(2 * runs[1].standard_error, runs[0].standard_error)
    below = np.tril_indices(2)
    assert np.abs((mean - solution.response)[below] / error[below]).max() < 4


def test_coordinates_of_little_variance_and_a_large_mean_are_solved() -> None:
    """Guesses for white inputs are orders of magnitude off there."""
    alone = Estimator(CrossEntropy(), 0.26, features=LinearMap([[0.0, 1.0]]))
    found = solve(GaussianMixture(0.23, 0.3, inputs=Dense(np.diag([1.0, 2e-4]), [0.5, 0.2])), alone, throw=True)[0]
    inputs = Spectrum([2e-4, 1.0], squared_signal=[0.04, 0.25])
    masked = solve(GaussianMixture(0.23, 0.3, inputs=inputs), Estimator(CrossEntropy(), 0.26, eta=0.5), throw=True)[0]
    assert found.test_error == pytest.approx(masked.test_error, rel=1e-9)
    assert found.magnetization == pytest.approx(masked.magnetization, rel=1e-9)
