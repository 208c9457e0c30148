"""Losses whose bends nobody has listed: powers, functions of functions, weights of the teacher's logit."""

from __future__ import annotations

import numpy as np
import pytest
from random_formulas import Case, check, random_case

from numerics import Estimator, GaussianMixture, solve
from theory.losses import CrossEntropy, Loss

HALF = GaussianMixture(alpha=2.0, rho=0.3, delta=1.0)


@pytest.mark.parametrize(
    ("formula", "ridge", "magnetization", "norm_squared", "test_error"),
    [
        ("(h-s)**4/4", 1.0, 0.243099, 0.117766, 0.204302),
        ("h**4/100+h**2/2-s*h", 0.1, 0.416035, 0.479483, 0.242377),
        ("h**4/4-s*h", 3.0, 0.240889, 0.103665, 0.231133),
        ("h**4/4-s*h", 2.0, 0.289153, 0.157398, 0.207489),
    ],
)
def test_polynomials(formula: str, ridge: float, magnetization: float, norm_squared: float, test_error: float) -> None:
    """Against an independent iteration in the field with proximal points by bisection."""
    stage = solve(HALF, Estimator(Loss.from_expression(formula), ridge))[0]
    found = stage.magnetization, stage.norm_squared, stage.test_error
    np.testing.assert_allclose(found, (magnetization, norm_squared, test_error), atol=6e-7)


@pytest.mark.parametrize(
    ("formula", "test_error"),
    [("h**4/4-s*h", 0.253231), ("(1-s*h)**8/8", 0.234492), ("(h-s)**4/4+(h-s)**2/2", 0.248307)],
)
def test_polynomials_at_small_ridge(formula: str, test_error: float) -> None:
    assert solve(HALF, Estimator(Loss.from_expression(formula), 0.1))[0].test_error == pytest.approx(
        test_error, abs=6e-7
    )


CASES = [
    Case("(h-s)**2/2 + softplus(400*(softplus(h)-1.5))/400", HALF, 0.01, 1.0),
    Case("sqrt(1+(h-s)**4)", HALF, 1e-3, 0.7),
    Case("exp((h-s)**2/4)+softplus(-s*h)", GaussianMixture(0.6, 0.2, 2.0), 0.05, 0.5),
    Case("(h-s)**8/8+(2*h-s)**2/50", GaussianMixture(4.0, 0.4, 0.5), 1e-4, 1.0),
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (
            Case("(h-s)**4/4+(h-h_teacher**3)**2/2", HALF, 0.1, 1.0, CrossEntropy(), 1.0),
            Case("softplus(-s*h)*exp(-8*(h_teacher**2-1)**2)+h**2/50", HALF, 0.1, 0.6, CrossEntropy(), 0.5),
            Case("1.15*((h-h_teacher**3/10)*erf(h-h_teacher**3/10)+exp(-(h-h_teacher**3/10)**2)/sqrt(pi))",
                 GaussianMixture(3.06, 0.23, 2.52), 0.0108, 0.36, CrossEntropy(), 0.355),
            Case("softplus(h)-sigmoid(h_teacher)*h", HALF, 0.05, 0.6, Loss.from_expression("(h-s)**4/4"), 0.3),
            Case("(h-h_teacher)**4/4", HALF, 0.05, 0.6, Loss.from_expression("softplus(softplus(-4*s*h))"), 0.02),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_formulas_against_brute_force(case: Case) -> None:
    outcome = check(case)
    assert outcome["converged"], outcome["message"]
    assert outcome["reference"] < 1e-8
    assert outcome["error"] < 1e-8 + 2 * outcome["reference"]


@pytest.mark.slow
def test_random_formulas_against_brute_force() -> None:
    """None is wrong beyond what it states; ``python -m tests.random_formulas`` tries more."""
    generator = np.random.default_rng(7)
    outcomes = [(case, check(case)) for case in (random_case(generator) for _ in range(20))]
    judged = [(case, found) for case, found in outcomes if found["converged"] and found["reference"] < 1e-8]
    assert len(judged) >= 16
    wrong = [
        (case, found) for case, found in judged if found["error"] > max(1e-8, found["stated"]) + 2 * found["reference"]
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("exact", "moved"),
    [
        ("softplus(-s*h)*exp(-h_teacher**2/2)", "softplus(-s*h)*exp(-(h_teacher**2+1e-9)/2)"),
        ("softplus(-s*h)/(1+h_teacher**2)+h**2/20", "softplus(-s*h)/(1+h_teacher**2+1e-9)+h**2/20"),
        ("softplus(-s*h)*(1+step(h_teacher))", "softplus(-s*h)*(1+sigmoid(1e7*h_teacher))"),
    ],
)
def test_scale_of_zero_is_no_error(exact: str, moved: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A bend without width, or a perfect square: nothing is raised or printed by compiled code, and the answer is the limit."""
    data = GaussianMixture(1.0, 0.2, 1.0)
    found = [
        solve(data, [Estimator(CrossEntropy(), 0.1), Estimator(Loss.from_expression(text), 0.01, eta=0.5)])[1]
        for text in (exact, moved)
    ]
    assert found[0].test_error == pytest.approx(found[1].test_error, abs=1e-6)
    assert capfd.readouterr().err == ""
