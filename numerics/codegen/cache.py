"""Where compiled code is kept, and how it is read back: every start with an answer, whatever the folder looks like.

Entries are bytes under a name: derived text, the code of generated modules, machine code.  An index file (``NAME.nbi``) holds the
hash of the data, which is part of the name of the data file (``NAME.HASH.nbc``): two processes that write at once never mix, and
an entry that is damaged, truncated or empty is noticed, made again, and mentioned in one line.

Machine code of somebody else is not run.  A folder is used as it is if it belongs to the user and nobody else may write there;
in one that several share every user gets a folder of his own.  What was compiled by the administrator, for instance while a
container was built, is read by all.  Where nothing can be written, code is compiled at every start.
"""

from __future__ import annotations

import hashlib
import itertools
import marshal
import os
import pickle
import re
import secrets
import stat
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import llvmlite
import numba
import platformdirs
import sympy
from numba.core import typeinfer
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult, compile_result
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.experimental import function_type  # noqa: F401  pointers to functions are arguments

import theory
from numerics.codegen import ahead
from numerics.codegen.apart import FILL, call_of, new_cell
from numerics.codegen.borrowing import borrowed
from numerics.deferred import importing
from theory.terminal import notice

CACHE_VARIABLE = "REPLICA_DISTILLATION_CACHE"
"""Environment variable that moves the cache."""

SOLVER_NOTICE = "compiling the solver (once, about a quarter of a minute)"

LATE_NOTICE = "compiling what such problems need besides (once)"

_APPLICATION = "replica-distillation"
_CODEGEN = Path(__file__).parent
_PROJECT = _CODEGEN.parents[1]
_KERNELS = "numerics.scalar.kernels."
_IMPORT = re.compile(r"^from (numerics[.\w]*) import (\([^)]*\)|.*)", re.MULTILINE)
_INDEX_SUFFIX, _DATA_SUFFIX = ".nbi", ".nbc"
_MACHINE_CODE = "__pycache__"
_DIGITS = 16  # of a hash, in a name
_ATTEMPTS = 3  # at reading an entry
_SETTLED = 3600.0  # seconds after which nobody is still writing
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_PRIVATE = 0o700
_OF_THE_SOLVER = "averages"
_lock = threading.RLock()
_apart: set[str] = {FILL}  # names of the functions that others jump to
_late: dict[Any, CompileResult | None] = {}  # late functions that were called, and those that were compiled
_postponed: list[Postponed] | None = None
"""In a helper (:mod:`numerics.codegen.ahead`): functions that are declared, and their signatures."""

# Numba counts the functions of a process, and includes this number in the names of what callers include: code of several processes
# meets here, so each has numbers of its own.
FunctionIdentity._unique_ids = itertools.count(secrets.randbits(48))


class Postponed(NamedTuple):
    """A function that is declared, and not compiled, its signature, and whether it is late."""

    dispatcher: Any
    signature: Any
    late: bool


class CacheWarning(UserWarning):
    """Compiled code was damaged, or cannot be kept."""


# Folders.


class Folders(NamedTuple):
    """Where entries are written, None where that is not possible, and where they are read, in this order."""

    own: Path | None
    read: tuple[Path, ...]


def cache_directory() -> Path | None:
    """The user's folder of compiled code; None if no folder can be written.

    It is ``$REPLICA_DISTILLATION_CACHE``, the user's cache, or in the folder of temporary files.
    """
    return _folders().own


def _folders() -> Folders:
    return _chosen_folders(os.environ.get(CACHE_VARIABLE), os.environ.get("HOME"), os.environ.get("XDG_CACHE_HOME"))


@lru_cache(maxsize=8)
def _chosen_folders(variable: str | None, home: str | None, xdg: str | None) -> Folders:
    """Folders for these values of the environment."""
    wanted = [path for path in (_expanded(variable), _expanded(_user_cache())) if path is not None]
    own = next((found for found in map(_own_folder, wanted) if found is not None), None) or _temporary_folder()
    first = wanted[0] if wanted else None
    shared = [first] if first is not None and first != own and _trusted(first, (_user(), 0)) else []
    return Folders(own, tuple(folder for folder in (own, *shared) if folder is not None))


def _user_cache() -> str | None:
    try:
        return platformdirs.user_cache_dir(_APPLICATION)
    except (OSError, RuntimeError, KeyError):
        return None


def _expanded(text: str | None) -> Path | None:
    """Absolute path, ``~`` replaced; None for no text, or for the home of a user who has none."""
    if not text:
        return None
    try:
        path = os.path.expanduser(text)
        return None if path.startswith("~") else Path(os.path.abspath(path))
    except (OSError, ValueError):
        return None


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _trusted(folder: Path, owners: tuple[int, ...]) -> bool:
    """Whether a folder is one of the owners', and nobody else can put anything there."""
    if not hasattr(os, "getuid"):
        return folder.is_dir()
    try:
        found = folder.stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in owners and not found.st_mode & _OTHERS_WRITE


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, ValueError):
        return False


def _own_folder(folder: Path) -> Path | None:
    """The folder itself if it is the user's alone, else the user's folder in it; None if neither can be written."""
    try:
        # The folders above are made as others are; this one holds what will be run.
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o755)
    except (OSError, ValueError):
        return None
    if not _writable(folder):
        return None
    return folder if _trusted(folder, (_user(),)) else _private(folder / f"user-{_user()}")


def _private(folder: Path) -> Path | None:
    """A folder of the user's own, which may be there already; None if it is not his."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=_PRIVATE)
    except OSError:
        return None
    usable = not folder.is_symlink() and _trusted(folder, (_user(),)) and _writable(folder)
    return folder if usable else None


def _temporary_folder() -> Path | None:
    try:
        where = Path(tempfile.gettempdir())
        return _private(where / f"{_APPLICATION}-{_user()}") or Path(tempfile.mkdtemp(prefix=f"{_APPLICATION}-"))
    except OSError:
        return None


# Entries.


def read_entry(name: str) -> bytes | None:
    """Data that was written under a name; None if there is none that is whole."""
    for folder in _folders().read:
        index = folder / (name + _INDEX_SUFFIX)
        for _ in range(_ATTEMPTS):  # another process may replace the entry between the two files
            try:
                digest = index.read_text(encoding="ascii").strip()
                data = (folder / f"{name}.{digest[:_DIGITS]}{_DATA_SUFFIX}").read_bytes()
            except FileNotFoundError:
                if not os.path.lexists(index):
                    break
            except (OSError, ValueError):
                _tell_of_damage(folder)
                break
            else:
                if hashlib.sha256(data).hexdigest() == digest:
                    return data
                _tell_of_damage(folder)
                break
        else:
            _tell_of_damage(folder)
    return None


def write_entry(name: str, data: bytes) -> None:
    """Keep data under a name, in place of what was there.  What cannot be kept is mentioned, and made again next time."""
    folder = _folders().own
    if folder is None:
        _tell_once("no folder can be written: compiled code is not kept, and every start compiles again; "
                   f"{CACHE_VARIABLE} may name one")  # fmt: skip
        return
    digest = hashlib.sha256(data).hexdigest()
    index = folder / (name + _INDEX_SUFFIX)
    target = folder / f"{name}.{digest[:_DIGITS]}{_DATA_SUFFIX}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        before = ""
        with suppress(OSError, ValueError):
            before = index.read_text(encoding="ascii").strip()[:_DIGITS]
        _write_whole(target, data)
        _write_whole(index, f"{digest}\n".encode())
        if before.isalnum() and before != digest[:_DIGITS]:
            replaced = folder / f"{name}.{before}{_DATA_SUFFIX}"
            with suppress(OSError):
                if time.time() - replaced.stat().st_mtime > _SETTLED:  # not what another process is writing just now
                    replaced.unlink()
    except OSError as error:
        _tell_once(
            f"compiled code cannot be kept in {folder} ({error.strerror or error}): the next start compiles again"
        )
        return
    wanted = _expanded(os.environ.get(CACHE_VARIABLE))
    if os.environ.get(CACHE_VARIABLE) and (wanted is None or wanted not in (folder, folder.parent)):
        _tell_once(
            f"{CACHE_VARIABLE}: {os.environ[CACHE_VARIABLE]} cannot be written, compiled code is kept in {folder}"
        )


def _write_whole(path: Path, data: bytes) -> None:
    """Write in one step, with the permissions that new files have: another process may be reading."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except PermissionError:
        if os.name != "nt" or not path.exists():  # Windows does not replace a file that another process reads
            raise
    finally:
        with suppress(OSError):
            temporary.unlink()


@lru_cache(maxsize=64)
def _tell_once(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=3)


def _tell_of_damage(folder: Path) -> None:
    _tell_once(f"compiled code in {folder} is damaged or cannot be read: it is compiled again")


# What entries depend on.


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Hash of all that generated text depends on: theory, code generation, and the versions of the tools."""
    digest = hashlib.sha256()
    theories = (path for path in Path(theory.__file__).parent.glob("*.py") if path.name not in _SAYS_NOTHING)
    for path in [*sorted(theories), *sorted(_CODEGEN.glob("*.py"))]:
        digest.update(path.read_bytes())
    digest.update(f"{sympy.__version__} ".encode())
    digest.update(f"{numba.__version__} {llvmlite.__version__} {sys.implementation.cache_tag}".encode())
    return digest.hexdigest()


_SAYS_NOTHING = ("__main__.py", "terminal.py")
"""Files of theory that no equation depends on."""


@lru_cache(maxsize=256)
def _with_imports(text: str) -> str:
    """Hash of the text of a module, and of those of this package that it imports at its top, and so on: machine code holds them."""
    own, paths = _hash_and_imports(text)
    hashes = {"": own}
    while paths:
        path, *paths = paths
        if path not in hashes:
            hashes[path], imported = _of_file(path)
            paths += imported
    return hashlib.sha256(repr(sorted(hashes.values())).encode()).hexdigest()


@lru_cache(maxsize=256)
def _of_file(path: str) -> tuple[str, list[str]]:
    return _hash_and_imports(Path(path).read_text(encoding="utf-8"))


def _hash_and_imports(text: str) -> tuple[str, list[str]]:
    """Hash of the text of a module, and files of this package that it imports at its top."""
    found: list[Path] = []
    for name, imported in _IMPORT.findall(text):
        path = _PROJECT.joinpath(*name.split("."))
        parts = [path / part for part in re.findall(r"\w+", imported)] if path.is_dir() else [path]
        found += [part.with_suffix(".py") for part in parts if part.with_suffix(".py").exists()]
    # Code generation is in the fingerprint.
    return hashlib.sha256(text.encode()).hexdigest(), [str(path) for path in found if path.parent != _CODEGEN]


def derived_source(name: str, derive: Callable[[], str]) -> str:
    """Text that depends on theory and its name alone, kept among the compiled code: deriving it would dominate every start."""
    entry = f"source_{name}_{fingerprint()[:_DIGITS]}"
    data = read_entry(entry)
    if data is not None:
        return data.decode()
    _announce(name)
    text = derive()
    write_entry(entry, text.encode())
    return text


def _announce(name: str) -> None:
    """Say that the solver is going to be compiled, by the name of its module or text; the rest is a matter of seconds."""
    if name.startswith((_OF_THE_SOLVER, f"generated_{_OF_THE_SOLVER}", _KERNELS)) and name != f"{_KERNELS}elementary":
        notice(SOLVER_NOTICE)


# Modules.


def load(name: str, source: str) -> ModuleType:
    """Import generated source as a module whose name holds its hash; its text is kept for reading."""
    digest = hashlib.sha256((fingerprint() + _with_imports(source)).encode()).hexdigest()[:_DIGITS]
    full_name = f"generated_{name}_{digest}"
    with _lock:
        if full_name in sys.modules:
            return sys.modules[full_name]
        folder = _folders().own
        path = f"<{full_name}>" if folder is None else str(folder / f"{full_name}.py")
        if folder is not None:
            with suppress(OSError):
                if not os.path.exists(path) or os.path.getsize(path) != len(source.encode()):
                    _write_whole(Path(path), source.encode())
        module = ModuleType(full_name, source.partition("\n")[0])
        module.__file__ = path
        sys.modules[full_name] = module
        try:
            with importing():
                exec(_code(full_name, source, path), module.__dict__)
        except BaseException:
            del sys.modules[full_name]
            raise
        return module


def _code(full_name: str, source: str, path: str) -> CodeType:
    """Byte code of a module, kept as well."""
    entry = f"{_MACHINE_CODE}/{full_name}.{sys.implementation.cache_tag}"
    data = read_entry(entry)
    if data is not None:
        with suppress(EOFError, ValueError, TypeError):
            return marshal.loads(data)
    code = compile(source, path, "exec", dont_inherit=True)
    write_entry(entry, marshal.dumps(code))
    return code


# Machine code.


def njit(
    *signature: Any,
    cache: bool = False,
    apart: bool = False,
    late: bool = False,
    inner: bool = False,
    pointed: bool = False,
    open_to_others: bool = False,
    plain: bool = False,
    noalias: bool = False,
    **options: Any,
) -> Callable[[FunctionType], Any]:
    """``numba.njit`` for the kernels: with ``cache=True`` machine code is kept here, not where numba would.

    Parameters
    ----------
    signature
        None, or one, for which the function is compiled at once.
    apart
        Compiled functions that call this one, which has a signature, jump to its code.  Numba would compile a copy of it into each
        of them, and of these into what calls them: most of the time that compiling a solver takes.
    late
        Few problems need this one, which is set apart: it is compiled, or read, when it is first called.
    inner
        Only compiled functions call this one, and lend it their named tuples (:mod:`numerics.codegen.borrowing`): the way in
        from Python is left out.
    pointed
        Compiled functions call this one through a pointer, and need a way in for that.
    open_to_others
        Arguments of other types than the signature says have it compiled for them.
    plain
        This one, which is set apart, makes no arrays and calls nothing that does: it cannot fail, and counts no references.
    noalias
        Its arrays and pointers do not overlap: loops that write to several of them are vectorised.
    """
    if plain:
        options |= {"_nrt": False}
    options |= {"no_cfunc_wrapper": not pointed}
    if inner:
        signature = tuple(one.return_type(*map(borrowed, one.args)) for one in signature)
        options |= {"no_cpython_wrapper": True}

    def decorate(function: FunctionType) -> Any:
        if numba.config.DISABLE_JIT:
            return function
        dispatcher = numba.njit(**options)(function)
        if cache:
            dispatcher._cache = _MachineCode(function, apart, apart and inner, late)
        if noalias:
            dispatcher._compiler._customize_flags = _without_aliases
        if signature and apart and _postponed is not None:
            _postponed.append(Postponed(dispatcher, *signature, late))
        waits, address = late or (apart and _postponed is not None), 0
        if signature and apart and inner and not waits:
            address = dispatcher._cache.address(*signature, dispatcher.targetctx)
        if signature and (waits or address):
            _declare(dispatcher, *signature)
        elif signature:
            with typeinfer.register_dispatcher(dispatcher):
                dispatcher.compile(*signature)
        if signature and not open_to_others:
            dispatcher.disable_compile()
        if signature and apart:
            _set_apart(dispatcher, address, late, plain, noalias)
        return dispatcher

    return decorate


def _without_aliases(flags: Any) -> Any:
    flags.noalias = True
    return flags


def unchecked(dispatcher: Any) -> Callable:
    """The way into a function of one signature from Python, past the look at the types of its arguments."""
    return next(iter(dispatcher.overloads.values())).entry_point


def _set_apart(dispatcher: Any, address: int, late: bool, plain: bool, noalias: bool) -> None:
    """Let callers find the machine code of a function, at ``address`` unless it is just compiled, by a name that they can keep,
    instead of including it.

    The name is that of its cache entry, and so the same in every process.
    """
    (result,) = dispatcher.overloads.values()
    name = dispatcher._cache.symbol(result.signature, dispatcher.targetctx.codegen())
    target = dispatcher.targetctx
    if late:
        address = new_cell(partial(_made, dispatcher, result.signature))
    elif result.library is not None:
        address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
        target.remove_user_function(result.entry_point)
    llvmlite.binding.add_symbol(name, address or id(_apart))  # what was postponed is linked, and not called
    _apart.add(name)
    call = call_of(name, result.signature, late, plain, noalias)
    target._defns[result.entry_point].append(call, call.signature)


def _made(dispatcher: Any, signature: Any) -> int:
    """Address of a late function, which is read or compiled."""
    address, result = dispatcher._cache.address(signature, dispatcher.targetctx), None
    if not address:
        dispatcher._cache.announce()
        result = _compiled(dispatcher, signature)
        address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
    _late[dispatcher] = result
    return address


def _compiled(dispatcher: Any, signature: Any) -> CompileResult:
    """A function that was declared; its entry is written."""
    with global_compiler_lock, typeinfer.register_dispatcher(dispatcher):
        result = dispatcher._compiler.compile(signature.args, signature.return_type)
        dispatcher._cache.save_overload(signature, result)
    return result


# Ahead of another process.


def postpone() -> list[Postponed]:
    """From now on, functions that are set apart are declared, and not compiled: those that call them can be.

    Returns
    -------
    What :func:`compile_ahead` is for: grows with every module that is imported.
    """
    global _postponed
    _postponed = []
    return _postponed


def _declare(dispatcher: Any, signature: Any) -> None:
    """Let callers of a function be compiled as if it were."""
    result = compile_result(entry_point=object(), signature=signature, objectmode=False)
    dispatcher.overloads[tuple(signature.args)] = result


def compile_ahead(dispatcher: Any, signature: Any) -> None:
    """Write the entry of a function that was declared, unless it is there."""
    if not dispatcher._cache.has_overload(signature, dispatcher.targetctx):
        _compiled(dispatcher, signature)


def _rebuilt(target_context: Any, defined: set[str], included: bytes, *kept: Any) -> CompileResult:
    """What was kept of a function: its names, what callers include if it is not set apart, and machine code.

    What callers include is read when one is compiled.
    """
    target_context.codegen()._engine._defined_symbols |= defined
    result = CompileResult._rebuild(target_context, *kept)
    if included:
        result.library._get_module_for_linking = lru_cache(maxsize=1)(partial(llvmlite.binding.parse_bitcode, included))
    return result


def _placed(target_context: Any, name: str, code: bytes) -> int:
    """Address of a function whose machine code was kept, and nothing else."""
    engine = target_context.codegen()._engine
    engine._ee.add_object_file(llvmlite.binding.object_file.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(name)


@lru_cache(maxsize=1)
def _nothing() -> bytes:
    """A module without functions."""
    return llvmlite.binding.parse_assembly("").as_bitcode()


@lru_cache(maxsize=4)
def _processor(codegen: Any) -> tuple:
    return codegen.magic_tuple()


class _MachineCode(NullCache):
    """What numba's dispatcher asks for compiled code of one function."""

    def __init__(self, function: FunctionType, apart: bool, bare: bool, late: bool) -> None:
        self._function = function
        self._is_apart = apart
        self._is_bare = bare  # nobody but callers that jump to it need it: machine code is all that is kept
        self._is_late = late
        self._module = Path(function.__code__.co_filename).stem.strip("<>")
        self._name = f"{self._module}.{function.__name__}-{function.__code__.co_firstlineno}"

    @property
    def cache_path(self) -> str:
        return str(cache_directory())

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """Code for a signature, None if there is none."""
        found = None if self._is_bare else self._read(sig, target_context, _rebuilt)
        if found is None:
            self.announce()
        return found

    def address(self, sig: Any, target_context: Any) -> int:
        """Where bare code for a signature is, 0 if there is none."""
        return self._read(sig, target_context, _placed) or 0

    def _read(self, sig: Any, target_context: Any, use: Callable) -> Any:
        """What is made of what was kept; None if there is nothing that is of use."""
        rtsys.initialize(target_context)  # what compiling needs besides is loaded when something is compiled
        data = read_entry(self._entry(sig, target_context.codegen()))
        if data is not None:
            try:
                needed, *kept = pickle.loads(data)
                # Code that jumps to what is not there would end the process.
                if needed <= _apart:
                    return use(target_context, *kept)
            except Exception:  # whatever unpickling meets: the hash is right, but the code is of no use here
                _tell_of_damage(Path(self.cache_path))
        return None

    def announce(self) -> None:
        """Say that this is going to be compiled, and start who helps."""
        if self._is_late:
            notice(LATE_NOTICE)
        else:
            _announce(self._function.__module__)
        if _postponed is None and cache_directory() is not None:
            ahead.start(self._function.__module__)

    def has_overload(self, sig: Any, target_context: Any) -> bool:
        """Whether there is an entry for a signature, whole or not."""
        index = self._entry(sig, target_context.codegen()) + _INDEX_SUFFIX
        return any((folder / index).exists() for folder in _folders().read)

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        """Keep code for a signature."""
        if data.lifted or data.library.has_dynamic_globals:
            return  # it holds objects of this process
        module = data.library._final_module
        named = itertools.chain(module.functions, module.global_variables)
        needed = {one.name for one in named if one.is_declaration} & _apart
        if self._is_bare:
            kept = data.fndesc.llvm_func_name, data.library._get_compiled_object()
            if not any(one.consts for one in data._find_referenced_environments()):
                write_entry(self._entry(sig, data.codegen), pickle.dumps((needed, *kept)))
            return
        (name, kind, (code, included)), *rest, environments = data._reduce()
        shared = data.library._get_module_for_linking()
        defined = {found.name for found in (*shared.functions, *shared.global_variables) if not found.is_declaration}
        used = tuple(one for one in environments if one.consts)  # each makes a start import where it comes from
        kept = (defined, b"" if self._is_apart else included, (name, kind, (code, _nothing())), *rest, used)
        write_entry(self._entry(sig, data.codegen), dumps((needed, *kept)))

    def symbol(self, sig: Any, codegen: Any) -> str:
        """Name under which other machine code finds that for a signature."""
        return self._entry(sig, codegen).rpartition("/")[2]

    def _entry(self, sig: Any, codegen: Any) -> str:
        """Name of an entry: the function, and a hash of its source, signature and processor."""
        depends = (fingerprint(), _source_of(self._function), str(sig), _processor(codegen))
        key = hashlib.sha256(repr(depends).encode()).hexdigest()[:_DIGITS]
        return f"{_MACHINE_CODE}/{self._name}.{sys.implementation.cache_tag}.{key}"


def _source_of(function: FunctionType) -> str:
    """Hash of the file of a function and of what it imports; names of generated modules have it already."""
    return "" if function.__module__.startswith("generated_") else _hash_of(function.__code__.co_filename)


@lru_cache(maxsize=64)
def _hash_of(path: str) -> str:
    try:
        return _with_imports(Path(path).read_text(encoding="utf-8"))
    except OSError:
        return path
