"""Averages over the training samples of a chain that :mod:`numerics.square_chain` solved.

Given class and label, or with real labels, the training logits of all stages are jointly Gaussian: errors are normal tails, losses
and squared distances sums, and what is curved in the logits an integral over one or two of them.  Differences between stages are
formed before they are squared, so that stages that hardly differ keep their relative accuracy.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import sympy
from numpy.typing import NDArray

from numerics.solution.gaussian import QUADRATURE_TOLERANCE
from numerics.solution.quadrature import Integral
from numerics.solution.samples import GaussianLogits
from numerics.square_chain.spectral import SpectralStages
from theory.functions import MPMATH
from theory.losses import Loss
from theory.quadratic import least_value
from theory.symbols import h as own_logit

Array = NDArray[np.float64]

ROUNDING = 1e-13
"""Relative error of what needs no integration: that of the order parameters."""


class SquareTraining:
    """Law of class, label and training logits of all stages, found once for all of them."""

    def __init__(self, found: SpectralStages) -> None:
        self.chain = found.chain
        self.share, self.labels, self.signs = np.array(found.chain.groups).T
        e = np.zeros(1) if self.chain.real_labels else 2.0 * self.labels - 1.0  # on average over a group
        self.means = found.logit_means() @ np.vstack((np.ones(self.share.size), e, self.signs))
        self.fluctuations = found.logit_fluctuations()
        self.squared_forces = np.sum(found.forces() ** 2, axis=1) / found.chain.alpha


class SquareSamples(GaussianLogits):
    """Training samples of one stage: class, label, and the training logits of the stages up to it.

    Parameters
    ----------
    law : SquareTraining
    number : int
        The stage, from 1.
    """

    def __init__(self, law: SquareTraining, number: int) -> None:
        means, factor = law.means[:number], law.fluctuations[:number]
        super().__init__(law.share, law.labels, law.signs, means, factor, QUADRATURE_TOLERANCE, ROUNDING)
        self.chain, self.squared_force = law.chain, float(law.squared_forces[number - 1])

    def loss(self, loss: Loss) -> Integral:
        """Average of a loss; of a quadratic one half the squared force over the curvature, and what no logit can change."""
        if not loss.is_quadratic:
            return super().loss(loss)
        curvature = float(self.chain.curvature[self.stages - 1])
        squared = 0.5 * self.squared_force / curvature if curvature > 0 else 0.0
        rest = self._least(loss)
        return Integral(squared + rest, ROUNDING * (squared + abs(rest)))

    def _least(self, loss: Loss) -> float:
        """Average of what is of second degree in this stage's logit and those seen: exact over 2d points at distance sqrt(d)."""
        if not any(least_value(loss.expression)):
            return 0.0
        functions = _least_functions(loss.expression, loss.logits, loss.symbols)
        stages = [number - 1 for number in (self.stages, *loss.stages(self.stages))]
        directions = np.linalg.qr(self.factor_of(0, stages).T, mode="r").T * math.sqrt(len(stages))
        steps = np.concatenate((directions, -directions), axis=1)
        total = 0.0
        for group, probability in enumerate(self.weight):
            function = functions[int(self.labels[group])]
            points = (self.means[stages, group][:, None] + steps).T
            total += probability * float(np.mean([float(function(*point, *loss.values)) for point in points]))
        return total

    def objective(self, loss: Loss, norm_squared: float) -> Integral:
        """alpha E[l] + (ridge/2) Q, the minimised training objective per input."""
        ridge = float(self.chain.ridge[self.stages - 1])
        return self.chain.alpha * self.loss(loss) + 0.5 * ridge * float(norm_squared)


@lru_cache(maxsize=256)
def _least_functions(expression: sympy.Expr, logits: tuple[sympy.Symbol, ...], symbols: tuple[sympy.Symbol, ...]):
    arguments = (own_logit, *logits, *symbols)
    return [sympy.lambdify(arguments, part, modules=[MPMATH, "mpmath"]) for part in least_value(expression)]
