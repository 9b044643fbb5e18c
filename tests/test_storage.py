"""Storages: the conformance kit, its own sharpness, and every way in which a file can go wrong."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasopt.errors import InputError
from nasopt.protocols import Event
from nasopt.run.storage import Memory, Sqlite, dumps, loads
from nasopt.testing.storage import check_storage

SOURCE = str(Path(__file__).parent.parent / "src")
HEADER = f"import sys; sys.path.insert(0, {SOURCE!r})"


def filled(path: Path, events: int = 200) -> Path:
    storage = Sqlite(path)
    storage.append([("trial", {"number": k, "text": "x" * 100}) for k in range(events)])
    storage.close()
    return path


def test_memory_conforms() -> None:
    check_storage(Memory)


def test_sqlite_conforms(tmp_path: Path) -> None:
    check_storage(lambda: Sqlite(tmp_path / "run.db"), persistent=True)


class Partial(Memory):
    """Keeps what came before a duplicate."""

    def append(self, events: Sequence[Event]) -> None:
        for event in events:
            super().append([event])


class Lax(Memory):
    """Takes duplicates."""

    def append(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.append((event[0], dumps(event[1])))


class Aliased(Lax):
    """Keeps the caller's own objects."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Event] = []

    def append(self, events: Sequence[Event]) -> None:
        self.kept += events

    def events(self) -> Iterator[Event]:
        return iter(self.kept)


class Rounded(Memory):
    """Loses the last digits of floats."""

    def events(self) -> Iterator[Event]:
        for kind, body in super().events():
            if kind == "floats":
                body["values"] = [float(f"{v:.6g}") for v in body["values"]]
            yield kind, body


class Forgetful(Memory):
    """Loses its blobs."""

    def put(self, name: str, blob: bytes) -> None:
        self._blobs = {name: blob}
        if name == "other":
            self._blobs = {}


class Reversed(Memory):
    def events(self) -> Iterator[Event]:
        return reversed(list(super().events()))


@pytest.mark.parametrize(("broken", "word"), [(Partial, "all or none"), (Lax, "refused"), (Aliased, "must not change"),
                                              (Rounded, "bit for bit"), (Forgetful, "blob"), (Reversed, "other than")])
def test_kit_notices(broken: Callable[[], Memory], word: str) -> None:
    with pytest.raises(AssertionError, match=word):
        check_storage(broken)


def test_kit_notices_a_storage_that_does_not_persist() -> None:
    with pytest.raises(AssertionError, match="opening again"):
        check_storage(Memory, persistent=True)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda k: k != "float"), inner),
                    max_leaves=8))
def test_json_round_trip(value: object) -> None:
    assert repr(loads(dumps({"body": value}))) == repr({"body": value})


def test_non_finite_numbers_are_legal_json() -> None:
    assert dumps({"a": math.nan, "b": [math.inf]}) == '{"a":{"float":"nan"},"b":[{"float":"inf"}]}'


# ---------------------------------------------------------------------------------------------- one writer at a time
HOLD = """
import sys, time
from nasopt.run.storage import Sqlite
storage = Sqlite(sys.argv[1])
storage.append([("trial", {"number": 0})])
print("open", flush=True)
time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that writes to the run until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HEADER + HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with hold(path) as other:
        try:
            with pytest.raises(InputError, match=r"another process is using this run .*wait for it or choose another"):
                Sqlite(path)
            looker = Sqlite(path, readonly=True)
            assert list(looker.events()) == [("trial", {"number": 0})]
            with pytest.raises(InputError, match="look only"):
                looker.append([("note", {})])
            looker.close()
        finally:
            other.kill()
    storage = Sqlite(path)  # SIGKILL leaves the run free, and what was appended in it
    assert list(storage.events()) == [("trial", {"number": 0})]
    storage.close()


def test_second_writer_in_one_process_is_refused(tmp_path: Path) -> None:
    storage = Sqlite(tmp_path / "run.db")
    with pytest.raises(InputError, match="another process is using"):
        Sqlite(tmp_path / "run.db")
    storage.close()
    Sqlite(tmp_path / "run.db").close()


def test_interrupted_append_leaves_nothing(tmp_path: Path) -> None:
    storage = Sqlite(tmp_path / "run.db")
    storage._db.set_progress_handler(lambda: 1, 1)  # SQLite's own interruption, inside the statement
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        storage.append([("trial", {"number": 0}), ("trial", {"number": 1})])
    storage._db.set_progress_handler(None, 0)
    assert list(storage.events()) == []
    storage.append([("trial", {"number": 0})])
    storage.close()


# -------------------------------------------------------------------------------------------------- what can go wrong
def test_commits_are_flushed(tmp_path: Path) -> None:
    storage = Sqlite(tmp_path / "run.db")
    traced: list[str] = []
    storage._db.set_trace_callback(traced.append)
    flushed: list[tuple[Callable[[], None], bool]] = [
        (lambda: storage.append([("run", {})]), True), (lambda: storage.append([("ask", {"number": 0})]), False),
        (lambda: storage.append([("trial", {"number": 0})]), True),
        (lambda: storage.append([("ask", {"number": 1}), ("trial", {"number": 1})]), True),
        (lambda: storage.append([("ask", {"number": 2})]), False), (lambda: storage.put("a", b""), True)]
    for write, full in flushed:
        traced.clear()
        write()
        assert traced[:2] == [f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}", "BEGIN IMMEDIATE"]
        assert traced[-1] == "COMMIT"
    storage._db.set_trace_callback(None)
    assert storage._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    storage.close()


def test_truncated(tmp_path: Path) -> None:
    path = filled(tmp_path / "run.db")
    size = path.stat().st_size
    for keep in (size - 1, size // 2, 4096, 100, 10):
        os.truncate(path, keep)
        assert "is damaged" in read(path)


def test_header_overwritten(tmp_path: Path) -> None:
    path = filled(tmp_path / "run.db")
    with path.open("r+b") as file:
        file.write(b"\x99" * 100)
    with pytest.raises(InputError, match="is damaged"):
        Sqlite(path)


def test_garbage_anywhere_is_noticed_or_harmless(tmp_path: Path) -> None:
    good = filled(tmp_path / "good.db", 60)
    pristine = list(Sqlite(good, readonly=True).events())
    data = good.read_bytes()
    verdicts = []
    for start in range(0, len(data) - 16, 509):
        path = tmp_path / f"bad{start}.db"
        path.write_bytes(data[:start] + b"\xa5" * 16 + data[start + 16:])
        verdicts.append(read(path))
    assert all(v == pristine or isinstance(v, str) for v in verdicts)  # equal: the garbage hit free space
    noticed = [v for v in verdicts if isinstance(v, str)]
    assert len(noticed) > 10
    assert all("damaged" in v or "not a run" in v or "version" in v for v in noticed)


def read(path: Path) -> list[Event] | str:
    """The events, or the sentence that says why there are none."""
    try:
        storage = Sqlite(path)
    except InputError as error:
        return str(error)
    try:
        return list(storage.events())
    except InputError as error:
        return str(error)
    finally:
        storage.close()


def test_one_changed_digit_is_noticed(tmp_path: Path) -> None:
    path = filled(tmp_path / "run.db", 3)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"number":1,', b'{"number":7,'))
    storage = Sqlite(path)  # SQLite itself is content
    with pytest.raises(InputError, match="event 2 does not match its checksum"):
        list(storage.events())
    storage.close()


def test_deleted_event_is_noticed(tmp_path: Path) -> None:
    path = filled(tmp_path / "run.db", 3)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM events WHERE id = 2")
    db.commit()
    db.close()
    with pytest.raises(InputError, match="event 2"):
        list(Sqlite(path, readonly=True).events())


def test_damaged_blob(tmp_path: Path) -> None:
    storage = Sqlite(tmp_path / "run.db")
    storage.put("weights", b"abcdefgh")
    storage._db.execute("UPDATE blobs SET blob = x'00'")
    with pytest.raises(InputError, match="blob 'weights'"):
        storage.get("weights")
    storage.close()


@pytest.mark.parametrize(("pragma", "word"), [("application_id = 7", "not a run"), ("user_version = 9", "version 9")])
def test_other_databases(tmp_path: Path, pragma: str, word: str) -> None:
    path = filled(tmp_path / "run.db", 1)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA {pragma}")
    db.close()
    with pytest.raises(InputError, match=word):
        Sqlite(path)


def test_a_file_whose_writing_ended_before_its_tables_is_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    assert path.stat().st_size > 0
    assert len(list(Sqlite(filled(path, 2), readonly=True).events())) == 2
    other = tmp_path / "other.db"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(InputError, match="not a run of nasopt"):
        Sqlite(other)


def test_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        Sqlite(tmp_path)
    with pytest.raises(InputError, match="does not exist: make it"):
        Sqlite(tmp_path / "no" / "run.db")
    with pytest.raises(InputError, match="no run at"):
        Sqlite(tmp_path / "run.db", readonly=True)
    assert not (tmp_path / "run.db").exists()


def test_name_that_would_be_special_in_a_uri(tmp_path: Path) -> None:
    path = filled(tmp_path / "a?mode=memory#%41.db", 2)
    assert path.exists()
    assert len(list(Sqlite(path, readonly=True).events())) == 2


AS_NOBODY = """
import os, sqlite3
from nasopt.run.storage import Sqlite
from nasopt.errors import InputError
if os.getuid() == 0:
    os.setuid(65534)
path, readonly = sys.argv[1], sys.argv[2] == "look"
try:
    print(len(list(Sqlite(path, readonly=readonly).events())))
except InputError as error:
    print(error)
"""


def test_folder_without_permission() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders cannot be entered by another user
        path = filled(Path(name) / "run.db", 5)
        path.with_name("run.db.lock").unlink()
        path.chmod(0o444)
        path.parent.chmod(0o555)
        answers = [subprocess.run([sys.executable, "-c", HEADER + AS_NOBODY, str(path), how], capture_output=True,
                                  text=True, check=True).stdout for how in ("write", "look")]
        path.parent.chmod(0o755)
    assert "check the permissions of the file and its folder" in answers[0]
    assert answers[1] == "5\n"


def fill(storage: Sqlite) -> int:
    """Appends until the disk is full; how many events went in."""
    for number in range(1000):
        try:
            storage.append([("trial", {"number": number, "text": "x" * 1000})])
        except InputError as error:
            if number > 0 and "make room and resume" in str(error):
                return number
            raise
    raise AssertionError("the disk never filled up.")


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        storage = Sqlite(disk / "run.db")
        number = fill(storage)
        kept = [body["number"] for _, body in storage.events()]
        assert kept == list(range(number))
        storage.close()
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        storage = Sqlite(disk / "run.db")
        storage.append([("trial", {"number": number})])
        assert [body["number"] for _, body in storage.events()] == list(range(number + 1))
        storage.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_full_database_without_root(tmp_path: Path) -> None:
    storage = Sqlite(tmp_path / "run.db")
    storage._db.execute("PRAGMA max_page_count = 12")
    with pytest.raises(InputError, match="make room and resume"):
        storage.append([("trial", {"number": k, "text": "x" * 1000}) for k in range(100)])
    assert list(storage.events()) == []
    storage.close()
