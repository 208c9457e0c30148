"""Random features that a student needs: another minimiser, dense sweeps, real networks, searches whose answer is known."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import xarray

from numerics import (
    ConvergenceWarning,
    Estimator,
    GaussianMixture,
    LinearRule,
    ParameterError,
    RandomFeatures,
    simulate,
    solve,
    sweep,
)
from numerics.cli.neurons import exact_text
from numerics.neurons import exact
from numerics.neurons.exact import Excess, NeuronsNeeded, neurons_needed
from numerics.neurons.experiments import MixtureScan, RuleScan
from numerics.optimize import optimize
from numerics.sweeps.run import evaluate
from theory.losses import CrossEntropy, Distillation

TEACHER = Estimator(CrossEntropy(), ridge=10.0)
LOSSES = {"soft": Distillation(), "hard": CrossEntropy()}


def mixture(delta: float) -> GaussianMixture:
    return GaussianMixture(alpha=4.0, rho=0.5, delta=delta)


def chain_of(labels: str, ratio: float, ridge: float) -> list[Estimator]:
    return [TEACHER, Estimator(LOSSES[labels], ridge, name="student", features=RandomFeatures(ratio))]


def best_excess(delta: float, labels: str, ratio: float, ridges: tuple[float, float] = exact.RIDGES) -> float:
    """By the optimiser that follows gradients."""
    data, chain = mixture(delta), chain_of(labels, ratio, 1.0)
    best = optimize(data, chain, {"student.ridge": ridges}, "student.test_error")
    return best.value - solve(data, TEACHER)[0].test_error


# Against other ways to compute the same.


@pytest.mark.parametrize("labels", LOSSES)
def test_best_ridge_and_ratio_by_another_minimiser(labels: str) -> None:
    found = neurons_needed(mixture(4.0), TEACHER, 0.05, labels, ratios=(0.5, 2.0))
    assert found.message == "found"
    assert found.error < 1e-4
    assert best_excess(4.0, labels, float(found.ratio), (1e-2, 1e2)) == pytest.approx(0.05, abs=1e-7)


def test_smallest_of_several_ratios() -> None:
    """At a small ridge the error peaks near p/N = alpha = 4: it is within 0.04 of the teacher's before the peak, and behind it."""
    levels = (0.04, 0.02)
    found = neurons_needed(mixture(4.0), TEACHER, levels, "soft", ridge=1e-3)
    grid = sweep(mixture(4.0), chain_of("soft", 1.0, 1e-3), {"student.features": "0.05:8:240:log"})
    excess = grid.test_error.sel(stage="student") - found.teacher_error
    below = [grid["student.features"].values[excess.values < eps] for eps in levels]
    assert np.diff(below[0]).max() > 0.3  # a hole: there are several crossings
    assert found.ratio[0] < 1.2 < 4.0 < found.ratio[1]
    step = 160.0 ** (1 / 239)
    for ratio, there in zip(found.ratio, below, strict=True):
        assert there[0] / step < ratio <= there[0]


def test_small_ridge_hard_labels_never_come_near() -> None:
    hard = neurons_needed(mixture(1.0), TEACHER, [0.02, 0.05], "hard", ridge=1e-3, ratios=(1.0, 300.0))
    assert hard.ratio[0] == np.inf
    assert np.isnan(hard.error[0])
    assert 7.9 < hard.ratio[1] < 8.1
    assert hard.message.startswith("never up to p/N = 300: the excess is at least 0.025")
    soft = neurons_needed(mixture(1.0), TEACHER, 0.01, "soft", ridge=1e-3, ratios=(1.0, 30.0))
    assert soft.ratio.shape == ()
    at = solve(mixture(1.0), chain_of("soft", float(soft.ratio), 1e-3))
    assert at[1].test_error - at[0].test_error == pytest.approx(0.01, abs=1e-8)


def test_an_optimum_at_an_edge_is_said() -> None:
    found = neurons_needed(mixture(4.0), TEACHER, 0.05, "hard", ratios=(0.5, 3.0), ridges=(1e-3, 0.1))
    assert found.edge == 1
    assert found.ridge == pytest.approx(0.1)
    assert found.message == "the best ridge is the largest allowed, 0.1"
    assert found.ratio > 0.95
    assert neurons_needed(mixture(4.0), TEACHER, 0.3, "hard", ratios=(0.5, 3.0)).message.startswith("the smallest p/N")


def test_students_may_be_better_than_teachers() -> None:
    """A teacher nearly without a ridge is worse than a student of many features at its best one."""
    data, poor = GaussianMixture(4.0, 0.5, 4.0), Estimator(CrossEntropy(), ridge=1e-3)
    found = neurons_needed(data, poor, 1e-3, "hard", ratios=(0.3, 20.0))
    alone = solve(data, poor)[0].test_error
    hard = [
        Estimator(CrossEntropy(), 1.0, name="student", features=RandomFeatures(f * float(found.ratio))) for f in (1, 2)
    ]
    best = [optimize(data, s, {"student.ridge": (1e-2, 1e3)}, "student.test_error").value - alone for s in hard]
    assert best[0] == pytest.approx(1e-3, abs=1e-7)
    assert best[1] < -0.005


# Searches whose answer is known.


class Made:
    """Excess as a function of ln p/N."""

    ridges = (1.0, 1.0)

    def __init__(self, function) -> None:
        self.function = function

    def excess(self, ratio: float) -> Excess:
        return Excess(float(self.function(math.log(ratio))), 1e-9, 1.0)


def search(function, high: float = 4.0) -> exact._Search:
    return exact._Search(Made(function), np.linspace(0.0, high, 41))


def test_roots_of_known_functions() -> None:
    assert search(lambda x: np.exp(-x)).first(0.1).ratio == pytest.approx(10.0, rel=1e-5)
    assert search(lambda x: 1.0 + x).first(0.1).ratio == np.inf
    assert search(lambda x: np.exp(-x)).first(2.0).ratio == 1.0  # there from the beginning
    down_up_down = search(lambda x: 0.2 - 0.1 * np.sin(4.0 * x) - 0.03 * x)
    first = down_up_down.first(0.12)
    assert 0.2 - 0.1 * np.sin(4.0 * np.log(first.ratio)) - 0.03 * np.log(first.ratio) == pytest.approx(0.12, abs=1e-5)
    assert first.ratio < 1.5
    assert down_up_down.first(0.08).ratio > 4.0


def test_a_dip_between_two_steps_is_seen() -> None:
    def dip(x: float) -> float:
        return 1.0 - 0.01 * x - 0.5 * np.exp(-0.5 * ((x - 1.95) / 0.06) ** 2) + 0.1 * np.exp(-x)

    found = search(dip).first(0.52)  # 0.64 at the steps beside it
    assert math.log(found.ratio) == pytest.approx(1.933, abs=0.02)
    assert dip(math.log(found.ratio)) == pytest.approx(0.52, abs=1e-4)


def test_what_does_not_converge_is_told(monkeypatch) -> None:
    usual = exact._Students.errors

    def errors(students, points):
        values, errors = usual(students, points)
        return np.where((points[:, 0] > 1.0) & (points[:, 0] < 1.2), np.nan, values), errors

    monkeypatch.setattr(exact._Students, "errors", errors)
    problem = mixture(4.0), TEACHER, 0.03, "hard"
    with pytest.warns(ConvergenceWarning, match=r"no solution at \d+ of \d+ ratios"):
        found = neurons_needed(*problem, ridge=1.0, ratios=(0.5, 10.0))
    assert found.failed > 0
    assert "passed over" in found.message
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert neurons_needed(*problem, ridge=1.0, ratios=(0.5, 10.0)).ratio == pytest.approx(
            float(found.ratio), rel=1e-5
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": 0.0}, "eps must be a number in"),
        ({"eps": [0.1, 0.5]}, "eps must be a number in"),
        ({"labels": "both"}, "labels must be one of soft, hard"),
        ({"data": LinearRule(1.0)}, "data must have two classes"),
        ({"teacher": replace(TEACHER, features=RandomFeatures(1.0))}, "teacher must be an Estimator that sees the inputs"),
        ({"ridge": 0.0}, "ridge must be a number > 0 or None"),
        ({"ratios": (2.0, 1.0)}, "ratios must be two numbers > 0"),
        ({"ratios": (1.0, 1e5)}, "ratio must be a number in"),
        ({"ridges": 3.0}, "ridges must be two numbers > 0"),
        ({"activation": "step"}, "activation must be one of"),
    ],
)  # fmt: skip
def test_bad_input_is_named(changes: dict, words: str) -> None:
    given = {"data": mixture(1.0), "teacher": TEACHER, "eps": 0.05, **changes}
    with pytest.raises(ParameterError, match=words):
        neurons_needed(**given)


# Scans.


def made(scan) -> xarray.Dataset:
    return evaluate({"scan": scan}, 1, executor="serial", progress=False)["scan"]


def test_scans_hold_what_the_function_finds() -> None:
    scan = MixtureScan(eps=(0.05, 0.1), small_ridge=0.5, deltas=(2.0, 4.0))
    found = made(scan)
    assert found.ratio.dims == ("delta", "labels", "tuning", "eps")
    for labels, tuning, ridge in (("soft", "best", None), ("hard", "small", 0.5)):
        alone = neurons_needed(mixture(4.0), TEACHER, [0.05, 0.1], labels, ridge=ridge)
        np.testing.assert_allclose(found.ratio.sel(delta=4.0, labels=labels, tuning=tuning), alone.ratio, rtol=1e-6)
    part = made(scan.along_axes({"delta": np.array([4.0])}))
    xarray.testing.assert_equal(part, found.sel(delta=[4.0]))
    text = exact_text("Overlapping classes", found)
    for words in ("hard/soft", "Student's ridge 0.5", f"{float(found.ratio.sel(delta=2.0, tuning='best').max()):.3g}"):
        assert words in text
    never = exact_text("none", found.assign(ratio=np.inf * found.ratio, edge=found.edge + 1))
    assert never.count("never") == found.ratio.size + 1


@pytest.mark.large
def test_teachers_of_rules_have_their_best_ridge() -> None:
    scan = RuleScan(eps=(0.1,), noises=(0.0, 1.0), alphas=(1.0,))
    found = made(scan)
    assert found.ratio.shape == (2, 1, 2, 2, 1)
    for noise, data in ((0.0, LinearRule(1.0, output="sign")), (1.0, LinearRule(1.0, 1.0, "probit"))):
        ridge = found.teacher_ridge.sel(noise=noise).item()
        errors = [solve(data, replace(TEACHER, ridge=factor * ridge))[0].test_error for factor in (0.8, 1.0, 1.25)]
        assert min(errors) == errors[1] == pytest.approx(found.teacher_error.sel(noise=noise).item(), abs=1e-9)


# Real networks.


def score(delta: float, eps: float, needed: NeuronsNeeded, labels: str, n_inputs: int, n_runs: int = 24) -> float:
    """z of the mean difference of test errors, run by run, from ``eps``, at the ratio that is needed."""
    chain = chain_of(labels, round(float(needed.ratio) * n_inputs) / n_inputs, float(needed.ridge))
    errors = simulate(mixture(delta), chain, n_inputs=n_inputs, n_runs=n_runs, seed=5).runs["test_error"]
    difference = errors[:, 1] - errors[:, 0]
    return float((difference.mean() - eps) / (difference.std(ddof=1) / math.sqrt(n_runs)))


def test_networks_of_that_size_come_as_near_as_is_said() -> None:
    needed = neurons_needed(mixture(4.0), TEACHER, 0.05, "soft", ratios=(0.5, 2.0))
    assert abs(score(4.0, 0.05, needed, "soft", 200)) < 4


PROTOTYPE = {
    (0.25, "soft"): (4.0, 2.4, 1.15), (0.25, "hard"): (6.9, 3.3, 1.3), (1.0, "soft"): (7.0, 3.8, 1.6),
    (1.0, "hard"): (14.5, 6.5, 2.1), (4.0, "soft"): (3.8, 2.0, 0.72), (4.0, "hard"): (7.4, 3.3, 0.89),
}  # fmt: skip
"""p/N at eps = 0.01, 0.02, 0.05 of another code, in two digits, interpolated between ratios (a convex curve: too large)."""


@pytest.mark.large
def test_table_at_the_best_ridge() -> None:
    """To half a per cent by another minimiser; to 4% as a prototype had it; and real networks at one place."""
    eps = (0.01, 0.02, 0.05)
    for (delta, labels), before in PROTOTYPE.items():
        found = neurons_needed(mixture(delta), TEACHER, eps, labels)
        for ratio, level in zip(found.ratio, eps, strict=True):
            assert best_excess(delta, labels, 0.995 * ratio) > level > best_excess(delta, labels, 1.005 * ratio)
        assert np.all(np.abs(found.ratio / before - 1) < 0.04)
    for n_inputs in (150, 300):
        assert abs(score(1.0, 0.02, neurons_needed(mixture(1.0), TEACHER, 0.02), "soft", n_inputs)) < 4
