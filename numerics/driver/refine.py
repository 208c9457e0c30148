"""Levels of quadrature, finer and finer, until the estimate of the error is small."""

from __future__ import annotations

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import INCLUDED, OPTIONS

SOLVED, FAILED, KEPT = range(3)
"""What a level may end with; ``KEPT`` is the solution of the level before, beyond which there is none."""

_STALLING_LEVEL = 7  # from which on two levels must at least halve the error, or refinement ends
_ENOUGH = 0.5
_LEAST_GAIN = 0.01
_STEEP = 5.0  # steepness from which on the gain is less, by its square


@njit(types.float64(types.float64), **OPTIONS)
def least_gain(steepness):
    """Error that the first level has at least, over its change from the coarser one that checks it.

    The wider a field is beside the scale of a target (``steepness``), the fewer points the target has, and the longer it takes
    until errors fall as they do in the end.
    """
    return min(_LEAST_GAIN * max(1.0, (steepness / _STEEP) ** 2), 1.0)


def refine_of(solve, estimate, finer):
    """Solve at finer and finer levels.

    Parameters
    ----------
    solve : function ``(problem, memory, level) -> int``
        From what the memory holds.
    estimate : function ``(problem, memory, level) -> float``
        Error of the solution, by the change from the level before, or, at level number 0, from a check.
    finer : function ``(problem, level) -> (bool, level)``
        The next level, if there is one.
    level
        The first one; ``level.number`` is 0, and 1 more at each further one.
    accuracy
        ``rtol`` and ``max_levels``.

    Returns
    -------
    What the last level ended with, its number, the level itself, and the last error.
    """

    @njit(**INCLUDED)
    def refine(problem, memory, level, accuracy):
        error = before = before_that = np.inf
        while True:
            ending = solve(problem, memory, level)
            if ending == FAILED:
                return ending, level.number, level, error
            if ending == KEPT:
                return ending, level.number - 1, level, error
            error = estimate(problem, memory, level)
            exists, next_level = finer(problem, level)
            if (
                level.number >= accuracy.max_levels
                or error <= accuracy.rtol
                or (level.number >= _STALLING_LEVEL and not error < _ENOUGH * before_that)
                or not exists
            ):
                return ending, level.number, level, error
            before, before_that = error, before
            level = next_level

    return refine
