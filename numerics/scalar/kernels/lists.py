"""Typed lists of compiled functions, filled in compiled code so that nothing is compiled again at the next start."""

from __future__ import annotations

from numba import types
from numba.typed import List

from numerics.codegen.cache import njit
from numerics.scalar.kernels.elementary import POINT_FUNCTION, VECTOR_FUNCTION, PointFunctions, VectorFunctions


@njit(PointFunctions(), cache=True)
def new_point_functions():
    """An empty list."""
    return List.empty_list(POINT_FUNCTION)


@njit(VectorFunctions(), cache=True)
def new_vector_functions():
    """An empty list."""
    return List.empty_list(VECTOR_FUNCTION)


@njit(types.void(PointFunctions, POINT_FUNCTION), cache=True)
def push_point_function(functions, function):
    """Append."""
    functions.append(function)


@njit(types.void(VectorFunctions, VECTOR_FUNCTION), cache=True)
def push_vector_function(functions, function):
    """Append."""
    functions.append(function)
