"""Functions that stay symbolic, and rewriting of user formulas in terms of them.

SymPy has no sigmoid: written with exponentials, the derivatives of a logistic loss grow with each
differentiation and overflow when evaluated.  ``sigmoid`` and ``softplus`` are closed under differentiation
and a code generator can map each to one safe numerical routine.  ``step`` is the sigmoid's limit at infinite
gain; unlike SymPy's Heaviside function it differentiates to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mpmath import mp, workprec
from sympy import Add, Expr, Float, Function, Mul, Pow, Rational, S, cosh, exp, log


class sigmoid(Function):  # noqa: N801 - a mathematical function, named as sympy names them
    """Logistic function 1/(1 + exp(-x)); derivative sigmoid(x) (1 - sigmoid(x))."""

    nargs = 1

    @classmethod
    def eval(cls, x: Expr) -> Expr | None:
        if x is S.NaN:
            return S.NaN
        if x is S.Infinity:
            return S.One
        if x is S.NegativeInfinity:
            return S.Zero
        if x.is_zero:
            return Rational(1, 2)
        return None

    def fdiff(self, argindex: int = 1) -> Expr:
        return self * (1 - self)

    def inverse(self, argindex: int = 1):
        return lambda p: log(p / (1 - p))

    def _eval_rewrite_as_exp(self, x: Expr, **kwargs) -> Expr:
        return 1 / (1 + exp(-x))

    def _eval_evalf(self, prec: int) -> Expr | None:
        x = self.args[0]._eval_evalf(prec)
        if x is None or (not x.is_Float and not x.is_Integer):
            return None
        with workprec(prec + 10):
            value = mp.mpf(x._to_mpmath(prec))
            return Float._new((1 / (1 + mp.exp(-value)))._mpf_, prec)

    def _eval_is_real(self) -> bool | None:
        return True if self.args[0].is_extended_real else None

    def _eval_is_positive(self) -> bool | None:
        return True if self.args[0].is_real else None

    def _latex(self, printer, exp=None) -> str:
        power = "" if exp is None else f"^{{{exp}}}"
        return rf"\sigma{power}\left({printer._print(self.args[0])}\right)"


class softplus(Function):  # noqa: N801
    """log(1 + exp(x)), the primitive of the sigmoid."""

    nargs = 1

    @classmethod
    def eval(cls, x: Expr) -> Expr | None:
        if x is S.NaN:
            return S.NaN
        if x is S.Infinity:
            return S.Infinity
        if x is S.NegativeInfinity:
            return S.Zero
        if x.is_zero:
            return log(2)
        return None

    def fdiff(self, argindex: int = 1) -> Expr:
        return sigmoid(self.args[0])

    def _eval_rewrite_as_exp(self, x: Expr, **kwargs) -> Expr:
        return log(1 + exp(x))

    def _eval_evalf(self, prec: int) -> Expr | None:
        x = self.args[0]._eval_evalf(prec)
        if x is None or (not x.is_Float and not x.is_Integer):
            return None
        with workprec(prec + 10):
            return Float._new(_mp_softplus(mp.mpf(x._to_mpmath(prec)))._mpf_, prec)

    def _eval_is_real(self) -> bool | None:
        return True if self.args[0].is_extended_real else None

    def _eval_is_positive(self) -> bool | None:
        return True if self.args[0].is_real else None

    def _latex(self, printer, exp=None) -> str:
        power = "" if exp is None else f"^{{{exp}}}"
        return rf"\operatorname{{softplus}}{power}\left({printer._print(self.args[0])}\right)"


class step(Function):  # noqa: N801
    """0 below 0, 1 above, 1/2 at 0: the limit of sigmoid(beta x) for beta -> oo, x by x.

    Its derivative is 0, which is right away from the jump.  A loss may hold a step in the logits of earlier
    stages, never in its own; the response of such a target to its teacher is an average over a Gaussian field,
    so it goes through Stein's lemma, and the delta function at the jump is not needed.
    """

    nargs = 1

    @classmethod
    def eval(cls, x: Expr) -> Expr | None:
        if x is S.NaN:
            return S.NaN
        if x.is_zero:
            return Rational(1, 2)
        if x.is_extended_positive:
            return S.One
        if x.is_extended_negative:
            return S.Zero
        # Positive factors make no difference.
        factors = Mul.make_args(x)
        rest = [factor for factor in factors if not factor.is_positive]
        return None if len(rest) == len(factors) else cls(Mul(*rest))

    def fdiff(self, argindex: int = 1) -> Expr:
        return S.Zero

    def _eval_evalf(self, prec: int) -> Expr | None:
        x = self.args[0]._eval_evalf(prec)
        return None if x is None or not x.is_number else step(x)

    def _eval_is_real(self) -> bool | None:
        return True if self.args[0].is_extended_real else None

    def _eval_is_nonnegative(self) -> bool | None:
        return True if self.args[0].is_extended_real else None

    def _latex(self, printer, exp=None) -> str:
        power = "" if exp is None else f"^{{{exp}}}"
        return rf"\Theta{power}\left({printer._print(self.args[0])}\right)"


def _mp_softplus(x):
    return mp.log1p(mp.exp(x)) if x < 0 else x + mp.log1p(mp.exp(-x))


def _math_sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    z = math.exp(x)
    return z / (1.0 + z)


def _math_softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _step(x):
    """0, 1/2 or 1; NaN for NaN."""
    return x if x != x else 0.5 * ((x > 0) + (x >= 0))


MATH: dict[str, Callable] = {"sigmoid": _math_sigmoid, "softplus": _math_softplus, "step": _step}
"""Float versions, for ``sympy.lambdify(..., modules=[MATH, "math"])``."""

MPMATH: dict[str, Callable] = {
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "softplus": _mp_softplus,
    "step": lambda x: mp.mpf(_step(x)),
}
"""Arbitrary-precision versions, for ``sympy.lambdify(..., modules=[MPMATH, "mpmath"])``."""


def stabilise(expression: Expr) -> Expr:
    """Rewrite exponentials of logistic losses by ``sigmoid`` and ``softplus``.

    Recognised: log(e^a + e^b), 1/(1 + e^a), e^a/(1 + e^a), log cosh, log of a sigmoid or of one minus a
    sigmoid.  A sign that can be taken out of the argument is taken out (sigmoid(-x) = 1 - sigmoid(x)), so
    that equal functions become equal expressions.  What is not recognised is left as it is.
    """
    expression = expression.replace(lambda e: isinstance(e, Pow), _stabilise_power)
    expression = expression.replace(lambda e: isinstance(e, Mul), _stabilise_product)
    expression = expression.replace(lambda e: isinstance(e, log), _stabilise_log)
    return canonical_signs(expression)


def canonical_signs(expression: Expr) -> Expr:
    """Replace sigmoid(-x) by 1 - sigmoid(x), step(-x) by 1 - step(x) and softplus(-x) by softplus(x) - x."""

    def flips(e: Expr) -> bool:
        return isinstance(e, (sigmoid, softplus, step)) and e.args[0].could_extract_minus_sign()

    def flip(e: Expr) -> Expr:
        x = -e.args[0]
        return softplus(x) - x if isinstance(e, softplus) else 1 - e.func(x)

    return expression.replace(flips, flip)


def _exponents(expression: Expr) -> list[Expr] | None:
    """[a, b] if ``expression`` is e^a + e^b (a number 1 counts as e^0), else None."""
    if not isinstance(expression, Add) or len(expression.args) != 2:
        return None
    exponents = []
    for term in expression.args:
        if term is S.One:
            exponents.append(S.Zero)
        elif isinstance(term, exp):
            exponents.append(term.args[0])
        else:
            return None
    return exponents


def _stabilise_power(power: Expr) -> Expr:
    exponents = _exponents(power.base)
    if exponents is None or not power.exp.is_negative or S.Zero not in exponents:
        return power
    (exponent,) = [e for e in exponents if e is not S.Zero]
    return sigmoid(-exponent) ** (-power.exp)


def _stabilise_product(product: Expr) -> Expr:
    factors = list(product.args)
    for factor in factors:
        if isinstance(factor, exp):
            for position, other in enumerate(factors):
                base, power = other.as_base_exp()
                if isinstance(base, sigmoid) and base.args[0] == -factor.args[0] and power.is_positive:
                    factors[position] = base ** (power - 1) * sigmoid(factor.args[0])
                    factors.remove(factor)
                    return Mul(*factors)
    return product


def _stabilise_log(logarithm: Expr) -> Expr:
    argument = logarithm.args[0]
    exponents = _exponents(argument)
    if exponents is not None:
        first, second = exponents
        return second + softplus(first - second) if second is S.Zero else first + softplus(second - first)
    if isinstance(argument, cosh):
        x = argument.args[0]
        return softplus(2 * x) - x - log(2)
    if isinstance(argument, sigmoid):
        return -softplus(-argument.args[0])
    complement = 1 - argument
    if isinstance(complement, sigmoid):
        return -softplus(complement.args[0])
    return logarithm
