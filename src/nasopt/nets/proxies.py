"""Zero-cost proxies: what an untrained network and one mini-batch tell about how well it would learn. Large is good for all.

Every proxy works on a copy: mode, weights, statistics, gradients and hooks of the network stay as they were. It takes the
network, a mini-batch of normalised inputs x (n, ...), its labels y (n,) and a seed; all randomness comes from the seed.

"Weights" are the parameters of at least two axes (kernels and matrices), as is usual; biases and normalisations do not count.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from nasopt import seed as seeds
from nasopt.cost import count
from nasopt.errors import unknown

Proxy: TypeAlias = Callable[[nn.Module, Tensor, Tensor, int], float]

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
STEP = 0.01
"""α of the Zen score."""


def synflow(net: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Σ θ ∂R/∂θ over the weights, where R is the sum of the outputs for an input of ones in a network with absolute weights
    (Tanaka et al., NeurIPS 2020, arXiv 2006.05467, eq. 2); in double precision, without normalisation layers, as by Abdelfattah
    et al. (ICLR 2021, arXiv 2101.08134). It looks at the shape of x alone."""
    weights, flow = _flow(net, x)
    return float(sum((w * g).sum() for w, g in zip(weights, flow, strict=True)))


def logsynflow(net: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Σ θ log(1 + ∂R/∂θ), synflow without its explosion in depth (Cavagnero et al., FreeREA, WACV 2023, arXiv 2207.05135)."""
    weights, flow = _flow(net, x)
    return float(sum((w * g.log1p()).sum() for w, g in zip(weights, flow, strict=True)))


def snip(net: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Σ |θ ∂L/∂θ| over the weights, L the cross-entropy of the batch (Lee et al., SNIP, ICLR 2019, arXiv 1810.02340, eq. 6; as a
    score of networks Abdelfattah et al., ICLR 2021)."""
    weights, slopes = _slopes(net, x, y)
    return float(sum((w * g).abs().sum() for w, g in zip(weights, slopes, strict=True)))


def grad_norm(net: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Σ ‖∂L/∂θ‖₂, one Euclidean norm for every weight tensor (Abdelfattah et al., ICLR 2021, arXiv 2101.08134, §3.1)."""
    return float(sum(g.norm() for g in _slopes(net, x, y)[1]))


def jacov(net: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """-Σ_i [log(λ_i + k) + 1/(λ_i + k)], k = 1e-5, over the eigenvalues of the correlation matrix of the images' input gradients
    (Mellor et al., Neural Architecture Search without Training, first version, arXiv 2006.04647v1). Best, -n, where all
    images pull in uncorrelated directions. NaN where an image has the same gradient everywhere."""
    inputs = x.detach().clone().requires_grad_(True)
    (slopes,) = _gradients(_twin(net)(inputs).sum(), [inputs])
    rows = slopes.flatten(1).double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    if not rows.isfinite().all():
        return math.nan
    values = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0) + 1e-5
    return -float((values.log() + 1 / values).sum())


def naswot(net: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """log |det K|, K_ij the number of rectified units that images i and j switch alike (Mellor et al., ICML 2021, arXiv
    2006.04647, eq. 2). Minus infinity where two images switch all units alike, or there are no rectifiers (modules ReLU, ReLU6,
    LeakyReLU)."""
    kernel = torch.zeros(len(x), len(x), dtype=torch.float64)

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        on = (args[0] > 0).flatten(1).float()
        kernel.add_(on @ on.T + (1 - on) @ (1 - on).T)

    twin = _twin(net)
    for module in twin.modules():
        if isinstance(module, RECTIFIERS):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        twin(x)
    return float(torch.linalg.slogdet(kernel).logabsdet)


def zen(net: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> float:
    """log E‖f(x) - f(x + αε)‖_F + Σ_k log √(mean_c σ²_kc): how much the features change under a small step, and the variances
    that batch normalisation took out (Lin et al., Zen-NAS, ICCV 2021, arXiv 2102.01063, algorithm 1, α = 0.01).

    Weights, x and ε are standard normal, normalisations as at the start; x gives the shape alone. Features are what the last
    adaptive average pooling sees, or the output where there is none. Shortcuts are kept (the paper removes them).
    """
    generator = torch.Generator().manual_seed(seeds.integer(seed, 0, "zen"))
    twin, scales, features = _twin(net), list[Tensor](), list[Tensor]()
    _standard_normal(twin, generator)

    def scale(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        others = [axis for axis in range(args[0].ndim) if axis != 1]
        scales.append(args[0].var(dim=others, correction=0).mean().sqrt().log())

    def feature(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        features.append(args[0])

    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(scale)
        elif isinstance(module, POOLS):
            module.register_forward_pre_hook(feature)

    def seen(inputs: Tensor) -> Tensor:
        features.clear()
        scales.clear()
        output: Tensor = twin(inputs)
        return features[-1] if features else output

    start, direction = (torch.randn(x.shape, generator=generator) for _ in range(2))
    with torch.no_grad():
        moved = seen(start + STEP * direction)
        change = (seen(start) - moved).flatten(1).norm(dim=1).mean()
    return float(change.log() + sum(scales))


PROXIES: Mapping[str, Proxy] = {
    "synflow": synflow,
    "logsynflow": logsynflow,
    "snip": snip,
    "grad_norm": grad_norm,
    "jacov": jacov,
    "naswot": naswot,
    "zen": zen,
    "params": lambda net, x, y, seed: float(count.params(net)),
    "flops": lambda net, x, y, seed: float(count.flops(net, x)),
}
"""All proxies by name; the last two are counts (`nasopt.cost.count`), baselines that few proxies beat."""


def measure(net: nn.Module, x: Tensor, y: Tensor, names: Sequence[str] = tuple(PROXIES), seed: int = 0) -> dict[str, float]:
    """The proxies of a network by name; not finite where one is not defined. Dropout draws from the seed too.

    Raises:
        InputError: an unknown name.
    """
    found = dict[str, float]()
    for name in names:
        if name not in PROXIES:
            raise unknown("zero-cost proxy", name, PROXIES)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seeds.integer(seed, 0, name))
            found[name] = PROXIES[name](net, x, y, seed)
    return found


# --------------------------------------------------------------------------------------------------------------- parts
def _twin(net: nn.Module) -> nn.Module:
    """A copy in training mode whose parameters all want gradients and have none."""
    twin = copy.deepcopy(net).train()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        parameter.grad = None
    return twin


def _weights(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.ndim >= 2 and p.is_floating_point()]


def _gradients(value: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Those of a scalar; zero where a weight has no part in it."""
    if not weights or not value.requires_grad:
        return [torch.zeros_like(w) for w in weights]
    found = torch.autograd.grad(value, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def _slopes(net: nn.Module, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The weights and the gradients of the cross-entropy, batch statistics in use."""
    twin = _twin(net)
    weights = _weights(twin)
    return [w.detach() for w in weights], _gradients(functional.cross_entropy(twin(x), y), weights)


def _flow(net: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The absolute weights and the gradients of the sum of the outputs for an input of ones, without normalisations."""
    twin = _twin(net).eval().double()
    for parent in twin.modules():
        for name, child in parent.named_children():
            if isinstance(child, NORMS):
                setattr(parent, name, nn.Identity())
    for parameter in twin.parameters():
        parameter.data.abs_()
    weights = _weights(twin)
    ones = torch.ones((1, *x.shape[1:]), dtype=torch.float64)
    return [w.detach() for w in weights], _gradients(twin(ones).sum(), weights)


def _standard_normal(net: nn.Module, generator: torch.Generator) -> None:
    """Standard normal weights, no biases, normalisations that only normalise."""
    with torch.no_grad():
        for module in net.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim >= 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
                else:
                    parameter.fill_(1.0 if isinstance(module, NORMS) and name == "weight" else 0.0)
