"""Peak memory of one forward pass: by liveness analysis, and as the allocator saw it."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nasopt.cost.forward import batch_of, frozen, plain
from nasopt.trial import Metrics


def peak_mb(net: nn.Module, example: Tensor) -> float:
    """Weights plus the most activation memory live at once in one forward pass, in MB (1e6 bytes).

    The pass runs once and every operation's tensors are recorded. A storage lives from the operation that creates it to
    the last one that reads or writes it, or any view of it (liveness: Aho et al., Compilers, §8.4); while an operation
    runs, its inputs and outputs are all live. Views and in-place operations add nothing. The input, which the caller
    holds, and the weights live throughout; the output lives to the end. This is what a graph executor needs that runs
    the operations in this order and frees a tensor after its last use, as an exported program does. Not counted:
    scratch space inside a kernel, and what Python's own variables hold on to longer.
    """
    twin, inputs = frozen(net), batch_of(example, len(example))
    tape = _Tape()
    tape.keep([inputs, *twin.parameters(), *twin.buffers()])
    with plain(), tape:
        tape.touch(tree_leaves(twin(inputs)))
    return tape.peak() / 1e6


@dataclass
class _Life:
    """A storage: its bytes, and the first and the last step at which it lives."""

    bytes: int
    first: int
    last: int


@dataclass
class _Tape(TorchDispatchMode):
    """Records the life of every storage that the operations running under it touch."""

    lives: dict[int, _Life] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    refs: list[StorageWeakRef] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: OpOverload[Any, Any], types: Any, args: Sequence[Any] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        self.step += 1
        read = tree_leaves((args, kwargs or {}))
        self.keep([t for t in read if isinstance(t, Tensor) and _name(t) not in self.lives])  # made before the pass
        out = func(*args, **(kwargs or {}))
        self.touch([*read, *tree_leaves(out)])
        return out

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """These live throughout."""
        self.touch(tensors)
        self.kept.update(_name(t) for t in tensors)

    def touch(self, values: Sequence[Any]) -> None:
        """Those of the values that are tensors live now."""
        for t in values:
            if isinstance(t, Tensor):
                life = self.lives.get(_name(t))
                if life is None:
                    # so that the name is not given again:
                    self.refs.append(StorageWeakRef(t.untyped_storage()))
                    life = self.lives[_name(t)] = _Life(0, self.step, self.step)
                life.bytes, life.last = max(life.bytes, t.untyped_storage().nbytes()), self.step

    def peak(self) -> int:
        """The most bytes live at one step."""
        change = [0] * (self.step + 2)
        for name, life in self.lives.items():
            first, last = (0, self.step) if name in self.kept else (life.first, life.last)
            change[first] += life.bytes
            change[last + 1] -= life.bytes
        return max(itertools.accumulate(change))


def _name(tensor: Tensor) -> int:
    """What tells a storage from all others while something refers to it."""
    return int(tensor.untyped_storage()._cdata)


def measured_peak_mb(net: nn.Module, example: Tensor) -> float:
    """What one forward pass of the network, as it stands, really held at its peak, in MB (1e6 bytes).

    Weights and input plus the highest sum of the CPU allocator's events (`torch.profiler`), so it shares nothing with
    `peak_mb`. It also holds kernels' scratch space (transformed weights of a 3×3 convolution, .6 MB for 64 channels at
    any batch size; a copy of an NCHW activation in oneDNN's own layout) and, for a module in Python, what variables of
    enclosing calls hold on to; an exported program's module holds on to nothing. A check, not an objective.
    """
    inputs = batch_of(example, len(example))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [inputs, *net.parameters(), *net.buffers()]}
    with plain():
        net(inputs)  # whatever is built on the first call is not part of a pass
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            out = net(inputs)
    del out
    return (sum(held.values()) + max([0, *itertools.accumulate(_allocations(profile))])) / 1e6


def _allocations(profile: torch.profiler.profile) -> list[int]:
    """The allocator's events in the order of time: bytes taken (positive) and given back (negative)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = [e for e in json.loads(file.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    return [e["args"]["Bytes"] for e in sorted(events, key=lambda e: e["ts"])]


@dataclass(frozen=True)
class Memory:
    """The cost model of `peak_mb` for a given batch size: ``memory_mb``."""

    batch: int = 1

    def __call__(self, net: nn.Module, example: Tensor, /) -> Metrics:
        return {"memory_mb": peak_mb(net, batch_of(example, self.batch))}
