"""Anatomy of distillation: bounds of a student's error, how they order teachers, calibration, inheritance.

Delta = 1; cross-entropy teachers, students of pure distillation at T = 1, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import xarray
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from figures.build import Effort, Plan, Tuned, Tuning, Work, curves, published
from figures.drawing import Data, Look, Panel, heading, panels, said, shared_legend
from numerics.anatomy.bounds import oracle
from numerics.anatomy.calibration import curve, reliability
from numerics.anatomy.inheritance import optimal_teacher
from numerics.models import Chain, Estimator, GaussianMixture
from numerics.plots import style
from numerics.plots.style import BLACK, BLUE, GREY, LINES, RED, YELLOW
from numerics.simulation.measure import MeasuredStage
from numerics.simulation.run import simulate
from numerics.solver import solve
from numerics.sweeps.grid import ERROR_SUFFIX, Grid
from numerics.thresholds import bayes_error
from theory.losses import CrossEntropy, Distillation

RIDGES = np.geomspace(1e-3, 100.0, 61)
"""Of the teacher."""

MEASURED = np.geomspace(1e-2, 100.0, 5)
"""Those that are simulated."""

TEACHER, STUDENT = Look(GREY, LINES[1], "s"), Look(BLACK, LINES[0], "o")
THIRD, FOURTH = Look(BLUE, LINES[2], "^"), Look(RED, LINES[3], "D")
FIFTH = Look(YELLOW, LINES[1], "v")

Grids = Mapping[str, np.ndarray]


def _chain(student_ridge: float, mixing: float = 1.0, eta: float = 1.0, bias: float | None = None) -> Chain:
    student = Estimator(Distillation(mixing), student_ridge, eta=eta, bias=bias)
    return Chain.of([Estimator(CrossEntropy(), 1.0, bias=bias), student])


def _wanted_bias(rho: float) -> float | None:
    """Balanced classes want none: one that is learned is noise, next to logits that a large ridge makes small."""
    return 0.0 if rho == 0.5 else None


def _ridge_axis(panel: Panel, words: str, low: float = RIDGES[0], high: float = RIDGES[-1]) -> None:
    style.log_ticks(panel.axes, "x", low, high)
    panel.axes.set_xlabel(style.parameter_label("teacher.ridge"))
    panel.axes.annotate(words, (0.96, 0.95), xycoords="axes fraction", ha="right", va="top")


@published("anatomy-bound", "How tight bounds of the student's error are")
def bound(effort: Effort) -> Plan:
    """Ideal-joint-classifier bound and disagreement bound over the student's error, along samples and the teacher's ridge."""
    over = {"alpha": np.geomspace(0.3, 10.0, 31), "teacher.ridge": np.geomspace(1e-2, 100.0, 31)}
    shown = {
        "joint_classifier_bound": "ideal joint classifier",
        "disagreement_bound": "teacher's error plus disagreement",
    }
    data = GaussianMixture(1.0, 0.3, 1.0, 0.1)
    work: dict[str, Work] = {"map": Grid(data, _chain(0.1, 0.5), over, ("test_error", *shown))}

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 2.9, sharey=True)
        student = parts["map"].sel(stage="student")
        for panel, (name, words) in zip(found, shown.items(), strict=True):
            ratio = (student[name] / student.test_error).transpose("teacher.ridge", "alpha")
            mesh = panel.axes.pcolormesh(
                ratio.alpha, ratio["teacher.ridge"], ratio, shading="gouraud", cmap="viridis",
                norm=LogNorm(float(ratio.min()), float(ratio.max())),
            )  # fmt: skip
            bar = figure.colorbar(mesh, ax=panel.axes, pad=0.02, aspect=28, format="%.3g")
            low, high = float(ratio.min()), float(ratio.max())
            bar.set_ticks([round(value, 2) for value in np.geomspace(low * 1.01, high / 1.01, 5)])
            bar.minorticks_off()
            bar.set_label("bound / test error")
            for axis, path in (("x", "alpha"), ("y", "teacher.ridge")):
                style.log_ticks(panel.axes, axis, over[path][0], over[path][-1])
            panel.axes.set_xlabel(style.parameter_label("alpha"))
            panel.axes.set_title(words, fontsize=8)
        found[0].axes.set_ylabel(style.parameter_label("teacher.ridge"))
        fixed = r"$\rho=0.3$, $\Delta=1$, $\theta=0.1$, $\lambda=0.1$, $\eta=1$, $\chi=0.5$, $T=1$"
        heading(figure, fixed + "; each bound over the student's test error")
        return figure

    return Plan(
        work,
        draw,
        "Settings of our choice (rho = 0.3, label noise 0.1, mixing 0.5, student's ridge 0.1).  The ideal-joint-classifier bound "
        "contains the student's error and the teacher's twice, so that it is never tight; disagreement is within a factor of two.",
    )


@published("anatomy-ordering", "Whether bounds tell which teacher is best")
def ordering(effort: Effort) -> Plan:
    """The student's error along the teacher's ridge beside what is to predict it, for balanced and unbalanced classes."""
    names = ("test_error", "joint_classifier_bound", "disagreement_bound", "kuiper_distance")
    panels_of = {"balanced": 0.5, "unbalanced": 0.2}
    work: dict[str, Work] = {}
    for part, rho in panels_of.items():
        data = GaussianMixture(2.0, rho, 1.0)
        chain = _chain(0.1, bias=_wanted_bias(rho))
        work |= curves(effort, data, chain, {"teacher.ridge": RIDGES}, MEASURED, part, names)

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 3.0)
        for panel, (part, rho) in zip(found, panels_of.items(), strict=True):
            points = f"simulated_{part}"
            panel.curve(part, "teacher.ridge", TEACHER, "teacher's error", stage="teacher", simulated=points)
            for name, look, label in (
                ("test_error", STUDENT, "student's error"),
                ("disagreement_bound", THIRD, "teacher's error plus disagreement"),
                ("joint_classifier_bound", FOURTH, "ideal-joint-classifier bound"),
                ("kuiper_distance", FIFTH, "its distance of the logits' laws"),
            ):
                panel.curve(part, "teacher.ridge", look, label, name=name, simulated=points)
            panel.axes.set_yscale("log")
            panel.axes.set_ylim(3e-2, 2.0)
            _ridge_axis(panel, rf"$\rho={rho:g}$")
        found[0].axes.set_ylabel("probability")
        shared_legend(
            figure,
            found,
            3,
            said(parts, r"$\alpha=2$, $\Delta=1$, student's ridge $\lambda=0.1$, $\eta=1$, $\chi=1$, $T=1$"),
        )
        return figure

    return Plan(
        work,
        draw,
        "Settings of our choice (alpha = 2, student's ridge 0.1).  Balanced: all of them order teachers much as the student's "
        "error does.  Unbalanced: the bound prefers over-regularised teachers, whose logits are nearly the student's, and the best "
        "student comes from an under-regularised one.",
    )


@dataclass(frozen=True)
class ReliabilityCurves:
    """P(y = 1 given h) of the stages of one chain, on fresh and on training samples, along the logit h."""

    data: GaussianMixture
    chain: Chain
    over: Grids

    quick: ClassVar[bool] = True

    def tasks(self) -> list[Callable[[], object]]:
        return [self._curves]

    def _curves(self) -> np.ndarray:
        (h,) = self.over.values()
        solution = solve(self.data, self.chain, throw=True)
        return np.array([[curve(stage, h, on) for stage in solution.stages] for on in ("test", "training")])

    def join(self, pieces: Sequence) -> xarray.Dataset:
        (path,) = self.over
        variables = {name: (("stage", path), pieces[0][k]) for k, name in enumerate(("test", "training"))}
        coordinates = {"stage": list(self.chain.names), **self.over}
        return xarray.Dataset(variables, coordinates, {"data": repr(self.data), "chain": repr(self.chain)})


SAMPLES = "test", "training"


@dataclass(frozen=True)
class BinnedReliability:
    """The same in bins of the logit: how often the label is 1, and the mean output, from theory."""

    data: GaussianMixture
    chain: Chain
    edges: np.ndarray

    quick: ClassVar[bool] = True

    def tasks(self) -> list[Callable[[], object]]:
        return [self._bins]

    def _bins(self) -> dict[str, np.ndarray]:
        stages = solve(self.data, self.chain, throw=True).stages
        found = {}
        for on in SAMPLES:
            bins = [reliability(stage, self.edges, on) for stage in stages]
            found[on], found[f"{on}_output"] = (np.array([getattr(one, name) for one in bins]) for name in OF_BINS)
        return found

    def join(self, pieces: Sequence) -> xarray.Dataset:
        variables = {name: (("stage", "bin"), values) for name, values in pieces[0].items()}
        coordinates = {"stage": list(self.chain.names), "bin": np.arange(len(self.edges) - 1)}
        return xarray.Dataset(variables, coordinates, self.attributes())

    def axes(self) -> Grids:
        """None: bins belong together."""
        return {}

    def along_axes(self, over: Grids) -> BinnedReliability:
        """Itself."""
        return self

    def attributes(self) -> dict[str, object]:
        return {"data": repr(self.data), "chain": repr(self.chain)}


OF_BINS = "observed", "predicted"


@dataclass(frozen=True)
class MeasuredReliability(BinnedReliability):
    """The same in finite systems, samples of all runs in one bin; on fresh samples given the weights of each run."""

    effort: Effort

    quick: ClassVar[bool] = False
    simulated: ClassVar[bool] = True

    def _bins(self) -> dict[str, np.ndarray]:
        def further(stages: Sequence[MeasuredStage]) -> dict[str, np.ndarray]:
            bins = [[reliability(stage, self.edges, on) for stage in stages] for on in SAMPLES]
            share = np.array([[one.share for one in row] for row in bins])
            parts = {name: np.array([[getattr(one, name) for one in row] for row in bins]) for name in OF_BINS}
            return {"share": share, **{name: np.nan_to_num(share * part) for name, part in parts.items()}}

        effort = self.effort
        runs = simulate(self.data, self.chain, effort.n_inputs, effort.n_runs, effort.seed, further=further).runs
        found, share = {}, runs["share"]
        for name, suffix in zip(OF_BINS, ("", "_output"), strict=True):
            mean = runs[name].mean(axis=0) / share.mean(axis=0)
            spread = (runs[name] - mean * share).std(axis=0, ddof=1) / np.sqrt(len(share)) / share.mean(axis=0)
            for k, on in enumerate(SAMPLES):
                found[on + suffix], found[on + suffix + ERROR_SUFFIX] = mean[k], spread[k]
        return found

    def attributes(self) -> dict[str, object]:
        effort = self.effort
        return {
            **super().attributes(),
            "n_inputs": effort.n_inputs,
            "n_runs": effort.n_runs,
            "seed": effort.seed,
        }


@published("anatomy-calibration", "Calibration of teacher and student, on fresh and on training samples")
def calibration(effort: Effort) -> Plan:
    """Reliability of teacher and student along the logit, and calibration errors along the teacher's ridge."""
    data, chain = GaussianMixture(2.0, 0.3, 1.0, 0.1), _chain(0.1, eta=0.6)
    names = ("calibration_error", "top_label_calibration_error", "tempered_calibration_error")
    logits = np.linspace(-3.0, 3.0, 121)
    work: dict[str, Work] = {"reliability": ReliabilityCurves(data, chain, {"logit": logits})}
    if effort.n_runs:
        outputs = np.linspace(0.1, 0.9, 9)
        edges = np.log(outputs / (1.0 - outputs))
        work["simulated_reliability"] = MeasuredReliability(data, chain, edges, effort)
        work["predicted_simulated_reliability"] = BinnedReliability(data, chain, edges)
    work |= curves(effort, data, chain, {"teacher.ridge": RIDGES}, MEASURED, "errors", names)

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 3, 2.8)
        left, teacher, student = found
        output = 1.0 / (1.0 + np.exp(-logits))
        left.axes.plot([0, 1], [0, 1], color=GREY, lw=0.7, zorder=1)
        for stage, colour, marker in (("teacher", BLUE, "s"), ("student", RED, "o")):
            for name, line in (("test", "-"), ("training", (0, (4, 1.5)))):
                look = Look(colour, line)
                values = parts["reliability"][name].sel(stage=stage).values
                left.function(output, values, look, f"{stage}, {name}")
                if "simulated_reliability" in parts:
                    dots = parts["simulated_reliability"].sel(stage=stage)
                    left.dots(
                        dots[f"{name}_output"],
                        dots[name],
                        dots[name + ERROR_SUFFIX],
                        Look(colour, line, marker, name == "test", size=2.8),
                        dots.attrs["n_runs"],
                    )
        left.axes.annotate(r"$\tilde\lambda=1$", (0.04, 0.95), xycoords="axes fraction", va="top")
        left.axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=r"output $\sigma(h)$", ylabel=r"$P(y=1\,|\,h)$")
        left.legend(loc="lower right", fontsize=6)
        words = ("of P(y=1)", "of the top label", "of P(y=1) at the calibrating temperature")
        for panel, stage in ((teacher, "teacher"), (student, "student")):
            for name, look, label in zip(names, (STUDENT, THIRD, FOURTH), words, strict=True):
                panel.curve(
                    "errors", "teacher.ridge", look, label, stage=stage, name=name, simulated="simulated_errors"
                )
            _ridge_axis(panel, stage)
            panel.axes.set_ylim(0, 1.15 * float(parts["errors"]["calibration_error"].sel(stage=stage).max()))
        teacher.axes.set_ylabel("calibration error")
        shared_legend(
            figure,
            [teacher, student],
            3,
            said(
                parts,
                r"$\alpha=2$, $\rho=0.3$, $\Delta=1$, $\theta=0.1$, student's ridge $\lambda=0.1$, $\eta=0.6$, $\chi=1$, $T=1$",
            ),
        )
        return figure

    return Plan(
        work,
        draw,
        "Settings of our choice (alpha = 2, rho = 0.3, label noise 0.1, student's ridge 0.1, eta = 0.6; left: teacher's "
        "ridge 1, where outputs are underconfident, more so on training samples, with the labels that were trained on; points are "
        "bins of the output, filled on fresh samples).",
    )


@published("anatomy-inheritance", "What a student inherits from the way its teacher was trained")
def inherited(effort: Effort) -> Plan:
    """Student's error along the teacher's ridge, beside the students of the optimal teacher and of the true probabilities."""
    panels_of = {"balanced": (0.5, 0.0), "unbalanced": (0.2, 0.1)}
    work: dict[str, Work] = {}
    once = {"alpha": np.array([2.0])}
    for part, (rho, noise) in panels_of.items():
        data, chain = GaussianMixture(2.0, rho, 1.0, noise), _chain(0.1, bias=_wanted_bias(rho))
        work |= curves(effort, data, chain, {"teacher.ridge": RIDGES}, MEASURED, part)
        student = chain[1]
        ideal = optimal_teacher(data, chain)
        ideal = replace(ideal, bias=round(ideal.bias, 12))  # stamps must not depend on the last digits
        work[f"{part}_optimal"] = Grid(data, Chain.of([ideal, student]), once, ("test_error",))
        work[f"{part}_oracle"] = Grid(data, Chain.of([oracle(data), student]), once, ("test_error",))
        work[f"{part}_best"] = Tuned(data, chain, once, Tuning({"teacher.ridge": (1e-3, 1e2)}, "student.test_error"))

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 3.0)
        for panel, (part, (rho, noise)) in zip(found, panels_of.items(), strict=True):
            points = f"simulated_{part}"
            panel.curve(part, "teacher.ridge", TEACHER, "teacher", stage="teacher", simulated=points)
            panel.curve(part, "teacher.ridge", STUDENT, "student", simulated=points)
            for kind, look, label in (
                ("best", Look(BLACK, LINES[3], width=0.8), "best student along this line"),
                ("optimal", Look(BLUE, LINES[2]), "student of the best Hebbian teacher"),
                ("oracle", Look(RED, LINES[1]), "student of the true probabilities"),
            ):
                panel.level(float(parts[f"{part}_{kind}"].test_error[-1, 0]), look, label)
            panel.level(
                float(bayes_error(2.0, rho, 1.0)), Look(GREY, LINES[0], width=1.8), "Bayes error of clean labels"
            )
            _ridge_axis(panel, rf"$\rho={rho:g}$, $\theta={noise:g}$")
        found[0].axes.set_ylabel("test error")
        shared_legend(
            figure,
            found,
            3,
            said(parts, r"$\alpha=2$, $\Delta=1$, student's ridge $\lambda=0.1$, $\eta=1$, $\chi=1$, $T=1$"),
        )
        return figure

    return Plan(
        work,
        draw,
        "Settings of our choice (alpha = 2, student's ridge 0.1).  The teacher of least error is not the best one: the scale of "
        "its logits matters.  The true probabilities know the class means: their student is better than the Bayes error of labels.",
    )
