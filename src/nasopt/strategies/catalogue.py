"""The strategies by their names, with settings that are the same for every problem. Those of Optuna load it when one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from nasopt.errors import unknown
from nasopt.protocols import Strategy
from nasopt.space import Arch
from nasopt.strategies.aging import RegularizedEvolution
from nasopt.strategies.evolution import NSGA2
from nasopt.strategies.local import LocalSearch
from nasopt.strategies.random import RandomSearch
from nasopt.strategies.reference import NSGA3
from nasopt.trial import Problem

Make: TypeAlias = Callable[[Problem, int, Sequence[Arch]], Strategy]
"""(problem, seed, architectures to ask first) -> a new strategy."""


def _optuna(sampler: str) -> Make:
    """A strategy that asks a sampler of Optuna."""
    def make_it(problem: Problem, seed: int, initial: Sequence[Arch]) -> Strategy:
        from nasopt.strategies.optuna import METHODS, OptunaSearch

        return OptunaSearch(problem, seed, METHODS[sampler], initial, f"optuna-{sampler}")

    return make_it


def _size(initial: Sequence[Arch]) -> int:
    """Of a population: as many as there are to begin with, 2 to 24."""
    return max(2, min(24, len(initial) or 24))


STRATEGIES: Mapping[str, Make] = {
    "local": lambda problem, seed, initial: LocalSearch(problem, seed, initial=initial),
    "nsga2": lambda problem, seed, initial: NSGA2(problem, seed, population=_size(initial), initial=initial),
    "nsga3": lambda problem, seed, initial: NSGA3(problem, seed, population=_size(initial), initial=initial),
    **{f"optuna-{sampler}": _optuna(sampler) for sampler in ("cmaes", "gp", "nsga2", "nsga3", "tpe")},
    "random": lambda problem, seed, initial: RandomSearch(problem, seed, initial),
    "rea": lambda problem, seed, initial: RegularizedEvolution(problem, seed, initial=initial),
}

DEFAULT = "nsga2"


def make(name: str, problem: Problem, seed: int, initial: Sequence[Arch] = ()) -> Strategy:
    """A new strategy of that name.

    Raises:
        InputError: there is none (the message names the nearest), it does not suit the problem, or Optuna, which it needs,
            is not installed.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name](problem, seed, initial)
