"""Shared by all tests."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: threads of BLAS would be in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("REPLICA_DISTILLATION_COMPILERS", "1")

from numerics.codegen.cache import SOLVER_NOTICE
from numerics.models import Estimator
from theory import terminal
from theory.losses import CrossEntropy, Distillation


@pytest.fixture(autouse=True, scope="session")
def nothing_is_new() -> None:
    """What a first run says on standard error is tested by itself; other tests read only what belongs to them there."""
    terminal._said.add(SOLVER_NOTICE)


@pytest.fixture
def distilled() -> list[Estimator]:
    """Teacher with ridge 0.1 and a pure-distillation student on half of the weights."""
    return [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)]
