"""Command lines: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
from click.testing import CliRunner

from numerics import OBSERVABLES, GaussianMixture, commands
from numerics.commands import simulate_command, solve_command
from numerics.simulation import simulate
from numerics.solver import solve


def run(command, *arguments: str):
    """Run a command in this process."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def assert_one_line_error(result, *words: str) -> None:
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


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
    (["--single", "--eta", "0.4"], "--eta"),
    (["--teacher-loss", "square", "--student-loss", "square", "--smoothing", "0.1"], "--smoothing"),
    (["--tempreature", "2"], "--tempreature"),
]


@pytest.mark.parametrize(("arguments", "flag"), BAD_MODEL_FLAGS, ids=lambda value: " ".join(value))
def test_bad_model_flag_is_named_in_one_line(arguments: list[str], flag: str) -> None:
    alpha = [] if "--alpha" in arguments else ["--alpha", "1"]
    assert_one_line_error(run(solve_command, *alpha, *arguments), flag)


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
    assert all(OBSERVABLES.keys() <= stage.keys() for stage in document["stages"])
    assert document["parameters"]["student.ridge"] == 1e-5
    direct = solve(*_default_problem(2.0))
    assert document["stages"][1]["test_error"] == pytest.approx(direct[1].test_error, abs=1e-9)


def _default_problem(alpha: float):
    from numerics import Estimator
    from theory.losses import CrossEntropy, Distillation

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
    monkeypatch.setattr(commands, "solve", _must_not_run)
    monkeypatch.setattr(commands, "simulate", _must_not_run)
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "out.json", tmp_path):
        for command in (solve_command, simulate_command):
            assert_one_line_error(run(command, "--alpha", 1, "--output", target), "--output")


def _must_not_run(*arguments, **options):
    raise AssertionError("computed before checking the output")


def test_not_converged_is_printed_with_exit_code_1(monkeypatch) -> None:
    monkeypatch.setattr(commands, "solve", partial(solve, max_iterations=1))
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

    monkeypatch.setattr(commands, "solve", interrupted)
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
    monkeypatch.setattr(commands, "solve", _must_not_run)
    arguments = ("--alpha", 1, "--inputs", 60, "--runs", 2, "--no-theory")
    assert json.loads(run(simulate_command, *arguments, "--json").stdout)["theory"] is None
    assert "theory" not in run(simulate_command, *arguments).stdout


def test_simulation_that_does_not_converge(monkeypatch) -> None:
    def unfinished(*arguments, **options):
        return replace(simulate(*arguments, **options), converged=False, message="run 0, teacher: stopped")

    monkeypatch.setattr(commands, "simulate", unfinished)
    result = run(simulate_command, "--alpha", 1, "--inputs", 60, "--runs", 2, "--no-theory")
    assert result.exit_code == 1
    assert "run 0, teacher: stopped" in result.stderr
    assert "converged: false" in result.stdout


def test_modules_run_and_do_not_hide_the_functions() -> None:
    code = (
        "import numerics, numerics.solve, numerics.simulate\n"
        "from numerics import simulate, solve\n"
        "from numerics.simulation import simulate as second\n"
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
