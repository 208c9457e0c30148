"""Whom a stage is compared with: its loss's teacher, the mean logit of several, or the stage before; in theory and simulation."""

import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal

from numerics.models import Chain, DataSet, Estimator, Frozen, GaussianMixture, Hebbian
from numerics.simulation.run import simulate
from numerics.solution.observables import OBSERVABLES
from numerics.solution.observables.registry import compares
from numerics.solution.solution import StageSolution
from numerics.solver import solve
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation

DATA = GaussianMixture(alpha=2.0, rho=0.3, delta=0.8)
FIRST = Estimator(CrossEntropy(), 0.5, eta=0.6, name="first")
SECOND = Estimator(CrossEntropy(), 2.0, eta=0.6, mask_overlap=0.4, name="second")
COMPARED = [name for name in OBSERVABLES if compares(name)]


def pupil(loss: Loss | str, ridge: float = 0.1) -> Estimator:
    return Estimator(Loss.from_expression(loss) if isinstance(loss, str) else loss, ridge, name="pupil")


@pytest.mark.parametrize(
    ("last", "teachers"),
    [
        (pupil(CrossEntropy()), (2,)),
        (Hebbian(), (2,)),
        (Frozen(1.0, 2.0), (2,)),
        (pupil(Distillation()), (2,)),
        (pupil(Distillation(teacher=1)), (1,)),
        (pupil(Distillation(mixing=0.0, teacher=1)), (1,)),
        (pupil(Distillation(teacher=(1,))), (1,)),
        (pupil(PseudoLabels(teacher=(2, 1))), (1, 2)),
        (pupil(SquareDistillation(teacher=(1, 2))), (1, 2)),
        (pupil("(h - h_1)**2"), (1,)),
        (pupil("(h - h_teacher)**2 + (h - h_2)**2"), (2,)),
        (pupil("(h - h_1 - h_2)**2"), (2,)),
        (pupil("(h - h_1 - h_teacher)**2"), (2,)),
        (Estimator(Loss.from_expression("(h - h_teacher)**2", teacher=1), 0.1), (1,)),
    ],
    ids=lambda item: repr(item)[:60],
)
def test_teachers_of_a_stage(last: Estimator, teachers: tuple[int, ...]) -> None:
    chain = Chain.of([FIRST, SECOND, last])
    assert chain.teachers(3) == teachers
    assert chain.teachers(2) == (1,)
    assert chain.teachers(1) == ()


def test_the_reference_says_who_the_teacher_is() -> None:
    assert "mean logit" in Chain.teachers.__doc__
    for name in COMPARED:
        assert "teacher" in getattr(StageSolution, name).__doc__, name
        if name.startswith("teacher_") or name.endswith(("logit_distance", "output_distance")):
            assert "teacher" in OBSERVABLES[name]


@pytest.mark.parametrize("teachers", [1, (1, 2)])
def test_observables_are_those_of_the_order_parameters(teachers: int | tuple[int, ...]) -> None:
    """Closed forms on fresh samples; averages over training samples against the nodes of the joint law."""
    solution = solve(DATA, [FIRST, SECOND, pupil(Distillation(temperature=2.0, teacher=teachers))], throw=True)
    stage, seen = solution[2], [k - 1 for k in (teachers if isinstance(teachers, tuple) else (teachers,))]
    m, b, q = solution.magnetization, solution.bias, solution.overlap
    mean = np.zeros(3)
    mean[seen] = 1 / len(seen)
    rows = np.array([[0.0, 0.0, 1.0], mean])
    pair = rows @ q @ rows.T
    assert stage.teacher_cosine == pytest.approx(pair[0, 1] / math.sqrt(pair[0, 0] * pair[1, 1]), rel=1e-12)
    agreement = sum(
        probability * multivariate_normal(side * rows @ (sign * m + b), DATA.delta * pair).cdf(np.zeros(2))
        for sign, probability in ((1, DATA.rho), (-1, 1 - DATA.rho))
        for side in (1, -1)
    )
    assert stage.teacher_agreement == pytest.approx(agreement, rel=1e-7)
    difference = rows[0] - rows[1]
    shift, offset = difference @ m, difference @ b
    spread = DATA.delta * difference @ q @ difference
    distance = spread + DATA.rho * (shift + offset) ** 2 + (1 - DATA.rho) * (shift - offset) ** 2
    assert stage.test_logit_distance == pytest.approx(distance, rel=1e-9)
    for training, logits, outputs in (
        (False, stage.test_logit_distance, stage.test_output_distance),
        (True, stage.train_logit_distance, stage.train_output_distance),
    ):
        nodes = solution.nodes(3, training=training)
        own, taught = nodes.logits[:, -1], nodes.logits[:, seen].mean(axis=1)
        assert logits == pytest.approx(nodes.mean((own - taught) ** 2), rel=1e-7)
        assert outputs == pytest.approx(nodes.mean((expit(own) - expit(taught)) ** 2), rel=1e-7)


@pytest.mark.parametrize(
    "loss",
    [Distillation(temperature=2.0, teacher=1), SquareDistillation(0.8, teacher=(1, 2)), "(h - h_1 - h_2)**2/2"],
    ids=["one back", "two", "a formula"],
)
def test_theory_and_simulation_mean_the_same(loss: Loss | str) -> None:
    """N = 200, 10 runs: within 4 standard errors and a finite-size bias of 2%."""
    chain = [FIRST, SECOND, pupil(loss)]
    solution, runs = solve(DATA, chain, throw=True), simulate(DATA, chain, n_inputs=200, n_runs=10, seed=1)
    assert runs.converged
    for name in COMPARED:
        expected, found = getattr(solution[2], name), getattr(runs[2], name)
        assert abs(found.mean - expected) < 4 * found.standard_error + 0.02 * abs(expected), name


def test_a_teacher_of_infinite_weights() -> None:
    """With ridge 0 on separable data: nobody may learn from it, but it may be the stage before."""
    scarce = GaussianMixture(alpha=1.0, rho=0.3, delta=0.8)
    hard = Estimator(CrossEntropy(), 0.0, name="hard")
    solution = solve(scarce, [FIRST, hard, pupil(CrossEntropy())], throw=True)
    q = solution.finite_overlap
    assert solution[1].limit == "max margin"
    assert solution[2].teacher_cosine == pytest.approx(q[2, 1] / math.sqrt(q[2, 2] * q[1, 1]), rel=1e-12)
    assert solution[2].test_logit_distance == solution[2].train_logit_distance == math.inf
    rng, count = np.random.default_rng(1), 400_000
    signs = np.where(rng.random(count) < scarce.rho, 1.0, -1.0)
    noise = math.sqrt(scarce.delta) * np.linalg.cholesky(q) @ rng.standard_normal((3, count))
    logits = solution.finite_magnetization[:, None] * signs + solution.finite_bias[:, None] + noise
    apart = (expit(logits[2]) - (logits[1] > 0)) ** 2
    assert abs(apart.mean() - solution[2].test_output_distance) < 4 * apart.std() / math.sqrt(count)
    assert 0.5 < solution[2].teacher_agreement < 1.0
    taught = solve(scarce, [FIRST, hard, pupil(Distillation(teacher=1))], throw=True)[2]
    assert all(math.isfinite(getattr(taught, name)) for name in COMPARED)


def test_two_stages_of_infinite_weights() -> None:
    scarce = GaussianMixture(alpha=0.8, rho=0.3, delta=0.8)
    hard = [Estimator(CrossEntropy(), 0.0, eta=0.9, name="one"), Estimator(CrossEntropy(), 0.0, eta=0.6, name="two")]
    stage = solve(scarce, hard, throw=True)[1]
    assert stage.limit == "max margin"
    assert stage.test_output_distance == pytest.approx(1.0 - stage.teacher_agreement, rel=1e-14)
    assert stage.train_output_distance == 0.0
    assert stage.calibration_error == pytest.approx(stage.test_error, rel=1e-14)
    assert stage.error_of("test_output_distance") < 1e-8


def test_a_teacher_of_infinite_weights_on_samples_that_it_has_not_seen() -> None:
    """Its outputs there are not the labels: more distant than on its own samples, as a small ridge says too."""
    data = GaussianMixture(0.8, 0.3, 0.8, further=(DataSet("fresh", 1.5),))

    def distance(ridge: float) -> tuple[float, float]:
        chain = [Estimator(CrossEntropy(), ridge, eta=0.9), Estimator(CrossEntropy(), 0.1, sets="fresh")]
        stage = solve(data, chain, throw=True)[1]
        return stage.train_output_distance, stage.error_of("train_output_distance")

    (limit, error), small = distance(0.0), [distance(ridge)[0] for ridge in (1e-6, 1e-8, 1e-10)]
    assert small == sorted(small)
    # Outputs saturate like 1/log(1/ridge).
    logs = 1.0 / np.log([1e8, 1e10])
    extrapolated = np.polyval(np.polyfit(logs, small[1:], 1), 0.0)
    assert abs(limit - extrapolated) < error + 0.01
