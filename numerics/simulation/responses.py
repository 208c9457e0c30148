"""How the trained weights of finite samples respond to fields, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from numerics.models import Chain
from numerics.simulation.draw import Array, Sample, Selection
from numerics.simulation.train import ClassFields, StageFit, class_fields_of, fields_of
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
        if sample.independent(stage, stage):
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
            if sample.independent(stage, chain[s]):
                mine, others = _shared(fit.active, fits[s].active, n_inputs)
                seen = sample.variances[fit.active][mine]
                result[t, s] = -np.vdot(own[:, mine] * seen, forces[:, others]) / n_inputs
            else:
                result[t, s] = -np.vdot(own, sample.product(stage, chain[s], forces.T).T) / n_inputs
            if t + 1 < n_stages:
                moved[t, s] = -everywhere @ cho_solve(factors, design.T @ forces)
    return result


def measure_class_responses(sample: Sample, chain: Chain, fits: Sequence[StageFit]) -> Array:
    """The same for K classes: ``V_ts = (1/N) sum_i lambda_i d w_ti/d xi_si`` in blocks of K x K, rows those of stage t.

    Class similarity in targets is an average over samples, whose own response is of order 1/N: it is kept as it is.

    Returns
    -------
    ndarray, shape (T, T, K, K)
        By dense inverses of N(K-1) rows, or N K: for hundreds of inputs and a few classes.  nan as for two classes.
    """
    n_inputs, n_stages = sample.design.shape[1], len(fits)
    k = len(sample.mean)
    bases = [fit.basis(k) for fit in fits]
    result = np.zeros((n_stages, n_stages, k, k))
    moved: dict[tuple[int, int], Array | None] = {}  # d u_k / d xi_s on all samples, (M, d, N_s d)
    for t, (stage, fit) in enumerate(zip(chain.stages, fits, strict=True)):
        size, basis, d = len(fit.weights), bases[t], len(bases[t])
        fields = class_fields_of(stage.loss, t + 1, sample, fits, fit.rows)
        design = _with_ones(sample.part(stage, fit.rows, fit.active), True)
        everywhere = _with_ones(sample.part(stage, slice(None), fit.active), True)
        curvatures = fields.derivatives(fit.logits)[1]
        rows = (size + 1) * d
        hessian = np.empty((size + 1, d, size + 1, d))
        for a in range(d):
            for b in range(d):
                hessian[:, a, :, b] = (design * curvatures[:, a, b, None]).T @ design
        hessian = hessian.reshape(rows, rows)
        np.einsum("ii->i", hessian)[: size * d] += stage.ridge
        factors = cho_factor(hessian, lower=True, overwrite_a=True)
        inverse = cho_solve(factors, np.eye(rows, size * d), overwrite_b=True)
        variances = sample.variances[fit.active]
        blocks = np.einsum("i,iaib->ab", variances, inverse[: size * d].reshape(size, d, size, d)) / n_inputs
        result[t, t] = basis.T @ blocks @ basis
        own = np.tensordot(design, inverse.reshape(size + 1, -1), 1).reshape(len(design), d, size * d)
        moved[t, t] = np.tensordot(everywhere, inverse.reshape(size + 1, -1), 1).reshape(-1, d, size * d)
        pulls = _class_pulls(fields, fit.logits @ basis, stage.loss.stages(t + 1), bases)
        for s in range(t):
            between = [place for place in range(s, t) if place in pulls and (place, s) in moved]
            if not between:
                continue
            if any(pulls[place] is None or moved[place, s] is None for place in between):
                result[t, s], moved[t, s] = np.nan, None
                continue
            forces = sum(pulls[place] @ moved[place, s][fit.rows] for place in between)
            mine, others = _shared(fit.active, fits[s].active, n_inputs)
            left = own.reshape(-1, size, d)[:, mine]
            right = forces.reshape(len(left), -1, len(bases[s]))[:, others]
            weighted = variances[mine, None] * left
            result[t, s] = -basis.T @ (np.einsum("mia,mib->ab", weighted, right) / n_inputs) @ bases[s]
            pushed = np.tensordot(design.T, forces, 1).reshape(rows, -1)
            solved = -cho_solve(factors, pushed)
            moved[t, s] = np.tensordot(everywhere, solved.reshape(size + 1, -1), 1).reshape(len(everywhere), d, -1)
    return result


STEP = 1e-6
"""Of differences of targets."""


def _class_pulls(fields: ClassFields, h: Array, seen: Sequence[int], bases: Sequence[Array]) -> dict[int, Array | None]:
    """Derivative of the gradient in the logits of the stages that are looked at, (M, d, d) each; None where targets jump."""
    basis = fields.basis
    found: dict[int, Array | None] = {}
    for place, stage in enumerate(seen):
        if fields.loss.jumps:
            found[stage - 1] = None
            continue
        pull = np.empty((len(fields.labels), len(basis), len(bases[stage - 1])))
        for b, direction in enumerate(bases[stage - 1]):
            ends = []
            for step in (STEP, -STEP):
                taught = fields.taught.copy()
                taught[:, place] += step * direction
                ends.append(fields.loss.gradient(h, fields.loss.targets(fields.labels, taught, fields.table)))
            pull[:, :, b] = ((ends[0] - ends[1]) / (2 * STEP)) @ basis.T
        found[stage - 1] = found.get(stage - 1, 0.0) + pull
    return found


def _with_ones(design: Array, ones: bool) -> Array:
    return np.column_stack((design, np.ones(len(design)))) if ones else design


def _shared(first: Selection, second: Selection, n_inputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions, in two masks, of the weights that both have."""
    weights = np.arange(n_inputs)
    return np.intersect1d(weights[first], weights[second], assume_unique=True, return_indices=True)[1:]
