"""The integral of a step of any steepness along one direction, and the product of the others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from numerics import crossings


@pytest.mark.parametrize("steepness", [0.3, 3.0, 30.0, 1e4, 1e9])
@pytest.mark.parametrize("place", [-1.3, 0.2, 2.5])
def test_tail_of_a_step_of_any_steepness(steepness: float, place: float) -> None:
    """Against adaptive quadrature that is told where the step is; the score is curved, as that of a real stage."""
    grid = np.linspace(-crossings.REACH, crossings.REACH, crossings.FINE_POINTS)

    def score(g: np.ndarray) -> np.ndarray:
        return steepness * (np.sinh(0.3 * g) + 0.2 * g - np.sinh(0.3 * place) - 0.2 * place)

    found = crossings.tail_along(score(grid)[None], lambda p: p)[0]
    width = min(1.0, 20.0 / steepness)
    pieces = [(-8.0, place - width), (place - width, place), (place, place + width), (place + width, 8.0)]
    exact = sum(
        quad(lambda g: ndtr(score(g)) * np.exp(-0.5 * g * g) / np.sqrt(2 * np.pi), *piece, epsabs=1e-13)[0]
        for piece in pieces
    )
    assert found == pytest.approx(exact, abs=2e-7)


def test_product_of_directions_has_the_moments_of_normal_variables() -> None:
    table, weight = crossings.product_directions(3, fine=1)
    others = table[:: crossings.FINE_POINTS][:, [0, 2]]
    assert weight.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(weight @ others, 0.0, atol=1e-12)
    np.testing.assert_allclose((weight[:, None] * others).T @ others, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(weight @ others**4, 3.0, atol=1e-4)
    fine = table[: crossings.FINE_POINTS, 1]
    np.testing.assert_allclose(fine, np.linspace(-crossings.REACH, crossings.REACH, crossings.FINE_POINTS))


def test_fastest_direction() -> None:
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((2000, 3))
    scores = 0.3 * directions[:, 0] - 2.0 * directions[:, 1] + directions[:, 2]
    assert crossings.fastest_direction(scores, np.full(2000, 1 / 2000), directions) == 1
