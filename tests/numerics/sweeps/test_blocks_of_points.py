"""Blocks: what is read off a few problems for all of them is, to the last bit, what each of them says."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
import xarray

from numerics import BayesOptimal, DataSet, Estimator, Frozen, GaussianMixture, Hebbian, LinearRule, PowerLaw
from numerics.models import (
    Block,
    Chain,
    DataModel,
    ParameterError,
    allowed_in_between,
    described,
    parameter_paths,
    with_parameter,
)
from numerics.models import block as blocks
from numerics.scalar.compiled import PointArrays
from numerics.sweeps import grid, tasks
from numerics.sweeps.grid import Grid
from numerics.sweeps.points import ManyPoints
from numerics.sweeps.run import evaluate
from theory.losses import CrossEntropy, Distillation, LogitMatching, Loss, PseudoLabels, SquareDistillation, SquareLoss

MIXTURE = GaussianMixture(2.0, 0.3, 0.8, label_noise=0.1)
TEACHER = Estimator(CrossEntropy(0.05), 0.1)
STUDENT = Estimator(Distillation(), 0.01)
FORMULA = Loss.from_expression("c*(h - h_teacher)**2/2 + a*softplus(-s*h)", {"c": 0.5, "a": 1.0})


def student(loss: Loss, **given: object) -> Estimator:
    return Estimator(loss, 0.01, **given)


PROBLEMS: dict[str, tuple[DataModel, list]] = {
    "distillation": (MIXTURE, [TEACHER, student(Distillation(0.5, 2.0, 0.1), eta=0.5)]),
    "masks": (MIXTURE, [student(CrossEntropy(), eta=0.5, bias=0.3), student(Distillation(), eta=0.4, mask_overlap=0.5)]),
    "logits": (MIXTURE, [TEACHER, student(LogitMatching(0.5)), student(Distillation(teacher=(1, 2)), bias=0.1)]),
    "weights that vanish": (MIXTURE, [student(SquareLoss()), student(SquareDistillation(1.0, 0.5)), STUDENT]),
    "signs": (MIXTURE, [TEACHER, student(PseudoLabels())]),
    "given weights": (MIXTURE, [Frozen(0.2, 1.5, 0.1), STUDENT]),
    "two data sets": (
        GaussianMixture(2.0, 0.3, 0.8, further=[DataSet("fresh", 1.5, 0.2)]),
        [TEACHER, student(Distillation(), sets=("training", "fresh"))],
    ),
    "hebbian": (MIXTURE, [Hebbian(bias=0.2), STUDENT]),
    "hebbian with a ridge": (MIXTURE, [Hebbian(ridge=0.7, eta=0.5), STUDENT]),
    "best": (GaussianMixture(2.0, 0.3), [BayesOptimal(), STUDENT]),
    "formula": (MIXTURE, [TEACHER, student(FORMULA)]),
    "power law": (GaussianMixture(2.0, 0.3, inputs=PowerLaw(1.5, 0.5, 5)), [TEACHER, STUDENT]),
    "regression": (LinearRule(2.0, 0.3), [student(SquareLoss()), student(SquareDistillation(0.5, 0.9), eta=0.5)]),
    "sign": (LinearRule(2.0, 0.25, "sign", 0.1), [TEACHER, STUDENT]),
    "probit": (LinearRule(2.0, 0.3, "probit"), [TEACHER, STUDENT]),
    "logit": (LinearRule(2.0, output="logit", slope=3.0), [TEACHER, STUDENT]),
}  # fmt: skip

ENDS = {
    "ridge": (1e-7, 1.0), "eta": (0.2, 1.0), "gain": (-1.0, 1.0), "bias": (-1.0, 1.0), "magnetization": (-1.0, 1.0),
    "norm_squared": (0.5, 2.0), "label_noise": (0.0, 0.5), "smoothing": (0.0, 0.5), "noise": (0.0, 1.0), "mask_overlap": (0.0, 1.0),
}  # fmt: skip
"""Of lines, ends of ranges among them; for others see the table of parameters."""


def values_of(data: DataModel, chain: Chain, path: str) -> np.ndarray:
    """From end to end, with the middle, those that are allowed."""
    known = described(path)
    low, high = ENDS.get(path.rpartition(".")[2], (known.low, known.high))
    values = np.linspace(low, high, 9) if not math.isnan(low) else np.linspace(0.1, 0.9, 9)
    return np.array([value for value in values if is_allowed(data, chain, (path,), (value,))])


def is_allowed(data: DataModel, chain: Chain, paths: tuple[str, ...], values: tuple[float, ...]) -> bool:
    try:
        tasks.problem_at(data, chain, paths, values)
    except ParameterError:
        return False
    return True


def numbers_of(arrays: PointArrays) -> list[np.ndarray]:
    data, training, groups = arrays.points
    return [*data, *training, *groups[:-1]]


def require_same(data: DataModel, chain: Chain, paths: tuple[str, ...], values: np.ndarray) -> None:
    """Of a block and of its problems one by one."""
    block, points = Block(data, chain, paths, values), []
    for row in values:
        problem = data, chain
        for path, value in zip(paths, row, strict=True):
            problem = with_parameter(*problem, path, value)
        points.append(problem)
    found, expected = PointArrays(block), PointArrays(points)
    assert found.limits == expected.limits
    for mine, other in zip(numbers_of(found), numbers_of(expected), strict=True):
        assert mine.dtype == other.dtype, paths
        assert mine.flags.c_contiguous, paths
        assert mine.tobytes() == other.tobytes(), paths
    mine, other = (vars(ManyPoints.of(*of).data) for of in ((found, block), (expected, points)))
    assert {name: np.asarray(value).tobytes() for name, value in mine.items()} == {
        name: np.asarray(value).tobytes() for name, value in other.items()
    }


@pytest.mark.parametrize("name", PROBLEMS)
def test_parameters_of_a_block_are_those_of_its_points(name) -> None:
    data, chain = PROBLEMS[name][0], Chain.of(PROBLEMS[name][1])
    paths = parameter_paths(chain, data)
    for path in paths:
        values = values_of(data, chain, path)[:, None]
        for some in (values, values[1:-1], values[::-1], values[:1]):
            if some.size:
                require_same(data, chain, (path,), some)
    for path, other in pairwise(paths):
        values = product(values_of(data, chain, path)[::5], values_of(data, chain, other)[1::2])
        rows = list(values)
        if rows and all(is_allowed(data, chain, (path, other), row) for row in rows):
            require_same(data, chain, (path, other), np.array(rows))


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("distillation", {"teacher.eta"}),  # which of the masks is the larger one changes
        ("two data sets", set()),
        ("weights that vanish", set()),
        ("given weights", set()),
        ("regression", {"teacher.eta"}),
        ("logit", {"slope"}),
    ],
)
def test_few_problems_are_made(monkeypatch, name, others) -> None:
    made = []
    monkeypatch.setattr(blocks, "with_parameter", lambda *given: made.append(given) or with_parameter(*given))
    data, chain = PROBLEMS[name][0], Chain.of(PROBLEMS[name][1])
    many = set()
    for path in parameter_paths(chain, data):
        values = values_of(data, chain, path)[1:-1]
        for _ in range(2):  # of losses that change all are looked at once
            made.clear()
            block = Block(data, chain, (path,), values[:, None])
            ManyPoints.of(PointArrays(block), block)
        if len(made) > 4:
            many.add(path)
    assert many == others


def test_values_between_allowed_ones_are_allowed() -> None:
    for name, (data, stages) in PROBLEMS.items():
        chain = Chain.of(stages)
        for path in parameter_paths(chain, data):
            values = [*np.linspace(-1.5, 1.5, 31), 0.5 + 1e-9, 1.0 + 1e-9, 30.0]
            allowed = [is_allowed(data, chain, (path,), (value,)) for value in sorted(values)]
            changes = sum(before != after for before, after in pairwise([False, *allowed, False]))
            assert changes <= 2 or not allowed_in_between(chain, path), f"{name}: {path}"


def test_a_formula_may_be_convex_on_both_sides() -> None:
    loss = Loss.from_expression("(c**2 - 1)*h**2 + softplus(-s*h)", {"c": 2.0})
    values = np.linspace(-3.0, 3.0, 13)
    chain = Chain.of(Estimator(loss, 0.1))
    assert not allowed_in_between(chain, "teacher.c")
    assert allowed_in_between(chain, "teacher.ridge")
    found = dataset(MIXTURE, chain, {"teacher.c": values})
    assert list(found["converged"].to_numpy()) == [abs(c) >= 1.0 for c in values]
    assert found.attrs["failures"].count("is not convex") == found.attrs["failed_points"] == 3


def dataset(data: DataModel, chain: Chain, axes: dict, observables: tuple[str, ...] = ("norm",)) -> xarray.Dataset:
    over = {path: np.asarray(values, dtype=float) for path, values in axes.items()}
    return evaluate({"grid": Grid(data, chain, over, observables)}, executor="serial", progress=False)["grid"]


RIDGES = np.geomspace(1e-5, 1.0, 30)
ALPHAS = np.linspace(6.0, 0.2, 130)
SWEEPS = {
    "alpha": ("distillation", {"student.ridge": [0.1, 1e-4], "alpha": ALPHAS}),
    "short lines": (
        "distillation",
        {"rho": [0.2, 0.4], "student.mixing": np.linspace(0.0, 1.0, 5), "delta": [0.5, 1.0, 2.0]},
    ),
    "two losses": ("distillation", {"teacher.smoothing": [0.0, 0.5], "student.temperature": np.linspace(0.5, 5.0, 30)}),
    "one point a line": ("distillation", {"alpha": [1.0, 3.0], "student.ridge": [0.1]}),
    "label noise that is refused": ("distillation", {"alpha": [1.0, 3.0], "label_noise": np.linspace(0.0, 0.6, 60)}),
    "mixing that is refused": ("distillation", {"alpha": [1.0, 3.0], "student.mixing": np.linspace(-0.1, 1.1, 60)}),
    "ridges of 0": ("logits", {"alpha": [1.0, 3.0], "teacher.ridge": [0.0, *RIDGES]}),
    "magnetization that is refused": ("given weights", {"teacher.magnetization": np.linspace(-1.3, 1.3, 60)}),
    "lines that are refused": ("best", {"label_noise": [0.0, 0.1], "alpha": ALPHAS}),
    "masks": ("masks", {"student.mask_overlap": [0.2, 0.9], "student.eta": np.linspace(0.1, 1.0, 60)}),
    "gain": ("weights that vanish", {"alpha": [1.0, 3.0], "student.gain": np.linspace(-1.0, 1.0, 21)}),
    "spectral": ("regression", {"alpha": [1.0, 3.0, 4.0], "student.ridge": np.geomspace(1e-8, 1.0, 70)}),
    "noise": ("regression", {"alpha": [1.0, 3.0], "noise": np.linspace(0.0, 1.0, 60)}),
    "formula": ("formula", {"alpha": [1.0, 3.0], "student.a": np.linspace(0.5, 1.5, 8)}),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_grids_are_those_of_single_problems_in_short_tasks(monkeypatch, name) -> None:
    which, axes = SWEEPS[name]
    data, chain = PROBLEMS[which][0], Chain.of(PROBLEMS[which][1])
    observables = ("norm", "norm_quadrature_error")
    monkeypatch.setattr(grid, "LEAST_TASKS", 1)
    found = dataset(data, chain, axes, observables)
    monkeypatch.setattr(grid, "RUNS_PER_TASK", {})
    monkeypatch.setattr(tasks.Points, "block", lambda *_: None)
    expected = dataset(data, chain, axes, observables)
    assert found.attrs == expected.attrs
    assert bool(found.converged.any())
    for variable in expected.data_vars:
        assert found[variable].to_numpy().tobytes() == expected[variable].to_numpy().tobytes(), variable
