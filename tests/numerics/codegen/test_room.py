"""Arrays that compiled functions lend to one another, cut into parts, or put on the stack."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from numba import njit, types
from numba.core.runtime import _nrt_python, rtsys

from numerics import Estimator, GaussianMixture, LinearRule, solve
from numerics.codegen.borrowing import Lent, borrowed, owned
from numerics.codegen.room import entry, integer_part, part, part_matrix, stack, stack_matrix
from numerics.settings import Settings
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

SIZE = 5
VECTOR = types.float64[::1]


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    """Allocations are counted, as numba does where it is asked to."""
    enabled = _nrt_python.memsys_stats_enabled()
    _nrt_python.memsys_enable_stats()
    yield
    if not enabled:
        _nrt_python.memsys_disable_stats()


def live() -> int:
    """Arrays that compiled code has made, and nobody has freed."""
    gc.collect()
    stats = rtsys.get_allocation_stats()
    return stats.mi_alloc - stats.mi_free


@njit
def cut(whole):
    numbers, block, integers = part(whole, 1, 3), part_matrix(whole, 4, 2, 3), integer_part(whole, 10, 2)
    numbers[:] = 7.0
    for i in range(2):
        integers[i] = 3 + i
        for j in range(3):
            block[i, j] = 10 * i + j
    return integers[0] + integers[1]


def test_parts_are_where_they_were_cut() -> None:
    whole = np.zeros(13)
    assert cut(whole) == 7
    assert np.array_equal(whole[:10], [0, 7, 7, 7, 0, 1, 2, 10, 11, 12])
    assert np.array_equal(whole[10:12].view(np.int64), [3, 4])
    assert whole[12] == 0


@njit
def entry_sum(cube, i, j):
    row = entry(entry(cube, i), j)
    total = 0.0
    for r in range(row.size):
        total += row[r]
    return total, row.size


def test_entries_of_an_array_of_more_dimensions() -> None:
    cube = np.arange(24.0).reshape(2, 3, 4)
    for i in range(2):
        for j in range(3):
            assert entry_sum(cube, i, j) == (cube[i, j].sum(), 4)


@njit
def depth(n):
    """Every call has a stack of its own."""
    mine, block = stack(SIZE), stack_matrix(2, SIZE)
    for i in range(SIZE):
        mine[i] = block[0, i] = block[1, i] = n
    below = depth(n - 1) if n > 0 else 0.0
    total = 0.0
    for i in range(SIZE):
        total += mine[i] + block[0, i] + block[1, i]
    return total + below


def test_what_is_on_the_stack_belongs_to_one_call() -> None:
    assert depth(4) == 3 * SIZE * (4 + 3 + 2 + 1)


class Pair(NamedTuple):
    first: np.ndarray
    second: np.ndarray
    swaps: int


PAIR = types.NamedTuple((VECTOR, VECTOR, types.int64), Pair)


@njit(PAIR(borrowed(PAIR)))
def swapped(pair):
    return Pair(owned(pair.second), owned(pair.first), pair.swaps + 1)


@njit
def kept_alone(n):
    """The array outlives the pair that it came with."""
    found = swapped(Pair(np.full(n, 1.0), np.full(n, 2.0), 0)).first
    other = np.full(n, 3.0)
    return found.sum() + other.sum()


def test_what_is_returned_is_owned_and_freed() -> None:
    before = live()
    assert kept_alone(1000) == 5000.0
    assert live() == before
    assert isinstance(borrowed(PAIR).types[0], Lent)


LOOKS_TWICE = Settings(rtol=1e-10)


@pytest.mark.parametrize(
    ("data", "chain"),
    [
        (GaussianMixture(2.0), [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 1e-3, eta=0.5)]),
        (GaussianMixture(6.0, label_noise=0.1), [Estimator(CrossEntropy(), 0.0), Estimator(Distillation(0.5), 0.0)]),
        (LinearRule(2.0, noise=0.25), [Estimator(SquareLoss(), 0.1), Estimator(SquareDistillation(), 0.1)]),
        (GaussianMixture(20.0), [Estimator(CrossEntropy(), 1e-6)]),
    ],
    ids=["two stages", "no ridge", "regression", "far from the guess"],
)
def test_a_solution_frees_all_that_it_made(data: object, chain: list) -> None:
    solve(data, chain, settings=LOOKS_TWICE)
    before = live()
    for _ in range(3):
        solve(data, chain, settings=LOOKS_TWICE)
    assert live() == before
