"""A hierarchical cell space, for any image size: a macro level (stem, number of stages, cells per stage, widths, how
to reduce, head) over a cell level (a small graph of operations). ResNet-like and plain VGG-like networks are members.

A cell's node is a sum of terms; operations see it through one ReLU per node, skips do not (He et al., ECCV 2016,
identity mappings). So a cell with the one edge input -> output ``conv_3x3`` is a plain convolutional layer, and
``conv_3x3`` on 0-1 and 1-last beside ``skip`` on 0-last is a residual block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from nasopt.errors import InputError, unknown
from nasopt.nets.elastic import Size, Upstream, Width
from nasopt.nets.graphs import Graph, Wiring
from nasopt.nets.ops import OPERATIONS, conv, conv_norm, linear, norm
from nasopt.nets.options import Depth, OneOf

HIDDEN = 64
"""Width of the hidden layer of the head ``hidden``."""


def _reduce_conv(fan_in: Size, out: Size) -> nn.Module:
    return nn.Sequential(nn.ReLU(), conv_norm(fan_in, out, 3, stride=2))


def _reduce_max(fan_in: Size, out: Size) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv_norm(fan_in, out, 1))


def _reduce_none(fan_in: Size, out: Size) -> nn.Module:
    return nn.Sequential(nn.ReLU(), conv_norm(fan_in, out, 1))


REDUCTIONS: dict[str, Callable[[Size, Size], nn.Module]] = {
    "conv": _reduce_conv,
    "max": _reduce_max,
    "none": _reduce_none,
}
"""How a stage may begin: (n, in, h, w) -> (n, out, ceil(h/2), ceil(w/2)); ``none`` keeps h and w."""

HEADS: dict[str, Callable[[Size, int], nn.Module]] = {
    "linear": lambda size, classes: linear(size, classes),
    "hidden": lambda size, classes: nn.Sequential(linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)),
}
"""What follows global average pooling: (n, in) -> (n, classes)."""


class Residual(nn.Module):
    """x + cell(x): whatever the cell chooses, a network sees its input, and sub-networks that share weights agree on what
    a channel means (a supernet of cells without this shortcut learns several times more slowly)."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.cell(x)  # type: ignore[no-any-return]


class Stage(nn.Module):
    """A change of width (and size), then cells of one width: (n, in, h, w) -> (n, width, h', w')."""

    def __init__(self, width: Width, reduce: nn.Module, cell: Wiring | None, cells: Depth) -> None:
        super().__init__()
        self.width = width
        self.reduce = reduce
        self.cell = cell
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        """The last cell's output."""
        return self.cells(self.reduce(x))  # type: ignore[no-any-return]


class CellNet(nn.Module):
    """Stem, stages, head: (n, channels, h, w) -> logits (n, classes). `cells` builds it."""

    def __init__(self, first: Stage, stages: nn.Module, head: nn.Module, out: Size) -> None:
        super().__init__()
        self.first = first
        self.stages = stages
        self.pool = nn.Sequential(norm(out), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.pool(self.stages(self.first(x))))  # type: ignore[no-any-return]


def default_stages(input_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The number of stages: 2 below 16 pixels, 3 below 64, else 4; fewer where less than 2x2 pixels would be left."""
    size = min(input_shape[1:])
    most = 2 if size < 16 else 3 if size < 64 else 4
    fitting = [n for n in range(1, most + 1) if _last_size(size, default_strides(input_shape), n) >= 2]
    return (max(fitting, default=1),)


def default_strides(input_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The stem's strides to choose from: 1 below 16 pixels, 1 or 2 below 64, else 2 or 4."""
    size = min(input_shape[1:])
    return (1,) if size < 16 else (1, 2) if size < 64 else (2, 4)


def default_widths(input_shape: tuple[int, int, int], stages: int) -> tuple[tuple[int, ...], ...]:
    """The widths of every stage: 8 to 32 channels in the first, doubling from stage to stage."""
    first = (8, 12, 16, 24, 32)
    return tuple(tuple(width << stage for width in first) for stage in range(stages))


def _last_size(size: int, strides: Sequence[int], stages: int) -> int:
    for factor in (max(strides), *[2] * (stages - 1)):
        size = -(-size // factor)
    return size


def cells(
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stages: int | Sequence[int] | None = None,
    nodes: int = 3,
    cells_per_stage: Sequence[int] = (1, 2),
    widths: Sequence[Sequence[int]] | None = None,
    operations: Sequence[str] = tuple(OPERATIONS),
    shared: bool = True,
    strides: Sequence[int] | None = None,
    reductions: Sequence[str] = ("conv", "max"),
    heads: Sequence[str] = ("linear",),
) -> nn.Module:
    """The supernet of the cell space; `nasopt.nets.choices.space_of` gives its space.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of classes.
        stages: the number of stages, or the numbers to choose from (default: by the image size, see `default_stages`).
        nodes: nodes of a cell, input and output included.
        cells_per_stage: the numbers of cells to choose from.
        widths: the channels to choose from, for each stage (default: `default_widths`).
        operations: labels of `nasopt.nets.ops.OPERATIONS`.
        shared: the cells of a stage have the same operations (their weights stay their own); otherwise each has its own.
        strides: the stem's strides to choose from, among 1, 2, 4 (default: `default_strides`).
        reductions: how a later stage may begin, labels of `REDUCTIONS`.
        heads: labels of `HEADS`.

    Raises:
        InputError: an unknown label, sizes that would shrink the image below 2x2 pixels, or not one tuple of widths per
            stage.
    """
    counts = (
        default_stages(input_shape)
        if stages is None
        else (stages,)
        if isinstance(stages, int)
        else tuple(sorted(stages))
    )
    strides = default_strides(input_shape) if strides is None else tuple(strides)
    widths = default_widths(input_shape, max(counts, default=1)) if widths is None else widths
    _check(input_shape, classes, counts, strides, widths, operations, reductions, heads)
    wiring = partial(
        Wiring,
        nodes,
        tuple(operations),
        none="none" if "none" in operations else None,
        skip="skip" if "skip" in operations else None,
    )
    sizes = _widths(widths)

    def stage(width: Width, reduce: nn.Module) -> Stage:
        cell = wiring() if shared else None
        graphs = [Residual(_graph(cell or wiring(), width)) for _ in range(max(cells_per_stage))]
        return Stage(width, reduce, cell, Depth(graphs, cells_per_stage))

    first = stage(sizes[0], _one_of({f"stride_{s}": _stem(input_shape[0], sizes[0], s) for s in strides}))
    later = [
        stage(width, _one_of({r: REDUCTIONS[r](Upstream([before]), width) for r in reductions}))
        for before, width in pairwise(sizes)
    ]
    body = Depth(later, [n - 1 for n in counts]) if later else nn.Identity()
    out = Upstream(sizes, body if isinstance(body, Depth) else None)
    return CellNet(first, body, _one_of({h: HEADS[h](out, classes) for h in heads}), out)


def _one_of(options: dict[str, nn.Module]) -> nn.Module:
    return OneOf(options) if len(options) > 1 else next(iter(options.values()))


def _graph(wiring: Wiring, width: Width) -> Graph:
    return Graph(wiring, {label: partial(OPERATIONS[label], width) for label in wiring.cell.operations}, nn.ReLU())


def _stem(channels: int, width: Width, stride: int) -> nn.Module:
    parts: list[nn.Module] = [conv(channels, width, 3, stride=min(stride, 2)), norm(width)]
    return nn.Sequential(*parts, *([nn.MaxPool2d(3, 2, 1)] if stride == 4 else []))


def _widths(widths: Sequence[Sequence[int]]) -> list[Width]:
    """Widths labelled in percent of the stage's largest where all stages have the same percentages, so that stages
    offer equal choices; otherwise by their channels."""
    percent = [tuple(str(round(100 * w / max(options))) for w in sorted(options)) for options in widths]
    same = all(p == percent[0] for p in percent) and len(set(percent[0])) == len(percent[0])
    return [Width(options, percent[0] if same else None) for options in widths]


def _check(
    input_shape: tuple[int, int, int],
    classes: int,
    stages: Sequence[int],
    strides: Sequence[int],
    widths: Sequence[Sequence[int]],
    operations: Sequence[str],
    reductions: Sequence[str],
    heads: Sequence[str],
) -> None:
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InputError(
            f"input_shape {input_shape} is not (channels, height, width) of an image: give three positive ints."
        )
    if classes < 1 or not stages or min(stages) < 1:
        raise InputError(f"classes and stages must be at least 1, got {classes} and {list(stages)}.")
    if len(widths) != max(stages):
        raise InputError(
            f"widths has {len(widths)} entries for up to {max(stages)} stages: give one tuple of channels per stage."
        )
    for kind, given, valid in (
        ("operation", operations, OPERATIONS),
        ("reduction", reductions, REDUCTIONS),
        ("head", heads, HEADS),
    ):
        for name in given:
            if name not in valid:
                raise unknown(kind, name, valid)
        if not given:
            raise InputError(f"no {kind} is given: name at least one of {', '.join(valid)}.")
    if not strides or not set(strides) <= {1, 2, 4}:
        raise InputError(f"strides {list(strides)}: choose among 1, 2 and 4.")
    size = min(input_shape[1:])
    if max(strides) * 2 ** (max(stages) - 1) > 1 and _last_size(size, strides, max(stages)) < 2:
        raise InputError(
            f"{max(stages)} stages after a stem of stride {max(strides)} shrink images of {size} pixels below 2x2: use "
            "fewer stages or a smaller stride."
        )
