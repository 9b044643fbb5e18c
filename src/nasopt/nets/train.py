"""Training a network on images that live in memory: one short, strong recipe for every network.

Muon for the kernels, SGD with Nesterov momentum for the rest, a triangular learning rate, label smoothing, alternating flips
and random translations (the parts that matter most in Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv
2404.00498), bf16 autocast and channels_last where a measurement says that they pay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasopt import seed as seeds
from nasopt.nets.depthwise import Depthwise
from nasopt.nets.muon import Muon

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Images:
    """Some of the images of a data set that stays in memory once; they are normalised batch by batch.

    Attributes:
        x: (N, C, H, W), all images, any dtype, as the user has the values.
        labels: (N,) int64, of all images.
        mean, std: (C,) float32, of the training part.
        index: (n,) which of them are meant.
    """

    x: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    index: Tensor

    @classmethod
    def all(cls, x: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> Images:
        """Every image of a data set."""
        return cls(x, labels, mean, std, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def y(self) -> Tensor:
        """The labels (n,)."""
        return self.labels[self.index]

    def part(self, index: Tensor) -> Images:
        """The images at ``index`` of these."""
        return replace(self, index=self.index[index])

    def normalised(self, index: Tensor | slice) -> Tensor:
        """float32 (k, C, H, W), zero mean and unit variance per channel over the training part."""
        x = (self.x[self.index[index]].float() - self.mean[:, None, None]) / self.std[:, None, None]
        return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Augment:
    """What a training image may look like.

    Attributes:
        flip: mirror left and right: a random half in the first epoch, then alternately (arXiv 2404.00498, §3.3).
        translate: shift by up to so many pixels, the border reflected.
    """

    flip: bool = False
    translate: int = 0

    @classmethod
    def for_images(cls, shape: tuple[int, int, int]) -> Augment:
        """A default from the shape (C, H, W): colour photographs are mirrored, nothing else is; shifts of up to 1/16."""
        return cls(flip=shape[0] == 3 and min(shape[1:]) >= 16, translate=min(max(1, min(shape[1:]) // 16), min(shape[1:]) - 1))

    def __call__(self, x: Tensor, flipped: Tensor, generator: torch.Generator) -> Tensor:
        """``x`` (n, C, H, W), ``flipped`` (n,) bool: which images are mirrored now."""
        if self.flip:
            x = torch.where(flipped[:, None, None, None], x.flip(3), x)
        if self.translate:
            n, _, h, w = x.shape
            padded = functional.pad(x, [self.translate] * 4, mode="reflect")
            windows = padded.unfold(2, h, 1).unfold(3, w, 1)
            shift = torch.randint(0, 2 * self.translate + 1, (2, n), generator=generator)
            x = windows[torch.arange(n), :, shift[0], shift[1]]
        return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of one training. The same for every network of a run.

    Attributes:
        epochs: passes over the training part; may be a fraction.
        batch: images a step, at most; fewer on small data, so that an epoch has at least `MIN_STEPS` steps.
        kernel_lr: peak step length of `Muon` for the convolutions' kernels; None: SGD for them too.
        lr: peak learning rate of SGD with Nesterov momentum, for all else.
        weight_decay: SGD's, on matrices and kernels; not on biases and normalisations.
        smoothing: label smoothing.
        warmup: share of the steps in which the learning rates rise linearly; then they fall linearly to 0.
        clip: largest norm of the gradient.
    """

    epochs: float = 8.0
    batch: int = 256
    kernel_lr: float | None = 0.1
    kernel_momentum: float = 0.6
    lr: float = 0.1
    momentum: float = 0.85
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    warmup: float = 0.05
    clip: float = 5.0

    def scaled(self, share: float) -> Recipe:
        """The same recipe for a share of the epochs."""
        return replace(self, epochs=self.epochs * share)

    def batch_for(self, data: Images) -> int:
        """Images a step on this data: at least `MIN_STEPS` steps an epoch, and fewer of images above `LARGE` pixels."""
        pixels = data.x.shape[2] * data.x.shape[3]
        return max(2, min(self.batch, len(data) // MIN_STEPS, max(16, self.batch * LARGE // pixels)))


MIN_STEPS = 20
LARGE = 64 * 64


def batches(data: Images, batch: int, augment: Augment, seed: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches (x float32 normalised and augmented, y), reproducible from ``seed`` and ``number``."""
    generator = torch.Generator().manual_seed(seeds.integer(seed, number, "batches"))
    mirrored = torch.rand(len(data), generator=generator) < 0.5
    labels = data.y
    while True:
        order = torch.randperm(len(data), generator=generator)
        for start in range(0, len(data) - batch + 1, batch):
            index = order[start:start + batch]
            yield augment(data.normalised(index), mirrored[index], generator), labels[index]
        mirrored = ~mirrored


def steps_of(data: Images, recipe: Recipe) -> int:
    """Number of optimiser steps of a training, at least 1."""
    return max(1, round(recipe.epochs * (len(data) // recipe.batch_for(data))))


def optimisers(net: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for kernels that see more than one channel, SGD with Nesterov momentum for all else."""
    muon = [p for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1] if recipe.kernel_lr is not None else []
    rest = [p for p in net.parameters() if all(p is not k for k in muon)]
    groups = [{"params": [p for p in rest if p.ndim > 1], "weight_decay": recipe.weight_decay},
              {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    made: list[torch.optim.Optimizer] = []
    if groups:
        made.append(torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True))
    if muon and recipe.kernel_lr is not None:
        made.append(Muon(muon, recipe.kernel_lr, recipe.kernel_momentum))
    for opt in made:
        for group in opt.param_groups:
            group["peak"] = group["lr"]
    return made


def set_rates(opts: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Sets every learning rate to a share of its peak."""
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = share * group["peak"]


def triangle(step: int, steps: int, warmup: float) -> float:
    """Learning rate as a share of its peak: linear up for ``warmup`` of the steps, linear down to 0."""
    peak = max(1.0, warmup * steps)
    return min((step + 1) / peak, (steps - step) / max(1.0, steps - peak + 1))


@dataclass(frozen=True)
class Fitted:
    """What a training cost and how it went: seconds, steps, mean loss of the last tenth."""

    seconds: float
    steps: int
    loss: float


def fit(net: nn.Module, data: Images, recipe: Recipe, augment: Augment, seed: int, number: int = 0,
        watch: Callable[[int, int], None] | None = None) -> Fitted:
    """Trains ``net`` in place.

    Args:
        seed, number: the training is reproducible from these two.
        watch: called with (steps done, steps) after every step.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    started, steps = time.perf_counter(), steps_of(data, recipe)
    opts = optimisers(net, recipe)
    channels_last(net.train())
    tail: list[float] = []
    for step, (x, y) in zip(range(steps), batches(data, recipe.batch_for(data), augment, seed, number), strict=False):
        set_rates(opts, triangle(step, steps, recipe.warmup))
        with autocast(), Depthwise():
            loss = functional.cross_entropy(net(x).float(), y, label_smoothing=recipe.smoothing)
        net.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        for opt in opts:
            opt.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the training loss became {value} at step {step + 1} of {steps}.")
        tail = [*tail, value][-max(1, steps // 10):]
        if watch is not None:
            watch(step + 1, steps)
    net.eval()
    return Fitted(time.perf_counter() - started, steps, sum(tail) / len(tail))


@torch.inference_mode()
def error(net: nn.Module, data: Images, batch: int = 512, fast: bool = False) -> float:
    """Share of images that the network, in evaluation mode, classifies wrongly. ``fast``: in bf16 where that pays."""
    wrong, labels = 0, data.y
    batch = min(batch, max(16, batch * LARGE // (data.x.shape[2] * data.x.shape[3])))
    for start in range(0, len(data), batch):
        with autocast(fast):
            logits = net(data.normalised(slice(start, start + batch)))
        wrong += int((logits.argmax(1) != labels[start:start + batch]).sum())
    return wrong / len(data)


def channels_last(net: M) -> M:
    """The same module with its kernels laid out channels last."""
    moved: M = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def autocast(enabled: bool = True) -> torch.autocast:
    """bf16 autocast on this machine if it pays (`bf16_pays`)."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled and bf16_pays())


@lru_cache(maxsize=1)
def bf16_pays() -> bool:
    """True if a convolution of typical size is faster in bf16 than in fp32 on this processor (measured once)."""
    x = torch.randn(64, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    net = channels_last(nn.Conv2d(32, 32, 3, padding=1))

    def seconds(low: bool) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                for _ in range(4):
                    net(x)
            times.append(time.perf_counter() - started)
        return min(times)

    return seconds(True) < seconds(False)
