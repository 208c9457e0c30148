"""Finished pieces of a long computation, kept on disk as they come, so that it can be killed and go on.

A journal is one SQLite file beside the file that is being made: a piece is either in it or not, whenever the process is killed.
It holds a description of what is computed and refuses to go on with anything else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from numerics.models import ParameterError

SUFFIX = ".partial"
"""What is added to the name of a file for the name of its journal."""

FORMAT = 1
_APPLICATION = 0x5244504A  # of SQLite's header: the files are ours
_ROOM = 4_000_000  # bytes to be free on top of what results need
_OVERHEAD = 1.3
_LONGEST_ADDITION = ".partial-journal"  # to the name of a file, of all that is made beside it
_USUAL_LONGEST = 255  # bytes of a name
_LONGEST_SHOWN = 400  # characters of a path in a message


@dataclass
class Piece:
    """Results at some points.

    Attributes
    ----------
    values : array, shape (rows, n)
        Numbers at n points.
    notes : dict of int to str
        Remarks on some of the points, by position.
    """

    values: np.ndarray
    notes: dict[int, str] = field(default_factory=dict)


def differences(before: Mapping, now: Mapping, path: str = "") -> list[str]:
    """Names of the entries in which two descriptions differ, dotted."""
    found = []
    for key in dict.fromkeys((*before, *now)):
        where = f"{path}.{key}" if path else str(key)
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, where)
        elif old != new:
            found.append(where)
    return found


def require_room(path: Path, n_bytes: int = 0, name: str = "output") -> None:
    """ParameterError if no file can be written at ``path``, or none of that size.  Nothing is made, folders neither."""
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(f"{path} is a folder")
        folder = path.parent
        while not os.path.lexists(folder):
            _require_short(folder, folder.parent)
            folder = folder.parent
        _require_short(path.with_name(path.name + _LONGEST_ADDITION), folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=path.suffix):
            pass
        free = shutil.disk_usage(folder).free
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"{name}: cannot write {_shown(path)}: {getattr(error, 'strerror', None) or error}"
        ) from None
    needed = int(_OVERHEAD * n_bytes) + _ROOM
    if n_bytes and free < needed:
        raise ParameterError(
            f"{name}: {path} needs {needed / 1e6:.0f} MB while it is made, but {free / 1e6:.0f} MB are free"
        )


def _shown(path: Path) -> str:
    """A path, its middle left out where that hides what is said of it."""
    text = str(path)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN // 2]}...{text[-_LONGEST_SHOWN // 2 :]}"


def _require_short(path: Path, folder: Path) -> None:
    """OSError if the last part of a path is longer than names may be in a folder that is there."""
    try:
        longest = os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # not POSIX, or not there yet
        longest = _USUAL_LONGEST
    length = len(os.fsencode(path.name))
    if 0 < longest < length:
        raise OSError(
            errno.ENAMETOOLONG,
            f"name too long (it would be {length} bytes with what is made beside, {longest} are allowed)",
        )


class _ForeignError(Exception):
    """A file that is there already is not the journal that is wanted."""


class Journal:
    """The journal of ``target``: opened, checked against ``description``, or begun.

    Parameters
    ----------
    target : Path
        The file that is being made; the journal is ``target`` with :data:`SUFFIX`.
    description : mapping
        What is computed, in types JSON knows.
    overwrite : bool
        Begin again where there is a journal of something else; never one that is in use.

    Raises
    ------
    ParameterError
        If there is a journal of something else, or a file that is no journal, or one in use by another process, or none can be
        written.
    """

    def __init__(self, target: Path, description: Mapping, *, overwrite: bool = False) -> None:
        self.path = target.with_name(target.name + SUFFIX)
        self._name = f"output: {self.path}"
        text = json.dumps({"format": FORMAT, **description})
        if self.path.is_dir():
            raise ParameterError(
                f"{self._name} is a folder, where finished points would be kept; remove it or choose another name"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(2):
            try:
                self._open(text)
                return
            except _ForeignError as error:
                if not overwrite or attempt:
                    raise ParameterError(str(error)) from None
                self._remove()

    def _open(self, text: str) -> None:
        """Connect and lock; ParameterError if that is not possible, _ForeignError if it is something else's."""
        try:
            self._base = sqlite3.connect(self.path, timeout=0.2, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise ParameterError(f"{self._name} cannot be written ({error})") from None
        try:
            # Without waiting for the disk: a killed process leaves all it has committed, and a damaged file is found when opened.
            self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._base.execute("PRAGMA synchronous=OFF")
            self._base.execute("BEGIN EXCLUSIVE")
            self._check(text)
            self._base.execute("COMMIT")
            if not self.path.exists():  # whoever had it before has just finished with it
                raise ParameterError(f"{self._name} was in use by another process; try again")
        except sqlite3.Error as error:
            self._base.close()
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ParameterError(f"{self._name} is being written by another process") from None
            if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise _ForeignError(
                    f"{self._name} is not a journal of a sweep; remove it or choose another name"
                ) from None
            raise ParameterError(f"{self._name} cannot be written ({error})") from None
        except BaseException:
            self._base.close()
            raise

    def _check(self, text: str) -> None:
        application = self._base.execute("PRAGMA application_id").fetchone()[0]
        tables = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application == 0 and tables == 0:
            self._base.execute(f"PRAGMA application_id={_APPLICATION}")
            self._base.execute("CREATE TABLE description (text TEXT)")
            self._base.execute(
                "CREATE TABLE pieces (part TEXT, number INTEGER, data BLOB, rows INTEGER, notes TEXT, PRIMARY KEY (part, number))"
            )
            self._base.execute("INSERT INTO description VALUES (?)", (text,))
            return
        if application != _APPLICATION:
            raise _ForeignError(f"{self._name} is not a journal of a sweep; remove it or choose another name")
        if self._base.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise _ForeignError(f"{self._name} is damaged; remove it to begin again")
        before = json.loads(self._base.execute("SELECT text FROM description").fetchone()[0])
        different = differences(before, json.loads(text))
        if different:
            shown = ", ".join(different[:6]) + (", ..." if len(different) > 6 else "")
            raise _ForeignError(
                f"{self._name} was begun with other parameters or code (different: {shown}); remove it to begin again, or "
                "choose another name"
            )

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close; a journal without a piece is removed."""
        with suppress(sqlite3.Error):
            if self._base.execute("SELECT count(*) FROM pieces").fetchone()[0] == 0:
                self._remove()
        self._base.close()

    def discard(self) -> None:
        """Remove the journal: what it was kept for is done."""
        self._remove()  # before others can open it
        self._base.close()

    def _remove(self) -> None:
        for suffix in ("", "-journal"):
            with suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).unlink()

    def done(self, part: str) -> set[int]:
        """Numbers of the pieces of a part that are there."""
        rows = self._base.execute("SELECT number FROM pieces WHERE part = ?", (part,))
        return {number for (number,) in rows}

    def add(self, part: str, number: int, piece: Piece) -> None:
        """Keep a piece.

        Raises
        ------
        OSError
            If it cannot be written, for instance because the disk is full; the pieces before are safe.
        """
        data = np.ascontiguousarray(piece.values, dtype=float)
        row = (part, number, data.tobytes(), data.shape[0], json.dumps(piece.notes) if piece.notes else None)
        try:
            self._base.execute("INSERT INTO pieces VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise OSError(
                f"cannot write {self.path} ({error}); what was computed before is in it: make room and run again to go on"
            ) from None

    def pieces(self, part: str) -> Iterator[Piece]:
        """All pieces of a part, in the order of their numbers."""
        rows = self._base.execute("SELECT data, rows, notes FROM pieces WHERE part = ? ORDER BY number", (part,))
        for data, height, notes in rows:
            values = np.frombuffer(data).reshape(height, -1)
            yield Piece(values, {int(key): text for key, text in json.loads(notes or "{}").items()})
