"""The potential and the equations of a stage with d logits: order parameters are d x d blocks, which do not commute.

K classes of means mu_c/sqrt(N), Gram matrix Gamma_cc' = mu_c.mu_c'/N, noise Delta_c; a stage has weights w_t in R^d on every
coordinate, with d = K, or d = K-1 in the gauge in which logits sum to 0.  Blocks are

    m_t = E[w_t mu^T]  (d x K),    Q_ts = E[w_t w_s^T],    V_ts = E[d w_t/d xi_s],    and the conjugates mh_t, Qh_ts, Vh_ts,

    Phi_t = - tr(mh_t^T m_t) - tr(Qh_tt V_tt - Vh_tt Q_tt)/2 - sum_{s<t} tr(Qh_ts^T V_ts - Vh_ts^T Q_ts) + Psi_w + Psi_h,
    Psi_w = eta E[b_t^T L_t^-1 b_t]/2,    b_t = mh_t mu + xi_t - sum_{s<t} Vh_ts w_s,    L_t = lambda + Vh_tt,
    Psi_h = - alpha sum_c rho_c E_c[min_h { l_t(h; y, h_<t) + (h - u_t)^T V_tt^-1 (h - u_t)/(2 Delta_c) }] .

Everything is obtained by differentiating traces of matrix symbols; with d = 1, K = 1 and Gamma = 1 it is :mod:`theory.potential`.

    >>> prior_equations(1)["V_11"]
    eta*(lambda*I + Vh_11)**(-1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from sympy import (
    Eq,
    Expr,
    Identity,
    Integer,
    Inverse,
    MatAdd,
    MatMul,
    MatrixExpr,
    MatrixSymbol,
    S,
    Symbol,
    Trace,
    Transpose,
    ZeroMatrix,
    symbols,
)

from theory.derivation import Step
from theory.losses import Loss
from theory.softmax import softmax_form
from theory.symbols import alpha, delta, eta, ridge

d, classes = symbols("d K", integer=True, positive=True)
"""Logits of a stage, and classes."""

gram = MatrixSymbol("Gamma", classes, classes)
"""Gram matrix of the means."""

input_variance = Symbol("Lambda", positive=True)
"""Variance of a coordinate of the inputs over that of its class, where coordinates differ."""


def _block(name: str, t: int, s: int) -> MatrixSymbol:
    return MatrixSymbol(f"{name}_{t}{s}", d, d)


def magnetization(t: int) -> MatrixSymbol:
    """m_t, d x K."""
    return MatrixSymbol(f"m_{t}", d, classes)


def magnetization_hat(t: int) -> MatrixSymbol:
    """mh_t, d x K."""
    return MatrixSymbol(f"mh_{t}", d, classes)


def overlap(t: int, s: int) -> MatrixSymbol:
    """Q_ts."""
    return _block("Q", t, s)


def overlap_hat(t: int, s: int) -> MatrixSymbol:
    """Qh_ts = E[xi_t xi_s^T]."""
    return _block("Qh", t, s)


def response(t: int, s: int) -> MatrixSymbol:
    """V_ts."""
    return _block("V", t, s)


def response_hat(t: int, s: int) -> MatrixSymbol:
    """Vh_ts."""
    return _block("Vh", t, s)


def alignment(s: int) -> MatrixSymbol:
    """mu_s = E[w_s mu^T] over the active coordinates, d x K."""
    return MatrixSymbol(f"mu_{s}", d, classes)


def covariance(s: int, r: int) -> MatrixSymbol:
    """B_sr = E[w_s w_r^T] over the active coordinates, s >= r."""
    return _block("B", s, r)


def propagator(s: int, k: int) -> MatrixSymbol:
    """G_sk = E[d w_s/d xi_k] over the active coordinates."""
    return _block("G", s, k)


def curvature(t: int) -> MatrixExpr:
    """L_t = lambda + Vh_tt."""
    return ridge * Identity(d) + response_hat(t, t)


# What is symmetric is so for the derivatives too: they are taken as if all entries were free.


def _symmetric(expression: MatrixExpr, t: int) -> MatrixExpr:
    """With symmetric blocks, transposed, as they are."""
    blocks = [
        gram,
        *(f(s, s) for f in (overlap, overlap_hat, response, response_hat, covariance) for s in range(1, t + 1)),
    ]
    found = expression.doit().xreplace({Transpose(block): block for block in blocks})
    return found.doit()


def _earlier(t: int, s: int, r: int) -> MatrixExpr:
    """E[w_s w_r^T] of any two earlier stages."""
    return covariance(s, r) if s >= r else covariance(r, s).T


def _field_on_weight(t: int, s: int) -> MatrixExpr:
    """E[xi_t w_s^T] of an earlier stage, by Stein's lemma."""
    return MatAdd(*(MatMul(overlap_hat(t, k), propagator(s, k).T) for k in range(1, s + 1)))


@lru_cache(maxsize=16)
def second_moment(t: int) -> MatrixExpr:
    """E[b_t b_t^T] of the pull on a weight, b_t = mh_t mu + xi_t - sum_{s<t} Vh_ts w_s."""
    mh = magnetization_hat(t)
    terms = [mh * gram * mh.T, overlap_hat(t, t)]
    for s in range(1, t):
        vh = response_hat(t, s)
        for mixed in (mh * alignment(s).T * vh.T, _field_on_weight(t, s) * vh.T):
            terms += [-mixed, -mixed.T]
        terms += [vh * _earlier(t, s, r) * response_hat(t, r).T for r in range(1, t)]
    return MatAdd(*terms).doit()


def entropic_potential(t: int) -> Expr:
    """Psi_w, E[b_t^T L_t^-1 b_t]/2 per active coordinate."""
    return eta * Trace(Inverse(curvature(t)) * second_moment(t)) / 2


def coupling(t: int) -> Trace:
    """The terms of Phi that tie order parameters to conjugates."""
    terms = [-magnetization(t) * magnetization_hat(t).T]
    for s in range(1, t + 1):
        half = S.Half if s == t else Integer(1)
        terms += [-half * response(t, s) * overlap_hat(t, s).T, half * overlap(t, s) * response_hat(t, s).T]
    return Trace(MatAdd(*terms))


def conjugate_pairs(t: int) -> list[tuple[MatrixSymbol, MatrixSymbol]]:
    """(order parameter, its conjugate) in the order m, Q_t1.., V_t1.. of the order parameters."""
    pairs = [(magnetization(t), magnetization_hat(t))]
    pairs += [(overlap(t, s), response_hat(t, s)) for s in range(1, t + 1)]
    pairs += [(response(t, s), overlap_hat(t, s)) for s in range(1, t + 1)]
    return pairs


def _solved(t: int, variable: MatrixSymbol, slope: MatrixExpr) -> MatrixExpr:
    """What ``variable`` is coupled to, where d Phi/d(variable) = 0 and the rest of Phi has this slope."""
    factor, _ = _symmetric(coupling(t).diff(variable), t).as_coeff_mmul()
    terms = slope.args if isinstance(slope, MatAdd) else (slope,)
    return MatAdd(*(MatMul(-1 / factor, term) for term in terms)).doit()


def in_spectrum(expression: MatrixExpr, t: int) -> MatrixExpr:
    """Of coordinates whose inputs have the variance Delta Lambda: that of fields is Lambda Qh, and their stiffness Lambda Vh."""
    scaled = {f(t, s): input_variance * f(t, s) for f in (overlap_hat, response_hat) for s in range(1, t + 1)}
    return expression.xreplace(scaled).doit()


@lru_cache(maxsize=32)
def prior_equations(t: int, *, spectrum: bool = False) -> dict[str, MatrixExpr]:
    """m_t, Q_t1..Q_tt, V_t1..V_tt from the conjugates: d Phi/d(conjugate) = 0.

    ``spectrum``: of one group of coordinates (:func:`in_spectrum`), with its share for eta and its own Gram matrix; what all groups
    give is added.

    Examples
    --------
    >>> prior_equations(2)["V_21"]
    (-eta)*(lambda*I + Vh_22)**(-1)*Vh_21*G_11
    >>> stiffness = input_variance * response_hat(1, 1) + ridge * Identity(d)
    >>> prior_equations(1, spectrum=True)["V_11"] == input_variance * eta * Inverse(stiffness)
    True
    """
    if spectrum:
        # Psi_w depends on Lambda Qh and Lambda Vh alone: its slopes in Qh and Vh have a further Lambda.
        white = prior_equations(t)
        return {
            name: (MatMul(input_variance, found) if name[0] in "QV" else found).doit()
            for name, found in ((name, in_spectrum(value, t)) for name, value in white.items())
        }
    psi = Trace(Inverse(curvature(t)) * second_moment(t))
    found = {}
    for parameter, conjugate in conjugate_pairs(t):
        slope = _symmetric(psi.diff(conjugate), t)
        terms = slope.args if isinstance(slope, MatAdd) else (slope,)
        found[parameter.name] = _solved(t, conjugate, MatAdd(*(eta / 2 * term for term in terms)).doit())
    return found


@lru_cache(maxsize=16)
def propagators(t: int) -> dict[str, MatrixExpr]:
    """G_t1..G_tt and a_t, with w_t = a_t mu + sum_s G_ts xi_s, by forward substitution of the weights' equations.

    Examples
    --------
    >>> propagators(3)["G_31"]
    -(lambda*I + Vh_33)**(-1)*Vh_31*G_11 - (lambda*I + Vh_33)**(-1)*Vh_32*G_21
    """
    inverse = Inverse(curvature(t))
    found = {}
    for k in range(1, t + 1):
        pull = [-response_hat(t, s) * propagator(s, k) for s in range(k, t)]
        found[propagator(t, k).name] = inverse if k == t else MatAdd(*(MatMul(inverse, term) for term in pull)).doit()
    earlier = [MatMul(inverse, -response_hat(t, s), MatrixSymbol(f"a_{s}", d, classes)) for s in range(1, t)]
    found[f"a_{t}"] = MatAdd(MatMul(inverse, magnetization_hat(t)), *earlier).doit()
    return found


# The samples.  Averages are over the class, the label and the fields.


def average(name: str, columns: object = d) -> MatrixSymbol:
    """A block that prints as an average."""
    return MatrixSymbol(name, d, columns)


@lru_cache(maxsize=1)
def envelope_slope() -> MatrixExpr:
    """dM/dV_tt of the Moreau envelope at its minimum, where h - u = Delta V_tt f.

    Examples
    --------
    >>> envelope_slope()
    (-Delta/2)*f*f.T
    """
    v, f, apart = MatrixSymbol("V", d, d), MatrixSymbol("f", d, 1), MatrixSymbol("r", d, 1)
    slope = (Trace(Inverse(v) * apart * apart.T) / (2 * delta)).diff(v)
    at_minimum = slope.doit().xreplace({apart: delta * v * f}).doit()
    return at_minimum.xreplace({Transpose(v): v}).doit()


@lru_cache(maxsize=16)
def channel_equations(t: int) -> dict[str, MatrixExpr]:
    """mh_tc (a column), Qh_ts, Vh_ts and the bias's condition, in averages: d Phi/d(order parameter) = 0.

    With the envelope M of every sample, ``dM/du_t = -f_t``, dM/dV_tt is :func:`envelope_slope`, and, because
    ``u_t = omega_t + Delta_c sum_s V_ts f_s``, ``dM/dV_ts = -Delta_c f_t f_s^T``.  Q times Delta_c is the covariance of the
    fields, so that (Price's theorem) ``d E[M]/dQ_ts = Delta_c E[d^2 M/d omega_t d omega_s] = -Delta_c E[d f_t/d omega_s]``, and
    half of it for s = t.

    Examples
    --------
    >>> for name, value in channel_equations(1).items():
    ...     print(name, "=", value)
    mh_1c = (alpha*rho_c)*E_c[f_1]
    Qh_11 = alpha*sum_c rho_c Delta_c E_c[f_1 f_1.T]
    Vh_11 = (-alpha)*sum_c rho_c Delta_c E_c[df_1/domega_1]
    0 = alpha*sum_c rho_c E_c[f_1]
    """
    weight = Symbol("rho_c", positive=True)
    found = {f"mh_{t}c": alpha * weight * average(f"E_c[f_{t}]", 1)}
    for s in range(1, t + 1):
        half = envelope_slope().as_coeff_mmul()[0] / -delta if s == t else Integer(1)
        forces = average(f"sum_c rho_c Delta_c E_c[f_{t} f_{s}.T]")
        found[overlap_hat(t, s).name] = _solved(t, response(t, s), half * alpha * forces)
    for s in range(1, t + 1):
        half = S.Half if s == t else Integer(1)
        slopes = average(f"sum_c rho_c Delta_c E_c[df_{t}/domega_{s}]")
        found[response_hat(t, s).name] = _solved(t, overlap(t, s), half * alpha * slopes)
    overlaps = [name for name in found if name.startswith("Qh")]
    ordered = [f"mh_{t}c", *overlaps, *(name for name in found if name.startswith("Vh"))]
    return {name: found[name] for name in ordered} | {"0": alpha * average(f"sum_c rho_c E_c[f_{t}]", 1)}


# In print.


def document(losses: Sequence[Loss], count: int) -> list[Step]:
    """Setting, derivation and equations of a chain with K = ``count`` classes.

    Raises
    ------
    ValueError
        If a loss has no form for K classes.
    """
    steps = [
        Step(
            "Setting",
            "`N` inputs, `M = alpha N` samples `x = mu_c/sqrt(N) + sqrt(Delta_c) z` of class `c` with probability `rho_c`, and the "
            f"Gram matrix `Gamma = mu.mu/N` of the means.  A stage has {count} logits, or {count - 1} coordinates of logits that "
            "sum to 0, and minimises the sum over samples of its loss plus `lambda/2 |w|^2` over `h = w.x/sqrt(N) + b`.  Blocks do "
            "not commute.  The chain:",
            code=tuple(f"stage {t}: {loss!r}" for t, loss in enumerate(losses, start=1)),
        )
    ]
    for t, loss in enumerate(losses, start=1):
        steps += [_entropic_step(t), _proximal_step(t, loss), _channel_step(t), _prior_step(t)]
        if t < len(losses):
            steps.append(_weights_step(t))
    return steps


def _lines(values: Mapping[str, MatrixExpr]) -> tuple[Expr, ...]:
    return tuple(Eq(MatrixSymbol(name, *value.shape), value, evaluate=False) for name, value in values.items())


def _entropic_step(t: int) -> Step:
    text = (
        "The pulls of the fields on the weights of `n` replicas are one Gaussian vector, of covariance `C`.  At inverse "
        "temperature `beta` the replicated action has the matrix `beta L` on differences of replicas and `beta L - n beta^2 C` on "
        "what they have in common, `L = lambda + Vh`, so that the logarithm of its integral is `-1/2` times "
        "`(n-1) log det beta L + log det (beta L - n beta^2 C)`.  "
        "Divided by `n beta`, for `n -> 0` and `beta -> infinity`, half the trace of `C/L` is left."
    )
    if t > 1:
        text += "  `mu`, `B`, `G` are moments of the earlier weights over the active coordinates."
    square = second_moment(t)
    half_trace = eta * Trace(Inverse(curvature(t)) * MatrixSymbol("C", *square.shape)) / 2
    psi = Eq(Symbol("Psi_w"), half_trace, evaluate=False)
    return Step(f"Stage {t}: entropic part", text, (*_lines({"C": square}), psi), f"{t}.entropic")


def _proximal_step(t: int, loss: Loss) -> Step:
    h, u, f = (MatrixSymbol(f"{name}_{t}", d, 1) for name in "huf")
    shift = [delta * response(t, s) * MatrixSymbol(f"f_{s}", d, 1) for s in range(1, t)]
    point = {
        f"u_{t}": MatAdd(MatrixSymbol(f"omega_{t}", d, 1), *shift).doit(),
        f"h_{t}": u + delta * response(t, t) * f,
    }
    field = "`Delta` is that of the class, and `omega` the cavity field with mean `m_c + b` and covariance `Delta Q`."
    title, key = f"Stage {t}: proximal point", f"{t}.proximal"
    if loss.is_formula:
        text = f"On a training sample.  `l` is `{loss.text}`; {field}"
        return Step(title, text, _lines({f"f_{t}": -average(f"grad l(h_{t})", 1)} | point), key)
    form = softmax_form(loss)
    weights = [form.linear * h, form.hard * average(f"p(h_{t})", 1), form.soft * average(f"p(h_{t}/T)", 1)]
    slope = {f"S(h_{t})": MatAdd(*(term for term in weights if term != ZeroMatrix(d, 1))).doit()}
    target = [form.labels * MatrixSymbol("e_y", d, 1)]
    target += [form.taught * average("tau(h_teacher)", 1), form.gain * MatrixSymbol("h_teacher", d, 1)]
    target = {f"c_{t}": MatAdd(*(term for term in target if term != ZeroMatrix(d, 1))).doit()}
    force = {f"f_{t}": MatrixSymbol(f"c_{t}", d, 1) - average(f"S(h_{t})", 1)}
    text = (
        "On a training sample.  `p` is softmax, `e_y` the label, smoothed if the loss says so, `tau` what is kept of the teacher's "
        f"probabilities; {field}"
    )
    return Step(title, text, _lines(slope | target | force | point), key)


def _channel_step(t: int) -> Step:
    text = "The potential is stationary in the order parameters; derivatives are total.  The last line fixes the bias."
    return Step(f"Stage {t}: conjugates (channel)", text, _lines(channel_equations(t)), f"{t}.channel")


def _prior_step(t: int) -> Step:
    text = (
        "The potential is stationary in the conjugates.  Where coordinates have variances Lambda of their own, `Qh` and `Vh` of "
        "each are times Lambda, `eta` is its share, and its parts of `Q` and `V` are times Lambda."
    )
    return Step(f"Stage {t}: order parameters (prior)", text, _lines(prior_equations(t)), f"{t}.prior")


def _weights_step(t: int) -> Step:
    text = (
        "A weight is `w = a v + G xi`, with `v` the coordinates of the means and the fields of all stages so far; per active "
        "coordinate `mu` is `a Gamma`, and `B` the sum of `a Gamma` times `a` and of `G Qh` times `G`, transposed."
    )
    return Step(f"Stage {t}: weights, for later stages", text, _lines(propagators(t)), f"{t}.weights")
