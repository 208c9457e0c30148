"""Steps of a derivation as a LaTeX document: mathematics in sentences, numbered equations, long ones broken, an index of symbols.

In the text of a step, mathematics stands between backquotes, in plain signs (``n -> 0``, ``sqrt(N)``, ``w.v``, ``h~``), and
``@{label}`` refers to the first equation of another step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sympy import Add, Expr, Function, MatAdd, MatMul, MatrixBase, MatrixExpr, MatrixSymbol, Mul, Symbol, fraction
from sympy.core.relational import Equality
from sympy.printing.latex import LatexPrinter

from theory.derivation import Step
from theory.notation import Notation, force, proximal_field, stage_fraction
from theory.potential import random_field, weight
from theory.replica import inverse_temperature, replicas, stage_ridge
from theory.symbols import (
    alpha,
    bias,
    delta,
    field,
    logit,
    magnetization,
    magnetization_hat,
    overlap,
    overlap_hat,
    response,
    response_hat,
    rho,
    sign,
    y,
)

LINE = 88
"""Width of a line of equations, in letters of ordinary size."""

TAIL = Function("H")
"""Tail of the standard normal distribution, P(z > x)."""

_PREAMBLE = r"""\documentclass[a4paper,landscape]{article}
\usepackage[margin=2cm]{geometry}
\usepackage{amsmath,amssymb,graphicx,longtable}
\newcommand{\fit}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}
\allowdisplaybreaks
\setlength{\parindent}{0pt}
\begin{document}
"""

# Sentences.

_GREEK = "alpha|beta|gamma|Gamma|delta|Delta|epsilon|eta|lambda|mu|omega|rho|sigma|tau|xi|chi|Phi|Psi"
_SIGNS: tuple[tuple[str, str], ...] = (
    (r"->", r"\\to "),
    (r"<=", r"\\le "),
    (r"\binfinity\b", r"\\infty "),
    (r"\blog det\b", r"\\log\\det "),
    (r"sqrt\((\w+)\)", r"\\sqrt{\1}"),
    (r"\{([^{}]*, [^{}]*)\}", r"\\{\1\\}"),
    (r"\bin (?=\\\{)", r"\\in "),
    (r"\|(\w+)\|", r"\\lvert \1\\rvert "),
    (r"\bE\[", r"\\mathbb{E}["),
    (r"(?<=[a-z])\.(?=[a-z])", r"\\cdot "),
    (rf"\bd({_GREEK})(?![a-z])", r"d\\\1 "),
    (rf"(?<!\\)\b({_GREEK})(?![a-z])~", r"\\tilde{\\\1}"),
    (rf"(?<!\\)\b({_GREEK})(?![a-z])", r"\\\1 "),
    (r"\b([A-Za-z])~", r"\\tilde{\1}"),
    (r"\b([mQV])h\b", r"\\hat{\1}"),
    (r"\bS([12])\b", r"S_{\1}"),
    (r" ?_([A-Za-z0-9]+)", r"_{\1}"),
)
"""What plain signs become in formulas, in this order."""

_INDEXED = re.compile(r"\b[A-Za-z]+_[0-9]+\b")
_REFERENCE = re.compile(r"@\{([^}]*)\}")


def plain_text(text: str, titles: dict[str, str], notation: Notation) -> str:
    """A step's text without marks: references are titles."""
    text = re.sub(r"`([^`]*)`", lambda match: _printed(match[1], notation, str), text)
    return _REFERENCE.sub(lambda match: f'"{titles[match[1]]}"', text)


def _printed(formula: str, notation: Notation, show) -> str:
    """A formula with indexed names as they are printed in this notation."""

    def name(match: re.Match) -> str:
        symbol = Symbol(match[0], real=True)
        known = notation.names.get(symbol, notation.names.get(Symbol(match[0], positive=True)))
        return match[0] if known is None else show(known)

    return _INDEXED.sub(name, formula)


def latex_text(text: str, notation: Notation) -> str:
    """A step's text in LaTeX."""
    parts = text.split("`")
    return "".join(_formula(part, notation) if k % 2 else _sentence(part) for k, part in enumerate(parts))


def _formula(text: str, notation: Notation) -> str:
    held: list[str] = []

    def hold(symbol: Symbol) -> str:
        held.append(show(symbol))
        return f"<{len(held) - 1}>"

    text = _printed(text, notation, hold)
    for pattern, sign_ in _SIGNS:
        text = re.sub(pattern, sign_, text)
    text = re.sub(r"<(\d+)>", lambda match: held[int(match[1])], text)
    return "$" + re.sub(r" +", " ", text).strip() + "$"


_MARKS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "_": r"\_",
    "#": r"\#", "%": r"\%", "&": r"\&", "$": r"\$", "|": "$|$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _sentence(text: str) -> str:
    parts = _REFERENCE.split(text)
    return "".join(rf"\eqref{{{part}}}" if k % 2 else _escaped(part) for k, part in enumerate(parts))


def _escaped(text: str) -> str:
    return "".join(_MARKS.get(character, character) for character in text)


def _breakable(text: str) -> str:
    """Code that may be broken after its signs."""
    return rf"\texttt{{{re.sub(r'([-+*/,()=])', lambda match: match[1] + chr(0), _escaped(text))}}}".replace(
        chr(0), r"\allowbreak{}"
    )


# Equations.

_CONJUGATE = re.compile(r"([mQV])h_(\w+)")
_CALL = re.compile(r"(\w+)\(h_(\w+)(/T)?\)")
_AVERAGES = (
    (r"d(\w+)_(\w+)/domega_(\w+)", r"\\frac{\\partial \1_{\2}}{\\partial \\omega_{\3}}"),
    (r"\b(sum|rho|Delta)_c ?", r"\\\1_{c} "),
    (r"\bE_c\[", r"\\mathbb{E}_{c}\\left["), (r"\]", r"\\right]"),
    (r"\bf_(\w+)", r"f_{\1}"), (r"\.T\b", "^{T}"),
)  # fmt: skip


def _block(name: str) -> str:
    """A block of order parameters, conjugates or their averages over the classes; "" for other names."""
    if conjugate := _CONJUGATE.fullmatch(name):
        return rf"\hat{{{conjugate[1]}}}_{{{conjugate[2]}}}"
    if call := _CALL.fullmatch(name):
        function, argument = ("\\tau" if call[1] == "tau" else call[1]), call[2]
        index = argument if argument.isdigit() else rf"\mathrm{{{argument}}}"
        return rf"{function}(h_{{{index}}}{call[3] or ''})"
    if "E_c[" not in name:
        return ""
    for pattern, tex in _AVERAGES:
        name = re.sub(pattern, tex, name)
    return name


class _Printer(LatexPrinter):
    """alpha comes first in a product; subscripts that are words are upright."""

    def _print_Mul(self, expr: Mul) -> str:
        factors = list(expr.args)
        if alpha not in factors or len(factors) < 2:
            return super()._print_Mul(expr)
        factors.remove(alpha)
        rest = Mul(*factors)
        minus = rest.could_extract_minus_sign()
        body = self._print(-rest if minus else rest)
        if isinstance(rest, Add):
            body = rf"\left({body}\right)"
        return f"{'- ' if minus else ''}\\alpha {'' if body == '1' else body}"

    def _print_MatrixSymbol(self, expr: MatrixSymbol) -> str:
        return _block(expr.name) or super()._print_MatrixSymbol(expr)

    def _print_Symbol(self, expr: Symbol, style: str = "plain") -> str:
        if found := _block(expr.name):
            return found
        base, _, word = expr.name.partition("_")
        if len(word) > 3 and word.isalpha():
            return rf"{super()._print_Symbol(Symbol(base))}_{{\mathrm{{{word}}}}}"
        return super()._print_Symbol(expr, style)


def show(expression: Expr) -> str:
    """LaTeX of an expression, on one line."""
    return _Printer().doprint(expression)


def width(tex: str) -> float:
    """About how many letters of ordinary size a formula is wide."""
    tex = re.sub(
        r"\\begin\{.*?\}|\\end\{.*?\}|\\(left|right|Bigl|Bigr|limits|displaystyle|operatorname|mathrm|mathbb)\b",
        "",
        tex,
    )
    tex = re.sub(r"\\(hat|tilde|bar|sqrt)\b", "", tex)
    tex = re.sub(r"\\(sum|int)\b", "xx", tex)
    tex = re.sub(r"\\(?!frac\b)[A-Za-z]+ ?", "x", tex).replace("\\,", "")
    while True:
        shorter = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", lambda m: max(m[1], m[2], key=len), tex)
        shorter = re.sub(r"[_^]\{([^{}]*)\}", lambda m: m[1][: (2 * len(m[1]) + 2) // 3], shorter)
        shorter = re.sub(r"(?<!frac)(?<!\})\{([^{}]*)\}", r"\1", shorter)
        if shorter == tex:
            break
        tex = shorter
    return len(re.sub(r"[{}]", "", tex).replace(" ", "")) + 1.2 * len(re.findall(r"[-+=]", tex))


def broken(expression: Expr, room: float) -> list[str]:
    """Lines of an expression, each within ``room`` if it can be."""
    whole = show(expression)
    if width(whole) <= room:
        return [whole]
    if isinstance(expression, Add | MatAdd):
        lines: list[str] = []
        for term in expression.args if isinstance(expression, MatAdd) else _Printer()._as_ordered_terms(expression):
            parts = broken(term, room)
            if lines and not parts[0].lstrip().startswith("-"):
                parts[0] = "+ " + parts[0]
            if lines and len(parts) == 1 and width(lines[-1] + parts[0]) <= room:
                lines[-1] += " " + parts[0]
            else:
                lines += parts
        return lines
    if isinstance(expression, MatMul):
        return _broken_product(expression, room)
    top, bottom = fraction(expression)
    sums = [item for item in Mul.make_args(top) if isinstance(item, Add)]
    if not sums:
        return [whole]
    longest = max(sums, key=lambda item: width(show(item)))
    outer = top / longest / bottom
    before = "" if outer == 1 else "-" if outer == -1 else show(outer)
    inner = broken(longest, max(room - width(before) - 2, room / 3))
    return [rf"{before} \Bigl[ {inner[0]}", *inner[1:-1], rf"{inner[-1]} \Bigr]"] if len(inner) > 1 else [whole]


def _broken_product(expression: MatMul, room: float) -> list[str]:
    """Lines of a product of matrices, whose order counts: its longest sum is broken."""
    factors = list(expression.args)
    places = [k for k, factor in enumerate(factors) if isinstance(factor, MatAdd)]
    if not places:
        return [show(expression)]
    k = max(places, key=lambda place: width(show(factors[place])))
    before, after = (show(MatMul(*some, evaluate=False)) if some else "" for some in (factors[:k], factors[k + 1 :]))
    inner = broken(factors[k], max(room - width(before) - 2, room / 3))
    if len(inner) == 1:
        return [show(expression)]
    return [rf"{before} \Bigl[ {inner[0]}", *inner[1:-1], rf"{inner[-1]} \Bigr] {after}"]


def _tidied(expression: Expr) -> Expr:
    """With a denominator that is a sum in factors, where it is shorter so."""
    if isinstance(expression, MatrixExpr):
        return expression
    top, bottom = fraction(expression)
    constant, rest = bottom.as_coeff_Mul()
    shorter = min(rest, rest.factor(), key=lambda found: width(show(found))) if rest.is_Add else rest
    return top / constant / shorter


def equation_lines(equation: Expr) -> list[str]:
    """Lines of an equation, aligned at its sign; of an expression that is not an equation, its own."""
    if not isinstance(equation, Equality):
        return [f"& {line}" for line in broken(equation, LINE)]
    left = show(equation.lhs)
    if isinstance(equation.rhs, MatrixBase):
        return [rf"\fit{{$\displaystyle {left} = {show(equation.rhs)}$}}"]
    first, *others = broken(_tidied(equation.rhs), LINE - width(left) - 2)
    return [f"{left} &= {first}", *(rf"&\qquad {line}" for line in others)]


def equations_block(equations: Sequence[Expr], label: str) -> str:
    """Numbered equations below each other; the first has the label of the step."""
    rows = []
    for k, equation in enumerate(equations):
        lines = equation_lines(equation)
        name = rf" \label{{{label}{f'.{k + 1}' if k else ''}}}"
        rows.append(" \\\\\n".join([*(rf"{line} \notag" for line in lines[:-1]), lines[-1] + name]))
    return "\\begin{align}\n" + " \\\\\n".join(rows) + "\n\\end{align}"


# The index.


def meanings(stages: int) -> list[tuple[Expr, str]]:
    """Symbols of the equations, and what they are."""
    found = [
        (alpha, "samples per input, `M/N`"), (rho, "probability of `y = 1`"), (delta, "variance of the inputs given the class"),
        (y, "label, 0 or 1"), (sign, "sign of the label, `2y - 1`"),
    ]  # fmt: skip
    for t in range(1, stages + 1):
        of = (
            f"stage {t}" if stages > 2 else ("the student" if t == 2 else "the teacher") if stages == 2 else "the stage"
        )
        found += [
            (logit(t), f"logit of {of}"), (weight(t), f"a weight of {of}"), (stage_ridge(t), f"ridge of {of}"),
            (stage_fraction(t), f"fraction of its weights that {of} trains"),
            (magnetization(t), f"overlap of {of} with the centre, `w.v/N`"), (bias(t), f"bias of {of}"),
            (magnetization_hat(t), f"conjugate of the overlap of {of} with the centre"),
            (field(t), f"cavity field of {of}"), (proximal_field(t), f"field at which the proximal point of {of} is taken"),
            (force(t), f"force on the logit of {of}, minus the slope of its loss"),
            (random_field(t), f"random field on a weight of {of}"),
            (inverse_temperature(t), f"inverse temperature of the Gibbs measure of {of}"),
            (replicas(t), f"replicas of {of}"),
        ]  # fmt: skip
        for s in range(1, t + 1):
            other = "itself" if s == t else f"stage {s}" if stages > 2 else "the teacher"
            found += [
                (overlap(t, s), f"overlap of the weights of {of} with {other}"),
                (response(t, s), f"response of the weights of {of} to a field on {'them' if s == t else 'those of ' + other}"),
                (overlap_hat(t, s), f"covariance of the random fields of {of} and {other}"),
                (response_hat(t, s), f"conjugate of the overlap of {of} with {other}"),
            ]  # fmt: skip
    return found


def index_of_symbols(steps: Sequence[Step], stages: int, notation: Notation) -> str:
    """A table of the symbols that occur, what they are, and the first equation in which they do."""
    first: dict[str, str] = {}
    for step in steps:
        for k, equation in enumerate(step.equations):
            place = f"{step.label}{f'.{k + 1}' if k else ''}"
            for symbol in equation.free_symbols:
                first.setdefault(symbol.name, place)
    rows = [
        r"$\mathbb{E}$ & average over the label and the cavity fields & \\",
        r"$H$ & tail of the normal distribution & \\",
    ]
    for symbol, text in meanings(stages):
        printed = notation(symbol)
        printed = -printed if (-printed).is_Symbol else printed
        if printed.name in first:
            rows.append(rf"${show(printed)}$ & {latex_text(text, notation)} & \eqref{{{first[printed.name]}}} \\")
    body = "\n".join(dict.fromkeys(rows))
    return f"\\section*{{Symbols}}\n\\begin{{longtable}}{{lll}}\n{body}\n\\end{{longtable}}"


def as_latex(steps: Iterable[Step], stages: int, notation: Notation) -> str:
    """A LaTeX document."""
    steps = list(steps)
    parts = [_PREAMBLE]
    for step in steps:
        title = re.sub(r"\w+ -> \w+", lambda match: f"`{match[0]}`", step.title)
        parts.append(rf"\section*{{{latex_text(title, notation)}}}")
        if step.text:
            parts.append(latex_text(step.text, notation))
        parts += ["\n\n".join(["", *map(_breakable, step.code), ""])] if step.code else []
        if step.equations:
            parts.append(equations_block(step.equations, step.label))
    parts += [index_of_symbols(steps, stages, notation), r"\end{document}"]
    return "\n".join(parts) + "\n"
