"""Self-distillation on noisy labels: optimal schedules, soft and hard pseudo-labels, transfer sets, ensembles of teachers.

Delta = 0.5 throughout.  The optimal schedules are those of K. Takanami, T. Takahashi and A. Sakata, "The effect of optimal
self-distillation in noisy Gaussian mixture model" (2025): label noise 0.3, every stage taught by the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import xarray
from matplotlib.figure import Figure

from figures.build import Effort, Plan, PrintedValue, Simulation, Work, curves, published, simulations
from figures.drawing import Data, Look, Panel, panels, said, shared_legend
from numerics.models import Chain, DataSet, Estimator, GaussianMixture
from numerics.plots import style
from numerics.plots.style import BLACK, BLUE, GREY, LINES, RED, YELLOW
from numerics.schedules import SQUARE, Schedule, optimal_schedule
from numerics.thresholds import bayes_error
from theory.losses import CrossEntropy, Distillation, PseudoLabels, SquareDistillation

DELTA, NOISE = 0.5, 0.3
BALANCED, UNBALANCED = 0.5, 0.4
BOUND = Look(GREY, LINES[0], width=1.8)
BIAS_SPREAD = (
    r"(b) the error is convex in the bias, which spreads by $9/N$ after five steps: points lie above the limit"
)
CURVES = (
    Look(BLACK, LINES[0], "o"),
    Look(BLUE, LINES[1], "s"),
    Look(RED, LINES[2], "^"),
    Look(YELLOW, LINES[3], "D"),
)


@lru_cache(maxsize=256)
def _schedule(data: GaussianMixture, stages: tuple[int, ...], loss: str, hard: bool, bias: float | None) -> Schedule:
    """Kept, because curves, simulated points and predictions meet at the same values of alpha."""
    return optimal_schedule(data, stages, loss, hard=hard, bias=bias)


@dataclass(frozen=True)
class ScheduledCurve:
    """Test error of optimal self-distillation along alpha; "stage" is the number of distillation steps."""

    data: GaussianMixture
    stages: tuple[int, ...]
    over: Mapping[str, np.ndarray]
    loss: str = "square"
    hard: bool = False
    bias: float | None = None

    def at(self, alpha: float) -> Schedule:
        """Schedules at one alpha."""
        return _schedule(replace(self.data, alpha=float(alpha)), self.stages, self.loss, self.hard, self.bias)

    def tasks(self) -> list[Callable[[], object]]:
        (values,) = self.over.values()
        return [lambda value=value: self.at(value) for value in values]

    def join(self, pieces: Sequence) -> xarray.Dataset:
        dims = ("stage", "alpha")
        columns = [[(step.test_error, step.converged) for step in schedule.steps] for schedule in pieces]
        variables = {
            "test_error": (dims, np.array([[error for error, _ in column] for column in columns]).T),
            "converged": (dims, np.array([[good for _, good in column] for column in columns]).T),
        }
        for path in pieces[0][-1].parameters:  # those of the longest chain
            variables[f"optimal_{path}"] = ("alpha", [schedule[-1].parameters[path] for schedule in pieces])
        names = [str(stages - 1) for stages in self.stages]
        return xarray.Dataset(variables, {"stage": names, **self.over}, {"data": repr(self.data), "loss": self.loss})


@dataclass(frozen=True)
class ScheduledSimulation(Simulation):
    """Finite systems with the optimal parameters of one length of chain."""

    curve: ScheduledCurve | None = None
    length: int = 1

    def problem(self, index: Sequence[int]) -> tuple[GaussianMixture, Chain]:
        """What is simulated at one point."""
        alpha = float(self.over["alpha"][index[0]])
        return replace(self.data, alpha=alpha), self.curve.at(alpha)[self.curve.stages.index(self.length)].chain

    @classmethod
    def of(cls, curve: ScheduledCurve, length: int, alpha: np.ndarray, effort: Effort) -> ScheduledSimulation:
        """Simulation of the stages of one chain of a curve, at some of its values of alpha."""
        stages = [Estimator(SQUARE, 1.0, name=f"step{k}") for k in range(length)]  # names; the losses are the curve's
        return cls(curve.data, Chain.of(stages), {"alpha": alpha}, effort, curve=curve, length=length)


def _alphas(low: float, high: float, count: int, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Values on a logarithmic scale, and those among them that are simulated."""
    values = np.round(np.geomspace(low, high, count), 4)
    return values, values[2::every]


def _scheduled(panel: Panel, part: str, stage: str, look: Look, label: str, simulated: str) -> None:
    """A curve, and the last stage of its simulation."""
    panel.curve(part, "alpha", look, label, stage=stage)
    if simulated in panel.data:
        panel.points(simulated, "alpha", look)
        panel.entries[-1][0].set(marker=look.marker, markerfacecolor=look.face, markeredgewidth=0.6)


def _log_alpha(panel: Panel, low: float, high: float, words: str, where: float = 0.96) -> None:
    style.log_ticks(panel.axes, "x", low, high)
    panel.axes.set_xlabel(style.parameter_label("alpha"))
    panel.axes.annotate(words, (where, 0.95), xycoords="axes fraction", ha="right", va="top")


def _printed(steps: int, ridges: Sequence[float], value: float) -> PrintedValue:
    """A value read off the published plot at alpha = 10, balanced classes; the ridges are optimal ones."""
    first, *others = ridges
    chain = [Estimator(SQUARE, first, name="step0")]
    chain += [
        Estimator(SquareDistillation(gain=1 + ridge / 7.5), ridge, name=f"step{k + 1}")
        for k, ridge in enumerate(others)
    ]
    data = GaussianMixture(10.0, BALANCED, DELTA, NOISE)
    return PrintedValue(f"{steps} steps, alpha 10", data, Chain.of(chain), f"step{steps}.test_error", value, 2e-3)


@published("self-distillation-steps", "Optimal self-distillation with the square loss: 0, 1, 2 and 5 steps")
def steps(effort: Effort) -> Plan:
    """Test error against alpha, all ridges chosen best, for balanced and slightly unbalanced classes with noisy labels."""
    low, high = 0.5, 10.0
    alpha, points = _alphas(low, high, 13, 4)
    lengths = (1, 2, 3, 6)
    letters = {"balanced": BALANCED, "unbalanced": UNBALANCED}
    # A balanced problem wants no bias; a learned one would multiply the imbalance of a finite sample by every stage's gain.
    lines = {
        name: ScheduledCurve(
            GaussianMixture(1.0, rho, DELTA, NOISE), lengths, {"alpha": alpha}, bias=0.0 if rho == BALANCED else None
        )
        for name, rho in letters.items()
    }
    simulated = {
        f"simulated_{name}_{length}": ScheduledSimulation.of(curve, length, points, effort)
        for name, curve in lines.items()
        for length in lengths
    }

    def draw(data: Data) -> Figure:
        figure, found = panels(data, 1, 2, 3.0)
        for panel, (name, rho) in zip(found, letters.items(), strict=True):
            for length, look in zip(lengths, CURVES, strict=True):
                count = length - 1
                label = "no distillation" if count == 0 else f"{count} step{'s' * (count > 1)}"
                _scheduled(panel, name, str(count), look, label, f"simulated_{name}_{length}")
            fine = np.geomspace(low, high, 100)
            panel.function(fine, bayes_error(fine, rho, DELTA), BOUND, "Bayes error of clean labels")
            _log_alpha(panel, low * 0.93, high * 1.07, rf"$\rho={rho:g}$")
        found[0].axes.set_ylabel("test error")
        fixed = rf"$\Delta={DELTA}$, label noise $\theta={NOISE}$, square loss, all ridges optimal (up to 100)"
        shared_legend(figure, found, 5, said(data, fixed, BIAS_SPREAD))
        return figure

    return Plan(
        {**lines, **simulations(effort, **simulated)},
        draw,
        "The values of the published plot are met with balanced classes, rho = 0.5: 0.110, 0.089 and 0.086 at alpha = 10 for 0, "
        "1 and 5 steps, read to 0.002.  Ridges were searched up to 100; without that limit most would be infinite for balanced "
        "classes, with errors of 0.1085 and 0.0885 without and after one step.",
        [
            _printed(0, (100.0,), 0.110),
            _printed(1, (100.0, 100.0), 0.089),
            _printed(5, (73.0, 92.4, 78.0, 2.01, 2.01, 2.01), 0.086),
        ],
    )


@published("self-distillation-labels", "Soft against hard pseudo-labels, at optimal parameters")
def labels(effort: Effort) -> Plan:
    """One step with soft or hard targets, square loss and cross-entropy, all parameters chosen best."""
    low, high = 0.5, 30.0
    alpha, points = _alphas(low, high, 17, 6)
    data = GaussianMixture(1.0, UNBALANCED, DELTA, NOISE)
    losses = {"square": "square loss", "cross-entropy": "cross-entropy"}
    lines, simulated = {}, {}
    for loss in losses:
        for kind, hard in (("soft", False), ("hard", True)):
            part = f"{loss.replace('-', '_')}_{kind}"
            lines[part] = ScheduledCurve(data, (1, 2), {"alpha": alpha}, loss, hard)
            simulated[f"simulated_{part}"] = ScheduledSimulation.of(lines[part], 2, points, effort)

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 3.0, sharey=True)
        for panel, (loss, words) in zip(found, losses.items(), strict=True):
            part = loss.replace("-", "_")
            panel.curve(f"{part}_soft", "alpha", CURVES[0], "no distillation", stage="0")
            _scheduled(panel, f"{part}_soft", "1", CURVES[1], "soft targets", f"simulated_{part}_soft")
            _scheduled(panel, f"{part}_hard", "1", CURVES[2], "hard pseudo-labels", f"simulated_{part}_hard")
            fine = np.geomspace(low, high, 100)
            panel.function(fine, bayes_error(fine, UNBALANCED, DELTA), BOUND, "Bayes error of clean labels")
            _log_alpha(panel, low * 0.93, high * 1.07, words)
        found[0].axes.set_ylabel("test error")
        fixed = rf"$\rho={UNBALANCED}$, $\Delta={DELTA}$, label noise $\theta={NOISE}$, all parameters optimal"
        shared_legend(figure, found, 4, said(parts, fixed))
        return figure

    return Plan(
        {**lines, **simulations(effort, **simulated)},
        draw,
        "Nothing of these settings was at hand in print (rho = 0.4).  Hard pseudo-labels denoise: with the square loss they are "
        "better than soft targets beyond alpha = 2.5, worse below.  With cross-entropy they are the limit T = 0 of soft targets, "
        "which are as good at large alpha, with a low best temperature, and better at small alpha.",
    )


@published("self-distillation-transfer", "A student on unlabelled samples that its teacher never saw")
def transfer(effort: Effort) -> Plan:
    """Errors of teacher and student against the size alpha_2 of the transfer set, at two levels of label noise."""
    low, high = 0.1, 30.0
    sizes = np.unique(np.concatenate((np.geomspace(low, high, 80), np.linspace(0.7, 1.3, 25))))
    points = np.array([0.2, 0.5, 1.0, 2.5, 10.0])
    noises = {"clean": 0.0, "noisy": NOISE}
    students = {
        "soft_small": (Estimator(Distillation(), 1e-3, sets="fresh"), r"soft targets, $\lambda=10^{-3}$"),
        "soft": (Estimator(Distillation(), 0.3, sets="fresh"), r"soft targets, $\lambda=0.3$"),
        "hard": (Estimator(PseudoLabels(), 0.3, sets="fresh"), r"hard pseudo-labels, $\lambda=0.3$"),
    }
    teacher = Estimator(CrossEntropy(), 1.0)
    work: dict[str, Work] = {}
    for name, noise in noises.items():
        data = GaussianMixture(3.0, UNBALANCED, DELTA, noise, (DataSet("fresh", 1.0),))
        for kind, (student, _) in students.items():
            chain = Chain.of([teacher, student])
            work |= curves(effort, data, chain, {"fresh.alpha": sizes}, points, f"{name}_{kind}")

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 3.0)
        for panel, (name, noise) in zip(found, noises.items(), strict=True):
            teachers = parts[f"{name}_soft"].test_error.sel(stage="teacher")
            panel.level(float(teachers[0]), CURVES[0], r"teacher, $\alpha=3$, $\tilde{\lambda}=1$")
            for (kind, (_, label)), look in zip(students.items(), CURVES[1:], strict=True):
                panel.curve(f"{name}_{kind}", "fresh.alpha", look, label, simulated=f"simulated_{name}_{kind}")
            style.log_ticks(panel.axes, "x", low, high)
            panel.axes.xaxis.set_major_locator(style.FixedLocator([0.1, 0.3, 1, 3, 10, 30]))
            panel.axes.xaxis.set_major_formatter(style.FuncFormatter(lambda value, _: f"{value:g}"))
            panel.axes.set_xlabel(r"transfer samples per input, $\alpha_2=M_2/N$")
            panel.axes.annotate(
                rf"label noise $\theta={noise:g}$", (0.96, 0.95), xycoords="axes fraction", ha="right", va="top"
            )
        found[0].axes.set_ylabel("test error")
        shared_legend(figure, found, 4, said(parts, rf"$\rho={UNBALANCED}$, $\Delta={DELTA}$, $T=1$, $\chi=1$"))
        return figure

    return Plan(
        work,
        draw,
        "Settings of our choice (rho = 0.4, Delta = 0.5, teacher at alpha = 3); nothing was printed.  A student with a small "
        "ridge has copied its teacher from alpha_2 = 1 on, where targets determine the weights.  A larger ridge makes it worse "
        "than a clean teacher, but at moderate alpha_2 better than a noisy one.",
    )


@published("self-distillation-ensemble", "Students of 1, 2 and 4 teachers on random halves of the inputs")
def ensemble(effort: Effort) -> Plan:
    """Test error of a dense student against alpha, for ensembles of teachers with different random masks or ridges."""
    low, high = 0.3, 10.0
    alpha = np.geomspace(low, high, 80)
    points = np.array([0.4, 1.0, 2.5, 6.0])
    data = GaussianMixture(1.0, UNBALANCED, DELTA, 0.1)
    counts = (1, 2, 4)
    ridges = (0.03, 0.3, 3.0, 30.0)

    def chain(count: int, masks: bool) -> Chain:
        """Teachers on halves of the inputs drawn at random, or dense ones with different ridges, and their student."""
        teachers = [
            Estimator(SQUARE, 0.1, 0.5, f"teacher{k + 1}", mask_overlap=0.5 if k else None)
            if masks
            else Estimator(SQUARE, ridges[k], name=f"teacher{k + 1}")
            for k in range(count)
        ]
        taught = SquareDistillation(teacher=tuple(range(1, count + 1)))
        return Chain.of([*teachers, Estimator(taught, 0.1, name="student")])

    work: dict[str, Work] = {}
    for kind, masks in (("masks", True), ("ridges", False)):
        for count in counts:
            work |= curves(effort, data, chain(count, masks), {"alpha": alpha}, points, f"{kind}_{count}")

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 3.0)
        words = {
            "masks": r"teachers on random halves, $\tilde{\lambda}=0.1$",
            "ridges": r"$\tilde{\lambda}=0.03, 0.3, 3, 30$",
        }
        for panel, (kind, text) in zip(found, words.items(), strict=True):
            for count, look in zip(counts, CURVES[1:], strict=True):
                label = f"student of {count} teacher{'s' * (count > 1)}"
                panel.curve(f"{kind}_{count}", "alpha", look, label, simulated=f"simulated_{kind}_{count}")
            first = {"stage": "teacher1", "simulated": f"simulated_{kind}_1"}
            panel.curve(f"{kind}_1", "alpha", CURVES[0], "first teacher alone", **first)
            panel.function(alpha, bayes_error(alpha, UNBALANCED, DELTA), BOUND, "Bayes error of clean labels")
            _log_alpha(panel, low, high, text)
        found[0].axes.set_ylabel("test error")
        fixed = (
            rf"$\rho={UNBALANCED}$, $\Delta={DELTA}$, label noise $\theta=0.1$, square loss, student's $\lambda=0.1$"
        )
        shared_legend(figure, found, 3, said(parts, fixed))
        return figure

    return Plan(
        work,
        draw,
        "Settings of our choice (rho = 0.4, Delta = 0.5, label noise 0.1, square loss, student's ridge 0.1); nothing was printed. "
        "Every teacher's mask is independent of the one before.",
    )
