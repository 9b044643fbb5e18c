"""Depthwise convolutions in training on CPUs: two kernels of PyTorch 2.13 (oneDNN) that must be gone around."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Depthwise(TorchFunctionMode):
    """Inside this context every grouped convolution trains right and fast, whoever calls it; the values stay the same.

    A dilated one is computed in fp32: in bf16 the gradient of its kernel reads memory that nobody wrote (fresh memory is
    zero, so it only shows once memory is used again). A strided depthwise one computes every position and keeps
    those that the stride visits: the gradient of the strided form takes three to fifteen times as long.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is functional.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            groups: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d`."""
    if groups == 1:
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if _largest(dilation) > 1:
        with torch.autocast(input.device.type, enabled=False):
            return functional.conv2d(input.float(), weight, bias, stride, padding, dilation, groups)
    if _largest(stride) > 1 and groups == input.shape[1]:
        step = (stride, stride) if isinstance(stride, int) else stride
        return functional.conv2d(input, weight, bias, 1, padding, dilation, groups)[:, :, ::step[0], ::step[-1]]
    return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _largest(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else max(size)
