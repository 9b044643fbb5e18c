"""What a run remembers of its phases: their results, the seconds they took and the memory they had."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from nasopt.machine import forget_peak_memory, peak_memory_mb
from nasopt.protocols import Storage


@dataclass(frozen=True)
class Ledger:
    """Results, seconds and peaks of memory by name, in the blobs of a storage."""

    storage: Storage

    def recall(self, name: str) -> Any:
        """A stored result as plain JSON values, or None."""
        return json.loads(self.storage.get(name) or b"null")

    def store(self, name: str, result: Any) -> None:
        """Stores a result durably."""
        self.storage.put(name, json.dumps(result).encode())

    def remember(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored result, or one that is computed now and stored; the same values either way."""
        if self.recall(name) is None:
            self.store(name, compute())
        found: dict[str, Any] = self.recall(name)
        return found

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds what happens inside to the phase's seconds and peaks, earlier parts of a resumed run included; going through a
        phase again that was complete costs nothing. A SIGKILL loses those of the part it ended; `killed` remembers that."""
        forget_peak_memory()
        for device in _gpus():
            torch.cuda.reset_peak_memory_stats(device)
        started, before, complete = time.perf_counter(), self.seconds(phase), self.recall(f"complete {phase}")
        if not complete:
            self.store(f"killed {phase}", self.recall(f"open {phase}") or self.recall(f"killed {phase}"))
            self.store(f"open {phase}", True)
        try:
            yield
        finally:
            if not complete:
                self.store(f"open {phase}", False)
                self.store(f"seconds of {phase}", before + time.perf_counter() - started)
                now, known = _peaks(), self.peaks(phase)
                self.store(f"peaks of {phase}", {name: max(peak, known.get(name, 0.0)) for name, peak in now.items()})
        self.store(f"complete {phase}", True)

    def killed(self, phase: str) -> bool:
        """Whether the process ended within the phase without a word, so that seconds and peaks lack a part."""
        return bool(self.recall(f"killed {phase}"))

    def charge(self, phase: str, seconds: float) -> None:
        """Counts seconds as the phase's before it begins."""
        self.store(f"seconds of {phase}", seconds)

    def seconds(self, phase: str) -> float:
        """Seconds that a phase has taken so far."""
        return float(self.recall(f"seconds of {phase}") or 0.0)

    def peaks(self, phase: str) -> dict[str, float]:
        """The most memory during a phase so far, in MB (1e6 bytes): ``cpu``, all that the process had, data included; ``cuda``,
        if a GPU was used, all that tensors took there."""
        return dict(self.recall(f"peaks of {phase}") or {})


def _peaks() -> dict[str, float]:
    found = {"cpu": peak_memory_mb()}
    return {**found, "cuda": max(map(torch.cuda.max_memory_allocated, _gpus())) / 1e6} if _gpus() else found


def _gpus() -> range:
    """The GPUs by number, if any was used."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
