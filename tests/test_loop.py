"""The loop: replay after every possible interruption, budgets, the [] protocol, order, failing candidates."""

from __future__ import annotations

import hashlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nasopt.benchmarks.synthetic import one_min_max
from nasopt.errors import InputError
from nasopt.protocols import Estimator, Event, Strategy
from nasopt.run.executors import Processes, Serial
from nasopt.run.search import EXHAUSTED, INTERRUPTED, Budget, Progress, load, search
from nasopt.run.storage import Memory, Sqlite
from nasopt.seed import rng
from nasopt.space import Choice, Product, everything, key, sample
from nasopt.strategies.evolution import NSGA2
from nasopt.testing.executor import CASES, ISOLATED, Candidates
from nasopt.trial import Ask, Constraint, Metrics, Objective, Problem, Study, Trial

SPACE = Product("", [Choice(f"c{k}", "abcd") for k in range(5)])
PROBLEM = Problem(SPACE, (Objective("error"), Objective("latency_ms", "ms")), (Constraint("params", 0.9),))


class Chaotic:
    """Every proposal depends on everything that was asked and told before, in its order: any slip of a replay shows.

    Answers [] while `most` of its asks are pending.
    """

    def __init__(self, seed: int = 0, most: int = 8, name: str = "chaotic") -> None:
        self.seed, self.most, self.name = seed, most, name
        self.digest = ""
        self.pending: set[int] = set()

    def _stir(self, *what: object) -> None:
        self.digest = hashlib.blake2b(f"{self.digest}{what}".encode(), digest_size=8).hexdigest()

    def ask(self, n: int, first: int) -> list[Ask]:
        n = min(n, self.most - len(self.pending))
        if n < 1:
            return []
        self._stir(n, first)
        asks = [Ask(first + k, sample(SPACE, rng(self.seed, first + k, self.digest)), 1.0, self.seed, self.name)
                for k in range(n)]
        self.pending.update(a.number for a in asks)
        return asks

    def tell(self, trials: Sequence[Trial]) -> None:
        for t in trials:
            self._stir(t.ask, sorted(t.metrics.items()), t.error)
            self.pending.discard(t.ask.number)


class Everything:
    """All architectures of a space, once."""

    def __init__(self, problem: Problem) -> None:
        self.rest = list(everything(problem.space))

    def ask(self, n: int, first: int) -> list[Ask]:
        archs, self.rest = self.rest[:n], self.rest[n:]
        return [Ask(first + k, arch) for k, arch in enumerate(archs)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learns nothing."""


def estimate(ask: Ask, /) -> Metrics:
    """Noisy metrics; some candidates fail, some are infeasible and not measured further."""
    generator = rng(ask.seed, ask.number, key(ask.arch))
    params, error, latency = generator.random(3).tolist()
    if error > 0.9:
        raise ValueError("diverged")
    if error > 0.85:
        return {"params": params, "error": math.nan}
    return {"params": params} if params > 0.9 else {"params": params, "error": error, "latency_ms": latency}


def timeless(events: Sequence[Event]) -> list[Event]:
    """Events without what a clock measured."""
    return [(kind, {k: v for k, v in body.items() if k not in ("cost", "spent")}) for kind, body in events]


def results(study: Study) -> list[Trial]:
    return [replace(t, cost=0.0) for t in study.trials]


def memory(events: Sequence[Event]) -> Memory:
    storage = Memory()
    for event in events:
        storage.append([event])
    return storage


# ----------------------------------------------------------------------------------------------------- resume is replay
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "chaotic": lambda: Chaotic(most=8), "chaotic, alone": lambda: Chaotic(most=1),
    "chaotic, wider than its batch": lambda: Chaotic(most=20), "NSGA-II": lambda: NSGA2(PROBLEM, population=6)}


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_after_any_event_it_ends_as_if_never_interrupted(name: str, batch: int) -> None:
    whole = Memory()
    make = STRATEGIES[name]
    study = search(PROBLEM, make(), estimate, budget=Budget(trials=30), storage=whole, batch=batch)
    events = list(whole.events())
    assert len(study.trials) == 30
    assert 0 < sum(t.error is not None for t in study.trials) < 30
    assert len({kind for kind, _ in events}) == 3
    for k in range(len(events) + 1):
        part = memory(events[:k])
        again = search(PROBLEM, make(), estimate, budget=Budget(trials=30), storage=part, batch=batch)
        assert results(again) == results(study)
        assert again.front() == [replace(t, cost=s.cost) for t, s in zip(study.front(), again.front(), strict=True)]
        assert timeless(list(part.events())) == timeless(events)


def test_resumed_twice_inside_one_batch() -> None:
    whole = Memory()
    study = search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=24), storage=whole, batch=8)
    storage = Memory()
    for stop in (3, 5, 9, 12, 24):
        again = search(PROBLEM, Chaotic(), Interrupts(stop), budget=Budget(trials=24), storage=storage, batch=8)
    assert results(again) == results(study)
    assert timeless(list(storage.events())) == timeless(list(whole.events()))


@dataclass
class Interrupts:
    """The keyboard interrupts the evaluation of one ask."""

    number: int

    def __call__(self, ask: Ask, /) -> Metrics:
        if ask.number == self.number:
            raise KeyboardInterrupt
        return estimate(ask)


def test_interruption_from_the_keyboard() -> None:
    storage = Memory()
    study = search(PROBLEM, Chaotic(), Interrupts(5), budget=Budget(trials=20), storage=storage, batch=8)
    assert study.stopped == INTERRUPTED
    assert [t.ask.number for t in study.trials] == [0, 1, 2, 3, 4]
    again = search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=20), storage=storage, batch=8)
    assert results(again) == results(search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=20), batch=8))


def test_the_time_of_what_an_interruption_cut_off_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a strategy that trains a network before it asks, for example; none of it is in an event."""
    clock, storage, spent = Clock(), Memory(), list[float]()
    monkeypatch.setattr(time, "perf_counter", clock)

    class Trains(Chaotic):
        def ask(self, n: int, first: int) -> list[Ask]:
            clock.now += 49.0
            if not spent:
                raise KeyboardInterrupt
            return super().ask(n, first)

    study = search(PROBLEM, Trains(), estimate, budget=Budget(seconds=100.0), storage=storage)
    assert study.stopped == INTERRUPTED and not study.trials
    spent.append(0.0)
    search(PROBLEM, Trains(), estimate, budget=Budget(trials=1, seconds=100.0), storage=storage,
           watch=lambda progress: spent.append(progress.spent))
    assert spent[-1] == 98.0


def test_an_interruption_during_the_replay_is_one_like_others() -> None:
    storage = Memory()
    search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=6), storage=storage)

    class Stops(Chaotic):
        def tell(self, trials: Sequence[Trial]) -> None:
            raise KeyboardInterrupt

    study = search(PROBLEM, Stops(), estimate, budget=Budget(trials=20), storage=storage)
    assert study.stopped == INTERRUPTED and len(study.trials) == 6


def test_interruption_between_the_log_and_the_strategy() -> None:
    class Stops(Chaotic):
        def tell(self, trials: Sequence[Trial]) -> None:
            if trials[0].ask.number == 5:
                raise KeyboardInterrupt
            super().tell(trials)

    storage = Memory()
    study = search(PROBLEM, Stops(), estimate, budget=Budget(trials=20), storage=storage)
    assert len(study.trials) == 6  # what the log acknowledged, told or not
    assert results(study) == results(load(storage))


def test_a_finished_run_is_read_not_repeated() -> None:
    storage = Memory()
    study = search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=10), storage=storage)

    def never(ask: Ask, /) -> Metrics:
        raise AssertionError("evaluated again")

    again = search(PROBLEM, Chaotic(), never, budget=Budget(trials=10), storage=storage)
    assert again == study
    assert load(storage).trials == study.trials
    longer = search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=15), storage=storage)
    assert longer.trials[:10] == study.trials
    assert len(longer.trials) == 15


def test_nan_in_the_log_comes_back() -> None:
    class Own(Serial):
        def wait(self) -> list[Trial]:
            return [replace(t, metrics={**t.metrics, "spread": math.nan, "top": -math.inf}) for t in super().wait()]

    storage = Memory()
    search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=3), storage=storage, executor=Own())
    metrics = load(storage).trials[0].metrics
    assert math.isnan(metrics["spread"])
    assert metrics["top"] == -math.inf


def differing(event: str, change: Callable[[dict[str, Any]], None]) -> Memory:
    """A log of a run in which one event was changed."""
    storage = Memory()
    search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=10), storage=storage)
    events = list(storage.events())
    body = next(b for kind, b in reversed(events) if kind == event)
    change(body)
    return memory(events)


def test_resume_of_something_else_is_refused() -> None:
    storage = Memory()
    search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=10), storage=storage)
    budget = Budget(trials=20)
    cases: list[tuple[Problem, Strategy, int, str]] = [
        (replace(PROBLEM, space=Choice("c", "ab")), Chaotic(), 0, "another space: resume"),
        (replace(PROBLEM, objectives=PROBLEM.objectives[:1]), Chaotic(), 0, "another objectives: "),
        (replace(PROBLEM, constraints=()), Chaotic(), 0, "another constraints: "),
        (PROBLEM, Chaotic(), 7, r"another seed \(0 there, 7 here\)"),
        (replace(PROBLEM, constraints=()), Chaotic(), 7, "another constraints and another seed"),
        (PROBLEM, Chaotic(seed=1), 0, "another strategy or version wrote this run"),
        (PROBLEM, Chaotic(name="other"), 0, "another strategy or version wrote this run"),
        (PROBLEM, Chaotic(most=0), 0, "another strategy or version wrote this run")]
    for problem, strategy, seed, words in cases:
        with pytest.raises(InputError, match=words):
            search(problem, strategy, estimate, budget=budget, storage=storage, seed=seed)
    changed = differing("ask", lambda body: body["asks"][0].update(by="someone"))
    with pytest.raises(InputError, match="asks 9 to 9 differ"):
        search(PROBLEM, Chaotic(), estimate, budget=budget, storage=changed)


def test_empty_storage_holds_no_study() -> None:
    with pytest.raises(InputError, match="no run yet"):
        load(Memory())


SCRIPT = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent / "src")!r}]
from test_loop import *
study = search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=300), storage=Sqlite(sys.argv[1]), batch=8,
               watch=lambda progress: print(progress.trial.ask.number, flush=True))
"""


def test_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    said: list[int] = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said += [int(process.stdout.readline()) for _ in range(20)]
            process.send_signal(signal.SIGKILL)
            said += [int(line) for line in process.stdout if line.endswith("\n")]
    assert said == sorted(set(said))
    storage = Sqlite(path)
    kept = [t.ask.number for t in load(storage).trials]
    assert set(said) <= set(kept)
    assert len(kept) == len(set(kept))
    study = search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=300), storage=storage, batch=8)
    storage.close()
    assert results(study) == results(search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=300), batch=8))


# --------------------------------------------------------------------------------------------------------------- budget
def test_budget_of_trials_is_exact() -> None:
    for trials, batch in ((1, 1), (7, 8), (8, 8), (20, 8)):
        storage = Memory()
        study = search(PROBLEM, Chaotic(most=20), estimate, budget=Budget(trials=trials), storage=storage, batch=batch)
        assert study.stopped == f"the budget of {trials} trials is spent"
        assert len(study.trials) == trials
        assert sum(len(body["asks"]) for kind, body in storage.events() if kind == "ask") == trials


@dataclass
class Clock:
    """A clock that moves only when it is told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Slow(Chaotic):
    def __init__(self, clock: Clock, ask_s: float, tell_s: float) -> None:
        super().__init__()
        self.clock, self.ask_s, self.tell_s = clock, ask_s, tell_s

    def ask(self, n: int, first: int) -> list[Ask]:
        self.clock.now += self.ask_s
        return super().ask(n, first)

    def tell(self, trials: Sequence[Trial]) -> None:
        self.clock.now += self.tell_s
        super().tell(trials)


@pytest.mark.parametrize(("ask_s", "tell_s", "count"), [
    (0.0, 0.0, 10), (0.5, 0.25, 6), (4.4, 0.0, 2), (4.6, 0.0, 1), (0.0, 8.9, 2), (0.0, 9.0, 1), (11.0, 0.0, 1)])
def test_budget_of_seconds_counts_everything(monkeypatch: pytest.MonkeyPatch, ask_s: float, tell_s: float,
                                             count: int) -> None:
    # 10 s, evaluations of 1 s: e.g. ask .5 + evaluate 1 + tell .25 begin at 0, 1.75, ..., 8.75: six of them. The first is made in
    # any case.
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def second(ask: Ask, /) -> Metrics:
        clock.now += 1.0
        return {"error": 0.0, "latency_ms": 0.0}

    storage = Memory()
    study = search(PROBLEM, Slow(clock, ask_s, tell_s), second, budget=Budget(seconds=10.0), storage=storage)
    assert len(study.trials) == count
    assert study.stopped == "the budget of 10 s is spent"
    assert all(t.cost == 1.0 for t in study.trials)


def test_the_first_trial_is_made_in_a_resumed_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ask took all the time, and the run was interrupted before its trial."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def interrupted(ask: Ask, /) -> Metrics:
        raise KeyboardInterrupt

    storage = Memory()
    search(PROBLEM, Slow(clock, 11.0, 0.0), interrupted, budget=Budget(seconds=10.0), storage=storage)
    study = search(PROBLEM, Slow(clock, 0.0, 0.0), lambda ask: {"error": 0.0, "latency_ms": 0.0}, budget=Budget(seconds=10.0),
                   storage=storage)
    assert [t.ask.number for t in study.trials] == [0]
    assert study.stopped == "the budget of 10 s is spent"


def test_seconds_before_a_resume_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def second(ask: Ask, /) -> Metrics:
        clock.now += 1.0
        return {"error": 0.0, "latency_ms": 0.0}

    storage = Memory()
    seen: list[Progress] = []
    search(PROBLEM, Chaotic(), second, budget=Budget(trials=4), storage=storage)
    clock.now += 1000.0  # the pause does not count
    study = search(PROBLEM, Chaotic(), second, budget=Budget(seconds=10.0), storage=storage, watch=seen.append)
    assert len(study.trials) == 10
    assert [p.spent for p in seen] == [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert [p.done for p in seen] == [5, 6, 7, 8, 9, 10]
    assert [p.trial for p in seen] == list(study.trials[4:])


def test_seconds_end_a_batch_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def second(ask: Ask, /) -> Metrics:
        clock.now += 1.0
        return estimate(ask)

    storage = Memory()
    study = search(PROBLEM, Chaotic(), second, budget=Budget(seconds=3.0), storage=storage, batch=8)
    assert len(study.trials) == 3
    longer = search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=16), storage=storage, batch=8)
    assert results(longer) == results(search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=16), batch=8))


@pytest.mark.parametrize("build", [
    Budget, lambda: Budget(trials=0), lambda: Budget(trials=-3), lambda: Budget(seconds=0.0),
    lambda: Budget(seconds=math.nan), lambda: Budget(trials=5, seconds=-1.0)])
def test_budget_without_sense(build: Callable[[], Budget]) -> None:
    with pytest.raises(InputError):
        build()


def test_bad_arguments() -> None:
    for bad in ({"batch": 0}, {"seed": -1}):
        with pytest.raises(InputError, match="must be at least"):
            search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=1), **bad)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- protocol and order
def test_exhausted_space() -> None:
    problem = Problem(Product("", [Choice("a", "xyz"), Choice("b", "xy")]), (Objective("error"),))
    study = search(problem, Everything(problem), lambda ask: {"error": ask.number}, budget=Budget(trials=100), batch=4)
    assert study.stopped == EXHAUSTED
    assert [t.ask.arch for t in study.trials] == list(everything(problem.space))


def test_nothing_to_ask_means_wait_while_trials_are_pending() -> None:
    with_pool = Processes(3)
    study = search(PROBLEM, Chaotic(most=2), estimate, budget=Budget(trials=12), executor=with_pool)
    assert len(study.trials) == 12


def test_ask_before_evaluation_and_trial_before_tell() -> None:
    storage = Memory()
    seen = []

    def checked(ask: Ask, /) -> Metrics:
        kind, body = list(storage.events())[-1] if ask.number % 4 == 0 else ("ask", {"asks": [{"number": ask.number}]})
        assert kind == "ask"
        assert ask.number in [a["number"] for a in body["asks"]]
        return estimate(ask)

    class Looks(Chaotic):
        def tell(self, trials: Sequence[Trial]) -> None:
            assert len(trials) == 1
            kind, body = list(storage.events())[-1]
            assert (kind, body["number"]) == ("trial", trials[0].ask.number)
            seen.append(trials[0].ask.number)
            super().tell(trials)

    study = search(PROBLEM, Looks(most=4), checked, budget=Budget(trials=12), storage=storage, batch=4)
    assert "AssertionError" not in {(t.error or "").split(":")[0] for t in study.trials}
    assert seen == list(range(12))


def test_seed_is_stamped_and_types_are_plain() -> None:
    class Numpy(Chaotic):
        def ask(self, n: int, first: int) -> list[Ask]:
            return [replace(a, arch={p: np.int64(v) for p, v in a.arch.items()},  # type: ignore[misc]
                            fidelity=np.float64(1.0)) for a in super().ask(n, first)]

    storage = Memory()
    study = search(PROBLEM, Numpy(), estimate, budget=Budget(trials=4), storage=storage, seed=9)
    assert {t.ask.seed for t in study.trials} == {9}
    assert {type(v) for t in study.trials for v in t.ask.arch.values()} == {int}
    again = search(PROBLEM, Numpy(), estimate, budget=Budget(trials=6), storage=storage, seed=9)
    assert again.trials[:4] == study.trials


@dataclass
class Says:
    """Answers whatever it is made to."""

    asks: Callable[[int, int], Sequence[Ask]]

    def ask(self, n: int, first: int) -> Sequence[Ask]:
        return self.asks(n, first)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learns nothing."""


ARCH = {f"c{k}": 0 for k in range(5)}


@pytest.mark.parametrize(("asks", "words"), [
    (lambda n, first: [Ask(first + 1, ARCH)], "numbered from 0 on"),
    (lambda n, first: [Ask(k, ARCH) for k in range(n + 1)], "at most 1"),
    (lambda n, first: [Ask(first, {**ARCH, "c9": 0})], "outside the space: choice 'c9'"),
    (lambda n, first: [Ask(first, {**ARCH, "c0": 4})], "outside the space: choice 'c0'"),
    (lambda n, first: [Ask(first, ARCH, 0.0)], "fidelity 0.0"),
    (lambda n, first: [Ask(first, ARCH, math.nan)], "fidelity nan")])
def test_strategies_that_break_the_rules(asks: Callable[[int, int], Sequence[Ask]], words: str) -> None:
    storage = Memory()
    with pytest.raises(InputError, match=words):
        search(PROBLEM, Says(asks), estimate, budget=Budget(trials=4), storage=storage)
    assert [kind for kind, _ in storage.events()] == ["run"]


def test_objective_that_was_not_measured() -> None:
    study = search(PROBLEM, Chaotic(), lambda ask: {"error": 0.1, "params": 0.1}, budget=Budget(trials=1))
    assert study.trials[0].error == "the estimator did not measure the objective latency_ms"
    excused = search(PROBLEM, Chaotic(), lambda ask: {"params": 2.0}, budget=Budget(trials=1))
    assert excused.trials[0].error is None


def test_executor_that_loses_evaluations() -> None:
    class Loses(Serial):
        closed = 0

        def wait(self) -> list[Trial]:
            return []

        def close(self) -> None:
            self.closed += 1

    executor = Loses()
    with pytest.raises(RuntimeError, match="lost 1 evaluations"):
        search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=4), executor=executor)
    assert executor.closed == 1


# ---------------------------------------------------------------------------------------------------- executors at work
def outcome(study: Study) -> dict[int, tuple[dict[str, float], str | None]]:
    return {t.ask.number: (dict(t.metrics), t.error) for t in study.trials}


def test_processes_find_the_same_as_serial() -> None:
    problem = one_min_max(4).problem
    serial = search(problem, Everything(problem), one_min_max(4), budget=Budget(trials=16))
    parallel = search(problem, Everything(problem), Ones(), budget=Budget(trials=16), executor=Processes(2))
    assert outcome(serial) == outcome(parallel)
    assert len(parallel.front()) == 16  # every point of OneMinMax is on the front


@dataclass(frozen=True)
class Ones:
    """OneMinMax by its definition: the numbers of ones and of zeros, to be maximised."""

    def __call__(self, ask: Ask, /) -> Metrics:
        ones = sum(ask.arch.values())
        return dict(zip([o.name for o in one_min_max(4).problem.objectives],
                        (float(len(ask.arch) - ones), float(ones)), strict=True))


@pytest.mark.parametrize("make", [Serial, lambda: Processes(2)])
def test_failing_candidates_are_data(make: Callable[[], Serial | Processes]) -> None:
    count = len(CASES) - (ISOLATED if make is Serial else 0)
    problem = Problem(Choice("do", [str(k) for k in range(count)]), (Objective("error"),))
    study = search(problem, Everything(problem), Candidates(), budget=Budget(trials=100), executor=make())
    assert study.stopped == EXHAUSTED
    assert [t.ask.number for t in study.feasible()] == [0]
    assert sorted(outcome(study)) == list(range(count))
    for number, (metrics, error) in outcome(study).items():
        assert (error is None) == (number == 0)
        assert "error" not in metrics or number == 0


def test_a_parallel_run_can_be_resumed() -> None:
    storage = Memory()
    search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=20), storage=storage, executor=Processes(3))
    events = list(storage.events())
    for k in (5, 9, 14, 21):
        part = memory(events[:k])
        study = search(PROBLEM, Chaotic(), estimate, budget=Budget(trials=20), storage=part)
        assert sorted(t.ask.number for t in study.trials) == list(range(20))
        assert timeless(list(part.events()))[:k] == timeless(events[:k])


def test_budget_of_seconds_finishes_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    class Two(Serial):
        """Two at a time, that end together after 5 s."""

        def __init__(self) -> None:
            super().__init__()
            self.asks: list[Ask] = []

        def free(self) -> int:
            return 2 - len(self.asks)

        def submit(self, ask: Ask, estimate: Estimator) -> None:
            self.asks.append(ask)

        def wait(self) -> list[Trial]:
            asks, self.asks = self.asks[:1], self.asks[1:]
            clock.now += 3.0
            return [Trial(a, {"error": 0.0, "latency_ms": 0.0}, 3.0) for a in asks]

    study = search(PROBLEM, Chaotic(), estimate, budget=Budget(seconds=5.0), executor=Two())
    assert len(study.trials) == 3  # begun at 0, 0 and 3 s; nothing at 6 s
