"""A network of three hidden ReLU layers in plain NumPy, trained by Adam on all samples at once: the control beside two layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from numerics.models import ParameterError
from numerics.neurons.two_layer import soft_targets

HIDDEN_LAYERS = 3
_MEANS, _SMALL = (0.9, 0.999), 1e-8  # Adam's (Kingma and Ba, 2015)


@dataclass(frozen=True)
class DeepRule:
    """Step size and steps of Adam."""

    rate: float
    steps: int

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("steps", self.steps)):
            if not value > 0:
                raise ParameterError(f"{name} must be positive, got {value!r}")


Layers = list[np.ndarray]
"""Matrices of shape (inputs + 1, outputs), the last row is the bias."""


def random_layers(d: int, width: int, generator: np.random.Generator) -> Layers:
    """Three hidden layers and an output, weights of variance 2/inputs (He et al., 2015), biases 0."""
    sizes = [d, *[width] * HIDDEN_LAYERS, 1]
    return [
        np.vstack([generator.standard_normal((a, b)) * np.sqrt(2.0 / a), np.zeros((1, b))]) for a, b in pairwise(sizes)
    ]


def forward(X: np.ndarray, layers: Layers) -> tuple[np.ndarray, list[np.ndarray]]:
    """Output, shape (n,), and what enters each layer."""
    entering = []
    h = X
    for k, layer in enumerate(layers):
        entering.append(h)
        h = h @ layer[:-1] + layer[-1]
        if k < len(layers) - 1:
            h = np.maximum(h, 0.0)
    return h[:, 0], entering


def gradient(X: np.ndarray, targets: np.ndarray, layers: Layers) -> Layers:
    """Of the cross-entropy with ``targets``, averaged over samples."""
    f, entering = forward(X, layers)
    push = ((soft_targets(f) - targets) / len(targets))[:, None]
    found: Layers = []
    for h, layer in zip(entering[::-1], layers[::-1], strict=True):
        found.append(np.vstack([h.T @ push, push.sum(axis=0)]))
        push = (push @ layer[:-1].T) * (h > 0)
    return found[::-1]


def train_deep(X: np.ndarray, targets: np.ndarray, layers: Layers, rule: DeepRule) -> Layers:
    """Layers after all steps of Adam, from ``layers``, which stay as they are."""
    layers = [layer.copy() for layer in layers]
    first, second = [np.zeros_like(layer) for layer in layers], [np.zeros_like(layer) for layer in layers]
    for step in range(1, rule.steps + 1):
        corrections = [1.0 - mean**step for mean in _MEANS]
        for layer, g, a, b in zip(layers, gradient(X, targets, layers), first, second, strict=True):
            a += (1.0 - _MEANS[0]) * (g - a)
            b += (1.0 - _MEANS[1]) * (g**2 - b)
            layer -= rule.rate * (a / corrections[0]) / (np.sqrt(b / corrections[1]) + _SMALL)
    return layers
