"""The one-stage equations as they are usually solved: nested ``quad``, a scalar minimiser, damped iteration.

This is the yardstick of the benchmarks, written as one would at the first attempt and kept that way: no caching, no derivative
information, the proximal point found anew for every integrand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from numerics import GaussianMixture

DAMPING = 0.5
TOLERANCE = 1e-6  # about what the scalar minimiser's noise allows
MAX_ITERATIONS = 500


@dataclass
class Overlaps:
    """Order parameters of logistic regression."""

    m: float = 0.1
    q: float = 0.5
    v: float = 1.0
    b: float = 0.0


def proximal_point(u: float, s: float, gamma: float) -> float:
    """Minimum over h of log(1 + exp(-s h)) + (h - u)^2/(2 gamma)."""
    return minimize_scalar(lambda h: np.logaddexp(0.0, -s * h) + (h - u) ** 2 / (2 * gamma)).x


def average(function, data: GaussianMixture, now: Overlaps) -> float:
    """Mean of ``function(f, curvature, s)`` over labels and fields."""
    gamma = data.delta * now.v
    total = 0.0
    for s, probability in ((1.0, data.rho), (-1.0, 1 - data.rho)):

        def integrand(z: float, s: float = s) -> float:
            u = s * now.m + now.b + math.sqrt(data.delta * now.q) * z
            h = proximal_point(u, s, gamma)
            curvature = 1 / (2 + math.exp(h) + math.exp(-h))
            return function((h - u) / gamma, curvature, s) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        total += probability * quad(integrand, -8, 8)[0]
    return total


def solve_logistic(data: GaussianMixture, ridge: float) -> tuple[Overlaps, int]:
    """Damped iteration from a fixed start; returns the order parameters and the number of iterations."""
    now = Overlaps()
    for iteration in range(1, MAX_ITERATIONS + 1):
        gamma = data.delta * now.v
        mh = data.alpha * average(lambda f, curvature, s: s * f, data, now)
        qh = data.alpha * data.delta * average(lambda f, curvature, s: f * f, data, now)
        stiffness = average(lambda f, curvature, s, gamma=gamma: curvature / (1 + gamma * curvature), data, now)
        force = average(lambda f, curvature, s: f, data, now)
        vh = data.alpha * data.delta * stiffness
        new = Overlaps(mh / (ridge + vh), (mh**2 + qh) / (ridge + vh) ** 2, 1 / (ridge + vh), now.b + force / stiffness)
        change = max(abs(getattr(new, name) - getattr(now, name)) for name in ("m", "q", "v", "b"))
        now = Overlaps(
            **{name: DAMPING * getattr(now, name) + (1 - DAMPING) * getattr(new, name) for name in ("m", "q", "v", "b")}
        )
        if change < TOLERANCE:
            return now, iteration
    raise RuntimeError("the damped iteration did not converge")
