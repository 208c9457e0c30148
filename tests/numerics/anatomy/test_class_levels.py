"""Levels of knowledge of K classes: both orders, two classes against the binary core, partial targets, finite systems."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from numerics import ClassMixture, ClassSet, Estimator, GaussianMixture, ParameterError, similar_pairs, simulate, solve
from numerics.anatomy import anatomy, simulate_anatomy
from numerics.anatomy.anatomy import z_scores
from numerics.anatomy.levels import (
    CLASS_CONTROLS,
    GAINS,
    GAINS_INSTANCE_FIRST,
    INSTANCE_FIRST,
    LADDER,
    Question,
    best_levels,
    levels,
    solved,
)
from numerics.cli.anatomy import anatomy_command, anatomy_text
from theory.losses import CrossEntropy, Distillation, SquareLoss, TableTargets

TEACHER, STUDENT = Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1)
PAIRS = ClassMixture(3.0, gram=similar_pairs(4, 0.6), delta=0.25)
UNEQUAL = ClassMixture(3.0, [0.45, 0.35, 0.2], similar_pairs(3, 0.7), [0.3, 0.5, 0.4], label_noise=0.1)
PROBLEMS = {
    "pairs": (PAIRS, [TEACHER, STUDENT]),
    "unequal": (UNEQUAL, [Estimator(CrossEntropy(0.05), 0.1), Estimator(Distillation(0.8, 2.0, 0.05), 0.1, eta=0.6)]),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_gains_add_up_in_both_orders(name: str) -> None:
    """hard -> scaled -> universe -> domain -> all, and -> KD-pt instead of domain: the same total, that of two plain solutions."""
    data, chain = PROBLEMS[name]
    found = anatomy(data, chain).levels
    assert set(found.students) == {*LADDER, *CLASS_CONTROLS}
    hard = solve(data, replace(chain[1], loss=CrossEntropy(chain[1].loss.parameters["smoothing"])))[0].test_error
    total = hard - solve(data, chain)[1].test_error
    for gains, names in ((found.gains, GAINS), (found.instance_first_gains, GAINS_INSTANCE_FIRST)):
        assert sum(gains[step] for step in names) == pytest.approx(gains["total"], abs=1e-15)
        assert gains["total"] == pytest.approx(total, abs=1e-12)
    assert found.gains["universe"] == found.instance_first_gains["universe"]
    assert found.gains["scale"] == pytest.approx(0.0, abs=1e-9) or name == "unequal"
    for errors in (found.quadrature_errors(), found.quadrature_errors(INSTANCE_FIRST, GAINS_INSTANCE_FIRST)):
        assert all(0.0 <= error < 1e-4 for error in errors.values())


def test_two_classes_are_the_binary_anatomy() -> None:
    """Softmax ridges are twice the binary ones.  Class means are K's alone: universe and domain come from its equations."""
    binary = anatomy(
        GaussianMixture(2.0, 0.3, 1.0, 0.1),
        [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(0.8, 2.0, 0.05), 0.05, eta=0.6)],
    ).levels
    data = ClassMixture(2.0, [0.3, 0.7], [[1, -1], [-1, 1]], 1.0, 0.1)
    found = anatomy(
        data, [Estimator(CrossEntropy(), 0.6), Estimator(Distillation(0.8, 2.0, 0.05), 0.1, eta=0.6)]
    ).levels
    for name in LADDER:
        assert found.students[name].error == pytest.approx(binary.students[name].error, abs=1e-8)
    assert found.gains == pytest.approx(binary.gains, abs=1e-8)
    assert abs(found.gains["domain"]) > 1e-3
    # p of the label is all that there is to say of two classes.
    assert found.instance_first_gains["domain"] == 0.0


@pytest.mark.parametrize("name", PROBLEMS)
def test_students_are_their_targets(name: str) -> None:
    """KD-pt is the target "true"; universe, domain and KD-sim are tables, whose numbers follow from each other."""
    data, chain = PROBLEMS[name]
    question, own = Question.of(data, chain), chain[1].loss
    students = levels(question).students

    def error(loss) -> float:
        return solve(data, [chain[0], replace(chain[1], loss=loss)])[1].test_error

    assert students["true"].error == pytest.approx(error(Distillation(**own.parameters, target="true")), abs=1e-12)
    tables = {step: solved(question, step).walk.points[-1].table for step in ("universe", "domain", "cosine")}
    for step, table in tables.items():
        near = 4 * students[step].quadrature_error + 1e-9  # nodes differ
        assert students[step].error == pytest.approx(error(TableTargets(table, **own.parameters)), abs=near)
    weights = data.label_weights("training")
    sure = weights @ np.diag(tables["domain"])
    for table in tables.values():  # none is surer of labels than the teacher
        assert weights @ np.diag(table) == pytest.approx(sure, abs=1e-9)
    off = tables["universe"][~np.eye(data.classes_count, dtype=bool)]
    assert np.ptp(off) == pytest.approx(0.0, abs=1e-12)
    if name == "pairs":  # the twin comes first, for means and for angles
        for step in ("domain", "cosine"):
            assert tables[step][0, 1] > 1.2 * tables[step][0, 2]
            assert tables[step][0, 2] == pytest.approx(tables[step][0, 3], abs=5e-5)


def test_scale_is_a_change_of_ridge() -> None:
    """At chi = 1 labels at temperature T are labels at the ridge T^2 lambda."""
    chain = [TEACHER, Estimator(Distillation(temperature=2.0), 0.05, eta=0.6)]
    found = levels(Question.of(UNEQUAL, chain), names=("scaled",)).students["scaled"].error
    hard = solve(UNEQUAL, Estimator(CrossEntropy(), 0.2, eta=0.6))[0].test_error
    assert found == pytest.approx(hard, abs=2e-5)


def test_classes_that_are_all_alike_have_no_domain() -> None:
    """Universe, domain and KD-sim are then one table."""
    found = levels(Question.of(ClassMixture(3.0, gram=similar_pairs(4, 0.0), delta=0.25), [TEACHER, STUDENT]))
    assert found.gains["domain"] == pytest.approx(0.0, abs=1e-6)
    assert found.students["cosine"].error == pytest.approx(found.students["universe"].error, abs=1e-6)


def test_confidence_and_similarity_change_places() -> None:
    """KD-pt is better than KD-sim where classes differ, and worse where they are close; all of the target is better than both."""
    for s, first in ((0.3, "true"), (0.8, "cosine")):
        found = levels(Question.of(replace(PAIRS, gram=similar_pairs(4, s)), [TEACHER, STUDENT])).over_labels
        assert max(("true", "cosine"), key=found.get) == first
        assert found["instance"] > max(found["true"], found["cosine"])


def test_a_smoothed_teacher_and_an_able_one() -> None:
    """Smoothing costs similarity in the targets, and instance knowledge; a teacher sure of everything has nothing to say."""
    data = replace(PAIRS, gram=similar_pairs(4, 0.8))

    def at(smoothing: float, ridge: float):
        question = Question.of(data, [Estimator(CrossEntropy(smoothing), ridge), STUDENT])
        row = solved(question, "domain").walk.points[-1].table[0]
        return levels(question).gains, 1.0 - row[0], row[1] / (1.0 - row[0])

    (plain, doubt, twin), (smooth, more, less) = at(0.0, 0.01), at(0.3, 0.01)
    assert more > doubt
    assert 1 / 3 < less < twin - 0.15
    assert smooth["instance"] < 0 < plain["instance"]
    assert smooth["total"] < 0 < plain["total"]
    _, same_doubt, says = at(0.0, 0.15)  # as much doubt, by ridge
    assert same_doubt == pytest.approx(more, abs=0.1)
    assert says > less
    able, doubt, _ = at(0.0, 1e-4)
    assert doubt < 0.02
    assert all(abs(gain) < 6e-4 for gain in able.values())


def test_what_it_says() -> None:
    found = anatomy(PAIRS, [TEACHER, STUDENT])
    assert found.weights is None
    assert found.bounds is None
    assert found.calibration == {}
    assert found.blame is None
    assert "most by instance knowledge" in found.sentence
    assert anatomy(PAIRS, [TEACHER, STUDENT], levels=False).levels is None
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(document["levels"]["students"]["domain"]) == {"ridge", "error", "quadrature_error"}
    assert document["levels"]["instance_first_gains"] == found.levels.instance_first_gains
    assert "weights" not in document


def test_a_student_of_other_samples() -> None:
    """Its labels alone are a question to data that the teacher is needed for, or the training set would be nobody's."""
    data = ClassMixture(3.0, gram=similar_pairs(4, 0.6), delta=0.25, further=ClassSet("transfer", 1.0))
    found = anatomy(data, [TEACHER, replace(STUDENT, sets="transfer")]).levels
    assert all(np.isfinite(level.error) for level in found.students.values())
    fresh = ClassMixture(1.0, gram=similar_pairs(4, 0.6), delta=0.25)
    assert found.students["hard"].error == pytest.approx(
        solve(fresh, Estimator(CrossEntropy(), 0.1))[0].test_error, abs=1e-4
    )


def test_labels_alone_make_every_student_the_same() -> None:
    found = levels(Question.of(PAIRS, [TEACHER, Estimator(Distillation(0.0), 0.3)]))
    assert set(found.gains.values()) == {0.0}
    assert found.blame is None


# Finite systems, targets from each run's own teacher.


def compare(name: str, n_inputs: int, n_runs: int) -> None:
    measured = simulate_anatomy(*PROBLEMS[name], n_inputs=n_inputs, n_runs=n_runs, seed=3)
    z = {what: float(z_scores(mean, value)) for what, mean, value in measured.comparisons()}
    known = np.array([value for value in z.values() if np.isfinite(value)])
    assert len(known) > 20
    assert np.abs(known).max() < 4, z
    assert np.sqrt(np.mean(known**2)) < 2.0


def test_theory_agrees_with_simulation() -> None:
    compare("unequal", 80, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_theory_agrees_with_a_larger_simulation(name: str) -> None:
    for n_inputs in (300, 600):
        compare(name, n_inputs, 24)


def compare_tables(n_inputs: int, n_runs: int) -> None:
    """Students on theory's tables, and on means over each run's own samples: the same limit."""
    question = Question.of(*PROBLEMS["unequal"])
    table, own = solved(question, "domain").walk.points[-1].table, question.loss.parameters
    students = [
        replace(question.student, loss=loss, name=name)
        for name, loss in (
            ("given", TableTargets(table, **own)),
            ("measured", Distillation(**own, teacher=1, target="similarity")),
        )
    ]
    runs = simulate(question.data, [question.chain[0], *students], n_inputs=n_inputs, n_runs=n_runs, seed=4)
    for student, measured in zip(
        students, list(runs)[1:], strict=True
    ):  # in one chain they would be copies of each other
        computed = solve(runs.effective_data, [question.chain[0], student])[1]
        for observable in ("test_error", "norm_squared", "train_loss"):
            estimate = getattr(measured, observable)
            assert abs(estimate.mean - getattr(computed, observable)) < 4 * estimate.standard_error


def test_tables_of_theory_and_of_runs() -> None:
    compare_tables(80, 10)


@pytest.mark.slow
@pytest.mark.parametrize("n_inputs", [300, 600])
def test_tables_of_theory_and_of_larger_runs(n_inputs: int) -> None:
    compare_tables(n_inputs, 24)


# Best ridges.


def test_best_ridges() -> None:
    """Of the whole target: no ridge around does better, on other nodes."""
    question = Question.of(UNEQUAL, [TEACHER, STUDENT])
    found = best_levels(question, names=("instance",))
    assert found.best_ridge
    for name, level in found.students.items():
        loss = question.losses(None)[name]
        assert 1e-3 < level.ridge < 10.0
        assert level.quadrature_error < 2e-5
        for factor in (0.5, 2.0):
            data, chain = question.problem_with(loss)
            stages = [*chain.stages[:-1], replace(chain[-1], ridge=factor * level.ridge)]
            assert solve(data, stages, throw=True)[-1].test_error > level.error + 1e-4


@pytest.mark.slow
def test_best_ridges_of_all_students() -> None:
    found = anatomy(PAIRS, [TEACHER, STUDENT], best_ridge=True)
    best = found.best.students
    assert set(best) == set(found.levels.students)
    for name, level in found.levels.students.items():
        assert best[name].error < level.error + 1e-5
    text = anatomy_text(found)
    assert text.count("at best ridges") == 2


# What is refused, in one line.


def test_what_is_refused() -> None:
    cases = [
        (
            lambda: anatomy(PAIRS, [TEACHER, replace(STUDENT, loss=Distillation(target="true"))]),
            "target of student must be 'full' to be taken apart, got 'true'",
        ),
        (
            lambda: anatomy(PAIRS, [TEACHER, replace(STUDENT, loss=SquareLoss())]),
            "loss of student must be a Distillation",
        ),
        (lambda: anatomy(PAIRS, [TEACHER]), "stage must be one with a teacher"),
        (
            lambda: anatomy(PAIRS, [TEACHER, TEACHER, replace(STUDENT, loss=Distillation(teacher=(1, 2)))]),
            "loss of stage3 must have one teacher",
        ),
        (lambda: anatomy(PAIRS, [TEACHER, STUDENT]).inheritance, "data must be a GaussianMixture"),
    ]
    for action, words in cases:
        with pytest.raises(ParameterError, match=words) as caught:
            action()
        assert "\n" not in str(caught.value)


COMMAND = (
    "--classes",
    "4",
    "--similarity",
    "0.6",
    "--alpha",
    "3",
    "--delta",
    "0.25",
    "--student-ridge",
    "0.1",
    "--eta",
    "1",
)


def test_the_command() -> None:
    done = CliRunner().invoke(anatomy_command, COMMAND)
    assert done.exit_code == 0, done.output
    assert "which classes are alike, then each sample" in done.output
    assert "KD-sim" in done.output
    assert max(map(len, done.output.splitlines())) <= 110
    done = CliRunner().invoke(anatomy_command, (*COMMAND, "--simulate", "60", "3", "--json"))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert set(document["simulation"]["estimates"]["gain domain"]) == {"mean", "standard_error", "theory", "z"}
    assert "over labels, cosine" in document["simulation"]["estimates"]
