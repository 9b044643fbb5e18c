"""What every inline choice is (`Choosing`), and the choices between modules: `OneOf`, `DifferentiableOp`, `Depth`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from nasopt.errors import InputError

MIXED = -1
"""The option of a differentiable choice that is a mixture of all its operations."""


@dataclass(frozen=True, eq=False)
class Mix:
    """How a choice mixes its options while they are relaxed (`nasopt.nets.relaxed.mixed` sets it).

    Attributes:
        weights: (rows, options), with their gradients; a `Wiring` and `Pairs` have a row per edge, all others have one.
        live: of every row, the options that are computed; the others have weight 0.
        bypass: how much of its input is added to the output of every mixture of operations that keeps the shape (DARTS−, Chu et
            al., ICLR 2021).
        edges: of a `Wiring` or `Pairs`, what each edge is multiplied by, (rows,) (edge normalisation, Xu et al., PC-DARTS, ICLR
            2020).
        dropout: of a `Wiring` or `Pairs`, what the outputs of identical skip connections pass; None: nothing (Chen et al.,
            P-DARTS, ICCV 2019).
    """

    weights: Tensor
    live: tuple[tuple[int, ...], ...]
    bypass: float = 0.0
    edges: Tensor | None = None
    dropout: Callable[[Tensor], Tensor] | None = None


class Choosing(nn.Module):
    """A choice. ``chosen`` holds one option index per slot (a `Wiring` has a slot per edge, `Pairs` have three per node, all
    others have one); where it is `MIXED`, ``mix`` says how."""

    def __init__(self, chosen: Sequence[int]) -> None:
        super().__init__()
        self.chosen = list(chosen)
        self.mix: Mix | None = None

    def select(self, slot: int, option: int) -> None:
        """Makes ``option`` the active one."""
        self.chosen[slot] = option


def last_option(choice: Choosing) -> int:
    """The active option; of a mixture the last one that is computed."""
    if choice.chosen[0] != MIXED:
        return choice.chosen[0]
    assert choice.mix is not None
    return max(choice.mix.live[0])


def legal(text: str) -> str:
    """A label without the signs that have a meaning in a path."""
    return re.sub(r"[/=\[\]]", "_", text)


def _kind(module: nn.Module) -> str:
    parts = [_kind(child) for child in islice(module.children(), 3)] if isinstance(module, nn.Sequential) else []
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return f"{type(module).__name__}_{'x'.join(map(str, module.kernel_size))}"
    return "-".join(parts) or type(module).__name__


def _labelled(what: str, options: Mapping[str, nn.Module] | Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Options with legal, distinct labels; those of a list are named after their modules."""
    if isinstance(options, Mapping):
        named = {legal(label): module for label, module in options.items()}
        if len(named) < len(options):
            raise InputError(
                f"{what}: two of the labels {list(options)} are equal after '/', '=', '[' and ']' became '_': "
                "rename one."
            )
    else:
        named = {}
        for module in options:
            stem = legal(_kind(module))
            label = next(name for name in (stem, *(f"{stem}_{k}" for k in range(2, len(options) + 2))) if name not in named)
            named[label] = module
    if not named:
        raise InputError(f"{what} has no options: give at least one module.")
    for label, module in named.items():
        if not isinstance(module, nn.Module):
            raise InputError(f"{what}: option {label!r} is a {type(module).__name__}: give an nn.Module.")
    return named


class OneOf(Choosing):
    """One of several modules; only the active one (at first: the first) runs. Options may contain choices of their own.

    Args:
        options: label -> module, or a list of modules (labelled by their types).

    Raises:
        InputError: no option, or one that is not a module.
    """

    def __init__(self, options: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__([0])
        named = _labelled("OneOf", options)
        self.labels = tuple(named)
        self.options = nn.ModuleList(named.values())

    def forward(self, x: Tensor) -> Tensor:
        """The active option's output, or the mixture of all."""
        if self.chosen[0] != MIXED:
            return self.options[self.chosen[0]](x)  # type: ignore[no-any-return]
        assert self.mix is not None
        return _mixture_of(self.options, self.labels, x, self.mix)


class DifferentiableOp(Choosing):
    """One of several operations, or their mixture: as long as no option is active (at first, and after `relax`) the
    output is sum_o softmax(alpha)_o · o(x) (DARTS, Liu et al., ICLR 2019, eq. 2). All outputs must have one shape.

    Args:
        operations: label -> module, or a list of modules (labelled by their types).

    Attributes:
        alpha: the architecture parameters, shape (operations,), zero at first.

    Raises:
        InputError: no operation, or one that is not a module; in ``forward``, an output of another shape.
    """

    def __init__(self, operations: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__([MIXED])
        named = _labelled("DifferentiableOp", operations)
        self.labels = tuple(named)
        self.options = nn.ModuleList(named.values())
        self.alpha = nn.Parameter(torch.zeros(len(named)))

    def forward(self, x: Tensor) -> Tensor:
        """The active operation's output, or the mixture."""
        if self.chosen[0] != MIXED:
            return self.options[self.chosen[0]](x)  # type: ignore[no-any-return]
        everything = (tuple(range(len(self.labels))),)
        return _mixture_of(self.options, self.labels, x, self.mix or Mix(torch.softmax(self.alpha, 0)[None], everything))


def _mixture_of(options: nn.ModuleList, labels: Sequence[str], x: Tensor, mix: Mix) -> Tensor:
    """The mixture of the live options' outputs for one input."""
    live = mix.live[0]
    total = mixture([mix.weights[0, k] for k in live], [unchanged(options[k], x) for k in live], [labels[k] for k in live])
    return total + mix.bypass * x if mix.bypass and x.shape == total.shape else total


def unchanged(module: nn.Module, x: Tensor) -> Tensor:
    """A module's output for ``x``, which others need after it: a copy is given to one with layers that work in place."""
    y: Tensor = module(x.clone() if _in_place(module) else x)
    return y


def harmless(module: nn.Module) -> nn.Module:
    """A module that does what `unchanged` does; layers are looked at now, so that a forward pass need not."""
    return OnCopy(module) if _in_place(module) else module


class OnCopy(nn.Module):
    """A module that is given a copy of its input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Shapes are those of the module."""
        return self.module(x.clone())  # type: ignore[no-any-return]


def _in_place(module: nn.Module) -> bool:
    """Whether a layer of it works in place."""
    return any(getattr(m, "inplace", False) for m in module.modules())


def mixture(weights: Sequence[Tensor], outputs: Sequence[Tensor], labels: Sequence[str]) -> Tensor:
    """sum_o weights[o] · outputs[o].

    Raises:
        InputError: an output's shape differs from the first one's.
    """
    for label, output in zip(labels, outputs, strict=True):
        if output.shape != outputs[0].shape:
            raise InputError(
                f"operation {label!r} returns the shape {tuple(output.shape)} but {labels[0]!r} returns "
                f"{tuple(outputs[0].shape)}: operations that are mixed must return one shape."
            )
    total = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total + weight * output
    return total


def increasing(what: str, options: Sequence[int], least: int) -> tuple[int, ...]:
    """The options in order.

    Raises:
        InputError: there are none, one is there twice or below ``least``; it begins with ``what``.
    """
    values = tuple(options)
    if not values or len(set(values)) < len(values) or min(values) < least:
        raise InputError(f"{what}: the options must be distinct integers of at least {least}, got {list(values)}.")
    return tuple(sorted(values))


class Depth(Choosing):
    """The first d of several blocks, d being the choice (at first the largest).

    In the space: a `Repeat` if all blocks have equal sub-spaces, otherwise a `Choice` of d with the blocks' choices
    below it.

    Args:
        blocks: modules, each fed with the one before.
        options: the depths to choose from, 0 (nothing: the input is returned) allowed.
        shared: the blocks make the same choices (their weights stay their own).

    Raises:
        InputError: a depth of more blocks than there are; in `space_of`, shared blocks with different sub-spaces.
    """

    def __init__(self, blocks: Sequence[nn.Module], options: Sequence[int], shared: bool = False) -> None:
        self.sizes = increasing("Depth", options, 0)
        super().__init__([len(self.sizes) - 1])
        if self.sizes[-1] != len(blocks):
            raise InputError(
                f"Depth: the largest of the options {list(self.sizes)} must be the number of blocks, {len(blocks)}."
            )
        self.blocks = nn.ModuleList(blocks)
        self.labels = tuple(str(size) for size in self.sizes)
        self.shared = shared

    @property
    def value(self) -> int:
        """The active number of blocks; of a mixture the largest that is computed."""
        return self.sizes[last_option(self)]

    def forward(self, x: Tensor) -> Tensor:
        """The output of block ``value``, or the mixture of the outputs after each number of blocks."""
        outputs = {0: x}
        for number, block in enumerate(islice(self.blocks, self.value), 1):
            outputs[number] = x = unchanged(block, x) if self.chosen[0] == MIXED else block(x)
        if self.chosen[0] != MIXED:
            return x
        assert self.mix is not None
        live = self.mix.live[0]
        return mixture([self.mix.weights[0, k] for k in live], [outputs[self.sizes[k]] for k in live],
                       [f"{self.labels[k]} blocks" for k in live])
