"""Ridges, mixing and temperature of least predicted error, and those of least error in cross-validation with real fits.

Both look at the same candidates, points of a Sobol sequence in the box that is searched; the prediction then goes on downhill from
the best of them (Nelder and Mead), where a further point costs little.  A choice is for a training set of all n samples: ridges are
those for n samples, and fewer samples are trained with the same ridge a sample.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.stats import qmc

from numerics.models import (
    Chain,
    ConvergenceWarning,
    Measured,
    ParameterError,
    Stage,
    check_fit,
    require_count,
    with_parameter,
)
from numerics.models.measured import folds_of
from numerics.optimize import LOGARITHMIC_RATIO
from numerics.predict.fits import Trainer
from numerics.predict.margins import most_samples, predict, with_ridges

Array = NDArray[np.float64]

THEORY_SHARE = 0.7
"""Of all samples, in the training sets that are predicted for a choice."""

CANDIDATES = 64
"""Points of the search."""

REFINEMENTS = 40
"""Further points that a prediction takes on its way downhill."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Parameters of least error.

    Attributes
    ----------
    method : str
        "prediction" or "cross-validation".
    parameters : dict
        Of the best point.
    error : float
        Test error that was predicted, or measured, there.
    chain : Chain
        With these parameters, to be trained on all samples.
    points, errors : arrays, shapes (evaluations, parameters), (evaluations,)
        All that was looked at; NaN where a saddle point did not converge.
    seconds : float
        That the search took; what is done once a data set is part of it.
    """

    method: str
    parameters: dict[str, float]
    error: float
    chain: Chain
    points: Array
    errors: Array
    seconds: float

    @property
    def evaluations(self) -> int:
        """Points that were looked at."""
        return len(self.errors)


class _Box:
    """What is searched: unit cube to parameters."""

    def __init__(self, data: Measured, chain: Chain, over: Mapping[str, tuple[float, float]], stage: str) -> None:
        if not over:
            raise ParameterError("over must name at least one parameter")
        if stage not in chain.names:
            raise ParameterError(f"stage must be one of {', '.join(chain.names)}, got {stage!r}")
        self.chain, self.paths, self.place = chain, tuple(over), chain.names.index(stage)
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
        for path, value in zip(self.paths, self.values(unit), strict=True):
            chain = with_parameter(data, chain, path, float(value))[1]
        return chain

    def candidates(self, count: int, seed: int) -> Array:
        """Points of the unit cube, shape (count, parameters)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of counts that are no power of 2
            return qmc.Sobol(len(self.paths), seed=seed).random(count)

    def choice(
        self, method: str, data: Measured, points: Sequence[Array], errors: Sequence[float], begin: float
    ) -> Choice:
        """The best of the points."""
        if not np.isfinite(errors).any():
            raise ArithmeticError("no saddle point converged in the range of the search")
        best = points[int(np.nanargmin(errors))]
        values = dict(zip(self.paths, self.values(best).tolist(), strict=True))
        return Choice(
            method, values, float(np.nanmin(errors)), self.at(data, best), np.array([self.values(point) for point in points]),
            np.array(errors), time.perf_counter() - begin,
        )  # fmt: skip


def choose(
    data: Measured, chain: Chain | Stage | Sequence[Stage], over: Mapping[str, tuple[float, float]], stage: str = "student", *,
    candidates: int = CANDIDATES, refinements: int = REFINEMENTS, seed: int = 0,
) -> Choice:  # fmt: skip
    """Parameters of least predicted test error, for a training set of all samples.

    Errors are predicted for 0.7 n of the n samples, with the same ridges a sample: what is estimated from the samples cannot say
    more.

    Parameters
    ----------
    data : Measured
        Its alpha has no effect.
    chain : stage or sequence of stages
    over : mapping of parameter name to (lower, upper)
        As of :func:`numerics.optimize.optimize`.
    stage : str
        Whose error.
    candidates, refinements, seed : int
        Points of the search, further ones on the way downhill, and the seed of the former.

    Raises
    ------
    ParameterError
        For parameters or bounds that are not allowed.
    ArithmeticError
        If no saddle point converged.

    Examples
    --------
    >>> from numerics import Estimator
    >>> from theory.losses import CrossEntropy
    >>> generator = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 100)
    >>> X = generator.standard_normal((200, 20)) + 0.3 * y[:, None]
    >>> found = choose(Measured(X, y), Estimator(CrossEntropy(), 1.0), {"teacher.ridge": (1e-2, 1e3)}, "teacher")
    >>> 0.2 < found.error < 0.4, found.parameters["teacher.ridge"] > 1
    (True, True)
    """
    begin = time.perf_counter()
    chain = Chain.of(chain)
    box = _Box(data, chain, over, stage)
    candidates, refinements = require_count("candidates", candidates, 1), require_count("refinements", refinements, 0)
    size = min(round(THEORY_SHARE * data.samples.count), most_samples(data))
    asked, points, errors = data.at(size), [], []

    def error(unit: Array) -> float:
        inside = np.clip(unit, 0.0, 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = predict(asked, with_ridges(box.at(data, inside), size / data.samples.count))
        points.append(inside)
        errors.append(float(found.test_error[box.place]))
        return errors[-1] if found.converged else 1.0

    for unit in box.candidates(candidates, seed):
        error(unit)
    if refinements and np.isfinite(errors).any():
        start = points[int(np.nanargmin(errors))]
        simplex = np.vstack([start, start + np.where(start < 0.5, 0.15, -0.15) * np.eye(len(start))])
        options = {"initial_simplex": simplex, "maxfev": refinements, "xatol": 1e-3, "fatol": 1e-7}
        optimize.minimize(error, start, method="Nelder-Mead", options=options)
    return box.choice("prediction", data, points, errors, begin)


def cross_validate(
    data: Measured, chain: Chain | Stage | Sequence[Stage], over: Mapping[str, tuple[float, float]], stage: str = "student", *,
    candidates: int = CANDIDATES, seed: int = 0,
) -> Choice:  # fmt: skip
    """The same by real fits: each candidate is trained on all folds but one, and tested on that, as many times as there are folds.

    Parameters
    ----------
    data, chain, over, stage, candidates, seed
        As of :func:`choose`.

    Raises
    ------
    ParameterError
        For parameters or bounds that are not allowed.
    """
    begin = time.perf_counter()
    chain = Chain.of(chain)
    box = _Box(data, chain, over, stage)
    points = list(box.candidates(require_count("candidates", candidates, 1), seed))
    folds = folds_of(data.samples, data.folds, data.seed)
    everything, errors = np.arange(data.samples.count), []
    for unit in points:
        wrong = 0.0
        for fold in folds:
            rows = np.setdiff1d(everything, fold.held)
            trainer = Trainer(data.samples, data, with_ridges(box.at(data, unit), len(rows) / len(everything)))
            logits = trainer.logits(trainer.fit(rows)[1], fold.held)[:, box.place]
            wrong += float((data.samples.y[fold.held] * logits <= 0.0).sum())
        errors.append(wrong / len(everything))
    return box.choice("cross-validation", data, points, errors, begin)
