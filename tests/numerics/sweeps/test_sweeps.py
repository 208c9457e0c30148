"""Sweeps: labels and attributes, the same numbers from every executor, files that survive whatever happens."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import command_line
import netCDF4
import numpy as np
import pytest
import xarray
from command_line import assert_one_line_error
from numpy.testing import assert_array_equal

import numerics
from numerics import (
    BayesOptimal,
    DataSet,
    Estimator,
    Frozen,
    GaussianMixture,
    Hebbian,
    ParameterError,
    Simulation,
    separability_threshold,
    simulate,
    solve,
    sweep,
)
from numerics.cli.sweep import sweep_command
from numerics.models import Chain
from numerics.problem import read_problem, write_problem
from numerics.settings import DEFAULT
from numerics.sweeps import executors, journal
from numerics.sweeps import run as sweeping
from numerics.sweeps.grid import SHOWN_FAILURES, Grid
from numerics.sweeps.tasks import Solve
from theory.losses import CrossEntropy, Distillation, LinearLoss, Loss, PseudoLabels, SquareDistillation, SquareLoss

DATA = GaussianMixture(alpha=0.8, rho=0.2, delta=1.0)
CHAIN = Chain.of([Estimator(CrossEntropy(), ridge=0.1), Estimator(Distillation(), ridge=1e-5, eta=0.5)])
OVER = {"teacher.ridge": [0.5, 0.01], "alpha": np.linspace(3.0, 0.2, 60)}
OBSERVED = ("test_error", "norm")

run = partial(command_line.run, sweep_command)


@pytest.fixture(scope="module")
def expected() -> xarray.Dataset:
    return sweep(DATA, CHAIN, OVER, OBSERVED, executor="serial")


def without_description(dataset: xarray.Dataset) -> xarray.Dataset:
    found = dataset.load()
    found.attrs = {name: value for name, value in found.attrs.items() if name != "description"}
    return found


# Labels.


def test_values_and_labels(expected) -> None:
    assert expected.test_error.dims == ("stage", "teacher.ridge", "alpha")
    assert list(expected.stage.values) == ["teacher", "student"]
    assert_array_equal(expected.alpha, OVER["alpha"])  # in the order given, though computed upwards
    for ridge, alpha in ((0.5, 3.0), (0.01, OVER["alpha"][17])):
        point = expected.sel({"teacher.ridge": ridge, "alpha": alpha})
        solution = solve(replace(DATA, alpha=alpha), [replace(CHAIN[0], ridge=ridge), CHAIN[1]])
        for stage in solution.stages:
            assert float(point.test_error.sel(stage=stage.name)) == pytest.approx(stage.test_error, rel=1e-7)
            assert float(point.norm.sel(stage=stage.name)) == pytest.approx(stage.norm, rel=1e-7)
    assert bool(expected.converged.all())
    assert float(expected.residual.max()) < 1e-6
    assert float(expected.quadrature_error.max()) < 1e-8
    assert expected.attrs["failed_points"] == 0
    assert expected.test_error.attrs == {"long_name": numerics.OBSERVABLES["test_error"], "units": "1"}
    assert expected.alpha.attrs == {"long_name": "samples per input, alpha = M/N", "units": "1"}


def test_attributes_let_one_run_it_again(expected) -> None:
    assert eval(expected.attrs["data"]) == DATA
    assert eval(expected.attrs["chain"]) == CHAIN
    assert read_problem(expected.attrs["problem"]) == (DATA, CHAIN)
    assert expected.attrs["version_numba"]
    assert "rtol=1e-08" in expected.attrs["settings"]


def test_problem_is_written_as_it_is_read() -> None:
    data = GaussianMixture(3.0, 0.4, 0.5, label_noise=0.2, further=(DataSet("fresh", alpha=4, label_noise=0.1),))
    huber = Loss.from_expression("a**2*(sqrt(1 + (h - h_teacher)**2/a**2) - 1)", {"a": 0.4}, teacher=2)
    chain = Chain.of([
        Estimator(CrossEntropy(0.1), 0.5, eta=0.5, name="first"),
        Estimator(Distillation(0.3, 2.0, temperature_squared=True, teacher=1), 2.0, mask_overlap=0.4, eta=0.3, bias=0.2),
        Estimator(huber, 0.1, sets="fresh"), Estimator(PseudoLabels(teacher=(1, 2)), 1.0, sets=("training", "fresh")),
        Estimator(SquareDistillation(0.5, 0.7), 1.0), Estimator(SquareLoss(), 1.0), Frozen(1.0, 2.0, 0.1), Hebbian(),
    ])  # fmt: skip
    assert read_problem(write_problem(data, chain)) == (data, chain)
    assert read_problem(write_problem(DATA, Chain.of(BayesOptimal()))) == (DATA, Chain.of(BayesOptimal()))


def test_usual_methods_work(expected, tmp_path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    expected.to_netcdf(tmp_path / "copy.nc")
    xarray.testing.assert_identical(xarray.load_dataset(tmp_path / "copy.nc"), expected)
    frame = expected.to_dataframe()
    assert len(frame) == 2 * 2 * 60
    assert frame.loc[("student", 0.5, 3.0), "norm"] == float(
        expected.norm.sel({"stage": "student", "teacher.ridge": 0.5})[0]
    )
    (line, _) = expected.test_error.sel(stage="student").plot.line(x="alpha")
    assert line.axes.get_xlabel().split() == ["samples", "per", "input,", "alpha", "=", "M/N", "[1]"]


def test_any_number_of_axes_and_spacings() -> None:
    over = {"rho": "0.1:0.5:3", "delta": [1.0], "student.temperature": "0.5:20:4:log", "alpha": [2.0, 1.0]}
    found = sweep(DATA, CHAIN, over, "test_error")
    assert found.test_error.shape == (2, 3, 1, 4, 2)
    assert_array_equal(found["student.temperature"], np.geomspace(0.5, 20, 4))
    chain = [CHAIN[0], replace(CHAIN[1], loss=Distillation(1.0, 20.0))]
    solution = solve(GaussianMixture(1.0, 0.3, 1.0), chain)
    point = found.test_error.sel(alpha=1.0, delta=1.0).isel({"rho": 1, "student.temperature": 3, "stage": 1})
    assert float(point) == pytest.approx(solution[1].test_error, rel=1e-7)


def test_points_per_task_are_fewer_for_long_chains(monkeypatch) -> None:
    grid = Grid(DATA, CHAIN, {"alpha": np.linspace(1, 2, 101)}, OBSERVED)
    assert [task.size for task in grid.tasks()] == [50, 50, 1]
    longer = Chain.of([*CHAIN.stages, *(Estimator(Distillation(), 0.1) for _ in range(4))])
    assert len(Grid(DATA, longer, {"alpha": np.linspace(1, 2, 101)}, OBSERVED).tasks()) == 101


def test_points_per_task_are_more_on_large_grids() -> None:
    axes = {"rho": np.linspace(0.1, 0.5, 100), "alpha": np.linspace(1, 2, 100)}
    assert {task.size for task in Grid(DATA, CHAIN, axes, OBSERVED).tasks()} == {200}
    longer = Chain.of([*CHAIN.stages, CHAIN[1]])
    assert {task.size for task in Grid(DATA, longer, axes, OBSERVED).tasks()} == {20}


@pytest.mark.parametrize(
    "stages",
    [
        [Estimator(CrossEntropy(), 0.0)],
        [Estimator(CrossEntropy(), 0.0, eta=0.6, bias=0.2)],
        [CHAIN[0], Estimator(SquareLoss(), 0.0, eta=0.7)],
        [Estimator(SquareLoss(), 0.0), Estimator(Distillation(0.5, 2.0), 0.1, eta=0.6)],
    ],
    ids=lambda stages: " ".join(type(stage.loss).__name__ for stage in stages),
)
def test_grids_without_ridge_continue_on_both_sides_of_a_threshold(stages) -> None:
    """Points are continued from neighbours that are the same limit; at the threshold itself there is none."""
    data, chain = GaussianMixture(1.0, 0.3, 1.0, label_noise=0.05), Chain.of(stages)
    (last,) = (stage for stage in stages if stage.ridge == 0)
    threshold = (
        last.eta
        if last.loss == SquareLoss()
        else separability_threshold(0.3, 1.0, last.eta, label_noise=0.05, bias_is_free=last.bias is None)
    )
    alpha = threshold * np.array([0.3, 0.4, 0.55, 0.7, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0])
    observed = ("test_error", "train_error", "magnetization", "bias")
    found = sweep(data, chain, {"alpha": alpha}, observed)
    reached = np.arange(alpha.size) != 5
    assert found.converged.values.tolist() == reached.tolist()
    assert "diverges" in found.attrs["failures"]
    for i in np.flatnonzero(reached):
        alone = solve(replace(data, alpha=float(alpha[i])), chain, throw=True)
        for name in observed:
            expected = [getattr(stage, name) for stage in alone.stages]
            np.testing.assert_allclose(found[name].values[:, i], expected, rtol=1e-7, atol=1e-9)


def test_simulations_are_swept_the_same_way(tmp_path) -> None:
    over, how = {"student.mixing": [0.2, 1.0], "alpha": [2.0, 0.01, 1.0]}, Simulation(60, 4, seed=3)
    found = sweep(DATA, CHAIN, over, ("test_error", "teacher_cosine"), simulation=how)
    seed = int(np.random.SeedSequence([3, 2]).generate_state(1)[0])
    chain = [CHAIN[0], replace(CHAIN[1], loss=Distillation(0.2))]
    runs = simulate(replace(DATA, alpha=1.0), chain, 60, 4, seed)
    point = found.sel({"student.mixing": 0.2, "alpha": 1.0, "stage": "student"})
    for name in ("test_error", "teacher_cosine"):
        assert float(point[name]) == getattr(runs[1], name).mean
        assert float(point[name + "_standard_error"]) == getattr(runs[1], name).standard_error
    assert bool(found.teacher_cosine.sel(stage="teacher").isnull().all())
    assert found.attrs["failed_points"] == 2  # alpha = 0.01 leaves a single sample
    assert found.attrs["failures"].startswith(
        "student.mixing=0.2, alpha=0.01: alpha*n_inputs must give at least 2 samples"
    )
    assert (found.attrs["n_inputs"], found.attrs["n_runs"], found.attrs["seed"]) == (60, 4, 3)
    for executor in ("serial", "processes"):
        again = sweep(DATA, CHAIN, over, ("test_error", "teacher_cosine"), simulation=how, executor=executor, jobs=2)
        xarray.testing.assert_identical(again, found)
    to_file = sweep(DATA, CHAIN, over, ("test_error", "teacher_cosine"), simulation=how, output=tmp_path / "runs.nc")
    xarray.testing.assert_identical(without_description(to_file), found)


# Bad input.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"over": {}}, "over"),
        ({"over": [1.0]}, "over"),
        ({"over": {"alpha": []}}, "over"),
        ({"over": {"alpha": ["a"]}}, "over"),
        ({"over": {"alpha": [1.0, 1.0]}}, "repeat"),
        ({"over": {"alpha": [1.0, np.nan]}}, "finite"),
        ({"over": {"alpha": "1:2"}}, "LOW:HIGH:COUNT"),
        ({"over": {"gamma": [1.0]}}, "gamma"),
        ({"over": {"alpha": [-1.0, 2.0]}}, "alpha"),
        ({"observables": ("nonsense",)}, "nonsense"),
        ({"observables": ()}, "observables"),
        ({"observables": [["norm"]]}, "observables"),
        ({"observables": ("norm", "norm")}, "repeat"),
        ({"over": {1: [1.0]}}, "over"),
        ({"over": {"label_noise": [0.7], "rho": [0.2]}}, "label_noise"),
        ({"rtol": 1e-6, "simulation": Simulation()}, "rtol"),
        ({"output": b"grid.nc"}, "output"),
        ({"output": ""}, "output"),
        ({"output": "a\0b"}, "output"),
        ({"output": "/"}, "output"),
        ({"output": "/dev/null", "overwrite": True}, "output"),
        ({"observables": ("response",), "simulation": Simulation()}, "response"),
        ({"simulation": (500, 10)}, "simulation"),
        ({"executor": "cluster"}, "executor"),
        ({"jobs": 0}, "jobs"),
        ({"rtol": 2.0}, "rtol"),
    ],
    ids=str,
)
def test_bad_arguments(change: dict, words: str) -> None:
    arguments = {"over": {"alpha": [1.0, 2.0]}, **change}
    with pytest.raises(ParameterError, match=words):
        sweep(DATA, CHAIN, **arguments)
    for bad in ({"n_inputs": 1}, {"n_runs": 0}, {"seed": -1}, {"n_runs": 1.5}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            Simulation(**bad)


# Points that are not there, or hard to reach.


def test_impossible_combinations_are_masked() -> None:
    """Each value is allowed with some of the others; the answer elsewhere is not that of a neighbour."""
    third = Estimator(CrossEntropy(), 0.1, eta=0.4, mask_overlap=0.5)
    over = {"student.eta": [0.3, 0.5], "stage3.mask_overlap": [0.5, 0.9]}
    found = sweep(DATA, [*CHAIN.stages, third], over)
    assert found.converged.values.tolist() == [[True, False], [True, True]]
    assert found.attrs["failures"].startswith(
        "student.eta=0.3, stage3.mask_overlap=0.9: mask_overlap=0.9 of stage3 is impossible"
    )
    assert np.isnan(found.test_error.values[:, 0, 1]).all()
    assert np.ptp(found.test_error.sel(stage="teacher").values[found.converged.values]) < 1e-8
    for simulation in (None, Simulation(40, 2)):
        given = [Frozen(1.0, 2.0, name="given"), CHAIN[1]]
        over = {"given.magnetization": [0.5, 1.4], "given.norm_squared": [1.0, 4.0]}
        assert sweep(DATA, given, over, simulation=simulation).attrs["failed_points"] == 1
        # Allowed together, though not one after the other.
        over = {"given.magnetization": [3.0], "given.norm_squared": [10.0]}
        assert sweep(DATA, given, over, simulation=simulation).attrs["failed_points"] == 0


def test_a_point_without_a_limit_does_not_stop_the_others() -> None:
    found = sweep(DATA, CHAIN, {"alpha": [0.8, 30.0], "teacher.ridge": [0.0, 0.1]})
    assert found.converged.values.tolist() == [[False, True], [True, True]]
    assert "separable" in found.attrs["failures"]


def test_points_are_reached_from_either_side() -> None:
    """With so few iterations small ridges are solved from larger ones only, which come after them on the axis."""
    settings = replace(DEFAULT, max_iterations=12, ridge_steps=0)
    over = {"teacher.ridge": np.geomspace(1e-8, 1.0, 24)}
    data = GaussianMixture(3.0, 0.2, 1.0)
    alone = [
        bool(sweep(data, Estimator(CrossEntropy(), 1.0), {"teacher.ridge": [ridge]}, settings=settings).converged[0])
        for ridge in over["teacher.ridge"]
    ]
    assert not alone[0]
    assert alone[-1]
    found = sweep(data, Estimator(CrossEntropy(), 1.0), over, settings=settings)
    assert bool(found.converged.all())
    easy = sweep(data, Estimator(CrossEntropy(), 1.0), over)
    np.testing.assert_allclose(found.test_error, easy.test_error, rtol=1e-7)


def test_failures_are_masked_and_listed() -> None:
    settings = replace(DEFAULT, max_iterations=2, ridge_steps=0)
    found = sweep(DATA, CHAIN, {"alpha": np.linspace(0.5, 4.0, 120)}, settings=settings)
    failed = ~found.converged.values
    assert found.attrs["failed_points"] == failed.sum() > SHOWN_FAILURES
    lines = found.attrs["failures"].split("\n")
    assert len(lines) == SHOWN_FAILURES
    assert lines[0].startswith(f"alpha={found.alpha.values[failed][0]:.6g}: stage")
    assert np.all(np.isnan(found.test_error.values[:, failed]))


# Executors.


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_named_executors_give_the_same_bits(name: str, expected) -> None:
    xarray.testing.assert_identical(sweep(DATA, CHAIN, OVER, OBSERVED, executor=name, jobs=2), expected)


def test_any_executor_gives_the_same_bits(expected) -> None:
    with ThreadPoolExecutor(3) as pool:
        xarray.testing.assert_identical(sweep(DATA, CHAIN, OVER, OBSERVED, executor=pool), expected)
        assert pool.submit(int, "3").result() == 3  # it is not ours to close


# Files.


def test_file_holds_the_same_dataset(expected, tmp_path) -> None:
    path = tmp_path / "deep" / "grid.nc"
    found = sweep(DATA, CHAIN, OVER, OBSERVED, output=path)
    assert [p.name for p in path.parent.iterdir()] == ["grid.nc"]
    xarray.testing.assert_identical(without_description(found), expected)
    # Complete: nothing is computed again.
    again = sweep(DATA, CHAIN, OVER, OBSERVED, output=path, executor=NoExecutor())
    xarray.testing.assert_identical(without_description(again), expected)


class NoExecutor(ThreadPoolExecutor):
    def submit(self, *arguments, **options):
        raise AssertionError("something was computed")


def test_other_files_are_refused(tmp_path, monkeypatch) -> None:
    path, over = tmp_path / "grid.nc", {"alpha": [1.0, 2.0]}
    sweep(DATA, CHAIN, over, output=path).close()
    before = path.read_bytes()
    for change, name in (
        ({"data": replace(DATA, rho=0.3)}, "data"), ({"over": {"alpha": [1.0, 2.5]}}, "over.alpha"),
        ({"chain": Chain.of([CHAIN[0], replace(CHAIN[1], ridge=0.1)])}, "chain"), ({"observables": ("norm",)}, "observables"),
        ({"rtol": 1e-6}, "settings"), ({"simulation": Simulation()}, "kind"),
    ):  # fmt: skip
        with pytest.raises(ParameterError, match=rf"output: .*grid.nc.*{name}"):
            sweep(**{"data": DATA, "chain": CHAIN, "over": over, **change}, output=path)
    monkeypatch.setattr("numerics.sweeps.grid.code_version", lambda simulation: "another")
    with pytest.raises(ParameterError, match=r"code \(different: code\)"):
        sweep(DATA, CHAIN, over, output=path)
    assert path.read_bytes() == before
    sweep(DATA, CHAIN, over, output=path, overwrite=True).close()
    path.write_text("my notes")
    with pytest.raises(ParameterError, match="not a sweep"):
        sweep(DATA, CHAIN, over, output=path)
    assert path.read_text() == "my notes"


def test_other_journals_are_refused(tmp_path) -> None:
    path, over = tmp_path / "grid.nc", {"alpha": [1.0, 2.0]}
    partial_path = tmp_path / "grid.nc.partial"
    for content in (b"my notes" * 100, b""):
        partial_path.write_bytes(content)
        if content:
            with pytest.raises(ParameterError, match="not a journal"):
                sweep(DATA, CHAIN, over, output=path)
            assert partial_path.read_bytes() == content
    sqlite3.connect(partial_path).executescript("CREATE TABLE others (a)").close()
    with pytest.raises(ParameterError, match="not a journal"):
        sweep(DATA, CHAIN, over, output=path)
    partial_path.unlink()
    with journal.Journal(path, {"sweep": {"data": "another"}}) as kept:
        kept.add("sweep", 0, journal.Piece(np.zeros((2, 2))))
        with pytest.raises(ParameterError, match="being written by another process"):
            sweep(DATA, CHAIN, over, output=path)
    with pytest.raises(ParameterError, match=r"begun with other parameters or code \(different: .*sweep.data"):
        sweep(DATA, CHAIN, over, output=path)
    found = sweep(DATA, CHAIN, over, output=path, overwrite=True)
    assert found.test_error.shape == (2, 2)


def test_a_journal_in_use_stays(tmp_path) -> None:
    """Neither refusing nor overwriting takes it away from who writes it."""
    path, over = tmp_path / "grid.nc", {"alpha": [1.0, 2.0]}
    description = {"sweep": Grid(DATA, CHAIN, {"alpha": np.array([1.0, 2.0])}, ("test_error",)).description()}
    with journal.Journal(path, description) as kept:
        for overwrite in (False, True):
            with pytest.raises(ParameterError, match="being written by another process"):
                sweep(DATA, CHAIN, over, output=path, overwrite=overwrite)
        kept.add("sweep", 0, journal.Piece(np.zeros((5, 2))))
    assert kept.path.exists()
    # With the same description it is gone on with, overwriting or not: what is in it counts.
    found = sweep(DATA, CHAIN, over, output=path, overwrite=True)
    assert float(found.test_error[0, 0]) == 0.0
    assert [p.name for p in tmp_path.iterdir()] == ["grid.nc"]


def test_what_a_kill_leaves_beside_a_complete_file_is_removed(tmp_path) -> None:
    path, over = tmp_path / "grid.nc", {"alpha": [1.0, 2.0]}
    sweep(DATA, CHAIN, over, output=path).close()
    description = {"sweep": Grid(DATA, CHAIN, {"alpha": np.array([1.0, 2.0])}, ("test_error",)).description()}
    with journal.Journal(path, description) as kept:
        kept.add("sweep", 0, journal.Piece(np.zeros((5, 2))))
    sweep(DATA, CHAIN, over, output=path, executor=NoExecutor()).close()
    assert [p.name for p in tmp_path.iterdir()] == ["grid.nc"]


def test_outputs_of_all_kinds(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    over = {"alpha": [1.0]}
    found = sweep(DATA, CHAIN, over, output="~/home.nc")
    monkeypatch.chdir("/")
    assert found.test_error.shape == (2, 1)
    (tmp_path / "link.nc").symlink_to(tmp_path / "target.nc")
    how = Simulation(40, 2, seed=2**70)
    assert sweep(DATA, CHAIN, over, simulation=how, output=tmp_path / "link.nc").attrs["seed"] == str(2**70)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home.nc", "link.nc", "target.nc"]
    assert (tmp_path / "link.nc").is_symlink()
    for text in ("5", "[1]", "null", "{"):
        with netCDF4.Dataset(tmp_path / "other.nc", "w") as file:
            file.description = text
        with pytest.raises(ParameterError, match="not a sweep"):
            sweep(DATA, CHAIN, over, output=tmp_path / "other.nc")


def test_a_disk_that_fills_up_at_the_end_loses_nothing(tmp_path, monkeypatch) -> None:
    def full(*arguments) -> None:
        raise RuntimeError("NetCDF: HDF error")

    path, over = tmp_path / "grid.nc", {"alpha": [1.0, 2.0]}
    monkeypatch.setattr(Grid, "write", full)
    with pytest.raises(OSError, match="what was computed is in"):
        sweep(DATA, CHAIN, over, output=path)
    monkeypatch.undo()
    found = sweep(DATA, CHAIN, over, output=path, executor=NoExecutor())
    assert bool(found.converged.all())


def test_sweeps_of_several_threads_can_write_files(tmp_path) -> None:
    def one(k: int) -> float:
        with sweep(DATA, CHAIN, {"alpha": [1.0, 2.0]}, output=tmp_path / f"{k}.nc", executor="serial") as found:
            return float(found.test_error[1, 1])

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(12)))) == 1


def test_no_limit_anywhere_leaves_nothing(tmp_path) -> None:
    data = GaussianMixture(1.0, 0.2, 1.0)
    with pytest.raises(ParameterError, match="ridge of teacher must be > 0"):
        sweep(data, Estimator(LinearLoss(), 0.0), {"alpha": [1.0, 2.0]}, output=tmp_path / "grid.nc")
    assert list(tmp_path.iterdir()) == []


def test_damaged_journal_is_refused(tmp_path) -> None:
    path = tmp_path / "grid.nc"
    with journal.Journal(path, {"a": 1}) as kept:
        for number in range(50):
            kept.add("sweep", number, journal.Piece(np.full((4, 50), number)))
    content = bytearray(kept.path.read_bytes())
    content[8192 : len(content) : 7] = b"x" * len(content[8192 : len(content) : 7])
    kept.path.write_bytes(content)
    with pytest.raises(ParameterError, match=r"damaged|not a journal"):
        journal.Journal(path, {"a": 1})


def test_no_room_is_said_before_computing(tmp_path, monkeypatch) -> None:
    over, nothing = {"alpha": [1.0, 2.0]}, NoExecutor()
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(journal.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ParameterError, match=r"output: .*MB are free"):
        sweep(DATA, CHAIN, over, output=tmp_path / "grid.nc", executor=nothing)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "grid.nc", tmp_path):
        with pytest.raises(ParameterError, match="output: cannot write"):
            sweep(DATA, CHAIN, over, output=bad, executor=nothing)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Interruptions of the command, as a user or a batch system makes them.

ARGUMENTS = ("--over", "alpha=0.2:3:400", "--over", "teacher.ridge=0.01:1:4:log", "--observable", "test_error",
             "--observable", "loss_gap", "--alpha", "0.8", "--executor", "serial")  # fmt: skip
SWEPT = ({"alpha": "0.2:3:400", "teacher.ridge": "0.01:1:4:log"}, ("test_error", "loss_gap"))


def start(path: Path, *more: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "numerics.sweep", *ARGUMENTS, "--output", str(path), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for_journal(process: subprocess.Popen, path: Path, size: int = 40_000) -> None:
    began = time.monotonic()
    partial_path = path.with_name(path.name + ".partial")
    while not (partial_path.exists() and partial_path.stat().st_size > size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 120
        time.sleep(0.01)


def kept_pieces(path: Path) -> set[int]:
    base = sqlite3.connect(path.with_name(path.name + ".partial"))
    numbers = {number for (number,) in base.execute("SELECT number FROM pieces")}
    base.close()
    return numbers


@pytest.fixture(scope="module")
def uninterrupted() -> xarray.Dataset:
    return sweep(DATA, CHAIN, *SWEPT)


def assert_goes_on(path: Path, done: set[int], uninterrupted: xarray.Dataset, monkeypatch) -> None:
    """The sweep is finished without computing again what is done, and equals the one in one go."""
    begun = []

    def counted(tasks, *arguments):
        def drawn():
            for key, task in tasks:
                begun.append(key[1])
                yield key, task

        return executors.run_tasks(drawn(), *arguments)

    monkeypatch.setattr(sweeping, "run_tasks", counted)
    found = sweep(DATA, CHAIN, *SWEPT, output=path)
    assert sorted([*begun, *done]) == list(range(32))
    assert begun
    xarray.testing.assert_identical(without_description(found), uninterrupted)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_killed_sweep_goes_on(tmp_path, uninterrupted, monkeypatch) -> None:
    path = tmp_path / "grid.nc"
    process = start(path)
    wait_for_journal(process, path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not path.exists()
    done = kept_pieces(path)
    assert 0 < len(done) < 32
    assert_goes_on(path, done, uninterrupted, monkeypatch)


def test_interrupted_sweep_goes_on(tmp_path, uninterrupted, monkeypatch) -> None:
    path = tmp_path / "grid.nc"
    # Shells have what they start in the background ignore this signal, and so would what is started here.
    process = start(path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for_journal(process, path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert f"finished points are kept in {path}.partial; the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert_goes_on(path, kept_pieces(path), uninterrupted, monkeypatch)


@pytest.mark.slow
def test_full_disk_loses_nothing(tmp_path, uninterrupted, monkeypatch) -> None:
    path = tmp_path / "grid.nc"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    process = start(path, preexec_fn=limit)
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert errors.splitlines()[-1].startswith(f"error: cannot write {path}.partial")
    assert "Traceback" not in errors
    done = kept_pieces(path)
    assert done
    assert_goes_on(path, done, uninterrupted, monkeypatch)


def test_many_points_stream_to_disk(tmp_path, monkeypatch) -> None:
    """A quarter of a million points, their results made up: memory does not grow with them."""
    monkeypatch.setattr(Solve, "__call__", lambda task: journal.Piece(np.tile(task.values[:, -1], (4, 1))))
    over = {"alpha": np.linspace(0.1, 6, 500), "teacher.ridge": np.geomspace(1e-5, 10, 500)}
    grid = Grid(DATA, Chain.of(CHAIN[0]), over, ("test_error",))
    assert grid.height == 4
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = sweep(DATA, CHAIN[0], over, output=tmp_path / "grid.nc", executor="serial")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert found.test_error.shape == (1, 500, 500)
    assert grown < 20_000  # KiB; all results together are 8 MB, a journal's or a file's buffers a few
    assert_array_equal(found.test_error[0, 7], over["teacher.ridge"])


# The command.


def test_command_writes_what_sweep_returns(tmp_path) -> None:
    path = tmp_path / "grid.nc"
    result = run("--over", "alpha=0.5:2:4", "--over", "student.mixing=0,1", "--rho", 0.3, "--output", path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{path}\n"
    chain = Chain.of(CHAIN)
    expected = sweep(GaussianMixture(2.0, 0.3, 1.0), chain, {"alpha": np.linspace(0.5, 2, 4), "student.mixing": [0, 1]})
    with xarray.open_dataset(path) as found:
        assert_array_equal(found.test_error, expected.test_error)
    with netCDF4.Dataset(path) as file:
        assert file["test_error"].units == "1"
    result = run("--over", "alpha=1,2", "--simulate", 50, 3, "--output", tmp_path / "runs.nc")
    assert result.exit_code == 0, result.stderr
    with xarray.open_dataset(tmp_path / "runs.nc") as found:
        assert found.test_error_standard_error.shape == (2, 2)


def test_command_says_what_failed(tmp_path) -> None:
    result = run("--over", "alpha=0.01,1", "--simulate", 60, 3, "--output", tmp_path / "runs.nc")
    assert result.exit_code == 0
    assert "warning: 1 points without a result are left out: alpha=0.01: " in result.stderr
    result = run("--over", "alpha=0.01,0.02", "--simulate", 60, 3, "--output", tmp_path / "none.nc")
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "g.nc"], ["--over"]),
        (["--over", "alpha=1,2"], ["--output"]),
        (["--over", "alpha", "--output", "g.nc"], ["--over", "NAME="]),
        (["--over", "alpha=1,x", "--output", "g.nc"], ["--over alpha"]),
        (["--over", "alpha=1:2", "--output", "g.nc"], ["--over alpha"]),
        (["--over", "alpha=1,2", "--over", "alpha=3,4", "--output", "g.nc"], ["--over alpha", "twice"]),
        (["--over", "beta=1,2", "--output", "g.nc"], ["--over", "beta"]),
        (["--over", "alpha=1,2", "--observable", "x", "--output", "g.nc"], ["observable", "'x'"]),
        (["--over", "alpha=1,2", "--simulate", "1", "5", "--output", "g.nc"], ["--simulate"]),
        (["--over", "alpha=1,2", "--seed", "3", "--output", "g.nc"], ["--seed", "--simulate"]),
        (["--over", "alpha=1,2", "--simulate", "50", "2", "--rtol", "1e-6", "--output", "g.nc"], ["--rtol"]),
        (["--over", "alpha=1,2", "--scheduler", "nowhere", "--output", "g.nc"], ["--scheduler", "HOST:PORT"]),
        (["--over", "alpha=1,2", "--rtol", "3", "--output", "g.nc"], ["--rtol"]),
        (["--over", "alpha=1,2", "--executor", "gpu", "--output", "g.nc"], ["--executor"]),
        (
            ["--over", "alpha=1,2", "--scheduler", "nowhere:1", "--executor", "serial", "--output", "g.nc"],
            ["--executor"],
        ),
        (["--over", "alpha=1,2", "--output", "."], ["--output"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_request_is_named_in_one_line(arguments: list[str], words: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


# Progress.


def test_code_is_compiled_before_the_clock_of_the_bar_starts(monkeypatch) -> None:
    """One bar, with a name, that is made when everything is compiled."""
    happened: list[str] = []
    for name in ("compile_chain", "compile_losses"):
        monkeypatch.setattr(sweeping, name, lambda chain, name=name: happened.append(name))

    make = sweeping._bar

    def bar(progress, total, before):
        made = make(progress, total, before)
        happened.append(f"bar: {made.desc.removesuffix(': ')}: {made.total} points")
        return made

    monkeypatch.setattr(sweeping, "_bar", bar)
    model = GaussianMixture(alpha=1.0), Estimator(CrossEntropy(), ridge=0.1)
    sweep(*model, {"alpha": [1.0, 2.0]}, progress=True)
    assert happened == ["compile_chain", "bar: sweep: 2 points"]
    happened.clear()
    sweep(*model, {"alpha": [1.0, 2.0]}, simulation=Simulation(20, 2), progress=True)
    assert happened == ["compile_losses", "bar: sweep: 2 points"]
