"""The last checkpoint of a training, in the run's storage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nasopt.nets.checkpoint import Checkpoint
from nasopt.protocols import Storage

EVERY = 10.0
"""Seconds between two checkpoints, at least: what an interruption costs, but for the epoch that was begun."""


@dataclass
class Kept:
    """The checkpoint of one training, under its name."""

    storage: Storage
    name: str
    _last: float = field(default_factory=time.perf_counter)

    def recall(self) -> Checkpoint | None:
        """The last one, if there is any."""
        blob = self.storage.get(self.name)
        return Checkpoint.from_bytes(blob) if blob else None

    def keep(self, make: Callable[[], Checkpoint]) -> None:
        """Makes one and stores it in place of the last one, unless that was less than `EVERY` seconds ago."""
        if time.perf_counter() - self._last >= EVERY:
            self.storage.put(self.name, make().to_bytes())
            self._last = time.perf_counter()

    def forget(self) -> None:
        """Leaves none."""
        if self.storage.get(self.name):
            self.storage.put(self.name, b"")
