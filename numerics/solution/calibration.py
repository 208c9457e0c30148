"""How far a stage's outputs are from the true probability of the label given its logit.

On fresh samples the logit h is Gaussian in each class, with means ``b +- m`` and one width, so that the true log-odds are linear,
``slope h + offset`` (:func:`theory.observables.calibration`).  The calibration error is an integral in h of the modulus of a
difference of two sigmoids, which has a kink where they cross.
"""

from __future__ import annotations

import numpy as np

from numerics.deferred import special
from numerics.solution import quadrature
from numerics.solution.quadrature import Budget, Integral
from numerics.solution.samples import output_difference

TOLERANCE = 1e-13
"""Accuracy, absolute and after a second pass relative, that panels are halved for: little more work than 1e-8."""

CHECK_CUT = 0.38
"""Where panels are cut for the integral that the first one is checked against."""

FIRST_PANELS = (-40.0, -8.0, -2.0, 0.0, 2.0, 8.0, 40.0)
"""Ends of the first panels on either side of the middle of a sigmoid, in units of its width."""


def calibration_error(
    mean: float, bias: float, width: float, odds: tuple[float, float], rho: float, *, check: bool = False
) -> Integral:  # fmt: skip
    """E |P(y = 1 given h) - sigmoid(h)| on a fresh sample.

    Parameters
    ----------
    mean, bias, width
        h has mean ``s mean + bias`` and standard deviation ``width`` given the sign s of the class.
    odds : (slope, offset)
        True log-odds as a function of h.
    rho
        Probability of s = 1.
    check
        Integrate on other panels.

    Returns
    -------
    Integral
        Its error is what the panels leave unresolved.
    """
    if width == 0.0:
        return Integral(float(abs(rho - special.expit(bias))), 0.0)
    slope, offset = (float(value) for value in odds)
    classes = ((bias + mean, rho), (bias - mean, 1.0 - rho))
    edges = {centre + side * quadrature.REACH * width for centre, _ in classes for side in (-1, 0, 1)}
    low, high = min(edges), max(edges)
    edges |= set(FIRST_PANELS)
    if slope != 0.0:
        edges |= {-offset / slope + part / abs(slope) for part in FIRST_PANELS}
    if slope != 1.0:
        edges.add(offset / (1.0 - slope))  # where the sigmoids cross
    ends = np.array(sorted(edge for edge in edges if low <= edge <= high))
    if check:
        ends = np.sort(np.concatenate((ends, ends[:-1] + CHECK_CUT * np.diff(ends))))

    def integrand(_: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = sum(share * quadrature.density((h - centre) / width) for centre, share in classes) / width
        gap = np.abs(output_difference(h, (slope - 1.0) * h + offset))
        return weight * gap, np.zeros_like(h)

    found = Integral(0.0, 0.0)
    tolerance = TOLERANCE
    for _ in range(2):
        value, error = quadrature.integrate(integrand, ends, np.array([tolerance]), Budget())
        found = Integral(float(value[0]), float(error[0]))
        if not found.error > TOLERANCE * found.value:
            break
        tolerance = TOLERANCE * found.value
    return found
