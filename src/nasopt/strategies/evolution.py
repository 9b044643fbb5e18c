"""Evolutionary search as mating x variation x survival. A method is a recipe over these parts (see `NSGA2`).

Notation: N population size, c columns of the space's `Layout`, m objectives. All values are to be minimised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nasopt.analysis.pareto import crowding, ranks
from nasopt.errors import InputError
from nasopt.seed import rng
from nasopt.space import Arch, Layout, Rows, check
from nasopt.strategies.random import Unseen
from nasopt.trial import Ask, Problem, Trial

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """Evaluated architectures: rows (N, c), values (N, m), violation (N,), and age (N,): the asks' numbers.

    A violation of infinity marks what failed.
    """

    rows: Rows
    values: Floats
    violation: Floats
    age: Ints

    @cached_property
    def rank(self) -> Ints:
        """Constrained non-dominated rank, shape (N,)."""
        return ranks(self.values, self.violation)

    @cached_property
    def crowding(self) -> Floats:
        """Crowding distance within the rank, shape (N,)."""
        return crowding(self.values, self.rank)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Ints) -> Pool:
        """The pool of some of its members."""
        return Pool(self.rows[index], self.values[index], self.violation[index], self.age[index])

    def join(self, other: Pool) -> Pool:
        """Both pools, this one first."""
        return Pool(np.concatenate([self.rows, other.rows]), np.concatenate([self.values, other.values]),
                    np.concatenate([self.violation, other.violation]), np.concatenate([self.age, other.age]))


def pool_of(problem: Problem, layout: Layout, trials: Sequence[Trial]) -> Pool:
    """Trials as a pool, in their order."""
    values = np.array([problem.values(t.metrics) for t in trials]).reshape(len(trials), len(problem.objectives))
    violation = np.zeros(len(trials))
    if problem.constraints:
        violation[:] = [problem.violation(t.metrics) for t in trials]
    failed = np.array([t.error is not None for t in trials], dtype=bool)
    violation[failed | ((violation == 0) & ~np.isfinite(values).all(axis=1))] = np.inf
    return Pool(layout.rows([t.ask.arch for t in trials]), values, violation,
                np.array([t.ask.number for t in trials], dtype=np.int64))


def completed(layout: Layout, a: Rows, b: Rows, generator: np.random.Generator) -> tuple[Rows, Rows]:
    """Two parents, whose choices that are not active have an option of the other parent or a random one: what becomes active by
    variation is inherited or random, never a silent 0."""
    if layout.flat:
        return a, b
    fresh, ours, theirs = layout.random(generator, len(a)), layout.active(a), layout.active(b)
    return np.where(ours, a, np.where(theirs, b, fresh)), np.where(theirs, b, np.where(ours, a, fresh))


Mating: TypeAlias = Callable[[Pool, int, np.random.Generator], Ints]
"""(pool, n, generator) -> the parents' indices, shape (n, 2)."""
Variation: TypeAlias = Callable[[Layout, Rows, Rows, np.random.Generator], Rows]
"""(layout, first parents, second parents, generator) -> children, all of shape (n, c)."""
Survival: TypeAlias = Callable[[Pool, int, np.random.Generator], Ints]
"""(pool, n, generator) -> the indices of the at most n survivors."""


# ------------------------------------------------------------------------------------------------------------ parts
def tournament(pool: Pool, n: int, generator: np.random.Generator) -> Ints:
    """Binary tournaments on (violation, rank, crowding distance) (Deb et al., IEEE TEC 2002, §III-C); the rank knows
    the violation. A full tie goes to the one drawn first, which is uniform."""
    pairs = generator.integers(0, len(pool), size=(n, 2, 2))
    rank, distance = pool.rank[pairs], pool.crowding[pairs]
    second = (rank[..., 1] < rank[..., 0]) | ((rank[..., 1] == rank[..., 0]) & (distance[..., 1] > distance[..., 0]))
    return np.where(second, pairs[..., 1], pairs[..., 0])


def uniform_mating(pool: Pool, n: int, generator: np.random.Generator) -> Ints:
    """Every member is a parent with equal probability."""
    return generator.integers(0, len(pool), size=(n, 2))


@dataclass(frozen=True)
class CrossoverMutation:
    """Uniform crossover with probability ``crossover``, then always a mutation of at least one active choice.

    Args:
        crossover: probability that a child has two parents. With 0 this is the mutation-only algorithm of the run-time
            theorems; values near 1 more than double the evaluations on OneMinMax and LOTZ.
        rate: mutation rate a choice; None: 1/(active choices).
    """

    crossover: float = 0.5
    rate: float | None = None

    def __call__(self, layout: Layout, a: Rows, b: Rows, generator: np.random.Generator) -> Rows:
        both = generator.random((len(a), 1)) < self.crossover
        return layout.vary(np.where(both, layout.cross(a, b, generator), a), generator, self.rate)


def balanced(pool: Pool, n: int, generator: np.random.Generator) -> Ints:
    """Survival by rank, then by crowding distance, then evenly over the objective vectors.

    Where members of one rank tie in crowding distance across the border, those are taken whose objective vector has
    the fewest survivors (Doerr, Ivan & Krejca, arXiv 2412.11931). Without this NSGA-II misses a constant fraction of a
    front of three objectives for exponential time (Zheng & Doerr, arXiv 2211.13084).
    """
    order = _by_crowding(pool, generator)
    if len(pool) <= n:
        return order
    last = order[n - 1]
    rank, distance = pool.rank[order], pool.crowding[order]
    tied = (rank == pool.rank[last]) & (distance == pool.crowding[last])
    start = int(tied.argmax())
    sure, unsure = order[:start], order[start:start + int(tied.sum())]
    return np.concatenate([sure, _evenly(pool.values, sure, unsure, n - start)])


def plain(pool: Pool, n: int, generator: np.random.Generator) -> Ints:
    """Survival by rank, then by crowding distance, then at random: NSGA-II as published (Deb et al., IEEE TEC 2002)."""
    return _by_crowding(pool, generator)[:n]


def _by_crowding(pool: Pool, generator: np.random.Generator) -> Ints:
    """The pool's indices from best to worst by (rank, crowding distance), ties in random order."""
    return np.lexsort((generator.random(len(pool)), -pool.crowding, pool.rank))


def _evenly(values: Floats, sure: Ints, unsure: Ints, n: int) -> Ints:
    """``n`` of ``unsure``, always next the one whose objective vector is represented least so far."""
    index = np.concatenate([sure, unsure])
    kind = np.unique(values[index], axis=0, return_inverse=True)[1].ravel()
    copy = place(kind, ())  # the i-th copy is only wanted after all (i-1)-th ones
    return unsure[np.argsort(copy[len(sure):], kind="stable")[:n]]


def place(group: Ints, keys: Sequence[NDArray[Any]]) -> Ints:
    """The how-manieth of its group each member is, counted from 0, in the order of the keys (the last counts most), then in its
    own."""
    order = np.lexsort((*keys, group))
    sizes = np.bincount(group)
    found = np.empty(len(group), dtype=np.int64)
    found[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return found


# ---------------------------------------------------------------------------------------------------------- strategy
class Evolution:
    """Generational evolution: ``population`` asks a generation; when the last of them is told, the survivors of parents
    and children breed the next one. Until then an ask beyond the generation is answered with [].

    Trials of others enter the pool too. A trial that failed or lacks an objective ranks behind all others; one that
    violates a constraint ranks by its violation, whatever was measured of it. Trials of a fidelity below 1 are ignored.

    Args:
        problem: what to search.
        seed: the run's seed.
        population: N, asks a generation and members of the pool.
        mating, variation, survival: the parts.
        immigrants: probability that a child is a random architecture instead, uniform in every choice that is active: with it
            every architecture is reached with probability at least ``immigrants``/Π a child, Π the product of the numbers of
            options of its active choices (of a space without conditional choices: |space|).
        initial: architectures to ask first; the first generation is filled up with random ones.
        repeat: ask an architecture again. Without, no network (see `space.canonical`) is asked twice, and the search
            ends when the space is exhausted.
        name: who the asks are by.
        unseen: what was seen, shared by strategies that search together, so that none asks what another did.

    Raises:
        InputError: a size or a probability is out of range, or an initial architecture is not of the space.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, mating: Mating, variation: Variation, survival: Survival,
                 population: int = 100, immigrants: float = 0.05, initial: Sequence[Arch] = (), repeat: bool = False,
                 name: str = "evolution", unseen: Unseen | None = None) -> None:
        if population < 2:
            raise InputError(f"population is {population}: an evolution needs at least 2.")
        if not 0 <= immigrants <= 1:
            raise InputError(f"immigrants is {immigrants}: give a probability between 0 and 1.")
        for k, arch in enumerate(initial):
            try:
                check(problem.space, arch)
            except ValueError as problem_of_arch:
                raise InputError(f"initial architecture {k} is not of the space: {problem_of_arch}") from None
        self.problem, self.seed, self.name = problem, seed, name
        self._size, self._immigrants, self._repeat = population, immigrants, repeat
        self._mating, self._variation, self._survival = mating, variation, survival
        self._unseen = unseen or Unseen(problem)
        self._layout = self._unseen.layout
        self._initial = self._layout.rows(list(initial))
        self._generation = self._selections = 0
        self._queue = self._initial[:0]
        self._pending: set[int] = set()
        self._told: list[Trial] = []
        self.pool = self._measure([])

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n`` of the generation under way; [] while its trials are pending, or if the space is exhausted."""
        self._skip()
        if not len(self._queue) and not self._pending:
            self._select()
            self._queue = self._breed()
        rows, self._queue = self._queue[:n], self._queue[n:]
        if not self._repeat:
            self._unseen.add(rows)
        asks = [Ask(first + k, arch, 1.0, self.seed, self.name) for k, arch in enumerate(self._layout.archs(rows))]
        self._pending.update(range(first, first + len(asks)))
        return asks

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials; ends the generation with its last one. The order within a generation does not matter."""
        self._pending.difference_update([t.ask.number for t in trials])
        self._told += [t for t in trials if t.ask.fidelity >= 1]
        self._skip()
        if not self._pending and not len(self._queue):
            self._select()

    def _skip(self) -> None:
        """Leaves out of the generation what others asked meanwhile."""
        if len(self._queue) and not self._repeat:
            self._queue = self._queue[self._unseen.places(self._queue)]

    def _select(self) -> None:
        """The survivors of the pool and of what was told since become the pool."""
        if not self._told:
            return
        self._told.sort(key=lambda t: t.ask.number)
        joined = self.pool.join(self._measure(self._told))
        chosen = self._survival(joined, self._size, rng(self.seed, self._selections, "survival"))
        self.pool, self._told = joined.take(chosen), []
        self._selections += 1

    def _measure(self, trials: Sequence[Trial]) -> Pool:
        """Trials as a pool; marks them as seen."""
        pool = pool_of(self.problem, self._layout, trials)
        if not self._repeat:
            self._unseen.add(self._unseen.canonical(pool.rows))
        return pool

    def _breed(self) -> Rows:
        """The next generation, shape (at most N, c); empty, and nothing changed, if there is nothing left to ask."""
        generator = rng(self.seed, self._generation, "generation")
        first = self._generation == 0
        rows = self._initial if first else self._initial[:0]
        if self._repeat:
            rows = np.concatenate([rows, self._children(max(0, self._size - len(rows)), generator)])
        else:
            rows = self._fill(self._unseen.fresh(rows), generator)
        self._generation += len(rows) > 0
        return rows

    def _fill(self, rows: Rows, generator: np.random.Generator) -> Rows:
        """Children added to ``rows`` until there are N that were never asked; random ones where breeding finds none."""
        for _ in range(8):
            missing = self._size - len(rows)
            if missing <= 0:
                return rows
            rows = self._unseen.fresh(np.concatenate([rows, self._children(missing, generator)]))
        missing = self._size - len(rows)
        more = self._unseen.draw(self._size, generator) if missing > 0 else rows[:0]
        return self._unseen.fresh(np.concatenate([rows, more]))[:max(self._size, len(rows))]

    def _children(self, n: int, generator: np.random.Generator) -> Rows:
        """``n`` offspring of the pool, a share of them immigrants; random rows while the pool is empty or the space
        holds nothing to vary."""
        lay = self._layout
        fresh = lay.random(generator, n)
        if not len(self.pool) or not (lay.options > 1).any() or not n:
            return fresh
        parents = self._mating(self.pool, n, generator)
        a, b = self.pool.rows[parents[:, 0]], self.pool.rows[parents[:, 1]]
        rows = self._variation(lay, *completed(lay, a, b, generator), generator)
        return np.where(generator.random((n, 1)) < self._immigrants, fresh, rows)


# ----------------------------------------------------------------------------------------------------------- recipes
def NSGA2(problem: Problem, seed: int = 0, population: int = 100, mating: Mating = tournament,  # noqa: N802
          variation: Variation = CrossoverMutation(), survival: Survival = balanced, immigrants: float = 0.05,
          initial: Sequence[Arch] = (), repeat: bool = False, unseen: Unseen | None = None) -> Evolution:
    """NSGA-II (Deb et al., IEEE TEC 2002) with balanced tie-breaking, for any number of objectives.

    See `Evolution` for the arguments.
    """
    return Evolution(problem, seed, mating=mating, variation=variation, survival=survival, population=population,
                     immigrants=immigrants, initial=initial, repeat=repeat, name="nsga2", unseen=unseen)
