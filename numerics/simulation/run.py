"""Draw, train and measure, many times."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from numerics.models import (
    TRAINING,
    Chain,
    Clusters,
    DataModel,
    Dense,
    Estimator,
    ParameterError,
    RandomFeatures,
    Seen,
    Stage,
    check_fit,
    in_equations,
    require_count,
    require_number,
)
from numerics.simulation.draw import (
    Array,
    class_counts,
    draw,
    draw_classes,
    draw_clusters,
    draw_frozen,
    draw_masks,
    mask_sizes,
    sample_sizes,
)
from numerics.simulation.measure import Further, measure
from numerics.simulation.responses import measure_class_responses, measure_responses
from numerics.simulation.result import SimulationResult
from numerics.simulation.train import StageFit, train
from numerics.solution.observables.registry import checked_names
from numerics.solver import ConvergenceError, ConvergenceWarning


@dataclass(frozen=True)
class Simulation:
    """How a point is simulated where many are.

    Attributes
    ----------
    n_inputs : int
        Inputs N >= 2.
    n_runs : int
        Independent draws >= 1.
    seed : int
        Of all draws, >= 0.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, sweep
    >>> from theory.losses import CrossEntropy
    >>> chain = Estimator(CrossEntropy(), ridge=0.1)
    >>> runs = sweep(GaussianMixture(1.0), chain, {"alpha": [1.0, 2.0]}, simulation=Simulation(n_inputs=100, n_runs=4))
    >>> sorted(runs.data_vars)
    ['test_error', 'test_error_standard_error']
    """

    n_inputs: int = 500
    n_runs: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_inputs", 2), ("n_runs", 1), ("seed", 0)):
            object.__setattr__(self, name, require_count(name, getattr(self, name), least))


def simulate(
    data: DataModel,
    chain: Chain | Stage | Sequence[Stage],
    n_inputs: int = 1000,
    n_runs: int = 20,
    seed: int = 0,
    *,
    n_jobs: int = 1,
    gradient_tolerance: float = 1e-8,
    responses: bool = False,
    further: Further | None = None,
    observables: Collection[str] | None = None,
    throw: bool = False,
    progress: bool = False,
) -> SimulationResult:
    """Train a chain on finite samples, ``n_runs`` times.

    Parameters
    ----------
    data, chain
        What to simulate; alpha and eta are rounded to whole samples and weights (see ``effective_data``).
    n_inputs : int
        N >= 2; of dense inputs a multiple of their number: independent copies.  A run needs less than twice the 8 M N bytes of
        its design matrix, M samples over all data sets; a random mask, or training on data sets that do not follow one another,
        copies its part of the matrix, and a linear map has one of its own.
    n_runs : int
        Independent draws of v and of the samples.  With one run, standard errors are nan.
    seed : int
        Run k depends on the seed and k alone.
    n_jobs : int
        Runs trained at the same time, each on one core.
    gradient_tolerance : float
        Relative gradient norm of a converged fit (see :class:`numerics.simulation.ridge_fit.RidgeFit`).
    responses : bool
        Also measure V_ts, which costs dense inverses (see :func:`measure_responses`).
    further : callable
        Takes the trained stages of a run, returns what else is to be kept of it in ``runs``, by name.
    observables : names
        Measure these alone, by name, and the bias.  Default: all.
    throw : bool
        Raise if a fit does not converge; otherwise it is kept, with a ``ConvergenceWarning`` and
        ``converged`` false.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    SimulationResult

    Raises
    ------
    ParameterError
        If a parameter is out of range, data and chain do not fit together, or all targets of a stage are of one class.
    ConvergenceError
        If ``throw`` and a fit misses the gradient tolerance.

    Examples
    --------
    >>> from theory.losses import CrossEntropy
    >>> from numerics import GaussianMixture
    >>> data = GaussianMixture(alpha=2.0, rho=0.2, delta=1.0)
    >>> runs = simulate(data, Estimator(CrossEntropy(), ridge=0.1), n_inputs=200, n_runs=4, seed=0)
    >>> found = runs[0].test_error
    >>> round(found.mean, 4), round(found.standard_error, 4)
    (0.165, 0.0026)
    >>> runs.estimate("overlap").mean.shape
    (1, 1)
    """
    if not isinstance(data, DataModel):
        raise ParameterError(f"data must be a GaussianMixture, a LinearRule, a ClassMixture or Clusters, got {data!r}")
    chain = Chain.of(chain)
    n_inputs = require_count("n_inputs", n_inputs, 2)
    n_runs = require_count("n_runs", n_runs, 1)
    seed = require_count("seed", seed, 0)
    n_jobs = min(require_count("n_jobs", n_jobs, 1), n_runs)
    gradient_tolerance = require_number(
        "gradient_tolerance",
        gradient_tolerance,
        above=0,
        below=1,
        allowed="a number in the open interval (0, 1)",
    )
    check_fit(data, chain)
    if isinstance(data, Clusters):
        _require_copies(data, n_inputs)
    elif isinstance(data.inputs, Dense) and n_inputs % data.inputs.size:
        raise ParameterError(
            f"n_inputs must be a multiple of the {data.inputs.size} rows of covariance, copies of them, got {n_inputs}"
        )
    set_sizes = sample_sizes(data, n_inputs)
    for data_set, size in zip(data.sets, set_sizes, strict=True):
        if size < 2:
            owner = "" if data_set.name == TRAINING else f" of {data_set.name}"
            raise ParameterError(
                f"alpha*n_inputs{owner} must give at least 2 samples, got alpha={data_set.alpha:g}, n_inputs={n_inputs}"
            )
    _require_memory(n_inputs, sum(set_sizes))
    equations = in_equations(data, chain)
    resolved, hidden = Chain(equations.resolved(data), equations.hidden), equations.hidden
    active = tuple(size for size, _ in mask_sizes(resolved, n_inputs))
    for name, stage, size in zip(resolved.names, resolved.stages, active, strict=True):
        if isinstance(stage, Estimator) and stage.ridge == 0:
            raise ParameterError(f"ridge of {name} must be > 0 in a simulation: the limit 0 is taken by theory only")
        if size < 1:
            share = f"eta of {name} must leave" if stage.features is None else f"features of {name} must give"
            raise ParameterError(f"{share} at least 1 of {n_inputs} weights, got {stage.features or stage.eta}")
    seen = {stage.features for stage in resolved.stages if stage.features is not None}
    maps = [found for found in seen if isinstance(found, Seen)]
    network = next((found for found in seen if isinstance(found, RandomFeatures)), None)

    only = None if observables is None else {"bias", *checked_names(data, observables, simulated=True)}

    def run(k: int) -> tuple[dict[str, Array], list[str]]:
        own_seed = np.random.SeedSequence(seed, spawn_key=(k,))
        sample = (
            draw_classes(data, n_inputs, own_seed, active)
            if data.many_classes
            else draw_clusters(data, n_inputs, own_seed, maps)
            if data.in_clusters
            else draw(data, n_inputs, own_seed, network, maps)
        )
        masks, frozen = draw_masks(resolved, n_inputs, own_seed), draw_frozen(resolved, sample.mean, own_seed)
        fits = train(sample, resolved, masks, gradient_tolerance, frozen)
        failures = failures_of(k, resolved, fits)
        if failures and throw:
            raise ConvergenceError("; ".join(failures))
        found = measure(data, sample, resolved, fits, further, only)
        if responses:
            if any(fit.broken for fit in fits):
                found["response"] = np.full_like(found["overlap"], np.nan)
            elif data.many_classes:
                found["response"] = measure_class_responses(sample, resolved, fits)
            else:
                found["response"] = measure_responses(sample, resolved, fits)[hidden:, hidden:]
        return found, failures

    runs, failures = repeat(run, n_runs, n_jobs, progress)
    message = "; ".join(failures) or "all fits converged"
    if failures:
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return SimulationResult(data, chain, n_inputs, set_sizes, active[hidden:], seed, runs, not failures, message)


Run = tuple[dict[str, Array], list[str]]
"""What one run measured, and which of its fits failed."""


def repeat(
    run: Callable[[int], Run], n_runs: int, n_jobs: int = 1, progress: bool = False
) -> tuple[dict[str, Array], list[str]]:
    """What runs 0, 1, ... measured, each array with an axis of runs in front, and which fits failed."""
    # One thread per run: most time goes into passes over memory, and threads that wait for a busy core cost
    # more than they bring.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_jobs) as pool:
        outcomes = list(tqdm(pool.map(run, range(n_runs)), total=n_runs, desc="runs", delay=2, disable=not progress))
    runs = {name: np.array([found[name] for found, _ in outcomes]) for name in outcomes[0][0]}
    return runs, [failure for _, failed in outcomes for failure in failed]


def failures_of(run: int, chain: Chain, fits: Sequence[StageFit]) -> list[str]:
    """Which stages of a run did not converge, in words."""
    return [
        f"run {run}, {name}: {fit.message}" for name, fit in zip(chain.names, fits, strict=True) if not fit.converged
    ]


def _require_copies(data: Clusters, n_inputs: int) -> None:
    """ParameterError if N is no multiple of p, or a cluster would have no training samples."""
    if n_inputs % data.size:
        raise ParameterError(
            f"n_inputs must be a multiple of the {data.size} columns of means, copies of them, got {n_inputs}"
        )
    if min(class_counts(data, n_inputs)[0]) < 1:
        raise ParameterError(
            f"alpha*n_inputs must give every cluster at least 1 sample, got alpha={data.alpha:g}, n_inputs={n_inputs}"
        )


def _require_memory(n_inputs: int, n_samples: int) -> None:
    """ParameterError if a design matrix is larger than all memory there is."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return
    needed = 8 * n_inputs * n_samples
    if needed > memory:
        raise ParameterError(
            f"n_inputs={n_inputs} inputs and {n_samples} samples make a design matrix of {needed / 1e9:.3g} GB, but there are "
            f"{memory / 1e9:.3g} GB of memory"
        )
