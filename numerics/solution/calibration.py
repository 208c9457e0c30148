"""How far a stage's outputs are from the true probability of the label given its logit.

On fresh samples the logit h is Gaussian in each class, with means ``b +- m`` and one width, so that the true log-odds are linear,
``slope h + offset`` (:func:`theory.observables.calibration`), and pi is their sigmoid.  In clusters they are what Bayes' formula
says.  What is averaged over h are functions of
pi and of the output sigma(h); where they hold a modulus, there is a kink where the two cross.

Proper scores fall into a part that a better calibrated output would save and one that no function of h can
(DeGroot and Fienberg, The Statistician 32, 1983; Broecker, Q. J. R. Meteorol. Soc. 135, 2009):
``E(sigma - y)^2 = E(sigma - pi)^2 + E pi(1 - pi)``, ``E H(y, sigma) = E KL(pi|sigma) + E H(pi)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from numerics.deferred import optimize, special
from numerics.solution import quadrature
from numerics.solution.logit_law import Array, ClusterLaw, LogitLaw
from numerics.solution.quadrature import Budget, Integral, OneRule
from numerics.solution.samples import output_difference

AnyLaw = LogitLaw | ClusterLaw

TOLERANCE, LEAST = 1e-13, 1e-4
"""Accuracy that panels are halved for, absolute and after a second pass relative to averages of at least this size: little more
work than 1e-8, and the rounding of what vanishes, as the error of a calibrated output, is not resolved."""

CHECK_CUT = 0.38
"""Where panels are cut for the integral that the first one is checked against."""

FIRST_PANELS = (-40.0, -8.0, -2.0, 0.0, 2.0, 8.0, 40.0)
"""Ends of the first panels on either side of the middle of a sigmoid, in units of its width."""

LARGEST_SLOPE = 1e9
"""1/temperature, in units of the logit's width, up to which a calibrating temperature is looked for."""


def average(
    law: AnyLaw, function: Callable[[Array, Array], Array], *, check: bool = False, passes: int = 2
) -> Integral:  # fmt: skip
    """E f(h, x) on a fresh sample, x the true log-odds at h.

    Parameters
    ----------
    function : callable
        Takes h and x, arrays of one shape; smooth but where h and x are 0, or equal.
    check : bool
        Integrate on other panels.
    passes : int
        1 if the tolerance is absolute only: what may vanish.

    Returns
    -------
    Integral
        Its error is what the panels leave unresolved.
    """
    if law.width == 0.0:
        prior = math.log(law.rho / (1.0 - law.rho))
        return Integral(float(function(np.array([law.bias]), np.array([prior]))[0]), 0.0)
    return _over(law.density, lambda h: function(h, law.log_odds(h)), _edges(law), check, passes)


def _edges(law: AnyLaw) -> Array:
    """Ends of the first panels, in increasing order."""
    edges = {centre + side * quadrature.REACH * width for centre, width in law.spread for side in (-1, 0, 1)}
    low, high = min(edges), max(edges)
    edges |= set(FIRST_PANELS) | law.marks(FIRST_PANELS)
    return np.array(sorted(edge for edge in edges if low <= edge <= high))


def _over(
    weight: Callable[[Array], Array], function: Callable[[Array], Array], ends: Array, check: bool, passes: int = 2
) -> Integral:  # fmt: skip
    """Integral of weight times function, on panels that are halved where it is not resolved."""
    if check:
        ends = np.sort(np.concatenate((ends, ends[:-1] + CHECK_CUT * np.diff(ends))))

    def integrand(_: Array, h: Array) -> tuple[Array, Array]:
        return weight(h) * function(h), np.zeros_like(h)

    found = Integral(0.0, 0.0)
    tolerance = TOLERANCE
    for _ in range(passes):
        value, error = quadrature.integrate(integrand, ends, np.array([tolerance]), Budget())
        found = Integral(float(value[0]), float(error[0]))
        if not found.error > TOLERANCE * abs(found.value):
            break
        tolerance = TOLERANCE * max(abs(found.value), LEAST)
    return OneRule(*found)


def _excess(law: AnyLaw, h: Array, x: Array) -> Array:
    """pi - sigma(h), of infinite logits pi - step(h)."""
    if law.infinite:
        return np.where(h > 0.0, -special.expit(-x), special.expit(x))
    return output_difference(h, x - h)


def calibration_error(law: AnyLaw, *, check: bool = False) -> Integral:
    """E |pi - sigma(h)|."""
    return average(law, lambda h, x: np.abs(_excess(law, h, x)), check=check)


def top_label_calibration_error(law: AnyLaw, *, check: bool = False) -> Integral:
    """E |P(right given |h|) - sigma(|h|)|: of the label that is predicted, at a confidence that does not tell which it is.

    Samples at h and -h are of one confidence, so that gaps of opposite sign cancel.
    """
    if law.width == 0.0:
        return calibration_error(law)

    def gap(r: Array) -> Array:
        above, under = (law.density(h) * _excess(law, h, law.log_odds(h)) for h in (r, -r))
        return np.abs(above - under)

    ends = np.unique(np.abs(np.append(_edges(law), 0.0)))
    return _over(np.ones_like, gap, ends, check)


def brier_calibration(law: AnyLaw, *, check: bool = False) -> Integral:
    """E (sigma(h) - pi)^2."""
    return average(law, lambda h, x: _excess(law, h, x) ** 2, check=check)


def brier_refinement(law: AnyLaw, *, check: bool = False) -> Integral:
    """E pi(1 - pi)."""
    return average(law, lambda h, x: special.expit(x) * special.expit(-x), check=check)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def cross_entropy_calibration(law: AnyLaw, *, check: bool = False) -> Integral:
    """E KL(pi|sigma(h))."""
    if law.infinite:
        return Integral(math.inf, 0.0)

    def divergence(h: Array, x: Array) -> Array:
        return special.expit(x) * (_softplus(-h) - _softplus(-x)) + special.expit(-x) * (_softplus(h) - _softplus(x))

    return average(law, divergence, check=check)


def cross_entropy_refinement(law: AnyLaw, *, check: bool = False) -> Integral:
    """E H(pi)."""
    return average(
        law, lambda h, x: special.expit(x) * _softplus(-x) + special.expit(-x) * _softplus(x), check=check
    )  # fmt: skip


def calibrating_temperature(law: AnyLaw) -> float:
    """tau of least E H(y, sigma(h/tau)), the zero of ``E[(sigma(h/tau) - y) h]``; infinite where h does not tell y (E[s h] <= 0).

    The score is convex in 1/tau.  ECE vanishes at ``tau = Delta Q/(2m)`` if the bias is that of least error, and at no tau
    otherwise; then this one is not the one of least ECE either.
    """
    if not law.pull > 0.0 or law.width == 0.0:
        return math.inf
    size = max(law.width, *(abs(centre) for centre, _ in law.spread))
    unit = law.scaled(1.0 / size)

    def slope(beta: float) -> float:
        scaled = unit.scaled(beta)
        return average(scaled, lambda h, x: (special.expit(h) - special.expit(x)) * h, passes=1).value / beta

    low, high = 1e-3, 1.0
    while slope(low) > 0.0 and low > 1.0 / LARGEST_SLOPE:
        low /= 16.0
    while slope(high) < 0.0 and high < LARGEST_SLOPE:
        high *= 4.0
    if slope(low) > 0.0:
        return math.inf
    if slope(high) < 0.0:
        return 0.0
    return size / float(optimize.brentq(slope, low, high, xtol=1e-15, rtol=1e-13))


def tempered(law: AnyLaw) -> AnyLaw:
    """Law of the logit divided by its calibrating temperature."""
    found = calibrating_temperature(law)
    if math.isinf(found):
        return LogitLaw(0.0, 0.0, 0.0, law.rho)
    cooled = law.scaled(1.0 / found)
    return replace(cooled, infinite=False) if cooled.infinite else cooled
