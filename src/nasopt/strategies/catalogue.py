"""The strategies by their names, with settings that are the same for every problem. Those of Optuna load it when one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from nasopt.errors import InputError, unknown
from nasopt.protocols import Strategy
from nasopt.space import Arch
from nasopt.strategies.aging import RegularizedEvolution
from nasopt.strategies.bayes import DESIGN, BayesianOptimization
from nasopt.strategies.evolution import NSGA2
from nasopt.strategies.halving import ASHA, Hyperband
from nasopt.strategies.hybrid import Portfolio
from nasopt.strategies.local import LocalSearch
from nasopt.strategies.progressive import Progressive
from nasopt.strategies.random import RandomSearch, Unseen
from nasopt.strategies.reference import NSGA3
from nasopt.surrogates.features import Hints
from nasopt.surrogates.model import Acquisition, Kind
from nasopt.trial import Problem

Make: TypeAlias = Callable[[Problem, int, Sequence[Arch], Hints | None], Strategy]
"""(problem, seed, architectures to ask first, hints) -> a new strategy. Those that are not in `HINTED` leave the hints aside."""


def _optuna(sampler: str) -> Make:
    """A strategy that asks a sampler of Optuna."""
    def make_it(problem: Problem, seed: int, initial: Sequence[Arch], hints: Hints | None) -> Strategy:
        from nasopt.strategies.optuna import METHODS, OptunaSearch

        return OptunaSearch(problem, seed, METHODS[sampler], initial, f"optuna-{sampler}")

    return make_it


def _bayes(surrogate: Kind, acquisition: Acquisition) -> Make:
    """Bayesian optimisation with that surrogate and acquisition."""
    return lambda problem, seed, initial, hints: BayesianOptimization(problem, seed, surrogate, acquisition, initial=initial,
                                                                      hints=hints)


def _size(initial: Sequence[Arch]) -> int:
    """Of a population: as many as there are to begin with, 2 to 24."""
    return max(2, min(24, len(initial) or 24))


def _hybrid(problem: Problem, seed: int, initial: Sequence[Arch], hints: Hints | None) -> Portfolio:
    """Models that improve, models that explore, steps around the best, and evolution."""
    return Portfolio(problem, seed, members(problem, seed, initial, hints, Unseen(problem)), start=DESIGN)


def members(problem: Problem, seed: int, initial: Sequence[Arch], hints: Hints | None, unseen: Unseen) -> dict[str, Strategy]:
    """What the hybrid is made of, by name."""
    return {"gp": BayesianOptimization(problem, seed, initial=initial, hints=hints, unseen=unseen),
            "gp-lcb": BayesianOptimization(problem, seed, acquisition="lcb", initial=initial, hints=hints, unseen=unseen),
            "local": LocalSearch(problem, seed, start=1, initial=initial, unseen=unseen),
            "nsga2": NSGA2(problem, seed, population=_size(initial), initial=initial, unseen=unseen)}


STRATEGIES: Mapping[str, Make] = {
    "asha": lambda problem, seed, initial, hints: ASHA(problem, seed, initial=initial),
    "forest": _bayes("forest", "ei"),
    "gp": _bayes("gp", "ei"),
    "gp-lcb": _bayes("gp", "lcb"),
    "gp-ts": _bayes("gp", "ts"),
    "hybrid": _hybrid,
    "hyperband": lambda problem, seed, initial, hints: Hyperband(problem, seed, initial=initial),
    "local": lambda problem, seed, initial, hints: LocalSearch(problem, seed, initial=initial),
    "nsga2": lambda problem, seed, initial, hints: NSGA2(problem, seed, population=_size(initial), initial=initial),
    "nsga3": lambda problem, seed, initial, hints: NSGA3(problem, seed, population=_size(initial), initial=initial),
    **{f"optuna-{sampler}": _optuna(sampler) for sampler in ("cmaes", "gp", "nsga2", "nsga3", "tpe")},
    "progressive": lambda problem, seed, initial, hints: Progressive(problem, seed, initial=initial),
    "random": lambda problem, seed, initial, hints: RandomSearch(problem, seed, initial),
    "rea": lambda problem, seed, initial, hints: RegularizedEvolution(problem, seed, initial=initial),
}

HINTED = ("forest", "gp", "gp-lcb", "gp-ts", "hybrid")
"""Those that can take hints: what is known of architectures for nothing."""

GRADIENT = ("beta_darts", "darts1", "darts2", "darts_minus", "darts_pt", "drnas", "fair_darts", "gdas", "idarts", "nasopt",
            "pcdarts", "pdarts", "rdarts", "sdarts", "sdarts_adv", "snas")
"""The recipes of `nasopt.strategies.gradient`, which is too heavy to load for their names. They need a network to train."""

COMBINED = "hybrid-gradient"
"""The hybrid with gradients, by the recipe ``nasopt``, as one more member."""

HISTORIES = (*GRADIENT, COMBINED)
"""Strategies that keep the history of their α."""

PREFERENCE = "preference"
"""One search for all preferences between the objectives (`nasopt.strategies.preference`)."""

COLD = (*GRADIENT, PREFERENCE)
"""Strategies that begin with what they train, and so without a warm start."""

NETWORKS = (*HISTORIES, PREFERENCE)
"""Strategies that train a network of their own."""

DEFAULT = "hybrid"


def check_name(name: str) -> None:
    """Refuses what is no strategy.

    Raises:
        InputError: the message names the nearest.
    """
    if name not in STRATEGIES and name not in NETWORKS:
        raise unknown("strategy", name, (*STRATEGIES, *NETWORKS))


def make(name: str, problem: Problem, seed: int, initial: Sequence[Arch] = (), hints: Hints | None = None) -> Strategy:
    """A new strategy of that name; with hints, if it is one of `HINTED`.

    Raises:
        InputError: there is none (the message names the nearest), it is one of `NETWORKS`, it does not suit the problem, or
            Optuna, which it needs, is not installed.
    """
    check_name(name)
    if name in NETWORKS:
        raise InputError(f"{name} trains a network, which a table or a synthetic problem has not: use it in nasopt search, or "
                         f"choose among {', '.join(STRATEGIES)}.")
    return STRATEGIES[name](problem, seed, initial, hints)
