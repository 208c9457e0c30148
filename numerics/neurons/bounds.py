"""How many neurons suffice, on paper: bounds for two-layer ReLU networks with a symmetric start, trained by projected gradient
descent.

The network is f(x) = m^(-1/2) sum_j a_j relu(w_j.x), a_j = +-1 fixed, f = 0 at the start; gamma is the class margin of the limiting
kernel (:mod:`numerics.neurons.margin`), n the number of samples, c the length of the shortest input (the longest is 1), delta the
probability that the statement is wrong.  Soft labels are those of an infinitely wide network in the ball of radius 1.

What could be checked against print: of the paper only the abstract was at hand.  It says 1/(gamma^2 eps) neurons for soft labels,
1/gamma^4 ln(1/eps) for hard ones, a loss averaged over the steps, that the hard half adapts Z. Ji and M. Telgarsky,
"Polylogarithmic width suffices for gradient descent to achieve arbitrarily small test error with shallow ReLU networks" (2020),
and that soft labels need fewer neurons when gamma <= eps.  Both rates in gamma and the rate in eps of the soft bound are met by
what stands here; the hard bound here has the *square* of the logarithm.  None of the constants, and neither the logarithm of n nor
that square, could be compared with print: they are a summary's, and therefore all of them are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlog1py

from numerics.models import ParameterError


@dataclass(frozen=True)
class Sampling:
    """What the bounds depend on beside margin and accuracy.

    Attributes
    ----------
    n_samples : int
        n >= 1.
    delta : float
        Probability of failure, in (0, 1).
    shortest : float
        c, the length of the shortest input, in (0, 1]; inputs are at most of length 1.
    """

    n_samples: int
    delta: float = 0.01
    shortest: float = 1.0

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ParameterError(f"n_samples must be at least 1, got {self.n_samples!r}")
        if not 0 < self.delta < 1:
            raise ParameterError(f"delta must be between 0 and 1, got {self.delta!r}")
        if not 0 < self.shortest <= 1:
            raise ParameterError(f"shortest must be in (0, 1], got {self.shortest!r}")


@dataclass(frozen=True)
class SoftConstants:
    """Constants of the bound for soft labels, none of which could be compared with print.

    Attributes
    ----------
    factor, curvature : float
        32 and C1 = 96/(1 + e^2), in front.
    small_ball : float
        sqrt(2/pi): the density at 0 of |w.x| at |x| = 1, P(|w.x| < B/sqrt(m)) <= sqrt(2/pi) B/(c sqrt(m)).
    deviation, union : float
        3 and 2 in 3 sqrt(ln(2n/delta)).
    steps : float
        9 in the number of steps, 9/(gamma^4 eps^2).
    """

    factor: float = 32.0
    curvature: float = 96.0 / (1.0 + np.e**2)
    small_ball: float = np.sqrt(2.0 / np.pi)
    deviation: float = 3.0
    union: float = 2.0
    steps: float = 9.0


@dataclass(frozen=True)
class HardConstants:
    """Constants of the bound for hard labels, none of which could be compared with print.

    Attributes
    ----------
    radius : float
        2 in the radius of the ball, (2/gamma) ln(2/(ln2 beta)).
    factor : float
        16, in front.
    small_ball : float
        2 sqrt(2)/sqrt(pi): twice the density at 0 of |w.x|.
    deviation, union : float
        3 and 2 in 3 sqrt(ln(2n/delta)).
    """

    radius: float = 2.0
    factor: float = 16.0
    small_ball: float = 2.0 * np.sqrt(2.0 / np.pi)
    deviation: float = 3.0
    union: float = 2.0


SOFT, HARD = SoftConstants(), HardConstants()


def _positive(name: str, values: ArrayLike, above: float = np.inf) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if not np.all((array > 0) & (array < above)):
        wanted = "positive" if np.isinf(above) else f"between 0 and {above:g}"
        raise ParameterError(f"{name} must be {wanted}, got {values!r}")
    return array


def _deviation(sampling: Sampling, constants: SoftConstants | HardConstants) -> float:
    return constants.deviation * np.sqrt(np.log(constants.union * sampling.n_samples / sampling.delta))


def soft_width(gamma: ArrayLike, eps: ArrayLike, sampling: Sampling, constants: SoftConstants = SOFT) -> np.ndarray:
    """Neurons that suffice for an average KL of ``eps`` from soft labels, in the ball of radius 1.

    m >= (32 C1/(gamma^2 eps)) (sqrt(2/pi)/c + 3 sqrt(ln(2n/delta)))^2 with C1 = 96/(1 + e^2); ``eps`` is the Kullback-Leibler
    divergence from the soft labels, averaged over samples and over at least :func:`soft_steps` steps.  The rate 1/(gamma^2 eps) is
    the abstract's, the constants could not be compared with print.  Above :func:`untrained_kl` the statement is empty: the network
    meets it before it is trained.

    Parameters
    ----------
    gamma, eps : array_like
        Positive numbers, broadcast against each other.

    Raises
    ------
    ParameterError
        If one is not positive.

    Examples
    --------
    >>> print(f"{soft_width(0.1, 0.1, Sampling(200)):.4g}")
    4.086e+07
    """
    gamma, eps = _positive("gamma", gamma), _positive("eps", eps)
    spread = constants.small_ball / sampling.shortest + _deviation(sampling, constants)
    return constants.factor * constants.curvature / (gamma**2 * eps) * spread**2


def soft_steps(gamma: ArrayLike, eps: ArrayLike, constants: SoftConstants = SOFT) -> np.ndarray:
    """Steps of gradient descent over which the KL is averaged in the bound for soft labels, at least 9/(gamma^4 eps^2).

    Not compared with print.
    """
    return constants.steps / (_positive("gamma", gamma) ** 4 * _positive("eps", eps) ** 2)


def hard_radius(gamma: ArrayLike, beta: ArrayLike, constants: HardConstants = HARD) -> np.ndarray:
    """Radius of the ball in which hard labels are learned to a 0-1 error ``beta``: (2/gamma) ln(2/(ln2 beta)).

    A neuron may move by the radius over sqrt(m).  An error of ``beta`` follows from a logistic loss of at most beta ln 2.  Not
    compared with print.
    """
    return constants.radius / _positive("gamma", gamma) * _logarithm(beta)


def hard_width(gamma: ArrayLike, beta: ArrayLike, sampling: Sampling, constants: HardConstants = HARD) -> np.ndarray:
    """Neurons that suffice for a 0-1 error ``beta`` from hard labels, in the ball of :func:`hard_radius`.

    m >= (16/gamma^4) ((2 sqrt(2)/(c sqrt(pi))) ln(2/(ln2 beta)) + 3 sqrt(ln(2n/delta)))^2.  The rate gamma^-4 is the abstract's;
    the abstract states ln(1/eps), this formula has its square; the constants could not be compared with print.

    Raises
    ------
    ParameterError
        If gamma is not positive, or beta not between 0 and 1.

    Examples
    --------
    >>> print(f"{hard_width(0.1, 0.1, Sampling(200)):.4g}")
    3.663e+07
    """
    gamma = _positive("gamma", gamma)
    spread = constants.small_ball / sampling.shortest * _logarithm(beta) + _deviation(sampling, constants)
    return constants.factor / gamma**4 * spread**2


def _logarithm(beta: ArrayLike) -> np.ndarray:
    return np.log(2.0 / (np.log(2.0) * _positive("beta", beta, above=1.0)))


# How the two accuracies are related: eps is a KL, beta a 0-1 error.


def kl_from_half(logit: ArrayLike) -> np.ndarray:
    """KL of a soft label sigma(h) from 1/2: ln 2 - H(sigma(h)), H the entropy; slightly less than h^2/8, even in h.

    It is the least that a wrong sign costs where the soft label has logit +-h: of all predictions on the wrong side, 1/2 is the
    nearest.

    Examples
    --------
    >>> float(kl_from_half(0.1)) < 0.1**2 / 8 < 1.002 * float(kl_from_half(0.1))
    True
    """
    t = np.tanh(np.asarray(logit, dtype=float) / 2.0)
    return 0.5 * (xlog1py(1.0 + t, t) + xlog1py(1.0 - t, -t))


def eps_for_error(beta: ArrayLike, gamma: ArrayLike) -> np.ndarray:
    """KL below which the 0-1 error is below ``beta``, where every soft label has a logit of at least ``gamma``: about beta
    gamma^2/8.

    A share beta of wrong signs costs an average KL of at least beta :func:`kl_from_half` (gamma).  With this ``eps`` the bound for
    soft labels goes like 1/(gamma^4 beta), and is worse than the one for hard labels, gamma^-4 times a logarithm of beta.
    """
    return _positive("beta", beta) * kl_from_half(_positive("gamma", gamma))


def untrained_kl(logits: ArrayLike) -> float:
    """Average KL of an untrained network, f = 0, from soft labels with these logits; about a mean square over 8.

    For ``eps`` above it the bound for soft labels says nothing.
    """
    return float(np.mean(kl_from_half(logits)))


def crossing(eps: ArrayLike, sampling: Sampling, soft: SoftConstants = SOFT, hard: HardConstants = HARD) -> np.ndarray:
    """Margin below which the bound for soft labels is the smaller one, if a KL of ``eps`` is set beside a 0-1 error of ``eps``.

    The abstract says gamma <= eps; with the constants it is another line.

    Examples
    --------
    >>> crossing([0.1, 0.01, 0.001], Sampling(200)).round(3)
    array([0.095, 0.037, 0.014])
    """
    return np.sqrt(hard_width(1.0, eps, sampling, hard) / soft_width(1.0, eps, sampling, soft))
