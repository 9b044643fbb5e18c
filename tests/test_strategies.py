"""Every strategy passes the conformance kit, and every check of the kit can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import pytest

from nasopt.space import Cell, Choice, Product, Repeat, canonical, everything, key, layout
from nasopt.strategies.aging import RegularizedEvolution
from nasopt.strategies.evolution import NSGA2, completed
from nasopt.strategies.local import LocalSearch
from nasopt.strategies.random import REST, RandomSearch
from nasopt.testing.strategy import check_strategy, example_spaces
from nasopt.trial import Ask, Objective, Problem, Trial

ONE = (Objective("error"),)


@pytest.mark.parametrize(
    "make",
    [
        RandomSearch,
        NSGA2,
        lambda p, s: NSGA2(p, s, population=4),
        lambda p, s: NSGA2(p, s, population=7, immigrants=1.0),
        RegularizedEvolution,
        lambda p, s: RegularizedEvolution(p, s, population=4, sample=2),
        LocalSearch,
        lambda p, s: LocalSearch(p, s, start=1),
    ],
)
def test_conformance(make: Callable[[Problem, int], RandomSearch]) -> None:
    check_strategy(make)


def test_random_search_asks_for_the_initial_architectures_first_and_once() -> None:
    problem = Problem(Product("", [Choice("a", "xyz"), Choice("b", "xyz")]), ONE)
    first = [{"a": 2, "b": 1}, {"a": 0, "b": 0}, {"a": 2, "b": 1}]
    asks = RandomSearch(problem, 3, first).ask(20, 0)
    assert [a.arch for a in asks[:2]] == first[:2]
    assert len({key(a.arch) for a in asks}) == len(asks) == 9
    check_strategy(lambda p, s: RandomSearch(p, s, [next(everything(p.space))]))


class Wrapped:
    """A correct strategy to break in one way each."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.inner: RandomSearch = RandomSearch(problem, seed)
        self.problem, self.seed = problem, seed
        self.pending: set[int] = set()

    def ask(self, n: int, first: int) -> list[Ask]:
        asks = self.inner.ask(n, first)
        self.pending |= {a.number for a in asks}
        return asks

    def tell(self, trials: Sequence[Trial]) -> None:
        self.pending -= {t.ask.number for t in trials}
        self.inner.tell(trials)


class TooMany(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return super().ask(n + 1, first)


class FromZero(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return super().ask(n, 0)


class Invalid(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return [Ask(first, {"nonsense": 1}, seed=self.seed, by="x")]


class OtherSeed(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return [Ask(a.number, a.arch, seed=99, by=a.by) for a in super().ask(n, first)]


class Nobody(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return [Ask(a.number, a.arch, seed=a.seed) for a in super().ask(n, first)]


class Fidelity(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return [Ask(a.number, a.arch, 0.0, a.seed, a.by) for a in super().ask(n, first)]


class Stalls(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return super().ask(n, first) if first < 10 else []


class Ambient(Wrapped):
    made = 0

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        Ambient.made += 1
        self.inner = RandomSearch(problem, Ambient.made)

    def ask(self, n: int, first: int) -> list[Ask]:
        return [Ask(a.number, a.arch, seed=self.seed, by=a.by) for a in super().ask(n, first)]


class Gate(Wrapped):
    """Counts the asks it refuses, and draws from the count."""

    refused = 0

    def ask(self, n: int, first: int) -> list[Ask]:
        if self.pending:
            self.refused += 1
            return []
        archs = RandomSearch(self.problem, 1000 * self.refused + first).ask(n, 0)
        asks = [Ask(first + k, a.arch, seed=self.seed, by="gate") for k, a in enumerate(archs)]
        self.pending |= {a.number for a in asks}
        return asks


class InOrder(Wrapped):
    def tell(self, trials: Sequence[Trial]) -> None:
        assert not self.pending or {t.ask.number for t in trials} >= {min(self.pending)}, "told out of order"
        super().tell(trials)


class OwnOnly(Wrapped):
    def tell(self, trials: Sequence[Trial]) -> None:
        assert {t.ask.number for t in trials} <= self.pending, "a trial that was not asked"
        super().tell(trials)


class Complete(Wrapped):
    def tell(self, trials: Sequence[Trial]) -> None:
        assert all(o.name in t.metrics for o in self.problem.objectives for t in trials if t.error is None), "lacks"
        super().tell(trials)


class Proud(Wrapped):
    def tell(self, trials: Sequence[Trial]) -> None:
        assert not any(t.error for t in trials), "a failed trial"
        super().tell(trials)


class Endless(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return [Ask(a.number, a.arch, seed=self.seed, by="x") for k in range(n)
                for a in RandomSearch(self.problem, first + k).ask(1, first + k)]


class Quitter(Wrapped):
    def ask(self, n: int, first: int) -> list[Ask]:
        return super().ask(n, first) if len(self.inner._unseen._seen) < 2 or self.problem.space != Choice(
            "only", ("o0", "o1", "o2")) else []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (TooMany, "more than wanted"),
        (FromZero, "numbered its asks"),
        (Invalid, "not an architecture"),
        (OtherSeed, "seed 99"),
        (Nobody, "who proposed it"),
        (Fidelity, "fidelity 0"),
        (Stalls, "not exhausted"),
        (Ambient, "answered the same calls"),
        (Gate, "changed the"),
        (InOrder, "out of order"),
        (OwnOnly, "not asked"),
        (Complete, "lacks"),
        (Proud, "failed trial"),
        (Endless, "still goes on"),
        (Quitter, "without having asked"),
    ],
)
def test_every_check_can_fail(make: type[Wrapped], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_strategy(make)


def test_the_unbroken_strategy_passes() -> None:
    check_strategy(Wrapped)


def test_replay_that_depends_on_the_process_is_found() -> None:
    class Counting(Wrapped):
        """Correct for the first five instances, wrong from the sixth on: the first to notice is the replay."""

        made = 0

        def __init__(self, problem: Problem, seed: int) -> None:
            super().__init__(problem, seed)
            Counting.made += 1
            self.inner = RandomSearch(problem, seed if Counting.made < 6 else Counting.made)

        def ask(self, n: int, first: int) -> list[Ask]:
            return [Ask(a.number, a.arch, seed=self.seed, by=a.by) for a in super().ask(n, first)]

    with pytest.raises(AssertionError, match="replay: cut after"):
        check_strategy(Counting)


def drain(strategy: RandomSearch, batch: int) -> list[Ask]:
    asks: list[Ask] = []
    while new := strategy.ask(batch, len(asks)):
        asks += new
        strategy.tell([Trial(a, {"error": 0.0}, 0.0) for a in new])
    return asks


@pytest.mark.parametrize("name", ["conditional", "cells"])
@pytest.mark.parametrize("make", [RandomSearch, NSGA2])
def test_every_network_is_asked_exactly_once(name: str, make: Callable[[Problem, int], RandomSearch]) -> None:
    space = example_spaces()[name]
    networks = {key(canonical(space, a)) for a in everything(space)}
    asked = [key(a.arch) for a in drain(make(Problem(space, ONE), 1), 50)]
    assert len(asked) == len(set(asked)) and set(asked) == networks


def test_random_search_does_not_ask_what_others_evaluated() -> None:
    space = example_spaces()["cells"]
    archs = list(everything(space))
    strategy = RandomSearch(Problem(space, ONE), 0)
    strategy.tell([Trial(Ask(k, a), {"error": 0.0}, 0.0) for k, a in enumerate(archs[5:])])
    seen = {key(canonical(space, a)) for a in archs[5:]}
    assert {key(a.arch) for a in strategy.ask(1000, 0)} == {key(canonical(space, a)) for a in archs} - seen
    strategy = RandomSearch(Problem(space, ONE), 0)
    strategy.tell([Trial(Ask(k, a, 0.5), {"error": 0.0}, 0.0) for k, a in enumerate(archs)])
    assert strategy.ask(1, 0)


def test_random_search_does_not_depend_on_the_batch_size() -> None:
    problem = Problem(example_spaces()["conditional"], ONE)
    assert drain(RandomSearch(problem, 2), 1)[:40] == drain(RandomSearch(problem, 2), 40)[:40]
    assert RandomSearch(problem, 2).ask(5, 0) != RandomSearch(problem, 3).ask(5, 0)


def test_random_search_is_uniform() -> None:
    """5000 first asks over 9 architectures: chi-square with 8 degrees of freedom below its 99.9 % quantile."""
    problem = Problem(Product("", [Choice("a", "xyz"), Choice("b", "xyz")]), ONE)
    counts = np.zeros(9)
    for seed in range(5000):
        arch = RandomSearch(problem, seed).ask(1, 0)[0].arch
        counts[3 * arch["a"] + arch["b"]] += 1
    assert ((counts - 5000 / 9) ** 2 / (5000 / 9)).sum() < 26.12


def test_a_large_space_is_drained_to_the_last_architecture() -> None:
    """More architectures than one refill of the scan holds."""
    problem = Problem(Product("", [Choice(f"c{i}", "ab") for i in range(13)]), ONE)
    strategy = RandomSearch(problem, 0)
    assert REST < 2**13
    assert len({key(a.arch) for a in drain(strategy, 512)}) == 2**13


def test_a_space_of_dead_cells_ends() -> None:
    """Far fewer networks than strings: random draws find nothing long before all strings are drawn."""
    space = Cell("", 4, ("none", "skip", "a"), none="none", skip="skip")
    networks = {key(canonical(space, a)) for a in everything(space)}
    assert len(drain(RandomSearch(Problem(space, ONE), 4), 7)) == len(networks) < 3**6


def counted(problem: Problem, strategy: RandomSearch | LocalSearch | RegularizedEvolution, most: int) -> list[Ask]:
    """The asks, one at a time, until all choices are the last option; the error is how many are not."""
    asks: list[Ask] = []
    while len(asks) < most:
        (ask,) = strategy.ask(1, len(asks))
        asks.append(ask)
        wrong = sum(v != 3 for v in ask.arch.values())
        if not wrong:
            break
        strategy.tell([Trial(ask, {"error": float(wrong)}, 0.0)])
    return asks


def test_local_search_walks_downhill() -> None:
    problem = Problem(Product("", [Choice(f"c{k}", "abcd") for k in range(6)]), ONE)
    for seed in range(5):
        asks = counted(problem, LocalSearch(problem, seed, start=1), 200)
        assert len(asks) <= 1 + 6 * 18, "at most six neighbourhoods of eighteen"
        here, best = asks[0].arch, 6
        for ask in asks[1:]:
            assert sum(ask.arch[k] != here[k] for k in here) == 1, "a neighbour of the best"
            wrong = sum(v != 3 for v in ask.arch.values())
            if wrong < sum(v != 3 for v in here.values()):
                here, best = ask.arch, wrong
        assert best == 0


def test_local_search_starts_again_where_nothing_is_better() -> None:
    problem = Problem(Product("", [Choice("a", "abcd"), Choice("b", "abcd"), Choice("c", "abcd")]), ONE)
    strategy, seen = LocalSearch(problem, 0, start=1), list[Ask]()
    for number in range(64):
        (ask,) = strategy.ask(1, number)
        seen.append(ask)
        strategy.tell([Trial(ask, {"error": float(number)}, 0.0)])  # the first is the best
    first = seen[0].arch
    distance = [sum(a.arch[k] != first[k] for k in first) for a in seen]
    assert distance[1:10] == [1] * 9
    assert max(distance) > 1
    assert strategy.ask(1, 64) == []


def test_regularised_evolution_mutates_the_best_of_the_youngest() -> None:
    problem = Problem(Product("", [Choice(f"c{k}", "abcdefgh") for k in range(8)]), ONE)
    strategy = RegularizedEvolution(problem, 0, population=5, sample=5)
    told: list[Ask] = []
    for number in range(40):
        (ask,) = strategy.ask(1, number)
        if number >= 5:
            best = max(told[-5:], key=lambda a: (a.number % 3, a.number))
            assert sum(ask.arch[k] != best.arch[k] for k in best.arch) == 1
        told.append(ask)
        strategy.tell([Trial(ask, {"error": -float(number % 3)}, 0.0)])


def test_informed_strategies_need_fewer_than_random_search() -> None:
    problem = Problem(Product("", [Choice(f"c{k}", "abcd") for k in range(6)]), ONE)
    def median(make: Callable[[Problem, int], RandomSearch | LocalSearch | RegularizedEvolution]) -> float:
        return float(np.median([len(counted(problem, make(problem, seed), 1500)) for seed in range(9)]))

    assert median(LocalSearch) < 100
    assert median(lambda p, s: RegularizedEvolution(p, s, population=20, sample=5)) < 400 < median(RandomSearch)


def test_what_becomes_active_is_inherited_or_random_and_never_the_first_option_alone() -> None:
    lay = layout(example_spaces()["conditional"])
    generator = np.random.default_rng(0)
    small = np.repeat(lay.rows([a for a in everything(example_spaces()["conditional"]) if "width" not in a][:1]), 200, axis=0)
    off = ~lay.active(small)[0]
    filled, _ = completed(lay, small, small, generator)
    assert off.any() and np.array_equal(filled[:, ~off], small[:, ~off])
    assert all(set(filled[:, k]) == set(range(lay.options[k])) for k in np.flatnonzero(off))
    other = np.repeat(lay.rows([a for a in everything(example_spaces()["conditional"]) if lay.active(lay.rows([a])).all()][-1:]),
                      200, axis=0)
    one, two = completed(lay, small, other, generator)
    assert np.array_equal(one[:, off], other[:, off]) and np.array_equal(two, other)


def test_a_mutant_s_new_choices_are_random() -> None:
    """From the two architectures of depth 1, of which every new mutant is of depth 3."""
    deep = Problem(Repeat("stage", Choice("kernel", "35"), (1, 3)), ONE)
    born = list[int]()
    for seed in range(40):
        strategy = RegularizedEvolution(deep, seed, population=2, sample=1, initial=list(islice(everything(deep.space), 2)))
        for number in range(3):
            (ask,) = strategy.ask(1, number)
            strategy.tell([Trial(ask, {"error": 1.0}, 1.0)])
        born += [v for path, v in ask.arch.items() if "kernel" in path][1:]
    assert 0 < np.mean(born) < 1
