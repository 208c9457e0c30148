"""Formulas of ``theory.observables`` as NumPy functions, whose text is kept in the cache folder."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import sympy
from numpy.typing import NDArray

from numerics.codegen.cache import derived_source
from numerics.codegen.printing import with_tails
from numerics.deferred import special
from theory import observables, potential
from theory.envelope import gamma
from theory.symbols import delta, rho


def as_function(arguments: tuple[sympy.Symbol, ...], expression: sympy.Expr) -> Callable:
    """NumPy function of an expression; normal tails through ``erfc``, so that small errors keep their relative accuracy."""
    return _function(_source(arguments, expression))


def _source(arguments: tuple[sympy.Symbol, ...], expression: sympy.Expr) -> str:
    names = dict.fromkeys(_numbers(), None)
    return inspect.getsource(sympy.lambdify(arguments, with_tails(expression), modules=[names, "numpy"]))


def _function(source: str) -> Callable:
    namespace = {**vars(np), **_numbers()}
    exec(source, namespace)  # text that lambdify printed
    return namespace["_lambdifygenerated"]


def _numbers() -> dict[str, Callable]:
    """Functions that the printed text calls beside those of NumPy."""
    return {"complement": special.erfc, "erf": special.erf, "bivariate_normal_cdf": bivariate_normal_cdf}


@lru_cache(maxsize=1)
def _version() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


def _kept(name: str, derive: Callable[[], tuple[tuple[sympy.Symbol, ...], sympy.Expr]]) -> Callable:
    """:func:`as_function` of what ``derive`` returns, which depends on theory and this file alone."""
    return _function(derived_source(f"{name}_{_version()}", lambda: _source(*derive())))


def _symbols(names: str) -> tuple[sympy.Symbol, ...]:
    return sympy.symbols(names, real=True)


@lru_cache(maxsize=1)
def test_error() -> Callable:
    """``f(m, b, q, delta, rho)``."""
    arguments = (*_symbols("m b q"), delta, rho)
    return _kept("test_error", lambda: (arguments, observables.test_error(*arguments)))


@lru_cache(maxsize=1)
def direction_error() -> Callable:
    """``f(m, q, delta, rho)``."""
    arguments = (*_symbols("m q"), delta, rho)
    return _kept("direction_error", lambda: (arguments, observables.direction_error(*arguments)))


@lru_cache(maxsize=1)
def training_error() -> Callable:
    """``f(threshold, mean, width, sign)``."""
    arguments = _symbols("threshold mean width s")
    return _kept("training_error", lambda: (arguments, observables.training_error(*arguments)))


@lru_cache(maxsize=1)
def field_of() -> Callable:
    """``f(level, slope, gamma)``."""
    level, slope = _symbols("level slope")
    return _kept("field_of", lambda: ((level, slope, gamma), observables.field_of(level, slope)))


@lru_cache(maxsize=1)
def bayes_bias() -> Callable:
    """``f(q, delta, rho)``."""
    arguments = (*_symbols("q,"), delta, rho)
    return _kept("bayes_bias", lambda: (arguments, observables.bayes_bias(*arguments)))


@lru_cache(maxsize=1)
def cosine() -> Callable:
    """``f(q12, q11, q22)``."""
    arguments = _symbols("q12 q11 q22")
    return _kept("cosine", lambda: (arguments, observables.cosine(*arguments)))


def _of_two(name: str, formula: Callable[..., sympy.Expr]) -> Callable:
    m1, m2, b1, b2, q11, q22, q12 = arguments = _symbols("m1 m2 b1 b2 q11 q22 q12")
    return _kept(name, lambda: ((*arguments, delta, rho), formula((m1, m2), (b1, b2), (q11, q22, q12), delta, rho)))


@lru_cache(maxsize=1)
def logit_distance() -> Callable:
    """``f(m1, m2, b1, b2, q11, q22, q12, delta, rho)``."""
    return _of_two("logit_distance", observables.logit_distance)


def _of_signs(name: str, formula: Callable[..., sympy.Expr]) -> Callable:
    cdf = sympy.Function(bivariate_normal_cdf.__name__)
    return _of_two(name, lambda *arguments: formula(*arguments, cdf=cdf))


@lru_cache(maxsize=1)
def agreement() -> Callable:
    """``f(m1, m2, b1, b2, q11, q22, q12, delta, rho)`` of numbers."""
    return _of_signs("agreement", observables.agreement)


@lru_cache(maxsize=1)
def right_and_wrong() -> Callable:
    """``f(m1, m2, b1, b2, q11, q22, q12, delta, rho)`` of numbers."""
    return _of_signs("right_and_wrong", observables.right_and_wrong)


@lru_cache(maxsize=1)
def calibration() -> Callable:
    """``f(m, b, q, delta, rho)`` -> (slope, offset)."""
    arguments = (*_symbols("m b q"), delta, rho)
    return _kept("calibration", lambda: (arguments, sympy.Tuple(*observables.calibration(*arguments))))


def bivariate_normal_cdf(a: float, b: float, correlation: float) -> float:
    """P(X < a, Y < b) of standard normals, correlation in [-1, 1], by Owen's T function (Owen 1956)."""
    if correlation >= 1.0:
        return float(special.ndtr(min(a, b)))
    if correlation <= -1.0:
        return float(max(0.0, special.ndtr(a) - special.ndtr(-b)))
    if math.isinf(a) or math.isinf(b):
        return float(special.ndtr(a) * special.ndtr(b))
    if a == 0.0 and b == 0.0:
        return 0.25 + math.asin(correlation) / (2 * math.pi)
    root = math.sqrt((1.0 - correlation) * (1.0 + correlation))

    def wing(x: float, other: float) -> float:
        slope = (other / x - correlation) / root if x != 0.0 else math.copysign(math.inf, other)
        return 0.5 * special.ndtr(x) - special.owens_t(x, slope)

    opposite = a * b < 0.0 or (a * b == 0.0 and a + b < 0.0)
    return float(wing(a, b) + wing(b, a) - (0.5 if opposite else 0.0))


@lru_cache(maxsize=16)
def free_energy(t: int) -> Callable:
    """``f(inputs, groups)`` -> Phi_t, with the vectors of ``theory.potential.free_energy(t)``: one row of constants a group."""

    def derive() -> tuple[tuple[sympy.Symbol, ...], sympy.Expr]:
        equations = potential.free_energy(t, spectrum=True)
        return (*equations.inputs, *equations.constants), equations.outputs["value"]

    def derive_entropic() -> tuple[tuple[sympy.Symbol, ...], sympy.Expr]:
        equations = potential.free_energy(t, spectrum=True)
        return (*equations.inputs, *equations.constants), equations.outputs["entropic"]

    function, entropic = _kept(f"free_energy{t}", derive), _kept(f"entropic{t}", derive_entropic)

    def value(inputs: Sequence[float], groups: NDArray[np.float64]) -> float:
        first, *others = groups
        return function(*inputs, *first) + sum(entropic(*inputs, *group) for group in others)

    return value


@lru_cache(maxsize=16)
def coupling(t: int) -> Callable:
    """``f(order parameters, conjugates)``, one argument each: the terms of Phi_t that tie them."""
    arguments = (*potential.order_parameters(t), *potential.conjugates(t))
    return _kept(f"coupling{t}", lambda: (arguments, potential.coupling(t)))
