"""Masks: which stages train which coordinates, and the moments of the weights given that pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from numerics.codegen.equations import equations_module
from numerics.codegen.losses import pointer
from numerics.deferred import Deferred
from numerics.models import Estimator, Frozen, Rule

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


def coordinate_groups(stages: Sequence[Estimator | Frozen]) -> tuple[Pattern, ...]:
    """Groups of coordinates with the stages that have weights there; the noise of a rule has coordinates of its own."""
    groups = mask_patterns(tuple(stage.eta for stage in stages), tuple(stage.mask_overlap for stage in stages))
    if isinstance(stages[0], Rule) and stages[0].noise > 0:
        groups += (Pattern(stages[0].noise, (True, *[False] * (len(stages) - 1))),)
    return groups


class WeightMoments:
    """Moments of the stages solved so far, per pattern: ``mu_s = E[w_s v]``, ``B_sr = E[w_s w_r]``, ``G_sk = E[dw_s/dxi_k]``."""

    def __init__(self, patterns: tuple[Pattern, ...]) -> None:
        share = np.array([pattern.share for pattern in patterns], dtype=float)
        self._moments = _entries.no_moments(share, np.array([pattern.active for pattern in patterns], dtype=float))

    def prior_constants(self, stage: int, ridge: float) -> np.ndarray:
        """Constants of ``prior_equations(stage + 1)``: eta, ridge, then mu, B, G averaged given that the stage is active."""
        return _entries.prior_constants(self._moments, stage, ridge)

    def add_stage(self, number: int, stage: Estimator | Frozen, conjugates: np.ndarray) -> None:
        """Store the moments of stage ``number`` (1-based), solved with these conjugates."""
        if isinstance(stage, Frozen):
            _entries.append_given(self._moments, number - 1, stage.magnetization, stage.mean_square)
        else:
            moments_of = pointer(equations_module(number).moments)
            _entries.append_trained(
                self._moments, moments_of, number - 1, stage.ridge, np.ascontiguousarray(conjugates)
            )
