"""The solver as a user meets it: convergence over the parameter space, continuation, failures, bad input."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from numerics import (
    Chain,
    ConvergenceError,
    ConvergenceWarning,
    Estimator,
    GaussianMixture,
    ParameterError,
    parameter_paths,
    solve,
    sweep,
    with_parameter,
)
from numerics.solution.observables.registry import observables_of
from theory.losses import CrossEntropy, Distillation, Loss, SquareDistillation, SquareLoss


def random_point(rng: np.random.Generator) -> tuple[GaussianMixture, list[Estimator]]:
    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    data = GaussianMixture(log_uniform(0.05, 20.0), log_uniform(0.02, 0.5), 1.0)
    mixing = float(rng.choice([0.0, 1.0, rng.uniform()]))
    student = Distillation(mixing, log_uniform(0.5, 20.0))
    teacher = Estimator(CrossEntropy(), log_uniform(1e-5, 10.0))
    return data, [teacher, Estimator(student, log_uniform(1e-5, 10.0), eta=float(rng.uniform(0.05, 1.0)))]


def test_every_point_of_a_wide_box_converges() -> None:
    """400 points; residual below 1e-9 and quadrature error below 1e-8."""
    rng = np.random.default_rng(0)
    for _ in range(400):
        data, chain = random_point(rng)
        solution = solve(data, chain, throw=True)
        assert solution.residual < 1e-9
        assert solution.quadrature_error < 1e-8
        for stage in solution.stages:
            assert min(data.rho, 1 - data.rho) > 0
            assert stage.bayes_error - 1e-12 <= stage.test_error < 1 - stage.bayes_error


def test_continuation_gives_the_cold_answer(distilled: list[Estimator]) -> None:
    start = solve(GaussianMixture(0.45, 0.2, 1.0), distilled)
    warm = solve(GaussianMixture(0.5, 0.2, 1.0), distilled, start=start)
    cold = solve(GaussianMixture(0.5, 0.2, 1.0), distilled)
    np.testing.assert_allclose(warm.overlap, cold.overlap, rtol=1e-8)
    np.testing.assert_allclose(warm.response, cold.response, rtol=1e-8)


def test_tighter_tolerance_does_not_move_the_solution(distilled: list[Estimator]) -> None:
    loose = solve(GaussianMixture(0.5, 0.2, 1.0), distilled)
    tight = solve(GaussianMixture(0.5, 0.2, 1.0), distilled, rtol=1e-11)
    np.testing.assert_allclose(loose.overlap, tight.overlap, rtol=1e-8)


def test_failure_is_never_silent(distilled: list[Estimator]) -> None:
    data = GaussianMixture(0.5, 0.2, 1.0)
    with pytest.warns(ConvergenceWarning, match="iterations"):
        solution = solve(data, distilled, max_iterations=1)
    assert not solution.converged
    assert "stage 1 (teacher)" in solution.message
    assert math.isnan(solution[0].test_error)
    assert all(value is None for key, value in solution.to_dict()["stages"][1].items() if key in ("norm", "test_loss"))
    with pytest.raises(ConvergenceError, match="stage 1"):
        solve(data, distilled, max_iterations=1, throw=True)


def test_solution_goes_to_json(distilled: list[Estimator]) -> None:
    data = GaussianMixture(2.0, 0.2, 1.0)
    result = json.loads(json.dumps(solve(data, distilled).to_dict()))
    assert {"converged", "residual", "iterations", "quadrature_error", "stages", "overlap", "response"} <= set(result)
    assert set(observables_of(data)) <= set(result["stages"][1])


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: GaussianMixture(0.0), "alpha"),
        (lambda: GaussianMixture(-1.0), "alpha"),
        (lambda: GaussianMixture(math.nan), "alpha"),
        (lambda: GaussianMixture("2"), "alpha"),
        (lambda: GaussianMixture(1.0, rho=0.0), "rho"),
        (lambda: GaussianMixture(1.0, rho=1.0), "rho"),
        (lambda: GaussianMixture(1.0, rho=math.nan), "rho"),
        (lambda: GaussianMixture(1.0, delta=0.0), "delta"),
        (lambda: GaussianMixture(1.0, delta=math.inf), "delta"),
        (lambda: Estimator(CrossEntropy(), ridge=-0.1), "ridge"),
        (lambda: Estimator(CrossEntropy(), ridge=math.nan), "ridge"),
        (lambda: Estimator(CrossEntropy(), ridge=0.1, eta=0.0), "eta"),
        (lambda: Estimator(CrossEntropy(), ridge=0.1, eta=1.5), "eta"),
        (lambda: Estimator(CrossEntropy(), ridge=0.1, name="a b"), "name"),
        (lambda: Estimator("logistic", ridge=0.1), "loss"),
        (lambda: Distillation(mixing=1.5), "mixing"),
        (lambda: Distillation(temperature=0.0), "temperature"),
        (lambda: Distillation(temperature=math.nan), "temperature"),
        (lambda: CrossEntropy(smoothing=0.7), "smoothing"),
        (lambda: Loss.from_expression("-(h - s)**2"), "convex"),
        (lambda: Loss.from_expression("(h - q)**2"), "q"),
        (lambda: Chain.of([]), "chain"),
        (lambda: Chain.of([Estimator(Distillation(), 0.1)]), "stage 1"),
        (lambda: Chain.of([Estimator(SquareLoss(), 0.1, name="a"), Estimator(SquareLoss(), 0.1, name="a")]), "name"),
        (lambda: solve(GaussianMixture(1.0), [Estimator(CrossEntropy(), 0.1)], rtol=2.0), "rtol"),
        (lambda: solve(GaussianMixture(1.0), [Estimator(CrossEntropy(), 0.1)], max_iterations=0), "max_iterations"),
        (lambda: solve("data", [Estimator(CrossEntropy(), 0.1)]), "data"),
        (lambda: solve(GaussianMixture(1.0), [Estimator(CrossEntropy(), 0.1)], start=3), "start"),
        (lambda: sweep(GaussianMixture(1.0), Estimator(CrossEntropy(), 0.1), {"beta": [1.0]}), "beta"),
        (lambda: sweep(GaussianMixture(1.0), Estimator(CrossEntropy(), 0.1), {"alpha": [1.0, -1.0]}), "alpha"),
        (lambda: sweep(GaussianMixture(1.0), Estimator(CrossEntropy(), 0.1), {"alpha": [1.0]}, ["colour"]), "colour"),
        (lambda: sweep(GaussianMixture(1.0), Estimator(CrossEntropy(), 0.1), {"alpha": [1.0]}, jobs=0), "jobs"),
    ],
)
def test_bad_input_names_the_parameter(build, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        build()


def test_parameters_are_found_by_path(distilled: list[Estimator]) -> None:
    data, chain = GaussianMixture(1.0, 0.2, 1.0), Chain.of(distilled)
    for path in parameter_paths(chain):
        value = 0.4
        changed_data, changed_chain = with_parameter(data, chain, path, value)
        assert (changed_data, changed_chain) != (data, chain)
    with pytest.raises(ParameterError, match=r"student\.temperature"):
        with_parameter(data, chain, "student.colour", 1.0)


def test_sweep_is_labelled_and_ordered(distilled: list[Estimator]) -> None:
    data = GaussianMixture(1.0, 0.2, 1.0)
    alphas = [2.0, 0.5, 1.0]
    grid = sweep(data, distilled, {"teacher.ridge": [0.1, 1.0], "alpha": alphas}, ["test_error", "norm"])
    assert grid["test_error"].dims == ("stage", "teacher.ridge", "alpha")
    assert bool(grid["converged"].all())
    for ridge in (0.1, 1.0):
        for alpha in alphas:
            here = with_parameter(data, Chain.of(distilled), "teacher.ridge", ridge)
            solution = solve(*with_parameter(*here, "alpha", alpha))
            for name in ("teacher", "student"):
                found = grid["test_error"].sel({"stage": name, "teacher.ridge": ridge, "alpha": alpha})
                index = ("teacher", "student").index(name)
                assert float(found) == pytest.approx(solution[index].test_error, rel=1e-8)


def test_sweep_masks_what_does_not_converge(distilled: list[Estimator]) -> None:

    from numerics.settings import DEFAULT

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid = sweep(
            GaussianMixture(1.0, 0.2, 1.0), distilled, {"alpha": [0.5, 1.0]},
            settings=replace(DEFAULT, max_iterations=1),
        )  # fmt: skip
    assert not grid["converged"].any()
    assert np.isnan(grid["test_error"]).all()


@pytest.mark.parametrize("eta", [1.0, 0.9])
def test_rounding_amplified_along_a_chain_is_not_hidden(eta: float) -> None:
    """Each student multiplies its teacher's bias, 0 here, by 600: at the sixth stage rounding errors of the first take over.

    Stages with all inputs in common are solved through the spectral measure, where they do not arise; others may not converge.
    """
    data = GaussianMixture(2.0, 0.5, 0.5, label_noise=0.3)
    first = Estimator(Loss.from_expression("((h+1)/2 - y)**2"), 1000.0)
    students = [Estimator(SquareDistillation(1.0, 1 + 2 * 1000.0 / 3), 1000.0, eta=eta) for _ in range(5)]
    short = solve(data, [first, *students[:2]])
    assert short.converged
    assert abs(short[2].bias) < 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution = solve(data, [first, *students])
    if eta == 1.0:
        assert solution.converged
        assert solution.quadrature_error < 1e-12
    if solution.converged:
        assert abs(solution[5].bias) < 1e-5
    else:
        assert "quadrature error estimate" in solution.message


def test_five_logistic_stages_at_two_accuracies() -> None:
    data = GaussianMixture(3.0, 0.4, 0.5, label_noise=0.2)
    chain = [Estimator(CrossEntropy(), 0.5)]
    chain += [Estimator(Distillation(0.8, 1.0 + 0.5 * k), 0.07, eta=1.0 - 0.1 * k) for k in range(4)]
    loose, tight = solve(data, chain), solve(data, chain, rtol=1e-8)
    assert loose.converged
    assert tight.converged
    np.testing.assert_allclose(loose.overlap, tight.overlap, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose([s.test_error for s in loose], [s.test_error for s in tight], rtol=1e-6)


def test_vanishing_weights_are_named() -> None:
    """Labels smoothed to 1/2 say nothing: the weights are 0, and the message says why there are no errors."""
    solution = solve(GaussianMixture(alpha=1.0, rho=0.2), Estimator(CrossEntropy(smoothing=0.5), ridge=0.1))
    assert solution.converged
    assert "its weights are 0" in solution.message


def test_settings_are_checked() -> None:
    with pytest.raises(ParameterError, match="settings"):
        solve(GaussianMixture(1.0, 0.3, 1.0), Estimator(CrossEntropy(), 0.1), settings=3)
