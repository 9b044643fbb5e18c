"""Counts that depend on the network and the shape of its input alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nasopt.cost.forward import batch_of, frozen, plain
from nasopt.trial import Metrics

aten = torch.ops.aten


def params(net: nn.Module) -> int:
    """The number of parameters, frozen ones included, shared ones once."""
    return sum(p.numel() for p in net.parameters())


def size_mb(net: nn.Module) -> float:
    """Parameters and buffers in MB (1e6 bytes), floating-point ones stored in 32 bits."""
    tensors = [*net.parameters(), *net.buffers()]
    return sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors) / 1e6


def flops(net: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products plus bias additions, for one row of the example.

    Counted as NAS-Bench-201 does (Dong & Yang, ICLR 2020): a convolution costs positions · kernel · channels in ·
    channels out / groups, plus one addition per output value where it has a bias; a linear layer in · out, plus out.
    Pooling, normalisation and activations cost nothing. Every call counts, also calls of `torch.nn.functional`;
    products of two activations (attention) and recurrent layers count too.
    """
    return sum(flops_by_size(net, example).values())


def flops_by_size(net: nn.Module, example: Tensor) -> dict[int, int]:
    """`flops` of the operations whose results are maps (N, C, H, W) of H · W positions, for every H · W; under 1 those of all
    others."""
    counter = _Counter()
    with plain(), torch.inference_mode(), counter:  # inference mode hands over linear layers whole, with their bias
        frozen(net)(batch_of(example, 1))
    return dict(counter.totals)


class _Counter(TorchDispatchMode):
    """Sums the cost of every operation that runs under it, by the positions of its result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.totals: Counter[int] = Counter()

    def __torch_dispatch__(self, func: OpOverload[Any, Any], types: Any, args: Sequence[Any] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in _WHOLE and packet not in flop_registry:
            with self:
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        cost = _cost(packet, args, kwargs, out)
        self.totals[math.prod(out.shape[2:]) if isinstance(out, Tensor) and out.ndim == 4 else 1] += cost
        return out


_BIAS = {aten.convolution: 2, aten._convolution: 2, aten.addmm: 0}
"""Where these operations take their bias."""

_WHOLE = {aten.linear, aten.scaled_dot_product_attention, aten.mkldnn_rnn_layer}
"""Counted here as they are called, before they fall into parts that differ from machine to machine."""


def _cost(packet: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Multiply-accumulates and bias additions of one call."""
    if packet is aten.mkldnn_rnn_layer:  # one layer over a sequence: each weight and each bias once a step
        return int(args[0].shape[0] * args[0].shape[1] * sum(w.numel() for w in args[1:5]))
    if packet is aten.scaled_dot_product_attention:  # queries · keys, then weights · values
        query, key = args[:2]
        return int((query.numel() + out.numel()) * key.shape[-2])
    if packet is aten.linear:
        return int(out.numel() * (args[1].shape[-1] + (len(args) > 2 and args[2] is not None)))
    at = _BIAS.get(packet)
    bias = None if at is None else args[at]
    products = flop_registry[packet](*args, **kwargs, out_val=out) // 2  # torch counts 2 per multiply-accumulate
    return int(products) + (0 if bias is None else out.numel())


@dataclass(frozen=True)
class Count:
    """The cost model of the counts: ``params``, ``flops`` (one row) and ``size_mb``."""

    def __call__(self, net: nn.Module, example: Tensor, /) -> Metrics:
        return {"params": float(params(net)), "flops": float(flops(net, example)), "size_mb": size_mb(net)}
