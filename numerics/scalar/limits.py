"""The limit ridge -> 0+ of a stage: which of three it is, and the saddle point where it is not an ordinary one.

``Estimator(loss, ridge=0)`` stands for that limit.  With d the directions in which a stage's inputs vary, over N (eta of white
ones), and ``alpha*`` the separability threshold of the labels by these inputs (:class:`numerics.thresholds.Evidence`):

- *maximum likelihood*: ``alpha > d`` and every sample's loss has its minimum at a finite logit, or logistic labels and
  ``alpha > alpha*``.  The equations are regular at ridge 0.
- *minimum norm*: ``alpha < d`` and every sample's loss has its minimum at a finite logit ``h*``.  Every sample reaches it,
  and among the weights that do this the shortest are chosen.
- *max margin*: logistic labels and ``alpha < alpha*``.  The weights become infinite; their direction is that of the shortest
  weights with ``s h >= 1`` on every sample.

Where class means have a part in which inputs do not vary the first is not solved: the weight there has no curvature of its own.
Nor is the last from where on it sees that part alone, and makes no errors.

The last two minimise ``|w|^2`` under a hard constraint; see :mod:`numerics.scalar.kernels.constrained`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import sympy

from numerics import thresholds
from numerics.codegen.losses import LossFunctions
from numerics.models import Chain, DataModel, Estimator, ParameterError, total_alpha
from numerics.scalar.points import MAX_MARGIN, MINIMUM_NORM
from numerics.scalar.visible import seen_by
from theory.functions import sigmoid, step
from theory.losses import Loss
from theory.symbols import h, logit, y

MAXIMUM_LIKELIHOOD = "maximum likelihood"

RESOLUTION = 1e-7
"""Relative distance of ``alpha`` from a threshold below which the limit, which diverges there, counts as unresolvable."""

_FAR = 1e9  # logits at which gradients have their limiting signs
_PROBES = (-3.0, -0.3, 0.0, 0.3, 3.0)  # earlier logits, in units of the scale of the loss's target


def with_values(loss: Loss, expression: sympy.Expr) -> sympy.Expr:
    """``expression`` with exact parameter values in place of the loss's symbols."""
    values = {
        symbol: sympy.nsimplify(value, rational=True) for symbol, value in zip(loss.symbols, loss.values, strict=True)
    }
    return sympy.sympify(expression).xreplace(values)


def classify(data: DataModel, chain: Chain) -> tuple[str | None, ...]:
    """The limit that each stage stands for; None where its ridge is positive.

    Raises
    ------
    ParameterError
        Naming the ridge, where there is no limit, or ``alpha`` is too close to the threshold where it diverges.
    """
    if all(getattr(stage, "ridge", None) != 0 for stage in chain.stages):
        return (None,) * len(chain)
    limits = tuple(
        _classify_stage(data, chain, number) if getattr(stage, "ridge", None) == 0 else None
        for number, stage in enumerate(chain.stages, start=1)
    )
    for number, stage in enumerate(chain.stages, start=1):
        for seen in _visible(stage.loss, number) if isinstance(stage, Estimator) else ():
            if limits[seen - 1] == MAX_MARGIN:
                alpha, threshold = _separability(data, chain, seen)
                raise ParameterError(
                    f"ridge of {chain.name(seen)} must be > 0: at alpha={alpha:g} its labels are separable, its logits "
                    f"grow without bound as ridge -> 0, and {chain.name(number)} looks at them; use a small ridge, or an "
                    f"alpha above the separability threshold {threshold:.8g}"
                )
    return limits


def _separability(data: DataModel, chain: Chain, number: int) -> tuple[float, float]:
    """alpha of the data sets that a stage is trained on, and the alpha up to which it can separate their labels."""
    alpha, labels = labels_of(data, chain, number)
    return alpha, labels.threshold()


def labels_of(
    data: DataModel, chain: Chain, number: int, *, still: bool = True
) -> tuple[float, thresholds.MixtureSeparation | thresholds.RuleSeparation]:
    """alpha of the data sets that a stage is trained on, and the separability of their labels by what it sees.

    ``still``: whether a part of the class means without variance counts.
    """
    stage, seen = chain[number - 1], seen_by(data, chain, number)
    sets = [data.data_set(name) for name in stage.sets]
    alpha = sum(found.alpha for found in sets)
    flipped = min(sum(found.alpha * found.label_noise for found in sets) / alpha, 0.5)
    return alpha, thresholds.separation(data, seen._replace(still=seen.still and still), flipped, stage.bias is None)


def separator(data: DataModel, chain: Chain, number: int) -> tuple[float, float, float]:
    """m, b and Q of the weights of a max-margin stage on white inputs, with ``s h >= 1``, in closed form: it has no teacher."""
    alpha, labels = labels_of(data, chain, number)
    margin, aligned, bias = labels.at(alpha)
    return aligned / margin, bias / margin, margin**-2


def of_labels(data: DataModel, loss: Loss) -> Loss:
    """The loss as a function of the label, where a rule gives it: of samples on its positive side."""
    return replace(loss, expression=loss.expression.subs(step(logit(1)), 1)) if data.ruled else loss


def _classify_stage(data: DataModel, chain: Chain, number: int) -> str:
    stage, name = chain[number - 1], chain.name(number)
    alpha, seen = total_alpha(data, stage.sets), seen_by(data, chain, number)
    if minimum_is_finite(stage.loss):
        threshold, below = seen.dimensions, MINIMUM_NORM
        size = "eta" if stage.features is None and data.inputs.white else "directions in which inputs vary over N"
        reason = f"alpha = {size} = {threshold:g}, where the weights just fit every sample and their norm diverges"
    elif is_logistic(of_labels(data, stage.loss)):
        _, threshold = _separability(data, chain, number)
        below = MAX_MARGIN
        reason = f"the separability threshold alpha = {threshold:.8g}, where the norm diverges and the margin vanishes"
    else:
        raise ParameterError(
            f"ridge of {name} must be > 0: for {stage.loss!r} a sample's loss has no minimum at a finite logit, and no limit "
            f"ridge -> 0 is known (logistic losses on hard labels have one)"
        )
    if math.isfinite(threshold) and abs(alpha - threshold) <= RESOLUTION * threshold:
        raise ParameterError(f"ridge of {name} must be > 0 at alpha={alpha:.10g}: this is {reason}")
    if seen.still:
        _check_still(data, chain, number, below if alpha < threshold else MAXIMUM_LIKELIHOOD)
    return below if alpha < threshold else MAXIMUM_LIKELIHOOD


def _check_still(data: DataModel, chain: Chain, number: int, limit: str) -> None:
    """Refuse what is not solved where the class means have a part in which the stage's inputs do not vary.

    Flipped labels aside, such a part is a separator.  Other weights make its margin larger up to where they could separate alone.
    """
    alpha, name = total_alpha(data, chain[number - 1].sets), chain.name(number)
    why = "the class means have a part in which its inputs do not vary"
    if limit == MAXIMUM_LIKELIHOOD:
        raise ParameterError(
            f"ridge of {name} must be > 0 at alpha={alpha:g}: {why}, and no curvature of the loss holds its weight"
        )
    if limit == MAX_MARGIN and not any(data.data_set(found).label_noise for found in chain[number - 1].sets):
        alone = labels_of(data, chain, number, still=False)[1].threshold()
        if alpha >= alone * (1.0 - RESOLUTION):
            raise ParameterError(
                f"ridge of {name} must be > 0 at alpha={alpha:g}: {why}, which is all that the separator sees from alpha = "
                f"{alone:.8g} on"
            )


def _visible(loss: Loss, number: int) -> tuple[int, ...]:
    """Stages whose logits the gradient depends on at these parameter values (not those behind ``mixing=0``)."""
    present = _symbols(loss)
    return tuple(stage for symbol, stage in zip(loss.logits, loss.stages(number), strict=True) if symbol in present)


@lru_cache(maxsize=1024)
def _symbols(loss: Loss) -> set[sympy.Symbol]:
    """That the gradient depends on at these parameter values."""
    return with_values(loss, loss.gradient).free_symbols


@lru_cache(maxsize=1024)
def minimum_is_finite(loss: Loss) -> bool:
    """Whether the loss of every sample has its minimum, and a curvature there, at a finite logit.

    Convexity makes it enough that the gradient has both signs.  It is looked at for both labels, and for earlier logits
    spread over the scales of the loss's target.
    """
    functions = LossFunctions(loss)
    values = dict(zip(loss.symbols, loss.values, strict=True))
    places = []
    for bends in loss.target_bends:
        entries = [tuple(entry.subs(values) for entry in bend) for bend in bends]
        numbers = [(float(c), float(scale)) for c, scale in entries if c.is_number and scale.is_number]
        scales = [(c, scale) for c, scale in numbers if math.isfinite(c) and 0 < scale < math.inf]
        scales = scales or [(0.0, 1.0), (0.0, 100.0)]
        places.append(sorted({centre + scale * probe for centre, scale in scales for probe in _PROBES}))
    grids = np.meshgrid(*places, indexing="ij") if places else []
    logits = np.column_stack([grid.ravel() for grid in grids]) if places else np.empty((1, 0))
    n = len(logits)
    for label in (0.0, 1.0):
        labels = np.full(n, label)
        with np.errstate(all="ignore"):
            low, _ = functions.derivatives(np.full(n, -_FAR), labels, logits)
            high, _ = functions.derivatives(np.full(n, _FAR), labels, logits)
        if not (np.all(low < 0) and np.all(high > 0)):
            return False
    return True


@lru_cache(maxsize=1024)
def is_logistic(loss: Loss) -> bool:
    """Whether the gradient is ``sum_k a_k sigmoid(c_k h)`` (``a_k, c_k > 0``) minus its limit at the label's side.

    The loss of a sample then falls to its infimum like an exponential of ``s h``, alike for both labels.
    """
    if loss.split is None:
        return False
    slope, target = (with_values(loss, part) for part in loss.split)
    slope = slope.replace(sympy.tanh, lambda x: 2 * sigmoid(2 * x) - 1)
    constant, varying = sympy.expand(slope).as_independent(h, as_Add=True)
    total = sympy.Integer(0)
    for term in sympy.Add.make_args(varying):
        factor, function = term.as_independent(h, as_Add=False)
        if not isinstance(function, sigmoid) or not factor.is_positive:
            return False
        rate = sympy.diff(function.args[0], h)
        if not rate.is_positive or not rate.is_number:
            return False
        total += factor
    limits = (constant, constant + total)
    return total != 0 and all(
        sympy.expand(target.subs(y, label)).free_symbols == set()
        and abs(float(target.subs(y, label) - limit)) <= 1e-14 * float(total)
        for label, limit in enumerate(limits)
    )
