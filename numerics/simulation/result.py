"""Means over runs, and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from numerics.models import Chain, DataModel, RandomFeatures, chosen
from numerics.simulation.draw import Array, class_counts, mask_sizes
from numerics.simulation.measure import QUALITY
from numerics.solution.observables.registry import REGISTRY
from numerics.solution.solution import without_nan

OF_CLASSES = {"means": "means", "biases": "bias", "class_errors": "class_errors", "confusion": "confusion"}
"""What a stage on K classes has besides the observables of the registry, by its name in the raw runs."""


OF_CLUSTERS = {"means": "means", "cluster_errors": "cluster_errors"}
"""The same in clusters."""


@dataclass(frozen=True)
class Estimate:
    """Mean over runs, its standard error (nan for a single run), the number of runs, and what each of them gave."""

    mean: float | Array
    standard_error: float | Array
    n: int
    values: Array | None = field(default=None, repr=False, compare=False)


def estimate(values: Array) -> Estimate:
    """Average over the first axis."""
    n = len(values)
    with np.errstate(invalid="ignore"):  # infinite in a run that broke down
        error = values.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.full(values.shape[1:], np.nan)
    mean = values.mean(axis=0)
    return Estimate(float(mean), float(error), n, values) if mean.ndim == 0 else Estimate(mean, error, n, values)


@dataclass(frozen=True)
class StageEstimates:
    """Observables of one stage, each an :class:`Estimate`; nan where a teacher is needed and there is none."""

    result: SimulationResult
    index: int

    @property
    def _further(self) -> Mapping[str, str]:
        """What there is besides observables, with its name in the raw runs."""
        data = self.result.data
        return OF_CLASSES if data.many_classes else OF_CLUSTERS if data.in_clusters else {}

    def __getattr__(self, name: str) -> Estimate:
        if name not in self.__dir__():
            raise AttributeError(f"a stage has no observable {name!r}; it has {', '.join(sorted(self.__dir__()))}")
        runs, t = self.result.runs, self.index
        if name == "response":
            values = runs[name][:, t, t]
            return estimate(np.trace(values, axis1=1, axis2=2) if values.ndim == 3 else values)
        raw_name = self._further.get(name)
        return estimate(runs[raw_name or (REGISTRY[name].raw_name if name in REGISTRY else name)][:, t])

    def __dir__(self) -> list[str]:
        runs, data = self.result.runs, self.result.data
        if self._further:
            return [
                *self._further,
                *(name for name, found in REGISTRY.items() if found.of(data) and found.raw_name in runs),
                *QUALITY,
            ]
        return [*(name for name, found in REGISTRY.items() if found.raw_name in runs), *QUALITY]

    def to_dict(self) -> dict[str, object]:
        """Mean and standard error of everything, for JSON."""
        return {name: _plain(getattr(self, name)) for name in self.__dir__()}


@dataclass(frozen=True)
class SimulationResult:
    """Observables of all runs.

    Attributes
    ----------
    data, chain
        What was simulated.
    n_inputs, set_sizes, active
        N, samples of each data set, and the number of trained weights of each stage.
    seed
        Run k of a seed is the same draw whatever the number of runs.
    runs : dict
        Raw values by name: shape (n_runs, T), or (n_runs, T, T) for overlap, response and other quantities of
        two stages.  Of C clusters means and cluster_errors are (n_runs, T, C), cluster_overlaps (n_runs, T, T, C).  On K classes
        bias and class_errors are (n_runs, T, K), means and confusion (n_runs, T, K, K), a row a class,
        overlap and response (n_runs, T, T, K, K).
    converged : bool
        Whether every fit met the gradient tolerance.
    message : str
        Which did not, in words.
    """

    data: DataModel
    chain: Chain
    n_inputs: int
    set_sizes: tuple[int, ...]
    active: tuple[int, ...]
    seed: int
    runs: Mapping[str, Array]
    converged: bool
    message: str

    @property
    def n_runs(self) -> int:
        return len(self.runs["bias"])

    @property
    def n_samples(self) -> int:
        """Samples M of the training set."""
        return self.set_sizes[0]

    @property
    def effective_alpha(self) -> float:
        """M/N of the training set, which rounding may move away from the alpha asked for."""
        return self.n_samples / self.n_inputs

    @property
    def effective_data(self) -> DataModel:
        """The data with every alpha, and on K classes their weights, as they were after rounding."""
        alphas = [size / self.n_inputs for size in self.set_sizes]
        if self.data.many_classes:
            weights = [tuple((counts / counts.sum()).tolist()) for counts in class_counts(self.data, self.n_inputs)]
            sets = zip(self.data.further, alphas[1:], weights[1:], strict=True)
            further = [replace(data_set, alpha=alpha, weights=shares) for data_set, alpha, shares in sets]
            return replace(self.data, alpha=alphas[0], weights=weights[0], further=tuple(further))
        if self.data.in_clusters:
            counts = class_counts(self.data, self.n_inputs)[0]
            alone = replace(self.data, weights=tuple((counts / counts.sum()).tolist()))
            return self._with_alphas(alone, alphas)
        return self._with_alphas(self.data, alphas)

    @staticmethod
    def _with_alphas(data: DataModel, alphas: Sequence[float]) -> DataModel:
        changed = data.with_value("alpha", alphas[0])
        further = (replace(data_set, alpha=alpha) for data_set, alpha in zip(data.further, alphas[1:], strict=True))
        return replace(changed, further=tuple(further)) if data.further else changed

    @property
    def effective_chain(self) -> Chain:
        """The chain with every eta, overlap of masks and number of random features as it was after rounding."""
        stages = list(self.chain.stages)
        for t, (size, inside) in enumerate(mask_sizes(self.chain, self.n_inputs)):
            features = stages[t].features
            if isinstance(features, RandomFeatures):
                stages[t] = replace(stages[t], features=replace(features, ratio=size / self.n_inputs))
            elif features is None and stages[t].masked:
                overlap = None if inside is None else inside / size
                stages[t] = replace(stages[t], eta=size / self.n_inputs, mask_overlap=overlap)
        return Chain(tuple(stages))

    @property
    def effective_eta(self) -> tuple[float, ...]:
        """Trained fraction of the weights of each stage."""
        return tuple(size / self.n_inputs for size in self.active)

    def estimate(self, name: str) -> Estimate:
        """Mean and standard error of a quantity, shape (T,) or (T, T); KeyError if it is unknown."""
        if name not in self.runs:
            raise KeyError(f"no observable {name!r}; there are {', '.join(sorted(self.runs))}")
        return estimate(self.runs[name])

    def mean(self, name: str) -> Array:
        """Mean over runs, shape (T,) or (T, T)."""
        return np.asarray(self.estimate(name).mean)

    def standard_error(self, name: str) -> Array:
        """Standard error of the mean; nan for a single run."""
        return np.asarray(self.estimate(name).standard_error)

    @cached_property
    def magnetization(self) -> Estimate:
        """m_t, shape (T,)."""
        return self.estimate("magnetization")

    @cached_property
    def means(self) -> Estimate:
        """Of K classes: overlaps w_tk.mu_c/N, shape (T, K, K), a row a class; of C clusters w_t.mean_c/sqrt(N), shape (T, C)."""
        return self.estimate("means")

    @cached_property
    def bias(self) -> Estimate:
        """b_t, shape (T,), or (T, K)."""
        return self.estimate("bias")

    @cached_property
    def overlap(self) -> Estimate:
        """Q_ts, shape (T, T), or (T, T, K, K)."""
        return self.estimate("overlap")

    @property
    def response(self) -> Estimate:
        """V_ts, shape (T, T), or (T, T, K, K), lower triangular; it has a finite-size bias of order 1/N.

        nan through hard pseudo-labels, and other targets that jump.

        Raises
        ------
        AttributeError
            If the simulation was run without ``responses=True``.
        """
        if "response" not in self.runs:
            raise AttributeError("responses were not measured: call simulate(..., responses=True)")
        return self.estimate("response")

    def __len__(self) -> int:
        return len(self.chain)

    def __getitem__(self, index: int | str | slice) -> StageEstimates | tuple[StageEstimates, ...]:
        """Stage by position from 0, so that ``result[1]`` is the student, or by name; stages of a slice."""
        return chosen(self.chain.names, index, lambda k: StageEstimates(self, k))

    def __iter__(self) -> Iterator[StageEstimates]:
        return (self[index] for index in range(len(self)))

    def to_dict(self) -> dict[str, object]:
        """Everything but the raw runs, in types JSON knows; nan becomes None."""
        matrices = ("overlap", "response") if "response" in self.runs else ("overlap",)
        return {
            "converged": self.converged,
            "message": self.message,
            "n_inputs": self.n_inputs,
            "n_samples": self.n_samples,
            "further_samples": dict(zip((found.name for found in self.data.further), self.set_sizes[1:], strict=True)),
            "n_runs": self.n_runs,
            "seed": self.seed,
            "effective_alpha": self.effective_alpha,
            "stages": [
                {"name": name, "effective_eta": eta, **stage.to_dict()}
                for name, eta, stage in zip(self.chain.names, self.effective_eta, self, strict=True)
            ],
            **{name: _plain(self.estimate(name)) for name in matrices},
        }


def _plain(found: Estimate) -> dict[str, object]:
    return {name: without_nan(np.asarray(getattr(found, name)).tolist()) for name in ("mean", "standard_error")}
