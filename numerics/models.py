"""What a user describes: the data and the stages of a chain.  Frozen, and validated once, here at the border.

What one object can know it checks itself; what takes both data and chain is checked by :func:`check_fit`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from typing import ClassVar

from theory.formula import MODEL_NAMES
from theory.losses import LinearLoss, Loss

TRAINING = "training"
"""Name of the data set that every mixture has."""

ROUNDING = 1e-12
"""Fractions are compared up to this."""


class ParameterError(ValueError):
    """A parameter outside its allowed range; the message names the parameter and what is allowed.

    Examples
    --------
    >>> GaussianMixture(alpha=1.0, rho=2.0)
    Traceback (most recent call last):
    numerics.models.ParameterError: rho must be a number in the open interval (0, 1), got 2.0
    """


class ConvergenceWarning(RuntimeWarning):
    """Issued with a result that did not converge.

    Examples
    --------
    >>> import warnings
    >>> from numerics import solve
    >>> from theory.losses import CrossEntropy
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     solution = solve(GaussianMixture(alpha=2.0), Estimator(CrossEntropy(), ridge=0.1), max_iterations=1)
    >>> caught[0].category.__name__, solution.converged
    ('ConvergenceWarning', False)
    """


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
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    inside = above < number < below and at_least <= number <= at_most
    if not (math.isfinite(number) and inside):
        raise ParameterError(f"{name} must be {allowed}, got {value!r}")
    return number


def _require_noise(name: str, value: object) -> float:
    return require_number(name, value, at_least=0, below=0.5, allowed="a number in [0, 1/2)")


def _require_alpha(name: str, value: object) -> float:
    return require_number(name, value, above=0, allowed="a finite number > 0")


def _require_name(holder: Stage) -> None:
    """Check the name of a stage, and set it in one spelling: an accent may be typed as part of its letter or after it."""
    name = holder.name
    if name is not None and (not isinstance(name, str) or not name.isidentifier()):
        raise ParameterError(f"name must be a Python identifier or None, got {name!r}")
    object.__setattr__(holder, "name", None if name is None else _spelt(name))


def _spelt(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _require_sets(sets: object) -> tuple[str, ...]:
    chosen = (sets,) if isinstance(sets, str) else tuple(sets) if isinstance(sets, Sequence) else ()
    if not chosen or not all(isinstance(name, str) for name in chosen) or len(set(chosen)) < len(chosen):
        raise ParameterError(f"sets must be the name of a data set or several different ones, got {sets!r}")
    return tuple(map(_spelt, chosen))


def _require_overlap(value: object) -> float | None:
    if value is None:
        return None
    return require_number("mask_overlap", value, at_least=0, at_most=1, allowed="a number in [0, 1] or None")


def _require_finite(name: str, value: object) -> float:
    return require_number(name, value, allowed="a finite number")


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
class DataSet:
    """A further set of samples of the same mixture (same v, rho, Delta), of its own size.

    Parameters
    ----------
    name : str
        What stages and sweeps call it.
    alpha : float
        Its samples per input dimension, > 0.
    label_noise : float
        Probability theta in [0, 1/2) with which a label seen in training is flipped.

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
        object.__setattr__(self, "name", _spelt(self.name))
        object.__setattr__(self, "alpha", _require_alpha("alpha", self.alpha))
        object.__setattr__(self, "label_noise", _require_noise("label_noise", self.label_noise))


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
        Probability theta in [0, 1/2) with which a training label is flipped; the cloud a sample comes from, and test labels,
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
            "alpha": _require_alpha("alpha", self.alpha),
            "rho": require_number("rho", self.rho, above=0, below=1, allowed="a number in the open interval (0, 1)"),
            "delta": require_number("delta", self.delta, above=0, allowed="a finite number > 0"),
            "label_noise": _require_noise("label_noise", self.label_noise),
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

    def __post_init__(self) -> None:
        if not isinstance(self.loss, Loss):
            raise ParameterError(f"loss must be a theory.losses.Loss, got {self.loss!r}")
        _require_own_names(self.loss)
        checks = {
            "ridge": require_number("ridge", self.ridge, at_least=0, allowed="a finite number >= 0"),
            "eta": _require_eta(self.eta),
            "bias": None if self.bias is None else _require_finite("bias", self.bias),
            "sets": _require_sets(self.sets),
            "mask_overlap": _require_overlap(self.mask_overlap),
        }
        for name, value in checks.items():
            object.__setattr__(self, name, value)
        _require_name(self)

    @property
    def fixed_bias(self) -> float | None:
        """Value of the bias, None if it is learned."""
        if self.bias is None and self.loss.curvature == 0:
            return 0.0
        return self.bias


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

    eta: ClassVar[float] = 1.0
    sets: ClassVar[tuple[str, ...]] = ()
    mask_overlap: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("magnetization", "norm_squared", "bias"):
            object.__setattr__(self, name, _require_finite(name, getattr(self, name)))
        least = self.magnetization * self.magnetization  # infinite where it is too large, while ** would raise
        if not self.norm_squared > 0 or self.norm_squared < least * (1 - ROUNDING):
            raise ParameterError(
                f"norm_squared must be > 0 and at least magnetization^2={least:g}, got {self.norm_squared:g}"
            )
        _require_name(self)


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

    def __post_init__(self) -> None:
        checks = {
            "ridge": None
            if self.ridge is None
            else require_number("ridge", self.ridge, above=0, allowed="> 0 or None"),
            "bias": _require_finite("bias", self.bias),
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

    eta: ClassVar[float] = 1.0
    mask_overlap: ClassVar[None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", _require_sets(self.sets))
        _require_name(self)

    def resolved(self, data: GaussianMixture) -> Estimator:
        """The same as an :class:`Estimator`; ``b = Delta Q/2 log(rho/(1-rho))``, ``Q = 1 + Delta/alpha``."""
        alpha = total_alpha(data, self.sets)
        bias = 0.5 * data.delta * (1 + data.delta / alpha) * math.log(data.rho / (1 - data.rho))
        return Estimator(LinearLoss(), alpha, 1.0, self.name, bias, self.sets)


Stage = Estimator | Frozen | Hebbian | BayesOptimal
_STAGES = (Estimator, Frozen, Hebbian, BayesOptimal)


def total_alpha(data: GaussianMixture, sets: Sequence[str]) -> float:
    """Samples per input dimension of several data sets together."""
    return sum(data.data_set(name).alpha for name in sets)


@dataclass(frozen=True)
class Chain:
    """Stages one after the other, each of which may look at those before, checked to fit together.

    Examples
    --------
    >>> from theory.losses import CrossEntropy, Distillation
    >>> chain = Chain.of([Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=0.01, name="pupil")])
    >>> chain.names, len(chain)
    (('teacher', 'pupil'), 2)
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.stages, Sequence):
            raise ParameterError(f"stages must be a sequence of stages, got {self.stages!r}")
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ParameterError("a chain needs at least one stage")
        for number, stage in enumerate(self.stages, start=1):
            if not isinstance(stage, _STAGES):
                kinds = "an Estimator, Frozen, Hebbian or BayesOptimal"
                raise ParameterError(f"stage {number} must be {kinds}, got {stage!r}")
            if isinstance(stage, Estimator):
                try:
                    stage.loss.stages(number)
                except ValueError as error:
                    raise ParameterError(f"loss of stage {number}: {error}") from None
        names = self.names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ParameterError(f"name must differ between stages, {', '.join(repeated)} is used twice")
        if self.stages[0].mask_overlap is not None:
            raise ParameterError(f"mask_overlap of {names[0]} needs a stage before it; the first stage has none")

    @classmethod
    def of(cls, stages: Chain | Stage | Sequence[Stage]) -> Chain:
        """Accept a chain, a single stage, or a sequence of stages."""
        if isinstance(stages, Chain):
            return stages
        if isinstance(stages, _STAGES):
            return cls((stages,))
        try:
            return cls(tuple(stages))
        except TypeError:
            raise ParameterError(f"a chain must be a stage or a sequence of them, got {stages!r}") from None

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: int) -> Stage:
        return self.stages[index]

    def name(self, number: int) -> str:
        """Name of stage ``number`` (1-based)."""
        given = self.stages[number - 1].name
        return given or {1: "teacher", 2: "student"}.get(number, f"stage{number}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name(number) for number in range(1, len(self) + 1))

    def teachers(self, number: int) -> tuple[int, ...]:
        """Stages (from 1) that ``teacher_...`` observables and distances of stage ``number`` compare it with, by their mean logit.

        Those are the stages its loss is taught by.  Where a loss has no teacher, or its formula names several logits without
        saying how they teach, it is the stage before; the first stage has none.

        Examples
        --------
        >>> from theory.losses import CrossEntropy, Distillation
        >>> stages = [Estimator(CrossEntropy(), 0.1, name=name) for name in ("first", "second")]
        >>> chain = Chain.of([*stages, Estimator(Distillation(teacher=1), 0.1), Estimator(Distillation(teacher=(1, 3)), 0.1)])
        >>> [chain.teachers(number) for number in (1, 2, 3, 4)]
        [(), (1,), (1,), (1, 3)]
        """
        if number == 1:
            return ()
        stage = self.stages[number - 1]
        seen = sorted(set(stage.loss.stages(number))) if isinstance(stage, Estimator) else []
        if len(seen) == 1 or (seen and isinstance(stage.loss.teacher, tuple)):
            return tuple(seen)
        return (number - 1,)

    def resolved(self, data: GaussianMixture) -> tuple[Estimator | Frozen, ...]:
        """The stages with Hebbian and Bayes-optimal ones written as the Estimators they are on these data."""
        return tuple(
            stage.resolved(data) if isinstance(stage, Hebbian | BayesOptimal) else stage for stage in self.stages
        )


def check_fit(data: GaussianMixture, chain: Chain) -> None:
    """Check what takes both data and chain.

    Raises
    ------
    ParameterError
        If a stage is trained on a data set that does not exist, nobody is trained on one, a data set and a stage share a name,
        masks cannot overlap as asked, or a Bayes-optimal stage is given noisy labels.
    """
    known = [found.name for found in data.sets]
    used: set[str] = set()
    for number, (name, stage) in enumerate(zip(chain.names, chain.stages, strict=True), start=1):
        if name in known:
            raise ParameterError(f"name {name!r} is both a stage and a data set: give one of them another name")
        for wanted in stage.sets:
            if wanted not in known:
                raise ParameterError(f"sets of {name}: unknown data set {wanted!r}; there are {', '.join(known)}")
            if isinstance(stage, BayesOptimal) and data.data_set(wanted).label_noise > 0:
                raise ParameterError(
                    f"{name} is Bayes-optimal for labels without noise only, but label_noise of {wanted} is > 0; "
                    "take a Hebbian stage"
                )
        used.update(stage.sets)
        if stage.mask_overlap is not None:
            before, share = chain.stages[number - 2].eta, stage.mask_overlap
            inside, outside = share * stage.eta, (1 - share) * stage.eta
            if inside > before + ROUNDING or outside > 1 - before + ROUNDING:
                raise ParameterError(
                    f"mask_overlap={share:g} of {name} is impossible: of eta={stage.eta:g}, {inside:g} would lie inside the mask "
                    f"of {chain.name(number - 1)}, which has {before:g}, and {outside:g} outside"
                )
    unused = [name for name in known if name not in used]
    if unused and (used or len(known) > 1):  # frozen stages alone need no data
        raise ParameterError(
            f"no stage is trained on data set {unused[-1]!r}; name it in the sets of one, or leave it out"
        )


_DATA_PARAMETERS = ("alpha", "rho", "delta", "label_noise")
_SET_PARAMETERS = ("alpha", "label_noise")


def with_parameter(data: GaussianMixture, chain: Chain, path: str, value: float) -> tuple[GaussianMixture, Chain]:
    """Return copies in which the parameter called ``path`` has the given value.

    ``path`` is ``alpha``, ``rho``, ``delta``, ``label_noise``; ``<set>.alpha`` or ``<set>.label_noise`` with the name of a
    further data set; or ``<stage>.<parameter>`` with the stage's name and ``ridge``, ``eta``, a parameter of its loss
    (``student.temperature``), ``bias`` or ``mask_overlap`` where they are numbers, or what a special stage has.

    Raises
    ------
    ParameterError
        If there is no such parameter (the message lists those that exist), or the value is not allowed.

    Examples
    --------
    >>> from theory.losses import CrossEntropy
    >>> data, chain = with_parameter(GaussianMixture(1.0), Chain.of(Estimator(CrossEntropy(), ridge=0.1)), "teacher.ridge", 0.5)
    >>> chain[0].ridge
    0.5
    """
    owner, dot, parameter = _spelt(path).rpartition(".")
    if not dot and parameter in _DATA_PARAMETERS:
        return replace(data, **{parameter: value}), chain
    if dot and owner in chain.names:
        index = chain.names.index(owner)
        stage = chain[index]
        changed = None
        if parameter in _own_parameters(stage):
            changed = replace(stage, **{parameter: value})
        elif isinstance(stage, Estimator) and parameter in stage.loss.parameters:
            try:
                changed = replace(stage, loss=stage.loss.with_parameters(**{parameter: value}))
            except ValueError as error:
                raise ParameterError(f"{path}: {error}") from None
        if changed is not None:
            return data, Chain((*chain.stages[:index], changed, *chain.stages[index + 1 :]))
    if dot and parameter in _SET_PARAMETERS and owner in {found.name for found in data.further}:
        further = [replace(s, **{parameter: value}) if s.name == owner else s for s in data.further]
        return replace(data, further=tuple(further)), chain
    raise ParameterError(f"unknown parameter {path!r}; allowed are {', '.join(parameter_paths(chain, data))}")


def parameter_value(data: GaussianMixture, chain: Chain, path: str) -> float:
    """Value of the parameter called ``path``; ParameterError if there is none."""
    if path not in parameter_paths(chain, data):
        raise ParameterError(f"unknown parameter {path!r}; allowed are {', '.join(parameter_paths(chain, data))}")
    return parameter_values(data, chain)[path]


def parameter_values(data: GaussianMixture, chain: Chain) -> dict[str, float]:
    """All parameters that :func:`parameter_paths` lists, and their values."""
    values = {name: getattr(data, name) for name in _DATA_PARAMETERS}
    for further in data.further:
        values |= {f"{further.name}.{parameter}": getattr(further, parameter) for parameter in _SET_PARAMETERS}
    for name, stage in zip(chain.names, chain.stages, strict=True):
        values |= {f"{name}.{parameter}": getattr(stage, parameter) for parameter in _own_parameters(stage)}
        if isinstance(stage, Estimator):
            for parameter, value in stage.loss.parameters.items():
                values.setdefault(f"{name}.{parameter}", value)
    return values


def parameter_paths(chain: Chain, data: GaussianMixture | None = None) -> tuple[str, ...]:
    """Names that :func:`with_parameter` accepts for this chain; with the data, those of label noise and data sets too.

    Examples
    --------
    >>> from theory.losses import CrossEntropy
    >>> parameter_paths(Chain.of(Estimator(CrossEntropy(), ridge=0.1)), GaussianMixture(alpha=1.0))
    ('alpha', 'rho', 'delta', 'label_noise', 'teacher.ridge', 'teacher.eta', 'teacher.smoothing')
    """
    paths = ["alpha", "rho", "delta"]
    if data is not None:
        paths.append("label_noise")
        paths += [f"{further.name}.{parameter}" for further in data.further for parameter in _SET_PARAMETERS]
    for name, stage in zip(chain.names, chain.stages, strict=True):
        paths += [f"{name}.{parameter}" for parameter in _own_parameters(stage)]
        if isinstance(stage, Estimator):
            paths += [f"{name}.{parameter}" for parameter in stage.loss.parameters]
    return tuple(paths)


def _own_parameters(stage: Stage) -> tuple[str, ...]:
    """Numbers of a stage, beside those of its loss, that can be varied."""
    names = ("ridge", "eta", "bias", "mask_overlap", "magnetization", "norm_squared")
    held = {item.name for item in fields(stage)}
    return tuple(name for name in names if name in held and getattr(stage, name) is not None)
