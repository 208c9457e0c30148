"""Compiled functions of a formula of K classes (:mod:`theory.class_formulas`)."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import sympy
from numba.core import types
from sympy import Expr, Symbol, diff

from numerics.codegen.cache import derived_source, load
from numerics.codegen.losses import pointer
from numerics.codegen.printing import HEADER_TEXT, function, statements
from theory.class_formulas import label_entries, logits_of, own_logits, written_out

_IMPORTS = "from numerics.classes.proximal import log_sum_exp\n\n\n"


class CompiledFormula(NamedTuple):
    """Functions of one sample."""

    value: types.CompileResultWAP
    derivatives: types.CompileResultWAP


def class_loss_module(
    formula: Expr, classes: int, parameters: tuple[Symbol, ...], teachers: tuple[Symbol, ...]
) -> CompiledFormula:
    """Compiled ``value_at`` and ``derivatives_at`` of a formula of K classes, for any parameter values, as pointers.

    They take ``(h, context, parameters)``, derivatives also a slope (K,) and a curvature (K, K) to be filled.  A sample's *context*
    is its label, 0..K-1, and the K logits of each of the ``teachers``.
    """
    return _module(formula, classes, parameters, teachers)


@lru_cache(maxsize=256)
def _module(
    formula: Expr, classes: int, parameters: tuple[Symbol, ...], teachers: tuple[Symbol, ...]
) -> CompiledFormula:
    digest = hashlib.sha256(sympy.srepr((formula, classes, parameters, teachers)).encode()).hexdigest()[:16]
    text = derived_source(f"class_loss_{digest}", lambda: _definitions(formula, classes, parameters, teachers))
    module = load("class_loss", HEADER_TEXT.rstrip("\n") + "\n" + _IMPORTS + text)
    return CompiledFormula(pointer(module.value_at), pointer(module.derivatives_at))


def _definitions(formula: Expr, classes: int, parameters: tuple[Symbol, ...], teachers: tuple[Symbol, ...]) -> str:
    """Source of ``value_at`` and ``derivatives_at``, of one sample."""
    whole, own = written_out(formula, classes), own_logits(classes)
    names = {symbol: f"h[{k}]" for k, symbol in enumerate(own)}
    names |= {symbol: f"(1.0 if context[0] == {k}.0 else 0.0)" for k, symbol in enumerate(label_entries(classes))}
    for place, teacher in enumerate(teachers):
        seen = enumerate(logits_of(teacher, classes), start=1 + place * classes)
        names |= {symbol: f"context[{column}]" for column, symbol in seen}
    names |= {symbol: f"parameters[{k}]" for k, symbol in enumerate(parameters)}
    slopes = [diff(whole, x) for x in own]
    found = [(f"slope[{k}]", slope) for k, slope in enumerate(slopes)]
    found += [(f"square[{i}, {j}]", diff(slopes[i], own[j])) for i in range(classes) for j in range(i + 1)]
    mirrored = f"    for i in range({classes}):\n        for j in range(i):\n            square[j, i] = square[i, j]\n"
    vectors = ", ".join(["FloatArray"] * 3)
    return function(
        "value_at",
        ["h", "context", "parameters"],
        statements([("value", whole)], names),
        "value + 0.0",
        signature=f"types.float64({vectors})",
        options="POINTED",
    ) + function(
        "derivatives_at",
        ["h", "context", "parameters", "slope", "square"],
        statements(found, names) + mirrored,
        signature=f"types.void({vectors}, FloatArray, Matrix)",
        options="POINTED",
    )
