"""Operations for cells: they keep the spatial size, take ints or elastic widths and, where they have weights, end in a
batch normalisation without an activation (the cell applies one activation per node).

With ints all of them consist of plain PyTorch layers; with a `nasopt.nets.elastic.Width` of elastic ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from nasopt.nets import elastic
from nasopt.nets.elastic import Size, Width

EXPANSION = 3
"""How much wider an inverted bottleneck is inside."""


class Zero(nn.Module):
    """x · 0, as NAS-Bench-201 computes its operation ``none``."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return x.mul(0.0)


def conv(fan_in: Size, out: Size, kernel: int, *, stride: int = 1, dilation: int = 1, groups: Size = 1) -> nn.Module:
    """A convolution without bias, padded to keep the size (at stride 1); elastic if one of its sizes is."""
    padding = dilation * (kernel // 2)
    if isinstance(fan_in, int) and isinstance(out, int) and isinstance(groups, int):
        return nn.Conv2d(fan_in, out, kernel, stride, padding, dilation, groups, bias=False)
    return elastic.Conv2d(fan_in, out, kernel, stride, padding, dilation, groups, bias=False)


def norm(size: Size) -> nn.Module:
    """Batch normalisation; elastic if its size is."""
    return nn.BatchNorm2d(size) if isinstance(size, int) else elastic.BatchNorm2d(size)


def linear(fan_in: Size, out: Size) -> nn.Module:
    """A linear layer; elastic if one of its sizes is."""
    if isinstance(fan_in, int) and isinstance(out, int):
        return nn.Linear(fan_in, out)
    return elastic.Linear(fan_in, out)


def conv_norm(fan_in: Size, out: Size, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation."""
    return nn.Sequential(conv(fan_in, out, kernel, stride=stride), norm(out))


def separable(size: Size, kernel: int) -> nn.Sequential:
    """A depthwise, then a pointwise convolution (Howard et al., MobileNets, arXiv 1704.04861, fig. 3)."""
    return nn.Sequential(conv(size, size, kernel, groups=size), norm(size), nn.ReLU(), conv(size, size, 1), norm(size))


def dilated(size: Size, kernel: int) -> nn.Sequential:
    """A depthwise convolution of dilation 2, then a pointwise one (Liu et al., DARTS, ICLR 2019, §3.1)."""
    return nn.Sequential(conv(size, size, kernel, dilation=2, groups=size), conv(size, size, 1), norm(size))


def bottleneck(fan_in: Size, out: Size, hidden: Size, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Inverted bottleneck: expand, depthwise, project (Sandler et al., MobileNetV2, CVPR 2018, tab. 1)."""
    return nn.Sequential(
        conv(fan_in, hidden, 1),
        norm(hidden),
        nn.ReLU(),
        conv(hidden, hidden, kernel, stride=stride, groups=hidden),
        norm(hidden),
        nn.ReLU(),
        conv(hidden, out, 1),
        norm(out),
    )


def _expanded(size: Size) -> Size:
    if isinstance(size, int):
        return EXPANSION * size
    assert isinstance(size, Width)
    return size * EXPANSION


OPERATIONS: Mapping[str, Callable[[int | Width], nn.Module]] = {
    "none": lambda size: Zero(),
    "skip": lambda size: nn.Identity(),
    "conv_1x1": lambda size: conv_norm(size, size, 1),
    "conv_3x3": lambda size: conv_norm(size, size, 3),
    "sep_3x3": lambda size: separable(size, 3),
    "sep_5x5": lambda size: separable(size, 5),
    "dil_3x3": lambda size: dilated(size, 3),
    "mbconv_3x3": lambda size: bottleneck(size, size, _expanded(size)),
    "max_3x3": lambda size: nn.MaxPool2d(3, 1, 1),
    "avg_3x3": lambda size: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}
"""Label -> factory of a module that maps (n, size, h, w) to the same shape."""
