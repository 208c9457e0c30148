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
from numerics.solution.solution import OBSERVABLES
from numerics.sweeps.grid import ERROR_SUFFIX

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
    select: Mapping[str, float]
    label: str
    colour: str
    line: style.LineStyle
    marker: str
    filled: bool = True
    width: float = 1.2
    order: float = 2.0
    edge: str | None = None

    def data(self, groups: Mapping[str, xarray.Dataset], prefix: str = "") -> xarray.Dataset | None:
        if prefix + self.group not in groups:
            return None
        return groups[prefix + self.group].sel(stage=self.stage).sel(self.select)

    def draw(self, axes: Axes, groups: Mapping[str, xarray.Dataset], quantity: str) -> None:
        """The curve, and simulated points; nothing where the stage has no such quantity."""
        curve = self.data(groups)
        if np.any(np.isfinite(curve[quantity])):
            axes.plot(curve.alpha, curve[quantity], color=self.colour, ls=self.line, lw=self.width, zorder=self.order)
        points = self.data(groups, "simulated_")
        if points is not None and np.any(np.isfinite(points[quantity])):
            columns = (points[name].values for name in ("alpha", quantity, quantity + ERROR_SUFFIX))
            _points(axes, *columns, self.marker, self.colour, self.filled, self.edge)

    def handle(self, simulated: bool) -> Line2D:
        line = Line2D([], [], color=self.colour, ls=self.line, lw=self.width)
        if simulated:
            face = self.colour if self.filled else "white"
            line.set(marker=self.marker, markerfacecolor=face, markeredgecolor=self.edge or self.colour)
            line.set_markeredgewidth(0.6)
        return line


def _ridge_axis(dataset: xarray.Dataset) -> str | None:
    """The ridge that is compared, if any."""
    return next((str(name) for name in dataset.test_error.dims if str(name).endswith(".ridge")), None)


def _words(groups: Mapping[str, xarray.Dataset], name: str) -> str:
    """What a stage is called: a student is a distilled one where there is one on hard labels beside."""
    names = [str(found) for found in groups["curves"].stage.values]
    return "distilled student" if name == "student" == names[-1] and "labels" in groups else style.words(name)


def _double_descent_curves(groups: Mapping[str, xarray.Dataset]) -> list[_Curve]:
    """Each stage for each ridge that concerns it, then the last stage on hard labels."""
    dataset = groups["curves"]
    names = [str(name) for name in dataset.stage.values]
    axis = _ridge_axis(dataset)
    ridges = dataset[axis].values if axis else np.empty(0)
    curves = []
    for name, (colour, marker) in zip(names, style.stage_looks(len(names)), strict=True):
        words = _words(groups, name)
        concerned = axis and names.index(axis.rpartition(".")[0]) <= names.index(name)
        if not concerned:
            select = {axis: ridges[0]} if axis else {}
            curves.append(_Curve("curves", name, select, words, colour, style.LINES[0], marker))
            continue
        symbol = style.parameter_symbol(axis)
        for k, ridge in enumerate(ridges):
            label = words if len(names) > 2 else f"{words}, ${symbol}={style.plain_number(ridge)}$"
            line = style.LINES[1 - k % 2] if len(ridges) > 1 else style.LINES[names.index(name) % len(style.LINES)]
            curves.append(_Curve("curves", name, {axis: ridge}, label, colour, line, marker, k % 2 == len(ridges) - 1))
    if "labels" in groups:
        # Broad and underneath: below separability it all but coincides with the student of the unregularised teacher.
        name = str(groups["labels"].stage.values[0])
        broad = {"width": 2.6, "order": 1.5, "edge": style.BLACK}
        label = f"{style.words(names[-1])} on hard labels"
        curves.append(_Curve("labels", name, {}, label, style.YELLOW, style.LINES[0], "^", **broad))
    return curves


def _draw_bounds(axes: Axes, bounds: xarray.Dataset) -> list[tuple[Line2D, str]]:
    """Bayes bounds that differ from one another, and their entries in the legend."""
    entries, drawn = [], []
    for name, bound in bounds.data_vars.items():
        if any(np.array_equal(bound.values, other) for other in drawn):
            continue
        line = style.LINES[(0, 2, 3, 1)[len(drawn) % 4]]
        axes.plot(bounds.alpha, bound, color=style.BLACK, lw=0.9, ls=line)
        stage = style.words(str(name).removeprefix("bayes_"))
        words = f"Bayes bound, {stage}'s inputs" if drawn else "Bayes bound"
        entries.append((Line2D([], [], color=style.BLACK, lw=0.9, ls=line), words))
        drawn.append(bound.values)
    return entries


def _alpha_axis(axes: Axes, alpha: np.ndarray, thresholds: Mapping[str, float]) -> None:
    style.log_ticks(axes, "x", float(alpha.min()), float(alpha.max()))
    axes.set_xlabel(style.parameter_label("alpha"))
    draw_thresholds(axes, thresholds)


def double_descent(data: Mapping[str, xarray.Dataset], thresholds: Mapping[str, float], note: str) -> Figure:
    """Test error, generalization gaps, and the map over alpha and a ridge.

    Parameters
    ----------
    data
        Groups ``curves`` (stage, alpha, and a ridge if there is one) and ``bounds`` (alpha), and where the chain has them
        ``labels`` (stage, alpha), ``heat_map`` (stage, ridge, alpha), ``simulated_curves``, ``simulated_labels``.
    thresholds
        Values in alpha for names in ``THRESHOLDS``.
    note
        A line on the parameters, put below the legend.
    """
    figure = style.new_figure(style.PAGE_WIDTH, 6.3 if "heat_map" in data else 3.4)
    grid = np.ravel(figure.subplots(*((2, 2) if "heat_map" in data else (1, 3))))
    curves = _double_descent_curves(data)
    simulated = "simulated_curves" in data
    alpha = data["curves"].alpha.values
    bounds: list[tuple[Line2D, str]] = []

    for axes, letter, quantity, label in (
        (grid[0], "a", "test_error", "test error"),
        (grid[1], "b", "generalization_gap", "test minus training error"),
        (grid[2], "c", "loss_gap", "test minus training loss"),
    ):
        for curve in curves:
            curve.draw(axes, data, quantity)
        axes.set_ylabel(label)
        axes.margins(y=0.07)
        style.panel_letter(axes, letter)
        if quantity == "test_error":
            bounds = _draw_bounds(axes, data["bounds"])
        _alpha_axis(axes, alpha, thresholds)
    _positive_log_axis(grid[2], data, "loss_gap")
    if "heat_map" in data:
        _draw_map(figure, grid[3], data, thresholds)
        style.panel_letter(grid[3], "d")

    entries = [(curve.handle(simulated), curve.label) for curve in curves]
    entries[len(entries) - ("labels" in data) : len(entries) - ("labels" in data)] = bounds
    handles, labels = zip(*entries, strict=True)
    columns = min(4, max(1, -(-len(entries) // 2))) if "heat_map" in data else 3
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, columnspacing=1.2, title=note, title_fontsize=8
    )
    legend.get_title().set_multialignment("center")
    return figure


def _draw_map(figure: Figure, axes: Axes, data: Mapping[str, xarray.Dataset], thresholds: Mapping[str, float]) -> None:
    """The last stage's test error over alpha and a ridge."""
    heat = data["heat_map"]
    last = str(heat.stage.values[-1])
    mesh = _mesh(axes, heat, "test_error", last, "alpha", str(_ridge_axis(heat)), ("log", "log"))
    draw_thresholds(axes, thresholds, "white")
    label = f"test error of the {_words(data, last)}"
    figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28).set_label(label)


def _positive_log_axis(axes: Axes, data: Mapping[str, xarray.Dataset], quantity: str) -> None:
    """Logarithmic y axis if all values are positive and they span decades."""
    values = np.concatenate([data[group][quantity].values.ravel() for group in ("curves", "labels") if group in data])
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
