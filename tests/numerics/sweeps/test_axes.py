"""Axes: values as somebody would type them, and what is no axis."""

from __future__ import annotations

import numpy as np
import pytest
import xarray

from numerics import ParameterError
from numerics.sweeps.axes import axis_values, spaced


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("0.1:1:10", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("-0.3:0.3:7", [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]),
        ("0.7:1.4:8", [0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4]),
        ("1e-5:10:7:log", [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]),
    ],
)
def test_axes_hold_what_a_user_would_type(text: str, typed: list[float]) -> None:
    assert spaced(text)[0].tolist() == typed


def test_other_values_are_those_of_numpy() -> None:
    assert np.array_equal(spaced("0.1:0.7:8")[0][1:-1], np.linspace(0.1, 0.7, 8)[1:-1])
    np.testing.assert_allclose(spaced("1e-3:7:50:log")[0], np.geomspace(1e-3, 7, 50), rtol=1e-15)


@pytest.mark.parametrize(
    "values",
    [0.3, np.array(0.3), np.float32(0.25), [np.array(0.3), 1], (1, 2), np.arange(3), xarray.DataArray([0.1, 0.2])],
    ids=str,
)
def test_what_an_axis_may_be(values) -> None:
    found = axis_values("alpha", values)
    assert found.dtype == float
    assert np.array_equal(found, np.atleast_1d(np.asarray(values, dtype=float)))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (np.ma.array([1.0, 2.0], mask=[False, True]), "masked"),
        (np.array([True, False]), "numbers"),
        ([True, 0.5], "numbers"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "numbers"),
        (np.array([3], dtype="timedelta64[s]"), "numbers"),
        ([np.datetime64("2020-01-01")], "numbers"),
        (["0.1", "0.2"], "numbers"),
        ([1j], "numbers"),
        ([[1.0]], "list"),
        ([], "non-empty"),
        ([np.nan], "finite"),
        ([1.0, 1.0], "repeat"),
    ],
    ids=str,
)
def test_what_is_no_axis(values, word: str) -> None:
    with pytest.raises(ParameterError, match=rf"^over\['alpha'\] must .*{word}"):
        axis_values("alpha", values)
