"""An observable over two parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from numerics.plots import style
from numerics.plots.curves import draw_thresholds
from numerics.solution.observables import OBSERVABLES

MANY_DECADES = 30.0


def _edges(values: np.ndarray, scale: str) -> np.ndarray:
    """Boundaries of cells around ``values``, half-way on the given scale."""
    points = np.log(values) if scale == "log" else values
    middle = (points[1:] + points[:-1]) / 2
    edges = np.concatenate(([2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]))
    return np.exp(edges) if scale == "log" else edges


def draw_map(
    axes: Axes, dataset: xarray.Dataset, quantity: str, stage: str, x: str, y: str, scales: Sequence[str]
) -> QuadMesh:  # fmt: skip
    values = dataset[quantity].sel(stage=stage).transpose(y, x)
    masked = np.ma.masked_invalid(values.values)
    # Cells that failed stay transparent: the hatched background shows.
    axes.patch.set(facecolor="0.85", hatch="/////", edgecolor="0.55")
    shown = masked.compressed()
    spread = shown.size and shown.min() > 0 and shown.max() > MANY_DECADES * shown.min()
    mesh = axes.pcolormesh(
        _edges(values[x].values, scales[0]), _edges(values[y].values, scales[1]), masked, cmap=style.COLOUR_MAP,
        norm=LogNorm() if spread else Normalize(), rasterized=True,
    )  # fmt: skip
    if min(masked.shape) > 2 and shown.size and np.ptp(shown) > 0:
        levels = np.geomspace(shown.min(), shown.max(), 9) if spread else np.linspace(shown.min(), shown.max(), 11)
        axes.contour(values[x].values, values[y].values, masked, levels=levels[1:-1], colors="white", linewidths=0.35)
    for which, path, scale in (("x", x, scales[0]), ("y", y, scales[1])):
        ends = float(values[path].values[0]), float(values[path].values[-1])
        if scale == "log":
            style.log_ticks(axes, which, *ends)
        else:
            getattr(axes, f"set_{which}lim")(*ends)
        getattr(axes, f"set_{which}label")(style.parameter_label(path))
    axes.tick_params(direction="out", top=False, right=False)
    return mesh


def heat_map(
    dataset: xarray.Dataset, quantity: str, stage: str, axes_scales: Mapping[str, str], thresholds: Mapping[str, float], note: str
) -> Figure:  # fmt: skip
    """One observable of one stage over two parameters; ``axes_scales`` maps their names to "lin" or "log", x first.

    ``note`` says what is fixed.
    """
    figure = style.new_figure(style.COLUMN_WIDTH * 1.25, 3.2)
    axes = figure.subplots()
    x, y = axes_scales
    mesh = draw_map(axes, dataset, quantity, stage, x, y, list(axes_scales.values()))
    draw_thresholds(axes, thresholds, "white")
    figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28).set_label(f"{stage}: {OBSERVABLES[quantity]}")
    handles = []
    if not np.all(np.isfinite(dataset[quantity].sel(stage=stage))):
        handles.append(Patch(facecolor="0.85", hatch="/////", edgecolor="0.55", label="no value"))
    figure.legend(handles=handles, loc="outside upper center", **style.noted(note))
    return figure
