"""Ridges, mixing and temperature of least predicted error, and those of least error in cross-validation with real fits.

Both look at the same candidates, points of a Sobol sequence in the box that is searched; the prediction then goes on downhill from
the best of them (Nelder and Mead), where a further point costs little.  A choice is for a training set of all n samples: ridges are
those for n samples, and fewer samples are trained with the same ridge a sample.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from numerics.models import (
    Chain,
    ConvergenceWarning,
    Measured,
    Stage,
    require_count,
)
from numerics.models.measured import folds_of
from numerics.predict.box import Box
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


def _choice(
    method: str, box: Box, data: Measured, points: Sequence[Array], errors: Sequence[float], begin: float
) -> Choice:
    """The best of the points."""
    if not np.isfinite(errors).any():
        raise ArithmeticError("no saddle point converged in the range of the search")
    best = points[int(np.nanargmin(errors))]
    values = dict(zip(box.paths, box.values(best).tolist(), strict=True))
    return Choice(
        method, values, float(np.nanmin(errors)), box.at(data, best), np.array([box.values(point) for point in points]),
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
    box = Box(data, chain, over, stage)
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
    return _choice("prediction", box, data, points, errors, begin)


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
    box = Box(data, chain, over, stage)
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
    return _choice("cross-validation", box, data, points, errors, begin)
