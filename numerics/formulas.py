"""Formulas of ``theory.observables`` as NumPy functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import sympy
from scipy import special

from theory import observables, potential
from theory.symbols import delta, rho

_MODULES = [{"erf": special.erf, "erfc": special.erfc}, "numpy"]


def as_function(arguments: tuple[sympy.Symbol, ...], expression: sympy.Expr) -> Callable:
    """NumPy function of an expression; normal tails through ``erfc``, so that small errors keep their relative accuracy."""
    expression = expression.replace(sympy.erf, lambda x: sympy.erfc(-x) - 1)
    return sympy.lambdify(arguments, expression, modules=_MODULES)


def _symbols(names: str) -> tuple[sympy.Symbol, ...]:
    return sympy.symbols(names, real=True)


@lru_cache(maxsize=1)
def test_error() -> Callable:
    """``f(m, b, q, delta, rho)``."""
    m, b, q = _symbols("m b q")
    return as_function((m, b, q, delta, rho), observables.test_error(m, b, q, delta, rho))


@lru_cache(maxsize=1)
def training_error() -> Callable:
    """``f(threshold, mean, width, sign)``."""
    arguments = _symbols("threshold mean width s")
    return as_function(arguments, observables.training_error(*arguments))


@lru_cache(maxsize=1)
def logit_distance() -> Callable:
    """``f(m1, m2, b1, b2, q11, q22, q12, delta, rho)``."""
    m1, m2, b1, b2, q11, q22, q12 = arguments = _symbols("m1 m2 b1 b2 q11 q22 q12")
    expression = observables.logit_distance((m1, m2), (b1, b2), (q11, q22, q12), delta, rho)
    return as_function((*arguments, delta, rho), expression)


@lru_cache(maxsize=1)
def calibration() -> Callable:
    """``f(m, b, q, delta, rho)`` -> (slope, offset)."""
    m, b, q = _symbols("m b q")
    return as_function((m, b, q, delta, rho), sympy.Tuple(*observables.calibration(m, b, q, delta, rho)))


@lru_cache(maxsize=1)
def _orthant_integrand() -> Callable:
    a, b = _symbols("a b")
    return sympy.lambdify((observables.theta, a, b), observables.orthant_integrand(a, b), "numpy")


def bivariate_normal_cdf(a: float, b: float, correlation: float) -> float:
    """P(X < a, Y < b) for standard normals with this correlation."""
    from scipy import integrate  # here: seldom needed, and slow to import

    integrand = _orthant_integrand()
    with np.errstate(divide="ignore", invalid="ignore"):
        dependent, _ = integrate.quad(
            integrand, 0.0, np.arcsin(np.clip(correlation, -1.0, 1.0)), args=(a, b), epsabs=1e-13, epsrel=1e-12, limit=200
        )  # fmt: skip
    return float(special.ndtr(a) * special.ndtr(b) + dependent)


def agreement(m: np.ndarray, b: np.ndarray, q: np.ndarray, data_delta: float, data_rho: float) -> float:
    """Probability that two stages classify a test point alike; ``m``, ``b`` shape (2,), ``q`` shape (2, 2)."""
    correlation = q[0, 1] / np.sqrt(q[0, 0] * q[1, 1])
    total = 0.0
    for sign, probability in ((1.0, data_rho), (-1.0, 1.0 - data_rho)):
        x, y = (sign * m + b) / np.sqrt(data_delta * np.diag(q))
        same = bivariate_normal_cdf(x, y, correlation) + bivariate_normal_cdf(-x, -y, correlation)
        total += probability * same
    return total


@lru_cache(maxsize=16)
def free_energy(t: int) -> Callable:
    """``f(inputs, constants)`` -> Phi_t, with the vectors of ``theory.potential.free_energy(t)``."""
    equations = potential.free_energy(t)
    function = as_function((*equations.inputs, *equations.constants), equations.outputs["value"])
    return lambda inputs, constants: function(*inputs, *constants)
