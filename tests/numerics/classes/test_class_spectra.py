"""K classes on inputs with a spectrum: two classes, white inputs in other units, measured means, and experiments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numerics import (
    Estimator,
    GaussianMixture,
    ParameterError,
    PowerLaw,
    SharedCovariance,
    Spectrum,
    complete_separability_threshold,
    simulate,
    solve,
    sweep,
)
from numerics.classes.solution import ClassSolution, solve_on_nodes
from numerics.classes.weights import law_of_weights
from numerics.models import Chain, ClassMixture, similar_pairs
from numerics.problem import read_problem, write_problem
from theory.losses import CrossEntropy, Distillation, SquareLoss

DATA = ClassMixture(
    2.5,
    [0.5, 0.3, 0.2],
    similar_pairs(3, 0.5),
    delta=[0.5, 0.8, 0.5],
    inputs=Spectrum([3.0, 1.0, 0.3], [0.5, 1.0, 2.0]),
)
CHAIN = [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(mixing=0.7, temperature=2.0), 0.05, eta=0.6)]
MEASURED = SharedCovariance.of(
    np.diag(np.geomspace(4.0, 0.2, 20)) + 0.1, np.random.default_rng(1).standard_normal((3, 20)) / np.sqrt(20)
)


@pytest.mark.parametrize(
    "inputs", [Spectrum([3.0, 1.0, 0.3], [0.5, 1.0, 2.0]), PowerLaw(1.2, 0.4, 30)], ids=["spectrum", "power law"]
)
def test_two_classes_are_the_binary_mixture(inputs: Spectrum | PowerLaw) -> None:
    data = ClassMixture(2.0, [0.3, 0.7], [[1.0, -1.0], [-1.0, 1.0]], delta=0.7, inputs=inputs)
    chain = [Estimator(CrossEntropy(), 0.2), Estimator(Distillation(mixing=0.7, temperature=2.0), 0.1, eta=0.5)]
    binary = [replace(stage, ridge=0.5 * stage.ridge) for stage in chain]
    expected = solve(GaussianMixture(2.0, 0.7, 0.7, inputs=inputs), binary, throw=True)
    found = solve(data, chain, throw=True)
    here = solve_on_nodes(data, Chain.of(chain), rtol=1e-5)
    assert here.converged
    for solution, tolerance in ((found, 1e-12), (here, 2e-5)):
        for stage, same in zip(solution.stages, expected.stages, strict=True):
            assert stage.test_error == pytest.approx(same.test_error, abs=tolerance)
            assert np.sqrt(2.0) * stage.norm == pytest.approx(same.norm, abs=3 * tolerance)
    for name in ("means", "bias", "overlap", "response"):
        assert getattr(here, name) == pytest.approx(getattr(found, name), abs=1e-4), name


def test_one_variance_is_another_noise() -> None:
    """Lambda = 2 everywhere, with twice the squared means, is Delta times 2; V is that of inputs of variance Delta."""
    white = ClassMixture(2.5, DATA.weights, similar_pairs(3, 0.5), delta=[1.0, 1.6, 1.0])
    same = replace(DATA, inputs=Spectrum([2.0, 2.0]))
    expected, found = solve(white, CHAIN, throw=True), solve(same, CHAIN, throw=True)
    for stage, other in zip(found.stages, expected.stages, strict=True):
        assert stage.test_error == pytest.approx(other.test_error, abs=1e-8)
        assert stage.norm == pytest.approx(other.norm, abs=1e-7)
        assert stage.free_energy == pytest.approx(other.free_energy, rel=1e-6)
    assert found.overlap == pytest.approx(2.0 * expected.overlap, abs=1e-7)
    assert found.response == pytest.approx(2.0 * expected.response, abs=1e-7)


def test_measured_means_that_spread_evenly_are_a_spectrum() -> None:
    """Three coordinates of each variance, on which the means have the Gram matrix of the mixture, turned anyhow."""
    gram, generator = similar_pairs(3, 0.5), np.random.default_rng(3)
    values = np.array([3.0, 1.0, 0.3])
    turned = [np.linalg.qr(generator.standard_normal((3, 3)))[0] for _ in values]
    coordinates = [np.sqrt(3.0) * gram.means() @ turn for turn in turned]
    inputs = SharedCovariance(np.repeat(values, 3), np.hstack(coordinates))
    chain = [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(mixing=0.7, temperature=2.0), 0.05)]
    expected = solve(replace(DATA, inputs=Spectrum(values)), chain, throw=True)
    found = solve(replace(DATA, gram=None, inputs=inputs), chain, throw=True)
    for name in ("means", "bias", "overlap", "response"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=2e-5), name
    for stage, same in zip(found.stages, expected.stages, strict=True):
        assert stage.norm == pytest.approx(same.norm, abs=2e-5)


def test_the_law_of_weights_is_that_of_the_order_parameters() -> None:
    """m = <w mu> and Q = <lambda w w^T>, of the second stage too."""
    chain = [CHAIN[0], replace(CHAIN[1], eta=1.0)]
    data = replace(DATA, gram=None, inputs=MEASURED)
    solution = solve(data, chain, throw=True)
    for number in (1, 2):
        mean, covariance = law_of_weights(solution, number)
        squares = np.einsum("ik,il->ikl", mean, mean) + covariance
        overlap = np.einsum("i,ikl->kl", MEASURED.variances, squares) / len(mean)
        assert overlap == pytest.approx(solution.overlap[number - 1, number - 1], abs=1e-6)
        assert np.array(MEASURED.means) @ mean / len(mean) == pytest.approx(solution.means[number - 1], abs=1e-6)
    with pytest.raises(ParameterError, match="eta of all stages must be 1"):
        law_of_weights(solve(data, CHAIN), 2)
    with pytest.raises(ParameterError, match="inputs must be a SharedCovariance"):
        law_of_weights(solve(DATA, CHAIN[0]), 1)


def scores(data: ClassMixture, chain: list[Estimator], n_inputs: int, seed: int) -> np.ndarray:
    """z of every block, class error and observable."""
    runs = simulate(data, chain, n_inputs=n_inputs, n_runs=24, seed=seed)
    assert runs.converged
    solution: ClassSolution = solve(runs.effective_data, runs.effective_chain, throw=True)
    found = []
    for name in ("means", "bias", "overlap"):
        drawn = runs.runs[name]
        error = np.std(drawn, axis=0, ddof=1) / np.sqrt(len(drawn))
        seen = error > 1e-12
        found.append((drawn.mean(axis=0) - getattr(solution, name))[seen] / error[seen])
    for stage, measured in zip(solution.stages, runs, strict=True):
        for name in ("test_error", "norm", "train_error", "train_loss", "test_cross_entropy", "free_energy"):
            value = getattr(measured, name)
            found.append(np.array([(value.mean - getattr(stage, name)) / value.standard_error]))
    return np.concatenate(found)


@pytest.mark.parametrize("case", ["spectrum", "measured"])
@pytest.mark.parametrize(("n_inputs", "seed"), [(120, 1), (240, 2)])
def test_experiments(case: str, n_inputs: int, seed: int) -> None:
    """24 runs each; |z| < 4 for every block, class error and observable."""
    if case == "spectrum":
        z = scores(DATA, CHAIN, n_inputs, seed)
    else:
        chain = [CHAIN[0], replace(CHAIN[1], eta=1.0)]
        z = scores(replace(DATA, gram=None, inputs=MEASURED), chain, n_inputs, seed)
    assert z.size > 60
    assert np.abs(z).max() < 4.0
    assert np.sqrt(np.mean(z**2)) < 1.7


def test_sweeps_and_files() -> None:
    data = ClassMixture(2.0, gram=similar_pairs(3, 0.5), inputs=PowerLaw(1.2, 0.4, 12))
    chain = Chain.of(Estimator(SquareLoss(), 0.3))
    grid = sweep(data, chain, {"capacity": [0.8, 1.2]}, observables=["test_error"])
    last = float(grid["test_error"].sel(capacity=1.2).values.ravel()[-1])
    assert last == pytest.approx(solve(data, chain)[0].test_error, abs=1e-5)
    for case in (data, replace(DATA, gram=None, inputs=MEASURED), DATA):
        assert read_problem(write_problem(case, chain)) == (case, chain)


def test_what_is_refused() -> None:
    wrong = {
        "inputs of K classes must be Isotropic, Spectrum, PowerLaw or SharedCovariance": {"inputs": "white"},
        "gram must be left out beside a SharedCovariance": {"inputs": MEASURED, "gram": similar_pairs(3, 0.5)},
    }
    for message, given in wrong.items():
        with pytest.raises(ParameterError, match=message):
            ClassMixture(2.0, **given)
    with pytest.raises(ParameterError, match="weights must be of 3 classes"):
        ClassMixture(2.0, [0.5, 0.5], inputs=MEASURED)
    with pytest.raises(ParameterError, match="smallest eigenvalue is -1"):
        SharedCovariance.of([[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ParameterError, match="means must have 2 columns"):
        SharedCovariance.of(np.eye(2), np.eye(3))
    with pytest.raises(ParameterError, match="means must be a K x 2 matrix"):
        SharedCovariance([1.0, 1.0], np.ones((3, 3)))
    with pytest.raises(ParameterError, match="inputs must be Isotropic for a threshold"):
        complete_separability_threshold(DATA)
