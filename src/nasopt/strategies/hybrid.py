"""The hybrid: a portfolio of strategies that share every trial, each asked as often as what it found was worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from nasopt.analysis.hypervolume import hypervolume, normalise
from nasopt.analysis.pareto import Archive
from nasopt.errors import InputError
from nasopt.protocols import Strategy
from nasopt.seed import rng
from nasopt.trial import Ask, Problem, Trial

LEAST_COST = 0.1
"""Seconds that a trial counts for at least: what is cheaper costs the time around it."""


class Portfolio:
    """Several strategies as one.

    Members that share one `Unseen` never ask what another did; without, two may while a trial is pending.

    Every member is told every trial, whoever asked for it: one member's best enter another's population, and every trial is data
    for the models. An ask goes to a member with a probability that grows with its credit: the hypervolume that its trials added,
    per second that they cost, where older trials count less. A member that has nothing to ask passes it on. The credit follows
    from the log alone, so that a resumed search has it, too.

    Members learn from each other, so that the regret bounds of bandits do not hold for such credit. What holds, exactly, is the
    guarantee of ``isolated``: every member is asked by turns and told its own trials only, as if it were alone. After K t trials
    K members have done what each does in t trials of its own; the hypervolume of all together is at least that of each.

    Args:
        problem: what to search.
        seed: the run's seed.
        members: by name; the name is written on the members' asks.
        isolated: ask by turns, share nothing.
        floor: share of the asks that is spread evenly over the members whatever their credit, so that none is lost.
        memory: what a trial counts for in its member's credit after each later trial of this member.
        start: asks that the first member makes before the others have their turn: the design that its model needs.
        overheads: seconds that the next ask of a member will cost besides its trial, such as training; none of those that are
            not named.

    Raises:
        InputError: no member, or a share that is none.
    """

    def __init__(self, problem: Problem, seed: int, members: Mapping[str, Strategy], *, isolated: bool = False,
                 floor: float = 0.1, memory: float = 0.9, start: int = 0,
                 overheads: Mapping[str, Callable[[], float]] = MappingProxyType({})) -> None:
        if not members:
            raise InputError("a portfolio needs at least one member.")
        if not 0 < floor <= 1 or not 0 <= memory <= 1:
            raise InputError(f"floor {floor} and memory {memory} must be shares of 1, and the floor above 0.")
        self.problem, self.seed = problem, seed
        self.members, self._isolated, self._floor, self._memory = dict(members), isolated, floor, memory
        self._start, self._overheads = start, overheads
        self._own: dict[int, tuple[str, int, float]] = {}
        self._asked = dict.fromkeys(self.members, 0)
        self._gain = dict.fromkeys(self.members, 0.0)
        self._cost = dict.fromkeys(self.members, 0.0)
        self._archive: Archive[None] = Archive(len(problem.objectives))

    @property
    def credit(self) -> dict[str, float]:
        """Hypervolume added per second, of every member; 0 of one without trials, which the floor alone gives a chance."""
        return {name: self._gain[name] / self._cost[name] if self._cost[name] > 0 else 0.0 for name in self.members}

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer while all members wait for trials, in the end none, when the space is exhausted."""
        asks: list[Ask] = []
        for number in range(first, first + n):
            ask = next(filter(None, (self._ask(name, number) for name in self._order(number))), None)
            if ask is None:
                break
            asks.append(ask)
        return asks

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials in any order, those of other strategies included."""
        for trial in trials:
            name, number, overhead = self._own.get(trial.ask.number, ("", -1, 0.0))
            self._reward(name, trial, overhead)
            if not self._isolated:
                for member in self.members.values():
                    member.tell([trial])
            elif name:
                self.members[name].tell([replace(trial, ask=replace(trial.ask, number=number))])

    def _order(self, number: int) -> list[str]:
        """The members in the order in which they are tried."""
        names = list(self.members)
        if self._isolated:
            return sorted(names, key=self._asked.__getitem__)
        if sum(self._asked.values()) < self._start:
            return names
        credit = np.array(list(self.credit.values()))
        share = credit / credit.sum() if credit.sum() > 0 else np.full(len(names), 1 / len(names))
        chances = self._floor / len(names) + (1 - self._floor) * share
        return [names[k] for k in rng(self.seed, number, "portfolio").choice(len(names), len(names), replace=False, p=chances)]

    def _ask(self, name: str, number: int) -> Ask | None:
        """One ask of a member under the portfolio's number, or None. Isolated members count for themselves."""
        own = self._asked[name] if self._isolated else number
        overhead = self._overheads[name]() if name in self._overheads else 0.0
        asks = self.members[name].ask(1, own)
        if not asks:
            return None
        self._asked[name] += 1
        self._own[number] = name, own, overhead
        return replace(asks[0], number=number, by=name)

    def _reward(self, name: str, trial: Trial, overhead: float) -> None:
        """Credits the member with what the trial added to the hypervolume, in the frame of the front before and the trial: with
        one objective all improvements count the same."""
        gain = self._added(trial)
        if name:
            self._gain[name] = self._memory * self._gain[name] + gain
            self._cost[name] = self._memory * self._cost[name] + max(trial.cost, LEAST_COST) + overhead

    def _added(self, trial: Trial) -> float:
        """What the trial adds to the hypervolume of the front; changes the front."""
        if not self.problem.accepts(trial):
            return 0.0
        values = np.array([self.problem.values(trial.metrics)])
        before = self._archive.values
        self._archive.add(values, [None])
        both = np.concatenate([before, values])
        return _volume(self._archive.values, both) - _volume(before, both)


def _volume(front: NDArray[np.float64], frame: NDArray[np.float64]) -> float:
    """The hypervolume of a front where the points of the frame lie between 0 and 1, up to 1.1 in every objective."""
    if not len(front):
        return 0.0
    return hypervolume(normalise(front, frame.min(axis=0), frame.max(axis=0)), np.full(frame.shape[1], 1.1))
