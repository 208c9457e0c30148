"""A stage as observables read it, whoever found its weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from numerics.models import TRAINING, Chain, DataModel, Estimator, Frozen
from numerics.solution.observables.registry import Observable
from numerics.solution.population import Population
from numerics.solution.quadrature import Integral
from numerics.solution.samples import WeightedSamples, unit

Array = NDArray[np.float64]

NOTHING = Integral(math.nan, math.nan)


class StageWeights(ABC):
    """What a formula of order parameters reads of a stage: of one, or of one at many points at once.

    Attributes
    ----------
    data : DataModel
    chain : Chain
        That is solved or trained: the rule of the data, if there is one, is its first stage.
    number : int
        From 1.
    fresh : Population
        Law of the logits of the stages up to this one on fresh samples.
    """

    data: DataModel
    chain: Chain
    number: int

    @property
    @abstractmethod
    def fresh(self) -> Population: ...

    @property
    @abstractmethod
    def response_to_field(self) -> Array | float:
        """V_tt; NaN if it was not measured."""

    @cached_property
    def own(self) -> Array:
        """The row that picks this stage out of the logits of those up to it."""
        return unit(self.number, self.number)

    @property
    def teachers(self) -> tuple[int, ...]:
        """The stages it is compared with, see :meth:`numerics.models.Chain.teachers`; none for the first stage."""
        return self.chain.teachers(self.number)

    @cached_property
    def teacher(self) -> Array | None:
        """The row that gives the mean logit of the teachers; None for the first stage."""
        if not self.teachers:
            return None
        return np.mean([unit(self.number, k) for k in self.teachers], axis=0)

    def pair(self, other: Array) -> Population:
        """Fresh logits of this stage (0) and of a combination of the stages up to it (1)."""
        return self.fresh.combined(np.array([self.own, other]))

    @abstractmethod
    def find(self, observable: Observable) -> Integral:
        """Value of an observable and the error of its own integration."""


class AnyStage(StageWeights):
    """One stage of a chain, solved or trained.

    Attributes
    ----------
    estimator : Estimator or Frozen
        The stage, a Hebbian or Bayes-optimal one as the Estimator that it is on these data.
    samples : WeightedSamples
        Law of the logits on the samples that it was trained on (for given weights those of the first data set).
    """

    @property
    @abstractmethod
    def estimator(self) -> Estimator | Frozen: ...

    @property
    @abstractmethod
    def samples(self) -> WeightedSamples: ...

    @property
    @abstractmethod
    def objective(self) -> Integral:
        """The minimised training objective per input."""

    @property
    def trained(self) -> bool:
        """Whether a loss was minimised."""
        return not self.estimator.given

    @property
    def sets(self) -> tuple[str, ...]:
        """Data sets that training averages are over."""
        return self.estimator.sets or (TRAINING,)

    @property
    def has_noise(self) -> bool:
        """Whether labels of its samples are flipped."""
        return any(self.data.data_set(name).label_noise for name in self.sets)
