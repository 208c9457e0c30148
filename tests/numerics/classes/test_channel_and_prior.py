"""One stage in blocks: its equations are the gradient of the potential, and its Jacobian is that of its residual."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss

from numerics import Chain, Estimator
from numerics.classes.channel import Averages, Channel, cells_of
from numerics.classes.lanes import LANES, TOLERANCE, whole_steps
from numerics.classes.losses import ClassLoss
from numerics.classes.prior import ClassGroups, Conjugates, Prior
from numerics.classes.proximal import _potential, _slope_and_curvature, minimise, proximal_points
from numerics.classes.rules import Rule, sobol_rule
from numerics.classes.solver import Walk, solve_walk
from numerics.classes.stage import MatrixLog, StageBlocks, StageEquations, exponential
from numerics.models import ClassMixture, ClassSet, Spectrum, helmert, similar_pairs
from theory.losses import CrossEntropy, Distillation, LogitMatching, PseudoLabels, SquareDistillation

DATA = ClassMixture(
    1.5, [0.5, 0.3, 0.2], similar_pairs(3, 0.4), [0.5, 1.0, 0.7], label_noise=0.1,
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


def spd(generator: np.random.Generator, d: int = D) -> np.ndarray:
    root = np.eye(d) + 0.3 * generator.standard_normal((d, d))
    return root @ root.T


def random_blocks(t: int, seed: int) -> StageBlocks:
    generator = np.random.default_rng(seed)
    cholesky = 0.3 * generator.standard_normal((t, D, D))
    cholesky[-1] = spd(generator)
    response = 0.1 * generator.standard_normal((t, D, D))
    response[-1] = 0.5 * spd(generator)
    return StageBlocks(0.5 * generator.standard_normal((D, K)), 0.3 * generator.standard_normal(D), cholesky, response)


def energetic_potential(channel: Channel, blocks: StageBlocks) -> float:
    """Psi_h on the channel's nodes: minus the sum of Moreau envelopes."""
    total = 0.0
    for i in channel.used:
        cell, known = channel.cells[i], channel.nodes[i].z
        delta = DATA.deltas[cell.class_index]
        u = known @ channel._field(blocks, cell.class_index, channel.t)[:, :-D].T
        h, force, stiffness = u.copy(), np.empty_like(u), np.empty((*u.shape, D))
        precision = np.linalg.inv(delta * blocks.response[-1])
        assert proximal_points(channel.losses[-1].form, precision, u, channel.targets[i], h, force, stiffness) == 0
        h = u + delta * force @ blocks.response[-1]
        taught = channel._taught(channel.t, i)
        targets = channel.losses[-1].targets(np.full(len(u), cell.label), taught, channel.table)
        value = channel.losses[-1].value(h @ channel.basis, targets, taught)
        value = value + 0.5 * np.einsum("na,ab,nb->n", h - u, precision, h - u)
        total -= cell.weight * value.mean()
    return total


@pytest.mark.parametrize("t", [1, 2, 3])
def test_conjugates_are_the_gradient_of_the_energetic_potential(t: int) -> None:
    """By central differences on the same nodes, every component: d Psi_h = mh.dm + E[f].db - P.dC + Qh.dV (half of it for V_tt)."""
    normals = sobol_rule(t, D, 6, 0)
    earlier = [random_blocks(s, s) for s in range(1, t)]
    channel = Channel(DATA, CHAIN.stages[:t], normals, earlier, [None] * (t - 1))
    blocks = random_blocks(t, 7)
    found = channel.averages(blocks)
    step = 1e-5

    def slope(**moves: np.ndarray) -> float:
        ends = [
            energetic_potential(
                channel, replace(blocks, **{name: getattr(blocks, name) + sign * move for name, move in moves.items()})
            )
            for sign in (step, -step)
        ]
        return (ends[0] - ends[1]) / (2 * step)

    for i in range(D):
        for c in range(K):
            move = np.zeros((D, K))
            move[i, c] = 1.0
            assert slope(mean=move) == pytest.approx(found.force[c, i], abs=2e-8)
        move = np.zeros(D)
        move[i] = 1.0
        assert slope(bias=move) == pytest.approx(found.force[:, i].sum(), abs=2e-8)
        for s in range(t):
            for j in range(D):
                move = np.zeros((t, D, D))
                move[s, i, j] = 1.0
                assert slope(cholesky=move) == pytest.approx(found.force_normal[s, i, j], abs=2e-8)
                if s == t - 1:
                    move[s, j, i] = 1.0
                    expected = found.force_force[s, i, j] if i != j else 0.5 * found.force_force[s, i, i]
                else:
                    expected = found.force_force[s, i, j]
                assert slope(response=move) == pytest.approx(expected, abs=2e-8), (s, i, j)


def test_responses_by_stein_and_by_differentiation_agree() -> None:
    """Vh_tt = Delta A E[D] against Stein's lemma, on Gauss-Hermite nodes: the same up to quadrature."""
    points, weights = hermegauss(24)
    grid = np.stack(np.meshgrid(points, points), axis=-1).reshape(-1, 1, 2)
    share = np.outer(weights, weights).ravel()
    share /= share.sum()
    channel = Channel(DATA, CHAIN.stages[:1], Rule(np.ascontiguousarray(grid), share), [], [])
    blocks = random_blocks(1, 3)
    found = channel.averages(blocks)
    direct, stein = found.stiffness, -found.force_normal[0]
    assert stein @ np.linalg.inv(blocks.cholesky[-1]) == pytest.approx(direct, abs=1e-6)


LOSSES = [
    CrossEntropy(), Distillation(0.5, 3.0), SquareDistillation(0.5), LogitMatching(0.5, 0.3), PseudoLabels(0.5),
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
def test_proximal_points(loss, scale: float) -> None:
    """h - W (c - S(h)) = u, and D = S'(1 + W S')^-1, for K = 4, from small responses to large ones."""
    generator = np.random.default_rng(5)
    found, basis, n = ClassLoss(loss, 4), helmert(4), 50
    width = scale * spd(generator, 3)
    u = 5.0 * generator.standard_normal((n, 3))
    taught = 3.0 * generator.standard_normal((n, 1, 4))
    target = found.targets(generator.integers(0, 4, n), taught) @ basis.T
    h, force, stiffness = u.copy(), np.empty((n, 3)), np.empty((n, 3, 3))
    assert proximal_points(found.form, np.linalg.inv(width), u, target, h, force, stiffness) == 0
    assert force == pytest.approx(target - found.slope(h @ basis) @ basis.T, abs=1e-9)
    assert h - force @ width == pytest.approx(u, abs=1e-8 * scale + 1e-9)
    curved = np.einsum("ik,nkl,jl->nij", basis, found.curvature(h @ basis), basis)
    expected = curved @ np.linalg.inv(np.eye(3) + width @ curved)
    assert stiffness == pytest.approx(expected, abs=1e-5 / scale)


@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("spectrum", [False, True], ids=["white", "spectrum"])
def test_the_prior_is_that_of_theory(t: int, spectrum: bool) -> None:
    """On groups of coordinates that all stages train: theory's equations in blocks, added up."""
    from theory import blocks
    from theory.symbols import eta, ridge

    generator = np.random.default_rng(t)
    shares, variances = ([0.5, 0.3], [2.0, 0.4]) if spectrum else ([0.8], [1.0])
    parts = [spd(generator, K) for _ in shares] if spectrum else [np.array(DATA.gram)]
    prior = Prior(ClassGroups(np.array(shares), np.ones((len(shares), t), bool), np.array(variances), np.array(parts)))
    fields = generator.standard_normal((t * D, t * D + 2))
    fields = (fields @ fields.T).reshape(t, D, t, D).transpose(0, 2, 1, 3)
    given = []
    for s in range(1, t + 1):
        responses = generator.standard_normal((s, D, D))
        responses[-1] = spd(generator)
        given.append(Conjugates(generator.standard_normal((D, K)), fields[s - 1, :s].copy(), responses))
    for s in range(1, t):
        prior.append(s, 0.3 * s, given[s - 1])
    found, last = prior.update(t, 0.3, given[-1]), given[-1]
    factor, squares = prior._factor(last), 0.0
    total: dict[str, np.ndarray] = {}
    for g, (share, variance, gram) in enumerate(zip(shares, variances, parts, strict=True)):
        values = {"Gamma": gram, f"mh_{t}": last.magnetization}
        for s in range(1, t + 1):
            values |= {f"Qh_{t}{s}": last.overlaps[s - 1], f"Vh_{t}{s}": last.responses[s - 1]}
        known = list(zip(prior.alignments, prior.propagators, strict=True))
        rows = [prior._weights(*row, factor)[g] / np.sqrt(share) for row in known]
        for s in range(1, t):
            values[f"mu_{s}"] = known[s - 1][0][g] @ gram
            for r in range(1, s + 1):
                values |= {f"B_{s}{r}": rows[s - 1] @ rows[r - 1].T, f"G_{s}{r}": known[s - 1][1][g, r - 1]}
        for name, expression in blocks.prior_equations(t, spectrum=spectrum).items():
            numbers = expression.subs({ridge: 0.3, eta: share, blocks.input_variance: variance})
            total[name] = total.get(name, 0.0) + numeric(numbers, values)
        if t > 1:
            squares += share * np.sum(rows[-1] ** 2)
    assert found.magnetization == pytest.approx(total[f"m_{t}"])
    for s in range(1, t + 1):
        assert found.overlap[s - 1] == pytest.approx(total[f"Q_{t}{s}"])
        assert found.response[s - 1] == pytest.approx(total[f"V_{t}{s}"])
    assert np.einsum("rax,rbx->ab", found.cholesky, found.cholesky) == pytest.approx(total[f"Q_{t}{t}"])
    if t > 1 and not spectrum:
        assert prior.norm_ratios[-1] == pytest.approx(1.0, abs=1e-14)
    elif t > 1:
        before = Prior(prior.groups)
        for s in range(1, t - 1):
            before.append(s, 0.3 * s, given[s - 1])
        overlap = before.update(t - 1, 0.3 * (t - 1), given[t - 2]).overlap[-1]
        assert prior.norm_ratios[-1] * np.trace(overlap) == pytest.approx(squares)


def numeric(expression, values: dict[str, np.ndarray]) -> np.ndarray:
    """An expression of blocks with numbers for them."""
    from sympy import MatrixSymbol, lambdify

    from theory import blocks

    sizes = {blocks.d: D, blocks.classes: K}
    symbols = sorted(expression.atoms(MatrixSymbol), key=str)
    sized = [MatrixSymbol(s.name, *(n.subs(sizes) for n in s.shape)) for s in symbols]
    found = expression.subs(sizes).xreplace(dict(zip(symbols, sized, strict=True)))
    return lambdify(sized, found, "numpy")(*(values[s.name] for s in symbols))


@pytest.mark.parametrize(
    "data", [DATA, replace(DATA, inputs=Spectrum([3.0, 1.0, 0.3], [0.5, 1.0, 2.0]))], ids=["white", "spectrum"]
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_jacobian(data: ClassMixture, number: int) -> None:
    """Against differences of the residual; they differ by how far Stein's lemma misses on the nodes, 2^13 of them."""
    walk, outcome = solve_walk(data, CHAIN, -1, 60)
    assert outcome.status == 0
    finer = Walk(data, CHAIN.stages, 1)
    finer.points, finer.prior = walk.points, prior_before(walk, number)
    equations = StageEquations(
        finer.channel(number, sobol_rule(number, D, 13, 0)),
        finer.prior,
        CHAIN[number - 1].ridge,
        walk.blocks[: number - 1],
    )
    x = walk.points[number - 1].blocks
    found = equations.evaluate(x, jacobian=True)
    n, step = found.residual.size, 1e-5
    expected = np.empty((n, n))
    for i in range(n):
        ends = [
            equations.evaluate(equations.advanced(x, s * np.eye(n)[i]), jacobian=False).residual for s in (step, -step)
        ]
        expected[:, i] = (ends[0] - ends[1]) / (2 * step)
    assert found.jacobian == pytest.approx(expected, abs=5e-3)


def prior_before(walk: Walk, number: int) -> Prior:
    prior = Walk(walk.data, walk.stages, 0).prior
    for s in range(1, number):
        prior.append(s, walk.stages[s - 1].ridge, walk.points[s - 1].conjugates)
    return prior


def test_cells() -> None:
    sets = tuple(stage.sets for stage in CHAIN.stages)
    cells = cells_of(DATA, sets)
    assert sum(cell.weight for cell in cells) == pytest.approx(2.5)
    assert {cell.trained for cell in cells} == {(True, True, False), (False, True, True)}
    assert not any(cell.trained[2] and cell.class_index == 2 for cell in cells)
    assert len(cells) == 9 + 2


def test_matrix_logarithm() -> None:
    generator = np.random.default_rng(1)
    matrix = spd(generator, 3)
    found = MatrixLog(matrix)
    assert exponential(found.value) == pytest.approx(matrix)
    change = generator.standard_normal((3, 3))
    change = change + change.T
    ends = [MatrixLog(matrix + sign * 1e-6 * change).value for sign in (1, -1)]
    slope = found.slope(np.zeros((3, 3, 1)), change[:, :, None])[:, :, 0]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)
    assert MatrixLog(np.eye(3)).slope(np.zeros((3, 3, 1)), change[:, :, None])[:, :, 0] == pytest.approx(change)
    assert not MatrixLog(-np.eye(3)).defined


def test_averages_say_what_they_are() -> None:
    assert {"force", "force_normal", "force_force", "stiffness", "slopes"} <= set(Averages.__annotations__)


@pytest.mark.parametrize("k", [3, 6])
def test_steps_side_by_side(k: int) -> None:
    """As one by one; of starts that are too far off nothing is changed, and those next to them are found all the same."""
    generator = np.random.default_rng(k)
    found, basis, n = ClassLoss(Distillation(0.5, 2.0), k), helmert(k), 3 * LANES + 5
    precision = np.linalg.inv(30.0 * spd(generator, k - 1))
    u = 8.0 * generator.standard_normal((n, k - 1))
    taught = 3.0 * generator.standard_normal((n, 1, k))
    target = found.targets(generator.integers(0, k, n), taught) @ basis.T
    ways = []
    for way in (minimise_one_by_one, proximal_points):
        h, force, stiffness = u.copy(), np.empty_like(u), np.empty((*u.shape, k - 1))
        assert way(found.form, precision, u, target, h, force, stiffness) == 0
        ways.append((h, force, stiffness))
    for one, other, accuracy in zip(*ways, (1e-9, 1e-9, TOLERANCE), strict=True):  # D is that before the last step
        assert one == pytest.approx(other, abs=accuracy)
    h, done = u.copy(), np.zeros(n, dtype=bool)
    h[::7] = 1e4
    far = h.copy()
    whole_steps(found.form, precision, u, target, h, force, stiffness, done)
    assert not done[::7].all()
    assert h[~done] == pytest.approx(far[~done], abs=0.0)
    assert h[done] == pytest.approx(ways[0][0][done], abs=1e-9)
    assert proximal_points(found.form, precision, u, target, far, force, stiffness) == 0
    assert far == pytest.approx(ways[0][0], abs=1e-9)


def minimise_one_by_one(form, precision, u, target, h, force, stiffness) -> int:
    return minimise(_potential, _slope_and_curvature, form, target, precision, u, target, h, force, stiffness)
