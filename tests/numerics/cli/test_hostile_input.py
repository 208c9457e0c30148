"""Malformed command lines, files and Python calls: one line that names the culprit, exit code 2, and nothing left behind.

Flags out of range and entries of a problem are in ``test_commands.py``, axes in ``test_phase_diagram.py``; here is what nobody
would write on purpose.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from command_line import assert_one_line_error, run

import figures.__main__
import numerics
from numerics import (
    BayesOptimal,
    Chain,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    ParameterError,
    max_margin,
    separability_threshold,
    simulate,
    solve,
)
from numerics.cli.simulate import simulate_command
from numerics.cli.solve import solve_command
from numerics.phase_diagram import main as phase_diagram_command
from numerics.problem import read_problem
from numerics.random_box import main as random_box_command
from theory.__main__ import run as run_theory
from theory.losses import CrossEntropy, Distillation, Loss, PseudoLabels, SquareDistillation
from theory.terminal import LONGEST_MESSAGE

COMMANDS: dict[str, tuple[click.Command, tuple[str, ...]]] = {
    "solve": (solve_command, ("--alpha", "1")),
    "simulate": (simulate_command, ("--alpha", "1", "--inputs", "20", "--runs", "1")),
    "phase_diagram": (phase_diagram_command, ("--x", "alpha=1:2:3")),
    "random_box": (random_box_command, ("--points", "3")),
    "figures": (figures.__main__.main, ("saglietti-1",)),
}

STAGE = '{"loss": "cross-entropy", "ridge": 0.1}'
PROBLEM = f'{{"data": {{"alpha": 2}}, "chain": [{STAGE}]}}'


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Input is refused before the work begins."""

    def must_not_run(*arguments: object, **options: object) -> None:
        raise AssertionError("computed before checking the input")

    for name in (
        "numerics.simulation.run.train",
        "numerics.phase_diagram.evaluate",
        "numerics.cli.simulate.compare",
        "figures.__main__.finish",
    ):
        monkeypatch.setattr(name, must_not_run)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one file and one folder, which a test must leave as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("something else")
    (tmp_path / "folder").mkdir()
    return tmp_path


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(folder: Path, command: click.Command, *arguments: object, words: tuple[str, ...] = ()) -> None:
    """One line, code 2, and the folder is what it was."""
    assert_one_line_error(run(command, *arguments), *words)
    assert contents(folder) == ["file", "folder"]
    assert (folder / "file").read_text() == "something else"


# Command lines.


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-flag"],
        ["--no-such-flag=3"],
        ["-x"],
        ["surplus"],
        ["\x00"],
        ["--", "surplus"],
        ["", ""],
        ["\N{SNOWMAN}\n\N{LINE SEPARATOR}--seed"],
        ["--seed", "1.5", "--points", "1.5", "--rtol", "tiny"],
        ["x" * 100_000],
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_nonsense_is_refused(folder: Path, name: str, arguments: list[str]) -> None:
    command, given = COMMANDS[name]
    assert_refused(folder, command, *given, *arguments)


def test_long_messages_are_cut(folder: Path) -> None:
    result = run(solve_command, "--alpha", 1, "--student-loss", "h+" * 50_000)
    assert_one_line_error(result, "--student-loss")
    assert len(result.stderr) < LONGEST_MESSAGE + 30


@pytest.mark.parametrize(
    "value", ["", " ", "1,5", "0x10", "1e400", "-inf", "1_", "--", "1 2", "\n", "one", "1+1", "1j"]
)
@pytest.mark.parametrize("flag", ["--alpha", "--delta", "--teacher-ridge", "--temperature"])
def test_numbers_that_are_none(folder: Path, flag: str, value: str) -> None:
    assert_refused(folder, solve_command, "--alpha", 1, flag, value, "--output", "new/point.json", words=(flag,))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--points", "0"],
        ["--points", "1e3"],
        ["--points"],
        ["--points", "-5"],
        ["--seed", "-1"],
        ["--seed", "0x1"],
        ["--json", "yes"],
    ],
    ids=" ".join,
)
def test_random_box(folder: Path, arguments: list[str]) -> None:
    assert_refused(folder, random_box_command, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-figure"],
        [""],
        ["["],
        ["saglietti-1", "no-such-figure"],
        ["saglietti-1", "--simulate", "1", "2"],
        ["saglietti-1", "--simulate", "10"],
        ["saglietti-1", "--simulate", "-1", "1"],
        ["saglietti-1", "--seed", "-1"],
        ["saglietti-1", "--jobs", "0"],
        ["saglietti-1", "--output", "file"],
        ["--all", "--paper-effort", "--simulate", "10", "1"],
    ],
    ids=" ".join,
)
def test_figures(folder: Path, arguments: list[str]) -> None:
    output = [] if "--output" in arguments else ["--output", "new"]
    assert_refused(folder, figures.__main__.main, *arguments, *output)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--stages", "7"],
        ["--stages", "two"],
        ["--stages"],
        ["surplus"],
        ["--loss", " "],
        ["--loss", "("],
        ["--loss", "h\n**3"],
        ["--loss", "nan*h**2"],
        ["--loss", "__import__('os').getcwd()"],
        ["--loss", "h; h"],
        ["--loss", "lambda: h"],
        ["--loss", "[h]"],
        ["--latex=3"],
        ["-p", ""],
        ["-p", "=3"],
        ["-p", "mixing="],
        ["-p", "mixing=nan"],
        ["-p", "mixing=1e400"],
        ["-p", "unknown=1"],
    ],
    ids=ascii,
)
def test_theory(folder: Path, capsys: pytest.CaptureFixture, arguments: list[str]) -> None:
    assert run_theory(arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert contents(folder) == ["file", "folder"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["numerics.solve", "--alpha", "1", "--rtol", "2", "--output", "new/point"],
        ["theory", "--stages", "0"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_in_a_process_of_its_own(folder: Path, arguments: list[str]) -> None:
    root = Path(numerics.__file__).parents[1]
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(root)!r}); sys.argv[:] = sys.argv[1:]; "
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=False)"
    )
    finished = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert contents(folder) == ["file", "folder"]


# Outputs.


@pytest.mark.parametrize("name", ["solve", "simulate", "phase_diagram"])
@pytest.mark.parametrize("output", ["file/point", "file/deep/point", "/proc/none/point", "/dev/full/point", "x" * 300])
def test_outputs_that_cannot_be_written(folder: Path, name: str, output: str) -> None:
    command, given = COMMANDS[name]
    assert_refused(folder, command, *given, "--output", output, words=("--output", "cannot write"))


@pytest.mark.parametrize("output", ["folder", "folder/", ".", "..", ""])
def test_outputs_that_are_folders(folder: Path, output: str) -> None:
    for name in ("solve", "simulate"):
        command, given = COMMANDS[name]
        assert_refused(folder, command, *given, "--output", output, words=("--output",))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("solve", ["--rtol", "2"]),
        ("solve", ["--rtol", "nan"]),
        ("solve", ["--chi", "2"]),
        ("solve", ["--single", "--teacher-loss", "exp(-s*h)", "--teacher-ridge", "0"]),
        ("simulate", ["--student-ridge", "0"]),
        ("simulate", ["--alpha", "0.01"]),
        ("simulate", ["--eta", "0.001"]),
        ("simulate", ["--label-noise", "-1"]),
        ("phase_diagram", ["--quantity", "none"]),
        ("phase_diagram", ["--simulate", "1", "1"]),
        ("phase_diagram", ["--y", "alpha=1:2:3"]),
        ("phase_diagram", ["--problem", "file"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_no_folder_is_made_for_what_is_refused(folder: Path, name: str, arguments: list[str]) -> None:
    command, given = COMMANDS[name]
    assert_refused(folder, command, *given, *arguments, "--output", "new/deep/result")


def test_too_little_memory_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 7 EiB")

    monkeypatch.setattr("numerics.simulation.run.simulate", exhausted)
    command, given = COMMANDS["simulate"]
    result = run(command, *given, "--output", "new/runs")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: not enough memory: Unable to allocate 7 EiB\n"
    assert contents(folder) == ["file", "folder"]


# Files.


def read(text: str | bytes) -> Result:
    """``numerics.solve`` of a problem on standard input."""
    return CliRunner().invoke(solve_command, ["--problem", "-", "--output", "new/point"], input=text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "null",
        "3",
        "NaN",
        '"text"',
        PROBLEM[:-1],
        PROBLEM[:20],
        PROBLEM + "}",
        PROBLEM * 2,
        PROBLEM.replace(":", "="),
        PROBLEM.replace('"', "'"),
        "\ufeff" + PROBLEM,
        PROBLEM + "\x00",
        PROBLEM.encode("utf-16"),
        bytes(range(256)),
        b"\x89PNG\r\n\x1a\n" + bytes(1000),
        b"PK\x03\x04" + bytes(range(255, 0, -1)) * 20,
        "\ud800".encode("utf-8", "surrogatepass"),
        *("[" * depth + "]" * depth for depth in (400, 900, 990, 3000, 200_000)),
        *('{"data":' * depth + "1" + "}" * depth for depth in (400, 900, 990, 3000)),
        *(f'{{"data": {{"alpha": {"[" * depth + "]" * depth}}}, "chain": []}}' for depth in (400, 900, 980, 3000)),
        '{"data": "' + "x" * 1_000_000 + '", "chain": []}',
        '{"data": {"alpha": 1}, "chain": [' + "5," * 100_000 + "5]}",
    ],
    ids=lambda text: ascii(text[:16]),
)
def test_files_that_are_no_problem(folder: Path, text: str | bytes) -> None:
    result = read(text)
    assert_one_line_error(result, "--problem")
    assert len(result.stderr) < LONGEST_MESSAGE + 30
    assert contents(folder) == ["file", "folder"]


def test_places_that_hold_no_problem(folder: Path) -> None:
    for place in ("folder", "none", "file", "file/none", "/dev/null", "/proc/self/mem", ""):
        for name in ("solve", "simulate", "phase_diagram"):
            command, given = COMMANDS[name]
            given = [item for item in given if item not in ("--alpha", "1")] if name == "simulate" else given
            assert_refused(folder, command, *given, "--problem", place, "--output", "new/x", words=("--problem",))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"alpha": 2', '"alpha": 2, "alpha": 3', ["'alpha'", "twice"]),
        ('"data": {"alpha": 2}', '"data": {"alpha": 2}, "data": {"alpha": 2}', ["'data'", "twice"]),
        ('"ridge": 0.1', '"ridge": 0.1, "ridge": 0.1', ["'ridge'", "twice"]),
        ('"alpha": 2', '"alpha": 2, "": 1', ["data", "''"]),
        ('"alpha": 2', '"alpha": 2, "__class__": 1', ["data", "__class__"]),
        ('"ridge": 0.1', '"ridge": 0.1, "stage": null', ["chain[0].stage"]),
        ('"ridge": 0.1', '"ridge": 0.1, "stage": {}', ["chain[0].stage"]),
        ('"ridge": 0.1', '"ridge": 0.1, "stage": ["estimator"]', ["chain[0].stage"]),
        ('"ridge": 0.1', '"ridge": 0.1, "name": "a\\nb"', ["chain[0]: name"]),
        ('"ridge": 0.1', '"ridge": 0.1, "name": "\\ud800"', ["chain[0]: name"]),
        ('"ridge": 0.1', '"ridge": 0.1, "name": "training"', ["'training'"]),
        ('"ridge": 0.1', '"ridge": 0.1, "sets": {}', ["chain[0]: sets"]),
        ('"ridge": 0.1', '"ridge": 0.1, "sets": null', ["chain[0]: sets"]),
        ('"ridge": 0.1', '"ridge": 0.1, "mask_overlap": 0.5', ["mask_overlap"]),
        ('"cross-entropy"', "null", ["chain[0].loss"]),
        ('"cross-entropy"', "[]", ["chain[0].loss"]),
        ('"cross-entropy"', '""', ["chain[0].loss"]),
        ('"cross-entropy"', '"("', ["chain[0].loss"]),
        ('"cross-entropy"', '"' + "(" * 5000 + '"', ["chain[0].loss"]),
        ('"cross-entropy"', '"' + "9" * 5000 + '*h**2"', ["chain[0].loss"]),
        ('"cross-entropy"', "\"__import__('os')\"", ["chain[0].loss"]),
        ('"cross-entropy"', '"import os"', ["chain[0].loss"]),
        ('"cross-entropy"', '"exit()"', ["chain[0].loss"]),
        ('"cross-entropy"', '"h.subs"', ["chain[0].loss"]),
        ('"cross-entropy"', '"nan*h**2"', ["chain[0].loss"]),
        ('"cross-entropy"', '"oo*h**2"', ["chain[0].loss"]),
        ('"cross-entropy"', '"I*h**2"', ["chain[0].loss"]),
        ('"cross-entropy"', '"log(h)"', ["chain[0].loss"]),
        ('"cross-entropy"', '"h**2/(1-y)"', ["chain[0].loss", "not finite at y=1"]),
        ('"cross-entropy"', '"9**9**9*h**2"', ["chain[0].loss", "digits"]),
        ('"cross-entropy"', '"h**2/2 - 4e-6*exp(-((h - 50)/0.001)**2)"', ["chain[0].loss", "not convex", "h=49.99"]),
        ('"cross-entropy"', '{"formula": "ridge*h**2", "parameters": {"ridge": 1}}', ["chain[0].loss", "'ridge'"]),
        ('"cross-entropy"', '{"formula": "h**2", "parameters": {"a": 1}}', ["chain[0].loss", "no parameter 'a'"]),
        ('"cross-entropy"', '"a*h**2"', ["chain[0].loss", "a"]),
        ('"cross-entropy"', '{"formula": "a*h**2", "parameters": {"a": null}}', ["chain[0].loss", "a"]),
        ('"cross-entropy"', '{"formula": "a*h**2", "parameters": {"a": NaN}}', ["chain[0].loss", "a"]),
        ('"cross-entropy"', '{"formula": "a*h**2", "parameters": {"h": 1}}', ["chain[0].loss", "'h'"]),
        ('"cross-entropy"', '{"formula": "a*h**2", "parameters": {"": 1}}', ["chain[0].loss"]),
        ('"cross-entropy"', '{"formula": "h**2", "teacher": true}', ["chain[0].loss", "teacher"]),
        ('"cross-entropy"', '{"formula": "h**2", "teacher": "x"}', ["chain[0].loss", "teacher"]),
        ('"cross-entropy"', '{"formula": "h**2", "name": "x"}', ["chain[0].loss", "'name'"]),
        ('"cross-entropy"', '{"name": ["cross-entropy"]}', ["chain[0].loss"]),
        ('"cross-entropy"', '{"name": "cross-entropy", "smoothing": null}', ["chain[0].loss", "smoothing"]),
        ('"cross-entropy"', '{"name": "cross-entropy", "smoothing": [0.1]}', ["chain[0].loss", "smoothing"]),
        (STAGE, '{"stage": "frozen", "magnetization": 1e200, "norm_squared": 1e300}', ["chain[0]", "norm_squared"]),
        (STAGE, '{"stage": "bayes-optimal", "ridge": 1}', ["chain[0]", "'ridge'"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_entries_that_are_wrong(folder: Path, old: str, new: str, words: list[str]) -> None:
    assert old in PROBLEM
    assert_one_line_error(read(PROBLEM.replace(old, new)), "--problem", *words)
    assert contents(folder) == ["file", "folder"]


HUGE = 10**400  # an integer that no double holds
WRONG_IN_JSON = [None, True, "1", [1], {}, HUGE, math.nan, math.inf]


@pytest.mark.parametrize("value", WRONG_IN_JSON, ids=lambda value: str(value)[:8])
@pytest.mark.parametrize(
    "where",
    [
        "data.alpha",
        "data.rho",
        "data.delta",
        "data.label_noise",
        "chain.ridge",
        "chain.eta",
        "chain.bias",
        "chain.mask_overlap",
    ],
)
def test_numbers_in_files(where: str, value: object) -> None:
    part, key = where.split(".")
    problem = json.loads(PROBLEM)
    (problem["data"] if part == "data" else problem["chain"][0])[key] = value
    if value is None and key in ("bias", "mask_overlap"):
        read_problem(json.dumps(problem))
        return
    with pytest.raises(ParameterError, match=key):
        read_problem(json.dumps(problem))


def test_a_number_of_many_digits_is_no_number() -> None:
    with pytest.raises(ParameterError, match="not JSON"):
        read_problem(PROBLEM.replace("2", "2" * 10_000))


# Python calls.

DATA = GaussianMixture(1.0)
TEACHER = Estimator(CrossEntropy(), 0.1)

NO_NUMBERS = [
    None, True, np.True_, "1", "", b"1", [], [1.0], (1.0,), {}, {1.0}, math.nan, math.inf, -math.inf, HUGE, -HUGE, 1j,
    np.array("1"), np.array(True), np.array([1.0]), Decimal(1), object, CrossEntropy(), np.float64("nan"),
]  # fmt: skip
"""What is no finite real number."""

NUMBERS: dict[str, tuple[str, Callable[[object], object], tuple[object, ...]]] = {
    "GaussianMixture.alpha": ("alpha", lambda x: GaussianMixture(x), (0, -1)),
    "GaussianMixture.rho": ("rho", lambda x: GaussianMixture(1.0, rho=x), (0, 1, -0.1, 2)),
    "GaussianMixture.delta": ("delta", lambda x: GaussianMixture(1.0, delta=x), (0, -1)),
    "GaussianMixture.label_noise": ("label_noise", lambda x: GaussianMixture(1.0, label_noise=x), (-0.1, 0.51, 1)),
    "DataSet.alpha": ("alpha", lambda x: DataSet("more", x), (0, -1)),
    "DataSet.label_noise": ("label_noise", lambda x: DataSet("more", 1.0, x), (-0.1, 0.51)),
    "Estimator.ridge": ("ridge", lambda x: Estimator(CrossEntropy(), x), (-1e-300, -1)),
    "Estimator.eta": ("eta", lambda x: Estimator(CrossEntropy(), 0.1, x), (0, -0.1, 1.1)),
    "Estimator.bias": ("bias", lambda x: Estimator(CrossEntropy(), 0.1, bias=x), ()),
    "Estimator.mask_overlap": ("mask_overlap", lambda x: Estimator(CrossEntropy(), 0.1, mask_overlap=x), (-0.1, 1.1)),
    "Frozen.magnetization": ("magnetization", lambda x: Frozen(x, 1.0), ()),
    "Frozen.norm_squared": ("norm_squared", lambda x: Frozen(0.5, x), (0, -1, 0.2)),
    "Frozen.bias": ("bias", lambda x: Frozen(0.5, 1.0, x), ()),
    "separability_threshold.label_noise": (
        "label_noise", lambda x: separability_threshold(0.2, 1.0, label_noise=x), (-0.1, 0.51),
    ),
    "max_margin.label_noise": ("label_noise", lambda x: max_margin(1.0, 0.2, 1.0, label_noise=x), (-0.1, 0.51)),
    "Hebbian.ridge": ("ridge", lambda x: Hebbian(x), (0, -1)),
    "Hebbian.bias": ("bias", lambda x: Hebbian(bias=x), ()),
    "Hebbian.eta": ("eta", lambda x: Hebbian(eta=x), (0, 2)),
    "Hebbian.mask_overlap": ("mask_overlap", lambda x: Hebbian(mask_overlap=x), (-1, 2)),
    "solve.rtol": ("rtol", lambda x: solve(DATA, TEACHER, rtol=x), (0, -1, 1, 1e-20)),
    "solve.max_iterations": ("max_iterations", lambda x: solve(DATA, TEACHER, max_iterations=x), (0, -1, 1.0, 1.5)),
    "simulate.n_inputs": ("n_inputs", lambda x: simulate(DATA, TEACHER, x, 1), (0, 1, -5, 20.0)),
    "simulate.n_runs": ("n_runs", lambda x: simulate(DATA, TEACHER, 20, x), (0, -1, 2.0)),
    "simulate.seed": ("seed", lambda x: simulate(DATA, TEACHER, 20, 1, x), (-1, 0.0)),
    "simulate.n_jobs": ("n_jobs", lambda x: simulate(DATA, TEACHER, 20, 1, n_jobs=x), (0, -1, 1.0)),
    "simulate.gradient_tolerance": (
        "gradient_tolerance", lambda x: simulate(DATA, TEACHER, 20, 1, gradient_tolerance=x), (0, -1, 1),
    ),
}  # fmt: skip
"""Parameters that are numbers: their name in messages, a call with them, and what is out of range."""

OPTIONAL = {"Estimator.bias", "Estimator.mask_overlap", "Hebbian.ridge", "Hebbian.mask_overlap", "solve.rtol",
            "solve.max_iterations"}  # fmt: skip
"""Those that may be None."""

COUNTS = {"simulate.n_inputs", "simulate.n_runs", "simulate.seed", "simulate.n_jobs", "solve.max_iterations"}
"""Integers of any size."""


@pytest.mark.parametrize("parameter", NUMBERS)
def test_what_is_no_number_in_range_is_refused(parameter: str) -> None:
    name, call, outside = NUMBERS[parameter]
    for value in (*NO_NUMBERS, *outside):
        if (value is None and parameter in OPTIONAL) or (value is HUGE and parameter in COUNTS):
            continue
        with pytest.raises(ParameterError, match=name):
            call(value)


OTHERS: dict[str, tuple[str, Callable[[object], object], tuple[object, ...]]] = {
    "GaussianMixture.further": (
        "further",
        lambda x: GaussianMixture(1.0, further=x),
        (None, 3, "more", {"more": 1}, [None], [[]]),
    ),
    "DataSet.name": ("name", lambda x: DataSet(x, 1.0), (None, True, 3, "", "a b", "1a", "a.b", b"a", [], "a\n")),
    "Estimator.loss": ("loss", lambda x: Estimator(x, 0.1), (None, True, 3, "cross-entropy", CrossEntropy, [], {})),
    "Estimator.name": ("name", lambda x: Estimator(CrossEntropy(), 0.1, name=x), (True, 3, "", "a b", b"a", [], "a-b")),
    "Estimator.sets": (
        "sets",
        lambda x: Estimator(CrossEntropy(), 0.1, sets=x),
        (None, True, 3, [], [3], {}, {"a"}, [None]),
    ),
    "Frozen.name": ("name", lambda x: Frozen(0.5, 1.0, name=x), (True, 3, "", [])),
    "Hebbian.name": ("name", lambda x: Hebbian(name=x), (True, 3, "", [])),
    "Hebbian.sets": ("sets", lambda x: Hebbian(sets=x), (None, True, 3, [], [3], {})),
    "BayesOptimal.name": ("name", lambda x: BayesOptimal(name=x), (True, 3, "", [])),
    "BayesOptimal.sets": ("sets", lambda x: BayesOptimal(sets=x), (None, True, 3, [], [3], {})),
    "Chain.stages": (
        "stage",
        Chain,
        (None, True, 3, "ab", [], (), [None], [CrossEntropy()], [[TEACHER]], {"a": TEACHER}),
    ),
    "Chain.of": (
        "stage",
        Chain.of,
        (None, True, 3, "ab", [], [None], CrossEntropy(), [CrossEntropy()], [[TEACHER]], DATA),
    ),
    "solve.data": ("data", lambda x: solve(x, TEACHER), (None, True, 1.0, "data", [], TEACHER, GaussianMixture)),
    "solve.chain": ("stage", lambda x: solve(DATA, x), (None, True, 3, "ab", [], [None], CrossEntropy(), DATA)),
    "solve.start": ("start", lambda x: solve(DATA, TEACHER, start=x), (True, 3, "start", [], TEACHER, math.nan)),
    "simulate.data": ("data", lambda x: simulate(x, TEACHER), (None, True, 1.0, "data", [], TEACHER)),
    "simulate.chain": ("stage", lambda x: simulate(DATA, x), (None, True, 3, "ab", [], [None], CrossEntropy(), DATA)),
}
"""The other parameters."""


@pytest.mark.parametrize("parameter", OTHERS)
def test_what_is_of_another_kind_is_refused(parameter: str) -> None:
    name, call, wrong = OTHERS[parameter]
    for value in wrong:
        with pytest.raises(ParameterError, match=name):
            call(value)


LOSSES: dict[str, tuple[str, Callable[[object], object], tuple[object, ...]]] = {
    "CrossEntropy.smoothing": ("smoothing", CrossEntropy, (-0.1, 0.6)),
    "Distillation.mixing": ("mixing", Distillation, (-0.1, 1.1)),
    "Distillation.temperature": ("temperature", lambda x: Distillation(temperature=x), (0, -1)),
    "Distillation.smoothing": ("smoothing", lambda x: Distillation(smoothing=x), (-0.1, 0.6)),
    "Distillation.with_parameters": ("mixing", lambda x: Distillation().with_parameters(mixing=x), (-0.1, 1.1)),
    "SquareDistillation.mixing": ("mixing", SquareDistillation, ()),
    "SquareDistillation.gain": ("gain", lambda x: SquareDistillation(gain=x), ()),
    "PseudoLabels.mixing": ("mixing", PseudoLabels, (-0.1, 1.1)),
    "PseudoLabels.smoothing": ("smoothing", lambda x: PseudoLabels(smoothing=x), (-0.1, 0.6)),
    "formula": ("a", lambda x: Loss.from_expression("a*h**2", {"a": x}), (-1,)),
}
NO_PARAMETERS = [None, "", "one", b"x", [], [1.0], {}, math.nan, math.inf, -math.inf, 1j, object, CrossEntropy()]


@pytest.mark.parametrize("parameter", LOSSES)
def test_parameters_of_losses(parameter: str) -> None:
    name, call, outside = LOSSES[parameter]
    for value in (*NO_PARAMETERS, *outside):
        with pytest.raises(ValueError, match=name):
            call(value)


@pytest.mark.parametrize("kind", [Distillation, SquareDistillation, PseudoLabels])
def test_teachers_of_losses(kind: type[Loss]) -> None:
    for teacher in (0, -1, True, 1.0, "1", (), [1], (1, 1), (1, 0), (1, "2"), {1: 2}, math.nan):
        with pytest.raises(ValueError, match="teacher"):
            kind(teacher=teacher)
