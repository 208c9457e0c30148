"""A stage whose loss is a hard constraint: every sample's logit at its best place, or beyond a margin.

What ridge -> 0+ leaves of a stage where it is not an ordinary one (:mod:`numerics.scalar.limits`) minimises ``|w|^2`` under

- ``h = h*`` on every sample (*minimum norm*), ``h*`` being where the sample's loss is smallest, or
- ``s h >= 1`` on every sample (*max margin*), s being the sign of the label that training sees.

That is a stage with ``ridge = 1`` whose loss is 0 where the constraint holds and infinite elsewhere, so its saddle point is
finite and its proximal point piecewise linear:

    h = h*,  f = (h* - u)/(Delta V)            and            h = s max(1, s u),  f = s (1 - s u)_+/(Delta V).

All averages over the stage's own Gaussian are then in closed form.  The true forces are ``ridge`` times these, so that a later
stage, whose equations contain only products of ``f_s`` with the response ``V_ts`` to it, is solved exactly with the
rescaled ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import sympy
from numba import types

from numerics import thresholds
from numerics.codegen.cache import njit
from numerics.codegen.equations import equations_module
from numerics.codegen.losses import LossFunctions, loss_module
from numerics.deferred import Deferred, optimize, special
from numerics.driver.outcome import Status
from numerics.models import Chain, DataModel, Estimator, Frozen
from numerics.scalar.kernels import layout
from numerics.scalar.kernels.elementary import OPTIONS, POINT_FUNCTION, FloatArray, Matrix, address
from numerics.scalar.kernels.layout import Nodes
from numerics.scalar.points import StagePoint
from theory.losses import Loss
from theory.symbols import h

MINIMUM_NORM, MAX_MARGIN = HARD = "minimum norm", "max margin"
"""The two constraints."""

FIELD_STEP, FIRST_FIELD_STEP = 0.7, 0.2
"""Trapezoid steps in the own Gaussian of a constrained stage, at quadrature level 0 and unit ``outer_step``; of a first stage."""

MAX_NEWTON = 60
"""Newton steps allowed for a constrained stage; about 5 are used."""

MAX_HALVINGS = 30
"""Times a Newton step is halved to keep the norm of the weights positive."""

SMALLEST_SHARE = 1e-12
"""Of the part of the weights orthogonal to earlier stages in ``Q``: below, it counts as 0, as in the compiled solver."""

_entries = Deferred("numerics.scalar.kernels.entries")
_ROUNDING = 1e-13
_ROOT_TWO_PI = math.sqrt(2.0 * math.pi)
_NONE = np.empty(0)


@dataclass(frozen=True)
class HardPoint(StagePoint):
    """Saddle point of a constrained stage, in the units of its problem at ridge 1.

    For a minimum-norm stage ``V_tt`` and the responses of later stages to it are the true ones times the ridge.  For a
    max-margin stage the weights are those with ``s h >= 1``: the true ones times a factor that vanishes with the ridge.

    Attributes
    ----------
    limit : str
        ``MINIMUM_NORM`` or ``MAX_MARGIN``.
    """

    limit: str = MINIMUM_NORM

    @property
    def variables(self) -> np.ndarray:
        """What the equations of a constrained stage are in: ``m, b, C_t1.., C_tt^2, V_t1.., V_tt``, no logarithms."""
        return _variables(self.unknowns)


def effective(stage: Estimator | Frozen, point: StagePoint) -> Estimator | Frozen:
    """The stage with the ridge of the equations that ``point`` solves: 1 for a constrained one."""
    return replace(stage, ridge=1.0) if isinstance(point, HardPoint) else stage


# Where every sample has its minimum


def with_values(loss: Loss, expression: sympy.Expr) -> sympy.Expr:
    """``expression`` with exact parameter values in place of the loss's symbols."""
    values = {
        symbol: sympy.nsimplify(value, rational=True) for symbol, value in zip(loss.symbols, loss.values, strict=True)
    }
    return sympy.sympify(expression).xreplace(values)


@njit(types.void(POINT_FUNCTION, POINT_FUNCTION, FloatArray, Matrix, FloatArray, FloatArray), **OPTIONS)
def solve_gradient(slopes, targets, labels, logits, parameters, out):
    """Solve ``S(h) = c`` for each node by bracketed Newton steps, for ``log S = log c`` where both have one sign.

    ``S`` and ``c`` are measured from the limit of S that c is closer to, and keep their digits there.
    """
    pair = np.empty(2)
    slope = np.empty(4)
    position = 0.0
    for i in range(labels.size):
        earlier = address(logits, i * logits.shape[1])
        values = address(parameters, 0)
        targets(0.0, labels[i], earlier, values, address(pair, 0))
        branch = 1 if abs(pair[1]) < abs(pair[0]) else 0
        goal = pair[branch]
        low, high = -np.inf, np.inf
        reach = 1.0
        for _ in range(2000):
            slopes(position, labels[i], earlier, values, address(slope, 0))
            value = slope[branch]
            excess = value - goal
            if excess < 0.0:
                low = position
            else:
                high = position
            move = -excess / slope[2] if slope[2] > 0.0 else np.inf
            if value * goal > 0.0 and slope[2] > 0.0:
                move = -math.log(value / goal) * value / slope[2]
            new = position + move
            if not (low < new < high):
                if excess == 0.0:
                    break
                if low == -np.inf:
                    new = high - reach
                    reach *= 2.0
                elif high == np.inf:
                    new = low + reach
                    reach *= 2.0
                else:
                    new = 0.5 * (low + high)
            elif low == -np.inf or high == np.inf:
                # A step into the unknown is not longer than twice the one before.
                new = min(max(new, position - reach), position + reach)
                reach *= 2.0
            done = abs(new - position) <= 1e-15 * abs(position)
            position = new
            if done:
                break
        out[i] = position


def minimisers(loss: Loss, number: int, nodes: Nodes) -> np.ndarray:
    """``h*``, where the loss of stage ``number`` is smallest, at each of the earlier stages' ``nodes``; shape (n,)."""
    seen = loss.stages(number)
    identity = _copied_logit(loss)
    if identity is not None:
        return nodes.logits[:, seen[identity] - 1].copy()
    compiled = loss_module(loss)
    out = np.empty(nodes.labels.size)
    parameters = np.array(loss.values, dtype=float)
    solve_gradient(compiled.slopes, compiled.targets, nodes.labels, nodes.seen(seen), parameters, out)
    return out


@lru_cache(maxsize=1024)
def _copied_logit(loss: Loss) -> int | None:
    """Index of the logit that the loss wants copied: its gradient vanishes there whatever the label; None if there is none."""
    gradient = with_values(loss, loss.gradient)
    for k, symbol in enumerate(loss.logits):
        if sympy.expand(gradient.subs(h, symbol)) == 0:
            return k
    return None


def label_threshold(loss: Loss, low: float, high: float) -> tuple[float, float] | None:
    """The earlier logit, in [low, high], above which ``h*`` is positive, for label 0 and label 1.

    For a loss that looks at one earlier logit.  The end of the range where ``h*`` has one sign all over it, None where its
    sign changes more than once or falls.
    """
    functions = LossFunctions(loss)
    scan = np.linspace(low, high, 401)
    levels = []

    def slope(place: float | np.ndarray, label: float) -> np.ndarray:
        logits = np.atleast_1d(np.asarray(place, dtype=float))
        zero = np.zeros_like(logits)
        return functions.derivatives(zero, np.full_like(zero, label), logits[:, None])[0]

    for label in (0.0, 1.0):
        positive = slope(scan, label) < 0
        changes = np.flatnonzero(positive[1:] != positive[:-1])
        if changes.size > 1 or (positive[0] and not positive[-1]):
            return None
        if changes.size == 0:
            levels.append(low - 1.0 - abs(low) if positive[0] else high + 1.0 + abs(high))
        else:
            k = int(changes[0])
            levels.append(
                optimize.brentq(lambda x, label=label: slope(x, label)[0], scan[k], scan[k + 1], xtol=1e-14, rtol=1e-14)
            )
    return levels[0], levels[1]


def constraint(chain: Chain, number: int, limit: str, nodes: Nodes) -> np.ndarray:
    """``h*`` of constrained stage ``number`` at each node, or the sign of the label seen for a margin; shape (n,)."""
    if limit == MAX_MARGIN:
        return nodes.label_signs(bool(chain.hidden))
    return minimisers(chain[number - 1].loss, number, nodes)


# The equations


@dataclass(frozen=True)
class HardStage:
    """Saddle-point equations of a constrained stage, given nodes of the earlier ones.

    Attributes
    ----------
    number, limit
        Which stage (1-based), and which constraint.
    nodes : Nodes
        Earlier stages on training samples; forces of constrained ones rescaled.
    goal : array, shape (n,)
        ``h*``; with a margin, the sign ``s``.
    data, prior, triangle
        Noise; constants of the prior with ridge 1; Cholesky factor of the earlier stages, row by row.
    fixed_bias : float or None
        A given bias of a minimum-norm stage; beside weights that grow (max margin) it is nothing, whatever it is.
    """

    number: int
    limit: str
    nodes: Nodes
    goal: np.ndarray
    data: DataModel
    prior: np.ndarray
    triangle: np.ndarray
    fixed_bias: float | None = None

    @property
    def eta(self) -> float:
        return float(self.prior[0])

    @property
    def alpha(self) -> float:
        """Of the data sets it is trained on."""
        return float(self.nodes.weight.sum())

    @property
    def flipped(self) -> float:
        """Share of the labels it is trained on that noise flipped."""
        noise = np.array([found.label_noise for found in self.data.sets])
        return min(float(self.nodes.weight @ noise[self.nodes.member]) / self.alpha, 0.5)

    def field(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Mean of ``u`` at each node and its variance, for unknowns ``x`` (:attr:`HardPoint.variables`)."""
        k, delta = self.number - 1, self.data.variance
        at = layout.places(k)
        order = layout.OrderParameters(
            x[at.m], x[at.b], x[at.couplings : at.norm], 0.0, x[at.responses : at.response], x[at.response]
        )
        mean = np.zeros(self.nodes.labels.size)
        _entries.add_field_means(_entries.field_of(order, delta), self.nodes.statistics, mean)
        return mean, delta * x[at.norm]

    def distance(self, x: np.ndarray) -> np.ndarray:
        """Distance of the field from the margin, in widths, at each node."""
        mean, variance = self.field(x)
        return (1.0 - self.goal * mean) / math.sqrt(variance)

    def channel(self, x: np.ndarray) -> np.ndarray:
        """``alpha E`` of ``f s, f, f g_1.., f f_1.., f^2, df/domega``, the averages of ``theory.potential.average_symbols``."""
        mean, variance = self.field(x)
        gamma = self.data.variance * x[-1]
        if self.limit == MINIMUM_NORM:
            distance = self.goal - mean
            force = distance / gamma
            square = (distance**2 + variance) / gamma**2
            slope = np.full_like(mean, -1.0 / gamma)
        else:
            sigma = math.sqrt(variance)
            z = (1.0 - self.goal * mean) / sigma
            tail, density = special.ndtr(z), np.exp(-0.5 * z * z) / _ROOT_TWO_PI
            force = self.goal * sigma * (z * tail + density) / gamma
            square = variance * ((1.0 + z * z) * tail + z * density) / gamma**2
            slope = -tail / gamma
        weight = self.nodes.weight
        return np.array([*((weight * force) @ self.nodes.statistics), weight @ square, weight @ slope])

    def evaluate(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals ``updated - x`` (for the bias ``alpha E[f]``), and the conjugates."""
        k = self.number - 1
        equations = equations_module(self.number)
        inputs = np.concatenate((self.channel(x), x[2 : 2 + k]))
        conjugates, updated, factor = np.empty(2 * k + 4), np.empty(2 * k + 3), np.empty(k + 1)
        equations.conjugates(inputs, np.concatenate(([self.data.variance], self.triangle)), conjugates)
        equations.prior(conjugates, self.prior, updated)
        equations.cholesky(np.ascontiguousarray(updated[1 : 2 + k]), self.triangle, factor)
        residual = np.concatenate(([updated[0], 0.0], factor, updated[2 + k :])) - x
        residual[1] = conjugates[-1] if self.fixed_bias is None else 0.0
        return residual, conjugates[:-1]

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Natural size of each unknown."""
        k = self.number - 1
        root = math.sqrt(float(x[2 : 2 + k] @ x[2 : 2 + k] + abs(x[2 + k]))) + 1e-12
        forces = np.sqrt(self.nodes.weight @ self.nodes.forces**2 / self.nodes.weight.sum()) * self.data.variance
        return np.array([root, root, *([root] * k), root**2, *(root / (forces + 1e-300)), x[-1]])

    def start(self) -> np.ndarray:
        """First guess: no weights; or the separator, which does not depend on earlier stages, orthogonal to them."""
        k = self.number - 1
        x = np.zeros(2 * k + 4)
        x[2 + k], x[-1] = 1.0, self.eta - self.alpha
        if self.fixed_bias is not None:
            x[1] = self.fixed_bias
        if self.limit == MAX_MARGIN:
            free = self.fixed_bias is None
            margin, aligned, bias = thresholds.separation(self.data, self.eta, self.flipped, free).at(self.alpha)
            x[1], x[2 + k] = bias / margin, margin**-2
            if self.data.ruled:
                x[2] = aligned / margin / self.triangle[0]
                x[2 + k] -= x[2] ** 2
            else:
                x[0] = aligned / margin
            mean = self.nodes.statistics[:, 0] * x[0] + x[1]
            if self.data.ruled:
                mean = mean + x[2] * self.nodes.statistics[:, 2]
            z = (1.0 - self.goal * mean) / math.sqrt(self.data.variance * x[2 + k])
            x[-1] = self.eta - self.nodes.weight @ special.ndtr(z)
        return x

    def newton(self, unknowns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unknowns (:attr:`HardPoint.unknowns`) after one Newton step, and the conjugates (2k + 3,) before it."""
        k, x = self.number - 1, _variables(unknowns)
        conjugates = self.evaluate(x)[1]
        known = self.start()
        if self.limit == MAX_MARGIN:
            others = x[2 + self.data.ruled : 2 + k]
            known[2 + k] -= others @ others
        fixed = np.setdiff1d(np.arange(x.size), self.free())
        x[fixed] = known[fixed]
        residual, free = self.evaluate(x)[0], self.free()
        if free.size:
            x = self.moved(x, free, -np.linalg.solve(self._jacobian(x, free), residual[free]))
        return _unknowns(x), conjugates

    def _jacobian(self, x: np.ndarray, free: np.ndarray) -> np.ndarray:
        """Of the residuals of the free unknowns in these, by differences; exact where the equations are quadratic."""
        widths = (0.5 if self.limit == MINIMUM_NORM else 1e-4) * self.scales(x)[free]
        jacobian = np.empty((free.size, free.size))
        for c, width in enumerate(widths):
            shift = np.zeros(free.size)
            shift[c] = width
            up, down = (self.evaluate(self.moved(x, free, sign * shift))[0] for sign in (1.0, -1.0))
            jacobian[:, c] = (up - down)[free] / (2.0 * width)
        return jacobian

    def free(self) -> np.ndarray:
        """Indices of the unknowns that Newton's method moves; the others are known in closed form."""
        k = self.number - 1
        if self.limit == MINIMUM_NORM:  # V_tt = eta - alpha
            return np.array([r for r in range(2 * k + 3) if r != 1 or self.fixed_bias is None])
        # A separator is one without a teacher: what it is of classes or of a rule is known.
        return np.array([*range(2 + self.data.ruled, 2 + k), *range(3 + k, 3 + 2 * k)], dtype=int)

    def moved(self, x: np.ndarray, free: np.ndarray, step: np.ndarray) -> np.ndarray:
        """``x`` after a step of the free unknowns, a separator's norm being kept."""
        out = x.copy()
        out[free] += step
        if self.limit == MAX_MARGIN:
            k = self.number - 1
            out[2 + k] += np.sum(x[2 : 2 + k] ** 2) - np.sum(out[2 : 2 + k] ** 2)
        return out

    def solve(self, x: np.ndarray) -> HardPoint:
        """Newton's method from ``x``; the equations of a minimum-norm stage are linear in all unknowns but ``q_perp``."""
        k, free = self.number - 1, self.free()
        last = previous = math.inf
        status = Status.TOO_MANY_ITERATIONS
        iterations = 0
        residual, conjugates = self.evaluate(x)
        while iterations < MAX_NEWTON:
            iterations += 1
            scale = self.scales(x)
            try:
                step = -np.linalg.solve(self._jacobian(x, free), residual[free])
            except np.linalg.LinAlgError:
                status = Status.SINGULAR
                break
            trial = self.moved(x, free, step)
            for _ in range(MAX_HALVINGS):
                if self.limit == MINIMUM_NORM or trial[2 + k] > 0.0:
                    break
                step = 0.5 * step
                trial = self.moved(x, free, step)
            x = trial
            residual, conjugates = self.evaluate(x)
            previous, last = last, float(np.max(np.abs(step / scale[free]), initial=0.0))
            if not math.isfinite(last):
                status = Status.NOT_FINITE
                break
            if last < _ROUNDING or (last < 1e-8 and last > 0.3 * previous):
                status = Status.CONVERGED
                break
        units = self.scales(x)
        units[1] = (units[1] + 1.0) * abs(self.channel(x)[-1])
        size = float(np.max(np.abs(residual / units)))
        return HardPoint(_unknowns(x), conjugates, int(status), iterations, size, last, 0.0, self.limit)


def _unknowns(x: np.ndarray) -> np.ndarray:
    """:attr:`HardPoint.unknowns` from :attr:`HardPoint.variables`."""
    k = (x.size - 4) // 2
    out = x.copy()
    q = float(x[2 : 2 + k] @ x[2 : 2 + k] + max(x[2 + k], 0.0))
    out[2 + k] = math.log(max(x[2 + k], SMALLEST_SHARE * q, 1e-300))
    out[-1] = math.log(x[-1])
    return out


def _variables(unknowns: np.ndarray) -> np.ndarray:
    """:attr:`HardPoint.variables` from :attr:`HardPoint.unknowns`."""
    k = (unknowns.size - 4) // 2
    out = unknowns.copy()
    out[2 + k], out[-1] = math.exp(unknowns[2 + k]), math.exp(unknowns[-1])
    return out


def extend_hard(
    nodes: Nodes, data: DataModel, chain: Chain, number: int, point: HardPoint, step: float, tail: float
) -> Nodes:  # fmt: skip
    """Nodes on training samples that include constrained stage ``number``.

    The force is piecewise linear in the stage's own Gaussian, so that no map has to be inverted: equidistant values of it, on
    both sides of the place where a margin is just met.  Logits of a max-margin stage are in its own units (``s h >= 1``).
    """
    k = number - 1
    stage = HardStage(number, point.limit, nodes, constraint(chain, number, point.limit, nodes), data, _NONE, _NONE)
    mean, variance = stage.field(point.variables)
    sigma = math.sqrt(variance)
    gamma = data.variance * point.response_row[-1]
    reach = math.sqrt(-2.0 * math.log(tail)) + 0.5
    n = nodes.weight.size
    if point.limit == MINIMUM_NORM:
        count = 2 * math.ceil(reach / ((FIELD_STEP if k else FIRST_FIELD_STEP) * step)) + 1
        g, width = np.linspace(-reach, reach, count, retstep=True)
        g, width = np.tile(g, (n, 1)), np.full((n, count), width)
    else:
        edge = np.clip((stage.goal - mean) / sigma, -reach, reach)
        unit, share = np.polynomial.legendre.leggauss(math.ceil((16.0 if k else 48.0) / step))
        unit, share = 0.5 * (1.0 + unit), 0.5 * share
        left, right = edge[:, None] + reach, reach - edge[:, None]
        g = np.hstack((-reach + left * unit, edge[:, None] + right * unit))
        width = np.hstack((left * share, right * share))
    field = mean[:, None] + sigma * g
    logit = _constrained(stage.goal[:, None], field, point.limit)
    force = (logit - field) / gamma
    weight = nodes.weight[:, None] * width * np.exp(-0.5 * g * g) / _ROOT_TWO_PI
    keep = (weight > 0.01 * tail * nodes.weight.max()).ravel()
    old = nodes.rows(np.repeat(np.arange(n), g.shape[1])[keep])
    statistics = np.column_stack((old.statistics[:, : 2 + k], g.ravel()[keep], old.forces, force.ravel()[keep]))
    logits = np.column_stack((old.logits, logit.ravel()[keep]))
    return old._replace(
        weight=weight.ravel()[keep],
        statistics=np.ascontiguousarray(statistics),
        logits=np.ascontiguousarray(logits),
    )


def follow_hard(
    nodes: Nodes, data: DataModel, chain: Chain, number: int, point: HardPoint, directions: np.ndarray
) -> Nodes:  # fmt: skip
    """As :func:`extend_hard` where every node already has its value of the stage's own Gaussian, ``directions`` of shape (n,).

    Samples of data sets that the stage is not trained on keep the logit that the field gives them.
    """
    k = number - 1
    stage = HardStage(number, point.limit, nodes, constraint(chain, number, point.limit, nodes), data, _NONE, _NONE)
    mean, variance = stage.field(point.variables)
    field = mean + math.sqrt(variance) * directions
    trained = nodes.trained(data, chain[number - 1].sets)
    logit = np.where(trained, _constrained(stage.goal, field, point.limit), field)
    force = (logit - field) / (data.variance * point.response_row[-1])
    statistics = np.column_stack((nodes.statistics[:, : 2 + k], directions, nodes.forces, force))
    return nodes._replace(statistics=statistics, logits=np.column_stack((nodes.logits, logit)))


def _constrained(goal: np.ndarray, field: np.ndarray, limit: str) -> np.ndarray:
    """Logit of a constrained stage: ``h*`` whatever the field, or the field unless it is inside the margin."""
    if limit == MINIMUM_NORM:
        return np.broadcast_to(goal, field.shape)
    return goal * np.maximum(1.0, goal * field)
