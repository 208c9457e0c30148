"""An interface for notebooks: sliders for the parameters of a teacher and its student, on two classes, on many, or on labels of a
rule; curves, numbers, simulation, export.

In a notebook one line shows it::

    from numerics.explorer import explore
    explore()

It needs the extra ``notebooks`` (ipywidgets) and works in any front end that shows widgets: the picture is a PNG, so nothing has
to be installed on the side of the browser.  Elsewhere, and where the notebook is only read, the picture alone is shown.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, ScalarFormatter
from PIL import Image

from numerics import thresholds
from numerics.classes.solution import ClassSolution
from numerics.cli.command import replacing, require_writable
from numerics.cli.report import simulated
from numerics.models import (
    OUTPUTS,
    Chain,
    ClassMixture,
    DataModel,
    Description,
    Estimator,
    GaussianMixture,
    LinearRule,
    ParameterError,
    described,
    in_equations,
    parameter_paths,
    require_number,
    similar_pairs,
    with_parameter,
)
from numerics.phase_diagram import SIMULATED_ALPHAS, refined_grid, thresholds_in_alpha, write_data
from numerics.plots import style
from numerics.plots.curves import THRESHOLDS
from numerics.plots.plan import ALPHA_RANGE
from numerics.scalar.compiled import PointArrays, compile_chain
from numerics.settings import DEFAULT, Settings
from numerics.simulation.result import SimulationResult
from numerics.simulation.run import simulate
from numerics.solution.observables import OBSERVABLES
from numerics.solution.observables.registry import ERROR_SUFFIX as ERROR_OF
from numerics.solution.observables.registry import REGISTRY, groups, long_name, observables_of
from numerics.solution.solution import Solution
from numerics.solver import ConvergenceWarning, read_solution, solve
from numerics.square_chain.spectral import is_spectral
from numerics.sweeps.grid import ERROR_SUFFIX
from numerics.sweeps.run import sweep
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

try:
    import ipywidgets as widgets
except ImportError as error:
    raise ImportError(
        "numerics.explorer needs ipywidgets: install the extra, replica-distillation[notebooks]"
    ) from error

CURVE_POINTS = 60
"""Points of a curve, denser around thresholds."""

CURVE_POINTS_OF_CLASSES, ACCURACY_OF_CLASSES = 20, 1e-3
"""Of many classes, of which a point takes as long as a curve of two; their test errors are drawn to this accuracy."""

MOST_CLASSES = 6
"""That a slider offers."""

PEAKS = {"interpolation": (0.3, 0.15), "student_separability": (0.08, 0.1), "teacher_separability": (0.08, 0.1)}
"""Share of the points spent around a threshold, and the width in log(alpha) they spread over."""

SUFFIXES = (".png", ".pdf", ".nc")
"""Formats that can be saved: figures, figures, data."""

SIZE, DPI, SAVED_DPI = (10.2, 2.95), 90, 300
"""Inches of the figure, and dots per inch on screen and in files."""

_FILLED = 0.45
"""Axes are kept, for the eye and for speed, while curves stay inside and fill more than this share of them."""

_MARGIN, _OVERHANG, _LEGEND = 0.058, 6, 0.91
"""Of a panel in the figure: room for labels at the left, pixels beyond its right end, height above which the legend is."""

_SLIDER = 310  # pixels of width, as many beside each other as there is room for
_LOG_SPAN = 30.0
_LATE = 0.05  # seconds that a curve may take before the others are shown without it
_FAINT = 0.25
_SEED = 0
_SAME = object()


_SMALL, _ORDINARY = ".1e", ".3g"
_SCIENTIFIC = 1e-2
"""Values below it are shown as powers of ten: in three decimals there would be nothing of them."""


@dataclass(frozen=True)
class Slider:
    """A parameter that can be moved: keyword, names for :func:`numerics.models.with_parameter`, what it says, and its value."""

    key: str
    paths: tuple[str, ...]
    label: str
    value: float

    def put(self, data: DataModel, chain: Chain, value: float) -> tuple[DataModel, Chain]:
        """Data and chain with this value."""
        for path in self.paths:
            data, chain = with_parameter(data, chain, path, value)
        return data, chain

    def applies(self, data: DataModel, chain: Chain) -> bool:
        """Whether data and chain have this parameter, and it does something."""
        smoothed_numbers = self.key == "smoothing" and data.has_real_labels
        return set(self.paths) <= set(parameter_paths(chain, data)) and not smoothed_numbers

    @property
    def ends(self) -> Description:
        """Its range and scale."""
        return described(self.paths[-1])

    def slider(self) -> widgets.FloatSlider | widgets.FloatLogSlider:
        """A new widget for it."""
        how = {
            "value": self.value, "description": self.label, "readout_format": _ORDINARY, "style": {"description_width": "112px"},
            "layout": {"width": f"{_SLIDER}px", "margin": "0"},
        }  # fmt: skip
        if self.ends.log:
            ends = {"min": math.log10(self.ends.low), "max": math.log10(self.ends.high), "step": 0.01}
            slider = widgets.FloatLogSlider(base=10, **ends, **how)
        else:
            slider = widgets.FloatSlider(min=self.ends.low, max=self.ends.high, step=0.01, **how)
        slider.observe(lambda change: _format(slider), "value")
        _format(slider)
        return slider


class ClassesSlider(Slider):
    """The number of classes, in pairs that are alike."""

    def applies(self, data: DataModel, chain: Chain) -> bool:
        return data.many_classes

    @property
    def ends(self) -> Description:
        return Description("number of classes", "classes", "K", 3, MOST_CLASSES)

    def slider(self) -> widgets.IntSlider:
        return widgets.IntSlider(
            value=int(self.value), min=3, max=MOST_CLASSES, description=self.label, style={"description_width": "112px"},
            layout={"width": f"{_SLIDER}px", "margin": "0"},
        )  # fmt: skip

    def put(self, data: DataModel, chain: Chain, value: float) -> tuple[DataModel, Chain]:
        return _classes(int(value)), chain


class RarestSlider(ClassesSlider):
    """How often the last class is seen, as a part of how often each of the others is."""

    @property
    def ends(self) -> Description:
        return Description("weight of the last class over that of the others", "last class", "rho_K/rho_1", 0.05, 1.0)

    slider = Slider.slider

    def put(self, data: DataModel, chain: Chain, value: float) -> tuple[DataModel, Chain]:
        weights = np.array([1.0] * (data.classes_count - 1) + [value])
        return ClassMixture(data.alpha, weights / weights.sum(), data.gram), chain


def _format(slider: widgets.FloatSlider | widgets.FloatLogSlider) -> None:
    slider.readout_format = _SMALL if 0 < slider.value < _SCIENTIFIC else _ORDINARY


SLIDERS = (
    ClassesSlider("classes", (), "K, classes", 3),
    RarestSlider("rarest", (), "rarest class", 1.0),
    Slider("alpha", ("alpha",), "alpha = M/N", 0.8),
    Slider("similarity", ("similarity",), "s, similarity", 0.5),
    Slider("rho", ("rho",), "rho, P(y=1)", 0.2),
    Slider("delta", ("delta",), "Delta, noise", 1.0),
    Slider("noise", ("noise",), "noise of the rule", 0.25),
    Slider("slope", ("slope",), "slope of the rule", 1.0),
    Slider("teacher_ridge", ("teacher.ridge",), "teacher's ridge", 0.1),
    Slider("student_ridge", ("student.ridge",), "student's ridge", 1e-5),
    Slider("eta", ("student.eta",), "eta, student", 0.5),
    Slider("chi", ("student.mixing",), "chi, mixing", 1.0),
    Slider("temperature", ("student.temperature",), "T, temperature", 1.0),
    Slider("label_noise", ("label_noise",), "label noise", 0.0),
    Slider("smoothing", ("teacher.smoothing", "student.smoothing"), "label smoothing", 0.0),
)
"""What can be moved, where the data have it."""

CLASSES, MANY = "classes", "many-classes"
RULES = {
    "two Gaussian classes": CLASSES, "many Gaussian classes": MANY, "regression": "identity", "sign of a linear rule": "sign",
    "probit of a linear rule": "probit", "logit of a linear rule": "logit",
}  # fmt: skip
"""Where labels come from: what the choice says, and the output of the rule if there is one."""

DRAWN = ("generalization_gap", "norm")
DRAWN_OF_NUMBERS = ("mean_squared_error", "norm")
"""Observables of the second and third panel at the beginning; of regression."""


def _without_values(rule: str | None) -> tuple[DataModel, Chain]:
    """Data and chain whose parameters the sliders set."""
    data = _classes(3) if rule == MANY else GaussianMixture(1.0) if rule is None else LinearRule(1.0, output=rule)
    losses = (SquareLoss(), SquareDistillation()) if data.has_real_labels else (CrossEntropy(), Distillation())
    return data, Chain(tuple(Estimator(loss, 1.0) for loss in losses))


def _classes(count: int) -> ClassMixture:
    """In pairs that are alike, the rest of the parameters to be set."""
    return ClassMixture(1.0, gram=similar_pairs(count, 0.0))


def _first_observable(data: DataModel) -> str:
    """Of the first panel."""
    return "excess_risk" if data.has_real_labels else "test_error"


_PLAIN = {r"\|": "|", r"\sqrt{N}": "√N", r"-\Phi": "−Φ", r"\theta": "θ", "^2": "²", " - ": " − ", "$": ""}


def plain_label(name: str) -> str:
    """Label of an observable without mathtext."""
    text = OBSERVABLES[name]
    for tex, plain in _PLAIN.items():
        text = text.replace(tex, plain)
    return text


@dataclass(eq=False)
class _Panel:
    """One observable against alpha.  What moves is drawn over a background of axes that seldom changes."""

    axes: Axes
    name: str

    def __post_init__(self) -> None:
        self.lines: list[Line2D] = []
        self.dots: list[Line2D] = []
        self.bars: list = []
        looks = ((style.BLUE, style.LINES[1], "o"), (style.RED, style.LINES[0], "s"))
        for colour, line, marker in looks:
            self.lines += self.axes.plot([], [], color=colour, ls=line, animated=True)
            self.dots += self.axes.plot(
                [], [], color="white", mec=colour, mew=1.3, ls="none", marker=marker, ms=6, zorder=5, animated=True
            )
        self.bound = self.axes.plot([], [], color=style.BLACK, lw=0.9, ls=style.LINES[2], animated=True)[0]
        self.here = self.axes.axvline(1.0, color=style.BLACK, lw=0.7, zorder=1, animated=True)
        self.thresholds = {}
        for name, symbol in THRESHOLDS.items():
            line = self.axes.axvline(1.0, color=style.GREY, lw=0.7, ls=(0, (1, 1.5)), zorder=0.8, animated=True)
            text = self.axes.annotate(
                f"${symbol}$", (1.0, 1.0), xytext=(0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="bottom", animated=True,
            )  # fmt: skip
            self.thresholds[name] = line, text
        style.log_ticks(self.axes, "x", *ALPHA_RANGE)
        self.axes.set_xlabel(style.parameter_label("alpha"))
        self.rename(self.name)

    def rename(self, name: str) -> None:
        """Draw another observable; the axes are forgotten."""
        self.name = name
        self.axes.set_ylabel(OBSERVABLES[name])
        self.log, self.limits = False, (0.0, 0.0)
        for line in self.lines:
            line.set_data([], [])

    def fade(self) -> None:
        """Keep the old curves, faint, while new ones are computed."""
        for line, dot in zip(self.lines, self.dots, strict=True):
            line.set_alpha(_FAINT)
            dot.set_data([], [])
        self.simulated(None)

    @property
    def moving(self) -> Iterator:
        """What is drawn over the background."""
        for line, text in self.thresholds.values():
            if line.get_visible():
                yield from (line, text)
        yield from (self.here, self.bound, *self.lines, *self.bars, *self.dots)

    def mark(self, alpha: float, limits: Mapping[str, float]) -> None:
        """Place the current alpha and the thresholds."""
        self.here.set_xdata([alpha, alpha])
        low, high = ALPHA_RANGE
        for name, (line, text) in self.thresholds.items():
            value = limits.get(name, math.inf)
            for artist in (line, text):
                artist.set_visible(low < value < high)
            if low < value < high:
                line.set_xdata([value, value])
                text.xy = (value, 1.0)

    def simulated(self, points: xarray.Dataset | None) -> None:
        """Replace the simulated points: means, and bars that hold 68% by Student's t."""
        for bars in self.bars:
            bars.remove()
        self.bars = []
        if points is None:
            return
        for k, line in enumerate(self.lines):
            mean, error = (points[self.name + suffix].values[k] for suffix in ("", ERROR_SUFFIX))
            error = np.nan_to_num(error * style.bar(points.attrs["n_runs"]))
            container = self.axes.errorbar(
                points.alpha.values, mean, yerr=error, ls="none", marker=self.dots[k].get_marker(),
                color=line.get_color(), ms=4, elinewidth=0.9, capsize=2, zorder=4,
            )  # fmt: skip
            for artist in container.get_children():
                artist.set_animated(True)
                self.bars.append(artist)

    def rescale(self, values: Sequence[np.ndarray]) -> bool:
        """Choose the axis; whether it changed, so that the background is out of date."""
        shown = np.concatenate([np.ravel(v) for v in values])
        shown = shown[np.isfinite(shown)]
        if shown.size == 0:
            return False
        low, high = float(shown.min()), float(shown.max())
        log = not REGISTRY[self.name].linear and low > 0 and high > _LOG_SPAN * low
        if log:
            low, high = math.log10(low), math.log10(high)
        span = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-12)
        bottom, top = self.limits
        if log == self.log and bottom <= low and high <= top and span > _FILLED * (top - bottom):
            return False
        self.log, self.limits = log, (low - 0.1 * span, high + 0.1 * span)
        if log:
            style.log_ticks(self.axes, "y", *(10.0**end for end in self.limits))
        else:
            self.axes.set_yscale("linear")
            self.axes.yaxis.set_major_locator(AutoLocator())
            self.axes.yaxis.set_major_formatter(ScalarFormatter())
            self.axes.set_ylim(*self.limits)
        return True


class Explorer:
    """Sliders, curves and numbers of a teacher and its student.

    The picture shows the test errors (excess risks of regression) with the Bayes bounds, and two observables of choice, against
    alpha, with the thresholds and the current alpha marked; the table all observables at the current alpha.  Whatever a slider,
    a choice or a button does ends in a picture or in one line of text, :attr:`message`.  Test errors, order parameters and
    everything else that is quick to compute are shown before what is not.

    Parameters
    ----------
    settings : Settings
        Accuracy.  Points that do not reach it are left out of curves and tables, and the message says which.
    rule : str or None
        "identity" (regression), "sign", "probit" or "logit" for labels of a :class:`numerics.LinearRule`; "many-classes" for a
        :class:`numerics.ClassMixture` of similar pairs; None for two Gaussian classes.
    **values : float
        Where the sliders start: ``alpha``, ``teacher_ridge``, ``student_ridge``, ``eta``, ``chi``; of classes ``rho``, ``delta``;
        of many ``classes``, ``similarity``, ``rarest`` (weight of the last class over that of the others) and ``delta``;
        of rules ``noise`` or ``slope``; of all but regression ``temperature``, ``label_noise``, ``smoothing`` (of teacher and
        student).

    Attributes
    ----------
    widget : ipywidgets.VBox
        The interface.
    sliders : dict
        Slider of each parameter.
    rules : Dropdown
        Where labels come from.
    choices : tuple of two Dropdowns
        Observables of the second and third panel.
    inputs, runs, seed : ipywidgets.BoundedIntText
        N, number of runs and seed of the simulation.
    buttons : dict
        ``simulate``, ``clear``, ``png``, ``pdf``, ``nc``.
    file : ipywidgets.Text
        Name of the files that are saved, without suffix.
    figure : matplotlib.figure.Figure
    alphas : ndarray, shape (60,), of many classes (20,)
    curves : dict of ndarray, shape (2, 60), of many classes (2, 20)
        Values drawn, by observable; NaN where a point did not converge.
    solution : Solution
        At the current alpha.
    simulation : xarray.Dataset or None
        Simulated points at the current parameters, if there are any: all observables and their standard errors.
    message : str
        What the interface says: one line.

    Raises
    ------
    ParameterError
        For an unknown parameter or a value outside its slider.
    """

    def __init__(self, *, settings: Settings = DEFAULT, rule: str | None = None, **values: float) -> None:
        self.settings = settings
        self.curves: dict[str, np.ndarray] = {}
        self.message = ""
        self._simulations: dict[tuple, xarray.Dataset] = {}
        self._seconds: dict[str, float] = {}
        self._solutions: list[Solution | None] = []
        self._key: tuple | None = None
        self._held = False
        self._build_widgets()
        self._build_figure()
        self.set(rule=rule, **values)
        self._show(small=True)
        self.rules.observe(self._on_rule, "value")
        for slider in self.sliders.values():
            slider.observe(self._on_change, "value")
        for choice in self.choices:
            choice.observe(self._on_change, "value")

    # The interface.

    def _build_widgets(self) -> None:
        self.sliders = {parameter.key: parameter.slider() for parameter in SLIDERS}
        self.rules = widgets.Dropdown(options=list(RULES.items()), value=CLASSES, layout={"width": "190px"})
        self.choices = tuple(widgets.Dropdown(layout={"width": "240px"}) for _ in DRAWN)
        self._offer(DRAWN)
        narrow = {"style": {"description_width": "initial"}, "layout": {"width": "112px"}}
        self.inputs = widgets.BoundedIntText(value=400, min=20, max=4000, step=20, description="N", **narrow)
        self.runs = widgets.BoundedIntText(value=10, min=2, max=200, description="runs", **narrow)
        self.seed = widgets.BoundedIntText(value=_SEED, min=0, max=2**31 - 1, description="seed", **narrow)
        self.file = widgets.Text(value="explore", description="file", **narrow)
        self.file.layout.width = "210px"
        self.file.continuous_update = False
        words = {"simulate": "Simulate", "clear": "Clear", "png": "PNG", "pdf": "PDF", "nc": "NetCDF"}
        tips = {
            "simulate": "Train finite systems at about ten values of alpha",
            "clear": "Forget all simulations",
            "png": "Save the figure",
            "pdf": "Save the figure",
            "nc": "Save curves, numbers and simulations",
        }
        self.buttons = {
            name: widgets.Button(
                description=text, tooltip=tips[name], layout={"width": "88px" if name == "simulate" else "76px"}
            )
            for name, text in words.items()
        }
        self.buttons["simulate"].on_click(lambda _: self._guard(self.simulate))
        self.buttons["clear"].on_click(lambda _: self._guard(self.clear))
        for suffix in SUFFIXES:
            self.buttons[suffix[1:]].on_click(lambda _, suffix=suffix: self._guard(lambda: self._save_as(suffix)))
        self.progress = widgets.IntProgress(value=0, min=0, layout={"width": "100px", "visibility": "hidden"})
        self.status, self.table = widgets.HTML(), widgets.HTML()
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})

        def row(*items: widgets.Widget) -> widgets.Box:
            """Beside each other, in several lines where there is no room."""
            return widgets.Box(
                items, layout={"display": "flex", "flex_flow": "row wrap", "width": "100%", "overflow": "hidden"}
            )

        simulation = [self.inputs, self.runs, self.seed, self.buttons["simulate"], self.buttons["clear"]]
        saving = [self.file, *(self.buttons[suffix[1:]] for suffix in SUFFIXES)]
        shown = [widgets.Label("labels:"), self.rules, widgets.Label("second and third panel:"), *self.choices]
        self.widget = widgets.VBox(
            [
                self.picture,
                row(*shown),
                row(*self.sliders.values()),
                row(*simulation, *saving),
                row(self.status, self.progress),
                self.table,
            ],
            layout={"width": "100%"},
        )

    def _offer(self, preferred: Sequence[str]) -> None:
        """Let the second and third panel choose among the observables of the data; keep what they show where it is one."""
        names = observables_of(_without_values(self.rule)[0])
        for choice, name in zip(self.choices, preferred, strict=True):
            kept = choice.value if choice.value in names else name
            choice.options = [(plain_label(name), name) for name in names]
            choice.value = kept

    def _build_figure(self) -> None:
        with style.journal_style():
            self.figure = Figure(figsize=SIZE, dpi=DPI)
            FigureCanvasAgg(self.figure)
            grid = self.figure.subplots(1, 3)
            self.figure.subplots_adjust(left=0.062, right=0.992, bottom=0.155, top=0.83, wspace=0.26)
            names = (_first_observable(GaussianMixture(1.0)), *(choice.value for choice in self.choices))
            self._panels = [_Panel(axes, name) for axes, name in zip(grid, names, strict=True)]
        self._background = None
        self._stale: list[_Panel] = []
        self._draw_legend()

    def _draw_legend(self) -> None:
        """Above the panels; without a Bayes bound where none is known."""
        first = self._panels[0]
        handles = [
            Line2D([], [], color=line.get_color(), ls=line.get_linestyle(), marker=dot.get_marker())
            for line, dot in zip(first.lines, first.dots, strict=True)
        ]
        words = ["teacher", "student"]
        if self.rule is None:
            handles.append(Line2D([], [], color=style.BLACK, lw=0.9, ls=style.LINES[2]))
            words.append("Bayes bound on the student's inputs")
        handles.append(Line2D([], [], color=style.BLACK, lw=0.7))
        with style.journal_style():
            for legend in self.figure.legends:
                legend.remove()
            self.figure.legend(handles, [*words, "current alpha"], loc="upper center", ncols=4)
        self._background = None

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        bundle = dict(self.widget._repr_mimebundle_())
        with io.BytesIO() as buffer:
            self._write_screen(buffer, small=True)
            bundle["image/png"] = base64.b64encode(buffer.getvalue()).decode("ascii")
        bundle["text/plain"] = repr(self)
        return bundle

    def __repr__(self) -> str:
        return f"explore({self._arguments('g')})"

    def _arguments(self, form: str) -> str:
        """Keywords that give this interface again; ``form`` is that of the numbers, empty for all their digits."""
        rule = [] if self.rule is None else [f"rule={self.rule!r}"]
        return ", ".join([*rule, *(f"{key}={value:{form}}" for key, value in self.parameters.items())])

    # Parameters and results.

    @property
    def rule(self) -> str | None:
        """Output of the rule that gives the labels, None for two classes."""
        return None if self.rules.value == CLASSES else self.rules.value

    @property
    def parameters(self) -> dict[str, float]:
        """Values of the sliders that the data have, by keyword."""
        return {slider.key: self.sliders[slider.key].value for slider in self._applying(self.rule)}

    def _applying(self, rule: str | None) -> list[Slider]:
        """Sliders of the parameters that data and chain have."""
        return [slider for slider in SLIDERS if slider.applies(*_without_values(rule))]

    def set(self, *, rule: object = _SAME, **values: float) -> None:
        """Move several sliders, or choose other labels, and draw once.

        Raises
        ------
        ParameterError
            For an unknown parameter or rule, one that the data do not have, or a value outside its slider.
        """
        rule = self.rule if rule is _SAME else rule
        if rule is not None and rule not in (*OUTPUTS, MANY):
            raise ParameterError(f"rule must be None or one of {', '.join((*OUTPUTS, MANY))}, got {rule!r}")
        known = {slider.key: slider for slider in self._applying(rule)}
        for key, value in values.items():
            if key not in known:
                raise ParameterError(f"unknown parameter {key!r}; there are {', '.join(known)}")
            low, high = known[key].ends.low, known[key].ends.high
            require_number(key, value, at_least=low, at_most=high, allowed=f"in [{low:g}, {high:g}] here")
            if key == "classes" and value != int(value):
                raise ParameterError(f"classes must be an integer, got {value!r}")
        self._held = True
        try:
            self.rules.value = rule or CLASSES
            for key, value in values.items():
                self.sliders[key].value = value
        finally:
            self._held = False
        self._on_rule()

    def _on_rule(self, _: object = None) -> None:
        """Labels come from somewhere else: other sliders, other observables."""
        if self._held:
            return
        shown = {slider.key for slider in self._applying(self.rule)}
        for key, slider in self.sliders.items():
            slider.layout.display = None if key in shown else "none"
        data, _chain = _without_values(self.rule)
        self._held = True
        try:
            self._offer(DRAWN_OF_NUMBERS if data.has_real_labels else DRAWN)
        finally:
            self._held = False
        first = self._panels[0]
        if first.name != _first_observable(data):
            first.rename(_first_observable(data))
        self._draw_legend()
        self._on_change()

    @property
    def model(self) -> tuple[DataModel, Chain]:
        """Data and chain that the sliders describe."""
        data, chain = _without_values(self.rule)
        for slider in self._applying(self.rule):
            data, chain = slider.put(data, chain, self.parameters[slider.key])
        return data, chain

    @property
    def simulation(self) -> xarray.Dataset | None:
        """Simulated points at the current parameters, whatever alpha is."""
        return self._simulations.get(self._curve_key())

    def _curve_key(self) -> tuple:
        return (self.rule, *(value for key, value in self.parameters.items() if key != "alpha"))

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Points that do not converge are reported in the interface."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield

    def _compute(self) -> None:
        """Solve what changed: the curves, and always the current point."""
        data, chain = self.model
        if self._curve_key() != self._key:
            self._key = None  # until it is done
            self.limits = thresholds_in_alpha(data, chain)
            peaks = {value: PEAKS[name] for name, value in self.limits.items()}
            count = CURVE_POINTS_OF_CLASSES if data.many_classes else CURVE_POINTS
            self.alphas = refined_grid(*ALPHA_RANGE, count, peaks)
            points = [(with_parameter(data, chain, "alpha", float(alpha))) for alpha in self.alphas]
            self._solutions = self._solve_curve(points)
            self.curves = {}
            self.bound = thresholds.bayes_error_of(data, self.alphas, chain[-1].eta)
            self._key = self._curve_key()
        with self._quiet():
            self.solution = solve(data, chain, settings=self.settings)

    def _solve_curve(self, points: Sequence[tuple[DataModel, Chain]]) -> list[Solution | None]:
        """Solutions along alpha, None where a point did not converge."""
        if points[0][0].many_classes:
            return self._follow(points)
        if is_spectral(*points[0]):
            with self._quiet():
                found = [solve(*point, settings=self.settings) for point in points]
            return [solution if solution.converged else None for solution in found]
        arrays = PointArrays(points)
        arrays.solve(compile_chain(in_equations(*points[0])), self.settings, np.log(self.alphas))
        converged = arrays.converged(self.settings)
        return [
            read_solution(arrays, i, *point, self.settings) if good else None
            for i, (point, good) in enumerate(zip(points, converged, strict=True))
        ]

    def _follow(self, points: Sequence[tuple[DataModel, Chain]]) -> list[ClassSolution | None]:
        """Of many classes, each from the one before."""
        found, before = [], None
        with self._quiet():
            for point in points:
                solution = solve(*point, rtol=ACCURACY_OF_CLASSES, start=before)
                before = solution if solution.converged else None
                found.append(before)
        return found

    def _curve(self, name: str) -> np.ndarray:
        """Values of an observable along the curve, shape (2, points)."""
        if name not in self.curves:
            start = time.perf_counter()
            nothing = (math.nan, math.nan)
            rows = [nothing if s is None else [getattr(stage, name) for stage in s.stages] for s in self._solutions]
            self.curves[name] = np.array(rows, dtype=float).T
            self._seconds[name] = time.perf_counter() - start
        return self.curves[name]

    # Drawing.

    def _on_change(self, _: object = None) -> None:
        """A slider or a choice has another value."""
        if not self._held:
            self._guard(self.redraw)

    def redraw(self) -> None:
        """Compute and show everything again: picture, table and message.

        Observables that take long follow in a second picture; in the first their old curves are faint.
        """
        for panel, choice in zip(self._panels[1:], self.choices, strict=True):
            if panel.name != choice.value:
                panel.rename(choice.value)
                self._stale.append(panel)
        self._compute()
        late = [
            panel
            for panel in self._panels
            if panel.name not in self.curves and self._seconds.get(panel.name, 0.0) > _LATE
        ]
        self._draw(late)
        self._show()
        if late:
            self._draw()
            self._show()
        self.table.value = self._table()
        self._say(self._findings())

    def _draw(self, late: Sequence[_Panel] = ()) -> None:
        """Move what moves to where it belongs; curves of ``late`` panels are not there yet."""
        alpha = self.solution.data.alpha
        points = self.simulation
        for panel in self._panels:
            panel.mark(alpha, self.limits)
            if panel in late:
                panel.fade()
                continue
            curve = self._curve(panel.name)
            shown = [curve]
            for k, (line, dot) in enumerate(zip(panel.lines, panel.dots, strict=True)):
                line.set_data(self.alphas, curve[k])
                line.set_alpha(None)
                value = getattr(self.solution[k], panel.name) if self.solution.converged else math.nan
                dot.set_data([alpha], [value])
                shown.append(np.array([value]))
            panel.simulated(points)
            if points is not None:
                mean, error = (points[panel.name + suffix].values for suffix in ("", ERROR_SUFFIX))
                error = error * style.bar(points.attrs["n_runs"])
                shown += [mean - error, mean + error] if REGISTRY[panel.name].linear else [mean]
            bound = self.bound if panel.name == "test_error" else np.full(self.bound.shape, math.nan)
            panel.bound.set_data(self.alphas, bound)
            shown.append(bound)
            if panel.rescale(shown):
                self._stale.append(panel)

    def _render(self) -> np.ndarray:
        """Pixels, shape (height, width, 3)."""
        canvas = self.figure.canvas
        if self._background is None:
            with style.journal_style():
                canvas.draw()
            self._background = canvas.copy_from_bbox(self.figure.bbox)
        elif self._stale:
            canvas.restore_region(self._background)
            with style.journal_style():
                for panel in dict.fromkeys(self._stale):
                    self._redraw_axes(panel)
            self._background = canvas.copy_from_bbox(self.figure.bbox)
        self._stale = []
        canvas.restore_region(self._background)
        for panel in self._panels:
            for artist in panel.moving:
                panel.axes.draw_artist(artist)
        return np.asarray(canvas.buffer_rgba())[:, :, :3]

    def _redraw_axes(self, panel: _Panel) -> None:
        """Draw the axes of one panel again, over a blank rectangle from its left neighbour to its own right end."""
        pixels = np.asarray(self.figure.canvas.buffer_rgba())
        height, width = pixels.shape[:2]
        place = panel.axes.get_position()
        left, right = round((place.x0 - _MARGIN) * width), round(place.x1 * width + _OVERHANG)
        pixels[round((1 - _LEGEND) * height) :, max(left, 0) : right] = 255
        panel.axes.draw(self.figure.canvas.get_renderer())

    def _write_screen(self, buffer: io.BytesIO, *, small: bool) -> None:
        picture = Image.fromarray(np.ascontiguousarray(self._render()))
        if small:
            picture.quantize(64).save(buffer, "png", optimize=True)
        else:
            picture.save(buffer, "png", compress_level=1)

    def _show(self, *, small: bool = False) -> None:
        with io.BytesIO() as buffer:
            self._write_screen(buffer, small=small)
            self.picture.value = buffer.getvalue()

    def _findings(self) -> str:
        """What is to be said about the points: those that are missing."""
        failed = [alpha for alpha, solution in zip(self.alphas, self._solutions, strict=True) if solution is None]
        parts = []
        if failed:
            shown = ", ".join(f"{alpha:.3g}" for alpha in failed[:3]) + (", ..." if len(failed) > 3 else "")
            parts.append(
                f"{len(failed)} of {len(self.alphas)} points did not converge and are left out: alpha = {shown}"
            )
        if not self.solution.converged:
            parts.append(f"the current point did not converge: {self.solution.message}")
        return "; ".join(parts) or "all points converged"

    def _table(self) -> str:
        """Numbers at the current alpha, as HTML."""
        solution = self.solution
        names = solution.chain.names
        known = solution.converged
        tables = []
        for heading, group in groups(solution.data).items():
            rows = [
                (plain_label(name), *(_number(getattr(stage, name), known) for stage in solution.stages))
                for name in group
            ]
            if heading == "order parameters":
                overlap, response = (
                    np.trace(np.atleast_2d(block[1, 0])) for block in (solution.overlap, solution.response)
                )
                rows.append(("overlap Q of both", "", _number(overlap, known)))
                rows.append(("response V of student to teacher", "", _number(response, known)))
            body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            head = "".join(f"<th>{cell}</th>" for cell in (heading, *names))
            tables.append(f"<tr style='text-align:left'>{head}</tr>{body}")
        state = "converged" if known else f"not converged: {solution.message}"
        tail = (
            f"{state}; quadrature error {solution.quadrature_error:.1e}, residual {solution.residual:.1e}, "
            f"{solution.iterations} iterations"
        )
        left, right = "".join(tables[:2]), "".join(tables[2:])
        style_of = "style='line-height:1.25;margin:0 2em 0 0;font-variant-numeric:tabular-nums;white-space:nowrap'"
        blocks = "".join(f"<table {style_of}>{block}</table>" for block in (left, right))
        head = f"<b>alpha = {solution.data.alpha:.6g}</b>: {html.escape(tail)}"
        return f"{head}<div style='display:flex;flex-wrap:wrap;align-items:flex-start'>{blocks}</div>"

    # What buttons do.

    def _say(self, message: str, *, wrong: bool = False) -> None:
        """Show one line of text."""
        self.message = " ".join(str(message).split())
        colour = style.RED if wrong else "inherit"
        self.status.value = f"<span style='color:{colour}'>{html.escape(self.message)}</span>"

    def _guard(self, action: Callable[[], None]) -> None:
        """Do something, and say in one line what went wrong, if anything did."""
        try:
            action()
        except KeyboardInterrupt:
            self._say("interrupted", wrong=True)
        except (ParameterError, OSError, ArithmeticError) as error:
            self._say(str(error) or type(error).__name__, wrong=True)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}", wrong=True)

    @contextmanager
    def _busy(self, steps: int) -> Iterator[None]:
        """Buttons and sliders off, and a bar that fills."""
        controls = [
            *self.buttons.values(),
            *self.sliders.values(),
            self.rules,
            *self.choices,
            self.inputs,
            self.runs,
            self.seed,
        ]
        for control in controls:
            control.disabled = True
        self.progress.value, self.progress.max = 0, steps
        self.progress.layout.visibility = "visible"
        try:
            yield
        finally:
            self.progress.layout.visibility = "hidden"
            for control in controls:
                control.disabled = False

    def simulate(self) -> None:
        """Train finite systems at the current parameters for about ten values of alpha, and draw them with standard errors.

        An interruption of the kernel keeps the points that are done.  The message says how far test errors are from theory.

        Raises
        ------
        ParameterError
            If no point can be simulated.
        """
        data, chain = self.model
        n_inputs, n_runs = self.inputs.value, self.runs.value
        alphas = np.unique([max(2, round(alpha * n_inputs)) for alpha in (*SIMULATED_ALPHAS, data.alpha)]) / n_inputs
        found: dict[float, SimulationResult] = {}
        failures: list[str] = []
        missing = len(alphas)
        with self._busy(len(alphas)), self._quiet(), suppress(KeyboardInterrupt):
            for number, alpha in enumerate(alphas):
                done = f"{number} of {len(alphas)} values of alpha done"
                self._say(f"busy: simulating alpha = {alpha:.3g} ({n_runs} runs at N = {n_inputs}; {done})")
                # A seed of its own for each alpha: deviations of neighbours are independent.
                seed = int(np.random.SeedSequence([self.seed.value, number]).generate_state(1)[0])
                try:
                    runs = simulate(*with_parameter(data, chain, "alpha", float(alpha)), n_inputs, n_runs, seed)
                    if not runs.converged:
                        raise ParameterError(runs.message)
                    found[alpha] = runs
                except ParameterError as error:
                    failures.append(f"alpha = {alpha:.3g}: {error}")
                missing -= 1
                self.progress.value = number + 1
        if not found:
            raise ParameterError(f"no simulation: {failures[0] if failures else 'interrupted'}")
        points = _collect(found)
        points.attrs.update(n_inputs=n_inputs, n_runs=n_runs, seed=self.seed.value, failures="\n".join(failures))
        self._simulations[self._curve_key()] = points
        self._draw()
        self._show()
        parts = [f"simulated {len(found)} values of alpha, {n_runs} runs at N = {n_inputs}"]
        differences = self.deviations(_first_observable(data))
        if differences.size:
            parts.append(
                f"{'excess risks' if data.has_real_labels else 'test errors'} differ from theory by at most "
                f"{np.abs(differences[0]).max():.2g}, in the median by {np.median(np.abs(differences[0] / differences[1])):.1f} "
                "standard errors"
            )
        if failures:
            parts.append(f"{len(failures)} left out ({failures[0]})")
        if missing:
            parts.append(f"interrupted, {missing} not simulated")
        self._say("; ".join(parts))

    def deviations(self, name: str) -> np.ndarray:
        """Simulation minus theory of an observable at all simulated points of both stages, and standard errors, shape (2, n).

        Theory is taken at the sizes simulated: eta is rounded to whole weights.
        """
        points = self.simulation
        if points is None:
            return np.empty((2, 0))
        data, chain = self.model
        eta = round(chain[-1].eta * points.attrs["n_inputs"]) / points.attrs["n_inputs"]
        found = []
        for i, alpha in enumerate(points.alpha.values):
            here = with_parameter(*with_parameter(data, chain, "alpha", float(alpha)), "student.eta", eta)
            with self._quiet():
                solution = solve(*here, settings=self.settings)
            for k, stage in enumerate(solution.stages if solution.converged else ()):
                mean, error = (float(points[name + end].values[k, i]) for end in ("", ERROR_SUFFIX))
                if error > 0:
                    found.append((mean - getattr(stage, name), error))
        return np.array(found).reshape(-1, 2).T

    def clear(self) -> None:
        """Forget all simulations."""
        self._simulations.clear()
        self._draw()
        self._show()
        self._say(self._findings())

    def _save_as(self, suffix: str) -> None:
        name = self.file.value.strip()
        if not name:
            raise OSError("give the file a name")
        stem = Path(name).expanduser()
        if stem.suffix in SUFFIXES:
            stem = stem.with_suffix("")
        path = stem.with_name(stem.name + suffix)
        existed = path.exists()
        self._say(f"busy: writing {path}")
        self.save(path)
        self._say(f"saved {path}" + (", which replaces the one that was there" if existed else ""))

    def save(self, path: str | Path) -> None:
        """Write the figure (``.png``, ``.pdf``), or curves, numbers and simulations (``.nc``), by suffix.

        A NetCDF file has the groups ``curves`` (all observables), ``point`` (the current alpha, with errors) and, if there are any,
        ``simulation``.  Its attribute ``rerun`` is the call that gives this interface again, ``parameters`` the same as JSON.
        What was there before is replaced only by a complete file.

        Raises
        ------
        OSError
            If it cannot be written.
        ParameterError
            For another suffix.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ParameterError(f"files are saved as {', '.join(SUFFIXES)}, got {path.name!r}")
        try:
            require_writable(path, "file")
        except click.UsageError as error:
            raise OSError(error.message) from None
        if path.suffix == ".nc":
            self._write_data(path)
            return
        with style.journal_style(), replacing(path) as temporary:
            self.figure.savefig(temporary, dpi=SAVED_DPI, metadata=self._metadata(path.suffix))
        self._background = None

    def _metadata(self, suffix: str) -> dict[str, str]:
        return {"Title" if suffix == ".pdf" else "Description": repr(self)}

    def _write_data(self, path: Path) -> None:
        data, chain = self.model
        names = observables_of(data)
        with self._quiet():
            rtol = ACCURACY_OF_CLASSES if data.many_classes else None
            curves = sweep(data, chain, {"alpha": self.alphas}, names, jobs=1, settings=self.settings, rtol=rtol)
        solution, stages = self.solution, ("stage", "other_stage")
        blocks = (*stages, "class", "other_class") if data.many_classes else stages
        point = xarray.Dataset(
            {
                **{
                    name: ("stage", [getattr(s, name) for s in solution.stages], {"long_name": long_name(name)})
                    for name in (*names, *(name + ERROR_OF for name in names))
                },
                "overlap": (blocks, solution.overlap, {"long_name": "overlap Q"}),
                "response_matrix": (blocks, solution.response, {"long_name": "response V"}),
                "converged": ((), solution.converged),
                "residual": ((), solution.residual, {"long_name": "undamped, scaled residual"}),
                "quadrature_error": ((), solution.quadrature_error, {"long_name": "quadrature error estimate"}),
            },
            {"stage": list(chain.names), "other_stage": list(chain.names), "alpha": data.alpha},
            {"message": solution.message},
        )
        if not solution.converged:
            point = point.where(point.converged)
        groups = {"curves": curves, "point": point}
        if self.simulation is not None:
            groups["simulation"] = self.simulation
        attributes = {
            "title": f"Theory of knowledge distillation, {data.title}",
            "parameters": json.dumps(self.parameters),
            "rerun": f"numerics.explorer.explore({self._arguments('')})",
            "data": repr(data),
            "chain": repr(chain),
            "settings": repr(self.settings),
            **{f"alpha_{name}": value for name, value in self.limits.items()},
            **{name: text for name, text in curves.attrs.items() if name.startswith("version_")},
        }
        write_data(path, groups, attributes)


def _collect(found: Mapping[float, SimulationResult]) -> xarray.Dataset:
    """Means and standard errors of all observables, by stage and alpha; NaN for what simulations do not measure."""
    first = next(iter(found.values()))
    names = first.chain.names
    variables = {}
    for name in observables_of(first.data):
        rows = [[simulated(runs, k, name) for runs in found.values()] for k in range(len(names))]
        for suffix, attribute, words in (
            ("", "mean", f"{OBSERVABLES[name]}, mean over runs"),
            (ERROR_SUFFIX, "standard_error", "standard error of the mean"),
        ):
            values = [[math.nan if e is None else float(getattr(e, attribute)) for e in row] for row in rows]
            variables[name + suffix] = (("stage", "alpha"), values, {"long_name": words})
    return xarray.Dataset(variables, {"stage": list(names), "alpha": list(found)})


def _number(value: float, known: bool) -> str:
    """Six digits, or a dash where there is no value."""
    return f"{value:.6g}" if known and not math.isnan(value) else "–"


def explore(*, settings: Settings = DEFAULT, rule: str | None = None, **values: float) -> Explorer:
    """Show the :class:`Explorer`; keywords as there.

    >>> explore(alpha=1.0, eta=0.3)  # doctest: +SKIP
    >>> explore(rule="identity", noise=0.5)  # doctest: +SKIP
    """
    return Explorer(settings=settings, rule=rule, **values)
