"""Formulas of losses of K classes: the logits h[1]..h[K], a label y[k] that is 1 for its class and 0 else, and sums over classes.

A formula is written once for all K.  With a number for K its sums are written out, and it is a function of scalars h[1], .., like
those of two classes; logarithms of sums of exponentials become one function, which is evaluated without overflow, and so are its
derivatives, ``d logsumexp(x)/dx_k = exp(x_k - logsumexp(x))``.

    >>> formula = read_class_formula("logsumexp(h) - Sum(y[k]*h[k], k)", {})
    >>> written_out(formula, 3)
    -h[1]*y[1] - h[2]*y[2] - h[3]*y[3] + log_sum_exp(h[1], h[2], h[3])
    >>> written_out(read_class_formula("log(Sum(exp(h[j]), j)) - Sum(y[k]*h[k], k)", {}), 3) == written_out(formula, 3)
    True

Convexity is shown by the rules for sums and compositions: of squares by the eigenvalues of their constant Hessian, of functions of
one linear combination of logits as for two classes (:mod:`theory.convexity`), of logsumexp because it is.  Where rules do not
tell, a place with a negative eigenvalue is searched for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import sympy
from scipy import optimize
from sympy import Add, Expr, Function, Indexed, IndexedBase, Integer, Mul, Pow, S, Symbol, diff, exp, log
from sympy.core.function import AppliedUndef

from theory.convexity import ConvexityWarning, Finding, examine
from theory.functions import stabilise, step
from theory.losses import Loss
from theory.parser import hints, parsed, require_smooth
from theory.softmax import numeric_form
from theory.symbols import TEACHER, h, logit, y

CLASSES = Symbol("K", integer=True, positive=True)
"""The number of classes in a formula."""

FEWEST = 3
"""Classes for which a formula is looked at when it is read, and again for those of the data."""

PLACES, WIDTHS = 200, (0.3, 1.0, 3.0, 10.0)
"""Random places at which a formula is looked at, and standard deviations of logits there."""

NEGATIVE = 1e-9
"""Eigenvalue of a Hessian, relative to the largest, above which it counts as rounding."""

SAME = 1e-9
"""By how much what is equal may differ."""

FAR = 50.0
"""From other logits, where softmax is 0 to rounding."""

_BASES = {"h": IndexedBase(h), "y": IndexedBase(y), "h_teacher": IndexedBase(TEACHER)}
_KNOWN = "h[k], y[k], h_teacher[k], h_1[k], h_2[k], ..., K, Sum(..., k), logsumexp(h), softmax(h)[k]"


class log_sum_exp(Function):  # noqa: N801 - a mathematical function
    """log sum_i exp(x_i) of its arguments."""

    @classmethod
    def eval(cls, *x: Expr) -> Expr | None:
        ordered = tuple(sorted(x, key=sympy.default_sort_key))
        return None if ordered == x else cls(*ordered)

    def fdiff(self, argindex: int = 1) -> Expr:
        return exp(self.args[argindex - 1] - self)

    def _eval_is_real(self) -> bool | None:
        return True if all(x.is_real for x in self.args) else None


class logsumexp(Function):  # noqa: N801
    """The same of a vector with an entry for each class, as it is written in formulas."""

    nargs = 1


class softmax_entry(Function):  # noqa: N801
    """Entry of softmax of a vector, ``softmax(x)[k]`` in formulas."""

    nargs = 2

    def _sympystr(self, printer: object) -> str:
        return f"softmax({printer._print(self.args[0])})[{printer._print(self.args[1])}]"


class _Softmax:
    """What ``softmax(x)`` is before it has an index."""

    def __init__(self, x: Expr) -> None:
        self.x = sympy.sympify(x)

    def __getitem__(self, k: Expr) -> Expr:
        return softmax_entry(self.x, k)


def _sum(term: Expr, *indices: object) -> Expr:
    """``Sum(term, k)``, or with the limits that SymPy writes, ``Sum(term, (k, 1, K))``."""
    bound = []
    for index in indices:
        name, *limits = index if isinstance(index, tuple | sympy.Tuple) else (index,)
        if limits not in ([], [Integer(1), CLASSES]) or not isinstance(name, Symbol):
            raise ValueError(f"a sum runs over all classes: write Sum(..., k), got the limits {index}")
        bound.append(name)
    if not bound or len(set(bound)) < len(bound) or any(name in bound for name in _bound(term)):
        raise ValueError("every Sum needs a letter of its own, as in Sum(y[k]*h[k], k)")
    return sympy.Sum(term, *((name, 1, CLASSES) for name in bound))


def _bound(expression: Expr) -> set[Symbol]:
    found = sympy.sympify(expression).atoms(sympy.Sum)
    return {limit[0] for total in found for limit in total.limits}


def read_class_formula(expression: str | Expr, parameters: Mapping[str, Symbol]) -> Expr:
    """The formula for any K, checked for the fewest classes that it can mean; ValueError, naming the culprit, otherwise."""
    if isinstance(expression, str):
        names = {**_BASES, "K": CLASSES, "Sum": _sum, "logsumexp": logsumexp, "softmax": _Softmax, **parameters}
        for found in re.findall(r"\bh_([0-9]+)\b", expression):
            names[f"h_{found}"] = IndexedBase(logit(int(found)))
        formula = parsed(expression, names)
    else:
        formula = expression
    if not isinstance(formula, Expr):
        raise ValueError(f"a loss must be a scalar formula, got {expression!s}")
    for name in ("K", *sorted(map(str, _bound(formula)))):
        if name in parameters:
            raise ValueError(f"{name!r} cannot name a parameter of a loss of K classes: it counts classes")
    classes = fewest_classes(formula)
    whole = written_out(formula, classes)
    bases = [base for base in formula.atoms(IndexedBase)]
    unknown = whole.free_symbols - {
        *parameters.values(),
        *(_scalar(base, k) for base in bases for k in range(1, classes + 1)),
    }
    names = {str(symbol) for symbol in unknown} | {str(found.func) for found in whole.atoms(AppliedUndef)}
    if names:
        raise ValueError(
            f"unknown symbols in the loss {expression!s}: {', '.join(sorted(names))}; known: {_KNOWN}, and the parameters given"
            f"{hints(names)}"
        )
    if not whole.has(*own_logits(classes)):
        raise ValueError(f"the loss {expression!s} does not depend on h")
    require_smooth(whole, str(expression), own_logits(classes))
    return formula


def fewest_classes(formula: Expr) -> int:
    """The largest class that a formula names, or ``FEWEST`` if it names none."""
    numbers = [int(item.indices[0]) for item in formula.atoms(Indexed) if item.indices[0].is_Integer]
    numbers += [int(item.args[1]) for item in formula.atoms(softmax_entry) if item.args[1].is_Integer]
    return max([2, *numbers]) if numbers else FEWEST


@lru_cache(maxsize=128)
def written_out(formula: Expr, classes: int) -> Expr:
    """The formula of K classes in scalars h[1], .., y[1], .., h_teacher[1], ...

    Raises
    ------
    ValueError
        If an index is outside 1..K or bound by no sum, or a vector has none.

    Examples
    --------
    >>> written_out(read_class_formula("Sum((h[k] - y[k])**2, k)/2", {}), 3)
    (h[1] - y[1])**2/2 + (h[2] - y[2])**2/2 + (h[3] - y[3])**2/2
    """
    scalars = _scalars(formula.xreplace({CLASSES: Integer(classes)}), classes, str(formula))
    return stabilise(joined(sympy.nsimplify(scalars, rational=True)))


@lru_cache(maxsize=4096)
def _named(name: str) -> Symbol:
    return Symbol(name, real=True)


def _scalar(base: IndexedBase, k: int) -> Symbol:
    return _named(f"{base.label}[{k}]")


def own_logits(classes: int) -> tuple[Symbol, ...]:
    """h[1], .., h[K] as they are in a formula that is written out."""
    return tuple(_named(f"h[{k}]") for k in range(1, classes + 1))


def label_entries(classes: int) -> tuple[Symbol, ...]:
    """y[1], .., y[K]."""
    return tuple(_named(f"y[{k}]") for k in range(1, classes + 1))


def logits_of(symbol: Symbol, classes: int) -> tuple[Symbol, ...]:
    """Logits of an earlier stage, whose symbol for two classes is given."""
    return tuple(_named(f"{symbol}[{k}]") for k in range(1, classes + 1))


def _class_of(index: Expr, what: Expr, classes: int, text: str) -> int:
    if index.is_number and not index.is_Integer:
        raise ValueError(f"{what} in the loss {text} is none of the classes 1..{classes}")
    if not index.is_Integer:
        free = ", ".join(sorted(map(str, index.free_symbols)))
        raise ValueError(f"{what} in the loss {text} has an index {free} of no sum: write Sum(..., {free})")
    if not 1 <= int(index) <= classes:
        raise ValueError(f"{what} in the loss {text} is none of the classes 1..{classes}")
    return int(index)


def _scalars(e: Expr, classes: int, text: str) -> Expr:
    """Sums written out, and vectors entry by entry."""
    if isinstance(e, Indexed):
        if len(e.indices) != 1 or not _is_base(e.base):
            raise ValueError(f"{e} in the loss {text} is not known; known: {_KNOWN}")
        return _scalar(e.base, _class_of(e.indices[0], e, classes, text))
    if isinstance(e, IndexedBase):
        raise ValueError(
            f"{e.label} in the loss {text} is a vector: write {e.label}[k] in a Sum, or logsumexp({e.label})"
        )
    if isinstance(e, sympy.Sum):
        for name, *_ in reversed(e.limits):
            return Add(
                *(
                    _scalars(_without(e, name).xreplace({name: Integer(k)}), classes, text)
                    for k in range(1, classes + 1)
                )
            )
    if isinstance(e, logsumexp):
        return log_sum_exp(*_vector(e.args[0], classes, text))
    if isinstance(e, softmax_entry):
        x = _vector(e.args[0], classes, text)
        return exp(x[_class_of(e.args[1], e, classes, text) - 1] - log_sum_exp(*x))
    return e if not e.args else e.func(*(_scalars(part, classes, text) for part in e.args))


def _is_base(base: IndexedBase) -> bool:
    return base in _BASES.values() or re.fullmatch(r"h_[1-9][0-9]*", str(base.label)) is not None


def _without(total: sympy.Sum, name: Symbol) -> Expr:
    """A sum with one of its letters no longer summed over."""
    rest = [limit for limit in total.limits if limit[0] != name]
    return sympy.Sum(total.function, *rest) if rest else total.function


def _vector(x: Expr, classes: int, text: str) -> list[Expr]:
    """Entries of a vector."""

    def entry(e: Expr, k: int) -> Expr:
        if isinstance(e, IndexedBase):
            return e[k]
        if isinstance(e, Indexed | sympy.Sum | logsumexp | softmax_entry) or not e.args:
            return e
        return e.func(*(entry(part, k) for part in e.args))

    return [_scalars(entry(x, k), classes, text) for k in range(1, classes + 1)]


def joined(expression: Expr) -> Expr:
    """Logarithms and powers of sums of exponentials by :class:`log_sum_exp`."""

    def logarithm(e: Expr) -> Expr:
        inside = _exponents(e.args[0])
        return e if inside is None else log_sum_exp(*inside)

    def power(e: Expr) -> Expr:
        inside = _exponents(e.base)
        return e if inside is None or not e.exp.is_negative else exp(e.exp * log_sum_exp(*inside))

    def product(e: Expr) -> Expr:
        exponentials = [factor for factor in e.args if isinstance(factor, exp)]
        if len(exponentials) < 2:
            return e
        rest = [factor for factor in e.args if factor not in exponentials]
        return Mul(*rest, exp(Add(*(factor.args[0] for factor in exponentials))))

    expression = expression.replace(lambda e: isinstance(e, log), logarithm)
    expression = expression.replace(lambda e: isinstance(e, Pow) and not isinstance(e, exp), power)
    return expression.replace(lambda e: isinstance(e, Mul), product)


def _exponents(total: Expr) -> list[Expr] | None:
    """x of a sum of positive multiples of three or more exp(x), or of two without a constant; else None."""
    if not isinstance(total, Add):
        return None
    found = []
    for term in total.args:
        factor, rest = term.as_independent(exp, as_Add=False) if not term.is_number else (term, S.One)
        if not factor.is_positive or not (rest is S.One or isinstance(rest, exp)):
            return None
        found.append((rest.args[0] if isinstance(rest, exp) else S.Zero) + log(factor))
    return found if len(found) > 2 or all(term.has(exp) for term in total.args) else None


# Is it convex?


def examine_classes(formula: Expr, classes: int, symbols: Sequence[Symbol], values: Sequence[float]) -> Finding:
    """Look at a formula of K classes whose parameters have these values."""
    return _examine(formula, classes, tuple(symbols), tuple(map(float, values)))


@lru_cache(maxsize=256)
def _examine(formula: Expr, classes: int, symbols: tuple[Symbol, ...], values: tuple[float, ...]) -> Finding:
    numbers = {symbol: sympy.Rational(repr(value)) for symbol, value in zip(symbols, values, strict=True)}
    whole = written_out(formula, classes).xreplace(numbers)
    alike = not _names_classes(formula)
    unproved = ""
    for label in range(1, 2 if alike else classes + 1):
        finding = _at_label(whole.xreplace(_one_hot(label, classes)), label, classes)
        if finding.fault:
            return finding
        unproved = unproved or finding.unproved
    return Finding(unproved=unproved)


def _names_classes(formula: Expr) -> bool:
    """Whether a formula tells classes apart otherwise than by their labels and logits."""
    indices = [item.indices[0] for item in formula.atoms(Indexed)] + [
        item.args[1] for item in formula.atoms(softmax_entry)
    ]
    if any(not isinstance(index, Symbol) for index in indices):
        return True
    letters = _bound(formula)
    hidden = formula.replace(lambda e: isinstance(e, Indexed), lambda e: S.One)
    hidden = hidden.replace(lambda e: isinstance(e, softmax_entry), lambda e: S.One)
    return any(letters & total.function.free_symbols for total in hidden.atoms(sympy.Sum))


def _one_hot(label: int, classes: int) -> dict[Symbol, Expr]:
    return {symbol: Integer(k == label) for k, symbol in enumerate(label_entries(classes), start=1)}


def _at_label(formula: Expr, label: int, classes: int) -> Finding:
    logits = own_logits(classes)
    if formula.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo, sympy.I):
        return Finding(f"not finite at y[{label}]=1")
    proof = _proved(formula, logits)
    if proof.fault:
        return Finding(f"{proof.fault} (label {label})")
    if not proof.unproved:
        return proof
    return _searched(formula, label, classes, proof)


def _proved(formula: Expr, logits: tuple[Symbol, ...]) -> Finding:
    """Whether the rules show it; ``unproved`` if they do not tell."""
    formula = sympy.expand(formula, power_exp=False, power_base=False, log=False)
    groups: dict[Expr, list[Expr]] = {}
    squares = []
    for term in Add.make_args(formula):
        outside, inside = term.as_independent(*logits, as_Add=False)
        if inside.is_polynomial(*logits) and sympy.Poly(inside, *logits).total_degree() <= 2:
            if sympy.Poly(inside, *logits).total_degree() == 2:
                squares.append(term)
        else:
            groups.setdefault(inside, []).append(outside)
    hessian = sympy.hessian(Add(*squares), logits) if squares else sympy.zeros(1)
    if hessian.free_symbols:
        return Finding(unproved="convex: its second derivatives depend on earlier logits")
    numbers = np.array(hessian.evalf(20), dtype=float)
    lowest, vector = (float(part[0]) if part.ndim == 1 else part[:, 0] for part in np.linalg.eigh(numbers))
    bowl = lowest >= -NEGATIVE * max(1.0, np.abs(numbers).max())
    if not bowl and not groups:
        return Finding(f"not convex: its second derivative is {lowest:.3g} along {_direction(vector)}")
    unproved = "" if bowl else "convex: a square with a negative factor is not ruled out to win"
    for inside, factors in groups.items():
        if not _is_nonnegative(Add(*factors)) or not _is_convex(inside, logits):
            unproved = "convex: no place with a negative second derivative was found, but none is ruled out"
    return Finding(unproved=unproved)


def _direction(vector: np.ndarray) -> str:
    return ", ".join(f"h[{k}]: {number:.2g}" for k, number in enumerate(vector, start=1))


def _is_nonnegative(factor: Expr) -> bool:
    """Of sums of products of exponentials and positive numbers: what depends on earlier logits are probabilities."""
    for term in Add.make_args(factor):
        number, rest = term.as_coeff_Mul()
        if number < 0 or not all(isinstance(part, exp) or part.is_nonnegative for part in Mul.make_args(rest)):
            return False
    return True


def _is_convex(e: Expr, logits: tuple[Symbol, ...]) -> bool:
    """Of one term without factors in front: logsumexp of convex functions, or a function of one linear combination."""
    if not e.has(*logits):
        return True
    if isinstance(e, log_sum_exp):
        return all(_is_linear(x, logits) or not _proved(x, logits).unproved for x in e.args)
    for inner in _linear_parts(e, logits):
        outer = e.xreplace({inner: h})
        if not outer.has(*logits):
            found = examine(outer, (), ())
            return not found.fault and not found.unproved
    return False


def _is_linear(e: Expr, logits: tuple[Symbol, ...]) -> bool:
    return all(diff(e, x, z) == 0 for x in logits for z in logits)


def _linear_parts(e: Expr, logits: tuple[Symbol, ...]) -> Iterator[Expr]:
    """Linear combinations of logits in an expression, the largest first."""
    parts = [part for part in e.atoms(Add, Mul, Symbol) if part.has(*logits)]
    parts += [
        part for part in sympy.preorder_traversal(e) if isinstance(part, Add | Mul | Symbol) and part.has(*logits)
    ]
    for part in sorted(dict.fromkeys(parts), key=lambda part: -part.count_ops()):
        if part != e and not part.has(Function) and _is_linear(part, logits):
            yield part


# By numbers.


def _log_sum_exp_of_arrays(*x: np.ndarray) -> np.ndarray:
    arrays = np.broadcast_arrays(*map(np.asarray, x))
    return np.logaddexp.reduce(np.array(arrays, dtype=float), axis=0)


def _sigmoid_of_arrays(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


NUMPY: dict[str, Callable] = {
    "log_sum_exp": _log_sum_exp_of_arrays,
    "sigmoid": _sigmoid_of_arrays,
    "softplus": lambda x: np.logaddexp(0.0, x),
    "step": lambda x: np.heaviside(x, 0.5),
}
"""Versions for arrays, for ``sympy.lambdify(..., modules=[NUMPY, "scipy", "numpy"])``."""


def as_function(expressions: Sequence[Expr], symbols: Sequence[Symbol]) -> Callable[[np.ndarray], np.ndarray]:
    """Expressions (m) of symbols (n) as a function of arrays (places, n) -> (places, m)."""
    stand_ins = [sympy.Dummy() for _ in symbols]
    replaced = [sympy.sympify(e).xreplace(dict(zip(symbols, stand_ins, strict=True))) for e in expressions]
    compiled = sympy.lambdify(stand_ins, replaced, modules=[NUMPY, "scipy", "numpy"], cse=True)

    def values(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            found = compiled(*x.T)
        return np.stack([np.broadcast_to(item, len(x)) for item in found], axis=1)

    return values


def _symbols_in(formula: Expr, classes: int) -> list[Symbol]:
    """h[1].., and other logits of the formula."""
    own = own_logits(classes)
    return [*own, *sorted(formula.free_symbols - {*own}, key=str)]


def random_places(size: int, *, seed: int = 0) -> np.ndarray:
    """Logits of all widths, shape (places, size)."""
    generator = np.random.default_rng(seed)
    widths = np.repeat(WIDTHS, PLACES // len(WIDTHS))[:, None]
    return widths * generator.standard_normal((len(widths), size))


def _searched(formula: Expr, label: int, classes: int, proof: Finding) -> Finding:
    """Look for a place where the formula is not finite, or its Hessian has a negative eigenvalue."""
    symbols = _symbols_in(formula, classes)
    own = own_logits(classes)
    slopes = [diff(formula, x) for x in own]
    second = [diff(slope, z) for slope in slopes for z in own]
    values = as_function([formula, *slopes, *second], symbols)

    def place(x: np.ndarray) -> str:
        return ", ".join(
            [f"{symbol}={number:.4g}" for symbol, number in zip(symbols, x, strict=True)] + [f"y[{label}]=1"]
        )

    def lowest(x: np.ndarray) -> tuple[float, float]:
        """Least eigenvalue and the size of the Hessian at one place."""
        hessian = values(np.atleast_2d(x))[0, 1 + classes :].reshape(classes, classes)
        if not np.isfinite(hessian).all():
            return 0.0, 1.0
        return float(np.linalg.eigvalsh(hessian)[0]), float(max(np.abs(hessian).max(), 1e-300))

    places = random_places(len(symbols))
    found = values(places)
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1) & (np.abs(places).max(axis=1) < 5.0))
    if bad.size:
        return Finding(f"not convex, because not finite at {place(places[bad[0]])}")
    eigenvalues = np.array([lowest(x)[0] for x in places])
    starts = places[np.argsort(eigenvalues)[:3]]
    ends = [
        optimize.minimize(lambda x: lowest(x)[0], x, method="Nelder-Mead", options={"maxfev": 400}).x for x in starts
    ]
    for x in [*starts, *ends]:
        value, size = lowest(x)
        if value < -NEGATIVE * max(size, 1.0):
            return Finding(f"not convex: its second derivative is {value:.3g} at {place(x)}")
    return proof


# The mean of the logits.


@lru_cache(maxsize=256)
def mean_logit(
    formula: Expr, classes: int, symbols: tuple[Symbol, ...], values: tuple[float, ...], free: tuple[str, ...] = ()
) -> float | None:
    """The mean of the logits h[k] at the minimum where it is one number for all samples; None where it depends on the sample.

    With one number for all, a stage has logits that sum to 0, and the mean is added in the formula: 0 where a constant added to all
    logits changes nothing, 1/K for squares of h[k] - y[k].  Earlier logits sum to 0, too, but those of stages that are ``free``.

    Parameters
    ----------
    free
        Names of earlier logits, as "h_teacher", whose mean depends on the sample.

    Raises
    ------
    ValueError
        If the loss, averaged over labels and earlier logits, does not rise in all directions: biases run away.

    Examples
    --------
    >>> round(mean_logit(read_class_formula("Sum((h[k] - y[k])**2, k)", {}), 4, (), ()), 9)
    0.25
    >>> mean_logit(read_class_formula("Sum(softplus(h[k]) - y[k]*h[k], k)", {}), 3, (), ()) is None
    True
    """
    numbers = {symbol: sympy.Float(value) for symbol, value in zip(symbols, values, strict=True)}
    whole = written_out(formula, classes).xreplace(numbers)
    own, entries = own_logits(classes), label_entries(classes)
    others = sorted(whole.free_symbols - {*own, *entries}, key=str)
    slopes = [diff(whole, x) for x in own]
    evaluate = as_function(slopes, [*own, *entries, *others])
    generator = np.random.default_rng(1)
    n = 60
    h_random, taught = 1.5 * generator.standard_normal((n, classes)), {}
    h_random -= h_random.mean(axis=1, keepdims=True)
    for symbol in others:
        taught.setdefault(symbol.name.partition("[")[0], 1.5 * generator.standard_normal((n, classes)))
    columns = []
    for symbol in others:
        name, _, k = symbol.name.partition("[")
        centre = 0.0 if name in free else taught[name].mean(axis=1, keepdims=True)
        columns.append((taught[name] - centre)[:, int(k[:-1]) - 1])
    labels = np.eye(classes)[np.arange(n) % classes]

    def slopes_at(shift: float | np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        return evaluate(np.column_stack([h_random + shift, labels, *columns])[rows])

    def pull(mean: float, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        found = slopes_at(mean, rows)
        return found.sum(axis=1), np.abs(found).max(axis=1)

    together, sizes = pull(0.0)
    if (np.abs(together) <= SAME * np.maximum(sizes, 1.0)).all() and (
        np.abs(pull(1.0)[0]) <= SAME * np.maximum(pull(1.0)[1], 1.0)
    ).all():
        return 0.0
    first = slice(0, 1)
    low, high = -1.0, 1.0
    while high < 1e3 and not pull(low, first)[0][0] < 0.0 < pull(high, first)[0][0]:
        low, high = 2.0 * low, 2.0 * high
    if high < 1e3:
        mean = float(optimize.brentq(lambda m: pull(m, first)[0][0], low, high, xtol=1e-14))
        together, sizes = pull(mean)
        if (np.abs(together) <= SAME * np.maximum(sizes, 1.0)).all():
            return mean
    elif not pull(low)[0].sum() < 0.0 < pull(high)[0].sum():
        raise ValueError("a constant added to all logits has no minimum")
    _require_rise(slopes_at, classes)
    curvature = [[diff(slope, x) for x in own] for slope in slopes]
    if all(item.is_number for row in curvature for item in row):
        matrix = np.array(curvature, dtype=float)
        _require_spread(matrix, h_random @ matrix - slopes_at(0.0))
    return None


def _require_rise(slopes_at: Callable[[np.ndarray], np.ndarray], classes: int) -> None:
    """ValueError if a mean over samples does not rise, far out, in one of many directions of the logits."""
    eye, generator = np.eye(classes), np.random.default_rng(2)
    unmoved = np.linalg.svd(slopes_at(0.0))[2][
        -1
    ]  # if the loss depends on fewer combinations of logits, not on this one
    several = generator.standard_normal((16, classes))
    tried = [*eye, *-eye, unmoved, -unmoved, *(several / np.linalg.norm(several, axis=1, keepdims=True))]
    for direction in tried:
        found = slopes_at(FAR * direction)
        if not float((found @ direction).mean()) > SAME * np.abs(found).max():
            raise ValueError(f"no minimum: on average over labels it does not rise along {_direction(direction)}")


def _require_spread(curvature: np.ndarray, targets: np.ndarray) -> None:
    """ValueError if at the minimum of a square some combination of logits is the same for all samples: there are K-1 logits then.

    The slope is ``curvature h - targets``, shapes (K, K) and (n, K).
    """
    values, vectors = np.linalg.eigh(curvature)
    for value in values:
        alike = vectors[:, np.abs(values - value) <= SAME * values[-1]]
        moves = (targets - targets.mean(axis=0)) @ alike
        _, sizes, rows = np.linalg.svd(moves)
        if sizes[-1] <= SAME * np.abs(targets).max() * len(targets) ** 0.5:
            same = _direction(alike @ rows[-1])
            raise ValueError(
                f"the same for all samples: the sum of logits with the factors {same}; write it for differences"
            )


# The loss.


def _pushes_down(loss: ClassFormula, k: int, seen: tuple[float, ...]) -> bool:
    classes = len(seen)
    numbers = {symbol: sympy.Float(value) for symbol, value in zip(loss.symbols, loss.values, strict=True)}
    slope = diff(loss.of(classes).xreplace(numbers), own_logits(classes)[k])
    evaluate = as_function([slope], [*own_logits(classes), *label_entries(classes)])
    h_low = np.zeros((classes, classes))
    h_low[:, k] = -FAR
    return float(np.array(seen) @ evaluate(np.column_stack([h_low, np.eye(classes)]))[:, 0]) >= 0.0


@lru_cache(maxsize=1024)
def _keeps(loss: ClassFormula, permutation: tuple[int, ...]) -> bool:
    classes = len(permutation)
    numbers = {symbol: sympy.Float(value) for symbol, value in zip(loss.symbols, loss.values, strict=True)}
    whole = loss.of(classes).xreplace(numbers)
    symbols = sorted(whole.free_symbols, key=str)
    names = [symbol.name.partition("[") for symbol in symbols]
    moved = [_named(f"{name}[{permutation[int(k[:-1]) - 1] + 1}]") for name, _, k in names]
    other = whole.xreplace(dict(zip(symbols, moved, strict=True)))
    symbols = sorted({*symbols, *moved}, key=str)
    values = as_function([whole, other], symbols)(np.random.default_rng(2).standard_normal((20, len(symbols))))
    return bool((np.abs(values[:, 0] - values[:, 1]) <= SAME * (1.0 + np.abs(values[:, 0]))).all())


class ClassFormula(Loss):
    """A loss of K classes from a formula; made by :meth:`theory.losses.Loss.from_expression`.

    Its formula has an index of the class, and no number of classes: what depends on that is found, and checked, by :meth:`of`.
    """

    needs_classes = True
    needs_many_classes = True
    is_formula = True

    def of(self, classes: int) -> Expr:
        """The formula of K classes in scalars (:func:`written_out`), with symbols for the parameters."""
        return written_out(self.expression, classes)

    @property
    def fewest(self) -> int:
        """The number of classes that the formula was looked at with."""
        return fewest_classes(self.expression)

    @property
    def jumps(self) -> bool:
        """Whether it jumps as a function of earlier logits."""
        return self.of(self.fewest).has(step)

    def mean(self, classes: int, free: Sequence[bool] = ()) -> float | None:
        """See :func:`mean_logit`; ``free`` says of each of the earlier stages in ``logits`` whether its mean is."""
        names = tuple(str(symbol) for symbol, is_free in zip(self.logits, free, strict=False) if is_free)
        try:
            return mean_logit(self.expression, classes, self.symbols, self.values, names)
        except ValueError as error:
            raise ValueError(f"loss {self.name!r}: {error}") from None

    def require_classes(self, classes: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvexityWarning)  # issued when the formula was read
            self.check_convex(classes)

    def never_shown(self, seen: Sequence[float]) -> list[int]:
        """Classes, from 0, of no label, whose logit the loss pushes down however low it is."""
        if self.logits:
            return []
        missing = [k for k, weight in enumerate(seen) if not weight > 0]
        return [k for k in missing if _pushes_down(self, k, tuple(map(float, seen)))]

    def keeps(self, permutation: Sequence[int]) -> bool:
        """Whether the loss is the same after a permutation of the classes, 0, .., K-1."""
        return not _names_classes(self.expression) or _keeps(self, tuple(permutation))

    def check_convex(self, classes: int | None = None) -> None:
        """As of any loss, for this number of classes, by default the fewest it can mean; that it has a minimum, too."""
        classes = self.fewest if classes is None else classes
        finding = examine_classes(self.expression, classes, self.symbols, self.values)
        if finding.fault:
            raise ValueError(f"loss {self.name!r} is {finding.fault}")
        self.mean(classes)
        if finding.unproved:
            warnings.warn(f"loss {self.name!r} is not proved {finding.unproved}", ConvexityWarning, stacklevel=4)


def as_formula(loss: Loss) -> ClassFormula:
    """A built-in loss with a square of earlier logits, as a formula.

    Raises
    ------
    ValueError
        If it is none.

    Examples
    --------
    >>> from theory.losses import SquareDistillation
    >>> as_formula(SquareDistillation(0.5)).expression
    Sum((h[k] - h_teacher[k]/2 - y[k]/2)**2, (k, 1, K))/2
    """
    form = numeric_form(loss)
    if form.gain == 0.0 or form.soft != 0.0 or form.smoothing != 0.0:
        raise ValueError(f"{loss.name} has no square of earlier logits alone")
    names = [f"{symbol}[k]" for symbol in loss.logits]
    taught = f"({' + '.join(names)})/{len(names)}"
    if form.hard == 0.0:
        target = f"({form.labels!r}*y[k] + {form.gain!r}*{taught})/{form.linear!r}"
        text = f"{form.linear!r}*Sum((h[k] - {target})**2, k)/2"
    else:
        text = f"{form.hard!r}*(logsumexp(h) - Sum(y[k]*h[k], k)) + {form.gain!r}*Sum((h[k] - {taught})**2, k)/2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvexityWarning)
        return ClassFormula.from_expression(text, name=loss.name, teacher=_one(loss.teacher))


def _one(teacher: object) -> int | None:
    """The stage behind h_teacher; several stages are in a formula by their own names."""
    return None if isinstance(teacher, tuple) else teacher
