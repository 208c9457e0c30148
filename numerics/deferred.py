"""What keeps a start short: modules imported when they are first used, and imports that do not stop to look for garbage."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
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


def require_own_theory() -> None:
    """ImportError if ``theory`` is somebody else's module, or a folder of that name where the user works."""
    found = importlib.util.find_spec("theory")
    where = None if found is None or found.origin is None else os.path.dirname(os.path.dirname(found.origin))
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if where is None or not os.path.isdir(where) or not os.path.samefile(where, here):
        places = list(getattr(found, "submodule_search_locations", None) or []) if found else []
        shown = (found.origin or ", ".join(places)) if found else "nothing"
        raise ImportError(
            f"the package theory is hidden by another module of that name ({shown}); rename it, or work elsewhere"
        )


@contextmanager
def starting(name: str) -> Iterator[None]:
    """Imports of a module that may be a command (``name`` is then ``"__main__"``): what fails leaves in one line."""
    if name != "__main__":
        yield
        return
    try:
        require_own_theory()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    from theory.terminal import guarded  # here: modules of the package do without

    with guarded():
        yield


class Deferred:
    """Stands for a module until it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        with importing():
            value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


special = Deferred("scipy.special")
optimize = Deferred("scipy.optimize")
