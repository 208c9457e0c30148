"""Figures on many classes: drawn from what is committed; what they claim is in their data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from committed_figures import COMMITTED, committed, drawn_from_what_is_committed, rms_of_scores

from figures.classes import crossing

NAMES = tuple(f"classes-{number}" for number in range(1, 9))
MEASURED = [name for name in NAMES if name not in ("classes-4", "classes-6", "classes-7")]


@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_what_is_committed(name: str, tmp_path: Path) -> None:
    drawn_from_what_is_committed(name, tmp_path)


@pytest.mark.parametrize("name", MEASURED)
def test_experiments_agree_with_theory(name: str) -> None:
    """All scores of a figure together; points of one curve share their samples, and N is 300."""
    assert rms_of_scores(name) < 2.0


def test_temperature_changes_little() -> None:
    for alpha in (1, 4):
        for similarity in ("0", "0.6", "0.9"):
            error = committed("classes-1", f"{alpha}_{similarity}").test_error.sel(stage="student")
            assert 0.0 < float(error.max() / error.min()) - 1.0 < 0.04


def test_soft_targets_help_where_samples_are_few() -> None:
    for alpha in ("0.3", "1.5"):
        hard, soft = (
            committed("classes-2", f"{alpha}_{kind}").test_error.sel(stage="student") for kind in ("hard", "soft")
        )
        assert float(soft.min()) < float(hard.min()) - 0.02


def test_a_missing_class_comes_back_with_its_bias() -> None:
    found = committed("classes-3", "missing_corrected").error
    own, best = found.sel(biases="own"), found.sel(biases="best")
    assert np.all(own.sel(of="2") > 2.0 * best.sel(of="2"))
    assert np.all(best.sel(of="all") < own.sel(of="all") - 0.03)
    teacher = float(committed("classes-3", "all").test_error.sel(stage="teacher")[0])
    assert float(best.sel(of="all")[-1]) < teacher + 0.005
    assert np.all(np.diff(own.sel(of="2")) < 0)


def test_thresholds_agree_for_equal_weights_alone() -> None:
    found = committed("classes-4", "thresholds")
    equal = int(np.argmin(np.abs(found.weight.values - 1 / 3)))
    assert float(found.complete[equal]) == pytest.approx(float(found.likelihood[equal]), rel=1e-6)
    assert float(found.likelihood[0]) > 4.0 * float(found.complete[0])
    assert np.all(found.likelihood >= found.complete - 1e-9)


def test_confidence_and_similarity_cross() -> None:
    """KD-pt and KD-sim at an overlap of 0.61, the full target above both; gains of both orders add up to one total."""
    found = committed("classes-5", "similarity")
    over = found.over_labels
    difference = over.sel(student="true") - over.sel(student="cosine")
    assert crossing(found.similarity.values, difference.values) == pytest.approx(0.611, abs=0.01)
    assert np.sum(np.diff(np.sign(difference.values)) != 0) == 1
    assert np.all(over.sel(student="instance") > over.sel(student=["true", "cosine", "true+similarity"]).max("student"))
    for name in ("gain", "instance_first_gain"):
        by = f"{name}_by"
        steps = found[name].sel({by: ["scale", "universe", "domain", "instance"]}).sum(by)
        assert np.allclose(steps, found[name].sel({by: "total"}), atol=1e-12)
        assert np.allclose(found[name].sel({by: "total"}), over.sel(student="instance"), atol=1e-12)
        assert float(found[f"{name}_quadrature_error"].max()) < 1e-4
    domain = found.gain.sel(gain_by="domain")
    assert abs(float(domain[0])) < 1e-6
    assert np.all(np.diff(domain) > 0)


def test_a_smoothed_teacher_and_an_able_one() -> None:
    smoothing, ridge = committed("classes-5", "smoothing"), committed("classes-5", "ridge")
    same_doubt = np.interp(smoothing.doubt, ridge.doubt, ridge.twin)
    assert np.all((smoothing.twin < same_doubt)[1:])
    assert np.all((smoothing.twin < same_doubt - 0.04)[4:])
    total, instance = (smoothing.gain.sel(gain_by=name).values for name in ("total", "instance"))
    assert total[0] > 0 > total[-1]
    assert np.all(np.diff(instance) < 0)
    assert np.all(np.diff(smoothing.gain.sel(gain_by="domain")) > 0)
    assert float(ridge.doubt[0]) < 0.1
    for name in ("domain", "instance", "total"):
        gain = ridge.gain.sel(gain_by=name).values
        assert gain[0] < 0.25 * gain.max()


def test_where_a_difference_changes_sign() -> None:
    assert crossing(np.array([0.0, 1.0, 2.0]), np.array([3.0, 1.0, -1.0])) == pytest.approx(1.5)
    assert np.isnan(crossing(np.array([0.0, 1.0]), np.array([1.0, 2.0])))


def test_small_probabilities_carry_more_at_high_temperature() -> None:
    """Two samples an input; points of the fewer ones are off by what falls like 1/N."""
    for alpha in ("0.5", "2"):
        full, two, one = (
            committed("classes-6", f"{alpha}_{kind}").test_error.sel(stage="student")
            for kind in ("full", "top-2", "top-1")
        )
        assert float(full[-1]) < float(full[0]) - 0.003
        assert float(one[-1]) > float(one[0]) + 0.002
        for worse, better in ((one, two), (two, full)):
            apart = [float(worse[place] - better[place]) for place in (0, -1)]
            assert 0.0 < apart[0] < 0.8 * apart[1]
    scores = json.loads((COMMITTED / "classes-6.json").read_text(encoding="utf-8"))["z_scores"]
    assert max(entry["rms"] for part, entry in scores.items() if part.startswith("simulated_2_")) < 2.0


def test_the_best_temperature_falls_with_samples() -> None:
    found = committed("classes-7", "best")
    assert bool(found.inside.all())
    many = found.sel(alpha=slice(1.2, None)).temperature
    assert np.all(np.diff(many, axis=1) < 0)
    assert np.all(found.sel(alpha=slice(None, 0.8)).temperature < 1.05)
    assert -0.016 < float(found.change.min()) < -0.014
    assert float(found.change.max()) < 1e-4


def test_soft_targets_gain_with_size() -> None:
    for alpha, gain in (("1.5", 0.014), ("6", 0.012)):
        hard, soft = (
            committed("classes-8", f"{alpha}_{kind}")
            .test_error.sel(stage="student")
            .interp({"student.eta": [0.2, 0.5, 0.8, 1.0]})
            for kind in ("hard", "soft")
        )
        apart = (hard - soft).values
        assert np.all(np.diff(apart) > 0.001)
        assert apart[-1] == pytest.approx(gain, abs=1e-3)
        teacher = float(committed("classes-8", f"{alpha}_soft").test_error.sel(stage="teacher")[0])
        assert float(soft[-1]) < teacher < float(hard[2])
