"""The saddle point against the potential it comes from, closed forms, limits and published values."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import sympy

from numerics import Estimator, GaussianMixture, solve
from numerics.codegen.losses import LossFunctions
from numerics.codegen.observables import as_function
from numerics.models import Chain, Isotropic, Spectrum
from numerics.scalar.compiled import target_bends
from numerics.scalar.nodes import StagePoint, extend, label_nodes
from numerics.scalar.prior import WeightMoments, coordinate_groups
from numerics.solver import plain_iteration
from numerics.thresholds import bayes_error_known_means
from theory import potential
from theory.losses import CrossEntropy, Distillation, Loss, SquareDistillation, SquareLoss

STEP = 0.3  # trapezoid steps small enough that finite differences see the equations, not the quadrature

SMOOTHED_HINGE = Loss.from_expression("a*log(1 + exp((1 - s*h)/a))", {"a": 0.4})
SOFT_FOCAL = Loss.from_expression("log(1 + exp(-s*h))*(1 + k/(1 + exp(-h_teacher))) + k*h**2/8", {"k": 0.3})


class EarlierStages:
    """A solved first stage (or none), ready to put a second one at any point."""

    def __init__(self, data: GaussianMixture, chain: Chain) -> None:
        self.data, self.chain, self.number = data, chain, len(chain)
        self.moments = WeightMoments(coordinate_groups(data, chain))
        self.nodes = label_nodes(data)
        self.points = list(solve(data, chain.stages[:-1]).points) if self.number > 1 else []
        for number, point in enumerate(self.points, start=1):
            self.moments.add_stage(number, chain[number - 1], point.conjugates)
            self.nodes, _ = extend(
                self.nodes, data, chain[number - 1], point, STEP, 1e-15, training=True,
                extra=target_bends(chain, number),
            )  # fmt: skip
        self.cholesky = np.zeros((self.number, self.number))
        for number, point in enumerate(self.points):
            self.cholesky[number, : number + 1] = point.cholesky_row

    def iterate(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Conjugates with the bias equation, and updated order parameters."""
        return plain_iteration(self.data, self.chain[-1], self.nodes, self.moments, self.points, x, STEP)

    def unknowns(self, m: float, b: float, q: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Unknowns from ``Q_t1..Q_tt`` and ``V_t1..V_tt``."""
        k = self.number - 1
        row = np.linalg.solve(self.cholesky[:k, :k], q[:k])
        return np.concatenate(([m, b], row, [math.log(q[k] - row @ row)], v[:k], [math.log(v[k])]))

    def energetic_potential(self, m: float, b: float, q: np.ndarray, v: np.ndarray) -> float:
        """Psi_h = -alpha E[Moreau envelope], from its definition."""
        x = self.unknowns(m, b, q, v)
        point = StagePoint(x, np.empty(0), 0, 0, 0.0, 0.0, 0.0)
        stage = self.chain[-1]
        nodes, _ = extend(self.nodes, self.data, stage, point, STEP, 1e-15, training=True)
        seen = nodes.seen(stage.loss.stages(self.number))
        h = np.ascontiguousarray(nodes.logits[:, -1])
        envelope = LossFunctions(stage.loss).value(h, nodes.labels, seen)
        envelope = envelope + self.data.delta * v[-1] * nodes.forces[:, -1] ** 2 / 2
        return -self.data.alpha * nodes.mean(envelope)


def derivative(function, step: float) -> float:
    """Central difference of sixth order at 0."""
    weights = {1: 45.0, 2: -9.0, 3: 1.0}
    return sum(w * (function(k * step) - function(-k * step)) for k, w in weights.items()) / (60.0 * step)


@pytest.mark.parametrize(
    ("chain", "seed"),
    [
        ([Estimator(CrossEntropy(), 0.1)], 0),
        ([Estimator(CrossEntropy(smoothing=0.1), 1e-3)], 1),
        ([Estimator(SMOOTHED_HINGE, 0.1)], 2),
        ([Estimator(CrossEntropy(), 0.1), Estimator(Distillation(1.0, 1.0), 1e-3, eta=0.5)], 3),
        ([Estimator(CrossEntropy(), 0.01), Estimator(Distillation(0.4, 5.0), 0.1, eta=0.8)], 4),
        ([Estimator(SquareLoss(), 0.3), Estimator(SOFT_FOCAL, 0.1, eta=0.7)], 5),
        (
            [Estimator(CrossEntropy(), 0.3), Estimator(Distillation(0.7, 2.0, temperature_squared=True), 0.2, eta=1.0)],
            6,
        ),
    ],
)
def test_equations_are_the_gradient_of_the_potential(chain: list[Estimator], seed: int) -> None:
    """At random physical points, not only at the saddle; relative 1e-6."""
    rng = np.random.default_rng(seed)
    for inputs in (Isotropic(), Isotropic(), Spectrum([3.0, 1.0, 0.2], [0.5, 2.0, 1.0])):
        data = GaussianMixture(rng.uniform(0.5, 4.0), rng.uniform(0.1, 0.5), rng.uniform(0.5, 2.0), inputs=inputs)
        stages = EarlierStages(data, Chain.of(chain))
        k = len(chain) - 1
        m, b = rng.uniform(0.2, 1.0), rng.uniform(-1.0, 0.5)
        row = np.append(rng.uniform(-0.8, 0.8, k), rng.uniform(0.5, 1.5))
        cholesky = stages.cholesky.copy()
        cholesky[k] = row
        q = (cholesky @ cholesky.T)[k]
        v = np.append(rng.uniform(-0.3, 0.3, k), rng.uniform(0.5, 5.0))

        def shifted(index: int, amount: float) -> float:
            values = np.concatenate(([m, b], q, v))  # noqa: B023
            values[index] += amount
            return stages.energetic_potential(values[0], values[1], values[2 : 3 + k], values[3 + k :])  # noqa: B023

        gradient = np.array([derivative(lambda e, i=i: shifted(i, e), 3e-3) for i in range(2 * k + 4)])
        # d Phi = 0: mh = dPsi/dm, Vh_ts = -dPsi/dQ_ts (twice on the diagonal), Qh_ts = dPsi/dV_ts (twice on the diagonal).
        d_m, d_b, d_q, d_v = gradient[0], gradient[1], gradient[2 : 3 + k], gradient[3 + k :]
        twice = np.append(np.ones(k), 2.0)
        expected = np.concatenate(([d_m], twice * d_v, -twice * d_q, [d_b]))
        found, updated = stages.iterate(stages.unknowns(m, b, q, v))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * scale)

        # And the prior half: d Phi/d(conjugate) = 0 with Psi_w from theory.
        equations = potential.free_energy(k + 1, spectrum=True)
        entropic = as_function((*equations.inputs, *equations.constants), equations.outputs["entropic"])
        groups = stages.moments.prior_rows(k, chain[-1].ridge)
        n = 2 * k + 3

        def psi_w(index: int, amount: float) -> float:
            conjugates = found[:-1].copy()  # noqa: B023
            conjugates[index] += amount
            return float(sum(entropic(*np.zeros(n), *conjugates, 0.0, *row) for row in groups))  # noqa: B023

        slopes = np.array([derivative(lambda e, i=i: psi_w(i, e), 1e-4) for i in range(n)])
        expected = np.concatenate(([slopes[0]], -twice * slopes[2 + k :], twice * slopes[1 : 2 + k]))
        np.testing.assert_allclose(updated, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


def published_points() -> list[dict[str, str]]:
    path = Path(__file__).parents[2] / "data" / "published_points.csv"
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "row", published_points(), ids=lambda row: f"{row['source']}-{row['stage']}-{row['alpha']}-{row['quantity']}"
)
def test_published_value(row: dict[str, str]) -> None:
    data = GaussianMixture(float(row["alpha"]), float(row["rho"]), float(row["Delta"]))
    chain = [Estimator(CrossEntropy(), float(row["teacher_ridge"]))]
    if row["stage"] == "student":
        loss = Distillation(float(row["chi"]), float(row["temperature"]))
        chain.append(Estimator(loss, float(row["student_ridge"]), eta=float(row["eta"])))
    stage = solve(data, chain, throw=True)[-1]
    found = {
        "test_error": stage.test_error,
        "m": stage.magnetization,
        "bias": stage.bias,
        "Delta*Q": data.delta * stage.norm_squared,
        "Delta*V": data.delta * stage.response,
    }[row["quantity"]]
    assert found == pytest.approx(float(row["value"]), abs=float(row["tolerance"]))


@pytest.mark.parametrize(
    "chain",
    [
        [Estimator(CrossEntropy(), 0.1)],
        [Estimator(CrossEntropy(), 1e-5)],
        [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(), 1e-5, eta=0.5)],
        [Estimator(CrossEntropy(), 0.5), Estimator(Distillation(0.4, 5.0, smoothing=0.05), 0.01, eta=0.8)],
        [Estimator(SquareLoss(), 0.2), Estimator(SquareDistillation(0.6, 0.9), 0.1, eta=0.6)],
        [Estimator(SMOOTHED_HINGE, 0.1), Estimator(SOFT_FOCAL, 0.1, eta=0.6)],
    ],
)
@pytest.mark.parametrize("data", [GaussianMixture(0.8, 0.2, 1.0), GaussianMixture(3.0, 0.4, 0.5)])
def test_potential_at_the_saddle_is_the_training_objective(data: GaussianMixture, chain: list[Estimator]) -> None:
    """-Phi = alpha E[loss] + ridge/2 Q to 1e-8."""
    for stage in solve(data, chain, throw=True).stages:
        objective = data.alpha * stage.train_loss + stage.estimator.ridge / 2 * stage.norm_squared
        assert stage.free_energy == pytest.approx(objective, rel=1e-8)


@pytest.mark.parametrize("rho", [0.5, 0.2])
def test_student_on_labels_with_the_teachers_settings_is_the_teacher(rho: float) -> None:
    data = GaussianMixture(0.8, rho, 1.0)
    chain = [Estimator(CrossEntropy(), 0.1), Estimator(Distillation(mixing=0.0), 0.1, eta=1.0)]
    solution = solve(data, chain, throw=True)
    teacher, student = solution.stages
    assert student.teacher_cosine == pytest.approx(1.0, abs=1e-9)
    assert student.test_error == pytest.approx(teacher.test_error, abs=1e-9)
    assert student.bias == pytest.approx(teacher.bias, abs=1e-9)
    assert solution.response[1, 1] == pytest.approx(solution.response[0, 0], rel=1e-8)
    assert student.train_loss == pytest.approx(teacher.train_loss, abs=1e-9)


def square_loss_closed_form(data: GaussianMixture, ridge: float, eta: float) -> dict[str, float]:
    """Ridge regression on s = +-1: f = (s - omega)/(1 + gamma) is linear, so the averages are moments of Gaussians."""
    alpha, rho, delta = data.alpha, data.rho, data.delta
    v = sympy.Symbol("v", positive=True)
    # V (ridge + alpha Delta/(1 + Delta V)) = eta
    roots = sympy.Poly(v * (ridge * (1 + delta * v) + alpha * delta) - eta * (1 + delta * v), v).nroots(n=30)
    response = float(next(root for root in roots if root > 0))
    gain = 1 / (1 + delta * response)
    mean = 2 * rho - 1
    # bias: E[s - omega] = 0;  mh = alpha gain (1 - m - mean b);  m = V mh
    # b = mean (1 - m) and so m = V alpha gain (1 - mean^2)(1 - m)
    slope = response * alpha * gain * (1 - mean**2)
    m = slope / (1 + slope)
    b = mean * (1 - m)
    error = 1 - 2 * m + m**2 + b**2 - 2 * mean * b * (1 - m)
    # Q = V^2/eta (mh^2 + Qh), Qh = alpha Delta gain^2 (error + Delta Q)
    factor = response**2 / eta
    mh = m / response
    q = factor * (mh**2 + alpha * delta * gain**2 * error) / (1 - factor * alpha * delta**2 * gain**2)
    return {"magnetization": m, "bias": b, "norm_squared": q, "response": response}


@pytest.mark.parametrize("ridge", [1e-5, 0.1, 3.0])
@pytest.mark.parametrize("alpha", [0.3, 0.8, 4.0])
def test_square_loss_agrees_with_its_closed_form(alpha: float, ridge: float) -> None:
    data = GaussianMixture(alpha, 0.2, 1.3)
    stage = solve(data, Estimator(SquareLoss(), ridge, eta=0.7), throw=True)[0]
    for name, value in square_loss_closed_form(data, ridge, 0.7).items():
        assert getattr(stage, name) == pytest.approx(value, rel=1e-8), name


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_balanced_classes_with_infinite_ridge_reach_the_bayes_error(alpha: float) -> None:
    data = GaussianMixture(alpha, 0.5, 1.0)
    bayes = solve(data, Estimator(CrossEntropy(), 1.0))[0].bayes_error
    gaps = [
        solve(data, Estimator(CrossEntropy(), ridge), throw=True)[0].test_error - bayes for ridge in (1e2, 1e4, 1e6)
    ]
    assert all(gap > -1e-12 for gap in gaps)
    assert gaps[-1] < 1e-9


def test_many_samples_reach_the_error_of_known_means() -> None:
    data = GaussianMixture(1e4, 0.2, 1.0)
    error = solve(data, Estimator(CrossEntropy(), 1e-3), throw=True)[0].test_error
    assert error == pytest.approx(float(bayes_error_known_means(0.2, 1.0)), abs=3e-5)


def test_mirror_symmetry() -> None:
    """rho -> 1 - rho with y -> 1 - y flips the biases and nothing else."""
    chain = [Estimator(CrossEntropy(), 0.05), Estimator(Distillation(0.6, 3.0), 1e-3, eta=0.5)]
    one = solve(GaussianMixture(1.1, 0.2, 1.0), chain, throw=True)
    other = solve(GaussianMixture(1.1, 0.8, 1.0), chain, throw=True)
    np.testing.assert_allclose(one.bias, -other.bias, rtol=1e-9)
    np.testing.assert_allclose(one.overlap, other.overlap, rtol=1e-9)
    np.testing.assert_allclose(one.response, other.response, rtol=1e-9)


def test_two_ways_to_write_a_loss_agree() -> None:
    """A formula outside the class of gradients linear in the target takes the general path: the same answer to 1e-8."""
    written = Loss.from_expression("log(1 + exp(-s*h)) + 0*h_teacher")
    # An artificial rewriting that hides the linear structure: curvature with the label in it, equal for y = 0 and 1.
    assert written.split is not None
    general = Loss.from_expression("a*log(1 + exp((1 - s*h)/a))", {"a": 1.0})
    shifted = Loss.from_expression("log(1 + exp(1 - s*h))")
    assert general.split is None or shifted.split is None
    data = GaussianMixture(1.3, 0.3, 1.0)
    first = solve(data, Estimator(general, 0.01), throw=True)
    second = solve(data, Estimator(shifted, 0.01), throw=True)
    np.testing.assert_allclose(first.overlap, second.overlap, rtol=1e-9)
