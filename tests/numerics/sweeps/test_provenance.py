"""What numbers depend on: the files that are counted exist, and texts do not count."""

from __future__ import annotations

from pathlib import Path

import numerics
from numerics.sweeps import provenance

ROOT = Path(numerics.__file__).parents[1]


def test_what_counts_is_told_by_rooms() -> None:
    theory, simulation = provenance._sources(False), provenance._sources(True)
    for room in provenance.SIMULATION_ROOMS:
        assert (ROOT / room / "__init__.py").is_file()
        assert any(name.startswith(f"{room}/") for name in simulation)
    assert set(simulation) < set(theory)
    assert {"theory/potential.py", "numerics/solver.py", "numerics/settings.py", "numerics/thresholds.py"} <= set(
        theory
    )
    assert not {"numerics/solve.py", "numerics/phase_diagram.py", "theory/__main__.py"} & set(theory)
    for room in provenance.SILENT_ROOMS:
        assert (ROOT / room / "__init__.py").is_file()
        assert not any(name.startswith(f"{room}/") for name in theory)


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
