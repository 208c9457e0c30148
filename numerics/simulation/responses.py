"""How the trained weights of finite samples respond to fields, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from numerics.models import Chain
from numerics.simulation.draw import Array, Sample, Selection
from numerics.simulation.train import StageFit, fields_of
from numerics.solution.population import target_jumps


def measure_responses(sample: Sample, chain: Chain, fits: Sequence[StageFit]) -> Array:
    """``V_ts = (1/N) sum_i d w_ti/d xi_si``: response to ``- xi_s.w_s`` in the loss of s, biases refitted.

    Parameters
    ----------
    sample, chain, fits
        What :func:`draw` and :func:`train` gave.

    Returns
    -------
    ndarray, shape (T, T)
        Lower triangular; zero for frozen stages.  Exact, by dense inverses: time of order M N^2, memory a few times the
        design matrix.  nan where stage t feels stage s through a target that jumps (hard pseudo-labels): the weights of
        one finite sample are then a piecewise smooth function of the field, whose derivative has nothing to do with the
        V_ts of theory, a response averaged over the field.
    """
    n_inputs, n_stages = len(sample.mean), len(fits)
    result = np.zeros((n_stages, n_stages))
    moved: dict[tuple[int, int], Array | None] = {}  # d h_k / d xi_s on all samples, None if undefined
    for t, (stage, fit) in enumerate(zip(chain.stages, fits, strict=True)):
        if stage.given:
            continue
        size, learned = len(fit.weights), stage.fixed_bias is None
        fields = fields_of(stage.loss, t + 1, sample, fits, fit.rows)
        design = _with_ones(sample.part(stage, fit.rows, fit.active), learned)
        everywhere = design if len(design) == len(sample.labels) else None
        if everywhere is None and t + 1 < n_stages:
            everywhere = _with_ones(sample.part(stage, slice(None), fit.active), learned)
        curvatures = np.maximum(fields.derivatives(fit.logits)[1], 0.0)
        hessian = design.T @ (curvatures[:, None] * design)
        np.einsum("ii->i", hessian)[:size] += stage.ridge
        factors = cho_factor(hessian, lower=True, overwrite_a=True)
        inverse = cho_solve(factors, np.eye(len(hessian), size), overwrite_b=True)
        if stage.features is None:
            result[t, t] = np.diag(inverse) @ sample.variances[fit.active] / n_inputs
        else:
            result[t, t] = np.trace(sample.product(stage, stage, inverse[:size])) / n_inputs
        own = design @ inverse
        if t + 1 < n_stages:
            moved[t, t] = own if everywhere is design else everywhere @ inverse
        hard = {stage.loss.stages(t + 1)[k] - 1 for k, _ in target_jumps(stage.loss)}
        pulls: dict[int, Array] = {}
        for k, seen in enumerate(stage.loss.stages(t + 1)):
            pull = fields.functions.mixed(fit.logits, fields.labels, fields.earlier, k)
            pulls[seen - 1] = pulls.get(seen - 1, 0.0) + pull
        pulls = {k: pull for k, pull in pulls.items() if k in hard or np.any(pull)}
        for s in range(t):
            between = [k for k in range(s, t) if k in pulls and (k, s) in moved]
            if not between:
                continue
            if any(k in hard or moved[k, s] is None for k in between):
                result[t, s], moved[t, s] = np.nan, None
                continue
            forces = sum(pulls[k][:, None] * moved[k, s][fit.rows] for k in between)
            if stage.features is None and chain[s].features is None:
                mine, others = _shared(fit.active, fits[s].active, n_inputs)
                seen = sample.variances[fit.active][mine]
                result[t, s] = -np.vdot(own[:, mine] * seen, forces[:, others]) / n_inputs
            else:
                result[t, s] = -np.vdot(own, sample.product(stage, chain[s], forces.T).T) / n_inputs
            if t + 1 < n_stages:
                moved[t, s] = -everywhere @ cho_solve(factors, design.T @ forces)
    return result


def _with_ones(design: Array, ones: bool) -> Array:
    return np.column_stack((design, np.ones(len(design)))) if ones else design


def _shared(first: Selection, second: Selection, n_inputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions, in two masks, of the weights that both have."""
    weights = np.arange(n_inputs)
    return np.intersect1d(weights[first], weights[second], assume_unique=True, return_indices=True)[1:]
