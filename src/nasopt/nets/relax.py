"""From architecture parameters to the weights of a mixture: relaxations, regularisers, and schedules of their coefficients.

Notation: alpha (..., options), one row an edge or a choice; τ the temperature, above 0.

| relaxation | weights of a row | random | used by |
|---|---|---|---|
| `softmax` | sum to 1 | no | DARTS |
| `sparsemax` | sum to 1, some are 0 | no | |
| `sigmoid` | each in (0, 1), independent | no | FairDARTS |
| `gumbel` | sum to 1 | yes | SNAS |
| `gumbel_hard` | one 1, the others 0 | yes | GDAS |
| `dirichlet` | sum to 1 | yes | DrNAS |
| `pair` | sum to 1, all but two are 0 | yes | ProxylessNAS's gradient |

What is random is drawn from the generator, which must be on alpha's device, and is the same for the same state of it; what is not
leaves the generator alone. A low temperature drives every relaxation but `sigmoid` towards one-hot weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Generator, Tensor
from torch.distributions import Dirichlet, kl_divergence

from nasopt.errors import InputError

Relaxation: TypeAlias = Callable[[Tensor, float, Generator], Tensor]
"""(alpha, temperature, generator) -> non-negative weights of alpha's shape. InputError: a temperature that is not above 0."""
Regulariser: TypeAlias = Callable[[Tensor], Tensor]
"""alpha -> scalar, a mean over the rows: to be added to a loss with a coefficient."""
Schedule: TypeAlias = Callable[[float], float]
"""Progress t in [0, 1] -> coefficient."""


# ---------------------------------------------------------------------------------------------------------- relaxations
def softmax(alpha: Tensor, temperature: float, generator: Generator) -> Tensor:
    """softmax(alpha / τ) (Liu et al., DARTS, ICLR 2019, eq. 2, with τ = 1)."""
    return (alpha / _positive(temperature)).softmax(-1)


def sparsemax(alpha: Tensor, temperature: float, generator: Generator) -> Tensor:
    """The point of the simplex nearest to alpha / τ (Martins & Astudillo, ICML 2016, algorithm 1)."""
    z = alpha / _positive(temperature)
    ordered = z.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    k = torch.arange(1, z.shape[-1] + 1, device=z.device)
    support = (k * ordered > excess).sum(-1, keepdim=True)
    threshold = excess.gather(-1, support - 1) / support
    return (z - threshold).clamp(min=0)


def sigmoid(alpha: Tensor, temperature: float, generator: Generator) -> Tensor:
    """σ(alpha / τ), every option for itself (Chu et al., FairDARTS, ECCV 2020, with τ = 1)."""
    return (alpha / _positive(temperature)).sigmoid()


def gumbel(alpha: Tensor, temperature: float, generator: Generator) -> Tensor:
    """softmax((alpha + G) / τ) with standard Gumbel G (Jang et al.; Maddison et al., both ICLR 2017). At every τ the largest
    weight is option i with probability softmax(alpha)_i."""
    noise = -torch.empty_like(alpha).exponential_(generator=generator).log()
    return ((alpha + noise) / _positive(temperature)).softmax(-1)


def gumbel_hard(alpha: Tensor, temperature: float, generator: Generator) -> Tensor:
    """The one-hot argmax of `gumbel`, with the gradient of `gumbel` (straight-through; Dong & Yang, GDAS, CVPR 2019)."""
    soft = gumbel(alpha, temperature, generator)
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())  # adds exactly 0


def pair(alpha: Tensor, temperature: float, generator: Generator) -> Tensor:
    """softmax(alpha / τ) of two options, drawn without replacement with its probabilities (the largest of `gumbel`; Cai et al.,
    ProxylessNAS, ICLR 2019, §3.2): it compares options at the price of two."""
    scores = alpha / _positive(temperature)
    noise = -torch.empty_like(alpha).exponential_(generator=generator).log()
    drawn = (scores.detach() + noise).topk(min(2, alpha.shape[-1]), dim=-1).indices
    return torch.zeros_like(alpha).scatter(-1, drawn, scores.gather(-1, drawn).softmax(-1))


def dirichlet(alpha: Tensor, temperature: float, generator: Generator) -> Tensor:
    """A draw of Dir(τ (elu(alpha) + 1)) with a pathwise gradient (Chen et al., DrNAS, ICLR 2021, with τ = 1).

    Normalised gamma variables, of which torch knows the pathwise derivative (to about 5e-4 of its size); the sampler of
    `torch.distributions` takes no generator. In double precision inside: small concentrations draw below the least single. It
    can be differentiated once, as that one.
    """
    draws = torch._standard_gamma(_positive(temperature) * concentration(alpha).double(), generator=generator)
    return (draws / draws.sum(-1, keepdim=True)).to(alpha.dtype)


def concentration(alpha: Tensor) -> Tensor:
    """elu(alpha) + 1 without its cancellation: e^alpha up to 0, alpha + 1 above. `dirichlet` has its mean in proportion."""
    return torch.where(alpha > 0, alpha + 1, alpha.clamp(max=0).exp())


RELAXATIONS: Mapping[str, Relaxation] = MappingProxyType({f.__name__: f for f in (
    softmax, sparsemax, sigmoid, gumbel, gumbel_hard, pair, dirichlet)})


def _positive(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise InputError(f"the temperature of a relaxation is {temperature}: give a number above 0, such as 1.")
    return temperature


# --------------------------------------------------------------------------------------------------------- regularisers
def beta_decay(alpha: Tensor) -> Tensor:
    """Mean of logsumexp(alpha) (Ye et al., β-DARTS, CVPR 2022, arXiv 2203.01665): a row's gradient is softmax(alpha), so that
    what leads decays most. Their coefficient grows from 0 to 50, `linear`."""
    return alpha.logsumexp(-1).mean()


def fairness(alpha: Tensor) -> Tensor:
    """-(1/N) Σ (σ(alpha) - 1/2)² over all N entries, in [-1/4, 0]: drives a `sigmoid` to 0 or 1 (FairDARTS, L_0-1)."""
    return -((alpha.sigmoid() - 0.5) ** 2).mean()


def entropy(alpha: Tensor) -> Tensor:
    """Mean entropy of softmax(alpha), in nats, from 0 to ln(options): drives a row to one option."""
    return -(alpha.softmax(-1) * alpha.log_softmax(-1)).sum(-1).mean()


def anchor(alpha: Tensor) -> Tensor:
    """Mean of KL(Dir(elu(alpha) + 1) ‖ Dir(1, …, 1)), in nats (Chen et al., DrNAS, whose program sums over the rows)."""
    c = concentration(alpha)
    return kl_divergence(Dirichlet(c), Dirichlet(torch.ones_like(c))).mean()


# ------------------------------------------------------------------------------------------------------------ schedules
def constant(value: float) -> Schedule:
    """``value`` at all times."""
    return lambda t: value


def linear(start: float, end: float) -> Schedule:
    """From ``start`` at t = 0 to ``end`` at t = 1 in equal steps; GDAS's temperature is linear(10, 0.1)."""
    return lambda t: start + (end - start) * t


def sawtooth(*starts: float) -> Schedule:
    """As many stages of one length as there are starts; in each of them from its start to 0 in equal steps, 0 at t = 1."""
    def value(t: float) -> float:
        stage = min(int(t * len(starts)), len(starts) - 1)
        return starts[stage] * (1 - (t * len(starts) - stage))

    return value


def exponential(start: float, end: float) -> Schedule:
    """The same in equal ratios.

    Raises:
        InputError: an end that is not above 0.
    """
    if not (start > 0 and end > 0):
        raise InputError(f"an exponential schedule from {start} to {end} has no ratio: give two numbers above 0.")
    return lambda t: float(start ** (1 - t) * end**t)
