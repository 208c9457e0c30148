"""Helpers that compile ahead: what they write is what others read, and they never outlive or trouble who started them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from surroundings import ROOT, python

from numerics.codegen import ahead
from numerics.codegen.cache import CACHE_VARIABLE

KERNELS = """
from numba import types
from numerics.codegen.cache import njit

@njit(types.float64(types.float64), cache=True, inner=True, plain=True, forceinline=True)
def included(x):
    return x + 1.0

@njit(types.float64(types.float64), cache=True, apart=True, inner=True, plain=True)
def lowest(x):
    return included(x) * 2.0

@njit(types.float64(types.float64), cache=True, apart=True, inner=True)
def middle(x):
    return lowest(x) + included(x)

@njit(types.float64(types.float64), cache=True, apart=True)
def highest(x):
    return middle(x) * lowest(x)
"""
"""A room of its own: ``highest(2) = (6 + 3) * 6``."""

COUNTS = """
from numba.core import event
with event.install_recorder("numba:compile") as seen:
    import kernels_of_this_test as kernels
print(kernels.highest(2.0), len(seen.buffer))
"""
"""The value, and how many events of compiling there were: two a function."""

WAITS = """
import time
from pathlib import Path
here = Path(__file__).parent
(here / "imported").touch()
while not (here / "go").exists():
    time.sleep(0.01)
from kernels_of_this_test import highest
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch) -> Path:
    """A folder of modules on the path, with an empty cache."""
    (tmp_path / "kernels_of_this_test.py").write_text(KERNELS)
    (tmp_path / "waits_for_this_test.py").write_text(WAITS)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def entries(room: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (room / "cache" / "__pycache__").glob("kernels_of_this_test*.nbi")}


def test_a_fresh_process_reads_what_helpers_compiled(room: Path) -> None:
    helpers = ahead.start_helpers(["kernels_of_this_test"], (), 2)
    assert [helper.wait(60) for helper in helpers] == [0, 0]
    names = {f"kernels_of_this_test.{name}" for name in ("included", "lowest", "middle", "highest")}
    assert entries(room) == names
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(room)])}
    assert python("-c", COUNTS, variables=variables).stdout == b"54.0 0\n"
    # One that was not finished: its callers, which are, jump to what is compiled here.
    for path in (room / "cache" / "__pycache__").glob("kernels_of_this_test.middle*.nb*"):
        path.unlink()
    assert python("-c", COUNTS, variables=variables).stdout == b"54.0 2\n"
    assert not list(room.rglob("*.tmp"))


def test_a_helper_ends_with_its_parent(room: Path) -> None:
    program = "from numerics.codegen import ahead; ahead.start_helpers(['waits_for_this_test'], (), 1); input()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(room)])}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (room / "imported").exists() and time.monotonic() < until:
        time.sleep(0.01)
    parent.kill()
    parent.communicate()
    time.sleep(0.2)
    (room / "go").touch()
    while (lock := ahead._held(room / "cache" / "ahead-0.lock")) is None and time.monotonic() < until:
        pass
    assert lock is not None
    lock.close()
    assert entries(room) == {"kernels_of_this_test.included"}  # nothing of what comes after the import


def test_one_helper_at_a_time_works_in_a_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ahead, "_LOCK_PATIENCE", 0.0)
    first = ahead._held(tmp_path / "lock")
    assert first is not None
    assert ahead._held(tmp_path / "lock") is None
    first.close()
    second = ahead._held(tmp_path / "lock")
    assert second is not None
    second.close()
    assert ahead._held(tmp_path / "nowhere" / "lock") is None


@pytest.mark.parametrize(
    ("processors", "wanted", "module", "helpers"),
    [
        (1, None, "stage", 0),
        (2, None, "stage", 1),
        (64, None, "stage", 3),
        (1, "2", "stage", 1),
        (64, "1", "stage", 0),
        (64, None, "elementary", 0),
        (64, None, "grid", 3),
    ],
)
def test_helpers_are_as_many_as_there_are_processors(
    monkeypatch, processors: int, wanted: str | None, module: str, helpers: int
) -> None:
    started = []
    monkeypatch.setattr(ahead, "_started", False)
    monkeypatch.setattr(ahead, "start_helpers", lambda modules, stages, count: started.append(count))
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    monkeypatch.delenv(ahead.COMPILERS_VARIABLE, raising=False)
    if wanted:
        monkeypatch.setenv(ahead.COMPILERS_VARIABLE, wanted)
    for _ in range(2):
        ahead.start(f"numerics.scalar.kernels.{module}")
    ahead.start("somewhere.else")
    assert sum(started) == helpers
    assert len(started) <= 1


def test_a_number_of_processes_that_is_none(monkeypatch) -> None:
    monkeypatch.setenv(ahead.COMPILERS_VARIABLE, "all")
    with pytest.warns(UserWarning, match=f"{ahead.COMPILERS_VARIABLE}: all is no number"):
        assert ahead.compilers() >= 1


@pytest.mark.slow
def test_answers_are_the_same_with_and_without_helpers(tmp_path: Path) -> None:
    command = ("-m", "numerics.solve", "--alpha", "0.8", "--eta", "0.5", "--student-ridge", "1e-5", "--json")
    found = []
    for compilers in ("1", "2"):
        variables = {CACHE_VARIABLE: str(tmp_path / compilers), ahead.COMPILERS_VARIABLE: compilers}
        found.append(python(*command, variables=variables))
        assert (tmp_path / compilers / "ahead-0.lock").exists() == (compilers == "2")
    again = python(*command, variables=variables)
    assert again.stderr == b""
    assert found[0].stdout == found[1].stdout == again.stdout
    assert json.loads(again.stdout)
