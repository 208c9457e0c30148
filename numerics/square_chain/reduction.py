"""Chains of quadratic losses on one data set as numbers: which chains those are, and what infinitely many stages amount to.

All stages of such a chain are rational functions of one random matrix (:mod:`theory.quadratic`); :mod:`numerics.square_chain`
solves them at any length.

Examples
--------
>>> from theory.losses import SquareDistillation
>>> stage = Estimator(SquareDistillation(mixing=0.6), ridge=0.3)
>>> limit_of_self_distillation(stage)
Estimator(loss=SquareLoss(), ridge=1.5, eta=1.0, name=None, bias=None, sets=('training',), mask_overlap=None)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import sympy
from numpy.typing import NDArray

from numerics.models import (
    TRAINING,
    Chain,
    DataModel,
    Estimator,
    Frozen,
    GaussianMixture,
    LinearRule,
    ParameterError,
    Rule,
    in_equations,
    structured,
    total_alpha,
)
from numerics.scalar.prior import mask_patterns
from theory.functions import MPMATH
from theory.losses import Loss, SquareDistillation, SquareLoss
from theory.quadratic import linear_force, self_distillation_limit
from theory.symbols import ridge as ridge_symbol

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SquareChain:
    """A chain of quadratic losses on one data set as numbers.

    Attributes
    ----------
    alpha, delta, eta : float
        Of the samples and weights that all stages share.
    gram : array, shape (3, 3)
        Inner products per sample of 1, of e and of the classes' signs.  e is the sign of the label seen in training; where labels
        are real numbers, it is what a rule's label has beyond the coordinates that stages see, and there are no classes.
    groups : tuple of (share, label, sign)
        Samples with the same label and class: one where labels are real numbers.
    ridge, curvature, offset, label : arrays, shape (T,)
        Force ``f_t = offset_t + label_t e - curvature_t h_t + sum_k pull_tk h_k``; of given weights ``label_t e`` is part of the
        logit.
    bias : array, shape (T,)
        NaN where it is learned.
    links : tuple of tuples of (stage, pull)
        Earlier stages, counted from 0, that each stage looks at.
    given : tuple of None or (m, rest)
        None for a trained stage.  Weights that are given are ``m v + sqrt(rest) z``; they are treated as if a ridge of 1 held them
        there.
    """

    alpha: float
    delta: float
    eta: float
    gram: Array
    groups: tuple[tuple[float, float, float], ...]
    ridge: Array
    curvature: Array
    offset: Array
    label: Array
    bias: Array
    links: tuple[tuple[tuple[int, float], ...], ...]
    given: tuple[tuple[float, float] | None, ...]

    def __len__(self) -> int:
        return self.ridge.size

    def first(self, count: int) -> SquareChain:
        """Its first stages."""
        arrays = ("ridge", "curvature", "offset", "label", "bias", "links", "given")
        return replace(self, **{name: getattr(self, name)[:count] for name in arrays})

    @property
    def real_labels(self) -> bool:
        """Whether labels are real numbers: e then varies within a group of samples."""
        return len(self.groups) == 1

    @property
    def label_in_logit(self) -> Array:
        """Share of e in the logits of given weights, shape (T,)."""
        return np.where([given is not None for given in self.given], self.label, 0.0)

    def pull_of(self, t: int, values: Array) -> Array:
        """sum_k pull_tk values[k]; ``values`` has one row a stage."""
        total = np.zeros(values.shape[1:])
        for k, pull in self.links[t]:
            total += pull * values[k]
        return total


def square_chain(data: DataModel, chain: Chain) -> SquareChain | None:
    """The chain as numbers; None if its stages are not functions of one matrix.

    They are if all losses are quadratic, with curvatures and pulls that are the same for both labels, and all stages have positive
    ridges, the same data sets and the same active weights.  Stages may be given weights.
    """
    regression = isinstance(data, LinearRule) and data.has_real_labels
    if not (regression or isinstance(data, GaussianMixture)) or structured(data, chain):
        return None
    stages = in_equations(data, chain).resolved(data)
    trained = [stage for stage in stages if isinstance(stage, Estimator)]
    if not trained or any(set(stage.sets) != set(trained[0].sets) or not stage.ridge > 0 for stage in trained):
        return None
    first = trained[0]
    own = [stage for stage in stages if not isinstance(stage, Rule)]
    if len(trained) < len(own) and first.sets != (TRAINING,):
        return None  # given weights have their training averages on that set
    if not all(stage.loss.is_quadratic for stage in trained):
        return None
    if len({stage.eta for stage in own}) > 1 or any(stage.mask_overlap is not None for stage in own):
        patterns = mask_patterns(tuple(s.eta for s in own), tuple(s.mask_overlap for s in own))
        if len(patterns) > 1 or not all(patterns[0].active):
            return None
    rows = [_stage_numbers(stage, number) for number, stage in enumerate(stages, start=1)]
    if None in rows:
        return None
    *arrays, links, given = zip(*rows, strict=True)
    alpha = total_alpha(data, first.sets)
    if regression:
        # What theta does on coordinates that no stage sees is noise to all of them.
        gram = np.diag([1.0, data.noise + 1.0 - first.eta, 0.0])
        groups = tuple((law.weight, law.label, law.sign) for law in data.classes)
    else:
        noise = sum(data.data_set(name).alpha * data.data_set(name).label_noise for name in first.sets) / alpha
        gram, groups = _signs_of(data.positive_share, noise)
    return SquareChain(
        alpha,
        data.variance,
        first.eta,
        gram,
        groups,
        *(np.array(numbers, dtype=float) for numbers in arrays),
        links,
        given,
    )


def _signs_of(positive: float, noise: float) -> tuple[Array, tuple[tuple[float, float, float], ...]]:
    """``gram`` and ``groups`` of two classes, a share of them positive, whose labels are flipped with probability ``noise``."""
    mean, kept = 2.0 * positive - 1.0, 1.0 - 2.0 * noise
    gram = np.array([[1.0, kept * mean, mean], [kept * mean, 1.0, kept], [mean, kept, 1.0]])
    groups = tuple(
        (share * flips, label, sign)
        for share, sign in ((positive, 1.0), (1.0 - positive, -1.0))
        for flips, label in ((1.0 - noise, 0.5 + 0.5 * sign), (noise, 0.5 - 0.5 * sign))
    )
    return gram, groups


def _stage_numbers(stage: Estimator | Frozen, number: int) -> tuple | None:
    """ridge, curvature, offset, label, bias, links and given weights of a stage; None if it does not belong here."""
    if isinstance(stage, Frozen):
        rest = max(stage.mean_square - stage.magnetization**2, 0.0)
        label = 1.0 if isinstance(stage, Rule) else 0.0
        return 1.0, 0.0, 0.0, label, stage.bias, (), (stage.magnetization, rest)
    found = _coefficients(stage.loss)
    if found is None:
        return None
    offset, curvature, label, pulls = found
    bias = math.nan if stage.bias is None else stage.bias
    if math.isnan(bias) and all(force.curvature == 0 for force in linear_force(stage.loss.expression)):
        bias = 0.0  # as ``Estimator.fixed_bias``, which takes long for many teachers
    if math.isnan(bias) and not curvature > 0:
        return None  # nothing holds it
    summed: dict[int, float] = {}
    for seen, pull in zip(stage.loss.stages(number), pulls, strict=True):
        summed[seen - 1] = summed.get(seen - 1, 0.0) + pull  # h_teacher and h_1 may be the same
    links = tuple((k, pull) for k, pull in sorted(summed.items()) if pull != 0.0)
    return stage.ridge, curvature, offset, label, bias, links, None


@lru_cache(maxsize=256)
def _force_function(expression: sympy.Expr, symbols: tuple[sympy.Symbol, ...]):
    """Target, curvature and pulls at both labels as a function of the parameter values."""
    forces = linear_force(expression)
    return sympy.lambdify(symbols, [(f.target, f.curvature, *f.pulls) for f in forces], modules=[MPMATH, "mpmath"])


@lru_cache(maxsize=4096)
def _coefficients(loss: Loss) -> tuple[float, float, float, tuple[float, ...]] | None:
    """(offset, curvature, label, pulls) of the force; None if curvature or pulls depend on the label."""
    try:
        found = _force_function(loss.expression, loss.symbols)(*loss.values)
        negative, positive = (tuple(map(float, coefficients)) for coefficients in found)
    except (ZeroDivisionError, ValueError, TypeError, OverflowError):
        return None
    if negative[1:] != positive[1:] or not all(math.isfinite(c) for c in (*negative, *positive)):
        return None
    return 0.5 * (positive[0] + negative[0]), positive[1], 0.5 * (positive[0] - negative[0]), positive[2:]


# Infinitely many stages


def limit_of_self_distillation(stage: Estimator, data: DataModel | None = None) -> Estimator:
    """What a chain converges to whose stages are all ``stage``, each taught by the one before, whatever the first stage was.

    Stage t has the force ``target - curvature h + pull h_{t-1}`` and the penalty ``(ridge/2)|w|^2``.  At the fixed point this is
    the force of ``(h - target/(curvature - pull))^2/2`` with the ridge ``ridge/(curvature - pull)``: for
    ``SquareDistillation(mixing, gain)`` that of the square loss with ``2 ridge/(1 - mixing gain)``, and for real labels, where
    both losses are (h - t)^2/2, ``ridge/(1 - mixing gain)``.

    Parameters
    ----------
    stage : Estimator
    data : DataModel, optional
        What it is trained on; by default two classes.

    Raises
    ------
    ParameterError
        If the loss is not quadratic, does not look at the stage before alone, or ``|pull| >= curvature``: the stages may then
        grow without bound.  If it needs two classes, and the labels of the data are real numbers.

    Examples
    --------
    >>> from theory.losses import SquareDistillation
    >>> limit_of_self_distillation(Estimator(SquareDistillation(0.5, gain=0.8), ridge=0.3, eta=0.5)).loss
    Loss('square loss', gain=0.8333333333333334)
    """
    if not isinstance(stage, Estimator):
        raise ParameterError(f"stage must be an Estimator, got {stage!r}")
    loss = stage.loss
    if loss.teacher is not None or [symbol.name for symbol in loss.logits] != ["h_teacher"]:
        raise ParameterError(f"loss must look at the stage before alone, got {loss!r}")
    if data is not None:
        in_equations(data, Chain.of([Estimator(SquareLoss(), 1.0), stage]))
    try:
        limit = self_distillation_limit(loss)
    except ValueError as error:
        raise ParameterError(f"loss has no limit of self-distillation: {error}") from None
    values = dict(zip(loss.symbols, loss.values, strict=True))
    gain = float(limit.gain.subs(values))
    if not abs(gain) < 1:
        raise ParameterError(
            f"loss must weigh the stage before less than its own logit, got the factor {gain:g}: for SquareDistillation "
            "mixing times gain must be below 1"
        )
    negative, positive = (float(target.subs(values)) for target in limit.targets)
    ridge = float(limit.ridge.subs(values | {ridge_symbol: stage.ridge}))
    if isinstance(data, LinearRule) and data.has_real_labels and isinstance(loss, SquareDistillation):
        ridge *= 0.5  # the loss is twice that of two classes
    return replace(stage, loss=_square_loss(negative, positive), ridge=ridge)


def _square_loss(negative: float, positive: float) -> Loss:
    """(h - target)^2/2 with a target for each label."""
    if (negative, positive) == (-1.0, 1.0):
        return SquareLoss()
    if negative == -positive:
        return Loss.from_expression("(h - gain*s)**2/2", {"gain": positive}, name="square loss")
    return Loss.from_expression(
        "(h - offset - gain*s)**2/2",
        {"gain": 0.5 * (positive - negative), "offset": 0.5 * (positive + negative)},
        name="square loss",
    )
