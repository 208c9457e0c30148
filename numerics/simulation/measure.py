"""Observables of one trained chain, by the names theory has for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from numerics.models import Chain, Frozen, GaussianMixture
from numerics.simulation.draw import Array, Sample
from numerics.simulation.train import StageFit, fields_of
from numerics.solution.population import Population
from theory.losses import CrossEntropy

STAGE_QUANTITIES = (
    "magnetization",
    "bias",
    "norm",
    "norm_squared",
    "cosine",
    "test_error",
    "train_error",
    "clean_train_error",
    "generalization_gap",
    "test_loss",
    "train_loss",
    "loss_gap",
    "test_cross_entropy",
    "train_cross_entropy",
    "free_energy",
    "calibration_slope",
    "calibration_offset",
    "quadrature_error",
    "gradient_norm",
    "relative_gradient_norm",
    "iterations",
)
"""Observables of one stage, by the names a solution has for them, and how well they are known."""

PAIR_QUANTITIES = (
    "overlap",
    "overlap_cosine",
    "agreement",
    "train_agreement",
    "test_logit_distance",
    "train_logit_distance",
    "test_output_distance",
    "train_output_distance",
)
"""Observables of two stages, symmetric matrices."""

TEACHER_QUANTITIES = {
    "teacher_cosine": "teacher_cosine",
    "teacher_agreement": "teacher_agreement",
    "teacher_train_agreement": "teacher_train_agreement",
    "test_logit_distance": "teacher_test_logit_distance",
    "train_logit_distance": "teacher_train_logit_distance",
    "test_output_distance": "teacher_test_output_distance",
    "train_output_distance": "teacher_train_output_distance",
}
"""Observables of a stage and its teacher (:meth:`numerics.models.Chain.teachers`), and what they are called in the raw runs."""

MEASURED = frozenset((*STAGE_QUANTITIES, *TEACHER_QUANTITIES))
"""Observables of a stage that every simulation measures."""


def measure(data: GaussianMixture, sample: Sample, chain: Chain, fits: Sequence[StageFit]) -> dict[str, Array]:
    """All observables of one trained chain: shape (T,) each, or (T, T) for those of two stages.

    Training averages of a stage go over its own training samples with the labels seen there, ``clean_train_error`` over the
    same samples with the labels before the noise, averages of two stages over the samples of the later one.  Several teachers of
    one stage are compared with it by their mean logit.
    A frozen stage has no loss, and that of a broken fit is not finite: there the losses are nan.
    """
    n_inputs, n_stages = len(sample.mean), len(fits)
    weights = np.array([fit.all_weights(n_inputs) for fit in fits])
    found = {name: np.zeros(n_stages) for name in STAGE_QUANTITIES}
    found |= {name: np.zeros((n_stages, n_stages)) for name in PAIR_QUANTITIES}
    found |= {name: np.full(n_stages, np.nan) for name in TEACHER_QUANTITIES.values()}
    found["magnetization"] = weights @ sample.mean / n_inputs
    found["bias"] = np.array([fit.bias for fit in fits])
    found["overlap"] = weights @ weights.T / n_inputs
    found["norm_squared"] = np.diag(found["overlap"]).copy()
    found["norm"] = np.sqrt(found["norm_squared"])
    with np.errstate(divide="ignore", invalid="ignore"):
        length = np.linalg.norm(sample.mean) / math.sqrt(n_inputs)
        found["cosine"] = found["magnetization"] / (found["norm"] * length)
        found["overlap_cosine"] = found["overlap"] / np.outer(found["norm"], found["norm"])
    population = Population(data, found["magnetization"], found["bias"], found["overlap"])
    for t, (stage, fit) in enumerate(zip(chain.stages, fits, strict=True)):
        own, labels = fit.logits, sample.labels[fit.rows]
        found["gradient_norm"][t] = fit.gradient_norm
        found["relative_gradient_norm"][t] = fit.relative_gradient_norm
        found["iterations"][t] = fit.iterations
        found["test_error"][t] = population.test_error(t)
        found["train_error"][t] = np.mean((2 * labels - 1) * own <= 0)
        found["clean_train_error"][t] = np.mean((2 * sample.clean_labels[fit.rows] - 1) * own <= 0)
        found["test_cross_entropy"][t], found["quadrature_error"][t] = population.test_loss(CrossEntropy(), t)
        found["train_cross_entropy"][t] = np.mean(fields_of(CrossEntropy(), 1, sample, (), fit.rows).value(own))
        if isinstance(stage, Frozen) or fit.broken:
            for name in ("test_loss", "train_loss", "free_energy"):
                found[name][t] = np.nan
        else:
            found["test_loss"][t], uncertain = population.test_loss(stage.loss, t)
            found["quadrature_error"][t] = max(found["quadrature_error"][t], uncertain)
            found["train_loss"][t] = np.mean(fields_of(stage.loss, t + 1, sample, fits, fit.rows).value(own))
            penalty = stage.ridge / 2 * found["norm_squared"][t]
            found["free_energy"][t] = len(labels) / n_inputs * found["train_loss"][t] + penalty
        found["calibration_slope"][t], found["calibration_offset"][t] = population.calibration(t)
        found["agreement"][t, t] = found["train_agreement"][t, t] = 1.0
        for s in range(t):
            logits = fits[s].everywhere[fit.rows]
            pair, uncertain = _compare(population, t, s, own, logits)
            found["quadrature_error"][t] = max(found["quadrature_error"][t], uncertain)
            for name, value in pair.items():
                found[name][t, s] = found[name][s, t] = value
        if t > 0:
            teachers = [s - 1 for s in chain.teachers(t + 1)]
            if len(teachers) > 1:
                rows = np.zeros((2, n_stages))
                rows[0, t], rows[1, teachers] = 1.0, 1.0 / len(teachers)
                logits = np.mean([fits[s].everywhere[fit.rows] for s in teachers], axis=0)
                pair, uncertain = _compare(population.combined(rows), 0, 1, own, logits)
                found["quadrature_error"][t] = max(found["quadrature_error"][t], uncertain)
            else:
                pair = {name: found[name][t, teachers[0]] for name in PAIR_QUANTITIES}
            found["teacher_cosine"][t] = pair["overlap_cosine"]
            for name, value in pair.items():
                if (key := f"teacher_{name}") in found:
                    found[key][t] = value
    found["generalization_gap"] = found["test_error"] - found["train_error"]
    found["loss_gap"] = found["test_loss"] - found["train_loss"]
    return found


def _compare(population: Population, t: int, s: int, own: Array, other: Array) -> tuple[dict[str, float], float]:
    """Observables of two stages by name, from test points and their logits on samples, and the quadrature error."""
    output, uncertain = population.output_distance(t, s)
    q = population.overlap
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = q[t, s] / (np.sqrt(q[t, t]) * np.sqrt(q[s, s]))
    return {
        "overlap_cosine": cosine,
        "agreement": population.agreement(t, s),
        "train_agreement": np.mean((own > 0) == (other > 0)),
        "test_logit_distance": population.logit_distance(t, s),
        "train_logit_distance": np.mean((own - other) ** 2),
        "test_output_distance": output,
        "train_output_distance": np.mean((expit(own) - expit(other)) ** 2),
    }, uncertain
