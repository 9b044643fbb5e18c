"""Multi-fidelity search: many architectures at little effort, the best of them at more and more of it.

A method is a sampler of new architectures x a rule of brackets. What is best is decided as in NSGA-II, for any number of
objectives and with constraints: by non-dominated rank, violations included, then by crowding distance (asynchronous halving with
several objectives: Schmucker et al., arXiv 2106.12639).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from nasopt.errors import InputError
from nasopt.protocols import Strategy
from nasopt.space import Arch
from nasopt.strategies.evolution import Pool, pool_of
from nasopt.strategies.random import RandomSearch, Unseen
from nasopt.trial import Ask, Problem, Trial

THIRDS = (1 / 9, 1 / 3, 1.0)
"""Fidelities that rise by the usual factor of 3."""


@dataclass(frozen=True)
class Bracket:
    """Architectures begin at the first fidelity; the best share 1/eta of each rung goes on to the next.

    Attributes:
        fidelities: one a rung, rising; the last is 1.
        width: how many architectures begin. A rung is judged when all of it is told, and the best floor(width / eta^(k+1)) of
            rung k go on (successive halving: Jamieson & Talwalkar, AISTATS 2016). None: there is no end, and at any time the
            best floor(n / eta) of the n that a rung was told so far go on (asynchronous: Li et al., MLSys 2020, algorithm 2).

    Raises:
        InputError: fidelities that do not rise to 1, or a width below 1.
    """

    fidelities: tuple[float, ...]
    width: int | None = None

    def __post_init__(self) -> None:
        rise = (0.0, *self.fidelities)
        if len(rise) < 2 or rise[-1] != 1 or any(a >= b for a, b in pairwise(rise)):
            raise InputError(f"fidelities must rise from above 0 to 1, got {self.fidelities}: give shares of the full effort.")
        if self.width is not None and self.width < 1:
            raise InputError(f"a bracket of {self.width} architectures is empty: begin with at least 1.")


Sampler: TypeAlias = Callable[[Problem, int, Sequence[Arch]], Strategy]
"""(problem, seed, architectures to ask first) -> the strategy that proposes new architectures."""
Brackets: TypeAlias = Callable[[int], Bracket]
"""The rule: 0, 1, 2, ... -> the bracket that is run next."""


@dataclass
class _Rung:
    """What was told at one fidelity, by age; the asks that are pending there, and those whose architecture went on."""

    told: Pool
    pending: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)

    def add(self, pool: Pool) -> None:
        joined = self.told.join(pool)
        self.told = joined.take(np.argsort(joined.age, kind="stable"))

    def best(self, n: int) -> list[int]:
        """Those of the best ``n`` that did not fail and have not gone on, best first, as places in ``told``."""
        if n < 1:
            return []
        order = np.lexsort((self.told.age, -self.told.crowding, self.told.rank))[:n]
        return [k for k in order.tolist() if np.isfinite(self.told.violation[k]) and int(self.told.age[k]) not in self.gone]


@dataclass
class _Race:
    """One bracket under way."""

    bracket: Bracket
    rungs: list[_Rung]
    begun: int = 0

    @property
    def open(self) -> bool:
        """Whether more architectures may begin."""
        return self.bracket.width is None or self.begun < self.bracket.width

    @property
    def pending(self) -> bool:
        return any(rung.pending for rung in self.rungs)

    def candidates(self, eta: float) -> list[tuple[int, int]]:
        """(rung, place) of what may go on now, in the order of preference."""
        if self.bracket.width is None:
            return [(k, place) for k in range(len(self.rungs) - 2, -1, -1)
                    for place in self.rungs[k].best(int(len(self.rungs[k].told) / eta))]
        for k, rung in enumerate(self.rungs[:-1]):
            if self.open or rung.pending:
                break
            found = rung.best(int(self.bracket.width / eta ** (k + 1) + 1e-9))
            if found:
                return [(k, place) for place in found]
        return []

    def rest(self) -> list[tuple[int, int]]:
        """(rung, place) of everything that did not go on, highest rung first."""
        return [(k, place) for k in range(len(self.rungs) - 2, -1, -1) for place in self.rungs[k].best(len(self.rungs[k].told))]


class Halving:
    """Successive halving in brackets, with a sampler for the architectures that begin.

    The sampler is told of all trials, others' included; whether those below full fidelity teach it anything is its own affair
    (`RandomSearch` and the evolutions ignore them). What was evaluated at full fidelity, by whomever, does not go on again, nor
    does what failed. When the sampler has nothing new, the rest goes on as well, best first: the search ends when every network
    has been evaluated at full fidelity, or failed.

    Args:
        problem: what to search.
        seed: the run's seed.
        brackets: the rule of brackets.
        sampler: builds the strategy that proposes new architectures; its own fidelities are replaced.
        eta: one of so many goes on, at least 2.
        initial: architectures to ask first.
        name: who the asks are by.

    Raises:
        InputError: an eta below 2, or a bracket that is none.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, brackets: Brackets, sampler: Sampler = RandomSearch, eta: float = 3,
                 initial: Sequence[Arch] = (), name: str = "halving") -> None:
        if not eta >= 2:
            raise InputError(f"eta is {eta}: one of at least 2 goes on.")
        self.problem, self.seed, self.name = problem, seed, name
        self._brackets, self._eta = brackets, eta
        self._sampler = sampler(problem, seed, initial)
        self._complete = Unseen(problem)
        self._layout = self._complete.layout
        self._races = [self._race(0)]
        self._place: dict[int, _Rung] = {}

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; [] while a bracket's rung is pending, or when there is nothing left."""
        asks: list[Ask] = []
        for number in range(first, first + n):
            ask = self._next(number)
            if ask is None:
                break
            asks.append(ask)
        return asks

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials; those that were asked here count in their rung."""
        for trial in trials:
            rung = self._place.pop(trial.ask.number, None)
            if rung is not None:
                rung.pending.discard(trial.ask.number)
                rung.add(pool_of(self.problem, self._layout, [trial]))
        self._complete.add_archs([t.ask.arch for t in trials if t.ask.fidelity >= 1])
        self._sampler.tell(trials)

    def _next(self, number: int) -> Ask | None:
        race = self._races[-1]
        candidates = race.candidates(self._eta)
        if candidates:
            return self._promote(race, candidates, number) or self._next(number)
        if race.open:
            new = self._sampler.ask(1, number)
            if new:
                race.begun += 1
                return self._begin(race, 0, number, new[0].arch)
            return None if self._place else self._left(number)
        if race.pending:
            return None
        self._races.append(self._race(len(self._races)))
        return self._next(number)

    def _left(self, number: int) -> Ask | None:
        """The next step of an architecture that was left behind, once nothing new can begin."""
        for race in reversed(self._races):
            promoted = self._promote(race, race.rest(), number)
            if promoted is not None:
                return promoted
        return None

    def _promote(self, race: _Race, candidates: Sequence[tuple[int, int]], number: int) -> Ask | None:
        """Lets the first candidate go on that was not evaluated at full fidelity; those before it need not."""
        for k, place in candidates:
            rung = race.rungs[k]
            row = rung.told.rows[place:place + 1]
            rung.gone.add(int(rung.told.age[place]))
            if len(self._complete.fresh(row)):
                return self._begin(race, k + 1, number, self._layout.archs(row)[0])
        return None

    def _begin(self, race: _Race, k: int, number: int, arch: Arch) -> Ask:
        self._place[number] = race.rungs[k]
        race.rungs[k].pending.add(number)
        return Ask(number, arch, race.bracket.fidelities[k], self.seed, self.name)

    def _race(self, k: int) -> _Race:
        bracket = self._brackets(k)
        return _Race(bracket, [_Rung(pool_of(self.problem, self._layout, [])) for _ in bracket.fidelities])


# ----------------------------------------------------------------------------------------------------------- recipes
def ASHA(problem: Problem, seed: int = 0, *, fidelities: Sequence[float] = THIRDS, eta: float = 3,  # noqa: N802
         sampler: Sampler = RandomSearch, initial: Sequence[Arch] = ()) -> Halving:
    """Asynchronous successive halving (Li et al., MLSys 2020; several objectives: Schmucker et al., 2021). Never waits.

    See `Halving` for the arguments.
    """
    bracket = Bracket(tuple(fidelities))
    return Halving(problem, seed, brackets=lambda k: bracket, sampler=sampler, eta=eta, initial=initial, name="asha")


def SuccessiveHalving(problem: Problem, seed: int = 0, *, width: int = 27, fidelities: Sequence[float] = THIRDS,  # noqa: N802
                      eta: float = 3, sampler: Sampler = RandomSearch, initial: Sequence[Arch] = ()) -> Halving:
    """Successive halving (Jamieson & Talwalkar, AISTATS 2016), bracket after bracket of ``width`` architectures.

    See `Halving` for the arguments.
    """
    bracket = Bracket(tuple(fidelities), width)
    return Halving(problem, seed, brackets=lambda k: bracket, sampler=sampler, eta=eta, initial=initial,
                   name="successive halving")


def Hyperband(problem: Problem, seed: int = 0, *, fidelities: Sequence[float] = THIRDS, eta: float = 3,  # noqa: N802
              sampler: Sampler = RandomSearch, initial: Sequence[Arch] = ()) -> Halving:
    """Hyperband (Li et al., JMLR 18:185, 2018, algorithm 1): brackets that begin at each of the fidelities in turn, the lowest
    first, so that nothing rests on low fidelities alone.

    See `Halving` for the arguments.
    """
    levels = tuple(fidelities)

    def rule(k: int) -> Bracket:
        s = len(levels) - 1 - k % len(levels)
        return Bracket(levels[-(s + 1):], math.ceil(len(levels) / (s + 1) * eta**s))

    return Halving(problem, seed, brackets=rule, sampler=sampler, eta=eta, initial=initial, name="hyperband")
