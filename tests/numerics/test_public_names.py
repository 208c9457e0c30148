"""Addresses that users type: what a release must not move."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping

import pytest

import numerics
from numerics import GaussianMixture, solve
from numerics.optimize import Optimum
from theory.losses import CrossEntropy

PACKAGE = (
    "BayesOptimal Chain ConvergenceError ConvergenceWarning DataSet Estimator Frozen GaussianMixture Hebbian "
    "OBSERVABLES ParameterError Simulation Solution bayes_error interpolation_threshold max_margin "
    "minimum_norm_interpolator parameter_paths separability_threshold simulate solve sweep with_parameter"
)
"""Names of ``numerics`` itself."""

MODULES = {
    "numerics.models": "BayesOptimal Chain ConvergenceWarning DataSet Estimator Frozen GaussianMixture Hebbian ParameterError "
    "Stage TRAINING check_fit parameter_paths parameter_value parameter_values require_number total_alpha with_parameter",
    "numerics.problem": "read_problem write_problem",
    "numerics.optimize": "Optimum derivatives optimize",
    "numerics.schedules": "optimal_schedule",
    "numerics.explorer": "explore",
    "numerics.thresholds": "bayes_error interpolation_threshold max_margin minimum_norm_interpolator separability_threshold",
    "numerics.settings": "DEFAULT Settings",
    "numerics.square_chain": "limit_of_self_distillation",
    "numerics.neurons.exact": "NeuronsNeeded neurons_needed",
    "numerics.anatomy": "Anatomy SimulatedAnatomy anatomy simulate_anatomy",
    "numerics.predict": "Check Choice Prediction check choose cross_validate learning_curves measure predict reliability",
    "theory.losses": "BUILT_IN CrossEntropy Distillation LinearLoss Loss PseudoLabels Range SquareDistillation SquareLoss",
    "theory.symbols": "TEACHER h ridge",
    "theory.potential": "QuadraticPrior channel_equations conditional_moments conjugates coupling "
    "entropic_potential prior_equations",
    "theory.replica": "entropic_limit stage_ridge",
}
"""Modules that users import from, and what they find there."""

COMMANDS = (
    "numerics.solve", "numerics.simulate", "numerics.sweep", "numerics.phase_diagram", "numerics.random_box", "numerics.anatomy",
    "numerics.neurons", "numerics.predict", "theory", "figures",
)  # fmt: skip
"""What is run with ``python -m``."""

SOLUTION = (
    "bias chain cholesky converged data iterations magnetization message overlap quadrature_error residual response "
    "stages to_dict"
)
STAGE = (
    "bayes_error bias calibration_error calibration_offset calibration_slope clean_train_error cosine error_of "
    "estimator free_energy generalization_gap limit loss_gap magnetization margin name norm norm_squared "
    "relative_bias response teacher_agreement teacher_cosine test_cross_entropy test_error test_logit_distance "
    "test_loss test_output_distance train_cross_entropy train_error train_logit_distance train_loss "
    "train_output_distance"
)
RESULT = (
    "active bias chain converged data effective_alpha effective_chain effective_data effective_eta estimate "
    "magnetization mean message n_inputs n_runs n_samples overlap response runs seed set_sizes standard_error to_dict"
)
OPTIMUM = "converged evaluations gradient limit location maximize message observable parameters solution value"
"""Attributes of what ``solve``, ``simulate`` and ``optimize`` return."""


def test_names_of_the_package() -> None:
    assert set(PACKAGE.split()) <= set(numerics.__all__)
    for name in PACKAGE.split():
        assert getattr(numerics, name) is not None


@pytest.mark.parametrize("name", MODULES)
def test_names_of_modules(name: str) -> None:
    if name == "numerics.explorer":
        pytest.importorskip("ipywidgets")
    module = importlib.import_module(name)
    assert [found for found in MODULES[name].split() if not hasattr(module, found)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str) -> None:
    assert importlib.util.find_spec(name) is not None


def test_attributes_of_results() -> None:
    solution = solve(GaussianMixture(2.0, 0.2), numerics.Estimator(CrossEntropy(), 0.1))
    assert set(SOLUTION.split()) <= set(dir(solution))
    assert set(STAGE.split()) <= set(dir(solution[0]))
    runs = numerics.simulate(solution.data, solution.chain, n_inputs=40, n_runs=1)
    assert set(RESULT.split()) <= {*dir(runs), *(name for name in inspect.signature(type(runs)).parameters)}
    assert set(OPTIMUM.split()) <= set(inspect.signature(Optimum).parameters)


def test_observables_are_a_mapping_of_names_to_labels() -> None:
    assert isinstance(numerics.OBSERVABLES, Mapping)
    assert all(isinstance(name, str) and isinstance(label, str) for name, label in numerics.OBSERVABLES.items())
