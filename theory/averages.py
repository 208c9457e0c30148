"""Averages over the label and the cavity fields, differentiated by Stein's lemma.

The fields of all stages are jointly Gaussian given the label, omega_s = s m_s + b_s + sqrt(Delta) sum_k
C_sk g_k with Q = C C^T, so that Cov(omega_s, omega_r) = Delta Q_sr.  For any function X of the fields

    d/dm_s  E[X] = E[ s dX/domega_s ]
    d/db_s  E[X] = E[ dX/domega_s ]
    d/dQ_ss E[X] = (Delta/2) E[ d2X/domega_s^2 ]
    d/dQ_sr E[X] = Delta E[ d2X/domega_s domega_r ]   (s != r)
    E[ g_k X ]   = sqrt(Delta) sum_s C_sk E[ dX/domega_s ]

The first two lines are shifts of the mean; the others are integrations by parts (Stein, Price).
"""

from __future__ import annotations

from sympy import Add, Expr, Function, Integer, Mul, Symbol, diff, sqrt, sympify

from theory.envelope import envelope_derivatives
from theory.envelope import f as force_symbol
from theory.symbols import bias, cholesky, delta, field, logit, magnetization, overlap, response, sign


class GaussianAverage(Expr):
    """E[X] over the label and the cavity fields of stages 1..t: ``GaussianAverage(X, t)``.

    Unevaluated.  Differentiation with respect to m_s, b_s and Q_sr follows the rules above; other symbols
    are differentiated under the average.  Constant factors of a product are taken out; of a sum, its sign
    and content.
    """

    is_commutative = True
    is_real = True

    def __new__(cls, integrand: Expr, stages: int) -> Expr:
        integrand, stages = sympify(integrand), sympify(stages)
        if integrand.is_zero:
            return Integer(0)
        if isinstance(integrand, Add):
            content, integrand = integrand.primitive()
            if integrand.could_extract_minus_sign():
                content, integrand = -content, -integrand
            return content * Expr.__new__(cls, integrand, stages)
        constant, varying = integrand.as_independent(sign, *(field(s) for s in range(1, int(stages) + 1)), as_Add=False)
        if varying == 1:
            return constant
        if constant != 1:
            return constant * cls(varying, stages)
        return Expr.__new__(cls, integrand, stages)

    @property
    def integrand(self) -> Expr:
        """The random quantity that is averaged."""
        return self.args[0]

    @property
    def stages(self) -> int:
        """Number t of stages whose fields are averaged over."""
        return int(self.args[1])

    @property
    def free_symbols(self) -> set[Symbol]:
        """Symbols the average depends on: those of the integrand and the moments of the fields."""
        t = range(1, self.stages + 1)
        fields = {field(s) for s in t} | {sign}
        moments = {overlap(s, r) for s in t for r in range(1, s + 1)}
        return (
            (self.integrand.free_symbols - fields)
            | moments
            | {delta}
            | {magnetization(s) for s in t}
            | {bias(s) for s in t}
        )

    def _eval_derivative(self, variable: Symbol) -> Expr:
        result = GaussianAverage(diff(self.integrand, variable), self.stages)
        for s in range(self.stages, 0, -1):
            along_field = self.along(s)
            if variable == magnetization(s):
                result += along_field(sign)
            elif variable == bias(s):
                result += along_field(Integer(1))
            for r in range(1, s + 1):
                if variable == overlap(s, r):
                    second = diff(diff(self.integrand, field(s)), field(r))
                    weight = delta / 2 if s == r else delta
                    result += weight * GaussianAverage(second, self.stages)
        if variable == delta:
            raise NotImplementedError("the noise Delta is not a variational parameter of the potential")
        return result

    def along(self, s: int):
        """Function X -> E[X d(integrand)/domega_s]."""
        return lambda factor: GaussianAverage(factor * diff(self.integrand, field(s)), self.stages)

    def times_normal(self, k: int) -> Expr:
        """E[g_k X] by Stein's lemma."""
        return sqrt(delta) * Add(
            *(
                cholesky(s, k) * GaussianAverage(diff(self.integrand, field(s)), self.stages)
                for s in range(k, self.stages + 1)
            )
        )

    def _sympystr(self, printer) -> str:
        return f"E[{printer._print(self.integrand)}]"

    def _latex(self, printer, exp=None) -> str:
        power = "" if exp is None else f"^{{{exp}}}"
        return rf"\mathbb{{E}}{power}\left[{printer._print(self.integrand)}\right]"


class MoreauEnvelope(Function):
    """M_t(u, gamma, h_1, ..., h_{t-1}) of an abstract loss of stage t that may look at earlier logits."""

    def fdiff(self, argindex: int = 1) -> Expr:
        rules = envelope_derivatives()
        if argindex == 1:
            return rules["dM_du"].subs(force_symbol, Force(*self.args))
        if argindex == 2:
            return rules["dM_dgamma"].subs(force_symbol, Force(*self.args))
        return TargetSlope(Integer(argindex - 2), *self.args)


class Force(Function):
    """f_t(u, gamma, h_1, ..., h_{t-1}) = - dl_t/dh at the proximal point."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return ForceSlope(Integer(argindex), *self.args)


class ForceSlope(Function):
    """Partial derivative of ``Force`` with respect to its argument number ``args[0]``."""


class TargetSlope(Function):
    """Partial derivative of ``MoreauEnvelope`` with respect to the logit of the stage ``args[0]``."""


def earlier_force(s: int) -> Expr:
    """f_s of an earlier stage: an unknown function of the fields of stages 1..s."""
    return Function(f"f_{s}", real=True)(*(field(r) for r in range(1, s + 1)))


def earlier_logit(s: int) -> Expr:
    """h_s = omega_s + Delta sum_r V_sr f_r of an earlier stage: an unknown function of the fields 1..s."""
    return Function(f"{logit(s).name}", real=True)(*(field(r) for r in range(1, s + 1)))


def proximal_arguments(t: int) -> tuple[Expr, ...]:
    """Arguments (u_t, gamma_t, h_1, ..., h_{t-1}) of the envelope of stage t on a training sample.

    u_t = omega_t + Delta sum_{s<t} V_ts f_s is the field that stage t feels once the earlier stages have
    reacted to the sample; gamma_t = Delta V_tt.
    """
    shift = Add(*(Mul(delta, response(t, s), earlier_force(s)) for s in range(1, t)))
    return (field(t) + shift, delta * response(t, t), *(earlier_logit(s) for s in range(1, t)))
