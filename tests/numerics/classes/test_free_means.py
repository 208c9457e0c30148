"""Losses whose best mean logit depends on the sample, as one-versus-rest ones: K coordinates, and K biases of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numerics import (
    Chain,
    ClassMixture,
    ClassSet,
    Clusters,
    Estimator,
    ParameterError,
    best_bias,
    orthogonal_means,
    similar_pairs,
    simplex_means,
    solve,
)
from numerics.classes.channel import Channel
from numerics.classes.formulas import class_loss, class_losses
from numerics.classes.rules import Fields, sobol_rule
from numerics.classes.solver import Walk, solve_walk
from numerics.classes.stage import StageBlocks
from theory.losses import CrossEntropy, Distillation, LogitMatching, Loss, SquareDistillation, SquareLoss

ONE_VERSUS_REST = Loss.from_expression("Sum(softplus((1 - 2*y[k])*h[k]), k)")
SOFT = Loss.from_expression("Sum(softplus(h[k]) - sigmoid(h_teacher[k])*h[k], k)")
NEARLY_SQUARE = "sqrt(9 + (h{k} - y{k})**2)"
UNEQUAL = ClassMixture(2.0, [0.5, 0.3, 0.2], similar_pairs(3, 0.4), [0.6, 0.8, 0.7])
TEACHER = Estimator(CrossEntropy(), 0.1)

DATA = {
    "two": ClassMixture(2.0, [0.3, 0.7], similar_pairs(2, 0.2), [0.5, 0.8]),
    "three": UNEQUAL,
    "symmetric": ClassMixture(3.0, gram=orthogonal_means(5), delta=0.5),
}


def losses(name: str) -> tuple[Loss, Loss]:
    """Of K classes, and of one of its logits."""
    if name == "logistic":
        return ONE_VERSUS_REST, CrossEntropy()
    return Loss.from_expression(f"Sum({NEARLY_SQUARE.format(k='[k]')}, k)"), Loss.from_expression(
        NEARLY_SQUARE.format(k="")
    )


@pytest.mark.parametrize(
    ("name", "loss", "coordinates"),
    [("two", "logistic", 1), ("three", "logistic", 3), ("three", "nearly square", 3), ("symmetric", "logistic", 5)],
)
def test_logits_are_binary_problems(name: str, loss: str, coordinates: int) -> None:
    """One class against all clusters of the others, by the solver for clusters; of two classes one logit is minus the other."""
    data, (many, one) = DATA[name], losses(loss)
    solution = solve(data, Estimator(many, 0.1), rtol=1e-5 if coordinates < 5 else None, throw=True)
    assert solution.walk.d == coordinates
    stage, k = solution[0], data.classes_count
    error_of_means, error_of_overlaps = (
        stage.spread(lambda stage, name=name: getattr(stage.fresh, name)) for name in ("means", "blocks")
    )
    assert error_of_means < 1e-3
    assert error_of_overlaps < 5e-3
    covariances = [delta * np.eye(k) for delta in data.deltas]
    for c in range(1 if name == "symmetric" else k):
        signs = np.where(np.arange(k) == c, 1, -1)
        binary = solve(
            Clusters(data.alpha, np.array(data.gram.means()), covariances, signs, data.weights),
            Estimator(one, 0.1), throw=True,
        )  # fmt: skip
        moved = binary.means[0] + binary.bias[0]
        assert stage.fresh.means[0, :, c] == pytest.approx(moved, abs=3 * error_of_means + 1e-8)
        assert solution.overlap[0, 0, c, c] == pytest.approx(binary[0].norm ** 2, abs=3 * error_of_overlaps + 1e-8)
        assert stage.biases[c] == pytest.approx(binary.bias[0], abs=3 * error_of_means + 1e-8)
    if name == "symmetric":
        assert solution.walk.alike


D = 3
MIXED = Chain.of(
    [
        Estimator(CrossEntropy(), 0.3),
        Estimator(SOFT, 0.2, eta=0.7),
        Estimator(LogitMatching(0.4, 0.7), 0.4, eta=0.8, mask_overlap=0.5),
        Estimator(Distillation(0.8, 3.0, teacher=2), 0.4),
    ]
)


def random_blocks(t: int, *, pinned: bool) -> StageBlocks:
    generator = np.random.default_rng(t)

    def spd() -> np.ndarray:
        root = np.eye(D) + 0.3 * generator.standard_normal((D, D))
        return root @ root.T

    cholesky, response = 0.3 * generator.standard_normal((t, D, D)), 0.1 * generator.standard_normal((t, D, D))
    cholesky[-1], response[-1] = spd(), 0.5 * spd()
    mean, bias = 0.5 * generator.standard_normal((D, 3)), 0.3 * generator.standard_normal(D)
    if pinned:
        mean[-1], bias[-1], cholesky[:, -1], response[:, -1], response[-1, :, -1] = 0.0, 0.0, 0.0, 0.0, 0.0
        cholesky[-1, :, -1] = 0.0
        cholesky[-1, -1, -1] = response[-1, -1, -1] = 1.0
    return StageBlocks(mean, bias, cholesky, response)


def energetic_potential(channel: Channel, blocks: StageBlocks) -> float:
    """Minus the sum of Moreau envelopes on the nodes of the channel."""
    total, own = 0.0, channel.losses[-1]
    plain = class_loss(
        channel.stages[-1].loss, 3, [channel.losses[s - 1].free for s in MIXED[channel.t - 1].loss.stages(channel.t)]
    )
    for i in channel.used:
        cell = channel.cells[i]
        delta = channel.data.deltas[cell.class_index]
        u = channel.nodes[i].z @ channel._field(blocks, cell.class_index, channel.t)[:, :-D].T
        h, force, stiffness = u.copy(), np.empty_like(u), np.empty((*u.shape, D))
        precision = np.linalg.inv(delta * blocks.response[-1])
        assert own.proximal_points(precision, u, channel.targets[i], h, force, stiffness) == 0
        n = D - own.pinned
        apart = delta * force @ blocks.response[-1]
        taught = channel._taught(channel.t, i)
        targets = plain.targets(np.full(len(u), cell.label), taught, channel.table)
        value = plain.value((u + apart)[:, :n] @ channel.basis[:n], targets, taught)
        total -= cell.weight * (value + 0.5 * np.einsum("na,ab,nb->n", apart, precision, apart)).mean()
    return total


@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_conjugates_are_the_gradient_of_the_energetic_potential(t: int) -> None:
    """By central differences on the same nodes, all components; a stage of softmax has none in the mean, where nothing moves it."""
    pinned = [loss.pinned for loss in class_losses(MIXED.stages, 3)]
    assert pinned == [True, False, False, True]
    earlier = [random_blocks(s, pinned=pinned[s - 1]) for s in range(1, t)]
    data = replace(UNEQUAL, label_noise=0.1)
    channel = Channel(data, MIXED.stages[:t], sobol_rule(t, D, 5, 0), earlier, [None] * (t - 1))
    blocks = random_blocks(t, pinned=pinned[t - 1])
    found, step = channel.averages(blocks), 1e-5

    def slope(name: str, move: np.ndarray) -> float:
        moved = [replace(blocks, **{name: getattr(blocks, name) + sign * step * move}) for sign in (1, -1)]
        ends = [energetic_potential(channel, item) for item in moved]
        return (ends[0] - ends[1]) / (2 * step)

    near = {"abs": 2e-8}
    n = D - pinned[t - 1]
    assert not found.force[:, n:].any()
    for i in range(n):
        for c in range(3):
            assert slope("mean", np.eye(D)[:, i, None] * np.eye(3)[c]) == pytest.approx(found.force[c, i], **near)
        assert slope("bias", np.eye(D)[i]) == pytest.approx(found.force[:, i].sum(), **near)
        for s in range(t):
            for j in range(n if s == t - 1 else D):
                move = np.zeros((t, D, D))
                move[s, i, j] = 1.0
                assert slope("cholesky", move) == pytest.approx(found.force_normal[s, i, j], **near)
                if s == t - 1:
                    move[s, j, i] = 1.0
                expected = found.force_force[s, i, j] * (0.5 if s == t - 1 and i == j else 1.0)
                assert slope("response", move) == pytest.approx(expected, **near), (s, i, j)


def test_squares_in_all_coordinates() -> None:
    """A square loss beside a stage with K coordinates is the square loss alone; a free one is, of differences, that of those."""
    chain = Chain.of([Estimator(SquareLoss(), 0.2), Estimator(SOFT, 0.2)])
    walks = [Walk(UNEQUAL, stages, 3, fields=Fields(1.0)) for stages in (chain.stages, chain.stages[:1])]
    assert [walk.solve_next(None, 60).status for walk in walks] == [0, 0]
    assert [walk.d for walk in walks] == [3, 2]
    require_same(*(walk.blocks[0] for walk in walks), 1e-9)
    differences = Loss.from_expression(
        "Sum((h[k] - Sum(h[j], j)/K - 3*(h_teacher[k] - Sum(h_teacher[j], j)/K)/4 - (y[k] - 1/K)/4)**2, k)/2"
    )
    ends = []
    for student in (SquareDistillation(0.75), differences):
        walk, outcome = solve_walk(UNEQUAL, Chain.of([Estimator(ONE_VERSUS_REST, 0.2), Estimator(student, 0.1)]), 0, 60)
        assert outcome.status == 0
        ends.append(walk)
    assert [walk.losses[1].free for walk in ends] == [True, False]
    require_same(*(walk.blocks[1] for walk in ends), 1e-5)  # the normals of a stage are turned
    assert np.abs(ends[0].blocks[1].mean[2]).max() > 0.02


def require_same(one: StageBlocks, other: StageBlocks, accuracy: float) -> None:
    """In the coordinates of differences."""
    assert one.mean[:2] == pytest.approx(other.mean[:2], abs=accuracy)
    assert one.bias[:2] == pytest.approx(other.bias[:2], abs=accuracy)
    assert one.overlap[:2, :2] == pytest.approx(other.overlap[:2, :2], abs=accuracy)
    assert one.response[:, :2, :2] == pytest.approx(other.response[:, :2, :2], abs=accuracy)


def test_missing_classes() -> None:
    """Hard labels without a class have no best bias; a student of the teacher's doubts has, and its bias can be corrected."""
    data = ClassMixture(
        4.0, gram=simplex_means(3), delta=0.25, further=[ClassSet("transfer", 2.0, weights=(0.5, 0.5, 0))]
    )
    with pytest.raises(ParameterError, match="sees none of class 2"):
        solve(data, [TEACHER, Estimator(ONE_VERSUS_REST, 0.1, sets="transfer")])
    student = solve(data, [TEACHER, Estimator(SOFT, 0.1, sets="transfer")], throw=True)[1]
    assert abs(student.biases.sum()) > 0.01
    corrected = best_bias(student)
    assert corrected.test_error < student.test_error - 0.01
    assert corrected.class_errors[2] < student.class_errors[2]
