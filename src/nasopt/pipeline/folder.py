"""A run folder: what stands in it, and how it is written so that a crash leaves no half file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasopt.errors import DiskError, InputError
from nasopt.files import write_whole
from nasopt.tasks.data import Split


@dataclass(frozen=True)
class Folder:
    """The files of one run.

    ``study.db`` the log and the phases' results; ``random.db`` the log of the random-search baseline; ``split.npz`` the
    indices of the three parts; ``front.json`` the trained front; ``results.json`` everything the report shows;
    ``report.html``; ``models/<id>/`` the exported networks.
    """

    path: Path

    @property
    def study(self) -> Path:
        """The log of the search."""
        return self.path / "study.db"

    @property
    def random(self) -> Path:
        """The log of the random-search baseline."""
        return self.path / "random.db"

    @property
    def split(self) -> Path:
        """The index arrays train, val and test."""
        return self.path / "split.npz"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def model(self, name: str) -> Path:
        """The folder of one exported network."""
        return self.path / "models" / name

    def refuse_existing(self) -> None:
        """Raises InputError if there is anything at the path already, or if it cannot be looked at."""
        try:
            if self.study.exists():
                raise InputError(f"{self.path} already holds a run: continue it with 'nasopt resume {self.path}', or choose "
                                 "another folder with --out.")
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(f"{self.path} exists and is not an empty folder: choose another with --out.")
        except OSError as problem:
            raise InputError(f"the run folder {self.path} cannot be read ({problem.strerror}): choose another with "
                             "--out.") from problem

    @contextmanager
    def created(self) -> Iterator[None]:
        """Makes the folder; if what happens inside fails, what was made is gone again.

        Raises:
            InputError: it cannot be made or written to, or another run was begun there meanwhile.
        """
        self.refuse_existing()
        existed = self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = set(self.path.iterdir())
        except OSError as problem:
            raise InputError(f"the run folder {self.path} cannot be made ({problem.strerror}): choose another with "
                             "--out.") from problem
        try:
            yield
        except BaseException as problem:
            for leftover in set(self.path.iterdir()) - others:
                leftover.unlink()
            if not existed and not others:
                self.path.rmdir()
            if isinstance(problem, (OSError, DiskError)):
                why = problem.__cause__ if isinstance(problem, DiskError) else problem.strerror
                raise InputError(f"the run folder {self.path} cannot be written to ({why}): free some space, then begin "
                                 "anew.") from problem
            raise

    def require(self) -> None:
        """Raises InputError unless there is a run in the folder."""
        if not os.path.isfile(self.study):
            raise InputError(f"{self.path} holds no run (no study.db): start one with 'nasopt search --out {self.path}'.")

    @contextmanager
    def writing(self, target: Path) -> Iterator[None]:
        """Turns what the operating system refuses inside into one sentence.

        Raises:
            InputError: the disk is full or the folder cannot be written to.
        """
        try:
            yield
        except OSError as problem:
            raise InputError(f"{target} cannot be written ({problem.strerror}): free some space, then run 'nasopt resume "
                             f"{self.path}'.") from problem

    def save_split(self, split: Split) -> None:
        """Writes the index arrays, whole or not at all."""
        split.save(self.split)

    def write_json(self, name: str, data: Any) -> None:
        """Writes a JSON file of that name (or path within the folder), whole or not at all."""
        target = self.path / name
        with self.writing(target):
            write_whole(target, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            raise InputError(f"{self.path / name} does not exist yet: finish the run with 'nasopt resume "
                             f"{self.path}'.") from None
        except (OSError, ValueError) as problem:
            raise InputError(f"{self.path / name} cannot be read ({problem}): run 'nasopt resume {self.path}' to write it "
                             "again.") from problem
