"""When stored data may be read back: stamps that follow what numbers depend on, and a look at some of the numbers.

The fingerprint of a part is made of its parameters, of the losses and the equations (what they are, not how they are written), and
of versions that are raised by hand: ``VERSION`` of its class, ``THEORY`` and ``SIMULATION`` of ``provenance``.  Kernels
are not hashed; whether they still give what is stored is tried out at the ends of the part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import xarray

from numerics.models import Estimator
from numerics.sweeps.grid import Grid
from numerics.sweeps.provenance import numbers_version, value_at_a_point
from numerics.sweeps.run import evaluate
from theory.losses import Loss

AGREEMENT = 1e-6
"""Relative difference, in units of the largest stored value, that a number computed again may have."""


def _plain(value: object) -> object:
    if isinstance(value, Grid) or (
        is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith("figures")
    ):
        return {"type": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _inside(value: object) -> Iterator[object]:
    """A part and the parts it is made of."""
    yield value
    for name in ("simulation", "curve"):
        if is_dataclass(getattr(value, name, None)):
            yield from _inside(getattr(value, name))


def _losses(work: object) -> list[str]:
    """Values of the formulas of all losses of a part."""
    chains = [part.chain for part in _inside(work) if hasattr(part, "chain")]
    losses: list[Loss] = [stage.loss for chain in chains for stage in chain.stages if isinstance(stage, Estimator)]
    return [value_at_a_point(expression) for loss in losses for expression in (loss.expression, loss.gradient)]


def fingerprint(work: object) -> str:
    """Hash of all that the numbers of a part depend on."""
    versions = [f"{type(part).__name__} {getattr(type(part), 'VERSION', 1)}" for part in _inside(work)]
    text = json.dumps([versions, _plain(work), _losses(work), numbers_version(is_simulation(work))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def is_simulation(work: object) -> bool:
    """Whether a part holds means over finite systems."""
    return bool(getattr(work, "simulated", False))


def is_quick(work: object) -> bool:
    """Whether some points of a part take no time to compute again."""
    return bool(getattr(work, "quick", isinstance(work, Grid)))


def disagreement(work: Any, stored: xarray.Dataset) -> str:
    """Why stored data are not those of a part, from some of its points that are computed again; empty if they are."""
    if not any(hasattr(work, name) for name in ("over", "simulation", "axes")):
        return "is one experiment, of which no point can be computed alone"
    over = _axes(work)
    for path, values in over.items():
        if (
            path not in stored.coords or not np.isin(values, stored[path].values).all()
        ):  # curves get more points than asked for
            return f"was stored for other values of {path}"
    few = {path: values[:1] for path, values in over.items()}
    if not is_simulation(work) and over:  # seeds are numbered along the axes
        last = list(over)[-1]
        few[last] = over[last][[0, -1]]
    found = evaluate({"again": _with_axes(work, few)}, 1, progress=False)["again"]
    places = {path: [list(stored[path].values).index(value) for value in values] for path, values in few.items()}
    if "stage" in found.coords and list(found.stage.values) != list(stored.get("stage", found.stage[:0]).values):
        return "was stored for other stages"
    for name in found.data_vars:
        if name not in stored:
            return f"was stored without {name}"
        before, now = (
            stored[name].isel({path: k for path, k in places.items() if path in stored[name].dims}),
            found[name],
        )
        if name in UNSTABLE or str(name).startswith(("optimal_", "location_")) or now.dtype.kind not in "fi":
            continue
        scale = float(np.max(np.abs(stored[name].values), initial=0.0, where=np.isfinite(stored[name].values)))
        if before.shape != now.shape or not np.allclose(
            before.values, now.values, rtol=0.0, atol=AGREEMENT * scale, equal_nan=True
        ):
            with np.errstate(invalid="ignore"):  # of two infinities
                change = np.nanmax(np.abs(before.values - now.values))
            return f"was stored with other numbers: {name} changes by {change:.1e}"
    return ""


UNSTABLE = ("residual", "quadrature_error")
"""Variables that say how good the others are."""


def _axes(work: Any) -> dict[str, np.ndarray]:
    inner = getattr(work, "simulation", work) if not hasattr(work, "over") else work
    return {path: np.asarray(values) for path, values in inner.over.items()} if hasattr(inner, "over") else work.axes()


def _with_axes(work: Any, over: Mapping[str, np.ndarray]) -> Any:
    """The part along other axes."""
    if hasattr(work, "over"):
        return replace(work, over=dict(over))
    if hasattr(work, "simulation"):
        return replace(work, simulation=replace(work.simulation, over=dict(over)))
    return work.along_axes(over)
