"""Gram matrices of the means of K classes: families of them, and those of correlations and of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numerics.models.checks import ParameterError, require_count, require_number, short

Array = NDArray[np.float64]
Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]

ROUNDING = 1e-9
"""By how much weights may miss 1, and eigenvalues of a Gram matrix 0, relative to the largest."""

MOST_CLASSES = 1000


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
        values = real_array("gram", self.matrix)
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
        object.__setattr__(self, "matrix", tuples(0.5 * (values + values.T)))

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
    return Gram(tuples(np.eye(_class_count(classes))))


def simplex_means(classes: int) -> Gram:
    """Means with ``|mu_c|^2 = N`` and equal overlaps -1/(K-1), which sum to 0: for K = 2 those of the binary mixture.

    Examples
    --------
    >>> simplex_means(3).matrix[0]
    (1.0, -0.5, -0.5)
    """
    k = _class_count(classes)
    return Gram(tuples((k * np.eye(k) - 1.0) / (k - 1)))


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
    return Gram(tuples((1 - s) * np.eye(k) + s), s, partial(equal_overlaps, k))


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
    return Gram(tuples(values), s, partial(similar_pairs, k))


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
    return Gram(tuples(values))


def gram_of_correlations(correlations: ArrayLike, norms: ArrayLike = 1.0) -> Gram:
    """From correlations of the means, shape (K, K), and their norms ``|mu_c|/sqrt(N)``, a number or shape (K,).

    Examples
    --------
    >>> gram_of_correlations([[1, 0.5], [0.5, 1]], [2, 1]).matrix
    ((4.0, 1.0), (1.0, 1.0))
    """
    values, sizes = real_array("correlations", correlations), real_array("norms", norms)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or np.abs(np.diag(values) - 1.0).max() > ROUNDING:
        raise ParameterError("correlations must be a square matrix with ones on its diagonal")
    if sizes.ndim > 1 or sizes.size not in (1, len(values)) or not (sizes >= 0).all():
        raise ParameterError(f"norms must be a number >= 0 or {len(values)} of them, got {norms!r}")
    sizes = np.broadcast_to(sizes, len(values))
    return Gram(tuples(values * np.outer(sizes, sizes)))


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
    x, y = real_array("inputs", inputs), np.asarray(labels)
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
    return Gram(tuples(gram)), tuple((counts / len(y)).tolist()), tuple(delta.tolist())


# Checks.


def real_array(name: str, values: object) -> Array:
    """Finite numbers as an array; ParameterError for anything else."""
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} must be an array of numbers, got {short(values)}") from None
    if not np.isfinite(found).all():
        raise ParameterError(f"{name} must hold finite numbers, got {short(values)}")
    return found


def tuples(values: Array) -> Matrix:
    """Rows of a matrix as tuples, which can be hashed."""
    return tuple(tuple(row) for row in values.tolist())


def _class_count(classes: object) -> int:
    found = require_count("classes", classes, least=2)
    if found > MOST_CLASSES:
        raise ParameterError(f"classes must be at most {MOST_CLASSES}, got {found}")
    return found


def _overlap(name: str, value: object) -> float:
    return require_number(name, value, at_least=-1, at_most=1, allowed="a number in [-1, 1]")
