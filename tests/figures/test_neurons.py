"""Figures on neurons: drawn from what is committed, their parts restamped like others, what they claim is in their data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray

import figures.neurons  # noqa: F401  (figures register themselves)
from figures.__main__ import COMMITTED
from figures.build import FIGURES, Effort, build
from figures.stamps import disagreement, fingerprint
from numerics.neurons.bounds import Sampling, crossing
from numerics.neurons.experiments import LEVEL, DigitScan, GapScan
from numerics.neurons.widths import width_with_bar
from numerics.sweeps.run import evaluate

NAMES = ("neurons-1", "neurons-2")


def committed(name: str, part: str) -> xarray.Dataset:
    return xarray.load_dataset(COMMITTED / f"{name}.nc", group=part)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_what_is_committed(name: str, tmp_path: Path) -> None:
    made = build(name, tmp_path, Effort(), sources=(COMMITTED,))
    assert made.computed == []
    assert made.reused == list(FIGURES[name].plan(Effort()).work)
    assert [path.stat().st_size > 10_000 for path in made.files[:2]] == [True, True]


def test_of_an_effort_the_seed_counts() -> None:
    for name in NAMES:
        plans = [FIGURES[name].plan(effort).work for effort in (Effort(), Effort(0, 0), Effort(seed=1))]
        usual, none, other = ({part: fingerprint(work) for part, work in plan.items()} for plan in plans)
        assert usual == none
        assert all(usual[part] != other[part] for part in usual)


@pytest.mark.parametrize(
    "scan",
    [
        GapScan(2, 0, (4, 8), gaps=(0.1, 0.2), n_samples=30, n_inputs=4, steps=10),
        DigitScan(2, 0, (2, 4), noises=(0.5, 1.0), teacher_width=4, steps=10),
    ],
    ids=["gap", "digits"],
)
def test_stored_parts_are_seen_to_be_right_or_wrong(scan) -> None:
    """One run at the first condition is computed again."""
    if isinstance(scan, DigitScan):
        pytest.importorskip("sklearn")
    stored = evaluate({"scan": scan}, 1, executor="serial", progress=False)["scan"]
    assert disagreement(scan, stored) == ""
    assert "changes by" in disagreement(replace(scan, steps=11), stored)
    assert fingerprint(scan) != fingerprint(replace(scan, steps=11)) != fingerprint(replace(scan, seed=1))


def test_claims_on_bounds_and_norms() -> None:
    xor = committed("neurons-1", "xor")
    needed = {
        name: [width_with_bar(xor.width, errors, LEVEL) for errors in xor.error.sel(training=name).values]
        for name in xor.training.values
    }
    assert np.all(np.diff([bar.value for bar in needed["soft"]]) < 0)
    assert [np.isfinite(bar.value) for bar in needed["hard"]] == [False] * 4 + [True]
    for soft, linear, large in zip(needed["soft"], needed["hard_large_linear"], needed["hard_large"], strict=True):
        assert large.high < soft.low
        assert linear.low < 1.5 * soft.high
        assert linear.high > soft.low
    # Wherever the soft bound is the smaller one, it is empty.
    eps = xor.untrained_kl.mean("run")
    assert np.all(crossing(eps, Sampling(200)) < xor.lower.mean("run"))


def test_claims_on_digits() -> None:
    digits, deep = committed("neurons-2", "digits"), committed("neurons-2", "deep")
    for scan in (digits, deep):
        difference = scan.test_error.sel(labels="hard") - scan.test_error.sel(labels="soft")
        z = difference.mean("run") / (difference.std("run", ddof=1) / np.sqrt(scan.sizes["run"]))
        if scan is digits:
            assert np.all(np.diff(difference.mean("run").sel(width=2)) > 0)
            assert np.all(z.sel(width=2) > 3)
            assert np.all(z.sel(width=[8, 16, 32]) < 1.5)
        else:
            assert np.abs(z).max() < 3.5
