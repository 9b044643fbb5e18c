"""Where evaluations happen: one after the other in this process, or side by side in worker processes."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import numbers
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import TypeAlias

from nasopt.errors import EstimateError, InputError, one_line
from nasopt.protocols import Estimator
from nasopt.trial import Ask, Metrics, Trial

Answer: TypeAlias = tuple[dict[str, float], float, str | None]
"""Metrics, cost in seconds, error: a trial without its ask."""
STARTS = 3
"""A worker that dies before it is ready is replaced this often."""
HEARTBEAT = 0.5
"""Seconds between looks at the workers' exit codes: a process that a dead worker forked keeps its pipe and its sentinel
open, so that neither tells of the death."""
_DEAD: Answer = ({}, 0.0, "")


def _metrics(answer: object) -> tuple[dict[str, float], str | None]:
    """The finite numbers among an estimator's answer, and what is wrong with it."""
    if not isinstance(answer, Mapping):
        return {}, f"the estimator returned {type(answer).__name__}, not a mapping of metrics"
    good: dict[str, float] = {}
    error = None
    for name, value in answer.items():
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            error = error or f"metric {name} is {type(value).__name__}, not a number"
        elif not math.isfinite(value):
            error = error or f"metric {name} is {float(value)}"
        else:
            good[str(name)] = float(value)
    return good, error


def evaluate(ask: Ask, estimate: Estimator) -> Trial:
    """One evaluation in this process. Whatever it raises, memory and ``sys.exit`` included, becomes the trial's error;
    a metric that is not a finite number does too."""
    began = time.perf_counter()
    try:
        metrics, error = _metrics(estimate(ask))
    except EstimateError as problem:
        metrics, error = _metrics(problem.metrics)[0], one_line(problem)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a candidate may do anything; it is recorded
        metrics, error = {}, one_line(problem)
    return Trial(ask, metrics, time.perf_counter() - began, error)


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        raise InputError(f"timeout = {timeout}: give the seconds a candidate may take, above 0, or None for no limit.")


def _too_long(timeout: float) -> str:
    return f"TimeoutError: not finished after {timeout:g} s"


# --------------------------------------------------------------------------------------------------------------- serial
class _Alarm(BaseException):
    """Not an Exception, so that a candidate's ``except Exception`` cannot swallow it."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


class Serial:
    """Evaluates in this process, one after the other.

    Args:
        timeout: seconds a candidate may take. It is interrupted by SIGALRM, hence only in the main thread, and only
            once it is back in Python: a candidate inside one long library call is stopped by `Processes` alone.

    Raises:
        InputError: ``timeout`` is not above 0, or cannot work in this thread or on this system.
    """

    def __init__(self, timeout: float | None = None) -> None:
        _check_timeout(timeout)
        alarm = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
        if timeout is not None and not alarm:
            raise InputError("a timeout in this process needs the main thread: use Processes(1, timeout=...).")
        self.timeout = timeout
        self._next: tuple[Ask, Estimator] | None = None

    def free(self) -> int:
        """1, or 0 when an ask is waiting for `wait`."""
        return 1 if self._next is None else 0

    def submit(self, ask: Ask, estimate: Estimator) -> None:
        """Takes one ask; it is evaluated in `wait`."""
        if self._next is not None:
            raise RuntimeError("Serial takes one ask at a time: call wait() first.")
        self._next = (ask, estimate)

    def wait(self) -> list[Trial]:
        """Evaluates what was submitted."""
        if self._next is None:
            return []
        (ask, estimate), self._next = self._next, None
        if self.timeout is None:
            return [evaluate(ask, estimate)]
        try:
            with _alarm(self.timeout):
                return [evaluate(ask, estimate)]
        except _Alarm:
            return [Trial(ask, {}, self.timeout, _too_long(self.timeout))]

    def close(self) -> None:
        """Forgets what was submitted and not evaluated."""
        self._next = None


# ------------------------------------------------------------------------------------------------------------ processes
@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    ask: Ask | None = None
    began: float = 0.0
    ready: bool = False


class Processes:
    """Evaluates in worker processes on this machine; they talk to this one through pipes, never through the network.

    A candidate that takes too long, exits, crashes or is killed costs its own worker only: it becomes a trial with an
    error and the next candidate gets a fresh worker. The estimator is sent to a worker once, when the worker starts.
    Workers are spawned, not forked (threads of torch do not survive a fork), so a script that uses this needs
    ``if __name__ == "__main__":``. They end with this process, even if it is killed.

    Args:
        workers: how many evaluations run side by side.
        timeout: seconds a candidate may take; then its worker is killed.
        memory_mb: private memory a worker may take in all, in MB (1 MB = 1e6 bytes; RLIMIT_DATA, Linux only). Beyond it
            allocations fail inside the candidate. Python with torch loaded already takes some hundred MB of it.

    Raises:
        InputError: a count, timeout or limit that is not above 0, or ``memory_mb`` on another system than Linux.
    """

    # pebble.ProcessPool (5.2) was tried here: a task that ends its worker with exit code 0 never returns, and a worker
    # that dies while idle breaks the pool.

    def __init__(self, workers: int, timeout: float | None = None, memory_mb: float | None = None) -> None:
        _check_timeout(timeout)
        if workers < 1:
            raise InputError(f"workers = {workers}: give at least 1.")
        if memory_mb is not None and not (memory_mb > 0 and sys.platform == "linux"):
            raise InputError(f"memory_mb = {memory_mb}: give a limit above 0, on Linux only.")
        self.workers = workers
        self.timeout = timeout
        self.memory_mb = memory_mb
        self._pool: list[_Worker] = []
        self._done: list[Trial] = []
        self._estimate: Estimator | None = None
        self._payload = b""
        self._stillborn = 0

    def free(self) -> int:
        """Workers, started or not, that have nothing to do."""
        return self.workers - sum(w.ask is not None for w in self._pool)

    def submit(self, ask: Ask, estimate: Estimator) -> None:
        """Starts one evaluation. Another estimator than before first waits for what is running, then gets new workers.

        Raises:
            InputError: the estimator cannot be pickled.
        """
        if self.free() < 1:
            raise RuntimeError("all workers are busy: call wait() first.")
        if estimate is not self._estimate:
            self._change(estimate)
        idle = [w for w in self._pool if w.ask is None]
        worker = idle[0] if idle else self._start()
        worker.ask, worker.began = ask, time.monotonic()
        try:
            worker.pipe.send(ask)
        except (BrokenPipeError, ConnectionResetError):  # it died idle; the ask goes to a fresh one
            self._end(worker)
            self.submit(ask, estimate)

    def wait(self) -> list[Trial]:
        """Blocks until an evaluation has ended; all that have, by number."""
        while not self._done and any(w.ask is not None for w in self._pool):
            self._poll()
        done, self._done = self._done, []
        return sorted(done, key=lambda t: t.ask.number)

    def close(self) -> None:
        """Kills the workers. A later `submit` starts new ones."""
        for worker in list(self._pool):
            self._end(worker)
        self._done, self._estimate, self._payload = [], None, b""
        atexit.unregister(self.close)

    def _change(self, estimate: Estimator) -> None:
        try:
            payload = pickle.dumps(estimate)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(f"the estimator cannot be sent to another process ({error}): "
                             "define it at the top level of a module, or use Serial.") from error
        while any(w.ask is not None for w in self._pool):
            self._poll()
        for worker in list(self._pool):
            self._end(worker)
        self._estimate, self._payload = estimate, payload

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self._payload, self.memory_mb))
        if not self._pool:
            atexit.register(self.close)
        process.start()
        there.close()
        worker = _Worker(process, here)
        self._pool.append(worker)
        return worker

    def _end(self, worker: _Worker) -> int:
        """Kills a worker and what it started; its exit code (negative: the signal that had ended it)."""
        assert worker.process.pid is not None
        code = worker.process.exitcode
        try:
            os.killpg(worker.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not become the leader of its group yet, or the group is gone
            worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        worker.process.close()
        self._pool.remove(worker)
        return -int(signal.SIGKILL) if code is None else code

    def _poll(self) -> None:
        """Waits for news from any busy worker, or for the next deadline."""
        busy = [w for w in self._pool if w.ask is not None]
        news = set(wait([x for w in busy for x in (w.pipe, w.process.sentinel)], self._patience(busy)))
        for worker in busy:
            if worker.pipe in news or worker.process.exitcode is not None:
                self._hear(worker)
            elif worker.ready and self.timeout is not None and time.monotonic() - worker.began > self.timeout:
                self._close_case(worker, ({}, self.timeout, _too_long(self.timeout)))
                self._end(worker)

    def _patience(self, busy: list[_Worker]) -> float:
        ends = [w.began + self.timeout for w in busy if w.ready] if self.timeout is not None else []
        return max(1e-3, min([HEARTBEAT, *(end - time.monotonic() for end in ends)]))

    def _hear(self, worker: _Worker) -> None:
        try:
            # A death can be noticed before an answer that is still in the pipe.
            answer: Answer | None = worker.pipe.recv() if worker.pipe.poll() else _DEAD
        except (EOFError, ConnectionResetError):
            answer = _DEAD
        if answer is _DEAD:
            self._bury(worker)
        elif answer is None:
            worker.ready, worker.began, self._stillborn = True, time.monotonic(), 0
        else:
            self._close_case(worker, answer)

    def _bury(self, worker: _Worker) -> None:
        """A death is the candidate's error, unless the worker had not even taken it up."""
        if worker.process.exitcode is None:
            worker.process.join(5.0)
        ask, ready, cost = worker.ask, worker.ready, time.monotonic() - worker.began
        code = self._end(worker)
        assert ask is not None
        assert self._estimate is not None
        if ready:
            self._done.append(Trial(ask, {}, cost, _died(code)))
            return
        self._stillborn += 1
        if self._stillborn > STARTS:
            raise InputError(f"no worker process starts ({_died(code)}): protect the script's main part with "
                             "'if __name__ == \"__main__\":', and check the memory.")
        self.submit(ask, self._estimate)

    def _close_case(self, worker: _Worker, answer: Answer) -> None:
        ask, worker.ask = worker.ask, None
        assert ask is not None
        self._done.append(Trial(ask, *answer))


def _died(code: int) -> str:
    if code >= 0:
        return f"WorkerDied: the worker ended with exit code {code}"
    return f"WorkerDied: the worker was ended by {signal.Signals(-code).name}{', perhaps out of memory' * (code == -9)}"


def _serve(pipe: Connection, payload: bytes, memory_mb: float | None) -> None:
    """The life of a worker: says that it is ready (None), then answers asks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()  # one group with everything it starts, so that one signal ends it all
    threading.Thread(target=_follow_parent, daemon=True).start()
    estimate = _load(payload, memory_mb)
    try:
        pipe.send(None)
        while True:
            trial = evaluate(pipe.recv(), estimate)
            pipe.send((trial.metrics, trial.cost, trial.error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _load(payload: bytes, memory_mb: float | None) -> Estimator:
    """The estimator, or one that only says why there is none."""
    try:
        estimate: Estimator = pickle.loads(payload)  # noqa: S301 - from our own parent, through a pipe
        if memory_mb is not None:
            _limit(memory_mb)
    except Exception as error:  # noqa: BLE001 - reported by every trial
        return _Broken(f"the estimator cannot be used in a worker: {one_line(error)}")
    return estimate


def _limit(memory_mb: float) -> None:
    import resource  # not on Windows

    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    if used >= memory_mb * 1e6:
        raise InputError(f"memory_mb = {memory_mb:g}, but a worker takes {used / 1e6:.0f} MB before its first "
                         "candidate: raise it.")
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_mb * 1e6), int(memory_mb * 1e6)))


@dataclass(frozen=True)
class _Broken:
    message: str

    def __call__(self, ask: Ask, /) -> Metrics:
        raise RuntimeError(self.message)
