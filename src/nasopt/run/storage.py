"""Where a run's log is kept: in memory, or in one SQLite file that survives whatever happens to the process."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nasopt.errors import DiskError, InputError
from nasopt.protocols import Event

APPLICATION = 0x6E61736F
"""Marks the file as ours in SQLite's header (PRAGMA application_id)."""
VERSION = 1
"""The layout of the tables (PRAGMA user_version)."""
LAZY = frozenset({"ask"})
"""Kinds that survive SIGKILL at once, but power loss only with the next event of another kind: the log keeps its order,
so no trial outlives its ask, and a strategy that lost its last asks makes them again."""
SCHEMA = (
    "CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, number INTEGER, body TEXT NOT NULL, "
    "crc INTEGER NOT NULL, UNIQUE (kind, number))",
    "CREATE TABLE blobs (name TEXT PRIMARY KEY, blob BLOB NOT NULL, crc INTEGER NOT NULL)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)


# ----------------------------------------------------------------------------------------------------------------- JSON
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def dumps(body: Any) -> str:
    """JSON text from which `loads` restores every float bit for bit. JSON knows no NaN and no infinity: they are
    written as ``{"float": "nan"}``."""
    try:
        return _encode(body)
    except ValueError:
        return _encode(_finite(body))


def loads(text: str) -> Any:
    """The inverse of `dumps`."""
    return json.loads(text, object_hook=_restore)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def _restore(value: dict[str, Any]) -> Any:
    return float(value["float"]) if value.keys() == {"float"} and isinstance(value["float"], str) else value


def _number(event: Event) -> int | None:
    number = event[1].get("number")
    return number if isinstance(number, int) else None


# --------------------------------------------------------------------------------------------------------------- memory
class Memory:
    """A log that ends with the process."""

    def __init__(self) -> None:
        self._events: list[tuple[str, str]] = []
        self._blobs: dict[str, bytes] = {}
        self._numbers: set[tuple[str, int]] = set()

    def append(self, events: Sequence[Event]) -> None:
        """Adds events, all or none.

        Raises:
            InputError: a second event of the same kind and number.
        """
        new = [(kind, n) for kind, n in ((e[0], _number(e)) for e in events) if n is not None]
        if len(set(new)) < len(new) or not self._numbers.isdisjoint(new):
            raise _duplicate("in memory")
        rows = [(kind, dumps(body)) for kind, body in events]
        self._numbers.update(new)
        self._events += rows

    def events(self) -> Iterator[Event]:
        """All events in the order of their appending."""
        for kind, text in self._events:
            yield kind, loads(text)

    def put(self, name: str, blob: bytes) -> None:
        """Stores a blob, replacing an earlier one of that name."""
        self._blobs[name] = bytes(blob)

    def get(self, name: str) -> bytes | None:
        """The blob of that name, or None."""
        return self._blobs.get(name)

    def close(self) -> None:
        """Nothing to release."""


# --------------------------------------------------------------------------------------------------------------- SQLite
class Sqlite:
    """A log in one SQLite file, for one writing process at a time.

    What `append` and `put` returned from survives SIGKILL, and power loss too: the write-ahead log is flushed at every
    commit (``synchronous=FULL``), one flush of the disk, 0.3 ms on a quiet solid-state disk (`benchmarks/loop.py`).
    Only events of the kinds in `LAZY` wait for the next flush. Every event carries a checksum over its place and its
    text, so damage that SQLite itself cannot see is noticed as well. The writer holds an exclusive transaction on the
    empty neighbour file ``<path>.lock``; the system frees it when the process ends, however it ends.

    Args:
        path: the file; it is made if there is none. Its folder must exist.
        readonly: only look, also while another process writes; never creates or changes the file.

    Raises:
        InputError: the file is in use, damaged, not a run, of another version, a folder, or cannot be written.
    """

    def __init__(self, path: str | Path, readonly: bool = False) -> None:
        self.path = Path(path)
        self.readonly = readonly
        _check_place(self.path, readonly)
        self._lock = None if readonly else _lock(self.path)
        try:
            with _plain(self.path):
                self._db = _look(self.path) if readonly else _open(self.path)
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise

    def append(self, events: Sequence[Event]) -> None:
        """Adds events durably, all or none.

        Raises:
            InputError: a second event of the same kind and number, a full disk, or a storage opened with ``readonly``.
        """
        texts = [(kind, _number((kind, body)), dumps(body)) for kind, body in events]
        flush = "NORMAL" if all(kind in LAZY for kind, _, _ in texts) else "FULL"
        with self._transaction(flush) as db:
            last = db.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                           [(k, kind, number, text, _crc(k, kind, text))
                            for k, (kind, number, text) in enumerate(texts, last + 1)])

    def events(self) -> Iterator[Event]:
        """All events in the order of their appending.

        Raises:
            InputError: the file is damaged.
        """
        with _plain(self.path):
            rows = self._db.execute("SELECT id, kind, body, crc FROM events ORDER BY id")
            for place, (k, kind, text, crc) in enumerate(rows, 1):
                if k != place or crc != _crc(k, kind, text):
                    raise _damaged(self.path, f"event {place} does not match its checksum")
                yield kind, loads(text)

    def put(self, name: str, blob: bytes) -> None:
        """Stores a blob durably, replacing an earlier one of that name."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (name, blob, zlib.crc32(blob)))

    def get(self, name: str) -> bytes | None:
        """The blob of that name, or None.

        Raises:
            InputError: the file is damaged.
        """
        with _plain(self.path):
            row = self._db.execute("SELECT blob, crc FROM blobs WHERE name = ?", (name,)).fetchone()
        if row is not None and (not isinstance(row[0], bytes) or zlib.crc32(row[0]) != row[1]):
            raise _damaged(self.path, f"blob {name!r} does not match its checksum")
        return None if row is None else row[0]

    def close(self) -> None:
        """Closes the file and lets another process write. A second call does nothing."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    @contextmanager
    def _transaction(self, flush: str = "FULL") -> Iterator[sqlite3.Connection]:
        if self.readonly:
            raise InputError(f"{self.path} was opened to look only: open it without readonly to write.")
        with _plain(self.path):
            self._db.execute(f"PRAGMA synchronous = {flush}")
            with _whole(self._db):
                yield self._db


@contextmanager
def _whole(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all or nothing, also if it is interrupted from the keyboard."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _crc(place: int, kind: str, text: str) -> int:
    return zlib.crc32(f"{place} {kind} {text}".encode())


def _check_place(path: Path, readonly: bool) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file for the run, such as {path / 'run.db'}.")
    if readonly and not path.exists():
        raise InputError(f"there is no run at {path}: check the path.")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist: make it, or choose another one for the run.")


def _connect(path: Path, options: str = "") -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}{options}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False)


def _lock(path: Path) -> sqlite3.Connection:
    with _plain(path):
        lock = _connect(path.with_name(path.name + ".lock"))
        try:
            lock.execute("PRAGMA busy_timeout = 0")
            lock.execute("BEGIN EXCLUSIVE")
        except BaseException:
            lock.close()
            raise
    return lock


def _open(path: Path) -> sqlite3.Connection:
    db = _connect(path)
    try:
        # A process that ends between the two statements below leaves a file with a header and without tables.
        fresh = not any(_numbers(db)) and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if not fresh:
            _examine(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if fresh:
            with _whole(db):
                for statement in SCHEMA:
                    db.execute(statement)
    except BaseException:
        db.close()
        raise
    return db


def _look(path: Path) -> sqlite3.Connection:
    # SQLite cannot read a write-ahead log in a folder that it cannot write; a run that was closed has none.
    settled = not path.with_name(path.name + "-wal").exists() and not os.access(path.parent, os.W_OK)
    db = _connect(path, "?immutable=1" if settled else "?mode=ro")
    try:
        _examine(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _numbers(db: sqlite3.Connection) -> tuple[int, int]:
    """What marks the file, and the version of its tables; both 0 in a new one."""
    application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    return application, version


def _examine(db: sqlite3.Connection, path: Path) -> None:
    application, version = _numbers(db)
    if application != APPLICATION:
        raise InputError(f"{path} is a database, but not a run of nasopt: choose another file.")
    if version != VERSION:
        raise InputError(f"{path} was written in version {version} of the log, this is version {VERSION}: "
                         "use the release of nasopt that wrote it.")
    verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _damaged(path, verdict)


# --------------------------------------------------------------------------------------------------------------- errors
def _damaged(path: Path, detail: str) -> InputError:
    what = " ".join(detail.split())
    return InputError(f"{path} is damaged ({what}): restore a copy, or start anew in another folder.")


def _duplicate(path: Path | str) -> InputError:
    return InputError(f"the log ({path}) holds an event of this kind and number already: a trial is recorded once.")


@contextmanager
def _plain(path: Path) -> Iterator[None]:
    """SQLite's errors as one sentence that names the file and the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, error) from error
    except UnicodeDecodeError as error:  # even SQLite's message can quote the garbage it found
        raise _damaged(path, "text that is not UTF-8") from error


def _explain(path: Path, error: sqlite3.Error) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # The statements are fixed, so SQLITE_ERROR says that the file's format or its tables are not what was written.
    broken = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    if code in broken or "Could not decode" in str(error):
        return _damaged(path, str(error))
    if code == sqlite3.SQLITE_CONSTRAINT:
        return _duplicate(path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return InputError(f"another process is using this run ({path}): wait for it or choose another folder.")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return DiskError(f"{path} cannot be written, the disk is full or failing ({error}): make room and resume; "
                         "everything recorded so far is kept.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return InputError(f"{path} cannot be written ({error}): check the permissions of the file and its folder.")
    return error
