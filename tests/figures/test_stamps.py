"""Stored data are read back where they are what would be computed: in a fresh clone, after rewriting code, and not otherwise."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sympy
import xarray
from click.testing import CliRunner

import figures.__main__
from figures import build as machinery
from figures import stamps
from figures.__main__ import COMMITTED, main
from figures.build import FIGURES, Effort, Prediction, Simulation, Tuned, Tuning
from figures.self_distillation import ScheduledCurve
from figures.stamps import disagreement, fingerprint
from numerics import Estimator, GaussianMixture
from numerics.models import Chain
from numerics.sweeps import provenance
from numerics.sweeps.grid import Grid
from numerics.sweeps.provenance import value_at_a_point
from numerics.sweeps.run import evaluate
from theory import potential
from theory.functions import sigmoid
from theory.losses import CrossEntropy, Distillation, Loss

DATA, CHAIN = GaussianMixture(1.0, 0.2), Chain.of(Estimator(CrossEntropy(), 0.1))
ALPHA = {"alpha": np.linspace(0.5, 3, 7)}
GRID = Grid(DATA, CHAIN, ALPHA, ("test_error",))
RUNS = Simulation(DATA, CHAIN, {"alpha": np.array([1.0, 2.0])}, Effort(40, 3))
PARTS = {
    "grid": GRID,
    "grid over two": replace(GRID, over={"teacher.ridge": np.array([0.1, 0.3]), **ALPHA}),
    "tuned": Tuned(
        DATA, CHAIN, {"alpha": np.array([1.0, 2.0])}, Tuning({"teacher.ridge": (1e-3, 10.0)}, "teacher.test_error")
    ),
    "simulation": RUNS,
    "prediction": Prediction(RUNS),
    "schedule": ScheduledCurve(replace(DATA, label_noise=0.1), (1, 2), {"alpha": np.array([2.0, 4.0])}),
}


# Stamps.


def test_committed_stamps_are_those_of_the_present_code() -> None:
    """What a fresh clone reads back.  If it fails: ``python -m figures --all --restamp --committed`` (see CONTRIBUTING.md)."""
    for name, entry in FIGURES.items():
        stored = json.loads((COMMITTED / f"{name}.json").read_text(encoding="utf-8"))["parts"]
        plan = entry.plan(Effort())
        assert {part: fingerprint(work) for part, work in plan.work.items()} == {
            part: note["fingerprint"] for part, note in stored.items()
        }, name


def test_committed_data_are_drawn_without_computing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["saglietti-10"])
    assert result.exit_code == 0, result.stderr
    assert "0 parts computed, 3 read back" in result.stdout
    assert (tmp_path / "replica-distillation" / "published" / "saglietti-10.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["replica-distillation"]


def test_stamps_see_parameters_losses_and_versions(monkeypatch) -> None:
    moved = ALPHA["alpha"].copy()
    moved[3] += 1e-9
    student = Chain.of([*CHAIN.stages, Estimator(Distillation(temperature=2.0), 0.1)])
    hotter = Chain.of([*CHAIN.stages, Estimator(Distillation(temperature=3.0), 0.1)])
    others = [
        replace(GRID, over={"alpha": moved}), replace(GRID, data=GaussianMixture(1.0, 0.3)), replace(GRID, chain=student),
        replace(GRID, chain=hotter), replace(GRID, observables=("test_loss",)), RUNS, Prediction(RUNS),
        replace(RUNS, effort=Effort(40, 4)),
    ]  # fmt: skip
    assert len({fingerprint(work) for work in [GRID, *others]}) == 1 + len(others)
    assert fingerprint(replace(GRID)) == fingerprint(GRID)
    before, runs = fingerprint(GRID), fingerprint(RUNS)
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "THEORY", 99)
        assert fingerprint(GRID) != before
        assert fingerprint(RUNS) == runs
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "SIMULATION", 99)
        assert fingerprint(GRID) == before
        assert fingerprint(RUNS) != runs
    with monkeypatch.context() as patch:
        patch.setattr(Grid, "VERSION", 2, raising=False)
        assert fingerprint(GRID) != before
    with monkeypatch.context() as patch:  # a built-in loss that means something else now
        patch.setattr(CrossEntropy, "gradient", sympy.Symbol("h", real=True))
        assert fingerprint(GRID) != before


def test_stamps_follow_what_equations_are_not_how_they_are_written(monkeypatch) -> None:
    x, y = sympy.symbols("x y", real=True)
    forms = [(x + y) ** 2 / (1 + sympy.exp(-x)), (x**2 + 2 * x * y + y**2) * sigmoid(x)]
    assert forms[0] != forms[1]
    assert value_at_a_point(forms[0]) == value_at_a_point(forms[1])
    assert value_at_a_point(forms[0]) != value_at_a_point(-forms[0])
    one, other = (
        Loss.from_expression(text, name="mine") for text in ("softplus(-s*h) + h**2/2", "log(1 + exp(-s*h)) + 0.5*h*h")
    )
    assert stamps._losses(replace(GRID, chain=Chain.of(Estimator(one, 0.1)))) == stamps._losses(
        replace(GRID, chain=Chain.of(Estimator(other, 0.1)))
    )
    before = provenance._equations_version()
    right = potential.prior_equations

    def rewritten(t: int, *more):
        found = right(t, *more)
        return replace(found, outputs={name: sympy.expand(e) for name, e in found.outputs.items()})

    def wrong(t: int, *more):
        found = right(t, *more)
        return replace(found, outputs={name: -e for name, e in found.outputs.items()})

    monkeypatch.setattr(provenance.potential, "prior_equations", rewritten)
    assert provenance._equations_version() == before
    monkeypatch.setattr(provenance.potential, "prior_equations", wrong)
    assert provenance._equations_version() != before


# A look at the numbers.


@pytest.mark.parametrize("name", PARTS)
def test_wrong_numbers_are_noticed(name: str) -> None:
    work = PARTS[name]
    stored = evaluate({"part": work}, 1, progress=False)["part"]
    assert disagreement(work, stored) == ""
    slightly, wrong = stored.copy(deep=True), stored.copy(deep=True)
    slightly["test_error"] *= 1 + 1e-9
    assert disagreement(work, slightly) == ""
    wrong["test_error"] *= 1 + 1e-4
    assert "other numbers" in disagreement(work, wrong)
    path = list(stamps._axes(work))[-1]
    assert f"other values of {path}" in disagreement(work, stored.assign_coords({path: stored[path] * 1.01}))
    assert "other stages" in disagreement(
        work, stored.assign_coords(stage=[f"x{k}" for k in range(stored.sizes["stage"])])
    )
    assert "without test_error" in disagreement(work, stored.drop_vars("test_error"))


@pytest.fixture
def figure(monkeypatch) -> str:
    """A figure of a curve and two simulated points."""

    def plan(effort: Effort) -> machinery.Plan:
        def draw(parts):
            picture, panel = figures.saglietti.one_panel(parts)
            panel.curve("curve", "alpha", figures.saglietti.looks(1)[0], "teacher")
            return picture

        return machinery.Plan({"curve": GRID, "runs": replace(RUNS, effort=effort)}, draw, "nothing was printed")

    monkeypatch.setitem(FIGURES, "tiny", machinery.Published("tiny", "A small one", plan))
    return "tiny"


def _change(path: Path, part: str, factor: float) -> None:
    data = machinery._read(path)
    data[part]["test_error"] *= factor
    machinery._write(path, data)


def test_data_that_are_not_what_is_computed_are_not_read_back(figure: str, tmp_path) -> None:
    effort = Effort(40, 3)
    assert machinery.build(figure, tmp_path, effort).computed == ["curve", "runs"]
    other = tmp_path / "elsewhere"
    assert machinery.build(figure, other, effort, sources=[tmp_path]).reused == ["curve", "runs"]
    _change(tmp_path / "tiny.nc", "curve", 1.01)  # the stamp is right, the numbers are not
    made = machinery.build(figure, tmp_path, effort)
    assert (made.computed, made.reused) == (["curve"], ["runs"])


def test_restamping_stamps_what_agrees(figure: str, tmp_path, monkeypatch) -> None:
    effort = Effort(40, 3)
    machinery.build(figure, tmp_path, effort)
    monkeypatch.setattr(provenance, "THEORY", 99)
    monkeypatch.setattr(provenance, "SIMULATION", 99)
    assert machinery.prepare(figure, tmp_path, effort).data == {}
    assert machinery.restamp(figure, tmp_path, effort) == []
    assert set(machinery.prepare(figure, tmp_path, effort).data) == {"curve", "runs"}
    note = json.loads((tmp_path / "tiny.json").read_text())
    assert note["parts"]["curve"]["fingerprint"] == fingerprint(GRID)
    assert "theory 99" in note["code"]["theory"]
    _change(tmp_path / "tiny.nc", "runs", 1.01)
    arguments = ["tiny", "--simulate", "40", "3", "--output", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "--restamp"])
    assert result.exit_code == 1
    assert "runs was stored with other numbers" in result.stderr
    again = CliRunner().invoke(main, arguments)
    assert "1 parts computed, 1 read back" in again.stdout
    assert CliRunner().invoke(main, [*arguments, "--restamp"]).exit_code == 0


@pytest.mark.parametrize("flags", [("--output", "x"), ("--debug", "--output", "x")])
def test_committed_files_have_one_place(flags: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["saglietti-10", "--committed", *flags])
    assert result.exit_code == 2
    assert "--output has no effect with --committed" in result.stderr


def test_data_read_back_are_those_on_disk() -> None:
    """The groups of every committed file carry the stamps of its note."""
    for name in FIGURES:
        note = json.loads((COMMITTED / f"{name}.json").read_text(encoding="utf-8"))["parts"]
        for part, entry in note.items():
            with xarray.open_dataset(COMMITTED / f"{name}.nc", group=part) as stored:
                assert stored.attrs["fingerprint"] == entry["fingerprint"], (name, part)


def test_commands_do_not_dirty_the_work_tree(tmp_path) -> None:
    """What a user makes in a checkout is ignored."""
    root = COMMITTED.parents[1]
    found = subprocess.run(
        ["git", "check-ignore", "-q", "replica-distillation/double_descent.png"], cwd=root, capture_output=True
    )
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    assert found.returncode == 0
