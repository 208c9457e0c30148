"""The regularised classifier of a Gaussian mixture: F. Mignacco, F. Krzakala, Y. Lu, P. Urbani and L. Zdeborova, "The role
of regularization in classification of high-dimensional noisy Gaussian mixture", PMLR 119:6874-6883 (2020).

One stage, three losses: square, logistic, and a hinge whose corner is rounded over a width of 0.2.  Delta = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray
from matplotlib.figure import Figure

from figures.build import (
    Effort,
    Plan,
    Simulation,
    Tuned,
    Tuning,
    Work,
    curves,
    denser_near,
    published,
    simulations,
    single,
)
from figures.drawing import Data, Look, looks, panels, said, shared_legend
from numerics.models import Chain, Estimator, GaussianMixture
from numerics.plots import style
from numerics.plots.style import BLACK, GREY, LINES
from numerics.thresholds import bayes_error, interpolation_threshold, separability_threshold
from theory.losses import CrossEntropy, Loss, SquareLoss

DELTA = 1.0
CORNER = 0.2
"""Width of the rounded corner of the hinge."""

LOSSES: dict[str, Loss] = {
    "square": SquareLoss(),
    "logistic": CrossEntropy(),
    "hinge": Loss.from_expression("a*log(1 + exp((1 - s*h)/a))", {"a": CORNER}, name="smoothed hinge"),
}
FIXED = r"$\Delta=1$, all inputs trained, hinge: corner rounded over 0.2"
IMBALANCE = r"(b, c) at small $\alpha$ and $\lambda=10$ the bias follows the imbalance of a finite sample: points lie off the limit"
NO_PRINT = "Settings of our choice (Delta = 1); no values of the printed figures were at hand."


def _chain(name: str, ridge: float = 1.0) -> Chain:
    return single(Estimator(LOSSES[name], ridge), name)


@published("mignacco-error", "Test error of square, logistic and hinge loss at several ridges")
def error_curves(effort: Effort) -> Plan:
    """Test error against alpha, balanced and unbalanced, with the Bayes error and the peaks of interpolation."""
    ridges = np.array([1e-4, 0.1, 1.0, 10.0])
    fractions = {"balanced": 0.5, "unbalanced": 0.2}
    points = np.array([1.0, 2.0, 3.5, 5.5])
    work: dict[str, Work] = {}
    for words, rho in fractions.items():
        for name in LOSSES:
            data = GaussianMixture(1.0, rho, DELTA)
            peak = interpolation_threshold() if name == "square" else separability_threshold(rho, DELTA)
            over = {f"{name}.ridge": ridges, "alpha": denser_near(0.05, 6, 60, peak)}
            work |= curves(effort, data, _chain(name), over, points, f"{words}_{name}")

    def draw(data: Data) -> Figure:
        figure, found = panels(data, 2, 3, 5.0, sharex=True, sharey="row")
        bound = Look(GREY, LINES[0], width=1.8)
        for panel, (words, name) in zip(found, ((w, n) for w in fractions for n in LOSSES), strict=True):
            rho = fractions[words]
            for ridge, look in zip(ridges, looks(4), strict=True):
                chosen = {"simulated": f"simulated_{words}_{name}", f"{name}.ridge": float(ridge)}
                label = rf"$\lambda={style.plain_number(ridge)}$" if ridge >= 0.1 else r"$\lambda=10^{-4}$"
                panel.curve(f"{words}_{name}", "alpha", look, label, **chosen)
            alpha = np.linspace(0.05, 6, 200)
            panel.function(alpha, bayes_error(alpha, rho, DELTA), bound, "Bayes error")
            place = {r"\alpha_I": 1.0} if name == "square" else {r"\alpha^*": separability_threshold(rho, DELTA)}
            panel.mark(place)
            panel.axes.set_xlim(0, 6)
            panel.axes.annotate(
                rf"{name}, $\rho={rho:g}$", (0.96, 0.95), xycoords="axes fraction", ha="right", va="top",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        for panel in found[3:]:
            panel.alpha_axis(0, 6)
        for panel in found[::3]:
            panel.axes.set_ylabel("test error")
        shared_legend(figure, found, 5, said(data, FIXED, IMBALANCE))
        return figure

    return Plan(
        work,
        draw,
        f"{NO_PRINT} The square loss peaks at alpha = 1, where it can just interpolate; logistic and hinge loss have a cusp at "
        "separability; with balanced classes the error falls with the ridge down to the Bayes error, with unbalanced ones "
        "it does not. The hinge has a corner rounded over a width of 0.2. At large ridge and small alpha the bias follows the "
        "imbalance of a finite sample: points of balanced classes lie above the limit of large N.",
    )


@published("mignacco-ridge", "Optimal ridge, and the error it gives")
def optimal_ridge(effort: Effort) -> Plan:
    """Best ridge against alpha for unbalanced classes, and how far from the Bayes error it leaves the estimator."""
    fractions = (0.2, 0.4)
    alpha = np.geomspace(0.3, 10, 33)
    bounds = (1e-6, 1e4)
    few = {"alpha": np.array([0.5, 1.5, 5.0])}
    work: dict[str, Work] = {}
    for name in LOSSES:
        for rho in (*fractions, 0.5):
            tuning = Tuning({f"{name}.ridge": bounds}, f"{name}.test_error")
            values = alpha if rho < 0.5 else alpha[::8]
            mixture = GaussianMixture(1.0, rho, DELTA)
            work[f"{name}_{rho:g}"] = Tuned(mixture, _chain(name), {"alpha": values}, tuning)
            if rho == fractions[0]:
                measured = Simulation(mixture, _chain(name), few, effort, tuning=tuning)
                work |= simulations(effort, **{f"simulated_{name}": measured})

    def draw(data: Data) -> Figure:
        figure, found = panels(data, 1, 3, 2.9)
        for name, look, size in zip(LOSSES, looks(3), (4.0, 8.0, 3.0), strict=True):
            for panel, rho in zip(found, fractions, strict=False):
                part = data[f"{name}_{rho:g}"]
                ridge = part[f"optimal_{name}.ridge"].where(part[f"location_{name}.ridge"] == "interior")
                panel.function(part.alpha, ridge, look, name)
            found[2].curve(f"{name}_{fractions[0]:g}", "alpha", look, None, simulated=f"simulated_{name}")
            part = data[f"{name}_0.5"]
            inside = (part[f"location_{name}.ridge"] != "infinity").values.sum()
            if not inside:
                found[2].axes.plot(
                    part.alpha, part.limit, look.marker, color=look.colour, fillstyle="none", ms=size, clip_on=False, zorder=5
                )  # fmt: skip
        for panel, rho in zip(found, fractions, strict=False):
            style.log_ticks(panel.axes, "y", 0.02, 10)
            panel.axes.set_ylabel(r"optimal ridge, $\lambda$")
            panel.axes.set_title(rf"$\rho={rho:g}$")
        panel = found[2]
        panel.function(alpha, bayes_error(alpha, fractions[0], DELTA), Look(GREY, LINES[0], width=1.8), "Bayes error")
        panel.function(alpha, bayes_error(alpha, 0.5, DELTA), Look(GREY, LINES[0], width=1.8), None)
        panel.axes.set_ylabel("test error at the optimum")
        panel.axes.margins(y=0.08)
        panel.axes.set_title(r"$\rho=0.2$; open marks: $\rho=1/2$, $\lambda\to\infty$", fontsize=8)
        for panel in found:
            style.log_ticks(panel.axes, "x", 0.27, 11.2)
            panel.axes.set_xlabel(style.parameter_label("alpha"))
        shared_legend(figure, found, 4, said(data, FIXED))
        return figure

    return Plan(
        work,
        draw,
        f"{NO_PRINT} With unbalanced classes the best ridge is finite and the error stays above the Bayes error; with balanced "
        "classes the error falls for ever larger ridges, and reaches the Bayes error for all three losses, as the paper proves.",
    )


@dataclass(frozen=True)
class SeparabilityLine:
    """Separability threshold along rho or Delta, for some values of the other."""

    along: str
    values: np.ndarray
    others: Sequence[float]

    def axes(self) -> dict[str, np.ndarray]:
        """Values along both axes."""
        other = "delta" if self.along == "rho" else "rho"
        return {other: np.asarray(self.others), self.along: self.values}

    def along_axes(self, over: Mapping[str, np.ndarray]) -> SeparabilityLine:
        """The same for other values."""
        others, values = over.values()
        return SeparabilityLine(self.along, values, list(others))

    def tasks(self) -> list[Callable[[], object]]:
        return [
            lambda other=other, value=value: self._point(other, value) for other in self.others for value in self.values
        ]

    def _point(self, other: float, value: float) -> float:
        rho, delta = (value, other) if self.along == "rho" else (other, value)
        return separability_threshold(float(rho), float(delta))

    def join(self, pieces: Sequence) -> xarray.Dataset:
        other = "delta" if self.along == "rho" else "rho"
        table = np.array(pieces).reshape(len(self.others), len(self.values))
        return xarray.Dataset(
            {"threshold": ((other, self.along), table)}, {other: list(self.others), self.along: self.values}
        )


@published("mignacco-separability", "Where a hyperplane separates the training set")
def separability(effort: Effort) -> Plan:
    """Separability line in the (rho, alpha) and (Delta, alpha) planes."""
    deltas, fractions = (0.5, 1.0, 2.0, math.inf), (0.5, 0.2, 0.05)
    lines = {
        "rho": SeparabilityLine("rho", np.linspace(0.02, 0.98, 97), deltas),
        "delta": SeparabilityLine("delta", np.geomspace(0.2, 20, 81), fractions),
    }

    def draw(data: Data) -> Figure:
        figure, found = panels(data, 1, 2, 2.8)
        table = data["rho"].threshold
        for delta, look in zip(deltas, looks(4), strict=True):
            text = r"\infty" if math.isinf(delta) else f"{delta:g}"
            found[0].function(table.rho, table[list(deltas).index(delta)], look, rf"$\Delta={text}$")
        table = data["delta"].threshold
        for k, (rho, look) in enumerate(zip(fractions, looks(3), strict=True)):
            found[1].function(table.delta, table[k], look, rf"$\rho={rho:g}$")
        found[0].axes.set_xlim(0, 1)
        found[0].axes.set_xlabel(style.parameter_label("rho"))
        style.log_ticks(found[1].axes, "x", 0.2, 20)
        found[1].axes.set_xlabel(style.parameter_label("delta"))
        figure.suptitle("all inputs trained, no noise in the labels", fontsize=8)
        for panel in found:
            panel.axes.set_yscale("log")
            style.log_ticks(panel.axes, "y", 1.8, 60)
            panel.axes.set_ylabel(r"separability threshold, $\alpha^*$")
            panel.axes.axhline(2.0, color=BLACK, lw=0.6)
            panel.legend(
                loc="upper right" if panel is found[1] else "upper center", ncols=1 if panel is found[1] else 2
            )
        return figure

    return Plan(
        lines,
        draw,
        f"{NO_PRINT} The lines meet the values known independently: 6.6628, 3.7000, 2.7329 at rho = 1/2 and Delta = 0.5, 1, 2, "
        "Cover's 2 without signal, 4.8490 and 3.6071 at rho = 0.2 and Delta = 1, 2.",
    )
