"""The random-box programme: the first points of its seed, and its command line."""

from __future__ import annotations

import json

import numpy as np
from click.testing import CliRunner

from numerics import solve
from numerics.random_box import BOX, main, parameters_of, random_points, run, summary


def test_points_are_in_the_box_and_depend_on_the_seed_alone() -> None:
    drawn = [parameters_of(point) for point in random_points(300, 3)]
    assert drawn[:20] == [parameters_of(point) for point in random_points(20, 3)]
    for name, (low, high) in BOX.items():
        values = np.array([parameters[name] for parameters in drawn])
        assert low <= values.min() < low * (high / low) ** 0.05
        assert high >= values.max() > low * (high / low) ** 0.95
    mixing = np.array([parameters["student.mixing"] for parameters in drawn])
    assert {0.0, 1.0} < set(mixing.tolist())


def test_two_hundred_random_points_converge() -> None:
    """The residual is below 1e-9, or below what rounding leaves where the response is large: about 1e-16 times it."""
    points = list(random_points(200, 0))
    found = summary(run(points))
    assert found["converged"] == 200
    assert found["worst_quadrature_error"] < 1e-8
    for data, chain in points:
        solution = solve(data, chain, throw=True)
        assert solution.residual < 1e-9 + 1e-16 * solution.response.max()


def test_command_line() -> None:
    result = CliRunner().invoke(main, ["--points", "5", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["points"] == report["converged"] == 5
    assert report["failures"] == []
