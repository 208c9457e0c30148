"""What is true on paper: losses, the replica-symmetric potential of a chain of estimators, its equations.

Everything is a SymPy expression.  ``python -m theory`` prints the derivation; ``numerics`` compiles it.
"""

from theory.losses import (
    CrossEntropy,
    Distillation,
    LinearLoss,
    Loss,
    PseudoLabels,
    SquareDistillation,
    SquareLoss,
    UserLoss,
)
from theory.potential import (
    Equations,
    channel_equations,
    cholesky_update,
    conditional_moments,
    free_energy,
    prior_equations,
)

__all__ = [
    "CrossEntropy",
    "Distillation",
    "Equations",
    "LinearLoss",
    "Loss",
    "PseudoLabels",
    "SquareDistillation",
    "SquareLoss",
    "UserLoss",
    "channel_equations",
    "cholesky_update",
    "conditional_moments",
    "free_energy",
    "prior_equations",
]
