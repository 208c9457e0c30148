"""Random chains on inputs with a spectrum or with random features: do all of them converge?

    python -m tests.random_inputs --problems 600 --seed 0
    python -m tests.random_inputs --dense --problems 200 --seed 0
    python -m tests.random_inputs --clusters --problems 60 --seed 0
    python -m tests.random_inputs --limits --dense --problems 200 --seed 0

Teacher and student, cold; alpha 0.1 to 20, ridges 1e-4 to 10, temperatures 0.5 to 30, 1 to 300 coordinates, or dense
covariances and maps of up to 100, or 2 to 4 clusters of them.  With ``--limits`` ridges of students are 0, those of some teachers
too, and half of the students of classifiers learn from labels.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import click
import numpy as np

from numerics import Clusters, Dense, Estimator, GaussianMixture, LinearMap, LinearRule, RandomFeatures, Spectrum, solve
from numerics.models import Chain, DataModel, ParameterError
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

ACTIVATIONS = ("relu", "erf", "tanh", "sign", "h + h**2/4")


def random_dense(generator: np.random.Generator) -> tuple[Dense, list[LinearMap | None]]:
    """A covariance, singular now and then, with or without a direction, and what teacher and student see."""
    size = int(np.exp(generator.uniform(0.0, np.log(100.0))))
    covariance = random_covariance(generator, size)
    direction = generator.normal(size=size) if generator.random() < 0.5 else None
    return Dense(covariance, direction), random_maps(generator, size)


def random_covariance(generator: np.random.Generator, size: int) -> np.ndarray:
    """That of a random factor, whose rows have different scales."""
    factor = generator.normal(size=(size, max(1, int(size * generator.uniform(0.5, 3.0)))))
    scales = np.exp(generator.normal(0.0, generator.uniform(0.0, 1.5), size))
    factor *= scales[:, None] / np.sqrt(factor.shape[1])
    return factor @ factor.T


def random_maps(generator: np.random.Generator, size: int) -> list[LinearMap | None]:
    """What teacher and student see."""
    return [
        LinearMap(generator.normal(size=(int(generator.integers(1, 2 * size + 1)), size)) / np.sqrt(size))
        if generator.random() < 0.6
        else None
        for _ in range(2)
    ]


def random_clusters(generator: np.random.Generator, alpha: float) -> tuple[Clusters, list[LinearMap | None]]:
    """Clusters, which now and then share a covariance, and what teacher and student see."""
    count, size = int(generator.integers(2, 5)), int(np.exp(generator.uniform(np.log(2.0), np.log(100.0))))
    signal = np.exp(generator.uniform(np.log(0.2), np.log(5.0)))
    means = signal / np.sqrt(size) * generator.normal(size=(count, size))
    covariances = np.array([random_covariance(generator, size) for _ in range(count)])
    labels = np.append([1, -1], generator.choice([1, -1], size=count - 2))
    data = Clusters(
        alpha, means, covariances[0] if generator.random() < 0.2 else covariances, labels,
        generator.dirichlet(np.full(count, 3.0)), float(generator.choice([0.0, 0.1])),
    )  # fmt: skip
    return data, random_maps(generator, size) if generator.random() < 0.5 else [None, None]


def random_problem(generator: np.random.Generator, kind: str = "") -> tuple[DataModel, Chain]:
    """Data and chain, everything drawn log-uniformly where it spans decades; ``kind`` is "dense", "clusters" or neither."""

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(np.log(low), np.log(high))))

    alpha, ridges = log_uniform(0.1, 20.0), [log_uniform(1e-4, 10.0) for _ in range(2)]
    mixing = float(generator.choice([generator.uniform(), 1.0]))
    soft = Distillation(mixing=mixing, temperature=log_uniform(0.5, 30.0))
    losses = [(CrossEntropy(), soft), (SquareLoss(), SquareDistillation(mixing=mixing))][int(generator.random() < 0.2)]
    etas, features, inputs = (1.0, 1.0), [None, None], {}
    if kind == "clusters":
        clusters, features = random_clusters(generator, alpha)
    elif kind == "dense":
        inputs["inputs"], features = random_dense(generator)
    elif generator.random() < 0.5:
        size = int(log_uniform(1, 300))
        values = np.exp(generator.normal(0.0, generator.uniform(0.0, 3.0), size))
        inputs["inputs"] = Spectrum(values.tolist(), squared_signal=generator.exponential(size=size).tolist())
        etas = (float(generator.uniform(0.2, 1.0)), float(generator.uniform(0.2, 1.0)))
    else:
        network = RandomFeatures(log_uniform(0.1, 10.0), str(generator.choice(ACTIVATIONS)))
        features = [(None, network), (network, network), (network, None)][generator.integers(3)]
    if kind == "clusters":
        data: DataModel = clusters
    elif isinstance(losses[0], SquareLoss):
        data = LinearRule(alpha, noise=log_uniform(0.01, 2.0), **inputs)
    elif generator.random() < 0.3:
        data = LinearRule(alpha, output="sign", **inputs)
    else:
        data = GaussianMixture(alpha, float(generator.uniform(0.1, 0.9)), log_uniform(0.2, 4.0), **inputs)
    stages = [
        Estimator(loss, ridge, eta, features=seen)
        for loss, ridge, eta, seen in zip(losses, ridges, etas, features, strict=True)
    ]
    return data, Chain.of(stages)


def without_ridge(generator: np.random.Generator, chain: Chain) -> Chain:
    """The same chain with a student without ridge, and perhaps such a teacher."""
    teacher, student = chain.stages
    if generator.random() < 0.3:
        teacher = replace(teacher, ridge=0.0)
    loss = CrossEntropy() if isinstance(teacher.loss, CrossEntropy) and generator.random() < 0.5 else student.loss
    return Chain.of([teacher, replace(student, ridge=0.0, loss=loss)])


def failures(
    problems: int, seed: int, kind: str = "", *, limits: bool = False, refused: Callable[[str], object] | None = None
) -> list[str]:
    """What did not converge; ``refused`` is told what has no limit."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(problems):
        data, chain = random_problem(generator, kind)
        if limits:
            chain = without_ridge(generator, chain)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                solution = solve(data, chain)
        except ParameterError as error:
            if not limits or "ridge of" not in str(error):
                raise
            if refused is not None:
                refused(f"{number}: {error}")
            continue
        if not solution.converged:
            found.append(f"{number}: {data}, {chain}: {solution.message}")
    return found


@click.command()
@click.option("--problems", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dense", "kind", flag_value="dense", help="Dense covariances, and linear maps of them.")
@click.option("--clusters", "kind", flag_value="clusters", help="Clusters with a covariance each.")
@click.option("--limits", is_flag=True, help="Students without ridge.")
@click.option("--refused", "shown", is_flag=True, help="Say which have no limit, and why.")
def main(problems: int, seed: int, kind: str | None, *, limits: bool, shown: bool) -> None:
    """Solve random chains on structured inputs, and say which do not converge."""
    start, without = time.process_time(), []
    found = failures(problems, seed, kind or "", limits=limits, refused=without.append)
    for text in [*(without if shown else ()), *found]:
        click.echo(text)
    solved = problems - len(without)
    click.echo(f"{len(found)} of {solved} did not converge; {time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
