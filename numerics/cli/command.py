"""A command that reports whatever goes wrong in one line, and the files it writes.

Exit codes: 0 done, 1 something did not converge or could not be finished, 2 bad input (one line on standard error), 130
interrupted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from numerics.models import ParameterError
from numerics.sweeps.executors import WorkersLostError
from numerics.sweeps.journal import Journal, require_room
from theory import terminal

if TYPE_CHECKING:
    from numerics.sweeps.grid import Experiment, Grid


PATIENCE = 2.0
"""Seconds after which a command says what it is waiting for."""

OUTPUT_FOLDER = Path("replica-distillation")
"""Where a command puts files that it was not told where to put."""

ROOT = Path(__file__).parents[2]
"""Where the packages are; in a checkout, the pictures that are committed are in ``figures`` there."""


class Command(terminal.Command):
    """A command that reports whatever goes wrong in one line and returns its exit code."""

    plain = (WorkersLostError,)
    bad_input = (ParameterError,)


@contextmanager
def blaming(flags: Mapping[str, str], otherwise: str, errors: type[ValueError] = ValueError) -> Iterator[None]:
    """Turn an error about a parameter into one about the flag that sets it.

    ``flags`` maps the first word of a message to a flag; other messages are put after ``otherwise``.
    """
    try:
        yield
    except errors as error:
        word, _, rest = str(error).partition(" ")
        message = f"{flags[word]} {rest}" if word in flags else f"{otherwise}: {error}"
        raise click.UsageError(message) from None


def given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE


def require_writable(path: Path, flag: str = "--output") -> None:
    """Check that ``path`` can be written, in a folder that may not exist yet; click.UsageError if not.  Nothing is left there."""
    try:
        require_room(path, name=flag)
    except ParameterError as error:
        raise click.UsageError(str(error)) from None


def require_committed(allowed: set[str]) -> None:
    """click.UsageError unless this is a checkout, and no flags but the allowed ones change what ``--committed`` makes."""
    if not (ROOT / "pyproject.toml").is_file():
        raise click.UsageError("--committed makes the files of a checkout anew, and this installation is none")
    context = click.get_current_context()
    for name in context.params:
        if name not in allowed and given(name):
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no effect with --committed, which makes what is committed"
            )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file that becomes ``path`` on success, and is removed otherwise; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def deliver(text: str, output: Path | None) -> None:
    """Write a report to a file, or to standard output."""
    if output is None:
        click.echo(text)
        return
    with replacing(output) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def patience(message: str) -> Iterator[None]:
    """Print ``message`` on standard error if the body takes over two seconds."""
    timer = threading.Timer(PATIENCE, click.echo, [message], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def kept_points(path: Path, work: Mapping[str, Grid | Experiment]) -> Iterator[Journal]:
    """The journal of ``path``, which says on Ctrl-C that the command can go on."""
    with blaming({"output:": "--output"}, "--output", ParameterError):
        journal = Journal(path, {name: part.description() for name, part in work.items()})
    with journal:
        try:
            yield journal
        except KeyboardInterrupt:
            tell_of_journal(journal.path)
            raise


def tell_of_journal(path: Path) -> None:
    """Say after an interruption where the points are that are done."""
    if path.exists():
        click.echo(f"interrupted: finished points are kept in {path}; the same command goes on from there", err=True)
