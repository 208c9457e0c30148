"""Theory against the finite-size experiment, in standard errors.

16 runs at N = 1000 (slow and large: N = 2000 too), seed 3.  Every order parameter and both errors must agree with |z| < 4; the mean
|z| of all comparisons, about 0.8 for Gaussian noise, must stay below 1.1: a bias of one standard error would raise it to 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from numerics import Estimator, GaussianMixture, Solution, simulate, solve
from numerics.simulation.result import SimulationResult
from theory.losses import CrossEntropy, Distillation

RUNS = 16
STAGE_OBSERVABLES = (
    "magnetization",
    "bias",
    "norm_squared",
    "test_error",
    "train_error",
    "test_loss",
    "train_loss",
    "generalization_gap",
)


@dataclass(frozen=True)
class Setting:
    """One parameter set."""

    alpha: float
    rho: float
    mixing: float
    temperature: float
    eta: float
    teacher_ridge: float
    student_ridge: float

    def chain(self) -> list[Estimator]:
        loss = Distillation(self.mixing, self.temperature)
        return [Estimator(CrossEntropy(), self.teacher_ridge), Estimator(loss, self.student_ridge, eta=self.eta)]


SETTINGS = (
    Setting(3.0, 0.5, 0.0, 1.0, 0.5, 0.1, 0.01),
    Setting(0.8, 0.2, 1.0, 1.0, 0.5, 0.1, 1e-3),
    Setting(0.3, 0.2, 0.5, 5.0, 0.8, 0.05, 0.02),
    Setting(5.0, 0.2, 1.0, 5.0, 0.5, 0.3, 0.01),
    Setting(1.5, 0.5, 0.5, 1.0, 0.8, 0.1, 0.1),
    Setting(2.0, 0.2, 0.5, 5.0, 0.5, 1.0, 0.05),
)


def run(setting: Setting, n_inputs: int) -> SimulationResult:
    data = GaussianMixture(setting.alpha, setting.rho, 1.0)
    return simulate(data, setting.chain(), n_inputs=n_inputs, n_runs=RUNS, seed=3, responses=True, n_jobs=2)


def predict(setting: Setting, result: SimulationResult) -> Solution:
    """Theory at the alpha that was really drawn."""
    return solve(GaussianMixture(result.effective_alpha, setting.rho, 1.0), setting.chain(), throw=True)


def measured_samples(result: SimulationResult) -> float:
    """Training samples of one run."""
    return result.effective_alpha * result.n_inputs


def scores(result: SimulationResult, solution: Solution, *, responses: bool) -> dict[str, float]:
    """z of every comparison; exact zeros (V_21 without a soft target) are compared exactly."""
    z = {}
    for k, (measured, computed) in enumerate(zip(result, solution.stages, strict=True)):
        for name in STAGE_OBSERVABLES:
            found, expected = getattr(measured, name), getattr(computed, name)
            if found.standard_error == 0.0:  # a training error so small that no sample was misclassified
                assert found.mean == 0.0
                assert expected < 3.0 / (RUNS * measured_samples(result))
            else:
                z[f"{name} of stage {k + 1}"] = (found.mean - expected) / found.standard_error
    matrices = [("Q", result.overlap, solution.overlap, [(1, 0)])]
    if responses:
        matrices.append(("V", result.response, solution.response, [(0, 0), (1, 0), (1, 1)]))
    for name, found, expected, entries in matrices:
        for i, j in entries:
            if found.standard_error[i, j] == 0.0:
                assert expected[i, j] == pytest.approx(found.mean[i, j], abs=1e-10)
            else:
                z[f"{name}_{i + 1}{j + 1}"] = (found.mean[i, j] - expected[i, j]) / found.standard_error[i, j]
    return z


@pytest.fixture(scope="module")
def results() -> list[SimulationResult]:
    return [run(setting, 1000) for setting in SETTINGS]


def test_theory_agrees_with_simulation(results: list[SimulationResult]) -> None:
    everything = []
    for setting, result in zip(SETTINGS, results, strict=True):
        z = scores(result, predict(setting, result), responses=True)
        worst = max(z, key=lambda name: abs(z[name]))
        assert abs(z[worst]) < 4, (setting, worst, z[worst])
        everything += list(z.values())
    assert 0.4 < np.abs(everything).mean() < 1.1


@pytest.mark.parametrize(
    "wrong", [{"temperature": 4.7}, {"student_ridge": 0.012}, {"teacher_ridge": 0.29}, {"eta": 0.503}], ids=str
)
def test_a_slightly_wrong_theory_is_seen(results: list[SimulationResult], wrong: dict[str, float]) -> None:
    """The comparison above has the power to see errors in the third digit."""
    setting, result = SETTINGS[3], results[3]
    z = np.abs(list(scores(result, predict(replace(setting, **wrong), result), responses=True).values()))
    assert z.max() > 4 or z.mean() > 1.1


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param((1, 2, 4, 5), id="at most 2 samples a dimension", marks=pytest.mark.slow),
        pytest.param((0, 3), id="more", marks=pytest.mark.large),
    ],
)
def test_theory_agrees_with_a_larger_simulation(results: list[SimulationResult], chosen: tuple[int, ...]) -> None:
    """Without the responses, whose 1/N bias shows at this precision; those are extrapolated from two sizes instead."""
    everything = []
    for setting, small in ((SETTINGS[k], results[k]) for k in chosen):
        large = run(setting, 2000)
        solution = predict(setting, large)
        z = scores(large, solution, responses=False)
        for i, j in ((0, 0), (1, 0), (1, 1)):
            error = np.hypot(2 * large.response.standard_error[i, j], small.response.standard_error[i, j])
            if error > 0:
                extrapolated = 2 * large.response.mean[i, j] - small.response.mean[i, j]
                z[f"V_{i + 1}{j + 1}"] = (extrapolated - solution.response[i, j]) / error
        worst = max(z, key=lambda name: abs(z[name]))
        assert abs(z[worst]) < 4, (setting, worst, z[worst])
        everything += list(z.values())
    assert 0.4 < np.abs(everything).mean() < 1.1
