"""Samples of clusters, fresh ones or those of training: averages are sums over the clusters of what they are in each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from numerics.models import Clusters
from numerics.solution.logit_law import ClusterLaw
from numerics.solution.population import Population
from numerics.solution.quadrature import Integral
from numerics.solution.samples import Integrand, WeightedSamples
from theory.losses import Loss

Array = NDArray[np.float64]


class ClusterSamples(WeightedSamples):
    """The samples of all clusters.

    Parameters
    ----------
    parts : sequence of WeightedSamples
        Of each cluster.
    shares : sequence of floats
        How often its samples come.
    """

    def __init__(self, parts: Sequence[WeightedSamples], shares: Sequence[float]) -> None:
        self.parts, self.shares = tuple(parts), np.array(shares)
        self.stages, self.scale = self.parts[0].stages, self.parts[0].scale

    def _sum(self, values: Sequence[Integral]) -> Integral:
        return sum((share * value for share, value in zip(self.shares, values, strict=True)), Integral(0.0, 0.0))

    def mean(self, function: Integrand, rows: Sequence[Array], *, degree: int | None = None) -> Integral:
        """See :meth:`WeightedSamples.mean`."""
        return self._sum([part.mean(function, rows, degree=degree) for part in self.parts])

    def loss(self, loss: Loss) -> Integral:
        """Average of a loss of the last stage."""
        return self._sum([part.loss(loss) for part in self.parts])

    def probability(self, level: float = 0.0, *, clean: bool = False) -> Integral:
        """See :meth:`WeightedSamples.probability`."""
        return self._sum([part.probability(level, clean=clean) for part in self.parts])

    def density(self, h: Array) -> Array:
        """See :meth:`WeightedSamples.density`."""
        return sum(share * part.density(h) for share, part in zip(self.shares, self.parts, strict=True))

    def envelope(self, loss: Loss, responses: Sequence[float]) -> Integral:
        """Average of the Moreau envelope of the last stage's loss, with the response of each cluster."""
        return self._sum([part.envelope(loss, v) for part, v in zip(self.parts, responses, strict=True)])


class ClusterPopulation(ClusterSamples):
    """The law of fresh logits, from order parameters of each cluster: of a saddle point, or of trained weights.

    Parameters
    ----------
    data : Clusters
    parts : sequence of Population
        Of each cluster, with variance 1: Q is that of its fields.
    squares, bias : arrays, shape (T,)
        |w_t|^2/N and b_t.
    """

    def __init__(self, data: Clusters, parts: Sequence[Population], squares: Array, bias: Array) -> None:
        super().__init__(parts, data.test_weights)
        self.data, self.squares, self.bias = data, squares, bias
        self.check = self.parts[0].check

    @property
    def overlap(self) -> Array:
        """Q_ts within clusters, their mean over training samples, shape (T, T)."""
        return sum(weight * part.overlap for weight, part in zip(self.data.weights, self.parts, strict=True))

    def first(self, stages: int) -> ClusterPopulation:
        """Of the first stages alone."""
        return ClusterPopulation(
            self.data, [part.first(stages) for part in self.parts], self.squares[:stages], self.bias[:stages]
        )

    def combined(self, rows: Array) -> ClusterPopulation:
        """See :meth:`Population.combined`; the norm of the mean of several weights is not known."""
        single = np.count_nonzero(rows, axis=1) == 1
        squares = np.where(single, self.squares[np.argmax(rows != 0.0, axis=1)], np.nan)
        return ClusterPopulation(self.data, [part.combined(rows) for part in self.parts], squares, rows @ self.bias)

    def scaled(self, values: Array, t: int, power: int = 1) -> Array:
        """Itself: all weights are finite."""
        return values

    def weight_norm(self, t: int) -> float:
        """|w_t|^2/N."""
        return float(self.squares[t])

    def overlap_cosine(self, t: int, s: int) -> float:
        """Between the fields of two stages within clusters."""
        q = self.overlap
        return float(q[t, s] / np.sqrt(q[t, t] * q[s, s]))

    def logit_law(self, t: int) -> ClusterLaw:
        """Law of h_t."""
        centres = [part.means[t, 0] for part in self.parts]
        widths = [np.sqrt(part.overlap[t, t]) for part in self.parts]
        seen = np.flatnonzero(self.shares)
        values = (self.shares, self.data.labels, centres, widths)
        return ClusterLaw(*(tuple(float(found[c]) for c in seen) for found in values))

    # Formulas, cluster by cluster.

    def cluster_errors(self, t: int) -> Array:
        """P(s h_t < 0) in each cluster, shape (C,)."""
        return np.array([float(part.test_error(t)) for part in self.parts])

    def test_error(self, t: int) -> float:
        """P(s h_t < 0)."""
        return float(self.shares @ self.cluster_errors(t))

    def direction_error(self, t: int) -> float:
        """P(s h_t < 0) after the best threshold."""
        return self.logit_law(t).least_error

    def agreement(self, t: int, s: int) -> float:
        """Probability that stages t and s give a test point the same label."""
        return float(self.shares @ np.array([part.agreement(t, s) for part in self.parts]))

    def right_and_wrong(self, t: int, s: int) -> float:
        """P(stage t classifies a test point rightly and stage s wrongly)."""
        return float(self.shares @ np.array([part.right_and_wrong(t, s) for part in self.parts]))

    def logit_distance(self, t: int, s: int) -> float:
        """E[(h_t - h_s)^2] on a test point."""
        return float(self.shares @ np.array([float(part.logit_distance(t, s)) for part in self.parts]))
