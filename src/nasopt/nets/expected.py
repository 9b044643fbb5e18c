"""Costs of a mixture that gradients can follow: an expectation where a cost adds up, a smooth maximum where it peaks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nasopt.cost.lookup import Lookup
from nasopt.errors import InputError
from nasopt.nets import relaxed
from nasopt.nets.graphs import Pairs
from nasopt.nets.plan import plan_of


def expected(weights: Tensor, table: Tensor) -> Tensor:
    """Σ_e Σ_o p_eo · c_eo, scalar: the mean cost of the architectures whose options are drawn independently with probabilities p.

    Exact for a cost that is the sum of its parts, and for no other (Cai et al., ProxylessNAS, ICLR 2019).

    Args:
        weights: p, (..., options).
        table: the cost of every option in its place, of the same shape.

    Raises:
        InputError: the shapes differ.
    """
    if weights.shape != table.shape:
        raise InputError(f"weights have the shape {tuple(weights.shape)}, costs {tuple(table.shape)}: give every option a cost.")
    return (weights * table).sum()


def smooth_peak(values: Tensor, temperature: float) -> Tensor:
    """τ · ln Σ_t exp(m_t / τ), scalar: at least the maximum of the T values and at most τ ln T above it, such as the peak of
    memory over the times t.

    Args:
        values: m, (T,).
        temperature: τ, above 0, in the unit of the values.

    Raises:
        InputError: a temperature that is not above 0.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"the temperature of a smooth peak is {temperature}: give a number above 0, in the unit of the values.")
    return temperature * (values / temperature).logsumexp(0)


def check(net: nn.Module) -> None:
    """Refuses networks whose costs are no sums over choices.

    Raises:
        InputError: a cell of `nasopt.nets.choices.Pairs`, whose edges are not chosen independently.
    """
    if any(isinstance(choice, Pairs) for choice in plan_of(net).choices):
        raise InputError("a cost is no sum over the edges of a cell of node pairs, of which two a node are kept: search such "
                         "cells without costs, or with a strategy that measures every network.")


class Cost:
    """What a mixture costs, on a scale from 0 for the least to 1 for the most of its space: a function of the weights of every
    group of `nasopt.nets.relaxed.groups`, scalar.

    Of one table it is the mean cost of the architectures whose options are drawn independently with the weights as
    probabilities (`expected`; a choice below another counts with the probability that it is made). Of several, the costs of one
    thing at several times such as memory, it is the `smooth_peak` of their means, which of one architecture is its peak.

    Args:
        net: the module whose choices are weighed.
        tables: over the module's space.
        device: what the search is for, such as `nasopt.cost.lookup.here()`.
        temperature: of the smooth peak, as a share of the scale.

    Attributes:
        name: the tables', joined by "+".
        low, high: the ends of the scale, in the tables' unit; of several tables the largest of their ends.

    Raises:
        InputError: no table, one for another space or device, one that is the same for every architecture, or a network that
            `check` refuses.
    """

    def __init__(self, net: nn.Module, tables: Sequence[Lookup], device: str, temperature: float = 0.01) -> None:
        plan = plan_of(net)
        self.name = "+".join(dict.fromkeys(t.name for t in tables))
        if not tables or any(t.on(device).space != plan.space for t in tables):
            raise InputError("a cost needs a table of the network's own space: make it with additive(space_of(net), ...).")
        check(net)
        self.low, self.high = (float(max(ends)) for ends in zip(*(t.span() for t in tables), strict=True))
        if not self.high > self.low:
            raise InputError(f"{self.name} is {self.low:g} for every architecture: leave it out.")
        self.genes = plan.columns.genes
        at = {choice: k for k, group in enumerate(relaxed.groups(net)) for choice in group.choices}
        self.places = [(at.get(steered[0][0]), steered[0][1]) for steered in plan.steered]
        self.bases = [t.base for t in tables]
        self.parts = [torch.tensor([t.parts[g.path] for t in tables], dtype=torch.float64) for g in self.genes]
        self.temperature = temperature * (self.high - self.low)

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        """The cost of weights (rows, options) of every group; every row sums to 1."""
        means, likely = [weights[0].new_tensor(base) for base in self.bases], list[Tensor]()
        for gene, (group, row), parts in zip(self.genes, self.places, self.parts, strict=True):
            chance = weights[0].new_ones(()) if gene.parent < 0 else likely[gene.parent][list(gene.when)].sum()
            p = weights[0].new_ones(1) if group is None else weights[group][row]
            likely.append(chance * p)
            for k, part in enumerate(parts.to(p)):
                means[k] = means[k] + expected(likely[-1], part)
        peak: Tensor = means[0] if len(means) == 1 else smooth_peak(torch.stack(means), self.temperature)
        return (peak - self.low) / (self.high - self.low)
