"""What all cost models share: a copy of the network fit to be measured, a batch of the wanted size, its graph."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from nasopt.errors import ExportError, InputError


def frozen(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights need no gradient. What a forward pass caches stays in the copy.

    A network that is so already is handed back as it is.
    """
    if not any(m.training for m in net.modules()) and not any(p.requires_grad for p in net.parameters()):
        return net
    twin = copy.deepcopy(net)
    for module in twin.modules():
        module.training = False  # not .eval(): exported modules refuse it
    for parameter in twin.parameters():
        parameter.requires_grad = False
        parameter.grad = None
    return twin


def batch_of(example: Tensor, size: int) -> Tensor:
    """``size`` rows of the example (batch first), repeated from the start where it has fewer, in storage of their own.

    Raises:
        InputError: the example has no row, or the size is below 1.
    """
    if example.ndim == 0 or len(example) == 0:
        raise InputError("the example input has no row: give a tensor whose first dimension is the batch.")
    if size < 1:
        raise InputError(f"batch must be at least 1, got {size}.")
    return example.detach()[torch.arange(size, device=example.device) % len(example)].clone()


@contextmanager
def plain() -> Iterator[None]:
    """Forward passes inside run operation by operation: no fused attention kernel, no autocast, no gradient."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def apart(net: nn.Module) -> nn.Module:
    """A `frozen` copy of the network; what is done to it, is not done to the network."""
    twin = frozen(net)
    return copy.deepcopy(net) if twin is net else twin


def capture(net: nn.Module, example: Tensor) -> ExportedProgram:
    """The network as one graph for a batch of any size: evaluation mode, weights in 32 bits, contiguous.

    Raises:
        ExportError: it cannot be exported so, for example because its Python code depends on the values of a tensor.
    """
    twin = apart(net).float()
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.data = tensor.data.contiguous()
    rows = batch_of(example, 2)  # a batch of 1 would be taken for a constant
    try:
        with quiet(), plain():
            return torch.export.export(twin, (rows,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    except Exception as error:  # whatever the network's own code raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"the network cannot be exported for a batch of any size: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor log lines nor prints come out of what runs inside; exceptions do."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
