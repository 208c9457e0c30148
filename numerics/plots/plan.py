"""The main figure of any chain: what is computed for it, and what is said below its legend.

Errors and gaps of all stages against the samples of the training set, for the chain as it is and with its first ridge all but
switched off; the last stage on hard labels instead; and a map of the last stage's error over samples and that ridge.  A chain for
which one of these makes no sense is drawn without it; one for which none does is refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray

from numerics import thresholds
from numerics.classes.separability import complete_separability_threshold
from numerics.models import (
    PARAMETERS,
    TRAINING,
    Chain,
    ClassMixture,
    DataModel,
    Dense,
    Estimator,
    Frozen,
    LinearMap,
    ParameterError,
    Stage,
    described,
    parameter_values,
    total_alpha,
)
from numerics.plots import style
from numerics.scalar.compiled import structural_loss
from numerics.simulation.run import Simulation
from numerics.sweeps.grid import Experiment, Grid
from theory.losses import CrossEntropy, Distillation

MOST_SEPARATED = 6
"""Classes up to which it takes seconds to find where they are separable."""

NEUTRAL = {"label_noise": 0.0, "smoothing": 0.0, "eta": 1.0}
"""Values of parameters that change nothing, and are not mentioned."""

UNREGULARISED = 1e-5
"""Ridge that stands for none; the other one compared is the chain's own."""

ALPHA_RANGE = PARAMETERS["alpha"].low, PARAMETERS["alpha"].high
CURVE_POINTS = 180
MAP_POINTS = (180, 120)
MAP_RIDGES = (1e-5, 10.0)
PANELS = ("test_error", "generalization_gap", "loss_gap")
SIMULATED_ALPHAS = (0.1, 0.2, 0.32, 0.65, 1.0, 1.8, 2.7, 3.9, 5.5)

FEWER = {1: 1, 2: 1, 3: 3, 4: 9}
"""By how much longer chains are drawn with fewer points along an axis: a point of four stages takes a fraction of a second, one of
more takes seconds and they are not drawn.  Chains of quadratic losses take no time at any length."""

FEWEST = 8
"""Points that an axis has for any chain."""

COMPARED_STAGES = 2
"""Stages for which both ridges are drawn; curves of more would hide each other."""

LABELS = "labels"
"""Part, and stage, of the last stage trained on hard labels."""


def refined_grid(low: float, high: float, count: int, peaks: Mapping[float, tuple[float, float]]) -> np.ndarray:
    """About ``count`` points from ``low`` to ``high``, denser near peaks, which are themselves among the points.

    ``peaks`` maps a position to the share of the points spent there, and to the width, in log(alpha), they spread over.
    """
    inside = {value: how for value, how in peaks.items() if low < value < high}
    rest = 1.0 - sum(share for share, _ in inside.values())
    fine = np.linspace(np.log(low), np.log(high), 20001)
    cumulative = rest * np.linspace(0.0, 1.0, fine.size)
    for value, (share, width) in inside.items():
        arc = np.arctan((fine - np.log(value)) / width)
        cumulative += share * (arc - arc[0]) / (arc[-1] - arc[0])
    points = np.exp(np.interp(np.linspace(0.0, 1.0, count), cumulative, fine))
    points[0], points[-1] = low, high
    for value in inside:
        points[1 + np.argmin(np.abs(np.log(points[1:-1] / value)))] = value
    return np.unique(points)


# What the chain has.


def thresholds_in_alpha(data: DataModel, chain: Chain) -> dict[str, float]:
    """Where the last stage interpolates its teacher, and where the samples stop being separable for it and for the first one.

    Only those that there are: of stages that are trained on the training set.
    """
    values = {}
    separable = {"teacher_separability": Chain.of(chain[0])}
    if len(chain) > 1:
        if _learns(chain[-1]) and _interpolates(chain[-1]):
            values["interpolation"] = _directions(data, chain)
        separable = {"student_separability": chain, **separable}
    for name, stages in separable.items():
        if _learns(stages[-1]) and not data.has_real_labels:
            found = _separability(data, stages)
            if math.isfinite(found):
                values[name] = found
    return values


def _directions(data: DataModel, chain: Chain) -> float:
    """Directions in which the inputs of the last stage vary, over N."""
    return (
        chain[-1].eta if data.many_classes or data.in_clusters else thresholds.interpolation_threshold_of(data, chain)
    )


def _separability(data: DataModel, chain: Chain) -> float:
    """Samples per input up to which they are separable for the last stage; NaN where it is not known."""
    if data.in_clusters:
        return math.nan
    if not isinstance(data, ClassMixture):
        return thresholds.separability_threshold_of(data, chain)
    if data.classes_count > MOST_SEPARATED or not data.inputs.white:
        return math.nan
    try:
        return complete_separability_threshold(data, chain[-1].eta).value
    except ArithmeticError:
        return math.nan


def _learns(stage: Stage) -> bool:
    """Whether a stage fits the samples of the training set, and no others."""
    return isinstance(stage, Estimator) and stage.sets == (TRAINING,)


def _interpolates(stage: Estimator) -> bool:
    """Whether the loss of every sample has a finite minimum to reach; pure label learning has not."""
    parameters = stage.loss.parameters
    pure_labels = isinstance(stage.loss, Distillation) and parameters["mixing"] == 0 and parameters["smoothing"] == 0
    return not pure_labels


def ridge_axis(chain: Chain) -> str | None:
    """Name of the ridge that is compared: of the first stage that has one to choose; None if no stage has."""
    for name, stage in zip(chain.names, chain.stages, strict=True):
        if isinstance(stage, Estimator):
            return f"{name}.ridge"
    return None


def require_drawable(chain: Chain) -> None:
    """ParameterError if nothing of the main figure makes sense for a chain."""
    if all(isinstance(stage, Frozen) for stage in chain.stages):
        raise ParameterError("the main figure shows what samples do, but no stage of this chain is trained on any")
    if len(chain) not in FEWER and not _is_quadratic(chain):
        raise ParameterError(
            f"the main figure of {len(chain)} stages would take hours (up to {max(FEWER)} are drawn, more if all losses are "
            "quadratic); --x alpha=0.1:6:20 draws one quantity"
        )


def _is_quadratic(chain: Chain) -> bool:
    return all(structural_loss(stage).is_quadratic for stage in chain.stages)


def on_labels(chain: Chain) -> Chain | None:
    """The last stage, trained on hard labels as the first one is; None if it does not learn from others, or from other samples."""
    last = chain[-1]
    if len(chain) == 1 or not _learns(last) or not last.loss.logits:
        return None
    learners = [stage for stage in chain.stages if isinstance(stage, Estimator) and not stage.loss.logits]
    loss = learners[0].loss if learners else CrossEntropy()
    return Chain.of(replace(last, loss=loss, name=LABELS, mask_overlap=None))


def _without_further(data: DataModel) -> DataModel:
    return replace(data, further=())


# What is computed.


def plan_double_descent(
    data: DataModel, chain: Chain, simulation: tuple[int, int], seed: int
) -> tuple[dict[str, Grid | Experiment], xarray.Dataset, dict[str, float]]:
    """What to compute for the main figure; the Bayes bounds; the thresholds.

    Raises
    ------
    ParameterError
        If nothing of the figure makes sense for this chain.
    """
    require_drawable(chain)
    if data.many_classes:
        raise ParameterError(
            "the main figure of many classes would take hours; --x says what to draw instead, such as --x alpha"
        )
    limits = thresholds_in_alpha(data, chain)
    fewer = 1 if _is_quadratic(chain) else FEWER[len(chain)]
    axis, labels = ridge_axis(chain), on_labels(chain)
    alpha = refined_grid(*ALPHA_RANGE, _fewer(CURVE_POINTS, fewer), _peaks(limits, (0.32, 0.1), (0.12, 0.05)))
    ridges = _compared(chain, axis)
    work: dict[str, Grid | Experiment] = {"curves": Grid(data, chain, {**ridges, "alpha": alpha}, PANELS)}
    if labels is not None:
        work[LABELS] = Grid(_without_further(data), labels, {"alpha": alpha}, PANELS)
    if axis is not None:
        counts = [_fewer(count, fewer) for count in MAP_POINTS]
        coarse = refined_grid(*ALPHA_RANGE, counts[0], _peaks(limits, (0.3, 0.15), (0.08, 0.1)))
        over = {axis: np.geomspace(*MAP_RIDGES, counts[1]), "alpha": coarse}
        work["heat_map"] = Grid(data, chain, over, ("test_error",))
    n_inputs, n_runs = simulation
    if n_runs:
        points = np.unique([*SIMULATED_ALPHAS, round(chain[-1].eta, 6)])
        points = points[(points > ALPHA_RANGE[0]) & (points < ALPHA_RANGE[1])]
        how = (PANELS, Simulation(n_inputs, n_runs, seed))
        work["simulated_curves"] = Experiment(data, chain, {**ridges, "alpha": points}, *how)
        if labels is not None:
            work["simulated_labels"] = Experiment(_without_further(data), labels, {"alpha": points}, *how)
    return work, bayes_bounds(data, chain, alpha), limits


def _fewer(count: int, divisor: int) -> int:
    return min(count, max(FEWEST, count // divisor))


def _compared(chain: Chain, axis: str | None) -> dict[str, np.ndarray]:
    """The ridge's axis with the values that are drawn."""
    if axis is None:
        return {}
    own = chain[chain.names.index(axis.rpartition(".")[0])].ridge
    return {axis: np.unique([UNREGULARISED, own] if len(chain) <= COMPARED_STAGES else [own])}


def _peaks(
    limits: Mapping[str, float], at_interpolation: tuple[float, float], at_separability: tuple[float, float]
) -> dict[float, tuple[float, float]]:
    return {value: at_interpolation if name == "interpolation" else at_separability for name, value in limits.items()}


def bayes_bounds(data: DataModel, chain: Chain, alpha: np.ndarray) -> xarray.Dataset:
    """Least test error of who sees each stage's inputs and all samples up to it; none where given weights may know more."""
    bounds: dict[str, tuple[str, np.ndarray]] = {}
    seen: set[str] = set()
    if not data.ruled and not any(isinstance(stage, Frozen) for stage in chain.stages):
        for name, stage in zip(chain.names, chain.stages, strict=True):
            seen.update(stage.sets)
            others = total_alpha(data, sorted(seen - {TRAINING}))
            samples = others + (alpha if TRAINING in seen else np.zeros_like(alpha))
            bounds[f"bayes_{name}"] = ("alpha", thresholds.bayes_error_of(data, samples, stage.eta))
    return xarray.Dataset(bounds, {"alpha": alpha})


# What is said.


def parameters_note(data: DataModel, chain: Chain, simulation: tuple[int, int], limits: Mapping[str, float]) -> str:
    """The model's parameters and what the lines and points are, in mathtext."""
    number = style.plain_number
    shown = [name for name in data.parameters[1:] if name != "label_noise" or data.label_noise]
    note = ", ".join(f"${described(name).symbol}={number(data.value_of(name))}$" for name in shown)
    if data.ruled or data.many_classes:
        note = f"{data.title}, {note}" if note else data.title
    note += "".join(f", {words}" for words in _inputs(data))
    for further in data.further:
        note += rf", {style.words(further.name)}: $\alpha={number(further.alpha)}$"
    if chain.names == ("teacher", "student") and all(isinstance(stage, Estimator) for stage in chain.stages):
        note += ", " + _two_stages(chain[1])
    elif len(chain) > 1:
        note += "\n" + "; ".join(
            f"{style.words(name)}: {_stage(stage)}" for name, stage in zip(chain.names, chain.stages, strict=True)
        )
    elif _stage(chain[0], ridge=False):
        note += f", {_stage(chain[0], ridge=False)}"
    if simulation[1]:
        note += "\n" + style.points_are(*simulation)
    return note + _verticals(limits, chain[-1])


def fixed_note(
    data: DataModel, chain: Chain, varied: Collection[str], stages: Sequence[str], simulation: tuple[int, int],
    limits: Mapping[str, float],
) -> str:  # fmt: skip
    """Parameters that are not varied, of the data and of the stages up to the last one drawn; what points and lines are."""
    unseen = chain.names[1 + max(map(chain.names.index, stages)) :]
    lines: dict[str, list[str]] = {}
    for path, value in parameter_values(data, chain).items():
        owner, _, name = path.rpartition(".")
        if path not in varied and owner not in unseen and NEUTRAL.get(name) != value:
            symbol = described(path).symbol or rf"\mathrm{{{name}}}".replace("_", r"\ ")
            lines.setdefault(owner, []).append(f"${symbol}={style.plain_number(value)}$")
    for name, stage in zip(chain.names, chain.stages, strict=True):
        if name not in unseen:
            lines.setdefault(name, []).extend(_seen(stage))
    lines.setdefault("", []).extend(_inputs(data))
    lines = {owner: found for owner, found in lines.items() if found}
    about = {"": f"{data.title}: " if data.ruled or data.many_classes else ""}
    note = [about.get(owner, f"{style.words(owner)}: ") + ", ".join(found) for owner, found in lines.items()]
    return "\n".join([*note, *([style.points_are(*simulation)] if simulation[1] else [])]) + _verticals(
        limits, chain[-1]
    )


def _two_stages(student: Estimator) -> str:
    number = style.plain_number
    note = rf"$\eta={number(student.eta)}$, student's ridge ${number(student.ridge)}$"
    return note + "".join(f", {text}" for text in (*_loss(student), *_seen(student)))


def _seen(stage: Stage) -> list[str]:
    """What a stage sees instead of the inputs, in words."""
    if isinstance(stage.features, LinearMap):
        return [f"{stage.features.matrix.shape[0]} linear features"]
    return [] if stage.features is None else [f"{stage.features.activation} features"]


def _inputs(data: DataModel) -> list[str]:
    """What is said of inputs that are not white, beside their parameters."""
    if isinstance(data.inputs, Dense):
        return [f"covariance of {data.inputs.size} inputs"]
    return [] if data.inputs.white else [f"{len(data.inputs.shares)} variances of inputs"]


def _loss(stage: Estimator) -> list[str]:
    """Parameters of a loss, in mathtext."""
    found = []
    for name, value in stage.loss.parameters.items():
        if not (name == "smoothing" and value == 0):
            symbol = described(name).symbol or rf"\mathrm{{{name}}}".replace("_", r"\_")
            found.append(rf"${symbol}={style.plain_number(value)}$")
    return found


def _stage(stage: Stage, ridge: bool = True) -> str:
    """Parameters of a stage, in mathtext."""
    number = style.plain_number
    if isinstance(stage, Frozen):
        return rf"$m={number(stage.magnetization)}$, $Q={number(stage.norm_squared)}$"
    found = []
    if isinstance(stage, Estimator):
        found += [rf"$\lambda={number(stage.ridge)}$"] if ridge else []
    else:
        found.append({"BayesOptimal": "Bayes-optimal"}.get(type(stage).__name__, type(stage).__name__))
    if stage.eta != 1:
        found.append(rf"$\eta={number(stage.eta)}$")
    return ", ".join([*found, *(_loss(stage) if isinstance(stage, Estimator) else []), *_seen(stage)])


def _verticals(limits: Mapping[str, float], last: Stage) -> str:
    """What the dotted lines are; nothing if there are none."""
    said = []
    what = r"\eta" if last.features is None else "p/N"
    if "interpolation" in limits:
        said.append(rf"interpolation $\alpha_I={what}$")
    both = {"student_separability": r"$\alpha_S$ (student)", "teacher_separability": r"$\tilde{\alpha}_S$ (teacher)"}
    here = [text for name, text in both.items() if name in limits]
    if here:
        said.append("linear separability " + ", ".join(here))
    return "\ndotted verticals: " + ", ".join(said) if said else ""
