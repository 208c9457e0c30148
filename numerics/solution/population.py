"""Fresh samples, on which the logits of all stages are jointly Gaussian given the class.

Theory and simulations share them: both know the means, biases and overlaps of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from numerics.codegen import observables
from numerics.codegen.losses import LossFunctions
from numerics.deferred import special
from numerics.models import DataModel
from numerics.models.link import disagreement
from numerics.solution import quadrature
from numerics.solution.gaussian import QUADRATURE_TOLERANCE, ROUNDING, gaussian_mean, semidefinite_cholesky
from numerics.solution.logit_law import LogitLaw
from numerics.solution.quadrature import Integral
from numerics.solution.samples import GaussianLogits, Integrand, as_columns, unit
from theory.functions import step
from theory.losses import Loss

Array = NDArray[np.float64]

SAME_STAGE = 1e-10
"""Share of the variance below which a difference between earlier logits is rounding: they are of equal stages."""

FAR, FORMULA_ACCURACY = 40.0, 1e-14
"""Slope times field beyond which a link draws the sign, and what the integral of a formula may leave."""

SYMMETRIC = 1e-14
"""Order parameters in finite units below this vanish by symmetry, however long the weights."""


@lru_cache(maxsize=256)
def target_jumps(loss: Loss) -> tuple[tuple[int, float | None], ...]:
    """Places where the target jumps: (which of ``loss.logits``, position); None where that moves with another logit."""
    if not loss.expression.has(step):
        return ()
    found = []
    for jump in loss.gradient.subs(dict(zip(loss.symbols, loss.values, strict=True))).atoms(step):
        argument = jump.args[0]
        for k, symbol in enumerate(loss.logits):
            slope = argument.diff(symbol)
            position = symbol - argument / slope if slope != 0 else None
            if position is not None:
                found.append((k, float(position) if position.expand().is_number else None))
    return tuple(sorted(found, key=str))


class Population(GaussianLogits):
    """The law of fresh logits, from order parameters: of a saddle point, or of trained weights.

    Parameters
    ----------
    data : DataModel
        Its classes and the variance of its inputs.
    magnetization, bias, overlap : ndarray, shapes (T,), (T,), (T, T)
        m_t = w_t.v/N, b_t, Q_ts = w_t.w_s/N.
    factor : ndarray, shape (T, K), optional
        C with Q = C C^T, where it is known better than Q: differences of nearly equal models keep their digits.
    rtol : float
        Relative accuracy of averages.
    scale : ndarray, shape (T,), optional
        Infinite where weights are those of a max-margin stage with ``s h >= 1``, else 1.
    signal : float, optional
        |v|^2/N where it is not what the data say: of drawn ones.
    norm_ratio : ndarray, shape (T,), optional
        |w_t|^2/N over Q_tt, which is w_t^T Omega w_t/N where inputs have a covariance Omega; 1 if not given.
    check : bool
        Take other nodes where an average looks at one set of them.

    What is a formula of order parameters takes those of many points at once, too: arrays with an axis of points in front, in
    ``data.positive_share`` and ``data.variance`` as well.
    """

    loss_at_infinity: ClassVar[float] = math.inf

    def __init__(
        self,
        data: DataModel,
        magnetization: Array,
        bias: Array,
        overlap: Array,
        factor: Array | None = None,
        rtol: float = QUADRATURE_TOLERANCE,
        *,
        scale: Array | None = None,
        signal: float | None = None,
        norm_ratio: Array | None = None,
        check: bool = False,
    ) -> None:
        self.data, self.magnetization, self.bias, self.overlap = data, magnetization, bias, overlap
        self.factor = semidefinite_cholesky(overlap) if factor is None else factor
        self.rtol, self.rounding, self.check = rtol, ROUNDING, check
        self.signal = data.signal if signal is None else signal
        self.stages = magnetization.shape[-1]
        self.norm_ratio = np.ones(self.stages) if norm_ratio is None else norm_ratio
        self.scale = np.ones(self.stages) if scale is None else scale

    # Classes as groups.

    @cached_property
    def weight(self) -> Array:
        return np.array([law.weight for law in self.data.classes])

    @cached_property
    def signs(self) -> Array:
        return np.array([law.sign for law in self.data.classes])

    @cached_property
    def labels(self) -> Array:
        return np.array([law.label for law in self.data.classes])

    @cached_property
    def means(self) -> Array:
        return np.outer(self.magnetization, self.signs) + self.bias[:, None]

    def factor_of(self, group: int, stages: Sequence[int] | Array) -> Array:
        """Rows of F = sqrt(Delta) C, of some stages counted from 0."""
        return math.sqrt(self.data.variance) * self.factor[stages]

    def first(self, stages: int) -> Population:
        """Of the first stages alone."""
        k = stages
        return Population(
            self.data, self.magnetization[:k], self.bias[:k], self.overlap[:k, :k], self.factor[:k, :k], self.rtol,
            scale=self.scale[:k], signal=self.signal, norm_ratio=self.norm_ratio[:k], check=self.check,
        )  # fmt: skip

    def combined(self, rows: Array) -> Population:
        """The population of models whose logits are linear combinations of these, shape (models, T): means of teachers, say."""
        some = np.flatnonzero(rows.any(axis=0))  # of a thousand stages, two
        chosen = rows[:, some]
        factor = chosen @ self.factor[..., some, :]
        m, b = (values[..., some] @ chosen.T for values in (self.magnetization, self.bias))
        ratio = np.ones(len(rows))
        if np.any(self.norm_ratio != 1.0):  # of a mean of several it is not known
            single = np.count_nonzero(rows, axis=1) == 1
            ratio = np.where(single, self.norm_ratio[..., np.argmax(rows != 0.0, axis=1)], np.nan)
        return Population(
            self.data, m, b, factor @ np.swapaxes(factor, -1, -2), factor, self.rtol,
            scale=np.array([1.0 if self.is_finite(row) else math.inf for row in rows]), signal=self.signal, norm_ratio=ratio,
            check=self.check,
        )  # fmt: skip

    # Formulas of the order parameters.

    def scaled(self, values: Array, t: int, power: int = 1) -> Array:
        """Something of stage t in true units, that goes with a power of its weights; 0 up to rounding stays 0."""
        if self.scale[t] == 1.0:
            return values
        with np.errstate(invalid="ignore"):
            return np.where(np.abs(values) < SYMMETRIC, 0.0, values * self.scale[t] ** power)

    @property
    def ruled(self) -> bool:
        """Whether the first logit is that of a rule, which gives the labels."""
        return self.data.ruled

    def alignment(self, t: int) -> Array:
        """Overlap of the weights of stage t with what is to be learned: v, or the rule."""
        return self.overlap[..., t, 0] if self.ruled else self.magnetization[..., t]

    def weight_norm(self, t: int) -> Array:
        """|w_t|^2/N."""
        return self.norm_ratio[..., t] * self.overlap[..., t, t]

    def rule_error(self, t: int, noise: Array | float = 0.0) -> Array:
        """P(h_t and the field of the rule differ in sign), the field with noise of this variance added.

        ``1/2 - 2 T(b/sqrt(Q), r/sqrt(1 - r^2))`` with Owen's T function, which is ``arccos(r)/pi`` without a bias
        (Owen 1956); r is the correlation of the two.
        """
        q, b = self.overlap[..., t, t], self.bias[..., t]
        known = q > 0.0
        root = np.sqrt(np.where(known, q, 1.0))
        r = np.clip(self.alignment(t) / (root * np.sqrt(self.signal + noise)), -1.0, 1.0)
        slope = r / np.sqrt(np.maximum((1.0 - r) * (1.0 + r), np.finfo(float).tiny))
        found = np.where(b == 0.0, np.arccos(r) / math.pi, 0.5 - 2.0 * special.owens_t(b / root, slope))
        found = np.where(known, found, np.where(b == 0.0, np.nan, 0.5))
        return found if found.ndim else float(found)

    def drawn_error(self, t: int) -> Array:
        """P(h_t is on the wrong side of the label of a rule), before noise flips it.

        Of labels that are drawn: ``P(sign h_t != sign z) + int_0^oo dz N(z) sigmoid(-c z) [erf(a_+/sqrt2) + erf(a_-/sqrt2)]``,
        ``a_+- = (r z +- b/sqrt(Q))/sqrt(1 - r^2)``, z the field of the rule, c the slope of the link and r the correlation.
        """
        slope = np.asarray(self.data.link_slope, dtype=float)
        if np.isinf(slope).all():
            return self.rule_error(t, self.data.field_noise)
        clean, q, b, aligned = np.broadcast_arrays(
            self.rule_error(t), self.overlap[..., t, t], self.bias[..., t], self.alignment(t)
        )
        shape, (clean, q, b, aligned) = clean.shape, (np.ravel(values) for values in (clean, q, b, aligned))
        size = np.sqrt(self.signal)  # of the field of the rule, which is z times it
        slope, size = (np.broadcast_to(values, shape).ravel() for values in (slope * size, size))
        root = np.sqrt(np.where(q > 0.0, q, 1.0))
        r, offset = np.clip(aligned / (root * size), -1.0, 1.0), np.abs(b) / root
        width = np.sqrt(np.maximum((1.0 - r) * (1.0 + r), np.finfo(float).tiny))

        def extra(row: Array, z: Array) -> tuple[Array, Array]:
            mean, off, one = (values[row][:, None] for values in (r, offset, width * math.sqrt(2.0)))
            both = special.erf((mean * z + off) / one) + special.erf((mean * z - off) / one)
            return quadrature.density(z) * special.expit(-slope[row][:, None] * z) * both, np.zeros_like(z)

        far = np.minimum(quadrature.REACH, FAR / slope)
        step = np.clip(offset / np.maximum(np.abs(r), np.finfo(float).tiny), 0.0, far)  # where the sign of h turns
        edges = np.column_stack((np.zeros_like(far), np.minimum(step, 0.5 * far), np.maximum(step, 0.5 * far), far))
        tolerance = np.full(far.shape, FORMULA_ACCURACY)
        values, _ = quadrature.integrate(extra, edges, tolerance, quadrature.Budget())
        found = np.where(q > 0.0, clean + values, np.where(b == 0.0, np.nan, 0.5)).reshape(shape)
        return found if found.ndim else float(found)

    def cosine(self, t: int) -> Array:
        """Between the weights of stage t and v, or between its field and that of a rule; nan for a model of zero norm."""
        size = self.overlap[..., t, t] if self.ruled else self.weight_norm(t)
        with np.errstate(divide="ignore", invalid="ignore"):
            return observables.cosine()(self.alignment(t), size, np.asarray(self.signal, dtype=float))

    def overlap_cosine(self, t: int, s: int) -> Array:
        """Between the weights of two stages; nan for a model of zero norm."""
        q = self.overlap
        with np.errstate(divide="ignore", invalid="ignore"):
            return observables.cosine()(q[..., t, s], q[..., t, t], q[..., s, s])

    def test_error(self, t: int) -> Array:
        """P(s h_t < 0); a model of zero norm decides by its bias, and with none it does not: nan."""
        if self.ruled:
            return self.rule_error(t)
        m, b, q, rho = self.magnetization[..., t], self.bias[..., t], self.overlap[..., t, t], self.data.positive_share
        by_bias = np.where(b > 0.0, 1.0 - rho, np.where(b < 0.0, rho, np.nan))
        found = np.where(
            q > 0.0, observables.test_error()(m, b, np.where(q > 0.0, q, 1.0), self.data.variance, rho), by_bias
        )
        return found if found.ndim else float(found)

    def direction_error(self, t: int) -> Array:
        """P(s h_t < 0) after the best threshold; weights with m <= 0 are no better than the larger class."""
        m, q, rho = self.magnetization[..., t], self.overlap[..., t, t], self.data.positive_share
        aligned = (m > 0.0) & (q > 0.0)
        good, size = np.where(aligned, m, 1.0), np.where(aligned, q, 1.0)
        error = observables.direction_error()(good, size, self.data.variance, rho)
        found = np.where(aligned, error, np.where(np.isnan(m), np.nan, np.minimum(rho, 1.0 - rho)))
        return found if found.ndim else float(found)

    def calibration(self, t: int) -> tuple[Array, Array]:
        """(slope, offset) of the true log-odds as a function of h_t; nan for a model of zero norm."""
        q = self.overlap[..., t, t]
        with np.errstate(divide="ignore", invalid="ignore"):
            slope, offset = observables.calibration()(
                self.magnetization[..., t],
                self.bias[..., t],
                np.where(q > 0.0, q, np.nan),
                self.data.variance,
                self.data.positive_share,
            )
        return slope / self.scale[t], offset

    def logit_law(self, t: int) -> LogitLaw:
        """Law of h_t where inputs come in two classes."""
        width = math.sqrt(self.data.variance * self.overlap[t, t])
        return LogitLaw(
            float(self.magnetization[t]), float(self.bias[t]), width, self.data.positive_share, math.isinf(self.scale[t])
        )  # fmt: skip

    def right_and_wrong(self, t: int, s: int) -> float:
        """P(stage t classifies a test point rightly and stage s wrongly); nan if one of them decides nothing."""
        return self._of_signs(observables.right_and_wrong(), t, s)

    def logit_distance(self, t: int, s: int) -> Array:
        """E[(h_t - h_s)^2] on a test point."""
        if math.inf in (self.scale[t], self.scale[s]):
            return math.inf
        # That of their difference to no model at all: no digits are lost where they are nearly equal.
        m, b = (values[..., t] - values[..., s] for values in (self.magnetization, self.bias))
        row = self.factor[..., t, :] - self.factor[..., s, :]
        q = np.sum(row * row, axis=-1)
        return observables.logit_distance()(m, 0.0, b, 0.0, q, 0.0, 0.0, self.data.variance, self.data.positive_share)

    def agreement(self, t: int, s: int) -> float:
        """Probability that stages t and s give a test point the same label; nan if one of them decides nothing."""
        return self._of_signs(observables.agreement(), t, s)

    def _of_signs(self, formula: Callable[..., float], t: int, s: int) -> float:
        m, b, q = self.magnetization[[t, s]], self.bias[[t, s]], self.overlap[np.ix_([t, s], [t, s])]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # Distances of a constant from 0, in units of no width, are infinite.
            return float(formula(*m, *b, q[0, 0], q[1, 1], q[0, 1], self.data.variance, self.data.positive_share))

    # Averages.

    def mean(
        self, function: Integrand, rows: Sequence[Array], *, degree: int | None = None,
        jumps: Sequence[tuple[int, float]] = (),
    ) -> Integral:  # fmt: skip
        """See :meth:`WeightedSamples.mean`; of stages with infinite logits one may be looked at."""
        rows = np.atleast_2d(rows)
        infinite = np.array([not self.is_finite(row) for row in rows])
        if not infinite.any():
            return super().mean(function, rows, degree=degree, jumps=jumps)
        (stage,) = {int(k) for row in rows[infinite] for k in np.flatnonzero(row) if np.isinf(self.scale[k])}
        sides = np.sign(rows[infinite, stage])
        return self._mean_over_signs(function, rows, infinite, stage, sides)

    def _mean_over_signs(
        self, function: Integrand, rows: Array, infinite: Array, stage: int, sides: Array
    ) -> Integral:  # fmt: skip
        """Average of a function of finite logits and of one that is +-inf, whose sign is that of a Gaussian given the others."""
        finite_rows = rows[~infinite] if not infinite.all() else np.zeros((1, self.stages))
        others = finite_rows @ self.factor
        slopes = np.linalg.lstsq(others.T, self.factor[stage], rcond=None)[0]
        rest = math.sqrt(self.data.variance) * float(np.linalg.norm(self.factor[stage] - slopes @ others))

        def both(label: float, *finite: Array) -> Array:
            centre = self.means[:, int(np.flatnonzero(self.labels == label)[0])]
            apart = np.array(finite) - (finite_rows @ centre)[:, None]
            score = (centre[stage] + slopes @ apart) / max(rest, 1e-300)
            total = 0.0
            for sign in (1.0, -1.0):
                x = np.empty((len(rows), apart.shape[1]))
                x[infinite] = (math.inf * sign * sides)[:, None]
                if not infinite.all():
                    x[~infinite] = finite
                total = total + special.ndtr(sign * score) * function(label, *x)
            return total

        return super().mean(both, finite_rows)

    def loss(self, loss: Loss) -> Integral:
        """Average of a loss of the last stage."""
        return self.test_loss(loss, self.stages - 1)

    def test_loss(self, loss: Loss, t: int) -> Integral:
        """E[l_t] on a test point.

        Where the gradient is linear in the target (``loss.split``), l(h, e) - l(h, e0) is linear in h, so the
        average over h given the earlier logits e is known, and the average falls into one over h and one over
        e.
        """
        if math.isinf(self.scale[t]):
            return Integral(self.loss_at_infinity, 0.0)
        functions = LossFunctions(loss)
        stages = [s - 1 for s in loss.stages(t + 1)]
        rows = np.array([unit(self.stages, k + 1) for k in (t, *stages)])

        # A rule's label is 1 if it is the sign of its logit; where it is drawn, the mean of both, in which losses are linear.
        drawn = self.ruled and stages[:1] == [0] and math.isfinite(self.data.link_slope)

        def mean_over_labels(function: Callable[..., Array], h: Array, label: float, earlier: Array) -> Array:
            found = function(h, np.full(len(h), label), earlier)
            if not drawn:
                return found
            other = disagreement(self.data.link_slope, earlier[:, 0])
            return (1.0 - other) * found + other * function(h, np.full(len(h), 1.0 - label), earlier)

        def direct(label: float, h: Array, *earlier: Array) -> Array:
            return mean_over_labels(functions.value, np.ascontiguousarray(h), label, as_columns(earlier, len(h)))

        def force(h: Array, label: float, earlier: Array) -> Array:
            return mean_over_labels(lambda *at: functions.derivatives(*at)[0], h, label, earlier)

        jumps = [(k, position) for k, position in target_jumps(loss) if position is not None]
        if loss.is_quadratic:
            return self.mean(direct, rows, degree=2)
        if not stages or loss.split is None:
            return self.mean(direct, rows, jumps=[(k + 1, position) for k, position in jumps])
        earlier_overlap = self.overlap[np.ix_(stages, stages)]
        slope = np.linalg.pinv(earlier_overlap, rcond=SAME_STAGE, hermitian=True) @ self.overlap[stages, t]
        found = Integral(0.0, 0.0)
        for group, share in enumerate(self.weight):
            label, means = self.labels[group], self.means[:, group]
            reference = means[stages]

            def alone(points: Array, label: float = label, reference: Array = reference) -> Array:
                return direct(label, points[0], *np.broadcast_to(reference[:, None], (len(reference), points.shape[1])))

            def shift(
                points: Array, label: float = label, reference: Array = reference, mean: float = means[t]
            ) -> Array:
                zero = np.zeros(points.shape[1])
                moved, fixed = as_columns(points, len(zero)), np.tile(reference, (len(zero), 1))
                at_zero = direct(label, zero, *moved.T) - direct(label, zero, *fixed.T)
                pull = force(zero, label, moved) - force(zero, label, fixed)
                return at_zero + pull * (mean + (moved - fixed) @ slope)

            allowed = 0.0
            for part, mean, chosen, places in ((alone, means[[t]], [t], ()), (shift, reference, stages, jumps)):
                average = Integral(
                    *gaussian_mean(
                        part, mean, None, places, factor=self.factor_of(group, chosen), rtol=self.rtol, atol=allowed
                    )
                )
                found += share * average
                allowed = self.rtol * abs(average.value)
        return found
