"""Uniform random search without repetition, and the bookkeeping of what was seen that others share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from nasopt.seed import rng
from nasopt.space import Arch, Rows, everything, layout
from nasopt.trial import Ask, Problem, Trial

REST = 4096
"""How many unseen architectures are gathered at a time once random draws find none."""


class Unseen:
    """Which networks of a space were asked or told, and how to find others.

    Two architectures are one network if `space.canonical` maps them to one; what this class returns is canonical.

    Args:
        problem: whose space it is.
    """

    def __init__(self, problem: Problem) -> None:
        self.space = problem.space
        self.layout = layout(problem.space)
        self._seen: set[bytes] = set()
        self._scan: Iterator[dict[str, int]] = everything(problem.space)
        self._rest: list[Rows] = []

    def canonical(self, rows: Rows) -> Rows:
        """One row for every network (`Layout.canonical`)."""
        return self.layout.canonical(rows)

    def add(self, rows: Rows) -> None:
        """Marks canonical rows as seen."""
        self._seen.update(_names(rows))

    def add_archs(self, archs: Sequence[Arch]) -> None:
        """Marks architectures as seen."""
        self.add(self.canonical(self.layout.rows(archs)))

    def asks(self, n: int, first: int, propose: Callable[[int], Rows], seed: int, by: str) -> list[Ask]:
        """Up to ``n`` asks, numbered from ``first`` on, each for the one unseen row that ``propose`` has for its number; fewer if
        there is none. Marks them as seen."""
        found: list[Ask] = []
        for number in range(first, first + n):
            row = propose(number)
            if not len(row):
                break
            self.add(row)
            found.append(Ask(number, self.layout.archs(row)[0], 1.0, seed, by))
        return found

    def fresh(self, rows: Rows) -> Rows:
        """The canonical forms of the rows that were not seen, each once and in their order; marks nothing."""
        rows = self.canonical(rows)
        here: dict[bytes, int] = {}
        for k, name in enumerate(_names(rows)):
            if name not in self._seen:
                here.setdefault(name, k)
        return rows if len(here) == len(rows) else rows[list(here.values())]

    def places(self, rows: Rows) -> NDArray[np.intp]:
        """Which of the canonical rows were not seen."""
        return np.flatnonzero([name not in self._seen for name in _names(rows)])

    def draw(self, n: int, generator: np.random.Generator) -> Rows:
        """Up to ``n`` unseen rows: uniform draws, and where these find too few a choice from what a scan of the space
        finds. Fewer than ``n`` only if the space holds no more; marks nothing."""
        found = np.empty((0, len(self.layout.genes)), dtype=np.int64)
        for _ in range(4):
            found = self.fresh(np.concatenate([found, self.layout.random(generator, 2 * n + 8)]))[:n]
            if len(found) == n:
                return found
        return self.fresh(np.concatenate([found, self._left(n, generator)]))[:n]

    def _left(self, n: int, generator: np.random.Generator) -> Rows:
        """Up to ``n`` unseen rows from the scan, which passes every architecture once."""
        self._rest = [row for row in self._rest if row.tobytes() not in self._seen]
        while len(self._rest) < n and (more := list(islice(self._scan, REST))):
            rows = self.fresh(self.layout.rows(more))
            self._rest = list(self.fresh(np.concatenate([rows[:0], *[r[None] for r in self._rest], rows])))
        chosen = generator.permutation(len(self._rest))[:n]
        return np.array([self._rest[k] for k in chosen], dtype=np.int64).reshape(len(chosen), len(self.layout.genes))


def _names(rows: Rows) -> list[bytes]:
    """The bytes of every row."""
    text, width = rows.tobytes(), rows.shape[1] * rows.itemsize
    return [text[k * width:(k + 1) * width] for k in range(len(rows))]


class RandomSearch:
    """Uniform random search that never asks one network twice (random search is the baseline of every comparison:
    Li & Talwalkar, UAI 2019).

    Ask ``k`` depends on the seed, on ``k`` and on what was seen alone, so the batch size does not change the search.

    Args:
        problem: what to search.
        seed: the run's seed.
        initial: architectures to ask for first.
        unseen: what was seen, shared by strategies that search together, so that none asks what another did.
    """

    def __init__(self, problem: Problem, seed: int = 0, initial: Sequence[Arch] = (), unseen: Unseen | None = None) -> None:
        self._seed = seed
        self._unseen = unseen or Unseen(problem)
        self._initial = self._unseen.layout.rows(initial)

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n`` asks; fewer, in the end none, when the space is exhausted."""
        return self._unseen.asks(n, first, self._next, self._seed, "random")

    def _next(self, number: int) -> Rows:
        """One row, or none."""
        self._initial = self._unseen.fresh(self._initial)
        row, self._initial = self._initial[:1], self._initial[1:]
        return row if len(row) else self._unseen.draw(1, rng(self._seed, number, "random"))

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remembers what was evaluated at full fidelity, so that it is not asked again."""
        self._unseen.add_archs([t.ask.arch for t in trials if t.ask.fidelity >= 1])
