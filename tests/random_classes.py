"""Random chains on mixtures of 3 to 10 classes: do all of them converge?

    python -m tests.random_classes --problems 300 --seed 0
    python -m tests.random_classes --problems 100 --classes 3 --rtol 1e-7
    python -m tests.random_classes --problems 100 --classes 3 --classes 4 --stages 3 --ridges 1e-6 1e6 --noise

Teacher and student, or more stages, cold; alpha 0.2 to 10, ridges 1e-4 to 10, trained fractions 0.1 to 1, temperatures 0.5 to 20;
orthogonal means, simplices, pairs, and Gram matrices of random vectors; weights that differ by up to a factor of some tens.  With
``--copies`` students see all inputs, and have their teacher's outputs at temperature 1 as their targets.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np

from numerics import (
    Chain,
    ClassMixture,
    Estimator,
    gram_of_correlations,
    orthogonal_means,
    similar_pairs,
    simplex_means,
    solve,
)
from numerics.models import Gram
from theory.losses import CrossEntropy, Distillation

CLASSES = (3, 4, 5, 10)


def random_gram(generator: np.random.Generator, classes: int) -> Gram:
    """One of four kinds."""
    kind = generator.integers(4)
    if kind == 0:
        return orthogonal_means(classes)
    if kind == 1:
        return simplex_means(classes)
    if kind == 2:
        return similar_pairs(classes, float(generator.uniform(0.0, 0.95)))
    vectors = generator.standard_normal((classes, classes + 2))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    correlations = vectors @ vectors.T
    np.fill_diagonal(correlations, 1.0)
    return gram_of_correlations(correlations, generator.uniform(0.5, 1.5, classes))


@dataclass(frozen=True)
class Kind:
    """What problems are drawn: K, stages, range of ridges, whether labels are noisy, and whether students copy their teacher."""

    numbers: Sequence[int] = CLASSES
    stages: int = 2
    ridges: tuple[float, float] = (1e-4, 10.0)
    noise: bool = False
    copies: bool = False


def random_problem(generator: np.random.Generator, kind: Kind = Kind()) -> tuple[ClassMixture, Chain]:
    """Data and chain, everything drawn log-uniformly where it spans decades."""

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(np.log(low), np.log(high))))

    k = int(generator.choice(kind.numbers))
    weights = None if generator.random() < 0.5 else 0.02 / k + 0.98 * generator.dirichlet(np.full(k, 3.0))
    if weights is not None:
        weights = (weights / weights.sum()).tolist()
    data = ClassMixture(log_uniform(0.2, 10.0), weights, random_gram(generator, k), log_uniform(0.2, 4.0))
    if kind.noise:
        data = replace(data, label_noise=float(generator.uniform(0.0, 0.4)))

    def student() -> tuple[Distillation, float, float]:
        soft = Distillation(float(generator.choice([generator.uniform(), 1.0])), log_uniform(0.5, 20.0))
        return soft, log_uniform(*kind.ridges), float(generator.uniform(0.1, 1.0))

    soft = Distillation(float(generator.choice([generator.uniform(), 1.0])), log_uniform(0.5, 20.0))
    ridges, eta = [log_uniform(*kind.ridges) for _ in range(2)], float(generator.uniform(0.1, 1.0))
    students = [(soft, ridges[1], eta), *(student() for _ in range(kind.stages - 2))]
    if kind.copies:
        students = [(Distillation(), ridge, 1.0) for _, ridge, _ in students]
    later = [Estimator(*student) for student in students]
    return data, Chain.of([Estimator(CrossEntropy(), ridges[0]), *later])


def failures(
    problems: int,
    seed: int,
    kind: Kind = Kind(),
    *,
    rtol: float | None = None,
    show: bool = False,
) -> list[str]:
    """What did not converge."""
    generator = np.random.default_rng(seed)
    found, seconds, count = [], Counter(), Counter()
    for number in range(problems):
        data, chain = random_problem(generator, kind)
        begin = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = solve(data, chain, rtol=rtol)
        seconds[data.classes_count] += time.process_time() - begin
        count[data.classes_count] += 1
        if not solution.converged:
            found.append(f"{number}: {data}, {chain}: {solution.message}")
            if show:
                click.echo(found[-1])
    if show:
        means = ", ".join(f"K = {k}: {seconds[k] / count[k]:.2f}" for k in sorted(count))
        click.echo(f"seconds of CPU a problem: {means}")
    return found


@click.command()
@click.option("--problems", type=click.IntRange(min=1), default=300, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--classes", type=click.IntRange(min=2), multiple=True, default=CLASSES, show_default=True)
@click.option("--stages", type=click.IntRange(min=2), default=2, show_default=True)
@click.option("--ridges", type=(float, float), default=(1e-4, 10.0), show_default=True, help="Range of the ridges.")
@click.option("--noise", is_flag=True, help="Labels are noisy.")
@click.option("--copies", is_flag=True, help="Students have all that their teacher has.")
@click.option("--rtol", type=float, default=None, help="Of the test errors; by default that of solve.")
def main(problems: int, seed: int, rtol: float | None, classes: tuple[int, ...], **kind: Any) -> None:
    """Solve random chains on several classes, and say which do not converge."""
    found = failures(problems, seed, Kind(classes, **kind), rtol=rtol, show=True)
    click.echo(f"{len(found)} of {problems} did not converge")


if __name__ == "__main__":
    main()
