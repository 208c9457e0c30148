"""What stages see of :class:`numerics.models.Dense` inputs: groups of common coordinates, or tables where there are none."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from numerics.deferred import Deferred
from numerics.models import Dense, LinearMap
from numerics.models.dense import eigenbasis
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
    rows = vectors.T @ matrix
    return values, (rows**2).sum(axis=1) if inputs.direction is None else (rows @ inputs.direction) ** 2


@lru_cache(maxsize=4)
def tables_of(inputs: Dense, maps: tuple[LinearMap | None, ...], ruled: bool) -> Tables:
    """Tables of the covariances and means of what stages see; the first of the stages is the rule, if there is one (``ruled``).

    Each covariance is diagonalised once, of equal maps together; where no direction is given, u is written in the eigenbasis of
    the inputs themselves, in which stages that see them have a diagonal M.
    """
    averaged = inputs.direction is None
    bases = {None: inputs.axes}
    for seen in maps:
        if seen not in bases:
            bases[seen] = eigenbasis(seen.matrix @ inputs.covariance @ seen.matrix.T)
    rows = {seen: vectors.T if seen is None else vectors.T @ seen.matrix for seen, (_, vectors) in bases.items()}
    covariances, means, none = [], [], np.empty((0, 0))
    for t, mine in enumerate(maps):
        for s, other in enumerate(maps):
            found = none
            if s == t:
                found = bases[mine][0][None, :]
            elif s < t:
                found = rows[mine] @ inputs.covariance @ rows[other].T
            covariances.append(np.ascontiguousarray(found))
        if ruled and t > 0:
            means.append(none)
        elif not averaged:
            means.append((rows[mine] @ inputs.direction)[:, None])
        else:
            means.append(np.ones((1, inputs.size)) if mine is None else rows[mine] @ inputs.axes[1])
    lists = _dense.no_matrices(), _dense.no_matrices()
    for matrices, arrays in zip(lists, (covariances, means), strict=True):
        for array in arrays:
            _dense.append_matrix(matrices, np.ascontiguousarray(array))
    return Tables(1.0 / inputs.size, 0.0, *lists)


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
