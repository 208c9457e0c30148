"""``python -m numerics.random_box``: does the solver converge everywhere?  Random teacher-student pairs from a wide box.

Each point is solved cold by the compiled core, one after the other on one core; preparing its arguments is not timed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter

from numerics.deferred import starting

with starting(__name__):
    import click
    import numpy as np
    from tqdm import tqdm

    from numerics.cli.command import Command
    from numerics.cli.report import table
    from numerics.models import Chain, Estimator, GaussianMixture, parameter_values
    from numerics.scalar.compiled import PointArrays, compile_chain
    from numerics.settings import DEFAULT, Settings
    from numerics.solver import read_solution
    from theory.losses import CrossEntropy, Distillation

BOX: dict[str, tuple[float, float]] = {
    "alpha": (0.02, 100.0),
    "rho": (0.02, 0.5),
    "delta": (0.1, 10.0),
    "teacher.ridge": (1e-8, 10.0),
    "student.ridge": (1e-8, 10.0),
    "student.temperature": (0.2, 100.0),
}
"""Ranges of the parameters that are uniform in their logarithm."""

ETA_RANGE = (0.05, 1.0)
"""Range of the student's fraction of weights, uniform.  The mixing is 0, 1 or uniform between them, a third each."""

Point = tuple[GaussianMixture, Chain]


@dataclass(frozen=True)
class Outcome:
    """One point: its parameters, and how the solver fared.

    ``seconds`` is the time inside the compiled core; ``message`` says what went wrong, "converged" if nothing did.
    """

    parameters: dict[str, float]
    converged: bool
    residual: float
    quadrature_error: float
    seconds: float
    message: str


def random_point(generator: np.random.Generator) -> Point:
    """Draw a teacher and its student from the box."""
    drawn = {name: math.exp(generator.uniform(math.log(low), math.log(high))) for name, (low, high) in BOX.items()}
    mixing = (0.0, 1.0, generator.uniform())[generator.integers(3)]
    eta = generator.uniform(*ETA_RANGE)
    student = Distillation(mixing, drawn["student.temperature"])
    stages = (
        Estimator(CrossEntropy(), drawn["teacher.ridge"]),
        Estimator(student, drawn["student.ridge"], eta),
    )
    return GaussianMixture(drawn["alpha"], drawn["rho"], drawn["delta"]), Chain(stages)


def random_points(n: int, seed: int) -> list[Point]:
    """The first ``n`` points of a seed; more points do not change the first ones."""
    generator = np.random.default_rng(seed)
    return [random_point(generator) for _ in range(n)]


def parameters_of(point: Point) -> dict[str, float]:
    """What tells a point of the box from the others."""
    values = parameter_values(*point)
    return {name: values[name] for name in (*BOX, "student.eta", "student.mixing")}


def solve_point(point: Point, settings: Settings = DEFAULT) -> Outcome:
    """Solve one point cold and time the core."""
    data, chain = point
    compiled = compile_chain(chain)
    arrays = PointArrays([point])
    begin = perf_counter()
    arrays.solve(compiled, settings)
    seconds = perf_counter() - begin
    solution = read_solution(arrays, 0, data, chain, settings)
    return Outcome(
        parameters_of(point),
        solution.converged,
        solution.residual,
        solution.quadrature_error,
        seconds,
        solution.message,
    )


def run(points: Sequence[Point], *, settings: Settings = DEFAULT, progress: bool = False) -> list[Outcome]:
    """Solve all points in turn; a progress bar on standard error if ``progress`` and it takes over two seconds."""
    if points:
        solve_point(points[0], settings)  # so that the first time does not include loading the code
    return [
        solve_point(point, settings)
        for point in tqdm(points, desc="random box", unit="point", delay=2, disable=not progress)
    ]


def summary(outcomes: Sequence[Outcome]) -> dict[str, float | int]:
    """How many converged; the worst errors among those; times of all, in seconds."""
    converged = [outcome for outcome in outcomes if outcome.converged]
    seconds = [outcome.seconds for outcome in outcomes]
    return {
        "points": len(outcomes),
        "converged": len(converged),
        "worst_residual": max((outcome.residual for outcome in converged), default=math.nan),
        "worst_quadrature_error": max((outcome.quadrature_error for outcome in converged), default=math.nan),
        "median_seconds": float(np.median(seconds)),
        "percentile_99_seconds": float(np.percentile(seconds, 99)),
        "worst_seconds": max(seconds),
    }


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Solve random teacher-student pairs and count how many converge.\n\n\b\n"
    + "\n".join(f"  {name:20} {low:g} to {high:g}, uniform in its logarithm" for name, (low, high) in BOX.items())
    + f"\n  {'student.eta':20} {ETA_RANGE[0]:g} to {ETA_RANGE[1]:g}, uniform"
    + f"\n  {'student.mixing':20} 0, 1 or uniform in between, a third each\n\nExit code 1 if any point fails.",
)
@click.option("--points", type=click.IntRange(min=1), default=5000, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random numbers.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def main(points: int, seed: int, as_json: bool) -> int:
    """``python -m numerics.random_box``."""
    drawn = random_points(points, seed)
    compile_chain(drawn[0][1])
    outcomes = run(drawn, progress=True)
    found = summary(outcomes)
    failures = [asdict(outcome) for outcome in outcomes if not outcome.converged]
    if as_json:
        report = {"seed": seed, **found, "failures": failures}
        report["failures"] = [_finite(failure) for failure in failures]
        click.echo(json.dumps(_finite(report), indent=2, allow_nan=False))
    else:
        click.echo(table([[key.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value)]
                          for key, value in found.items()]))  # fmt: skip
        for failure in failures:
            where = ", ".join(f"{name} {value:.17g}" for name, value in failure["parameters"].items())
            click.echo(f"failed: {where}: {failure['message']}")
    return 0 if not failures else 1


if __name__ == "__main__":
    main(prog_name="python -m numerics.random_box")
