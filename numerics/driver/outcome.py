"""How an iteration ended."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from numba import types


class Status(IntEnum):
    """Of a stage; ``message`` says it in words."""

    CONVERGED = 0, "converged"
    TOO_MANY_ITERATIONS = 1, "Newton's method used up its iterations, from every start and along a path of ridges"
    SINGULAR = 2, "the Jacobian of the saddle-point equations is singular"
    NOT_FINITE = 3, "an order parameter became infinite or NaN"
    NOT_TRIED = 4, "not tried"
    TOO_LARGE = 5, "its averages would take more memory than allowed"

    def __new__(cls, value: int, message: str) -> Status:
        member = int.__new__(cls, value)
        member._value_ = value
        member.message = message
        return member


class Outcome(NamedTuple):
    """What an iteration returns besides its last vector.

    Attributes
    ----------
    status, iterations : int
        Iterations are evaluations.
    residual : float
        Undamped, scaled residual before the last step: the largest change that one more plain iteration would make, relative to
        the size of each unknown.  Where the fall of the steps says what it is after it, that, with a margin.
    last_step : float
        Size of the last step, scaled likewise.
    defect : float
        By how much the last evaluation missed what it knows of itself.  With ``TOO_LARGE`` the bytes that would be needed.
    """

    status: int
    iterations: int
    residual: float
    last_step: float
    defect: float


OUTCOME = types.NamedTuple((types.int64, types.int64, types.float64, types.float64, types.float64), Outcome)
