"""An observable along a parameter: curves, simulated points, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from numerics.plots import style
from numerics.solution.observables import OBSERVABLES
from numerics.sweeps.grid import ERROR_SUFFIX

THRESHOLDS = {
    "interpolation": r"\alpha_I",
    "student_separability": r"\alpha_S",
    "teacher_separability": r"\tilde{\alpha}_S",
}
"""Names of thresholds in alpha, and their symbols."""


def draw_thresholds(axes: Axes, thresholds: Mapping[str, float], colour: str = style.GREY) -> None:
    """Vertical lines with their symbols above the axes; those outside the axis are left out."""
    low, high = sorted(axes.get_xlim())
    for name, value in thresholds.items():
        if low < value < high:
            axes.axvline(value, color=colour, lw=0.7, ls=(0, (1, 1.5)), zorder=0.8 if colour == style.GREY else 3)
            axes.annotate(
                f"${THRESHOLDS[name]}$", (value, 1), xytext=(0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="bottom",
            )  # fmt: skip


def draw_points(
    axes: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray, marker: str, colour: str, filled: bool = True,
    edge: str | None = None,
) -> None:  # fmt: skip
    axes.errorbar(
        x, y, yerr=np.nan_to_num(error), ls="none", marker=marker, color=colour, zorder=4, elinewidth=0.8,
        ecolor=edge or colour,
        markerfacecolor=colour if filled else "white", markeredgecolor=edge or colour, markeredgewidth=0.6,
    )  # fmt: skip


def curves(
    dataset: xarray.Dataset,
    simulated: xarray.Dataset | None,
    quantity: str,
    stages: Sequence[str],
    axes_scales: Mapping[str, str],
    thresholds: Mapping[str, float],
    note: str,
) -> Figure:
    """One observable of some stages along a parameter, with simulated points if there are any; ``note`` says what is fixed."""
    figure = style.new_figure(style.COLUMN_WIDTH * 1.25, 3.2)
    axes = figure.subplots()
    ((x, scale),) = axes_scales.items()
    handles = []
    for k, stage in enumerate(stages):
        colour, line, marker = (group[k % len(group)] for group in (style.COLOURS, style.LINES, style.MARKERS))
        curve = dataset[quantity].sel(stage=stage)
        handle = axes.plot(curve[x], curve, color=colour, ls=line)[0]
        if simulated is not None:
            points = simulated.sel(stage=stage)
            errors = points[quantity + ERROR_SUFFIX].values * style.bar(simulated.attrs["n_runs"])
            draw_points(axes, points[x].values, points[quantity].values, errors, marker, colour)
            handles.append(Line2D([], [], color=colour, ls=line, marker=marker, markeredgewidth=0.6))
        else:
            handles.append(handle)
    ends = float(dataset[x].values[0]), float(dataset[x].values[-1])
    if scale == "log":
        style.log_ticks(axes, "x", *ends)
    else:
        axes.set_xlim(*ends)
    axes.set_xlabel(style.parameter_label(x))
    axes.set_ylabel(OBSERVABLES[quantity])
    draw_thresholds(axes, thresholds)
    figure.legend(handles, stages, loc="outside upper center", ncols=len(stages), **style.noted(note))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the format follows from the suffix."""
    figure.savefig(path)
