"""What compiled code and Python hand to each other: named tuples, one class for both, and where what is in a vector.

Unknowns of a stage with k earlier ones, in this order: ``m, b, C_1..C_k, ln q_perp, V_1..V_k, ln V``, where the row
``(C_1..C_k, sqrt(q_perp))`` of the Cholesky factor gives the overlaps.  Conjugates: ``mh, Qh_t1..Qh_tt, Vh_t1..Vh_tt``, then
alpha E[f].  Updated order parameters: ``m, Q_t1..Q_tt, V_t1..V_tt``.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import types

from numerics.codegen.cache import njit
from numerics.codegen.room import (
    INTEGER_PART,
    INTEGER_PART_MATRIX,
    PART,
    PART_CUBE,
    PART_MATRIX,
    integer_part,
    part,
    part_matrix,
)
from numerics.scalar.kernels.elementary import (
    ALONG_FUNCTION,
    LEAF,
    OPTIONS,
    POINT_FUNCTION,
    VECTOR_FUNCTION,
    FloatArray,
    IntArray,
    IntMatrix,
    Matrix,
    Pointer,
)
from numerics.settings import Settings

Cube = types.float64[:, :, ::1]
IntCube = types.int64[:, :, ::1]
Hypercube = types.float64[:, :, :, ::1]


def record(cls: type, *members: types.Type) -> types.Type:
    """Type that numba gives to a named tuple."""
    return types.BaseTuple.from_types(members, cls)


# Vectors.


class Places(NamedTuple):
    """Where the unknowns of a stage are; ``couplings`` and ``responses`` begin k entries each."""

    m: int
    b: int
    couplings: int
    norm: int
    responses: int
    response: int


@njit(record(Places, *[types.int64] * 6)(types.int64), **OPTIONS)
def places(k):
    """With k earlier stages."""
    return Places(0, 1, 2, 2 + k, 3 + k, 3 + 2 * k)


class OrderParameters(NamedTuple):
    """``m, b, C_1..C_k, C, V_1..V_k, V`` of a stage."""

    m: float
    b: float
    couplings: np.ndarray
    norm: float
    responses: np.ndarray
    response: float


ORDER_PARAMETERS = record(
    OrderParameters, types.float64, types.float64, FloatArray, types.float64, FloatArray, types.float64
)


@njit(ORDER_PARAMETERS(FloatArray), **OPTIONS)
def unpack(x):
    """Order parameters from the unknowns."""
    k = (x.size - 4) // 2
    return OrderParameters(
        x[0], x[1], x[2 : 2 + k], math.exp(0.5 * x[2 + k]), x[3 + k : 3 + 2 * k], math.exp(x[3 + 2 * k])
    )


@njit(
    record(OrderParameters, types.float64, types.float64, PART, types.float64, PART, types.float64)(FloatArray), **LEAF
)
def unpacked(x):
    """The same for compiled code, as parts of ``x``."""
    k = (x.size - 4) // 2
    return OrderParameters(
        x[0], x[1], part(x, 2, k), math.exp(0.5 * x[2 + k]), part(x, 3 + k, k), math.exp(x[3 + 2 * k])
    )


@njit(types.float64(ORDER_PARAMETERS), **LEAF)
def norm_squared(order):
    """Q_tt."""
    q = 0.0
    for coupling in order.couplings:
        q += coupling**2
    return q + order.norm**2


@njit(types.UniTuple(types.int64, 2)(types.int64), **OPTIONS)
def updated_places(k):
    """Where ``Q_t1..`` and ``V_t1..`` begin in updated order parameters."""
    return 1, 2 + k


# Arrays that live together.


class Room(NamedTuple):
    """An array that is cut into parts, and how much of it is used, in an array of one integer."""

    numbers: np.ndarray
    used: np.ndarray


ROOM = record(Room, PART, INTEGER_PART)
_CUT = {**LEAF, "plain": False}  # numba has plain functions return no array but one that they are given


@njit(ROOM(FloatArray, FloatArray), **LEAF)
def new_room(numbers, place):
    """All of an array, whose owner keeps it; ``place`` is for one number."""
    used = integer_part(place, 0, 1)
    used[0] = 0
    return Room(part(numbers, 0, numbers.size), used)


@njit(PART(ROOM, types.int64), **_CUT)
def cut(room, size):
    """The next ``size`` numbers."""
    first = room.used[0]
    room.used[0] = first + size
    return part(room.numbers, first, size)


@njit(PART(ROOM, types.int64), **_CUT)
def cut_zeros(room, size):
    """The same, all 0."""
    found = cut(room, size)
    for i in range(size):
        found[i] = 0.0
    return found


@njit(PART_MATRIX(FloatArray, types.int64), **_CUT)
def as_matrix(numbers, rows):
    """A vector as a matrix of so many rows."""
    return part_matrix(numbers, 0, rows, numbers.size // rows)


@njit(INTEGER_PART(FloatArray), **_CUT)
def as_integers(numbers):
    """Its place, for integers."""
    return integer_part(numbers, 0, numbers.size)


# Losses and equations.


class Loss(NamedTuple):
    """A loss with its parameters.

    Attributes
    ----------
    along : function ``(n, y, logits, parameters, h, low, high, curvature, third)``
    slopes, targets, bends : functions ``(h, y, logits, parameters, out)``
        See :mod:`numerics.codegen.losses`.
    n_bends, kind : int
        Bends that ``bends`` gives; the sum of SHARED and SEARCHED, as they apply.
    constraint : int
        ``TRAINED``, or which constraint takes the place of the loss; see :mod:`numerics.scalar.kernels.constrained`.
    parameters : array
    """

    along: object
    slopes: object
    targets: object
    bends: object
    n_bends: int
    kind: int
    constraint: int
    parameters: np.ndarray


_LOSS = ALONG_FUNCTION, *[POINT_FUNCTION] * 3, *[types.int64] * 3
LOSS = record(Loss, *_LOSS, PART)


class Equations(NamedTuple):
    """Functions ``(inputs, constants, out)`` of a stage; see :mod:`numerics.codegen.equations`."""

    conjugates: object
    conjugates_jacobian: object
    prior: object
    prior_jacobian: object
    cholesky: object
    cholesky_jacobian: object
    moments: object


EQUATIONS = record(Equations, *[VECTOR_FUNCTION] * len(Equations._fields))


class Stage(NamedTuple):
    """A stage, whatever its numbers: its loss without parameters, its equations, and the columns of the logits it looks at."""

    loss: Loss
    equations: Equations
    seen: np.ndarray


STAGE = record(Stage, record(Loss, *_LOSS, FloatArray), EQUATIONS, IntArray)
Stages = types.ListType(STAGE)


# Samples.


class Nodes(NamedTuple):
    """Weighted nodes of the law of label, fields, forces and logits; on training samples a data set's weights add up to its alpha.

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
    member: np.ndarray = np.empty(0, dtype=np.int64)
    row: np.ndarray = np.empty(0, dtype=np.int64)

    @property
    def stages(self) -> int:
        return self.logits.shape[1]

    @property
    def forces(self) -> np.ndarray:
        """``f_1..f_k``, shape (n, k)."""
        return self.statistics[:, 2 + self.stages :]

    def clean_signs(self, ruled: bool) -> np.ndarray:
        """Sign of the class of each node; where a rule gives labels, +1: the label is the one that it gives."""
        return np.ones(self.labels.size) if ruled else self.statistics[:, 0]

    def label_signs(self, ruled: bool, *, clean: bool = False) -> np.ndarray:
        """Sign of the label of each node as training sees it, or before noise flipped it (``clean``)."""
        signs = self.clean_signs(ruled) if clean else 2.0 * self.labels - 1.0
        return signs * np.where(self.logits[:, 0] > 0.0, 1.0, -1.0) if ruled else signs

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

    def trained(self, data: object, sets: Sequence[str]) -> np.ndarray:
        """Which nodes are of these data sets, shape (n,); all where there is only one."""
        if len(data.sets) == 1:
            return np.ones(self.weight.size, dtype=bool)
        names = [found.name for found in data.sets]
        return np.isin(self.member, [names.index(name) for name in sets])

    def of(self, data: object, sets: Sequence[str]) -> Nodes:
        """The nodes of some data sets; these nodes if that is all of them, or if there are no such."""
        wanted = self.trained(data, sets)
        if wanted.all() or not wanted.any():
            return self
        return self.rows(wanted)

    def rows(self, indices: np.ndarray) -> Nodes:
        """The nodes at ``indices``, integer or boolean."""
        return Nodes(*(values[indices] for values in self))

    @staticmethod
    def joined(parts: Sequence[Nodes]) -> Nodes:
        """One after the other; the only one itself."""
        if len(parts) == 1:
            return parts[0]
        return Nodes(*map(np.concatenate, zip(*parts, strict=True)))


NODES = record(Nodes, FloatArray, Matrix, FloatArray, Matrix, IntArray, IntArray)


class Field(NamedTuple):
    """Law of a stage's field given a node: its mean, linear in the statistics, its width; and the reaction of its force on it.

    The training logit h solves ``h + gamma S(h) = mean + gamma c + sigma g``.
    """

    coefficients: np.ndarray
    sigma: float
    gamma: float


FIELD = record(Field, FloatArray, types.float64, types.float64)


class Samples(NamedTuple):
    """What a grid of points is made for: a Gaussian in ``P = h + gamma S(h)`` for each node.

    Attributes
    ----------
    labels : array, shape (n,);  logits : array, shape (n, l)
        Label and the earlier logits that the loss looks at.
    target, branch, offset : arrays, shape (n,)
        c measured from the nearer limit of S, which limit that is, and, on branch 1, the distance of the two.
    centre, reach : arrays, shape (n,)
        Of the Gaussian in P, and how many widths of it count (0: the node is dropped).
    start, stop : integer arrays, shape (n,)
        Node i owns the points ``start[i] <= j < stop[i]``.
    order : integer array, shape (n,)
        A permutation, by the place on a shared grid.
    room : array
        That the others are parts of, but for the first two.
    """

    labels: np.ndarray
    logits: np.ndarray
    target: np.ndarray
    branch: np.ndarray
    offset: np.ndarray
    centre: np.ndarray
    reach: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    order: np.ndarray
    room: np.ndarray


ROOM_OF_SAMPLES = 8
"""Numbers for each node that the parts of ``room`` take."""

SAMPLES = record(Samples, FloatArray, Matrix, PART, INTEGER_PART, *[PART] * 3, *[INTEGER_PART] * 3, FloatArray)


class Node(NamedTuple):
    """What is summed over the points of one node: those from ``first`` to ``last``, P and S in rows ``row`` and ``row + 1``."""

    centre: float
    target: float
    first: int
    last: int
    row: int


class Sample(NamedTuple):
    """The loss at one node."""

    along: object
    slopes: object
    label: float
    logits: object
    parameters: object
    branch: int


SAMPLE = record(Sample, ALONG_FUNCTION, POINT_FUNCTION, types.float64, Pointer, Pointer, types.int64)


class Sharpness(NamedTuple):
    """How steeply later stages depend on one; the largest of them counts.

    Attributes
    ----------
    direction : float
        How much of this stage's g moves their fields by the width that g's after it give them.
    pull : float
        V over C, and in a rule times the root of Delta: by how many widths of its field a unit of a target moves it.
    """

    direction: float
    pull: float


SHARPNESS = record(Sharpness, types.float64, types.float64)


class Rule(NamedTuple):
    """How a grid is laid.

    Attributes
    ----------
    step, tolerance : float
        Step in t, and how well a point must be placed there before its last correction.
    sharing : bool
        Whether nodes may share points, if the loss allows it, and bends be searched for.  Where fields are narrow neither is any
        use: every node gets the points of a Gauss rule.
    outer : bool
        Whether a later stage integrates over this grid: its integrand has a scale of its own.
    sharpness : Sharpness
        Of the later stages' dependence on this one, if ``outer``.
    extra : array, shape (e, 2)
        Further (``POSITION``, ``SCALE``) of bends in h to resolve.
    kept : array
        Room for a grid that is used again; see :mod:`numerics.scalar.kernels.kept`.  None: empty.
    """

    step: float
    tolerance: float
    sharing: bool
    outer: bool
    sharpness: Sharpness
    extra: np.ndarray
    kept: np.ndarray


RULE = record(Rule, types.float64, types.float64, types.boolean, types.boolean, SHARPNESS, PART_MATRIX, PART)

POSITION, SCALE = 0, 1
"""Columns of ``extra``."""

JUMP_SCALE = 1e-8
"""A bend this narrow is a jump."""


class Table(NamedTuple):
    """Points in h (rows as in :mod:`numerics.scalar.kernels.proximal`) and how many columns are used."""

    points: np.ndarray
    used: int


TABLE = record(Table, Matrix, types.int64)


# Weights.


class Tables(NamedTuple):
    """What stages see that have no common basis, each in the eigenbasis of its own; see :mod:`numerics.scalar.kernels.dense`.

    Attributes
    ----------
    share : float
        1/N; 0 where coordinates come in groups, and there are no tables.
    noise : float
        Variance that a rule adds to its field.
    covariances : list of T T matrices
        Omega_ts over Delta, s < t, at ``t T + s``; the eigenvalues of Omega_tt, in one row.
    means : list of T matrices
        M_t: the class mean is ``M_t u`` for a direction u with ``E[u u^T] = 1``, one number where v is given; a diagonal one is
        written in one row.  Of a rule theta takes the place of the first, and there are no others.
    """

    share: float
    noise: float
    covariances: object
    means: object


Matrices = types.ListType(Matrix)
TABLES = record(Tables, types.float64, types.float64, Matrices, Matrices)


class Groups(NamedTuple):
    """Groups of coordinates on which the stages see alike inputs; those of many points with a leading axis.

    Attributes
    ----------
    share : array, shape (groups,)
        Coordinates of a group over N.
    rows : integer array, shape (groups, T)
        Which row of the constants of the prior of a stage a group belongs to; -1 where the stage trains no weight.  Groups that
        differ in earlier stages alone share one.
    means : array, shape (groups, T)
        c_t: the class mean is ``c_t v`` in the inputs of stage t, ``E[v^2] = 1``.
    covariances : array, shape (groups, T, T)
        Omega_ts of their inputs given the class, over Delta.
    signals : array, shape (groups,)
        Mean square of given weights, relative to that of the stage: of a rule.
    tables : Tables
        Instead of groups, where there are no coordinates common to all stages; the same at all points.
    """

    share: np.ndarray
    rows: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    signals: np.ndarray
    tables: Tables


GROUPS = record(Groups, FloatArray, IntMatrix, Matrix, Cube, FloatArray, TABLES)


class Moments(NamedTuple):
    """Moments of the stages solved so far, in every group of coordinates.

    Attributes
    ----------
    groups
    mu, covariance, propagator : arrays, shapes (groups, T), (groups, T, T) twice
        ``E[w_s v]``, ``E[w_s w_r]``, ``E[dw_s/dxi_k]``.
    kept : list of T (T + 1) + 1 matrices
        Where there are tables instead of groups: G_s1..G_sT, H_s of each stage, and Qh; see :mod:`numerics.scalar.kernels.dense`.
    """

    groups: Groups
    mu: np.ndarray
    covariance: np.ndarray
    propagator: np.ndarray
    kept: object


MOMENTS = record(Moments, GROUPS, Matrix, Cube, Cube, Matrices)

ETA, RIDGE, MEAN, COVARIANCES = range(4)
"""First entries of a row of the constants of the prior: share, ridge, c_t, Omega_t1..Omega_tt; then mu, and two lower triangles."""


# The problem of one stage.


class Problem(NamedTuple):
    """A stage given the earlier ones.

    Attributes
    ----------
    nodes, logits
        On the samples it is trained on; those of their logits that the loss looks at.
    prior : array, shape (rows, constants)
        Constants of the prior: shares, ridge, inputs, moments of the earlier stages' weights.  Its rows add up.
    triangle : array, shape (k (k + 1)/2,)
        Cholesky factor of the earlier stages, row by row.
    responses : array, shape (k,)
        Their ``V_ss``.
    delta, fixed_bias : float
        Noise; value of the bias, NaN if it is learned.
    """

    loss: Loss
    equations: Equations
    nodes: Nodes
    logits: np.ndarray
    prior: np.ndarray
    triangle: np.ndarray
    responses: np.ndarray
    delta: float
    fixed_bias: float


PROBLEM = record(Problem, LOSS, EQUATIONS, NODES, Matrix, Matrix, PART, PART, types.float64, types.float64)


class Accuracy(NamedTuple):
    """How well a stage is solved: trapezoid step, tail cut off, Newton's tolerance and iterations, whether points may be shared.

    ``foreseeing``: whether Newton's method may end before a step that is known to be small; later stages amplify what that leaves.
    ``kept`` is that of :class:`Rule`.
    """

    step: float
    tail: float
    tolerance: float
    max_iterations: int
    sharing: bool
    foreseeing: bool
    kept: np.ndarray


ACCURACY = record(
    Accuracy, types.float64, types.float64, types.float64, types.int64, types.boolean, types.boolean, PART
)


# Whole chains.

TRAINED, GIVEN, VANISHING, MINIMUM_NORM, MAX_MARGIN = range(5)
"""Kinds of a stage.  Weights vanish where every sample's force does: see :mod:`numerics.scalar.constant_targets`.  The last two
hold samples to a constraint, with the least weights: see :mod:`numerics.scalar.kernels.constrained`."""


NO_RIDGE = 1e-200
"""What stands for a ridge of 0 in the equations of an ordinary stage: it vanishes beside any response, and has a logarithm."""


class Data(NamedTuple):
    """Parameters of the samples, those of many points with a leading axis.

    Attributes
    ----------
    rho, delta : float
        Share of positive labels; noise.
    slope, disagreement : float
        Of the link of a rule, infinite where there is none, and how often its labels are not the sign of the rule's logit.
    alpha, label_noise : arrays, shape (d,)
        Of each data set.
    weights, signs, labels : arrays, shape (c,)
        Of each class.
    """

    rho: float
    delta: float
    slope: float
    disagreement: float
    alpha: np.ndarray
    label_noise: np.ndarray
    weights: np.ndarray
    signs: np.ndarray
    labels: np.ndarray


DATA = record(Data, *[types.float64] * 4, *[FloatArray] * 5)


class Training(NamedTuple):
    """Parameters of the stages, shape (T, ...), or (points, T, ...) for many points.

    Attributes
    ----------
    kind : integer array
        ``TRAINED`` or one of the other kinds.
    fixed_bias, magnetization, norm_squared, mean_square
        Bias (NaN: learned), m and Q of given weights, and the mean square of one of them.
    ridge, mixing, parameters
        Ridge, ``NO_RIDGE`` for 0, and 1 with a constraint; ``mixing`` is the share of the teacher in a target, 1 unless the loss
        has a parameter of this name; others in a last axis.
    bends, n_bends
        (``POSITION``, ``SCALE``) of what later targets do as functions of the stage's logit, of which the first so many count.
    """

    kind: np.ndarray
    fixed_bias: np.ndarray
    magnetization: np.ndarray
    norm_squared: np.ndarray
    mean_square: np.ndarray
    ridge: np.ndarray
    mixing: np.ndarray
    parameters: np.ndarray
    bends: np.ndarray
    n_bends: np.ndarray


class Point(NamedTuple):
    """All parameters of a chain at one point, or at many."""

    data: Data
    training: Training
    groups: Groups


POINT = record(
    Point,
    record(Data, *[types.float64] * 4, *[PART] * 5),
    record(Training, INTEGER_PART, *[PART] * 6, PART_MATRIX, PART_CUBE, INTEGER_PART),
    record(Groups, PART, INTEGER_PART_MATRIX, PART_MATRIX, PART_CUBE, PART, TABLES),
)
POINTS = record(
    Point,
    record(Data, *[FloatArray] * 4, *[Matrix] * 5),
    record(Training, IntMatrix, *[Matrix] * 6, Cube, Hypercube, IntMatrix),
    record(Groups, Matrix, IntCube, Cube, Hypercube, Matrix, TABLES),
)


class Structure(NamedTuple):
    """What all points have in common.

    Attributes
    ----------
    stages : list of Stage
    trained : integer array, shape (T, d)
        1 where a stage is trained on a data set.
    directions : array, shape (r, T)
        Fixed points of (g_1, g_2, ...); none where nodes are a tensor product.
    first_rows : int
        How many of them to begin with.  All: the averages are exact.
    """

    stages: object
    trained: np.ndarray
    directions: np.ndarray
    first_rows: int


STRUCTURE = record(Structure, Stages, IntMatrix, Matrix, types.int64)


class Level(NamedTuple):
    """One level of quadrature.

    Attributes
    ----------
    number, rows : int
        0 is the first level.  Fixed directions; 0: nodes are a tensor product that grows with each stage.
    factor, tail, tolerance : float
        On all steps; what is cut off; of Newton's method.
    check : bool
        Whether to take one Newton step only from another level's solution: all that an error estimate needs.
    """

    number: int
    rows: int
    factor: float
    tail: float
    tolerance: float
    check: bool


LEVEL = record(Level, types.int64, types.int64, types.float64, types.float64, types.float64, types.boolean)


class States(NamedTuple):
    """Stages of a chain as they are solved, shape (T, ...), or (points, T, ...).

    Attributes
    ----------
    unknowns : width 2T + 2
        Starting points where ``started`` is 1; the solution afterwards.
    conjugates, updates : width 2T + 2
        Conjugates and alpha E[f]; order parameters after one plain iteration.
    status, iterations, residual, last_step, defect
        As in :class:`numerics.driver.outcome.Outcome`.
    """

    unknowns: np.ndarray
    started: np.ndarray
    conjugates: np.ndarray
    updates: np.ndarray
    status: np.ndarray
    iterations: np.ndarray
    residual: np.ndarray
    last_step: np.ndarray
    defect: np.ndarray


STATES = record(
    States, PART_MATRIX, INTEGER_PART, PART_MATRIX, PART_MATRIX, INTEGER_PART, INTEGER_PART, PART, PART, PART
)  # fmt: skip
ALL_STATES = record(States, Cube, IntMatrix, Cube, Cube, IntMatrix, IntMatrix, Matrix, Matrix, Matrix)


class Summary(NamedTuple):
    """Of every point: stages that converged, last quadrature level, estimated quadrature error; shape (points,) each."""

    solved: np.ndarray
    level: np.ndarray
    error: np.ndarray


SUMMARY = record(Summary, IntArray, IntArray, FloatArray)


# Settings.

_COMPILED = [entry for entry in fields(Settings) if entry.type in ("int", "float", int, float)]
CompiledSettings = namedtuple("CompiledSettings", [entry.name for entry in _COMPILED])
"""The numbers of :class:`numerics.settings.Settings`."""

SETTINGS = record(
    CompiledSettings,
    *(types.int64 if entry.type in ("int", int) else types.float64 for entry in _COMPILED),
)


@lru_cache(maxsize=64)
def compiled_settings(settings: Settings) -> CompiledSettings:
    """Settings as compiled code takes them."""
    return CompiledSettings(
        *(int(getattr(settings, entry.name)) if entry.type in ("int", int) else float(getattr(settings, entry.name))
          for entry in _COMPILED)
    )  # fmt: skip
