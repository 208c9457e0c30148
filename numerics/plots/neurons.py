"""Panels on neurons, each a function of axes and data; the command and the figures put them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from numerics.neurons.bounds import Sampling, crossing, eps_for_error, hard_width, kl_from_half, soft_width
from numerics.neurons.experiments import LEVEL, GapScan
from numerics.neurons.widths import width_with_bar
from numerics.plots import style
from numerics.plots.style import BLACK, BLUE, GREY, LINES, RED, YELLOW

SAMPLING = Sampling(GapScan.n_samples)
"""Of the bounds that are drawn: as many samples as the experiment has, inputs of length 1, 99% of all starts."""

MARGINS = (0.01, 0.3)
MARGIN_TICKS = (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.2)
EPS = (1e-6, 0.3)
LOOKS = {
    "soft": (BLUE, "-", "o", "soft, $B=1$"),
    "soft_long": (BLUE, LINES[1], "D", "soft, $B=1$, steps 16x"),
    "soft_linear": (BLUE, LINES[2], "s", "soft, $B=1$, linearised"),
    "hard": (RED, "-", "o", "hard, $B=1$"),
    "hard_tangent": (GREY, LINES[1], "x", "hard, $B=1$, linear loss"),
    "hard_large": (RED, LINES[1], "^", "hard, theorem's ball"),
    "hard_large_linear": (RED, LINES[2], "s", "hard, theorem's ball, linearised"),
}
"""Colour, line, marker and name of each training."""

NEEDED = ("soft", "soft_long", "soft_linear", "hard", "hard_large", "hard_large_linear")
"""Trainings whose needed widths are drawn."""

ERRORS = ("soft", "soft_linear", "hard", "hard_tangent", "hard_large", "hard_large_linear")
"""Trainings whose errors are drawn."""

WORDS = (
    ("soft bound\nthe smaller", 0.0115, 0.25, BLACK, ("left", "top")),
    ("hard bound\nthe smaller", 0.17, 0.02, BLACK, ("center", "center")),
    (r"$\gamma=\varepsilon$", 0.03, 0.022, BLACK, ("left", "top")),
    ("equal bounds", 0.026, 3.2e-3, BLACK, ("left", "top")),
    (r"$\gamma^2/8$", 0.04, 1.6e-4, BLUE, ("left", "top")),
    ("below: the soft bound\nsays something", 0.28, 2e-6, BLUE, ("right", "bottom")),
)
"""What is written where on the map of the bounds: text, place, colour, alignment."""

NOISE_COLOURS = (BLACK, BLUE, RED, YELLOW)

EXACT = {
    ("soft", "best"): (BLUE, "-", "o", "soft, best ridge"),
    ("hard", "best"): (RED, "-", "o", "hard, best ridge"),
    ("soft", "small"): (BLUE, LINES[1], "D", "soft, ridge {:g}"),
    ("hard", "small"): (RED, LINES[1], "^", "hard, ridge {:g}"),
}
"""Colour, line, marker and name of each exact student."""

EXACT_EPS = 0.01
"""Test error above the teacher's, of the panels of exact students."""


def bounds_map(axes: Axes, xor: xarray.Dataset | None = None) -> None:
    """Which bound is the smaller one, over margin and accuracy, and where the one for soft labels says something."""
    gamma, eps = np.geomspace(*MARGINS, 200), np.geomspace(*EPS, 200)
    equal = crossing(eps, SAMPLING)
    empty = kl_from_half(gamma)
    axes.fill_between(gamma, empty, EPS[1], color=BLUE, alpha=0.10, lw=0)
    axes.plot(equal, eps, color=BLACK)
    axes.plot(gamma, gamma, color=BLACK, ls=LINES[2])
    axes.plot(gamma, empty, color=BLUE)
    for text, x, y, colour, sides in WORDS:
        axes.text(x, y, text, fontsize=7, color=colour, ha=sides[0], va=sides[1])
    if xor is not None:
        axes.plot(xor.lower.mean("run"), xor.untrained_kl.mean("run"), "o", color=BLUE, ms=3, zorder=4)
        axes.text(0.0305, 2.1e-4, "untrained, XOR", fontsize=7, color=BLUE, ha="right", va="center")
    axes.set(ylim=EPS, xlabel=r"margin $\gamma$", ylabel=r"$\varepsilon$ (KL) $=\beta$ (0-1 error)", yscale="log")
    style.log_ticks(axes, "x", *MARGINS)


def bounds_curves(axes: Axes, xor: xarray.Dataset | None = None) -> None:
    """Neurons that suffice, against the margin, at 5% error; and what the experiment needs."""
    gamma = np.geomspace(*MARGINS, 100)
    axes.plot(gamma, soft_width(gamma, LEVEL, SAMPLING), color=BLUE, label=rf"soft, $\varepsilon={LEVEL:g}$ (empty)")
    axes.plot(
        gamma, soft_width(gamma, eps_for_error(LEVEL, gamma), SAMPLING), color=BLUE, ls=LINES[1],
        label=rf"soft, 0-1 error {LEVEL:g}",
    )  # fmt: skip
    axes.plot(gamma, hard_width(gamma, LEVEL, SAMPLING), color=RED, label=rf"hard, 0-1 error {LEVEL:g}")
    if xor is not None:
        _needed(axes, xor, ("soft",), name="soft, experiment")
    axes.set(yscale="log", ylim=(3, 3e14), xlabel=r"margin $\gamma$", ylabel="neurons $m$")
    style.log_ticks(axes, "x", *MARGINS)
    axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.36), fontsize=6.5, handlelength=2)


def experiment(axes: Axes, scan: xarray.Dataset) -> None:
    """Neurons needed for 5% training error against the margin; an arrow where no width that was tried is enough."""
    _needed(axes, scan, NEEDED)
    axes.set(xlabel=r"margin $\gamma$", ylabel=f"neurons for {100 * LEVEL:g}% training error")
    style.log_ticks(axes, "x", 0.9 * float(scan.lower.min()), 1.1 * float(scan.lower.max()))
    axes.xaxis.set_major_locator(FixedLocator(MARGIN_TICKS))
    style.log_ticks(axes, "y", 3.0, 60.0 * float(scan.width.max()))
    axes.legend(loc="upper right", fontsize=6, handlelength=2.2, labelspacing=0.3, borderaxespad=0.3)


def _needed(axes: Axes, scan: xarray.Dataset, trainings: Sequence[str], name: str | None = None) -> None:
    """Needed widths with bars against the margin, and arrows where there is none unless the curve has a ``name``."""
    margins, widest = scan.lower.mean("run").values, float(scan.width[-1])
    for training in trainings:
        colour, line, marker, label = LOOKS[training]
        found = [width_with_bar(scan.width, errors, LEVEL) for errors in scan.error.sel(training=training).values]
        kept = np.isfinite([bar.value for bar in found])
        bars = [bar for bar in found if np.isfinite(bar.value)]
        sizes = [[bar.value - bar.low for bar in bars], [min(bar.high, 2 * widest) - bar.value for bar in bars]]
        axes.errorbar(
            margins[kept], [bar.value for bar in bars], sizes, color=colour, ls=line, marker=marker, lw=0.9, elinewidth=0.7,
            markerfacecolor=colour if line == "-" else "white", markeredgewidth=0.6, label=name or label,
        )  # fmt: skip
        if name is None:
            never = np.full(np.sum(~kept), 1.3 * widest)
            axes.plot(margins[~kept], never, ls="none", marker=r"$\uparrow$", ms=6, color=colour)


def large_ball(axes: Axes, scan: xarray.Dataset, gap: float) -> None:
    """Training error against the width, at one gap: what tells soft and hard labels apart is the ball."""
    chosen = scan.sel(gap=gap, method="nearest")
    for training in ERRORS:
        colour, line, marker, label = LOOKS[training]
        errors = chosen.error.sel(training=training)
        axes.errorbar(
            chosen.width, errors.mean("run"), _bars(errors), color=colour, ls=line, marker=marker,
            ms=2.6, lw=0.9, elinewidth=0.7, markerfacecolor=colour if line == "-" else "white",
            markeredgewidth=0.6, label=label,
        )  # fmt: skip
    axes.axhline(LEVEL, color=GREY, lw=0.6, ls=LINES[2], zorder=0)
    axes.set(ylabel="training error", xlabel="neurons $m$", ylim=(-0.01, 0.5))
    style.log_ticks(axes, "x", 0.9 * float(chosen.width[0]), 1.1 * float(chosen.width[-1]))
    axes.set_title(rf"XOR, $\gamma={float(chosen.lower.mean('run')):.3f}$")
    axes.legend(loc="upper right", fontsize=5.8, handlelength=2.2, labelspacing=0.25, borderaxespad=0.2)


def _bars(values: xarray.DataArray) -> np.ndarray:
    """Of means over runs, holding 68% by Student's t; none for one run."""
    n_runs = values.sizes["run"]
    return np.nan_to_num(values.std("run", ddof=1).values / np.sqrt(n_runs) * style.bar(n_runs)) if n_runs > 1 else None


def heading(figure: Figure, data: Mapping[str, xarray.Dataset]) -> None:
    """What is fixed in the experiments, above all panels."""
    lines = []
    if "xor" in data:
        xor = data["xor"].attrs
        lines.append(
            f"XOR: {xor['n_samples']} samples, {xor['n_inputs']} inputs, {xor['steps']} steps at rate {xor['rate']:g}"
        )
    for name, words in (("digits", "digits"), ("deep", "three hidden layers")):
        if name in data:
            own = data[name].attrs
            lines.append(
                f"{words}: {own['n_train']} images, teacher of width {own['teacher_width']}, $T={own['temperature']:g}$"
            )
    if "mixture" in data:
        lines.append(f"exact, classes: teacher's ridge {data['mixture'].attrs['teacher_ridge']:g}")
    if "rule" in data:
        lines.append("exact, rule: all ridges optimal")
    runs = {int(found.sizes["run"]) for found in data.values() if "run" in found.sizes}
    if runs:
        counts = " and ".join(map(str, sorted(runs)))
        bars = "bars: 68%, of means by Student's $t$, of needed widths by resampling runs"
        rows = ["; ".join(lines[k : k + 2]) for k in range(0, len(lines), 2)]
        figure.suptitle("\n".join([*rows, f"{counts} runs; {bars}"]), fontsize=8)


def digits(axes: Axes, scan: xarray.Dataset, title: str) -> None:
    """Test error on hard labels less that on soft ones, the same data and starts, against the width, for every noise."""
    difference = scan.test_error.sel(labels="hard") - scan.test_error.sel(labels="soft")
    axes.axhline(0.0, color=GREY, lw=0.6, zorder=0)
    for k, noise in enumerate(scan.noise.values):
        colour, chosen = NOISE_COLOURS[k % len(NOISE_COLOURS)], difference.sel(noise=noise)
        axes.errorbar(
            scan.width * (1.0 + 0.03 * (k - 1)), chosen.mean("run"), _bars(chosen), color=colour,
            ls=LINES[k % len(LINES)], marker=style.MARKERS[k % len(style.MARKERS)], lw=0.9, elinewidth=0.7,
            label=f"noise {noise:g}",
        )  # fmt: skip
    axes.set(xlabel="neurons a layer" if "hidden" in title else "neurons $m$", ylabel="test error, hard $-$ soft")
    axes.set_xscale("log", base=2)
    axes.set_xticks(scan.width.values, [f"{m:g}" for m in scan.width.values])
    axes.minorticks_off()
    axes.set_title(title)
    axes.legend(loc="upper right", fontsize=7)


def exact_mixture(axes: Axes, scan: xarray.Dataset) -> None:
    """Random features that a student needs, against the variance of the classes; an arrow where no number of them is enough."""
    at = scan.sel(eps=EXACT_EPS)
    top = 60.0
    for (labels, tuning), look in EXACT.items():
        ratio = at.ratio.sel(labels=labels, tuning=tuning)
        _exact_line(axes, at.delta, ratio, look, top, look[3].format(scan.attrs["small_ridge"]))
    style.log_ticks(axes, "x", 0.8 * float(at.delta[0]), 1.25 * float(at.delta[-1]))
    style.log_ticks(axes, "y", 2.0, top)
    axes.set(xlabel=style.parameter_label("delta"), ylabel=f"neurons $p/N$ for teacher $+\\,{EXACT_EPS:g}$")
    axes.set_title(rf"exact: overlapping classes, $\alpha={scan.attrs['alpha']:g}$")
    axes.legend(
        loc="lower center",
        ncols=2,
        fontsize=6,
        handlelength=2.2,
        labelspacing=0.3,
        columnspacing=1.0,
        borderaxespad=0.3,
    )


def exact_rule(axes: Axes, scan: xarray.Dataset) -> None:
    """Random features that a student needs at its best ridge, against the labels that the noise of a rule turns round."""
    at = scan.sel(eps=EXACT_EPS, tuning="best")
    flipped = np.arctan(np.sqrt(at.noise)) / np.pi
    top = 130.0
    for k, alpha in enumerate(at.alpha.values):
        for labels in ("soft", "hard"):
            colour = EXACT[labels, "best"][0]
            look = (colour, LINES[k % len(LINES)], style.MARKERS[k % len(style.MARKERS)])
            ratio = at.ratio.sel(labels=labels, alpha=alpha)
            _exact_line(axes, flipped, ratio, look, top, rf"{labels}, $\alpha={alpha:g}$")
    style.log_ticks(axes, "y", 6.0, top)
    axes.set(
        xlabel="labels turned round by noise",
        ylabel=f"neurons $p/N$ for teacher $+\\,{EXACT_EPS:g}$",
        xlim=(-0.02, 0.35),
    )
    axes.set_title("exact: labels of a rule")
    axes.legend(loc="upper right", fontsize=6.5, handlelength=2.4, labelspacing=0.3, borderaxespad=0.3)


def _exact_line(
    axes: Axes, x: xarray.DataArray, ratio: xarray.DataArray, look: tuple, top: float, label: str
) -> None:  # fmt: skip
    colour, line, marker = look[:3]
    never = ~np.isfinite(ratio.values)
    if not never.all():
        axes.plot(
            x, np.where(never, np.nan, ratio), color=colour, ls=line, marker=marker, lw=0.9, label=label,
            markerfacecolor=colour if line == "-" else "white", markeredgewidth=0.6,
        )  # fmt: skip
    axes.plot(
        x[never], np.full(never.sum(), 0.85 * top), ls="none", marker=r"$\uparrow$", ms=6, color=colour,
        label=f"{label}: never" if never.all() else None,
    )  # fmt: skip


def panels(count: int, height: float = 2.8) -> tuple[Figure, Sequence[Axes]]:
    """Lettered panels, two in a row."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = style.new_figure(style.PAGE_WIDTH, rows * height)
    found = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for axes in found[count:]:
        axes.remove()
    for axes, letter in zip(found, "abcdefgh", strict=False):
        style.panel_letter(axes, letter)
    return figure, found[:count]


def overview(data: Mapping[str, xarray.Dataset]) -> Figure:
    """All panels for which there are data, after the bounds."""
    xor = data.get("xor")
    makers = [lambda axes: bounds_map(axes, xor), lambda axes: bounds_curves(axes, xor)]
    if xor is not None:
        makers += [lambda axes: experiment(axes, xor), lambda axes: large_ball(axes, xor, float(xor.gap.median()))]
    if "digits" in data:
        makers.append(lambda axes: digits(axes, data["digits"], "digits, two layers"))
    if "deep" in data:
        makers.append(lambda axes: digits(axes, data["deep"], "digits, three hidden layers"))
    if "mixture" in data:
        makers.append(lambda axes: exact_mixture(axes, data["mixture"]))
    if "rule" in data:
        makers.append(lambda axes: exact_rule(axes, data["rule"]))
    figure, found = panels(len(makers))
    for axes, make in zip(found, makers, strict=True):
        make(axes)
    heading(figure, data)
    return figure
