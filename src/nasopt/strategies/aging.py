"""Regularised evolution: a population in which the oldest dies (Real et al., AAAI 2019, arXiv 1802.01548, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasopt.errors import InputError
from nasopt.seed import rng
from nasopt.space import Arch, Rows
from nasopt.strategies.evolution import completed, pool_of
from nasopt.strategies.random import Unseen
from nasopt.trial import Ask, Problem, Trial

TRIES = 32
"""Mutants of one parent that are drawn at a time to find one that was never asked."""


class RegularizedEvolution:
    """Asks random architectures first, then always a mutant, in one choice, of the best among ``sample`` random ones of the
    ``population`` youngest.

    The best is the one of least constrained non-dominated rank, so that several objectives and constraints are possible; ties go
    to the younger. No network (see `space.canonical`) is asked twice; where all mutants were seen, a random one is asked.

    Args:
        problem: what to search.
        seed: the run's seed.
        population: how many of the youngest trials live, at least 2.
        sample: how many of them compete to be a parent, at least 1.
        initial: architectures to ask first.
        unseen: what was seen, shared by strategies that search together, so that none asks what another did.

    Raises:
        InputError: a size out of range.
    """

    def __init__(self, problem: Problem, seed: int = 0, population: int = 50, sample: int = 10,
                 initial: Sequence[Arch] = (), unseen: Unseen | None = None) -> None:
        if population < 2 or sample < 1:
            raise InputError(f"regularised evolution needs a population of at least 2 and a sample of at least 1, "
                             f"got {population} and {sample}.")
        self.problem, self.seed = problem, seed
        self._size, self._sample = population, sample
        self._unseen = unseen or Unseen(problem)
        self._initial = self._unseen.layout.rows(list(initial))
        self._asked = 0
        self._told: dict[int, Trial] = {}

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer, in the end none, when the space is exhausted."""
        return self._unseen.asks(n, first, self._next, self.seed, "regularised evolution")

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials of full fidelity, others' included."""
        full = [t for t in trials if t.ask.fidelity >= 1]
        self._unseen.add_archs([t.ask.arch for t in full])
        self._told.update({t.ask.number: t for t in full})
        for number in sorted(self._told)[:-self._size]:
            del self._told[number]

    def _next(self, number: int) -> Rows:
        """One row, or none."""
        row = self._proposed(rng(self.seed, number, "aging"))
        self._asked += len(row)
        return row

    def _proposed(self, generator: np.random.Generator) -> Rows:
        self._initial = self._unseen.fresh(self._initial)
        if len(self._initial):
            return self._initial[:1]
        if self._asked >= self._size and self._told and (self._unseen.layout.options > 1).any():
            lay, parents = self._unseen.layout, np.repeat(self._parent(generator), TRIES, axis=0)
            mutants = lay.vary(completed(lay, parents, parents, generator)[0], generator, 0.0)
            fresh = self._unseen.fresh(mutants)
            if len(fresh):
                return fresh[:1]
        return self._unseen.draw(1, generator)

    def _parent(self, generator: np.random.Generator) -> Rows:
        """The best of a sample of the living, (1, columns)."""
        living = [self._told[number] for number in sorted(self._told)]
        chosen = generator.choice(len(living), min(self._sample, len(living)), replace=False)
        pool = pool_of(self.problem, self._unseen.layout, [living[k] for k in np.sort(chosen)])
        return pool.rows[[np.lexsort((-pool.age, pool.rank))[0]]]
