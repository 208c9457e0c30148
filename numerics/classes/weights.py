"""The law of the weights of a stage on K classes, given the class means: what training sets have in common, and how they differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numerics.classes.solution import ClassSolution
from numerics.models import ParameterError, SharedCovariance

Array = NDArray[np.float64]


def law_of_weights(solution: ClassSolution, number: int) -> tuple[Array, Array]:
    """Mean and covariance of the weights of stage ``number`` on each coordinate of a :class:`numerics.SharedCovariance`.

    On coordinate i, ``w = a_i mu_i + sum_s G_is xi_s`` with ``E xi_r xi_s^T = lambda_i Qh_rs`` (:mod:`numerics.classes.prior`);
    coordinates are independent of one another.

    Parameters
    ----------
    solution : ClassSolution
        Whose stages see all coordinates.
    number : int
        From 1.

    Returns
    -------
    mean : array, shape (p, K)
        For N = p.
    covariance : array, shape (p, K, K)

    Raises
    ------
    ParameterError
        If the inputs are not a ``SharedCovariance``, a stage has a mask, or the stage is not solved.

    Examples
    --------
    >>> from numerics import ClassMixture, Estimator, solve
    >>> from theory.losses import CrossEntropy
    >>> inputs = SharedCovariance([2.0, 1.0, 0.5], np.eye(3))
    >>> solution = solve(ClassMixture(2.0, inputs=inputs), Estimator(CrossEntropy(), 0.1))
    >>> mean, covariance = law_of_weights(solution, 1)
    >>> squares = np.einsum("ik,il->ikl", mean, mean) + covariance
    >>> bool(abs(np.einsum("i,ikl->kl", inputs.variances, squares) / 3 - solution.overlap[0, 0]).max() < 1e-6)
    True
    """
    inputs = solution.data.inputs
    if not isinstance(inputs, SharedCovariance):
        raise ParameterError(f"inputs must be a SharedCovariance for a law of weights, got {inputs!r}")
    if any(stage.eta < 1.0 for stage in solution.chain.stages):
        raise ParameterError("eta of all stages must be 1 for a law of weights")
    if len(solution.points) < number:
        raise ParameterError(f"stage {number} is not solved: {solution.message}")
    basis, prior = solution.walk.basis, solution.walk.prior
    mean = np.einsum("idk,ki->id", prior.alignments[number - 1], np.array(inputs.means))
    covariance = prior.covariance_of_fields(number)
    return mean @ basis, basis.T @ covariance @ basis
