"""The random-box programme: the first points of its seed, and its command line."""

from __future__ import annotations

import json

import numpy as np
from click.testing import CliRunner

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
    found = summary(run(random_points(200, 0)))
    assert found["converged"] == 200
    assert found["worst_residual"] < 1e-9
    assert found["worst_quadrature_error"] < 1e-8


def test_command_line() -> None:
    result = CliRunner().invoke(main, ["--points", "5", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["points"] == report["converged"] == 5
    assert report["failures"] == []
