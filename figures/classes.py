"""Many classes: temperature and similarity, few samples, a class that is missing, two thresholds, levels of knowledge.

Settings of our choice, after the experiments of Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, and of
Tang et al., *Understanding and Improving Knowledge Distillation*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import xarray
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.anatomy import Measured, Scan, simulations_of
from figures.build import Effort, Plan, Work, curves, published
from figures.drawing import Data, Look, Panel, panels, said, shared_legend
from numerics.anatomy.levels import GAINS, GAINS_INSTANCE_FIRST, INSTANCE_FIRST, LADDER, Question, levels, solved
from numerics.classes.corrections import best_bias
from numerics.classes.separability import complete_separability_threshold, maximum_likelihood_threshold
from numerics.models import Chain, ClassMixture, ClassSet, DataModel, Estimator, orthogonal_means, similar_pairs
from numerics.models.parameters import with_parameter
from numerics.plots import style
from numerics.plots.style import BLACK, BLUE, LINES, RED, YELLOW
from numerics.solver import solve
from numerics.sweeps.grid import ERROR_SUFFIX
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


# Levels of knowledge.

ORDERS = {
    "gain": (LADDER, (*GAINS, "total")),
    "instance_first_gain": (INSTANCE_FIRST, (*GAINS_INSTANCE_FIRST, "total")),
}
STUDENTS = tuple(dict.fromkeys((*LADDER[1:], *INSTANCE_FIRST[1:], "true+similarity", "cosine")))
"""Those that are compared with labels alone."""


@dataclass(frozen=True)
class Knowledge(Scan):
    """Gains of the levels in both orders with their errors, what students gain over labels alone, and what the teacher says: how
    much it doubts labels, and how much of this doubt is due to the first class's twin."""

    quick: ClassVar[bool] = True

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        question = Question.of(data, chain)
        found = levels(question)
        out = {"over_labels": np.array([found.over_labels[name] for name in STUDENTS])}
        for (name, (ladder, steps)), gains in zip(
            ORDERS.items(), (found.gains, found.instance_first_gains), strict=True
        ):
            errors = found.quadrature_errors(ladder, steps[:-1])
            out[name] = np.array([gains[step] for step in steps])
            out[f"{name}_quadrature_error"] = np.array([errors[step] for step in steps])
        row = solved(question, "domain").walk.points[-1].table[0]
        return out | {"doubt": 1.0 - row[0], "twin": row[1] / (1.0 - row[0])}

    def dims(self) -> Mapping[str, tuple[str, ...]]:
        found = {"over_labels": ("student",), "doubt": (), "twin": ()}
        for name in ORDERS:
            found[name] = found[f"{name}_quadrature_error"] = (f"{name}_by",)
        return found

    def coordinates(self) -> Mapping[str, object]:
        return {"student": list(STUDENTS), **{f"{name}_by": list(steps) for name, (_, steps) in ORDERS.items()}}


@dataclass(frozen=True)
class MeasuredKnowledge(Measured):
    """Gains in finite systems, compared run by run."""

    dims, coordinates = Knowledge.dims, Knowledge.coordinates

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        found, out = self.measured(data, chain, k), {}
        listed = {"over_labels": (STUDENTS, found.over_labels)}
        for (name, (_, steps)), gains in zip(ORDERS.items(), (found.gains, found.instance_first_gains), strict=True):
            listed[name] = steps, gains
        for name, (members, values) in listed.items():
            out[name] = np.array([values[member].mean for member in members])
            out[name + ERROR_SUFFIX] = np.array([values[member].standard_error for member in members])
        return out

    def predicted(self) -> Knowledge:
        """What theory says there."""
        return Knowledge(self.data, self.chain, self.over)


def crossing(x: np.ndarray, difference: np.ndarray) -> float:
    """Where a difference changes sign first, on straight lines between points; NaN if nowhere."""
    (places,) = np.nonzero(np.diff(np.sign(difference)))
    if not len(places):
        return float("nan")
    k = places[0]
    return float(x[k] - difference[k] * (x[k + 1] - x[k]) / (difference[k + 1] - difference[k]))


def _shown(panel: Panel, part: str, path: str, variable: str, member: str, look: Look, label: str) -> None:
    """One gain along a parameter, in theory and measured."""
    along = {"over_labels": "student"}.get(variable, f"{variable}_by")
    curve = panel.data[part][variable].sel({along: member})
    panel.axes.plot(curve[path], curve, color=look.colour, ls=look.line, lw=look.width, zorder=2)
    handle = Line2D([], [], color=look.colour, ls=look.line, lw=look.width)
    if f"simulated_{part}" in panel.data:
        dots = panel.data[f"simulated_{part}"].sel({along: member})
        panel.dots(dots[path], dots[variable], dots[variable + ERROR_SUFFIX], look, dots.attrs["n_runs"])
        handle.set(marker=look.marker, markerfacecolor=look.face, markeredgewidth=0.6)
    panel.entries.append((handle, label))


LEVELS = {
    "universe": Look(BLUE, LINES[1], "s", size=3.5),
    "domain": Look(YELLOW, LINES[3], "D", size=3.5),
    "instance": Look(RED, LINES[2], "^", size=3.5),
    "total": Look(style.GREY, LINES[0], "o", width=1.8, size=3.5),
}


@published("classes-5", "Levels of a teacher's knowledge of many classes")
def knowledge(effort: Effort) -> Plan:
    """Gains by universe, domain and instance knowledge against similarity, teacher's smoothing and teacher's ridge."""
    effort = effort.limited(INPUTS, RUNS)
    student = Estimator(Distillation(), 0.1)
    scans = {
        "similarity": (0.1, "similarity", np.linspace(0.0, 0.95, 20), np.array([0.0, 0.3, 0.6, 0.9])),
        "smoothing": (0.01, "teacher.smoothing", np.linspace(0.0, 0.5, 21), np.array([0.0, 0.1, 0.4])),
        "ridge": (0.1, "teacher.ridge", np.geomspace(1e-3, 3.0, 15), np.array([0.003, 0.03, 1.0])),
    }
    work: dict[str, Work] = {}
    for name, (ridge, path, values, points) in scans.items():
        data = ClassMixture(3.0, gram=similar_pairs(4, 0.8), delta=0.25)
        chain = Chain.of([Estimator(CrossEntropy(), ridge), student])
        work[name] = Knowledge(data, chain, {path: values})
        own = replace(effort, seed=effort.seed + len(work))  # samples of its own
        measured = MeasuredKnowledge(data, chain, {path: points}, own)
        work |= simulations_of(effort, **{f"simulated_{name}": measured})

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 2, 3, 5.0)
        domain_first, instance_first, partial, smoothed, able, says = found
        for level, look in LEVELS.items():
            _shown(domain_first, "similarity", "similarity", "gain", level, look, level)
            _shown(instance_first, "similarity", "similarity", "instance_first_gain", level, look, level)
            _shown(smoothed, "smoothing", "teacher.smoothing", "gain", level, look, level)
            _shown(able, "ridge", "teacher.ridge", "gain", level, look, level)
        students = {"true": ("(c) KD-pt", RED, "^", "-"), "cosine": ("(c) KD-sim", BLUE, "s", "--"),
                    "instance": ("(c) the full target", style.GREY, "o", "-")}  # fmt: skip
        for name, (label, colour, marker, line) in students.items():
            look = Look(colour, line, marker, filled=False, size=3.5)
            _shown(partial, "similarity", "similarity", "over_labels", name, look, label)
        over = parts["similarity"].over_labels
        difference = over.sel(student="true") - over.sel(student="cosine")
        place = crossing(over.similarity.values, difference.values)
        partial.mark({rf"s_\times={place:.2f}": place})
        for part, look, words in (("ridge", Look(BLACK), "ridge"), ("smoothing", Look(BLACK, "--"), "smoothing")):
            says.function(parts[part].doubt, parts[part].twin, look, f"(f) along the teacher's {words}")
        says.axes.axhline(1.0 / 3.0, color=style.GREY, lw=0.7, ls=LINES[2])
        says.axes.annotate("no similarity", (0.02, 1.0 / 3.0), xytext=(0, 2), textcoords="offset points", fontsize=7)
        for panel in found[:5]:
            panel.axes.axhline(0.0, color=BLACK, lw=0.5, zorder=0.5)
        for panel in found[:3]:
            panel.axes.set(xlabel="similarity $s$", xlim=(-0.03, 1.0))
        for panel, title in ((domain_first, "domain, then instance"), (instance_first, "instance, then domain")):
            panel.axes.set_title(title, fontsize=8)
            panel.axes.set(ylabel="gain in test error", ylim=(-0.011, 0.028))
        partial.axes.set(ylabel="gain over labels alone")
        smoothed.axes.set(xlabel="teacher's label smoothing", ylabel="gain in test error", xlim=(-0.015, 0.515))
        smoothed.axes.set_title(r"$s=0.8$, $\tilde{\lambda}=0.01$", fontsize=8)
        style.log_ticks(able.axes, "x", 1e-3, 3.0)
        able.axes.set(xlabel=r"teacher's ridge $\tilde{\lambda}$", ylabel="gain in test error")
        able.axes.set_title("$s=0.8$", fontsize=8)
        says.axes.set(
            xlabel="teacher's doubt of the label", ylabel="share of the twin in it", xlim=(0, 0.75), ylim=(0.3, 0.75)
        )
        says.axes.set_title("$s=0.8$", fontsize=8)
        fixed = (
            r"$K=4$, two pairs of similar classes, $\alpha=3$, $\Delta=0.25$, $\tilde{\lambda}=0.1$ but in (d) and (e); "
            r"student: $\lambda=0.1$, $\eta=\chi=T=1$"
        )
        remark = r"in finite systems domain gains are lower by $O(1/N)$; the smoothed teacher of (f) is that of (d)"
        shared_legend(figure, found, 5, said(parts, fixed, remark))
        return figure

    return Plan(
        work, draw,
        "Only the abstract of the print was at hand.  How sure the teacher is of a sample (KD-pt) is worth more where classes "
        "differ, which classes are alike (KD-sim) where they are close; the order of the two matters, and each is worth more "
        "after the other.  At the same doubt a smoothed teacher says less of which classes are alike; what its student loses in "
        "test error is instance knowledge.  A teacher that is sure of everything leaves nothing to gain.",
    )  # fmt: skip
