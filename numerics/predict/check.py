"""Predictions beside real fits: how far they may be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray
from numpy.typing import NDArray

from numerics.models import Chain, Measured, Stage, parameter_values, require_count
from numerics.models.measured import COVARIANCES, folds_of
from numerics.predict.box import Box
from numerics.predict.fits import measure
from numerics.predict.margins import Prediction, most_samples, predict
from numerics.simulation.result import SimulationResult

Array = NDArray[np.float64]

LARGEST_SCORE = 2.0
"""|z| of a prediction up to which settings are ranked."""

LARGEST_DEVIATION = 0.25
"""Relative deviation from the fits, beyond two of their standard errors, up to which settings are ranked."""

LARGEST_COMPARED = 200
"""Columns up to which one covariance a class is tried beside a pooled one: its cost grows like their third power."""

DIFFERENT = 0.05
"""Relative difference of the two predictions from which one covariance a class is taken."""

FEWEST = 16
"""Samples of the smallest training set of a curve."""

FEW_PER_MILLE = 0.01
"""Test error below which a prediction says little."""

LARGE_SHARE = 1.0 / 3.0
"""Of all samples, above which predictions of small errors have been found to fail."""


@dataclass(frozen=True, eq=False)
class Check:
    """Real fits at one point, and what was predicted there.

    Attributes
    ----------
    prediction : Prediction
    runs : SimulationResult
        Of the fits.
    other : Prediction or None
        With covariances of the other kind, pooled or one for each class; None where there are too many columns.
    """

    prediction: Prediction
    runs: SimulationResult
    other: Prediction | None = None

    @property
    def difference(self) -> Array:
        """Of the other prediction, relative to the one that counts, shape (T,); NaN if there is none."""
        if self.other is None:
            return np.full(len(self.measured), np.nan)
        return self.other.test_error / self.prediction.test_error - 1.0

    @property
    def measured(self) -> Array:
        """Mean test error of the fits, shape (T,)."""
        return self.runs.mean("test_error")

    @property
    def standard_error(self) -> Array:
        """Of that mean, over subsamples of the same data, shape (T,)."""
        return self.runs.standard_error("test_error")

    @property
    def resolution(self) -> float:
        """Share of one of the samples that fits are tested on: errors are not known better, even if all fits have the same."""
        return 1.0 / (self.runs.data.samples.count - self.runs.n_samples)

    @property
    def deviation(self) -> Array:
        """Of the prediction, relative to the fits, or to one sample if these have no error, shape (T,)."""
        return (self.prediction.test_error - self.measured) / np.maximum(self.measured, self.resolution)

    @property
    def z(self) -> Array:
        """(prediction - fits)/error, with the error of both: the scatter of the folds, and that of the fits; shape (T,)."""
        apart = self.prediction.test_error - self.measured
        return apart / np.hypot(self.prediction.standard_error, np.maximum(self.standard_error, self.resolution))

    @property
    def trusted(self) -> NDArray[np.bool_]:
        """Stages whose prediction agrees with the fits, shape (T,)."""
        allowed = LARGEST_DEVIATION * self.measured + 2.0 * self.standard_error
        apart = np.abs(self.prediction.test_error - self.measured)
        return (np.abs(self.z) <= LARGEST_SCORE) & (apart <= allowed)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        names = self.runs.chain.names
        worst = int(np.argmax(np.abs(self.z)))
        shown = ", ".join(
            f"{name} z = {z:+.1f} ({d:+.0%})" for name, z, d in zip(names, self.z, self.deviation, strict=True)
        )
        if self.trusted.all():
            return f"predictions agree with {self.runs.n_runs} real fits at M = {self.runs.n_samples}: {shown}"
        wrong = [name for name, good in zip(names, self.trusted, strict=True) if not good] or [names[worst]]
        return (
            f"DO NOT TRUST predictions of {' and '.join(wrong)}: against {self.runs.n_runs} real fits at M = "
            f"{self.runs.n_samples} {shown}; settings are not ranked"
        )


def check(
    data: Measured, chain: Chain | Stage | Sequence[Stage], n_fits: int = 8, seed: int = 0, *, n_jobs: int = 1
) -> Check:
    """Fit a chain a few times, beside what is predicted.

    Parameters
    ----------
    data, chain
        As of :func:`numerics.predict.predict`.
    n_fits, seed, n_jobs
        As of :func:`numerics.predict.measure`.

    Raises
    ------
    ParameterError
        As of the two.
    """
    prediction, other = predict(data, chain), None
    if _comparable(data):
        other = predict(data.taking(next(kind for kind in COVARIANCES if kind != data.covariances)), chain)
    return Check(prediction, measure(data.X, data.y, data, chain, n_fits, seed, n_jobs=n_jobs), other)


def _comparable(data: Measured) -> bool:
    """Whether one covariance a class can be had, and in no time."""
    few = data.samples.size <= LARGEST_COMPARED
    return few and all(fold.moments.shaped for fold in folds_of(data.samples, data.folds, data.seed))


def better_kind(data: Measured, chain: Chain) -> Measured:
    """The data with one covariance a class where that is affordable and changes the errors by more than DIFFERENT; else pooled."""
    if not _comparable(data):
        return data.taking("pooled")
    pooled, each = (predict(data.taking(kind), chain).test_error for kind in COVARIANCES)
    return data.taking(COVARIANCES[int(np.abs(each / pooled - 1.0).max() > DIFFERENT)])


def limits(prediction: Prediction, other: Prediction | None = None) -> tuple[str, ...]:
    """What a prediction cannot say, a sentence each; ``other`` is one with covariances of the other kind."""
    found = ["training sets are taken to have the shares of the classes: unstratified draws do worse at large ridges"]
    count = prediction.data.samples.count
    if (prediction.test_error < FEW_PER_MILLE).any():
        found.append(f"errors below {FEW_PER_MILLE:g} are not predicted to better than a factor of two")
    if prediction.n_samples > LARGE_SHARE * count:
        found.append(
            f"M = {prediction.n_samples} is above a third of the {count} samples, where small errors come out wrong"
        )
    kinds = {"pooled": "one covariance for both classes", "per class": "one covariance for each class"}
    if other is None:
        found.append(f"{kinds[prediction.data.covariances]} is taken, and is not compared with the other way")
    else:
        apart = ", ".join(
            f"{name} {value:+.1%}"
            for name, value in zip(prediction.chain.names, other.test_error / prediction.test_error - 1.0, strict=True)
        )
        found.append(
            f"{kinds[prediction.data.covariances]} is taken; with {kinds[other.data.covariances]} predicted errors are: {apart}"
        )
    return tuple(found)


def learning_curves(
    data: Measured, chains: Mapping[str, Chain], samples: Sequence[int], n_fits: int = 0, seed: int = 0, *,
    fitted: Sequence[int] = (), n_jobs: int = 1,
) -> xarray.Dataset:  # fmt: skip
    """Predicted test errors of several chains against M, and real fits at some of the points.

    Parameters
    ----------
    chains : mapping of name to Chain
        With the same names of stages.
    samples : sequence of int
        M; those that are given twice are taken once.
    n_fits, seed, n_jobs
        Of fits at each M in ``fitted``, which are among ``samples``.

    Returns
    -------
    Dataset
        ``test_error``, ``standard_error``, ``gaussian_error``, ``test_cross_entropy``, ``fits`` and ``fits_standard_error``, over
        setting, stage and samples; NaN where nothing was fitted.

    Raises
    ------
    ParameterError
        As of :func:`numerics.predict.predict`.
    """
    names, samples = next(iter(chains.values())).names, sorted(set(samples))
    shape = (len(chains), len(names), len(samples))
    variables = ("test_error", "standard_error", "gaussian_error", "test_cross_entropy", "fits", "fits_standard_error")
    found = {name: np.full(shape, np.nan) for name in variables}
    failures = []
    for k, (title, chain) in enumerate(chains.items()):
        for j, size in enumerate(samples):
            prediction = predict(data.at(size), chain)
            for name in variables[:4]:
                found[name][k, :, j] = getattr(prediction, name)
            if not prediction.converged:
                failures.append(f"{title}, M = {size}: {prediction.message}")
            if size in fitted and n_fits:
                runs = measure(data.X, data.y, data.at(size), chain, n_fits, seed, n_jobs=n_jobs)
                found["fits"][k, :, j] = runs.mean("test_error")
                found["fits_standard_error"][k, :, j] = runs.standard_error("test_error")
    places = ("setting", "stage", "samples")
    return xarray.Dataset(
        {name: (places, values) for name, values in found.items()},
        coords={"setting": list(chains), "stage": list(names), "samples": list(samples)},
        attrs={
            "n_samples": data.samples.count, "n_columns": data.samples.size, "folds": data.folds,
            "seed": data.seed,
            "covariances": data.covariances, "n_fits": n_fits, "fits_seed": seed,
            "failures": "\n".join(failures), "failed_points": len(failures),
            "parameters": "\n".join(f"{title}: {parameter_values(data, chain)}" for title, chain in chains.items()),
        },
    )  # fmt: skip


def reliability(
    data: Measured, chain: Chain, over: Mapping[str, tuple[float, float]], n_settings: int = 24, n_fits: int = 8, seed: int = 0,
    *, n_jobs: int = 1,
) -> xarray.Dataset:  # fmt: skip
    """Predictions beside real fits at settings all over a range of parameters and of M.

    Parameters
    ----------
    over
        As of :func:`numerics.predict.choose`.
    n_settings, n_fits, seed, n_jobs : int
        Settings; fits at each; seed of both.

    Returns
    -------
    Dataset
        ``test_error``, ``standard_error``, ``gaussian_error``, ``fits``, ``fits_standard_error`` over setting and stage, the
        parameters and M over setting.

    Raises
    ------
    ParameterError
        As of :func:`numerics.predict.choose`.
    """
    box = Box(data, chain, over, chain.names[-1])
    n_settings = require_count("n_settings", n_settings, 1)
    sizes = sample_range(data, n_settings)
    units = box.candidates(n_settings, seed)
    names = ("test_error", "standard_error", "gaussian_error", "fits", "fits_standard_error")
    found = {name: np.full((n_settings, len(chain)), np.nan) for name in names}
    for k, (unit, size) in enumerate(zip(units, sizes, strict=True)):
        one = check(data.at(size), box.at(data, unit), n_fits, seed + k, n_jobs=n_jobs)
        for name in names[:3]:
            found[name][k] = getattr(one.prediction, name)
        found["fits"][k], found["fits_standard_error"][k] = one.measured, one.standard_error
    parameters = np.array([box.values(unit) for unit in units])
    return xarray.Dataset(
        {
            **{name: (("setting", "stage"), values) for name, values in found.items()},
            **{path: ("setting", parameters[:, k]) for k, path in enumerate(box.paths)},
            "samples": ("setting", sizes),
        },
        coords={"stage": list(chain.names)},
        attrs={"n_fits": n_fits, "seed": seed, "n_samples": data.samples.count},
    )


def sample_range(data: Measured, count: int) -> list[int]:
    """Training set sizes M that can be predicted, so many of them, evenly on a logarithmic axis."""
    fewest = max(FEWEST, math.ceil(4.0 / min(data.rho, 1.0 - data.rho)))
    most = most_samples(data)
    low = min(fewest, most)
    return [round(float(m)) for m in np.geomspace(low, most, count)]
