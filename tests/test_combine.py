"""Staged and cached estimators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from nasopt.errors import EstimateError, InputError
from nasopt.estimators.combine import Cached, Known, Staged
from nasopt.protocols import Estimator
from nasopt.run.executors import evaluate
from nasopt.run.search import Budget, search
from nasopt.run.storage import Memory
from nasopt.seed import rng
from nasopt.space import Cell, canonical, everything, key
from nasopt.testing.estimator import check_estimator
from nasopt.trial import Ask, Constraint, Metrics, Objective, Problem, Trial

CELL = Cell("cell", 3, ("none", "skip", "conv"), none="none", skip="skip")
PROBLEM = Problem(CELL, (Objective("error"),), (Constraint("params", 2.0),))
ASKS = [Ask(k, arch, seed=5) for k, arch in enumerate(everything(CELL))]


@dataclass
class Counts:
    """Parameters by counting convolutions."""

    asked: list[int] = field(default_factory=list)

    def __call__(self, ask: Ask, /) -> Metrics:
        self.asked.append(ask.number)
        return {"params": float(sum(v == 2 for v in ask.arch.values()))}


@dataclass
class Trains:
    """A noisy error, drawn as the seams ask for."""

    asked: list[Ask] = field(default_factory=list)

    def __call__(self, ask: Ask, /) -> Metrics:
        self.asked.append(ask)
        return {"error": float(rng(ask.seed, ask.number, key(ask.arch)).random()) * ask.fidelity}


def fails(ask: Ask, /) -> Metrics:
    raise ValueError("diverged")


def fails_knowingly(ask: Ask, /) -> Metrics:
    raise EstimateError("out of time", {"epochs": 3.0})


def test_nothing_infeasible_is_trained() -> None:
    counts, trains = Counts(), Trains()
    staged = Staged(PROBLEM, [counts, trains])
    for ask in ASKS:
        metrics = staged(ask)
        three = sum(v == 2 for v in ask.arch.values()) == 3  # params <= 2 is violated by three convolutions alone
        assert metrics.keys() == ({"params"} if three else {"params", "error"})
    assert counts.asked == [a.number for a in ASKS]
    assert len(trains.asked) == len(ASKS) - 1


def test_what_was_known_before_a_failure_is_kept() -> None:
    trial = evaluate(ASKS[2], Staged(PROBLEM, [Counts(), fails]))
    assert (trial.metrics, trial.error) == ({"params": 1.0}, "ValueError: diverged")
    trial = evaluate(ASKS[2], Staged(PROBLEM, [Counts(), fails_knowingly]))
    assert (trial.metrics, trial.error) == ({"params": 1.0, "epochs": 3.0}, "out of time")
    with pytest.raises(ValueError, match="diverged"):
        Staged(PROBLEM, [fails])(ASKS[0])


def test_no_stages() -> None:
    with pytest.raises(InputError, match="no stages"):
        Staged(PROBLEM, [])


def test_cache_evaluates_each_network_once() -> None:
    trains = Trains()
    cached = Cached(trains, CELL)
    first = {a.number: cached(a) for a in ASKS}
    classes = {key(canonical(CELL, a.arch)) for a in ASKS}
    assert len(trains.asked) == len(classes) < len(ASKS)
    for a in ASKS:
        for b in ASKS:
            same = canonical(CELL, a.arch) == canonical(CELL, b.arch)
            assert (first[a.number] == first[b.number]) == same


def test_cache_tells_fidelities_and_seeds_apart() -> None:
    trains = Trains()
    cached = Cached(trains, CELL)
    ask = ASKS[5]
    answers = [cached(ask)["error"], cached(replace(ask, fidelity=0.5))["error"], cached(replace(ask, seed=6))["error"]]
    assert len(trains.asked) == 3
    assert answers[1] == answers[0] / 2
    assert answers[2] != answers[0]


def test_cached_answers_do_not_depend_on_what_came_before() -> None:
    check_estimator(Cached(Trains(), CELL), ASKS)
    forwards = Cached(Trains(), CELL)
    backwards = Cached(Trains(), CELL)
    answers = [forwards(a) for a in ASKS]
    assert answers == [backwards(a) for a in reversed(ASKS)][::-1]


def test_a_changed_answer_does_not_change_the_cache() -> None:
    cached = Cached(Trains(), CELL)
    answer = dict(cached(ASKS[0]))
    got = cached(ASKS[0])
    assert isinstance(got, dict)
    got["error"] = 7.0
    assert cached(ASKS[0]) == answer


def test_failures_are_not_remembered() -> None:
    asked = []

    def once(ask: Ask, /) -> Metrics:
        asked.append(ask)
        if len(asked) == 1:
            raise ValueError("a hiccup")
        return {"error": 0.5}

    cached = Cached(once, CELL)
    with pytest.raises(ValueError, match="hiccup"):
        cached(ASKS[0])
    assert cached(ASKS[0]) == {"error": 0.5}


class Sweep:
    """All architectures twice."""

    def __init__(self) -> None:
        self.rest = [a.arch for a in ASKS] * 2

    def ask(self, n: int, first: int) -> list[Ask]:
        archs, self.rest = self.rest[:n], self.rest[n:]
        return [Ask(first + k, arch) for k, arch in enumerate(archs)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learns nothing."""


def test_a_run_with_a_cache_can_be_resumed() -> None:
    storage = Memory()
    whole = search(PROBLEM, Sweep(), Cached(Trains(), CELL), budget=Budget(trials=50))
    search(PROBLEM, Sweep(), Cached(Trains(), CELL), budget=Budget(trials=31), storage=storage)
    again = search(PROBLEM, Sweep(), Cached(Trains(), CELL), budget=Budget(trials=50), storage=storage)
    assert [t.metrics for t in again.trials] == [t.metrics for t in whole.trials]


def test_known_metrics_are_answered_and_others_are_asked_for() -> None:
    inner = Counts()
    estimate = Known({key(ASKS[3].arch): {"params": 99.0}}, inner)
    assert estimate(ASKS[3]) == {"params": 99.0}
    assert inner.asked == []
    assert estimate(ASKS[4]) == Counts()(ASKS[4])
    assert estimate(replace(ASKS[3], fidelity=0.5)) == Counts()(ASKS[3])
    assert inner.asked == [4, 3]


# ------------------------------------------------------------------------------------------------------------------ kit
def test_kit_passes() -> None:
    check_estimator(Known({key(ASKS[3].arch): {"params": 99.0}}, Counts()), ASKS)
    check_estimator(Trains(), ASKS)
    check_estimator(Staged(PROBLEM, [Counts(), Trains()]), ASKS)


@dataclass
class Drifts:
    """Remembers how often it was asked."""

    calls: int = 0

    def __call__(self, ask: Ask, /) -> Metrics:
        self.calls += 1
        return {"error": self.calls / 100, "latency_ms": 1.0}


def changes(ask: Ask, /) -> Metrics:
    assert isinstance(ask.arch, dict)
    ask.arch["extra"] = 0
    return {"error": 0.0}


@pytest.mark.parametrize(("broken", "words"), [
    (Drifts(), "in another order"), (changes, "was changed"), (lambda ask: {}, "is no metrics"),
    (lambda ask: 0.5, "is no metrics"), (lambda ask: {"error": float("nan")}, "not a finite number"),
    (lambda ask: {"error": "low"}, "not a finite number"), (lambda ask: {1: 0.5}, "not a string")])
def test_kit_notices(broken: Estimator, words: str) -> None:
    asks = [replace(a, arch=dict(a.arch)) for a in ASKS[:3]]
    with pytest.raises(AssertionError, match=words):
        check_estimator(broken, asks)


def test_kit_allows_clocks() -> None:
    check_estimator(Drifts(), ASKS[:3], measured=("error",))
    with pytest.raises(AssertionError, match="different numbers"):
        check_estimator(Trains(), [ASKS[0], ASKS[0]])
