"""What numbers depend on: versions of packages, and of this project's own code."""

from __future__ import annotations

import hashlib
import opcode
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType

import numpy as np
import sympy

import theory
from numerics.codegen.cache import derived_source
from theory import envelope, potential

SIMULATION_ROOMS = ("theory", "numerics/models", "numerics/codegen", "numerics/solution", "numerics/simulation")
"""Folders that a simulation depends on; what theory computes depends on all of ``theory`` and ``numerics`` but:"""

SILENT_ROOMS = ("numerics/cli", "numerics/plots")
"""Folders that no number depends on, which ask and draw.  Commands, modules that may be run, do not count either."""


def package_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return dict(_package_versions())


@lru_cache(maxsize=1)
def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("replica-distillation", "numpy", "scipy", "sympy", "numba"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


THEORY, SIMULATION = 1, 1
"""Versions of the hand-written numerics, raised when theory's numbers, or those of simulations with the same seeds, change by more
than they are good to."""

_DIGITS = 12
_GUARD = '\nif __name__ == "__main__":\n'
_EVALUATED = 30  # digits: rounding never reaches the digits that count
_STAGES = (1, 2, 3)
_NOTHING = opcode.opmap["NOP"]  # what is left of a text


@lru_cache(maxsize=1)
def equations_version() -> str:
    """Hash of what theory's equations *are*: their values at a fixed point, not their text.

    Rewriting them, another version of SymPy or of Python changes nothing; a wrong sign does.
    """
    return derived_source("equations_version", _equations_version)


def _equations_version() -> str:
    digest = hashlib.sha256()
    for t in _STAGES:
        for equations in (potential.channel_equations(t), potential.prior_equations(t), potential.conditional_moments(t),
                          potential.cholesky_update(t)):  # fmt: skip
            for name, expression in equations.outputs.items():
                digest.update(f"{t} {name} {value_at_a_point(expression)}\n".encode())
    for name, expression in envelope.average_integrands().items():
        digest.update(f"{name} {value_at_a_point(expression)}\n".encode())
    return digest.hexdigest()[:16]


def value_at_a_point(expression: sympy.Expr) -> str:
    """Value of an expression where every symbol has a number that follows from its name."""
    places = {symbol: _place(symbol.name) for symbol in sympy.sympify(expression).free_symbols}
    return str(sympy.sympify(expression).evalf(_EVALUATED, subs=places).evalf(_DIGITS))


def _place(name: str) -> sympy.Rational:
    return sympy.Rational(1, 3) + sympy.Rational(int(hashlib.sha256(name.encode()).hexdigest()[:6], 16) % 1000, 1000)


def numbers_version(simulation: bool) -> str:
    """What numbers depend on beside parameters and losses: a version of the numerics, and for theory the equations."""
    return f"simulation {SIMULATION}" if simulation else f"theory {THEORY}, equations {equations_version()}"


@lru_cache(maxsize=2)
def code_version(simulation: bool) -> str:
    """Hash of the source, without its texts, that the results of theory, or of simulations, depend on."""
    digest = hashlib.sha256()
    for name, source in sorted(_sources(simulation).items()):
        digest.update(name.encode() + _without_texts(source).encode())
    return digest.hexdigest()[:16]


def _sources(simulation: bool) -> dict[str, str]:
    """Text of the files that count, by their names below the folder of the packages."""
    packages = Path(theory.__file__).parent, Path(__file__).parents[1]
    files = {path: path.relative_to(root.parent) for root in packages for path in root.rglob("*.py")}
    found = {}
    for path, name in files.items():
        room, source = name.parent.as_posix(), path.read_text(encoding="utf-8")
        counts = room.startswith(SIMULATION_ROOMS) if simulation else not room.startswith(SILENT_ROOMS)
        if counts and path.name != "__main__.py" and _GUARD not in source:
            found[name.as_posix()] = source
    return found


@lru_cache(maxsize=1024)
def _without_texts(source: str) -> str:
    """Hash of what a module does: its byte code without comments and docstrings, nor where in the file what is."""
    code = compile(source, "", "exec", dont_inherit=True, optimize=2)
    return hashlib.sha256(repr(_contents(code)).encode()).hexdigest()


def _contents(found: object) -> object:
    """What byte code, or a constant in it, holds."""
    if isinstance(found, CodeType):
        called = found.co_argcount, found.co_posonlyargcount, found.co_kwonlyargcount, found.co_flags
        names = found.co_name, found.co_names, found.co_varnames, found.co_freevars, found.co_cellvars
        instructions = np.frombuffer(found.co_code, dtype=(np.uint8, 2))
        instructions = instructions[instructions[:, 0] != _NOTHING].tobytes()
        return called, names, instructions, found.co_exceptiontable, [_contents(one) for one in found.co_consts]
    if isinstance(found, frozenset):
        return sorted(map(repr, found))  # in the same order in every process
    return [_contents(one) for one in found] if isinstance(found, tuple) else repr(found)
