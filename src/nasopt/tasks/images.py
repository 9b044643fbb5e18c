"""Arrays of images and their layouts."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Layout: TypeAlias = Literal["NHW", "NHWC", "NCHW"]
"""The order of a batch's axes: sample, height, width and, but for NHW (one channel), channel."""

LAYOUTS: Final[tuple[Layout, ...]] = ("NHW", "NHWC", "NCHW")


def guess_layout(shape: tuple[int, ...]) -> Layout | None:
    """The layout of a batch of images of this shape, or None where the shape alone does not tell.

    Two rules vote on four axes: 1 to 4 channels are usual, and images are usually square.

    >>> [guess_layout(shape) for shape in [(9, 28, 28), (9, 3, 32, 48), (9, 64, 64, 12), (9, 3, 3, 3)]]
    ['NHW', 'NCHW', 'NHWC', None]
    """
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        return None
    _, a, b, c = shape
    few: set[Layout] = _layouts(channels_last=c <= 4, channels_first=a <= 4)
    square: set[Layout] = _layouts(channels_last=a == b, channels_first=b == c)
    both = few & square if few and square else few | square
    return both.pop() if len(both) == 1 else None


def _layouts(channels_last: bool, channels_first: bool) -> set[Layout]:
    found: set[Layout] = set()
    if channels_last:
        found.add("NHWC")
    if channels_first:
        found.add("NCHW")
    return found
