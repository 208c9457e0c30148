"""The house: what stands in the hall, what rooms are called, and which way imports run."""

from __future__ import annotations

import ast
import re
from itertools import combinations
from pathlib import Path

import pytest

import numerics

ROOT = Path(numerics.__file__).parents[1]
HALL = {
    "__init__", "__main__", "deferred", "explorer", "optimize", "phase_diagram", "problem", "random_box", "schedules", "settings",
    "simulate", "solve", "solver", "sweep", "thresholds",
}  # fmt: skip
"""Modules of ``numerics`` itself: commands, what users import by name, and what starts them."""

COMMANDS = {"solve", "simulate", "sweep", "phase_diagram", "random_box"}
ENDINGS = re.compile(r"(ations?|ions?|ings?|ers?|ors?|ed|es|e|s|r)$")
FOLDERS = sorted({path.parent for path in (ROOT / "numerics").rglob("*.py")})


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_hall_holds_what_users_name() -> None:
    assert {path.stem for path in (ROOT / "numerics").glob("*.py")} == HALL


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_names_in_a_room_differ_by_more_than_an_ending(folder: Path) -> None:
    stems = {path.stem for path in folder.glob("*.py")}
    for one, other in combinations(sorted(stems - {"__init__"}), 2):
        if folder.name == "numerics" and {one, other} & COMMANDS:
            continue
        assert ENDINGS.sub("", one) != ENDINGS.sub("", other), (one, other)
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize(("package", "closed"), [("theory", ("numerics", "figures")), ("numerics", ("figures",))])
def test_imports_run_one_way(package: str, closed: tuple[str, ...]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & set(closed), path


def test_what_computes_knows_no_pictures_and_no_command_lines() -> None:
    for path in (ROOT / "numerics").rglob("*.py"):
        room = path.relative_to(ROOT / "numerics").parts[0]
        if room not in {"cli", "plots"} and path.stem not in {*COMMANDS, "explorer", "__main__"}:
            assert not {name for name in imports(path) if name.startswith(("numerics.cli", "numerics.plots"))}, path
