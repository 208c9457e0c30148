"""Code generation: SymPy expressions from ``theory`` become Python source, which numba compiles and caches on disk.

Three kinds of module are generated: one for each loss formula, one for each position in a chain (equations of the prior and
of the conjugates), and one core, in which the kernel files of :mod:`numerics.kernels` are joined with the generated moments.
The core calls the others through pointers, so that a new loss compiles in a second.  Modules are named by a hash of their
source; they and their machine code are kept by :mod:`numerics.cache`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import sympy
from numba.core import types
from sympy.printing.pycode import PythonCodePrinter

from numerics import kernels
from numerics.cache import derived_source, load
from numerics.kernels.elementary import SEARCHED, SHARED
from theory import envelope, potential
from theory.functions import sigmoid, step
from theory.losses import Loss
from theory.symbols import h, y

_KERNELS = Path(kernels.__file__).parent
_KERNEL_IMPORT = re.compile(
    r"^(from (numerics\.kernels\.\w+|\._generated|numba|__future__) import (\([^)]*\)|[^(\n]*)[^\n]*|import (math|numpy as np))\n",
    re.MULTILINE,
)
_HEADER = re.compile(r'\A(""".*?"""\n)?\s*from __future__ import annotations\n', re.DOTALL)
_CORE = ("points", "panels", "grid", "moments", "nodes", "stage", "chain", "lists")
"""Kernel files of the core, each after those it needs."""


class NumbaPrinter(PythonCodePrinter):
    """Prints expressions as scalar Python that numba compiles."""

    def _print_sigmoid(self, expression: sympy.Expr) -> str:
        return f"sigmoid({self._print(expression.args[0])})"

    def _print_softplus(self, expression: sympy.Expr) -> str:
        return f"softplus({self._print(expression.args[0])})"

    def _print_step(self, expression: sympy.Expr) -> str:
        return f"(0.5 + 0.5*np.sign({self._print(expression.args[0])}))"

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


def function(name: str, arguments: Sequence[str], body: str, result: str = "", *, signature: str = "") -> str:
    """Source of one compiled function; with a signature it is compiled when its module is first imported."""
    decorator = f"@njit({signature + ', ' if signature else ''}**OPTIONS)\n"
    text = f"{decorator}def {name}({', '.join(arguments)}):\n{body or '    pass' + chr(10)}"
    return text + (f"    return {result}\n" if result else "") + "\n\n"


_HEADER_TEXT = (
    "from __future__ import annotations\n\nimport math\n\nimport numpy as np\nfrom numba import types\n\n"
    "from numerics.cache import njit\nfrom numerics.kernels.elementary import *\n\n\n"
)


def fill(templates: Sequence[str], definitions: str) -> str:
    """Source of a module: kernel files one after the other, their imports of each other and of generated names taken out."""
    text = _HEADER_TEXT + definitions
    for template in templates:
        body = (_KERNELS / f"{template}.py").read_text(encoding="utf-8")
        text += _KERNEL_IMPORT.sub("", _HEADER.sub("", body)) + "\n"
    return text


def _loss_names(loss: Loss) -> dict[sympy.Symbol, str]:
    names = {h: "h", y: "y"}
    names |= {symbol: f"logits[{k}]" for k, symbol in enumerate(loss.logits)}
    return names | {symbol: f"parameters[{k}]" for k, symbol in enumerate(loss.symbols)}


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


def _collected(expression: sympy.Expr) -> sympy.Expr:
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


def _by_label(text: Sequence[tuple[str, sympy.Expr]], names: Mapping[sympy.Symbol, str]) -> str:
    """The assignments with the label put in: 1 - sigmoid(h) and -sigmoid(h) then come out without cancellation."""
    body = ""
    for condition, value in (("if y > 0.5:", 1), ("else:", 0)):
        assignments = [
            (target, without_cancellation(_collected(expression.subs(y, value)))) for target, expression in text
        ]
        body += f"    {condition}\n" + statements(assignments, names, indent=" " * 8)
    return body


def loss_definitions(loss: Loss) -> str:
    """Compiled functions ``(h, y, logits, parameters, out)`` of a loss: slopes, targets, features.

    Where the gradient splits into ``S(h) - c``, both are measured from the limit of S at -oo (branch 0) and at +oo (branch 1):
    near saturation the difference then keeps its relative accuracy.  Elsewhere S is the whole gradient and c = 0.
    """
    names = _loss_names(loss)
    split = loss.split
    limits = loss.saturation
    if split is None:
        slopes = _by_label([("out[0]", loss.gradient), ("out[2]", loss.curvature), ("out[3]", loss.third)], names)
        slopes += "    out[1] = out[0]\n"
        targets = "    out[0] = 0.0\n    out[1] = 0.0\n"
    else:
        measured = [
            (f"out[{branch}]", without_cancellation(_collected(split[0] - limit)))
            for branch, limit in enumerate(limits)
        ]
        curvatures = [("out[2]", without_cancellation(loss.curvature)), ("out[3]", without_cancellation(loss.third))]
        slopes = statements([*measured, *curvatures], names)
        targets = _by_label([(f"out[{branch}]", split[1] - limit) for branch, limit in enumerate(limits)], names)
    n = len(loss.features)
    features = statements(
        [
            (f"out[{row * n + k}]", entry)
            for k, feature in enumerate(loss.features)
            for row, entry in enumerate(feature)
        ],
        names,
    )
    arguments = ["h", "y", "logits", "parameters", "out"]
    return "".join(
        function(name, arguments, body, signature="POINT_FUNCTION.signature")
        for name, body in (("slopes", slopes), ("targets", targets), ("features", features))
    )


def _vector_function(name: str, equations: potential.Equations) -> str:
    """Compiled function ``(inputs, constants, out)`` of an ``Equations``."""
    body = statements(
        [(f"out[{k}]", expression) for k, expression in enumerate(equations.outputs.values())],
        _equation_names(equations),
    )
    return function(name, ["x", "constants", "out"], body, signature="VECTOR_FUNCTION.signature")


def _jacobian_function(name: str, equations: potential.Equations) -> str:
    """Compiled function that fills the nonzero entries of the flattened Jacobian of an ``Equations``."""
    jacobian = equations.jacobian
    entries = [
        (f"out[{r * jacobian.cols + c}]", jacobian[r, c])
        for r in range(jacobian.rows)
        for c in range(jacobian.cols)
        if jacobian[r, c] != 0
    ]
    body = statements(entries, _equation_names(equations))
    return function(name, ["x", "constants", "out"], body, signature="VECTOR_FUNCTION.signature")


def _equation_names(equations: potential.Equations) -> dict[sympy.Symbol, str]:
    names = {symbol: f"x[{k}]" for k, symbol in enumerate(equations.inputs)}
    return names | {symbol: f"constants[{k}]" for k, symbol in enumerate(equations.constants)}


EQUATION_NAMES = (
    "conjugates",
    "conjugates_jacobian",
    "prior",
    "prior_jacobian",
    "cholesky",
    "cholesky_jacobian",
    "moments",
)
"""Functions of an equations module, in the order the solver's list has them."""


@lru_cache(maxsize=32)
def equations_module(t: int) -> ModuleType:
    """Conjugates from channel averages, prior, Cholesky update and weight moments of stage t: the same for every loss."""
    return load(f"equations{t}", _HEADER_TEXT + derived_source(f"equations{t}", lambda: equation_definitions(t)))


def equation_definitions(t: int) -> str:
    """Source of the functions in ``EQUATION_NAMES``."""
    channel, prior = potential.channel_equations(t), potential.prior_equations(t)
    cholesky = potential.cholesky_update(t)
    text = (
        _vector_function("conjugates", channel)
        + _jacobian_function("conjugates_jacobian", channel)
        + _vector_function("prior", prior)
        + _jacobian_function("prior_jacobian", prior)
        + _vector_function("cholesky", cholesky)
        + _jacobian_function("cholesky_jacobian", cholesky)
        + _vector_function("moments", potential.conditional_moments(t))
    )
    return text


@lru_cache(maxsize=1)
def moment_definitions() -> str:
    """The loop over one node's points, from the moment integrands of ``theory.envelope``.

    An integrand is a polynomial in f and g whose coefficients belong to the point alone; those are tabulated once per grid.
    Factors that are the same for all points are taken out of the sums, and equal sums are done once.
    """
    integrands = envelope.moment_integrands()
    coefficients: dict[sympy.Expr, sympy.Symbol] = {}
    factors: dict[str, sympy.Expr] = {}
    reduced: dict[str, sympy.Expr] = {}
    for name, integrand in integrands.items():
        polynomial = sympy.Poly(sympy.expand(integrand), envelope.f, envelope.g)
        terms = []
        for (power_f, power_g), coefficient in polynomial.terms():
            coefficient = sympy.factor(coefficient)
            outside, rest = coefficient.as_independent(envelope.S1, envelope.S2, envelope.gamma, as_Add=False)
            if rest != 1:
                rest = coefficients.setdefault(rest, sympy.Symbol(f"k_{len(coefficients)}", real=True))
            terms.append((outside, rest * envelope.f**power_f * envelope.g**power_g))
        factors[name] = terms[0][0]
        reduced[name] = sympy.Add(*(outside / factors[name] * term for outside, term in terms))
    unique = list(dict.fromkeys(reduced.values()))
    table_names = {envelope.S1: "slope1", envelope.S2: "slope2", envelope.gamma: "gamma"}
    text = f"N_MOMENTS = {len(reduced) + 1}\nTABLE_ROWS = {5 + len(coefficients)}\nDENSITY_ROW = 4\n\n\n"
    text += function(
        "point_coefficients",
        ["slope1", "slope2", "gamma", "tables", "j"],
        statements([(f"tables[{5 + k}, j]", e) for k, e in enumerate(coefficients)], table_names),
    )
    names = {envelope.f: "f", envelope.g: "g"}
    names |= {symbol: f"row_{k}[j]" for k, symbol in enumerate(coefficients.values())}
    lines = ["    sum_norm = 0.0"] + [f"    sum_{k} = 0.0" for k in range(len(unique))]
    lines += [f"    row_{k} = tables[{5 + k}, first:last]" for k in range(len(coefficients))]
    lines += [
        "    position = tables[position_row, first:last]",
        "    gradient = tables[slope_row, first:last]",
        "    density = tables[DENSITY_ROW, first:last]",
        "    for j in range(np.uint64(last - first)):",
        "        g = (position[j] - centre) * inverse_sigma",
        "        w = density[j] * exp_nonpositive(-0.5 * g * g)",
        "        f = target - gradient[j]",
        "        sum_norm += w",
    ]
    body = "\n".join(lines) + "\n"
    body += statements([(f"term_{k}", e) for k, e in enumerate(unique)], names, indent=" " * 8)
    body += "".join(f"        sum_{k} += w * term_{k}\n" for k in range(len(unique)))
    body += "    sums[0, node] = sum_norm\n"
    for row, (name, expression) in enumerate(reduced.items(), start=1):
        factor = statements([("factor", factors[name])], {envelope.sigma: "(1.0 / inverse_sigma)"})
        body += factor + f"    sums[{row}, node] = factor * sum_{unique.index(expression)}\n"
    arguments = [
        "centre",
        "inverse_sigma",
        "target",
        "first",
        "last",
        "position_row",
        "slope_row",
        "tables",
        "sums",
        "node",
    ]
    loop = function("accumulate_pairs", arguments, body)
    return text + loop.replace(
        "@njit(**OPTIONS)",
        '@njit(fastmath={"reassoc", "contract", "nsz", "arcp", "nnan", "ninf"}, **OPTIONS)',
    )


class _ByFormula:
    """A loss compared by its formula alone: code does not depend on parameter values."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self._key = (loss.expression, loss.symbols)

    def source(self, name: str, derive: Callable[[Loss], str]) -> str:
        """Text derived from the formula, kept in the cache folder."""
        digest = hashlib.sha256(sympy.srepr(self._key).encode()).hexdigest()[:16]
        return derived_source(f"{name}_{digest}", lambda: derive(self.loss))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByFormula) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=1)
def core_module() -> ModuleType:
    """The solver: the kernel files joined with the generated moments, compiled once for all losses and chain lengths."""
    return load(
        "core",
        fill(
            ("points", "panels", "grid", "moments", "nodes", "stage", "chain", "lists"),
            derived_source("moments", moment_definitions),
        ),
    )


def grid_kind(loss: Loss, may_share: bool = True) -> int:
    """What ``kernels/grid.py`` is told of a loss: the sum of SHARED and SEARCHED, as they apply."""
    shared = SHARED if may_share and loss.split is not None else 0
    return shared + (0 if loss.bends_are_known else SEARCHED)


class CompiledLoss(NamedTuple):
    """Point functions of a loss, for any parameter values, with their addresses looked up: numba would do so at every call."""

    slopes: types.CompileResultWAP
    targets: types.CompileResultWAP
    features: types.CompileResultWAP


def loss_module(loss: Loss) -> CompiledLoss:
    """Compiled ``slopes``, ``targets`` and ``features`` of a loss."""
    return _loss_module(_ByFormula(loss))


@lru_cache(maxsize=256)
def _loss_module(formula: _ByFormula) -> CompiledLoss:
    module = load("loss", _HEADER_TEXT + formula.source("loss", loss_definitions))
    functions = (getattr(module, name) for name in CompiledLoss._fields)
    return CompiledLoss(*(types.CompileResultWAP(next(iter(f.overloads.values()))) for f in functions))


class LossFunctions:
    """A loss as compiled functions of arrays: ``h``, ``y`` of shape (n,), earlier logits of shape (n, l) in the loss's order.

    The gradient and the curvatures use the expressions that are free of cancellation near saturation.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self._module = _pointwise_module(_ByFormula(loss))
        self._parameters = np.array(loss.values, dtype=float)

    def value(self, h: np.ndarray, y: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """l(h; y, earlier logits), shape (n,)."""
        return self._call(self._module.value, h, y, logits)

    def derivatives(self, h: np.ndarray, y: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """dl/dh and d2l/dh2, each of shape (n,)."""
        first = np.empty_like(h)
        second = np.empty_like(h)
        self._module.derivatives(h, y, logits, self._parameters, first, second)
        return first, second

    def mixed(self, h: np.ndarray, y: np.ndarray, logits: np.ndarray, k: int) -> np.ndarray:
        """d2l/(dh dh_k) for the k-th of the logits the loss looks at (0-based), shape (n,)."""
        return self._call(getattr(self._module, f"mixed_{k}"), h, y, logits)

    def _call(self, compiled, h: np.ndarray, y: np.ndarray, logits: np.ndarray) -> np.ndarray:
        out = np.empty_like(h)
        compiled(h, y, logits, self._parameters, out)
        return out


@lru_cache(maxsize=256)
def _pointwise_module(formula: _ByFormula) -> ModuleType:
    return load("pointwise", _HEADER_TEXT + formula.source("pointwise", pointwise_definitions))


def pointwise_definitions(loss: Loss) -> str:
    """Source of ``value``, ``derivatives`` and ``mixed_k`` over arrays, for :class:`LossFunctions`."""
    names = _loss_names(loss)
    scalar = [
        ("value_at", [("r0", loss.expression)], "r0 + 0.0"),
        ("derivatives_at", [("r0", loss.gradient), ("r1", loss.curvature)], "r0 + 0.0, r1 + 0.0"),
    ]
    scalar += [
        (f"mixed_{k}_at", [("r0", sympy.diff(loss.gradient, symbol))], "r0 + 0.0")
        for k, symbol in enumerate(loss.logits)
    ]
    text = ""
    for name, assignments, result in scalar:
        text += function(name, ["h", "y", "logits", "parameters"], _by_label(assignments, names), result)
        outputs = ["out"] if result.count(",") == 0 else ["first", "second"]
        left = ", ".join(f"{output}[i]" for output in outputs)
        body = f"    for i in range(h.size):\n        {left} = {name}(h[i], y[i], logits[i], parameters)\n"
        text += function(name.removesuffix("_at"), ["h", "y", "logits", "parameters", *outputs], body)
    return text
