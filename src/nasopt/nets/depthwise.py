"""Depthwise convolutions in training on CPUs: kernels of PyTorch 2.13 (oneDNN) that must be gone around."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Depthwise(TorchFunctionMode):
    """Inside this context depthwise and dilated grouped convolutions train right and fast on a CPU, whoever calls them; the
    values stay the same.

    In bf16 the gradient of a dilated one reads memory that nobody wrote (fresh memory is zero, so it only shows once memory is
    used again), and a depthwise one with a stride or a kernel of 5 takes 2 to 14 times as long as in fp32; bf16 is a little
    faster only with a kernel of 3 and neither stride nor dilation. Hence all of them are computed in fp32. One with a stride
    and a dilation computes every position and keeps those that the stride visits: half the time in most sizes.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is functional.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def depthwise(device: torch.device) -> AbstractContextManager[object]:
    """`Depthwise` where it is needed: on a CPU."""
    return Depthwise() if device.type == "cpu" else nullcontext()


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            groups: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d`."""
    if groups == 1 or input.device.type != "cpu" or (groups < input.shape[1] and _largest(dilation) == 1):
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    step = (stride, stride) if isinstance(stride, int) else stride
    every = _largest(dilation) > 1 and _largest(stride) > 1
    with torch.autocast(input.device.type, enabled=False):
        out = functional.conv2d(input.to(weight.dtype), weight, bias, 1 if every else stride, padding, dilation, groups)
    return out[:, :, ::step[0], ::step[-1]] if every else out


def _largest(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else max(size)
