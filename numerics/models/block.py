"""Problems that differ in a few numbers, and what is read off them, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product

import numpy as np

from numerics.models.chain import Chain, in_equations
from numerics.models.data import DataModel
from numerics.models.parameters import with_parameter

Problem = tuple[DataModel, Chain]
"""What is solved, or simulated, at a point."""


class Block(Sequence):
    """Problems at many values of some parameters, each made, without :func:`numerics.models.check_fit`, when it is asked for.

    Parameters
    ----------
    data, chain : DataModel, Chain
        The problem at any values of the parameters.
    paths : sequence of str
        Their names, as in :func:`numerics.models.parameter_paths`.
    values : array, shape (n, parameters)

    Raises
    ------
    ParameterError
        If a value that all problems share is not allowed.

    Examples
    --------
    >>> from numerics import Chain, Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy
    >>> chain = Chain.of(Estimator(CrossEntropy(), 0.1))
    >>> line = Block(GaussianMixture(1.0), chain, ["rho", "alpha"], np.array([[0.2, 1.0], [0.2, 2.0], [0.2, 5.0]]))
    >>> line[1][0], line.varying
    (GaussianMixture(alpha=2.0, rho=0.2, delta=1.0), [1])
    >>> line.numbers(lambda problems: [np.array([[data.alpha, data.rho] for data, _ in problems])])
    [array([[1. , 0.2],
           [2. , 0.2],
           [5. , 0.2]])]
    """

    def __init__(self, data: DataModel, chain: Chain, paths: Sequence[str], values: np.ndarray) -> None:
        self.paths, self.values = tuple(paths), np.asarray(values, dtype=float)
        self.varying = np.flatnonzero((self.values != self.values[0]).any(axis=0)).tolist()
        for k, path in enumerate(self.paths):
            if k not in self.varying:
                data, chain = with_parameter(data, chain, path, float(self.values[0, k]))
        self.data, self.chain = data, chain
        self._made: dict[int, Problem] = {}
        self._raw: Block | None = None  # that this is in equations

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> Problem:
        if i not in self._made:
            self._made[i] = self._at(self.values[i]) if self._raw is None else _solved(self._raw[i])
        return self._made[i]

    def _at(self, values: np.ndarray) -> Problem:
        problem = self.data, self.chain
        for k in self.varying:
            problem = with_parameter(*problem, self.paths[k], float(values[k]))
        return problem

    def in_equations(self) -> Block:
        """The same problems as they are solved: :func:`numerics.models.in_equations`."""
        if not self.data.ruled:
            return self
        found = Block(self.data, self.chain, self.paths, self.values)
        found._raw = self
        found.corners = [_solved(problem) for problem in self.corners]
        return found

    @cached_property
    def _probes(self) -> np.ndarray:
        """Values at the corners, then somewhere inside, shape (probes, parameters)."""
        ends = np.sort(self.values, axis=0)[[0, -1]]
        corners = product(*(ends[:, k] if k in self.varying else ends[:1, k] for k in range(len(self.paths))))
        return np.array([*corners, self.values[len(self) // 2]])

    @cached_property
    def corners(self) -> list[Problem]:
        """Problems at all combinations of the smallest and largest values of those that vary, the last one fastest."""
        return [self._at(values) for values in self._probes[:-1]]

    def numbers(self, read: Callable[[Sequence[Problem]], Sequence[np.ndarray]]) -> list[np.ndarray] | None:
        """What ``read`` says of all problems, bit for bit, from what it says of corners and of one more; None if it takes others.

        Numbers that are the same there are the same everywhere.  Those that are a parameter p itself, 1 - p or 1 + p are that
        everywhere.  Where there is anything else, the answer is None.

        Parameters
        ----------
        read : callable
            From n problems to arrays whose first axis has length n.  Apart from that it must not tell one value from its
            neighbours, as what asks whether a number is 0 does.
        """
        found = read([*self.corners, self[len(self) // 2]])
        flat = np.concatenate([array.reshape(len(array), -1) for array in found], axis=1, dtype=float)
        bits = flat.view(np.int64)
        moving = np.flatnonzero((bits != bits[0]).any(axis=0))
        forms = [
            form
            for k in self.varying
            for form in zip(*map(_forms, (self._probes[:, k], self.values[:, k])), strict=True)
        ]
        followed = []
        for column in moving.tolist():
            form = next((form for probes, form in forms if (bits[:, column] == probes.view(np.int64)).all()), None)
            if form is None:
                return None
            followed.append((column, form))
        out = [array[:1].repeat(len(self), axis=0) for array in found]
        ends = np.cumsum([array[0].size for array in found])
        for column, form in followed:
            k = int(np.searchsorted(ends, column, side="right"))
            if out[k].dtype != form.dtype:
                return None
            out[k].reshape(len(self), -1)[:, column - ends[k]] = form
        return out


def _solved(problem: Problem) -> Problem:
    return problem[0], in_equations(*problem)


def _forms(p: np.ndarray) -> tuple[np.ndarray, ...]:
    """In which a parameter enters."""
    return p.copy(), 1.0 - p, 1.0 + p
