"""The compiled core as code: modules that can be imported, functions that can be read, memory that is given back."""

from __future__ import annotations

import ast
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.runtime import _nrt_python, rtsys

from numerics import DataSet, Estimator, Frozen, GaussianMixture, solve
from numerics.driver import outcome
from numerics.scalar import kernels
from numerics.scalar.kernels import layout
from numerics.settings import DEFAULT, Settings
from theory.losses import CrossEntropy, Distillation, Loss

KERNELS = sorted(path.stem for path in Path(kernels.__file__).parent.glob("*.py") if path.stem != "__init__")
FILES = [Path(kernels.__file__).parent / f"{name}.py" for name in KERNELS]
FILES += sorted(Path(outcome.__file__).parent.glob("*.py"))
MOST_PARAMETERS = 8


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_modules(name: str) -> None:
    assert import_module(f"numerics.scalar.kernels.{name}").__doc__


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_functions_take_few_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert len(node.args.args) <= MOST_PARAMETERS, node.name


def test_settings_are_defined_once() -> None:
    compiled = layout.compiled_settings(DEFAULT)
    assert compiled._fields == tuple(entry.name for entry in fields(Settings) if entry.name != "common")
    assert compiled == tuple(getattr(DEFAULT, name) for name in compiled._fields)
    assert numba.typeof(compiled) == layout.SETTINGS


def test_the_layout_of_the_unknowns() -> None:
    x = np.array([0.5, -0.1, 1.0, 2.0, np.log(9.0), 0.3, 0.4, np.log(0.7)])
    order, at = layout.unpack(x), layout.places(2)
    assert (order.m, order.b) == (x[at.m], x[at.b])
    np.testing.assert_array_equal(order.couplings, x[at.couplings : at.norm])
    np.testing.assert_array_equal(order.responses, x[at.responses : at.response])
    assert order.norm == pytest.approx(3.0)
    assert order.response == pytest.approx(0.7)


def test_borrowed_tuples_are_given_back() -> None:
    """Named tuples go through the core uncounted: no array may stay, and none may go too early."""
    huber = Loss.from_expression("d**2*(sqrt(1 + ((h - h_teacher)/d)**2) - 1)", {"d": 0.5})
    teacher, data = Estimator(CrossEntropy(), 0.1), GaussianMixture(2.0, 0.2, 1.0)
    two_sets = GaussianMixture(1.0, 0.3, 0.8, 0.1, further=(DataSet("fresh", 1.5),))
    problems = [
        (data, [teacher, Estimator(Distillation(), 1e-5, eta=0.5)]),
        (two_sets, [teacher, Estimator(huber, 0.1, sets="fresh"), Estimator(Distillation(), 0.1)]),
        (data, [Frozen(0.5, 1.0), Estimator(Distillation(), 0.1)]),
        (data, [Estimator(CrossEntropy(smoothing=0.5), 0.1), Estimator(Distillation(), 0.1)]),
    ]

    def kept() -> int:
        for data, chain in problems:
            assert solve(data, chain).converged
        stats = rtsys.get_allocation_stats()
        return stats.mi_alloc - stats.mi_free

    _nrt_python.memsys_enable_stats()
    kept()
    first = kept()
    assert all(kept() == first for _ in range(3))
