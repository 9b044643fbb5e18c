"""Local search over neighbourhoods, a strong and simple baseline (White, Nolen & Savani, UAI 2021, arXiv 2004.08996)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasopt.errors import InputError
from nasopt.seed import rng
from nasopt.space import Arch, Rows
from nasopt.strategies.evolution import Pool, pool_of
from nasopt.strategies.random import Unseen
from nasopt.trial import Ask, Problem, Trial


class LocalSearch:
    """Asks the neighbours (`space.neighbours`) of the best architecture in random order and moves on as soon as one is better;
    where none is, random ones follow, until one is as good as the best: the published search begins anew from the first of them.

    With several objectives the best is any member of the front whose neighbourhood was not begun yet, and better means that it
    dominates (Pareto local search: Paquete, Chiarandini & Stützle, 2004). No network is asked twice.

    Args:
        problem: what to search.
        seed: the run's seed.
        start: random architectures before the first neighbourhood, at least 1.
        initial: architectures to ask first.
        unseen: what was seen, shared by strategies that search together, so that none asks what another did.

    Raises:
        InputError: a start below 1.
    """

    def __init__(self, problem: Problem, seed: int = 0, start: int = 10, initial: Sequence[Arch] = (),
                 unseen: Unseen | None = None) -> None:
        if start < 1:
            raise InputError(f"local search must start with at least 1 architecture, got {start}.")
        self.problem, self.seed = problem, seed
        self._unseen = unseen or Unseen(problem)
        self._first = self._unseen.layout.rows(list(initial))
        self._random = start
        self._queue = self._first[:0]
        self._centre: int | None = None
        self._begun: set[int] = set()
        self._told: dict[int, Trial] = {}
        self._changed = False

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer, in the end none, when the space is exhausted."""
        return self._unseen.asks(n, first, self._next, self.seed, "local search")

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials of full fidelity, others' included."""
        full = [t for t in trials if t.ask.fidelity >= 1]
        self._unseen.add_archs([t.ask.arch for t in full])
        self._told.update({t.ask.number: t for t in full})
        self._changed = self._changed or bool(full)

    def _next(self, number: int) -> Rows:
        """One row, or none."""
        generator = rng(self.seed, number, "local search")
        self._first = self._unseen.fresh(self._first)
        if len(self._first):
            return self._first[:1]
        if self._random > 0:
            self._random -= 1
            return self._unseen.draw(1, generator)
        self._move(generator)
        self._queue = self._unseen.fresh(self._queue)
        if len(self._queue):
            row, self._queue = self._queue[:1], self._queue[1:]
            return row
        return self._unseen.draw(1, generator)

    def _move(self, generator: np.random.Generator) -> None:
        """Begins a new neighbourhood if the present one is used up or something better than its centre is known."""
        if not self._told or not (self._changed or not len(self._queue)):
            return
        self._changed = False
        numbers = sorted(self._told)
        pool = pool_of(self.problem, self._unseen.layout, [self._told[k] for k in numbers])
        if len(self._queue) and self._centre in self._told and not self._surpassed(pool, numbers.index(self._centre)):
            return
        best = [k for k in np.flatnonzero(pool.rank == 0) if numbers[k] not in self._begun and np.isfinite(pool.violation[k])]
        self._queue = self._queue[:0]
        while best and not len(self._queue):
            chosen = best.pop(int(generator.integers(len(best))))
            self._centre = numbers[chosen]
            self._begun.add(self._centre)
            lay = self._unseen.layout
            rows = lay.neighbours(lay.rows([self._told[self._centre].ask.arch]))
            self._queue = self._unseen.fresh(rows[generator.permutation(len(rows))])

    @staticmethod
    def _surpassed(pool: Pool, centre: int) -> bool:
        """Whether something told dominates the centre: it is not in the first rank any more."""
        return bool(pool.rank[centre] > 0)
