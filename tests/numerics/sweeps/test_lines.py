"""Lines: what is read off a few problems for all of them is, to the last bit, what each of them says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray
from numpy.testing import assert_array_equal

from numerics import BayesOptimal, DataSet, Estimator, Frozen, GaussianMixture, Hebbian, LinearRule, sweep
from numerics.models import Chain, DataModel, Line, ParameterError, check_fit, described, parameter_paths
from numerics.models import allowed_in_between, with_parameter
from numerics.scalar.compiled import PointArrays
from numerics.scalar.kernels import layout
from numerics.sweeps.points import ManyData
from numerics.sweeps.tasks import Points
from theory.levels import ConfidenceOnLabel, ConfidenceWeighted, LabelTargets
from theory.losses import (
    CrossEntropy,
    Distillation,
    LogitMatching,
    Loss,
    PseudoLabels,
    SquareDistillation,
    SquareLoss,
)

MIXTURE = GaussianMixture(2.0, 0.3, 0.8, label_noise=0.1)
FRESH = GaussianMixture(2.0, 0.3, 0.8, further=[DataSet("fresh", 1.5, 0.2)])
TEACHER = Estimator(CrossEntropy(0.05), 0.1)
FORMULA = Loss.from_expression("c*(h - h_teacher)**2/2 + a*softplus(-s*h)", {"c": 0.5, "a": 1.0})


def student(loss: Loss, **given: object) -> Estimator:
    return Estimator(loss, 0.01, **given)


PROBLEMS: dict[str, tuple[DataModel, list]] = {
    "distillation": (MIXTURE, [TEACHER, student(Distillation(0.5, 2.0, 0.1), eta=0.5)]),
    "fixed bias": (MIXTURE, [student(CrossEntropy(), bias=0.3), student(Distillation(), bias=0.1)]),
    "masks": (MIXTURE, [student(CrossEntropy(), eta=0.5), student(Distillation(), eta=0.4, mask_overlap=0.5)]),
    "logits": (MIXTURE, [TEACHER, student(LogitMatching(0.5)), student(Distillation(teacher=(1, 2)))]),
    "squares": (MIXTURE, [student(SquareLoss()), student(SquareDistillation(0.5, 0.9)), student(SquareLoss())]),
    "at rest": (MIXTURE, [student(SquareLoss()), student(SquareDistillation(1.0, 0.5)), student(Distillation())]),
    "signs": (MIXTURE, [TEACHER, student(PseudoLabels())]),
    "levels": (MIXTURE, [TEACHER, student(LabelTargets()), student(ConfidenceWeighted()), student(ConfidenceOnLabel())]),
    "given": (MIXTURE, [Frozen(0.2, 1.5, 0.1), student(Distillation())]),
    "sets": (FRESH, [TEACHER, student(Distillation(), sets=("training", "fresh"))]),
    "hebbian": (MIXTURE, [Hebbian(bias=0.2), student(Distillation())]),
    "hebbian, ridge": (MIXTURE, [Hebbian(ridge=0.7, eta=0.5), student(Distillation())]),
    "best": (GaussianMixture(2.0, 0.3), [BayesOptimal(), student(Distillation())]),
    "formula": (MIXTURE, [TEACHER, student(FORMULA)]),
    "regression": (LinearRule(2.0, 0.3), [student(SquareLoss()), student(SquareDistillation(0.5, 0.9), eta=0.5)]),
    "sign": (LinearRule(2.0, 0.0, "sign", 0.1), [TEACHER, student(Distillation())]),
    "probit": (LinearRule(2.0, 0.3, "probit"), [TEACHER, student(Distillation())]),
    "logit": (LinearRule(2.0, output="logit", slope=3.0), [TEACHER, student(Distillation())]),
}  # fmt: skip

ENDS = {
    "ridge": (1e-7, 1.0), "eta": (0.2, 1.0), "gain": (-1.0, 1.0), "bias": (-1.0, 1.0), "magnetization": (-1.0, 1.0),
    "norm_squared": (0.5, 2.0), "label_noise": (0.0, 0.5), "smoothing": (0.0, 0.5), "mask_overlap": (0.1, 0.9), "noise": (0.0, 1.0),
}  # fmt: skip
"""Ends of lines, ends of ranges among them, where no others are in the table of parameters."""

FEW = {
    "levels": {"mixing": (0.0, 1.0)},
}
CASES = [
    pytest.param(data, Chain.of(stages), path, id=f"{name}: {path}")
    for name, (data, stages) in PROBLEMS.items()
    for path in parameter_paths(Chain.of(stages), data)
]


def values_of(path: str, count: int = 9) -> np.ndarray:
    """From end to end, with the middle."""
    known = described(path)
    low, high = ENDS.get(path.rpartition(".")[2], (known.low, known.high))
    return np.linspace(low, high, count) if not math.isnan(low) else np.linspace(0.1, 0.9, count)


def numbers_of(point: layout.Point) -> list[np.ndarray]:
    return [*point.data, *point.training, *point.groups[:-1]]


def test_all_problems_have_lines(monkeypatch) -> None:
    kept = []
    for case in CASES:
        data, chain, path = case.values
        line = Line(data, chain, path, values_of(path))
        try:
            for problem in (line.probed[0], line.probed[-1]):
                check_fit(*problem)
        except ParameterError:
            print("refused", case.id)
            continue
        points = list(line)
        fast, slow = PointArrays(line), PointArrays(points)
        a, b = numbers_of(fast.points), numbers_of(slow.points)
        for k, (x, y) in enumerate(zip(a, b)):
            assert x.tobytes() == y.tobytes() and x.flags.c_contiguous and x.dtype == y.dtype, (case.id, k)
        print(case.id, len(line._made), len(fast.problems._made) if isinstance(fast.problems, Line) else None)
