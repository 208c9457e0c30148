"""Property tests over the documented parameter space: bounds that hold whatever the parameters, monotonicity, symmetry, starts.

Problems are drawn by hypothesis from the box of :mod:`numerics.random_box`, widened by classes of any weight, label noise, more
data sets, masks, given and Hebbian weights, and chains of up to three stages.  Seeds are fixed.  ``pytest -m slow`` draws more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from numerics import (
    BayesOptimal,
    Chain,
    ConvergenceError,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    Solution,
    bayes_error,
    solve,
)
from numerics.models import Stage, total_alpha
from numerics.random_box import BOX, ETA_RANGE
from numerics.solution.observables.registry import compares, observables_of
from numerics.solution.solution import StageSolution
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation, SquareLoss

Problem = tuple[GaussianMixture, Chain]

ACCURATE = 1e-8
"""Relative accuracy that ``solve`` promises of order parameters."""

AVERAGE = 1e-7
"""Allowed to averages over samples, which are integrated on their own."""

SLOW_CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large)

SMOOTHED_HINGE = Loss.from_expression("a*log(1 + exp((1 - s*h)/a))", {"a": 0.4})


# What is drawn.


def logarithmic(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers from ``low`` to ``high``, uniform in their logarithm but for the ends and other special values."""
    ends = math.log(low), math.log(high)
    return st.floats(*ends).map(lambda value: min(max(math.exp(value), low), high))


def between(name: str) -> st.SearchStrategy[float]:
    """A parameter of the random box."""
    return logarithmic(*BOX[name])


RIDGES = between("teacher.ridge")
ETAS = st.just(1.0) | st.floats(*ETA_RANGE)
FRACTIONS = st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0)
SMOOTHINGS = st.just(0.0) | st.floats(0.0, 0.45)
NOISES = st.just(0.0) | st.floats(0.0, 0.45)
GAINS = logarithmic(0.05, 4.0) | logarithmic(0.05, 2.0).map(lambda gain: -gain)
FACTORS = logarithmic(1.01, 1e4)
BIASES = st.none() | st.floats(-3.0, 3.0)


@st.composite
def mixtures(draw: st.DrawFn, *, noisy: bool = True) -> GaussianMixture:
    rho = draw(between("rho"))
    if draw(st.booleans()):
        rho = 1.0 - rho
    noise = draw(NOISES) if noisy else 0.0
    return GaussianMixture(draw(between("alpha")), rho, draw(between("delta")), noise)


def label_losses() -> st.SearchStrategy[Loss]:
    """Losses that look at the label alone."""
    hinge = st.floats(0.2, 2.0).map(lambda width: SMOOTHED_HINGE.with_parameters(a=width))
    return st.builds(CrossEntropy, SMOOTHINGS) | st.just(SquareLoss()) | hinge


def teacher_losses(number: int) -> st.SearchStrategy[Loss]:
    """Losses for stage ``number`` that look at earlier ones."""
    teachers = st.none() if number == 2 else st.sampled_from([None, 1, (1, 2)])
    temperatures = between("student.temperature")
    distillation = st.builds(Distillation, FRACTIONS, temperatures, SMOOTHINGS, st.booleans(), teachers)
    square = st.builds(SquareDistillation, FRACTIONS, GAINS, SMOOTHINGS)
    hard = st.builds(PseudoLabels, FRACTIONS, SMOOTHINGS, st.none(), st.booleans())
    return distillation | square | hard


def estimators(number: int) -> st.SearchStrategy[Estimator]:
    """A trained stage at place ``number`` of a chain."""
    losses = label_losses() if number == 1 else teacher_losses(number) | label_losses()
    return st.builds(Estimator, losses, RIDGES, ETAS, bias=BIASES)


@st.composite
def special_stages(draw: st.DrawFn, *, clean: bool) -> Stage:
    """Frozen, Hebbian, and where labels are clean Bayes-optimal stages."""
    kind = draw(st.sampled_from(["frozen", "hebbian", *(["optimal"] if clean else [])]))
    if kind == "optimal":
        return BayesOptimal()
    bias = draw(st.floats(-3.0, 3.0))
    if kind == "hebbian":
        return Hebbian(draw(st.none() | RIDGES), bias, eta=draw(ETAS))
    m = draw(st.floats(-5.0, 5.0))
    return Frozen(m, m**2 + draw(logarithmic(1e-6, 1e2)), bias)


@st.composite
def problems(
    draw: st.DrawFn, stages: tuple[int, int] = (1, 3), *, special: bool = True, further: bool = True
) -> Problem:
    """Data and a chain of ``stages[0]`` to ``stages[1]`` stages."""
    data = draw(mixtures())
    size = draw(st.integers(*stages))
    chain = []
    for number in range(1, size + 1):
        if special and draw(st.integers(0, 4)) == 0:
            chain.append(draw(special_stages(clean=data.label_noise == 0)))
        else:
            chain.append(draw(estimators(number)))
    for number in range(2, size + 1):
        if draw(st.integers(0, 5)) == 0:
            chain[number - 1] = draw(randomly_masked(chain[number - 1], chain[number - 2].eta))
    if further and draw(st.integers(0, 4)) == 0:
        places = [k for k, stage in enumerate(chain) if stage.sets and not isinstance(stage, BayesOptimal)]
        if places:
            more = DataSet("more", draw(between("alpha")), draw(NOISES))
            last = places[-1]
            own = (("training", "more"), "more") if len(places) > 1 and places[0] < last else (("training", "more"),)
            chain[last] = replace(chain[last], sets=draw(st.sampled_from(own)))
            data = replace(data, further=(more,))
    assume(apart(chain))
    return data, Chain.of(chain)


def randomly_masked(stage: Stage, before: float) -> st.SearchStrategy[Stage]:
    """A trained stage with a random mask, any possible part of it inside the mask, of size ``before``, of the stage before."""
    least, most = max(0.0, 1 - (1 - before) / stage.eta), min(1.0, before / stage.eta)
    if not isinstance(stage, Estimator) or least > most:
        return st.just(stage)
    return st.floats(least, most).map(lambda share: replace(stage, mask_overlap=share))


def apart(chain: list[Stage]) -> bool:
    """No two stages learn the same, or parallel, weights."""
    linear = [stage for stage in chain if isinstance(stage, Hebbian | BayesOptimal)]
    if len(linear) > 1:
        return False
    on_labels = [stage for stage in chain if isinstance(stage, Estimator) and not stage.loss.logits]
    return len({(stage.loss, stage.ridge, stage.eta) for stage in on_labels}) == len(on_labels)


def box_pairs() -> st.SearchStrategy[Problem]:
    """Teachers and students of the random box, with classes of any weight."""
    students = st.builds(Distillation, FRACTIONS, between("student.temperature"))
    chains = st.builds(
        lambda teacher, student: Chain((teacher, student)),
        st.builds(Estimator, st.just(CrossEntropy()), RIDGES),
        st.builds(Estimator, students, RIDGES, st.floats(*ETA_RANGE)),
    )
    return st.tuples(mixtures(noisy=False), chains)


def first_stages() -> st.SearchStrategy[Problem]:
    """One trained stage on labels without noise."""
    return st.tuples(mixtures(noisy=False), estimators(1).map(Chain.of))


# Bounds.


def assert_bounds(solution: Solution, *, averages: bool = True) -> None:
    """Everything that is known of a solution before solving; without ``averages`` what order parameters and errors obey."""
    assert solution.converged, solution.message
    assert solution.quadrature_error <= ACCURATE
    assert_overlaps(solution)
    assert_responses(solution)
    for stage in solution.stages:
        assert_errors(stage)
        if averages:
            assert_defined(stage)
            assert_losses(stage)
        if stage.number > 1:
            assert_pair(stage, averages)


def assert_overlaps(solution: Solution) -> None:
    """The Gram matrix of v and all weights is positive semidefinite, also with v on a stage's inputs only."""
    m, q = solution.magnetization, solution.overlap
    norms = np.sqrt(np.diag(q))
    assert np.all(np.isfinite(q))
    assert np.all(norms > 0)
    assert np.array_equal(q, q.T)
    size = len(solution)
    gram = np.eye(size + 1)
    gram[1:, 1:] = q / np.outer(norms, norms)
    gram[0, 1:] = gram[1:, 0] = m / norms
    assert np.linalg.eigvalsh(gram).min() > -10 * ACCURATE
    etas = np.array([stage.eta for stage in solution.resolved])
    assert np.all(np.abs(m) <= np.sqrt(etas) * norms * (1 + ACCURATE))


def assert_responses(solution: Solution) -> None:
    """V_tt = tr(inverse Hessian)/N: positive, and at most eta/ridge for a convex loss."""
    assert np.all(np.isfinite(solution.response))
    for stage in solution.stages:
        if isinstance(stage.estimator, Frozen):
            assert stage.response >= 0
        else:
            assert 0 < stage.response <= stage.estimator.eta / stage.estimator.ridge * (1 + ACCURATE)


def is_defined(stage: StageSolution, name: str) -> bool:
    """Whether an observable exists: the first stage has no teacher, given weights no loss."""
    if stage.number == 1 and compares(name):
        return False
    return not (isinstance(stage.estimator, Frozen) and name in ("test_loss", "train_loss", "loss_gap", "free_energy"))


def assert_defined(stage: StageSolution) -> None:
    """Observables are finite, but NaN where they are not defined."""
    for name in observables_of(stage.data):
        value = getattr(stage, name)
        assert math.isfinite(value) if is_defined(stage, name) else math.isnan(value), name


def known_samples(solution: Solution, number: int) -> float:
    """Samples per input that tell as much of v as all that stages up to ``number`` were made from, with labels cleaned.

    A sample tells each coordinate of v with variance Delta, given weights with variance (Q - m^2)/m^2.
    """
    stages = solution.resolved[:number]
    alpha = total_alpha(solution.data, sorted({name for stage in stages for name in stage.sets}))
    for stage in stages:
        if isinstance(stage, Frozen):
            alpha += solution.data.delta * stage.magnetization**2 / (stage.norm_squared - stage.magnetization**2)
    return alpha


def assert_errors(stage: StageSolution) -> None:
    """No classifier beats Bayes, nor does its opposite.

    Given labels, coordinates of v are independent, so that inputs outside the mask tell nothing of those inside: the bound is that
    of the stage's own inputs, whoever taught it.  Knowing the clean labels only helps.
    """
    data = stage.solution.data
    alpha = known_samples(stage.solution, stage.number)
    least = bayes_error(alpha, data.rho, data.delta, stage.estimator.eta) if alpha > 0 else min(data.rho, 1 - data.rho)
    assert least - ACCURATE <= stage.test_error <= 1 - least + ACCURATE
    for error in (stage.train_error, stage.clean_train_error):
        assert -1e-12 <= error <= 1 + 1e-12
    assert stage.generalization_gap == stage.test_error - stage.train_error
    sets = [data.data_set(name) for name in stage.estimator.sets or ("training",)]
    flipped = sum(found.alpha * found.label_noise for found in sets) / sum(found.alpha for found in sets)
    assert abs(stage.clean_train_error - stage.train_error) <= flipped + AVERAGE
    assert 0 <= stage.calibration_error <= 1


def least_loss(loss: Loss) -> float:
    """A lower bound of a loss whatever logits and labels are: the entropy of smoothed labels where they count."""
    values = loss.parameters
    if isinstance(loss, CrossEntropy | Distillation):
        eps = values["smoothing"]
        entropy = -eps * math.log(eps) - (1 - eps) * math.log(1 - eps) if eps > 0 else 0.0
        return (1 - values.get("mixing", 0.0)) * entropy
    return 0.0


def assert_losses(stage: StageSolution) -> None:
    """Losses are above their infimum, and the potential is the minimised objective."""
    # Where the sign is wrong, cross-entropy is at least log 2.
    assert stage.test_cross_entropy >= math.log(2) * stage.test_error * (1 - AVERAGE)
    assert stage.train_cross_entropy >= math.log(2) * stage.train_error * (1 - AVERAGE) - 1e-12
    estimator = stage.estimator
    if isinstance(estimator, Frozen):
        return
    objective = total_alpha(stage.solution.data, estimator.sets) * stage.train_loss
    penalty = estimator.ridge / 2 * stage.norm_squared
    assert stage.free_energy == pytest.approx(objective + penalty, rel=AVERAGE, abs=AVERAGE * penalty)
    assert stage.loss_gap == stage.test_loss - stage.train_loss
    if estimator.loss.name != "LinearLoss":
        least = least_loss(estimator.loss)
        assert min(stage.test_loss, stage.train_loss) >= least * (1 - AVERAGE)


def assert_pair(stage: StageSolution, averages: bool) -> None:
    """A stage and its teacher."""
    assert -1 - ACCURATE <= stage.teacher_cosine <= 1 + ACCURATE
    disagreement = 1 - stage.teacher_agreement
    assert -ACCURATE <= disagreement <= 1 + ACCURATE
    teachers = stage.solution.chain.teachers(stage.number)
    if len(teachers) == 1:  # of several, the error of the mean logit is not at hand
        own, other = stage.test_error, stage.solution[teachers[0] - 1].test_error
        assert abs(own - other) - ACCURATE <= disagreement <= min(1, own + other, 2 - own - other) + ACCURATE
    assert stage.test_logit_distance >= 0
    if not averages:
        return
    assert stage.train_logit_distance >= 0
    # The sigmoid moves at most a quarter as far as its argument.
    for samples in ("test", "train"):
        outputs, logits = (getattr(stage, f"{samples}_{what}_distance") for what in ("output", "logit"))
        assert 0 <= outputs <= min(1.0, logits / 16) * (1 + AVERAGE) + 1e-12


class OneSidedError(Exception):
    """A stage is taught the decisions of a teacher that makes one only: its learned bias is infinite."""


def solved(problem: Problem, start: Solution | None = None) -> Solution:
    try:
        return solve(*problem, start=start, throw=True)
    except ConvergenceError:
        if is_one_sided(problem):
            raise OneSidedError from None
        raise


def is_one_sided(problem: Problem) -> bool:
    """Whether all labels of some stage are, up to 1e-9 of the samples, the same."""
    data, chain = problem
    for number, stage in enumerate(chain.stages, start=1):
        loss = getattr(stage, "loss", None)
        if isinstance(loss, PseudoLabels) and loss.parameters["mixing"] > 1 - 1e-9 and stage.fixed_bias is None:
            seen = {name for earlier in chain.stages[: number - 1] for name in earlier.sets}
            known = replace(data, further=tuple(found for found in data.further if found.name in seen))
            teacher = solve(known, Chain(chain.stages[: number - 1]), throw=True)[loss.stages(number)[0] - 1]
            above = ndtr(
                (np.array([1.0, -1.0]) * teacher.magnetization + teacher.bias) / (math.sqrt(data.delta) * teacher.norm)
            )
            positive = data.rho * above[0] + (1 - data.rho) * above[1]
            if min(positive, 1 - positive) < 1e-9:
                return True
    return False


def check_bounds(problem: Problem, averages: bool = True) -> None:
    assert_bounds(solved(problem), averages=averages)


# One stage on clean labels.


def check_first_stage(problem: Problem) -> None:
    """A training sample's logit is the proximal point of what it would be on a fresh one: its loss is less."""
    stage = solved(problem)[0]
    assert stage.train_loss <= stage.test_loss * (1 + AVERAGE)
    if problem[1][0].loss == CrossEntropy():
        assert stage.train_error <= stage.test_error * (1 + AVERAGE)


# Ridge.


def check_ridge(problem: Problem, factor: float) -> None:
    """With the last stage's ridge grow its training loss and, between two slopes, its objective; the norm shrinks."""
    data, chain = problem
    last = chain[-1]
    high = replace(last, ridge=last.ridge * factor)
    low_stage = solved(problem)[-1]
    high_stage = solved((data, Chain.of([*chain.stages[:-1], high])))[-1]
    q_low, q_high = low_stage.norm_squared, high_stage.norm_squared
    # Each of the two may be off by that.
    assert q_high <= q_low * (1 + 2 * ACCURATE)
    assert high_stage.response <= low_stage.response * (1 + 2 * ACCURATE)
    size = abs(low_stage.free_energy) + last.ridge * q_low
    step = (high.ridge - last.ridge) / 2
    rise = high_stage.free_energy - low_stage.free_energy
    assert step * q_high - AVERAGE * size <= rise <= step * q_low + AVERAGE * size
    alpha = total_alpha(data, last.sets)
    assert alpha * (high_stage.train_loss - low_stage.train_loss) >= -AVERAGE * size


def ends_trained(problem: Problem) -> bool:
    """Whether the last stage is trained."""
    return isinstance(problem[1][-1], Estimator)


# Starts and symmetry.


def assert_same(one: Solution, other: Solution, flip: float = 1.0, tolerance: float = 1e-7) -> None:
    """Two solutions agree, relative to the natural size of every order parameter; with ``flip=-1`` biases are opposite."""
    norms = np.sqrt(np.diag(one.overlap))
    responses = np.sqrt(np.diag(one.response))
    gaps = {
        "magnetization": np.abs(one.magnetization - other.magnetization) / norms,
        "bias": np.abs(one.bias - flip * other.bias) / (1 + norms + np.abs(one.bias)),
        "overlap": np.abs(one.overlap - other.overlap) / np.outer(norms, norms),
        "response": np.abs(one.response - other.response)
        / (np.outer(responses, responses) + np.abs(one.response) + 1e-300),
        "error": np.abs([a.test_error - b.test_error for a, b in zip(one.stages, other.stages, strict=True)]),
    }
    for name, gap in gaps.items():
        assert np.max(gap) <= tolerance, (name, gap)


def check_start(problem: Problem, elsewhere: GaussianMixture, ridge: float, eta: float) -> None:
    """Started from the solution of other data, ridges and masks, the answer is the same."""
    data, chain = problem
    fresh = replace(elsewhere, further=data.further, label_noise=data.label_noise)
    stages = [
        replace(s, ridge=ridge, eta=eta, mask_overlap=None) if isinstance(s, Estimator) else s for s in chain.stages
    ]
    start = solved((fresh, Chain.of(stages)))
    assert_same(solved(problem), solved(problem, start))


def mirrored(problem: Problem) -> Problem:
    """Classes exchanged."""
    data, chain = problem
    stages = [
        stage if getattr(stage, "bias", None) is None else replace(stage, bias=-stage.bias) for stage in chain.stages
    ]
    return replace(data, rho=1.0 - data.rho), Chain.of(stages)


def check_mirror(problem: Problem, averages: bool = True) -> None:
    """Exchanging the classes changes the sign of biases only."""
    one, other = solved(problem), solved(mirrored(problem))
    assert_same(one, other, flip=-1.0)
    for a, b in zip(one.stages, other.stages, strict=True):
        if not averages or (a.number > 1 and not has_accurate_averages(a)):
            continue
        for name in observables_of(a.data):
            flip = -1.0 if name in ("bias", "calibration_offset") else 1.0
            if is_defined(a, name):
                left, right = getattr(a, name), flip * getattr(b, name)
                assert left == pytest.approx(right, rel=1e-6, abs=1e-7 * (1 + a.norm)), (a.name, name)


def has_accurate_averages(stage: StageSolution) -> bool:
    """Whether averages over samples are held to 1e-7: of trained stages whose weights are not parallel to those before."""
    trained = isinstance(stage.estimator, Estimator) and stage.estimator.loss.name != "LinearLoss"
    return trained and abs(stage.teacher_cosine) < 1 - 1e-7


# The searches.

SEARCHES: dict[str, tuple[st.SearchStrategy[tuple], Callable[..., None], int, float]] = {
    "bounds in the random box": (st.tuples(box_pairs()), check_bounds, 30, 0.0),
    "bounds, one stage": (st.tuples(problems((1, 1))), check_bounds, 40, 0.0),
    "bounds, two stages": (st.tuples(problems((2, 2))), check_bounds, 35, 0.05),
    "bounds, three stages": (st.tuples(problems((3, 3)), st.just(False)), check_bounds, 20, 0.1),
    "training and fresh samples, one stage": (st.tuples(first_stages()), check_first_stage, 50, 0.0),
    "ridge, one stage": (st.tuples(problems((1, 1)).filter(ends_trained), FACTORS), check_ridge, 50, 0.0),
    "ridge, two stages": (st.tuples(problems((2, 2)).filter(ends_trained), FACTORS), check_ridge, 40, 0.05),
    "starts, one stage": (st.tuples(problems((1, 1)), mixtures(), RIDGES, ETAS), check_start, 50, 0.0),
    "starts, two stages": (st.tuples(problems((2, 2)), mixtures(), RIDGES, ETAS), check_start, 40, 0.05),
    "starts, three stages": (st.tuples(problems((3, 3)), mixtures(), RIDGES, ETAS), check_start, 12, 0.17),
    "exchanged classes, one stage": (st.tuples(problems((1, 1))), check_mirror, 30, 0.0),
    "exchanged classes, two stages": (st.tuples(problems((2, 2))), check_mirror, 25, 0.05),
    "exchanged classes, three stages": (st.tuples(problems((3, 3)), st.just(False)), check_mirror, 12, 0.1),
}
"""What is drawn, what is checked, how often, and which share of problems may be refused as not converged to 1e-8.

In the random box, and for single stages, every problem has to be solved.  Elsewhere rounding may leave more than 1e-8, mostly after
stages at the edge of the box whose responses reach 1e8: that is then said, and counted here.
"""


def search(name: str, number: int, times: int = 1) -> None:
    """Draw problems from the seed ``number`` and check them all."""
    strategy, check, examples, allowed = SEARCHES[name]
    counts = {"all": 0, "refused": 0}

    @seed(number)
    @settings(max_examples=times * examples, database=None, deadline=None, suppress_health_check=SLOW_CHECKS)
    @given(strategy)
    def attempt(drawn: tuple) -> None:
        counts["all"] += 1
        try:
            check(*drawn)
        except OneSidedError:
            pass
        except ConvergenceError:
            if allowed == 0:
                raise
            counts["refused"] += 1

    attempt()
    assert counts["refused"] <= allowed * counts["all"], counts


@pytest.mark.parametrize("name", SEARCHES)
def test_properties(name: str) -> None:
    search(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_properties_of_many_more_problems(name: str) -> None:
    search(name, 2, times=4)
