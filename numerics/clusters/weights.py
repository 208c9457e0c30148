"""The law of trained weights on clusters over training sets, and of their logits on given inputs.

Given their fields, which are Gaussian, the weights of all stages are linear in these (:mod:`numerics.clusters.prior`).  Weights are
those on the inputs, ``A^T w`` for a stage with a map A: ``h = w.x/sqrt(p) + b`` with x as measured.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from numerics.clusters.solution import ClusterSolution
from numerics.models import ParameterError
from numerics.solution.weight_law import LogitMoments, WeightLaw

Array = NDArray[np.float64]


def law_of_weights(solution: ClusterSolution, stage: int) -> WeightLaw:
    """Mean and covariance of the weights of a stage.

    Parameters
    ----------
    solution : ClusterSolution
    stage : int
        From 0.

    Raises
    ------
    ParameterError
        For a stage that is not solved.

    Examples
    --------
    >>> from numerics import Clusters, Estimator, solve
    >>> from theory.losses import CrossEntropy
    >>> means, covariances = np.array([[1.0, 0.5], [-1.0, 0.0]]), np.array([np.diag([1.0, 2.0]), np.eye(2)])
    >>> solution = solve(Clusters(3.0, means, covariances, [1, -1]), Estimator(CrossEntropy(), ridge=0.1))
    >>> mean, spread = law_of_weights(solution, 0)
    >>> bool(np.abs(means @ mean / 2**0.5 - solution.means[0]).max() < 1e-7)
    True
    >>> seen = [(mean @ one @ mean + np.trace(one @ spread)) / 2 for one in covariances]
    >>> bool(np.abs(seen - solution.cluster_overlaps[0, 0]).max() < 1e-7)
    True
    """
    mean, _, covariance = solution.walk.prior.law(_known(solution, stage), stage)
    return WeightLaw(mean, 0.5 * (covariance + covariance.T))


def covariance_of_weights(solution: ClusterSolution, stage: int, other: int) -> Array:
    """Covariance of the weights of two stages over training sets, shape (p, p), rows those of the first; arguments as above."""
    return solution.walk.prior.law(_known(solution, stage), _known(solution, other))[2]


def logits_on(solution: ClusterSolution, stage: int, inputs: Array) -> LogitMoments:
    """Law over training sets of the logits of a stage on given inputs, shape (n, p), as measured; the rest as above."""
    x = np.asarray(inputs, dtype=float)
    if x.ndim != 2 or x.shape[1] != solution.data.size:
        raise ParameterError(f"inputs must have shape (n, {solution.data.size}), got {x.shape}")
    mean, covariance = law_of_weights(solution, stage)
    variance = np.einsum("ij,ij->i", x @ covariance, x) / solution.data.size
    return LogitMoments(x @ mean / math.sqrt(solution.data.size) + solution.bias[stage], np.maximum(variance, 0.0))


def _known(solution: ClusterSolution, stage: int) -> int:
    """The stage; ParameterError if it is not solved."""
    most = solution.walk.prior.stages - 1
    if not 0 <= stage <= most:
        raise ParameterError(f"stage must be one that is solved, from 0 to {most}, got {stage!r}")
    return stage
