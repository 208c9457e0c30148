"""What stages see of :class:`numerics.models.Dense` inputs: groups of common coordinates, or tables where there are none."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numerics.deferred import Deferred
from numerics.models import Dense, Seen
from numerics.models.dense import covariance_between, eigenbasis, without_rounding
from numerics.scalar.kernels.layout import Groups, Tables

_dense = Deferred("numerics.scalar.kernels.dense")

Array = np.ndarray

Maps = tuple[Seen | None, ...]
"""What each stage sees; None: the inputs."""


@lru_cache(maxsize=1)
def no_tables() -> Tables:
    """Where coordinates come in groups."""
    return Tables(0.0, 0.0, _dense.no_matrices(), _dense.no_matrices())


def alike(maps: Maps) -> bool:
    """Whether all stages see the same, so that the eigenvectors of its covariance are coordinates common to them."""
    return all(seen == maps[0] for seen in maps)


def scale_of(maps: Maps, variance: float) -> float:
    """Delta where what stages have in common depends on it beyond a factor, else 1."""
    return variance if any(seen is not None and not seen.scales_with_inputs for seen in maps) else 1.0


class Eigenbases(NamedTuple):
    """What stages see, each in the eigenbasis of its own covariance.

    Attributes
    ----------
    values : list of arrays, shape (p_t,)
        Eigenvalues of Omega_tt, increasing.
    vectors : list of arrays, shape (p_t, p_t), or None
        In columns; None where ``responses`` say all, because what is seen is linear in the inputs.
    responses : list of arrays, shape (p_t, p)
        Of what is seen to a shift of the inputs.
    between : dict of (t, s) to array, shape (p_t, p_s)
        Omega_ts of s < t that see different things.
    """

    values: list[Array]
    vectors: list[Array | None]
    responses: list[Array]
    between: dict[tuple[int, int], Array]

    def mixed(self, t: int, s: int) -> Array:
        """Omega_ts for s < t."""
        return self.between[t, s] if (t, s) in self.between else np.diag(self.values[t])


@lru_cache(maxsize=12)
def eigenbases(inputs: Dense, maps: Maps, variance: float) -> Eigenbases:
    """Each covariance is diagonalised once, of equal maps together; ``variance`` as of :func:`scale_of`."""
    found = {None: (*inputs.axes, inputs.axes[1].T)}
    for seen in maps:
        if seen not in found:
            values, vectors = eigenbasis(covariance_between(seen, seen, inputs, variance))
            found[seen] = values, vectors, without_rounding(values, vectors.T @ seen.response(inputs, variance))
    values, vectors, responses = (list(arrays) for arrays in zip(*(found[seen] for seen in maps), strict=True))
    linear = [seen is None or seen.scales_with_inputs for seen in maps]
    kept = [None if easy else mine for easy, mine in zip(linear, vectors, strict=True)]
    between = {}
    for t in range(len(maps)):
        for s in range(t):
            if maps[t] != maps[s]:
                mixed = vectors[t].T @ covariance_between(maps[t], maps[s], inputs, variance) @ vectors[s]
                mixed[values[t] == 0.0] = 0.0
                mixed[:, values[s] == 0.0] = 0.0
                between[t, s] = mixed
    return Eigenbases(values, kept, responses, between)


def coordinates(inputs: Dense, seen: Seen | None, variance: float) -> tuple[Array, Array]:
    """Variances and mean square signals of what all stages see, along its eigenvectors."""
    if seen is None:
        return inputs.variances, inputs.signals
    found = eigenbases(inputs, (seen,), variance)
    values, rows = found.values[0], found.responses[0]
    if inputs.direction is None:
        return values, (rows**2).sum(axis=1)
    return values, without_rounding(values, (rows @ inputs.direction)[:, None])[:, 0] ** 2


@lru_cache(maxsize=4)
def tables_of(inputs: Dense, maps: Maps, variance: float, ruled: bool) -> Tables:
    """Tables of the covariances and means of what stages see; the first of the stages is the rule, if there is one (``ruled``).

    Where no direction is given, u is written in the eigenbasis of the inputs themselves, in which stages that see them have a
    diagonal M.
    """
    bases = eigenbases(inputs, maps, variance)
    sources = [_source(inputs, seen, bases.values[t], bases.responses[t]) for t, seen in enumerate(maps)]
    kept = [_kept(bases.values[t], sources[t], ruled, t) for t in range(len(maps))]
    covariances, means, none = [], [], np.empty((0, 0))
    for t in range(len(maps)):
        for s in range(len(maps)):
            found = none
            if s == t:
                found = bases.values[t][None, kept[t]]
            elif s < t:
                found = bases.mixed(t, s)[np.ix_(kept[t], kept[s])]
            covariances.append(found)
        if ruled and t > 0:
            means.append(none)
        else:
            means.append(sources[t] if len(sources[t]) == 1 else sources[t][kept[t]])
    lists = _dense.no_matrices(), _dense.no_matrices()
    for matrices, arrays in zip(lists, (covariances, means), strict=True):
        for array in arrays:
            _dense.append_matrix(matrices, np.ascontiguousarray(array))
    return Tables(1.0 / inputs.size, 0.0, *lists)


def _source(inputs: Dense, seen: Seen | None, variances: Array, rows: Array) -> Array:
    """u, or all directions of an average, along the eigenvectors of what a map sees; a single row is a diagonal."""
    if inputs.direction is not None:
        return without_rounding(variances, (rows @ inputs.direction)[:, None])
    return np.ones((1, inputs.size)) if seen is None else rows @ inputs.axes[1]


def _kept(variances: Array, source: Array, ruled: bool, t: int) -> Array:
    """Which eigenvectors are coordinates of a stage: on what is always 0 its weights are 0, but for those of a rule."""
    if ruled:
        return np.full(len(variances), t == 0) | (variances > 0.0)
    if len(source) == 1:
        return np.ones(len(variances), dtype=bool)
    return (variances > 0.0) | (source != 0.0).any(axis=1)


def without_groups(tables: Tables, stages: int, noise: float) -> Groups:
    """No groups of coordinates, but tables; ``noise`` is what a rule adds to its field."""
    return Groups(
        np.zeros(0),
        np.zeros((0, stages), dtype=np.int64),
        np.zeros((0, stages)),
        np.zeros((0, stages, stages)),
        np.zeros(0),
        tables._replace(noise=noise),
    )
