"""Levels of a teacher's knowledge on measured samples."""

from __future__ import annotations

import numpy as np
import pytest

from numerics import Estimator, Measured, ParameterError
from numerics.anatomy import anatomy
from numerics.anatomy.levels import LADDER
from numerics.models import Chain
from numerics.predict import levels_on, measure, predict
from numerics.predict.reading import built_in
from theory.losses import CrossEntropy, Distillation

CHAIN = Chain.of([Estimator(CrossEntropy(), 3.0), Estimator(Distillation(temperature=2.0), 0.02)])


def drawn(n: int) -> Measured:
    generator = np.random.default_rng(0)
    y = np.arange(n) % 3 == 0
    return Measured(generator.standard_normal((n, 10)) + 0.5 * y[:, None], y)


def test_on_many_gaussian_samples_they_are_those_of_theory() -> None:
    data = drawn(15000).at(60)  # a third of which is positive, as of all
    found, theory = levels_on(data, CHAIN), anatomy(data, CHAIN).levels
    assert list(found.errors) == list(LADDER)
    for name, error in found.errors.items():
        assert error == pytest.approx(theory.students[name].error, abs=0.008)
    for name, gain in found.gains.items():
        assert abs(gain.mean - theory.gains[name]) < 4.0 * gain.standard_error + 2e-4
    assert sum(gain.mean for name, gain in found.gains.items() if name != "total") == pytest.approx(
        found.gains["total"].mean
    )


def test_fits_are_those_of_the_chain() -> None:
    data = drawn(600).at(60)
    found, runs = levels_on(data, CHAIN, n_fits=5, seed=2), measure(data.X, data.y, data, CHAIN, 5, 2)
    np.testing.assert_array_equal(found.fits["instance"].values, runs[1].test_error.values)
    assert found.errors["instance"] == predict(data, CHAIN).test_error[1]
    assert found.measured_gains["total"].mean == pytest.approx(
        found.fits["hard"].mean - found.fits["instance"].mean
    )  # fmt: skip
    assert levels_on(data, CHAIN).measured_gains == {}


def test_one_clear_line() -> None:
    with pytest.raises(ParameterError, match="stage must be one with a teacher"):
        levels_on(drawn(100), CHAIN[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ridges", "size", "covariances"),
    [("digits", (1.0, 0.05), 400, "pooled"), ("breast-cancer", (0.1, 0.05), 100, "per class")],
)
def test_gains_on_real_samples_are_predicted(name: str, ridges: tuple, size: int, covariances: str) -> None:
    pytest.importorskip("sklearn")
    table = built_in(name)
    student = Estimator(Distillation(temperature=2.0), ridges[1], features=table.map_of("half"))
    data = Measured(table.X, table.labels, covariances=covariances).at(size)
    found = levels_on(data, [Estimator(CrossEntropy(), ridges[0]), student], n_fits=30)
    for gain, predicted in found.gains.items():
        fitted = found.measured_gains[gain]
        error = np.hypot(predicted.standard_error, fitted.standard_error)
        assert abs(predicted.mean - fitted.mean) < 3.0 * error, gain
    # The largest of them is certain, and its sign is right.
    assert abs(found.measured_gains["instance"].mean) > 5.0 * found.measured_gains["instance"].standard_error
    assert found.gains["instance"].mean * found.measured_gains["instance"].mean > 0.0
