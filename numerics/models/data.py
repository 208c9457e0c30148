"""Where samples come from: a mixture of two classes, or a linear rule; and the data sets drawn from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

from numerics.models.checks import ParameterError, require_alpha, require_noise, require_number, spelt
from numerics.models.inputs import WHITE, Inputs
from numerics.models.link import mean_disagreement

TRAINING = "training"
"""Name of the data set that all data have."""

OUTPUTS = ("identity", "sign", "probit", "logit")
"""What a linear rule may make of its field."""


@dataclass(frozen=True)
class DataSet:
    """A further set of samples from the same source (the same v, or the same rule), of its own size.

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


class ClassLaw(NamedTuple):
    """Samples with one law of their inputs: their share, the sign s that shifts them by ``s v/sqrt(N)``, and their label y."""

    weight: float
    sign: float
    label: float


class DataModel(ABC):
    """What everybody asks of data, whatever they are: data sets, classes, inputs, the rule that labels them, parameters.

    Attributes
    ----------
    alpha, label_noise, further, inputs
        Of every kind of data.
    """

    alpha: float
    label_noise: float
    further: tuple[DataSet, ...]
    inputs: Inputs

    title: ClassVar[str] = "Gaussian mixture"
    """In reports."""

    ruled: ClassVar[bool] = False
    """Whether labels are those of a rule, whose logit comes before those of the stages."""

    has_real_labels = False
    """Whether labels are real numbers, not signs."""

    many_classes: ClassVar[bool] = False
    """Whether there may be more than two classes, each with a logit of its own."""

    sampled: ClassVar[bool] = False
    """Whether the laws are estimates from samples, on which errors are expected as well (:mod:`numerics.models.measured`)."""

    in_clusters: ClassVar[bool] = False
    """Whether inputs come in clusters, each with order parameters of its own."""

    @property
    @abstractmethod
    def own_parameters(self) -> tuple[str, ...]:
        """Those of :attr:`parameters` that are not of the inputs."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the numbers that may be varied, those of data sets aside."""
        return (*self.own_parameters, *self.inputs.parameters)

    @property
    @abstractmethod
    def variance(self) -> float:
        """Of every coordinate of an input, given its class."""

    @property
    @abstractmethod
    def classes(self) -> tuple[ClassLaw, ...]:
        """Laws of the inputs, and the labels that go with them."""

    @property
    def field_noise(self) -> float:
        """Variance of what a rule adds to its field; 0 where there is none."""
        return 0.0

    @property
    def signal_variance(self) -> float:
        """Of the field of a rule, without noise."""
        return self.inputs.signal_variance

    @property
    def signal(self) -> float:
        """Size of what is to be learned: |v|^2/N, or the variance of the field of the rule."""
        return self.signal_variance if self.ruled else self.inputs.signal

    @property
    def link_slope(self) -> float:
        """That of the sigmoid with which a rule draws labels (:mod:`numerics.models.link`); infinite where it gives their sign."""
        return math.inf

    @property
    def disagreement(self) -> float:
        """Probability that a label that is drawn is not the sign of the rule's logit, before noise flips it."""
        return mean_disagreement(self.link_slope * math.sqrt(self.signal_variance))

    @property
    def positive_share(self) -> float:
        """Probability of the label +1."""
        return sum(law.weight for law in self.classes if law.label == 1.0) if len(self.classes) > 1 else 0.5

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

    def value_of(self, name: str) -> object:
        """Of one of the ``parameters``."""
        return getattr(self.inputs if name in self.inputs.parameters else self, name)

    def with_value(self, name: str, value: object) -> DataModel:
        """A copy in which one of ``parameters`` has another value."""
        if name in self.inputs.parameters:
            return replace(self, inputs=replace(self.inputs, **{name: value}))
        return replace(self, **{name: value})

    def _check(self, **values: object) -> None:
        """Set checked values, and the further data sets."""
        if not isinstance(self.inputs, Inputs):
            raise ParameterError(f"inputs must be Isotropic, a Spectrum, a PowerLaw or Dense, got {self.inputs!r}")
        values["alpha"] = require_alpha("alpha", self.alpha)
        values["label_noise"] = require_noise("label_noise", self.label_noise)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        further = require_data_sets((self.further,) if isinstance(self.further, DataSet) else self.further)
        for found in further:
            if type(found) is not DataSet:
                raise ParameterError(f"further must hold DataSets of two classes, got {found!r}")
        object.__setattr__(self, "further", further)


def require_data_sets(further: object) -> tuple[DataSet, ...]:
    """The sequence as a tuple; ParameterError if it holds something else than data sets, or two have one name."""
    if not isinstance(further, Sequence):
        raise ParameterError(f"further must be a sequence of DataSets, got {further!r}")
    names = [TRAINING]
    for found in further:
        if not isinstance(found, DataSet):
            raise ParameterError(f"further must hold DataSets, got {found!r}")
        if found.name in names:
            raise ParameterError(f"name of a data set must differ from others, {found.name!r} is taken")
        names.append(found.name)
    return tuple(further)


@dataclass(frozen=True)
class GaussianMixture(DataModel):
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
    inputs : Inputs
        Variances of the coordinates; by default all are alike (:mod:`numerics.models.inputs`).

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
    inputs: Inputs = WHITE

    own_parameters: ClassVar[tuple[str, ...]] = ("alpha", "rho", "delta", "label_noise")

    def __post_init__(self) -> None:
        self._check(
            rho=require_number("rho", self.rho, above=0, below=1, allowed="a number in the open interval (0, 1)"),
            delta=require_number("delta", self.delta, above=0, allowed="a finite number > 0"),
        )

    @property
    def variance(self) -> float:
        return self.delta

    @property
    def classes(self) -> tuple[ClassLaw, ...]:
        return ClassLaw(self.rho, 1.0, 1.0), ClassLaw(1.0 - self.rho, -1.0, 0.0)

    def __repr__(self) -> str:
        shown = f"alpha={self.alpha!r}, rho={self.rho!r}, delta={self.delta!r}"
        for name in ("label_noise", "further", "inputs"):
            if getattr(self, name) and not (name == "inputs" and self.inputs.white):
                shown += f", {name}={getattr(self, name)!r}"
        return f"GaussianMixture({shown})"


@dataclass(frozen=True)
class LinearRule(DataModel):
    """Inputs ``x ~ N(0, 1)^N``, or with variances of their own, labelled by a rule ``theta`` with ``|theta|^2 = N``.

    With ``z = theta.x/sqrt(N)`` the label is

    - ``output="identity"`` (regression): the real number ``s = z + eps``;
    - ``"sign"``: the sign of z;  ``"probit"``: the sign of ``z + eps``;
    - ``"logit"``: +1 with probability ``sigmoid(slope z)``, else -1;

    with ``eps ~ N(0, noise)``.  The rule is part of the data, not a stage.

    Parameters
    ----------
    alpha : float
        Samples per input dimension of the training set, ``alpha = M/N > 0``.
    noise : float
        VARIANCE of eps, >= 0, of "identity" and "probit".  Of "sign" it is no part; for "logit" it is refused.
    output : str
        "identity", "sign", "probit" or "logit".
    label_noise : float
        Probability theta in [0, 1/2] with which a training label is flipped; 0 for real labels.
    further : sequence of DataSet
        More samples that some stages are trained on.
    inputs : Inputs
        Variances of the coordinates, and where the rule has its weight; by default all are alike.
    slope : float
        Of the sigmoid of "logit", > 0: infinite is "sign", 0 labels that say nothing.  For others it is refused.

    Raises
    ------
    ParameterError
        If a value is not in its range or belongs to another output, or real labels are to be flipped.

    Examples
    --------
    >>> LinearRule(alpha=2, noise=0.5)
    LinearRule(alpha=2.0, noise=0.5)
    >>> LinearRule(alpha=2, output="sign", label_noise=0.1)
    LinearRule(alpha=2.0, output='sign', label_noise=0.1)
    >>> LinearRule(alpha=2, output="logit", slope=3)
    LinearRule(alpha=2.0, output='logit', slope=3.0)
    """

    alpha: float
    noise: float = 0.25
    output: str = "identity"
    label_noise: float = 0.0
    further: tuple[DataSet, ...] = ()
    inputs: Inputs = WHITE
    slope: float = 1.0

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ParameterError(f"output must be one of {', '.join(OUTPUTS)}, got {self.output!r}")
        self._check(
            noise=require_number("noise", self.noise, at_least=0, allowed="a finite number >= 0"),
            slope=require_number("slope", self.slope, above=0, allowed="a finite number > 0"),
        )
        given = {item.name for item in fields(self) if getattr(self, item.name) != item.default}
        if self.output == "logit" and "noise" in given:
            raise ParameterError(
                f"noise must be left out with output='logit', got {self.noise:g}: see slope, label_noise"
            )
        if self.output != "logit" and "slope" in given:
            raise ParameterError(
                f"slope must be left out with output={self.output!r}, got {self.slope:g}: it is that of 'logit'"
            )
        for found in self.sets if self.has_real_labels else ():
            if found.label_noise:
                raise ParameterError(f"label_noise of {found.name} must be 0: real labels are not flipped; see noise")

    def __repr__(self) -> str:
        mine = ("alpha", *self.own_parameters, "output", "further", "inputs")
        shown = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in fields(self)
            if item.name in mine
            and (item.name in ("alpha", "noise", "slope") or getattr(self, item.name) != item.default)
        ]
        return f"LinearRule({', '.join(shown)})"

    ruled: ClassVar[bool] = True

    @property
    def title(self) -> str:
        return f"linear rule, {self.output} output"

    @property
    def has_real_labels(self) -> bool:
        """Whether labels are real numbers, not signs."""
        return self.output == "identity"

    @property
    def own_parameters(self) -> tuple[str, ...]:
        own = {"sign": (), "logit": ("slope",)}.get(self.output, ("noise",))
        return ("alpha", *own) if self.has_real_labels else ("alpha", *own, "label_noise")

    @property
    def field_noise(self) -> float:
        """Variance of what is added to z before the output."""
        return self.noise if "noise" in self.parameters else 0.0

    @property
    def link_slope(self) -> float:
        """See :attr:`DataModel.link_slope`."""
        return self.slope if self.output == "logit" else math.inf

    @property
    def variance(self) -> float:
        return 1.0

    @property
    def classes(self) -> tuple[ClassLaw, ...]:
        """One; y = 1 says that the label is the one that the rule gives."""
        return (ClassLaw(1.0, 0.0, 1.0),)


def total_alpha(data: DataModel, sets: Sequence[str]) -> float:
    """Samples per input dimension of several data sets together."""
    return sum(data.data_set(name).alpha for name in sets)
