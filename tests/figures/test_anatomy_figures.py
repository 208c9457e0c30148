"""Figures of the anatomy: drawn from what is committed; what they claim is in their data, and is what the solver says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from committed_figures import committed, drawn_from_what_is_committed

import figures.anatomy  # noqa: F401  (figures register themselves)
from figures.build import FIGURES, Effort, z_scores
from figures.stamps import disagreement
from numerics import Estimator, GaussianMixture, solve
from numerics.sweeps.run import evaluate
from theory.losses import CrossEntropy, Distillation

NAMES = ("anatomy-levels", "anatomy-weights", "anatomy-claim", "anatomy-blame")


@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_what_is_committed(name: str, tmp_path: Path) -> None:
    made = drawn_from_what_is_committed(name, tmp_path)
    assert [path.stat().st_size > 10_000 for path in made.files[:2]] == [True, True]


def test_gains_are_differences_of_errors() -> None:
    """All together, from two solutions: labels alone, and the teacher's outputs."""
    found = committed("anatomy-levels", "noisy")
    for k in (5, 30):
        data = GaussianMixture(float(found.alpha[k]), 0.3, 1.0, 0.2)
        teacher = Estimator(CrossEntropy(), 0.3)
        hard = solve(data, [teacher, Estimator(CrossEntropy(), 0.1)])[1].test_error
        soft = solve(data, [teacher, Estimator(Distillation(1.0, 2.0), 0.1)])[1].test_error
        assert float(found.gain.sel(level="total")[k]) == pytest.approx(hard - soft, abs=1e-8)


def test_simulations_agree_with_theory() -> None:
    for name, parts in (
        ("anatomy-levels", ("simulated_clean", "simulated_noisy")),
        ("anatomy-weights", ("simulated",)),
    ):
        data = {key: committed(name, key) for part in parts for key in (part, f"predicted_{part}")}
        for score in z_scores(data).values():
            assert score["largest"] < 4
            assert score["rms"] < 1.5


def test_what_they_claim() -> None:
    for noise in ("clean", "noisy"):
        found = committed("anatomy-levels", noise)
        assert np.abs(found.direction_gain.sel(level="domain")).max() < 1e-3
    assert committed("anatomy-levels", "clean").gain.sel(level="domain").min() < -0.06
    for name in ("cold", "hot"):
        claim = committed("anatomy-claim", name)
        teacher, student = np.meshgrid(claim["teacher.ridge"], claim["student.ridge"], indexing="ij")
        above = np.log(student / (0.5 * teacher))
        clear = np.abs(above) > 0.02
        assert np.all(np.sign(claim.change.values[clear]) == np.sign(above[clear]))
        assert claim.steady.values[clear].all()
    assert not committed("anatomy-claim", "sharp").steady.values.all()
    blamed = {}
    for name in ("imbalanced", "balanced", "hot"):
        gain = committed("anatomy-blame", name).gain
        hurts = gain.sel(level="total") < -1e-6
        parts = gain.sel(level=["scale", "universe", "domain", "instance"])
        worst = parts.level.values[parts.fillna(0.0).argmin("level").values[hurts.values]]
        blamed[name] = set(worst)
    assert blamed == {"imbalanced": {"universe", "domain"}, "balanced": {"universe"}, "hot": {"scale", "domain"}}


@pytest.mark.parametrize("name", NAMES)
def test_stored_parts_are_seen_to_be_right_or_wrong(name: str) -> None:
    part, work = next(iter(FIGURES[name].plan(Effort()).work.items()))
    stored = committed(name, part)
    assert disagreement(work, stored) == ""
    other = replace(work, data=replace(work.data, label_noise=0.3))
    assert "changes by" in disagreement(other, stored)


def test_a_small_simulation(tmp_path: Path) -> None:
    work = FIGURES["anatomy-weights"].plan(Effort(60, 2)).work
    few = replace(work["simulated"], over={"student.ridge": np.array([0.5])})
    found = evaluate({"few": few}, 1, executor="serial", progress=False)["few"]
    assert found.attrs["n_runs"] == 2
    assert np.isfinite(found.ratio_standard_error).any()
    assert dict(found.sizes) == {"student.ridge": 1, "x": 7, "margin": 9}
