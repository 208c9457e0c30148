"""Networks with a given first layer: what they reduce to, random features, and experiments with the networks themselves."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from numerics import (
    Dense,
    Estimator,
    FixedFeatures,
    GaussianMixture,
    LinearMap,
    LinearRule,
    Measured,
    ParameterError,
    RandomFeatures,
    Spectrum,
    simulate,
    solve,
    sweep,
)
from numerics.models import Chain, DataModel, check_fit, parameter_paths
from numerics.models.dense import covariance_between, response_of
from numerics.optimize import derivatives
from numerics.problem import read_problem, write_problem
from numerics.solution.solution import Solution
from numerics.solution.weight_law import law_of_weights, logits_on
from tests.against_experiments import scores_of_stages
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

SIZE = 12
STAGES = (
    Estimator(CrossEntropy(), 0.1),
    Estimator(Distillation(mixing=0.7, temperature=2.0), 0.05),
    Estimator(Distillation(mixing=0.4, teacher=1), 0.07),
)
REGRESSION = (Estimator(SquareLoss(), 0.1), Estimator(SquareDistillation(mixing=0.6), 0.05))
MEASURED = ("magnetization", "bias", "norm_squared", "test_error", "train_error", "train_loss", "excess_risk")


def seeing(stages: tuple[Estimator, ...], features: list) -> list[Estimator]:
    return [Estimator(stage.loss, stage.ridge, features=seen) for stage, seen in zip(stages, features, strict=False)]


def first_layer(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of different lengths."""
    return generator.normal(size=(rows, columns)) * generator.uniform(0.6, 1.5, size=(rows, 1))


def inputs_of(size: int, generator: np.random.Generator) -> Dense:
    samples = generator.normal(size=(size, 2 * size))
    return Dense(samples @ samples.T / (2 * size), 0.7 * generator.normal(size=size))


def problems() -> dict[str, tuple[DataModel, list[Estimator]]]:
    """Networks that are different, or have a first layer in common, linear maps, and the inputs themselves."""
    generator = np.random.default_rng(1)
    inputs = inputs_of(SIZE, generator)
    relu = FixedFeatures(first_layer(15, SIZE, generator), "relu")
    tanh = FixedFeatures(relu.first_layer[:9], "tanh")
    linear = LinearMap(generator.normal(size=(8, SIZE)) / math.sqrt(SIZE))
    return {
        "networks": (GaussianMixture(1.4, 0.4, 0.8, inputs=inputs), seeing(STAGES, [relu, tanh, relu])),
        "mixed": (GaussianMixture(1.4, 0.4, 0.8, label_noise=0.1, inputs=inputs), seeing(STAGES, [linear, relu, None])),
        "probit": (
            LinearRule(1.4, output="probit", noise=0.2, inputs=inputs),
            seeing(STAGES, [tanh, FixedFeatures(relu.first_layer, "sign")]),
        ),
        "regression": (LinearRule(1.4, noise=0.2, inputs=inputs), seeing(REGRESSION, [relu, linear])),
        "equal": (GaussianMixture(1.4, 0.4, 0.8, inputs=inputs), seeing(STAGES, [tanh, tanh])),
    }


def assert_equal(found: Solution, expected: Solution, rtol: float) -> None:
    assert found.converged
    assert expected.converged
    for name in ("magnetization", "bias", "overlap"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=rtol, atol=rtol)
    for name in ("test_error", "train_loss", "excess_risk"):
        for one, other in zip(found.stages, expected.stages, strict=True):
            if hasattr(other, name):
                assert getattr(one, name) == pytest.approx(getattr(other, name), rel=rtol, nan_ok=True)


def test_a_linear_activation_is_a_linear_map() -> None:
    generator = np.random.default_rng(0)
    inputs, layer = inputs_of(SIZE, generator), first_layer(10, SIZE, generator)
    relu = FixedFeatures(first_layer(7, SIZE, generator), "relu")
    for data, stages in (
        (GaussianMixture(1.4, 0.4, 0.8, inputs=inputs), STAGES),
        (LinearRule(1.4, noise=0.2, inputs=inputs), REGRESSION),
    ):
        found, expected = (
            solve(data, seeing(stages, [seen, relu, None]), rtol=1e-11)
            for seen in (FixedFeatures(layer, "h"), LinearMap(layer / math.sqrt(SIZE)))
        )
        assert_equal(found, expected, 1e-10)


@pytest.mark.parametrize("case", problems())
def test_what_is_seen_may_be_the_inputs(case: str) -> None:
    """Linear maps of Gaussian inputs that have, together, the mean and the covariance of all that stages see."""
    data, stages = problems()[case]
    inputs, maps = data.inputs, [None, *dict.fromkeys(s.features for s in stages if s.features is not None)]
    blocks = [[covariance_between(one, other, inputs, data.variance) for other in maps] for one in maps]
    responses = [response_of(seen, inputs, data.variance) for seen in maps]
    edges, whole = np.cumsum([0, *map(len, responses)]), np.block(blocks)
    ratio = len(whole) / SIZE  # of what is counted as inputs
    if data.ruled:  # a rule acts on the inputs alone
        signal = np.concatenate([inputs.direction, np.zeros(len(whole) - SIZE)])
    else:
        signal = ratio * np.concatenate([response @ inputs.direction for response in responses])
    joint = Dense(0.5 * ratio * (whole + whole.T), signal)
    same = replace(data, alpha=data.alpha / ratio, inputs=joint)
    rows = {seen: LinearMap(np.eye(len(whole))[edges[k] : edges[k + 1]]) for k, seen in enumerate(maps)}
    apart = [replace(stage, features=rows[stage.features]) for stage in stages]
    found, expected = solve(data, stages), solve(same, apart)
    for name in ("bias", "overlap"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-8, atol=1e-11)
    for one, other in zip(found.stages, expected.stages, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-8)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_drawn_network_is_near_the_average_over_all(activation: str) -> None:
    """Rows of squared length N: what is left falls like 1/N."""
    white, ruled = GaussianMixture(2.0, 0.3, 0.7), LinearRule(2.0, noise=0.1)
    network = RandomFeatures(1.5, activation)
    student, pupils = seeing(STAGES, [None, network]), seeing(REGRESSION, [network, network])
    wanted = [solve(white, student)[1].test_error, *(stage.excess_risk for stage in solve(ruled, pupils))]
    for size in (100, 400):
        layer = np.random.default_rng(2).normal(size=(round(1.5 * size), size))
        layer *= math.sqrt(size) / np.linalg.norm(layer, axis=1, keepdims=True)
        fixed, inputs = FixedFeatures(layer, activation), Dense(np.eye(size))
        mixture = GaussianMixture(2.0, 0.3, 0.7, inputs=inputs)
        found = [solve(mixture, seeing(STAGES, [None, fixed]))[1].test_error]
        rule = LinearRule(2.0, noise=0.1, inputs=inputs)
        found += [stage.excess_risk for stage in solve(rule, seeing(REGRESSION, [fixed, fixed]))]
        np.testing.assert_allclose(found, wanted, rtol=2.5 / size)


def scores(data: DataModel, stages: list[Estimator], n_inputs: int, n_runs: int, seed: int) -> np.ndarray:
    """(experiment - theory)/(standard error) of all that is measured."""
    solution, runs = solve(data, stages), simulate(data, stages, n_inputs=n_inputs, n_runs=n_runs, seed=seed)
    found = scores_of_stages(solution, runs, MEASURED)
    overlap = runs.estimate("overlap")
    found += list(((overlap.mean - solution.overlap) / overlap.standard_error)[np.tril_indices(len(stages))])
    return np.array(found)


@pytest.mark.parametrize(("case", "n_inputs"), [("mixed", 240), ("regression", 240), ("regression", 480)])
def test_theory_agrees_with_small_experiments(case: str, n_inputs: int) -> None:
    found = scores(*problems()[case], n_inputs, 24, seed=1)
    assert np.abs(found).max() < 4


@pytest.mark.slow
@pytest.mark.parametrize("case", problems())
def test_theory_agrees_with_large_experiments(case: str) -> None:
    """With many copies of few inputs."""
    for n_inputs, seed in ((480, 11), (960, 12)):
        assert np.abs(scores(*problems()[case], n_inputs, 24, seed)).max() < 4


@pytest.mark.slow
@pytest.mark.parametrize("size", [200, 400])
def test_theory_agrees_with_experiments_on_one_copy(size: int) -> None:
    """Gaussian equivalence, of networks that are different."""
    generator = np.random.default_rng(3)
    inputs = inputs_of(size, generator)
    networks = [
        FixedFeatures(first_layer(round(ratio * size), size, generator), activation)
        for ratio, activation in ((1.3, "relu"), (0.7, "tanh"))
    ]
    for data, stages in (
        (GaussianMixture(1.4, 0.4, 0.8, inputs=inputs), STAGES),
        (LinearRule(1.4, noise=0.2, inputs=inputs), REGRESSION),
    ):
        assert np.abs(scores(data, seeing(stages, networks), size, 24, 5)).max() < 4


def test_covariances_are_exact_where_there_are_few_inputs() -> None:
    """Linear fields and noise of the same variance (Gaussian equivalence) are off by ten standard errors here."""
    generator = np.random.default_rng(7)
    networks = [FixedFeatures(first_layer(rows, 10, generator), "relu") for rows in (20, 10)]
    chain = [
        Estimator(loss, 0.02, features=seen)
        for loss, seen in zip((SquareLoss(), SquareDistillation(1.0)), networks, strict=True)
    ]
    found = scores(LinearRule(2.0, noise=0.2, inputs=Dense(np.eye(10))), chain, 400, 60, seed=3)
    assert np.abs(found).max() < 4
    assert math.sqrt(np.mean(found**2)) < 1.6


def test_responses_agree_with_experiments() -> None:
    """Responses have corrections of order 1/N: those of two sizes are extrapolated."""
    data, stages = problems()["regression"]
    runs = [
        simulate(data, stages, n_inputs=n, n_runs=24, seed=4, responses=True).estimate("response") for n in (120, 240)
    ]
    mean = 2 * runs[1].mean - runs[0].mean
    error = np.hypot(2 * runs[1].standard_error, runs[0].standard_error)
    below = np.tril_indices(2)
    assert np.abs((mean - solve(data, stages).response)[below] / error[below]).max() < 4


@pytest.mark.parametrize("case", ["networks", "mixed", "equal"])
def test_the_law_of_weights_gives_order_parameters_and_logits(case: str) -> None:
    data, stages = problems()[case]
    solution, inputs = solve(data, stages), data.inputs
    fresh = np.random.default_rng(2).normal(size=(4, SIZE))
    for t, stage in enumerate(stages):
        mean, covariance = law_of_weights(solution, t)
        seen, given = stage.features, (inputs, data.variance)
        if isinstance(seen, FixedFeatures):
            omega, rows = covariance_between(seen, seen, *given), seen.of(fresh, *given)
            signal = response_of(seen, *given) @ inputs.direction
        else:
            omega, signal, rows = inputs.covariance, inputs.direction, fresh
        assert mean @ signal / SIZE == pytest.approx(solution.magnetization[t], rel=1e-8)
        square = (mean @ omega @ mean + np.trace(omega @ covariance)) / SIZE
        assert square == pytest.approx(solution.overlap[t, t], rel=1e-8)
        logits = logits_on(solution, t, fresh)
        np.testing.assert_allclose(logits.mean, rows @ mean / math.sqrt(SIZE) + solution.bias[t], rtol=1e-9)
        np.testing.assert_allclose(logits.variance, np.einsum("ij,jk,ik->i", rows, covariance, rows) / SIZE, rtol=1e-9)


def test_delta_can_be_swept_and_differentiated() -> None:
    """What features have in common depends on it, while linear maps know it as a factor."""
    data, stages = problems()["networks"]
    found = sweep(data, stages, {"delta": [0.5, 0.8, 1.1]}, ["test_error", "norm", "train_error"])
    errors = []
    for delta in found.delta.to_numpy():
        single = solve(GaussianMixture(data.alpha, data.rho, delta, inputs=data.inputs), stages)
        errors.append(single[1].test_error)
        for name in ("test_error", "norm", "train_error"):
            value = found[name].sel(delta=delta, stage="student")
            assert float(value) == pytest.approx(getattr(single[1], name), rel=1e-7)
    step, values = 1e-3, []
    for shift in (-2, -1, 1, 2):
        moved = GaussianMixture(data.alpha, data.rho, 0.8 + shift * step, inputs=data.inputs)
        values.append(solve(moved, stages, rtol=1e-11)[1].test_error)
    slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    exact = derivatives(solve(data, stages), ["delta"], ["student.test_error"])["delta"]["student.test_error"]
    assert exact == pytest.approx(slope, rel=1e-5)


def test_what_has_the_same_numbers_and_activation_is_equal(tmp_path: Path) -> None:
    layer = np.arange(6.0).reshape(2, 3)
    features = FixedFeatures(layer, "erf")
    assert features == FixedFeatures(layer.tolist(), "erf") == pickle.loads(pickle.dumps(features))
    assert repr(features).startswith("FixedFeatures(2x3, 'erf', ")
    assert len({features, FixedFeatures(layer, "relu"), LinearMap(layer), FixedFeatures(layer, "erf")}) == 3
    data = GaussianMixture(2.0, inputs=Dense(np.eye(3), [1.0, 0.5, 0.2]))
    chain = Chain.of([STAGES[0], Estimator(Distillation(), 0.1, features=features)])
    text = write_problem(data, chain)
    assert read_problem(text) == (data, chain)
    described = json.loads(text)
    np.save(tmp_path / "layer.npy", layer)
    described["chain"][1]["features"]["first_layer"] = str(tmp_path / "layer.npy")
    assert read_problem(json.dumps(described)) == (data, chain)
    assert "student.features" not in parameter_paths(chain, data)
    runs = simulate(data, chain, n_inputs=30, n_runs=1)
    assert runs.active == (30, 20)
    assert runs.effective_chain == chain


def on(inputs: object, features: object) -> None:
    check_fit(GaussianMixture(1.0, inputs=inputs), Chain.of(Estimator(CrossEntropy(), 0.1, features=features)))


LAYER = [[1.0, 2.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedFeatures([1.0]), r"first_layer must be a matrix of 1 to 4000 entries an axis, got shape \(1,\)"),
        (lambda: FixedFeatures([[math.nan]]), "first_layer must have finite entries, got nan"),
        (lambda: FixedFeatures("F"), "first_layer must be a matrix of real numbers, got 'F'"),
        (lambda: FixedFeatures(LAYER, "swish"), "activation must be one of relu, erf, tanh, sign or a smooth formula"),
        (lambda: FixedFeatures(LAYER, "2"), "activation must be .* the formula 2 does not depend on h"),
        (lambda: on(Dense(np.eye(3)), FixedFeatures(LAYER)), "features of teacher must have as many columns as cov"),
        (
            lambda: on(Spectrum([1.0, 2.0]), FixedFeatures(LAYER)),
            "features of teacher, FixedFeatures, need Dense inputs, got Spectrum",
        ),
        (
            lambda: on(Dense(np.eye(2)), FixedFeatures([[1.0, 0.0], [0.0, 0.0]])),
            "features of teacher must see inputs that vary; covariance is 0 on a row of first_layer",
        ),
        (
            lambda: solve(
                GaussianMixture(1.0, inputs=Dense(np.eye(2))),
                Estimator(CrossEntropy(), 0.1, features=FixedFeatures(LAYER, "exp(h**8)")),
            ),
            "activation 'exp\\(h\\*\\*8\\)' must be finite",
        ),
        (
            lambda: check_fit(
                Measured(np.random.default_rng(0).normal(size=(20, 2)), [-1, 1] * 10, alpha=4),
                Chain.of(Estimator(CrossEntropy(), 0.1, features=FixedFeatures(LAYER))),
            ),
            "features of teacher must be a LinearMap or None where data are Measured",
        ),
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused_in_one_line(make, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
