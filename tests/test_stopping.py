"""Stopping early: the loop keeps to it, resumed or not, and the rule tells a search that is through from one that is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from nasopt import space
from nasopt.run.search import Budget, search
from nasopt.run.storage import Memory
from nasopt.strategies.bayes import BayesianOptimization
from nasopt.strategies.random import RandomSearch
from nasopt.strategies.stopping import SmallGain, expected_gain
from nasopt.trial import Ask, Constraint, Objective, Problem, Trial

GRID = space.Product("", [space.Choice(f"c{k}", "01234") for k in range(4)])
ONE, TWO = Problem(GRID, (Objective("far"),)), Problem(GRID, (Objective("far"), Objective("sum")))


def measure(ask: Ask) -> dict[str, float]:
    values = list(ask.arch.values())
    return {"far": 1.0 + sum((v - best) ** 2 for v, best in zip(values, (3, 1, 4, 2), strict=True)), "sum": 1.0 + sum(values)}


def after(n: int) -> object:
    return lambda trials: f"there are {n}" if len(trials) >= n else ""


def test_the_loop_stops_when_told_to_and_says_why() -> None:
    study = search(ONE, RandomSearch(ONE), measure, budget=Budget(trials=30), stop=after(7))  # type: ignore[arg-type]
    assert (len(study.trials), study.stopped) == (7, "there are 7")


def test_what_is_under_way_is_finished() -> None:
    study = search(ONE, RandomSearch(ONE), measure, budget=Budget(trials=30), batch=5, stop=after(6))  # type: ignore[arg-type]
    assert (len(study.trials), study.stopped) == (6, "there are 6")


@pytest.mark.parametrize("cut", [3, 7])
def test_a_resumed_search_stops_where_the_whole_one_does(cut: int) -> None:
    storage, shown = Memory(), list[int]()

    def stop(trials: Sequence[Trial]) -> str:
        shown.append(len(trials))
        return "enough" if len(trials) == 7 else ""

    search(ONE, RandomSearch(ONE), measure, budget=Budget(trials=cut), storage=storage)
    again = search(ONE, RandomSearch(ONE), measure, budget=Budget(trials=30), storage=storage, stop=stop)
    assert (len(again.trials), again.stopped) == (7, "enough")
    assert shown == list(range(1, 8))


def test_what_was_under_way_after_the_end_does_not_hide_it() -> None:
    """Trials that were told after the one at which a run stopped do not make it go on."""
    storage = Memory()

    def stop(trials: Sequence[Trial]) -> str:
        return "enough" if len(trials) == 5 else ""

    search(ONE, RandomSearch(ONE), measure, budget=Budget(trials=7), storage=storage)
    again = search(ONE, RandomSearch(ONE), measure, budget=Budget(trials=30), storage=storage, stop=stop)
    assert (len(again.trials), again.stopped) == (7, "enough")


def test_the_rule_is_asked_every_few_trials_after_a_warm_up() -> None:
    trials = search(TWO, RandomSearch(TWO), measure, budget=Budget(trials=26)).trials
    rule = SmallGain(TWO, 0.999, warmup=20, every=5)  # nothing gains so much
    assert [n for n in range(1, 27) if rule(trials[:n])] == [20, 25]
    assert [n for n in range(1, 27) if SmallGain(TWO, 0.999, warmup=10, every=3)(trials[:n])] == [12, 15, 18, 21, 24]
    gain = expected_gain(TWO, trials[:20], 2, 0)
    assert rule(trials[:20]) == (f"after 20 networks the next 2 were expected to add {gain:.2%} to the hypervolume, less than "
                                 "99.90%")


@pytest.mark.parametrize("problem", [ONE, TWO])
def test_the_gain_shrinks_as_the_search_goes_on(problem: Problem) -> None:
    trials = search(problem, BayesianOptimization(problem), measure, budget=Budget(trials=60)).trials
    rule = SmallGain(problem, 0.01)
    early, late = expected_gain(problem, trials[:10], 3, 0), expected_gain(problem, trials, 3, 0)
    assert late < 0.01 < early
    assert rule(trials)
    assert "best value" in rule(trials) if problem is ONE else "hypervolume" in rule(trials)


def test_nothing_feasible_is_no_reason_to_stop() -> None:
    problem = Problem(GRID, TWO.objectives, (Constraint("sum", 0.5),))
    trials = search(problem, RandomSearch(problem), measure, budget=Budget(trials=20)).trials
    assert expected_gain(problem, trials, 2, 0) == math.inf
    assert SmallGain(problem, 0.5)(trials) == ""
