"""What is expected on the samples that the data are estimates from (:mod:`numerics.predict.margins`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numerics.models import DataModel
from numerics.solution.observables.registry import observable

if TYPE_CHECKING:
    from numerics.solution.stage import AnyStage


def sampled(data: DataModel) -> bool:
    """Whether the data are estimates from samples."""
    return data.sampled


@observable("test error, cross-fitted", measured=False, linear=True, of=sampled, listed=False)
def cross_fitted_error(stage: AnyStage):
    """P(s h < 0) on the samples themselves: weights from theory, margins of samples that it has not seen; on measured samples
    alone."""
    return prediction_of(stage).test_error[stage.number - 1]


@observable("test cross-entropy, cross-fitted", measured=False, of=sampled, listed=False)
def cross_fitted_cross_entropy(stage: AnyStage):
    """Mean of H(y, sigmoid(h)) on the samples themselves, likewise."""
    return prediction_of(stage).test_cross_entropy[stage.number - 1]


def prediction_of(stage: AnyStage):
    """That of the whole chain."""
    from numerics.predict.margins import predict  # here: it needs the solver, which needs observables

    return predict(stage.data, stage.solution.chain, settings=stage.solution.settings)
