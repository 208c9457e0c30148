"""ridge = 0: maximum likelihood, minimum norm, max margin, against small ridges, closed forms and finite systems."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from numerics import (
    OBSERVABLES,
    BayesOptimal,
    Chain,
    ConvergenceWarning,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    ParameterError,
    Solution,
    solve,
)
from numerics.scalar.compiled import goals
from numerics.scalar.limits import is_logistic, minimum_is_finite
from numerics.scalar.nodes import Nodes
from numerics.scalar.points import MINIMUM_NORM
from numerics.simulation.draw import Sample, draw
from numerics.simulation.train import train
from numerics.thresholds import max_margin, minimum_norm_interpolator, separability_threshold
from theory.losses import CrossEntropy, Distillation, LinearLoss, Loss, SquareDistillation, SquareLoss

TEACHER = Estimator(CrossEntropy(), 0.1)
SCARCE = GaussianMixture(0.4, 0.2, 1.0)
PLENTY = GaussianMixture(6.0, 0.2, 1.0)

ANALYTIC = {
    "least norm": (SCARCE, [Estimator(SquareLoss(), 0.0, 0.6)]),
    "smoothed labels": (SCARCE, [Estimator(CrossEntropy(0.2), 0.0)]),
    "user's loss": (SCARCE, [Estimator(Loss.from_expression("sqrt(1 + (h - s)**2)"), 0.0, 0.7)]),
    "distilled": (SCARCE, [TEACHER, Estimator(Distillation(), 0.0, 0.6)]),
    "cool and mixed": (SCARCE, [TEACHER, Estimator(Distillation(0.7, 0.8), 0.0, 0.6)]),
    "square distillation": (SCARCE, [TEACHER, Estimator(SquareDistillation(0.6), 0.0, 0.6)]),
    "logistic": (PLENTY, [Estimator(CrossEntropy(), 0.0)]),
    "least squares": (SCARCE, [Estimator(SquareLoss(), 0.0, 0.3)]),
    "distilled from more samples": (GaussianMixture(0.9, 0.2, 1.0), [TEACHER, Estimator(Distillation(), 0.0, 0.5)]),
    "both stages": (PLENTY, [Estimator(CrossEntropy(), 0.0), Estimator(Distillation(), 0.0, 0.5)]),
    "teacher alone": (SCARCE, [Estimator(SquareLoss(), 0.0), Estimator(Distillation(0.5, 2.0), 0.1, 0.7)]),
    "all three": (
        SCARCE,
        [
            Estimator(SquareLoss(), 0.0),
            Estimator(SquareDistillation(0.5), 0.0, 0.7),
            Estimator(SquareDistillation(0.8, teacher=1), 0.0, 0.3),
        ],
    ),
    "noisy labels": (
        GaussianMixture(0.4, 0.2, 1.0, label_noise=0.2),
        [Estimator(SquareLoss(), 0.0), Estimator(Distillation(0.6), 0.0, 0.6)],
    ),
    "labels of nothing but noise": (
        GaussianMixture(0.4, 0.2, 1.0, label_noise=0.5),
        [Estimator(SquareLoss(), 0.0, 0.7)],
    ),
    "two data sets, given weights, a given bias": (
        GaussianMixture(0.7, 0.3, 1.0, label_noise=0.1, further=[DataSet("b", 0.5, 0.3)]),
        [
            Frozen(1.0, 1.5),
            Estimator(SquareDistillation(0.5), 0.0, sets="b", bias=0.3),
            Estimator(SquareDistillation(0.7), 0.5, 0.6, sets=("training", "b")),
        ],
    ),
    "random masks, a Hebbian stage": (
        GaussianMixture(0.4, 0.3, 1.0, label_noise=0.1),
        [
            Estimator(CrossEntropy(), 0.1, 0.7),
            Estimator(SquareDistillation(0.5), 0.0, 0.6, mask_overlap=0.8),
            Hebbian(),
        ],
    ),
}
"""Limits that solutions approach analytically in the ridge."""

FIRST = {
    "least norm": 1e-3, "least squares": 3e-4, "square distillation": 3e-4, "user's loss": 3e-4, "smoothed labels": 1e-4,
    "teacher alone": 1e-3, "all three": 1e-3, "noisy labels": 1e-4, "labels of nothing but noise": 3e-4,
    "two data sets, given weights, a given bias": 1e-3, "random masks, a Hebbian stage": 1e-4,
}  # fmt: skip
"""Where a sequence of ridges starts, well inside the radius of convergence: it shrinks with the curvature of the loss."""


def at_ridge(chain: list[Estimator], ridge: float) -> list[Estimator]:
    return [
        replace(stage, ridge=ridge) if isinstance(stage, Estimator) and stage.ridge == 0 else stage for stage in chain
    ]


def extrapolated(data: GaussianMixture, chain: list[Estimator], read, first: float, order: int) -> np.ndarray:
    """Richardson's limit of ``read(solution)`` along ridges ``first / 2**k``."""
    with warnings.catch_warnings():
        # Responses of order 1/ridge leave the error estimate above this rtol here and there.
        warnings.simplefilter("ignore", ConvergenceWarning)
        solutions = [solve(data, at_ridge(chain, first / 2.0**k), rtol=1e-10) for k in range(order)]
    assert all(solution.residual < 1e-9 and solution.quadrature_error < 3e-9 for solution in solutions)
    table = [read(solution) for solution in solutions]
    for power in range(1, order):
        table = [(2.0**power * b - a) / (2.0**power - 1.0) for a, b in itertools.pairwise(table)]
    return table[0]


def order_parameters(solution: Solution) -> np.ndarray:
    return np.concatenate((solution.magnetization, solution.bias, solution.overlap.ravel()))


def finite_observables(solution: Solution, names: list[str]) -> np.ndarray:
    return np.array([getattr(stage, name) for stage in solution.stages for name in names])


# Which limit


@pytest.mark.parametrize(
    ("loss", "finite", "logistic"),
    [
        (CrossEntropy(), False, True),
        (CrossEntropy(0.01), True, False),
        (Distillation(0.0, 3.0), False, True),
        (Distillation(0.0, 3.0, 0.1), True, False),
        (Distillation(1e-3, 0.05), True, False),
        (Distillation(1.0, 0.01), True, False),
        (SquareLoss(), True, False),
        (LinearLoss(), False, False),
        (SquareDistillation(), True, False),
        (Loss.from_expression("log(1 + exp(-3*s*h))/3"), False, True),
        (Loss.from_expression("softplus(-s*h) + softplus(-2*s*h)"), False, True),
        (Loss.from_expression("log(1 + exp(-s*h)) + a*h**2", {"a": 0.1}), True, False),
        (Loss.from_expression("log(1 + exp(-s*h)) + a*h**2", {"a": 0.0}), False, True),
        (Loss.from_expression("exp(-s*h)"), False, False),
        (Loss.from_expression("softplus(h) - h_teacher*h"), False, False),
        (Loss.from_expression("log(cosh(h - h_teacher))"), True, False),
    ],
    ids=repr,
)
def test_losses_are_recognised(loss: Loss, finite: bool, logistic: bool) -> None:
    assert minimum_is_finite(loss) is finite
    assert is_logistic(loss) is logistic


def test_every_limit_has_its_name() -> None:
    assert [stage.limit for stage in solve(SCARCE, [TEACHER, Estimator(Distillation(), 0.0, 0.6)]).stages] == [
        None,
        "minimum norm",
    ]
    assert solve(SCARCE, Estimator(CrossEntropy(), 0.0))[0].limit == "max margin"
    assert solve(PLENTY, Estimator(CrossEntropy(), 0.0))[0].limit == "maximum likelihood"


@pytest.mark.parametrize(
    ("data", "chain", "reason"),
    [
        (SCARCE, [Estimator(LinearLoss(), 0.0)], "no minimum at a finite logit"),
        (SCARCE, [Estimator(Loss.from_expression("exp(-s*h)"), 0.0)], "no minimum at a finite logit"),
        (GaussianMixture(1.0), [Estimator(SquareLoss(), 0.0)], "ridge of teacher.* alpha = eta"),
        (GaussianMixture(0.6 + 1e-9), [TEACHER, Estimator(Distillation(), 0.0, 0.6)], "ridge of student.* alpha = eta"),
        (GaussianMixture(separability_threshold(0.5, 1.0)), [Estimator(CrossEntropy(), 0.0)], "separability threshold"),
        (
            SCARCE,
            [Estimator(CrossEntropy(), 0.0), Estimator(Distillation(), 0.1)],
            "ridge of teacher.*student looks at",
        ),
    ],
)
def test_where_there_is_no_limit_the_error_names_the_ridge(
    data: GaussianMixture, chain: list[Estimator], reason: str
) -> None:
    with pytest.raises(ParameterError, match="ridge") as caught:
        solve(data, chain)
    assert caught.match(reason)


# Analytic limits


@pytest.mark.parametrize("case", ANALYTIC)
def test_small_ridges_extrapolate_to_the_limit(case: str) -> None:
    """Order parameters, from six ridges, to 1e-8; they approach the limit linearly."""
    data, chain = ANALYTIC[case]
    limit = solve(data, chain, throw=True)
    assert limit.residual < 1e-9
    assert limit.quadrature_error < 1e-8
    expected = order_parameters(limit)
    found = extrapolated(data, chain, order_parameters, FIRST.get(case, 1e-5), 6)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    ridges = (FIRST.get(case, 1e-5) / 30.0, FIRST.get(case, 1e-5) / 300.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        far, near = (np.abs(order_parameters(solve(data, at_ridge(chain, r))) - expected).max() for r in ridges)
    assert far / near == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("case", [case for case in ANALYTIC if case != "all three"])
def test_observables_are_those_of_the_limit(case: str) -> None:
    """All observables that stay finite, to 1e-6; those with a jump or a corner are integrated less well (2e-4)."""
    data, chain = ANALYTIC[case]
    limit = solve(data, chain, throw=True)
    sharp = ["train_error", "generalization_gap", "calibration_error"]
    # A response, and the temperature that calibrates what knows nothing, become infinite.
    names = [name for name in OBSERVABLES if name not in (*sharp, "response", "calibrating_temperature")]
    for group, tolerance in ((names, 1e-6), (sharp, 2e-4)):
        expected = finite_observables(limit, group)
        found = extrapolated(
            data, chain, lambda solution, group=group: finite_observables(solution, group), FIRST.get(case, 1e-5), 6
        )
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_response_diverges_below_interpolation_only() -> None:
    below = solve(SCARCE, [TEACHER, Estimator(Distillation(), 0.0, 0.6)])
    assert below[1].response == math.inf
    assert math.isfinite(below.response[1, 0])
    small = solve(SCARCE, [TEACHER, Estimator(Distillation(), 1e-7, 0.6)])
    assert small[1].response * 1e-7 == pytest.approx(0.6 - 0.4, rel=1e-4)
    assert small.response[1, 0] == pytest.approx(below.response[1, 0], rel=1e-4)
    assert math.isfinite(solve(PLENTY, Estimator(CrossEntropy(), 0.0))[0].response)


@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.599, 0.601, 0.9, 10.0])
@pytest.mark.parametrize(("rho", "eta"), [(0.5, 0.6), (0.02, 0.6)])
def test_square_loss_has_its_closed_form(alpha: float, rho: float, eta: float) -> None:
    found = solve(GaussianMixture(alpha, rho, 0.7), Estimator(SquareLoss(), 0.0, eta), throw=True)[0]
    expected = minimum_norm_interpolator(alpha, rho, 0.7, eta)
    assert found.magnetization == pytest.approx(expected.magnetization, rel=1e-10)
    assert found.norm_squared == pytest.approx(expected.overlap, rel=1e-9)
    assert found.bias == pytest.approx(expected.bias, rel=1e-10, abs=1e-12)
    assert found.test_error == pytest.approx(expected.test_error, rel=1e-10)


@pytest.mark.parametrize("alpha", [0.4, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_self_distillation_without_a_ridge_copies_the_teacher(alpha: float, temperature: float) -> None:
    """Its weights are the shortest with its logits: they are combinations of the inputs, with forces that add up to 0."""
    solution = solve(
        GaussianMixture(alpha, 0.2, 1.0), [TEACHER, Estimator(Distillation(1.0, temperature), 0.0)], throw=True
    )
    np.testing.assert_allclose(solution.overlap, solution.overlap[0, 0], rtol=1e-8)
    assert solution.bias[1] == pytest.approx(solution.bias[0], rel=1e-8)
    assert solution[1].test_error == pytest.approx(solution[0].test_error, rel=1e-8)
    assert solution[1].train_error == pytest.approx(solution[0].train_error, rel=1e-4)
    assert solution[1].train_logit_distance == pytest.approx(0.0, abs=1e-9)


def test_minimum_of_a_saturated_target_keeps_its_digits() -> None:
    """Teacher's logits up to 700: 1 - sigmoid has no digits left, the logit where the loss is smallest has all."""
    logits = np.array([[-700.0], [-60.0], [-2.0], [0.5], [45.0], [600.0]])
    labels = (logits[:, 0] > 0).astype(float)
    nodes = Nodes(np.ones(6), np.zeros((6, 4)), labels, logits)
    np.testing.assert_allclose(goals(Distillation(), 2, nodes, MINIMUM_NORM), logits[:, 0], rtol=1e-14)
    mixed = goals(Distillation(0.7, 1.0), 2, nodes, MINIMUM_NORM)
    tail = np.exp(-np.abs(logits[:, 0]))
    expected = -np.log(0.7 * tail / (1.0 + 0.3 * tail)) * np.sign(logits[:, 0])  # sigmoid(-|h|) = 0.7 sigmoid(-|h_T|)
    np.testing.assert_allclose(mixed, expected, rtol=1e-13)


# Max margin


@pytest.mark.parametrize(("data", "eta"), [(SCARCE, 1.0), (SCARCE, 0.5), (GaussianMixture(2.0, 0.5, 2.0), 0.9)])
def test_max_margin_is_that_of_the_threshold_module(data: GaussianMixture, eta: float) -> None:
    expected = max_margin(data.alpha, data.rho, data.delta, eta)
    for chain in ([], [TEACHER]):
        stage = solve(data, [*chain, Estimator(CrossEntropy(), 0.0, eta)], throw=True)[-1]
        assert stage.solution.residual < 1e-9
        assert stage.cosine == pytest.approx(expected.magnetization, rel=1e-10)
        assert stage.margin == pytest.approx(expected.margin, rel=1e-10)
        assert stage.relative_bias == pytest.approx(expected.bias, rel=1e-10, abs=1e-14)
        assert stage.test_error == pytest.approx(expected.test_error, rel=1e-10)
        assert stage.generalization_gap == stage.test_error
        assert (stage.train_error, stage.train_loss, stage.free_energy) == (0.0, 0.0, 0.0)
        assert (stage.norm, stage.magnetization, stage.test_loss, stage.response) == (math.inf,) * 4
        assert stage.bias == (0.0 if data.rho == 0.5 else -math.inf)
        assert stage.bayes_error < stage.test_error


SCALE_FREE = [
    "cosine", "test_error", "relative_bias", "calibration_offset", "calibration_error", "teacher_cosine", "teacher_agreement",
    "test_output_distance",
]  # fmt: skip


@pytest.mark.parametrize("loss", [CrossEntropy(), Distillation(0.0, 2.0), Loss.from_expression("log(1 + exp(-2*s*h))")])
def test_small_ridges_approach_the_max_margin(loss: Loss) -> None:
    """Polynomials in 1/norm through five ridges from 1e-3 to 1e-10 reach the limit to 2e-3 of the distance covered."""
    data = GaussianMixture(0.8, 0.2, 1.0)
    limit = solve(data, [TEACHER, Estimator(loss, 0.0, 0.8)], throw=True)
    expected = finite_observables(limit, SCALE_FREE)[len(SCALE_FREE) :]
    inverse, values = [], []
    for ridge in np.geomspace(1e-3, 1e-10, 5):
        solution = solve(data, [TEACHER, Estimator(loss, ridge, 0.8)], throw=True)
        inverse.append(1.0 / solution[1].norm)
        values.append(finite_observables(solution, SCALE_FREE)[len(SCALE_FREE) :])
    found = np.polynomial.polynomial.polyfit(inverse, np.array(values), 4)[0]
    distance = np.abs(values[0] - expected)
    # The calibration error, with a corner that the logits' scale sharpens, is integrated to 1e-4 only.
    allowed = np.where(np.array(SCALE_FREE) == "calibration_error", 1e-2, 2e-3) * distance
    assert np.all(np.abs(found - expected) < allowed), (found - expected) / distance
    # On training samples exponentially few outputs are away from their label.
    near = solve(data, [TEACHER, Estimator(loss, 1e-10, 0.8)])[1]
    assert near.train_output_distance == pytest.approx(limit[1].train_output_distance, rel=1e-3)
    assert near.train_loss == pytest.approx(0.0, abs=1e-8)


def test_a_margin_among_all_kinds_of_stages() -> None:
    """Two data sets with noise: direction, errors and the students beside it; small ridges approach them logarithmically."""
    data = GaussianMixture(0.5, 0.3, 1.0, further=[DataSet("b", 0.4, 0.3)])
    chain = [
        BayesOptimal(),
        Estimator(CrossEntropy(), 0.0, 0.6, sets=("training", "b"), name="separator"),
        Estimator(SquareDistillation(0.5, teacher=1), 0.0, sets="b", bias=0.2),
    ]
    limit = solve(data, chain, throw=True)
    assert [stage.limit for stage in limit.stages] == [None, "max margin", "minimum norm"]
    separator = max_margin(0.9, 0.3, 1.0, 0.6, label_noise=0.4 * 0.3 / 0.9)
    assert limit[1].cosine == pytest.approx(separator.magnetization, rel=1e-9)
    assert limit[1].relative_bias == pytest.approx(separator.bias, rel=1e-9)
    assert limit[1].margin == pytest.approx(separator.margin, rel=1e-9)
    assert limit[1].train_error == 0
    assert limit[1].clean_train_error == pytest.approx(0.4 * 0.3 / 0.9, rel=1e-12)
    distances, norms = [], []
    for ridge in (1e-3, 1e-5, 1e-7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            near = solve(data, at_ridge(chain, ridge))
        distances.append((near[1].cosine - limit[1].cosine, near[2].cosine - limit[2].cosine))
        norms.append(near[1].norm)
    distances = np.array(distances)
    # The margin's direction is approached like 1/norm, which grows like the logarithm of 1/ridge; the other limit linearly.
    ratios = distances[:, 0] * norms
    assert abs(ratios[2] / ratios[1] - 1.0) < 0.1
    assert distances[2, 1] == pytest.approx(1e-4 * distances[0, 1], rel=0.1)


def test_a_given_bias_vanishes_beside_a_margin() -> None:
    data = GaussianMixture(1.2, 0.3, 1.0, label_noise=0.1)
    found = solve(data, Estimator(CrossEntropy(), 0.0, bias=0.5), throw=True)[0]
    expected = max_margin(1.2, 0.3, 1.0, label_noise=0.1, bias_is_free=False)
    assert found.limit == "max margin"
    assert found.relative_bias == 0
    assert found.cosine == pytest.approx(expected.magnetization, rel=1e-9)
    assert found.test_error == pytest.approx(expected.test_error, rel=1e-9)
    threshold = separability_threshold(0.3, 1.0, label_noise=0.1, bias_is_free=False)
    above = solve(
        GaussianMixture(threshold * 1.2, 0.3, 1.0, label_noise=0.1), Estimator(CrossEntropy(), 0.0, bias=0.5)
    )[0]
    assert above.limit == "maximum likelihood"
    assert above.bias == 0.5


@pytest.mark.parametrize(
    "other", [TEACHER, Estimator(SquareLoss(), 0.0), Estimator(CrossEntropy(), 0.0, 0.6)], ids=repr
)
def test_stages_that_do_not_look_at_each_other_may_change_places(other: Estimator) -> None:
    separator = Estimator(CrossEntropy(), 0.0, 0.8)
    first, second = solve(SCARCE, [other, separator], throw=True), solve(SCARCE, [separator, other], throw=True)
    assert second[1].teacher_cosine == pytest.approx(first[1].teacher_cosine, rel=1e-8)
    assert second[1].teacher_agreement == pytest.approx(first[1].teacher_agreement, rel=1e-8)
    assert second[1].train_output_distance == pytest.approx(first[1].train_output_distance, rel=1e-8)
    for a, b in ((first[0], second[1]), (first[1], second[0])):
        assert b.test_error == pytest.approx(a.test_error, rel=1e-8)
        assert b.relative_bias == pytest.approx(a.relative_bias, rel=1e-8)


def test_solution_in_every_limit_goes_to_json() -> None:
    for chain in ([TEACHER, Estimator(Distillation(), 0.0, 0.6)], [TEACHER, Estimator(CrossEntropy(), 0.0)]):
        text = json.dumps(solve(SCARCE, chain).to_dict(), allow_nan=False)
        stage = json.loads(text)["stages"][1]
        assert stage["limit"] in ("minimum norm", "max margin")
        assert stage["response"] is None
        assert 0 < stage["test_error"] < 0.5


# Over the parameter space


def test_limits_converge_over_a_wide_box() -> None:
    """150 random chains with zero ridges, away from thresholds by more than 10 %; rtol 1e-8 everywhere."""
    rng = np.random.default_rng(5)
    found: dict[str | None, int] = {}
    for _ in range(150):
        eta = float(rng.uniform(0.05, 1.0))
        data = GaussianMixture(
            *(float(np.exp(rng.uniform(*np.log(box)))) for box in ((0.05, 20), (0.02, 0.5), (0.2, 5)))
        )
        temperature = float(np.exp(rng.uniform(0.0, np.log(20.0))))
        losses = [Distillation(float(rng.uniform()), temperature), Distillation(1.0, temperature), CrossEntropy()]
        teacher = Estimator(
            [SquareLoss(), CrossEntropy(0.1), CrossEntropy()][rng.integers(3)], float(rng.choice([0.0, 1e-3, 1.0]))
        )
        student = Estimator(losses[rng.integers(3)], 0.0, eta)
        thresholds = [separability_threshold(data.rho, data.delta, eta), eta, 1.0]
        thresholds.append(separability_threshold(data.rho, data.delta))
        if min(abs(data.alpha / t - 1.0) for t in thresholds) < 0.1:
            continue
        try:
            solution = solve(data, [teacher, student], throw=True)
        except ParameterError as error:
            assert "separable" in str(error)  # noqa: PT017
            continue
        assert solution.residual < 1e-9
        assert solution.quadrature_error < 1e-8
        for stage in solution.stages:
            assert stage.bayes_error - 1e-12 <= stage.test_error < 1 - stage.bayes_error
            found[stage.limit] = found.get(stage.limit, 0) + 1
    assert min(found[name] for name in ("maximum likelihood", "minimum norm", "max margin")) > 20


# Finite systems


def least_norm(design: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, float]:
    """Shortest weights, with free bias, that give the targets."""
    weights = np.linalg.lstsq(design - design.mean(0), targets - targets.mean(), rcond=None)[0]
    bias = float(targets.mean() - design.mean(0) @ weights)
    np.testing.assert_allclose(design @ weights + bias, targets, atol=1e-8)
    return weights, bias


def separator(sample: Sample, size: int) -> tuple[np.ndarray, float]:
    """Support vector machine on the first ``size`` inputs that allows no errors."""
    machine = SVC(kernel="linear", C=1e8, tol=1e-6).fit(sample.design[:, :size], 2 * sample.labels - 1)
    return machine.coef_[0], float(machine.intercept_[0])


def compare(measure, expected: np.ndarray, sizes: tuple[int, int], runs: int, seed: int, allowed: float = 4.0) -> None:
    """z-scores of observables extrapolated to N -> infinity, linearly in 1/N, from two sizes (the larger twice the other)."""
    seeds = np.random.SeedSequence(seed).spawn(2 * runs)
    with threadpool_limits(1):
        small, large = (
            np.array([measure(size, s) for s in seeds[k * runs : (k + 1) * runs]]) for k, size in enumerate(sizes)
        )
    mean = 2.0 * large.mean(0) - small.mean(0)
    error = np.sqrt((4.0 * large.var(0, ddof=1) + small.var(0, ddof=1)) / runs)
    z = (mean - expected) / error
    assert np.all(np.abs(z) < allowed), z
    assert np.all(error < 0.05 * np.abs(expected) + 0.02), error


def test_interpolating_student_against_least_norm_fits() -> None:
    """N = 200 and 400, 60 runs each, seed 11; z < 4 on seven observables."""
    data, eta = GaussianMixture(0.5, 0.3, 1.0), 0.8
    solution = solve(data, [TEACHER, Estimator(Distillation(), 0.0, eta)], throw=True)

    def measure(n: int, seed: np.random.SeedSequence) -> list[float]:
        sample = draw(data, n, seed)
        (teacher,) = train(sample, Chain.of(TEACHER), [n], 1e-9)
        size = round(eta * n)
        w, b = least_norm(sample.design[:, :size], teacher.logits)
        correct = (2 * sample.labels - 1) * teacher.logits > 0
        return [
            w @ sample.mean[:size] / n, w @ w / n, b, w @ teacher.weights[:size] / n, teacher.weights @ teacher.weights / n,
            teacher.bias, 1.0 - correct.mean(),
        ]  # fmt: skip

    q = solution.overlap
    expected = [solution.magnetization[1], q[1, 1], solution.bias[1], q[1, 0], q[0, 0], solution.bias[0]]
    compare(measure, np.array([*expected, solution[1].train_error]), (200, 400), 60, 11)


def test_student_of_an_interpolating_teacher_against_fits() -> None:
    """N = 200 and 400, 60 runs each, seed 12; z < 4 on six observables."""
    data, eta = GaussianMixture(0.6, 0.3, 1.0), 0.7
    student = Estimator(Distillation(0.5, 0.5), 0.05, eta)
    solution = solve(data, [Estimator(SquareLoss(), 0.0), student], throw=True)

    def measure(n: int, seed: np.random.SeedSequence) -> list[float]:
        sample = draw(data, n, seed)
        w1, _ = least_norm(sample.design, 2 * sample.labels - 1)
        size = round(eta * n)
        # The teacher's training logits are the labels' signs.
        target = Loss.from_expression("(softplus(h) - y*h + softplus(2*h) - sigmoid(2*s)*2*h)/2")
        (fit,) = train(sample, Chain.of(Estimator(target, 0.05)), [size], 1e-9)
        w2 = fit.weights
        v = sample.mean
        return [w2 @ v[:size] / n, w2 @ w2 / n, fit.bias, w2 @ w1[:size] / n, w1 @ w1 / n, w1 @ v / n]

    q = solution.overlap
    expected = [solution.magnetization[1], q[1, 1], solution.bias[1], q[1, 0], q[0, 0], solution.magnetization[0]]
    compare(measure, np.array(expected), (200, 400), 60, 12)


@pytest.mark.parametrize(("noise", "seed"), [(0.0, 13), (0.1, 14)])
def test_separating_student_against_support_vector_machines(noise: float, seed: int) -> None:
    """N = 150 and 300, 60 runs each; z < 4 on six observables, the cosine with a soft teacher among them."""
    data, eta = GaussianMixture(1.0, 0.3, 1.0, label_noise=noise), 0.8
    solution = solve(data, [TEACHER, Estimator(Distillation(0.0), 0.0, eta)], throw=True)
    student = solution[1]

    def measure(n: int, seed: np.random.SeedSequence) -> list[float]:
        sample = draw(data, n, seed)
        (teacher,) = train(sample, Chain.of(TEACHER), [n], 1e-9)
        size = round(eta * n)
        w, b = separator(sample, size)
        length = np.linalg.norm(w)
        outputs = 1.0 / (1.0 + np.exp(-teacher.logits))
        return [
            w @ sample.mean[:size] / length / math.sqrt(n), b / length * math.sqrt(n), math.sqrt(n) / length,
            w @ teacher.weights[:size] / length / np.linalg.norm(teacher.weights), np.mean((outputs - sample.labels) ** 2),
        ]  # fmt: skip

    expected = [
        student.cosine,
        student.relative_bias,
        student.margin,
        student.teacher_cosine,
        student.train_output_distance,
    ]
    compare(measure, np.array(expected), (150, 300), 60, 13)
