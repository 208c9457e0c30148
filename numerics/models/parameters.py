"""Parameters by name: which there are, their values, copies in which one is changed; how they are called, and where one looks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from numerics.models.chain import Chain
from numerics.models.checks import ParameterError, spelt
from numerics.models.data import DataModel, GaussianMixture
from numerics.models.dense import Seen
from numerics.models.features import RandomFeatures
from numerics.models.stages import Estimator, Stage


@dataclass(frozen=True)
class Description:
    """How a parameter is called, and the range that is looked at where nobody asks for another.

    Attributes
    ----------
    long_name : str
        In datasets.
    word, symbol : str
        On axes; the symbol in mathtext, empty if there is none.
    low, high : float
        Of axes and sliders, NaN where there are none; ``log`` if their scale is logarithmic.
    """

    long_name: str
    word: str
    symbol: str = ""
    low: float = math.nan
    high: float = math.nan
    log: bool = False


PARAMETERS = {
    "alpha": Description("samples per input, alpha = M/N", "samples per input", r"\alpha = M/N", 0.05, 6.0, True),
    "rho": Description("probability of the positive class", "fraction of positive samples", r"\rho", 0.02, 0.98),
    "delta": Description("noise variance Delta", "noise variance", r"\Delta", 0.1, 10.0, True),
    "ridge": Description("ridge", "ridge", r"\lambda", 1e-6, 10.0, True),
    "eta": Description("fraction of trainable weights", "trained fraction", r"\eta", 0.05, 1.0),
    "mixing": Description("mixing chi", "mixing", r"\chi", 0.0, 1.0),
    "temperature": Description("temperature T", "temperature", "T", 0.1, 100.0, True),
    "smoothing": Description("label smoothing", "label smoothing", r"\varepsilon", 0.0, 0.45),
    "gain": Description("gain", "gain", r"\beta"),
    "bias": Description("bias", "bias"),
    "similarity": Description("similarity of classes", "overlap of similar classes", "s", 0.0, 0.95),
    "noise": Description("variance of the noise of the rule", "noise of the rule", r"\sigma^2", 0.01, 4.0, True),
    "slope": Description("slope of the sigmoid of the rule", "slope of the rule", "c", 0.1, 100.0, True),
    "label_noise": Description("probability of a flipped training label", "label noise", r"\theta", 0.0, 0.45),
    "mask_overlap": Description("overlap of masks", "mask overlap"),
    "capacity": Description("exponent of the variances of the inputs", "capacity exponent", "a", 0.5, 4.0),
    "source": Description("exponent of the signal in the inputs", "source exponent", "r", 0.05, 2.0),
    "features": Description("features per input, p/N", "features per input", "p/N", 0.05, 10.0, True),
    "magnetization": Description("magnetization m", "magnetization"),
    "norm_squared": Description("squared norm Q", "norm squared"),
}
"""Parameters by their last name: that of data and data sets, or of a stage and its loss."""

_SET_PARAMETERS = ("alpha", "label_noise")


def described(path: str) -> Description:
    """What is known of the parameter called ``path``; one that is not in the table is called by its name."""
    name = path.rpartition(".")[2]
    return PARAMETERS.get(name) or Description(path, name.replace("_", " "))


def with_parameter(data: DataModel, chain: Chain, path: str, value: float) -> tuple[DataModel, Chain]:
    """Return copies in which the parameter called ``path`` has the given value.

    ``path`` is that of the data (``alpha``, ``rho``, ``delta``, ``label_noise``; ``noise`` or ``slope`` of a rule);
    ``<set>.alpha`` or ``<set>.label_noise`` with the name of a further data set; or ``<stage>.<parameter>`` with the stage's
    name and ``ridge``, ``eta``, a parameter of its loss (``student.temperature``), ``bias`` or ``mask_overlap`` where they are
    numbers, or what a special stage has.

    Raises
    ------
    ParameterError
        If there is no such parameter (the message lists those that exist), or the value is not allowed.

    Examples
    --------
    >>> from numerics import Chain, Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy
    >>> data, chain = with_parameter(GaussianMixture(1.0), Chain.of(Estimator(CrossEntropy(), ridge=0.1)), "teacher.ridge", 0.5)
    >>> chain[0].ridge
    0.5
    """
    owner, dot, parameter = spelt(path).rpartition(".")
    if not dot and parameter in data.parameters:
        return data.with_value(parameter, value), chain
    if dot and owner in chain.names:
        index = chain.names.index(owner)
        stage = chain[index]
        changed = None
        if parameter in _own_parameters(stage):
            changed = replace(stage, **{parameter: _changed(getattr(stage, parameter), value)})
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


def allowed_in_between(chain: Chain, path: str) -> bool:
    """Whether :func:`with_parameter` takes all values between any two that it takes: where a formula is convex is no interval."""
    owner, _, parameter = spelt(path).rpartition(".")
    loss = chain[owner].loss if owner in chain.names and isinstance(chain[owner], Estimator) else None
    return loss is None or not loss.is_formula or parameter not in loss.parameters


def parameter_value(data: DataModel, chain: Chain, path: str) -> float:
    """Value of the parameter called ``path``; ParameterError if there is none."""
    if path not in parameter_paths(chain, data):
        raise ParameterError(f"unknown parameter {path!r}; allowed are {', '.join(parameter_paths(chain, data))}")
    return parameter_values(data, chain)[path]


def parameter_values(data: DataModel, chain: Chain) -> dict[str, float]:
    """All parameters that :func:`parameter_paths` lists, and their values."""
    values = {name: data.value_of(name) for name in data.parameters}
    for further in data.further:
        values |= {f"{further.name}.{parameter}": getattr(further, parameter) for parameter in _SET_PARAMETERS}
    for name, stage in zip(chain.names, chain.stages, strict=True):
        values |= {f"{name}.{key}": _number(getattr(stage, key)) for key in _own_parameters(stage)}
        if isinstance(stage, Estimator):
            for parameter, value in stage.loss.parameters.items():
                values.setdefault(f"{name}.{parameter}", value)
    return values


def parameter_paths(chain: Chain, data: DataModel | None = None) -> tuple[str, ...]:
    """Names that :func:`with_parameter` accepts for this chain; with the data, those of label noise and data sets too.

    Examples
    --------
    >>> from numerics import Chain, Estimator, GaussianMixture
    >>> from theory.losses import CrossEntropy
    >>> parameter_paths(Chain.of(Estimator(CrossEntropy(), ridge=0.1)), GaussianMixture(alpha=1.0))
    ('alpha', 'rho', 'delta', 'label_noise', 'teacher.ridge', 'teacher.eta', 'teacher.smoothing')
    """
    paths = list(GaussianMixture.own_parameters[:-1])
    if data is not None:
        paths = list(data.parameters)
        paths += [f"{further.name}.{parameter}" for further in data.further for parameter in _SET_PARAMETERS]
    for name, stage in zip(chain.names, chain.stages, strict=True):
        paths += [f"{name}.{parameter}" for parameter in _own_parameters(stage)]
        if isinstance(stage, Estimator):
            paths += [f"{name}.{parameter}" for parameter in stage.loss.parameters]
    return tuple(paths)


def _number(held: float | RandomFeatures) -> float:
    return held.ratio if isinstance(held, RandomFeatures) else held


def _changed(held: float | RandomFeatures, value: float) -> float | RandomFeatures:
    return replace(held, ratio=value) if isinstance(held, RandomFeatures) else value


def _own_parameters(stage: Stage) -> tuple[str, ...]:
    """Numbers of a stage, beside those of its loss, that can be varied."""
    names = ("ridge", "eta", "bias", "mask_overlap", "features", "magnetization", "norm_squared")
    held = {item.name for item in fields(stage)}
    return tuple(
        name
        for name in names
        if name in held and getattr(stage, name) is not None and not isinstance(getattr(stage, name), Seen)
    )
