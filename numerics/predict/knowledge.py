"""Levels of a teacher's knowledge on measured samples: what each brings, predicted and by real fits.

Students are those of :mod:`numerics.anatomy.levels`, who know more and more of what their teacher says.  Constants of their losses,
means of the teacher's outputs, are those of the mixture that theory solves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from numerics.anatomy.levels import LADDER, Question, constants_of, gains
from numerics.models import Chain, Measured, Stage
from numerics.predict.fits import measure
from numerics.predict.margins import Prediction, predict
from numerics.settings import DEFAULT
from numerics.simulation.result import Estimate, estimate

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MeasuredLevels:
    """Students of a teacher on measured samples.

    Attributes
    ----------
    predictions : mapping of name to Prediction
        Of the chain with each student of :data:`numerics.anatomy.levels.LADDER` as its last stage.
    fits : mapping of name to Estimate
        Test errors of the same students, all trained on the same subsamples; empty if there were none.
    """

    predictions: dict[str, Prediction]
    fits: dict[str, Estimate]

    @property
    def errors(self) -> dict[str, float]:
        """Predicted test errors of the students."""
        return {name: float(found.test_error[-1]) for name, found in self.predictions.items()}

    @cached_property
    def gains(self) -> dict[str, Estimate]:
        """What each level gains, predicted: over all samples, with the scatter of the folds as its error."""
        folds = gains({name: found.fold_errors[:, -1] for name, found in self.predictions.items()})
        whole = gains(self.errors)
        return {name: replace(estimate(values), mean=whole[name]) for name, values in folds.items()}

    @cached_property
    def measured_gains(self) -> dict[str, Estimate]:
        """The same of the fits, whose subsamples all students share."""
        if not self.fits:
            return {}
        return {name: estimate(values) for name, values in gains({n: e.values for n, e in self.fits.items()}).items()}

    def to_dict(self) -> dict[str, object]:
        """Plain numbers."""

        def plain(found: dict[str, Estimate]) -> dict[str, dict[str, float]]:
            return {name: {"mean": e.mean, "standard_error": e.standard_error} for name, e in found.items()}

        return {
            "errors": self.errors, "gains": plain(self.gains), "fits": plain(self.fits),
            "measured_gains": plain(self.measured_gains),
        }  # fmt: skip


def levels_on(
    data: Measured, chain: Chain | Stage | Sequence[Stage], n_fits: int = 0, seed: int = 0, *, n_jobs: int = 1
) -> MeasuredLevels:
    """Take the last stage of a chain apart.

    Parameters
    ----------
    data, chain
        As of :func:`numerics.predict.predict`; the last stage learns by ``Distillation`` from one teacher.
    n_fits, seed, n_jobs
        Real fits beside, as of :func:`numerics.predict.measure`.

    Raises
    ------
    ParameterError
        As of :func:`numerics.predict.predict`, and if the last stage cannot be taken apart.

    Examples
    --------
    >>> from numerics import Estimator
    >>> from theory.losses import CrossEntropy, Distillation
    >>> generator = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 200)
    >>> X = generator.standard_normal((400, 10)) + 0.5 * y[:, None]
    >>> student = Estimator(Distillation(temperature=3.0), 0.01)
    >>> found = levels_on(Measured(X, y).at(60), [Estimator(CrossEntropy(), 1.0), student])
    >>> {name: round(gain.mean, 3) for name, gain in found.gains.items()}
    {'scale': 0.006, 'universe': -0.0, 'domain': 0.0, 'instance': 0.015, 'total': 0.021}
    """
    question = Question.of(data, chain)
    losses = question.losses(constants_of(question, DEFAULT)[1])
    predictions = {name: predict(data, question.with_loss(losses[name])) for name in LADDER}
    if not n_fits:
        return MeasuredLevels(predictions, {})
    number = len(question.chain)
    others = [
        replace(question.student, loss=losses[name], name=f"{question.name}_{name}") for name in LADDER[:-1]
    ]  # fmt: skip
    runs = measure(
        data.X, data.y, data, Chain((*question.chain.stages, *others)), n_fits, seed, n_jobs=n_jobs
    )  # fmt: skip
    place = {name: number + k for k, name in enumerate(LADDER[:-1])} | {LADDER[-1]: number - 1}
    return MeasuredLevels(predictions, {name: estimate(runs.runs["test_error"][:, place[name]]) for name in LADDER})
