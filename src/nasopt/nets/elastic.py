"""Sizes that are chosen (`Width`, `KernelSize`), and the layers whose weights are slices of their largest ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasopt.errors import InputError
from nasopt.nets.options import MIXED, Choosing, Depth, increasing, last_option, legal

M = TypeVar("M", bound=nn.Module)


# ---------------------------------------------------------------------------------------------------------------- sizes
class Width(Choosing):
    """A number of channels or features that every elastic layer holding this object shares; at first the largest.

    Args:
        options: the numbers to choose from, each at least 1.
        labels: their names in the space, smallest first (default: the numbers themselves).

    Raises:
        InputError: no options, one twice, one below 1, or not one label each.
    """

    def __init__(self, options: Sequence[int], labels: Sequence[str] | None = None) -> None:
        self.sizes = increasing("Width", options, 1)
        super().__init__([len(self.sizes) - 1])
        self.labels = tuple(str(size) for size in self.sizes) if labels is None else tuple(map(legal, labels))
        if len(set(self.labels)) != len(self.sizes):
            raise InputError(f"Width: {list(self.labels)} must be one distinct label for each of {list(self.sizes)}.")

    @property
    def largest(self) -> int:
        """The largest option."""
        return self.sizes[-1]

    @property
    def value(self) -> int:
        """The active option; of a mixture the largest that is computed."""
        return self.sizes[last_option(self)]

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
    held = torch.tensor(sizes)[:, None] > torch.arange(sizes[last_option(choice)])
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
        self.sizes = increasing("KernelSize", options, 1)
        super().__init__([len(self.sizes) - 1])
        if any(size % 2 == 0 for size in self.sizes):
            raise InputError(
                f"KernelSize: {list(self.sizes)} has an even size: kernels share their centre, so give odd ones."
            )
        self.labels = tuple(str(size) for size in self.sizes)

    @property
    def value(self) -> int:
        """The active option; of a mixture the largest that is computed."""
        return self.sizes[last_option(self)]

    def mask(self) -> Tensor | None:
        """While it is a mixture: how much of every place of a kernel there is, (value, value) (Stamoulis et al., Single-Path NAS,
        ECML 2019, eq. 4, with weights in place of thresholds)."""
        line = _mask(self, self.sizes)
        if line is None:
            return None
        ring = (torch.arange(len(line)) - len(line) // 2).abs()
        return line[2 * torch.maximum(ring[:, None], ring)]


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
