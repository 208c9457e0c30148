"""Clusters: inputs that are Gaussian in each of several clusters, each with a mean and a covariance of its own.

Every cluster c has order parameters ``m^c, Q^c_ts, V^c_ts`` and conjugates of its own.  Samples of different clusters are
independent, so that the terms of the potential that tie order parameters to conjugates, and its energetic part, are sums over
clusters of what :mod:`theory.potential` has, with Delta = 1: the covariance is inside the order parameters.  What is common to all
clusters are the weights.  On a coordinate where cluster c has a mean ``s M^c``, s the sign of its label, and stages see covariances
``Omega^c_ts``, the replicated action holds the conjugates only through the sums ``sum_c M^c mh^c``, ``sum_c Omega^c_ts Qh^c_ts``
and ``sum_c Omega^c_ts Vh^c_ts``.
"""

from __future__ import annotations

from functools import lru_cache

from sympy import Add, Expr, Symbol, factor_terms

from theory.potential import (
    Equations,
    conjugate_pairs,
    conjugates,
    coupling,
    earlier_moments,
    entropic_potential,
    order_parameters,
    solve_stationarity,
    spectrum_factors,
)
from theory.symbols import eta, input_covariance, input_mean, ridge


def in_cluster(symbol: Symbol, cluster: int) -> Symbol:
    """The same of one cluster, counted from 1.

    Examples
    --------
    >>> in_cluster(input_covariance(2, 1), 3)
    Omega_21^3
    """
    return Symbol(f"{symbol.name}^{cluster}", **symbol.assumptions0)


def summed(expression: Expr, t: int, clusters: int) -> Expr:
    """Of a coordinate on which clusters have means and covariances of their own: conjugates come in sums over clusters."""
    sums = {
        conjugate: Add(*(in_cluster(factor, c) * in_cluster(conjugate, c) for c in range(1, clusters + 1)))
        for conjugate, factor in spectrum_factors(t).items()
    }
    return expression.xreplace(sums)


def cluster_potential(t: int, clusters: int) -> Expr:
    """Phi_t without its energetic part, of one coordinate; eta is its share, 1/N.

    Means are given numbers, so that what :func:`theory.potential.entropic_potential` calls v is 1: mu_s is E[w_s], and B_sr is
    E[w_s w_r].
    """
    tied = Add(
        *(
            coupling(t).xreplace({symbol: in_cluster(symbol, c) for symbol in (*order_parameters(t), *conjugates(t))})
            for c in range(1, clusters + 1)
        )
    )
    return tied + summed(entropic_potential(t), t, clusters)


@lru_cache(maxsize=16)
def cluster_prior_equations(t: int, clusters: int) -> Equations:
    """Order parameters of all clusters from their conjugates: d Phi/d(conjugate) = 0.

    Inputs, and outputs, are those of :func:`theory.potential.prior_equations`, cluster after cluster; constants eta, the ridge,
    for each cluster ``M^c`` and ``Omega^c_t1..Omega^c_tt``, then mu_s, B_sr, G_sk of the earlier stages.  Coordinates add up.

    Examples
    --------
    >>> print(cluster_prior_equations(1, 2).outputs["V_11^2"])
    Omega_11^2*eta/(Omega_11^1*Vh_11^1 + Omega_11^2*Vh_11^2 + lambda)
    """
    phi = cluster_potential(t, clusters)
    inputs, outputs, seen = [], {}, []
    for c in range(1, clusters + 1):
        seen += [in_cluster(input_mean(t), c), *(in_cluster(input_covariance(t, s), c) for s in range(1, t + 1))]
        inputs += [in_cluster(symbol, c) for symbol in conjugates(t)]
        for parameter, conjugate in conjugate_pairs(t):
            unknown = in_cluster(parameter, c)
            outputs[unknown.name] = factor_terms(solve_stationarity(phi, in_cluster(conjugate, c), unknown))
    return Equations.build(inputs, (eta, ridge, *seen, *earlier_moments(t)), outputs)
