"""Scaling of architectures to a budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasopt import seed, space
from nasopt.cost.count import flops, params
from nasopt.errors import InputError
from nasopt.nets import choices
from nasopt.nets.whitening import Whitening
from nasopt.spaces import fast, scaling
from nasopt.spaces.cells import cells
from nasopt.spaces.designed import small_mobilenet, small_resnet


@pytest.fixture(scope="module")
def net() -> fast.Fast:
    torch.manual_seed(0)
    return fast.fast((3, 16, 16), 10, widths=(64, 64, 64))


@pytest.fixture(scope="module")
def arch(net: fast.Fast) -> dict[str, int]:
    return fast.member(net, "plain", [fast.Part(50, "max", "plain", 2)] * 3, "relu", "avg", "x1")


EXAMPLE = torch.zeros(1, 3, 16, 16)


def test_one_step_multiplies_widths_and_depths(net: fast.Fast, arch: dict[str, int]) -> None:
    assert scaling.compound(net, arch, 0) == arch
    words = space.labels(choices.space_of(net), scaling.compound(net, arch, 4.0))
    before = space.labels(choices.space_of(net), arch)
    changed = {path: (before[path], words[path]) for path in words if words[path] != before[path]}
    assert changed == {f"{stage}/{name}": pair for stage in ("first", "stages[0]", "stages[1]") for name, pair in
                       (("width", ("50", "75")), ("blocks=plain/depth", ("2", "3")))}, "32 * 1.46 is nearest to 48"
    twice = space.labels(choices.space_of(net), scaling.compound(net, arch, 2.0))
    assert twice["first/width"] == "50" and twice["first/blocks=plain/depth"] == "3", "32 * 1.21 is nearer to 32, 2 * 1.44 to 3"
    smaller = space.labels(choices.space_of(net), scaling.compound(net, arch, -12.0))
    assert smaller["first/width"] == "12" and smaller["first/blocks=plain/depth"] == "1"
    assert smaller["stages"] == before["stages"], "the stages' choices depend on it"


@pytest.mark.parametrize("cost", [lambda n, x: params(n), flops])
@pytest.mark.parametrize("share", [0.2, 1.0, 2.5])
def test_the_largest_scaling_within_the_budget(net: fast.Fast, arch: dict[str, int], cost: scaling.Cost, share: float) -> None:
    budget = share * cost(choices.extract(net, arch), EXAMPLE)
    found = scaling.within(net, arch, EXAMPLE, cost, budget)
    assert found.cost == cost(choices.extract(net, found.arch), EXAMPLE) <= budget
    different = {space.key(a): a for a in (scaling.compound(net, arch, k / 8) for k in range(-96, 97))}
    costs = [cost(choices.extract(net, a), EXAMPLE) for a in different.values()]
    assert found.cost == max(c for c in costs if c <= budget)


def test_images_grow_with_the_network(net: fast.Fast, arch: dict[str, int]) -> None:
    budget = 4 * flops(choices.extract(net, arch), EXAMPLE)
    found = scaling.within(net, arch, EXAMPLE, flops, budget, sides=(12, 16, 20, 24, 32))
    assert found.side in (20, 24) and found.cost <= budget
    assert found.cost == flops(choices.extract(net, found.arch), torch.zeros(1, 3, found.side, found.side))
    assert scaling.resized(torch.ones(2, 3, 16, 16), 24).shape == (2, 3, 24, 24)


def test_few_scalings_are_measured(net: fast.Fast, arch: dict[str, int]) -> None:
    """As a step's time takes long to measure."""
    measured = []

    def slow(network: nn.Module, example: Tensor) -> float:
        measured.append(network)
        return float(params(network))

    scaling.within(net, arch, EXAMPLE, slow, 1e5)
    assert 2 < len(measured) < 10


def test_too_small_a_budget_and_a_foreign_architecture_are_refused(net: fast.Fast, arch: dict[str, int]) -> None:
    with pytest.raises(InputError, match="above the budget of 10: give more"):
        scaling.within(net, arch, EXAMPLE, flops, 10)
    with pytest.raises(ValueError, match="nonsense"):
        scaling.compound(net, {**arch, "nonsense": 0}, 1)


def test_it_serves_other_spaces() -> None:
    torch.manual_seed(0)
    net = cells((1, 8, 8), 3)
    arch = space.sample(choices.space_of(net), seed.rng(0, 0, "scaling"))
    x = torch.zeros(1, 1, 8, 8)
    low, high = (flops(choices.extract(net, scaling.compound(net, arch, s)), x) for s in (-12, 12))
    assert low < high
    assert scaling.within(net, arch, x, flops, high).cost == high


def test_a_depth_of_none_stays_none() -> None:
    net = nn.Sequential(choices.Depth([nn.Tanh(), nn.Tanh()], [0, 1, 2]))
    (path,) = (gene.path for gene in space.layout(choices.space_of(net)).genes)
    assert scaling.compound(net, {path: 0}, 0) == scaling.compound(net, {path: 0}, 9) == {path: 0}


def test_widened_layers_keep_their_settings() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8, track_running_stats=False),
                        nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    wide = scaling.widened(net, 2.0, EXAMPLE[:, :1])
    assert wide[0].padding_mode == "reflect" and wide[1].running_mean is None and wide[0].out_channels == 16
    assert not any(m.training for m in wide.modules())


@pytest.mark.parametrize("build", [small_resnet, small_mobilenet])
def test_a_width_multiplier_equals_the_designed_one(build: object) -> None:
    torch.manual_seed(0)
    x = torch.zeros(1, 3, 32, 32)
    net = build((3, 32, 32), 10)  # type: ignore[operator]
    wide = scaling.widened(net, 2.0, x)
    assert wide(x.repeat(2, 1, 1, 1)).shape == (2, 10)
    assert 3.5 < params(wide) / params(net) < 4.1
    assert [type(m) for m in wide.modules()] == [type(m) for m in net.modules()]
    assert params(scaling.widened(net, 1.0, x)) == params(net)
    assert all(m.groups in (1, m.in_channels) for m in wide.modules() if isinstance(m, nn.Conv2d))
    if build is small_mobilenet:
        sizes = [m.out_channels for m in small_mobilenet((3, 32, 32), 10, 0.5).modules() if isinstance(m, nn.Conv2d)]
        ours = [m.out_channels for m in wide.modules() if isinstance(m, nn.Conv2d)]
        assert ours[-1] == sizes[-1] == 640


def test_a_width_multiplier_meets_a_budget(net: fast.Fast, arch: dict[str, int]) -> None:
    alone = choices.extract(net, arch)
    budget = 7.0 * flops(alone, EXAMPLE)
    wide, factor = scaling.widened_to(alone, EXAMPLE, flops, budget)
    assert 2.3 < factor < 2.7, "the square root of 7"
    assert 0.8 * budget < flops(wide, EXAMPLE) <= budget
    with pytest.raises(InputError, match="above the budget"):
        scaling.widened_to(alone, EXAMPLE, flops, 100)


def test_a_whitening_layer_is_not_widened(net: fast.Fast) -> None:
    alone = choices.extract(net, fast.member(net, "patches", [fast.Part(50, "max", "plain", 1)] * 3, "gelu", "max", "x1"))
    wide = scaling.widened(alone, 2.0, EXAMPLE)
    before, after = ([m for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (alone, wide))
    assert isinstance(after[0], Whitening) and after[0].out_channels == 24
    assert (after[1].in_channels, after[1].out_channels) == (24, 2 * before[1].out_channels)
    assert after[2].in_channels == 2 * before[2].in_channels


def test_channels_that_do_not_scale_together_are_refused() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 12, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(24, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            out: Tensor = self.c(torch.cat([y, self.b(y)], 1)).mean((2, 3))
            return out

    x = torch.zeros(1, 1, 4, 4)
    assert scaling.widened(Joined(), 2.0, x)(x).shape == (1, 3)
    with pytest.raises(InputError, match=r"do not scale by 1.7 together .*choose another factor"):
        scaling.widened(Joined(), 1.7, x)
    for factor in (0.0, float("nan")):
        with pytest.raises(InputError, match="above 0"):
            scaling.widened(Joined(), factor, x)
    with pytest.raises(InputError, match="nothing to widen"):
        scaling.widened(nn.ReLU(), 2.0, x)
