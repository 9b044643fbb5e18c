"""Latency: one protocol for all networks and runtimes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nasopt.cost.forward import batch_of, frozen
from nasopt.errors import InputError, unknown
from nasopt.trial import Metrics

SETTLE_S = 0.05
"""Very short calls are timed for at least this long in all (but not more than 20 times as often as asked)."""

TURN = 10
"""Timed runs in a row when several calls are timed by turns."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The median and the interquartile range of ``runs`` timed calls, in milliseconds."""

    median_ms: float
    iqr_ms: float
    runs: int


def clock(call: Callable[[], object], warmup: int = 10, runs: int = 50,
          timer: Callable[[], float] = time.perf_counter) -> Timing:
    """Times a call: ``warmup`` untimed calls, then at least ``runs`` timed ones, with garbage collection off.

    Args:
        call: what is timed.
        warmup: untimed calls before.
        runs: timed calls at least; more of very short ones, so that their median is stable.
        timer: the clock, in seconds.

    Raises:
        InputError: no run, or a negative number of warm-ups.
    """
    return clocks([call], warmup, runs, timer)[0]


def clocks(calls: Sequence[Callable[[], object]], warmup: int = 10, runs: int = 50,
           timer: Callable[[], float] = time.perf_counter) -> list[Timing]:
    """Times several calls as `clock` does, but by turns of `TURN` runs: a machine that slows down does so for all of them.

    Raises:
        InputError: no run, or a negative number of warm-ups.
    """
    if runs < 1 or warmup < 0:
        raise InputError(f"a timing needs at least 1 run and no negative warm-up, got runs={runs}, warmup={warmup}.")
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(warmup):
            call()
    with _no_collection():
        while not all(_enough(known, runs) for known in seconds):
            for call, known in zip(calls, seconds, strict=True):
                if len(calls) > 1:
                    call()  # what it needs is in the caches again
                for _ in range(TURN):
                    if not _enough(known, runs):
                        known.append(clock_once(call, timer))
    return [_summary(known) for known in seconds]


def _enough(seconds: Sequence[float], runs: int) -> bool:
    return len(seconds) >= runs and (sum(seconds) >= SETTLE_S or len(seconds) >= 20 * runs)


def _summary(seconds: Sequence[float]) -> Timing:
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return Timing(float(median) * 1e3, float(high - low) * 1e3, len(seconds))


def clock_once(call: Callable[[], object], timer: Callable[[], float]) -> float:
    """The duration of one call in seconds."""
    start = timer()
    call()
    return timer() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is not collected within (nor before: that takes longer than most timings)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch uses this many threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def onnx_latencies(models: Sequence[bytes | Path], inputs: Tensor, threads: int = 1, runs: int = 50,
                   timer: Callable[[], float] = time.perf_counter) -> list[Timing]:
    """The latency of one run of ONNX files, or of their bytes, in ONNX Runtime on the CPU, timed by turns.

    Raises:
        InputError: ONNX Runtime is not installed, or a file is no model it can run.
    """
    from nasopt.cost import runtimes

    sessions = [runtimes.session(model, threads) for model in models]
    value = inputs.numpy(force=True)
    return clocks([partial(s.run, None, {s.get_inputs()[0].name: value}) for s in sessions], runs=runs, timer=timer)


@dataclass(frozen=True)
class Latency:
    """The cost model of the latency of one forward pass of a batch, in milliseconds.

    ``runtime="torch"`` gives ``latency_ms`` and ``latency_iqr_ms``; ``"onnxruntime"`` exports the network first, which
    takes seconds, and gives ``latency_onnx_ms`` and ``latency_onnx_iqr_ms``.

    Args:
        runtime: ``"torch"`` or ``"onnxruntime"``.
        threads: threads the runtime may use, at least 1. PyTorch's own setting is restored afterwards.
        batch: rows in the timed batch.
        runs: timed passes at least.
        timer: the clock, in seconds.

    Raises:
        InputError: an unknown runtime, one that is not installed, or a count below 1.
    """

    runtime: str = "torch"
    threads: int = 1
    batch: int = 1
    runs: int = 50
    timer: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if self.runtime not in ("torch", "onnxruntime"):
            raise unknown("runtime", self.runtime, ["torch", "onnxruntime"])
        if min(self.threads, self.batch, self.runs) < 1:
            raise InputError(f"threads, batch and runs must be at least 1, "
                             f"got {self.threads}, {self.batch}, {self.runs}.")
        if self.runtime == "onnxruntime":
            import nasopt.cost.runtimes  # noqa: F401  a missing package is told now, not after the first training

    def __call__(self, net: nn.Module, example: Tensor, /) -> Metrics:
        return self.compare([net], example)[0]

    def compare(self, nets: Sequence[nn.Module], example: Tensor) -> list[Metrics]:
        """The metrics of several networks, timed by turns: what they differ by is not the machine's mood."""
        inputs = batch_of(example, self.batch)
        if self.runtime == "torch":
            twins = [frozen(net) for net in nets]
            with torch_threads(self.threads), torch.inference_mode():
                timings = clocks([partial(twin, inputs) for twin in twins], runs=self.runs, timer=self.timer)
            return [{"latency_ms": t.median_ms, "latency_iqr_ms": t.iqr_ms} for t in timings]
        from nasopt.cost import runtimes

        models = [runtimes.onnx_bytes(net, example) for net in nets]
        return [{"latency_onnx_ms": t.median_ms, "latency_onnx_iqr_ms": t.iqr_ms}
                for t in onnx_latencies(models, inputs, self.threads, self.runs, self.timer)]
