"""What every benchmark script shares: the record of a run, with where and with what it was measured.

A script ends with ``write(name, results, seeds)``; `benchmarks/results.py` turns all records into ``docs/results.md``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nasopt.errors import InputError
from nasopt.files import write_whole
from nasopt.machine import machine, versions

RESULTS = Path(__file__).parent / "results"


def write(name: str, results: Mapping[str, Any], seeds: Sequence[int], command: str = "") -> Path:
    """Writes ``benchmarks/results/NAME.json``.

    Args:
        name: the record's name; the script's, without ``.py``.
        results: at least ``title`` and ``tables`` as `benchmarks/results.py` describes; anything else is kept as it is.
        seeds: the seeds that were run.
        command: what measures all of it, if that is not the one that was given now.

    Raises:
        ValueError: the title or the tables are missing, or a row does not fit its columns.
    """
    if "title" not in results or "tables" not in results:
        raise ValueError(f"results of {name!r} need the keys 'title' and 'tables'.")
    for table in results["tables"]:
        if any(len(row) != len(table["columns"]) for row in table["rows"]):
            raise ValueError(
                f"results of {name!r}: a row of {table['caption']!r} does not have {len(table['columns'])} cells."
            )
    record = {
        **results,
        "name": name,
        "command": command or shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_portable, sys.argv[1:])]),
        "seeds": list(seeds),
        "date": datetime.now(UTC).date().isoformat(),
        "load": _load(),
        "machine": machine(),
        "versions": versions("optuna", "pymoo"),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False, default=_plain) + "\n")
    return path


def keep(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all, whoever else does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value).encode())


def settle(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder for runs with these settings.

    Raises:
        InputError: it holds runs with others.
    """
    about = folder / "settings.json"
    if about.exists() and {**settings, **json.loads(about.read_text())} != settings:
        raise InputError(f"{folder} holds runs with other settings, {about.read_text()}: give another folder.")
    keep(about, settings)


def version() -> str:
    """The commit of the source tree, marked where a program differs from it; empty outside of a checkout and without git."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None:
        return ""
    return git("describe", "--always") + ("-dirty" if git("status", "--porcelain", "--", "..", ":!results", ":!../docs") else "")


def _portable(word: str) -> str:
    """A word of the command without this machine's folders."""
    if Path(word).is_absolute():
        return Path(word).name
    option, is_there, value = word.partition("=")
    return option + is_there + (Path(value).name if Path(value).is_absolute() else value)


def _plain(value: Any) -> Any:
    """What JSON does not know: numpy's scalars and arrays."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"results hold a {type(value).__name__}, which JSON does not know: make it a number or a string.")


def _load() -> float | None:
    """Mean number of busy processes in the last minute: above the number of cores times are too long."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
