"""Chains on K classes: two classes against the binary core, closed forms, symmetries, errors, observables, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from numerics import Chain, Estimator, GaussianMixture, ParameterError, Solution, solve
from numerics.classes.binary import as_binary
from numerics.classes.population import _quantile, orthant
from numerics.classes.solution import ClassSolution, _copies, solve_on_nodes
from numerics.classes.solver import Walk, solve_walk
from numerics.models import (
    ClassMixture,
    ClassSet,
    class_tree,
    equal_overlaps,
    orthogonal_means,
    similar_pairs,
    simplex_means,
)
from tests.random_classes import Kind, failures
from theory.losses import CrossEntropy, Distillation, LogitMatching, PseudoLabels, SquareDistillation, SquareLoss

TEACHER = Estimator(CrossEntropy(), 0.2)
STUDENT = Estimator(Distillation(0.7, 2.0), 0.1, eta=0.6)
MIX = ClassMixture(2.0, [0.5, 0.3, 0.2], similar_pairs(3, 0.4), [0.5, 1.0, 0.7])


@pytest.fixture(scope="module")
def solution() -> ClassSolution:
    return solve(MIX, [TEACHER, STUDENT])


# Two classes.

TWO = [
    [TEACHER, STUDENT],
    [
        Estimator(CrossEntropy(0.1), 0.1, eta=0.8),
        Estimator(Distillation(0.5, 3.0, 0.05, temperature_squared=True), 0.2),
    ],
    [Estimator(SquareLoss(), 0.3), Estimator(SquareDistillation(0.6, 1.2), 0.1, eta=0.5)],
    [replace(TEACHER, eta=0.8), Estimator(LogitMatching(0.6, 0.4), 0.2, eta=0.5, mask_overlap=0.7)],
]


@pytest.mark.parametrize("stages", TWO, ids=lambda stages: repr(stages[1].loss))
def test_two_classes_are_the_binary_solver(stages: list[Estimator]) -> None:
    """Every order parameter to 1e-9, through the equations in blocks and through what users get."""
    data = ClassMixture(1.5, [0.3, 0.7], simplex_means(2), 0.7, label_noise=0.05)
    binary = solve(*as_binary(data, Chain.of(stages)), rtol=1e-11)
    walk, _ = solve_walk(data, Chain.of(stages), -1, 60, tolerance=1e-3)
    walk, outcome = solve_walk(data, Chain.of(stages), 2, 60, walk.found, 1e-11)
    assert outcome.status == 0
    shown = solve(data, stages, rtol=1e-11)
    for t, (found, mapped) in enumerate(zip(walk.blocks, shown.walk.blocks, strict=True)):
        assert found.mean[0] * math.sqrt(2) == pytest.approx(
            binary.magnetization[t] * np.array([1, -1]), rel=1e-9, abs=1e-9
        )
        assert found.bias[0] * math.sqrt(2) == pytest.approx(binary.bias[t], rel=1e-9, abs=1e-9)
        assert found.overlap[0, 0] * 2 == pytest.approx(binary.overlap[t, t], rel=1e-9)
        twice = np.array([2.0 if isinstance(stage.loss, SquareLoss) else 1.0 for stage in stages[: t + 1]])
        assert found.response[:, 0, 0] * 2 == pytest.approx(twice * binary.response[t, : t + 1], rel=1e-8, abs=1e-8)
        for name in ("mean", "bias", "cholesky", "response"):
            assert getattr(mapped, name) == pytest.approx(getattr(found, name), rel=1e-8, abs=1e-8), name
        assert shown[t].test_error == pytest.approx(binary[t].test_error, abs=1e-10)
        assert shown[t].train_error == pytest.approx(binary[t].train_error, abs=2e-3)
        assert shown[t].test_loss * twice[-1] == pytest.approx(binary[t].test_loss, abs=1e-3)


def test_two_classes_of_other_means() -> None:
    """Any Gram matrix of two classes is the binary one, rescaled and shifted: against the equations in blocks."""
    data = ClassMixture(1.5, [0.3, 0.7], [[1.5, 0.2], [0.2, 0.8]], 0.7, test_weights=[0.5, 0.5])
    shown, found = solve(data, [TEACHER, STUDENT]), solve_on_nodes(data, Chain.of([TEACHER, STUDENT]), rtol=1e-8)
    assert isinstance(shown, ClassSolution)
    assert shown.means == pytest.approx(found.means, abs=1e-7)
    assert shown.bias == pytest.approx(found.bias, abs=1e-7)
    assert shown.overlap == pytest.approx(found.overlap, abs=1e-7)
    assert [stage.test_error for stage in shown] == pytest.approx([stage.test_error for stage in found], abs=1e-8)
    assert as_binary(replace(data, delta=(0.5, 0.7)), Chain.of(TEACHER)) is None
    assert as_binary(data, Chain.of([TEACHER, Estimator(Distillation(target="similarity"), 0.1)])) is None
    assert as_binary(data, Chain.of([TEACHER, Estimator(Distillation(target="top-1"), 0.1)])) is not None
    assert isinstance(solve(GaussianMixture(1.0), TEACHER), Solution)


# Closed forms and symmetries.


def test_square_loss_of_three_orthogonal_classes() -> None:
    """Test errors of ridge regression on one-hot labels, ridge 1e-3, Delta = 0.5: 0.5377 and 0.2964 to 5e-4."""
    for alpha, expected in ((0.2, 0.5377), (10.0, 0.2964)):
        found = solve(ClassMixture(alpha, delta=0.5), Estimator(SquareLoss(), 1e-3))
        assert found.converged
        assert found[0].test_error == pytest.approx(expected, abs=5e-4)


def test_equal_overlaps_rescale() -> None:
    """Overlap s of all classes: Delta and ridges over 1 - s, weights larger by 1/sqrt(1 - s)."""
    s = 0.4
    chain = [TEACHER, STUDENT]
    scaled = [replace(stage, ridge=stage.ridge / (1 - s)) for stage in chain]
    found = solve(ClassMixture(2.0, gram=equal_overlaps(3, s), delta=0.6), chain)
    other = solve(ClassMixture(2.0, gram=orthogonal_means(3), delta=0.6 / (1 - s)), scaled)
    assert [stage.test_error for stage in found] == pytest.approx([stage.test_error for stage in other], abs=1e-5)
    assert found[0].norm * math.sqrt(1 - s) == pytest.approx(other[0].norm, rel=1e-6)


def test_classes_may_be_named_in_any_order(solution: ClassSolution) -> None:
    order = [2, 0, 1]
    gram = np.array(MIX.gram)[np.ix_(order, order)]
    data = replace(MIX, gram=gram, weights=np.array(MIX.weights)[order], delta=MIX.deltas[order], test_weights=None)
    other = solve(data, [TEACHER, STUDENT])
    for found, same in zip(solution, other, strict=True):
        assert same.class_errors == pytest.approx(found.class_errors[order], abs=3e-5)
        assert same.biases == pytest.approx(found.biases[order], abs=2e-3)
    assert other[0].biases == pytest.approx(solution[0].biases[order], abs=1e-6)


def test_strong_ridge_is_the_hebbian_estimator() -> None:
    """Ridge -> infinity: weights go along the sum of residual labels; balanced orthogonal classes have the error of the mean."""
    delta, alpha = 1.0, 2.0
    found = solve(ClassMixture(alpha, delta=delta), Estimator(CrossEntropy(), 1e4))[0]
    # h_1 - h_2 for w_c the mean of class c: signal 1, variance Delta (2 + 2 K Delta/alpha), correlation 1/2 of the differences.
    spread = math.sqrt(delta * (2 + 2 * 3 * delta / alpha))
    expected = 1 - orthant(np.full(2, 1 / spread), np.array([[1.0, 0.5], [0.5, 1.0]]))
    assert found.test_error == pytest.approx(expected, abs=2e-4)


def test_hot_distillation_is_logit_matching() -> None:
    data = ClassMixture(2.0, gram=similar_pairs(3, 0.5), delta=0.7)
    hot = solve(data, [TEACHER, Estimator(Distillation(1.0, 300.0, temperature_squared=True), 0.05, eta=0.6)])[1]
    matched = solve(data, [TEACHER, Estimator(LogitMatching(1.0, 1 / 3), 0.05, eta=0.6)])[1]
    assert hot.test_error == pytest.approx(matched.test_error, abs=1e-4)
    assert hot.norm == pytest.approx(matched.norm, rel=2e-3)


# Errors, observables, results.


def test_the_estimated_error_covers_the_error(solution: ClassSolution) -> None:
    finer = solve(MIX, [TEACHER, STUDENT], rtol=3e-7)
    assert finer.quadrature_error < 3e-7
    for rough, fine in zip(solution, finer, strict=True):
        for name in ("test_error", "norm", "response", "teacher_cosine"):
            if name == "teacher_cosine" and rough.number == 1:
                continue
            error = abs(getattr(rough, name) - getattr(fine, name))
            assert error < 3 * (rough.error_of(name) + fine.error_of(name)) + 1e-12, name


def test_observables(solution: ClassSolution) -> None:
    student = solution["student"]
    assert student.confusion.sum(axis=1) == pytest.approx(1.0)
    assert np.diag(student.confusion) == pytest.approx(1 - student.class_errors, abs=1e-9)
    assert student.test_error == pytest.approx(np.array(MIX.weights) @ student.class_errors)
    assert student.generalization_gap == pytest.approx(student.test_error - student.train_error)
    assert student.norm_squared == pytest.approx(np.trace(solution.overlap[1, 1]))
    assert 0 < student.teacher_agreement < 1
    assert student.train_cross_entropy < student.test_cross_entropy
    assert math.isnan(solution[0].teacher_agreement)
    assert solution.means.sum(axis=2) == pytest.approx(0.0, abs=1e-12)
    assert solution.response[0, 1] == pytest.approx(0.0)
    crossed = solution.response[1, 0]
    assert np.abs(crossed - crossed.T).max() > 1e-4  # it is no symmetric block
    described = solution.to_dict()
    assert described["classes"] == 3
    assert len(described["stages"][1]["class_errors"]) == 3
    assert "magnetization" not in described["stages"][0]


def test_the_objective_is_that_of_the_potential(solution: ClassSolution) -> None:
    """-Phi = alpha E[l] + (ridge/2) Q: the derivative with respect to the ridge is Q/2."""
    step = 1e-3
    ends = [solve(MIX, replace(TEACHER, ridge=TEACHER.ridge + sign * step))[0].free_energy for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(0.5 * solution[0].norm_squared, rel=2e-2)


def test_orthants() -> None:
    """Against closed forms: independent entries, pairs, and equal correlations 1/2 of n entries, 1/(n+1)."""
    mean = np.array([0.3, -0.5, 1.0])
    assert orthant(mean, np.eye(3)) == pytest.approx(np.prod(ndtr(mean)), abs=1e-9)
    for r in (-0.9, 0.0, 0.7, 0.999):
        exact = 0.25 + math.asin(r) / (2 * math.pi)
        assert orthant(np.zeros(2), np.array([[1, r], [r, 1]])) == pytest.approx(exact, abs=1e-10)
    for n in (3, 5, 9):
        covariance = 0.5 * np.eye(n) + 0.5
        assert orthant(np.zeros(n), covariance) == pytest.approx(1 / (n + 1), abs=2e-5)


def test_quantiles_of_the_normal_law() -> None:
    p = np.concatenate([np.logspace(-300, -1, 100), np.linspace(0.01, 0.99, 99), 1.0 - np.logspace(-15, -1, 30)])
    assert [_quantile(x) for x in p] == pytest.approx(ndtri(p), rel=2e-15, abs=1e-15)


def test_what_a_stage_does_not_look_at_moves_nothing(solution: ClassSolution) -> None:
    """The third stage skips the second: V_32 is 0, not the noise of the nodes."""
    skipping = Estimator(Distillation(teacher=1), 0.1)
    found = solve(solution.data, [*solution.chain.stages, skipping], throw=True)
    assert np.abs(found.response[2, 1]).max() == 0.0
    assert np.abs(found.response[2, 0]).max() > 0.01


def test_a_class_missing_from_the_transfer_set() -> None:
    """Its error is below 1 although the student never saw it, and above the teacher's."""
    data = ClassMixture(2.0, delta=0.7, further=ClassSet("transfer", 2.0, weights=[0.5, 0.5, 0.0]))
    student = Estimator(Distillation(1.0, 2.0), 0.1, sets="transfer")
    teacher, found = solve(data, [TEACHER, student])
    assert teacher.class_errors[2] < found.class_errors[2] < 0.95
    assert found.class_errors[0] < found.class_errors[2]


@pytest.mark.parametrize("target", ["true", "similarity", "true+similarity", "top-2", "above-0.05"])
def test_partial_targets(target: str) -> None:
    """Every partial target is solved; it teaches less than all probabilities do, and more than nothing."""
    data = ClassMixture(3.0, gram=similar_pairs(4, 0.5), delta=0.4)
    students = [
        Estimator(Distillation(1.0, 2.0, target=kept), 0.1, eta=0.8, name=name)
        for name, kept in (("full", "full"), ("part", target))
    ]
    full, part = (solve(data, [TEACHER, student])[1] for student in students)
    assert full.test_error - 1e-3 < part.test_error < 0.7


def test_hard_pseudo_labels() -> None:
    """They tell the student less than soft ones of the same teacher."""
    data = ClassMixture(1.0, delta=0.7, further=ClassSet("transfer", 3.0))
    chains = [[TEACHER, Estimator(loss, 0.3, sets="transfer")] for loss in (PseudoLabels(), Distillation(1.0, 2.0))]
    hard, soft = (solve(data, chain, rtol=2e-3)[1] for chain in chains)
    assert soft.test_error < hard.test_error < 0.6


def test_many_classes_at_low_ridge() -> None:
    """Ten classes on a tree, ridge 1e-3: it converges, and says how well."""
    data = ClassMixture(2.0, gram=class_tree([5, 2], [0.0, 0.6]), delta=0.5)
    found = solve(data, Estimator(CrossEntropy(), 1e-3), rtol=1e-3)
    assert found.converged
    assert 0.1 < found[0].test_error < 0.9
    assert np.ptp(found[0].class_errors) < 5e-3  # all leaves are equivalent


def test_failures_are_said() -> None:
    with pytest.warns(RuntimeWarning, match="no converged solution"):
        found = solve(MIX, TEACHER, max_iterations=2)
    assert not found.converged
    assert "stage 1 (teacher)" in found.message
    assert math.isnan(found[0].test_error)
    with pytest.raises(ParameterError, match="ridge of teacher must be > 0"):
        solve(MIX, Estimator(CrossEntropy(), 0.0))
    with pytest.raises(ParameterError, match="start must be"):
        solve(MIX, TEACHER, start=solve(GaussianMixture(1.0), TEACHER))


def test_a_start_changes_the_speed_alone(solution: ClassSolution) -> None:
    near = replace(MIX, alpha=2.05)
    cold, warm = solve(near, [TEACHER, STUDENT]), solve(near, [TEACHER, STUDENT], start=solution)
    assert warm.iterations < cold.iterations
    assert [stage.test_error for stage in cold] == pytest.approx([stage.test_error for stage in warm], abs=1e-7)
    assert isinstance(warm.walk, Walk)


@pytest.mark.slow
def test_random_problems_converge() -> None:
    """300 of them: ``python -m tests.random_classes``."""
    assert failures(20, seed=100) == []


@pytest.mark.slow
def test_random_problems_of_three_classes_to_seven_digits() -> None:
    """Most of them on pairs of lattices."""
    assert failures(20, 101, Kind((3,)), rtol=1e-7) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        Kind((3, 4), 3, (1e-4, 10.0), noise=True),
        Kind((3, 4, 5), 2, (1e-6, 1e6)),
        Kind((3, 4), 2, (1e-4, 10.0), copies=True),
    ],
    ids=["three stages", "all ridges", "copies"],
)
def test_random_problems_of_other_kinds_converge(kind: Kind) -> None:
    assert failures(20, 102, kind) == []


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_students_that_copy_their_teacher(classes: int) -> None:
    """All inputs, soft targets alone: as the ridge goes to 0 the student is its teacher, up to terms of the order of the ridge."""
    data = ClassMixture(2.0, gram=similar_pairs(classes, 0.6))
    for ridge in (1e-3, 1e-4):
        solution = solve(data, [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), ridge)], throw=True)
        assert solution[1].test_error == pytest.approx(
            solution[0].test_error, abs=0.5 * ridge + 2 * solution.quadrature_error
        )


def test_which_students_are_copies() -> None:
    """Those that are not found are told so: below a ridge of 1e-4, K = 5 and 10 with pairs."""
    teacher = Estimator(CrossEntropy(), 0.1)
    for student, expected in (
        (Estimator(Distillation(), 1e-5), True),
        (Estimator(Distillation(), 1e-3), False),
        (Estimator(Distillation(), 1e-5, eta=0.9), False),
        (Estimator(Distillation(0.9), 1e-5), False),
        (Estimator(Distillation(temperature=2.0), 1e-5), False),
        (Estimator(CrossEntropy(), 1e-5), False),
    ):
        assert _copies(Chain.of([teacher, student]), 2) == expected
    assert not _copies(Chain.of(Estimator(CrossEntropy(), 1e-5)), 1)
