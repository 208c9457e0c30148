"""Outputs as probabilities of the label, on fresh samples (:mod:`numerics.solution.calibration`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numerics.solution.observables.registry import mixture, observable

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage


@observable("calibration slope", algebraic=True, of=mixture)
def calibration_slope(stage: AnyStage):
    """Slope of the true log-odds of y = 1 as a function of this stage's logit; 1 if calibrated, below 1 if overconfident, NaN if
    the logit is the same everywhere."""
    return stage.fresh.calibration(-1)[0]


@observable("calibration offset", algebraic=True, of=mixture)
def calibration_offset(stage: AnyStage):
    """Offset of the true log-odds at logit 0; NaN likewise."""
    return stage.fresh.calibration(-1)[1]


@observable("calibration error", linear=True, of=mixture)
def calibration_error(stage: AnyStage):
    """Mean of |P(y=1 given h) - sigmoid(h)| on a fresh sample."""
    return stage.fresh.calibration_error(-1)
