"""Points of a grid: one step of t apart, whatever the field and the loss, with the slopes of the loss there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from numerics.codegen.cache import njit
from numerics.codegen.losses import loss_module
from numerics.scalar import compiled
from numerics.scalar.kernels.elementary import address, argsort, log_positive
from numerics.scalar.kernels.grid import build_grid
from numerics.scalar.kernels.kept import KEPT_NUMBERS, Trail, forget_grids
from numerics.scalar.kernels.layout import ROOM_OF_SAMPLES, Field, Rule, Sample, Sharpness, Table
from numerics.scalar.kernels.march import Way, bends_at, find_kinks, mapped, march
from numerics.scalar.kernels.proximal import CURVATURE, HIGH, LOW, POINT_ROWS, S1, S2, THIRD, WEIGHT, H, slopes_at
from numerics.scalar.kernels.samples import new_samples
from theory.losses import CrossEntropy, Distillation, Loss

LOSSES = {
    "cross-entropy": CrossEntropy(),
    "distillation": Distillation(0.6, 3.0),
    "cold": Distillation(0.3, 0.02),
    "far bends": Loss.from_expression("log(1+exp((h-30)/T)) + h**2/200 - y*h/9", {"T": 0.3}),
    "no split": Loss.from_expression("(1+y)*log(1+exp(h)) - (1+y)*y*h + h**2/50"),
    "linear": Loss.from_expression("(h-y)**2/2"),
}
STEP = 0.7


NO_TRAIL = Trail(np.empty(0), 1)


@njit(nogil=True)
def marched(loss, label, field, rule, h, width, trail):
    """Points from h up as far as P grows by ``width``, then down; t of each, and how many are of the way up."""
    logits = np.array([0.4, -0.3])
    sample = Sample(loss.along, loss.slopes, label, address(logits, 0), address(loss.parameters, 0), 0)
    found = np.empty((3, loss.n_bends))
    kinks = np.empty((2 * loss.n_bends + 1, 3))
    bends_at(loss, sample, found)
    kinks = kinks[: find_kinks(field, found, rule, kinks)].copy()
    slope = np.empty(4)
    slopes_at(sample, h, slope)
    place = h + field.gamma * slope[0]
    table = march(sample, field, rule, kinks, Table(np.empty((POINT_ROWS, 8)), 0), Way(h, place + width, 1.0, trail))
    up = table.used
    table = march(sample, field, rule, kinks, table, Way(h, place - width, -1.0, trail))
    points = table.points[:, : table.used].copy()
    t = np.empty(table.used)
    for j in range(table.used):
        slopes_at(sample, points[H, j], slope)
        t[j], dt, _ = mapped(points[H, j], field, slope, 0, kinks)
        # Relative deviations of what is stored with the point from what is there.
        points[LOW, j] = abs(points[LOW, j] - slope[0]) / (1e-9 + abs(slope[0]))
        points[HIGH, j] = abs(points[HIGH, j] - slope[1]) / (1e-9 + abs(slope[1]))
        points[CURVATURE, j] = abs(points[CURVATURE, j] - slope[S1]) / (1e-9 + abs(slope[S1]))
        points[THIRD, j] = abs(points[THIRD, j] - slope[S2]) / (1e-9 + abs(slope[S2]) + abs(slope[S1]))
        points[WEIGHT, j] = abs(points[WEIGHT, j] * dt / rule.step - 1.0)
    return points, t, up


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sigma", [0.02, 0.5, 4.0, 60.0])
@pytest.mark.parametrize("gamma", [1e-3, 1.0, 300.0, 1e6])
def test_points_are_one_step_of_t_apart(name: str, sigma: float, gamma: float) -> None:
    loss = LOSSES[name]
    stage = compiled.compiled_loss(loss)
    field = Field(np.zeros(2), sigma, gamma)
    rule = Rule(STEP, 1e-5, True, False, Sharpness(0.0, 0.0), np.empty((0, 2)), np.empty(0))
    h = 0.3
    points, t, up = marched(stage, 1.0, field, rule, h, 9.0 * sigma, NO_TRAIL)
    assert 9.0 / STEP < up < points.shape[1] - 9.0 / STEP
    assert points[H, 0] == pytest.approx(h, rel=1e-12)
    order = np.concatenate([np.arange(points.shape[1] - 1, up - 1, -1), np.arange(up)])
    np.testing.assert_allclose(np.diff(t[order]), STEP, rtol=1e-9 + 1e-13 * np.abs(t).max())
    assert points[[LOW, HIGH, CURVATURE]].max() < 1e-6
    assert points[THIRD].max() < 1e-3  # it is not taken along: of later use for derivatives of small terms only
    assert points[WEIGHT].max() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("step", "sigma"), [(0.35, 4.0), (1.6, 4.0), (STEP, 40.0), (STEP, 0.4)])
def test_points_found_along_those_of_another_grid_are_the_same(name: str, step: float, sigma: float) -> None:
    """However far these go, and however fine they are."""
    stage = compiled.compiled_loss(LOSSES[name])
    field, other = Field(np.zeros(2), 4.0, 30.0), Field(np.zeros(2), sigma, 10.0)
    rule = Rule(STEP, 1e-5, True, False, Sharpness(0.0, 0.0), np.empty((0, 2)), np.empty(0))
    points, _, up = marched(stage, 1.0, field, rule, 0.3, 36.0, NO_TRAIL)
    trail, _, _ = marched(stage, 1.0, other, rule._replace(step=step), 0.3, 9.0 * sigma, NO_TRAIL)
    for stride in (1, 2, 9):
        found, _, its_up = marched(stage, 1.0, field, rule, 0.3, 36.0, Trail(trail[H].copy(), stride))
        assert its_up == up
        np.testing.assert_allclose(found[H], points[H], rtol=1e-9, atol=1e-9)
        assert found[WEIGHT].max() < 1e-6


@njit(nogil=True)
def nothing_kept(margin):
    kept = np.empty(KEPT_NUMBERS)
    forget_grids(kept, margin)
    return kept


@njit(nogil=True)
def logits_and_integrals(loss, labels, centres, field, rule):
    """Logits of the points of a grid, and the integrals of the nodes' densities on them."""
    n = labels.size
    logits = np.zeros((n, 2))
    samples = new_samples(loss, np.ones(n), labels, logits, 1e-12, np.empty(ROOM_OF_SAMPLES * n))
    for i in range(n):
        samples.centre[i] = centres[i] + field.gamma * samples.target[i]
    points, used = build_grid(loss, samples, field, rule, np.empty((POINT_ROWS, 256)))
    integrals = np.zeros(n)
    for i in range(n):
        for j in range(samples.start[i], samples.stop[i]):
            g = (points[H, j] + field.gamma * points[LOW + samples.branch[i], j] - samples.centre[i]) / field.sigma
            density = math.exp(-0.5 * g * g) / math.sqrt(2.0 * math.pi) / field.sigma
            integrals[i] += points[WEIGHT, j] * (1.0 + field.gamma * points[CURVATURE, j]) * density
    return points[H, :used].copy(), integrals


@pytest.mark.parametrize("nodes", [2, 40])
@pytest.mark.parametrize(
    ("field", "shift", "temperature", "again"),
    [
        ((3.3, 45.0), 0.5, 3.0, True),
        ((3.8, 60.0), 0.0, 3.0, True),
        ((6.0, 50.0), 0.0, 3.0, False),  # steps would be half of what they need be
        ((2.5, 50.0), 0.0, 3.0, False),  # and here too large for the width
        ((3.0, 60.0), 0.0, 3.0, False),  # or for the pull of the loss
        ((3.3, 45.0), 30.0, 3.0, False),  # they do not go so far
        ((3.3, 45.0), 0.5, 3.1, False),  # another loss
    ],
)
def test_a_grid_is_used_again_where_it_serves(
    nodes: int, field: tuple[float, float], shift: float, temperature: float, again: bool
) -> None:
    labels, centres = np.zeros(nodes), np.linspace(-12.0, 12.0, nodes)
    for margin in (2.5, 0.0):
        kept = nothing_kept(margin)
        rule = Rule(STEP, 1e-6, True, False, Sharpness(0.0, 0.0), np.empty((0, 2)), kept)
        stage = compiled.compiled_loss(Distillation(0.6, 3.0))
        first, integrals = logits_and_integrals(stage, labels, centres, Field(np.zeros(2), 3.0, 50.0), rule)
        np.testing.assert_allclose(integrals, 1.0, atol=1e-10)
        stage, own = compiled.compiled_loss(Distillation(0.6, temperature)), Field(np.zeros(2), *field)
        second, integrals = logits_and_integrals(stage, labels, centres + shift, own, rule)
        np.testing.assert_allclose(integrals, 1.0, atol=1e-10)
        assert np.array_equal(first, second) == (again and margin > 0.0)


def test_a_grid_with_fewer_bends_is_another_one() -> None:
    """Whatever stands where its bends would be."""
    kept, nodes = nothing_kept(2.5), np.linspace(-12.0, 12.0, 40)
    stage, field = compiled.compiled_loss(Distillation(0.6, 3.0)), Field(np.zeros(2), 3.0, 50.0)
    grids = []
    for bends in (np.array([[5.0, 0.3]]), np.empty((0, 2)), np.array([[5.0, 0.3]])):
        rule = Rule(STEP, 1e-6, True, True, Sharpness(0.9, 0.0), bends, kept)
        grids.append(logits_and_integrals(stage, np.zeros(40), nodes, field, rule)[0])
    assert grids[0].size > grids[1].size
    np.testing.assert_allclose(grids[2], grids[0], atol=1e-9)


def test_slopes_along_many_logits_are_those_at_each() -> None:
    @njit(nogil=True)
    def both(loss, label, h):
        logits = np.array([0.4, -0.3])
        one, many = np.empty((h.size, 4)), np.empty((4, h.size))
        n = h.size
        loss.along(
            n, label, address(logits, 0), address(loss.parameters, 0), address(h, 0), address(many, 0), address(many, n),
            address(many, 2 * n), address(many, 3 * n),
        )  # fmt: skip
        for j in range(n):
            loss.slopes(h[j], label, address(logits, 0), address(loss.parameters, 0), address(one, 4 * j))
        return one, many

    h = np.concatenate([np.linspace(-40.0, 40.0, 333), [-800.0, 0.0, 800.0]])
    for loss in LOSSES.values():
        assert len(loss_module(loss)) == 4
        for label in (0.0, 1.0):
            one, many = both(compiled.compiled_loss(loss), label, h)
            np.testing.assert_allclose(many.T, one, rtol=1e-14, atol=1e-300)


def test_the_logarithm() -> None:
    x = np.concatenate([np.geomspace(1e-300, 1e300, 5001), 1.0 + np.linspace(-0.4, 0.6, 2001)])
    found = np.array([log_positive(value) for value in x])
    np.testing.assert_allclose(found, np.log(x), rtol=4e-16, atol=1e-16)


@njit(nogil=True)
def sorting(keys, order):
    argsort(keys, order, np.empty(order.size, np.int64))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 100, 1001])
def test_sorting_whatever_the_order_was_before(n: int) -> None:
    generator = np.random.default_rng(n)
    rising, noise = np.linspace(-1.0, 1.0, n), generator.normal(size=n)
    for keys in (rising, -rising, np.concatenate([rising, rising + 0.3]), noise, np.round(noise), np.zeros(n)):
        for order in (np.arange(keys.size), generator.permutation(keys.size)):
            sorting(keys, order)
            assert np.array_equal(np.sort(order), np.arange(keys.size))
            assert np.array_equal(keys[order], np.sort(keys))
    keys = np.where(noise > 1.0, np.nan, noise)
    order = np.arange(n)
    sorting(keys, order)  # comes to an end
    assert np.array_equal(np.sort(order), np.arange(n))
