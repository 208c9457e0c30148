"""Finite representations of the joint law of label, fields, training forces and logits of a chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from numerics.codegen.losses import grid_kind, loss_module
from numerics.deferred import Deferred
from numerics.models import DataModel, Estimator, Frozen
from theory.losses import LinearLoss, Loss

_kernel = Deferred("numerics.scalar.kernels.nodes")
_NO_BENDS = np.empty((0, 2))


@dataclass(frozen=True)
class StagePoint:
    """Saddle point of one stage: order parameters, conjugates, and how they were found.

    Attributes
    ----------
    unknowns : array, shape (2t + 2,)
        What Newton's method works with: ``m, b, C_t1.., ln C_tt^2, V_t1.., ln V_tt`` (see ``scalar/kernels/stage.py``).
    conjugates : array, shape (2t + 1,)
        ``mh, Qh_t1..Qh_tt, Vh_t1..Vh_tt``.
    status : int
        0 if Newton's method converged.
    iterations, residual, last_step, defect
        Channel evaluations; undamped, scaled residual; size of the last step; deviation of the nodes' densities from 1.
    """

    unknowns: np.ndarray
    conjugates: np.ndarray
    status: int
    iterations: int
    residual: float
    last_step: float
    defect: float

    @property
    def earlier(self) -> int:
        """Number of earlier stages."""
        return (self.unknowns.size - 4) // 2

    @property
    def magnetization(self) -> float:
        return float(self.unknowns[0])

    @property
    def bias(self) -> float:
        return float(self.unknowns[1])

    @property
    def cholesky_row(self) -> np.ndarray:
        """``C_t1 .. C_tt`` with ``Q = C C^T``."""
        k = self.earlier
        return np.append(self.unknowns[2 : 2 + k], math.exp(0.5 * self.unknowns[2 + k]))

    @property
    def response_row(self) -> np.ndarray:
        """``V_t1 .. V_tt``."""
        return np.append(self.unknowns[3 + self.earlier : -1], math.exp(self.unknowns[-1]))

    @property
    def norm_squared(self) -> float:
        """``Q_tt``."""
        return float(self.cholesky_row @ self.cholesky_row)

    @property
    def vanishes(self) -> bool:
        """Whether the weights are exactly 0 (:mod:`numerics.scalar.constant_targets`); ``ln C_tt^2`` then is -oo."""
        return self.unknowns[2 + self.earlier] == -math.inf


@dataclass(frozen=True)
class Nodes:
    """Weighted nodes; on training samples the weights of a data set add up to its alpha.

    Attributes
    ----------
    weight, labels : arrays, shape (n,)
        Labels as training sees them.
    statistics : array, shape (n, 2 + 2k)
        ``s, 1, g_1..g_k, f_1..f_k``: sign, Gaussian directions and training forces of k stages.
    logits : array, shape (n, k)
        ``h_1..h_k``.
    member : integer array, shape (n,)
        Position of the node's data set among those of the data.
    row : integer array, shape (n,)
        Row of the table of fixed directions that the node belongs to, where there is one.
    """

    weight: np.ndarray
    statistics: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    member: np.ndarray = None
    row: np.ndarray = None

    def __post_init__(self) -> None:
        for name in ("member", "row"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(self.weight.size, dtype=np.int64))

    @property
    def stages(self) -> int:
        return self.logits.shape[1]

    @property
    def forces(self) -> np.ndarray:
        """``f_1..f_k``, shape (n, k)."""
        return self.statistics[:, 2 + self.stages :]

    def seen(self, stages: Sequence[int]) -> np.ndarray:
        """Columns of ``logits`` for the given stages (1-based), contiguous."""
        return np.ascontiguousarray(self.logits[:, [s - 1 for s in stages]])

    def mean(self, values: np.ndarray) -> float:
        """Average of ``values``, shape (n,)."""
        return self.total(values) / float(np.sum(self.weight))

    def total(self, values: np.ndarray) -> float:
        """Sum of weight times ``values``, shape (n,)."""
        # Not a BLAS product: its threads cost more than these sums.
        return float(np.sum(self.weight * values))

    def trained(self, data: DataModel, sets: Sequence[str]) -> np.ndarray:
        """Which nodes are of these data sets, shape (n,); all where there is only one."""
        if len(data.sets) == 1:
            return np.ones(self.weight.size, dtype=bool)
        names = [found.name for found in data.sets]
        return np.isin(self.member, [names.index(name) for name in sets])

    def of(self, data: DataModel, sets: Sequence[str]) -> Nodes:
        """The nodes of some data sets; these nodes if that is all of them, or if there are no such."""
        wanted = self.trained(data, sets)
        if wanted.all() or not wanted.any():
            return self
        return self.rows(wanted)

    def rows(self, indices: np.ndarray) -> Nodes:
        """The nodes at ``indices``, integer or boolean."""
        return Nodes(*(values[indices] for values in self._arrays))

    def with_constant_logit(self, logit: float) -> Nodes:
        """With one stage more, whose weights are 0: the same logit on all samples, no direction and no force."""
        k, nothing = self.stages, np.zeros((self.weight.size, 1))
        statistics = np.hstack((self.statistics[:, : 2 + k], nothing, self.forces, nothing))
        return replace(self, statistics=statistics, logits=np.hstack((self.logits, nothing + logit)))

    @staticmethod
    def joined(parts: Sequence[Nodes]) -> Nodes:
        """One after the other; the only one itself."""
        if len(parts) == 1:
            return parts[0]
        return Nodes(*map(np.concatenate, zip(*(part._arrays for part in parts), strict=True)))

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        """In the order of the constructor."""
        return tuple(getattr(self, entry.name) for entry in fields(self))


def set_table(data: DataModel) -> np.ndarray:
    """alpha and label noise of each data set, shape (d, 2)."""
    return np.array([(found.alpha, found.label_noise) for found in data.sets])


def class_table(data: DataModel) -> np.ndarray:
    """Weight, sign and label of each class, shape (c, 3)."""
    return np.array(data.classes, dtype=float)


def label_nodes(data: DataModel, *, training: bool = True, rows: int = 1) -> Nodes:
    """Signs and labels, for training in each data set, in ``rows`` equal parts; fresh samples have labels without noise."""
    table = set_table(data) if training else np.array([[data.alpha, 0.0]])
    weight, statistics, labels, member, row = _kernel.label_nodes(class_table(data), table, rows)
    return Nodes(weight, statistics, labels, np.empty((labels.size, 0)), member, row)


def extend(
    nodes: Nodes, data: DataModel, stage: Estimator | Frozen, point: StagePoint, step: float, tail: float, *,
    training: bool, extra: np.ndarray = _NO_BENDS, directions: np.ndarray | None = None, sharpness: float = 0.0,
) -> tuple[Nodes, float]:  # fmt: skip
    """Nodes that include this stage too, on training samples or on fresh ones, and their normalisation defect.

    ``extra``, shape (e, 2), holds (position, scale) of what a later integrand does as a function of this stage's logit.
    ``directions``, shape (r,), has a value of this stage's g for each row; without it g is integrated over.
    ``sharpness`` says how steeply later fields depend on it; see :func:`numerics.scalar.nodes.sharpness_along`.
    """
    number = point.earlier + 1
    loss = stage_loss(stage)
    compiled = loss_module(loss)
    row, responses = point.cholesky_row, point.response_row
    root = math.sqrt(data.variance)
    reaction = data.variance if training else 0.0
    trained = nodes.trained(data, stage.sets) if training else np.ones(nodes.labels.size, dtype=bool)
    parts, defect = [], 0.0
    for on in (True, False):
        chosen = np.flatnonzero(trained == on)
        if chosen.size == 0:
            continue
        part = nodes if chosen.size == trained.size else nodes.rows(chosen)
        seen = part.seen(loss.stages(number))
        values = np.array(loss.values, dtype=float)
        place = (point.magnetization, point.bias, root * row[:-1], root * row[-1], reaction * responses[:-1])
        gamma = reaction * responses[-1] if on else 0.0
        if directions is None:
            *arrays, origin, part_defect = _kernel.extend_nodes(
                compiled.slopes, compiled.targets, compiled.bends, len(loss.bends), grid_kind(loss),
                part.weight, part.statistics, part.labels, part.logits, seen, values, *place, gamma, on, step, tail, sharpness,
                extra,
            )  # fmt: skip
            parts.append(Nodes(*arrays, part.member[origin], part.row[origin]))
            defect = max(defect, part_defect)
        else:
            statistics, logits = _kernel.follow_nodes(
                compiled.slopes, compiled.targets, part.statistics, part.labels, part.logits, seen, values, directions[part.row],
                *place, gamma, on,
            )  # fmt: skip
            parts.append(replace(part, statistics=statistics, logits=logits))
    return Nodes.joined(parts), defect


def unresolved(scores: np.ndarray, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Jumps of a normal score between neighbouring nodes, and which of them matter: on one line of nodes, and near 0."""
    same = nodes.labels[1:] == nodes.labels[:-1]
    if nodes.stages > 1:
        same &= np.all(nodes.logits[1:, :-1] == nodes.logits[:-1, :-1], axis=1)
    near = (np.minimum(np.abs(scores[1:]), np.abs(scores[:-1])) < 6.0) | (scores[1:] * scores[:-1] < 0.0)
    jumps = np.abs(np.diff(scores))
    return jumps, same & near


def largest_jump(scores: np.ndarray, nodes: Nodes) -> float:
    """Largest change of a normal score that is about to be averaged, between neighbouring nodes."""
    jumps, matter = unresolved(scores, nodes)
    return float(jumps[matter].max(initial=0.0))


def sharp_crossings(scores: np.ndarray, nodes: Nodes, limit: float = 1.0) -> dict[float, tuple[float, float]]:
    """(position, width) in the last logit, by label, of the zero of a normal score that its nodes do not resolve: its
    neighbouring values differ by more than ``limit``.
    """
    jumps, matter = unresolved(scores, nodes)
    found = {}
    for label in (0.0, 1.0):
        here = np.flatnonzero(matter & (jumps > limit) & (nodes.labels[1:] == label))
        if here.size:
            k = here[np.argmin(scores[here] * scores[here + 1])] if here.size > 1 else here[0]
            h = nodes.logits[k : k + 2, -1]
            slope = (scores[k + 1] - scores[k]) / (h[1] - h[0])
            position = min(max(h[0] - scores[k] / slope, h.min()), h.max())
            found[label] = float(position), float(1.0 / abs(slope))
    return found


def sharpness_along(points: Sequence[StagePoint], number: int) -> float:
    """How much of stage ``number``'s g moves the fields of the stages after it by the width that g's after it give them."""
    ratios = [
        abs(row[number - 1]) / float(np.linalg.norm(row[number:]))
        for row in (p.cholesky_row for p in points[number:] if not p.vanishes)
    ]
    return max(ratios, default=0.0)


def stage_loss(stage: Estimator | Frozen) -> Loss:
    """The loss of a stage; given weights have one that nobody evaluates."""
    return LinearLoss() if isinstance(stage, Frozen) else stage.loss
