"""Training a network with inline choices so that all of its sub-networks share weights (one-shot training)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from nasopt import seed as seeds
from nasopt.nets import choices
from nasopt.nets.depthwise import depthwise
from nasopt.nets.train import (
    Augment,
    Fitted,
    Images,
    Recipe,
    at_once,
    autocast,
    batches,
    channels_last,
    optimisers,
    set_rates,
    triangle,
    whiten,
)
from nasopt.space import Arch, Layout, Space, connected, layout


def sizes(lay: Layout) -> list[int]:
    """The columns that are sizes (widths, depths): choices all of whose labels are numbers."""
    return [k for k, g in enumerate(lay.genes) if all(label.isdigit() for label in g.labels)]


def sandwich(space: Space, random: int, seed: int, step: int) -> list[dict[str, int]]:
    """The sub-networks of one step (sandwich rule, Yu & Huang, ICCV 2019, arXiv 1903.05134): one of the largest size,
    one of the smallest, and ``random`` others. Operations are random in all of them, so that each is trained at each size.

    Networks that do not see their input are drawn again (`nasopt.space.connected`): normalising a constant makes gradients
    explode.
    """
    lay, rng = layout(space), seeds.rng(seed, step, "paths")
    ordered = [(k, np.argsort([int(label) for label in lay.genes[k].labels])) for k in sizes(lay)]

    def draw(end: int | None) -> dict[str, int]:
        for _ in range(100):
            row = lay.random(rng, 1)
            for k, order in ordered if end is not None else ():
                row[0, k] = order[end or 0]
            arch = lay.archs(row)[0]
            if connected(space, arch):
                break
        return arch

    return [draw(-1), draw(0), *(draw(None) for _ in range(random))]


def fit(net: nn.Module, data: Images, recipe: Recipe, augment: Augment, steps: int, seed: int, *, random: int = 2,
        watch: Callable[[int, int], None] | None = None) -> Fitted:
    """Trains the shared weights in place, where the images are. Every step sums the gradients of ``random + 2`` sub-networks on
    one batch.

    Args:
        net: a module with inline choices (`nasopt.nets.choices`).
        recipe: its ``epochs`` are not used: ``steps`` says how long.
        watch: called with (steps done, steps) after every step.

    Raises:
        FloatingPointError: the loss of a step is not finite.
    """
    started, space = time.perf_counter(), choices.space_of(net)
    torch.manual_seed(seeds.integer(seed, 0, "shared training"))  # for layers that draw, such as dropout
    channels_last(net.to(data.device).train())
    opts = optimisers(net, recipe)
    whiten(net, data)
    tail: list[float] = []
    for step, (x, y) in zip(range(steps), batches(data, recipe.batch_for(data), augment, seed, 0), strict=False):
        set_rates(opts, triangle(step, steps, recipe.warmup))
        net.zero_grad(set_to_none=True)
        total = 0.0
        archs = sandwich(space, random, seed, step)
        for arch in archs:
            choices.activate(net, arch)
            with autocast(device=data.device), depthwise(data.device):
                loss = functional.cross_entropy(net(x).float(), y, label_smoothing=recipe.smoothing) / len(archs)
            if loss.requires_grad:
                loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise FloatingPointError(f"the supernet's loss became {total} at step {step + 1} of {steps}.")
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        for opt in opts:
            opt.step()
        tail = [*tail, total][-max(1, steps // 10):]
        if watch is not None:
            watch(step + 1, steps)
    return Fitted(time.perf_counter() - started, steps, sum(tail) / max(1, len(tail)))


def inherit(net: nn.Module, arch: Arch, data: Images, images: int, batch: int = 256) -> nn.Module:
    """The stand-alone sub-network with the shared weights, its batch normalisations recalibrated.

    Shared running statistics mix all sub-networks, so they are measured anew for this one (Yu & Huang, ICCV 2019).

    Args:
        data, images: how many of the training images are used for it.

    Returns:
        A plain module in evaluation mode; the supernet is left as it is.
    """
    alone = choices.extract(net, arch)
    recalibrate(alone, data, images, batch)
    return alone


@torch.no_grad()
def recalibrate(net: nn.Module, data: Images, images: int, batch: int = 256) -> None:
    """Sets every batch normalisation's running statistics to the mean over ``images`` random images (always the same)."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [m.momentum for m in norms]
    net.eval()  # other layers, such as dropout, as they will be
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:images]
    parts = max(1, math.ceil(len(order) / at_once(data.x.shape, batch)))
    for part in order.tensor_split(parts):  # of one size, since every batch counts the same
        if len(part) > 1:
            with autocast(device=data.device):
                net(data.normalised(part))
    for m, momentum in zip(norms, kept, strict=True):
        m.momentum = momentum
    net.eval()
