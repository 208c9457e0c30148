"""Compiled code on disk: always an answer, whoever runs it, whatever the folder and its files look like."""

from __future__ import annotations

import os
import shutil
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from surroundings import NOBODY, as_nobody, python

from numerics.codegen import cache
from numerics.codegen.cache import CACHE_VARIABLE, CacheWarning, cache_directory, read_entry, write_entry
from numerics.codegen.equations import equations_module
from numerics.models import Chain, Estimator
from numerics.scalar.compiled import compile_chain
from theory import terminal
from theory.losses import CrossEntropy
from theory.terminal import guarded

SOLVE = ("-m", "numerics.solve", "--alpha", "1", "--single", "--json")
COMPILES_A_LITTLE = ("-c", "from numerics.scalar.kernels.elementary import softplus; print(round(softplus(0.0), 6))")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache, used by this process."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    cache._tell_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A copy of this user's cache that has what ``SOLVE`` needs."""
    assert python(*SOLVE).returncode == 0
    compile_chain(Chain.of(Estimator(CrossEntropy(), ridge=0.1)))
    copy = tmp_path_factory.mktemp("compiled") / "cache"
    shutil.copytree(cache_directory(), copy)
    return copy


@pytest.fixture
def copy(compiled: Path, tmp_path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "cache"))


def newest(folder: Path, pattern: str) -> Path:
    """The last one made: earlier code may have left its own."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def lines(text: bytes) -> list[str]:
    return text.decode().splitlines()


# Entries.


def test_entries_come_back_and_are_replaced(folder: Path) -> None:
    assert read_entry("a") is None
    write_entry("a", b"first")
    write_entry("deep/b", b"")
    assert read_entry("a") == b"first"
    assert read_entry("deep/b") == b""
    (data,) = folder.glob("a.*.nbc")
    os.utime(data, (0, 0))
    write_entry("a", b"second")
    assert read_entry("a") == b"second"
    assert len(list(folder.glob("a.*"))) == 2  # the data that were replaced are gone


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "removed", "folder"])
def test_damage_is_one_warning_and_no_entry(folder: Path, suffix: str, damage: str) -> None:
    write_entry("a", bytes(range(256)) * 100)
    (path,) = folder.glob(f"a*{suffix}")
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "removed":
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "truncated": content[:middle], "flipped": flipped}[damage])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_entry("a") is None
        assert read_entry("a") is None
    expected = 0 if (suffix, damage) == (".nbi", "removed") else 1
    assert [w.category for w in caught] == [CacheWarning] * expected
    if damage != "folder":
        write_entry("a", b"again")
        assert read_entry("a") == b"again"


def test_many_write_at_once(folder: Path) -> None:
    contents = [bytes([k]) * (50_000 + k) for k in range(4)]

    def work(k: int) -> set[bytes | None]:
        found = set()
        for _ in range(30):
            write_entry("a", contents[k])
            found.add(read_entry("a"))
        return found

    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("error")
        seen = set().union(*pool.map(work, range(4)))
    assert seen <= set(contents)
    assert read_entry("a") in contents
    assert not list(folder.glob("*.tmp"))


# Folders.


def test_home_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, "~/kept here")
    assert cache_directory() == tmp_path / "kept here"
    monkeypatch.setenv(CACHE_VARIABLE, "~nobody-of-that-name/cache")
    assert cache_directory() == Path(cache._user_cache())


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions are those of POSIX")
def test_files_have_the_permissions_of_new_files(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        write_entry("a", b"data")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("a.*")} == {0o640}


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_in_a_shared_folder_a_user_has_his_own(tmp_path, monkeypatch, mode: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    monkeypatch.setenv(CACHE_VARIABLE, str(shared))
    own = cache_directory()
    assert own == shared / f"user-{os.getuid()}"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.chmod(0o777)  # now anybody could put code there
    cache._chosen_folders.cache_clear()
    assert cache_directory() != own
    cache._chosen_folders.cache_clear()


def test_a_file_where_the_folder_should_be(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    found = python(
        *COMPILES_A_LITTLE, variables={CACHE_VARIABLE: str(tmp_path / "file"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    )
    assert found.stdout == b"0.693147\n"
    assert f"{CACHE_VARIABLE}: {tmp_path / 'file'} cannot be written" in found.stderr.decode()
    assert list((tmp_path / "xdg").rglob("*softplus*"))


# Whole commands.


def test_the_solver_is_announced_before_it_is_compiled(monkeypatch, folder: Path, capsys) -> None:
    """At once, once, and inside commands only; not for what takes no time."""
    monkeypatch.setattr(terminal, "_said", set())
    texts = iter(["first", "second", "third"])

    def derive() -> str:
        derived.append(capsys.readouterr().err)
        return next(texts)

    derived: list[str] = []
    with guarded([]):
        assert cache.derived_source("loss_of_mine", derive) == "first"
        assert cache.derived_source("averages", derive) == "second"
        assert cache.derived_source("averages", derive) == "second"
        assert cache.derived_source("averages_of_more", derive) == "third"
    assert derived == ["", f"{cache.SOLVER_NOTICE}\n", ""]


def test_damaged_files_are_compiled_again(copy: Path) -> None:
    machine = copy / "__pycache__"
    targets = [
        min(machine.glob("chain.*.nbc"), key=lambda path: path.stat().st_size),
        newest(machine, "elementary.softplus*.nbc"),
        newest(machine, "elementary.exp_nonpositive*.nbi"),
        newest(machine, f"{equations_module(1).__name__}.*.nbc"),
        newest(copy, "source_averages*.nbc"),
    ]
    targets += [
        path
        for path in machine.glob("generated_loss_*.nbc")
        if "-" not in path.name.partition(".")[2].partition(".cpy")[0]
    ]
    for k, path in enumerate(targets):
        path.write_bytes(path.read_bytes()[: 1000 * (k % 2)] if path.suffix == ".nbc" else b"")
    first = python(*SOLVE, variables={CACHE_VARIABLE: str(copy)})
    assert first.returncode == 0
    told = [line for line in lines(first.stderr) if line.startswith("warning: ")]
    assert len(told) == 1
    assert "damaged" in told[0]
    second = python(*SOLVE, variables={CACHE_VARIABLE: str(copy)})
    assert second.stderr == b""
    assert second.stdout == first.stdout == python(*SOLVE).stdout


APART = """
from numba import types
from numerics.codegen.cache import njit

@njit(types.float64(types.float64), cache=True, apart=True, inner=True)
def square_and_count_of_this_test(x):
    return x * x

@njit(types.float64(types.float64), cache=True)
def twice(x):
    return 2.0 * square_and_count_of_this_test(x)
"""


def test_code_apart_is_shared_and_found_again(folder: Path) -> None:
    """A caller holds the name of what it calls, not its code, and the name means the same in the next process."""
    (result,) = cache.load("apart", APART).twice.overloads.values()
    text = result.library.get_llvm_str()
    name = "square_and_count_of_this_test"
    assert any(line.startswith("declare") and name in line for line in text.splitlines())
    assert not any(line.startswith("define") and name in line for line in text.splitlines())
    program = f"from numerics.codegen import cache; print(cache.load('apart', {APART!r}).twice(3.0))"
    for _ in range(2):
        assert python("-c", program).stdout == b"18.0\n"


def test_another_user_without_a_home(tmp_path) -> None:
    become = as_nobody()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    variables = {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    for _ in range(2):
        found = python(
            *COMPILES_A_LITTLE, prefix=become, variables={**variables, CACHE_VARIABLE: str(shared)}, cwd=Path("/")
        )
        assert (found.returncode, found.stdout, found.stderr) == (0, b"0.693147\n", b"")
    assert [path.name for path in shared.iterdir()] == [f"user-{NOBODY}"]
    assert list(shared.rglob("*softplus*"))
    # No variable, no home: in the folder of temporary files.
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    nowhere = {**variables, CACHE_VARIABLE: None, "XDG_CACHE_HOME": None, "HOME": None, "TMPDIR": str(tmp_path / "tmp")}
    found = python(*COMPILES_A_LITTLE, prefix=become, variables=nowhere, cwd=Path("/"))
    assert (found.returncode, found.stdout, found.stderr) == (0, b"0.693147\n", b"")
    assert list((tmp_path / "tmp" / f"replica-distillation-{NOBODY}").rglob("*softplus*"))


def test_what_the_administrator_compiled_is_read_by_all(copy: Path, tmp_path) -> None:
    become = as_nobody()
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    found = python(*SOLVE, prefix=become, variables={"HOME": "/nonexistent", CACHE_VARIABLE: str(copy)}, cwd=Path("/"))
    assert (found.returncode, found.stderr) == (0, b"")


def test_nothing_can_be_written_at_all(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    monkeypatch.setattr(cache.tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(OSError("read-only")))
    cache._chosen_folders.cache_clear()
    cache._tell_once.cache_clear()
    try:
        assert cache_directory() is None
        with pytest.warns(CacheWarning, match="every start compiles again"):
            module = cache.load(
                "unkept", "from numerics.codegen.cache import njit\n\n@njit(cache=True)\ndef f(x):\n    return x + 1\n"
            )
        assert module.f(1) == 2
    finally:
        cache._chosen_folders.cache_clear()
