"""What ``solve`` returns for clusters: stages, their order parameters cluster by cluster, and observables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from numerics.clusters.population import ClusterPopulation, ClusterSamples
from numerics.clusters.solver import ClusterPoints, Refinement, Walk, largest_difference, shifts_of
from numerics.codegen import observables
from numerics.driver.outcome import Status
from numerics.models import Chain, Clusters, ParameterError, chosen
from numerics.scalar.constant_targets import resting_biases
from numerics.scalar.points import StagePoint
from numerics.settings import Settings
from numerics.solution.quadrature import Integral
from numerics.solution.solution import Solution, StageSolution, in_plain_numbers
from numerics.solution.state import State
from numerics.solution.training import TrainingSamples

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClusterSolution:
    """Saddle point of a chain on :class:`numerics.Clusters`.

    Attributes
    ----------
    data, chain
        The problem.
    points : tuple of tuples
        Saddle points of the stages that are solved, one of each cluster; stages that learn their bias see inputs around their mean.
    converged : bool
        Every stage converged, to a small residual and quadrature error.
    residual, quadrature_error, iterations, message
        As of :class:`numerics.solution.solution.Solution`.
    prior : str
        How the weights were treated: "common eigenvectors", coordinate by coordinate, where all covariances have these and stages
        see the inputs themselves; else "one covariance for all" or "one covariance a cluster".

    Indexing gives the stages.  Order parameters are those of each cluster; their last axis is that of clusters.

    Examples
    --------
    >>> from numerics import Estimator, solve
    >>> from theory.losses import CrossEntropy
    >>> data = Clusters(4.0, means=[[1.0, 0.0], [-1.0, 0.0]], covariances=[[1.0, 0.5], [0.5, 1.0]], labels=[1, -1])
    >>> found = solve(data, Estimator(CrossEntropy(), ridge=0.1))
    >>> found.prior, found.means.shape, found[0].cluster_errors.shape
    ('common eigenvectors', (1, 2), (2,))
    """

    data: Clusters
    chain: Chain
    points: tuple[ClusterPoints, ...] = field(repr=False)
    walk: Walk = field(repr=False)
    before: Walk | None = field(repr=False)
    converged: bool
    residual: float
    quadrature_error: float
    iterations: int
    message: str
    level: int = field(repr=False)
    settings: Settings = field(repr=False)
    squares: Array = field(repr=False)
    shifts: Array = field(repr=False)

    def __len__(self) -> int:
        return len(self.chain)

    def __getitem__(self, index: int | str | slice) -> ClusterStage | tuple[ClusterStage, ...]:
        """Stage by position from 0, or by name; stages of a slice."""
        return chosen(self.chain.names, index, lambda k: self.stages[k])

    @cached_property
    def stages(self) -> tuple[ClusterStage, ...]:
        """All stages."""
        return tuple(ClusterStage(self, number) for number in range(1, len(self) + 1))

    @property
    def prior(self) -> str:
        return self.walk.prior.kind

    @property
    def equations(self) -> Chain:
        """The chain that is solved."""
        return self.chain

    @property
    def resolved(self) -> tuple:
        """The stages."""
        return self.chain.stages

    @cached_property
    def state(self) -> State:
        """Of the first cluster: which stages are known, and their biases, is the same for all."""
        return self.parts[0].state

    @cached_property
    def parts(self) -> tuple[Solution, ...]:
        """The same chain seen by the samples of each cluster."""
        return tuple(
            Solution(
                part, self.chain, tuple(stage[c] for stage in self.points), self.converged, self.residual, self.quadrature_error,
                self.iterations, self.message, self.level, self.settings,
            )
            for c, part in enumerate(self.data.parts)
        )  # fmt: skip

    def _collect(self, value: Callable[[State], Array]) -> Array:
        """Something of each cluster, with the axis of clusters last."""
        return np.stack([value(part.state) for part in self.parts], axis=-1)

    @property
    def means(self) -> Array:
        """E[w_t].mean_c/sqrt(N): the mean logit of each cluster without the bias, shape (T, C)."""
        return self._collect(lambda state: state.magnetization) * np.array(self.data.labels) + self.shifts[:, None]

    @property
    def bias(self) -> Array:
        """b_t, shape (T,)."""
        return self.state.bias - self.shifts

    @cached_property
    def cluster_overlaps(self) -> Array:
        """Q_ts = w_t^T Omega_c w_s/N: covariances of the logits in each cluster, shape (T, T, C)."""
        return self._collect(lambda state: state.overlap)

    @cached_property
    def cluster_responses(self) -> Array:
        """V_ts of each cluster, 0 for s > t, shape (T, T, C)."""
        return self._collect(lambda state: state.response)

    @property
    def overlap(self) -> Array:
        """Q_ts, the mean over training samples, shape (T, T)."""
        return self.cluster_overlaps @ np.array(self.data.weights)

    @property
    def response(self) -> Array:
        """V_ts, the mean over training samples, shape (T, T)."""
        return self.cluster_responses @ np.array(self.data.weights)

    @cached_property
    def _cache(self) -> dict:
        return {}

    @cached_property
    def _displaced(self) -> ClusterSolution:
        """With order parameters off by their error: by what another level says, scaled to what is stated."""
        if self.before is None or len(self.before.points) < len(self.points):
            return self
        size = largest_difference(self.before.points, self.points)
        share = self.quadrature_error / size if size > 0.0 else 0.0
        points = tuple(
            tuple(map(_moved(share), stage, other))
            for stage, other in zip(self.points, self.before.points, strict=True)
        )
        squares = self.squares + share * (self.before.prior.squares() - self.squares)
        shifts = self.shifts + share * (shifts_of(self.before) - self.shifts)
        return replace(self, points=points, squares=squares, shifts=shifts)

    def to_dict(self) -> dict:
        """Everything as plain numbers and lists, ready for JSON (NaN and infinite numbers become None)."""
        names = ("overlap", "response", "means", "cluster_overlaps", "cluster_responses")
        arrays = {name: getattr(self, name) for name in names}
        return in_plain_numbers(self, **arrays)


def _moved(share: float) -> Callable[[StagePoint, StagePoint], StagePoint]:
    def move(point: StagePoint, other: StagePoint) -> StagePoint:
        return replace(
            point,
            unknowns=point.unknowns + share * (other.unknowns - point.unknowns),
            conjugates=point.conjugates + share * (other.conjugates - point.conjugates),
        )

    return move


class ClusterStage(StageSolution):
    """One stage of a solution on clusters, with the observables that these data have as attributes."""

    solution: ClusterSolution

    def __repr__(self) -> str:
        return f"<{self.name}: norm={self.norm:.6g}, bias={self.bias:.6g}, test_error={self.test_error:.6g}>"

    @property
    def limit(self) -> None:
        """Ridges are positive."""

    @property
    def constraint(self) -> None:
        """There is none."""

    @cached_property
    def fresh(self) -> ClusterPopulation:
        """Law of the logits of the stages up to this one on fresh samples."""
        solution, k = self.solution, self.number
        parts = [
            part.state.population(part.data.alone, k, solution.settings.rtol, check=self._check)
            for part in solution.parts
        ]
        return ClusterPopulation(self.data, parts, solution.squares[:k], solution.bias[:k])

    @cached_property
    def samples(self) -> ClusterSamples:
        """Law of the same logits on the samples that it was trained on."""
        parts = [TrainingSamples(part, self.number, check=self._check) for part in self.solution.parts]
        return ClusterSamples(parts, self.data.weights)

    @property
    def means(self) -> Array:
        """E[w].mean_c/sqrt(N): the mean logit of each cluster without the bias, shape (C,)."""
        return self.solution.means[self.number - 1]

    @property
    def cluster_errors(self) -> Array:
        """Test error in each cluster, shape (C,)."""
        return self.fresh.cluster_errors(-1) if self.known else np.full(len(self.data), np.nan)

    @property
    def response_to_field(self) -> float:
        """V_tt, the mean over training samples."""
        return float(self.solution.response[self.number - 1, self.number - 1])

    @property
    def objective(self) -> Integral:
        """-Phi, the minimised training objective per input, from the potential."""
        t = self.number
        points = self.solution.points[t - 1]
        coupling = observables.coupling(t)
        tied, weighed = 0.0, 0.5 * self.estimator.ridge * self.solution.squares[t - 1]
        for part, point in zip(self.solution.parts, points, strict=True):
            overlap = part.state.overlap[t - 1, :t]
            tied += float(coupling(point.magnetization, *overlap, *point.response_row, *point.conjugates))
            weighed += 0.5 * point.conjugates[-1] * overlap[-1]  # Psi_w = E[w^T A_tt w]/(2N)
        alpha = sum(self.data.data_set(name).alpha for name in self.sets)
        envelope = self.samples.envelope(self.estimator.loss, [point.response_row[-1] for point in points])
        return alpha * envelope + (-tied - weighed)


def solve_clusters(
    data: Clusters, chain: Chain, settings: Settings, start: ClusterSolution | None = None
) -> ClusterSolution:
    """Saddle point of a chain on clusters.

    Parameters
    ----------
    start : ClusterSolution
        A solution at nearby parameters to continue from.

    Raises
    ------
    ParameterError
        If the targets of a stage do not depend on the sample.
    """
    for name, bias in zip(chain.names, resting_biases(chain.stages), strict=True):
        if bias is not None:
            raise ParameterError(f"loss of {name} must have targets that depend on the sample, where data are Clusters")
    refinement = Refinement(data, chain, settings, () if start is None else start.walk.found)
    solved, error = refinement.run()
    walk, outcome = refinement.walk, refinement.outcome
    points = tuple(walk.points)
    message = "converged"
    if not solved:
        number = min(len(points) + 1, len(chain))
        message = f"stage {number} ({chain.name(number)}): {Status(outcome.status).message}"
    elif not error <= settings.rtol:
        message = f"the quadrature error estimate {error:.1e} exceeds rtol={settings.rtol:.1e}"
    elif not outcome.residual <= settings.residual_tolerance:
        message = f"the residual {outcome.residual:.1e} exceeds {settings.residual_tolerance:.1e}"
    if not points:  # so that there is something to ask for the shapes of order parameters
        failed = StagePoint(np.full(4, np.nan), np.full(3, np.nan), outcome.status, 0, np.inf, np.inf, np.inf)
        points = ((failed,) * len(data),)
    unknown = np.full(len(chain) - walk.prior.stages, np.nan)
    squares, shifts = (np.append(values, unknown) for values in (walk.prior.squares(), shifts_of(walk)))
    return ClusterSolution(
        data, chain, points, walk, refinement.before, message == "converged", outcome.residual, error, outcome.iterations, message,
        walk.level.number, settings, squares, shifts,
    )  # fmt: skip
