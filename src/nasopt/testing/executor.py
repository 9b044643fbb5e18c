"""The conformance kit of the executor seam: what the search loop relies on.

    from nasopt.testing.executor import check_executor
    check_executor(lambda: MyExecutor(workers=2), isolated=True)
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from nasopt.errors import EstimateError
from nasopt.protocols import Estimator, Executor
from nasopt.trial import Ask, Metrics, Trial


@dataclass(frozen=True)
class Candidates:
    """An estimator that does what the architecture says: its choice ``do`` is an index into `CASES`."""

    def __call__(self, ask: Ask, /) -> Metrics:
        return CASES[ask.arch["do"]][1](ask)


def _good(ask: Ask) -> Metrics:
    return {"error": 0.25, "number": float(ask.number)}


def _raises(ask: Ask) -> Metrics:
    raise ValueError("no such\nlayer")


def _knows(ask: Ask) -> Metrics:
    raise EstimateError("training failed", {"params": 7.0})


def _memory(ask: Ask) -> Metrics:
    raise MemoryError


def _leaves(ask: Ask) -> Metrics:
    sys.exit(3)


def _nan(ask: Ask) -> Metrics:
    return {"params": 7.0, "error": math.nan}


def _words(ask: Ask) -> Metrics:
    return cast(Metrics, {"error": "low"})


def _nothing(ask: Ask) -> Metrics:
    return cast(Metrics, None)


def _exits(ask: Ask) -> Metrics:
    os._exit(0)


def _crashes(ask: Ask) -> Metrics:
    os.abort()


CASES: tuple[tuple[str, Callable[[Ask], Metrics], str | None, dict[str, Any]], ...] = (
    ("a good candidate", _good, None, {}),
    ("an exception", _raises, "ValueError: no such layer", {}),
    ("an EstimateError", _knows, "training failed", {"params": 7.0}),
    ("a MemoryError", _memory, "MemoryError", {}),
    ("sys.exit", _leaves, "SystemExit: 3", {}),
    ("a metric that is NaN", _nan, "metric error is nan", {"params": 7.0}),
    ("a metric that is text", _words, "metric error is str, not a number", {}),
    ("None instead of metrics", _nothing, "the estimator returned NoneType, not a mapping of metrics", {}),
    ("os._exit(0)", _exits, "", {}),
    ("os.abort()", _crashes, "", {}),
)
"""What a candidate does, the error that must be in its trial (empty: any), and the metrics that must."""
ISOLATED = 2
"""How many of the last cases end their process: only for executors that survive it."""


def check_executor(make: Callable[[], Executor], isolated: bool = False) -> None:
    """Runs every check.

    Args:
        make: builds a fresh executor.
        isolated: candidates run in other processes, so those that end theirs must not do harm.

    Raises:
        AssertionError: a check failed; the message says which and how.
    """
    executor = make()
    try:
        _require(executor.wait() == [], "wait() must return [] when nothing was submitted.")
        cases = CASES if isolated else CASES[:-ISOLATED]
        for k, (name, *_) in enumerate(cases):
            _check_case(executor, k, name)
        _check_many(executor, Candidates())
        _check_many(executor, Other())
        _check_close(executor)
    finally:
        executor.close()


@dataclass(frozen=True)
class Other:
    """Another estimator than `Candidates`, told apart by what it returns."""

    def __call__(self, ask: Ask, /) -> Metrics:
        return {"other": 1.0, "number": float(ask.number)}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_case(executor: Executor, k: int, name: str) -> None:
    _, _, error, metrics = CASES[k]
    ask = Ask(k, {"do": k}, 0.5, 3, "kit")
    _require(executor.free() >= 1, f"{name}: an idle executor must be free, free() is {executor.free()}.")
    executor.submit(ask, Candidates())
    trials = executor.wait()
    _require([t.ask for t in trials] == [ask], f"{name}: one ask was submitted, wait() returned {trials}.")
    trial = trials[0]
    _require(math.isfinite(trial.cost) and trial.cost >= 0, f"{name}: the cost is {trial.cost}, not seconds.")
    if error is None:
        _require(trial == Trial(ask, _good(ask), trial.cost), f"{name}: became {trial}.")
        return
    text = trial.error or ""
    _require(text.count("\n") == 0 and bool(text), f"{name}: the error must be one line, it is {trial.error!r}.")
    _require(error in ("", text), f"{name}: the trial's error must be {error!r}, it is {trial.error!r}.")
    _require(dict(trial.metrics) == metrics, f"{name}: the metrics must be {metrics}, they are {dict(trial.metrics)}.")


def _check_many(executor: Executor, estimate: Estimator, count: int = 9) -> None:
    """Fills the executor as the loop does; every ask must come back once, with its own answer."""
    asks = [Ask(n, {"do": 0}) for n in range(count)]
    trials: list[Trial] = []
    submitted = 0
    while len(trials) < count:
        while submitted < count and executor.free() > 0:
            before = executor.free()
            executor.submit(asks[submitted], estimate)
            submitted += 1
            _require(executor.free() == before - 1, "free() must fall by one with every ask submitted.")
        new = executor.wait()
        _require(bool(new), f"{submitted - len(trials)} asks are under way, yet wait() returned [].")
        trials += new
    _check_once(trials, asks, estimate)
    _require(executor.wait() == [], "wait() must return [] once every trial was handed out.")


def _check_once(trials: Sequence[Trial], asks: Sequence[Ask], estimate: Estimator) -> None:
    numbers = sorted(t.ask.number for t in trials)
    _require(numbers == [a.number for a in asks], f"asks 0 to {len(asks) - 1} came back as {numbers}.")
    for t in trials:
        want = estimate(t.ask)
        _require(t.metrics == want, f"ask {t.ask.number} came back with {dict(t.metrics)}, not with {dict(want)}.")


def _check_close(executor: Executor) -> None:
    executor.submit(Ask(0, {"do": 0}), Candidates())
    executor.close()
    executor.close()
    _require(executor.wait() == [], "close() must end what is under way: nothing may come back afterwards.")
