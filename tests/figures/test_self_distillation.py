"""Figures of self-distillation: what is drawn is what the solver says, and simulation agrees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import figures.self_distillation  # noqa: F401  (figures register themselves)
from figures.build import FIGURES, Effort, Prediction, build, fingerprint
from figures.self_distillation import ScheduledCurve, ScheduledSimulation
from numerics import GaussianMixture, solve
from numerics.schedules import optimal_schedule
from numerics.sweeps.grid import Grid
from numerics.sweeps.run import evaluate

NAMES = ("steps", "labels", "transfer", "ensemble")
DATA = GaussianMixture(1.0, 0.4, 0.5, 0.3)


def test_they_are_listed() -> None:
    assert [name for name in FIGURES if name.startswith("self-distillation")] == [
        f"self-distillation-{n}" for n in NAMES
    ]


def test_published_values_are_met() -> None:
    printed = FIGURES["self-distillation-steps"].plan(Effort(0, 0)).printed
    assert [entry.printed for entry in printed] == [0.110, 0.089, 0.086]
    assert all(entry.compare()["agrees"] for entry in printed)


def test_a_curve_is_made_of_schedules() -> None:
    curve = ScheduledCurve(DATA, (1, 2), {"alpha": np.array([2.0, 4.0])})
    found = evaluate({"curve": curve}, 1)["curve"]
    expected = optimal_schedule(replace(DATA, alpha=4.0), 2)
    np.testing.assert_array_equal(found.test_error.sel(alpha=4.0), expected.test_errors)
    assert found["optimal_step1.ridge"].sel(alpha=4.0).item() == expected[1].parameters["step1.ridge"]


def test_scheduled_simulations_agree_with_theory() -> None:
    curve = ScheduledCurve(DATA, (1, 2), {"alpha": np.array([2.0])})
    runs = ScheduledSimulation.of(curve, 2, np.array([2.0]), Effort(300, 12))
    data = evaluate({"runs": runs, "theory": Prediction(runs)}, 1)
    z = (data["runs"].test_error - data["theory"].test_error) / data["runs"].test_error_standard_error
    assert np.abs(z).max() < 4
    assert fingerprint(Prediction(runs)) != fingerprint(Prediction(replace(runs, length=1)))


@pytest.mark.parametrize("name", ["transfer", "ensemble"])
def test_grids_are_what_the_solver_says(name: str) -> None:
    for work in FIGURES[f"self-distillation-{name}"].plan(Effort(0, 0)).work.values():
        assert isinstance(work, Grid)
        (path,) = work.over
        at = replace(work, over={path: np.array([1.5])})
        found = evaluate({"part": at}, 1)["part"].test_error
        further = tuple(replace(s, alpha=1.5) for s in work.data.further)
        data = replace(work.data, further=further) if path == "fresh.alpha" else replace(work.data, alpha=1.5)
        expected = [stage.test_error for stage in solve(data, work.chain).stages]
        np.testing.assert_allclose(found.values[:, 0], expected, rtol=1e-6)


def test_a_figure_is_built(tmp_path) -> None:
    made = build("self-distillation-transfer", tmp_path, Effort(0, 0), jobs=1)
    assert {path.suffix for path in made.files} == {".png", ".pdf", ".nc", ".json"}
    assert len(made.computed) == 6
