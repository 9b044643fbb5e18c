"""Shows: what a step of a differentiable search costs on the DARTS space, in seconds and in memory.

    python benchmarks/differentiable_speed.py [--steps 7] [--channels 16] [--layers 8] [--batch 64] [--quick]

Every step takes the gradient of the architecture parameters on one batch, but where they rest, and trains the weights on another,
random images of 32 x 32. The baseline is DARTS of first order as published, in fp32 and plain memory order. All searches are in
memory at once, and their steps take turns, so that whatever else the machine does meets all of them alike. The peak of memory is
measured in a process of its own for each, above what the process held before its search: images, weights, optimisers, and the
steps' tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from unittest import mock

import numpy as np
import torch
from common import write

from nasopt.machine import peak_memory_mb
from nasopt.nets import differentiable, relax
from nasopt.nets.differentiable import DifferentiableSearch, Method
from nasopt.nets.hypergradient import ConjugateGradient, FiniteDifference, Neumann
from nasopt.nets.train import CPU, Augment, Images, bf16_pays
from nasopt.spaces.darts import darts
from nasopt.strategies.gradient import RECIPES

RATE = 0.025


@dataclass(frozen=True)
class Variant:
    """A method, the share of the channels that it searches, and what of nasopt's ways to run it is left out."""

    method: Method = field(default_factory=Method)
    partial: int = 1
    without: tuple[str, ...] = ()


VARIANTS = {
    "DARTS, first order, fp32 NCHW": Variant(without=("channels_last", "autocast", "Depthwise")),
    "DARTS, first order, fp32": Variant(without=("autocast",)),
    "DARTS, first order": Variant(),
    "one sampled path (GDAS)": Variant(Method(relaxation=relax.gumbel_hard)),
    "two sampled paths": Variant(Method(relaxation=relax.pair)),
    "the recipe nasopt": Variant(replace(RECIPES["nasopt"].method, still=0.0), RECIPES["nasopt"].partial),
    "the recipe nasopt, while alpha rests": Variant(replace(RECIPES["nasopt"].method, still=1.0), RECIPES["nasopt"].partial),
    "partial channels, 1 in 4 (PC-DARTS)": Variant(Method(edges=True), partial=4),
    "second order, finite difference": Variant(Method(hypergradient=FiniteDifference(RATE))),
    "second order, Neumann, 2 terms": Variant(Method(hypergradient=Neumann(2, RATE))),
    "second order, conjugate gradients, 2 steps": Variant(Method(hypergradient=ConjugateGradient(2, damping=1.0))),
}
BASELINE = next(iter(VARIANTS))


@contextlib.contextmanager
def left_out(names: tuple[str, ...]) -> Iterator[None]:
    """Without channels last, autocast, or the detours around slow kernels."""
    with contextlib.ExitStack() as stack:
        for name in names:
            nothing = (lambda net: net) if name == "channels_last" else contextlib.nullcontext
            stack.enter_context(mock.patch.object(differentiable, name, nothing))
        if "channels_last" in names:
            stack.enter_context(mock.patch.object(Images, "normalised", lambda self, index: self.x[self.index[index]]))
            stack.enter_context(mock.patch.object(Augment, "__call__", lambda self, x, mirrored, generator: x))
        yield


def start(variant: Variant, channels: int, layers: int, batch: int, steps: int,
          device: torch.device = CPU) -> DifferentiableSearch:
    """The search of a variant."""
    torch.manual_seed(0)
    count = 40 * batch  # a batch is at most a 20th of a part
    x = torch.randn(count, 3, 32, 32)
    data = Images.all(x, torch.arange(count) % 10, torch.zeros(3), torch.ones(3)).to(device)
    index = torch.arange(count)
    method = replace(variant.method, recipe=replace(variant.method.recipe, batch=batch))
    net = darts(channels=channels, layers=layers, partial=variant.partial, affine=False).to(device)
    with left_out(variant.without):
        return DifferentiableSearch(net, data.part(index[::2]), data.part(index[1::2]), method, steps, 0, Augment())


def seconds(size: tuple[int, int, int], steps: int) -> dict[str, list[float]]:
    """Of every variant, the time of a step in each turn, of which a first one is left out. A turn has as many steps as it takes
    for α to move once."""
    found = {name: start(variant, *size, (steps + 1) * variant.method.every) for name, variant in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for step in range(steps + 1):
        for name, search in found.items():
            with left_out(VARIANTS[name].without):
                started = time.perf_counter()
                search.run(search.method.every)
                times[name].append((time.perf_counter() - started) / search.method.every)
            print(f"step {step} {name}: {times[name][-1]:.2f} s", flush=True)
    return {name: values[1:] for name, values in times.items()}


def peak(name: str, size: tuple[int, int, int]) -> int:
    """Bytes that the process holds at most while a variant makes two steps, above what it held before."""
    variant = VARIANTS[name]
    bf16_pays()
    torch.nn.functional.conv2d(torch.randn(1, 3, 8, 8), torch.randn(3, 3, 3, 3, requires_grad=True)).sum().backward()
    before = peak_memory_mb()
    with left_out(variant.without):
        start(variant, *size, 2).run(2)
    return round(1e6 * (peak_memory_mb() - before))


def main() -> None:
    """Measures and writes ``results/differentiable_speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="2 steps")
    parser.add_argument("--peak", choices=list(VARIANTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = given.channels, given.layers, given.batch
    if given.peak is not None:
        print(peak(given.peak, size))
        return
    here = [sys.executable, __file__, *(f"--{key}={getattr(given, key)}" for key in ("channels", "layers", "batch"))]
    bytes_ = {name: int(subprocess.run([*here, "--peak", name], check=True, stdout=subprocess.PIPE, text=True).stdout)
              for name in VARIANTS}
    times = seconds(size, 2 if given.quick else given.steps)
    rows = []
    for name, values in times.items():
        low, middle, high = np.percentile(values, [25, 50, 75])
        ratios = np.array(values) / np.array(times[BASELINE])
        rows.append([name, len(values), f"{middle:.3g}", f"{low:.3g} to {high:.3g}", f"{np.median(ratios):.2f}",
                     f"{bytes_[name] / 1e6:.0f}", f"{bytes_[name] / bytes_[BASELINE]:.2f}"])
        print(*rows[-1])
    table = {"caption": f"A step on the DARTS space: {size[0]} channels, {size[1]} layers, batches of {size[2]}, images of 32 x "
                        f"32; bf16 where it pays (here: {'yes' if bf16_pays() else 'no'}), {torch.get_num_threads()} threads. "
                        "Time ratios: median over the turns of a step to the baseline's of the same turn",
             "columns": ["search", "steps", "seconds a step (median)", "quartiles", "time ratio", "peak MB", "memory ratio"],
             "rows": rows}
    write("differentiable_speed", {"title": "Differentiable search: what a step costs", "tables": [table],
                                   "seconds": times, "bytes": bytes_}, [0])


if __name__ == "__main__":
    main()
