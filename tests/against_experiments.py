"""How far experiments are from theory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from numerics import Solution
from numerics.simulation.result import SimulationResult


def scores_of_stages(solution: Solution, runs: SimulationResult, names: Sequence[str]) -> list[float]:
    """(experiment - theory)/(standard error) of these quantities of all stages, where they are finite and vary between runs."""
    found = []
    for theory, experiment in zip(solution.stages, runs, strict=True):
        for name in names:
            expected, measured = getattr(theory, name), getattr(experiment, name, None)
            if measured is not None and math.isfinite(expected) and measured.standard_error > 1e-12:
                found.append((measured.mean - expected) / measured.standard_error)
    return found
