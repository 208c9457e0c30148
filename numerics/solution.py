"""What ``solve`` returns: order parameters, how well they were found, and everything that is read off them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import special

from numerics import formulas, thresholds
from numerics.codegen import LossFunctions
from numerics.compiled import target_features
from numerics.models import Chain, Estimator, GaussianMixture
from numerics.nodes import Nodes, StagePoint, extend, label_nodes
from numerics.patterns import WeightMoments, nested_patterns
from numerics.settings import Settings
from theory.losses import CrossEntropy

_OUTPUT_BEND = (0.0, 1.0)  # of sigmoid(h) and of cross-entropies
_SEARCHES = 30  # for the place where a training sample changes sides
_FINEST = 64.0  # refinement of the last integration, at most, where that place depends on more than one logit


@dataclass(frozen=True, eq=False)
class Solution:
    """Saddle point of a chain.

    Attributes
    ----------
    data, chain
        The problem.
    converged : bool
        Every stage converged, to a small residual and quadrature error.
    residual : float
        Largest undamped, scaled residual of the saddle-point equations: the change that one more plain iteration makes, relative to
        the natural size of each order parameter.
    quadrature_error : float
        Estimated relative error of the order parameters by quadrature: their change at the last refinement.
    iterations : int
        Evaluations of channel averages, all stages and levels together.
    message : str
        "converged", or what went wrong and where.

    Indexing gives the stages: ``solution[0]`` the teacher, ``solution[-1]`` the last.
    """

    data: GaussianMixture
    chain: Chain
    points: tuple[StagePoint, ...] = field(repr=False)
    converged: bool
    residual: float
    quadrature_error: float
    iterations: int
    message: str
    level: int = field(repr=False, default=0)
    settings: Settings = field(repr=False, default_factory=Settings)

    def __len__(self) -> int:
        return len(self.chain)

    def __getitem__(self, index: int) -> StageSolution:
        number = range(1, len(self) + 1)[index]
        return StageSolution(self, number)

    @cached_property
    def stages(self) -> tuple[StageSolution, ...]:
        """All stages."""
        return tuple(self[k] for k in range(len(self)))

    def _collect(self, value, *shape: int) -> np.ndarray:
        """Array over stages; NaN from the first stage on that did not converge."""
        out = np.full((len(self), *shape), np.nan)
        for k, point in enumerate(self.points):
            if point.status == 0:
                row = value(point)
                out[k, : np.size(row)] = row
        return out

    @cached_property
    def magnetization(self) -> np.ndarray:
        """m_t = w_t.v/N, shape (stages,)."""
        return self._collect(lambda point: point.magnetization, 1)[:, 0]

    @cached_property
    def bias(self) -> np.ndarray:
        """b_t, shape (stages,)."""
        return self._collect(lambda point: point.bias, 1)[:, 0]

    @cached_property
    def cholesky(self) -> np.ndarray:
        """Lower-triangular C with Q = C C^T, shape (stages, stages)."""
        return self._triangle(lambda point: point.cholesky_row)

    def _triangle(self, row) -> np.ndarray:
        square = self._collect(row, len(self))
        square[np.triu_indices(len(self), 1)] = 0.0
        return square

    @cached_property
    def overlap(self) -> np.ndarray:
        """Q_ts = w_t.w_s/N, shape (stages, stages)."""
        return self.cholesky @ self.cholesky.T

    @cached_property
    def response(self) -> np.ndarray:
        """V_ts, lower triangular, shape (stages, stages)."""
        return self._triangle(lambda point: point.response_row)

    def nodes(
        self, number: int, *, training: bool, refinement: float = 1.0, bends: tuple[tuple[float, float], ...] = ()
    ) -> Nodes:
        """Law of label, fields and logits of stages 1..number on training or on fresh samples.

        ``refinement`` divides the step of the last stage's integration; ``bends`` are (position, scale) of what is going to be
        averaged as a function of the last logit, beyond what outputs and losses of this chain do.
        """
        if number == 0:
            return label_nodes(self.data)
        key = (number, training, refinement, bends)
        if key not in self._cache:
            stage, point = self.chain[number - 1], self.points[number - 1]
            step = self.settings.outer_step * self.settings.refinement**self.level / refinement
            wanted = [_OUTPUT_BEND, *map(tuple, target_features(self.chain, number)), *bends]
            self._cache[key], _ = extend(
                self.nodes(number - 1, training=training), self.data, stage, point, step, self.settings.tail,
                training=training, extra=np.array(sorted(set(wanted)), dtype=float),
            )  # fmt: skip
        return self._cache[key]

    @cached_property
    def _cache(self) -> dict:
        return {}

    def to_dict(self) -> dict:
        """Everything as plain numbers and lists, ready for JSON (NaN becomes None)."""
        result = {
            "parameters": {
                "alpha": self.data.alpha, "rho": self.data.rho, "delta": self.data.delta,
                **{f"{name}.{key}": value for name, stage in zip(self.chain.names, self.chain.stages, strict=True)
                   for key, value in {"ridge": stage.ridge, "eta": stage.eta, **stage.loss.parameters}.items()},
            },
            "converged": self.converged, "residual": self.residual, "iterations": self.iterations,
            "quadrature_error": self.quadrature_error, "message": self.message,
            "stages": [
                {"name": stage.name, **{name: getattr(stage, name) for name in OBSERVABLES}} for stage in self.stages
            ],
            "overlap": self.overlap.tolist(), "response": self.response.tolist(),
        }  # fmt: skip
        return _without_nan(result)


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class StageSolution:
    """One stage of a solution.  A stage that did not converge has NaN observables."""

    def __init__(self, solution: Solution, number: int) -> None:
        self.solution = solution
        self.number = number

    def __repr__(self) -> str:
        return (
            f"<{self.name}: magnetization={self.magnetization:.6g}, norm={self.norm:.6g}, bias={self.bias:.6g}, "
            f"test_error={self.test_error:.6g}>"
        )

    @property
    def name(self) -> str:
        """Name of the stage in its chain."""
        return self.solution.chain.name(self.number)

    @property
    def estimator(self) -> Estimator:
        return self.solution.chain[self.number - 1]

    @property
    def _data(self) -> GaussianMixture:
        return self.solution.data

    @property
    def _known(self) -> bool:
        return len(self.solution.points) >= self.number and self.solution.points[self.number - 1].status == 0

    @property
    def _earlier(self) -> int:
        """The stage before, 0 if there is none."""
        return self.number - 1

    @property
    def magnetization(self) -> float:
        """m = w.v/N."""
        return float(self.solution.magnetization[self.number - 1])

    @property
    def bias(self) -> float:
        """b."""
        return float(self.solution.bias[self.number - 1])

    @property
    def norm_squared(self) -> float:
        """Q = |w|^2/N."""
        return float(self.solution.overlap[self.number - 1, self.number - 1])

    @property
    def norm(self) -> float:
        """|w|/sqrt(N)."""
        return math.sqrt(self.norm_squared)

    @property
    def response(self) -> float:
        """V, response of the weights to a field on them."""
        return float(self.solution.response[self.number - 1, self.number - 1])

    @property
    def cosine(self) -> float:
        """Cosine between w and v."""
        return self.magnetization / self.norm

    @property
    def test_error(self) -> float:
        """P(s h < 0) on a fresh sample."""
        return float(
            formulas.test_error()(self.magnetization, self.bias, self.norm_squared, self._data.delta, self._data.rho)
        )

    @property
    def train_error(self) -> float:
        """P(s h < 0) on a training sample.

        The proximal map is monotone, so given the earlier stages this is a normal tail.
        """
        if not self._known:
            return math.nan
        if self._earlier > 1:
            nodes = self.solution.nodes(self._earlier, training=True)
            jump = _largest_jump(self._sign_probabilities(nodes)[0], nodes)
            if jump > 1.0:
                nodes = self.solution.nodes(self._earlier, training=True, refinement=min(np.ceil(jump), _FINEST))
            return nodes.mean(self._sign_probabilities(nodes)[1])
        bends: tuple[tuple[float, float], ...] = ()
        for _ in range(_SEARCHES):
            nodes = self.solution.nodes(self._earlier, training=True, bends=bends)
            scores, errors = self._sign_probabilities(nodes)
            bends = _sharp_crossings(scores, nodes) if self._earlier else ()
            if not bends:
                break
        return nodes.mean(errors)

    def _sign_probabilities(self, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
        """Threshold of the field in units of its width, and P(s h < 0), given each node of the earlier stages."""
        point = self.solution.points[self.number - 1]
        delta, k = self._data.delta, self._earlier
        row, responses = point.cholesky_row, point.response_row
        design = nodes.design
        mean = design[:, 0] * point.magnetization + point.bias
        mean = mean + math.sqrt(delta) * design[:, 2 : 2 + k] @ row[:-1] + delta * nodes.forces @ responses[:-1]
        loss = self.estimator.loss
        slope, _ = LossFunctions(loss).derivatives(
            np.zeros_like(mean), nodes.labels, nodes.seen(loss.stages(self.number))
        )
        threshold = delta * responses[-1] * slope
        width = math.sqrt(delta) * row[-1]
        return (threshold - mean) / width, formulas.training_error()(threshold, mean, width, design[:, 0])

    @property
    def generalization_gap(self) -> float:
        """Test error minus training error."""
        return self.test_error - self.train_error

    def _average(self, function, *, training: bool) -> float:
        """Mean over samples of ``function(h of this stage, nodes)``."""
        if not self._known:
            return math.nan
        nodes = self.solution.nodes(self.number, training=training)
        return nodes.mean(function(np.ascontiguousarray(nodes.logits[:, -1]), nodes))

    def _loss(self, h: np.ndarray, nodes: Nodes) -> np.ndarray:
        loss = self.estimator.loss
        return LossFunctions(loss).value(h, nodes.labels, nodes.seen(loss.stages(self.number)))

    @staticmethod
    def _cross_entropy(h: np.ndarray, nodes: Nodes) -> np.ndarray:
        return LossFunctions(CrossEntropy()).value(h, nodes.labels, np.empty((h.size, 0)))

    @property
    def test_loss(self) -> float:
        """Mean of this stage's own loss on a fresh sample."""
        return self._average(self._loss, training=False)

    @property
    def train_loss(self) -> float:
        """Mean of this stage's own loss on a training sample."""
        return self._average(self._loss, training=True)

    @property
    def loss_gap(self) -> float:
        """Test loss minus training loss."""
        return self.test_loss - self.train_loss

    @property
    def test_cross_entropy(self) -> float:
        """Mean of H(y, sigmoid(h)) on a fresh sample."""
        return self._average(self._cross_entropy, training=False)

    @property
    def train_cross_entropy(self) -> float:
        """Mean of H(y, sigmoid(h)) on a training sample."""
        return self._average(self._cross_entropy, training=True)

    @property
    def free_energy(self) -> float:
        """-Phi = alpha E[l] + (ridge/2) Q, the minimised training objective per input, from the potential."""
        if not self._known:
            return math.nan
        return -self._potential()

    def _potential(self) -> float:
        solution = self.solution
        nodes = solution.nodes(self.number, training=True)
        point = solution.points[self.number - 1]
        h = np.ascontiguousarray(nodes.logits[:, -1])
        envelope = self._loss(h, nodes) + 0.5 * self._data.delta * self.response * nodes.forces[:, -1] ** 2
        moments = WeightMoments(nested_patterns(tuple(stage.eta for stage in solution.chain.stages)))
        for number in range(1, self.number):
            moments.add_stage(number, solution.chain[number - 1], solution.points[number - 1].conjugates)
        constants = moments.prior_constants(self.number - 1, self.estimator.ridge)
        t = self.number
        parameters = [self.magnetization, *solution.overlap[t - 1, :t], *solution.response[t - 1, :t]]
        inputs = [*parameters, *point.conjugates, self._data.alpha * nodes.mean(envelope)]
        return float(formulas.free_energy(t)(inputs, constants))

    @property
    def calibration_slope(self) -> float:
        """Slope of the true log-odds of y = 1 as a function of this stage's logit; 1 if calibrated, below 1 if overconfident."""
        return float(self._calibration[0])

    @property
    def calibration_offset(self) -> float:
        """Offset of the true log-odds at logit 0."""
        return float(self._calibration[1])

    @property
    def _calibration(self) -> tuple[float, float]:
        return formulas.calibration()(
            self.magnetization, self.bias, self.norm_squared, self._data.delta, self._data.rho
        )

    @property
    def calibration_error(self) -> float:
        """Mean of |P(y=1 given h) - sigmoid(h)| on a fresh sample."""
        slope, offset = self._calibration

        def gap(h: np.ndarray, nodes: Nodes) -> np.ndarray:
            return np.abs(special.expit(slope * h + offset) - special.expit(h))

        if not self._known:
            return math.nan
        nodes = self.solution.nodes(self.number, training=False, refinement=64.0 if self.number == 1 else 1.0)
        return nodes.mean(gap(nodes.logits[:, -1], nodes))

    @property
    def teacher_cosine(self) -> float:
        """Cosine between the weights of this stage and of the one before; NaN for the first stage."""
        if not self._earlier:
            return math.nan
        q = self.solution.overlap
        t, s = self.number - 1, self.number - 2
        return float(q[t, s] / math.sqrt(q[t, t] * q[s, s]))

    @property
    def teacher_agreement(self) -> float:
        """Probability that this stage and the one before classify a fresh sample alike; NaN for the first stage."""
        if not self._earlier or not self._known:
            return math.nan
        pair = [self.number - 1, self.number - 2]
        solution = self.solution
        return formulas.agreement(
            solution.magnetization[pair], solution.bias[pair], solution.overlap[np.ix_(pair, pair)],
            self._data.delta, self._data.rho,
        )  # fmt: skip

    @property
    def test_logit_distance(self) -> float:
        """Mean of (h - h_teacher)^2 on a fresh sample, the teacher being the stage before; NaN for the first stage."""
        if not self._earlier:
            return math.nan
        m, b, q = self.solution.magnetization, self.solution.bias, self.solution.overlap
        t, s = self.number - 1, self.number - 2
        return float(
            formulas.logit_distance()(
                m[t], m[s], b[t], b[s], q[t, t], q[s, s], q[t, s], self._data.delta, self._data.rho
            )
        )

    def _distance_to_teacher(self, output, *, training: bool) -> float:
        if not self._earlier:
            return math.nan

        def squared(h: np.ndarray, nodes: Nodes) -> np.ndarray:
            return (output(h) - output(nodes.logits[:, -2])) ** 2

        return self._average(squared, training=training)

    @property
    def train_logit_distance(self) -> float:
        """Mean of (h - h_teacher)^2 on a training sample; NaN for the first stage."""
        return self._distance_to_teacher(lambda h: h, training=True)

    @property
    def test_output_distance(self) -> float:
        """Mean of (sigmoid(h) - sigmoid(h_teacher))^2 on a fresh sample; NaN for the first stage."""
        return self._distance_to_teacher(special.expit, training=False)

    @property
    def train_output_distance(self) -> float:
        """Mean of (sigmoid(h) - sigmoid(h_teacher))^2 on a training sample; NaN for the first stage."""
        return self._distance_to_teacher(special.expit, training=True)

    @property
    def bayes_error(self) -> float:
        """Test error of the Bayes-optimal estimator that sees the same samples and this stage's inputs."""
        return float(thresholds.bayes_error(self._data.alpha, self._data.rho, self._data.delta, self.estimator.eta))


def _unresolved(scores: np.ndarray, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Jumps of a normal score between neighbouring nodes, and which of them matter: on one line of nodes, and near 0."""
    same = nodes.labels[1:] == nodes.labels[:-1]
    if nodes.stages > 1:
        same &= np.all(nodes.logits[1:, :-1] == nodes.logits[:-1, :-1], axis=1)
    near = (np.minimum(np.abs(scores[1:]), np.abs(scores[:-1])) < 6.0) | (scores[1:] * scores[:-1] < 0.0)
    jumps = np.abs(np.diff(scores))
    return jumps, same & near


def _largest_jump(scores: np.ndarray, nodes: Nodes) -> float:
    """Largest change of a normal score that is about to be averaged, between neighbouring nodes."""
    jumps, matter = _unresolved(scores, nodes)
    return float(jumps[matter].max(initial=0.0))


def _sharp_crossings(scores: np.ndarray, nodes: Nodes) -> tuple[tuple[float, float], ...]:
    """(position, width) in the last logit, for each label, of the zero of a normal score that its nodes do not resolve."""
    jumps, matter = _unresolved(scores, nodes)
    found = []
    for label in (0.0, 1.0):
        here = np.flatnonzero(matter & (jumps > 1.0) & (nodes.labels[1:] == label))
        if here.size:
            k = here[np.argmin(scores[here] * scores[here + 1])] if here.size > 1 else here[0]
            h = nodes.logits[k : k + 2, -1]
            slope = (scores[k + 1] - scores[k]) / (h[1] - h[0])
            position = min(max(h[0] - scores[k] / slope, h.min()), h.max())
            found.append((float(position), float(1.0 / abs(slope))))
    return tuple(found)


OBSERVABLES: dict[str, str] = {
    "magnetization": "magnetization $m$",
    "bias": "bias $b$",
    "norm": r"norm $\|w\|/\sqrt{N}$",
    "norm_squared": "squared norm $Q$",
    "response": "response $V$",
    "cosine": r"cosine with $v$",
    "test_error": "test error",
    "train_error": "training error",
    "generalization_gap": "test minus training error",
    "test_loss": "test loss",
    "train_loss": "training loss",
    "loss_gap": "test minus training loss",
    "test_cross_entropy": "test cross-entropy",
    "train_cross_entropy": "training cross-entropy",
    "free_energy": r"training objective per input, $-\Phi$",
    "calibration_slope": "calibration slope",
    "calibration_offset": "calibration offset",
    "calibration_error": "calibration error",
    "teacher_cosine": "cosine with the teacher's weights",
    "teacher_agreement": "agreement with the teacher, test",
    "test_logit_distance": "squared logit distance to the teacher, test",
    "train_logit_distance": "squared logit distance to the teacher, training",
    "test_output_distance": "squared output distance to the teacher, test",
    "train_output_distance": "squared output distance to the teacher, training",
    "bayes_error": "Bayes error",
}
"""Names of the observables of a stage, with their labels in plots."""
