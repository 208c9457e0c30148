"""Code generation: SymPy expressions from ``theory`` become Python source, which numba compiles and caches on disk.

A generated module is a template (a file of :mod:`numerics.kernels`, ordinary Python) in which the line
``from ._generated import ...`` is replaced by generated function definitions.  Modules are named by a hash of their source
and kept in the user's cache folder, so that numba's own on-disk cache serves every later start.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import llvmlite
import numba
import numpy as np
import platformdirs
import sympy
from sympy.printing.pycode import PythonCodePrinter

from numerics import kernels
from theory import envelope, potential
from theory.functions import sigmoid
from theory.losses import Loss
from theory.symbols import h, y

CACHE_VARIABLE = "REPLICA_DISTILLATION_CACHE"
_KERNELS = Path(kernels.__file__).parent
_GENERATED_IMPORT = re.compile(r"^from \._generated import (\([^)]*\)|[^\n]*?)[^\n]*\n", re.MULTILINE)
_HEADER = re.compile(r'\A(""".*?"""\n)?\s*from __future__ import annotations\n', re.DOTALL)
_lock = threading.Lock()


class NumbaPrinter(PythonCodePrinter):
    """Prints expressions as scalar Python that numba compiles."""

    def _print_sigmoid(self, expression: sympy.Expr) -> str:
        return f"sigmoid({self._print(expression.args[0])})"

    def _print_softplus(self, expression: sympy.Expr) -> str:
        return f"softplus({self._print(expression.args[0])})"

    def _print_Pow(self, expression: sympy.Expr, rational: bool = False) -> str:  # noqa: N802
        base, exponent = expression.as_base_exp()
        if exponent.is_Integer and 2 <= abs(int(exponent)) <= 4:
            factor = self._print(base) if base.is_Atom else f"({self._print(base)})"
            product = "*".join([factor] * abs(int(exponent)))
            return f"({product})" if exponent > 0 else f"(1.0/({product}))"
        return super()._print_Pow(expression, rational=rational)

    def _print_Rational(self, expression: sympy.Rational) -> str:  # noqa: N802
        return f"({expression.p}.0/{expression.q}.0)"

    def _print_Integer(self, expression: sympy.Integer) -> str:  # noqa: N802
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


def function(name: str, arguments: Sequence[str], body: str, result: str = "") -> str:
    """Source of one compiled function."""
    body = body or "    pass\n"
    text = f"@njit(cache=True, nogil=True)\ndef {name}({', '.join(arguments)}):\n{body}"
    return text + (f"    return {result}\n" if result else "") + "\n\n"


@lru_cache(maxsize=1)
def _fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted(_KERNELS.glob("*.py")):
        digest.update(path.read_bytes())
    digest.update(f"{numba.__version__} {llvmlite.__version__} {sys.version_info[:2]}".encode())
    return digest.hexdigest()


def cache_directory() -> Path:
    """Folder of the generated modules: ``$REPLICA_DISTILLATION_CACHE``, the user's cache, or a temporary folder."""
    candidates = [os.environ.get(CACHE_VARIABLE), platformdirs.user_cache_dir("replica-distillation")]
    for candidate in candidates:
        if candidate:
            try:
                path = Path(candidate)
                path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=path):
                    return path
            except OSError:
                continue
    return Path(_temporary_directory())


@lru_cache(maxsize=1)
def _temporary_directory() -> str:
    return tempfile.mkdtemp(prefix="replica-distillation-")


def load(name: str, source: str) -> ModuleType:
    """Import generated source as a module, written to the cache folder under a name that holds its hash."""
    digest = hashlib.sha256((_fingerprint() + source).encode()).hexdigest()[:16]
    full_name = f"generated_{name}_{digest}"
    with _lock:
        if full_name in sys.modules:
            return sys.modules[full_name]
        path = cache_directory() / f"{full_name}.py"
        if not path.exists() or path.read_text(encoding="utf-8") != source:
            # Replaced in one step: another process may be reading.
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
            ) as file:
                file.write(source)
            os.replace(file.name, path)
        specification = importlib.util.spec_from_file_location(full_name, path)
        module = importlib.util.module_from_spec(specification)
        sys.modules[full_name] = module
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[full_name]
            raise
        return module


def fill(templates: Sequence[str], definitions: str) -> str:
    """Source of a module: imports, generated definitions, then the templates without their imports of generated names."""
    header = (
        "from __future__ import annotations\n\nimport math\n\nimport numpy as np\nfrom numba import njit\n\n"
        "from numerics.kernels.elementary import normal_cdf, sigmoid, softplus\n\n\n"
    )
    bodies = []
    for template in templates:
        text = (_KERNELS / f"{template}.py").read_text(encoding="utf-8")
        bodies.append(_GENERATED_IMPORT.sub("", _HEADER.sub("", text)))
    return header + definitions + "\n".join(bodies)


def _loss_names(loss: Loss) -> dict[sympy.Symbol, str]:
    names = {h: "h", y: "y"}
    names |= {symbol: f"logits[{k}]" for k, symbol in enumerate(loss.logits)}
    return names | {symbol: f"parameters[{k}]" for k, symbol in enumerate(loss.symbols)}


def without_cancellation(expression: sympy.Expr) -> sympy.Expr:
    """Write ``sigmoid(x) - 1`` as ``-sigmoid(-x)``: the same number, to full relative accuracy where it is small."""

    def complement(sum_: sympy.Expr) -> sympy.Expr:
        constant, rest = sum_.as_coeff_Add()
        for factor in (1, -1):
            if constant == -factor and isinstance(factor * rest, sigmoid):
                return -factor * sigmoid(-(factor * rest).args[0])
        return sum_

    return sympy.sympify(expression).replace(lambda e: isinstance(e, sympy.Add), complement)


def _collected(expression: sympy.Expr) -> sympy.Expr:
    """Terms gathered by factors other than sigmoids, so that ``a sigmoid(x) - a`` shows its ``sigmoid(x) - 1``."""
    expression = sympy.expand(expression)
    groups: dict[sympy.Expr, list[sympy.Expr]] = {}
    for term in sympy.Add.make_args(expression):
        functions = [f for f in sympy.Mul.make_args(term) if isinstance(f, sigmoid)]
        outside = sympy.Mul(*(f for f in sympy.Mul.make_args(term) if f not in functions))
        number, outside = outside.as_coeff_Mul()
        groups.setdefault(outside, []).append(number * sympy.Mul(*functions))
    # Each group is rewritten by itself: added up first, the groups' constants would merge.
    return sympy.Add(*(outside * without_cancellation(sympy.Add(*inside)) for outside, inside in groups.items()))


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
    """Scalar functions of a loss: slopes, target, features.

    Where the gradient splits into ``S(h) - c``, both are measured from the limit of S at -oo (branch 0) or at +oo (branch 1):
    near saturation the difference then keeps its relative accuracy.  Elsewhere S is the whole gradient and c = 0.
    """
    names = _loss_names(loss)
    split = loss.split
    arguments = ["y", "logits", "parameters"]
    text = f"SHARED_GRID = {split is not None}\nN_FEATURES = {len(loss.features)}\n\n\n"
    curvatures = [("s1", without_cancellation(loss.curvature)), ("s2", without_cancellation(loss.third))]
    if split is None:
        body = _by_label([("low", loss.gradient), ("s1", loss.curvature), ("s2", loss.third)], names)
        body += "    high = low\n"
        target = statements([("low", sympy.Integer(0)), ("high", sympy.Integer(0))], names)
    else:
        measured = [(name, without_cancellation(_collected(split[0] - limit)))
                    for name, limit in zip(("low", "high"), loss.saturation, strict=True)]  # fmt: skip
        body = statements([*measured, *curvatures], names)
        target = _by_label(
            [(name, split[1] - limit) for name, limit in zip(("low", "high"), loss.saturation, strict=True)], names
        )
    text += function("slopes", ["h", *arguments], body, "low + 0.0, high + 0.0, s1 + 0.0, s2 + 0.0")
    text += function("target_values", arguments, target, "low + 0.0, high + 0.0")
    low, high = loss.saturation
    distance = statements([("distance", high - low)], names)
    text += function("branch_offset", ["gamma", "parameters"], distance, "gamma * distance")
    assignments = []
    for k, feature in enumerate(loss.features):
        assignments += [(f"found[{row}, {k}]", expression) for row, expression in enumerate(feature)]
    text += function("features", [*arguments, "found"], statements(assignments, names) if assignments else "")
    return text


def _vector_function(name: str, equations: potential.Equations, with_jacobian: bool = True) -> str:
    names = {symbol: f"x[{k}]" for k, symbol in enumerate(equations.inputs)}
    names |= {symbol: f"constants[{k}]" for k, symbol in enumerate(equations.constants)}
    values = list(equations.outputs.values())
    update = [(f"out[{k}]", expression) for k, expression in enumerate(values)]
    text = function(name, ["x", "constants", "out"], statements(update, names))
    if with_jacobian:
        entries = [
            (f"out[{r}, {c}]", equations.jacobian[r, c])
            for r in range(equations.jacobian.rows)
            for c in range(equations.jacobian.cols)
            if equations.jacobian[r, c] != 0
        ]
        jacobian_name = name.removesuffix("_update") + "_jacobian"
        text += function(jacobian_name, ["x", "constants", "out"], statements(entries, names))
    return text


@lru_cache(maxsize=16)
def equation_definitions(t: int) -> str:
    """Conjugates from channel averages, prior, and Cholesky update of stage t, with Jacobians."""
    return (
        _vector_function("conjugates", potential.channel_equations(t))
        + _vector_function("prior_update", potential.prior_equations(t))
        + _vector_function("cholesky_update", potential.cholesky_update(t))
        + _vector_function("conditional_moments", potential.conditional_moments(t), with_jacobian=False)
    )


@lru_cache(maxsize=1)
def moment_definitions() -> str:
    """The loop over one node's points, from the moment integrands of ``theory.envelope``.

    An integrand is a polynomial in f and g whose coefficients belong to the point alone; those are tabulated once per grid.
    """
    integrands = envelope.moment_integrands()
    coefficients: dict[sympy.Expr, sympy.Symbol] = {}
    reduced: dict[str, sympy.Expr] = {}
    for name, integrand in integrands.items():
        polynomial = sympy.Poly(sympy.expand(integrand), envelope.f, envelope.g)
        terms = []
        for (power_f, power_g), coefficient in polynomial.terms():
            number, rest = sympy.factor(coefficient).as_coeff_Mul()
            if rest != 1:
                rest = coefficients.setdefault(rest, sympy.Symbol(f"k_{len(coefficients)}", real=True))
            terms.append(number * rest * envelope.f**power_f * envelope.g**power_g)
        reduced[name] = sympy.Add(*terms)
    unique = list(dict.fromkeys(reduced.values()))
    table_names = {envelope.S1: "slope1", envelope.S2: "slope2", envelope.gamma: "gamma"}
    text = f"N_MOMENTS = {len(reduced) + 1}\nTABLE_ROWS = {5 + len(coefficients)}\nDENSITY_ROW = 4\n\n\n"
    text += function(
        "point_coefficients",
        ["slope1", "slope2", "gamma", "tables", "j"],
        statements([(f"tables[{5 + k}, j]", e) for k, e in enumerate(coefficients)], table_names),
    )
    names = {envelope.f: "f", envelope.g: "g", envelope.gamma: "gamma"}
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
    body += "    sums[0] = sum_norm\n"
    body += "".join(
        f"    sums[{k + 1}] = sum_{unique.index(expression)}\n" for k, expression in enumerate(reduced.values())
    )
    arguments = ["centre", "inverse_sigma", "gamma", "target", "first", "last", "position_row", "slope_row", "tables", "sums"]
    loop = function("accumulate_pairs", arguments, body)
    return text + loop.replace(
        "@njit(cache=True, nogil=True)",
        '@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz", "arcp", "nnan", "ninf"})',
    )


@lru_cache(maxsize=1)
def moments_module() -> ModuleType:
    """Channel averages: the same for every loss."""
    return load("moments", fill(["moments"], moment_definitions()))


class _ByFormula:
    """A loss compared by its formula alone: code does not depend on parameter values."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self._key = (loss.expression, loss.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByFormula) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def stage_module(loss: Loss, t: int) -> ModuleType:
    """Compiled solver of stage ``t`` trained with ``loss``: ``solve_stage``, ``extend_nodes``, ``conditional_moments``."""
    return _stage_module(_ByFormula(loss), t)


@lru_cache(maxsize=256)
def _stage_module(formula: _ByFormula, t: int) -> ModuleType:
    definitions = (
        f"from {moments_module().__name__} import TABLE_ROWS, channel_averages, point_tables\n\n"
        f"N_EARLIER = {t - 1}\n\n\n" + loss_definitions(formula.loss) + equation_definitions(t)
    )
    return load(f"stage{t}", fill(["grid", "nodes", "stage"], definitions))


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
    loss = formula.loss
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
    return load("pointwise", fill([], text))
