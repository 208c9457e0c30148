"""Measured samples: what is taken, what is refused in one line, and what theory makes of them."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from numerics import Estimator, GaussianMixture, Measured, ParameterError, solve
from numerics.models import Chain
from numerics.models.measured import folds_of, stratified_parts
from numerics.problem import read_problem, write_problem
from theory.losses import CrossEntropy


def drawn(n: int = 200, p: int = 6, share: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = (np.arange(n) < share * n).astype(int)
    return generator.standard_normal((n, p)) + 0.6 * y[:, None] + 3.0, y


X, Y = drawn()


def without(value: float) -> np.ndarray:
    found = X.copy()
    found[3, 2] = value
    return found


@pytest.mark.parametrize(
    ("X", "y", "words"),
    [
        (without(np.nan), Y, "X must have finite numbers, got nan in column 2, row 3"),
        (without(np.inf), Y, "X must have finite numbers, got inf in column 2"),
        (np.column_stack([X, np.full(len(X), 7.0)]), Y, "X must have no constant column; leave out 6"),
        ([["a", "b"]] * 4, [0, 0, 1, 1], "X must hold real numbers"),
        ([[1, 2], [2, 3], [1, 2], [2, 3]], [0, 1, 0, 1], "X must vary around the means of the classes"),
        (X * 1e150, Y, "X must have entries of at most 1e+100 in size"),
        (np.ones((4, 4001)), [0, 0, 1, 1], "X must have at most 4000 columns, got 4001"),
        (X[:, 0], Y, "X must be a matrix, a row a sample, got shape"),
        (X, Y[:-1], "y must have as many labels as X has rows, 200, got 199"),
        (X, Y[:, None], "y must be a vector of labels"),
        (X, np.zeros(len(X)), "y must have two classes, got 1 "),
        (X, np.arange(len(X)) % 3, "y must have two classes, got 3 "),
        (X, np.arange(len(X)) == 5, "y must have at least 2 samples of each class, got 1 of True"),
        (X, Y + 0.5, "y must be labels of classes, not numbers such as"),
        (X, np.where(Y == 1, np.nan, 0.0), "y must have no missing label, got nan"),
        (X, [None, *Y[1:].tolist()], "y must have no missing label"),
        (np.ones((6, 2)) * np.arange(6)[:, None] % 3, [0, 0, 0, 1, 1, 1], "X must have class means that differ"),
    ],
)
def test_what_is_refused(X: object, y: object, words: str) -> None:
    with pytest.raises(ParameterError, match="^" + re.escape(words)) as caught:
        Measured(X, y)
    assert "\n" not in str(caught.value)


def test_parameters_are_checked() -> None:
    for arguments, words in (
        ({"alpha": 40.0}, "alpha must be at most 33.3333"),
        ({"folds": 1}, "folds must be an integer >= 2"),
        ({"covariances": "each"}, "covariances must be one of pooled, per class"),
    ):
        with pytest.raises(ParameterError, match=words):
            Measured(X, Y, **arguments)


def test_it_is_the_mixture_of_its_moments() -> None:
    data = Measured(X, np.where(Y == 1, "yes", "no"), alpha=5)
    assert data.labels == ("no", "yes")
    assert data.rho == pytest.approx(0.3)
    upper, lower = X[Y == 1], X[Y == 0]
    apart = np.vstack([upper - upper.mean(axis=0), lower - lower.mean(axis=0)])
    np.testing.assert_allclose(data.inputs.covariance, apart.T @ apart / (len(X) - 2), rtol=1e-12)
    np.testing.assert_allclose(data.inputs.direction, np.sqrt(6) * 0.5 * (upper.mean(axis=0) - lower.mean(axis=0)))
    chain = Estimator(CrossEntropy(), 0.5)
    mixture = GaussianMixture(5.0, data.rho, 1.0, inputs=data.inputs)
    assert solve(data, chain)[0].test_error == solve(mixture, chain)[0].test_error


def test_no_limit_of_vanishing_ridges_is_taken_of_estimated_laws() -> None:
    with pytest.raises(ParameterError, match="ridge of teacher must be > 0 where data are Measured"):
        solve(Measured(X, Y, alpha=5), Estimator(CrossEntropy(), 0.0))


def test_copies_are_the_same_samples() -> None:
    data = Measured(X, Y, alpha=5, folds=4, seed=2)
    assert data.at(60) == data.with_value("alpha", 10.0) == Measured(X, Y, 10.0, 4, 2)
    assert data.at(60) != data
    assert data.at(60).sets[0].alpha == 10.0
    assert len({data, replace(data), pickle.loads(pickle.dumps(data))}) == 1
    assert replace(data, alpha=2.0).folds == 4


def test_folds_are_stratified_and_leave_out_what_they_hold() -> None:
    part = stratified_parts(np.where(Y == 1, 1.0, -1.0), 7, np.random.default_rng(0))
    for label in (0, 1):
        counts = np.bincount(part[label == Y], minlength=7)
        assert np.ptp(counts) <= 1
    assert np.ptp(np.bincount(part)) <= 1
    data = Measured(X, Y)
    folds = folds_of(data.samples, 5, 0)
    assert sorted(np.concatenate([fold.held for fold in folds])) == list(range(len(X)))
    rest = np.setdiff1d(np.arange(len(X)), folds[0].held)
    midpoint = 0.5 * (X[rest][Y[rest] == 1].mean(axis=0) + X[rest][Y[rest] == 0].mean(axis=0))
    np.testing.assert_allclose(folds[0].moments.midpoint, midpoint)
    few = Measured(X[:62], (np.arange(62) < 2).astype(int))
    assert len(folds_of(few.samples, 5, 0)) == 2


def test_files_of_problems_hold_the_samples() -> None:
    chain = Chain.of(Estimator(CrossEntropy(), 0.5))
    data = Measured(X, Y, alpha=5, folds=3, covariances="per class")
    again, _ = read_problem(write_problem(data, chain))
    assert again == data
