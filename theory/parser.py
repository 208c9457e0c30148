"""Reading a loss that a user wrote as a formula."""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import sympy
from sympy import Add, Expr, Integer, Mul, Pow, Symbol
from sympy.core.function import AppliedUndef
from sympy.parsing.sympy_parser import convert_xor, parse_expr, rationalize, standard_transformations

from theory.functions import sigmoid, softplus, stabilise, step
from theory.symbols import TEACHER, h, logit, sign, y

FUNCTIONS = {
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
"""What a formula may hold, by name."""
_A_SMOOTH_ONE = "it has a kink; smooth ones are"
HINTS = {
    "ln": "the natural logarithm is log",
    "log2": "write log(x)/log(2)",
    "log10": "write log(x)/log(10)",
    "log1p": "write log(1 + x), which is evaluated without cancellation",
    "expm1": "write exp(x) - 1, which is evaluated without cancellation",
    "e": "write exp(1)",
    "lambda": "it is a word of Python; call the parameter otherwise, and the ridge is one of the stage",
    "arctan": "write atan",
    "arcsinh": "write asinh",
    "sign": f"{_A_SMOOTH_ONE} tanh(x/a), and the sign of the label is s",
    "max": f"{_A_SMOOTH_ONE} a*softplus(x/a) for max(0, x)",
    "relu": f"{_A_SMOOTH_ONE} a*softplus(x/a)",
    "abs": f"{_A_SMOOTH_ONE} sqrt(x**2 + a**2)",
}
"""What to write for a name that is not known."""

DATA_NAMES = ("alpha", "rho", "delta", "Delta", "noise", "slope", "output", "label_noise", "further", "inputs")
STAGE_NAMES = (
    "loss",
    "ridge",
    "eta",
    "name",
    "bias",
    "sets",
    "mask_overlap",
    "features",
    "magnetization",
    "norm_squared",
)
MODEL_NAMES = frozenset((*DATA_NAMES, *STAGE_NAMES))
"""Names that mean something else in the same places as a loss's parameters: on axes, in files, in the printed equations."""

HIGHEST_POWER = 100
"""Largest exponent of a variable.  Above it, numbers leave the range of floats at ordinary logits."""

LONGEST_NUMBER = 300
"""Decimal digits that a number in a formula may have before its point; floats have no more."""

MOST_TERMS = 5000
"""Terms that a formula may have when it is multiplied out."""

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
    reserved = {"h", "y", "s", "h_teacher", *FUNCTIONS}
    is_name = isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)
    if not is_name or key in reserved or re.fullmatch(r"h_[0-9]+", key):
        raise ValueError(f"{key!r} cannot name a parameter of a loss{hints([key]) if isinstance(key, str) else ''}")
    if key in MODEL_NAMES:
        raise ValueError(f"{key!r} cannot name a parameter of a loss: it is a parameter of the data or of a stage")
    return Symbol(key, real=True)


def require_used(expression: str | Expr, formula: Expr, parameters: Mapping[str, Symbol]) -> None:
    """ValueError for a parameter that the formula read from ``expression`` does not have."""
    used = [key for key, symbol in parameters.items() if symbol in formula.free_symbols]
    for key in parameters:
        if key not in used:
            raise ValueError(f"the loss {expression!s} has no parameter {key!r}; it has {', '.join(used) or 'none'}")


def names_label(expression: str | Expr) -> bool:
    """Whether a formula names the label y, which is 0 or 1, rather than its sign s."""
    if isinstance(expression, str):
        return re.search(r"\by\b", unicodedata.normalize("NFKC", expression)) is not None
    return any(symbol.name == "y" for symbol in expression.free_symbols)


def names_classes(expression: str | Expr) -> bool:
    """Whether a formula has an index of the class.

    Examples
    --------
    >>> names_classes("logsumexp(h) - Sum(y[k]*h[k], k)"), names_classes("softplus(-s*h)")
    (True, False)
    """
    if isinstance(expression, str):
        return re.search(r"\[|\b(logsumexp|softmax|Sum)\b", expression) is not None
    return isinstance(expression, Expr) and expression.has(sympy.Indexed, sympy.IndexedBase)


def terms_multiplied_out(expression: Expr) -> float:
    """Number of terms, at most, that an expression has when multiplied out."""
    if isinstance(expression, Add):
        return sum(map(terms_multiplied_out, expression.args))
    if isinstance(expression, Mul):
        return math.prod(map(terms_multiplied_out, expression.args))
    if isinstance(expression, Pow) and expression.exp.is_Integer and expression.exp > 1:
        terms, power = terms_multiplied_out(expression.base), int(expression.exp)
        return math.inf if power > HIGHEST_POWER or math.isinf(terms) else math.comb(int(terms) + power - 1, power)
    return max(map(terms_multiplied_out, expression.args), default=1)


def read_formula(expression: str | Expr, parameters: Mapping[str, Symbol]) -> Expr:
    """The formula in the package's symbols, s replaced by 2y - 1 and exponentials by stable functions.

    ValueError, naming the culprit, if it cannot be read, has unknown symbols or kinks, or has no h.
    """
    # Names in the spelling in which Python compares them: an accent may be typed as part of its letter or after it.
    parameters = {unicodedata.normalize("NFKC", key): symbol for key, symbol in parameters.items()}
    names = {"h": h, "y": y, "s": sign, "h_teacher": TEACHER, **parameters}
    if isinstance(expression, str):
        for found in re.findall(r"\bh_([0-9]+)\b", unicodedata.normalize("NFKC", expression)):
            names[f"h_{found}"] = logit(int(found))
        formula = parsed(expression, names)
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
            f"known: h, y, s, h_teacher, h_1, h_2, ..., and the parameters given{hints(unknown)}"
        )
    for power in formula.atoms(Pow):
        if power.exp.is_Rational and abs(power.exp) > HIGHEST_POWER and not power.base.is_number:
            raise ValueError(
                f"the loss {expression!s} has an exponent of {power.exp}; at most {HIGHEST_POWER} is allowed"
            )
    if terms_multiplied_out(formula) > MOST_TERMS:
        raise ValueError(f"the loss {expression!s} has more than {MOST_TERMS} terms when it is multiplied out")
    if formula.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo):
        raise ValueError(f"the loss {expression!s} is not finite")
    if not formula.has(h):
        raise ValueError(f"the loss {expression!s} does not depend on h")
    require_smooth(formula, str(expression), (h,))
    return stabilise(formula)


def parsed(expression: str, names: Mapping[str, object]) -> object:
    """What a text means where these names, and those of functions, are known; ValueError if it cannot be read."""
    expression = unicodedata.normalize("NFKC", expression)
    if "__" in expression or any(mark in expression for mark in "\"'\\;") or _KEYWORDS.search(expression):
        words = _KEYWORDS.findall(expression)
        raise ValueError(f"cannot read the loss formula {expression!r}{hints(words)}")
    _require_size(expression)
    words = {"Integer": Integer, "Float": sympy.Float, "Rational": sympy.Rational, "Symbol": Symbol}
    words |= {"Function": sympy.Function, **FUNCTIONS}
    try:
        return parse_expr(
            expression,
            local_dict=dict(names),
            global_dict=words,
            transformations=(*standard_transformations, convert_xor, rationalize),
        )
    except Exception as error:  # the parser evaluates the text: any exception means it cannot be read
        raise ValueError(f"cannot read the loss formula {expression!r}: {error}") from None


def require_smooth(formula: Expr, text: str, own: Iterable[Symbol]) -> None:
    """ValueError unless a formula is twice differentiable in logits of its own stage."""
    if formula.has(*_ROUGH) or any(jump.has(*own) for jump in formula.atoms(step)):
        raise ValueError(f"the loss {text} is not twice differentiable")


def hints(names: Iterable[str]) -> str:
    """What to write instead of them, to be put behind a message; empty if nothing is known."""
    return "".join(f"; {name}: {HINTS[name.lower()]}" for name in sorted(set(names)) if name.lower() in HINTS)


def _known(symbol: Symbol, names: Mapping[str, Symbol]) -> Symbol:
    """The package's symbol of the same name, whatever assumptions the user's symbol carries."""
    if re.fullmatch(r"h_[1-9][0-9]*", symbol.name):
        return logit(int(symbol.name[2:]))
    return names.get(unicodedata.normalize("NFKC", symbol.name), symbol)


# Sizes are looked at before SymPy is: it would compute 9**9**9.

_OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def _require_size(text: str) -> None:
    """ValueError if a formula holds a power or a number too large to be computed with."""
    for exponent in re.findall(r"\d\.?[eE][+-]?(\d+)", text):
        if len(exponent) > 4 or int(exponent) > LONGEST_NUMBER:
            raise ValueError(f"a number in the loss {text} is too large or too small: its exponent is {exponent[:20]}")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
        powers = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)]
        for power in powers:
            base = _number(power.left)
            for part in ast.walk(power.right):
                exponent = _number(part)
                digits = 0.0 if exponent is None else _digits(base, exponent)
                if digits > LONGEST_NUMBER and base is not None:
                    raise ValueError(f"the loss {text} has a power with more than {LONGEST_NUMBER} digits")
                if digits > LONGEST_NUMBER:
                    raise ValueError(
                        f"the loss {text} has an exponent of {exponent:g}; at most {HIGHEST_POWER} is allowed"
                    )
    except (SyntaxError, RecursionError, MemoryError):
        return  # the parser says what is wrong with it


def _digits(base: float | None, exponent: float) -> float:
    """Decimal digits of a power of a number; for powers of anything else, infinity where they are too high."""
    if base is None:
        return math.inf if abs(exponent) > HIGHEST_POWER else 0.0
    if base == 0.0 or exponent == 0.0:
        return 0.0
    return abs(exponent) * abs(math.log10(abs(base))) if abs(base) < math.inf else math.inf


def _number(node: ast.AST) -> float | None:
    """Value of a part of a formula without names, as a float; None if it has any."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value) if abs(node.value) < 10**LONGEST_NUMBER else math.inf
    if isinstance(node, ast.UnaryOp):
        inner = _number(node.operand)
        return inner if inner is None or not isinstance(node.op, ast.USub) else -inner
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _number(node.left), _number(node.right)
        if left is None or right is None:
            return None
        try:
            value = _OPERATIONS[type(node.op)](left, right)
        except (OverflowError, ZeroDivisionError):
            return math.inf
        return value if isinstance(value, float) else math.nan
    return None
