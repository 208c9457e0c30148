"""What the inputs that a stage sees say of labels, and in how many directions they vary: what limits of a ridge of 0 depend on."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from numerics.models import Chain, DataModel, Inputs, structured
from numerics.scalar.kernels.layout import Groups
from numerics.scalar.prior import coordinate_groups
from numerics.thresholds import Evidence

_WHOLE = 1e-10
"""Share of a rule's field that may be missing from what explains all of it."""


def seen_by(data: DataModel, chain: Chain, number: int) -> Evidence:
    """What stage ``number``, from 1, of the chain in the equations sees."""
    if not structured(data, chain):
        return Evidence.white(chain[number - 1].eta)
    masks = tuple((stage.eta, stage.mask_overlap, stage.features) for stage in chain.stages)
    return _seen(data.inputs, data.variance, data.ruled, masks, number - 1, _Problem(data, chain))


class _Problem:
    """Carries data and chain past the cache: what is seen depends on what else it is asked with."""

    def __init__(self, data: DataModel, chain: Chain) -> None:
        self.data, self.chain = data, chain

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Problem)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=256)
def _seen(inputs: Inputs, variance: float, ruled: bool, masks: tuple, t: int, problem: _Problem) -> Evidence:
    """Kept: points of a grid that differ in alpha, or in ridges, see the same."""
    groups = coordinate_groups(problem.data, problem.chain)
    share, variances, squares, explained = (_of_tables if groups.tables.share > 0.0 else _of_groups)(groups, t, ruled)
    varies = variances > 0.0
    strength, explained = (float(np.sum((share * part)[varies] / variances[varies])) for part in (squares, explained))
    if ruled and explained > (1.0 - _WHOLE) * inputs.signal_variance:
        explained = inputs.signal_variance
    return Evidence(float(share[varies].sum()), strength, explained, bool(squares[~varies].any()))


def _of_groups(groups: Groups, t: int, ruled: bool) -> tuple[np.ndarray, ...]:
    """Share, variance, squared mean and squared covariance with the rule of every group that the stage sees."""
    here = groups.rows[:, t] >= 0
    common = groups.covariances[here, t, 0] ** 2 * groups.signals[here]
    squares = np.zeros_like(common) if ruled else groups.means[here, t] ** 2
    return groups.share[here], groups.covariances[here, t, t], squares, common


def _of_tables(groups: Groups, t: int, ruled: bool) -> tuple[np.ndarray, ...]:
    """The same of every eigenvector of what the stage sees."""
    tables, stages = groups.tables, groups.means.shape[1]
    variances = np.asarray(tables.covariances[t * stages + t])[0]
    squares = common = np.zeros(len(variances))
    if ruled:
        theta, mixed = np.asarray(tables.means[0]), np.asarray(tables.covariances[t * stages])
        field = mixed * theta if _is_diagonal(theta, mixed.shape[1]) else mixed @ theta
        common = (field**2).sum(axis=1)
    else:
        source = np.asarray(tables.means[t])
        squares = source[0] ** 2 if _is_diagonal(source, len(variances)) else (source**2).sum(axis=1)
    return np.full(len(variances), tables.share), variances, squares, common


def _is_diagonal(operator: np.ndarray, size: int) -> bool:
    return operator.shape[0] == 1 and size > 1
