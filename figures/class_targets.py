"""Many classes: what small probabilities carry, the best temperature, and the size of the student.

Settings of our choice, after the experiments of Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

from figures.build import Effort, Plan, Work, curves, published
from figures.classes import ACCURACY, INPUTS, LOOKS, RUNS
from figures.drawing import Data, Look, heading, panels, said, shared_legend
from numerics.models import Chain, ClassMixture, ClassSet, Estimator, similar_pairs
from numerics.models.parameters import with_parameter
from numerics.optimize import optimize
from numerics.plots import style
from numerics.plots.style import BLUE, LINES, RED
from numerics.solver import solve
from theory.losses import CrossEntropy, Distillation

CUT_ACCURACY = 3e-4
"""Of targets that jump."""


@published("classes-6", "What small probabilities carry")
def small_probabilities(effort: Effort) -> Plan:
    """Test error against temperature: of students of full targets, and of those whose smaller probabilities are made equal."""
    effort, temperatures = effort.limited(INPUTS, RUNS), np.geomspace(1.0, 20.0, 12)
    targets = {
        "full": "full targets",
        "top-2": "the two largest, the rest equal",
        "top-1": "the largest, the rest equal",
    }
    shares = (0.5, 2.0)
    work: dict[str, Work] = {}
    for alpha in shares:
        data = ClassMixture(6.0, gram=similar_pairs(4, 0.6), delta=0.1, further=(ClassSet("transfer", alpha),))
        for kind in targets:
            loss = Distillation(temperature_squared=True, target=kind)
            chain = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(loss, 0.1, sets="transfer")])
            over, rtol = {"student.temperature": temperatures}, ACCURACY if kind == "full" else CUT_ACCURACY
            work |= curves(effort, data, chain, over, np.array([1.0, 3.0, 10.0]), f"{alpha:g}_{kind}", rtol=rtol)

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 2.9)
        for panel, alpha in zip(found, shares, strict=True):
            teacher = float(parts[f"{alpha:g}_full"].test_error.sel(stage="teacher")[0])
            panel.level(teacher, Look(style.GREY, LINES[0], width=1.8), "teacher")
            for (kind, label), look in zip(targets.items(), LOOKS, strict=False):
                part = f"{alpha:g}_{kind}"
                panel.curve(part, "student.temperature", look, label, simulated=f"simulated_{part}")
            style.log_ticks(panel.axes, "x", 1.0, 20.0)
            panel.axes.set_xlabel(style.parameter_label("student.temperature"))
            panel.axes.set_title(rf"$\alpha_2={alpha:g}$", fontsize=8)
        found[0].axes.set_ylabel("test error of the student")
        fixed = (
            r"$K=4$, two pairs of similar classes, $s=0.6$, $\Delta=0.1$, $\alpha=6$, $\tilde{\lambda}=0.1$; "
            r"student: $\lambda=0.1$, soft term times $T^2$, its own $\alpha_2 N$ samples"
        )
        remark = "in finite systems errors are larger by $O(1/N)$, most so where samples are few"
        shared_legend(figure, found, 4, said(parts, fixed, remark))
        return figure

    return Plan(
        work, draw,
        "What is small at T = 1 hardly enters the loss there; at high T it does, and a student that is shown the largest "
        "probability alone gets worse where one that is shown all gets better.",
    )  # fmt: skip


@dataclass(frozen=True)
class BestTemperature:
    """The student's best temperature and what it gains over T = 1, on a grid of similarities and samples per input."""

    data: ClassMixture
    chain: Chain
    bounds: tuple[float, float]
    over: Mapping[str, np.ndarray]

    def tasks(self) -> list[Callable[[], object]]:
        similarities, alphas = self.over.values()
        return [lambda s=s, alpha=alpha: self._point(float(s), float(alpha)) for s in similarities for alpha in alphas]

    def _point(self, similarity: float, alpha: float) -> tuple[float, float, float]:
        place = with_parameter(self.data, self.chain, "similarity", similarity)
        data, chain = with_parameter(*place, "alpha", alpha)
        path = "student.temperature"
        best = optimize(data, chain, {path: self.bounds}, "student.test_error")
        plain = solve(*with_parameter(data, chain, path, 1.0), throw=True)[1]
        apart = best.solution[1].test_error / plain.test_error - 1.0
        return best.parameters[path], apart, float(best.location[path] == "interior")

    def join(self, pieces: Sequence) -> xarray.Dataset:
        dims, shape = tuple(self.over), tuple(len(values) for values in self.over.values())
        temperature, change, inside = (np.reshape(values, shape) for values in zip(*pieces, strict=True))
        return xarray.Dataset(
            {"temperature": (dims, temperature), "change": (dims, change), "inside": (dims, inside)}, dict(self.over),
            {"data": repr(self.data), "chain": repr(self.chain)},
        )  # fmt: skip


@published("classes-7", "The best temperature against samples and similarity")
def best_temperature(effort: Effort) -> Plan:
    """Map of the temperature of least test error of the student, and of the change of the error against T = 1."""
    data = ClassMixture(1.0, gram=similar_pairs(4, 0.0), delta=0.25)
    chain = Chain.of(
        [Estimator(CrossEntropy(), 0.01), Estimator(Distillation(temperature_squared=True), 0.01, eta=0.5)]
    )
    over = {"similarity": np.linspace(0.0, 0.9, 10), "alpha": np.geomspace(0.4, 10.0, 11)}
    work: dict[str, Work] = {"best": BestTemperature(data, chain, (0.5, 20.0), over)}

    def draw(parts: Data) -> Figure:
        figure, (where, gain) = panels(parts, 1, 2, 2.9)
        found = parts["best"]
        shown = where.axes.pcolormesh(
            found.alpha, found.similarity, found.temperature, cmap="viridis", norm=LogNorm(1.0, 10.0), rasterized=True
        )
        bar = figure.colorbar(shown, ax=where.axes, pad=0.02, extend="both")
        bar.set_label("best temperature $T$")
        bar.ax.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10]))
        bar.ax.yaxis.set_major_formatter(ScalarFormatter())
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        changed = gain.axes.pcolormesh(
            found.alpha, found.similarity, 100.0 * found.change, cmap="magma", rasterized=True
        )
        figure.colorbar(changed, ax=gain.axes, pad=0.02).set_label("change relative to $T=1$ (%)")
        for panel in (where, gain):
            style.log_ticks(panel.axes, "x", float(found.alpha[0]), float(found.alpha[-1]))
            panel.axes.set_xlabel(style.parameter_label("alpha"))
        where.axes.set_ylabel("similarity $s$")
        heading(
            figure, r"$K=4$, two pairs of similar classes, $\Delta=0.25$, $\tilde{\lambda}=\lambda=0.01$, $\eta=0.5$, "
            r"$\chi=1$, soft term times $T^2$; $0.5 \leq T \leq 20$",
        )  # fmt: skip
        return figure

    return Plan(
        work, draw,
        "The more samples, the lower the best temperature; how alike classes are hardly matters until they nearly coincide.",
    )  # fmt: skip


@published("classes-8", "The size of the student")
def size(effort: Effort) -> Plan:
    """Test error against the student's share of the inputs at a fixed teacher, on labels and on soft targets."""
    effort, sizes = effort.limited(INPUTS, RUNS), np.linspace(0.1, 1.0, 13)
    kinds = {
        "hard": (CrossEntropy(), "labels"),
        "soft": (Distillation(), "soft targets, $T=1$"),
        "warm": (Distillation(temperature=4.0, temperature_squared=True), "soft targets, $T=4$"),
    }
    alphas = (1.5, 6.0)
    work: dict[str, Work] = {}
    for alpha in alphas:
        data = ClassMixture(alpha, gram=similar_pairs(4, 0.6), delta=0.25)
        for kind, (loss, _) in kinds.items():
            chain = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(loss, 0.1)])
            points = np.array([0.2, 0.5, 0.8])
            work |= curves(effort, data, chain, {"student.eta": sizes}, points, f"{alpha:g}_{kind}", rtol=ACCURACY)

    def draw(parts: Data) -> Figure:
        figure, (panel, gain) = panels(parts, 1, 2, 2.9)
        looks = (LOOKS[0], Look(BLUE, LINES[1], "s"), Look(RED, LINES[2], "^"))
        teacher = float(parts["6_soft"].test_error.sel(stage="teacher")[0])
        panel.level(teacher, Look(style.GREY, LINES[0], width=1.8), "teacher, all inputs")
        for (kind, (_, label)), look in zip(kinds.items(), looks, strict=True):
            panel.curve(f"6_{kind}", "student.eta", look, label, simulated=f"simulated_6_{kind}")
            for alpha, width in ((6.0, 1.2), (1.5, 0.5)):
                errors = (parts[f"{alpha:g}_{name}"].test_error.sel(stage="student") for name in ("hard", kind))
                hard, other = (found.sel({"student.eta": sizes}, method="nearest").values for found in errors)
                gain.function(sizes, hard - other, replace(look, width=width), None)
        for one in (panel, gain):
            one.axes.set(xlim=(0.05, 1.02), xlabel=style.parameter_label("student.eta"))
        panel.axes.set_ylabel("test error of the student")
        gain.axes.set_ylabel("gain over labels")
        fixed = r"$K=4$, two pairs of similar classes, $s=0.6$, $\Delta=0.25$, $\tilde{\lambda}=\lambda=0.1$"
        lines = r"(a) $\alpha=6$; (b) thick lines: $\alpha=6$, thin ones: $\alpha=1.5$"
        shared_legend(figure, [panel], 4, said(parts, fixed, lines))
        return figure

    return Plan(
        work, draw,
        "A smaller student loses the inputs that its teacher has, whatever it is taught: soft targets take back a point of it, "
        "the more the nearer it is to the size of its teacher.",
    )  # fmt: skip
