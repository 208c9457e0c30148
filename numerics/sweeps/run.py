"""Observables over grids of parameters: on any executor, into memory or into files that survive whatever happens."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from numerics.models import Chain, ConvergenceWarning, DataModel, ParameterError, Stage, parameter_value
from numerics.scalar.compiled import compile_chain, compile_losses
from numerics.settings import DEFAULT, Settings
from numerics.simulation.run import Simulation
from numerics.solution.observables.registry import checked_names
from numerics.solver import LONGEST_CHAIN
from numerics.square_chain.spectral import is_spectral
from numerics.sweeps.axes import Over, axis_values
from numerics.sweeps.executors import SERIAL, check_executor, noticing_interrupts, run_tasks
from numerics.sweeps.grid import Experiment, Grid
from numerics.sweeps.journal import SUFFIX, Journal, differences, require_room
from numerics.sweeps.tasks import problem_at

if TYPE_CHECKING:
    import xarray

MANY_POINTS = 10**7
"""Points above which a sweep says what it takes before it begins."""

SECONDS_PER_POINT = {1: 1e-4, 2: 2e-4, 3: 0.02, 4: 1.0}
"""Time of a continued point on one core, by the length of the chain."""

SLOWEST_POINT = 10.0
"""The same for longer chains."""

_COPIES = 4.0  # of the results in memory while they are put together
_PASSES = 100.0  # over the samples in a fit
_OPERATIONS_PER_SECOND = 1e9
_FILES = threading.Lock()  # HDF5 does not bear two threads
_DELAY = 2.0  # seconds before a progress bar appears


class LargeGridWarning(UserWarning):
    """Issued before a sweep of more than :data:`MANY_POINTS` points begins, with an estimate of time and size.

    Examples
    --------
    >>> issubclass(LargeGridWarning, UserWarning)
    True
    """


class Work(Protocol):
    """Independent tasks, and what their results make together."""

    def tasks(self) -> Sequence[Callable[[], Any]]: ...

    def join(self, pieces: Iterable[Any]) -> xarray.Dataset: ...


def compute(
    work: Mapping[str, Work], *, executor: Any = None, jobs: int | None = None, journal: Journal | None = None,
    progress: bool | str | tqdm = True,
) -> dict[str, Callable[[], Iterable[Any]]]:  # fmt: skip
    """Run all tasks of all parts; for each part, a function that gives its results in order.

    ``progress`` may be the name of the bar, or a bar to go on with, which counts tasks.  Code is compiled before it starts.

    Results are kept in the journal if there is one (only :class:`Grid` and :class:`Experiment` can be), else in memory; tasks that
    the journal has are not run again.
    """
    parts = {name: part.tasks() for name, part in work.items()}
    kept: dict[str, dict[int, Any]] = {name: {} for name in parts}
    done = {name: journal.done(name) if journal else set() for name in parts}

    def points(name: str, k: int) -> int:
        part = work[name]
        return min(part.per_task, part.size - k * part.per_task) if isinstance(part, Grid | Experiment) else 1

    total = sum(p.size if isinstance(p, Grid | Experiment) else len(parts[name]) for name, p in work.items())
    before = sum(points(name, k) for name, found in done.items() for k in found)
    left = ((((name, k), tasks[k])) for name, tasks in parts.items() for k in range(len(tasks)) if k not in done[name])
    compile_parts(work)
    # BLAS threads of several simulations at once would fight for the cores; filters of warnings are not per thread.
    with (
        threadpool_limits(1, user_api="blas"),
        warnings.catch_warnings(),
        noticing_interrupts(executor != SERIAL) as check_interrupt,
        _bar(progress, total, before) as bar,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # masked, counted and reported at the end
        for (name, k), result in run_tasks(left, executor, jobs):
            if journal is None:
                kept[name][k] = result
            else:
                journal.add(name, k, result)
            bar.update(1 if bar is progress else points(name, k))
            check_interrupt()

    def results(name: str) -> Iterable[Any]:
        if journal is not None:
            return journal.pieces(name)
        return [kept[name][k] for k in range(len(parts[name]))]

    return {name: lambda name=name: results(name) for name in parts}


def compile_parts(work: Mapping[str, Work]) -> None:
    """Compile all that the parts need, so that no clock runs meanwhile."""
    for part in work.values():
        chain = getattr(getattr(part, "simulation", None), "chain", None) or getattr(part, "chain", None)
        data = getattr(part, "data", None)
        if data is not None and data.many_classes:
            continue  # of another solver, that compiles what it needs
        if isinstance(part, Grid) and (len(chain) > LONGEST_CHAIN or is_spectral(part.data, chain)):
            continue  # no compiled solver takes it
        if isinstance(chain, Chain) and not isinstance(part, Experiment):
            compile_chain(chain)
        if isinstance(chain, Chain) and not isinstance(part, Grid):
            compile_losses(chain)


def _bar(progress: bool | str | tqdm, total: int, before: int) -> AbstractContextManager[tqdm]:
    """The bar that is given, or a new one."""
    if isinstance(progress, tqdm):
        return nullcontext(progress)
    return tqdm(
        total=total, initial=before, desc=progress if isinstance(progress, str) else "points", unit="point",
        delay=0 if before else _DELAY, smoothing=0.05, disable=not progress,
    )  # fmt: skip


def evaluate(
    work: Mapping[str, Work], jobs: int | None = None, *, executor: Any = None, journal: Journal | None = None,
    progress: bool | str | tqdm = True,
) -> dict[str, xarray.Dataset]:  # fmt: skip
    """Datasets of all parts; see :func:`compute`."""
    for part in work.values():
        if isinstance(part, Grid | Experiment):
            require_affordable(part, to_file=False)
    results = compute(work, executor=executor, jobs=jobs, journal=journal, progress=progress)
    return {name: part.join(results[name]()) for name, part in work.items()}


def sweep(
    data: DataModel,
    chain: Chain | Stage | Sequence[Stage],
    over: Mapping[str, ArrayLike | str],
    observables: Sequence[str] | None = None,
    *,
    simulation: Simulation | None = None,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    executor: Any = None,
    jobs: int | None = None,
    progress: bool = False,
    rtol: float | None = None,
    settings: Settings = DEFAULT,
) -> xarray.Dataset:
    """Observables of every stage on a grid of parameters.

    Parameters
    ----------
    over : mapping of parameter name to values
        Names as in :func:`numerics.models.parameter_paths` (``alpha``, ``teacher.ridge``, ...); any number of axes.  Values are
        numbers, or ``"LOW:HIGH:COUNT"`` with ``":log"`` for logarithmic spacing.
    observables : sequence of str
        Keys of :data:`numerics.OBSERVABLES`, by default ``test_error``, or ``excess_risk`` where labels are real numbers; for
        theory also ``<observable>_quadrature_error``, how far off one is.  Errors of
        formulas of order parameters cost next to nothing; those of integrals about as much as the integrals.
    simulation : Simulation or None
        Simulate instead of solving: means over runs, and ``<observable>_standard_error``.
    output : path or None
        NetCDF file to make.  Results go to a journal beside it (``<output>.partial``) as they come; the same call after an
        interruption, of whatever kind, goes on where it was.  Memory does not grow with the grid.
    overwrite : bool
        Replace whatever file or journal there is, when the new file is complete; a journal of the same sweep is gone on with.
        Otherwise a complete file of the same sweep is read, and anything else refused.
    executor
        ``"threads"`` (default; the compiled solver releases the GIL), ``"serial"``, ``"processes"`` (in a script, behind
        ``if __name__ == "__main__":``), any ``concurrent.futures.Executor``, or a ``dask.distributed.Client``.  All give the
        same numbers; with processes and clusters, the points of a worker that dies are computed again.
    jobs : int or None
        Threads or processes; default: one for each core.
    progress : bool
        Show on standard error how far it is, the rate and the time left, if it takes over two seconds.
    rtol : float or None
        Accuracy, as in :func:`numerics.solve`.

    Returns
    -------
    xarray.Dataset
        Observables with dimensions ``(stage, *axes)``; for theory, ``converged``, ``residual`` and ``quadrature_error`` with
        ``axes``.  Points without a result are NaN and False; ``failed_points`` and ``failures`` among the attributes say how
        many and why.  Other attributes hold what is needed to run it again.  With ``output``, arrays are read when used.

    Raises
    ------
    ParameterError
        For an unknown parameter or observable, or a value outside its range; if ridges are 0 and no point has a limit; if
        ``output`` cannot be written or is something else; without ``output``, if the results do not fit into ``settings.memory``.
    OSError
        If results cannot be kept any more (a full disk); those before are safe.
    numerics.sweeps.executors.WorkersLostError
        If the workers of an executor die for good.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, sweep
    >>> from theory.losses import CrossEntropy
    >>> model = GaussianMixture(alpha=1.0, rho=0.2, delta=1.0), Estimator(CrossEntropy(), ridge=0.1)
    >>> grid = sweep(*model, {"alpha": [1.0, 2.0], "teacher.ridge": "0.01:1:3:log"})
    >>> grid.test_error.dims, grid.test_error.shape
    (('stage', 'alpha', 'teacher.ridge'), (1, 2, 3))
    """
    if not isinstance(data, DataModel):
        raise ParameterError(f"data must be a GaussianMixture or a LinearRule, got {data!r}")
    chain = Chain.of(chain)
    axes = {path: axis_values(path, values) for path, values in _require_axes(over).items()}
    observables = _checked_observables(data, observables, simulation)
    check_executor(executor, jobs)
    _require_some_allowed(data, chain, axes)
    grid: Grid | Experiment
    if simulation is None:
        grid = Grid(data, chain, axes, observables, settings, rtol)
        _ = grid.accuracy  # checked before anything is computed
    else:
        if rtol is not None:
            raise ParameterError(f"rtol is the accuracy of theory: it has no effect on a simulation, got {rtol!r}")
        grid = Experiment(data, chain, axes, observables, simulation)
    how = {"executor": executor, "jobs": jobs, "progress": "sweep" if progress else False}
    if output is None:
        dataset = evaluate({"sweep": grid}, **how)["sweep"]
        _require_a_point(grid, dataset)
        return dataset
    return _sweep_to_file(grid, _checked_path(output), overwrite, how)


def require_affordable(grid: Grid | Experiment, *, to_file: bool) -> None:
    """What a grid takes, said before it is begun: ParameterError if its results do not fit into memory, else a warning if it is
    large."""
    numbers = float(grid.height) * grid.size
    if not to_file and _COPIES * 8.0 * numbers > grid_memory(grid):
        raise ParameterError(
            f"over: the results of a grid of {grid.size:.3g} points take about {_COPIES * 8e-9 * numbers:.2g} GB of memory, "
            f"more than {grid_memory(grid) / 1e9:.2g} GB: take fewer points, or output=, which streams them to a file"
        )
    if grid.size > MANY_POINTS:
        hours = grid.size * seconds_per_point(grid) / 3600.0
        warnings.warn(
            f"a grid of {grid.size:.3g} points takes about {hours:.2g} hours of one core and {16e-9 * numbers:.2g} GB of disk",
            LargeGridWarning,
            stacklevel=3,
        )


def grid_memory(grid: Grid | Experiment) -> float:
    """Bytes that the results of a grid may take in memory."""
    return (grid.settings if isinstance(grid, Grid) else DEFAULT).memory


def seconds_per_point(grid: Grid | Experiment) -> float:
    """Rough time of a point on one core, by the length of the chain; a simulated one by its size."""
    if isinstance(grid, Grid):
        return SECONDS_PER_POINT.get(len(grid.chain), SLOWEST_POINT)
    how = grid.simulation
    samples = sum(found.alpha for found in grid.data.sets) * how.n_inputs
    return how.n_runs * len(grid.chain) * _PASSES * samples * how.n_inputs / _OPERATIONS_PER_SECOND


def _require_axes(over: object) -> Mapping[str, ArrayLike | str]:
    if not isinstance(over, Mapping) or not over or not all(isinstance(path, str) for path in over):
        raise ParameterError(f"over must be a mapping that names at least one parameter, got {over!r}")
    return over


def _require_some_allowed(data: DataModel, chain: Chain, axes: Over) -> None:
    """ParameterError if an end of an axis is refused together with every combination of ends of the others."""
    for path in axes:
        parameter_value(data, chain, path)  # an unknown name is that, whatever the values
    ends = [sorted({float(values.min()), float(values.max())}) for values in axes.values()]
    allowed: set[tuple[int, float]] = set()
    refused: dict[tuple[int, float], ParameterError] = {}
    for corner in product(*ends):
        try:
            problem_at(data, chain, tuple(axes), corner)
        except ParameterError as error:
            for place in enumerate(corner):
                refused.setdefault(place, error)
        else:
            allowed.update(enumerate(corner))
    for place, reason in refused.items():
        if place not in allowed:
            raise reason


def _checked_observables(data: DataModel, observables: object, simulation: Simulation | None) -> tuple[str, ...]:
    if observables is None:
        observables = "excess_risk" if data.has_real_labels else "test_error"
    if simulation is not None and not isinstance(simulation, Simulation):
        raise ParameterError(f"simulation must be a numerics.Simulation or None, got {simulation!r}")
    names = checked_names(data, observables, simulated=simulation is not None)
    if len(set(names)) < len(names):
        raise ParameterError(f"observables must not repeat a name, got {', '.join(names)}")
    return names


def _checked_path(output: object) -> Path:
    """Absolute path of the file itself: folders may change, and links stay links."""
    if not isinstance(output, str | os.PathLike) or not str(output):
        raise ParameterError(f"output must be a path, got {output!r}")
    try:
        path = Path(os.path.realpath(os.path.expanduser(output)))
    except ValueError as error:
        raise ParameterError(f"output must be a path, got {output!r}: {error}") from None
    if os.path.exists(path) and not path.is_file() and not path.is_dir():
        raise ParameterError(f"output: {path} is not a file")
    return path


def _require_a_point(grid: Grid | Experiment, dataset: xarray.Dataset) -> None:
    """A problem, or a limit ridge -> 0, nowhere on the grid is a mistake rather than a region."""
    if isinstance(grid, Grid) and dataset.attrs["failed_points"] == grid.size and bool(dataset.residual.isnull().all()):
        raise ParameterError(dataset.attrs["failures"].partition("\n")[0].partition(": ")[2])


def _sweep_to_file(grid: Grid | Experiment, path: Path, overwrite: bool, how: Mapping[str, Any]) -> xarray.Dataset:
    import xarray

    require_room(path, 2 * 8 * grid.height * grid.size)
    if not path.is_file() or overwrite:
        require_affordable(grid, to_file=True)
    description = {"sweep": grid.description()}
    text = json.dumps(description, sort_keys=True)
    if path.is_file() and not overwrite:
        with _FILES:
            _require_same(path, description)
            _remove_journal(path, description)
            return xarray.open_dataset(path)
    with Journal(path, description, overwrite=overwrite) as journal:
        results = compute({"sweep": grid}, journal=journal, **how)
        # While the journal is ours nobody else makes this file.
        temporary = path.with_name(f".{path.name}.unfinished")
        try:
            with _FILES:
                grid.write(temporary, results["sweep"], {"description": text})
                with xarray.open_dataset(temporary) as dataset:
                    _require_a_point(grid, dataset)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # netCDF4 says what HDF5 says
            raise OSError(f"cannot write {path} ({error}); what was computed is in {journal.path}") from None
        except ParameterError:
            journal.discard()
            raise
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        journal.discard()
    with _FILES:
        return xarray.open_dataset(path)


def _remove_journal(path: Path, description: Mapping[str, Any]) -> None:
    """A journal of the file that is complete: who made it was killed right after that."""
    if path.with_name(path.name + SUFFIX).exists():
        with suppress(ParameterError):
            Journal(path, description).discard()


def _require_same(path: Path, description: Mapping[str, Any]) -> None:
    """ParameterError unless the file holds the sweep that is asked for."""
    import netCDF4

    try:
        with netCDF4.Dataset(path) as file:
            before = json.loads(file.getncattr("description"))
        if not isinstance(before, dict):
            raise ValueError
    except (OSError, RuntimeError, AttributeError, TypeError, ValueError):
        raise ParameterError(f"output: {path} exists and is not a sweep; remove it or choose another name") from None
    different = differences(before, json.loads(json.dumps(description)))
    if different:
        names = ", ".join(name.removeprefix("sweep.") for name in different[:6])
        raise ParameterError(
            f"output: {path} holds a sweep with other parameters or code (different: {names}); remove it, or choose another name"
        )
