"""All observables, in the order of tables: one function each, in the module whose name is their heading.

Examples
--------
>>> OBSERVABLES["train_error"]
'training error'
>>> from numerics.solution.solution import StageSolution
>>> all(hasattr(StageSolution, name) for name in OBSERVABLES)
True
"""

# isort: off
from numerics.solution.observables.registry import OBSERVABLES
from numerics.solution.observables import order_parameters
from numerics.solution.observables import errors
from numerics.solution.observables import losses
from numerics.solution.observables import calibration
from numerics.solution.observables import distances
from numerics.solution.observables import joint_classifier
from numerics.solution.observables import rule
from numerics.solution.observables import bounds
from numerics.solution.observables import anatomy
from numerics.solution.observables import measured
# isort: on

__all__ = [
    "OBSERVABLES",
    "anatomy",
    "bounds",
    "calibration",
    "distances",
    "errors",
    "joint_classifier",
    "losses",
    "measured",
    "order_parameters",
    "rule",
]
