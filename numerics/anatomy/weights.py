"""Gradient rescaling: distillation as training on labels with a weight for every sample.

With p and q the probabilities that teacher and student give to the label seen, and a tilde for temperature T, the gradient of a
sample's distillation loss is that of its label times

    w = (1 - chi) + (chi/T) (p~ - q~)/(1 - q)

(Tang et al. 2020).  At the saddle point the law of both logits on a training sample is explicit: with forces f = -dl/dh the
fields omega_t = h_t - Delta sum_{s<=t} V_ts f_s are jointly Gaussian given class and label, and functions of the logits, so that

    p(h_1, h_2 | s, y) = N(omega(h); s m + b, Delta Q) prod_t (1 + Delta V_tt l_t'').

Given the teacher's margin b = s_y h_1, w < x on a few intervals of the student's margin a = s_y h_2, whose probabilities are
normal tails, because omega_2 grows with h_2: the distribution of w is an integral over the teacher's direction alone.  Given a, w
grows with b, so that there is one b at which w = x: its density is an integral over a.

Where the teacher has a teacher itself, all this holds given the fields and forces of that one, whose nodes are summed over.

How hard a sample is, is the true probability of its label, sigma(s_y h_0), with h_0 the log-odds given all inputs
(:func:`numerics.anatomy.bounds.oracle`).  They are a Gaussian field without reaction, so that given both fields h_0 is normal:
h_0 = 2 s/Delta + log(rho/(1-rho)) + c.g + sqrt(4/Delta - |c|^2) z with c the solution of root c = 2 m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from numerics.anatomy.levels import Question
from numerics.codegen.losses import LossFunctions
from numerics.deferred import optimize, special
from numerics.models import ParameterError
from numerics.solution import quadrature
from numerics.solution.quadrature import density
from numerics.solution.samples import output_difference, unit
from numerics.solution.solution import Solution
from numerics.solution.training import TrainingSamples

Array = NDArray[np.float64]

ACCURACY = 1e-9
"""Change at the last refinement at which integrals are accepted."""

ACCURACY_OF_THREE = 1e-5
"""The same where the teacher has a teacher, whose nodes are summed over."""

COARSER = -2
"""Level of those nodes for averages, which are smooth in them, relative to the solution's, which distributions take."""

TIED = 1e-5
"""Part of the student's norm that is not along the teacher's weights, below which the two are one model."""

SAME_WEIGHT = 1e-5
"""Difference from 1 - chi of the weights of a student that is its teacher: what the errors of two equal saddle points leave."""

MOST_STAGES = 3
"""Stages of a chain in which weights are known: more take too many nodes."""

LEAST_SHARE = 1e-11
"""Of the samples that a node stands for, below which it is left out."""

FLAT = 1e-7
"""Change of a weight with the margin that counts as none."""

_TAIL = 8.5
_PANELS = 16
_FAR = 200.0  # a margin that nobody has
_BISECTIONS, _SECANTS, _QUANTILE_STEPS = 26, 4, 100
_NODES, _WEIGHTS = legendre.leggauss(10)
_STEP, _HALVINGS = 0.4, 4
_TRUTH_STEP = 0.5
_MARGINS = 41


def gradient_weight(a: Array, b: Array, mixing: float, soft: float, temperature: float) -> Array:
    """w of samples with margins a of the student and b of the teacher; ``soft`` is chi/T, or chi T for soft terms times T^2."""
    with np.errstate(over="ignore"):
        return (1.0 - mixing) + soft * output_difference(a / temperature, (b - a) / temperature) * (1.0 + np.exp(a))


def start_weight(b: Array, mixing: float, soft: float, temperature: float) -> Array:
    """w before the first step, at logit 0 of the student: (1 - chi) + (chi/T) (2 p~ - 1)."""
    return gradient_weight(np.zeros_like(b), b, mixing, soft, temperature)


class GivenMargin(NamedTuple):
    """What is known of samples of a teacher's margin, or confidence.

    Attributes
    ----------
    density : array
        Of the margin.
    mean : array
        E[w given it].
    ratio : array
        E[w (1 - q)]/E[1 - q] given it: mean gradient of distillation over that of labels.
    """

    density: Array
    mean: Array
    ratio: Array


class Drawn(NamedTuple):
    """Samples of a group.

    Attributes
    ----------
    group : Group
    g1, g2 : arrays
        Directions of teacher and student.
    a, b : arrays
        Margins of student and teacher.
    """

    group: Group
    g1: Array
    g2: Array
    a: Array
    b: Array

    def truth(self) -> tuple[Array, Array]:
        """Mean and mean square of the true probability of the label, given both directions."""
        group = self.group
        centre = group.odds + group.along[0] * self.g1 + group.along[1] * self.g2
        first, second = np.zeros_like(centre), np.zeros_like(centre)
        step = min(_TRUTH_STEP, 1.0 / max(group.rest, 1e-9))  # poles of the sigmoid come closer as it gets steeper
        for z in step * np.arange(-math.ceil(_TAIL / step), math.ceil(_TAIL / step) + 1):
            u = special.expit(group.sign * (centre + group.rest * z))
            first += step * density(z) * u
            second += step * density(z) * u * u
        return first, second


def mean_correlation(w: Array, u: Array, weight: Array) -> float:
    """Correlation of w and u over samples with weights that add up to 1; NaN where one of them is constant."""
    w, u = w - weight @ w, u - weight @ u
    spread = (weight @ (w * w)) * (weight @ (u * u))
    return float(weight @ (w * u) / math.sqrt(spread)) if spread > 0.0 else math.nan


def _correlation(w: float, w2: float, u: float, u2: float, both: float) -> float:
    """Of w and u, from their moments."""
    spread = (w2 - w * w) * (u2 - u * u)
    return float((both - w * u) / math.sqrt(spread)) if spread > 0.0 else math.nan


@dataclass(frozen=True)
class Group:
    """Training samples of one class, label and data set, and of one node of the stages before the teacher: what fields are made of.

    Attributes
    ----------
    number, share, label : int, float, float
        Among the classes, labels and data sets; of all samples; 0 or 1.
    mean : array, shape (2,)
        s m + b, with what the stages before the teacher add.
    root : array, shape (2, 2)
        Lower-triangular factor of Delta Q.
    reaction : array, shape (2, 2)
        Delta V, with nothing in the column of a teacher that was not trained on these samples.
    before, seen : arrays, shapes (stages - 2,), (k,)
        Directions of the stages before the teacher, and the logits that its loss looks at.
    odds, along, rest : float, array of shape (2,), float
        The true log-odds of the class are ``odds + along @ (g_1, g_2) + rest z`` with z normal.
    """

    number: int
    share: float
    label: float
    mean: Array
    root: Array
    reaction: Array
    before: Array
    seen: Array
    odds: float
    along: Array
    rest: float

    @property
    def sign(self) -> float:
        """s_y, of the label."""
        return 2.0 * self.label - 1.0


class GradientWeights:
    """The law of the gradient weights of a student and its teacher, the last two stages of a chain of two or three.

    Where weights mean nothing (``reason`` says why) all numbers are NaN.

    Parameters
    ----------
    solution : Solution
        Of the question's problem.
    question : Question
    """

    def __init__(self, solution: Solution, question: Question) -> None:
        self.solution, self.question = solution, question
        own = question.loss.parameters
        self.mixing, self.temperature, self.soft = own["mixing"], own["temperature"], question.loss.soft_weight
        self.reason = self._why_not()

    def _why_not(self) -> str:
        solution, question = self.solution, self.question
        if len(question.chain) > MOST_STAGES:
            return f"weights are known of chains of up to {MOST_STAGES} stages, and this one has {len(question.chain)}"
        if question.taught_by != len(question.chain) - 1:
            return "weights are those of a student and the stage before it, and another one is its teacher"
        if not solution.converged:
            return f"no solution: {solution.message}"
        if question.loss.parameters["smoothing"] and self.mixing < 1.0:
            return "with label smoothing the label's own gradient changes sign, and no weight is defined"
        for stage in solution.stages:
            if stage.limit in ("max margin", "minimum norm"):
                return f"the ridge of {stage.name} is 0: its gradients vanish, and their ratio is not defined"
        return ""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All of them that have samples."""
        return self._groups(0)

    def _groups(self, finer: int) -> tuple[Group, ...]:
        """The same with other nodes of the stages before the teacher, if there are any."""
        solution, data, delta = self.solution, self.question.data, self.question.data.variance
        number, last = len(self.question.chain), slice(-2, None)
        teacher, kinds = solution.resolved[number - 2], self.samples.groups
        nodes = solution.nodes(number - 2, training=True, finer=finer).of(data, self.question.student.sets)
        taught = nodes.trained(data, teacher.sets)
        sees = [] if teacher.given else [stage - 1 for stage in teacher.loss.stages(number - 1)]
        root = math.sqrt(delta) * solution.cholesky
        prior = math.log(data.rho / (1.0 - data.rho))
        along = np.linalg.lstsq(root, 2.0 * solution.magnetization, rcond=None)[0]
        rest = math.sqrt(max(4.0 / delta - float(along @ along), 0.0))
        found, total = [], nodes.weight.sum()
        for k in np.flatnonzero(nodes.weight > LEAST_SHARE * total):
            sign, before = nodes.statistics[k, 0], nodes.statistics[k, 2 : 2 + nodes.stages]
            same = (
                (kinds.statistics[:, 0] == sign) & (kinds.labels == nodes.labels[k]) & (kinds.member == nodes.member[k])
            )
            mean = sign * solution.magnetization + solution.bias + root[:, : nodes.stages] @ before
            mean = mean + delta * solution.response[:, : nodes.stages] @ nodes.forces[k]
            reaction = delta * solution.response[last, last] * np.array([float(taught[k]), 1.0])
            found.append(
                Group(
                    int(np.flatnonzero(same)[0]), float(nodes.weight[k] / total), float(nodes.labels[k]), mean[last],
                    root[last, last], reaction, before, nodes.logits[k, sees],
                    float(2.0 * sign / delta + prior + along[: nodes.stages] @ before), along[last], rest,
                )
            )  # fmt: skip
        return tuple(found)

    @cached_property
    def samples(self) -> TrainingSamples:
        """The student's, for the logits at given directions."""
        return TrainingSamples(self.solution, len(self.question.chain))

    @cached_property
    def constant(self) -> float | None:
        """The weight that all samples have: 1 without a soft term, 1 - chi of a student that is its teacher; else None."""
        if self.mixing == 0.0:
            return 1.0
        row = self.solution.cholesky[-1]
        if row[-1] > TIED * float(np.linalg.norm(row)):
            return None
        margins = np.linspace(*self.margin_quantile(np.array([0.01, 0.99])), _MARGINS)
        found = np.concatenate([
            self.weight_of(group.sign * self._follow(group, self._direction(group, group.sign * margins), 0.0)[1], margins)
            for group in self.groups
        ])  # fmt: skip
        expected = 1.0 - self.mixing
        return expected if np.all(np.abs(found - expected) < SAME_WEIGHT) else None

    def weight_of(self, a: Array, b: Array) -> Array:
        """w at margins of student and teacher."""
        return gradient_weight(a, b, self.mixing, self.soft, self.temperature)

    # Fields as functions of logits.

    @cached_property
    def _functions(self) -> tuple[LossFunctions | None, LossFunctions]:
        first = self.solution.resolved[-2]
        return None if first.given else LossFunctions(first.loss), LossFunctions(self.question.loss)

    def _first(self, group: Group, h: Array) -> tuple[Array, Array, Array]:
        """l_1', the direction g_1 and the density of h_1."""
        slope, curvature = np.zeros_like(h), np.zeros_like(h)
        if self._functions[0] is not None:
            flat = np.ascontiguousarray(h, dtype=float).ravel()
            seen = np.ascontiguousarray(np.broadcast_to(group.seen, (flat.size, group.seen.size)))
            found = self._functions[0].derivatives(flat, np.full(flat.size, group.label), seen)
            slope, curvature = (values.reshape(h.shape) for values in found)
        gamma = group.reaction[0, 0]
        g = (h + gamma * slope - group.mean[0]) / group.root[0, 0]
        return slope, g, density(g) * (1.0 + gamma * curvature) / group.root[0, 0]

    def _direction(self, group: Group, h: Array) -> Array:
        """g_1 of a teacher's logit."""
        return self._first(group, h)[1]

    def _student(self, group: Group, h1: Array, h2: Array) -> tuple[Array, Array]:
        """l_2' and l_2''."""
        flat, earlier = (np.ascontiguousarray(h).reshape(-1) for h in (h2, h1))
        found = self._functions[1].derivatives(flat, np.full(flat.size, group.label), earlier[:, None])
        return tuple(values.reshape(h2.shape) for values in found)

    def _second_direction(self, group: Group, h1: Array, g1: Array, slope1: Array, h2: Array) -> Array:
        """g_2 of both logits, arrays of one shape."""
        field = h2 + group.reaction[1, 1] * self._student(group, h1, h2)[0] + group.reaction[1, 0] * slope1
        return (field - group.mean[1] - group.root[1, 0] * g1) / group.root[1, 1]

    def _second(self, group: Group, h1: Array, g1: Array, slope1: Array, h2: Array) -> Array:
        """Density of h_2 given h_1, arrays of one shape."""
        stretch = (1.0 + group.reaction[1, 1] * self._student(group, h1, h2)[1]) / group.root[1, 1]
        return density(self._second_direction(group, h1, g1, slope1, h2)) * stretch

    def _follow(self, group: Group, g1: Array, g2: Array | float | None = None) -> tuple[Array, ...]:
        """Logits at directions, of the teacher, and with ``g2`` of both; arrays of one shape."""
        g = (g1,) if g2 is None else np.broadcast_arrays(g1, g2)
        before = [np.full(g[0].size, value) for value in group.before]
        nodes = self.samples.follow(
            np.full(g[0].size, group.number), np.column_stack([*before, *(one.ravel() for one in g)])
        )
        return tuple(h.reshape(g[0].shape) for h in nodes.logits.T[len(before) :])

    @cached_property
    def reach(self) -> float:
        """Directions to integrate over: w grows like exp(a), which moves where its square comes from by two standard deviations."""
        row = unit(len(self.question.chain), len(self.question.chain))
        first, second = (self.samples.mean(lambda _, h, k=k: h**k, [row]).value for k in (1, 2))
        return _TAIL + 2.0 * math.sqrt(max(second - first**2, 0.0))

    # Averages.

    def _average(self, functions: Callable[[Drawn], Sequence[Array]], count: int) -> Array:
        """E of ``count`` functions of samples, by panels of the teacher's direction and a trapezoid rule in the student's, refined
        until they agree; shape (count,)."""
        found, size = np.zeros(count), np.zeros(count)
        groups = self._groups(COARSER)
        waiting: list[tuple[Group, Array | None]] = [(group, None) for group in groups]
        edges = np.linspace(-self.reach, self.reach, _PANELS + 1)
        for halving in range(_HALVINGS + 1):
            g1, weight = _panels(edges[:-1, None], edges[1:, None], 2**halving)
            g1, weight = g1.reshape(-1, 1), weight.reshape(-1, 1)
            g2 = self._trapezoid(halving)
            both = weight * density(g1) * (g2[1] - g2[0]) * density(g2)
            again, parts = [], []
            for group, before in waiting:
                h1, h2 = self._follow(group, g1, g2)
                values = functions(Drawn(group, g1, g2, group.sign * h2, group.sign * h1))
                now = group.share * np.array([np.sum(both * value) for value in values])
                if before is None:
                    size += group.share * np.array([np.sum(both * np.abs(value)) for value in values])
                parts.append((group, before, now))
            # What a group may be off by goes with the whole, so that nodes of small shares are not resolved.
            allowed = 0.01 * self.accuracy * size / math.sqrt(len(groups))
            for group, before, now in parts:
                if before is None or (halving < _HALVINGS and np.any(np.abs(now - before) > allowed)):
                    again.append((group, now))
                else:
                    found += now
            waiting = again
            if not waiting:
                break
        return found

    def _trapezoid(self, halving: int) -> Array:
        """Nodes of the student's direction."""
        step = _STEP / 2**halving
        return step * np.arange(-math.ceil(self.reach / step), math.ceil(self.reach / step) + 1)

    # Distribution.

    def _turns(self, x: Array, mixing: float, soft: float) -> Array:
        """a > 0 with -a and a the places where the teacher's margin at which w = x, as a function of the student's, turns; NaN
        where it does not: there (1 + cosh a)/(1 + cosh(a/T)) = T (x - 1 + chi)/(chi/T)."""
        goal = self.temperature * (x - 1.0 + mixing) / soft

        def log_ratio(a: float) -> float:  # from 0, growing for T > 1, falling for T < 1
            near, far = a, a / self.temperature
            return near - far + 2.0 * math.log1p(math.exp(-near)) - 2.0 * math.log1p(math.exp(-far))

        found = np.full(x.shape, math.nan)
        for k, value in enumerate(goal):
            wanted = math.log(value) if value > 0.0 else -math.inf
            ends = log_ratio(0.0), log_ratio(_FAR)
            if min(ends) < wanted < max(ends):
                found[k] = optimize.brentq(lambda a, wanted=wanted: log_ratio(a) - wanted, 0.0, _FAR, xtol=1e-14)
        return found

    def _share_below(self, group: Group, g1: Array, pull: Array, turns: Array) -> Array:
        """P(w < x given the teacher's direction), shape (n,); ``pull`` and ``turns`` belong to x."""
        (h1,) = self._follow(group, g1)
        slope1 = self._first(group, h1)[0]
        b, total, t = group.sign * h1, np.zeros(g1.shape), self.temperature
        side = np.where(
            b > 0.0, -1.0, 1.0
        )  # differences of sigmoids keep their digits on the side where they are small
        own, none = special.expit(side * b / t), np.isnan(turns)

        def excess(a: Array) -> Array:
            """sigma(b*/T) - sigma(b/T), with b* the teacher's margin at which w = x: positive where w < x."""
            return side * (special.expit(side * a / t) - own) + pull * special.expit(-a)

        inner = (np.where(none, -_FAR, -turns), np.where(none, -_FAR, turns))
        ends = (np.full(g1.shape, -_FAR), *inner, np.full(g1.shape, _FAR))

        def tail(a: Array) -> Array:
            """P(student's margin < a)."""
            return special.ndtr(group.sign * self._second_direction(group, h1, g1, slope1, group.sign * a))

        for low, high in pairwise(ends):
            at_low, at_high = excess(low), excess(high)
            crossing = (at_low > 0.0) != (at_high > 0.0)
            root = _root(excess, low, high, at_high > 0.0)
            start = np.where(crossing & (at_high > 0.0), root, low)
            stop = np.where(crossing & (at_high <= 0.0), root, high)
            inside = (at_low > 0.0) | (at_high > 0.0)
            below = np.where(start <= -_FAR, 0.0, tail(start))
            above = np.where(stop >= _FAR, 1.0, tail(stop))
            total += np.where(inside & (stop > start), above - below, 0.0)
        return total

    def _cdf(self, x: Array, mixing: float, soft: float) -> Array:
        """P(w < x), shape (n,)."""
        pulls, turns = (x - 1.0 + mixing) / soft, self._turns(x, mixing, soft)
        with np.errstate(invalid="ignore", divide="ignore"):
            folds = [self.temperature * special.logit(special.expit(a / self.temperature) + pulls * special.expit(-a))
                     for a in (-turns, turns)]  # fmt: skip
        total = np.zeros(x.shape)
        for group in self.groups:
            cuts = np.array(
                [self._direction(group, group.sign * np.where(np.isfinite(fold), fold, 0.0)) for fold in folds]
            ).T
            first = np.tile(np.linspace(-_TAIL, _TAIL, _PANELS + 1), (x.size, 1))
            edges = np.sort(np.concatenate((first, np.clip(cuts, -_TAIL, _TAIL)), axis=1), axis=1)

            def integrand(row: Array, g1: Array, group: Group = group) -> tuple[Array, Array]:
                flat = np.repeat(row, g1.shape[1])
                share = self._share_below(group, g1.ravel(), pulls[flat], turns[flat])
                return density(g1) * share.reshape(g1.shape), np.zeros_like(g1)

            value, _ = quadrature.integrate(integrand, edges, self._tolerance(group, x, 0.1), quadrature.Budget())
            total += group.share * value
        return np.clip(total, 0.0, 1.0)

    # What is asked.

    def cdf(self, x: Array | float) -> Array | float:
        """P(w <= x)."""
        x = np.asarray(x, dtype=float)
        if self.reason:
            found = np.full(x.shape, math.nan)
        elif self.constant is not None:
            found = (x >= self.constant).astype(float)
        else:
            found = self._cdf(x.ravel(), self.mixing, self.soft).reshape(x.shape)
        return found if found.ndim else float(found)

    def pdf(self, x: Array | float) -> Array | float:
        """Density of w; NaN where all samples have one weight."""
        x = np.asarray(x, dtype=float)
        defined = self.margins_are_known and self.constant is None
        found = self._pdf(x.ravel()).reshape(x.shape) if defined else np.full(x.shape, math.nan)
        return found if found.ndim else float(found)

    def _pdf(self, x: Array) -> Array:
        """Integral over the student's margin of the joint density where w = x, times db/dx."""
        pulls, t = (x - 1.0 + self.mixing) / self.soft, self.temperature
        total = np.zeros(x.shape)
        directions, sides = np.linspace(-_TAIL, _TAIL, 41)[:, None], np.array([-_TAIL, _TAIL])
        for group in self.groups:
            _, extremes = self._follow(group, directions, sides)

            def integrand(row: Array, h2: Array, group: Group = group) -> tuple[Array, Array]:
                a = group.sign * h2
                pull, off = pulls[row][:, None], special.expit(-a)
                output = special.expit(a / t) + pull * off
                rest = special.expit(-a / t) - pull * off
                values = np.zeros_like(h2)
                some = (output > 0.0) & (rest > 0.0)
                h1 = group.sign * t * np.log(output[some] / rest[some])
                slope1, g1, first = self._first(group, h1)
                joint = first * self._second(group, h1, g1, slope1, h2[some])
                with np.errstate(over="ignore", invalid="ignore"):
                    values[some] = np.where(
                        joint > 0.0, joint * t * off[some] / (self.soft * output[some] * rest[some]), 0.0
                    )
                return values, np.zeros_like(h2)

            ends = np.linspace(extremes.min(), extremes.max(), 4 * _PANELS + 1)
            value, _ = quadrature.integrate(
                integrand, np.tile(ends, (x.size, 1)), self._tolerance(group, x, 1.0), quadrature.Budget()
            )
            total += group.share * value
        return total

    def quantile(self, p: Array | float) -> Array | float:
        """x with P(w <= x) = p, p in (0, 1)."""
        p = np.asarray(p, dtype=float)
        if not np.all((p > 0.0) & (p < 1.0)):
            raise ParameterError(f"p must be in the open interval (0, 1), got {p}")
        if self.reason or self.constant is not None:
            found = np.full(p.shape, math.nan if self.reason else self.constant)
        else:
            found = self._quantiles(p.ravel()).reshape(p.shape)
        return found if found.ndim else float(found)

    def _quantiles(self, p: Array) -> Array:
        """False position, of all at once, shape of ``p``."""
        low, high = np.full(p.shape, -1.0), np.full(p.shape, 2.0)
        for end, side in ((low, 1.0), (high, -1.0)):
            far = np.ones(p.shape, dtype=bool)
            while far.any():
                far[far] = side * (self._cdf(end[far], self.mixing, self.soft) - p[far]) > 0.0
                end[far] *= 2.0
        at_low, at_high = (self._cdf(x, self.mixing, self.soft) - p for x in (low, high))
        kept = np.zeros(
            p.shape
        )  # the end that the last step did not move: its value is halved, or it would stay for ever
        for _ in range(_QUANTILE_STEPS):
            middle = (low * at_high - high * at_low) / (at_high - at_low)
            value = self._cdf(middle, self.mixing, self.soft) - p
            above = value > 0.0
            at_low = np.where(above & (kept > 0.0), 0.5 * at_low, at_low)
            at_high = np.where(~above & (kept < 0.0), 0.5 * at_high, at_high)
            low, at_low = np.where(above, low, middle), np.where(above, at_low, value)
            high, at_high = np.where(above, middle, high), np.where(above, value, at_high)
            kept = np.where(above, 1.0, -1.0)
            if np.all(np.abs(value) < self.accuracy):
                break
        return middle

    def _number(self, value: Callable[[], float], constant: Callable[[float], float] = float) -> float:
        if self.reason:
            return math.nan
        return float(value() if self.constant is None else constant(self.constant))

    @cached_property
    def _moments(self) -> Array:
        """E of w, w^2, w (1 - q), 1 - q, the start weight, and of what both sum rules are made of."""
        own = self.mixing, self.soft, self.temperature

        def functions(sample: Drawn) -> tuple[Array, ...]:
            w, off = self.weight_of(sample.a, sample.b), special.expit(-sample.a)
            start, rescaled = start_weight(sample.b, *own), w * off
            return w, w * w, rescaled, off, start, -sample.group.sign * rescaled, sample.a * rescaled

        return self._average(functions, 7)

    @cached_property
    def _hardness(self) -> Array:
        """E of u, u^2, u w with u the true probability of the label, then of 1, u, u^2, w, w^2, u w times 1 - q."""

        def functions(sample: Drawn) -> tuple[Array, ...]:
            w, off, u = self.weight_of(sample.a, sample.b), special.expit(-sample.a), sample.truth()
            u1, u2 = u
            return u1, u2, u1 * w, off, u1 * off, u2 * off, w * off, w * w * off, u1 * w * off

        return self._average(functions, 9)

    @property
    def difficulty(self) -> float:
        """Correlation of w with the true probability of the label, low where a sample is hard: tails as of :attr:`variance`."""

        def correlation() -> float:
            w, square = self._moments[:2]
            return _correlation(w, square, *self._hardness[:3])

        return self._number(correlation, lambda _: math.nan)

    @property
    def gradient_difficulty(self) -> float:
        """The same over gradients, every sample weighted by 1 - q, where large margins do not count."""

        def correlation() -> float:
            off, u, u2, w, w2, both = self._hardness[3:]
            return _correlation(w / off, w2 / off, u / off, u2 / off, both / off)

        return self._number(correlation, lambda _: math.nan)

    @property
    def margins_are_known(self) -> bool:
        """Whether densities, and what is asked at one margin of the teacher, are known.  Where the teacher has a teacher they are
        not: given that one, the margin is so narrow that a sum over nodes is not smooth in it."""
        return not self.reason and len(self.question.chain) == 2

    @property
    def accuracy(self) -> float:
        """Change at the last refinement at which integrals are accepted."""
        return ACCURACY if len(self.question.chain) == 2 else ACCURACY_OF_THREE

    def _tolerance(self, group: Group, x: Array, part: float) -> Array:
        """Absolute accuracy of one group's average, larger where its share is small; shape of ``x``."""
        return np.full(x.shape, part * self.accuracy / (group.share * len(self.groups)))

    @property
    def mean(self) -> float:
        """E[w]."""
        return self._number(lambda: self._moments[0])

    @property
    def variance(self) -> float:
        """Of w: tails like exp(2 a), which finite samples do not see."""
        return self._number(lambda: self._moments[1] - self._moments[0] ** 2, lambda _: 0.0)

    @property
    def gradient_mean(self) -> float:
        """E[w (1 - q)]/E[1 - q]: mean over gradients, where large margins do not count."""
        return self._number(lambda: self._moments[2] / self._moments[3])

    @property
    def start_mean(self) -> float:
        """E[w] before the first step."""
        if self.mixing == 0.0 and not self.reason:
            return 1.0
        return self._number(lambda: self._moments[4], lambda _: self._moments[4])

    @cached_property
    def regularisation_fraction(self) -> float:
        """Share of samples whose soft term changes the gradient by more than the label's: |w - 1| > 1 at chi = 1 (Zhou 2021)."""
        if self.reason or self.mixing == 0.0:
            return math.nan
        if self.constant is not None:  # teacher and student are one: w = 0 at chi = 1
            return 0.0
        low, high = self._cdf(np.array([0.0, 2.0]), 1.0, self.soft / self.mixing)
        return float(low + 1.0 - high)

    def sum_rules(self) -> tuple[float, float]:
        """E[w (sigma(h) - y)], which the free bias makes 0, and alpha E[w (y - sigma(h)) h]/(ridge Q), which is 1."""
        student = self.question.student
        alpha = sum(self.question.data.data_set(name).alpha for name in student.sets)
        push, pull = self._moments[5:]
        return float(push), float(alpha * pull / (student.ridge * self.solution.overlap[-1, -1]))

    # Given the teacher's margin.

    def margin_cdf(self, b: Array) -> Array:
        """P(teacher's margin <= b), b of any shape."""
        b = np.asarray(b, dtype=float)
        return sum(
            group.share * special.ndtr(group.sign * self._direction(group, group.sign * b)) for group in self.groups
        )

    def margin_quantile(self, p: Array) -> Array:
        """The teacher's margin at which its distribution is p, shape of ``p``."""
        p = np.asarray(p, dtype=float)

        def one(value: float) -> float:
            reach = 1.0
            while self.margin_cdf(-reach) > value or self.margin_cdf(reach) < value:
                reach *= 2.0
            return optimize.brentq(lambda b: float(self.margin_cdf(b)) - value, -reach, reach, xtol=1e-12)

        return np.array([one(value) for value in p.ravel()]).reshape(p.shape)

    def given_margin_density(self, b: Array) -> Array:
        """Density of the teacher's margin."""
        return sum(group.share * self._first(group, group.sign * b)[2] for group in self.groups)

    def given_margin(self, b: Array | float) -> GivenMargin:
        """Density, mean weight and ratio of gradients given the teacher's margin, arrays of the shape of ``b``."""
        b = np.asarray(b, dtype=float)
        if not self.margins_are_known:
            return GivenMargin(*(np.full(b.shape, math.nan) for _ in range(3)))
        if self.constant is not None:
            same = np.full(b.shape, self.constant)
            return GivenMargin(self.given_margin_density(b), same, same)
        total, rescaled, plain = self._sums(b)
        found = self.given_margin_density(b)
        with np.errstate(invalid="ignore", divide="ignore"):
            return GivenMargin(found, total / found, rescaled / plain)

    def _sums(self, b: Array) -> tuple[Array, Array, Array]:
        """Density of the margin times the means of w, w (1 - q) and 1 - q."""
        before = None
        for halving in range(_HALVINGS + 1):
            g2 = self._trapezoid(halving)
            total = np.zeros((3, *b.shape))
            for group in self.groups:
                h1 = group.sign * b
                _, g1, found = self._first(group, h1)
                _, h2 = self._follow(group, np.broadcast_to(g1[..., None], (*b.shape, g2.size)), g2)
                a = group.sign * h2
                w, off = self.weight_of(a, b[..., None]), special.expit(-a)
                for k, values in enumerate((w, w * off, off)):
                    total[k] += group.share * found * np.sum((g2[1] - g2[0]) * density(g2) * values, axis=-1)
            if before is not None and np.all(np.abs(total - before) <= 0.1 * self.accuracy * (np.abs(total) + 1e-300)):
                break
            before = total
        return tuple(total)

    def given_confidence(self, c: Array | float) -> GivenMargin:
        """The same given the modulus c > 0 of the teacher's logit, that is, how sure it is, rightly or not."""
        c = np.asarray(c, dtype=float)
        if not self.margins_are_known or self.constant is not None:
            return self.given_margin(c)
        sums = [one + other for one, other in zip(self._sums(c), self._sums(-c), strict=True)]
        found = self.given_margin_density(c) + self.given_margin_density(-c)
        return GivenMargin(found, sums[0] / found, sums[1] / sums[2])

    def in_bins(self, edges: Array) -> GivenMargin:
        """Of the samples whose margin is between two edges: their share (as ``density``), mean weight and ratio."""
        edges = np.asarray(edges, dtype=float)
        if not self.margins_are_known:
            return self.given_margin(0.5 * (edges[1:] + edges[:-1]))
        shares = np.diff(self.margin_cdf(edges))
        if self.constant is not None:
            return GivenMargin(shares, *self.given_margin(0.5 * (edges[1:] + edges[:-1]))[1:])
        low, high = edges[:-1, None], edges[1:, None]
        b, weight = _panels(low, high)
        total, rescaled, plain = (np.sum(weight * values, axis=-1) for values in self._sums(b))
        return GivenMargin(shares, total / shares, rescaled / plain)

    @cached_property
    def monotone(self) -> str:
        """Whether the ratio r(b) "grows" or "falls" with the margin between its 5% and 95% quantiles, is "constant", or
        "neither"; empty where that is not known."""
        if not self.margins_are_known:
            return ""
        b = np.linspace(*self.margin_quantile(np.array([0.05, 0.95])), _MARGINS)
        changes = np.diff(self.given_margin(b).ratio)
        if np.all(np.abs(changes) < FLAT):
            return "constant"
        return "grows" if np.all(changes > 0.0) else "falls" if np.all(changes < 0.0) else "neither"

    def to_dict(self) -> dict[str, object]:
        """Plain numbers."""
        p = (0.05, 0.25, 0.5, 0.75, 0.95)
        return {
            "mean": self.mean, "variance": self.variance, "gradient_mean": self.gradient_mean, "start_mean": self.start_mean,
            "quantiles": {f"{value:g}": float(x) for value, x in zip(p, self.quantile(np.array(p)), strict=True)},
            "monotone": self.monotone, "regularisation_fraction": self.regularisation_fraction,
            "difficulty": self.difficulty, "gradient_difficulty": self.gradient_difficulty,
            **({"reason": self.reason} if self.reason else {}),
        }  # fmt: skip


def _root(function: Callable[[Array], Array], low: Array, high: Array, rising: Array) -> Array:
    """Zero of a function between two places where it has different signs, each positive at ``high`` if it rises."""
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        beyond = (function(middle) > 0.0) == rising
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    at_low, at_high = function(low), function(high)
    for _ in range(_SECANTS):
        slope = at_high - at_low
        middle = np.where(
            slope != 0.0, low - at_low * (high - low) / np.where(slope != 0.0, slope, 1.0), 0.5 * (low + high)
        )
        value = function(middle)
        beyond = (value > 0.0) == rising
        low, at_low = np.where(beyond, low, middle), np.where(beyond, at_low, value)
        high, at_high = np.where(beyond, middle, high), np.where(beyond, value, at_high)
    return middle


def _panels(low: Array, high: Array, count: int = 4) -> tuple[Array, Array]:
    """Nodes and weights of integrals between ends of shape (..., 1), each over ``count`` panels; shape (..., nodes)."""
    part = (high - low) / count
    starts = low + part * np.arange(count)
    nodes = starts[..., None] + 0.5 * part[..., None] * (1.0 + _NODES)
    weights = np.broadcast_to(0.5 * part[..., None] * _WEIGHTS, nodes.shape)
    shape = (*nodes.shape[:-2], -1)
    return nodes.reshape(shape), weights.reshape(shape)
