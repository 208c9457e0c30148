"""The command ``python -m numerics.predict``: what to expect of teacher and student on somebody's own data."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import click
import numpy as np
import xarray

from numerics.anatomy.levels import TITLES
from numerics.cli.command import OUTPUT_FOLDER, Command, blaming, given, patience, require_writable
from numerics.cli.flags import jobs_option
from numerics.cli.report import number, table
from numerics.models import Chain, Estimator, LinearMap, Measured, ParameterError
from numerics.models.measured import FOLDS
from numerics.phase_diagram import write_data, write_figure
from numerics.plots.measured import overview
from numerics.predict.check import Check, better_kind, check, learning_curves, limits, reliability, sample_range
from numerics.predict.choose import CANDIDATES, Choice, choose, cross_validate
from numerics.predict.knowledge import MeasuredLevels, levels_on
from numerics.predict.reading import BUILT_IN, SCALES, Table, built_in, read_file
from numerics.simulation.result import Estimate
from numerics.solution.solution import without_nan
from theory.losses import CrossEntropy, Distillation

WIDTH = 110
"""Of a line of text."""

POINTS, FITTED = 10, 3
"""Training set sizes of curves, and at how many of them there are fits."""

OVER = {
    "teacher.ridge": (1e-3, 1e2), "student.ridge": (1e-4, 1e1), "student.mixing": (0.0, 1.0), "student.temperature": (0.5, 10.0),
}  # fmt: skip
"""What is searched for a choice."""


def numbers_of(text: str, flag: str) -> list[float]:
    """Numbers with commas between; click.UsageError for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"{flag} wants numbers with commas between, got {text!r}") from None


def words_of(text: str | None) -> tuple[str, ...]:
    """Words with commas between."""
    return () if not text else tuple(word.strip() for word in text.split(","))


def sizes_of(text: str | None, data: Measured) -> list[int]:
    """Training set sizes that are asked for, by default all over the range that can be predicted."""
    if text is None:
        return sorted(set(sample_range(data, POINTS)))
    found = sorted(set(numbers_of(text, "--samples")))
    if any(value != int(value) or value < 2 for value in found):
        raise click.UsageError(f"--samples wants whole numbers from 2 on, got {text!r}")
    return [int(value) for value in found]


def read_table(file: Path | None, name: str | None, flags: Mapping[str, object]) -> Table:
    """The samples that are asked for."""
    classes, scale = words_of(flags["classes"]), flags["scale"]
    if file is not None and name is not None:
        raise click.UsageError("--data has no effect beside a FILE")
    if file is None:
        for flag in ("label", "drop"):
            if flags[flag]:
                raise click.UsageError(f"--{flag} has no effect without a FILE")
        return built_in(name or BUILT_IN[0], classes, scale)
    return read_file(file, flags["label"], classes, scale or "columns", words_of(flags["drop"]))


def with_features(found: Table, text: str | None, seed: int) -> tuple[Table, LinearMap | None, LinearMap | None]:
    """The samples with features beside, and what teacher and student see of them; without ``text`` the samples alone."""
    if text is None:
        return found, None, None
    activation, _, count = text.partition(":")
    if not count.isdigit():
        raise click.UsageError(f"--student-features wants ACTIVATION:COUNT, got {text!r}")
    wide = found.with_features(activation, int(count), seed)
    seen = np.eye(wide.samples.size)
    return wide, LinearMap(seen[: found.samples.size]), LinearMap(seen[found.samples.size :])


def chains_of(
    teacher: LinearMap | None,
    student: LinearMap | None,
    ridges: Sequence[Sequence[float]],
    mixing: float,
    temperature: float,
) -> dict[str, Chain]:
    """One chain for each pair of ridges, by what differs between them."""
    loss, found = _distillation(mixing, temperature), {}
    for first, second in product(*ridges):
        words = [f"{name} ridge {value:g}" for name, value, all_of_them in
                 zip(("teacher", "student"), (first, second), ridges, strict=True) if len(all_of_them) > 1]  # fmt: skip
        stages = [
            Estimator(CrossEntropy(), first, features=teacher),
            Estimator(loss, second, features=student),
        ]
        found[", ".join(words) or f"ridges {first:g} and {second:g}"] = Chain.of(stages)
    return found


def _distillation(mixing: float, temperature: float) -> Distillation:
    try:
        return Distillation(mixing, temperature)
    except ValueError as error:
        raise ParameterError(str(error)) from None


def describe(found: Table, data: Measured, chain: Chain) -> str:
    """The data and the stages, in words."""
    kind = {"pooled": "one covariance for both classes", "per class": "one covariance a class"}[data.covariances]
    lines = [
        f"{found.title}: {found.samples.count} samples of N = {found.samples.size} columns, {100 * data.rho:.3g}% positive, "
        f"{kind}; " + "; ".join(found.notes)
    ]
    for name, stage in zip(chain.names, chain.stages, strict=True):
        columns = found.samples.size if stage.features is None else len(stage.features.matrix)
        lines.append(f"{name}: {stage.loss!r} on {columns} columns")
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def with_error(value: float, error: float) -> str:
    """A number and its error in brackets, in units of the last digit."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.4f}" + (f"({max(round(1e4 * error), 1)})" if np.isfinite(error) else "")


def curves_text(curves: xarray.Dataset) -> str:
    """A table for each setting: predicted, Gaussian and measured errors of the stages against M."""
    parts = []
    for setting in curves.setting.values:
        rows = [
            ["M", *(f"{stage} {what}" for stage in curves.stage.values for what in ("predicted", "Gaussian", "fits"))]
        ]
        for size in curves.samples.values:
            row = [str(int(size))]
            for stage in curves.stage.values:
                at = curves.sel(setting=setting, stage=stage, samples=size)
                row += [
                    with_error(float(at.test_error), float(at.standard_error)),
                    number(float(at.gaussian_error), 4),
                    with_error(float(at.fits), float(at.fits_standard_error)),
                ]
            rows.append(row)
        parts.append(f"{setting}\n{table(rows)}")
    return "\n\n".join(parts)


def ranking_text(curves: xarray.Dataset, one: Check) -> str:
    """Settings by the predicted error of the last stage at the point of the check; nothing where that failed."""
    if curves.sizes["setting"] < 2:
        return ""
    if not one.trusted.all():
        return "the settings are not ranked: see above"
    at = curves.test_error.sel(samples=one.prediction.n_samples).isel(stage=-1)
    order = np.argsort(at.values)
    shown = "; ".join(f"{at.setting.values[k]}: {at.values[k]:.4f}" for k in order)
    return f"{curves.stage.values[-1]} by predicted error at M = {one.prediction.n_samples}: {shown}"


def choices_text(choices: Sequence[Choice]) -> str:
    """What was chosen, and what it cost."""
    names = list(choices[0].parameters)
    rows = [["best for all samples, by", *names, "its error", "points", "seconds"]]
    for one in choices:
        rows.append([
            one.method, *(number(value, 3) for value in one.parameters.values()), f"{one.error:.4f}", str(one.evaluations),
            f"{one.seconds:.2f}",
        ])  # fmt: skip
    remark = "the error of a prediction is for 0.7 of the samples; that of cross-validation is the least of many measured ones"
    return f"{table(rows)}\n{textwrap.fill(remark, WIDTH)}"


def reliability_text(points: xarray.Dataset) -> str:
    """How far predictions are off, over many settings."""
    apart = np.abs(points.test_error / points.fits - 1.0)
    gaussian = np.abs(points.gaussian_error / points.fits - 1.0)
    rows = [["off the fits by", "cross-fitted, median", "largest", "Gaussian, median", "largest"]]
    for stage in points.stage.values:
        values = [found.sel(stage=stage) for found in (apart, gaussian)]
        rows.append([str(stage), *(f"{100 * float(f(v)):.1f}%" for v in values for f in (np.nanmedian, np.nanmax))])
    return f"{points.sizes['setting']} settings, {points.attrs['n_fits']} fits each\n{table(rows)}"


def levels_text(found: MeasuredLevels) -> str:
    """Test errors of students who know more and more, and what each level gains, predicted and measured."""
    rows = [["the student is given", "predicted", "fits", "gain", "predicted", "fits"]]
    named = [""] + [name for name in found.gains if name != "total"]
    for (name, error), gain in zip(found.errors.items(), named, strict=True):
        rows.append([TITLES[name], f"{error:.4f}", _estimate(found.fits[name], ".4f"), gain, *_gains(found, gain)])
    rows.append(["", "", "", "total", *_gains(found, "total")])
    return table(rows)


def _estimate(found: Estimate, how: str) -> str:
    return f"{found.mean:{how}}({max(round(1e4 * found.standard_error), 1)})"


def _gains(found: MeasuredLevels, gain: str) -> list[str]:
    return [_estimate(part[gain], "+.4f") if gain else "" for part in (found.gains, found.measured_gains)]


@dataclass(frozen=True)
class Findings:
    """What the command found out.

    Attributes
    ----------
    data : Table
    one : Check
    curves : Dataset
    points : Dataset or None
        Settings all over the ranges.
    choices : list of Choice
    refused : bool
        Whether a choice by prediction was asked for, and not given.
    levels : MeasuredLevels or None
    """

    data: Table
    one: Check
    curves: xarray.Dataset
    points: xarray.Dataset | None
    choices: list[Choice]
    refused: bool
    levels: MeasuredLevels | None


def report(found: Findings) -> str:
    """One screen."""
    one = found.one
    parts = [
        describe(found.data, one.prediction.data, one.prediction.chain),
        curves_text(found.curves),
        textwrap.fill(one.verdict, WIDTH),
        ranking_text(found.curves, one),
    ]
    parts += [] if found.points is None else [reliability_text(found.points)]
    parts += [] if found.levels is None else [levels_text(found.levels)]
    parts += ["nothing is chosen by prediction: see above"] if found.refused else []
    parts += [choices_text(found.choices)] if found.choices else []
    lines = limits(one.prediction, one.other)
    parts.append("\n".join(textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ") for line in lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def document_of(found: Findings) -> dict:
    """Everything for JSON."""
    one = found.one

    def plain(dataset: xarray.Dataset) -> dict:
        return {name: dataset[name].values.tolist() for name in [*dataset.coords, *dataset.data_vars]}

    return without_nan({
        "data": {
            "title": found.data.title, "samples": found.data.samples.count, "columns": found.data.samples.size,
            "notes": list(found.data.notes),
        },
        "curves": plain(found.curves),
        "check": {
            "samples": one.prediction.n_samples, "fits": one.runs.n_runs, "stages": list(one.runs.chain.names),
            "predicted": one.prediction.test_error.tolist(), "standard_error": one.prediction.standard_error.tolist(),
            "gaussian": one.prediction.gaussian_error.tolist(), "cross_entropy": one.prediction.test_cross_entropy.tolist(),
            "measured": one.measured.tolist(), "measured_standard_error": one.standard_error.tolist(),
            "covariances": one.prediction.data.covariances, "difference_of_other_covariances": one.difference.tolist(),
            "z": one.z.tolist(), "deviation": one.deviation.tolist(), "trusted": one.trusted.tolist(), "verdict": one.verdict,
        },
        "limits": list(limits(one.prediction, one.other)),
        "choices": [
            {"method": c.method, "parameters": c.parameters, "error": c.error, "points": c.evaluations, "seconds": c.seconds}
            for c in found.choices
        ],
        "levels": None if found.levels is None else found.levels.to_dict(),
        "reliability": None if found.points is None else plain(found.points),
    })  # fmt: skip


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Learning curves of teacher and distilled student on your own data, before training: FILE is .npz with X and y, or "
    ".csv or .parquet with a column of labels (two classes).  Class means and covariance of the samples go into theory; errors "
    "are those of its weights on samples that were held out.  A few real fits say how far to trust them.  Prints a report, and "
    "writes a picture with its data.\n\n\b\n"
    "Examples:\n"
    "  python -m numerics.predict\n"
    "  python -m numerics.predict measurements.csv --label sick --teacher-ridge 0.1,1,10 --choose",
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--data",
    "name",
    type=click.Choice(BUILT_IN),
    help="Samples of scikit-learn where no FILE is given.  [default: digits]",
)
@click.option("--label", metavar="COLUMN", help="Column of the labels.  [default: the last]")
@click.option(
    "--classes", metavar="A,B", help="The two labels that are kept.  [default: all; of digits odd and even ones]"
)
@click.option("--drop", metavar="COLUMN,...", help="Columns that are left out.")
@click.option("--scale", type=click.Choice(SCALES), help="What is divided by a standard deviation: every column by its own, all "
              "by one, none.  [default: columns; of digits together]")  # fmt: skip
@click.option("--teacher-columns", default="all", show_default=True, metavar="COLUMNS", help="What the teacher sees: all, half, "
              "names or numbers with commas between, LOW:HIGH.")  # fmt: skip
@click.option(
    "--student-columns", default="half", show_default=True, metavar="COLUMNS", help="The same of the student."
)
@click.option(
    "--student-features", metavar="ACTIVATION:COUNT", help="The student sees random features instead, as tanh:200."
)
@click.option("--teacher-ridge", default="0.1", show_default=True, metavar="RIDGE,...", help="One curve for each.")
@click.option("--student-ridge", default="0.01", show_default=True, metavar="RIDGE,...", help="One curve for each.")
@click.option(
    "--mixing", type=float, default=1.0, show_default=True, help="chi, share of the teacher in the student's targets."
)
@click.option("--temperature", type=float, default=2.0, show_default=True, help="T.")
@click.option(
    "--samples", metavar="M,...", help="Training set sizes.  [default: all over the range that can be predicted]"
)
@click.option(
    "--covariances", type=click.Choice(("auto", "pooled", "class")), default="auto", show_default=True,
    help="One covariance for both classes, one for each, or the latter where it makes a difference (up to 200 columns).",
)  # fmt: skip
@click.option("--fits", type=click.IntRange(min=2), default=8, show_default=True, help="Real fits at a point.")
@click.option("--choose", "choosing", is_flag=True, help="Also find ridges, chi and T of least predicted error.")
@click.option("--cross-validate", "crossing", is_flag=True, help="The same by cross-validation with real fits.")
@click.option(
    "--levels", "taking_apart", is_flag=True, help="Also say what each level of the teacher's knowledge gains."
)
@click.option("--reliability", "settings", type=click.IntRange(min=2), metavar="SETTINGS", help="Also predict and fit so many "
              "settings all over the ranges of --choose.")  # fmt: skip
@click.option("--folds", type=click.IntRange(min=2), default=FOLDS, show_default=True, help="Parts for cross-fitting.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of folds, subsamples and features."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the report.")
@click.option("--output", metavar="STEM", type=click.Path(path_type=Path), default=OUTPUT_FOLDER / "predict", show_default=True,
              help="Files to write, without suffix.")  # fmt: skip
@jobs_option
def predict_command(file: Path | None, name: str | None, output: Path, as_json: bool, **flags) -> int:
    """``python -m numerics.predict``."""
    seed, jobs, fits = flags["seed"], flags["jobs"], flags["fits"]
    blamed = {"alpha": "--samples: alpha", "label": "--label", "classes": "--classes", "drop": "--drop", "mixing": "--mixing",
              "temperature": "--temperature", "ridge": "--teacher-ridge, --student-ridge: ridge", "columns": "--student-columns",
              "activation": "--student-features: activation", "count": "--student-features: COUNT"}  # fmt: skip
    where = "FILE" if file is not None else "--data"
    stem = output.with_suffix("") if output.suffix in (".png", ".pdf", ".nc") else output
    path = stem.with_name(stem.name + ".nc")
    for suffix in (".png", ".pdf", ".nc"):
        require_writable(stem.with_name(stem.name + suffix))
    ridges = [numbers_of(flags[f"{role}_ridge"], f"--{role}-ridge") for role in ("teacher", "student")]
    with blaming(blamed, where, ParameterError):
        found = read_table(file, name, flags)
        for flag in ("teacher_columns", "student_columns"):
            if flags["student_features"] and given(flag):
                raise click.UsageError(f"--{flag.replace('_', '-')} has no effect with --student-features")
        maps = [found.map_of(flags[f"{role}_columns"]) for role in ("teacher", "student")]
        found, *of_features = with_features(found, flags["student_features"], seed)
        chains = chains_of(
            *(of_features if flags["student_features"] else maps), ridges, flags["mixing"], flags["temperature"]
        )
        data = Measured(found.X, found.labels, folds=flags["folds"], seed=seed)
        sizes = sizes_of(flags["samples"], data)
        first = next(iter(chains.values()))
        with patience("predicting, and fitting to compare; what is new in a chain is compiled first"):
            at = sizes[len(sizes) // 2]
            kinds = {"pooled": "pooled", "class": "per class"}
            kind = flags["covariances"]
            data = better_kind(data.at(at), first) if kind == "auto" else data.taking(kinds[kind])
            one = check(data.at(at), first, fits, seed, n_jobs=jobs)
            fitted = sorted({at, *(sizes[round(k)] for k in np.linspace(0, len(sizes) - 1, FITTED))})
            curves = learning_curves(data, chains, sizes, fits, seed, fitted=fitted, n_jobs=jobs)
            points = (
                reliability(data, first, OVER, flags["settings"], fits, seed, n_jobs=jobs)
                if flags["settings"]
                else None
            )
            ways = [choose] if flags["choosing"] and one.trusted.all() else []
            ways += [cross_validate] if flags["crossing"] else []
            choices = [way(data, first, OVER, candidates=CANDIDATES, seed=seed) for way in ways]
            levels = levels_on(data.at(at), first, fits, seed, n_jobs=jobs) if flags["taking_apart"] else None
    findings = Findings(found, one, curves, points, choices, flags["choosing"] and choose not in ways, levels)
    title = f"{found.title}: predicted (thick; band: scatter of folds), Gaussian formula (thin), real fits (points)"
    groups = {"curves": curves, **({} if points is None else {"reliability": points})}
    notes = {"verdict": one.verdict, "notes": "\n".join(found.notes)}
    write_data(path, groups, {"title": f"Predictions for {found.title}", **notes})
    pictures = write_figure(stem, lambda: overview(curves, points, title))
    if as_json:
        click.echo(json.dumps(document_of(findings), indent=2, allow_nan=False))
    else:
        click.echo("\n".join([report(findings), *(str(made) for made in (*pictures, path))]))
    failed = curves.attrs["failed_points"]
    if failed or not one.runs.converged:
        click.echo(f"not converged: {curves.attrs['failures'] or one.runs.message}".replace("\n", "; "), err=True)
    return 1 if failed or not one.runs.converged else 0
