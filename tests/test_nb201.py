"""NAS-Bench-201: strings, and the published parameter and FLOP counts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasopt import space
from nasopt.cost.count import flops, params
from nasopt.errors import InputError
from nasopt.nets import choices, relaxed
from nasopt.spaces import nb201
from test_choices import worst_difference

FOLDER = Path(os.environ.get("NASOPT_TABLES", Path(__file__).parents[2] / "shared/data/nas_tables"))


def test_the_network_has_the_published_space() -> None:
    assert choices.space_of(nb201.nb201(cells=1, channels=4)) == nb201.SPACE
    assert space.size(nb201.SPACE) == 15_625


def test_paths_equal_extractions() -> None:
    torch.manual_seed(0)
    assert worst_difference(nb201.nb201(channels=4, cells=2), torch.randn(2, 3, 8, 8), 10) <= 1e-6


def test_partial_channels_and_no_affine_parameters() -> None:
    def count(partial: int, affine: bool) -> int:
        """With 1 cell a stage, 8 channels: each of 6 edges has a 1x1 and a 3x3 convolution of so many channels."""
        c = 8
        total = 27 * c + 2 * c + 2 * 4 * c + 4 * c * 10 + 10  # stem, head
        for width in (c, 2 * c, 4 * c):
            w = width // partial
            total += 6 * (10 * w * w + 2 * 2 * w * affine)
            total += (9 * width // 2 + 9 * width + width // 2) * width + 4 * width if width > c else 0  # a reduction before it
        return total

    for partial, affine in ((1, True), (1, False), (4, True), (4, False)):
        net = nb201.nb201(channels=8, cells=1, partial=partial, affine=affine)
        assert params(net) == count(partial, affine)
        assert choices.space_of(net) == nb201.SPACE
        with relaxed.mixed(net, [relaxed.mix(torch.full((6, 5), 0.2), 0.0, torch.full((6,), 0.5))]):
            assert net(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(InputError, match="8 channels of which 1 in 3"):
        nb201.nb201(channels=8, partial=3)


def test_edge_weights_multiply_the_channels_that_pass_by_too() -> None:
    wiring = choices.Wiring(2, ("none", "skip"), none="none", skip="skip")
    graph = choices.Graph(wiring, {"none": torch.nn.Identity, "skip": torch.nn.Identity}, partial=2)
    x = torch.randn(1, 4, 2, 2)
    with relaxed.mixed(graph, [relaxed.mix(torch.tensor([[0.4, 0.6]]), 0.0, torch.tensor([0.5]))]):
        out = graph(x)
    torch.testing.assert_close(out, 0.5 * torch.cat([0.6 * x[:, :2], x[:, 2:]], 1)[:, [0, 2, 1, 3]])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_strings_round_trip(options: list[int]) -> None:
    arch = {f"cell/{i}-{j}": o for (i, j), o in zip(nb201.CELL.edges, options, strict=True)}
    assert nb201.from_string(nb201.to_string(arch)) == arch


def test_a_published_string() -> None:
    # index 0 of the official order is known by its string; the edges are 0-1, 0-2, 1-2, 0-3, 1-3, 2-3
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert list(nb201.from_string(text).values()) == [4, 2, 1, 2, 1, 1]


@pytest.mark.parametrize("text", ["", "|none~0|", "|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "|nne~0|"])
def test_bad_strings(text: str) -> None:
    with pytest.raises(InputError):
        nb201.from_string(text)


@pytest.mark.skipif(not (FOLDER / "nb201.npz").exists(), reason="set NASOPT_TABLES to the folder with nb201.npz")
def test_published_parameters_and_flops() -> None:
    """500 random architectures: parameters exactly, FLOPs to the last printed digit (10 FLOPs)."""
    table = np.load(FOLDER / "nb201.npz", allow_pickle=False)
    net, example = nb201.nb201().eval(), torch.zeros(1, 3, 32, 32)
    known: dict[tuple[int, ...], tuple[int, float]] = {}
    for row in np.random.default_rng(0).choice(15_625, 500, replace=False):
        text = table["arch_str"][row]
        arch = nb201.from_string(text.decode() if isinstance(text, bytes) else str(text))
        kinds = tuple(sorted(arch.values()))  # the counts depend on the multiset of operations alone; extract each once
        if kinds not in known:
            alone = choices.extract(net, arch)
            known[kinds] = params(alone), flops(alone, example) / 1e6
        assert known[kinds][0] == round(table["params_m_c10"][row] * 1e6)
        assert round(known[kinds][1], 5) == round(float(table["flops_m_c10"][row]), 5)


@pytest.mark.parametrize("side", [6, 7, 10])
def test_images_of_any_side_pass(side: int) -> None:
    assert nb201.nb201(4, 4, 1)(torch.randn(2, 3, side, side)).shape == (2, 4)
