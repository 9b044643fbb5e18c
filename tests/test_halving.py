"""Multi-fidelity strategies: the published algorithms step by step, what counts as a result, and what little effort is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from nasopt import bench
from nasopt.analysis.hypervolume import hypervolume
from nasopt.benchmarks.synthetic import LowFidelity, dtlz2
from nasopt.benchmarks.tables import Column, Fidelities, Table
from nasopt.errors import InputError
from nasopt.pipeline.finals import nothing_found
from nasopt.protocols import Strategy
from nasopt.seed import rng
from nasopt.space import Choice, Product, everything, key, sample
from nasopt.strategies.catalogue import make
from nasopt.strategies.evolution import NSGA2
from nasopt.strategies.halving import ASHA, THIRDS, Bracket, Halving, Hyperband, SuccessiveHalving
from nasopt.strategies.random import RandomSearch
from nasopt.testing.strategy import check_strategy
from nasopt.trial import Ask, Constraint, Objective, Problem, Study, Trial

ONE = (Objective("error"),)
DIGITS = Problem(Product("", [Choice(f"d{k}", [str(v) for v in range(10)]) for k in range(4)]), ONE)
LINE = Problem(Choice("x", [str(v) for v in range(200)]), ONE)


def loss(ask: Ask) -> float:
    """A number in [0, 1) without ties that depends on the architecture alone."""
    return int(key(ask.arch), 16) / 2**64


def trial(ask: Ask, **metrics: float) -> Trial:
    return Trial(ask, metrics or {"error": loss(ask)}, 1.0)


def run(strategy: Strategy, n: int) -> list[Ask]:
    """Asks one by one and tells each at once."""
    asks: list[Ask] = []
    for number in range(n):
        asks += strategy.ask(1, number)
        strategy.tell([trial(asks[-1])])
    return asks


@pytest.mark.parametrize("build", [
    ASHA, Hyperband, SuccessiveHalving,
    lambda p, s: ASHA(p, s, fidelities=(1.0,)),
    lambda p, s: SuccessiveHalving(p, s, width=5, eta=2, fidelities=(0.25, 0.5, 1.0)),
    lambda p, s: ASHA(p, s, eta=2, sampler=lambda problem, seed, initial: NSGA2(problem, seed, population=6, initial=initial)),
])
def test_conformance(build: Callable[[Problem, int], Strategy]) -> None:
    check_strategy(build)


# ------------------------------------------------------------------------------------------------------ the algorithms
def published_asha(losses: Callable[[int], float], n: int, rungs: int, eta: int) -> list[tuple[int, int]]:
    """Algorithm 2 of Li et al. (2020) on configurations 0, 1, 2, ...: (configuration, rung) of n jobs, one after the other."""
    done: list[list[int]] = [[] for _ in range(rungs)]
    jobs: list[tuple[int, int]] = []
    for _ in range(n):
        for k in reversed(range(rungs - 1)):
            top = sorted(done[k], key=losses)[:len(done[k]) // eta]
            promotable = [c for c in top if c not in done[k + 1]]
            if promotable:
                jobs.append((promotable[0], k + 1))
                break
        else:
            jobs.append((len(done[0]), 0))
        done[jobs[-1][1]].append(jobs[-1][0])
    return jobs


@pytest.mark.parametrize(("eta", "fidelities"), [(3, THIRDS), (2, (0.1, 0.2, 0.5, 1.0)), (4, (0.06, 1.0))])
def test_asha_is_the_published_algorithm(eta: int, fidelities: tuple[float, ...]) -> None:
    asks = run(ASHA(DIGITS, 1, eta=eta, fidelities=fidelities), 120)
    order = [key(a.arch) for a in asks if a.fidelity == fidelities[0]]
    values = {key(a.arch): loss(a) for a in asks}
    expected = published_asha(lambda c: values[order[c]], 120, len(fidelities), eta)
    assert [(order.index(key(a.arch)), fidelities.index(a.fidelity)) for a in asks] == expected
    assert {k for _, k in expected} == set(range(len(fidelities)))


def test_successive_halving_halves_by_rank() -> None:
    asks = run(SuccessiveHalving(DIGITS, 2, width=9), 26)
    assert [a.fidelity for a in asks] == [1 / 9] * 9 + [1 / 3] * 3 + [1.0] + [1 / 9] * 9 + [1 / 3] * 3 + [1.0]
    best = sorted(asks[:9], key=loss)
    assert [a.arch for a in asks[9:12]] == [a.arch for a in best[:3]]
    assert asks[12].arch == best[0].arch


def test_successive_halving_waits_for_its_rung_and_no_order_of_telling_changes_it() -> None:
    one, two = (SuccessiveHalving(DIGITS, 2, width=9) for _ in range(2))
    asks = one.ask(30, 0)
    assert asks == two.ask(30, 0) and len(asks) == 9

    def tied(ask: Ask) -> Trial:
        return trial(ask, error=float(ask.number % 2))

    one.tell([tied(a) for a in asks[:-1]])
    assert one.ask(1, 9) == []
    one.tell([tied(asks[-1])])
    for ask in sorted(asks, key=lambda a: (2 * a.number + 4) % 9):
        two.tell([tied(ask)])
    assert one.ask(30, 9) == two.ask(30, 9) != []


def test_hyperband_begins_at_every_fidelity_in_turn() -> None:
    """R = 9 and eta = 3 of the paper's table: 9 at 1/9, 5 at 1/3, 3 at 1."""
    asks = run(Hyperband(DIGITS, 0), 2 * 22)
    brackets = [[1 / 9] * 9, [1 / 3] * 3, [1.0], [1 / 3] * 5, [1.0], [1.0] * 3]
    assert [a.fidelity for a in asks] == 2 * [f for part in brackets for f in part]


def test_several_objectives_go_by_rank_then_by_crowding_and_constraints_before_both() -> None:
    problem = Problem(LINE.space, (Objective("a"), Objective("b")), (Constraint("c", 1.0),))
    points = [(0.0, 9.0, 0.0), (1.0, 8.0, 0.0), (5.0, 4.0, 0.0), (9.0, 0.0, 0.0), (9.0, 9.0, 0.0), (-9.0, -9.0, 2.0)]
    strategy = SuccessiveHalving(problem, 0, width=6, eta=2, fidelities=(0.5, 1.0))
    asks = strategy.ask(6, 0)
    strategy.tell([trial(a, a=x, b=y, c=z) for a, (x, y, z) in zip(asks, points, strict=True)])
    assert [a.arch for a in strategy.ask(9, 6)] == [asks[k].arch for k in (0, 3, 2)]  # both ends, then the less crowded one


def test_what_failed_does_not_go_on() -> None:
    strategy = SuccessiveHalving(LINE, 0, width=9)
    asks = strategy.ask(9, 0)
    strategy.tell([trial(a) if a.number < 2 else Trial(a, {}, 1.0, "out of memory") for a in asks])
    assert {key(a.arch) for a in strategy.ask(9, 9)} == {key(a.arch) for a in asks[:2]}
    strategy = SuccessiveHalving(LINE, 0, width=9)
    strategy.tell([Trial(a, {}, 1.0, "out of memory") for a in strategy.ask(9, 0)])
    assert [a.fidelity for a in strategy.ask(9, 9)] == [1 / 9] * 9


def test_what_others_have_evaluated_in_full_is_not_evaluated_again() -> None:
    strategy = SuccessiveHalving(LINE, 0, width=9)
    asks = strategy.ask(9, 0)
    strategy.tell([trial(a) for a in asks])
    best = sorted(asks, key=loss)
    strategy.tell([trial(Ask(1000, best[0].arch, 1.0, 0, "stranger")), trial(Ask(1001, {"x": 199}, 1.0, 0, "stranger"))])
    later = run_on(strategy, 9, 150)
    assert [a.arch for a in later[:2]] == [a.arch for a in best[1:3]]
    assert all(a.arch != best[0].arch and a.arch != {"x": 199} for a in later)


def run_on(strategy: Strategy, first: int, n: int) -> list[Ask]:
    asks: list[Ask] = []
    for number in range(first, first + n):
        asks += strategy.ask(1, number)
        strategy.tell([trial(asks[-1])])
    return asks


@pytest.mark.parametrize("build", [ASHA, Hyperband, SuccessiveHalving])
def test_the_search_ends_when_every_network_was_evaluated_in_full(build: Callable[..., Halving]) -> None:
    problem = Problem(Product("", [Choice("a", "wxyz"), Choice("b", "vwxyz")]), ONE)
    strategy, asks = build(problem, 4), list[Ask]()
    while new := strategy.ask(3, len(asks)):
        strategy.tell([trial(a) for a in new])
        asks += new
    count = Counter((key(a.arch), a.fidelity) for a in asks)
    assert max(count.values()) == 1
    assert {name for name, fidelity in count if fidelity == 1} == {key(a) for a in everything(problem.space)}


def test_initial_architectures_and_the_sampler_are_the_first() -> None:
    first = [{"x": 7}, {"x": 3}]
    for name in ("asha", "hyperband"):
        assert [a.arch for a in make(name, LINE, 0, first).ask(2, 0)] == first

    class Backwards:
        def __init__(self, problem: Problem, seed: int, initial: Sequence[Any]) -> None:
            self.next, self.told = 200, list[Trial]()

        def ask(self, n: int, first: int) -> list[Ask]:
            self.next -= 1
            return [Ask(first, {"x": self.next}, 1.0, 0, "backwards")]

        def tell(self, trials: Sequence[Trial]) -> None:
            self.told += trials

    samplers = list[Backwards]()
    strategy = ASHA(LINE, sampler=lambda p, s, i: samplers.append(Backwards(p, s, i)) or samplers[0])
    asks = run(strategy, 4)
    assert [a.arch["x"] for a in asks[:3]] == [199, 198, 197] and asks[3].fidelity == 1 / 3
    assert [t.ask for t in samplers[0].told] == asks


@pytest.mark.parametrize(("build", "match"), [
    (lambda: ASHA(LINE, eta=1.5), "eta is 1.5"), (lambda: ASHA(LINE, fidelities=(0.5, 0.2, 1.0)), "must rise"),
    (lambda: ASHA(LINE, fidelities=(0.5,)), "must rise"), (lambda: ASHA(LINE, fidelities=()), "must rise"),
    (lambda: ASHA(LINE, fidelities=(0.0, 1.0)), "must rise"), (lambda: SuccessiveHalving(LINE, width=0), "is empty"),
    (lambda: Bracket((0.5, 2.0)), "must rise"), (lambda: LowFidelity(dtlz2(), -1.0, 0.0), "standard deviations")])
def test_bad_input(build: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        build()


# ------------------------------------------------------------------------------------------------- what counts as found
def test_only_full_fidelity_is_a_result() -> None:
    arch = {"x": 0}
    trials = (trial(Ask(0, arch, 1 / 3), error=0.1), trial(Ask(1, {"x": 1}, 1.0), error=0.3), trial(Ask(2, arch, 1.0), error=0.2))
    study = Study(LINE, trials)
    assert [t.ask.number for t in study.feasible()] == [1, 2]
    assert [t.ask.number for t in study.front()] == [2]
    record = {"trials": [{"fidelity": t.ask.fidelity, "metrics": t.metrics} for t in trials]}
    assert bench.values(LINE, record).tolist() == [[np.inf], [0.3], [0.2]]


def test_a_search_that_ended_below_full_fidelity_still_has_its_best() -> None:
    """Of the highest fidelity that anything feasible had; a failed trial of a higher one does not count."""
    failed = replace(trial(Ask(3, {"x": 3}, 0.9)), error="out of memory")
    low = (trial(Ask(0, {"x": 0}, 1 / 9), error=0.1), trial(Ask(1, {"x": 1}, 1 / 3), error=0.3),
           trial(Ask(2, {"x": 2}, 1 / 3), error=0.2), failed)
    assert Study(LINE, low).front() == []
    assert [t.ask.number for t in Study(LINE, low).promoted().front()] == [2]
    assert [t.ask.number for t in Study(LINE, low[:1]).promoted().front()] == [0]
    assert Study(LINE, ()).promoted().front() == []
    broken = Study(LINE, (failed, replace(low[0], error="out of memory"))).promoted()
    assert len(broken.trials) == 2 and nothing_found(broken) == "all 2 trials failed, most often with: out of memory"
    dear = replace(LINE, constraints=(Constraint("step_ms", 1.0, "ms"),))
    assert nothing_found(Study(dear, (trial(Ask(0, {"x": 0}), step_ms=3.0),))) == (
        "none of 1 architectures can be trained in the time that is left: give more time.")


def test_low_fidelity_is_wrong_as_stated_and_full_fidelity_exact() -> None:
    exact = dtlz2()
    archs = [sample(exact.problem.space, rng(0, k, "test")) for k in range(400)]

    def errors(bias: float, noise: float, fidelity: float, shift: int = 0) -> np.ndarray:
        low = LowFidelity(exact, bias, noise)
        return np.array([[low(a := Ask(k + shift, arch, fidelity))[name] - exact(a)[name] for name in ("f0", "f1", "f2")]
                         for k, arch in enumerate(archs)])

    assert not errors(0.3, 0.4, 1.0).any()
    assert errors(0.3, 0.4, 0.25).std() == pytest.approx(0.75 * 0.5, rel=0.1)
    assert np.array_equal(errors(0.3, 0.0, 0.25), errors(0.3, 0.0, 0.25, shift=1000))
    assert abs(np.corrcoef(errors(0.0, 0.4, 0.25).ravel(), errors(0.0, 0.4, 0.25, shift=1000).ravel())[0, 1]) < 0.1


def test_a_tables_columns_are_fidelities() -> None:
    space = Choice("x", "abc")
    columns = {"short": Column(np.array([1.0, 2.0, 3.0])), "long": Column(np.array([4.0, np.nan, 6.0]))}
    table = Table("toy", space, np.array([[0], [1], [2]]), columns)
    look = Fidelities(table, {"error": {0.1: "short", 1.0: "long"}})
    assert [look(Ask(0, {"x": 2}, f)) for f in (0.1, 0.9, 1.0)] == [{"error": 3.0}, {"error": 3.0}, {"error": 6.0}]
    assert look(Ask(0, {"x": 1}, 1.0)) == {}
    with pytest.raises(InputError, match=r"ask for 0.1 or more"):
        look(Ask(0, {"x": 1}, 0.05))
    for levels in ({0.1: "short"}, {1.0: "long", 2.0: "short"}):
        with pytest.raises(InputError, match="one of 1"):
            Fidelities(table, {"error": levels})
    with pytest.raises(InputError, match="did you mean 'long'"):
        Fidelities(table, {"error": {1.0: "lon"}})


def volume(strategy: Strategy, low: LowFidelity, cost: float) -> float:
    """The hypervolume that full fidelity found at a cost, the sum of all fidelities."""
    spent, number, found = 0.0, 0, list[list[float]]()
    while True:
        (ask,) = strategy.ask(1, number)
        spent, number = spent + ask.fidelity, number + 1
        if spent > cost + 1e-9:
            return hypervolume(found, np.full(3, 2.5))
        answer = Trial(ask, low(ask), 0.0)
        strategy.tell([answer])
        if low.exact.problem.accepts(answer):
            found.append(low.exact.problem.values(answer.metrics))


def test_asha_finds_more_than_random_search_at_equal_cost() -> None:
    low = LowFidelity(dtlz2(), 0.15, 0.15)
    pairs = np.array([[volume(ASHA(low.exact.problem, seed), low, 60.0), volume(RandomSearch(low.exact.problem, seed), low, 60.0)]
                      for seed in range(20)])
    assert scipy_stats.wilcoxon(pairs[:, 0] - pairs[:, 1], alternative="greater").pvalue < 0.01


def test_the_command_line_knows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nasopt import cli

    assert cli.main(["bench", "lotz", "--strategy", "asha,hyperband", "--queries", "40", "--seeds", "2", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "asha" in shown and "hyperband" in shown
