"""Elimination against its promise, and a search whose space grows and shrinks: what it drops, and what it says of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats as scipy_stats

from nasopt.analysis.elimination import beaten, bernstein, hoeffding, intervals
from nasopt.benchmarks.synthetic import bad_options
from nasopt.errors import InputError
from nasopt.seed import rng
from nasopt.space import Cell, Choice, Graph, Product, Repeat, canonical, everything, key, labels, layout
from nasopt.spaces import nb201
from nasopt.strategies.catalogue import make
from nasopt.strategies.progressive import Progressive, growth
from nasopt.strategies.random import RandomSearch
from nasopt.testing.strategy import OBJECTIVES, check_end, check_strategy, example_spaces
from nasopt.trial import Ask, Constraint, Objective, Problem, Trial

ONE = (Objective("error"),)
EXACT = {"error": (0.0, 1.0)}


# ------------------------------------------------------------------------------------------------------------ elimination
def test_radii_are_their_formulas() -> None:
    assert hoeffding(50, 16, 0.1) == pytest.approx(math.sqrt(math.log(math.pi**2 / 3 * 16 * 50**2 / 0.1) / 100))
    log = math.log(2 / (3 * 0.1 / (math.pi**2 * 16 * 50**2)))
    assert bernstein(50, 0.04, 16, 0.1) == pytest.approx(math.sqrt(2 * 0.04 * log / 50) + 7 * log / (3 * 49))
    lower, upper = intervals([50, 5000, 5000, 1, 0], [0.5, 0.5, 0.5, 0.5, math.nan], [0.25, 0.25, 1e-4, 9.0, 9.0], 16, 0.1)
    assert upper[0] == 0.5 + hoeffding(50, 16, 0.05) and lower[0] == 0.5 - hoeffding(50, 16, 0.05)
    assert upper[2] == 0.5 + bernstein(5000, 1e-4, 16, 0.05) < upper[1] == 0.5 + hoeffding(5000, 16, 0.05)
    assert (lower[3:] == 0).all() and (upper[3:] == 1).all()
    for delta, arms in ((0.0, 3), (1.0, 3), (0.1, 0)):
        with pytest.raises(InputError, match="give a probability between 0 and 1"):
            intervals(5, 0.5, 0.1, arms, delta)


def test_an_arm_is_beaten_by_one_other_in_every_objective() -> None:
    lower = np.array([[0.1, 0.5], [0.4, 0.6], [0.6, 0.1], [0.5, 0.9], [0.3, 0.5]])
    upper = lower + 0.1
    assert beaten(lower, upper).tolist() == [-1, -1, -1, 0, -1]  # 3 by 0 and by 4; 1 touches 0 in the second objective
    assert beaten(lower[:, :1], upper[:, :1]).tolist() == [-1, 0, 0, 0, 0]
    lower[0] = 0.0, 0.0
    assert beaten(lower, lower + 0.05).tolist() == [-1, 0, 0, 0, 0]


def lost(means: np.ndarray, delta: float, runs: int, rounds: int) -> tuple[int, float]:
    """In how many runs the best Bernoulli arm is ever dropped, and the mean share of the others that are."""
    dropped, share = 0, 0.0
    best, t = int(means.argmin()), np.arange(1, rounds + 1)[:, None]
    for k in range(runs):
        losses = rng(9, k, "bernoulli").random((rounds, len(means))) < means
        mean = losses.cumsum(axis=0) / t
        variance = mean * (1 - mean) * t / np.maximum(t - 1, 1)
        lower, upper = intervals(t, mean, variance, len(means), delta)
        out = (lower > upper.min(axis=1, keepdims=True)).any(axis=0)
        dropped += bool(out[best])
        share += float(out.sum() - out[best]) / (len(means) - 1) / runs
    return dropped, share


def test_the_best_of_16_bernoulli_arms_is_dropped_with_less_than_delta() -> None:
    """Clopper and Pearson's upper limit (95 %) of the rate in 1000 runs is below δ, with rivals that are hardly worse; arms that
    are much worse are found out."""
    close = np.full(16, 0.5)
    close[3] = 0.48
    failures, _ = lost(close, 0.1, 1000, 200)
    assert scipy_stats.beta.ppf(0.95, failures + 1, 1000 - failures) <= 0.1
    failures, share = lost(np.r_[0.1, np.full(15, 0.7)], 0.1, 50, 200)
    assert failures == 0 and share == pytest.approx(1.0)


# ----------------------------------------------------------------------------------------------------------------- growth
def test_growth_begins_with_few_nodes_operations_and_copies() -> None:
    space = Product("", [nb201.CELL, Repeat("stage", Choice("kernel", "357"), (1, 3, 2, 4)), Choice("width", ("8", "16"))])
    small, whole = growth(space, 2)
    assert [label for label in nb201.OPERATIONS if small("cell/0-1", label)] == ["none", "skip_connect", "nor_conv_1x1"]
    for edge in ("cell/0-2", "cell/1-2", "cell/2-3"):  # of the second of two inner nodes
        assert [label for label in nb201.OPERATIONS if small(edge, label)] == ["none"]
    assert [times for times in ("1", "2", "3", "4") if small("stage", times)] == ["1", "2"]
    assert all(small("stage[0]/kernel", k) for k in "357") and small("width", "8") and small("width", "16")
    assert all(whole("cell/1-2", label) for label in nb201.OPERATIONS) and whole("stage", "4")
    assert all(growth(Cell("c", 3, ("a", "b")), 2)[0]("c/0-1", label) for label in "ab")
    with pytest.raises(InputError, match="at least 1"):
        growth(space, 0)


def test_the_search_keeps_to_its_step_and_then_leaves_it() -> None:
    problem = Problem(nb201.SPACE, ONE)
    small = growth(nb201.SPACE, 2)[0]
    first = {key(canonical(problem.space, a)) for a in everything(problem.space)
             if all(small(path, label) for path, label in labels(problem.space, a).items())}
    asks = run(Progressive(problem, 3, draws=12, pilot=2, exploit=0.3), 60, lambda a: Trial(a, {"error": a.number % 7.0}, 0.0))
    inside = [key(a.arch) in first for a in asks]
    assert all(inside[:6]) and sum(inside[20:]) < 5  # draws of networks that are known count, so that 12 draws are fewer asks


# --------------------------------------------------------------------------------------------------------------- strategy
@pytest.mark.parametrize("build", [
    Progressive,
    lambda p, s: Progressive(p, s, steps=[], pilot=2, exploit=0.0),
    lambda p, s: Progressive(p, s, steps=growth(p.space, 3)[:-1], draws=5, delta=0.5),
])
def test_conformance(build: Callable[[Problem, int], Progressive]) -> None:
    for name, space in example_spaces().items():
        if not layout(space).graphs:
            bars = (Constraint("latency_ms", 0.7),) if name == "cells" else ()
            check_strategy(build, Problem(space, OBJECTIVES, bars))
    check_end(build)


def test_graphs_are_refused() -> None:
    with pytest.raises(InputError, match="choose another strategy"):
        Progressive(Problem(Graph("", 4, "ab", 5), ONE))


def switch(options: int = 3, fillers: int = 6) -> Product:
    """One choice that matters and others that make many architectures."""
    return Product("", [Choice("x", "abcdef"[:options]), *[Choice(f"y{k}", "0123") for k in range(fillers)]])


def run(search: Progressive, n: int, measure: Callable[[Ask], Trial], batch: int = 1) -> list[Ask]:
    asks: list[Ask] = []
    while len(asks) < n and (new := search.ask(min(batch, n - len(asks)), len(asks))):
        asks += new
        search.tell([measure(a) for a in new])
    return asks


def noisy(ask: Ask, means: Sequence[float], name: str = "error") -> dict[str, float]:
    """A loss in [0, 1] around the mean of option x."""
    return {name: means[ask.arch["x"]] + 0.1 * float(rng(0, ask.number, name).random() - 0.5)}


def test_an_option_is_dropped_when_the_bounds_say_so_and_not_before() -> None:
    problem, means = Problem(switch(3, 20), ONE), (0.2, 0.9, 0.3)  # so many that none is drawn twice
    search = Progressive(problem, 1, steps=[], bounds=EXACT, exploit=0.0)
    asks, losses = list[Ask](), list[float]()
    while not search.certificate().dropped:
        asks += search.ask(1, len(asks))
        losses.append(noisy(asks[-1], means)["error"])
        search.tell([Trial(asks[-1], {"error": losses[-1]}, 0.0)])

    def bounds(n: int) -> tuple[np.ndarray, np.ndarray]:
        seen = [np.array([v for a, v in zip(asks[:n], losses[:n], strict=True) if a.arch["x"] == k]) for k in range(3)]
        return intervals([len(v) for v in seen], [v.mean() for v in seen], [v.var(ddof=1) for v in seen], 3 + 20 * 4,
                         0.1 * 6 / math.pi**2)

    n = len(asks)
    assert n >= 16 and n & (n - 1) == 0
    lower, upper = bounds(n)
    (gone,) = search.certificate().dropped
    assert (gone.stage, gone.choice, gone.option, gone.by, gone.low, gone.high) == (1, "x", "b", "a", (0.0,), (1.0,))
    assert gone.lower == pytest.approx((lower[1],)) and gone.upper == pytest.approx((upper[0],)) and lower[1] > upper[0]
    lower, upper = bounds(n // 2)
    assert lower[1] <= upper.min()
    assert all(a.arch["x"] != 1 for a in run_on(search, n, 40))


def run_on(search: Progressive, first: int, n: int) -> list[Ask]:
    asks: list[Ask] = []
    for number in range(first, first + n):
        asks += search.ask(1, number)
        search.tell([Trial(asks[-1], {"error": 0.5}, 0.0)])
    return asks


def test_only_what_is_worse_in_every_objective_is_dropped() -> None:
    first, second = (0.05, 0.95, 0.95, 0.35), (0.95, 0.05, 0.95, 0.35)
    both = Problem(switch(4), (Objective("a"), Objective("b")))

    def left(problem: Problem, b: tuple[float, float]) -> tuple[str, ...]:
        search = Progressive(problem, 0, steps=[], bounds={"a": (0.0, 1.0), "b": b}, exploit=0.0)
        run(search, 1500, lambda ask: Trial(ask, noisy(ask, first, "a") | noisy(ask, second, "b"), 0.0))
        return search.certificate().left["x"]

    assert left(both, (0.0, 1.0)) == ("a", "b", "d")  # c is worse than the compromise d in both
    upwards = Problem(switch(4), (Objective("a"), Objective("b", minimise=False)))
    assert "b" not in left(upwards, (1.0, 0.0)) and "c" in left(upwards, (1.0, 0.0))  # c is as good as a in b


@pytest.mark.parametrize("more", [{"gamma": 0.35}, {"delta": 1e-300}])
def test_an_envelope_and_a_small_delta_spare_options(more: dict[str, float]) -> None:
    problem = Problem(switch(), ONE)
    plain, careful = (Progressive(problem, 1, steps=[], bounds=EXACT, **m) for m in ({}, more))
    for search in (plain, careful):
        run(search, 1100, lambda ask: Trial(ask, noisy(ask, (0.2, 0.9, 0.3)), 0.0))
    assert plain.certificate().dropped and not careful.certificate().dropped


def test_failed_and_infeasible_architectures_have_the_largest_loss() -> None:
    problem = Problem(switch(), ONE, (Constraint("memory", 1.0),))

    def measure(ask: Ask) -> Trial:
        if ask.arch["x"] == 1:
            return Trial(ask, {}, 0.0, "out of memory")
        return Trial(ask, {"error": 0.3, "memory": 2.0 if ask.arch["x"] == 2 else 0.5}, 0.0)

    search = Progressive(problem, 1, steps=[], bounds=EXACT)
    run(search, 600, measure)
    assert search.certificate().left["x"] == ("a",)


def test_the_scale_is_that_of_the_pilot() -> None:
    problem = Problem(switch(), ONE)
    search = Progressive(problem, 1, steps=[], pilot=16, exploit=0.0)
    values = list[float]()

    def measure(ask: Ask) -> Trial:
        values.append(100 * noisy(ask, (0.2, 0.9, 0.3))["error"])
        return Trial(ask, {"error": values[-1]}, 0.0)

    run(search, 1100, measure)
    (gone,) = search.certificate().dropped[:1]
    assert (gone.low, gone.high) == ((min(values[:16]),), (max(values[:16]),)) and gone.option == "b"


def test_what_comes_back_late_changes_nothing() -> None:
    problem, means = Problem(switch(), ONE), (0.2, 0.9, 0.3)

    def trial(ask: Ask) -> Trial:
        return Trial(ask, noisy(ask, means), 0.0)

    one, two = (Progressive(problem, 1, steps=[], bounds=EXACT, exploit=0.0) for _ in range(2))
    first = 0
    for _ in range(20):
        asks = one.ask(32, first)
        assert asks == two.ask(32, first)
        first += len(asks)
        one.tell([trial(a) for a in asks])
        for ask in sorted(asks, key=lambda a: noisy(a, means)["error"], reverse=True):
            two.tell([trial(ask)])
    assert one.certificate() == two.certificate() and one.certificate().dropped


def test_the_certificate_is_right_where_all_means_can_be_enumerated() -> None:
    """Every dropped option against the one it was dropped for: the true means over its stage's sub-space."""
    problem = Problem(Product("", [Choice(f"c{k}", "abc") for k in range(6)]), ONE)
    archs, count = list(everything(problem.space)), 0
    for seed in range(6):
        weight = rng(seed, 0, "weights").random((6, 3)) ** 2
        table = {tuple(a.values()): float(np.clip(sum(weight[k, v] for k, v in enumerate(a.values())) / 3, 0, 1)) for a in archs}
        search = Progressive(problem, seed, steps=[], bounds=EXACT, exploit=0.0)
        run(search, 729, lambda ask, table=table: Trial(ask, {"error": table[tuple(ask.arch.values())]}, 0.0))
        certificate = search.certificate()
        for gone in certificate.dropped:
            before = {(d.choice, d.option) for d in certificate.dropped if d.stage < gone.stage}
            inside = [a for a in archs if not before & set(labels(problem.space, a).items())]

            def mean(option: str, inside: list[dict[str, int]] = inside, choice: str = gone.choice,
                     table: dict[tuple[int, ...], float] = table) -> float:
                return float(np.mean([table[tuple(a.values())] for a in inside if "abc"[a[choice]] == option]))

            assert gone.lower[0] <= mean(gone.option) and mean(gone.by) <= gone.upper[0] < gone.lower[0]
            count += 1
    assert count >= 5


def test_the_certificate_says_what_it_says() -> None:
    problem = Problem(switch(), ONE)
    search = Progressive(problem, 1, steps=[], bounds=EXACT, gamma=0.05)
    run(search, 1100, lambda ask: Trial(ask, noisy(ask, (0.1, 0.95, 0.2)), 0.0))
    found = search.certificate()
    text = str(found)
    assert "at least 0.9 each of the 1 dropped options" in text and "gamma = 0.05" in text and "Not said" in text
    assert "nothing is assumed" in str(Progressive(problem).certificate())
    assert found.left["x"] == ("a", "c") and found.stages == 2 and found.draws > 0


def test_bad_options_cost_fewer_queries_than_random_search_pays_for_them() -> None:
    """8,192 architectures, one optimum; the space that is left holds it."""
    toy = bad_options()

    def queries(search: Progressive | RandomSearch) -> int:
        for number in range(8192):
            (ask,) = search.ask(1, number)
            search.tell([Trial(ask, toy(ask), 0.0)])
            if toy(ask)["error"] == 0:
                return number + 1
        raise AssertionError

    searches = [Progressive(toy.problem, seed, steps=[], exploit=0.0) for seed in range(5)]
    needed = [queries(search) for search in searches]
    random = [queries(RandomSearch(toy.problem, seed)) for seed in range(5)]
    assert np.median(needed) < 0.6 * np.median(random)
    long = searches[0]
    long.tell([Trial(ask, toy(ask), 0.0) for ask in long.ask(1500, 8192)])
    left = long.certificate().left
    assert [left[f"vital{k}"] for k in range(3)] == [("good",)] * 3 and all("0" in left[f"minor{k}"] for k in range(5))
    mutants = [queries(Progressive(toy.problem, seed, steps=[], exploit=0.7)) for seed in range(3)]
    assert np.median(mutants) < np.median(needed)


def test_the_search_ends_when_what_is_left_was_evaluated() -> None:
    problem = Problem(nb201.SPACE, ONE)
    small = growth(nb201.SPACE, 2)[0]

    def nothing_new(path: str, label: str) -> bool:
        return small(path, label) and label in ("none", "skip_connect")

    search = Progressive(problem, 0, steps=[nothing_new], draws=10**6, pilot=2)
    asks = run(search, 40, lambda ask: Trial(ask, {"error": 0.5 + 0.01 * (ask.number % 3)}, 0.0), batch=3)
    assert len(asks) == 40  # the first step holds 4 networks: it grew when these were known
    assert make("progressive", problem, 0, [dict.fromkeys(asks[0].arch, 4)]).ask(1, 0)[0].arch == dict.fromkeys(asks[0].arch, 4)


def test_a_step_ends_after_its_draws() -> None:
    space = Repeat("r", Choice("k", [str(v) for v in range(30)]), (1, 2, 3, 4))
    search = Progressive(Problem(space, ONE), 0, draws=12, pilot=2, exploit=0.0)
    copies = [len(a.arch) - 1 for a in run(search, 60, lambda a: Trial(a, {"error": a.number % 7.0}, 0.0))]
    assert max(copies[:12]) == 2 and max(copies[12:30]) == 4


def test_the_last_network_is_found_by_a_scan() -> None:
    problem = Problem(Choice("x", [str(v) for v in range(400)]), ONE)
    assert len(run(Progressive(problem, 0, exploit=0.0), 500, lambda a: Trial(a, {"error": 0.5}, 0.0))) == 400


@pytest.mark.parametrize(("more", "match"), [
    ({"draws": 0}, "at least 1 draw"), ({"pilot": 1}, "2 for the pilot"), ({"delta": 1.0}, "below 1"),
    ({"exploit": 1.0}, "below 1"), ({"gamma": -0.1}, "below 1"), ({"bounds": {}}, "lack the objective 'error'"),
    ({"bounds": {"error": (1.0, 0.0)}}, "best value first"), ({"steps": [lambda path, label: False]}, "admits no option"),
    ({"steps": [lambda path, label: label != "a", lambda path, label: label != "b"]}, "sub-spaces that grow")])
def test_bad_input(more: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Progressive(Problem(switch(), ONE), **more)  # type: ignore[arg-type]
