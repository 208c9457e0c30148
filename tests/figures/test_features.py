"""Figures on random features, power laws and regression: drawn from what is committed; what they claim is in their data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from committed_figures import committed, drawn_from_what_is_committed, rms_of_scores

import figures.features  # noqa: F401  (figures register themselves)

NAMES = ("features-1", "features-2", "features-3", "regression-1", "regression-2")


@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_what_is_committed(name: str, tmp_path: Path) -> None:
    drawn_from_what_is_committed(name, tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "regression-1"])
def test_experiments_agree_with_theory(name: str) -> None:
    """All scores of a figure together; curves of one panel share their samples, and N is 200 or 400."""
    assert rms_of_scores(name) < 2.0


def test_where_students_on_features_peak() -> None:
    for source in ("classes", "rule"):
        square, hard, soft, warm = (
            committed("features-1", f"{source}_{kind}") for kind in ("square", "hard", "soft", "warm")
        )
        student = [part.test_error.sel(stage="student") for part in (square, hard, soft, warm)]
        peak = student[0]["student.features"][int(np.argmax(student[0].values))]
        assert float(peak) == pytest.approx(2.0, rel=0.03)
        assert float(student[3].max()) == pytest.approx(float(student[3][0]), abs=1e-6)
    classes = [committed("features-1", f"classes_{kind}").test_error for kind in ("soft", "hard")]
    teacher = float(classes[0].sel(stage="teacher")[0])
    assert float(classes[0].sel(stage="student")[-1]) < teacher < float(classes[1].sel(stage="student")[-1]) - 0.01


def test_self_distillation_gains_with_a_spectrum_alone() -> None:
    """White inputs: nothing to gain over the best ridge."""
    gains = {}
    for capacity in (0, 1, 2):
        one, two = (committed("regression-1", f"{capacity}_{count}").excess_risk.isel(stage=-1) for count in (1, 2))
        gains[capacity] = 1.0 - two.values / one.values
    assert np.abs(gains[0]).max() < 1e-3
    assert gains[1].max() > 3e-3


def test_a_student_that_sees_more_beats_its_teacher() -> None:
    risks = committed("regression-2", "ridge_0.3").excess_risk
    student, teacher = risks.sel(stage="student").values, float(risks.sel(stage="teacher")[0])
    assert student.min() < 0.97 * teacher
    assert 0 < int(np.argmin(student)) < student.size - 1
