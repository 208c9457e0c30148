"""What stages see of :class:`numerics.models.Dense` inputs: groups of common coordinates, or tables where there are none."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from numerics.deferred import Deferred
from numerics.models import Dense, LinearMap
from numerics.models.dense import eigenbasis, without_rounding
from numerics.scalar.kernels.layout import Groups, Tables

_dense = Deferred("numerics.scalar.kernels.dense")

Array = np.ndarray


@lru_cache(maxsize=1)
def no_tables() -> Tables:
    """Where coordinates come in groups."""
    return Tables(0.0, 0.0, _dense.no_matrices(), _dense.no_matrices())


def alike(maps: tuple[LinearMap | None, ...]) -> bool:
    """Whether all stages see the same, so that the eigenvectors of its covariance are coordinates common to them."""
    return all(seen == maps[0] for seen in maps)


def coordinates(inputs: Dense, seen: LinearMap | None) -> tuple[Array, Array]:
    """Variances and mean square signals of what all stages see, along its eigenvectors."""
    if seen is None:
        return inputs.variances, inputs.signals
    matrix = seen.matrix
    values, vectors = eigenbasis(matrix @ inputs.covariance @ matrix.T)
    rows = without_rounding(values, vectors.T @ matrix)
    if inputs.direction is None:
        return values, (rows**2).sum(axis=1)
    return values, without_rounding(values, (rows @ inputs.direction)[:, None])[:, 0] ** 2


@lru_cache(maxsize=4)
def tables_of(inputs: Dense, maps: tuple[LinearMap | None, ...], ruled: bool) -> Tables:
    """Tables of the covariances and means of what stages see; the first of the stages is the rule, if there is one (``ruled``).

    Each covariance is diagonalised once, of equal maps together; where no direction is given, u is written in the eigenbasis of
    the inputs themselves, in which stages that see them have a diagonal M.
    """
    bases = {None: inputs.axes}
    for seen in maps:
        if seen not in bases:
            bases[seen] = eigenbasis(seen.matrix @ inputs.covariance @ seen.matrix.T)
    rows = {
        seen: vectors.T if seen is None else without_rounding(values, vectors.T @ seen.matrix)
        for seen, (values, vectors) in bases.items()
    }
    sources = {seen: _source(inputs, seen, bases[seen][0], rows[seen]) for seen in bases}
    kept = [_kept(bases[seen][0], sources[seen], ruled, t) for t, seen in enumerate(maps)]
    covariances, means, none = [], [], np.empty((0, 0))
    for t, mine in enumerate(maps):
        for s, other in enumerate(maps):
            found = none
            if s == t:
                found = bases[mine][0][None, kept[t]]
            elif s < t:
                found = rows[mine][kept[t]] @ inputs.covariance @ rows[other][kept[s]].T
                found[bases[mine][0][kept[t]] == 0.0] = 0.0
                found[:, bases[other][0][kept[s]] == 0.0] = 0.0
            covariances.append(np.ascontiguousarray(found))
        if ruled and t > 0:
            means.append(none)
        else:
            source = sources[mine]
            means.append(source if len(source) == 1 else source[kept[t]])
    lists = _dense.no_matrices(), _dense.no_matrices()
    for matrices, arrays in zip(lists, (covariances, means), strict=True):
        for array in arrays:
            _dense.append_matrix(matrices, np.ascontiguousarray(array))
    return Tables(1.0 / inputs.size, 0.0, *lists)


def _source(inputs: Dense, seen: LinearMap | None, variances: Array, rows: Array) -> Array:
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
