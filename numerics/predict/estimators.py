"""The tools of this room as estimators of scikit-learn, whose base classes they need."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import xarray
from numpy.typing import ArrayLike, NDArray

from numerics.deferred import special
from numerics.models import TRAINING, Chain, ConvergenceWarning, Estimator, LinearMap, Measured, ParameterError
from numerics.models.measured import FOLDS
from numerics.predict.check import check, learning_curves, sample_range
from numerics.predict.choose import Choice, choose, cross_validate
from numerics.predict.reading import EXTRA, SCALES, scaled
from numerics.simulation.draw import Sample
from numerics.simulation.train import train
from theory.losses import CrossEntropy, Distillation

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(f"scikit-learn is missing, or older than 1.6: {EXTRA}") from error

Array = NDArray[np.float64]

RIDGES, MIXINGS, TEMPERATURES = (1e-3, 1e2), (0.0, 1.0), (0.5, 10.0)
"""Where the best parameters are looked for."""

CURVE_POINTS = 10
"""Training set sizes of a curve."""

_TOLERANCE = 1e-8


class UntrustedError(RuntimeError):
    """Predictions do not agree with real fits, so that nothing is chosen by them.

    Examples
    --------
    >>> issubclass(UntrustedError, RuntimeError)
    True
    """


class _Distilled(BaseEstimator):
    """The parameters of a teacher and its student."""

    def __init__(
        self, teacher_ridge: float = 0.1, student_ridge: float = 0.1, mixing: float = 1.0, temperature: float = 1.0,
        teacher_columns: ArrayLike | None = None, student_columns: ArrayLike | None = None, scale: str = "columns",
    ) -> None:  # fmt: skip
        self.teacher_ridge = teacher_ridge
        self.student_ridge = student_ridge
        self.mixing = mixing
        self.temperature = temperature
        self.teacher_columns = teacher_columns
        self.student_columns = student_columns
        self.scale = scale


class DistilledClassifier(ClassifierMixin, _Distilled):
    """A linear classifier that is distilled from another one, trained by the project's own trainer.

    The teacher minimises ``sum H(y, sigmoid(h)) + (teacher_ridge/2)|w|^2``, then the student
    ``sum (1-chi) H(y, sigmoid(h)) + chi H(sigmoid(h_teacher/T), sigmoid(h/T)) + (student_ridge/2)|w|^2``, on the columns that each
    sees; h = w.x/sqrt(N) + b, N is the number of columns of X, centred and scaled, and the biases are free.

    Parameters
    ----------
    teacher_ridge, student_ridge : float
        > 0.
    mixing, temperature : float
        chi in [0, 1] and T > 0.
    teacher_columns, student_columns : array of int or bool, optional
        What each sees; by default all.
    scale : str
        "columns": every column is divided by its standard deviation; "together": all by one number; "none".

    Attributes
    ----------
    classes_ : array, shape (2,)
    coef_, intercept_ : arrays, shapes (1, p), (1,)
        Of the student's logit on X as it comes; 0 where it does not look.
    teacher_coef_, teacher_intercept_ : arrays
        The same of the teacher.
    n_iter_ : int
        Newton steps of the student.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> y = np.repeat(["a", "b"], 100)
    >>> X = generator.standard_normal((200, 10)) + (y == "b")[:, None]
    >>> model = DistilledClassifier(mixing=0.8, temperature=2.0, student_columns=range(5)).fit(X, y)
    >>> bool(model.score(X, y) > 0.8), int(np.count_nonzero(model.coef_))
    (True, 5)
    """

    def __sklearn_tags__(self):
        """Two classes."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> DistilledClassifier:
        """Train teacher and student.

        Parameters
        ----------
        X : array, shape (n, p)
        y : array, shape (n,)
            Two classes.

        Raises
        ------
        ValueError
            For parameters outside their ranges, columns that do not exist, or labels that are not of two classes.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) == 1:
            raise ValueError(f"y must have two classes, got 1 class ({self.classes_[0]})")
        if len(self.classes_) > 2:
            raise ValueError(
                f"Only binary classification is supported. y must have two classes, got {len(self.classes_)} classes"
            )
        chain = chain_of(self)
        if min(stage.ridge for stage in chain.stages) <= 0.0:
            raise ParameterError("teacher_ridge and student_ridge must be > 0")
        size = X.shape[1]
        seen = [columns_of(getattr(self, name), size, name) for name in ("teacher_columns", "student_columns")]
        mean, deviation = X.mean(axis=0), _deviations(X, self.scale)
        labels = places.ravel().astype(float)
        design = np.ascontiguousarray((X - mean) / deviation / math.sqrt(size))
        sample = Sample(design, labels, np.zeros(size), labels, {TRAINING: slice(0, len(labels))})
        fits = train(sample, chain, seen, _TOLERANCE)
        for name, fit in zip(chain.names, fits, strict=True):
            if not fit.converged:
                warnings.warn(f"{name}: {fit.message}", ConvergenceWarning, stacklevel=2)
        for prefix, fit in zip(("teacher_", ""), fits, strict=True):
            weights = fit.all_weights / deviation / math.sqrt(size)
            setattr(self, f"{prefix}coef_", weights[None, :])
            setattr(self, f"{prefix}intercept_", np.array([fit.bias - weights @ mean]))
        self.n_iter_ = fits[-1].iterations
        return self

    def decision_function(self, X: ArrayLike) -> Array:
        """The student's logits, positive for the second class, shape (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_[0] + self.intercept_[0]

    def predict(self, X: ArrayLike) -> NDArray:
        """Classes, shape (n,)."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0.0).astype(int)]

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities of both classes, shape (n, 2)."""
        logits = self.decision_function(X)
        return np.column_stack([special.expit(-logits), special.expit(logits)])


class DistillationPredictor(_Distilled):
    """What to expect of a teacher and a student on some data, before they are trained.

    Parameters
    ----------
    teacher_ridge, student_ridge, mixing, temperature, teacher_columns, student_columns, scale
        As of :class:`DistilledClassifier`; a ridge belongs to the number of samples that is asked about.
    n_fits : int
        Real fits that a prediction is compared with.

    Attributes
    ----------
    data_ : Measured
        The samples, scaled.
    chain_ : Chain
    check_ : Check
        Prediction beside real fits, on half of the samples that can be predicted for.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 200)
    >>> X = generator.standard_normal((400, 10)) + 0.5 * y[:, None]
    >>> predictor = DistillationPredictor(student_columns=range(5)).fit(X, y)
    >>> bool(predictor.check_.trusted.all())
    True
    >>> predictor.predict_curve([50, 100]).test_error.sel(stage="student").values.round(2)
    array([[0.31, 0.3 ]])
    >>> type(predictor.suggest()).__name__
    'DistilledClassifier'
    """

    def __init__(
        self, teacher_ridge: float = 0.1, student_ridge: float = 0.1, mixing: float = 1.0, temperature: float = 1.0,
        teacher_columns: ArrayLike | None = None, student_columns: ArrayLike | None = None, scale: str = "columns", n_fits: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(teacher_ridge, student_ridge, mixing, temperature, teacher_columns, student_columns, scale)
        self.n_fits = n_fits

    def fit(self, X: ArrayLike, y: ArrayLike) -> DistillationPredictor:
        """Estimate the classes, and compare a prediction with real fits.

        Raises
        ------
        ValueError
            For samples that :class:`numerics.Measured` does not take, or parameters outside their ranges.
        """
        data = Measured(X, y, folds=FOLDS)
        self.data_ = Measured(scaled(data.X, self.scale), y, folds=FOLDS)
        self.chain_ = self._chain()
        sizes = sample_range(self.data_, 2)
        self.check_ = check(self.data_.at(sizes[-1] // 2), self.chain_, self.n_fits)
        return self

    def predict_curve(self, samples: Sequence[int] | None = None, n_fits: int = 0) -> xarray.Dataset:
        """Learning curves, with so many real fits at each point; see :func:`numerics.predict.learning_curves`.

        Raises
        ------
        ValueError
            For training sets that are too large.
        """
        check_is_fitted(self)
        sizes = sample_range(self.data_, CURVE_POINTS) if samples is None else list(samples)
        return learning_curves(self.data_, {"predictor": self.chain_}, sizes, n_fits, fitted=sizes if n_fits else ())

    def suggest(self, by: str = "prediction") -> DistilledClassifier:
        """A classifier of least predicted error on new samples when it is trained on all of these, not yet trained.

        Parameters
        ----------
        by : str
            "prediction" or "cross-validation", which fits.

        Raises
        ------
        UntrustedError
            If predictions do not agree with the real fits, and are asked for.
        """
        check_is_fitted(self)
        if by not in ("prediction", "cross-validation"):
            raise ParameterError(f"by must be 'prediction' or 'cross-validation', got {by!r}")
        if by == "prediction" and not self.check_.trusted.all():
            raise UntrustedError(self.check_.verdict)
        over = {
            "teacher.ridge": RIDGES,
            "student.ridge": RIDGES,
            "student.mixing": MIXINGS,
            "student.temperature": TEMPERATURES,
        }
        search = choose if by == "prediction" else cross_validate
        self.choice_: Choice = search(self.data_, self.chain_, over)
        chosen = {path.replace("student.mixing", "mixing").replace("student.temperature", "temperature").replace(".", "_"): value
                  for path, value in self.choice_.parameters.items()}  # fmt: skip
        return DistilledClassifier(
            **chosen, teacher_columns=self.teacher_columns, student_columns=self.student_columns, scale=self.scale
        )

    def _chain(self) -> Chain:
        size = self.data_.samples.size
        maps = []
        for name in ("teacher_columns", "student_columns"):
            seen = columns_of(getattr(self, name), size, name)
            maps.append(None if isinstance(seen, slice) else LinearMap(np.eye(size)[seen]))
        return chain_of(self, *maps)


def chain_of(
    model: DistilledClassifier | DistillationPredictor,
    teacher: LinearMap | None = None,
    student: LinearMap | None = None,
) -> Chain:
    """Teacher and student with the parameters of a model."""
    try:
        loss = Distillation(model.mixing, model.temperature)
    except (TypeError, ValueError) as error:
        raise ParameterError(str(error)) from None
    return Chain.of([
        Estimator(CrossEntropy(), model.teacher_ridge, features=teacher),
        Estimator(loss, model.student_ridge, features=student),
    ])  # fmt: skip


def columns_of(chosen: ArrayLike | None, size: int, name: str) -> slice | NDArray[np.intp]:
    """Numbers of columns, increasing; all as a slice.

    Raises
    ------
    ParameterError
        If they are not numbers of columns, or a flag for each.
    """
    if chosen is None:
        return slice(0, size)
    found = np.atleast_1d(np.asarray(chosen))
    if found.dtype == bool and found.shape == (size,):
        found = np.flatnonzero(found)
    elif found.dtype.kind not in "iu" or found.ndim != 1 or len(np.unique(found)) < len(found):
        found = np.empty(0, dtype=np.intp)
    if not len(found) or found.min() < 0 or found.max() >= size:
        raise ParameterError(
            f"{name} must be different numbers of columns below {size}, or {size} flags, got {chosen!r}"
        )
    return np.sort(found).astype(np.intp)


def _deviations(X: Array, scale: str) -> Array:
    """What each column is divided by; 1 where it is constant."""
    if scale not in SCALES:
        raise ParameterError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if scale == "none":
        return np.ones(X.shape[1])
    each = X.std(axis=0)
    # Rounding leaves a little of a column that is constant.
    each = np.where(each > 1e-12 * np.abs(X).max(axis=0), each, 0.0)
    if scale == "columns":
        return np.where(each > 0.0, each, 1.0)
    together = math.sqrt(float(np.mean(each**2)))
    return np.full(X.shape[1], together or 1.0)
