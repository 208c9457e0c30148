"""Two-layer and deep networks: gradients against finite differences, balls, starts, what is reported; data sets."""

from __future__ import annotations

import numpy as np
import pytest

from numerics.models import ParameterError
from numerics.neurons import data
from numerics.neurons.deep import DeepRule, forward, gradient, random_layers, train_deep
from numerics.neurons.two_layer import (
    Rule,
    Start,
    hard_targets,
    outputs,
    soft_targets,
    symmetric_start,
    train,
)

SAMPLE = data.xor(60, 5, 0.1, np.random.default_rng(0))
TARGETS = soft_targets(SAMPLE.y * np.random.default_rng(1).uniform(0.1, 2.0, 60))
START = symmetric_start(8, 5, np.random.default_rng(2))


def loss(X: np.ndarray, targets: np.ndarray, start: Start, movement: np.ndarray, linearised: bool) -> float:
    f = outputs(X, start, movement, linearised)
    return float(np.mean(np.log1p(np.exp(f)) - targets * f))


@pytest.mark.parametrize("linearised", [False, True])
def test_a_step_is_the_gradient(linearised: bool) -> None:
    """One step without a ball, from a start that is not symmetric, against central differences of the loss."""
    generator = np.random.default_rng(3)
    start = Start(generator.normal(size=(6, 5)), generator.choice([-1.0, 1.0], 6))
    moved = train(SAMPLE, TARGETS, start, Rule(np.inf, 0.7, 1, linearised)).movement
    expected = np.empty_like(moved)
    for index in np.ndindex(moved.shape):
        nudge = np.zeros_like(moved)
        nudge[index] = 1e-6
        up, down = (loss(SAMPLE.X, TARGETS, start, side * nudge, linearised) for side in (1, -1))
        expected[index] = -0.7 * (up - down) / 2e-6
    assert moved == pytest.approx(expected, abs=1e-9)


def test_later_steps_are_the_gradient_there() -> None:
    """Three steps, each from where the last one ended."""
    movement = np.zeros_like(START.weights)
    for _ in range(3):
        here = Start(START.weights + movement, START.signs)
        movement = movement + train(SAMPLE, TARGETS, here, Rule(np.inf, 2.0, 1)).movement
    assert train(SAMPLE, TARGETS, START, Rule(np.inf, 2.0, 3)).movement == pytest.approx(movement, abs=1e-13)


def test_every_neuron_stays_in_its_ball() -> None:
    rule = Rule(0.5, 5.0, 50)
    free, kept = train(SAMPLE, TARGETS, START, rule._replace(radius=np.inf)), train(SAMPLE, TARGETS, START, rule)
    edge = 0.5 / np.sqrt(8)
    lengths = np.linalg.norm(kept.movement, axis=1)
    assert np.linalg.norm(free.movement, axis=1).max() > 2 * edge
    assert lengths.max() <= edge * (1 + 1e-12)
    assert kept.at_edge == np.mean(lengths > edge * (1 - 1e-9)) > 0
    assert free.at_edge == 0


def test_projection_is_the_nearest_point() -> None:
    """A first step that leaves the ball ends on its edge, in the direction of the step."""
    step = train(SAMPLE, TARGETS, START, Rule(np.inf, 50.0, 1)).movement
    kept = train(SAMPLE, TARGETS, START, Rule(0.5, 50.0, 1)).movement
    lengths = np.linalg.norm(step, axis=1)[:, None]
    edge = 0.5 / np.sqrt(8)
    assert lengths.max() > edge
    assert kept == pytest.approx(step * np.minimum(1.0, edge / lengths), abs=1e-14)


def test_the_start_is_symmetric() -> None:
    assert outputs(SAMPLE.X, START, np.zeros_like(START.weights)) == pytest.approx(0.0, abs=1e-14)
    assert START.weights[:4] == pytest.approx(START.weights[4:])
    assert START.signs.sum() == 0


def test_what_is_reported_is_measured() -> None:
    rule = Rule(3.0, 1.0, 7)
    found = train(SAMPLE, TARGETS, START, rule)
    along = [train(SAMPLE, TARGETS, START, rule._replace(steps=k)) for k in range(1, 7)]
    entropy = -np.mean(TARGETS * np.log(TARGETS) + (1 - TARGETS) * np.log(1 - TARGETS))
    kl = [np.log(2) - entropy, *(loss(SAMPLE.X, TARGETS, START, t.movement, False) - entropy for t in along)]
    assert found.mean_loss == pytest.approx(np.mean(kl), rel=1e-10)
    assert [t.loss for t in along] == pytest.approx(kl[1:], rel=1e-10)
    assert found.error == np.mean(SAMPLE.y * outputs(SAMPLE.X, START, found.movement) <= 0)
    before, after = SAMPLE.X @ START.weights.T > 0, SAMPLE.X @ (START.weights + found.movement).T > 0
    assert found.flipped == np.mean(before != after)
    hard = train(SAMPLE, hard_targets(SAMPLE.y), START, rule)
    f = outputs(SAMPLE.X, START, hard.movement)
    assert hard.loss == pytest.approx(np.mean(np.log1p(np.exp(-SAMPLE.y * f))))


def test_linear_loss_in_a_ball_in_closed_form() -> None:
    """Linearised, every neuron goes to the edge along a_j times the mean of y x over the samples that it sees."""
    rule = Rule(0.1, 50.0, 20, linearised=True, tangent=True)
    found = train(SAMPLE, hard_targets(SAMPLE.y), START, rule)
    seen = SAMPLE.X @ START.weights.T > 0
    direction = START.signs[:, None] * (seen.T @ (SAMPLE.X * SAMPLE.y[:, None]))
    expected = direction / np.linalg.norm(direction, axis=1)[:, None] * 0.1 / np.sqrt(8)
    assert found.movement == pytest.approx(expected, abs=1e-12)
    # In so small a ball the cross-entropy is close to its tangent.
    curved = train(SAMPLE, hard_targets(SAMPLE.y), START, rule._replace(tangent=False, steps=500))
    assert curved.at_edge == 1
    assert curved.movement == pytest.approx(expected, abs=0.03 * 0.1 / np.sqrt(8))


def test_bad_rules_are_named() -> None:
    for name, rule in (("radius", Rule(0.0, 1.0, 1)), ("rate", Rule(1.0, -1.0, 1)), ("steps", Rule(1.0, 1.0, 0))):
        with pytest.raises(ParameterError, match=rf"^{name} must be positive"):
            train(SAMPLE, TARGETS, START, rule)
    for m in (0, 3):
        with pytest.raises(ParameterError, match=r"^m must be even"):
            symmetric_start(m, 5, np.random.default_rng(0))
    with pytest.raises(ParameterError, match=r"^rate must be positive"):
        DeepRule(0.0, 5)


# Three hidden layers.


def test_gradient_of_the_deep_network() -> None:
    layers = random_layers(5, 4, np.random.default_rng(4))
    for k, layer in enumerate(layers):
        layer[-1] = 0.1 * (k + 1)  # biases, so that their place matters
    found = gradient(SAMPLE.X, TARGETS, layers)

    def deep_loss() -> float:
        f = forward(SAMPLE.X, layers)[0]
        return float(np.mean(np.log1p(np.exp(f)) - TARGETS * f))

    assert [layer.shape for layer in layers] == [(6, 4), (5, 4), (5, 4), (5, 1)]
    for layer, g in zip(layers, found, strict=True):
        for index in np.ndindex(layer.shape):
            value = layer[index]
            layer[index] = value + 1e-6
            up = deep_loss()
            layer[index] = value - 1e-6
            down = deep_loss()
            layer[index] = value
            assert g[index] == pytest.approx((up - down) / 2e-6, abs=1e-8)


def test_deep_training_fits_and_leaves_its_start() -> None:
    layers = random_layers(5, 32, np.random.default_rng(5))
    before = [layer.copy() for layer in layers]
    trained = train_deep(SAMPLE.X, hard_targets(SAMPLE.y), layers, DeepRule(0.01, 300))
    assert np.mean(SAMPLE.y * forward(SAMPLE.X, trained)[0] <= 0) == 0
    assert all(np.array_equal(a, b) for a, b in zip(layers, before, strict=True))


def test_first_step_of_adam_has_the_size_of_the_rate() -> None:
    layers = random_layers(5, 6, np.random.default_rng(6))
    moved = train_deep(SAMPLE.X, TARGETS, layers, DeepRule(0.01, 1))
    for a, b, g in zip(layers, moved, gradient(SAMPLE.X, TARGETS, layers), strict=True):
        assert (b - a)[np.abs(g) > 1e-5] == pytest.approx(-0.01 * np.sign(g)[np.abs(g) > 1e-5], rel=2e-3)


# Data.


@pytest.mark.parametrize("gap", [0.0, 0.2])
def test_data_with_a_gap(gap: float) -> None:
    X, y = data.xor(300, 6, gap, np.random.default_rng(0))
    assert X.shape == (300, 6)
    assert np.linalg.norm(X, axis=1) == pytest.approx(1.0)
    assert np.abs(X[:, :2]).min() >= gap
    assert np.array_equal(y, np.sign(X[:, 0] * X[:, 1]))
    assert abs(y.mean()) < 4 / np.sqrt(300)
    X, y = data.line(300, 6, gap, np.random.default_rng(0))
    assert np.abs(X[:, 0]).min() >= gap
    assert np.array_equal(y, np.sign(X[:, 0]))


def test_impossible_gaps_are_named() -> None:
    with pytest.raises(ParameterError, match=r"^gap leaves hardly any input"):
        data.xor(50, 10, 0.8, np.random.default_rng(0))
    with pytest.raises(ParameterError, match=r"^d must be at least 2"):
        data.xor(50, 1, 0.1, np.random.default_rng(0))


def test_digits_and_their_noise() -> None:
    pytest.importorskip("sklearn")
    clean = data.digits_parity(800, 0.0, np.random.default_rng(0))
    noisy = data.digits_parity(800, 1.5, np.random.default_rng(0))
    assert [len(part.y) for part in clean] == [800, 997]
    for part, other in zip(clean, noisy, strict=True):
        assert np.linalg.norm(part.X, axis=1) == pytest.approx(1.0)
        assert np.array_equal(part.y, other.y)
    # Of unit images the noise takes 2.25/3.25 of the squared length.
    cosine = np.mean(np.sum(clean[0].X * noisy[0].X, axis=1))
    assert cosine == pytest.approx(1 / np.sqrt(3.25), abs=0.03)
    with pytest.raises(ParameterError, match=r"^n_train must be between"):
        data.digits_parity(1797, 0.0, np.random.default_rng(0))
