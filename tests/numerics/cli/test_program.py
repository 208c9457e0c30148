"""One program for all commands: it finds them, lists them, and runs them as ``python -m`` does."""

from __future__ import annotations

import json
import tomllib

import pytest
from click import Command
from command_line import assert_one_line_error, run
from surroundings import ROOT, python

import numerics
from numerics.cli import program
from numerics.cli.solve import solve_command

WITH_VERSION = ("numerics", "numerics.solve", "theory", "figures")


def test_every_module_that_runs_is_found() -> None:
    """What the README runs is a subset of it; a module whose name is asked for is not."""
    found = program.commands()
    assert {"solve", "simulate", "sweep", "phase_diagram", "random_box", "neurons", "theory", "figures"} <= set(found)
    assert found["solve"] == "numerics.solve"
    guarded = [
        p for p in (ROOT / "numerics").rglob("*.py") if '\nif __name__ == "__main__":' in p.read_text(encoding="utf-8")
    ]
    names = {p.parent.name if p.stem == "__main__" else p.stem for p in guarded} - {"numerics"}
    assert names == set(found) - {"theory", "figures"}


def test_a_new_command_needs_no_list(tmp_path, monkeypatch) -> None:
    (tmp_path / "numerics" / "fresh").mkdir(parents=True)
    (tmp_path / "numerics" / "__init__.py").write_text("")
    (tmp_path / "numerics" / "fresh" / "__main__.py").write_text('"""``python -m numerics.fresh``: new here."""')
    (tmp_path / "numerics" / "other.py").write_text('if __name__ == "__main__":\n    print("other")\n')
    (tmp_path / "numerics" / "library.py").write_text("")
    place = type("Spec", (), {"origin": str(tmp_path / "numerics" / "__init__.py")})
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: place if name == "numerics" else None)
    assert program.commands() == {"fresh": "numerics.fresh", "other": "numerics.other"}


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_it_lists_the_commands(arguments: tuple[str, ...]) -> None:
    shown = run(program.main, *arguments)
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.stdout.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert set(program.commands()) <= {line[0] for line in lines}
    assert "One point of theory." in shown.stdout


def test_it_runs_them_with_their_flags() -> None:
    flags = ("--alpha", "1", "--single", "--json")
    found = python("-m", "numerics", "solve", *flags)
    assert (found.returncode, found.stderr) == (0, b"")
    assert json.loads(found.stdout) == json.loads(run(solve_command, *flags).stdout)
    wrong = python("-m", "numerics", "solve", "--alpha", "-1")
    assert wrong.returncode == 2
    assert wrong.stderr.decode().count("\n") == 1
    assert b"--alpha" in wrong.stderr


@pytest.mark.parametrize("name", ["nothing", "--nothing", "solver"])
def test_an_unknown_command(name: str) -> None:
    assert_one_line_error(run(program.main, name), repr(name), "phase_diagram")


def test_the_console_script_is_this_program() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"replica-distillation": "numerics.cli.program:main"}
    assert isinstance(program.main, Command)


@pytest.mark.parametrize("module", WITH_VERSION)
def test_version(module: str) -> None:
    found = python("-m", module, "--version")
    assert found.stdout.decode().split() == ["replica-distillation", numerics.__version__]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert numerics.__version__ == project["version"]
