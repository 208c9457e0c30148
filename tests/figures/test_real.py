"""Figures on measured data: drawn from what is committed; what they claim is in their data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from committed_figures import committed, drawn_from_what_is_committed

import figures.measured  # noqa: F401  (figures register themselves)

PROBLEMS = ("parity", "cancer", "pair_18", "pair_38", "pair_49")


@pytest.mark.parametrize("name", ["real-1", "real-2", "real-3"])
def test_drawn_from_what_is_committed(name: str, tmp_path: Path) -> None:
    drawn_from_what_is_committed(name, tmp_path)


@pytest.mark.parametrize("name", PROBLEMS)
def test_predictions_are_as_good_as_they_say(name: str) -> None:
    found = committed("real-1", name)
    apart = found.test_error - found.fits
    z = apart / np.hypot(found.standard_error, found.fits_standard_error)
    assert 0.4 < float(np.sqrt((z**2).mean())) < 1.5
    off, gaussian = np.abs(apart / found.fits), np.abs(found.gaussian_error / found.fits - 1.0)
    allowed = 0.08 if name == "parity" else 0.25
    assert float(off.median()) < allowed
    assert float(off.median()) < float(gaussian.median())
    if name == "parity":
        assert (np.abs(apart) < allowed * found.fits + 2.0 * found.fits_standard_error).all()


@pytest.mark.parametrize("name", ["parity", "cancer"])
def test_the_level_that_hurts_is_predicted(name: str) -> None:
    found = committed("real-2", f"knowledge_{name}")
    levels = found.isel(gain=slice(0, 4))
    assert str(levels.gain[int(np.argmin(levels.predicted.values))].item()) == str(
        levels.gain[int(np.argmin(levels.measured.values))].item()
    )
    z = (found.predicted - found.measured) / np.hypot(found.predicted_standard_error, found.measured_standard_error)
    assert float(np.abs(z).max()) < 2.0


def test_choices_are_as_good_as_cross_validation_within_noise() -> None:
    within = 0
    for name in ("150", "300", "600", "38", "18"):
        error = committed("real-3", name).error
        apart = error.sel(by="prediction") - error.sel(by="cross-validation")
        within += abs(float(apart.mean())) < 2.0 * float(apart.std("draw", ddof=1)) / np.sqrt(apart.sizes["draw"])
    assert within >= 4
    seconds = committed("real-3", "wide_512").seconds.median("draw")
    assert float(seconds.sel(by="prediction")) < float(seconds.sel(by="cross-validation")) / 4.0
