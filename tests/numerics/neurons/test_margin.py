"""The margin of the limiting kernel: closed forms, a small problem solved another way, the bracket on XOR."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from numerics.models import ParameterError
from numerics.neurons.data import line, xor
from numerics.neurons.margin import kernel_margin, limiting_kernel, margin, project_to_simplex


def test_kernel_is_the_mean_over_directions() -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(4, 3))
    active = (generator.normal(size=(400_000, 3)) @ X.T > 0).astype(float)
    expected = X @ X.T * (active.T @ active) / len(active)
    assert limiting_kernel(X) == pytest.approx(expected, abs=0.02)
    assert np.diag(limiting_kernel(X)) == pytest.approx(np.sum(X**2, axis=1) / 2, abs=1e-12)


@pytest.mark.parametrize("labels", [(1, 1), (1, -1)])
@pytest.mark.parametrize("angle", [0.3, 1.2, 2.8])
def test_two_inputs_in_closed_form(angle: float, labels: tuple[int, int]) -> None:
    """Both see a direction with probability (pi - angle)/2pi, one alone with angle/pi; q = 1/2 by symmetry."""
    half = np.cos(angle / 2) if labels[0] == labels[1] else np.sin(angle / 2)
    expected = half * (np.pi - angle) / (2 * np.pi) + angle / (2 * np.pi)
    found = margin([[1.0, 0.0], [np.cos(angle), np.sin(angle)]], labels)
    assert found.kernel == pytest.approx(
        np.sqrt(0.25 + labels[0] * labels[1] * np.cos(angle) * (np.pi - angle) / (4 * np.pi))
    )
    assert found.lower == pytest.approx(expected, abs=2e-3)
    assert found.upper == pytest.approx(expected, abs=1e-3)
    assert 0.99 * expected < found.clipped < expected + 1e-3


def exact_in_the_plane(X: np.ndarray, y: np.ndarray) -> float:
    """min over q of E_z |g_q(z)|: in the plane the active set is constant on arcs between the edges of half planes."""
    angles = np.arctan2(X[:, 1], X[:, 0])
    edges = np.sort(np.concatenate([angles + np.pi / 2, angles - np.pi / 2]) % (2 * np.pi))
    shares = np.diff(np.append(edges, edges[0] + 2 * np.pi)) / (2 * np.pi)
    middles = edges + np.pi * shares
    active = np.stack([np.cos(middles), np.sin(middles)], axis=1) @ X.T > 0

    def mean_length(q: np.ndarray) -> float:
        return float(shares @ np.linalg.norm(active @ (X * (q * y)[:, None]), axis=1))

    n = len(y)
    found = [
        minimize(
            mean_length, start, method="SLSQP", bounds=[(0, 1)] * n, options={"ftol": 1e-12, "maxiter": 500},
            constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
        ).fun
        for start in (np.full(n, 1 / n), *np.random.default_rng(0).dirichlet(np.ones(n), 5))
    ]  # fmt: skip
    return min(found)


@pytest.mark.parametrize("seed", range(3))
def test_small_problems_in_the_plane(seed: int) -> None:
    generator = np.random.default_rng(seed)
    X, y = generator.normal(size=(6, 2)), generator.choice([-1.0, 1.0], 6)
    expected = exact_in_the_plane(X, y)
    found = margin(X, y)
    assert found.upper == pytest.approx(expected, rel=5e-3)
    assert found.lower == pytest.approx(expected, rel=0.02)
    assert found.clipped < 1.005 * expected < 1.01 * found.kernel
    assert found.duality_gap < 0.01 * expected


def test_kernel_machine_is_optimal() -> None:
    """No input inside the margin, and those on it are the ones with weight."""
    sample = xor(100, 6, 0.1, np.random.default_rng(1))
    kernel = limiting_kernel(sample.X)
    found, weights = kernel_margin(kernel, sample.y)
    margins = sample.y * (kernel @ (weights * sample.y)) / found
    assert margins.min() == pytest.approx(found, rel=1e-8)
    assert margins[weights > 1e-9] == pytest.approx(found, rel=1e-8)
    assert weights.sum() == pytest.approx(1.0)


BRACKETS = {
    0.02: (0.030, 0.034),
    0.05: (0.035, 0.039),
    0.13: (0.045, 0.049),
    0.2: (0.058, 0.062),
    0.275: (0.077, 0.080),
}
"""Known from an independent prototype with data of its own: 200 inputs in 10 dimensions."""


@pytest.mark.parametrize("gap", BRACKETS)
def test_bracket_on_xor(gap: float) -> None:
    samples = [xor(200, 10, gap, np.random.default_rng([7, seed])) for seed in range(3)]
    found = [margin(sample.X, sample.y, directions=512, fresh=2**13) for sample in samples]
    low, high = BRACKETS[gap]
    lower, upper = (np.mean([getattr(m, name) for m in found]) for name in ("lower", "upper"))
    scatter = np.std([m.lower for m in found], ddof=1) / np.sqrt(3)
    assert low - 2 * scatter < lower < upper < high + 2 * scatter
    for sample, m in zip(samples, found, strict=True):
        assert 0.65 * m.upper < m.clipped < m.upper < m.kernel
        assert 0.96 * m.upper < m.lower < m.upper + 2 * m.lower_error
        assert 0 <= m.duality_gap < 0.01 * m.upper
        assert (sample.y * m.logits).min() >= m.lower - 1e-9


def test_a_line_has_a_larger_margin_than_xor() -> None:
    generator = np.random.default_rng(0)
    straight = margin(*line(100, 10, 0.05, generator), directions=256, fresh=2**12)
    crossed = margin(*xor(100, 10, 0.05, generator), directions=256, fresh=2**12)
    assert straight.lower > 1.3 * crossed.upper


def test_projection_on_the_simplex() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        u = generator.normal(size=7)
        q = project_to_simplex(u)
        assert q.sum() == pytest.approx(1.0)
        assert q.min() >= 0
        others = generator.dirichlet(np.ones(7), 50)
        assert np.all((others - q) @ (u - q) <= 1e-12)  # what makes it the nearest


@pytest.mark.parametrize(
    ("X", "y", "options", "words"),
    [
        ([[1.0, 0.0], [2.0, 0.0]], [1, -1], {}, "y must not differ between inputs on one ray"),
        ([[1.0, 0.0]], [1, 1], {}, "X must have shape"),
        ([[0.0, 0.0]], [1], {}, "X must be finite"),
        ([[1.0, 0.0]], [2], {}, "y must be -1 or 1"),
        ([[1.0, 0.0]], [1], {"replicates": 1}, "replicates must be at least 2"),
    ],
)
def test_bad_input_is_named(X, y, options, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        margin(X, y, **options)
