"""The whole anatomy: what it says, and finite systems beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from numerics import Estimator, GaussianMixture, LinearRule, ParameterError, Simulation, simulate, solve, sweep
from numerics.anatomy import anatomy, simulate_anatomy
from numerics.anatomy.anatomy import z_scores
from numerics.anatomy.levels import CONTROLS, GAINS, LADDER, SHUFFLED
from numerics.cli.anatomy import anatomy_command
from theory.losses import CrossEntropy, Distillation

DATA = GaussianMixture(4.0, 0.3, 1.0, 0.1)
TEACHER, STUDENT = Estimator(CrossEntropy(), 0.3), Estimator(Distillation(), 0.1)


def test_what_it_holds() -> None:
    found = anatomy(DATA, [TEACHER, STUDENT])
    assert found.best is None
    assert found.solution[-1].test_error == found.levels.students["instance"].error
    assert found.gains == found.levels.gains
    assert found.blame is None
    assert "helps" in found.sentence
    assert "instance knowledge" in found.sentence
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(document["levels"]["students"]) == {*LADDER, *CONTROLS}
    assert document["levels"]["gains"]["total"] == pytest.approx(0.02807, abs=1e-5)
    assert document["weights"]["mean"] == found.weights.mean
    with pytest.raises(ParameterError, match=r"^levels "):
        _ = anatomy(DATA, [TEACHER, STUDENT], levels=False).gains


def test_a_stage_inside_a_chain() -> None:
    """What comes after the student does not matter."""
    later = Estimator(Distillation(), 0.2)
    found = anatomy(DATA, [TEACHER, STUDENT, later], stage=1)
    assert found.gains == pytest.approx(anatomy(DATA, [TEACHER, STUDENT]).gains, abs=1e-12)
    third = anatomy(DATA, [TEACHER, STUDENT, later])
    assert third.question.taught_by == 2
    assert sum(third.gains[gain] for gain in GAINS) == pytest.approx(third.gains["total"], abs=1e-12)
    assert set(third.levels.students) == {*LADDER, SHUFFLED}
    fourth = anatomy(DATA, [TEACHER, STUDENT, later, later], levels=False)
    assert "up to 3 stages" in fourth.weights.reason


def test_stages_that_the_student_does_not_learn_from() -> None:
    """A chain of four in which the student's teacher is the second: two stages are all there is to it."""
    other, last = Estimator(CrossEntropy(0.1), 2.0), Estimator(Distillation(teacher=2), 0.1)
    found = anatomy(DATA, [other, TEACHER, other, last])
    assert found.question.chain.names == ("student", "stage4")
    alone = anatomy(DATA, [TEACHER, STUDENT])
    assert found.gains == pytest.approx(alone.gains, abs=1e-12)
    assert found.weights.mean == pytest.approx(alone.weights.mean, rel=1e-12)


# The two failures of teachers that Tang et al. diagnose.


def test_a_smoothed_teacher_knows_less_of_instances() -> None:
    """Label smoothing of 0.1 halves what instance knowledge is worth; distillation, which helped, hurts by the universe level."""
    data, pupil = GaussianMixture(2.0, 0.5, 1.0), Estimator(Distillation(), 0.01)
    found = [anatomy(data, [Estimator(CrossEntropy(smoothing), 0.01), pupil]) for smoothing in (0.0, 0.1, 0.3)]
    instance = [one.gains["instance"] for one in found]
    spread = [np.diff(one.weights.margin_quantile(np.array([0.1, 0.9])))[0] for one in found]
    assert instance == sorted(instance, reverse=True)
    assert spread == sorted(spread, reverse=True)
    assert instance[1] < 0.55 * instance[0]
    assert [one.blame for one in found] == [None, "universe", "universe"]


def test_a_teacher_too_able_is_sure_of_everything() -> None:
    """Few samples and hardly a ridge: the teacher is sure of every label, and its student is trained on labels."""
    data = GaussianMixture(1.0, 0.5, 1.0, 0.1)
    found = [anatomy(data, [Estimator(CrossEntropy(), ridge), STUDENT]) for ridge in (1e-3, 1e-1, 1.0)]
    instance = [one.gains["instance"] for one in found]
    start = [1.0 - one.weights.start_mean for one in found]
    assert instance == sorted(instance)
    assert start == sorted(start)  # before the first step all weights are 1 where the teacher is sure
    assert start[0] < 0.02
    assert abs(instance[0]) < 0.01 < instance[-1]


# Finite systems.


def compare(measured, limit: float = 4.0) -> list[float]:
    """z of all that is not ruled by rare events: those of a distribution with 20 samples on either side."""
    found, samples = [], measured.result.n_samples * measured.result.n_runs
    for name, estimate, value in measured.comparisons():
        z = np.atleast_1d(z_scores(estimate, value))
        if name == "weights cdf":
            z = z[np.minimum(value, 1.0 - value) * samples > 20]
        z = z[np.isfinite(z)]
        assert np.all(np.abs(z) < limit), (name, estimate, value)
        found += list(z)
    return found


def test_beside_simulation() -> None:
    """N = 300, 8 runs; errors have finite-size effects of their own order, so z is allowed 5."""
    data = GaussianMixture(3.0, 0.4, 1.0, 0.1)
    chain = [Estimator(CrossEntropy(), 0.5), Estimator(Distillation(0.7, 2.0), 0.1, 0.8)]
    measured = simulate_anatomy(data, chain, n_inputs=300, n_runs=8, seed=3)
    z = compare(measured, 5.0)
    assert len(z) > 35
    document = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert document["estimates"]["gain total"]["theory"] == measured.theory.gains["total"]
    total = measured.result.runs["test_error"]
    assert measured.gains["total"].mean == pytest.approx(np.mean(total[:, 2] - total[:, 1]))
    # Gains of runs vary less than errors do.
    assert measured.gains["domain"].standard_error < 0.5 * measured.errors["domain"].standard_error


def extrapolated(small, large) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from theory of a size and its double, extrapolated to infinite size, in standard errors; and their correlations.

    ``2 x(2N) - x(N)`` has no term of order 1/N: that one is there, and for convex functions of what fluctuates (calibration parts
    of scores) half a standard error at N = 1000 with 30 runs.
    """
    deviations, runs = [], []
    for measured, weight in ((small, -1.0), (large, 2.0)):
        parts = []
        for name, estimate, value in measured.comparisons():
            values = np.asarray(estimate.values, dtype=float).reshape(estimate.n, -1)
            if name == "weights cdf":  # rare events: those with 20 samples on either side
                value = np.asarray(value)
                values = np.where(
                    np.minimum(value, 1 - value) * small.result.n_samples > 20 / estimate.n, values, np.nan
                )
            parts.append(values - np.atleast_1d(value))
        deviations.append(weight * np.column_stack(parts))
    spreads = [values.std(axis=0) for values in deviations]
    known = np.all([np.isfinite(spread) & (spread > 1e-9) for spread in spreads], axis=0)
    runs = [values[:, known] for values in deviations]
    mean = sum(values.mean(axis=0) for values in runs)
    covariance = sum(np.cov(values, rowvar=False) / len(values) for values in runs)
    error = np.sqrt(np.diag(covariance))
    return mean / error, covariance / np.outer(error, error)


def chance_of(z: np.ndarray, correlation: np.ndarray, draws: int = 100_000) -> float:
    """Probability that the mean square of so correlated normal numbers is as large as that of ``z``: a sum of chi-squares, each
    with an eigenvalue as its weight."""
    weights = np.clip(np.linalg.eigvalsh(correlation), 0.0, None) / z.size
    drawn = np.random.default_rng(0).chisquare(1.0, (draws, z.size)) @ weights
    return float(np.mean(drawn >= np.mean(z**2)))


def test_how_chances_are_judged() -> None:
    """Numbers that move together: their mean square scatters as that of few, and a shift of all of them is seen."""
    generator, count = np.random.default_rng(5), 60
    factors = generator.standard_normal((count, 3)) + 0.2 * generator.standard_normal((count, 3))
    covariance = factors @ factors.T + 0.3 * np.eye(count)
    size = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(size, size)
    chances = []
    for _ in range(200):
        z = generator.multivariate_normal(np.zeros(count), correlation)
        chances.append(chance_of(z, correlation, 4000))
    assert 0.4 < np.mean(chances) < 0.6
    assert 0.05 < np.mean(np.array(chances) < 0.1) < 0.16
    assert chance_of(np.full(count, 5.0), correlation) < 1e-3
    # Taken for independent ones, they would be found wrong now and then.
    assert np.mean(np.mean(generator.multivariate_normal(np.zeros(count), correlation, 500) ** 2, axis=1) > 2.0) > 0.03


@pytest.mark.parametrize(
    ("point", "n_inputs", "n_runs"),
    [
        pytest.param((4, 0.3, 1, 0.1, 0.3, 0.1, 1, 1, 1), 1000, 24, marks=pytest.mark.large),
        pytest.param((3, 0.2, 1, 0, 0.1, 0.02, 0.5, 1, 1), 500, 40, marks=pytest.mark.slow),
        pytest.param((2, 0.3, 1, 0.1, 0.3, 0.05, 0.6, 0.5, 4), 500, 40, marks=pytest.mark.slow),
    ],
    ids=["R8", "R2", "hot"],
)
def test_beside_large_simulations(point: tuple, n_inputs: int, n_runs: int) -> None:
    """N and 2N, extrapolated: every |z| < 4, and together they are no less likely than one in a thousand.

    The 80 quantities follow a few chances of the draw (the norm of v, how many labels are positive, how many are flipped), so that
    their mean square is judged with their correlations.  The seed is the number of inputs, another for each size, and its points
    take other samples: N and alpha differ.
    """
    alpha, rho, delta, noise, first, second, eta, mixing, temperature = point
    data = GaussianMixture(alpha, rho, delta, noise)
    chain = [Estimator(CrossEntropy(), first), Estimator(Distillation(mixing, temperature), second, eta)]
    seeds = [size + int(10 * alpha) for size in (n_inputs, 2 * n_inputs)]
    measured = [
        simulate_anatomy(data, chain, n_inputs=size, n_runs=n_runs, seed=seed, n_jobs=2)
        for size, seed in zip((n_inputs, 2 * n_inputs), seeds, strict=True)
    ]
    z, correlation = extrapolated(*measured)
    assert z.size > 65
    assert np.abs(z).max() < 4
    assert chance_of(z, correlation) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("n_inputs", "n_runs"), [(250, 240), (500, 120)])
def test_no_drift_of_weights(n_inputs: int, n_runs: int) -> None:
    """Many small systems: means of weights are within 3 standard errors of theory, which are half a per cent of them and less."""
    chain = [TEACHER, STUDENT]
    found = anatomy(DATA, chain, levels=False).weights
    measured = simulate(DATA, chain, n_inputs, n_runs, seed=11)[1]
    for name, expected in (("mean_weight", found.mean), ("gradient_weight", found.gradient_mean)):
        estimate = getattr(measured, name)
        assert estimate.standard_error < 0.007 * expected
        assert abs(estimate.mean - expected) < 3 * estimate.standard_error


def test_weights_by_name() -> None:
    chain = [TEACHER, Estimator(Distillation(0.7, 2.0), 0.1)]
    stage, found = solve(DATA, chain)[1], anatomy(DATA, chain)
    assert stage.mean_weight == pytest.approx(found.weights.mean, rel=1e-8)
    assert stage.gradient_weight == pytest.approx(found.weights.gradient_mean, rel=1e-8)
    measured = simulate(DATA, chain, n_inputs=300, n_runs=6)[1]
    for name in ("mean_weight", "gradient_weight"):
        estimate = getattr(measured, name)
        assert abs(estimate.mean - getattr(stage, name)) < 4 * estimate.standard_error
    runs = sweep(DATA, chain, {"alpha": [2.0]}, ["mean_weight"], simulation=Simulation(60, 3))
    assert np.isfinite(runs.mean_weight.sel(stage="student")).all()
    with pytest.raises(ParameterError, match="does not measure"):
        sweep(DATA, chain, {"alpha": [2.0]}, ["gain_total"], simulation=Simulation(60, 3))


def test_bad_input() -> None:
    chain = [TEACHER, STUDENT]
    with pytest.raises(ParameterError, match=r"^edges must be increasing"):
        simulate_anatomy(DATA, chain, n_inputs=50, n_runs=2, edges=(1.0, 0.0))
    masked = Estimator(Distillation(), 0.1, 0.5, mask_overlap=0.5)
    with pytest.raises(ParameterError, match=r"^mask_overlap of student"):
        simulate_anatomy(DATA, [Estimator(CrossEntropy(), 0.3, 0.5), masked], n_inputs=50, n_runs=2)
    for stage in (2, True, "student"):
        with pytest.raises(ParameterError, match=r"^stage must be a position"):
            anatomy(DATA, chain, stage)
    with pytest.raises(ParameterError, match=r"^data must be a GaussianMixture"):
        anatomy(LinearRule(2.0, output="sign"), chain)


# The command.


def run(*flags: str):
    return CliRunner().invoke(anatomy_command, list(flags))


POINT = (
    "--alpha",
    "4",
    "--rho",
    "0.3",
    "--label-noise",
    "0.1",
    "--teacher-ridge",
    "3",
    "--student-ridge",
    "0.1",
    "--eta",
    "1",
)


def test_one_screen() -> None:
    done = run(*POINT)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 110
    assert "distillation hurts" in done.output
    assert "to blame is domain knowledge" in " ".join(done.output.split())
    (row,) = (line for line in lines if line.startswith("domain "))
    assert "------------|" in row
    assert "-0.0738" in row


def test_json_with_simulation() -> None:
    done = run(*POINT, "--simulate", "60", "3", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["theory"]["levels"]["blame"] == "domain"
    assert document["simulation"]["n_runs"] == 3
    assert set(document["simulation"]["estimates"]["gain total"]) == {"mean", "standard_error", "theory", "z"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--alpha", "2", "--rule", "sign"), "--rule: data must be a GaussianMixture"),
        (("--alpha", "2", "--single"), "--single: stage must be one with a teacher"),
        (("--alpha", "2", "--student-loss", "square"), "--student-loss: loss of student must be a Distillation"),
        (("--alpha", "2", "--simulate", "1", "3"), "--simulate: N must be an integer >= 2"),
        (("--alpha", "2", "--simulate", "50", "0"), "--simulate: RUNS must be an integer >= 1"),
        (("--alpha", "2", "--seed", "1"), "--seed has no effect without --simulate"),
    ],
)
def test_bad_flags(flags: tuple[str, ...], words: str) -> None:
    done = run(*flags)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
