"""Search spaces as data: a tree of choices, and every question about it.

A space is built from five frozen nodes:

``Choice(name, options)``        one of several labels; an option may carry a whole sub-space (a conditional choice)
``Product(name, parts)``         all of several spaces
``Repeat(name, part, times)``    one space several times; how often is a choice as soon as ``times`` has two entries
``Cell(name, nodes, operations)`` a directed acyclic graph with one operation on every edge i -> j, i < j
``Graph(name, nodes, operations, edges)`` one with an operation on every inner node, and at most so many edges

An architecture is a plain ``dict`` from the path of every *active* choice to the index of its option. Paths come from
structure alone: ``stem/width``, ``head=mlp/width`` (below the option ``mlp`` of the choice ``head``), ``stage[1]/0-2``
(edge 0 -> 2 of the cell in the second copy of ``stage``), ``op3`` (the operation of node 3 of a graph without a name).

A `Graph` is the one node of which not every combination of options is an architecture: some have too many edges or none that
lead anywhere. No fold returns such a combination.

A `Layout` is the tree unrolled once into columns, one for every choice that can ever be active. Populations are integer
matrices over these columns, so that sampling, variation and encoding of a thousand architectures are a few numpy calls.
A column that is inactive in a row keeps its (silent) value there; silent graphs are valid ones.

Only numpy is needed here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nasopt import graphs as dags

Arch: TypeAlias = Mapping[str, int]
Rows: TypeAlias = NDArray[np.int64]
Rule: TypeAlias = Literal["algebra", "nasbench201"]


def _check_name(kind: str, name: str) -> None:
    if not isinstance(name, str) or any(c in name for c in "/=[]"):
        raise ValueError(f"{kind} name {name!r}: use a string without '/', '=', '[' or ']'.")


@dataclass(frozen=True, init=False)
class Choice:
    """One of several options.

    Args:
        name: the choice's name within its parent.
        options: labels, or a mapping from label to the sub-space that exists only under it (None: no sub-space).

    Raises:
        ValueError: no option, or two options with one label.
    """

    name: str
    options: tuple[tuple[str, Space | None], ...]

    def __init__(self, name: str, options: Iterable[str] | Mapping[str, Space | None]) -> None:
        _check_name("Choice", name)
        pairs = tuple(options.items()) if isinstance(options, Mapping) else tuple((str(o), None) for o in options)
        if not pairs:
            raise ValueError(f"Choice {name!r} has no options: give at least one.")
        labels = [label for label, _ in pairs]
        if len(set(labels)) < len(labels):
            raise ValueError(f"Choice {name!r} names an option twice: {labels}.")
        for label in labels:
            _check_name(f"Choice {name!r}: option", label)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", pairs)


@dataclass(frozen=True, init=False)
class Product:
    """All of several spaces. Its name prefixes the paths of its parts; an empty name adds nothing.

    Raises:
        ValueError: two parts share a name.
    """

    name: str
    parts: tuple[Space, ...]

    def __init__(self, name: str, parts: Iterable[Space]) -> None:
        _check_name("Product", name)
        parts = tuple(parts)
        names = [p.name for p in parts if p.name or not isinstance(p, Product)]
        if len(set(names)) < len(names):
            raise ValueError(f"Product {name!r} has two parts of one name: {names}.")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True, init=False)
class Repeat:
    """One space several times in a row.

    Args:
        name: copy ``i`` has the paths ``name[i]/...``; the number of copies, if it is a choice, has the path ``name``.
        part: the space that is repeated.
        times: a count, or the counts to choose from.
        shared: all copies make the same choices (paths ``name[*]/...``, present whenever at least one copy is).

    Raises:
        ValueError: a negative count, none at all, or one twice.
    """

    name: str
    part: Space
    times: tuple[int, ...]
    shared: bool

    def __init__(self, name: str, part: Space, times: int | Iterable[int], shared: bool = False) -> None:
        _check_name("Repeat", name)
        counts = (times,) if isinstance(times, int) else tuple(times)
        whole = all(isinstance(t, (int, np.integer)) for t in counts)
        if not counts or not whole or min(counts) < 0 or len(set(counts)) < len(counts):
            raise ValueError(f"Repeat {name!r}: times must be distinct counts of at least 0, got {counts}.")
        counts = tuple(int(t) for t in counts)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "part", part)
        object.__setattr__(self, "times", counts)
        object.__setattr__(self, "shared", shared)


@dataclass(frozen=True, init=False)
class Cell:
    """A directed acyclic graph: node 0 is the input, the last the output; each edge i -> j, i < j, has an operation.

    Args:
        name: prefixes the edges' paths, ``name/0-1``, ``name/0-2``, ``name/1-2``, ... (by target, then by source).
        nodes: number of nodes, input and output included (at least 2).
        operations: labels of the operations; every edge chooses one.
        none: the label that removes the edge, if there is one.
        skip: the label that passes the source on unchanged, if there is one.
        rule: what `canonical` takes as equal. ``algebra``: a node is the sum of its terms, a skip passes all of its
            source's terms on, an operation on nothing is nothing. ``nasbench201``: the published string of NATS-Bench
            (Dong et al., TPAMI 2021), which keeps a place for every removed edge and so merges less.

    Raises:
        ValueError: fewer than two nodes, no operation or one twice, ``none`` or ``skip`` not among the operations or
            the same one.
    """

    name: str
    nodes: int
    operations: tuple[str, ...]
    none: str | None
    skip: str | None
    rule: Rule

    def __init__(self, name: str, nodes: int, operations: Iterable[str], *, none: str | None = None,
                 skip: str | None = None, rule: Rule = "algebra") -> None:
        _check_name("Cell", name)
        operations = tuple(operations)
        if not isinstance(nodes, int) or nodes < 2:
            raise ValueError(f"Cell {name!r} has {nodes} nodes: it needs an input and an output, at least 2.")
        Choice(name, operations)  # refuses bad labels
        if none is not None and none == skip:
            raise ValueError(f"Cell {name!r}: {none!r} cannot both remove an edge and pass its source on.")
        for label in (none, skip):
            if label is not None and label not in operations:
                raise ValueError(f"Cell {name!r}: {label!r} is not among its operations {operations}.")
        if rule not in ("algebra", "nasbench201"):
            raise ValueError(f"Cell {name!r}: rule must be 'algebra' or 'nasbench201', got {rule!r}.")
        for key, value in (("name", name), ("nodes", nodes), ("operations", operations), ("none", none), ("skip", skip),
                           ("rule", rule)):
            object.__setattr__(self, key, value)

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The edges (i, j) in the order of their paths."""
        return [(i, j) for j in range(1, self.nodes) for i in range(j)]

    @property
    def parts(self) -> tuple[Choice, ...]:
        """The edges as choices."""
        return tuple(Choice(f"{i}-{j}", self.operations) for i, j in self.edges)


@dataclass(frozen=True, init=False)
class Graph:
    """A directed acyclic graph with an operation on every inner node, as in NAS-Bench-101 (Ying et al., ICML 2019).

    Node 0 is the input, the last one the output. An edge i -> j, i < j, is there or not. A node is alive if it lies on a path
    from the input to the output; a graph must have such a path and at most ``edges`` edges between living nodes.

    Args:
        name: prefixes the paths of the edges, ``name/0-1``, ``name/0-2``, ``name/1-2``, ... (by target, then by source), with the
            options "0" and "1", and of the inner nodes' operations, ``name/op1``, ``name/op2``, ...
        nodes: number of nodes, input and output included (at least 3).
        operations: labels of the operations.
        edges: the most edges between living nodes (at least 2).

    Raises:
        ValueError: fewer than three nodes or two edges, no operation or one twice.
    """

    name: str
    nodes: int
    operations: tuple[str, ...]
    edges: int

    def __init__(self, name: str, nodes: int, operations: Iterable[str], edges: int) -> None:
        _check_name("Graph", name)
        operations = tuple(operations)
        if not isinstance(nodes, int) or nodes < 3:
            raise ValueError(f"Graph {name!r} has {nodes} nodes: it needs an input, an inner node and an output, at least 3.")
        if not isinstance(edges, int) or edges < 2:
            raise ValueError(f"Graph {name!r} has at most {edges} edges: allow at least 2, the path through one node.")
        Choice(name, operations)  # refuses bad labels
        for key, value in (("name", name), ("nodes", nodes), ("operations", operations), ("edges", edges)):
            object.__setattr__(self, key, value)

    @property
    def parts(self) -> tuple[Choice, ...]:
        """The edges, then the inner nodes' operations, as choices."""
        edges = [Choice(f"{i}-{j}", ("0", "1")) for j in range(1, self.nodes) for i in range(j)]
        return (*edges, *(Choice(f"op{k}", self.operations) for k in range(1, self.nodes - 1)))


Space: TypeAlias = Choice | Product | Repeat | Cell | Graph


# ------------------------------------------------------------------------------------------------------------ layout
@dataclass(frozen=True)
class Gene:
    """One column: a choice, active when its parent column is and holds one of ``when`` (parent -1: always active)."""

    path: str
    labels: tuple[str, ...]
    parent: int
    when: frozenset[int]


@dataclass(frozen=True)
class GraphColumns:
    """The columns of a graph's edges and of its operations."""

    graph: Graph
    edges: tuple[int, ...]
    ops: tuple[int, ...]

    def wires(self, rows: Rows) -> dags.Wires:
        """Its edges as matrices, (n, nodes, nodes)."""
        return dags.wires_of(rows[:, self.edges], self.graph.nodes)

    def valid(self, rows: Rows) -> NDArray[np.bool_]:
        """In which rows it is an architecture, (n,)."""
        return dags.valid(self.wires(rows), self.graph.edges)

    def write(self, rows: Rows, wires: dags.Wires, ops: Rows | None = None) -> None:
        """Puts other edges, and other operations if there are any, into the rows."""
        rows[:, self.edges] = dags.flags_of(wires)
        if ops is not None:
            rows[:, self.ops] = ops


TRIES = 16
"""How often a mutation that makes no valid graph is tried again before a random architecture takes its place."""


@dataclass(frozen=True)
class Layout:
    """A space unrolled into columns, made by `layout`; matrices have shape (n, len(genes)) and integer entries."""

    genes: tuple[Gene, ...]
    cells: tuple[tuple[Cell, tuple[int, ...]], ...]
    graphs: tuple[GraphColumns, ...] = ()

    @cached_property
    def column(self) -> dict[str, int]:
        """The column of every path."""
        return {g.path: k for k, g in enumerate(self.genes)}

    @cached_property
    def options(self) -> Rows:
        """Number of options of every column, shape (columns,)."""
        return np.array([len(g.labels) for g in self.genes], dtype=np.int64)

    @cached_property
    def flat(self) -> bool:
        """True if every column is always active."""
        return all(g.parent < 0 for g in self.genes)

    @cached_property
    def first(self) -> Rows:
        """The first option of every column, and of a graph the first valid one: a single edge from input to output."""
        row = np.zeros(len(self.genes), dtype=np.int64)
        row[[w.edges[1 - w.graph.nodes] for w in self.graphs]] = 1
        return row

    def valid(self, rows: Rows) -> NDArray[np.bool_]:
        """In which rows every graph is valid, (n,)."""
        good = np.ones(len(rows), dtype=bool)
        for w in self.graphs:
            good &= w.valid(rows)
        return good

    def active(self, rows: Rows) -> NDArray[np.bool_]:
        """Which columns are active in which row, shape (n, columns)."""
        on = np.ones(rows.shape, dtype=bool)
        for k, g in enumerate(self.genes):
            before = self.genes[k - 1]
            if g.parent >= 0 and (before.parent, before.when) == (g.parent, g.when):
                on[:, k] = on[:, k - 1]
            elif g.parent >= 0:
                on[:, k] = on[:, g.parent] & np.isin(rows[:, g.parent], list(g.when))
        return on

    def random(self, rng: np.random.Generator, n: int) -> Rows:
        """``n`` rows, every column uniform over its options, every graph over the valid ones."""
        rows = rng.integers(0, self.options, size=(n, len(self.genes)), dtype=np.int64)
        for w in self.graphs:
            w.write(rows, dags.draw(rng, n, w.graph.nodes, w.graph.edges))
        return rows

    def rows(self, archs: Sequence[Arch], rng: np.random.Generator | None = None) -> Rows:
        """Architectures as rows. Inactive columns are as in `first`, or random if a generator is given."""
        if self.flat:
            paths = [g.path for g in self.genes]
            return np.array([[a[p] for p in paths] for a in archs], dtype=np.int64).reshape(len(archs), len(paths))
        rows = np.tile(self.first, (len(archs), 1)) if rng is None else self.random(rng, len(archs))
        column = self.column
        for row, arch in zip(rows, archs, strict=True):
            for path, value in arch.items():
                row[column[path]] = value
        return rows

    def archs(self, rows: Rows) -> list[dict[str, int]]:
        """Rows as architectures (active columns only)."""
        paths = [g.path for g in self.genes]
        if self.flat:
            return [dict(zip(paths, row, strict=True)) for row in rows.tolist()]
        on = self.active(rows).tolist()
        return [{p: v for p, v, here in zip(paths, row, o, strict=True) if here}
                for row, o in zip(rows.tolist(), on, strict=True)]

    def neighbours(self, rows: Rows) -> Rows:
        """All valid rows that differ from one of the rows, silenced ones, in one active choice; by row, column and option."""
        which, column = np.nonzero(self.active(rows))
        each = self.options[column]
        which, column = which.repeat(each), column.repeat(each)
        value = np.concatenate([np.arange(n) for n in each]) if len(each) else each
        changed = value != rows[which, column]
        found = rows[which[changed]]
        found[np.arange(len(found)), column[changed]] = value[changed]
        return np.asarray(found[self.valid(found)])

    def silence(self, rows: Rows) -> Rows:
        """The same architectures with `first` in every inactive column: equal architectures become equal rows."""
        return rows if self.flat else np.where(self.active(rows), rows, self.first)

    def canonical(self, rows: Rows) -> Rows:
        """The rows of `space.canonical`, silenced."""
        if not len(rows) or not (self.cells or self.graphs):
            return self.silence(rows)
        on = self.active(rows)
        rows = np.where(on, rows, self.first)
        for cell, columns in self.cells:
            here = np.ix_(np.flatnonzero(on[:, columns[0]]), np.array(columns))
            rows[here] = np.array([_canonical_cell(cell, tuple(ops)) for ops in rows[here].tolist()]).reshape(rows[here].shape)
        for w in self.graphs:
            w.write(rows, *dags.canonical(w.wires(rows), rows[:, w.ops]))
        return rows

    def vary(self, rows: Rows, rng: np.random.Generator, rate: float | None = None) -> Rows:
        """Mutation: every column changes to another option with probability ``rate`` (default 1/columns that are
        active), and at least one active column that has another option does.

        The dead nodes of a graph are put to other places first (`graphs.loosen`), so that one edge more can bring one to life.
        """
        on = self.active(rows) & (self.options > 1)
        if not on.any(axis=1).all():
            raise ValueError("mutation needs a choice with at least two options in every architecture.")
        new = self._change(rows, on, rng, rate)
        tries = 0
        while self.graphs and (wrong := ~self.valid(new) | ~((new != rows) & on).any(axis=1)).any():
            tries += 1
            new[wrong] = (self._change(rows[wrong], on[wrong], rng, rate) if tries < TRIES
                          else self.random(rng, int(wrong.sum())))
        return new

    def _change(self, rows: Rows, on: NDArray[np.bool_], rng: np.random.Generator, rate: float | None) -> Rows:
        """A mutation that may leave graphs invalid; ``on``: the active columns that have another option."""
        rows = rows.copy() if self.graphs else rows
        for w in self.graphs:
            w.write(rows, *dags.loosen(rng, w.wires(rows), rows[:, w.ops], len(w.graph.operations)))
        counts = on.sum(axis=1, keepdims=True)
        u = rng.random(rows.shape)
        change = u < (1.0 / counts if rate is None else rate)
        change &= self.options > 1
        forced = np.where(on, u, 2.0).argmin(axis=1)
        change[np.arange(len(rows)), forced] = True
        step = 1 + (rng.random(rows.shape) * np.maximum(self.options - 1, 1)).astype(np.int64)
        return np.where(change, (rows + step) % self.options, rows)

    def cross(self, a: Rows, b: Rows, rng: np.random.Generator) -> Rows:
        """Uniform crossover: every column from either parent with probability 1/2; a graph that this makes invalid is that of
        ``a``."""
        child = np.where(rng.random(a.shape) < 0.5, a, b)
        for w in self.graphs:
            here = np.ix_(np.flatnonzero(~w.valid(child)), np.array(w.edges + w.ops))
            child[here] = a[here]
        return child


@lru_cache(maxsize=256)
def layout(space: Space) -> Layout:
    """The columns of a space, computed once.

    Raises:
        ValueError: two choices have the same path.
    """
    genes: list[Gene] = []
    cells: list[tuple[Cell, tuple[int, ...]]] = []
    placed: list[GraphColumns] = []

    def add(path: str, labels: tuple[str, ...], parent: int, when: frozenset[int]) -> int:
        genes.append(Gene(path, labels, parent, when))
        return len(genes) - 1

    def visit(node: Space, prefix: str, parent: int, when: frozenset[int]) -> None:
        path = prefix + node.name
        inside = f"{path}/" if node.name else prefix
        if isinstance(node, Choice):
            own = add(path, tuple(label for label, _ in node.options), parent, when)
            for value, (label, part) in enumerate(node.options):
                if part is not None:
                    visit(part, f"{path}={label}/", own, frozenset({value}))
        elif isinstance(node, Product):
            for part in node.parts:
                visit(part, inside, parent, when)
        elif isinstance(node, Cell):
            first = len(genes)
            for part in node.parts:
                visit(part, inside, parent, when)
            cells.append((node, tuple(range(first, len(genes)))))
        elif isinstance(node, Graph):
            first, ops = len(genes), len(genes) + node.nodes * (node.nodes - 1) // 2
            for part in node.parts:
                visit(part, inside, parent, when)
            placed.append(GraphColumns(node, tuple(range(first, ops)), tuple(range(ops, len(genes)))))
        else:
            if len(node.times) > 1:
                parent = add(path, tuple(str(t) for t in node.times), parent, when)
            for copy in range(min(1, max(node.times)) if node.shared else max(node.times)):
                inhabited = frozenset(v for v, t in enumerate(node.times) if t > copy)
                visit(node.part, f"{path}[{'*' if node.shared else copy}]/", parent,
                      inhabited if len(node.times) > 1 else when)

    visit(space, "", -1, frozenset())
    paths = [g.path for g in genes]
    twice = {p for p in paths if paths.count(p) > 1}
    if twice:
        raise ValueError(f"two choices have the path {min(twice)!r}: give them different names.")
    return Layout(tuple(genes), tuple(cells), tuple(placed))


# ------------------------------------------------------------------------------------------------------------- folds
def size(space: Space) -> int:
    """The number of architectures (as strings, before `canonical` merges any).

    Raises:
        ValueError: a graph of more than 7 nodes, whose valid wirings are too many to be counted.
    """
    if isinstance(space, Choice):
        return sum(1 if part is None else size(part) for _, part in space.options)
    if isinstance(space, Product):
        return math.prod(size(part) for part in space.parts)
    if isinstance(space, Cell):
        return math.prod([len(space.operations)] * len(space.edges))
    if isinstance(space, Graph):
        if space.nodes > 7:
            raise ValueError(f"Graph {space.name!r} has {space.nodes} nodes: its wirings can be counted with at most 7.")
        return dags.count(space.nodes, space.edges) * math.prod([len(space.operations)] * (space.nodes - 2))
    return sum(size(space.part) ** (min(t, 1) if space.shared else t) for t in space.times)


def counted(space: Space, form: str) -> str:
    """`size` in a format such as ``",d"``, or "countless" where it cannot be counted."""
    try:
        return format(size(space), form)
    except OverflowError:  # above every float
        return format(Decimal(size(space)), form)
    except ValueError:
        return "countless"


def at_most(space: Space, n: int) -> bool:
    """Whether it has so many architectures at most; one that `size` cannot count has more."""
    try:
        return size(space) <= n
    except ValueError:
        return False


def walk(space: Space, pick: Callable[[str, tuple[str, ...]], int]) -> dict[str, int]:
    """Builds one architecture: ``pick(path, labels)`` is called for every active choice, parents first.

    Raises:
        ValueError: ``pick`` returned something that is not the index of an option, or a graph is not valid.
    """
    lay = layout(space)
    genes = lay.genes
    values = [-1] * len(genes)
    for k, g in enumerate(genes):
        if g.parent < 0 or values[g.parent] in g.when:
            value = pick(g.path, g.labels)
            if not isinstance(value, (int, np.integer)) or not 0 <= value < len(g.labels):
                raise ValueError(f"choice {g.path!r}: option {value!r} is none of 0..{len(g.labels) - 1} {g.labels}.")
            values[k] = int(value)
    for w in lay.graphs:
        if values[w.edges[0]] >= 0 and not w.valid(np.array([values]))[0]:
            raise ValueError(f"the graph of choice {genes[w.edges[0]].path!r} must have 1 to {w.graph.edges} edges on paths from "
                             "its input to its output.")
    return {g.path: v for g, v in zip(genes, values, strict=True) if v >= 0}


def sample(space: Space, rng: np.random.Generator) -> dict[str, int]:
    """A random architecture: every active choice uniform over its options."""
    lay = layout(space)
    return lay.archs(lay.random(rng, 1))[0]


def plain(space: Space, rng: np.random.Generator, n: int) -> list[dict[str, int]]:
    """Random architectures of one operation each, as designers often choose: all cells have the same edges, every edge is that
    operation or none at all. Everything else is random. (A cell without an operation that removes edges has it everywhere.)
    All inner nodes of a graph have one operation; graphs of one kind are equal.
    """
    lay = layout(space)
    rows = lay.random(rng, n)
    drawn = rng.random((n, 1 + max((len(columns) for _, columns in lay.cells), default=0)))
    for cell, columns in lay.cells:
        kinds = np.array([k for k, label in enumerate(cell.operations) if label not in (cell.none, cell.skip)] or [0])
        kind = kinds[(drawn[:, :1] * len(kinds)).astype(np.int64)]
        keep = drawn[:, 1:1 + len(columns)] < 0.5
        rows[:, columns] = kind if cell.none is None else np.where(keep, kind, cell.operations.index(cell.none))
    of_kind: dict[tuple[int, int], GraphColumns] = {}
    for w in lay.graphs:
        rows[:, w.edges] = rows[:, of_kind.setdefault((w.graph.nodes, w.graph.edges), w).edges]
        rows[:, w.ops] = (drawn[:, :1] * len(w.graph.operations)).astype(np.int64)
    return lay.archs(rows)


def uniform(space: Space) -> list[dict[str, int]]:
    """Architectures that take the k-th option of every choice (the last where there are fewer), for each k: one of each operation
    throughout, in a space of cells. Graphs are chains."""
    lay = layout(space)
    rows = np.minimum(np.arange(max(lay.options, default=0))[:, None], lay.options - 1)
    for w in lay.graphs:
        links = min(w.graph.nodes - 1, w.graph.edges)  # of the chain; its last one leads to the output
        wires = np.zeros((len(rows), w.graph.nodes, w.graph.nodes), dtype=bool)
        wires[:, range(links), [*range(1, links), w.graph.nodes - 1]] = True
        w.write(rows, wires)
    return lay.archs(rows)


def everything(space: Space) -> Iterator[dict[str, int]]:
    """Every architecture once, in lexicographic order of the columns."""
    lay = layout(space)
    genes = lay.genes
    values = [-1] * len(genes)
    wired = {w.edges[-1] + 1: w for w in lay.graphs}

    def descend(k: int) -> Iterator[dict[str, int]]:
        if k in wired and values[k - 1] >= 0 and not wired[k].valid(np.array([values]))[0]:
            return
        if k == len(genes):
            yield {g.path: v for g, v in zip(genes, values, strict=True) if v >= 0}
            return
        g = genes[k]
        if g.parent >= 0 and values[g.parent] not in g.when:
            values[k] = -1
            yield from descend(k + 1)
            return
        for value in range(len(g.labels)):
            values[k] = value
            yield from descend(k + 1)

    return descend(0)


def mutate(space: Space, arch: Arch, rng: np.random.Generator) -> dict[str, int]:
    """A neighbour in the wide sense: at least one active choice differs, each with probability 1/(active choices);
    choices that become active are random."""
    lay = layout(space)
    return lay.archs(lay.vary(lay.rows([arch], rng), rng))[0]


def cross(space: Space, a: Arch, b: Arch, rng: np.random.Generator) -> dict[str, int]:
    """Uniform crossover of two architectures; a choice that only one parent makes is inherited when it is active."""
    lay = layout(space)
    known = [{**b, **a}, {**a, **b}]
    pair = lay.rows(known, rng)
    return lay.archs(lay.cross(pair[:1], pair[1:], rng))[0]


def neighbours(space: Space, arch: Arch) -> Iterator[dict[str, int]]:
    """All architectures that differ in one choice; choices that become active take their first option (`Layout.first`)."""
    lay = layout(space)
    yield from lay.archs(lay.neighbours(lay.rows([arch])))


def encode(space: Space, archs: Sequence[Arch]) -> NDArray[np.float64]:
    """One-hot features, shape (n, sum of options over all columns); an inactive choice is all zeros."""
    lay = layout(space)
    rows = lay.rows(archs)
    on = lay.active(rows)
    hot = [(rows[:, k, None] == np.arange(m)) & on[:, k, None] for k, m in enumerate(lay.options)]
    return np.concatenate(hot, axis=1).astype(np.float64) if hot else np.zeros((len(archs), 0))


def key(arch: Arch) -> str:
    """A short name for an architecture: 16 hexadecimal digits, equal for equal architectures on every machine."""
    text = json.dumps(sorted((p, int(v)) for p, v in arch.items()), separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def labels(space: Space, arch: Arch) -> dict[str, str]:
    """The architecture in words: path -> label of the chosen option."""
    lay = layout(space)
    return {p: lay.genes[lay.column[p]].labels[v] for p, v in arch.items()}


def from_labels(space: Space, words: Mapping[str, str]) -> dict[str, int]:
    """The inverse of `labels`.

    Raises:
        ValueError: a choice is missing or superfluous, or a label unknown.
    """
    def pick(path: str, options: tuple[str, ...]) -> int:
        if path not in words:
            raise ValueError(f"choice {path!r} is missing: give one of {options}.")
        if words[path] not in options:
            raise ValueError(f"choice {path!r}: {words[path]!r} is not one of {options}.")
        return options.index(words[path])

    arch = walk(space, pick)
    check(space, {**dict.fromkeys(words, 0), **arch})
    return arch


def check(space: Space, arch: Arch) -> None:
    """Raises ValueError, naming the choice, unless ``arch`` is an architecture of ``space``."""
    def pick(path: str, options: tuple[str, ...]) -> int:
        if path not in arch:
            raise ValueError(f"choice {path!r} is missing from the architecture.")
        return arch[path]

    extra = set(arch) - set(walk(space, pick))
    if extra:
        raise ValueError(f"choice {min(extra)!r} does not exist in this architecture.")


# --------------------------------------------------------------------------------------------------- canonical forms
TABLE_LIMIT = 20_000
"""Cells up to this many strings are merged through a table of all of them; larger ones by `_normal`."""


def canonical(space: Space, arch: Arch) -> dict[str, int]:
    """One representative of all architectures that are the same network: in every active `Cell` dead branches are
    removed and isomorphic cells are merged, as the cell's ``rule`` says, and so in every active `Graph` (`graphs.canonical`).
    Idempotent.

    Cells of up to `TABLE_LIMIT` strings are merged completely. Larger ones under ``algebra`` lose their dead branches
    and take the smallest of their node orders, which may leave apart two cells that are equal only through skips; under
    ``nasbench201``, whose strings count removed edges, they stay as they are.
    """
    lay = layout(space)
    return lay.archs(lay.canonical(lay.rows([arch])))[0] if lay.cells or lay.graphs else dict(arch)


@lru_cache(maxsize=100_000)
def _canonical_cell(cell: Cell, ops: tuple[int, ...]) -> tuple[int, ...]:
    if len(cell.operations) ** len(ops) <= TABLE_LIMIT:
        return _representatives(cell)[signature(cell, ops)]
    return _normal(cell, ops) if cell.rule == "algebra" else ops


@lru_cache(maxsize=64)
def _representatives(cell: Cell) -> dict[str, tuple[int, ...]]:
    """The lexicographically first string of every class."""
    first: dict[str, tuple[int, ...]] = {}
    for ops in np.ndindex(*[len(cell.operations)] * len(cell.edges)):
        first.setdefault(signature(cell, ops), ops)
    return first


def signature(cell: Cell, ops: Sequence[int]) -> str:
    """The output node as an expression; equal for equal cells under ``cell.rule``. Empty: the output is nothing."""
    if cell.rule == "nasbench201":
        return _unique_string(cell, ops)
    terms: list[list[str]] = [["x"]] + [[] for _ in range(cell.nodes - 1)]
    for (i, j), op in zip(cell.edges, ops, strict=True):
        label = cell.operations[op]
        if label == cell.none or not terms[i]:
            continue
        terms[j] += terms[i] if label == cell.skip else [f"{op}({'+'.join(sorted(terms[i]))})"]
    return "+".join(sorted(terms[-1]))


def connected(space: Space, arch: Arch) -> bool:
    """Whether something reaches the output of every active cell: otherwise the network does not see its input. (Something
    always reaches that of a graph.)"""
    lay = layout(space)
    for cell, columns in lay.cells:
        paths = [lay.genes[k].path for k in columns]
        if paths[0] in arch and not _reaches(cell, tuple(arch[p] for p in paths)):
            return False
    return True


@lru_cache(maxsize=100_000)
def _reaches(cell: Cell, ops: tuple[int, ...]) -> bool:
    fed = {0}
    for (i, j), op in zip(cell.edges, ops, strict=True):
        if i in fed and cell.operations[op] != cell.none:
            fed.add(j)
    return cell.nodes - 1 in fed


def _unique_string(cell: Cell, ops: Sequence[int]) -> str:
    """NATS-Bench's unique string with zeros considered (Dong et al., TPAMI 2021), with operations numbered for
    their labels: 6,466 classes in NAS-Bench-201."""
    node = ["0"]
    chosen = dict(zip(cell.edges, ops, strict=True))
    for j in range(1, cell.nodes):
        terms = []
        for i in range(j):
            op = chosen[i, j]
            label = cell.operations[op]
            if label == cell.none or node[i] == "#":
                terms.append("#")
            else:
                terms.append(node[i] if label == cell.skip else f"({node[i]})@{op}")
        node.append("+".join(sorted(terms)))
    return node[-1]


def on_paths(edges: Iterable[tuple[int, int]], last: int) -> list[tuple[int, int]]:
    """The edges (i, j), i < j, that are part of a way from node 0 to the last one, in their order."""
    every = list(edges)
    fed, used = {0}, {last}
    for i, j in sorted(every, key=lambda edge: edge[1]):
        fed |= {j} if i in fed else set()
    for i, j in sorted(every, key=lambda edge: -edge[0]):
        used |= {i} if j in used else set()
    return [(i, j) for i, j in every if i in fed and j in used]


def _normal(cell: Cell, ops: Sequence[int]) -> tuple[int, ...]:
    """Dead edges removed, inner nodes in the order that gives the smallest string."""
    if cell.none is None:
        return tuple(int(o) for o in ops)
    none = cell.operations.index(cell.none)
    live = {e: int(o) for e, o in zip(cell.edges, ops, strict=True) if o != none}
    live = {edge: live[edge] for edge in on_paths(live, cell.nodes - 1)}
    best: tuple[int, ...] | None = None
    for order in _orders(cell.nodes, set(live)):
        place = {node: k for k, node in enumerate(order)}
        moved = {(place[i], place[j]): o for (i, j), o in live.items()}
        row = tuple(moved.get(e, none) for e in cell.edges)
        best = row if best is None else min(best, row)
    assert best is not None
    return best


def _orders(nodes: int, edges: set[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    """All orders of the nodes, input first and output last, in which every edge points forward."""
    def extend(done: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(done) == nodes - 1:
            yield (*done, nodes - 1)
            return
        for node in range(1, nodes - 1):
            if node not in done and all(i in done for i, j in edges if j == node):
                yield from extend((*done, node))

    return extend((0,))


# -------------------------------------------------------------------------------------------------------------- JSON
def to_json(space: Space) -> dict[str, Any]:
    """The space as plain JSON values; `from_json` reads them."""
    if isinstance(space, Choice):
        return {"choice": space.name, "options": [[label, part and to_json(part)] for label, part in space.options]}
    if isinstance(space, Product):
        return {"product": space.name, "parts": [to_json(p) for p in space.parts]}
    if isinstance(space, Repeat):
        return {"repeat": space.name, "part": to_json(space.part), "times": list(space.times), "shared": space.shared}
    if isinstance(space, Graph):
        return {"graph": space.name, "nodes": space.nodes, "operations": list(space.operations), "edges": space.edges}
    return {"cell": space.name, "nodes": space.nodes, "operations": list(space.operations), "none": space.none,
            "skip": space.skip, "rule": space.rule}


def from_json(data: Mapping[str, Any]) -> Space:
    """The space that `to_json` wrote.

    Raises:
        ValueError: ``data`` is not a space.
    """
    try:
        if "choice" in data:
            return Choice(data["choice"], _options_from_json(data["options"]))
        if "product" in data:
            return Product(data["product"], [from_json(p) for p in data["parts"]])
        if "repeat" in data:
            return Repeat(data["repeat"], from_json(data["part"]), data["times"], data["shared"])
        if "cell" in data:
            return Cell(data["cell"], data["nodes"], data["operations"], none=data["none"], skip=data["skip"],
                        rule=data["rule"])
        if "graph" in data:
            return Graph(data["graph"], data["nodes"], data["operations"], data["edges"])
    except (KeyError, TypeError) as problem:
        raise ValueError(f"not a search space: {problem!r} missing or of a wrong type in {str(data)[:80]}.") from None
    raise ValueError(f"not a search space: expected one of choice, product, repeat, cell, graph in {str(data)[:80]}.")


def _options_from_json(pairs: Any) -> dict[str, Space | None]:
    options: dict[str, Space | None] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] in options:
            raise ValueError(f"not a search space: {str(pair)[:80]} is not a new label with a sub-space or null.")
        options[pair[0]] = None if pair[1] is None else from_json(pair[1])
    return options
