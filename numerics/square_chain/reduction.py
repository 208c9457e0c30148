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
    ParameterError,
    structured,
    total_alpha,
)
from numerics.scalar.prior import mask_patterns
from theory.functions import MPMATH
from theory.losses import Loss, SquareLoss
from theory.quadratic import linear_force, self_distillation_limit
from theory.symbols import ridge as ridge_symbol

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SquareChain:
    """A chain of quadratic losses on one data set as numbers.

    Attributes
    ----------
    alpha, rho, delta, label_noise, eta : float
        Of the samples and weights that all stages share.
    ridge, curvature, offset, label : arrays, shape (T,)
        Force ``f_t = offset_t + label_t e - curvature_t h_t + sum_k pull_tk h_k`` at the sign e of the label seen in training.
    bias : array, shape (T,)
        NaN where it is learned.
    links : tuple of tuples of (stage, pull)
        Earlier stages, counted from 0, that each stage looks at.
    given : tuple of None or (m, rest)
        None for a trained stage.  Weights that are given are ``m v + sqrt(rest) z``; they are treated as if a ridge of 1 held them
        there.
    """

    alpha: float
    rho: float
    delta: float
    label_noise: float
    eta: float
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

    def gram(self) -> Array:
        """Inner products of 1, the labels' and the classes' signs, per sample, shape (3, 3)."""
        mean, kept = 2.0 * self.rho - 1.0, 1.0 - 2.0 * self.label_noise
        return np.array([[1.0, kept * mean, mean], [kept * mean, 1.0, kept], [mean, kept, 1.0]])

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
    if not isinstance(data, GaussianMixture) or structured(data, chain):
        return None
    stages = chain.resolved(data)
    trained = [stage for stage in stages if isinstance(stage, Estimator)]
    if not trained or any(set(stage.sets) != set(trained[0].sets) or not stage.ridge > 0 for stage in trained):
        return None
    first = trained[0]
    if len(trained) < len(stages) and first.sets != (TRAINING,):
        return None  # given weights have their training averages on that set
    if not all(stage.loss.is_quadratic for stage in trained):
        return None
    if len({stage.eta for stage in stages}) > 1 or any(stage.mask_overlap is not None for stage in stages):
        patterns = mask_patterns(tuple(s.eta for s in stages), tuple(s.mask_overlap for s in stages))
        if len(patterns) > 1 or not all(patterns[0].active):
            return None
    rows = [_stage_numbers(stage, number) for number, stage in enumerate(stages, start=1)]
    if None in rows:
        return None
    *arrays, links, given = zip(*rows, strict=True)
    alpha = total_alpha(data, first.sets)
    noise = sum(data.data_set(name).alpha * data.data_set(name).label_noise for name in first.sets) / alpha
    return SquareChain(
        alpha, data.positive_share, data.variance, noise, first.eta,
        *(np.array(numbers, dtype=float) for numbers in arrays), links, given,
    )  # fmt: skip


def _stage_numbers(stage: Estimator | Frozen, number: int) -> tuple | None:
    """ridge, curvature, offset, label, bias, links and given weights of a stage; None if it does not belong here."""
    if isinstance(stage, Frozen):
        rest = max(stage.norm_squared - stage.magnetization**2, 0.0)
        return 1.0, 0.0, 0.0, 0.0, stage.bias, (), (stage.magnetization, rest)
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


def limit_of_self_distillation(stage: Estimator) -> Estimator:
    """What a chain converges to whose stages are all ``stage``, each taught by the one before, whatever the first stage was.

    Stage t has the force ``target - curvature h + pull h_{t-1}`` and the penalty ``(ridge/2)|w|^2``.  At the fixed point this is
    the force of ``(h - target/(curvature - pull))^2/2`` with the ridge ``ridge/(curvature - pull)``: for
    ``SquareDistillation(mixing, gain)`` that of the square loss with ``2 ridge/(1 - mixing gain)``.

    Raises
    ------
    ParameterError
        If the loss is not quadratic, does not look at the stage before alone, or ``|pull| >= curvature``: the stages may then
        grow without bound.

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
