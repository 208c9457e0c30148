"""A mixture of K Gaussian classes, and what simulations and solvers agree on about it.

Inputs of class c are ``x = mu_c/sqrt(N) + sqrt(Delta_c) z`` with ``z_i ~ N(0, 1)``; only the Gram matrix of the means matters,
``Gamma_cc' = mu_c.mu_c'/N``.  Binary data, :class:`numerics.models.GaussianMixture`, are K = 2 with
``Gamma = [[1, -1], [-1, 1]]``: ``h_binary`` is the difference of the two logits, and ``ridge_softmax = 2 ridge_binary``.

Classes are counted 0, .., K-1, and are the LAST axis wherever there is one.

- Model: ``weights`` (K,), ``gram`` (K, K), ``deltas`` (K,), ``test_weights`` (K,); for every data set d of ``sets``
  ``class_weights(name)`` (K,), rho_dc, and ``confusion_of(name)`` (K, K): row c is the law of the labels that samples of class c
  carry in training.  Test labels are the classes themselves.
- A stage has K logits ``h = W x/sqrt(N) + b`` with W (K, N) and b (K,).  Its objective is
  ``sum_mu l(h_mu; y_mu, earlier logits) + (ridge/2)|W|^2``, and b is not regularised.  A mask is one of inputs: column i of W is
  active or 0, for all classes.
- Gauge: a constant added to all logits changes no built-in loss, so that W and b sum to 0 over the classes at the minimum, or may
  be taken so.  Solvers and simulations use d = K-1 coordinates, ``h = B^T u``, with the rows of ``helmert(K)`` (d, K):
  ``B B^T = 1``, ``B 1 = 0``.  Then ``|W|^2`` is that of ``B W``: the ridge is the same in both.  A user's formula whose best mean
  logit depends on the sample has all K of ``helmert(K, whole=True)``, of which the last is sqrt(K) times the mean.
- Loss: ``numerics.classes.formulas.class_loss(loss, K)``, a ``numerics.classes.losses.ClassLoss``.  On arrays ``h`` (n, K) of
  logits, ``labels`` (n,) of integers and ``taught`` (n, teachers, K), the logits of the stages ``loss.stages(t)``:

  - ``targets(labels, taught, similarity)`` is c, (n, K), which does not depend on h;
  - ``slope(h)`` is S, (n, K), so that the force is ``c - S`` and the gradient in the gauge is ``(S - c) @ B.T``;
  - ``curvature(h)`` is dS/dh, (n, K, K);
  - ``gradient(h, targets)`` is S - c, (n, K), and ``value(h, targets, taught)`` is l, (n,), with the constants that make it a
    cross-entropy or a square.

  A formula has a gradient and a curvature ``curvature(h, targets)`` alone; its targets are labels and the teachers' logits.

  ``similarity`` (K, K) is needed where ``needs_similarity``: row y is the mean of softmax(h_teacher/T) over the training samples
  with label y, of the data sets that the stage is trained on, which ``similarity(labels, taught)`` computes from the samples, or
  what ``table(means, weights, overlaps)`` makes of these means for targets that know less.

    >>> from numerics.models import similar_pairs
    >>> data = ClassMixture(alpha=2.0, gram=similar_pairs(4, 0.6), delta=0.5)
    >>> data.classes_count, data.weights, data.gram.similarity
    (4, (0.25, 0.25, 0.25, 0.25), 0.6)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from numerics.models.checks import ParameterError
from numerics.models.data import TRAINING, ClassLaw, DataModel, DataSet, require_data_sets
from numerics.models.gram import ROUNDING, Gram, Matrix, Vector, orthogonal_means, real_array, tuples
from numerics.models.inputs import WHITE, Inputs, Isotropic, PowerLaw, Spectrum
from numerics.models.shared_covariance import SharedCovariance

Array = NDArray[np.float64]


# The data.


@dataclass(frozen=True)
class ClassSet(DataSet):
    """A further set of samples of the same classes, of its own size, class weights and label noise.

    Parameters
    ----------
    name, alpha, label_noise
        As for a :class:`numerics.models.DataSet`; a noisy label is any of the other classes with equal probability.
    weights : sequence of K floats
        Of the classes in this set, sum 1; a class of weight 0 is missing.  None: those of the training set.
    confusion : (K, K) array
        Instead of ``label_noise``: row c is the law of the labels that samples of class c carry.

    Examples
    --------
    >>> transfer = ClassSet("transfer", alpha=1.0, weights=[0.5, 0.5, 0.0])
    >>> ClassMixture(alpha=2.0, gram=orthogonal_means(3), further=transfer).class_weights("transfer")
    array([0.5, 0.5, 0. ])
    """

    weights: Vector | None = None
    confusion: Matrix | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f" of {self.name}" if self.name != TRAINING else ""
        if self.weights is not None:
            object.__setattr__(self, "weights", _weights(f"weights{where}", self.weights))
        if self.confusion is not None:
            object.__setattr__(self, "confusion", _confusion(f"confusion{where}", self.confusion))
            if self.label_noise:
                raise ParameterError(f"label_noise{where} must be 0 where confusion is given: that is the label noise")

    def check_classes(self, k: int) -> None:
        """ParameterError if weights or confusion are not of K classes."""
        where = f" of {self.name}" if self.name != TRAINING else ""
        for name in ("weights", "confusion"):
            found = getattr(self, name)
            if found is not None and len(found) != k:
                raise ParameterError(f"{name}{where} must be of {k} classes, as gram is, got {len(found)}")


@dataclass(frozen=True)
class ClassMixture(DataModel):
    """K Gaussian classes ``x = mu_c/sqrt(N) + sqrt(Delta_c) z`` with any Gram matrix of their means.

    Parameters
    ----------
    alpha : float
        Samples per input dimension of the training set, > 0.
    weights : sequence of K floats
        Probabilities rho_c of the classes in the training set, sum 1; None: equal.
    gram : Gram or (K, K) array
        ``Gamma_cc' = mu_c.mu_c'/N``: see :func:`orthogonal_means`, :func:`simplex_means`, :func:`similar_pairs`,
        :func:`class_tree`, :func:`gram_of_correlations`, :func:`mixture_of_samples`.  None: three orthogonal means, or those
        of a :class:`SharedCovariance`.
    delta : float or sequence of K floats
        Noise variance Delta_c > 0 of every coordinate.
    label_noise : float
        Probability in [0, 1/2] with which a training label is another one, any of them equally often.
    confusion : (K, K) array
        Instead of ``label_noise``: row c is the law of the training labels of samples of class c.
    further : sequence of ClassSet or DataSet
        More samples that some stages are trained on.
    test_weights : sequence of K floats
        Of the classes in the test population; None: those of the training set.
    inputs : Inputs
        Variances lambda_i of the coordinates: :class:`Isotropic`, :class:`Spectrum`, :class:`PowerLaw` (where means have the Gram
        matrix ``q Gamma`` on coordinates of squared signal q), or :class:`SharedCovariance` for means measured with it.
        Class c has the variance ``Delta_c lambda_i``.

    Raises
    ------
    ParameterError
        If a value is not in its range, shapes do not fit, weights do not sum to 1, or the Gram matrix is that of no means.

    Examples
    --------
    >>> data = ClassMixture(alpha=2, gram=orthogonal_means(3), delta=[0.5, 1, 1], confusion=[[0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]])
    >>> data.confusion_of("training")[0]
    array([0.9, 0.1, 0. ])
    >>> ClassMixture(alpha=2, gram=orthogonal_means(3), weights=[0.5, 0.4, 0.2])
    Traceback (most recent call last):
    numerics.models.checks.ParameterError: weights must sum to 1, they sum to 1.1
    """

    alpha: float
    weights: Vector | None = None
    gram: Gram | None = None
    delta: float | Vector = 1.0
    label_noise: float = 0.0
    confusion: Matrix | None = None
    further: tuple[ClassSet, ...] = ()
    test_weights: Vector | None = None
    inputs: Inputs = WHITE

    many_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_inputs(self.inputs, self.gram)
        if isinstance(self.inputs, SharedCovariance):
            gram = self.inputs.gram
        else:
            gram = orthogonal_means(3) if self.gram is None else Gram.of(self.gram)
        k = gram.classes
        first = ClassSet(TRAINING, self.alpha, self.label_noise, self.weights, self.confusion)
        first.check_classes(k)
        deltas = real_array("delta", self.delta)
        if deltas.ndim > 1 or deltas.size not in (1, k) or not (deltas > 0).all():
            raise ParameterError(f"delta must be a finite number > 0 or {k} of them, got {self.delta!r}")
        delta = float(deltas) if deltas.ndim == 0 else tuple(deltas.tolist())
        if not isinstance(delta, float) and len(delta) != k:
            raise ParameterError(f"delta must be a finite number > 0 or {k} of them, got {self.delta!r}")
        test = None if self.test_weights is None else _weights("test_weights", self.test_weights)
        if test is not None and len(test) != k:
            raise ParameterError(f"test_weights must be of {k} classes, as gram is, got {len(test)}")
        equal = (1.0 / k,) * k
        values = {
            "alpha": first.alpha, "weights": first.weights or equal, "gram": gram, "delta": delta, "confusion": first.confusion,
            "label_noise": first.label_noise, "test_weights": test or first.weights or equal,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)
        further = (self.further,) if isinstance(self.further, DataSet) else self.further
        checked = [
            ClassSet(found.name, found.alpha, found.label_noise) if type(found) is DataSet else found
            for found in require_data_sets(further)
        ]
        for found in checked:
            found.check_classes(k)
        object.__setattr__(self, "further", tuple(checked))

    def __repr__(self) -> str:
        equal = (1.0 / self.classes_count,) * self.classes_count
        shown = [f"alpha={self.alpha!r}", f"gram={self.gram!r}"]
        shown += [f"weights={self.weights!r}"] if self.weights != equal else []
        shown += [f"delta={self.delta!r}"]
        shown += [
            f"{name}={getattr(self, name)!r}" for name in ("label_noise", "confusion", "further") if getattr(self, name)
        ]
        shown += [f"test_weights={self.test_weights!r}"] if self.test_weights != self.weights else []
        shown += [] if self.inputs.white else [f"inputs={self.inputs!r}"]
        return f"ClassMixture({', '.join(shown)})"

    @property
    def title(self) -> str:
        return f"Gaussian mixture of {self.classes_count} classes"

    @property
    def classes_count(self) -> int:
        """K."""
        return self.gram.classes

    @cached_property
    def deltas(self) -> Array:
        """Delta_c, shape (K,)."""
        return np.broadcast_to(np.array(self.delta, dtype=float), self.classes_count).copy()

    @property
    def own_parameters(self) -> tuple[str, ...]:
        names = ["alpha"]
        names += ["delta"] if isinstance(self.delta, float) else []
        names += ["similarity"] if self.gram.family is not None else []
        return (*names, *(["label_noise"] if self.confusion is None else []))

    @property
    def similarity(self) -> float:
        """Of the family of Gram matrices; NaN if it is not of one."""
        return float("nan") if self.gram.similarity is None else self.gram.similarity

    def with_value(self, name: str, value: object) -> ClassMixture:
        """See :meth:`DataModel.with_value`."""
        return replace(self, gram=self.gram.at(value)) if name == "similarity" else super().with_value(name, value)

    @cached_property
    def sets(self) -> tuple[ClassSet, ...]:
        """All data sets, ``training`` first."""
        return (ClassSet(TRAINING, self.alpha, self.label_noise, self.weights, self.confusion), *self.further)

    def class_weights(self, name: str) -> Array:
        """rho_dc of a data set, shape (K,)."""
        return np.array(self.data_set(name).weights or self.weights)

    def confusion_of(self, name: str) -> Array:
        """Laws of the labels that the classes carry in a data set, a row each, shape (K, K)."""
        found, k = self.data_set(name), self.classes_count
        if found.confusion is not None:
            return np.array(found.confusion)
        wrong = found.label_noise / (k - 1)
        return (1.0 - found.label_noise - wrong) * np.eye(k) + wrong

    def label_weights(self, name: str) -> Array:
        """How often each label is seen in a data set, shape (K,)."""
        return self.class_weights(name) @ self.confusion_of(name)

    @property
    def variance(self) -> float:
        """Of every coordinate of an input, given its class, averaged over the training set."""
        return float(np.array(self.weights) @ self.deltas)

    @property
    def classes(self) -> tuple[ClassLaw, ...]:
        """Weights of the classes in the test population, and their labels."""
        return tuple(ClassLaw(weight, float("nan"), float(c)) for c, weight in enumerate(self.test_weights))


def helmert(classes: int, *, whole: bool = False) -> Array:
    """B, shape (K-1, K): orthonormal rows that sum to 0.  Logits are ``h = B^T u``.

    ``whole`` has the normalised mean as one row more, shape (K, K).

    Examples
    --------
    >>> helmert(2).round(6)
    array([[ 0.707107, -0.707107]])
    """
    basis = np.zeros((classes - 1, classes))
    for k in range(1, classes):
        basis[k - 1, :k] = 1.0
        basis[k - 1, k] = -k
        basis[k - 1] /= np.sqrt(k * (k + 1.0))
    return np.vstack([basis, np.full(classes, classes**-0.5)]) if whole else basis


# Checks.


def _check_inputs(inputs: object, gram: object) -> None:
    if not isinstance(inputs, Isotropic | Spectrum | PowerLaw | SharedCovariance):
        raise ParameterError(
            f"inputs of K classes must be Isotropic, Spectrum, PowerLaw or SharedCovariance, got {inputs!r}"
        )
    if not isinstance(inputs, SharedCovariance) or gram is None:
        return
    given, own = np.array(Gram.of(gram)), np.array(inputs.gram)
    if given.shape != own.shape or np.abs(given - own).max() > ROUNDING:
        raise ParameterError(
            "gram must be left out beside a SharedCovariance: its means have the Gram matrix they have"
        )


def _weights(name: str, values: object) -> Vector:
    found = real_array(name, values)
    if found.ndim != 1 or found.size < 2 or not (found >= 0).all():
        raise ParameterError(f"{name} must be numbers >= 0, one a class, got {values!r}")
    total = float(found.sum())
    if abs(total - 1.0) > ROUNDING:
        raise ParameterError(f"{name} must sum to 1, they sum to {total:.6g}")
    return tuple((found / total).tolist())


def _confusion(name: str, values: object) -> Matrix:
    found = real_array(name, values)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not (found >= 0).all():
        raise ParameterError(
            f"{name} must be a square matrix of numbers >= 0, a row and a column a class, got {values!r}"
        )
    for c, total in enumerate(found.sum(axis=1).tolist()):
        if abs(total - 1.0) > ROUNDING:
            raise ParameterError(f"row {c} of {name} must sum to 1, it sums to {total:.6g}")
    return tuples(found / found.sum(axis=1, keepdims=True))
