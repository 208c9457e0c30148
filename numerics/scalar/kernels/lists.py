"""Typed lists of compiled functions, filled in compiled code so that nothing is compiled again at the next start."""

from __future__ import annotations

from numba import njit, types
from numba.typed import List

from numerics.scalar.kernels.chain import SOLVE_LEVEL, LevelSolvers
from numerics.scalar.kernels.elementary import POINT_FUNCTION, VECTOR_FUNCTION, PointFunctions, VectorFunctions
from numerics.scalar.kernels.stage import SOLVE_STAGE, StageSolvers

_STAGE_SOLVER = types.FunctionType(SOLVE_STAGE)
_LEVEL_SOLVER = types.FunctionType(SOLVE_LEVEL)


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


@njit(StageSolvers(_STAGE_SOLVER), cache=True)
def list_of_stage_solver(function):
    """The list that holds this function."""
    functions = List.empty_list(_STAGE_SOLVER)
    functions.append(function)
    return functions


@njit(LevelSolvers(_LEVEL_SOLVER), cache=True)
def list_of_level_solver(function):
    """The list that holds this function."""
    functions = List.empty_list(_LEVEL_SOLVER)
    functions.append(function)
    return functions
