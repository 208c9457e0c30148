"""Stages one after the other, and whether they fit the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from numerics.models.checks import ROUNDING, ParameterError, chosen
from numerics.models.class_mixture import ClassMixture
from numerics.models.clusters import Clusters
from numerics.models.data import DataModel, LinearRule
from numerics.models.dense import Dense, LinearMap, Seen, has_variance
from numerics.models.features import RandomFeatures
from numerics.models.measured import Measured
from numerics.models.stages import STAGE_KINDS, BayesOptimal, Estimator, Frozen, Rule, Stage
from theory.rules import after_rule

MOST_STAGES_ON_CLUSTERS = 4


@dataclass(frozen=True)
class Chain:
    """Stages one after the other, each of which may look at those before, checked to fit together.

    Parameters
    ----------
    stages : sequence of stages
    hidden : int
        How many of the first belong to the data (:func:`in_equations`); users do not make such chains.

    Examples
    --------
    >>> from theory.losses import CrossEntropy, Distillation
    >>> chain = Chain.of([Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=0.01, name="pupil")])
    >>> chain.names, len(chain)
    (('teacher', 'pupil'), 2)
    """

    stages: tuple[Stage, ...]
    hidden: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.stages, Sequence):
            raise ParameterError(f"stages must be a sequence of stages, got {self.stages!r}")
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ParameterError("a chain needs at least one stage")
        for number, stage in enumerate(self.stages, start=1):
            if not isinstance(stage, STAGE_KINDS):
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
        if isinstance(stages, STAGE_KINDS):
            return cls((stages,))
        try:
            return cls(tuple(stages))
        except TypeError:
            raise ParameterError(f"a chain must be a stage or a sequence of them, got {stages!r}") from None

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: int | str | slice) -> Stage | tuple[Stage, ...]:
        """Stage by position from 0 or by name; stages of a slice."""
        return chosen(self.names, index, self.stages.__getitem__) if isinstance(index, str) else self.stages[index]

    def name(self, number: int) -> str:
        """Name of stage ``number`` (1-based)."""
        given, place = self.stages[number - 1].name, number - self.hidden
        return given or {0: "rule", 1: "teacher", 2: "student"}.get(place, f"stage{place}")

    @cached_property
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
        if number <= 1 + self.hidden:
            return ()
        stage = self.stages[number - 1]
        seen = sorted(set(stage.loss.stages(number))) if isinstance(stage, Estimator) else []
        if len(seen) == 1 or (seen and isinstance(stage.loss.teacher, tuple)):
            return tuple(seen)
        return (number - 1,)

    def resolved(self, data: DataModel) -> tuple[Estimator | Frozen, ...]:
        """The stages with Hebbian and Bayes-optimal ones written as the Estimators they are on these data."""
        return tuple(stage.resolved(data) for stage in self.stages)


@lru_cache(maxsize=4096)
def in_equations(data: DataModel, chain: Chain) -> Chain:
    """The chain that is solved and trained: with the rule of the data, if there is one, before the stages.

    Raises
    ------
    ParameterError
        For a loss, or a stage, that needs two classes, where labels are real numbers or the rule's.
    """
    if not isinstance(data, LinearRule) or chain.hidden:
        return chain
    moved = []
    for name, stage in zip(chain.names, chain.stages, strict=True):
        if isinstance(stage, BayesOptimal):
            raise ParameterError(
                f"{name} is Bayes-optimal for two Gaussian classes, and the labels are those of a rule"
            )
        if isinstance(stage, Frozen) and stage.magnetization:
            raise ParameterError(f"magnetization of {name} must be 0: inputs labelled by a rule have no mean")
        found = stage.resolved(data)
        if not isinstance(found, Frozen):
            try:
                found = replace(found, loss=after_rule(found.loss, data.has_real_labels))
            except ValueError as error:
                raise ParameterError(f"loss of {name}: {error}") from None
        moved.append(found)
    rule = Rule(norm_squared=data.signal_variance + data.field_noise, noise=data.field_noise, slope=data.link_slope)
    return Chain((rule, *moved), hidden=1)


def structured(data: DataModel, chain: Chain) -> bool:
    """Whether some stage sees inputs that differ from one coordinate to the next."""
    return not data.inputs.white or any(stage.features is not None for stage in chain.stages)


def _check_structured(data: DataModel, chain: Chain) -> None:
    """Refuse what is known for white inputs only."""
    featured = [stage.features for stage in chain.stages if isinstance(stage.features, RandomFeatures)]
    if featured and not data.inputs.white:
        raise ParameterError(f"inputs must be Isotropic where a stage has random features, got {data.inputs!r}")
    where = "inputs with a spectrum" if not featured else "random features"
    _check_seen(data, chain)
    for name, stage in zip(chain.names, chain.stages, strict=True):
        if isinstance(stage, BayesOptimal):
            raise ParameterError(f"{name} is Bayes-optimal for white inputs; there is no such stage for {where}")
        if isinstance(stage, Frozen):
            raise ParameterError(
                f"{name} has given weights, which are for white inputs; there is no such stage for {where}"
            )
        if getattr(stage, "ridge", None) == 0 and data.sampled:
            raise ParameterError(
                f"ridge of {name} must be > 0 where data are Measured: the limit 0 is taken for known laws only"
            )
        if featured and stage.eta < 1:
            raise ParameterError(
                f"eta of {name} must be 1 beside random features, whose number is that of the features"
            )
        if featured and stage.features not in (None, featured[0]):
            raise ParameterError(
                f"features of {name} must be those of the other stages that have some, {featured[0]!r}: a chain has one network"
            )


def _check_clusters(data: Clusters, chain: Chain) -> None:
    """Refuse what is not solved for clusters."""
    if len(chain) > MOST_STAGES_ON_CLUSTERS:
        raise ParameterError(
            f"chain must have at most {MOST_STAGES_ON_CLUSTERS} stages where data are Clusters, got {len(chain)}"
        )
    for name, stage in zip(chain.names, chain.stages, strict=True):
        if not isinstance(stage, Estimator):
            raise ParameterError(f"{name} must be an Estimator where data are Clusters, got {type(stage).__name__}")
        if not stage.ridge > 0:
            raise ParameterError(
                f"ridge of {name} must be > 0 where data are Clusters: max margin, and other limits ridge -> 0, are not solved"
            )
        if stage.eta < 1 or stage.mask_overlap is not None:
            raise ParameterError(
                f"eta of {name} must be 1, and mask_overlap None, where data are Clusters: a LinearMap says what a stage sees"
            )
        seen = stage.features
        if seen is None:
            continue
        if not isinstance(seen, LinearMap):
            raise ParameterError(
                f"features of {name} must be a LinearMap or None where data are Clusters, got {seen!r}"
            )
        if seen.matrix.shape[1] != data.size:
            raise ParameterError(
                f"features of {name} must have as many columns as means has, {data.size}, got {seen.matrix.shape[1]}"
            )
        still = [c for c, inputs in enumerate(data.dense) if not has_variance(inputs, seen)]
        if still:
            raise ParameterError(
                f"features of {name} must see inputs that vary; covariances[{still[0]}] is 0 on its rows"
            )


def _check_seen(data: DataModel, chain: Chain) -> None:
    """Check that what stages see is of the inputs, and that no stage has a mask where a map would say what it sees."""
    inputs = data.inputs
    for name, stage in zip(chain.names, chain.stages, strict=True):
        seen = stage.features
        if isinstance(seen, Seen):
            if isinstance(data, Measured) and not seen.scales_with_inputs:
                raise ParameterError(
                    f"features of {name} must be a LinearMap or None where data are Measured: take the features of the samples as X"
                )
            if not isinstance(inputs, Dense):
                raise ParameterError(f"features of {name}, {seen.what}, need Dense inputs, got {inputs!r}")
            columns = seen.shape[1]
            if columns != inputs.size:
                raise ParameterError(
                    f"features of {name} must have as many columns as covariance has rows, {inputs.size}, got {columns}"
                )
            if not has_variance(inputs, seen):
                raise ParameterError(
                    f"features of {name} must see inputs that vary; covariance is 0 on "
                    + ("its rows" if seen.scales_with_inputs else "a row of first_layer")
                )
        if isinstance(inputs, Dense) and stage.masked and stage.eta < 1:
            raise ParameterError(f"eta of {name} must be 1 beside Dense inputs: a LinearMap says what a stage sees")


def check_fit(data: DataModel, chain: Chain) -> None:
    """Check what takes both data and chain.

    Raises
    ------
    ParameterError
        If a stage is trained on a data set that does not exist, nobody is trained on one, a data set and a stage share a name,
        masks cannot overlap as asked, or a Bayes-optimal stage is given noisy labels.
    """
    in_equations(data, chain)
    _check_classes(data, chain)
    if isinstance(data, Clusters):
        _check_clusters(data, chain)
    elif structured(data, chain):
        _check_structured(data, chain)
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
    if data.many_classes:
        _check_missing_classes(data, chain)
    unused = [name for name in known if name not in used]
    if unused and (used or len(known) > 1):  # frozen stages alone need no data
        raise ParameterError(
            f"no stage is trained on data set {unused[-1]!r}; name it in the sets of one, or leave it out"
        )


def _check_classes(data: DataModel, chain: Chain) -> None:
    """Check that stages and losses are for as many classes as there are."""
    for name, stage in zip(chain.names, chain.stages, strict=True):
        loss = getattr(stage, "loss", None)
        if not data.many_classes:
            if loss is not None and loss.needs_many_classes:
                special = [f"{key}={value!r}" for key, value in loss.options if key in ("target", "table")]
                what = special[0] if special else f"loss {loss.name!r}"
                raise ParameterError(f"{what} of {name} is for the classes of a ClassMixture")
            continue
        if not isinstance(stage, Estimator):
            raise ParameterError(
                f"{name} must be an Estimator where data are a ClassMixture, got {type(stage).__name__}"
            )
        try:
            loss.require_classes(data.classes_count)
        except ValueError as error:
            raise ParameterError(f"loss of {name}: {error}") from None
        if loss.table is not None and len(loss.table) != data.classes_count:
            raise ParameterError(f"table of {name} must be of {data.classes_count} classes, got {len(loss.table)}")
        if not stage.ridge > 0:
            raise ParameterError(f"ridge of {name} must be > 0 where data are a ClassMixture")
        for parameter in ("bias", "features"):
            if getattr(stage, parameter) is not None:
                raise ParameterError(f"{parameter} of {name} must be None where data are a ClassMixture")


def _check_missing_classes(data: ClassMixture, chain: Chain) -> None:
    """Check that no bias runs to -infinity, because its class is never a target."""
    for name, stage in zip(chain.names, chain.stages, strict=True):
        seen = sum(data.label_weights(found) for found in stage.sets)
        missing = stage.loss.never_shown(seen.tolist())
        if missing:
            trained = "labels" if stage.loss.table is None else "labels and a table"
            raise ParameterError(
                f"{name} is trained on {trained} alone and sees none of class {', '.join(map(str, missing))}: its bias has no "
                "minimum; take soft targets, label smoothing, or data with this class"
            )
