"""Arrays of images: their layouts, and what a network gets of them."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nasopt.errors import InputError

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


def as_nchw(x: NDArray[Any], layout: Layout) -> NDArray[np.float32]:
    """A batch as a new contiguous float32 array of shape (N, C, H, W), values unchanged.

    Args:
        x: images of any numeric type, with the axes of ``layout``.

    Raises:
        InputError: ``x`` has not the number of axes that ``layout`` names.
    """
    if x.ndim != len(layout):
        raise InputError(f"images of shape {x.shape} are not {layout}: give an array with {len(layout)} axes.")
    if layout == "NHW":
        x = x[:, None]
    if layout == "NHWC":
        x = x.transpose(0, 3, 1, 2)
    return np.array(x, dtype=np.float32, order="C")


def standardise(
    x: NDArray[Any], layout: Layout, mean: NDArray[np.float32], std: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A batch as float32 (N, C, H, W), less the mean and divided by the standard deviation of each channel.

    Args:
        x: images with the axes of ``layout``.
        mean, std: shape (C,), in the units of ``x`` (0..255 for uint8); see `nasopt.tasks.data.normalisation`.

    Raises:
        InputError: ``x`` has not the number of axes that ``layout`` names.
    """
    out = as_nchw(x, layout)
    out -= mean[:, None, None]
    out /= std[:, None, None]
    return out
