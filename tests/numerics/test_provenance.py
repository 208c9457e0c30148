"""What numbers depend on: the files that are counted exist, and texts do not count."""

from __future__ import annotations

from pathlib import Path

import numerics
from numerics import provenance

ROOT = Path(numerics.__file__).parents[1]


def test_files_exist() -> None:
    for name in (*provenance.SIMULATION_CODE, *provenance.OTHER_CODE):
        assert (ROOT / name).is_file(), name
    assert not set(provenance.SIMULATION_CODE) & set(provenance.OTHER_CODE)


def test_texts_do_not_count() -> None:
    before = 'def f(x):\n    """What f does."""\n    return x + 1  # one more\n'
    same = '"""A module."""\n\ndef f(x):\n    """Something else."""\n\n    return x + 1\n'
    other = "def f(x):\n    return x + 2\n"
    assert provenance._without_texts(before) == provenance._without_texts(same)
    assert provenance._without_texts(before) != provenance._without_texts(other)
    assert provenance.code_version(True) != provenance.code_version(False)


def test_versions_are_those_of_the_installed_packages() -> None:
    found = provenance.package_versions()
    assert {"python", "numpy", "numba", "sympy", "scipy", "replica-distillation"} == set(found)
    found["numpy"] = "0"
    assert provenance.package_versions()["numpy"] != "0"
