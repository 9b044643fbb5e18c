"""Two networks designed by hand, to compare searched ones with. Plain PyTorch, for images of any size."""

from __future__ import annotations

import math

from torch import Tensor, nn

from nasopt.errors import InputError
from nasopt.nets.ops import bottleneck, conv_norm


class Residual(nn.Module):
    """x -> last(shortcut(x) + block(x))."""

    def __init__(self, block: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.shortcut = shortcut
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h', w')."""
        return self.last(self.shortcut(x) + self.block(x))  # type: ignore[no-any-return]


def _basic(fan_in: int, out: int, stride: int) -> nn.Module:
    """The basic block; where the shape changes the shortcut is a 1x1 convolution (He et al., CVPR 2016, option B)."""
    block = nn.Sequential(conv_norm(fan_in, out, 3, stride=stride), nn.ReLU(), conv_norm(out, out, 3))
    same = fan_in == out and stride == 1
    return Residual(block, nn.Identity() if same else conv_norm(fan_in, out, 1, stride=stride), nn.ReLU())


def _size(input_shape: tuple[int, int, int], classes: int) -> int:
    if len(input_shape) != 3 or min(input_shape) < 1 or classes < 1:
        raise InputError(
            f"input_shape {input_shape} and classes {classes}: give (channels, height, width) and a count, all >= 1."
        )
    return min(input_shape[1:])


def small_resnet(input_shape: tuple[int, int, int], classes: int, blocks: int = 1) -> nn.Module:
    """ResNet for small images (He et al., CVPR 2016, §4.2): stages of 16, 32, 64 channels, ``blocks`` basic blocks
    each (1: ResNet-8, as in MLPerf Tiny, arXiv 2106.07597; 3: ResNet-20), shortcuts as 1x1 convolutions. Below 16 pixels
    stages of 16 and 32; from 64 pixels on a stem of stride 2 and, from 128 on, one of stride 4.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of classes.

    Raises:
        InputError: a size below 1.
    """
    size = _size(input_shape, classes)
    widths = (16, 32) if size < 16 else (16, 32, 64)
    layers: list[nn.Module] = [conv_norm(input_shape[0], 16, 3, stride=1 if size < 64 else 2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2, 1)] if size >= 128 else []
    before = 16
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(_basic(before, width, 2 if stage and not block else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride: MobileNetV2 (Sandler et al., CVPR 2018, tab. 2), the second at stride 1 as
is usual for 32x32 images."""


def small_mobilenet(input_shape: tuple[int, int, int], classes: int, width: float = 0.25) -> nn.Module:
    """MobileNetV2 at a quarter of its width (its last layer too) with ReLU and the strides for 32x32 images. From 64 pixels
    on the stem has stride 2, from 128 on the second stage too; strides that would leave fewer than 2 pixels are 1.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of classes.
        width: multiplies all channels, rounded to multiples of 8.

    Raises:
        InputError: a size below 1.
    """
    size = _size(input_shape, classes)
    before, last = _channels(32, width), _channels(1280, width)
    layers: list[nn.Module] = [conv_norm(input_shape[0], before, 3, stride=1 if size < 64 else 2), nn.ReLU()]
    here = size if size < 64 else math.ceil(size / 2)
    for stage, (expansion, channels, blocks, stride) in enumerate(MOBILENET):
        out = _channels(channels, width)
        wanted = 2 if stage == 1 and size >= 128 else stride
        for block in range(blocks):
            step = wanted if not block and math.ceil(here / wanted) >= 2 else 1
            here = math.ceil(here / step)
            layers.append(_inverted(before, out, expansion, step))
            before = out
    return nn.Sequential(
        *layers, conv_norm(before, last, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)
    )


def _inverted(fan_in: int, out: int, expansion: int, stride: int) -> nn.Module:
    block = bottleneck(fan_in, out, expansion * fan_in, 3, stride)
    return Residual(block, nn.Identity(), nn.Identity()) if fan_in == out and stride == 1 else block


def _channels(channels: int, width: float) -> int:
    """The multiple of 8 nearest to ``channels * width``, at least 8."""
    return max(8, int(channels * width + 4) // 8 * 8)
