"""The stages of a chain: trained, given, Hebbian, Bayes-optimal.  Frozen objects, validated once, here at the border.

All have ``given``, whether the weights are not trained, ``masked``, whether ``eta`` and ``mask_overlap`` can be chosen, and
``resolved(data)``, the Estimator or Frozen stage that they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from numerics.codegen import observables
from numerics.models.checks import ROUNDING, ParameterError, require_finite, require_number, spelt
from numerics.models.data import TRAINING, GaussianMixture, total_alpha
from numerics.models.dense import Seen
from numerics.models.features import RandomFeatures
from theory.losses import LinearLoss, Loss
from theory.parser import MODEL_NAMES


def _require_name(holder: Stage) -> None:
    """Check the name of a stage, and set it in one spelling: an accent may be typed as part of its letter or after it."""
    name = holder.name
    if name is not None and (not isinstance(name, str) or not name.isidentifier()):
        raise ParameterError(f"name must be a Python identifier or None, got {name!r}")
    object.__setattr__(holder, "name", None if name is None else spelt(name))


def _require_sets(sets: object) -> tuple[str, ...]:
    chosen = (sets,) if isinstance(sets, str) else tuple(sets) if isinstance(sets, Sequence) else ()
    if not chosen or not all(isinstance(name, str) for name in chosen) or len(set(chosen)) < len(chosen):
        raise ParameterError(f"sets must be the name of a data set or several different ones, got {sets!r}")
    return tuple(map(spelt, chosen))


def _require_overlap(value: object) -> float | None:
    if value is None:
        return None
    return require_number("mask_overlap", value, at_least=0, at_most=1, allowed="a number in [0, 1] or None")


def _require_own_names(loss: Loss) -> None:
    """A path such as ``student.ridge`` must mean one thing."""
    for key in loss.keys:
        if key in MODEL_NAMES:
            raise ParameterError(
                f"loss: its parameter {key!r} has the name of a parameter of the data or of a stage; give it another"
            )


def _require_eta(value: object) -> float:
    return require_number("eta", value, above=0, at_most=1, allowed="a number in (0, 1]")


@dataclass(frozen=True)
class Estimator:
    """One stage of a chain: ``argmin sum_mu loss(h_mu; y_mu, earlier logits) + (ridge/2)|w|^2`` on the active weights.

    Parameters
    ----------
    loss : theory.losses.Loss
        Convex loss in this stage's logit ``h = w.x/sqrt(N) + b``; it may look at the label and at earlier logits.
    ridge : float
        Strength ``lambda >= 0`` of the L2 penalty on the weights; the bias ``b`` is not regularised.  0 stands for the limit
        ``lambda -> 0`` from above; see :mod:`numerics.scalar.limits`.
    eta : float
        Fraction of trainable weights, in (0, 1]; the others stay 0.
    name : str or None
        How sweeps and plots call this stage; by default "teacher", "student", "stage3", ...
    bias : float or None
        Value the bias is fixed at; None if it is learned.  A loss without curvature would drive it to infinity, or nowhere:
        there None means 0.
    sets : str or sequence of str
        Names of the data sets whose samples it is trained on.  A loss may look at stages trained on others.
    mask_overlap : float or None
        None: the active weights are the first fraction ``eta``, so that masks are nested.  A number: that fraction of them lies
        inside the mask of the stage before, the rest outside, both drawn uniformly at random.
    features : RandomFeatures, FixedFeatures, LinearMap or None
        What it sees of an input; None: the input itself.

    Raises
    ------
    ParameterError
        If a value is not a finite number in its range, ``loss`` is not a :class:`theory.losses.Loss`, or a parameter of it
        has the name of one of the stage or the data.

    Examples
    --------
    >>> from numerics import solve
    >>> from theory.losses import CrossEntropy, Distillation
    >>> teacher = Estimator(CrossEntropy(), ridge=0.1)
    >>> student = Estimator(Distillation(mixing=1.0, temperature=1.0), ridge=1e-5, eta=0.5)
    >>> solution = solve(GaussianMixture(alpha=2.0, rho=0.2), [teacher, student])
    >>> round(solution[1].test_error, 6)
    0.201505
    """

    loss: Loss
    ridge: float
    eta: float = 1.0
    name: str | None = None
    bias: float | None = None
    sets: tuple[str, ...] = (TRAINING,)
    mask_overlap: float | None = None
    features: RandomFeatures | Seen | None = None

    given: ClassVar[bool] = False
    masked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.loss, Loss):
            raise ParameterError(f"loss must be a theory.losses.Loss, got {self.loss!r}")
        if self.features is not None and not isinstance(self.features, RandomFeatures | Seen):
            raise ParameterError(
                f"features must be RandomFeatures, FixedFeatures, a LinearMap or None, got {self.features!r}"
            )
        _require_own_names(self.loss)
        checks = {
            "ridge": require_number("ridge", self.ridge, at_least=0, allowed="a finite number >= 0"),
            "eta": _require_eta(self.eta),
            "bias": None if self.bias is None else require_finite("bias", self.bias),
            "sets": _require_sets(self.sets),
            "mask_overlap": _require_overlap(self.mask_overlap),
        }
        for name, value in checks.items():
            object.__setattr__(self, name, value)
        _require_name(self)

    def __repr__(self) -> str:
        shown = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in fields(self)
            if item.name != "features" or self.features is not None
        ]
        return f"Estimator({', '.join(shown)})"

    @property
    def fixed_bias(self) -> float | None:
        """Value of the bias, None if it is learned."""
        if self.bias is None and self.loss.curvature == 0:
            return 0.0
        return self.bias

    def resolved(self, data: GaussianMixture) -> Estimator:
        """Itself: nothing about it depends on the data."""
        return self


@dataclass(frozen=True)
class Frozen:
    """Given weights ``w = m v + sqrt(Q - m^2) z``, ``z_i ~ N(0, 1)`` independent of the data: nothing is trained.

    Parameters
    ----------
    magnetization, norm_squared : float
        m and Q with ``Q >= m^2``, ``Q > 0``.
    bias : float
    name : str or None
        As for an :class:`Estimator`.

    Raises
    ------
    ParameterError
        If a value is not in its range.

    Examples
    --------
    >>> from numerics import solve
    >>> from theory.losses import Distillation
    >>> chain = [Frozen(magnetization=1.0, norm_squared=1.5), Estimator(Distillation(), ridge=0.1)]
    >>> [round(stage.test_error, 6) for stage in solve(GaussianMixture(alpha=2.0, rho=0.2), chain)]
    [0.207108, 0.182226]
    """

    magnetization: float
    norm_squared: float
    bias: float = 0.0
    name: str | None = None

    given: ClassVar[bool] = True
    masked: ClassVar[bool] = False
    eta: ClassVar[float] = 1.0
    sets: ClassVar[tuple[str, ...]] = ()
    mask_overlap: ClassVar[None] = None
    features: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("magnetization", "norm_squared", "bias"):
            object.__setattr__(self, name, require_finite(name, getattr(self, name)))
        least = self.magnetization * self.magnetization  # infinite where it is too large, while ** would raise
        if not self.norm_squared > 0 or self.norm_squared < least * (1 - ROUNDING):
            raise ParameterError(
                f"norm_squared must be > 0 and at least magnetization^2={least:g}, got {self.norm_squared:g}"
            )
        _require_name(self)

    def resolved(self, data: GaussianMixture) -> Frozen:
        """Itself: nothing about it depends on the data."""
        return self

    @property
    def mean_square(self) -> float:
        """Of a weight."""
        return self.norm_squared


@dataclass(frozen=True)
class Rule(Frozen):
    """The rule of :class:`numerics.models.LinearRule`: the stage before all others, in the equations alone.

    Its logit is ``theta.x/sqrt(N) + eps``: eps is the field of weights on ``noise N`` inputs more, which no other stage sees.
    ``slope`` is that of the link (:mod:`numerics.models.link`).
    """

    magnetization: float = 0.0
    norm_squared: float = 1.0
    noise: float = 0.0
    slope: float = math.inf

    @property
    def mean_square(self) -> float:
        return 1.0


@dataclass(frozen=True)
class Hebbian:
    """Weights ``w = (1/ridge) sum_mu s_mu x_mu`` with the training signs s: the linear loss.

    Parameters
    ----------
    ridge : float or None
        > 0; None for the total alpha of its data sets, which gives ``m = 1 - 2 theta``.
    bias : float
        Not learned.
    name, sets, eta, mask_overlap
        As for an :class:`Estimator`.

    Raises
    ------
    ParameterError
        If a value is not in its range.

    Examples
    --------
    >>> from numerics import solve
    >>> stage = solve(GaussianMixture(alpha=2.0, rho=0.2), Hebbian())[0]
    >>> round(stage.magnetization, 9), round(stage.norm_squared, 9)
    (1.0, 1.5)
    """

    ridge: float | None = None
    bias: float = 0.0
    name: str | None = None
    sets: tuple[str, ...] = (TRAINING,)
    eta: float = 1.0
    mask_overlap: float | None = None

    given: ClassVar[bool] = False
    masked: ClassVar[bool] = True
    features: ClassVar[None] = None

    def __post_init__(self) -> None:
        checks = {
            "ridge": None
            if self.ridge is None
            else require_number("ridge", self.ridge, above=0, allowed="> 0 or None"),
            "bias": require_finite("bias", self.bias),
            "sets": _require_sets(self.sets),
            "eta": _require_eta(self.eta),
            "mask_overlap": _require_overlap(self.mask_overlap),
        }
        for name, value in checks.items():
            object.__setattr__(self, name, value)
        _require_name(self)

    def resolved(self, data: GaussianMixture) -> Estimator:
        """The same as an :class:`Estimator`."""
        ridge = total_alpha(data, self.sets) if self.ridge is None else self.ridge
        return Estimator(LinearLoss(), ridge, self.eta, self.name, self.bias, self.sets, self.mask_overlap)


@dataclass(frozen=True)
class BayesOptimal:
    """The estimator of least test error: Hebbian with ``ridge = alpha`` and the bias that the class weights call for.

    Parameters
    ----------
    name, sets
        As for an :class:`Estimator`.  The labels of its data sets must be free of noise.

    Examples
    --------
    >>> from numerics import bayes_error, solve
    >>> solution = solve(GaussianMixture(alpha=2.0, rho=0.2, delta=1.0), BayesOptimal())
    >>> round(solution[0].test_error, 9) == round(bayes_error(2.0, 0.2, 1.0), 9)
    True
    """

    name: str | None = None
    sets: tuple[str, ...] = (TRAINING,)

    given: ClassVar[bool] = False
    masked: ClassVar[bool] = False
    eta: ClassVar[float] = 1.0
    mask_overlap: ClassVar[None] = None
    features: ClassVar[None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", _require_sets(self.sets))
        _require_name(self)

    def resolved(self, data: GaussianMixture) -> Estimator:
        """The same as an :class:`Estimator`, with the bias of :func:`theory.observables.bayes_bias` at ``Q = 1 + Delta/alpha``."""
        alpha = total_alpha(data, self.sets)
        bias = float(observables.bayes_bias()(1 + data.delta / alpha, data.delta, data.rho))
        return Estimator(LinearLoss(), alpha, 1.0, self.name, bias, self.sets)


Stage = Estimator | Frozen | Hebbian | BayesOptimal
STAGE_KINDS = (Estimator, Frozen, Hebbian, BayesOptimal)
