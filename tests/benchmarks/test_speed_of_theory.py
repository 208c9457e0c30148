"""Speed of the solver.  Ordinary runs skip this; ``pytest tests/benchmarks --benchmark-only -m ""`` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter, thread_time

import numpy as np
import pytest
from handwritten import N_SUMS, all_nodes
from numba import njit
from scipy.special import expit
from straightforward import solve_logistic

from numerics import Chain, Clusters, Dense, Estimator, GaussianMixture, LinearMap, PowerLaw, solve, sweep
from numerics.codegen.cache import CACHE_VARIABLE
from numerics.models import Inputs
from numerics.random_box import random_points
from numerics.scalar.compiled import PointArrays, compile_chain
from numerics.scalar.kernels.averages import point_tables
from numerics.scalar.kernels.generated import TABLE_ROWS, accumulate_pairs
from numerics.scalar.kernels.layout import Node
from numerics.settings import DEFAULT
from numerics.sweeps.grid import Grid
from numerics.sweeps.tasks import problem_at
from theory.losses import CrossEntropy, Distillation, Loss

ROOT = Path(__file__).parents[2]
N_BOX = 1000
N_GENERAL = 200
N_DENSE = 1000
N_CLUSTERS = 500
CURVE = np.geomspace(0.1, 6.0, 60)
DATA = GaussianMixture(3.0, 0.2, 1.0)
ONE = Chain.of(Estimator(CrossEntropy(), 0.1))
TWO = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 1e-5, eta=0.5)])

UNSPLIT_DISTILLATION = (
    "(1-chi)*(log(1+exp(h))-y*h) + chi*(log(1+exp(h/T))-sigmoid(h_teacher/T)*h/T) + k*y*h**2/2",
    {"chi": 1.0, "T": 1.0, "k": 0.0},
)
"""Distillation whose curvature formally depends on the label, so that it takes the path without a shared grid."""


def cold(points: list[tuple[GaussianMixture, Chain]], repeats: int = 5) -> np.ndarray:
    """Least time of each point's solution from scratch inside the core, seconds, shape (points,)."""
    compiled = compile_chain(points[0][1])
    seconds = np.full(len(points), np.inf)
    for i, point in enumerate(points):
        for _ in range(repeats):
            arrays = PointArrays([point])
            begin = perf_counter()
            arrays.solve(compiled, DEFAULT)
            seconds[i] = min(seconds[i], perf_counter() - begin)
    return seconds


def test_one_stage_cold(benchmark, measured) -> None:
    compiled = compile_chain(ONE)
    result = PointArrays([(DATA, ONE)])
    result.solve(compiled, DEFAULT)

    def fresh():
        return (PointArrays([(DATA, ONE)]),), {}

    benchmark.pedantic(lambda arrays: arrays.solve(compiled, DEFAULT), setup=fresh, rounds=300, warmup_rounds=5)
    measured["one stage"] = benchmark.stats.stats.min


def test_straightforward_scipy(benchmark, measured) -> None:
    found, _ = benchmark.pedantic(solve_logistic, (DATA, 0.1), rounds=1)
    exact = solve(DATA, ONE, throw=True)[0]
    assert found.m == pytest.approx(exact.magnetization, abs=1e-5)
    assert found.b == pytest.approx(exact.bias, abs=1e-5)
    assert found.q == pytest.approx(exact.norm_squared, abs=1e-5)
    measured["scipy"] = benchmark.stats.stats.median


def test_two_stages_cold_over_the_random_box(benchmark, measured) -> None:
    points = random_points(N_BOX, seed=1)
    seconds = benchmark.pedantic(cold, (points, 3), rounds=1)
    measured["two stages"] = float(np.median(seconds))
    benchmark.extra_info |= {f"percentile_{p}": float(np.percentile(seconds, p)) for p in (50, 90, 99, 100)}


def test_two_stages_along_a_curve(benchmark, measured) -> None:
    points = [(GaussianMixture(alpha, DATA.rho, DATA.delta), TWO) for alpha in CURVE]
    compiled = compile_chain(TWO)

    def fresh():
        return (PointArrays(points),), {}

    def run(arrays: PointArrays) -> PointArrays:
        arrays.solve(compiled, DEFAULT, np.log(CURVE))
        return arrays

    arrays = benchmark.pedantic(run, setup=fresh, rounds=50, warmup_rounds=2)
    assert (arrays.solved == 2).all()
    measured["curve"] = benchmark.stats.stats.min / CURVE.size


def test_two_stages_on_dense_inputs(benchmark, measured) -> None:
    """From a solution nearby; what is done once a covariance is measured apart."""
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(N_DENSE, 2 * N_DENSE)) * (np.arange(1, N_DENSE + 1) ** -0.4)[:, None]
    seen = LinearMap(generator.normal(size=(N_DENSE, N_DENSE)) / np.sqrt(N_DENSE))
    chain = Chain.of([TWO[0], Estimator(Distillation(), 1e-2, features=seen)])
    PointArrays([(DATA, TWO)]).solve(compile_chain(TWO), DEFAULT)  # nothing is loaded any more
    begin = perf_counter()
    inputs = Dense(samples @ samples.T / N_DENSE)
    PointArrays([(GaussianMixture(2.0, 0.3, inputs=inputs), chain)])
    measured["dense, once"] = perf_counter() - begin
    measured["dense"] = from_nearby(benchmark, inputs, chain)
    assert measured["dense"] < 10e-3


def test_two_stages_on_a_power_law(benchmark, measured) -> None:
    """2000 coordinates of different variances, of which the student sees half; from a solution nearby."""
    chain = Chain.of([TWO[0], Estimator(Distillation(), 1e-2, eta=0.5)])
    measured["power law"] = from_nearby(benchmark, PowerLaw(1.2, 0.4, 2 * N_DENSE), chain)
    assert measured["power law"] < 4e-3


def from_nearby(benchmark, inputs: Inputs, chain: Chain) -> float:
    """Least time of a point whose alpha is one percent off that of a solution."""
    compiled = compile_chain(chain)
    start = PointArrays([(GaussianMixture(2.0, 0.3, inputs=inputs), chain)])
    start.solve(compiled, DEFAULT)

    def near():
        arrays = PointArrays([(GaussianMixture(2.02, 0.3, inputs=inputs), chain)])
        arrays.x[:], arrays.started[:] = start.x, 1
        return (arrays,), {}

    def run(arrays: PointArrays) -> PointArrays:
        arrays.solve(compiled, DEFAULT)
        return arrays

    arrays = benchmark.pedantic(run, setup=near, rounds=20, warmup_rounds=2)
    assert (arrays.solved == 2).all()
    return benchmark.stats.stats.min


def test_clusters_of_their_own_covariances_from_nearby(benchmark, measured) -> None:
    generator = np.random.default_rng(0)
    covariances = []
    for power in (0.3, 0.5):
        samples = (
            generator.normal(size=(N_CLUSTERS, 2 * N_CLUSTERS)) * (np.arange(1, N_CLUSTERS + 1) ** -power)[:, None]
        )
        covariances.append(samples @ samples.T / (2 * N_CLUSTERS))
    means = generator.normal(size=(2, N_CLUSTERS)) / np.sqrt(N_CLUSTERS)
    data = Clusters(2.0, means, np.array(covariances), [1, -1], [0.3, 0.7])
    chain = Chain.of([TWO[0], Estimator(Distillation(), 1e-2)])
    start, near = solve(data, chain), replace(data, alpha=2.02)
    found = benchmark.pedantic(solve, (near, chain), {"start": start}, rounds=3)
    assert found.converged
    assert found.prior == "one covariance a cluster"
    measured["clusters"] = benchmark.stats.stats.min
    assert measured["clusters"] < 2.0


def test_call_of_solve(benchmark, measured) -> None:
    benchmark.pedantic(solve, (DATA, TWO), rounds=300, warmup_rounds=5)
    measured["solve"] = benchmark.stats.stats.min
    measured["overhead"] = measured["solve"] - float(cold([(DATA, TWO)], 100)[0])


def test_grid_through_sweep(benchmark, measured) -> None:
    axes = {"teacher.ridge": np.geomspace(1e-5, 10.0, 100), "alpha": np.geomspace(0.1, 6.0, 100)}
    sweep(DATA, TWO, {"alpha": [1.0]})
    grid = benchmark.pedantic(sweep, (DATA, TWO, axes), rounds=3)
    assert bool(grid["converged"].all())
    measured["grid"] = benchmark.stats.stats.min


def test_what_a_grid_adds_to_its_core(benchmark, measured) -> None:
    """Processor time of a task, and how much of it is not the compiled solver's: that part threads take in turns."""
    axes = {"student.ridge": np.geomspace(1e-5, 1.0, 100), "alpha": np.geomspace(0.2, 10.0, 100)}
    task = Grid(DATA, TWO, axes, ("test_error",)).tasks()[20]
    points = [problem_at(DATA, TWO, task.paths, values) for values in task.values]
    ends = [*range(0, task.size, task.longest), task.size]
    runs = [(PointArrays(points[begin:end]), np.log(task.values[begin:end, 1])) for begin, end in pairwise(ends)]
    compiled = compile_chain(TWO)

    def core() -> None:
        for arrays, position in runs:
            arrays.started[:] = 0
            arrays.solve(compiled, task.settings, position)

    def least(what: Callable[[], object]) -> float:
        seconds = []
        for _ in range(30):
            begin = thread_time()
            what()
            seconds.append(thread_time() - begin)
        return min(seconds) / task.size

    whole, measured["grid, core"] = benchmark.pedantic(lambda: (least(task), least(core)), rounds=1)
    measured["grid, added"] = whole - measured["grid, core"]
    assert measured["grid, added"] < 0.3 * measured["grid, core"]


@pytest.mark.parametrize("ridge", [1e-3, 0.0])
def test_grid_without_ridge(benchmark, measured, ridge: float) -> None:
    chain = Chain.of([TWO[0], Estimator(Distillation(), ridge, eta=0.5)])
    axes = {"delta": np.geomspace(0.5, 2.0, 20), "alpha": np.geomspace(0.11, 6.0, 100)}
    sweep(DATA, chain, {"alpha": [1.0]})
    grid = benchmark.pedantic(sweep, (DATA, chain, axes), rounds=3)
    assert bool(grid["converged"].all())
    measured["ridge" if ridge else "no ridge"] = benchmark.stats.stats.min


def test_loss_that_does_not_split(benchmark, measured) -> None:
    """The same problems in both forms: answers equal to 1e-8."""
    formula, values = UNSPLIT_DISTILLATION
    unsplit = Loss.from_expression(formula, values)
    assert unsplit.split is None
    points, others = [], []
    for data, chain in random_points(N_GENERAL, seed=2):
        student = chain[1]
        chi, temperature = student.loss.parameters["mixing"], student.loss.parameters["temperature"]
        loss = unsplit.with_parameters(chi=chi, T=temperature)
        first, second = solve(data, chain), solve(data, [chain[0], Estimator(loss, student.ridge, student.eta)])
        if first.converged and second.converged:
            points.append((data, chain))
            others.append((data, second.chain))
            norms = np.sqrt(np.diag(first.overlap))
            np.testing.assert_allclose(
                second.overlap / np.outer(norms, norms), first.overlap / np.outer(norms, norms), atol=2e-8
            )
            assert second[1].test_error == pytest.approx(first[1].test_error, rel=1e-8)
    assert len(points) > 0.95 * N_GENERAL
    split = cold(points, 3)
    general = benchmark.pedantic(cold, (others, 3), rounds=1)
    measured["split"], measured["general"] = float(np.median(split)), float(np.median(general))
    benchmark.extra_info["ratio"] = measured["general"] / measured["split"]
    benchmark.extra_info["worst_ratio"] = float((general / split).max())


def kernel_problem(n_nodes: int = 100, n_points: int = 160) -> dict:
    """Nodes and points of a cross-entropy stage: gamma = 5, sigma = 2."""
    gamma, sigma = 5.0, 2.0
    h = np.linspace(-45.0, 45.0, n_points)
    s = expit(h)
    s1 = s * expit(-h)
    s2 = s1 * (1 - 2 * s)
    points = np.ascontiguousarray([h, s, s - 1, s1, s2, np.full(n_points, h[1] - h[0])])
    stretch = 1 + gamma * s1
    return {
        "gamma": gamma, "sigma": sigma, "points": points, "position": h + gamma * s, "gradient": s,
        "density": points[5] * stretch / (sigma * np.sqrt(2 * np.pi)),
        "first": -s1 / stretch, "second": -s2 / stretch**3,
        "centres": np.linspace(-3.0, 6.0, n_nodes), "targets": np.linspace(0.0, 1.0, n_nodes),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["generated", "handwritten"])
def test_kernel(benchmark, measured, kind: str) -> None:
    """100 nodes of 160 points, over and over; both kernels give the same sums."""
    problem = kernel_problem()
    n = problem["centres"].size
    size = problem["gradient"].size
    tables = np.empty((TABLE_ROWS, size))
    point_tables(problem["gamma"], problem["sigma"], problem["points"], size, tables)

    @njit(nogil=True)
    def generated(centres, sigma, targets, tables, sums, repeats):
        for _ in range(repeats):
            for i in range(centres.size):
                accumulate_pairs(Node(centres[i], targets[i], 0, tables.shape[1], 0), i, 1.0 / sigma, tables, sums)

    @njit(nogil=True)
    def handwritten(centres, sigma, targets, position, gradient, density, first, second, sums, repeats):
        for _ in range(repeats):
            all_nodes(centres, sigma, targets, position, gradient, density, first, second, sums)

    repeats = 50
    by_hand, by_code = np.empty((n, N_SUMS)), np.empty((N_SUMS, n))
    code_arguments = (problem["centres"], problem["sigma"], problem["targets"], tables, by_code)
    columns = [problem[name] for name in ("position", "gradient", "density", "first", "second")]
    hand_arguments = (problem["centres"], problem["sigma"], problem["targets"], *columns, by_hand)
    generated(*code_arguments, 1)
    handwritten(*hand_arguments, 1)
    np.testing.assert_allclose(by_code.T, by_hand, rtol=1e-9, atol=1e-11)
    run, arguments = {"generated": (generated, code_arguments), "handwritten": (handwritten, hand_arguments)}[kind]
    benchmark.pedantic(run, (*arguments, repeats), rounds=30, warmup_rounds=1)
    measured[kind] = benchmark.stats.stats.min / (repeats * n * size)


FIRST_RESULT = """
from numerics import Estimator, GaussianMixture, solve
from theory.losses import CrossEntropy, Distillation, Loss
chain = [Estimator(CrossEntropy(), 0.1), Estimator({loss}, 1e-5, eta=0.5)]
assert solve(GaussianMixture(0.8, 0.2, 1.0), chain).converged
"""


def test_cold_start(benchmark, measured, tmp_path) -> None:
    """Start to first result in a new process: with an empty cache, with a new loss, and with everything cached."""
    environment = os.environ | {CACHE_VARIABLE: str(tmp_path / "code"), "NUMBA_CACHE_DIR": str(tmp_path / "numba")}

    def start(text: str) -> float:
        begin = perf_counter()
        subprocess.run([sys.executable, "-c", text], check=True, cwd=ROOT, env=environment)
        return perf_counter() - begin

    usual = FIRST_RESULT.format(loss="Distillation()")
    new = FIRST_RESULT.format(
        loss="Loss.from_expression('log(1+exp(-s*h))*(1+k*sigmoid(h_teacher))+k*h**2/8', {'k': 0.3})"
    )
    measured["empty cache"] = start(usual)
    measured["new loss"] = start(new)
    measured["full cache"] = benchmark.pedantic(lambda: min(start(usual) for _ in range(3)), rounds=1)
    measured["import"] = min(start("import numerics") for _ in range(3))
