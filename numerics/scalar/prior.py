"""Groups of coordinates: which stages train them, on what inputs, and the moments of the weights there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from numerics.codegen.equations import equations_module
from numerics.codegen.losses import pointer
from numerics.deferred import Deferred
from numerics.models import DataModel, Estimator, Frozen, Rule
from numerics.scalar.kernels.layout import Groups

_entries = Deferred("numerics.scalar.kernels.entries")
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Pattern:
    """A group of coordinates that the same stages train.

    Attributes
    ----------
    share : float
        Fraction of all coordinates.
    active : tuple of bool
        Which stages train them.
    """

    share: float
    active: tuple[bool, ...]


@lru_cache(maxsize=4096)
def mask_patterns(etas: tuple[float, ...], overlaps: tuple[float | None, ...]) -> tuple[Pattern, ...]:
    """Patterns of masks, some of them random.

    Parameters
    ----------
    etas : tuple of float
        Fraction of the coordinates that each stage trains.
    overlaps : tuple of float or None
        None: the first ones.  Else a random choice of which this fraction lies inside the mask of the stage before.

    Returns
    -------
    tuple of Pattern
        Those with a share, which add up to the fraction of coordinates that any stage trains.
    """
    edges = [0.0, *sorted({eta for eta, overlap in zip(etas, overlaps, strict=True) if overlap is None} | {1.0})]
    groups = [(upper - lower, upper, ()) for lower, upper in pairwise(edges) if upper > lower]
    for t, (eta, overlap) in enumerate(zip(etas, overlaps, strict=True)):
        if overlap is None:
            groups = [(share, upper, (*active, eta >= upper)) for share, upper, active in groups]
            continue
        before = etas[t - 1]
        split = []
        for share, upper, active in groups:
            inside = overlap * eta / before if active[-1] else (1.0 - overlap) * eta / (1.0 - before)
            for on, part in ((True, inside), (False, 1.0 - inside)):
                if part > _ROUNDING:
                    split.append((share * part, upper, (*active, on)))
        groups = split
    return tuple(Pattern(share, active) for share, _, active in groups if any(active))


def coordinate_groups(data: DataModel, stages: Sequence[Estimator | Frozen]) -> Groups:
    """Groups of coordinates that differ in who has weights there or in what the stages' inputs are; see :class:`Groups`.

    The noise of a rule has coordinates of its own.
    """
    size = len(stages)
    patterns = mask_patterns(tuple(stage.eta for stage in stages), tuple(stage.mask_overlap for stage in stages))
    parts = [(p.share, p.active, np.ones(size), np.ones((size, size))) for p in patterns]
    if isinstance(stages[0], Rule) and stages[0].noise > 0:
        parts.append((stages[0].noise, (True, *[False] * (size - 1)), np.zeros(size), np.ones((size, size))))
    share, active, means, covariances = map(np.array, zip(*parts, strict=True))
    return Groups(share, _rows(active, means, covariances), means, covariances, np.ones(len(share)))


def _rows(active: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Which groups are alike to each stage, given the moments of those before it, shape (groups, T); -1 where it has no weight."""
    rows = np.full(active.shape, -1, dtype=np.int64)
    for t in range(active.shape[1]):
        here = np.flatnonzero(active[:, t])
        inputs = np.column_stack((means[here, t], covariances[here, t, : t + 1]))
        rows[here, t] = np.unique(inputs, axis=0, return_inverse=True)[1].ravel()
    return rows


class WeightMoments:
    """Moments of the stages solved so far, per group: ``mu_s = E[w_s v]``, ``B_sr = E[w_s w_r]``, ``G_sk = E[dw_s/dxi_k]``."""

    def __init__(self, groups: Groups) -> None:
        self._moments = _entries.no_moments(groups)

    def prior_rows(self, stage: int, ridge: float) -> np.ndarray:
        """Constants of ``prior_equations(stage + 1)``, one row for each kind of inputs: share, ridge, c_t, Omega_t1.., mu, B, G."""
        return _entries.prior_rows(self._moments, stage, ridge)

    def prior_constants(self, stage: int, ridge: float) -> np.ndarray:
        """The only row, of inputs that are alike in all coordinates."""
        (row,) = self.prior_rows(stage, ridge)
        return row

    def add_stage(self, number: int, stage: Estimator | Frozen, conjugates: np.ndarray) -> None:
        """Store the moments of stage ``number`` (1-based), solved with these conjugates."""
        if isinstance(stage, Frozen):
            _entries.append_given(self._moments, number - 1, stage.magnetization, stage.mean_square)
        else:
            moments_of = pointer(equations_module(number).moments)
            _entries.append_trained(
                self._moments, moments_of, number - 1, stage.ridge, np.ascontiguousarray(conjugates)
            )
