"""A net under changes that must not change numbers: order parameters and conjugates of 40 problems, stored to all digits.

``python tests/numerics/test_net.py`` from the project's folder stores them anew, after a change that had to change them.
Solutions are asked for to ``rtol=1e-12``.  Numbers are compared to 1e-12 of 1 plus the largest one of their kind in the chain
(m, b, Q, V, or the conjugates of one stage), because entries that are small beside their neighbours share their rounding.  The
problems are well conditioned: other instructions of a processor (``NUMBA_CPU_NAME=generic``) change no number by more than a
quarter of that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from numerics import BayesOptimal, DataSet, Estimator, Frozen, GaussianMixture, Hebbian, Solution, solve
from numerics.settings import DEFAULT
from theory.losses import CrossEntropy, Distillation, LinearLoss, Loss, PseudoLabels, SquareDistillation, SquareLoss

STORED = Path(__file__).parents[1] / "data" / "solutions.json"
AGREEMENT = 1e-12
"""Difference allowed, in units of 1 plus the largest number beside it."""

SETTINGS = replace(DEFAULT, rtol=1e-12, newton_tolerance=1e-11)

MIX = GaussianMixture(2.0, 0.2, 1.0)
FEW = GaussianMixture(0.8, 0.3, 0.7)
NOISY = replace(FEW, alpha=1.5, label_noise=0.2)
SETS = GaussianMixture(1.0, 0.3, 0.8, 0.1, further=(DataSet("fresh", 1.5), DataSet("poor", 0.4, 0.3)))
PLAIN = GaussianMixture(1.2, 0.2, 0.5)
SCARCE = GaussianMixture(0.5, 0.3, 0.7)
RICH = GaussianMixture(4.0, 0.3, 1.5)
TEACHER = Estimator(CrossEntropy(), 0.1)
HUBER = Loss.from_expression("d**2*(sqrt(1 + ((h - h_teacher)/d)**2) - 1)", {"d": 0.5}, name="Huber distance")
ABSOLUTE = Loss.from_expression("sqrt(a**2 + (s*h - 1)**2) - s*h/4", {"a": 0.3}, name="rounded absolute value")
HINGE = Loss.from_expression("a*softplus((1 - s*h)/a)", {"a": 0.2}, name="rounded hinge")

PROBLEMS: dict[str, tuple[GaussianMixture, Sequence]] = {
    "one stage": (MIX, [TEACHER]),
    "one stage, smoothed labels": (FEW, [Estimator(CrossEntropy(0.1), 0.01, 0.7)]),
    "one stage, square loss": (MIX, [Estimator(SquareLoss(), 0.3, 0.6)]),
    "one stage, linear loss": (MIX, [Estimator(LinearLoss(), 0.4, bias=0.1)]),
    "one stage, strong ridge": (FEW, [Estimator(CrossEntropy(), 10.0)]),
    "two stages": (MIX, [TEACHER, Estimator(Distillation(), 0.05, 0.5)]),
    "two stages, cold": (FEW, [TEACHER, Estimator(Distillation(0.7, 0.8), 1e-3)]),
    "two stages, hot": (FEW, [TEACHER, Estimator(Distillation(0.5, 5.0), 0.01, 0.8)]),
    "two stages, hard targets": (MIX, [TEACHER, Estimator(PseudoLabels(), 0.1)]),
    "two stages, square distance": (FEW, [TEACHER, Estimator(SquareDistillation(gain=1.3), 0.1, 0.6)]),
    "three stages": (MIX, [TEACHER, Estimator(Distillation(0.8), 0.1), Estimator(Distillation(1.0, 2.0), 0.2, 0.5)]),
    "three stages, two teachers": (
        FEW, [TEACHER, Estimator(CrossEntropy(), 1.0, 0.6), Estimator(Distillation(teacher=(1, 2)), 0.1)]
    ),
    "three stages, the first teaches": (
        MIX, [TEACHER, Estimator(SquareLoss(), 0.5), Estimator(Distillation(0.6, teacher=1), 0.1)]
    ),
    "nested masks": (MIX, [replace(TEACHER, eta=0.7), Estimator(Distillation(), 0.1, 0.4)]),
    "masks that overlap": (MIX, [replace(TEACHER, eta=0.5), Estimator(Distillation(), 0.1, 0.6, mask_overlap=0.3)]),
    "masks of three stages": (
        FEW,
        [
            replace(TEACHER, eta=0.5), Estimator(CrossEntropy(), 0.5, 0.5, mask_overlap=0.2),
            Estimator(Distillation(teacher=(1, 2)), 0.2, 0.7, mask_overlap=0.5),
        ],
    ),
    "another data set": (
        replace(SETS, further=SETS.further[:1]), [TEACHER, Estimator(Distillation(), 0.1, sets="fresh")]
    ),
    "three data sets": (
        SETS,
        [replace(TEACHER, sets=("training", "poor")), Estimator(Distillation(0.7), 0.2, sets=("fresh", "training"))],
    ),
    "label noise": (NOISY, [TEACHER, Estimator(Distillation(0.9, 2.0), 0.1)]),
    "label noise, one stage": (NOISY, [Estimator(CrossEntropy(), 0.5, 0.8)]),
    "fixed bias": (MIX, [replace(TEACHER, bias=0.0), Estimator(Distillation(0.5), 0.1, bias=-0.3)]),
    "given weights": (FEW, [Frozen(0.8, 1.3, 0.2), Estimator(Distillation(0.8), 0.1)]),
    "Hebbian weights": (NOISY, [Hebbian(bias=0.1), Estimator(Distillation(0.6), 0.2)]),
    "Bayes-optimal weights": (PLAIN, [BayesOptimal(), Estimator(Distillation(), 0.1)]),
    "max margin": (SCARCE, [Estimator(CrossEntropy(), 0.0)]),
    "max margin, some weights": (replace(SCARCE, alpha=0.3), [Estimator(CrossEntropy(), 0.0, 0.6)]),
    "minimum norm": (SCARCE, [Estimator(SquareLoss(), 0.0, 0.8)]),
    "least squares": (RICH, [Estimator(SquareLoss(), 0.0, 0.8)]),
    "maximum likelihood": (RICH, [Estimator(CrossEntropy(), 0.0, 0.6)]),
    "minimum norm that teaches": (SCARCE, [Estimator(SquareLoss(), 0.0), Estimator(Distillation(0.5, 2.0), 0.1, 0.7)]),
    "interpolator of a teacher": (SCARCE, [TEACHER, Estimator(Distillation(), 0.0)]),
    "square chain": (NOISY, [Estimator(SquareLoss(), 0.5), Estimator(SquareDistillation(0.7), 0.3)]),
    "square chain of five": (
        NOISY, [Estimator(SquareLoss(), 0.5), *(Estimator(SquareDistillation(0.9), r) for r in (0.3, 0.2, 0.4, 0.1))]
    ),
    "square chain with masks": (
        NOISY, [Estimator(SquareLoss(), 0.5, 0.8), Estimator(SquareDistillation(0.8), 0.3, 0.5)]
    ),
    "constant targets": (FEW, [Estimator(CrossEntropy(0.5), 0.1), Estimator(Distillation(0.5), 0.2)]),
    "constant teacher in between": (
        FEW, [TEACHER, Estimator(CrossEntropy(0.5), 0.3), Estimator(Distillation(0.5, teacher=(1, 2)), 0.2)]
    ),
    "formula of two logits": (MIX, [TEACHER, Estimator(HUBER, 0.1, 0.5)]),
    "formula on panels": (FEW, [Estimator(ABSOLUTE, 0.2)]),
    "formula with a bend": (FEW, [Estimator(HINGE, 0.3)]),
    "formula that teaches": (MIX, [Estimator(ABSOLUTE, 0.3), Estimator(Distillation(0.7), 0.2)]),
}  # fmt: skip


def numbers(solution: Solution) -> dict[str, list]:
    """m, b, Q, V of all stages, and the conjugates of each; None for what is infinite."""
    with np.errstate(invalid="ignore"):
        found = {
            "m": solution.finite_magnetization, "b": solution.finite_bias, "Q": solution.finite_overlap,
            "V": solution.response, "test errors": np.array([stage.test_error for stage in solution.stages]),
        }  # fmt: skip
    found |= {f"conjugates {t}": np.asarray(point.conjugates) for t, point in enumerate(solution.points, start=1)}
    return {name: np.where(np.isfinite(values), values, None).tolist() for name, values in found.items()}


def solved(name: str) -> dict[str, list]:
    """The numbers of one of the problems."""
    data, chain = PROBLEMS[name]
    return numbers(solve(data, chain, settings=SETTINGS, throw=True))


def difference(found: dict[str, list], stored: dict[str, list]) -> float:
    """Largest difference, in units of 1 plus the largest number beside it; infinite where other numbers exist."""
    if found.keys() != stored.keys():
        return float("inf")
    largest = 0.0
    for name, values in found.items():
        ours, theirs = (np.array(entry, dtype=float) for entry in (values, stored[name]))
        if ours.shape != theirs.shape or not np.array_equal(np.isnan(ours), np.isnan(theirs)):
            return float("inf")
        scale = 1.0 + np.nanmax(np.abs(theirs), initial=0.0)
        largest = max(largest, float(np.nanmax(np.abs(ours - theirs), initial=0.0) / scale))
    return largest


@pytest.mark.parametrize("name", PROBLEMS)
def test_numbers_are_those_that_were_stored(name: str) -> None:
    assert difference(solved(name), json.loads(STORED.read_text(encoding="utf-8"))[name]) <= AGREEMENT


def test_the_net_notices_small_changes() -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert list(stored) == list(PROBLEMS)
    before = stored["two stages"]
    assert difference(before, before) == 0.0
    for name in before:
        changed = json.loads(json.dumps(before))
        entry = changed[name][-1] if isinstance(changed[name][-1], list) else changed[name]
        entry[-1] += 1e-11
        assert difference(changed, before) > AGREEMENT


def store() -> None:
    """Write the numbers of the present code."""
    lines = [f"{json.dumps(name)}: {json.dumps(solved(name))}" for name in PROBLEMS]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    store()
