"""``python -m numerics.neurons``: bounds, margins and experiments on how many neurons soft and hard labels need."""

from __future__ import annotations

from pathlib import Path

from numerics.deferred import starting

with starting(__name__):
    import click

    from numerics.cli.command import OUTPUT_FOLDER, Command, blaming, kept_points, require_writable
    from numerics.cli.flags import executor_options, jobs_option, opened_executor
    from numerics.models import ParameterError
    from numerics.neurons.data import digits
    from numerics.neurons.drawing import SAMPLING, overview
    from numerics.neurons.experiments import DeepScan, DigitScan, scans
    from numerics.neurons.report import report
    from numerics.phase_diagram import write_data, write_figure
    from numerics.sweeps.run import evaluate

SCANS = tuple(scans(2, 0))
"""Names of all scans."""


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Do soft labels need fewer neurons?  The bounds of Mandal, Lin and Srikant (PMLR 283:1078), the class margin they "
    "speak of, and two-layer networks trained on soft and on hard labels: tables, and a picture with its data.  Runs are kept "
    "as they come: the same command after an interruption goes on where it was.\n\n\b\n"
    "Scans:\n"
    "  xor     two layers on XOR with a gap: neurons needed against the margin\n"
    "  line    the same where a line separates the classes\n"
    "  digits  parity of digits with noisy pixels (needs the extra 'data')\n"
    "  deep    the same with three hidden layers (needs the extra 'data')\n\n\b\n"
    "Examples:\n"
    "  python -m numerics.neurons\n"
    "  python -m numerics.neurons --scan line --runs 4",
)
@click.option(
    "--scan", "names", multiple=True, type=click.Choice(SCANS), help="What to run, any number of times.  [default: all]"
)
@click.option("--runs", type=click.IntRange(min=2), default=10, show_default=True, help="Runs at every point.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random numbers.")
@click.option("--output", metavar="STEM", type=click.Path(path_type=Path), default=OUTPUT_FOLDER / "neurons", show_default=True,
              help="Files to write, without suffix.")  # fmt: skip
@jobs_option
@executor_options
def main(
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


if __name__ == "__main__":
    main(prog_name="python -m numerics.neurons")
