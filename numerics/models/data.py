"""Where samples come from: the mixture, and its data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from numerics.models.checks import ParameterError, require_alpha, require_noise, require_number, spelt

TRAINING = "training"
"""Name of the data set that every mixture has."""


@dataclass(frozen=True)
class DataSet:
    """A further set of samples of the same mixture (same v, rho, Delta), of its own size.

    Parameters
    ----------
    name : str
        What stages and sweeps call it.
    alpha : float
        Its samples per input dimension, > 0.
    label_noise : float
        Probability theta in [0, 1/2] with which a label seen in training is flipped.

    Raises
    ------
    ParameterError
        If a value is not in its range, or the name is not an identifier.

    Examples
    --------
    >>> data = GaussianMixture(alpha=1.0, further=[DataSet("fresh", alpha=2.0, label_noise=0.1)])
    >>> [(found.name, found.alpha) for found in data.sets]
    [('training', 1.0), ('fresh', 2.0)]
    """

    name: str
    alpha: float
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ParameterError(f"the name of a data set must be a Python identifier, got {self.name!r}")
        object.__setattr__(self, "name", spelt(self.name))
        object.__setattr__(self, "alpha", require_alpha("alpha", self.alpha))
        object.__setattr__(self, "label_noise", require_noise("label_noise", self.label_noise))


@dataclass(frozen=True)
class GaussianMixture:
    """Two Gaussian clouds ``x = s v/sqrt(N) + sqrt(Delta) z`` with ``v_i, z_i ~ N(0, 1)`` (Saglietti & Zdeborova 2021, Sec. 2).

    Parameters
    ----------
    alpha : float
        Samples per input dimension of the training set, ``alpha = M/N > 0``.
    rho : float
        Probability of the positive class (``y = 1``, ``s = +1``), in (0, 1).
    delta : float
        Noise variance ``Delta > 0`` of every coordinate.
    label_noise : float
        Probability theta in [0, 1/2] with which a training label is flipped; the cloud a sample comes from, and test labels,
        stay what they are.
    further : sequence of DataSet
        More samples that some stages are trained on.

    Raises
    ------
    ParameterError
        If a value is not a finite number in its range, or two data sets have one name.

    Examples
    --------
    >>> GaussianMixture(alpha=3, rho=0.2)
    GaussianMixture(alpha=3.0, rho=0.2, delta=1.0)
    """

    alpha: float
    rho: float = 0.5
    delta: float = 1.0
    label_noise: float = 0.0
    further: tuple[DataSet, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "alpha": require_alpha("alpha", self.alpha),
            "rho": require_number("rho", self.rho, above=0, below=1, allowed="a number in the open interval (0, 1)"),
            "delta": require_number("delta", self.delta, above=0, allowed="a finite number > 0"),
            "label_noise": require_noise("label_noise", self.label_noise),
            "further": (self.further,) if isinstance(self.further, DataSet) else self.further,
        }
        for name, value in checks.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.further, Sequence):
            raise ParameterError(f"further must be a sequence of DataSets, got {self.further!r}")
        object.__setattr__(self, "further", tuple(self.further))
        names = [TRAINING]
        for further in self.further:
            if not isinstance(further, DataSet):
                raise ParameterError(f"further must hold DataSets, got {further!r}")
            if further.name in names:
                raise ParameterError(f"name of a data set must differ from others, {further.name!r} is taken")
            names.append(further.name)

    def __repr__(self) -> str:
        shown = f"alpha={self.alpha!r}, rho={self.rho!r}, delta={self.delta!r}"
        for name in ("label_noise", "further"):
            if getattr(self, name):
                shown += f", {name}={getattr(self, name)!r}"
        return f"GaussianMixture({shown})"

    @cached_property
    def sets(self) -> tuple[DataSet, ...]:
        """All data sets, ``training`` first."""
        return (DataSet(TRAINING, self.alpha, self.label_noise), *self.further)

    def data_set(self, name: str) -> DataSet:
        """The data set of this name; ParameterError, listing the known ones, if there is none."""
        for found in self.sets:
            if found.name == name:
                return found
        known = ", ".join(found.name for found in self.sets)
        raise ParameterError(f"unknown data set {name!r}; there are {known}")


def total_alpha(data: GaussianMixture, sets: Sequence[str]) -> float:
    """Samples per input dimension of several data sets together."""
    return sum(data.data_set(name).alpha for name in sets)
