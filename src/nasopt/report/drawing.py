"""Drawings of architectures: every cell as a graph (SVG), every other choice as a labelled block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from nasopt.space import on_paths

EDGE = re.compile(r"(\d+)-(\d+)")
NONE = frozenset({"none", "zero", "zeroize", "zeroise"})
STEP, RISE, MARGIN, RADIUS = 118, 34, 40, 15
"""Pixels: between nodes, of an arc for every node it passes, around the drawing, of a node."""


@dataclass(frozen=True)
class Cell:
    """A cell of an architecture: the prefixes of its paths, and the label of every edge (i, j), i < j."""

    names: tuple[str, ...]
    edges: Mapping[tuple[int, int], str]


@dataclass(frozen=True)
class Block:
    """Choices of one prefix that are not edges: their own names and the chosen labels."""

    name: str
    choices: Mapping[str, str] = field(default_factory=dict)


def cells(architecture: Mapping[str, str]) -> list[Cell]:
    """The cells of an architecture, equal ones together.

    Args:
        architecture: path -> label; ``stage1[*]/cell/0-2`` is the edge 0 -> 2 of the cell ``stage1[*]/cell``.
    """
    by_prefix: dict[str, dict[tuple[int, int], str]] = {}
    for path, label in architecture.items():
        prefix, _, last = path.rpartition("/")
        if edge := EDGE.fullmatch(last):
            by_prefix.setdefault(prefix, {})[int(edge[1]), int(edge[2])] = label
    same: dict[tuple[tuple[tuple[int, int], str], ...], list[str]] = {}
    for prefix, edges in by_prefix.items():
        same.setdefault(tuple(sorted(edges.items())), []).append(prefix)
    return [Cell(tuple(names), dict(edges)) for edges, names in same.items()]


def blocks(architecture: Mapping[str, str]) -> list[Block]:
    """The choices that are not edges of a cell, those of one prefix together, in the order of the architecture."""
    out: dict[str, dict[str, str]] = {}
    for path, label in architecture.items():
        prefix, _, last = path.rpartition("/")
        if not EDGE.fullmatch(last):
            out.setdefault(prefix, {})[last] = label
    return [Block(prefix, choices) for prefix, choices in out.items()]


def live(edges: Mapping[tuple[int, int], str]) -> set[tuple[int, int]]:
    """The edges on a path from the first to the last node, removed edges not counted."""
    drawn = [e for e, label in edges.items() if label not in NONE]
    return set(on_paths(drawn, max((j for _, j in edges), default=0)))


def kind(label: str) -> str:
    """The class an operation is coloured by."""
    for word in ("skip", "conv", "pool", "attention"):
        if word in label:
            return word
    return "skip" if label == "identity" else "other"


def svg(cell: Cell) -> str:
    """The cell as SVG: nodes in a row, an arc for every operation; edges that carry nothing to the output are faint."""
    nodes = max((j for _, j in cell.edges), default=0) + 1
    alive = live(cell.edges)
    drawn = {e: label for e, label in sorted(cell.edges.items()) if label not in NONE}
    up = max((_rise(i, j) for i, j in drawn if i % 2 == 0), default=0)
    down = max((_rise(i, j) for i, j in drawn if i % 2 == 1), default=0)
    width, height, base = 2 * MARGIN + (nodes - 1) * STEP, up + down + 2 * MARGIN, up + MARGIN
    lines = [_edge(i, j, label, base, (i, j) in alive) for (i, j), label in drawn.items()]
    return (f'<svg class="cell" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
            f"<title>{escape(description(cell))}</title>{''.join(p for p, _ in lines)}"
            f"{''.join(_node(k, nodes, base) for k in range(nodes))}{''.join(t for _, t in lines)}</svg>")


def description(cell: Cell) -> str:
    """The cell in words, for those who cannot see it."""
    alive = live(cell.edges)
    words = [f"{i} to {j} {label}{'' if (i, j) in alive else ' (dead)'}"
             for (i, j), label in sorted(cell.edges.items()) if label not in NONE]
    return f"Cell {', '.join(cell.names)}: {', '.join(words) or 'no edges'}"


def _rise(i: int, j: int) -> int:
    """How far the arc i -> j leaves the row of nodes; neighbours are joined by a straight line."""
    return 0 if j == i + 1 else (j - i - 1) * RISE + 14


def _edge(i: int, j: int, label: str, base: int, alive: bool) -> tuple[str, str]:
    """The arc and its label. Arcs from even nodes rise, from odd nodes fall, so that no two share a peak."""
    x, end, side = MARGIN + i * STEP, MARGIN + j * STEP, -1 if i % 2 == 0 else 1
    peak = base + side * _rise(i, j)
    bend = base + 2 * side * _rise(i, j)  # a quadratic curve passes half way to its control point
    style = f"op {kind(label)}{'' if alive else ' dead'}"
    middle = (x + end) / 2
    start, stop = (x + RADIUS, end - RADIUS) if j == i + 1 else (x, end)
    return (f'<path class="{style}" d="M{start} {base} Q{middle:g} {bend} {stop} {base}"/>',
            f'<text class="{style}" x="{middle:g}" y="{peak - 5}">{escape(label)}</text>')


def _node(k: int, nodes: int, base: int) -> str:
    x = MARGIN + k * STEP
    name = "in" if k == 0 else "out" if k == nodes - 1 else str(k)
    return f'<circle cx="{x}" cy="{base}" r="{RADIUS}"/><text class="node" x="{x}" y="{base + 4}">{name}</text>'
