"""The conformance kit of the storage seam: what the search loop and resuming rely on.

    from nasopt.testing.storage import check_storage
    check_storage(lambda: MyStorage(path), persistent=True)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nasopt.errors import InputError
from nasopt.protocols import Event, Storage

FLOATS = (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf, math.nan)


def check_storage(make: Callable[[], Storage], persistent: bool = False) -> None:
    """Runs every check on one storage.

    Args:
        make: opens the storage. It must be empty at first; later calls, made after ``close``, open it again.
        persistent: what was appended must be there after it was closed and opened again.

    Raises:
        AssertionError: a check failed; the message says which and how.
    """
    storage = make()
    try:
        _require(list(storage.events()) == [], "a new storage must hold no events.")
        wrote = _check_log(storage)
        _check_floats(storage, wrote)
        _check_all_or_none(storage, wrote)
        _check_blobs(storage)
    finally:
        storage.close()
    if persistent:
        _check_reopened(make, wrote)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_log(storage: Storage) -> list[Event]:
    wrote: list[Event] = [("run", {"problem": {"a": [1, None, "ü\n"]}})]
    storage.append(wrote)
    storage.append([])
    more: list[Event] = [("ask", {"number": 0}), ("trial", {"number": 0}), ("trial", {"number": 7}), ("note", {})]
    storage.append(more)
    storage.append([("note", {})])
    wrote += [*more, ("note", {})]
    found = list(storage.events())
    _require(found == wrote, f"events come back other than they were appended: {found} for {wrote}.")
    body: dict[str, Any] = {"number": 8, "list": [1]}
    storage.append([("trial", body)])
    body["list"].append(2)
    wrote.append(("trial", {"number": 8, "list": [1]}))
    _require(list(storage.events()) == wrote, "an event must not change when the body passed to append does later.")
    return wrote


def _check_floats(storage: Storage, wrote: list[Event]) -> None:
    storage.append([("floats", {"values": list(FLOATS), "one": FLOATS[-1]})])
    body = list(storage.events())[-1][1]
    pairs = zip([*FLOATS, FLOATS[-1]], [*body["values"], body["one"]], strict=True)
    for want, got in pairs:
        same = isinstance(got, float) and repr(got) == repr(want)
        _require(same, f"floats must come back bit for bit, NaN and infinities included: {want!r} became {got!r}.")
    # NaN is unequal to itself, so what is compared from here on has none.
    wrote.append(("floats", body))


def _check_all_or_none(storage: Storage, wrote: list[Event]) -> None:
    doubles: list[list[Event]] = [[("note", {"number": 1}), ("trial", {"number": 7})],
                                  [("trial", {"number": 9}), ("trial", {"number": 9})]]
    for double in doubles:
        try:
            storage.append(double)
        except InputError:
            pass
        else:
            raise AssertionError(f"a second event of one kind and number must be refused with InputError: {double}.")
        count = len(list(storage.events()))
        _require(count == len(wrote), f"append must be all or none: {count - len(wrote)} events were kept.")


def _check_blobs(storage: Storage) -> None:
    _require(storage.get("weights") is None, "get must return None for a name that was never put.")
    for blob in (b"", bytes(range(256)) * 64):
        storage.put("weights", blob)
        _require(storage.get("weights") == blob, f"a blob of {len(blob)} bytes does not come back.")
    storage.put("other", b"x")
    _require(storage.get("weights") == bytes(range(256)) * 64, "putting one blob changed another.")


def _check_reopened(make: Callable[[], Storage], wrote: list[Event]) -> None:
    storage = make()
    try:
        found = list(storage.events())
        _require(repr(found) == repr(wrote), f"{len(wrote)} events were appended, after opening again there are "
                                             f"{len(found)}, or others.")
        _require(storage.get("other") == b"x", "a blob is gone after opening again.")
        storage.append([("trial", {"number": 10})])
        _require(len(list(storage.events())) == len(wrote) + 1, "nothing can be appended after opening again.")
    finally:
        storage.close()
