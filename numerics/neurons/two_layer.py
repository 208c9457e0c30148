"""Two-layer ReLU networks that start at f = 0, trained by projected gradient descent.

f(x) = m^(-1/2) sum_j a_j relu(w_j.x) with a_j = +-1 fixed; neurons come in pairs of the same weights and opposite signs.  Every
neuron stays in a ball of radius B/sqrt(m) around its start.  Linearised, the network keeps the activations of its start, f(x) =
m^(-1/2) sum_j a_j (w_j - w_j(0)).x 1(w_j(0).x > 0).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, xlogy

from numerics.codegen.cache import njit
from numerics.models import ParameterError
from numerics.neurons.data import Labelled

EDGE = 1e-9
"""A neuron closer than this to the edge of its ball, relative to the radius, is at the edge."""


class Rule(NamedTuple):
    """How a network is trained.

    Attributes
    ----------
    radius : float
        B; a neuron moves by at most B/sqrt(m).  ``inf`` for no ball.
    rate : float
        Step size for the loss averaged over samples.
    steps : int
        Steps of gradient descent.
    linearised : bool
        Keep the activations of the start.
    tangent : bool
        Replace the loss by its tangent at f = 0, which is linear: -y f/2 with hard labels.
    """

    radius: float
    rate: float
    steps: int
    linearised: bool = False
    tangent: bool = False


class Start(NamedTuple):
    """Weights of the first layer, shape (m, d), and signs of the second, shape (m,)."""

    weights: np.ndarray
    signs: np.ndarray


class Trained(NamedTuple):
    """A trained network and how it got there.

    Attributes
    ----------
    movement : array, shape (m, d)
        w - w(0).
    loss, mean_loss : float
        Cross-entropy less the entropy of the targets (a KL), after the last step, and averaged over all networks that a step began
        with, as in the bound.
    error : float
        0-1 error on the training set after the last step; an output of 0 is an error.
    at_edge : float
        Share of neurons at the edge of their balls.
    flipped : float
        Share of pairs (neuron, sample) that are active where they were not at the start, or the other way round.
    """

    movement: np.ndarray
    loss: float
    mean_loss: float
    error: float
    at_edge: float
    flipped: float


def symmetric_start(m: int, d: int, generator: np.random.Generator) -> Start:
    """Standard normal weights, in pairs with opposite signs: f = 0 everywhere.

    Raises
    ------
    ParameterError
        If m is odd or less than 2.
    """
    if m < 2 or m % 2:
        raise ParameterError(f"m must be even and at least 2, got {m!r}")
    half = generator.standard_normal((m // 2, d))
    return Start(np.concatenate([half, half]), np.repeat([1.0, -1.0], m // 2))


def soft_targets(logits: np.ndarray) -> np.ndarray:
    """Probabilities sigma(f) of the positive class."""
    return expit(logits)


def hard_targets(y: np.ndarray) -> np.ndarray:
    """0 and 1 for labels -1 and 1."""
    return (1.0 + y) / 2.0


def outputs(X: np.ndarray, start: Start, movement: np.ndarray, linearised: bool = False) -> np.ndarray:
    """f(x) of every input, shape (n,)."""
    seen_from = start.weights if linearised else start.weights + movement
    weights = movement if linearised else seen_from
    return ((X @ weights.T) * (X @ seen_from.T > 0)) @ start.signs / np.sqrt(len(start.signs))


def train(sample: Labelled, targets: np.ndarray, start: Start, rule: Rule) -> Trained:
    """Minimise the cross-entropy with ``targets``, averaged over samples.

    Where the ball is too small for outputs of order 1, hard labels see the tangent of their loss alone, and every neuron ends at
    the edge of its ball.

    Raises
    ------
    ParameterError
        If radius or rate is not positive, or there is no step.
    """
    for name, value in (("radius", rule.radius), ("rate", rule.rate), ("steps", rule.steps)):
        if not value > 0:
            raise ParameterError(f"{name} must be positive, got {value!r}")
    X = np.ascontiguousarray(sample.X)
    movement, mean_loss = _descend(X, np.ascontiguousarray(X.T), targets, start, rule)
    f = outputs(X, start, movement, rule.linearised)
    edge = rule.radius / np.sqrt(len(start.signs)) * (1.0 - EDGE)
    before, after = X @ start.weights.T > 0, X @ (start.weights + movement).T > 0
    entropy = -float(np.mean(xlogy(targets, targets) + xlogy(1.0 - targets, 1.0 - targets)))
    return Trained(
        movement, float(np.mean(np.logaddexp(0.0, f) - targets * f)) - entropy, mean_loss - entropy,
        float(np.mean(sample.y * f <= 0)), float(np.mean(np.linalg.norm(movement, axis=1) >= edge)),
        0.0 if rule.linearised else float(np.mean(before != after)),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _descend(X, transposed, targets, start, rule):
    """Movement, and the loss averaged over the networks that a step began with; ``transposed`` is X', contiguous."""
    n, m = len(targets), len(start.signs)
    weights, signs = start.weights, start.signs
    scale, edge = 1.0 / np.sqrt(m), rule.radius / np.sqrt(m)
    movement, mean_loss = np.zeros_like(weights), 0.0
    seen = np.dot(weights, transposed) > 0.0
    f, slope, pushes = np.empty(n), np.empty(n), np.empty((m, n))
    for _ in range(rule.steps):
        fields = np.dot(movement if rule.linearised else weights + movement, transposed)
        f[:] = 0.0
        for j in range(m):
            if not rule.linearised:
                for i in range(n):
                    seen[j, i] = fields[j, i] > 0.0
            factor = signs[j] * scale
            for i in range(n):
                f[i] += factor * fields[j, i] * seen[j, i]
        for i in range(n):
            decay = np.exp(-abs(f[i]))
            sigma = (1.0 if f[i] >= 0.0 else decay) / (1.0 + decay)
            slope[i] = ((0.5 if rule.tangent else sigma) - targets[i]) / n
            mean_loss += max(f[i], 0.0) + np.log1p(decay) - targets[i] * f[i]
        for j in range(m):
            for i in range(n):
                pushes[j, i] = slope[i] * seen[j, i]
        gradient = np.dot(pushes, X)
        for j in range(m):
            movement[j] -= rule.rate * signs[j] * scale * gradient[j]
            length = np.sqrt(np.sum(movement[j] ** 2))
            if length > edge:
                movement[j] *= edge / length
    return movement, mean_loss / (n * rule.steps)
