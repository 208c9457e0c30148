"""Estimators of scikit-learn: its checks, what they train, and what they suggest."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from surroundings import python

from numerics import Estimator, LinearMap, Measured, ParameterError
from numerics.models import Chain
from numerics.predict.fits import Trainer
from theory.losses import CrossEntropy, Distillation

pytest.importorskip("sklearn")

from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import estimator_checks_generator

from numerics.predict import DistillationPredictor, DistilledClassifier, UntrustedError

GENERATOR = np.random.default_rng(0)
Y = np.arange(240) % 2
X = GENERATOR.standard_normal((240, 8)) * np.linspace(0.5, 2.0, 8) + 0.6 * Y[:, None] + 5.0


@pytest.mark.filterwarnings("ignore")
def test_it_passes_the_checks_of_scikit_learn() -> None:
    failed = []
    for estimator, one in estimator_checks_generator(DistilledClassifier()):
        try:
            one(estimator)
        except BaseException as error:
            if type(error).__name__ != "SkipTest":
                failed.append((one, error))
    assert not failed


def test_the_teacher_is_a_logistic_regression() -> None:
    model = DistilledClassifier(teacher_ridge=0.4, scale="none").fit(X, Y)
    other = LogisticRegression(C=1.0 / (8 * 0.4), tol=1e-10, max_iter=10000).fit(X, Y)
    np.testing.assert_allclose(model.teacher_coef_, other.coef_, rtol=1e-5)
    np.testing.assert_allclose(model.teacher_intercept_, other.intercept_, rtol=1e-5)


@pytest.mark.parametrize("scale", ["columns", "together", "none"])
def test_it_is_the_chain_that_is_predicted(scale: str) -> None:
    """Trained as real fits are, on the same samples."""
    columns = [0, 3, 5]
    model = DistilledClassifier(0.3, 0.2, 0.8, 3.0, student_columns=columns, scale=scale).fit(X, Y)
    deviation = {"columns": X.std(axis=0), "together": np.sqrt(np.mean((X - X.mean(axis=0)) ** 2)), "none": 1.0}[scale]
    data = Measured(X / deviation, Y)
    student = Estimator(Distillation(0.8, 3.0), 0.2, features=LinearMap(np.eye(8)[columns]))
    trainer = Trainer(data.samples, data, Chain.of([Estimator(CrossEntropy(), 0.3), student]))
    everything = np.arange(len(Y))
    logits = trainer.logits(trainer.fit(everything)[1], everything)[:, 1]
    np.testing.assert_allclose(model.decision_function(X), logits, rtol=1e-5, atol=1e-6)
    assert np.flatnonzero(model.coef_[0]).tolist() == columns
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0)
    np.testing.assert_array_equal(model.predict(X), (logits > 0).astype(int))


def test_flags_and_numbers_of_columns_mean_the_same() -> None:
    flags = np.zeros(8, dtype=bool)
    flags[[1, 6]] = True
    one, other = (DistilledClassifier(student_columns=seen).fit(X, Y).coef_ for seen in (flags, [6, 1]))
    np.testing.assert_array_equal(one, other)


def test_one_clear_line() -> None:
    for arguments, words in (
        ({"student_columns": [8]}, "student_columns must be different numbers of columns below 8, or 8 flags"),
        ({"student_columns": [0.5]}, "student_columns must be different numbers"),
        ({"teacher_columns": [True]}, "teacher_columns must be different numbers"),
        ({"teacher_columns": []}, "teacher_columns must be different numbers"),
        ({"student_ridge": 0.0}, "teacher_ridge and student_ridge must be > 0"),
        ({"mixing": 2.0}, "mixing"),
        ({"scale": "rows"}, "scale must be one of"),
    ):
        with pytest.raises(ParameterError, match=words) as caught:
            DistilledClassifier(**arguments).fit(X, Y)
        assert "\n" not in str(caught.value)


def test_predictions_and_suggestions() -> None:
    predictor = DistillationPredictor(teacher_ridge=1.0, student_columns=range(4)).fit(X, Y)
    assert predictor.check_.trusted.all()
    curve = predictor.predict_curve([40, 120], n_fits=4)
    assert np.isfinite(curve.fits).all()
    for by in ("prediction", "cross-validation"):
        model = predictor.suggest(by)
        assert predictor.choice_.method == by
        assert model.student_ridge == predictor.choice_.chain[1].ridge
        assert model.mixing == predictor.choice_.parameters["student.mixing"]
        assert model.student_columns == range(4)
        assert model.fit(X, Y).score(X, Y) > 0.7
    with pytest.raises(ParameterError, match="by must be 'prediction' or 'cross-validation'"):
        predictor.suggest("luck")


def test_nothing_is_suggested_where_predictions_fail() -> None:
    predictor = DistillationPredictor().fit(X, Y)
    object.__setattr__(predictor.check_.prediction, "test_error", 2.0 * predictor.check_.measured)
    with pytest.raises(UntrustedError, match="DO NOT TRUST"):
        predictor.suggest()
    with warnings.catch_warnings():
        assert isinstance(predictor.suggest("cross-validation"), DistilledClassifier)


def test_without_scikit_learn_it_is_one_line() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from numerics.predict import predict\n"
        "try:\n    from numerics.predict import DistilledClassifier\n"
        "except ImportError as error:\n    print(error)"
    )
    found = python("-c", code)
    assert found.stderr == b""
    assert found.stdout.decode().startswith("scikit-learn is missing, or older than 1.6: install the extra 'predict'")
