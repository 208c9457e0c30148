"""What needs no saddle point: Bayes error, separability, interpolation, max margin, least squares.

Conventions of the whole project: ``x = s v/sqrt(N) + sqrt(Delta) z``, ``h = w.x/sqrt(N) + b``,
``alpha = M/N``, and an estimator that trains the fraction ``eta`` of its weights.  Such a student sees
``N' = eta N`` inputs of

    x' = sqrt(eta) x = eta (s v/sqrt(N') + sqrt(Delta/eta) z),

a dense problem with ``alpha/eta`` samples per input and noise ``Delta/eta``: its threshold is
``eta alpha*(Delta/eta, rho)``.  The averages are the expressions of :mod:`theory.observables`, compiled here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from mpmath import mp
from numpy.typing import ArrayLike, NDArray
from sympy import Expr, Symbol, lambdify

from numerics.codegen.printing import with_tails
from numerics.deferred import Deferred, optimize, special
from numerics.models import (
    Chain,
    DataModel,
    Estimator,
    GaussianMixture,
    ParameterError,
    Stage,
    check_fit,
    in_equations,
    require_noise,
    require_number,
    total_alpha,
)
from numerics.models.link import disagreement
from theory import observables
from theory.losses import CrossEntropy

_solver = Deferred("numerics.solver")
_limits = Deferred("numerics.scalar.limits")
_visible = Deferred("numerics.scalar.visible")

MAX_NEWTON = 200
"""Newton steps allowed in one minimisation; about 10 are used."""

DECREMENT_TOLERANCE = 1e-22
"""Squared Newton decrement at which a minimisation stops: also the relative error of the minimum."""

DECREMENT_ACCEPTED = 1e-16
"""Decrement that still counts as converged where rounding stops the descent (minimiser good to 1e-8), for averages of order 1."""

TAIL = 4.0
"""Standard deviations beyond which the terms of the Gaussian average cancel too well for double precision."""

TAIL_DIGITS = 30
"""Digits used there."""

LOST_DIGITS = 6
"""Digits lost to cancellation for each decade of standard deviations."""

VALUE_NOISE = 1e-12
"""Relative rounding error of the average, forgiven by the line search."""

SHORTEST_STEP = 1e-12
"""Fraction of the Newton step at which the line search gives up."""

LOG_LARGEST = math.log(sys.float_info.max)
"""Logarithm of the largest double."""

LEAST_NOISE = 1e-13
"""Noise variance below which the classes are too far apart for the margin to be told in double precision."""

RULE_NODES = 24
"""Gauss-Legendre nodes of each panel in the field of a rule."""

MAX_DOUBLINGS = 60
"""Doublings allowed in the search for an upper bound of the margin."""

Number = float | NDArray[np.float64]


@dataclass(frozen=True)
class MaxMargin:
    """Hard-margin separator of the training set at ``|w|^2 = N``; floats, or arrays shaped like ``alpha``.

    Attributes
    ----------
    margin : smallest ``s h`` on the training set.
    magnetization : ``m = w.v/N``, which at this norm is also the cosine between ``w`` and ``v``.
    bias : the bias ``b``, free and unregularised.
    test_error : population error of ``sign(h)``; it does not depend on the scale of ``(w, b)``.
    """

    margin: Number
    magnetization: Number
    bias: Number
    test_error: Number


@dataclass(frozen=True)
class LeastSquares:
    """Ridge -> 0 limit of the square loss ``(h - s)^2/2``; floats, or arrays of the shape of ``alpha``.

    Attributes
    ----------
    magnetization : ``m = w.v/N``.
    overlap : ``Q = |w|^2/N``.
    bias : the bias ``b``, free and unregularised.
    test_error : population error of ``sign(h)``.
    """

    magnetization: Number
    overlap: Number
    bias: Number
    test_error: Number


def bayes_error(alpha: ArrayLike, rho: float, delta: float, eta: float = 1.0) -> Number:
    """Error of the best classifier that knows the ``M = alpha N`` labelled samples, but not ``v``.

    It is the Hebbian direction with the best bias, :func:`theory.observables.bayes_error`:

        m = 1,   Q = 1 + Delta/alpha,   b = (Delta Q/2) log(rho/(1 - rho)).

    With ``eta``, the best that sees only that fraction of the inputs.

    Parameters
    ----------
    alpha : float or array_like
        Samples per input dimension, > 0.
    rho, delta, eta : float
        Probability of the positive class in (0, 1), noise variance > 0, visible fraction in (0, 1].

    Returns
    -------
    float, or array of the shape of ``alpha``

    Raises
    ------
    ParameterError
        If a parameter is not a finite number in its range.

    Examples
    --------
    >>> round(bayes_error(2.0, rho=0.2, delta=1.0), 6)
    0.140918
    >>> bayes_error([1.0, 2.0], rho=0.2, delta=1.0, eta=0.5).round(6)
    array([0.186156, 0.176853])
    """
    values = _require_alpha(alpha)
    rho, delta, eta = _require_mixture(rho, delta, eta)
    return _like(alpha, _bayes_error(values / eta, rho, delta / eta))


def bayes_error_of(data: DataModel, alpha: ArrayLike, eta: float = 1.0) -> Number:
    """:func:`bayes_error` of some data, NaN where it is not known: labels of a rule."""
    if isinstance(data, GaussianMixture) and data.inputs.white:
        return bayes_error(alpha, data.rho, data.delta, eta)
    return _like(alpha, np.full(np.shape(alpha), math.nan))


def bayes_error_known_means(rho: float, delta: float, eta: float = 1.0) -> float:
    """Limit ``alpha -> infinity`` of :func:`bayes_error`: the error of a classifier that knows ``v`` itself.

    Raises
    ------
    ParameterError
        If a parameter is not a finite number in its range.
    """
    rho, delta, eta = _require_mixture(rho, delta, eta)
    return float(_bayes_error(np.inf, rho, delta / eta))


def interpolation_threshold(eta: float = 1.0) -> float:
    """``alpha_I = eta``: up to here ``eta N`` weights fit any ``M`` targets (square loss, pure distillation).

    Raises
    ------
    ParameterError
        If ``eta`` is not in (0, 1].

    Examples
    --------
    >>> interpolation_threshold(eta=0.5)
    0.5
    """
    return float(observables.interpolation_threshold(_require_eta(eta)))


def separability_threshold(
    rho: float, delta: float, eta: float = 1.0, *, label_noise: float = 0.0, bias_is_free: bool = True
) -> float:
    """``alpha*``: below it a hyperplane separates the training samples by their labels, above it none does.

    For weights with ``|w|^2 = N`` (Gordon's inequality, see :func:`max_margin` at margin 0), sign s of the class and label y s
    with ``y = -1`` for the share ``label_noise`` of the samples,

        alpha* = max_{m, b} Delta (1 - m^2) / E_s E_y E_z[(sqrt(Delta) z - y m - y s b)_+^2]

    (:func:`theory.observables.separability_ratio`).  In the variable ``u = m/sqrt(1 - m^2)`` the inverse is
    the unconstrained minimum of a smooth convex function of two variables, found by Newton's method; relative
    error below 1e-10.

    Parameters
    ----------
    rho : float
        Probability of the positive class, in (0, 1).
    delta : float
        Noise variance, > 0; ``math.inf`` stands for inputs without any signal (at ``rho = 1/2``: Cover's 2).
    eta : float
        Fraction of trainable weights, in (0, 1].
    label_noise : float
        Probability of a flipped training label, in [0, 1/2]; at 1/2 the threshold is Cover's ``2 eta``.
    bias_is_free : bool
        Without a free bias the hyperplane goes through the origin (``b = 0``): a finite bias is nothing beside weights that grow.

    Returns
    -------
    float
        The threshold in samples per input; ``math.inf`` beyond 1e308 (``Delta/eta`` below about 7e-4, without label noise).

    Raises
    ------
    ParameterError
        If a parameter is not a number in its range.
    ArithmeticError
        If the minimisation does not converge.

    Examples
    --------
    >>> round(separability_threshold(rho=0.2, delta=1.0), 6)
    4.849038
    >>> round(separability_threshold(rho=0.5, delta=math.inf), 6)
    2.0
    >>> round(separability_threshold(rho=0.2, delta=1.0, label_noise=0.1), 6)
    2.853958
    """
    rho = _require_rho(rho)
    if delta != math.inf:
        delta = require_number("delta", delta, above=0, allowed="a number > 0 (math.inf is allowed)")
    eta, noise = _require_eta(eta), require_noise("label_noise", label_noise)
    return MixtureSeparation(rho, float(delta) / eta, eta, noise, bias_is_free).threshold()


def max_margin(
    alpha: ArrayLike, rho: float, delta: float, eta: float = 1.0, *, label_noise: float = 0.0, bias_is_free: bool = True
) -> MaxMargin:
    """Max-margin separator: the ridge -> 0 limit of logistic regression on hard labels below separability.

    The limit of any loss with an exponential tail.  Derivation: by Gordon's inequality for Gaussian matrices,
    weights with ``|w|^2 = N`` and overlap ``m`` reach ``y s h >= kappa`` on all samples (labels ``y s``, see
    :func:`separability_threshold`) if and only if

        alpha E_s E_y E_z[(kappa + sqrt(Delta) z - y m - y s b)_+^2] <= Delta (1 - m^2)

    for some ``b``: the left side is ``1/N`` times the squared length by which ``M`` Gaussian margins fall
    short of ``kappa``, the right side what the weights orthogonal to ``v`` can make up for.  The largest
    ``kappa`` with its ``(m, b)`` is the separator.  (Gardner's replica-symmetric volume shrinks to a point at
    the same place.)

    Parameters
    ----------
    alpha : float or array_like
        Samples per input dimension, between 0 and the ``separability_threshold`` of the other arguments.
    rho, delta, eta : float
        Probability of the positive class in (0, 1), noise variance > 0, trainable fraction in (0, 1].
    label_noise, bias_is_free
        As for :func:`separability_threshold`.

    Returns
    -------
    MaxMargin
        Floats, or arrays of the shape of ``alpha``.

    Raises
    ------
    ParameterError
        If a parameter is not a finite number in its range, or ``alpha`` is not below separability.
    ArithmeticError
        If a minimisation does not converge.

    Examples
    --------
    >>> found = max_margin(1.0, rho=0.2, delta=1.0)
    >>> round(found.margin, 6), round(found.magnetization, 6), round(found.test_error, 6)
    (0.984012, 0.493926, 0.21046)
    """
    values = _require_alpha(alpha)
    rho, delta, eta = _require_mixture(rho, delta, eta)
    if delta / eta < LEAST_NOISE:
        raise ArithmeticError(f"the margin at delta/eta={delta / eta:g} needs more digits than a double has")
    noise = require_noise("label_noise", label_noise)
    separation = MixtureSeparation(rho, delta / eta, eta, noise, bias_is_free)
    threshold = separation.threshold()
    if not np.all(values < threshold):
        noisy = f", label_noise={noise:g}" if noise else ""
        raise ParameterError(
            f"alpha must be below the separability threshold {threshold:.10g} of rho={rho:g}, "
            f"delta={delta:g}, eta={eta:g}{noisy} (above it no separator exists), got {np.max(values):.10g}"
        )
    margin, m, b = np.array([separation.at(a) for a in values.ravel()]).T.reshape(3, *values.shape)
    return MaxMargin(*(_like(alpha, v) for v in (margin, m, b, _test_error(m, b, 1.0, delta, rho))))


def interpolation_threshold_of(data: DataModel, stages: Chain | Stage | Sequence[Stage]) -> float:
    """:func:`interpolation_threshold` of any inputs: directions in which those of the last stage vary, over N.

    Parameters
    ----------
    data : DataModel
        Two classes or a rule, with inputs of any kind.
    stages : Chain, stage or sequence of stages
        The last one is meant; those before it matter where masks are random.

    Raises
    ------
    ParameterError
        If the stages do not fit the data, or these are many classes or clusters.

    Examples
    --------
    >>> from numerics import Dense, LinearMap
    >>> data = GaussianMixture(1.0, inputs=Dense([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    >>> stage = Estimator(CrossEntropy(), ridge=0.1, features=LinearMap([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    >>> round(interpolation_threshold_of(data, stage), 6)
    0.333333
    """
    chain = _last_of(data, stages)
    return _visible.seen_by(data, chain, len(chain)).dimensions


def separability_threshold_of(data: DataModel, stages: Chain | Stage | Sequence[Stage]) -> float:
    """:func:`separability_threshold` of any inputs, two classes or the labels of a rule, and what the last stage sees of them.

    Separability is the same after any invertible map of the inputs.  So it is that of white ones, as many as there are directions
    in which the inputs of the stage vary, whose classes are at the same Mahalanobis distance ``v^T Sigma^+ v``; of a rule, what the
    inputs do not explain of its field is noise.  A class mean with a part that does not vary separates any number of samples.

    Parameters
    ----------
    data : DataModel
        Two classes, or a rule that gives signs, with inputs of any kind.
    stages : Chain, stage or sequence of stages
        The last one is meant: its inputs, its data sets with their label noise, and whether its bias is free.

    Returns
    -------
    float
        Samples of its data sets per input; ``math.inf`` where any number can be separated.

    Raises
    ------
    ParameterError
        If the stages do not fit the data, or these are real labels, many classes or clusters, or the last stage has no samples.
    ArithmeticError
        If the minimisation does not converge.

    Examples
    --------
    >>> from numerics import LinearRule, PowerLaw, RandomFeatures, Spectrum
    >>> stage = Estimator(CrossEntropy(), ridge=0.1)
    >>> data = GaussianMixture(1.0, rho=0.2, inputs=Spectrum([4.0, 1.0]))
    >>> round(separability_threshold_of(data, stage), 6), round(separability_threshold(rho=0.2, delta=1 / 0.625), 6)
    (3.885955, 3.885955)
    >>> network = Estimator(CrossEntropy(), ridge=0.1, features=RandomFeatures(1.5, "relu"))
    >>> round(separability_threshold_of(LinearRule(1.0, output="sign"), network), 6)
    5.041436
    """
    if isinstance(data, DataModel) and data.has_real_labels:
        raise ParameterError(f"data must have two labels: real numbers are not separable, got {data!r}")
    chain = _last_of(data, stages)
    stage = chain[-1]
    if not isinstance(stage, Estimator):
        raise ParameterError(f"the last stage must be an Estimator, which is trained on samples, got {stage!r}")
    return float(_limits.labels_of(data, chain, len(chain))[1].threshold())


def max_margin_of(data: DataModel, stage: Estimator) -> MaxMargin:
    """:func:`max_margin` of any inputs: the shortest weights with ``s h >= 1`` on the samples, from the saddle point.

    Parameters
    ----------
    data : DataModel
        Two classes, or a rule that gives signs, with inputs of any kind; alpha below :func:`separability_threshold_of`.
    stage : Estimator
        Its inputs, data sets and bias are what matters.

    Returns
    -------
    MaxMargin
        At ``|w|^2 = N``; ``magnetization`` is ``w.v/N``, or of a rule ``w.Sigma theta/N``.

    Raises
    ------
    ParameterError
        If the stage does not fit the data, or alpha is not below separability.
    numerics.solver.ConvergenceError
        If the saddle point is not found.

    Examples
    --------
    >>> from numerics import PowerLaw
    >>> data = GaussianMixture(1.0, rho=0.3, inputs=PowerLaw(capacity=1.0, size=100))
    >>> found = max_margin_of(data, Estimator(CrossEntropy(), ridge=0.1))
    >>> round(found.margin, 6), round(found.test_error, 6)
    (0.40951, 0.400234)
    """
    if not isinstance(stage, Estimator):
        raise ParameterError(f"stage must be an Estimator, which is trained on samples, got {stage!r}")
    threshold = separability_threshold_of(data, replace(stage, loss=CrossEntropy()))
    alpha = total_alpha(data, stage.sets)
    if not alpha < threshold:
        raise ParameterError(
            f"alpha must be below the separability threshold {threshold:.10g} of {data!r} (above it no separator exists), got "
            f"{alpha:.10g}"
        )
    (found,) = _solver.solve(data, replace(stage, loss=CrossEntropy(), ridge=0.0), throw=True)
    length = math.sqrt(found.fresh.weight_norm(-1))
    aligned, bias = float(found.fresh.alignment(-1)), float(found.fresh.bias[-1])
    return MaxMargin(found.margin, aligned / length, bias / length, found.test_error)


def _last_of(data: DataModel, stages: Chain | Stage | Sequence[Stage]) -> Chain:
    """The chain in the equations, of whose last stage it is asked what it sees."""
    chain = Chain.of(stages)
    if not isinstance(data, DataModel) or data.many_classes or data.in_clusters:
        raise ParameterError(f"data must be of two classes without clusters, or of a rule, got {data!r}")
    used = {name for stage in chain.stages for name in stage.sets}
    check_fit(
        replace(data, further=[found for found in data.further if found.name in used]) if data.further else data, chain
    )
    return in_equations(data, chain)


def minimum_norm_interpolator(alpha: ArrayLike, rho: float, delta: float, eta: float = 1.0) -> LeastSquares:
    """Ridge -> 0 limit of the square loss: least-norm interpolator for ``alpha < eta``, else least squares.

    For ``l = (h - s)^2/2`` the proximal point is linear, ``f = (s - omega)/(1 + Delta V)``, and with
    ``mu = E[s] = 2 rho - 1`` the equations of a single stage are algebraic:

        b  = mu (1 - m),                  mh = alpha (1 - m)(1 - mu^2)/(1 + Delta V),
        Vh = alpha Delta/(1 + Delta V),   Qh = alpha Delta [(1 - m)^2 (1 - mu^2) + Delta Q]/(1 + Delta V)^2,
        m  = eta mh/(ridge + Vh),   V = eta/(ridge + Vh),   Q = eta (mh^2 + Qh)/(ridge + Vh)^2.

    For ridge -> 0, ``ridge V -> eta - alpha`` below and ``Delta V -> eta/(alpha - eta)`` above.  In both
    cases

        a = (1 - mu^2) min(alpha, eta)/Delta,   m = a/(1 + a),
        Q = m/(eta - alpha)                                                  for alpha < eta,
        Q = m^2 (1 + Delta/(alpha (1 - mu^2))) alpha/(eta (alpha - eta))     for alpha > eta.

    Parameters
    ----------
    alpha : float or array_like
        Samples per input dimension, > 0 and different from ``eta``, where ``Q`` diverges.
    rho, delta, eta : float
        Probability of the positive class in (0, 1), noise variance > 0, trainable fraction in (0, 1].

    Returns
    -------
    LeastSquares
        Floats, or arrays of the shape of ``alpha``.

    Raises
    ------
    ParameterError
        If a parameter is not a finite number in its range, or ``alpha`` equals ``eta``.

    Examples
    --------
    >>> found = minimum_norm_interpolator(0.5, rho=0.5, delta=1.0)
    >>> round(found.magnetization, 6), round(found.overlap, 6), round(found.test_error, 6)
    (0.333333, 0.666667, 0.341546)
    """
    values = _require_alpha(alpha)
    rho, delta, eta = _require_mixture(rho, delta, eta)
    if np.any(values == eta):
        raise ParameterError(f"alpha must differ from eta={eta:g}, where the norm of the weights diverges")
    mean = 2 * rho - 1
    variance = 4 * rho * (1 - rho)
    signal = variance * np.minimum(values, eta) / delta
    m = signal / (1 + signal)
    below = m / np.abs(eta - values)
    above = m**2 * (1 + delta / (values * variance)) * values / (eta * np.abs(values - eta))
    overlap = np.where(values < eta, below, above)
    bias = mean / (1 + signal)
    result = (m, overlap, bias, _test_error(m, bias, overlap, delta, rho))
    return LeastSquares(*(_like(alpha, v) for v in result))


class Evidence(NamedTuple):
    """What a stage sees of its inputs; all that separability depends on, as it is the same after any invertible map of them.

    Attributes
    ----------
    dimensions : float
        Directions in which they vary, over N: the rank of their covariance Omega_t.
    strength : float
        Of two classes, ``c^T Omega_t^+ c`` for their mean c in them (v/sqrt(N) of all).
    explained : float
        Of a rule, the variance of its field that they explain.
    still : bool
        Whether c has a part without variance, by which alone classes are told apart.
    """

    dimensions: float
    strength: float
    explained: float
    still: bool = False

    @classmethod
    def white(cls, eta: float) -> Evidence:
        """The fraction ``eta`` of white inputs, of variance Delta, or 1 if there is a rule."""
        return cls(eta, eta, eta)


class SeparationProblem:
    """Dense problem: ``1/alpha(kappa) = min_{u, beta} A_k(u, beta)`` with ``k = kappa/sqrt(Delta)``.

    ``u = m/sqrt(1 - m^2)``, ``tau = sqrt(1 + u^2)``, ``beta = b tau/sqrt(Delta)`` turn
    Gordon's condition into

        A_k(u, beta) = E_s E_y E_z[(tau (k + z) - y u/sqrt(Delta) - y s beta)_+^2] >= 1/alpha.

    ``tau z`` has the law of ``z_1 + u z_2``, so that at ``k >= 0`` the bracket is convex in ``(u, beta)``,
    and so is ``A_k``: one minimum, no constraint.  Newton's method runs on ``log A_k``, which has the same
    minimum and can be held in a double however far the classes are apart.  Without a free bias ``beta = 0``.  Where Delta is 0 in
    the direction of the means alone, ``u/sqrt(Delta)`` is what stays finite, and tau is 1.
    """

    def __init__(self, rho: float, delta: float, label_noise: float = 0.0, bias_is_free: bool = True) -> None:
        self.rho, self.delta, self.label_noise, self.bias_is_free = rho, delta, label_noise, bias_is_free
        self.signal, self.spread = (1 / math.sqrt(delta), 1.0) if delta > 0 else (1.0, 0.0)
        self.groups = [
            (kept, kept * sign, share * weight)
            for kept, share in ((1, 1 - label_noise), (-1, label_noise))
            for sign, weight in ((1, rho), (-1, 1 - rho))
            if share > 0
        ]
        starts = [(self.signal / math.sqrt(2), 0.0), (0.0, 0.0)]
        self.origin = min(starts, key=lambda start: self._log_average(0.0, *start)[0]) if label_noise else starts[0]
        # Of the distance between class and plane, which is a difference of numbers of the size of the signal's square.
        self.rounding = 10 * sys.float_info.epsilon * self.signal * self.signal

    def threshold(self) -> float:
        """``alpha(0)``, infinite if too large for a double; its minimiser starts later searches.

        Gordon's ratio at ``m^2 = 1 - 2 Delta``, ``b = 0``, and ``E[(z - t)_+^2] <= exp(-t^2/2)/2`` for ``t > 0`` bound it from
        below, ``alpha(0) >= 4 Delta exp(1/(2 Delta) - 1)``: where that is too large, no minimum is looked for.
        """
        if not self.label_noise and self.delta < 0.5 and self._log_of_bound() > LOG_LARGEST:
            return math.inf
        log_average, *minimiser = self.minimise(0.0, self.origin)
        self.origin = tuple(minimiser)
        return math.exp(-log_average) if -log_average < LOG_LARGEST else math.inf

    def _log_of_bound(self) -> float:
        return math.log(4 * self.delta) + 0.5 / self.delta - 1 if self.delta > 0 else math.inf

    def solve(self, alpha: float) -> tuple[float, float, float]:
        """Margin, magnetization and bias of the max-margin separator at ``alpha`` below the threshold."""
        solved: dict[float, tuple[float, float, float]] = {}
        log_target = -math.log(alpha)

        def excess(k: float) -> float:
            if k not in solved:
                nearest = min(solved, key=lambda known: abs(known - k), default=None)
                starts = [self.origin, *([] if nearest is None else [solved[nearest][1:]])]
                # Far from the minimum log A is not convex, and Newton's method slow.
                solved[k] = self.minimise(k, min(starts, key=lambda start: self._log_average(k, *start)[0]))
            return solved[k][0] - log_target

        k = 0.0
        if excess(0.0) < 0:
            upper = 1 / math.sqrt(alpha)
            for _ in range(MAX_DOUBLINGS):
                if excess(upper) > 0:
                    break
                upper *= 2
            else:
                raise ArithmeticError(f"no upper bound of the margin at {self._where()}, alpha/eta={alpha:g}")
            k = optimize.brentq(excess, 0.0, upper, xtol=1e-15, rtol=4 * np.finfo(float).eps)
        _, u, beta = solved[k]
        noise, tau = math.sqrt(self.delta), math.sqrt(1 + u * u)
        return noise * k, u / tau, noise * beta / tau

    def minimise(self, k: float, start: tuple[float, float]) -> tuple[float, float, float]:
        """Minimum over ``(u, beta)`` of ``log A_k`` and its place, by Newton's method with backtracking."""
        value, place = least_log_average(
            lambda place: self._log_average(k, *place), start, self.rounding, f"{self._where()}, k={k:g}"
        )
        return value, float(place[0]), float(place[1])

    def _log_average(self, k: float, u: float, beta: float) -> tuple[float, NDArray, NDArray]:
        """``log A_k``, ``A'/A`` (2,) and ``A''/A`` (2, 2) in ``(u, beta)``, by the chain rule."""
        tau = math.sqrt(1 + u * u)
        square, square_u, square_uu = 1 + self.spread * u * u, 2 * self.spread * u, 2.0 * self.spread
        means = [kept * u * self.signal - k * tau + label * beta for kept, label, _ in self.groups]
        moments = [log_hinge_moment(mean, square) for mean in means]
        logs = [math.log(weight) + moment[0] for (*_, weight), moment in zip(self.groups, moments, strict=True)]
        value = float(np.logaddexp.reduce(logs))
        gradient, hessian = np.zeros(2), np.zeros((2, 2))
        for (kept, sign, _), log_share, (_, f_m, f_d, f_mm, f_md, f_dd) in zip(self.groups, logs, moments, strict=True):
            share = math.exp(log_share - value)
            mean_u, mean_uu = kept * self.signal - k * u / tau, -k / tau**3
            gradient += share * np.array([f_m * mean_u + f_d * square_u, sign * f_m])
            uu = f_mm * mean_u**2 + 2 * f_md * mean_u * square_u + f_dd * square_u**2
            uu += f_m * mean_uu + f_d * square_uu
            ub = sign * (f_mm * mean_u + f_md * square_u)
            hessian += share * np.array([[uu, ub], [ub, f_mm]])
        if not self.bias_is_free:
            gradient[1], hessian[0, 1], hessian[1, 0], hessian[1, 1] = 0.0, 0.0, 0.0, 1.0
        return value, gradient, hessian

    def _where(self) -> str:
        noisy = f", label_noise={self.label_noise:g}" if self.label_noise else ""
        return f"rho={self.rho:g}, delta/eta={self.delta:g}{noisy}"


class RuleSeparation:
    """Margins of labels that a rule gives, at ``|w|^2 = N``, which no bias makes larger: the labels are symmetric.

    With ``u`` the rule's noisy field over its width, ``r`` its correlation with the logit, and labels ``y = f sign(u)``, f = -1
    for the share ``label_noise`` and where a link of this ``slope`` (:mod:`numerics.models.link`) draws the other label, Gordon's
    condition (see :func:`max_margin`) is

        alpha E_f E_u E_z[(kappa - f r |u| + sqrt(1 - r^2) z)_+^2] <= d (1 - r^2/r_max^2),

    the right side what the weights orthogonal to the rule's can make up for.  Of white inputs with noise of the field the trained
    fraction eta has d = eta, r_max^2 = eta/(1 + noise), and ``w.theta/N = r sqrt(1 + noise)``.  Of others the margins are those
    at a logit of variance 1, and what counts as one is that of whitened inputs.

    Parameters
    ----------
    dimensions, share, label_noise, slope : float
        d; ``r_max^2``, the share of the noisy field's variance that the inputs explain; share of flipped labels; slope of the link
        in units of the noisy field's width.
    """

    def __init__(self, dimensions: float, share: float, label_noise: float, slope: float = math.inf) -> None:
        self.dimensions, self.share, self.label_noise, self.slope = dimensions, share, label_noise, slope
        unit, share = np.polynomial.legendre.leggauss(RULE_NODES)
        decades = 6 if math.isinf(slope) else max(6, math.ceil(math.log10(slope)) + 1)
        ends = np.concatenate([[0.0], np.geomspace(10.0**-decades, 1.0, decades + 1), np.linspace(2.0, 9.0, 8)])
        half = 0.5 * np.diff(ends)
        self._u = (0.5 * (ends[1:] + ends[:-1])[:, None] + half[:, None] * unit).ravel()
        weight = (half[:, None] * share).ravel() * np.exp(-0.5 * self._u**2) * math.sqrt(2 / math.pi)
        wrong = label_noise + (1 - 2 * label_noise) * disagreement(slope, self._u)
        self._weight = np.concatenate([(1 - wrong) * weight, wrong * weight])
        self._fu = np.outer([1.0, -1.0], self._u).ravel()
        self._largest = math.sqrt(self.share)
        self._pull = dimensions / self.share if self.share > 0 else math.inf

    def threshold(self) -> float:
        """``alpha*``; infinite if labels are the rule's signs and all its weights can be learned."""
        return self._threshold

    @cached_property
    def _threshold(self) -> float:
        if self.label_noise == 0 and math.isinf(self.slope) and self._largest == 1.0:
            return math.inf
        return 1.0 / self._least(0.0)[0]

    def at(self, alpha: float) -> tuple[float, float, float]:
        """Margin, ``w.theta/N`` and bias of the max-margin separator at ``alpha`` below the threshold."""

        def excess(kappa: float) -> float:
            return math.log(self._least(kappa)[0] * alpha)

        upper = math.sqrt(self.dimensions / alpha) + 1.0
        kappa = optimize.brentq(excess, 0.0, upper, xtol=1e-15, rtol=4 * np.finfo(float).eps)
        return kappa, self._least(kappa)[1] * math.sqrt(self._pull), 0.0

    def _least(self, kappa: float) -> tuple[float, float]:
        """Smallest ``1/alpha`` at which the margin is ``kappa``, and its r."""
        low, high = 0.0, self._largest * (1 - 1e-15)
        if self.label_noise == 0.5 or self.share == 0.0:
            return self._ratio(kappa, 0.0)[0], 0.0
        value, slope = self._ratio(kappa, high)
        if slope < 0:
            return value, high
        r = optimize.brentq(lambda r: self._ratio(kappa, r)[1], low, high, xtol=1e-16, rtol=4 * np.finfo(float).eps)
        return self._ratio(kappa, r)[0], r

    def _ratio(self, kappa: float, r: float) -> tuple[float, float]:
        """``1/alpha`` of Gordon's condition at this r, and the derivative of its logarithm."""
        width = math.sqrt((1 - r) * (1 + r))
        t = (kappa - r * self._fu) / width
        tail, density = special.ndtr(t), np.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
        first = width * (t * tail + density)
        square = width**2 * ((1 + t * t) * tail + t * density)
        value, slope = self._weight @ square, self._weight @ (-2 * self._fu * first - 2 * r * tail)
        if r == 0.0:
            return value / self.dimensions, slope / value
        rest = self.dimensions - self._pull * r * r
        return value / rest, slope / value + 2 * self._pull * r / rest


class MixtureSeparation:
    """:class:`SeparationProblem` of weights that see a part of the inputs; the same questions as :class:`RuleSeparation`.

    Parameters
    ----------
    rho, delta, dimensions, label_noise, bias_is_free
        As there, with the Delta of white inputs whose classes are as far apart, and :attr:`Evidence.dimensions`.
    """

    def __init__(self, rho: float, delta: float, dimensions: float, label_noise: float, bias_is_free: bool) -> None:
        self.dimensions, self._dense = dimensions, SeparationProblem(rho, delta, label_noise, bias_is_free)

    @cached_property
    def _threshold(self) -> float:
        return self.dimensions * self._dense.threshold()

    def threshold(self) -> float:
        """``alpha*``; its minimiser starts all searches for margins."""
        return self._threshold

    def at(self, alpha: float) -> tuple[float, float, float]:
        """Margin, magnetization and bias of the max-margin separator of white inputs at ``alpha`` below the threshold."""
        self.threshold()
        return tuple(math.sqrt(self.dimensions) * value for value in self._dense.solve(alpha / self.dimensions))


def separation(
    data: DataModel, seen: Evidence, label_noise: float, bias_is_free: bool
) -> MixtureSeparation | RuleSeparation:
    """Separability of the labels of some data by what a stage sees, a share ``label_noise`` of them flipped.

    Separability is the same after any invertible map of the inputs: that of white ones, as many as there are directions, of two
    classes at the same Mahalanobis distance; or of a rule of which a part is noise, because the inputs do not explain it.
    """
    if data.ruled:
        width = data.signal_variance + data.field_noise
        return _separation(
            RuleSeparation, seen.dimensions, seen.explained / width, label_noise,
            data.link_slope * math.sqrt(data.signal_variance),
        )  # fmt: skip
    delta = data.variance / seen.strength if seen.strength > 0 else math.inf
    delta = 0.0 if seen.still else delta
    return _separation(MixtureSeparation, data.positive_share, delta, seen.dimensions, label_noise, bias_is_free)


@lru_cache(maxsize=1024)
def _separation(kind: type, *parameters: float) -> MixtureSeparation | RuleSeparation:
    """Kept: points of a grid that differ in alpha, or in ridges, have one threshold."""
    return kind(*parameters)


def least_log_average(
    log_average: Callable[[NDArray], tuple[float, NDArray, NDArray]],
    start: Sequence[float],
    rounding: float,
    where: str,
) -> tuple[float, NDArray[np.float64]]:
    """Minimum of ``log A`` for a smooth convex A, and its place, by Newton's method with backtracking.

    Parameters
    ----------
    log_average : callable
        Takes a place, shape (n,), and returns ``log A``, ``A'/A`` (n,) and ``A''/A`` (n, n).
    start : sequence of n floats
    rounding : float
        Relative rounding error of A.
    where : str
        Parameters, for messages.

    Raises
    ------
    ArithmeticError
        If there is no convergence.
    """
    place = np.array(start, dtype=float)
    value, gradient, curvature = log_average(place)
    best = math.inf
    for _ in range(MAX_NEWTON):
        step = _descent(gradient, curvature)
        slope = float(gradient @ step)
        accepted = DECREMENT_ACCEPTED * max(1.0, value**2) + rounding**2
        if -slope <= DECREMENT_TOLERANCE or (-slope <= accepted and -slope >= best):
            return value, place + step
        best = min(best, -slope)
        length = 1.0
        while True:
            trial = log_average(place + length * step)
            if trial[0] - value <= 1e-4 * length * slope + VALUE_NOISE * max(1.0, abs(value)):
                break
            length /= 2
            if length < SHORTEST_STEP:
                raise ArithmeticError(f"separating plane: line search failed at {where}")
        place = place + length * step
        value, gradient, curvature = trial
    raise ArithmeticError(f"separating plane: no convergence at {where}")


def _descent(gradient: NDArray, curvature: NDArray) -> NDArray:
    """Newton step for ``log A`` from ``A'/A`` and ``A''/A``; where ``log A`` is not convex, for ``A``."""
    for hessian in (curvature - np.outer(gradient, gradient), curvature):
        with suppress(np.linalg.LinAlgError):
            np.linalg.cholesky(hessian)
            return -np.linalg.solve(hessian, gradient)
    return -gradient


def _compile(symbols: Sequence[Symbol], expressions: Expr | list[Expr], module: str) -> Callable:
    complement = {"math": math, "mpmath": mp, "scipy": special}[module].erfc
    return lambdify(symbols, expressions, modules=[{"complement": complement}, module], cse=True)


def log_hinge_moment(mean: float, variance: float) -> list[float]:
    """``log F`` and ``F_m, F_D, F_mm, F_mD, F_DD`` over ``F``, for ``F(m, D) = E_z[(sqrt(D) z - m)_+^2]``."""
    if mean <= TAIL * math.sqrt(variance):
        value, *derivatives = _compiled_moment("math")(mean, variance)
        return [math.log(value), *(derivative / value for derivative in derivatives)]
    with mp.workdps(TAIL_DIGITS + int(LOST_DIGITS * math.log10(mean / math.sqrt(variance)))):
        value, *derivatives = _compiled_moment("mpmath")(mp.mpf(mean), mp.mpf(variance))
        return [float(mp.log(value)), *(float(derivative / value) for derivative in derivatives)]


@cache
def _compiled_moment(module: str) -> Callable[[float, float], list]:
    """:func:`theory.observables.hinge_moment` and its derivatives, for ``math`` or ``mpmath`` numbers."""
    mean, variance = Symbol("m", real=True), Symbol("Delta", positive=True)
    value = with_tails(observables.hinge_moment(mean, 0, variance))
    derivatives = [value.diff(mean), value.diff(variance)]
    derivatives += [value.diff(mean, 2), value.diff(mean, variance), value.diff(variance, 2)]
    return _compile((mean, variance), [value, *derivatives], module)


@cache
def _compiled_error(name: str) -> Callable:
    """Compiled error probability of :mod:`theory.observables`, broadcasting over its arguments."""
    expression, arguments = {
        "test": (observables.test_error, ("m", "b", "Q", "Delta", "rho")),
        "bayes": (observables.bayes_error, ("alpha", "Delta", "rho")),
    }[name]
    symbols = [Symbol(argument, positive=argument not in "mb", real=True) for argument in arguments]
    return _compile(symbols, with_tails(expression(*symbols)), "scipy")


def _test_error(m: Number, b: Number, overlap: Number, delta: float, rho: float) -> Number:
    return _compiled_error("test")(m, b, overlap, delta, rho)


def _bayes_error(alpha: Number, rho: float, delta: float) -> Number:
    return _compiled_error("bayes")(alpha, delta, rho)


def _require_alpha(alpha: ArrayLike) -> NDArray[np.float64]:
    """``alpha`` as an array of finite numbers > 0, of any shape."""
    try:
        raw = np.asarray(alpha)
    except ValueError:
        raw = np.asarray(None)
    if raw.dtype.kind not in "iuf" or not np.all(np.isfinite(raw) & (raw > 0)):
        raise ParameterError(f"alpha must be a finite number > 0, or an array of them, got {alpha!r}")
    return raw.astype(float)


def _require_rho(rho: float) -> float:
    return require_number("rho", rho, above=0, below=1, allowed="a number in the open interval (0, 1)")


def _require_eta(eta: float) -> float:
    return require_number("eta", eta, above=0, at_most=1, allowed="a number in (0, 1]")


def _require_mixture(rho: float, delta: float, eta: float) -> tuple[float, float, float]:
    """Validated ``(rho, delta, eta)`` with a finite ``delta``."""
    delta = require_number("delta", delta, above=0, allowed="a finite number > 0")
    return _require_rho(rho), delta, _require_eta(eta)


def _like(alpha: ArrayLike, values: Number) -> Number:
    """A float where the user gave one number, an array otherwise."""
    return float(values) if np.ndim(alpha) == 0 else np.asarray(values, dtype=float)
