"""The command ``python -m numerics.neurons``: bounds, margins, needed widths, losses, digits, exact students; a picture."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import click
import numpy as np
import xarray

from numerics.cli.command import OUTPUT_FOLDER, Command, blaming, kept_points, require_writable
from numerics.cli.flags import executor_options, jobs_option, opened_executor
from numerics.cli.report import number, table
from numerics.models import ParameterError
from numerics.neurons.bounds import Sampling, crossing, eps_for_error, hard_width, kl_from_half, soft_width
from numerics.neurons.data import LABELS, digits
from numerics.neurons.exact import RATIOS, RIDGES
from numerics.neurons.experiments import LEVEL, TRAININGS, TUNINGS, DeepScan, DigitScan, scans
from numerics.neurons.widths import Bar, exponent, width_with_bar
from numerics.phase_diagram import write_data, write_figure
from numerics.plots.neurons import SAMPLING, overview
from numerics.sweeps.run import evaluate

LEVELS = (LEVEL, 2 * LEVEL)
"""0-1 errors on the training set for which exponents are printed."""

COLUMNS = ("soft", "soft_long", "hard", "hard_large", "soft_linear", "hard_large_linear")


def shown(bar: Bar, smallest: float) -> str:
    """A value and its bar; "never" where no width that was tried is enough, "<=" where all are."""
    if not np.isfinite(bar.value):
        return "never"
    return f"<= {smallest:g}" if bar.high <= smallest else f"{bar.value:.3g} [{bar.low:.3g}, {bar.high:.3g}]"


def bounds_text(margins: np.ndarray, sampling: Sampling) -> str:
    """Bounds at some margins, and what their accuracies mean."""
    rows = [["margin", f"soft, KL {LEVEL:g}", f"hard, error {LEVEL:g}", f"soft, error {LEVEL:g}", "KL of a wrong sign"]]
    for gamma in margins:
        values = (
            soft_width(gamma, LEVEL, sampling), hard_width(gamma, LEVEL, sampling),
            soft_width(gamma, eps_for_error(LEVEL, gamma), sampling), kl_from_half(gamma),
        )  # fmt: skip
        rows.append([f"{gamma:.4f}", *(number(float(v), 3) for v in values)])
    lines = "; ".join(f"{eps:g}: {float(crossing(eps, sampling)):.3f}" for eps in (0.1, 0.01, 0.001))
    return (
        f"Neurons that suffice (n = {sampling.n_samples}, delta = {sampling.delta:g}, c = {sampling.shortest:g})\n{table(rows)}\n"
        f"margin below which the bound for soft labels is the smaller one, at a KL equal to the error: {lines}"
    )


def gap_text(name: str, scan: xarray.Dataset) -> str:
    """Margins, widths that are needed, exponents, and losses of a scan over gaps."""
    mean = scan.mean("run")
    margins = [["gap", "kernel", "upper", "lower", "clipped", "duality gap", "untrained KL", "theorem's ball"]]
    needed = [["margin", *COLUMNS]]
    losses = [
        ["margin", "neurons", "untrained", "averaged over steps", "last", "hard at the edge", "linear loss there"]
    ]
    for k, gap in enumerate(scan.gap.values):
        at = mean.isel(gap=k)
        margins.append([
            f"{gap:g}", *(f"{float(at[key]):.4f}" for key in ("kernel", "upper", "lower", "clipped")),
            *(f"{float(at[key]):.1e}" for key in ("duality_gap", "untrained_kl")), f"{float(at.radius):.0f}",
        ])  # fmt: skip
        margin = f"{float(at.lower):.4f}"
        errors = scan.error.isel(gap=k)
        bars = {t: width_with_bar(scan.width, errors.sel(training=t), LEVEL) for t in COLUMNS}
        needed.append([margin, *(shown(bars[t], float(scan.width[0])) for t in COLUMNS)])
        m = min(bars["soft"].value, float(scan.width[-1]))
        near = at.sel(width=m, method="nearest")
        losses.append([
            margin, f"{int(near.width)}", f"{float(at.untrained_kl):.1e}",
            *(f"{float(near[key].sel(training='soft')):.1e}" for key in ("mean_loss", "loss")),
            f"{100 * float(near.at_edge.sel(training='hard')):.0f}%, error {float(near.error.sel(training='hard')):.3f}",
            f"{float(near.error.sel(training='hard_tangent')):.3f}",
        ])  # fmt: skip
    slopes = [["training", *(f"{100 * level:g}% error" for level in LEVELS)]]
    for training in ("soft", "soft_long"):
        found = [exponent(mean.lower, scan.width, scan.error.sel(training=training), level) for level in LEVELS]
        slopes.append(
            [training, *("-" if np.isnan(b.value) else f"{b.value:.2f} [{b.low:.2f}, {b.high:.2f}]" for b in found)]
        )
    legend = "\n".join(f"  {key}: {TRAININGS[key]}" for key in COLUMNS)
    return "\n\n".join([
        f"{name}: {scan.attrs['n_samples']} samples in {scan.attrs['n_inputs']} dimensions, {scan.attrs['runs']} runs, "
        f"{scan.attrs['steps']} steps of {scan.attrs['rate']:g}",
        f"Margin of the limiting kernel, means over runs\n{table(margins)}",
        f"Neurons for {100 * LEVEL:g}% training error [16%, 84% of bootstrap samples]\n{table(needed)}\n{legend}",
        "Slope of ln(neurons) in ln(margin); it goes with the error that is asked for and with the time of training, and is "
        f"no exponent\n{table(slopes)}",
        f"KL of soft labels at about the width that is needed; hard labels in the same ball, same width\n{table(losses)}",
    ])  # fmt: skip


def digits_text(title: str, scan: xarray.Dataset) -> str:
    """Test errors of students, their differences, and the teacher."""
    rows = [["noise", "teacher, training", "teacher, test", *(f"m = {int(m)}" for m in scan.width)]]
    n_runs = scan.sizes["run"]
    for noise in scan.noise.values:
        at = scan.sel(noise=noise)
        teacher = [f"{100 * float(at[key].mean()):.2f}%" for key in ("teacher_train_error", "teacher_test_error")]
        for labels in LABELS:
            rows.append(
                [
                    f"{noise:g}, {labels}",
                    *teacher,
                    *(f"{float(e):.3f}" for e in at.test_error.sel(labels=labels).mean("run")),
                ]
            )
        difference = at.test_error.sel(labels="hard") - at.test_error.sel(labels="soft")
        errors = difference.std("run", ddof=1) / np.sqrt(n_runs)
        pairs = zip(difference.mean("run").values, errors.values, strict=True)
        rows.append([f"{noise:g}, hard - soft", "", "", *(f"{d:+.4f} +- {e:.4f}" for d, e in pairs)])
    return (
        f"{title}: test error on the parity of digits, {n_runs} runs, teacher of {scan.attrs['teacher_width']} neurons, "
        f"T = {scan.attrs['temperature']:g}\n{table(rows)}"
    )


def exact_text(title: str, scan: xarray.Dataset) -> str:
    """Random features that students need at the best ridge and at a small one, and how many times more hard labels need."""
    axes = scan.teacher_error.dims
    names = [name for name in axes if scan.sizes[name] > 1] or [axes[0]]
    header = [
        *names,
        "teacher",
        *(f"{labels}, +{eps:g}" for eps in scan.eps.values for labels in (*LABELS, "hard/soft")),
    ]
    parts = [
        f"{title}: neurons p/N of {scan.attrs['activation']} features for a test error within so much of the teacher's"
    ]
    edges = False
    for tuning in TUNINGS:
        rows = [header]
        for place in product(*(scan[name].values for name in axes)):
            at = scan.sel(dict(zip(axes, place, strict=True))).sel(tuning=tuning)
            row = [*(f"{float(at[name]):g}" for name in names), f"{float(at.teacher_error):.4f}"]
            for eps in scan.eps.values:
                found = at.sel(eps=eps)
                ratios = [float(found.ratio.sel(labels=labels)) for labels in LABELS]
                marks = ["*" if float(found.edge.sel(labels=labels)) else "" for labels in LABELS]
                edges = edges or "*" in marks
                row += [f"{r:.3g}{mark}" if np.isfinite(r) else "never" for r, mark in zip(ratios, marks, strict=True)]
                row.append(f"{ratios[1] / ratios[0]:.2f}" if np.isfinite(ratios).all() else "-")
            rows.append(row)
        ridge = "best ridge" if tuning == "best" else f"ridge {scan.attrs['small_ridge']:g}"
        parts.append(f"Student's {ridge}\n{table(rows)}")
    failed, error = int(scan.failed.sum()), float(scan.ratio_error.max())
    remark = f"never: not up to p/N = {RATIOS[1]:g}; relative error of the others at most {error:.1e}"
    if edges:
        remark += f"; *: the best ridge is an end of the range searched, {RIDGES[0]:g} to {RIDGES[1]:g}"
    if failed:
        remark += f"; no solution at {failed} ratios, which were passed over"
    return "\n\n".join([*parts, remark])


def report(data: Mapping[str, xarray.Dataset], sampling: Sampling) -> str:
    """All tables for which there are data, after the bounds."""
    margins = data["xor"].lower.mean("run").values if "xor" in data else np.array([0.03, 0.05, 0.1])
    parts = [bounds_text(margins, sampling)]
    for key, title in (("xor", "XOR with a gap"), ("line", "Line with a gap, the control")):
        if key in data:
            parts.append(gap_text(title, data[key]))
    for key, title in (("digits", "Two layers"), ("deep", "Three hidden layers")):
        if key in data:
            parts.append(digits_text(title, data[key]))
    for key, title in (("mixture", "Overlapping classes"), ("rule", "Labels of a rule with noise")):
        if key in data:
            parts.append(exact_text(title, data[key]))
    return "\n\n\n".join(parts)


SCANS = tuple(scans(2, 0))
"""Names of all scans."""


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Do soft labels need fewer neurons?  The bounds of Mandal, Lin and Srikant (PMLR 283:1078), the class margin they "
    "speak of, two-layer networks trained on soft and on hard labels, and the exact theory of random features: tables, and a "
    "picture with its data.  Runs are kept "
    "as they come: the same command after an interruption goes on where it was.\n\n\b\n"
    "Scans:\n"
    "  xor      two layers on XOR with a gap: neurons needed against the margin\n"
    "  line     the same where a line separates the classes\n"
    "  digits   parity of digits with noisy pixels (needs the extra 'data')\n"
    "  deep     the same with three hidden layers (needs the extra 'data')\n"
    "  mixture  exact: random features needed against the variance of two classes\n"
    "  rule     exact: random features needed against the noise of a rule\n\n\b\n"
    "Examples:\n"
    "  python -m numerics.neurons\n"
    "  python -m numerics.neurons --scan line --runs 4",
)
@click.option(
    "--scan", "names", multiple=True, type=click.Choice(SCANS), help="What to run, any number of times.  [default: all]"
)
@click.option(
    "--runs", type=click.IntRange(min=2), default=10, show_default=True, help="Runs at every point of an experiment."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random numbers.")
@click.option("--output", metavar="STEM", type=click.Path(path_type=Path), default=OUTPUT_FOLDER / "neurons", show_default=True,
              help="Files to write, without suffix.")  # fmt: skip
@jobs_option
@executor_options
def neurons_command(
    names: tuple[str, ...], runs: int, seed: int, output: Path, jobs: int, executor: str, scheduler: str | None
) -> int:
    """``python -m numerics.neurons``."""
    work = {name: scan for name, scan in scans(runs, seed).items() if name in (names or SCANS)}
    if any(isinstance(scan, DigitScan | DeepScan) for scan in work.values()):
        with blaming({}, "--scan", ParameterError):
            digits()  # said at once if they are missing
    stem = output.with_suffix("") if output.suffix in (".png", ".pdf", ".nc") else output
    path = stem.with_name(stem.name + ".nc")
    for suffix in (".png", ".pdf", ".nc"):
        require_writable(stem.with_name(stem.name + suffix))
    with (
        opened_executor(executor, scheduler, jobs) as pool,
        kept_points(path, work) as journal,
        blaming({}, "--scan", ParameterError),
    ):
        data = evaluate(work, jobs, executor=pool, journal=journal, progress="neurons")
    write_data(path, data, {"title": "How many neurons soft and hard labels need"})
    pictures = write_figure(stem, lambda: overview(data))
    click.echo(report(data, SAMPLING) + "\n")
    for made in (*pictures, path):
        click.echo(made)
    journal.discard()
    return 0
