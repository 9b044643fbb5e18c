"""Choices inline in any ``nn.Module``. From the one module come its search space (`space_of`), the weight-sharing
supernet (the module itself, steered by `activate`) and every stand-alone sub-network (`extract`).

A choice is a module: `OneOf` and `DifferentiableOp` (operations), `Width` and `KernelSize` (shared by the elastic
layers that take them), `Depth` (number of blocks), `Wiring` (the operations of a `Graph`'s edges) and `Pairs` (the two edges
of every node of a `PairGraph`, and their operations). Two layers that hold the same choice object make the same choice.

All that a network of one's own is written with can be imported from here; `nasopt.nets.plan` says how choices are named.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import TypeAlias, TypeVar

from torch import nn

from nasopt.errors import InputError
from nasopt.nets.elastic import (
    BatchNorm2d,
    Conv2d,
    ElasticLayer,
    KernelSize,
    LayerNorm,
    Linear,
    Multiple,
    Upstream,
    Width,
)
from nasopt.nets.graphs import Graph, PairGraph, Pairs, Wiring
from nasopt.nets.options import MIXED, Choosing, Depth, DifferentiableOp, OneOf
from nasopt.nets.plan import PLAN, inside, plan_of
from nasopt.space import Arch, Space

__all__ = [
    "BatchNorm2d", "Conv2d", "Depth", "DifferentiableOp", "Graph", "KernelSize", "LayerNorm", "Linear", "OneOf", "PairGraph",
    "Pairs", "Upstream", "Width", "Wiring", "activate", "architecture_parameters", "extract", "largest", "relax", "smallest",
    "space_of",
]

M = TypeVar("M", bound=nn.Module)


def space_of(module: nn.Module) -> Space:
    """The search space of all choices in a module. Do not add choices afterwards: it is computed once.

    Raises:
        InputError: the module has no choices, or two would get one name.
    """
    return plan_of(module).space


def activate(module: nn.Module, arch: Arch) -> None:
    """Makes ``arch`` the network that ``module`` computes.

    Raises:
        InputError: ``arch`` is not an architecture of ``space_of(module)``.
    """
    plan = plan_of(module)
    values: list[int] = []
    met = 0
    for gene, steered in zip(plan.columns.genes, plan.steered, strict=True):
        if gene.parent >= 0 and values[gene.parent] not in gene.when:
            values.append(-1)
            continue
        value = arch.get(gene.path, -1)
        if not 0 <= value < len(gene.labels):
            got = f"is {value}" if gene.path in arch else "is missing"
            raise InputError(f"choice {gene.path!r} {got}: give an index 0..{len(gene.labels) - 1} of {gene.labels}.")
        values.append(value)
        met += 1
        for choice, slot in steered:
            choice.select(slot, value)
    if met != len(arch):
        extra = set(arch) - {g.path for g, v in zip(plan.columns.genes, values, strict=True) if v >= 0}
        raise InputError(f"choice {min(extra)!r} does not exist in this architecture: take it from space_of(module).")


def relax(module: nn.Module) -> None:
    """Makes every differentiable choice a mixture again."""
    for choice in plan_of(module).choices:
        if isinstance(choice, DifferentiableOp) or (isinstance(choice, Wiring) and choice.alpha is not None):
            choice.chosen[:] = [MIXED] * len(choice.chosen)


def architecture_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The alphas of all differentiable choices, in the order of the space."""
    return [c.alpha for c in plan_of(module).choices if isinstance(c, (DifferentiableOp, Wiring)) and c.alpha is not None]


# ----------------------------------------------------------------------------------------------------------- extraction
def extract(module: M, arch: Arch) -> M:
    """The stand-alone network of one architecture, with copies of the active weights and statistics; ``module`` is
    unchanged.

    `OneOf` becomes its option, `Depth` an `nn.Sequential`, a `Graph` or `PairGraph` its live edges, an elastic layer a PyTorch
    layer, and a `Width`, `KernelSize`, `Wiring` or `Pairs` kept as an attribute becomes None.

    Raises:
        InputError: ``arch`` is not an architecture of ``space_of(module)``.
    """
    choices = plan_of(module).choices
    before = [list(choice.chosen) for choice in choices]
    try:
        activate(module, arch)
        memo: dict[int, object] = {id(m.__dict__[PLAN]): None for m in module.modules() if PLAN in m.__dict__}
        net = _copied(module, memo)
    finally:
        for choice, chosen in zip(choices, before, strict=True):
            choice.chosen[:] = chosen
    for inner in net.modules():
        inner.__dict__.pop(PLAN, None)
    return net


def _copied(module: M, memo: dict[int, object]) -> M:
    """A deep copy with every choice resolved: its replacement is put where deepcopy looks for finished copies."""
    for inner in _outermost(module):
        if id(inner) not in memo:
            memo[id(inner)] = _resolved(inner, memo)
    return copy.deepcopy(module, memo)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, (Choosing, Graph, PairGraph, ElasticLayer, Multiple)):
        yield module
    else:
        for child in module.children():
            yield from _outermost(child)


def _resolved(module: nn.Module, memo: dict[int, object]) -> nn.Module | None:
    if isinstance(module, (OneOf, DifferentiableOp)):
        if module.chosen[0] == MIXED:
            raise InputError("a DifferentiableOp outside the architecture is still a mixture: it cannot be extracted.")
        return _copied(module.options[module.chosen[0]], memo)
    if isinstance(module, Depth):
        return nn.Sequential(*[_copied(b, memo) for b in islice(module.blocks, module.value)]).train(module.training)
    if isinstance(module, (Graph, PairGraph)):
        return module.plain(lambda inner: _copied(inner, memo))
    return module.plain() if isinstance(module, ElasticLayer) else None


# --------------------------------------------------------------------------------------------------------- the extremes
def largest(module: nn.Module) -> dict[str, int]:
    """The architecture with the widest, deepest options and the operations of most parameters (the sandwich rule)."""
    return _extreme(module, 1)


def smallest(module: nn.Module) -> dict[str, int]:
    """The architecture with the narrowest, shallowest options and the operations of fewest parameters. A cell with a
    removing operation keeps the one edge from its input to its output, as a skip if there is one."""
    return _extreme(module, -1)


Graphs: TypeAlias = dict[Choosing, "Graph | PairGraph"]


def _extreme(module: nn.Module, sign: int) -> dict[str, int]:
    plan = plan_of(module)
    graphs: Graphs = {m.wiring: m for m in module.modules() if isinstance(m, (Graph, PairGraph))}
    arch: dict[str, int] = {}
    values: list[int] = []
    for gene, steered in zip(plan.columns.genes, plan.steered, strict=True):
        here = gene.parent < 0 or values[gene.parent] in gene.when
        values.append(_extreme_option(*steered[0], graphs, sign) if here else -1)
        if here:
            arch[gene.path] = values[-1]
    return arch


def _extreme_option(choice: Choosing, slot: int, graphs: Graphs, sign: int) -> int:
    if isinstance(choice, (Width, KernelSize, Depth)):
        return len(choice.sizes) - 1 if sign > 0 else 0
    if isinstance(choice, Wiring):
        return _extreme_operation(choice, slot, graphs, sign)
    if isinstance(choice, Pairs):
        weights = [0] if slot % 3 == 0 else [_parameters(graphs[choice].operation(-1, o)) for o in range(1, len(choice.labels))]
    else:
        weights = [_parameters(option) for option in inside(choice)]
    return max(range(len(weights)), key=lambda i: sign * weights[i])


def _extreme_operation(wiring: Wiring, edge: int, graphs: Graphs, sign: int) -> int:
    cell = wiring.cell
    weights = {o: _parameters(graphs[wiring].operation(edge, o)) for o in range(len(cell.operations))}
    if sign < 0 and cell.none is not None:
        none = cell.operations.index(cell.none)
        if cell.edges[edge] != (0, cell.nodes - 1):
            return none
        weights = {o: w for o, w in weights.items() if o != none} or weights
        if cell.skip is not None:
            return cell.operations.index(cell.skip)
    return max(weights, key=lambda o: sign * weights[o])


def _parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
