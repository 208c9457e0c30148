"""Groups of coordinates: which stages train them, on what inputs, and the moments of the weights there."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from numerics.codegen.equations import equations_module
from numerics.codegen.losses import pointer
from numerics.deferred import Deferred
from numerics.models import (
    Chain,
    DataModel,
    Dense,
    Estimator,
    Frozen,
    Inputs,
    ParameterError,
    RandomFeatures,
    Rule,
    in_equations,
    structured,
)
from numerics.scalar import dense
from numerics.scalar.kernels.layout import Groups, Tables
from numerics.scalar.points import StagePoint, effective_ridge

_entries = Deferred("numerics.scalar.kernels.entries")
_ROUNDING = 1e-12


class Pattern(NamedTuple):
    """A group of coordinates that the same stages train.

    Attributes
    ----------
    share : float
        Fraction of all coordinates.
    active : tuple of bool
        Which stages train them.
    part : int
        Which part of the coordinates they belong to.
    """

    share: float
    active: tuple[bool, ...]
    part: int = 0


@lru_cache(maxsize=4096)
def mask_patterns(
    etas: tuple[float, ...], overlaps: tuple[float | None, ...], parts: tuple[float, ...] = (1.0,)
) -> tuple[Pattern, ...]:
    """Patterns of masks, some of them random.

    Parameters
    ----------
    etas : tuple of float
        Fraction of the coordinates that each stage trains.
    overlaps : tuple of float or None
        None: the first ones.  Else a random choice of which this fraction lies inside the mask of the stage before.
    parts : tuple of float
        Where the parts of the coordinates end that are to be kept apart, increasing up to 1.

    Returns
    -------
    tuple of Pattern
        Those with a share, which add up to the fraction of coordinates that any stage trains.
    """
    nested = {eta for eta, overlap in zip(etas, overlaps, strict=True) if overlap is None}
    edges = [0.0, *sorted({*nested, *parts, 1.0})]
    groups = [(upper - lower, upper, ()) for lower, upper in pairwise(edges) if upper - lower > _ROUNDING * upper]
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
    return tuple(
        Pattern(share, active, min(bisect_left(parts, upper), len(parts) - 1))
        for share, upper, active in groups
        if any(active)
    )


COMMON, SHARED = "common eigenvectors", "one covariance for all"
"""How weights are treated: coordinate by coordinate, or by matrices."""


def coordinate_groups(data: DataModel, chain: Chain, common: bool | None = None) -> Groups:
    """Groups of coordinates that differ in who has weights there or in what the stages' inputs are; see :class:`Groups`.

    The noise of a rule has coordinates of its own.  ``common`` as in :class:`numerics.settings.Settings`.
    """
    stages = chain.resolved(data)
    noise = stages[0].noise if isinstance(stages[0], Rule) else 0.0
    features = tuple(stage.features for stage in stages)
    if isinstance(data.inputs, Dense):
        if kind_of_prior(data, chain, common) == SHARED:
            tables = dense.tables_of(data.inputs, *_seen(data, features), isinstance(stages[0], Rule))
            return dense.without_groups(tables, len(features), noise)
        return _groups_of_dense(data.inputs, *_seen(data, features), noise, isinstance(stages[0], Rule))
    if any(features):
        return _groups_of_features(features, data.variance, noise)
    etas, overlaps = (tuple(getattr(stage, name) for stage in stages) for name in ("eta", "mask_overlap"))
    return _groups_of_inputs(data.inputs, etas, overlaps, noise)


@lru_cache(maxsize=256)
def _groups_of_inputs(
    inputs: Inputs, etas: tuple[float, ...], overlaps: tuple[float | None, ...], noise: float
) -> Groups:
    """Of stages that see the inputs themselves, or some of them."""
    parts = (1.0,) if inputs.white else (*np.cumsum(inputs.shares)[:-1].tolist(), 1.0)
    share, active, part = map(np.array, zip(*mask_patterns(etas, overlaps, parts), strict=True))
    signals, size = inputs.signals[part], len(etas)
    means = np.repeat(np.sqrt(signals)[:, None], size, axis=1)
    covariances = np.broadcast_to(inputs.variances[part][:, None, None], (len(share), size, size))
    return _assembled(share, active, means, covariances, signals, noise)


def tables_key(data: DataModel, chain: Chain) -> object:
    """What tables of dense inputs depend on: equal for points that may be solved together."""
    if not isinstance(data.inputs, Dense):
        return None
    return data.inputs, *_seen(data, tuple(stage.features for stage in chain.stages))


def kind_of_prior(data: DataModel, chain: Chain, common: bool | None = None) -> str:
    """How the weights of a chain, with the rule if there is one, are treated; ``common`` as in :class:`numerics.settings.Settings`.

    Raises
    ------
    ParameterError
        If ``common`` is neither True, False nor None, or cannot be what it is.
    """
    if common not in (True, False, None):
        raise ParameterError(f"common must be True, False or None, got {common!r}")
    if not isinstance(data.inputs, Dense):
        if common is False:
            raise ParameterError(f"common must be True or None: coordinates of {data.inputs!r} are independent")
        return COMMON
    alike = dense.alike(tuple(stage.features for stage in chain.stages))
    if common and not alike:
        raise ParameterError("common must be False or None where stages, or a rule, see different things")
    return COMMON if alike and common is not False else SHARED


def _seen(data: DataModel, maps: dense.Maps) -> tuple[dense.Maps, float]:
    return maps, dense.scale_of(maps, data.variance)


@lru_cache(maxsize=8)
def _groups_of_dense(inputs: Dense, maps: dense.Maps, variance: float, noise: float, ruled: bool) -> Groups:
    """Of stages that see the same of inputs of any covariance, along its eigenvectors."""
    variances, signals = dense.coordinates(inputs, maps[0], variance)
    count, size = len(variances), len(maps)
    share, active = np.full(count, 1.0 / inputs.size), np.ones((count, size), dtype=bool)
    # Weights on what is always 0 are 0; a rule has some there, which nobody notices.
    active[:, int(ruled) :] = ((variances > 0.0) | ((signals > 0.0) & (not ruled)))[:, None]
    means = np.repeat(np.sqrt(signals)[:, None], size, axis=1)
    covariances = np.broadcast_to(variances[:, None, None], (count, size, size))
    return _assembled(share, active, means, covariances, signals, noise)


@lru_cache(maxsize=256)
def _groups_of_features(features: tuple[RandomFeatures | None, ...], variance: float, noise: float) -> Groups:
    """Of stages some of which see the features of one network: directions of its singular vectors.

    In a direction of squared singular value x an input has variance Delta, a feature ``k1^2 Delta x + k*^2``, and their covariance
    is ``k1 Delta sqrt(x)``.  The class mean v is ``k1 sqrt(x) v`` in features.
    """
    seen = np.array([found is not None for found in features])
    network = next(found for found in features if found is not None)
    moments, spectrum = network.moments(variance), network.spectrum(variance)
    size = len(features)
    values = np.concatenate((spectrum.values, [0.0, 0.0]))
    share = np.concatenate((spectrum.shares, [spectrum.of_features, spectrum.of_inputs]))
    active = np.ones((len(share), size), dtype=bool)
    active[-2], active[-1] = seen, ~seen
    means = np.where(seen, moments.slope * np.sqrt(values)[:, None], 1.0)
    both = np.outer(seen, seen)
    covariances = means[:, :, None] * means[:, None, :] + both * moments.rest / variance
    kept = share != 0.0
    return _assembled(share[kept], active[kept], means[kept], covariances[kept], np.ones(int(kept.sum())), noise)


def _assembled(
    share: np.ndarray, active: np.ndarray, means: np.ndarray, covariances: np.ndarray, signals: np.ndarray, noise: float
) -> Groups:  # fmt: skip
    """Groups, and one more for the ``noise`` of a rule: a coordinate of variance 1 that only the rule sees."""
    size = active.shape[1]
    if noise > 0:
        share, signals = np.append(share, noise), np.append(signals, 1.0)
        active = np.vstack((active, [True, *[False] * (size - 1)]))
        means = np.vstack((means, np.zeros(size)))
        covariances = np.concatenate((covariances, np.ones((1, size, size))))
    return Groups(
        share,
        _rows(active, means, covariances),
        np.ascontiguousarray(means),
        np.ascontiguousarray(covariances),
        signals,
        dense.no_tables(),
    )


def _rows(active: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Which groups are alike to each stage, given the moments of those before it, shape (groups, T); -1 where it has no weight."""
    rows = np.full(active.shape, -1, dtype=np.int64)
    for t in range(active.shape[1]):
        here = np.flatnonzero(active[:, t])
        inputs = np.column_stack((means[here, t], covariances[here, t, : t + 1]))
        if (inputs == inputs[0]).all():
            rows[here, t] = 0
        else:
            rows[here, t] = np.unique(inputs, axis=0, return_inverse=True)[1].ravel()
    return rows


def norm_ratios(
    data: DataModel, chain: Chain, points: Sequence[StagePoint], common: bool | None = None
) -> np.ndarray:  # fmt: skip
    """|w_t|^2/N over Q_tt of the stages whose saddle points are given, NaN for the others, shape (T,); 1 for white inputs."""
    chain = in_equations(data, chain)
    if not structured(data, chain):
        return np.ones(len(chain))
    moments, found = WeightMoments(coordinate_groups(data, chain, common)), np.full(len(chain), np.nan)
    for t, (stage, point) in enumerate(zip(chain.resolved(data), points, strict=False)):
        moments.add_stage(t + 1, stage, point.conjugates, point.limit)
        found[t] = moments.norm_ratio(t)
    return found


def _ratio(square: float, seen: float) -> float:
    """Of |w|^2 and w^T Omega w; NaN for weights that see no variance."""
    if square == 0.0:
        return 1.0
    return float(square / seen) if seen > 0.0 else math.nan


class WeightMoments:
    """Moments of the stages solved so far, per group: ``mu_s = E[w_s v]``, ``B_sr = E[w_s w_r]``, ``G_sk = E[dw_s/dxi_k]``."""

    def __init__(self, groups: Groups) -> None:
        self._moments = _entries.no_moments(groups)
        self._ratios: dict[int, float] = {}  # where there are no groups

    def prior_rows(self, stage: int, ridge: float) -> np.ndarray:
        """Constants of ``prior_equations(stage + 1)``, one row for each kind of inputs: share, ridge, c_t, Omega_t1.., mu, B, G."""
        return _entries.prior_rows(self._moments, stage, ridge)

    def norm_ratio(self, t: int) -> float:
        """|w_t|^2 over w_t^T Omega_tt w_t, t from 0; 1 where a stage has no weights."""
        if t in self._ratios:
            return self._ratios[t]
        share, square = self._moments.groups.share, self._moments.covariance[:, t, t]
        return _ratio(share @ square, share @ (self._moments.groups.covariances[:, t, t] * square))

    def add_stage(
        self, number: int, stage: Estimator | Frozen, conjugates: np.ndarray, limit: str | None = None
    ) -> None:  # fmt: skip
        """Store the moments of stage ``number`` (1-based), solved with these conjugates; ``limit`` as in ``StagePoint``."""
        if isinstance(stage, Frozen):
            _entries.append_given(self._moments, number - 1, stage.magnetization, stage.mean_square)
            if self._tables.share > 0.0:
                self._ratios[number - 1] = self._ratio_of_rule()
            return
        solved = (
            pointer(equations_module(number).moments),
            number - 1,
            effective_ridge(stage, limit),
            np.ascontiguousarray(conjugates),
        )
        if self._tables.share > 0.0:
            self._ratios[number - 1] = _ratio(*_entries.squares_of_weights(self._moments, *solved))
        _entries.append_trained(self._moments, *solved)

    @property
    def _tables(self) -> Tables:
        return self._moments.groups.tables

    def _ratio_of_rule(self) -> float:
        tables = self._tables
        theta, variances = np.asarray(tables.means[0]), np.asarray(tables.covariances[0])[0]
        squares = theta[0] ** 2 if len(theta) == 1 else (theta**2).sum(axis=1)
        square, seen = tables.share * squares.sum(), tables.share * squares @ variances
        return _ratio(square + tables.noise, seen + tables.noise)
