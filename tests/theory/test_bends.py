"""Where gradients bend, and what of it is known."""

from __future__ import annotations

import math

import pytest
from sympy import exp, log, sqrt, tanh

from theory import CrossEntropy, Distillation, Loss, PseudoLabels, SquareLoss
from theory.bends import JUMP_WIDTH, are_known, numeric_bends
from theory.functions import sigmoid, softplus, step
from theory.symbols import TEACHER, h


@pytest.mark.parametrize("loss", [CrossEntropy(0.1), SquareLoss(), Distillation(0.3, 2.0), PseudoLabels(0.2)])
def test_bends_of_built_in_losses_are_known(loss: Loss) -> None:
    assert loss.bends_are_known


@pytest.mark.parametrize(
    ("slope", "known"),
    [
        (h + 3 * sigmoid(2 * h - 1), True),
        (h * sigmoid(TEACHER) + tanh(h), True),
        (h / sqrt(1 + h**2), True),
        (h**3, False),
        (h * tanh(h), False),
        (sigmoid(h) * softplus(h), False),
        (tanh(h**2), False),
        (tanh(sigmoid(h)), False),
        (h**3 / sqrt(1 + h**4), False),
        (exp(h), False),
    ],
)
def test_only_plain_gradients_are_known(slope, known: bool) -> None:
    assert are_known(slope, h) is known


def test_bends_of_polynomial_arguments_are_near_their_complex_roots() -> None:
    """exp(-50 (x - 1)^2) has the width 1/sqrt(50) or so around 1; 1/(1 + x^4) is singular at (+-1 +-i)/sqrt 2."""
    bends = numeric_bends(exp(-50 * (h - 1) ** 2), h)
    assert all(abs(place - 1) < 0.3 and 0.02 < scale < 0.3 for place, scale in bends)
    places = {(round(place, 6), round(scale, 6)) for place, scale in numeric_bends(1 / (1 + h**4), h)}
    assert places == {(-0.707107, 0.707107), (0.707107, 0.707107)}
    assert numeric_bends(step(h**2 - 4), h) == ((-2.0, float(JUMP_WIDTH)), (2.0, float(JUMP_WIDTH)))
    assert numeric_bends(log(h**2), h) == ((0.0, float(JUMP_WIDTH)),)


def test_bends_of_nested_functions_are_scanned_for() -> None:
    """sigmoid(200 (softplus(x) - 1)) is steep where softplus(x) = 1."""
    bends = dict(numeric_bends(sigmoid(200 * (softplus(h) - 1)), h))
    place = math.log(math.e - 1)
    steepest = min(bends, key=bends.get)
    assert steepest == pytest.approx(place, abs=1e-9)
    assert bends[steepest] == pytest.approx((1 + math.exp(-place)) / 200, rel=1e-6)


def test_bends_that_move_with_another_logit_are_not_given() -> None:
    assert numeric_bends(sigmoid(h - TEACHER), h) == ()
