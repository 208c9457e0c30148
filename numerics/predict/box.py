"""Ranges of parameters of the stages of a chain, and points in them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from numerics.models import Chain, Measured, ParameterError, check_fit, with_parameter
from numerics.optimize import LOGARITHMIC_RATIO

Array = NDArray[np.float64]


class Box:
    """Parameters of a chain as points of the unit cube, ridges and whatever else is positive over more than a factor 10 by their
    logarithm.

    Parameters
    ----------
    data, chain
        The problem.
    over : mapping of parameter name to (lower, upper)
    stage : str
        Whose error is looked at.

    Raises
    ------
    ParameterError
        For an unknown parameter or stage, or bounds that are not allowed.
    """

    def __init__(self, data: Measured, chain: Chain, over: Mapping[str, tuple[float, float]], stage: str) -> None:
        if not over:
            raise ParameterError("over must name at least one parameter")
        if stage not in chain.names:
            raise ParameterError(f"stage must be one of {', '.join(chain.names)}, got {stage!r}")
        self.chain, self.paths, self.place = chain, tuple(over), chain.names.index(stage)
        self._loss_keys: dict[int, dict[str, int]] = {}
        for k, path in enumerate(self.paths):
            owner, _, key = path.rpartition(".")
            t = chain.names.index(owner) if owner in chain.names else -1
            if (
                t >= 0
                and key in getattr(getattr(chain[t], "loss", None), "parameters", {})
                and not hasattr(chain[t], key)
            ):
                self._loss_keys.setdefault(t, {})[key] = k
        self._of_losses = {self.paths[k] for keys in self._loss_keys.values() for k in keys.values()}
        self.lower, self.upper, self.logarithmic = (np.empty(len(over)) for _ in range(3))
        for k, (path, bounds) in enumerate(over.items()):
            try:
                low, high = map(float, bounds)
            except (TypeError, ValueError):
                raise ParameterError(f"bounds of {path!r} must be two numbers, got {bounds!r}") from None
            if not low < high:
                raise ParameterError(f"bounds of {path!r} must be increasing, got {bounds!r}")
            if path in data.parameters:
                raise ParameterError(f"over must name parameters of stages, got {path!r}")
            for value in (low, high):
                check_fit(*with_parameter(data, chain, path, value))
            self.logarithmic[k] = low > 0 and high > LOGARITHMIC_RATIO * low
            self.lower[k], self.upper[k] = (math.log(v) if self.logarithmic[k] else v for v in (low, high))

    def values(self, unit: Array) -> Array:
        """Parameters at a point of the unit cube."""
        u = self.lower + (self.upper - self.lower) * np.clip(unit, 0.0, 1.0)
        return np.where(self.logarithmic > 0, np.exp(u), u)

    def at(self, data: Measured, unit: Array) -> Chain:
        """The chain there."""
        chain = self.chain
        for path, value in zip(self.paths, self.values(unit).tolist(), strict=True):
            if path not in self._of_losses:
                chain = with_parameter(data, chain, path, value)[1]
        stages = list(chain.stages)
        for t, keys in self._loss_keys.items():  # together: a loss is a formula, which takes its time to be made
            given = {key: self.values(unit)[k] for key, k in keys.items()}
            stages[t] = replace(stages[t], loss=stages[t].loss.with_parameters(**given))
        chain = Chain(tuple(stages))
        return chain

    def candidates(self, count: int, seed: int) -> Array:
        """Points of the unit cube, shape (count, parameters)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of counts that are no power of 2
            return qmc.Sobol(len(self.paths), seed=seed).random(count)
