"""K classes: theory against the finite-size experiment, in standard errors.

Every overlap block, mean, bias, class error, confusion and observable.  Means of n runs follow Student's law with n - 1 degrees of
freedom, whose scores are turned into those of a normal law (z): of a few hundred, none may be beyond 4, and their root mean
square, 1 for the right theory, must stay below 1.6: they are far from independent, so that it fluctuates by about 0.2.
Ordinary: N = 150, 16 runs, seed 1.  Slow: N = 600 and 1200, 24 runs, seed 2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import t as student

from numerics import Estimator, simulate, solve
from numerics.models import ClassMixture, ClassSet, orthogonal_means, similar_pairs, simplex_means
from numerics.simulation.result import SimulationResult
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation

TEACHER = Estimator(CrossEntropy(), 0.1)
HINTON = {"temperature": 3.0, "temperature_squared": True}
UNEQUAL = {"weights": [0.4, 0.35, 0.25], "delta": [0.4, 0.7, 0.5]}
PAIRS = {"weights": [0.35, 0.25, 0.25, 0.15], "gram": similar_pairs(4, 0.7), "delta": 0.6}

PROBLEMS = {
    "orthogonal": (
        ClassMixture(2.0, gram=orthogonal_means(3), delta=0.5),
        [TEACHER, Estimator(Distillation(temperature=2.0), 0.05, eta=0.5)],
    ),
    "similar": (
        ClassMixture(2.0, gram=similar_pairs(3, 0.6), **UNEQUAL),
        [Estimator(CrossEntropy(), 0.05), Estimator(Distillation(0.7, **HINTON), 0.1, eta=0.7)],
    ),
    "weights": (
        ClassMixture(2.0, [0.4, 0.3, 0.2, 0.1], orthogonal_means(4), 0.6),
        [TEACHER, Estimator(Distillation(temperature=2.0), 0.1, eta=0.5)],
    ),
    "simplex": (
        ClassMixture(3.0, gram=simplex_means(10), delta=0.3),
        [TEACHER, Estimator(Distillation(**HINTON), 0.3, eta=0.5)],
    ),
    "pairs": (
        ClassMixture(3.0, gram=similar_pairs(10, 0.6), delta=0.3),
        [TEACHER, Estimator(Distillation(**HINTON), 0.3, eta=0.5)],
    ),
    "skipped": (
        ClassMixture(2.0, gram=similar_pairs(3, 0.4), **UNEQUAL),
        [
            TEACHER,
            Estimator(Distillation(temperature=2.0), 0.1, eta=0.8),
            Estimator(Distillation(0.6, 1.5, teacher=1), 0.1, eta=0.5),
        ],
    ),
    "missing": (
        ClassMixture(
            2.0, gram=orthogonal_means(4), delta=0.5, further=ClassSet("transfer", 1.5, weights=[0.4, 0.35, 0.25, 0])
        ),
        [TEACHER, Estimator(Distillation(temperature=4.0, temperature_squared=True), 0.1, eta=0.7, sets="transfer")],
    ),
    "noise": (
        ClassMixture(
            2.5, gram=orthogonal_means(3), delta=0.5, confusion=[[0.8, 0.15, 0.05], [0.1, 0.9, 0], [0, 0.2, 0.8]]
        ),
        [Estimator(CrossEntropy(0.1), 0.1), Estimator(SquareDistillation(0.5), 0.3, eta=0.8)],
    ),
    "partial": (
        ClassMixture(2.0, **PAIRS),
        [
            TEACHER,
            Estimator(Distillation(temperature=2.0, target="true+similarity"), 0.1, eta=0.8),
            Estimator(Distillation(temperature=2.0, target="top-2", teacher=1), 0.1, eta=0.8),
        ],
    ),
    "similarity": (
        ClassMixture(2.0, **PAIRS),
        [
            TEACHER,
            Estimator(Distillation(0.5, 2.0, target="similarity"), 0.1, eta=0.8),
            Estimator(PseudoLabels(teacher=1), 0.3, eta=0.8),
        ],
    ),
}

ONE_VERSUS_REST = Loss.from_expression("Sum(softplus((1 - 2*y[k])*h[k]), k)", name="one versus rest")
SOFT = Loss.from_expression("Sum(softplus(h[k]) - sigmoid(h_teacher[k])*h[k], k)", name="soft one versus rest")
FREE = ClassMixture(2.0, [0.5, 0.3, 0.2], simplex_means(3), [0.6, 0.8, 0.7], label_noise=0.05)
# Means of logits are free, in all stages or in some.
PROBLEMS |= {
    "one versus rest": (
        FREE,
        [
            Estimator(ONE_VERSUS_REST, 0.1),
            Estimator(SOFT, 0.1, eta=0.7),
            Estimator(SquareDistillation(0.7, teacher=1), 0.2, eta=0.8),
        ],
    ),
    "softmax from the rest": (
        FREE,
        [Estimator(ONE_VERSUS_REST, 0.1), Estimator(Distillation(temperature=2.0), 0.1, eta=0.7)],
    ),
    "rest from softmax": (
        replace(FREE, further=ClassSet("transfer", 1.5, weights=[0.6, 0.4, 0])),
        [TEACHER, Estimator(SOFT, 0.1, eta=0.7, sets="transfer"), Estimator(SquareDistillation(0.7), 0.2)],
    ),
}

RTOL = 3e-4
"""Of test errors, which small experiments know to a few 1e-3."""

CONVEX = {"top_label_calibration_error"}
"""Means of absolute values: above their limit in finite systems where that is small."""


def scores(result: SimulationResult, solution) -> dict[str, float]:
    """z of every comparison; what does not fluctuate is compared exactly."""
    found: dict[str, float] = {}

    def compare(name: str, measured, expected) -> None:
        mean, error = np.asarray(measured.mean), np.asarray(measured.standard_error)
        expected = np.asarray(expected, dtype=float)
        assert mean.shape == expected.shape, name
        for place in np.ndindex(mean.shape):
            if np.isnan(expected[place]):
                assert np.isnan(mean[place]), name
            elif error[place] <= 1e-12 * max(1.0, abs(mean[place])):
                assert mean[place] == pytest.approx(expected[place], abs=1e-9), name
            else:
                score = (mean[place] - expected[place]) / error[place]
                found[f"{name}{list(place)}"] = -float(np.sign(score) * ndtri(student.sf(abs(score), measured.n - 1)))

    for name in ("overlap", "means", "bias"):
        compare(name, getattr(result, name), getattr(solution, name))
    for number, (measured, computed) in enumerate(zip(result, solution.stages, strict=True), start=1):
        for name in ("class_errors", "confusion"):
            compare(f"{name} of stage {number}", getattr(measured, name), getattr(computed, name))
        for name in set(dir(measured)) - {"teacher_train_agreement", *CONVEX}:
            if (
                hasattr(type(computed), name)
                and np.ndim(getattr(measured, name).mean) == 0
                and name != "quadrature_error"
            ):
                compare(f"{name} of stage {number}", getattr(measured, name), getattr(computed, name))
    return found


def check(
    name: str, n_inputs: int, n_runs: int, seed: int, rtol: float | None = None
) -> tuple[SimulationResult, dict[str, float]]:
    """Simulate a problem, solve it at the parameters that were really drawn, and compare."""
    data, chain = PROBLEMS[name]
    result = simulate(data, chain, n_inputs=n_inputs, n_runs=n_runs, seed=seed, throw=True)
    z = scores(result, solve(result.effective_data, result.effective_chain, rtol=rtol, throw=True))
    worst = max(z, key=lambda key: abs(z[key]))
    size = float(np.sqrt(np.mean(np.square(list(z.values())))))
    print(f"{name} N={n_inputs}: {len(z)} comparisons, rms z {size:.2f}, largest {z[worst]:.2f} ({worst})")
    assert abs(z[worst]) < 4, (worst, z[worst])
    assert size < 1.6
    return result, z


def test_theory_agrees_with_simulation() -> None:
    """Three stages of three classes; the comparison sees the wrong teacher, and a ridge that is wrong by a third."""
    result, z = check("skipped", 150, 16, 1, RTOL)
    assert len(z) > 200
    for wrong in ({"loss": Distillation(0.6, 1.5)}, {"ridge": 0.13}):
        chain = list(result.effective_chain.stages)
        chain[2] = replace(chain[2], **wrong)
        other = np.array(list(scores(result, solve(result.effective_data, chain, rtol=RTOL, throw=True)).values()))
        assert np.abs(other).max() > 4
        assert np.sqrt(np.mean(other**2)) > 1.5


@pytest.mark.parametrize("name", ["one versus rest", "rest from softmax"])
def test_logits_whose_mean_is_free_agree_with_simulation(name: str) -> None:
    check(name, 150, 16, 1, RTOL)


@pytest.mark.large
@pytest.mark.parametrize("n_inputs", [600, 1200])
@pytest.mark.parametrize("name", PROBLEMS)
def test_theory_agrees_with_a_larger_simulation(name: str, n_inputs: int) -> None:
    check(name, n_inputs, 24, 2)


@pytest.mark.large
@pytest.mark.parametrize("name", ["similar", "skipped", "softmax from the rest"])
def test_responses_agree_with_theory(name: str) -> None:
    """All blocks V_ts, N = 100 and 200 extrapolated to no correction of order 1/N, 24 runs each, seed 2: |z| < 4."""
    data, chain = PROBLEMS[name]
    small, large = (
        simulate(data, chain, n_inputs=n, n_runs=24, seed=2, responses=True, throw=True) for n in (100, 200)
    )
    theory = solve(data, chain, throw=True).response
    mean = 2 * large.response.mean - small.response.mean
    error = np.hypot(2 * large.response.standard_error, small.response.standard_error)
    moves = error > 1e-9  # one-versus-rest logits do not answer to one another
    assert theory[~moves] == pytest.approx(0, abs=1e-9)
    z = (mean - theory)[moves] / error[moves]
    print(f"{name}: {z.size} responses, rms z {np.sqrt(np.mean(z**2)):.2f}, largest {np.abs(z).max():.2f}")
    assert z.size >= 21
    assert np.abs(z).max() < 4
    # A wrong sign of V_21 would be seen (a transposed block would not: it is symmetric to a tenth of its standard error).
    assert np.abs(2 * theory[1, 0] / error[1, 0]).max() > 4
