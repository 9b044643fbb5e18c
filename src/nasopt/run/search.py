"""The one loop: it carries trials between a strategy and an estimator, and the log of both is its whole state."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nasopt.errors import InputError
from nasopt.protocols import Estimator, Event, Executor, Storage, Strategy
from nasopt.run.executors import Serial
from nasopt.run.storage import Memory, dumps
from nasopt.space import check
from nasopt.trial import (
    Ask,
    Problem,
    Study,
    Trial,
    ask_from_json,
    ask_to_json,
    problem_from_json,
    problem_to_json,
)

INTERRUPTED = "interrupted"
EXHAUSTED = "the space is exhausted"
PAUSED = "spent when interrupted"
"""The blob that holds the seconds of the budget that were used when a search was interrupted last."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When a search ends: whichever comes first.

    Args:
        trials: evaluations, failed ones included.
        seconds: wall time of everything: evaluations, the strategy's own work and the loop, earlier parts of a resumed
            run included (of a part that was killed: up to the last event of its log). Replaying the log is not counted
            again. When they are spent nothing more is begun; what is under way is finished, so the run ends at most one
            evaluation late.

    Raises:
        InputError: neither is given, or one is not above 0.
    """

    trials: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.trials is None and self.seconds is None:
            raise InputError("the budget has no end: give a number of trials, of seconds, or both.")
        if self.trials is not None and (self.trials < 1 or self.trials != int(self.trials)):
            raise InputError(f"a budget of {self.trials} trials: give a whole number of at least 1.")
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"a budget of {self.seconds} seconds: give a number above 0.")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a watcher is told after every new trial.

    Attributes:
        trial: the trial, already durable and told to the strategy.
        done: trials so far, those of earlier parts of a resumed run included.
        pending: asks without a trial yet.
        spent: seconds of the budget used so far.
    """

    trial: Trial
    done: int
    pending: int
    spent: float


def search(problem: Problem, strategy: Strategy, estimate: Estimator, *, budget: Budget, storage: Storage | None = None,
           executor: Executor | None = None, seed: int = 0, batch: int = 1,
           watch: Callable[[Progress], None] | None = None, stop: Callable[[Sequence[Trial]], str] | None = None) -> Study:
    """Searches until the budget is spent or the strategy has nothing more to propose.

    Every call of ``strategy.ask`` that returned something is in the log before anything of it is evaluated, and every
    trial before the strategy is told of it, one at a time. If the storage already holds a run, the run is resumed: the
    strategy must be a new one, built with the same arguments; it is led through the log call by call, asks without a
    trial are evaluated first, and with `Serial` the run then ends exactly as an uninterrupted one would have.

    What is asked when the time is over is not evaluated, unless it is the first: no search ends without a trial.

    An interruption from the keyboard (SIGINT) ends the search cleanly: the study so far is returned with
    ``stopped == "interrupted"`` and can be resumed. The executor is closed at the end; the storage is left open.

    Args:
        problem: the space, objectives and constraints; kept in the log.
        strategy: proposes; `nasopt.testing` checks what the loop relies on.
        estimate: evaluates an ask. What it raises becomes the trial's error.
        budget: when to stop.
        storage: where the log is kept (default: in memory).
        executor: where evaluations happen (default: here, one after the other).
        seed: stamped on every ask; kept in the log.
        batch: the strategy is asked for at least this many at once (a generation), or as many as the executor is free
            to take, if that is more. An ask that the budget has no room for is not made.
        watch: called after every new trial.
        stop: is shown all trials after every new one; unless empty, what it returns is why the search ends: nothing more is
            begun, what is under way is finished. It must depend on the trials alone, so that a resumed search stops alike.

    Returns:
        The study; `Study.stopped` says why it ended.

    Raises:
        InputError: the log is of another problem, seed or strategy; a strategy's ask breaks the rules of its protocol;
            the storage cannot be written.
    """
    if batch < 1 or seed < 0:
        raise InputError(f"batch = {batch}, seed = {seed}: batch must be at least 1 and seed at least 0.")
    log = Memory() if storage is None else storage
    runner = Serial() if executor is None else executor
    loop = _Loop(problem, strategy, estimate, budget, log, runner, seed, batch, watch, stop)
    try:
        loop.recover()
        stopped = loop.run()
        return Study(problem, tuple(loop.trials), stopped)
    except KeyboardInterrupt:
        loop.pause()
        # The log, not the loop, knows what was acknowledged.
        return replace(load(log), problem=problem, stopped=INTERRUPTED)
    finally:
        runner.close()


def load(storage: Storage) -> Study:
    """The study in a log, without resuming it.

    Raises:
        InputError: the storage holds no run, or is damaged.
    """
    problem: Problem | None = None
    trials = []
    for record in _records(storage.events()):
        if isinstance(record, _Head):
            problem = problem_from_json(record.problem)
        elif isinstance(record, Trial):
            trials.append(record)
    if problem is None:
        raise InputError("the storage holds no run yet: start a search with it first.")
    return Study(problem, tuple(trials))


def spent(storage: Storage) -> list[float]:
    """Seconds of the budget that were used when each trial of the log was complete: evaluations, strategy and loop."""
    return [float(body["spent"]) for kind, body in storage.events() if kind == "trial"]


# ------------------------------------------------------------------------------------------------------------------ log
@dataclass(frozen=True, slots=True)
class _Head:
    problem: dict[str, Any]
    seed: int

    def event(self) -> Event:
        return "run", {"problem": self.problem, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class _Call:
    """``strategy.ask(n, first)`` returned ``asks``."""

    n: int
    first: int
    asks: tuple[Ask, ...]

    def event(self, spent: float) -> Event:
        return "ask", {"number": self.first, "n": self.n, "asks": [ask_to_json(a) for a in self.asks], "spent": spent}


def _trial_event(trial: Trial, spent: float) -> Event:
    return "trial", {"number": trial.ask.number, "metrics": dict(trial.metrics), "cost": trial.cost,
                     "error": trial.error, "spent": spent}


def _records(events: Iterator[Event]) -> Iterator[_Head | _Call | Trial]:
    asks: dict[int, Ask] = {}
    for kind, body in events:
        if kind == "run":
            yield _Head(body["problem"], body["seed"])
        elif kind == "ask":
            call = _Call(body["n"], body["number"], tuple(ask_from_json(a) for a in body["asks"]))
            asks.update((a.number, a) for a in call.asks)
            yield call
        elif kind == "trial":
            yield Trial(asks[body["number"]], body["metrics"], body["cost"], body["error"])


# ----------------------------------------------------------------------------------------------------------------- loop
@dataclass
class _Loop:
    problem: Problem
    strategy: Strategy
    estimate: Estimator
    budget: Budget
    log: Storage
    executor: Executor
    seed: int
    batch: int
    watch: Callable[[Progress], None] | None
    stop: Callable[[Sequence[Trial]], str] | None
    stopped: str = ""
    trials: list[Trial] = field(default_factory=list)
    waiting: deque[Ask] = field(default_factory=deque)
    running: int = 0
    asked: int = 0
    before: float = 0.0
    began: float = math.nan

    # ---- resume is replay
    def recover(self) -> None:
        """Leads the strategy through the log; what was asked and not answered waits to be evaluated."""
        head = _Head(problem_to_json(self.problem), self.seed)
        events = list(self.log.events())
        if not events:
            self.log.append([head.event()])
        pending: dict[int, Ask] = {}
        for record in _records(iter(events)):
            if isinstance(record, _Head):
                _check_same(record, head)
            elif isinstance(record, _Call):
                self._replay(record)
                pending.update((a.number, a) for a in record.asks)
            else:
                del pending[record.ask.number]
                self.trials.append(record)
                self.strategy.tell([record])
                self._consider()
        self.waiting.extend(pending.values())
        self.before = max(float(self.log.get(PAUSED) or 0.0), *(body["spent"] for _, body in events if "spent" in body), 0.0)
        self.began = time.perf_counter()

    def pause(self) -> None:
        """Keeps the time of what an interruption cuts off, of which there will be no event."""
        if not math.isnan(self.began):
            self.log.put(PAUSED, dumps(self._spent()).encode())

    def _replay(self, call: _Call) -> None:
        again = tuple(_stamped(a, self.seed) for a in self.strategy.ask(call.n, call.first))
        if again != call.asks:
            raise InputError(f"another strategy or version wrote this run (its asks {call.first} to "
                             f"{call.first + len(call.asks) - 1} differ): resume with the same one, "
                             "or start anew in another folder.")
        self.asked += len(again)

    # ---- the loop
    def run(self) -> str:
        """Until there is nothing more to do; why."""
        while True:
            self._fill()
            if self.running == 0:
                return self._reason()
            self._collect()

    def _fill(self) -> None:
        """Keeps the executor busy as far as budget and strategy allow."""
        while not self.stopped and self.executor.free() > 0 and self._room() > 0 and not self._late():
            if not self.waiting:
                self._ask(min(max(self.batch, self.executor.free()), self._room()))
            if not self.waiting or self._late():
                return
            self.executor.submit(self.waiting.popleft(), self.estimate)
            self.running += 1

    def _ask(self, n: int) -> None:
        asks = tuple(_stamped(a, self.seed) for a in self.strategy.ask(n, self.asked))
        if not asks:
            return
        _check_asks(self.problem, asks, n, self.asked)
        self.log.append([_Call(n, self.asked, asks).event(self._spent())])
        self.asked += len(asks)
        self.waiting.extend(asks)

    def _collect(self) -> None:
        """Trials become durable first, then the strategy hears of them."""
        trials = [_complete(self.problem, t) for t in self.executor.wait()]
        if not trials:
            raise RuntimeError(f"the executor lost {self.running} evaluations: wait() returned none of them.")
        self.running -= len(trials)
        spent = self._spent()
        self.log.append([_trial_event(t, spent) for t in trials])
        for trial in trials:
            self.trials.append(trial)
            self.strategy.tell([trial])
            self._consider()
            if self.watch is not None:
                self.watch(Progress(trial, len(self.trials), self.asked - len(self.trials), self._spent()))

    def _consider(self) -> None:
        """Asks whether to stop, once there is something to judge by."""
        if self.stop is not None and self.trials and not self.stopped:
            self.stopped = self.stop(self.trials)

    # ---- the budget
    def _spent(self) -> float:
        return self.before + time.perf_counter() - self.began

    def _late(self) -> bool:
        """Never before the first trial: a run whose first ask takes all its time, such as one that trains a network, has one."""
        begun = bool(self.trials or self.running)
        return begun and self.budget.seconds is not None and self._spent() >= self.budget.seconds

    def _room(self) -> int:
        """Trials that the budget still allows to begin."""
        limit = math.inf if self.budget.trials is None else self.budget.trials
        room = limit - len(self.trials) - self.running
        return int(min(room, 2**31))

    def _reason(self) -> str:
        if self.stopped:
            return self.stopped
        if self._room() <= 0:
            return f"the budget of {self.budget.trials} trials is spent"
        if self._late():
            return f"the budget of {self.budget.seconds:g} s is spent"
        return EXHAUSTED


def _stamped(ask: Ask, seed: int) -> Ask:
    """The ask in plain Python types (a strategy may use numpy's), with the run's seed."""
    return Ask(int(ask.number), {str(p): int(v) for p, v in ask.arch.items()}, float(ask.fidelity), seed, str(ask.by))


def _check_asks(problem: Problem, asks: Sequence[Ask], n: int, first: int) -> None:
    numbers = [a.number for a in asks]
    if len(asks) > n or numbers != list(range(first, first + len(asks))):
        raise InputError(f"strategy {asks[0].by!r} answered ask(n={n}, first={first}) with the numbers {numbers}: "
                         f"return at most {n}, numbered from {first} on.")
    for ask in asks:
        if not 0 < ask.fidelity <= 1:
            raise InputError(f"strategy {ask.by!r} asked for fidelity {ask.fidelity}: use a share in (0, 1].")
        try:
            check(problem.space, ask.arch)
        except ValueError as error:
            raise InputError(f"strategy {ask.by!r} proposed ask {ask.number} outside the space: {error}") from error


def _check_same(logged: _Head, given: _Head) -> None:
    """Raises InputError unless the log is of the same problem and seed, naming what differs."""
    parts = [name for name in ("space", "objectives", "constraints")
             if dumps(logged.problem[name]) != dumps(given.problem[name])]
    if logged.seed != given.seed:
        parts.append(f"seed ({logged.seed} there, {given.seed} here)")
    if parts:
        raise InputError(f"this run was started with another {' and another '.join(parts)}: resume it with the same, "
                         "or start anew in another folder.")


def _complete(problem: Problem, trial: Trial) -> Trial:
    """The trial, or an error if what the problem asks for is missing though no violated constraint excuses it."""
    missing = [f"the objective {o.name}" for o in problem.objectives if o.name not in trial.metrics]
    missing += [f"the constrained {c.name}" for c in problem.constraints if c.name not in trial.metrics]
    if trial.error is not None or not missing or problem.violation(trial.metrics) > 0:
        return trial
    return replace(trial, error=f"the estimator did not measure {' and '.join(missing)}")
