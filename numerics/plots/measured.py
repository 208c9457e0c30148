"""Predictions for measured data beside real fits: learning curves, and one against the other."""

from __future__ import annotations

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from numerics.plots import style
from numerics.plots.curves import draw_points


def learning_curves_of(axes: Axes, curves: xarray.Dataset) -> None:
    """Predicted errors against M, with the scatter of the folds, Gaussian formulas (thin), and fits as points with bars."""
    samples = curves.samples.values
    looks = style.stage_looks(curves.sizes["stage"])
    for k in range(curves.sizes["setting"]):
        line = style.LINES[k % len(style.LINES)]
        for (colour, marker), stage in zip(looks, curves.stage.values, strict=True):
            one = curves.isel(setting=k).sel(stage=stage)
            axes.plot(samples, one.test_error, color=colour, ls=line)
            axes.plot(samples, one.gaussian_error, color=colour, ls=line, lw=0.5)
            if k == 0:
                low, high = (one.test_error + side * one.standard_error for side in (-1, 1))
                axes.fill_between(samples, low, high, color=colour, alpha=0.12, lw=0)
            fitted = np.isfinite(one.fits.values)
            if fitted.any():
                draw_points(
                    axes, samples[fitted], one.fits.values[fitted], one.fits_standard_error.values[fitted], marker, colour,
                    filled=k == 0,
                )  # fmt: skip
    ends = (0.5, 2.0) if len(samples) == 1 else (1.0, 1.0)
    style.log_ticks(axes, "x", ends[0] * float(samples[0]), ends[1] * float(samples[-1]))
    axes.set(xlabel="training samples $M$", ylabel="test error", ylim=(0, None))
    handles = [Line2D([], [], color=colour, marker=marker) for colour, marker in looks]
    lines = [style.LINES[k % len(style.LINES)] for k in range(curves.sizes["setting"])]
    handles += [Line2D([], [], color=style.GREY, ls=line) for line in lines]
    names = [*curves.stage.values, *curves.setting.values]
    if curves.sizes["setting"] == 1:
        handles, names = handles[: len(looks)], names[: len(looks)]
    axes.legend(handles, names, fontsize=6.5, loc="upper right")


def predicted_against_fits(axes: Axes, points: xarray.Dataset) -> None:
    """Cross-fitted predictions (filled) and Gaussian formulas (open) against real fits, with bars of both."""
    x, y = _range(points.fits), _range(points.fits, points.test_error, points.gaussian_error)
    axes.plot(y, y, color=style.GREY, lw=0.7)
    for (colour, marker), stage in zip(style.stage_looks(points.sizes["stage"]), points.stage.values, strict=True):
        one = points.sel(stage=stage)
        axes.errorbar(
            one.fits, one.test_error, xerr=one.fits_standard_error, yerr=one.standard_error, ls="none", marker=marker,
            color=colour, elinewidth=0.5, label=f"{stage}, cross-fitted",
        )  # fmt: skip
        axes.plot(
            one.fits, one.gaussian_error, ls="none", marker=marker, color=colour, markerfacecolor="white",
            markeredgewidth=0.6, label=f"{stage}, Gaussian formula",
        )  # fmt: skip
    style.log_ticks(axes, "x", *x)
    style.log_ticks(axes, "y", *y)
    axes.set(xlabel="test error of real fits", ylabel="predicted test error")
    axes.legend(fontsize=6.5, loc="upper left")


def _range(*arrays: xarray.DataArray) -> tuple[float, float]:
    """Ends of a logarithmic axis on which all values that are positive have room."""
    values = np.concatenate([array.values.ravel() for array in arrays])
    values = values[np.isfinite(values) & (values > 0)]
    return 0.8 * float(values.min()), 1.25 * float(values.max())


def overview(curves: xarray.Dataset, points: xarray.Dataset | None, note: str) -> Figure:
    """Learning curves, and predictions against fits where there are some."""
    count = 1 if points is None else 2
    figure = style.new_figure(style.COLUMN_WIDTH * (1.3 if points is None else 2.1), 3.1)
    panels = np.atleast_1d(figure.subplots(1, count))
    learning_curves_of(panels[0], curves)
    if points is not None:
        predicted_against_fits(panels[1], points)
    figure.suptitle(note, fontsize=8)
    return figure
