"""Solutions over grids of parameters, as labelled arrays."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import xarray
from numpy.typing import ArrayLike
from tqdm import tqdm

from numerics.compiled import PointArrays, compile_chain
from numerics.models import Chain, Estimator, GaussianMixture, ParameterError, parameter_paths, with_parameter
from numerics.settings import DEFAULT, Settings
from numerics.solution import OBSERVABLES, Solution
from numerics.solver import read_solution

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


def _line(data: GaussianMixture, chain: Chain, path: str, values: np.ndarray, settings: Settings) -> Iterator[Solution]:
    """Solutions along one axis, each started from those before it, all in one compiled call."""
    points = [with_parameter(data, chain, path, float(value)) for value in values]
    arrays = PointArrays(points)
    position = np.log(values) if values.min() > 0 else values
    arrays.solve(compile_chain(chain), settings, position)
    for i, (here, stages) in enumerate(points):
        yield read_solution(arrays, i, here, stages, settings)


def sweep(
    data: GaussianMixture,
    chain: Chain | Estimator | Sequence[Estimator],
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
        For an unknown parameter or observable, or a value outside its range.
    """
    chain = Chain.of(chain)
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
            with_parameter(data, chain, path, float(value))
    # Continuation runs along the last axis in order of its values; results go back to the order given.
    order = np.argsort(axes[inner])
    shape = tuple(values.size for values in axes.values())
    values = {name: np.full((len(chain), *shape), np.nan) for name in observables}
    converged = np.zeros(shape, dtype=bool)
    residual = np.full(shape, np.nan)
    quadrature_error = np.full(shape, np.nan)

    def run_line(index: tuple[int, ...]) -> None:
        here = data, chain
        for path, position in zip(outer, index, strict=True):
            here = with_parameter(*here, path, float(axes[path][position]))
        for position, solution in zip(order, _line(*here, inner, axes[inner][order], settings), strict=True):
            where = (*index, position)
            converged[where] = solution.converged
            residual[where] = solution.residual
            quadrature_error[where] = solution.quadrature_error
            if solution.converged:
                for name in observables:
                    values[name][(slice(None), *where)] = [getattr(stage, name) for stage in solution.stages]

    lines = list(np.ndindex(shape[:-1]))
    compile_chain(chain)  # once, before threads ask for it
    with ThreadPoolExecutor(max_workers=jobs or os.cpu_count() or 1) as executor:
        futures = executor.map(run_line, lines)
        for _ in tqdm(futures, total=len(lines), unit="line", delay=2, disable=not progress):
            pass

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
            LONG_NAMES[path.rpartition(".")[2]] if path in parameter_paths(chain) else path
        )
    dataset.attrs = {
        "data": repr(data),
        "chain": repr(chain),
        "settings": repr(settings),
        **{f"version_{name}": number for name, number in package_versions().items()},
    }
    return dataset
