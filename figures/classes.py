"""Many classes: temperature and similarity, few samples, a class that is missing, two thresholds.

Settings of our choice, after the experiments of Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import xarray
from matplotlib.figure import Figure

from figures.build import Effort, Plan, Work, curves, published
from figures.drawing import Data, Look, panels, said, shared_legend
from numerics.classes.corrections import best_bias
from numerics.classes.separability import complete_separability_threshold, maximum_likelihood_threshold
from numerics.models import Chain, ClassMixture, ClassSet, Estimator, orthogonal_means, similar_pairs
from numerics.models.parameters import with_parameter
from numerics.plots import style
from numerics.plots.style import BLACK, BLUE, LINES, RED, YELLOW
from numerics.solver import solve
from theory.losses import CrossEntropy, Distillation

LOOKS = (Look(BLACK, LINES[0], "o"), Look(BLUE, LINES[1], "s"), Look(RED, LINES[2], "^"), Look(YELLOW, LINES[3], "D"))
INPUTS, RUNS = 300, 24
"""Size of the simulations: softmax fits of several classes."""

ACCURACY = 1e-4
"""Of test errors: less than a picture shows."""

TEMPERATURES = np.geomspace(0.5, 20.0, 14)


@published("classes-1", "Temperature and the similarity of classes")
def temperature(effort: Effort) -> Plan:
    """Test error of a student against the temperature of its targets, for two pairs of classes that are more or less alike."""
    effort, similarities, alphas = effort.limited(INPUTS, RUNS), (0.0, 0.6, 0.9), (1.0, 4.0)
    chain = Chain.of(
        [Estimator(CrossEntropy(), 0.01), Estimator(Distillation(temperature_squared=True), 0.01, eta=0.5)]
    )
    work: dict[str, Work] = {}
    for alpha in alphas:
        for s in similarities:
            data, over = (
                ClassMixture(alpha, gram=similar_pairs(4, s), delta=0.25),
                {"student.temperature": TEMPERATURES},
            )
            work |= curves(effort, data, chain, over, np.array([1.0, 3.0, 10.0]), f"{alpha:g}_{s:g}", rtol=ACCURACY)

    def draw(parts: Data) -> Figure:
        figure, (panel, change) = panels(parts, 1, 2, 2.9)
        for s, look in zip(similarities, LOOKS, strict=False):
            part = f"4_{s:g}"
            panel.curve(part, "student.temperature", look, f"overlap $s={s:g}$", simulated=f"simulated_{part}")
            teacher = float(parts[part].test_error.sel(stage="teacher")[0])
            panel.level(teacher, replace(look, line=LINES[2], width=0.6), None)
            for alpha, width in ((4, 1.2), (1, 0.5)):
                error = parts[f"{alpha}_{s:g}"].test_error.sel(stage="student")
                at_one = float(error.interp({"student.temperature": 1.0}))
                shown = replace(look, width=width)
                change.function(_temperatures(error), 100.0 * (error.values / at_one - 1.0), shown, None)
        for one in (panel, change):
            style.log_ticks(one.axes, "x", 0.5, 20.0)
            one.axes.set_xlabel(style.parameter_label("student.temperature"))
        panel.axes.set_ylabel("test error of the student")
        change.axes.set_ylabel("change relative to $T=1$ (%)")
        fixed = (
            r"$K=4$, two pairs of similar classes, $\Delta=0.25$, $\tilde{\lambda}=0.01$; "
            r"student: $\lambda=0.01$, $\eta=0.5$, $\chi=1$, soft term times $T^2$"
        )
        lines = r"(a) $\alpha=4$, thin lines: the teacher; (b) thick lines: $\alpha=4$, thin ones: $\alpha=1$"
        shared_legend(figure, [panel], 3, said(parts, fixed, lines))
        return figure

    return Plan(
        work, draw,
        "With the soft term kept at its size by T^2, temperature changes the error by one or two per cent.  The best is near 2, "
        "or nearly any where samples are few, and hardly depends on how alike the classes are.",
    )  # fmt: skip


@published("classes-2", "Soft targets as a regulariser where samples are few")
def few_samples(effort: Effort) -> Plan:
    """Test error of a student of few samples against its ridge: on their labels, and on what a teacher of many says of them."""
    effort = effort.limited(INPUTS, RUNS)
    kinds = {
        "hard": (CrossEntropy(), "labels"),
        "soft": (Distillation(), "soft targets, $T=1$"),
        "warm": (Distillation(temperature=3.0, temperature_squared=True), "soft targets, $T=3$"),
        "mixed": (Distillation(0.5, 3.0, temperature_squared=True), r"both, $\chi=1/2$, $T=3$"),
    }
    teacher, ridges = Estimator(CrossEntropy(), 0.3), np.geomspace(1e-3, 1.0, 14)
    work: dict[str, Work] = {}
    shares = (0.3, 1.5)
    for alpha in shares:
        data = ClassMixture(6.0, gram=orthogonal_means(3), delta=0.5, further=(ClassSet("few", alpha),))
        for kind, (loss, _) in kinds.items():
            chain = Chain.of([teacher, Estimator(loss, 0.1, sets="few")])
            points = np.array([0.003, 0.03, 0.3])
            work |= curves(effort, data, chain, {"student.ridge": ridges}, points, f"{alpha:g}_{kind}", rtol=ACCURACY)

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 2.9)
        for panel, alpha in zip(found, shares, strict=True):
            panel.level(
                float(parts[f"{alpha:g}_soft"].test_error.sel(stage="teacher")[0]),
                Look(style.GREY, LINES[0], width=1.8), r"teacher, $\alpha=6$",
            )  # fmt: skip
            for (kind, (_, label)), look in zip(kinds.items(), LOOKS, strict=True):
                part = f"{alpha:g}_{kind}"
                panel.curve(part, "student.ridge", look, label, simulated=f"simulated_{part}")
            style.log_ticks(panel.axes, "x", 1e-3, 1.0)
            panel.axes.set_xlabel(style.parameter_label("student.ridge"))
            panel.axes.set_title(rf"$\alpha_2={alpha:g}$", fontsize=8)
        found[0].axes.set_ylabel("test error of the student")
        fixed = (
            r"$K=3$, orthogonal means, $\Delta=0.5$, $\tilde{\lambda}=0.3$; the student has its own $\alpha_2 N$ samples; "
            r"soft term times $T^2$"
        )
        remark = "at few samples and a large ridge the biases follow the imbalance of a finite sample"
        shared_legend(figure, found, 5, said(parts, fixed, remark))
        return figure

    return Plan(work, draw, "Settings of our choice; nothing of them was printed.")


@dataclass(frozen=True)
class Corrected:
    """Errors of the last stage along one parameter, as it is and with its best biases, class by class."""

    data: ClassMixture
    chain: Chain
    over: Mapping[str, np.ndarray]

    quick: ClassVar[bool] = True

    def tasks(self) -> list[Callable[[], object]]:
        ((path, values),) = self.over.items()
        return [lambda value=value: self._point(path, float(value)) for value in values]

    def _point(self, path: str, value: float) -> np.ndarray:
        stage = solve(*with_parameter(self.data, self.chain, path, value), rtol=ACCURACY, throw=True).stages[-1]
        found = best_bias(stage)
        return np.array([[stage.test_error, *stage.class_errors], [found.test_error, *found.class_errors]])

    def join(self, pieces: Sequence) -> xarray.Dataset:
        (path,) = self.over
        values = np.moveaxis(np.array(pieces), 0, -1)
        dims = ("biases", "of", path)
        coordinates = {"biases": ["own", "best"], "of": ["all", *map(str, range(self.data.classes_count))], **self.over}
        return xarray.Dataset(
            {"error": (dims, values, {"long_name": "test error"})}, coordinates,
            {"data": repr(self.data), "chain": repr(self.chain)},
        )  # fmt: skip


@published("classes-3", "A class that is missing from the transfer set")
def missing(effort: Effort) -> Plan:
    """Errors of a student whose samples lack a class, before and after its biases are corrected, and of one that saw it."""
    effort = effort.limited(INPUTS, RUNS)
    teacher, student = (
        Estimator(CrossEntropy(), 0.1),
        Estimator(Distillation(temperature_squared=True), 0.1, sets="transfer"),
    )
    over = {"student.temperature": TEMPERATURES}
    work: dict[str, Work] = {}
    for name, weights in (("missing", (0.5, 0.5, 0.0)), ("all", None)):
        further = (ClassSet("transfer", 2.0, weights=weights),)
        data = ClassMixture(4.0, gram=orthogonal_means(3), delta=0.25, further=further)
        chain = Chain.of([teacher, student])
        work |= curves(effort, data, chain, over, np.array([0.7, 1.0, 3.0, 10.0]), name, rtol=ACCURACY)
        if weights is not None:
            work["missing_corrected"] = Corrected(data, chain, over)

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 2.9)
        panel = found[0]
        level = float(parts["all"].test_error.sel(stage="teacher")[0])
        panel.level(level, Look(style.GREY, LINES[0], width=1.8), "teacher")
        for name, look, words in (("all", LOOKS[0], "all classes seen"), ("missing", LOOKS[2], "class 3 missing")):
            panel.curve(name, "student.temperature", look, words, simulated=f"simulated_{name}")
        corrected = parts["missing_corrected"].error
        panel.function(
            _temperatures(corrected),
            corrected.sel(biases="best", of="all").values,
            LOOKS[1],
            "class 3 missing, best biases",
        )
        for biases, line in (("own", LINES[2]), ("best", LINES[1])):
            for of, colour, words in (("2", RED, "class 3"), ("0", BLUE, "class 1")):
                look = Look(colour, line)
                label = f"(b) {words}, {biases} biases"
                found[1].function(_temperatures(corrected), corrected.sel(biases=biases, of=of).values, look, label)
        for panel in found:
            style.log_ticks(panel.axes, "x", 0.5, 20.0)
            panel.axes.set_xlabel(style.parameter_label("student.temperature"))
        found[0].axes.set_ylabel("test error of the student")
        found[1].axes.set_ylabel("test error of a class")
        fixed = (
            r"$K=3$, orthogonal means, $\Delta=0.25$, $\alpha=4$, $\tilde{\lambda}=0.1$; "
            r"student: $\lambda=0.1$, $\chi=1$, soft term times $T^2$, on a transfer set of $\alpha_2=2$"
        )
        shared_legend(figure, found, 4, said(parts, fixed))
        return figure

    return Plan(
        work, draw,
        "As Hinton, Vinyals and Dean found on digits: a student that never saw a class knows it from its teacher's doubts, once "
        "its biases are put right.  The higher the temperature (times T^2), the less of it its own biases hide.",
    )  # fmt: skip


def _temperatures(found: xarray.DataArray) -> np.ndarray:
    return found["student.temperature"].values


@dataclass(frozen=True)
class Thresholds:
    """Both thresholds of three orthogonal classes against the weight of the third."""

    over: Mapping[str, np.ndarray]

    def tasks(self) -> list[Callable[[], object]]:
        (weights,) = self.over.values()
        return [lambda w=w: self._point(float(w)) for w in weights]

    def _point(self, weight: float) -> tuple[float, float]:
        data = ClassMixture(1.0, [(1.0 - weight) / 2, (1.0 - weight) / 2, weight], orthogonal_means(3))
        return complete_separability_threshold(data).value, maximum_likelihood_threshold(data).value

    def join(self, pieces: Sequence) -> xarray.Dataset:
        (path,) = self.over
        complete, likelihood = np.array(pieces).T
        return xarray.Dataset({"complete": (path, complete), "likelihood": (path, likelihood)}, dict(self.over))


@published("classes-4", "Complete separation of three classes, and existence of the maximum-likelihood fit")
def thresholds(effort: Effort) -> Plan:
    """Samples per input up to which all three classes are separable, and up to which some grouping of them is."""
    work: dict[str, Work] = {"thresholds": Thresholds({"weight": np.linspace(0.02, 0.6, 30)})}

    def draw(parts: Data) -> Figure:
        figure, (panel,) = panels(parts, 1, 1, 3.0)
        found = parts["thresholds"]
        panel.function(
            found.weight, found.likelihood, LOOKS[1], "no maximum-likelihood fit below (some grouping is separable)"
        )
        panel.function(found.weight, found.complete, LOOKS[0], "all classes separable below")
        panel.axes.axvline(1 / 3, color=style.GREY, lw=0.7, ls=LINES[2])
        panel.axes.set(xlabel=r"weight of class 3, $\rho_3$", ylabel=r"samples per input, $\alpha=M/N$", xlim=(0, 0.6))
        shared_legend(
            figure, [panel], 1, r"$K=3$, orthogonal means, $\Delta=1$; classes 1 and 2 are as frequent as each other"
        )
        return figure

    return Plan(
        work, draw,
        "They agree for classes of equal weight; a rare class stays separable from the others long after the frequent ones "
        "are mixed.",
    )  # fmt: skip
