"""What a user has around him does not get in: matplotlibrc, encodings, spellings, long names, folders in the way, extreme noise."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path

import matplotlib
import pytest
from command_line import assert_one_line_error, run
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from surroundings import python

from numerics import Estimator, Frozen, GaussianMixture, max_margin, separability_threshold, solve, sweep
from numerics.cli.solve import solve_command
from numerics.cli.sweep import sweep_command
from numerics.models import Chain, DataSet, ParameterError, with_parameter
from numerics.phase_diagram import main as phase_diagram
from numerics.plots import style
from numerics.problem import read_problem
from theory.losses import CrossEntropy, Loss

GREEK = '{"data": {"alpha": 2}, "chain": [{"loss": "cross-entropy", "ridge": 0.1, "name": "αβ"}]}'
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "élève") for form in ("NFC", "NFD"))


# Terminals and encodings.


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--no-such-flag",)])
def test_greek_names_in_a_narrow_encoding(tmp_path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "u.json").write_text(GREEK, encoding="utf-8")
    command = ("-m", "numerics.solve", "--problem", tmp_path / "u.json", *arguments)
    found = python(*command, variables={"PYTHONIOENCODING": "cp1252"})
    assert found.returncode == (2 if "--no-such-flag" in arguments else 0)
    assert b"Traceback" not in found.stderr
    if not arguments:
        assert rb"\u03b1\u03b2" in found.stdout
    if arguments == ("--json",):
        assert "αβ" in json.dumps(json.loads(found.stdout), ensure_ascii=False)


# Spellings.


def test_accents_may_be_typed_in_two_ways(tmp_path) -> None:
    assert COMPOSED != DECOMPOSED
    stage = Estimator(CrossEntropy(), ridge=0.1, name=DECOMPOSED)
    assert Chain.of(stage).names == (COMPOSED,)
    data = GaussianMixture(1.0, further=[DataSet(DECOMPOSED, 2.0)])
    assert data.sets[1].name == COMPOSED
    assert Estimator(CrossEntropy(), 0.1, sets=("training", DECOMPOSED)).sets == ("training", COMPOSED)
    assert with_parameter(GaussianMixture(1.0), Chain.of(stage), f"{DECOMPOSED}.ridge", 0.5)[1][0].ridge == 0.5
    with pytest.raises(ParameterError, match="used twice"):
        Chain.of([stage, Frozen(1.0, 1.0, name=COMPOSED)])
    escaped = json.dumps({"data": {"alpha": 2}, "chain": [{"loss": "cross-entropy", "ridge": 0.1, "name": DECOMPOSED}]})
    assert read_problem(escaped)[1].names == (COMPOSED,)
    (tmp_path / "p.json").write_text(escaped, encoding="utf-8")
    over = (f"{DECOMPOSED}.ridge=0.1:1:2", f"{COMPOSED}.ridge=0.1:1:2")
    for k, axis in enumerate(over):
        result = run(sweep_command, "--problem", tmp_path / "p.json", "--over", axis, "--output", tmp_path / f"{k}.nc")
        assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("key", [COMPOSED, DECOMPOSED, "ϑ"])
@pytest.mark.parametrize("text", [COMPOSED, DECOMPOSED, "ϑ"])
def test_parameters_of_a_formula_are_found_in_any_spelling(key: str, text: str) -> None:
    if (key == "ϑ") != (text == "ϑ"):
        pytest.skip("two different names")
    loss = Loss.from_expression(f"softplus(-s*h) + {text}*h**2/2", {key: 0.25})
    assert loss.parameters == {key: 0.25}
    plain = Loss.from_expression("softplus(-s*h) + a*h**2/2", {"a": 0.25})
    found, expected = (solve(GaussianMixture(2.0), Estimator(one, ridge=0.1))[0].test_error for one in (loss, plain))
    assert found == pytest.approx(expected, rel=1e-9)


# Files.


@pytest.mark.parametrize("length", [245, 256, 5000])
def test_long_names_are_one_line(tmp_path, length: int) -> None:
    name = "x" * (length - 3) + ".nc"
    result = run(sweep_command, "--over", "alpha=1:2:2", "--output", tmp_path / name)
    assert_one_line_error(result, "--output", "name too long")
    assert list(tmp_path.iterdir()) == []
    assert_one_line_error(
        run(phase_diagram, "--x", "alpha=1:2:2", "--output", tmp_path / name), "--output", "name too long"
    )
    folder = tmp_path / ("y" * length) / "a.json"
    if length > 255:
        assert_one_line_error(run(solve_command, "--alpha", 1, "--output", folder), "--output", "name too long")
    with pytest.raises(ParameterError, match="name too long"):
        sweep(GaussianMixture(1.0), Estimator(CrossEntropy(), 0.1), {"alpha": [1.0]}, output=tmp_path / name)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_where_the_journal_should_be(tmp_path, overwrite: bool) -> None:
    (tmp_path / "a.nc.partial").mkdir()
    more = ("--overwrite",) if overwrite else ()
    result = run(sweep_command, "--over", "alpha=1:2:2", "--output", tmp_path / "a.nc", *more)
    assert_one_line_error(result, "--output", "a.nc.partial", "folder")
    result = run(phase_diagram, "--x", "alpha=1:2:2", "--output", tmp_path / "a")
    assert_one_line_error(result, "--output", "a.nc.partial", "folder")


# Pictures.


def test_the_style_is_ours_whatever_the_users_is() -> None:
    with matplotlib.rc_context():
        matplotlib.rcParams.update(
            {"text.usetex": True, "axes.grid": True, "font.size": 30, "savefig.transparent": True}
        )
        with style.journal_style():
            assert not matplotlib.rcParams["text.usetex"]
            assert not matplotlib.rcParams["axes.grid"]
            assert not matplotlib.rcParams["savefig.transparent"]
            assert matplotlib.rcParams["font.size"] == style.STYLE["font.size"]
        assert matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["font.size"] == 30


def test_the_users_matplotlibrc_does_not_get_into_the_picture(tmp_path) -> None:
    pictures = []
    for name, text in (
        ("plain", ""),
        ("own", "text.usetex: True\naxes.facecolor: red\nlines.linewidth: 9\nno.such.key: 1\n"),
    ):
        folder = tmp_path / name
        (folder / "none").mkdir(parents=True)
        (folder / "matplotlibrc").write_text(text)
        command = ("-m", "numerics.phase_diagram", "--x", "alpha=1:2:3", "--single", "--output", "w")
        found = python(*command, cwd=folder, variables={"PATH": str(folder / "none")})
        assert found.returncode == 0, found.stderr
        pictures.append((folder / "w.png").read_bytes())
    assert pictures[0] == pictures[1]


# Folders of the same name as ours are in test_installation.py.  Extreme noise.


@pytest.mark.parametrize("delta", [3e-4, 1e-6, 1e-9, 1e-30, 1e-300, 5e-324])
@pytest.mark.parametrize("rho", [0.5, 0.2, 1e-3])
def test_far_classes_are_separable_at_every_alpha(delta: float, rho: float) -> None:
    assert separability_threshold(rho, delta) == math.inf
    assert separability_threshold(rho, delta, 0.5) == math.inf


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12])
def test_margin_of_far_classes(delta: float) -> None:
    """Equal classes, b = 0, alpha = 1: Gordon's condition is F(x) = 1 - m^2 with x = (m - margin)/sqrt(Delta), one maximum in x."""

    def margin(x: float) -> float:
        missing = (1 + x * x) * norm.sf(x) - x * norm.pdf(x)  # F(x) = E[(z - x)_+^2]
        return math.sqrt(max(0.0, 1 - missing)) - math.sqrt(delta) * x

    best = minimize_scalar(lambda x: -margin(x), bounds=(0.0, 12.0), method="bounded", options={"xatol": 1e-12})
    found = max_margin(1.0, 0.5, delta)
    assert 1 - found.margin == pytest.approx(1 + best.fun, rel=1e-6)
    assert found.bias == pytest.approx(0, abs=1e-9)


def test_margins_that_a_double_cannot_tell_are_refused() -> None:
    with pytest.raises(ArithmeticError, match="more digits"):
        max_margin(1.0, 0.5, 1e-30)


def test_commands_at_tiny_noise(tmp_path) -> None:
    result = run(phase_diagram, "--x", "alpha=1:2:3", "--delta", 1e-6, "--output", tmp_path / "d")
    assert result.exit_code == 0, result.stderr
    result = run(solve_command, "--alpha", 1, "--delta", 1e-6, "--teacher-ridge", 0, "--single", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["converged"] is True
    assert Path(tmp_path / "d.png").is_file()
