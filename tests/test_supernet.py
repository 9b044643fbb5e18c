"""Weight sharing: which paths a step takes, recalibration, inheritance; and the rank correlation that judges it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from nasopt import seed as seeds
from nasopt.analysis.rank import kendall
from nasopt.cost.count import Count
from nasopt.estimators.images import Costs, OneShot, StandAlone
from nasopt.nets import choices, supernet, train
from nasopt.nets.choices import BatchNorm2d, Conv2d, Depth, Linear, OneOf, Width
from nasopt.nets.options import Choosing
from nasopt.space import connected, labels, sample
from nasopt.spaces.nb201 import nb201
from nasopt.testing.estimator import check_estimator
from nasopt.trial import Ask
from test_train import images


def block(width: Width) -> nn.Module:
    return nn.Sequential(OneOf({"a": Conv2d(width, width, 3, padding=1), "b": Conv2d(width, width, 1)}), BatchNorm2d(width),
                         nn.ReLU())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = Width([4, 8, 12])
        self.stem = Conv2d(1, self.width, 3, padding=1)
        self.body = Depth([block(self.width) for _ in range(3)], [1, 2, 3])
        self.out = Linear(self.width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(self.stem(x)).mean((2, 3)))


def test_a_step_takes_the_largest_and_the_smallest_size_with_random_operations() -> None:
    space = choices.space_of(Net())
    seen = set()
    for step in range(20):
        large, tiny, *others = [labels(space, a) for a in supernet.sandwich(space, 2, 0, step)]
        assert large["width"] == "12"
        assert large["body"] == "3"
        assert tiny["width"] == "4"
        assert tiny["body"] == "1"
        assert len(others) == 2
        seen |= {v for k, v in large.items() if k not in ("width", "body")}
    assert seen == {"a", "b"}


def test_shared_training_lowers_the_loss_and_inherited_networks_work() -> None:
    data = images(128)
    net = Net()
    recipe = train.Recipe(kernel_lr=None, lr=0.1, momentum=0.9)
    first = supernet.fit(net, data, recipe, train.Augment(), 2, 0)
    later = supernet.fit(net, data, recipe, train.Augment(), 60, 0)
    assert later.loss < 0.8 * first.loss
    space = choices.space_of(net)
    for arch in supernet.sandwich(space, 2, 1, 0):
        alone = supernet.inherit(net, arch, data, 128)
        assert not any(isinstance(m, Choosing) for m in alone.modules())
        assert train.error(alone, data) < 0.3


def test_image_estimators_pass_the_kit() -> None:
    data, net = images(96), Net()
    space = choices.space_of(net)
    asks = [Ask(k, a, seed=1) for k, a in enumerate(supernet.sandwich(space, 2, 0, 0))]
    check_estimator(Costs(net, [Count()], data.normalised(slice(0, 1))), asks)
    check_estimator(OneShot(net, data, data, 64), asks)
    check_estimator(StandAlone(net, data, data, train.Recipe(epochs=1), train.Augment()), asks, measured=("training_seconds",))


def test_a_supernet_of_networks_that_may_be_cut_off_is_trained_on_connected_ones() -> None:
    space = choices.space_of(nb201(2, channels=4, cells=1))
    drawn = [a for step in range(50) for a in supernet.sandwich(space, 2, 0, step)]
    assert all(connected(space, a) for a in drawn)
    assert not all(connected(space, sample(space, seeds.rng(0, k, "cut"))) for k in range(200))


def test_recalibration_sets_the_mean_over_the_images() -> None:
    data = images(96)
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    nn.init.constant_(net[1].running_mean, 7.0)
    supernet.recalibrate(net, data, 96, batch=32)
    with torch.no_grad():
        values = net[0](data.normalised(slice(0, 96)))
    assert torch.allclose(net[1].running_mean, values.mean((0, 2, 3)), atol=2e-2)
    assert torch.allclose(net[1].running_var, values.var((0, 2, 3)), rtol=5e-2)
    assert net[1].momentum == 0.1
    assert not net.training


def test_a_recalibration_is_the_same_each_time_whatever_other_layers_draw() -> None:
    data, found = images(96), list[torch.Tensor]()
    for _ in range(2):
        net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1))
        supernet.recalibrate(net, data, 96, batch=32)
        found.append(net[1].running_var)
        assert not net.training
    torch.testing.assert_close(found[0], data.normalised(slice(0, 96)).var((0, 2, 3)), rtol=0.05, atol=0)
    assert torch.equal(*found)


def test_what_layers_draw_in_shared_training_follows_from_the_seed() -> None:
    data, found = images(40), list[float]()
    for before in (1, 2):
        net = nn.Sequential(nn.Dropout(0.5), Net())
        torch.manual_seed(before)
        supernet.fit(net, data, train.Recipe(kernel_lr=None), train.Augment(), 3, 0)
        found.append(net[1].out.largest.weight.detach().sum().item())
    assert found[0] == found[1]


def test_every_image_counts_the_same_in_a_recalibration() -> None:
    data, net = images(100), nn.BatchNorm2d(1)
    supernet.recalibrate(net, data, 100, batch=96)
    torch.testing.assert_close(net.running_mean, data.normalised(slice(None)).mean((0, 2, 3)), atol=1e-5, rtol=0)


def test_shared_weights_judge_a_share_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, data, net = list[list[int]](), images(96), Net()
    arch = supernet.sandwich(choices.space_of(net), 2, 0, 0)[0]
    monkeypatch.setattr(train, "error", lambda alone, part, fast: float(not seen.append(part.index.tolist())))
    for fidelity in (1.0, 1 / 3, 0.001):
        OneShot(net, data, data, 64)(Ask(0, arch, fidelity))
    assert seen == [list(range(96)), list(range(0, 96, 3)), [0]]


def test_kendall_equals_scipy_and_its_interval_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        a = rng.normal(size=40)
        b = a + rng.normal(size=40)
        found = kendall(a.tolist(), b.tolist(), seed, resamples=300)
        assert found.value == pytest.approx(stats.kendalltau(a, b).statistic)
        covered += found.low <= 0.5 <= found.high  # tau of a bivariate normal with rho = 1/√2 is (2/π) asin(rho) = 1/2
    assert covered >= 50


@pytest.mark.parametrize("n", [3, 8, 50])
def test_a_perfect_order_of_few_is_no_certainty(n: int) -> None:
    same, opposite = kendall(range(n), range(n)), kendall(range(n), range(0, -n, -1))
    assert (same.value, same.high) == pytest.approx((1, 1)) and (opposite.value, opposite.low) == pytest.approx((-1, -1))
    assert same.low == pytest.approx(-opposite.high)
    z = stats.norm.ppf(0.975)
    assert (1 - same.low) ** 2 == pytest.approx(z**2 * 2 * (1 - same.low**2) / n)
    assert same.low == pytest.approx({3: -0.438, 8: 0.020, 50: 0.734}[n], abs=1e-3)


def test_kendall_of_a_constant_is_no_evidence() -> None:
    found = kendall([1, 2, 3, 4], [5, 5, 5, 5])
    assert found.value == 0
    with pytest.raises(ValueError, match="at least 3 pairs"):
        kendall([1, 2], [1, 2])
    with pytest.raises(ValueError, match="not finite"):
        kendall([1, 2, 3, 4], [1, 2, float("nan"), 4])
