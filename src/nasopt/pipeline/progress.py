"""What a user sees while a run goes on: bars on a terminal, one line a phase elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Watch(Protocol):
    """Called while a phase goes on: units done, units in all, and what else matters now."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


@dataclass(frozen=True)
class Display:
    """Where progress goes.

    Attributes:
        log: takes one line of text.
        bars: draw bars (only sensible on a terminal).
    """

    log: Callable[[str], None]
    bars: bool = False

    @contextmanager
    def phase(self, title: str) -> Iterator[Watch]:
        """Shows one phase; the line at its end says how long it took."""
        started, last = time.perf_counter(), ""
        if self.bars:
            columns = (TextColumn("{task.description:<16}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
            with Progress(*columns, transient=True) as bars:
                task = bars.add_task(title, total=None, note="")

                def draw(done: float, total: float, note: str = "") -> None:
                    nonlocal last
                    last = note
                    bars.update(task, completed=done, total=total, note=note)

                yield draw
        else:
            def keep(done: float, total: float, note: str = "") -> None:
                nonlocal last
                last = note

            yield keep
        self.log(f"{title}: {time.perf_counter() - started:.1f} s{last and ', ' + last}")
