"""Compiling the solver with all processors: helpers, which are processes that compile its functions from the last to the first.

A function that is set apart (:func:`numerics.codegen.cache.njit`) is known to its callers by its signature and a name, so that none
has to wait for another.  The process that needs them all compiles one after the other from the first on, and finds in the cache
what helpers have done: they meet in the middle, and nobody waits for anybody.  What few problems need comes last, and is not waited
for.  Helpers end with the process that started them, and whatever goes wrong in one is no loss but of its help.
"""

from __future__ import annotations

import atexit
import importlib
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from numerics.deferred import importing

COMPILERS_VARIABLE = "REPLICA_DISTILLATION_COMPILERS"
"""Environment variable: how many processes may compile at once.  Default: one a processor, at most four."""

_MOST = 4
_KERNELS = "numerics.scalar.kernels."
_LAST = "entries"  # of the kernels: imports all others
_STAGES = (2, 1)  # whose equations nearly every chain needs
_LOCK_PATIENCE = 3.0  # seconds: a helper whose parent is gone may have to finish its function
_helpers: list[subprocess.Popen] = []
_started = False


def compilers() -> int:
    """How many processes may compile at once."""
    wanted = os.environ.get(COMPILERS_VARIABLE)
    if wanted:
        try:
            return max(int(wanted), 1)
        except ValueError:
            warnings.warn(f"{COMPILERS_VARIABLE}: {wanted} is no number of processes", stacklevel=2)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, _MOST)


def start(module: str) -> None:
    """Start helpers, once, for what a kernel belongs to that is going to be compiled; elementary ones are soon done."""
    global _started
    if _started or not module.startswith(_KERNELS) or module == f"{_KERNELS}elementary":
        return
    _started = True
    if not Path(sys.executable or "").name.lower().startswith("python") or sys.gettrace() is not None:
        return  # part of another program, or somebody watches step by step
    start_helpers([_KERNELS + _LAST], _STAGES, compilers() - 1)


def start_helpers(modules: Sequence[str], stages: Sequence[int], count: int) -> list[subprocess.Popen]:
    """Processes that compile equations of stages, and functions of modules and of what these import, into the cache of this one."""
    started = []
    for number in range(count):
        given = f"{tuple(modules)!r}, {tuple(stages)!r}, {number}, {count}"
        call = f"from numerics.codegen import ahead; ahead.help_out({given})"
        program = f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; {call}"
        with suppress(OSError, ValueError):
            helper = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,  # closes when this process ends, however it does
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
            started.append(helper)
    if started and not _helpers:
        atexit.register(_let_go)
    _helpers.extend(started)
    return started


def _let_go() -> None:
    """Tell helpers that this process ends, and do not wait for them."""
    for helper in _helpers:
        helper.stdin.close()
        if helper.poll() is None:
            helper.returncode = 0  # so that nobody warns of it


def help_out(modules: Sequence[str], stages: Sequence[int], number: int, count: int) -> None:
    """What a helper does, as one of several: every ``count``-th stage and function, from the last on, and late ones at the end.

    Only one helper of a number works in a cache at a time.
    """
    from numerics.codegen import cache
    from numerics.codegen.equations import equations_module

    folder = cache.cache_directory()
    lock = None if folder is None else _held(folder / f"ahead-{number}.lock")
    if lock is None:
        return
    alone = threading.Event()
    threading.Thread(target=_watch_parent, args=(alone,), daemon=True).start()
    postponed = cache.postpone()
    with importing():
        for module in modules:
            importlib.import_module(module)
        for stage in stages[number::count]:
            equations_module(stage)
        for function, signature, _ in sorted(postponed[::-1], key=lambda one: one.late)[number::count]:
            if alone.is_set():
                return
            cache.compile_ahead(function, signature)


def _watch_parent(alone: threading.Event) -> None:
    """Wait until the parent is gone, which closes the pipe that standard input is."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    alone.set()


def _held(path: Path) -> IO[bytes] | None:
    """A file that this process alone holds, for as long as it is open; None if another one does."""
    until = time.monotonic() + _LOCK_PATIENCE
    with suppress(OSError, ImportError):
        file = path.open("ab")
        while True:
            try:
                if os.name == "nt":
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except OSError:
                if time.monotonic() > until:
                    file.close()
                    return None
                time.sleep(0.1)
    return None
