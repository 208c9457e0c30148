"""The replica-symmetric potential of a stage and the equations that make it stationary.

    Phi_t = - mh m - (Qh_tt V_tt - Vh_tt Q_tt)/2 - sum_{s<t} (Qh_ts V_ts - Vh_ts Q_ts) + Psi_w + Psi_h

Psi_w, the entropic part, is minus the mean energy of one weight in its effective field; Psi_h, the
energetic part, is minus alpha times the mean Moreau envelope of the loss.  ``theory.replica`` derives this
form.  Every equation below is obtained by differentiating Phi: with respect to the conjugates (prior half)
or the order parameters (channel half).

Each function returns an ``Equations``: plain SymPy expressions of ordered symbols, ready for code generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sympy import Add, Expr, ImmutableMatrix, Integer, Matrix, Symbol, diff, factor_terms, sympify

from theory.averages import Force, GaussianAverage, MoreauEnvelope, earlier_force, proximal_arguments
from theory.symbols import (
    alpha,
    bias,
    cholesky,
    delta,
    eta,
    field,
    indexed,
    input_covariance,
    input_mean,
    lower_triangle,
    magnetization,
    magnetization_hat,
    overlap,
    overlap_hat,
    response,
    response_hat,
    ridge,
    sign,
)


@dataclass(frozen=True)
class Equations:
    """A vector function: ``outputs`` (name -> expression) of ``inputs``, at given ``constants``.

    ``jacobian`` has one row an output and one column an input.

    Examples
    --------
    >>> equations = prior_equations(1)
    >>> equations.inputs, equations.constants
    ((mh_1, Qh_11, Vh_11), (eta, lambda))
    >>> equations.outputs["m_1"]
    eta*mh_1/(Vh_11 + lambda)
    >>> equations.jacobian[0, 0]
    eta/(Vh_11 + lambda)
    """

    inputs: tuple[Symbol, ...]
    constants: tuple[Symbol, ...]
    outputs: dict[str, Expr]
    jacobian: ImmutableMatrix

    @classmethod
    def build(cls, inputs: Sequence[Symbol], constants: Sequence[Symbol], outputs: dict[str, Expr]) -> Equations:
        """Differentiate and check that nothing but inputs and constants is left in the outputs."""
        for name, expression in outputs.items():
            stray = expression.free_symbols - {*inputs, *constants}
            if stray or expression.has(GaussianAverage):
                raise ValueError(f"{name} depends on {stray or 'an average'}, not an input or constant")
        rows = [[diff(expression, variable) for variable in inputs] for expression in outputs.values()]
        return cls(tuple(inputs), tuple(constants), dict(outputs), ImmutableMatrix(rows))


# The weights.


@dataclass(frozen=True)
class QuadraticPrior:
    """Energy of one weight: a quadratic form in it and the earlier stages' weights on the same coordinate.

    Attributes
    ----------
    energy
        Function (w_t, [w_1, ..., w_{t-1}]) -> Expr.
    constants
        Parameter symbols of the energy.

    Examples
    --------
    >>> lazy = QuadraticPrior(lambda weight, earlier: ridge * (weight - earlier[0]) ** 2 / 2)  # pulled to the first stage
    >>> prior_equations(2, lazy).outputs["V_22"]
    eta/(Vh_22 + lambda)
    """

    energy: Callable[[Symbol, tuple[Symbol, ...]], Expr]
    constants: tuple[Symbol, ...] = (ridge,)


def _ridge_energy(weight: Symbol, earlier: tuple[Symbol, ...]) -> Expr:
    return ridge * weight**2 / 2


GaussianRidgePrior = QuadraticPrior(_ridge_energy)
"""The default: (ridge/2) w^2."""


def ridge_towards(stage: int) -> QuadraticPrior:
    """(ridge/2)(w_t - w_stage)^2: the weights are pulled to those of an earlier stage."""
    return QuadraticPrior(lambda weight, earlier: ridge * (weight - earlier[stage - 1]) ** 2 / 2)


teacher_direction = Symbol("v", real=True)
"""v, coordinate of the class mean; unit variance."""


def random_field(t: int) -> Symbol:
    """xi_t, Gaussian field on a weight of stage t: E[xi_t xi_s] = Qh_ts."""
    return indexed("xi", t)


def weight(t: int) -> Symbol:
    """w_t, one weight of stage t."""
    return indexed("w", t)


def alignment(s: int) -> Symbol:
    """mu_s = E[w_s v] over the active coordinates."""
    return indexed("mu", s)


def covariance(s: int, r: int) -> Symbol:
    """B_sr = E[w_s w_r] over the active coordinates."""
    return indexed("B", max(s, r), min(s, r))


def propagator(s: int, k: int) -> Symbol:
    """G_sk = E[dw_s/dxi_k] over the active coordinates."""
    return indexed("G", s, k)


def conjugates(t: int) -> tuple[Symbol, ...]:
    """mh_t, Qh_t1 .. Qh_tt, Vh_t1 .. Vh_tt."""
    return (
        magnetization_hat(t),
        *(overlap_hat(t, s) for s in range(1, t + 1)),
        *(response_hat(t, s) for s in range(1, t + 1)),
    )


def order_parameters(t: int) -> tuple[Symbol, ...]:
    """m_t, Q_t1 .. Q_tt, V_t1 .. V_tt."""
    return (
        magnetization(t),
        *(overlap(t, s) for s in range(1, t + 1)),
        *(response(t, s) for s in range(1, t + 1)),
    )


def _randoms(t: int) -> tuple[Symbol, ...]:
    return (teacher_direction, random_field(t), *(weight(s) for s in range(1, t)))


def _second_moments(t: int) -> Matrix:
    """Second moments of (v, xi_t, w_1, .., w_{t-1}); those of xi_t with the weights are Stein's lemma."""
    moments = Matrix.zeros(t + 1, t + 1)
    moments[0, 0] = Integer(1)
    moments[1, 1] = overlap_hat(t, t)
    for s in range(1, t):
        moments[0, s + 1] = moments[s + 1, 0] = alignment(s)
        stein = Add(*(propagator(s, k) * overlap_hat(t, k) for k in range(1, s + 1)))
        moments[1, s + 1] = moments[s + 1, 1] = stein
        for r in range(1, t):
            moments[s + 1, r + 1] = covariance(s, r)
    return moments


@dataclass(frozen=True)
class _EffectiveWeight:
    """Energy of one weight in its effective field, A w^2/2 - B w + C; B is linear in the random variables."""

    curvature: Expr
    pull: Expr
    remainder: Expr


def _effective_weight(t: int, prior: QuadraticPrior) -> _EffectiveWeight:
    w, earlier = weight(t), tuple(weight(s) for s in range(1, t))
    force = magnetization_hat(t) * teacher_direction + random_field(t)
    force -= Add(*(response_hat(t, s) * weight(s) for s in range(1, t)))
    energy = sympify(prior.energy(w, earlier)) + response_hat(t, t) * w**2 / 2 - force * w
    curvature = diff(energy, w, 2)
    if curvature.has(w, *_randoms(t)):
        raise ValueError("the energy of a weight must be quadratic in it")
    return _EffectiveWeight(curvature, -diff(energy, w).subs(w, 0), energy.subs(w, 0))


def _coefficients(linear: Expr, t: int) -> Matrix:
    return Matrix([diff(linear, variable) for variable in _randoms(t)])


def _mean_of_quadratic(quadratic: Expr, t: int) -> Expr:
    randoms, moments = _randoms(t), _second_moments(t)
    total = Integer(0)
    for i, first in enumerate(randoms):
        slope = diff(quadratic, first)
        for j, second in enumerate(randoms):
            total += diff(slope, second) * moments[i, j] / 2
    return total


def in_spectrum(expression: Expr, t: int) -> Expr:
    """Of a coordinate on which the stages see inputs of covariances Delta Omega_ts and class means c_t v.

    The replicated action of a coordinate holds the conjugates only through ``mh_t v``, ``Qh_ts`` and ``Vh_ts`` times what the
    inputs are there, which is 1 for white inputs: so every conjugate comes with it.
    """
    return expression.xreplace({conjugate: factor * conjugate for conjugate, factor in spectrum_factors(t).items()})


def spectrum_factors(t: int) -> dict[Symbol, Symbol]:
    """What each conjugate comes with on such a coordinate."""
    factors = {magnetization_hat(t): input_mean(t)}
    for s in range(1, t + 1):
        factors[overlap_hat(t, s)] = factors[response_hat(t, s)] = input_covariance(t, s)
    return factors


def _spectrum_symbols(t: int) -> tuple[Symbol, ...]:
    return (input_mean(t), *(input_covariance(t, s) for s in range(1, t + 1)))


def entropic_potential(t: int, prior: QuadraticPrior = GaussianRidgePrior, *, spectrum: bool = False) -> Expr:
    """Psi_w = - eta E[min_w energy]; for a ridge, eta/(2L) E[(mh v + xi_t - sum_s Vh_ts w_s)^2].

    ``spectrum``: of one group of coordinates whose inputs have a covariance and a mean of their own (:func:`in_spectrum`); eta
    is its share, and groups add up.
    """
    effective = _effective_weight(t, prior)
    pull = _coefficients(effective.pull, t)
    gain = (pull.T * _second_moments(t) * pull)[0] / effective.curvature / 2
    found = eta * (gain - _mean_of_quadratic(effective.remainder, t))
    return in_spectrum(found, t) if spectrum else found


def coupling(t: int) -> Expr:
    """The terms of Phi that tie order parameters to conjugates."""
    diagonal = overlap_hat(t, t) * response(t, t) - response_hat(t, t) * overlap(t, t)
    mixed = Add(*(overlap_hat(t, s) * response(t, s) - response_hat(t, s) * overlap(t, s) for s in range(1, t)))
    return -magnetization_hat(t) * magnetization(t) - diagonal / 2 - mixed


def energetic_potential(t: int) -> Expr:
    """Psi_h = - alpha E[Moreau envelope], an unevaluated ``GaussianAverage`` for an abstract loss."""
    return -alpha * GaussianAverage(MoreauEnvelope(*proximal_arguments(t)), t)


def potential(t: int, prior: QuadraticPrior = GaussianRidgePrior) -> Expr:
    """Phi_t with an abstract loss."""
    return coupling(t) + entropic_potential(t, prior) + energetic_potential(t)


def solve_stationarity(phi: Expr, variable: Symbol, unknown: Symbol) -> Expr:
    """The value of ``unknown`` that makes d phi/d variable = 0; phi is bilinear in the pair."""
    condition = diff(phi, variable)
    return condition.subs(unknown, 0) / -diff(condition, unknown)


def conjugate_pairs(t: int) -> list[tuple[Symbol, Symbol]]:
    """(order parameter, its conjugate) in the order m, Q_t1.., V_t1.. of the order parameters."""
    pairs = [(magnetization(t), magnetization_hat(t))]
    pairs += [(overlap(t, s), response_hat(t, s)) for s in range(1, t + 1)]
    pairs += [(response(t, s), overlap_hat(t, s)) for s in range(1, t + 1)]
    return pairs


def earlier_moments(t: int) -> tuple[Symbol, ...]:
    """mu_s, B_sr, G_sk of the stages before t, triangles row by row."""
    return (
        *(alignment(s) for s in range(1, t)),
        *lower_triangle(covariance, t - 1),
        *lower_triangle(propagator, t - 1),
    )


@lru_cache(maxsize=32)
def prior_equations(t: int, prior: QuadraticPrior = GaussianRidgePrior, *, spectrum: bool = False) -> Equations:
    """Order parameters from conjugates: d Phi/d(conjugate) = 0.

    Inputs mh_t, Qh_t1..Qh_tt, Vh_t1..Vh_tt; constants eta, those of the prior (the ridge), with a ``spectrum`` c_t and
    Omega_t1..Omega_tt, then mu_s, B_sr, G_sk of the earlier stages over the coordinates active in stage t (triangles row by
    row); outputs m_t, Q_t1..Q_tt, V_t1..V_tt.
    With several groups of coordinates sum the outputs over those in which stage t is active, eta being the share of each.

    Examples
    --------
    >>> for name, expression in prior_equations(1).outputs.items():
    ...     print(name, "=", expression)
    m_1 = eta*mh_1/(Vh_11 + lambda)
    Q_11 = eta*(Qh_11 + mh_1**2)/(Vh_11 + lambda)**2
    V_11 = eta/(Vh_11 + lambda)
    >>> print(prior_equations(1, spectrum=True).outputs["Q_11"])
    Omega_11*eta*(Omega_11*Qh_11 + c_1**2*mh_1**2)/(Omega_11*Vh_11 + lambda)**2
    """
    _check_stage(t)
    phi = coupling(t) + entropic_potential(t, prior, spectrum=spectrum)
    outputs = {
        parameter.name: factor_terms(solve_stationarity(phi, conjugate, parameter))
        for parameter, conjugate in conjugate_pairs(t)
    }
    seen = _spectrum_symbols(t) if spectrum else ()
    return Equations.build(conjugates(t), (eta, *prior.constants, *seen, *earlier_moments(t)), outputs)


@lru_cache(maxsize=32)
def conditional_moments(t: int, prior: QuadraticPrior = GaussianRidgePrior, *, spectrum: bool = False) -> Equations:
    """Moments of the new weight, per group of coordinates in which stage t is active.

    The minimiser of the effective energy is linear in v, xi_t and the earlier weights; its moments with
    them follow.  Inputs as in ``prior_equations``; constants the same without eta; outputs mu_t,
    B_t1..B_tt, G_t1..G_tt.

    Examples
    --------
    >>> conditional_moments(1).outputs["G_11"]
    1/(Vh_11 + lambda)
    """
    _check_stage(t)
    effective = _effective_weight(t, prior)
    pull = _coefficients(effective.pull, t)
    moments = pull.T * _second_moments(t)
    outputs = {alignment(t).name: moments[0] / effective.curvature}
    for s in range(1, t):
        outputs[covariance(t, s).name] = moments[s + 1] / effective.curvature
    outputs[covariance(t, t).name] = (moments * pull)[0] / effective.curvature**2
    for k in range(1, t):
        through = Add(*(pull[s + 1] * propagator(s, k) for s in range(k, t)))
        outputs[propagator(t, k).name] = through / effective.curvature
    outputs[propagator(t, t).name] = pull[1] / effective.curvature
    seen = _spectrum_symbols(t) if spectrum else ()
    if spectrum:
        outputs = {name: in_spectrum(expression, t) for name, expression in outputs.items()}
    return Equations.build(conjugates(t), (*prior.constants, *seen, *earlier_moments(t)), outputs)


# The samples.


def average_symbols(t: int) -> dict[str, Symbol]:
    """Alpha-weighted averages the channel half needs, in the order of ``channel_equations(t).inputs``.

    E_sf = alpha E[s f_t], E_f = alpha E[f_t], E_fg<k> = alpha E[f_t g_k], E_ff<s> = alpha E[f_t f_s],
    E_ff = alpha E[f_t^2], E_df = alpha E[df_t/domega_t].
    """
    names = ["E_sf", "E_f"]
    names += [f"E_fg{k}" for k in range(1, t)]
    names += [f"E_ff{s}" for s in range(1, t)]
    names += ["E_ff", "E_df"]
    return {name: Symbol(name, real=True) for name in names}


def stein_derivatives(t: int) -> dict[int, Expr]:
    """alpha E[df_t/domega_s] for s <= t, total derivatives, from the averages with normals.

    Stein's lemma E[f_t g_k] = sqrt(Delta) sum_{k<=s<=t} C_sk E[df_t/domega_s], k < t, is triangular in s.
    """
    force = GaussianAverage(Force(*proximal_arguments(t)), t)
    averages = average_symbols(t)
    unknown = {s: Symbol(f"D_{s}") for s in range(1, t + 1)}
    derivative = dict(_named(GaussianAverage(diff(force.integrand, field(s)), t), unknown[s]) for s in range(1, t + 1))
    solved = {t: averages["E_df"]}
    for k in range(t - 1, 0, -1):
        lemma = force.times_normal(k).xreplace(derivative)
        rest = lemma.subs(unknown[k], 0).xreplace({unknown[s]: value for s, value in solved.items()})
        solved[k] = (averages[f"E_fg{k}"] - rest) / diff(lemma, unknown[k])
    return solved


def _named(average: Expr, name: Expr) -> tuple[Expr, Expr]:
    """(GaussianAverage, its value) from ``average`` = number * GaussianAverage having the value ``name``."""
    (core,) = average.atoms(GaussianAverage)
    return core, name * core / average


def channel_conditions(t: int, averages: dict[str, Expr]) -> dict[str, Expr]:
    """d Phi/d(order parameter) = 0 and d Phi/d(bias) = 0, the averages over samples replaced by names.

    ``averages`` gives alpha times E[s f_t] (key ``sf``), E[f_t] (``f``), E[f_t^2] (``ff``), and for each s
    E[f_t f_s] (``ff<s>``) and the total derivative E[df_t/domega_s] (``df<s>``).  Returns the conjugates in
    the order mh_t, Qh_t1..Qh_tt, Vh_t1..Vh_tt, then ``bias``, which must vanish.
    """
    force = Force(*proximal_arguments(t))
    quantities = {"sf": sign * force, "f": force, "ff": force**2}
    quantities |= {f"ff{s}": force * earlier_force(s) for s in range(1, t)}
    quantities |= {f"df{s}": diff(force, field(s)) for s in range(1, t + 1)}
    names = dict(_named(GaussianAverage(quantity, t), averages[key] / alpha) for key, quantity in quantities.items())
    phi = coupling(t) + energetic_potential(t)
    conditions = {
        conjugate: solve_stationarity(phi, parameter, conjugate).xreplace(names)
        for parameter, conjugate in conjugate_pairs(t)
    }
    ordered = {conjugate.name: conditions[conjugate] for conjugate in conjugates(t)}
    return ordered | {"bias": diff(phi, bias(t)).xreplace(names)}


@lru_cache(maxsize=32)
def channel_equations(t: int) -> Equations:
    """Conjugates from averages over the samples: d Phi/d(order parameter) = 0 and d Phi/d(bias) = 0.

    Inputs: the alpha-weighted averages of ``average_symbols``, then C_t1..C_t,t-1; constants Delta and the
    Cholesky factor of the earlier stages, row by row; outputs mh_t, Qh_t1..Qh_tt, Vh_t1..Vh_tt and
    ``bias``, which must vanish.

    Examples
    --------
    >>> channel_equations(1).outputs
    {'mh_1': E_sf, 'Qh_11': Delta*E_ff, 'Vh_11': -Delta*E_df, 'bias': E_f}
    """
    _check_stage(t)
    symbols = average_symbols(t)
    averages: dict[str, Expr] = {"sf": symbols["E_sf"], "f": symbols["E_f"], "ff": symbols["E_ff"]}
    averages |= {f"ff{s}": symbols[f"E_ff{s}"] for s in range(1, t)}
    averages |= {f"df{s}": value for s, value in stein_derivatives(t).items()}
    inputs = (*symbols.values(), *(cholesky(t, k) for k in range(1, t)))
    constants = (delta, *lower_triangle(cholesky, t - 1))
    return Equations.build(inputs, constants, channel_conditions(t, averages))


@lru_cache(maxsize=32)
def cholesky_update(t: int) -> Equations:
    """New row of the Cholesky factor by forward substitution.

    Inputs Q_t1..Q_tt; constants the earlier rows; outputs C_t1..C_t,t-1 and q_perp = C_tt^2.

    Examples
    --------
    >>> cholesky_update(2).outputs
    {'C_21': Q_21/C_11, 'q_perp': Q_22 - Q_21**2/C_11**2}
    """
    _check_stage(t)
    row: list[Expr] = []
    for s in range(1, t):
        known = Add(*(row[k - 1] * cholesky(s, k) for k in range(1, s)))
        row.append((overlap(t, s) - known) / cholesky(s, s))
    outputs = {cholesky(t, k).name: entry for k, entry in enumerate(row, start=1)}
    outputs["q_perp"] = overlap(t, t) - Add(*(entry**2 for entry in row))
    inputs = tuple(overlap(t, s) for s in range(1, t + 1))
    return Equations.build(inputs, lower_triangle(cholesky, t - 1), outputs)


mean_envelope = Symbol("E_M", real=True)
"""alpha E[Moreau envelope of stage t], in ``free_energy``."""


@lru_cache(maxsize=32)
def free_energy(t: int, prior: QuadraticPrior = GaussianRidgePrior, *, spectrum: bool = False) -> Equations:
    """Phi_t as a number: inputs m_t, Q_ts, V_ts, then the conjugates, then E_M = alpha E[Moreau envelope].

    Constants as in ``prior_equations``.  Outputs ``value`` = Phi_t and its parts ``coupling`` and
    ``entropic``: with several groups of coordinates add the coupling once and the entropic part for each
    group.  At the saddle -Phi_t = alpha E[l_t] + (ridge/2) Q_tt.

    Examples
    --------
    >>> free_energy(1).outputs["entropic"]
    eta*(Qh_11 + mh_1**2)/(2*(Vh_11 + lambda))
    """
    _check_stage(t)
    energetic = energetic_potential(t)
    named = energetic.subs(GaussianAverage(MoreauEnvelope(*proximal_arguments(t)), t), mean_envelope / alpha)
    parts = {"coupling": coupling(t), "entropic": entropic_potential(t, prior, spectrum=spectrum)}
    outputs = {"value": Add(*parts.values()) + named, **parts}
    inputs = (*order_parameters(t), *conjugates(t), mean_envelope)
    seen = _spectrum_symbols(t) if spectrum else ()
    return Equations.build(inputs, (eta, *prior.constants, *seen, *earlier_moments(t)), outputs)


def _check_stage(t: int) -> None:
    if isinstance(t, bool) or not isinstance(t, int) or t < 1:
        raise ValueError(f"a stage is counted 1, 2, ..., got {t!r}")
