"""Pictures of labelled results: the double descent, and any observable along one or two parameters.

Everything here draws from datasets, as computed or as read back from a file; nothing is solved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from numerics import style
from numerics.grids import ERROR_SUFFIX
from numerics.solution import OBSERVABLES

THRESHOLDS = {
    "interpolation": r"\alpha_I",
    "student_separability": r"\alpha_S",
    "teacher_separability": r"\tilde{\alpha}_S",
}
"""Names of thresholds in alpha, and their symbols."""

_MANY_DECADES = 30.0


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


def _points(
    axes: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray, marker: str, colour: str, filled: bool = True,
    edge: str | None = None,
) -> None:  # fmt: skip
    axes.errorbar(
        x, y, yerr=np.nan_to_num(error), ls="none", marker=marker, color=colour, zorder=4, elinewidth=0.8,
        ecolor=edge or colour,
        markerfacecolor=colour if filled else "white", markeredgecolor=edge or colour, markeredgewidth=0.6,
    )  # fmt: skip


@dataclass(frozen=True)
class _Curve:
    """One curve of the double descent: where its data are and how it looks."""

    group: str
    stage: str
    ridge: float | None
    label: str
    colour: str
    line: style.LineStyle
    marker: str
    filled: bool = True
    width: float = 1.2
    order: float = 2.0
    edge: str | None = None

    def select(self, data: Mapping[str, xarray.Dataset], prefix: str = "") -> xarray.Dataset | None:
        if prefix + self.group not in data:
            return None
        dataset = data[prefix + self.group].sel(stage=self.stage)
        return dataset if self.ridge is None else dataset.sel({"teacher.ridge": self.ridge})

    def draw(self, axes: Axes, data: Mapping[str, xarray.Dataset], quantity: str) -> None:
        curve = self.select(data)
        axes.plot(curve.alpha, curve[quantity], color=self.colour, ls=self.line, lw=self.width, zorder=self.order)
        points = self.select(data, "simulated_")
        if points is not None:
            columns = (points[name].values for name in ("alpha", quantity, quantity + ERROR_SUFFIX))
            _points(axes, *columns, self.marker, self.colour, self.filled, self.edge)

    def handle(self, simulated: bool) -> Line2D:
        line = Line2D([], [], color=self.colour, ls=self.line, lw=self.width)
        if simulated:
            face = self.colour if self.filled else "white"
            line.set(marker=self.marker, markerfacecolor=face, markeredgecolor=self.edge or self.colour)
            line.set_markeredgewidth(0.6)
        return line


def _double_descent_curves(data: Mapping[str, xarray.Dataset]) -> list[_Curve]:
    curves = []
    ridges = data["curves"]["teacher.ridge"].values
    teacher, student = data["curves"].stage.values
    for stage, colour, marker, words in (
        (teacher, style.BLUE, "o", "teacher"),
        (student, style.RED, "s", "distilled student"),
    ):
        for k, ridge in enumerate(ridges):
            label = rf"{words}, $\tilde{{\lambda}}={style.plain_number(ridge)}$"
            curves.append(_Curve("curves", stage, ridge, label, colour, style.LINES[1 - k % 2], marker, k % 2 == 1))
    # Broad and underneath: below separability it all but coincides with the student of the unregularised teacher.
    name = str(data["labels"].stage.values[0])
    words = "student on hard labels"
    broad = {"width": 2.6, "order": 1.5, "edge": style.BLACK}
    return [*curves, _Curve("labels", name, None, words, style.YELLOW, style.LINES[0], "^", **broad)]


def _alpha_axis(axes: Axes, alpha: np.ndarray, thresholds: Mapping[str, float]) -> None:
    style.log_ticks(axes, "x", float(alpha.min()), float(alpha.max()))
    axes.set_xlabel(style.parameter_label("alpha"))
    draw_thresholds(axes, thresholds)


def double_descent(data: Mapping[str, xarray.Dataset], thresholds: Mapping[str, float], note: str) -> Figure:
    """Test error, generalization gaps, and the map over (alpha, teacher ridge).

    Parameters
    ----------
    data
        Groups ``curves`` (stage, teacher.ridge, alpha), ``labels`` (stage, alpha), ``bounds`` (alpha), ``heat_map``
        (stage, teacher.ridge, alpha), and optionally ``simulated_curves``, ``simulated_labels``.
    thresholds
        Values in alpha for names in ``THRESHOLDS``.
    note
        A line on the parameters, put below the legend.
    """
    figure = style.new_figure(style.PAGE_WIDTH, 6.3)
    grid = figure.subplots(2, 2)
    curves = _double_descent_curves(data)
    simulated = "simulated_curves" in data
    alpha = data["curves"].alpha.values

    for axes, letter, quantity, label in (
        (grid[0, 0], "a", "test_error", "test error"),
        (grid[0, 1], "b", "generalization_gap", "test minus training error"),
        (grid[1, 0], "c", "loss_gap", "test minus training loss"),
    ):
        for curve in curves:
            curve.draw(axes, data, quantity)
        axes.set_ylabel(label)
        axes.margins(y=0.07)
        style.panel_letter(axes, letter)
        if quantity == "test_error":
            bounds = data["bounds"]
            axes.plot(bounds.alpha, bounds.bayes_teacher, color=style.BLACK, lw=0.9, ls=style.LINES[0])
            axes.plot(bounds.alpha, bounds.bayes_student, color=style.BLACK, lw=0.9, ls=style.LINES[2])
        _alpha_axis(axes, alpha, thresholds)
    _positive_log_axis(grid[1, 0], data, "loss_gap")

    heat = data["heat_map"]
    axes = grid[1, 1]
    stage = str(heat.stage.values[-1])
    mesh = _mesh(axes, heat, "test_error", stage, "alpha", "teacher.ridge", ("log", "log"))
    draw_thresholds(axes, thresholds, "white")
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28)
    bar.set_label("test error of the distilled student")
    style.panel_letter(axes, "d")

    entries = [(curve.handle(simulated), curve.label) for curve in curves]
    bounds = ((style.LINES[0], "Bayes bound"), (style.LINES[2], "Bayes bound, student's inputs"))
    entries[-1:-1] = [(Line2D([], [], color=style.BLACK, lw=0.9, ls=line), words) for line, words in bounds]
    handles, labels = zip(*entries, strict=True)
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=4, columnspacing=1.2, title=note, title_fontsize=8
    )
    legend.get_title().set_multialignment("center")
    return figure


def _positive_log_axis(axes: Axes, data: Mapping[str, xarray.Dataset], quantity: str) -> None:
    """Logarithmic y axis if all values are positive and they span decades."""
    values = np.concatenate([data[group][quantity].values.ravel() for group in ("curves", "labels")])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > _MANY_DECADES * values.min():
        style.log_ticks(axes, "y", 0.8 * float(values.min()), 1.3 * float(values.max()))


def _edges(values: np.ndarray, scale: str) -> np.ndarray:
    """Boundaries of cells around ``values``, half-way on the given scale."""
    points = np.log(values) if scale == "log" else values
    middle = (points[1:] + points[:-1]) / 2
    edges = np.concatenate(([2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]))
    return np.exp(edges) if scale == "log" else edges


def _mesh(
    axes: Axes, dataset: xarray.Dataset, quantity: str, stage: str, x: str, y: str, scales: Sequence[str]
) -> QuadMesh:  # fmt: skip
    values = dataset[quantity].sel(stage=stage).transpose(y, x)
    masked = np.ma.masked_invalid(values.values)
    # Cells that failed stay transparent: the hatched background shows.
    axes.patch.set(facecolor="0.85", hatch="/////", edgecolor="0.55")
    shown = masked.compressed()
    spread = shown.size and shown.min() > 0 and shown.max() > _MANY_DECADES * shown.min()
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
    dataset: xarray.Dataset, quantity: str, stage: str, axes_scales: Mapping[str, str], thresholds: Mapping[str, float]
) -> Figure:
    """One observable of one stage over two parameters; ``axes_scales`` maps their names to "lin" or "log", x first."""
    figure = style.new_figure(style.COLUMN_WIDTH * 1.25, 3.2)
    axes = figure.subplots()
    x, y = axes_scales
    mesh = _mesh(axes, dataset, quantity, stage, x, y, list(axes_scales.values()))
    draw_thresholds(axes, thresholds, "white")
    figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28).set_label(f"{stage}: {OBSERVABLES[quantity]}")
    if not np.all(np.isfinite(dataset[quantity].sel(stage=stage))):
        failed = Patch(facecolor="0.85", hatch="/////", edgecolor="0.55", label="no value")
        figure.legend(handles=[failed], loc="outside upper center")
    return figure


def curves(
    dataset: xarray.Dataset,
    simulated: xarray.Dataset | None,
    quantity: str,
    stages: Sequence[str],
    axes_scales: Mapping[str, str],
    thresholds: Mapping[str, float],
) -> Figure:
    """One observable of some stages along a parameter, with simulated points if there are any."""
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
            errors = points[quantity + ERROR_SUFFIX].values
            _points(axes, points[x].values, points[quantity].values, errors, marker, colour)
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
    labels = [f"{stage} (points: simulation)" if simulated is not None else stage for stage in stages]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(stages))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the format follows from the suffix."""
    figure.savefig(path)
