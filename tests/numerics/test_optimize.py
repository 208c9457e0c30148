"""Derivatives by implicit differentiation, and the search for the best parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from numerics import (
    BayesOptimal,
    ClassMixture,
    DataSet,
    Estimator,
    GaussianMixture,
    ParameterError,
    orthogonal_means,
    parameter_paths,
    similar_pairs,
    solve,
    with_parameter,
)
from numerics.models import Chain
from numerics.optimize import derivatives, optimize, parameter_value, tangent
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

DATA = GaussianMixture(alpha=2.0, rho=0.2, delta=1.0)
CHAIN = Chain.of([Estimator(CrossEntropy(smoothing=0.02), 0.1), Estimator(Distillation(0.7, 2.0, 0.05), 1e-2, eta=0.5)])
OBSERVABLES = ("teacher.test_error", "student.test_error", "student.train_error", "student.norm", "student.free_energy")


def read(solution, name: str) -> float:
    stage, _, observable = name.rpartition(".")
    return getattr(solution[solution.chain.names.index(stage)], observable)


def finite_difference(data, chain, path: str, function, step: float = 1e-3):
    """Fourth-order difference of solutions, one-sided where a parameter may not grow."""
    value = parameter_value(data, chain, path)
    shift = step * max(abs(value), 0.1)
    forward = path.endswith(".eta") and value == 1.0
    weights = (
        {0: 25 / 12, -1: -4.0, -2: 3.0, -3: -4 / 3, -4: 1 / 4}
        if forward
        else {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    )
    values = {k: function(solve(*with_parameter(data, chain, path, value + k * shift), rtol=1e-11)) for k in weights}
    return sum(weight * values[k] for k, weight in weights.items()) / shift


@pytest.mark.parametrize("path", parameter_paths(CHAIN))
def test_derivatives_agree_with_finite_differences(path: str) -> None:
    found = derivatives(solve(DATA, CHAIN), [path], OBSERVABLES)[path]
    expected = finite_difference(DATA, CHAIN, path, lambda s: np.array([read(s, name) for name in OBSERVABLES]))
    np.testing.assert_allclose([found[name] for name in OBSERVABLES], expected, rtol=1e-6, atol=1e-7)


def test_tangent_passes_through_two_teachers() -> None:
    """A third stage feels the first one's ridge only through the stages in between."""
    chain = Chain.of([*CHAIN.stages, Estimator(Distillation(0.8, 1.5), 3e-2, eta=0.5)])
    found = tangent(solve(DATA, chain), "teacher.ridge")
    for t in range(3):
        expected = finite_difference(DATA, chain, "teacher.ridge", lambda s, t=t: s.points[t].unknowns)
        np.testing.assert_allclose(found[t], expected, rtol=1e-5, atol=1e-6)


def test_derivative_at_the_end_of_the_allowed_range() -> None:
    data, chain = with_parameter(DATA, CHAIN, "student.mixing", 1.0)
    found = derivatives(solve(data, chain), ["student.mixing"], ["student.test_error"])
    inside = derivatives(
        solve(*with_parameter(data, chain, "student.mixing", 0.999)), ["student.mixing"], ["student.test_error"]
    )
    assert found["student.mixing"]["student.test_error"] == pytest.approx(
        inside["student.mixing"]["student.test_error"], rel=0.02
    )


@pytest.mark.parametrize("loss", [CrossEntropy(), SquareLoss()])
def test_best_ridge_is_better_than_its_neighbours(loss) -> None:
    found = optimize(
        GaussianMixture(4.5, 0.2, 1.0), Estimator(loss, 1.0), {"teacher.ridge": (1e-6, 1e3)}, "teacher.test_error"
    )
    assert found.converged
    assert found.location == {"teacher.ridge": "interior"}
    assert abs(found.gradient["teacher.ridge"]) < 1e-8
    for factor in (0.97, 1.03):
        ridge = factor * found.parameters["teacher.ridge"]
        assert solve(GaussianMixture(4.5, 0.2, 1.0), Estimator(loss, ridge))[0].test_error > found.value


def test_balanced_classes_want_an_infinite_ridge() -> None:
    """There the error falls to the Bayes error, Phi(-sqrt(alpha/(Delta(alpha + Delta))))."""
    data = GaussianMixture(4.5, 0.5, 1.0)
    found = optimize(data, Estimator(CrossEntropy(), 1.0), {"teacher.ridge": (1e-6, 10)}, "teacher.test_error")
    assert found.location == {"teacher.ridge": "infinity"}
    assert found.parameters == {"teacher.ridge": 10.0}
    assert found.gradient["teacher.ridge"] < 0
    assert found.limit == pytest.approx(0.5 * math.erfc(math.sqrt(4.5 / 5.5) / math.sqrt(2)), abs=1e-7)
    assert found.limit < found.value
    assert "infinity" in found.message


def test_bounds_are_reported() -> None:
    estimator = Estimator(CrossEntropy(), 1.0)
    found = optimize(DATA, estimator, {"teacher.ridge": (1e-6, 1e-2)}, "teacher.test_error")
    assert found.location == {"teacher.ridge": "upper bound"}
    assert found.parameters == {"teacher.ridge": 1e-2}
    assert found.limit == found.value
    found = optimize(DATA, estimator, {"teacher.ridge": (1.0, 5.0)}, "teacher.test_error")
    assert found.location == {"teacher.ridge": "lower bound"}
    assert found.converged


def test_maximum_of_the_interpolation_peak() -> None:
    """The norm of a pure-distillation student peaks where it can just interpolate, alpha = eta."""
    chain = [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 1e-5, eta=0.5)]
    found = optimize(DATA, chain, {"alpha": (0.2, 2.0)}, "student.norm", maximize=True)
    assert found.converged
    assert found.parameters["alpha"] == pytest.approx(0.5, abs=0.02)
    assert found.value > solve(GaussianMixture(0.6, 0.2, 1.0), chain)[1].norm


def test_two_parameters_together() -> None:
    over = {"student.mixing": (0.0, 1.0), "student.ridge": (1e-5, 10.0)}
    found = optimize(DATA, CHAIN, over)
    assert found.converged
    assert set(found.location.values()) == {"interior"}
    for path, value in found.parameters.items():
        for factor in (0.95, 1.05):
            moved = with_parameter(found.solution.data, found.solution.chain, path, factor * value)
            assert solve(*moved)[1].test_error > found.value
    one = optimize(found.solution.data, found.solution.chain, {"student.mixing": (0.0, 1.0)})
    assert one.parameters["student.mixing"] == pytest.approx(found.parameters["student.mixing"], abs=1e-4)


@pytest.mark.parametrize(
    ("over", "observable", "word"),
    [
        ({}, "student.test_error", "at least one"),
        ({"student.colour": (0, 1)}, "student.test_error", "unknown parameter"),
        ({"student.ridge": (1, 1)}, "student.test_error", "increasing"),
        ({"student.ridge": (0, 1)}, "student.test_error", "positive"),
        ({"student.ridge": 3}, "student.test_error", "two numbers"),
        ({"student.mixing": (0, 2)}, "student.test_error", "mixing"),
        ({"student.ridge": (0.1, 1)}, "test_error", "observable"),
        ({"student.ridge": (0.1, 1)}, "student.beauty", "observable"),
    ],
)
def test_bad_requests(over, observable: str, word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        optimize(DATA, CHAIN, over, observable)


def test_derivatives_need_a_converged_solution() -> None:
    with pytest.warns(RuntimeWarning):
        solution = solve(DATA, CHAIN, max_iterations=1)
    with pytest.raises(ParameterError, match="converged"):
        derivatives(solution, ["alpha"], ["teacher.test_error"])


LIMITS = {
    "max margin": (
        GaussianMixture(1.2, 0.3, 1.0, label_noise=0.1),
        [Estimator(CrossEntropy(), 0.0)],
        ("teacher.test_error", "teacher.cosine"),
    ),
    "minimum norm": (
        GaussianMixture(0.4, 0.2, 1.0),
        [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(0.7, 0.8), 0.0, 0.6)],
        ("student.test_error", "student.norm", "student.teacher_cosine"),
    ),
    "maximum likelihood": (
        GaussianMixture(6.0, 0.2, 1.0),
        [Estimator(CrossEntropy(), 0.0), Estimator(Distillation(), 0.0, 0.5)],
        ("student.test_error", "student.norm"),
    ),
    "all kinds, two data sets": (
        GaussianMixture(0.5, 0.3, 1.0, further=[DataSet("b", 0.4, 0.3)]),
        [
            BayesOptimal(),
            Estimator(CrossEntropy(), 0.0, 0.6, sets=("training", "b"), name="separator"),
            Estimator(SquareDistillation(0.5, teacher=1), 0.0, sets="b", bias=0.2),
            Estimator(Distillation(0.5, 2.0, teacher=3), 0.1, 0.7, name="last"),
        ],
        ("separator.test_error", "stage3.test_error", "last.norm"),
    ),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case.startswith("all kinds") else case for case in LIMITS]
)
def test_derivatives_of_limits(case: str) -> None:
    data, chain, names = LIMITS[case]
    chain = Chain.of(chain)
    solution = solve(data, chain, throw=True)
    paths = ("alpha", "rho") if data.further else ("alpha", "delta", "rho")  # those of two sets are slow
    for path in (*paths, "label_noise") if data.label_noise else paths:
        found = derivatives(solution, [path], names)[path]
        expected = finite_difference(
            data, chain, path, lambda s, names=names: np.array([read(s, name) for name in names])
        )
        np.testing.assert_allclose([found[name] for name in names], expected, rtol=2e-5, atol=1e-7)


def test_optimum_of_a_student_without_a_ridge() -> None:
    """The best mixing of a minimum-norm student is where its derivative vanishes, and no neighbour is better."""
    data = GaussianMixture(0.4, 0.2, 1.0)
    chain = [Estimator(CrossEntropy(), 0.1), Estimator(SquareDistillation(0.5), 0.0, 0.6)]
    found = optimize(data, chain, {"student.mixing": (0.05, 1.0)}, "student.test_error")
    assert found.converged
    for mixing in np.linspace(0.05, 1.0, 15):
        other = Estimator(SquareDistillation(mixing), 0.0, 0.6)
        assert solve(data, [chain[0], other])[1].test_error >= found.value - 1e-9


def test_derivatives_with_respect_to_a_ridge_of_0_are_refused() -> None:
    solution = solve(GaussianMixture(0.4), Estimator(SquareLoss(), 0.0))
    with pytest.raises(ParameterError, match=r"teacher\.ridge must be positive"):
        derivatives(solution, ["teacher.ridge"], ["teacher.test_error"])


# Many classes.

UNEQUAL = ClassMixture(2.0, [0.4, 0.35, 0.25], similar_pairs(3, 0.4), [0.4, 0.7, 0.5])
OF_CLASSES = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(Distillation(temperature=2.0), 0.1, eta=0.7)])


def test_best_ridge_of_many_classes() -> None:
    """Between its neighbours in complete solutions, on nodes of their own; the error says how sure that is."""
    path, observable = "student.ridge", "student.test_error"
    best = optimize(UNEQUAL, OF_CLASSES, {path: (1e-3, 10.0)}, observable)
    assert best.converged
    assert best.location == {path: "interior"}
    assert best.value == best.solution[1].test_error
    assert best.solution.quadrature_error < 1e-5
    assert best.evaluations < 60
    for factor in (0.6, 1 / 0.6):
        other = solve(*with_parameter(UNEQUAL, OF_CLASSES, path, factor * best.parameters[path]))
        assert other[1].test_error > best.value + 3 * (best.solution.quadrature_error + other.quadrature_error)
    again = optimize(UNEQUAL, OF_CLASSES, {path: (1e-3, 10.0)}, observable)
    assert again.parameters == best.parameters


@pytest.mark.slow
def test_two_classes_have_the_optimum_of_the_binary_solver() -> None:
    """Of a learned ridge and a temperature together, on nodes and by exact gradients; the classes' ridge is half as large."""
    over = {"student.ridge": (1e-2, 10.0), "student.mixing": (0.0, 1.0)}
    two = ClassMixture(2.0, [0.3, 0.7], [[1, -1], [-1, 1]], 1.0, label_noise=0.1)
    chain = Chain.of([Estimator(CrossEntropy(), 1.0), Estimator(Distillation(), 0.1, eta=0.7)])
    ours = optimize(two, chain, over)
    binary = GaussianMixture(2.0, 0.3, 1.0, label_noise=0.1)
    halved = Chain.of([Estimator(CrossEntropy(), 0.5), Estimator(Distillation(), 0.1, eta=0.7)])
    theirs = optimize(binary, halved, over)
    assert ours.converged
    assert ours.value == pytest.approx(theirs.value, abs=1e-6)
    assert ours.location == theirs.location
    ridges = ours.parameters["student.ridge"], 2.0 * theirs.parameters["student.ridge"]
    assert ridges[0] == pytest.approx(ridges[1], rel=3e-2)


def test_of_many_classes_at_the_ends() -> None:
    """Balanced classes want an infinite ridge; what is refused is so in one line."""
    path = "teacher.ridge"
    alike = ClassMixture(2.0, gram=orthogonal_means(3), delta=0.5)
    best = optimize(alike, Estimator(CrossEntropy(), 1.0), {path: (1e-2, 50.0)}, "teacher.test_error")
    assert best.location == {path: "infinity"}
    worst = optimize(alike, Estimator(CrossEntropy(), 1.0), {path: (1e-2, 50.0)}, "teacher.test_error", maximize=True)
    assert worst.location == {path: "lower bound"}
    with pytest.raises(ParameterError, match=r"bounds of 'teacher.ridge' must be increasing"):
        optimize(alike, Estimator(CrossEntropy(), 1.0), {path: (10.0, 1.0)}, "teacher.test_error")
    with pytest.raises(ParameterError, match="are not differentiated; take sweep or optimize"):
        derivatives(best.solution, [path], ["teacher.test_error"])
