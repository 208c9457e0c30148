"""Whether outputs are probabilities: of teacher and student, on fresh and on training samples.

On fresh samples the true log-odds are linear in the logit, so that slope and offset calibrate exactly; one temperature does so
only if the bias is the best one.  On training samples the logit's law is that of the saddle point, with density
``N(omega) (1 + Delta V l'')`` given the earlier stages, and the label is the one that was trained on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from numerics.deferred import special
from numerics.models import GaussianMixture, ParameterError
from numerics.solution import quadrature
from numerics.solution.quadrature import Budget
from numerics.solution.samples import WeightedSamples
from numerics.solution.solution import StageSolution, without_nan
from numerics.solution.stage import AnyStage

Array = np.ndarray

SAMPLES = TEST, TRAIN = "test", "training"
"""Where calibration is looked at."""

TOLERANCE = 1e-9
"""Absolute accuracy of averages over bins."""

REACH, PANELS = 9.0, 24
"""Standard deviations of training logits that averages extend to, and panels there to begin with."""


@dataclass(frozen=True)
class Decomposition:
    """A proper score in three parts.

    Attributes
    ----------
    score : float
        ``calibration + refinement``.
    calibration : float
        What a calibrated output would save.
    refinement : float
        What no function of the logit can save; ``uncertainty - resolution``.
    uncertainty : float
        The score of the output rho on every sample.
    """

    score: float
    calibration: float
    refinement: float
    uncertainty: float

    @property
    def resolution(self) -> float:
        """What the logit tells of the label."""
        return self.uncertainty - self.refinement


@dataclass(frozen=True)
class Calibration:
    """Calibration of one stage; on fresh samples where nothing else is said.

    Attributes
    ----------
    slope, offset : float
        The true log-odds are ``slope h + offset``: the affine calibration, after which every error is 0.
    ece, ece_top : float
        Expected calibration error of P(y = 1), and of the label that is predicted.
    temperature, ece_tempered : float
        tau of least cross-entropy, and the error of ``sigmoid(h/tau)``.
    brier, cross_entropy : Decomposition
    train_ece, train_ece_top : float
        On training samples; NaN for a stage under a hard constraint.
    train_brier, train_cross_entropy : float
    """

    slope: float
    offset: float
    ece: float
    ece_top: float
    temperature: float
    ece_tempered: float
    brier: Decomposition
    cross_entropy: Decomposition
    train_ece: float
    train_ece_top: float
    train_brier: float
    train_cross_entropy: float

    def to_dict(self) -> dict:
        """Everything as plain numbers, ready for JSON."""
        return without_nan(asdict(self))

    def __str__(self) -> str:
        lines = [
            f"log-odds {self.slope:.3f} h {self.offset:+.3f}, calibrating temperature {self.temperature:.3f}",
            f"calibration error: test {self.ece:.4f} (top label {self.ece_top:.4f}, at that temperature "
            f"{self.ece_tempered:.4f}), training {self.train_ece:.4f} (top label {self.train_ece_top:.4f})",
        ]
        for name, part, train in (
            ("Brier score", self.brier, self.train_brier),
            ("cross-entropy", self.cross_entropy, self.train_cross_entropy),
        ):
            lines.append(
                f"{name}: {part.score:.4f} = {part.calibration:.4f} calibration + {part.uncertainty:.4f} uncertainty "
                f"- {part.resolution:.4f} resolution; training {train:.4f}"
            )
        return "\n".join(lines)


def calibration_of(stage: StageSolution) -> Calibration:
    """Calibration of a solved stage.

    Raises
    ------
    ParameterError
        If the stage is not solved, or its data are not a mixture of two classes.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, solve
    >>> from theory.losses import CrossEntropy
    >>> stage = solve(GaussianMixture(alpha=2.0, rho=0.2, label_noise=0.1), Estimator(CrossEntropy(), ridge=0.1))[0]
    >>> print(calibration_of(stage))
    log-odds 0.573 h -0.750, calibrating temperature 1.270
    calibration error: test 0.0814 (top label 0.0327, at that temperature 0.0852), training 0.1148 (top label 0.0963)
    Brier score: 0.1512 = 0.0146 calibration + 0.1600 uncertainty - 0.0234 resolution; training 0.0678
    cross-entropy: 0.4705 = 0.0397 calibration + 0.5004 uncertainty - 0.0696 resolution; training 0.2462
    """
    _require_classes(stage)
    rho = stage.data.rho
    prior = -rho * math.log(rho) - (1.0 - rho) * math.log(1.0 - rho)
    return Calibration(
        slope=stage.calibration_slope, offset=stage.calibration_offset, ece=stage.calibration_error,
        ece_top=stage.top_label_calibration_error, temperature=stage.calibrating_temperature,
        ece_tempered=stage.tempered_calibration_error,
        brier=Decomposition(stage.brier_score, stage.brier_calibration, stage.brier_refinement, rho * (1.0 - rho)),
        cross_entropy=Decomposition(
            stage.test_cross_entropy, stage.cross_entropy_calibration, stage.cross_entropy_refinement, prior
        ),
        train_ece=training_calibration_error(stage), train_ece_top=training_calibration_error(stage, top=True),
        train_brier=stage.train_brier_score, train_cross_entropy=stage.train_cross_entropy,
    )  # fmt: skip


def _require_classes(stage: AnyStage) -> None:
    if not isinstance(stage.data, GaussianMixture):
        raise ParameterError(f"data must be a GaussianMixture, got {stage.data!r}")
    if isinstance(stage, StageSolution) and not stage.known:
        raise ParameterError(f"stage {stage.name} is not solved: {stage.solution.message}")


# Reliability


@dataclass(frozen=True)
class Reliability:
    """Bins of the logit: what was predicted there, and how often the label is 1.

    Attributes
    ----------
    edges : array, shape (bins + 1,)
    share : array, shape (bins,)
        P(h in the bin).
    predicted, observed : arrays, shape (bins,)
        Means of sigmoid(h) and of y there; NaN in empty bins.
    """

    edges: Array
    share: Array
    predicted: Array
    observed: Array

    @property
    def error(self) -> float:
        """Binned calibration error: at most that of the logits themselves."""
        return float(np.nansum(self.share * np.abs(self.observed - self.predicted)))


def reliability(stage: AnyStage, edges: Sequence[float], on: str = TEST) -> Reliability:
    """Reliability in bins of the logit, of a solved stage or of one run of an experiment.

    Parameters
    ----------
    edges : sequence of float
        Of the bins, finite and in increasing order.
    on : str
        "test" or "training"; of an experiment the former is the law of fresh logits given the trained weights.

    Raises
    ------
    ParameterError
        For edges that are not in increasing order, an unknown ``on``, data that are no mixture, or training logits without a
        density.

    Examples
    --------
    >>> from numerics import Estimator, GaussianMixture, solve
    >>> from theory.losses import CrossEntropy
    >>> stage = solve(GaussianMixture(alpha=2.0, rho=0.2), Estimator(CrossEntropy(), ridge=0.1))[0]
    >>> for name in ("test", "training"):
    ...     print(reliability(stage, [-2.0, -1.0, 0.0], on=name).observed.round(4))
    [0.2151 0.373 ]
    [0.0107 0.4563]
    """
    _require_classes(stage)
    edges = np.asarray(edges, dtype=float)
    if edges.ndim != 1 or len(edges) < 2 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        raise ParameterError(f"edges must be at least two finite numbers in increasing order, got {edges.tolist()!r}")
    share, positive, predicted = _over_bins(_samples(stage, on), stage.own, edges)
    with np.errstate(invalid="ignore"):
        return Reliability(edges, share, predicted / share, positive / share)


def curve(stage: StageSolution, h: Sequence[float], on: str = TEST) -> Array:
    """P(y = 1 given the logit h) of a solved stage, shape (n,); NaN where there are no logits.

    Raises
    ------
    ParameterError
        As for :func:`reliability`.
    """
    _require_classes(stage)
    zero, one = _samples(stage, on).density(np.asarray(h, dtype=float))
    with np.errstate(invalid="ignore"):
        return one / (zero + one)


def training_calibration_error(stage: StageSolution, *, top: bool = False) -> float:
    """``E |P(y=1 given h) - sigmoid(h)|`` on training samples; of the label that is predicted with ``top``.

    NaN for a stage whose training logits have no density (ridge 0 under a hard constraint, or no weights).
    """
    _require_classes(stage)
    samples = stage.samples
    if not math.isfinite(stage.norm) or stage.norm == 0.0:
        return math.nan
    mean, width = samples.centre_and_width
    reach = REACH * width
    end = abs(mean) + reach
    try:
        samples.density(np.array([mean]))
    except ParameterError:
        return math.nan

    def gap(h: Array) -> Array:
        zero, one = samples.density(h)
        return one * special.expit(-h) - zero * special.expit(h)

    if top:
        return _absolute(lambda r: gap(r) - gap(-r), np.linspace(0.0, end, PANELS // 2 + 1))
    return _absolute(gap, np.linspace(mean - reach, mean + reach, PANELS + 1))


def _samples(stage: AnyStage, on: str) -> WeightedSamples:
    if on not in SAMPLES:
        raise ParameterError(f"on must be one of {', '.join(SAMPLES)}, got {on!r}")
    return stage.fresh if on == TEST else stage.samples


def _absolute(function: Callable[[Array], Array], edges: Array) -> float:
    """Integral of the modulus of a smooth function."""
    return quadrature.absolute(lambda h: function(h.ravel()).reshape(h.shape), edges, TOLERANCE, Budget())


def _over_bins(samples: WeightedSamples, own: Array, edges: Array) -> tuple[Array, Array, Array]:
    """P(h in bin), P(y = 1, h in bin) and E[sigmoid(h), h in bin], shape (bins,) each."""
    try:
        samples.density(edges[:1])
    except NotImplementedError:
        return _counted(samples, own, edges)

    def integrate(function: Callable[[Array, Array, Array], Array]) -> Array:
        def integrand(_: Array, h: Array) -> tuple[Array, Array]:
            zero, one = samples.density(h.ravel())
            return function(h.ravel(), zero, one).reshape(h.shape), np.zeros_like(h)

        ends = np.column_stack((edges[:-1], edges[1:]))
        return quadrature.integrate(integrand, ends, np.full(len(ends), TOLERANCE), Budget())[0]

    return (
        integrate(lambda h, zero, one: zero + one),
        integrate(lambda h, zero, one: one),
        integrate(lambda h, zero, one: (zero + one) * special.expit(h)),
    )


def _counted(samples: WeightedSamples, own: Array, edges: Array) -> tuple[Array, Array, Array]:
    """The same of samples that were drawn."""

    def mean(function: Callable[[Array, Array], Array]) -> Array:
        return np.array(
            [
                samples.mean(lambda y, h, low=low, high=high: function(y, h) * ((low < h) & (h <= high)), [own]).value
                for low, high in itertools.pairwise(edges)
            ]
        )

    return mean(lambda y, h: np.ones_like(h)), mean(lambda y, h: y), mean(lambda y, h: special.expit(h))
