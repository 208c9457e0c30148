"""The main job on tiny grids: axes, files, failures, interruptions."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path

import command_line
import netCDF4
import numpy as np
import pytest
import xarray
from command_line import assert_one_line_error

from numerics import Estimator, GaussianMixture, phase_diagram, solve
from numerics.models import Chain
from numerics.phase_diagram import Axis, main, refined_grid, thresholds_in_alpha
from numerics.plots import plan
from numerics.simulation.run import Simulation, simulate
from numerics.sweeps import executors, grid
from numerics.sweeps.grid import ERROR_SUFFIX, Experiment, Grid
from numerics.sweeps.run import evaluate
from numerics.sweeps.tasks import Solve
from theory.losses import CrossEntropy, Distillation

DATA = GaussianMixture(alpha=2.0, rho=0.2, delta=1.0)
CHAIN = Chain.of([Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)])


run = partial(command_line.run, main)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """The main figure on a few points."""
    monkeypatch.setattr(plan, "CURVE_POINTS", 8)
    monkeypatch.setattr(plan, "MAP_POINTS", (4, 3))
    monkeypatch.setattr(plan, "SIMULATED_ALPHAS", (1.0,))


# Axes.


def test_axis_is_parsed() -> None:
    axis = Axis.parse("alpha=0.1:6:60", "--x")
    assert (axis.path, axis.scale) == ("alpha", "lin")
    np.testing.assert_allclose(axis.values, np.linspace(0.1, 6, 60))
    axis = Axis.parse("teacher.ridge=1e-5:10:7:log", "--y")
    np.testing.assert_allclose(axis.values, np.geomspace(1e-5, 10, 7))
    assert axis.values[0] == 1e-5
    assert axis.values[-1] == 10.0


@pytest.mark.parametrize(
    "text",
    ["alpha", "alpha=1:2", "alpha=1:2:1", "alpha=1:2:3:cubic", "alpha=a:2:3", "alpha=1:2:3.5", "alpha=2:1:3",
     "alpha=0:1:3:log", "alpha=1:2:3:log:4", "alpha=1:inf:3", "=1:2:3", "gamma=1:2:3", "student.gain=1:2:3",
     "alpha=-1:2:3", "rho=0.1:1.5:3", "student.mixing=0:2:3"],
)  # fmt: skip
def test_bad_axis_is_named_in_one_line(text: str) -> None:
    assert_one_line_error(run("--x", text), "--x")
    assert_one_line_error(run("--x", "delta=1:2:3", "--y", text), "--y")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--x", "alpha=1:2:3", "--quantity", "nonsense"], ["--quantity", "nonsense", "test_error", "loss_gap"]),
        (["--x", "alpha=1:2:3", "--stage", "pupil"], ["--stage", "student"]),
        (["--x", "alpha=1:2:3", "--stage", "teacher", "--quantity", "teacher_cosine"], ["--quantity"]),
        (["--x", "alpha=1:2:3", "--y", "alpha=1:2:3"], ["--y"]),
        (["--y", "alpha=1:2:3"], ["--x"]),
        (["--quantity", "norm"], ["--quantity", "--x"]),
        (["--single", "--quantity", "norm"], ["--quantity", "--x"]),
        (["--x", "alpha=1:2:3", "--y", "rho=0.1:0.5:3", "--simulate", "50", "2"], ["--simulate"]),
        (["--simulate", "1", "2"], ["--simulate"]),
        (["--simulate", "50"], ["--simulate"]),
        (["--seed", "-1"], ["--seed"]),
        (["--jobs", "0"], ["--jobs"]),
        (["--rho", "2"], ["--rho"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_request_is_named_in_one_line(arguments: list[str], words: list[str]) -> None:
    assert_one_line_error(run(*arguments), *words)


def test_unwritable_folder_fails_before_computing(tmp_path, monkeypatch) -> None:
    def must_not_run(*arguments):
        raise AssertionError("computed before checking the folder")

    monkeypatch.setattr(phase_diagram, "evaluate", must_not_run)
    (tmp_path / "file").write_text("")
    assert_one_line_error(run("--output", tmp_path / "file" / "stem"), "--output")


def test_refined_grid_resolves_its_peaks() -> None:
    grid = refined_grid(0.05, 6.0, 180, {0.5: (0.32, 0.1), 1.8: (0.12, 0.05), 9.0: (0.2, 0.1)})
    assert grid[0] == 0.05
    assert grid[-1] == 6.0
    assert {0.5, 1.8} <= set(grid)
    assert len(grid) >= 150
    steps = np.diff(grid)
    assert np.all(steps > 0)
    assert steps[np.abs(grid[:-1] - 0.5) < 0.05].max() < 0.0055
    assert steps[np.abs(grid[:-1] - 1.8) < 0.05].max() < 0.03


def test_thresholds() -> None:
    found = thresholds_in_alpha(DATA, CHAIN)
    assert found["interpolation"] == 0.5
    assert found["student_separability"] == pytest.approx(1.804, abs=1e-3)
    assert found["teacher_separability"] == pytest.approx(4.849, abs=1e-3)
    on_labels = Chain.of([CHAIN[0], Estimator(Distillation(mixing=0.0), ridge=1e-5, eta=0.5)])
    assert "interpolation" not in thresholds_in_alpha(DATA, on_labels)


# Values.


def test_grid_in_pieces_equals_single_points(monkeypatch) -> None:
    monkeypatch.setattr(grid, "POINTS_PER_TASK", {2: 2})
    over = {"teacher.ridge": np.array([0.01, 1.0]), "alpha": np.array([0.4, 1.0, 3.0, 3.5, 4.0])}
    found = evaluate({"grid": Grid(DATA, CHAIN, over, ("test_error",))}, 2)["grid"]
    assert found.test_error.dims == ("stage", "teacher.ridge", "alpha")
    assert found.test_error.shape == (2, 2, 5)
    expected = solve(GaussianMixture(3.5, 0.2, 1.0), [Estimator(CrossEntropy(), ridge=0.01), CHAIN[1]])[1].test_error
    value = found.test_error.sel({"stage": "student", "teacher.ridge": 0.01, "alpha": 3.5})
    assert float(value) == pytest.approx(expected, abs=1e-8)


def test_experiment_holds_means_and_errors() -> None:
    over = {"teacher.ridge": np.array([0.1, 1.0]), "alpha": np.array([0.01, 2.0])}
    experiment = Experiment(DATA, CHAIN, over, ("test_error", "teacher_cosine"), Simulation(60, 4, seed=5))
    found = evaluate({"runs": experiment}, 2)["runs"]
    # alpha = 0.01 leaves a single sample: no value, and the reason is kept.
    assert np.all(np.isnan(found.test_error.sel(alpha=0.01)))
    assert found.attrs["failed_points"] == 2
    assert "at least 2 samples" in found.attrs["failures"].split("\n")[1]
    point = found.sel({"teacher.ridge": 0.1, "alpha": 2.0})
    assert np.isnan(point.teacher_cosine.sel(stage="teacher"))
    seed = int(np.random.SeedSequence([5, 1]).generate_state(1)[0])
    expected = simulate(DATA, CHAIN, 60, 4, seed)[1].teacher_cosine
    assert float(point.teacher_cosine.sel(stage="student")) == pytest.approx(expected.mean)
    name = "teacher_cosine" + ERROR_SUFFIX
    assert float(point[name].sel(stage="student")) == pytest.approx(expected.standard_error)


# Files.


def assert_files(stem: Path) -> None:
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert stem.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in stem.parent.iterdir()) == [stem.name + end for end in (".nc", ".pdf", ".png")]


def test_double_descent_end_to_end(tiny, tmp_path) -> None:
    stem = tmp_path / "deep" / "picture"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what matplotlib says of a layout that does not fit
        result = run("--output", stem, "--simulate", 80, 3, "--jobs", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [f"{stem}{suffix}" for suffix in (".png", ".pdf", ".nc")]
    assert_files(stem)
    curves = xarray.load_dataset(stem.with_suffix(".nc"), group="curves")
    assert curves.test_error.dims == ("stage", "teacher.ridge", "alpha")
    assert list(curves["teacher.ridge"].values) == [1e-5, 0.1]
    assert np.all(curves.converged)
    assert np.all(np.isfinite(curves.loss_gap))
    runs = xarray.load_dataset(stem.with_suffix(".nc"), group="simulated_curves")
    assert set(runs.alpha.values) == {0.5, 1.0}
    assert np.all(runs.test_error_standard_error > 0)
    assert runs.attrs["n_inputs"] == 80
    bounds = xarray.load_dataset(stem.with_suffix(".nc"), group="bounds")
    assert np.all(curves.test_error.sel(stage="student") > bounds.bayes_student)
    attributes = xarray.load_dataset(stem.with_suffix(".nc")).attrs
    assert json.loads(attributes["parameters"])["rho"] == 0.2
    assert attributes["alpha_interpolation"] == 0.5
    assert attributes["version_numpy"] == np.__version__


def test_double_descent_without_simulation_and_with_one_ridge(tiny, tmp_path) -> None:
    result = run("--output", tmp_path / "a.png", "--simulate", 0, 0, "--teacher-ridge", 1e-5, "--chi", 0.5)
    assert result.exit_code == 0, result.stderr
    assert_files(tmp_path / "a")


FROZEN = '{"stage": "frozen", "magnetization": 1, "norm_squared": 1.5}'
TEACHER = '{"loss": "cross-entropy", "ridge": 0.2}'
STUDENT = '{"loss": "distillation", "ridge": 0.01, "eta": 0.5}'
NAMED = '{"loss": "cross-entropy", "ridge": 0.2, "name": "großes_modell"}, {"loss": "distillation", "ridge": 0.1, "name": "kind"}'
FRESH = '{"loss": {"name": "distillation", "teacher": [1, 2]}, "ridge": 0.1, "sets": "fresh", "name": "pupil"}'
ALL = {"interpolation", "student_separability", "teacher_separability"}
BOTH = {"curves", "labels", "heat_map", "bounds"}


@pytest.mark.parametrize(
    ("data", "stages", "groups", "axis", "bounds", "limits"),
    [
        ("", [TEACHER], BOTH - {"labels"}, "teacher.ridge", 1, {"teacher_separability"}),
        ("", [FROZEN, STUDENT], BOTH, "student.ridge", 0, {"interpolation", "student_separability"}),
        ("", [NAMED], BOTH, "großes_modell.ridge", 2, ALL),
        ("", [TEACHER, STUDENT, STUDENT], BOTH, "teacher.ridge", 3, ALL),
        (', "further": [{"name": "fresh", "alpha": 2}]', [TEACHER, STUDENT, FRESH], BOTH - {"labels"}, "teacher.ridge", 3,
         {"teacher_separability"}),
        (', "label_noise": 0.2', [TEACHER, STUDENT], BOTH, "teacher.ridge", 2, ALL),
        ("", ['{"stage": "bayes-optimal"}'], {"curves", "bounds"}, None, 1, set()),
        ("", ['{"loss": "square", "ridge": 0.2}'] + 2 * ['{"loss": "square-distillation", "ridge": 0.1}'], BOTH, "teacher.ridge",
         3, ALL),
    ],
    ids=["one", "frozen", "names", "three", "another set", "noise", "no ridge", "quadratic"],
)  # fmt: skip
def test_main_figure_of_any_chain(tiny, tmp_path, data, stages, groups, axis, bounds, limits) -> None:
    """What makes sense for a chain is computed and drawn, and nothing else."""
    (tmp_path / "problem.json").write_text(
        f'{{"data": {{"alpha": 2, "rho": 0.3{data}}}, "chain": [{", ".join(stages)}]}}', encoding="utf-8"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = run("--problem", tmp_path / "problem.json", "--simulate", 0, 0, "--output", tmp_path / "out" / "p")
    assert result.exit_code == 0, result.stderr
    assert_files(tmp_path / "out" / "p")
    path = tmp_path / "out" / "p.nc"
    with netCDF4.Dataset(path) as file:
        assert set(file.groups) == groups
    found = {name: xarray.load_dataset(path, group=name) for name in groups}
    assert found["curves"].test_error.dims == (("stage", axis, "alpha") if axis else ("stage", "alpha"))
    assert bool(found["curves"].converged.all())
    assert len(found["bounds"].data_vars) == bounds
    attributes = xarray.load_dataset(path).attrs
    assert {name.removeprefix("alpha_") for name in attributes if name.startswith("alpha_")} == limits
    assert json.loads(attributes["problem"])["data"]["rho"] == 0.3


def test_simulated_points_of_a_frozen_teacher(tiny, tmp_path) -> None:
    (tmp_path / "problem.json").write_text(f'{{"data": {{"alpha": 2}}, "chain": [{FROZEN}, {STUDENT}]}}')
    result = run("--problem", tmp_path / "problem.json", "--simulate", 60, 2, "--output", tmp_path / "p")
    assert result.exit_code == 0, result.stderr
    runs = xarray.load_dataset(tmp_path / "p.nc", group="simulated_curves")
    assert np.all(np.isfinite(runs.test_error))


@pytest.mark.parametrize(
    ("stages", "words"),
    [([FROZEN], "no stage of this chain is trained"), ([TEACHER, *4 * [STUDENT]], "5 stages would take hours")],
    ids=["frozen", "five"],
)
def test_what_cannot_be_drawn_is_said_before_computing(tmp_path, monkeypatch, stages: list[str], words: str) -> None:
    def must_not_run(*arguments, **options):
        raise AssertionError("computed what cannot be drawn")

    monkeypatch.setattr(phase_diagram, "evaluate", must_not_run)
    (tmp_path / "problem.json").write_text(f'{{"data": {{"alpha": 2}}, "chain": [{", ".join(stages)}]}}')
    assert_one_line_error(run("--problem", tmp_path / "problem.json"), "--problem", words)


def test_single_without_axes(tiny, tmp_path) -> None:
    result = run("--single", "--simulate", 0, 0, "--output", tmp_path / "s")
    assert result.exit_code == 0, result.stderr
    assert_files(tmp_path / "s")


def test_svg_where_it_is_asked_for(tmp_path) -> None:
    result = run("--x", "alpha=0.4:2:3", "--single", "--output", tmp_path / "picture.svg")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.nc", "picture.svg"]
    assert "</svg>" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


def test_default_names_and_heat_map(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    axes = ("--x", "alpha=0.4:2:3", "--y", "teacher.ridge=1e-3:1:3:log")
    result = run(*axes, "--quantity", "norm", "--stage", "teacher")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split()[0] == str(Path("replica-distillation", "norm_vs_alpha_teacher.ridge.png"))
    names = {path.name for path in Path("replica-distillation").iterdir()}
    assert names == {f"norm_vs_alpha_teacher.ridge{suffix}" for suffix in (".png", ".pdf", ".nc")}
    data = xarray.load_dataset(Path("replica-distillation", "norm_vs_alpha_teacher.ridge.nc"), group="grid")
    assert data.norm.shape == (2, 3, 3)


def test_curves_with_simulation(tmp_path) -> None:
    what = ("--x", "student.temperature=0.5:8:4:log", "--quantity", "loss_gap")
    result = run(*what, "--simulate", 50, 2, "--output", tmp_path / "c")
    assert result.exit_code == 0, result.stderr
    assert_files(tmp_path / "c")
    runs = xarray.load_dataset(tmp_path / "c.nc", group="simulated_grid")
    assert np.all(np.isfinite(runs.loss_gap))


def test_single_stage(tmp_path) -> None:
    result = run("--single", "--x", "teacher.ridge=0.01:1:3:log", "--output", tmp_path / "s")
    assert result.exit_code == 0, result.stderr


# What goes wrong.


def _failing(where):
    """Tasks whose points in alpha fail where ``where`` says so."""
    solve_points = Solve.__call__

    def fail(task):
        piece = solve_points(task)
        bad = np.flatnonzero(where(task.values[:, task.paths.index("alpha")]))
        piece.values[:, bad] = np.nan
        piece.values[-3, bad] = 0.0
        piece.notes |= {int(k): "the saddle is not there" for k in bad}
        return piece

    return fail


def test_failed_points_are_masked_and_listed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Solve, "__call__", _failing(lambda alpha: alpha > 1.5))
    for extra in ([], ["--y", "rho=0.2:0.4:3"]):
        result = run("--x", "alpha=1:2:3", *extra, "--output", tmp_path / "f")
        assert result.exit_code == 0
        count = 3 if extra else 1
        assert f"warning: {count} points" in result.stderr
        assert "alpha=2" in result.stderr
        assert "the saddle is not there" in result.stderr


def test_nothing_is_written_if_all_points_fail(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Solve, "__call__", _failing(lambda alpha: alpha > 0))
    result = run("--x", "alpha=1:2:3", "--output", tmp_path / "f")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: none of the points converged")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_no_half_written_file(tmp_path, monkeypatch) -> None:
    def interrupted(picture, path):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(phase_diagram, "save", interrupted)
    result = run("--x", "alpha=1:2:2", "--output", tmp_path / "i")
    assert result.exit_code == 130
    assert {path.name for path in tmp_path.iterdir()} <= {"i.nc", "i.nc.partial"}
    monkeypatch.undo()
    assert run("--x", "alpha=1:2:2", "--output", tmp_path / "i").exit_code == 0
    assert_files(tmp_path / "i")


def test_interrupt_while_computing(tmp_path, monkeypatch) -> None:
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(executors, "wait", interrupted)
    result = run("--x", "alpha=1:2:2", "--output", tmp_path / "i")
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []
