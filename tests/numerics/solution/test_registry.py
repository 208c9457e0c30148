"""One definition of an observable reaches everything that solves, simulates, sweeps, optimises and prints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from click.testing import CliRunner

from numerics import (
    OBSERVABLES,
    DataSet,
    Estimator,
    GaussianMixture,
    ParameterError,
    Simulation,
    simulate,
    solve,
    sweep,
)
from numerics.cli.report import compare, solution_text
from numerics.cli.sweep import sweep_command
from numerics.optimize import derivatives, optimize
from numerics.solution.observables.registry import (
    PAIR,
    REGISTRY,
    Observable,
    forget,
    groups,
    long_name,
    measured,
    observable,
)
from numerics.solution.solution import StageSolution
from numerics.solution.training import TrainingSamples
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareLoss

DATA = GaussianMixture(1.5, 0.3, 0.8, label_noise=0.1)
CHAIN = [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(0.7, 2.0), 0.05, eta=0.7)]


@pytest.fixture
def made_up() -> Iterator[tuple[Observable, ...]]:
    """An integral, a formula of order parameters, and one of two stages."""

    @observable("training samples within the margin", linear=True)
    def within_margin(stage):
        """P(s h < 1) on a training sample."""
        return stage.samples.probability(1.0)

    @observable("signal to noise", algebraic=True)
    def signal_to_noise(stage):
        """m^2/(Delta Q)."""
        q = stage.fresh.overlap[..., -1, -1]
        return stage.fresh.magnetization[..., -1] ** 2 / (stage.fresh.data.variance * q)

    @observable("steepness beside the teacher", kind=PAIR, matrix="steepness")
    def teacher_steepness(stage, other):
        """Mean of h^2/(1 + h_teacher^2) on a training sample."""
        return stage.samples.mean(lambda label, h, teacher: h**2 / (1.0 + teacher**2), [stage.own, other])

    found = (within_margin, signal_to_noise, teacher_steepness)
    yield found
    for one in found:
        forget(one.name)


def test_solve(made_up: tuple[Observable, ...]) -> None:
    stage = solve(DATA, CHAIN, throw=True)[1]
    m, q = stage.magnetization, stage.norm_squared
    assert stage.signal_to_noise == pytest.approx(m**2 / (DATA.delta * q), rel=1e-14)
    assert stage.train_error < stage.within_margin < 1.0
    assert math.isnan(stage.solution[0].teacher_steepness)
    for one in made_up:
        assert OBSERVABLES[one.name] == one.label
        assert getattr(StageSolution, one.name).__doc__ == one.__doc__
        value, error = getattr(stage, one.name), getattr(stage, f"{one.name}_quadrature_error")
        assert 0.0 < error < 1e-7 * value
        assert one.name in groups(DATA)["test registry"]
        found = json.loads(json.dumps(stage.solution.to_dict()))["stages"][1]
        assert (found[one.name], found[f"{one.name}_quadrature_error"]) == (value, error)
        assert one.name in solution_text(stage.solution)


def test_simulate(made_up: tuple[Observable, ...]) -> None:
    """N = 400, 10 runs: within 4 standard errors and a finite-size bias of 1%."""
    solution, runs = solve(DATA, CHAIN, throw=True), simulate(DATA, CHAIN, n_inputs=400, n_runs=10, seed=2)
    for index, (stage, run) in enumerate(zip(solution.stages, runs, strict=True)):
        for one in made_up:
            assert one.name in measured()
            expected, found = getattr(stage, one.name), getattr(run, one.name)
            if math.isnan(expected):
                assert math.isnan(found.mean)
                continue
            assert abs(found.mean - expected) < 4 * found.standard_error + 0.01 * abs(expected), one.name
            assert compare(runs, solution)[index][one.name]["theory"] == expected
    matrix = runs.runs["steepness"]
    np.testing.assert_array_equal(matrix[:, 1, 0], runs.runs["teacher_steepness"][:, 1])
    np.testing.assert_array_equal(matrix, matrix.transpose(0, 2, 1))


def test_sweep(made_up: tuple[Observable, ...]) -> None:
    names = [one.name for one in made_up]
    errors = [f"{name}_quadrature_error" for name in names]
    grid = sweep(DATA, CHAIN, {"alpha": [1.0, 1.5]}, [*names, *errors])
    solution = solve(DATA, CHAIN, throw=True)
    for one in made_up:
        assert grid[one.name].attrs["long_name"] == one.label
        for t, stage in enumerate(solution.stages):
            value = float(grid[one.name].sel(alpha=1.5)[t])
            assert value == pytest.approx(getattr(stage, one.name), rel=1e-8, nan_ok=True)
            assert 0.0 < float(grid[f"{one.name}_quadrature_error"].sel(alpha=1.5)[t]) < 1e-6 * value or math.isnan(
                value
            )
    runs = sweep(DATA, CHAIN, {"alpha": [1.5]}, names, simulation=Simulation(60, 3))
    assert set(runs.data_vars) == {*names, *(f"{name}_standard_error" for name in names)}


def test_optimize(made_up: tuple[Observable, ...]) -> None:
    best = optimize(DATA, CHAIN, {"student.ridge": (1e-3, 10)}, "student.signal_to_noise", maximize=True)
    cosine = optimize(DATA, CHAIN, {"student.ridge": (1e-3, 10)}, "student.cosine", maximize=True)
    assert best.parameters["student.ridge"] == pytest.approx(cosine.parameters["student.ridge"], rel=1e-6)
    solution, step = solve(DATA, CHAIN, throw=True, rtol=1e-11), 1e-4
    slope = derivatives(solution, ["student.ridge"], ["student.within_margin"])["student.ridge"][
        "student.within_margin"
    ]
    ends = [solve(DATA, [CHAIN[0], Estimator(Distillation(0.7, 2.0), 0.05 + side * step, eta=0.7)], rtol=1e-11)
            for side in (1, -1)]  # fmt: skip
    assert slope == pytest.approx((ends[0][1].within_margin - ends[1][1].within_margin) / (2 * step), rel=1e-5)


def test_command_line(made_up: tuple[Observable, ...], tmp_path) -> None:
    output = tmp_path / "found.nc"
    flags = [
        "--over",
        "alpha=1:2:2",
        "--observable",
        "signal_to_noise",
        "--observable",
        "signal_to_noise_quadrature_error",
    ]
    done = CliRunner().invoke(sweep_command, [*flags, "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert output.exists()


def test_the_list_is_as_it_was_afterwards() -> None:
    assert "within_margin" not in OBSERVABLES
    assert not hasattr(StageSolution, "within_margin")
    assert "calibration_error" in measured()
    assert not {"bayes_error", "response"} & set(measured())
    assert "teacher_train_agreement" in REGISTRY
    assert "teacher_train_agreement" not in OBSERVABLES


def test_definitions_are_checked() -> None:
    def nameless(stage):
        return 0.0

    def train_error(stage):
        """A name that is taken."""

    def limit(stage):
        """An attribute that stages have."""

    with pytest.raises(ValueError, match="docstring"):
        observable("nothing")(nameless)
    for function in (train_error, limit):
        with pytest.raises(ValueError, match=f"{function.__name__}' is taken"):
            observable("again")(function)
    with pytest.raises(ValueError, match="kind must be one of"):
        observable("other", kind="triple")
    with pytest.raises(ValueError, match="matrix"):
        observable("other", matrix="pairs")


# Levels of a logit


NOISY = GaussianMixture(0.9, 0.3, 0.8, 0.1, (DataSet("more", 0.6, 0.2),))
LEVELS = {
    "soft": [Estimator(CrossEntropy(), 0.05), Estimator(Distillation(0.8, 2.0), 0.02, sets=("training", "more"))],
    "hard": [Estimator(CrossEntropy(), 0.2), Estimator(PseudoLabels(0.8), 0.1, eta=0.7, sets="more")],
    "square": [
        Estimator(SquareLoss(), 0.2),
        Estimator(Loss.from_expression("(h - h_1)**2/2"), 0.1, eta=0.6, sets="more"),
    ],
}


LIMITS = (-0.4, 0.0, 0.7)


@pytest.mark.parametrize("name", LEVELS)
def test_probability_of_a_level(name: str) -> None:
    """Theory against an experiment: N = 600, 8 runs, within 4 standard errors and 2e-3."""

    def share(level: float, clean: bool) -> Observable:
        def found(stage):
            """P(s h < level) on a training sample."""
            return stage.samples.probability(level, clean=clean)

        found.__name__ = f"level_{LIMITS.index(level)}_{clean}"
        return observable("share")(found)

    shares = [share(level, clean) for level in LIMITS for clean in (False, True)]
    try:
        solution, runs = solve(NOISY, LEVELS[name], throw=True), simulate(NOISY, LEVELS[name], 600, 8, 3)
        for stage, run in zip(solution.stages, runs, strict=True):
            for one in shares:
                expected, found = getattr(stage, one.name), getattr(run, one.name)
                assert abs(found.mean - expected) < 4 * found.standard_error + 2e-3, one.name
            assert stage.level_1_False == stage.train_error
            assert stage.level_1_True == stage.clean_train_error
    finally:
        for one in shares:
            forget(one.name)


def test_levels_of_affine_logits_are_those_of_any_others(monkeypatch: pytest.MonkeyPatch) -> None:
    solution = solve(NOISY, LEVELS["square"], throw=True)
    exact = [solution[1].samples.probability(level).value for level in LIMITS]
    monkeypatch.setattr(TrainingSamples, "gaussian", None)
    general = [TrainingSamples(solution, 2).probability(level).value for level in LIMITS]
    np.testing.assert_allclose(general, exact, rtol=1e-9)
    assert exact == sorted(exact)


# Errors


def test_errors_of_a_grid_are_at_least_those_of_its_points() -> None:
    """Formulas: order parameters at their worst, against their error with its correlations; integrals: the same numbers."""
    names = ("test_error", "norm", "cosine", "response", "teacher_cosine", "test_logit_distance", "calibration_slope")
    integrals = ("train_error", "test_loss")
    errors = [f"{name}_quadrature_error" for name in (*names, *integrals)]
    grid = sweep(DATA, CHAIN, {"alpha": [1.4, 1.5]}, errors, rtol=1e-6)
    for alpha in (1.4, 1.5):
        solution = solve(GaussianMixture(alpha, 0.3, 0.8, label_noise=0.1), CHAIN, rtol=1e-6)
        for t, stage in enumerate(solution.stages):
            for name in names:
                found = float(grid[f"{name}_quadrature_error"].sel(alpha=alpha)[t])
                if not math.isnan(stage.error_of(name)):
                    assert stage.error_of(name) <= 3 * found + 1e-13, name
                    assert found < 1e-4 * abs(getattr(stage, name)), name
            for name in integrals:
                found = float(grid[f"{name}_quadrature_error"].sel(alpha=alpha)[t])
                assert found < 1e-4 * getattr(stage, name)
    assert grid["norm_quadrature_error"].attrs["long_name"] == long_name("norm_quadrature_error")


def test_errors_are_not_measured_or_optimised() -> None:
    with pytest.raises(ParameterError, match="does not measure 'norm_quadrature_error'"):
        sweep(DATA, CHAIN, {"alpha": [1.0]}, ["norm_quadrature_error"], simulation=Simulation(20, 1))
    with pytest.raises(ParameterError, match=r"unknown name 'nrm_quadrature_error'"):
        sweep(DATA, CHAIN, {"alpha": [1.0]}, ["nrm_quadrature_error"])
    with pytest.raises(ParameterError, match="observable must be"):
        optimize(DATA, CHAIN, {"student.ridge": (0.1, 1)}, "student.norm_quadrature_error")
    with pytest.raises(AttributeError, match="nrm_quadrature_error"):
        _ = solve(DATA, CHAIN)[0].nrm_quadrature_error
