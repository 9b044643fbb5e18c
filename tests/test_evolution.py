"""NSGA-II: its parts by hand, its run times against the theorems, and what the strategy promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nasopt.benchmarks.synthetic import Synthetic, dtlz2, lotz, one_min_max
from nasopt.errors import InputError
from nasopt.space import Choice, Product, Repeat, layout, sample
from nasopt.strategies.evolution import (
    NSGA2,
    CrossoverMutation,
    Evolution,
    Pool,
    balanced,
    plain,
    tournament,
    uniform_mating,
)
from nasopt.testing.strategy import example_spaces
from nasopt.trial import Ask, Constraint, Objective, Problem, Trial

BITS = Problem(Product("", [Choice(f"b{i}", "01") for i in range(8)]), (Objective("a"), Objective("b")))


def pool(values: list[list[float]], violation: list[float] | None = None) -> Pool:
    n = len(values)
    return Pool(np.zeros((n, 1), dtype=np.int64), np.array(values, dtype=float),
                np.zeros(n) if violation is None else np.array(violation), np.arange(n))


def generation(strategy: Evolution, s: Synthetic, first: int) -> int:
    asks = strategy.ask(10**6, first)
    strategy.tell([Trial(a, m, 0.0) for a, m in zip(asks, s.metrics([a.arch for a in asks]), strict=True)])
    return len(asks)


def generations_to_the_front(s: Synthetic, strategy: Evolution, limit: int) -> int | None:
    first = 0
    for k in range(limit):
        first += generation(strategy, s, first)
        if s.found(strategy.pool.values) == len(s.front):
            return k + 1
    return None


# ------------------------------------------------------------------------------------------------------- run times
@pytest.mark.parametrize(
    ("make", "n", "scale", "limit"),
    [
        (one_min_max, 8, 8 * np.log(8), 2.0),
        (one_min_max, 14, 14 * np.log(14), 2.0),
        (lotz, 8, 64, 0.6),
        (lotz, 14, 196, 0.6),
    ],
)
def test_run_time(make: Callable[[int], Synthetic], n: int, scale: float, limit: float) -> None:
    """O(N n log n) on OneMinMax and O(N n^2) on LOTZ for N >= 4(n+1) (Zheng, Liu & Doerr, AAAI 2022): 20 seeds."""
    s = make(n)
    size = 4 * (n + 1)
    for seed in range(20):
        strategy = NSGA2(s.problem, seed, size, immigrants=0, repeat=True)
        count = generations_to_the_front(s, strategy, int(limit * scale) + 1)
        assert count is not None and count * size / (size * scale) <= limit, (seed, count)


@pytest.mark.parametrize("seed", range(3))
def test_balanced_ties_find_the_front_of_three_objectives(seed: int) -> None:
    s = one_min_max(20, 3)
    strategy = NSGA2(s.problem, seed, 4 * len(s.front), immigrants=0, repeat=True)
    assert generations_to_the_front(s, strategy, 60) is not None


def test_without_balanced_ties_it_is_missed() -> None:
    s = one_min_max(20, 3)
    strategy = NSGA2(s.problem, 0, 4 * len(s.front), survival=plain, immigrants=0, repeat=True)
    assert generations_to_the_front(s, strategy, 60) is None
    assert s.found(strategy.pool.values) < 0.9 * len(s.front)


# ----------------------------------------------------------------------------------------------------------- parts
def test_survival_by_hand() -> None:
    """Ranks 0: rows 0-3 (of which 1 and 2 lie inside), rank 1: row 4, infeasible: row 5, failed: row 6."""
    some = pool([[0, 10], [2, 6], [3, 5], [10, 0], [20, 20], [-1, -1], [-9, -9]], [0, 0, 0, 0, 0, 0.5, np.inf])
    for part in (balanced, plain):
        orders = [part(some, k, np.random.default_rng(0)).tolist() for k in range(1, 8)]
        assert set(orders[0]) < {0, 3} and set(orders[1]) == {0, 3} and set(orders[2]) == {0, 2, 3}
        assert set(orders[3]) == {0, 1, 2, 3} and orders[4][4] == 4 and orders[5][5] == 5 and orders[6][6] == 6
        assert len(part(some, 50, np.random.default_rng(0))) == 7


@pytest.mark.parametrize("seed", range(20))
def test_balanced_survival_is_as_even_as_possible(seed: int) -> None:
    """Against the definition, one survivor at a time: of those that tie, always one of the least represented vector."""
    rng = np.random.default_rng(seed)
    points = np.array([[k, 9 - k] for k in range(10)])[rng.choice(10, 60, p=np.array([46] + [6] * 9) / 100)]
    some = pool(points.tolist())
    border = np.sort(some.crowding)[::-1][29]
    counts = Counter(points[some.crowding > border, 0].tolist())
    left = Counter(points[some.crowding == border, 0].tolist())
    while counts.total() < 30:
        least = min((k for k in left if left[k]), key=lambda k: counts[k])
        counts[least] += 1
        left[least] -= 1
    kept = Counter(points[balanced(some, 30, rng), 0].tolist())
    assert sorted(kept.values()) == sorted(counts.values()) and border == 0 and set(kept) == set(points[:, 0].tolist())


def test_plain_survival_is_not_even() -> None:
    points = [[0, 9]] * 50 + [[k, 9 - k] for k in range(1, 9) for _ in range(4)] + [[9, 0]] * 4
    some = pool(points)
    even = [len({tuple(v) for v in some.values[balanced(some, 20, np.random.default_rng(s))]}) for s in range(20)]
    odd = [max(Counter(some.values[plain(some, 30, np.random.default_rng(s)), 0].tolist()).values()) for s in range(20)]
    flat = [
        max(Counter(some.values[balanced(some, 30, np.random.default_rng(s)), 0].tolist()).values()) for s in range(20)
    ]
    assert min(even) == 10 and max(flat) == 3 < np.mean(odd)


def test_tournament_prefers_the_better_and_is_uniform_in_ties() -> None:
    some = pool([[0, 0], [1, 1], [2, 2], [0, 0]], [0, 0, 0, 1])
    parents = tournament(some, 40_000, np.random.default_rng(0))
    assert parents.shape == (40_000, 2)
    share = np.bincount(parents.ravel(), minlength=4) / 80_000
    assert np.allclose(share, [7 / 16, 5 / 16, 3 / 16, 1 / 16], atol=0.01)  # P(best of two draws), 4 in strict order
    equal = np.bincount(tournament(pool([[0, 0]] * 4), 40_000, np.random.default_rng(1)).ravel()) / 80_000
    assert equal[[1, 2]].max() < equal[[0, 3]].min()  # the two ends of a front of equals are infinitely uncrowded
    any_of = np.bincount(uniform_mating(some, 40_000, np.random.default_rng(2)).ravel()) / 80_000
    assert np.allclose(any_of, 1 / 4, atol=0.01)


def test_variation() -> None:
    lay = layout(Product("", [Choice(f"c{k}", "wxyz") for k in range(20)]))
    a, b = np.zeros((4000, 20), dtype=np.int64), np.full((4000, 20), 3)
    rng = np.random.default_rng(0)
    assert ((CrossoverMutation(0.0)(lay, a, b, rng) != 0).sum(axis=1)).mean() < 1.5
    both = CrossoverMutation(1.0)(lay, a, b, rng)
    changed = (1 + (1 - 1 / 20) ** 20) / 20  # share of columns mutated, to 3 in a third of the cases
    assert abs((both == 3).mean() - ((1 - changed) / 2 + changed / 2 / 3)) < 0.01
    half = (CrossoverMutation(0.5)(lay, a, b, rng) == 3).sum(axis=1)
    assert abs((half > 3).mean() - 0.5) < 0.03
    assert (CrossoverMutation(0.0, rate=1.0)(lay, a, b, rng) != 0).all()


# -------------------------------------------------------------------------------------------------------- strategy
def tell_all(strategy: Evolution, asks: list[Ask], metrics: Callable[[Ask], dict[str, float]], **extra: Any) -> None:
    strategy.tell([Trial(a, metrics(a), 0.0, **extra) for a in asks])


def ones(ask: Ask) -> dict[str, float]:
    count = sum(ask.arch.values())
    return {"a": float(count), "b": float(8 - count)}


def test_a_generation_is_bred_when_the_last_of_it_is_told() -> None:
    strategy = NSGA2(BITS, 0, population=10)
    asks = strategy.ask(4, 0) + strategy.ask(4, 4)
    tell_all(strategy, asks[:5], ones)
    rest = strategy.ask(4, 8)
    assert len(rest) == 2 and strategy.ask(1, 10) == []
    tell_all(strategy, asks[5:], ones)
    assert strategy.ask(1, 10) == [] and len(strategy.pool) == 0
    tell_all(strategy, rest, ones)
    assert len(strategy.pool) == 10 and len(strategy.ask(99, 10)) == 10


def test_the_order_within_a_generation_does_not_matter() -> None:
    one, two = NSGA2(BITS, 5, population=12), NSGA2(BITS, 5, population=12)
    for _ in range(3):
        asks = one.ask(12, 0)
        assert asks == two.ask(12, 0)
        tell_all(one, asks, ones)
        for ask in reversed(asks):
            tell_all(two, [ask], ones)
    assert one.ask(12, 0) == two.ask(12, 0) != NSGA2(BITS, 6, population=12).ask(12, 0)


def test_initial_architectures_come_first() -> None:
    initial = [sample(BITS.space, np.random.default_rng(k)) for k in range(5)]
    strategy = NSGA2(BITS, 0, population=8, initial=[*initial, initial[0]])
    asks = strategy.ask(20, 0)
    assert [dict(a.arch) for a in asks[:5]] == initial and len(asks) == 8
    assert len(NSGA2(BITS, 0, population=3, initial=initial).ask(20, 0)) == 5
    again = NSGA2(BITS, 0, population=8, initial=[initial[0], initial[0]], repeat=True).ask(20, 0)
    assert again[0].arch == again[1].arch and len(again) == 8


def test_nothing_is_asked_twice_unless_wanted() -> None:
    def keys(strategy: Evolution) -> list[tuple[int, ...]]:
        out = []
        for _ in range(20):
            asks = strategy.ask(100, len(out))
            out += [tuple(a.arch.values()) for a in asks]
            tell_all(strategy, asks, ones)
        return out

    once, often = keys(NSGA2(BITS, 0, population=20)), keys(NSGA2(BITS, 0, population=20, repeat=True))
    assert len(once) == len(set(once)) == 256 and len(often) == 400 > len(set(often))


def test_it_learns_from_others() -> None:
    strategy = NSGA2(BITS, 0, population=10, immigrants=0, variation=CrossoverMutation(0.0))
    arch = dict.fromkeys((f"b{i}" for i in range(8)), 1)
    strategy.tell([Trial(Ask(900, arch), {"a": -1.0, "b": -1.0}, 0.0)])
    asks = strategy.ask(10, 0)
    assert sum(sum(a.arch.values()) for a in asks) > 55 and all(a.arch != arch for a in asks)
    tell_all(strategy, asks, ones)
    assert [-1, -1] in strategy.pool.values.tolist()
    cheap = NSGA2(BITS, 0, population=10)
    cheap.tell([Trial(Ask(900, arch, 0.5), {"a": -1.0, "b": -1.0}, 0.0)])
    assert len(cheap.pool) == 0


def test_constraints_and_failures_rank_behind() -> None:
    problem = replace(BITS, constraints=(Constraint("mb", 2.0),))
    strategy = NSGA2(problem, 0, population=4)
    a, b, c, d = strategy.ask(4, 0)
    strategy.tell(
        [
            Trial(a, {"mb": 3.0}, 0.0),
            Trial(b, {"mb": 9.0}, 0.0),
            Trial(c, {"a": 5.0, "b": 5.0, "mb": 1.0}, 0.0),
            Trial(d, {"a": 0.0, "b": 0.0, "mb": 1.0}, 0.0, "timeout"),
        ]
    )
    assert dict(zip(strategy.pool.age.tolist(), strategy.pool.violation.tolist(), strict=True)) == {
        0: 0.5, 1: 3.5, 2: 0.0, 3: np.inf}
    assert strategy.pool.rank[np.argsort(strategy.pool.age)].tolist() == [1, 2, 0, 3]
    asks = strategy.ask(4, 4)
    strategy.tell([Trial(k, {"a": 1.0, "b": float("nan"), "mb": 1.0}, 0.0) for k in asks])
    assert set(strategy.pool.age.tolist()) >= {0, 1, 2}


def test_a_feasible_region_is_found() -> None:
    """Seven of 1e6 architectures are feasible; the violation leads there."""
    space = Product("", [Choice(f"c{k}", [str(v) for v in range(10)]) for k in range(6)])
    problem = Problem(space, (Objective("a"), Objective("b")), (Constraint("sum", 1.0),))
    strategy = NSGA2(problem, 0, population=40)
    for k in range(40):
        asks = strategy.ask(40, 40 * k)
        tell_all(
            strategy,
            asks,
            lambda a: {"sum": float(sum(a.arch.values())), "a": float(a.arch["c0"]), "b": -float(a.arch["c0"])},
        )
    assert (strategy.pool.violation == 0).sum() >= 7


def test_immigrants_are_uniform() -> None:
    """With immigrants=1 children do not look like their parents; with 0 and mutation alone they do."""
    space = Product("", [Choice(f"b{i}", "01") for i in range(40)])
    problem = Problem(space, (Objective("a"),))
    means = []
    for immigrants in (0.0, 1.0):
        strategy = NSGA2(problem, 0, population=20, immigrants=immigrants, variation=CrossoverMutation(0.0),
                         initial=[{f"b{i}": 0 for i in range(40)}])
        strategy.tell([Trial(Ask(k, {f"b{i}": int(i == k) for i in range(40)}), {"a": 0.0}, 0.0) for k in range(20)])
        strategy.ask(1, 100)
        means.append(np.mean([sum(a.arch.values()) for a in strategy.ask(19, 101)]))
    assert means[0] < 5 and 17 < means[1] < 23


def test_choices_that_become_active_are_not_always_the_first() -> None:
    space = Product("", [Repeat("s", Choice("w", "abcdefgh"), (1, 9))])
    strategy = NSGA2(Problem(space, (Objective("a"),)), 0, population=60, immigrants=0)
    strategy.tell([Trial(Ask(k, {"s": 0, "s[0]/w": k}), {"a": 0.0}, 0.0) for k in range(8)])
    long = [list(a.arch.values())[2:] for a in strategy.ask(60, 8) if a.arch["s"] == 1]
    assert len(long) > 5 and np.mean(np.array(long) == 0) < 0.3  # inherited zeros, mutated half of the time, give 0.5


def test_it_beats_random_search_where_it_should() -> None:
    s = dtlz2(8, 11)
    strategy, total = NSGA2(s.problem, 1), 0
    while total < 6000:
        total += generation(strategy, s, total)
    best = np.linalg.norm(strategy.pool.values, axis=1)
    rows = layout(s.problem.space).random(np.random.default_rng(0), 6000)
    assert np.median(best) < np.quantile(np.linalg.norm(s.measure(rows), axis=1), 0.01)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"population": 1}, "population"),
        ({"immigrants": 1.5}, "immigrants"),
        ({"initial": [{"b0": 1}]}, "initial architecture 0"),
    ],
)
def test_bad_arguments_are_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NSGA2(BITS, 0, **extra)


def test_cells_are_asked_in_canonical_form() -> None:
    from nasopt.space import canonical

    space = example_spaces()["cells"]
    strategy = NSGA2(Problem(space, (Objective("a"),)), 0, population=30)
    for k in range(3):
        asks = strategy.ask(30, 30 * k)
        assert all(canonical(space, a.arch) == a.arch for a in asks)
        tell_all(strategy, asks, lambda a: {"a": float(sum(a.arch.values()))})
