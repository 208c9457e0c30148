"""Execute the notebooks of this folder and clean them for the repository: ``python notebooks/execute.py [NAME ...]``.

What is written depends on the notebook alone: no times, no paths, one name of the kernel.  A fingerprint of the code that was
executed is kept in the metadata, so that a test can tell outputs that are not of the current source.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
FINGERPRINT = "executed_source"
"""Key of the metadata of a notebook."""

TIMEOUT = 600
"""Seconds a cell may take; with nothing cached, the first one compiles the solver."""


def notebooks() -> list[Path]:
    """All notebooks of the folder."""
    return sorted(FOLDER.glob("*.ipynb"))


def fingerprint(notebook: NotebookNode) -> str:
    """SHA-256 of the code cells."""
    source = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(source.encode()).hexdigest()


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in ``folder`` with a fresh kernel; nbclient.exceptions.CellExecutionError if one fails."""
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)


def clean(notebook: NotebookNode) -> None:
    """Keep sources, outputs and the state of widgets; drop what depends on the machine and the day."""
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        **{FINGERPRINT: fingerprint(notebook)},
        **({"widgets": notebook.metadata.widgets} if "widgets" in notebook.metadata else {}),
    )


def main(names: list[str]) -> None:
    """Execute the notebooks of these names, or all."""
    for path in notebooks():
        if names and path.stem not in names and path.name not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, FOLDER)
        clean(notebook)
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
