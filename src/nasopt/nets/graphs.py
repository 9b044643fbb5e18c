"""Cells whose edges are chosen: the choices (`Wiring`, `Pairs`), the modules that compute them (`Graph`, `PairGraph`), and these
without choices (`PlainGraph`, `PlainPairGraph`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasopt.errors import InputError
from nasopt.nets.options import MIXED, Choosing, Mix, harmless, mixture, unchanged
from nasopt.space import Cell, Choice, Product, Rule, Space, on_paths

# --------------------------------------------------------------------------------------------------------------- graphs
Terms: TypeAlias = tuple[tuple[int, tuple[tuple[int, int, int], ...]], ...]
"""(target, ((source, edge, operation), ...)) for every node that is computed, in order."""


class Wiring(Choosing):
    """The choice of one operation per edge of a `Graph`. Graphs that hold the same wiring have the same edges.

    Args:
        nodes, operations, none, skip, rule: as in `nasopt.space.Cell`.
        differentiable: the edges have architecture parameters and are mixtures until they are activated.

    Attributes:
        alpha: None, or shape (edges, operations), zero at first.
    """

    def __init__(
        self,
        nodes: int,
        operations: Sequence[str],
        *,
        none: str | None = None,
        skip: str | None = None,
        rule: Rule = "algebra",
        differentiable: bool = False,
    ) -> None:
        self.cell = Cell("cell", nodes, operations, none=none, skip=skip, rule=rule)
        edges = len(self.cell.edges)
        super().__init__([MIXED if differentiable else 0] * edges)
        self.alpha = nn.Parameter(torch.zeros(edges, len(self.cell.operations))) if differentiable else None

    @property
    def edges(self) -> Sequence[tuple[int, int]]:
        """The edges (i, j), in the order of the slots."""
        return self.cell.edges

    def space(self, name: str) -> Cell:
        """The space of the slots."""
        cell = self.cell
        return Cell(name, cell.nodes, cell.operations, none=cell.none, skip=cell.skip, rule=cell.rule)

    def terms(self) -> Terms:
        """What has to be computed for the last node."""
        return live_terms(self.cell, tuple(self.chosen))


@lru_cache(maxsize=20_000)
def live_terms(cell: Cell, chosen: tuple[int, ...]) -> Terms:
    """The edges that carry something from the input to the output; under the rule ``nasbench201`` all edges."""
    edges = [(i, j, k, o) for k, ((i, j), o) in enumerate(zip(cell.edges, chosen, strict=True))]
    if cell.rule == "algebra":
        edges = [e for e in edges if e[3] == MIXED or cell.operations[e[3]] != cell.none]
        kept = set(on_paths([e[:2] for e in edges], cell.nodes - 1))
        edges = [e for e in edges if e[:2] in kept]
    targets = sorted({e[1] for e in edges})
    return tuple((j, tuple((i, k, o) for i, target, k, o in edges if target == j)) for j in targets)


class Graph(nn.Module):
    """A cell: node 0 is the input and node j the sum over i < j of op_ij(activation(node i)); the skip operation passes
    node i on without the activation, so that a node is exactly the sum of its terms. The last node is the output.

    Under the rule ``algebra`` nothing is computed for a removed edge, nor for an operation on nothing or one that does
    not reach the output; an output of nothing is zero. Under ``nasbench201`` every edge is computed, zeros too, as
    published. All operations must keep the shape.

    Args:
        wiring: the choice of the edges' operations; one object may serve several graphs.
        operations: label -> factory, called once for each edge (not for ``none`` and ``skip`` under ``algebra``).
        activation: what a node's value passes before an operation (once per node); None: nothing.
        partial: only one in so many channels passes the operations, which are made for so few; the others pass by, and channels
            change places after each edge (PC-DARTS, Xu et al., ICLR 2020, §3.1). For searching: such a network is not extracted.

    Raises:
        InputError: the operations are not those of the wiring; in ``forward``, channels that ``partial`` does not divide.
    """

    def __init__(
        self, wiring: Wiring, operations: Mapping[str, Callable[[], nn.Module]], activation: nn.Module | None = None,
        partial: int = 1
    ) -> None:
        super().__init__()
        cell = wiring.cell
        if set(operations) != set(cell.operations):
            raise InputError(
                f"Graph: the operations {sorted(operations)} are not the wiring's {sorted(cell.operations)}."
            )
        self.wiring = wiring
        self.activation = activation
        self.partial = partial
        self.free = {cell.none, cell.skip} if cell.rule == "algebra" else set()
        self.built = tuple(label for label in cell.operations if label not in self.free)
        self.edges = nn.ModuleList(nn.ModuleList(operations[label]() for label in self.built) for _ in cell.edges)

    def operation(self, edge: int, option: int) -> nn.Module | None:
        """The module of an operation on an edge; None: there is nothing to compute."""
        label = self.wiring.cell.operations[option]
        if label in self.free:
            return None
        ops = self.edges[edge]
        assert isinstance(ops, nn.ModuleList)
        return ops[self.built.index(label)]

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""

        return run_graph(x, self.wiring.terms(), self.wiring.cell.nodes - 1, self._edge, guarded(self.activation))

    def _edge(self, edge: int, option: int, node: Node) -> Tensor | None:
        """What an edge adds to its target; None: nothing."""
        part = node.first(self.partial)
        total = self._mixture(edge, part) if option == MIXED else self._term(edge, option, part)
        if self.partial > 1:
            total = passed_by(total, node.raw, self.partial)
        return edge_weighted(total, edge, self.wiring.mix)

    def _term(self, edge: int, option: int, node: Node) -> Tensor:
        operation = self.operation(edge, option)
        return node.raw if operation is None else unchanged(operation, node.active())

    def _mixture(self, edge: int, node: Node) -> Tensor | None:
        cell, mix = self.wiring.cell, self.wiring.mix
        if mix is None:
            assert self.wiring.alpha is not None
            mix = Mix(torch.softmax(self.wiring.alpha, 1), (tuple(range(len(cell.operations))),) * len(cell.edges))
        found = edge_mixture(mix, edge, cell.operations, cell.none, cell.skip, lambda o: self._term(edge, o, node),
                             lambda: node.raw)
        return torch.zeros_like(node.raw) if found is None and cell.rule != "algebra" else found

    def plain(self, copied: Callable[[nn.Module], nn.Module]) -> PlainGraph:
        """The active edges only.

        Raises:
            InputError: only a part of the channels passes the operations.
        """
        refuse_partial(self.partial)
        terms = self.wiring.terms()
        modules = {k: self.operation(k, o) for _, sources in terms for _, k, o in sources}
        kept = {str(k): harmless(copied(m)) for k, m in modules.items() if m is not None}
        activation = None if self.activation is None else harmless(copied(self.activation))
        return PlainGraph(terms, self.wiring.cell.nodes - 1, kept, activation).train(self.training)


class PlainGraph(nn.Module):
    """A `Graph` without choices: the live edges of one architecture (by number; a term without an edge is a skip)."""

    def __init__(self, terms: Terms, last: int, edges: Mapping[str, nn.Module], activation: nn.Module | None) -> None:
        super().__init__()
        self.terms = terms
        self.last = last
        self.edges = nn.ModuleDict(edges)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""

        def edge(k: int, option: int, node: Node) -> Tensor:
            return self.edges[str(k)](node.active()) if str(k) in self.edges else node.raw

        return run_graph(x, self.terms, self.last, edge, self.activation)


Activation: TypeAlias = Callable[[Tensor], Tensor]
"""What a node's value passes; its input is as it was afterwards."""


def guarded(activation: nn.Module | None) -> Activation | None:
    """A module as an `Activation`."""
    return None if activation is None else partial(unchanged, activation)


class Node:
    """A node's value, and the same after the activation (computed once, when first asked for)."""

    def __init__(self, raw: Tensor, activation: Activation | None) -> None:
        self.raw = raw
        self.activation = activation
        self.activated: Tensor | None = None

    def active(self) -> Tensor:
        """The activated value."""
        if self.activated is None:
            self.activated = self.raw if self.activation is None else self.activation(self.raw)
        return self.activated

    def first(self, parts: int) -> Node:
        """The first of so many parts of the channels.

        Raises:
            InputError: they are not so many equal parts.
        """
        if parts == 1:
            return self
        if self.raw.shape[1] % parts:
            raise InputError(f"1 in {parts} channels shall pass the operations, which does not divide the "
                             f"{self.raw.shape[1]} channels of a graph's input: give it a multiple.")
        width = self.raw.shape[1] // parts
        node = Node(self.raw[:, :width], self.activation)
        node.activated = self.active()[:, :width]
        return node


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels (n, groups · c, h, w) in the order 0, c, 2c, ..., 1, c + 1, ... (Zhang et al., ShuffleNet, CVPR 2018, §3.1)."""
    n, channels, h, w = x.shape
    return x.view(n, groups, channels // groups, h, w).transpose(1, 2).reshape(n, channels, h, w)


def run_graph(
    x: Tensor, terms: Terms, last: int, edge: Callable[[int, int, Node], Tensor | None], activation: Activation | None
) -> Tensor:
    """The value of node ``last``: node j = sum of ``edge(edge, operation, node i)``; zeros if nothing reaches it."""
    nodes = {0: Node(x, activation)}
    for j, sources in terms:
        total: Tensor | None = None
        for i, k, option in sources:
            term = edge(k, option, nodes[i]) if i in nodes else None
            total = term if total is None else total if term is None else total + term
        if total is not None:
            nodes[j] = Node(total, activation)
    return nodes[last].raw if last in nodes else torch.zeros_like(x)


def edge_mixture(mix: Mix, edge: int, labels: Sequence[str], none: str | None, skip: str | None, term: Callable[[int], Tensor],
                 bypass: Callable[[], Tensor]) -> Tensor | None:
    """sum_o weights[edge, o] · term(o) over the live options but ``none``, of which ``skip`` passes the mix's dropout, and the
    mix's share of ``bypass()``; None: nothing."""
    def output(option: int) -> Tensor:
        return mix.dropout(term(option)) if mix.dropout is not None and labels[option] == skip else term(option)

    live = [option for option in mix.live[edge] if labels[option] != none]
    total = None if not live else mixture([mix.weights[edge, option] for option in live], [output(option) for option in live],
                                          [labels[option] for option in live])
    if mix.bypass:
        total = mix.bypass * bypass() if total is None else total + mix.bypass * bypass()
    return total


def edge_weighted(total: Tensor | None, edge: int, mix: Mix | None) -> Tensor | None:
    """An edge's output, the channels that passed by included, times the edge's own weight, if there is one."""
    return total if total is None or mix is None or mix.edges is None else mix.edges[edge] * total


def passed_by(out: Tensor | None, x: Tensor, parts: int, stride: int = 1) -> Tensor:
    """The first of ``parts`` of x's channels after their operations (None: zeros) and the others as they are, at a stride after
    max pooling, in changed places (PC-DARTS, Xu et al., ICLR 2020)."""
    width = x.shape[1] // parts
    rest = x[:, width:] if stride == 1 else F.max_pool2d(x[:, width:], stride, ceil_mode=True)
    return shuffled(torch.cat([torch.zeros_like(rest[:, :width]) if out is None else out, rest], 1), parts)


def refuse_partial(parts: int) -> None:
    """Raises an InputError if only a part of the channels passes a network's operations."""
    if parts > 1:
        raise InputError(f"only 1 in {parts} channels passes this network's operations, so that it can be searched but not "
                         "extracted: extract from the network with partial=1.")


# ---------------------------------------------------------------------------------------------------------------- pairs
class Pairs(Choosing):
    """The choice of two sources for every inner node of a `PairGraph`, and of one operation for each of the two (Zoph et al.,
    NASNet, CVPR 2018, §3; Liu et al., DARTS, ICLR 2019, §2.1). Cells that hold the same object make the same choices.

    Nodes 0 to inputs - 1 are the cell's inputs. In the space, inner node j has three choices: ``j-inputs``, two distinct earlier
    nodes, and ``j-first`` and ``j-second``, the operations on the lower and on the higher of them. Relaxed, it has a row for
    every edge i -> j, by target, then by source, with the options `labels`.

    Args:
        inputs: number of input nodes, at least 2.
        nodes: number of inner nodes.
        operations: labels of the operations.
        none: label of the relaxed option that is nothing; it is never chosen.
        skip: which of the operations passes its source on.

    Attributes:
        edges: (i, j) of every row.
        labels: ``none`` and the operations.

    Raises:
        InputError: fewer than 2 inputs or 1 inner node, or a ``skip`` that is no operation.
    """

    def __init__(self, inputs: int, nodes: int, operations: Sequence[str], *, none: str, skip: str) -> None:
        if inputs < 2 or nodes < 1 or skip not in operations:
            raise InputError(f"Pairs: got {inputs} inputs, {nodes} inner nodes and the skip {skip!r}: give at least 2 inputs, 1 "
                             f"inner node, and one of {list(operations)} as the skip.")
        super().__init__([0] * (3 * nodes))
        self.inputs = inputs
        self.inner = range(inputs, inputs + nodes)
        self.edges = tuple((i, j) for j in self.inner for i in range(j))
        self.operations = tuple(operations)
        self.none, self.skip = none, skip
        self.labels = (none, *operations)
        self.rows = {edge: row for row, edge in enumerate(self.edges)}

    def space(self, name: str) -> Product:
        """The space of the slots."""
        parts = list[Space]()
        for j in self.inner:
            parts += [Choice(f"{j}-inputs", [f"{a},{b}" for a, b in pairs_below(j)]), Choice(f"{j}-first", self.operations),
                      Choice(f"{j}-second", self.operations)]
        return Product(name, parts)

    def terms(self) -> Terms:
        """What has to be computed: the chosen edges; while they are mixtures, all edges."""
        if self.chosen[0] == MIXED:
            return tuple((j, tuple((i, self.rows[i, j], MIXED) for i in range(j))) for j in self.inner)
        return self.terms_of(self.chosen)

    def terms_of(self, chosen: Sequence[int]) -> Terms:
        """What has to be computed for the options of all slots: the chosen edges, with the index in `labels`."""
        found = []
        for k, j in enumerate(self.inner):
            pair, *ops = chosen[3 * k:3 * k + 3]
            found.append((j, tuple((i, self.rows[i, j], op + 1) for i, op in zip(pairs_below(j)[pair], ops, strict=True))))
        return tuple(found)

    def nearest(self, weights: Tensor) -> list[int]:
        """The options of all slots for weights (edges, labels): every edge takes its strongest operation, and every node the two
        edges on which that is strongest (Liu et al., DARTS, ICLR 2019, §2.4); the earlier of equal ones."""
        strength = weights.detach().cpu().numpy()[:, 1:]
        best, found = strength.argmax(1), list[int]()
        for j in self.inner:
            rows = [self.rows[i, j] for i in range(j)]
            a, b = sorted((-strength[rows].max(1)).argsort(kind="stable")[:2].tolist())
            found += [pairs_below(j).index((a, b)), int(best[rows[a]]), int(best[rows[b]])]
        return found


@lru_cache(maxsize=64)
def pairs_below(node: int) -> tuple[tuple[int, int], ...]:
    """All (a, b) with a < b < node, by b, then by a."""
    return tuple((a, b) for b in range(node) for a in range(b))


class PairGraph(nn.Module):
    """A cell with several inputs: inner node j is the sum of its two operations on earlier nodes, and the output all inner nodes
    side by side. A relaxed edge is the mixture of all operations.

    Args:
        wiring: the choice; one object may serve several cells.
        operations: label -> factory of a module at a stride, called once for each edge. Modules keep the number of channels.
        activation: what a node's value passes before an operation (once per node).
        raw: labels of the operations that take a node's value without the activation.
        stride: of the edges that leave an input.
        partial: as in `Graph`; of an edge with a stride the other channels are pooled.

    Raises:
        InputError: the operations are not those of the wiring.
    """

    def __init__(self, wiring: Pairs, operations: Mapping[str, Callable[[int], nn.Module]], activation: nn.Module,
                 raw: Sequence[str] = (), stride: int = 1, partial: int = 1) -> None:
        super().__init__()
        if set(operations) != set(wiring.operations):
            raise InputError(f"PairGraph: the operations {sorted(operations)} are not the wiring's {sorted(wiring.operations)}.")
        self.wiring = wiring
        self.activation = activation
        self.raw = frozenset(raw)
        self.strides = tuple(stride if i < wiring.inputs else 1 for i, _ in wiring.edges)
        self.partial = partial
        self.built = wiring.operations
        self.edges = nn.ModuleList(nn.ModuleList(operations[label](step) for label in self.built) for step in self.strides)

    def operation(self, edge: int, option: int) -> nn.Module:
        """The module of one of the wiring's labels, from 1 on, on an edge."""
        ops = self.edges[edge]
        assert isinstance(ops, nn.ModuleList)
        return ops[self.built.index(self.wiring.labels[option])]

    def forward(self, *inputs: Tensor) -> Tensor:
        """(n, channels, h, w) each -> (n, nodes · channels, h', w')."""
        return run_pairs(inputs, self.wiring.terms(), self._edge, guarded(self.activation), self.strides[0])

    def _edge(self, edge: int, option: int, node: Node) -> Tensor | None:
        """What an edge adds to its target; None: nothing."""
        part, mix = node.first(self.partial), self.wiring.mix
        if option != MIXED:
            total: Tensor | None = self._term(edge, option, part)
        else:
            assert mix is not None
            total = edge_mixture(mix, edge, self.wiring.labels, self.wiring.none,
                                 self.wiring.skip if self.strides[edge] == 1 else None, lambda o: self._term(edge, o, part),
                                 lambda: self._term(edge, self.wiring.labels.index(self.wiring.skip), part))
        if self.partial > 1:
            total = passed_by(total, node.raw, self.partial, self.strides[edge])
        return edge_weighted(total, edge, mix) if option == MIXED else total

    def _term(self, edge: int, option: int, node: Node) -> Tensor:
        label = self.wiring.labels[option]
        return unchanged(self.operation(edge, option), node.raw if label in self.raw else node.active())

    def plain(self, copied: Callable[[nn.Module], nn.Module]) -> PlainPairGraph:
        """The chosen edges only.

        Raises:
            InputError: only a part of the channels passes the operations.
        """
        refuse_partial(self.partial)
        terms = self.wiring.terms()
        chosen = [(k, option) for _, sources in terms for _, k, option in sources]
        kept = {str(k): harmless(copied(self.operation(k, option))) for k, option in chosen}
        raw = frozenset(k for k, option in chosen if self.wiring.labels[option] in self.raw)
        return PlainPairGraph(terms, kept, harmless(copied(self.activation)), raw, self.strides[0]).train(self.training)


class PlainPairGraph(nn.Module):
    """A `PairGraph` without choices: the edges of one architecture (by number; those in ``raw`` take values as they are)."""

    def __init__(self, terms: Terms, edges: Mapping[str, nn.Module], activation: nn.Module, raw: frozenset[int],
                 stride: int) -> None:
        super().__init__()
        self.terms = terms
        self.edges = nn.ModuleDict(edges)
        self.activation = activation
        self.raw = raw
        self.stride = stride

    def forward(self, *inputs: Tensor) -> Tensor:
        """(n, channels, h, w) each -> (n, nodes · channels, h', w')."""

        def edge(k: int, option: int, node: Node) -> Tensor:
            return self.edges[str(k)](node.raw if k in self.raw else node.active())  # type: ignore[no-any-return]

        return run_pairs(inputs, self.terms, edge, self.activation, self.stride)


def run_pairs(inputs: Sequence[Tensor], terms: Terms, edge: Callable[[int, int, Node], Tensor | None],
              activation: Activation | None, stride: int) -> Tensor:
    """All inner nodes side by side: node j = sum of ``edge(edge, operation, node i)``; zeros if there is nothing to add."""
    nodes = [Node(x, activation) for x in inputs]
    for _, sources in terms:
        found = [term for i, k, option in sources if (term := edge(k, option, nodes[i])) is not None]
        total = found[0] if found else torch.zeros_like(inputs[0][:, :, ::stride, ::stride])
        for term in found[1:]:
            total = total + term
        nodes.append(Node(total, activation))
    return torch.cat([node.raw for node in nodes[len(inputs):]], 1)
