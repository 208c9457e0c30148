"""The replica step: from the replicated action to the potential of a stage.

A stage is the zero-temperature limit of weights drawn with probability exp(-beta * training objective).
Its mean log-partition function is d/dn of the replicated partition function at n = 0.  The earlier stages,
which appear in the objective, are drawn from their own Gibbs measures, each normalised by n_s - 1 further
replicas, n_s -> 0 (n~ for the teacher).  The selected replica of stage s (the one a later stage looks at)
is treated apart from the others.

Everything is Gaussian in the weights, and in the logits if the losses are quadratic.  The replica-symmetric
matrices that appear are kept as ``ReplicaMatrix`` for symbolic numbers of replicas; limits are taken on
them.  The scaling is

    q_aa - q_ab = V/beta,     mh_a = beta mh,     qh_ab = beta^2 Qh,     qh_aa = beta^2 Qh - beta Vh,
    S_selected - S_others = V_ts/beta_s,     Sh_others = beta beta_s Qh_ts,     Sh_selected = Sh_others -
    beta Vh_ts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sympy import (
    Add,
    Eq,
    Expr,
    Function,
    Integer,
    Integral,
    Matrix,
    Poly,
    S,
    Symbol,
    cancel,
    diff,
    exp,
    fraction,
    limit,
    log,
    oo,
    pi,
    sqrt,
    symbols,
    sympify,
)
from sympy.polys.matrices import DomainMatrix

from theory.potential import (
    GaussianRidgePrior,
    QuadraticPrior,
    weight,
)
from theory.symbols import (
    bias,
    delta,
    eta,
    field,
    indexed,
    magnetization,
    magnetization_hat,
    overlap,
    overlap_hat,
    response,
    response_hat,
    sign,
)

n = Symbol("n", real=True)
"""Number of replicas of the stage that is solved."""

beta = Symbol("beta", positive=True)
"""Its inverse temperature."""


def replicas(s: int) -> Symbol:
    """n_s, number of replicas of an earlier stage, the selected one included."""
    return indexed("n", s)


def inverse_temperature(s: int) -> Symbol:
    """beta_s of an earlier stage."""
    return indexed("beta", s, positive=True)


def stage_ridge(s: int) -> Symbol:
    """lambda_s, ridge of an earlier stage."""
    return indexed("lambda", s, positive=True)


@dataclass(frozen=True)
class ReplicaMatrix:
    """A symmetric matrix that only knows which class of replicas its indices belong to.

    Attributes
    ----------
    sizes
        Number of replicas in each class; may be symbolic.
    diagonal
        Diagonal element of each class.
    between
        Symmetric square Matrix: element between different replicas of classes i and j.
    """

    sizes: tuple[Expr, ...]
    diagonal: tuple[Expr, ...]
    between: Matrix

    def transverse(self, i: int) -> Expr:
        """Eigenvalue of differences of two replicas of class i."""
        return self.diagonal[i] - self.between[i, i]

    def quotient(self) -> Matrix:
        """Action on vectors constant in each class; products of matrices go to products of quotients."""
        size = len(self.sizes)
        return Matrix(
            size,
            size,
            lambda i, j: self.sizes[j] * self.between[i, j] + (self.transverse(i) if i == j else 0),
        )

    def dense(self) -> Matrix:
        """The matrix itself; the sizes must be integers."""
        owner = [i for i, size in enumerate(self.sizes) for _ in range(int(size))]
        return Matrix(
            len(owner),
            len(owner),
            lambda a, b: self.diagonal[owner[a]] if a == b else self.between[owner[a], owner[b]],
        )

    def determinant(self) -> Expr:
        """det = prod_i transverse_i^(size_i - 1) * det(quotient), for any sizes."""
        result = self.quotient().det(method="berkowitz")
        for i, size in enumerate(self.sizes):
            if size != 1:
                result *= self.transverse(i) ** (size - 1)
        return result

    def at(self, values: dict[Symbol, Expr]) -> ReplicaMatrix:
        """With symbols replaced."""
        return ReplicaMatrix(
            tuple(sympify(size).subs(values) for size in self.sizes),
            tuple(sympify(element).subs(values) for element in self.diagonal),
            self.between.subs(values),
        )


def log_determinant_slope(matrix: ReplicaMatrix, number: Symbol, vanishing: Sequence[Symbol]) -> tuple[Expr, Expr]:
    """d/d(number) of log det at number = 0, with the numbers in ``vanishing`` set to 0.

    Returns (r, e): the slope is r + log(e), with e the transverse eigenvalue of the class of size ``number``.
    """
    (i,) = [i for i, size in enumerate(matrix.sizes) if size == number]
    zero = dict.fromkeys(vanishing, Integer(0))
    transverse = matrix.transverse(i)
    quotient = matrix.quotient().subs(zero)
    start, slope = quotient.subs(number, 0), diff(quotient, number).subs(number, 0)
    # There are number - 1 transverse eigenvalues: at number = 0 the slope of their logarithm counts -1.
    rational = cancel(_trace_of_ratio(start, slope)) - cancel(diff(transverse, number) / transverse)
    return rational, transverse


def _trace_of_ratio(denominator: Matrix, numerator: Matrix) -> Expr:
    left = DomainMatrix.from_Matrix(denominator).to_field()
    inverse = left.inv().to_Matrix()
    return (inverse * numerator).trace()


def zero_temperature(expression: Expr, inverse: Symbol) -> Expr:
    """Limit of a rational function for inverse temperature -> infinity; ValueError if it diverges."""
    numerator, denominator = fraction(cancel(expression))
    top, bottom = Poly(numerator, inverse), Poly(denominator, inverse)
    if top.is_zero or top.degree() < bottom.degree():
        return Integer(0)
    if top.degree() > bottom.degree():
        raise ValueError(f"diverges for {inverse} -> infinity: {expression}")
    return cancel(top.LC() / bottom.LC())


# The weights.


def entropic_action(t: int, prior: QuadraticPrior = GaussianRidgePrior) -> ReplicaMatrix:
    """Minus the second derivatives of the replicated action of one coordinate, n and n_s symbolic.

    Classes: the coordinate v of the class mean, then for each earlier stage its selected replica and its
    other n_s - 1, then the n replicas of stage t.  The earlier stages have ridge lambda_s; ``prior`` is
    that of stage t.
    """
    sizes: list[Expr] = [Integer(1)]
    for s in range(1, t):
        sizes += [Integer(1), replicas(s) - 1]
    sizes.append(n)
    size = len(sizes)
    between = Matrix.zeros(size, size)
    diagonal: list[Expr] = [Integer(1)] + [Integer(0)] * (size - 1)

    def positions(s: int) -> list[int]:
        return [size - 1] if s == t else [2 * s - 1, 2 * s]

    def temperature(s: int) -> Symbol:
        return beta if s == t else inverse_temperature(s)

    def connect(i: int, j: int, element: Expr) -> None:
        between[i, j] += element
        if i != j:
            between[j, i] += element

    w, earlier = weight(t), tuple(weight(s) for s in range(1, t))
    energy = sympify(prior.energy(w, earlier))
    for s in range(1, t + 1):
        own = diff(energy, w, 2) if s == t else stage_ridge(s)
        stiffness = temperature(s) * (own + response_hat(s, s))
        for i in positions(s):
            connect(0, i, -temperature(s) * magnetization_hat(s))
            diagonal[i] = stiffness - temperature(s) ** 2 * overlap_hat(s, s)
            for j in positions(s):
                if i <= j:
                    connect(i, j, -(temperature(s) ** 2) * overlap_hat(s, s))
            for r in range(1, s):
                selected, others = positions(r)
                mixed = -temperature(s) * temperature(r) * overlap_hat(s, r)
                pull = diff(energy, w, weight(r)) if s == t else Integer(0)
                connect(i, selected, mixed + temperature(s) * (response_hat(s, r) + pull))
                connect(i, others, mixed)
    # Terms of the energy without w_t act once per replica of stage t on the selected earlier replicas.
    for s in range(1, t):
        for r in range(1, s + 1):
            element = n * beta * diff(energy, weight(s), weight(r))
            if s == r:
                diagonal[positions(s)[0]] += element
            connect(positions(s)[0], positions(r)[0], element)
    return ReplicaMatrix(tuple(sizes), tuple(diagonal), between)


@dataclass(frozen=True)
class EntropicLimit:
    """The entropic part at each step: n -> 0 at finite temperatures, and its zero-temperature limit."""

    action: ReplicaMatrix
    finite_temperature: Expr
    zero_temperature: Expr


@lru_cache(maxsize=8)
def entropic_limit(t: int, prior: QuadraticPrior = GaussianRidgePrior) -> EntropicLimit:
    """Psi_w of stage t from its replicated action, in terms of the conjugates of stages 1..t and the ridges.

    eta/beta d/dn [-(1/2) log det] at n = 0 and n_s = 0, then beta_s -> infinity, then beta -> infinity.
    """
    return limit_of_action(entropic_action(t, prior), t)


def limit_of_action(action: ReplicaMatrix, t: int) -> EntropicLimit:
    """The limits of ``entropic_limit`` for an action that may have numbers in place of conjugates."""
    numbers = [replicas(s) for s in range(1, t)]
    rational, eigenvalue = log_determinant_slope(action, n, numbers)
    finite = -eta * (rational + log(eigenvalue)) / (2 * beta)
    result = rational
    for s in range(1, t):
        result = zero_temperature(result, inverse_temperature(s))
    # (log beta)/beta vanishes, so only the rational part survives.
    result = -eta * zero_temperature(result / beta, beta) / 2
    return EntropicLimit(action, finite, result)


@dataclass(frozen=True)
class CouplingLimit:
    """The Legendre terms for n replicas, and their limit."""

    replicated: Expr
    zero_temperature: Expr


def coupling_limit(t: int) -> CouplingLimit:
    """Terms tying order parameters to conjugates, from sum_a mh_a m_a + (1/2) sum_ab qh_ab q_ab + ... ."""
    diagonal, other = overlap(t, t) + response(t, t) / beta, overlap(t, t)
    other_hat = beta**2 * overlap_hat(t, t)
    diagonal_hat = other_hat - beta * response_hat(t, t)
    total = n * beta * magnetization_hat(t) * magnetization(t)
    total += (n * diagonal_hat * diagonal + n * (n - 1) * other_hat * other) / 2
    for s in range(1, t):
        beta_s = inverse_temperature(s)
        others = overlap(t, s)
        others_hat = beta * beta_s * overlap_hat(t, s)
        selected = others + response(t, s) / beta_s
        selected_hat = others_hat - beta * response_hat(t, s)
        total += n * (selected_hat * selected + (replicas(s) - 1) * others_hat * others)
    slope = diff(-total, n).subs({n: 0, **{replicas(s): 0 for s in range(1, t)}}) / beta
    for s in range(1, t):
        slope = zero_temperature(slope, inverse_temperature(s))
    return CouplingLimit(-total, zero_temperature(slope, beta).expand())


# The samples.


@dataclass(frozen=True)
class LaplaceStep:
    """(1/beta) log of the integral over one replica's logit, by Laplace's method.

    ``integral`` is the quantity, ``expansion`` its value up to terms that vanish faster than 1/beta,
    ``limit`` the Moreau envelope with a minus sign, ``condition`` the equation of the proximal point.
    """

    integral: Expr
    expansion: Expr
    limit: Expr
    condition: Eq


def laplace(loss: Function | None = None) -> LaplaceStep:
    """Zero-temperature limit of the energetic part for an abstract loss l(h), or for a callable loss.

    The RS fields are h^a = u + sqrt(Delta V/beta) z^a; for n -> 0 the mean over samples of
    log int dh exp(-beta [l(h) + (h-u)^2/(2 Delta V)]) remains.
    """
    loss = loss or Function("l")
    h, u, star = symbols("h u h_star", real=True)
    v = Symbol("V", positive=True)
    gamma = delta * v
    exponent = loss(h) + (h - u) ** 2 / (2 * gamma)
    integral = log(Integral(exp(-beta * exponent) / sqrt(2 * pi * gamma / beta), (h, -oo, oo))) / beta
    second = diff(exponent, h, 2).subs(h, star)
    minimum = exponent.subs(h, star)
    correction = log(gamma * second) / (2 * beta)
    condition = Eq(diff(loss(h), h) + (h - u) / gamma, 0)
    return LaplaceStep(integral, -minimum - correction, -minimum - limit(correction, beta, oo), condition)


@dataclass(frozen=True)
class QuadraticLoss:
    """stiffness/2 (h - label s - teacher h_teacher)^2: the losses whose Gaussian integrals are elementary."""

    label: Expr = S.One
    teacher: Expr = S.Zero
    stiffness: Expr = S.One


def field_covariance(stages: int) -> ReplicaMatrix:
    """Covariance of the replicated logits of a sample given its label, for one or two stages.

    Classes: for two stages the selected teacher replica, the n_1 - 1 others, and the n student replicas;
    for one stage the n replicas.
    """
    if stages == 1:
        q = delta * overlap(1, 1)
        return ReplicaMatrix((n,), (q + delta * response(1, 1) / beta,), Matrix([[q]]))
    beta_1 = inverse_temperature(1)
    teacher, mixed, student = (delta * overlap(*pair) for pair in ((1, 1), (2, 1), (2, 2)))
    selected = mixed + delta * response(2, 1) / beta_1
    diagonal = teacher + delta * response(1, 1) / beta_1
    between = Matrix([[teacher, teacher, selected], [teacher, teacher, mixed], [selected, mixed, student]])
    return ReplicaMatrix(
        (Integer(1), replicas(1) - 1, n),
        (diagonal, diagonal, student + delta * response(2, 2) / beta),
        between,
    )


@dataclass(frozen=True)
class GaussianWeight:
    """exp(-h.D.h/2 + J.h - constant) on the replicated logits, with D and J constant on classes."""

    form: ReplicaMatrix
    source: Matrix
    constant: Expr


def quadratic_weight(losses: Sequence[QuadraticLoss]) -> GaussianWeight:
    """Boltzmann weight of the replicated logits for one or two stages with quadratic losses."""
    student = losses[-1]
    stiff = beta * student.stiffness
    own, pull = stiff * student.label * sign, stiff * student.teacher
    if len(losses) == 1:
        form = ReplicaMatrix((n,), (stiff,), Matrix([[0]]))
        return GaussianWeight(form, Matrix([own]), n * stiff * (student.label * sign) ** 2 / 2)
    teacher = losses[0]
    rigid = inverse_temperature(1) * teacher.stiffness
    drive = rigid * teacher.label * sign
    form = ReplicaMatrix(
        (Integer(1), replicas(1) - 1, n),
        (rigid + n * stiff * student.teacher**2, rigid, stiff),
        Matrix([[n * stiff * student.teacher**2, 0, -pull], [0, 0, 0], [-pull, 0, 0]]),
    )
    source = Matrix([drive - n * student.teacher * own, drive, own])
    constant = (replicas(1) * drive * teacher.label * sign + n * own * student.label * sign) / 2
    return GaussianWeight(form, source, constant)


def quadratic_energy(losses: Sequence[QuadraticLoss]) -> tuple[Expr, ReplicaMatrix, GaussianWeight]:
    """Exponent of E[exp(-sum losses)] over the replicated fields, apart from the determinant.

    For h ~ N(mu, C) the average of exp(-h.D.h/2 + J.h) is det(1 + CD)^(-1/2) exp(E),
    E = -mu.D.mu/2 + J.mu + (J - D mu).(1 + CD)^(-1) C (J - D mu)/2; all products are taken on quotients.
    """
    stages = len(losses)
    covariance, weight_of = field_covariance(stages), quadratic_weight(losses)
    c, d = covariance.quotient(), weight_of.form.quotient()
    stage_of = [1] if stages == 1 else [1, 1, 2]
    mean = Matrix([sign * magnetization(s) + bias(s) for s in stage_of])
    sizes = Matrix([covariance.sizes]).T
    tilted = weight_of.source - d * mean
    kernel = Matrix.eye(len(sizes)) + c * d
    moved = kernel.adjugate() * (c * tilted) / kernel.det()

    def dot(left: Matrix, right: Matrix) -> Expr:
        return Add(*(k * a * b for k, a, b in zip(sizes, left, right, strict=True)))

    exponent = -dot(mean, d * mean) / 2 + dot(weight_of.source, mean) + dot(tilted, moved) / 2
    return exponent - weight_of.constant, covariance, weight_of


def quadratic_log_average(losses: Sequence[QuadraticLoss]) -> Expr:
    """log E[exp(-sum of the losses of all replicas)] at finite temperature, any numbers of replicas."""
    exponent, covariance, weight_of = quadratic_energy(losses)
    kernel = Matrix.eye(len(covariance.sizes)) + covariance.quotient() * weight_of.form.quotient()
    logdet = log(kernel.det())
    for i, size in enumerate(covariance.sizes):
        if size != 1:
            logdet += (size - 1) * log(1 + covariance.transverse(i) * weight_of.form.transverse(i))
    return exponent - logdet / 2


def energetic_limit(losses: Sequence[QuadraticLoss], values: dict[Symbol, Expr] | None = None) -> Expr:
    """(1/beta) d/dn of ``quadratic_log_average`` at n = n_1 = 0, beta_1 -> infinity, beta -> infinity.

    ``values`` are put in first: with all symbols kept, two stages take minutes.
    """
    average = quadratic_log_average(losses).subs(values or {})
    # The logarithms of the slope do not grow with beta: divided by it they vanish.
    slope = diff(average, n).subs({n: 0, replicas(1): 0})
    rational = Add(*(term for term in Add.make_args(slope.expand(log=False)) if not term.has(log)))
    if len(losses) == 2:
        rational = zero_temperature(rational, inverse_temperature(1))
    return zero_temperature(rational / beta, beta)


def envelope_average(losses: Sequence[QuadraticLoss]) -> Expr:
    """- E[Moreau envelope] of the last stage at the field u = omega + Delta V_21 f_1, for quadratic losses.

    Computed from the proximal points and the moments of the cavity fields, with no replicas: what
    ``energetic_limit`` must equal.
    """
    h, u = symbols("h u", real=True)
    omegas = [field(s) for s in range(1, len(losses) + 1)]

    def proximal(loss: QuadraticLoss, gamma: Expr, target: Expr) -> Expr:
        return (u + gamma * loss.stiffness * target) / (1 + gamma * loss.stiffness)

    shift, taught = Integer(0), Integer(0)
    if len(losses) == 2:
        gamma_1 = delta * response(1, 1)
        taught = proximal(losses[0], gamma_1, losses[0].label * sign).subs(u, omegas[0])
        shift = delta * response(2, 1) * (taught - omegas[0]) / gamma_1
    last, t = losses[-1], len(losses)
    target = last.label * sign + last.teacher * taught
    gamma = delta * response(t, t)
    envelope = (last.stiffness * (h - target) ** 2 / 2 + (h - u) ** 2 / (2 * gamma)).subs(
        h, proximal(last, gamma, target)
    )
    envelope = envelope.subs(u, omegas[-1] + shift)
    mean = envelope.subs({omegas[s - 1]: sign * magnetization(s) + bias(s) for s in range(1, t + 1)})
    for s in range(1, t + 1):
        for r in range(1, t + 1):
            mean += diff(envelope, omegas[s - 1], omegas[r - 1]) * delta * overlap(s, r) / 2
    return -mean


@dataclass(frozen=True)
class TeacherField:
    """How the student's logit follows the selected teacher replica (two stages).

    ``regression`` is the mean shift of the student's logit per unit deviation h~ - omega~ of the teacher's,
    ``change`` what conditioning on the teacher adds to its variance (negative, of order 1/beta_1),
    ``shift`` the displacement of the cavity field at zero temperature.
    """

    regression: Expr
    change: Expr
    shift: Expr


def cavity_shift() -> TeacherField:
    """u - omega = Delta V_21 f_1, from the covariance of the replicated fields.

    Take away the common fields, whose covariance is Delta Q.  Of the remaining fluctuations of order
    1/beta_1 only the selected teacher replica's is correlated with the student's.  Conditioning on it
    shifts the student's logit by (V_21/V_11)(h~ - omega~) and changes its variance by a term of order
    1/beta_1.  The weight exp(-beta_1 l_1) pulls h~ to the proximal point, h~ - omega~ = Delta V_11 f_1.
    """
    covariance = field_covariance(2)
    common = Matrix(
        [
            [overlap(1, 1), overlap(1, 1), overlap(2, 1)],
            [overlap(1, 1), overlap(1, 1), overlap(2, 1)],
            [overlap(2, 1), overlap(2, 1), overlap(2, 2)],
        ]
    )
    rest = covariance.between - delta * common
    teacher = covariance.diagonal[0] - delta * overlap(1, 1)
    regression = cancel(rest[0, 2] / teacher)
    change = cancel(-(rest[0, 2] ** 2) / teacher)
    force = Symbol("f_1", real=True)
    return TeacherField(regression, change, cancel(regression * delta * response(1, 1) * force))
