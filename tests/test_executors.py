"""Executors: the conformance kit, its own sharpness, and candidates that hang, die or take too much memory."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nasopt.errors import EstimateError, InputError, one_line
from nasopt.protocols import Estimator
from nasopt.run.executors import Processes, Serial, evaluate
from nasopt.testing.executor import CASES, Candidates, check_executor
from nasopt.trial import Ask, Metrics, Trial

HERE = Path(__file__)


@contextmanager
def processes(workers: int, timeout: float | None = None, memory_mb: float | None = None) -> Iterator[Processes]:
    executor = Processes(workers, timeout, memory_mb)
    try:
        yield executor
    finally:
        executor.close()


@dataclass(frozen=True)
class Acts:
    """Does what the architecture says: ``act`` is an index into the table below."""

    def __call__(self, ask: Ask, /) -> Metrics:
        return ACTS[ask.arch["act"]]()


def fine() -> Metrics:
    return {"error": 0.5, "pid": float(os.getpid())}


def hangs() -> Metrics:
    while True:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001 - as careless code does
            continue


def eats() -> Metrics:
    return {"error": float(len(bytearray(3 * 10**9)))}


def killed() -> Metrics:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def leaves_a_child() -> Metrics:
    child = subprocess.Popen(["sleep", "60"])
    return {"error": 0.0, "child": float(child.pid)}


def forks_and_dies() -> Metrics:
    if os.fork() == 0:
        time.sleep(60)
    os._exit(5)


ACTS: tuple[Callable[[], Metrics], ...] = (fine, hangs, eats, killed, leaves_a_child, forks_and_dies)
FINE, HANGS, EATS, KILLED, LEAVES, FORKS = range(len(ACTS))


def one(executor: Serial | Processes, act: int, number: int = 0) -> Trial:
    executor.submit(Ask(number, {"act": act}), ACTING)
    (trial,) = executor.wait()
    assert trial.ask.number == number
    return trial


ACTING = Acts()


# ------------------------------------------------------------------------------------------------------------------ kit
def test_serial_conforms() -> None:
    check_executor(Serial)


def test_serial_with_timeout_conforms() -> None:
    check_executor(lambda: Serial(timeout=60.0))


def test_processes_conform() -> None:
    check_executor(lambda: Processes(2), isolated=True)


class Raw(Serial):
    """Lets through what a candidate raises."""

    def wait(self) -> list[Trial]:
        if self._next is None:
            return []
        (ask, estimate), self._next = self._next, None
        return [Trial(ask, estimate(ask), 0.0)]


class Trusting(Serial):
    """Does not look at the metrics."""

    def wait(self) -> list[Trial]:
        if self._next is None:
            return []
        (ask, estimate), self._next = self._next, None
        try:
            return [Trial(ask, estimate(ask), 0.0)]
        except EstimateError as error:
            return [Trial(ask, error.metrics, 0.0, str(error))]
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return [Trial(ask, {}, 0.0, one_line(error))]


class Twice(Serial):
    def wait(self) -> list[Trial]:
        return super().wait() * 2


class Long(Serial):
    """Errors of more than one line."""

    def wait(self) -> list[Trial]:
        return [Trial(t.ask, t.metrics, t.cost, t.error and t.error + "\n  at line 1") for t in super().wait()]


class Full(Serial):
    def free(self) -> int:
        return 0


class Sticky(Serial):
    """Stays with the first estimator."""

    def submit(self, ask: Ask, estimate: Estimator) -> None:
        super().submit(ask, Candidates())


class Immortal(Serial):
    def close(self) -> None:
        """Keeps what was submitted."""


class Eager(Serial):
    def free(self) -> int:
        return 1


@pytest.mark.parametrize(("broken", "word"), [
    (Trusting, "NaN"), (Twice, "one ask was submitted"), (Long, "one line"), (Full, "must be free"),
    (Sticky, "came back with"), (Immortal, "close"), (Eager, "fall by one")])
def test_kit_notices(broken: Callable[[], Serial], word: str) -> None:
    with pytest.raises(AssertionError, match=word):
        check_executor(broken)


def test_kit_does_not_hide_what_a_candidate_raised() -> None:
    with pytest.raises(ValueError, match="no such"):
        check_executor(Raw)


# --------------------------------------------------------------------------------------------------------------- serial
def test_serial_stops_a_candidate_that_swallows_exceptions() -> None:
    before = signal.getsignal(signal.SIGALRM)
    executor = Serial(timeout=0.05)
    assert one(executor, HANGS) == Trial(Ask(0, {"act": HANGS}), {}, 0.05, "TimeoutError: not finished after 0.05 s")
    assert one(executor, FINE, 1).error is None
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_serial_times_out_in_the_main_thread_only() -> None:
    caught: list[BaseException] = []

    def build() -> None:
        try:
            Serial(timeout=1.0)
        except InputError as error:
            caught.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert "use Processes" in str(caught[0])


def test_interruption_from_the_keyboard_is_no_trial() -> None:
    def interrupted(ask: Ask, /) -> Metrics:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Ask(0, {}), interrupted)


def test_numbers_become_floats() -> None:
    numpy = pytest.importorskip("numpy")

    def numbers(ask: Ask, /) -> Metrics:
        return {"a": numpy.float32(0.5), "b": numpy.int64(3), "c": 7}

    trial = evaluate(Ask(0, {}), numbers)
    assert trial.metrics == {"a": 0.5, "b": 3.0, "c": 7.0}
    assert {type(v) for v in trial.metrics.values()} == {float}


@pytest.mark.parametrize(("value", "error"), [
    (math.inf, "metric error is inf"), (True, "metric error is bool, not a number"),
    (None, "metric error is NoneType, not a number")])
def test_bad_metrics(value: float, error: str) -> None:
    trial = evaluate(Ask(0, {}), lambda ask: {"params": 1.0, "error": value})
    assert trial.metrics == {"params": 1.0}
    assert trial.error == error


# ------------------------------------------------------------------------------------------------------------ processes
def test_processes_kill_what_hangs_and_live_on() -> None:
    with processes(1, timeout=0.3) as executor:
        assert one(executor, HANGS) == Trial(Ask(0, {"act": HANGS}), {}, 0.3, "TimeoutError: not finished after 0.3 s")
        assert one(executor, FINE, 1).error is None


def test_processes_survive_the_death_of_workers() -> None:
    with processes(1) as executor:
        first = one(executor, FINE)
        assert one(executor, KILLED, 1).error == "WorkerDied: the worker was ended by SIGKILL, perhaps out of memory"
        assert one(executor, FORKS, 2).error == "WorkerDied: the worker ended with exit code 5"
        second = one(executor, FINE, 3)
        third = one(executor, FINE, 4)
    assert first.metrics["pid"] != second.metrics["pid"] == third.metrics["pid"]


def test_memory_limit() -> None:
    with processes(1, memory_mb=1500) as executor:
        assert one(executor, EATS).error == "MemoryError"
        assert one(executor, FINE, 1).error is None
    with processes(1, memory_mb=1) as executor:
        error = one(executor, FINE).error
        assert error is not None
        assert "memory_mb = 1, but a worker takes" in error


def test_worker_that_died_idle_is_replaced() -> None:
    with processes(1) as executor:
        pid = int(one(executor, FINE).metrics["pid"])
        os.kill(pid, signal.SIGKILL)
        executor._pool[0].process.join()
        trial = one(executor, FINE, 1)
    assert trial.error is None
    assert trial.metrics["pid"] != pid


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    for _ in range(200):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_close_ends_everything() -> None:
    with processes(2) as executor:
        trial = one(executor, LEAVES)
        executor.submit(Ask(1, {"act": HANGS}), ACTING)
        pids = [w.process.pid for w in executor._pool]
    for pid in (*pids, int(trial.metrics["child"])):
        assert pid is not None
        assert gone(pid)


PARENT = f"""
import sys
sys.path[:0] = [{str(HERE.parent)!r}, {str(HERE.parent.parent / "src")!r}]
if __name__ == "__main__":
    from nasopt.run.executors import Processes
    from nasopt.trial import Ask
    from test_executors import ACTING, FINE, HANGS
    executor = Processes(1)
    executor.submit(Ask(0, {{"act": FINE}}), ACTING)
    print(int(executor.wait()[0].metrics["pid"]), flush=True)
    executor.submit(Ask(1, {{"act": HANGS}}), ACTING)
    if sys.argv[1] == "wait":
        executor.wait()
"""


@pytest.mark.parametrize("how", ["wait", "leave"])
def test_workers_end_with_their_parent(tmp_path: Path, how: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script, how], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if how == "wait":
            parent.kill()
    assert gone(pid)


def test_script_without_guard(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(PARENT.replace('if __name__ == "__main__":', "if True:"))
    ran = subprocess.run([sys.executable, script, "wait"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "InputError: no worker process starts" in ran.stderr


def test_estimator_that_cannot_travel() -> None:
    with processes(1) as executor, pytest.raises(InputError, match="top level of a module"):
        executor.submit(Ask(0, {}), lambda ask: {})


class Heavy:
    """Counts how often it is pickled and unpickled."""

    def __init__(self) -> None:
        self.loads = 0
        self.dumps = 0

    def __getstate__(self) -> dict[str, int]:
        self.dumps += 1
        return {"loads": self.loads, "dumps": self.dumps}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.loads = state["loads"] + 1
        self.dumps = state["dumps"]

    def __call__(self, ask: Ask, /) -> Metrics:
        return {"loads": float(self.loads)}


def test_estimator_travels_once() -> None:
    heavy = Heavy()
    with processes(1) as executor:
        for number in range(3):
            executor.submit(Ask(number, {}), heavy)
            (trial,) = executor.wait()
            assert trial.metrics == {"loads": 1.0}
    assert heavy.dumps == 1


class Unloadable:
    def __setstate__(self, state: object) -> None:
        raise ImportError("no module named tea")

    def __getstate__(self) -> int:
        return 1

    def __call__(self, ask: Ask, /) -> Metrics:
        return {}


def test_estimator_that_cannot_be_loaded() -> None:
    with processes(1) as executor:
        executor.submit(Ask(0, {}), Unloadable())
        (trial,) = executor.wait()
    assert trial.error == ("RuntimeError: the estimator cannot be used in a worker: ImportError: no module named tea")


@pytest.mark.parametrize("build", [
    lambda: Processes(0), lambda: Processes(1, timeout=0), lambda: Processes(1, memory_mb=0),
    lambda: Serial(timeout=math.nan), lambda: Serial(timeout=-1)])
def test_bad_arguments(build: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        build()


def test_errors_travel() -> None:
    error = pickle.loads(pickle.dumps(EstimateError("failed", {"a": 1.0})))  # noqa: S301
    assert (str(error), error.metrics) == ("failed", {"a": 1.0})


def test_cases_cover_both_kinds() -> None:
    assert {error is None for _, _, error, _ in CASES} == {True, False}
