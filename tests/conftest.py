"""Shared by all tests."""

from __future__ import annotations

import pytest

from numerics.models import Estimator
from theory.losses import CrossEntropy, Distillation


@pytest.fixture
def distilled() -> list[Estimator]:
    """Teacher with ridge 0.1 and a pure-distillation student on half of the weights."""
    return [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)]
