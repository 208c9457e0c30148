"""Inputs with a spectrum, and random features: limits, closed forms, and experiments."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from numerics import (
    Dense,
    Estimator,
    GaussianMixture,
    LinearMap,
    LinearRule,
    ParameterError,
    PowerLaw,
    RandomFeatures,
    Spectrum,
    simulate,
    solve,
    sweep,
)
from numerics.codegen.equations import equations_module
from numerics.models import Chain, DataSet, in_equations
from numerics.optimize import optimize
from numerics.scalar.prior import WeightMoments, coordinate_groups
from numerics.simulation.draw import draw
from numerics.simulation.train import train
from tests.against_experiments import scores_of_stages
from tests.random_inputs import failures
from theory.losses import CrossEntropy, Distillation, SquareDistillation, SquareLoss

UNEVEN = Spectrum([4.0, 1.0, 0.25], squared_signal=[0.5, 2.0, 1.0])
STAGES = [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(mixing=0.8, temperature=2.0), 1e-2, eta=0.5)]


def test_equal_variances_are_white_inputs() -> None:
    """Masks and their overlaps included, whatever the order of the equal parts."""
    stages = [*STAGES, Estimator(Distillation(mixing=0.5), 0.1, eta=0.6, mask_overlap=0.3)]
    for white in (Spectrum([1.0] * 7), Spectrum([1.0], [1.0])):
        found, expected = (
            solve(GaussianMixture(0.8, 0.2, inputs=white), stages),
            solve(GaussianMixture(0.8, 0.2), stages),
        )
        for name in ("magnetization", "bias", "overlap", "response"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-11)
        for name in ("norm", "test_error", "free_energy", "cosine", "train_error"):
            assert getattr(found[2], name) == pytest.approx(getattr(expected[2], name), rel=1e-11)


def test_scale_of_the_variances_is_that_of_delta() -> None:
    found = solve(GaussianMixture(1.5, 0.3, 0.7, inputs=Spectrum([2.0])), STAGES)
    expected = solve(GaussianMixture(1.5, 0.3, 1.4), STAGES)
    assert found[1].test_error == pytest.approx(expected[1].test_error, rel=1e-10)
    assert found[1].norm == pytest.approx(expected[1].norm, rel=1e-10)


def test_the_prior_of_three_stages_is_the_inverse_of_their_equations() -> None:
    """Against ``A w = M mh + xi`` with ``A_ts = ridge_t + Vh_ts Omega_ts`` inverted coordinate by coordinate."""
    generator = np.random.default_rng(5)
    network = RandomFeatures(1.7, "relu")
    chain = Chain.of(
        [
            Estimator(CrossEntropy(), 0.3),
            Estimator(CrossEntropy(), 0.2, features=network),
            Estimator(CrossEntropy(), 0.5),
        ]
    )
    data, ridges, size = GaussianMixture(1.0, 0.4, 1.3), (0.3, 0.2, 0.5), 3
    mh, noise = generator.normal(size=size), generator.normal(size=(size, size))
    qh, vh = noise @ noise.T, np.tril(generator.uniform(0.2, 1.0, (size, size)))
    groups = coordinate_groups(data, chain)
    m, q, v = np.zeros(size), np.zeros((size, size)), np.zeros((size, size))
    for share, rows, means, omega in zip(groups.share, groups.rows, groups.means, groups.covariances, strict=True):
        kept = np.flatnonzero(rows >= 0)
        omega, mean = omega[np.ix_(kept, kept)], means[kept]
        inverse = np.linalg.inv(np.diag(np.array(ridges)[kept]) + vh[np.ix_(kept, kept)] * omega)
        drive = np.outer(mean * mh[kept], mean * mh[kept]) + qh[np.ix_(kept, kept)] * omega
        square = inverse @ drive @ inverse.T
        m[kept] += share * mean * (inverse @ (mean * mh[kept]))
        q[np.ix_(kept, kept)] += share * omega * square
        v[np.ix_(kept, kept)] += share * omega * inverse
    moments = WeightMoments(groups)
    for t in range(size):
        conjugates = np.array([mh[t], *qh[t, : t + 1], *vh[t, : t + 1], 0.0])
        total = np.zeros(2 * t + 3)
        for row in moments.prior_rows(t, ridges[t]):
            out = np.empty(2 * t + 3)
            equations_module(t + 1).prior(conjugates, row, out)
            total += out
        moments.add_stage(t + 1, chain[t], conjugates[:-1])
        assert total[0] == pytest.approx(m[t], rel=1e-11)
        assert total[1 : 2 + t] == pytest.approx(q[t, : t + 1], rel=1e-11)
        assert total[2 + t :] == pytest.approx(v[t, : t + 1], rel=1e-11)


@pytest.mark.parametrize(
    ("data", "features"),
    [
        (GaussianMixture(1.2, 0.3, inputs=UNEVEN), (None, None)),
        (LinearRule(0.7, noise=0.2, inputs=PowerLaw(size=40)), (None, None)),
        (GaussianMixture(1.2, 0.3), (None, RandomFeatures(0.8, "erf"))),
        (LinearRule(1.2, output="sign"), (RandomFeatures(2.0), RandomFeatures(2.0))),
    ],
)
def test_the_norm_is_the_derivative_of_the_objective(data, features) -> None:
    """``d(-Phi)/d ridge = |w|^2/(2N)`` at the saddle, where the norm is no longer Q."""
    square = data.has_real_labels
    losses = (
        (SquareLoss(), SquareDistillation(mixing=0.5)) if square else (CrossEntropy(), Distillation(temperature=2.0))
    )

    def objective(ridge: float) -> float:
        ridges = (0.2, ridge)
        stages = [Estimator(loss, r, features=f) for loss, r, f in zip(losses, ridges, features, strict=True)]
        return solve(data, stages)[1].free_energy

    ridge, step = 0.1, 1e-3
    slope = (
        8 * (objective(ridge + step) - objective(ridge - step))
        - objective(ridge + 2 * step)
        + objective(ridge - 2 * step)
    )
    stages = [Estimator(loss, r, features=f) for loss, r, f in zip(losses, (0.2, ridge), features, strict=True)]
    assert solve(data, stages)[1].norm_squared / 2 == pytest.approx(slope / (12 * step), rel=1e-6)


def ridge_risk(alpha: float, ridge: float, noise: float, inputs) -> float:
    """Excess risk of ridge regression from the equation for kappa (Bordelon et al. 2020; Simon et al. 2023)."""
    share, variance, signal = inputs.shares, inputs.variances, inputs.signals
    kappa = brentq(
        lambda k: ridge / k - alpha + share @ (variance / (variance + k)), 1e-12, 1e6, xtol=1e-16, rtol=1e-14
    )
    used = share @ (variance / (variance + kappa)) ** 2 / alpha
    return (kappa**2 * (share @ (signal * variance / (variance + kappa) ** 2)) + noise * used) / (1 - used)


@pytest.mark.parametrize(
    ("alpha", "ridge", "noise", "inputs"),
    [
        (0.5, 0.1, 0.25, PowerLaw(1.5, 0.5, size=2000)),
        (2.0, 1e-3, 0.5, PowerLaw(1.2, 0.3, size=300)),
        (0.1, 1e-2, 0.01, PowerLaw(2.0, 1.0, size=500)),
        (1.0, 1e-4, 0.3, Spectrum([10.0, 1.0, 0.1], [0.1, 1.0, 3.0], [1, 2, 5])),
        (0.5, 0.0, 0.25, PowerLaw(1.5, 0.5, size=2000)),
        (0.9, 0.0, 0.3, Spectrum([10.0, 1.0, 0.1], [0.1, 1.0, 3.0], [1, 2, 5])),
    ],
)
def test_ridge_regression_on_a_spectrum_meets_the_kappa_equation(alpha, ridge, noise, inputs) -> None:
    found = solve(LinearRule(alpha, noise=noise, inputs=inputs), Estimator(SquareLoss(), ridge, bias=0.0))[0]
    assert found.excess_risk == pytest.approx(ridge_risk(alpha, ridge, noise, inputs), rel=1e-10)
    assert found.r_squared == pytest.approx(1 - found.mean_squared_error / (inputs.signal_variance + noise), rel=1e-12)


def test_least_squares_on_a_spectrum_is_as_wrong_as_on_white_inputs() -> None:
    """Without ridge, and with more samples than coordinates, inputs may be scaled as one likes."""
    data = LinearRule(1.6, noise=0.3, inputs=Spectrum([10.0, 1.0, 0.1], [0.1, 1.0, 3.0]))
    found = solve(data, Estimator(SquareLoss(), 0.0, bias=0.0), throw=True)[0]
    assert found.limit == "maximum likelihood"
    assert found.excess_risk == pytest.approx(0.3 / 0.6, rel=1e-9)


RELU, TANH = RandomFeatures(1.5, "relu"), RandomFeatures(0.6, "tanh")
DENSE = Dense(0.6 ** np.abs(np.subtract.outer(np.arange(12), np.arange(12))), np.cos(np.arange(12)))
PART = LinearMap(np.kron(np.eye(6), [[1.0, 0.5], [2.0, 1.0]])[:11])  # of rank 6


@pytest.mark.parametrize(
    ("data", "stages", "limit"),
    [
        (LinearRule(0.5, noise=0.1), [Estimator(SquareLoss(), 0.0, features=RELU)], "minimum norm"),
        (LinearRule(2.0, noise=0.1), [Estimator(SquareLoss(), 0.0, features=RELU)], "maximum likelihood"),
        (GaussianMixture(0.4, 0.3), [STAGES[0], Estimator(Distillation(), 0.0, features=TANH)], "minimum norm"),
        (GaussianMixture(0.5, 0.3, inputs=UNEVEN), [STAGES[0], Estimator(Distillation(), 0.0, eta=0.8)], "minimum norm"),
        (GaussianMixture(0.4, 0.3, inputs=DENSE), [STAGES[0], Estimator(Distillation(), 0.0, features=PART)], "minimum norm"),
        (GaussianMixture(1.5, 0.3, inputs=DENSE), [STAGES[0], Estimator(Distillation(), 0.0, features=PART)], "maximum likelihood"),
        (GaussianMixture(6.0, 0.3, label_noise=0.1, inputs=UNEVEN), [Estimator(CrossEntropy(), 0.0)], "maximum likelihood"),
        (LinearRule(0.4, noise=0.1, inputs=DENSE), [Estimator(SquareLoss(), 0.0, features=PART)], "minimum norm"),
    ],
)  # fmt: skip
def test_no_ridge_is_what_small_ridges_lead_to(data, stages: list, limit: str) -> None:
    """Errors are linear in a small ridge: two of them are extrapolated; and experiments at a tiny one."""
    found = solve(data, stages, throw=True)[-1]
    assert found.limit == limit
    name = "excess_risk" if isinstance(data, LinearRule) else "test_error"
    near = []
    for ridge in (2e-6, 1e-6):
        last = Estimator(stages[-1].loss, ridge, stages[-1].eta, features=stages[-1].features)
        near.append(getattr(solve(data, [*stages[:-1], last], throw=True)[-1], name))
    assert getattr(found, name) == pytest.approx(2 * near[1] - near[0], rel=1e-6)
    runs = simulate(data, [*stages[:-1], last], n_inputs=240, n_runs=24, seed=5)[-1]
    measured = getattr(runs, name)
    assert abs(measured.mean - near[1]) < 4 * measured.standard_error


@pytest.mark.parametrize("features", [None, TANH])
def test_no_ridge_has_no_limit_where_samples_are_as_many_as_directions(features) -> None:
    inputs = {} if features else {"inputs": UNEVEN}
    with pytest.raises(ParameterError, match=r"ridge of teacher must be > 0 at alpha=.*: this is alpha = "):
        solve(GaussianMixture(0.6 if features else 1.0, **inputs), Estimator(SquareLoss(), 0.0, features=features))


def test_a_teacher_on_the_head_of_a_power_law_is_a_rule_with_more_noise() -> None:
    """What a mask leaves out is noise to it: masks are the first coordinates, of the largest variance."""
    inputs, eta = PowerLaw(1.5, 0.4, size=200), 0.25
    head = int(eta * inputs.size)
    missed = inputs.shares[head:] @ (inputs.variances[head:] * inputs.signals[head:])
    seen = Spectrum(inputs.variances[:head].tolist(), inputs.signals[:head].tolist())
    found = solve(LinearRule(0.5, noise=0.1, inputs=inputs), Estimator(SquareLoss(), 0.05, eta=eta, bias=0.0))[0]
    risk = eta * ridge_risk(0.5 / eta, 0.05 / eta, (0.1 + missed) / eta, seen)  # in units of eta N coordinates
    assert found.excess_risk == pytest.approx(risk + missed, rel=1e-9)


def test_many_features_are_a_kernel_and_few_are_none() -> None:
    """The error falls towards a limit like 1/ratio, and tends to chance without features."""
    data = GaussianMixture(2.0)

    def error(ratio: float) -> float:
        return solve(data, Estimator(CrossEntropy(), 0.1 * ratio, features=RandomFeatures(ratio)))[0].test_error

    far, further, furthest = error(100.0), error(1000.0), error(10000.0)
    assert (far - further) / (further - furthest) == pytest.approx(10.0, rel=0.05)
    assert error(1e-4) > 0.49


def test_square_loss_peaks_where_features_are_as_many_as_samples() -> None:
    data = LinearRule(2.0, noise=0.1)
    chain = Estimator(SquareLoss(), 1e-7, name="fit", features=RandomFeatures(1.0))
    curve = sweep(data, chain, {"fit.features": [0.5, 1.0, 1.9, 2.0, 2.1, 4.0, 8.0]}, ["excess_risk"])[
        "excess_risk"
    ].squeeze()
    assert int(np.argmax(curve.to_numpy())) == 3
    assert float(curve[3]) > 20 * float(curve[-1])


def test_optimal_ridge_and_errors_work_on_structured_inputs() -> None:
    data = LinearRule(0.5, noise=0.4, inputs=PowerLaw(1.0, 0.5, size=60))
    best = optimize(
        data, Estimator(SquareLoss(), 0.1, bias=0.0), {"teacher.ridge": (1e-3, 10.0)}, "teacher.excess_risk"
    )
    ridges = np.linspace(0.9, 1.1, 3) * best.parameters["teacher.ridge"]
    risks = [ridge_risk(0.5, ridge, 0.4, data.inputs) for ridge in ridges]
    assert risks[1] < min(risks[0], risks[2])
    stage = solve(GaussianMixture(1.0, 0.3, inputs=UNEVEN), STAGES)[1]
    assert 0 < stage.norm_squared_quadrature_error < 1e-6 * stage.norm_squared


def test_sweeps_have_the_values_of_single_points() -> None:
    data = GaussianMixture(1.0, 0.3)
    chain = [STAGES[0], Estimator(Distillation(), 0.05, features=RandomFeatures(1.0, "tanh"))]
    names = ["test_error", "norm", "cosine", "train_error"]
    found = sweep(data, chain, {"alpha": [0.5, 2.0], "student.features": [0.5, 3.0]}, names)
    single = solve(
        GaussianMixture(2.0, 0.3), [STAGES[0], Estimator(Distillation(), 0.05, features=RandomFeatures(3.0, "tanh"))]
    )
    for name in names:
        value = found[name].sel({"alpha": 2.0, "student.features": 3.0, "stage": "student"})
        assert float(value) == pytest.approx(getattr(single[1], name), rel=1e-7)


CASES = {
    "spectrum": (GaussianMixture(0.8, 0.2, inputs=UNEVEN), STAGES),
    "sets": (
        GaussianMixture(0.8, 0.4, inputs=UNEVEN, further=(DataSet("fresh", 1.0),)),
        [STAGES[0], Estimator(Distillation(), 0.05, sets="fresh")],
    ),
    "relu student": (
        GaussianMixture(2.0, 0.3),
        [STAGES[0], Estimator(Distillation(), 0.05, features=RandomFeatures(1.5))],
    ),
    "sign teacher": (
        LinearRule(2.0, output="sign"),
        [
            Estimator(CrossEntropy(), 0.1, features=RandomFeatures(0.7, "sign")),
            Estimator(Distillation(mixing=0.8), 0.1),
        ],
    ),
    "drawn labels": (
        LinearRule(1.5, output="logit", slope=2.0, inputs=Spectrum([3.0, 0.5], [0.4, 2.0])),
        [STAGES[0], Estimator(Distillation(mixing=0.7), 0.05)],
    ),
    "regression": (
        LinearRule(2.0, noise=0.2),
        [
            Estimator(SquareLoss(), 0.1, features=RandomFeatures(2.5, "tanh")),
            Estimator(SquareDistillation(mixing=0.5), 0.2, features=RandomFeatures(2.5, "tanh")),
        ],
    ),
}
MEASURED = (
    "magnetization", "bias", "norm_squared", "test_error", "noisy_test_error", "train_error", "free_energy", "test_loss",
    "excess_risk",
)  # fmt: skip


def scores(case: str, n_inputs: int, n_runs: int, seed: int) -> np.ndarray:
    """(experiment - theory)/(standard error) of all that is measured."""
    data, stages = CASES[case]
    solution, runs = solve(data, stages), simulate(data, stages, n_inputs=n_inputs, n_runs=n_runs, seed=seed)
    found = scores_of_stages(solution, runs, MEASURED)
    overlap = runs.estimate("overlap")
    found.append((overlap.mean[1, 0] - solution.overlap[1, 0]) / overlap.standard_error[1, 0])
    return np.array(found)


@pytest.mark.parametrize("case", ["spectrum", "relu student", "drawn labels"])
def test_theory_agrees_with_small_experiments(case: str) -> None:
    found = scores(case, 200, 24, seed=1)
    assert np.abs(found).max() < 4
    assert math.sqrt(np.mean(found**2)) < 2


def test_responses_on_structured_inputs_agree_with_experiments() -> None:
    """Responses have corrections of order 1/N: those of two sizes are extrapolated."""
    for case in ("spectrum", "relu student"):
        data, stages = CASES[case]
        solution = solve(data, stages)
        runs = [
            simulate(data, stages, n_inputs=n, n_runs=24, seed=3, responses=True).estimate("response")
            for n in (60, 120)
        ]
        mean = 2 * runs[1].mean - runs[0].mean
        error = np.hypot(2 * runs[1].standard_error, runs[0].standard_error)
        below = np.tril_indices(2)
        assert np.abs((mean - solution.response)[below] / error[below]).max() < 4


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_theory_agrees_with_large_experiments(case: str) -> None:
    for n_inputs, seed in ((250, 11), (500, 12)):
        found = scores(case, n_inputs, 24, seed)
        assert np.abs(found).max() < 4


def test_real_networks_make_the_errors_that_their_second_moments_say() -> None:
    """The trained readout on fresh samples of the true features, against the Gaussian law that the measured errors use."""
    data, features = GaussianMixture(2.0, 0.5), RandomFeatures(1.5, "relu")
    chain = Chain.of(Estimator(CrossEntropy(), 0.1, features=features))
    n_inputs, apart = 300, []
    for k in range(12):
        seed = np.random.SeedSequence(4, spawn_key=(k,))
        sample = draw(data, n_inputs, seed, features)
        (fit,) = train(sample, in_equations(data, chain), [slice(0, features.size(n_inputs))], 1e-8)
        generator = np.random.default_rng(100 + k)
        signs = np.where(np.arange(8000) % 2, 1.0, -1.0)
        inputs = np.outer(signs, sample.mean) / math.sqrt(n_inputs) + generator.standard_normal((8000, n_inputs))
        network = sample.network
        seen = (
            features(inputs / math.sqrt(n_inputs) @ network.first_layer.T) - features.moments(1.0).mean
        ) / math.sqrt(n_inputs)
        wrong = np.mean(signs * (seen @ fit.weights + fit.bias) < 0)
        q = fit.weights @ network.covariance @ fit.weights / n_inputs
        m = fit.weights @ sample.mean_of(chain[0]) / n_inputs
        tails = [0.5 * math.erfc((m + s * fit.bias) / math.sqrt(2 * q)) for s in (1, -1)]
        apart.append(wrong - np.mean(tails))
    assert abs(np.mean(apart)) < 4 * np.std(apart, ddof=1) / math.sqrt(len(apart))
    assert np.std(apart, ddof=1) < 0.01


@pytest.mark.parametrize("limits", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_random_problems_converge(dense: bool, limits: bool) -> None:
    assert failures(20, seed=1, kind="dense" if dense else "", limits=limits) == []
