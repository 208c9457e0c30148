"""Looking at the figures that are committed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xarray

from figures.__main__ import COMMITTED
from figures.build import FIGURES, Built, Effort, build


def committed(name: str, part: str) -> xarray.Dataset:
    """Data of a part of a figure."""
    return xarray.load_dataset(COMMITTED / f"{name}.nc", group=part)


def drawn_from_what_is_committed(name: str, folder: Path) -> Built:
    """The figure made anew in ``folder``; an AssertionError if any of its parts had to be computed."""
    made = build(name, folder, Effort(), sources=(COMMITTED,))
    assert made.computed == []
    assert made.reused == list(FIGURES[name].plan(Effort()).work)
    return made


def rms_of_scores(name: str) -> float:
    """Root mean square of all z scores of a figure."""
    scores = json.loads((COMMITTED / f"{name}.json").read_text(encoding="utf-8"))["z_scores"].values()
    return float(
        np.sqrt(np.average([entry["rms"] ** 2 for entry in scores], weights=[entry["points"] for entry in scores]))
    )
