"""Solutions over grids of parameters, as labelled arrays."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from numerics import formulas
from numerics.compiled import PointArrays, compile_chain
from numerics.limits import require_plain
from numerics.models import (
    Chain,
    GaussianMixture,
    ParameterError,
    Stage,
    check_fit,
    parameter_paths,
    with_parameter,
)
from numerics.settings import DEFAULT, Settings
from numerics.solution import OBSERVABLES
from numerics.solver import has_limit, limit_solution, read_solution, settings_for

if TYPE_CHECKING:
    import xarray

BLOCK = 50
"""Points along the last axis that one thread solves in a row; within a block each point continues from those before."""

LONG_NAMES = {
    "alpha": "samples per input, alpha = M/N",
    "rho": "probability of the positive class",
    "delta": "noise variance Delta",
    "ridge": "ridge",
    "eta": "fraction of trainable weights",
    "mixing": "mixing chi",
    "temperature": "temperature T",
    "smoothing": "label smoothing",
    "gain": "gain",
    "bias": "bias",
    "label_noise": "probability of a flipped training label",
    "mask_overlap": "overlap of masks",
    "magnetization": "magnetization m",
    "norm_squared": "squared norm Q",
}


def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in ("replica-distillation", "numpy", "scipy", "sympy", "numba"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _axis(path: str, values: ArrayLike) -> np.ndarray:
    array = np.atleast_1d(np.asarray(values, dtype=float))
    if array.ndim != 1 or array.size == 0 or not np.all(np.isfinite(array)):
        raise ParameterError(f"over[{path!r}] must be a non-empty list of finite numbers")
    if np.unique(array).size != array.size:
        raise ParameterError(f"over[{path!r}] must not repeat a value")
    return array


def _algebraic(arrays: PointArrays) -> dict[str, Callable[[], np.ndarray]]:
    """Observables that are formulas of the order parameters, for all points at once; each of shape (stages, n)."""
    _, rho, delta = arrays.data.T
    stages = range(arrays.x.shape[1])
    cholesky, response = arrays.overlaps()
    m, b = arrays.x[:, :, 0].T, arrays.x[:, :, 1].T
    q = np.array([np.sum(cholesky[:, t] ** 2, axis=1) for t in stages])
    return {
        "magnetization": lambda: m,
        "bias": lambda: b,
        "norm_squared": lambda: q,
        "norm": lambda: np.sqrt(q),
        "response": lambda: np.array([response[:, t, t] for t in stages]),
        "cosine": lambda: m / np.sqrt(q),
        "test_error": lambda: formulas.test_error()(m, b, q, delta, rho),
    }


def _solve_block(
    points: Sequence[tuple[GaussianMixture, Chain]],
    position: np.ndarray,
    observables: Sequence[str],
    settings: Settings,
    refused: list[ParameterError],
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Neighbouring points, each started from those before it: observables (stages, n), converged, residual, error (n,)."""
    if any(has_limit(chain) for _, chain in points):
        return _solve_limits(points, observables, settings, refused)
    arrays = PointArrays(points)
    arrays.solve(compile_chain(points[0][1]), settings, position)
    converged = arrays.converged(settings)
    algebraic = _algebraic(arrays)
    values = {}
    for name in observables:
        if name in algebraic:
            values[name] = np.where(converged, algebraic[name](), np.nan)
    rest = [name for name in observables if name not in algebraic]
    if rest:
        values |= {name: np.full((arrays.x.shape[1], len(points)), np.nan) for name in rest}
        for i in np.flatnonzero(converged):
            solution = read_solution(arrays, i, *points[i], settings)
            for name in rest:
                values[name][:, i] = [getattr(stage, name) for stage in solution.stages]
    residual = np.where(np.isfinite(arrays.stats[:, :, 2]), arrays.stats[:, :, 2], np.inf).max(axis=1)
    return values, converged, residual, arrays.summary[:, 2].copy()


def _solve_limits(
    points: Sequence[tuple[GaussianMixture, Chain]],
    observables: Sequence[str],
    settings: Settings,
    refused: list[ParameterError],
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`_solve_block`, point by point, where some ridges are 0; where there is no limit a point is masked.

    Why is added to ``refused``.
    """
    n, size = len(points), len(points[0][1])
    values = {name: np.full((size, n), np.nan) for name in observables}
    converged = np.zeros(n, dtype=bool)
    residual, error = np.full(n, np.inf), np.full(n, np.inf)
    for i, (data, chain) in enumerate(points):
        require_plain(data, chain)
        try:
            solution = limit_solution(data, chain, settings)
        except ParameterError as reason:
            refused.append(reason)
            continue
        converged[i], residual[i], error[i] = solution.converged, solution.residual, solution.quadrature_error
        if solution.converged:
            for name in observables:
                values[name][:, i] = [getattr(stage, name) for stage in solution.stages]
    return values, converged, residual, error


def sweep(
    data: GaussianMixture,
    chain: Chain | Stage | Sequence[Stage],
    over: Mapping[str, ArrayLike],
    observables: Sequence[str] = ("test_error",),
    *,
    jobs: int | None = None,
    progress: bool = False,
    settings: Settings = DEFAULT,
) -> xarray.Dataset:
    """Observables of every stage on a grid of parameters.

    Parameters
    ----------
    over : mapping of parameter name to values
        Names as in :func:`numerics.models.parameter_paths` (``alpha``, ``teacher.ridge``, ...); any number of axes.
    observables : sequence of str
        Keys of :data:`numerics.solution.OBSERVABLES`.
    jobs : int or None
        Threads (the compiled solver releases the GIL); default: one for each core.
    progress : bool
        Show a progress bar on standard error if it takes over two seconds.

    Returns
    -------
    xarray.Dataset
        Observables with dimensions ``(stage, *axes)``; ``converged``, ``residual`` and ``quadrature_error`` with ``axes``.
        Points that did not converge are NaN and False.  Attributes hold what is needed to run it again.

    Raises
    ------
    ParameterError
        For an unknown parameter or observable, or a value outside its range; or if ridges are 0 and no point has a limit.
    """
    import xarray  # here: it takes as long to import as all the rest

    chain = Chain.of(chain)
    settings = settings_for(chain, settings)
    if not over:
        raise ParameterError("over must name at least one parameter")
    axes = {path: _axis(path, values) for path, values in over.items()}
    for name in observables:
        if name not in OBSERVABLES:
            raise ParameterError(f"unknown observable {name!r}; allowed are {', '.join(OBSERVABLES)}")
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ParameterError(f"jobs must be a positive integer or None, got {jobs!r}")
    *outer, inner = axes
    for path, values in axes.items():
        for value in (values.min(), values.max()):
            check_fit(*with_parameter(data, chain, path, float(value)))
    # Continuation runs along the last axis in order of its values; results go back to the order given.
    order = np.argsort(axes[inner])
    shape = tuple(values.size for values in axes.values())
    values = {name: np.full((len(chain), *shape), np.nan) for name in observables}
    converged = np.zeros(shape, dtype=bool)
    residual = np.full(shape, np.nan)
    quadrature_error = np.full(shape, np.nan)

    def run_block(task: tuple[tuple[int, ...], np.ndarray]) -> None:
        index, block = task
        here = data, chain
        for path, place in zip(outer, index, strict=True):
            here = with_parameter(*here, path, float(axes[path][place]))
        along = axes[inner][block]
        points = [with_parameter(*here, inner, float(value)) for value in along]
        position = np.log(along) if along.min() > 0 else along
        found, *quality = _solve_block(points, position, observables, settings, refused)
        for name, array in found.items():
            values[name][(slice(None), *index, block)] = array
        for target, array in zip((converged, residual, quadrature_error), quality, strict=True):
            target[(*index, block)] = array

    refused: list[ParameterError] = []
    blocks = np.array_split(order, -(-order.size // BLOCK))
    tasks = [(index, block) for index in np.ndindex(shape[:-1]) for block in blocks]
    compile_chain(chain)  # once, before threads ask for it
    with (
        ThreadPoolExecutor(max_workers=jobs or os.cpu_count() or 1) as executor,
        tqdm(total=order.size * len(tasks) // len(blocks), unit="point", delay=2, disable=not progress) as bar,
    ):
        for (_, block), _ in zip(tasks, executor.map(run_block, tasks), strict=True):
            bar.update(block.size)

    if len(refused) == converged.size:  # no limit anywhere: a mistake rather than a region
        raise refused[0]
    dataset = xarray.Dataset(
        {
            **{name: (("stage", *axes), array, {"long_name": OBSERVABLES[name]}) for name, array in values.items()},
            "converged": (tuple(axes), converged, {"long_name": "converged"}),
            "residual": (tuple(axes), residual, {"long_name": "undamped, scaled residual"}),
            "quadrature_error": (tuple(axes), quadrature_error, {"long_name": "quadrature error estimate"}),
        },
        coords={"stage": list(chain.names), **axes},
    )
    for path in axes:
        dataset[path].attrs["long_name"] = (
            LONG_NAMES[path.rpartition(".")[2]] if path in parameter_paths(chain, data) else path
        )
    dataset.attrs = {
        "data": repr(data),
        "chain": repr(chain),
        "settings": repr(settings),
        **{f"version_{name}": number for name, number in package_versions().items()},
    }
    return dataset
