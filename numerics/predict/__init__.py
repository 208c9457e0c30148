"""Ridge, temperature and mixing for measured data, before anything is trained.

In reading order: ``margins`` (errors to be expected, from theory and held-out samples), ``fits`` (the same measured, by training),
``check`` (one beside the other, curves), ``choose`` (the best parameters, by prediction and by cross-validation), ``knowledge``
(levels of the teacher's knowledge), ``classes`` (K of them), ``reading`` (files), ``estimators`` (of scikit-learn).

Examples
--------
>>> import numpy as np
>>> from numerics import Estimator, Measured
>>> from theory.losses import CrossEntropy, Distillation
>>> generator = np.random.default_rng(0)
>>> y = np.repeat([0, 1], 200)
>>> X = generator.standard_normal((400, 10)) + 0.5 * y[:, None]
>>> data, chain = Measured(X, y).at(100), [Estimator(CrossEntropy(), 1.0), Estimator(Distillation(), 0.1)]
>>> predict(data, chain).test_error.round(3)
array([0.205, 0.204])
>>> measure(X, y, data, chain, n_runs=20).mean("test_error").round(3)
array([0.208, 0.208])
"""

from __future__ import annotations

from typing import Any

from numerics.predict.check import Check, check, learning_curves, reliability
from numerics.predict.choose import Choice, choose, cross_validate
from numerics.predict.classes import ClassPrediction, measure_classes, predict_classes
from numerics.predict.fits import measure
from numerics.predict.knowledge import MeasuredLevels, levels_on
from numerics.predict.margins import Prediction, predict

_ESTIMATORS = ("DistillationPredictor", "DistilledClassifier", "UntrustedError")  # they need scikit-learn

__all__ = [
    "Check", "Choice", "ClassPrediction", "DistillationPredictor", "DistilledClassifier", "MeasuredLevels", "Prediction",
    "UntrustedError", "check", "choose", "cross_validate", "learning_curves", "levels_on", "measure", "measure_classes", "predict",
    "predict_classes", "reliability",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from numerics.predict import estimators

    return getattr(estimators, name)
