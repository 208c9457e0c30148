"""K classes on the command lines, in problem files and in sweeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray
from command_line import assert_one_line_error, run

from numerics import (
    Chain,
    ClassMixture,
    ClassSet,
    Estimator,
    ParameterError,
    equal_overlaps,
    orthogonal_means,
    similar_pairs,
    solve,
    sweep,
)
from numerics.cli.simulate import simulate_command
from numerics.cli.solve import solve_command
from numerics.cli.sweep import sweep_command
from numerics.optimize import derivatives
from numerics.phase_diagram import main as phase_diagram_command
from numerics.problem import read_problem, write_problem
from theory.losses import CrossEntropy, Distillation

CHAIN = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 0.1, 0.5)])
RIDGE = ("--student-ridge", 0.1)


def test_flags_are_the_same_problem(tmp_path) -> None:
    expected = solve(ClassMixture(2.0, gram=similar_pairs(3, 0.6), delta=0.5), CHAIN)
    result = run(solve_command, "--classes", 3, "--similarity", 0.6, "--alpha", 2, "--delta", 0.5, *RIDGE, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == expected.to_dict()
    assert found["stages"][1]["test_error"] == pytest.approx(expected[1].test_error, rel=1e-14)
    file = tmp_path / "gram.txt"
    file.write_text("# twins and a third\n1 0.6 0\n0.6, 1, 0\n0 0 1\n")
    result = run(solve_command, "--gram", file, "--alpha", 2, "--delta", 0.5, *RIDGE, "--json")
    assert [s["test_error"] for s in json.loads(result.stdout)["stages"]] == pytest.approx(
        [stage.test_error for stage in expected], rel=1e-6
    )
    file.write_text(json.dumps(np.array(similar_pairs(3, 0.6)).tolist()))
    again = run(solve_command, "--gram", file, "--alpha", 2, "--delta", 0.5, *RIDGE, "--json")
    assert again.stdout == result.stdout
    text = run(solve_command, "--gram", file, "--weights", "0.5,0.3,0.2", "--alpha", 2, *RIDGE).stdout
    for words in ("Gaussian mixture of 3 classes", "weights: 0.5, 0.3, 0.2", "Gram matrix", "student says", "class 3"):
        assert words in text


def test_simulation_beside_theory() -> None:
    result = run(
        simulate_command, "--classes", 3, "--alpha", 2, *RIDGE, "--inputs", 60, "--runs", 6, "--jobs", 1, "--json"
    )
    assert result.exit_code == 0, result.stderr
    for stage in json.loads(result.stdout)["comparison"]:
        assert abs(stage["test_error"]["z"]) < 6  # a small N: that they are the same problem
        assert abs(stage["test_error"]["mean"] - stage["test_error"]["theory"]) < 0.05


def test_sweep_along_similarity(tmp_path) -> None:
    """The start of a point may have other symmetries than the point."""
    similarities = [0.0, 0.5, 0.9]
    data = ClassMixture(2.0, gram=similar_pairs(3, 0.2))
    found = sweep(data, CHAIN, {"alpha": [1.0, 2.0], "similarity": similarities}, ["test_error"], executor="serial")
    for k, s in enumerate(similarities):
        expected = [stage.test_error for stage in solve(ClassMixture(2.0, gram=similar_pairs(3, s)), CHAIN)]
        np.testing.assert_allclose(found.test_error[:, 1, k], expected, atol=3e-5)
    path = tmp_path / "classes.nc"
    arguments = (
        "--classes",
        3,
        "--over",
        "alpha=1,2",
        "--over",
        "similarity=0,0.5,0.9",
        *RIDGE,
        "--executor",
        "serial",
    )
    result = run(sweep_command, *arguments, "--observable", "test_error", "--output", path)
    assert result.exit_code == 0, result.stderr
    with xarray.open_dataset(path) as written:
        np.testing.assert_array_equal(written.test_error, found.test_error)
        assert read_problem(written.attrs["problem"])[0].classes_count == 3


def test_accuracy_of_a_sweep_is_that_of_its_points() -> None:
    data = ClassMixture(2.0, gram=orthogonal_means(3))
    found = sweep(data, CHAIN[0], {"alpha": [1.0, 2.0]}, ["test_error"], rtol=1e-7, executor="serial")
    assert found.attrs["rtol"] == 1e-7
    assert float(found.quadrature_error.max()) <= 1e-7


@pytest.mark.parametrize(
    "data",
    [
        ClassMixture(2.0, gram=similar_pairs(4, 0.6), delta=0.5),
        ClassMixture(2.0, gram=equal_overlaps(3, 0.2), label_noise=0.1),
        ClassMixture(1.0, [0.5, 0.3, 0.2], [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]], [1.0, 0.5, 2.0], test_weights=[0.2, 0.2, 0.6]),
        ClassMixture(
            1.0, confusion=[[0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], further=[ClassSet("transfer", 2.0, weights=[0.5, 0.5, 0])]
        ),
    ],
    ids=["pairs", "equal overlaps", "a matrix", "sets"],
)  # fmt: skip
def test_problem_files(data: ClassMixture) -> None:
    chain = Chain.of([CHAIN[0], Estimator(Distillation(), 0.1, sets="transfer")]) if data.further else CHAIN
    text = write_problem(data, chain)
    found, read = read_problem(text)
    assert (found, read) == (data, chain)
    assert write_problem(found, read) == text
    assert found.own_parameters == data.own_parameters


def test_a_picture(tmp_path) -> None:
    arguments = ("--classes", 3, *RIDGE, "--x", "alpha=1:4:3", "--output", tmp_path / "classes.svg")
    result = run(phase_diagram_command, *arguments)
    assert result.exit_code == 0, result.stderr
    with xarray.open_dataset(tmp_path / "classes.nc") as found:
        assert found.attrs["alpha_teacher_separability"] == pytest.approx(3.187008, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", 1], ["--classes"]),
        (["--classes", 3, "--rho", 0.2], ["--rho", "--weights"]),
        (["--classes", 3, "--rule", "sign"], ["--rule"]),
        (["--classes", 3, "--capacity", 1], ["--capacity"]),
        (["--classes", 3, "--student-features", "relu"], ["--student-features"]),
        (["--similarity", 0.2], ["--similarity", "--classes"]),
        (["--weights", "0.5,0.5"], ["--weights", "--classes"]),
        (["--classes", 3, "--similarity", 2], ["--similarity", "[-1, 1]"]),
        (["--classes", 3, "--weights", "0.5,x,0.1"], ["--weights", "commas"]),
        (["--classes", 3, "--weights", "0.5,0.5"], ["--weights", "3 classes"]),
        (["--classes", 3, "--weights", "0.5,0.5,0.5"], ["--weights", "sum to 1"]),
        (["--classes", 3, "--student-loss", "h**2"], ["--classes", "loss of two classes"]),
        (["--classes", 3, "--student-ridge", 0], ["--classes", "ridge"]),
        (["--gram", "nowhere"], ["--gram"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_bad_flags(arguments: list, words: list[str]) -> None:
    assert_one_line_error(run(solve_command, "--alpha", 2, *arguments), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [("1 2\n2 1\n", "positive semi-definite"), ("1 0 0\n0 1 0\n", "K x K"), ("1 a\na 1\n", "cannot read"), ("[1, ", "cannot read"),
     ("", "K x K")],
)  # fmt: skip
def test_bad_gram_files(text: str, words: str, tmp_path) -> None:
    file = tmp_path / "gram.txt"
    file.write_text(text)
    assert_one_line_error(run(solve_command, "--alpha", 2, "--gram", file), "--gram", words)
    assert_one_line_error(run(solve_command, "--alpha", 2, "--gram", file, "--classes", 3), "--classes", "--gram")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"alpha": 1, "gram": {"family": "ring", "classes": 3, "similarity": 0.1}}, "data.gram.family"),
        ({"alpha": 1, "gram": {"family": "similar_pairs", "classes": 3}}, "data.gram: similarity is missing"),
        ({"alpha": 1, "gram": [[1, 2], [2, 1]]}, "data: gram must be positive semi-definite"),
        ({"alpha": 1, "gram": [[1, 0], [0, 1]], "rule": "sign"}, "gram"),
        ({"alpha": 1, "gram": [[1, 0], [0, 1]], "rho": 0.2}, "'rho'"),
    ],
)
def test_bad_problem_files(data: dict, words: str) -> None:
    text = json.dumps({"data": data, "chain": [{"loss": "cross-entropy", "ridge": 0.1}]})
    with pytest.raises(ParameterError) as found:
        read_problem(text)
    assert words in str(found.value)


def test_what_is_for_two_classes() -> None:
    data = ClassMixture(2.0, gram=orthogonal_means(3))
    with pytest.raises(ParameterError, match="not differentiated"):
        derivatives(solve(data, CHAIN[0]), ["alpha"], ["teacher.test_error"])
    assert_one_line_error(run(phase_diagram_command, "--classes", 3), "--classes", "--x")
