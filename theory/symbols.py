"""Symbols shared by the whole package; a symbol here is the symbol of the equations.

Stages are counted from 1.  Two-index quantities of stages t and s carry both indices, ``Q_21``; from stage
10 on the indices are separated, ``Q_10_2``.  A hat (conjugate variable) is the letter ``h``: ``mh``,
``Qh``, ``Vh``.
"""

from __future__ import annotations

from sympy import Symbol

h = Symbol("h", real=True)
"""Preactivation (logit) of the stage that is being fitted."""

y = Symbol("y", real=True)
"""Label, 0 or 1."""

TEACHER = Symbol("h_teacher", real=True)
"""Logit of the teacher: the previous stage unless the loss chooses another."""

sign = Symbol("s", real=True)
"""Sign of the label, s = 2y - 1."""

alpha = Symbol("alpha", positive=True)
rho = Symbol("rho", positive=True)
delta = Symbol("Delta", positive=True)
eta = Symbol("eta", positive=True)
ridge = Symbol("lambda", positive=True)


def logit(stage: int) -> Symbol:
    """Logit of stage ``stage`` (counted from 1), the symbol ``h_1``, ``h_2``, ..."""
    if stage < 1:
        raise ValueError(f"stages are counted from 1, got stage {stage}")
    return Symbol(f"h_{stage}", real=True)


def indexed(name: str, *indices: int, **assumptions: bool) -> Symbol:
    """Symbol ``name`` with stage indices: ``indexed("Q", 2, 1)`` is ``Q_21``.  Real unless told otherwise."""
    separator = "" if all(index < 10 for index in indices) else "_"
    return Symbol(f"{name}_{separator.join(map(str, indices))}", **(assumptions or {"real": True}))


def magnetization(t: int) -> Symbol:
    """m_t = w_t.v/N."""
    return indexed("m", t)


def bias(t: int) -> Symbol:
    """b_t, the unregularised bias."""
    return indexed("b", t)


def overlap(t: int, s: int) -> Symbol:
    """Q_ts = w_t.w_s/N, symmetric: the larger index comes first."""
    return indexed("Q", max(t, s), min(t, s))


def response(t: int, s: int) -> Symbol:
    """V_ts, response of w_t to a field on stage s <= t."""
    return indexed("V", t, s)


def magnetization_hat(t: int) -> Symbol:
    """Conjugate of m_t."""
    return indexed("mh", t)


def overlap_hat(t: int, s: int) -> Symbol:
    """Conjugate Qh_ts of the response V_ts: covariance of the random fields xi_t, xi_s."""
    return indexed("Qh", max(t, s), min(t, s))


def response_hat(t: int, s: int) -> Symbol:
    """Conjugate Vh_ts of the overlap Q_ts."""
    return indexed("Vh", t, s)


def input_covariance(t: int, s: int) -> Symbol:
    """Omega_ts, covariance of one coordinate of the inputs of stages t and s given the class, over Delta; symmetric."""
    return indexed("Omega", max(t, s), min(t, s))


def input_mean(t: int) -> Symbol:
    """c_t: that coordinate of the class mean is c_t v in the inputs of stage t."""
    return indexed("c", t)


def cholesky(t: int, k: int) -> Symbol:
    """C_tk, lower-triangular Cholesky factor of the overlaps, Q = C C^T."""
    return indexed("C", t, k)


def field(t: int) -> Symbol:
    """Cavity field omega_t of stage t."""
    return indexed("omega", t)


def lower_triangle(function, size: int) -> tuple[Symbol, ...]:
    """Symbols ``function(t, s)``, s <= t <= size, row by row."""
    return tuple(function(t, s) for t in range(1, size + 1) for s in range(1, t + 1))
