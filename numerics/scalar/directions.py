"""Fixed points of the Gaussian directions g_1, g_2, ... of a chain, where a tensor product of nodes would not do.

Two cases.  With losses that are quadratic in all logits every average is of second degree in the g's, and a two-level orthogonal
design (rows of a Hadamard matrix) gives it exactly (chains on one data set need none: :mod:`numerics.square_chain`).  Chains of
other losses too long for a tensor product are integrated over a Sobol sequence mapped to normal variables, doubled until the
estimate is small; the last stage's own field is integrated over exactly in either case.  (Up to seven stages the pruned tensor
product is both faster and better by orders of magnitude: responses between stages whose weights nearly coincide amplify a
sequence's noise.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from numerics.deferred import special
from theory.losses import Loss

TENSOR_STAGES = 7
"""Stages up to which nodes are a tensor product."""

_FIRST_ROWS = 2**11
_ROWS = 2**17
_SEED = 20210301


def fixed_directions(losses: Sequence[Loss]) -> tuple[np.ndarray, int, bool]:
    """Table of directions, shape (r, T), how many rows to begin with (0: use a tensor product), and whether they are exact."""
    stages = len(losses)
    if stages > 1 and all(loss.is_quadratic for loss in losses):
        table = orthogonal_design(stages)
        return table, len(table), True
    if stages <= TENSOR_STAGES:
        return _NONE, 0, False
    return sobol_directions(stages), _FIRST_ROWS, False


_NONE = np.empty((0, 1))


@lru_cache(maxsize=64)
def orthogonal_design(stages: int) -> np.ndarray:
    """Rows of +-1, shape (r, stages), whose columns are orthogonal and add up to 0: exact for polynomials of degree 2 (and 3)."""
    size = 1
    while size <= stages:
        size *= 2
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    columns = matrix[:, 1 : stages + 1]
    return np.concatenate((columns, -columns))


@lru_cache(maxsize=8)
def sobol_directions(stages: int) -> np.ndarray:
    """Scrambled Sobol points as normal variables, shape (r, stages); the last column is not used by the last stage."""
    from scipy.stats import qmc  # here: it takes long to import

    sequence = qmc.Sobol(stages, scramble=True, seed=_SEED)
    return np.ascontiguousarray(special.ndtri(sequence.random(_ROWS)))
