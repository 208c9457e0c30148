"""The limit ridge -> 0+ of a stage: which of three it is, and the saddle point where it is not an ordinary one.

``Estimator(loss, ridge=0)`` stands for that limit.  With ``alpha*`` the separability threshold of the trained inputs:

- *maximum likelihood*: ``alpha > eta`` and every sample's loss has its minimum at a finite logit, or logistic labels and
  ``alpha > alpha*``.  The equations are regular at ridge 0.
- *minimum norm*: ``alpha < eta`` and every sample's loss has its minimum at a finite logit ``h*``.  Every sample reaches it,
  and among the weights that do this the shortest are chosen.
- *max margin*: logistic labels and ``alpha < alpha*``.  The weights become infinite; their direction is that of the shortest
  weights with ``s h >= 1`` on every sample.

The last two minimise ``|w|^2`` under a hard constraint.  That is a stage with ``ridge = 1`` whose loss is 0 where the
constraint holds and infinite elsewhere, so its saddle point is finite and its proximal point piecewise linear:

    h = h*,  f = (h* - u)/(Delta V)            and            h = s max(1, s u),  f = s (1 - s u)_+/(Delta V).

All averages over the stage's own Gaussian are then in closed form.  The true forces are ``ridge`` times these, so that a later
stage, whose equations contain only products of ``f_s`` with the response ``V_ts`` to it, is solved exactly with the
rescaled ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import sympy
from numba import njit, types

from numerics import thresholds
from numerics.codegen import EQUATION_NAMES, LossFunctions, core_module, equations_module, loss_module
from numerics.compiled import PointArrays, compile_chain, target_features
from numerics.deferred import optimize, special
from numerics.kernels.elementary import POINT_FUNCTION, FloatArray, Matrix, address
from numerics.models import Chain, Estimator, GaussianMixture, ParameterError
from numerics.nodes import Nodes, StagePoint, extend, label_nodes
from numerics.patterns import WeightMoments, nested_patterns
from numerics.settings import Settings
from theory.functions import sigmoid
from theory.losses import Loss
from theory.symbols import h, y

MAXIMUM_LIKELIHOOD, MINIMUM_NORM, MAX_MARGIN = "maximum likelihood", "minimum norm", "max margin"

CONVERGED, TOO_MANY_ITERATIONS, SINGULAR, NOT_FINITE, NOT_TRIED = range(5)
"""Status of a stage, as in ``kernels/stage.py``."""

RESOLUTION = 1e-7
"""Relative distance of ``alpha`` from a threshold below which the limit, which diverges there, counts as unresolvable."""

NO_RIDGE = 1e-200
"""What the compiled solver is given for 0: it vanishes beside any response, and has a logarithm."""

FIRST_RIDGES = (1e-5, 1e-3, 1e-7, 1e-1)
"""Small ridges whose solutions start the search for the limit, one after the other until it succeeds."""

PATH_STEPS = 40
"""Ridges in the path that maximum likelihood is followed along where a start from the above fails."""

FIELD_STEP, FIRST_FIELD_STEP = 0.7, 0.2
"""Trapezoid steps in the own Gaussian of a constrained stage, at quadrature level 0 and unit ``outer_step``; of a first stage."""

EDGE_RESOLUTION = 0.5
"""Distance from the margin, in widths of the field, by which neighbouring nodes may differ."""

SEARCHES = 10
"""Attempts to find the place where training samples come to the margin."""

NEWTON_TOLERANCE = 1e-12
"""Scaled size of the last Newton step of a maximum-likelihood stage, whose large responses amplify errors."""

MAX_NEWTON = 60
"""Newton steps allowed for a constrained stage; about 5 are used."""

MAX_HALVINGS = 30
"""Times a Newton step is halved to keep the norm of the weights positive."""

SMALLEST_SHARE = 1e-12
"""Of the part of the weights orthogonal to earlier stages in ``Q``: below, it counts as 0, as in the compiled solver."""

_FAR = 1e9  # logits at which gradients have their limiting signs
_PROBES = (-3.0, -0.3, 0.0, 0.3, 3.0)  # earlier logits, in units of the scale of the loss's target
_ROUNDING = 1e-13


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


def effective_ridge(stage: Estimator, point: StagePoint) -> float:
    """The ridge in the equations that ``point`` solves: 1 for a constrained stage."""
    return 1.0 if isinstance(point, HardPoint) else stage.ridge


# Which limit


def classify(data: GaussianMixture, chain: Chain) -> tuple[str | None, ...]:
    """The limit that each stage stands for; None where its ridge is positive.

    Raises
    ------
    ParameterError
        Naming the ridge, where there is no limit, or ``alpha`` is too close to the threshold where it diverges.
    """
    limits = tuple(
        _classify_stage(data, stage, chain.name(number), number) if stage.ridge == 0 else None
        for number, stage in enumerate(chain.stages, start=1)
    )
    for number, stage in enumerate(chain.stages, start=1):
        for seen in _visible(stage.loss, number):
            if limits[seen - 1] == MAX_MARGIN:
                raise ParameterError(
                    f"ridge of {chain.name(seen)} must be > 0: at alpha={data.alpha:g} the classes are separable, its logits "
                    f"grow without bound as ridge -> 0, and {chain.name(number)} looks at them; use a small ridge, or an "
                    f"alpha above separability_threshold({data.rho:g}, {data.delta:g}, {chain[seen - 1].eta:g})"
                )
    return limits


def _classify_stage(data: GaussianMixture, stage: Estimator, name: str, number: int) -> str:
    if minimum_is_finite(stage.loss):
        threshold, below = stage.eta, MINIMUM_NORM
        reason = f"alpha = eta = {stage.eta:g}, where the weights just fit every sample and their norm diverges"
    elif is_logistic(stage.loss):
        threshold = thresholds.separability_threshold(data.rho, data.delta, stage.eta)
        below = MAX_MARGIN
        reason = f"the separability threshold alpha = {threshold:.8g}, where the norm diverges and the margin vanishes"
    else:
        raise ParameterError(
            f"ridge of {name} must be > 0: for {stage.loss!r} a sample's loss has no minimum at a finite logit, and no limit "
            f"ridge -> 0 is known (logistic losses on hard labels have one)"
        )
    if abs(data.alpha - threshold) <= RESOLUTION * threshold:
        raise ParameterError(f"ridge of {name} must be > 0 at alpha={data.alpha:.10g}: this is {reason}")
    return below if data.alpha < threshold else MAXIMUM_LIKELIHOOD


def _visible(loss: Loss, number: int) -> tuple[int, ...]:
    """Stages whose logits the gradient depends on at these parameter values (not those behind ``mixing=0``)."""
    present = _with_values(loss, loss.gradient).free_symbols
    return tuple(stage for symbol, stage in zip(loss.logits, loss.stages(number), strict=True) if symbol in present)


def _with_values(loss: Loss, expression: sympy.Expr) -> sympy.Expr:
    """``expression`` with exact parameter values in place of the loss's symbols."""
    values = {
        symbol: sympy.nsimplify(value, rational=True) for symbol, value in zip(loss.symbols, loss.values, strict=True)
    }
    return sympy.sympify(expression).xreplace(values)


@lru_cache(maxsize=1024)
def minimum_is_finite(loss: Loss) -> bool:
    """Whether the loss of every sample has its minimum, and a curvature there, at a finite logit.

    Convexity makes it enough that the gradient has both signs.  It is looked at for both labels, and for earlier logits
    spread over the scales of the loss's target.
    """
    functions = LossFunctions(loss)
    values = dict(zip(loss.symbols, loss.values, strict=True))
    places = []
    for bends in loss.target_features:
        entries = [tuple(entry.subs(values) for entry in bend) for bend in bends]
        numbers = [(float(c), float(scale)) for c, scale in entries if c.is_number and scale.is_number]
        scales = [(c, scale) for c, scale in numbers if math.isfinite(c) and 0 < scale < math.inf]
        scales = scales or [(0.0, 1.0), (0.0, 100.0)]
        places.append(sorted({centre + scale * probe for centre, scale in scales for probe in _PROBES}))
    grids = np.meshgrid(*places, indexing="ij") if places else []
    logits = np.column_stack([grid.ravel() for grid in grids]) if places else np.empty((1, 0))
    n = len(logits)
    for label in (0.0, 1.0):
        labels = np.full(n, label)
        with np.errstate(all="ignore"):
            low, _ = functions.derivatives(np.full(n, -_FAR), labels, logits)
            high, _ = functions.derivatives(np.full(n, _FAR), labels, logits)
        if not (np.all(low < 0) and np.all(high > 0)):
            return False
    return True


@lru_cache(maxsize=1024)
def is_logistic(loss: Loss) -> bool:
    """Whether the gradient is ``sum_k a_k sigmoid(c_k h)`` (``a_k, c_k > 0``) minus its limit at the label's side.

    The loss of a sample then falls to its infimum like an exponential of ``s h``, alike for both labels.
    """
    if loss.split is None:
        return False
    slope, target = (_with_values(loss, part) for part in loss.split)
    slope = slope.replace(sympy.tanh, lambda x: 2 * sigmoid(2 * x) - 1)
    constant, varying = sympy.expand(slope).as_independent(h, as_Add=True)
    total = sympy.Integer(0)
    for term in sympy.Add.make_args(varying):
        factor, function = term.as_independent(h, as_Add=False)
        if not isinstance(function, sigmoid) or not factor.is_positive:
            return False
        rate = sympy.diff(function.args[0], h)
        if not rate.is_positive or not rate.is_number:
            return False
        total += factor
    limits = (constant, constant + total)
    return total != 0 and all(
        sympy.expand(target.subs(y, label)).free_symbols == set()
        and abs(float(target.subs(y, label) - limit)) <= 1e-14 * float(total)
        for label, limit in enumerate(limits)
    )


# Where every sample has its minimum


@njit(types.void(POINT_FUNCTION, POINT_FUNCTION, FloatArray, Matrix, FloatArray, FloatArray), cache=True, nogil=True)
def _minimisers(slopes, targets, labels, logits, parameters, out):
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
    _minimisers(compiled.slopes, compiled.targets, nodes.labels, nodes.seen(seen), parameters, out)
    return out


@lru_cache(maxsize=1024)
def _copied_logit(loss: Loss) -> int | None:
    """Index of the logit that the loss wants copied: its gradient vanishes there whatever the label; None if there is none."""
    gradient = _with_values(loss, loss.gradient)
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


# The constrained stage


@dataclass(frozen=True)
class _HardStage:
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
    """

    number: int
    limit: str
    nodes: Nodes
    goal: np.ndarray
    data: GaussianMixture
    prior: np.ndarray
    triangle: np.ndarray

    @property
    def eta(self) -> float:
        return float(self.prior[0])

    def field(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Mean of ``u`` at each node and its variance, for unknowns ``x = m, b, C_t1.., q_perp, V_t1.., V``."""
        k, delta = self.number - 1, self.data.delta
        design = self.nodes.design
        mean = design[:, 0] * x[0] + x[1]
        mean = (
            mean + math.sqrt(delta) * design[:, 2 : 2 + k] @ x[2 : 2 + k] + delta * design[:, 2 + k :] @ x[3 + k : -1]
        )
        return mean, delta * x[2 + k]

    def channel(self, x: np.ndarray) -> np.ndarray:
        """``alpha E`` of ``f s, f, f g_1.., f f_1.., f^2, df/domega``, the averages of ``theory.potential.average_symbols``."""
        mean, variance = self.field(x)
        gamma = self.data.delta * x[-1]
        if self.limit == MINIMUM_NORM:
            distance = self.goal - mean
            force, square, slope = (
                distance / gamma,
                (distance**2 + variance) / gamma**2,
                np.full_like(mean, -1.0 / gamma),
            )
        else:
            sigma = math.sqrt(variance)
            z = (1.0 - self.goal * mean) / sigma
            tail, density = special.ndtr(z), np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
            force = self.goal * sigma * (z * tail + density) / gamma
            square = variance * ((1.0 + z * z) * tail + z * density) / gamma**2
            slope = -tail / gamma
        weight = self.nodes.weight
        return np.array([*((weight * force) @ self.nodes.design), weight @ square, weight @ slope])

    def evaluate(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals ``updated - x`` (for the bias ``alpha E[f]``), and the conjugates."""
        k = self.number - 1
        equations = equations_module(self.number)
        inputs = np.concatenate((self.channel(x), x[2 : 2 + k]))
        conjugates, updated, factor = np.empty(2 * k + 4), np.empty(2 * k + 3), np.empty(k + 1)
        equations.conjugates(inputs, np.concatenate(([self.data.delta], self.triangle)), conjugates)
        equations.prior(conjugates, self.prior, updated)
        equations.cholesky(np.ascontiguousarray(updated[1 : 2 + k]), self.triangle, factor)
        residual = np.concatenate(([updated[0], 0.0], factor, updated[2 + k :])) - x
        residual[1] = conjugates[-1]
        return residual, conjugates[:-1]

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Natural size of each unknown."""
        k = self.number - 1
        root = math.sqrt(float(x[2 : 2 + k] @ x[2 : 2 + k] + abs(x[2 + k]))) + 1e-12
        forces = np.sqrt(self.nodes.weight @ self.nodes.forces**2 / self.nodes.weight.sum()) * self.data.delta
        return np.array([root, root, *([root] * k), root**2, *(root / (forces + 1e-300)), x[-1]])

    def distance(self, point: StagePoint) -> np.ndarray:
        """Distance of the field from the margin, in widths, at each node."""
        k = self.number - 1
        mean, variance = self.field(
            np.concatenate((point.unknowns[: 2 + k], [point.cholesky_row[-1] ** 2], point.response_row))
        )
        return (1.0 - self.goal * mean) / math.sqrt(variance)

    def start(self) -> np.ndarray:
        """First guess: no weights; or the separator, which does not depend on earlier stages, orthogonal to them."""
        k = self.number - 1
        x = np.zeros(2 * k + 4)
        x[2 + k], x[-1] = 1.0, self.eta - self.data.alpha
        if self.limit == MAX_MARGIN:
            found = thresholds.max_margin(self.data.alpha, self.data.rho, self.data.delta, self.eta)
            x[0], x[1] = found.magnetization / found.margin, found.bias / found.margin
            x[2 + k] = found.margin**-2
            mean = x[0] + self.goal * x[1]
            z = (1.0 - mean) / math.sqrt(self.data.delta * x[2 + k])
            x[-1] = self.eta - self.nodes.weight @ special.ndtr(z)
        return x

    def free(self) -> np.ndarray:
        """Indices of the unknowns that Newton's method moves; the others are known in closed form."""
        k = self.number - 1
        if self.limit == MINIMUM_NORM:
            return np.arange(2 * k + 3)  # V_tt = eta - alpha
        return np.array([*range(2, 2 + k), *range(3 + k, 3 + 2 * k)], dtype=int)  # a separator is one without a teacher

    def moved(self, x: np.ndarray, free: np.ndarray, step: np.ndarray) -> np.ndarray:
        """``x`` after a step of the free unknowns, a separator's norm being kept."""
        out = x.copy()
        out[free] += step
        if self.limit == MAX_MARGIN:
            k = self.number - 1
            out[2 + k] += np.sum(x[2 : 2 + k] ** 2) - np.sum(out[2 : 2 + k] ** 2)
        return out

    def solve(self, x: np.ndarray) -> StagePoint:
        """Newton's method from ``x``; the equations of a minimum-norm stage are linear in all unknowns but ``q_perp``."""
        k, free = self.number - 1, self.free()
        relative = 0.5 if self.limit == MINIMUM_NORM else 1e-4
        last = previous = math.inf
        status = TOO_MANY_ITERATIONS
        iterations = 0
        residual, conjugates = self.evaluate(x)
        while iterations < MAX_NEWTON:
            iterations += 1
            scale = self.scales(x)
            jacobian = np.empty((free.size, free.size))
            for c, width in enumerate(relative * scale[free]):
                shift = np.zeros(free.size)
                shift[c] = width
                difference = (
                    self.evaluate(self.moved(x, free, shift))[0] - self.evaluate(self.moved(x, free, -shift))[0]
                )
                jacobian[:, c] = difference[free] / (2.0 * width)
            try:
                step = -np.linalg.solve(jacobian, residual[free])
            except np.linalg.LinAlgError:
                status = SINGULAR
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
                status = NOT_FINITE
                break
            if last < _ROUNDING or (last < 1e-8 and last > 0.3 * previous):
                status = CONVERGED
                break
        units = self.scales(x)
        units[1] = (units[1] + 1.0) * abs(self.channel(x)[-1])
        size = float(np.max(np.abs(residual / units)))
        unknowns = x.copy()
        q = float(x[2 : 2 + k] @ x[2 : 2 + k] + max(x[2 + k], 0.0))
        unknowns[2 + k] = math.log(max(x[2 + k], SMALLEST_SHARE * q, 1e-300))
        unknowns[-1] = math.log(x[-1])
        return HardPoint(unknowns, conjugates, status, iterations, size, last, 0.0, self.limit)


def extend_hard(
    nodes: Nodes, data: GaussianMixture, chain: Chain, number: int, point: HardPoint, step: float, tail: float
) -> Nodes:  # fmt: skip
    """Nodes on training samples that include constrained stage ``number``.

    The force is piecewise linear in the stage's own Gaussian, so that no map has to be inverted: equidistant values of it, on
    both sides of the place where a margin is just met.  Logits of a max-margin stage are in its own units (``s h >= 1``).
    """
    k = number - 1
    stage = _HardStage(number, point.limit, nodes, constraint(chain, number, point.limit, nodes), data, _NONE, _NONE)
    x = np.concatenate((point.unknowns[: 2 + k], [point.cholesky_row[-1] ** 2], point.response_row))
    mean, variance = stage.field(x)
    sigma = math.sqrt(variance)
    gamma = data.delta * x[-1]
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
    if point.limit == MINIMUM_NORM:
        logit = np.broadcast_to(stage.goal[:, None], g.shape)
    else:
        logit = stage.goal[:, None] * np.maximum(1.0, stage.goal[:, None] * field)
    force = (logit - field) / gamma
    weight = nodes.weight[:, None] * width * np.exp(-0.5 * g * g) / math.sqrt(2.0 * math.pi)
    keep = (weight > 0.01 * tail * nodes.weight.max()).ravel()
    rows = np.repeat(np.arange(n), g.shape[1])[keep]
    old = nodes.design[rows]
    design = np.column_stack((old[:, : 2 + k], g.ravel()[keep], old[:, 2 + k :], force.ravel()[keep]))
    logits = np.column_stack((nodes.logits[rows], logit.ravel()[keep]))
    return Nodes(
        weight.ravel()[keep], np.ascontiguousarray(design), nodes.labels[rows], np.ascontiguousarray(logits),
        nodes.member[rows], nodes.row[rows],
    )  # fmt: skip


_NONE = np.empty(0)


def constraint(chain: Chain, number: int, limit: str, nodes: Nodes) -> np.ndarray:
    """``h*`` of constrained stage ``number`` at each node, or the sign ``s`` for a margin; shape (n,)."""
    if limit == MAX_MARGIN:
        return np.ascontiguousarray(nodes.design[:, 0])
    return minimisers(chain[number - 1].loss, number, nodes)


# Where an average over nodes is sharp


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


def sharp_crossings(scores: np.ndarray, nodes: Nodes, limit: float = 1.0) -> tuple[tuple[float, float], ...]:
    """(position, width) in the last logit, for each label, of the zero of a normal score that its nodes do not resolve: its
    neighbouring values differ by more than ``limit``.
    """
    jumps, matter = unresolved(scores, nodes)
    found = []
    for label in (0.0, 1.0):
        here = np.flatnonzero(matter & (jumps > limit) & (nodes.labels[1:] == label))
        if here.size:
            k = here[np.argmin(scores[here] * scores[here + 1])] if here.size > 1 else here[0]
            h = nodes.logits[k : k + 2, -1]
            slope = (scores[k + 1] - scores[k]) / (h[1] - h[0])
            position = min(max(h[0] - scores[k] / slope, h.min()), h.max())
            found.append((float(position), float(1.0 / abs(slope))))
    return tuple(found)


# Whole chains


@dataclass(frozen=True)
class LimitPoints:
    """Saddle points of the stages solved, the last one perhaps without success; quadrature level and error estimate."""

    points: tuple[StagePoint, ...]
    level: int
    error: float


def solve_limit(data: GaussianMixture, chain: Chain, settings: Settings) -> LimitPoints:
    """Saddle points of a chain in which some ridges are 0.

    Raises
    ------
    ParameterError
        Where a limit does not exist (:func:`classify`).
    """
    require_plain(data, chain)
    limits = classify(data, chain)
    hard = [number for number, limit in enumerate(limits, start=1) if limit in (MINIMUM_NORM, MAX_MARGIN)]
    if not hard:
        return _solve_regular(data, chain, settings)
    return _Assembly(data, chain, limits, settings).solve()


def require_plain(data: GaussianMixture, chain: Chain) -> None:
    """Raise ParameterError for what limits are not derived for."""
    plain = all(
        isinstance(stage, Estimator) and stage.bias is None and stage.mask_overlap is None for stage in chain.stages
    )
    if data.label_noise or data.further or not plain:
        raise ParameterError(
            "ridge must be > 0 with label noise, further data sets, special stages, a given bias or random masks: "
            "the limit ridge -> 0 is taken for Estimators on one data set"
        )


def _small_ridges(chain: Chain, ridge: float) -> Chain:
    return Chain(tuple(replace(stage, ridge=ridge) if stage.ridge == 0 else stage for stage in chain.stages))


def _solve_regular(data: GaussianMixture, chain: Chain, settings: Settings) -> LimitPoints:
    """Compiled solution of a chain without constrained stages, along falling ridges if need be."""
    compiled = compile_chain(chain)
    settings = replace(settings, newton_tolerance=min(settings.newton_tolerance, NEWTON_TOLERANCE))
    if all(stage.ridge > 0 for stage in chain.stages):
        arrays = PointArrays([(data, chain)])
        arrays.solve(compiled, settings)
        return _read(arrays, len(chain))
    best = None
    starts = [(ridge,) for ridge in FIRST_RIDGES]
    starts.append(tuple(np.geomspace(1.0, 1e-16, PATH_STEPS)))
    for path in starts:
        started = None
        for ridge in (*path, NO_RIDGE):
            arrays = PointArrays([(data, _small_ridges(chain, float(ridge)))])
            if started is not None:
                arrays.x[:], arrays.started[:] = started.x, 1
            arrays.solve(compiled, settings)
            if arrays.summary[0, 0] < len(chain):
                break
            started = arrays
        found = _read(arrays, len(chain))
        if best is None or found.error < best.error or len(found.points) > len(best.points):
            best = found
        if ridge == NO_RIDGE and all(point.status == 0 for point in found.points) and found.error <= settings.rtol:
            return found
    return best


def read_points(arrays: PointArrays, i: int, n_stages: int) -> tuple[StagePoint, ...]:
    """Saddle points of the stages of point ``i``, up to the first that failed."""
    points: list[StagePoint] = []
    for t in range(n_stages):
        status, iterations, residual, last_step, defect = (float(entry) for entry in arrays.stats[i, t])
        x, conjugates = arrays.x[i, t, : 2 * t + 4].copy(), arrays.conjugates[i, t, : 2 * t + 3].copy()
        points.append(StagePoint(x, conjugates, int(status), int(iterations), residual, last_step, defect))
        if points[-1].status != 0:
            break
    return tuple(points)


def _read(arrays: PointArrays, n_stages: int) -> LimitPoints:
    """The only point of ``arrays``."""
    return LimitPoints(read_points(arrays, 0, n_stages), int(arrays.summary[0, 1]), float(arrays.summary[0, 2]))


@dataclass(frozen=True)
class _Assembly:
    """A chain with constrained stages, solved stage by stage at rising quadrature levels."""

    data: GaussianMixture
    chain: Chain
    limits: tuple[str | None, ...]
    settings: Settings

    def solve(self) -> LimitPoints:
        first = next(k for k, limit in enumerate(self.limits) if limit in (MINIMUM_NORM, MAX_MARGIN))
        prefix = LimitPoints((), 0, 0.0)
        if first > 0:
            prefix = _solve_regular(self.data, Chain(self.chain.stages[:first]), self.settings)
            if any(point.status != 0 for point in prefix.points):
                return prefix
        points, level, error = prefix.points, prefix.level, math.inf
        starts: list[np.ndarray | None] = [None] * len(self.chain)
        for level in range(prefix.level, max(prefix.level + 1, self.settings.max_levels) + 1):
            before, points = points, self._solve_level(prefix.points, starts, level)
            if points[-1].status != 0:
                break
            starts = [point.unknowns for point in points]
            if level > prefix.level:
                error = max(prefix.error, _largest_change(before, points, self.data.alpha))
                if error <= self.settings.rtol:
                    break
        return LimitPoints(points, level, error)

    def _solve_level(
        self, prefix: Sequence[StagePoint], starts: Sequence[np.ndarray | None], level: int
    ) -> tuple[StagePoint, ...]:
        """All stages at one level; stops at the first that fails."""
        data, chain, settings = self.data, self.chain, self.settings
        factor = settings.refinement**level
        moments = WeightMoments(nested_patterns(tuple(stage.eta for stage in chain.stages)))
        nodes, points = label_nodes(data), []
        for number, stage in enumerate(chain.stages, start=1):
            limit = self.limits[number - 1]
            if number <= len(prefix):
                point = prefix[number - 1]
            elif limit in (MINIMUM_NORM, MAX_MARGIN):
                point = self._solve_hard(number, nodes, moments, points, starts[number - 1], level)
            else:
                point = self._solve_soft(
                    number, nodes, moments, points, starts[number - 1], settings.field_step * factor
                )
            points.append(point)
            if point.status != 0 or number == len(chain):
                break
            moments.add(number - 1, effective_ridge(stage, point), point.conjugates, equations_module(number).moments)
            nodes = extend_any(nodes, data, chain, number, point, settings, level, training=True)
        return tuple(points)

    def _solve_hard(
        self, number: int, nodes: Nodes, moments: WeightMoments, points: Sequence[StagePoint], start: np.ndarray | None,
        level: int,
    ) -> StagePoint:  # fmt: skip
        limit = self.limits[number - 1]
        prior, triangle = moments.prior_constants(number - 1, 1.0), _triangle(points)
        for _ in range(SEARCHES):
            goal = constraint(self.chain, number, limit, nodes)
            if not np.all(np.isfinite(goal)):
                unknown = np.full(2 * number + 2, math.nan)
                return HardPoint(unknown, unknown[:-1], NOT_FINITE, 0, math.inf, math.inf, 0.0, limit)
            stage = _HardStage(number, limit, nodes, goal, self.data, prior, triangle)
            if start is not None:
                x = start.copy()
                x[1 + number], x[-1] = math.exp(x[1 + number]), math.exp(x[-1])
            else:
                x = stage.start()
                if limit == MAX_MARGIN and number > 1:
                    x = self._overlapping(number, x)
            point = stage.solve(x)
            if limit == MINIMUM_NORM or point.status != 0 or number != 2 or isinstance(points[0], HardPoint):
                return point
            # Whether a sample is on the margin may change more quickly with the teacher's logit than its nodes follow.
            bends = sharp_crossings(stage.distance(point), nodes, EDGE_RESOLUTION)
            if not bends:
                return point
            start = point.unknowns
            nodes = extend_any(
                label_nodes(self.data),
                self.data,
                self.chain,
                1,
                points[0],
                self.settings,
                level,
                training=True,
                bends=bends,
            )
        return point

    def _overlapping(self, number: int, x: np.ndarray) -> np.ndarray:
        """The separator's first guess with overlaps read off a solution at small ridge."""
        small = self._at_small_ridge(FIRST_RIDGES[0])
        if len(small) < number or small[number - 1].status != 0:
            return x
        k, near = number - 1, small[number - 1]
        row = near.cholesky_row / math.sqrt(near.norm_squared)
        size = math.sqrt(x[2 + k])
        out = x.copy()
        out[2 : 2 + k] = size * row[:-1]
        out[2 + k] = (size * row[-1]) ** 2
        return out

    def _at_small_ridge(self, ridge: float) -> tuple[StagePoint, ...]:
        return _solve_regular(self.data, _small_ridges(self.chain, ridge), self.settings).points

    def _solve_soft(
        self, number: int, nodes: Nodes, moments: WeightMoments, points: Sequence[StagePoint], start: np.ndarray | None,
        step: float,
    ) -> StagePoint:  # fmt: skip
        """An ordinary stage after a constrained one."""
        ridge = self.chain[number - 1].ridge
        constants = moments.prior_constants(number - 1, ridge)
        if start is not None:
            return solve_stage(self.data, self.chain[number - 1], nodes, constants, points, start, step, self.settings)
        point = None
        for small in FIRST_RIDGES:
            near = self._at_small_ridge(small)
            if len(near) < number or near[number - 1].status != 0:
                continue
            x = near[number - 1].unknowns.copy()
            for s, earlier in enumerate(points):
                if isinstance(earlier, HardPoint):
                    # f = ridge r f', where r is how much longer the weights are than in the constrained stage's units.
                    r = math.sqrt(near[s].norm_squared / earlier.norm_squared) if earlier.limit == MAX_MARGIN else 1.0
                    x[2 + number + s] *= small * r
            point = solve_stage(self.data, self.chain[number - 1], nodes, constants, points, x, step, self.settings)
            if point.status == 0:
                return point
        if point is None:
            x = np.full(2 * number + 2, math.nan)
            return StagePoint(x, x[:-1].copy(), NOT_TRIED, 0, math.inf, math.inf, math.inf)
        return point


def solve_stage(
    data: GaussianMixture, stage: Estimator, nodes: Nodes, prior: np.ndarray, earlier: Sequence[StagePoint], x: np.ndarray,
    step: float, settings: Settings,
) -> StagePoint:  # fmt: skip
    """One compiled Newton solve of an ordinary stage on any nodes of the earlier ones.

    Parameters
    ----------
    nodes, prior, earlier
        Nodes on training samples, constants of the prior (``WeightMoments.prior_constants``), saddle points.
    x : array, shape (2t + 2,)
        Starting point; unknowns as in ``kernels/stage.py``.
    """
    number = len(earlier) + 1
    loss, equations, core, compiled = stage.loss, equations_module(number), core_module(), loss_module(stage.loss)
    functions = core.new_vector_functions()
    for name in EQUATION_NAMES:
        core.push_vector_function(functions, getattr(equations, name))
    triangle = _triangle(earlier)
    unknowns, conjugates, updated = x.copy(), np.empty(2 * number + 2), np.empty(2 * number + 1)
    status, iterations, residual, last_step, defect = core.solve_stage(
        compiled.slopes, compiled.targets, compiled.features, len(loss.features), int(loss.split is not None), functions, 0,
        unknowns, nodes.weight, nodes.design, nodes.labels, nodes.seen(loss.stages(number)),
        np.array(loss.values, dtype=float), data.delta, np.concatenate(([data.delta], triangle)), prior, triangle,
        np.array([point.response_row[-1] for point in earlier], dtype=float), math.nan, step, settings.tail,
        settings.newton_tolerance, settings.max_iterations, conjugates, updated,
    )  # fmt: skip
    return StagePoint(unknowns, conjugates[:-1], int(status), int(iterations), residual, last_step, defect)


def _triangle(points: Sequence[StagePoint]) -> np.ndarray:
    return np.concatenate([np.empty(0), *(point.cholesky_row for point in points)])


def extend_any(
    nodes: Nodes, data: GaussianMixture, chain: Chain, number: int, point: StagePoint, settings: Settings, level: int, *,
    training: bool, refinement: float = 1.0, bends: Sequence[tuple[float, float]] = (), sharpness: float = 0.0,
) -> Nodes:  # fmt: skip
    """``nodes`` of the stages before ``number``, extended by that stage, constrained or not.

    ``refinement`` divides the step of this integration; ``bends`` are (position, scale) of what is going to be averaged as a
    function of this stage's logit, beyond what later targets do; ``sharpness`` as in :func:`extend`.
    """
    step = settings.outer_step * settings.refinement**level / refinement
    if training and isinstance(point, HardPoint):
        return extend_hard(nodes, data, chain, number, point, step, settings.tail)
    wanted = sorted({*map(tuple, target_features(chain, number)), *bends})
    extra = np.array(wanted, dtype=float).reshape(-1, 2)
    extended, _ = extend(
        nodes, data, chain.resolved(data)[number - 1], point, step, settings.tail, training=training, extra=extra,
        sharpness=sharpness,
    )  # fmt: skip
    return extended


def _largest_change(before: Sequence[StagePoint], after: Sequence[StagePoint], alpha: float) -> float:
    """Largest change of an order parameter, relative to its natural size."""
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if old is new:
            continue
        size = math.sqrt(new.norm_squared)
        responses = new.response_row
        chain = after[: new.earlier + 1]
        own = np.array([point.response_row[-1] for point in chain])
        sizes = np.maximum(np.abs(responses), np.sqrt(own * own[-1]))
        if isinstance(new, HardPoint):
            # The response that would move a logit by the width of its field: Qh_ss = alpha Delta E[f_s^2].
            forces = np.array([point.conjugates[1 + point.earlier] for point in chain[:-1]]) / alpha
            sizes[:-1] = np.maximum(sizes[:-1], size / np.sqrt(forces))
        worst = max(
            worst,
            abs(new.magnetization - old.magnetization) / size,
            abs(new.bias - old.bias) / (1.0 + size),
            float(np.max(np.abs(new.cholesky_row[:-1] - old.cholesky_row[:-1]), initial=0.0)) / size,
            abs(new.cholesky_row[-1] ** 2 - old.cholesky_row[-1] ** 2) / size**2,
            float(np.max(np.abs(responses - old.response_row) / sizes)),
        )
    return worst
