"""What keeps a start short: modules imported when they are first used, and imports that do not stop to look for garbage."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Put off garbage collection: imports make many objects, all to stay, and searching them takes a tenth of a start."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def starting(name: str) -> Iterator[None]:
    """Imports of a module that may be a command (``name`` is then ``"__main__"``): what fails leaves in one line."""
    if name != "__main__":
        yield
        return
    from theory.terminal import guarded  # here: modules of the package do without

    with guarded():
        yield


class _Deferred:
    """Stands for a module until it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        with importing():
            value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


special = _Deferred("scipy.special")
optimize = _Deferred("scipy.optimize")
