"""NumPy functions of theory's formulas: small errors keep their digits, and text from the cache gives the same function."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erfc, log_ndtr

import theory.observables
from numerics.codegen import cache, observables


def test_small_errors_keep_their_relative_accuracy() -> None:
    m, b, rho = np.array([0.5, 9.0, 25.0]), 0.3, 0.4
    expected = rho * erfc((m + b) / np.sqrt(2)) / 2 + (1 - rho) * erfc((m - b) / np.sqrt(2)) / 2
    np.testing.assert_allclose(observables.test_error()(m, b, 1.0, 1.0, rho), expected, rtol=1e-12)
    found = observables.training_error()(0.0, np.array([0.2, 12.0, -3.0]), 1.0, 1.0)
    np.testing.assert_allclose(found, np.exp(log_ndtr([-0.2, -12.0, 3.0])), rtol=1e-12)


FUNCTIONS = (
    "test_error", "training_error", "field_of", "bayes_bias", "cosine", "logit_distance", "agreement", "calibration",
)  # fmt: skip


def test_agreement_is_the_integral_of_theory() -> None:
    m, b, q, delta, rho = (1.1, 0.8), (-0.6, 0.4), (1.9, 1.2, 0.7), 0.9, 0.3
    expected = float(theory.observables.agreement(m, b, q, delta, rho).evalf())
    assert observables.agreement()(*m, *b, *q, delta, rho) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_the_same_with_and_without_the_cache(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path))
    build = getattr(observables, name).__wrapped__
    derived, read = build(), build()
    assert list(tmp_path.glob("source_*"))
    point = np.linspace(0.3, 0.7, derived.__code__.co_argcount)
    np.testing.assert_array_equal(derived(*point), read(*point))
