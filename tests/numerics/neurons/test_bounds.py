"""Bounds on the number of neurons, against numbers worked out by hand, and how their two accuracies are related."""

from __future__ import annotations

import math

import numpy as np
import pytest

from numerics.models import ParameterError
from numerics.neurons.bounds import (
    HardConstants,
    Sampling,
    SoftConstants,
    crossing,
    eps_for_error,
    hard_radius,
    hard_width,
    kl_from_half,
    soft_steps,
    soft_width,
    untrained_kl,
)

SAMPLING = Sampling(n_samples=200, delta=0.01, shortest=1.0)

# n = 200, delta = 0.01: ln(2n/delta) = ln 40000 = 10.596635, its root 3.255247; C1 = 96/8.389056 = 11.443481.
# Soft: 0.797885 + 9.765740 = 10.563625, squared 111.590165; 32 C1 = 366.191392; together 40863.358.
# Hard, beta = 0.1: ln(20/0.693147) = 3.362243; 1.595769 of it 5.365364; with 9.765740: 15.131104, squared 228.950309; times 16.


def test_soft_bound_by_hand() -> None:
    assert soft_width(1.0, 1.0, SAMPLING) == pytest.approx(40863.36, rel=1e-6)
    assert soft_width(0.1, 0.05, SAMPLING) == pytest.approx(40863.36 / (0.01 * 0.05), rel=1e-6)
    assert soft_steps(0.1, 0.05) == pytest.approx(9 / (1e-4 * 0.0025))


def test_hard_bound_by_hand() -> None:
    assert hard_width(1.0, 0.1, SAMPLING) == pytest.approx(16 * 228.950309, rel=1e-6)
    assert hard_width(0.1, 0.1, SAMPLING) == pytest.approx(16e4 * 228.950309, rel=1e-6)
    assert hard_radius(0.1, 0.1) == pytest.approx(20 * 3.362243, rel=1e-6)


def test_radii_of_the_experiment() -> None:
    """Margins of about 0.030 and 0.077 at 5%: radii of 271 and 106."""
    assert hard_radius(0.030, 0.05) == pytest.approx(270.5, abs=1)
    assert hard_radius(0.0766, 0.05) == pytest.approx(106, abs=1)


def test_where_the_bounds_cross() -> None:
    eps = np.array([0.1, 0.01, 0.001])
    found = crossing(eps, SAMPLING)
    assert found == pytest.approx([0.095, 0.037, 0.014], abs=6e-4)
    assert soft_width(found, eps, SAMPLING) == pytest.approx(hard_width(found, eps, SAMPLING))
    assert np.all(soft_width(0.9 * found, eps, SAMPLING) < hard_width(0.9 * found, eps, SAMPLING))


def test_the_line_of_the_abstract_is_another_one() -> None:
    """gamma <= eps is neither enough (at 0.2) nor needed (at 0.01)."""
    assert crossing(0.2, SAMPLING) < 0.2
    assert crossing(0.01, SAMPLING) > 0.01
    assert crossing(0.0949, SAMPLING) == pytest.approx(0.0949, rel=0.03)


@pytest.mark.parametrize(
    ("bound", "constants", "changes"),
    [
        (
            soft_width,
            SoftConstants,
            {"factor": 64.0, "curvature": 1.0, "small_ball": 2.0, "deviation": 1.0, "union": 4.0},
        ),
        (hard_width, HardConstants, {"factor": 64.0, "small_ball": 2.0, "deviation": 1.0, "union": 4.0}),
    ],
)
def test_every_constant_is_an_argument(bound, constants, changes) -> None:
    usual = bound(0.1, 0.1, SAMPLING)
    found = {name: float(bound(0.1, 0.1, SAMPLING, constants(**{name: value}))) for name, value in changes.items()}
    assert found["factor"] == pytest.approx(usual * 64 / constants().factor)
    assert all(value != pytest.approx(float(usual), rel=1e-3) for value in found.values())
    assert hard_radius(0.1, 0.1, HardConstants(radius=1.0)) == hard_radius(0.1, 0.1) / 2
    assert soft_steps(0.1, 0.1, SoftConstants(steps=18.0)) == 2 * soft_steps(0.1, 0.1)


def test_samples_delta_and_shortest_input_matter() -> None:
    for bound in (soft_width, hard_width):
        usual = bound(0.1, 0.1, SAMPLING)
        assert bound(0.1, 0.1, Sampling(2000)) > usual
        assert bound(0.1, 0.1, Sampling(200, delta=0.001)) == pytest.approx(bound(0.1, 0.1, Sampling(2000)))
        assert bound(0.1, 0.1, Sampling(200, shortest=0.5)) > usual


# The two accuracies.


def test_kl_of_a_wrong_sign() -> None:
    for h in (1e-8, 1e-3, 0.3, 2.0, 20.0, -0.3):
        p = 1 / (1 + math.exp(-h))
        if abs(h) < 1e-2:
            assert kl_from_half(h) == pytest.approx(h**2 / 8, rel=max(h**2, 1e-7))
        else:
            entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
            assert kl_from_half(h) == pytest.approx(math.log(2) - entropy, abs=1e-12)
        assert kl_from_half(h) <= h**2 / 8
    assert kl_from_half(1e4) == pytest.approx(math.log(2))
    assert kl_from_half(-1e4) == pytest.approx(math.log(2))


def test_half_is_the_nearest_on_the_wrong_side() -> None:
    p = 1 / (1 + math.exp(-0.07))
    for logit in (0.0, -0.01, -1.0):
        q = 1 / (1 + math.exp(-logit))
        assert p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) >= float(kl_from_half(0.07)) - 1e-15


def test_equal_errors_turn_the_comparison_round() -> None:
    """At eps = beta gamma^2/8 the soft bound goes like gamma^-4 and is the larger one at every margin."""
    gamma = np.geomspace(1e-3, 0.3, 20)
    eps = eps_for_error(0.05, gamma)
    assert eps == pytest.approx(0.05 * gamma**2 / 8, rel=0.02)
    soft, hard = soft_width(gamma, eps, SAMPLING), hard_width(gamma, 0.05, SAMPLING)
    assert np.all(soft > 1000 * hard)
    slope = np.diff(np.log(soft)) / np.diff(np.log(gamma))
    assert slope == pytest.approx(-4.0, abs=0.02)


def test_where_the_soft_bound_is_smaller_it_is_empty() -> None:
    """Soft labels of logits about the margin: the untrained network's KL is far below the eps at which the bounds cross."""
    for gamma in np.geomspace(1e-3, 0.3, 10):
        eps = untrained_kl([gamma, -gamma])
        assert eps == pytest.approx(gamma**2 / 8, rel=0.02)
        assert crossing(eps, SAMPLING) < gamma / 3


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: soft_width(0.0, 0.1, SAMPLING), "gamma"),
        (lambda: soft_width(0.1, float("nan"), SAMPLING), "eps"),
        (lambda: hard_width(0.1, 1.0, SAMPLING), "beta"),
        (lambda: hard_width(-0.1, 0.1, SAMPLING), "gamma"),
        (lambda: Sampling(0), "n_samples"),
        (lambda: Sampling(10, delta=1.0), "delta"),
        (lambda: Sampling(10, shortest=2.0), "shortest"),
    ],
)
def test_bad_input_is_named(call, name: str) -> None:
    with pytest.raises(ParameterError, match=rf"^{name} must be"):
        call()
