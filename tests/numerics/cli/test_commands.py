"""Command lines: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
from command_line import assert_one_line_error, run

from numerics import (
    BayesOptimal,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    simulate,
    solve,
)
from numerics.cli.simulate import simulate_command
from numerics.cli.solve import solve_command
from numerics.problem import read_problem
from numerics.solution.observables.registry import observables_of
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels

BAD_MODEL_FLAGS = [
    (["--alpha", "0"], "--alpha"),
    (["--alpha", "nan"], "--alpha"),
    (["--alpha", "two"], "--alpha"),
    (["--rho", "1"], "--rho"),
    (["--delta", "-1"], "--delta"),
    (["--teacher-ridge", "-0.1"], "--teacher-ridge"),
    (["--student-ridge", "-1e-5"], "--student-ridge"),
    (["--eta", "1.5"], "--eta"),
    (["--chi", "1.5"], "--chi"),
    (["--temperature", "0"], "--temperature"),
    (["--smoothing", "0.7"], "--smoothing"),
    (["--teacher-loss", "distillation"], "--teacher-loss"),
    (["--teacher-loss", "-h**2"], "--teacher-loss"),
    (["--student-loss", "log(1+exp(-q*h))"], "--student-loss"),
    (["--student-loss", "square", "--chi", "0.5"], "--chi"),
    (["--student-loss", "square", "--temperature-squared"], "--temperature-squared"),
    (["--student-loss", "pseudo-labels", "--temperature", "2"], "--temperature"),
    (["--gain", "2"], "--gain has no effect with --student-loss distillation"),
    (["--student-loss", "square-distillation", "--gain", "inf"], "--gain"),
    (["--student-loss", "h*step(h_teacher - h)"], "--student-loss"),
    (["--label-noise", "0.6"], "--label-noise"),
    (["--single", "--gain", "2"], "--gain"),
    (["--single", "--eta", "0.4"], "--eta"),
    (["--teacher-loss", "square", "--student-loss", "square", "--smoothing", "0.1"], "--smoothing"),
    (["--tempreature", "2"], "--tempreature"),
    (["--slope", "2"], "--slope has no effect without --rule"),
    (["--rule", "probit", "--slope", "2"], "--slope has no effect with --rule probit"),
    (["--rule", "logit", "--noise", "0.25"], "--noise has no effect with --rule logit"),
    (["--rule", "logit", "--slope", "0"], "--slope"),
    (["--rule", "logit", "--rho", "0.5"], "--rho has no effect with --rule"),
]


@pytest.mark.parametrize(("arguments", "flag"), BAD_MODEL_FLAGS, ids=lambda value: " ".join(value))
def test_bad_model_flag_is_named_in_one_line(arguments: list[str], flag: str) -> None:
    alpha = [] if "--alpha" in arguments else ["--alpha", "1"]
    assert_one_line_error(run(solve_command, *alpha, *arguments), flag)


PROBLEM = {
    "data": {"alpha": 2, "rho": 0.4, "delta": 0.5, "label_noise": 0.2, "further": [{"name": "fresh", "alpha": 4}]},
    "chain": [
        {"loss": "cross-entropy", "ridge": 0.1},
        {"stage": "hebbian", "name": "sum"},
        {"loss": {"formula": "(h - a*h_teacher)**2", "parameters": {"a": 2}, "teacher": 1}, "ridge": 1, "eta": 0.5},
        {
            "loss": {"name": "pseudo-labels", "teacher": [1, 2], "square": True},
            "ridge": 0.5,
            "sets": ["training", "fresh"],
            "bias": 0,
            "mask_overlap": 0.25,
            "eta": 0.4,
        },
    ],
}


def test_a_problem_is_read_from_json() -> None:
    data, chain = read_problem(json.dumps(PROBLEM))
    assert data == GaussianMixture(2.0, 0.4, 0.5, 0.2, (DataSet("fresh", 4.0),))
    assert chain.stages == (
        Estimator(CrossEntropy(), 0.1),
        Hebbian(name="sum"),
        Estimator(Loss.from_expression("(h - a*h_teacher)**2", {"a": 2}, teacher=1), 1.0, 0.5),
        Estimator(
            PseudoLabels(teacher=(1, 2), square=True), 0.5, 0.4, bias=0.0, sets=("training", "fresh"), mask_overlap=0.25
        ),
    )
    special = [
        {"stage": "frozen", "magnetization": 0.5, "norm_squared": 1},
        {"stage": "bayes-optimal"},
        {"loss": "log(1 + exp(-s*h))", "ridge": 1},
    ]
    _, chain = read_problem(json.dumps({"data": {"alpha": 1}, "chain": special}))
    assert chain.stages[:2] == (Frozen(0.5, 1.0), BayesOptimal())


def _changed(path: str, value: object) -> str:
    """``PROBLEM`` as JSON with one entry set, or removed if the value is None."""
    problem = json.loads(json.dumps(PROBLEM))
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    target = problem
    for key in way:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return json.dumps(problem)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not JSON"]),
        ("[" * 100_000, ["not JSON"]),
        ("[]", ["the problem must be an object"]),
        (_changed("data", None), ["keys data and chain"]),
        (_changed("seed", 3), ["keys data and chain"]),
        (_changed("chain", {}), ["chain must be a list"]),
        (_changed("chain", []), ["at least one stage"]),
        (_changed("data/alpha", None), ["data: alpha is missing"]),
        (_changed("data/alpha", "2"), ["data: alpha"]),
        (_changed("data/aplha", 2), ["data", "unknown key 'aplha'", "label_noise"]),
        (_changed("data/further", 2), ["data.further"]),
        (_changed("data/further/0/alpha", -2), ["data.further[0]: alpha"]),
        (_changed("chain/0", "square"), ["chain[0] must be an object"]),
        (_changed("chain/0/ridge", None), ["chain[0]: ridge is missing"]),
        (_changed("chain/0/ridge", -1), ["chain[0]: ridge"]),
        (_changed("chain/0/magnetization", 1), ["chain[0]: unknown key 'magnetization'"]),
        (_changed("chain/1/loss", "square"), ["chain[1]: unknown key 'loss'"]),
        (_changed("chain/1/stage", "bayes"), ["chain[1].stage", "bayes-optimal"]),
        (_changed("chain/0/loss", "h**3"), ["chain[0].loss", "not convex"]),
        (_changed("chain/0/loss", {"name": "hinge"}), ["chain[0].loss", "hinge", "cross-entropy"]),
        (_changed("chain/0/loss", {}), ["chain[0].loss", "must have a formula or a name"]),
        (_changed("chain/2/loss/formula", 2), ["chain[2].loss.formula"]),
        (_changed("chain/2/loss/parameters", [2]), ["chain[2].loss.parameters"]),
        (_changed("chain/2/loss/parameters/a", "two"), ["chain[2].loss", "two"]),
        (_changed("chain/2/loss/teacher", [1, 2]), ["chain[2].loss", "h_teacher is one stage"]),
        (_changed("chain/3/loss/teacher", [1, "2"]), ["chain[3].loss", "teacher"]),
        (_changed("chain/3/loss/teacher", 4), ["stage 4", "not earlier"]),
        (_changed("chain/3/loss/mixing", 2), ["chain[3].loss: mixing"]),
        (_changed("chain/3/loss/square", 1), ["chain[3].loss: square must be true or false"]),
        (_changed("chain/3/sets", "training"), ["'fresh'"]),
        (_changed("chain/3/sets", ["test"]), ["'test'"]),
        (_changed("chain/3/mask_overlap", 2), ["chain[3]: mask_overlap"]),
        (_changed("chain/0", {"stage": "bayes-optimal"}), ["noise"]),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else " ".join(value),
)
def test_bad_problem_is_one_line(text: str, words: list[str]) -> None:
    assert_one_line_error(run(solve_command, "--problem", "-", text=text), "--problem", *words)


def test_flags_beside_a_problem(tmp_path) -> None:
    path = tmp_path / "chain.json"
    path.write_text(json.dumps(PROBLEM))
    for flag in ("--chi", "--teacher-ridge", "--smoothing"):
        assert_one_line_error(run(solve_command, "--problem", path, flag, 0.1), flag, "no effect")
    assert_one_line_error(run(solve_command, "--problem", path, "--single"), "--single", "no effect")
    assert_one_line_error(run(solve_command, "--problem", path, "--label-noise", 0.7), "--label-noise")
    assert_one_line_error(run(solve_command, "--problem", tmp_path / "none.json"), "--problem", "none.json")
    path.write_bytes(b"\xff\xfe")
    assert_one_line_error(run(solve_command, "--problem", path), "--problem", "cannot read")


def test_simulation_of_a_problem() -> None:
    arguments = ("--problem", "-", "--inputs", 40, "--runs", 2, "--no-theory")
    result = run(simulate_command, *arguments, "--alpha", 3, text=json.dumps(PROBLEM))
    assert result.exit_code == 0, result.stderr
    for words in (
        "alpha = 3, rho = 0.4, Delta = 0.5, label noise 0.2",
        "data set fresh: alpha = 4, label noise 0",
        "mask overlap 0.25, on training and fresh",
        "Hebbian(",
        "M = 120 (training), 160 (fresh) samples",
    ):
        assert words in result.stdout


def test_named_losses() -> None:
    """Two names that are one loss at T = 1 and gain 1, up to the unit of the logit, decide alike."""
    stages = [
        json.loads(run(solve_command, "--alpha", 1, *flags, "--json").stdout)["stages"][1]
        for flags in (
            ["--student-loss", "square-distillation", "--gain", 0.5],
            ["--student-loss", "((h+1)/2 - (h_teacher/2+1)/2)**2"],
            ["--student-loss", "pseudo-labels"],
            ["--student-loss", "softplus(h) - h*step(h_teacher)"],
        )
    ]
    assert stages[0]["test_error"] == pytest.approx(stages[1]["test_error"], rel=1e-7)
    assert stages[2]["test_error"] == pytest.approx(stages[3]["test_error"], rel=1e-7)


@pytest.mark.parametrize("command", [solve_command, simulate_command])
def test_alpha_is_required(command) -> None:
    assert_one_line_error(run(command), "--alpha")


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--inputs", "1"], "--inputs"),
        (["--runs", "0"], "--runs"),
        (["--seed", "-1"], "--seed"),
        (["--jobs", "0"], "--jobs"),
        (["--alpha", "0.02", "--inputs", "20"], "--inputs"),
        (["--eta", "0.001", "--inputs", "20"], "--eta"),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_simulation_flag_is_named_in_one_line(arguments: list[str], flag: str) -> None:
    alpha = [] if "--alpha" in arguments else ["--alpha", "1"]
    result = run(simulate_command, *alpha, *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert flag in result.stderr


@pytest.mark.parametrize("rtol", ["0", "2", "nan"])
def test_bad_tolerance(rtol: str) -> None:
    assert_one_line_error(run(solve_command, "--alpha", 1, "--rtol", rtol), "--rtol")


def test_help_explains_symbols() -> None:
    for command in (solve_command, simulate_command):
        result = run(command, "--help")
        assert result.exit_code == 0
        for word in ("alpha = M/N", "Noise variance Delta", "Temperature T", "Example"):
            assert word in result.stdout


def test_json_of_one_point() -> None:
    result = run(solve_command, "--alpha", 2, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["converged"] is True
    assert document["residual"] < 1e-9
    assert {"iterations", "quadrature_error", "overlap", "response"} <= document.keys()
    assert [stage["name"] for stage in document["stages"]] == ["teacher", "student"]
    names = observables_of(GaussianMixture(1.0))
    keys = {*names, *(f"{name}_quadrature_error" for name in names)}
    assert all(keys <= stage.keys() for stage in document["stages"])
    assert document["parameters"]["student.ridge"] == 1e-5
    direct = solve(*_default_problem(2.0))
    assert document["stages"][1]["test_error"] == pytest.approx(direct[1].test_error, abs=1e-9)


def _default_problem(alpha: float):
    stages = [Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)]
    return GaussianMixture(alpha=alpha, rho=0.2, delta=1.0), stages


def test_table_has_all_observables_and_order_parameters() -> None:
    result = run(solve_command, "--alpha", 2)
    assert result.exit_code == 0
    assert "0.162072" in result.stdout  # test error of the teacher, to six digits
    for word in ("teacher", "student", "test_error", "overlap Q", "response V", "converged: true"):
        assert word in result.stdout


def test_single_and_formula() -> None:
    named = json.loads(run(solve_command, "--alpha", 1, "--single", "--json").stdout)
    formula = json.loads(
        run(solve_command, "--alpha", 1, "--single", "--teacher-loss", "log(1+exp(-s*h))", "--json").stdout
    )
    assert len(named["stages"]) == 1
    assert formula["stages"][0]["test_error"] == pytest.approx(named["stages"][0]["test_error"], abs=1e-8)


def test_output_goes_to_a_file(tmp_path) -> None:
    path = tmp_path / "new" / "point.json"
    result = run(solve_command, "--alpha", 1, "--json", "--output", path)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert json.loads(path.read_text())["converged"] is True
    assert [entry.name for entry in path.parent.iterdir()] == ["point.json"]


def test_unwritable_output_fails_before_computing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("numerics.cli.solve.solve", _must_not_run)
    monkeypatch.setattr("numerics.simulation.run.simulate", _must_not_run)
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "out.json", tmp_path):
        for command in (solve_command, simulate_command):
            assert_one_line_error(run(command, "--alpha", 1, "--output", target), "--output")


def _must_not_run(*arguments, **options):
    raise AssertionError("computed before checking the output")


def test_not_converged_is_printed_with_exit_code_1(monkeypatch) -> None:
    monkeypatch.setattr("numerics.cli.solve.solve", partial(solve, max_iterations=1))
    result = run(solve_command, "--alpha", 1.7, "--teacher-ridge", 1e-4, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["converged"] is False
    assert document["stages"][0]["test_error"] is None
    assert result.stderr.startswith("not converged: ")
    assert "converged: false" in run(solve_command, "--alpha", 1.7, "--teacher-ridge", 1e-4).stdout


def test_interrupt_has_exit_code_130(monkeypatch) -> None:
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("numerics.cli.solve.solve", interrupted)
    assert run(solve_command, "--alpha", 1).exit_code == 130


def test_simulation_beside_theory() -> None:
    # N=200, 12 runs, seed 3; the bound on |z| allows for the finite N.
    arguments = ("--alpha", 2, "--inputs", 200, "--runs", 12, "--seed", 3)
    result = run(simulate_command, *arguments, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["simulation"]["n_runs"] == 12
    assert document["theory"]["converged"] is True
    teacher, student = document["comparison"]
    for stage in (teacher, student):
        assert abs(stage["test_error"]["z"]) < 5
        assert stage["test_error"]["standard_error"] > 0
    assert "teacher_agreement" in student
    assert "teacher_agreement" not in teacher

    shown = run(simulate_command, *arguments)
    assert shown.exit_code == 0
    assert "std. error" in shown.stdout
    assert "theory" in shown.stdout


def test_simulation_without_theory(monkeypatch) -> None:
    monkeypatch.setattr("numerics.cli.solve.solve", _must_not_run)
    arguments = ("--alpha", 1, "--inputs", 60, "--runs", 2, "--no-theory")
    assert json.loads(run(simulate_command, *arguments, "--json").stdout)["theory"] is None
    assert "theory" not in run(simulate_command, *arguments).stdout


def test_simulation_that_does_not_converge(monkeypatch) -> None:
    def unfinished(*arguments, **options):
        return replace(simulate(*arguments, **options), converged=False, message="run 0, teacher: stopped")

    monkeypatch.setattr("numerics.simulation.run.simulate", unfinished)
    result = run(simulate_command, "--alpha", 1, "--inputs", 60, "--runs", 2, "--no-theory")
    assert result.exit_code == 1
    assert "run 0, teacher: stopped" in result.stderr
    assert "converged: false" in result.stdout


def test_a_first_solution_does_not_wait_for_other_modules() -> None:
    code = (
        "import sys\n"
        "from numerics import Estimator, GaussianMixture, solve\n"
        "from theory.losses import CrossEntropy\n"
        "solve(GaussianMixture(1.0), Estimator(CrossEntropy(), 0.1))\n"
        "slow = ('scipy.optimize', 'scipy.integrate', 'scipy.stats', 'xarray', 'pandas', 'matplotlib', 'tqdm',\n"
        "        'threadpoolctl', 'numerics.simulation', 'numerics.sweeps.run')\n"
        "print([name for name in slow if name in sys.modules])\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_public_names_are_listed_and_importable() -> None:
    import numerics

    shown = {name for name in dir(numerics) if not name.startswith("__")}
    assert shown == set(numerics.__all__)
    assert "__version__" in dir(numerics)
    for name in numerics.__all__:
        assert getattr(numerics, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        numerics.no_such_name  # noqa: B018


def test_modules_run_and_do_not_hide_the_functions() -> None:
    code = (
        "import numerics, numerics.solve, numerics.simulate\n"
        "from numerics import simulate, solve\n"
        "from numerics.simulation.run import simulate as second\n"
        "from numerics.solver import solve as first\n"
        "assert solve is first is numerics.solve and simulate is second is numerics.simulate\n"
    )
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], check=True)
    for module in ("numerics.solve", "numerics.simulate"):
        arguments = [sys.executable, "-W", "error::RuntimeWarning", "-m", module, "--alpha", "-1"]
        finished = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert finished.returncode == 2
        assert finished.stderr.count("\n") == 1
        assert "--alpha" in finished.stderr
