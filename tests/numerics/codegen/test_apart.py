"""Late functions: compiled when they are first called, by whoever calls, and read by the next."""

from __future__ import annotations

from pathlib import Path

import pytest
from surroundings import python

from numerics.codegen import cache
from numerics.codegen.cache import CACHE_VARIABLE

KERNELS = """
import numpy as np
from numba import types
from numba.extending import intrinsic
from numerics.codegen.cache import njit

{extra}
LATE = dict(cache=True, apart=True, late=True, inner=True, nogil=True)

@njit(types.float64(types.float64), **LATE, plain=True)
def lowest(x):
    return 2.0 * x

@njit(types.float64[::1](types.float64, types.int64), **LATE)
def rarely(x, n):
    out = np.empty(n)
    for i in range(n):
        out[i] = {body}lowest(x) + i
    return out

@njit(types.float64(types.float64, types.int64), cache=True, nogil=True)
def often(x, n):
    total = x
    for _ in range(3 if n > 0 else 0):
        total += rarely(x, n)[n - 1]
    return total
"""
"""``often(x, n) = x + 3 (2 x + n - 1)`` for n > 0; else x."""

WRITES = """
import re, sys
from numerics.codegen import cache
written, write = [], cache.write_entry
def note(name, data):
    written.extend(re.findall("[.]([a-z]+)-[0-9]+[.]cpython", name))
    write(name, data)
cache.write_entry = note
often = cache.load("late", sys.argv[1]).often
for n in map(int, sys.argv[2:]):
    print(often(1.0, n), *written)
"""
"""Values, and which functions were compiled until then."""


def text(extra: str = "", body: str = "") -> str:
    return KERNELS.format(extra=extra, body=body)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(*values: int) -> list[str]:
    found = python("-c", WRITES, text(), *values)
    assert found.stderr == b""
    return found.stdout.decode().splitlines()


def test_late_functions_are_compiled_when_they_are_first_called_and_read_then(folder: Path) -> None:
    assert written(0) == ["1.0 often"]
    assert written(0, 5, 6) == ["1.0", "19.0 rarely lowest", "22.0 rarely lowest"]
    assert written(5) == ["19.0"]
    for path in folder.rglob("*.rarely-*.nbc"):
        path.write_bytes(b"")
    found = python("-c", WRITES, text(), 0, 5)
    assert found.stdout == b"1.0\n19.0 rarely\n"
    assert b"damaged" in found.stderr
    assert written(5) == ["19.0"]


THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from numerics.codegen import cache
often, together = cache.load("late", sys.argv[1]).often, Barrier(8)
def work(n):
    together.wait()
    return often(1.0, n)
with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(work, range(1, 9))), len(cache._late))
"""


def test_threads_that_need_a_late_function_at_once_compile_it_once(folder: Path) -> None:
    found = python("-c", THREADS, text())
    assert (found.stdout, found.stderr) == (b"140.0 2\n", b"")


FAILS = """
@intrinsic
def broken(typing_context):
    def build(context, builder, signature, arguments):
        raise ValueError("no such instruction")
    return types.float64(), build
"""


def test_a_late_function_that_cannot_be_compiled_is_an_error_where_it_is_called(folder: Path) -> None:
    program = """
import sys
from numerics.codegen import cache
often = cache.load("late", sys.argv[1]).often
print(often(1.0, 0))
for _ in range(2):
    try:
        often(1.0, 5)
    except RuntimeError as error:
        print(error)
"""
    found = python("-c", program, text(FAILS, "broken() + "))
    assert found.stdout == b"1.0\n" + 2 * b"a part of the solver could not be compiled\n"
    assert b"no such instruction" in found.stderr


INTERRUPTED = """
seen = []
@intrinsic
def nothing(typing_context):
    def build(context, builder, signature, arguments):
        if not seen:
            seen.append(1)
            raise KeyboardInterrupt
        return context.get_constant(types.float64, 0.0)
    return types.float64(), build
"""


def test_a_late_function_can_be_interrupted(folder: Path) -> None:
    program = """
import sys
from numerics.codegen import cache
often = cache.load("late", sys.argv[1]).often
try:
    print(often(1.0, 5))
except KeyboardInterrupt:
    print("interrupted", often(1.0, 5))
"""
    found = python("-c", program, text(INTERRUPTED, "nothing() + "))
    assert (found.stdout, found.stderr) == (b"interrupted 19.0\n", b"")


def test_plain_functions_call_no_late_ones(folder: Path) -> None:
    """They could not say that it failed."""
    plain = (
        text() + "\n@njit(types.float64(types.float64), cache=True, plain=True)\ndef plain(x):\n    return lowest(x)\n"
    )
    with pytest.raises(Exception, match="which is late"):
        cache.load("late_of_plain", plain)


def test_an_ordinary_point_calls_no_late_function() -> None:
    """What a first solve waits for is what it needs."""
    program = """
from numerics import Estimator, GaussianMixture, solve
from numerics.codegen import cache
from theory.losses import CrossEntropy, Distillation
teacher, student = Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)
found = solve(GaussianMixture(alpha=0.8, rho=0.2, delta=1.0), [teacher, student])
print(found.converged, [late.py_func for late in cache._late])
"""
    assert python("-c", program).stdout == b"True []\n"
