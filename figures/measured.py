"""Measured data: errors that are predicted before training, beside real fits.  Data of scikit-learn; settings of our choice.

The experiments are real fits on subsamples of the same data, as many as :data:`FITS`; of an effort they take the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.build import Effort, Plan, published
from numerics.anatomy.levels import GAINS
from numerics.models import Chain, Estimator, LinearMap, Measured
from numerics.models.measured import Samples
from numerics.plots import style
from numerics.plots.measured import learning_curves_of, predicted_against_fits
from numerics.predict.check import learning_curves, reliability, sample_range
from numerics.predict.choose import choose, cross_validate
from numerics.predict.fits import Trainer, stratified_choice
from numerics.predict.knowledge import levels_on
from numerics.predict.reading import Table, built_in, random_features
from theory.losses import CrossEntropy, Distillation

FITS = 24
"""Real fits at a point."""

OVER = {
    "teacher.ridge": (1e-3, 1e2), "student.ridge": (1e-4, 1e1), "student.mixing": (0.0, 1.0), "student.temperature": (0.5, 10.0),
}  # fmt: skip

_SAID = 8.0  # points, of what stands above panels

NO_PRINT = "Settings of our choice; nothing of them was printed."


@dataclass(frozen=True)
class Source:
    """Samples of two classes, what theory takes them to be, and ridges of teacher and student, who sees half of the columns."""

    data: str
    classes: tuple[str, ...] = ()
    covariances: str = "pooled"
    ridges: tuple[float, float] = (0.1, 0.01)

    @property
    def title(self) -> str:
        """In words."""
        words = {"digits": "digits, odd against even", "breast-cancer": "breast cancer"}[self.data]
        return f"digits, {self.classes[0]} against {self.classes[1]}" if self.classes else words

    @property
    def measured(self) -> Measured:
        """The samples."""
        table = _table(self.data, self.classes)
        return Measured(table.X, table.labels, covariances=self.covariances)

    @property
    def chain(self) -> Chain:
        """Teacher and student."""
        seen = _table(self.data, self.classes).map_of("half")
        student = Estimator(Distillation(temperature=2.0), self.ridges[1], features=seen)
        return Chain.of([Estimator(CrossEntropy(), self.ridges[0]), student])


@lru_cache(maxsize=8)
def _table(data: str, classes: tuple[str, ...]) -> Table:
    return built_in(data, classes)


@dataclass(frozen=True)
class _Experiment:
    """One dataset, made in one task."""

    simulated: ClassVar[bool] = True

    def dataset(self) -> xarray.Dataset:
        raise NotImplementedError

    def tasks(self) -> list[Callable[[], object]]:
        return [self.dataset]

    def join(self, pieces: Sequence[xarray.Dataset]) -> xarray.Dataset:
        return pieces[0]


@dataclass(frozen=True)
class Scattered(_Experiment):
    """Settings all over a range, predicted and fitted."""

    source: Source
    settings: int
    seed: int

    def dataset(self) -> xarray.Dataset:
        return reliability(self.source.measured, self.source.chain, OVER, self.settings, FITS, self.seed)


@dataclass(frozen=True)
class Learning(_Experiment):
    """Learning curves, and fits at some of their points."""

    source: Source
    points: int
    fitted: int
    seed: int

    def dataset(self) -> xarray.Dataset:
        data = self.source.measured
        sizes = sample_range(data, self.points)
        some = sorted({sizes[round(k)] for k in np.linspace(0, len(sizes) - 1, self.fitted)})
        return learning_curves(data, {"chain": self.source.chain}, sizes, FITS, self.seed, fitted=some)


@dataclass(frozen=True)
class Knowledge(_Experiment):
    """What levels of the teacher's knowledge gain, predicted and measured."""

    source: Source
    samples: int
    seed: int

    def dataset(self) -> xarray.Dataset:
        found = levels_on(self.source.measured.at(self.samples), self.source.chain, FITS, self.seed)
        names = [*GAINS, "total"]
        parts = {"predicted": found.gains, "measured": found.measured_gains}
        variables = {}
        for how, gains in parts.items():
            variables[how] = ("gain", [gains[name].mean for name in names])
            variables[f"{how}_standard_error"] = ("gain", [gains[name].standard_error for name in names])
        return xarray.Dataset(variables, {"gain": names}, {"samples": self.samples})


@dataclass(frozen=True)
class Chosen(_Experiment):
    """Choices by prediction and by cross-validation: their errors on new samples, and what they cost, on draws of n samples.

    ``features`` tanh features of digits take the place of the pixels, and both stages see them; 0 for the pixels themselves, of
    which the student sees half.
    """

    classes: tuple[str, ...]
    n: int
    draws: int
    seed: int
    features: int = 0
    candidates: int = 48
    refinements: int = 40

    def dataset(self) -> xarray.Dataset:
        found = [self._draw(k) for k in range(self.draws)]
        ways = ("prediction", "cross-validation")
        variables = {
            name: (("draw", "by"), [[one[way][k] for way in ways] for one in found])
            for k, name in enumerate(("error", "seconds"))
        }
        sizes = {"n": self.n, "features": self.features, "candidates": self.candidates}
        return xarray.Dataset(variables, {"by": list(ways)}, sizes)

    def _draw(self, k: int) -> dict[str, tuple[float, float]]:
        table = _table("digits", self.classes)
        rows = stratified_choice(table.y, self.n, np.random.default_rng([self.seed, k]))
        if self.features:
            X = random_features(table.X, "tanh", self.features, self.seed + k)
            seen = None
        else:
            varying = np.ptp(table.X[rows], axis=0) > 0
            X = table.X[:, varying]
            half = np.isin(np.flatnonzero(varying), table.half)
            seen = LinearMap(np.eye(X.shape[1])[half])
        chain = Chain.of([Estimator(CrossEntropy(), 1.0), Estimator(Distillation(), 0.1, features=seen)])
        data, everything = Measured(X[rows], table.y[rows]), Measured(X, table.y)
        rest = np.setdiff1d(np.arange(len(table.y)), rows)
        found = {}
        common = {"candidates": self.candidates, "seed": self.seed}
        for way in (partial(choose, refinements=self.refinements), cross_validate):
            choice = way(data, chain, OVER, **common)
            trainer = Trainer(Samples(X, table.y), everything, choice.chain)
            logits = trainer.logits(trainer.fit(rows)[1], rest)[:, -1]
            found[choice.method] = float(np.mean(table.y[rest] * logits <= 0.0)), choice.seconds
        return found


PARITY = Source("digits")
CANCER = Source("breast-cancer", covariances="per class", ridges=(0.1, 0.05))
PAIRS = tuple(Source("digits", classes, "per class") for classes in (("1", "8"), ("3", "8"), ("4", "9")))


@published("real-1", "Measured data: predicted test errors against real fits")
def predicted(effort: Effort) -> Plan:
    """Cross-fitted predictions and Gaussian formulas at settings all over ridges, T, chi and M, on five problems."""
    sources = {"parity": PARITY, "cancer": CANCER, **{f"pair_{''.join(one.classes)}": one for one in PAIRS}}
    work = {name: Scattered(source, 24, effort.seed) for name, source in sources.items()}

    def draw(parts: Mapping[str, xarray.Dataset]) -> Figure:
        figure = style.new_figure(style.PAGE_WIDTH, 4.6)
        panels = figure.subplots(2, 3).ravel()
        for panel, (name, source) in zip(panels, sources.items(), strict=False):
            predicted_against_fits(panel, parts[name])
            panel.set_title(source.title)
            panel.get_legend().remove()
        handles, labels = panels[0].get_legend_handles_labels()
        panels[-1].axis("off")
        panels[-1].legend(handles, labels, loc="center", title=f"24 settings each, {FITS} fits a setting")
        figure.suptitle(
            r"$\tilde\lambda$, $\lambda$, $\chi$, $T$, $M$ at random, a student with half of the columns; bars: standard errors",
            fontsize=_SAID,
        )
        return figure

    agreement = (
        f"{NO_PRINT}  Predictions follow the fits over a factor of ten in the error; the Gaussian formula is too optimistic, the "
        "more the smaller the error."
    )
    return Plan(work, draw, agreement)


@published("real-2", "Measured data: learning curves, and levels of the teacher's knowledge")
def curves(effort: Effort) -> Plan:
    """Test errors of teacher and student against M on digits and tumours; what levels of knowledge gain, predicted and fitted."""
    taught = Source("digits", ridges=(1.0, 0.05))
    work = {
        "parity": Learning(PARITY, 20, 6, effort.seed), "cancer": Learning(CANCER, 20, 6, effort.seed),
        "knowledge_parity": Knowledge(taught, 400, effort.seed), "knowledge_cancer": Knowledge(CANCER, 100, effort.seed),
    }  # fmt: skip

    def draw(parts: Mapping[str, xarray.Dataset]) -> Figure:
        figure = style.new_figure(style.PAGE_WIDTH, 4.8)
        panels = figure.subplots(2, 2)
        for k, (name, source) in enumerate((("parity", PARITY), ("cancer", CANCER))):
            learning_curves_of(panels[0, k], parts[name])
            panels[0, k].set_title(f"{source.title}, {_ridges(source)}")
            _draw_gains(panels[1, k], parts[f"knowledge_{name}"], {"parity": taught, "cancer": CANCER}[name])
        figure.suptitle(
            r"$\chi=1$, $T=2$, a student who sees half of the columns; bars and bands: one standard error" + "\n"
            f"above: predicted (thick), Gaussian formula (thin), {FITS} real fits (points)",
            fontsize=_SAID,
        )
        return figure

    agreement = (
        f"{NO_PRINT}  Which level helps and which hurts is predicted on both data, and by how much within the errors."
    )
    return Plan(work, draw, agreement)


def _ridges(source: Source) -> str:
    return rf"$\tilde\lambda={source.ridges[0]:g}$, $\lambda={source.ridges[1]:g}$"


def _draw_gains(axes: Axes, part: xarray.Dataset, source: Source) -> None:
    """Gains of the levels, predicted and fitted, with bars."""
    places = np.arange(part.sizes["gain"])
    for shift, how, colour, marker in ((-0.1, "predicted", style.BLUE, "o"), (0.1, "measured", style.RED, "s")):
        axes.errorbar(
            places + shift, part[how], part[f"{how}_standard_error"], ls="none", marker=marker, color=colour, elinewidth=0.8,
            label={"predicted": "predicted", "measured": f"{FITS} real fits"}[how],
        )  # fmt: skip
    axes.axhline(0.0, color=style.GREY, lw=0.7)
    axes.set_xticks(places, [str(name) for name in part.gain.values])
    axes.set(ylabel="gain of test error", title=f"$M={part.attrs['samples']}$, {_ridges(source)}")
    axes.legend(fontsize=6.5)


@published("real-3", "Measured data: choices by prediction and by cross-validation, and their cost")
def choices(effort: Effort) -> Plan:
    """Difference of the test errors on new samples, on five problems; seconds of a choice against the number of columns."""
    problems = {
        "150": Chosen((), 150, 10, effort.seed), "300": Chosen((), 300, 10, effort.seed), "600": Chosen((), 600, 10, effort.seed),
        "38": Chosen(("3", "8"), 120, 10, effort.seed), "18": Chosen(("1", "8"), 120, 10, effort.seed),
    }  # fmt: skip
    widths = (32, 64, 128, 256, 512)
    wide = {f"wide_{size}": Chosen((), 600, 3, effort.seed, size, 48, 0) for size in widths}
    words = ("parity\nn = 150", "parity\n300", "parity\n600", "3, 8\n120", "1, 8\n120")

    def draw(parts: Mapping[str, xarray.Dataset]) -> Figure:
        figure = style.new_figure(style.PAGE_WIDTH, 2.8)
        left, right = figure.subplots(1, 2)
        apart = [
            parts[name].error.sel(by="prediction") - parts[name].error.sel(by="cross-validation") for name in problems
        ]
        means = [float(one.mean()) for one in apart]
        bars = [float(one.std("draw", ddof=1)) / np.sqrt(one.sizes["draw"]) for one in apart]
        left.errorbar(range(len(means)), means, bars, ls="none", marker="o", color=style.BLUE)
        left.axhline(0.0, color=style.GREY, lw=0.7)
        left.set_xticks(range(len(means)), words)
        left.set_ylabel("test error: prediction minus\ncross-validation")
        for by, colour, marker in (("prediction", style.BLUE, "o"), ("cross-validation", style.RED, "s")):
            seconds = [float(parts[name].seconds.sel(by=by).median()) for name in wide]
            right.plot(widths, seconds, marker=marker, color=colour, label=by)
        style.log_ticks(right, "x", widths[0], widths[-1])
        right.set(yscale="log", xlabel="columns $p$ (tanh features, $n=600$)", ylabel="seconds of a choice")
        right.legend()
        figure.suptitle(
            r"digits; $\tilde\lambda$, $\lambda$, $\chi$ and $T$ chosen; left: 10 draws of $n$ samples, bars: one standard error; "
            "right: 48 points each, one core",
            fontsize=_SAID,
        )
        return figure

    agreement = (
        f"{NO_PRINT}  Both choose equally well within noise; seconds are of one core of one machine, of 48 points each."
    )
    return Plan({**problems, **wide}, draw, agreement)
