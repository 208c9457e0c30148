"""Figures of bounds, calibration and inheritance: they are listed, and what is drawn is what the solver says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import figures.anatomy_bounds  # noqa: F401  (figures register themselves)
from figures.anatomy_bounds import ReliabilityCurves
from figures.build import FIGURES, Effort, Prediction, Simulation, build
from numerics import solve
from numerics.anatomy.calibration import curve
from numerics.sweeps.grid import Grid
from numerics.sweeps.run import evaluate

NAMES = "anatomy-bound", "anatomy-ordering", "anatomy-calibration", "anatomy-inheritance"


@pytest.mark.parametrize("name", NAMES)
def test_ends_of_grids_are_what_the_solver_says(name: str) -> None:
    for work in FIGURES[name].plan(Effort(0, 0)).work.values():
        if not isinstance(work, Grid) or "teacher.ridge" not in work.over:
            continue
        ends = {path: np.array([values[-1]]) for path, values in work.over.items()}
        found = evaluate({"part": replace(work, over=ends)}, 1)["part"]
        data, ridge = work.data, float(ends["teacher.ridge"][0])
        data = replace(data, alpha=float(ends["alpha"][0])) if "alpha" in ends else data
        chain = [replace(work.chain[0], ridge=ridge), *work.chain.stages[1:]]
        for name_ in work.observables:
            expected = [getattr(stage, name_) for stage in solve(data, chain, throw=True).stages]
            np.testing.assert_allclose(found[name_].values.ravel(), expected, rtol=1e-7, err_msg=name_)


def test_reliability_curves() -> None:
    work = FIGURES["anatomy-calibration"].plan(Effort(0, 0)).work["reliability"]
    assert isinstance(work, ReliabilityCurves)
    few = replace(work, over={"logit": np.array([-1.0, 0.5])})
    found = evaluate({"part": few}, 1)["part"]
    student = solve(work.data, work.chain)[1]
    np.testing.assert_allclose(found.training.sel(stage="student"), curve(student, [-1.0, 0.5], "training"))
    np.testing.assert_allclose(found.test.sel(stage="student"), curve(student, [-1.0, 0.5]))


def test_simulated_points_agree() -> None:
    """N = 400, 24 runs, at two ridges: |z| < 4."""
    for name in ("anatomy-ordering", "anatomy-calibration"):
        for work in FIGURES[name].plan(Effort(400, 24)).work.values():
            if not isinstance(work, Simulation):
                continue
            few = replace(work, over={"teacher.ridge": np.array([0.1, 1.0])})
            data = evaluate({"runs": few, "theory": Prediction(few)}, 1)
            for observable in few.observables:
                error = data["runs"][f"{observable}_standard_error"]
                z = (data["runs"][observable] - data["theory"][observable]) / error
                assert np.nanmax(np.abs(z)) < 4, (name, observable)


def test_a_figure_is_made(tmp_path) -> None:
    made = build("anatomy-calibration", tmp_path, Effort(0, 0))
    assert all(path.exists() for path in made.files)
