"""Running command lines inside a test."""

from __future__ import annotations

import click
from click.testing import CliRunner, Result


def run(command: click.Command, *arguments: object, text: str | None = None) -> Result:
    """Run a command in this process; ``text`` is what it reads from standard input."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments], input=text)


def assert_one_line_error(result: Result, *words: str) -> None:
    """Bad input: exit code 2, nothing on standard output, one line on standard error that holds ``words``."""
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
