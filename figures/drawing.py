"""Curves with simulated points, reference lines, legends: the vocabulary of the published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.build import ERROR_SUFFIX
from numerics.plots import style

Data = Mapping[str, xarray.Dataset]
THRESHOLD_LINE = (0, (1, 1.5))
"""Line of thresholds."""


@dataclass(frozen=True)
class Look:
    """Colour, line and marker of a curve and its points; ``size`` of the marker in points, None for the usual one."""

    colour: str
    line: style.LineStyle = "-"
    marker: str = "o"
    filled: bool = True
    width: float = 1.2
    size: float | None = None

    @property
    def face(self) -> str:
        return self.colour if self.filled else "white"


def looks(count: int) -> list[Look]:
    """Looks that differ in colour, line and marker: Tol's colours for up to 4 curves, else a scale from dark to light."""
    markers = (*style.MARKERS, "v", "P", "X", "<")
    lines = (*style.LINES, (0, (7, 1.5)), (0, (3, 1.2, 1, 1.2, 1, 1.2)))
    if count <= len(style.COLOURS):
        colours: Sequence[str] = style.COLOURS
    else:
        scale = matplotlib.colormaps["viridis"]
        colours = [matplotlib.colors.to_hex(scale(x)) for x in np.linspace(0.0, 0.82, count)]
    return [Look(colours[k], lines[k % len(lines)], markers[k % len(markers)]) for k in range(count)]


class Panel:
    """Axes with a legend that grows while curves are drawn."""

    def __init__(self, axes: Axes, data: Data) -> None:
        self.axes, self.data = axes, data
        self.entries: list[tuple[Line2D, str]] = []

    def curve(
        self, part: str, x: str, look: Look, label: str | None, *, stage: str | int = -1, name: str = "test_error",
        simulated: str | None = None, **select: float,
    ) -> None:  # fmt: skip
        """An observable of a stage along ``x``, and points of the part called ``simulated`` if there is one."""
        found = self._series(part, stage, name, select)
        self.axes.plot(found[x], found, color=look.colour, ls=look.line, lw=look.width, zorder=2)
        handle = Line2D([], [], color=look.colour, ls=look.line, lw=look.width)
        if simulated in self.data:
            self.points(str(simulated), x, look, stage=stage, name=name, **select)
            handle.set(marker=look.marker, markerfacecolor=look.face, markeredgewidth=0.6)
        if label is not None:
            self.entries.append((handle, label))

    def points(
        self, part: str, x: str, look: Look, *, stage: str | int = -1, name: str = "test_error", **select: float
    ):
        """Simulated means with bars that hold 68% by Student's t."""
        mean, error = (self._series(part, stage, name + suffix, select) for suffix in ("", ERROR_SUFFIX))
        self.dots(mean[x], mean, error, look, self.data[part].attrs["n_runs"])

    def dots(self, x: np.ndarray, mean: np.ndarray, error: np.ndarray, look: Look, n_runs: int) -> None:
        """Means over so many runs; from their standard errors bars that hold 68% by Student's t."""
        self.axes.errorbar(
            x, mean, yerr=np.nan_to_num(error * style.bar(n_runs)), ls="none", marker=look.marker, ms=look.size, color=look.colour,
            zorder=4, elinewidth=0.8, markerfacecolor=look.face, markeredgecolor=look.colour, markeredgewidth=0.6,
        )  # fmt: skip

    def _series(self, part: str, stage: str | int, name: str, select: Mapping[str, float]) -> xarray.DataArray:
        found = self.data[part][name].sel(select, method="nearest") if select else self.data[part][name]
        return found.isel(stage=stage) if isinstance(stage, int) else found.sel(stage=stage)

    def function(self, x: np.ndarray, y: np.ndarray, look: Look, label: str | None) -> None:
        """A curve that needs no saddle point, such as a Bayes bound."""
        (handle,) = self.axes.plot(x, y, color=look.colour, ls=look.line, lw=look.width, zorder=1.8)
        if label is not None:
            self.entries.append((handle, label))

    def level(self, y: float, look: Look, label: str | None) -> None:
        """A horizontal line."""
        handle = self.axes.axhline(y, color=look.colour, ls=look.line, lw=look.width, zorder=1.5)
        if label is not None:
            self.entries.append((handle, label))

    def note(self, label: str) -> None:
        """A line of text in the legend."""
        self.entries.append((Line2D([], [], ls="none"), label))

    def mark(self, places: Mapping[str, float]) -> None:
        """Vertical lines, with symbols above the axes."""
        for symbol, place in places.items():
            self.axes.axvline(place, color=style.GREY, lw=0.7, ls=THRESHOLD_LINE, zorder=0.8)
            self.axes.annotate(
                f"${symbol}$", (place, 1), xytext=(0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="bottom",
            )  # fmt: skip

    def alpha_axis(self, low: float, high: float) -> None:
        """Linear axis of samples per input."""
        self.axes.set_xlim(low, high)
        self.axes.set_xlabel(style.parameter_label("alpha"))

    def legend(self, **how) -> None:
        """Inside the axes."""
        handles, labels = zip(*self.entries, strict=True)
        self.axes.legend(handles, labels, **how)


def one_panel(data: Data, height: float = 3.0) -> tuple[Figure, Panel]:
    """A figure of one column with one panel."""
    figure = style.new_figure(style.COLUMN_WIDTH, height)
    return figure, Panel(figure.subplots(), data)


def panels(data: Data, rows: int, columns: int, height: float, **how) -> tuple[Figure, list[Panel]]:
    """A figure as wide as the page, panels lettered."""
    figure = style.new_figure(style.PAGE_WIDTH, height)
    grid = np.atleast_1d(figure.subplots(rows, columns, **how)).ravel()
    found = [Panel(axes, data) for axes in grid]
    for panel, letter in zip(found, "abcdefgh", strict=False):
        style.panel_letter(panel.axes, letter)
    return figure, found


def shared_legend(figure: Figure, members: Sequence[Panel], columns: int, title: str | None = None) -> None:
    """Above all panels, each label once."""
    entries: dict[str, Line2D] = {}
    for panel in members:
        for handle, label in panel.entries:
            entries.setdefault(label, handle)
    legend = figure.legend(
        list(entries.values()), list(entries), loc="outside upper center", ncols=columns, columnspacing=1.3,
        title=title, title_fontsize=8, borderaxespad=0.15, borderpad=0.1, labelspacing=0.35,
    )  # fmt: skip
    if title:
        legend.get_title().set_multialignment("center")


def heading(figure: Figure, text: str) -> None:
    """What is fixed, above panels without a legend."""
    figure.suptitle(text, fontsize=8)


def said(data: Data, fixed: str, *remarks: str) -> str:
    """What stands above the legend: parameters that do not vary, what points are, and why some are off the lines."""
    lines = [fixed]
    for dataset in data.values():
        if "n_runs" in dataset.attrs:
            return "\n".join([fixed, style.points_are(dataset.attrs["n_inputs"], dataset.attrs["n_runs"]), *remarks])
    return "\n".join(lines)
