"""SymPy expressions as the source of functions that numba compiles, written so that nothing cancels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
from sympy.printing.pycode import PythonCodePrinter

from theory.functions import sigmoid, step
from theory.symbols import y


class NumbaPrinter(PythonCodePrinter):
    """Prints expressions as scalar Python that numba compiles."""

    def _print_sigmoid(self, expression: sympy.Expr) -> str:
        return f"sigmoid({self._print(expression.args[0])})"

    def _print_softplus(self, expression: sympy.Expr) -> str:
        return f"softplus({self._print(expression.args[0])})"

    def _print_step(self, expression: sympy.Expr) -> str:
        return f"(0.5 + 0.5*np.sign({self._print(expression.args[0])}))"

    def _print_log_sum_exp(self, expression: sympy.Expr) -> str:
        return f"log_sum_exp(({', '.join(map(self._print, expression.args))}))"

    def _print_Pow(self, expression: sympy.Expr, rational: bool = False) -> str:
        base, exponent = expression.as_base_exp()
        if exponent.is_Integer and 2 <= abs(int(exponent)) <= 4:
            factor = self._print(base) if base.is_Atom else f"({self._print(base)})"
            product = "*".join([factor] * abs(int(exponent)))
            return f"({product})" if exponent > 0 else f"(1.0/({product}))"
        return super()._print_Pow(expression, rational=rational)

    def _print_Rational(self, expression: sympy.Rational) -> str:
        return f"({expression.p}.0/{expression.q}.0)"

    def _print_Integer(self, expression: sympy.Integer) -> str:
        return f"{expression.p}.0"


_printer = NumbaPrinter({"fully_qualified_modules": True, "allow_unknown_functions": False})


def statements(
    assignments: Sequence[tuple[str, sympy.Expr]], names: Mapping[sympy.Symbol, str], indent: str = "    "
) -> str:
    """Assignment lines ``target = expression``, common subexpressions taken out.

    Raises
    ------
    NotImplementedError
        If an expression holds a function that has no compiled counterpart; the message names it.
    """
    # Dummies keep user parameter names from clashing with anything in the generated function.
    stand_ins = {symbol: sympy.Symbol(f"in_{k}", real=True) for k, symbol in enumerate(names)}
    sources = {stand_ins[symbol]: name for symbol, name in names.items()}
    expressions = [sympy.sympify(expression).xreplace(stand_ins) for _, expression in assignments]
    shared, reduced = sympy.cse(expressions, symbols=sympy.numbered_symbols("common_"), optimizations="basic")
    used = set().union(*(e.free_symbols for e in [*reduced, *(e for _, e in shared)])) if expressions else set()
    lines = [f"{symbol} = {sources[symbol]}" for symbol in sorted(used & set(sources), key=str)]
    lines += [f"{symbol} = {_print(expression)}" for symbol, expression in shared]
    lines += [f"{target} = {_print(e)}" for (target, _), e in zip(assignments, reduced, strict=True)]
    return "".join(f"{indent}{line}\n" for line in lines)


def _print(expression: sympy.Expr) -> str:
    try:
        return _printer.doprint(expression)
    except Exception as error:
        raise NotImplementedError(f"cannot compile the expression {expression}: {error}") from None


def function(
    name: str, arguments: Sequence[str], body: str, result: str = "", *, signature: str = "", options: str = "OPTIONS"
) -> str:
    """Source of one compiled function; with a signature it is compiled when its module is first imported."""
    decorator = f"@njit({signature + ', ' if signature else ''}**{options})\n"
    text = f"{decorator}def {name}({', '.join(arguments)}):\n{body or '    pass' + chr(10)}"
    return text + (f"    return {result}\n" if result else "") + "\n\n"


HEADER_TEXT = (
    "from __future__ import annotations\n\nimport math\n\nimport numpy as np\nfrom numba import types\n\n"
    "from numerics.codegen.cache import njit\nfrom numerics.scalar.kernels.elementary import *\n\n\n"
)


def without_cancellation(expression: sympy.Expr) -> sympy.Expr:
    """Write ``sigmoid(x) - 1`` as ``-sigmoid(-x)``: the same number, to full relative accuracy where it is small.

    Likewise means of several less 1, and ``step``, where it makes exact zeros.
    """

    def complement(sum_: sympy.Expr) -> sympy.Expr:
        constant, rest = sum_.as_coeff_Add()
        terms = [term.as_coeff_Mul() for term in sympy.Add.make_args(rest)]
        if constant == 0 or constant != -sum(factor for factor, _ in terms):
            return sum_
        if not all(isinstance(function, (sigmoid, step)) and factor * constant < 0 for factor, function in terms):
            return sum_
        return sympy.Add(*(-factor * function.func(-function.args[0]) for factor, function in terms))

    return sympy.sympify(expression).replace(lambda e: isinstance(e, sympy.Add), complement)


def gathered(expression: sympy.Expr) -> sympy.Expr:
    """Terms gathered by factors other than sigmoids and steps, so that ``a sigmoid(x) - a`` shows its ``sigmoid(x) - 1``."""
    # An exponential is left whole: exp(-(h - c)^2) in parts is a product of what overflows and what vanishes.
    whole = {exponential: sympy.Dummy(real=True) for exponential in expression.atoms(sympy.exp)}
    expression = sympy.expand(expression.xreplace(whole), power_base=False)
    groups: dict[sympy.Expr, list[sympy.Expr]] = {}
    for term in sympy.Add.make_args(expression):
        functions = [f for f in sympy.Mul.make_args(term) if isinstance(f, (sigmoid, step))]
        outside = sympy.Mul(*(f for f in sympy.Mul.make_args(term) if f not in functions))
        number, outside = outside.as_coeff_Mul()
        groups.setdefault(outside, []).append(number * sympy.Mul(*functions))
    # Each group is rewritten by itself: added up first, the groups' constants would merge.
    collected = sympy.Add(*(outside * without_cancellation(sympy.Add(*inside)) for outside, inside in groups.items()))
    return collected.xreplace({stand_in: exponential for exponential, stand_in in whole.items()})


def by_label(text: Sequence[tuple[str, sympy.Expr]], names: Mapping[sympy.Symbol, str]) -> str:
    """The assignments with the label put in: 1 - sigmoid(h) and -sigmoid(h) then come out without cancellation."""
    body = ""
    for condition, value in (("if y > 0.5:", 1), ("else:", 0)):
        assignments = [
            (target, without_cancellation(gathered(expression.subs(y, value)))) for target, expression in text
        ]
        body += f"    {condition}\n" + statements(assignments, names, indent=" " * 8)
    return body


class complement(sympy.Function):  # noqa: N801 - a mathematical function
    """``erfc``, safe from SymPy's ``erfc(-x) = 2 - erfc(x)``, which would bring the cancellation back."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return -2 * sympy.exp(-(self.args[0] ** 2)) / sympy.sqrt(sympy.pi)


def with_tails(expression: sympy.Expr) -> sympy.Expr:
    """Rewrite ``1 + erf(x)`` and ``1 - erf(x)`` by ``erfc``, which keeps its digits where the two cancel."""

    def rewrite(total: sympy.Expr) -> sympy.Expr:
        constant, rest = total.as_independent(sympy.erf)
        factor, function = rest.as_coeff_Mul()
        if isinstance(function, sympy.erf) and abs(factor) == abs(constant):
            return constant * complement(-(factor / constant) * function.args[0])
        return total

    return expression.replace(lambda e: e.is_Add and e.has(sympy.erf), rewrite)
