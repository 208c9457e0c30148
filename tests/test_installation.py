"""What stands in the folder where somebody works does not hide the packages, or is named in one line."""

from __future__ import annotations

import tomllib

import pytest
from surroundings import ROOT, python

SOLVE = ("-m", "numerics.solve", "--alpha", "1", "--single", "--json")
IMPORT = ("-c", "from numerics import Estimator; import theory; print(theory.__file__)")


@pytest.mark.parametrize(
    "command", [SOLVE, IMPORT, ("-m", "figures"), ("-m", "theory", "--stages", "1")], ids=lambda c: c[1]
)
def test_folders_of_the_same_name_hide_nothing(tmp_path, command: tuple[str, ...]) -> None:
    """The package is found on the path, as in an editable install: after the working folder."""
    for name in ("theory", "numerics", "figures"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("")
    found = python(*command, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, b"")


def test_editable_installs_use_the_path() -> None:
    """setuptools writes a .pth file, which is a path, where all packages lie as they are called in the one folder that is named."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        settings = tomllib.load(file)["tool"]["setuptools"]
    assert settings["package-dir"] == {"": "."}
    roots = ["theory", "numerics", "figures"]
    assert settings["packages"]["find"]["include"] == [name for root in roots for name in (root, f"{root}.*")]
    folders = {path.parent for root in roots for path in (ROOT / root).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_another_module_of_the_name_is_one_line(tmp_path) -> None:
    (tmp_path / "theory.py").write_text("")
    found = python(*SOLVE, cwd=tmp_path)
    assert found.returncode == 1
    assert found.stderr.decode().count("\n") == 1
    assert str(tmp_path / "theory.py") in found.stderr.decode()
    found = python(*IMPORT, cwd=tmp_path)
    assert b"ImportError: the package theory is hidden" in found.stderr
