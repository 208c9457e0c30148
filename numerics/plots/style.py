"""One look for all figures: a matplotlib style, colours that survive greyscale, and how parameters are called on axes.

Colours are Paul Tol's high-contrast set (https://personal.sron.nl/~pault/): told apart by colour-blind readers, and of
different lightness.  Line style and marker vary as well, so no curve is told by its colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from numerics.deferred import special
from numerics.models import described

BLUE, RED, YELLOW, BLACK, GREY = "#004488", "#BB5566", "#DDAA33", "#000000", "#777777"
COLOURS = (BLUE, RED, YELLOW, BLACK)
LineStyle = str | tuple[float, tuple[float, ...]]
LINES: tuple[LineStyle, ...] = ("-", (0, (4.5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D")
BETWEEN = ("#228833", "#AA3377", "#66CCEE", "#EE7733", "#009988")
"""Colours of stages between the first and the last, of the same author's bright and vibrant sets."""

COLOUR_MAP = "cividis"

COLUMN_WIDTH = 3.4
"""Inches of one column of a journal page."""

PAGE_WIDTH = 7.0
"""Inches of a full page."""

STYLE = {
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8.5,
    "errorbar.capsize": 1.5,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.dpi": 150,
    "font.family": "serif",
    "font.serif": ["STIXGeneral", "DejaVu Serif"],
    "font.size": 8.5,
    "hatch.linewidth": 0.4,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.4,
    "mathtext.fontset": "stix",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "xtick.direction": "in",
    "xtick.labelsize": 8,
    "xtick.major.width": 0.6,
    "xtick.top": True,
    "ytick.direction": "in",
    "ytick.labelsize": 8,
    "ytick.major.width": 0.6,
    "ytick.right": True,
}


@contextmanager
def journal_style() -> Iterator[None]:
    """Draw and save figures inside this context: matplotlib's defaults and :data:`STYLE`, whatever a user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def words(name: str) -> str:
    """A name as it is read."""
    return name.replace("_", " ")


def stage_looks(count: int) -> list[tuple[str, str]]:
    """Colour and marker of each stage of a chain: the first is blue, the last of several red."""
    between = [(BETWEEN[k % len(BETWEEN)], ("D", "v", "P", "X", "<")[k % 5]) for k in range(max(0, count - 2))]
    return [(BLUE, "o"), *between, *([(RED, "s")] if count > 1 else [])]


def parameter_symbol(path: str) -> str:
    """Symbol of a parameter such as ``teacher.ridge``, the teacher's with a tilde; empty if it has none."""
    symbol = described(path).symbol
    return rf"\tilde{{{symbol}}}" if path.startswith("teacher.") and symbol else symbol


def parameter_label(path: str) -> str:
    """Axis label of a parameter such as ``alpha`` or ``teacher.ridge``: word and symbol."""
    stage = path.rpartition(".")[0]
    word = described(path).word
    if stage:
        word = f"{words(stage)}'s {word}"
    symbol = parameter_symbol(path)
    return f"{word}, ${symbol}$" if symbol else word


def bar(n_runs: int) -> float:
    """Half a bar in standard errors of the mean of so many runs: 68% by Student's t, 1 for many; NaN for one run."""
    return float(special.stdtrit(n_runs - 1, 0.5 + math.erf(math.sqrt(0.5)) / 2)) if n_runs > 1 else math.nan


def points_are(n_inputs: int, n_runs: int) -> str:
    """What simulated points and their bars are."""
    bars = "; bars: 68% by Student's $t$" if n_runs > 1 else ""
    return rf"points: simulation, $N={n_inputs}$, {n_runs} {'run' if n_runs == 1 else 'runs'}{bars}"


def plain_number(value: float) -> str:
    """A number in mathtext: 0.1, 2, or a power of ten where that is shorter."""
    text = f"{value:.3g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa}\times{power}"


def log_ticks(axes: Axes, which: str, low: float, high: float) -> None:
    """Logarithmic axis from ``low`` to ``high``: labels at 1, 2, 5 times powers of ten, or at powers if many."""
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = getattr(axes, f"{which}axis")
    axis.set_minor_formatter(NullFormatter())
    if high / low > 1e3:
        axis.set_major_locator(LogLocator(numticks=12))
        return
    ticks = [m * 10.0**k for k in range(-12, 13) for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def panel_letter(axes: Axes, letter: str) -> None:
    """Bold letter at the upper left, outside the axes."""
    axes.annotate(
        f"({letter})", (0, 1), xytext=(-30, 4), xycoords="axes fraction", textcoords="offset points", weight="bold"
    )


def noted(note: str) -> dict[str, object]:
    """Arguments of a legend that has a note, of one or several lines, above its entries."""
    return {
        "title": note,
        "title_fontproperties": {"size": 8},
        "alignment": "center",
        "borderaxespad": 0.15,
        "borderpad": 0.1,
    }


def new_figure(width: float, height: float) -> Figure:
    """A figure that does not depend on pyplot's state."""
    return Figure(figsize=(width, height), layout="constrained")
