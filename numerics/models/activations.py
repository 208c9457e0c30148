"""Activations: their Gaussian averages, and the covariance that two of them have on fields that are jointly Gaussian.

For fields a and b of variances A and B and covariance C

    Cov(relu a, relu b) = sqrt(A B) (sqrt(1 - r^2) - 1 + r (pi/2 + asin r))/(2 pi),  r = C/sqrt(A B)     (Cho & Saul 2009),
    E[f(a) g(b)] = (2/pi) asin(C/sqrt((A + j_f)(B + j_g)))  for sign, with j = 0, and erf, with j = 1/2  (Williams 1998),
    E[relu(a) g(b)] = C E[g']/2  for odd g,

where relu is ``(a + |a|)/2`` and ``erf b`` the mean sign of b and a noise of variance 1/2.  All others are sums over Hermite
polynomials, ``sum_n f_n g_n r^n``, of as many terms as leave ``SERIES_ERROR``: what is left is at most ``|r|^n sqrt(F G)``, with F
and G the parts of the variances that are not summed.  Where no number of terms does, as for fields that are nearly the same and
activations that are steep on them, the few covariances are integrated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import sympy
from numpy.typing import NDArray

from numerics.deferred import special
from numerics.models.checks import ParameterError
from theory.parser import read_formula
from theory.symbols import h

Array = NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda u: np.maximum(u, 0.0),
    "erf": lambda u: special.erf(u),
    "tanh": np.tanh,
    "sign": np.sign,
}
"""By name; any smooth formula of h will do as well."""

SERIES_ERROR = 1e-9
"""Of the covariance of two features that is a series, over their standard deviations."""

_REACH = 12.0  # of averages over a field, in standard deviations
_WIDEST, _HALVINGS = 0.125, 38  # of Gauss-Legendre panels on either side of 0, narrower and narrower next to it
_PANEL_NODES = 16
_MOMENT_ERROR = 1e-9  # of averages of an activation, over the root of its mean square
_TAIL = 1e-12  # of a mean square, beyond the reach
_ORDERS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # Hermite polynomials in the covariance of two features
_ROUNDING = 1e-13
_NOTHING = 1e-200  # variance of features
_MOST_INTEGRALS = 5000
_LEGENDRE = (120, 160)  # nodes on each side of a kink, of which the fewer check the others
_APART = 1e-9  # of two fields that are one
_CHUNK = 500  # fields whose activations are held at once
_JITTER = {"sign": 0.0, "erf": 0.5}  # j
_ODD = ("tanh", *_JITTER)


class Moments(NamedTuple):
    """Mean ``k0``, slope ``k1 = E phi'``, and variance ``k*^2`` of what is neither, at each of the variances."""

    mean: Array
    slope: Array
    rest: Array


_FUNCTIONS = {
    "erf": lambda u: special.erf(u),
    "erfc": lambda u: special.erfc(u),
    "sigmoid": lambda u: special.expit(u),
    "softplus": lambda u: np.logaddexp(0.0, u),
    "step": lambda u: np.heaviside(u, 0.5),
    "log_sum_exp": lambda *u: special.logsumexp(np.broadcast_arrays(*u), axis=0),
}
"""What formulas may hold besides NumPy's functions."""


@lru_cache(maxsize=64)
def function_of(activation: str) -> Callable[[Array], Array]:
    """phi by its name or its formula.

    Raises
    ------
    ParameterError
        If it is neither.
    """
    if not isinstance(activation, str):
        raise ParameterError(
            f"activation must be one of {', '.join(ACTIVATIONS)} or a formula of h, got {activation!r}"
        )
    if activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    try:
        formula = read_formula(activation, {})
    except ValueError as error:
        reason = str(error).replace("the loss formula", "the formula").replace("the loss", "the formula")
        reason = reason.partition("; known:")[0]
        raise ParameterError(
            f"activation must be one of {', '.join(ACTIVATIONS)} or a smooth formula of h: {reason}"
        ) from None
    if formula.free_symbols != {h}:
        raise ParameterError(f"activation must be a formula of h alone, got {activation!r}")
    printed = sympy.lambdify([h], formula, modules=[_FUNCTIONS, "scipy", "numpy"])
    return lambda u: np.broadcast_to(printed(np.asarray(u, dtype=float)), np.shape(u))


def moments_of(activation: str, variances: Array) -> Moments:
    """On fields of these positive variances, shape (n,).

    Raises
    ------
    ParameterError
        For a formula that is not finite there.
    """
    variances = np.asarray(variances, dtype=float)
    deviations = np.sqrt(variances)
    if activation == "relu":
        half = np.full_like(variances, 0.5)
        return Moments(deviations / math.sqrt(2.0 * math.pi), half, variances * (0.25 - 0.5 / math.pi))
    if activation == "sign":
        rest = np.full_like(variances, 1.0 - 2.0 / math.pi)
        return Moments(np.zeros_like(variances), math.sqrt(2.0 / math.pi) / deviations, rest)
    if activation == "erf":
        slope = 2.0 / np.sqrt(math.pi * (1.0 + 2.0 * variances))
        square = 2.0 / math.pi * np.arcsin(2.0 * variances / (1.0 + 2.0 * variances))
        return Moments(np.zeros_like(variances), slope, square - variances * slope**2)
    return _moments_on_nodes(activation, variances)


def _moments_on_nodes(activation: str, variances: Array) -> Moments:
    deviations = np.sqrt(variances)
    coarse, fine = (_averages(activation, deviations, panels) for panels in (1, 2))
    mean, first, rest, square = fine
    if not (first**2 + rest).min() > _NOTHING:
        raise ParameterError(f"activation {activation!r} must vary on fields of variance {variances.min():g}")
    scale = np.sqrt(square)
    missed = np.max(np.abs(fine[:3] - coarse[:3]) / np.array([scale, scale, square]), axis=0)
    if not missed.max() <= _MOMENT_ERROR:
        worst = int(np.argmax(missed))
        raise ParameterError(
            f"activation {activation!r} must be smoother on fields of variance {variances[worst]:g}: its averages are known to "
            f"{missed[worst]:.1g} only"
        )
    return Moments(mean, first / deviations, rest)


def _averages(activation: str, deviations: Array, panels: int) -> Array:
    """Mean, slope times the deviation, mean square of what is neither, and mean square, shape (4, fields)."""
    nodes, weights = _nodes(panels)
    found = np.empty((4, len(deviations)))
    for some, values in _values(activation, deviations, panels):
        mean, first = values @ weights, values @ (weights * nodes)
        # The square of what is left, which loses no digits where it is small.
        rest = (values - mean[:, None] - first[:, None] * nodes) ** 2 @ weights
        found[:, some] = mean, first, rest, values**2 @ weights
    return found


@lru_cache(maxsize=2)
def _nodes(panels: int = 1) -> tuple[Array, Array]:
    """Standard normal nodes and their weights; each panel in so many parts.  Kinks, jumps and steep slopes may be at 0."""
    edges = np.concatenate(
        [[0.0], _WIDEST * 0.5 ** np.arange(_HALVINGS, 0, -1.0), np.arange(_WIDEST, _REACH + 0.5 * _WIDEST, _WIDEST)]
    )
    x, weights = np.polynomial.legendre.leggauss(_PANEL_NODES)
    parts = np.concatenate([edges[:-1] + k / panels * np.diff(edges) for k in range(panels)])
    half = np.tile(0.5 * np.diff(edges) / panels, panels)[:, None]
    nodes, weights = (parts[:, None] + half * (1.0 + x)).ravel(), (half * weights).ravel()
    nodes, weights = np.concatenate([-nodes, nodes]), np.concatenate([weights, weights])
    weights = weights * np.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


def _values(activation: str, deviations: Array, panels: int = 1) -> Iterator[tuple[slice, Array]]:
    """The activation on the nodes of fields, some fields at a time: which, and values of shape (fields, nodes)."""
    nodes, weights = _nodes(panels)
    function, ends = function_of(activation), np.array([-_REACH, _REACH])
    for start in range(0, len(deviations), _CHUNK):
        some = slice(start, start + _CHUNK)
        with np.errstate(all="ignore"):
            values = function(deviations[some, None] * nodes)
            squares = values**2 @ weights
            beyond = (function(deviations[some, None] * ends) ** 2).max(axis=1) * math.exp(-0.5 * _REACH**2)
        bad = ~np.isfinite(squares) | ~(beyond <= _TAIL * squares)
        if bad.any():
            raise ParameterError(
                f"activation {activation!r} must be finite, and of a finite mean square, at fields of variance "
                f"{deviations[some][bad][0] ** 2:g}"
            )
        yield some, values


# Covariances of two activations.


def covariance_of(
    activations: tuple[str, str], covariance: Array, variances: tuple[Array, Array], *, same: bool = False
) -> Array:
    """Of features of fields with this covariance, shape (n, m), and these variances, shapes (n,) and (m,).

    Of the ``same`` features the diagonal is their variance.

    Raises
    ------
    ParameterError
        For activations so steep on fields that are nearly the same that covariances are not known to ``SERIES_ERROR``.
    """
    one, other = activations
    if other == "relu" and one != "relu":
        return covariance_of((other, one), covariance.T, variances[::-1]).T
    first, second = (np.sqrt(found) for found in variances)
    if one == "relu" and other in _ODD:
        found = 0.5 * covariance * moments_of(other, variances[1]).slope
    elif one in _JITTER and other in _JITTER:
        apart = np.outer(np.sqrt(variances[0] + _JITTER[one]), np.sqrt(variances[1] + _JITTER[other]))
        found = 2.0 / math.pi * np.arcsin(np.clip(covariance / apart, -1.0, 1.0))
    else:
        scale = np.outer(first, second)
        cosines = np.clip(covariance / scale, -1.0, 1.0)
        if one == other == "relu":
            found = np.sqrt(1.0 - cosines**2) - 1.0 + cosines * (0.5 * math.pi + np.arcsin(cosines))
            found *= scale / (2.0 * math.pi)
        else:
            found = _series(activations, cosines, variances, same)
    if same:
        np.fill_diagonal(found, _squares(one, variances[0]))
    return found


def _squares(activation: str, variances: Array) -> Array:
    """Variances of features."""
    moments = moments_of(activation, variances)
    return variances * moments.slope**2 + moments.rest


def _series(activations: tuple[str, str], cosines: Array, variances: tuple[Array, Array], same: bool) -> Array:
    sizes = np.abs(cosines)
    if same:
        np.fill_diagonal(sizes, 0.0)
    largest = float(sizes.max())
    found = [_hermite(activation, fields) for activation, fields in zip(activations, variances, strict=True)]
    rests = [_rests(*given) for given in zip(activations, variances, found, strict=True)]
    for orders in _ORDERS:
        left = math.prod(math.sqrt(rest[orders]) for rest in rests)
        if largest**orders * left <= SERIES_ERROR:
            break
    total = np.zeros_like(cosines)
    for n in range(orders - 1, 0, -1):
        mine, others = (coefficients[:, n] for coefficients in found)
        if mine.any() and others.any():
            total += np.outer(mine, others)
        total *= cosines
    missed = np.nonzero(sizes**orders * left > SERIES_ERROR)
    if len(missed[0]) > _MOST_INTEGRALS:
        raise ParameterError(
            f"{_named(activations)} must be smoother on fields of variance {max(map(np.max, variances)):g}: {orders} Hermite "
            f"polynomials miss {len(missed[0])} of their covariances, and at most {_MOST_INTEGRALS} are integrated"
        )
    for i, j in zip(*missed, strict=True):
        total[i, j] = _integral(activations, (variances[0][i], variances[1][j]), cosines[i, j])
    return total


def _named(activations: tuple[str, str]) -> str:
    return f"activations {' and '.join(map(repr, activations))}"


def _integral(activations: tuple[str, str], variances: tuple[float, float], cosine: float) -> float:
    """Covariance of two features, by Gauss-Legendre on either side of the kinks at 0."""
    deviations = [math.sqrt(variance) for variance in variances]
    scale = math.prod(
        math.sqrt(_squares(kind, np.array([found]))[0]) for kind, found in zip(activations, variances, strict=True)
    )
    coarse, fine = (_on_legendre(activations, deviations, cosine, count) for count in _LEGENDRE)
    if not abs(fine - coarse) <= SERIES_ERROR * scale:
        raise ParameterError(
            f"{_named(activations)} must be smoother on fields of variance {max(variances):g} and cosine {cosine:.6g}: their "
            f"covariance is known to {abs(fine - coarse) / scale:.1g} only"
        )
    return fine


def _on_legendre(activations: tuple[str, str], deviations: Sequence[float], cosine: float, count: int) -> float:
    """By so many nodes on each side."""
    one, other = map(function_of, activations)
    (first, second), apart = deviations, max(math.sqrt(1.0 - cosine**2), _APART)
    u, weights = _around(np.zeros(1), count)
    z, inner = _around(-cosine * u[0] / apart, count)
    given = (inner * other(second * (cosine * u[0][:, None] + apart * z))).sum(axis=1)
    own, alone = one(first * u[0]), other(second * u[0])
    return float(weights[0] @ (own * given) - (weights[0] @ own) * (weights[0] @ alone))


def _around(kinks: Array, count: int) -> tuple[Array, Array]:
    """Nodes on both sides of some kinks, and their weights times the normal density, shapes (kinks, 2 count)."""
    x, weights = np.polynomial.legendre.leggauss(count)
    kinks = np.clip(kinks, -_REACH, _REACH)[:, None]
    nodes = np.hstack([0.5 * ((end - kinks) * x + end + kinks) for end in (-_REACH, _REACH)])
    lengths = np.hstack([np.abs(end - kinks) * weights for end in (-_REACH, _REACH)])
    return nodes, 0.5 * lengths * np.exp(-0.5 * nodes**2) / math.sqrt(2.0 * math.pi)


def _rests(activation: str, variances: Array, coefficients: Array) -> dict[int, float]:
    """Largest share of a variance that is not in the first so many coefficients."""
    shares = coefficients[:, 1:] ** 2 / _squares(activation, variances)[:, None]
    beyond = np.maximum(1.0 - shares.sum(axis=1), 0.0)
    beyond[beyond < _ROUNDING] = 0.0
    return {orders: float((shares[:, orders - 1 :].sum(axis=1) + beyond).max()) for orders in _ORDERS}


def _hermite(activation: str, variances: Array) -> Array:
    """Coefficients in normalised Hermite polynomials, shape (n, orders)."""
    if activation in ("relu", "sign"):
        return _of_kinks(activation, variances)
    found = np.empty((len(variances), _ORDERS[-1]))
    polynomials = _polynomials()
    for some, values in _values(activation, np.sqrt(variances)):
        found[some] = values @ polynomials
    return found


@lru_cache(maxsize=1)
def _polynomials() -> Array:
    """Normalised Hermite polynomials on the nodes, times weights, shape (nodes, orders)."""
    nodes, weights = _nodes()
    found = np.empty((len(nodes), _ORDERS[-1]))
    before, here = np.zeros_like(nodes), weights
    for n in range(_ORDERS[-1]):
        found[:, n] = here
        before, here = here, (nodes * here - math.sqrt(n) * before) / math.sqrt(n + 1.0)
    return found


def _of_kinks(activation: str, variances: Array) -> Array:
    """Of a function with a kink or a jump at 0, from the Hermite numbers ``He_n(0)``."""
    orders, density = _ORDERS[-1], 1.0 / math.sqrt(2.0 * math.pi)
    at_zero = np.zeros(orders)  # He_n(0)/sqrt(n!)
    at_zero[0] = 1.0
    for n in range(2, orders):
        at_zero[n] = -math.sqrt((n - 1.0) / n) * at_zero[n - 2]
    found, n = np.zeros(orders), np.arange(orders)
    if activation == "sign":
        found[1:] = 2.0 * density * at_zero[:-1] / np.sqrt(n[1:])
        return np.tile(found, (len(variances), 1))
    found[2:] = density * at_zero[:-2] / np.sqrt(n[2:] * (n[2:] - 1.0))
    found[:2] = density, 0.5
    return np.sqrt(variances)[:, None] * found
