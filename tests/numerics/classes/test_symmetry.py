"""Permutations of classes: found from the data, few unknowns, and the same solution as without them."""

from __future__ import annotations

import numpy as np
import pytest

from numerics import Chain, Estimator, solve
from numerics.classes import solver
from numerics.classes.population import ClassPopulation
from numerics.classes.solver import Walk, solve_walk
from numerics.classes.stage import StageEquations
from numerics.classes.symmetry import invariants, orbits, permutations_of
from numerics.models import ClassMixture, ClassSet, class_tree, orthogonal_means, similar_pairs, simplex_means
from theory.losses import CrossEntropy, Distillation

CHAIN = Chain.of(
    [
        Estimator(CrossEntropy(), 0.2, name="first"),
        Estimator(Distillation(0.7, 2.0), 0.1, eta=0.6, name="second"),
        Estimator(Distillation(0.7, 2.0, teacher=1, target="similarity"), 0.1, eta=0.5, name="third"),
    ]
)


@pytest.mark.parametrize("k", [3, 5, 10, 20])
def test_classes_that_are_all_alike_have_five_scalars_a_student(k: int) -> None:
    for gram in (orthogonal_means(k), simplex_means(k)):
        permutations = permutations_of(ClassMixture(1.0, gram=gram))
        assert [invariants(permutations, k, earlier).shape[1] for earlier in (0, 1)] == [3, 5]


def test_permutations_leave_the_data_alone() -> None:
    data = ClassMixture(
        1.0, [0.3, 0.3, 0.2, 0.2], similar_pairs(4, 0.5), label_noise=0.1,
        further=ClassSet("more", 1.0, weights=[0.4, 0.4, 0.1, 0.1]),
    )  # fmt: skip
    assert permutations_of(data) == ((1, 0, 2, 3), (0, 1, 3, 2))
    gram = np.array(class_tree([3, 2], [0.1, 0.6]))
    for permutation in permutations_of(ClassMixture(1.0, gram=gram)):
        assert gram[np.ix_(permutation, permutation)] == pytest.approx(gram)
    assert permutations_of(ClassMixture(1.0, delta=[0.5, 0.6, 0.7])) == ()
    noisy = ClassMixture(1.0, confusion=[[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
    assert all(permutation in ((1, 2, 0), (2, 0, 1)) for permutation in permutations_of(noisy))


def test_orbits_cover_all_cells() -> None:
    data = ClassMixture(1.0, gram=similar_pairs(4, 0.5), label_noise=0.1)
    walk = Walk(data, CHAIN.stages, -1)
    channel = walk.channel(1)
    assert sorted(image.cell for images in channel.orbits.values() for image in images) == list(range(16))
    assert len(channel.orbits) == 3  # the class itself, its twin, the others
    for images in orbits(channel.cells, walk.permutations, 4).values():
        for image in images:
            assert image.rotation @ image.rotation.T == pytest.approx(np.eye(3))


@pytest.mark.parametrize("label_noise", [0.0, 0.1])
def test_symmetric_solutions_are_solutions(label_noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On nodes of their own both are right to their accuracy; the residual of one among the equations of the other says so."""
    data = ClassMixture(2.0, gram=similar_pairs(4, 0.5), delta=0.6, label_noise=label_noise)
    few, outcome = solve_walk(data, CHAIN, 1, 60)
    assert outcome.status == 0
    monkeypatch.setattr(solver, "permutations_of", lambda data, targets: ())
    many, outcome = solve_walk(data, CHAIN, 1, 60)
    assert outcome.status == 0
    for one, other in zip(few.blocks, many.blocks, strict=True):
        assert one.mean == pytest.approx(other.mean, abs=3e-3)
        assert one.overlap == pytest.approx(other.overlap, abs=1e-2)
        assert one.response == pytest.approx(other.response, abs=2e-2)
    finer = Walk(data, CHAIN.stages, 2)
    for number, point in enumerate(few.points, 1):
        equations = StageEquations(finer.channel(number), finer.prior, CHAIN[number - 1].ridge, finer.blocks)
        assert np.abs(equations.evaluate(point.blocks, jacobian=False).residual).max() < 5e-3
        finer.points.append(point)
        finer.prior.append(number, CHAIN[number - 1].ridge, point.conjugates)


def test_order_parameters_are_symmetric_to_rounding() -> None:
    """Pairs: nodes are not symmetric, averages are made so; the error of a class is that of its twin."""
    data = ClassMixture(2.0, [0.3, 0.3, 0.2, 0.2], similar_pairs(4, 0.5), 0.5)
    solution = solve(data, [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(), 0.1, eta=0.5)], throw=True)
    swapped = [1, 0, 3, 2]
    for blocks in (solution.overlap, solution.response):
        assert blocks[..., swapped, :][..., swapped] == pytest.approx(blocks, abs=1e-9)
    assert solution.means[:, swapped][..., swapped] == pytest.approx(solution.means, abs=1e-9)
    for stage in solution:
        assert stage.class_errors[swapped] == pytest.approx(stage.class_errors, abs=0.0)
        everyone = ClassPopulation(data, stage.fresh.means, stage.fresh.blocks)
        assert everyone.class_errors(-1) == pytest.approx(stage.class_errors, abs=3e-5)
