"""Latency: one protocol for all networks and runtimes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nasopt.cost.forward import batch_of, frozen
from nasopt.errors import InputError, unknown
from nasopt.trial import Metrics

SETTLE_S = 0.05
"""Very short calls are timed for at least this long in all (but not more than 20 times as often as asked)."""


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
    if runs < 1 or warmup < 0:
        raise InputError(f"a timing needs at least 1 run and no negative warm-up, got runs={runs}, warmup={warmup}.")
    for _ in range(warmup):
        call()
    with _no_collection():
        seconds = _timed(call, runs, timer)
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return Timing(float(median) * 1e3, float(high - low) * 1e3, len(seconds))


def _timed(call: Callable[[], object], runs: int, timer: Callable[[], float]) -> list[float]:
    """The duration of each call in seconds."""
    seconds: list[float] = []
    total = 0.0
    while len(seconds) < runs or (total < SETTLE_S and len(seconds) < 20 * runs):
        seconds.append(clock_once(call, timer))
        total += seconds[-1]
    return seconds


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


def torch_latency(net: nn.Module, inputs: Tensor, threads: int = 1, runs: int = 50,
                  timer: Callable[[], float] = time.perf_counter) -> Timing:
    """The latency of one forward pass in PyTorch, of a copy in evaluation mode, in inference mode, layout as given."""
    twin = frozen(net)
    with torch_threads(threads), torch.inference_mode():
        return clock(lambda: twin(inputs), runs=runs, timer=timer)


def onnx_latency(model: bytes | Path, inputs: Tensor, threads: int = 1, runs: int = 50,
                 timer: Callable[[], float] = time.perf_counter) -> Timing:
    """The latency of one run of an ONNX file, or of its bytes, in ONNX Runtime on the CPU.

    Raises:
        InputError: ONNX Runtime is not installed, or the file is no model it can run.
    """
    from nasopt.cost import runtimes

    session = runtimes.session(model, threads)
    feed = {session.get_inputs()[0].name: inputs.numpy(force=True)}
    return clock(lambda: session.run(None, feed), runs=runs, timer=timer)


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
        inputs = batch_of(example, self.batch)
        if self.runtime == "torch":
            timing = torch_latency(net, inputs, self.threads, self.runs, self.timer)
            return {"latency_ms": timing.median_ms, "latency_iqr_ms": timing.iqr_ms}
        from nasopt.cost import runtimes

        timing = onnx_latency(runtimes.onnx_bytes(net, example), inputs, self.threads, self.runs, self.timer)
        return {"latency_onnx_ms": timing.median_ms, "latency_onnx_iqr_ms": timing.iqr_ms}
