"""Stages whose targets do not depend on the sample, so that their weights are exactly 0.

If for some bias b the gradient of the loss at ``h = b`` vanishes on every sample, then ``w = 0`` with that bias is the minimum:
label smoothing 1/2, a gain of 0 on the teacher's logit, the targets of a stage that is itself without weights.  Forces and overlaps
are 0, the response solves ``V (ridge + Vh) = eta``, and every sample's logit is b.  (With a given bias the gradient has to vanish
there; else all forces are alike but not 0, which is an ordinary problem.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import sympy
from numba import types

from numerics.codegen.cache import njit
from numerics.codegen.losses import loss_module
from numerics.models import Estimator, Frozen
from numerics.scalar.kernels.constrained import solve_gradient
from numerics.scalar.kernels.elementary import OPTIONS, POINT_FUNCTION, FloatArray, Matrix, address
from numerics.scalar.limits import with_values
from theory.losses import Loss
from theory.symbols import h

_PROBES = (-41.0, -7.3, -1.1, -0.2, 0.4, 1.7, 9.1, 53.0)
"""Logits of earlier stages at which a loss is looked at first, each with both labels."""

_STRIDE = 3  # of the probes from one earlier stage to the next, so that no two logits agree everywhere
_ROUNDING = 1e-14  # of a gradient that vanishes, relative to its two parts and to the curvature
_NEGLIGIBLE = 1e-13  # a number of a formula that is left of a difference


def resting_biases(stages: Sequence[Estimator | Frozen]) -> tuple[float | None, ...]:
    """Bias of each stage whose weights are exactly 0; None for all others.

    Examples
    --------
    >>> from theory.losses import CrossEntropy, Distillation
    >>> resting_biases((Estimator(CrossEntropy(smoothing=0.5), ridge=0.1), Estimator(Distillation(), ridge=0.1)))
    (0.0, 0.0)
    >>> resting_biases((Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=0.1)))
    (None, None)
    """
    found: list[float | None] = []
    for number, stage in enumerate(stages, start=1):
        if isinstance(stage, Frozen):
            found.append(None)
            continue
        known = tuple(found[seen - 1] for seen in stage.loss.stages(number))
        found.append(_resting_bias(stage.loss, stage.bias, known))
    return tuple(found)


@lru_cache(maxsize=8192)
def _resting_bias(loss: Loss, bias: float | None, known: tuple[float | None, ...]) -> float | None:
    """Bias at which the gradient vanishes whatever the label and those of ``loss.logits`` that are not ``known``."""
    varying = sum(value is None for value in known)
    rows = 2 * len(_PROBES) if varying else 2
    labels = np.tile((1.0, 0.0), rows // 2)
    logits = np.empty((rows, len(known)))
    for k, value in enumerate(known):
        logits[:, k] = np.repeat(np.roll(_PROBES, _STRIDE * k), 2)[:rows] if value is None else value
    compiled = loss_module(loss)
    arguments = compiled.slopes, compiled.targets, labels, logits, np.array(loss.values, dtype=float)
    place = _common_minimum(*arguments, math.nan if bias is None else bias)
    if not math.isfinite(place) or (varying and not _vanishes_everywhere(loss, known, place)):
        return None
    return place


@njit(
    types.boolean(POINT_FUNCTION, POINT_FUNCTION, FloatArray, Matrix, FloatArray, types.float64), **OPTIONS
)  # fmt: skip
def _is_minimum(slopes, targets, labels, logits, parameters, place):
    """Whether the gradient at ``h = place`` vanishes, up to rounding, on all samples."""
    slope = np.empty(4)
    pair = np.empty(2)
    values = address(parameters, 0)
    for i in range(labels.size):
        earlier = address(logits, i * logits.shape[1])
        slopes(place, labels[i], earlier, values, address(slope, 0))
        targets(place, labels[i], earlier, values, address(pair, 0))
        branch = 1 if abs(pair[1]) < abs(pair[0]) else 0
        size = max(abs(slope[branch]), abs(pair[branch])) + abs(place) * abs(slope[2])
        if not abs(slope[branch] - pair[branch]) <= _ROUNDING * size:
            return False
    return True


@njit(
    types.float64(POINT_FUNCTION, POINT_FUNCTION, FloatArray, Matrix, FloatArray, types.float64), **OPTIONS
)  # fmt: skip
def _common_minimum(slopes, targets, labels, logits, parameters, bias):
    """The logit, ``bias`` if that is a number, at which all samples have their minimum; NaN if there is none."""
    if not math.isnan(bias):
        return bias if _is_minimum(slopes, targets, labels, logits, parameters, bias) else np.nan
    if _is_minimum(slopes, targets, labels, logits, parameters, 0.0):
        return 0.0
    # Most losses are done with here: some samples have their minimum above 0, others below.
    slope = np.empty(4)
    pair = np.empty(2)
    values = address(parameters, 0)
    rising = falling = False
    for i in range(labels.size):
        earlier = address(logits, i * logits.shape[1])
        slopes(0.0, labels[i], earlier, values, address(slope, 0))
        targets(0.0, labels[i], earlier, values, address(pair, 0))
        branch = 1 if abs(pair[1]) < abs(pair[0]) else 0
        rising = rising or slope[branch] > pair[branch]
        falling = falling or slope[branch] < pair[branch]
        if rising and falling:
            return np.nan
    place = np.empty(1)
    solve_gradient(slopes, targets, labels[:1], logits[:1], parameters, place)
    return place[0] if _is_minimum(slopes, targets, labels, logits, parameters, place[0]) else np.nan


def _vanishes_everywhere(loss: Loss, known: tuple[float | None, ...], place: float) -> bool:
    """Whether the gradient at ``h = place`` is 0 as a formula of the logits that are not known: probes may miss a step."""
    values = {symbol: value for symbol, value in zip(loss.logits, known, strict=True) if value is not None}
    left = sympy.expand(with_values(loss, loss.gradient).subs({h: sympy.Float(place) if place else 0, **values}))
    left = left.xreplace({number: sympy.Integer(0) for number in left.atoms(sympy.Float) if abs(number) < _NEGLIGIBLE})
    return not left.free_symbols & set(loss.logits)
