"""Time without running the whole network: the sum over its layers, each of them timed once (the lookup table of Wu et al.,
FBNet, CVPR 2019, §3.3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nasopt.cost.clock import clock_once, torch_threads
from nasopt.cost.forward import batch_of, frozen, plain
from nasopt.trial import Metrics

Timer = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], float]
"""What one call of a layer's ``forward`` (not of the layer: it carries hooks) with these inputs takes, in milliseconds."""


@dataclass(frozen=True)
class Layers:
    """A cost model that adds up what every layer takes; a layer of a kind and a size met before is not timed again.

    Layers are the modules without children. What a network computes between them (sums of branches) counts nothing, so
    this ranks networks and is no substitute for timing them.

    Args:
        name: of the metric.
        timer: times one layer.
        known: milliseconds by kind and size of a layer.
    """

    name: str
    timer: Timer
    known: dict[str, float] = field(default_factory=dict)

    def __call__(self, net: nn.Module, example: Tensor, /) -> Metrics:
        total = 0.0

        def add(layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            nonlocal total
            tensors = [t for t in (*layer.parameters(), *tree_leaves((inputs, dict(named)))) if isinstance(t, Tensor)]
            kind = type(layer)
            key = repr((kind.__module__, kind.__qualname__, layer, [tuple(t.shape) for t in tensors]))
            if key not in self.known:
                self.known[key] = self.timer(layer, inputs, named)
            total += self.known[key]

        twin = frozen(net)
        hooks = [m.register_forward_pre_hook(add, with_kwargs=True) for m in twin.modules() if not any(m.children())]
        try:
            with plain():
                twin(batch_of(example, 1))
        finally:
            for hook in hooks:
                hook.remove()
        return {self.name: total}


def forward_ms(threads: int = 1, timer: Callable[[], float] = time.perf_counter) -> Timer:
    """Times a forward pass of a layer on its inputs as they are, in PyTorch."""
    def call(layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> float:
        with torch_threads(threads), torch.inference_mode():
            return fastest_ms(lambda: layer.forward(*inputs, **named), 20, timer)

    return call


def fastest_ms(call: Callable[[], object], runs: int, timer: Callable[[], float] = time.perf_counter) -> float:
    """The shortest of some calls after a first one, in milliseconds: what else the machine does only makes calls longer."""
    call()
    return 1e3 * min(clock_once(call, timer) for _ in range(runs))
