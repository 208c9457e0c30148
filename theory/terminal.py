"""What a command says on the terminal, and how it ends: with an exit code, and one line where something went wrong.

Exit codes: 0 done, 1 something could not be done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

DEBUG = "--debug"
"""Flag of every command: the traceback of an error is shown before its line."""

LONGEST_MESSAGE = 2000
"""Characters of an error that are shown."""

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_running = 0  # commands that are: a command may be run by a program
_said: set[str] = set()  # notices, each given once


class _EndOfFileError(Exception):
    """An EOFError inside a command, which click would take for Ctrl-D."""


def one_line(message: str) -> str:
    """Without line breaks, and cut where somebody's input makes it very long."""
    line = " ".join(message.split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]} ..."


def notice(message: str) -> None:
    """Say on standard error, once, what a command is busy with; nothing in other programs."""
    if _running and message not in _said:
        _said.add(message)
        click.echo(message, err=True)


@contextmanager
def guarded(
    arguments: Sequence[str] | None = None, plain: Sequence[type[Exception]] = (), bad_input: Sequence[type[Exception]] = ()
) -> Iterator[None]:  # fmt: skip
    """The border of a command: whatever is raised inside leaves as one line on standard error and a ``SystemExit``.

    Parameters
    ----------
    arguments
        Of the command, to be searched for ``--debug``; default: those of this process.
    plain, bad_input
        Errors whose message says it all, and such that blame the input.
    """
    global _running
    _running += 1
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _encode_everything()
            yield
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if DEBUG in (sys.argv[1:] if arguments is None else arguments):
            traceback.print_exception(error)
        code, line = _ending(error, (OSError, *plain), tuple(bad_input))
        if line:
            with suppress(OSError, ValueError):  # of a standard error that is closed
                click.echo(f"error: {one_line(line)}", err=True)
        sys.exit(code)
    finally:
        _running -= 1


def _ending(
    error: BaseException, plain: tuple[type[Exception], ...], bad_input: tuple[type[Exception], ...]
) -> tuple[int, str]:
    """Exit code of an error, and what to say."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED, ""
    if isinstance(error, click.ClickException):
        return (BAD_INPUT if error.exit_code == FAILED else error.exit_code), error.format_message()
    if isinstance(error, BrokenPipeError):
        # The reader left early (``| head``): nothing to report; keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED, ""
    if isinstance(error, bad_input):
        return BAD_INPUT, str(error)
    if isinstance(error, MemoryError):
        return FAILED, f"not enough memory: {one_line(str(error)) or 'an allocation failed'}"
    if isinstance(error, plain) and str(error):
        return FAILED, str(error)
    if isinstance(error, _EndOfFileError):
        error = error.__cause__ or error
    text = one_line(str(error))
    return FAILED, f"{type(error).__name__}{': ' if text else ''}{text[: LONGEST_MESSAGE // 2]}; {DEBUG} shows where"


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    with suppress(OSError, ValueError):
        click.echo(f"warning: {one_line(str(message))}", err=True)


def _encode_everything() -> None:
    """Print what a narrow encoding (a pipe on Windows) has no sign for as an escape, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


class Command(click.Command):
    """A command behind :func:`guarded`, with the flag ``--debug``; what it returns is its exit code."""

    plain: tuple[type[Exception], ...] = ()
    bad_input: tuple[type[Exception], ...] = ()

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        show = "Show the traceback of an error."
        self.params.append(click.Option([DEBUG], is_flag=True, expose_value=False, help=show))
        click.version_option(package_name="replica-distillation", message="%(package)s %(version)s")(self)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command's function."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise _EndOfFileError from error

    def main(
        self, args: Sequence[str] | None = None, *others: Any, standalone_mode: bool = True, **settings: Any
    ) -> Any:
        """Run; with ``standalone_mode`` (the default) leave by ``SystemExit``."""
        if not standalone_mode:
            return super().main(args, *others, standalone_mode=False, **settings)
        with guarded(args, self.plain, self.bad_input):
            code = super().main(args, *others, standalone_mode=False, **settings)
            with suppress(AttributeError):  # a process without standard output
                sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else DONE)
