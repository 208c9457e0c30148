"""Chains of any length: theory against the finite-size experiment, exact identities, independent computations, bad input.

Statistical comparisons are as in ``test_theory_and_simulation.py``: z is (simulation - theory) in standard errors over runs; every
|z| must be below 4, and the mean of all, about 0.8 for Gaussian noise, below 1.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from numerics import (
    BayesOptimal,
    Chain,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    ParameterError,
    Solution,
    simulate,
    solve,
    sweep,
    with_parameter,
)
from numerics.models import Stage
from numerics.optimize import optimize
from numerics.scalar import compiled
from numerics.scalar.nodes import extend, label_nodes
from numerics.simulation.draw import draw
from numerics.simulation.result import SimulationResult
from numerics.solution.observables.registry import measured
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation, SquareLoss

RUNS = 16
Problem = tuple[GaussianMixture, Sequence[Stage]]

HALF_SQUARE = Loss.from_expression("((h + 1)/2 - y)**2")
"""The square loss on labels in the units of SquareDistillation."""

SETTINGS: dict[str, Problem] = {
    "three stages, label noise, a skipped link, nested masks": (
        GaussianMixture(1.5, 0.4, 0.5, 0.2),
        [
            Estimator(CrossEntropy(), 0.3),
            Estimator(Distillation(0.7, 2.0), 0.1, eta=0.8),
            Estimator(Distillation(1.0, 1.5, teacher=1), 0.05, eta=0.5),
        ],
    ),
    "four stages, skipped links, mixed with labels": (
        GaussianMixture(1.2, 0.4, 0.7, 0.1),
        [
            Estimator(CrossEntropy(0.05), 0.2),
            Estimator(Distillation(0.6, 1.5), 0.1, eta=0.9),
            Estimator(Distillation(0.5, 2.0, teacher=1), 0.1, eta=0.7),
            Estimator(Distillation(0.8, 1.0, teacher=2), 0.05, eta=0.6),
        ],
    ),
    "purely distilled on fresh samples, then both sets": (
        GaussianMixture(1.0, 0.3, 0.6, 0.1, (DataSet("fresh", 1.5),)),
        [
            Estimator(CrossEntropy(), 0.2),
            Estimator(Distillation(1.0, 2.0), 0.05, sets="fresh"),
            Estimator(Distillation(0.5, 1.5, teacher=2), 0.1, sets=("training", "fresh"), eta=0.8),
        ],
    ),
    "student sees a part of the teacher's data": (
        GaussianMixture(0.8, 0.5, 0.8, 0.0, (DataSet("other", 1.2, 0.25),)),
        [
            Estimator(CrossEntropy(), 0.3, sets=("training", "other")),
            Estimator(Distillation(0.6, 1.0), 0.1, sets="other", eta=0.7),
        ],
    ),
    "random and nested masks": (
        GaussianMixture(1.5, 0.4, 0.6, 0.1),
        [
            Estimator(CrossEntropy(), 0.2, eta=0.6),
            Estimator(Distillation(0.7, 1.5), 0.1, eta=0.5, mask_overlap=0.4),
            Estimator(Distillation(0.8, 2.0), 0.1, eta=0.7),
            Estimator(Distillation(0.5, 1.0, teacher=2), 0.1, eta=0.4, mask_overlap=0.8),
        ],
    ),
    "two teachers of different masks and ridges": (
        GaussianMixture(1.5, 0.4, 0.7, 0.15),
        [
            Estimator(CrossEntropy(), 0.1, eta=0.6),
            Estimator(CrossEntropy(), 0.6, eta=0.6, mask_overlap=0.5),
            Estimator(Distillation(0.8, 1.5, teacher=(1, 2)), 0.1, eta=0.8),
        ],
    ),
    "hard pseudo-labels of one and of two teachers": (
        GaussianMixture(1.5, 0.4, 0.6, 0.2),
        [
            Estimator(CrossEntropy(), 0.3),
            Estimator(PseudoLabels(0.8), 0.2, eta=0.8),
            Estimator(PseudoLabels(1.0, teacher=(1, 2)), 0.2),
        ],
    ),
    "hard pseudo-labels, square loss": (
        GaussianMixture(2.0, 0.35, 0.7, 0.2),
        [
            Estimator(SquareLoss(), 0.5),
            Estimator(PseudoLabels(0.9, square=True), 0.2),
            Estimator(PseudoLabels(0.5, 0.05, teacher=1, square=True), 0.3, eta=0.6),
        ],
    ),
    "frozen teacher": (
        GaussianMixture(1.5, 0.4, 0.8, 0.1),
        [
            Frozen(0.7, 1.3, 0.2),
            Estimator(Distillation(0.7, 1.5), 0.1, eta=0.8),
            Estimator(Distillation(0.6, 1.0, teacher=(1, 2)), 0.1),
        ],
    ),
    "Hebbian teacher, noise and masks, fixed biases": (
        GaussianMixture(1.2, 0.3, 0.6, 0.2),
        [
            Hebbian(eta=0.8, bias=0.2),
            Estimator(SquareDistillation(0.8, 0.7), 0.2, eta=0.6, mask_overlap=0.7),
            Estimator(Distillation(0.8, 1.5, teacher=1), 0.1, bias=-0.3),
        ],
    ),
    "Bayes-optimal teacher": (
        GaussianMixture(1.5, 0.25, 1.0),
        [
            BayesOptimal(),
            Estimator(Distillation(1.0, 1.0), 0.1, eta=0.7),
            Estimator(PseudoLabels(0.7, teacher=1), 0.2, bias=0.4),
        ],
    ),
    "four square losses, two sets, a random mask": (
        GaussianMixture(1.0, 0.4, 0.5, 0.2, (DataSet("more", 0.8),)),
        [
            Estimator(SquareLoss(), 1.0),
            Estimator(SquareDistillation(1.0, 0.8), 0.3, sets="more", eta=0.75),
            Estimator(
                SquareDistillation(0.6, 0.9, teacher=1), 0.3, sets=("training", "more"), eta=0.7, mask_overlap=0.7
            ),
            Estimator(SquareDistillation(0.7, 1.0, teacher=(1, 3)), 0.2, eta=0.8),
        ],
    ),
    "three sets, hard and soft targets, random mask, fixed bias": (
        GaussianMixture(1.0, 0.4, 0.7, 0.2, (DataSet("a", 0.6, 0.1), DataSet("b", 1.0))),
        [
            Estimator(CrossEntropy(), 0.2, sets=("training", "b"), eta=0.7),
            Estimator(PseudoLabels(1.0), 0.2, sets="a", eta=0.6, mask_overlap=0.7),
            Estimator(Distillation(0.7, 1.5, teacher=1), 0.1, sets=("training", "a"), bias=0.1),
        ],
    ),
}

WITH_RESPONSES = (
    "three stages, label noise, a skipped link, nested masks",
    "purely distilled on fresh samples, then both sets",
    "random and nested masks",
    "two teachers of different masks and ridges",
)

TRAINING_OBSERVABLES = ("train_error", "clean_train_error", "train_loss", "free_energy")


@lru_cache(maxsize=64)
def run(name: str, n_inputs: int) -> SimulationResult:
    data, chain = SETTINGS[name]
    return simulate(data, chain, n_inputs=n_inputs, n_runs=RUNS, seed=3, n_jobs=2, throw=True)


@lru_cache(maxsize=16)
def run_with_responses(name: str, n_inputs: int) -> SimulationResult:
    data, chain = SETTINGS[name]
    return simulate(data, chain, n_inputs=n_inputs, n_runs=RUNS, seed=3, n_jobs=2, throw=True, responses=True)


def predict(result: SimulationResult) -> Solution:
    """Theory at the sizes of sets and masks that were really drawn."""
    return solve(result.effective_data, result.effective_chain, throw=True)


def scores(result: SimulationResult, solution: Solution) -> dict[str, float]:
    """z of every observable of a stage and every overlap; what does not fluctuate (fixed biases) must be equal."""
    z = {}
    for k, (run, computed) in enumerate(zip(result, solution.stages, strict=True), start=1):
        for name in measured():
            found, expected = getattr(run, name), getattr(computed, name)
            if math.isnan(found.mean):  # no loss, or no stage before
                assert math.isnan(expected)
            elif found.standard_error <= 1e-12 * abs(found.mean):
                assert expected == pytest.approx(found.mean, rel=1e-12)
            else:
                apart = found.mean - expected
                if name == "threshold_error":
                    # It hardly fluctuates, so that its 0.55/N (the same at N = 250, 500 and 1000) would show.
                    apart = max(0.0, abs(apart) - 1.0 / result.n_inputs)
                z[f"{name} of stage {k}"] = apart / found.standard_error
    for i, j in zip(*np.tril_indices(len(solution), -1), strict=True):
        error = result.overlap.standard_error[i, j]
        z[f"Q_{i + 1}{j + 1}"] = (result.overlap.mean[i, j] - solution.overlap[i, j]) / error
    return z


def check(name: str, z: dict[str, float]) -> list[float]:
    worst = max(z, key=lambda quantity: abs(z[quantity]))
    assert abs(z[worst]) < 4, (name, worst, z[worst])
    return list(z.values())


def test_theory_agrees_with_simulation() -> None:
    everything = []
    for name in SETTINGS:
        result = run(name, 1000)
        everything += check(name, scores(result, predict(result)))
    assert len(everything) > 300
    assert 0.4 < np.abs(everything).mean() < 1.1


@pytest.mark.slow
def test_theory_agrees_with_a_larger_simulation() -> None:
    everything = []
    for name in SETTINGS:
        result = run(name, 2000)
        everything += check(name, scores(result, predict(result)))
    assert 0.4 < np.abs(everything).mean() < 1.1


WRONG = {
    "three stages, label noise, a skipped link, nested masks": {"label_noise": 0.22},
    "purely distilled on fresh samples, then both sets": {"fresh.alpha": 1.53},
    "random and nested masks": {"stage4.mask_overlap": 0.86},
    "frozen teacher": {"teacher.norm_squared": 1.38},
    "hard pseudo-labels of one and of two teachers": {"student.mixing": 0.75},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_slightly_wrong_theory_is_seen(name: str) -> None:
    result = run(name, 1000)
    problem = result.effective_data, result.effective_chain
    for path, value in WRONG[name].items():
        problem = with_parameter(*problem, path, value)
    z = np.abs(list(scores(result, solve(*problem)).values()))
    assert z.max() > 4


def extrapolated_scores(small: SimulationResult, large: SimulationResult, solution: Solution) -> dict[str, float]:
    """z of every response, extrapolated to infinite size from N and 2N; exact zeros must be zeros."""
    z = {}
    for i, j in zip(*np.tril_indices(len(solution)), strict=True):
        error = np.hypot(2 * large.response.standard_error[i, j], small.response.standard_error[i, j])
        found = 2 * large.response.mean[i, j] - small.response.mean[i, j]
        if error == 0:
            assert solution.response[i, j] == pytest.approx(found, abs=1e-10)
        else:
            z[f"V_{i + 1}{j + 1}"] = (found - solution.response[i, j]) / error
    return z


def check_responses(n_inputs: int) -> None:
    everything = []
    for name in WITH_RESPONSES:
        data, chain = SETTINGS[name]
        small, large = (run_with_responses(name, n) for n in (n_inputs, 2 * n_inputs))
        z = extrapolated_scores(small, large, solve(data, chain, throw=True))
        everything += check(name, z)
    assert len(everything) > 20
    assert 0.3 < np.abs(everything).mean() < 1.2


def test_responses_agree_with_simulation() -> None:
    """V_31 through stage 2 included."""
    check_responses(200)


@pytest.mark.large
def test_responses_agree_with_a_larger_simulation() -> None:
    check_responses(500)


# Values known from elsewhere


@pytest.mark.parametrize(
    ("alpha", "errors"),
    [
        (1.0, (0.21928157, 0.26688175)),
        (3.0, (0.15883573, 0.14272454)),
        (6.0, (0.13824765, 0.12388914)),
    ],
)
def test_square_loss_chain_has_the_known_errors(alpha: float, errors: tuple[float, float]) -> None:
    chain = [Estimator(HALF_SQUARE, 1.5), Estimator(SquareDistillation(gain=0.8), 0.5)]
    solution = solve(GaussianMixture(alpha, 0.4, 0.5, 0.2), chain, throw=True)
    assert [stage.test_error for stage in solution.stages] == pytest.approx(errors, abs=1e-7)


@pytest.mark.parametrize(("alpha", "error"), [(1.0, 0.2740037001), (3.0, 0.1590571942)])
def test_logistic_stage_has_the_known_error(alpha: float, error: float) -> None:
    solution = solve(GaussianMixture(alpha, 0.4, 0.5, 0.2), Estimator(CrossEntropy(), 1.5), throw=True)
    assert solution[0].test_error == pytest.approx(error, abs=1e-9)


# Square-loss chains against linear algebra

EIGHT_RIDGES = (1.5, 0.5, 0.4, 0.6, 0.3, 0.5, 0.2, 0.4)
EIGHT_LINKS: tuple[dict[int, float], ...] = (
    {}, {1: 0.8}, {2: 0.7}, {2: 0.9}, {1: 0.5, 4: 0.5}, {5: 1.1}, {3: 0.6}, {7: 0.4, 6: 0.4}
)  # fmt: skip
"""For each stage the factors in its target of earlier stages' logits."""
EIGHT_LABELS = (1.0, 0.0, 0.3, 0.1, 0.0, 0.0, 0.4, 0.2)
"""Share of the label."""


def eight_stages() -> list[Estimator]:
    stages = [Estimator(HALF_SQUARE, EIGHT_RIDGES[0])]
    for ridge, links, share in zip(EIGHT_RIDGES[1:], EIGHT_LINKS[1:], EIGHT_LABELS[1:], strict=True):
        taught = " + ".join(f"{factor}*h_{stage}" for stage, factor in links.items())
        formula = f"((h - {share}*s - ({taught}))**2)/4"
        stages.append(Estimator(Loss.from_expression(formula), ridge))
    return stages


def exact_chain(data: GaussianMixture, n_inputs: int, seed: int) -> dict[str, np.ndarray]:
    """The eight stages on one draw, from eigenvectors of the covariance of the inputs around their mean (which the bias takes)."""
    sample = draw(data, n_inputs, np.random.SeedSequence(seed))
    signs = 2 * sample.labels - 1
    centre = sample.design.mean(axis=0)
    design = sample.design - centre
    values, vectors = np.linalg.eigh(design.T @ design)
    pull = vectors.T @ (design.T @ signs)
    mean, middle = vectors.T @ sample.mean, vectors.T @ centre
    size = len(EIGHT_RIDGES)
    weights, response, bias = np.zeros((size, n_inputs)), np.zeros((size, size, n_inputs)), np.zeros(size)
    for t, (ridge, links, share) in enumerate(zip(EIGHT_RIDGES, EIGHT_LINKS, EIGHT_LABELS, strict=True)):
        inverse = 1 / (values / 2 + ridge)
        taught = sum((factor * weights[k - 1] for k, factor in links.items()), np.zeros(n_inputs))
        weights[t] = inverse * (share * pull + values * taught) / 2
        # Mean logits: those of the targets.
        target = share * signs.mean()
        target += sum(factor * (weights[k - 1] @ middle + bias[k - 1]) for k, factor in links.items())
        bias[t] = target - weights[t] @ middle
        response[t, t] = inverse
        for s in range(t):
            response[t, s] = inverse * values / 2 * sum(factor * response[k - 1, s] for k, factor in links.items())
    return {
        "magnetization": weights @ mean / n_inputs,
        "bias": bias,
        "overlap": weights @ weights.T / n_inputs,
        "response": response.mean(axis=2),
    }


def check_eight_stages(n_inputs: int, runs: int) -> None:
    data = GaussianMixture(1.5, 0.4, 0.5, 0.2)
    solution = solve(data, eight_stages(), throw=True)
    found = [exact_chain(data, n_inputs, seed) for seed in range(runs)]
    lower = np.tril_indices(len(EIGHT_RIDGES))
    z = []
    for name in ("magnetization", "bias", "overlap"):
        values = np.array([draw[name] for draw in found])
        error = values.std(axis=0, ddof=1) / math.sqrt(runs)
        deviation = (values.mean(axis=0) - getattr(solution, name)) / error
        z += list(deviation[lower] if deviation.ndim == 2 else deviation)
    assert np.abs(z).max() < 4.5
    assert np.abs(z).mean() < 1.7  # one draw moves all of them together
    # Traces hardly fluctuate: what is left is their bias of order 1/N.
    traces = np.mean([draw["response"] for draw in found], axis=0)
    scale = np.sqrt(np.outer(np.diag(solution.response), np.diag(solution.response)))
    assert np.abs((traces - solution.response) / scale)[lower].max() < 5 / n_inputs


@pytest.mark.slow
def test_eight_square_losses_agree_with_exact_traces() -> None:
    check_eight_stages(400, 12)


@pytest.mark.slow
def test_eight_square_losses_agree_with_exact_traces_of_a_large_system() -> None:
    check_eight_stages(2000, 8)


def test_closed_form_agrees_with_tensor_product(monkeypatch: pytest.MonkeyPatch) -> None:
    data = GaussianMixture(1.5, 0.4, 0.5, 0.2, (DataSet("more", 0.5),))
    chain = [
        Estimator(HALF_SQUARE, 1.5),
        Estimator(SquareDistillation(0.9, 0.8), 0.5, eta=0.8, sets=("training", "more")),
        Estimator(SquareDistillation(0.8, 1.1, teacher=(1, 2)), 0.3, eta=0.6, mask_overlap=0.75, sets="more"),
    ]
    closed = solve(data, chain, rtol=1e-10, throw=True)
    monkeypatch.setattr(compiled, "fixed_directions", lambda losses: (np.empty((0, 1)), 0, False))
    tensor = solve(data, chain, rtol=1e-10, throw=True)
    assert_equal(closed, tensor, 1e-9)


# Identities


def assert_equal(found: Solution, expected: Solution, tolerance: float, *, observables: bool = True) -> None:
    for name in ("magnetization", "bias", "overlap", "response"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance)
    if observables:
        for one, other in zip(found.stages, expected.stages, strict=True):
            for name in ("test_error", "test_loss", *TRAINING_OBSERVABLES):
                assert getattr(one, name) == pytest.approx(getattr(other, name), rel=10 * tolerance, abs=tolerance)


def noisy(alpha: float = 1.5, noise: float = 0.2) -> GaussianMixture:
    return GaussianMixture(alpha, 0.4, 0.5, noise)


def test_a_set_in_two_parts_is_one_set() -> None:
    def chain(*sets: str) -> list[Estimator]:
        return [
            Estimator(CrossEntropy(), 0.3, sets=sets),
            Estimator(Distillation(0.7, 2.0), 0.1, eta=0.8, sets=sets),
            Estimator(PseudoLabels(0.8, teacher=(1, 2)), 0.2, sets=sets),
        ]

    parted = replace(noisy(0.9), further=(DataSet("rest", 0.6, 0.2),))
    assert_equal(solve(parted, chain("training", "rest")), solve(noisy(), chain("training")), 1e-8)


def test_noise_of_a_square_loss_moves_the_weights_as_smoothing_does() -> None:
    """Its minimiser is linear in the labels: only the norm knows that single labels are flipped."""
    flipped = solve(noisy(), Estimator(HALF_SQUARE, 0.5))
    smooth = solve(noisy(noise=0.0), Estimator(Loss.from_expression("((h + 1)/2 - 0.8*y - 0.2*(1-y))**2"), 0.5))
    for name in ("magnetization", "bias", "response"):
        np.testing.assert_allclose(getattr(flipped, name), getattr(smooth, name), rtol=1e-10)
    assert flipped[0].norm_squared > 1.5 * smooth[0].norm_squared


def test_hebbian_weights_with_independent_masks() -> None:
    """Weights in a coordinate of both masks are equal up to their ridges; ``m = 1 - 2 theta``, ``Q = m^2 + Delta/alpha``."""
    alpha, delta, noise = 1.2, 0.6, 0.2
    chain = [Hebbian(eta=0.8), Hebbian(eta=0.5, mask_overlap=0.8), Hebbian(eta=0.6), Hebbian(2.4, eta=0.5)]
    solution = solve(GaussianMixture(alpha, 0.3, delta, noise), chain)
    q = (1 - 2 * noise) ** 2 + delta / alpha
    common = np.array([[0.8, 0.4, 0.6, 0.5], [0.4, 0.5, 0.3, 0.25], [0.6, 0.3, 0.6, 0.5], [0.5, 0.25, 0.5, 0.5]])
    factor = np.array([1, 1, 1, 0.5])
    np.testing.assert_allclose(solution.overlap, q * common * np.outer(factor, factor), rtol=1e-9)
    np.testing.assert_allclose(solution.magnetization, (1 - 2 * noise) * np.diag(common) * factor, rtol=1e-9)


def test_a_teacher_that_saw_other_samples_is_as_good_as_frozen() -> None:
    """On a transfer set the teacher's logits are those of given weights with its order parameters."""
    data = GaussianMixture(1.0, 0.3, 0.6, 0.1, (DataSet("fresh", 1.5),))
    student = [
        Estimator(Distillation(1.0, 2.0), 0.05, eta=0.7, sets="fresh"),
        Estimator(PseudoLabels(0.6, teacher=1), 0.1, sets="fresh"),
    ]
    trained = solve(data, [Estimator(CrossEntropy(), 0.2), *student])
    given = Frozen(trained[0].magnetization, trained[0].norm_squared, trained[0].bias)
    frozen = solve(GaussianMixture(1.5, 0.3, 0.6), [given, *(replace(stage, sets=("training",)) for stage in student)])
    for name in ("magnetization", "bias", "overlap"):
        np.testing.assert_allclose(getattr(trained, name), getattr(frozen, name), rtol=1e-8)
    np.testing.assert_allclose(trained.response[1:, 1:], frozen.response[1:, 1:], rtol=1e-8, atol=1e-9)
    for one, other in zip(trained.stages[1:], frozen.stages[1:], strict=True):
        for name in ("test_error", "test_loss", "train_error", "train_loss", "train_logit_distance"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-7)


def test_given_weights_keep_their_order_parameters_wherever_they_stand() -> None:
    """Also where no later stage is trained, so that no sample is followed any further."""
    trained = [Estimator(CrossEntropy(), 1.0), Estimator(PseudoLabels(0.3), 0.7)]
    given = [Frozen(0.3, 1.0, bias=0.1), Frozen(-0.2, 2.0, bias=-0.4)]
    data = GaussianMixture(1.0, 0.37)
    alone = [solve(data, [one])[0] for one in given]
    for chain in ([*trained, *given], [trained[0], given[0], trained[1], given[1]]):
        for stage, solved in zip(chain, solve(data, chain).stages, strict=True):
            assert math.isfinite(solved.bias)
            if isinstance(stage, Frozen):
                expected = alone[given.index(stage)]
                for name in ("magnetization", "bias", "norm_squared", "test_error", "train_error"):
                    assert getattr(solved, name) == pytest.approx(getattr(expected, name), rel=1e-8)


@pytest.mark.filterwarnings("ignore::numerics.ConvergenceWarning")
def test_two_equal_teachers_are_one() -> None:
    """Only the sum of the responses to them is determined."""
    teacher = Estimator(CrossEntropy(), 0.3)
    one = solve(noisy(), [teacher, Estimator(Distillation(0.8, 1.5), 0.1, eta=0.7)])
    both = Estimator(Distillation(0.8, 1.5, teacher=(1, 2)), 0.1, eta=0.7)
    two = solve(noisy(), [teacher, replace(teacher, name="twin"), both])
    for k, s in ((1, 0), (2, 0), (2, 1)):
        assert two.overlap[k, s] == pytest.approx(one.overlap[min(k, 1), 0] if k == 2 else one.overlap[0, 0], rel=1e-8)
    assert two.overlap[2, 2] == pytest.approx(one.overlap[1, 1], rel=1e-8)
    assert two.response[2, :2].sum() == pytest.approx(one.response[1, 0], rel=1e-7)
    for name in ("test_error", "test_loss", *TRAINING_OBSERVABLES):
        assert getattr(two[2], name) == pytest.approx(getattr(one[1], name), rel=1e-7)


@pytest.mark.parametrize("square", [False, True])
def test_hard_pseudo_labels_are_the_limit_of_large_gain(square: bool) -> None:
    """Corrections go down in proportion to the gain: the width of the soft step."""
    teacher = Estimator(CrossEntropy(), 0.3)
    hard = solve(noisy(), [teacher, Estimator(PseudoLabels(0.7, square=square), 0.2, eta=0.7)], throw=True)
    target = "(0.3*y + 0.7*sigmoid({0}*h_teacher))"
    formula = f"((h + 1)/2 - {target})**2" if square else f"softplus(h) - {target}*h"
    distance = []
    for gain in (1e2, 1e3, 1e4):
        soft = solve(
            noisy(), [teacher, Estimator(Loss.from_expression(formula.format(gain)), 0.2, eta=0.7)], throw=True
        )
        distance.append(np.abs(soft.overlap - hard.overlap).max() + np.abs(soft.response - hard.response).max())
        for name in TRAINING_OBSERVABLES:
            assert getattr(soft[1], name) == pytest.approx(getattr(hard[1], name), abs=3 / gain)
    assert distance[0] < 0.02
    np.testing.assert_allclose(np.divide(distance[:-1], distance[1:]), 10, rtol=0.15)


def test_special_stages_have_all_observables_of_the_estimators_they_are() -> None:
    data = GaussianMixture(1.2, 0.3, 0.6, 0.2, (DataSet("clean", 0.5),))
    chain = Chain.of([Hebbian(eta=0.8, bias=0.2), BayesOptimal("best", sets="clean"), Estimator(Distillation(), 0.1)])
    assert_equal(solve(data, chain), solve(data, chain.resolved(data)), 1e-12)


FIVE = [Estimator(CrossEntropy(), 0.3), *(Estimator(Distillation(0.8, 1.5), 0.2) for _ in range(4))]


def test_five_logistic_stages_are_as_accurate_as_they_say() -> None:
    loose, tight = (solve(noisy(), FIVE, rtol=rtol, throw=True) for rtol in (1e-5, 1e-8))
    assert loose.quadrature_error < 1e-5
    assert_equal(loose, tight, 1e-5, observables=False)
    assert loose[4].test_error == pytest.approx(tight[4].test_error, rel=1e-6)


def test_earlier_stages_do_not_feel_later_ones() -> None:
    long = solve(noisy(), FIVE, rtol=1e-8)
    for length in range(1, 5):
        short = solve(noisy(), FIVE[:length])
        for name in ("magnetization", "bias", "norm_squared", "response", "train_error", "train_loss"):
            one, other = getattr(short[length - 1], name), getattr(long[length - 1], name)
            assert one == pytest.approx(other, rel=3e-8), (name, length)


# Training errors against samples of the same effective problem


def sampled_training_errors(solution: Solution, rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(mean, standard error) of train_error and clean_train_error of every stage, each of shape (2,): all fields are drawn."""
    table = np.random.default_rng(0).standard_normal((rows, len(solution)))
    nodes = label_nodes(solution.data, rows=rows)
    for stage, point in zip(solution.resolved, solution.points, strict=True):
        drawn = np.ascontiguousarray(table[:, point.earlier])
        nodes, _ = extend(nodes, solution.data, stage, point, 1.0, 1.0, training=True, directions=drawn)
    found = []
    for k, stage in enumerate(solution.resolved):
        own = nodes.of(solution.data, stage.sets or ("training",))
        wrong = []
        for sign in (2 * own.labels - 1, own.statistics[:, 0]):
            weight = own.weight * (sign * own.logits[:, k] < 0)
            wrong.append(np.bincount(own.row, weight, minlength=rows) * rows / own.weight.sum())
        found.append((np.mean(wrong, axis=1), np.std(wrong, axis=1) / math.sqrt(rows)))
    return found


NARROW = {
    "copy of a copy": [Estimator(Distillation(1.0, 2.0), 1e-4), Estimator(Distillation(), 1e-3, eta=0.9)],
    "mean of two teachers": [
        Estimator(Distillation(1.0, 2.0), 0.1, eta=0.6),
        Estimator(Distillation(teacher=(1, 2)), 1e-4),
    ],
    "decisions of a student": [Estimator(Distillation(), 0.05, eta=0.6), Estimator(PseudoLabels(), 1e-3)],
    "decisions of a student, strong ridge": [Estimator(PseudoLabels(), 0.05, eta=0.6), Estimator(PseudoLabels(), 0.1)],
    "votes of two": [Estimator(PseudoLabels(), 0.05, eta=0.6), Estimator(PseudoLabels(0.7, teacher=(1, 2)), 1e-2)],
    "low temperature": [Estimator(PseudoLabels(), 0.05, eta=0.6), Estimator(Distillation(1.0, 0.05), 1e-2)],
}


@pytest.mark.parametrize("name", NARROW)
def test_training_errors_of_narrow_fields(name: str) -> None:
    """Where a stage's own field is narrow, or its target jumps, its error is a step as a function of earlier fields."""
    data = GaussianMixture(1.5, 0.4, 0.6, 0.2)
    solution = solve(data, [Estimator(CrossEntropy(), 0.1), *NARROW[name]], throw=True)
    for stage, (mean, error) in zip(solution.stages, sampled_training_errors(solution, 200_000), strict=True):
        assert np.all(np.abs([stage.train_error, stage.clean_train_error] - mean) < 4 * error), stage


# Sweeps, optimisation


@pytest.mark.parametrize(
    ("path", "values"),
    [("label_noise", [0.0, 0.1, 0.3]), ("fresh.alpha", [0.5, 1.0, 3.0]), ("student.mask_overlap", [0.9, 0.3, 0.6])],
)
def test_sweep_is_many_solutions(path: str, values: list[float]) -> None:
    data = GaussianMixture(1.5, 0.4, 0.5, 0.2, (DataSet("fresh", 1.0),))
    chain = [
        Estimator(CrossEntropy(), 0.3, eta=0.6),
        Estimator(Distillation(0.8, 1.5), 0.1, eta=0.5, mask_overlap=0.7, sets="fresh"),
        Estimator(PseudoLabels(0.7, teacher=1), 0.2, sets=("training", "fresh")),
    ]
    names = ("norm_squared", "test_error", "train_error", "clean_train_error", "train_loss", "test_loss")
    grid = sweep(data, chain, {path: values}, names)
    assert grid.converged.all()
    for value in values:
        solution = solve(*with_parameter(data, Chain.of(chain), path, value))
        for name in names:
            expected = [getattr(stage, name) for stage in solution.stages]
            np.testing.assert_allclose(grid[name].sel({path: value}), expected, rtol=1e-8)


def test_sweep_over_two_features() -> None:
    data = GaussianMixture(1.5, 0.4, 0.5)
    chain = [Frozen(0.8, 1.2), Estimator(Distillation(0.5), 0.1)]
    grid = sweep(data, chain, {"label_noise": [0.0, 0.2], "teacher.norm_squared": [1.0, 2.0]}, ["test_error"])
    noisy_point = solve(GaussianMixture(1.5, 0.4, 0.5, 0.2), [Frozen(0.8, 2.0), chain[1]])
    assert float(grid.test_error[1, 1, 1]) == pytest.approx(noisy_point[1].test_error, rel=1e-8)


def test_optimal_ridges_of_a_noisy_chain_have_no_slope() -> None:
    data = GaussianMixture(3.0, 0.4, 0.5, 0.3)
    chain = Chain.of([Estimator(HALF_SQUARE, 1.0), *(Estimator(SquareDistillation(), 1.0) for _ in range(2))])
    paths = ("teacher.ridge", "student.ridge", "stage3.ridge")
    found = optimize(data, chain, {path: (1e-2, 1e2) for path in paths}, "stage3.test_error")
    assert found.converged
    best = data, chain
    for path in paths:
        best = with_parameter(*best, path, found.parameters[path])
    value = solve(*best)[2].test_error
    assert value == pytest.approx(found.value, rel=1e-10)
    for path in paths:
        up, down = (
            solve(*with_parameter(*best, path, found.parameters[path] * factor))[2].test_error
            for factor in (1.01, 1 / 1.01)
        )
        assert up > value
        assert down > value
        assert abs(up - down) / 0.02 < 1e-5  # derivative with respect to ln(ridge), up to the third order


# Bad input

TEACHER = Estimator(CrossEntropy(), 0.3)
CLEAN = GaussianMixture(1.5, 0.4, 0.5)
TWO_SETS = replace(CLEAN, further=(DataSet("fresh", 1.0),))
SOLVERS = {
    "solve": solve,
    "simulate": lambda data, chain: simulate(data, chain, n_inputs=30, n_runs=1),
    "sweep": lambda data, chain: sweep(data, chain, {"rho": [0.4]}, jobs=1),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (lambda: (CLEAN, [TEACHER, Estimator(Distillation(teacher=3), 0.1), TEACHER]), "stage 3, which is not earlier"),
        (lambda: (CLEAN, [TEACHER, Estimator(Distillation(teacher=2), 0.1)]), "stage 2, which is not earlier"),
        (lambda: (CLEAN, [TEACHER, Estimator(PseudoLabels(teacher=(1, 2)), 0.1)]), "stage 2, which is not earlier"),
        (lambda: (CLEAN, [Estimator(SquareDistillation(), 0.1)]), "needs a teacher"),
        (lambda: (CLEAN, [Estimator(CrossEntropy(), 0.1, sets="fresh")]), "unknown data set 'fresh'"),
        (lambda: (TWO_SETS, [TEACHER]), "no stage is trained on data set 'fresh'"),
        (lambda: (CLEAN, [TEACHER, Hebbian(eta=0.5, mask_overlap=0.4)]), "mask_overlap=0.4 of student is impossible"),
        (lambda: (noisy(), [BayesOptimal()]), "Bayes-optimal"),
        (lambda: (CLEAN, [Frozen(1.0, 0.9), Estimator(Distillation(), 0.1)]), "norm_squared"),
        (lambda: (CLEAN, [Hebbian(0.0)]), "ridge"),
        (lambda: (CLEAN, [TEACHER, Estimator(PseudoLabels(), 0.0)]), "ridge"),
    ],
)
def test_bad_input_is_one_clear_error(solver: str, problem, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SOLVERS[solver](*problem())
