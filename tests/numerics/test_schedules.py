"""Optimal self-distillation: the known effect, nested chains, and the gradients that the search relies on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from numerics import Estimator, GaussianMixture, ParameterError, solve, with_parameter
from numerics.models import Chain
from numerics.optimize import derivatives, optimize
from numerics.schedules import SQUARE, _neutral, optimal_schedule
from numerics.settings import DEFAULT
from theory.losses import CrossEntropy, Distillation, PseudoLabels, SquareDistillation

BALANCED = GaussianMixture(10.0, 0.5, 0.5, 0.3)
UNBALANCED = GaussianMixture(10.0, 0.4, 0.5, 0.3)


@pytest.mark.parametrize(("index", "value"), [(0, 0.110), (1, 0.089)])
def test_one_step_reaches_the_published_error(index: int, value: float) -> None:
    """Read off a published plot to 0.002; it has balanced classes."""
    schedule = optimal_schedule(BALANCED, 2)
    assert schedule[index].test_error == pytest.approx(value, abs=2e-3)
    assert schedule.converged


@pytest.mark.slow
def test_five_steps_reach_the_published_error() -> None:
    schedule = optimal_schedule(BALANCED, (1, 2, 3, 6))
    np.testing.assert_allclose(schedule.test_errors[[0, 1, 3]], [0.110, 0.089, 0.086], atol=2e-3)
    assert np.all(np.diff(schedule.test_errors) < 0)


def test_an_optimum_is_better_than_its_neighbours() -> None:
    schedule = optimal_schedule(UNBALANCED, 3)
    assert schedule.converged
    np.testing.assert_allclose(schedule.test_errors, [0.1419165, 0.1281900, 0.1233571], atol=1e-6)
    last = schedule[2]
    assert set(last.location.values()) == {"interior"}
    for path, value in last.parameters.items():
        for factor in (0.8, 1.25):
            assert solve(*with_parameter(UNBALANCED, last.chain, path, factor * value))[2].test_error > last.test_error
    assert last.reduction == schedule[0].test_error - last.test_error


def test_the_single_stage_is_that_of_optimize() -> None:
    best = optimize(UNBALANCED, Estimator(SQUARE, 1.0), {"teacher.ridge": (0.1, 100.0)}, "teacher.test_error")
    assert optimal_schedule(UNBALANCED, 1)[0].test_error == pytest.approx(best.value, rel=1e-9)


def test_gains_do_not_matter_without_labels() -> None:
    chain = [Estimator(SQUARE, 2.0), Estimator(SquareDistillation(gain=0.3), 1.0)]
    other = [chain[0], Estimator(SquareDistillation(gain=7.0), 1.0)]
    assert solve(UNBALANCED, chain)[1].test_error == pytest.approx(solve(UNBALANCED, other)[1].test_error, rel=1e-9)


def test_hard_labels_beat_soft_ones_with_the_square_loss() -> None:
    soft, hard = optimal_schedule(UNBALANCED, 2), optimal_schedule(UNBALANCED, 2, hard=True)
    assert hard.converged
    assert hard[1].test_error < soft[1].test_error - 0.005


@pytest.mark.parametrize("hard", [False, True])
def test_derivatives_of_noisy_chains(hard: bool) -> None:
    """Those of a last stage's error, against differences of solutions."""
    taught = PseudoLabels(0.8, square=True) if hard else SquareDistillation(0.8, 0.7)
    stages = [Estimator(SQUARE, 2.0, name="a"), Estimator(taught, 1.0, name="b")]
    chain = Chain.of(stages if hard else [*stages, Estimator(taught, 0.5, name="c")])
    name = f"{chain.names[-1]}.test_error"
    paths = ["a.ridge", "b.ridge", "b.mixing"] + ([] if hard else ["b.gain", "c.gain", "c.mixing"])
    found = derivatives(solve(UNBALANCED, chain), paths, [name])
    for path in paths:
        stage, _, key = path.rpartition(".")
        owner = chain[chain.names.index(stage)]
        value = owner.ridge if key == "ridge" else owner.loss.parameters[key]
        ends = [
            solve(*with_parameter(UNBALANCED, chain, path, value * factor), rtol=1e-10)[-1].test_error
            for factor in (1 - 1e-4, 1 + 1e-4)
        ]
        assert found[path][name] == pytest.approx((ends[1] - ends[0]) / (2e-4 * value), rel=1e-4, abs=1e-8)


def test_mixing_in_labels_and_cross_entropy() -> None:
    data = GaussianMixture(3.0, 0.4, 0.5, 0.2)
    pure, mixed = optimal_schedule(data, 2), optimal_schedule(data, 2, mixing=True)
    assert set(mixed[1].parameters) == {"step0.ridge", "step1.ridge", "step1.gain", "step1.mixing"}
    assert mixed[1].test_error < pure[1].test_error + 1e-6
    logistic = optimal_schedule(data, 1, "cross-entropy")
    best = optimize(data, Estimator(CrossEntropy(), 1.0), {"teacher.ridge": (0.1, 100.0)}, "teacher.test_error")
    assert logistic[0].test_error == pytest.approx(best.value, rel=1e-9)


def test_schedules_as_dictionaries() -> None:
    schedule = optimal_schedule(UNBALANCED, (1, 2))
    plain = json.loads(json.dumps(schedule.to_dict()))
    assert [step["steps"] for step in plain["steps"]] == [0, 1]
    assert plain["steps"][1]["test_error"] == schedule[1].test_error
    assert len(schedule) == 2


@pytest.mark.parametrize("stages", [0, True, 1.5, (), (2, 1), (0, 1), (1, "2")])
def test_bad_numbers_of_stages(stages) -> None:
    with pytest.raises(ParameterError, match="stages"):
        optimal_schedule(UNBALANCED, stages)


def test_an_unknown_loss() -> None:
    with pytest.raises(ParameterError, match="cross-entropy"):
        optimal_schedule(UNBALANCED, 2, "hinge")


# What an extra step may cost, and flat optima.

ALMOST_CLEAN = GaussianMixture(0.5, 0.2, 1.0)
"""Data on which a student of soft labels gains nothing."""


def test_an_extra_step_is_never_worse_where_the_neutral_one_is_allowed() -> None:
    allowed = optimal_schedule(ALMOST_CLEAN, 2, "cross-entropy", ridges=(0.0, 100.0))
    assert np.all(np.diff(allowed.test_errors) <= 1e-9)
    assert allowed.converged
    without = optimal_schedule(ALMOST_CLEAN, 2, "cross-entropy")
    assert without[1].test_error > without[0].test_error
    assert "worse than 0 steps: the range of the ridges leaves out the neutral step" in without[1].message


def test_a_neutral_step_is_its_teacher() -> None:
    narrow = optimal_schedule(ALMOST_CLEAN, 1, "cross-entropy")[0]
    student = Estimator(Distillation(temperature=0.5, temperature_squared=True), ridge=0.0)
    copied = solve(ALMOST_CLEAN, [*narrow.chain.stages, student])
    assert copied[1].test_error == pytest.approx(narrow.test_error, rel=1e-7)
    found = _neutral(
        ALMOST_CLEAN, Chain.of([*narrow.chain.stages, replace(student, ridge=0.3, name="step1")]), narrow, DEFAULT
    )
    assert found.test_error == pytest.approx(narrow.test_error, rel=1e-7)
    assert (found.parameters["step1.ridge"], found.location["step1.ridge"], found.steps) == (0.0, "neutral", 1)
    assert found.chain[1].ridge == 0.0


def test_hard_labels_have_no_neutral_step() -> None:
    worse = optimal_schedule(GaussianMixture(2.0, 0.2), 2, hard=True)
    assert worse[1].test_error > worse[0].test_error
    assert "students of decisions have no neutral step" in worse[1].message
    assert worse[0].message == ""


def test_flat_optima_are_said_to_be_flat() -> None:
    """Balanced clean classes: a Hebbian direction is optimal, and every large ridge is nearly that."""
    clean = GaussianMixture(10.0, 0.5, 0.5)
    flat = optimal_schedule(clean, 1, ridges=(0.1, 1e4))[0]
    low, high = flat.nearly_best["step0.ridge"]
    assert flat.flat == ("step0.ridge",)
    assert high == pytest.approx(1e4)
    assert "flat in step0.ridge: as good from" in flat.message
    lost = [
        solve(*with_parameter(clean, flat.chain, "step0.ridge", factor * low))[0].test_error - flat.test_error
        for factor in (1.01, 0.99)
    ]
    assert lost[0] < 1e-6 < lost[1]
    sharp = optimal_schedule(UNBALANCED, 1)[0]
    assert (sharp.flat, sharp.message) == ((), "")
    low, high = sharp.nearly_best["step0.ridge"]
    assert (
        0.9 * sharp.parameters["step0.ridge"]
        < low
        < sharp.parameters["step0.ridge"]
        < high
        < 1.1 * sharp.parameters["step0.ridge"]
    )
