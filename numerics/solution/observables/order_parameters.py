"""The weights of one stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from numerics.solution.observables.registry import observable, one_direction, one_logit

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage


@observable("magnetization $m$", algebraic=True, of=one_direction)
def magnetization(stage: AnyStage):
    """m = w.v/N; for labels of a rule w.theta/N."""
    return stage.fresh.scaled(stage.fresh.alignment(-1), -1)


@observable("bias $b$", algebraic=True, of=one_logit)
def bias(stage: AnyStage):
    """b."""
    return stage.fresh.scaled(stage.fresh.bias[..., -1], -1)


@observable(r"norm $\|w\|/\sqrt{N}$", algebraic=True)
def norm(stage: AnyStage):
    """|w|/sqrt(N)."""
    return np.sqrt(norm_squared(stage).value)


@observable("squared norm $Q$", algebraic=True)
def norm_squared(stage: AnyStage):
    """Q = |w|^2/N."""
    return stage.fresh.scaled(stage.fresh.weight_norm(-1), -1, 2)


@observable("response $V$", algebraic=True, measured=False)
def response(stage: AnyStage):
    """V, response of the weights to a field on them; a simulation measures it if it is asked to."""
    return stage.response_to_field


@observable(r"cosine with $v$", algebraic=True, linear=True, of=one_direction)
def cosine(stage: AnyStage):
    """Cosine between w and v; NaN without weights."""
    return stage.fresh.cosine(-1)
