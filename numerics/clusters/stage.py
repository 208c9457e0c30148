"""The saddle point of one stage on clusters, as :func:`numerics.driver.chord.chord` takes it, given the earlier stages.

Unknowns are those of :mod:`numerics.scalar.kernels.layout` once a cluster, with one bias for all: an array (C, 2k + 4) with equal
entries in the column of the bias.  Moves are in natural units, ``b`` first, then ``m, C_1.., ln q_perp, V_1.., ln V`` of each
cluster.  In the first stage m moves along with a large norm, or Newton's method loses its way where weights are nearly infinite; a
q_perp that is small beside q, and may be on its way to 0, moves itself, in units of q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from numerics.clusters.prior import Updated, WeightPrior
from numerics.codegen.losses import LossFunctions
from numerics.deferred import Deferred
from numerics.driver.chord import Evaluation
from numerics.models import Estimator
from numerics.scalar.compiled import compiled_stage
from numerics.scalar.kernels import layout
from numerics.scalar.kernels.layout import Nodes
from numerics.scalar.points import SMALLEST_SHARE

_entries = Deferred("numerics.scalar.kernels.entries")
Array = NDArray[np.float64]

_SMALL_SHARE = 1e-2  # of q_perp in q: below, its equation is solved for q_perp itself, which may be on its way to 0
_SMALLEST_FACTOR = 1e-4  # by which q_perp may fall in one step then
_SMALL_RESPONSE = 1e-3  # of a stage to another, relative to itself: smaller ones are not looked at by themselves
_FIRST_NORM = 0.1  # of logits in units of the loss, in the plain iteration that a stage starts from
_LARGEST_START, _LEAST_START_SHARE = 3.0, 1e-3  # of logits in these units, and of q_perp in q, after it
_TINY = 1e-300


class StageEquations:
    """A stage of a chain on clusters.

    Parameters
    ----------
    stage : Estimator
    nodes : sequence of Nodes
        On the samples of each cluster that it is trained on.
    prior : WeightPrior
        With the earlier stages.
    earlier : sequence of arrays, shape (C, 2s + 2)
        Unknowns of the earlier stages.
    accuracy
        Of the averages.
    """

    def __init__(
        self, stage: Estimator, nodes: Sequence[Nodes], prior: WeightPrior, earlier: Sequence[Array],
        accuracy: layout.Accuracy,
    ) -> None:  # fmt: skip
        self.stage, self.prior, self.ridge, self.k = stage, prior, stage.ridge, len(earlier)
        self.at = layout.places(self.k)
        self.width = 2 * self.k + 4
        self.clusters = len(nodes)
        # All unknowns of a cluster but the bias.
        self.own = np.array([r for r in range(self.width) if r != self.at.b])
        self.accuracy = accuracy
        self.earlier = list(earlier)
        self.alpha = float(sum(part.weight.sum() for part in nodes))
        number = self.k + 1
        compiled = compiled_stage(stage.loss, number)
        seen = stage.loss.stages(number)
        self.problems, self.factors, self.gauges = [], [], []
        for c, part in enumerate(nodes):
            factor = np.zeros((self.k, self.k))
            for s, x in enumerate(earlier):
                order = layout.unpack(np.ascontiguousarray(x[c]))
                factor[s, :s], factor[s, s] = order.couplings, order.norm
            responses = np.array([math.exp(x[c, -1]) for x in earlier])
            self.factors.append(factor)
            self.gauges.append(responses)
            self.problems.append(
                layout.Problem(
                    compiled.loss, compiled.equations, part, part.seen(seen), np.zeros((1, 1)), factor[np.tril_indices(self.k)],
                    responses, 1.0, math.nan,
                )
            )  # fmt: skip

        self.unit, self.curvature = self._loss_units()

    # The two halves.

    def channel(self, x: Array) -> tuple[Array, Array, float] | None:
        """Conjugates and alpha E f of each cluster, (C, 2k + 4), their derivatives, and the worst defect of the averages."""
        conjugates, slopes = np.empty_like(x), np.empty((*x.shape, x.shape[1]))
        worst = 0.0
        for c, problem in enumerate(self.problems):
            finite, defect = _entries.channel_at(
                problem, self.accuracy, np.ascontiguousarray(x[c]), conjugates[c], slopes[c]
            )
            if not finite:
                return None
            worst = max(worst, defect)
        return conjugates, slopes, worst

    def plain(self, x: Array) -> tuple[Array, Updated, float] | None:
        """Conjugates, order parameters that they give, and the defect."""
        found = self.channel(x)
        if found is None:
            return None
        try:
            return found[0], self.prior.update(self.ridge, found[0][:, :-1]), found[2]
        except np.linalg.LinAlgError:
            return None

    # Residuals.

    def _units(self, x: Array) -> tuple[Array, float]:
        """Natural sizes of the unknowns of each cluster, (C, 2k + 4), and that of the bias."""
        units, roots = np.ones_like(x), np.empty(len(x))
        apart = float(np.sqrt(np.mean(x[:, self.at.m] ** 2)))
        for c, row in enumerate(x):
            order = layout.unpack(row)
            roots[c] = math.sqrt(_square(order))
            units[c, self.at.couplings : self.at.norm] = roots[c]
            # Of a cluster that is narrow beside the distances of clusters, these.
            units[c, self.at.m] = math.hypot(roots[c], apart)
            own = order.response
            units[c, self.at.responses : self.at.response] = np.sqrt(own * self.gauges[c]) + _SMALL_RESPONSE * own
            share = order.norm**2 / roots[c] ** 2
            units[c, self.at.norm] = 1.0 / share if share < _SMALL_SHARE else 1.0
        return units, 1.0 + float(np.mean(roots))

    def evaluate(self, x: Array, *, jacobian: bool) -> Evaluation | None:
        """See :class:`numerics.driver.chord.CostlyProblem`."""
        found = self.channel(x)
        if found is None:
            return None
        conjugates, slopes, _ = found
        try:
            updated = self.prior.update(self.ridge, conjugates[:, :-1])
        except np.linalg.LinAlgError:
            return None
        units, bias_unit = self._units(x)
        n, per = self.clusters, len(self.own)
        size = 1 + n * per
        residual = np.zeros(size)
        # Moves of the unknowns: of the bias, and of those of each cluster.
        moved = self._moves(x, units)
        pull = np.zeros((n, self.width, size))
        pull[:, self.at.b, 0] = bias_unit
        for c in range(n):
            pull[c][self.own, 1 + c * per : 1 + (c + 1) * per] = moved[c]
        fixed = self.stage.fixed_bias
        rate = sum(abs(slopes[c, -1, self.at.b]) for c in range(n)) * bias_unit + _TINY
        if fixed is None:
            residual[0] = conjugates[:, -1].sum() / rate
        else:
            residual[0] = (fixed - x[0, self.at.b]) / bias_unit
        whole = None
        if jacobian:
            d_conjugates = np.einsum("cij,cjn->cin", slopes, pull)
            flat = self.prior.slopes(updated).reshape(n * (self.width - 1), -1)
            d_order = (flat @ d_conjugates[:, :-1].reshape(flat.shape[1], size)).reshape(n, self.width - 1, size)
            whole = np.zeros((size, size))
            whole[0] = d_conjugates[:, -1].sum(axis=0) / rate
            if fixed is not None:
                whole[0], whole[0, 0] = 0.0, -1.0
        for c in range(n):
            rows = slice(1 + c * per, 1 + (c + 1) * per)
            values = self._residual(x[c], updated.order[c], units[c], c)
            if values is None:
                return None
            residual[rows] = values
            if jacobian:
                whole[rows] = self._slopes(x[c], updated.order[c], units[c], (c, d_order[c], pull[c]))
        return Evaluation(residual, whole) if np.isfinite(residual).all() else None

    def _moves(self, x: Array, units: Array) -> list[Array]:
        """How the unknowns of each cluster move with its moves in natural units, (2k + 3, 2k + 3)."""
        found = []
        for c in range(self.clusters):
            part = np.diag(units[c, self.own])
            part[0, 1] += self._carried(x[c])
            found.append(part)
        return found

    def _carried(self, x: Array) -> float:
        """By how much m moves along with ln q_perp: in the first stage, where logits are large."""
        return 0.5 * x[self.at.m] if self.k == 0 and math.exp(0.5 * x[self.at.norm]) > self.unit else 0.0

    def _split(self, order: Array, c: int) -> tuple[Array, float, Array]:
        """Row of the Cholesky factor, q_perp and responses from order parameters."""
        k = self.k
        row = solve_triangular(self.factors[c], order[1 : 1 + k], lower=True) if k else np.empty(0)
        return row, float(order[1 + k] - row @ row), order[2 + k :]

    def _shares(self, x: Array) -> tuple[float, bool]:
        """q_perp, and whether it is small beside q."""
        order = layout.unpack(x)
        own = order.norm**2
        return own, own < _SMALL_SHARE * _square(order)

    def _residual(self, x: Array, order: Array, units: Array, c: int) -> Array | None:
        at, k = self.at, self.k
        row, q_perp, responses = self._split(order, c)
        own, small = self._shares(x)
        least = SMALLEST_SHARE * (own + float(x[at.couplings : at.norm] @ x[at.couplings : at.norm]))
        if not (responses[k] > 0.0 and math.isfinite(q_perp)):
            return None
        q_perp = max(q_perp, least)
        found = np.empty(self.width)
        found[at.m] = (order[0] - x[at.m]) / units[at.m]
        found[at.couplings : at.norm] = (row - x[at.couplings : at.norm]) / units[at.couplings : at.norm]
        found[at.norm] = (q_perp / own - 1.0 if small else math.log(q_perp / own)) / units[at.norm]
        found[at.responses : at.response] = (responses[:k] - x[at.responses : at.response]) / units[
            at.responses : at.response
        ]
        found[at.response] = math.log(responses[k]) - x[at.response]
        return found[self.own]

    def _slopes(self, x: Array, order: Array, units: Array, moves: tuple[int, Array, Array]) -> Array:
        """Of one cluster's residuals by all moves; ``moves`` are its number, and how order parameters and unknowns move."""
        c, d_order, pull = moves
        at, k = self.at, self.k
        row, q_perp, responses = self._split(order, c)
        own, small = self._shares(x)
        d_row = solve_triangular(self.factors[c], d_order[1 : 1 + k], lower=True) if k else np.empty((0, pull.shape[1]))
        d_perp = d_order[1 + k] - 2.0 * row @ d_row
        found = np.empty((self.width, pull.shape[1]))
        found[at.m] = (d_order[0] - pull[at.m]) / units[at.m]
        found[at.couplings : at.norm] = (d_row - pull[at.couplings : at.norm]) / units[at.couplings : at.norm, None]
        vanishing = q_perp <= SMALLEST_SHARE * own
        scale = own if small else q_perp
        found[at.norm] = (-pull[at.norm] + (0.0 if vanishing else d_perp / scale)) / units[at.norm]
        found[at.responses : at.response] = (d_order[2 + k : 2 + 2 * k] - pull[at.responses : at.response]) / units[
            at.responses : at.response, None
        ]
        found[at.response] = d_order[2 + 2 * k] / responses[k] - pull[at.response]
        return found[self.own]

    # Steps.

    def advanced(self, x: Array, move: Array) -> Array:
        """See :class:`numerics.driver.chord.CostlyProblem`."""
        units, bias_unit = self._units(x)
        found, at = x.copy(), self.at
        found[:, at.b] += bias_unit * move[0]
        steps = move[1:].reshape(self.clusters, -1)
        for c in range(self.clusters):
            step = np.zeros(self.width)
            step[self.own] = steps[c]
            _, small = self._shares(x[c])
            step *= units[c]
            grown = math.log(max(1.0 + step[at.norm], _SMALLEST_FACTOR)) if small else step[at.norm]
            step[at.b], step[at.norm] = 0.0, grown
            if self._carried(x[c]):
                found[c, at.m] *= math.exp(0.5 * grown)
            found[c] += step
            order = layout.unpack(found[c])
            found[c, at.norm] = max(found[c, at.norm], math.log(SMALLEST_SHARE * _square(order)))
        return found

    # Starts.

    def _loss_units(self) -> tuple[float, float]:
        """Natural units of logits and of the loss's curvature: the cross-entropy's are 1 and 1."""
        functions = LossFunctions(self.stage.loss)
        force = curvature = total = 0.0
        for problem in self.problems:
            nodes, zero = problem.nodes, np.zeros(problem.nodes.weight.size)
            slope, second = functions.derivatives(zero, nodes.labels, problem.logits)
            force += float(nodes.weight @ slope**2)
            curvature += float(nodes.weight @ second)
            total += float(nodes.weight.sum())
        force, curvature = math.sqrt(force / total), curvature / total
        unit = force / (2.0 * curvature) if curvature > 0.0 else 1.0
        return (unit, 2.0 * force / unit) if 0.0 < unit < math.inf else (1.0, 1.0)

    def start(self) -> Array:
        """What one plain iteration makes of small logits, with the response of samples that are not correlated."""
        k, at = self.k, self.at
        unit, curvature = self.unit, self.curvature
        variances = self._variances()
        x = np.zeros((self.clusters, self.width))
        bias = self.stage.fixed_bias
        if bias is None:
            bias = float(np.mean([rows[:, at.b] for rows in self.earlier[-1:]])) if k else 0.0
        x[:, at.b] = bias
        weights = np.array([problem.nodes.weight.sum() for problem in self.problems])
        v = variances / (self.ridge + 0.25 * curvature * float(weights @ variances))
        for c in range(self.clusters):
            x[c, at.response] = math.log(max(v[c], _TINY))
            x[c, at.norm] = 2.0 * math.log(_FIRST_NORM * unit)
        found = self.plain(x)
        if found is None:
            return x
        order = found[1].order
        # Where means, or variances, are large, the iteration overshoots.
        less_mean, less = (
            min(1.0, _LARGEST_START * unit / (float(np.max(size)) + _TINY))
            for size in (np.abs(order[:, 0]), np.sqrt(np.maximum(order[:, 1 + k], 0.0)))
        )
        for c in range(self.clusters):
            row, q_perp, responses = self._split(order[c], c)
            whole = float(order[c, 1 + k])
            if whole > 0.0 and responses[k] > 0.0:
                x[c, at.m] = less_mean * order[c, 0]
                x[c, at.couplings : at.norm] = less * row
                x[c, at.norm] = math.log(less**2 * max(q_perp, _LEAST_START_SHARE * whole))
        return x

    @property
    def largest_variance(self) -> float:
        """Of what it sees, or of the square of a mean over alpha, in any direction: a bound."""
        seen, means = self.prior.seen(self.k, self.k), self.prior.mean_of(self.k)
        rows = np.abs(seen).sum(axis=3).max(axis=(1, 2))
        return float(rows.max() + (means**2).sum(axis=(1, 2, 3)).max() / self.prior.size)

    def _variances(self) -> Array:
        """Mean variance, over N, of what the stage sees in each cluster."""
        seen = self.prior.seen(self.k, self.k)
        return np.trace(seen, axis1=2, axis2=3).sum(axis=1) / self.prior.size


def _square(order: layout.OrderParameters) -> float:
    """Q_tt."""
    return float(order.couplings @ order.couplings) + order.norm**2
