"""NAS-Bench-201 (Dong & Yang, ICLR 2020, arXiv 2001.00326): its space, its architecture strings and its networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial as bind

from torch import Tensor, nn

from nasopt.errors import InputError, unknown
from nasopt.nets.graphs import Graph, Wiring
from nasopt.nets.ops import Zero
from nasopt.space import Arch, Cell, Product

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4
CELL = Cell("cell", NODES, OPERATIONS, none="none", skip="skip_connect", rule="nasbench201")
SPACE = Product("", (CELL,))
"""15,625 architectures; the edges are the choices ``cell/0-1``, ``cell/0-2``, ``cell/1-2``, ``cell/0-3``, ..."""


def to_string(arch: Arch) -> str:
    """The published string, e.g. ``|none~0|+|none~0|none~1|+|none~0|none~1|none~2|``.

    Raises:
        InputError: an edge is missing.
    """

    def edge(i: int, j: int) -> str:
        path = f"cell/{i}-{j}"
        if not 0 <= arch.get(path, -1) < len(OPERATIONS):
            raise InputError(
                f"choice {path!r} must be an index 0..{len(OPERATIONS) - 1}: give an architecture of nb201.SPACE."
            )
        return f"{OPERATIONS[arch[path]]}~{i}"

    return "+".join("|" + "|".join(edge(i, j) for i in range(j)) + "|" for j in range(1, NODES))


def from_string(text: str) -> dict[str, int]:
    """The architecture of a published string.

    Raises:
        InputError: ``text`` is not such a string.
    """
    arch: dict[str, int] = {}
    for j, node in enumerate(text.split("+"), 1):
        for i, edge in enumerate(node.strip("|").split("|")):
            label, _, source = edge.partition("~")
            if label not in OPERATIONS:
                raise unknown("NAS-Bench-201 operation", label, OPERATIONS)
            if source != str(i):
                raise InputError(f"{edge!r} in {text!r}: edge {i} of node {j} must end in '~{i}'.")
            arch[f"cell/{i}-{j}"] = OPERATIONS.index(label)
    if list(arch) != [f"cell/{i}-{j}" for i, j in CELL.edges]:
        raise InputError(
            f"{text!r} has other edges than the 6 of NAS-Bench-201: write |op~0|+|op~0|op~1|+|op~0|op~1|op~2|."
        )
    return arch


def _relu_conv_norm(fan_in: int, out: int, kernel: int, stride: int = 1, affine: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(fan_in, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out, affine=affine)
    )


def _factories(channels: int, affine: bool) -> dict[str, Callable[[], nn.Module]]:
    return {
        "none": Zero,
        "skip_connect": nn.Identity,
        "nor_conv_1x1": bind(_relu_conv_norm, channels, channels, 1, affine=affine),
        "nor_conv_3x3": bind(_relu_conv_norm, channels, channels, 3, affine=affine),
        "avg_pool_3x3": bind(nn.AvgPool2d, 3, 1, 1, count_include_pad=False),
    }


class Reduction(nn.Module):
    """The residual block between stages: (n, in, h, w) -> (n, out, h/2, w/2), odd sides rounded up."""

    def __init__(self, fan_in: int, out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(_relu_conv_norm(fan_in, out, 3, 2), _relu_conv_norm(out, out, 3))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(fan_in, out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output plus the shortcut's."""
        return self.shortcut(x) + self.block(x)  # type: ignore[no-any-return]


class NB201(nn.Module):
    """Stem, three stages of cells with a reduction between them, head: (n, in_channels, h, w) -> (n, classes)."""

    def __init__(self, cell: Wiring, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.body = body
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.body(x))  # type: ignore[no-any-return]


def nb201(
    classes: int = 10, channels: int = 16, cells: int = 5, in_channels: int = 3, *, partial: int = 1, affine: bool = True
) -> nn.Module:
    """The published network with the cell as an inline choice that all positions share; its space is `SPACE`.

    Args:
        classes: number of classes.
        channels: width of the first stage (16 in the benchmark); it doubles twice.
        cells: cells per stage (5 in the benchmark).
        in_channels: channels of an image.
        partial: only one in so many channels passes the operations (PC-DARTS): for searching, it is not extracted.
        affine: batch normalisations of the operations scale and shift, as in the benchmark; its searches are without.

    Raises:
        InputError: channels that are not a multiple of ``partial``.
    """
    if partial < 1 or channels < 1 or channels % partial:
        raise InputError(f"{channels} channels of which 1 in {partial} passes the operations: give a multiple of {partial}.")
    cell = Wiring(NODES, OPERATIONS, none="none", skip="skip_connect", rule="nasbench201")
    layers: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
    ]
    for stage in range(3):
        width = channels << stage
        if stage:
            layers.append(Reduction(width // 2, width))
        layers += [Graph(cell, _factories(width // partial, affine), partial=partial) for _ in range(cells)]
    width = channels * 4
    head = nn.Sequential(
        nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )
    return NB201(cell, nn.Sequential(*layers), head)
