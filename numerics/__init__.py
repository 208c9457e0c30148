"""Numerical side of the theory of distillation: solve saddle points, simulate finite systems, sweep parameters.

>>> from numerics import Estimator, GaussianMixture, solve
>>> from theory.losses import CrossEntropy
>>> solution = solve(GaussianMixture(alpha=3.0, rho=0.5, delta=0.5), Estimator(CrossEntropy(), ridge=0.01))
>>> round(solution[0].test_error, 6)
0.131023

Names are imported when they are first used: who solves one point does not wait for what simulates or sweeps.
"""

from __future__ import annotations

import importlib
from typing import Any

from numerics.deferred import importing, require_own_theory

_HOMES = {
    "classes.corrections": ("best_bias",),
    "classes.separability": ("complete_separability_threshold", "maximum_likelihood_threshold"),
    "models": (
        "BayesOptimal",
        "Chain",
        "ClassMixture",
        "ClassSet",
        "Clusters",
        "DataSet",
        "Dense",
        "Estimator",
        "FixedFeatures",
        "Frozen",
        "GaussianMixture",
        "Hebbian",
        "Isotropic",
        "LinearMap",
        "LinearRule",
        "Measured",
        "ParameterError",
        "PowerLaw",
        "RandomFeatures",
        "SharedCovariance",
        "Spectrum",
        "class_tree",
        "equal_overlaps",
        "gram_of_correlations",
        "mixture_of_samples",
        "orthogonal_means",
        "parameter_paths",
        "similar_pairs",
        "simplex_means",
        "with_parameter",
    ),
    "predict.fits": ("measure",),
    "simulation.run": ("Simulation", "simulate"),
    "solution.observables": ("OBSERVABLES",),
    "solution.solution": ("Solution",),
    "solver": ("ConvergenceError", "ConvergenceWarning", "solve"),
    "sweeps.run": ("sweep",),
    "thresholds": (
        "bayes_error",
        "interpolation_threshold",
        "interpolation_threshold_of",
        "max_margin",
        "max_margin_of",
        "minimum_norm_interpolator",
        "separability_threshold",
        "separability_threshold_of",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # here: solving a point does without

        return version("replica-distillation")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_own_theory()
    with importing():
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), "__version__", *__all__})
