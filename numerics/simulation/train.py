"""Fit the stages of a chain on a sample, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from numerics.codegen.losses import LossFunctions
from numerics.deferred import Deferred
from numerics.models import TRAINING, Chain, Estimator, ParameterError, RandomFeatures, Rule, Seen, helmert
from numerics.simulation.draw import Array, Sample, Selection
from numerics.simulation.ridge_fit import RidgeFit, minimise_ridge
from numerics.simulation.softmax_fit import minimise_softmax
from numerics.solution.samples import as_columns
from theory.losses import Loss

if TYPE_CHECKING:
    from numerics.classes.losses import ClassLoss

_formulas = Deferred("numerics.classes.formulas")  # compiles a while, and most users have two classes

FAR = 1e6
"""A bias at which losses have reached their asymptotes."""


@dataclass(frozen=True)
class Fields:
    """A loss with its targets filled in: the objective of :func:`numerics.simulation.ridge_fit.minimise_ridge`."""

    functions: LossFunctions
    labels: Array
    earlier: Array

    def value(self, h: Array) -> Array:
        return self.functions.value(h, self.labels, self.earlier)

    def derivatives(self, h: Array) -> tuple[Array, Array]:
        return self.functions.derivatives(h, self.labels, self.earlier)


@dataclass(frozen=True)
class ClassFields:
    """A loss of K classes with its targets filled in, of logits u in the gauge: that of ``minimise_softmax``.

    Attributes
    ----------
    loss : ClassLoss
    basis : ndarray, shape (K-1, K), or (K, K) where the mean logit is free
    labels, taught, table, targets : ndarrays
        What :meth:`ClassLoss.targets` took, and gave.
    """

    loss: ClassLoss
    basis: Array
    labels: Array
    taught: Array
    table: Array | None
    targets: Array

    def value(self, u: Array) -> Array:
        return self.loss.value(u @ self.basis, self.targets, self.taught)

    def derivatives(self, u: Array) -> tuple[Array, Array]:
        h = u @ self.basis
        slopes = self.loss.gradient(h, self.targets) @ self.basis.T
        return slopes, self.basis @ self.loss.curvature(h, self.targets) @ self.basis.T


@dataclass(frozen=True)
class StageFit(RidgeFit):
    """A trained (or frozen) stage.

    Attributes
    ----------
    weights, logits
        Of the active weights, and on its own training samples (a frozen stage: on the training set).
    active, rows
        Which weights, and which samples.
    everywhere : ndarray, shape (M,)
        Logits on the samples of all data sets.  Of K classes (M, K-1), in the gauge, or (M, K) where their mean is free.
    table : ndarray, shape (K, K)
        Class similarity that targets were made of, where they were.
    """

    active: Selection
    rows: Selection
    everywhere: Array
    table: Array | None = None

    size: int = 0
    features: RandomFeatures | Seen | None = None

    @property
    def all_weights(self) -> Array:
        """Weights with zeros where they are not active, shape (N,), or (p,) of features; of K classes (N, K-1), or (N, K)."""
        weights = np.zeros((self.size, *self.weights.shape[1:]))
        weights[self.active] = self.weights
        return weights

    def has_free_mean(self, classes: int) -> bool:
        """Whether logits of K classes have all K coordinates."""
        return self.weights.shape[1] == classes

    def basis(self, classes: int) -> Array:
        """Of the logits of K classes, shape (K-1, K) or (K, K)."""
        return helmert(classes, whole=self.has_free_mean(classes))


def train(
    sample: Sample,
    chain: Chain,
    active: Sequence[int | Selection],
    gradient_tolerance: float,
    frozen: Mapping[int, Array] | None = None,
) -> tuple[StageFit, ...]:
    """Fit the stages one after the other.

    Later stages see the logits of earlier ones on their own training samples, and start from the weights of the
    stages they look at if that is better than from zero.

    Parameters
    ----------
    sample : Sample
    chain : Chain
        Of Estimators and Frozen stages (see :meth:`numerics.models.Chain.resolved`).
    active : sequence
        Weights that each stage trains: a number n for the first n, or the selection.
    gradient_tolerance : float
        See :class:`numerics.simulation.ridge_fit.RidgeFit`.
    frozen : mapping of stage number to ndarray of shape (N,)
        Weights of the frozen stages.

    Raises
    ------
    ParameterError
        If all targets of a stage are of one class: a learned bias then has no minimum.
    """
    fits: list[StageFit] = []
    for number, (stage, columns) in enumerate(zip(chain.stages, active, strict=True), start=1):
        columns = slice(0, int(columns)) if isinstance(columns, int | np.integer) else columns
        rows = sample.rows(stage.sets or (TRAINING,))
        if stage.given:
            weights = frozen[number]
            logits = sample.rule if isinstance(stage, Rule) else sample.design @ weights + stage.bias
            at_rest = RidgeFit(weights, stage.bias, logits[rows], 0.0, 0.0, 0, 0, 0, True, "frozen", ())
            fits.append(StageFit(**vars(at_rest), active=columns, rows=rows, everywhere=logits, size=len(weights)))
            continue
        starts = [
            (fits[s - 1].all_weights[columns], fits[s - 1].bias)
            for s in stage.loss.stages(number)
            if chain[s - 1].features == stage.features
        ]
        many = sample.mean.ndim == 2
        fields = (class_fields_of if many else fields_of)(stage.loss, number, sample, fits, rows)
        if many and any(weights.shape[1] != len(fields.basis) for weights, _ in starts):
            turns = [fits[s - 1].basis(len(sample.mean)) @ fields.basis.T for s in stage.loss.stages(number)]
            starts = [(weights @ turn, bias @ turn) for (weights, bias), turn in zip(starts, turns, strict=True)]
        fits.append(fit_stage(sample, stage, chain.name(number), fields, columns, starts, gradient_tolerance))
    return tuple(fits)


def fit_stage(
    sample: Sample, stage: Estimator, name: str, fields: Fields | ClassFields, columns: Selection,
    starts: Sequence[tuple[Array, float]], gradient_tolerance: float,
) -> StageFit:  # fmt: skip
    """Fit one stage whose targets are known.

    Parameters
    ----------
    name : str
        Of the stage, in messages.
    fields : Fields
        Its loss with targets, on its own samples.
    columns
        The weights that are trained.
    starts
        Weights, shape (active,), and biases to start from if they are better than zero.

    Raises
    ------
    ParameterError
        As of :func:`train`.
    """
    rows = sample.rows(stage.sets)
    part, table = sample.part(stage, rows, columns), None
    if isinstance(fields, ClassFields):
        table = fields.table
        _require_classes(fields, name)
        fit = minimise_softmax(
            part, fields, stage.ridge, len(fields.basis), starts=starts, gradient_tolerance=gradient_tolerance
        )
    else:
        if stage.fixed_bias is None:
            _require_minimum(fields, name)
        fit = minimise_ridge(
            part, fields, stage.ridge, starts=starts, bias=stage.fixed_bias, gradient_tolerance=gradient_tolerance
        )
        if fit.broken:
            fit = replace(fit, message=_where_broken(fit, fields, stage.loss))
    return StageFit(
        **vars(fit), active=columns, rows=rows, everywhere=_everywhere(sample, stage, columns, fit), table=table,
        size=sample.seen_by(stage).shape[1], features=stage.features,
    )  # fmt: skip


def _where_broken(fit: RidgeFit, fields: Fields, loss: Loss) -> str:
    """The message of a fit whose loss is not finite, with the first sample on which it is not."""
    sample = fit.broken[0]
    seen = zip(loss.logits, fields.earlier[sample], strict=True)
    parts = [f"y={fields.labels[sample]:g}", *(f"{symbol}={value:.4g}" for symbol, value in seen)]
    return f"{fit.message}, first on sample {sample} ({', '.join(parts)})"


def fields_of(loss: Loss, number: int, sample: Sample, fits: Sequence[StageFit], rows: Selection) -> Fields:
    labels = sample.labels[rows]
    earlier = as_columns([fits[s - 1].everywhere[rows] for s in loss.stages(number)], len(labels))
    return Fields(LossFunctions(loss), labels, earlier)


def class_fields_of(loss: Loss, number: int, sample: Sample, fits: Sequence[StageFit], rows: Selection) -> ClassFields:
    k, labels, seen = len(sample.mean), sample.labels[rows], [fits[s - 1] for s in loss.stages(number)]
    own = _formulas.class_loss(loss, k, [fit.has_free_mean(k) for fit in seen])
    taught = np.empty((len(labels), len(seen), k))
    for place, fit in enumerate(seen):
        taught[:, place] = fit.everywhere[rows] @ fit.basis(k)
    table = None
    if own.needs_similarity:
        counts = np.bincount(labels, minlength=own.classes)
        weights = [fit.all_weights @ fit.basis(k) for fit in seen]
        overlaps = [w.T @ w / len(w) for w in weights]
        table = own.table(own.similarity(labels, taught), counts, overlaps)
    basis = helmert(k, whole=own.free)
    return ClassFields(own, basis, labels, taught, table, own.targets(labels, taught, table))


def _everywhere(sample: Sample, stage: Estimator, columns: Selection, fit: RidgeFit) -> Array:
    """Logits on all samples, those of data sets the stage was not trained on included."""
    logits = np.empty((len(sample.labels), *fit.logits.shape[1:]))
    logits[sample.rows(stage.sets)] = fit.logits
    design = sample.seen_by(stage)
    weights = np.zeros((design.shape[1], *fit.weights.shape[1:]))
    weights[columns] = fit.weights
    for name, rows in sample.sets.items():
        if name not in stage.sets:
            logits[rows] = design[rows] @ weights + fit.bias
    return logits


def _require_minimum(fields: Fields, name: str) -> None:
    """The objective falls for ever along the bias if the slopes far out, summed over samples, have the wrong sign.

    That holds for any weights, because they do not move in that direction.
    """
    count = len(fields.labels)
    with np.errstate(all="ignore"):
        if not np.isfinite(fields.derivatives(np.zeros(count))[0]).all():
            return  # no question of classes: the descent will say where
        up, down = (float(fields.derivatives(np.full(count, far))[0].sum()) for far in (FAR, -FAR))
    if up <= 0 or down >= 0:
        raise ParameterError(
            f"alpha, n_inputs and rho gave {name} {count} samples, all of one class; "
            "the unregularised bias then diverges: increase alpha or n_inputs, or take rho closer to 1/2"
        )


def _require_classes(fields: ClassFields, name: str) -> None:
    """The bias of a class that is nowhere a target has no minimum."""
    counts = np.bincount(fields.labels, minlength=fields.loss.classes)
    missing = fields.loss.loss.never_shown(counts.tolist())
    if missing:
        raise ParameterError(
            f"alpha, n_inputs and weights gave {name} no sample of class {', '.join(map(str, missing))}; "
            "its unregularised bias then diverges: increase alpha or n_inputs, or its weight"
        )
