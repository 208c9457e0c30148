"""Gradient weights: their law in closed form, beside draws of it, sum rules of the saddle point, and what the papers claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from numerics import DataSet, Estimator, Frozen, GaussianMixture, ParameterError, solve
from numerics.anatomy.bounds import oracle
from numerics.anatomy.levels import Question
from numerics.anatomy.weights import GradientWeights, gradient_weight, start_weight
from numerics.settings import Settings
from numerics.solution.samples import unit
from theory.losses import CrossEntropy, Distillation, SquareLoss

FINE = Settings(rtol=1e-11, newton_tolerance=1e-12)

R2, R5, R6 = (
    (3, 0.2, 1, 0, 0.1, 0.02, 0.5, 1, 1),
    (2, 0.5, 1, 0, 1, 0.1, 1, 0.5, 1),
    (2, 0.5, 1, 0, 0.1, 0.1, 1, 0.5, 1),
)
R8, R12 = (4, 0.3, 1, 0.1, 0.3, 0.1, 1, 1, 1), (3, 0.5, 1, 0, 0.1, 0.1, 1, 1, 0.5)
TAILS = (1, 0.4, 1, 0.05, 1, 0.01, 1, 0.5, 4)
"""alpha, rho, Delta, label noise, ridges of teacher and student, eta, mixing, temperature."""


def problem(point: tuple) -> tuple[GaussianMixture, list[Estimator]]:
    alpha, rho, delta, noise, first, second, eta, mixing, temperature = point
    student = Estimator(Distillation(mixing, temperature), second, eta)
    return GaussianMixture(alpha, rho, delta, noise), [Estimator(CrossEntropy(), first), student]


def of(data: GaussianMixture, chain: list, settings: Settings = FINE) -> GradientWeights:
    question = Question.of(data, chain)
    return GradientWeights(solve(question.data, question.chain, settings=settings), question)


def weights(point: tuple) -> GradientWeights:
    return of(*problem(point))


def transfer() -> GradientWeights:
    """A student that also sees samples its teacher did not, of a teacher with another loss."""
    data = GaussianMixture(2.0, 0.3, 0.7, 0.1, (DataSet("fresh", 1.0, 0.2),))
    student = Estimator(Distillation(0.8, 2.0), 0.1, 0.7, sets=("training", "fresh"))
    return of(data, [Estimator(SquareLoss(), 0.5), student])


def three() -> GradientWeights:
    """A student whose teacher is one itself."""
    data = GaussianMixture(3.0, 0.3, 1.0, 0.1)
    middle = Estimator(Distillation(0.7, 2.0), 0.1, 0.8)
    return of(data, [Estimator(CrossEntropy(), 0.3), middle, Estimator(Distillation(0.8), 0.2)], Settings())


CASES = {"R2": R2, "R5": R5, "R8": R8, "R12": R12, "tails": TAILS}


def case(name: str) -> GradientWeights:
    return {"transfer": transfer, "three": three}.get(name, lambda: weights(CASES[name]))()


LARGE = pytest.param("three", marks=pytest.mark.large)


@pytest.mark.parametrize("name", [*CASES, "transfer", LARGE])
def test_sum_rules(name: str) -> None:
    """What is stationary in the bias and along the weights, as averages of the rescaled label gradient."""
    found = case(name)
    push, pull = found.sum_rules()
    assert abs(push) < 1e-10
    assert pull == pytest.approx(1.0, abs=max(1e-9, found.solution.settings.rtol))


@pytest.mark.parametrize("name", ["R2", "R12", "tails", "transfer", LARGE])
def test_law_beside_draws(name: str) -> None:
    """A million draws of the fields, each with its proximal points: distribution, conditional means and mean, |z| < 4."""
    found, count = case(name), 1_000_000
    generator = np.random.default_rng(1)
    samples = found.samples
    nodes = samples.follow(
        generator.choice(samples.weight.size, count, p=samples.weight),
        generator.standard_normal((count, len(found.question.chain))),
    )
    order = 2.0 * nodes.labels - 1.0
    b, a = order * nodes.logits[:, -2], order * nodes.logits[:, -1]
    w, off = found.weight_of(a, b), 1.0 / (1.0 + np.exp(a))
    x = np.quantile(w, [0.01, 0.1, 0.3, 0.5, 0.8, 0.97])
    fixed = np.round(x, 2)
    expected = found.cdf(fixed)
    shares = np.array([np.mean(w <= value) for value in fixed])
    assert np.all(np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1e-12)
    at_quantiles = found.cdf(found.quantile(np.array([0.1, 0.5, 0.9])))
    np.testing.assert_allclose(at_quantiles, [0.1, 0.5, 0.9], atol=10 * found.accuracy)
    edges = np.array([-1.0, 0.0, 1.0, 2.0])
    bins = found.in_bins(edges)
    for k in range(3 if found.margins_are_known else 0):
        some = (b > edges[k]) & (b <= edges[k + 1])
        assert abs(some.mean() - bins.density[k]) < 4 * np.sqrt(some.mean() / count)
        assert abs(w[some].mean() - bins.mean[k]) < 4 * w[some].std() / np.sqrt(some.sum())
        change = w[some] * off[some] - bins.ratio[k] * off[some]
        assert abs(change.mean()) < 4 * change.std() / np.sqrt(some.sum())
    change = w * off - found.gradient_mean * off
    assert abs(change.mean()) < 4 * change.std() / np.sqrt(count)
    start = start_weight(b, found.mixing, found.soft, found.temperature)
    assert abs(start.mean() - found.start_mean) < 4 * start.std() / np.sqrt(count)


@pytest.mark.parametrize("name", [*CASES, "transfer"])
def test_density_is_the_slope_of_the_distribution(name: str) -> None:
    found = case(name)
    low, high = found.quantile(np.array([0.2, 0.8]))
    x = np.linspace(low, high, 5)
    step = 1e-3 * (high - low)
    edges = (x[:, None] + step * np.array([-2, -1, 1, 2])).ravel()
    values = found.cdf(edges).reshape(5, 4)
    slope = values @ np.array([1, -8, 8, -1]) / (12 * step)
    np.testing.assert_allclose(found.pdf(x), slope, rtol=2e-6)


@pytest.mark.parametrize("name", [*CASES, "transfer"])
def test_given_the_margin_adds_up(name: str) -> None:
    """The integral over the margin is the average; two rules of different kind."""
    found = case(name)
    edges = np.linspace(*found.margin_quantile(np.array([1e-14, 1 - 1e-14])), 41)
    bins = found.in_bins(edges)
    assert bins.density.sum() == pytest.approx(1.0, abs=1e-12)
    assert bins.density @ bins.mean == pytest.approx(found.mean, rel=1e-7)
    b = np.array([0.5, 1.5])
    both = found.given_confidence(b)
    one, other = found.given_margin(b), found.given_margin(-b)
    np.testing.assert_allclose(both.density, one.density + other.density, rtol=1e-13)
    np.testing.assert_allclose(both.mean * both.density, one.mean * one.density + other.mean * other.density, rtol=1e-7)


def test_refining_changes_nothing(monkeypatch) -> None:
    """Half the first steps: densities and conditional means agree to 1e-8."""
    from numerics.anatomy import weights as module

    b, x = np.linspace(-1.0, 3.0, 9), np.array([-0.5, 0.2, 0.6])
    coarse = weights(TAILS)
    before = (*coarse.given_margin(b), coarse.pdf(x), coarse.cdf(x))
    monkeypatch.setattr(module, "_STEP", 0.17)
    monkeypatch.setattr(module, "_PANELS", 37)
    fine = weights(TAILS)
    for one, other in zip(before, (*fine.given_margin(b), fine.pdf(x), fine.cdf(x)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


def test_what_is_not_known_in_chains_of_three() -> None:
    """Given its teacher, the teacher's margin is narrower than nodes are apart."""
    found = three()
    assert found.reason == ""
    assert np.isnan(
        [*found.given_margin(np.array([0.5])).ratio, found.pdf(0.3), *found.in_bins(np.array([0.0, 1.0])).mean]
    ).all()
    assert found.monotone == ""


@pytest.mark.parametrize("name", ["R2", "R8", "transfer"])
def test_difficulty_beside_a_chain_with_the_oracle(name: str) -> None:
    """The true log-odds as the first stage of a chain of three, whose nodes are another rule for the same averages."""
    found = case(name)
    question = found.question
    teacher, student = question.chain.stages
    shifted = replace(student, loss=student.loss.with_teacher(2))
    solution = solve(question.data, [oracle(question.data), teacher, shifted], rtol=1e-9)
    samples, rows = solution[2].samples, [unit(3, 3), unit(3, 2), unit(3, 1)]

    def mean(function) -> float:
        def of_logits(y, h, taught, odds):
            sign = 2.0 * y - 1.0
            w = found.weight_of(sign * h, sign * taught)
            return function(w, expit(-sign * h), expit(sign * odds))

        return samples.mean(of_logits, rows).value

    plain = mean(lambda w, off, u: off)
    w, u, w2, u2, both = (mean(lambda w, off, u, f=f: off * f(w, u)) / plain for f in (
        lambda w, u: w, lambda w, u: u, lambda w, u: w * w, lambda w, u: u * u, lambda w, u: w * u,
    ))  # fmt: skip
    expected = (both - w * u) / np.sqrt((w2 - w * w) * (u2 - u * u))
    assert found.gradient_difficulty == pytest.approx(expected, abs=1e-6)
    if name == "R8":  # light tails
        w, u, w2, u2, both = (mean(f) for f in (
            lambda w, off, u: w, lambda w, off, u: u, lambda w, off, u: w * w, lambda w, off, u: u * u, lambda w, off, u: w * u,
        ))  # fmt: skip
        assert found.difficulty == pytest.approx((both - w * u) / np.sqrt((w2 - w * w) * (u2 - u * u)), abs=1e-4)


def test_easy_samples_weigh_more_above_the_line() -> None:
    """Where weights grow with the teacher's margin, they do with the true probability of the label; where they fall, they fall."""
    assert weights(R5).gradient_difficulty < 0 < weights(R6).gradient_difficulty


# What the model says of the claims.


def test_weights_fall_with_confidence_below_the_line() -> None:
    assert [round(value, 2) for value in weights(R5).given_margin(np.array([0.0, 1.0, 2.0])).mean] == [
        0.45,
        0.24,
        -0.43,
    ]
    assert [round(value, 2) for value in weights(R6).given_margin(np.array([0.0, 1.0, 2.0])).mean] == [0.53, 0.56, 0.61]
    assert (weights(R5).monotone, weights(R6).monotone, weights(R12).monotone) == ("falls", "grows", "neither")


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_exact_line_in_the_plane_of_ridges(temperature: float) -> None:
    """Dense: ridge_S above, at and below (1 - chi) ridge_T."""
    for factor, expected in ((1.1, "grows"), (1.0, "constant"), (0.9, "falls")):
        found = weights((2, 0.5, 1, 0.2, 0.4, factor * 0.7 * 0.4, 1, 0.3, temperature))
        assert found.monotone == expected
        if factor == 1.0:
            assert found.constant == pytest.approx(0.7, abs=1e-10)
            assert found.mean == found.quantile(0.3) == found.constant
            assert (found.cdf(0.6), found.cdf(0.8), found.variance) == (0.0, 1.0, 0.0)


def test_tails_alone_can_break_the_claim() -> None:
    """E[w given b] falls somewhere, the ratio of mean gradients grows everywhere."""
    found = weights(R2)
    b = np.linspace(*found.margin_quantile(np.array([0.05, 0.95])), 41)
    given = found.given_margin(b)
    assert np.any(np.diff(given.mean) < 0)
    assert np.all(np.diff(given.ratio) > 0)


def test_start_weights_always_grow() -> None:
    b = np.linspace(-8, 8, 101)
    for mixing, temperature in ((0.3, 0.5), (1.0, 1.0), (0.5, 5.0)):
        assert np.all(np.diff(start_weight(b, mixing, mixing / temperature, temperature)) > 0)


def test_criterion_at_temperature_one() -> None:
    """r grows at b iff -d/db log E[1-q given b] < sigma(b)."""
    for point in (R5, R6, R2):
        found, b, step = weights(point), np.linspace(-0.5, 2.5, 7), 1e-4
        _, rescaled, plain = found._sums(b[:, None] + step * np.array([-1.0, 0.0, 1.0]))
        density = found.given_margin_density(b[:, None] + step * np.array([-1.0, 0.0, 1.0]))
        falls = -np.diff(np.log((plain / density)[:, [0, 2]]), axis=1)[:, 0] / (2 * step)
        slope = np.diff((rescaled / plain)[:, [0, 2]], axis=1)[:, 0]
        np.testing.assert_array_equal(slope > 0, falls < 1 / (1 + np.exp(-b)))


def test_regularisation_samples() -> None:
    """At T = 1 those on which the student is surer of the label than its teacher."""
    found = weights(R8)
    generator, count = np.random.default_rng(2), 400_000
    samples = found.samples
    nodes = samples.follow(
        generator.choice(samples.weight.size, count, p=samples.weight), generator.standard_normal((count, 2))
    )
    sign = 2.0 * nodes.labels - 1.0
    share = np.mean(sign * nodes.logits[:, 1] > sign * nodes.logits[:, 0])
    expected = found.regularisation_fraction
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_tails_of_the_variance() -> None:
    assert weights(TAILS).variance == pytest.approx(71.4, abs=0.05)


# Ends.


def test_without_a_soft_term_all_weights_are_one() -> None:
    found = weights((2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 0.0, 2))
    assert found.mean == found.gradient_mean == found.start_mean == found.quantile(0.5) == 1.0
    assert (found.cdf(0.999), found.cdf(1.0), found.variance, found.monotone) == (0.0, 1.0, 0.0, "constant")


def test_no_weight_is_above_one_at_temperature_one() -> None:
    assert weights(R8).cdf(1.0) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("data", "chain", "word"),
    [
        (GaussianMixture(0.4, 0.3), [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(), 0.0, 0.5)], "ridge of student"),
        (GaussianMixture(0.4, 0.3), [Estimator(SquareLoss(), 0.0), Estimator(Distillation(0.5), 0.1)], "ridge of teacher"),
        (GaussianMixture(2.0, 0.3), [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(0.5, smoothing=0.1), 0.1)],
         "smoothing"),
        (GaussianMixture(2.0, 0.3), [Estimator(CrossEntropy(), 0.3), Estimator(CrossEntropy(), 0.2, 0.5, "other"),
         Estimator(Distillation(teacher=1), 0.1, 0.5, mask_overlap=0.5)], "another one is its teacher"),
    ],
)  # fmt: skip
def test_reasons(data, chain, word: str) -> None:
    found = of(data, chain, Settings())
    assert word in found.reason
    assert np.isnan(
        [
            found.difficulty,
            found.gradient_difficulty,
            found.mean,
            found.variance,
            found.cdf(0.5),
            found.pdf(0.5),
            found.quantile(0.5),
            found.start_mean,
        ]
    ).all()
    assert np.isnan(found.given_margin(np.array([0.0, 1.0])).ratio).all()
    assert found.monotone == ""


def test_given_teachers() -> None:
    """A frozen teacher has no forces: the law of its margin is that of a fresh sample."""
    data = GaussianMixture(2.0, 0.2, 1.0)
    found = of(data, [Frozen(1.0, 1.5, -1.0), Estimator(Distillation(0.7, 2.0), 0.1)])
    assert max(np.abs(found.sum_rules()[0]), abs(found.sum_rules()[1] - 1.0)) < 1e-9
    from scipy.stats import norm

    expected = 0.2 * norm.cdf((0.3 - (1.0 - 1.0)) / np.sqrt(1.5)) + 0.8 * norm.cdf((0.3 - (1.0 + 1.0)) / np.sqrt(1.5))
    assert float(found.margin_cdf(np.array(0.3))) == pytest.approx(expected, abs=1e-12)


def test_bad_probability() -> None:
    with pytest.raises(ParameterError, match=r"^p must be in"):
        weights(R8).quantile(1.0)


def test_formula() -> None:
    a, b = np.array([0.3, 25.0]), np.array([1.2, 24.0])
    p, q, pt, qt = (1 / (1 + np.exp(-x)) for x in (b, a, b / 2, a / 2))
    expected = 0.4 + 0.3 * (pt - qt) / (1 - q)
    np.testing.assert_allclose(gradient_weight(a, b, 0.6, 0.3, 2.0), expected, rtol=1e-5)
    assert gradient_weight(a, b, 0.6, 0.6, 1.0)[0] == pytest.approx(1 - 0.6 * (1 - p[0]) / (1 - q[0]), rel=1e-12)
