"""The border of every command: whatever is raised inside leaves as one line and an exit code."""

from __future__ import annotations

import warnings

import click
import pytest
from command_line import run
from surroundings import ROOT, python

from figures.__main__ import main as figures
from numerics.cli.anatomy import anatomy_command
from numerics.cli.neurons import neurons_command
from numerics.cli.predict import predict_command
from numerics.cli.simulate import simulate_command
from numerics.cli.solve import solve_command
from numerics.cli.sweep import sweep_command
from numerics.models import ParameterError
from numerics.phase_diagram import main as phase_diagram
from numerics.random_box import main as random_box
from numerics.sweeps.executors import WorkersLostError
from theory import terminal
from theory.__main__ import main as derivation

COMMANDS = {
    "solve": (solve_command, ("--alpha", 1)),
    "simulate": (simulate_command, ("--alpha", 1)),
    "sweep": (sweep_command, ("--over", "alpha=1:2:2", "--output", "unwritten.nc")),
    "phase_diagram": (phase_diagram, ()),
    "random_box": (random_box, ()),
    "neurons": (neurons_command, ()),
    "predict": (predict_command, ()),
    "anatomy": (anatomy_command, ("--alpha", 1)),
    "figures": (figures, ()),
    "theory": (derivation, ()),
}
ERRORS = [
    (ZeroDivisionError("division by zero"), 1, "error: ZeroDivisionError: division by zero; --debug shows where\n"),
    (EOFError("Ran out of input"), 1, "error: EOFError: Ran out of input; --debug shows where\n"),
    (RuntimeError("first\n  second"), 1, "error: RuntimeError: first second; --debug shows where\n"),
    (AssertionError(), 1, "error: AssertionError; --debug shows where\n"),
    (RecursionError("too deep"), 1, "error: RecursionError: too deep; --debug shows where\n"),
    (OSError("no room"), 1, "error: no room\n"),
    (MemoryError(), 1, "error: not enough memory: an allocation failed\n"),
    (KeyboardInterrupt(), 130, "\n"),  # after what the terminal shows of Ctrl-C
    (click.UsageError("--alpha is wrong"), 2, "error: --alpha is wrong\n"),
    (click.Abort(), 130, ""),
]


def raising(error: BaseException):
    def callback(**flags):
        raise error

    return callback


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("error", "code", "line"), ERRORS, ids=lambda value: type(value).__name__)
def test_any_error_is_one_line_and_a_code(monkeypatch, name: str, error: BaseException, code: int, line: str) -> None:
    command, arguments = COMMANDS[name]
    monkeypatch.setattr(command, "callback", raising(error))
    result = run(command, *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", line)


@pytest.mark.parametrize("name", COMMANDS)
def test_debug_shows_the_traceback_too(monkeypatch, name: str) -> None:
    command, arguments = COMMANDS[name]
    monkeypatch.setattr(command, "callback", raising(ZeroDivisionError("division by zero")))
    result = run(command, *arguments, "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ZeroDivisionError")
    assert "--debug" in run(command, "--help").stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "theory"])
def test_errors_whose_message_says_it_all(monkeypatch, name: str) -> None:
    command, arguments = COMMANDS[name]
    monkeypatch.setattr(command, "callback", raising(ParameterError("alpha must be > 0")))
    assert (run(command, *arguments).exit_code, run(command, *arguments).stderr) == (2, "error: alpha must be > 0\n")
    monkeypatch.setattr(command, "callback", raising(WorkersLostError("all gone")))
    assert (run(command, *arguments).exit_code, run(command, *arguments).stderr) == (1, "error: all gone\n")


def test_warnings_are_one_line_each(monkeypatch) -> None:
    def warns(**flags):
        warnings.warn("careful\n here", UserWarning, stacklevel=1)
        terminal.notice("busy with this test")
        terminal.notice("busy with this test")

    monkeypatch.setattr(solve_command, "callback", warns)
    monkeypatch.setattr(terminal, "_said", set())
    assert run(solve_command, "--alpha", 1).stderr == "warning: careful here\nbusy with this test\n"
    terminal.notice("not inside a command")
    assert terminal._said == {"busy with this test"}


@pytest.mark.parametrize("module", ["numerics.phase_diagram", "figures"])
def test_what_fails_at_import_is_one_line(tmp_path, module: str) -> None:
    """As a broken installation of a library does, or a variable that matplotlib does not understand."""
    found = python("-m", module, "--help", variables={"MPLBACKEND": "no such backend"}, cwd=tmp_path)
    assert found.returncode == 1
    assert found.stderr.decode().count("\n") == 1
    assert found.stderr.startswith(b"error: ValueError: ")
    shown = python("-m", module, "--help", "--debug", variables={"MPLBACKEND": "no such backend"}, cwd=tmp_path)
    assert b"Traceback" in shown.stderr


def test_every_command_is_behind_the_border() -> None:
    """Modules that end in a command, found in the source, are those that are tested here; ``numerics`` itself runs them."""
    found = {
        path.parent.name if path.stem == "__main__" else path.stem
        for folder in ("numerics", "theory", "figures")
        for pattern in ("*.py", "*/__main__.py")
        for path in (ROOT / folder).glob(pattern)
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8").splitlines()
    }
    assert found - {"numerics"} == set(COMMANDS)
