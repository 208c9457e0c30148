"""The optimal teacher of Figure 4 of Saglietti and Zdeborova, as a frozen stage whose order parameters move with alpha.

It has m = 1, Q = 1 + Delta/alpha and the bias ``b = (Delta Q/2) log(rho/(1 - rho))`` of the Bayes-optimal classifier, but is
independent of the student's samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray

from figures.build import Prediction, Simulation
from numerics.codegen import observables
from numerics.models import Chain, Frozen, GaussianMixture


def optimal_teacher(data: GaussianMixture) -> Frozen:
    """Order parameters of the Bayes-optimal classifier of as many samples as ``data`` has, on others."""
    norm_squared = 1.0 + data.delta / data.alpha
    bias = float(observables.bayes_bias()(norm_squared, data.delta, data.rho))
    return Frozen(1.0, norm_squared, bias, name="teacher")


@dataclass(frozen=True)
class FrozenTeacher(Simulation):
    """Finite systems whose first stage is the optimal teacher at every point; the chain's own first stage is not used."""

    def problem(self, index: Sequence[int]) -> tuple[GaussianMixture, Chain]:
        """What is simulated at one point."""
        data, chain = super().problem(index)
        return data, Chain.of([optimal_teacher(data), *chain.stages[1:]])


@dataclass(frozen=True)
class FrozenTeacherCurve(FrozenTeacher):
    """The same in theory."""

    simulated: ClassVar[bool] = False

    def tasks(self) -> list[Callable[[], np.ndarray]]:
        return Prediction(self).tasks()

    def join(self, pieces: Sequence[np.ndarray]) -> xarray.Dataset:
        return Prediction(self).join(pieces)
