"""The strategies by their names, with settings that are the same for every problem. Those of Optuna load it when one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from nasopt.errors import unknown
from nasopt.protocols import Strategy
from nasopt.space import Arch
from nasopt.strategies.aging import RegularizedEvolution
from nasopt.strategies.bayes import BayesianOptimization
from nasopt.strategies.evolution import NSGA2
from nasopt.strategies.halving import ASHA, Hyperband
from nasopt.strategies.hybrid import Portfolio
from nasopt.strategies.local import LocalSearch
from nasopt.strategies.progressive import Progressive
from nasopt.strategies.random import RandomSearch, Unseen
from nasopt.strategies.reference import NSGA3
from nasopt.surrogates.features import Hints
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
    "asha": lambda problem, seed, initial: ASHA(problem, seed, initial=initial),
    "forest": lambda problem, seed, initial: BayesianOptimization(problem, seed, "forest", initial=initial),
    "gp": lambda problem, seed, initial: BayesianOptimization(problem, seed, initial=initial),
    "gp-lcb": lambda problem, seed, initial: BayesianOptimization(problem, seed, acquisition="lcb", initial=initial),
    "gp-ts": lambda problem, seed, initial: BayesianOptimization(problem, seed, acquisition="ts", initial=initial),
    "hybrid": lambda problem, seed, initial: _hybrid(problem, seed, initial, None),
    "hyperband": lambda problem, seed, initial: Hyperband(problem, seed, initial=initial),
    "local": lambda problem, seed, initial: LocalSearch(problem, seed, initial=initial),
    "nsga2": lambda problem, seed, initial: NSGA2(problem, seed, population=_size(initial), initial=initial),
    "nsga3": lambda problem, seed, initial: NSGA3(problem, seed, population=_size(initial), initial=initial),
    **{f"optuna-{sampler}": _optuna(sampler) for sampler in ("cmaes", "gp", "nsga2", "nsga3", "tpe")},
    "progressive": lambda problem, seed, initial: Progressive(problem, seed, initial=initial),
    "random": lambda problem, seed, initial: RandomSearch(problem, seed, initial),
    "rea": lambda problem, seed, initial: RegularizedEvolution(problem, seed, initial=initial),
}


def _hybrid(problem: Problem, seed: int, initial: Sequence[Arch], hints: Hints | None) -> Portfolio:
    """Models that improve, models that explore, steps around the best, and evolution."""
    unseen = Unseen(problem)
    return Portfolio(problem, seed, {
        "gp": BayesianOptimization(problem, seed, initial=initial, hints=hints, unseen=unseen),
        "gp-lcb": BayesianOptimization(problem, seed, acquisition="lcb", initial=initial, hints=hints, unseen=unseen),
        "local": LocalSearch(problem, seed, start=1, initial=initial, unseen=unseen),
        "nsga2": NSGA2(problem, seed, population=min(24, len(initial) or 24), initial=initial, unseen=unseen),
    })


HINTED: Mapping[str, Callable[[Problem, int, Sequence[Arch], Hints], Strategy]] = {
    "forest": lambda problem, seed, initial, hints: BayesianOptimization(problem, seed, "forest", initial=initial, hints=hints),
    "gp": lambda problem, seed, initial, hints: BayesianOptimization(problem, seed, initial=initial, hints=hints),
    "hybrid": lambda problem, seed, initial, hints: _hybrid(problem, seed, initial, hints),
}
"""Those that can take hints: what is known of architectures for nothing."""

DEFAULT = "nsga2"


def make(name: str, problem: Problem, seed: int, initial: Sequence[Arch] = (), hints: Hints | None = None) -> Strategy:
    """A new strategy of that name; with hints, if it is one of `HINTED`.

    Raises:
        InputError: there is none (the message names the nearest), it does not suit the problem, or Optuna, which it needs,
            is not installed.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    return STRATEGIES[name](problem, seed, initial) if hints is None or name not in HINTED else (
        HINTED[name](problem, seed, initial, hints))
