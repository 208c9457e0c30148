"""Names of the symbols on the printed page.

Up to two stages the notation of Saglietti and Zdeborova (PMLR 145:809) is used: m~, q~, delta q~ for the
teacher, m, q, delta q for the student, S and delta S between them, hats on conjugates; delta S^ = -Vh_21.  In
plain text delta is written d and a hat ``hat``.  Longer chains keep the general notation.
"""

from __future__ import annotations

from functools import lru_cache

from sympy import Expr, Symbol
from sympy import latex as to_latex

from theory.averages import earlier_force, earlier_logit
from theory.potential import random_field, weight
from theory.replica import inverse_temperature, replicas, stage_ridge
from theory.symbols import (
    bias,
    field,
    indexed,
    logit,
    magnetization,
    magnetization_hat,
    overlap,
    overlap_hat,
    response,
    response_hat,
)


class Notation:
    """Renaming of symbols for a chain of ``stages``, as plain text or LaTeX."""

    def __init__(self, stages: int, as_latex: bool) -> None:
        self.latex = as_latex
        self.names = dict(_paper(as_latex) if stages <= 2 else _general(stages, as_latex))

    def __call__(self, expression: Expr) -> Expr:
        """The expression in printed names."""
        return expression.xreplace(self.names)

    def average(self, *factors: Expr) -> Symbol:
        """A symbol that prints as the average of a product."""
        shown = " ".join(self._shown(factor) for factor in factors)
        return Symbol(rf"\mathbb{{E}}\left[{shown}\right]" if self.latex else f"E[{shown}]")

    def average_slope(self, force: Expr, cavity_field: Expr) -> Symbol:
        """A symbol that prints as the average of the total derivative of a force."""
        top, bottom = self._shown(force), self._shown(cavity_field)
        if self.latex:
            return Symbol(rf"\mathbb{{E}}\left[\frac{{d {top}}}{{d {bottom}}}\right]")
        return Symbol(f"E[d{top}/d{bottom}]")

    def _shown(self, expression: Expr) -> str:
        return to_latex(self(expression)) if self.latex else str(self(expression))


def force(t: int) -> Symbol:
    """f_t as a symbol."""
    return indexed("f", t)


def proximal_field(t: int) -> Symbol:
    """u_t as a symbol."""
    return indexed("u", t)


def stage_fraction(t: int) -> Symbol:
    """eta_t, active fraction of the weights of stage t."""
    return indexed("eta", t, positive=True)


def _tilde(name: str, latex: bool) -> str:
    return rf"\tilde{{{name}}}" if latex else f"{name}~"


def _hat(name: str, latex: bool) -> str:
    return rf"\hat{{{name}}}" if latex else f"{name}hat"


def _variation(name: str, latex: bool) -> str:
    return rf"{{\delta {name}}}" if latex else f"d{name}"


def _greek(name: str, latex: bool) -> str:
    return rf"{{\{name}}}" if latex else name


def _replicated(latex: bool) -> dict[Expr, Expr]:
    """Names in the replicated action and the ansatz."""
    names: dict[Expr, Expr] = {
        Symbol("w~"): Symbol(_tilde("w", latex)),
        Symbol("n~"): Symbol(_tilde("n", latex)),
    }
    for letter in "mqS":
        names[Symbol(f"{letter}h")] = Symbol(_hat(letter, latex))
    if latex:
        names[Symbol("h_star", real=True)] = Symbol("h_{*}")
        for label in ("a", "aa", "ab", "a1^(1)", "ac^(1)", "a1^(2)", "ac^(2)"):
            subscript, _, superscript = label.partition("^")
            for letter in "mqS":
                raised = f"^{{{superscript}}}" if superscript else ""
                shown = rf"{_hat(letter, latex)}_{{{subscript}}}{raised}"
                names[Symbol(f"{letter}h_{label}")] = Symbol(shown)
    return names


@lru_cache(maxsize=4)
def _paper(latex: bool) -> tuple[tuple[Expr, Expr], ...]:
    names = _replicated(latex)
    for t, mark in ((1, lambda name: _tilde(name, latex)), (2, lambda name: name)):
        plain = {magnetization(t): "m", bias(t): "b", logit(t): "h", force(t): "f", weight(t): "w"}
        plain |= {proximal_field(t): "u", overlap(t, t): "q"}
        greek = {field(t): "omega", random_field(t): "xi", inverse_temperature(t): "beta"}
        greek |= {stage_ridge(t): "lambda", stage_fraction(t): "eta"}
        plain |= {key: _greek(name, latex) for key, name in greek.items()}
        plain |= {magnetization_hat(t): _hat("m", latex), overlap_hat(t, t): _hat("q", latex)}
        for key, name in plain.items():
            names[key] = Symbol(mark(name))
        names[response(t, t)] = Symbol(_variation(mark("q"), latex))
        names[response_hat(t, t)] = Symbol(_variation(mark(_hat("q", latex)), latex))
    names[earlier_force(1)] = names[force(1)]
    names[earlier_logit(1)] = names[logit(1)]
    names[overlap(2, 1)] = Symbol("S")
    names[response(2, 1)] = Symbol(_variation("S", latex))
    names[overlap_hat(2, 1)] = Symbol(_hat("S", latex))
    names[response_hat(2, 1)] = -Symbol(_variation(_hat("S", latex), latex))
    names[replicas(1)] = Symbol(_tilde("n", latex))
    return tuple(names.items())


def _general(stages: int, latex: bool) -> dict[Expr, Expr]:
    names = _replicated(latex)
    for t in range(1, stages + 1):
        names[earlier_force(t)] = force(t)
        names[earlier_logit(t)] = logit(t)
        if latex:
            names[magnetization_hat(t)] = Symbol(rf"\hat{{m}}_{{{t}}}")
        for s in range(1, t + 1):
            if latex:
                names[overlap_hat(t, s)] = Symbol(rf"\hat{{Q}}_{{{t}{s}}}")
                names[response_hat(t, s)] = Symbol(rf"\hat{{V}}_{{{t}{s}}}")
    return names
