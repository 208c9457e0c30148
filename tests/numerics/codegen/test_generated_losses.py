"""Compiled code of losses against their formulas: targets at a jump and near saturation, values and derivatives of arrays."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
from mpmath import mp
from numba import njit

from numerics import Estimator, GaussianMixture, solve
from numerics.codegen.losses import LossFunctions, loss_module
from numerics.scalar.kernels.elementary import address
from theory.functions import MPMATH
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation
from theory.symbols import h, y

LOSSES = [
    PseudoLabels(0.7, 0.1),
    PseudoLabels(0.7, 0.1, square=True),
    PseudoLabels(teacher=(1, 2)),
    Distillation(0.7, 2.0, 0.1, teacher=(1, 2)),
    SquareDistillation(0.7, 1.5, 0.1, teacher=(1, 2)),
    Loss.from_expression("softplus(h)*(1 + step(h_1)) - h*(a*step(s*h_2) + (1-a)*y)", {"a": 0.3}),
]


def _exact(loss: Loss, expression: sympy.Expr):
    """Function of ``h, y, *logits`` to high accuracy."""
    function = sympy.lambdify((h, y, *loss.logits, *loss.symbols), expression, modules=[MPMATH, "mpmath"])
    return lambda *point: float(function(*map(mp.mpf, point), *loss.values))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_values_and_derivatives_of_arrays(loss: Loss) -> None:
    positions, labels = np.array([-2.0, 0.3, 1.7, 0.0, 5.0]), np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    logits = np.array([[-1.0, 2.0], [0.0, -0.5], [3.0, -0.0], [-1e-300, 1e-300], [0.2, 0.0]])[:, : len(loss.logits)]
    logits = np.ascontiguousarray(logits)
    functions = LossFunctions(loss)
    found = [functions.value(positions, labels, logits), *functions.derivatives(positions, labels, logits)]
    found += [functions.mixed(positions, labels, logits, k) for k in range(len(loss.logits))]
    expected = [loss.expression, loss.gradient, loss.curvature]
    expected += [sympy.diff(loss.gradient, symbol) for symbol in loss.logits]
    for values, expression in zip(found, expected, strict=True):
        exact = _exact(loss, expression)
        wanted = [exact(*point) for point in zip(positions, labels, *logits.T, strict=True)]
        np.testing.assert_allclose(values, wanted, rtol=1e-13, atol=1e-15)


@njit
def _targets(function, label, logits, parameters):
    """c measured from the limits of S at -oo and at +oo."""
    out = np.empty(2)
    function(0.0, label, address(logits, 0), address(parameters, 0), address(out, 0))
    return out


def _pair(loss: Loss, label: float, *logits: float) -> np.ndarray:
    return _targets(loss_module(loss).targets, label, np.array(logits), np.array(loss.values))


def test_the_target_of_a_pseudo_label_is_exact_on_the_near_branch() -> None:
    """Without smoothing, c - 1 is 0 where the teacher says 1, and c is 0 where it says 0; both are 1/2 away at 0."""
    loss = PseudoLabels(mixing=0.3)
    for label, taught, expected in (
        (1.0, 2.0, (1.0, 0.0)), (0.0, -2.0, (0.0, -1.0)), (1.0, -2.0, (0.7, -0.3)), (0.0, 2.0, (0.3, -0.7)),
        (1.0, 0.0, (0.85, -0.15)), (1.0, -0.0, (0.85, -0.15)),
    ):  # fmt: skip
        np.testing.assert_allclose(_pair(loss, label, taught), expected, rtol=1e-15, atol=0)
    assert np.all(np.isnan(_pair(loss, 1.0, np.nan)))


def test_the_mean_of_saturated_teachers_keeps_its_relative_accuracy() -> None:
    found = _pair(Distillation(teacher=(1, 2)), 0.0, 40.0, 45.0)
    assert found[1] == pytest.approx(-(np.exp(-40.0) + np.exp(-45.0)) / 2, rel=1e-14)


def test_pseudo_labels_are_the_limit_of_steep_soft_labels() -> None:
    """The theory of hard targets against gain 10^5 and its 1/gain correction."""
    data = GaussianMixture(alpha=2.0, rho=0.3, delta=1.0)
    teacher = Estimator(CrossEntropy(), ridge=0.1)
    steep = Loss.from_expression("softplus(h) - h*sigmoid(gain*h_teacher)", {"gain": 1e5})
    hard, soft = (solve(data, [teacher, Estimator(loss, ridge=0.05)]) for loss in (PseudoLabels(), steep))
    assert hard.converged
    for name in ("magnetization", "bias", "test_error", "train_error"):
        assert getattr(hard[1], name) == pytest.approx(getattr(soft[1], name), rel=1e-4), name
    np.testing.assert_allclose(hard.response, soft.response, rtol=1e-4)
