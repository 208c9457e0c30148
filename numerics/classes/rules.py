"""Nodes of averages over standard normals in any dimension: scrambled Sobol points."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

Array = NDArray[np.float64]

_CLIP = 1e-14


@lru_cache(maxsize=32)
def sobol_normals(stages: int, d: int, log2_nodes: int, scramble: int) -> Array:
    """Normals g_1..g_t of 2^log2_nodes nodes of equal weight, shape (n, stages, d)."""
    engine = qmc.Sobol(stages * d, scramble=True, rng=np.random.default_rng([scramble, stages, d]))
    uniform = np.clip(engine.random_base2(log2_nodes), _CLIP, 1.0 - _CLIP)
    found = ndtri(uniform).reshape(-1, stages, d)
    found.setflags(write=False)
    return found
