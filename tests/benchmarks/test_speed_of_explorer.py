"""How fast the notebook interface answers a slider; run with ``--benchmark-only``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import numpy as np
import pytest

pytest.importorskip("ipywidgets")

from numerics.explorer import Explorer, explore

RIDGES = np.geomspace(0.03, 1.0, 24)


@pytest.fixture(scope="module")
def shown() -> Explorer:
    return explore()


def dragging(shown: Explorer, key: str, values: np.ndarray) -> Callable[[], None]:
    """A function that moves a slider one step further."""
    places = cycle(np.concatenate((values, values[-2:0:-1])))
    slider = shown.sliders[key]

    def move() -> None:
        slider.value = next(places)

    return move


@pytest.mark.parametrize(
    ("second", "third"),
    [("magnetization", "norm"), ("generalization_gap", "norm"), ("train_loss", "test_logit_distance")],
)
@pytest.mark.benchmark(group="explorer")
def test_a_slider_is_moved(benchmark, measured: dict[str, float], shown: Explorer, second: str, third: str) -> None:
    """60 points of two stages, three panels, table, picture: all of a redraw."""
    shown.choices[0].value, shown.choices[1].value = second, third
    benchmark.pedantic(dragging(shown, "teacher_ridge", RIDGES), rounds=2 * len(RIDGES), warmup_rounds=2)
    assert shown.message == "all points converged"
    if benchmark.stats is not None:
        measured[f"explorer, {second}"] = benchmark.stats.stats.median


@pytest.mark.benchmark(group="explorer")
def test_the_current_alpha_is_moved(benchmark, measured: dict[str, float], shown: Explorer) -> None:
    """The curves stay: one point is solved, one picture drawn."""
    benchmark.pedantic(dragging(shown, "alpha", np.geomspace(0.1, 5.0, 24)), rounds=48, warmup_rounds=2)
    assert shown.message == "all points converged"
    if benchmark.stats is not None:
        measured["explorer, alpha"] = benchmark.stats.stats.median


@pytest.mark.benchmark(group="explorer")
def test_curves_alone(benchmark, measured: dict[str, float], shown: Explorer) -> None:
    """60 points of two stages and the current one, solved; nothing drawn."""
    values = cycle(np.concatenate((RIDGES, RIDGES[-2:0:-1])))

    def compute() -> None:
        shown._held = True
        shown.sliders["teacher_ridge"].value = next(values)
        shown._held = False
        shown._compute()
        shown._curve("test_error")

    benchmark.pedantic(compute, rounds=48, warmup_rounds=2)
    if benchmark.stats is not None:
        measured["explorer, curves"] = benchmark.stats.stats.median


@pytest.mark.benchmark(group="explorer")
def test_drawing_alone(benchmark, measured: dict[str, float], shown: Explorer) -> None:
    """Three panels over a background that stays, as a PNG."""

    def draw() -> None:
        shown._draw()
        shown._show()

    benchmark.pedantic(draw, rounds=48, warmup_rounds=2)
    if benchmark.stats is not None:
        measured["explorer, drawing"] = benchmark.stats.stats.median
