"""Averages over the training samples of a chain that :mod:`numerics.square_chain` solved.

Given class and label, the training logits of all stages are jointly Gaussian: errors are normal tails, losses and squared distances
sums, and what is curved in the logits an integral over one or two of them.  Differences between stages are formed before they are
squared, so that stages that hardly differ keep their relative accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
import sympy
from numpy.typing import NDArray

from numerics.deferred import special
from numerics.solution.population import gaussian_mean, output_difference
from numerics.square_chain.spectral import SpectralStages
from theory.functions import MPMATH
from theory.losses import Loss
from theory.quadratic import least_value
from theory.symbols import h as own_logit

Array = NDArray[np.float64]

ROUNDING = 1e-13
"""Relative error of what needs no integration: that of the order parameters."""


class SquareTraining:
    """Law of class, label and training logits of all stages.

    Every average is returned with its error estimate.

    Parameters
    ----------
    stages : SpectralStages

    Attributes
    ----------
    classes, labels, probability : arrays, shape (4,)
        Signs of class and label, and how often they come.
    """

    def __init__(self, stages: SpectralStages) -> None:
        self.stages = stages
        rho, theta = stages.chain.rho, stages.chain.label_noise
        self.classes = np.array([1.0, 1.0, -1.0, -1.0])
        self.labels = np.array([1.0, -1.0, -1.0, 1.0])
        self.probability = np.array(
            [rho * (1 - theta), rho * theta, (1 - rho) * (1 - theta), (1 - rho) * theta]
        )  # fmt: skip

    @cached_property
    def means(self) -> Array:
        """Mean logits given class and label, shape (T, 4)."""
        return self.stages.logit_means() @ np.vstack((np.ones(4), self.labels, self.classes))

    @cached_property
    def fluctuations(self) -> Array:
        """Rows whose inner products are the covariances of the logits given class and label."""
        return self.stages.logit_fluctuations()

    @cached_property
    def squared_forces(self) -> Array:
        """E[f_t^2], shape (T,)."""
        return np.sum(self.stages.forces() ** 2, axis=1) / self.stages.chain.alpha

    def error(self, t: int, *, clean: bool = False) -> tuple[float, float]:
        """P(h_t on the wrong side of 0) by the label that was trained on, or by the class; stages are counted from 0."""
        signs = self.classes if clean else self.labels
        width = float(np.linalg.norm(self.fluctuations[t]))
        distance = signs * self.means[t]
        if width == 0.0:
            tails = np.where(distance > 0.0, 0.0, np.where(distance < 0.0, 1.0, 0.5))
        else:
            tails = special.ndtr(-distance / width)
        value = float(self.probability @ tails)
        return value, ROUNDING * value

    def loss(self, t: int, loss: Loss, seen: tuple[int, ...]) -> tuple[float, float]:
        """E[l_t]: half the squared force over the curvature, and what no logit can change.

        ``seen`` are the stages, counted from 1, that the loss looks at.
        """
        curvature = float(self.stages.chain.curvature[t])
        squared = 0.5 * float(self.squared_forces[t]) / curvature if curvature > 0 else 0.0
        rest = self._least(t, loss, seen)
        return squared + rest, ROUNDING * (squared + abs(rest))

    def _least(self, t: int, loss: Loss, seen: tuple[int, ...]) -> float:
        """Average of what is of second degree in t's logit and those seen: exact over 2d points at distance sqrt(d)."""
        if not any(least_value(loss.expression)):
            return 0.0
        functions = _least_functions(loss.expression, loss.logits, loss.symbols)
        stages = [t, *(number - 1 for number in seen)]
        directions = np.linalg.qr(self.fluctuations[stages].T, mode="r").T * math.sqrt(len(stages))
        steps = np.concatenate((directions, -directions), axis=1)
        total = 0.0
        for group, probability in enumerate(self.probability):
            function = functions[int(self.labels[group] > 0)]
            points = (self.means[stages, group][:, None] + steps).T
            total += probability * float(np.mean([float(function(*point, *loss.values)) for point in points]))
        return total

    def cross_entropy(self, t: int) -> tuple[float, float]:
        """E[H(y, sigmoid(h_t))]."""
        width = float(np.linalg.norm(self.fluctuations[t]))
        value = error = 0.0
        for mean, sign, probability in zip(self.means[t], self.labels, self.probability, strict=True):
            if probability > 0.0:
                found, uncertain = gaussian_mean(
                    lambda points, sign=sign: np.logaddexp(0.0, -sign * points[0]),
                    np.array([mean]),
                    np.array([[width**2]]),
                )
                value += probability * found
                error += probability * uncertain
        return value, error

    def logit_distance(self, t: int, teachers: Sequence[int]) -> tuple[float, float]:
        """E[(h_t - h)^2], h the mean logit of some other stages."""
        apart = self.means[t] - self.means[teachers].mean(axis=0)
        rest = self.fluctuations[t] - self.fluctuations[teachers].mean(axis=0)
        value = float(self.probability @ apart**2 + rest @ rest)
        return value, ROUNDING * value

    def output_distance(self, t: int, teachers: Sequence[int]) -> tuple[float, float]:
        """E[(sigmoid(h_t) - sigmoid(h))^2], h the mean logit of some other stages."""
        scale = self.logit_distance(t, teachers)[0]
        mean, row = self.means[teachers].mean(axis=0), self.fluctuations[teachers].mean(axis=0)
        if scale == 0.0:
            return 0.0, 0.0
        rows = np.array([row, self.fluctuations[t] - row])
        lower = np.linalg.qr(rows.T, mode="r").T
        value = error = 0.0
        for group, probability in enumerate(self.probability):
            centre = np.array([mean[group], self.means[t, group] - mean[group]])

            def squared(points: Array, centre: Array = centre) -> Array:
                logit, apart = centre[:, None] + lower @ points
                return output_difference(logit, apart) ** 2 / scale

            if probability > 0.0:
                found, uncertain = gaussian_mean(squared, np.zeros(2), np.eye(2))
                value += probability * scale * found
                error += probability * scale * uncertain
        return value, error

    def objective(self, t: int, loss: Loss, seen: tuple[int, ...], norm_squared: float) -> tuple[float, float]:
        """alpha E[l_t] + (ridge/2) Q_tt, the minimised training objective per input."""
        chain = self.stages.chain
        value, error = self.loss(t, loss, seen)
        return chain.alpha * value + 0.5 * chain.ridge[t] * norm_squared, chain.alpha * error


@lru_cache(maxsize=256)
def _least_functions(expression: sympy.Expr, logits: tuple[sympy.Symbol, ...], symbols: tuple[sympy.Symbol, ...]):
    arguments = (own_logit, *logits, *symbols)
    return [sympy.lambdify(arguments, part, modules=[MPMATH, "mpmath"]) for part in least_value(expression)]
