"""Tails of any steepness, averaged in one direction and in several; jumps and kinks of the score."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from numerics.models.link import disagreement, mean_disagreement
from numerics.solution import crossings
from numerics.solution.crossings import mean_tail
from numerics.solution.quadrature import Budget, integrate


def average(score, count: int, rtol: float = 1e-9, **how) -> crossings.Integral:
    """Of a score that does not look at the group."""
    return mean_tail(lambda group, g: score(*g.T), np.array([0.3, 0.7]), count, rtol, **how)


@pytest.mark.parametrize("steepness", [0.3, 3.0, 30.0, 1e4, 1e9, 1e30])
@pytest.mark.parametrize("place", [-1.3, 0.2, 2.5])
def test_tail_of_a_step_of_any_steepness(steepness: float, place: float) -> None:
    """Against adaptive quadrature that is told where the step is; the score is curved, as that of a real stage."""

    def score(g: np.ndarray) -> np.ndarray:
        return steepness * (np.sinh(0.3 * g) + 0.2 * g - np.sinh(0.3 * place) - 0.2 * place)

    found = average(score, 1)
    width = min(1.0, 20.0 / steepness)
    pieces = [(-8.5, place - width), (place - width, place), (place, place + width), (place + width, 8.5)]
    exact = sum(
        quad(lambda g: ndtr(score(g)) * np.exp(-0.5 * g * g) / np.sqrt(2 * np.pi), *piece, epsabs=1e-14, epsrel=1e-13)[
            0
        ]
        for piece in pieces
    )
    assert found.value == pytest.approx(exact, rel=1e-9)
    assert abs(found.value - exact) <= found.error + 1e-15


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("steepness", [0.5, 40.0, 1e6])
def test_linear_scores_have_normal_tails(count: int, steepness: float) -> None:
    """E Phi(a g + z) = Phi(z/sqrt(1 + a^2)), whichever direction is the steep one."""
    slopes = np.array([0.2, -0.7, 1.0, 0.4])[:count] * steepness
    rtol = 1e-9 if count < 4 else 1e-5
    found = average(lambda *g: np.column_stack(g) @ slopes - 1.5 * steepness, count, rtol)
    exact = ndtr(-1.5 * steepness / math.sqrt(1.0 + slopes @ slopes))
    assert found.value == pytest.approx(exact, rel=rtol)
    assert abs(found.value - exact) <= found.error <= 10 * rtol * exact


def test_small_probabilities_keep_their_relative_accuracy() -> None:
    for place in (3.0, 4.5, 6.0):
        found = average(lambda g, place=place: 1e3 * (g - place), 1)
        exact = ndtr(-place / math.sqrt(1.0 + 1e-6))
        assert found.value == pytest.approx(exact, rel=1e-8)


def test_jumps_and_kinks_of_the_score() -> None:
    """P(|x| + y/2 < 1 + step(y)) with a field of width 1e-5: a kink along one direction, a jump along the other."""
    found = average(lambda x, y: 1e5 * (1.0 + (y > 0.3) - np.abs(x) - y / 2), 2)

    def inside(y: float) -> float:
        edge = 1.0 + (y > 0.3) - y / 2
        return (2 * ndtr(edge) - 1 if edge > 0 else 0.0) * math.exp(-y * y / 2) / math.sqrt(2 * math.pi)

    exact = sum(quad(inside, low, high, epsabs=1e-13)[0] for low, high in ((-8.5, 0.3), (0.3, 4.0)))
    assert found.value == pytest.approx(exact, abs=1e-8)
    assert found.error < 1e-8


def test_other_panels_give_the_same() -> None:
    def score(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 50.0 * (np.tanh(3.0 * x) + 0.4 * y - 0.2) + x * y

    first, second = average(score, 2), average(score, 2, check=True)
    assert first.value != second.value
    assert abs(first.value - second.value) <= first.error + second.error


def test_more_directions_than_panels_are_for() -> None:
    slopes = 30.0 * np.array([0.1, -0.2, 0.15, 1.0, 0.1, 0.3])
    found = average(lambda *g: np.column_stack(g) @ slopes - 20.0, 6, 1e-4)
    exact = ndtr(-20.0 / math.sqrt(1.0 + slopes @ slopes))
    assert abs(found.value - exact) <= 3 * found.error
    assert found.value == pytest.approx(exact, rel=2e-4)


def test_panels_close_in_on_a_kink() -> None:
    edges, budget = np.array([-1.0, 0.5, 2.0]), Budget()
    values, errors = integrate(
        lambda row, x: (np.abs(x - 0.1 * (row[:, None] + 1)), np.zeros_like(x)), edges, np.full(2, 1e-12), budget
    )
    exact = np.array([(1.1**2 + 1.9**2) / 2, (1.2**2 + 1.8**2) / 2])
    assert np.all(np.abs(values - exact) <= 1e-12)
    assert np.all(errors < 1e-11)


@pytest.mark.parametrize("slope", [0.1, 3.0, 1e3, 1e5])
@pytest.mark.parametrize(
    ("count", "steepness", "rtol"), [(1, 0.5, 1e-8), (1, 300.0, 1e-8), (2, 300.0, 1e-8), (3, 0.5, 1e-6), (5, 0.5, 1e-5)]
)
def test_a_tilted_direction(slope: float, count: int, steepness: float, rtol: float) -> None:
    """The first direction is weighted by sigmoid(-slope |g_1|), as narrow as it may be, and the score jumps at 0 there.

    Five directions are a Sobol sequence, whose error is no more than an estimate.
    """
    others = steepness * np.array([0.7, -0.4, 0.2, 0.5])[: count - 1]
    spread = math.sqrt(1.0 + others @ others)
    mean = mean_disagreement(slope)
    shares = mean, 1.0 - mean

    def score_at(group: np.ndarray, first: np.ndarray) -> np.ndarray:
        return steepness * np.where((first > 0) == (group == 1), 1.0, -1.0) * (0.4 + 0.8 * first)

    def density(group: np.ndarray, first: np.ndarray) -> np.ndarray:
        other = disagreement(slope, first)
        return np.where(group == 0, other / mean, (1.0 - other) / (1.0 - mean))

    def exact(g: float, group: int) -> float:
        where = np.array([group]), np.array([g])
        tail = ndtr(score_at(*where) / spread) * density(*where)
        return float(tail[0]) * math.exp(-0.5 * g * g) / math.sqrt(2 * math.pi)

    steps = -0.5 + np.array([-8.0, 0.0, 8.0]) * spread / steepness  # where the score changes sign
    near = np.minimum(9.0, np.array([1.0, 6.0, 36.0]) / slope)
    ends = np.unique([-9.0, 0.0, 9.0, *np.clip(steps, -9.0, 9.0), *near, *-near])
    value = sum(
        share * quad(exact, low, high, args=(group,), epsabs=1e-15, epsrel=1e-12, limit=200)[0]
        for group, share in enumerate(shares)
        for low, high in pairwise(ends)
    )
    tilt = crossings.Tilt(density, 1.0 / slope, 0.5 / mean)
    found, again = (
        mean_tail(
            lambda group, g: score_at(group, g[:, 0]) + g[:, 1:] @ others, np.array(shares), count, rtol, check=check, tilt=tilt
        )
        for check in (False, True)
    )  # fmt: skip
    assert found.value == pytest.approx(value, rel=(1.0 if count < 5 else 10.0) * rtol)
    assert found.error < 10.0 * rtol * value
    # As observables have it: what either says of itself, and what they say of each other.
    error = found.error + abs(again.value - found.value)
    assert abs(found.value - value) <= (1.0 if count < 5 else 4.0) * error + 1e-12
