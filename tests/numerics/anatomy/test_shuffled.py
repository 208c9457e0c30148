"""The student of shuffled targets: where it is another student, beside simulation, and what it cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numerics import DataSet, Estimator, GaussianMixture, ParameterError, simulate, solve, sweep
from numerics.anatomy.levels import SHUFFLED, Question, best_levels, levels
from numerics.anatomy.shuffled import Shuffled, shuffled, trained_on_shuffled, without_directions
from numerics.settings import DEFAULT, Settings
from theory.losses import CrossEntropy, Distillation, SquareLoss

FINE = Settings(rtol=1e-11, newton_tolerance=1e-12)
PAGE = (GaussianMixture(3.0, 0.5, 0.5, 0.2), [Estimator(CrossEntropy(), 0.5), Estimator(Distillation(), 0.05)])


def of(data: GaussianMixture, chain: list, settings: Settings = DEFAULT) -> tuple[Question, Shuffled]:
    question = Question.of(data, chain)
    return question, shuffled(solve(question.data, question.chain, settings=settings), question)


def test_instance_is_dispersion_and_alignment() -> None:
    """A point of which the numbers are known: dispersion hurts, alignment helps by more."""
    found = levels(Question.of(*PAGE))
    expected = {"hard": 0.2473, "domain": 0.2484, SHUFFLED: 0.3247, "instance": 0.1564}
    assert {name: round(found.students[name].error, 4) for name in expected} == expected
    parts = found.instance_parts
    assert parts["dispersion"] < 0 < parts["alignment"]
    assert sum(parts.values()) == pytest.approx(found.gains["instance"], abs=1e-15)


def test_targets_that_hardly_vary() -> None:
    """A teacher of a huge ridge says the same of every sample of a label: there is nothing to shuffle."""
    question, found = of(
        GaussianMixture(2.0, 0.3, 1.0, 0.1), [Estimator(CrossEntropy(), 1e6), Estimator(Distillation(), 0.1)]
    )
    assert found.test_error == pytest.approx(levels(question).students["domain"].error, abs=1e-6)


def test_equal_to_another_teacher_on_other_inputs() -> None:
    """Without noise, and masks that do not meet, a student cannot tell its teacher's outputs from those of other samples."""
    data = GaussianMixture(2.0, 0.3, 1.0)
    teacher, student = (
        Estimator(CrossEntropy(), 0.3, 0.4),
        Estimator(Distillation(0.8, 2.0), 0.1, 0.5, mask_overlap=0.0),
    )
    apart = solve(data, [teacher, student], settings=FINE)[1]
    _, found = of(data, [teacher, replace(student, mask_overlap=None)], FINE)
    assert found.test_error == pytest.approx(apart.test_error, abs=1e-10)
    assert found.response == pytest.approx(apart.solution.points[1].response_row[-1], rel=1e-9)


def test_nodes_have_the_law_of_label_and_output() -> None:
    question = Question.of(GaussianMixture(2.0, 0.3, 1.0, 0.1), PAGE[1])
    solution = solve(question.data, question.chain)
    before, after = solution.nodes(1, training=True), without_directions(solution, question)
    for function in (lambda n: n.labels, lambda n: n.statistics[:, 0], lambda n: np.tanh(n.logits[:, 0]) * n.labels,
                     lambda n: n.labels * n.statistics[:, 0]):  # fmt: skip
        assert after.mean(function(after)) == pytest.approx(before.mean(function(before)), abs=1e-10)
    aligned = [nodes.mean(np.tanh(nodes.logits[:, 0]) * nodes.statistics[:, 0]) for nodes in (before, after)]
    assert aligned[1] < aligned[0] - 0.01


def test_by_name() -> None:
    data, chain = PAGE
    names = ["gain_instance", "gain_dispersion", "gain_alignment", "gain_alignment_quadrature_error"]
    student = sweep(data, chain, {"alpha": [3.0]}, names).sel(stage="student", alpha=3.0)
    assert float(student.gain_dispersion + student.gain_alignment) == pytest.approx(
        float(student.gain_instance), abs=1e-12
    )
    assert 0.0 < float(student.gain_alignment_quadrature_error) < 1e-7
    labels = [chain[0], Estimator(Distillation(0.0), 0.05)]
    assert solve(data, labels)[1].gain_dispersion == 0.0


def test_no_limit() -> None:
    data, chain = PAGE
    found = levels(Question.of(data, [chain[0], replace(chain[1], ridge=0.0)])).students[SHUFFLED]
    assert np.isnan(found.error)
    assert found.reason.startswith("ridge of student must be > 0")
    with pytest.raises(ParameterError, match="finite logits of the teacher"):
        of(GaussianMixture(0.4, 0.3), [Estimator(CrossEntropy(), 0.0), Estimator(Distillation(0.0), 0.1)])


@pytest.mark.large
def test_best_ridge() -> None:
    """By a search over ridges; where noise is all that targets add, ever larger ones are better."""
    question = Question.of(
        GaussianMixture(2.0, 0.2, 1.0), [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1)]
    )
    best = best_levels(question, names=(SHUFFLED,)).students[SHUFFLED]
    solution = solve(question.data, question.chain)
    tried = [shuffled(solution, question, ridge).test_error for ridge in np.geomspace(1e-3, 1e5, 33)]
    assert best.error <= min(tried) + 1e-7
    if np.isinf(best.ridge):
        assert best.error == pytest.approx(tried[-1], abs=1e-5)


CASES = {
    "page": PAGE,
    "hot": (GaussianMixture(2.0, 0.3, 1.0, 0.1), [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(0.6, 3.0), 0.05, 0.6)]),
    "sets": (
        GaussianMixture(2.0, 0.3, 0.7, 0.1, (DataSet("fresh", 1.0, 0.3),)),
        [Estimator(SquareLoss(), 0.5), Estimator(Distillation(0.8, 2.0), 0.1, 0.7, sets=("training", "fresh"))],
    ),
    "three": (GaussianMixture(2.0, 0.4, 1.0, 0.1), [
        Estimator(CrossEntropy(), 0.3), Estimator(Distillation(0.7), 0.2), Estimator(Distillation(0.9, 2.0), 0.1, 0.8),
    ]),
}  # fmt: skip


def scores(case: str, n_inputs: int, n_runs: int) -> np.ndarray:
    """z of order parameters and of both errors."""
    data, chain = CASES[case]
    question = Question.of(data, chain)
    names = "test_error", "direction_error"

    def further(stages):
        fresh = trained_on_shuffled(stages, question)
        found = {"m": fresh.magnetization[0], "bias": fresh.bias[0], "q": fresh.overlap[0, 0]}
        return {**found, **{name: getattr(fresh, name)(0) for name in names}}

    runs = simulate(question.data, question.chain, n_inputs, n_runs, seed=n_inputs, further=further)
    found = shuffled(solve(runs.effective_data, runs.effective_chain), question)
    expected = {"m": found.fresh.magnetization[0], "bias": found.fresh.bias[0], "q": found.fresh.overlap[0, 0]}
    expected |= {name: getattr(found, name) for name in names}
    z = [(np.mean(runs.runs[k]) - v) / (np.std(runs.runs[k], ddof=1) / np.sqrt(n_runs)) for k, v in expected.items()]
    return np.array(z)


def test_beside_simulation() -> None:
    """N = 200, 24 runs."""
    assert np.abs(scores("page", 200, 24)).max() < 4


@pytest.mark.large
@pytest.mark.parametrize(
    ("case", "n_inputs", "n_runs"), [*((case, 300, 40) for case in CASES), ("page", 900, 24), ("three", 900, 24)]
)
def test_beside_larger_simulations(case: str, n_inputs: int, n_runs: int) -> None:
    assert np.abs(scores(case, n_inputs, n_runs)).max() < 4
