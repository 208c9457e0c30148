"""``python -m figures``: list the published figures, or make some of them."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from numerics.deferred import starting

with starting(__name__):
    import click
    from tqdm import tqdm

    import figures.anatomy
    import figures.anatomy_bounds
    import figures.class_targets
    import figures.classes
    import figures.features
    import figures.measured
    import figures.mignacco
    import figures.neurons
    import figures.saglietti
    import figures.self_distillation  # noqa: F401  (figures register themselves)
    from figures.build import FIGURES, Effort, finish, prepare
    from figures.build import restamp as restamp_figure
    from numerics.cli.command import OUTPUT_FOLDER, ROOT, Command, require_committed, require_writable
    from numerics.sweeps.run import compile_parts

COMMITTED = ROOT / "figures" / "published"
"""Figures that come with the project; a wheel has none."""

DEFAULT = Effort()
PAPER = Effort(n_inputs=4000, n_runs=10)
"""Inputs and runs of the printed simulations."""


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME | GLOB]...")
@click.option("--all", "everything", is_flag=True, help="Make all figures.")
@click.option(
    "--simulate", nargs=2, type=click.IntRange(min=0), metavar="N RUNS",
    help=f"Inputs and runs of the simulations; 0 0 for none.  [default: {DEFAULT.n_inputs} {DEFAULT.n_runs}]",
)  # fmt: skip
@click.option("--paper-effort", is_flag=True, help=f"As in print: --simulate {PAPER.n_inputs} {PAPER.n_runs}.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the simulations.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=OUTPUT_FOLDER / "published",
    show_default=True, metavar="DIR", help="Folder for pictures, data and notes.",
)  # fmt: skip
@click.option("--committed", is_flag=True, help="Make the files of figures/published (for who maintains them).")
@click.option(
    "--restamp", is_flag=True,
    help="Compute nothing: where stored data agree with the present code at some points, stamp them as its own.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Compute everything anew, even where the data file has it.")
@click.option("--jobs", type=click.IntRange(min=1), default=None, help="Threads.  [default: one per core]")
def main(
    names: tuple[str, ...], everything: bool, simulate: tuple[int, int] | None, paper_effort: bool, seed: int,
    output: Path, committed: bool, restamp: bool, force: bool, jobs: int | None,
) -> int:  # fmt: skip
    """Reproduce published figures: PNG, PDF, data (.nc) and a note (.json) for each NAME; without NAME, list them.

    What was computed before with the same parameters and equations is read back from the data file in DIR, or from the data that
    come with the project.
    """
    if not names and not everything:
        width = max(map(len, FIGURES))
        for name, entry in FIGURES.items():
            click.echo(f"{name:{width}}  {entry.title}")
        return 0
    if names and everything:
        raise click.UsageError("--all makes all figures: leave out --all or the names")
    chosen = list(FIGURES) if everything else _matching(names)
    if simulate is not None and paper_effort:
        raise click.UsageError("--simulate and --paper-effort exclude each other")
    n_inputs, n_runs = simulate or (
        (PAPER.n_inputs, PAPER.n_runs) if paper_effort else (DEFAULT.n_inputs, DEFAULT.n_runs)
    )
    if n_runs and n_inputs < 2:
        raise click.UsageError(f"--simulate wants N >= 2 inputs, got {n_inputs}")
    effort = Effort(n_inputs, n_runs, seed) if n_runs else Effort(0, 0, seed)
    if committed:
        require_committed(
            {"names", "everything", "simulate", "paper_effort", "seed", "committed", "restamp", "force", "jobs"}
        )
        output = COMMITTED
    require_writable(output / f"{chosen[0]}.nc")
    if restamp:
        return _restamp(chosen, output, effort)
    planned = [prepare(name, output, effort, force=force, sources=(COMMITTED,)) for name in chosen]
    for job in planned:
        compile_parts(job.missing)
    total = sum(len(work.tasks()) for job in planned for work in job.missing.values())
    with tqdm(total=total, desc="figures", unit="task", delay=2, smoothing=0.05) as bar:
        for job in planned:
            made = finish(job, jobs or os.cpu_count() or 1, bar)
            origin = f"{len(made.computed)} parts computed, {len(made.reused)} read back"
            bar.clear()
            click.echo(f"{made.name}: {output / made.name}.png  ({made.seconds:.1f} s; {origin})")
    return 0


def _restamp(names: list[str], output: Path, effort: Effort) -> int:
    """Stamp figures anew; 1 if some of the data are not what would be computed."""
    wrong = []
    for name in names:
        found = restamp_figure(name, output, effort)
        click.echo(f"{name}: {f'{len(found)} parts are to be computed again' if found else 'stamped'}")
        wrong += found
    for line in wrong:
        click.echo(f"warning: {line}", err=True)
    return 1 if wrong else 0


def _matching(patterns: tuple[str, ...]) -> list[str]:
    """Names that match; click.UsageError if a pattern matches none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in FIGURES):
            raise click.UsageError(f"no figure {pattern!r}; there are {', '.join(FIGURES)}")
    return [name for name in FIGURES if any(fnmatchcase(name, pattern) for pattern in patterns)]


if __name__ == "__main__":
    main(prog_name="python -m figures")
