"""Curves sampled until they are smooth: points between those where the straight lines of a picture would be seen.

A curve is a part with axes that is no simulation.  Along its last axis, an interval is halved while one of its ends lies off the
chord of its neighbours by more than :data:`SAG` of the curve's height, and it is wider than :data:`NARROW` of the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray

from figures.stamps import UNSTABLE, is_simulation

SAG = 3e-3
NARROW = 1e-3
ROUNDS = 6
FEWEST = 10
"""Values of an axis; fewer are marks, not a curve."""

DECADES = 30.0
"""Ratio of the largest value to the smallest from which a positive quantity, or axis, is looked at on a logarithmic scale."""


def smoothed(
    work: Any, dataset: xarray.Dataset, evaluate: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> xarray.Dataset:
    """The dataset of a part with the points that it lacks, computed by ``evaluate``; the same object if it lacks none."""
    if is_simulation(work) or not getattr(work, "over", None) or not getattr(work, "is_smoothed", True):
        return dataset
    *others, path = work.over
    if any(np.size(work.over[other]) >= FEWEST for other in others):  # a map
        return dataset
    for _ in range(ROUNDS):
        missing = between(dataset, path)
        if missing.size == 0:
            break
        found = evaluate({"more": replace(work, over={**work.over, path: missing})})["more"]
        failed = {
            name: dataset.attrs[name] + found.attrs[name]
            for name in ("failed_points", "failures")
            if name in dataset.attrs
        }
        dataset = xarray.concat(
            [dataset, found], path, data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
        ).sortby(path)
        dataset.attrs |= failed
    return dataset


def between(dataset: xarray.Dataset, path: str) -> np.ndarray:
    """Values of an axis at which the curves of a dataset are to be computed, increasing."""
    x = dataset[path].values
    if x.size < FEWEST or np.any(np.diff(x) <= 0):
        return np.empty(0)
    places = _scaled(x)
    wide = np.diff(places) > NARROW * np.ptp(places)
    wanted = np.zeros(x.size - 1, dtype=bool)
    for name, values in dataset.data_vars.items():
        if path in values.dims and values.dtype.kind == "f" and name not in UNSTABLE:
            for curve in values.transpose(..., path).values.reshape(-1, x.size):
                wanted |= _bent(places, _scaled(curve))
    first = np.flatnonzero(wanted & wide)
    middle = (places[first] + places[first + 1]) / 2
    return np.unique(np.round(np.exp(middle) if places is not x else middle, 12))


def _scaled(values: np.ndarray) -> np.ndarray:
    """On the scale on which it is looked at: the same object, or its logarithm."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > DECADES * finite.min():
        return np.log(values)
    return values


def _bent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which intervals have an end that lies off the chord of its neighbours, shape (points - 1,)."""
    height = np.ptp(y[np.isfinite(y)]) if np.isfinite(y).any() else 0.0
    chord = y[:-2] + (y[2:] - y[:-2]) * (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    off = np.zeros(x.size, dtype=bool)
    if height > 1e-6 * np.nanmax(np.abs(y), initial=0.0):
        off[1:-1] = np.abs(y[1:-1] - chord) > SAG * height  # where a value is missing, the comparison is false
    return off[:-1] | off[1:]
