"""The portfolio: its guarantee in isolation, exactly; its credit; and that members hear of each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nasopt import space
from nasopt.analysis.hypervolume import hypervolume
from nasopt.errors import InputError
from nasopt.protocols import Strategy
from nasopt.run.search import Budget, search
from nasopt.strategies.aging import RegularizedEvolution
from nasopt.strategies.bayes import BayesianOptimization
from nasopt.strategies.evolution import NSGA2
from nasopt.strategies.hybrid import Portfolio
from nasopt.strategies.local import LocalSearch
from nasopt.strategies.random import RandomSearch, Unseen
from nasopt.testing.strategy import check_strategy
from nasopt.trial import Ask, Objective, Problem, Study, Trial

GRID = space.Product("", [space.Choice(f"c{k}", "01234") for k in range(6)])
PROBLEM = Problem(GRID, (Objective("near"), Objective("small")))
MAKERS: dict[str, Callable[[Problem, int, Unseen | None], Strategy]] = {
    "random": lambda p, s, u: RandomSearch(p, s, unseen=u), "local": lambda p, s, u: LocalSearch(p, s, unseen=u),
    "rea": lambda p, s, u: RegularizedEvolution(p, s, population=10, unseen=u),
    "nsga2": lambda p, s, u: NSGA2(p, s, population=6, unseen=u),
    "gp": lambda p, s, u: BayesianOptimization(p, s, unseen=u)}


def measure(ask: Ask) -> dict[str, float]:
    values = np.array(list(ask.arch.values()), dtype=float)
    return {"near": float(((values - 3) ** 2).sum()), "small": float(values.sum())}


def portfolio(problem: Problem = PROBLEM, seed: int = 0, isolated: bool = False, **options: float) -> Portfolio:
    unseen = None if isolated else Unseen(problem)
    members = {name: make(problem, seed, unseen) for name, make in MAKERS.items()}
    return Portfolio(problem, seed, members, isolated=isolated, **options)


def run(strategy: Strategy, trials: int) -> Study:
    return search(PROBLEM, strategy, measure, budget=Budget(trials=trials))


def volume(study: Study) -> float:
    return hypervolume([[t.metrics["near"], t.metrics["small"]] for t in study.trials], [60.0, 25.0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("brief")
def test_it_keeps_the_promises_of_a_strategy() -> None:
    check_strategy(lambda problem, seed: portfolio(problem, seed))


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("seed", range(3))
def test_isolated_members_do_exactly_what_they_do_alone(seed: int) -> None:
    t = 24
    together = run(portfolio(seed=seed, isolated=True), len(MAKERS) * t)
    for name, make in MAKERS.items():
        alone = run(make(PROBLEM, seed, None), t)
        own = [t.ask.arch for t in together.trials if t.ask.by == name]
        assert own == [t.ask.arch for t in alone.trials]


class Fixed:
    """Asks an architecture for each number; counts what it is told."""

    def __init__(self, most: int = 10**6) -> None:
        self.most, self.heard = most, 0

    def ask(self, n: int, first: int) -> list[Ask]:
        n = min(n, self.most)
        self.most -= n
        return [Ask(first + k, {g.path: (first + k) // 5**j % 5 for j, g in enumerate(space.layout(GRID).genes)}, by="fixed")
                for k in range(n)]

    def tell(self, trials: object) -> None:
        self.heard += len(trials)  # type: ignore[arg-type]


def fed(values: dict[str, float], costs: dict[str, float], asks: int = 240, **options: float) -> tuple[Portfolio, list[str]]:
    """A portfolio whose members' trials get better by ``values`` each time, and who was asked."""
    strategy = Portfolio(PROBLEM, 0, {name: Fixed() for name in values}, **options)  # type: ignore[arg-type]
    level, by = 1000.0, list[str]()
    for number in range(asks):
        ask, = strategy.ask(1, number)
        level -= values[ask.by]
        better = level if values[ask.by] else 2000.0
        strategy.tell([Trial(ask, {"near": better, "small": better}, costs[ask.by])])
        by.append(ask.by)
    return strategy, by


def test_who_finds_more_is_asked_more() -> None:
    strategy, by = fed({"good": 10.0, "bad": 0.0}, {"good": 1.0, "bad": 1.0})
    assert by[10:].count("good") > 2 * by[10:].count("bad") > 0
    assert strategy.credit["good"] > strategy.credit["bad"]


def test_who_costs_less_is_asked_more() -> None:
    _, by = fed({"cheap": 5.0, "dear": 5.0}, {"cheap": 1.0, "dear": 9.0})
    assert by[10:].count("cheap") > 2 * by[10:].count("dear")


def test_what_an_ask_costs_besides_its_trial_counts() -> None:
    values, costs = {"quick": 5.0, "slow": 5.0}, {"quick": 1.0, "slow": 1.0}
    strategy, by = fed(values, costs, overheads={"slow": lambda: 8.0})  # type: ignore[arg-type]
    dear, same = fed(values, {"quick": 1.0, "slow": 9.0})
    assert strategy.credit == dear.credit and by == same
    assert by[10:].count("quick") > 2 * by[10:].count("slow")


def test_a_member_without_trials_is_asked_by_the_floor_alone() -> None:
    strategy = Portfolio(PROBLEM, 0, {"first": Fixed(), "other": Fixed()}, start=5, floor=0.1)
    for number in range(5):
        ask, = strategy.ask(1, number)
        strategy.tell([Trial(ask, {"near": 9.0 - number, "small": 9.0}, 1.0)])
    assert strategy.credit["first"] > 0 == strategy.credit["other"]
    names = [ask.by for ask in strategy.ask(200, 5)]
    assert 2 <= names.count("other") <= 20  # a twentieth is expected


def test_the_floor_and_the_memory_have_effects() -> None:
    _, even = fed({"good": 10.0, "bad": 0.0}, {"good": 1.0, "bad": 1.0}, floor=1.0)
    _, greedy = fed({"good": 10.0, "bad": 0.0}, {"good": 1.0, "bad": 1.0}, floor=0.05)
    assert greedy.count("good") > even.count("good") + 10
    assert fed({"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, memory=0.0)[0].credit != fed(
        {"a": 9.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, memory=1.0)[0].credit


def test_a_member_that_has_nothing_to_ask_passes_it_on() -> None:
    strategy = Portfolio(PROBLEM, 0, {"short": Fixed(most=2), "long": Fixed()})
    names = [ask.by for ask in strategy.ask(30, 0)]
    assert names.count("short") == 2
    assert names.count("long") == 28


def test_all_hear_of_all_unless_isolated() -> None:
    for isolated, heard in ((False, [8, 8]), (True, [4, 4])):
        members = {"a": Fixed(), "b": Fixed()}
        strategy = Portfolio(PROBLEM, 0, members, isolated=isolated)  # type: ignore[arg-type]
        strategy.tell([Trial(ask, measure(ask), 1.0) for ask in strategy.ask(8, 0)])
        assert [m.heard for m in members.values()] == heard


def test_no_network_is_asked_twice_at_once() -> None:
    strategy = portfolio()
    for start in range(0, 60, 12):
        asks = strategy.ask(12, start)
        assert len({space.key(a.arch) for a in asks}) == len(asks)
        strategy.tell([Trial(ask, measure(ask), 1.0) for ask in asks])


def test_credit_follows_from_the_log() -> None:
    first = portfolio()
    study = run(first, 40)
    again = portfolio()
    for trial in study.trials:
        again.ask(1, trial.ask.number)
        again.tell([trial])
    assert again.credit == first.credit
    assert any(again.credit.values())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="at least one member"):
        Portfolio(PROBLEM, 0, {})
    for options in ({"floor": 0.0}, {"floor": 1.5}, {"memory": -0.1}):
        with pytest.raises(InputError, match="shares"):
            portfolio(**options)


def test_the_first_member_begins() -> None:
    members: dict[str, Strategy] = {"random": RandomSearch(PROBLEM), "local": LocalSearch(PROBLEM)}
    asked = [t.ask.by for t in run(Portfolio(PROBLEM, 0, members, start=7), 40).trials]
    assert asked[:7] == ["random"] * 7
    assert set(asked[7:]) == {"random", "local"}


def test_a_generation_that_waits_keeps_nothing_from_others() -> None:
    tiny = Problem(space.Product("", [space.Choice(f"c{k}", "01") for k in range(3)]), (Objective("near"),))
    unseen = Unseen(tiny)
    evolution, other = NSGA2(tiny, population=8, unseen=unseen), RandomSearch(tiny, unseen=unseen)
    assert len(evolution.ask(1, 0)) == 1  # of a generation of all 8
    assert len(other.ask(6, 1)) == 6
    assert len(evolution.ask(8, 7)) == 1
    assert evolution.ask(1, 8) == other.ask(1, 8) == []
