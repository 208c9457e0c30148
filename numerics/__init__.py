"""Numerical side of the theory of distillation: solve saddle points, simulate finite systems, sweep parameters.

>>> from numerics import Estimator, GaussianMixture, solve
>>> from theory.losses import CrossEntropy
>>> solution = solve(GaussianMixture(alpha=3.0, rho=0.5, delta=0.5), Estimator(CrossEntropy(), ridge=0.01))
>>> round(solution[0].test_error, 6)
0.131023
"""

from numerics.models import Chain, Estimator, GaussianMixture, ParameterError, parameter_paths, with_parameter
from numerics.simulation import simulate
from numerics.solution import OBSERVABLES, Solution
from numerics.solver import ConvergenceError, ConvergenceWarning, solve
from numerics.sweeps import sweep
from numerics.thresholds import (
    bayes_error,
    interpolation_threshold,
    max_margin,
    minimum_norm_interpolator,
    separability_threshold,
)

__all__ = [
    "OBSERVABLES",
    "Chain",
    "ConvergenceError",
    "ConvergenceWarning",
    "Estimator",
    "GaussianMixture",
    "ParameterError",
    "Solution",
    "bayes_error",
    "interpolation_threshold",
    "max_margin",
    "minimum_norm_interpolator",
    "parameter_paths",
    "separability_threshold",
    "simulate",
    "solve",
    "sweep",
    "with_parameter",
]
