"""Permutations of the classes that change nothing, found from the data: then few numbers say everything.

If a permutation leaves Gram matrix, weights, noise and confusion as they are, order parameters are the same after it: logits turn
by R = B P B^T in the gauge, and blocks obey ``R Q R^T = Q``, means ``R m P^T = m``.  Averages over one class of an orbit give those
over the others.  For classes that are all alike a stage has five unknowns, whatever K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from numerics.models import ClassMixture, SharedCovariance, helmert

Array = NDArray[np.float64]
Permutation = tuple[int, ...]
Matrix = tuple[tuple[float, ...], ...]

MOST_CLASSES = 40
"""Up to which permutations are looked for."""

_ATTEMPTS = 2000  # images tried for one permutation
_NULL = 1e-9
_SAME = 1e-12


@lru_cache(maxsize=64)
def permutations_of(data: ClassMixture, targets: tuple[Matrix, ...] = ()) -> tuple[Permutation, ...]:
    """Permutations of the classes that leave the data as they are: one that takes i to j for every i < j, where there is one.

    They leave ``targets``, tables of soft targets of the stages, as they are, too.  Of measured means none is expected to.

    Examples
    --------
    >>> from numerics.models import similar_pairs
    >>> permutations_of(ClassMixture(1.0, gram=similar_pairs(4, 0.5)))[:2]
    ((1, 0, 2, 3), (2, 3, 0, 1))
    >>> permutations_of(ClassMixture(1.0), (((0.9, 0.1, 0.0), (0.1, 0.9, 0.0), (0.0, 0.0, 1.0)),))
    ((1, 0, 2),)
    >>> permutations_of(ClassMixture(1.0, [0.5, 0.3, 0.2]))
    ()
    """
    k = data.classes_count
    if k > MOST_CLASSES or isinstance(data.inputs, SharedCovariance):
        return ()
    gram = np.array(data.gram)
    marks = [data.deltas, *(data.class_weights(found.name) for found in data.sets)]
    noise = [data.confusion_of(found.name) for found in data.sets]
    tables = [gram / np.abs(gram).max(), *noise, *map(np.array, targets)]
    found: list[Permutation] = []
    for i in range(k):
        for j in range(i + 1, k):
            images = _extended(i, j, np.array(marks), np.array(tables))
            if images is not None and images not in found:
                found.append(images)
    return tuple(found)


def _extended(i: int, j: int, marks: Array, tables: Array) -> Permutation | None:
    """A permutation that takes i to j, as near to the identity as it is found."""
    k = marks.shape[1]
    order = [i, j, *(c for c in range(k) if c not in (i, j))]
    image: dict[int, int] = {}
    attempts = 0

    def allowed(c: int, to: int) -> bool:
        if to in image.values() or np.abs(marks[:, c] - marks[:, to]).max() > _SAME:
            return False
        here, there = [*image, c], [*image.values(), to]
        apart = np.abs(tables[:, c, here] - tables[:, to, there]), np.abs(tables[:, here, c] - tables[:, there, to])
        return max(item.max() for item in apart) <= _SAME

    def candidates(c: int) -> Iterator[int]:
        first = {i: [j], j: [i, *range(k)]}.get(c, [c, *range(k)])
        yield from dict.fromkeys(first)

    def search(place: int) -> bool:
        nonlocal attempts
        if place == k:
            return True
        c = order[place]
        for to in candidates(c):
            attempts += 1
            if attempts > _ATTEMPTS:
                return False
            if allowed(c, to):
                image[c] = to
                if search(place + 1):
                    return True
                del image[c]
        return False

    return tuple(image[c] for c in range(k)) if search(0) else None


@dataclass(frozen=True)
class Image:
    """A cell that is another one after a permutation: where it is in the list of cells, the permutation, and R."""

    cell: int
    permutation: Permutation
    rotation: Array


@lru_cache(maxsize=64)
def orbits(cells: tuple, permutations: tuple[Permutation, ...], classes: int) -> dict[int, list[Image]]:
    """One cell of every orbit, with all of the orbit as images of it, itself first."""
    basis = helmert(classes)
    where = {(cell.class_index, cell.label, cell.trained): i for i, cell in enumerate(cells)}
    known: set[int] = set()
    found: dict[int, list[Image]] = {}
    for first in range(len(cells)):
        if first in known:
            continue
        reached: dict[int, Permutation] = {first: tuple(range(classes))}
        waiting = [first]
        while waiting:
            cell = waiting.pop()
            for permutation in permutations:
                whole = tuple(permutation[c] for c in reached[cell])
                start = cells[first]
                image = where[whole[start.class_index], whole[start.label], start.trained]
                if image not in reached:
                    reached[image] = whole
                    waiting.append(image)
        known |= set(reached)
        found[first] = [
            Image(cell, permutation, _rotation(basis, permutation)) for cell, permutation in reached.items()
        ]
    return found


def _rotation(basis: Array, permutation: Permutation) -> Array:
    """R = B P B^T of the permutation that takes class c to permutation[c]."""
    return basis[:, list(permutation)] @ basis.T


@lru_cache(maxsize=64)
def _spaces(permutations: tuple[Permutation, ...], classes: int, d: int) -> dict[str, Array]:
    """Orthonormal columns that span what the permutations leave alone: of means (d, K), biases, blocks (d, d), and lower triangles
    that stand for symmetric matrices."""
    basis = helmert(classes, whole=d == classes)
    lower = np.tril_indices(d)
    expand = np.zeros((d * d, len(lower[0])))
    for n, (i, j) in enumerate(zip(*lower, strict=True)):
        expand[i * d + j, n] = expand[j * d + i, n] = 1.0
    take = np.zeros((len(lower[0]), d * d))
    take[np.arange(len(lower[0])), lower[0] * d + lower[1]] = 1.0
    sizes = {"means": d * classes, "biases": d, "blocks": d * d, "triangles": len(lower[0])}
    sums = {name: np.zeros((size, size)) for name, size in sizes.items()}
    for permutation in permutations:
        turn = _rotation(basis, permutation)
        moved = np.zeros((classes, classes))
        moved[list(permutation), range(classes)] = 1.0
        square = np.kron(turn, turn)
        actions = {"means": np.kron(turn, moved), "biases": turn, "blocks": square, "triangles": take @ square @ expand}
        for name, action in actions.items():
            apart = action - np.eye(len(action))
            sums[name] = sums[name] + apart.T @ apart
    spaces = {}
    for name, matrix in sums.items():
        values, vectors = np.linalg.eigh(matrix)
        spaces[name] = vectors[:, values < _NULL]
    return spaces


def made_invariant(values: Array, kind: str, permutations: tuple[Permutation, ...]) -> Array:
    """The part of averages that the permutations leave alone: "means" (K, d, ..) or "blocks" (.., d, d); what is left out is error.

    Examples
    --------
    >>> made_invariant(np.array([[1.0, 0.0], [0.0, 3.0]]), "blocks", ((1, 0, 2), (0, 2, 1))).round(9)
    array([[2., 0.],
           [0., 2.]])
    """
    if kind == "means":
        space = _spaces(permutations, *values.shape[:2])[kind]
        turned = np.moveaxis(values, 0, 1)
        flat = turned.reshape(len(space), -1)
        return np.moveaxis((space @ (space.T @ flat)).reshape(turned.shape), 0, 1)
    space = _spaces(permutations, len(permutations[0]), values.shape[-1])[kind]
    return (values.reshape(-1, len(space)) @ space @ space.T).reshape(values.shape)


@lru_cache(maxsize=64)
def first_of_orbits(permutations: tuple[Permutation, ...], classes: int) -> list[int]:
    """For each class the first one that is as it is."""
    first = list(range(classes))
    for _ in range(classes):
        for permutation in permutations:
            for c, image in enumerate(permutation):
                first[c] = first[image] = min(first[c], first[image])
    return first


@lru_cache(maxsize=64)
def invariants(
    permutations: tuple[Permutation, ...], classes: int, earlier: int, pinned: tuple[bool, ...] | None = None
) -> Array | None:
    """Orthonormal columns that span the unknowns of a stage that may move, or None if all do.

    Those that the permutations leave alone, and that are not in the last coordinate of ``pinned`` stages, up to this one, which are
    given where logits have K coordinates.  Unknowns are in the order of :mod:`numerics.classes.stage`; lower triangles stand for
    symmetric matrices.
    """
    if not permutations and not any(pinned or ()):
        return None
    spaces = _spaces(permutations, classes, classes - (pinned is None))
    parts = ["means", "biases", *["blocks"] * earlier, "triangles", *["blocks"] * earlier, "triangles"]
    rows = sum(spaces[name].shape[0] for name in parts)
    found = np.zeros((rows, sum(spaces[name].shape[1] for name in parts)))
    row = column = 0
    for name in parts:
        space = spaces[name]
        found[row : row + space.shape[0], column : column + space.shape[1]] = space
        row, column = row + space.shape[0], column + space.shape[1]
    if not any(pinned or ()):
        return found
    out = found[_pinned_unknowns(classes, pinned)]
    values, vectors = np.linalg.eigh(out.T @ out)
    return found @ vectors[:, values < _NULL]


def _pinned_unknowns(d: int, pinned: tuple[bool, ...]) -> NDArray[np.bool_]:
    """Which unknowns of the last of these stages, in d = K coordinates, are in the last one of a pinned stage."""
    last = np.arange(d) == d - 1
    own = last & pinned[-1]
    blocks = [(own[:, None] | (last & stage)).ravel() for stage in pinned[:-1]]
    triangle = own[np.tril_indices(d)[0]]
    return np.concatenate([np.repeat(own, d), own, *blocks, triangle, *blocks, triangle])
