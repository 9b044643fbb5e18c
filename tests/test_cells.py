"""The hierarchical cell space: sizes of images, members, and paths against extracted networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nasopt import space
from nasopt.cost.count import flops
from nasopt.errors import InputError
from nasopt.nets import choices
from nasopt.nets.ops import OPERATIONS
from nasopt.spaces.cells import cells
from nasopt.spaces.designed import small_mobilenet, small_resnet
from test_choices import worst_difference


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 64, 48), (2, 1, 3)])
def test_paths_equal_extractions_at_every_size(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    assert worst_difference(cells(shape, 7), torch.randn(2, *shape), 6) <= 1e-6


def test_cells_of_their_own() -> None:
    torch.manual_seed(0)
    net = cells((1, 8, 8), 3, shared=False, nodes=3, operations=("none", "skip", "conv_3x3"), reductions=("none",))
    assert worst_difference(net, torch.randn(2, 1, 8, 8), 10) <= 1e-6
    paths = {g.path for g in space.layout(choices.space_of(net)).genes}
    assert {"first/cells[0]/cell/0-1", "first/cells[1]/cell/0-1"} <= paths


def test_default_range_of_costs() -> None:
    net = cells((3, 32, 32), 10)
    example = torch.zeros(1, 3, 32, 32)
    low, high = (flops(choices.extract(net, a), example) for a in (choices.smallest(net), choices.largest(net)))
    assert low < 1e6 and 100e6 < high < 200e6


def test_a_cell_is_the_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    net = cells((3, 8, 8), 2, nodes=3, cells_per_stage=(1,), stages=1).eval()
    s = choices.space_of(net)
    words = {"first/width": "100"}

    def cell(a: str, b: str, c: str) -> nn.Module:
        arch = space.from_labels(s, {"first/cell/0-1": a, "first/cell/0-2": b, "first/cell/1-2": c, "first/cells": "1", **words})
        return choices.extract(net, arch).first.cells[0].cell  # type: ignore[no-any-return]

    x = torch.randn(1, 32, 8, 8)
    plain, residual = cell("none", "conv_3x3", "none"), cell("conv_3x3", "skip", "conv_3x3")
    torch.testing.assert_close(plain(x), plain.edges["1"](x.relu()))
    one, two = residual.edges["0"], residual.edges["2"]
    torch.testing.assert_close(residual(x), x + two(one(x.relu()).relu()))


@pytest.mark.parametrize("label", list(OPERATIONS))
def test_operations_keep_the_shape(label: str) -> None:
    x = torch.randn(2, 6, 5, 3)
    assert OPERATIONS[label](6)(x).shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": ("conv_3x3", "conv3")}, "unknown operation 'conv3'"),
        ({"stages": 5}, "below 2x2"),
        ({"widths": ((4, 8),)}, "1 entries"),
        ({"strides": (3,)}, "strides"),
        ({"heads": ()}, "no head"),
        ({"stages": ()}, "at least 1"),
    ],
)
def test_errors_name_the_input(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cells((1, 8, 8), 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64), (1, 3, 2)])
def test_designed_networks(shape: tuple[int, int, int]) -> None:
    for make in (small_resnet, small_mobilenet):
        assert make(shape, 5)(torch.randn(2, *shape)).shape == (2, 5)


def test_small_resnet_with_three_blocks_a_stage_is_resnet_20() -> None:
    # He et al. (2016): 0.27 M parameters with option A; the projections of option B add these weights and their norms
    count = sum(p.numel() for p in small_resnet((3, 32, 32), 10, blocks=3).parameters())
    assert count == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)
