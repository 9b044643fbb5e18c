"""Choices inline in any ``nn.Module``. From the one module come its search space (`space_of`), the weight-sharing
supernet (the module itself, steered by `activate`) and every stand-alone sub-network (`extract`).

A choice is a module: `OneOf` and `DifferentiableOp` (operations), `Width` and `KernelSize` (shared by the elastic
layers that take them), `Depth` (number of blocks), `Wiring` (the operations of a `Graph`'s edges) and `Pairs` (the two edges
of every node of a `PairGraph`, and their operations). Two layers that hold the same choice object make the same choice.

A choice's path in the space is its place in the module tree (attribute names, joined by ``/``). A choice inside an
option exists only under that option; a choice that occurs under several options belongs to the innermost scope that
holds all of its occurrences, and its name there is the whole way to its first occurrence, joined by dots.
"""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasopt.errors import InputError
from nasopt.space import Arch, Cell, Choice, Layout, Product, Repeat, Rule, Space, layout

MIXED = -1
"""The option of a differentiable choice that is a mixture of all its operations."""

M = TypeVar("M", bound=nn.Module)


# ------------------------------------------------------------------------------------------------------- choice modules
@dataclass(frozen=True, eq=False)
class Mix:
    """How a choice mixes its options while they are relaxed (`nasopt.nets.relaxed.mixed` sets it).

    Attributes:
        weights: (rows, options), with their gradients; a `Wiring` and `Pairs` have a row per edge, all others have one.
        live: of every row, the options that are computed; the others have weight 0.
        bypass: how much of its input is added to the output of every mixture of operations that keeps the shape (DARTS−, Chu et
            al., ICLR 2021).
        edges: of a `Wiring` or `Pairs`, what each edge is multiplied by, (rows,) (edge normalisation, Xu et al., PC-DARTS, ICLR
            2020).
    """

    weights: Tensor
    live: tuple[tuple[int, ...], ...]
    bypass: float = 0.0
    edges: Tensor | None = None


class Choosing(nn.Module):
    """A choice. ``chosen`` holds one option index per slot (a `Wiring` has a slot per edge, `Pairs` have three per node, all
    others have one); where it is `MIXED`, ``mix`` says how."""

    def __init__(self, chosen: Sequence[int]) -> None:
        super().__init__()
        self.chosen = list(chosen)
        self.mix: Mix | None = None

    def select(self, slot: int, option: int) -> None:
        """Makes ``option`` the active one."""
        self.chosen[slot] = option


def _last(choice: Choosing) -> int:
    """The active option; of a mixture the last one that is computed."""
    if choice.chosen[0] != MIXED:
        return choice.chosen[0]
    assert choice.mix is not None
    return max(choice.mix.live[0])


def _legal(text: str) -> str:
    return re.sub(r"[/=\[\]]", "_", text)


def _kind(module: nn.Module) -> str:
    parts = [_kind(child) for child in islice(module.children(), 3)] if isinstance(module, nn.Sequential) else []
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return f"{type(module).__name__}_{'x'.join(map(str, module.kernel_size))}"
    return "-".join(parts) or type(module).__name__


def _labelled(what: str, options: Mapping[str, nn.Module] | Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Options with legal, distinct labels; those of a list are named after their modules."""
    if isinstance(options, Mapping):
        named = {_legal(label): module for label, module in options.items()}
        if len(named) < len(options):
            raise InputError(
                f"{what}: two of the labels {list(options)} are equal after '/', '=', '[' and ']' became '_': "
                "rename one."
            )
    else:
        named = {}
        for module in options:
            label = stem = _legal(_kind(module))
            while label in named:
                label = f"{stem}_{1 + sum(other.rsplit('_', 1)[0] == stem or other == stem for other in named)}"
            named[label] = module
    if not named:
        raise InputError(f"{what} has no options: give at least one module.")
    for label, module in named.items():
        if not isinstance(module, nn.Module):
            raise InputError(f"{what}: option {label!r} is a {type(module).__name__}: give an nn.Module.")
    return named


class OneOf(Choosing):
    """One of several modules; only the active one (at first: the first) runs. Options may contain choices of their own.

    Args:
        options: label -> module, or a list of modules (labelled by their types).

    Raises:
        InputError: no option, or one that is not a module.
    """

    def __init__(self, options: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__([0])
        named = _labelled("OneOf", options)
        self.labels = tuple(named)
        self.options = nn.ModuleList(named.values())

    def forward(self, x: Tensor) -> Tensor:
        """The active option's output, or the mixture of all."""
        if self.chosen[0] != MIXED:
            return self.options[self.chosen[0]](x)  # type: ignore[no-any-return]
        assert self.mix is not None
        return _mixture_of(self.options, self.labels, x, self.mix)


class DifferentiableOp(Choosing):
    """One of several operations, or their mixture: as long as no option is active (at first, and after `relax`) the
    output is sum_o softmax(alpha)_o · o(x) (DARTS, Liu et al., ICLR 2019, eq. 2). All outputs must have one shape.

    Args:
        operations: label -> module, or a list of modules (labelled by their types).

    Attributes:
        alpha: the architecture parameters, shape (operations,), zero at first.

    Raises:
        InputError: no operation, or one that is not a module; in ``forward``, an output of another shape.
    """

    def __init__(self, operations: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__([MIXED])
        named = _labelled("DifferentiableOp", operations)
        self.labels = tuple(named)
        self.options = nn.ModuleList(named.values())
        self.alpha = nn.Parameter(torch.zeros(len(named)))

    def forward(self, x: Tensor) -> Tensor:
        """The active operation's output, or the mixture."""
        if self.chosen[0] != MIXED:
            return self.options[self.chosen[0]](x)  # type: ignore[no-any-return]
        everything = (tuple(range(len(self.labels))),)
        return _mixture_of(self.options, self.labels, x, self.mix or Mix(torch.softmax(self.alpha, 0)[None], everything))


def _mixture_of(options: nn.ModuleList, labels: Sequence[str], x: Tensor, mix: Mix) -> Tensor:
    """The mixture of the live options' outputs for one input."""
    live = mix.live[0]
    total = mixture([mix.weights[0, k] for k in live], [options[k](x) for k in live], [labels[k] for k in live])
    return total + mix.bypass * x if mix.bypass and x.shape == total.shape else total


def mixture(weights: Sequence[Tensor], outputs: Sequence[Tensor], labels: Sequence[str]) -> Tensor:
    """sum_o weights[o] · outputs[o].

    Raises:
        InputError: an output's shape differs from the first one's.
    """
    for label, output in zip(labels, outputs, strict=True):
        if output.shape != outputs[0].shape:
            raise InputError(
                f"operation {label!r} returns the shape {tuple(output.shape)} but {labels[0]!r} returns "
                f"{tuple(outputs[0].shape)}: operations that are mixed must return one shape."
            )
    total = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total + weight * output
    return total


def _increasing(what: str, options: Sequence[int], least: int) -> tuple[int, ...]:
    values = tuple(options)
    if not values or len(set(values)) < len(values) or min(values) < least:
        raise InputError(f"{what}: the options must be distinct integers of at least {least}, got {list(values)}.")
    return tuple(sorted(values))


class Width(Choosing):
    """A number of channels or features that every elastic layer holding this object shares; at first the largest.

    Args:
        options: the numbers to choose from, each at least 1.
        labels: their names in the space, smallest first (default: the numbers themselves).

    Raises:
        InputError: no options, one twice, one below 1, or not one label each.
    """

    def __init__(self, options: Sequence[int], labels: Sequence[str] | None = None) -> None:
        self.sizes = _increasing("Width", options, 1)
        super().__init__([len(self.sizes) - 1])
        self.labels = tuple(str(size) for size in self.sizes) if labels is None else tuple(map(_legal, labels))
        if len(set(self.labels)) != len(self.sizes):
            raise InputError(f"Width: {list(self.labels)} must be one distinct label for each of {list(self.sizes)}.")

    @property
    def largest(self) -> int:
        """The largest option."""
        return self.sizes[-1]

    @property
    def value(self) -> int:
        """The active option; of a mixture the largest that is computed."""
        return self.sizes[_last(self)]

    def mask(self) -> Tensor | None:
        """While it is a mixture: how much of every channel there is, (value,): the weights of all options that hold it (Wan et
        al., FBNetV2, CVPR 2020, fig. 3). Every layer of this width multiplies its output by it: between
        two layers the modules should keep 0 (`nn.Sigmoid` does not), or channels that are hardly there count whole."""
        return _mask(self, self.sizes)

    def __mul__(self, factor: int) -> Multiple:
        return Multiple(self, factor)


def _mask(choice: Choosing, sizes: Sequence[int]) -> Tensor | None:
    """sum_k weight[k] · (the first sizes[k] places), up to the last place that is computed, if the choice is a mixture."""
    if choice.chosen[0] != MIXED:
        return None
    assert choice.mix is not None
    weights = choice.mix.weights[0]
    held = torch.tensor(sizes)[:, None] > torch.arange(sizes[_last(choice)])
    return weights @ held.to(weights.dtype)


class Multiple(nn.Module):
    """``factor`` times a width: no choice of its own."""

    def __init__(self, width: Width, factor: int) -> None:
        super().__init__()
        self.width = width
        self.factor = factor

    @property
    def sizes(self) -> tuple[int, ...]:
        """All values."""
        return tuple(self.factor * size for size in self.width.sizes)

    @property
    def largest(self) -> int:
        """``factor`` times the largest option."""
        return self.factor * self.width.largest

    @property
    def value(self) -> int:
        """``factor`` times the active option."""
        return self.factor * self.width.value

    def mask(self) -> Tensor | None:
        """As `Width.mask`."""
        return _mask(self.width, self.sizes)


class KernelSize(Choosing):
    """An odd kernel size; a smaller kernel is the centre of the largest one (Cai et al., Once-for-all, ICLR 2020, §3).

    Raises:
        InputError: no options, one twice, or an even one.
    """

    def __init__(self, options: Sequence[int]) -> None:
        self.sizes = _increasing("KernelSize", options, 1)
        super().__init__([len(self.sizes) - 1])
        if any(size % 2 == 0 for size in self.sizes):
            raise InputError(
                f"KernelSize: {list(self.sizes)} has an even size: kernels share their centre, so give odd ones."
            )
        self.labels = tuple(str(size) for size in self.sizes)

    @property
    def value(self) -> int:
        """The active option; of a mixture the largest that is computed."""
        return self.sizes[_last(self)]

    def mask(self) -> Tensor | None:
        """While it is a mixture: how much of every place of a kernel there is, (value, value) (Stamoulis et al., Single-Path NAS,
        ECML 2019, eq. 4, with weights in place of thresholds)."""
        line = _mask(self, self.sizes)
        if line is None:
            return None
        ring = (torch.arange(len(line)) - len(line) // 2).abs()
        return line[2 * torch.maximum(ring[:, None], ring)]


class Depth(Choosing):
    """The first d of several blocks, d being the choice (at first the largest).

    In the space: a `Repeat` if all blocks have equal sub-spaces, otherwise a `Choice` of d with the blocks' choices
    below it.

    Args:
        blocks: modules, each fed with the one before.
        options: the depths to choose from, 0 (nothing: the input is returned) allowed.
        shared: the blocks make the same choices (their weights stay their own).

    Raises:
        InputError: a depth of more blocks than there are; in `space_of`, shared blocks with different sub-spaces.
    """

    def __init__(self, blocks: Sequence[nn.Module], options: Sequence[int], shared: bool = False) -> None:
        self.sizes = _increasing("Depth", options, 0)
        super().__init__([len(self.sizes) - 1])
        if self.sizes[-1] != len(blocks):
            raise InputError(
                f"Depth: the largest of the options {list(self.sizes)} must be the number of blocks, {len(blocks)}."
            )
        self.blocks = nn.ModuleList(blocks)
        self.labels = tuple(str(size) for size in self.sizes)
        self.shared = shared

    @property
    def value(self) -> int:
        """The active number of blocks; of a mixture the largest that is computed."""
        return self.sizes[_last(self)]

    def forward(self, x: Tensor) -> Tensor:
        """The output of block ``value``, or the mixture of the outputs after each number of blocks."""
        outputs = {0: x}
        for number, block in enumerate(islice(self.blocks, self.value), 1):
            outputs[number] = x = block(x)
        if self.chosen[0] != MIXED:
            return x
        assert self.mix is not None
        live = self.mix.live[0]
        return mixture([self.mix.weights[0, k] for k in live], [outputs[self.sizes[k]] for k in live],
                       [f"{self.labels[k]} blocks" for k in live])


# ---------------------------------------------------------------------------------------------------------------- sizes
class Elastic(Protocol):
    """A size that depends on choices: `Width`, `Multiple` or `Upstream`."""

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def largest(self) -> int: ...

    @property
    def value(self) -> int: ...

    def mask(self) -> Tensor | None: ...


def mask_now(size: Size) -> Tensor | None:
    """How much of every channel of a size there is, (value,); None: all of every one."""
    return None if isinstance(size, int) else size.mask()


def masked(x: Tensor, size: Size, dim: int) -> Tensor:
    """``x`` with the channels of a size that is a mixture multiplied by how much of them there is; otherwise as it is."""
    mask = mask_now(size)
    return x if mask is None else x * mask.to(x.dtype).view(-1, *[1] * (x.ndim - 1 - dim % x.ndim))


class Upstream:
    """The width at which a layer's input arrives. It refers to a choice without giving it a second place in the space,
    so that the choice stays inside the block that makes it.

    Args:
        widths: the width before, or, with a ``depth``, the width after 0, 1, 2, ... of its blocks.
        depth: the depth whose output is the input.

    Raises:
        InputError: not one width for every number of blocks.
    """

    def __init__(self, widths: Sequence[int | Elastic], depth: Depth | None = None) -> None:
        blocks = 0 if depth is None else len(depth.blocks)
        if len(widths) != blocks + 1:
            raise InputError(
                f"Upstream: got {len(widths)} widths for {blocks} blocks: give one before the first and one after each."
            )
        self.widths = tuple(widths)
        self.depth = depth

    @property
    def sizes(self) -> tuple[int, ...]:
        """All widths that can arrive."""
        return tuple(size for width in self.widths for size in ((width,) if isinstance(width, int) else width.sizes))

    @property
    def largest(self) -> int:
        """The largest width that can arrive."""
        return max(self.sizes)

    @property
    def value(self) -> int:
        """The width that arrives now."""
        return size_now(self.widths[self.depth.value if self.depth is not None else 0])

    def mask(self) -> Tensor | None:
        """As `Width.mask`; where the depth is a mixture, that of the masks after its numbers of blocks."""
        if self.depth is None or self.depth.mix is None:
            return mask_now(self.widths[self.depth.value if self.depth is not None else 0])
        weights, live = self.depth.mix.weights[0], self.depth.mix.live[0]
        masks = {k: mask_now(self.widths[self.depth.sizes[k]]) for k in live}
        if all(mask is None for mask in masks.values()):
            return None
        whole = weights.new_ones(self.value)
        return torch.stack([weights[k] * (whole if mask is None else mask) for k, mask in masks.items()]).sum(0)


Size: TypeAlias = int | Elastic


def largest_size(size: Size) -> int:
    """The largest value of a size."""
    return size if isinstance(size, int) else size.largest


def size_now(size: Size) -> int:
    """The active value of a size."""
    return size if isinstance(size, int) else size.value


# ------------------------------------------------------------------------------------------------------- elastic layers
class ElasticLayer(nn.Module):
    """A layer whose weights are slices of its largest weights. ``plain`` is the layer without choices."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """A stand-alone PyTorch layer with copies of the active slices."""


def _fill(layer: M, source: nn.Module, **tensors: Tensor | None) -> M:
    """Gives a layer without storage copies of ``tensors``; trainability and mode are the source's."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        kept = tensor.detach().clone()
        if name in layer._parameters:
            setattr(layer, name, nn.Parameter(kept, requires_grad=tensor.requires_grad))
        else:
            layer._buffers[name] = kept
    return layer.train(source.training)


class Conv2d(ElasticLayer):
    """`torch.nn.Conv2d` with elastic channels and kernel; the weight is the leading slice (and centre) of the largest.

    Args:
        in_channels, out_channels: ints or widths.
        kernel_size: an int, or a `KernelSize`, which always pads to keep the size.
        stride, padding, dilation, bias: as in PyTorch.
        groups: an int, or a width (depthwise: the same one as ``in_channels``).

    Raises:
        InputError: channels that the groups do not divide, or a padding beside a `KernelSize`.
    """

    def __init__(
        self,
        in_channels: Size,
        out_channels: Size,
        kernel_size: int | KernelSize,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: Size = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel = kernel_size
        if isinstance(kernel_size, KernelSize):
            if padding:
                raise InputError("Conv2d: leave out the padding, a KernelSize pads to keep the size.")
            kernel_size = kernel_size.sizes[-1]
            padding = dilation * (kernel_size // 2)
        _check_groups(in_channels, out_channels, groups)
        self.largest = nn.Conv2d(
            largest_size(in_channels),
            largest_size(out_channels),
            kernel_size,
            stride,
            padding,
            dilation,
            largest_size(groups),
            bias,
        )

    def now(self) -> tuple[int, int, int, int]:
        """The active input channels, output channels, kernel size and groups."""
        kernel = self.kernel if isinstance(self.kernel, int) else self.kernel.value
        return size_now(self.in_channels), size_now(self.out_channels), kernel, size_now(self.groups)

    def sliced(self) -> tuple[Tensor, Tensor | None]:
        """The active weight and bias: views of the largest ones."""
        fan_in, out, kernel, groups = self.now()
        weight, bias = self.largest.weight, self.largest.bias
        if (out, fan_in // groups) != weight.shape[:2]:
            weight = weight[:out, : fan_in // groups]
        if kernel != weight.shape[-1]:
            edge = (weight.shape[-1] - kernel) // 2
            weight = weight[:, :, edge : edge + kernel, edge : edge + kernel]
        return weight, bias if bias is None or len(bias) == out else bias[:out]

    def padding(self, kernel: int) -> int:
        """The padding at a kernel size."""
        here = self.largest
        return here.dilation[0] * (kernel // 2) if isinstance(self.kernel, KernelSize) else int(here.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h', w')."""
        weight, bias = self.sliced()
        mask = None if isinstance(self.kernel, int) else self.kernel.mask()
        if mask is not None:
            weight = weight * mask
        groups, here = size_now(self.groups), self.largest
        out = F.conv2d(x, weight, bias, here.stride, self.padding(weight.shape[-1]), here.dilation, groups)
        return masked(out, self.out_channels, 1)

    def plain(self) -> nn.Conv2d:
        """The active `torch.nn.Conv2d`."""
        fan_in, out, kernel, groups = self.now()
        weight, bias = self.sliced()
        here = self.largest
        with torch.device("meta"):
            layer = nn.Conv2d(
                fan_in,
                out,
                kernel,
                (here.stride[0], here.stride[1]),
                self.padding(kernel),
                (here.dilation[0], here.dilation[1]),
                groups,
                bias is not None,
            )
        return _fill(layer, self, weight=weight, bias=bias)


def _check_groups(in_channels: Size, out_channels: Size, groups: Size) -> None:
    if not isinstance(groups, int):
        return
    for size in (in_channels, out_channels):
        options = [size] if isinstance(size, int) else size.sizes
        if any(option % groups for option in options):
            raise InputError(
                f"Conv2d: {groups} groups do not divide all of the channels {options}: choose divisible ones."
            )


class Linear(ElasticLayer):
    """`torch.nn.Linear` with elastic features: leading slices of the largest weight."""

    def __init__(self, in_features: Size, out_features: Size, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.largest = nn.Linear(largest_size(in_features), largest_size(out_features), bias)

    def sliced(self) -> tuple[Tensor, Tensor | None]:
        """The active weight and bias: views of the largest ones."""
        fan_in, out = size_now(self.in_features), size_now(self.out_features)
        weight, bias = self.largest.weight, self.largest.bias
        if (out, fan_in) != weight.shape:
            weight = weight[:out, :fan_in]
        return weight, bias if bias is None or len(bias) == out else bias[:out]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return masked(F.linear(x, *self.sliced()), self.out_features, -1)

    def plain(self) -> nn.Linear:
        """The active `torch.nn.Linear`."""
        weight, bias = self.sliced()
        with torch.device("meta"):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        return _fill(layer, self, weight=weight, bias=bias)


class BatchNorm2d(ElasticLayer):
    """`torch.nn.BatchNorm2d` with elastic channels. All widths share the leading statistics, so after training they
    fit no single width: recompute them for an extracted network."""

    def __init__(self, num_features: Size, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.num_features = num_features
        self.largest = nn.BatchNorm2d(largest_size(num_features), eps, momentum, affine)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same."""
        here, size = self.largest, size_now(self.num_features)
        if size == here.num_features:
            return masked(here(x), self.num_features, 1)
        mean, variance, count = here.running_mean, here.running_var, here.num_batches_tracked
        assert mean is not None and variance is not None and count is not None and here.momentum is not None
        if self.training:
            count.add_(1)
        weight, bias = (here.weight[:size], here.bias[:size]) if here.affine else (None, None)
        out = F.batch_norm(x, mean[:size], variance[:size], weight, bias, self.training, here.momentum, here.eps)
        return masked(out, self.num_features, 1)

    def plain(self) -> nn.BatchNorm2d:
        """The active `torch.nn.BatchNorm2d` with its statistics."""
        here, size = self.largest, size_now(self.num_features)
        assert here.running_mean is not None and here.running_var is not None
        with torch.device("meta"):
            layer = nn.BatchNorm2d(size, here.eps, here.momentum, here.affine)
        weight, bias = (here.weight[:size], here.bias[:size]) if here.affine else (None, None)
        return _fill(
            layer,
            self,
            weight=weight,
            bias=bias,
            running_mean=here.running_mean[:size],
            running_var=here.running_var[:size],
            num_batches_tracked=here.num_batches_tracked,
        )


class LayerNorm(ElasticLayer):
    """`torch.nn.LayerNorm` over an elastic last dimension. While that is a mixture, every feature counts in the mean and
    the variance for as much as there is of it."""

    def __init__(self, features: Size, eps: float = 1e-5) -> None:
        super().__init__()
        self.features = features
        self.largest = nn.LayerNorm(largest_size(features), eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., features) -> the same."""
        here, size, mask = self.largest, size_now(self.features), mask_now(self.features)
        if mask is None:
            return F.layer_norm(x, (size,), here.weight[:size], here.bias[:size], here.eps)
        share = mask / mask.sum()
        centred = x - (share * x).sum(-1, keepdim=True)
        scaled = centred * ((share * centred**2).sum(-1, keepdim=True) + here.eps).rsqrt()
        return masked(scaled * here.weight[:size] + here.bias[:size], self.features, -1)

    def plain(self) -> nn.LayerNorm:
        """The active `torch.nn.LayerNorm`."""
        here, size = self.largest, size_now(self.features)
        with torch.device("meta"):
            layer = nn.LayerNorm(size, here.eps)
        return _fill(layer, self, weight=here.weight[:size], bias=here.bias[:size])


# --------------------------------------------------------------------------------------------------------------- graphs
Terms: TypeAlias = tuple[tuple[int, tuple[tuple[int, int, int], ...]], ...]
"""(target, ((source, edge, operation), ...)) for every node that is computed, in order."""


class Wiring(Choosing):
    """The choice of one operation per edge of a `Graph`. Graphs that hold the same wiring have the same edges.

    Args:
        nodes, operations, none, skip, rule: as in `nasopt.space.Cell`.
        differentiable: the edges have architecture parameters and are mixtures until they are activated.

    Attributes:
        alpha: None, or shape (edges, operations), zero at first.
    """

    def __init__(
        self,
        nodes: int,
        operations: Sequence[str],
        *,
        none: str | None = None,
        skip: str | None = None,
        rule: Rule = "algebra",
        differentiable: bool = False,
    ) -> None:
        self.cell = Cell("cell", nodes, operations, none=none, skip=skip, rule=rule)
        edges = len(self.cell.edges)
        super().__init__([MIXED if differentiable else 0] * edges)
        self.alpha = nn.Parameter(torch.zeros(edges, len(self.cell.operations))) if differentiable else None

    @property
    def edges(self) -> Sequence[tuple[int, int]]:
        """The edges (i, j), in the order of the slots."""
        return self.cell.edges

    def space(self, name: str) -> Cell:
        """The space of the slots."""
        cell = self.cell
        return Cell(name, cell.nodes, cell.operations, none=cell.none, skip=cell.skip, rule=cell.rule)

    def terms(self) -> Terms:
        """What has to be computed for the last node."""
        return live_terms(self.cell, tuple(self.chosen))


@lru_cache(maxsize=20_000)
def live_terms(cell: Cell, chosen: tuple[int, ...]) -> Terms:
    """The edges that carry something from the input to the output; under the rule ``nasbench201`` all edges."""
    edges = [(i, j, k, o) for k, ((i, j), o) in enumerate(zip(cell.edges, chosen, strict=True))]
    if cell.rule == "algebra":
        edges = [e for e in edges if e[3] == MIXED or cell.operations[e[3]] != cell.none]
        fed, used = {0}, {cell.nodes - 1}
        for i, j, _, _ in edges:
            fed |= {j} if i in fed else set()
        for i, j, _, _ in reversed(edges):
            used |= {i} if j in used else set()
        edges = [e for e in edges if e[0] in fed and e[1] in used]
    targets = sorted({e[1] for e in edges})
    return tuple((j, tuple((i, k, o) for i, target, k, o in edges if target == j)) for j in targets)


class Graph(nn.Module):
    """A cell: node 0 is the input and node j the sum over i < j of op_ij(activation(node i)); the skip operation passes
    node i on without the activation, so that a node is exactly the sum of its terms. The last node is the output.

    Under the rule ``algebra`` nothing is computed for a removed edge, nor for an operation on nothing or one that does
    not reach the output; an output of nothing is zero. Under ``nasbench201`` every edge is computed, zeros too, as
    published. All operations must keep the shape.

    Args:
        wiring: the choice of the edges' operations; one object may serve several graphs.
        operations: label -> factory, called once for each edge (not for ``none`` and ``skip`` under ``algebra``).
        activation: what a node's value passes before an operation (once per node); None: nothing.
        partial: only one in so many channels passes the operations, which are made for so few; the others pass by, and channels
            change places after each edge (PC-DARTS, Xu et al., ICLR 2020, §3.1). For searching: such a network is not extracted.

    Raises:
        InputError: the operations are not those of the wiring; in ``forward``, channels that ``partial`` does not divide.
    """

    def __init__(
        self, wiring: Wiring, operations: Mapping[str, Callable[[], nn.Module]], activation: nn.Module | None = None,
        partial: int = 1
    ) -> None:
        super().__init__()
        cell = wiring.cell
        if set(operations) != set(cell.operations):
            raise InputError(
                f"Graph: the operations {sorted(operations)} are not the wiring's {sorted(cell.operations)}."
            )
        self.wiring = wiring
        self.activation = activation
        self.partial = partial
        self.free = {cell.none, cell.skip} if cell.rule == "algebra" else set()
        built = [label for label in cell.operations if label not in self.free]
        self.edges = nn.ModuleList(nn.ModuleDict({label: operations[label]() for label in built}) for _ in cell.edges)

    def operation(self, edge: int, option: int) -> nn.Module | None:
        """The module of an operation on an edge; None: there is nothing to compute."""
        label = self.wiring.cell.operations[option]
        if label in self.free:
            return None
        ops = self.edges[edge]
        assert isinstance(ops, nn.ModuleDict)
        return ops[label]

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""

        return run_graph(x, self.wiring.terms(), self.wiring.cell.nodes - 1, self._edge, self.activation)

    def _edge(self, edge: int, option: int, node: Node) -> Tensor | None:
        """What an edge adds to its target; None: nothing."""
        part = node.first(self.partial)
        total = self._mixture(edge, part) if option == MIXED else self._term(edge, option, part)
        if self.partial > 1:
            total = passed_by(total, node.raw, self.partial)
        return edge_weighted(total, edge, self.wiring.mix)

    def _term(self, edge: int, option: int, node: Node) -> Tensor:
        operation = self.operation(edge, option)
        return node.raw if operation is None else operation(node.active())

    def _mixture(self, edge: int, node: Node) -> Tensor | None:
        cell, mix = self.wiring.cell, self.wiring.mix
        if mix is None:
            assert self.wiring.alpha is not None
            mix = Mix(torch.softmax(self.wiring.alpha, 1), (tuple(range(len(cell.operations))),) * len(cell.edges))
        found = edge_mixture(mix, edge, cell.operations, cell.none, lambda o: self._term(edge, o, node), lambda: node.raw)
        return torch.zeros_like(node.raw) if found is None and cell.rule != "algebra" else found

    def plain(self, copied: Callable[[nn.Module], nn.Module]) -> PlainGraph:
        """The active edges only.

        Raises:
            InputError: only a part of the channels passes the operations.
        """
        refuse_partial(self.partial)
        terms = self.wiring.terms()
        modules = {k: self.operation(k, o) for _, sources in terms for _, k, o in sources}
        kept = {str(k): copied(m) for k, m in modules.items() if m is not None}
        activation = None if self.activation is None else copied(self.activation)
        return PlainGraph(terms, self.wiring.cell.nodes - 1, kept, activation).train(self.training)


class PlainGraph(nn.Module):
    """A `Graph` without choices: the live edges of one architecture (by number; a term without an edge is a skip)."""

    def __init__(self, terms: Terms, last: int, edges: Mapping[str, nn.Module], activation: nn.Module | None) -> None:
        super().__init__()
        self.terms = terms
        self.last = last
        self.edges = nn.ModuleDict(edges)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""

        def edge(k: int, option: int, node: Node) -> Tensor:
            return self.edges[str(k)](node.active()) if str(k) in self.edges else node.raw

        return run_graph(x, self.terms, self.last, edge, self.activation)


class Node:
    """A node's value, and the same after the activation (computed once, when first asked for)."""

    def __init__(self, raw: Tensor, activation: nn.Module | None) -> None:
        self.raw = raw
        self.activation = activation
        self.activated: Tensor | None = None

    def active(self) -> Tensor:
        """The activated value."""
        if self.activated is None:
            self.activated = self.raw if self.activation is None else self.activation(self.raw)
        return self.activated

    def first(self, parts: int) -> Node:
        """The first of so many parts of the channels.

        Raises:
            InputError: they are not so many equal parts.
        """
        if parts == 1:
            return self
        if self.raw.shape[1] % parts:
            raise InputError(f"1 in {parts} channels shall pass the operations, which does not divide the "
                             f"{self.raw.shape[1]} channels of a graph's input: give it a multiple.")
        width = self.raw.shape[1] // parts
        node = Node(self.raw[:, :width], self.activation)
        node.activated = self.active()[:, :width]
        return node


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels (n, groups · c, h, w) in the order 0, c, 2c, ..., 1, c + 1, ... (Zhang et al., ShuffleNet, CVPR 2018, §3.1)."""
    n, channels, h, w = x.shape
    return x.view(n, groups, channels // groups, h, w).transpose(1, 2).reshape(n, channels, h, w)


def run_graph(
    x: Tensor, terms: Terms, last: int, edge: Callable[[int, int, Node], Tensor | None], activation: nn.Module | None
) -> Tensor:
    """The value of node ``last``: node j = sum of ``edge(edge, operation, node i)``; zeros if nothing reaches it."""
    nodes = {0: Node(x, activation)}
    for j, sources in terms:
        total: Tensor | None = None
        for i, k, option in sources:
            term = edge(k, option, nodes[i]) if i in nodes else None
            total = term if total is None else total if term is None else total + term
        if total is not None:
            nodes[j] = Node(total, activation)
    return nodes[last].raw if last in nodes else torch.zeros_like(x)


def edge_mixture(mix: Mix, edge: int, labels: Sequence[str], none: str | None, term: Callable[[int], Tensor],
                 bypass: Callable[[], Tensor]) -> Tensor | None:
    """sum_o weights[edge, o] · term(o) over the live options but ``none``, and the mix's share of ``bypass()``; None: nothing."""
    live = [option for option in mix.live[edge] if labels[option] != none]
    total = None if not live else mixture([mix.weights[edge, option] for option in live], [term(option) for option in live],
                                          [labels[option] for option in live])
    if mix.bypass:
        total = mix.bypass * bypass() if total is None else total + mix.bypass * bypass()
    return total


def edge_weighted(total: Tensor | None, edge: int, mix: Mix | None) -> Tensor | None:
    """An edge's output, the channels that passed by included, times the edge's own weight, if there is one."""
    return total if total is None or mix is None or mix.edges is None else mix.edges[edge] * total


def passed_by(out: Tensor | None, x: Tensor, parts: int, stride: int = 1) -> Tensor:
    """The first of ``parts`` of x's channels after their operations (None: zeros) and the others as they are, at a stride after
    max pooling, in changed places (PC-DARTS, Xu et al., ICLR 2020)."""
    width = x.shape[1] // parts
    rest = x[:, width:] if stride == 1 else F.max_pool2d(x[:, width:], stride, ceil_mode=True)
    return shuffled(torch.cat([torch.zeros_like(rest[:, :width]) if out is None else out, rest], 1), parts)


def refuse_partial(parts: int) -> None:
    """Raises an InputError if only a part of the channels passes a network's operations."""
    if parts > 1:
        raise InputError(f"only 1 in {parts} channels passes this network's operations, so that it can be searched but not "
                         "extracted: extract from the network with partial=1.")


# ---------------------------------------------------------------------------------------------------------------- pairs
class Pairs(Choosing):
    """The choice of two sources for every inner node of a `PairGraph`, and of one operation for each of the two (Zoph et al.,
    NASNet, CVPR 2018, §3; Liu et al., DARTS, ICLR 2019, §2.1). Cells that hold the same object make the same choices.

    Nodes 0 to inputs - 1 are the cell's inputs. In the space, inner node j has three choices: ``j-inputs``, two distinct earlier
    nodes, and ``j-first`` and ``j-second``, the operations on the lower and on the higher of them. Relaxed, it has a row for
    every edge i -> j, by target, then by source, with the options `labels`.

    Args:
        inputs: number of input nodes, at least 2.
        nodes: number of inner nodes.
        operations: labels of the operations.
        none: label of the relaxed option that is nothing; it is never chosen.
        skip: which of the operations passes its source on.

    Attributes:
        edges: (i, j) of every row.
        labels: ``none`` and the operations.

    Raises:
        InputError: fewer than 2 inputs or 1 inner node, or a ``skip`` that is no operation.
    """

    def __init__(self, inputs: int, nodes: int, operations: Sequence[str], *, none: str, skip: str) -> None:
        if inputs < 2 or nodes < 1 or skip not in operations:
            raise InputError(f"Pairs: got {inputs} inputs, {nodes} inner nodes and the skip {skip!r}: give at least 2 inputs, 1 "
                             f"inner node, and one of {list(operations)} as the skip.")
        super().__init__([0] * (3 * nodes))
        self.inputs = inputs
        self.inner = range(inputs, inputs + nodes)
        self.edges = tuple((i, j) for j in self.inner for i in range(j))
        self.operations = tuple(operations)
        self.none, self.skip = none, skip
        self.labels = (none, *operations)
        self.rows = {edge: row for row, edge in enumerate(self.edges)}

    def space(self, name: str) -> Product:
        """The space of the slots."""
        parts = list[Space]()
        for j in self.inner:
            parts += [Choice(f"{j}-inputs", [f"{a},{b}" for a, b in pairs_below(j)]), Choice(f"{j}-first", self.operations),
                      Choice(f"{j}-second", self.operations)]
        return Product(name, parts)

    def terms(self) -> Terms:
        """What has to be computed: the chosen edges, with the index in `labels`; while they are mixtures, all edges."""
        if self.chosen[0] == MIXED:
            return tuple((j, tuple((i, self.rows[i, j], MIXED) for i in range(j))) for j in self.inner)
        found = []
        for k, j in enumerate(self.inner):
            pair, *ops = self.chosen[3 * k:3 * k + 3]
            found.append((j, tuple((i, self.rows[i, j], op + 1) for i, op in zip(pairs_below(j)[pair], ops, strict=True))))
        return tuple(found)

    def nearest(self, weights: Tensor) -> list[int]:
        """The options of all slots for weights (edges, labels): every edge takes its strongest operation, and every node the two
        edges on which that is strongest (Liu et al., DARTS, ICLR 2019, §2.4); the earlier of equal ones."""
        strength = weights.detach().cpu().numpy()[:, 1:]
        best, found = strength.argmax(1), list[int]()
        for j in self.inner:
            rows = [self.rows[i, j] for i in range(j)]
            a, b = sorted((-strength[rows].max(1)).argsort(kind="stable")[:2].tolist())
            found += [pairs_below(j).index((a, b)), int(best[rows[a]]), int(best[rows[b]])]
        return found


@lru_cache(maxsize=64)
def pairs_below(node: int) -> tuple[tuple[int, int], ...]:
    """All (a, b) with a < b < node, by b, then by a."""
    return tuple((a, b) for b in range(node) for a in range(b))


class PairGraph(nn.Module):
    """A cell with several inputs: inner node j is the sum of its two operations on earlier nodes, and the output all inner nodes
    side by side. A relaxed edge is the mixture of all operations.

    Args:
        wiring: the choice; one object may serve several cells.
        operations: label -> factory of a module at a stride, called once for each edge. Modules keep the number of channels.
        activation: what a node's value passes before an operation (once per node).
        raw: labels of the operations that take a node's value without the activation.
        stride: of the edges that leave an input.
        partial: as in `Graph`; of an edge with a stride the other channels are pooled.

    Raises:
        InputError: the operations are not those of the wiring.
    """

    def __init__(self, wiring: Pairs, operations: Mapping[str, Callable[[int], nn.Module]], activation: nn.Module,
                 raw: Sequence[str] = (), stride: int = 1, partial: int = 1) -> None:
        super().__init__()
        if set(operations) != set(wiring.operations):
            raise InputError(f"PairGraph: the operations {sorted(operations)} are not the wiring's {sorted(wiring.operations)}.")
        self.wiring = wiring
        self.activation = activation
        self.raw = frozenset(raw)
        self.strides = tuple(stride if i < wiring.inputs else 1 for i, _ in wiring.edges)
        self.partial = partial
        self.edges = nn.ModuleList(nn.ModuleDict({label: operations[label](step) for label in wiring.operations})
                                   for step in self.strides)

    def operation(self, edge: int, option: int) -> nn.Module:
        """The module of one of the wiring's labels, from 1 on, on an edge."""
        ops = self.edges[edge]
        assert isinstance(ops, nn.ModuleDict)
        return ops[self.wiring.labels[option]]

    def forward(self, *inputs: Tensor) -> Tensor:
        """(n, channels, h, w) each -> (n, nodes · channels, h', w')."""
        return run_pairs(inputs, self.wiring.terms(), self._edge, self.activation, self.strides[0])

    def _edge(self, edge: int, option: int, node: Node) -> Tensor | None:
        """What an edge adds to its target; None: nothing."""
        part, mix = node.first(self.partial), self.wiring.mix
        if option != MIXED:
            total: Tensor | None = self._term(edge, option, part)
        else:
            assert mix is not None
            total = edge_mixture(mix, edge, self.wiring.labels, self.wiring.none, lambda o: self._term(edge, o, part),
                                 lambda: self._term(edge, self.wiring.labels.index(self.wiring.skip), part))
        if self.partial > 1:
            total = passed_by(total, node.raw, self.partial, self.strides[edge])
        return edge_weighted(total, edge, mix) if option == MIXED else total

    def _term(self, edge: int, option: int, node: Node) -> Tensor:
        label = self.wiring.labels[option]
        return self.operation(edge, option)(node.raw if label in self.raw else node.active())  # type: ignore[no-any-return]

    def plain(self, copied: Callable[[nn.Module], nn.Module]) -> PlainPairGraph:
        """The chosen edges only.

        Raises:
            InputError: only a part of the channels passes the operations.
        """
        refuse_partial(self.partial)
        terms = self.wiring.terms()
        chosen = [(k, option) for _, sources in terms for _, k, option in sources]
        kept = {str(k): copied(self.operation(k, option)) for k, option in chosen}
        raw = frozenset(k for k, option in chosen if self.wiring.labels[option] in self.raw)
        return PlainPairGraph(terms, kept, copied(self.activation), raw, self.strides[0]).train(self.training)


class PlainPairGraph(nn.Module):
    """A `PairGraph` without choices: the edges of one architecture (by number; those in ``raw`` take values as they are)."""

    def __init__(self, terms: Terms, edges: Mapping[str, nn.Module], activation: nn.Module, raw: frozenset[int],
                 stride: int) -> None:
        super().__init__()
        self.terms = terms
        self.edges = nn.ModuleDict(edges)
        self.activation = activation
        self.raw = raw
        self.stride = stride

    def forward(self, *inputs: Tensor) -> Tensor:
        """(n, channels, h, w) each -> (n, nodes · channels, h', w')."""

        def edge(k: int, option: int, node: Node) -> Tensor:
            return self.edges[str(k)](node.raw if k in self.raw else node.active())  # type: ignore[no-any-return]

        return run_pairs(inputs, self.terms, edge, self.activation, self.stride)


def run_pairs(inputs: Sequence[Tensor], terms: Terms, edge: Callable[[int, int, Node], Tensor | None], activation: nn.Module,
              stride: int) -> Tensor:
    """All inner nodes side by side: node j = sum of ``edge(edge, operation, node i)``; zeros if there is nothing to add."""
    nodes = [Node(x, activation) for x in inputs]
    for _, sources in terms:
        found = [term for i, k, option in sources if (term := edge(k, option, nodes[i])) is not None]
        total = found[0] if found else torch.zeros_like(inputs[0][:, :, ::stride, ::stride])
        for term in found[1:]:
            total = total + term
        nodes.append(Node(total, activation))
    return torch.cat([node.raw for node in nodes[len(inputs):]], 1)


# ------------------------------------------------------------------------------------------------- from module to space
Owner: TypeAlias = tuple[Choosing, int]
Scope: TypeAlias = tuple[Owner, ...]
Bindings: TypeAlias = dict[str, list[tuple[Choosing, int]]]


@dataclass(frozen=True)
class Plan:
    """What `activate` needs: the space's columns and the choices (with their slots) that each of them steers."""

    space: Space
    columns: Layout
    steered: tuple[tuple[tuple[Choosing, int], ...], ...]
    choices: tuple[Choosing, ...]


PLAN = "_nasopt_plan"


class _Survey:
    """Finds every choice below a module and its place in the space."""

    def __init__(self, root: nn.Module) -> None:
        self.found: dict[Choosing, list[tuple[Owner | None, tuple[str, ...]]]] = {}
        self.homes: dict[Choosing, Scope] = {}
        self._visit(root, None, ())
        self.members: dict[Scope, list[tuple[tuple[str, ...], Choosing]]] = {}
        for choice in self.found:
            self.members.setdefault(self._home(choice), []).append((self._name(choice), choice))

    def _visit(self, module: nn.Module, owner: Owner | None, way: tuple[str, ...]) -> None:
        if isinstance(module, Choosing):
            again = module in self.found
            self.found.setdefault(module, []).append((owner, way))
            for option, inner in enumerate(() if again else _inside(module)):
                self._visit(inner, (module, option), ())
        elif isinstance(module, (Graph, PairGraph)):
            self._visit(module.wiring, owner, way)
            for (i, j), edge in zip(module.wiring.edges, module.edges, strict=True):
                for label, operation in edge.named_children():
                    self._visit(operation, owner, (*way[:-1], ".".join((*way[-1:], f"{i}-{j}", _legal(label)))))
        else:
            for name, child in module.named_children():
                self._visit(child, owner, (*way, _legal(name)))

    def _scope(self, owner: Owner | None) -> Scope:
        return () if owner is None else (*self._home(owner[0]), owner)

    def _home(self, choice: Choosing) -> Scope:
        """The innermost scope that holds all occurrences."""
        if choice not in self.homes:
            scopes = [self._scope(owner) for owner, _ in self.found[choice]]
            common = 0
            while all(len(s) > common and s[common] == scopes[0][common] for s in scopes):
                common += 1
            self.homes[choice] = scopes[0][:common]
        return self.homes[choice]

    def _name(self, choice: Choosing) -> tuple[str, ...]:
        for owner, way in self.found[choice]:
            if self._scope(owner) == self._home(choice):
                return way or (_default_name(choice),)
        return (".".join(self._way(choice)),)

    def _way(self, choice: Choosing) -> tuple[str, ...]:
        owner, way = self.found[choice][0]
        above = () if owner is None else (*self._way(owner[0]), _label(owner))
        return (*above, *(way or (_default_name(choice),)))

    def parts(self, scope: Scope, prefix: str, bound: Bindings) -> list[Space]:
        """The spaces of a scope's choices; ``bound`` gains their paths, which start with ``prefix``."""
        return self._nest(self.members.get(scope, []), scope, prefix, bound)

    def _nest(
        self, members: list[tuple[tuple[str, ...], Choosing]], scope: Scope, prefix: str, bound: Bindings
    ) -> list[Space]:
        groups: dict[tuple[str, bool], list[tuple[tuple[str, ...], Choosing]]] = {}
        for way, choice in members:
            groups.setdefault((way[0], len(way) == 1), []).append((way[1:], choice))
        out: list[Space] = []
        for (name, ends), inner in groups.items():
            if ends:
                out += [self._space(choice, name, scope, prefix + name, bound) for _, choice in inner]
            else:
                out.append(Product(name, self._nest(inner, scope, f"{prefix}{name}/", bound)))
        return out

    def _space(self, choice: Choosing, name: str, scope: Scope, path: str, bound: Bindings) -> Space:
        if isinstance(choice, (Wiring, Pairs)):
            cell = choice.space(name)
            for slot, part in enumerate(cell.parts):
                bound.setdefault(f"{path}/{part.name}", []).append((choice, slot))
            return cell
        bound.setdefault(path, []).append((choice, 0))
        if isinstance(choice, Depth):
            return self._depth(choice, name, scope, path, bound)
        assert isinstance(choice, (OneOf, DifferentiableOp, Width, KernelSize))
        inner = [self.parts((*scope, (choice, i)), f"{path}={label}/", bound) for i, label in enumerate(choice.labels)]
        return Choice(
            name,
            {label: Product("", parts) if parts else None for label, parts in zip(choice.labels, inner, strict=True)},
        )

    def _depth(self, depth: Depth, name: str, scope: Scope, path: str, bound: Bindings) -> Space:
        scopes = [(*scope, (depth, i)) for i in range(len(depth.blocks))]
        blocks = [Product("", self.parts(s, "", {})) for s in scopes]
        equal = all(block == blocks[0] for block in blocks)
        if depth.shared and not equal:
            raise InputError(
                f"Depth {path!r}: shared blocks must offer the same choices: make them alike or drop shared=True."
            )
        if not any(block.parts for block in blocks):
            return Choice(name, depth.labels)
        if equal:
            for i, s in enumerate(scopes):
                self.parts(s, f"{path}[{'*' if depth.shared else i}]/", bound)
            if len(depth.sizes) == 1:
                del bound[path]
            return Repeat(name, blocks[0], depth.sizes, depth.shared)
        return Choice(
            name,
            {
                label: Product(
                    "", [Product(str(i), self.parts(scopes[i], f"{path}={label}/{i}/", bound)) for i in range(size)]
                )
                for label, size in zip(depth.labels, depth.sizes, strict=True)
            },
        )


def _inside(choice: Choosing) -> Sequence[nn.Module]:
    if isinstance(choice, (OneOf, DifferentiableOp)):
        return tuple(choice.options)
    return tuple(choice.blocks) if isinstance(choice, Depth) else ()


def _label(owner: Owner) -> str:
    choice, option = owner
    return choice.labels[option] if isinstance(choice, (OneOf, DifferentiableOp)) else str(option)


def _default_name(choice: Choosing) -> str:
    return "cell" if isinstance(choice, (Wiring, Pairs)) else type(choice).__name__.lower()


def plan_of(module: nn.Module) -> Plan:
    """The module's plan, made on first use and kept beside (not in) its state."""
    plan: Plan | None = module.__dict__.get(PLAN)
    if plan is None:
        survey, bound = _Survey(module), Bindings()
        parts = survey.parts((), "", bound)
        if not parts:
            raise InputError(
                f"{type(module).__name__} has no choices: put a OneOf, Depth, Width or Graph (nasopt.nets.choices) "
                "where alternatives should be searched."
            )
        try:
            columns = layout(Product("", parts))
        except ValueError as problem:
            raise InputError(
                f"{type(module).__name__}: two choices get one name ({problem}): rename an attribute."
            ) from None
        plan = Plan(
            Product("", parts), columns, tuple(tuple(bound[g.path]) for g in columns.genes), tuple(survey.found)
        )
        module.__dict__[PLAN] = plan
    return plan


def space_of(module: nn.Module) -> Space:
    """The search space of all choices in a module. Do not add choices afterwards: it is computed once.

    Raises:
        InputError: the module has no choices, or two would get one name.
    """
    return plan_of(module).space


def activate(module: nn.Module, arch: Arch) -> None:
    """Makes ``arch`` the network that ``module`` computes.

    Raises:
        InputError: ``arch`` is not an architecture of ``space_of(module)``.
    """
    plan = plan_of(module)
    values: list[int] = []
    met = 0
    for gene, steered in zip(plan.columns.genes, plan.steered, strict=True):
        if gene.parent >= 0 and values[gene.parent] not in gene.when:
            values.append(-1)
            continue
        value = arch.get(gene.path, -1)
        if not 0 <= value < len(gene.labels):
            got = f"is {value}" if gene.path in arch else "is missing"
            raise InputError(f"choice {gene.path!r} {got}: give an index 0..{len(gene.labels) - 1} of {gene.labels}.")
        values.append(value)
        met += 1
        for choice, slot in steered:
            choice.select(slot, value)
    if met != len(arch):
        extra = set(arch) - {g.path for g, v in zip(plan.columns.genes, values, strict=True) if v >= 0}
        raise InputError(f"choice {min(extra)!r} does not exist in this architecture: take it from space_of(module).")


def relax(module: nn.Module) -> None:
    """Makes every differentiable choice a mixture again."""
    for choice in plan_of(module).choices:
        if isinstance(choice, DifferentiableOp) or (isinstance(choice, Wiring) and choice.alpha is not None):
            choice.chosen[:] = [MIXED] * len(choice.chosen)


def architecture_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The alphas of all differentiable choices, in the order of the space."""
    return [c.alpha for c in plan_of(module).choices if isinstance(c, (DifferentiableOp, Wiring)) and c.alpha is not None]


# ----------------------------------------------------------------------------------------------------------- extraction
def extract(module: M, arch: Arch) -> M:
    """The stand-alone network of one architecture, with copies of the active weights and statistics; ``module`` is
    unchanged.

    `OneOf` becomes its option, `Depth` an `nn.Sequential`, a `Graph` or `PairGraph` its live edges, an elastic layer a PyTorch
    layer, and a `Width`, `KernelSize`, `Wiring` or `Pairs` kept as an attribute becomes None.

    Raises:
        InputError: ``arch`` is not an architecture of ``space_of(module)``.
    """
    choices = plan_of(module).choices
    before = [list(choice.chosen) for choice in choices]
    try:
        activate(module, arch)
        memo: dict[int, object] = {id(m.__dict__[PLAN]): None for m in module.modules() if PLAN in m.__dict__}
        net = _copied(module, memo)
    finally:
        for choice, chosen in zip(choices, before, strict=True):
            choice.chosen[:] = chosen
    for inner in net.modules():
        inner.__dict__.pop(PLAN, None)
    return net


def _copied(module: M, memo: dict[int, object]) -> M:
    """A deep copy with every choice resolved: its replacement is put where deepcopy looks for finished copies."""
    for inner in _outermost(module):
        if id(inner) not in memo:
            memo[id(inner)] = _resolved(inner, memo)
    return copy.deepcopy(module, memo)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, (Choosing, Graph, PairGraph, ElasticLayer, Multiple)):
        yield module
    else:
        for child in module.children():
            yield from _outermost(child)


def _resolved(module: nn.Module, memo: dict[int, object]) -> nn.Module | None:
    if isinstance(module, (OneOf, DifferentiableOp)):
        if module.chosen[0] == MIXED:
            raise InputError("a DifferentiableOp outside the architecture is still a mixture: it cannot be extracted.")
        return _copied(module.options[module.chosen[0]], memo)
    if isinstance(module, Depth):
        return nn.Sequential(*[_copied(b, memo) for b in islice(module.blocks, module.value)]).train(module.training)
    if isinstance(module, (Graph, PairGraph)):
        return module.plain(lambda inner: _copied(inner, memo))
    return module.plain() if isinstance(module, ElasticLayer) else None


# --------------------------------------------------------------------------------------------------------- the extremes
def largest(module: nn.Module) -> dict[str, int]:
    """The architecture with the widest, deepest options and the operations of most parameters (the sandwich rule)."""
    return _extreme(module, 1)


def smallest(module: nn.Module) -> dict[str, int]:
    """The architecture with the narrowest, shallowest options and the operations of fewest parameters. A cell with a
    removing operation keeps the one edge from its input to its output, as a skip if there is one."""
    return _extreme(module, -1)


Graphs: TypeAlias = dict[Choosing, "Graph | PairGraph"]


def _extreme(module: nn.Module, sign: int) -> dict[str, int]:
    plan = plan_of(module)
    graphs: Graphs = {m.wiring: m for m in module.modules() if isinstance(m, (Graph, PairGraph))}
    arch: dict[str, int] = {}
    values: list[int] = []
    for gene, steered in zip(plan.columns.genes, plan.steered, strict=True):
        here = gene.parent < 0 or values[gene.parent] in gene.when
        values.append(_extreme_option(*steered[0], graphs, sign) if here else -1)
        if here:
            arch[gene.path] = values[-1]
    return arch


def _extreme_option(choice: Choosing, slot: int, graphs: Graphs, sign: int) -> int:
    if isinstance(choice, (Width, KernelSize, Depth)):
        return len(choice.sizes) - 1 if sign > 0 else 0
    if isinstance(choice, Wiring):
        return _extreme_operation(choice, slot, graphs, sign)
    if isinstance(choice, Pairs):
        weights = [0] if slot % 3 == 0 else [_parameters(graphs[choice].operation(-1, o)) for o in range(1, len(choice.labels))]
    else:
        weights = [_parameters(option) for option in _inside(choice)]
    return max(range(len(weights)), key=lambda i: sign * weights[i])


def _extreme_operation(wiring: Wiring, edge: int, graphs: Graphs, sign: int) -> int:
    cell = wiring.cell
    weights = {o: _parameters(graphs[wiring].operation(edge, o)) for o in range(len(cell.operations))}
    if sign < 0 and cell.none is not None:
        none = cell.operations.index(cell.none)
        if cell.edges[edge] != (0, cell.nodes - 1):
            return none
        weights = {o: w for o, w in weights.items() if o != none} or weights
        if cell.skip is not None:
            return cell.operations.index(cell.skip)
    return max(weights, key=lambda o: sign * weights[o])


def _parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
