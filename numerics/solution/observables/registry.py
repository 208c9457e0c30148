"""The list of all observables, each defined once, for everything that solves, simulates, sweeps, optimises, draws or prints.

An observable is a function of a stage (:class:`numerics.solution.stage.AnyStage`), solved or trained: of the law of fresh logits
(``stage.fresh``) and of that of training samples (``stage.samples``).  It returns a number, or an
:class:`~numerics.solution.quadrature.Integral`, which says how far off it may be.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numerics.models import DataModel, ParameterError
from numerics.solution.quadrature import Integral

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage

REGISTRY: dict[str, Observable] = {}
"""All observables by name."""

ERROR_SUFFIX = "_quadrature_error"
"""Of an observable's name: its estimated numerical error, as an attribute, in JSON and in datasets."""

STAGE, TEACHER, PAIR = KINDS = "stage", "teacher", "pair"
"""Of one stage; of a stage and its teacher; the same for any two stages."""

_CARRIERS: list[tuple[type, Callable[[Observable], property]]] = []


@dataclass(eq=False)
class Observable:
    """One observable.

    Attributes
    ----------
    name, label : str
        Attribute, JSON key and variable; text in plots.
    function : callable
        Takes a stage; of kinds "teacher" and "pair" also the other stage, a row of :class:`WeightedSamples`.
    kind : str
        One of :data:`KINDS`.
    matrix : str or None
        Name of the matrix over all pairs of stages, in the raw runs of a simulation.
    algebraic : bool
        A formula of the order parameters, in array operations: sweeps evaluate it at all points of a task at once.
    solved, measured : bool
        Whether solutions, and simulations, have it.
    linear : bool
        Drawn on a linear axis, because it is bounded or passes through 0.
    of : callable
        Whether it is defined, given the data; elsewhere it is NaN, and not listed.
    listed : bool
        Whether it is in tables, JSON and lists of all observables; if not, it is computed where its name is given, and there alone.
    """

    name: str
    label: str
    function: Callable[..., Integral | float]
    kind: str
    matrix: str | None
    algebraic: bool
    solved: bool
    measured: bool
    linear: bool
    of: Callable[[DataModel], bool]
    listed: bool

    def __call__(self, stage: AnyStage) -> Integral:
        return stage.find(self)

    def evaluate(self, stage: AnyStage, other=None) -> Integral:
        """Value and integration error, of a stage and, if it takes two, another one: by default the teacher, NaN without one."""
        if not self.of(stage.data):
            return Integral(float("nan"), float("nan"))
        if self.kind != STAGE:
            other = stage.teacher if other is None else other
            found = self.function(stage, other) if other is not None else Integral(float("nan"), float("nan"))
        else:
            found = self.function(stage)
        return found if isinstance(found, Integral) else Integral(found, 0.0)

    @property
    def group(self) -> str:
        """Heading in tables: the module it is defined in."""
        return self.function.__module__.rpartition(".")[2].replace("_", " ")

    @property
    def raw_name(self) -> str:
        """Name in the raw runs of a simulation, where matrices over pairs of stages have the short names."""
        return self.name if self.kind == STAGE or self.name.startswith("teacher_") else f"teacher_{self.name}"


def observable(
    label: str, *, kind: str = STAGE, matrix: str | None = None, algebraic: bool = False, solved: bool = True,
    measured: bool = True, linear: bool = False, of: Callable[[DataModel], bool] = lambda data: True,
    listed: bool = True,
) -> Callable[[Callable], Observable]:  # fmt: skip
    """Define an observable: its name is that of the function, its description the docstring.

    Parameters
    ----------
    label : str
        Text in plots.
    kind, matrix, algebraic, solved, measured, linear, of, listed
        See :class:`Observable`.

    Raises
    ------
    ValueError
        For an unknown kind, a matrix of something that is not of pairs, or a name that is taken or has no docstring.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if (matrix is not None) != (kind == PAIR):
        raise ValueError(f"matrix must be given for observables of pairs and for no others, got {matrix!r}")

    def register(function: Callable) -> Observable:
        name = function.__name__
        if name in REGISTRY or any(hasattr(carrier, name) for carrier, _ in _CARRIERS):
            raise ValueError(f"name: {name!r} is taken")
        if not inspect.getdoc(function):
            raise ValueError(f"{name} must have a docstring: it is what users read")
        found = Observable(name, label, function, kind, matrix, algebraic, solved, measured, linear, of, listed)
        functools.update_wrapper(found, function, updated=())
        REGISTRY[name] = found
        for carrier, attribute in _CARRIERS:
            _attach(carrier, attribute, found)
        return found

    return register


def forget(name: str) -> None:
    """Take an observable off the list again."""
    del REGISTRY[name]
    for carrier, _ in _CARRIERS:
        if name in vars(carrier):
            delattr(carrier, name)


def carries_observables(attribute: Callable[[Observable], property]) -> Callable[[type], type]:
    """Give a class every observable that solutions have, now and later, as the attribute that is made of it."""

    def decorate(carrier: type) -> type:
        for found in REGISTRY.values():
            _attach(carrier, attribute, found)
        _CARRIERS.append((carrier, attribute))
        return carrier

    return decorate


def _attach(carrier: type, attribute: Callable[[Observable], property], found: Observable) -> None:
    if found.solved:
        setattr(carrier, found.name, attribute(found))


class _Labels(Mapping[str, str]):
    """Names of the observables of a solved stage and their labels in plots; those that are not listed are found by name alone."""

    def __getitem__(self, name: str) -> str:
        found = REGISTRY[name]
        if not found.solved:
            raise KeyError(name)
        return found.label

    def __iter__(self) -> Iterator[str]:
        return (name for name, found in REGISTRY.items() if found.solved and found.listed)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


OBSERVABLES: Mapping[str, str] = _Labels()
"""Names of the observables of a stage, with their labels in plots.

The teacher in ``teacher_...`` and in distances is the one of the stage's loss; of several teachers, their mean logit.  Where the
loss has none, or a formula names several logits, it is the stage before (:meth:`numerics.models.Chain.teachers`).
"""


def groups(data: DataModel) -> dict[str, list[str]]:
    """Names of the observables that a solved stage has on these data, by heading."""
    found: dict[str, list[str]] = {}
    for name in observables_of(data):
        found.setdefault(REGISTRY[name].group, []).append(name)
    return found


def observables_of(data: DataModel) -> tuple[str, ...]:
    """Names of the observables that a solved stage has on these data."""
    return tuple(name for name in OBSERVABLES if REGISTRY[name].of(data))


def is_defined(name: str, data: DataModel) -> bool:
    """Whether a solved stage has an observable of this name on these data, listed or not."""
    return name in OBSERVABLES and REGISTRY[name].of(data)


def real_labels(data: DataModel) -> bool:
    """Whether labels are real numbers."""
    return data.has_real_labels


def signs(data: DataModel) -> bool:
    """Whether labels are signs."""
    return not data.has_real_labels


def mixture(data: DataModel) -> bool:
    """Whether inputs come in two classes, which are their labels."""
    return two_labels(data) and not data.in_clusters


def two_labels(data: DataModel) -> bool:
    """Whether inputs come in two classes, or in clusters that have two labels."""
    return not data.ruled and not data.many_classes


def in_classes(data: DataModel) -> bool:
    """Whether inputs come in classes, two or more, which are their labels."""
    return not data.ruled


def one_logit(data: DataModel) -> bool:
    """Whether a stage has one logit."""
    return not data.many_classes


def one_direction(data: DataModel) -> bool:
    """Whether what is to be learned is one direction: v, or a rule."""
    return one_logit(data) and not data.in_clusters


def rule_of_classes(data: DataModel) -> bool:
    """Whether a rule gives the signs that are the labels."""
    return data.ruled and not data.has_real_labels


def measured() -> tuple[str, ...]:
    """Names of the observables that both a solved stage and every simulation have."""
    return tuple(name for name in OBSERVABLES if REGISTRY[name].measured)


def checked_names(data: DataModel, observables: object, *, simulated: bool) -> tuple[str, ...]:
    """Names of observables, one or several, of solved stages or of experiments.

    Raises
    ------
    ParameterError
        Where there are none, or some that these data or a simulation do not have.
    """
    defined = observables_of(data)
    allowed = tuple(name for name in measured() if name in defined) if simulated else defined
    names = (observables,) if isinstance(observables, str) else ()
    if not names and isinstance(observables, Iterable):
        names = tuple(observables)
    if not names or not all(isinstance(name, str) for name in names):
        raise ParameterError(f"observables must name at least one of {', '.join(allowed)}, got {observables!r}")
    for name in names:
        known, is_error = split(name)
        if known not in OBSERVABLES:
            raise ParameterError(f"observables: unknown name {name!r}; allowed are {', '.join(allowed)}")
        if not is_defined(known, data):
            raise ParameterError(
                f"observables: {name!r} is not defined on these data; allowed are {', '.join(allowed)}"
            )
        if simulated and (is_error or not REGISTRY[known].measured):
            raise ParameterError(
                f"observables: a simulation does not measure {name!r}; allowed are {', '.join(allowed)}"
            )
    return names


def split(name: str) -> tuple[str, bool]:
    """Name of an observable, and whether its error is meant: ``<observable>_quadrature_error``."""
    known = name not in REGISTRY and name.endswith(ERROR_SUFFIX)
    return (name.removesuffix(ERROR_SUFFIX), True) if known else (name, False)


def long_name(name: str) -> str:
    """Label of an observable, or what the estimate of its error is called."""
    found, is_error = split(name)
    return f"{OBSERVABLES[found]}, estimated numerical error" if is_error else OBSERVABLES[found]


def compares(name: str) -> bool:
    """Whether an observable takes a stage and its teacher; the first stage has none."""
    return REGISTRY[name].kind != STAGE
