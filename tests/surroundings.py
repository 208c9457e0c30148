"""Running commands in other surroundings: as another user, in another folder, with other variables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import numerics

ROOT = Path(numerics.__file__).parents[1]
NOBODY = 65534


def python(
    *arguments: object, cwd: Path | None = None, variables: Mapping[str, str | None] | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess:  # fmt: skip
    """Run this interpreter, the package found where it is now; a variable of None is unset.  Output as bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    command = [*prefix, sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, timeout=300)


def as_nobody() -> list[str]:
    """What runs a command as a user who owns nothing; skips the test where that is not possible."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        pytest.skip("another user can be simulated by root alone")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv, which changes the user, is not installed")
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if subprocess.run([*become, sys.executable, "-c", "import numba"], capture_output=True).returncode:
        # The interpreter lies in root's home: let the user read what he likes, and write as little as before.
        become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        if subprocess.run([*become, sys.executable, "-c", ""], capture_output=True).returncode:
            pytest.skip("other users cannot run this interpreter")
    return become
