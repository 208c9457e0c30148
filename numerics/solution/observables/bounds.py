"""What no estimator can do better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numerics import thresholds
from numerics.models import TRAINING, total_alpha
from numerics.solution.observables.registry import mixture, observable

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage


@observable("Bayes error", measured=False, linear=True, of=mixture)
def bayes_error(stage: AnyStage):
    """Test error of the Bayes-optimal estimator that sees this stage's inputs and, with clean labels, all samples that the
    stages up to this one are trained on; the lower bound of what they may reach."""
    seen = {name for earlier in stage.chain.stages[: stage.number] for name in earlier.sets} or {TRAINING}
    alpha = total_alpha(stage.data, sorted(seen))
    return float(thresholds.bayes_error(alpha, stage.data.rho, stage.data.delta, stage.estimator.eta))
