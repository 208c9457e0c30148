"""Independent tasks on one core, on threads, on processes, or on a cluster: the same results from each.

A task is a callable without arguments.  Tasks for processes and clusters must be picklable; those here are dataclasses with
``__call__``.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from numerics.models import ConvergenceWarning, ParameterError, require_count

SERIAL, THREADS, PROCESSES = EXECUTORS = ("serial", "threads", "processes")
"""Executors that are asked for by name."""

WINDOW = 4
"""Tasks handed over per worker: enough to keep it busy, few enough that a million of them need no memory."""

ATTEMPTS = 3
"""How often a task is begun again because the process that ran it died."""

_CONNECTION = 10.0  # seconds to find a scheduler in
_PATIENCE = 1.0  # seconds after which the main thread looks for a pressed Ctrl-C

Task = Callable[[], Any]
Key = Hashable


class WorkersLostError(RuntimeError):
    """The processes that ran tasks died, again and again or for good."""


def check_executor(executor: object, jobs: object) -> None:
    """Raise ParameterError unless ``executor`` and ``jobs`` are what :func:`run_tasks` takes."""
    named = isinstance(executor, str) and executor in EXECUTORS
    if not (executor is None or named or isinstance(executor, Executor) or _is_dask_client(executor)):
        raise ParameterError(
            f"executor must be one of {', '.join(EXECUTORS)}, a concurrent.futures.Executor or a dask.distributed.Client, "
            f"got {executor!r}"
        )
    if jobs is not None:
        require_count("jobs", jobs, allowed="a positive integer or None")


def _is_dask_client(executor: object) -> bool:
    return any(
        kind.__name__ == "Client" and kind.__module__.partition(".")[0] == "distributed"
        for kind in type(executor).__mro__
    )


def run_tasks(
    tasks: Iterable[tuple[Key, Task]], executor: str | Executor | Any | None = None, jobs: int | None = None
) -> Iterator[tuple[Key, Any]]:
    """Run tasks and yield ``(key, result)`` as they end, in any order.

    Parameters
    ----------
    tasks : iterable of (key, task)
        Drawn from as workers become free, never all at once.
    executor
        ``"serial"``, ``"threads"`` (default), ``"processes"``, any ``concurrent.futures.Executor``, or a
        ``dask.distributed.Client``.  Executors that are passed in stay open.
    jobs : int or None
        Threads or processes; default: one for each core.

    Raises
    ------
    WorkersLostError
        If processes die faster than their tasks can be begun again; what was yielded before stands.
    """
    jobs = jobs or os.cpu_count() or 1
    if executor == SERIAL:
        for key, task in tasks:
            yield key, task()
    elif executor is None or executor == THREADS:
        with _closing(ThreadPoolExecutor(jobs)) as pool:
            yield from _run(iter(tasks), pool, WINDOW * jobs)
    elif executor == PROCESSES:
        yield from _run_on_processes(tasks, jobs)
    elif isinstance(executor, Executor):
        workers = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        yield from _run(((key, _Quiet(task)) for key, task in tasks), executor, WINDOW * workers)
    else:
        # Dask begins the tasks of a dead worker again by itself; "pure" would give equal tasks one result.
        try:
            cores = max(1, sum(executor.ncores().values()))
        except Exception as error:
            raise WorkersLostError(f"the client of the cluster does not answer: {error}") from None
        with _closing(executor.get_executor(pure=False)) as pool:
            yield from _run(((key, _Quiet(task)) for key, task in tasks), pool, WINDOW * cores)


def _run(
    tasks: Iterator[tuple[Key, Task]], executor: Executor, window: int, *, cancel: bool = True
) -> Iterator[tuple[Key, Any]]:
    """Hand over at most ``window`` tasks at a time; what is left when this ends early is cancelled, here or by who calls."""
    pending: dict[Future, Key] = {}
    try:
        while True:
            for key, task in tasks:
                pending[executor.submit(task)] = key
                if len(pending) >= window:
                    break
            if not pending:
                return
            for future in wait(pending, timeout=_PATIENCE, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), _result(future)
    except BrokenExecutor as error:
        raise WorkersLostError(f"the workers of the executor died: {error}") from None
    finally:
        for future in pending if cancel else ():
            future.cancel()


def _result(future: Future) -> Any:
    """Result of a task, its own errors as they are, those of a lost cluster as :class:`WorkersLostError`."""
    try:
        return future.result()
    except Exception as error:
        lost = isinstance(error, CancelledError) or type(error).__name__ == "FutureCancelledError"
        if lost or type(error).__module__.startswith("distributed"):
            raise WorkersLostError(f"the cluster lost a task: {' '.join(str(error).split())}") from None
        raise


@contextmanager
def noticing_interrupts(at_once: bool) -> Iterator[Callable[[], None]]:
    """Gives a function that raises KeyboardInterrupt once Ctrl-C was pressed; ``at_once``, the signal raises it too.

    Python raises it wherever the main thread is.  In a destructor it would be printed and forgotten, and in what numba calls to
    hand over arrays it would come out as a SystemError: where the main thread computes, the running task is finished first, or
    until Ctrl-C is pressed again.
    """
    pressed = threading.Event()

    def note(number: int, frame: object) -> None:
        again = pressed.is_set()
        pressed.set()
        if at_once or again:
            signal.default_int_handler(number, frame)

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    usual = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if usual:
        signal.signal(signal.SIGINT, note)
    try:
        yield check
    except SystemError:
        check()
        raise
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _closing(executor: Executor) -> Iterator[Executor]:
    """Shut down at the end; after an error or Ctrl-C without waiting for what is running."""
    try:
        yield executor
    except BaseException:
        with suppress(Exception):
            executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


class _Quiet:
    """A task in another process: what does not converge is in its result, not in a warning there."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self) -> Any:
        warnings.simplefilter("ignore", ConvergenceWarning)
        return self.task()


# Processes.


def _run_on_processes(tasks: Iterable[tuple[Key, Task]], jobs: int) -> Iterator[tuple[Key, Any]]:
    """On a pool that is replaced when one of its processes dies; the tasks it had are begun again."""
    source = iter(tasks)
    open_tasks: dict[Key, Task] = {}  # handed over, without a result
    begun: Counter[Key] = Counter()

    def fresh() -> Iterator[tuple[Key, Task]]:
        for key, task in source:
            open_tasks[key] = task
            yield key, task

    again: list[tuple[Key, Task]] = []
    while True:
        with _processes(jobs) as pool:
            try:
                for key, result in _run(_chain(again, fresh()), pool, WINDOW * jobs, cancel=False):
                    del open_tasks[key]
                    yield key, result
                return
            except WorkersLostError as error:
                begun.update(open_tasks.keys())
                if max(begun.values(), default=ATTEMPTS + 1) > ATTEMPTS:
                    raise WorkersLostError(
                        f"{error} ({ATTEMPTS + 1} times with the same tasks; do they need more memory than there is, or does the "
                        "script lack 'if __name__ == \"__main__\":'?)"
                    ) from None
                again = list(open_tasks.items())


def _chain(first: Iterable, second: Iterator) -> Iterator:
    yield from first
    yield from second


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that share nothing with this one (forking a threaded process is not safe), ended at once on an error."""
    import multiprocessing  # here: only these need it

    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin_process)
    try:
        yield pool
    except BaseException:
        running = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        raise
    else:
        pool.shutdown()


def _begin_process() -> None:
    """Leave Ctrl-C to the main process, and end when it does, however it ends."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore", ConvergenceWarning)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# Clusters.


@contextmanager
def cluster(address: str, jobs: int | None = None) -> Iterator[Any]:
    """A ``dask.distributed.Client`` of the scheduler at ``address``, or of a local cluster for ``"local"``.

    Raises
    ------
    ParameterError
        If Dask is not installed, or there is no scheduler at that address.
    """
    try:
        import distributed
    except ImportError:
        raise ParameterError(
            "Dask is missing: install the extra 'cluster' (pip install 'replica-distillation[cluster]')"
        ) from None
    if address != "local" and not re.fullmatch(r"(\w+://)?[^\s/:]+:\d+", address):
        raise ParameterError(f"{address!r} cannot be reached: an address is local, HOST:PORT or PROTOCOL://HOST:PORT")
    with ExitStack() as stack:
        try:
            where: Any = address
            if address == "local":
                workers = jobs or os.cpu_count() or 1
                where = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
                stack.callback(_quietly, where.close)
            client = distributed.Client(where, timeout=_CONNECTION, set_as_default=False)
            stack.callback(_quietly, client.close)
        except (OSError, ValueError, TypeError, TimeoutError) as error:
            raise ParameterError(f"{address!r} cannot be reached: {' '.join(str(error).split())}") from None
        yield client


def _quietly(close: Callable[[], None]) -> None:
    """Close what may be half closed already: a cluster whose processes got the same Ctrl-C."""
    with suppress(Exception):
        close()
