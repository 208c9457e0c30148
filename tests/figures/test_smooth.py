"""Curves get points where straight lines between them would be seen, and no others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import xarray

from figures.smooth import NARROW, SAG, between, smoothed
from figures.stamps import disagreement


@dataclass(frozen=True)
class Curve:
    """A function of x, as a part of a figure."""

    over: dict
    sharp: float

    quick: ClassVar[bool] = True

    def tasks(self):
        return [lambda x=x: 1.0 + np.exp(-self.sharp * abs(x - 1.0)) for x in self.over["x"]]

    def join(self, pieces):
        return xarray.Dataset({"y": ("x", np.array(pieces))}, {"x": self.over["x"]})


def evaluate(work):
    return {name: part.join([task() for task in part.tasks()]) for name, part in work.items()}


@pytest.mark.parametrize("sharp", [1.0, 30.0])
def test_curves_become_smooth(sharp: float) -> None:
    work = Curve({"x": np.linspace(0.0, 2.0, 20)}, sharp)
    first = evaluate({"a": work})["a"]
    found = smoothed(work, first, evaluate)
    x, y = found.x.values, found.y.values
    assert np.all(np.diff(x) > 0)
    assert set(first.x.values) <= set(x)
    np.testing.assert_array_equal(y, 1.0 + np.exp(-sharp * np.abs(x - 1.0)))
    chord = y[:-2] + (y[2:] - y[:-2]) * (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    wide = (x[2:] - x[:-2]) > 2 * NARROW * 2.0 * 8
    assert np.all(np.abs(y[1:-1] - chord)[wide] < 4 * SAG * np.ptp(y))
    assert x.size < 200
    assert between(found, "x").size == 0 or sharp > 1


def test_straight_lines_and_marks_are_left_alone() -> None:
    straight = xarray.Dataset(
        {"y": ("x", np.linspace(0, 1, 30)), "flat": ("x", np.ones(30))}, {"x": np.linspace(0, 1, 30)}
    )
    assert between(straight, "x").size == 0
    few = xarray.Dataset({"y": ("x", np.arange(5.0) ** 4)}, {"x": np.arange(5.0)})
    assert between(few, "x").size == 0
    gaps = straight.copy()
    gaps["y"] = ("x", np.where(np.arange(30) % 7 == 3, np.nan, 1.0 + straight.y.values))
    assert between(gaps, "x").size == 0


def test_stored_curves_with_more_points_are_still_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Curve({"x": np.linspace(0.0, 2.0, 20)}, 10.0)
    found = smoothed(work, evaluate({"a": work})["a"], evaluate)
    monkeypatch.setattr("figures.stamps.evaluate", lambda parts, *_, **__: evaluate(parts))
    assert disagreement(work, found) == ""
    assert "other numbers" in disagreement(replace(work, sharp=11.0), found)
    assert "other values of x" in disagreement(replace(work, over={"x": np.linspace(0.0, 2.0, 21)}), found)
