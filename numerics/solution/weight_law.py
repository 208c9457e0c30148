"""The law of trained weights over training sets, and of their logits on given inputs.

With F_t the field on the weights of stage t, ``w_t = G_tt (mh_t M_t + xi_t - sum_{s<t} Vh_ts Omega_ts w_s)``, where M_t is v as the
stage sees it, ``G_tt = (ridge + Vh_tt Omega_tt)^-1``, and the xi are Gaussian with ``E[xi_t xi_s^T] = Qh_ts Omega_ts``: given v,
the weights of all stages are jointly Gaussian (see :mod:`numerics.scalar.kernels.dense`).  Here this is read from the end: the
logit of an input x is ``w_t.z`` with z what the stage sees of it, and what multiplies the sources of stage k in it is

    c_t = G_tt z,    c_k = - G_kk sum_{k<r<=t} Vh_rk Omega_kr c_r,

so that its mean is ``sum_k mh_k c_k.M_k`` and its variance ``sum_kl Qh_kl c_k.Omega_kl c_l``: products of matrices with vectors,
and none of matrices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numerics.models import Dense, GaussianMixture, ParameterError, Seen
from numerics.scalar.dense import Eigenbases, Maps, eigenbases, scale_of
from numerics.scalar.kernels.layout import NO_RIDGE
from numerics.scalar.points import MAX_MARGIN, StagePoint, effective_ridge
from numerics.solution.solution import Solution

Array = NDArray[np.float64]


class WeightLaw(NamedTuple):
    """Gaussian law of the weights of a stage over training sets, in input coordinates.

    Attributes
    ----------
    mean : array, shape (p,)
        ``E[A^T w]``; A is the map of the stage, the identity if it has none.  Of a stage with
        :class:`numerics.models.FixedFeatures` ``E[w]``, shape (p_t,).
    covariance : array, shape (p, p)
    """

    mean: Array
    covariance: Array


class LogitMoments(NamedTuple):
    """Mean and variance over training sets of the logit of each input, both of shape (n,)."""

    mean: Array
    variance: Array


class SeenInputs(NamedTuple):
    """What stages see of some inputs, in their bases: what a law of logits costs most, if it is asked for at many parameters.

    Attributes
    ----------
    inputs : Dense
    maps : tuple of Seen or None
        Of the stages.
    rows : list of arrays, shapes (n, p_t)
    variance : float
        Delta; 1 where all maps are linear.
    """

    inputs: Dense
    maps: Maps
    rows: list[Array]
    variance: float = 1.0

    @classmethod
    def of(cls, inputs: Dense, maps: Maps, x: Array, variance: float = 1.0) -> SeenInputs:
        """Of x, shape (n, p), not divided by sqrt(N), measured from the midpoint of the classes."""
        scale = scale_of(maps, variance)
        bases = eigenbases(inputs, maps, scale)
        found: dict[Seen | None, Array] = {}
        for seen, vectors, response in zip(maps, bases.vectors, bases.responses, strict=True):
            if seen not in found:
                found[seen] = x @ response.T if vectors is None else seen.of(x, inputs, scale) @ vectors
        return cls(inputs, maps, [found[seen] for seen in maps], scale)

    @classmethod
    def single(cls, inputs: Dense, maps: Maps, variance: float) -> SeenInputs:
        """What is there if one input alone is 1, or one feature of stages whose features are not linear in the inputs."""
        found = cls.of(inputs, maps, np.eye(inputs.size), variance)
        bases = eigenbases(inputs, maps, found.variance)
        rows = [found.rows[t] if vectors is None else vectors for t, vectors in enumerate(bases.vectors)]
        return found._replace(rows=rows)


def law_of_weights(solution: Solution, stage: int) -> WeightLaw:
    """Mean and covariance of the weights of a stage over training sets, on inputs whose classes share a covariance.

    Parameters
    ----------
    solution : Solution
        On a mixture of :class:`numerics.models.Dense` inputs with a direction.
    stage : int
        From 0.

    Raises
    ------
    ParameterError
        For other data, or a stage that is not solved.

    Examples
    --------
    >>> from numerics import Dense, Estimator, GaussianMixture, solve
    >>> from theory.losses import CrossEntropy
    >>> v, covariance = np.array([1.0, 0.5]), np.diag([1.0, 2.0])
    >>> data = GaussianMixture(alpha=3.0, inputs=Dense(covariance, v))
    >>> solution = solve(data, Estimator(CrossEntropy(), ridge=0.1))
    >>> mean, spread = law_of_weights(solution, 0)
    >>> bool(abs(mean @ v / 2 - solution[0].magnetization) < 1e-7)
    True
    >>> bool(abs((mean @ covariance @ mean + np.trace(covariance @ spread)) / 2 - solution.overlap[0, 0]) < 1e-7)
    True
    """
    inputs = _require_known(solution, stage)
    sources = _sources(solution, stage, SeenInputs.single(inputs, _maps(solution), solution.data.variance))
    mean, covariance = _moments(solution, stage, sources, whole=True)
    return WeightLaw(mean, 0.5 * (covariance + covariance.T))


def logits_on(solution: Solution, stage: int, inputs: Array | SeenInputs) -> LogitMoments:
    """Law over training sets of the logits of a stage on given inputs, measured from the midpoint of the classes.

    Parameters
    ----------
    solution, stage
        As of :func:`law_of_weights`.
    inputs : array, shape (n, p), or SeenInputs
        Not divided by sqrt(N).

    Raises
    ------
    ParameterError
        As of :func:`law_of_weights`.
    """
    dense, maps = _require_known(solution, stage), _maps(solution)
    size = dense.size
    if not isinstance(inputs, SeenInputs):
        inputs = SeenInputs.of(dense, maps, np.asarray(inputs, dtype=float), solution.data.variance)
    elif (inputs.inputs, inputs.maps, inputs.variance) != (dense, maps, scale_of(maps, solution.data.variance)):
        raise ParameterError("inputs must be what the stages of this solution see")
    mean, variance = _moments(solution, stage, _sources(solution, stage, inputs), whole=False)
    return LogitMoments(mean / math.sqrt(size) + solution.bias[stage], np.maximum(variance, 0.0) / size)


def _require_known(solution: Solution, stage: int) -> Dense:
    data = solution.data
    if not isinstance(data, GaussianMixture) or getattr(data.inputs, "direction", None) is None:
        raise ParameterError("data must be a mixture of Dense inputs with a direction for the law of weights")
    if not 0 <= stage < len(solution.points) or any(point.status for point in solution.points[: stage + 1]):
        raise ParameterError(f"stage must be one that is solved, from 0 to {len(solution.points) - 1}, got {stage!r}")
    if solution.points[stage].limit == MAX_MARGIN:
        raise ParameterError(
            f"stage must have finite weights, those of {stage} grow without bound as its ridge tends to 0"
        )
    return data.inputs


def _conjugates(point: StagePoint) -> tuple[float, Array, Array]:
    """mh, Qh_t1.. and Vh_t1.. of a stage."""
    number = point.earlier + 1
    return float(point.conjugates[0]), point.conjugates[1 : 1 + number], point.conjugates[1 + number :]


def _maps(solution: Solution) -> Maps:
    return tuple(stage.features for stage in solution.resolved)


def _bases(solution: Solution) -> Eigenbases:
    maps = _maps(solution)
    return eigenbases(solution.data.inputs, maps, scale_of(maps, solution.data.variance))


class _Coefficients(NamedTuple):
    """What multiplies the sources of a stage k in some logits.

    Attributes
    ----------
    own : array, shape (n, p_k)
        c_k.
    seen : list of arrays, shapes (n, p_l)
        Omega_lk c_k for l <= k.
    """

    own: Array
    seen: list[Array]


def _sources(solution: Solution, stage: int, inputs: SeenInputs) -> list[_Coefficients]:
    """Of stages 0 to ``stage``."""
    maps, stages = _maps(solution), solution.resolved
    bases = _bases(solution)
    points = [_conjugates(point) for point in solution.points[: stage + 1]]
    pulls: list[Array | None] = [None] * (stage + 1)
    pulls[stage] = inputs.rows[stage]
    found: list[_Coefficients] = []
    for k in range(stage, -1, -1):
        _, _, reactions = points[k]
        ridge, values = effective_ridge(stages[k], solution.points[k].limit), bases.values[k]
        # Without ridge a weight on what does not vary is 0.
        some = (values > 0.0) | (ridge > NO_RIDGE)
        own = np.divide(pulls[k], ridge + reactions[k] * values, out=np.zeros_like(pulls[k]), where=some)
        seen = []
        for l in range(k + 1):
            seen.append(own * bases.values[k] if maps[l] == maps[k] else own @ bases.between[k, l])
            if l < k:
                pull = -reactions[l] * seen[l]
                pulls[l] = pull if pulls[l] is None else pulls[l] + pull
        found.append(_Coefficients(own, seen))
    return found[::-1]


def _moments(solution: Solution, stage: int, sources: list[_Coefficients], *, whole: bool) -> tuple[Array, Array]:
    """Means, and variances or all covariances (``whole``), of what the coefficients are of."""
    bases = _bases(solution)
    direction = solution.data.inputs.direction
    count = len(sources[0].own)
    mean, spread = np.zeros(count), np.zeros((count, count) if whole else count)
    for k, mine in enumerate(sources):
        drive, noises, _ = _conjugates(solution.points[k])
        mean += drive * mine.own @ (bases.responses[k] @ direction)
        for l in range(k + 1):
            other = sources[l].own
            if whole:
                product = noises[l] * mine.seen[l] @ other.T
                spread += product if l == k else product + product.T
            else:
                spread += (1.0 if l == k else 2.0) * noises[l] * np.einsum("ij,ij->i", mine.seen[l], other)
    return mean, spread
