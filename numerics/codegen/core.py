"""The solver as one module: kernel files joined with the generated channel averages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from numerics.codegen.cache import derived_source, load
from numerics.codegen.equations import average_definitions
from numerics.codegen.printing import HEADER_TEXT
from numerics.scalar import kernels

_KERNELS = Path(kernels.__file__).parent
_KERNEL_IMPORT = re.compile(
    r"^(from (numerics\.scalar\.kernels\.\w+|\._generated|numba|__future__) import (\([^)]*\)|[^(\n]*)[^\n]*"
    r"|import (math|numpy as np))\n",
    re.MULTILINE,
)
_HEADER = re.compile(r'\A(""".*?"""\n)?\s*from __future__ import annotations\n', re.DOTALL)
_CORE = ("proximal", "panels", "grid", "averages", "nodes", "stage", "chain", "lists")
"""Kernel files of the core, each after those it needs."""


def fill(templates: Sequence[str], definitions: str) -> str:
    """Source of a module: kernel files one after the other, their imports of each other and of generated names taken out."""
    text = HEADER_TEXT + definitions
    for template in templates:
        body = (_KERNELS / f"{template}.py").read_text(encoding="utf-8")
        text += _KERNEL_IMPORT.sub("", _HEADER.sub("", body)) + "\n"
    return text


@lru_cache(maxsize=1)
def core_module() -> ModuleType:
    """The solver: the kernel files joined with the generated averages, compiled once for all losses and chain lengths."""
    return load(
        "core",
        fill(
            _CORE,
            derived_source("averages", average_definitions),
        ),
    )
