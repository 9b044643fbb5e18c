"""Training a network on images that live in memory: one short, strong recipe for every network.

Muon for the kernels, SGD with Nesterov momentum for the rest, a triangular learning rate, label smoothing, alternating flips
and random translations (the parts that matter most in Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv
2404.00498), bf16 autocast and channels_last where a measurement says that they pay. Cutout and averaged weights can be asked for.

A network is trained where its images are: on the CPU, or on the GPU after `Images.to`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasopt import seed as seeds
from nasopt.errors import InputError, one_line
from nasopt.nets.averaging import Lookahead
from nasopt.nets.checkpoint import Checkpoint, Curve, load_optimisers, optimiser_tensors
from nasopt.nets.depthwise import depthwise
from nasopt.nets.muon import Muon
from nasopt.nets.whitening import Whitening

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

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.x.device

    def to(self, device: torch.device) -> Images:
        """The same images on a device, where they stay: a copy of the whole data set if they are elsewhere."""
        return Images(*(getattr(self, f.name).to(device) for f in fields(self)))

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
        cutout: side in pixels of a square that is set to the mean colour, 0: none; its centre is anywhere in the image, so that
            part of it may lie outside (DeVries & Taylor, arXiv 1708.04552).
    """

    flip: bool = False
    translate: int = 0
    cutout: int = 0

    @classmethod
    def for_images(cls, shape: tuple[int, int, int]) -> Augment:
        """A default from the shape (C, H, W): colour photographs are mirrored, nothing else is; shifts of up to 1/16."""
        return cls(flip=shape[0] == 3 and min(shape[1:]) >= 16, translate=min(max(1, min(shape[1:]) // 16), min(shape[1:]) - 1))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What is random about n images: their shifts, integers (2, n), and the centres of their cutouts, (2, n) from 0 to 1;
        nothing is drawn for what is off."""
        shift = torch.randint(0, 2 * self.translate + 1, (2, n), generator=generator) if self.translate else torch.empty(2, 0)
        return shift, torch.rand(2, n, generator=generator) if self.cutout else torch.empty(2, 0)

    def __call__(self, x: Tensor, flipped: Tensor, generator: torch.Generator) -> Tensor:
        """``x`` (n, C, H, W), normalised; ``flipped`` (n,) bool: which images are mirrored now."""
        n, _, h, w = x.shape
        shift, centre = (t.to(x.device) for t in self.draw(n, generator))
        if self.flip:
            x = torch.where(flipped[:, None, None, None], x.flip(3), x)
        if self.translate:
            padded = functional.pad(x, [self.translate] * 4, mode="reflect")
            windows = padded.unfold(2, h, 1).unfold(3, w, 1)
            x = windows[torch.arange(n, device=x.device), :, shift[0], shift[1]]
        if self.cutout:
            rows, columns = (self._hidden(c, size) for c, size in zip(centre, (h, w), strict=True))
            x = x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
        return x.contiguous(memory_format=torch.channels_last)

    def _hidden(self, centre: Tensor, size: int) -> Tensor:
        """Which of ``size`` pixels of a side the cutout hides, (n, size) bool."""
        first = (centre * size).long() - self.cutout // 2
        place = torch.arange(size, device=centre.device) - first[:, None]
        return (place >= 0) & (place < self.cutout)


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
        average: decay of averaged weights, to which the weights return every few steps (`Lookahead`); 0: none.
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
    average: float = 0.0

    def scaled(self, share: float) -> Recipe:
        """The same recipe for a share of the epochs."""
        return replace(self, epochs=self.epochs * share)

    def batch_for(self, data: Images) -> int:
        """Images a step on this data: at least `MIN_STEPS` steps an epoch, and no more than `at_once`."""
        return max(2, min(len(data) // MIN_STEPS, at_once(data.x.shape, self.batch)))


CPU = torch.device("cpu")
MIN_STEPS = 20
LARGE = 64 * 64


def at_once(shape: Sequence[int], most: int = 256) -> int:
    """How many images (..., H, W) go through a network at once: ``most``, or fewer of those above `LARGE` pixels, 16 at least."""
    return min(most, max(16, most * LARGE // (shape[-2] * shape[-1])))


def batches(data: Images, batch: int, augment: Augment, seed: int, number: int,
            first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches (x float32 normalised and augmented, y), reproducible from ``seed`` and ``number``, the same on
    every device.

    Args:
        first: so many batches are left out, as if they had been taken; only their random numbers are drawn.

    Raises:
        InputError: a batch is larger than the data.
    """
    if len(data) < batch:
        raise InputError(f"{len(data)} images are no batch of {batch}: give more images, or a smaller batch.")
    generator = torch.Generator().manual_seed(seeds.integer(seed, number, "batches"))
    mirrored = (torch.rand(len(data), generator=generator) < 0.5).to(data.device)
    labels = data.y
    while True:
        order = torch.randperm(len(data), generator=generator).to(data.device)
        for start in range(0, len(data) - batch + 1, batch):
            if first:
                first -= 1
                augment.draw(batch, generator)
                continue
            index = order[start:start + batch]
            yield augment(data.normalised(index), mirrored[index], generator), labels[index]
        mirrored = ~mirrored


def steps_of(data: Images, recipe: Recipe) -> int:
    """Number of optimiser steps of a training, at least 1."""
    return max(1, round(recipe.epochs * (len(data) // recipe.batch_for(data))))


def optimisers(net: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for kernels that see more than one channel, SGD with Nesterov momentum for all else."""
    trained = [p for p in net.parameters() if p.requires_grad]
    muon = [p for p in trained if p.ndim == 4 and p.shape[1] > 1] if recipe.kernel_lr is not None else []
    rest = [p for p in trained if all(p is not k for k in muon)]
    groups = [{"params": [p for p in rest if p.ndim > 1], "weight_decay": recipe.weight_decay},
              {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    made: list[torch.optim.Optimizer] = []
    if groups:
        made.append(torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True, foreach=True))
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
    """What a training cost and how it went: seconds, steps, mean loss of the last tenth; and its learning curve, see `fit`."""

    seconds: float
    steps: int
    loss: float
    curve: Curve = ()


SAMPLE = 2**20
"""Pixels of the training images from which a whitening layer learns."""

READ = 20
"""Steps after which the losses are read from a GPU, which has to be waited for."""

LOOKS = 8
"""Points of a learning curve, about."""


def fit(net: nn.Module, data: Images, recipe: Recipe, augment: Augment, seed: int, number: int = 0,
        watch: Callable[[int, int], None] | None = None, *, resume: Checkpoint | None = None,
        keep: Callable[[Callable[[], Checkpoint]], None] | None = None, tell: Callable[[str], None] | None = None,
        judge: Callable[[nn.Module], Mapping[str, float]] | None = None,
        within: tuple[float, float] | None = None) -> Fitted:
    """Trains ``net`` in place, where the images are; there it stays.

    If a GPU's memory is too small for a batch, batches go through the network in 2, 4, ... parts from then on, whose gradients
    are added up: steps, images seen and learning rates stay as they are.

    Args:
        seed, number: the training is reproducible from these two; torch's own generator, from which layers such as dropout draw,
            is seeded with them.
        watch: called with (steps done, steps) after every step.
        resume: where to go on, with the same network and the other arguments as they were. On a CPU with as many threads the
            result is the same bit for bit.
        keep: called at the end of every epoch with what makes the checkpoint, which copies all that is trained.
        tell: called with a sentence if the memory was too small.
        judge: what else a point of the learning curve tells, of the network in evaluation mode. There are points at the end and
            after epochs, evenly, `LOOKS` or one more: ``epochs`` and ``seconds`` so far, and ``loss``, the mean over the last
            tenth of all steps, or over all so far if they are fewer.
        within: the seconds that the training is to take, and the epochs that it may have: from the warm-up to the last tenth
            of the steps, how many there are is planned anew after every epoch (`replanned`), since no few steps that were timed
            before tell how fast a machine will be for an hour. What is random is then reproducible, how many steps are not.

    Raises:
        FloatingPointError: the loss is not finite.
        MemoryError: the GPU's memory is too small for two images.
        InputError: the checkpoint belongs to another training.
    """
    started, steps, batch = time.perf_counter(), steps_of(data, recipe), recipe.batch_for(data)
    torch.manual_seed(seeds.integer(seed, number, "training"))
    channels_last(net.to(data.device).train())
    whiten(net, data)
    opts = optimisers(net, recipe)
    slow = Lookahead(net, recipe.average) if recipe.average else None
    done, tail, curve = 0, list[float](), list[Mapping[str, float]]()
    if resume is not None:
        done, tail, curve = resume.step, list(resume.losses), list(resume.curve)
        started -= resume.seconds
        steps = steps if within is None else resume.steps
        _restore(resume, steps, net, opts, slow)
    gradient, epoch, unread = _Gradient(net, recipe.smoothing, tell), len(data) // batch, list[Tensor]()
    stream = batches(data, batch, augment, seed, number, done)
    while done < steps:
        set_rates(opts, triangle(done, steps, recipe.warmup))
        unread.append(gradient(*next(stream)))
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip, foreach=True)
        for opt in opts:
            opt.step()
        done += 1
        if slow is not None:
            slow.step(done, steps)
        epoch_ends = done % epoch == 0
        if within is not None and epoch_ends and recipe.warmup <= done / steps <= 0.9:
            steps = replanned(done, time.perf_counter() - started, within[0], round(within[1] * epoch))
        if data.device.type == "cpu" or len(unread) == READ or epoch_ends or done == steps:
            tail = [*tail, *_read(unread, done, steps)][-max(1, steps // 10):]
            unread.clear()
        if watch is not None:
            watch(done, steps)
        if done == steps or (epoch_ends and LOOKS * done // steps > LOOKS * (done - epoch) // steps):
            more = {} if judge is None else judge(net.eval())
            net.train()
            seconds = time.perf_counter() - started
            curve.append({"epochs": done / epoch, "seconds": seconds, "loss": sum(tail) / len(tail), **more})
        if keep is not None and epoch_ends:
            keep(lambda done=done, steps=steps, tail=tuple(tail): Checkpoint(  # type: ignore[misc]
                done, steps, time.perf_counter() - started, tail, _tensors(net, opts, slow), tuple(curve)))
    net.eval()
    return Fitted(time.perf_counter() - started, steps, sum(tail) / len(tail), tuple(curve))


def replanned(done: int, spent: float, seconds: float, most: int) -> int:
    """How many steps fit into so many seconds at the pace of those that are done: a tenth more than these at least."""
    return done + max(1, done // 10, min(most - done, round(done * (seconds / spent - 1))))


def whiten(net: nn.Module, data: Images) -> None:
    """Sets the kernels of a network's `Whitening` layers, if there are any, from images spread over the data."""
    for layer in net.modules():
        if isinstance(layer, Whitening):
            most = max(1, SAMPLE // (data.x.shape[2] * data.x.shape[3]))
            layer.learn(data.normalised(slice(None, None, math.ceil(len(data) / most))))


@dataclass
class _Gradient:
    """Leaves the gradient of a batch's loss in a network's parameters; in ``parts`` where a GPU's memory is too small for all."""

    net: nn.Module
    smoothing: float
    tell: Callable[[str], None] | None
    parts: int = 1

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch, detached."""
        while True:
            try:
                return self._of_parts(x, y)
            except torch.OutOfMemoryError as problem:
                images = len(y) // self.parts
                if images < 4:
                    raise MemoryError(f"{one_line(problem)} (with {images} images at once)") from problem
            torch.cuda.empty_cache()
            self.parts *= 2
            if self.tell is not None:
                self.tell(f"the memory of {x.device} is too small for {images} images at once: going on with "
                          f"{len(y) // self.parts}.")

    def _of_parts(self, x: Tensor, y: Tensor) -> Tensor:
        self.net.zero_grad(set_to_none=True)
        total = torch.zeros((), device=x.device)
        for some, labels in zip(x.tensor_split(self.parts), y.tensor_split(self.parts), strict=True):
            with autocast(device=x.device), depthwise(x.device):
                loss = functional.cross_entropy(self.net(some).float(), labels, label_smoothing=self.smoothing)
            loss = loss * (len(labels) / len(y))
            loss.backward()
            total += loss.detach()
        return total


def _read(losses: Sequence[Tensor], done: int, steps: int) -> list[float]:
    """The values of the losses of the last steps."""
    values: list[float] = torch.stack(list(losses)).tolist()
    for step, value in enumerate(values, done - len(values) + 1):
        if not math.isfinite(value):
            raise FloatingPointError(f"the training loss became {value} at step {step} of {steps}.")
    return values


def _tensors(net: nn.Module, opts: Sequence[torch.optim.Optimizer], slow: Lookahead | None) -> dict[str, Tensor]:
    """Copies of what a checkpoint holds, on the CPU."""
    found = {f"net {k}": v for k, v in net.state_dict().items()} | optimiser_tensors(opts) | {"random": torch.get_rng_state()}
    found |= {f"slow {k}": v for k, v in enumerate(slow.slow if slow is not None else ())}
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in found.items()}


def _restore(point: Checkpoint, steps: int, net: nn.Module, opts: Sequence[torch.optim.Optimizer],
             slow: Lookahead | None) -> None:
    """Sets what `_tensors` copied."""
    try:
        if point.steps != steps:
            raise ValueError(f"it has {point.steps} steps, not {steps}")
        net.load_state_dict({k[4:]: v for k, v in point.tensors.items() if k.startswith("net ")})
        load_optimisers(opts, point.tensors)
        if slow is not None:
            slow.load([point.tensors[f"slow {k}"] for k in range(len(slow.slow))])
        torch.set_rng_state(point.tensors["random"])
    except (KeyError, RuntimeError, ValueError) as problem:
        raise InputError(f"the checkpoint belongs to another training ({one_line(problem)}): start this one anew.") from problem


@torch.inference_mode()
def error(net: nn.Module, data: Images, batch: int = 512, fast: bool = False) -> float:
    """Share of images that the network, in evaluation mode and where the images are, classifies wrongly. ``fast``: in bf16 where
    that pays.

    Raises:
        FloatingPointError: it answers NaN.
    """
    wrong, labels, batch = 0, data.y, at_once(data.x.shape, batch)
    for start in range(0, len(data), batch):
        with autocast(fast, data.device):
            logits = net(data.normalised(slice(start, start + batch)))
        if logits.isnan().any():
            raise FloatingPointError("the network answers NaN: use a smaller learning rate, or add normalisation.")
        wrong += int((logits.argmax(1) != labels[start:start + batch]).sum())
    return wrong / len(data)


class Mirrored(nn.Module):
    """The mean of a network's logits of an image (n, C, H, W) and of its mirror image: fewer errors for twice the time, where
    images are mirrored in training (`Augment.flip`)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = (self.net(x) + self.net(x.flip(3))) / 2
        return logits


def device_of(name: str) -> torch.device:
    """The device of that name: ``cpu``, ``cuda``, ``cuda:1``, ...

    Raises:
        InputError: no such device, or it is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: give cpu, cuda, or cuda:N for the GPU of that number.")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise InputError(f"the device {name!r} is not there, PyTorch {torch.__version__} finds {found} GPUs: give cpu, or "
                         "install a build of PyTorch for your GPU.")
    return device


def channels_last(net: M) -> M:
    """The same module with its kernels laid out channels last."""
    moved: M = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def autocast(enabled: bool = True, device: torch.device = CPU) -> torch.autocast:
    """bf16 autocast if it pays: on a CPU by measurement (`bf16_pays`), on a GPU always."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and (device.type != "cpu" or bf16_pays()))


CLEARLY = 0.8


@lru_cache(maxsize=1)
def bf16_pays() -> bool:
    """True if a convolution of typical size is faster in bf16 than in fp32 on this processor, clearly (`CLEARLY`), so that the
    answer is the same whenever it is measured: once a process."""
    x = torch.zeros(64, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
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

    return seconds(True) < CLEARLY * seconds(False)
