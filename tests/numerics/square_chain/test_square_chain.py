"""Chains of quadratic losses through their spectral measure: against the compiled solver, linear algebra on samples, and limits.

The statistical comparison is as in ``test_theory_and_simulation.py``: z is (simulation - theory) in standard errors over runs.
"""

from __future__ import annotations

import math
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import sympy
from scipy import integrate

from numerics import (
    OBSERVABLES,
    Chain,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    LinearRule,
    ParameterError,
    Solution,
    simulate,
    solve,
    sweep,
    with_parameter,
)
from numerics.models import (
    ConvergenceWarning,
    DataModel,
    Stage,
    in_equations,
    parameter_paths,
    parameter_value,
    parameter_values,
)
from numerics.optimize import derivatives
from numerics.scalar.compiled import PointArrays, compile_chain
from numerics.settings import Settings
from numerics.solution.observables.registry import compares, measured, observables_of
from numerics.solution.samples import output_difference
from numerics.solver import LONGEST_CHAIN, read_solution, spectral_solution
from numerics.square_chain import spectral
from numerics.square_chain.reduction import limit_of_self_distillation, square_chain
from numerics.square_chain.spectral import PANEL_NODES, SPECTRAL_STAGES, cholesky_of_rows, solve_square_chain, spectrum
from tests.against_experiments import scores_of_stages
from theory.losses import CrossEntropy, LinearLoss, Loss, SquareDistillation, SquareLoss
from theory.quadratic import eigenvalue, least_value, linear_force, spectral_density, spectral_edges
from theory.symbols import alpha, delta, eta

NOISY = GaussianMixture(1.5, 0.4, 0.5, 0.2)
FIRST = Estimator(SquareLoss(), 0.6)
STEP = Estimator(SquareDistillation(0.6), 0.3)
SHIFTED = Loss.from_expression("a*(h - s)**2/2 + c*h", {"a": 1.7, "c": 0.3})
SKIPPING = Loss.from_expression("(h - 0.3*h_1 + 0.5*h_teacher)**2/2 - c*s*h", {"c": 0.7})
PRECISE = Settings(rtol=1e-11, newton_tolerance=1e-12)


def self_distillation(stages: int, first: Estimator = FIRST, step: Estimator = STEP) -> Chain:
    return Chain.of([first, *[step] * (stages - 1)])


def compiled_solution(data: DataModel, chain: Sequence[Stage]) -> Solution:
    """Without the spectral measure."""
    chain = Chain.of(chain)
    arrays = PointArrays([(data, chain)])
    arrays.solve(compile_chain(in_equations(data, chain)), PRECISE)
    return read_solution(arrays, 0, data, chain, PRECISE)


def exact_solution(data: DataModel, chain: Sequence[Stage]) -> Solution:
    """Through the spectral measure, however short."""
    solution = spectral_solution(data, Chain.of(chain))
    assert solution is not None
    assert solution.converged
    return solution


def assert_equal(found: Solution, expected: Solution, tolerance: float) -> None:
    """Order parameters and conjugates, relative to their natural sizes."""
    norm = np.sqrt(np.diag(expected.overlap))
    own = np.sqrt(np.diag(expected.response))
    deviations = {
        "magnetization": (found.magnetization - expected.magnetization) / norm,
        "bias": (found.bias - expected.bias) / (1 + norm),
        "overlap": (found.overlap - expected.overlap) / np.outer(norm, norm),
        "response": (found.response - expected.response) / np.outer(own, own),
    }
    for name, deviation in deviations.items():
        assert np.abs(deviation).max() < tolerance, name
    for t, (a, b) in enumerate(zip(found.points, expected.points, strict=True)):
        size = np.concatenate(([1 / own[t]], 1 / (own[: t + 1] * own[t]), 1 / (own[: t + 1] * own[t])))
        size[1 : t + 2] *= norm[: t + 1] * norm[t] / (own[: t + 1] * own[t])
        size[0] *= norm[t] / own[t]
        assert np.abs((a.conjugates - b.conjugates) / size).max() < 10 * tolerance


# Published to this project as a failure: a digit was lost at every stage


@lru_cache(maxsize=1)
def thousand_stages() -> tuple[Solution, int]:
    """The solution, and the largest number of bytes that were held while it was found."""
    tracemalloc.start()
    solution = solve(NOISY, self_distillation(1000), throw=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return solution, peak


def test_errors_of_long_self_distillation() -> None:
    """Test errors that do not drift, where there were 8 digits at stage 8, none at stage 12, and no answer at 16."""
    solution, peak = thousand_stages()
    assert peak < 300e6
    expected = {4: 0.20166491, 6: 0.20218973, 8: 0.20253094, 10: 0.20263966}
    for stages, error in expected.items():
        assert solution[stages - 1].test_error == pytest.approx(error, abs=5e-9)
    limit = solve(NOISY, Estimator(SquareLoss(), 1.5))[0]
    assert limit.test_error == pytest.approx(0.20268056, abs=5e-9)
    last = solution[-1]
    for name in (
        "test_error",
        "magnetization",
        "bias",
        "norm",
        "train_error",
        "clean_train_error",
        "train_cross_entropy",
    ):
        assert getattr(last, name) == pytest.approx(getattr(limit, name), abs=1e-10)
    assert solution.quadrature_error < 1e-12
    assert solution.residual < 1e-12


def test_a_thousand_stages_have_all_observables() -> None:
    solution, _ = thousand_stages()
    names = observables_of(solution.data)
    for stage in (solution[0], solution[20], solution[-1]):
        values = {name: getattr(stage, name) for name in names}
        missing = {name for name, value in values.items() if math.isnan(value)}
        assert missing == ({name for name in names if compares(name)} if stage.number == 1 else set())
    assert solution.overlap.shape == solution.response.shape == (1000, 1000)


def test_stages_approach_one_another_to_the_last_digit() -> None:
    """Distances of neighbouring stages shrink by a constant factor, far below the square root of rounding errors."""
    solution = solve(NOISY, self_distillation(60), throw=True)
    distances = np.array([stage.train_logit_distance for stage in solution.stages[1:]])
    ratios = distances[11:45] / distances[10:44]
    assert distances[45] < 1e-22
    assert np.all((ratios > 0.2) & (ratios < 0.36))  # (0.6 x/(0.6 + x))^2 at the largest eigenvalue
    assert np.all(np.diff(ratios[:20]) > 0)
    rest = np.array([point.cholesky_row[-1] for point in solution.points])
    assert np.all(rest >= 0)


# Against the compiled solver


def random_problem(rng: np.random.Generator) -> tuple[GaussianMixture, Chain]:
    trained = float(rng.choice([1.0, 0.3, 0.6]))
    data = GaussianMixture(
        float(10 ** rng.uniform(-0.7, 0.7)), float(rng.choice([0.2, 0.5, 0.4])), float(10 ** rng.uniform(-0.7, 0.4)),
        float(rng.choice([0.0, 0.3])),
    )  # fmt: skip
    stages: list[Stage] = []
    for k in range(rng.integers(2, 5)):
        bias = None if rng.random() < 0.7 else float(rng.normal())
        if k == 0:
            loss = (SquareLoss(), SHIFTED, LinearLoss())[rng.integers(3)]
        elif k > 1 and rng.random() < 0.3:
            loss = SquareDistillation(0.7, 0.9, teacher=tuple(range(1, k + 1)))
        elif rng.random() < 0.2:
            loss = SKIPPING
        else:
            teacher = None if rng.random() < 0.5 else int(rng.integers(1, k + 1))
            loss = SquareDistillation(
                rng.uniform(), rng.uniform(0.2, 2.0), float(rng.choice([0.0, 0.2])), teacher=teacher
            )
        stages.append(Estimator(loss, float(10 ** rng.uniform(-1.5, 0.7)), trained, bias=bias))
    return data, Chain.of(stages)


@pytest.mark.parametrize("seed", range(12))
def test_short_chains_agree_with_the_compiled_solver(seed: int) -> None:
    data, chain = random_problem(np.random.default_rng([20261127, seed]))
    assert_equal(exact_solution(data, chain), compiled_solution(data, chain), 1e-9)


@pytest.mark.slow
def test_many_short_chains_agree_with_the_compiled_solver() -> None:
    for seed in range(12, 300):
        data, chain = random_problem(np.random.default_rng([20261127, seed]))
        expected = compiled_solution(data, chain)
        if expected.converged:
            assert_equal(exact_solution(data, chain), expected, 1e-8)


HARD_CASES = {
    "fewer samples than weights": (GaussianMixture(0.5, 0.2, 1.0, 0.3), 1e-3, 1.0),
    "as many": (GaussianMixture(0.6, 0.4, 0.5), 0.05, 0.6),
    "more": (GaussianMixture(4.0, 0.2, 2.0, 0.1), 1e-3, 0.4),
}


@pytest.mark.parametrize("case", HARD_CASES)
def test_two_stages_at_the_edges_of_the_spectrum(case: str) -> None:
    data, ridge, trained = HARD_CASES[case]
    chain = [Estimator(SquareLoss(), 0.3, trained), Estimator(SquareDistillation(0.7, 1.2), ridge, trained)]
    assert_equal(exact_solution(data, chain), compiled_solution(data, chain), 1e-9)


def test_several_data_sets_that_all_stages_share_are_one() -> None:
    data = GaussianMixture(1.0, 0.3, 0.7, 0.1, further=[DataSet("more", 0.6, 0.3)])
    sets = ("training", "more")
    chain = [
        Estimator(SquareLoss(), 0.4, sets=sets),
        Estimator(SquareDistillation(0.7), 0.2, sets=sets[::-1]),
        Hebbian(sets=sets),
    ]
    assert_equal(exact_solution(data, chain), compiled_solution(data, chain), 1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_given_weights_may_teach(noise: float) -> None:
    data = replace(NOISY, label_noise=noise)
    chain = [
        Estimator(SquareLoss(), 0.4),
        Frozen(0.7, 1.3, 0.4, name="given"),
        Estimator(SquareDistillation(0.6, teacher=(1, 2)), 0.2),
        Frozen(0.5, 0.25, name="aligned"),
        Estimator(SquareDistillation(0.9, 0.8, teacher=4), 0.3, bias=0.1),
    ]
    for length in (2, 3, 5):
        found, expected = exact_solution(data, chain[:length]), compiled_solution(data, chain[:length])
        for name in ("magnetization", "bias", "overlap", "response"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-8), name
        for a, b in zip(found.points, expected.points, strict=True):
            assert a.conjugates == pytest.approx(b.conjugates, abs=1e-7)
        assert found.residual < 1e-13
    assert found[1].clean_train_error == pytest.approx(found[1].test_error, rel=1e-13)  # samples are fresh to it
    assert math.isnan(found[1].train_loss)


def test_the_answer_does_not_depend_on_who_solves(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = self_distillation(SPECTRAL_STAGES)
    here = solve(NOISY, chain)
    assert here.spectral is not None
    monkeypatch.setattr(spectral, "SPECTRAL_STAGES", SPECTRAL_STAGES + 1)
    there = solve(NOISY, chain)
    assert there.spectral is None
    assert_equal(here, there, 1e-9)
    monkeypatch.undo()
    assert solve(NOISY, self_distillation(SPECTRAL_STAGES - 1)).spectral is None


@pytest.mark.parametrize("data", [NOISY, GaussianMixture(0.7, 0.2, 1.0)], ids=["noise", "interpolating"])
def test_training_observables_agree_with_nodes(data: GaussianMixture) -> None:
    chain = [Estimator(SHIFTED, 0.4), Estimator(SquareDistillation(0.6, 1.1, 0.1), 0.3, bias=0.1)]
    expected, found = compiled_solution(data, chain), exact_solution(data, chain)
    for one, other in zip(found.stages, expected.stages, strict=True):
        for name in OBSERVABLES:
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=2e-8, nan_ok=True), name


# Nodes of the measure


@pytest.mark.parametrize("values", [(0.5, 1.0, 0.7), (1.0, 1.0, 2.0), (3.0, 0.4, 1.0), (0.6, 0.600001, 1.0)])
def test_nodes_integrate_the_spectral_density(values: tuple[float, float, float]) -> None:
    samples, weights, noise = values
    data = GaussianMixture(samples, 0.3, noise)
    numbers = square_chain(data, Chain.of(Estimator(SquareLoss(), 0.01, weights)))
    measure = spectrum(numbers, PANEL_NODES[0])
    x, bulk = measure.nodes[:-1], measure.of_weights[:-1]
    assert bulk.sum() == pytest.approx(min(samples, weights), rel=1e-12)
    assert measure.of_weights.sum() == pytest.approx(weights, rel=1e-12)
    assert measure.of_samples.sum() == pytest.approx(samples, rel=1e-12)
    assert measure.of_weights @ measure.nodes == pytest.approx(samples * weights * noise, rel=1e-12)  # |Y|^2/N
    named = {alpha: samples, eta: weights, delta: noise}
    density = sympy.lambdify(eigenvalue, spectral_density.subs(named))
    low, high = (float(edge.subs(named)) for edge in spectral_edges)
    moment = integrate.quad(lambda phi: stretched(phi, density, low, high), 0, math.pi / 2)[0]
    assert bulk @ x**2 == pytest.approx(moment, rel=1e-8)
    # Stieltjes transform: ridge Delta V^2 + (ridge + Delta (alpha - eta)) V - eta = 0.
    ridge, rest = 0.01, 0.01 + noise * (samples - weights)
    expected = 2 * weights / (rest + math.sqrt(rest**2 + 4 * ridge * noise * weights))
    assert measure.of_weights @ (1 / (ridge + measure.nodes)) == pytest.approx(expected, rel=1e-12)


def stretched(phi: float, density: Callable[[float], float], low: float, high: float) -> float:
    """x^2 times the density, in the angle in which both edges are smooth."""
    x = low + (high - low) * math.sin(phi) ** 2
    return x**2 * density(x) * (high - low) * math.sin(2 * phi)


EXTREMES = {
    "tiny ridges": (GaussianMixture(1.0, 0.4, 0.5, 0.2), 1e-8, SquareDistillation(0.9)),
    "huge ridges": (GaussianMixture(2.0, 0.02, 3.0), 1e5, SquareDistillation(1.0)),
    "just above the interpolation threshold": (GaussianMixture(1 + 1e-9, 0.3, 0.1), 1e-6, SquareDistillation(1.0)),
    "few samples": (GaussianMixture(0.02, 0.5, 100.0, 0.49), 1e-3, SquareDistillation(0.99, 1.2)),
    "many samples": (GaussianMixture(100.0, 0.4, 0.01), 1e-3, SquareDistillation(1.0, 1.0, teacher=1)),
    "large gains": (GaussianMixture(1.5, 0.4, 0.5), 0.1, SquareDistillation(1.0, 30.0)),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_nothing_is_lost_in_forty_stages(case: str) -> None:
    data, ridge, loss = EXTREMES[case]
    chain = self_distillation(40, Estimator(SquareLoss(), ridge), Estimator(loss, 3 * ridge))
    found = solve_square_chain(square_chain(data, chain))
    assert found.error < 1e-12
    assert found.points[0].residual < 1e-12


def test_cholesky_of_nearly_equal_rows_keeps_what_is_left() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [1.0, 1e-13, 0.0], [1.0, 1e-13, 1e-19]])
    assert np.diag(cholesky_of_rows(rows)) == pytest.approx([1.0, 1e-13, 1e-19], rel=1e-12)


# Against finite systems

FIVE = [
    Estimator(SquareLoss(), 0.6),
    Estimator(SquareDistillation(0.6, 1.2), 0.3),
    Estimator(SquareDistillation(0.8, teacher=1), 0.05, bias=0.2),
    Estimator(SquareDistillation(0.5, 0.9, 0.1, teacher=(1, 3)), 0.2),
    Estimator(SKIPPING, 0.1),
]


ECHOES = "direction_error", "top_label_calibration_error", "brier_score", "disagreement_bound", "joint_classifier_bound"
"""Functions of m, b and Q as the test error and the calibration error are: a deviation of m would be counted again and again."""


@pytest.mark.parametrize(
    "data", [GaussianMixture(1.5, 0.2, 0.5, 0.3), GaussianMixture(0.6, 0.4, 1.0)], ids=["noise", "few samples"]
)
@pytest.mark.parametrize("trained", [1.0, 0.8])
def test_five_stages_agree_with_simulation(data: GaussianMixture, trained: float) -> None:
    """N = 400, 12 runs; |z| below 4.5 in 5 stages of observables that move together.

    The mean of |z| is taken without ``ECHOES``.
    """
    chain = [replace(stage, eta=trained) for stage in FIVE]
    solution, runs = solve(data, chain, throw=True), simulate(data, chain, 400, 12, 5)
    assert solution.spectral is not None
    z, counted = [], []
    for stage, run in zip(solution.stages, runs, strict=True):
        for name in measured():
            found = getattr(run, name)
            if found.standard_error > 0:
                # Finite systems are off by about 1/N.
                error = math.hypot(found.standard_error, 2.0 / 400 * abs(found.mean))
                z.append((found.mean - getattr(stage, name)) / error)
                counted.append(name not in ECHOES)
    assert np.abs(z).max() < 4.5
    assert np.abs(z)[counted].mean() < 1.3


# Infinitely many stages


@pytest.mark.parametrize(
    "step",
    [
        Estimator(SquareDistillation(0.6), 0.3),
        Estimator(SquareDistillation(0.9, 0.7, 0.1), 0.02),
        Estimator(SquareDistillation(0.9, -0.8), 0.5, bias=0.3),
        Estimator(Loss.from_expression("a*h**2 - 0.3*s*h - 0.2*h - h*h_teacher", {"a": 0.9}), 0.4),
    ],
    ids=["plain", "gain and smoothing", "negative gain and a fixed bias", "formula"],
)
@pytest.mark.parametrize("first", [Estimator(SquareLoss(), 0.6), Hebbian(bias=2.0)], ids=["square", "Hebbian"])
def test_limit_of_self_distillation(step: Estimator, first: Stage) -> None:
    solution = solve(NOISY, [first, *[step] * 199], throw=True)
    limit = solve(NOISY, limit_of_self_distillation(step), throw=True)
    exact = exact_solution(NOISY, limit.chain)
    for found in (limit, exact):
        for name in ("magnetization", "bias", "norm", "test_error", "train_error"):
            assert getattr(solution[-1], name) == pytest.approx(getattr(found[0], name), abs=1e-10)


def test_limit_keeps_the_mask_and_says_what_it_needs() -> None:
    step = Estimator(SquareDistillation(0.5), 0.3, eta=0.4, name="again")
    assert limit_of_self_distillation(step) == Estimator(SquareLoss(), 1.2, eta=0.4, name="again")
    refused = {
        "stage must be an Estimator": Hebbian(),
        "loss must look at the stage before alone": Estimator(SquareLoss(), 0.3),
        "look at the stage before alone": Estimator(SquareDistillation(0.5, teacher=1), 0.3),
        "not of second degree": Estimator(Loss.from_expression("softplus(h) - h*h_teacher"), 0.3),
        "mixing times gain must be below 1": Estimator(SquareDistillation(1.0), 0.3),
        "must not depend on the label": Estimator(Loss.from_expression("(1 + y)*(h - 0.5*h_teacher)**2"), 0.3),
    }
    for message, stage in refused.items():
        with pytest.raises(ParameterError, match=message):
            limit_of_self_distillation(stage)


# Who is solved here


WEIGHTED = Loss.from_expression("(1 + k*y)*(h - s)**2/2", {"k": 0.0})


@pytest.mark.parametrize(
    ("chain", "solved"),
    [
        ([Estimator(SquareLoss(), 0.3), STEP], True),
        ([Estimator(WEIGHTED, 0.3), STEP], True),
        ([Estimator(WEIGHTED.with_parameters(k=1.0), 0.3), STEP], False),
        ([Estimator(CrossEntropy(), 0.3), STEP], False),
        ([Estimator(SquareLoss(), 0.0), STEP], False),
        ([Estimator(SquareLoss(), 0.3, eta=0.5), STEP], False),
        ([Estimator(SquareLoss(), 0.3), replace(STEP, mask_overlap=1.0)], True),
        ([Estimator(SquareLoss(), 0.3, 0.5), replace(STEP, eta=0.5, mask_overlap=0.5)], False),
        ([Estimator(SquareLoss(), 0.3, 0.5), replace(STEP, eta=0.5, mask_overlap=1.0)], True),
        ([Frozen(1.0, 2.0), STEP], True),
        ([Frozen(1.0, 2.0), replace(STEP, eta=0.5)], False),
        ([Frozen(1.0, 2.0)], False),
        ([Hebbian(), STEP], True),
    ],
)
def test_which_chains_are_functions_of_one_matrix(chain: list[Stage], solved: bool) -> None:
    assert (square_chain(NOISY, Chain.of(chain)) is not None) == solved


def test_other_data_sets_are_other_matrices() -> None:
    data = replace(NOISY, further=(DataSet("fresh", 1.0),))
    assert square_chain(data, Chain.of([Estimator(SquareLoss(), 0.3), replace(STEP, sets=("fresh",))])) is None


def test_a_chain_that_the_compiled_solver_cannot_do_is_rescued() -> None:
    """Three stages at responses of 1e7 and more: its Newton steps no longer get below the noise."""
    chain = [
        Estimator(SquareLoss(), 1e-8),
        Estimator(SquareDistillation(1.0), 1e-8),
        Estimator(SquareDistillation(0.5), 1e-8),
    ]
    data = GaussianMixture(0.9, 0.3, 0.5, 0.2)
    assert not compiled_solution(data, chain).converged
    solution = solve(data, chain, throw=True)
    assert solution.spectral is not None
    grid = sweep(data, chain, {"alpha": [0.9, 2.0]}, ["test_error", "norm", "train_error"])
    assert grid.converged.all()
    assert grid.attrs["failed_points"] == 0
    for name in ("test_error", "norm", "train_error"):
        assert grid[name].values[:, 0] == pytest.approx([getattr(stage, name) for stage in solution.stages], rel=1e-7)


def test_long_chains_that_are_not_solved_here_are_refused_at_once() -> None:
    stages = LONGEST_CHAIN + 1
    for chain in (
        [Estimator(CrossEntropy(), 0.3), *[STEP] * (stages - 1)],
        [Estimator(SquareLoss(), 0.0), *[STEP] * (stages - 1)],
        [Estimator(SquareLoss(), 0.3, eta=0.5), *[STEP] * (stages - 1)],
    ):
        with pytest.raises(ParameterError, match=f"at most {LONGEST_CHAIN} stages, got {stages}"):
            solve(GaussianMixture(1.5, 0.4), chain)
    with pytest.raises(ParameterError, match=f"at most {LONGEST_CHAIN} stages"):
        solve(NOISY, [Frozen(1.0, 2.0)] + [replace(STEP, eta=0.5)] * (stages - 1))
    with pytest.raises(ParameterError, match=f"at most {LONGEST_CHAIN} stages"):
        sweep(NOISY, [Estimator(CrossEntropy(), 0.3), *[STEP] * (stages - 1)], {"alpha": [1.0, 2.0]})


def test_weights_that_grow_without_bound_are_named() -> None:
    chain = self_distillation(200, step=Estimator(SquareDistillation(1.0, 30.0), 0.01))
    with pytest.warns(ConvergenceWarning, match=r"stage \d+ \(stage\d+\): an order parameter became infinite"):
        solution = solve(NOISY, chain)
    assert not solution.converged
    assert solution[20].test_error == pytest.approx(solve(NOISY, chain.stages[:30])[20].test_error, rel=1e-12)
    assert math.isnan(solution[-1].test_error)
    assert math.isnan(solution[-1].train_error)


# What is built on it


def test_sweep_of_a_long_chain() -> None:
    chain = self_distillation(30)
    grid = sweep(NOISY, chain, {"student.ridge": [0.1, 0.3], "alpha": [0.7, 1.5]}, ["test_error", "train_loss"])
    assert grid.converged.all()
    last = solve(NOISY, chain)[-1]
    assert grid.test_error.values[-1, 1, 1] == last.test_error
    assert grid.train_loss.values[-1, 1, 1] == last.train_loss
    mixed = sweep(NOISY, chain, {"student.eta": [0.5, 1.0]})
    assert mixed.attrs["failed_points"] == 1
    assert "at most" in mixed.attrs["failures"]
    assert mixed.test_error.values[-1, 1] == last.test_error


def test_derivatives_of_a_long_chain() -> None:
    chain = self_distillation(20)
    solution, step = solve(NOISY, chain), 1e-4
    names = ["stage20.test_error", "stage20.train_loss", "stage20.norm"]
    found = derivatives(solution, ["alpha", "stage18.ridge", "label_noise"], names)
    for path, slopes in found.items():
        value = parameter_value(NOISY, chain, path)
        ends = [solve(*with_parameter(NOISY, chain, path, value + shift))[-1] for shift in (-step, step)]
        for name, slope in slopes.items():
            low, high = (getattr(end, name.partition(".")[2]) for end in ends)
            assert slope == pytest.approx((high - low) / (2 * step), rel=1e-5, abs=1e-9)


def test_parameters_of_a_long_chain_are_read_in_one_pass() -> None:
    chain = self_distillation(300)
    values = parameter_values(NOISY, chain)
    assert tuple(values) == parameter_paths(chain, NOISY)
    assert values["stage300.mixing"] == parameter_value(NOISY, chain, "stage300.mixing") == 0.6


# Formulas


def test_forces_and_least_values_of_formulas() -> None:
    negative, positive = linear_force(SHIFTED.expression)
    a, c = SHIFTED.symbols
    assert (positive.target, positive.curvature) == (a - c, a)
    assert sympy.expand(negative.target + a + c) == 0
    assert least_value(SquareDistillation().expression) == (0, 0)
    assert any(least_value(SHIFTED.expression))
    assert least_value(LinearLoss().expression)[1] == LinearLoss().expression.subs(sympy.Symbol("y", real=True), 1)


def test_small_output_differences_keep_their_digits() -> None:
    logit, apart = np.array([3.0, -700.0, 700.0, 0.0]), np.array([1e-12, 1e-3, -1e-3, 2.0])
    found = output_difference(logit, apart)
    assert found[0] == pytest.approx(1e-12 / (2 + 2 * math.cosh(3.0)), rel=1e-9)
    assert found[3] == pytest.approx(1 / (1 + math.exp(-2)) - 0.5)
    assert np.all(np.sign(found) == np.sign(apart))


def test_no_warning_is_left_behind() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve(GaussianMixture(1.0, 0.5, 1.0), self_distillation(50))
        assert all(stage.bias == 0.0 for stage in solution.stages)
        assert solution[-1].train_error > 0


# Real labels

REGRESSION = LinearRule(1.5, noise=0.4)
OF_REAL_LABELS = (
    "excess_risk", "train_mean_squared_error", "r_squared", "squared_bias", "variance", "cosine", "norm", "train_loss",
    "test_loss", "free_energy", "test_logit_distance", "train_logit_distance",
)  # fmt: skip


@pytest.mark.parametrize("data", [REGRESSION, LinearRule(0.7, noise=0.25, further=[DataSet("more", 0.4)])], ids=repr)
@pytest.mark.parametrize("bias", [None, 0.3], ids=["bias learned", "bias fixed"])
@pytest.mark.parametrize(
    "first",
    [Estimator(SquareLoss(), 0.3), Estimator(SquareLoss(), 0.3, eta=0.6), Frozen(0.0, 0.8)],
    ids=["trained", "masked", "given"],
)
def test_regression_against_the_compiled_solver(data: LinearRule, bias: float | None, first: Stage) -> None:
    sets = ("training",)
    if isinstance(first, Estimator):
        sets = tuple(found.name for found in data.sets)
        first = replace(first, sets=sets)
    last = Loss.from_expression("(h - 0.3*h_1 - 0.4*h_teacher - 0.2*s)**2/2 + 0.1*h")
    chain = [
        first,
        Estimator(SquareDistillation(0.7), 0.2, first.eta, bias=bias, sets=sets),
        Estimator(last, 0.05, first.eta, sets=sets),
    ]
    found = exact_solution(data, chain)
    expected = compiled_solution(data, chain)
    for point, same in zip(found.points[1:], expected.points[1:], strict=True):
        for name in ("unknowns", "conjugates"):
            assert getattr(point, name) == pytest.approx(getattr(same, name), rel=1e-10, abs=1e-11), name
    for stage, same in zip(found.stages[1:], expected.stages[1:], strict=True):
        for name in OF_REAL_LABELS:
            assert getattr(stage, name) == pytest.approx(getattr(same, name), rel=1e-9, abs=1e-10), name


def test_long_regression_chains() -> None:
    """Three hundred steps of self-distillation end at ridge regression with another ridge; a sweep solves the same chain."""
    step = Estimator(SquareDistillation(0.6), 0.3)
    chain = [Estimator(SquareLoss(), 0.6), *[step] * 300]
    limit = limit_of_self_distillation(step, REGRESSION)
    assert limit.ridge == pytest.approx(0.75, rel=1e-14)
    last, expected = solve(REGRESSION, chain, throw=True)[-1], solve(REGRESSION, limit, throw=True)[0]
    for name in ("excess_risk", "train_mean_squared_error", "norm", "cosine"):
        assert getattr(last, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
    grid = sweep(REGRESSION, chain, {"noise": [0.1, 0.4]}, observables=["excess_risk"])
    assert float(grid["excess_risk"].sel(noise=0.4).values[-1]) == pytest.approx(last.excess_risk, rel=1e-12)
    with pytest.raises(ParameterError, match="needs labels of two classes"):
        limit_of_self_distillation(Estimator(Loss.from_expression("(h - y - h_teacher/2)**2/2"), 0.3), REGRESSION)


@pytest.mark.parametrize(("n_inputs", "seed"), [(200, 3), (400, 4)])
def test_simulated_regression_of_twelve_stages(n_inputs: int, seed: int) -> None:
    """32 runs each, on part of the coordinates; |z| < 4.

    Agreements with the stage before are left out: they come close to 1, and lie below theory by about 0.02/N.
    """
    chain = [
        Estimator(SquareLoss(), 0.6, eta=0.7),
        *[Estimator(SquareDistillation(0.6), 0.3, eta=0.7)] * 11,
    ]
    runs = simulate(REGRESSION, chain, n_inputs=n_inputs, n_runs=32, seed=seed)
    scores = scores_of_stages(solve(runs.effective_data, runs.effective_chain, throw=True), runs, OF_REAL_LABELS)
    assert len(scores) > 120
    assert max(map(abs, scores)) < 4.0
