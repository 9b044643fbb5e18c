"""Shows: how fast the trainer is, against a plain loop and against what the machine can do.

    python benchmarks/trainer_speed.py [--turns 5] [--batch 256] [--device cpu] [--quick]

The network is the one of airbench94 (Jordan, arXiv 2404.00498) but for its residual connections and the scale of its outputs:
a whitening layer and three stages of two 3x3 convolutions. The baseline is the loop of most tutorials: a `DataLoader` over a
data set that normalises, mirrors and shifts image by image, fp32, plain memory order, SGD. The bounds are the network's
convolutions alone, forward and backward, as the trainer runs them, and products of two matrices. All take turns, so that
whatever else the machine does meets all of them alike. Images are random: speed does not depend on them. The peak of memory
is measured in a process of its own for each loop, above what the process held before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from common import write
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from nasopt.machine import peak_memory_mb
from nasopt.nets import train
from nasopt.nets.whitening import Whitening

STEPS = 3
"""Of each loop in a turn."""

MATRIX = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices by kind of device."""

AUGMENT = train.Augment(flip=True, translate=2)


def network() -> nn.Sequential:
    """airbench94's network."""
    def stage(before: int, width: int) -> list[nn.Module]:
        return [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU()]

    torch.manual_seed(0)
    return nn.Sequential(Whitening(3), nn.GELU(), *stage(24, 64), *stage(64, 256), *stage(256, 256), nn.MaxPool2d(3),
                         nn.Flatten(), nn.Linear(256, 10, bias=False))


def images(batch: int, device: torch.device) -> train.Images:
    """Random images, so many that an epoch has `nasopt.nets.train.MIN_STEPS` full batches."""
    x = torch.randint(0, 256, (train.MIN_STEPS * batch, 3, 32, 32), dtype=torch.uint8)
    data = train.Images.all(x, torch.arange(len(x)) % 10, torch.full((3,), 120.0), torch.full((3,), 64.0))
    return data.to(device)


# ------------------------------------------------------------------------------------------------------------ the loops
class OneByOne(Dataset[tuple[Tensor, int]]):
    """Images that are prepared each for itself."""

    def __init__(self, data: train.Images) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        data = self.data
        x = (data.x[index].float() - data.mean[:, None, None]) / data.std[:, None, None]
        x = x.flip(2) if torch.rand(()) < 0.5 else x
        top, left = torch.randint(0, 5, (2,)).tolist()
        return functional.pad(x, [2] * 4, mode="reflect")[:, top:top + 32, left:left + 32], int(data.labels[index])


def plain(net: nn.Module, data: train.Images, batch: int, device: torch.device) -> Iterator[float]:
    """The seconds of every step of the plain loop."""
    net.to(device).train()
    opt = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    loader = iter(DataLoader(OneByOne(data), batch, shuffle=True, drop_last=True))
    while True:
        started = time.perf_counter()
        x, y = next(loader)
        loss = functional.cross_entropy(net(x.to(device)), y.to(device), label_smoothing=0.1)
        opt.zero_grad()
        loss.backward()
        opt.step()
        loss.item()
        yield time.perf_counter() - started


def trainer(net: nn.Module, data: train.Images, batch: int, steps: int) -> list[float]:
    """The seconds of every step of the trainer but the first."""
    ticks: list[float] = []

    def tick(done: int, total: int) -> None:
        wait(data.device)
        ticks.append(time.perf_counter())

    recipe = train.Recipe(epochs=(steps + 1) / train.MIN_STEPS, batch=batch)
    train.fit(net, data, recipe, AUGMENT, 0, watch=tick)
    return np.diff(ticks).tolist()


def preparing(stream: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """The seconds of the trainer's next batch."""
    started = time.perf_counter()
    next(stream)
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ----------------------------------------------------------------------------------------------------------- the bounds
def convolutions(net: nn.Sequential, x: Tensor) -> list[Callable[[], None]]:
    """A forward and a backward pass of each convolution of a network, on its own input, in bf16 where the trainer uses it."""
    found: list[Callable[[], None]] = []
    train.channels_last(net.to(x.device).train())
    with torch.no_grad(), train.autocast(device=x.device):
        for layer in net:
            if isinstance(layer, nn.Conv2d):
                found.append(partial(both_ways, layer, x.detach().requires_grad_(layer.weight.requires_grad)))
            x = layer(x)
    return found


def both_ways(layer: nn.Conv2d, x: Tensor) -> None:
    """A forward and a backward pass."""
    with train.autocast(device=x.device):
        y = layer(x)
    x.grad = None
    layer.zero_grad()
    y.backward(torch.ones_like(y))


def timed(calls: list[Callable[[], None]], device: torch.device) -> float:
    """The seconds of all calls."""
    wait(device)
    started = time.perf_counter()
    for call in calls:
        call()
    wait(device)
    return time.perf_counter() - started


def flops_of(calls: list[Callable[[], None]]) -> int:
    """Floating-point operations, a multiply-accumulate counted as two."""
    with FlopCounterMode(display=False) as counter:
        for call in calls:
            call()
    return counter.get_total_flops()


# ---------------------------------------------------------------------------------------------------------------- memory
def peak(loop: str, batch: int, device: torch.device) -> int:
    """Bytes that are held at most during two steps of a loop, above what is held before: images, weights, and the steps'
    tensors. On a GPU its memory."""
    train.bf16_pays()
    functional.conv2d(torch.randn(1, 3, 8, 8), torch.randn(3, 3, 3, 3, requires_grad=True)).sum().backward()
    before = held(device)
    data = images(batch, device if loop == "trainer" else train.CPU)
    if loop == "trainer":
        trainer(network(), data, batch, 1)
    else:
        steps = plain(network(), data, batch, device)
        next(steps), next(steps)
    return held(device) - before


def held(device: torch.device) -> int:
    """The largest memory so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return round(1e6 * peak_memory_mb())


def measure(turns: int, batch: int, device: torch.device) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each thing in every turn, of a step, a batch or a pass; and floating-point operations of each."""
    data, side = images(batch, device), MATRIX[device.type]
    stream = train.batches(data, batch, AUGMENT, 0, 0)
    x, y = next(stream)
    convs = convolutions(network(), x)
    twin = network().to(device).train()
    products = {name: partial(torch.matmul, *torch.randn(2, side, side, device=device, dtype=dtype))
                for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    flops = {"step": float(flops_of([lambda: functional.cross_entropy(twin(x), y).backward()])),
             "convolutions": float(flops_of(convs)), "product": 2.0 * side**3}
    times: dict[str, list[float]] = {}
    timed([*convs, *products.values()], device)  # the first calls choose algorithms
    for turn in range(turns):
        steps = plain(network(), images(batch, train.CPU), batch, device)
        next(steps)
        found = {"plain loop": float(np.median([next(steps) for _ in range(STEPS)])),
                 "trainer": float(np.median(trainer(network(), data, batch, STEPS))),
                 "data": preparing(stream, device),
                 "convolutions": timed(convs, device),
                 **{f"{name} product": timed([call], device) for name, call in products.items()}}
        for name, seconds in found.items():
            times.setdefault(name, []).append(seconds)
        print(f"turn {turn}:", ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in found.items()), flush=True)
    return times, flops


def main() -> None:
    """Measures and writes ``results/trainer_speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="1 turn, batches of 16")
    parser.add_argument("--peak", choices=("trainer", "plain loop"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    batch, turns = (16, 1) if given.quick else (given.batch, given.turns)
    device = train.device_of(given.device)
    if given.peak is not None:
        print(peak(given.peak, given.batch, device))
        return
    here = [sys.executable, __file__, f"--batch={batch}", f"--device={given.device}"]
    bytes_ = {loop: int(subprocess.run([*here, f"--peak={loop}"], check=True, stdout=subprocess.PIPE, text=True).stdout)
              for loop in ("plain loop", "trainer")}
    times, flops = measure(turns, batch, device)
    middle = {name: float(np.median(values)) for name, values in times.items()}

    def ratio(a: str, b: str) -> float:
        return float(np.median(np.array(times[a]) / np.array(times[b])))

    loops = [[name, batch / middle[name], flops["step"] / middle[name] / 1e9, ratio("plain loop", name),
              f"{100 * ratio('data', name):.1f} %" if name == "trainer" else None, bytes_[name] / 1e6]
             for name in ("plain loop", "trainer")]
    rates = {"the trainer's step": ("trainer", "step"), "its convolutions alone": ("convolutions", "convolutions"),
             "a product of matrices, bf16": ("bf16 product", "product"),
             "a product of matrices, fp32": ("fp32 product", "product")}
    trained = flops["step"] / np.array(times["trainer"])
    bounds = [[what, flops[kind] / middle[name] / 1e9, float(np.median(trained / (flops[kind] / np.array(times[name]))))]
              for what, (name, kind) in rates.items()]
    for row in (*loops, *bounds):
        print(*row)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    pays = "yes" if device.type == "cuda" or train.bf16_pays() else "no"
    tables = [
        {"caption": f"A step of airbench94's network: batches of {batch}, images of 32 x 32; {chip}; bf16 where it pays (here: "
                    f"{pays}). Ratios: median over {turns} turns",
         "columns": ["loop", "images/s", "GFLOP/s", "times as fast as the plain loop", "share of preparing the batch", "peak MB"],
         "rows": loops},
        {"caption": f"What the machine can do: floating-point operations a second, products of {MATRIX[device.type]} x "
                    f"{MATRIX[device.type]}",
         "columns": ["what", "GFLOP/s", "the trainer's rate as a share of it"], "rows": bounds}]
    write("trainer_speed", {"title": "The trainer's speed", "tables": tables, "seconds": times, "flops": flops,
                            "bytes": bytes_}, [0])


if __name__ == "__main__":
    main()
