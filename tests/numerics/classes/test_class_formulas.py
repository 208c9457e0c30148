"""Formulas with an index of the class: what they mean, that built-in losses written so are the same, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from numerics import (
    Chain,
    ClassMixture,
    ClassSet,
    Estimator,
    GaussianMixture,
    ParameterError,
    orthogonal_means,
    similar_pairs,
    simulate,
    solve,
    sweep,
)
from numerics.classes import solver
from numerics.classes.formulas import class_loss
from numerics.problem import read_problem, write_problem
from theory.convexity import ConvexityWarning
from theory.losses import CrossEntropy, Distillation, LogitMatching, Loss, PseudoLabels, SquareDistillation, SquareLoss

LABELS = "(logsumexp(h) - Sum(y[k]*h[k], k))"
SOFT = "(logsumexp(h/T) - Sum(softmax(h_teacher/T)[k]*h[k]/T, k))"
DISTILLATION = f"(1-c)*{LABELS} + c*{SOFT}"

SAME: dict[str, tuple[str, dict[str, float], Loss]] = {
    "cross-entropy": (LABELS, {}, CrossEntropy()),
    "by exponentials": ("log(Sum(exp(h[j]), j)) - Sum(y[k]*h[k], k)", {}, CrossEntropy()),
    "by logarithms": ("-Sum(y[k]*log(exp(h[k])/Sum(exp(h[j]), j)), k)", {}, CrossEntropy()),
    "smoothing": ("logsumexp(h) - Sum((y[k]*(1-e) + (1-y[k])*e/(K-1))*h[k], k)", {"e": 0.1}, CrossEntropy(0.1)),
    "square": ("Sum((h[k] - y[k])**2, k)/2", {}, SquareLoss()),
    "distillation": (DISTILLATION, {"c": 0.7, "T": 2.0}, Distillation(0.7, 2.0)),
    "squared temperature": (f"T^2*{SOFT}", {"T": 3.0}, Distillation(1.0, 3.0, temperature_squared=True)),
    "logits": (f"{LABELS}/2 + g*Sum((h[k] - h_teacher[k])**2, k)/4", {"g": 0.3}, LogitMatching(0.5, 0.3)),
    "square of a target": ("Sum((h[k] - y[k]/2 - h_teacher[k]/2)**2, k)/2", {}, SquareDistillation(0.5)),
}

PAIRS = ClassMixture(2.0, gram=similar_pairs(4, 0.5), delta=0.5)
UNEQUAL = ClassMixture(2.0, [0.4, 0.35, 0.25], similar_pairs(3, 0.4), [0.4, 0.7, 0.5])
TEACHER = Estimator(CrossEntropy(), 0.1)


def of_formula(name: str) -> tuple[Loss, Loss]:
    text, parameters, built_in = SAME[name]
    return Loss.from_expression(text, parameters), built_in


@pytest.mark.parametrize("name", SAME)
def test_functions_are_those_of_the_built_in_loss(name: str) -> None:
    """In the gauge, where the built-in ones are meant; three and five classes."""
    loss, built_in = of_formula(name)
    for k in (3, 5):
        generator = np.random.default_rng(k)
        h, taught, labels = generator.normal(size=(20, k)), generator.normal(size=(20, 1, k)), np.arange(20) % k
        h -= h.mean(axis=1, keepdims=True)
        taught = taught - taught.mean(axis=2, keepdims=True) if loss.logits else taught[:, :0]
        project = np.eye(k) - 1.0 / k
        ours, theirs = (class_loss(found, k) for found in (loss, built_in))
        c, expected = ours.targets(labels, taught), theirs.targets(labels, taught)
        assert (ours.gradient(h, c) - theirs.gradient(h, expected)) @ project == pytest.approx(0.0, abs=1e-12)
        assert project @ ours.curvature(h, c) @ project == pytest.approx(
            project @ theirs.curvature(h) @ project, abs=1e-12
        )
        apart = ours.value(h, c, taught) - theirs.value(h, expected, taught)
        targets_alone = ours.value(0 * h, c, taught) - theirs.value(0 * h, expected, taught)
        assert apart == pytest.approx(targets_alone, abs=1e-12)  # a constant of the target makes no difference
        assert ours.curvature_at_rest == pytest.approx(theirs.curvature_at_rest, abs=1e-12)
    assert loss == Loss.from_expression(*SAME[name][:2])


@pytest.mark.parametrize("name", ["distillation", "square", "logits"])
def test_solutions_are_those_of_the_built_in_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same nodes: those of a formula are never pairs."""
    monkeypatch.setattr(solver, "in_pairs", lambda loss, d: False)
    loss, built_in = of_formula(name)
    solutions = [solve(UNEQUAL, [TEACHER, Estimator(found, 0.1, eta=0.8)], throw=True) for found in (loss, built_in)]
    ours, theirs = (found[1] for found in solutions)
    for attribute in ("test_error", "class_errors", "means", "biases", "train_error"):
        assert getattr(ours, attribute) == pytest.approx(getattr(theirs, attribute), abs=1e-9), attribute
    assert solutions[0].response == pytest.approx(solutions[1].response, abs=1e-9)
    if name != "logits":
        assert ours.test_loss == pytest.approx(theirs.test_loss, abs=1e-9)


def test_symmetries_are_those_of_the_formula() -> None:
    """One that names classes breaks the symmetry of the data; one that has an index alone, or names them all alike, does not."""
    found = [
        solve(PAIRS, Estimator(loss, 0.3)).walk
        for loss in (
            CrossEntropy(),
            Loss.from_expression(LABELS),
            Loss.from_expression("log(exp(h[1]) + exp(h[2]) + exp(h[3]) + exp(h[4])) - Sum(y[k]*h[k], k)"),
        )
    ]
    assert found[0].permutations == found[1].permutations == found[2].permutations != ()
    costly = Loss.from_expression("logsumexp(h) - Sum(y[k]*h[k], k) + 3*y[1]*softplus(h[2] - h[1])")
    solution = solve(PAIRS, Estimator(costly, 0.3), throw=True)
    assert set(solution.walk.permutations) < set(found[0].permutations)
    norms = np.diag(solution.overlap[0, 0])  # class 1 and 2 are told apart otherwise, class 3 and 4 are alike
    assert norms[2] == pytest.approx(norms[3], abs=2e-4)  # on these nodes
    assert abs(norms[1] - norms[0]) > 0.01


def test_a_formula_of_its_own_against_simulation() -> None:
    """Pairwise margins, that no built-in loss has and whose curvature depends on the label; a student of its logits, responses."""
    margins = Loss.from_expression("Sum(Sum(y[k]*softplus(h[j] - h[k] + m), j), k)", {"m": 0.5}, name="margins")
    student = Loss.from_expression(
        "Sum(Sum(softmax(h_1)[k]*softplus(h[j] - h[k]), j), k) + Sum((h[k] - h_1[k])**2, k)/8", name="soft margins"
    )
    chain = [Estimator(margins, 0.2), Estimator(student, 0.2, eta=0.8)]
    result = simulate(UNEQUAL, chain, n_inputs=120, n_runs=16, seed=0, responses=True, throw=True)
    solution = solve(result.effective_data, result.effective_chain, throw=True)
    for name in ("overlap", "means", "bias"):
        measured, expected = getattr(result, name), getattr(solution, name)
        moves = measured.standard_error > 1e-9
        z = (measured.mean - expected)[moves] / measured.standard_error[moves]
        assert np.abs(z).max() < 4.5, name
    for measured, stage in zip(result, solution.stages, strict=True):
        for name in ("test_error", "train_error", "test_loss", "train_loss"):
            z = (getattr(measured, name).mean - getattr(stage, name)) / getattr(measured, name).standard_error
            assert abs(z) < 4, name
    apart = np.abs(result.response.mean - solution.response)
    assert (apart < 0.1 * np.abs(solution.response).max()).all()  # of order 1/N


def test_steps_of_a_teacher() -> None:
    """Targets that jump, for two classes apart: which of two logits is larger."""
    first, second = "step(h_teacher[1] - h_teacher[2])*h[1]", "step(h_teacher[2] - h_teacher[1])*h[2]"
    loss = Loss.from_expression(f"logsumexp(h) - {first} - {second}")
    assert loss.jumps
    two = ClassMixture(2.0, [0.4, 0.6], orthogonal_means(2), [0.5, 0.6])
    ours, theirs = (
        solve(two, [TEACHER, Estimator(found, 0.3, eta=0.5)], rtol=1e-3, throw=True)[1]
        for found in (loss, PseudoLabels())
    )
    assert ours.test_error == pytest.approx(theirs.test_error, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("-Sum(h[k]**2, k)", {}, "not convex: its second derivative is -2 along"),
        ("logsumexp(h)**2 - 9*Sum(y[k]*h[k], k)", {}, r"not convex: its second derivative is -.* at h\[1\]="),
        ("logsumexp(h) - c*logsumexp(2*h) - Sum((1 - 2*c)*y[k]*h[k], k)", {"c": 0.4}, "not convex"),
        ("h[0] - h[1]", {}, r"h\[0\] in the loss .* is none of the classes 1\.\.2"),
        ("h[1.5] - h[1]", {}, r"is none of the classes 1\.\."),
        ("logsumexp(h)[1]", {}, "cannot read the loss formula"),
        ("Sum((h[k+1] - y[k])**2, k)", {}, r"h\[4\] in the loss .* is none of the classes 1\.\.3"),
        ("softmax(h_teacher)[0]*logsumexp(h)", {}, r"is none of the classes 1\.\.2"),
        ("logsumexp(h) - y[k]*h[k]", {}, r"has an index k of no sum: write Sum\(\.\.\., k\)"),
        ("logsumexp(h) - h", {}, r"h in the loss .* is a vector: write h\[k\]"),
        ("logsumexp(h) - Sum(y[k]*h[k], (k, 1, 2))", {}, "a sum runs over all classes"),
        ("Sum(Sum(y[k]*h[k], k), k)", {}, "a letter of its own"),
        ("g*logsumexp(h) - Sum(y[k]*h[k], k)", {}, r"unknown symbols in the loss .*: g; known: h\[k\]"),
        ("logsumexp(h) - Sum(z[k]*h[k], k)", {}, "cannot read the loss formula"),
        ("logsumexp(h) - Sum(y[k]*f(h[k]), k)", {}, "unknown symbols in the loss .*: f"),
        ("logsumexp(h_teacher)", {}, "does not depend on h"),
        ("Sum(log(h[k]), k)", {}, "not finite"),
        ("Sum(abs(h[k]), k)", {}, "abs: it has a kink"),
        ("logsumexp(h) - Sum(y[k]*h[k], k)", {"b": 1.0}, "has no parameter 'b'"),
        ("logsumexp(h) - Sum(y[k]*h[k]*k, k)", {"k": 1.0}, "'k' cannot name a parameter"),
        ("logsumexp(h)", {}, "a constant added to all logits has no minimum"),
        ("Sum(softplus(h[k]), k)", {}, "a constant added to all logits has no minimum"),
        ("Sum(h[k]*(1 - 2*y[k]), k)", {}, "a constant added to all logits has no minimum"),
        ("Sum(softplus(h[k]) - y[k]*h[k], k) - h[1]/2", {}, r"no minimum: .* does not rise along h\[1\]: 1"),
        ("softplus((1 - 2*y[1])*h[1])", {}, r"no minimum: .* does not rise along h\[1\]: 0, h\[2\]: 1"),
        ("Sum((h[k] - k*y[k])**2, k)", {}, "the same for all samples: the sum of logits with the factors"),
        ("Sum(softplus((1 - 2*y[k])*h[k]) - h[k]**2/8, k)", {}, "not convex"),
        ("logsumexp(h) - h[1] + __import__('os')[1]", {}, "cannot read"),
    ],
)  # fmt: skip
def test_formulas_that_are_refused(text: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Loss.from_expression(text, parameters)
    assert "\n" not in str(caught.value)


def test_convexity_that_is_not_proved() -> None:
    with pytest.warns(ConvexityWarning, match="not proved convex"):
        Loss.from_expression("sqrt(Sum((h[k] - y[k])**2, k) + 1)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text, parameters, _ in SAME.values():
            Loss.from_expression(text, parameters)
        Loss.from_expression("logsumexp(h + m*(1 - y)) - Sum(y[k]*h[k], k)", {"m": 1.0})
        Loss.from_expression("Sum(softplus(h[k] - Sum(h[j], j)/K) - y[k]*(h[k] - Sum(h[j], j)/K), k)")
        loss = Loss.from_expression("c*Sum((h[k] - y[k])**2, k)", {"c": 1.0})
    with pytest.raises(ValueError, match="not convex"):
        loss.with_parameters(c=-1.0)


def test_formulas_and_data_that_do_not_fit() -> None:
    indexed = Estimator(Loss.from_expression(LABELS), 0.1)
    with pytest.raises(ParameterError, match=r"loss .* of teacher is for the classes of a ClassMixture"):
        solve(GaussianMixture(1.0), indexed)
    fifth = Loss.from_expression("logsumexp(h) - Sum(y[k]*h[k], k) + softplus(h[5] - h[1])")
    with pytest.raises(ParameterError, match=r"h\[5\] in the loss .* is none of the classes 1\.\.3"):
        solve(UNEQUAL, Estimator(fifth, 0.1))
    unseen = ClassMixture(2.0, further=[ClassSet("transfer", 1.0, weights=(0, 0.5, 0.5))])
    with pytest.raises(ParameterError, match="sees none of class 0"):
        solve(unseen, [TEACHER, Estimator(Loss.from_expression(LABELS), 0.1, sets="transfer")])
    soft = Loss.from_expression("logsumexp(h) - Sum((y[k]*0.7 + 0.1)*h[k], k)")
    assert solve(unseen, [TEACHER, Estimator(soft, 0.1, sets="transfer")]).converged


def test_interfaces() -> None:
    """Problem files, sweeps over a parameter, two classes."""
    loss = Loss.from_expression(DISTILLATION, {"c": 0.7, "T": 2.0})
    chain = Chain.of([TEACHER, Estimator(loss, 0.1)])
    assert read_problem(write_problem(PAIRS, chain)) == (PAIRS, chain)
    curve = sweep(UNEQUAL, chain, {"student.T": [1.0, 2.0]}, ["test_error"]).test_error.sel(stage="student")
    for temperature, value in zip((1.0, 2.0), curve.to_numpy(), strict=True):
        expected = solve(UNEQUAL, [TEACHER, Estimator(loss.with_parameters(T=temperature), 0.1)])[1].test_error
        assert value == pytest.approx(expected, abs=1e-9)
    two = ClassMixture(2.0, [0.3, 0.7], orthogonal_means(2), 0.5)
    ours, theirs = (solve(two, Estimator(found, 0.1))[0].test_error for found in of_formula("cross-entropy"))
    assert ours == pytest.approx(theirs, abs=1e-7)
