"""What the error estimate says, against the same points on rules so fine that their error is rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from numerics.random_box import random_points
from numerics.scalar.compiled import PointArrays, compile_chain
from numerics.settings import DEFAULT

FINE = replace(DEFAULT, max_levels=0, field_step=0.4, outer_step=0.38, tail=1e-16)


def relative_errors(found: PointArrays, exact: PointArrays) -> float:
    """Largest difference of m, b, Q, V of both stages, relative to their natural size."""
    (ours, response), (theirs, exact_response) = ((c[0], v[0]) for c, v in (found.overlaps(), exact.overlaps()))
    overlap, exact_overlap = ours @ ours.T, theirs @ theirs.T
    norm, size = np.sqrt(np.diag(exact_overlap)), np.sqrt(np.diag(exact_response))
    difference = np.abs(found.x - exact.x)[0]
    return max(
        float(np.max(np.abs(overlap - exact_overlap) / np.outer(norm, norm))),
        float(np.max(np.abs(response - exact_response) / np.outer(size, size))),
        float(np.max(difference[:, 0] / norm)),
        float(np.max(difference[:, 1] / (1.0 + norm))),
    )


def test_estimated_errors_are_not_exceeded() -> None:
    errors, estimates = [], []
    for point in random_points(250, seed=20):
        compiled = compile_chain(point[1])
        found, exact = PointArrays([point]), PointArrays([point])
        found.solve(compiled, DEFAULT)
        assert found.converged(DEFAULT)[0]
        exact.x[:], exact.started[:] = found.x, 1
        exact.solve(compiled, FINE)
        errors.append(relative_errors(found, exact))
        estimates.append(found.summary[0, 2])
    assert max(estimates) <= DEFAULT.rtol
    assert max(errors) <= 2.0 * DEFAULT.rtol
    assert np.median(np.array(errors) / np.array(estimates)) < 0.1
    assert np.mean(np.array(errors) > np.maximum(estimates, 1e-10)) < 0.05
