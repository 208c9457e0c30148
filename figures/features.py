"""Inputs with structure: random features, power laws, regression.  Settings of our choice; nothing of them was printed.

Points of random features are real networks of two layers whose first one is drawn and left as it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from figures.build import Effort, Plan, Tuned, Tuning, Work, curves, published
from figures.drawing import Data, Look, Panel, looks, panels, said, shared_legend
from numerics.models import Chain, DataSet, Estimator, GaussianMixture, LinearRule, PowerLaw, RandomFeatures
from numerics.plots import style
from numerics.plots.style import BLACK, BLUE, LINES, RED, YELLOW
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

LOOKS = (Look(BLACK, LINES[0], "o"), Look(BLUE, LINES[1], "s"), Look(RED, LINES[2], "^"), Look(YELLOW, LINES[3], "D"))
INPUTS, RUNS = 200, 24
"""Size of the simulations: real networks of up to 800 features."""

RATIOS = np.geomspace(0.1, 10.0, 50)
POINTS = np.array([0.3, 1.0, 2.0, 4.0])
TEACHER = Estimator(CrossEntropy(), 0.1)
ALPHA = 2.0


def _ratio_axis(panel: Panel) -> None:
    style.log_ticks(panel.axes, "x", 0.1, 10.0)
    panel.axes.set_xlabel("features per input, $p/N$")


@published("features-1", "Random features: double descent in their number")
def descent(effort: Effort) -> Plan:
    """Test error of a student with relu features against p/N, on classes and on the labels of a rule."""
    effort, network = effort.limited(INPUTS, RUNS), RandomFeatures(1.0, "relu")
    students = {
        "square": (SquareLoss(), "labels, square loss"),
        "hard": (CrossEntropy(), "labels, cross-entropy"),
        "soft": (Distillation(), "soft targets, $T=1$"),
        "warm": (Distillation(temperature=4.0), "soft targets, $T=4$"),
    }
    sources = {"classes": GaussianMixture(ALPHA, 0.5, 1.0), "rule": LinearRule(ALPHA, output="sign")}
    work: dict[str, Work] = {}
    for source, data in sources.items():
        for kind, (loss, _) in students.items():
            chain = Chain.of([TEACHER, Estimator(loss, 1e-4, features=network)])
            work |= curves(effort, data, chain, {"student.features": RATIOS}, POINTS, f"{source}_{kind}")

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 3.0)
        words = (r"classes, $\rho=1/2$, $\Delta=1$", "labels of a rule (sign)")
        for panel, source, text in zip(found, sources, words, strict=True):
            teacher = parts[f"{source}_soft"].test_error.sel(stage="teacher")
            panel.level(
                float(teacher[0]),
                Look(style.GREY, LINES[0], width=1.8),
                r"teacher on the inputs, $\tilde{\lambda}=0.1$",
            )
            for (kind, (_, label)), look in zip(students.items(), LOOKS, strict=True):
                panel.curve(f"{source}_{kind}", "student.features", look, label, simulated=f"simulated_{source}_{kind}")
            _ratio_axis(panel)
            panel.mark({"p=M": ALPHA})
            panel.axes.annotate(text, (0.04, 0.05), xycoords="axes fraction", ha="left", va="bottom")
        found[0].axes.set_ylabel("test error")
        fixed = rf"relu features, $\alpha={ALPHA:g}$, student's ridge $\lambda=10^{{-4}}$"
        shared_legend(figure, found, 3, said(parts, fixed))
        return figure

    return Plan(
        work,
        draw,
        "The square loss peaks at p = M, soft targets far less, and at T = 4 not at all; cross-entropy peaks where features begin "
        "to separate the labels, near p = 0.8 N.  On overlapping classes soft targets then come down to their teacher, "
        "hard labels do not: soft ones bring the teacher's regularisation with them.",
    )


@published("features-2", "Power laws: learning curves, and students that see the head of the spectrum")
def power_laws(effort: Effort) -> Plan:
    """Excess risk of ridge regression and of a student against alpha; of a student against the part of the spectrum it sees."""
    effort, size = replace(effort.limited(INPUTS, RUNS), n_inputs=min(effort.n_inputs, 2 * INPUTS)), 200
    alphas, points = np.geomspace(0.05, 4.0, 40), np.array([0.15, 0.4, 1.5])
    sources = (0.3, 0.6, 1.0)
    shares, seen = np.geomspace(0.02, 1.0, 40), np.array([0.05, 0.2, 0.8])
    ridges = (1e-3, 1e-2, 1e-1)
    work: dict[str, Work] = {}
    for source in sources:
        data = LinearRule(1.0, noise=0.05, inputs=PowerLaw(1.5, source, size))
        chain = Chain.of([Estimator(SquareLoss(), 1e-2), Estimator(SquareDistillation(), 1e-2, eta=0.2)])
        work |= curves(effort, data, chain, {"alpha": alphas}, points, f"source_{source:g}", ("excess_risk",))
    for ridge in ridges:
        data = LinearRule(0.5, noise=0.05, inputs=PowerLaw(1.5, 0.5, size))
        chain = Chain.of([Estimator(SquareLoss(), 1e-2), Estimator(SquareDistillation(), ridge)])
        work |= curves(effort, data, chain, {"student.eta": shares}, seen, f"ridge_{ridge:g}", ("excess_risk",))

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 3.0)
        for source, look in zip(sources, LOOKS, strict=False):
            part = f"source_{source:g}"
            what = {"name": "excess_risk", "simulated": f"simulated_{part}"}
            found[0].curve(part, "alpha", look, f"(a) student, $r={source:g}$", stage="student", **what)
            teacher = replace(look, line="-", filled=False, width=0.6)
            found[0].curve(part, "alpha", teacher, f"(a) teacher, $r={source:g}$", stage="teacher", **what)
        for ridge, look in zip(ridges, LOOKS, strict=False):
            part = f"ridge_{ridge:g}"
            what = {"name": "excess_risk", "simulated": f"simulated_{part}"}
            found[1].curve(part, "student.eta", look, rf"(b) $\lambda={ridge:g}$", stage="student", **what)
        level = float(parts[f"ridge_{ridges[0]:g}"].excess_risk.sel(stage="teacher")[0])
        found[1].level(level, Look(style.GREY, LINES[0], width=1.8), "(b) teacher, all coordinates")
        style.log_ticks(found[0].axes, "x", 0.05, 4.0)
        style.log_ticks(found[1].axes, "x", 0.02, 1.0)
        found[0].axes.set(xlabel=style.parameter_label("alpha"), ylabel="excess risk $R$", yscale="log")
        found[1].axes.set(
            xlabel=r"part of the spectrum that the student sees, $\eta$", ylabel="excess risk $R$", yscale="log"
        )
        fixed = (
            rf"variances $k^{{-3/2}}$, $k\leq{size}$, noise $\sigma^2=0.05$, teacher's $\tilde{{\lambda}}=0.01$; "
            rf"(a) $\lambda=0.01$, $\eta=0.2$; (b) $\alpha=0.5$, $r=0.5$"
        )
        shared_legend(figure, found, 4, said(parts, fixed))
        return figure

    return Plan(
        work,
        draw,
        "A student that sees the first fifth of the coordinates follows its teacher until what it does not see is all that is left "
        "of its risk.  Where its ridge is small the best part of the spectrum to see is not all of it.",
    )


@published("features-3", "Activations, and how large a network has to be for the theory")
def activations(effort: Effort) -> Plan:
    """Test error of a network trained on labels against p/N for four activations, with real networks of two sizes."""
    kinds = ("relu", "erf", "tanh", "sign")
    data = GaussianMixture(ALPHA, 0.3, 1.0)
    work: dict[str, Work] = {}
    small = replace(effort.limited(INPUTS, RUNS), n_inputs=50, n_runs=4 * RUNS if effort.n_runs else 0)
    for kind in kinds:
        chain = Chain.of(Estimator(CrossEntropy(), 0.01, name="network", features=RandomFeatures(1.0, kind)))
        over = {"network.features": RATIOS}
        work |= curves(effort.limited(INPUTS, RUNS), data, chain, over, POINTS, kind)
        work |= {
            f"small_{name}": part
            for name, part in curves(small, data, chain, over, POINTS, kind).items()
            if name != kind
        }

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 4, 2.7, sharey=True)
        for panel, kind, look in zip(found, kinds, looks(4), strict=True):
            panel.curve(kind, "network.features", look, "theory", simulated=f"simulated_{kind}")
            if f"small_simulated_{kind}" in parts:
                open_marker = replace(look, filled=False)
                panel.points(f"small_simulated_{kind}", "network.features", open_marker)
            _ratio_axis(panel)
            panel.axes.annotate(kind, (0.94, 0.94), xycoords="axes fraction", ha="right", va="top")
        found[0].axes.set_ylabel("test error")
        fixed = rf"$\alpha={ALPHA:g}$, $\rho=0.3$, $\Delta=1$, cross-entropy on labels, $\lambda=0.01$"
        figure.suptitle(
            said(parts, fixed, f"full markers: $N={INPUTS}$; open ones: $N=50$, {4 * RUNS} runs"), fontsize=8
        )
        return figure

    return Plan(
        work,
        draw,
        "Real networks of 50 inputs already lie within a percent of the theory for all activations.",
    )


@published("regression-1", "What self-distillation gains in regression, against noise and spectrum")
def self_distillation(effort: Effort) -> Plan:
    """Excess risk after one step of self-distillation over that of the best ridge, all ridges tuned."""
    noises = np.geomspace(0.01, 3.0, 10)[:9]  # fewer than curves are made finer with: every point is a search
    capacities = (0.0, 1.0, 2.0)
    work: dict[str, Work] = {}
    stages = [Estimator(SquareLoss(), 0.1, bias=0.0), Estimator(SquareDistillation(mixing=0.5), 0.1, bias=0.0)]
    for capacity in capacities:
        data = LinearRule(1.0, noise=0.1, inputs=PowerLaw(capacity, 0.5, 50))
        for count in (1, 2):
            names = ("teacher", "student")[:count]
            tuning = Tuning({f"{name}.ridge": (1e-4, 1e2) for name in names}, f"{names[-1]}.excess_risk")
            chain = Chain.of(stages[:count])
            work[f"{capacity:g}_{count}"] = Tuned(data, chain, {"noise": noises}, tuning, ("excess_risk",))

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 2, 2.9)
        for capacity, look in zip(capacities, LOOKS, strict=False):
            one, two = (parts[f"{capacity:g}_{count}"].excess_risk.isel(stage=-1) for count in (1, 2))
            label = "white inputs" if capacity == 0.0 else f"$a={capacity:g}$"
            found[0].function(noises, one.values, look, label)
            found[1].function(noises, 1.0 - two.values / one.values, look, label)
        for panel in found:
            style.log_ticks(panel.axes, "x", 0.01, 1.6)
            panel.axes.set_xlabel(style.parameter_label("noise"))
        found[0].axes.set(ylabel="excess risk $R$ at the best ridge", yscale="log")
        found[1].axes.set_ylabel("share of $R$ that one step removes")
        fixed = r"variances $k^{-a}$, $k\leq50$, source exponent $r=0.5$, $\alpha=1$, $\chi=1/2$, all ridges optimal"
        shared_legend(figure, found, 4, fixed)
        return figure

    return Plan(
        work,
        draw,
        "With white inputs, where the best ridge is the best of all estimators, a step gains nothing.  With a spectrum it does.",
    )


@published("regression-2", "Weak to strong: a student that sees more than its teacher")
def weak_to_strong(effort: Effort) -> Plan:
    """Risk of a student on 90% of a power law, of a teacher on 40%, against the transfer samples that the teacher labelled."""
    effort, size = replace(effort.limited(INPUTS, RUNS), n_inputs=min(effort.n_inputs, 2 * INPUTS)), 200
    sizes, points = np.geomspace(0.1, 30.0, 60), np.array([0.3, 1.0, 4.0])
    ridges = (0.03, 0.3, 3.0)
    source = LinearRule(1.0, noise=0.1, inputs=PowerLaw(1.0, 0.3, size), further=(DataSet("fresh", 1.0),))
    teacher = Estimator(SquareLoss(), 0.1, eta=0.4)
    work: dict[str, Work] = {}
    for ridge in ridges:
        chain = Chain.of([teacher, Estimator(SquareDistillation(), ridge, eta=0.9, sets="fresh")])
        work |= curves(effort, source, chain, {"fresh.alpha": sizes}, points, f"ridge_{ridge:g}", ("excess_risk",))

    def draw(parts: Data) -> Figure:
        figure, (panel, seen) = panels(parts, 1, 2, 2.9)
        level = float(parts[f"ridge_{ridges[0]:g}"].excess_risk.sel(stage="teacher")[0])
        panel.level(level, LOOKS[0], r"teacher, $\eta=0.4$, $\tilde{\lambda}=0.1$")
        for ridge, look in zip(ridges, LOOKS[1:], strict=True):
            part = f"ridge_{ridge:g}"
            label = rf"student, $\eta=0.9$, $\lambda={ridge:g}$"
            panel.curve(part, "fresh.alpha", look, label, name="excess_risk", simulated=f"simulated_{part}")
        style.log_ticks(panel.axes, "x", 0.1, 30.0)
        panel.axes.set(xlabel=r"transfer samples per input, $\alpha_2=M_2/N$", ylabel="excess risk $R$")
        k = np.arange(1, size + 1)
        inputs = source.inputs
        seen.function(k / size, inputs.variances, LOOKS[0], None)
        seen.function(k / size, inputs.variances * inputs.signals, LOOKS[1], None)
        seen.axes.annotate("variance", (0.6, inputs.variances[120]), xytext=(0, 5), textcoords="offset points")
        seen.axes.annotate(
            "signal", (0.6, (inputs.variances * inputs.signals)[120]), xytext=(0, 5), textcoords="offset points"
        )
        for eta, words in ((0.4, "teacher"), (0.9, "student")):
            seen.axes.axvline(eta, color=style.GREY, lw=0.7, ls=LINES[2])
            seen.axes.annotate(words, (eta, 0.97), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=7)
        seen.axes.set(xlabel="coordinate, $k/N$", ylabel="in units of the mean", yscale="log", xlim=(0, 1))
        fixed = rf"variances $1/k$, $k\leq{size}$, source exponent $r=0.3$, $\alpha=1$, noise $\sigma^2=0.1$"
        shared_legend(figure, [panel], 4, said(parts, fixed))
        return figure

    return Plan(
        work,
        draw,
        "A student that sees more of the inputs beats the teacher that labelled them at moderate numbers of transfer samples; with "
        "many it copies its teacher, at any fixed ridge.",
    )
