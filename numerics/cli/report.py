"""Results as text: the problem in words, tables, and simulations beside theory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
import numpy as np

from numerics.models import TRAINING, Chain, ClassMixture, Clusters, DataModel, Estimator, Stage, structured
from numerics.solution.observables import OBSERVABLES
from numerics.solution.observables.registry import observables_of
from numerics.solution.solution import Solution

if TYPE_CHECKING:
    from numerics.classes.solution import ClassSolution
    from numerics.simulation.result import Estimate, SimulationResult


SHOWN_FAILURES = 5
"""Points without a result that a command names."""


SHOWN_CLASSES = 12
"""Classes up to which a report has tables of them."""

_SYMBOLS = {"delta": "Delta"}


def describe(data: DataModel, chain: Chain) -> str:
    """The problem in words, a line for the data, one for each further data set and one for each stage."""
    values = ", ".join(
        f"{_SYMBOLS.get(name, name)} = {data.value_of(name):g}" for name in data.parameters if name != "label_noise"
    )
    lines = [f"{data.title}: {values}"]
    if data.label_noise:
        lines[0] += f", label noise {data.label_noise:g}"
    if isinstance(data, ClassMixture):
        lines += _classes_in_words(data)
    if isinstance(data, Clusters):
        parts = [f"{w:g} ({label:+d})" for w, label in zip(data.weights, data.labels, strict=True)]
        shown = ", ".join(parts[:SHOWN_CLASSES]) + (", ..." if len(parts) > SHOWN_CLASSES else "")
        lines.append(f"{len(data)} clusters of {data.size} inputs, weights (labels): {shown}")
    for further in data.further:
        lines.append(f"data set {further.name}: alpha = {further.alpha:g}, label noise {further.label_noise:g}")
    lines += [f"{name}: {_in_words(stage)}" for name, stage in zip(chain.names, chain.stages, strict=True)]
    return "\n".join(lines)


def _classes_in_words(data: ClassMixture) -> list[str]:
    k = data.classes_count
    lines = [] if data.weights == (1.0 / k,) * k else ["weights: " + ", ".join(f"{w:g}" for w in data.weights)]
    if data.gram.family is None and k <= SHOWN_CLASSES:
        lines += [matrix("Gram matrix", np.array(data.gram), [f"class {c}" for c in range(1, k + 1)])]
    return lines


def _in_words(stage: Stage) -> str:
    if not isinstance(stage, Estimator):
        return repr(stage)
    text = f"{stage.loss!r}, ridge {stage.ridge:g}, eta {stage.eta:g}"
    if stage.bias is not None:
        text += f", bias {stage.bias:g}"
    if stage.mask_overlap is not None:
        text += f", mask overlap {stage.mask_overlap:g}"
    if stage.features is not None:
        text += f", sees {stage.features!r}"
    return text if stage.sets == (TRAINING,) else f"{text}, on {' and '.join(stage.sets)}"


def warn_of_failures(count: int, lines: Sequence[str]) -> None:
    """Name the first of ``count`` points without a result on standard error."""
    if count:
        shown = "; ".join(lines[:SHOWN_FAILURES]) + ("; ..." if count > SHOWN_FAILURES else "")
        click.echo(f"warning: {count} points without a result are left out: {shown}", err=True)


def number(value: float, digits: int = 6) -> str:
    """Short text of a number; '-' where there is none."""
    return f"{value:.{digits}g}" if np.isfinite(value) else "-"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]

    def line(first: str, *others: str) -> str:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    return "\n".join(line(*row) for row in rows)


def matrix(name: str, values: np.ndarray, names: Sequence[str]) -> str:
    """A matrix over stages, with its rows and columns named."""
    rows = [[name, *names], *([left, *map(number, row)] for left, row in zip(names, values, strict=True))]
    return table(rows)


def solution_text(solution: Solution) -> str:
    """Order parameters and observables of a solution."""
    names = solution.chain.names
    rows = [["", *names]]
    for key in observables_of(solution.data):
        values = [getattr(stage, key) for stage in solution.stages]
        if np.any(np.isfinite(values)):
            rows.append([key, *map(number, values)])
    parts = [
        describe(solution.data, solution.chain),
        f"converged: {str(solution.converged).lower()} (residual {solution.residual:.1e}, "
        f"quadrature error {solution.quadrature_error:.1e}, {solution.iterations} iterations)",
        table(rows),
    ]
    if solution.data.in_clusters or structured(solution.data, solution.chain):
        parts[1] += f"\nprior: {solution.prior}"
    if solution.data.many_classes:
        return "\n\n".join([*parts, *_of_classes(solution)])
    if len(names) > 1:
        parts += [matrix("overlap Q", solution.overlap, names), matrix("response V", solution.response, names)]
    return "\n\n".join(parts)


def _of_classes(solution: ClassSolution) -> list[str]:
    """Errors class by class, and what the last stage takes for what."""
    k = solution.data.classes_count
    if k > SHOWN_CLASSES:
        return []
    classes = [f"class {c}" for c in range(1, k + 1)]
    errors = np.array([stage.class_errors for stage in solution.stages])
    last = solution.stages[-1]
    confusion = matrix(f"{last.name} says", last.confusion, classes)
    rows = [
        ["test error of", *classes],
        *([n, *map(number, row)] for n, row in zip(solution.chain.names, errors, strict=True)),
    ]
    return [table(rows), confusion]


def simulated(runs: SimulationResult, index: int, name: str) -> Estimate | None:
    """Mean over runs of one of ``OBSERVABLES``; None if the simulation does not measure it at this stage."""
    if name not in dir(runs[index]):
        return None
    found = getattr(runs[index], name)
    return found if np.isfinite(found.mean) else None


def z_score(found: Estimate, expected: float) -> float:
    """Deviation of a simulation from theory in standard errors; NaN where it has none."""
    if not (found.standard_error > 0 and np.isfinite(expected)):
        return float("nan")
    return (float(found.mean) - expected) / float(found.standard_error)


def compare(runs: SimulationResult, solution: Solution | None) -> list[dict[str, dict[str, float | None]]]:
    """For each stage and observable: mean, standard error, and if there is theory its value and the z-score."""
    stages = []
    for index in range(len(runs)):
        entries = {}
        for name in OBSERVABLES:
            found = simulated(runs, index, name)
            if found is None:
                continue
            entry = {"mean": float(found.mean), "standard_error": float(found.standard_error)}
            if solution is not None:
                entry["theory"] = float(getattr(solution[index], name))
                entry["z"] = z_score(found, entry["theory"])
            entries[name] = {key: value if np.isfinite(value) else None for key, value in entry.items()}
        stages.append(entries)
    return stages


def comparison_text(runs: SimulationResult, stages: Sequence[Mapping[str, Mapping[str, float | None]]]) -> str:
    """Tables of :func:`compare`, one a stage."""

    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else number(value, digits)

    samples = str(runs.n_samples)
    if runs.data.further:
        sets = zip(runs.set_sizes, runs.data.sets, strict=True)
        samples = ", ".join(f"{size} ({data_set.name})" for size, data_set in sets)
    parts = [
        describe(runs.data, runs.chain),
        f"{runs.n_runs} runs of N = {runs.n_inputs} inputs, M = {samples} samples, seed {runs.seed}",
        f"converged: {str(runs.converged).lower()} (largest relative gradient norm "
        f"{runs.runs['relative_gradient_norm'].max():.1e})",
    ]
    for name, entries in zip(runs.chain.names, stages, strict=True):
        theory = any("theory" in entry for entry in entries.values())
        rows = [[name, "simulation", "std. error", *(["theory", "z"] if theory else [])]]
        for key, entry in entries.items():
            row = [key, shown(entry["mean"], 5), shown(entry["standard_error"], 2)]
            if theory:
                z = entry["z"]
                row += [shown(entry["theory"], 5), "-" if z is None else f"{z:+.1f}"]
            rows.append(row)
        parts.append(table(rows))
    return "\n\n".join(parts)
