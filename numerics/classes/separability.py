"""Up to how many samples K classes can be told apart without an error: two thresholds, which differ where classes do.

- *Complete separation*: some weights and biases give every training sample its own label, ``h_y > h_k`` for all other k.  Below
  ``complete_separability_threshold`` they exist, above they do not.
- *Maximum likelihood*: cross-entropy on hard labels, without a ridge, has a minimum if and only if no weights but equal ones
  give ``h_y >= h_k`` everywhere (Albert & Anderson 1984).  It has none already if SOME GROUPS of classes are separable, with one
  logit for all classes of a group: up to ``maximum_likelihood_threshold``.

Between the two, some differences of logits grow without bound as the ridge goes to 0, and others stay finite.

For labels g of G groups of classes, in d = G-1 coordinates u of logits (:func:`numerics.models.helmert`), samples of the class
c have ``u ~ N(a Gamma_.c + b, Delta_c Q)``, and the threshold is the stationary value of

    alpha(a, b, Q, W) = Tr[W (Q - a Gamma a^T)] / sum_c (rho_c/Delta_c) E dist_W^2(u, cone where g wins),

which is what the saddle point of any loss that is 0 inside the cones, and infinite outside, becomes where its minimum runs away:
with ``r`` the way to the nearest point of the cone in the metric W, and ``f = W r``,

    a_.c = alpha (rho_c/Delta_c) W^-1 E_c f,         sum_c (rho_c/Delta_c) E_c f = 0,
    Q - a Gamma a^T = alpha sum_c (rho_c/Delta_c) W^-1 E_c[f f^T] W^-1,
    W = alpha sum_c rho_c E_c[-df/du].

The solution is a pair of certificates: weights with all margins >= 0, and forces >= 0 on the margins that sum to 0.  There are
three cases.  Two groups: one direction, an unconstrained minimum of a smooth convex function, as for binary data
(:mod:`numerics.thresholds`).  Classes that are all alike: ``Q = W = 1``, ``b = 0``, one variable.  Else a fixed point.  It may
run to a singular Q: then logits that separate clusters of classes are infinitely larger than those that separate inside of a
cluster, and the threshold is the smallest of those of either step, of a cluster S alone ``alpha_S/rho(S)``.

A student that trains the fraction ``eta`` of its weights is a dense problem with ``alpha/eta`` samples and noise ``Delta/eta``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numerics.classes.cones import Circle, Directions, Sphere, normals_of, symmetric_distance
from numerics.deferred import optimize, special
from numerics.models import ClassMixture, ParameterError, helmert
from numerics.models.checks import require_number
from numerics.thresholds import least_log_average, log_hinge_moment

Array = NDArray[np.float64]
Groups = tuple[tuple[int, ...], ...]

MAX_ITERATIONS = 2000
TOLERANCE = 1e-10
"""Largest change of an order parameter at which the fixed point is found."""

NEAR = 1e-2
"""Change from which on Anderson's method takes over from plain iterations, which never leave the positive matrices."""

FAR = 30
"""Iterations after which it does so anyway."""

PATIENCE = 10
"""Iterations that have to halve the change; if they do not, steps are halved."""

MEMORY = 8
"""Former iterations that Anderson's method combines."""

SINGULAR = 1e-9
"""Smallest over largest eigenvalue of Q at which it counts as running to a singular matrix."""

SUSPECT = 1e-3
"""The same where the iteration came to no end; the threshold of a singular Q then has to agree with where it was."""

COARSE_POINTS = 10
FINE_POINTS = 13
"""Powers of 2 of the points on a sphere, of the first solution and of those its error is told from."""

SCRAMBLES = 6

CONFIDENCE = 2.571
"""Two-sided 95 % quantile of Student's t with SCRAMBLES - 1 degrees of freedom."""

RESOLUTION = 1e-3
"""Relative error beyond which a threshold is not given: averages in the tails of the classes are not resolved."""

MINIMUM_ERROR = 1e-10
"""Relative error of the threshold of two groups, whose average is known in closed form."""

ROUNDING = 1e-13
ALIKE = 1e-12
"""Differences that are rounding, of averages and of parameters of classes."""

MAX_GROUPINGS = 250
"""Groupings of classes that are tried at most."""

CLEARLY_LESS = 0.02
"""Groupings that are this much below the best, with a coarse rule, are not looked at with a fine one."""


@dataclass(frozen=True)
class ClassThreshold:
    """Samples per input up to which something can be separated.

    Attributes
    ----------
    value : float
        ``alpha = M/N``, counting the samples of all classes; ``math.inf`` if nothing has to be separated.
    error : float
        Estimate of its numerical error.
    groups : tuple of tuples of int
        What can just be separated: classes (from 0) in groups that share a logit.  Complete separation may end with all
        classes, with some of them, or with groups of similar ones.

    Examples
    --------
    >>> from numerics.models import ClassMixture, orthogonal_means
    >>> found = complete_separability_threshold(ClassMixture(1.0, gram=orthogonal_means(3)))
    >>> round(float(found), 6), found.error < 1e-9
    (3.187008, True)
    """

    value: float
    error: float
    groups: Groups

    def __float__(self) -> float:
        return self.value


def complete_separability_threshold(data: ClassMixture, eta: float = 1.0) -> ClassThreshold:
    """Below it, some weights give every sample of the training set its own label; above it, none do.

    Parameters
    ----------
    data : ClassMixture
        Classes and label noise of the training set; its alpha does not matter.  A Gram matrix of zeros stands for inputs without
        any signal.
    eta : float
        Fraction of trainable weights, in (0, 1].

    Returns
    -------
    ClassThreshold
        Good to 1e-10 for classes that are all alike, and for those that two or three classes decide; else the error is told from
        other quadrature points (about 1e-5 for 4 and 5 classes).

    Raises
    ------
    ParameterError
        If a value is not in its range.
    ArithmeticError
        If the fixed point is not found, or the classes are so far apart that averages are not resolved.

    Examples
    --------
    >>> from numerics.models import ClassMixture, orthogonal_means
    >>> found = complete_separability_threshold(ClassMixture(1.0, [0.45, 0.45, 0.1], orthogonal_means(3)))
    >>> round(found.value, 6), found.groups  # the two frequent classes decide
    (3.036538, ((0,), (1,)))
    """
    problem, eta = _problem(data, eta)
    return _for_student(_complete(problem), eta)


def maximum_likelihood_threshold(data: ClassMixture, eta: float = 1.0) -> ClassThreshold:
    """Above it, cross-entropy on the labels of the training set has a minimum without a ridge; below it, logits grow for ever.

    It is the largest threshold of complete separation over all groupings of the classes.  Groupings that are separable have a
    common refinement that is, so that only those need to be tried that look the same for classes that are alike.

    Parameters
    ----------
    data, eta
        As for :func:`complete_separability_threshold`, and so are the errors.

    Returns
    -------
    ClassThreshold

    Raises
    ------
    ParameterError
        If a value is not in its range, or there are too many groupings: more than 6 classes of which hardly any are alike.
    ArithmeticError
        As for :func:`complete_separability_threshold`.

    Examples
    --------
    >>> from numerics.models import ClassMixture, orthogonal_means
    >>> found = maximum_likelihood_threshold(ClassMixture(1.0, [0.45, 0.45, 0.1], orthogonal_means(3)))
    >>> round(found.value, 6), found.groups  # the rare class against the others
    (4.854295, ((0, 1), (2,)))
    """
    problem, eta = _problem(data, eta)
    return _for_student(_largest_of_groupings(problem), eta)


# The problem.


@dataclass(frozen=True)
class _Problem:
    """Samples of some classes, with labels of some groups.

    Attributes
    ----------
    share : array, shape (n,)
        Of every pair of a class and a label that occurs; sum 1.
    component, label : arrays of int, shape (n,)
        The class, which gives the law, and the number of the group.
    gram, delta : arrays, shapes (K, K) and (K,)
    groups : tuple
        Which labels make up each group.
    """

    share: Array
    component: NDArray[np.int64]
    label: NDArray[np.int64]
    gram: Array
    delta: Array
    groups: Groups

    @property
    def size(self) -> int:
        """G."""
        return len(self.groups)

    def of_labels(self, chosen: Sequence[int]) -> tuple[_Problem, float]:
        """The samples of some of the groups, and their share."""
        kept = np.isin(self.label, chosen)
        total = float(self.share[kept].sum())
        numbers = np.searchsorted(np.array(chosen), self.label[kept])
        some = tuple(self.groups[g] for g in chosen)
        return replace(
            self, share=self.share[kept] / total, component=self.component[kept], label=numbers, groups=some
        ), total

    def merged(self, parts: Groups) -> _Problem:
        """Groups of groups."""
        numbers = np.empty(self.size, dtype=np.int64)
        for number, part in enumerate(parts):
            numbers[list(part)] = number
        joined = tuple(tuple(sorted(label for g in part for label in self.groups[g])) for part in parts)
        return replace(self, label=numbers[self.label], groups=joined)

    @property
    def alike(self) -> float | None:
        """Gram matrix over noise, on the gauge, of classes that are all alike and have their own labels; None for others."""
        if len(self.share) != self.size or len(set(self.component.tolist())) != self.size:
            return None
        gram, delta = self.gram[np.ix_(self.component, self.component)], self.delta[self.component]
        off = gram[~np.eye(self.size, dtype=bool)]
        for values in (np.diag(gram), off, delta, self.share):
            if np.ptp(values) > ALIKE * max(1.0, np.abs(values).max()):
                return None
        return max(0.0, float(gram[0, 0] - off[0])) / float(delta[0])


def _problem(data: ClassMixture, eta: float) -> tuple[_Problem, float]:
    """Dense problem of a student, and its ``eta``."""
    if not isinstance(data, ClassMixture):
        raise ParameterError(f"data must be a ClassMixture, got {data!r}")
    if not data.inputs.white:
        raise ParameterError(f"inputs must be Isotropic for a threshold of separability, got {data.inputs!r}")
    eta = require_number("eta", eta, above=0, at_most=1, allowed="a number in (0, 1]")
    table = data.class_weights("training")[:, None] * data.confusion_of("training")
    seen = np.flatnonzero(table.sum(axis=0) > 0)
    component, label = np.nonzero(table > 0)
    numbers = np.searchsorted(seen, label)
    groups = tuple((int(g),) for g in seen)
    return _Problem(table[table > 0], component, numbers, np.array(data.gram), data.deltas / eta, groups), eta


def _for_student(found: ClassThreshold, eta: float) -> ClassThreshold:
    return replace(found, value=eta * found.value, error=eta * found.error)


# Complete separation.


def _complete(problem: _Problem) -> ClassThreshold:
    """Threshold of complete separation of the groups."""
    if problem.size < 2:
        return ClassThreshold(math.inf, 0.0, problem.groups)
    found = _regular(problem)
    return found if isinstance(found, ClassThreshold) else _in_two_steps(problem, found)


def _regular(problem: _Problem, coarse: bool = False) -> ClassThreshold | _Singular:
    """Threshold where Q is not singular; a ``coarse`` one has no reliable error."""
    if problem.size == 2:
        value, error = _of_two(problem)
    elif (signal := problem.alike) is not None:
        value, error = _of_alike(problem.size, signal)
    else:
        solution = _FixedPoint(problem).solve(coarse)
        if isinstance(solution, _Singular):
            return solution
        value, error = solution
    if not coarse and not error <= RESOLUTION * value:
        raise ArithmeticError(
            f"separability: the classes are too far apart for their tails to be resolved, the threshold is near {value:.3g}"
        )
    return ClassThreshold(value, error, problem.groups)


def _in_two_steps(problem: _Problem, found: _Singular) -> ClassThreshold:
    """Threshold where logits that differ between clusters are infinitely larger than those that differ inside of one.

    Both steps have to be possible: to separate the clusters from each other, and the samples of each cluster, which are a part of
    all.  Where they are, so is complete separation.
    """
    steps = [_complete(problem.merged(found.clusters))]
    for part in found.clusters:
        some, share = problem.of_labels(part)
        inside = _complete(some)
        steps.append(replace(inside, value=inside.value / share, error=inside.error / share))
    least = min(steps, key=lambda step: step.value)
    if found.value is None:
        return least
    error = max(least.error, abs(found.value - least.value))  # Q was nearly singular, and there it stopped
    if not error <= RESOLUTION * least.value:
        raise ArithmeticError(f"separability: no fixed point for weights {problem.share.tolist()}")
    return replace(least, error=error)


def _of_two(problem: _Problem) -> tuple[float, float]:
    """Two groups: ``1/alpha`` is the least ``sum (rho_c/Delta_c) E[(sqrt(Delta_c) tau z - s (u.gamma_c + beta))_+^2]``.

    u holds the components of the weights along the means, over their length across, ``tau^2 = 1 + |u|^2``, s the sign of the
    group, and gamma_c the means; see :class:`numerics.thresholds.SeparationProblem`.
    """
    values, vectors = np.linalg.eigh(problem.gram)
    real = values > ALIKE * max(values[-1], 0.0)
    means = (vectors * np.sqrt(np.where(real, values, 0.0)))[problem.component][:, real]
    signs = np.where(problem.label == 0, 1.0, -1.0)
    delta = problem.delta[problem.component]
    rows = np.column_stack((signs[:, None] * means, signs))
    logs = np.log(problem.share / delta)
    n = rows.shape[1]
    only_u = np.diag([1.0] * (n - 1) + [0.0])

    def log_average(place: Array) -> tuple[float, Array, Array]:
        square = 1.0 + float(place[:-1] @ place[:-1])
        moments = [log_hinge_moment(float(row @ place), noise * square) for row, noise in zip(rows, delta, strict=True)]
        terms = logs + np.array([moment[0] for moment in moments])
        value = float(special.logsumexp(terms))
        gradient, hessian = np.zeros(n), np.zeros((n, n))
        slope_of_square = only_u @ place * 2.0
        for share, row, noise, (_, f_m, f_d, f_mm, f_md, f_dd) in zip(
            np.exp(terms - value), rows, delta, moments, strict=True
        ):
            wide = noise * slope_of_square
            gradient += share * (f_m * row + f_d * wide)
            mixed = np.outer(row, wide)
            curved = f_mm * np.outer(row, row) + f_md * (mixed + mixed.T) + f_dd * np.outer(wide, wide)
            hessian += share * (curved + 2.0 * noise * f_d * only_u)
        return value, gradient, hessian

    start = np.append(signs @ means / len(signs), 0.0)
    starts = [start, np.zeros(n)]
    best = min(starts, key=lambda place: log_average(place)[0])
    signal = float(np.abs(means).max(initial=0.0)) / math.sqrt(float(delta.min()))
    where = f"groups {problem.groups}, delta/eta={problem.delta.tolist()}"
    log_value, _ = least_log_average(log_average, best, 10 * np.finfo(float).eps * signal**2, where)
    value = math.exp(-log_value) if -log_value < math.log(np.finfo(float).max) else math.inf
    return value, (MINIMUM_ERROR * value if math.isfinite(value) else 0.0)


def _of_alike(classes: int, signal: float) -> tuple[float, float]:
    """Classes that are all alike: ``max_m d (1 - m^2/signal) / E dist^2(m e_1 + g, cone)``."""

    def inverse(m: float, fineness: float = 1.0) -> float:
        return symmetric_distance(classes, m, fineness) / ((classes - 1) * (1 - m * m / signal if signal > 0 else 1.0))

    m = 0.0
    if signal > 0:
        bounds, accuracy = (0.0, math.sqrt(signal) * (1 - ALIKE)), {"xatol": 1e-7 * math.sqrt(signal)}
        m = float(optimize.minimize_scalar(inverse, bounds=bounds, method="bounded", options=accuracy).x)
    value, finer = 1 / inverse(m), 1 / inverse(m, 1.5)
    return finer, abs(finer - value) + ROUNDING * max(abs(finer), finer**2)


class _Singular(NamedTuple):
    """Groups that keep equal logits, on the scale of the others; the last alpha, if the iteration came to no end."""

    clusters: Groups
    value: float | None = None


class _FixedPoint:
    """Three groups or more: the stationary point, from the iteration that solves the saddle point of a loss.

    Order parameters are a, shape (d, K), b, shape (d,), and Cholesky factors of Q and of ``V = W^-1``; scales of Q and V are free.
    """

    def __init__(self, problem: _Problem) -> None:
        self.problem, self.d = problem, problem.size - 1
        self.basis = helmert(problem.size)
        self.normals = normals_of(self.basis)
        self.lower = np.tril_indices(self.d)
        self.classes = len(problem.delta)
        self.images = self._images()
        self.last, self.value = self._start(), math.nan

    def solve(self, coarse: bool) -> tuple[float, float] | _Singular:
        """Threshold and its error, or what is equal where Q becomes singular."""
        if self.d == 2:
            value = self._converge(Circle())
            if isinstance(value, _Singular):
                return value
            at_once, inside = self._step(self.last, Circle(2))[1:]
            error = abs(at_once - value) + abs(at_once - inside) + ROUNDING * max(value, value**2)
            return at_once, error
        spared = int(math.log2(len(self.images) / len({first for first, _ in self.images})))
        first = self._converge(Sphere(self.d, COARSE_POINTS + spared, 0))
        if coarse or isinstance(first, _Singular):
            return first if isinstance(first, _Singular) else (first, math.nan)
        found = []
        start = self.last
        for seed in range(1, SCRAMBLES + 1):
            self.last = start
            value = self._converge(Sphere(self.d, FINE_POINTS + spared, seed))
            if isinstance(value, _Singular):
                return value
            found.append(value)
        error = CONFIDENCE * float(np.std(found, ddof=1)) / math.sqrt(SCRAMBLES)
        return float(np.mean(found)), error

    def _images(self) -> list[tuple[int, Array]]:
        """For each pair of a class and a label one like it, whose averages are known, and the rotation that takes them here."""
        pairs = list(zip(self.problem.component.tolist(), self.problem.label.tolist(), strict=True))
        images = [(place, np.eye(self.d)) for place in range(len(pairs))]
        exchanges = _exchanges(self.problem)
        for first, pair in enumerate(pairs):
            if images[first][0] < first:
                continue
            reached = {pair: np.eye(self.d)}
            new = [pair]
            while new:
                here = new.pop()
                for moved in exchanges:
                    there = moved[here[0]], moved[here[1]]
                    if there not in reached:
                        turn = self.basis[:, list(moved)] @ self.basis.T
                        reached[there] = turn @ reached[here]
                        new.append(there)
            for place in range(first + 1, len(pairs)):
                if pairs[place] in reached:
                    images[place] = first, reached[pairs[place]]
        return images

    def _clusters(self) -> Groups:
        """Groups whose logits are equal on the scale of the others: cut at the largest gap between distances."""
        factor = self._unpack(self.last)[2]
        rows = self.basis.T @ factor
        apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
        levels = np.sort(np.array(self._merging_distances(apart)))
        gap = int(np.argmax(np.diff(np.log(np.maximum(levels, np.finfo(float).tiny)))))
        parts: list[set[int]] = []
        for g in range(self.problem.size):
            near = [part for part in parts if any(apart[g, k] <= levels[gap] * (1 + 1e-9) for k in part)]
            joined = {g}.union(*near)
            parts = [part for part in parts if part not in near] + [joined]
        return tuple(sorted(tuple(sorted(part)) for part in parts))

    @staticmethod
    def _merging_distances(apart: Array) -> list[float]:
        """At which distances nearest neighbours join, of single linkage: edges of the shortest tree."""
        inside, outside, found = [0], set(range(1, len(apart))), []
        while outside:
            distance, nearest = min((apart[i, j], j) for i in inside for j in outside)
            found.append(float(distance))
            inside.append(nearest)
            outside.remove(nearest)
        return found

    def _start(self) -> Array:
        p = self.problem
        a = np.zeros((self.d, self.classes))
        for share, c, g in zip(p.share, p.component, p.label, strict=True):
            a[:, c] += 0.3 * share / p.delta[c] * self.basis[:, g]
        return self._pack(a, np.zeros(self.d), np.eye(self.d) + a @ p.gram @ a.T, np.eye(self.d))

    def _converge(self, directions: Directions) -> float | _Singular:
        """Iterate from the last point; the threshold, or what is equal where Q becomes singular."""
        points: list[Array] = []
        moves: list[Array] = []
        x = self.last
        share, best = 1.0, math.inf
        for number in range(MAX_ITERATIONS):
            try:
                next_x, value, _ = self._step(x, directions)
            except np.linalg.LinAlgError:
                break
            move = next_x - x
            change = float(np.abs(move).max())
            if not math.isfinite(change):
                break
            self.last, self.value = x, value
            if change < TOLERANCE:
                self.last = next_x
                return value
            if self._condition(x) < SINGULAR:
                return _Singular(self._clusters())
            if number % PATIENCE == PATIENCE - 1:  # plain iterations may go round in circles
                share = 1.0 if change < 0.5 * best else 0.5
                best = min(best, change)
            points, moves = [*points, x][-MEMORY:], [*moves, move][-MEMORY:]
            x = x + share * move
            if (change < NEAR or number > FAR) and len(moves) > 1:
                differences = np.diff(moves, axis=0).T
                mixing = np.linalg.lstsq(differences, move, rcond=1e-12)[0]
                trial = next_x - (np.diff(points, axis=0).T + differences) @ mixing
                if np.all(np.isfinite(trial)) and np.abs(trial - next_x).max() < 1.0:
                    x = trial
        if self._condition(self.last) < SUSPECT:
            return _Singular(self._clusters(), self.value)
        raise ArithmeticError(f"separability: no fixed point for weights {self.problem.share.tolist()}")

    def _step(self, x: Array, directions: Directions) -> tuple[Array, float, float]:
        """New order parameters, and two values of alpha, which are equal at the fixed point: the ratio, and from the trace of W."""
        a, b, factor, root = self._unpack(x)
        p, d = self.problem, self.d
        response, inverse = root @ root.T, np.linalg.inv(factor)
        curvature, by_bias, forces = np.zeros((d, d)), np.zeros((d, d)), np.zeros((d, self.classes))
        square = np.zeros((d, d))
        known: dict[int, tuple[Array, Array, Array]] = {}
        for place, (share, c, g) in enumerate(zip(p.share, p.component, p.label, strict=True)):
            first, turn = self.images[place]
            if first == place:
                width = math.sqrt(p.delta[c])
                found = directions.forces(a @ p.gram[c] + b, width * factor, response, self.normals[g])
                bend = -found.with_field @ inverse / width
                known[place] = found.mean, 0.5 * (bend + bend.T), found.square
            mean, bend, force_square = known[first]
            turned = turn @ bend @ turn.T
            curvature += share * turned
            by_bias += share / p.delta[c] * turned
            forces[:, c] += share / p.delta[c] * (turn @ mean)
            square += share / p.delta[c] * (turn @ force_square @ turn.T)
        across = np.linalg.solve(root, factor), np.linalg.solve(root, a)
        ratio = (np.sum(across[0] ** 2) - np.trace(across[1] @ p.gram @ across[1].T)) / np.trace(response @ square)
        alpha = d / np.trace(response @ curvature)
        next_response = np.linalg.inv(alpha * curvature)
        next_a = alpha * next_response @ forces
        overlap = next_a @ p.gram @ next_a.T + alpha * next_response @ square @ next_response
        next_b = b + np.linalg.solve(by_bias, forces.sum(axis=1))
        size = math.sqrt(d / np.trace(overlap))
        response = next_response * (d / np.trace(next_response))
        return self._pack(next_a * size, next_b * size, overlap * size**2, response), float(ratio), float(alpha)

    def _condition(self, x: Array) -> float:
        """Of Q or W, whichever is nearer to a singular matrix."""
        values = np.linalg.svd(np.array(self._unpack(x)[2:]), compute_uv=False)
        return float((values[:, -1] / values[:, 0]).min() ** 2)

    def _pack(self, a: Array, b: Array, overlap: Array, response: Array) -> Array:
        roots = [np.linalg.cholesky(0.5 * (matrix + matrix.T))[self.lower] for matrix in (overlap, response)]
        return np.concatenate((a.ravel(), b, *roots))

    def _unpack(self, x: Array) -> tuple[Array, Array, Array, Array]:
        d, size = self.d, len(self.lower[0])
        a, b, *roots = np.split(x, np.cumsum([d * self.classes, d, size]))
        factors = np.zeros((2, d, d))
        for matrix, values in zip(factors, roots, strict=True):
            matrix[self.lower] = values
        return a.reshape(d, self.classes), b, factors[0], factors[1]


# Groupings.


def _largest_of_groupings(problem: _Problem) -> ClassThreshold:
    """The largest threshold of complete separation over groupings.

    One whose Q is singular is not above the grouping of its clusters, so that it need not be looked at further.
    """
    if problem.size < 2:
        return ClassThreshold(math.inf, 0.0, problem.groups)
    if problem.alike is not None:
        return _complete(problem)
    choices = list(islice(_groupings(problem), MAX_GROUPINGS + 1))
    if len(choices) > MAX_GROUPINGS:
        raise ParameterError(
            f"weights, gram and delta must leave at most {MAX_GROUPINGS} groupings of the {problem.size} classes to try: "
            "of many classes, most have to be alike"
        )
    found: list[tuple[float, _Problem]] = []
    for parts in choices:
        merged = problem.merged(parts)
        value = _regular(merged, coarse=True)
        if isinstance(value, ClassThreshold):
            found.append((value.value, merged))
    top = max(value for value, _ in found)
    if math.isinf(top):
        return ClassThreshold(math.inf, 0.0, next(merged.groups for value, merged in found if math.isinf(value)))
    finest = [_regular(merged) for value, merged in found if value >= (1 - CLEARLY_LESS) * top]
    return max((value for value in finest if isinstance(value, ClassThreshold)), key=lambda value: value.value)


def _groupings(problem: _Problem) -> Iterator[Groups]:
    """Groupings, in two groups or more, that no exchange of classes that are alike changes; see `maximum_likelihood_threshold`."""
    exchanges = _exchanges(problem)
    for parts in _partitions(problem.size):
        if len(parts) < 2:
            continue
        sets = {frozenset(part) for part in parts}
        if all({frozenset(exchange[g] for g in part) for part in parts} == sets for exchange in exchanges):
            yield parts


def _partitions(size: int) -> Iterator[Groups]:
    """All partitions of 0, .., size-1, those in few groups not first."""
    if size == 0:
        yield ()
        return
    for parts in _partitions(size - 1):
        for k, part in enumerate(parts):
            yield (*parts[:k], (*part, size - 1), *parts[k + 1 :])
        yield (*parts, (size - 1,))


def _exchanges(problem: _Problem) -> list[tuple[int, ...]]:
    """Permutations of the classes that leave the problem as it is: all swaps of two, and of two pairs."""
    k = len(problem.delta)
    table = np.zeros((k, problem.size))
    table[problem.component, problem.label] = problem.share
    names = [group[0] for group in problem.groups]
    if names != list(range(k)):
        return []
    found = []
    identity = list(range(k))
    swaps = list(combinations(range(k), 2))
    pairs = [(one, other) for one, other in combinations(swaps, 2) if not set(one) & set(other)]
    for choice in [*((swap,) for swap in swaps), *pairs]:
        moved = identity.copy()
        for i, j in choice:
            moved[i], moved[j] = j, i
        same = all(
            np.abs(values - values[np.ix_(moved, moved)]).max() <= ALIKE * max(1.0, np.abs(values).max())
            for values in (problem.gram, table, np.diag(problem.delta))
        )
        if same:
            found.append(tuple(moved))
    return found
