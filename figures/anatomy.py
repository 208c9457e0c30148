"""Why a student is as good as it is: levels of its teacher's knowledge and weights of gradients, after Tang et al. (2020).

Nothing of the print but its abstract was at hand; settings are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import xarray
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures.build import Effort, Plan, Work, published
from figures.drawing import Data, heading, looks, panels, said, shared_legend
from numerics.anatomy import anatomy, simulate_anatomy
from numerics.anatomy.levels import GAINS, LADDER, Question, levels
from numerics.models import Chain, DataModel, Estimator, GaussianMixture, with_parameter
from numerics.plots import style
from numerics.sweeps.grid import ERROR_SUFFIX
from theory.losses import CrossEntropy, Distillation

NO_PRINT = "Settings of our choice; only the abstract of the print was at hand."

TOTAL = (*GAINS, "total")
WORDS = {"scale": "scale", "universe": "universe", "domain": "domain", "instance": "instance", "total": "all together"}
COLOURS = {"scale": style.GREY, "universe": style.BLUE, "domain": style.YELLOW, "instance": style.RED}


def problem(
    alpha: float, rho: float, noise: float, ridges: tuple[float, float], eta: float, mixing: float, temperature: float
) -> tuple[GaussianMixture, Chain]:
    """Teacher on labels, and its student; Delta = 1."""
    student = Estimator(Distillation(mixing, temperature), ridges[1], eta)
    return GaussianMixture(alpha, rho, 1.0, noise), Chain.of([Estimator(CrossEntropy(), ridges[0]), student])


@dataclass(frozen=True)
class Scan:
    """Something of the student along one or two parameters."""

    data: GaussianMixture
    chain: Chain
    over: Mapping[str, np.ndarray]

    is_smoothed: ClassVar[bool] = False  # a point takes seconds

    def places(self) -> list[tuple[DataModel, Chain]]:
        """Problems, the last parameter running fastest."""
        found = []
        for index in np.ndindex(*(len(values) for values in self.over.values())):
            data, chain = self.data, self.chain
            for (path, values), k in zip(self.over.items(), index, strict=True):
                data, chain = with_parameter(data, chain, path, float(values[k]))
            found.append((data, chain))
        return found

    def tasks(self) -> list[Callable[[], object]]:
        return [lambda place=place, k=k: self.point(*place, k) for k, place in enumerate(self.places())]

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        """Values at the k-th place."""
        raise NotImplementedError

    def join(self, pieces: Sequence) -> xarray.Dataset:
        shape, axes = tuple(len(values) for values in self.over.values()), tuple(self.over)
        own, coordinates = self.dims(), {**self.over, **self.coordinates()}
        variables = {}
        for name, value in pieces[0].items():
            stacked = np.array([piece[name] for piece in pieces]).reshape(*shape, *np.shape(value))
            variables[name] = ((*axes, *own[name.removesuffix(ERROR_SUFFIX)]), stacked)
        return xarray.Dataset(variables, coordinates, self.attributes())

    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Further dimensions of each variable."""
        raise NotImplementedError

    def coordinates(self) -> Mapping[str, object]:
        """Of the further dimensions."""
        raise NotImplementedError

    def attributes(self) -> Mapping[str, object]:
        return {}


@dataclass(frozen=True)
class Gains(Scan):
    """What each level gains, in test error and after the best threshold."""

    quick: ClassVar[bool] = True

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        found = levels(Question.of(data, chain), names=LADDER)
        both = {"gain": found.gains, "direction_gain": found.direction_gains}
        return {name: np.array([values[level] for level in TOTAL]) for name, values in both.items()}

    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {"gain": ("level",), "direction_gain": ("level",)}

    def coordinates(self) -> Mapping[str, object]:
        return {"level": list(TOTAL)}


@dataclass(frozen=True)
class Measured(Scan):
    """The same of finite systems; every place has a seed of its own."""

    effort: Effort

    simulated: ClassVar[bool] = True

    def measured(self, data: DataModel, chain: Chain, k: int, **how):
        seed = int(np.random.SeedSequence([self.effort.seed, k]).generate_state(1)[0])
        return simulate_anatomy(data, chain, -1, self.effort.n_inputs, self.effort.n_runs, seed, **how)

    def attributes(self) -> Mapping[str, object]:
        return {"n_inputs": self.effort.n_inputs, "n_runs": self.effort.n_runs, "seed": self.effort.seed}


@dataclass(frozen=True)
class MeasuredGains(Measured):
    """Gains, compared run by run."""

    dims, coordinates = Gains.dims, Gains.coordinates

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        found, out = self.measured(data, chain, k), {}
        for name, values in (("gain", found.gains), ("direction_gain", found.direction_gains)):
            out[name] = np.array([values[level].mean for level in TOTAL])
            out[name + ERROR_SUFFIX] = np.array([values[level].standard_error for level in TOTAL])
        return out

    def predicted(self) -> Gains:
        """What theory says there."""
        return Gains(self.data, self.chain, self.over)


@dataclass(frozen=True)
class Weights(Scan):
    """Density of the weights, and their means given the teacher's margin."""

    x: np.ndarray
    margin: np.ndarray

    quick: ClassVar[bool] = True

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        found = anatomy(data, chain, levels=False).weights
        given = found.given_margin(self.margin)
        return {"density": found.pdf(self.x), "mean": given.mean, "ratio": given.ratio}

    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {"density": ("x",), "mean": ("margin",), "ratio": ("margin",)}

    def coordinates(self) -> Mapping[str, object]:
        return {"x": self.x, "margin": self.margin}


@dataclass(frozen=True)
class BinnedWeights(Scan):
    """Means in bins of the teacher's margin, and shares of the samples between levels of the weight, per unit of it."""

    x: np.ndarray
    edges: np.ndarray

    quick: ClassVar[bool] = True

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        found = anatomy(data, chain, levels=False).weights
        bins = found.in_bins(self.edges)
        return {"cdf": found.cdf(self.x), "mean": bins.mean, "ratio": bins.ratio}

    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {"cdf": ("x",), "mean": ("margin",), "ratio": ("margin",)}

    def coordinates(self) -> Mapping[str, object]:
        return {"x": self.x, "margin": 0.5 * (self.edges[1:] + self.edges[:-1])}


@dataclass(frozen=True)
class MeasuredWeights(Measured):
    """The same in finite systems."""

    x: np.ndarray
    edges: np.ndarray

    dims, coordinates = BinnedWeights.dims, BinnedWeights.coordinates

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        found = self.measured(data, chain, k, x=self.x, edges=self.edges).weights
        out = {}
        for name, values in (("cdf", found.cdf), ("mean", found.given_margin), ("ratio", found.ratio)):
            out[name], out[name + ERROR_SUFFIX] = values.mean, values.standard_error
        return out

    def predicted(self) -> BinnedWeights:
        """What theory says there."""
        return BinnedWeights(self.data, self.chain, self.over, self.x, self.edges)


@dataclass(frozen=True)
class Trend(Scan):
    """How r(b) changes from the 5% to the 95% quantile of the teacher's margin, and whether it does so steadily."""

    quick: ClassVar[bool] = True

    def point(self, data: DataModel, chain: Chain, k: int) -> dict[str, np.ndarray]:
        found = anatomy(data, chain, levels=False).weights
        low, high = found.given_margin(found.margin_quantile(np.array([0.05, 0.95]))).ratio
        return {"change": np.array(high - low), "steady": np.array(float(found.monotone != "neither"))}

    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {"change": (), "steady": ()}

    def coordinates(self) -> Mapping[str, object]:
        return {}


def simulations_of(effort: Effort, **parts: Measured) -> dict[str, Work]:
    """Simulations, and what theory says at the same places; none if the effort is none."""
    if not effort.n_runs:
        return {}
    return {**parts, **{f"predicted_{name}": part.predicted() for name, part in parts.items()}}


# Figures.


@published("anatomy-levels", "What a student gains by each level of its teacher's knowledge")
def gains_of_levels(effort: Effort) -> Plan:
    """Gains against alpha, of the test error and of the error after the best threshold, without and with noise."""
    alpha, points = np.geomspace(0.3, 16.0, 41), np.array([0.5, 1.2, 3.0, 8.0])
    noises = {"clean": 0.0, "noisy": 0.2}
    work: dict[str, Work] = {}
    for name, noise in noises.items():
        data, chain = problem(1.0, 0.3, noise, (0.3, 0.1), 1.0, 1.0, 2.0)
        work[name] = Gains(data, chain, {"alpha": alpha})
        work |= simulations_of(effort, **{f"simulated_{name}": MeasuredGains(data, chain, {"alpha": points}, effort)})

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 2, 2, 4.6, sharex=True)
        for k, panel in enumerate(found):
            name, noise = list(noises.items())[k // 2]
            variable = ("gain", "direction_gain")[k % 2]
            panel.axes.axhline(0.0, color=style.BLACK, lw=0.5)
            for level, look in zip(
                TOTAL, (*looks(4), replace(looks(4)[3], line="-", colour=style.GREY, width=2.0)), strict=True
            ):
                curve = parts[name][variable].sel(level=level)
                panel.axes.plot(curve.alpha, curve, color=look.colour, ls=look.line, lw=look.width)
                handle = Line2D([], [], color=look.colour, ls=look.line, lw=look.width)
                if f"simulated_{name}" in parts:
                    dots = parts[f"simulated_{name}"].sel(level=level)
                    panel.dots(dots.alpha, dots[variable], dots[variable + ERROR_SUFFIX], look, dots.attrs["n_runs"])
                    handle.set(marker=look.marker)
                panel.entries.append((handle, WORDS[level]))
            style.log_ticks(panel.axes, "x", alpha[0], alpha[-1])
            panel.axes.set_title(rf"$\theta={noise:g}$")
        for panel in found[2:]:
            panel.axes.set_xlabel(style.parameter_label("alpha"))
        for panel in found[::2]:
            panel.axes.set_ylabel("gain in test error")
        for panel in found[1::2]:
            panel.axes.set_ylabel("gain after the best threshold")
        shared_legend(
            figure,
            found,
            5,
            said(parts, r"$\rho=0.3$, $\Delta=1$, $\tilde\lambda=0.3$, $\lambda=0.1$, $\eta=1$, $\chi=1$, $T=2$"),
        )
        return figure

    return Plan(
        work, draw,
        f"{NO_PRINT}  rho = 0.3, Delta = 1, ridges 0.3 and 0.1, chi = 1, T = 2.  Domain knowledge moves the bias alone: after the "
        "best threshold it is nothing.  Instance knowledge is worth more where labels are noisy.",
    )  # fmt: skip


FACTORS = (0.25, 1.0, 4.0)
"""Ridge of the student over (1 - chi) times that of the teacher."""


@published("anatomy-weights", "Weights that distillation gives to gradients")
def weights_of_samples(effort: Effort) -> Plan:
    """Density of the weights, their means given the teacher's margin, and the ratio of mean gradients."""
    ridge, mixing = 0.4, 0.5
    data, chain = problem(2.0, 0.5, 0.1, (ridge, 0.2), 1.0, mixing, 1.0)
    over = {"student.ridge": np.array([factor * (1.0 - mixing) * ridge for factor in FACTORS])}
    x, margin = np.linspace(-0.4, 1.0, 141), np.linspace(-2.0, 3.0, 81)
    edges = np.linspace(-1.75, 2.75, 10)
    levels_of_weight = np.array([0.0, 0.2, 0.4, 0.45, 0.55, 0.6, 0.8])
    measured = MeasuredWeights(data, chain, over, effort, levels_of_weight, edges)
    work = {"weights": Weights(data, chain, over, x, margin), **simulations_of(effort, simulated=measured)}

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 3, 2.6)
        for k, (factor, look) in enumerate(zip(FACTORS, looks(3), strict=True)):
            here = parts["weights"].isel({"student.ridge": k})
            label = rf"$\lambda={factor:g}\,(1-\chi)\tilde\lambda$"
            found[0].entries.append((Line2D([], [], color=look.colour, ls=look.line, marker=look.marker), label))
            if np.isfinite(here.density).any():
                found[0].axes.plot(here.x, here.density, color=look.colour, ls=look.line)
            else:  # one weight for all
                found[0].axes.axvline(1.0 - mixing, color=look.colour, ls=look.line)
            for panel, name in zip(found[1:], ("mean", "ratio"), strict=True):
                panel.axes.plot(here.margin, here[name], color=look.colour, ls=look.line)
                if "simulated" in parts:
                    dots = parts["simulated"].isel({"student.ridge": k})
                    panel.dots(dots.margin, dots[name], dots[name + ERROR_SUFFIX], look, dots.attrs["n_runs"])
        found[0].axes.set(xlabel="weight $w$", ylabel="density", xlim=(x[0], x[-1]), ylim=(0, None))
        for panel, label in zip(found[1:], (r"$E[w\,|\,b]$", "ratio of mean gradients $r(b)$"), strict=True):
            panel.axes.set(xlabel="teacher's margin $b$", ylabel=label, ylim=(-0.6, 1.0))
        shared_legend(
            figure,
            found[:1],
            3,
            said(
                parts,
                r"$\alpha=2$, $\rho=0.5$, $\Delta=1$, $\theta=0.1$, $\tilde\lambda=0.4$, $\eta=1$, $\chi=0.5$, $T=1$",
            ),
        )
        return figure

    return Plan(
        work, draw,
        f"{NO_PRINT}  alpha = 2, rho = 0.5, theta = 0.1, teacher's ridge 0.4, chi = 0.5, T = 1.  That weights grow with the "
        "teacher's confidence holds above ridge (1 - chi) times the teacher's, is reversed below, and at it the student is its "
        "teacher.  Dots are averages over bins.",
    )  # fmt: skip


@published("anatomy-claim", "Where gradient weights grow with the teacher's confidence")
def claim(effort: Effort) -> Plan:
    """Change of r(b) over the teacher's margins in the plane of the ridges, and the line where all weights are equal."""
    ridges = np.geomspace(1e-2, 10.0, 22)
    cases = {"cold": (0.5, 0.0, 1.0), "hot": (0.5, 0.2, 4.0), "sharp": (0.5, 0.0, 0.5)}
    work = {
        name: Trend(
            *problem(2.0, rho, noise, (0.1, 0.1), 1.0, 0.5, t), {"teacher.ridge": ridges, "student.ridge": ridges}
        )
        for name, (rho, noise, t) in cases.items()
    }

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 3, 2.7, sharey=True)
        for panel, (name, (_, noise, t)) in zip(found, cases.items(), strict=True):
            change, steady = parts[name].change.T, parts[name].steady.T
            mesh = panel.axes.pcolormesh(ridges, ridges, change, cmap="RdBu", vmin=-1.0, vmax=1.0, rasterized=True)
            if not steady.all():
                panel.axes.contourf(ridges, ridges, steady, levels=[-0.5, 0.5], colors="none", hatches=["/////"])
            line = np.array([ridges[0], ridges[-1]])
            panel.axes.plot(line, 0.5 * line, color=style.BLACK, lw=1.2, ls="--")
            panel.axes.set(
                xscale="log", yscale="log", xlim=(1e-2, 10), ylim=(1e-2, 10), xlabel=r"teacher's ridge $\tilde\lambda$"
            )
            panel.axes.set_title(rf"$T={t:g}$, $\theta={noise:g}$")
        line = r"dashed: $\lambda=(1-\chi)\tilde\lambda$; hatched: not monotone"
        heading(figure, r"$\alpha=2$, $\rho=0.5$, $\Delta=1$, $\eta=1$, $\chi=0.5$; " + line)
        found[0].axes.set_ylabel(r"student's ridge $\lambda$")
        figure.colorbar(mesh, ax=[panel.axes for panel in found], pad=0.01, aspect=28).set_label(
            "$r$ at 95% minus $r$ at 5%"
        )
        return figure

    return Plan(
        work, draw,
        f"{NO_PRINT}  alpha = 2, rho = 0.5, chi = 0.5, dense student.  Blue: weights grow with the teacher's margin; hatched: "
        "neither grow nor fall throughout its middle 90%.  The dashed line is ridge = (1 - chi) times the teacher's.",
    )  # fmt: skip


@published("anatomy-blame", "Which level is to blame where distillation hurts")
def blame(effort: Effort) -> Plan:
    """The worst level where the student is worse than one trained on labels, over alpha and the teacher's ridge."""
    alpha, ridges = np.geomspace(0.3, 16.0, 26), np.geomspace(1e-2, 30.0, 26)
    cases = {
        "imbalanced": (0.3, 0.1, 1.0, 1.0, 0.1),
        "balanced": (0.5, 0.0, 0.5, 1.0, 0.01),
        "hot": (0.3, 0.1, 0.6, 10.0, 0.05),
    }
    titles = {
        name: rf"$\rho={rho:g}$, $\theta={noise:g}$, $\eta={eta:g}$, $T={t:g}$, $\lambda={ridge:g}$"
        for name, (rho, noise, eta, t, ridge) in cases.items()
    }
    work = {
        name: Gains(*problem(1.0, rho, noise, (0.1, ridge), eta, 1.0, t), {"alpha": alpha, "teacher.ridge": ridges})
        for name, (rho, noise, eta, t, ridge) in cases.items()
    }

    def draw(parts: Data) -> Figure:
        figure, found = panels(parts, 1, 3, 2.8, sharey=True)
        colours = ListedColormap([COLOURS[level] for level in GAINS])
        for panel, name in zip(found, cases, strict=True):
            gain = parts[name].gain
            total = gain.sel(level="total").T
            worst = gain.sel(level=list(GAINS)).fillna(0.0).argmin("level").T
            shown = np.ma.masked_where(~(total.values < -1e-6), worst.values)
            panel.axes.pcolormesh(alpha, ridges, shown, cmap=colours, vmin=-0.5, vmax=3.5, rasterized=True)
            panel.axes.contour(alpha, ridges, total, [-0.05, -0.02, 0.02], colors="black", linewidths=0.6)
            panel.axes.set(xscale="log", yscale="log", xlabel=style.parameter_label("alpha"))
            panel.axes.set_title(titles[name], fontsize=7)
        found[0].axes.set_ylabel(r"teacher's ridge $\tilde\lambda$")
        patches = [Patch(color=COLOURS[level], label=WORDS[level]) for level in GAINS]
        title = r"$\Delta=1$, $\chi=1$; white: distillation helps; lines: total gain $-0.05$, $-0.02$ (dashed), $0.02$"
        figure.legend(handles=patches, loc="outside upper center", ncols=4, title=title, title_fontsize=8)
        return figure

    return Plan(
        work, draw,
        f"{NO_PRINT}  White: distillation helps.  Lines: total gain of -0.05, -0.02 (dashed) and 0.02.  An over-regularised "
        "teacher of unbalanced classes hurts by the bias (domain), a teacher of few samples by its doubt (universe), a high "
        "temperature by its scale.",
    )  # fmt: skip
