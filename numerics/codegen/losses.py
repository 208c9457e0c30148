"""Compiled functions of a loss: what the solver calls at a point, and functions of arrays for simulations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from textwrap import indent
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import sympy
from numba.core import types

from numerics.codegen.cache import derived_source, load
from numerics.codegen.printing import HEADER_TEXT, by_label, function, gathered, statements, without_cancellation
from numerics.scalar.kernels.elementary import SEARCHED, SHARED
from theory.losses import Loss
from theory.symbols import h, y


def _loss_names(loss: Loss) -> dict[sympy.Symbol, str]:
    names = {h: "h", y: "y"}
    names |= {symbol: f"logits[{k}]" for k, symbol in enumerate(loss.logits)}
    return names | {symbol: f"parameters[{k}]" for k, symbol in enumerate(loss.symbols)}


def loss_definitions(loss: Loss) -> str:
    """Compiled functions ``(h, y, logits, parameters, out)`` of a loss: slopes, targets, bends; and slopes ``along`` many h.

    Where the gradient splits into ``S(h) - c``, both are measured from the limit of S at -oo (branch 0) and at +oo (branch 1):
    near saturation the difference then keeps its relative accuracy.  Elsewhere S is the whole gradient and c = 0.
    """
    names = _loss_names(loss)
    split = loss.split
    limits = loss.saturation
    if split is None:
        targets = "    out[0] = 0.0\n    out[1] = 0.0\n"
    else:
        targets = by_label([(f"out[{branch}]", split[1] - limit) for branch, limit in enumerate(limits)], names)
    n = len(loss.bends)
    bends = statements(
        [(f"out[{row * n + k}]", entry) for k, bend in enumerate(loss.bends) for row, entry in enumerate(bend)],
        names,
    )
    arguments = ["h", "y", "logits", "parameters", "out"]
    at_one = {"slopes": _slopes(loss, names, [f"out[{k}]" for k in range(4)]), "targets": targets, "bends": bends}
    text = "".join(
        function(name, arguments, body, signature="POINT_FUNCTION.signature", options="BY_POINTER")
        for name, body in at_one.items()
    )
    rows = ["low", "high", "curvature", "third"]
    along = _slopes(loss, names | {h: "h[i]"}, [f"{row}[i]" for row in rows])
    arguments = ["n", "y", "logits", "parameters", "h", *rows]
    body = "    for i in range(n):\n" + indent(along, "    ")
    return text + function(
        "along", arguments, body, signature="ALONG_FUNCTION.signature, noalias=True", options="BY_POINTER"
    )


def _slopes(loss: Loss, names: dict[sympy.Symbol, str], outputs: list[str]) -> str:
    """Statements that give S on both branches, S' and S'' to ``outputs``."""
    low, high, *curvatures = outputs
    if loss.split is None:
        text = zip([low, *curvatures], (loss.gradient, loss.curvature, loss.third), strict=True)
        return by_label(list(text), names) + f"    {high} = {low}\n"
    measured = [without_cancellation(gathered(loss.split[0] - limit)) for limit in loss.saturation]
    measured += [without_cancellation(loss.curvature), without_cancellation(loss.third)]
    return statements(list(zip(outputs, measured, strict=True)), names)


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


def grid_kind(loss: Loss) -> int:
    """What ``scalar/kernels/grid.py`` is told of a loss: the sum of SHARED and SEARCHED, as they apply."""
    shared = SHARED if loss.split is not None else 0
    return shared + (0 if loss.bends_are_known else SEARCHED)


class CompiledLoss(NamedTuple):
    """Point functions of a loss, for any parameter values."""

    along: types.CompileResultWAP
    slopes: types.CompileResultWAP
    targets: types.CompileResultWAP
    bends: types.CompileResultWAP


def loss_module(loss: Loss) -> CompiledLoss:
    """Compiled ``along``, ``slopes``, ``targets`` and ``bends`` of a loss."""
    return _loss_module(_ByFormula(loss))


@lru_cache(maxsize=256)
def _loss_module(formula: _ByFormula) -> CompiledLoss:
    module = load("loss", HEADER_TEXT + formula.source("loss", loss_definitions))
    return CompiledLoss(*(pointer(getattr(module, name)) for name in CompiledLoss._fields))


def pointer(function: Any) -> types.CompileResultWAP:
    """A compiled function of one signature with its address looked up: numba would do so at every call."""
    return types.CompileResultWAP(next(iter(function.overloads.values())))


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
        first, second = np.empty_like(h, order="C"), np.empty_like(h, order="C")
        self._module.derivatives(*_contiguous(h, y, logits), self._parameters, first, second)
        return first, second

    def mixed(self, h: np.ndarray, y: np.ndarray, logits: np.ndarray, k: int) -> np.ndarray:
        """d2l/(dh dh_k) for the k-th of the logits the loss looks at (0-based), shape (n,)."""
        return self._call(getattr(self._module, f"mixed_{k}"), h, y, logits)

    def _call(self, compiled, h: np.ndarray, y: np.ndarray, logits: np.ndarray) -> np.ndarray:
        out = np.empty_like(h, order="C")
        compiled(*_contiguous(h, y, logits), self._parameters, out)
        return out


def _contiguous(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays in C order, for which functions of arrays are compiled once."""
    return tuple(map(np.ascontiguousarray, arrays))


@lru_cache(maxsize=256)
def _pointwise_module(formula: _ByFormula) -> ModuleType:
    return load("pointwise", HEADER_TEXT + formula.source("pointwise", pointwise_definitions))


def pointwise_definitions(loss: Loss) -> str:
    """Source of ``value``, ``derivatives`` and ``mixed_k`` over arrays, for :class:`LossFunctions`."""
    names = _loss_names(loss) | {h: "h[i]", y: "y"}
    names |= {symbol: f"logits[i, {k}]" for k, symbol in enumerate(loss.logits)}
    outputs = {"value": {"out": loss.expression}, "derivatives": {"first": loss.gradient, "second": loss.curvature}}
    outputs |= {f"mixed_{k}": {"out": sympy.diff(loss.gradient, x)} for k, x in enumerate(loss.logits)}
    text = ""
    for name, found in outputs.items():
        body = "    for i in range(h.size):\n        y = labels[i]\n"
        body += indent(by_label([(f"value_{out}", expression) for out, expression in found.items()], names), "    ")
        body += "".join(f"        {out}[i] = value_{out} + 0.0\n" for out in found)
        text += function(name, ["h", "labels", "logits", "parameters", *found], body)
    return text
