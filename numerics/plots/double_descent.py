"""The picture of the double descent: errors and gaps against the samples, and a map over samples and a ridge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from numerics.plots import style
from numerics.plots.curves import draw_points, draw_thresholds
from numerics.plots.heat_map import MANY_DECADES, draw_map
from numerics.sweeps.grid import ERROR_SUFFIX


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
            alpha, mean, error = (points[name].values for name in ("alpha", quantity, quantity + ERROR_SUFFIX))
            error = error * style.bar(points.attrs["n_runs"])
            draw_points(axes, alpha, mean, error, self.marker, self.colour, self.filled, self.edge)

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
        _draw_last_map(figure, grid[3], data, thresholds)
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


def _draw_last_map(
    figure: Figure, axes: Axes, data: Mapping[str, xarray.Dataset], thresholds: Mapping[str, float]
) -> None:
    """The last stage's test error over alpha and a ridge."""
    heat = data["heat_map"]
    last = str(heat.stage.values[-1])
    mesh = draw_map(axes, heat, "test_error", last, "alpha", str(_ridge_axis(heat)), ("log", "log"))
    draw_thresholds(axes, thresholds, "white")
    label = f"test error of the {_words(data, last)}"
    figure.colorbar(mesh, ax=axes, pad=0.02, aspect=28).set_label(label)


def _positive_log_axis(axes: Axes, data: Mapping[str, xarray.Dataset], quantity: str) -> None:
    """Logarithmic y axis if all values are positive and they span decades."""
    values = np.concatenate([data[group][quantity].values.ravel() for group in ("curves", "labels") if group in data])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > MANY_DECADES * values.min():
        style.log_ticks(axes, "y", 0.8 * float(values.min()), 1.3 * float(values.max()))
