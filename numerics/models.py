"""What a user describes: the data and the estimators.  Frozen, and validated once, here at the border."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

from theory.losses import Loss


class ParameterError(ValueError):
    """A parameter outside its allowed range; the message names the parameter and what is allowed."""


def require_number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
    allowed: str,
) -> float:
    """Return ``value`` as a finite float inside the given interval.

    Raises
    ------
    ParameterError
        If it is not a finite real number, or outside; the message reads "<name> must be <allowed>, got ...".
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ParameterError(f"{name} must be {allowed}, got {value!r}")
    number = float(value)
    inside = above < number < below and at_least <= number <= at_most
    if not (math.isfinite(number) and inside):
        raise ParameterError(f"{name} must be {allowed}, got {value!r}")
    return number


@dataclass(frozen=True)
class GaussianMixture:
    """Two Gaussian clouds ``x = s v/sqrt(N) + sqrt(Delta) z`` with ``v_i, z_i ~ N(0, 1)`` (Saglietti & Zdeborova 2021, Sec. 2).

    Parameters
    ----------
    alpha : float
        Samples per input dimension, ``alpha = M/N > 0``.
    rho : float
        Probability of the positive class (``y = 1``, ``s = +1``), in (0, 1).
    delta : float
        Noise variance ``Delta > 0`` of every coordinate.

    Raises
    ------
    ParameterError
        If a value is not a finite number in its range.
    """

    alpha: float
    rho: float = 0.5
    delta: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "alpha": require_number("alpha", self.alpha, above=0, allowed="a finite number > 0"),
            "rho": require_number("rho", self.rho, above=0, below=1, allowed="a number in the open interval (0, 1)"),
            "delta": require_number("delta", self.delta, above=0, allowed="a finite number > 0"),
        }
        for name, value in checks.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Estimator:
    """One stage of a chain: ``argmin sum_mu loss(h_mu; y_mu, earlier logits) + (ridge/2)|w|^2`` on the active weights.

    Parameters
    ----------
    loss : theory.losses.Loss
        Convex loss in this stage's logit ``h = w.x/sqrt(N) + b``; it may look at the label and at earlier logits.
    ridge : float
        Strength ``lambda >= 0`` of the L2 penalty on the weights; the bias ``b`` is not regularised.  0 stands for the limit
        ``lambda -> 0`` from above; see :mod:`numerics.limits`.
    eta : float
        Fraction of trainable weights, in (0, 1]; the others stay 0.  In a chain the active weights are nested.
    name : str or None
        How sweeps and plots call this stage; by default "teacher", "student", "stage3", ...

    Raises
    ------
    ParameterError
        If a value is not a finite number in its range, or ``loss`` is not a :class:`theory.losses.Loss`.
    """

    loss: Loss
    ridge: float
    eta: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loss, Loss):
            raise ParameterError(f"loss must be a theory.losses.Loss, got {self.loss!r}")
        object.__setattr__(
            self, "ridge", require_number("ridge", self.ridge, at_least=0, allowed="a finite number >= 0")
        )
        object.__setattr__(
            self, "eta", require_number("eta", self.eta, above=0, at_most=1, allowed="a number in (0, 1]")
        )
        if self.name is not None and (not isinstance(self.name, str) or not self.name.isidentifier()):
            raise ParameterError(f"name must be a Python identifier or None, got {self.name!r}")


@dataclass(frozen=True)
class Chain:
    """Estimators trained one after the other on the same samples, checked to fit together."""

    stages: tuple[Estimator, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ParameterError("a chain needs at least one Estimator")
        for number, stage in enumerate(self.stages, start=1):
            if not isinstance(stage, Estimator):
                raise ParameterError(f"stage {number} must be an Estimator, got {stage!r}")
            try:
                stage.loss.stages(number)
            except ValueError as error:
                raise ParameterError(f"loss of stage {number}: {error}") from None
        names = [self.name(number) for number in range(1, len(self.stages) + 1)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ParameterError(f"name must differ between stages, {', '.join(repeated)} is used twice")

    @classmethod
    def of(cls, stages: Chain | Estimator | Sequence[Estimator]) -> Chain:
        """Accept a chain, a single estimator, or a sequence of estimators."""
        if isinstance(stages, Chain):
            return stages
        if isinstance(stages, Estimator):
            return cls((stages,))
        try:
            return cls(tuple(stages))
        except TypeError:
            raise ParameterError(f"a chain must be an Estimator or a sequence of them, got {stages!r}") from None

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: int) -> Estimator:
        return self.stages[index]

    def name(self, number: int) -> str:
        """Name of stage ``number`` (1-based)."""
        given = self.stages[number - 1].name
        return given or {1: "teacher", 2: "student"}.get(number, f"stage{number}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name(number) for number in range(1, len(self) + 1))


def with_parameter(data: GaussianMixture, chain: Chain, path: str, value: float) -> tuple[GaussianMixture, Chain]:
    """Return copies in which the parameter called ``path`` has the given value.

    ``path`` is ``alpha``, ``rho``, ``delta``, or ``<stage>.<parameter>`` with the stage's name and ``ridge``, ``eta`` or
    a parameter of its loss (``student.temperature``).

    Raises
    ------
    ParameterError
        If there is no such parameter (the message lists those that exist), or the value is not allowed.
    """
    stage_name, dot, parameter = path.rpartition(".")
    if not dot and parameter in {"alpha", "rho", "delta"}:
        return replace(data, **{parameter: value}), chain
    if dot and stage_name in chain.names:
        index = chain.names.index(stage_name)
        stage = chain[index]
        changed = None
        if parameter in {"ridge", "eta"}:
            changed = replace(stage, **{parameter: value})
        elif parameter in stage.loss.parameters:
            try:
                changed = replace(stage, loss=stage.loss.with_parameters(**{parameter: value}))
            except ValueError as error:
                raise ParameterError(f"{path}: {error}") from None
        if changed is not None:
            return data, Chain((*chain.stages[:index], changed, *chain.stages[index + 1 :]))
    raise ParameterError(f"unknown parameter {path!r}; allowed are {', '.join(parameter_paths(chain))}")


def parameter_paths(chain: Chain) -> tuple[str, ...]:
    """All names that :func:`with_parameter` accepts for this chain."""
    paths = ["alpha", "rho", "delta"]
    for name, stage in zip(chain.names, chain.stages, strict=True):
        paths += [f"{name}.{parameter}" for parameter in ("ridge", "eta", *stage.loss.parameters)]
    return tuple(paths)
