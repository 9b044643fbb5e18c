"""Architectures as vectors whose distances mean something to a kernel.

Three groups, each shifted and scaled so that random architectures have mean 0 and a mean squared distance of 1:

``choices``  one-hot of the active choices: where which option is
``counts``   how often each option occurs among the choices that have the same options; in a cell or graph, where it is alive
``wiring``   in a cell, whose operations are on its edges: how often each sequence of operations leads from input to output;
             edges that pass their source on add nothing to it (the path encoding of White, Neiswanger & Savani, AAAI 2021, with
             counts). In a graph, whose operations are its vertices: how often an operation follows another, and how often it has
             so many inputs and so many outputs (one step of Weisfeiler and Lehman's refinement: Ru et al., ICLR 2021, but
             counted apart, so that vertices that are alike in part share something)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from nasopt import graphs as dags
from nasopt.seed import rng
from nasopt.space import Cell, Layout, Rows, Space, layout

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Groups: TypeAlias = tuple[Floats, ...]
"""One matrix (n, width of the group) for every group of features."""

MAX_PATHS = 1024
"""Columns for the sequences of one cell, at most: in larger cells several share one."""

SAMPLE = 256
"""Random architectures that set the scale of every group."""


Hints: TypeAlias = Callable[[Rows], Floats]
"""What is known of canonical rows (n, columns) before any evaluation, (n, hints), such as zero-cost proxies. NaN: nothing."""


@dataclass(frozen=True, eq=False)
class Featuriser:
    """Turns canonical rows of a space's layout into groups of features.

    Attributes:
        means: what is taken off every group, (1, width) each.
        scales: what it is divided by then.
    """

    space: Space
    means: Groups
    scales: tuple[float, ...]

    def __call__(self, rows: Rows) -> Groups:
        """The features of rows (n, columns)."""
        groups = _raw(layout(self.space), rows)
        return tuple((group - mean) / scale for group, mean, scale in zip(groups, self.means, self.scales, strict=True))


@dataclass(frozen=True, eq=False)
class Scores:
    """Hints as one more group of features: normal scores of their ranks among random architectures, which no outlier distorts.

    Attributes:
        known: sorted values of every hint among random architectures.
    """

    hints: Hints
    known: tuple[Floats, ...]

    @classmethod
    def of(cls, space: Space, hints: Hints) -> Scores:
        """The scores of a space's hints."""
        lay = layout(space)
        found = hints(lay.silence(lay.random(rng(0, 0, "hints"), SAMPLE)))
        return cls(hints, tuple(np.sort(column[~np.isnan(column)]) for column in found.T))

    def __call__(self, rows: Rows) -> Floats:
        """The scores of rows, (n, hints); the lowest where nothing is known."""
        places = [np.where(np.isnan(column), 0, (np.searchsorted(known, column) + np.searchsorted(known, column, "right")) / 2)
                  for column, known in zip(self.hints(rows).T, self.known, strict=True)]
        shares = [(place + 0.5) / (len(known) + 1) for place, known in zip(places, self.known, strict=True)]
        return np.asarray(ndtri(np.stack(shares, axis=1)) / np.sqrt(2 * len(self.known)))


@lru_cache(maxsize=64)
def featuriser(space: Space) -> Featuriser:
    """The featuriser of a space."""
    lay = layout(space)
    groups = _raw(lay, lay.silence(lay.random(rng(0, 0, "features"), SAMPLE)))
    spreads = [float(np.sqrt(2 * group.var(axis=0).sum())) for group in groups]  # E|x - y|^2 = 2 sum of the variances
    means = tuple(group.mean(axis=0, keepdims=True) for group in groups)
    return Featuriser(space, means, tuple(spread if spread > 0 else 1.0 for spread in spreads))


def _raw(lay: Layout, rows: Rows) -> Groups:
    """The groups before scaling; cells and graphs alone have wiring."""
    on = lay.active(rows)
    live, wiring = on.copy(), list[Floats]()
    for cell, columns in lay.cells:
        codes, used = _sequences(cell, rows[:, columns])
        live[:, columns] &= used
        wiring.append(_histogram(np.where(on[:, columns[:1]], codes, -1), _codes(cell)))
    for w in lay.graphs:
        wires = w.wires(rows)
        alive = dags.alive(wires)
        wires &= alive[:, :, None] & alive[:, None, :]
        live[:, w.edges] &= dags.flags_of(wires) > 0
        live[:, w.ops] &= alive[:, 1:-1]
        wiring.append(_links(wires, rows[:, w.ops], len(w.graph.operations)) * on[:, w.edges[:1]])
    hot = [(rows[:, k, None] == np.arange(m)) for k, m in enumerate(lay.options)]
    choices = np.concatenate([h & on[:, k, None] for k, h in enumerate(hot)], axis=1).astype(np.float64)
    kinds = dict.fromkeys(gene.labels for gene in lay.genes)
    alike = [[k for k, gene in enumerate(lay.genes) if gene.labels == kind] for kind in kinds]
    counts = np.concatenate([sum((hot[k] & live[:, k, None]).astype(np.float64) for k in group) for group in alike], axis=1)
    return (choices, counts, *([np.concatenate(wiring, axis=1)] if wiring else []))


def _sequences(cell: Cell, rows: Rows) -> tuple[Rows, Bools]:
    """The operations along every way from input to output, as numbers (n, ways), -1 where an edge of the way is removed; and
    which edges lie on a way that is whole, (n, edges)."""
    base = len(cell.operations) + 1
    none, skip = (-1 if label is None else cell.operations.index(label) for label in (cell.none, cell.skip))
    place = {edge: k for k, edge in enumerate(cell.edges)}
    codes, used = list[Rows](), np.zeros(rows.shape, dtype=bool)
    for nodes in _ways(cell.nodes):
        steps = [place[edge] for edge in pairwise(nodes)]
        whole, code = (rows[:, steps] != none).all(axis=1), np.zeros(len(rows), dtype=np.int64)
        for k in steps:
            code = np.where(rows[:, k] == skip, code, code * base + rows[:, k] + 1)
        codes.append(np.where(whole, code, -1))
        used[:, steps] |= whole[:, None]
    return np.stack(codes, axis=1), used


def _links(wires: dags.Wires, ops: Rows, kinds: int) -> Floats:
    """Of graphs of v vertices whose dead ones have no edges, (n, v, v), with operations (n, v - 2) of so many kinds: how many
    edges lead from each kind to each, and how many vertices of each kind have 1, 2, ... v - 1 inputs, and outputs. Input and
    output are kinds of their own. (n, columns)."""
    n, nodes = len(wires), wires.shape[1]
    named = np.concatenate([np.full((n, 1), kinds), ops, np.full((n, 1), kinds + 1)], axis=1)
    edges, hot = wires.astype(np.float64), (named[:, :, None] == np.arange(kinds + 2)).astype(np.float64)
    ends = [(edges.sum(axis=side)[:, :, None] == np.arange(1, nodes)).astype(np.float64) for side in (1, 2)]
    return np.concatenate([(hot.transpose(0, 2, 1) @ other).reshape(n, -1) for other in (edges @ hot, *ends)], axis=1)


@lru_cache(maxsize=64)
def _ways(nodes: int) -> list[tuple[int, ...]]:
    """All ways from node 0 to the last through increasing nodes."""
    inner = range(1, nodes - 1)
    return [(0, *middle, nodes - 1) for k in range(nodes - 1) for middle in combinations(inner, k)]


@lru_cache(maxsize=64)
def _codes(cell: Cell) -> Rows:
    """The numbers of all sequences of a cell, sorted; empty if there are more than `MAX_PATHS`."""
    kinds = [k + 1 for k, label in enumerate(cell.operations) if label not in (cell.none, cell.skip)]
    if sum(len(kinds) ** length for length in range(cell.nodes)) > MAX_PATHS:
        return np.empty(0, dtype=np.int64)
    base, level, found = len(cell.operations) + 1, [0], [0]
    for _ in range(cell.nodes - 1):
        level = [code * base + kind for code in level for kind in kinds]
        found += level
    return np.array(sorted(found), dtype=np.int64)


def _histogram(codes: Rows, known: Rows) -> Floats:
    """How often each number occurs in a row of ``codes`` (n, ways), negative ones left out: (n, columns)."""
    width = len(known) or MAX_PATHS
    columns = np.searchsorted(known, codes) if len(known) else codes % MAX_PATHS
    n = len(codes)
    flat = (np.arange(n)[:, None] * width + columns)[codes >= 0]
    return np.bincount(flat, minlength=n * width).reshape(n, width).astype(np.float64)
