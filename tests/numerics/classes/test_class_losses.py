"""Losses of K classes: slopes and curvatures against differences, K = 2 against the binary losses, partial targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from numerics import Chain, ClassMixture, ClassSet, Estimator, GaussianMixture, ParameterError, orthogonal_means, solve
from numerics.classes.losses import ClassLoss
from numerics.classes.solution import solve_on_nodes
from numerics.codegen.losses import LossFunctions
from numerics.problem import read_problem, write_problem
from theory.losses import (
    CrossEntropy,
    Distillation,
    LinearLoss,
    LogitMatching,
    Loss,
    PseudoLabels,
    SquareDistillation,
    SquareLoss,
    TableTargets,
    built_in,
)

LOSSES: list[Loss] = [
    CrossEntropy(),
    CrossEntropy(0.1),
    SquareLoss(),
    Distillation(),
    Distillation(0.3, 2.5, smoothing=0.05),
    Distillation(0.6, 3.0, temperature_squared=True),
    SquareDistillation(0.4, 1.3),
    LogitMatching(0.7, 0.2),
    PseudoLabels(0.6),
    PseudoLabels(0.6, square=True),
]
TABLE = ((0.7, 0.3, 0.0), (0.1, 0.8, 0.1), (0.0, 0.5, 0.5))
PARTIAL = ("true", "similarity", "true+similarity", "top-1", "top-2", "above-0.2", "average", "cosine-0.5")


def samples(k: int, n: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return 2 * generator.standard_normal((n, k)), generator.integers(0, k, n), 2 * generator.standard_normal((n, 1, k))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("k", [3, 5])
def test_slope_and_curvature_are_derivatives(loss: Loss, k: int) -> None:
    found, (h, labels, taught) = ClassLoss(loss, k), samples(k)
    h -= h.mean(axis=1, keepdims=True)
    c = found.targets(labels, taught)
    step = 1e-5
    for direction in np.eye(k) - 1.0 / k:  # of the gauge: squares are meant there
        difference = (found.value(h + step * direction, c, taught) - found.value(h - step * direction, c, taught)) / (
            2 * step
        )
        assert difference == pytest.approx((found.slope(h) - c) @ direction, abs=1e-8)
        turned = (found.slope(h + step * direction) - found.slope(h - step * direction)) / (2 * step)
        assert turned == pytest.approx(found.curvature(h) @ direction, abs=1e-8)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_two_classes_are_the_binary_loss(loss: Loss) -> None:
    """Class 0 is y = 1; h is the difference of the logits.  The square loss is half the binary one, as is said of it."""
    h, labels, taught = samples(2)
    if type(loss) is LogitMatching or "Square" in loss.name:
        taught -= taught.mean(axis=2, keepdims=True)
    h -= h.mean(axis=1, keepdims=True)
    found = ClassLoss(loss, 2)
    value = found.value(h, found.targets(labels, taught), taught)
    y = 1.0 - labels
    binary = LossFunctions(loss).value(
        h[:, 0] - h[:, 1], y, (taught[..., 0] - taught[..., 1]) if loss.logits else np.empty((20, 0))
    )
    assert value == pytest.approx(binary / (2.0 if isinstance(loss, SquareLoss) else 1.0), abs=1e-12)


def test_hot_targets_are_logit_matching() -> None:
    """T^2 cross-entropy has the slope of logit matching with gain 1/K, up to O(1/T) (Hinton, Vinyals & Dean 2015)."""
    h, labels, taught = samples(4)
    h, taught = h - h.mean(axis=1, keepdims=True), taught - taught.mean(axis=2, keepdims=True)
    matched = ClassLoss(LogitMatching(gain=0.25), 4)
    expected = matched.slope(h) - matched.targets(labels, taught)
    for t in (1e2, 1e3):
        hot = ClassLoss(Distillation(temperature=t, temperature_squared=True), 4)
        assert np.abs(hot.slope(h) - hot.targets(labels, taught) - expected).max() < 10 / t


@pytest.mark.parametrize("target", PARTIAL)
def test_partial_targets_are_probabilities(target: str) -> None:
    _, labels, taught = samples(4)
    loss = ClassLoss(Distillation(temperature=2.0, target=target), 4)
    means, counts, overlap = loss.similarity(labels, taught), np.bincount(labels, minlength=4), np.cov(taught[:, 0].T)
    table = loss.table(means, counts, [overlap])
    c = loss.targets(labels, taught, table) * 2.0
    p, mine = softmax(taught[:, 0] / 2.0, axis=1), np.arange(len(labels))
    assert c.sum(axis=1) == pytest.approx(1.0)
    assert table.sum(axis=1) == pytest.approx(1.0)
    if "true" in target:
        assert c[mine, labels] == pytest.approx(p[mine, labels])
    if target == "top-2":
        assert np.sort(c)[:, -2:] == pytest.approx(np.sort(p)[:, -2:])
        assert np.sort(c)[:, 0] == pytest.approx(np.sort(c)[:, 1])
    if target == "above-0.2":
        assert c[p >= 0.2] == pytest.approx(p[p >= 0.2])
    if target == "similarity":
        assert c == pytest.approx(np.array([p[labels == y].mean(axis=0) for y in range(4)])[labels])
    if target in ("average", "cosine-0.5"):  # as sure as the teacher on average, of each label alike
        assert c[mine, labels].mean() == pytest.approx(p[mine, labels].mean())
    if target == "average":
        assert np.ptp(table[~np.eye(4, dtype=bool)]) == pytest.approx(0.0, abs=1e-12)
    if target == "cosine-0.5":
        cosine = np.corrcoef(taught[:, 0].T)
        ratio = np.log(table / np.diag(table)[:, None]) / (np.sign(cosine) * np.abs(cosine) ** 0.5 - 1 + 1e-300)
        assert np.ptp(ratio[~np.eye(4, dtype=bool)]) == pytest.approx(0.0, abs=1e-9)
    if target == "true+similarity":
        for i, y in enumerate(labels):
            rest = np.delete(c[i], y) / np.delete(table[y], y)
            assert rest == pytest.approx(rest[0])


@pytest.mark.parametrize("target", ["top-0", "top-1.5", "above-2", "cosine-0", "cosine", "all-2", "all", 3])
def test_unknown_targets(target: object) -> None:
    with pytest.raises(ValueError, match="target must be one of"):
        Distillation(target=target)


def test_losses_of_two_classes_alone() -> None:
    for loss in (LinearLoss(), Loss.from_expression("softplus(-s*h)")):
        with pytest.raises(ParameterError, match="no form for more"):
            ClassLoss(loss, 3)


# Tables of targets.


def test_smoothing_is_a_table() -> None:
    """Targets eps/(K-1) off the label: the same force as that of smoothed labels, with all weight on either."""
    h, labels, _ = samples(3)
    smooth, table = ClassLoss(CrossEntropy(0.2), 3), ClassLoss(TableTargets(0.7 * np.eye(3) + 0.1), 3)
    assert table.slope(h) == pytest.approx(smooth.slope(h))
    assert table.targets(labels) == pytest.approx(smooth.targets(labels))
    mixed = ClassLoss(TableTargets(TABLE, 0.4, 2.0, 0.1, temperature_squared=True), 3)
    own = 0.6 * (0.85 * np.eye(3) + 0.05) + 0.4 * 2.0 * np.array(TABLE)
    assert mixed.targets(labels) == pytest.approx(own[labels])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([[0.5, 0.4], [0.1, 0.9]], r"row 0 of table must hold numbers >= 0 of sum 1, got \[0.5, 0.4\]"),
        ([[1.0, 0.0], [1.5, -0.5]], "row 1 of table must hold"),
        ([[1.0, 0.0], [float("nan"), 1.0]], "row 1 of table must hold"),
        ([[1.0, 0.0]], "table must be K rows of K numbers, got 1 of"),
        ("three", "table must be K rows of K numbers, got 'three'"),
        (None, "table must be K rows of K numbers, got None"),
    ],
)
def test_tables_that_are_none(table: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TableTargets(table)


def test_tables_and_classes_must_fit() -> None:
    teacher, student = Estimator(CrossEntropy(), 0.1), Estimator(TableTargets(TABLE), 0.1)
    with pytest.raises(ParameterError, match="table of student must be of 4 classes, got 3"):
        solve(ClassMixture(1.0, gram=orthogonal_means(4)), [teacher, student])
    with pytest.raises(ParameterError, match="of student is for the classes of a ClassMixture"):
        solve(GaussianMixture(1.0), [teacher, student])
    unseen = ClassMixture(1.0, further=ClassSet("two", 1.0, weights=[0.0, 0.5, 0.5]))
    assert solve(unseen, [teacher, replace(student, sets="two")]).converged
    missing = replace(student, loss=TableTargets(np.eye(3)), sets="two")
    with pytest.raises(ParameterError, match="trained on labels and a table alone and sees none of class 0"):
        solve(unseen, [teacher, missing])


def test_a_table_breaks_the_symmetry_of_classes() -> None:
    """Permutations that change the table are none of the problem's: solved with the symmetries as without."""
    data, student = ClassMixture(2.0, gram=orthogonal_means(3), delta=0.5), Estimator(TableTargets(TABLE), 0.1)
    found = solve(data, student)[0].class_errors
    table = 0.6 * np.eye(3) + 0.2 * np.array([[0, 2, 0], [2, 0, 0], [1, 1, 0]])
    pairs = solve(data, Estimator(TableTargets(table), 0.1))[0].class_errors
    assert np.ptp(found) > 0.01
    assert pairs[0] == pytest.approx(pairs[1], abs=1e-7)
    assert abs(pairs[2] - pairs[0]) > 0.01
    unequal = ClassMixture(2.0, [1 / 3 - 1e-7, 1 / 3, 1 / 3 + 1e-7], orthogonal_means(3), 0.5)  # no symmetry is found
    assert solve(unequal, Estimator(TableTargets(table), 0.1))[0].class_errors == pytest.approx(pairs, abs=2e-5)


def test_tables_are_written_and_read() -> None:
    data = ClassMixture(2.0)
    chain = Chain.of([Estimator(TableTargets(TABLE, 0.5, temperature_squared=True), 0.1)])
    assert read_problem(write_problem(data, chain)) == (data, chain)
    with pytest.raises(ParameterError, match="loss: table is missing"):
        read_problem(
            '{"data": {"alpha": 1, "gram": [[1, 0], [0, 1]]}, "chain": [{"loss": "table-targets", "ridge": 1}]}'
        )
    with pytest.raises(ValueError, match="table-targets needs table"):
        built_in("table-targets")


def test_two_classes_with_a_table() -> None:
    """The binary core against this room's equations."""
    data = ClassMixture(2.0, [0.3, 0.7], orthogonal_means(2), 0.5)
    chain = Chain.of(Estimator(TableTargets([[0.8, 0.2], [0.1, 0.9]], 0.7, 2.0, 0.05), 0.1))
    assert solve(data, chain)[0].test_error == pytest.approx(solve_on_nodes(data, chain)[0].test_error, abs=1e-8)
