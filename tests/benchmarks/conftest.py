"""A table of ratios at the end of ``pytest tests/benchmarks --benchmark-only -m ""``."""

from __future__ import annotations

import pytest

ROWS: tuple[tuple[str, str, str | None], ...] = (
    ("one stage, cold, compiled core", "one stage", None),
    ("one stage, straightforward SciPy (1e-6)", "scipy", "one stage"),
    ("two stages, cold, compiled core, median of the random box", "two stages", None),
    ("two stages along a curve, compiled core, each point", "curve", None),
    ("two stages on a dense covariance of 1000 inputs, from nearby", "dense", None),
    ("the same, once a covariance and a map", "dense, once", None),
    ("two stages on 2000 coordinates of a power law, from nearby", "power law", None),
    ("two stages on two clusters of 500 inputs, one covariance a cluster, from nearby", "clusters", None),
    ("two stages, a loss that does not split, same points", "general", "split"),
    ("call of `solve` from Python, two stages", "solve", None),
    ("what the call adds to the core", "overhead", None),
    ("two stages of three classes, cold, test errors to 1e-7", "classes 3", None),
    ("the same, ridges of 1e-3", "classes 3, small ridges", None),
    ("the first of five classes, to 1e-4", "classes 5", None),
    ("ten classes that are all alike, to 1e-4", "classes alike", None),
    ("anatomy of a student without best ridges", "anatomy", None),
    ("100 x 100 points of two stages through `sweep`", "grid", None),
    ("a point of them, compiled core", "grid, core", None),
    ("what the grid adds to it", "grid, added", "grid, core"),
    ("20 x 100 points of two stages through `sweep`, student's ridge 1e-3", "ridge", None),
    ("the same where it is 0", "no ridge", "ridge"),
    ("generated kernel, one node and point", "generated", None),
    ("the same sums written by hand", "handwritten", "generated"),
    ("simulation, N=2000, alpha=3, hard labels", "fit", None),
    ("best scikit-learn solver at equal gradient norm", "scikit-learn", "fit"),
    ("simulation, soft labels of a teacher", "soft", "fit"),
    ("notebook, a slider moved: test error, norm, magnetization", "explorer, magnetization", None),
    ("notebook, a slider moved: test error, generalization gap, norm", "explorer, generalization_gap", None),
    ("notebook, a slider moved: test error, training loss, logit distance", "explorer, train_loss", None),
    ("notebook, the current alpha moved", "explorer, alpha", None),
    ("notebook, 60 points computed, nothing drawn", "explorer, curves", None),
    ("notebook, drawing alone", "explorer, drawing", None),
    ("first result, nothing cached", "empty cache", None),
    ("first result with a new loss, core cached", "new loss", None),
    ("first result, everything cached", "full cache", None),
    ("importing numerics alone", "import", None),
)
"""Label, key of the measurement, key of the one it is divided by."""

_measured = pytest.StashKey[dict[str, float]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_measured] = {}


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> dict[str, float]:
    """Seconds by key, for the table."""
    return request.config.stash[_measured]


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[_measured]
    if not found:
        return
    terminalreporter.section("ratios, ready for the README")
    terminalreporter.write_line("| what | time | ratio |")
    terminalreporter.write_line("| --- | --- | --- |")
    for label, key, baseline in ROWS:
        if key not in found:
            continue
        ratio = f"{found[key] / found[baseline]:.3g}" if baseline in found else ""
        terminalreporter.write_line(f"| {label} | {duration(found[key])} | {ratio} |")
