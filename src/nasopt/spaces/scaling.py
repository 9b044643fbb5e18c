"""Larger and smaller versions of a found architecture, to use a budget up: within its space, where widths, depths and the images'
size grow together (compound scaling: Tan & Le, EfficientNet, ICML 2019, arXiv 1905.11946, eq. 3), or by one factor for all
channels of the extracted network (the width multiplier of Howard et al., MobileNets, arXiv 1704.04861, §3.3).
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasopt import space as spaces
from nasopt.cost.forward import batch_of, frozen
from nasopt.errors import InputError, one_line
from nasopt.nets import choices
from nasopt.nets.elastic import Width
from nasopt.nets.options import Depth
from nasopt.nets.plan import plan_of
from nasopt.nets.whitening import Whitening
from nasopt.space import Arch

T = TypeVar("T")
Cost: TypeAlias = Callable[[nn.Module, Tensor], float]
"""What is limited, of an extracted network and an example (1, C, H, W): multiply-accumulates (`nasopt.cost.count.flops`),
parameters, the measured milliseconds of a training step, ..."""

DEPTH, WIDTH, RESOLUTION = 1.2, 1.1, 1.15
"""What one step of scaling multiplies the depths, the widths and the images' sides by: about twice the multiply-accumulates
(EfficientNet, §3.3)."""

RANGE, STEP = 24.0, 0.125
"""Steps of scaling up and down, and the finest part of one that is tried."""

FACTORS = [2.0 ** (k / 16) for k in range(-64, 65)]
"""Width multipliers that are tried: from 1/16 to 16."""

MULTIPLE = 8
"""What all channels of a widened network are a multiple of."""


@dataclass(frozen=True)
class Scaled:
    """An architecture of the space, the side of its images in pixels, and what it costs."""

    arch: Mapping[str, int]
    side: int
    cost: float


def compound(net: nn.Module, arch: Arch, steps: float) -> dict[str, int]:
    """The architecture whose widths are nearest to `WIDTH` ** ``steps`` times those of ``arch``, and whose depths are nearest to
    `DEPTH` ** ``steps`` times (on a scale of ratios). Depths of 0 or on which other choices depend stay, and so does all else.

    Args:
        net: the network with choices.
        steps: may be a fraction, and negative.

    Raises:
        ValueError: ``arch`` is not an architecture of the network's space.
    """
    plan = plan_of(net)
    spaces.check(plan.space, arch)
    above = {gene.parent for gene in plan.columns.genes}
    found = dict(arch)
    for k, (gene, steered) in enumerate(zip(plan.columns.genes, plan.steered, strict=True)):
        choice = steered[0][0]
        if gene.path in arch and k not in above and isinstance(choice, Width | Depth):
            now, by = choice.sizes[arch[gene.path]], WIDTH if isinstance(choice, Width) else DEPTH
            found[gene.path] = _nearest(choice.sizes, now * by**steps) if now else arch[gene.path]
    return found


def _nearest(sizes: Sequence[int], target: float) -> int:
    """The place of the size with the least ratio to the target."""
    return min(range(len(sizes)), key=lambda k: abs(math.log(max(sizes[k], 0.5) / target)))


def within(net: nn.Module, arch: Arch, example: Tensor, cost: Cost, budget: float, sides: Sequence[int] = ()) -> Scaled:
    """The largest `compound` scaling of an architecture whose cost is within the budget.

    The cost is taken to grow with the size: of about 400 scalings about ten are measured.

    Args:
        example: one image, (1, C, H, W), H = W if there are sides.
        cost: of the extracted network.
        sides: the sides that images may be resized to, in pixels; none: they keep theirs.

    Raises:
        InputError: even the smallest scaling costs more.
    """
    side = example.shape[-1]
    allowed = sorted({*sides, side}) if sides else [side]
    steps = [k * STEP for k in range(round(-RANGE / STEP), round(RANGE / STEP) + 1)]
    all_of_them = [(compound(net, arch, s), allowed[_nearest(allowed, side * RESOLUTION**s)]) for s in steps]
    different = [pair for pair, _ in groupby(all_of_them)]

    def measured(pair: tuple[dict[str, int], int]) -> float:
        return cost(choices.extract(net, pair[0]), resized(example, pair[1]) if sides else example)

    (found, pixels), spent = _largest(different, measured, budget)
    return Scaled(found, pixels, spent)


def resized(images: Tensor, side: int) -> Tensor:
    """Images (n, C, H, W) of another size, (n, C, side, side), bilinear."""
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def _largest(ordered: Sequence[T], cost: Callable[[T], float], budget: float) -> tuple[T, float]:
    """The last that is within the budget, and its cost, by bisection: the costs grow."""
    known: dict[int, float] = {}

    def at(k: int) -> float:
        if k not in known:
            known[k] = cost(ordered[k])
        return known[k]

    if at(0) > budget:
        raise InputError(f"the smallest that scaling leads to costs {known[0]:.4g}, above the budget of {budget:.4g}: give more.")
    k = bisect.bisect_right(range(len(ordered)), budget, key=at) - 1
    return ordered[k], at(k)


# ------------------------------------------------------------------------------------------------- a width multiplier
def widened(net: nn.Module, factor: float, example: Tensor) -> nn.Module:
    """A network with ``factor`` times the channels throughout, rounded to multiples of `MULTIPLE`, and new random weights; the
    first layer's inputs and the last one's outputs stay.

    Args:
        net: plain PyTorch layers, as `nasopt.nets.choices.extract` gives.
        example: an image, (1, C, H, W).

    Raises:
        InputError: a factor that is not positive, or channels that do not scale together.
    """
    if not 0 < factor < math.inf:
        raise InputError(f"the width multiplier must be above 0 and finite, got {factor:g}.")
    first, last = _ends(net, example)
    memo: dict[int, Any] = {}
    for layer in net.modules():
        if isinstance(layer, KINDS) and not isinstance(layer, Whitening):
            memo[id(layer)] = _wider(layer, factor, layer is first, layer is last).train(layer.training)
    wide = copy.deepcopy(net, memo)
    try:
        with torch.no_grad():
            frozen(wide)(batch_of(example, 1))
    except RuntimeError as problem:
        raise InputError(f"the channels do not scale by {factor:g} together ({one_line(problem)}): choose another "
                         "factor.") from problem
    return wide


def widened_to(net: nn.Module, example: Tensor, cost: Cost, budget: float) -> tuple[nn.Module, float]:
    """`widened` by the largest of `FACTORS` whose cost is within the budget, and that factor.

    Raises:
        InputError: even the smallest costs more, or channels that do not scale together.
    """
    factor, _ = _largest(FACTORS, lambda f: cost(widened(net, f, example), example), budget)
    return widened(net, factor, example), factor


KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def _ends(net: nn.Module, example: Tensor) -> tuple[nn.Module, nn.Module]:
    """The first and the last layer with a weight matrix to train that runs."""
    ran: list[nn.Module] = []
    twin = frozen(net)
    names = {id(module): name for name, module in twin.named_modules()}
    hooks = [m.register_forward_hook(lambda module, inputs, out: ran.append(module)) for m in twin.modules()
             if isinstance(m, nn.Conv2d | nn.Linear) and not isinstance(m, Whitening)]
    try:
        with torch.no_grad():
            twin(batch_of(example, 1))
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise InputError("the network has no convolution and no linear layer: there is nothing to widen.")
    return net.get_submodule(names[id(ran[0])]), net.get_submodule(names[id(ran[-1])])


def _wider(layer: nn.Conv2d | nn.Linear | nn.BatchNorm2d, factor: float, first: bool, last: bool) -> nn.Module:
    """A new layer of that kind with more or fewer channels."""
    def scaled(channels: int) -> int:
        return max(MULTIPLE, round(channels * factor / MULTIPLE) * MULTIPLE)

    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(scaled(layer.num_features), layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    out, into = layer.weight.shape[:2]
    into = into * layer.groups if isinstance(layer, nn.Conv2d) else into
    into, out = into if first else scaled(into), out if last else scaled(out)
    if isinstance(layer, nn.Linear):
        return nn.Linear(into, out, bias=layer.bias is not None)
    groups = into if layer.groups == layer.in_channels > 1 else layer.groups
    if into % groups or out % groups:
        raise InputError(f"{groups} groups do not divide {into} and {out} channels: choose another factor than {factor:g}.")
    return nn.Conv2d(into, out, layer.kernel_size, layer.stride, layer.padding, layer.dilation, groups,  # type: ignore[arg-type]
                     bias=layer.bias is not None, padding_mode=layer.padding_mode)
