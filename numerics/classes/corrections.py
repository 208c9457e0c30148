"""What a stage decides after a correction of its biases: for students whose samples had other class weights than the test has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from numerics.classes.population import ClassPopulation
from numerics.classes.solution import ClassStage
from numerics.models import ParameterError, helmert

Array = NDArray[np.float64]

STEP = 1e-4
"""Of the differences that are the slope of an error; errors are smooth, but for their rounding of about 1e-12."""

STARTS = (0.0, 1.0)
"""Shares of the correction by the means that the search begins at."""


@dataclass(frozen=True)
class BiasCorrection:
    """Biases that are best for decisions.

    Attributes
    ----------
    shift : array, shape (K,)
        What is added to the logits; its sum is 0.
    test_error : float
        With it, on the test population.
    class_errors : array, shape (K,)
        The same class by class.
    """

    shift: Array
    test_error: float
    class_errors: Array


def best_bias(stage: ClassStage) -> BiasCorrection:
    """Shift of the biases of a solved stage for which the test error is least.

    Hinton, Vinyals and Dean raise the bias of a digit that was missing from the transfer set until the test error is least; here
    all biases are free, and the error is that of the limit of large N.

    Raises
    ------
    ParameterError
        For a stage that is not one of K classes, or is not solved.

    Examples
    --------
    >>> from numerics import ClassMixture, ClassSet, Estimator, orthogonal_means, solve
    >>> from theory.losses import CrossEntropy, Distillation
    >>> transfer = ClassSet("transfer", alpha=2.0, weights=[0.5, 0.5, 0.0])  # the last class is never seen by the student
    >>> data = ClassMixture(alpha=4.0, gram=orthogonal_means(3), delta=0.25, further=[transfer])
    >>> chain = [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(temperature=2.0), ridge=0.1, sets="transfer")]
    >>> student = solve(data, chain)[1]
    >>> found = best_bias(student)
    >>> student.class_errors.round(2), round(student.test_error, 3), round(found.test_error, 3)
    (array([0.1 , 0.1 , 0.96]), 0.387, 0.203)
    """
    if not isinstance(stage, ClassStage):
        raise ParameterError(f"stage must be one of a solution on a ClassMixture, got {stage!r}")
    if not stage.known:
        raise ParameterError(f"stage {stage.name} is not solved: {stage.solution.message}")
    fresh, basis = stage.fresh, helmert(stage.data.classes_count)
    last = fresh.stages - 1

    def shifted(u: Array) -> ClassPopulation:
        return ClassPopulation(fresh.data, fresh.means[last:] + u @ basis, fresh.blocks[last:, last:], fresh.scramble)

    def error(u: Array) -> float:
        return shifted(u).test_error(0)

    def slope(u: Array) -> Array:
        steps = STEP * np.eye(len(u))
        return np.array([(error(u + step) - error(u - step)) / (2.0 * STEP) for step in steps])

    # Without it, and where every class's logit is as far above the others as those of the others are; logits sum to 0.
    even = -basis @ np.diag(fresh.means[last])
    found = [minimize(error, share * even, jac=slope, method="BFGS", options={"gtol": 1e-8}) for share in STARTS]
    best = min(found, key=lambda result: result.fun).x
    law = shifted(best)
    return BiasCorrection(best @ basis, law.test_error(0), law.class_errors(0))
