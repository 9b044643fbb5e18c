"""A space of networks that train in seconds, in the regime of Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv
2404.00498): a first layer of few channels, three or four stages of convolutions with early pooling, a scaled head. Every
convolution that is trained is normalised and no path is dead, so that all members train well with one recipe.

A stage begins with a convolution that changes the width (and the size, before anything is normalised) and goes on with blocks
of one kind. `airbench94`, `airbench96`, `resnet18` and `mobilenetv2` are the members that are nearest to networks designed by
hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from nasopt import space as spaces
from nasopt.errors import InputError
from nasopt.nets import choices, elastic
from nasopt.nets.elastic import KernelSize, Size, Upstream, Width
from nasopt.nets.ops import conv, conv_norm, linear, norm
from nasopt.nets.options import Depth, OneOf
from nasopt.nets.whitening import Whitening
from nasopt.spaces.designed import Residual

WIDTHS = (64, 256, 256, 256)
"""Channels of the widest stages."""

PERCENT = (6.25, 12.5, 18.75, 25, 37.5, 50, 75, 100)
"""The widths to choose from, in percent of these, the same for every stage."""

WIDER = (150, 200)
"""More of them, for networks that need a GPU."""

EXPANSION = 4
"""How much wider a ``mobile`` block is inside."""

LEAST = 4
"""Pixels that an image has at least."""

SCALES: Mapping[str, float] = {"x1": 1.0, "x0.33": 1 / 3, "x0.11": 1 / 9}
"""What the logits are multiplied by (1/9: arXiv 2404.00498, §3.1)."""


class Even(nn.Module):
    """Leaves out the last row and column of 7, 9, 11, ... pixels, as pooling without padding does; of fewer all are kept."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h', w')."""
        height, width = (size - (size > 6 and size % 2) for size in x.shape[2:])
        return x[:, :, :height, :width]


class Peak(nn.Module):
    """Global maximum pooling: (n, c, h, w) -> (n, c, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """The maxima."""
        return x.amax((2, 3), keepdim=True)


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x * self.factor

    def extra_repr(self) -> str:
        """The factor."""
        return f"{self.factor:g}"


class Mobile(nn.Module):
    """Blocks whose depthwise convolutions have one kernel size: (n, width, h, w) -> the same."""

    def __init__(self, kernel: KernelSize, depth: Depth) -> None:
        super().__init__()
        self.kernel = kernel
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """The last block's output."""
        return self.depth(x)  # type: ignore[no-any-return]


class Stage(nn.Module):
    """(n, in, h, w) -> (n, width, h', w')."""

    def __init__(self, width: Width, enter: nn.Module, blocks: nn.Module) -> None:
        super().__init__()
        self.width = width
        self.enter = enter
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        """The last block's output."""
        return self.blocks(self.enter(x))  # type: ignore[no-any-return]


class Fast(nn.Module):
    """First layer and stages, pooling, head: (n, channels, h, w) -> logits (n, classes). `fast` builds it."""

    def __init__(self, activation: nn.Module, first: Stage, stages: nn.Module, head: nn.Sequential) -> None:
        super().__init__()
        self.activation = activation
        self.first = first
        self.stages = stages
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.stages(self.first(x)))  # type: ignore[no-any-return]


def reduction(input_shape: tuple[int, int, int]) -> int:
    """By how much every first layer reduces the image: not below 64 pixels, by 2 below 128, else by 4."""
    size = min(input_shape[1:])
    return 1 if size < 64 else 2 if size < 128 else 4


def stage_counts(input_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The numbers of stages to choose from: the largest, 4 at most, that leaves 2x2 pixels whatever else is chosen, and one fewer
    if that is 3 or 4."""
    size, most = min(input_shape[1:]) // reduction(input_shape) - 1, 0
    while most < len(WIDTHS) and size > 2:
        size, most = size // 2 if size > 6 else -(-size // 2), most + 1
    most = max(1, most)
    return (most - 1, most) if most > 2 else (most,)


def fast(input_shape: tuple[int, int, int], classes: int, *, widths: Sequence[int] = WIDTHS,
         percent: Sequence[float] = PERCENT) -> Fast:
    """The supernet of the space; `nasopt.nets.choices.space_of` gives its space.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of classes.
        widths: channels of the stages, multiples of 8, as many as there can be stages at least.
        percent: what can be chosen, in percent of these widths.

    Raises:
        InputError: images below 4x4 pixels, no class, or widths that do not fit.
    """
    if len(input_shape) != 3 or input_shape[0] < 1 or min(input_shape[1:]) < LEAST:
        raise InputError(f"input_shape {input_shape}: give (channels, height, width), with {LEAST} pixels a side at least.")
    counts = stage_counts(input_shape)
    if classes < 1 or len(widths) < counts[-1] or any(w < 8 or w % 8 for w in widths):
        raise InputError(f"{classes} classes and widths {list(widths)}: give at least 1 class and {counts[-1]} multiples of 8.")
    act = OneOf({"relu": nn.ReLU(), "gelu": nn.GELU()})
    sizes = [_width(w, percent) for w in widths[:counts[-1]]]
    first = Stage(sizes[0], _starts(input_shape, sizes[0], act), _blocks(sizes[0], act))
    later = [Stage(now, OneOf({label: ENTRIES[label](Upstream([before]), now, act) for label in ("max", "conv")}),
                   _blocks(now, act)) for before, now in pairwise(sizes)]
    stages = Depth(later, [n - 1 for n in counts]) if later else nn.Identity()
    out = Upstream(sizes, stages if isinstance(stages, Depth) else None)
    head = nn.Sequential()
    head.add_module("pool", OneOf({"avg": nn.AdaptiveAvgPool2d(1), "max": Peak()}))
    head.add_module("flat", nn.Flatten())
    head.add_module("linear", linear(out, classes))
    head.add_module("scale", OneOf({label: Scale(factor) for label, factor in SCALES.items()}))
    return Fast(act, first, stages, head)


def _width(full: int, percent: Sequence[float]) -> Width:
    """Multiples of 8, labelled in percent; where two are the same the smaller percentage is left out."""
    sizes = {max(8, round(full * p / 800) * 8): str(round(p)) for p in percent}
    return Width(list(sizes), [sizes[size] for size in sorted(sizes)])


def _starts(input_shape: tuple[int, int, int], width: Width, act: nn.Module) -> nn.Module:
    """First layer and entrance to the first stage. A first layer has 8 channels for each of the image's; that of ``patches`` is
    not trained but learned from the images (`Whitening`), so that nothing has to be normalised after it."""
    channels, by = input_shape[0], reduction(input_shape)
    few = 8 * channels
    layers: Mapping[str, nn.Module] = {
        "plain": nn.Conv2d(channels, few, 2 * by + 1, by, by, bias=False),
        "patches": Whitening(channels, 2 * by, by, few // 2),
        "strided": nn.Conv2d(channels, few, 2 * by + 1, 2 * by, by, bias=False),
    }
    entries = {label: ["none"] if label == "strided" else list(ENTRIES) for label in layers}

    def start(label: str) -> nn.Module:
        options = {entry: ENTRIES[entry](few, width, act) for entry in entries[label]}
        module = nn.Sequential(layers[label], *([] if label == "patches" else [nn.BatchNorm2d(few)]), act)
        module.add_module("enter", OneOf(options) if len(options) > 1 else next(iter(options.values())))
        return module

    return OneOf({label: start(label) for label in layers})


def _enter(fan_in: Size, out: Size, act: nn.Module, reduce: Sequence[nn.Module] = ()) -> nn.Module:
    entrance = nn.Sequential()
    entrance.add_module("conv", elastic.Conv2d(fan_in, out, KernelSize([1, 3]), bias=False))
    return entrance.extend([*reduce, norm(out), act])


ENTRIES: Mapping[str, Callable[[Size, Size, nn.Module], nn.Module]] = {
    "max": lambda fan_in, out, act: _enter(fan_in, out, act, [Even(), nn.MaxPool2d(2, ceil_mode=True)]),
    "conv": lambda fan_in, out, act: nn.Sequential(Even(), conv_norm(fan_in, out, 3, stride=2), act),
    "none": lambda fan_in, out, act: _enter(fan_in, out, act),
}
"""How a stage begins: (n, in, h, w) -> (n, out, h', w'), of one size for ``max`` and ``conv``; ``none``, which is for the first
stage only, keeps h and w."""


def _blocks(width: Width, act: nn.Module) -> nn.Module:
    """The rest of a stage: blocks of one kind, (n, width, h, w) -> the same."""
    kernel = KernelSize([3, 5])
    plain = [nn.Sequential(conv_norm(width, width, 3), act) for _ in range(3)]
    residual = [Residual(nn.Sequential(conv_norm(width, width, 3), act, conv_norm(width, width, 3)), nn.Identity(), act)
                for _ in range(2)]
    mobile = [_mobile(width, kernel, act) for _ in range(3)]
    return OneOf({"plain": Depth(plain, [1, 2, 3]), "residual": Depth(residual, [1, 2]),
                  "mobile": Mobile(kernel, Depth(mobile, [1, 2, 3]))})


def _mobile(width: Width, kernel: KernelSize, act: nn.Module) -> nn.Module:
    """An inverted bottleneck with its shortcut (Sandler et al., MobileNetV2, CVPR 2018)."""
    inside = width * EXPANSION
    block = nn.Sequential(conv(width, inside, 1), norm(inside), act,
                          elastic.Conv2d(inside, inside, kernel, groups=inside, bias=False), norm(inside), act,
                          conv(inside, width, 1), norm(width))
    return Residual(block, nn.Identity(), nn.Identity())


# --------------------------------------------------------------------------------------------------------------- members
@dataclass(frozen=True)
class Part:
    """A stage of a member: its width in percent, how it begins, the kind and number of its blocks, and the kernels of its first
    and of its depthwise convolutions."""

    percent: int
    enter: str
    kind: str
    depth: int
    kernel: int = 3
    depthwise: int = 3


def member(net: Fast, start: str, parts: Sequence[Part], activation: str, pool: str, scale: str) -> dict[str, int]:
    """The architecture of these stages.

    Raises:
        InputError: images are too small for so many stages, or the space has no stages that are so wide.
    """
    counts = [n + 1 for n in net.stages.sizes] if isinstance(net.stages, Depth) else [1]
    if len(parts) not in counts:
        raise InputError(f"a network of {len(parts)} stages is no member: images of this size allow for "
                         f"{' or '.join(map(str, counts))}; use larger ones.")
    widest = max(part.percent for part in parts)
    if str(widest) not in net.first.width.labels:
        raise InputError(f"a network with stages of {widest} % is no member: take the space fast-wide.")
    words = {"activation": activation, "head/pool": pool, "head/scale": scale, "first/enter": start}
    if len(counts) > 1:
        words["stages"] = str(len(parts) - 1)
    for k, part in enumerate(parts):
        stage = f"stages[{k - 1}]" if k else "first"
        words |= {f"{stage}/width": str(part.percent), f"{stage}/blocks": part.kind}
        enter = f"{stage}/enter" if k else f"first/enter={start}/enter"
        if start != "strided" or k:
            words[enter] = part.enter
            enter += f"={part.enter}"
        if part.enter != "conv":
            words[f"{enter}/conv/kernel"] = str(part.kernel)
        blocks = f"{stage}/blocks={part.kind}"
        words[f"{blocks}/depth"] = str(part.depth)
        if part.kind == "mobile":
            words[f"{blocks}/kernel"] = str(part.depthwise)
    return spaces.from_labels(choices.space_of(net), words)


def airbench94(net: Fast) -> dict[str, int]:
    """Jordan's airbench94 (arXiv 2404.00498, §3.1): whitened 2x2 patches, three stages of two 3x3 convolutions of 64, 256 and 256
    channels, maximum pooling, GELU, logits divided by 9. Here every normalisation has a scale, and the last layer a bias.

    Raises:
        InputError: images too small for three stages.
    """
    return member(net, "patches", [Part(100, "max", "plain", 1)] * 3, "gelu", "max", "x0.11")


def airbench96(net: Fast) -> dict[str, int]:
    """Jordan's airbench96 (arXiv 2404.00498): airbench94 with twice as many channels and, in each stage, a third convolution and
    a shortcut around the last two. A member of ``fast-wide``.

    Raises:
        InputError: images too small for three stages, or a space without such widths.
    """
    return member(net, "patches", [Part(200, "max", "residual", 1)] * 3, "gelu", "max", "x0.11")


def resnet18(net: Fast) -> dict[str, int]:
    """ResNet-18 for 32x32 images (He et al., CVPR 2016): four stages of two basic blocks, the first of which keeps the size. Here
    a plain convolution changes width and size before the two blocks of each stage, the first layer has 24 channels instead of
    64, and the last stage 256 instead of 512.

    Raises:
        InputError: images too small for four stages.
    """
    first = Part(100, "none", "residual", 2)
    return member(net, "plain", [first, *(Part(p, "conv", "residual", 2) for p in (50, 100, 100))], "relu", "avg", "x1")


def mobilenetv2(net: Fast) -> dict[str, int]:
    """MobileNetV2 for 32x32 images (Sandler et al., CVPR 2018): inverted bottlenecks with shortcuts. Here they are expanded by 4
    instead of 6, a stage begins with a pointwise or strided convolution instead of a strided bottleneck, ReLU has no upper limit,
    and no last layer widens the features.

    Raises:
        InputError: images too small for four stages.
    """
    later = [Part(percent, "conv", "mobile", depth) for percent, depth in ((12, 3), (25, 3), (50, 2))]
    return member(net, "plain", [Part(25, "none", "mobile", 1, kernel=1), *later], "relu", "avg", "x1")
