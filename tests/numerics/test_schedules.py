"""Optimal self-distillation: the known effect, nested chains, and the gradients that the search relies on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from numerics import Estimator, GaussianMixture, ParameterError, solve, with_parameter
from numerics.models import Chain
from numerics.optimize import derivatives, optimize
from numerics.schedules import SQUARE, optimal_schedule
from theory.losses import CrossEntropy, PseudoLabels, SquareDistillation

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
