"""What the error estimate says, against the same points on rules so fine that their error is rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from numerics import Chain, Estimator, GaussianMixture, Solution, solve
from numerics.random_box import random_points
from numerics.scalar.compiled import PointArrays, compile_chain
from numerics.settings import DEFAULT
from numerics.solver import read_solution
from theory.losses import CrossEntropy, Distillation, Loss, SquareLoss

FINE = replace(DEFAULT, max_levels=0, field_step=0.4, outer_step=0.38, tail=1e-16)


def relative_errors(found: PointArrays, exact: PointArrays) -> float:
    """Largest difference of m, b, Q, V of both stages, relative to their natural size."""
    (ours, response), (theirs, exact_response) = ((c[0], v[0]) for c, v in (found.overlaps(), exact.overlaps()))
    overlap, exact_overlap = ours @ ours.T, theirs @ theirs.T
    norm, size = np.sqrt(np.diag(exact_overlap)), np.sqrt(np.diag(exact_response))
    difference = np.abs(found.x - exact.x)[0]
    return max(
        float(np.max(np.abs(overlap - exact_overlap) / np.outer(norm, norm))),
        float(np.max(np.abs(response - exact_response) / np.outer(size, size))),
        float(np.max(difference[:, 0] / norm)),
        float(np.max(difference[:, 1] / (1.0 + norm))),
    )


def test_estimated_errors_are_not_exceeded() -> None:
    errors, estimates = [], []
    for point in random_points(100, seed=20):
        compiled = compile_chain(point[1])
        found, exact = PointArrays([point]), PointArrays([point])
        found.solve(compiled, DEFAULT)
        assert found.converged(DEFAULT)[0]
        exact.x[:], exact.started[:] = found.x, 1
        exact.solve(compiled, FINE)
        errors.append(relative_errors(found, exact))
        estimates.append(found.error[0])
    assert max(estimates) <= DEFAULT.rtol
    assert max(errors) <= 2.0 * DEFAULT.rtol
    assert np.median(np.array(errors) / np.array(estimates)) < 0.1
    assert np.mean(np.array(errors) > np.maximum(estimates, 1e-10)) < 0.05


def steep_points(count: int, seed: int) -> list[tuple[GaussianMixture, Chain]]:
    """Teachers that bend nobody knows where, and students whose targets are steps for them."""
    cubed = Loss.from_expression("(softplus((1 - s*h)/a)*a)**3", {"a": 0.1})
    bent = Loss.from_expression("a*(sqrt(a**2 + (softplus((1 - s*h)/a)*a)**2) - a)", {"a": 0.021})
    steps = Loss.from_expression("softplus(h) - h*(1 + tanh(50*(h_teacher - 1))*tanh(50*(h_teacher + 1)))/2")
    # Here a slope of the teacher is a small difference, which no halving of panels improves.
    stiff = Chain.of([Estimator(bent, 2.5e-4), Estimator(Distillation(0.7, 0.0063), 0.72)])
    found = [(GaussianMixture(6.3, 0.38, 2.5), stiff)]
    generator = np.random.default_rng(seed)

    def between(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(np.log(low), np.log(high))))

    while len(found) < count:
        data = GaussianMixture(between(0.2, 10.0), generator.uniform(0.05, 0.5), between(0.3, 3.0))
        target = Distillation(temperature=between(0.005, 0.1)) if len(found) % 3 else steps
        found.append((data, Chain.of([Estimator(cubed, between(1e-4, 1)), Estimator(target, between(1e-4, 1))])))
    return found


def test_estimated_errors_hold_behind_steep_targets() -> None:
    """Panels follow what a target makes of the student's field, and are other ones at every level."""
    compared = 0
    for point in steep_points(20, seed=2):
        compiled = compile_chain(point[1])
        found, exact = PointArrays([point]), PointArrays([point])
        found.solve(compiled, DEFAULT)
        if np.linalg.norm(found.overlaps()[0][0, 1]) < 1e-6:
            continue  # a teacher that is nowhere near a step has nothing to teach but rounding
        assert found.converged(DEFAULT)[0], point
        exact.x[:], exact.started[:] = found.x, 1
        exact.solve(compiled, replace(FINE, outer_step=0.2))
        if exact.error[0] > 1e-9:
            continue  # rounding, which a chain amplifies, leaves nothing to compare with
        compared += 1
        assert relative_errors(found, exact) <= 2.0 * max(found.error[0], 1e-10), point
    assert compared >= 18


def spread_of_neighbours(solve_at: Callable[[float], tuple[Solution, float]]) -> tuple[float, float]:
    """How far q and m of a last stage move by roundings of its ridge, relative to their size, and the largest error stated."""
    found, stated = zip(*(solve_at(1.0 + 1e-13 * k) for k in range(4)), strict=True)
    cosines = [solution[-1].magnetization / solution[-1].norm for solution in found]
    norms = [2.0 * np.log(solution[-1].norm) for solution in found]
    return max(np.ptp(cosines), np.ptp(norms)), max(stated)


def test_rounding_is_part_of_the_stated_error() -> None:
    """At tiny ridges responses are so large that fields lose digits, the same ones on every rule."""
    generator = np.random.default_rng(1)
    visible = 0
    for _ in range(30):
        data = GaussianMixture(
            generator.uniform(0.2, 0.95), generator.uniform(0.05, 0.9), 10 ** generator.uniform(-1, 1)
        )
        ridge, bias = 10 ** generator.uniform(-9, -6), generator.uniform(-2, 2)
        loss = Distillation(generator.uniform(), generator.uniform(0.5, 20.0))

        def student(factor: float) -> tuple[Solution, float]:
            chain = Chain.of([Estimator(CrossEntropy(), 0.1), Estimator(loss, ridge * factor)])  # noqa: B023
            arrays = PointArrays([(data, chain)])  # noqa: B023
            arrays.solve(compile_chain(chain), DEFAULT)
            return read_solution(arrays, 0, data, chain, DEFAULT), arrays.error[0]  # noqa: B023

        def square(factor: float) -> tuple[Solution, float]:
            solution = solve(data, Estimator(SquareLoss(), ridge * factor, bias=bias))  # noqa: B023
            return solution, solution.quadrature_error

        spread, stated = spread_of_neighbours(student)
        assert spread <= max(4.0 * stated, 1e-10)
        visible += spread > 1e-10
        spread, stated = spread_of_neighbours(square)
        assert spread < 1e-11
        assert stated < 1e-11
    assert visible > 3
