"""Three classes on pairs of lattices: the averages are those on all products of their points, and errors are what is said."""

from __future__ import annotations

import numpy as np
import pytest

from numerics import Chain, ClassMixture, Estimator, solve
from numerics.classes import pairs as module
from numerics.classes.channel import Channel, Moves
from numerics.classes.pairs import PairChannel, Region, parts
from numerics.classes.rules import Fields, Pairs, Rule, pairs, sobol_rule
from numerics.classes.rules import rule as nodes_of
from numerics.classes.solution import ClassSolution, ClassStage
from numerics.classes.solver import CHECKS, Walk, solve_walk
from numerics.classes.stage import StageBlocks, StageEquations
from numerics.models import ClassSet, similar_pairs
from theory.losses import CrossEntropy, Distillation, LogitMatching, Loss, PseudoLabels

DATA = ClassMixture(
    1.5, [0.5, 0.3, 0.2], similar_pairs(3, 0.4), [0.5, 1.0, 0.5], label_noise=0.1,
    further=ClassSet("transfer", 1.0, weights=[0.7, 0.3, 0.0]),
)  # fmt: skip
CHAIN = Chain.of(
    [
        Estimator(CrossEntropy(), 0.3, name="first"),
        Estimator(Distillation(0.6, 2.0), 0.2, eta=0.7, sets=("training", "transfer"), name="second"),
        Estimator(Distillation(0.8, 3.0, teacher=1), 0.4, eta=0.8, mask_overlap=0.5, sets="transfer", name="third"),
    ]
)
D, K = 2, 3


def random_blocks(t: int, scale: float) -> StageBlocks:
    """Of a stage whose field has a width of about ``scale``."""
    generator = np.random.default_rng(t)
    cholesky, response = 0.3 * generator.standard_normal((2, t, D, D))
    for rows, size in ((cholesky, scale), (response, scale**2)):
        root = np.eye(D) + 0.3 * generator.standard_normal((D, D))
        rows[-1] = size * root @ root.T
    return StageBlocks(0.5 * generator.standard_normal((D, K)), 0.3 * generator.standard_normal(D), cholesky, response)


def products(outer: Rule, inner: Rule) -> Rule:
    """Every outer node with every inner one."""
    n, m = len(outer.weights), len(inner.weights)
    before, own = np.repeat(outer.normals, m, axis=0), np.tile(inner.normals, (n, 1, 1))
    return Rule(np.concatenate([before, own], axis=1), np.outer(outer.weights, inner.weights).ravel())


@pytest.mark.parametrize("scale", [0.7, 6.0], ids=["one lattice", "two"])
@pytest.mark.parametrize("t", [1, 2, 3])
def test_averages_are_those_on_all_products(t: int, scale: float) -> None:
    """And their derivatives; inner products on a lattice of their own, fine enough for both widths."""
    outer = sobol_rule(t - 1, D, 2, 0) if t > 1 else Rule(np.zeros((1, 0, D)), np.ones(1))
    found = pairs(1, D, 3, 0, Fields(8.0, (1.2 * scale,) * t, (1.2 * scale,) * t, (0.0,) * t))
    assert (found.lattice[1] is None) == (scale < 1.0)
    nodes = Pairs(outer, found.lattice, np.full(len(outer.weights), 7.0))
    earlier, tables = [random_blocks(s, 1.0) for s in range(1, t)], [None] * (t - 1)
    ways = [
        PairChannel(DATA, CHAIN.stages[:t], nodes, earlier, tables),
        Channel(DATA, CHAIN.stages[:t], products(outer, nodes_of(1, D, 2, 1)), earlier, tables),
    ]
    shapes = (D, K, 3), (D, 3), (t, D, D, 3), (t, D, D, 3)
    moves = Moves(*(np.random.default_rng(5).standard_normal(shape) for shape in shapes))
    blocks = random_blocks(t, scale)
    one, other = (way.averages(blocks, moves) for way in ways)
    again = ways[0].averages(blocks)  # from the points found before, without the tensors
    for name in ("force", "force_normal", "force_force", "stiffness", "bare_stiffness"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=3e-8), name
        assert getattr(one, name) == pytest.approx(getattr(again, name), abs=1e-9), name
    for name in ("force", "force_normal", "force_force"):
        scaled = scale * getattr(one.slopes, name)
        assert scaled == pytest.approx(scale * getattr(other.slopes, name), rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("number", [1, 2])
def test_the_jacobian_on_pairs(number: int) -> None:
    """Against differences of the residual, which on lattices it is to many digits."""
    rough, _ = solve_walk(DATA, Chain.of(CHAIN.stages[:2]), -1, 60, tolerance=1e-3)
    walk, outcome = solve_walk(DATA, Chain.of(CHAIN.stages[:2]), 1, 60, rough.found, fields=rough.widths)
    assert outcome.status == 0
    assert walk.paired(1)
    assert walk.paired(2)
    other = Walk(walk.data, walk.stages, 1, fields=rough.widths)
    for s in range(1, number):
        other.prior.append(s, walk.stages[s - 1].ridge, walk.points[s - 1].conjugates)
    other.points = walk.points[: number - 1]
    earlier = walk.blocks[: number - 1]
    equations = StageEquations(other.channel(number), other.prior, CHAIN[number - 1].ridge, earlier)
    x = walk.points[number - 1].blocks
    found = equations.evaluate(x, jacobian=True)
    n, step = found.residual.size, 1e-4
    expected = np.empty((n, n))
    for i in range(n):
        ends = [
            equations.evaluate(equations.advanced(x, s * np.eye(n)[i]), jacobian=False).residual for s in (step, -step)
        ]
        expected[:, i] = (ends[0] - ends[1]) / (2 * step)
    assert found.jacobian == pytest.approx(expected, abs=1e-5)


def problem(alpha: float, ridges: tuple[float, float], temperature: float, eta: float) -> tuple[ClassMixture, Chain]:
    data = ClassMixture(alpha, [0.5, 0.3, 0.2], similar_pairs(3, 0.5), [0.4, 0.5, 0.7])
    return data, Chain.of(
        [Estimator(CrossEntropy(), ridges[0]), Estimator(Distillation(0.7, temperature), ridges[1], eta)]
    )


PROBLEMS = {
    "smooth": problem(3.0, (0.1, 0.1), 2.0, 0.7),
    "small noise": problem(0.5, (2.0, 1e-2), 0.8, 0.9),
    "small ridges": problem(1.0, (1e-3, 1e-3), 1.0, 0.7),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_errors_are_what_is_said(name: str) -> None:
    """Against lattices of less than two thirds of the steps, which reach further."""
    data, chain = PROBLEMS[name]
    found = solve(data, chain, rtol=1e-7)
    walk = found.walk
    assert walk.level == 0
    assert walk.paired(2)
    assert len(found.checks) == CHECKS
    finer, outcome = solve_walk(data, chain, 2, 60, walk.found, 1e-11, walk.fields)
    assert outcome.status == 0
    assert finer.paired(2)
    exact = [ClassStage(found, number, finer).test_error for number in (1, 2)]
    apart = np.abs(np.array([stage.test_error for stage in found]) - exact)
    assert apart.max() < 1.2 * found.quadrature_error < 1.2e-7
    for stage, value, error in zip(found, exact, apart, strict=True):
        assert error < 1.2 * stage.error_of("test_error") + 1e-11, value


def test_without_pairs() -> None:
    """The rule of one lattice finds the same, to what it is worth."""
    data, chain = PROBLEMS["smooth"]
    found = solve(data, chain, rtol=1e-7)
    plain, outcome = solve_walk(data, chain, 2, 60, found.walk.found, fields=Fields(found.walk.fields.widest))
    assert outcome.status == 0
    assert not plain.paired(1)
    solution = ClassSolution(data, chain, plain, (), True, 0.0, 0.0, 0, "")
    for one, other in zip(found, solution, strict=True):
        assert one.test_error == pytest.approx(other.test_error, abs=1e-7)
        assert one.means == pytest.approx(other.means, abs=1e-5)


def test_too_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that cannot be had give way to nodes that can."""
    data, chain = PROBLEMS["smooth"]
    expected = [stage.test_error for stage in solve(data, chain)]
    monkeypatch.setattr(module, "MOST_POINTS", 900)
    found = solve(data, chain)
    assert found.converged
    assert found.walk.paired(1)
    assert not found.walk.paired(2)
    assert [stage.test_error for stage in found] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Distillation(0.5, 2.0), True),
        (Distillation(1.0, 8.0, temperature_squared=True, target="true"), True),
        (LogitMatching(0.5, 0.3), False),
        (PseudoLabels(), False),
        (Loss.from_expression("-Sum(softmax(h_teacher)[k]*h[k], k) + logsumexp(h)"), False),
    ],
    ids=["soft", "partial", "unbounded", "jumps", "formula"],
)
def test_which_students_have_pairs(loss: Loss, expected: bool) -> None:
    data, chain = PROBLEMS["smooth"]
    stages = [chain[0], Estimator(loss, 0.2, 0.7)]
    found = solve(data, stages, rtol=1e-3)
    assert found.converged
    assert found.walk.paired(2) == expected


def test_four_classes_have_none() -> None:
    data = ClassMixture(2.0, gram=similar_pairs(4, 0.5), delta=0.5)
    assert not solve(data, Estimator(CrossEntropy(), 0.5)).walk.paired(1)


def test_parts() -> None:
    """Every window is in one part, of which none is nearly empty."""
    generator = np.random.default_rng(0)
    low = np.floor(np.concatenate([30.0 * generator.standard_normal((300, 2)), [[9e4, -3e5]], [[9e4, 0.0]]]))
    found = list(parts(low, low + 19.0))
    assert sorted(np.concatenate(found)) == list(range(len(low)))
    assert sorted(map(len, found)) == [1, 1, 300]
    first = Region.of(low[:300].astype(int), low[:300].astype(int) + 19)
    own = np.argwhere(first.mask) + first.corner
    here, there = first.shared(np.concatenate([own[::3], [[9000, 0]]]))
    assert here == pytest.approx(np.arange(len(own[::3])))
    assert there == pytest.approx(np.arange(len(own))[::3])


def test_half_shifts() -> None:
    """What the first mode of a lattice is wrong by cancels in the mean over a solution and its checks."""
    fields = Fields(2.0, (1.5, 1.5), (1.5, 1.0), (0.0, 10.0))
    found = [pairs(2, D, 0, scramble, fields) for scramble in range(1 + CHECKS)]
    step = found[0].lattice[0].step
    starts = np.array([nodes.lattice[0].shift for nodes in found])
    assert np.exp(2j * np.pi * starts).mean(axis=0) == pytest.approx(0.0, abs=1e-12)
    assert step == found[1].lattice[0].step
    outer = 0.65
    places = np.array([np.exp(2j * np.pi * nodes.outer.normals[0, 0] / outer) for nodes in found])
    assert places.mean(axis=0) == pytest.approx(0.0, abs=1e-9)
