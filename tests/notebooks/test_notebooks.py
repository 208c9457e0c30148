"""The committed notebooks: executed, of the current source, small, free of traces of a machine; and they run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("ipywidgets")

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = (
    "anatomy", "classes", "derivation", "double_descent", "explore", "features", "neurons", "your_own_data", "your_own_loss",
)  # fmt: skip
SIZE, TOGETHER = 800_000, 1_800_000  # bytes

PATHS = re.compile(
    r"(?<![\w.])/(?:root|home|Users|tmp|work|mnt|usr|opt)/|[A-Z]:\\\\|site-packages|ipykernel_\d|file://"
)


def _tools() -> ModuleType:
    """``notebooks/execute.py``, which is not part of a package."""
    found = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


tools = _tools()


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code(notebook) for output in cell.outputs]


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    return [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]


def test_these_are_the_notebooks() -> None:
    assert [path.stem for path in tools.notebooks()] == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_the_source(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata[tools.FINGERPRINT] == tools.fingerprint(notebook), (
        f"{name} was edited: run python notebooks/execute.py {name}"
    )
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert outputs(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_went_wrong(name: str) -> None:
    for output in outputs(read(name)):
        assert output.output_type != "error", output
        assert output.get("name") != "stderr", output.text


@pytest.mark.parametrize("name", NAMES)
def test_no_traces_of_a_machine(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not PATHS.search(text), PATHS.search(text)
    notebook = read(name)
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "widgets", tools.FINGERPRINT}
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(cell.metadata == {} for cell in notebook.cells)  # no execution times


def test_they_are_small() -> None:
    sizes = [(FOLDER / f"{name}.ipynb").stat().st_size for name in NAMES]
    assert max(sizes) < SIZE
    assert sum(sizes) < TOGETHER


def test_what_they_show() -> None:
    assert len(pictures(read("double_descent"))) == 6
    assert len(pictures(read("your_own_loss"))) == 5
    assert len(pictures(read("anatomy"))) == 3
    assert len(pictures(read("your_own_data"))) == 3
    assert len(pictures(read("neurons"))) == 5
    explore = read("explore")
    (shown,) = outputs(explore)
    assert "application/vnd.jupyter.widget-view+json" in shown.data
    assert "image/png" in shown.data  # for readers without widgets
    assert "widgets" in explore.metadata
    assert code(explore)[0].source == "from numerics.explorer import explore\n\nexplore()"
    derived = [output for output in outputs(read("derivation")) if "text/latex" in output.get("data", {})]
    assert len(derived) > 50
    for output in derived:
        assert output.data["text/latex"].startswith("$")


def test_a_failing_cell_is_noticed(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import numerics\nassert not numerics")])
    with pytest.raises(CellExecutionError):
        tools.execute(notebook, tmp_path)


def test_cleaning_and_the_fingerprint() -> None:
    cell = nbformat.v4.new_code_cell("1 + 1", metadata={"execution": {"iopub.status.busy": "2025-01-01"}})
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}, "author": "x"}
    )
    tools.clean(notebook)
    assert notebook.cells[0].metadata == {}
    assert set(notebook.metadata) == {"kernelspec", "language_info", tools.FINGERPRINT}
    before = tools.fingerprint(notebook)
    assert notebook.metadata[tools.FINGERPRINT] == before
    notebook.cells[0].source = "1 + 2"
    assert tools.fingerprint(notebook) != before


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, tmp_path: Path) -> None:
    """In an empty folder, with a fresh kernel, to the end; it shows as many things as the committed one."""
    notebook, committed = read(name), read(name)
    tools.execute(notebook, tmp_path)
    tools.clean(notebook)
    nbformat.validate(notebook)
    assert [len(cell.outputs) > 0 for cell in code(notebook)] == [len(cell.outputs) > 0 for cell in code(committed)]
    assert len(pictures(notebook)) == len(pictures(committed))
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
