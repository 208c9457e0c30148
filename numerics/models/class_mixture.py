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
  ``B B^T = 1``, ``B 1 = 0``.  Then ``|W|^2`` is that of ``B W``: the ridge is the same in both.
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

    >>> data = ClassMixture(alpha=2.0, gram=similar_pairs(4, 0.6), delta=0.5)
    >>> data.classes_count, data.weights, data.gram.similarity
    (4, (0.25, 0.25, 0.25, 0.25), 0.6)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numerics.models.checks import ParameterError, require_count, require_number
from numerics.models.data import TRAINING, ClassLaw, DataModel, DataSet, require_data_sets
from numerics.models.inputs import WHITE, Inputs

Array = NDArray[np.float64]
Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]

ROUNDING = 1e-9
"""By how much weights may miss 1, and eigenvalues of a Gram matrix 0, relative to the largest."""

MOST_CLASSES = 1000


# Gram matrices.


@dataclass(frozen=True)
class Gram:
    """Gram matrix of the means of K classes, ``Gamma_cc' = mu_c.mu_c'/N``.

    Attributes
    ----------
    matrix : tuple of tuples, shape (K, K)
        Symmetric and positive semi-definite, up to rounding.
    similarity : float or None
        The overlap that a family of matrices depends on, which sweeps then may vary.

    Raises
    ------
    ParameterError
        If the matrix is not that of any means.

    Examples
    --------
    >>> similar_pairs(4, 0.5).at(0.2).matrix[0]
    (1.0, 0.2, 0.0, 0.0)
    >>> Gram.of([[1, 2], [2, 1]])
    Traceback (most recent call last):
    numerics.models.checks.ParameterError: gram must be positive semi-definite, its smallest eigenvalue is -1
    """

    matrix: Matrix
    similarity: float | None = None
    family: Callable[[float], Gram] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = _real_array("gram", self.matrix)
        if values.ndim != 2 or values.shape[0] != values.shape[1] or not 2 <= len(values) <= MOST_CLASSES:
            shape = " x ".join(map(str, values.shape))
            raise ParameterError(
                f"gram must be a K x K matrix with K from 2 to {MOST_CLASSES}, got one of {shape or 'a number'}"
            )
        size = float(np.abs(values).max())
        if not np.abs(values - values.T).max() <= ROUNDING * size:
            raise ParameterError("gram must be symmetric")
        smallest = float(np.linalg.eigvalsh(values)[0])
        if smallest < -ROUNDING * size:
            raise ParameterError(f"gram must be positive semi-definite, its smallest eigenvalue is {smallest:.6g}")
        object.__setattr__(self, "matrix", _tuples(0.5 * (values + values.T)))

    @classmethod
    def of(cls, values: Gram | ArrayLike) -> Gram:
        """A Gram matrix, or an array as one."""
        return values if isinstance(values, Gram) else cls(values)

    @property
    def classes(self) -> int:
        return len(self.matrix)

    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        return np.array(self.matrix, dtype=dtype)

    def at(self, similarity: float) -> Gram:
        """The matrix of the same family with another similarity."""
        if self.family is None:
            raise ParameterError(
                "gram has no similarity that could be varied; take one of a family, such as similar_pairs"
            )
        return self.family(similarity)

    @property
    def family_name(self) -> str | None:
        """Name of the function that made it, one of ``GRAM_FAMILIES``; None without a family."""
        return None if self.family is None else self.family.func.__name__

    def means(self) -> Array:
        """Vectors with this Gram matrix, shape (K, K): row c is mu_c/sqrt(N) in some basis."""
        values, vectors = np.linalg.eigh(np.array(self.matrix))
        return vectors * np.sqrt(np.clip(values, 0.0, None))


def orthogonal_means(classes: int) -> Gram:
    """Means at right angles with ``|mu_c|^2 = N``.

    Examples
    --------
    >>> orthogonal_means(2).matrix
    ((1.0, 0.0), (0.0, 1.0))
    """
    return Gram(_tuples(np.eye(_class_count(classes))))


def simplex_means(classes: int) -> Gram:
    """Means with ``|mu_c|^2 = N`` and equal overlaps -1/(K-1), which sum to 0: for K = 2 those of the binary mixture.

    Examples
    --------
    >>> simplex_means(3).matrix[0]
    (1.0, -0.5, -0.5)
    """
    k = _class_count(classes)
    return Gram(_tuples((k * np.eye(k) - 1.0) / (k - 1)))


def equal_overlaps(classes: int, similarity: float) -> Gram:
    """Means with the same overlap between any two.

    That overlap s only rescales: it is the problem of orthogonal means with all Delta, and all ridges, divided by 1 - s
    (weights are larger by the factor 1/sqrt(1 - s)).

    Examples
    --------
    >>> equal_overlaps(3, 0.5).matrix[0]
    (1.0, 0.5, 0.5)
    """
    k = _class_count(classes)
    s = require_number(
        "similarity", similarity, at_least=-1 / (k - 1), at_most=1, allowed=f"a number in [-1/{k - 1}, 1]"
    )
    return Gram(_tuples((1 - s) * np.eye(k) + s), s, partial(equal_overlaps, k))


def similar_pairs(classes: int, similarity: float) -> Gram:
    """Classes 2k and 2k+1 are alike, with this overlap of their means; other means are orthogonal.  An odd class is alone.

    Examples
    --------
    >>> similar_pairs(3, 0.9).matrix
    ((1.0, 0.9, 0.0), (0.9, 1.0, 0.0), (0.0, 0.0, 1.0))
    """
    k = _class_count(classes)
    s = _overlap("similarity", similarity)
    values = np.eye(k)
    for first in range(0, k - 1, 2):
        values[first, first + 1] = values[first + 1, first] = s
    return Gram(_tuples(values), s, partial(similar_pairs, k))


GRAM_FAMILIES = {"equal_overlaps": equal_overlaps, "similar_pairs": similar_pairs}
"""Gram matrices that depend on one similarity."""


def class_tree(branches: Sequence[int], similarities: Sequence[float]) -> Gram:
    """A tree of classes: ``branches`` are the children of every node, level by level, and classes are the leaves.

    Two classes whose lowest common node is on level j, counted from the root, have the overlap ``similarities[j]``.

    Examples
    --------
    >>> class_tree([2, 2], [0.1, 0.6]).matrix[0]
    (1.0, 0.6, 0.1, 0.1)
    """
    if not isinstance(branches, Sequence) or not branches:
        raise ParameterError(f"branches must be a sequence of integers >= 1, got {branches!r}")
    counts = [require_count("branches", item) for item in branches]
    if not isinstance(similarities, Sequence) or len(similarities) != len(counts):
        raise ParameterError(
            f"similarities must be {len(counts)} overlaps, one a level of branches, got {similarities!r}"
        )
    overlaps = [_overlap("similarities", item) for item in similarities]
    values = np.ones((1, 1))
    for count, overlap in zip(reversed(counts), reversed(overlaps), strict=True):
        size = len(values)
        grown = np.full((count * size, count * size), overlap)
        for k in range(count):
            grown[k * size : (k + 1) * size, k * size : (k + 1) * size] = values
        values = grown
    return Gram(_tuples(values))


def gram_of_correlations(correlations: ArrayLike, norms: ArrayLike = 1.0) -> Gram:
    """From correlations of the means, shape (K, K), and their norms ``|mu_c|/sqrt(N)``, a number or shape (K,).

    Examples
    --------
    >>> gram_of_correlations([[1, 0.5], [0.5, 1]], [2, 1]).matrix
    ((4.0, 1.0), (1.0, 1.0))
    """
    values, sizes = _real_array("correlations", correlations), _real_array("norms", norms)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or np.abs(np.diag(values) - 1.0).max() > ROUNDING:
        raise ParameterError("correlations must be a square matrix with ones on its diagonal")
    if sizes.ndim > 1 or sizes.size not in (1, len(values)) or not (sizes >= 0).all():
        raise ParameterError(f"norms must be a number >= 0 or {len(values)} of them, got {norms!r}")
    sizes = np.broadcast_to(sizes, len(values))
    return Gram(_tuples(values * np.outer(sizes, sizes)))


def mixture_of_samples(inputs: ArrayLike, labels: ArrayLike) -> tuple[Gram, Vector, Vector]:
    """Gram matrix, weights and noise per class of samples ``x`` of this module's model: unbiased estimates.

    Parameters
    ----------
    inputs : array, shape (n, N)
        Of variance of order 1 per coordinate; only means relative to that of all samples are looked at.
    labels : array, shape (n,)
        Integers 0, .., K-1; every class needs two samples.

    Returns
    -------
    gram, weights, delta
        What :class:`ClassMixture` takes.

    Examples
    --------
    >>> generator = np.random.default_rng(1)
    >>> labels = np.arange(600) % 3
    >>> means = generator.standard_normal((3, 400))
    >>> inputs = means[labels] / 20 + generator.standard_normal((600, 400))
    >>> gram, weights, delta = mixture_of_samples(inputs, labels)
    >>> bool(abs(np.array(gram) - means @ means.T / 400 + means.mean(axis=0) @ means.T / 400).max() < 2), weights[0]
    (True, 0.3333333333333333)
    """
    x, y = _real_array("inputs", inputs), np.asarray(labels)
    if x.ndim != 2 or y.shape != (len(x),) or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise ParameterError("inputs must have shape (n, N), and labels be n integers 0, .., K-1")
    counts = np.bincount(y)
    if len(counts) < 2 or counts.min() < 2:
        raise ParameterError("labels must hold at least two samples of each of two classes or more")
    n_inputs, k = x.shape[1], len(counts)
    means = np.array([x[y == c].mean(axis=0) for c in range(k)])
    delta = np.array([((x[y == c] - means[c]) ** 2).sum() / ((counts[c] - 1) * n_inputs) for c in range(k)])
    centred = np.eye(k) - counts / len(y)
    # These are mu_c/sqrt(N); their norms hold noise as well.
    gram = centred @ (means @ means.T - np.diag(delta * n_inputs / counts)) @ centred.T
    values, vectors = np.linalg.eigh(gram)
    gram = (vectors * np.clip(values, 0.0, None)) @ vectors.T
    return Gram(_tuples(gram)), tuple((counts / len(y)).tolist()), tuple(delta.tolist())


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
        :func:`class_tree`, :func:`gram_of_correlations`, :func:`mixture_of_samples`.
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
    gram: Gram = field(default_factory=lambda: orthogonal_means(3))
    delta: float | Vector = 1.0
    label_noise: float = 0.0
    confusion: Matrix | None = None
    further: tuple[ClassSet, ...] = ()
    test_weights: Vector | None = None

    many_classes: ClassVar[bool] = True
    inputs: ClassVar[Inputs] = WHITE

    def __post_init__(self) -> None:
        gram = Gram.of(self.gram)
        k = gram.classes
        first = ClassSet(TRAINING, self.alpha, self.label_noise, self.weights, self.confusion)
        first.check_classes(k)
        deltas = _real_array("delta", self.delta)
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
        return replace(self, gram=self.gram.at(value)) if name == "similarity" else replace(self, **{name: value})

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


def helmert(classes: int) -> Array:
    """B, shape (K-1, K): orthonormal rows that sum to 0.  Logits are ``h = B^T u``.

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
    return basis


# Checks.


def _real_array(name: str, values: object) -> Array:
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} must be an array of numbers, got {values!r}") from None
    if not np.isfinite(found).all():
        raise ParameterError(f"{name} must hold finite numbers, got {values!r}")
    return found


def _tuples(values: Array) -> Matrix:
    return tuple(tuple(row) for row in values.tolist())


def _class_count(classes: object) -> int:
    found = require_count("classes", classes, least=2)
    if found > MOST_CLASSES:
        raise ParameterError(f"classes must be at most {MOST_CLASSES}, got {found}")
    return found


def _overlap(name: str, value: object) -> float:
    return require_number(name, value, at_least=-1, at_most=1, allowed="a number in [-1, 1]")


def _weights(name: str, values: object) -> Vector:
    found = _real_array(name, values)
    if found.ndim != 1 or found.size < 2 or not (found >= 0).all():
        raise ParameterError(f"{name} must be numbers >= 0, one a class, got {values!r}")
    total = float(found.sum())
    if abs(total - 1.0) > ROUNDING:
        raise ParameterError(f"{name} must sum to 1, they sum to {total:.6g}")
    return tuple((found / total).tolist())


def _confusion(name: str, values: object) -> Matrix:
    found = _real_array(name, values)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not (found >= 0).all():
        raise ParameterError(
            f"{name} must be a square matrix of numbers >= 0, a row and a column a class, got {values!r}"
        )
    for c, total in enumerate(found.sum(axis=1).tolist()):
        if abs(total - 1.0) > ROUNDING:
            raise ParameterError(f"row {c} of {name} must sum to 1, it sums to {total:.6g}")
    return _tuples(found / found.sum(axis=1, keepdims=True))
