"""Directed acyclic graphs with an operation on every inner vertex, many at a time.

Notation: n graphs of v vertices are ``wires`` (n, v, v), true at [k, i, j] if graph k has the edge i -> j, only for i < j, and
``ops`` (n, v - 2), the operations of the vertices 1 .. v - 2. Vertex 0 is the input, v - 1 the output. A vertex is alive if it
lies on a path from the input to the output. Two graphs are one network if their living parts are isomorphic.

Only numpy is needed here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Wires: TypeAlias = NDArray[np.bool_]
Ops: TypeAlias = NDArray[np.int64]
Hashes: TypeAlias = NDArray[np.uint64]

INTO, OUT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
"""Any two odd numbers: the weights of a vertex's sources and of its targets."""


# ----------------------------------------------------------------------------------------------------------------- edges
@lru_cache(maxsize=64)
def _ends(nodes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The targets and the sources of all edges, by target, then by source."""
    return np.tril_indices(nodes, -1)


def wires_of(flags: NDArray[np.integer], nodes: int) -> Wires:
    """Wires of rows of 0 and 1, (n, v(v-1)/2), whose columns are the edges by target, then by source."""
    target, source = _ends(nodes)
    wires = np.zeros((len(flags), nodes, nodes), dtype=bool)
    wires[:, source, target] = flags
    return wires


def flags_of(wires: Wires) -> NDArray[np.int64]:
    """The inverse of `wires_of`."""
    target, source = _ends(wires.shape[1])
    return wires[:, source, target].astype(np.int64)


def _reached(wires: Wires) -> Wires:
    """Which vertices the input reaches, (n, v)."""
    on = np.zeros(wires.shape[:2], dtype=bool)
    on[:, 0] = True
    for j in range(1, wires.shape[1]):
        on[:, j] = (wires[:, :j, j] & on[:, :j]).any(axis=1)
    return on


def alive(wires: Wires) -> NDArray[np.bool_]:
    """Which vertices are alive, (n, v)."""
    backward = wires[:, ::-1, ::-1].transpose(0, 2, 1)
    return np.asarray(_reached(wires) & _reached(backward)[:, ::-1])


def valid(wires: Wires, edges: int) -> NDArray[np.bool_]:
    """Which graphs have a path from the input to the output and at most so many edges between living vertices, (n,)."""
    live = alive(wires)
    used = (wires & live[:, :, None] & live[:, None, :]).sum(axis=(1, 2))
    return np.asarray((used > 0) & (used <= edges))


@lru_cache(maxsize=64)
def count(nodes: int, edges: int) -> int:
    """How many graphs of so many vertices are valid, operations aside: all 2^(v(v-1)/2) are looked at, as sets of bits."""
    number = np.arange(2 ** (nodes * (nodes - 1) // 2), dtype=np.int32)
    sources = [number >> j * (j - 1) // 2 & 2**j - 1 for j in range(nodes)]
    reached, needed = np.ones_like(number), np.full_like(number, 2 ** (nodes - 1))
    for j in range(1, nodes):
        reached |= ((sources[j] & reached) > 0) * np.int32(2**j)
    for j in reversed(range(1, nodes)):
        needed |= sources[j] * (needed >> j & 1)
    live = reached & needed
    used = sum(np.bitwise_count(sources[j] & live) * (live >> j & 1) for j in range(1, nodes))
    return int(((used > 0) & (used <= edges)).sum())


def draw(rng: np.random.Generator, n: int, nodes: int, edges: int) -> Wires:
    """Wires of ``n`` valid graphs, uniform over all (by rejection), (n, v, v).

    Raises:
        ValueError: hardly one graph in 1,000 is valid.
    """
    found, tried = np.zeros((0, nodes, nodes), dtype=bool), 0
    while len(found) < n:
        if tried > 1000 * (len(found) + 20):
            raise ValueError(f"of 1,000 random graphs of {nodes} nodes hardly one has at most {edges} edges: allow more edges.")
        tries = min(tried + 2 * (n - len(found)) + 16, 8192)
        wires = wires_of(rng.integers(0, 2, size=(tries, nodes * (nodes - 1) // 2)), nodes)
        found, tried = np.concatenate([found, wires[valid(wires, edges)]]), tried + tries
    return found[:n]


# -------------------------------------------------------------------------------------------------------------- isomorphy
def mix(x: Hashes) -> Hashes:
    """A bijection of the 64-bit integers that scatters them (Steele, Lea & Flood, OOPSLA 2014, the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def prune(wires: Wires, ops: Ops) -> tuple[Wires, Ops, NDArray[np.bool_]]:
    """The graphs without the edges and, as 0, the operations of dead vertices, and which vertices are alive."""
    live = alive(wires)
    return wires & live[:, :, None] & live[:, None, :], np.where(live[:, 1:-1], ops, 0), live


def _depth(wires: Wires) -> Ops:
    """The length of the longest path to every vertex, (n, v)."""
    depth = np.zeros(wires.shape[:2], dtype=np.int64)
    for j in range(1, wires.shape[1]):
        depth[:, j] = (wires[:, :j, j] * (depth[:, :j] + 1)).max(axis=1)
    return depth


def _start(ops: Ops, live: NDArray[np.bool_], depth: Ops) -> Hashes:
    """The colour of every vertex before it knows its neighbours, (n, v)."""
    kind = np.pad(ops + 3, ((0, 0), (1, 1)), constant_values=1)
    kind[:, -1] = 2
    return mix((np.where(live, kind, 0) + (depth << 32)).astype(np.uint64))


def _refine(wires: Wires, colour: Hashes) -> Hashes:
    """Colour refinement (Weisfeiler & Leman, 1968): every vertex takes in the colours of its sources and of its targets, in as
    many rounds as classes can split and one more that lets all know. Colours are hashes, so that sums stand for multisets."""
    weights = wires.transpose(0, 2, 1) * INTO + wires * OUT
    for _ in range(wires.shape[1] - 1):
        colour = mix(colour + np.matmul(weights, colour[:, :, None])[:, :, 0])
    return colour


def hashes(wires: Wires, ops: Ops) -> Hashes:
    """One integer for every graph, (n,), equal for isomorphic living parts. Comparable among graphs of as many vertices."""
    wires, ops, live = prune(wires, ops)
    colour = _refine(wires, _start(ops, live, _depth(wires)))
    return np.asarray(mix(colour).sum(axis=1, dtype=np.uint64))


def canonical(wires: Wires, ops: Ops) -> tuple[Wires, Ops]:
    """One graph for all that are one network: the living vertices by depth, then by colour, then, without edges and with
    operation 0, the dead ones. Idempotent.

    Where vertices share a colour, one of them is set apart and the colours are refined again, until all differ. Which one
    makes no difference if refinement leaves together only what an automorphism exchanges: it does for at most five inner
    vertices; beyond, a few isomorphic graphs of high symmetry may stay apart.
    """
    wires, ops, live = prune(wires, ops)
    depth = _depth(wires)
    colour = _refine(wires, _start(ops, live, depth))
    while True:
        tied = live & ((colour[:, :, None] == colour[:, None, :]).sum(axis=2) > 1)
        rows = np.flatnonzero(tied.any(axis=1))
        if not len(rows):
            break
        some = colour[rows]
        first = np.where(tied[rows], some, np.iinfo(np.uint64).max).argmin(axis=1)
        each = np.arange(len(rows))
        some[each, first] = mix(some[each, first])
        colour[rows] = _refine(wires[rows], some)
    depth[~live] = wires.shape[1]
    depth[:, 0], depth[:, -1] = 0, wires.shape[1] + 1
    order = np.lexsort((colour, depth), axis=1)
    return _moved(wires, ops, order)


def _moved(wires: Wires, ops: Ops, order: NDArray[np.int64]) -> tuple[Wires, Ops]:
    """The graphs with vertex ``order[:, k]`` at place k."""
    row = np.arange(len(wires))[:, None, None]
    inner = order[:, 1:-1] - 1
    return wires[row, order[:, :, None], order[:, None, :]], np.take_along_axis(ops, inner, axis=1)


def loosen(rng: np.random.Generator, wires: Wires, ops: Ops, operations: int) -> tuple[Wires, Ops]:
    """The same networks with their dead vertices at random places, each with a random operation and one random edge: they stay
    dead, since a path through k of them needs k + 1 edges, but one edge more can bring them to life.
    """
    wires, ops, live = prune(wires, ops)
    order = rng.random(ops.shape).argsort(axis=1)
    kept = np.take_along_axis(live[:, 1:-1], order, axis=1)
    order[kept] = np.nonzero(live[:, 1:-1])[1]  # the living ones keep their order
    wires, ops = _moved(wires, ops, np.pad(order + 1, ((0, 0), (1, 1)), constant_values=((0, 0), (0, wires.shape[1] - 1))))
    row, inner = np.nonzero(~kept)
    other = rng.integers(0, wires.shape[1] - 1, len(row))
    other += other > inner  # any vertex but itself, which is inner + 1
    wires[row, np.minimum(inner + 1, other), np.maximum(inner + 1, other)] = True
    return wires, np.where(kept, ops, rng.integers(0, operations, ops.shape))
