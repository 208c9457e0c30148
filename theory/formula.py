"""Reading a loss that a user wrote as a formula."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

import sympy
from sympy import Expr, Integer, Symbol
from sympy.core.function import AppliedUndef
from sympy.parsing.sympy_parser import convert_xor, parse_expr, rationalize, standard_transformations

from theory.functions import sigmoid, softplus, stabilise, step
from theory.symbols import TEACHER, h, logit, sign, y

_FUNCTIONS = {
    "sigmoid": sigmoid,
    "softplus": softplus,
    "step": step,
    "exp": sympy.exp,
    "log": sympy.log,
    "sqrt": sympy.sqrt,
    "tanh": sympy.tanh,
    "sinh": sympy.sinh,
    "cosh": sympy.cosh,
    "atan": sympy.atan,
    "asinh": sympy.asinh,
    "erf": sympy.erf,
    "erfc": sympy.erfc,
    "pi": sympy.pi,
}
_KEYWORDS = re.compile(r"\b(and|else|for|if|in|is|lambda|not|or)\b")  # Python, but not formulas
_ROUGH = (sympy.DiracDelta, sympy.Heaviside, sympy.sign, sympy.Abs, sympy.Max, sympy.Min, sympy.Piecewise)


@lru_cache(maxsize=256)
def earlier_logits(expression: Expr) -> tuple[Symbol, ...]:
    """Logits of other stages in an expression: h_1, h_2, ... in order, then h_teacher."""
    symbols = expression.free_symbols
    named = (re.fullmatch(r"h_([1-9][0-9]*)", symbol.name) for symbol in symbols)
    numbered = sorted(int(match[1]) for match in named if match and logit(int(match[1])) in symbols)
    return tuple(logit(number) for number in numbered) + ((TEACHER,) if TEACHER in symbols else ())


def parameter_symbol(key: str) -> Symbol:
    """Symbol of a user's parameter; ValueError if the name is taken."""
    reserved = {"h", "y", "s", "h_teacher", *_FUNCTIONS}
    if not key.isidentifier() or key in reserved or re.fullmatch(r"h_[0-9]+", key):
        raise ValueError(f"{key!r} cannot name a parameter of a loss")
    return Symbol(key, real=True)


def read_formula(expression: str | Expr, parameters: Mapping[str, Symbol]) -> Expr:
    """The formula in the package's symbols, s replaced by 2y - 1 and exponentials by stable functions.

    ValueError, naming the culprit, if it cannot be read, has unknown symbols or kinks, or has no h.
    """
    # Names in the spelling in which Python compares them: an accent may be typed as part of its letter or after it.
    parameters = {unicodedata.normalize("NFKC", key): symbol for key, symbol in parameters.items()}
    names = {"h": h, "y": y, "s": sign, "h_teacher": TEACHER, **parameters}
    if isinstance(expression, str):
        expression = unicodedata.normalize("NFKC", expression)
        if "__" in expression or any(mark in expression for mark in "\"'\\;") or _KEYWORDS.search(expression):
            raise ValueError(f"cannot read the loss formula {expression!r}")
        for found in re.findall(r"\bh_([0-9]+)\b", expression):
            names[f"h_{found}"] = logit(int(found))
        words = {"Integer": Integer, "Float": sympy.Float, "Rational": sympy.Rational, "Symbol": Symbol}
        words |= {"Function": sympy.Function, **_FUNCTIONS}
        try:
            formula = parse_expr(
                expression,
                local_dict=dict(names),
                global_dict=words,
                transformations=(*standard_transformations, convert_xor, rationalize),
            )
        except Exception as error:  # the parser evaluates the text: any exception means it cannot be read
            raise ValueError(f"cannot read the loss formula {expression!r}: {error}") from None
    else:
        formula = expression
    if not isinstance(formula, Expr):
        raise ValueError(f"a loss must be a scalar formula, got {expression!r}")
    formula = sympy.nsimplify(formula, rational=True)
    formula = formula.xreplace({s: _known(s, names) for s in formula.free_symbols}).subs(sign, 2 * y - 1)
    unknown = {str(s) for s in formula.free_symbols if s not in (*names.values(), *earlier_logits(formula))}
    unknown |= {str(f.func) for f in formula.atoms(AppliedUndef)}
    if unknown:
        raise ValueError(
            f"unknown symbols in the loss {expression!s}: {', '.join(sorted(unknown))}; "
            "known: h, y, s, h_teacher, h_1, h_2, ..., and the parameters given"
        )
    if formula.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
        raise ValueError(f"the loss {expression!s} is not finite")
    if not formula.has(h):
        raise ValueError(f"the loss {expression!s} does not depend on h")
    if formula.has(*_ROUGH) or any(jump.has(h) for jump in formula.atoms(step)):
        raise ValueError(f"the loss {expression!s} is not twice differentiable")
    return stabilise(formula)


def _known(symbol: Symbol, names: Mapping[str, Symbol]) -> Symbol:
    """The package's symbol of the same name, whatever assumptions the user's symbol carries."""
    if re.fullmatch(r"h_[1-9][0-9]*", symbol.name):
        return logit(int(symbol.name[2:]))
    return names.get(unicodedata.normalize("NFKC", symbol.name), symbol)
