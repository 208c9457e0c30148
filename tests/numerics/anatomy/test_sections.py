"""Bounds, calibration and inheritance as sections of an anatomy, in theory and measured."""

from __future__ import annotations

import json

import pytest

from numerics import Estimator, GaussianMixture, ParameterError
from numerics.anatomy import anatomy, simulate_anatomy
from numerics.anatomy.anatomy import SCORES, TERMS
from numerics.anatomy.bounds import bounds_of
from numerics.anatomy.calibration import calibration_of
from numerics.cli.anatomy import anatomy_text
from theory.losses import CrossEntropy, Distillation

DATA = GaussianMixture(4.0, 0.3, 1.0, 0.1)
CHAIN = [Estimator(CrossEntropy(), 3.0), Estimator(Distillation(), 0.1)]


def test_sections_are_those_of_the_stages() -> None:
    found = anatomy(DATA, CHAIN)
    assert found.bounds == bounds_of(found.solution[1])
    assert found.calibration == {
        name: calibration_of(found.solution[k]) for k, name in enumerate(("teacher", "student"))
    }
    assert found.inheritance.student_error == pytest.approx(found.bounds.student_error, rel=1e-8)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["bounds"]["bound"] == found.bounds.bound
    assert document["calibration"]["student"]["brier"]["score"] == found.calibration["student"].brier.score
    text = anatomy_text(found)
    assert f"= {found.bounds.bound:.4f}" in text
    assert f"{found.calibration['teacher'].ece:.4f}" in text


@pytest.mark.slow
def test_a_later_student_is_beside_its_own_teacher() -> None:
    found = anatomy(DATA, [*CHAIN, Estimator(Distillation(), 0.2)])
    assert found.bounds.teacher_error == pytest.approx(found.solution[1].test_error, rel=1e-12)
    assert found.calibration["teacher"] == calibration_of(found.solution[1])
    with pytest.raises(ParameterError, match="chain must be a teacher and a student"):
        _ = found.inheritance


def test_sections_are_measured() -> None:
    """N = 300, 8 runs."""
    found = simulate_anatomy(DATA, CHAIN, n_inputs=300, n_runs=8, seed=1)
    compared = {name: (measured, expected) for name, measured, expected in found.comparisons()}
    names = (*TERMS, *(f"{who} {name}" for who in ("teacher", "student") for name in SCORES))
    for name in names:
        measured, expected = compared[name]
        assert abs(measured.mean - expected) < 4 * measured.standard_error, name
