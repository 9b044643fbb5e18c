"""The strategies by their names, with settings that are the same for every problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from nasopt.errors import unknown
from nasopt.protocols import Strategy
from nasopt.space import Arch
from nasopt.strategies.aging import RegularizedEvolution
from nasopt.strategies.evolution import NSGA2
from nasopt.strategies.halving import ASHA, Hyperband
from nasopt.strategies.local import LocalSearch
from nasopt.strategies.progressive import Progressive
from nasopt.strategies.random import RandomSearch
from nasopt.trial import Problem

Make: TypeAlias = Callable[[Problem, int, Sequence[Arch]], Strategy]
"""(problem, seed, architectures to ask first) -> a new strategy."""

STRATEGIES: Mapping[str, Make] = {
    "asha": lambda problem, seed, initial: ASHA(problem, seed, initial=initial),
    "hyperband": lambda problem, seed, initial: Hyperband(problem, seed, initial=initial),
    "local": lambda problem, seed, initial: LocalSearch(problem, seed, initial=initial),
    "nsga2": lambda problem, seed, initial: NSGA2(problem, seed, population=min(24, len(initial) or 24), initial=initial),
    "progressive": lambda problem, seed, initial: Progressive(problem, seed, initial=initial),
    "random": lambda problem, seed, initial: RandomSearch(problem, seed, initial),
    "rea": lambda problem, seed, initial: RegularizedEvolution(problem, seed, initial=initial),
}

DEFAULT = "nsga2"


def make(name: str, problem: Problem, seed: int, initial: Sequence[Arch] = ()) -> Strategy:
    """A new strategy of that name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name](problem, seed, initial)
