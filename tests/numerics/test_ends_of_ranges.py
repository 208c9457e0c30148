"""Ends of the allowed ranges: thresholds at small ridges, vanishing weights, large ridges, stages that coincide."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from numerics import ConvergenceWarning, Estimator, GaussianMixture, separability_threshold, solve
from numerics.settings import DEFAULT
from theory.losses import CrossEntropy, Distillation

RHO = 0.2

# Just below the separability threshold, at ridges of 1e-5 and less


@pytest.mark.parametrize(("ridge", "below"), [(1e-5, 0.034), (1e-5, 0.0282), (1e-5, 0.021), (1e-6, 0.01), (1e-6, 0.02)])
def test_students_of_all_inputs_are_resolved_close_to_the_separability_threshold(ridge, below):
    """The student's field is narrow and moves quickly with the teacher's; it amplifies what Newton's method leaves there."""
    data = GaussianMixture(separability_threshold(RHO, 1.0) * (1.0 - below), RHO, 1.0)
    chain = [Estimator(CrossEntropy(), ridge), Estimator(Distillation(), ridge)]
    found = solve(data, chain)
    assert found.converged, found.message
    fine = replace(DEFAULT, max_levels=found.level + 2, newton_tolerance=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # no rule reaches 1e-13
        reference = solve(data, chain, rtol=1e-13, settings=fine)
    own = np.diag(reference.response)
    assert found.response == pytest.approx(reference.response, abs=1e-8 * own.max())
    assert found.overlap == pytest.approx(reference.overlap, rel=2e-8)
    assert found[1].test_error == pytest.approx(reference[1].test_error, rel=1e-8)
