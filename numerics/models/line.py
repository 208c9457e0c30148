"""Problems that differ in one parameter alone, and the numbers that are read off them, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from numerics.models.chain import Chain, in_equations
from numerics.models.data import DataModel
from numerics.models.parameters import with_parameter

Problem = tuple[DataModel, Chain]
"""What is solved, or simulated, at a point."""


class Line(Sequence):
    """Problems along one parameter, each made, without :func:`numerics.models.check_fit`, when it is asked for.

    Parameters
    ----------
    data, chain : DataModel, Chain
        The problem at any value of the parameter.
    path : str
        Its name, as in :func:`numerics.models.parameter_paths`.
    values : array, shape (n,)
        Different from one another.

    Examples
    --------
    >>> from numerics import Chain, Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy
    >>> line = Line(GaussianMixture(1.0), Chain.of(Estimator(CrossEntropy(), 0.1)), "alpha", np.array([1.0, 2.0, 5.0, 3.0]))
    >>> line[1][0], line.probes
    (GaussianMixture(alpha=2.0, rho=0.5, delta=1.0), (0, 3, 2))
    >>> line.numbers(lambda problems: [np.array([[data.alpha, data.delta] for data, _ in problems])])
    [array([[1., 1.],
           [2., 1.],
           [5., 1.],
           [3., 1.]])]
    """

    def __init__(self, data: DataModel, chain: Chain, path: str, values: np.ndarray) -> None:
        self.data, self.chain, self.path, self.values = data, chain, path, np.asarray(values, dtype=float)
        self._made: dict[int, Problem] = {}
        self._raw: Line | None = None  # that this is in equations

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> Problem:
        if i not in self._made:
            if self._raw is None:
                self._made[i] = with_parameter(self.data, self.chain, self.path, float(self.values[i]))
            else:
                data, chain = self._raw[i]
                self._made[i] = data, in_equations(data, chain)
        return self._made[i]

    def in_equations(self) -> Line:
        """The same problems as they are solved: :func:`numerics.models.in_equations`."""
        if not self.data.ruled:
            return self
        found = Line(self.data, self.chain, self.path, self.values)
        found._raw = self
        return found

    @cached_property
    def probes(self) -> tuple[int, ...]:
        """Places of the smallest value, of one in the middle, and of the largest."""
        order = np.argsort(self.values).tolist()
        return tuple(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))

    @cached_property
    def probed(self) -> list[Problem]:
        """The problems at the probes."""
        return [self[i] for i in self.probes]

    def numbers(self, read: Callable[[Sequence[Problem]], Sequence[np.ndarray]]) -> list[np.ndarray] | None:
        """What ``read`` says of all problems, bit for bit, from what it says of those at the probes; None where that is not enough.

        Numbers that are the same at all probes are the same everywhere.  Those that are the parameter p itself, 1 - p or 1 + p
        are that everywhere.  Where there are others, the answer is None.

        Parameters
        ----------
        read : callable
            From n problems to arrays whose first axis has length n.  Apart from that it must not tell one value from its
            neighbours, as what asks whether a number is 0 does.
        """
        p, found = self.values, read(self.probed)
        flat = np.concatenate([array.reshape(len(array), -1) for array in found], axis=1, dtype=float)
        bits = flat.view(np.int64)
        moving = np.flatnonzero((bits != bits[0]).any(axis=0))
        forms = [(form[list(self.probes)].view(np.int64), form) for form in (p, 1.0 - p, 1.0 + p)]
        followed = []
        for column in moving.tolist():
            form = next((form for at_probes, form in forms if (bits[:, column] == at_probes).all()), None)
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
