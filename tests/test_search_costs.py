"""Costs in a differentiable search: expectations against enumeration, peaks, gradients against differences, how loss and costs
are combined."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasopt.cost.lookup import Lookup, here
from nasopt.errors import InputError
from nasopt.nets import choices, mgda, relax, relaxed, train
from nasopt.nets.differentiable import DifferentiableSearch, Method
from nasopt.nets.expected import Cost
from nasopt.space import Arch, everything, layout
from nasopt.spaces.darts import darts

F64 = torch.float64
METHOD = Method(lr=0.05, recipe=train.Recipe(batch=8, kernel_lr=None, lr=0.05, momentum=0.9, smoothing=0.0))


@pytest.fixture(autouse=True)
def _fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "bf16_pays", lambda: False)


class Net(nn.Module):
    """A width that two layers share, a cell, choices below a depth and one with a single option."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = choices.Width((2, 4))
        self.stem = nn.Sequential(choices.Conv2d(1, self.width, 3, padding=1), choices.BatchNorm2d(self.width))
        wiring = choices.Wiring(3, ("none", "skip", "conv"), none="none", skip="skip")
        self.cell = choices.Graph(wiring, {"none": nn.Identity, "skip": nn.Identity,
                                           "conv": lambda: choices.Conv2d(self.width, self.width, 1)}, nn.Tanh())
        self.only = choices.OneOf({"tanh": nn.Tanh()})
        self.blocks = choices.Depth([choices.OneOf({"tanh": nn.Tanh(), "relu": nn.ReLU(),
                                                    "conv": choices.Conv2d(self.width, self.width, 3, padding=1)})
                                     for _ in range(2)], (0, 1, 2))
        self.out = choices.Linear(self.width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.only(self.cell(self.stem(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def table(net: nn.Module, seed: int = 0, device: str = "") -> Lookup:
    """Random parts, of both signs."""
    space, generator = choices.space_of(net), np.random.default_rng(seed)
    return Lookup("latency_ms", space, 3.0, {g.path: tuple(generator.normal(size=len(g.labels))) for g in layout(space).genes},
                  device)


def probabilities(net: nn.Module, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(g.shape, dtype=F64, generator=generator).softmax(1) for g in relaxed.groups(net)]


def chance(net: nn.Module, arch: Arch, weights: Sequence[Tensor]) -> float:
    """Of drawing an architecture, read off its choices' names."""
    by_path: dict[str, Tensor] = {}
    for group, p in zip(relaxed.groups(net), weights, strict=True):
        for row in range(group.rows):
            edge = ("0-1", "0-2", "1-2")[row] if group.rows > 1 else ""
            by_path[f"{group.path}/{edge}" if edge else group.path] = p[row]
    return math.prod(float(by_path[path][option]) if path in by_path else 1.0 for path, option in arch.items())


def hot(net: nn.Module, arch: Arch) -> list[Tensor]:
    """Weights that are one architecture."""
    paths = [[f"{g.path}/{e}" for e in ("0-1", "0-2", "1-2")] if g.rows > 1 else [g.path] for g in relaxed.groups(net)]
    return [nn.functional.one_hot(torch.tensor([arch.get(path, 0) for path in rows]), g.shape[1]).double()
            for g, rows in zip(relaxed.groups(net), paths, strict=True)]


def test_the_expectation_is_that_of_all_architectures() -> None:
    net = Net()
    known, archs, weights = table(net), list(everything(choices.space_of(net))), probabilities(net)
    cost, p = Cost(net, [known], here()), np.array([chance(net, a, weights) for a in archs])
    true = known.costs(archs)
    assert len(archs) > 500 and p.sum() == pytest.approx(1, abs=1e-12)
    assert float(cost(weights)) == pytest.approx((p @ true - true.min()) / (true.max() - true.min()), abs=1e-12)
    assert (cost.low, cost.high) == pytest.approx((true.min(), true.max()), abs=1e-12)


def test_several_tables_are_the_smooth_peak_of_their_times() -> None:
    net, cold = Net(), 1e-3
    times = [table(net, seed) for seed in range(3)]
    cost = Cost(net, times, here(), cold)
    for arch in list(everything(choices.space_of(net)))[::97]:
        peak = max(float(t.costs([arch])[0]) for t in times)
        over = float(cost(hot(net, arch))) - (peak - cost.low) / (cost.high - cost.low)
        assert -1e-12 <= over <= cold * math.log(3) + 1e-12
    warm = Cost(net, times, here(), 0.5)
    assert float(warm(hot(net, arch))) > float(cost(hot(net, arch))) + 0.01


def test_gradients_against_differences() -> None:
    net = Net()
    for times in ([table(net)], [table(net, 1), table(net, 2)]):
        cost, weights = Cost(net, times, here(), 0.2), tuple(p.requires_grad_() for p in probabilities(net))
        assert torch.autograd.gradcheck(lambda *p, cost=cost: cost([q.softmax(1) for q in p]), weights, eps=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------ in a search
def parts() -> tuple[train.Images, train.Images]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(160) % 2
    x = torch.rand(160, 1, 6, 6, generator=generator)
    x[torch.arange(160), 0, :, 3 * y] += 1
    data = train.Images.all(x, y, x.mean((0, 2, 3)), x.std((0, 2, 3)))
    return data.part(torch.arange(80)), data.part(torch.arange(80, 160))


def search(method: Method = METHOD, costs: int = 0, shares: Sequence[float] | None = (), steps: int = 6) -> DifferentiableSearch:
    net = Net()
    prices = [Cost(net, [table(net, seed)], here()) for seed in range(costs)]
    return DifferentiableSearch(net, *parts(), method, steps, 3, train.Augment(translate=1), prices, shares)


def trace(found: DifferentiableSearch) -> dict[str, Tensor]:
    return {"losses": torch.tensor(found.run(found.steps)), **found.state()}


def test_without_costs_and_with_shares_of_0_it_is_the_same_bit_for_bit() -> None:
    plain = trace(search())
    for same in (search(shares=None), search(costs=2, shares=(0.0, 0.0))):
        now = trace(same)
        assert now.keys() == plain.keys() and all(torch.equal(now[k], plain[k]) for k in plain)
    for other in (search(costs=2, shares=(0.0, 0.1)), search(costs=1, shares=None)):
        now = trace(other)
        assert not torch.equal(now["alpha 0"], plain["alpha 0"])


def gradient_of(found: DifferentiableSearch) -> list[Tensor]:
    """What the next step gives to Adam."""
    batch = next(train.batches(found.training, 8, found.augment, 0, 0))
    found._step_alphas(batch, batch)
    return [p.grad for p in (*found.alphas, *found.betas) if p.grad is not None]


@pytest.mark.parametrize("edges", [False, True])
def test_shares_weigh_gradients_and_none_is_the_shortest_common_direction(edges: bool) -> None:
    method = replace(METHOD, edges=edges, start=0.3)

    def flat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.flatten() for t in tensors])

    loss = flat(gradient_of(search(method)))
    each = []
    for k in range(2):
        probe = search(method, 2, (0.0, 0.0))
        slopes = probe.cost_slopes(probe.costs)[k]
        each.append(torch.cat([flat(slopes), loss.new_zeros(len(loss) - len(flat(slopes)))]))
        alphas = [a.detach().requires_grad_() for a in probe.alphas]
        by_hand = torch.autograd.grad(probe.costs[k]([a.softmax(1) for a in alphas]), alphas)
        assert torch.equal(flat(slopes), flat(by_hand))
    weighed = flat(gradient_of(search(method, 2, (0.5, 2.0))))
    assert torch.allclose(weighed, loss + 0.5 * each[0] + 2 * each[1], atol=1e-7)
    common = flat(gradient_of(search(method, 2, None)))
    units = mgda.unit(torch.stack([loss, *each]))
    assert float((units @ common).min()) >= float(common @ common) - 1e-6 and 0.1 < float(common.norm()) < 1
    two = flat(gradient_of(search(method, 1, None)))
    assert torch.allclose(two, units[:2].mean(0), atol=1e-6)  # of two unit vectors the shortest is half way


@pytest.mark.parametrize("relaxation", [relax.softmax, relax.gumbel_hard])
def test_a_cost_that_weighs_much_is_brought_to_its_least(relaxation: Callable[..., Tensor]) -> None:
    heavy, archs = search(replace(METHOD, relaxation=relaxation), 1, (200.0,), steps=60), None
    heavy.run(60)
    known, archs = table(heavy.net), list(everything(choices.space_of(heavy.net)))
    assert known.costs([heavy.architecture()])[0] == pytest.approx(known.costs(archs).min())
    free = search(replace(METHOD, relaxation=relaxation), steps=60)
    free.run(60)
    assert known.costs([free.architecture()])[0] > known.costs(archs).min() + 0.5


def test_a_removed_option_costs_nothing() -> None:
    pruned = search(replace(METHOD, prune=((0.0, 2),)), 1, (1.0,))
    pruned.run(2)
    slopes = pruned.cost_slopes(pruned.costs)[0]
    assert all(bool((s[~k] == 0).all()) and bool(s.isfinite().all()) for s, k in zip(slopes, pruned.allowed, strict=True))
    assert any(not bool(k.all()) for k in pruned.allowed)


def test_bad_input() -> None:
    net = Net()
    with pytest.raises(InputError, match="a latency_ms table for another device, 'raspi4'"):
        Cost(net, [table(net, device="raspi4")], here())
    with pytest.raises(InputError, match="a table of the network's own space"):
        Cost(nn.Sequential(net, choices.OneOf({"a": nn.Tanh(), "b": nn.ReLU()})), [table(net)], here())
    with pytest.raises(InputError, match="a table of the network's own space"):
        Cost(net, [], here())
    same = Lookup("params", choices.space_of(net), 7.0, {k: (0.0,) * len(v) for k, v in table(net).parts.items()})
    with pytest.raises(InputError, match="params is 7 for every architecture: leave it out"):
        Cost(net, [same], here())
    cells = darts(4, 4, 3)
    with pytest.raises(InputError, match="no sum over the edges of a cell of node pairs"):
        Cost(cells, [table(cells)], here())
    for shares in ((), (1.0, 1.0), (-1.0,)):
        with pytest.raises(InputError, match="1 costs got the shares"):
            search(costs=1, shares=shares)
