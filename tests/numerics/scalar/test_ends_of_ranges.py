"""Ends of the allowed ranges: thresholds at small ridges, vanishing weights, large ridges, stages that coincide."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from numerics import DataSet, Estimator, GaussianMixture, separability_threshold, solve, sweep
from numerics.models import ConvergenceWarning
from numerics.scalar.constant_targets import resting_biases
from numerics.settings import DEFAULT
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation

RHO = 0.2

# Just below the separability threshold, at ridges of 1e-5 and less


@pytest.mark.parametrize(("ridge", "below"), [(1e-5, 0.034), (1e-5, 0.0282), (1e-5, 0.021), (1e-6, 0.01), (1e-6, 0.02)])
def test_students_of_all_inputs_are_resolved_close_to_the_separability_threshold(ridge, below):
    """The student's field is narrow and moves quickly with the teacher's; it amplifies what Newton's method leaves there."""
    data = GaussianMixture(separability_threshold(RHO, 1.0) * (1.0 - below), RHO, 1.0)
    chain = [Estimator(CrossEntropy(), ridge), Estimator(Distillation(), ridge)]
    found = solve(data, chain)
    assert found.converged, found.message
    fine = replace(DEFAULT, max_levels=found.level + 2, newton_tolerance=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # no rule reaches 1e-13
        reference = solve(data, chain, rtol=1e-13, settings=fine)
    own = np.diag(reference.response)
    assert found.response == pytest.approx(reference.response, abs=1e-8 * own.max())
    assert found.overlap == pytest.approx(reference.overlap, rel=2e-8)
    assert found[1].test_error == pytest.approx(reference[1].test_error, rel=1e-8)


# Targets that do not depend on the sample

DATA = GaussianMixture(1.3, RHO, 0.8, label_noise=0.1)
QUARTER = Loss.from_expression("softplus(h) - h/4", name="target 1/4")


def response_at(curvature, ridge, eta=1.0, alpha=DATA.alpha, delta=DATA.delta):
    """Root of V (ridge + alpha Delta l''/(1 + Delta V l'')) = eta, a quadratic equation in V."""
    a, b = ridge * delta * curvature, ridge + alpha * delta * curvature - eta * delta * curvature
    return (-b + np.sqrt(b * b + 4.0 * a * eta)) / (2.0 * a)


@pytest.mark.parametrize(
    ("loss", "curvature", "bias"),
    [
        (CrossEntropy(smoothing=0.5), 0.25, 0.0),
        (QUARTER, 3 / 16, -np.log(3.0)),
        (Loss.from_expression("(h - c)**2", {"c": 0.7}), 2.0, 0.7),
        (Loss.from_expression("cosh(h) - a*s*h", {"a": 0.0}), 1.0, 0.0),
    ],
)
def test_constant_targets_leave_no_weights(loss, curvature, bias):
    stage = solve(DATA, Estimator(loss, ridge=0.1, eta=0.7))
    assert stage.converged
    assert "do not depend on the sample" in stage.message
    only = stage[0]
    assert (only.norm, only.magnetization) == (0.0, 0.0)
    assert only.bias == pytest.approx(bias, rel=1e-13)
    assert only.response == pytest.approx(response_at(curvature, 0.1, eta=0.7), rel=1e-12)
    assert np.isnan(only.cosine)
    if bias == 0.0:
        assert np.isnan(only.test_error)
        assert np.isnan(only.train_error)
    else:
        share = 1.0 - RHO if bias > 0 else RHO
        assert only.test_error == pytest.approx(share, rel=1e-14)
        assert only.clean_train_error == pytest.approx(share, rel=1e-14)
        assert only.train_error == pytest.approx(0.9 * share + 0.1 * (1.0 - share), rel=1e-14)
    assert only.free_energy == pytest.approx(DATA.alpha * only.train_loss, rel=1e-14)
    assert stage.to_dict()["stages"][0]["cosine"] is None


def test_almost_constant_targets_approach_the_limit():
    near, limit = (solve(DATA, Estimator(CrossEntropy(smoothing=e), ridge=0.1))[0] for e in (0.4999, 0.5))
    assert near.norm < 1e-3
    assert near.response == pytest.approx(limit.response, rel=1e-6)
    assert near.free_energy == pytest.approx(limit.free_energy, rel=1e-6)


def test_a_student_of_a_constant_teacher_learns_as_if_from_smoothed_labels():
    """Half of its target is 1/2: label smoothing 1/4."""
    teacher = Estimator(CrossEntropy(smoothing=0.5), ridge=0.3)
    taught = solve(DATA, [teacher, Estimator(Distillation(mixing=0.5), ridge=0.1, eta=0.6)])[1]
    alone = solve(DATA, Estimator(CrossEntropy(smoothing=0.25), ridge=0.1, eta=0.6))[0]
    for name in ("magnetization", "norm", "bias", "response", "test_error", "train_error", "test_loss", "free_energy"):
        assert getattr(taught, name) == pytest.approx(getattr(alone, name), rel=2e-8), name
    assert np.isnan(taught.teacher_agreement)
    assert taught.test_logit_distance == pytest.approx(taught.bias**2 + 2 * (2 * RHO - 1) * taught.bias * taught.magnetization
                                                       + taught.magnetization**2 + 0.8 * taught.norm_squared)  # fmt: skip


@pytest.mark.parametrize("last", [Distillation(teacher=2), Distillation(mixing=0.5, teacher=(1, 2))])
def test_constants_are_passed_on_and_responses_to_them_are_limits(last):
    """A target that differs a little between samples has all responses, by the ordinary equations."""
    later = [Estimator(Distillation(temperature=3.0), 0.2), Estimator(last, 0.3)]
    limit = solve(DATA, [Estimator(QUARTER, 0.1, eta=0.5), *later])
    little = Loss.from_expression("softplus(h) - (1/4 + c*y)*h", {"c": 1e-5})
    near = solve(DATA, [Estimator(little, 0.1, eta=0.5), *later])
    assert [stage.norm == 0.0 for stage in limit] == [True, True, last.parameters["mixing"] == 1.0]
    assert [stage.bias for stage in limit] == pytest.approx([stage.bias for stage in near], rel=3e-5)
    assert limit.response == pytest.approx(near.response, rel=1e-4)
    assert limit[2].teacher_agreement == pytest.approx(near[2].teacher_agreement, abs=1e-4)


def test_gains_of_zero_in_a_sweep():
    chain = [
        Estimator(CrossEntropy(), 0.1),
        Estimator(SquareDistillation(mixing=1.0), 0.3),
        Estimator(PseudoLabels(mixing=0.5), 0.2),
    ]
    grid = sweep(DATA, chain, {"student.gain": [0.0, 0.5]}, ["norm", "test_error", "cosine", "bias"])
    assert grid.converged.all()
    student = grid.sel({"stage": "student", "student.gain": 0.0})
    assert student.norm == 0.0
    assert np.isnan(student.test_error)
    assert np.isnan(student.cosine)
    assert np.isfinite(grid.test_error.sel(stage="stage3")).all()


def test_given_biases_and_other_data_sets():
    """Where the gradient does not vanish at a given bias all forces are alike but not 0."""
    assert solve(DATA, Estimator(CrossEntropy(smoothing=0.5), 0.1, bias=0.0))[0].norm == 0.0
    pulled = solve(DATA, Estimator(CrossEntropy(smoothing=0.5), 1e6, bias=0.2))[0]
    force = 0.5 - 1.0 / (1.0 + np.exp(-0.2))
    assert pulled.magnetization * 1e6 == pytest.approx(DATA.alpha * (2 * RHO - 1) * force, rel=1e-5)
    two = GaussianMixture(1.0, RHO, 0.8, further=[DataSet("fresh", 2.0)])
    both = solve(two, [Estimator(QUARTER, 0.1, sets="fresh"), Estimator(CrossEntropy(), 0.1)])
    assert both[0].response == pytest.approx(response_at(3 / 16, 0.1, alpha=2.0), rel=1e-12)


def test_a_jump_far_from_what_is_looked_at_first_is_not_missed():
    """Its target is 1 for logits above 100 alone: constant as far as one usually sees."""
    rare = Loss.from_expression("softplus(h) - (1/4 + step(h_teacher - 100)/2)*h")
    assert resting_biases((Estimator(CrossEntropy(), 0.1), Estimator(rare, 0.1))) == (None, None)


# Large ridges


@pytest.mark.parametrize("teacher_ridge", [1e5, 1e8])
@pytest.mark.parametrize("student_ridge", [1e5, 1e8])
def test_large_ridges_are_the_limit_of_small_weights(teacher_ridge, student_ridge):
    """w = (1/ridge) sum_mu f_mu x_mu with the forces at w = 0; a student's forces follow the teacher's small logits."""
    alpha, rho, delta, eta = 1.3, RHO, 0.8, 0.7
    chain = [Estimator(CrossEntropy(), teacher_ridge), Estimator(Distillation(), student_ridge, eta=eta)]
    found = solve(GaussianMixture(alpha, rho, delta), chain)
    assert found.converged, found.message
    slope = rho * (1.0 - rho)  # sigmoid' at the bias, and E[f^2]
    m = 2.0 * alpha * slope
    q = m**2 + alpha * delta * slope
    assert found[0].magnetization * teacher_ridge == pytest.approx(m, rel=2.0 / teacher_ridge + 1e-8)
    assert found[0].norm_squared * teacher_ridge**2 == pytest.approx(q, rel=4.0 / teacher_ridge + 1e-8)
    assert found[0].bias == pytest.approx(np.log(rho / (1.0 - rho)), rel=2.0 / teacher_ridge)
    # E[s (h - E h)] on training samples, and what the teacher's own weights add through their overlap.
    field = m * 4.0 * slope + delta * 2.0 * slope
    student = eta * alpha * slope * (field + delta * m)
    assert found[1].magnetization * teacher_ridge * student_ridge == pytest.approx(student, rel=1e-4)
