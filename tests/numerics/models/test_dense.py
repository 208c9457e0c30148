"""Covariances and linear maps: what they are equal to, what is refused, and what files say of them."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from numerics import simulate
from numerics.models import (
    BayesOptimal,
    Chain,
    Dense,
    Estimator,
    Frozen,
    GaussianMixture,
    LinearMap,
    LinearRule,
    ParameterError,
    RandomFeatures,
    Spectrum,
    check_fit,
    parameter_paths,
)
from numerics.problem import read_problem, write_problem
from theory.losses import CrossEntropy, Distillation

COVARIANCE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]])
MATRIX = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
CHAIN = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1, features=LinearMap(MATRIX))])


def test_what_has_the_same_numbers_is_equal() -> None:
    for make in (lambda: Dense(COVARIANCE), lambda: Dense(COVARIANCE.tolist(), [1, 2, 3]), lambda: LinearMap(MATRIX)):
        assert make() == make() == pickle.loads(pickle.dumps(make()))
        assert len({make(), make()}) == 1
        assert len(repr(make())) < 60
    assert Dense(COVARIANCE) != Dense(COVARIANCE, [1.0, 1.0, 1.0])
    assert Dense(COVARIANCE) != Dense(2 * COVARIANCE)
    assert LinearMap([[1.0, 2.0]]) != LinearMap([[1.0], [2.0]])
    assert LinearMap(COVARIANCE) != Dense(COVARIANCE)
    assert {Dense(COVARIANCE): 1}[Dense(COVARIANCE)] == 1


def test_numbers_cannot_be_changed_afterwards() -> None:
    given = COVARIANCE.copy()
    inputs = Dense(given)
    given[0, 0] = 100.0
    assert inputs == Dense(COVARIANCE)
    with pytest.raises(ValueError, match="read-only"):
        inputs.covariance[0, 0] = 1.0


def test_the_signal_is_that_of_the_direction() -> None:
    direction = np.array([1.0, -2.0, 0.5])
    inputs = Dense(COVARIANCE, direction)
    assert inputs.signal == pytest.approx(direction @ direction / 3)
    assert inputs.signal_variance == pytest.approx(direction @ COVARIANCE @ direction / 3)
    assert LinearRule(1.0, inputs=Dense(COVARIANCE)).signal == pytest.approx(np.trace(COVARIANCE) / 3)


def test_a_map_is_no_number_to_vary() -> None:
    assert "student.features" not in parameter_paths(CHAIN, GaussianMixture(1.0, inputs=Dense(COVARIANCE)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense("white"), "covariance must be a matrix of real numbers, got 'white'"),
        (lambda: Dense(None), "covariance must be a matrix of real numbers, got None"),
        (lambda: Dense([[1.0, 2.0], [3.0]]), "covariance must be a matrix of real numbers"),
        (lambda: Dense(COVARIANCE * 1j), "covariance must be a matrix of real numbers"),
        (lambda: Dense([1.0, 2.0]), r"covariance must be a matrix of 1 to 4000 entries an axis, got shape \(2,\)"),
        (lambda: Dense(np.zeros((0, 0))), r"covariance must be a matrix .*, got shape \(0, 0\)"),
        (lambda: Dense(np.ones((2, 3))), r"covariance must be square, got shape \(2, 3\)"),
        (lambda: Dense([[1.0, math.nan], [math.nan, 1.0]]), "covariance must have finite entries, got nan"),
        (lambda: Dense([[math.inf, 0.0], [0.0, 1.0]]), "covariance must have finite entries, got inf"),
        (lambda: Dense([[1.0, 0.5], [0.4, 1.0]]), "covariance must be symmetric"),
        (lambda: Dense([[1.0, 2.0], [2.0, 1.0]]), "covariance must have no eigenvalue below 0, got -1"),
        (lambda: Dense(np.zeros((2, 2))), "covariance must have a positive trace, got 0"),
        (lambda: Dense(COVARIANCE, [1.0, 2.0]), "direction must have as many entries as covariance has rows, 3, got 2"),
        (lambda: Dense(COVARIANCE, 1.0), r"direction must be a vector .*, got shape \(\)"),
        (lambda: Dense(COVARIANCE, [0.0, 0.0, 0.0]), "direction must have an entry that is not 0"),
        (lambda: Dense(COVARIANCE, [1.0, math.nan, 0.0]), "direction must have finite entries, got nan"),
        (lambda: LinearMap([1.0]), r"matrix must be a matrix .*, got shape \(1,\)"),
        (lambda: LinearMap([[math.nan]]), "matrix must have finite entries, got nan"),
        (lambda: LinearMap(np.zeros((2, 2))), "matrix must have an entry that is not 0"),
        (
            lambda: simulate(GaussianMixture(1.0, inputs=Dense(COVARIANCE)), CHAIN, n_inputs=100),
            "n_inputs must be a multiple of the 3 rows of covariance, copies of them, got 100",
        ),
    ],
)
def test_bad_matrices_are_refused_in_one_line(make, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "stages", "message"),
    [
        (Spectrum([1.0, 2.0]), CHAIN.stages, r"features of student, a LinearMap, need Dense inputs, got Spectrum"),
        (
            Dense(np.eye(2)),
            CHAIN.stages,
            "features of student must have as many columns as covariance has rows, 2, got 3",
        ),
        (Dense(COVARIANCE), [Estimator(CrossEntropy(), 0.1, eta=0.5)], "eta of teacher must be 1 beside Dense inputs"),
        (
            Dense(np.diag([1.0, 1.0, 0.0])),
            [Estimator(CrossEntropy(), 0.1, features=LinearMap([[0.0, 0.0, 2.0]]))],
            "features of teacher must see inputs that vary",
        ),
        (Dense(COVARIANCE), [BayesOptimal()], "teacher is Bayes-optimal for white inputs"),
        (Dense(COVARIANCE), [Frozen(0.5, 1.0), Estimator(CrossEntropy(), 0.1)], "teacher has given weights"),
        (
            Dense(COVARIANCE),
            [Estimator(CrossEntropy(), 0.1, features=RandomFeatures(1.0))],
            "inputs must be Isotropic where a stage has random features",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(inputs, stages, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        check_fit(GaussianMixture(1.0, inputs=inputs), Chain.of(stages))
    assert "\n" not in str(caught.value)


def test_files_have_the_numbers_or_name_files_of_them(tmp_path: Path) -> None:
    for inputs in (Dense(COVARIANCE), Dense(COVARIANCE, [1.0, 0.1, 0.2])):
        data = GaussianMixture(2.0, inputs=inputs)
        text = write_problem(data, CHAIN)
        assert read_problem(text) == (data, CHAIN)
    described = json.loads(text)
    for where, key in ((described["data"]["inputs"], "covariance"), (described["chain"][1]["features"], "matrix")):
        np.save(tmp_path / key, np.array(where[key]))
        where[key] = str(tmp_path / f"{key}.npy")
    assert read_problem(json.dumps(described)) == (data, CHAIN)


def test_files_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    objects, empty = tmp_path / "objects.npy", tmp_path / "empty.npy"
    np.save(objects, np.array([{}], dtype=object))
    empty.touch()
    for path in (tmp_path / "nowhere.npy", tmp_path, objects, empty, Path(__file__)):
        described = {
            "data": {"alpha": 1, "inputs": {"covariance": str(path)}},
            "chain": [{"loss": "cross-entropy", "ridge": 1}],
        }
        with pytest.raises(
            ParameterError, match=r"data\.inputs: covariance must be numbers or a file \.npy, got"
        ) as caught:
            read_problem(json.dumps(described))
        assert "\n" not in str(caught.value)
    with pytest.raises(ParameterError, match=r"data\.inputs: unknown key 'maps'; allowed are covariance, direction"):
        read_problem('{"data": {"alpha": 1, "inputs": {"covariance": [[1]], "maps": []}}, "chain": []}')
    with pytest.raises(ParameterError, match=r"data\.inputs: covariance must have no eigenvalue below 0, got -1"):
        read_problem('{"data": {"alpha": 1, "inputs": {"covariance": [[1, 2], [2, 1]]}}, "chain": []}')
