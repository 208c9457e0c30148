"""Where curves of errors cross a level, with bars; slopes."""

from __future__ import annotations

import numpy as np
import pytest

from numerics.neurons.widths import exponent, width_at, width_with_bar

WIDTHS = np.array([2, 4, 8, 16, 32])


def test_crossing_of_a_line_in_the_logarithm() -> None:
    errors = 0.5 - 0.1 * np.log2(WIDTHS)
    for level in (0.05, 0.13, 0.29):
        assert width_at(WIDTHS, errors, level) == pytest.approx(2 ** ((0.5 - level) / 0.1))


def test_ends() -> None:
    assert width_at(WIDTHS, np.full(5, 0.2), 0.1) == np.inf
    assert width_at(WIDTHS, np.zeros(5), 0.1) == 2
    assert width_at(WIDTHS, [0.3, 0.1, 0.3, 0.1, 0.0], 0.1) == 4  # the first time
    assert width_at(WIDTHS, [[0.2] * 5, [0.0] * 5], 0.1).tolist() == [np.inf, 2]


def test_bars_cover_the_truth_as_often_as_they_say() -> None:
    """68% of bars over 20 runs of noise; too few resamplings of too few runs make them a little narrow.  z below 4."""
    generator = np.random.default_rng(0)
    truth = 0.5 - 0.1 * np.log2(WIDTHS)
    expected = 2 ** ((0.5 - 0.25) / 0.1)
    trials = 150
    found = [width_with_bar(WIDTHS, truth + 0.03 * generator.normal(size=(20, 5)), 0.25) for _ in range(trials)]
    covered = sum(bar.low <= expected <= bar.high for bar in found)
    assert abs(covered - 0.66 * trials) < 4 * np.sqrt(trials * 0.66 * 0.34)
    assert all(bar.low <= bar.value <= bar.high for bar in found)


def test_bars_may_be_open() -> None:
    errors = np.array([[0.4, 0.3, 0.2, 0.2, 0.12], [0.4, 0.3, 0.2, 0.1, 0.08]] * 3)
    bar = width_with_bar(WIDTHS, errors, 0.1)
    assert bar.value == 32
    assert bar.high == np.inf
    assert bar.low < 32


def test_exponent_of_a_power_law() -> None:
    margins = np.array([0.03, 0.05, 0.08])
    needed = 0.02 * margins**-2
    curves = np.array([0.1 - 0.05 * np.log(WIDTHS / m) for m in needed])
    noise = 0.02 * np.random.default_rng(0).normal(size=(3, 12, 5))
    errors = curves[:, None, :] + noise - noise.mean(axis=1, keepdims=True)
    bar = exponent(margins, WIDTHS, errors, 0.1)
    assert bar.value == pytest.approx(-2.0, abs=1e-6)
    assert bar.low < -2.0 < bar.high
    assert np.isnan(exponent(margins, WIDTHS, errors + 1.0, 0.1).value)
