"""The space of DARTS (Liu, Simonyan & Yang, ICLR 2019, arXiv 1806.09055): its genotypes and its networks.

A network is a chain of cells, a third of the way and two thirds of the way with a reduction cell. A cell has two inputs, the
outputs of the two cells before, and four inner nodes, each the sum of two operations on earlier nodes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import partial as bind
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasopt.errors import InputError, unknown
from nasopt.nets.graphs import PairGraph, Pairs, pairs_below
from nasopt.space import Arch, Product

OPERATIONS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
INPUTS, NODES = 2, 4
INNER = range(INPUTS, INPUTS + NODES)
KINDS = ("normal", "reduce")


def _pairs() -> Pairs:
    return Pairs(INPUTS, NODES, OPERATIONS, none="none", skip="skip_connect")


SPACE = Product("", [_pairs().space(kind) for kind in KINDS])
"""(1 · 3 · 6 · 10 · 49⁴)² = 1.08e18 architectures. Node j of 2 to 5 has the choices ``normal/j-inputs``, ``normal/j-first`` and
``normal/j-second``; the same for ``reduce``."""


# ------------------------------------------------------------------------------------------------------------ genotypes
class Genotype(NamedTuple):
    """The published form: for every inner node in turn two pairs of an operation and its source, and the nodes that the output
    is made of. Its ``repr`` is the published text."""

    normal: Sequence[tuple[str, int]]
    normal_concat: Sequence[int]
    reduce: Sequence[tuple[str, int]]
    reduce_concat: Sequence[int]


def to_genotype(arch: Arch) -> Genotype:
    """The genotype of an architecture; of a node's two operations the one on the lower source comes first.

    Raises:
        InputError: a choice is missing or out of range.
    """

    def edges(kind: str) -> list[tuple[str, int]]:
        found = []
        for j in INNER:
            below = pairs_below(j)
            pair = below[_option(arch, f"{kind}/{j}-inputs", len(below))]
            for place, source in zip(("first", "second"), pair, strict=True):
                found.append((OPERATIONS[_option(arch, f"{kind}/{j}-{place}", len(OPERATIONS))], source))
        return found

    return Genotype(edges("normal"), list(INNER), edges("reduce"), list(INNER))


def _option(arch: Arch, path: str, count: int) -> int:
    if not 0 <= arch.get(path, -1) < count:
        raise InputError(f"choice {path!r} must be an index 0..{count - 1}: give an architecture of darts.SPACE.")
    return arch[path]


def from_genotype(genotype: Genotype) -> dict[str, int]:
    """The architecture of a genotype, whose order of a node's two operations is free.

    Raises:
        InputError: not two operations for each of four nodes, an operation that is not of the space, sources of a node that are
            not two distinct earlier ones, or an output that is not made of all four nodes.
    """
    arch = dict[str, int]()
    for kind, edges, concat in (("normal", genotype.normal, genotype.normal_concat),
                                ("reduce", genotype.reduce, genotype.reduce_concat)):
        if len(edges) != 2 * NODES:
            raise InputError(f"the genotype's {kind} cell has {len(edges)} operations: give two for each of {NODES} nodes.")
        if list(concat) != list(INNER):
            raise InputError(f"the output of the genotype's {kind} cell is made of the nodes {list(concat)}: it must be made of "
                             f"{list(INNER)}.")
        for j, start in zip(INNER, range(0, 2 * NODES, 2), strict=True):
            (first, a), (second, b) = sorted(edges[start:start + 2], key=lambda edge: edge[1])
            for label in (first, second):
                if label not in OPERATIONS:
                    raise unknown("DARTS operation", label, OPERATIONS)
            if (a, b) not in pairs_below(j):
                raise InputError(f"node {j} of the genotype's {kind} cell has the sources {a} and {b}: give two distinct ones of "
                                 f"0..{j - 1}.")
            arch |= {f"{kind}/{j}-inputs": pairs_below(j).index((a, b)), f"{kind}/{j}-first": OPERATIONS.index(first),
                     f"{kind}/{j}-second": OPERATIONS.index(second)}
    return arch


def parse(text: str) -> Genotype:
    """The genotype of the published text, ``Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, 3, 4, 5],
    reduce=[...], reduce_concat=range(2, 6))``. Nothing is executed.

    Raises:
        InputError: the text has another form.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or ast.unparse(call.func) != "Genotype":
            raise ValueError("it is not a call of Genotype with named arguments")
        given = {str(word.arg): word.value for word in call.keywords}
        if len(given) != len(call.keywords) or set(given) != set(Genotype._fields):
            raise ValueError(f"its arguments are {list(given)}")
        cells = [_edges(ast.literal_eval(given[kind])) for kind in KINDS]
        outputs = [_numbers(given[f"{kind}_concat"]) for kind in KINDS]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as problem:
        raise InputError(f"{text[:80]!r} is not a published genotype ({problem}): write Genotype(normal=[('sep_conv_3x3', 0), "
                         "...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6)).") from None
    return Genotype(cells[0], outputs[0], cells[1], outputs[1])


def _edges(value: object) -> list[tuple[str, int]]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is not a list of operations and sources")
    found = []
    for edge in value:
        if not (isinstance(edge, (list, tuple)) and len(edge) == 2 and isinstance(edge[0], str) and type(edge[1]) is int):
            raise ValueError(f"{edge!r} is not an operation and its source")
        found.append((edge[0], edge[1]))
    return found


def _numbers(node: ast.expr) -> list[int]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range" and len(node.args) == 2 and not node.keywords:
        ends = [ast.literal_eval(word) for word in node.args]
        if all(type(end) is int and abs(end) < 100 for end in ends):
            return list(range(*ends))
        raise ValueError(f"{ast.unparse(node)} is not a range of nodes")
    value = ast.literal_eval(node)
    if isinstance(value, (list, tuple)) and all(type(number) is int for number in value):
        return list(value)
    raise ValueError(f"{value!r} is not a list of nodes")


# ------------------------------------------------------------------------------------------------------------- networks
class FactorizedReduction(nn.Module):
    """Half the size without losing a position: two 1x1 convolutions of stride 2, one of them shifted by a pixel, side by side,
    and a normalisation: (n, in, h, w) -> (n, out, ⌈h/2⌉, ⌈w/2⌉)."""

    def __init__(self, fan_in: int, out: int, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(fan_in, out // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(fan_in, out - out // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """The rectified input at half the size."""
        x = functional.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(functional.pad(x, (-1, 1, -1, 1)))], 1))  # type: ignore[no-any-return]


def _separable(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """Depthwise, pointwise, normalisation."""
    return [nn.Conv2d(channels, channels, kernel, stride, dilation * (kernel // 2), dilation, channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=affine)]


def _twice_separable(channels: int, kernel: int, affine: bool, stride: int) -> nn.Module:
    return nn.Sequential(*_separable(channels, kernel, stride, 1, affine), nn.ReLU(), *_separable(channels, kernel, 1, 1, affine))


def _dilated(channels: int, kernel: int, affine: bool, stride: int) -> nn.Module:
    return nn.Sequential(*_separable(channels, kernel, stride, 2, affine))


def _pooled(kind: type[nn.MaxPool2d] | type[nn.AvgPool2d], channels: int, stride: int) -> nn.Module:
    pool = nn.MaxPool2d(3, stride, 1) if kind is nn.MaxPool2d else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False))


def _skip(channels: int, affine: bool, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduction(channels, channels, affine)


RAW = ("max_pool_3x3", "avg_pool_3x3", "skip_connect")
"""Operations that do not begin with a rectification (a factorised reduction has its own)."""


def _operations(channels: int, affine: bool) -> Mapping[str, Callable[[int], nn.Module]]:
    """Label -> factory of a module at a stride. The convolutions find their input rectified."""
    return {
        "max_pool_3x3": bind(_pooled, nn.MaxPool2d, channels),
        "avg_pool_3x3": bind(_pooled, nn.AvgPool2d, channels),
        "skip_connect": bind(_skip, channels, affine),
        "sep_conv_3x3": bind(_twice_separable, channels, 3, affine),
        "sep_conv_5x5": bind(_twice_separable, channels, 5, affine),
        "dil_conv_3x3": bind(_dilated, channels, 3, affine),
        "dil_conv_5x5": bind(_dilated, channels, 5, affine),
    }


class Cell(nn.Module):
    """Both inputs are brought to the cell's width and to one size, then combined."""

    def __init__(self, before_last: nn.Module, last: nn.Module, graph: PairGraph) -> None:
        super().__init__()
        self.before_last = before_last
        self.last = last
        self.graph = graph

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        """The outputs of the two cells before -> this one's."""
        return self.graph(self.before_last(before_last), self.last(last))  # type: ignore[no-any-return]


class DARTS(nn.Module):
    """Stem, cells, head: (n, in_channels, h, w) -> (n, classes). Made by `darts`."""

    def __init__(self, normal: Pairs, reduce: Pairs, stem: nn.Module, cells: Sequence[Cell], head: nn.Module) -> None:
        super().__init__()
        self.normal = normal
        self.reduce = reduce
        self.stem = stem
        self.cells = nn.ModuleList(cells)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.head(last)  # type: ignore[no-any-return]


STEM = 3
"""How many times wider than the first cell the stem is."""


def darts(classes: int = 10, channels: int = 16, layers: int = 8, in_channels: int = 3, partial: int = 1, *,
          affine: bool = True) -> DARTS:
    """The network with its two cells as inline choices that all their positions share; its space is `SPACE`.

    Pools are followed by a normalisation, as in the published search network (the published final one has none there). There is
    no auxiliary head and no path is dropped.

    Args:
        classes: number of classes.
        channels: width of the first cells' nodes; every reduction cell doubles it.
        layers: number of cells, at least 3; numbers layers // 3 and 2 · layers // 3 are the reduction cells.
        in_channels: channels of an image.
        partial: only one in so many channels passes the operations (PC-DARTS; 4 there): for searching, it is not extracted.
        affine: batch normalisations in the cells scale and shift. The published search is without, so that a mixture's weights
            alone say how strong an operation is.

    Raises:
        InputError: fewer than 3 layers, or channels that are not a multiple of 2 · ``partial``.
    """
    if layers < 3:
        raise InputError(f"a DARTS network of {layers} layers lacks one of its two kinds of cells: give at least 3 layers.")
    if partial < 1 or channels < 1 or channels % (2 * partial):
        raise InputError(f"{channels} channels of which 1 in {partial} passes the operations: give a multiple of {2 * partial}.")
    kinds = {False: _pairs(), True: _pairs()}
    width, before_last, last = channels, STEM * channels, STEM * channels
    stem = nn.Sequential(nn.Conv2d(in_channels, last, 3, padding=1, bias=False), nn.BatchNorm2d(last))
    cells, halved = list[Cell](), False
    for layer in range(layers):
        reduction = layer in (layers // 3, 2 * layers // 3)
        width *= 1 + reduction
        inputs = (FactorizedReduction(before_last, width, affine) if halved else _pointwise(before_last, width, affine),
                  _pointwise(last, width, affine))
        graph = PairGraph(kinds[reduction], _operations(width // partial, affine), nn.ReLU(), RAW, 1 + reduction, partial)
        cells.append(Cell(*inputs, graph))
        before_last, last, halved = last, NODES * width, reduction
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))
    return DARTS(kinds[False], kinds[True], stem, cells, head)


def _pointwise(fan_in: int, out: int, affine: bool) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(fan_in, out, 1, bias=False), nn.BatchNorm2d(out, affine=affine))
