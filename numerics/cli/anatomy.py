"""The command ``python -m numerics.anatomy``: why the student of one point is as good as it is."""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from numerics.anatomy import Anatomy, SimulatedAnatomy, anatomy, simulate_anatomy
from numerics.anatomy.anatomy import z_scores
from numerics.anatomy.levels import (
    GAINS,
    GAINS_INSTANCE_FIRST,
    INSTANCE_FIRST,
    PARTS,
    TITLES,
    TITLES_OF_CLASSES,
    Levels,
)
from numerics.anatomy.weights import GradientWeights
from numerics.cli.command import Command, blaming, deliver, given, patience, require_writable
from numerics.cli.flags import MODEL, SIMULATION_FLAGS, build_model, jobs_option, model_options, report_options
from numerics.cli.report import describe, number, table
from numerics.models import ParameterError
from numerics.solver import ConvergenceWarning

WIDTH, BAR = 100, 24
"""Of a line of text; of the longest bar, in characters."""

_SIMULATED = {**SIMULATION_FLAGS, "n_inputs": "--simulate: N", "n_runs": "--simulate: RUNS"}
_TREND = {
    "grows": "the surer the teacher is of the label, the more a sample counts",
    "falls": "the surer the teacher is of the label, the less a sample counts",
    "constant": "all samples count alike: the student is its teacher",
    "neither": "they neither grow nor fall with the teacher's margin",
    "": "whether they grow with the teacher's margin is not known of a teacher that has one itself",
}


def bar(value: float, largest: float) -> str:
    """A gain to the right, a loss to the left of a line."""
    size = 0 if not np.isfinite(value) or largest == 0.0 else round(BAR / 2 * min(abs(value) / largest, 1.0))
    left, right = ("-" * size, "") if value < 0.0 else ("", "+" * size)
    return f"{left:>{BAR // 2}}|{right:<{BAR // 2}}"


def _correlation(value: float) -> str:
    return f"{value:+.3f}" if np.isfinite(value) else "-"


def _error(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "-"


def students_text(found: Levels, best: Levels | None) -> str:
    """Errors of all students."""
    many = bool(found.instance_first_gains)
    head = ["the student is given", "test error", "quadrature" if many else "best threshold"]
    rows = [[*head, *(["at its best ridge", "which is"] if best else [])]]
    titles = TITLES | (TITLES_OF_CLASSES if many else {})
    for name, level in found.students.items():
        row = [titles[name], _error(level.error), f"{level.quadrature_error:.1e}" if many else _error(level.direction)]
        if best:
            other = best.students[name]
            row += [_error(other.error), "infinite" if np.isinf(other.ridge) else number(other.ridge, 3)]
        rows.append(row)
    return table(rows)


def gains_text(found: Levels, best: Levels | None) -> str:
    """What each level gains, with bars."""
    largest = max((abs(found.gains[gain]) for gain in GAINS), default=0.0)
    head = ["gain by", f"{'loss':>{BAR // 2}}|{'gain':<{BAR // 2}}", "test error", "best threshold"]
    rows = [[*head, *(["at best ridges"] if best else [])]]

    def row(name: str, values: Sequence[float | None]) -> None:
        words = ["" if value is None else f"{value:+.4f}" if np.isfinite(value) else "-" for value in values]
        rows.append([name, bar(values[0], largest), *words])

    for name in GAINS:
        row(name, [found.gains[name], found.direction_gains[name], *([best.gains[name]] if best else [])])
    for name in PARTS:  # of the last one
        row(f"  {name}", [found.instance_parts[name], None, *([best.instance_parts[name]] if best else [])])
    row("total", [found.gains["total"], found.direction_gains["total"], *([best.gains["total"]] if best else [])])
    return table(rows)


def class_gains_text(found: Levels, best: Levels | None) -> str:
    """What each level of a student of K classes gains, in both orders."""
    orders = {
        "which classes are alike, then each sample": (found.gains, found.quadrature_errors()),
        "each sample, then which classes are alike": (
            found.instance_first_gains, found.quadrature_errors(INSTANCE_FIRST, GAINS_INSTANCE_FIRST),
        ),
    }  # fmt: skip
    largest = max(abs(gains[name]) for gains, _ in orders.values() for name in GAINS)
    tuned = [best.gains, best.instance_first_gains] if best else [None, None]
    parts = []
    for (order, (gains, errors)), other in zip(orders.items(), tuned, strict=True):
        head = ["gain by", f"{'loss':>{BAR // 2}}|{'gain':<{BAR // 2}}", "test error", "quadrature"]
        rows = [[*head, *(["at best ridges"] if other else [])]]
        for name, value in gains.items():
            words = [f"{value:+.4f}", f"{errors[name]:.1e}"] if np.isfinite(value) else ["-", "-"]
            rows.append([name, bar(value, largest), *words, *([f"{other[name]:+.4f}"] if other else [])])
        parts.append(f"{order}\n{table(rows)}")
    return "\n\n".join(parts)


def weights_text(found: GradientWeights) -> str:
    """Quartiles and means of the weights, and which way they go."""
    if found.reason:
        return f"gradient weights: none; {found.reason}"
    low, middle, high = found.quantile(np.array([0.25, 0.5, 0.75]))
    lines = [
        "gradient weights w (distillation is training on labels with these weights)",
        f"  quartiles {low:.3f}, {middle:.3f}, {high:.3f}; mean {found.mean:.3f}, over gradients {found.gradient_mean:.3f}, "
        f"before the first step {found.start_mean:.3f}",
        f"  {_TREND[found.monotone]}",
        f"  correlation with how easy a sample is {_correlation(found.difficulty)} (over gradients "
        f"{_correlation(found.gradient_difficulty)})",
    ]
    if np.isfinite(found.regularisation_fraction):
        share = 100 * found.regularisation_fraction
        lines.append(f"  the soft term overrules the label on {share:.1f}% of the samples")
    return "\n".join(lines)


def calibration_text(found: Anatomy) -> str:
    """Calibration of teacher and student."""
    head = ["calibration", "error", "top label", "on training", "temperature", "error then", "true log-odds"]
    rows = [head]
    for name, part in found.calibration.items():
        values = (part.ece, part.ece_top, part.train_ece, part.temperature, part.ece_tempered)
        rows.append([name, *map(_error, values), f"{part.slope:.3f} h {part.offset:+.3f}"])
    return table(rows)


def anatomy_text(found: Anatomy) -> str:
    """One screen."""
    parts = [
        describe(found.question.data, found.question.chain),
        textwrap.fill(found.sentence, WIDTH),
        students_text(found.levels, found.best),
        class_gains_text(found.levels, found.best) if found.many_classes else gains_text(found.levels, found.best),
        *([] if found.weights is None else [weights_text(found.weights)]),
    ]
    if found.bounds is not None:
        parts += [str(found.bounds), calibration_text(found)]
    if found.many_classes:
        parts.append("gradient weights, bounds and calibration are for two classes")
    reasons = [f"{TITLES[name]}: {level.reason}" for name, level in found.levels.students.items() if level.reason]
    return "\n\n".join([*parts, *(["\n".join(reasons)] if reasons else [])])


def simulation_text(found: SimulatedAnatomy) -> str:
    """Simulation beside theory."""
    result, rows = found.result, [["", "simulation", "std. error", "theory", "z"]]
    for name, measured, expected in found.comparisons():
        parts = (measured.mean, measured.standard_error, expected, z_scores(measured, expected))
        means, errors, values, scores = (np.atleast_1d(part) for part in parts)
        for k, (mean, error, value, z) in enumerate(zip(means, errors, values, scores, strict=True)):
            label = f"{name} {k + 1}" if len(means) > 1 else name
            rows.append(
                [label, number(mean, 4), number(error, 2), number(value, 4), f"{z:+.1f}" if np.isfinite(z) else "-"]
            )
    head = f"{result.n_runs} runs of N = {result.n_inputs} inputs, M = {result.n_samples} samples, seed {result.seed}"
    parts = [head, table(rows)]
    if found.weights is not None:
        parts.append(
            f"weights cdf at {_listed(found.weights.x)}; shares, given_margin and ratio between the teacher's margins "
            f"{_listed(found.weights.edges)}"
        )
    return "\n\n".join(parts)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Why the student is as good as it is: what it gains from how sure its teacher is on average (universe), of each class "
    "(domain) and of each sample (instance), and from the soft term's temperature (scale); and how distillation weights the "
    f"gradients of samples.\n\n{MODEL}\n\n\b\n"
    "Examples:\n  python -m numerics.anatomy --alpha 4 --rho 0.3 --label-noise 0.1 --teacher-ridge 3 --student-ridge 0.1 --eta 1\n"
    "  python -m numerics.anatomy --problem chain.json --best-ridge --json",
)
@model_options()
@click.option(
    "--best-ridge", is_flag=True, help="Also compare students at the ridge that is best for each (some seconds)."
)
@click.option(
    "--simulate", nargs=2, type=int, metavar="N RUNS", help="Train all students on N inputs, RUNS times, beside."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of --simulate.")
@jobs_option
@report_options
def anatomy_command(
    best_ridge: bool, simulate: tuple[int, int] | None, seed: int, jobs: int, rtol: float | None, as_json: bool,
    output: Path | None, **flags,
) -> int:  # fmt: skip
    """``python -m numerics.anatomy``."""
    for name in ("seed", "jobs"):
        if simulate is None and given(name):
            raise click.UsageError(f"--{name} has no effect without --simulate")
    data, chain = build_model(flags)
    if output is not None:
        require_writable(output)
    blamed = {
        "data": "--rule: data",
        "best_ridge": "--best-ridge: best_ridge",
        "loss": "--student-loss: loss",
        "stage": "--single: stage",
        "rtol": "--rtol",
    }
    with (
        warnings.catch_warnings(),
        patience("solving; what is new in a chain is compiled first"),
        blaming(blamed, "--student-loss", ParameterError),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = anatomy(data, chain, best_ridge=best_ridge, rtol=rtol)
    measured = None
    if simulate is not None:
        with warnings.catch_warnings(), blaming(_SIMULATED, "--simulate", ParameterError):
            warnings.simplefilter("ignore", ConvergenceWarning)
            measured = simulate_anatomy(data, chain, -1, *simulate, seed, n_jobs=jobs, progress=True)
    if as_json:
        document = {"theory": found.to_dict(), "simulation": None if measured is None else measured.to_dict()}
        deliver(json.dumps(document, indent=2, allow_nan=False), output)
    else:
        parts = [anatomy_text(found), *([] if measured is None else [simulation_text(measured)])]
        deliver("\n\n".join(parts), output)
    if not found.solution.converged:
        click.echo(f"not converged: {found.solution.message}", err=True)
    if measured is not None and not measured.result.converged:
        click.echo(f"not converged: {measured.result.message}", err=True)
    return 0 if found.solution.converged and (measured is None or measured.result.converged) else 1
